//! spool::answer - what became of writes.
//!
//! What: a durable group becomes proofs and settled recipients; one that failed is trusted no more,
//! and nothing that was in flight to the same file.

use crate::engine::Block;
use crate::limits;
use crate::time::Mono;

use super::commit::{Origin, Pending};
use super::format::{Log, SEGMENT_HEADER_BYTES, Stamp, StateRecord};
use super::index::{Change, Place, Progress, Slot, SlotState};
use super::segment::Phase;
use super::state::{Completion, Flight, Outcome, Spool, Void};
use super::types::{AppendError, Location, Settlement, SettlementKind, Stored};

impl Spool {
    /// Answers [`Action::Write`](super::Action::Write).
    pub fn written(&mut self, ticket: u32, block: Block, outcome: Outcome, now: Mono) {
        self.pool.give(block);
        let flight = self.flights.get_mut(ticket as usize).and_then(Option::take);
        let Some(flight) = flight else {
            unreachable!("write {ticket} was not in flight")
        };
        self.tickets.push(ticket);
        match flight {
            Flight::Header { log, number, stamp } => {
                self.header_written(log, number, stamp, outcome, now);
            }
            Flight::Mail {
                number,
                group,
                messages,
                slots,
            } => {
                self.mail.groups_in_flight -= 1;
                self.mail_unproven.retain(|sequence| *sequence != group);
                let trusted = self.write_ended(Log::Message, number, outcome, now);
                if !trusted {
                    self.void(number, group);
                }
                self.mail_written(number, messages, slots, outcome, trusted, now);
            }
            Flight::State {
                number,
                group,
                records,
                settlements,
            } => {
                self.state.groups_in_flight -= 1;
                self.state_unproven.retain(|sequence| *sequence != group);
                let trusted = self.write_ended(Log::State, number, outcome, now);
                if !trusted {
                    let generation = self.state.at(number).stamp.generation;
                    self.state_torn.push(Void {
                        group,
                        generation,
                        segment: number,
                    });
                }
                self.state_written(records, settlements, trusted, now);
            }
            Flight::Piece { number } => {
                let trusted = self.write_ended(Log::Message, number, outcome, now);
                self.piece_written(number, outcome, trusted);
            }
        }
    }

    /// Common to all writes of groups: says whether what was written may be trusted. After one
    /// failure nothing in flight to the same file is: a later sync may succeed without the pages
    /// that the failed one dropped.
    fn write_ended(&mut self, log: Log, number: u32, outcome: Outcome, now: Mono) -> bool {
        let active = self.log(log).active == Some(number);
        let segment = self.log(log).at(number);
        assert!(segment.in_flight > 0, "a write ends once");
        segment.in_flight -= 1;
        if outcome == Outcome::Done && !segment.suspect {
            return true;
        }
        if !segment.suspect {
            segment.suspect = true;
            segment.phase = Phase::Sealed;
            if active {
                self.log(log).seal_active();
            }
            self.file_failed(log, number, outcome, now);
        }
        false
    }

    /// A write to a file failed. That a large message finds no space for its own file says nothing
    /// about others.
    fn file_failed(&mut self, log: Log, number: u32, outcome: Outcome, now: Mono) {
        if outcome == Outcome::Full && self.log(log).at(number).large {
            self.make_no_files(now);
        } else {
            self.fail(log, outcome, now);
        }
    }

    fn header_written(&mut self, log: Log, number: u32, stamp: Stamp, outcome: Outcome, now: Mono) {
        let segment = self.log(log).at(number);
        segment.in_flight -= 1;
        let large = segment.large;
        if outcome != Outcome::Done {
            // Either header may be on disk: the slots stay, as tombstones, until the file is gone.
            segment.suspect = true;
            segment.phase = Phase::Sealed;
            if log == Log::State {
                // Nothing that counts is in a state segment that gets a header: let it go.
                segment.write_offset = 0;
            }
            if large {
                self.abandon_large(number, outcome);
            }
            self.file_failed(log, number, outcome, now);
            return;
        }
        segment.stamp = stamp;
        segment.phase = Phase::Free;
        let slots = std::mem::take(&mut segment.slots);
        segment.write_offset = SEGMENT_HEADER_BYTES as u64;
        self.outlive(&slots);
        match log {
            Log::Message if !large => self.mail_failure = None,
            Log::State => self.state_failure = None,
            Log::Message => {}
        }
    }

    /// Whether a group can be in its segment still: nothing else was written there since, as far as
    /// is known of a segment whose header the disk does not give.
    pub(super) fn may_hold(&self, void: &Void) -> bool {
        self.mail.get(void.segment).is_some_and(|segment| {
            let unknown = segment.unread && segment.phase == Phase::LeftAlone;
            unknown || segment.stamp.generation == void.generation
        })
    }

    /// Notes that a group is not whole, so that no later recovery calls it damage. Until the note
    /// is durable no group vouches for this one.
    pub(super) fn void(&mut self, segment: u32, group: u64) {
        let generation = self.mail.at(segment).stamp.generation;
        let void = Void {
            group,
            generation,
            segment,
        };
        if self.voids.contains(&void) {
            return;
        }
        self.voids.push(void);
        self.mail_unproven.push(group);
        self.chores.push_back(StateRecord::Void {
            group,
            generation,
            segment,
        });
    }

    fn mail_written(
        &mut self,
        number: u32,
        mut messages: Vec<Pending>,
        mut slots: Vec<Slot>,
        outcome: Outcome,
        trusted: bool,
        now: Mono,
    ) {
        self.groups_written += 1;
        for (pending, slot) in messages.drain(..).zip(slots.drain(..)) {
            match pending.origin {
                Origin::Fresh(token) if trusted => {
                    let id = pending.id;
                    let location = Location {
                        segment: number,
                        offset: slot.record,
                        len: slot.len,
                    };
                    let at = self.mail.at(number).push(slot);
                    self.admit(
                        id.sequence(),
                        Place {
                            segment: number,
                            slot: at,
                        },
                    );
                    let stored = Stored::proven(id, location);
                    self.completions
                        .push_back(Completion::Append(token, Ok(stored)));
                }
                Origin::Fresh(token) => {
                    // Unknown: whole on disk, perhaps. A tombstone keeps it from coming back after
                    // its sender was told to try again.
                    let sequence = slot.sequence;
                    self.mail.at(number).push(Slot {
                        state: SlotState::Dead,
                        ..slot
                    });
                    self.chores.push_back(StateRecord::Dead {
                        first: sequence,
                        count: 1,
                    });
                    self.graves.insert(sequence);
                    self.due(now);
                    let error = match outcome {
                        Outcome::Full => AppendError::Full,
                        Outcome::Done | Outcome::Failed => AppendError::Failed,
                    };
                    self.completions
                        .push_back(Completion::Append(token, Err(error)));
                }
                Origin::Copy(from) => self.copy_written(number, from, slot, trusted),
            }
            if self.envelopes.len() < 1024 && pending.envelope.capacity() <= 4096 {
                self.envelopes.push(pending.envelope);
            }
        }
        if self.batches.len() < limits::SPOOL_GROUPS_IN_FLIGHT_MAX as usize {
            self.batches.push((messages, slots));
        }
        let segment = self.mail.at(number);
        if segment.large {
            segment.phase = Phase::Sealed;
        }
    }

    fn state_written(
        &mut self,
        records: Vec<StateRecord>,
        settlements: Vec<Settlement>,
        trusted: bool,
        now: Mono,
    ) {
        if !trusted {
            // Written again, elsewhere: the information is ours, the sectors are not trusted.
            if let Some(checkpoint) = &mut self.checkpoint
                && !records.is_empty()
            {
                checkpoint.goes_on();
            }
            for record in records.into_iter().rev() {
                self.chores.push_front(record);
            }
            for settlement in settlements.into_iter().rev() {
                self.settlements.push_front(settlement);
            }
            self.due(now);
            return;
        }
        for record in &records {
            match record {
                StateRecord::Void { group, .. } => {
                    self.mail_unproven.retain(|sequence| sequence != group);
                }
                StateRecord::Doubt { .. } => {
                    for doubt in &mut self.doubts {
                        doubt.noted |= doubt.record() == *record;
                    }
                }
                StateRecord::Dead { first, count } if !self.graves.is_empty() => {
                    let end = first.saturating_add(u64::from(*count));
                    self.graves.retain(|grave| !(*first..end).contains(grave));
                }
                _ => {}
            }
        }
        for settlement in settlements {
            if self.apply(&settlement) != Change::None {
                self.completions.push_back(Completion::Settled(settlement));
            }
        }
    }

    /// Applies a durable settlement to the index.
    pub(super) fn apply(&mut self, settlement: &Settlement) -> Change {
        let sequence = settlement.id.sequence();
        let Some(place) = self.place(sequence) else {
            return Change::None;
        };
        let slot = &mut self.mail.at(place.segment).slots[place.slot as usize];
        let change = if slot.several {
            let total = u32::from(slot.pending);
            let progress = self
                .progress
                .entry(sequence)
                .or_insert_with(|| Box::new(Progress::new(total)));
            progress.apply(settlement.recipient, settlement.kind)
        } else {
            apply_single(slot, settlement)
        };
        if change == Change::Finished {
            self.progress.remove(&sequence);
            self.forget(sequence);
            self.mail
                .at(place.segment)
                .retire(place.slot, SlotState::Dead);
        }
        change
    }
}

fn apply_single(slot: &mut Slot, settlement: &Settlement) -> Change {
    if settlement.recipient != 0 || slot.pending == 0 {
        return Change::None;
    }
    match settlement.kind {
        SettlementKind::Deferred { attempts, next } => {
            let next = super::index::to_seconds(next);
            if (slot.attempts, slot.next) >= (attempts, next) {
                return Change::None;
            }
            (slot.attempts, slot.next) = (attempts, next);
            Change::Deferred
        }
        _ => {
            slot.pending = 0;
            Change::Finished
        }
    }
}
