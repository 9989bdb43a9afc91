//! flow - what connections, limits and time cause: assign, dial, close, sleep, wake.

use std::cmp::Reverse;

use crate::limits::{QUEUE_STUMBLE_FIRST, QUEUE_STUMBLES_MAX, QUEUE_WORK_MAX};
use crate::time::Mono;

use super::Queue;
use super::connection::{Available, Idle, Phase};
use super::entry::State;
use super::event::{Action, Cause, CauseKind, ConnectionId};
use super::retry::jitter;
use super::shaping::Bucket;

/// Backoff is lengthened by up to so much, so that paths that failed together do not return
/// together.
const BACKOFF_JITTER_PERCENT: u8 = 20;

impl<T> Queue<T> {
    /// Gives a path's ready entries to its connections, and dials where there are too few.
    pub(super) fn pump(&mut self, index: u32, now: Mono, actions: &mut Vec<Action>) {
        let mut budget = QUEUE_WORK_MAX;
        if self.paths.at(index).spill > 0 {
            self.spill(index, &mut budget, now, actions);
        }
        let path = self.paths.at(index);
        if path.suspended || path.ready.is_empty() {
            return;
        }
        if path.sleeps(now) {
            let until = path.backoff_until;
            self.schedule(index, until);
            return;
        }
        while let Some(entry) = self.paths.at(index).ready.first() {
            if self.is_expired(entry, now) {
                if budget == 0 {
                    self.schedule(index, Mono(now.0.saturating_add(1)));
                    return;
                }
                budget -= 1;
                self.unready(entry);
                self.expire(entry, actions);
                continue;
            }
            let Some(connection) = self.paths.at(index).available.first() else {
                break;
            };
            if !self.take_token(index, now) {
                return;
            }
            self.assign(entry, connection, actions);
        }
        self.dial(index, now, actions);
    }

    /// Counts an attempt for the entries that were ready when the path failed too often, and defers
    /// them; in slices.
    fn spill(&mut self, index: u32, budget: &mut u32, now: Mono, actions: &mut Vec<Action>) {
        while self.paths.at(index).spill > 0 && *budget > 0 {
            *budget -= 1;
            let path = self.paths.at_mut(index);
            path.spill -= 1;
            let Some(entry) = path.ready.first() else {
                unreachable!("never more to spill than is ready");
            };
            self.unready(entry);
            self.defer(entry, true, now, actions);
        }
        if self.paths.at(index).spill > 0 {
            self.schedule(index, Mono(now.0.saturating_add(1)));
        }
    }

    /// Takes one message out of the path's rate; where there is none, the path is woken in time.
    fn take_token(&mut self, index: u32, now: Mono) -> bool {
        let path = self.paths.at_mut(index);
        let Some(rate) = path.limits.rate else {
            return true;
        };
        let bucket = path.bucket.get_or_insert_with(|| Bucket::new(rate, now));
        if bucket.take(now) {
            return true;
        }
        let next = bucket.next(now);
        self.schedule(index, next);
        false
    }

    fn assign(&mut self, entry: u32, connection: u32, actions: &mut Vec<Action>) {
        self.unready(entry);
        let it = self.slab.at_mut(entry);
        it.state = State::InFlight;
        let path = self.paths.at_mut(it.path);
        path.in_flight.push_back(&mut self.slab, entry);
        if self.connections.is_idle(connection) {
            self.idle
                .remove(&mut Idle(&mut self.connections), connection);
        }
        let place = self.connections.at_mut(connection);
        assert!(
            place.phase == Phase::Open,
            "only open connections are available"
        );
        assert!(place.free > 0, "an available connection has a free slot");
        place.free -= 1;
        place.assigned += 1;
        let path = self.paths.at_mut(place.path);
        if place.free == 0 || place.assigned >= path.limits.messages_per_connection_max {
            path.available
                .remove(&mut Available(&mut self.connections), connection);
        }
        actions.push(Action::Assign {
            connection: self.connections.id(connection),
            entry: self.slab.id(entry),
        });
    }

    /// Opens as many connections as there is ready mail for, within the limits.
    fn dial(&mut self, index: u32, now: Mono, actions: &mut Vec<Action>) {
        let path = self.paths.at_mut(index);
        let allowed = path.limits.connections_max.min(path.window);
        let wanted = u64::from(path.ready.len()).min(path.tokens(now));
        if wanted == 0 && !path.ready.is_empty() {
            if let Some(bucket) = &mut path.bucket {
                let next = bucket.next(now);
                self.schedule(index, next);
            }
            return;
        }
        loop {
            let path = self.paths.at_mut(index);
            if path.connections >= allowed || u64::from(path.dialing) >= wanted {
                return;
            }
            if path.connections >= path.standing.ceiling() && !path.standing.grow(now) {
                let at = path.standing.grow_at(now);
                self.schedule(index, at);
                return;
            }
            if self.connections.len() >= self.config.connections_total_max.max(1) as usize {
                if !path.hungry {
                    path.hungry = true;
                    self.hungry.push_back(index);
                }
                // An idle connection of another path makes room.
                if let Some(idle) = self.idle.first() {
                    self.close(idle, actions);
                }
                return;
            }
            if let Some(share) = &mut path.share
                && !share.take()
                && !(path.standing.grow(now) && share.take())
            {
                let lacks =
                    (wanted - u64::from(path.dialing)).min(u64::from(allowed - path.connections));
                self.wait_for_room(index, lacks, now, actions);
                return;
            }
            path.connections += 1;
            path.dialing += 1;
            let connection = self.connections.insert(index);
            actions.push(Action::Dial {
                path: self.paths.id(index),
                connection,
            });
        }
    }

    pub(super) fn connected(
        &mut self,
        id: ConnectionId,
        slots: u32,
        now: Mono,
        actions: &mut Vec<Action>,
    ) {
        let Some(index) = self.connections.find(id) else {
            self.stale_events += 1;
            return;
        };
        let place = self.connections.at_mut(index);
        assert!(place.phase == Phase::Dialing, "a connection connects once");
        place.phase = Phase::Open;
        place.slots = slots.max(1);
        place.free = place.slots;
        let path = place.path;
        let it = self.paths.at_mut(path);
        it.dialing -= 1;
        it.standing.opened();
        if it.sleeps(now) {
            // Dialled before the path fell asleep. It greets, so it is asked before others are.
            it.backoff_until = now;
            it.standing.shrink(now);
        }
        it.available
            .push_front(&mut Available(&mut self.connections), index);
        self.rest(index, now);
        self.pump(path, now, actions);
        self.watch_idle(index, path, now);
    }

    pub(super) fn free(&mut self, id: ConnectionId, now: Mono, actions: &mut Vec<Action>) {
        let Some(index) = self.connections.find(id) else {
            self.stale_events += 1;
            return;
        };
        let place = self.connections.at_mut(index);
        assert!(
            place.phase == Phase::Open,
            "a slot grows free on an open connection"
        );
        assert!(place.free < place.slots, "a slot grows free once");
        place.free += 1;
        let (path, idle) = (place.path, place.free == place.slots);
        let spent = place.assigned >= self.paths.at(path).limits.messages_per_connection_max;
        if self.gives_way(path) {
            self.leave(index);
        }
        if spent || self.connections.at(index).leaving {
            if idle {
                self.close(index, actions);
            } else if self.connections.is_available(index) {
                // It was retired, or the limit lowered meanwhile.
                let available = &mut self.paths.at_mut(path).available;
                available.remove(&mut Available(&mut self.connections), index);
            }
        } else {
            if !self.connections.is_available(index) {
                let available = &mut self.paths.at_mut(path).available;
                available.push_front(&mut Available(&mut self.connections), index);
            }
            if idle {
                self.rest(index, now);
            }
        }
        self.pump(path, now, actions);
        self.watch_idle(index, path, now);
    }

    /// Starts the idle time of a connection.
    fn rest(&mut self, index: u32, now: Mono) {
        self.connections.at_mut(index).idle_since = now;
        self.idle.push_back(&mut Idle(&mut self.connections), index);
    }

    /// Says `Close` to a connection that has nothing assigned.
    pub(super) fn close(&mut self, index: u32, actions: &mut Vec<Action>) {
        let place = self.connections.at_mut(index);
        assert!(
            place.phase == Phase::Open,
            "only open connections are closed"
        );
        assert!(
            place.free == place.slots,
            "nothing is closed in the middle of a transaction"
        );
        place.phase = Phase::Closing;
        self.leave(index);
        self.unlist(index);
        actions.push(Action::Close {
            connection: self.connections.id(index),
        });
    }

    /// Takes a connection off the lists it is on.
    fn unlist(&mut self, index: u32) {
        let path = self.connections.at(index).path;
        if self.connections.is_available(index) {
            let available = &mut self.paths.at_mut(path).available;
            available.remove(&mut Available(&mut self.connections), index);
        }
        if self.connections.is_idle(index) {
            self.idle.remove(&mut Idle(&mut self.connections), index);
        }
    }

    /// A connection is gone, or never came to be.
    pub(super) fn closed(
        &mut self,
        id: ConnectionId,
        cause: Cause,
        now: Mono,
        actions: &mut Vec<Action>,
    ) {
        let Some(index) = self.connections.find(id) else {
            self.stale_events += 1;
            return;
        };
        self.unlist(index);
        let place = self.connections.at(index);
        let (path, phase, leaving) = (place.path, place.phase, place.leaving);
        let busy = place.slots - place.free;
        let (used, useless) = (place.assigned > 0, place.assigned == busy);
        self.connections.remove(index);
        let it = self.paths.at_mut(path);
        it.connections -= 1;
        it.leaving -= u32::from(leaving);
        if phase != Phase::Dialing {
            it.standing.shut();
        }
        if let Some(share) = &mut it.share {
            share.give_back();
            assert!(
                share.held() == it.connections,
                "each connection has its grant"
            );
        }
        let kind = cause.kind;
        if kind != CauseKind::Idle {
            it.note_error(cause);
        }
        // A connection that ends before it did anything for the mail that it was given is a failure
        // whatever it is called: dialling again at once would be a busy loop.
        let failed = match phase {
            Phase::Dialing => {
                it.dialing -= 1;
                it.counters.dials_failed += 1;
                true
            }
            Phase::Open if kind == CauseKind::Spent => false,
            Phase::Open => {
                kind == CauseKind::Host || (useless && (used || kind == CauseKind::Connection))
            }
            Phase::Closing => kind == CauseKind::Host,
            Phase::Gone => unreachable!("found a line ago"),
        };
        if failed {
            self.trouble(path, now);
        }
        self.feed(now, actions);
        self.pump(path, now, actions);
        self.paths.review(path, &self.config);
    }

    /// Gives the room of a connection that ended to the paths that wait for it, in turn.
    fn feed(&mut self, now: Mono, actions: &mut Vec<Action>) {
        while self.connections.len() < self.config.connections_total_max.max(1) as usize {
            let Some(index) = self.hungry.pop_front() else {
                return;
            };
            // The path may have been forgotten meanwhile, and another one be in its place.
            if std::mem::take(&mut self.paths.at_mut(index).hungry) {
                self.pump(index, now, actions);
            }
        }
    }

    /// A host refused a connection, or ended one that had done nothing. What follows depends on
    /// what else the host does. Troubles while the path sleeps already are the echo of the same
    /// one.
    pub(super) fn trouble(&mut self, index: u32, now: Mono) {
        let path = self.paths.at_mut(index);
        if path.sleeps(now) {
            return;
        }
        if path.standing.works(now) {
            path.standing.shrink(now);
        } else if path.standing.is_proven(now) && path.stumbles < QUEUE_STUMBLES_MAX {
            let delay = QUEUE_STUMBLE_FIRST * (1 << path.stumbles);
            path.stumbles += 1;
            path.window = 1;
            path.successes = 0;
            path.backoff_until = now.after(jitter(delay, BACKOFF_JITTER_PERCENT, &mut self.random));
        } else {
            self.fail(index, now);
        }
    }

    /// Counts a failure of the path's host; the path sleeps.
    fn fail(&mut self, index: u32, now: Mono) {
        let backoff = self.config.backoff;
        let path = self.paths.at_mut(index);
        path.standing.forget();
        path.failures = path.failures.saturating_add(1);
        let factor = 1u32.checked_shl(path.failures - 1).unwrap_or(u32::MAX);
        let delay = backoff.first.saturating_mul(factor).min(backoff.max);
        path.backoff_until = now.after(jitter(delay, BACKOFF_JITTER_PERCENT, &mut self.random));
        // One connection asks whether the host takes mail again. With two, a host that takes one at
        // a time refuses the other each time, and the path sleeps while the first stays without
        // work.
        path.window = 1;
        path.successes = 0;
        if path.failures >= backoff.failures_max.max(1) {
            path.spill = path.ready.len();
        }
    }

    /// Wakes the path at `at`, or earlier where it is to be woken earlier already.
    pub(super) fn schedule(&mut self, index: u32, at: Mono) {
        let path = self.paths.at_mut(index);
        if at < path.wake_at {
            path.wake_at = at;
            self.timers.push(Reverse((at, index, path.generation)));
        }
    }

    pub(super) fn wake(&mut self, now: Mono, actions: &mut Vec<Action>) {
        self.announced = Mono::NEVER;
        self.wheel_moved = true;
        let tick = self.tick(now);
        let mut budget = QUEUE_WORK_MAX;
        while let Some(entry) = self.wheel.pop(&mut self.slab, tick, &mut budget) {
            let path = self.slab.at(entry).path;
            self.unhang(path);
            if self.is_expired(entry, now) {
                self.expire(entry, actions);
            } else {
                self.make_ready(entry, false);
                self.pump(path, now, actions);
            }
        }
        // What a path schedules while it is pumped is later than `now`, so this ends.
        while let Some(&Reverse((at, index, generation))) = self.timers.peek()
            && at <= now
        {
            self.timers.pop();
            let path = self.paths.at_mut(index);
            if path.generation == generation && path.wake_at == at {
                path.wake_at = Mono::NEVER;
                self.look(index, now, actions);
            }
        }
        while let Some(index) = self.idle.first()
            && self
                .connections
                .at(index)
                .idle_since
                .after(self.config.idle_max)
                <= now
        {
            self.close(index, actions);
        }
    }

    /// Tells the driver the next time to wake, where it is earlier than what it was told.
    pub(super) fn announce(&mut self, actions: &mut Vec<Action>) {
        let moved = std::mem::take(&mut self.wheel_moved);
        let wheel = if moved { self.wheel.next() } else { None };
        let wheel = wheel.map(|tick| self.time_of(tick));
        let timer = self.timers.peek().map(|Reverse((at, _, _))| *at);
        let idle = self.idle.first();
        let idle = idle.map(|i| {
            self.connections
                .at(i)
                .idle_since
                .after(self.config.idle_max)
        });
        let next = [wheel, timer, idle].into_iter().flatten().min();
        if let Some(next) = next
            && next < self.announced
        {
            self.announced = next;
            actions.push(Action::WakeAt(next));
        }
    }
}
