//! engine::uring - the production engine: one io_uring, one thread, our own small reactor.
//!
//! Role: implement `engine::Port` on Linux 6.1 or later.
//! Flow: futures -> `sys::ring` operations -> kernel -> completions -> `reactor` -> wakers ->
//! tasks.
//! Map: `reactor` connections and listeners; `wheel` timers; `tasks` the executor; `remote` what
//! other threads may touch; `core` the turn of the loop; `net`, `disk` the futures.
//! Shard: everything here belongs to one thread; many runtimes live in one process.
//! Turn: poll what is ready (at most 512 tasks), enter the kernel once, handle what completed, fire
//! timers. Clocks are read once per turn.
//! Limits: receive buffers `UringConfig::buffers` x `buffer_bytes`; 4 unread chunks per connection;
//! 128 accepted connections ahead of their task. A connection without a buffer waits in line.
//! Failure: setup explains itself ([`UringSetupError`]); a panic of a connection's task ends that
//! task, one of any other ends the process; a broken ring panics the shard, and that ends the
//! process too. A write whose future was dropped still happens.
//! Bugs: receives are armed without IORING_RECVSEND_POLL_FIRST, which the crate cannot set on a
//! multishot; no SO_INCOMING_CPU steering; no zero-copy.

mod core;
mod disk;
mod net;
mod reactor;
mod remote;
mod tasks;
#[cfg(test)]
mod tests;
mod wheel;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::path::Path;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use self::core::{Core, Sleep, mono};
use self::reactor::{Reactor, remember};
use self::remote::{Kind, Shared, TaskHeader};
use self::tasks::{MAIN, Tasks};
use crate::engine::sys::ring::Ring;
use crate::engine::{Block, Class, Moving, NetError, OpenMode, Port, RemoteWaker, Usage};
use crate::limits::{RECV_BUFFER_BYTES, RECV_BUFFERS};
use crate::time::{Mono, Wall};

pub use self::disk::UringFile;
pub use self::net::{UringChunk, UringListener, UringStream, reserve_port};
pub use crate::engine::sys::map::FileMap as UringMap;

/// How long an ending runtime lets dropped connections drain.
const STOP_LINGER: Duration = Duration::from_millis(500);

/// How long it then waits for the kernel to finish what was cancelled.
const STOP_WAIT: Duration = Duration::from_secs(2);

/// How a shard's engine is made.
#[derive(Debug, Clone)]
pub struct UringConfig {
    /// The shard's number, for messages.
    pub shard: u16,
    /// The CPU to stay on.
    pub cpu: Option<usize>,
    /// Submissions per turn before they queue up in our own memory.
    pub entries: u32,
    /// Receive buffers (rounded up to a power of two).
    pub buffers: u16,
    /// Bytes of each.
    pub buffer_bytes: usize,
    /// Seed of [`Port::random`].
    pub seed: u64,
}

impl Default for UringConfig {
    /// Buffers as the limits say, and more submissions per turn than a busy shard makes.
    fn default() -> Self {
        Self {
            shard: 0,
            cpu: None,
            entries: 1024,
            buffers: RECV_BUFFERS,
            buffer_bytes: RECV_BUFFER_BYTES,
            seed: 0,
        }
    }
}

/// Why a shard's engine could not be made, and what to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UringSetupError {
    /// The kernel has no io_uring, or one without multishot receive.
    KernelTooOld,
    /// The kernel forbids it.
    Forbidden,
    /// The process may not lock enough memory.
    LockedMemory,
    /// The process has no descriptor left.
    Descriptors,
    /// The shard's CPU does not exist or is not allowed.
    Cpu(usize, i32),
    /// Any other error number.
    Other(i32),
}

impl UringSetupError {
    fn from_errno(errno: i32) -> Self {
        match errno {
            libc::ENOSYS | libc::EINVAL | libc::EOPNOTSUPP => Self::KernelTooOld,
            libc::EPERM | libc::EACCES => Self::Forbidden,
            libc::ENOMEM => Self::LockedMemory,
            libc::EMFILE | libc::ENFILE => Self::Descriptors,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for UringSetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KernelTooOld => f.write_str(
                "this kernel is too old for the engine: it needs io_uring with multishot receive; \
                 boot Linux 6.1 or later",
            ),
            Self::Forbidden => f.write_str(
                "io_uring is forbidden: set `sysctl kernel.io_uring_disabled=0`, and in a \
                 container use a seccomp profile that allows io_uring_setup, io_uring_enter and \
                 io_uring_register",
            ),
            Self::LockedMemory => f.write_str(
                "not enough memory for io_uring: raise RLIMIT_MEMLOCK (LimitMEMLOCK=64M in the \
                 systemd unit), or give the machine more memory",
            ),
            Self::Descriptors => f.write_str(
                "no file descriptor left for io_uring: raise LimitNOFILE= in the systemd unit",
            ),
            Self::Cpu(cpu, errno) => write!(
                f,
                "cannot stay on CPU {cpu}: {}; check the number of shards against CPUAffinity= and \
                 the container's CPU set",
                io::Error::from_raw_os_error(*errno)
            ),
            Self::Other(errno) => {
                write!(
                    f,
                    "io_uring_setup: {}",
                    io::Error::from_raw_os_error(*errno)
                )
            }
        }
    }
}

impl std::error::Error for UringSetupError {}

/// One shard's engine; belongs to the thread that made it.
pub struct UringRuntime {
    port: UringPort,
}

impl UringRuntime {
    /// Pins the thread, sets up the ring and its buffers.
    pub fn new(config: UringConfig) -> Result<Self, UringSetupError> {
        if let Some(cpu) = config.cpu {
            let mut set = CpuSet::new();
            set.set(cpu)
                .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set))
                .map_err(|errno| UringSetupError::Cpu(cpu, errno as i32))?;
        }
        let refused = |error: io::Error| {
            UringSetupError::from_errno(error.raw_os_error().unwrap_or(libc::EIO))
        };
        let ring = Ring::new(config.entries.max(8), config.buffers, config.buffer_bytes);
        let ring = ring.map_err(refused)?;
        let shared = Shared::new().map_err(|errno| refused(errno.into()))?;
        let bell = shared.bell().map_err(refused)?;
        let core = Core {
            reactor: RefCell::new(Reactor::new(ring, bell, mono())),
            tasks: Tasks::default(),
            shared: Arc::new(shared),
            now: Cell::new(Mono(0)),
            wall: Cell::new(Wall(0)),
            random: Cell::new(config.seed),
            listener: RefCell::new(None),
            stopping: Cell::new(false),
            stopped: Cell::new(false),
            slept: Cell::new(0),
            direct: Cell::new(true),
        };
        core.read_clocks();
        Ok(Self {
            port: UringPort(Rc::new(core)),
        })
    }

    /// What the drivers get.
    #[must_use]
    pub fn port(&self) -> UringPort {
        self.port.clone()
    }

    /// Runs until `main` ends; then drops all tasks, lets dropped connections drain for half a
    /// second, cancels what is left and waits for the kernel.
    ///
    /// Streams that somebody keeps beyond this receive nothing any more.
    pub fn run<F: Future>(self, main: F) -> F::Output {
        let core = &self.port.0;
        let header = Arc::new(TaskHeader::new(
            Arc::clone(&core.shared),
            MAIN,
            Kind::Prompt,
        ));
        let waker = Waker::from(Arc::clone(&header));
        let mut main = pin!(main);
        header.wake();
        loop {
            if core.turn(Duration::MAX)
                && let Poll::Ready(output) = main.as_mut().poll(&mut Context::from_waker(&waker))
            {
                return output;
            }
        }
    }
}

impl Drop for UringRuntime {
    fn drop(&mut self) {
        let core = &self.port.0;
        core.stopping.set(true);
        core.tasks.drop_all();
        turn_until(core, STOP_LINGER, |reactor| reactor.closing() == 0);
        {
            let mut reactor = core.reactor.borrow_mut();
            reactor.stop_lingering();
            reactor.ring.cancel_all();
        }
        turn_until(core, STOP_WAIT, |reactor| reactor.ring.in_flight() == 0);
        core.stopped.set(true);
        core.listener.borrow_mut().take();
        core.shared.close();
    }
}

fn turn_until(core: &Core, limit: Duration, over: impl Fn(&Reactor) -> bool) {
    let end = mono().after(limit);
    while !over(&core.reactor.borrow()) && mono() < end {
        core.turn(Duration::from_millis(10));
    }
}

/// The port of one shard; see [`Port`].
#[derive(Clone)]
pub struct UringPort(Rc<Core>);

impl Port for UringPort {
    type Stream = UringStream;
    type Listener = UringListener;
    type File = UringFile;
    type Map = UringMap;

    fn now(&self) -> Mono {
        self.0.now.get()
    }

    fn wall(&self) -> Wall {
        self.0.wall.get()
    }

    fn random(&self) -> u64 {
        // SplitMix64 (Steele, Lea, Flood 2014): one addition and two multiplications.
        let state = self.0.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0.random.set(state);
        let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn spawn(&self, class: Class, task: impl Future<Output = ()> + 'static) {
        if !self.0.stopping.get() {
            self.0.tasks.spawn(&self.0.shared, class, Box::pin(task));
        }
    }

    fn hurry(&self, hurried: bool) {
        self.0.tasks.hurried.set(hurried);
    }

    fn give_up(&self, what: &str) {
        tracing::error!(
            what,
            "a panic has left shared state half changed: the process ends, the spool is the truth"
        );
        std::process::abort();
    }

    fn sleep_until(&self, deadline: Mono) -> impl Future<Output = ()> + 'static {
        Sleep {
            core: Rc::clone(&self.0),
            deadline,
            timer: None,
        }
    }

    fn listen(&self, address: SocketAddr) -> Result<UringListener, NetError> {
        net::listen_on(&self.0, address)
    }

    fn listening_on(&self, listener: &UringListener) -> SocketAddr {
        listener.address
    }

    async fn accept(&self, listener: &mut UringListener) -> Result<UringStream, NetError> {
        net::accept_from(&self.0, listener).await
    }

    async fn connect(
        &self,
        source: Option<IpAddr>,
        target: SocketAddr,
        deadline: Mono,
    ) -> Result<UringStream, NetError> {
        net::connect_to(&self.0, source, target, deadline).await
    }

    fn adopt(&self, moving: Moving) -> Result<UringStream, NetError> {
        net::adopt(&self.0, moving)
    }

    fn usage(&self) -> Usage {
        Usage {
            busy: core::processor_time(),
            slept: Duration::from_nanos(self.0.slept.get()),
        }
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<UringFile> {
        disk::open(&self.0, path, mode)
    }

    fn file_len(&self, file: &UringFile) -> io::Result<u64> {
        disk::len(file)
    }

    async fn write_durable(
        &self,
        file: &UringFile,
        offset: u64,
        block: Block,
    ) -> (Block, io::Result<()>) {
        disk::write_durable(&self.0, file, offset, block).await
    }

    async fn prewrite(
        &self,
        file: &UringFile,
        len: u64,
        pause: impl Fn() -> Duration,
    ) -> io::Result<()> {
        disk::allocate(&self.0, file, len).await?;
        let mut zeroed = 0;
        while zeroed < len {
            zeroed = disk::zero(&self.0, file, zeroed..len).await?;
            let pause = pause();
            if zeroed < len && !pause.is_zero() {
                self.sleep_until(self.now().after(pause)).await;
            }
        }
        disk::sync(&self.0, file).await
    }

    fn map(&self, file: &UringFile) -> io::Result<Arc<UringMap>> {
        UringMap::scattered(std::os::fd::AsFd::as_fd(&*file.fd)).map(Arc::new)
    }

    async fn prefetch(&self, map: &Arc<UringMap>, range: Range<usize>) -> io::Result<()> {
        disk::prefetch(&self.0, map, range).await
    }

    fn is_resident(&self, map: &Arc<UringMap>, range: &Range<usize>) -> bool {
        map.is_resident(range)
    }

    async fn read(
        &self,
        file: &UringFile,
        offset: u64,
        block: Block,
    ) -> (Block, io::Result<usize>) {
        disk::read(&self.0, file, offset, block).await
    }

    async fn unmap(&self, map: Arc<UringMap>) {
        disk::unmap(&self.0, map).await;
    }

    async fn sync_directory(&self, path: &Path) -> io::Result<()> {
        disk::sync_directory(&self.0, path).await
    }

    async fn remove(&self, path: &Path) -> io::Result<()> {
        disk::remove(&self.0, path).await
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        disk::list(path)
    }

    fn free_space(&self, path: &Path) -> io::Result<u64> {
        disk::free_space(path)
    }

    fn remote_waker(&self) -> RemoteWaker {
        let shared = Arc::clone(&self.0.shared);
        RemoteWaker::new(move || shared.ring())
    }

    async fn remote_wakes(&self) {
        poll_fn(|context| {
            if self.0.shared.take_ring() {
                return Poll::Ready(());
            }
            remember(&mut self.0.listener.borrow_mut(), context.waker());
            Poll::Pending
        })
        .await;
    }
}
