//! Core - what a port, a stream and the runtime share: the reactor, the tasks, the clocks.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use super::reactor::{Owner, Reactor};
use super::remote::Shared;
use super::tasks::Tasks;
use super::wheel::{Fire, TimerKey};
use crate::engine::sys::ring::{Memory, OpKey, Request};
use crate::time::{Mono, Wall};

/// One shard's inside.
pub(crate) struct Core {
    pub(crate) reactor: RefCell<Reactor>,
    pub(crate) tasks: Tasks,
    pub(crate) shared: Arc<Shared>,
    pub(crate) now: Cell<Mono>,
    pub(crate) wall: Cell<Wall>,
    pub(crate) random: Cell<u64>,
    /// Who waits for remote wakes.
    pub(crate) listener: RefCell<Option<Waker>>,
    /// The runtime is ending: no new tasks.
    pub(crate) stopping: Cell<bool>,
    /// The ring is not driven any more.
    pub(crate) stopped: Cell<bool>,
    /// Nanoseconds spent asleep so far.
    pub(crate) slept: Cell<u64>,
    /// Whether the file system took O_DIRECT so far.
    pub(crate) direct: Cell<bool>,
}

/// Reads the monotonic clock.
pub(crate) fn mono() -> Mono {
    // The clock exists on every Linux; a zero would only delay timers.
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map(Duration::from)
        .unwrap_or_default();
    Mono(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

/// What this thread has used of a processor.
pub(crate) fn processor_time() -> Duration {
    // The clock exists on every Linux; a zero would only keep sessions where they are.
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
        .map(Duration::from)
        .unwrap_or_default()
}

fn wall() -> Wall {
    let time = clock_gettime(ClockId::CLOCK_REALTIME)
        .map(Duration::from)
        .unwrap_or_default();
    Wall(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

impl Core {
    /// Brings the cached clocks up to date.
    pub(crate) fn read_clocks(&self) {
        self.now.set(mono());
        self.wall.set(wall());
    }

    /// One turn of the loop: tasks, then the kernel, then what it reported. `limit` bounds the
    /// sleep. True when the main future is to be polled next.
    pub(crate) fn turn(&self, limit: Duration) -> bool {
        self.shared.collect();
        let main = self.tasks.run(&self.shared, mono, || {
            if self.reactor.borrow_mut().ring.wants_enter() {
                self.exchange(None);
            }
        });
        let idle = !main
            && self
                .shared
                .ready
                .with(|ready| ready.is_empty())
                .unwrap_or(true);
        let wait = {
            let reactor = self.reactor.borrow();
            (idle && !reactor.is_hungry()).then(|| self.sleep_time(&reactor, limit))
        };
        self.exchange(wait.flatten());
        main
    }

    /// Gives the kernel what was started, sleeping at most for `wait`, and handles what it reports.
    fn exchange(&self, wait: Option<Duration>) {
        let mut reactor = self.reactor.borrow_mut();
        let asleep_at = wait.map(|_| mono());
        if wait.is_some() || reactor.ring.wants_enter() {
            let entered = reactor.ring.enter(wait);
            self.shared.awake();
            if let Err(error) = entered {
                // The ring itself is broken (a bad descriptor, a fault): the shard cannot go on.
                drop(reactor);
                panic!("io_uring_enter: {error}");
            }
        }
        self.read_clocks();
        if let Some(since) = asleep_at {
            self.slept
                .set(self.slept.get() + self.now.get().0.saturating_sub(since.0));
        }
        reactor.turn(self.now.get(), self.stopping.get());
        drop(reactor);
        if self.shared.is_rung()
            && let Some(waiter) = self.listener.borrow_mut().take()
        {
            waiter.wake();
        }
    }

    /// How long to sleep; None when something is left to do.
    fn sleep_time(&self, reactor: &Reactor, limit: Duration) -> Option<Duration> {
        let idle = reactor
            .wheel
            .idle_for(self.now.get())
            .unwrap_or(Duration::MAX)
            .min(limit);
        // With nobody to tell, a ring is no reason to stay awake.
        let notified = self.listener.borrow().is_none();
        (!idle.is_zero() && self.shared.may_sleep(notified)).then_some(idle)
    }

    /// Starts an operation of its own. With `cancel`, dropping the future ends it early.
    pub(crate) fn operate(
        self: &Rc<Self>,
        fd: Option<&Rc<OwnedFd>>,
        request: Request,
        cancel: bool,
    ) -> Operation {
        let mut reactor = self.reactor.borrow_mut();
        let key = reactor
            .ring
            .start(fd.cloned(), request, Owner::Waiting(None));
        Operation {
            core: Rc::clone(self),
            key,
            cancel,
            over: false,
        }
    }
}

/// Waits for one operation. Dropped, the operation is an orphan and keeps its memory until it ends.
pub(crate) struct Operation {
    core: Rc<Core>,
    pub(crate) key: OpKey,
    cancel: bool,
    over: bool,
}

impl Future for Operation {
    type Output = (i32, Memory);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let done = self
            .core
            .reactor
            .borrow_mut()
            .poll_op(self.key, context.waker());
        match done {
            Some(done) => {
                self.over = true;
                Poll::Ready(done)
            }
            None => Poll::Pending,
        }
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        if !self.over {
            self.core.reactor.borrow_mut().orphan(self.key, self.cancel);
        }
    }
}

/// Waits for a date.
pub(crate) struct Sleep {
    pub(crate) core: Rc<Core>,
    pub(crate) deadline: Mono,
    pub(crate) timer: Option<TimerKey>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.core.now.get() >= self.deadline {
            return Poll::Ready(());
        }
        if self.deadline == Mono::NEVER {
            return Poll::Pending;
        }
        let core = Rc::clone(&self.core);
        let wheel = &mut core.reactor.borrow_mut().wheel;
        match self.timer.and_then(|timer| wheel.fire_mut(timer)) {
            Some(Fire::Task(waker)) => waker.clone_from(context.waker()),
            _ => {
                let fire = Fire::Task(context.waker().clone());
                self.timer = Some(wheel.set(self.deadline, fire));
            }
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(timer) = self.timer {
            self.core.reactor.borrow_mut().wheel.cancel(timer);
        }
    }
}
