//! dkim::base64 - RFC 4648 section 4, for tags, PEM files and DNS records.
//!
//! Why our own: forty lines against a dependency; the decoder is strict (padding required, no stray
//! bits), which is what a key file deserves.

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Appends the base64 text of `bytes`, padded, without line ends.
pub(crate) fn encode(bytes: &[u8], out: &mut Vec<u8>) {
    out.reserve(bytes.len().div_ceil(3) * 4);
    let (groups, rest) = bytes.as_chunks::<3>();
    for group in groups {
        out.extend_from_slice(&characters(*group));
    }
    match *rest {
        [a] => {
            let [first, second, ..] = characters([a, 0, 0]);
            out.extend_from_slice(&[first, second, b'=', b'=']);
        }
        [a, b] => {
            let [first, second, third, _] = characters([a, b, 0]);
            out.extend_from_slice(&[first, second, third, b'=']);
        }
        _ => {}
    }
}

/// The four characters of three octets.
fn characters([a, b, c]: [u8; 3]) -> [u8; 4] {
    let word = u32::from_be_bytes([0, a, b, c]);
    [18, 12, 6, 0].map(|shift| ALPHABET[(word >> shift & 63) as usize])
}

/// The value of one base64 character. Branchless over the classes, because PEM bodies are secret.
fn value(byte: u8) -> Option<u32> {
    let byte = u32::from(byte);
    // All ones where lo <= byte <= hi.
    let within = |lo: u8, hi: u8| {
        let below = byte.wrapping_sub(u32::from(lo)) >> 31;
        let above = u32::from(hi).wrapping_sub(byte) >> 31;
        (below | above).wrapping_sub(1)
    };
    let value = (within(b'A', b'Z') & byte.wrapping_sub(65))
        | (within(b'a', b'z') & byte.wrapping_sub(71))
        | (within(b'0', b'9') & byte.wrapping_add(4))
        | (within(b'+', b'+') & 62)
        | (within(b'/', b'/') & 63);
    let known = within(b'A', b'Z')
        | within(b'a', b'z')
        | within(b'0', b'9')
        | within(b'+', b'+')
        | within(b'/', b'/');
    (known != 0).then_some(value & 63)
}

/// Decodes padded base64, ignoring spaces, tabs and line ends. `None` where it is malformed.
///
/// The text may be secret: the returned buffer is allocated once, and nothing is copied elsewhere.
pub(crate) fn decode(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3 + 3);
    let (mut word, mut count, mut padding) = (0u32, 0u32, 0u32);
    for byte in text {
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' => continue,
            b'=' => padding += 1,
            _ if padding > 0 => return None,
            _ => word |= value(*byte)? << (18 - 6 * (count & 3)),
        }
        count += 1;
        if padding > 2 {
            return None;
        }
        if count.is_multiple_of(4) {
            let bytes = word.to_be_bytes();
            let keep = 3 - padding as usize;
            if bytes[1 + keep..].iter().any(|rest| *rest != 0) {
                return None;
            }
            out.extend_from_slice(&bytes[1..1 + keep]);
            word = 0;
        }
    }
    count.is_multiple_of(4).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::{decode, encode};

    // RFC 4648 section 10, both ways.
    #[test]
    fn rfc_4648_vectors() {
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            let mut out = Vec::new();
            encode(plain.as_bytes(), &mut out);
            assert_eq!(out, coded.as_bytes());
            assert_eq!(decode(coded.as_bytes()).as_deref(), Some(plain.as_bytes()));
        }
    }

    // Every byte value survives, with folded text.
    #[test]
    fn all_bytes_survive_folding() {
        let bytes: Vec<u8> = (0..=255).collect();
        let mut out = Vec::new();
        encode(&bytes, &mut out);
        let folded: Vec<u8> = out
            .chunks(64)
            .flat_map(|line| [line, b"\r\n\t "].concat())
            .collect();
        assert_eq!(decode(&folded), Some(bytes));
    }

    // Malformed text is refused: length, padding in the middle, stray bits, foreign characters.
    #[test]
    fn malformed_text_is_refused() {
        for text in [
            "A", "AA", "AAA", "Zh==", "Zm9=", "=AAA", "A===", "AA=A", "A*AA", "Zg==Zg==",
        ] {
            assert_eq!(decode(text.as_bytes()), None, "{text}");
        }
    }
}
