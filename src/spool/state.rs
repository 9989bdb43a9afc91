//! spool::state - the core: what waits, what is in flight, what is on disk.
//!
//! What: [`Spool`], a machine that is told what callers want and what became of its actions, and
//! says what to do next. It never waits, never reads a clock and never touches a file; see the
//! module documentation for the rules that it keeps.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use crate::engine::Block;
use crate::limits;
use crate::message::{Envelope, MessageId};
use crate::time::{Mono, Wall};

use super::commit::{BlockPool, LastGroup, Origin, Pending};
use super::format::{GROUP_HEADER_BYTES, Log, Stamp, StateRecord};
use super::index::{Place, ProgressTable, Slot, SlotState, Table};
use super::large::LargeJob;
use super::late::Late;
use super::reclaim::{Checkpoint, Reclaim};
use super::rescue::Loading;
use super::segment::{Segment, Segments};
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
    /// Free message segments kept for mail to come.
    pub free_kept: u32,
    /// Longest wait of a settlement for company.
    pub settle_wait: Duration,
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

/// A waiting message: its id, where its record is, and who waits.
pub type Waiting = (MessageId, Extent, Vec<PendingRecipient>);

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

/// Groups of a segment of the message log that no later group vouches for, whatever it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Doubt {
    pub(super) segment: u32,
    pub(super) first: u64,
    pub(super) end: u64,
    /// The note of it is durable.
    pub(super) noted: bool,
}

impl Doubt {
    pub(super) fn is_about(&self, segment: u32, group: u64) -> bool {
        self.segment == segment && (self.first..self.end).contains(&group)
    }

    pub(super) fn record(&self) -> StateRecord {
        StateRecord::Doubt {
            first: self.first,
            end: self.end,
            segment: self.segment,
        }
    }
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
    /// When settlements were handed to a group the last time, and whether they came sparsely.
    pub(super) settled_at: Mono,
    pub(super) settled_sparsely: bool,
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
    /// No file could be made for want of space or inodes: not tried again before this.
    pub(super) no_files_until: Option<Mono>,
    /// Sequences of messages that were refused although they may be whole on the disk, while their
    /// tombstones are not durable. No fresh message is written meanwhile.
    pub(super) graves: BTreeSet<u64>,
    pub(super) mail_failure: Option<Failure>,
    pub(super) state_failure: Option<Failure>,
    pub(super) closing: bool,
    pub(super) marked_clean: bool,
    pub(super) reclaim: Reclaim,
    /// While recovery's messages are being taken over.
    pub(super) loading: Option<Loading>,
    pub(super) checkpoint: Option<Checkpoint>,
    pub(super) checkpoint_bytes: u64,
    /// Groups in unread segments that nothing vouches for.
    pub(super) doubts: Vec<Doubt>,
    /// What recovery knew, while some segment is unread.
    pub(super) late: Option<Box<Late>>,
    pub(super) damaged: u64,
    pub(super) groups_written: u64,
}

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
            settled_at: Mono(0),
            settled_sparsely: true,
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
            no_files_until: None,
            graves: BTreeSet::new(),
            mail_failure: None,
            state_failure: None,
            closing: false,
            marked_clean: false,
            reclaim: Reclaim::default(),
            loading: Some(Loading::default()),
            checkpoint: None,
            checkpoint_bytes: 0,
            doubts: Vec::new(),
            late: None,
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
        if self.free_bytes < self.config.low_water_bytes || self.state_is_starved() {
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
        let is_date = matches!(settlement.kind, SettlementKind::Deferred { .. });
        if is_date && self.settlements.len() >= limits::SPOOL_DATES_WAITING_MAX {
            // Without it a restart tries the message earlier than it would have been.
            return true;
        }
        self.settlements.push_back(settlement);
        let mut wait = self.config.settle_wait;
        if self.settled_sparsely {
            wait = wait.min(Duration::from_micros(limits::SPOOL_SETTLE_SPARSE_US));
        }
        self.due(now.after(wait));
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
    pub fn waiting_at(&self, segment: u32, slot: u32) -> Option<Waiting> {
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

    /// As [`Spool::waiting_at`], wherever it lies by now.
    #[must_use]
    pub fn waiting(&self, id: MessageId) -> Option<Waiting> {
        let place = self.place(id.sequence())?;
        self.waiting_at(place.segment, place.slot)
            .filter(|waiting| waiting.0 == id)
    }

    /// Recipients of a waiting message that have reached their end, as runs: first, how many.
    /// `None` for a message that does not wait.
    #[must_use]
    pub fn ended(&self, id: MessageId) -> Option<Vec<(u32, u32)>> {
        self.find(id)?;
        let progress = self.progress.get(&id.sequence());
        Some(progress.map_or_else(Vec::new, |progress| progress.settled_runs()))
    }

    /// Whether this recipient of a message has not reached its end.
    #[must_use]
    pub fn waits(&self, id: MessageId, recipient: u32) -> bool {
        let place = self.find(id).and_then(|_| self.place(id.sequence()));
        place.is_some_and(|place| match self.progress.get(&id.sequence()) {
            Some(progress) => progress.waits(recipient),
            None => recipient < self.total_recipients(place),
        })
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
            self.advance_reclaim();
            // What is spent serves again before more is made: a start finds some.
            if self.actions.is_empty() {
                self.make_spares(now);
            }
            self.seal_mail();
            self.advance_large();
            self.seal_state(now);
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
            .min(self.no_files_until.unwrap_or(Mono::NEVER))
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
        if self.no_files_until.is_some() {
            alarms.push(Alarm::NoFiles);
        }
        if self.late.is_some() {
            alarms.push(Alarm::Unread);
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

const _: () = assert!(GROUP_HEADER_BYTES < 4096);
