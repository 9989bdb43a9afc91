//! spool::seal - what waits becomes groups on their way to the disk.
//!
//! What: which segment takes the next group, how much of what waits it carries, and its frame.

use crate::engine::Block;
use crate::limits;
use crate::time::Mono;

use super::commit::{
    Frame, Pending, lay_out_mail, lay_out_state, mail_group_bytes, roster_entry, state_group_bytes,
};
use super::format::{Log, StateRecord};
use super::index::Slot;
use super::segment::{Phase, Segment};
use super::state::{Doubt, Flight, Spool, Void};
use super::types::{AppendError, Settlement};

/// Bytes that must wait before a group is written while another is in flight: twelve messages of
/// 10 KiB share the cost of the write.
const OVERLAP_BYTES_MIN: usize = 128 << 10;

impl Spool {
    /// The lowest sequence of a group of the message log that is not known to be complete.
    pub(super) fn proven(&self) -> u64 {
        let open = |doubt: &&Doubt| !doubt.noted;
        let doubts = self.doubts.iter().filter(open).map(|doubt| doubt.first);
        let unproven = self.mail_unproven.iter().copied();
        let lowest = unproven.chain(doubts).min();
        lowest.unwrap_or(self.mail.group_sequence)
    }

    /// The same for the state log. One that failed, or was torn by a crash, is in the way until a
    /// checkpoint has done away with its segment.
    pub(super) fn state_proven(&self) -> u64 {
        let next = self.state.group_sequence;
        let lowest = self.state_unproven.iter().copied().min().unwrap_or(next);
        let lives = |torn: &&Void| {
            let segment = self.state.get(torn.segment);
            segment.is_some_and(|s| s.stamp.generation == torn.generation)
        };
        let torn = self.state_torn.iter().filter(lives).map(|torn| torn.group);
        torn.fold(lowest, u64::min)
    }

    /// Whether it is on disk which groups this life could not read, if any. Before it is, it writes
    /// none of its own: the next life would know of neither, and take numbers that are given.
    fn knows_its_numbers(&self) -> bool {
        self.doubts.iter().all(|doubt| doubt.noted)
    }

    /// Whether new mail may be written: nothing that must be on disk before it is missing there.
    pub(super) fn may_store(&self) -> bool {
        self.graves.is_empty() && self.knows_its_numbers()
    }

    pub(super) fn seal_mail(&mut self) {
        if !self.knows_its_numbers() {
            return;
        }
        while self.mail.groups_in_flight < limits::SPOOL_GROUPS_IN_FLIGHT_MAX
            && self.mail_failure.is_none()
        {
            if self.copies_are_ready()
                && let Some(first) = self.copies.front()
            {
                let need = mail_group_bytes(first.bytes(), &self.last);
                if let Some(number) = self.room_for(need as u64, true) {
                    self.seal_group(number, true);
                    continue;
                }
                // New mail must not wait for what may come when others have left.
            }
            let Some(first) = self.fresh.front() else {
                return;
            };
            let waits = self.mail.groups_in_flight > 0 && !self.fresh_fills_a_group();
            if waits || !self.may_store() {
                return;
            }
            let need = mail_group_bytes(first.bytes(), &self.last);
            let Some(number) = self.room_for(need as u64, false) else {
                return;
            };
            self.seal_group(number, false);
        }
    }

    /// Whether what waits is worth a write of its own beside one that is under way. A write costs
    /// the CPU some 20 us whatever its size: with less waiting, the next group starts when the one
    /// before it ends, and carries whatever has come by then.
    fn fresh_fills_a_group(&self) -> bool {
        let mut bytes = 0;
        self.fresh.iter().any(|pending| {
            bytes += pending.bytes();
            bytes >= OVERLAP_BYTES_MIN
        })
    }

    /// The segment that takes a group of `bytes`: the active one or a free one. Without any,
    /// refuses what waits unless one is being made.
    fn room_for(&mut self, bytes: u64, copy: bool) -> Option<u32> {
        if let Some(active) = self.mail.active
            && self.mail.at(active).room() >= bytes
        {
            return Some(active);
        }
        let free = |s: &Segment| s.phase == Phase::Free && !s.large && s.room() >= bytes;
        let coming = |s: &Segment| !s.large && matches!(s.phase, Phase::Making | Phase::Stamping);
        let spare = self.mail.count(free);
        let growing = self.may_create(self.config.segment_bytes) || self.mail.count(coming) > 0;
        // The last free segment is for stragglers: without it nothing could ever be freed. But if
        // the active one holds none, it is itself as good as free.
        let none_left = self.mail.active.is_some_and(|active| {
            let active = self.mail.at(active);
            active.live_slots == 0 && active.in_flight == 0 && !active.unread
        });
        let enough = if copy || growing || none_left {
            spare > 0
        } else {
            spare > 1
        };
        if enough && let Some(number) = self.mail.find(free) {
            self.mail.seal_active();
            self.mail.active = Some(number);
            self.mail.at(number).phase = Phase::Active;
            return Some(number);
        }
        if !growing && !copy {
            self.refuse_waiting(AppendError::Full);
        }
        None
    }

    /// Writes a group of what waits; `copies` first, if they have room.
    fn seal_group(&mut self, number: u32, copies: bool) {
        let room = (self.mail.at(number).room() as usize).min(limits::SPOOL_GROUP_BYTES_MAX);
        let (mut messages, slots) = self.batches.pop().unwrap_or_default();
        let mut bytes = 0;
        loop {
            let queue = if copies && self.copies_are_ready() {
                &mut self.copies
            } else if self.may_store() {
                &mut self.fresh
            } else {
                break;
            };
            let Some(next) = queue.front() else { break };
            let more = bytes + next.bytes();
            if !messages.is_empty() && mail_group_bytes(more, &self.last) > room {
                break;
            }
            bytes = more;
            messages.extend(queue.pop_front());
        }
        let total = mail_group_bytes(bytes, &self.last);
        let block = self.pool.take(total);
        self.write_group(number, messages, slots, None, block);
    }

    /// Lays out and writes one group; `placed` as in [`lay_out_mail`].
    pub(super) fn write_group(
        &mut self,
        number: u32,
        messages: Vec<Pending>,
        mut slots: Vec<Slot>,
        placed: Option<(u32, u64)>,
        mut block: Block,
    ) {
        let offset = self.mail.reserve(number, block.len() as u64);
        let frame = Frame {
            stamp: self.mail.at(number).stamp,
            sequence: self.mail.group_sequence,
            offset: offset as u32,
            proven: self.proven(),
            state_proven: self.state_proven(),
            next_sequence: self.next_sequence,
        };
        self.mail.group_sequence += 1;
        self.mail_unproven.push(frame.sequence);
        lay_out_mail(
            &frame, &self.last, &messages, placed, &mut block, &mut slots,
        );
        if self.last.segment != number {
            self.keep_tail();
        }
        self.last.sequence = frame.sequence;
        self.last.generation = frame.stamp.generation;
        self.last.segment = number;
        self.last.offset = frame.offset;
        self.last.ids.clear();
        self.last.ids.extend(
            messages
                .iter()
                .map(|m| roster_entry(m.id.sequence(), m.recipients)),
        );
        let flight = Flight::Mail {
            number,
            group: frame.sequence,
            messages,
            slots,
        };
        self.write(flight, Log::Message, number, offset, block);
    }

    // ---- groups of settlements ----

    pub(super) fn seal_state(&mut self, now: Mono) {
        while self.state.groups_in_flight < limits::SPOOL_GROUPS_IN_FLIGHT_MAX
            && self.state_failure.is_none()
            && !(self.settlements.is_empty() && self.chores.is_empty())
        {
            let waiting = self.settlements.len() + self.chores.len();
            if now < self.settle_due && waiting < limits::SPOOL_SETTLEMENTS_PER_GROUP_MAX {
                return;
            }
            let Some(number) = self.state_room() else {
                return;
            };
            self.note_settling(now);
            self.seal_state_group(number);
        }
        if self.settlements.is_empty() && self.chores.is_empty() {
            self.settle_due = Mono::NEVER;
        }
    }

    /// How fast settlements come decides how long the next ones wait: at 1,000 a second, 2 ms of
    /// waiting would bring two together, and as many more again at each crash.
    fn note_settling(&mut self, now: Mono) {
        let count = self.settlements.len() as u64;
        if count == 0 {
            return;
        }
        let apart = now.since(self.settled_at).as_micros() as u64 / count;
        self.settled_sparsely = apart >= limits::SPOOL_SETTLE_SPARSE_US;
        self.settled_at = now;
    }

    /// Whether a state group could be written now.
    pub(super) fn state_is_ready(&self) -> bool {
        let bytes = state_group_bytes(limits::SPOOL_SETTLEMENTS_PER_GROUP_MAX) as u64;
        let active = self.state.active.and_then(|number| self.state.get(number));
        self.state_failure.is_none()
            && self.state.groups_in_flight < limits::SPOOL_GROUPS_IN_FLIGHT_MAX
            && (active.is_some_and(|s| s.room() >= bytes)
                || self.state.find(|s| s.phase == Phase::Free).is_some())
    }

    fn state_room(&mut self) -> Option<u32> {
        let bytes = state_group_bytes(limits::SPOOL_SETTLEMENTS_PER_GROUP_MAX) as u64;
        if let Some(active) = self.state.active
            && self.state.at(active).room() >= bytes
        {
            return Some(active);
        }
        let number = self.state.find(|s| s.phase == Phase::Free)?;
        self.state.seal_active();
        self.state.active = Some(number);
        self.state.at(number).phase = Phase::Active;
        Some(number)
    }

    fn seal_state_group(&mut self, number: u32) {
        let most = limits::SPOOL_SETTLEMENTS_PER_GROUP_MAX;
        let chores = self.chores.len().min(most);
        let mut records: Vec<StateRecord> = self.chores.drain(..chores).collect();
        let count = self.settlements.len().min(most - chores);
        let settlements: Vec<Settlement> = self.settlements.drain(..count).collect();
        let own = records.len();
        for settlement in &settlements {
            push_run(&mut records, own, settlement);
        }
        if self.settlements.is_empty() && self.chores.is_empty() {
            self.settle_due = Mono::NEVER;
        }
        let mut block = self.pool.take(state_group_bytes(records.len()));
        let offset = self.state.reserve(number, block.len() as u64);
        let frame = Frame {
            stamp: self.state.at(number).stamp,
            sequence: self.state.group_sequence,
            offset: offset as u32,
            proven: self.proven(),
            state_proven: self.state_proven(),
            next_sequence: self.next_sequence,
        };
        self.state.group_sequence += 1;
        self.state_unproven.push(frame.sequence);
        lay_out_state(&frame, &records, &mut block);
        records.truncate(own);
        let flight = Flight::State {
            number,
            group: frame.sequence,
            records,
            settlements,
        };
        self.write(flight, Log::State, number, offset, block);
    }
}

/// Adds a settlement to the records, joined with the one before where it continues a run.
fn push_run(records: &mut Vec<StateRecord>, own: usize, settlement: &Settlement) {
    let sequence = settlement.id.sequence();
    if records.len() > own
        && let Some(StateRecord::Settled {
            sequence: s,
            first,
            count,
            kind,
        }) = records.last_mut()
        && *s == sequence
        && *kind == settlement.kind
        && first.checked_add(*count) == Some(settlement.recipient)
    {
        *count += 1;
        return;
    }
    records.push(StateRecord::Settled {
        sequence,
        first: settlement.recipient,
        count: 1,
        kind: settlement.kind,
    });
}
