//! spool - durable logs: what was acknowledged is never lost, what is corrupt is never handed out.
//!
//! What: the pure core of one shard's spool. `service::spooler` moves its bytes. Two logs of
//! segment files in the shard's directory: `mail-NNNNNNNN.log` (messages) and `state-NNNNNNNN.log`
//! (what became of their recipients). Map: `format` bytes, `segment` the life of a file, `commit`
//! groups, `large` messages above a quarter of a segment, `index` what waits, `recover`, `late`
//! what could not be read at first, `reclaim`, `rescue` other records of a message, `spares` making
//! files, `seal` and `answer` writes, `state` the core.
//!
//! # Bytes
//!
//! Little-endian. Checksums are CRC-64/NVME. All writes are of whole blocks of 4096 bytes.
//!
//! Segment: header (72 bytes used), the same again at 4096, then groups from 8192 on.
//!
//! | at | bytes | segment header |
//! |---|---|---|
//! | 0 | 8 | `PRSEGMNT` |
//! | 8 | 2 | version, 1 |
//! | 10 | 2 | log: 1 messages, 2 state |
//! | 12 | 2 | shard |
//! | 14 | 1 | 1: made for one large message |
//! | 16 | 4 | number, as in the file's name |
//! | 24 | 8 | generation: counts up over both logs of the shard; a new one at each recycling |
//! | 32 | 8 | salt: random, so that the content of a mail cannot pose as a group |
//! | 40 | 8 | bytes of the file |
//! | 48 | 8 | lower bound of message sequences not yet given out |
//! | 64 | 8 | checksum of 0..64 |
//!
//! Group: header, roster, records (together: the head), contents, zeros up to a block.
//!
//! | at | bytes | group header |
//! |---|---|---|
//! | 0 | 8 | `PRGROUP\0` |
//! | 8 | 16 | generation and salt of the segment |
//! | 24 | 8 | sequence of the group in its log |
//! | 32 | 4 | offset in the segment: a swapped block is told from its place |
//! | 36 | 4 | bytes of the head |
//! | 40 | 4 | bytes of the group |
//! | 44 | 4 | records |
//! | 48 | 8 | proven: groups of the message log below this were complete |
//! | 56 | 8 | lower bound of message sequences not yet given out |
//! | 64 | 4 | ids in the roster |
//! | 72 | 8 | proven, of the state log |
//! | 80 | 8 | checksum of the rest of the head |
//! | 88 | 8 | checksum of 0..88 |
//!
//! Roster, where not empty: generation (8), segment (4), offset (4) of the group before, then 8
//! bytes per message of it: recipients (at most 4095 is told) in the top 12 bits, sequence below.
//! So that a lost group is reported by id. The last group of each segment is listed in the state
//! log too, because the segment with its roster may be recycled first.
//!
//! | at | bytes | message record, followed by the envelope, zeros up to 8 |
//! |---|---|---|
//! | 0 | 1 | type, 1 |
//! | 4 | 4 | bytes of the envelope |
//! | 8 | 8 | message id |
//! | 16 | 8 | received, milliseconds since 1970 |
//! | 24 | 4 | generation of the segment, low half |
//! | 28 | 4 | recipients |
//! | 32 | 4 | offset of the content in the segment |
//! | 36 | 4 | bytes of content |
//! | 40 | 8 | checksum of the content |
//! | 56 | 8 | checksum of 0..56, xor that of the envelope rotated left by one |
//!
//! | at | bytes | state record (32) |
//! |---|---|---|
//! | 0 | 1 | 1 settled, 2 dead, 3 clean, 4 roster, 5 void, 6 doubt |
//! | 1 | 1 | settled: 1 delivered 2 failed 3 expired 4 dropped 5 damaged 6 deferred 7 quarantined |
//! | 2 | 2 | deferred: attempts |
//! | 4 | 4 | settled: first recipient; roster, void, doubt: segment |
//! | 8 | 8 | message sequence (dead: the first; roster: as above); doubt: first group |
//! | 16 | 8 | settled: recipients; dead: messages (4 bytes); roster, void: generation |
//! | 24 | 8 | deferred: next attempt, milliseconds; roster, void: sequence of the group; doubt: group after the last |
//!
//! A reader refuses a segment of a newer version ([`format::HeaderRead::Newer`]) and the node does
//! not start: it never guesses, and never recycles what it cannot read. State records of a type
//! that it does not know are skipped. A newer reader reads all older versions.
//!
//! # Rules
//!
//! 1. `Stored` is made only when the write of its group returned from stable storage.
//! 2. A group starts when the one before has been laid out and at most four are in flight; there is
//!    no timer. Settlements wait at most 2 ms for company.
//! 3. After one failed write nothing in flight to the same file is trusted; nothing is written to
//!    it
//!    any more; its fresh messages are refused and buried under tombstones; settlements are written
//!    again, elsewhere. New mail is refused until a header was written to another segment, and none
//!    is acknowledged before those tombstones are durable. So what was answered 451 may be
//!    delivered all the same, and again when its sender retries, only if the power goes, or the
//!    process ends, before its tombstone is written and before the next 250. Where nothing can be
//!    written any more that cannot be helped.
//! 4. Replaying state records in any order, any number of times, gives the same state.
//! 5. A settlement is forgotten only when no record of its message can be found: the slots of a
//!    segment
//!    live until its new header, or its removal, is durable, and a checkpoint writes down each of
//!    them.
//! 6. A segment is given a new header only when no reader holds a map of it.
//! 7. Groups at or above `proven` are checked with their contents at recovery, others by their
//!    heads
//!    alone: their contents are checked whenever they are read. A group that is known not to be
//!    whole is in the way of `proven` until the note about it ([`format::StateRecord::Void`]) is
//!    durable. Those at or above that are whole are written again, as they are, before the spool
//!    opens: after a kill, what can be read need not be on stable storage.
//! 8. Without space or inodes for another file, new mail goes on in segments that are free or
//!    become so, and the state log is compacted early; 452 only when there is no room.
//! 9. What recovery cannot read is neither recycled nor taken for damaged. It is looked at again
//!    while the node runs, and taken in when all of its segment can be read; what was settled is
//!    remembered until then. A segment whose header cannot be read waits as a whole: its groups may
//!    be of an earlier life. Its last groups may be torn, which the groups of this life cannot
//!    know: a note says so ([`format::StateRecord::Doubt`]), is in the way of `proven` until it is
//!    durable, and has whoever can read those groups treat them as last writes.
//! 10. A message is damaged when no record of it is whole. While some of the message log cannot be
//!     read there may be one.
//! 11. A message above a quarter of a segment gets a file of its own: contents first, and the head,
//!     which makes it exist, when they are durable.
//!
//! # Sketch
//!
//! 40,000 messages of 10 KiB per second: 400 MB/s in 400 to 2,000 groups, one copy and one checksum
//! per content (10 KiB: 0.3 us and 0.3 us), 264 bytes of head per message, one segment of 64 MiB
//! per 160 ms.
//! Index: 32 bytes per record and 11 to 22 bytes of table per waiting message. Recovery looks at
//! heads only: a checksum of 264 bytes, a slot, and a place in the table per message. Files: at
//! most twice what is live, and nine segments.

pub mod format;
pub mod inspect;
pub mod quarantine;
pub mod recover;

mod answer;
mod commit;
mod index;
mod large;
mod late;
mod reclaim;
mod replay;
mod rescue;
mod seal;
mod segment;
mod spares;
mod state;
#[cfg(test)]
mod tests;
mod types;

pub use index::Place;
pub use late::Adopted;
pub use recover::{Damage, RecoveryReport};
pub use rescue::Served;
pub use state::{Action, Completion, Extent, Outcome, Spool, SpoolConfig, Waiting};
pub use types::{
    Alarm, AppendError, Location, PendingRecipient, Queued, ReadError, Settlement, SettlementKind,
    SpoolStatus, Stored,
};
