//! The turn of the world: virtual time, events, tasks, processes.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::cmp::Ordering as Order;
use std::collections::{BinaryHeap, VecDeque};
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use slab::Slab;

use super::disk::Disk;
use super::net::{self, Net};
use super::options::SimOptions;
use super::random::{Random, mix};
use crate::engine::{Class, Usage};
use crate::time::Mono;

/// Where every world's clock starts: not zero, so that nobody can confuse it with "never set".
const START: u64 = 1_000_000_000;

/// How a process ends before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CrashKind {
    /// `kill -9`: what the kernel has taken is kept, and the kernel closes the sockets.
    Kill,
    /// The machine loses power: what is not on stable storage is gone, any subset of it, torn at
    /// sectors; the other ends of its connections hear nothing, or a reset.
    PowerCut,
}

/// What a poison message does to the process that sends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Poison {
    /// A panic in the task.
    Panic,
    /// An abort.
    Abort,
}

/// Everything that the handles of one world share.
pub(super) struct World {
    pub(super) seed: u64,
    pub(super) options: RefCell<SimOptions>,
    pub(super) random: Random,
    pub(super) net: RefCell<Net>,
    clock: Cell<u64>,
    hash: Cell<u64>,
    steps: Cell<u64>,
    sequence: Cell<u64>,
    events: RefCell<BinaryHeap<Event>>,
    tasks: RefCell<Slab<Task>>,
    shards: RefCell<Vec<Rc<ShardState>>>,
    processes: RefCell<Vec<Weak<Process>>>,
    pub(super) machines: RefCell<Vec<Rc<Machine>>>,
}

/// What one host's machine is: survives its processes.
pub(super) struct Machine {
    pub(super) number: usize,
    pub(super) name: String,
    pub(super) disk: Disk,
    /// How far the date is off the world's, in milliseconds.
    pub(super) wall_offset: Cell<i64>,
    /// The process that runs now.
    pub(super) process: RefCell<Rc<Process>>,
    pub(super) crashes: Cell<u64>,
    pub(super) crash_waiters: RefCell<Vec<Waker>>,
    /// What its processes panic at, and how.
    pub(super) poison: RefCell<Option<(Vec<u8>, Poison)>>,
    /// How often it struck.
    pub(super) strikes: Cell<u64>,
    /// Set where panics are survived as in production.
    pub(super) on_fatal: RefCell<Option<Rc<dyn Fn()>>>,
}

/// One run of a program on a machine, until it is killed.
pub(super) struct Process {
    pub(super) machine: usize,
    pub(super) dead: Cell<bool>,
    /// A panic has left shared state half changed, or asks for the end.
    pub(super) broken: Cell<bool>,
    /// Polls left until it crashes, and how.
    pub(super) doom: Cell<Option<(u64, CrashKind)>>,
}

/// One shard's run queue and bell.
pub(super) struct ShardState {
    pub(super) process: Rc<Process>,
    ready: Arc<Ready>,
    pub(super) bell: Arc<Bell>,
    /// What it said it had used, and when.
    pub(super) usage: Cell<(Mono, Usage)>,
}

/// What a remote waker touches; another thread never does in a simulation, but the type must allow
/// it.
#[derive(Default)]
pub(super) struct Bell {
    pub(super) rung: AtomicBool,
    pub(super) waiter: Mutex<Option<Waker>>,
}

impl Bell {
    pub(super) fn ring(&self) {
        self.rung.store(true, Ordering::Relaxed);
        let waiter = self
            .waiter
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(waiter) = waiter {
            waiter.wake();
        }
    }

    pub(super) fn poll(&self, context: &mut Context<'_>) -> Poll<()> {
        if self.rung.swap(false, Ordering::Relaxed) {
            return Poll::Ready(());
        }
        let mut waiter = self.waiter.lock().unwrap_or_else(PoisonError::into_inner);
        *waiter = Some(context.waker().clone());
        Poll::Pending
    }
}

/// Tasks of one shard to be polled, oldest first.
#[derive(Default)]
struct Ready {
    list: Mutex<VecDeque<Arc<Header>>>,
    /// How many are in the list: asked far more often than the list is touched.
    len: AtomicUsize,
    closed: AtomicBool,
}

impl Ready {
    fn push(&self, header: Arc<Header>) {
        if !self.closed.load(Ordering::Relaxed) {
            let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
            list.push_back(header);
            self.len.store(list.len(), Ordering::Relaxed);
        }
    }

    fn pop(&self) -> Option<Arc<Header>> {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        let header = list.pop_front();
        self.len.store(list.len(), Ordering::Relaxed);
        header
    }

    /// Nothing is polled any more.
    fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.clear();
        self.len.store(0, Ordering::Relaxed);
    }

    fn is_empty(&self) -> bool {
        self.len.load(Ordering::Relaxed) == 0
    }
}

/// What a waker of a task points to.
struct Header {
    index: usize,
    queued: AtomicBool,
    ready: Arc<Ready>,
}

impl Wake for Header {
    fn wake(self: Arc<Self>) {
        if !self.queued.swap(true, Ordering::Relaxed) {
            let ready = Arc::clone(&self.ready);
            ready.push(self);
        }
    }
}

type Work = Pin<Box<dyn Future<Output = ()>>>;

struct Task {
    header: Arc<Header>,
    process: Rc<Process>,
    class: Class,
    /// Absent while it is being polled.
    work: Option<Work>,
}

type Deed = Box<dyn FnOnce(&Rc<World>)>;

/// Something that happens at a date.
struct Event {
    at: u64,
    sequence: u64,
    deed: Deed,
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.sequence) == (other.at, other.sequence)
    }
}

impl Eq for Event {}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<Order> {
        Some(self.cmp(other))
    }
}

impl Ord for Event {
    /// The earliest is the greatest, as the standard heap wants it.
    fn cmp(&self, other: &Self) -> Order {
        (other.at, other.sequence).cmp(&(self.at, self.sequence))
    }
}

/// What a turn did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Something happened.
    Busy,
    /// The next event lies beyond the limit.
    Early,
    /// Nothing will ever happen again.
    Over,
}

impl World {
    pub(super) fn new(seed: u64, options: SimOptions) -> Self {
        Self {
            seed,
            options: RefCell::new(options),
            random: Random::new(seed),
            net: RefCell::default(),
            clock: Cell::new(START),
            hash: Cell::new(mix(seed)),
            steps: Cell::new(0),
            sequence: Cell::new(0),
            events: RefCell::default(),
            tasks: RefCell::default(),
            shards: RefCell::default(),
            processes: RefCell::default(),
            machines: RefCell::default(),
        }
    }

    pub(super) fn now(&self) -> Mono {
        Mono(self.clock.get())
    }

    pub(super) fn steps(&self) -> u64 {
        self.steps.get()
    }

    pub(super) fn trace_hash(&self) -> u64 {
        self.hash.get()
    }

    /// Adds an event to the trace. Everything that chance or time decides goes through here.
    pub(super) fn note(&self, what: &'static str, a: u64, b: u64) {
        let mut hash = mix(self.hash.get() ^ self.clock.get());
        for byte in what.bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        self.hash.set(mix(mix(hash ^ a) ^ b));
        if self.options.borrow().print {
            let (seconds, nanos) = (
                self.clock.get() / 1_000_000_000,
                self.clock.get() % 1_000_000_000,
            );
            eprintln!("{seconds:6}.{nanos:09} {what} {a} {b}");
        }
    }

    /// Does `deed` at `at`, or now when that is past.
    pub(super) fn schedule(&self, at: Mono, deed: impl FnOnce(&Rc<Self>) + 'static) {
        let sequence = self.sequence.get();
        self.sequence.set(sequence + 1);
        let at = at.0.max(self.clock.get());
        self.events.borrow_mut().push(Event {
            at,
            sequence,
            deed: Box::new(deed),
        });
    }

    /// A new process of a machine.
    pub(super) fn process(&self, machine: usize) -> Rc<Process> {
        let process = Rc::new(Process {
            machine,
            dead: Cell::new(false),
            broken: Cell::new(false),
            doom: Cell::new(None),
        });
        self.processes.borrow_mut().push(Rc::downgrade(&process));
        process
    }

    /// A new shard of a process.
    pub(super) fn shard(&self, process: &Rc<Process>) -> Rc<ShardState> {
        let shard = Rc::new(ShardState {
            process: Rc::clone(process),
            ready: Arc::default(),
            bell: Arc::default(),
            usage: Cell::new((self.now(), Usage::default())),
        });
        self.shards.borrow_mut().push(Rc::clone(&shard));
        shard
    }

    pub(super) fn spawn(&self, shard: &ShardState, class: Class, work: Work) {
        if shard.process.dead.get() {
            return;
        }
        let mut tasks = self.tasks.borrow_mut();
        let entry = tasks.vacant_entry();
        let header = Arc::new(Header {
            index: entry.key(),
            queued: AtomicBool::new(false),
            ready: Arc::clone(&shard.ready),
        });
        entry.insert(Task {
            header: Arc::clone(&header),
            process: Rc::clone(&shard.process),
            class,
            work: Some(work),
        });
        header.wake();
    }

    /// Handles one due event, or polls one task, or lets time pass up to `limit`.
    pub(super) fn turn(self: &Rc<Self>, limit: Mono) -> Turn {
        self.steps.set(self.steps.get() + 1);
        if self.due() {
            self.happen();
            return Turn::Busy;
        }
        if let Some(header) = self.choose() {
            self.poll(&header);
            let cost = {
                let options = self.options.borrow();
                self.random.within(&options.poll_cost)
            };
            self.clock.set(self.clock.get() + cost);
            return Turn::Busy;
        }
        let next = self.events.borrow().peek().map(|event| event.at);
        match next {
            None => Turn::Over,
            Some(at) if at > limit.0 => Turn::Early,
            Some(at) => {
                self.clock.set(at.max(self.clock.get()));
                self.happen();
                Turn::Busy
            }
        }
    }

    /// Lets the clock stand at `at`, if it is not later already.
    pub(super) fn pass(&self, at: Mono) {
        self.clock.set(self.clock.get().max(at.0));
    }

    fn due(&self) -> bool {
        self.events
            .borrow()
            .peek()
            .is_some_and(|event| event.at <= self.clock.get())
    }

    fn happen(self: &Rc<Self>) {
        let event = self.events.borrow_mut().pop();
        if let Some(event) = event {
            (event.deed)(self);
        }
    }

    /// Draws one of the shards that have something to do and takes its oldest task.
    fn choose(&self) -> Option<Arc<Header>> {
        let shards = self.shards.borrow();
        let busy = || shards.iter().filter(|shard| !shard.ready.is_empty());
        let count = busy().count();
        if count == 0 {
            return None;
        }
        let chosen = self.random.index(count);
        busy().nth(chosen).and_then(|shard| shard.ready.pop())
    }

    fn poll(self: &Rc<Self>, header: &Arc<Header>) {
        header.queued.store(false, Ordering::Relaxed);
        let (mut work, process, class) = {
            let mut tasks = self.tasks.borrow_mut();
            // A wake that outlived its task must not poll the slot's next one.
            let task = tasks
                .get_mut(header.index)
                .filter(|task| Arc::ptr_eq(&task.header, header));
            let Some(task) = task else { return };
            let Some(work) = task.work.take() else { return };
            (work, Rc::clone(&task.process), task.class)
        };
        self.note("poll", process.machine as u64, header.index as u64);
        let waker = Waker::from(Arc::clone(header));
        // As in production the task's own memory unwinds with it.
        let polled = catch_unwind(AssertUnwindSafe(move || {
            match work.as_mut().poll(&mut Context::from_waker(&waker)) {
                Poll::Pending => Some(work),
                Poll::Ready(()) => {
                    drop(work);
                    None
                }
            }
        }));
        match polled {
            Err(panic) => self.panicked(&process, header, class, panic),
            Ok(None) => self.forget_task(header),
            // Its process was crashed by what it did itself: the slot is gone already.
            Ok(Some(work)) if process.dead.get() => drop(work),
            Ok(Some(work)) => {
                if let Some(task) = self.tasks.borrow_mut().get_mut(header.index) {
                    task.work = Some(work);
                }
            }
        }
        self.count_down(&process);
    }

    fn forget_task(&self, header: &Arc<Header>) {
        let mut tasks = self.tasks.borrow_mut();
        let mine = |task: &Task| Arc::ptr_eq(&task.header, header);
        if tasks.get(header.index).is_some_and(mine) {
            drop(tasks.remove(header.index));
        }
    }

    /// Does what production does with a panic, where the machine is to survive it.
    fn panicked(
        self: &Rc<Self>,
        process: &Rc<Process>,
        header: &Arc<Header>,
        class: Class,
        panic: Box<dyn Any + Send>,
    ) {
        let machine = self.machines.borrow().get(process.machine).map(Rc::clone);
        let hook = machine
            .as_ref()
            .and_then(|machine| machine.on_fatal.borrow().clone());
        let (Some(machine), Some(on_fatal)) = (machine, hook) else {
            self.report(class, panic);
        };
        self.note("panic", process.machine as u64, header.index as u64);
        if process.broken.get() || !class.is_expendable() {
            on_fatal();
            self.crash(&machine, CrashKind::Kill);
        } else {
            self.forget_task(header);
        }
    }

    /// A panic is a finding: it ends the simulation, with what is needed to see it again.
    fn report(&self, class: Class, panic: Box<dyn Any + Send>) -> ! {
        eprintln!(
            "a {class:?} task panicked in the world of seed {} at step {}, {} ns",
            self.seed,
            self.steps.get(),
            self.clock.get()
        );
        resume_unwind(panic)
    }

    fn count_down(self: &Rc<Self>, process: &Rc<Process>) {
        match process.doom.get() {
            Some((0, kind)) => {
                process.doom.set(None);
                let machine = self.machines.borrow().get(process.machine).map(Rc::clone);
                if let Some(machine) = machine {
                    self.crash(&machine, kind);
                }
            }
            Some((left, kind)) => process.doom.set(Some((left - 1, kind))),
            None => {}
        }
    }

    /// Ends the machine's process as `kind` says and gives the machine a new one, with nothing in
    /// it.
    pub(super) fn crash(self: &Rc<Self>, machine: &Rc<Machine>, kind: CrashKind) {
        let process = Rc::clone(&machine.process.borrow());
        self.note(
            "crash",
            machine.number as u64,
            u64::from(kind == CrashKind::PowerCut),
        );
        self.bury(&process);
        net::crash(self, &process, kind);
        machine.disk.crash(self, kind);
        machine.process.replace(self.process(machine.number));
        machine.crashes.set(machine.crashes.get() + 1);
        let waiters = std::mem::take(&mut *machine.crash_waiters.borrow_mut());
        for waiter in waiters {
            waiter.wake();
        }
    }

    /// Drops all tasks of a process where they stand.
    pub(super) fn bury(&self, process: &Rc<Process>) {
        process.dead.set(true);
        self.shards.borrow_mut().retain(|shard| {
            let alive = !Rc::ptr_eq(&shard.process, process);
            if !alive {
                shard.ready.close();
            }
            alive
        });
        let mut dropped = Vec::new();
        self.tasks.borrow_mut().retain(|_, task| {
            let alive = !Rc::ptr_eq(&task.process, process);
            if !alive {
                dropped.push(task.work.take());
            }
            alive
        });
        // Destructors may call back into the world, which is not borrowed any more.
        drop(dropped);
    }

    /// Ends everything, so that the cycles between the world and its tasks are cut.
    pub(super) fn end(&self) {
        let processes = std::mem::take(&mut *self.processes.borrow_mut());
        for process in processes.iter().filter_map(Weak::upgrade) {
            self.bury(&process);
        }
        let events = std::mem::take(&mut *self.events.borrow_mut());
        drop(events);
        let net = std::mem::take(&mut *self.net.borrow_mut());
        drop(net);
        self.machines.borrow_mut().clear();
    }
}
