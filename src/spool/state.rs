//! spool::state - the core: what waits, what is in flight, what is on disk.
//!
//! What: [`Spool`], a machine that is told what callers want and what became of its actions, and
//! says what to do next. It never waits, never reads a clock and never touches a file; see the
//! module documentation for the rules that it keeps.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use crate::engine::Block;
use crate::limits;
use crate::message::{Envelope, MessageId};
use crate::time::{Mono, Wall};

use super::commit::{
    BlockPool, Frame, LastGroup, Origin, Pending, lay_out_mail, lay_out_state, mail_group_bytes,
    roster_entry, state_group_bytes,
};
use super::format::{
    GROUP_HEADER_BYTES, Log, SEGMENT_HEADER_BYTES, SegmentHeader, Stamp, StateRecord,
};
use super::index::{Change, Place, Progress, ProgressTable, Slot, SlotState, Table};
use super::large::LargeJob;
use super::reclaim::{Checkpoint, Reclaim};
use super::segment::{Phase, Segment, Segments};
use super::types::{
    Alarm, AppendError, Location, PendingRecipient, Settlement, SettlementKind, SpoolStatus, Stored,
};

/// What a spool is told once.
#[derive(Debug, Clone, Copy)]
pub struct SpoolConfig {
    /// The shard.
    pub shard: u16,
    /// Bytes of a message segment.
    pub segment_bytes: u64,
    /// Bytes of a state segment.
    pub state_segment_bytes: u64,
    /// Below this much free space new mail is refused.
    pub low_water_bytes: u64,
    /// Random, for salts.
    pub seed: u64,
}

/// What the driver is to do. Every action but `Release` with a live map is answered exactly once.
#[derive(Debug)]
pub enum Action {
    /// Write durably; answer with [`Spool::written`].
    Write {
        /// Names the write in the answer.
        ticket: u32,
        /// Which log.
        log: Log,
        /// Which segment.
        segment: u32,
        /// Where.
        offset: u64,
        /// What.
        block: Block,
    },
    /// Make a file of `len` bytes, prewritten if told so, and sync the directory; answer with
    /// [`Spool::created`].
    Create {
        /// Which log.
        log: Log,
        /// Its number.
        segment: u32,
        /// Its length.
        len: u64,
        /// Whether its bytes are written before use.
        prewrite: bool,
    },
    /// Forget the map of a message segment; answer with [`Spool::released`] once no reader has it.
    Release {
        /// Which.
        segment: u32,
    },
    /// Remove a file and sync the directory; answer with [`Spool::removed`].
    Remove {
        /// Which log.
        log: Log,
        /// Which.
        segment: u32,
    },
    /// Read and verify a message; answer with [`Spool::copied`].
    Copy {
        /// The message.
        id: MessageId,
        /// Where it lies.
        from: Place,
    },
}

/// How an action ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Done, and durable.
    Done,
    /// No space.
    Full,
    /// Failed; what is on disk is unknown.
    Failed,
}

/// What callers wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Completion {
    /// The append with this token ended.
    Append(u64, Result<Stored, AppendError>),
    /// The settlement is durable.
    Settled(Settlement),
}

/// What is to be read of a message, in offsets of its segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where it lies.
    pub location: Location,
    /// The life of the segment.
    pub generation: u64,
    /// Bytes of record and envelope, rounded up.
    pub head_len: u32,
    /// Where the content starts.
    pub content: u32,
}

#[derive(Debug)]
pub(super) enum Flight {
    Header {
        log: Log,
        number: u32,
        stamp: Stamp,
    },
    Mail {
        number: u32,
        group: u64,
        messages: Vec<Pending>,
        slots: Vec<Slot>,
    },
    State {
        number: u32,
        group: u64,
        records: Vec<StateRecord>,
        settlements: Vec<Settlement>,
    },
    Piece {
        number: u32,
    },
}

/// A group of the message log that is known not to be whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Void {
    pub(super) group: u64,
    pub(super) generation: u64,
    pub(super) segment: u32,
}

/// The disk failed: since then nothing is taken, until a probe succeeds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Failure {
    pub(super) retry_at: Mono,
    pub(super) probing: bool,
    /// What new mail is told: only no space, or also no trust.
    pub(super) refusal: AppendError,
}

/// One shard's spool, without its files.
#[derive(Debug)]
pub struct Spool {
    pub(super) config: SpoolConfig,
    pub(super) mail: Segments,
    pub(super) state: Segments,
    pub(super) table: Table,
    pub(super) progress: ProgressTable,
    pub(super) next_sequence: u64,
    pub(super) next_generation: u64,
    pub(super) random: u64,
    pub(super) fresh: VecDeque<Pending>,
    pub(super) copies: VecDeque<Pending>,
    pub(super) large: VecDeque<Pending>,
    pub(super) job: Option<LargeJob>,
    pub(super) settlements: VecDeque<Settlement>,
    pub(super) chores: VecDeque<StateRecord>,
    pub(super) settle_due: Mono,
    pub(super) flights: Vec<Option<Flight>>,
    pub(super) tickets: Vec<u32>,
    pub(super) mail_unproven: Vec<u64>,
    pub(super) state_unproven: Vec<u64>,
    /// Groups of the state log that are known not to be whole, while their segments last.
    pub(super) state_torn: Vec<Void>,
    pub(super) last: LastGroup,
    /// The last group of each segment: its roster is in another segment, which may go first.
    pub(super) tails: Vec<LastGroup>,
    /// Groups that are known not to be whole, as [`StateRecord::Void`].
    pub(super) voids: Vec<Void>,
    pub(super) pool: BlockPool,
    pub(super) envelopes: Vec<Vec<u8>>,
    pub(super) batches: Vec<(Vec<Pending>, Vec<Slot>)>,
    pub(super) actions: VecDeque<Action>,
    pub(super) completions: VecDeque<Completion>,
    pub(super) free_bytes: u64,
    pub(super) space_due: Mono,
    pub(super) mail_failure: Option<Failure>,
    pub(super) state_failure: Option<Failure>,
    pub(super) closing: bool,
    pub(super) marked_clean: bool,
    pub(super) reclaim: Reclaim,
    pub(super) checkpoint: Option<Checkpoint>,
    pub(super) checkpoint_bytes: u64,
    pub(super) damaged: u64,
    pub(super) groups_written: u64,
}

/// Bytes that must wait before a group is written while another is in flight: twelve messages of
/// 10 KiB share the cost of the write.
const OVERLAP_BYTES_MIN: usize = 128 << 10;

impl Spool {
    /// An empty spool, which recovery fills.
    pub(super) fn empty(config: SpoolConfig) -> Self {
        Self {
            config,
            mail: Segments::new(),
            state: Segments::new(),
            table: Table::new(),
            progress: ProgressTable::new(),
            next_sequence: 1,
            next_generation: 1,
            random: config.seed,
            fresh: VecDeque::new(),
            copies: VecDeque::new(),
            large: VecDeque::new(),
            job: None,
            settlements: VecDeque::new(),
            chores: VecDeque::new(),
            settle_due: Mono::NEVER,
            flights: Vec::new(),
            tickets: Vec::new(),
            mail_unproven: Vec::new(),
            state_unproven: Vec::new(),
            state_torn: Vec::new(),
            last: LastGroup::default(),
            tails: Vec::new(),
            voids: Vec::new(),
            pool: BlockPool::default(),
            envelopes: Vec::new(),
            batches: Vec::new(),
            actions: VecDeque::new(),
            completions: VecDeque::new(),
            free_bytes: u64::MAX,
            space_due: Mono(0),
            mail_failure: None,
            state_failure: None,
            closing: false,
            marked_clean: false,
            reclaim: Reclaim::default(),
            checkpoint: None,
            checkpoint_bytes: 0,
            damaged: 0,
            groups_written: 0,
        }
    }

    /// The id for the next message. Never names two stored messages, also across restarts; one that
    /// left no trace on the disk may come again after a crash.
    pub fn next_id(&mut self) -> MessageId {
        let id = MessageId::new(self.config.shard, self.next_sequence);
        self.next_sequence += 1;
        id
    }

    /// Takes a message; a completion with `token` says how it ended, unless this returns an error.
    ///
    /// Precondition: `id` came from [`Spool::next_id`] and was not used before.
    pub fn append(
        &mut self,
        token: u64,
        id: MessageId,
        envelope: &Envelope,
        content: Bytes,
        received_at: Wall,
    ) -> Result<(), AppendError> {
        assert_eq!(
            id.shard(),
            self.config.shard,
            "a message is stored by the shard that named it"
        );
        assert!(
            id.sequence() < self.next_sequence,
            "ids are given out by next_id"
        );
        self.may_append()?;
        if content.len() as u64 > limits::SPOOL_MESSAGE_BYTES_MAX
            || envelope.recipients.len() > limits::RECIPIENTS_MAX as usize
        {
            return Err(AppendError::TooLarge);
        }
        let mut bytes = self.envelopes.pop().unwrap_or_default();
        bytes.clear();
        envelope.encode(&mut bytes);
        if bytes.len() > limits::SPOOL_ENVELOPE_BYTES_MAX {
            return Err(AppendError::TooLarge);
        }
        let pending = Pending {
            id,
            origin: Origin::Fresh(token),
            received_at,
            recipients: envelope.recipients.len() as u32,
            envelope: bytes,
            content,
        };
        if self.is_large(pending.bytes()) {
            self.large.push_back(pending);
        } else {
            self.fresh.push_back(pending);
        }
        Ok(())
    }

    /// Whether new mail is taken now.
    pub fn may_append(&self) -> Result<(), AppendError> {
        if self.closing {
            return Err(AppendError::Failed);
        }
        if let Some(failure) = self.mail_failure.or(self.state_failure) {
            return Err(failure.refusal);
        }
        if self.settlements.len() > limits::SPOOL_SETTLEMENTS_WAITING_MAX {
            return Err(AppendError::Failed);
        }
        if self.free_bytes < self.config.low_water_bytes {
            return Err(AppendError::Full);
        }
        Ok(())
    }

    /// Messages this large get a segment of their own.
    pub(super) fn is_large(&self, bytes: usize) -> bool {
        bytes as u64 > self.config.segment_bytes / 4
    }

    /// Notes a settlement. Says whether it is about a waiting message; if not it is forgotten.
    pub fn settle(&mut self, settlement: Settlement, now: Mono) -> bool {
        if self.find(settlement.id).is_none() {
            return false;
        }
        self.settlements.push_back(settlement);
        self.due(now.after(Duration::from_micros(limits::SPOOL_SETTLE_WAIT_US)));
        true
    }

    pub(super) fn due(&mut self, at: Mono) {
        self.settle_due = self.settle_due.min(at);
    }

    /// Where a waiting message lies.
    #[must_use]
    pub fn find(&self, id: MessageId) -> Option<Extent> {
        if id.shard() != self.config.shard {
            return None;
        }
        let place = self.place(id.sequence())?;
        let segment = self.mail.get(place.segment)?;
        Some(self.extent(segment, place))
    }

    /// A message that recovery found, by its place: where its record is and who waits. `None` for
    /// one that is settled.
    #[must_use]
    pub fn waiting_at(
        &self,
        segment: u32,
        slot: u32,
    ) -> Option<(MessageId, Extent, Vec<PendingRecipient>)> {
        let place = Place { segment, slot };
        let slot = self.slot(place).filter(|s| s.state == SlotState::Live)?;
        let pending = match self.progress.get(&slot.sequence) {
            Some(progress) => progress.waiting(),
            None if slot.several => (0..u32::from(slot.pending))
                .map(|index| PendingRecipient {
                    index,
                    attempts: 0,
                    next: Wall(0),
                })
                .collect(),
            None => {
                let next = super::index::from_seconds(slot.next);
                vec![PendingRecipient {
                    index: 0,
                    attempts: slot.attempts,
                    next,
                }]
            }
        };
        let extent = self.extent(self.mail.get(segment)?, place);
        Some((
            MessageId::new(self.config.shard, slot.sequence),
            extent,
            pending,
        ))
    }

    /// As [`Spool::waiting_at`], by its id.
    #[must_use]
    pub fn waiting(&self, id: MessageId) -> Option<(Extent, Vec<PendingRecipient>)> {
        self.find(id)?;
        let place = self.place(id.sequence())?;
        let (_, extent, pending) = self.waiting_at(place.segment, place.slot)?;
        Some((extent, pending))
    }

    /// The message segments and the number of records in each, in the order of their numbers.
    #[must_use]
    pub fn census(&self) -> Vec<(u32, u32)> {
        let filled = self.mail.iter().filter(|(_, s)| !s.slots.is_empty());
        // A segment holds fewer than 2^32 records.
        filled
            .map(|(number, s)| (number, s.slots.len() as u32))
            .collect()
    }

    pub(super) fn extent(&self, segment: &Segment, place: Place) -> Extent {
        let slot = &segment.slots[place.slot as usize];
        Extent {
            location: Location {
                segment: place.segment,
                offset: slot.record,
                len: slot.len,
            },
            generation: segment.stamp.generation,
            head_len: u32::from(slot.head_units) * 64,
            content: slot.content,
        }
    }

    pub(super) fn place(&self, sequence: u64) -> Option<Place> {
        self.table
            .get(sequence, |place| sequence_at(&self.mail, place))
    }

    pub(super) fn slot(&self, place: Place) -> Option<&Slot> {
        self.mail.get(place.segment)?.slots.get(place.slot as usize)
    }

    pub(super) fn admit(&mut self, sequence: u64, place: Place) {
        let Self { table, mail, .. } = self;
        table.insert(sequence, place, |place| sequence_at(mail, place));
    }

    pub(super) fn forget(&mut self, sequence: u64) -> Option<Place> {
        let Self { table, mail, .. } = self;
        table.remove(sequence, |place| sequence_at(mail, place))
    }

    /// What to do next; `None` when there is nothing until [`Spool::wake_at`] or the next answer.
    pub fn poll(&mut self, now: Mono) -> Option<Action> {
        if self.actions.is_empty() {
            self.make_spares(now);
            self.seal_mail();
            self.advance_large();
            self.seal_state(now);
            self.advance_reclaim();
            self.advance_checkpoint(now);
            self.advance_close(now);
        }
        self.actions.pop_front()
    }

    /// The next result for a caller.
    pub fn completion(&mut self) -> Option<Completion> {
        self.completions.pop_front()
    }

    /// When to poll again, at the latest.
    #[must_use]
    pub fn wake_at(&self) -> Mono {
        let retry = |failure: &Option<Failure>| match failure {
            Some(failure) if !failure.probing => failure.retry_at,
            _ => Mono::NEVER,
        };
        let settle = if self.state_is_ready() {
            self.settle_due
        } else {
            Mono::NEVER
        };
        settle
            .min(self.space_due)
            .min(retry(&self.mail_failure))
            .min(retry(&self.state_failure))
    }

    /// Whether [`Spool::space`] should be told now.
    #[must_use]
    pub fn wants_space(&self, now: Mono) -> bool {
        now >= self.space_due
    }

    /// Tells how many bytes the file system has free.
    pub fn space(&mut self, free_bytes: u64, now: Mono) {
        self.free_bytes = free_bytes;
        self.space_due = now.after(Duration::from_millis(limits::SPOOL_SPACE_MS));
        self.reclaim.paused = false;
        self.unstick();
    }

    pub(super) fn stamp(&mut self) -> Stamp {
        // splitmix64: the salt only has to be unknown to whoever writes mail.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let generation = self.next_generation;
        self.next_generation += 1;
        Stamp {
            generation,
            salt: z ^ (z >> 31),
        }
    }

    pub(super) fn log(&mut self, log: Log) -> &mut Segments {
        match log {
            Log::Message => &mut self.mail,
            Log::State => &mut self.state,
        }
    }

    pub(super) fn write(
        &mut self,
        flight: Flight,
        log: Log,
        segment: u32,
        offset: u64,
        block: Block,
    ) {
        let ticket = self.tickets.pop().unwrap_or_else(|| {
            self.flights.push(None);
            self.flights.len() as u32 - 1
        });
        assert!(
            self.flights[ticket as usize].is_none(),
            "a ticket names one write"
        );
        self.flights[ticket as usize] = Some(flight);
        self.actions.push_back(Action::Write {
            ticket,
            log,
            segment,
            offset,
            block,
        });
    }

    // ---- making segments ----

    /// Whether a segment of `len` bytes may be made for mail.
    pub(super) fn may_create(&self, len: u64) -> bool {
        self.free_bytes >= len.saturating_add(self.config.low_water_bytes)
    }

    pub(super) fn create(&mut self, log: Log, len: u64, large: bool) -> u32 {
        let stamp = self.stamp();
        let mut segment = Segment::new(stamp, len, Phase::Making);
        segment.large = large;
        let number = self.log(log).insert_new(segment);
        self.free_bytes = self.free_bytes.saturating_sub(len);
        self.actions.push_back(Action::Create {
            log,
            segment: number,
            len,
            prewrite: !large,
        });
        number
    }

    /// Writes a new header to a segment, which ends its earlier life.
    pub(super) fn restamp(&mut self, log: Log, number: u32) {
        let stamp = self.stamp();
        let (shard, next_sequence) = (self.config.shard, self.next_sequence);
        let segment = self.log(log).at(number);
        assert!(
            segment.in_flight == 0 && segment.live_slots == 0,
            "nothing live is recycled"
        );
        segment.phase = Phase::Stamping;
        segment.in_flight += 1;
        let (len, large) = (segment.len, segment.large);
        let header = SegmentHeader {
            log,
            shard,
            number,
            stamp,
            len,
            large,
            next_sequence,
        };
        self.write(
            Flight::Header { log, number, stamp },
            log,
            number,
            0,
            header.encode(),
        );
    }

    fn make_spares(&mut self, now: Mono) {
        self.probe(Log::State, now);
        self.probe(Log::Message, now);
        let ready = |s: &Segment| {
            !s.large && matches!(s.phase, Phase::Making | Phase::Stamping | Phase::Free)
        };
        let state_len = self.config.state_segment_bytes;
        while self.state_failure.is_none()
            && self.state.count(ready) < limits::SPOOL_SPARE_SEGMENTS
            && self.free_bytes >= state_len
        {
            self.create(Log::State, state_len, false);
        }
        let len = self.config.segment_bytes;
        while self.mail_failure.is_none()
            && self.mail.count(ready) < limits::SPOOL_SPARE_SEGMENTS
            && self.may_create(len)
        {
            self.create(Log::Message, len, false);
        }
    }

    /// After a failure, tries a new segment once the wait is over; its header is the probe. A free
    /// one serves where there is no space for a new one.
    fn probe(&mut self, log: Log, now: Mono) {
        let failure = match log {
            Log::Message => &mut self.mail_failure,
            Log::State => &mut self.state_failure,
        };
        let Some(failure) = failure else { return };
        if failure.probing || now < failure.retry_at {
            return;
        }
        failure.probing = true;
        let len = match log {
            Log::Message => self.config.segment_bytes,
            Log::State => self.config.state_segment_bytes,
        };
        let room = match log {
            Log::Message => self.may_create(len),
            Log::State => self.free_bytes >= len,
        };
        let free = self.log(log).find(|s| s.phase == Phase::Free && !s.large);
        match free {
            Some(number) if !room => self.restamp(log, number),
            _ => {
                self.create(log, len, false);
            }
        }
    }

    /// Answers [`Action::Create`].
    pub fn created(&mut self, log: Log, number: u32, outcome: Outcome, now: Mono) {
        let segment = self.log(log).at(number);
        assert_eq!(segment.phase, Phase::Making, "a file is made once");
        if outcome == Outcome::Done {
            self.restamp(log, number);
            return;
        }
        // The file may be there or not; it is removed before its number is used again.
        segment.suspect = true;
        segment.phase = Phase::Removing;
        let large = segment.large;
        self.actions.push_back(Action::Remove {
            log,
            segment: number,
        });
        if large {
            self.abandon_large(number, outcome);
        }
        self.fail(log, outcome, now);
    }

    /// A write or a creation failed: refuse, and probe later.
    pub(super) fn fail(&mut self, log: Log, outcome: Outcome, now: Mono) {
        let retry_at = now.after(Duration::from_millis(limits::SPOOL_PROBE_MS));
        let refusal = match outcome {
            Outcome::Full => AppendError::Full,
            Outcome::Done | Outcome::Failed => AppendError::Failed,
        };
        let failure = Some(Failure {
            retry_at,
            probing: false,
            refusal,
        });
        match log {
            Log::Message => self.mail_failure = failure,
            Log::State => self.state_failure = failure,
        }
        if log == Log::Message {
            self.refuse_waiting(refusal);
        }
    }

    pub(super) fn refuse_waiting(&mut self, error: AppendError) {
        while let Some(pending) = self.fresh.pop_front().or_else(|| self.large.pop_front()) {
            if let Origin::Fresh(token) = pending.origin {
                self.completions
                    .push_back(Completion::Append(token, Err(error)));
            }
        }
    }

    // ---- groups of messages ----

    /// The lowest sequence of a group of the message log that is not known to be complete.
    pub(super) fn proven(&self) -> u64 {
        self.mail_unproven
            .iter()
            .copied()
            .min()
            .unwrap_or(self.mail.group_sequence)
    }

    /// The same for the state log. One that failed, or was torn by a crash, is in the way until a
    /// checkpoint has done away with its segment.
    fn state_proven(&self) -> u64 {
        let next = self.state.group_sequence;
        let lowest = self.state_unproven.iter().copied().min().unwrap_or(next);
        let lives = |torn: &&Void| {
            let segment = self.state.get(torn.segment);
            segment.is_some_and(|s| s.stamp.generation == torn.generation)
        };
        let torn = self.state_torn.iter().filter(lives).map(|torn| torn.group);
        torn.fold(lowest, u64::min)
    }

    fn seal_mail(&mut self) {
        while self.mail.groups_in_flight < limits::SPOOL_GROUPS_IN_FLIGHT_MAX
            && self.mail_failure.is_none()
        {
            let copies = if self.copies_are_ready() {
                self.copies.front()
            } else {
                None
            };
            let (first, copy) = match (copies, self.fresh.front()) {
                (Some(first), _) => (first, true),
                (None, Some(first)) => (first, false),
                (None, None) => return,
            };
            if !copy && self.mail.groups_in_flight > 0 && !self.fresh_fills_a_group() {
                return;
            }
            let need = mail_group_bytes(first.bytes(), &self.last);
            let Some(number) = self.room_for(need as u64, copy) else {
                return;
            };
            self.seal_group(number);
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
        // The last free segment is for stragglers: without it nothing could ever be freed.
        let enough = if copy || growing {
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

    fn seal_group(&mut self, number: u32) {
        let room = (self.mail.at(number).room() as usize).min(limits::SPOOL_GROUP_BYTES_MAX);
        let (mut messages, slots) = self.batches.pop().unwrap_or_default();
        let mut bytes = 0;
        loop {
            let ready = self.copies_are_ready();
            let queue = if ready {
                &mut self.copies
            } else {
                &mut self.fresh
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

    fn seal_state(&mut self, now: Mono) {
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
            self.seal_state_group(number);
        }
        if self.settlements.is_empty() && self.chores.is_empty() {
            self.settle_due = Mono::NEVER;
        }
    }

    /// Whether a state group could be written now.
    fn state_is_ready(&self) -> bool {
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

    // ---- answers ----

    /// Answers [`Action::Write`].
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
            self.fail(log, outcome, now);
        }
        false
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
            self.fail(log, outcome, now);
            return;
        }
        segment.stamp = stamp;
        segment.phase = Phase::Free;
        segment.slots = Vec::new();
        segment.write_offset = SEGMENT_HEADER_BYTES as u64;
        match log {
            Log::Message if !large => self.mail_failure = None,
            Log::State => self.state_failure = None,
            Log::Message => {}
        }
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
            if let StateRecord::Void { group, .. } = record {
                self.mail_unproven.retain(|sequence| sequence != group);
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

    // ---- the end ----

    /// Refuses new mail from here on; [`Spool::is_closed`] says when all is durable.
    pub fn close(&mut self, now: Mono) {
        self.closing = true;
        self.due(now);
    }

    fn advance_close(&mut self, now: Mono) {
        if !self.closing || self.marked_clean || !self.is_quiet() {
            return;
        }
        self.marked_clean = true;
        self.push_roster();
        self.chores.push_back(StateRecord::Clean);
        self.due(now);
        self.seal_state(now);
    }

    /// The ids of the latest group go to the state log, when no later group may come to list them.
    pub(super) fn push_roster(&mut self) {
        push_roster(&mut self.chores, &self.last);
    }

    /// The latest group is the last of its segment for now: its ids go to the state log, to stay
    /// there as long as the segment.
    pub(super) fn keep_tail(&mut self) {
        if !self.last.ids.is_empty() {
            self.push_roster();
            self.tails.push(self.last.clone());
        }
    }

    fn is_quiet(&self) -> bool {
        self.fresh.is_empty()
            && self.copies.is_empty()
            && self.large.is_empty()
            && self.job.is_none()
            && self.mail.groups_in_flight == 0
            && self.state.groups_in_flight == 0
            && self.settlements.is_empty()
            && self.chores.is_empty()
    }

    /// Whether the clean mark is durable. Stays false while the disk fails.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closing && self.marked_clean && self.is_quiet()
    }

    /// The spool in figures.
    #[must_use]
    pub fn status(&self) -> SpoolStatus {
        let mut alarms = Vec::new();
        if self.mail_failure.is_some() || self.state_failure.is_some() {
            alarms.push(Alarm::DiskFailed);
        }
        if self.free_bytes < self.config.low_water_bytes {
            alarms.push(Alarm::DiskFull);
        }
        if self.damaged > 0 {
            alarms.push(Alarm::DamageFound);
        }
        if self.state_failure.is_some() && !self.settlements.is_empty() {
            alarms.push(Alarm::SettlementsWaiting);
        }
        SpoolStatus {
            queued_messages: self.table.len() as u64,
            live_bytes: self.live_bytes(),
            disk_bytes: self.mail.bytes() + self.state.bytes(),
            segments: self.mail.count(|_| true),
            // The driver knows the directory.
            quarantined: 0,
            free_bytes: self.free_bytes,
            accepting: self.may_append().is_ok(),
            alarms,
            damaged_messages: self.damaged,
            groups_written: self.groups_written,
            settlements_waiting: self.settlements.len() as u64,
            index_bytes: self.index_bytes(),
        }
    }

    pub(super) fn live_bytes(&self) -> u64 {
        self.mail
            .iter()
            .map(|(_, segment)| segment.live_bytes)
            .sum()
    }

    fn index_bytes(&self) -> u64 {
        let slots: usize = self.mail.iter().map(|(_, s)| s.slots.capacity()).sum();
        let progress: usize = self.progress.values().map(|p| p.bytes() + 16).sum();
        (slots * size_of::<Slot>() + self.table.bytes() + progress) as u64
    }
}

pub(super) fn push_roster(chores: &mut VecDeque<StateRecord>, group: &LastGroup) {
    chores.extend(group.ids.iter().map(|id| StateRecord::Roster {
        entry: *id,
        group: group.sequence,
        generation: group.generation,
        segment: group.segment,
    }));
}

pub(super) fn sequence_at(mail: &Segments, place: Place) -> u64 {
    match mail
        .get(place.segment)
        .and_then(|s| s.slots.get(place.slot as usize))
    {
        Some(slot) => slot.sequence,
        None => unreachable!("the table names slots that exist"),
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

const _: () = assert!(GROUP_HEADER_BYTES < 4096);
