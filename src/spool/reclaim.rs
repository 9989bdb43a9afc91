//! spool::reclaim - getting space back without bringing settled mail back.
//!
//! What: spent segments are recycled or removed; stragglers are copied forward when too little of
//! the disk is live; the state log is rewritten by a checkpoint.
//!
//! The rule that keeps the dead dead: a settlement may be forgotten only when no record of its
//! message can be found any more, that is after the segment's new header, or its removal, is
//! durable. The slots of a segment, dead ones included, live exactly that long, and a checkpoint
//! writes down every dead slot there is.

use std::time::Duration;

use bytes::Bytes;

use crate::limits;
use crate::message::MessageId;
use crate::time::{Mono, Wall};

use super::commit::{Origin, Pending};
use super::format::{Log, StateRecord};
use super::index::{Change, Place, Slot, SlotState, from_seconds};
use super::segment::Phase;
use super::state::{Action, Doubt, Outcome, Spool, push_roster};
use super::types::{ReadError, Settlement, SettlementKind};

/// Slots that one step of a checkpoint looks at: about 100 us of work.
const CHECKPOINT_SLOTS: usize = 16_384;

/// Copying forward.
#[derive(Debug, Default)]
pub(super) struct Reclaim {
    /// Recovery's messages are with the queue: segments may be emptied.
    pub(super) enabled: bool,
    /// A read failed; wait for the next look at the disk.
    pub(super) paused: bool,
    victim: Option<u32>,
    next_slot: usize,
    /// Messages of the batch that are not durable elsewhere yet.
    copies_in_flight: u32,
    /// Those of them that are being read.
    reads_in_flight: u32,
}

/// A rewrite of the state log.
#[derive(Debug)]
pub(super) struct Checkpoint {
    /// State segments that it makes superfluous.
    old: Vec<u32>,
    /// Message segments still to be written down, and how far the last of them is.
    segments: Vec<u32>,
    next_slot: usize,
    /// Once all is handed to groups: the state group that the last record is before.
    emitted: Option<u64>,
}

impl Checkpoint {
    /// Records of it may have to be written again: the group that will be the last is not known.
    pub(super) fn goes_on(&mut self) {
        self.emitted = None;
    }

    /// The slots of this segment are to be written down, too.
    pub(super) fn also(&mut self, number: u32) {
        if !self.segments.contains(&number) {
            self.segments.insert(0, number);
        }
    }
}

impl Spool {
    /// Tells that whoever took recovery's messages over has them all: segments may be emptied now.
    pub fn enable_reclaim(&mut self) {
        self.reclaim.enabled = true;
        self.loading = None;
    }

    pub(super) fn advance_reclaim(&mut self) {
        self.drop_dead_copies();
        self.release_spent();
        self.shed_free();
        if self.reclaim.enabled && !self.reclaim.paused && !self.closing {
            self.copy_forward();
        }
    }

    /// What failed before may be tried again.
    pub(super) fn unstick(&mut self) {
        let numbers: Vec<u32> = self
            .mail
            .iter()
            .filter(|(_, s)| s.stuck)
            .map(|(n, _)| n)
            .collect();
        for number in numbers {
            self.mail.at(number).stuck = false;
        }
        let numbers: Vec<u32> = self
            .state
            .iter()
            .filter(|(_, s)| s.stuck)
            .map(|(n, _)| n)
            .collect();
        for number in numbers {
            self.state.at(number).stuck = false;
        }
    }

    fn release_spent(&mut self) {
        while let Some(number) = self.mail.find(|s| s.is_spent() && !s.stuck) {
            self.mail.at(number).phase = Phase::Releasing;
            self.actions.push_back(Action::Release { segment: number });
        }
        // A state segment is spent when a checkpoint says so; one whose header failed, or in which
        // recovery found nothing, holds nothing.
        while let Some(number) = self
            .state
            .find(|s| s.is_spent() && !s.stuck && s.write_offset == 0)
        {
            self.recycle_state(number);
        }
    }

    /// Free segments worth keeping: an eighth of the rest, and those of the configuration. Below
    /// the low-water mark only the one that stragglers need.
    fn free_kept(&self) -> u32 {
        if self.free_bytes < self.config.low_water_bytes {
            return 1;
        }
        self.config.free_kept + self.mail.count(|s| s.phase == Phase::Sealed) / 8
    }

    fn shed_free(&mut self) {
        let kept = self.free_kept();
        while self.mail.count(|s| s.phase == Phase::Free && !s.large) > kept
            && let Some(number) = self.mail.find(|s| s.phase == Phase::Free && !s.large)
        {
            self.drop_file(Log::Message, number);
        }
    }

    fn drop_file(&mut self, log: Log, number: u32) {
        self.log(log).at(number).phase = Phase::Removing;
        self.actions.push_back(Action::Remove {
            log,
            segment: number,
        });
    }

    /// Answers [`Action::Release`].
    pub fn released(&mut self, number: u32) {
        let kept = self.free_kept();
        let free = self.mail.count(|s| s.phase == Phase::Free && !s.large);
        let segment = self.mail.at(number);
        assert_eq!(segment.phase, Phase::Releasing, "released once");
        let odd = segment.large || segment.suspect || segment.len != self.config.segment_bytes;
        if odd || free >= kept {
            self.drop_file(Log::Message, number);
        } else {
            self.mail.at(number).phase = Phase::Sealed;
            self.restamp(Log::Message, number);
        }
    }

    /// How long the disk is left to others after a file was removed, by its size. Segments of
    /// settlements are small: what each of many short lives leaves must be gone before the next
    /// starts, which reads it all (200 kills within two minutes left 1.6 GB).
    #[must_use]
    pub fn removing_pause(&self, log: Log, number: u32) -> Duration {
        let segment = match log {
            Log::Message => self.mail.get(number),
            Log::State => self.state.get(number),
        };
        let full = limits::SPOOL_SEGMENT_BYTES;
        let len = segment.map_or(full, |segment| segment.len.min(full));
        limits::SPOOL_REMOVE_PAUSE.mul_f64(len as f64 / full as f64)
    }

    /// Answers [`Action::Remove`].
    pub fn removed(&mut self, log: Log, number: u32, outcome: Outcome) {
        let segment = self.log(log).at(number);
        assert_eq!(segment.phase, Phase::Removing, "removed once");
        if outcome == Outcome::Done {
            let (len, slots) = (segment.len, std::mem::take(&mut segment.slots));
            self.free_bytes = self.free_bytes.saturating_add(len);
            self.log(log).remove(number);
            self.outlive(&slots);
        } else {
            // The file may be there still, and with it its records: the tombstones stay.
            segment.suspect = true;
            segment.stuck = true;
            segment.phase = Phase::Sealed;
            if log == Log::State {
                segment.write_offset = 0;
            }
        }
    }

    // ---- copying forward ----

    fn copy_forward(&mut self) {
        if self.reclaim.victim.is_none() {
            self.reclaim.victim = self.choose_victim();
            self.reclaim.next_slot = 0;
        }
        let Some(number) = self.reclaim.victim else {
            return;
        };
        if self.mail_failure.is_some() || self.reclaim.copies_in_flight > 0 {
            // Batch after batch: one that trickles would spend a block on each message.
            return;
        }
        let mut room = (limits::SPOOL_GROUP_BYTES_MAX as u64).min(self.config.segment_bytes / 4);
        while self.reclaim.copies_in_flight < limits::SPOOL_COPIES_IN_FLIGHT_MAX && room > 0 {
            let Some(segment) = self.mail.get(number).filter(|s| s.phase == Phase::Sealed) else {
                self.reclaim.victim = None;
                return;
            };
            let from = self.reclaim.next_slot;
            let live = segment
                .slots
                .iter()
                .skip(from)
                .position(|s| s.state == SlotState::Live);
            let Some(at) = live.map(|skipped| from + skipped) else {
                if self.reclaim.copies_in_flight == 0 && segment.live_slots > 0 {
                    // What is left cannot be moved now.
                    self.mail.at(number).stuck = true;
                }
                if self.reclaim.copies_in_flight == 0 {
                    self.reclaim.victim = None;
                }
                return;
            };
            self.reclaim.next_slot = at + 1;
            if segment.slots[at].bytes() > self.config.segment_bytes / 2 {
                // From a time of larger segments: it leaves when it is delivered.
                continue;
            }
            room = room.saturating_sub(segment.slots[at].bytes());
            self.reclaim.copies_in_flight += 1;
            self.reclaim.reads_in_flight += 1;
            let id = MessageId::new(self.config.shard, segment.slots[at].sequence);
            let from = Place {
                segment: number,
                slot: at as u32,
            };
            self.mail.at(number).copying += 1;
            self.actions.push_back(Action::Copy { id, from });
        }
    }

    /// The sealed segment with the least live bytes, when sealed segments hold more than 1.5 times
    /// what is live, and at most nine sixteenths of it is live: while there is none, sealed
    /// segments hold less than 1.78 times what is live, and with an eighth of free ones less than
    /// twice. Batches fill new segments far better than nine sixteenths, so that copying always
    /// gains and ends.
    fn choose_victim(&self) -> Option<u32> {
        let shared = |s: &&super::segment::Segment| s.phase == Phase::Sealed && !s.large;
        let sealed: u64 = self
            .mail
            .iter()
            .map(|(_, s)| s)
            .filter(shared)
            .map(|s| s.len)
            .sum();
        let live: u64 = self
            .mail
            .iter()
            .map(|(_, s)| s)
            .filter(shared)
            .map(|s| s.live_bytes)
            .sum();
        if sealed <= live + live / 2 + 2 * self.config.segment_bytes {
            return None;
        }
        self.mail
            .iter()
            .filter(|(_, s)| {
                shared(s) && s.in_flight == 0 && !s.stuck && !s.unread && s.live_slots > 0
            })
            .filter(|(_, s)| s.live_bytes <= s.len / 16 * 9)
            .min_by_key(|(_, s)| s.live_bytes.saturating_mul(1024) / s.len.max(1))
            .map(|(number, _)| number)
    }

    /// The record that a copy action is about; `None` when it died meanwhile.
    #[must_use]
    pub fn copy_source(&self, from: Place) -> Option<super::state::Extent> {
        let segment = self.mail.get(from.segment)?;
        let slot = segment.slots.get(from.slot as usize)?;
        (slot.state == SlotState::Live).then(|| self.extent(segment, from))
    }

    /// Answers [`Action::Copy`] with the verified record, or why there is none.
    pub fn copied(
        &mut self,
        id: MessageId,
        from: Place,
        read: Result<(&[u8], Bytes, Wall), ReadError>,
        now: Mono,
    ) {
        assert!(self.reclaim.reads_in_flight > 0, "a copy is read once");
        self.reclaim.reads_in_flight -= 1;
        if self.original(from, id.sequence()).is_none() {
            self.copy_ended(from);
            return;
        }
        match read {
            Ok((envelope, content, received_at)) => {
                let recipients = self.total_recipients(from);
                self.copies.push_back(Pending {
                    id,
                    origin: Origin::Copy(from),
                    received_at,
                    recipients,
                    envelope: envelope.to_vec(),
                    content,
                });
            }
            Err(ReadError::Damaged) => {
                self.copy_ended(from);
                self.condemn(id, now);
            }
            Err(ReadError::Io | ReadError::Gone) => {
                self.copy_ended(from);
                self.mail.at(from.segment).stuck = true;
                self.reclaim.victim = None;
                self.reclaim.paused = true;
            }
        }
    }

    /// Whether a batch of copies is complete and may be written.
    pub(super) fn copies_are_ready(&self) -> bool {
        self.reclaim.reads_in_flight == 0 && !self.copies.is_empty()
    }

    /// The slot that a message is copied from, as long as the message lives there.
    fn original(&self, from: Place, sequence: u64) -> Option<Slot> {
        let slot = self.slot(from).copied();
        slot.filter(|slot| slot.state == SlotState::Live && slot.sequence == sequence)
    }

    fn copy_ended(&mut self, from: Place) {
        assert!(self.reclaim.copies_in_flight > 0, "a copy ends once");
        self.reclaim.copies_in_flight -= 1;
        self.mail.at(from.segment).copying -= 1;
    }

    /// Gives up copies that wait to be written and whose messages have died: they would keep a
    /// spent segment from being released, perhaps the one that they wait for.
    fn drop_dead_copies(&mut self) {
        if self.copies.is_empty() {
            return;
        }
        for copy in std::mem::take(&mut self.copies) {
            let Origin::Copy(from) = copy.origin else {
                unreachable!("only copies are among copies");
            };
            match self.original(from, copy.id.sequence()) {
                Some(_) => self.copies.push_back(copy),
                None => self.copy_ended(from),
            }
        }
    }

    pub(super) fn total_recipients(&self, place: Place) -> u32 {
        let Some(slot) = self.slot(place) else {
            return 0;
        };
        match self.progress.get(&slot.sequence) {
            Some(progress) => progress.total(),
            None => u32::from(slot.pending),
        }
    }

    /// A message that does not match its checksum: its recipients are settled as damaged.
    pub fn condemn(&mut self, id: MessageId, now: Mono) {
        let Some(place) = self.place(id.sequence()) else {
            return;
        };
        self.damaged += 1;
        let total = self.total_recipients(place);
        for recipient in 0..total {
            self.settle(
                Settlement {
                    id,
                    recipient,
                    kind: SettlementKind::Damaged,
                },
                now,
            );
        }
    }

    pub(super) fn copy_written(&mut self, number: u32, from: Place, slot: Slot, trusted: bool) {
        self.copy_ended(from);
        if let Some(checkpoint) = &mut self.checkpoint {
            // The running checkpoint may miss it on either side; it comes to it again in the end.
            // Also one that died meanwhile: its record is found here once its original is gone.
            checkpoint.also(number);
        }
        let (Some(old), true) = (self.original(from, slot.sequence), trusted) else {
            // Died meanwhile, or not trusted: the copy does not count. If the message lives, its
            // original does.
            let state = if trusted {
                SlotState::Moved
            } else {
                SlotState::Torn
            };
            self.mail.at(number).push(Slot { state, ..slot });
            return;
        };
        self.mail
            .at(from.segment)
            .retire(from.slot, SlotState::Moved);
        let (pending, next, attempts) = (old.pending, old.next, old.attempts);
        let new = Slot {
            pending,
            next,
            attempts,
            ..slot
        };
        let at = self.mail.at(number).push(new);
        self.admit(
            slot.sequence,
            Place {
                segment: number,
                slot: at,
            },
        );
    }

    // ---- checkpoint of the state log ----

    pub(super) fn advance_checkpoint(&mut self, now: Mono) {
        if self.checkpoint.is_none() {
            self.begin_checkpoint();
            if self.checkpoint.is_some() {
                self.due(now);
            }
        }
        let Some(checkpoint) = &self.checkpoint else {
            return;
        };
        // What is still in flight to the old segments is not in the index yet.
        let settled = checkpoint
            .old
            .iter()
            .all(|number| self.state.get(*number).is_none_or(|s| s.in_flight == 0));
        if !settled || !self.chores.is_empty() {
            return;
        }
        self.step_checkpoint(now);
        self.end_checkpoint();
    }

    fn begin_checkpoint(&mut self) {
        let len = self.config.state_segment_bytes;
        let used: u64 = self
            .state
            .iter()
            .filter(|(_, s)| s.phase == Phase::Sealed)
            .map(|(_, s)| s.len)
            .sum();
        // Where no file can be made, what is sealed is all that can become free: what it says goes
        // to what is open.
        let free = self.state.count(|s| s.phase == Phase::Free);
        let cramped = !self.may_create_state()
            && free < limits::SPOOL_SPARE_SEGMENTS
            && used > self.checkpoint_bytes;
        let grown = used > (4 * len).max(2 * self.checkpoint_bytes + 2 * len);
        if self.closing || !(grown || cramped) {
            return;
        }
        if !cramped {
            self.state.seal_active();
        }
        let old = self
            .state
            .iter()
            .filter(|(_, s)| s.phase == Phase::Sealed && !s.stuck && !s.unread);
        let old = old.map(|(number, _)| number).collect();
        let segments = self.mail.iter().filter(|(_, s)| !s.slots.is_empty());
        let segments = segments.map(|(number, _)| number).collect();
        self.push_roster();
        let mut voids = std::mem::take(&mut self.voids);
        voids.retain(|void| self.may_hold(void));
        self.voids = voids;
        let Self {
            voids,
            tails,
            mail,
            chores,
            ..
        } = self;
        tails.retain(|t| {
            mail.get(t.segment)
                .is_some_and(|s| s.stamp.generation == t.generation)
        });
        tails.iter().for_each(|tail| push_roster(chores, tail));
        chores.extend(voids.iter().map(|v| StateRecord::Void {
            group: v.group,
            generation: v.generation,
            segment: v.segment,
        }));
        self.chores.extend(self.doubts.iter().map(Doubt::record));
        self.write_down_late();
        self.checkpoint = Some(Checkpoint {
            old,
            segments,
            next_slot: 0,
            emitted: None,
        });
    }

    /// Writes down slots until a group is full or enough was looked at.
    fn step_checkpoint(&mut self, now: Mono) {
        let mut looked_at = 0;
        while looked_at < CHECKPOINT_SLOTS
            && self.chores.len() < limits::SPOOL_SETTLEMENTS_PER_GROUP_MAX
        {
            let Some(checkpoint) = &mut self.checkpoint else {
                return;
            };
            let Some(number) = checkpoint.segments.last().copied() else {
                return;
            };
            checkpoint.emitted = None;
            let from = checkpoint.next_slot;
            let most = CHECKPOINT_SLOTS - looked_at;
            let slots = self.mail.get(number).map_or(&[][..], |s| &s.slots);
            let chunk: Vec<Slot> = slots.iter().skip(from).take(most).copied().collect();
            if chunk.len() < most {
                checkpoint.segments.pop();
                checkpoint.next_slot = 0;
            } else {
                checkpoint.next_slot += most;
            }
            looked_at += chunk.len().max(1);
            self.write_down(&chunk);
            self.due(now);
        }
    }

    fn write_down(&mut self, slots: &[Slot]) {
        let mut dead = Vec::new();
        for slot in slots {
            match slot.state {
                SlotState::Live => self.write_down_live(slot),
                SlotState::Dead => dead.push(slot.sequence),
                SlotState::Moved | SlotState::Torn => {
                    let current = self.place(slot.sequence).and_then(|place| self.slot(place));
                    match current.copied() {
                        Some(current) => self.write_down_live(&current),
                        None => dead.push(slot.sequence),
                    }
                }
                SlotState::Unsure => {
                    let current = self.place(slot.sequence).and_then(|place| self.slot(place));
                    match current.copied() {
                        Some(current) => self.write_down_live(&current),
                        // All is read, and there was none.
                        None if self.late.is_none() => dead.push(slot.sequence),
                        None => {}
                    }
                }
            }
        }
        self.write_down_dead(dead);
    }

    pub(super) fn write_down_dead(&mut self, mut dead: Vec<u64>) {
        dead.sort_unstable();
        dead.dedup();
        let mut at = 0;
        while at < dead.len() {
            let first = dead[at];
            let run = dead[at..]
                .iter()
                .zip(first..)
                .take_while(|(d, want)| **d == *want)
                .count();
            // A segment has fewer than 2^32 records.
            self.chores.push_back(StateRecord::Dead {
                first,
                count: run as u32,
            });
            at += run;
        }
    }

    /// What is known of a live message, as records; none for one that was never tried.
    fn write_down_live(&mut self, slot: &Slot) {
        let sequence = slot.sequence;
        if !slot.several {
            if slot.attempts > 0 || slot.next > 0 {
                let (attempts, next) = (slot.attempts, from_seconds(slot.next));
                let kind = SettlementKind::Deferred { attempts, next };
                self.chores.push_back(StateRecord::Settled {
                    sequence,
                    first: 0,
                    count: 1,
                    kind,
                });
            }
            return;
        }
        let Some(progress) = self.progress.get(&sequence) else {
            return;
        };
        // Which way a recipient ended is in the accounting; here it only matters that it did.
        let kind = SettlementKind::Dropped;
        for (first, count) in progress.settled_runs() {
            self.chores.push_back(StateRecord::Settled {
                sequence,
                first,
                count,
                kind,
            });
        }
        for entry in progress.deferred() {
            let (attempts, next) = (entry.attempts, entry.next);
            let kind = SettlementKind::Deferred { attempts, next };
            let first = entry.index;
            self.chores.push_back(StateRecord::Settled {
                sequence,
                first,
                count: 1,
                kind,
            });
        }
    }

    /// When every record of the checkpoint is durable, the old segments go.
    fn end_checkpoint(&mut self) {
        let next_group = self.state.group_sequence;
        let Some(checkpoint) = &mut self.checkpoint else {
            return;
        };
        if !checkpoint.segments.is_empty() || !self.chores.is_empty() {
            return;
        }
        let emitted = *checkpoint.emitted.get_or_insert(next_group);
        if self
            .state_unproven
            .iter()
            .any(|sequence| *sequence < emitted)
        {
            return;
        }
        let Some(checkpoint) = self.checkpoint.take() else {
            return;
        };
        let old = &checkpoint.old;
        let kept = self
            .state
            .iter()
            .filter(|(number, s)| s.phase == Phase::Sealed && !old.contains(number));
        self.checkpoint_bytes = kept.map(|(_, s)| s.len).sum();
        let state = &self.state;
        self.state_torn.retain(|torn| {
            state
                .get(torn.segment)
                .is_some_and(|s| s.stamp.generation == torn.generation)
        });
        for number in checkpoint.old {
            if self.state.get(number).is_some() {
                self.recycle_state(number);
            }
        }
    }

    /// What a state segment says does not matter any more.
    fn recycle_state(&mut self, number: u32) {
        let spare = self
            .state
            .count(|s| matches!(s.phase, Phase::Free | Phase::Stamping));
        let segment = self.state.at(number);
        let odd = segment.suspect || segment.len != self.config.state_segment_bytes;
        if odd || spare >= 2 * limits::SPOOL_SPARE_SEGMENTS {
            self.drop_file(Log::State, number);
        } else {
            self.restamp(Log::State, number);
        }
    }

    /// Applies a settlement found by recovery; there is nobody to tell.
    pub(super) fn replay(&mut self, sequence: u64, recipient: u32, kind: SettlementKind) -> Change {
        let id = MessageId::new(self.config.shard, sequence);
        self.apply(&Settlement {
            id,
            recipient,
            kind,
        })
    }
}
