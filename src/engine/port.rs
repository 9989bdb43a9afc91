//! engine::port - what a driver may ask of the engine, and nothing else.
//!
//! What: the trait that the services are written against. Implementations: `uring` (production) and
//! `sim` (seeded, virtual time, one thread); the very same drivers run on both.
//! Why this way: a future here is local to its shard (never `Send`), buffers that the kernel may
//! still own are moved in and handed back, and an input or a deadline is the only thing a driver
//! can wait for, so that the simulator tests the drivers and not an executor.
//! Shard: each shard has a port of its own; a port and what it made never leave their thread,
//! except [`RemoteWaker`] and a connection that departs ([`Moving`]).

use std::cell::Cell;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::{Deref, Range};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;

use crate::engine::Block;
use crate::time::{Mono, Wall};

/// What a task is for. One row each, so that accounting, priorities and traces share the words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// Inbound SMTP sessions and their listeners.
    Ingress,
    /// Outbound connections.
    Egress,
    /// Group commit, settlements, reclaim.
    Spool,
    /// DKIM batches.
    Sign,
    /// Waiting for name resolution.
    Resolve,
    /// Messages from the control thread.
    Control,
    /// Whatever may wait: statistics, the lab's reports.
    Background,
}

impl Class {
    /// Whether such a task serves one connection, and the node goes on without it.
    #[must_use]
    pub fn is_expendable(self) -> bool {
        matches!(self, Self::Ingress | Self::Egress)
    }

    /// Whether such a task may wait while others run, for as long as those take: nobody on the
    /// other side of a connection waits for it.
    #[must_use]
    pub fn is_patient(self) -> bool {
        matches!(self, Self::Egress | Self::Background)
    }
}

/// Why a connection could not be used. Closed, so that the queue can decide by the kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NetError {
    /// Nobody listens there.
    Refused,
    /// The peer reset the connection, or sending failed because it was gone.
    Reset,
    /// The deadline passed.
    TimedOut,
    /// No route to the host or network.
    Unreachable,
    /// The source address is not on this host, or the address to listen on is not.
    AddressNotAvailable,
    /// Another program listens on that address.
    AddressInUse,
    /// The process or the system has no descriptor, port or buffer left: our own trouble.
    Exhausted,
    /// The operating system forbids it (a port below 1024, a filter).
    Denied,
    /// Any other error number of the operating system.
    Other(i32),
}

impl fmt::Display for NetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused => f.write_str("connection refused"),
            Self::Reset => f.write_str("connection reset by peer"),
            Self::TimedOut => f.write_str("timed out"),
            Self::Unreachable => f.write_str("host or network unreachable"),
            Self::AddressNotAvailable => f.write_str("address not available on this host"),
            Self::AddressInUse => f.write_str("address already in use"),
            Self::Exhausted => f.write_str("out of descriptors, ports or buffers"),
            Self::Denied => f.write_str("permission denied"),
            Self::Other(errno) => write!(f, "{}", io::Error::from_raw_os_error(*errno)),
        }
    }
}

impl std::error::Error for NetError {}

/// How a file of the spool is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// It exists; read and written with O_DIRECT where the file system allows it.
    Existing,
    /// It must not exist yet; created, empty, mode 0600.
    Create,
}

/// One connection. Dropping it closes it (a graceful close: what was sent is still delivered).
pub trait Stream: 'static {
    /// Received bytes, on loan from the engine until dropped.
    type Chunk: Deref<Target = [u8]> + 'static;

    /// The other end's address.
    fn peer(&self) -> SocketAddr;

    /// Our own address on this connection.
    fn local(&self) -> SocketAddr;

    /// Waits for bytes until `deadline`. An empty chunk is the peer's orderly end. Never loses
    /// bytes when polled and then dropped: what arrived is there for the next call.
    ///
    /// The deadline of the latest poll counts.
    fn poll_recv(
        &mut self,
        context: &mut Context<'_>,
        deadline: Mono,
    ) -> Poll<Result<Self::Chunk, NetError>>;

    /// As [`Stream::poll_recv`], to be awaited.
    fn recv(&mut self, deadline: Mono) -> impl Future<Output = Result<Self::Chunk, NetError>> {
        poll_fn(move |context| self.poll_recv(context, deadline))
    }

    /// Sends all of `pieces`, in order, as one gathered write where the kernel takes it whole; ends
    /// when the kernel has all of it. After an error or a timeout the connection is of no more use.
    fn send(
        &mut self,
        pieces: Vec<Bytes>,
        deadline: Mono,
    ) -> impl Future<Output = Result<(), NetError>>;

    /// Says that nothing more will be sent (FIN).
    fn finish(&mut self);

    /// Takes the connection away from this shard's engine, to be given to another's
    /// ([`Port::adopt`]). `unread` is what the holder has received and not used: it comes first
    /// when the new holder reads, before whatever arrives during the move.
    ///
    /// # Errors
    /// The process has no descriptor left; the connection is closed.
    fn depart(self, unread: Vec<u8>) -> impl Future<Output = Result<Moving, NetError>>;
}

/// A connection between two shards: no engine reads from it. Dropping it closes it.
#[derive(Debug)]
pub struct Moving {
    pub(in crate::engine) socket: MovingSocket,
    pub(in crate::engine) peer: SocketAddr,
    pub(in crate::engine) local: Option<SocketAddr>,
    /// Received, not read.
    pub(in crate::engine) unread: Vec<u8>,
}

/// What a connection is while nobody drives it.
#[derive(Debug)]
pub(in crate::engine) enum MovingSocket {
    /// A socket of this process.
    Descriptor(OwnedFd),
    /// The number under which a simulated world keeps it.
    Simulated(u64),
}

/// What a shard's thread has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time used.
    pub busy: Duration,
    /// Time asleep, waiting for something to happen.
    pub slept: Duration,
}

/// Bytes of a file, readable without a system call once prefetched.
pub trait Map: Send + Sync + 'static {
    /// The whole file as it is now.
    fn bytes(&self) -> &[u8];
}

/// One shard's engine.
pub trait Port: Clone + 'static {
    /// A connection.
    type Stream: Stream;
    /// A listening socket.
    type Listener: 'static;
    /// An open file of the spool. Cloning shares the descriptor.
    type File: Clone + 'static;
    /// A read-only map of a file.
    type Map: Map;

    /// Now, as of the last turn of the event loop (no system call).
    fn now(&self) -> Mono;

    /// The date, as of the last turn of the event loop.
    fn wall(&self) -> Wall;

    /// Random bits; not for keys.
    fn random(&self) -> u64;

    /// Starts a task on this shard. A panic inside it is logged. In a connection's task
    /// ([`Class::is_expendable`]) it ends that task alone; any other task is the only one of its
    /// kind, and its panic ends the process.
    fn spawn(&self, class: Class, task: impl Future<Output = ()> + 'static);

    /// Says whether more has come in than goes out. While that is so, sessions get less of the time
    /// of a shard that has deliveries ready. An engine may take no notice.
    fn hurry(&self, _hurried: bool) {}

    /// Ends the process, because a panic has left `what` half changed.
    fn give_up(&self, what: &str);

    /// Waits until `deadline` (resolution: a millisecond; never early).
    fn sleep_until(&self, deadline: Mono) -> impl Future<Output = ()> + 'static;

    /// Listens on `address` with SO_REUSEPORT, so that each shard has a listener of its own.
    fn listen(&self, address: SocketAddr) -> Result<Self::Listener, NetError>;

    /// The address a listener really has (port 0 asks the kernel for one).
    fn listening_on(&self, listener: &Self::Listener) -> SocketAddr;

    /// Waits for the next connection. Running out of descriptors is waited out, not reported.
    fn accept(
        &self,
        listener: &mut Self::Listener,
    ) -> impl Future<Output = Result<Self::Stream, NetError>>;

    /// Connects to `target`, from `source` where given (IP_BIND_ADDRESS_NO_PORT).
    fn connect(
        &self,
        source: Option<IpAddr>,
        target: SocketAddr,
        deadline: Mono,
    ) -> impl Future<Output = Result<Self::Stream, NetError>>;

    /// Takes over a connection that left another shard of this process.
    ///
    /// # Errors
    /// It is of another engine's making, or died on the way.
    fn adopt(&self, moving: Moving) -> Result<Self::Stream, NetError>;

    /// What the shard's thread has done since it began. A system call: for a look now and then.
    fn usage(&self) -> Usage;

    /// Opens a file. Blocks: at boot, or when a segment is made, never per message.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Self::File>;

    /// The size of an open file in bytes.
    fn file_len(&self, file: &Self::File) -> io::Result<u64>;

    /// Writes `block` at `offset` (both multiples of 4096) and returns once it is on stable
    /// storage, handing the block back. After an error nothing is known about that range.
    fn write_durable(
        &self,
        file: &Self::File,
        offset: u64,
        block: Block,
    ) -> impl Future<Output = (Block, io::Result<()>)>;

    /// Gives the file `len` bytes of zeros, written and synced, so that later overwrites need no
    /// file system journal. After each portion of half a megabyte or so the disk is left to others
    /// for as long as `pause` says.
    fn prewrite(
        &self,
        file: &Self::File,
        len: u64,
        pause: impl Fn() -> Duration,
    ) -> impl Future<Output = io::Result<()>>;

    /// Maps the file for reading.
    fn map(&self, file: &Self::File) -> io::Result<Arc<Self::Map>>;

    /// Brings `range` of the map into memory without stalling the shard (MADV_POPULATE_READ through
    /// the ring); an unreadable block is an error here instead of a signal later.
    fn prefetch(
        &self,
        map: &Arc<Self::Map>,
        range: Range<usize>,
    ) -> impl Future<Output = io::Result<()>>;

    /// Whether all of `range` is in memory, and [`Port::prefetch`] would have nothing to do. Never
    /// true of a long range.
    fn is_resident(&self, map: &Arc<Self::Map>, range: &Range<usize>) -> bool;

    /// Reads what the file has at `offset` (a multiple of 4096) into `block`, past the page cache
    /// where the file system allows that, and hands the block back: how many bytes of it were read,
    /// fewer than its length at the end of the file.
    fn read(
        &self,
        file: &Self::File,
        offset: u64,
        block: Block,
    ) -> impl Future<Output = (Block, io::Result<usize>)>;

    /// Lets go of a map. The last holder of a large one calls this instead of dropping it: to
    /// unmap 64 MiB that were read takes milliseconds, which the shard does not wait for.
    fn unmap(&self, map: Arc<Self::Map>) -> impl Future<Output = ()>;

    /// Syncs a directory after files were made, renamed or removed in it.
    fn sync_directory(&self, path: &Path) -> impl Future<Output = io::Result<()>>;

    /// Removes a file. What it holds is let go of meanwhile, which takes the time of its size.
    fn remove(&self, path: &Path) -> impl Future<Output = io::Result<()>>;

    /// The names in a directory. Blocks; at boot.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;

    /// Free bytes for this process on the file system of `path`.
    fn free_space(&self, path: &Path) -> io::Result<u64>;

    /// What another thread calls to wake this shard's [`Port::remote_wakes`].
    fn remote_waker(&self) -> RemoteWaker;

    /// Waits until a remote waker was rung since the last time this returned. One waiter per shard.
    fn remote_wakes(&self) -> impl Future<Output = ()>;
}

/// Wakes a shard from any thread; cheap when the shard is awake already.
#[derive(Clone)]
pub struct RemoteWaker(Arc<dyn Fn() + Send + Sync>);

impl RemoteWaker {
    /// Wraps what an implementation does to wake its loop.
    pub fn new(ring: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(ring))
    }

    /// Rings.
    pub fn wake(&self) {
        (self.0)();
    }
}

impl fmt::Debug for RemoteWaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RemoteWaker")
    }
}

/// A flag that one task raises and another waits for, within a shard.
#[derive(Clone, Default)]
pub struct Signal(Rc<SignalState>);

#[derive(Default)]
struct SignalState {
    raised: Cell<bool>,
    waiter: Cell<Option<Waker>>,
}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signal({})", self.0.raised.get())
    }
}

impl Signal {
    /// Raises the flag and wakes the waiter, if there is one.
    pub fn raise(&self) {
        self.0.raised.set(true);
        if let Some(waker) = self.0.waiter.take() {
            waker.wake();
        }
    }

    /// Ready, and lowered again, when the flag is up; else remembers who waits (the latest only).
    pub fn poll_raised(&self, context: &mut Context<'_>) -> Poll<()> {
        if self.0.raised.replace(false) {
            return Poll::Ready(());
        }
        self.0.waiter.set(Some(context.waker().clone()));
        Poll::Pending
    }

    /// Waits for the flag and lowers it.
    pub async fn raised(&self) {
        poll_fn(|context| self.poll_raised(context)).await;
    }
}

/// Lets every other ready task of the shard run, and one turn of the event loop pass, without
/// waiting for anything: a deadline that has passed already is ready at once and yields nothing.
pub async fn yield_now() {
    let mut yielded = false;
    poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
