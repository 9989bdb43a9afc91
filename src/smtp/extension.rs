//! extension - the service extensions of EHLO, and the xtext of RFC 3461.
//!
//! What: `Capabilities` is what a peer offered in its reply to EHLO; `xtext` encodes and decodes
//! the values of ENVID and ORCPT.
//! Example: the lines `SIZE 10485760` and `LIMITS RCPTMAX=100` give `size: Some(10485760)` and
//! `recipients_max: Some(100)`.
//! Standards: RFC 5321 4.1.1.1, 1870, 2920, 3030, 3461 4, 6152, 6531, 9422.

use super::command::number;

/// What the server offers, as far as this client can use it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// PIPELINING (RFC 2920).
    pub pipelining: bool,
    /// CHUNKING (RFC 3030).
    pub chunking: bool,
    /// 8BITMIME (RFC 6152).
    pub eight_bit_mime: bool,
    /// SMTPUTF8 (RFC 6531).
    pub smtputf8: bool,
    /// DSN (RFC 3461).
    pub dsn: bool,
    /// ENHANCEDSTATUSCODES (RFC 2034).
    pub enhanced_status_codes: bool,
    /// STARTTLS (RFC 3207).
    pub starttls: bool,
    /// REQUIRETLS (RFC 8689).
    pub requiretls: bool,
    /// SIZE was offered (RFC 1870), so MAIL may carry `SIZE=`.
    pub size_offered: bool,
    /// The largest message in octets; `None` where there is no fixed limit.
    pub size: Option<u64>,
    /// LIMITS RCPTMAX (RFC 9422): recipients per transaction, at least 1.
    pub recipients_max: Option<u32>,
    /// LIMITS MAILMAX: transactions per connection, at least 1.
    pub transactions_max: Option<u32>,
    /// LIMITS RCPTDOMAINMAX: recipient domains per connection, at least 1.
    pub recipient_domains_max: Option<u32>,
}

impl Capabilities {
    /// Takes one line of the reply to EHLO, after the first, without the code. Unknown keywords and
    /// malformed parameters are passed over: the extension counts as not offered.
    pub fn learn(&mut self, line: &[u8]) {
        let mut words = line
            .split(|octet| *octet == b' ')
            .filter(|word| !word.is_empty());
        let Some(keyword) = words.next() else { return };
        let is = |name: &str| keyword.eq_ignore_ascii_case(name.as_bytes());
        if is("PIPELINING") {
            self.pipelining = true;
        } else if is("CHUNKING") {
            self.chunking = true;
        } else if is("8BITMIME") {
            self.eight_bit_mime = true;
        } else if is("SMTPUTF8") {
            self.smtputf8 = true;
        } else if is("DSN") {
            self.dsn = true;
        } else if is("ENHANCEDSTATUSCODES") {
            self.enhanced_status_codes = true;
        } else if is("STARTTLS") {
            self.starttls = true;
        } else if is("REQUIRETLS") {
            self.requiretls = true;
        } else if is("SIZE") {
            self.size_offered = true;
            // RFC 1870 4: zero, or no number, means that there is no fixed limit.
            self.size = words.next().and_then(number).filter(|size| *size > 0);
        } else if is("LIMITS") {
            words.for_each(|word| self.limit(word));
        }
    }

    /// One `NAME=value` of LIMITS. RFC 9422 3: zero is not allowed and is passed over.
    fn limit(&mut self, word: &[u8]) {
        let Some(at) = memchr::memchr(b'=', word) else {
            return;
        };
        let (name, value) = (&word[..at], &word[at + 1..]);
        let value = number(value).filter(|value| *value > 0);
        let value = value.map(|value| u32::try_from(value).unwrap_or(u32::MAX));
        if name.eq_ignore_ascii_case(b"RCPTMAX") {
            self.recipients_max = value;
        } else if name.eq_ignore_ascii_case(b"MAILMAX") {
            self.transactions_max = value;
        } else if name.eq_ignore_ascii_case(b"RCPTDOMAINMAX") {
            self.recipient_domains_max = value;
        }
    }
}

/// Decodes xtext (RFC 3461 4): `+` and two upper-case hexadecimal digits stand for an octet.
/// `None` where the syntax is broken or the result is not printable ASCII, at most `max` octets.
#[must_use]
pub fn xtext_decode(text: &[u8], max: usize) -> Option<String> {
    let mut decoded = String::with_capacity(text.len().min(max));
    let mut rest = text;
    while let Some((&octet, tail)) = rest.split_first() {
        rest = tail;
        let octet = match octet {
            b'+' => {
                let (pair, tail) = rest.split_first_chunk::<2>()?;
                rest = tail;
                hexadecimal(pair[0])? << 4 | hexadecimal(pair[1])?
            }
            b'=' => return None,
            other => other,
        };
        // RFC 3461 4.2 and 4.4: the decoded text is printable US-ASCII, and spaces in names.
        if !(0x20..0x7f).contains(&octet) || decoded.len() >= max {
            return None;
        }
        decoded.push(char::from(octet));
    }
    Some(decoded)
}

/// Appends `text` as xtext: `+`, `=`, blanks, controls and octets above 126 are encoded.
pub fn xtext_encode(text: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for &octet in text {
        if matches!(octet, b'!'..=b'~') && octet != b'+' && octet != b'=' {
            out.push(octet);
        } else {
            let digit = |nibble: u8| DIGITS[usize::from(nibble & 15)];
            out.extend_from_slice(&[b'+', digit(octet >> 4), digit(octet)]);
        }
    }
}

fn hexadecimal(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Any case; parameters that make no sense leave the extension out or unlimited.
    #[test]
    fn capabilities_are_read_in_any_case() {
        let mut seen = Capabilities::default();
        for line in [
            "pipelining",
            "Chunking",
            "8bitMIME",
            "SMTPUTF8",
            "dsn",
            "size 1000",
            "LIMITS rcptmax=3 MAILMAX=0 RCPTDOMAINMAX=x",
            "X-UNKNOWN 1",
            "",
            " ",
            "STARTTLSX",
            "ENHANCEDSTATUSCODES",
        ] {
            seen.learn(line.as_bytes());
        }
        let expected = Capabilities {
            pipelining: true,
            chunking: true,
            eight_bit_mime: true,
            smtputf8: true,
            dsn: true,
            enhanced_status_codes: true,
            size_offered: true,
            size: Some(1000),
            recipients_max: Some(3),
            ..Capabilities::default()
        };
        assert_eq!(seen, expected);
        seen.learn(b"SIZE 0");
        assert_eq!((seen.size_offered, seen.size), (true, None));
    }

    // RFC 3461's own examples, and what is not xtext.
    #[test]
    fn xtext_is_decoded_strictly() {
        assert_eq!(
            xtext_decode(b"a+2Bb+3Dc+20d", 100).as_deref(),
            Some("a+b=c d")
        );
        assert_eq!(xtext_decode(b"", 100).as_deref(), Some(""));
        for bad in [
            &b"+"[..],
            b"+2",
            b"+2b",
            b"+GG",
            b"a=b",
            b"+00",
            b"+0D+0A",
            b"+FF",
            b"\xe9",
        ] {
            assert_eq!(xtext_decode(bad, 100), None, "{}", bad.escape_ascii());
        }
        assert_eq!(xtext_decode(b"abc", 2), None);
    }

    // Whatever is printable survives the round trip.
    #[test]
    fn xtext_round_trips() {
        let all: String = (0x20u8..0x7f).map(char::from).collect();
        let mut encoded = Vec::new();
        xtext_encode(all.as_bytes(), &mut encoded);
        assert!(
            encoded
                .iter()
                .all(|octet| octet.is_ascii_graphic() && *octet != b'=')
        );
        assert_eq!(xtext_decode(&encoded, 200), Some(all));
    }
}
