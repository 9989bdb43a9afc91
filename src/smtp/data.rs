//! data - dot transparency (RFC 5321 4.5.2) and the line-end rule (RFC 5321 2.3.8), at memory
//! speed.
//!
//! What: [`LineRule`] watches content for what may not be in it: a CR without LF, a LF without CR,
//! a NUL. [`Unstuffer`] finds the end of DATA and takes the stuffed dots away. [`Stuffer`] adds
//! them on the way out, by cutting shared slices, never by copying.
//! Why this way: a line-by-line loop costs 5 to 8 ns per line, so 1 us per 10 KiB. Nearly all
//! content has no line that starts with a dot, so a SIMD search for LF + "." gives spans of many
//! lines, and the rule is one loop over pairs of octets (`engine::pairs`).
//! Security: only CR LF "." CR LF ends DATA. A line that ends otherwise is never an end, and the
//! message that holds one is refused whole: nothing for a receiver with other opinions to split
//! (SMTP smuggling: CVE-2023-51764, -51765, -51766).

use bytes::Bytes;
use memchr::memmem;

use crate::engine::pairs::look;

/// Watches a stream of content for octets that no message may hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LineRule {
    after_cr: bool,
    broken: bool,
    eight_bit: bool,
}

impl LineRule {
    /// Takes the next octets of the content, in order, split anywhere.
    pub fn feed(&mut self, octets: &[u8]) {
        let (Some(&first), Some(&last)) = (octets.first(), octets.last()) else {
            return;
        };
        self.broken |= (first == b'\n') != self.after_cr;
        let seen = look(octets);
        self.broken |= seen.broken;
        self.eight_bit |= seen.eight_bit;
        self.after_cr = last == b'\r';
    }

    /// Whether an octet above 127 was among what was fed, as far as the rule is not broken.
    ///
    /// Found in passing: a scan after the sync, with the content out of the caches, costs 0.7 us
    /// per 10 KiB.
    #[must_use]
    pub fn is_eight_bit(&self) -> bool {
        self.eight_bit
    }

    /// Whether what was fed so far already breaks the rule; never becomes false again.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Whether the content, which ends here, keeps the rule: a CR at the very end is a bare one.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        !self.broken && !self.after_cr
    }
}

/// What comes before the octets that the unstuffer has not seen yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    /// Some octet inside a line.
    Text,
    /// A CR inside a line.
    Cr,
    /// CR LF, or nothing at all: RFC 5321 4.5.2 counts the CRLF of the DATA command.
    LineStart,
    /// CR LF ".": the end, or a stuffed dot.
    Dot,
    /// CR LF "." CR: one LF makes it the end.
    DotCr,
}

/// Reads DATA: removes stuffed dots and finds the end, whatever the splits of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unstuffer {
    before: Before,
}

impl Default for Unstuffer {
    fn default() -> Self {
        Self {
            before: Before::LineStart,
        }
    }
}

impl Unstuffer {
    /// Reads from `input` and hands each clean span of content to `sink`, in order.
    ///
    /// Returns the octets consumed, and whether the end of the data was among them. Content does
    /// include the CRLF before the final dot. Everything is consumed unless the end was reached.
    pub fn feed(&mut self, input: &[u8], mut sink: impl FnMut(&[u8])) -> (usize, bool) {
        let mut at = 0;
        while at < input.len() {
            match self.before {
                Before::Text | Before::Cr => at = self.spans(input, at, &mut sink),
                Before::LineStart => {
                    if input[at] == b'.' {
                        self.before = Before::Dot;
                        at += 1;
                    } else {
                        at = self.spans(input, at, &mut sink);
                    }
                }
                Before::Dot => {
                    if input[at] == b'\r' {
                        self.before = Before::DotCr;
                        at += 1;
                    } else {
                        // The dot was stuffing: it is dropped, the line goes on.
                        self.before = Before::Text;
                        at = self.spans(input, at, &mut sink);
                    }
                }
                Before::DotCr => {
                    if input[at] == b'\n' {
                        self.before = Before::LineStart;
                        return (at + 1, true);
                    }
                    // A CR that ends no line: content, and the line rule will refuse it.
                    sink(b"\r");
                    self.before = Before::Cr;
                }
            }
        }
        (input.len(), false)
    }

    /// Passes on the span from `at` up to the next line that starts with a dot, or to the end of
    /// the input, and returns where it stopped. Precondition: `at` is inside the input and is not
    /// the dot of a line start.
    fn spans(&mut self, input: &[u8], at: usize, sink: &mut impl FnMut(&[u8])) -> usize {
        // A LF here may end a line whose CR came with the previous input.
        let mut cr_before = self.before == Before::Cr;
        let mut from = at;
        while let Some(found) = find_line_feed_dot(&input[from..]) {
            let feed = from + found;
            let after_cr = if feed == at {
                cr_before
            } else {
                input[feed - 1] == b'\r'
            };
            if after_cr {
                sink(&input[at..=feed]);
                self.before = Before::LineStart;
                return feed + 1;
            }
            // A bare LF and a dot: no line start. The dot stays, the line rule refuses the whole.
            from = feed + 1;
        }
        sink(&input[at..]);
        let rest = &input[at..];
        if let [before, _] | [.., before, _] = rest {
            cr_before = *before == b'\r';
        }
        self.before = match rest.last() {
            Some(b'\n') if cr_before => Before::LineStart,
            Some(b'\r') => Before::Cr,
            _ => Before::Text,
        };
        input.len()
    }
}

/// The first LF that a dot follows.
fn find_line_feed_dot(octets: &[u8]) -> Option<usize> {
    memmem::find(octets, b"\n.")
}

/// Offsets in `content` where a dot must be inserted for DATA: before each dot that starts a line.
pub fn stuff_points(content: &[u8]) -> impl Iterator<Item = usize> + '_ {
    let first = content.starts_with(b".").then_some(0);
    first
        .into_iter()
        .chain(memmem::find_iter(content, b"\n.").map(|at| at + 1))
}

/// Turns the pieces of a message into the pieces of DATA: dots inserted as static octets, the
/// end appended, the content itself only cut, never copied.
///
/// A dot after a bare LF is stuffed too: should such content ever get here, it must not look like
/// the end of a message to a receiver that takes a bare LF for a line end.
#[derive(Debug)]
pub struct Stuffer {
    pieces: std::vec::IntoIter<Bytes>,
    current: Bytes,
    /// The dot in front of `current` is already out.
    stuffed: bool,
    last: [u8; 2],
    finished: bool,
}

impl Stuffer {
    /// Starts on a message given in pieces, in order.
    #[must_use]
    pub fn new(pieces: Vec<Bytes>) -> Self {
        Self {
            pieces: pieces.into_iter(),
            current: Bytes::new(),
            stuffed: false,
            last: *b"\r\n",
            finished: false,
        }
    }
}

impl Iterator for Stuffer {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.finished {
            return None;
        }
        while self.current.is_empty() {
            let Some(piece) = self.pieces.next() else {
                self.finished = true;
                // RFC 5321 4.1.1.4: the end is CRLF "." CRLF; content without a final CRLF gets
                // one.
                let closed = self.last == *b"\r\n";
                return Some(Bytes::from_static(if closed {
                    b".\r\n"
                } else {
                    b"\r\n.\r\n"
                }));
            };
            self.current = piece;
        }
        if self.last[1] == b'\n' && self.current[0] == b'.' && !self.stuffed {
            self.stuffed = true;
            return Some(Bytes::from_static(b"."));
        }
        self.stuffed = false;
        let end = memmem::find(&self.current, b"\n.").map_or(self.current.len(), |at| at + 1);
        let span = self.current.split_to(end);
        match *span {
            [.., a, b] => self.last = [a, b],
            [a] => self.last = [self.last[1], a],
            [] => {}
        }
        Some(span)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small generator: tests must not depend on a crate for chance.
    struct Chance(u64);

    impl Chance {
        fn below(&mut self, bound: usize) -> usize {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(self.0 >> 33).unwrap_or(0) % bound
        }
    }

    fn unstuff(input: &[u8], split: impl Fn(usize) -> usize) -> (Vec<u8>, usize, bool) {
        let mut unstuffer = Unstuffer::default();
        let (mut out, mut at) = (Vec::new(), 0);
        while at < input.len() {
            let end = (at + split(at).max(1)).min(input.len());
            let (used, done) = unstuffer.feed(&input[at..end], |span| out.extend_from_slice(span));
            at += used;
            if done {
                return (out, at, true);
            }
            assert_eq!(at, end, "all is consumed unless the end was reached");
        }
        (out, at, false)
    }

    /// The definition, one octet at a time, to compare with.
    fn unstuff_slowly(input: &[u8]) -> (Vec<u8>, usize, bool) {
        let mut wire = b"\r\n".to_vec();
        wire.extend_from_slice(input);
        let Some(end) = memmem::find(&wire, b"\r\n.\r\n") else {
            return (Vec::new(), 0, false);
        };
        let mut out = Vec::new();
        for at in 2..end + 2 {
            let stuffed = wire[at] == b'.' && wire[at - 2..at] == *b"\r\n";
            if !stuffed {
                out.push(wire[at]);
            }
        }
        (out, end + 3, true)
    }

    // One octet above 127 is noticed wherever it is and however the content is split.
    #[test]
    fn eight_bit_octets_are_noticed_in_passing() {
        let mut content = vec![b'x'; 2 * 1024 + 70];
        for at in 0..content.len() {
            content[at] = 0x80;
            for split in [251, at.max(1), at + 1, content.len()] {
                let mut rule = LineRule::default();
                content.chunks(split).for_each(|part| rule.feed(part));
                assert!(rule.is_eight_bit(), "octet {at}, split {split}");
            }
            content[at] = b'x';
        }
        let mut rule = LineRule::default();
        rule.feed(&content);
        assert!(!rule.is_eight_bit() && rule.is_kept());
    }

    // Random octets of the dangerous alphabet, random splits: equal to the definition.
    #[test]
    fn unstuffing_matches_the_definition_for_any_split() {
        let alphabet = b"\r\n..\r\nab\0";
        let mut chance = Chance(7);
        for _ in 0..20_000 {
            let length = chance.below(24);
            let mut input: Vec<u8> = (0..length).map(|_| alphabet[chance.below(9)]).collect();
            input.extend_from_slice(b"\r\n.\r\n");
            let expected = unstuff_slowly(&input);
            assert!(expected.2);
            for step in [1, 2, 3, 5, 64] {
                assert_eq!(
                    unstuff(&input, |_| step),
                    expected,
                    "{}",
                    input.escape_ascii()
                );
            }
        }
    }

    // CRLF.CRLF across every possible buffer edge of a large body.
    #[test]
    fn the_end_is_found_at_every_edge() {
        let mut input = b"line of text\r\n..dot\r\n".repeat(12);
        input.extend_from_slice(b".\r\nNEXT");
        let whole = unstuff(&input, |_| input.len());
        assert_eq!(whole.1, input.len() - 4);
        for edge in 1..input.len() {
            let split = |at: usize| if at == 0 { edge } else { input.len() };
            assert_eq!(unstuff(&input, split), whole, "split at {edge}");
        }
    }

    // The line rule against its definition, any content, any split.
    #[test]
    fn line_rule_matches_its_definition() {
        let alphabet = b"\r\n\r\nabcd\0";
        let mut chance = Chance(11);
        let mut kept = 0;
        for _ in 0..30_000 {
            let length = chance.below(8);
            let mut content: Vec<u8> = Vec::new();
            for _ in 0..length {
                if chance.below(4) == 0 {
                    content.push(alphabet[chance.below(9)]);
                } else {
                    content.extend_from_slice([&b"\r\n"[..], b"x"][chance.below(2)]);
                }
            }
            let text = String::from_utf8(content.clone())
                .unwrap_or_default()
                .replace("\r\n", "");
            let expected = !text.contains(['\r', '\n', '\0']);
            let cut = chance.below(content.len() + 1);
            let mut rule = LineRule::default();
            rule.feed(&content[..cut]);
            rule.feed(&content[cut..]);
            assert_eq!(rule.is_kept(), expected, "{}", content.escape_ascii());
            kept += u32::from(expected);
        }
        assert!(kept > 1000, "both outcomes are exercised: {kept}");
    }

    // A violation in any position of a long body is seen, whatever the block edges.
    #[test]
    fn line_rule_sees_every_position() {
        let clean = b"0123456789abc\r\n".repeat(200);
        let mut rule = LineRule::default();
        rule.feed(&clean);
        assert!(rule.is_kept());
        for at in (0..clean.len())
            .step_by(7)
            .chain(clean.len() - 40..clean.len())
        {
            for bad in [0u8, b'\r', b'\n'] {
                let mut content = clean.clone();
                if content[at] == bad {
                    continue;
                }
                content[at] = bad;
                let mut rule = LineRule::default();
                rule.feed(&content);
                assert!(!rule.is_kept(), "octet {bad} at {at}");
            }
        }
    }

    // Round trip: stuffed pieces, un-stuffed, are the content (plus the CRLF it lacked).
    #[test]
    fn stuffing_round_trips() {
        let words: [&[u8]; 7] = [b".", b"\r\n", b"text", b"..", b"\r\n.", b"\r\n\r\n", b"a.b"];
        let mut chance = Chance(3);
        for _ in 0..20_000 {
            let mut pieces = Vec::new();
            for _ in 0..chance.below(5) {
                let mut piece = Vec::new();
                for _ in 0..chance.below(5) {
                    piece.extend_from_slice(words[chance.below(7)]);
                }
                pieces.push(Bytes::from(piece));
            }
            let mut content: Vec<u8> = pieces.concat();
            let points = stuff_points(&content).count();
            let wire: Vec<u8> = Stuffer::new(pieces).flatten().collect();
            let added = wire.len() - content.len();
            if !content.is_empty() && !content.ends_with(b"\r\n") {
                content.extend_from_slice(b"\r\n");
                assert_eq!(added, points + 5);
            } else {
                assert_eq!(added, points + 3);
            }
            assert_eq!(unstuff(&wire, |_| 3), (content, wire.len(), true));
        }
    }

    // The content is cut, not copied: pieces point into the memory that was given.
    #[test]
    fn stuffing_shares_the_content() {
        let body = Bytes::from(b"one\r\n.two\r\nthree\r\n".to_vec());
        let pieces: Vec<Bytes> = Stuffer::new(vec![body.clone()]).collect();
        assert_eq!(
            pieces,
            [&b"one\r\n"[..], b".", b".two\r\nthree\r\n", b".\r\n"]
        );
        assert_eq!(pieces[0].as_ptr(), body.as_ptr());
        assert_eq!(pieces[2].as_ptr(), body[5..].as_ptr());
    }
}
