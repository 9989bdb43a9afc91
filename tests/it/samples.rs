//! samples - messages that are hard to carry unchanged.

/// Dots at line starts, a line of one dot, long lines, trailing blanks, empty lines at the end.
pub(crate) fn awkward() -> Vec<u8> {
    let mut text = Vec::new();
    text.extend_from_slice(b"From: Sender <sender@a.example>\r\n");
    text.extend_from_slice(b"To: Recipient <recipient@b.example>\r\n");
    text.extend_from_slice(b"Subject: awkward\r\n folded  \r\n\tagain\r\n");
    text.extend_from_slice(b"Message-ID: <awkward@a.example>\r\n");
    text.extend_from_slice(b"Date: Sat, 21 Nov 2026 12:00:00 +0000\r\n");
    text.extend_from_slice(b"MIME-Version: 1.0\r\n\r\n");
    text.extend_from_slice(b".\r\n..\r\n...\r\n.hidden\r\ntrailing blanks  \t\r\n\r\n");
    text.extend_from_slice(&[b'x'; 998]);
    text.extend_from_slice(b"\r\n.\r\nFrom here on\r\n\r\n\r\n");
    text
}

/// As `awkward`, about `size` bytes long, with lines that start in a dot all over it.
pub(crate) fn large(size: usize) -> Vec<u8> {
    let mut text = awkward();
    let mut line = 0;
    while text.len() < size {
        line += 1;
        let dots = ".".repeat(line % 4);
        text.extend_from_slice(format!("{dots}line {line} of a long message\r\n").as_bytes());
    }
    text
}

/// The same with the line ends of a Unix file, for programs that put in the CRs themselves.
pub(crate) fn unix(message: &[u8]) -> Vec<u8> {
    message
        .iter()
        .copied()
        .filter(|byte| *byte != b'\r')
        .collect()
}

/// The message as it goes over the wire after DATA, its end included.
pub(crate) fn stuffed(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for line in message.split_inclusive(|byte| *byte == b'\n') {
        if line.starts_with(b".") {
            out.push(b'.');
        }
        out.extend_from_slice(line);
    }
    out.extend_from_slice(b".\r\n");
    out
}
