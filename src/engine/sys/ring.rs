//! Ring - io_uring with the memory of every operation in its own hands.
//!
//! What: [`Ring::start`] takes what the kernel will read or write (moved in), [`Ring::reap`] tells
//! what completed, [`Ring::finish`] hands the memory back once the final completion was seen.
//! Why this way: whatever the caller does in between, dropping included, the memory and the
//! descriptor of an operation stay where they are until the kernel is done with them; that one rule
//! makes everything above safe code. A key carries a generation, so a late completion never
//! touches the slot's next user.

use std::collections::VecDeque;
use std::ffi::CString;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::ptr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use io_uring::squeue::{Entry, Flags};
use io_uring::types::{CancelBuilder, Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode};
use nix::sys::socket::{SockaddrLike, SockaddrStorage};
use slab::Slab;

use crate::engine::Block;
use crate::engine::sys::buffers::{GROUP, Lease, Pool};
use crate::engine::sys::map::FileMap;

/// User data of what needs no answer (closes, cancels).
const NOBODY: u64 = u64::MAX;

/// Most pieces of one gathered write (the kernel's UIO_MAXIOV).
const VECTORS_MAX: usize = 1024;

/// Operations in flight from which a sleep gathers completions; a lone session is not delayed.
const GATHER_FROM: usize = 32;

/// Completions that end a gathering sleep.
const GATHER_COMPLETIONS: usize = 16;

/// Longest gathering, in microseconds: less than a write of a commit group takes.
const GATHER_USEC: u32 = 300;

/// How long a dropped ring waits for the kernel to let go of its memory.
const DROP_WAIT: Duration = Duration::from_secs(1);

/// Names an operation: slot and generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OpKey {
    index: u32,
    generation: u32,
}

impl OpKey {
    fn user_data(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    fn from_user_data(data: u64) -> Self {
        Self {
            index: (data & 0xffff_ffff) as u32,
            generation: (data >> 32) as u32,
        }
    }
}

/// What to do on the descriptor that goes with it.
pub(crate) enum Request {
    /// Accept connections, again and again.
    Accept,
    /// Receive into provided buffers, again and again.
    Receive,
    /// Send all that is left of the pieces.
    Send(Box<Gather>),
    /// Connect to an address.
    Connect(Box<SockaddrStorage>),
    /// Write the block at an offset and return when it is on stable storage.
    WriteDurable(u64, Block),
    /// Read into the block from an offset.
    Read(u64, Block),
    /// Write this many of the zeros at an offset.
    WriteZeros(u64, Rc<Block>, u32),
    /// Allocate the file's first bytes.
    Allocate(u64),
    /// Sync the file and all it needs to be found.
    Sync,
    /// Read into the block what a map's file has at an offset, by way of the page cache; the
    /// map's descriptor is used.
    ReadCached(Arc<FileMap>, u64, Block),
    /// Have a range of a map read, all at once; the descriptor is not used.
    Fetch(Arc<FileMap>, Range<usize>),
    /// Wait until a range of a map is in memory; the descriptor is not used.
    Populate(Arc<FileMap>, Range<usize>),
    /// Take a range of a map out of the process; the descriptor is not used.
    Vacate(Arc<FileMap>, Range<usize>),
    /// Remove the file of this name; the descriptor is not used.
    Remove(CString),
    /// Say each time the descriptor becomes readable.
    Watch,
}

/// What an operation held, handed back when it is over.
#[expect(
    dead_code,
    reason = "some of it is only held for the kernel and then dropped"
)]
pub(crate) enum Memory {
    /// Nothing the caller wants back.
    None,
    /// The pieces of a send.
    Pieces(Box<Gather>),
    /// The block of a write or a read.
    Block(Block),
    /// An address that the kernel reads.
    Address(Box<SockaddrStorage>),
    /// Shared zeros.
    Zeros(Rc<Block>),
    /// The map whose file is read, and where to.
    Copy(Arc<FileMap>, Block),
    /// The map being populated or emptied.
    Map(Arc<FileMap>),
    /// A name that the kernel reads.
    Name(CString),
}

/// The pieces of a send, and how far it got.
pub(crate) struct Gather {
    header: libc::msghdr,
    vectors: Vec<libc::iovec>,
    first: usize,
    _pieces: Vec<Bytes>,
}

impl Gather {
    /// Takes the pieces; empty ones are left out.
    pub(crate) fn new(pieces: Vec<Bytes>) -> Self {
        let vectors = pieces
            .iter()
            .filter(|piece| !piece.is_empty())
            .map(|piece| libc::iovec {
                iov_base: piece.as_ptr().cast_mut().cast(),
                iov_len: piece.len(),
            })
            .collect();
        // SAFETY: all zeros is a valid msghdr: null pointers with zero lengths.
        // JUSTIFICATION: libc's msghdr has private padding on some targets, so no literal.
        let header = unsafe { std::mem::zeroed() };
        Self {
            header,
            vectors,
            first: 0,
            _pieces: pieces,
        }
    }

    /// Notes that `sent` more bytes are with the kernel.
    pub(crate) fn advance(&mut self, mut sent: usize) {
        while let Some(vector) = self.vectors.get_mut(self.first) {
            if sent < vector.iov_len {
                vector.iov_base = vector.iov_base.cast::<u8>().wrapping_add(sent).cast();
                vector.iov_len -= sent;
                return;
            }
            sent -= vector.iov_len;
            self.first += 1;
        }
    }

    /// Whether all of it was sent.
    pub(crate) fn is_done(&self) -> bool {
        self.first == self.vectors.len()
    }

    fn entry(&mut self, fd: Fd) -> Entry {
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        let left = &mut self.vectors[self.first..];
        if let [only] = left {
            let len = u32::try_from(only.iov_len).unwrap_or(i32::MAX as u32);
            return opcode::Send::new(fd, only.iov_base.cast(), len)
                .flags(flags)
                .build();
        }
        self.header.msg_iov = left.as_mut_ptr();
        self.header.msg_iovlen = left.len().min(VECTORS_MAX) as _;
        opcode::SendMsg::new(fd, ptr::from_ref(&self.header))
            .flags(flags as u32)
            .build()
    }
}

/// One thing that completed.
pub(crate) struct Completion {
    /// Of which operation.
    pub(crate) key: OpKey,
    /// The system call's result: negative is an error number.
    pub(crate) result: i32,
    /// Whether more completions of this operation will come. When not, call [`Ring::finish`].
    pub(crate) more: bool,
    /// What was received.
    pub(crate) lease: Option<Lease>,
    /// Who was accepted.
    pub(crate) accepted: Option<OwnedFd>,
}

struct Op<T> {
    generation: u32,
    accepts: bool,
    over: bool,
    fd: Option<Rc<OwnedFd>>,
    memory: Memory,
    data: T,
}

/// What an operation costs beside its memory; an idle connection has one.
const _: () = assert!(size_of::<Op<[u64; 3]>>() <= 88);

/// See the module. `T` is what the caller keeps with each operation.
pub(crate) struct Ring<T> {
    // First, so that it is dropped before the memory that the kernel knows.
    uring: IoUring,
    pool: Pool,
    ops: Slab<Op<T>>,
    generation: u32,
    in_flight: usize,
    // What found the submission queue full; goes in before anything newer at the next enter.
    waiting: VecDeque<Entry>,
}

/// Makes the kernel's ring, with the best flags that it takes.
fn build(entries: u32) -> io::Result<IoUring> {
    // Kernel 6.1: completions are only worked on when this thread asks for them.
    let best = IoUring::builder()
        .setup_cqsize(entries.saturating_mul(4))
        .setup_clamp()
        .setup_submit_all()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .build(entries);
    match best {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
        other => return other,
    }
    // Kernel 6.0. Anything older has no multishot receive, so there is nothing below to fall to.
    IoUring::builder()
        .setup_cqsize(entries.saturating_mul(4))
        .setup_clamp()
        .setup_submit_all()
        .setup_single_issuer()
        .setup_coop_taskrun()
        .setup_taskrun_flag()
        .build(entries)
}

impl<T> Ring<T> {
    /// A ring with room for `entries` submissions per turn, and `count` receive buffers of `size`
    /// bytes. It belongs to the running thread.
    pub(crate) fn new(entries: u32, count: u16, size: usize) -> io::Result<Self> {
        let uring = build(entries)?;
        let mut pool = Pool::new(count, size)?;
        pool.register(&uring)?;
        Ok(Self {
            uring,
            pool,
            ops: Slab::new(),
            generation: 0,
            in_flight: 0,
            waiting: VecDeque::new(),
        })
    }

    /// How many receive buffers there are.
    pub(crate) fn buffers(&self) -> u16 {
        self.pool.count()
    }

    /// How many receive buffers are the kernel's to fill.
    pub(crate) fn buffers_free(&self) -> u16 {
        self.pool.count() - self.pool.out()
    }

    /// Gives a receive buffer back to the kernel.
    pub(crate) fn give_back(&mut self, lease: Lease) {
        self.pool.give_back(lease);
    }

    /// How many operations the kernel has not finished.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Starts an operation on `fd` (None only where the request needs none). It is submitted at the
    /// next enter.
    pub(crate) fn start(&mut self, fd: Option<Rc<OwnedFd>>, request: Request, data: T) -> OpKey {
        let raw = Fd(fd.as_ref().map_or(-1, |fd| fd.as_raw_fd()));
        let accepts = matches!(request, Request::Accept);
        let (entry, memory) = prepare(raw, request);
        self.generation = self.generation.wrapping_add(1);
        let generation = self.generation;
        let op = Op {
            generation,
            accepts,
            over: false,
            fd,
            memory,
            data,
        };
        // Below u32::MAX: each slot takes dozens of bytes, memory ends first.
        let index = self.ops.insert(op) as u32;
        let key = OpKey { index, generation };
        self.in_flight += 1;
        self.push(entry.user_data(key.user_data()));
        key
    }

    /// What the caller keeps with an operation; None when it is finished.
    pub(crate) fn data(&mut self, key: OpKey) -> Option<&mut T> {
        let op = self.ops.get_mut(key.index as usize)?;
        (op.generation == key.generation).then_some(&mut op.data)
    }

    /// Asks the kernel to end an operation early; its final completion still comes.
    pub(crate) fn cancel(&mut self, key: OpKey) {
        if self.data(key).is_some() {
            self.push(
                opcode::AsyncCancel::new(key.user_data())
                    .build()
                    .user_data(NOBODY)
                    .flags(Flags::SKIP_SUCCESS),
            );
        }
    }

    /// Asks the kernel to end all operations early.
    pub(crate) fn cancel_all(&mut self) {
        self.push(
            opcode::AsyncCancel2::new(CancelBuilder::any())
                .build()
                .user_data(NOBODY),
        );
    }

    /// Closes a descriptor through the ring, once nobody else holds it.
    pub(crate) fn release(&mut self, fd: Rc<OwnedFd>) {
        if let Ok(fd) = Rc::try_unwrap(fd) {
            // From here the submission owns the number; a ring that dies before submitting it takes
            // the process' descriptors with it, or leaks this one.
            let raw: RawFd = fd.into_raw_fd();
            let close = opcode::Close::new(Fd(raw)).build();
            self.push(close.user_data(NOBODY).flags(Flags::SKIP_SUCCESS));
        }
    }

    /// Takes a finished operation out of its slot: its memory and the caller's data. None while
    /// the kernel may still use it.
    pub(crate) fn finish(&mut self, key: OpKey) -> Option<(Memory, T)> {
        let op = self.ops.get(key.index as usize)?;
        if op.generation != key.generation || !op.over {
            return None;
        }
        let op = self.ops.try_remove(key.index as usize)?;
        if let Some(fd) = op.fd {
            self.release(fd);
        }
        Some((op.memory, op.data))
    }

    /// Whether an enter would have something to do even without waiting.
    pub(crate) fn wants_enter(&mut self) -> bool {
        let queue = self.uring.submission();
        !queue.is_empty() || queue.taskrun() || queue.cq_overflow() || !self.waiting.is_empty()
    }

    /// Submits what was started; with `wait`, sleeps until something completes or the time is over.
    /// Interrupted or momentarily refused is no error.
    pub(crate) fn enter(&mut self, wait: Option<Duration>) -> io::Result<()> {
        self.fill();
        let wait = if self.waiting.is_empty() { wait } else { None };
        let (most, args) = self.patience();
        let done = match wait {
            None => self.uring.submit(),
            Some(Duration::MAX) => self.uring.submitter().submit_with_args(most, &args),
            Some(time) => {
                let time = Timespec::from(time);
                self.uring
                    .submitter()
                    .submit_with_args(most, &args.timespec(&time))
            }
        };
        match done.map_err(|error| (error.raw_os_error(), error)) {
            Ok(_)
            | Err((
                Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ENOMEM),
                _,
            )) => Ok(()),
            Err((_, error)) => Err(error),
        }
    }

    /// How many completions a sleep waits for, and how it is cut short: with many operations in
    /// flight a moment longer brings more completions per turn, which saves a context switch, a
    /// system call and a commit group for each. Kernels before 6.12 wake at the first.
    fn patience(&self) -> (usize, SubmitArgs<'static, 'static>) {
        let args = SubmitArgs::new();
        if self.in_flight < GATHER_FROM || !self.uring.params().is_feature_min_timeout() {
            return (1, args);
        }
        (GATHER_COMPLETIONS, args.min_wait_usec(GATHER_USEC))
    }

    /// Appends what completed to `into`.
    pub(crate) fn reap(&mut self, into: &mut Vec<Completion>) {
        for entry in self.uring.completion() {
            let key = OpKey::from_user_data(entry.user_data());
            let (result, flags) = (entry.result(), entry.flags());
            let lease = cqueue::buffer_select(flags).and_then(|id| {
                let len = u32::try_from(result).unwrap_or(0);
                // SAFETY: this completion names the buffer, and is looked at once.
                // JUSTIFICATION: only the completion tells whose a buffer is.
                unsafe { self.pool.lease(id, len) }
            });
            let op = self.ops.get_mut(key.index as usize);
            let Some(op) = op.filter(|op| op.generation == key.generation) else {
                // A close or a cancel that had nothing to do. None of those has a buffer.
                if let Some(lease) = lease {
                    self.pool.give_back(lease);
                }
                continue;
            };
            let more = cqueue::more(flags);
            if !more && !op.over {
                op.over = true;
                self.in_flight -= 1;
            }
            let accepted = (op.accepts && result >= 0).then(|| {
                // SAFETY: a successful completion of an accept carries a new descriptor, once.
                // JUSTIFICATION: the ring reports descriptors as numbers.
                unsafe { OwnedFd::from_raw_fd(result) }
            });
            into.push(Completion {
                key,
                result,
                more,
                lease,
                accepted,
            });
        }
    }

    fn push(&mut self, entry: Entry) {
        self.waiting.push_back(entry);
        self.fill();
    }

    fn fill(&mut self) {
        let mut queue = self.uring.submission();
        while let Some(entry) = self.waiting.front() {
            // SAFETY: what the entry points to is owned by its slot in `ops` until the final
            // completion, and boxed or reference counted, so that it does not move; `Drop` leaks it
            // when the kernel does not finish in time.
            // JUSTIFICATION: this is the one place where pointers are given to the kernel.
            if unsafe { queue.push(entry) }.is_err() {
                return;
            }
            self.waiting.pop_front();
        }
    }
}

/// The submission for a request, and the memory that it points to.
fn prepare(fd: Fd, request: Request) -> (Entry, Memory) {
    match request {
        Request::Accept => {
            let entry = opcode::AcceptMulti::new(fd)
                .flags(libc::SOCK_CLOEXEC)
                .build();
            (entry, Memory::None)
        }
        Request::Receive => (opcode::RecvMulti::new(fd, GROUP).build(), Memory::None),
        Request::Send(mut pieces) => (pieces.entry(fd), Memory::Pieces(pieces)),
        Request::Connect(address) => {
            let entry = opcode::Connect::new(fd, address.as_ptr(), address.len()).build();
            (entry, Memory::Address(address))
        }
        Request::WriteDurable(offset, block) => {
            let len = u32::try_from(block.len()).unwrap_or(i32::MAX as u32);
            let entry = opcode::Write::new(fd, block.as_ptr(), len)
                .offset(offset)
                .rw_flags(libc::RWF_DSYNC);
            (entry.build(), Memory::Block(block))
        }
        Request::Read(offset, mut block) => {
            let len = u32::try_from(block.len()).unwrap_or(i32::MAX as u32);
            let entry = opcode::Read::new(fd, block.as_mut_ptr(), len).offset(offset);
            (entry.build(), Memory::Block(block))
        }
        Request::WriteZeros(offset, zeros, len) => {
            let len = len.min(u32::try_from(zeros.len()).unwrap_or(u32::MAX));
            let entry = opcode::Write::new(fd, zeros.as_ptr(), len).offset(offset);
            (entry.build(), Memory::Zeros(zeros))
        }
        Request::Allocate(len) => (opcode::Fallocate::new(fd, len).build(), Memory::None),
        Request::Sync => (
            opcode::Fsync::new(fd).flags(FsyncFlags::empty()).build(),
            Memory::None,
        ),
        Request::ReadCached(map, offset, mut block) => {
            let len = u32::try_from(block.len()).unwrap_or(i32::MAX as u32);
            // Without a descriptor: EBADF.
            let fd = Fd(map.cached().unwrap_or(-1));
            let entry = opcode::Read::new(fd, block.as_mut_ptr(), len).offset(offset);
            (entry.build(), Memory::Copy(map, block))
        }
        Request::Fetch(map, range) => advise(map, &range, libc::MADV_WILLNEED),
        Request::Populate(map, range) => advise(map, &range, libc::MADV_POPULATE_READ),
        // The pages are those of the file: what reads the range afterwards finds the same bytes.
        Request::Vacate(map, range) => advise(map, &range, libc::MADV_DONTNEED),
        Request::Remove(name) => {
            let entry = opcode::UnlinkAt::new(Fd(libc::AT_FDCWD), name.as_ptr()).build();
            (entry, Memory::Name(name))
        }
        Request::Watch => (
            opcode::PollAdd::new(fd, libc::POLLIN as u32)
                .multi(true)
                .build(),
            Memory::None,
        ),
    }
}

fn advise(map: Arc<FileMap>, range: &Range<usize>, advice: i32) -> (Entry, Memory) {
    // A bad range becomes an address that the kernel refuses: EINVAL, not a panic.
    let (address, len) = map.pages(range).unwrap_or((ptr::without_provenance(1), 1));
    let entry = opcode::Madvise::new(address.cast(), len as libc::off_t, advice).build();
    (entry, Memory::Map(map))
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        let start = Instant::now();
        let mut completions = Vec::new();
        if self.in_flight > 0 {
            self.cancel_all();
        }
        loop {
            let idle = self.in_flight == 0 && self.waiting.is_empty();
            let wait = (!idle).then_some(Duration::from_millis(10));
            if self.enter(wait).is_err() || idle || start.elapsed() >= DROP_WAIT {
                break;
            }
            self.reap(&mut completions);
            completions.clear();
        }
        if self.in_flight > 0 {
            tracing::error!(
                operations = self.in_flight,
                "the kernel did not let go; memory leaked"
            );
            std::mem::forget(std::mem::take(&mut self.ops));
            self.pool.leak();
        }
    }
}
