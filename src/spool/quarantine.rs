//! spool::quarantine - what was put aside: its file's name and bytes.
//!
//! What: a message that cannot be trusted (`quarantine-ID-LEN.raw`), or that was in hand at
//! repeated crashes (`poison-ID-LEN.raw`), as it was in its segment, with the recipients that
//! waited. Why this way: writing one down interprets none of its bytes, since those may be what
//! crashes us; reading one is total.
//!
//! | at | content |
//! |---|---|
//! | 0 | the message record with its envelope, zeros up to a block |
//! | then | LEN bytes of content, zeros up to a block |
//! | then | per recipient that waits 16 bytes: index (4), attempts (4), next attempt (8); zeros |
//! | the last 32 bytes, which end a block | "PRWAITS\x01", recipients (8), blocks since the content (8), checksum of all since the content but itself (8) |
//!
//! Files of earlier versions end with the content: then all recipients are taken to wait.
//!
//! While a message is sent after all, as a new one, `release-OLD-NEW.note` names both; it is empty.

use crate::message::envelope::EnvelopeView;
use crate::message::{Envelope, MessageId};
use crate::time::Wall;

use super::format::{BLOCK_BYTES, MessageRecord, checksum};
use super::inspect::Seen;
use super::types::{Location, PendingRecipient};

const MAGIC: [u8; 8] = *b"PRWAITS\x01";
const FOOTER_BYTES: usize = 32;
const WAITS_BYTES: usize = 16;

/// Why a message was put aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Its bytes did not match their checksum.
    Damaged,
    /// It was in hand at repeated crashes.
    Poison,
}

impl Reason {
    const fn prefix(self) -> &'static str {
        match self {
            Self::Damaged => "quarantine-",
            Self::Poison => "poison-",
        }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Damaged => "damaged",
            Self::Poison => "poison",
        })
    }
}

/// What the name of a file in quarantine says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Aside {
    /// Why it is there.
    pub reason: Reason,
    /// The message.
    pub id: MessageId,
    /// Bytes of content.
    pub len: u32,
}

impl Aside {
    /// The name of its file.
    #[must_use]
    pub fn file_name(&self) -> String {
        format!("{}{}-{}.raw", self.reason.prefix(), self.id, self.len)
    }

    /// What a file is, if it is one of these.
    #[must_use]
    pub fn parse_file_name(name: &str) -> Option<Self> {
        let (reason, rest) = [Reason::Damaged, Reason::Poison]
            .into_iter()
            .find_map(|reason| Some((reason, name.strip_prefix(reason.prefix())?)))?;
        let (id, len) = rest.strip_suffix(".raw")?.split_once('-')?;
        let aside = Self {
            reason,
            id: id.parse().ok()?,
            len: len.parse().ok()?,
        };
        (aside.file_name() == name).then_some(aside)
    }
}

/// A release from quarantine that has begun, as a file's name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Note {
    /// The message in quarantine.
    pub old: MessageId,
    /// The message that it becomes.
    pub new: MessageId,
}

impl Note {
    /// The name of its file.
    #[must_use]
    pub fn file_name(&self) -> String {
        format!("release-{}-{}.note", self.old, self.new)
    }

    /// What a file is, if it is one of these.
    #[must_use]
    pub fn parse_file_name(name: &str) -> Option<Self> {
        let ids = name.strip_prefix("release-")?.strip_suffix(".note")?;
        let (old, new) = ids.split_once('-')?;
        let note = Self {
            old: old.parse().ok()?,
            new: new.parse().ok()?,
        };
        (note.file_name() == name).then_some(note)
    }
}

/// The end of a file: who waits.
#[must_use]
pub fn footer(pending: &[PendingRecipient]) -> Vec<u8> {
    let used = pending.len() * WAITS_BYTES + FOOTER_BYTES;
    let mut out = vec![0; used.next_multiple_of(BLOCK_BYTES)];
    for (recipient, place) in pending.iter().zip(out.chunks_exact_mut(WAITS_BYTES)) {
        place[..4].copy_from_slice(&recipient.index.to_le_bytes());
        place[4..8].copy_from_slice(&u32::from(recipient.attempts).to_le_bytes());
        place[8..].copy_from_slice(&recipient.next.0.to_le_bytes());
    }
    let blocks = (out.len() / BLOCK_BYTES) as u64;
    let at = out.len() - FOOTER_BYTES;
    out[at..at + 8].copy_from_slice(&MAGIC);
    out[at + 8..at + 16].copy_from_slice(&(pending.len() as u64).to_le_bytes());
    out[at + 16..at + 24].copy_from_slice(&blocks.to_le_bytes());
    let sum = checksum(&out[..at + 24]);
    out[at + 24..].copy_from_slice(&sum.to_le_bytes());
    out
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let field = bytes.get(at..)?.first_chunk()?;
    Some(u64::from_le_bytes(*field))
}

/// Who waits, and where the part before that ends. `None` where the file does not say.
fn read_footer(file: &[u8]) -> Option<(Vec<PendingRecipient>, usize)> {
    let at = file.len().checked_sub(FOOTER_BYTES)?;
    let blocks = usize::try_from(u64_at(file, at + 16)?).ok()?;
    let start = file.len().checked_sub(blocks.checked_mul(BLOCK_BYTES)?)?;
    let sum = checksum(file.get(start..at + 24)?);
    if file.get(at..at + 8)? != MAGIC || u64_at(file, at + 24)? != sum {
        return None;
    }
    let count = usize::try_from(u64_at(file, at + 8)?).ok()?;
    let listed = file.get(start..start.checked_add(count.checked_mul(WAITS_BYTES)?)?)?;
    let pending = listed.chunks_exact(WAITS_BYTES).map(|place| {
        let index = u32::from_le_bytes([place[0], place[1], place[2], place[3]]);
        PendingRecipient {
            index,
            attempts: u16::from_le_bytes([place[4], place[5]]),
            next: Wall(u64_at(place, 8).unwrap_or(0)),
        }
    });
    Some((pending.collect(), start))
}

/// Reads a file. Total: what is not whole is shown as far as it is there.
#[must_use]
pub fn read(aside: Aside, file: &[u8]) -> Seen<'_> {
    let known = read_footer(file);
    let end = known.as_ref().map_or(file.len(), |(_, start)| *start);
    let len = aside.len as usize;
    let start = end.saturating_sub(len.next_multiple_of(BLOCK_BYTES));
    let raw = &file[start..end];
    let raw = &raw[..len.min(raw.len())];
    // The record says itself which life of its segment it was written to.
    let generation = file
        .get(24..28)
        .and_then(|bytes| bytes.first_chunk())
        .map_or(0, |bytes| u64::from(u32::from_le_bytes(*bytes)));
    let record = MessageRecord::decode(&file[..start], generation);
    let record = record.filter(|(record, _)| record.id == aside.id);
    let whole = record
        .as_ref()
        .is_some_and(|(record, _)| record.content_len == aside.len && raw.len() == len)
        && record.is_some_and(|(record, _)| checksum(raw) == record.content_sum);
    let pending = known.map_or_else(
        || {
            let view = record.and_then(|(_, envelope)| EnvelopeView::new(envelope).ok());
            let count = view.map_or(0, |view| view.recipient_count());
            let waits = |index| PendingRecipient {
                index,
                attempts: 0,
                next: Wall(0),
            };
            (0..count).map(waits).collect()
        },
        |(pending, _)| pending,
    );
    Seen {
        id: aside.id,
        location: Location {
            segment: 0,
            offset: 0,
            len: aside.len,
        },
        received_at: record.map(|(record, _)| record.received_at),
        envelope: record.map(|(_, envelope)| envelope),
        content: whole.then_some(raw),
        raw_content: raw,
        pending,
    }
}

/// The envelope of a message that was put aside, for those who waited; `None` where it cannot be
/// submitted again: damaged, or nobody waits.
#[must_use]
pub fn envelope(seen: &Seen<'_>) -> Option<Envelope> {
    seen.content?;
    let mut envelope = Envelope::decode(seen.envelope?).ok()?;
    let waits = |index: usize| {
        let mut pending = seen.pending.iter();
        pending.any(|recipient| recipient.index as usize == index)
    };
    let mut index = 0;
    envelope.recipients.retain(|_| {
        index += 1;
        waits(index - 1)
    });
    (!envelope.recipients.is_empty()).then_some(envelope)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Recipient;
    use crate::message::testing::Random;

    const ID: MessageId = MessageId::new(3, 17);

    fn sample(content: &[u8], pending: &[PendingRecipient]) -> (Aside, Vec<u8>) {
        let recipients = ["a@x.example", "b@y.example", "c@z.example"]
            .map(|address| Recipient::new(address.parse().unwrap()));
        let envelope = Envelope {
            recipients: recipients.to_vec(),
            ..Envelope::default()
        };
        let mut bytes = Vec::new();
        envelope.encode(&mut bytes);
        let record = MessageRecord {
            id: ID,
            received_at: Wall(1_000),
            generation: (7 << 32) + 9,
            recipients: 3,
            envelope_len: u32::try_from(bytes.len()).unwrap(),
            content_offset: 99,
            content_len: u32::try_from(content.len()).unwrap(),
            content_sum: checksum(content),
        };
        let mut file = vec![0; record.head_bytes().next_multiple_of(BLOCK_BYTES)];
        record.encode(&bytes, &mut file);
        file.extend_from_slice(content);
        file.resize(file.len().next_multiple_of(BLOCK_BYTES), 0);
        file.extend(footer(pending));
        let aside = Aside {
            reason: Reason::Poison,
            id: ID,
            len: u32::try_from(content.len()).unwrap(),
        };
        (aside, file)
    }

    fn waits(index: u32) -> PendingRecipient {
        PendingRecipient {
            index,
            attempts: 4,
            next: Wall(5_000),
        }
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for reason in [Reason::Damaged, Reason::Poison] {
            let aside = Aside {
                reason,
                id: ID,
                len: 12,
            };
            assert_eq!(Aside::parse_file_name(&aside.file_name()), Some(aside));
        }
        for name in [
            "quarantine-0030000000000011.raw",
            "poison-30000000000011-1.raw",
            "poison-0030000000000011-01.raw",
            "mail-00000001.log",
        ] {
            assert_eq!(Aside::parse_file_name(name), None, "{name}");
        }
    }

    #[test]
    fn notes_are_read_as_they_are_written() {
        let note = Note {
            old: ID,
            new: MessageId::new(3, 99),
        };
        assert_eq!(Note::parse_file_name(&note.file_name()), Some(note));
        for name in [
            "release-0030000000000011.note",
            "release-0030000000000011-30000000000063.note",
            "release-0030000000000011-0030000000000063-1.note",
            "poison-0030000000000011-1.raw",
        ] {
            assert_eq!(Note::parse_file_name(name), None, "{name}");
        }
    }

    // What was put aside comes back as it was, for those who waited only.
    #[test]
    fn a_message_comes_back() {
        for len in [0, 1, 4096, 10_000] {
            let content = vec![b'x'; len];
            let (aside, file) = sample(&content, &[waits(0), waits(2)]);
            let seen = read(aside, &file);
            assert_eq!(seen.content, Some(&*content));
            assert_eq!(seen.pending, [waits(0), waits(2)]);
            assert_eq!(seen.received_at, Some(Wall(1_000)));
            let envelope = envelope(&seen).unwrap();
            let names: Vec<&str> = envelope
                .recipients
                .iter()
                .map(|recipient| recipient.address.as_str())
                .collect();
            assert_eq!(names, ["a@x.example", "c@z.example"]);
        }
    }

    // A file without a footer: everybody waits.
    #[test]
    fn a_file_of_an_earlier_version_is_read() {
        let (aside, mut file) = sample(b"hello", &[waits(1)]);
        file.truncate(file.len() - BLOCK_BYTES);
        let seen = read(aside, &file);
        assert_eq!(seen.content, Some(&b"hello"[..]));
        assert_eq!(seen.pending.len(), 3);
    }

    // Any damage: no panic, and never a content that is not the message's.
    #[test]
    fn damage_is_never_shown_as_whole() {
        let mut random = Random(1);
        let content = vec![b'x'; 5_000];
        let (aside, whole) = sample(&content, &[waits(0)]);
        for _ in 0..2_000 {
            let mut file = whole.clone();
            match random.below(3) {
                0 => file.truncate(random.below(file.len())),
                1 => {
                    let at = random.below(file.len());
                    file[at] ^= 1 << random.below(8);
                }
                _ => {
                    let at = random.below(file.len() - 8);
                    file[at..at + 8].copy_from_slice(&random.next().to_le_bytes());
                }
            }
            let seen = read(aside, &file);
            assert!(seen.content.is_none_or(|found| found == content));
            drop(envelope(&seen));
        }
        assert!(read(aside, &[]).content.is_none());
    }
}
