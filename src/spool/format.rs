//! spool::format - the bytes of both logs: encode beside decode.
//!
//! What: segment headers, group headers, message records, state records; the tables are in
//! [`crate::spool`]. All integers are little-endian. Decoders are total: any bytes give a value or
//! `None`, and a value only if its checksum holds.

use crate::engine::Block;
use crate::limits;
use crate::message::MessageId;
use crate::time::Wall;

use super::types::SettlementKind;

/// Groups start, and all writes happen, at multiples of this.
pub const BLOCK_BYTES: usize = 4096;
/// Bytes at the start of a segment that hold its header, twice, a block each.
pub const SEGMENT_HEADER_BYTES: usize = 2 * BLOCK_BYTES;
/// Bytes of a group header.
pub const GROUP_HEADER_BYTES: usize = 96;
/// Bytes of a message record without its envelope.
pub const RECORD_BYTES: usize = 64;
/// Bytes of a state record.
pub const STATE_RECORD_BYTES: usize = 32;
/// The version that this code writes and the newest that it reads.
pub const VERSION: u16 = 1;

const SEGMENT_MAGIC: u64 = u64::from_le_bytes(*b"PRSEGMNT");
const GROUP_MAGIC: u64 = u64::from_le_bytes(*b"PRGROUP\0");
const RECORD_MESSAGE: u8 = 1;
const SEGMENT_HEADER_USED: usize = 72;

const _: () = assert!(SEGMENT_HEADER_USED <= BLOCK_BYTES);
const _: () = assert!(GROUP_HEADER_BYTES.is_multiple_of(8) && RECORD_BYTES.is_multiple_of(8));
const _: () = assert!(STATE_RECORD_BYTES.is_multiple_of(8));

/// CRC-64/NVME.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u64 {
    crc_fast::crc64_nvme(bytes)
}

/// A running CRC-64/NVME, for contents that are read in pieces.
#[derive(Clone)]
pub struct Checksum(crc_fast::Digest);

impl std::fmt::Debug for Checksum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Checksum")
    }
}

impl Default for Checksum {
    fn default() -> Self {
        Self(crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme))
    }
}

impl Checksum {
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The checksum of all that was added.
    #[must_use]
    pub fn finish(&self) -> u64 {
        self.0.finalize()
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// Which log a segment belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Log {
    /// Messages.
    Message,
    /// Settlements.
    State,
}

impl Log {
    fn code(self) -> u16 {
        match self {
            Self::Message => 1,
            Self::State => 2,
        }
    }

    /// The name of the file of segment `number`.
    #[must_use]
    pub fn file_name(self, number: u32) -> String {
        match self {
            Self::Message => format!("mail-{number:08}.log"),
            Self::State => format!("state-{number:08}.log"),
        }
    }

    /// What a file name says; `None` for files that are not ours.
    #[must_use]
    pub fn parse_file_name(name: &str) -> Option<(Self, u32)> {
        let stem = name.strip_suffix(".log")?;
        let (log, digits) = if let Some(digits) = stem.strip_prefix("mail-") {
            (Self::Message, digits)
        } else {
            (Self::State, stem.strip_prefix("state-")?)
        };
        let number: u32 = digits.parse().ok()?;
        (log.file_name(number) == name).then_some((log, number))
    }
}

/// What identifies one life of a segment. A recycled segment gets a new stamp, so that bytes of its
/// earlier life can never be read as live; the salt keeps the content of a mail from posing as a
/// group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stamp {
    /// Counts up over both logs of the shard; unique.
    pub generation: u64,
    /// Random.
    pub salt: u64,
}

/// The header of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Which log.
    pub log: Log,
    /// The shard it belongs to.
    pub shard: u16,
    /// Its number, as in the file name.
    pub number: u32,
    /// This life of it.
    pub stamp: Stamp,
    /// Bytes of the file.
    pub len: u64,
    /// Whether the file was made for one large message.
    pub large: bool,
    /// A lower bound of message sequences that were not handed out when this was written.
    pub next_sequence: u64,
}

/// What a segment header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderRead {
    /// A header of a version that we read.
    Known(SegmentHeader),
    /// A whole header of a newer version: hands off.
    Newer(u16),
    /// Neither copy is whole.
    Damaged,
}

impl SegmentHeader {
    /// Both copies, ready to be written at offset 0.
    #[must_use]
    pub fn encode(&self) -> Block {
        let mut block = Block::zeroed(SEGMENT_HEADER_BYTES);
        let mut bytes = [0u8; SEGMENT_HEADER_USED];
        bytes[0..8].copy_from_slice(&SEGMENT_MAGIC.to_le_bytes());
        bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.log.code().to_le_bytes());
        bytes[12..14].copy_from_slice(&self.shard.to_le_bytes());
        bytes[14] = u8::from(self.large);
        bytes[16..20].copy_from_slice(&self.number.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.stamp.generation.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.stamp.salt.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.len.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.next_sequence.to_le_bytes());
        let sum = checksum(&bytes[..SEGMENT_HEADER_USED - 8]);
        bytes[SEGMENT_HEADER_USED - 8..].copy_from_slice(&sum.to_le_bytes());
        block[..SEGMENT_HEADER_USED].copy_from_slice(&bytes);
        block[BLOCK_BYTES..BLOCK_BYTES + SEGMENT_HEADER_USED].copy_from_slice(&bytes);
        block
    }

    /// The header of the segment whose first bytes are `bytes`: of the two copies, the whole one
    /// with the higher generation (a torn header write leaves one of each life).
    #[must_use]
    pub fn decode(bytes: &[u8]) -> HeaderRead {
        let mut best: Option<Self> = None;
        for copy in 0..2 {
            let block = bytes.get(copy * BLOCK_BYTES..).unwrap_or(&[]);
            match Self::decode_copy(block) {
                HeaderRead::Newer(version) => return HeaderRead::Newer(version),
                HeaderRead::Known(header)
                    if best.is_none_or(|b| b.stamp.generation < header.stamp.generation) =>
                {
                    best = Some(header);
                }
                HeaderRead::Known(_) | HeaderRead::Damaged => {}
            }
        }
        best.map_or(HeaderRead::Damaged, HeaderRead::Known)
    }

    fn decode_copy(bytes: &[u8]) -> HeaderRead {
        Self::decode_fields(bytes).unwrap_or(HeaderRead::Damaged)
    }

    fn decode_fields(bytes: &[u8]) -> Option<HeaderRead> {
        let bytes = bytes.get(..SEGMENT_HEADER_USED)?;
        if u64_at(bytes, 0)? != SEGMENT_MAGIC
            || u64_at(bytes, SEGMENT_HEADER_USED - 8)?
                != checksum(&bytes[..SEGMENT_HEADER_USED - 8])
        {
            return None;
        }
        let version = u16_at(bytes, 8)?;
        if version > VERSION {
            return Some(HeaderRead::Newer(version));
        }
        let log = match u16_at(bytes, 10)? {
            1 => Log::Message,
            2 => Log::State,
            _ => return None,
        };
        Some(HeaderRead::Known(Self {
            log,
            shard: u16_at(bytes, 12)?,
            number: u32_at(bytes, 16)?,
            stamp: Stamp {
                generation: u64_at(bytes, 24)?,
                salt: u64_at(bytes, 32)?,
            },
            len: u64_at(bytes, 40)?,
            large: bytes[14] == 1,
            next_sequence: u64_at(bytes, 48)?,
        }))
    }
}

/// The header of a commit group. The head of a group is this header, then its roster (the ids of
/// the group before), then its records; contents follow, and padding up to a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupHeader {
    /// The life of the segment that it was written to.
    pub stamp: Stamp,
    /// Counts up over the life of the log.
    pub sequence: u64,
    /// Byte offset in the segment where it was written.
    pub offset: u32,
    /// Bytes of the head: this header, roster and records.
    pub head_len: u32,
    /// Bytes of the group on disk, a multiple of [`BLOCK_BYTES`].
    pub total_len: u32,
    /// Records in the head.
    pub records: u32,
    /// Ids in the roster.
    pub roster: u32,
    /// Every group of the message log with a lower sequence was complete when this was written: if
    /// one of those is not whole now, that is damage, not a torn write.
    pub proven: u64,
    /// The same for the state log.
    pub state_proven: u64,
    /// A lower bound of message sequences that were not handed out when this was written.
    pub next_sequence: u64,
}

impl GroupHeader {
    /// Writes the header into the start of `head`, with the checksum over all of `head`.
    ///
    /// # Panics
    /// When `head` is not `head_len` bytes: a bug.
    pub fn seal(&self, head: &mut [u8]) {
        assert_eq!(
            head.len(),
            self.head_len as usize,
            "the head is what the header says"
        );
        head[0..8].copy_from_slice(&GROUP_MAGIC.to_le_bytes());
        head[8..16].copy_from_slice(&self.stamp.generation.to_le_bytes());
        head[16..24].copy_from_slice(&self.stamp.salt.to_le_bytes());
        head[24..32].copy_from_slice(&self.sequence.to_le_bytes());
        head[32..36].copy_from_slice(&self.offset.to_le_bytes());
        head[36..40].copy_from_slice(&self.head_len.to_le_bytes());
        head[40..44].copy_from_slice(&self.total_len.to_le_bytes());
        head[44..48].copy_from_slice(&self.records.to_le_bytes());
        head[48..56].copy_from_slice(&self.proven.to_le_bytes());
        head[56..64].copy_from_slice(&self.next_sequence.to_le_bytes());
        head[64..68].copy_from_slice(&self.roster.to_le_bytes());
        head[68..72].fill(0);
        head[72..80].copy_from_slice(&self.state_proven.to_le_bytes());
        let body_sum = checksum(&head[GROUP_HEADER_BYTES..]);
        head[80..88].copy_from_slice(&body_sum.to_le_bytes());
        let sum = checksum(&head[..88]);
        head[88..96].copy_from_slice(&sum.to_le_bytes());
    }

    /// The header at the start of `bytes`, if there is a whole one. Second: the checksum that the
    /// rest of the head must have.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<(Self, u64)> {
        if u64_at(bytes, 0)? != GROUP_MAGIC || u64_at(bytes, 88)? != checksum(bytes.get(..88)?) {
            return None;
        }
        let header = Self {
            stamp: Stamp {
                generation: u64_at(bytes, 8)?,
                salt: u64_at(bytes, 16)?,
            },
            sequence: u64_at(bytes, 24)?,
            offset: u32_at(bytes, 32)?,
            head_len: u32_at(bytes, 36)?,
            total_len: u32_at(bytes, 40)?,
            records: u32_at(bytes, 44)?,
            proven: u64_at(bytes, 48)?,
            state_proven: u64_at(bytes, 72)?,
            next_sequence: u64_at(bytes, 56)?,
            roster: u32_at(bytes, 64)?,
        };
        let sane = header.head_len as usize >= GROUP_HEADER_BYTES
            && header.total_len >= header.head_len
            && (header.total_len as usize).is_multiple_of(BLOCK_BYTES)
            && (header.offset as usize).is_multiple_of(BLOCK_BYTES);
        sane.then_some((header, u64_at(bytes, 80)?))
    }

    /// Whether the head whose header this is, with `body_sum`, is whole. `head` is all of it.
    #[must_use]
    pub fn head_is_whole(&self, body_sum: u64, head: &[u8]) -> bool {
        head.len() == self.head_len as usize
            && head
                .get(GROUP_HEADER_BYTES..)
                .is_some_and(|body| checksum(body) == body_sum)
    }
}

/// The fixed part of a message's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageRecord {
    /// The message.
    pub id: MessageId,
    /// When it was accepted.
    pub received_at: Wall,
    /// The generation of the segment that it was written to.
    pub generation: u64,
    /// Recipients in the envelope, at least one.
    pub recipients: u32,
    /// Bytes of the envelope, which follows the record.
    pub envelope_len: u32,
    /// Byte offset of the content in the segment.
    pub content_offset: u32,
    /// Bytes of content.
    pub content_len: u32,
    /// CRC-64/NVME of the content.
    pub content_sum: u64,
}

impl MessageRecord {
    /// Bytes of record and envelope in a head.
    #[must_use]
    pub fn head_bytes(&self) -> usize {
        RECORD_BYTES + (self.envelope_len as usize).next_multiple_of(8)
    }

    /// Writes record and envelope to the start of `out`, which holds `head_bytes()`.
    pub fn encode(&self, envelope: &[u8], out: &mut [u8]) {
        debug_assert_eq!(envelope.len(), self.envelope_len as usize);
        out[RECORD_BYTES..RECORD_BYTES + envelope.len()].copy_from_slice(envelope);
        out[RECORD_BYTES + envelope.len()..self.head_bytes()].fill(0);
        out[0] = RECORD_MESSAGE;
        out[1..4].fill(0);
        out[4..8].copy_from_slice(&self.envelope_len.to_le_bytes());
        let id = (u64::from(self.id.shard()) << 52) | self.id.sequence();
        out[8..16].copy_from_slice(&id.to_le_bytes());
        out[16..24].copy_from_slice(&self.received_at.0.to_le_bytes());
        // The low half tells lives apart for 4 billion recyclings, and the head's checksum covers
        // the whole stamp.
        let generation = (self.generation & 0xffff_ffff) as u32;
        out[24..28].copy_from_slice(&generation.to_le_bytes());
        out[28..32].copy_from_slice(&self.recipients.to_le_bytes());
        out[32..36].copy_from_slice(&self.content_offset.to_le_bytes());
        out[36..40].copy_from_slice(&self.content_len.to_le_bytes());
        out[40..48].copy_from_slice(&self.content_sum.to_le_bytes());
        out[48..56].fill(0);
        let sum = checksum(&out[..56]) ^ checksum(envelope).rotate_left(1);
        out[56..64].copy_from_slice(&sum.to_le_bytes());
    }

    /// The record at the start of `bytes` and its envelope, if it is whole and of `generation`.
    #[must_use]
    pub fn decode(bytes: &[u8], generation: u64) -> Option<(Self, &[u8])> {
        let record = Self::decode_unchecked(bytes, generation)?;
        let end = RECORD_BYTES.checked_add(record.envelope_len as usize)?;
        let envelope = bytes.get(RECORD_BYTES..end)?;
        let sum = checksum(bytes.get(..56)?) ^ checksum(envelope).rotate_left(1);
        (u64_at(bytes, 56)? == sum).then_some((record, envelope))
    }

    /// As [`MessageRecord::decode`] without its checksum: where the head's checksum vouches for it.
    #[must_use]
    pub fn decode_unchecked(bytes: &[u8], generation: u64) -> Option<Self> {
        let fixed = bytes.get(..RECORD_BYTES)?;
        if fixed[0] != RECORD_MESSAGE || u64::from(u32_at(fixed, 24)?) != generation & 0xffff_ffff {
            return None;
        }
        let id = u64_at(fixed, 8)?;
        let id = MessageId(id);
        // Any bytes may stand here: there are ids of no shard.
        if id.shard() >= limits::SHARDS_MAX {
            return None;
        }
        Some(Self {
            id,
            received_at: Wall(u64_at(fixed, 16)?),
            generation,
            recipients: u32_at(fixed, 28)?,
            envelope_len: u32_at(fixed, 4)?,
            content_offset: u32_at(fixed, 32)?,
            content_len: u32_at(fixed, 36)?,
            content_sum: u64_at(fixed, 40)?,
        })
    }
}

/// A record of the state log. Replaying them in any order, any number of times, gives the same
/// state: final beats deferred, more attempts beat fewer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateRecord {
    /// Recipients `first .. first + count` of one message.
    Settled {
        /// Sequence of the message.
        sequence: u64,
        /// First recipient.
        first: u32,
        /// Number of recipients, at least one.
        count: u32,
        /// What became of each.
        kind: SettlementKind,
    },
    /// Every recipient of the messages `first .. first + count` is final, or the message was never
    /// acknowledged.
    Dead {
        /// Sequence of the first message.
        first: u64,
        /// Number of messages, at least one.
        count: u32,
    },
    /// The log was closed with everything durable; every group before is complete.
    Clean,
    /// A message with this id was in the group of the message log with this sequence: written when
    /// no later group of the message log will carry it in its roster.
    Roster {
        /// The message: its sequence, and in the top 12 bits how many recipients it has (at most
        /// 4095 is told).
        entry: u64,
        /// Sequence of the group.
        group: u64,
        /// The life of the segment that holds the group.
        generation: u64,
        /// That segment.
        segment: u32,
    },
    /// Recovery could not read all of a segment of the message log: of the groups `first .. end` it
    /// knows none there to have been complete, although later groups will say so. Sequences are
    /// never given out again, so that no later life of the segment is meant.
    Doubt {
        /// Sequence of the first group that nothing vouched for.
        first: u64,
        /// The first sequence that was given out afterwards.
        end: u64,
        /// That segment.
        segment: u32,
    },
    /// A group of the message log is not whole, and that is known: its write failed, a crash tore
    /// it, or its damage was reported. Recovery says nothing about it any more.
    Void {
        /// Sequence of the group.
        group: u64,
        /// The life of the segment that holds it.
        generation: u64,
        /// That segment.
        segment: u32,
    },
}

impl StateRecord {
    /// Writes the record.
    pub fn encode(&self, out: &mut [u8; STATE_RECORD_BYTES]) {
        out.fill(0);
        match *self {
            Self::Settled {
                sequence,
                first,
                count,
                kind,
            } => {
                out[0] = 1;
                let (code, attempts, next) = kind_code(kind);
                out[1] = code;
                out[2..4].copy_from_slice(&attempts.to_le_bytes());
                out[4..8].copy_from_slice(&first.to_le_bytes());
                out[8..16].copy_from_slice(&sequence.to_le_bytes());
                out[16..20].copy_from_slice(&count.to_le_bytes());
                out[24..32].copy_from_slice(&next.to_le_bytes());
            }
            Self::Dead { first, count } => {
                out[0] = 2;
                out[8..16].copy_from_slice(&first.to_le_bytes());
                out[16..20].copy_from_slice(&count.to_le_bytes());
            }
            Self::Clean => out[0] = 3,
            Self::Roster {
                entry,
                group,
                generation,
                segment,
            } => {
                out[0] = 4;
                out[4..8].copy_from_slice(&segment.to_le_bytes());
                out[8..16].copy_from_slice(&entry.to_le_bytes());
                out[16..24].copy_from_slice(&generation.to_le_bytes());
                out[24..32].copy_from_slice(&group.to_le_bytes());
            }
            Self::Void {
                group,
                generation,
                segment,
            } => {
                out[0] = 5;
                out[4..8].copy_from_slice(&segment.to_le_bytes());
                out[16..24].copy_from_slice(&generation.to_le_bytes());
                out[24..32].copy_from_slice(&group.to_le_bytes());
            }
            Self::Doubt {
                first,
                end,
                segment,
            } => {
                out[0] = 6;
                out[4..8].copy_from_slice(&segment.to_le_bytes());
                out[8..16].copy_from_slice(&first.to_le_bytes());
                out[24..32].copy_from_slice(&end.to_le_bytes());
            }
        }
    }

    /// The record in `bytes`; `None` for a type that this version does not know.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        match *bytes.first()? {
            1 => Some(Self::Settled {
                sequence: u64_at(bytes, 8)?,
                first: u32_at(bytes, 4)?,
                count: u32_at(bytes, 16)?,
                kind: kind_of(bytes[1], u16_at(bytes, 2)?, u64_at(bytes, 24)?)?,
            }),
            2 => Some(Self::Dead {
                first: u64_at(bytes, 8)?,
                count: u32_at(bytes, 16)?,
            }),
            3 => Some(Self::Clean),
            4 => Some(Self::Roster {
                entry: u64_at(bytes, 8)?,
                group: u64_at(bytes, 24)?,
                generation: u64_at(bytes, 16)?,
                segment: u32_at(bytes, 4)?,
            }),
            5 => Some(Self::Void {
                group: u64_at(bytes, 24)?,
                generation: u64_at(bytes, 16)?,
                segment: u32_at(bytes, 4)?,
            }),
            6 => Some(Self::Doubt {
                first: u64_at(bytes, 8)?,
                end: u64_at(bytes, 24)?,
                segment: u32_at(bytes, 4)?,
            }),
            _ => None,
        }
    }
}

fn kind_code(kind: SettlementKind) -> (u8, u16, u64) {
    match kind {
        SettlementKind::Delivered => (1, 0, 0),
        SettlementKind::Failed => (2, 0, 0),
        SettlementKind::Expired => (3, 0, 0),
        SettlementKind::Dropped => (4, 0, 0),
        SettlementKind::Damaged => (5, 0, 0),
        SettlementKind::Deferred { attempts, next } => (6, attempts, next.0),
        SettlementKind::Quarantined => (7, 0, 0),
    }
}

fn kind_of(code: u8, attempts: u16, next: u64) -> Option<SettlementKind> {
    Some(match code {
        1 => SettlementKind::Delivered,
        2 => SettlementKind::Failed,
        3 => SettlementKind::Expired,
        4 => SettlementKind::Dropped,
        5 => SettlementKind::Damaged,
        6 => SettlementKind::Deferred {
            attempts,
            next: Wall(next),
        },
        7 => SettlementKind::Quarantined,
        _ => return None,
    })
}
