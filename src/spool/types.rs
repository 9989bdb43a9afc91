//! spool::types - the words that the spool and its callers share.
//!
//! What: where a message lies, the proof that it is durable, what became of its recipients, and why
//! the spool said no. Why apart: the queue and the services import these and nothing of the logs.

use crate::message::MessageId;
use crate::time::Wall;

/// Where the record of a message lies within its shard's message log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Location {
    /// The number of the segment, as in its file's name.
    pub segment: u32,
    /// Byte offset of the record's head in the segment; a multiple of 8.
    pub offset: u32,
    /// Bytes of content.
    pub len: u32,
}

/// The proof that a message is on stable storage: the only thing that may become a 250.
///
/// Its fields are private; only the completion of a durable group makes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    id: MessageId,
    location: Location,
}

impl Stored {
    /// For the commit machine, after the group is durable, and nobody else.
    pub(crate) fn proven(id: MessageId, location: Location) -> Self {
        Self { id, location }
    }

    /// The message.
    #[must_use]
    pub fn id(&self) -> MessageId {
        self.id
    }

    /// Where it was written.
    #[must_use]
    pub fn location(&self) -> Location {
        self.location
    }
}

/// What became of one recipient.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Settlement {
    /// The message.
    pub id: MessageId,
    /// Index of the recipient in the message's envelope.
    pub recipient: u32,
    /// What became of it.
    pub kind: SettlementKind,
}

/// The kinds of settlement. All but `Deferred` are final.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SettlementKind {
    /// The next host took responsibility.
    Delivered,
    /// Refused for good.
    Failed,
    /// Not delivered within its lifetime.
    Expired,
    /// Removed by the operator.
    Dropped,
    /// The record cannot be trusted; what is left of it lies in quarantine.
    Damaged,
    /// Put into quarantine: in hand at repeated crashes.
    Quarantined,
    /// To be tried again.
    Deferred {
        /// Attempts made so far; never goes back.
        attempts: u16,
        /// When to try next. Kept to the second, rounded up.
        next: Wall,
    },
}

impl SettlementKind {
    /// Whether nothing more will happen to the recipient.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        !matches!(self, Self::Deferred { .. })
    }
}

/// One recipient that still waits, as recovery found it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PendingRecipient {
    /// Index in the envelope.
    pub index: u32,
    /// Attempts made before.
    pub attempts: u16,
    /// When to try next; zero for one that was never tried.
    pub next: Wall,
}

/// One message that still waits, as recovery found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queued {
    /// The message.
    pub id: MessageId,
    /// Where it lies.
    pub location: Location,
    /// When it was accepted.
    pub received_at: Wall,
    /// Its recipients that are not settled, in order; never empty.
    pub pending: Vec<PendingRecipient>,
}

/// Why a message was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppendError {
    /// No space left: 452 4.3.1.
    Full,
    /// The disk failed, or the spool is closing: 451 4.3.0. Whether the message is on disk is
    /// unknown. It will not be delivered, unless the process ends before its tombstone is durable:
    /// then it may be, besides what its sender sends again (RFC 5321, section 4.5.4.1, has the
    /// sender retry after 4yz). No later message is acknowledged before that tombstone is durable.
    Failed,
    /// Larger than the spool can hold at all ([`crate::limits::SPOOL_MESSAGE_BYTES_MAX`]).
    TooLarge,
}

/// Why a message cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadError {
    /// Its bytes do not match their checksum. It goes to quarantine; never retry.
    Damaged,
    /// The spool does not have it: settled, or never stored.
    Gone,
    /// The disk did not give the bytes; another attempt may succeed.
    Io,
}

/// What the spool wants its operator to know. Each is raised once and listed while it lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Alarm {
    /// Writing or syncing failed; new mail is refused until a probe on a new segment succeeds.
    DiskFailed,
    /// Free space is below the low-water mark.
    DiskFull,
    /// No file could be made, for want of space or inodes: new mail goes to what is free already,
    /// and is refused when that is used up. Tried again every second.
    NoFiles,
    /// Stored mail, or what became of some, cannot be read: it waits, and is tried again.
    Unread,
    /// A message did not match its checksum since the start, or recovery found damage.
    DamageFound,
    /// Messages that were in hand at repeated crashes are in quarantine.
    PoisonFound,
    /// Settlements cannot be written; what is delivered now may be delivered again after a crash.
    SettlementsWaiting,
}

/// The spool in figures.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpoolStatus {
    /// Messages with at least one unsettled recipient.
    pub queued_messages: u64,
    /// Bytes of their records.
    pub live_bytes: u64,
    /// Bytes of all files of the shard.
    pub disk_bytes: u64,
    /// Message segments, free ones included.
    pub segments: u32,
    /// Free bytes of the file system, as last asked.
    pub free_bytes: u64,
    /// Whether new mail is taken.
    pub accepting: bool,
    /// What is wrong now.
    pub alarms: Vec<Alarm>,
    /// Messages that were found damaged since the start.
    pub damaged_messages: u64,
    /// Files in quarantine, whatever the reason.
    pub quarantined: u64,
    /// Commit groups written to the message log since the start.
    pub groups_written: u64,
    /// Settlements that are not durable yet.
    pub settlements_waiting: u64,
    /// Bytes of RAM that the index holds.
    pub index_bytes: u64,
}

const _: () = assert!(size_of::<Location>() == 12);
const _: () = assert!(size_of::<Stored>() == 24);

impl std::fmt::Display for Alarm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::DiskFailed => {
                "a write to the disk failed: new mail is refused until a probe succeeds"
            }
            Self::DiskFull => "free space is below spool.free_space_min: new mail is refused",
            Self::NoFiles => {
                "no file can be made (no space, or no inodes): new mail is refused once the free \
                 segments are used up"
            }
            Self::Unread => {
                "some of what is stored cannot be read: that mail waits, and is tried again"
            }
            Self::DamageFound => "stored messages were found damaged",
            Self::PoisonFound => {
                "messages that were in hand at repeated crashes are in quarantine: see `postrider \
                 ctl quarantine list`"
            }
            Self::SettlementsWaiting => {
                "settlements cannot be written: a crash may repeat deliveries"
            }
        })
    }
}
