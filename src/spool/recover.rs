//! spool::recover - from any bytes to an index and a damage report.
//!
//! What: [`Scan`] walks the groups of one segment and resynchronises at the next block after
//! damage; [`Recovery`] takes what scans find, state log first, then the message log in the order
//! of generations, and ends as a [`Spool`].
//! Why this way: pure and pulled. A scan says which range it wants to look at and is told whether
//! it may, so that the driver can bring it into memory first; an unreadable block is an answer, not
//! a signal. Only heads are read, except for the groups of the last writes, which no later group
//! vouches for: their contents are checked too, and what is torn is buried under a tombstone.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Range;

use crate::limits;
use crate::message::MessageId;
use crate::time::Mono;

use super::commit::{LastGroup, roster_entry};
use super::format::{
    GroupHeader, HeaderRead, Log, MessageRecord, RECORD_BYTES, SegmentHeader, Stamp, StateRecord,
};
use super::index::{Place, Slot, SlotState};
use super::late::{Late, TakenIn};
use super::replay::Replay;
use super::segment::{Phase, Segment};
use super::state::{Doubt, Spool, SpoolConfig, Void};
use super::types::Location;

mod last;
mod missing;
mod scan;

pub use last::Rewrite;
pub use scan::{Found, Scan, Step, elect_stamp};

/// Highest file number that is taken for ours.
const NUMBER_MAX: u32 = 1 << 20;

/// Groups that one unreadable segment can hold, and more.
const GROUPS_SKIPPED: u64 = 1 << 20;

/// Ranges that are kept apart of one segment that start after start could not read.
const DOUBTS_PER_SEGMENT: usize = 8;

/// One piece of damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// No copy of a segment's header is whole. Its groups were read all the same, if it had any.
    Header(Log, u32),
    /// A file is not as long as it was made.
    Length(Log, u32),
    /// A message that was acknowledged, and is not there any more.
    Lost(MessageId),
    /// A message whose bytes do not match their checksum.
    Message(MessageId, Location),
    /// A group of messages that was complete once and cannot be read; ids unknown.
    Group {
        /// Segment of the message log.
        segment: u32,
        /// Sequence of the group.
        sequence: u64,
    },
    /// Settlements that cannot be read: some messages may be sent again.
    Settlements {
        /// Segment of the state log.
        segment: u32,
        /// Where.
        offset: u32,
    },
    /// A message of the last writes before a crash that is not whole: never acknowledged, as far
    /// as one can know.
    Torn(MessageId),
    /// The disk does not give these bytes.
    Unreadable(Log, u32, u32),
}

/// What recovery found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Messages that wait.
    pub queued_messages: u64,
    /// Records of settled messages that are still in their segments.
    pub settled_records: u64,
    /// Groups read, of both logs.
    pub groups: u64,
    /// Damage, at most [`limits::SPOOL_DAMAGE_LISTED_MAX`] of it.
    pub damage: Vec<Damage>,
    /// Damage that is not listed.
    pub damage_unlisted: u64,
    /// Whether the spool was closed in order.
    pub clean: bool,
}

impl RecoveryReport {
    fn add(&mut self, damage: Damage) {
        if self.damage.len() < limits::SPOOL_DAMAGE_LISTED_MAX {
            self.damage.push(damage);
        } else {
            self.damage_unlisted += 1;
        }
    }

    /// Whether anything but torn last writes was found.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        self.damage_unlisted > 0 || self.damage.iter().any(|d| !matches!(d, Damage::Torn(_)))
    }
}

/// Slots whose contents nothing vouches for.
#[derive(Debug)]
struct Unproven {
    group: u64,
    misplaced: bool,
    /// Known not to be whole, or not known to be, but what is whole of it may have been taken over
    /// by a recovery.
    void: bool,
    place: Place,
}

/// A content to be checked: whole file offsets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// Segment of the message log.
    pub segment: u32,
    /// Where its record is.
    pub head: Range<usize>,
    /// Where its content is.
    pub content: Range<usize>,
    place: Place,
    misplaced: bool,
    group: u64,
}

/// Recovery of one shard.
#[derive(Debug)]
pub struct Recovery {
    spool: Spool,
    report: RecoveryReport,
    replay: Replay,
    proven: u64,
    state_proven: u64,
    /// Groups of the state log that are not whole: sequence, segment, offset.
    torn_states: Vec<(u64, u32, u32)>,
    /// Complete groups of the message log, as runs: first to end.
    whole: BTreeMap<u64, u64>,
    rosters: BTreeMap<u64, LastGroup>,
    broken: Vec<(u32, u64)>,
    /// Missing sequences where groups should lie.
    holes: Vec<(u32, Range<u64>)>,
    voids: BTreeSet<Void>,
    /// What an earlier life could not read and so not judge.
    doubts: Vec<Doubt>,
    /// Groups that lie in unread segments, as rosters say.
    mentioned: BTreeSet<Void>,
    unproven: Vec<Unproven>,
    /// Whole groups that nothing vouches for: log, segment, where, sequence, and whether it does
    /// not matter what later groups say.
    tail: Vec<(Log, u32, Range<usize>, u64, bool)>,
    /// Segments with a group: their headers are durable, since groups follow headers.
    filled: BTreeSet<(Log, u32)>,
    /// The group before the next, in the segment being scanned: segment, sequence, end.
    previous: Option<(u32, u64, u32)>,
    /// Records that cannot be what was written.
    misfits: Vec<(MessageId, Location)>,
    /// Files whose length is not what their header says.
    short: Vec<(Log, u32)>,
    last: Option<(u64, u32, u32, Range<u32>)>,
}

impl Recovery {
    /// Starts with nothing.
    #[must_use]
    pub fn new(config: SpoolConfig) -> Self {
        Self {
            spool: Spool::empty(config),
            report: RecoveryReport::default(),
            replay: Replay::default(),
            proven: 0,
            state_proven: 0,
            torn_states: Vec::new(),
            whole: BTreeMap::new(),
            rosters: BTreeMap::new(),
            broken: Vec::new(),
            holes: Vec::new(),
            voids: BTreeSet::new(),
            doubts: Vec::new(),
            mentioned: BTreeSet::new(),
            unproven: Vec::new(),
            tail: Vec::new(),
            filled: BTreeSet::new(),
            previous: None,
            misfits: Vec::new(),
            short: Vec::new(),
            last: None,
        }
    }

    /// Tells of a file: the first two blocks, and its length. The answer: its stamp, or `None` when
    /// the header is damaged; then [`Recovery::elected`] must follow. Files of a newer version, or
    /// of another shard, are for the caller to refuse beforehand.
    pub fn file(&mut self, log: Log, number: u32, start: &[u8], len: u64) -> Option<Stamp> {
        if number > NUMBER_MAX {
            self.report.add(Damage::Header(log, number));
            return None;
        }
        let HeaderRead::Known(header) = SegmentHeader::decode(start) else {
            return None;
        };
        if header.log != log {
            return None;
        }
        if header.len != len {
            self.short.push((log, number));
        }
        self.spool.next_sequence = self.spool.next_sequence.max(header.next_sequence);
        let sound = header.len == len && header.number == number;
        self.insert(log, number, header.stamp, len, sound);
        self.spool.log(log).at(number).large = header.large;
        Some(header.stamp)
    }

    /// The stamp found by [`elect_stamp`] for a file whose header is damaged; `blank` when its
    /// first blocks are all zero, as a crash leaves them when a file is being made.
    pub fn elected(&mut self, log: Log, number: u32, stamp: Option<Stamp>, blank: bool, len: u64) {
        if number > NUMBER_MAX {
            return;
        }
        let known = stamp.unwrap_or(Stamp {
            generation: 0,
            salt: 0,
        });
        self.insert(log, number, known, len, false);
        // Nobody knows; as a large one it is never copied from, only removed once it is spent.
        self.spool.log(log).at(number).large = log == Log::Message;
        if stamp.is_none() && blank {
            if log == Log::State {
                self.spool.state.at(number).write_offset = 0;
            }
            return;
        }
        self.report.add(Damage::Header(log, number));
        if stamp.is_none() {
            self.spool.log(log).at(number).phase = Phase::LeftAlone;
        }
    }

    fn insert(&mut self, log: Log, number: u32, stamp: Stamp, len: u64, sound: bool) {
        let mut segment = Segment::new(stamp, len, Phase::Sealed);
        segment.suspect = !sound;
        self.spool.next_generation = self
            .spool
            .next_generation
            .max(stamp.generation.saturating_add(1));
        self.spool.log(log).insert(number, segment);
    }

    /// The disk gives neither copy of a file's header. Which life its groups are of is unknown, and
    /// those of an earlier one may be settled: it is looked at again, by [`Spool::adopt`].
    pub fn unheaded(&mut self, log: Log, number: u32, len: u64) {
        if number > NUMBER_MAX {
            return;
        }
        let nobody = Stamp {
            generation: 0,
            salt: 0,
        };
        self.insert(log, number, nobody, len, false);
        self.unreadable(log, number, 0);
        self.spool.log(log).at(number).phase = Phase::LeftAlone;
    }

    /// The disk does not give a block.
    pub fn unreadable(&mut self, log: Log, number: u32, offset: u32) {
        self.report.add(Damage::Unreadable(log, number, offset));
        if let Some(segment) = self.spool.log(log).get_mut(number) {
            segment.suspect = true;
            // What cannot be read now may be mail: the file stays until a life that can read it.
            segment.unread = true;
        }
    }

    /// A group of the state log.
    pub fn state_group(&mut self, number: u32, found: &Found<'_>) {
        let header = &found.header;
        self.note(header);
        let spool = &mut self.spool;
        spool.state.group_sequence = spool
            .state
            .group_sequence
            .max(header.sequence.saturating_add(1));
        if !found.whole {
            self.torn_states.push((header.sequence, number, found.at));
        }
        self.note_tail(Log::State, number, found, false);
        for record in found.states() {
            self.report.clean = record == StateRecord::Clean;
            match record {
                StateRecord::Settled {
                    sequence,
                    first,
                    count,
                    kind,
                } => {
                    self.spool.next_sequence =
                        self.spool.next_sequence.max(sequence.saturating_add(1));
                    self.replay.settled.push((sequence, first, count, kind));
                }
                StateRecord::Dead { first, count } => {
                    self.replay
                        .dead
                        .push((first, first.saturating_add(u64::from(count))));
                }
                StateRecord::Roster {
                    entry,
                    group,
                    generation,
                    segment,
                } => {
                    let mail = &mut self.spool.mail;
                    mail.group_sequence = mail.group_sequence.max(group.saturating_add(1));
                    let roster = self.rosters.entry(group).or_insert_with(|| LastGroup {
                        sequence: group,
                        generation,
                        segment,
                        ..LastGroup::default()
                    });
                    roster.ids.push(entry);
                }
                StateRecord::Void {
                    group,
                    generation,
                    segment,
                } => {
                    let mail = &mut self.spool.mail;
                    mail.group_sequence = mail.group_sequence.max(group.saturating_add(1));
                    self.voids.insert(Void {
                        group,
                        generation,
                        segment,
                    });
                }
                StateRecord::Doubt {
                    first,
                    end,
                    segment,
                } => self.doubt(segment, first, end),
                StateRecord::Clean => {}
            }
        }
    }

    /// An earlier life could not read a segment, and so not judge these groups there.
    fn doubt(&mut self, segment: u32, first: u64, end: u64) {
        let mail = &mut self.spool.mail;
        mail.group_sequence = mail.group_sequence.max(end);
        self.doubts.push(Doubt {
            segment,
            first,
            end,
            noted: true,
        });
    }

    fn is_doubted(&self, segment: u32, group: u64) -> bool {
        let mut doubts = self.doubts.iter();
        doubts.any(|doubt| doubt.is_about(segment, group))
    }

    /// Whether a later group vouches for this one: it was complete once.
    fn is_vouched(&self, segment: u32, group: u64) -> bool {
        group < self.proven && !self.is_doubted(segment, group)
    }

    fn note(&mut self, header: &GroupHeader) {
        self.report.groups += 1;
        self.proven = self.proven.max(header.proven);
        // Also where every group is recycled by now: sequences never start again.
        let (mail, state) = (&mut self.spool.mail, &mut self.spool.state);
        mail.group_sequence = mail.group_sequence.max(header.proven);
        state.group_sequence = state.group_sequence.max(header.state_proven);
        self.state_proven = self.state_proven.max(header.state_proven);
        self.spool.next_sequence = self.spool.next_sequence.max(header.next_sequence);
    }

    /// The state log is read; the message log follows.
    pub fn states_end(&mut self) {
        self.replay.sort();
    }

    /// Segments of a log in the order in which they are to be scanned.
    #[must_use]
    pub fn order(&self, log: Log) -> Vec<(u32, Stamp)> {
        let segments = match log {
            Log::Message => &self.spool.mail,
            Log::State => &self.spool.state,
        };
        let segments = segments.iter().filter(|(_, s)| s.phase == Phase::Sealed);
        let mut order: Vec<(u32, Stamp)> = segments.map(|(n, s)| (n, s.stamp)).collect();
        order.sort_by_key(|(_, stamp)| stamp.generation);
        order
    }

    /// A group of the message log.
    pub fn mail_group(&mut self, number: u32, found: &Found<'_>) {
        let header = &found.header;
        let sequence = header.sequence;
        self.note(header);
        self.spool.mail.group_sequence = self
            .spool
            .mail
            .group_sequence
            .max(sequence.saturating_add(1));
        if found.whole {
            add_run(&mut self.whole, sequence);
        } else {
            self.broken.push((number, sequence));
        }
        // A hole between two groups held groups. Without a hole, missing sequences are elsewhere:
        // large messages have segments of their own.
        if let Some((before, previous, end)) = self.previous
            && before == number
            && found.at > end
            && sequence.saturating_sub(previous) <= 1 << 16
        {
            self.holes
                .push((number, previous.saturating_add(1)..sequence));
        }
        self.previous = Some((number, sequence, found.at.saturating_add(header.total_len)));
        if let Some(roster) = found.roster()
            && !has_run(&self.whole, roster.sequence)
        {
            self.rosters.insert(roster.sequence, roster);
        }
        let misplaced = header.offset != found.at;
        let generation = header.stamp.generation;
        let void = self.voids.contains(&Void {
            group: sequence,
            generation,
            segment: number,
        }) || self.is_doubted(number, sequence);
        self.note_tail(Log::Message, number, found, void);
        let unproven = sequence >= self.proven || misplaced || void;
        let first = self.spool.mail.at(number).slots.len() as u32;
        for (record, offset, _) in found.messages() {
            let place = self.message(number, &record, offset);
            if let Some(place) = place
                && unproven
            {
                self.unproven.push(Unproven {
                    group: sequence,
                    misplaced,
                    void,
                    place,
                });
            }
        }
        let end = self.spool.mail.at(number).slots.len() as u32;
        if found.whole && self.last.as_ref().is_none_or(|last| last.0 < sequence) {
            self.last = Some((sequence, number, found.at, first..end));
        }
    }

    /// Takes a record into the index; its place when the message waits, there or elsewhere.
    fn message(&mut self, number: u32, record: &MessageRecord, offset: u32) -> Option<Place> {
        match self.spool.take_in(&mut self.replay, number, record, offset) {
            TakenIn::Waits(place) => Some(place),
            TakenIn::Ended => None,
            TakenIn::Damaged(slot) => {
                self.misfits.push((record.id, location(number, &slot)));
                None
            }
        }
    }

    /// Notes a group that nothing vouches for; `void` where it does not matter what others say.
    fn note_tail(&mut self, log: Log, number: u32, found: &Found<'_>, void: bool) {
        let header = &found.header;
        let proven = match log {
            Log::Message => self.proven,
            Log::State => self.state_proven,
        };
        let vouched = header.sequence < proven && !void;
        self.filled.insert((log, number));
        if found.whole && header.offset == found.at && !vouched {
            let at = found.at as usize;
            let range = at..at + header.total_len as usize;
            self.tail.push((log, number, range, header.sequence, void));
        }
    }

    /// What will be needed when what could not be read can be.
    fn keep_for_later(&mut self) {
        if self.spool.unread().is_empty() {
            return;
        }
        self.doubt_unread();
        // Numbers of groups that could not be read must not be given out again.
        self.spool.mail.group_sequence += GROUPS_SKIPPED;
        self.spool.state.group_sequence += GROUPS_SKIPPED;
        // What became of messages that are in the index is there.
        // A record in a segment that was not all read may yet turn out not to be whole.
        let known: HashSet<u64> = self
            .spool
            .mail
            .iter()
            .flat_map(|(_, s)| s.slots.iter().map(|slot| (slot, s.unread)))
            .filter(|(slot, unread)| match slot.state {
                SlotState::Live => !unread,
                SlotState::Dead => true,
                SlotState::Moved | SlotState::Torn | SlotState::Unsure => false,
            })
            .map(|(slot, _)| slot.sequence)
            .collect();
        let mut replay = std::mem::take(&mut self.replay);
        replay.settled.retain(|record| !known.contains(&record.0));
        replay.sort();
        self.spool.late = Some(Box::new(Late {
            replay,
            proven: self.proven,
            state_proven: self.state_proven,
            limit: self.spool.next_sequence,
            whole: std::mem::take(&mut self.whole),
            mentioned: std::mem::take(&mut self.mentioned),
        }));
    }

    /// Nothing that this life writes vouches for the last groups that it could not read.
    fn doubt_unread(&mut self) {
        let end = self.spool.mail.group_sequence + GROUPS_SKIPPED;
        self.doubts
            .sort_unstable_by_key(|doubt| (doubt.segment, doubt.first, doubt.end));
        self.doubts.dedup();
        for (log, segment) in self.spool.unread() {
            if log == Log::State {
                // As long as it is there, as one that is torn.
                let generation = self.spool.state.at(segment).stamp.generation;
                self.spool.state_torn.push(Void {
                    group: self.state_proven,
                    generation,
                    segment,
                });
                continue;
            }
            let about = |doubt: &Doubt| doubt.segment == segment;
            let (mut doubts, others): (Vec<Doubt>, _) = std::mem::take(&mut self.doubts)
                .into_iter()
                .partition(about);
            self.doubts = others;
            let mut new = Doubt {
                segment,
                first: self.proven,
                end,
                noted: false,
            };
            if doubts.len() >= DOUBTS_PER_SEGMENT {
                new.first = new.first.min(doubts[0].first);
                doubts.clear();
            }
            doubts.push(new);
            self.spool.chores.push_back(new.record());
            self.spool.doubts.extend(doubts);
        }
        // What can be read again stays doubted: a roster that cannot be read may name its groups.
        self.spool.doubts.append(&mut self.doubts);
    }

    /// Ends recovery.
    #[must_use]
    pub fn finish(mut self, free_bytes: u64, now: Mono) -> (Spool, RecoveryReport) {
        self.report_missing();
        // Ids that were given out and left no trace: skip more than a node hands out in the time
        // of one group, and more than what could not be read may hold.
        let unread = self.spool.mail.iter().filter(|(_, s)| s.unread);
        let unread: u64 = unread.map(|(_, segment)| segment.len).sum();
        self.spool.next_sequence += (1 << 16) + unread / RECORD_BYTES as u64;
        if let Some((sequence, segment, offset, slots)) = self.last.take() {
            let last = &mut self.spool.last;
            last.sequence = sequence;
            (last.segment, last.offset) = (segment, offset);
            let file = self.spool.mail.at(segment);
            last.generation = file.stamp.generation;
            let slots = &file.slots[slots.start as usize..slots.end as usize];
            last.ids.extend(
                slots
                    .iter()
                    .map(|s| roster_entry(s.sequence, u32::from(s.pending).max(1))),
            );
            self.spool.keep_tail();
            // The first group of this life follows no group that its roster could name.
            self.spool.last.ids.clear();
        }
        let dead = |s: &Segment| {
            s.slots
                .iter()
                .filter(|s| s.state != SlotState::Live)
                .count() as u64
        };
        self.report.settled_records = self.spool.mail.iter().map(|(_, s)| dead(s)).sum();
        self.report.queued_messages = self.spool.table.len() as u64;
        let numbers: Vec<u32> = self.spool.mail.iter().map(|(number, _)| number).collect();
        for number in numbers {
            self.spool.mail.at(number).slots.shrink_to_fit();
        }
        // A spare one of the life before: where no file can be made, there is no other.
        for number in self.empty(Log::State) {
            let segment = self.spool.state.at(number);
            if !segment.unread {
                segment.write_offset = 0;
            }
        }
        if self.report.is_damaged() {
            self.spool.damaged = self.spool.damaged.max(1);
        }
        self.keep_for_later();
        if !self.spool.chores.is_empty() {
            self.spool.due(now);
        }
        self.spool.space(free_bytes, now);
        (self.spool, self.report)
    }
}

fn location(segment: u32, slot: &Slot) -> Location {
    Location {
        segment,
        offset: slot.record,
        len: slot.len,
    }
}

/// Adds a number to runs of numbers.
pub(super) fn add_run(runs: &mut BTreeMap<u64, u64>, number: u64) {
    if has_run(runs, number) {
        return;
    }
    let end = number.saturating_add(1);
    let end = runs.remove(&end).unwrap_or(end);
    match runs.range_mut(..=number).next_back() {
        Some((_, run_end)) if *run_end == number => *run_end = end,
        _ => {
            runs.insert(number, end);
        }
    }
}

pub(super) fn has_run(runs: &BTreeMap<u64, u64>, number: u64) -> bool {
    runs.range(..=number)
        .next_back()
        .is_some_and(|(_, end)| number < *end)
}
