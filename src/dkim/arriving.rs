//! dkim::arriving - the body hash of a message that is not complete yet.
//!
//! What: [`ArrivingBody`] is shown a content each time it has grown, finds where its body starts
//! and hashes the body as far as it is there.
//! Why this way: all of the content so far is in one piece, so nothing is remembered across a
//! border between two arrivals but how far it was looked at. Small arrivals wait until there is a
//! page of them: each update has a byte-by-byte end (`canon`).
//! Worked example: [`ArrivingBody::more`] with `From: a\r\n`, with `From: a\r\n\r\nHel` (the body
//! starts at 11), [`ArrivingBody::finish`] with `From: a\r\n\r\nHello\r\n`: a body of 7 octets.

use crate::dkim::canon::BodyHasher;
use crate::message::ArrivedBody;

/// How much new content is worth an update of the hash.
const LOT: usize = 4096;

/// The hash of a body as far as it has arrived.
#[derive(Debug)]
pub struct ArrivingBody {
    hasher: BodyHasher,
    /// Where the body starts, once that is known.
    start: Option<usize>,
    /// How far the content was looked at.
    seen: usize,
}

impl ArrivingBody {
    /// Nothing has arrived yet.
    #[must_use]
    pub fn new(hasher: BodyHasher) -> Self {
        Self {
            hasher,
            start: None,
            seen: 0,
        }
    }

    /// Where the body starts, if that can be said of the content so far: as `body_start` says of
    /// the complete one.
    pub fn find(&mut self, content: &[u8]) -> Option<usize> {
        if self.start.is_none() {
            // The last three octets may belong to the border, as may the first two.
            let start = if content.starts_with(b"\r\n") {
                Some(2)
            } else {
                let rest = content.get(self.seen..).unwrap_or_default();
                memchr::memmem::find(rest, b"\r\n\r\n").map(|at| self.seen + at + 4)
            };
            self.start = start;
            self.seen = start.unwrap_or_else(|| content.len().saturating_sub(3));
        }
        self.start
    }

    /// The content has grown; this is all of it so far. Precondition: it never shrinks.
    pub fn more(&mut self, content: &[u8]) {
        if self.find(content).is_some() && content.len().saturating_sub(self.seen) >= LOT {
            self.update(content);
        }
    }

    /// The content is complete.
    #[must_use]
    pub fn finish(mut self, content: &[u8]) -> ArrivedBody {
        // A message without an empty line is all header.
        let start = self.find(content).unwrap_or(content.len());
        if self.start.is_some() {
            self.update(content);
        }
        ArrivedBody {
            hash: self.hasher.finish(),
            len: content.len().saturating_sub(start),
        }
    }

    fn update(&mut self, content: &[u8]) {
        let new = content.get(self.seen..).unwrap_or_default();
        self.hasher.update(new);
        self.seen = content.len();
    }
}

#[cfg(test)]
mod tests {
    use super::{ArrivingBody, LOT};
    use crate::dkim::canon::BodyHasher;
    use crate::dkim::signature::body_start;
    use crate::message::testing::Random;
    use crate::message::{BodyHash, Canon};

    /// The hash of a content that arrives in pieces which end at `ends`.
    fn arrives(canon: Canon, content: &[u8], ends: &[usize]) -> (BodyHash, usize) {
        let mut arriving = ArrivingBody::new(BodyHasher::new(canon));
        for end in ends {
            arriving.more(&content[..*end]);
        }
        let arrived = arriving.finish(content);
        (arrived.hash, arrived.len)
    }

    fn at_once(canon: Canon, content: &[u8]) -> (BodyHash, usize) {
        let body = &content[body_start(content)..];
        (BodyHash::of(canon, body), body.len())
    }

    // Every border and every cut of small contents, one octet at a time included: the same hash as
    // of the complete body.
    #[test]
    fn every_cut_of_a_small_content_gives_the_same() {
        let contents: [&[u8]; 9] = [
            b"",
            b"\r\nbody \r\n",
            b"A: b\r\n",
            b"A: b\r\n\r\n",
            b"A: b\r\n\r\n\r\n \t x\r\n\r\n\r\n",
            b"A: b\r\n\r\r\n\r\nbody",
            b"A: b\r\r\n\r\nbody\r",
            b"A: b\n\nno border",
            b"\r\rA: b\r\n\n\r\n\r\n  bare\r \n",
        ];
        for content in contents {
            for canon in [Canon::Simple, Canon::Relaxed] {
                let book = at_once(canon, content);
                let all: Vec<usize> = (0..=content.len()).collect();
                assert_eq!(arrives(canon, content, &all), book, "{content:?}");
                for cut in all {
                    assert_eq!(arrives(canon, content, &[cut]), book, "{content:?} {cut}");
                }
            }
        }
    }

    // Random contents of troublesome octets, longer than a lot, in random pieces: bare CR and LF,
    // runs of blanks and trailing empty lines across every border.
    #[test]
    fn random_cuts_of_random_contents_give_the_same() {
        const TROUBLE: [&[u8]; 10] = [
            b"\r",
            b"\n",
            b" ",
            b"\t",
            b"\r\n",
            b"\r\n\r\n",
            b"   \r\n",
            b"word",
            b"\xe4",
            b"A long line without anything to change, and a few more words for its end.\r\n",
        ];
        let mut random = Random(4);
        for round in 0..400 {
            let header: &[u8] = [&b""[..], b"From: a@b.test\r\n\r\n"][round % 2];
            let mut content = [header, &random.soup(&TROUBLE, 2000)].concat();
            if random.below(3) == 0 {
                content.extend(b"\r\n".repeat(random.below(LOT)));
            }
            let most = [40, 1448, 3 * LOT][round % 3];
            let (mut ends, mut at) = (Vec::new(), 0);
            while at < content.len() {
                at += random.below(most) + 1;
                ends.push(at.min(content.len()));
            }
            for canon in [Canon::Simple, Canon::Relaxed] {
                let book = at_once(canon, &content);
                assert_eq!(arrives(canon, &content, &ends), book, "round {round}");
            }
        }
    }
}
