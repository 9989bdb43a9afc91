//! engine::sim - the simulator: a whole world of hosts on one thread, decided by one seed.
//!
//! Role: implement `engine::Port` with virtual time, a network and disks that fail as real ones do,
//! so that the very drivers of production run through years of bad luck in seconds.
//! Flow: [`SimWorld`] -> [`SimHost`] (a machine: addresses, a disk, one process at a time) ->
//! [`SimPort`] (a shard of that process) -> tasks. A turn of the world is one event, or one poll of
//! a task of a drawn shard; time passes with each poll, and jumps to the next event when none is
//! ready.
//! Why this way: the seed decides everything, so a failing run is a file name; crashes strike
//! between any two polls, which is at every await; what chance decides is hashed into the trace, so
//! that two runs of one seed can be compared.
//! Map: `world` turns, tasks, processes; `net` connections; `disk` files; `options` the fault menu;
//! `random` the one source of chance.
//! Limits: one thread; what futures keep alive is cut loose when the world is dropped.
//! Failure: a panic in any task is a finding and leaves [`SimWorld`]'s run functions after the seed
//! was printed. (The real engine ends that task alone.)
//! Bugs: no descriptor limit; every write that is accepted takes effect within its own time,
//! whereas a real disk may starve one; a file's removal frees its space at once even while it is
//! open.

mod disk;
mod net;
mod options;
mod random;
mod world;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

pub use self::disk::{SimFile, SimMap};
pub use self::net::{SimListener, SimStream};
pub use self::options::{DiskFaults, NetFaults, SimOptions};
pub use self::random::Random;
pub use self::world::{CrashKind, Poison};

use self::disk::Disk;
use self::world::{Machine, Process, ShardState, Turn, World};
use crate::engine::{Block, Class, Moving, NetError, OpenMode, Port, RemoteWaker, Usage};
use crate::time::{Mono, Wall};

/// The date at which every world begins: 2026-01-01T00:00:00Z.
const EPOCH: u64 = 1_767_225_600_000;

/// Timers of the real engine have this grain, and are never early.
const TIMER_GRAIN: u64 = 1_000_000;

/// Why a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunEnd {
    /// What was waited for is the case.
    Reached,
    /// The virtual deadline passed.
    Deadline,
    /// Nothing will ever happen again.
    Over,
    /// More turns than allowed: something spins.
    Steps,
}

/// A world of hosts, with one clock.
pub struct SimWorld(Rc<World>);

impl SimWorld {
    /// A world without hosts, in which `seed` decides everything that `options` leaves open.
    #[must_use]
    pub fn new(seed: u64, options: SimOptions) -> Self {
        Self(Rc::new(World::new(seed, options)))
    }

    /// The seed that it was made of.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.0.seed
    }

    /// A new machine with an empty disk and no address but loopback's.
    #[must_use]
    pub fn host(&self, name: &str) -> SimHost {
        let world = &self.0;
        let number = world.machines.borrow().len();
        let faults = world.options.borrow().disk.clone();
        let machine = Rc::new(Machine {
            number,
            name: name.to_owned(),
            disk: Disk::new(faults),
            wall_offset: Cell::new(0),
            process: RefCell::new(world.process(number)),
            crashes: Cell::new(0),
            crash_waiters: RefCell::default(),
            poison: RefCell::default(),
            strikes: Cell::new(0),
            on_fatal: RefCell::default(),
        });
        world.machines.borrow_mut().push(Rc::clone(&machine));
        SimHost {
            world: Rc::clone(world),
            machine,
        }
    }

    /// The world's clock.
    #[must_use]
    pub fn now(&self) -> Mono {
        self.0.now()
    }

    /// Turns taken so far.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.0.steps()
    }

    /// A hash of every event so far: equal for two runs of one seed, or something is not decided by
    /// it.
    #[must_use]
    pub fn trace_hash(&self) -> u64 {
        self.0.trace_hash()
    }

    /// The world's chance, for what a scenario wants to draw.
    #[must_use]
    pub fn random(&self) -> &Random {
        &self.0.random
    }

    /// Changes how the network and the clock behave from now on; disks have their own options
    /// ([`SimHost::set_disk`]).
    pub fn change(&self, change: impl FnOnce(&mut SimOptions)) {
        change(&mut self.0.options.borrow_mut());
    }

    /// Takes turns until `reached` says so, the clock passes `deadline`, nothing is left to happen,
    /// or
    /// `steps` turns were taken.
    pub fn run_until(
        &self,
        deadline: Mono,
        steps: u64,
        mut reached: impl FnMut() -> bool,
    ) -> RunEnd {
        for _ in 0..steps {
            if reached() {
                return RunEnd::Reached;
            }
            match self.0.turn(deadline) {
                Turn::Busy if self.now() > deadline => return RunEnd::Deadline,
                Turn::Busy => {}
                Turn::Early => {
                    self.0.pass(deadline);
                    return RunEnd::Deadline;
                }
                Turn::Over => return RunEnd::Over,
            }
        }
        RunEnd::Steps
    }
}

impl Drop for SimWorld {
    fn drop(&mut self) {
        // Destructors of a world that has failed may fail again; its memory is the smaller loss.
        if !std::thread::panicking() {
            self.0.end();
        }
    }
}

impl fmt::Debug for SimWorld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "SimWorld(seed {}, {:?}, step {})",
            self.seed(),
            self.now(),
            self.steps()
        )
    }
}

/// A machine of a world. Cloning is another handle to it.
#[derive(Clone)]
pub struct SimHost {
    world: Rc<World>,
    machine: Rc<Machine>,
}

impl SimHost {
    /// Gives it an address.
    ///
    /// # Panics
    /// When another machine has that address.
    pub fn add_address(&self, address: IpAddr) {
        let mut net = self.world.net.borrow_mut();
        let before = net.owners.insert(address, self.machine.number);
        assert!(
            before.is_none_or(|owner| owner == self.machine.number),
            "{address} is taken"
        );
    }

    /// Takes an address away from it; its connections stay.
    pub fn remove_address(&self, address: IpAddr) {
        self.world.net.borrow_mut().owners.remove(&address);
    }

    /// Makes a directory, durably, with those above it.
    pub fn make_directory(&self, path: &Path) {
        self.machine.disk.make_directory(path);
    }

    /// A new shard of the process that runs now.
    #[must_use]
    pub fn port(&self) -> SimPort {
        let shard = self.world.shard(&self.machine.process.borrow());
        SimPort {
            world: Rc::clone(&self.world),
            machine: Rc::clone(&self.machine),
            shard,
        }
    }

    /// Ends the process now; a new one, without any task, takes its place.
    pub fn crash(&self, kind: CrashKind) {
        self.world.crash(&self.machine, kind);
    }

    /// Ends the process after it has been polled `polls` more times.
    pub fn crash_after(&self, polls: u64, kind: CrashKind) {
        self.machine.process.borrow().doom.set(Some((polls, kind)));
    }

    /// Lets panics on it do what they do in production instead of ending the simulation: in a
    /// connection's task they end that task, anywhere else the process, after `on_fatal`, which
    /// stands for what a dying process does.
    pub fn survive_panics(&self, on_fatal: impl Fn() + 'static) {
        self.machine.on_fatal.replace(Some(Rc::new(on_fatal)));
    }

    /// Makes its processes panic when they are about to send `needle`, as a bug in the handling of
    /// one message would; an empty one ends that.
    pub fn poison(&self, needle: &[u8], how: Poison) {
        self.machine.poison.replace(Some((needle.to_vec(), how)));
    }

    /// How often its poison struck.
    #[must_use]
    pub fn strikes(&self) -> u64 {
        self.machine.strikes.get()
    }

    /// How often its process was ended.
    #[must_use]
    pub fn crashes(&self) -> u64 {
        self.machine.crashes.get()
    }

    /// Waits until more than `before` crashes happened.
    pub async fn crashed(&self, before: u64) {
        poll_fn(|context| {
            if self.crashes() > before {
                return Poll::Ready(());
            }
            self.machine
                .crash_waiters
                .borrow_mut()
                .push(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Sets how its disk behaves from now on.
    pub fn set_disk(&self, faults: DiskFaults) {
        self.machine.disk.faults.replace(faults);
    }

    /// How its disk behaves.
    #[must_use]
    pub fn disk(&self) -> DiskFaults {
        self.machine.disk.faults.borrow().clone()
    }

    /// What a power cut right now would surely leave of a file; `None` when even its name is not
    /// sure.
    #[must_use]
    pub fn durable(&self, path: &Path) -> Option<Vec<u8>> {
        self.machine.disk.durable(path)
    }

    /// Whether a power cut right now would surely leave a file with `needle` (not empty) in it.
    #[must_use]
    pub fn durably_contains(&self, needle: &[u8]) -> bool {
        self.machine.disk.durably_contains(needle)
    }

    /// Flips the lowest bit of one byte of a file, as rot does. False when it has no such byte.
    pub fn flip_bit(&self, path: &Path, byte: u64) -> bool {
        self.machine.disk.flip(path, byte)
    }

    /// Nothing of a file can be read until then, while [`DiskFaults::outage`] is above zero. False
    /// when there is no such file.
    pub fn hide(&self, path: &Path, until: Mono) -> bool {
        self.machine.disk.hide(path, until)
    }

    /// Sets its date forward or back.
    pub fn jump_wall(&self, millis: i64) {
        self.world.note(
            "date jumps",
            self.machine.number as u64,
            millis.unsigned_abs(),
        );
        let offset = &self.machine.wall_offset;
        offset.set(offset.get().saturating_add(millis));
    }
}

impl fmt::Debug for SimHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimHost({})", self.machine.name)
    }
}

/// One shard's engine in a world; see [`Port`].
#[derive(Clone)]
pub struct SimPort {
    world: Rc<World>,
    machine: Rc<Machine>,
    shard: Rc<ShardState>,
}

impl SimPort {
    fn process(&self) -> &Rc<Process> {
        &self.shard.process
    }
}

impl fmt::Debug for SimPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimPort({})", self.machine.name)
    }
}

impl Port for SimPort {
    type Stream = SimStream;
    type Listener = SimListener;
    type File = SimFile;
    type Map = SimMap;

    fn now(&self) -> Mono {
        self.world.now()
    }

    fn wall(&self) -> Wall {
        let millis = EPOCH + self.world.now().0 / 1_000_000;
        Wall(millis.saturating_add_signed(self.machine.wall_offset.get()))
    }

    fn random(&self) -> u64 {
        self.world.random.next()
    }

    fn spawn(&self, class: Class, task: impl Future<Output = ()> + 'static) {
        self.world.spawn(&self.shard, class, Box::pin(task));
    }

    fn give_up(&self, _what: &str) {
        self.shard.process.broken.set(true);
    }

    fn sleep_until(&self, deadline: Mono) -> impl Future<Output = ()> + 'static {
        Sleep::new(&self.world, deadline)
    }

    fn listen(&self, address: SocketAddr) -> Result<SimListener, NetError> {
        net::listen(&self.world, self.process(), address)
    }

    fn listening_on(&self, listener: &SimListener) -> SocketAddr {
        listener.state.address
    }

    async fn accept(&self, listener: &mut SimListener) -> Result<SimStream, NetError> {
        Ok(net::accept(listener).await)
    }

    async fn connect(
        &self,
        source: Option<IpAddr>,
        target: SocketAddr,
        deadline: Mono,
    ) -> Result<SimStream, NetError> {
        net::connect(&self.world, self.process(), source, target, deadline).await
    }

    fn adopt(&self, moving: Moving) -> Result<SimStream, NetError> {
        net::adopt(&self.world, moving)
    }

    /// Drawn: a simulated task takes no time, and what hangs on the load is to be met in all ways.
    fn usage(&self) -> Usage {
        let (before, usage) = self.shard.usage.get();
        let now = self.world.now();
        let elapsed = now.0.saturating_sub(before.0);
        let busy = self.world.random.below(elapsed + 1);
        let slept = self.world.random.below(elapsed - busy + 1);
        // Nothing but saturation and idleness is ever met by even draws alone.
        let (busy, slept) = match self.world.random.below(3) {
            0 => (elapsed, 0),
            1 => (busy / 8, elapsed - busy / 8),
            _ => (busy, slept),
        };
        let usage = Usage {
            busy: usage.busy + Duration::from_nanos(busy),
            slept: usage.slept + Duration::from_nanos(slept),
        };
        self.shard.usage.set((now, usage));
        usage
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<SimFile> {
        self.machine.disk.open(&self.world, path, mode)
    }

    fn file_len(&self, file: &SimFile) -> io::Result<u64> {
        Ok(disk::len(file))
    }

    async fn write_durable(
        &self,
        file: &SimFile,
        offset: u64,
        block: Block,
    ) -> (Block, io::Result<()>) {
        disk::write_durable(&self.world, &self.machine.disk, file, offset, block).await
    }

    async fn prewrite(
        &self,
        file: &SimFile,
        len: u64,
        pause: impl Fn() -> Duration,
    ) -> io::Result<()> {
        let owner = (&self.machine.disk, self.process());
        disk::has_room(&self.world, owner.0, file, len)?;
        let mut zeroed = 0;
        while zeroed < len {
            zeroed = disk::zero(&self.world, owner, file, zeroed..len).await?;
            let pause = pause();
            if zeroed < len && !pause.is_zero() {
                self.sleep_until(self.now().after(pause)).await;
            }
        }
        Ok(())
    }

    fn map(&self, file: &SimFile) -> io::Result<Arc<SimMap>> {
        disk::map(file)
    }

    async fn prefetch(&self, map: &Arc<SimMap>, range: Range<usize>) -> io::Result<()> {
        disk::prefetch(&self.world, &self.machine.disk, map, range).await
    }

    fn is_resident(&self, _: &Arc<SimMap>, _: &Range<usize>) -> bool {
        self.world.random.coin()
    }

    async fn read(&self, file: &SimFile, offset: u64, block: Block) -> (Block, io::Result<usize>) {
        disk::read(&self.world, &self.machine.disk, file, offset, block).await
    }

    async fn unmap(&self, map: Arc<SimMap>) {
        disk::pause(&self.world, &self.machine.disk).await;
        drop(map);
    }

    async fn sync_directory(&self, path: &Path) -> io::Result<()> {
        disk::pause(&self.world, &self.machine.disk).await;
        self.machine.disk.sync_directory(&self.world, path)
    }

    async fn remove(&self, path: &Path) -> io::Result<()> {
        disk::pause(&self.world, &self.machine.disk).await;
        self.machine.disk.remove(&self.world, path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.machine.disk.list(path)
    }

    fn free_space(&self, path: &Path) -> io::Result<u64> {
        self.machine.disk.free_space(path)
    }

    fn remote_waker(&self) -> RemoteWaker {
        let bell = Arc::clone(&self.shard.bell);
        RemoteWaker::new(move || bell.ring())
    }

    async fn remote_wakes(&self) {
        poll_fn(|context| self.shard.bell.poll(context)).await;
    }
}

/// Waits for a date. Dropped, its event comes to nothing.
struct Sleep {
    world: Rc<World>,
    deadline: Mono,
    state: Option<Rc<RefCell<Option<Waker>>>>,
}

impl Sleep {
    fn new(world: &Rc<World>, deadline: Mono) -> Self {
        Self {
            world: Rc::clone(world),
            deadline,
            state: None,
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.world.now() >= self.deadline {
            return Poll::Ready(());
        }
        if self.deadline == Mono::NEVER {
            return Poll::Pending;
        }
        if let Some(state) = &self.state {
            state.replace(Some(context.waker().clone()));
            return Poll::Pending;
        }
        let state = Rc::new(RefCell::new(Some(context.waker().clone())));
        let shared = Rc::downgrade(&state);
        self.state = Some(state);
        let late = self.world.random.below(TIMER_GRAIN);
        self.world
            .schedule(self.deadline.after(Duration::from_nanos(late)), move |_| {
                let waiter = shared.upgrade().and_then(|state| state.take());
                if let Some(waiter) = waiter {
                    waiter.wake();
                }
            });
        Poll::Pending
    }
}
