//! lab::load::reply - finds the replies in what the daemon says.

/// Longest reply text kept, in bytes: an EHLO reply has a dozen short lines.
const TEXT_MAX: usize = 16 * 1024;
/// And of a refusal, which is for people.
const REFUSAL_MAX: usize = 200;

/// An incremental reader of SMTP replies (RFC 5321 4.2), bounded.
#[derive(Debug, Default)]
pub(super) struct ReplyReader {
    line: Vec<u8>,
    text: Vec<u8>,
    keep: bool,
    /// The last line of the last refusal.
    refusal: Vec<u8>,
}

/// What is wrong with a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NotSmtp;

impl ReplyReader {
    /// Keeps the text of the next reply for [`ReplyReader::text`].
    pub(super) fn keep_text(&mut self) {
        self.keep = true;
        self.text.clear();
    }

    /// The text of the reply that was kept, all lines.
    pub(super) fn text(&self) -> &[u8] {
        &self.text
    }

    /// What the last refusal said after its code, in its last line, fit for a terminal.
    pub(super) fn refusal(&self) -> String {
        let text = String::from_utf8_lossy(&self.refusal);
        let shown = text.trim().chars().filter(|c| !c.is_control());
        shown.collect()
    }

    /// Reads up to the end of one reply: how many bytes that took, and its code when it is whole.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Result<(usize, Option<u16>), NotSmtp> {
        let mut at = 0;
        while let Some(end) = memchr::memchr(b'\n', &bytes[at..]) {
            let piece = &bytes[at..=at + end];
            at += end + 1;
            let whole = if self.line.is_empty() {
                self.line(piece)?
            } else {
                let mut line = std::mem::take(&mut self.line);
                line.extend_from_slice(piece);
                self.line(&line)?
            };
            if whole.is_some() {
                self.keep = false;
                return Ok((at, whole));
            }
        }
        self.line.extend_from_slice(&bytes[at..]);
        if self.line.len() > TEXT_MAX {
            Err(NotSmtp)
        } else {
            Ok((bytes.len(), None))
        }
    }

    /// One line: the reply's code where it is the last one.
    fn line(&mut self, line: &[u8]) -> Result<Option<u16>, NotSmtp> {
        if self.keep && self.text.len() + line.len() <= TEXT_MAX {
            self.text.extend_from_slice(line);
        }
        let [a @ b'2'..=b'5', b, c, rest @ ..] = line else {
            return Err(NotSmtp);
        };
        if !b.is_ascii_digit() || !c.is_ascii_digit() {
            return Err(NotSmtp);
        }
        if rest.first() == Some(&b'-') {
            return Ok(None);
        }
        if *a >= b'4' {
            self.refusal.clear();
            self.refusal
                .extend_from_slice(&rest[..rest.len().min(REFUSAL_MAX)]);
        }
        let digit = |byte: &u8| u16::from(byte - b'0');
        Ok(Some(digit(a) * 100 + digit(b) * 10 + digit(c)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(reader: &mut ReplyReader, mut bytes: &[u8]) -> Result<Vec<u16>, NotSmtp> {
        let mut codes = Vec::new();
        while !bytes.is_empty() {
            let (taken, code) = reader.read(bytes)?;
            bytes = &bytes[taken..];
            codes.extend(code);
        }
        Ok(codes)
    }

    // Single and multi-line replies, whole, cut anywhere, and byte by byte.
    #[test]
    fn replies_are_found_however_they_are_cut() {
        let bytes = b"250-a\r\n250-SIZE\r\n250 b\r\n354 go\r\n250\r\n";
        let expected = Ok(vec![250, 354, 250]);
        assert_eq!(codes(&mut ReplyReader::default(), bytes), expected);
        for cut in 1..bytes.len() {
            let mut reader = ReplyReader::default();
            let mut all = codes(&mut reader, &bytes[..cut]).unwrap();
            all.extend(codes(&mut reader, &bytes[cut..]).unwrap());
            assert_eq!(Ok(all), expected, "{cut}");
        }
        let mut reader = ReplyReader::default();
        reader.keep_text();
        assert_eq!(codes(&mut reader, bytes), expected);
        assert_eq!(reader.text(), b"250-a\r\n250-SIZE\r\n250 b\r\n");
    }

    // What a refusal says is kept, whatever it is made of, and no more of it than a line needs.
    #[test]
    fn refusals_are_kept_for_people() {
        let mut reader = ReplyReader::default();
        let bytes = b"550-first\r\n550 5.7.1 not\x1b[2J here \xff\r\n250 fine\r\n";
        assert_eq!(codes(&mut reader, bytes), Ok(vec![550, 250]));
        assert_eq!(reader.refusal(), "5.7.1 not[2J here \u{fffd}");
        let long = [&b"451 "[..], &[b'x'; 1000], b"\r\n"].concat();
        assert_eq!(codes(&mut reader, &long), Ok(vec![451]));
        assert_eq!(reader.refusal().len(), REFUSAL_MAX - 1);
    }

    // What is not a reply is an error, and a line without end does not fill the memory.
    #[test]
    fn other_protocols_are_refused() {
        for bad in [
            "HTTP/1.1 400\r\n",
            "\r\n",
            "19 \r\n",
            "2x0 a\r\n",
            "650 a\r\n",
        ] {
            assert_eq!(
                codes(&mut ReplyReader::default(), bad.as_bytes()),
                Err(NotSmtp),
                "{bad}"
            );
        }
        let long = vec![b'2'; TEXT_MAX + 1];
        assert_eq!(codes(&mut ReplyReader::default(), &long), Err(NotSmtp));
    }
}
