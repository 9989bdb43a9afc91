//! spool::late - what recovery could not read, looked at again.
//!
//! What: a segment with a block that the disk did not give at recovery is neither recycled nor
//! removed. When the driver can read all of it, [`Spool::adopt`] takes in what is new there.
//! Why this way: mail is late instead of hidden until the next start. What has been settled stays
//! settled: as long as a segment is unread, what the state log said at recovery is kept, every
//! checkpoint writes it down again, and messages that end are remembered beyond their segments.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::message::MessageId;
use crate::time::Mono;

use super::commit::slot_of;
use super::format::{
    GroupHeader, HeaderRead, Log, MessageRecord, SEGMENT_HEADER_BYTES, SegmentHeader, Stamp,
    StateRecord, checksum,
};
use super::index::{Place, Slot, SlotState};
use super::recover::{Found, Scan, Step, add_run, elect_stamp, has_run};
use super::replay::Replay;
use super::rescue::Served;
use super::segment::Phase;
use super::state::{Doubt, Spool, Void};
use super::types::SettlementKind;

/// What recovery knew.
#[derive(Debug)]
pub(super) struct Late {
    /// What the state log said, and who ended since.
    pub(super) replay: Replay,
    /// Groups of the message log below this were complete.
    pub(super) proven: u64,
    /// The same of the state log.
    pub(super) state_proven: u64,
    /// Messages at or above this sequence are of this life.
    pub(super) limit: u64,
    /// Complete groups of the message log, as runs.
    pub(super) whole: BTreeMap<u64, u64>,
    /// Groups of segments that could not be read, which no later group vouches for: where it turns
    /// out that they are not there, that is no damage.
    pub(super) mentioned: BTreeSet<Void>,
}

/// What a record of a message came to.
#[derive(Debug, Clone, Copy)]
pub(super) enum TakenIn {
    /// It waits; the place of this record.
    Waits(Place),
    /// It is settled, or was never acknowledged.
    Ended,
    /// It cannot be what was written.
    Damaged(Slot),
}

/// What was found in a segment that could not be read before.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Adopted {
    /// Messages that wait, and that nobody was told of.
    pub waiting: Vec<MessageId>,
    /// Pieces of damage.
    pub damaged: u64,
}

/// Hands every group of a segment that is all there to `each`.
fn walk<'a>(file: &'a [u8], stamp: Stamp, mut each: impl FnMut(&Found<'a>)) {
    let mut scan = Scan::new(stamp);
    scan.grant(0..file.len());
    loop {
        match scan.step(file) {
            // All was granted; a range beyond the file ends the walk.
            Step::Need(_) | Step::End => return,
            Step::Group(found) => each(&found),
        }
    }
}

impl Spool {
    /// Segments that recovery could not read all of, the state log's first.
    #[must_use]
    pub fn unread(&self) -> Vec<(Log, u32)> {
        let of = |log: Log, segments: &super::segment::Segments| -> Vec<(Log, u32)> {
            let unread = segments.iter().filter(|(_, s)| s.unread);
            unread.map(|(number, _)| (log, number)).collect()
        };
        let mut all = of(Log::State, &self.state);
        all.extend(of(Log::Message, &self.mail));
        all
    }

    /// Takes a record into the index.
    pub(super) fn take_in(
        &mut self,
        replay: &mut Replay,
        number: u32,
        record: &MessageRecord,
        offset: u32,
    ) -> TakenIn {
        let sequence = record.id.sequence();
        let mut slot = slot_of(record, offset);
        let shard = self.config.shard;
        let segment = self.mail.at(number);
        let end = u64::from(record.content_offset) + u64::from(record.content_len);
        let fits = end <= segment.len
            && record.recipients > 0
            && record.recipients <= u32::from(u16::MAX)
            && record.id.shard() == shard;
        self.next_sequence = self.next_sequence.max(sequence.saturating_add(1));
        let dead = replay.is_dead(sequence);
        if dead {
            slot.state = SlotState::Dead;
            self.mail.at(number).push(slot);
            return TakenIn::Ended;
        }
        if !fits {
            // Another record of the message may be whole: no tombstone but the one of the last.
            slot.state = SlotState::Unsure;
            self.mail.at(number).push(slot);
            self.damaged += 1;
            return TakenIn::Damaged(slot);
        }
        let waits = self.place(sequence).is_some();
        if waits {
            // A copy forward whose original is still there: either will do, if it is whole.
            slot.state = SlotState::Moved;
        }
        let at = self.mail.at(number).push(slot);
        let place = Place {
            segment: number,
            slot: at,
        };
        if waits {
            return TakenIn::Waits(place);
        }
        self.admit(sequence, place);
        for at in replay.of(sequence) {
            let (_, first, count, kind) = replay.settled[at];
            let end = first.saturating_add(count).min(record.recipients);
            for recipient in first..end {
                self.replay(sequence, recipient, kind);
            }
        }
        self.place(sequence).map_or(TakenIn::Ended, TakenIn::Waits)
    }

    /// Slots are forgotten, because their records cannot be found any more. While something is
    /// unread another record of their messages may be there.
    pub(super) fn outlive(&mut self, slots: &[Slot]) {
        let Some(late) = &mut self.late else { return };
        let limit = late.limit;
        let ended = slots
            .iter()
            .filter(|slot| slot.state == SlotState::Dead && slot.sequence < limit);
        let ended: Vec<u64> = ended.map(|slot| slot.sequence).collect();
        if ended.is_empty() {
            return;
        }
        let runs = ended.iter().map(|sequence| (*sequence, sequence + 1));
        late.replay.dead.extend(runs);
        late.replay.sort();
        if let Some(checkpoint) = &mut self.checkpoint {
            // It began before, and finds these slots no more.
            checkpoint.goes_on();
            self.write_down_dead(ended);
            self.due(Mono(0));
        }
    }

    /// What must be in a checkpoint for the sake of what is unread.
    pub(super) fn write_down_late(&mut self) {
        let Some(late) = &self.late else { return };
        for (first, end) in &late.replay.dead {
            let mut at = *first;
            while at < *end {
                let count = u32::try_from(end - at).unwrap_or(u32::MAX);
                self.chores
                    .push_back(StateRecord::Dead { first: at, count });
                at += u64::from(count);
            }
        }
        for (sequence, first, count, kind) in late.replay.settled.iter().copied() {
            self.chores.push_back(StateRecord::Settled {
                sequence,
                first,
                count,
                kind,
            });
        }
    }

    /// The stamp of a segment that can be read now; `None` when it stays unknown.
    fn late_stamp(&mut self, log: Log, number: u32, file: &[u8]) -> Option<Stamp> {
        let shard = self.config.shard;
        let segment = self.log(log).get_mut(number)?;
        let start = &file[..file.len().min(SEGMENT_HEADER_BYTES)];
        if let HeaderRead::Known(header) = SegmentHeader::decode(start)
            && (header.log, header.shard) == (log, shard)
        {
            segment.large = header.large;
            return Some(header.stamp);
        }
        if segment.phase != Phase::LeftAlone {
            return Some(segment.stamp);
        }
        segment.large = log == Log::Message;
        elect_stamp(&file[start.len()..])
    }

    /// Groups in a segment that nothing vouches for. Before [`Spool::adopt`] they must be written
    /// again, as they are, where they are: see [`super::recover::Recovery::rewrites`].
    pub fn doubtful(&mut self, log: Log, number: u32, file: &[u8]) -> Vec<Range<usize>> {
        let mut out = Vec::new();
        let proven = self.late.as_ref().map_or(0, |late| match log {
            Log::Message => late.proven,
            Log::State => late.state_proven,
        });
        let Some(stamp) = self.late_stamp(log, number, file) else {
            return out;
        };
        walk(file, stamp, |found| {
            let header = &found.header;
            let group = header.sequence;
            let void = log == Log::Message
                && (self.is_void(number, stamp, group) || self.is_doubted(number, group));
            let vouched = group < proven && !void;
            if found.whole && header.offset == found.at && !vouched {
                let at = found.at as usize;
                out.push(at..at + header.total_len as usize);
            }
        });
        out
    }

    /// Takes in what is in a segment that recovery could not read, now that all of `file` can be.
    pub fn adopt(&mut self, log: Log, number: u32, file: &[u8], now: Mono) -> Adopted {
        let mut out = Adopted::default();
        let unread = self.log(log).get(number).is_some_and(|s| s.unread);
        let stamp = self.late_stamp(log, number, file);
        let (true, Some(mut late)) = (unread, self.late.take()) else {
            return out;
        };
        let segment = self.log(log).at(number);
        segment.unread = false;
        match stamp {
            Some(stamp) => {
                segment.stamp = stamp;
                segment.phase = Phase::Sealed;
                let next = stamp.generation.saturating_add(1);
                self.next_generation = self.next_generation.max(next);
                match log {
                    Log::Message => self.adopt_mail(&mut late, number, file, stamp, &mut out),
                    Log::State => self.adopt_state(&mut late, number, file, stamp, &mut out),
                }
            }
            // A file that a crash left half made holds nothing; anything else is evidence.
            None if file.iter().all(|byte| *byte == 0) => {
                segment.phase = Phase::Sealed;
                segment.write_offset = 0;
            }
            None => out.damaged += 1,
        }
        self.judge_mentioned(&mut late);
        self.damaged += out.damaged;
        if self.unread().is_empty() {
            // Until then a roster that cannot be read may name groups of what can.
            self.doubts.clear();
        } else {
            self.late = Some(late);
        }
        if !self.chores.is_empty() {
            self.due(now);
        }
        out
    }

    fn is_doubted(&self, segment: u32, group: u64) -> bool {
        let mut doubts = self.doubts.iter();
        doubts.any(|doubt| doubt.is_about(segment, group))
    }

    /// Whether a group of this life of a segment is known not to be whole.
    fn is_void(&self, segment: u32, stamp: Stamp, group: u64) -> bool {
        self.voids.contains(&Void {
            group,
            generation: stamp.generation,
            segment,
        })
    }

    /// Notes groups that are not there although they could be read now: a crash tore them.
    fn judge_mentioned(&mut self, late: &mut Late) {
        let mentioned = std::mem::take(&mut late.mentioned);
        for group in mentioned {
            let segment = self.mail.get(group.segment);
            if segment.is_some_and(|segment| segment.unread) {
                late.mentioned.insert(group);
                continue;
            }
            let current = segment.is_some_and(|s| s.stamp.generation == group.generation);
            if current && !has_run(&late.whole, group.group) {
                self.void(group.segment, group.group);
            }
        }
    }

    /// What a group of the message log says of others.
    fn mention(
        &self,
        late: &mut Late,
        number: u32,
        found: &Found<'_>,
        previous: Option<(u64, u32)>,
    ) {
        let (sequence, generation) = (found.header.sequence, found.header.stamp.generation);
        if found.whole {
            add_run(&mut late.whole, sequence);
        }
        let roster = found.roster();
        let mut groups: Vec<Void> = Vec::new();
        groups.extend(roster.map(|roster| Void {
            group: roster.sequence,
            generation: roster.generation,
            segment: roster.segment,
        }));
        // A hole between two groups held groups.
        if let Some((before, end)) = previous
            && found.at > end
            && sequence.saturating_sub(before) <= 1 << 16
        {
            groups.extend((before.saturating_add(1)..sequence).map(|group| Void {
                group,
                generation,
                segment: number,
            }));
        }
        let doubtful = |group: &Void| {
            group.group >= late.proven || self.is_doubted(group.segment, group.group)
        };
        groups.retain(doubtful);
        late.mentioned.extend(groups);
    }

    fn adopt_mail(
        &mut self,
        late: &mut Late,
        number: u32,
        file: &[u8],
        stamp: Stamp,
        out: &mut Adopted,
    ) {
        let slots = &self.mail.at(number).slots;
        let known: BTreeMap<u32, u32> = slots
            .iter()
            .zip(0..)
            .map(|(s, at)| (s.record, at))
            .collect();
        self.remember_ended(late, &known, file, stamp);
        let mut previous = None;
        walk(file, stamp, |found| {
            let header = &found.header;
            let (sequence, misplaced) = (header.sequence, header.offset != found.at);
            self.mail.group_sequence = self.mail.group_sequence.max(sequence.saturating_add(1));
            let void = self.is_void(number, stamp, sequence);
            self.mention(late, number, found, previous);
            previous = Some((sequence, found.at.saturating_add(header.total_len)));
            let vouched = sequence < late.proven && !void && !self.is_doubted(number, sequence);
            if !found.whole && vouched {
                out.damaged += 1;
            }
            let mut torn = !found.whole;
            for (record, offset, _) in found.messages() {
                let place = match known.get(&offset) {
                    Some(slot) => Place {
                        segment: number,
                        slot: *slot,
                    },
                    None => match self.take_in(&mut late.replay, number, &record, offset) {
                        TakenIn::Waits(place) => place,
                        TakenIn::Ended => continue,
                        TakenIn::Damaged(_) => {
                            out.damaged += 1;
                            continue;
                        }
                    },
                };
                if (!vouched || misplaced) && !is_whole(&record, file) {
                    torn = true;
                    out.damaged += u64::from(vouched);
                    if self.give_up(place, record.id.sequence()) == Served::Unseen {
                        out.waiting.push(record.id);
                    }
                    continue;
                }
                let live = self.slot(place).is_some_and(|s| s.state == SlotState::Live);
                if live && !known.contains_key(&offset) {
                    out.waiting.push(record.id);
                }
            }
            if torn && !void {
                self.void(number, sequence);
            }
        });
        if let Some(checkpoint) = &mut self.checkpoint {
            // It may have begun before, and these records are found from now on.
            checkpoint.also(number);
        }
    }

    /// Messages with a record in `file` that ended in this life, while another record of theirs
    /// counted: they stay ended.
    fn remember_ended(
        &self,
        late: &mut Late,
        known: &BTreeMap<u32, u32>,
        file: &[u8],
        stamp: Stamp,
    ) {
        let mut new = BTreeSet::new();
        walk(file, stamp, |found| {
            let records = found.messages();
            let records = records.filter(|(_, offset, _)| !known.contains_key(offset));
            new.extend(records.map(|(record, _, _)| record.id.sequence()));
        });
        let slots = self.mail.iter().flat_map(|(_, segment)| &segment.slots);
        let ended = slots.filter(|s| s.state == SlotState::Dead && new.contains(&s.sequence));
        let ended: Vec<(u64, u64)> = ended.map(|s| (s.sequence, s.sequence + 1)).collect();
        late.replay.dead.extend(ended);
        late.replay.sort();
    }

    /// A record that is not whole, of a group that was never known to be: another record of the
    /// message counts from now on, or it ends.
    fn give_up(&mut self, place: Place, sequence: u64) -> Served {
        let Some(slot) = self.slot(place).copied() else {
            return Served::No;
        };
        if slot.state == SlotState::Live {
            let others = self.other_records(MessageId::new(self.config.shard, sequence));
            let unread = |place: &Place| self.mail.get(place.segment).is_none_or(|s| s.unread);
            let others = others.into_iter().map(|(other, _)| other);
            if let Some(other) = others.min_by_key(unread) {
                return self.count_instead(place, slot, other, SlotState::Torn);
            }
        }
        self.end_unproven(place, sequence);
        Served::No
    }

    /// A record that is not whole, of a group that was never known to be, and there is no other of
    /// the message: it was not acknowledged, unless it is a copy. So while another one may be where
    /// nothing could be read, the message is not buried.
    pub(super) fn end_unproven(&mut self, place: Place, sequence: u64) {
        let Some(slot) = self.slot(place).copied() else {
            return;
        };
        match slot.state {
            SlotState::Moved => {
                self.mail.at(place.segment).slots[place.slot as usize].state = SlotState::Torn;
            }
            SlotState::Live if self.mail.count(|segment| segment.unread) > 0 => {
                self.progress.remove(&sequence);
                self.forget(sequence);
                self.mail
                    .at(place.segment)
                    .retire(place.slot, SlotState::Unsure);
            }
            SlotState::Live => self.bury(place, sequence),
            SlotState::Dead | SlotState::Torn | SlotState::Unsure => {}
        }
    }

    /// A waiting message ends without a settlement.
    fn bury(&mut self, place: Place, sequence: u64) {
        self.progress.remove(&sequence);
        self.forget(sequence);
        self.mail
            .at(place.segment)
            .retire(place.slot, SlotState::Dead);
        self.chores.push_back(StateRecord::Dead {
            first: sequence,
            count: 1,
        });
    }

    fn adopt_state(
        &mut self,
        late: &mut Late,
        number: u32,
        file: &[u8],
        stamp: Stamp,
        out: &mut Adopted,
    ) {
        let before = late.replay.dead.len();
        self.state_torn.retain(|torn| torn.segment != number);
        let mut settled: Vec<(u64, u32, u32, SettlementKind)> = Vec::new();
        walk(file, stamp, |found| {
            let group = found.header.sequence;
            self.state.group_sequence = self.state.group_sequence.max(group.saturating_add(1));
            if !found.whole && !self.note_torn_state(late, number, &found.header) {
                out.damaged += 1;
            }
            for record in found.states() {
                match record {
                    StateRecord::Settled {
                        sequence,
                        first,
                        count,
                        kind,
                    } => settled.push((sequence, first, count, kind)),
                    StateRecord::Dead { first, count } => {
                        let end = first.saturating_add(u64::from(count));
                        late.replay.dead.push((first, end));
                    }
                    StateRecord::Void {
                        group,
                        generation,
                        segment,
                    } => self.voids.push(Void {
                        group,
                        generation,
                        segment,
                    }),
                    StateRecord::Roster {
                        group,
                        generation,
                        segment,
                        ..
                    } if group >= late.proven || self.is_doubted(segment, group) => {
                        late.mentioned.insert(Void {
                            group,
                            generation,
                            segment,
                        });
                    }
                    StateRecord::Doubt {
                        first,
                        end,
                        segment,
                    } => self.doubt_late(segment, first, end),
                    StateRecord::Roster { .. } | StateRecord::Clean => {}
                }
            }
        });
        self.replay_late(&settled);
        let new_dead = late.replay.dead.len() > before;
        late.replay.settled.extend(settled);
        late.replay.sort();
        if new_dead {
            self.end_all(&late.replay, late.limit);
        }
    }

    /// A state group is not whole: whether a crash tore it, as nobody vouches for it. Then it is
    /// noted.
    fn note_torn_state(&mut self, late: &Late, segment: u32, header: &GroupHeader) -> bool {
        let torn = header.sequence >= late.state_proven;
        if torn {
            self.state_torn.push(Void {
                group: header.sequence,
                generation: header.stamp.generation,
                segment,
            });
        }
        torn
    }

    /// What an earlier life doubted, and recovery could not know.
    fn doubt_late(&mut self, segment: u32, first: u64, end: u64) {
        self.mail.group_sequence = self.mail.group_sequence.max(end);
        let same = |doubt: &Doubt| (doubt.segment, doubt.first, doubt.end) == (segment, first, end);
        if !self.doubts.iter().any(same) {
            self.doubts.push(Doubt {
                segment,
                first,
                end,
                noted: true,
            });
        }
    }

    /// Applies settlements to the messages that are known already.
    fn replay_late(&mut self, settled: &[(u64, u32, u32, SettlementKind)]) {
        for (sequence, first, count, kind) in settled.iter().copied() {
            let Some(place) = self.place(sequence) else {
                continue;
            };
            let end = first
                .saturating_add(count)
                .min(self.total_recipients(place));
            for recipient in first..end {
                self.replay(sequence, recipient, kind);
            }
        }
    }

    /// Ends every waiting message of an earlier life that `replay` says is dead.
    fn end_all(&mut self, replay: &Replay, limit: u64) {
        let mut ended = Vec::new();
        for (segment, s) in self.mail.iter() {
            for (slot, at) in s.slots.iter().zip(0..) {
                let old = slot.state == SlotState::Live && slot.sequence < limit;
                if old && replay.is_dead(slot.sequence) {
                    ended.push((Place { segment, slot: at }, slot.sequence));
                }
            }
        }
        for (place, sequence) in ended {
            self.bury(place, sequence);
        }
    }
}

fn is_whole(record: &MessageRecord, file: &[u8]) -> bool {
    let start = record.content_offset as usize;
    let content = start..start.saturating_add(record.content_len as usize);
    file.get(content)
        .is_some_and(|content| checksum(content) == record.content_sum)
}
