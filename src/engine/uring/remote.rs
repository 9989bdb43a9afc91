//! What other threads may touch of a shard: its run queue's back door and its bell.
//!
//! A ring costs a system call only when the shard sleeps. The shard says `sleeping`, then looks at
//! everything that others leave for it, then sleeps; a ringer leaves something, then looks at
//! `sleeping`. With a sequentially consistent fence between the two steps on each side at least one
//! of them sees the other (Dekker).

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::task::Wake;

use crossbeam::queue::SegQueue;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::engine::Class;
use crate::engine::sys::owner::OwnerCell;

/// In which queue a task waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Prompt,
    Ingress,
    Patient,
}

impl Kind {
    pub(crate) fn of(class: Class) -> Self {
        if class.is_patient() {
            Self::Patient
        } else if class == Class::Ingress {
            Self::Ingress
        } else {
            Self::Prompt
        }
    }
}

/// Tasks to poll, each kind in the order of the wakes.
#[derive(Default)]
pub(crate) struct Ready {
    /// What others wait for: group commits, signatures, messages from other threads.
    pub(crate) prompt: VecDeque<Arc<TaskHeader>>,
    /// Sessions.
    pub(crate) ingress: VecDeque<Arc<TaskHeader>>,
    /// What may wait a moment for those: see [`Class::is_patient`](crate::engine::Class).
    pub(crate) patient: VecDeque<Arc<TaskHeader>>,
    /// Those that gave way: not before the kernel had its turn.
    pub(crate) yielded: VecDeque<Arc<TaskHeader>>,
    /// Which task is being polled.
    pub(crate) polled: Option<u32>,
}

impl Ready {
    pub(crate) fn is_empty(&self) -> bool {
        self.prompt.is_empty()
            && self.ingress.is_empty()
            && self.patient.is_empty()
            && self.yielded.is_empty()
    }

    /// Whether something is ready that would rather run than sessions, when those are to wait.
    pub(crate) fn has_outgoing(&self) -> bool {
        !self.patient.is_empty() || !self.yielded.is_empty()
    }

    /// Takes the next of a kind.
    pub(crate) fn next(&mut self, kind: Kind) -> Option<Arc<TaskHeader>> {
        let task = self.queue(kind).pop_front();
        self.polled = task.as_ref().map(|task| task.index);
        task
    }

    /// Those that gave way have waited long enough.
    pub(crate) fn resume_yielded(&mut self) {
        while let Some(task) = self.yielded.pop_front() {
            self.queue(task.kind).push_back(task);
        }
    }

    fn queue(&mut self, kind: Kind) -> &mut VecDeque<Arc<TaskHeader>> {
        match kind {
            Kind::Prompt => &mut self.prompt,
            Kind::Ingress => &mut self.ingress,
            Kind::Patient => &mut self.patient,
        }
    }

    fn push(&mut self, task: Arc<TaskHeader>) {
        if self.polled == Some(task.index) {
            self.yielded.push_back(task);
        } else {
            self.queue(task.kind).push_back(task);
        }
    }
}

/// The part of a shard that is Sync.
pub(crate) struct Shared {
    /// Tasks to poll; the shard's thread only.
    pub(crate) ready: OwnerCell<Ready>,
    /// Tasks that other threads woke. Each task is in it at most once.
    remote: SegQueue<Arc<TaskHeader>>,
    sleeping: AtomicBool,
    rung: AtomicBool,
    closed: AtomicBool,
    bell: EventFd,
}

impl Shared {
    pub(crate) fn new() -> nix::Result<Self> {
        Ok(Self {
            ready: OwnerCell::new(Ready::default()),
            remote: SegQueue::new(),
            sleeping: AtomicBool::new(false),
            rung: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            bell: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
        })
    }

    /// A descriptor that becomes readable when the sleeping shard is rung.
    pub(crate) fn bell(&self) -> std::io::Result<OwnedFd> {
        self.bell.as_fd().try_clone_to_owned()
    }

    /// Any thread: makes the shard look for messages.
    pub(crate) fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            self.rouse();
        }
    }

    /// Whether it was rung; lowers the flag.
    pub(crate) fn take_ring(&self) -> bool {
        self.rung.load(Ordering::Relaxed) && self.rung.swap(false, Ordering::AcqRel)
    }

    /// Whether it was rung and nobody took notice yet.
    pub(crate) fn is_rung(&self) -> bool {
        self.rung.load(Ordering::Acquire)
    }

    /// The shard: moves the tasks that others woke to the run queue.
    pub(crate) fn collect(&self) {
        while let Some(task) = self.remote.pop() {
            self.push_ready(task);
        }
    }

    /// The shard: says that it is about to sleep. False when it must not, since somebody left
    /// something (`notified` tells whether a ring is already known to the one who waits for it).
    pub(crate) fn may_sleep(&self, notified: bool) -> bool {
        self.sleeping.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if self.remote.is_empty() && (notified || !self.is_rung()) {
            return true;
        }
        self.awake();
        false
    }

    /// The shard: says that it is awake.
    pub(crate) fn awake(&self) {
        self.sleeping.store(false, Ordering::Relaxed);
    }

    /// The shard ended: forgets its tasks. A queued header points back here, so a queue that nobody
    /// empties would keep itself alive.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        drop(self.ready.with(std::mem::take));
        while self.remote.pop().is_some() {}
    }

    fn push_ready(&self, task: Arc<TaskHeader>) {
        if self.closed.load(Ordering::Acquire) {
            return;
        }
        let mut task = Some(task);
        self.ready
            .with(|ready| task.take().map(|task| ready.push(task)));
        if let Some(task) = task {
            self.remote.push(task);
            self.rouse();
        }
    }

    fn rouse(&self) {
        fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::Relaxed)
            && self.sleeping.swap(false, Ordering::AcqRel)
            && let Err(error) = self.bell.write(1)
        {
            // Only a full counter could refuse, and a full counter is readable.
            tracing::error!(%error, "eventfd");
        }
    }
}

/// What a waker of a task points to.
pub(crate) struct TaskHeader {
    pub(crate) shared: Arc<Shared>,
    pub(crate) index: u32,
    kind: Kind,
    queued: AtomicBool,
}

impl TaskHeader {
    pub(crate) fn new(shared: Arc<Shared>, index: u32, kind: Kind) -> Self {
        Self {
            shared,
            index,
            kind,
            queued: AtomicBool::new(false),
        }
    }

    /// The shard, before it polls: wakes from here on queue the task anew.
    pub(crate) fn dequeued(&self) {
        self.queued.swap(false, Ordering::AcqRel);
    }
}

impl Wake for TaskHeader {
    fn wake(self: Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            let shared = Arc::clone(&self.shared);
            shared.push_ready(self);
        }
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.shared.push_ready(Arc::clone(self));
        }
    }
}
