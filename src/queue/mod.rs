//! queue - the brain: who goes next and when. Pure: `apply(event, now) -> actions`.
//!
//! What: an entry is one destination of one message; it is ready, in flight, deferred or expired,
//! and on exactly one list. Ready and in-flight entries hang on their egress path (source, site),
//! deferred ones on one timer wheel. The driver moves bytes and reports; the brain decides what is
//! dialled, assigned, deferred and given up.
//!
//! Worked example, one message over a new path:
//! ```text
//! Enqueue                       -> Dial c
//! Connected { c, slots: 2 }     -> Assign { c, entry }
//! Outcome { entry, None }       ->                       (entry removed)
//! Free { c }                    -> WakeAt(idle timeout)
//! Wake                          -> Close { c }
//! Closed { c, Idle }            ->                       (path vacant)
//! ```
//! Rules of the house:
//! - A path opens few connections at first (slow start) and doubles them with each window of
//!   successes, never over its limit. Connections being closed count until they are gone.
//! - A connection that took mail and is then ended by its host is used up, nothing else: its entry
//!   goes back without an attempt, and the next connection may be dialled.
//! - A 421 before that, a failed dial, or a connection lost before it did anything: where other
//!   connections are open and took mail lately, the host takes no more than these, and the path
//!   tries one more now and then ([`standing`]). Where none is left, it rests shortly, a few
//!   times; then, or where the host took nothing lately, the path has failed: it sleeps, longer
//!   each time; its entries stay ready. After `failures_max` in a row they count an attempt and are
//!   deferred, so that they expire in the end. Failures while a path sleeps belong to the same one.
//! - An entry that has reached its expiry when it is due, or when it would be assigned, is handed
//!   out
//!   as `Expired`. Entries of a suspended path wait for `Resume`.
//! - Where several shards send on a path, each dial needs a grant of the connections that they
//!   share ([`Grants`]); a shard that has more than others need gives way.
//! - One event moves at most `limits::QUEUE_WORK_MAX` entries; the rest follows with a `WakeAt`.
//!
//! Budget: enqueue, assign and outcome together under 150 ns; no allocation in the steady state;
//! 64 bytes per entry (`benches/queue.rs`).
//! Map: [`entry`] slab, [`ready`] lists, [`wheel`] timers, [`path`], [`connection`], `flow` what
//! connections and time cause, [`grants`] the connections that shards share, `room` what a brain
//! does about them, [`standing`] what a host takes, [`retry`], [`shaping`], [`config`], [`event`].
//! Standards: RFC 5321 4.5.4.1 (retry, expiry, 421), 4.5.3.1.10 (next batch).

mod config;
mod connection;
mod entry;
mod event;
mod flow;
mod grants;
mod path;
mod ready;
mod retry;
mod room;
mod shaping;
mod standing;
mod wheel;

#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::limits::{QUEUE_EXPIRY_MAX, QUEUE_RETURNS_MAX};
use crate::message::MessageId;
use crate::time::Mono;

pub use config::{BackoffPolicy, PathLimits, PathRule, QueueConfig, SitePattern};
pub use entry::{Entry, EntryId, Recipients, State};
pub use event::{Action, Cause, CauseKind, ConnectionId, Event, PathId};
pub use grants::Grants;
pub use path::{PathCounters, PathReport};
pub use retry::{RetryError, RetryPolicy};
pub use shaping::{Bucket, Rate, RateError};

use connection::Connections;
use entry::Slab;
use path::Paths;
use ready::{Links, List};
use wheel::Wheel;

/// Nanoseconds of a tick, as a power of two: 67 ms, fine enough for delays of seconds and coarse
/// enough for nine years in 32 bits.
const TICK_BITS: u32 = 26;
/// The tick of the first event: messages may be older than the process, by the longest expiry.
const TICK_ORIGIN: u32 = 1 << 26;
const _: () = assert!(QUEUE_EXPIRY_MAX.as_nanos() >> TICK_BITS < TICK_ORIGIN as u128);

/// SplitMix64: small, seeded, good enough for jitter.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; zero where `bound` is zero.
    fn below(&mut self, bound: u64) -> u64 {
        let wide = u128::from(self.next()) * u128::from(bound);
        // The high half of the product is below `bound`.
        (wide >> 64) as u64
    }
}

/// How many entries are where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QueueCounters {
    /// Entries in all.
    pub entries: u32,
    /// Of these, waiting for their time.
    pub deferred: u32,
    /// Connections, dialing and closing ones included.
    pub connections: u32,
    /// Events for something that was gone; ignored.
    pub stale_events: u64,
}

/// All entries of one shard, its egress paths and connections.
#[derive(Debug)]
pub struct Queue<T> {
    config: QueueConfig,
    slab: Slab<T>,
    wheel: Wheel,
    paths: Paths,
    connections: Connections,
    /// Idle connections, the longest idle one first.
    idle: List,
    /// Paths that wait for a connection of the total.
    hungry: VecDeque<u32>,
    /// When a path has something to do: (time, index, generation). Outdated ones are skipped.
    timers: BinaryHeap<Reverse<(Mono, u32, u32)>>,
    /// What the last `WakeAt` said.
    announced: Mono,
    /// The wheel may be due earlier than `announced`: only after an insert or a `Wake`. Most
    /// messages never touch the wheel, and then need not look at it.
    wheel_moved: bool,
    /// The time of the first event, and of the last.
    base: Option<Mono>,
    last: Mono,
    random: Random,
    stale_events: u64,
}

impl<T> Queue<T> {
    /// An empty queue.
    #[must_use]
    pub fn new(config: QueueConfig) -> Self {
        Self {
            slab: Slab::new(),
            wheel: Wheel::new(TICK_ORIGIN),
            paths: Paths::new(),
            connections: Connections::new(),
            idle: List::EMPTY,
            hungry: VecDeque::new(),
            timers: BinaryHeap::new(),
            announced: Mono::NEVER,
            wheel_moved: false,
            base: None,
            last: Mono(0),
            random: Random::new(config.seed),
            stale_events: 0,
            config,
        }
    }

    /// The same queue, sharing the connections of its paths with the queues of other shards.
    ///
    /// # Panics
    /// Where a path is known already.
    #[must_use]
    pub fn sharing(mut self, grants: Arc<Grants>) -> Self {
        self.paths.share_with(grants);
        self
    }

    /// The egress path from a source to a site, where it is known.
    #[must_use]
    pub fn known_path(&self, source: u16, site: &Arc<str>) -> Option<PathId> {
        self.paths.known(source, site)
    }

    /// The egress path from a source to a site, made where it is new.
    pub fn path(&mut self, source: u16, site: &Arc<str>) -> PathId {
        self.paths.open(source, site, &self.config)
    }

    /// The source of a path; `None` where the path is forgotten.
    #[must_use]
    pub fn source(&self, path: PathId) -> Option<u16> {
        self.paths
            .find(path)
            .map(|index| self.paths.at(index).source)
    }

    /// The site of a path; `None` where the path is forgotten.
    #[must_use]
    pub fn site(&self, path: PathId) -> Option<&Arc<str>> {
        self.paths
            .find(path)
            .map(|index| &self.paths.at(index).site)
    }

    /// The entry, unless it is gone.
    #[must_use]
    pub fn get(&self, entry: EntryId) -> Option<&Entry<T>> {
        self.slab.get(entry)
    }

    /// The entry of an action just received.
    ///
    /// # Panics
    /// Where the entry is gone: our bug.
    #[must_use]
    pub fn entry(&self, entry: EntryId) -> &Entry<T> {
        assert!(self.slab.get(entry).is_some(), "entry {entry} is gone");
        self.slab.at(entry.index)
    }

    /// What the driver keeps with an entry, to change it.
    pub fn payload_mut(&mut self, entry: EntryId) -> Option<&mut T> {
        self.slab.get(entry)?;
        Some(&mut self.slab.at_mut(entry.index).payload)
    }

    /// The path of an entry, unless the entry is gone.
    #[must_use]
    pub fn path_of(&self, entry: EntryId) -> Option<PathId> {
        self.slab.get(entry).map(|entry| self.paths.id(entry.path))
    }

    /// The path of a connection, unless the connection is gone.
    #[must_use]
    pub fn path_of_connection(&self, connection: ConnectionId) -> Option<PathId> {
        let index = self.connections.find(connection)?;
        Some(self.paths.id(self.connections.at(index).path))
    }

    /// How long ago the message of an entry was accepted, to the tick.
    #[must_use]
    pub fn age(&self, entry: EntryId, now: Mono) -> Option<Duration> {
        let ticks = self.tick(now).saturating_sub(self.slab.get(entry)?.born);
        Some(Duration::from_nanos(u64::from(ticks) << TICK_BITS))
    }

    /// All entries, in no useful order; O(n), for the operator's listings.
    pub fn entries(&self) -> impl Iterator<Item = (EntryId, &Entry<T>)> {
        self.slab.iter()
    }

    /// All paths that are known, as they were at the last event.
    pub fn paths(&self) -> impl Iterator<Item = PathReport<'_>> {
        self.paths.reports(self.last)
    }

    /// Totals.
    #[must_use]
    pub fn counters(&self) -> QueueCounters {
        QueueCounters {
            entries: self.slab.len(),
            deferred: self.wheel.len(),
            connections: u32::try_from(self.connections.len()).unwrap_or(u32::MAX),
            stale_events: self.stale_events,
        }
    }

    /// Takes another configuration; what is open or scheduled stays so. O(paths). Apply `Wake`
    /// afterwards, so that wider limits are used at once.
    pub fn reconfigure(&mut self, config: QueueConfig, now: Mono) {
        let now = self.advance(now);
        self.config = config;
        for path in self.paths.iter_mut() {
            path.configure(&self.config, now);
        }
        let waiting: Vec<u32> = self
            .paths
            .iter_mut()
            .zip(0u32..)
            .filter(|(path, _)| !path.ready.is_empty())
            .map(|(_, index)| index)
            .collect();
        for index in waiting {
            self.schedule(index, now);
        }
    }

    /// Applies one event and appends the actions that it causes. Never waits, never fails.
    ///
    /// # Panics
    /// Where the event cannot be true: a bug of the driver, which must not go on with the mail.
    pub fn apply(&mut self, event: Event<T>, now: Mono, actions: &mut Vec<Action>) {
        let now = self.advance(now);
        match event {
            Event::Enqueue {
                path,
                message,
                recipients,
                age,
                attempts,
                due,
                payload,
            } => {
                let fresh = Fresh {
                    message,
                    recipients,
                    attempts,
                    payload,
                };
                self.enqueue(path, fresh, age, due, now, actions);
            }
            Event::Connected { connection, slots } => {
                self.connected(connection, slots, now, actions);
            }
            Event::Free { connection } => self.free(connection, now, actions),
            Event::DialFailed { connection, cause } | Event::Closed { connection, cause } => {
                self.closed(connection, cause, now, actions);
            }
            Event::Outcome {
                entry,
                deferred,
                cause,
            } => {
                self.outcome(entry, deferred, cause, now, actions);
            }
            Event::Suspend { path } => self.suspend(path),
            Event::Resume { path } => self.resume(path, now, actions),
            Event::Requeue { entry } => self.requeue(entry, now, actions),
            Event::Expire { entry } => self.expire_by_operator(entry, actions),
            Event::MakeRoom { path } => self.asked_for_room(path, now, actions),
            Event::Wake => self.wake(now, actions),
        }
        self.announce(actions);
    }

    /// Time never runs back, and starts with the first event.
    fn advance(&mut self, now: Mono) -> Mono {
        self.last = self.last.max(now);
        self.base.get_or_insert(self.last);
        self.last
    }

    /// The tick that contains `now`.
    fn tick(&self, now: Mono) -> u32 {
        let base = self.base.unwrap_or(now);
        let ticks = now.0.saturating_sub(base.0) >> TICK_BITS;
        u32::try_from(ticks).map_or(u32::MAX, |ticks| ticks.saturating_add(TICK_ORIGIN))
    }

    /// The first tick that does not begin before `at`.
    fn tick_not_before(&self, at: Mono) -> u32 {
        self.tick(Mono(at.0.saturating_add((1 << TICK_BITS) - 1)))
    }

    /// When a tick begins.
    fn time_of(&self, tick: u32) -> Mono {
        let base = self.base.unwrap_or_default();
        let ticks = u64::from(tick.saturating_sub(TICK_ORIGIN));
        Mono(base.0.saturating_add(ticks << TICK_BITS))
    }

    /// The tick at which an entry is too old.
    fn expiry_tick(&self, entry: &Entry<T>) -> u32 {
        let retry = self.config.retry_of(self.paths.at(entry.path).rule);
        entry.born.saturating_add(ticks_of(retry.expiry()))
    }

    fn is_expired(&self, index: u32, now: Mono) -> bool {
        let entry = self.slab.at(index);
        self.tick(now) >= self.expiry_tick(entry)
    }

    fn enqueue(
        &mut self,
        path: PathId,
        fresh: Fresh<T>,
        age: Duration,
        due: Mono,
        now: Mono,
        actions: &mut Vec<Action>,
    ) {
        let Some(path) = self.paths.find(path) else {
            panic!("a path is asked for just before it is used");
        };
        let id = self.slab.insert(Entry {
            message: fresh.message,
            payload: fresh.payload,
            recipients: fresh.recipients,
            born: self.tick(now).saturating_sub(ticks_of(age)),
            due: 0,
            links: Links::DETACHED,
            path,
            generation: 0,
            attempts: fresh.attempts,
            slot: 0,
            returns: 0,
            state: State::Moving,
        });
        if due > now {
            let due = self
                .tick_not_before(due)
                .min(self.expiry_tick(self.slab.at(id.index)));
            self.hang(id.index, due);
        } else {
            self.make_ready(id.index, false);
        }
        self.paths.review(path, &self.config);
        self.pump(path, now, actions);
    }

    fn outcome(
        &mut self,
        id: EntryId,
        deferred: Option<Recipients>,
        cause: Cause,
        now: Mono,
        actions: &mut Vec<Action>,
    ) {
        let Some(entry) = self.slab.get(id) else {
            self.stale_events += 1;
            return;
        };
        let (index, path, was) = (id.index, entry.path, entry.state);
        let before = entry.recipients.count();
        self.take_back(index);
        let Some(recipients) = deferred else {
            self.slab.remove(index);
            self.settled(path, was, now, actions);
            self.paths.review(path, &self.config);
            return;
        };
        assert!(
            recipients.count() <= before,
            "an attempt never adds recipients"
        );
        let fewer = recipients.count() < before;
        self.slab.at_mut(index).recipients = recipients;
        let kind = cause.kind;
        self.blame(path, cause, was, now);
        let again = match kind {
            CauseKind::NotTried => true,
            CauseKind::NextBatch => fewer,
            _ => self.goes_back(index, kind, now),
        };
        if again && was == State::InFlight {
            self.make_ready(index, true);
        } else {
            self.defer(index, was == State::InFlight, now, actions);
        }
        self.pump(path, now, actions);
    }

    /// Whether an entry goes back without an attempt: its connection ended, and its host works.
    fn goes_back(&mut self, index: u32, kind: CauseKind, now: Mono) -> bool {
        let entry = self.slab.at_mut(index);
        let path = self.paths.at(entry.path);
        let innocent = match kind {
            CauseKind::Spent => true,
            CauseKind::Host | CauseKind::Connection => {
                !path.sleeps(now) && path.standing.works(now)
            }
            _ => false,
        };
        if !innocent || entry.returns >= QUEUE_RETURNS_MAX {
            return false;
        }
        entry.returns += 1;
        true
    }

    /// Takes an entry that the driver had off its list.
    fn take_back(&mut self, index: u32) {
        let entry = self.slab.at_mut(index);
        let (path, was) = (entry.path, entry.state);
        entry.state = State::Moving;
        let path = self.paths.at_mut(path);
        match was {
            State::InFlight => path.in_flight.remove(&mut self.slab, index),
            State::Expired => path.expired.remove(&mut self.slab, index),
            State::Moving | State::Ready | State::Deferred => {
                panic!("an outcome for an entry that the driver did not have: {was:?}")
            }
        }
    }

    /// Slow start: a window of successes doubles the window.
    fn settled(&mut self, index: u32, was: State, now: Mono, actions: &mut Vec<Action>) {
        let path = self.paths.at_mut(index);
        path.counters.settled += 1;
        if was != State::InFlight {
            return;
        }
        path.standing.accepted(now);
        if path.sleeps(now) {
            if path.connections == path.dialing {
                return;
            }
            // Something is open, and mail was taken: the host is not down.
            path.backoff_until = now;
            path.spill = 0;
            path.standing.shrink(now);
        }
        path.failures = 0;
        path.stumbles = 0;
        path.successes += 1;
        if path.successes >= path.window && path.window < path.limits.connections_max {
            path.window = path
                .window
                .saturating_mul(2)
                .min(path.limits.connections_max);
            path.successes = 0;
            self.pump(index, now, actions);
        }
    }

    /// Counts an attempt that did not settle, and makes the path sleep where its host asked for it.
    fn blame(&mut self, index: u32, cause: Cause, was: State, now: Mono) {
        let path = self.paths.at_mut(index);
        let kind = cause.kind;
        match kind {
            CauseKind::Recipient | CauseKind::Settled => path.counters.deferred_recipient += 1,
            CauseKind::Host => path.counters.deferred_host += 1,
            CauseKind::Connection | CauseKind::Idle => path.counters.deferred_connection += 1,
            CauseKind::Ambiguous => path.counters.ambiguous += 1,
            CauseKind::Local => path.counters.deferred_local += 1,
            CauseKind::Spent => path.counters.spent += 1,
            CauseKind::NextBatch | CauseKind::NotTried => return,
        }
        path.note_error(cause);
        if kind == CauseKind::Recipient && was == State::InFlight && !path.sleeps(now) {
            // The host talks: its 4xx is about the mail.
            path.failures = 0;
        }
        if kind == CauseKind::Host {
            self.trouble(index, now);
        }
    }

    /// Schedules the next attempt. `attempted` is false for an entry whose report could not be
    /// made: it is past its expiry already and only waits.
    fn defer(&mut self, index: u32, attempted: bool, now: Mono, actions: &mut Vec<Action>) {
        let entry = self.slab.at_mut(index);
        assert!(
            entry.state == State::Moving,
            "an entry leaves its list before it is deferred"
        );
        if attempted {
            entry.returns = 0;
            entry.attempts = entry.attempts.saturating_add(1);
        }
        let (attempts, path) = (entry.attempts, entry.path);
        if attempted && self.is_expired(index, now) {
            self.expire(index, actions);
            return;
        }
        let retry = self.config.retry_of(self.paths.at(path).rule);
        let delay = retry.jittered(attempts, &mut self.random);
        let mut due = self.tick_not_before(now.after(delay));
        if attempted {
            // The sender hears of the end when it comes, not at the next attempt after it.
            due = due.min(self.expiry_tick(self.slab.at(index)));
        }
        self.hang(index, due);
        let (entry, next) = (self.slab.id(index), self.time_of(due));
        actions.push(Action::Deferred {
            entry,
            attempts,
            next,
        });
    }

    /// Hangs an entry on the wheel.
    fn hang(&mut self, index: u32, due: u32) {
        let entry = self.slab.at_mut(index);
        entry.due = due;
        self.paths.at_mut(entry.path).deferred += 1;
        self.wheel.insert(&mut self.slab, index);
        self.wheel_moved = true;
    }

    /// Takes an entry off the wheel's account after it left the wheel.
    fn unhang(&mut self, path: u32) {
        let deferred = &mut self.paths.at_mut(path).deferred;
        assert!(*deferred > 0, "a path counts its deferred entries");
        *deferred -= 1;
    }

    fn make_ready(&mut self, index: u32, first: bool) {
        let entry = self.slab.at_mut(index);
        assert!(
            entry.state == State::Moving,
            "an entry leaves its list before it is ready"
        );
        entry.state = State::Ready;
        let ready = &mut self.paths.at_mut(entry.path).ready;
        if first {
            ready.push_front(&mut self.slab, index);
        } else {
            ready.push_back(&mut self.slab, index);
        }
    }

    /// Takes an entry off its path's ready list.
    fn unready(&mut self, index: u32) {
        let entry = self.slab.at_mut(index);
        assert!(
            entry.state == State::Ready,
            "only ready entries are on a ready list"
        );
        entry.state = State::Moving;
        let path = self.paths.at_mut(entry.path);
        path.ready.remove(&mut self.slab, index);
        path.spill = path.spill.min(path.ready.len());
    }

    /// Hands an entry out as expired.
    fn expire(&mut self, index: u32, actions: &mut Vec<Action>) {
        let entry = self.slab.at_mut(index);
        assert!(
            entry.state == State::Moving,
            "an entry leaves its list before it expires"
        );
        entry.state = State::Expired;
        let path = self.paths.at_mut(entry.path);
        path.counters.expired += 1;
        path.expired.push_back(&mut self.slab, index);
        actions.push(Action::Expired {
            entry: self.slab.id(index),
        });
    }

    fn requeue(&mut self, id: EntryId, now: Mono, actions: &mut Vec<Action>) {
        match self.slab.get(id).map(|entry| (entry.state, entry.path)) {
            Some((State::Deferred, path)) => {
                self.wheel.remove(&mut self.slab, id.index);
                self.unhang(path);
                self.make_ready(id.index, true);
                self.pump(path, now, actions);
            }
            Some(_) => {}
            None => self.stale_events += 1,
        }
    }

    fn expire_by_operator(&mut self, id: EntryId, actions: &mut Vec<Action>) {
        match self.slab.get(id).map(|entry| (entry.state, entry.path)) {
            Some((State::Deferred, path)) => {
                self.wheel.remove(&mut self.slab, id.index);
                self.unhang(path);
                self.expire(id.index, actions);
            }
            Some((State::Ready, _)) => {
                self.unready(id.index);
                self.expire(id.index, actions);
            }
            Some(_) => {}
            None => self.stale_events += 1,
        }
    }

    fn suspend(&mut self, path: PathId) {
        let Some(index) = self.paths.find(path) else {
            self.stale_events += 1;
            return;
        };
        self.paths.at_mut(index).suspended = true;
        self.paths.review(index, &self.config);
    }

    fn resume(&mut self, path: PathId, now: Mono, actions: &mut Vec<Action>) {
        let Some(index) = self.paths.find(path) else {
            self.stale_events += 1;
            return;
        };
        let path = self.paths.at_mut(index);
        path.suspended = false;
        path.backoff_until = now;
        path.failures = 0;
        path.stumbles = 0;
        path.standing.forget();
        path.spill = 0;
        self.paths.review(index, &self.config);
        self.pump(index, now, actions);
    }
}

/// What an `Enqueue` brings for the entry itself.
struct Fresh<T> {
    message: MessageId,
    recipients: Recipients,
    attempts: u16,
    payload: T,
}

/// A duration in whole ticks, rounded up.
fn ticks_of(duration: Duration) -> u32 {
    let ticks = duration.as_nanos().div_ceil(1 << TICK_BITS);
    u32::try_from(ticks).unwrap_or(u32::MAX)
}
