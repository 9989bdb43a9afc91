//! standing - what the host of a path has shown to take, known to every shard that sends there.
//!
//! What: the connections that are open, when mail was last taken, and a ceiling: where a host
//! refuses one connection while others deliver, it takes no more than these. The ceiling is raised
//! by one after a while (additive increase); a raise that is refused doubles the while.
//! Memory order: all of it is advice about when to dial. Each value stands for itself; the limit of
//! the configuration is counted exactly elsewhere (`grants`).

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::time::Duration;

use crate::limits::{QUEUE_GROW_FIRST, QUEUE_GROW_MAX, QUEUE_PROOF};
use crate::time::Mono;

/// How exactly the time of the last success is kept: it is shared, and must not be written for each
/// message.
const PROOF_GRAIN: Duration = Duration::from_millis(250);

/// What all shards know about the host of a path.
#[derive(Debug, Default)]
pub(super) struct Reach {
    /// Connections whose host has greeted, until they are gone.
    open: AtomicU32,
    /// Connections that the host takes; 0 where it never refused one.
    ceiling: AtomicU32,
    /// When mail was last taken; 0 for never.
    accepted_at: AtomicU64,
    /// The ceiling may be raised from then on.
    grow_at: AtomicU64,
    /// Nanoseconds between two raises; 0 is taken as `QUEUE_GROW_FIRST`.
    grow_wait: AtomicU64,
    /// It was raised, and what came of that is not known.
    probing: AtomicBool,
}

impl Reach {
    /// Connections that the host takes, as far as is known.
    pub(super) fn ceiling(&self) -> u32 {
        match self.ceiling.load(Relaxed) {
            0 => u32::MAX,
            ceiling => ceiling,
        }
    }

    fn wait(&self) -> Duration {
        Duration::from_nanos(self.grow_wait.load(Relaxed)).max(QUEUE_GROW_FIRST)
    }
}

/// One shard's view of it. Its connections are counted out when it is dropped.
#[derive(Debug, Default)]
pub(super) struct Standing {
    reach: Arc<Reach>,
    open: u32,
}

impl Standing {
    pub(super) fn new(reach: Arc<Reach>) -> Self {
        Self { reach, open: 0 }
    }

    pub(super) fn ceiling(&self) -> u32 {
        self.reach.ceiling()
    }

    /// A host has greeted.
    pub(super) fn opened(&mut self) {
        self.open += 1;
        let open = self.reach.open.fetch_add(1, Relaxed) + 1;
        let ceiling = self.reach.ceiling.load(Relaxed);
        if ceiling > 0 && ceiling < open {
            self.reach.ceiling.store(open, Relaxed);
        }
        if self.reach.probing.swap(false, Relaxed) {
            self.reach.grow_wait.store(0, Relaxed);
        }
    }

    /// A connection that was open is gone.
    pub(super) fn shut(&mut self) {
        assert!(self.open > 0, "each open connection ends once");
        self.open -= 1;
        self.reach.open.fetch_sub(1, Relaxed);
    }

    /// The host took a message.
    pub(super) fn accepted(&self, now: Mono) {
        let last = Mono(self.reach.accepted_at.load(Relaxed));
        if last.0 == 0 || last.after(PROOF_GRAIN) <= now {
            self.reach.accepted_at.store(now.0.max(1), Relaxed);
        }
    }

    /// Whether the host took mail lately.
    pub(super) fn is_proven(&self, now: Mono) -> bool {
        let last = self.reach.accepted_at.load(Relaxed);
        last > 0 && now <= Mono(last).after(QUEUE_PROOF)
    }

    /// Whether it took mail lately and has connections open: then it is not down.
    pub(super) fn works(&self, now: Mono) -> bool {
        self.reach.open.load(Relaxed) > 0 && self.is_proven(now)
    }

    /// The host refused a connection beyond the open ones.
    pub(super) fn shrink(&self, now: Mono) {
        let reach = &*self.reach;
        if reach.probing.swap(false, Relaxed) {
            let wait = (reach.wait() * 2).min(QUEUE_GROW_MAX);
            let wait = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
            reach.grow_wait.store(wait, Relaxed);
        }
        let open = reach.open.load(Relaxed).max(1);
        reach.ceiling.store(open, Relaxed);
        reach.grow_at.fetch_max(now.after(reach.wait()).0, Relaxed);
    }

    /// Raises the ceiling by one where it is time; false, and nothing changes, where it is not.
    pub(super) fn grow(&self, now: Mono) -> bool {
        let reach = &*self.reach;
        let (ceiling, at) = (
            reach.ceiling.load(Relaxed),
            Mono(reach.grow_at.load(Relaxed)),
        );
        if ceiling == 0 || now < at {
            return false;
        }
        let next = now.after(reach.wait()).0;
        let mine = reach.grow_at.compare_exchange(at.0, next, Relaxed, Relaxed);
        if mine.is_err() {
            // Another shard was faster.
            return false;
        }
        if at.after(QUEUE_PROOF) <= now {
            // Nobody needed more for so long: what was learned is old.
            self.forget();
        } else {
            reach.ceiling.store(ceiling.saturating_add(1), Relaxed);
            reach.probing.store(true, Relaxed);
        }
        true
    }

    /// When the ceiling may be raised; later than `now`.
    pub(super) fn grow_at(&self, now: Mono) -> Mono {
        Mono(
            self.reach
                .grow_at
                .load(Relaxed)
                .max(now.0.saturating_add(1)),
        )
    }

    /// Nothing is known any more about how many connections the host takes.
    pub(super) fn forget(&self) {
        self.reach.ceiling.store(0, Relaxed);
        self.reach.grow_wait.store(0, Relaxed);
        self.reach.probing.store(false, Relaxed);
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        self.reach.open.fetch_sub(self.open, Relaxed);
    }
}
