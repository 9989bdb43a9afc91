//! spool::recover::scan - a walk over the groups of one segment.

use std::ops::Range;

use crate::spool::commit::{LastGroup, ROSTER_PREFIX_BYTES};
use crate::spool::format::{
    BLOCK_BYTES, GROUP_HEADER_BYTES, GroupHeader, MessageRecord, RECORD_BYTES,
    SEGMENT_HEADER_BYTES, STATE_RECORD_BYTES, Stamp, StateRecord,
};

/// A group as a scan found it.
#[derive(Debug)]
pub struct Found<'a> {
    /// Its header.
    pub header: GroupHeader,
    /// Where it lies now.
    pub at: u32,
    /// Its head.
    pub head: &'a [u8],
    /// Whether the head matches its checksum.
    pub whole: bool,
}

/// What a scan says next.
#[derive(Debug)]
pub enum Step<'a> {
    /// It must look at this range: answer with [`Scan::grant`] or [`Scan::unreadable`].
    Need(Range<usize>),
    /// A group.
    Group(Found<'a>),
    /// No group any more.
    End,
}

/// A walk over the groups of one segment.
#[derive(Debug)]
pub struct Scan {
    stamp: Stamp,
    at: usize,
    granted: Range<usize>,
}

impl Scan {
    /// Starts after the header of a segment with `stamp`.
    #[must_use]
    pub fn new(stamp: Stamp) -> Self {
        Self {
            stamp,
            at: SEGMENT_HEADER_BYTES,
            granted: 0..0,
        }
    }

    /// The range may be read.
    pub fn grant(&mut self, range: Range<usize>) {
        self.granted = range;
    }

    /// The block at the start of the range that was needed cannot be read: goes on after it.
    pub fn unreadable(&mut self) {
        self.at += BLOCK_BYTES;
    }

    /// The next group of `file`, all bytes of the segment.
    pub fn step<'a>(&mut self, file: &'a [u8]) -> Step<'a> {
        self.find(file, 0, file.len())
    }

    /// The next group of a segment of `len` bytes, of which `granted` holds those of the range that
    /// was granted last.
    pub fn step_within<'a>(&mut self, granted: &'a [u8], len: usize) -> Step<'a> {
        self.find(granted, self.granted.start, len)
    }

    fn find<'a>(&mut self, bytes: &'a [u8], start: usize, len: usize) -> Step<'a> {
        loop {
            let at = self.at;
            let end = at + BLOCK_BYTES;
            if end > len {
                return Step::End;
            }
            if !self.may_read(at..end) {
                return Step::Need(at..end);
            }
            let group = GroupHeader::decode(&bytes[at - start..]);
            let Some((header, body_sum)) = group.filter(|(h, _)| h.stamp == self.stamp) else {
                self.at = end;
                continue;
            };
            let head = at..at.saturating_add(header.head_len as usize).min(len);
            if !self.may_read(head.clone()) {
                return Step::Need(head);
            }
            let next = at.saturating_add(header.total_len as usize);
            let in_place = header.offset as usize == at && next <= len;
            self.at = if in_place { next } else { end };
            let head = &bytes[head.start - start..head.end - start];
            let whole = header.head_is_whole(body_sum, head);
            // `at` is below the length of a file that a 32-bit offset reaches; a longer file's tail
            // was never written by us.
            let Ok(at) = u32::try_from(at) else {
                return Step::End;
            };
            return Step::Group(Found {
                header,
                at,
                head,
                whole,
            });
        }
    }

    fn may_read(&self, range: Range<usize>) -> bool {
        self.granted.start <= range.start && range.end <= self.granted.end
    }
}

/// The stamp of the latest life of a segment whose header is gone, from the groups in `blocks`,
/// any whole blocks of it.
#[must_use]
pub fn elect_stamp(blocks: &[u8]) -> Option<Stamp> {
    blocks
        .chunks(BLOCK_BYTES)
        .filter_map(GroupHeader::decode)
        .map(|(header, _)| header.stamp)
        .max_by_key(|stamp| stamp.generation)
}

impl<'a> Found<'a> {
    /// The roster of the group before, if this head can be trusted.
    pub(in crate::spool) fn roster(&self) -> Option<LastGroup> {
        if !self.whole {
            return None;
        }
        let bytes = self.head.get(GROUP_HEADER_BYTES..)?;
        LastGroup::decode(bytes, self.header.roster, self.header.sequence)
    }

    /// The records of messages with their offset in the segment. In a damaged head, those that
    /// match their own checksum.
    pub fn messages(&self) -> impl Iterator<Item = (MessageRecord, u32, &'a [u8])> + use<'a> {
        let roster = match self.header.roster as usize {
            0 => 0,
            ids => ROSTER_PREFIX_BYTES.saturating_add(ids.saturating_mul(8)),
        };
        let mut at = GROUP_HEADER_BYTES.saturating_add(roster);
        let (head, whole, base) = (self.head, self.whole, self.at);
        let generation = self.header.stamp.generation;
        std::iter::from_fn(move || {
            while at < head.len() {
                let rest = &head[at..];
                let record = if whole {
                    MessageRecord::decode_unchecked(rest, generation).and_then(|record| {
                        let envelope = RECORD_BYTES..RECORD_BYTES + record.envelope_len as usize;
                        rest.get(envelope).map(|envelope| (record, envelope))
                    })
                } else {
                    MessageRecord::decode(rest, generation)
                };
                let here = at;
                match record {
                    Some((record, envelope)) => {
                        at += record.head_bytes();
                        let offset = base.saturating_add(here as u32);
                        return Some((record, offset, envelope));
                    }
                    None => at += 8,
                }
            }
            None
        })
    }

    /// The records of a state group; none when its head is damaged, for they have no checksum of
    /// their own.
    pub fn states(&self) -> impl Iterator<Item = StateRecord> + use<'a> {
        let body = self.head.get(GROUP_HEADER_BYTES..).unwrap_or(&[]);
        let body = if self.whole { body } else { &[] };
        let (records, _) = body.as_chunks::<STATE_RECORD_BYTES>();
        records
            .iter()
            .filter_map(|record| StateRecord::decode(record))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp {
        generation: 3,
        salt: 7,
    };

    fn file() -> Vec<u8> {
        let mut file = vec![0; SEGMENT_HEADER_BYTES];
        for (sequence, head, total) in [(1, 300, 8192), (2, 5000, 65536), (4, 9000, 12288)] {
            if sequence == 4 {
                // Something that is no group.
                file.extend([9; 3 * BLOCK_BYTES]);
            }
            let at = file.len();
            file.resize(at + total, 1);
            let header = GroupHeader {
                stamp: STAMP,
                sequence,
                offset: at as u32,
                head_len: head,
                total_len: total as u32,
                records: 1,
                roster: 0,
                proven: 0,
                state_proven: 0,
                next_sequence: 0,
            };
            header.seal(&mut file[at..at + head as usize]);
        }
        // A file need not end with a block.
        file.extend([0; 100]);
        file
    }

    // What a scan finds does not depend on how much it is given at a time.
    #[test]
    fn pieces_show_what_the_whole_shows() {
        let file = file();
        let mut scan = Scan::new(STAMP);
        scan.grant(0..file.len());
        let mut whole = Vec::new();
        while let Step::Group(found) = scan.step(&file) {
            whole.push((found.at, found.head.to_vec(), found.whole));
        }
        assert_eq!(whole.len(), 3);
        assert!(whole.iter().all(|(_, _, sound)| *sound));
        for more in [0, BLOCK_BYTES, 5 * BLOCK_BYTES] {
            let mut scan = Scan::new(STAMP);
            let (mut seen, mut held) = (Vec::new(), 0..0);
            loop {
                match scan.step_within(&file[held.clone()], file.len()) {
                    Step::Need(range) => {
                        held = range.start..(range.end + more).min(file.len());
                        scan.grant(held.clone());
                    }
                    Step::Group(found) => seen.push((found.at, found.head.to_vec(), found.whole)),
                    Step::End => break,
                }
            }
            assert_eq!(seen, whole, "{more} bytes more");
        }
    }
}
