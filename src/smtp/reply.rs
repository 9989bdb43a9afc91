//! reply - SMTP replies: built, parsed from hostile bytes, and kept as the text of an outcome.
//!
//! What: [`Reply`] is an owned reply. [`ReplyParser`] reads replies from a stream: a reply of one
//! line that is whole in the input is borrowed from it, so that the client's hot path allocates
//! nothing. [`ReplyText`] is the bounded, printable text that outcomes and records carry.
//! Limits: `limits::SMTP_REPLY_*`. Codes 200 to 599 only.
//! Standards: RFC 5321 4.2, RFC 2034 (enhanced codes on every line).

use std::fmt;
use std::sync::Arc;

use crate::limits;
use crate::message::EnhancedStatus;

/// One reply, owned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// 200 to 599.
    pub code: u16,
    /// The enhanced status, written on every line; `None` for replies that have none.
    pub status: Option<EnhancedStatus>,
    /// The texts of the lines, printable ASCII; one reply has at least one line, perhaps empty.
    pub lines: Vec<Box<str>>,
}

impl Reply {
    /// A reply of one line. Octets that are not printable ASCII are replaced by `?`.
    #[must_use]
    pub fn new(code: u16, status: Option<EnhancedStatus>, text: &str) -> Self {
        Self {
            code,
            status,
            lines: vec![printable(text.as_bytes()).into()],
        }
    }

    /// Appends the reply in wire form: the enhanced code on every line (RFC 2034 4).
    pub fn encode(&self, out: &mut Vec<u8>) {
        let count = self.lines.len().max(1);
        for index in 0..count {
            let text = self.lines.get(index).map_or("", |line| &**line);
            let separator = if index + 1 == count { ' ' } else { '-' };
            out.extend_from_slice(format!("{}{separator}", self.code).as_bytes());
            if let Some(status) = self.status {
                out.extend_from_slice(format!("{status} ").as_bytes());
            }
            // The fields are public: whatever is in them, no line may end early.
            out.extend_from_slice(printable(text.as_bytes()).as_bytes());
            out.extend_from_slice(b"\r\n");
        }
    }

    /// Whether trying the same again cannot help: a code of 5yz.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        self.code >= 500
    }

    /// The reply as the bounded text of an outcome.
    #[must_use]
    pub fn text(&self) -> ReplyText {
        let mut joined = String::new();
        for (index, line) in self.lines.iter().enumerate() {
            if index > 0 {
                joined.push(' ');
            }
            joined.push_str(line);
        }
        let status = self
            .status
            .map_or_else(String::new, |status| format!("{status} "));
        ReplyText::local(&format!("{} {status}{joined}", self.code))
    }
}

/// A reply as it lies in the input or in the parser: valid until the next call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplyRef<'a> {
    /// 200 to 599.
    pub code: u16,
    /// The text of all lines, without codes, joined by LF; raw octets of the peer.
    pub text: &'a [u8],
}

impl ReplyRef<'_> {
    /// The class: 2, 3, 4 or 5.
    #[must_use]
    pub fn class(&self) -> u16 {
        self.code / 100
    }

    /// The enhanced status at the start of the text where its class agrees with the code
    /// (RFC 2034 4), otherwise `class.0.0`.
    #[must_use]
    pub fn status(&self) -> EnhancedStatus {
        self.given_status().unwrap_or_else(|| match self.class() {
            4 => EnhancedStatus::TEMPORARY,
            5 => EnhancedStatus::PERMANENT,
            _ => EnhancedStatus::OK,
        })
    }

    fn given_status(&self) -> Option<EnhancedStatus> {
        EnhancedStatus::parse(self.text).filter(|status| u16::from(status.class) == self.class())
    }

    /// The reply, owned; what is not printable is replaced.
    #[must_use]
    pub fn to_reply(&self) -> Reply {
        let status = self.given_status();
        let skip = status.map_or(0, |status| status.text_len());
        let lines = self.text.split(|octet| *octet == b'\n').map(|line| {
            let own = EnhancedStatus::parse(line);
            let line = if status.is_some() && own == status {
                &line[skip..]
            } else {
                line
            };
            printable(line).trim_start().into()
        });
        Reply {
            code: self.code,
            status,
            lines: lines.collect(),
        }
    }

    /// The bounded text for an outcome, with the code in front.
    #[must_use]
    pub fn to_text(&self) -> ReplyText {
        let mut text = String::with_capacity(self.text.len().min(BOUND) + 4);
        text.push_str(&self.code.to_string());
        text.push(' ');
        let room = BOUND - text.len();
        let shown = &self.text[..self.text.len().min(room)];
        for &octet in shown {
            text.push(match octet {
                b'\n' | b'\t' => ' ',
                0x20..0x7f => char::from(octet),
                _ => '?',
            });
        }
        text.truncate(text.trim_end().len());
        ReplyText(Arc::from(text))
    }
}

const BOUND: usize = limits::SMTP_OUTCOME_TEXT_BYTES_MAX;

/// The text of a reply in an outcome: printable ASCII, at most
/// [`limits::SMTP_OUTCOME_TEXT_BYTES_MAX`] octets, the code in front. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ReplyText(Arc<str>);

impl ReplyText {
    /// A text of our own making, where no reply was the cause.
    #[must_use]
    pub fn local(text: &str) -> Self {
        let mut text = printable(text.as_bytes());
        text.truncate(BOUND);
        Self(Arc::from(text))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The code in front; `None` where no reply was the cause.
    #[must_use]
    pub fn code(&self) -> Option<u16> {
        let digits = self.0.get(..3)?;
        if self.0.len() > 3 && self.0.as_bytes()[3] != b' ' {
            return None;
        }
        digits.parse().ok().filter(|code| (200..600).contains(code))
    }
}

impl fmt::Display for ReplyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ReplyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

/// The octets with everything but printable ASCII replaced by `?`.
fn printable(octets: &[u8]) -> String {
    octets
        .iter()
        .map(|&octet| {
            if matches!(octet, 0x20..0x7f) {
                char::from(octet)
            } else {
                '?'
            }
        })
        .collect()
}

/// How the peer broke the reply syntax: nothing after it can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyError {
    /// A line does not start with three digits from 200 to 599 and a separator.
    Code,
    /// The lines of one reply have different codes.
    Mixed,
    /// A line is longer than [`limits::SMTP_REPLY_LINE_BYTES_MAX`].
    LineTooLong,
    /// A reply has more lines than [`limits::SMTP_REPLY_LINES_MAX`].
    TooManyLines,
    /// A reply has more octets than [`limits::SMTP_REPLY_BYTES_MAX`].
    TooLong,
}

impl fmt::Display for ReplyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Code => "a line of the reply has no reply code",
            Self::Mixed => "the lines of one reply have different codes",
            Self::LineTooLong => "a line of the reply is too long",
            Self::TooManyLines => "the reply has too many lines",
            Self::TooLong => "the reply is too long",
        })
    }
}

impl std::error::Error for ReplyError {}

/// Reads replies from a stream of octets, split anywhere.
///
/// A LF without CR is taken for a line end: a reply cannot be smuggled into anything.
#[derive(Debug, Default)]
pub struct ReplyParser {
    /// A line without its end yet.
    partial: Vec<u8>,
    /// The text of the lines so far of a reply of several, joined by LF.
    text: Vec<u8>,
    /// Lines so far.
    lines: usize,
    code: u16,
    /// What `feed` got and `next` did not read yet.
    fed: Vec<u8>,
    /// The text was handed out and must be cleared before the next reply.
    handed_out: bool,
}

impl ReplyParser {
    /// Takes octets for [`Self::next_reply`] to read. Convenient, and it copies; drivers of the hot
    /// path use [`Self::take`].
    pub fn feed(&mut self, octets: &[u8]) {
        self.fed.extend_from_slice(octets);
    }

    /// The next whole reply among the octets fed; `None` when more must be fed.
    pub fn next_reply(&mut self) -> Result<Option<Reply>, ReplyError> {
        let fed = std::mem::take(&mut self.fed);
        let mut rest = &fed[..];
        let reply = self
            .take(&mut rest)
            .map(|reply| reply.map(|reply| reply.to_reply()));
        self.fed = rest.to_vec();
        reply
    }

    /// The next whole reply in `input`, which is advanced behind it; `None` when all of `input` was
    /// taken in and the reply is not whole.
    ///
    /// Errors: see [`ReplyError`]; the parser must not be used after one.
    pub fn take<'r, 'i: 'r>(
        &'r mut self,
        input: &mut &'i [u8],
    ) -> Result<Option<ReplyRef<'r>>, ReplyError> {
        if self.handed_out {
            self.handed_out = false;
            self.text.clear();
            self.partial.clear();
            self.lines = 0;
        }
        loop {
            let Some(end) = memchr::memchr(b'\n', input) else {
                if self.partial.len() + input.len() > limits::SMTP_REPLY_LINE_BYTES_MAX {
                    return Err(ReplyError::LineTooLong);
                }
                self.partial.extend_from_slice(input);
                *input = &[];
                return Ok(None);
            };
            let (line, rest) = input.split_at(end + 1);
            *input = rest;
            if self.partial.len() + line.len() > limits::SMTP_REPLY_LINE_BYTES_MAX {
                return Err(ReplyError::LineTooLong);
            }
            if self.partial.is_empty() && self.lines == 0 {
                // The hot path: a whole line, borrowed; and the usual reply has just one.
                let (code, more, text) = split_line(line)?;
                if !more {
                    return Ok(Some(ReplyRef { code, text }));
                }
                self.add_line(code, Line::Given(text))?;
                continue;
            }
            self.partial.extend_from_slice(line);
            let (code, more, text) = split_line(&self.partial)?;
            let from = self.partial.len() - line_tail(&self.partial) - text.len();
            let range = from..from + text.len();
            self.add_line(code, Line::Partial(range))?;
            self.partial.clear();
            if !more {
                self.handed_out = true;
                return Ok(Some(ReplyRef {
                    code,
                    text: &self.text,
                }));
            }
        }
    }

    /// Whether a reply has begun and is not whole.
    #[must_use]
    pub fn is_partial(&self) -> bool {
        !self.handed_out && (self.lines > 0 || !self.partial.is_empty())
    }

    fn add_line(&mut self, code: u16, line: Line<'_>) -> Result<(), ReplyError> {
        if self.lines > 0 && self.code != code {
            return Err(ReplyError::Mixed);
        }
        if self.lines == limits::SMTP_REPLY_LINES_MAX {
            return Err(ReplyError::TooManyLines);
        }
        self.code = code;
        if self.lines > 0 {
            self.text.push(b'\n');
        }
        self.lines += 1;
        match line {
            Line::Given(text) => self.text.extend_from_slice(text),
            Line::Partial(range) => self.text.extend_from_slice(&self.partial[range]),
        }
        if self.text.len() > limits::SMTP_REPLY_BYTES_MAX {
            return Err(ReplyError::TooLong);
        }
        Ok(())
    }
}

/// Where the text of a line is.
enum Line<'a> {
    Given(&'a [u8]),
    Partial(std::ops::Range<usize>),
}

/// Octets of the line end: LF, or CR LF.
fn line_tail(line: &[u8]) -> usize {
    if line.ends_with(b"\r\n") { 2 } else { 1 }
}

/// Splits a line, with its end, into code, whether more lines follow, and text.
fn split_line(line: &[u8]) -> Result<(u16, bool, &[u8]), ReplyError> {
    let line = &line[..line.len() - line_tail(line)];
    let (digits, rest) = line.split_first_chunk::<3>().ok_or(ReplyError::Code)?;
    if !matches!(digits[0], b'2'..=b'5') || !digits.iter().all(u8::is_ascii_digit) {
        return Err(ReplyError::Code);
    }
    let value = |digit: u8| u16::from(digit - b'0');
    let code = value(digits[0]) * 100 + value(digits[1]) * 10 + value(digits[2]);
    match rest {
        [] => Ok((code, false, rest)),
        [b' ', text @ ..] => Ok((code, false, text)),
        [b'-', text @ ..] => Ok((code, true, text)),
        _ => Err(ReplyError::Code),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(input: &[u8], step: usize) -> (Vec<Reply>, Option<ReplyError>) {
        let mut parser = ReplyParser::default();
        let mut replies = Vec::new();
        for piece in input.chunks(step) {
            let mut rest = piece;
            loop {
                match parser.take(&mut rest) {
                    Ok(Some(reply)) => replies.push(reply.to_reply()),
                    Ok(None) => break,
                    Err(error) => return (replies, Some(error)),
                }
            }
        }
        (replies, None)
    }

    // One line, many lines, bare codes, LF alone: the same for every split.
    #[test]
    fn replies_are_the_same_for_any_split() {
        let input = b"220 hi\r\n250-one\r\n250-2.1.0 two\r\n250 three\r\n354\r\n\
            550-5.1.1 no\r\n550 5.1.1 user \x00\xff\r\n421 bye\n";
        let whole = all(input, input.len());
        assert_eq!(whole.1, None);
        let codes: Vec<u16> = whole.0.iter().map(|reply| reply.code).collect();
        assert_eq!(codes, [220, 250, 354, 550, 421]);
        assert_eq!(
            whole.0[1].lines,
            [Box::from("one"), "2.1.0 two".into(), "three".into()]
        );
        assert_eq!(whole.0[3].status, Some(EnhancedStatus::NO_SUCH_MAILBOX));
        assert_eq!(whole.0[3].lines, [Box::from("no"), "user ??".into()]);
        for step in 1..input.len() {
            assert_eq!(all(input, step), whole, "steps of {step}");
        }
    }

    // feed and next_reply give the same as take.
    #[test]
    fn feeding_gives_whole_replies() {
        let mut parser = ReplyParser::default();
        parser.feed(b"250-a\r\n250");
        assert_eq!(parser.next_reply(), Ok(None));
        assert!(parser.is_partial());
        parser.feed(b" b\r\n220 c\r\n2");
        assert_eq!(parser.next_reply().unwrap().unwrap().lines.len(), 2);
        assert_eq!(parser.next_reply().unwrap().unwrap().code, 220);
        assert_eq!(parser.next_reply(), Ok(None));
    }

    // Each way to break the syntax, and each bound.
    #[test]
    fn garbage_is_an_error() {
        let long = [b"250 ".to_vec(), vec![b'x'; 3000]].concat();
        let lines = b"250-x\r\n".repeat(1000);
        let wide = [b"250-".to_vec(), vec![b'x'; 2000], b"\r\n".to_vec()]
            .concat()
            .repeat(100);
        let table: [(&[u8], ReplyError); 9] = [
            (b"199 x\r\n", ReplyError::Code),
            (b"600 x\r\n", ReplyError::Code),
            (b"25 x\r\n", ReplyError::Code),
            (b"250_x\r\n", ReplyError::Code),
            (b"\r\n", ReplyError::Code),
            (b"250-a\r\n251 b\r\n", ReplyError::Mixed),
            (&long, ReplyError::LineTooLong),
            (&lines, ReplyError::TooManyLines),
            (&wide, ReplyError::TooLong),
        ];
        for (input, expected) in table {
            for step in [1, 7, input.len()] {
                assert_eq!(all(input, step), (Vec::new(), Some(expected)));
            }
        }
    }

    // RFC 2034 4: the code stands on every line; what would break a line does not get out.
    #[test]
    fn encoding_puts_the_status_on_every_line() {
        let reply = Reply {
            code: 550,
            status: Some(EnhancedStatus::NO_SUCH_MAILBOX),
            lines: vec!["one".into(), "two\r\n250 ok".into()],
        };
        let mut out = Vec::new();
        reply.encode(&mut out);
        assert_eq!(out, b"550-5.1.1 one\r\n550 5.1.1 two??250 ok\r\n");
        assert_eq!(reply.text().as_str(), "550 5.1.1 one two??250 ok");
        assert_eq!(reply.text().code(), Some(550));
        let mut empty = Vec::new();
        Reply {
            code: 250,
            status: None,
            lines: Vec::new(),
        }
        .encode(&mut empty);
        assert_eq!(empty, b"250 \r\n");
    }

    // The status is taken only when its class agrees; the text is bounded and printable.
    #[test]
    fn status_and_text_of_an_outcome() {
        let status = |code, text: &'static [u8]| ReplyRef { code, text }.status();
        assert_eq!(status(550, b"5.1.1 x"), EnhancedStatus::NO_SUCH_MAILBOX);
        assert_eq!(status(450, b"5.1.1 x"), EnhancedStatus::TEMPORARY);
        assert_eq!(status(554, b"no"), EnhancedStatus::PERMANENT);
        assert_eq!(status(250, b""), EnhancedStatus::OK);
        let long = ReplyRef {
            code: 550,
            text: &[0xff; 5000],
        }
        .to_text();
        assert_eq!(long.as_str().len(), limits::SMTP_OUTCOME_TEXT_BYTES_MAX);
        assert_eq!(
            ReplyRef {
                code: 250,
                text: b""
            }
            .to_text()
            .as_str(),
            "250"
        );
        assert_eq!(ReplyText::local("lost").code(), None);
    }

    /// Any octets, any split: no panic, no growth beyond the bounds, the same replies.
    #[test]
    fn fuzz_smtp_reply() {
        let words: [&[u8]; 9] = [
            b"250",
            b"-",
            b" ",
            b"\r\n",
            b"\n",
            b"5.1.1",
            b"354 x\r\n",
            b"\xff",
            b"421-a\r\n",
        ];
        let mut seed = 5u64;
        for _ in 0..5000 {
            let mut input = Vec::new();
            for _ in 0..12 {
                seed = seed
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(99);
                input.extend_from_slice(words[(seed >> 40) as usize % 9]);
            }
            let whole = all(&input, input.len());
            assert_eq!(all(&input, 1), whole);
            assert_eq!(all(&input, 5), whole);
        }
    }
}
