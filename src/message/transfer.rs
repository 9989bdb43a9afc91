//! transfer - transfer encodings of MIME bodies (RFC 2045 6.7 and 6.8), encoding only.

/// Columns of a quoted-printable line: 75 octets and a soft line break.
const COLUMNS: usize = 75;
/// Octets of a line of base64: 76 characters.
pub(super) const BASE64_LINE: usize = 57;

/// Appends `octets` as quoted-printable (RFC 2045 6.7); CRLF stays a line end, a bare CR or LF is
/// encoded.
pub(super) fn quoted_printable(out: &mut Vec<u8>, octets: &[u8]) {
    quoted_printable_part(out, octets, (0, 0), octets.len());
}

/// Goes on with `octets` where it left them before, at an offset and a column, up to `end` or just
/// behind it. Returns where it leaves them now.
pub(super) fn quoted_printable_part(
    out: &mut Vec<u8>,
    octets: &[u8],
    (mut at, mut column): (usize, usize),
    end: usize,
) -> (usize, usize) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    while at < end.min(octets.len()) {
        if octets[at..].starts_with(b"\r\n") {
            out.extend_from_slice(b"\r\n");
            (at, column) = (at + 2, 0);
            continue;
        }
        let byte = octets[at];
        let last = at + 1 == octets.len() || octets[at + 1..].starts_with(b"\r\n");
        let plain = match byte {
            b'=' => false,
            b' ' | b'\t' => !last,
            _ => matches!(byte, b'!'..=b'~'),
        };
        let width = if plain { 1 } else { 3 };
        if column + width > COLUMNS {
            out.extend_from_slice(b"=\r\n");
            column = 0;
        }
        if plain {
            out.push(byte);
        } else {
            let high = HEX[usize::from(byte >> 4)];
            out.extend_from_slice(&[b'=', high, HEX[usize::from(byte & 15)]]);
        }
        (at, column) = (at + 1, column + width);
    }
    (at, column)
}

/// How many of `octets` [`quoted_printable`] writes in three.
pub(super) fn escaped(octets: &[u8]) -> usize {
    let escaped = |byte: &&u8| **byte > b'~' || **byte == b'=';
    octets.iter().filter(escaped).count()
}

/// About how many octets [`quoted_printable`] makes of `len`, so many of them [`escaped`].
pub(super) fn quoted_printable_len(len: usize, escaped: usize) -> usize {
    let long = len + 2 * escaped;
    // A soft line break per line of text is never far off, whatever its lines are like.
    long + long / COLUMNS * 3
}

/// Appends `octets` as base64 (RFC 2045 6.8) in lines of 76 characters, the last one without a line
/// end.
pub(super) fn base64_lines(out: &mut Vec<u8>, octets: &[u8]) {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |word: u32, place: u32| ALPHABET[(word >> (18 - 6 * place) & 63) as usize];
    for (number, line) in octets.chunks(BASE64_LINE).enumerate() {
        if number > 0 {
            out.extend_from_slice(b"\r\n");
        }
        let (groups, rest) = line.as_chunks::<3>();
        for [a, b, c] in groups {
            let word = u32::from_be_bytes([0, *a, *b, *c]);
            out.extend_from_slice(&[0, 1, 2, 3].map(|place| digit(word, place)));
        }
        match rest {
            [a] => {
                let word = u32::from_be_bytes([0, *a, 0, 0]);
                out.extend_from_slice(&[digit(word, 0), digit(word, 1), b'=', b'=']);
            }
            [a, b] => {
                let word = u32::from_be_bytes([0, *a, *b, 0]);
                out.extend_from_slice(&[0, 1, 2].map(|place| digit(word, place)));
                out.push(b'=');
            }
            _ => {}
        }
    }
}

/// How many octets [`base64_lines`] makes of `len`.
pub(super) fn base64_len(len: usize) -> usize {
    len.div_ceil(3) * 4 + len.saturating_sub(1) / BASE64_LINE * 2
}
