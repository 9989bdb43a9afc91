//! The reactor: one ring, its timers, and the state of every connection and listener.
//!
//! What: all that happens between the kernel and the futures. Futures leave a waker and look again.
//! Limits: unread chunks per connection [`RECV_UNREAD_MAX`], accepted connections that nobody took
//! yet [`ACCEPTED_AHEAD_MAX`].

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{Shutdown, shutdown};
use slab::Slab;

use super::wheel::{Fire, TimerKey, Wheel};
use crate::engine::NetError;
use crate::engine::sys::buffers::Lease;
use crate::engine::sys::ring::{Completion, Memory, OpKey, Request, Ring};
use crate::engine::sys::socket::unread_bytes;
use crate::limits::{ACCEPTED_AHEAD_MAX, RECV_UNREAD_MAX};
use crate::time::Mono;

/// How long a listener waits after it ran out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a closed connection drains what its peer still sends, so that the peer reads our last
/// words instead of a reset.
const LINGER: Duration = Duration::from_secs(2);

const NONE: u16 = u16::MAX;

/// What the ring keeps with each operation.
pub(crate) enum Owner {
    /// The receive of the connection in this slot.
    Stream(u32),
    /// The accept of the listener in this slot.
    Listener(u32),
    /// The watch on the bell.
    Bell,
    /// A future that waits, or will look.
    Waiting(Option<Waker>),
    /// Done, with this result; the future has not looked yet.
    Done(i32),
    /// Nobody waits any more.
    Orphan,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// Dropped; what the peer still sends is thrown away until its end or the timer.
    Lingering,
    /// Dropped; closed as soon as the receive is over.
    Closing,
}

/// One connection.
pub(crate) struct StreamState {
    fd: Rc<OwnedFd>,
    receive: Option<OpKey>,
    send: Option<OpKey>,
    reader: Option<Waker>,
    read_deadline: Mono,
    send_deadline: Mono,
    timer: Option<TimerKey>,
    timer_at: Mono,
    end: Option<Result<(), NetError>>,
    // Unread chunks: a list through `Reactor::parked`.
    head: u16,
    tail: u16,
    unread: u16,
    phase: Phase,
    starved: bool,
    pausing: bool,
    /// On its way to another shard: nothing more is received here.
    leaving: bool,
}

/// The budget of an idle connection: this, one operation and one timer are below 300 bytes.
const _: () = assert!(size_of::<StreamState>() <= 136);

struct ListenerState {
    fd: Rc<OwnedFd>,
    accept: Option<OpKey>,
    accepted: VecDeque<OwnedFd>,
    failed: Option<NetError>,
    waiter: Option<Waker>,
    pause: Option<TimerKey>,
    told: bool,
    closing: bool,
}

struct Parked {
    lease: Option<Lease>,
    next: u16,
}

/// See the module.
pub(crate) struct Reactor {
    pub(crate) ring: Ring<Owner>,
    pub(crate) wheel: Wheel,
    streams: Slab<StreamState>,
    listeners: Slab<ListenerState>,
    parked: Vec<Parked>,
    // Connections whose receive found no buffer, longest wait first.
    starved: VecDeque<u32>,
    bell: Rc<OwnedFd>,
    now: Mono,
    completions: Vec<Completion>,
    due: Vec<Fire>,
}

/// What a reader finds.
pub(crate) enum Read {
    Chunk(Lease),
    End,
    Failed(NetError),
    Wait,
}

impl Reactor {
    pub(crate) fn new(mut ring: Ring<Owner>, bell: OwnedFd, now: Mono) -> Self {
        let count = ring.buffers();
        let parked = (0..count)
            .map(|_| Parked {
                lease: None,
                next: NONE,
            })
            .collect();
        let bell = Rc::new(bell);
        ring.start(Some(Rc::clone(&bell)), Request::Watch, Owner::Bell);
        Self {
            ring,
            wheel: Wheel::new(now),
            streams: Slab::new(),
            listeners: Slab::new(),
            parked,
            starved: VecDeque::new(),
            bell,
            now,
            completions: Vec::new(),
            due: Vec::new(),
        }
    }

    /// Handles what completed and what is due.
    pub(crate) fn turn(&mut self, now: Mono, stopping: bool) {
        self.now = now;
        let mut completions = std::mem::take(&mut self.completions);
        self.ring.reap(&mut completions);
        for completion in completions.drain(..) {
            self.completed(completion, stopping);
        }
        self.completions = completions;
        let mut due = std::mem::take(&mut self.due);
        self.wheel.advance(now, &mut due);
        for fire in due.drain(..) {
            match fire {
                Fire::Task(waker) => waker.wake(),
                Fire::Stream(index) => self.stream_timer(index),
                Fire::Listener(index) => self.listener_timer(index),
            }
        }
        self.due = due;
        self.feed_starved();
    }

    fn completed(&mut self, completion: Completion, stopping: bool) {
        let (key, result, more) = (completion.key, completion.result, completion.more);
        let Some(owner) = self.ring.data(key) else {
            return;
        };
        match owner {
            Owner::Stream(index) => {
                let index = *index;
                self.finish_unless(key, more);
                self.received(index, completion);
            }
            Owner::Listener(index) => {
                let index = *index;
                self.finish_unless(key, more);
                self.accepted(index, completion);
            }
            Owner::Bell => {
                self.finish_unless(key, more);
                if !more && !stopping {
                    self.ring
                        .start(Some(Rc::clone(&self.bell)), Request::Watch, Owner::Bell);
                }
            }
            Owner::Waiting(waker) => {
                let waker = waker.take();
                *owner = Owner::Done(result);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            Owner::Done(_) | Owner::Orphan => self.finish_unless(key, more),
        }
    }

    fn finish_unless(&mut self, key: OpKey, more: bool) {
        if !more {
            drop(self.ring.finish(key));
        }
    }

    // ---- operations with a future of their own ----

    /// Looks for the result of an operation, or leaves a waker.
    pub(crate) fn poll_op(&mut self, key: OpKey, waker: &Waker) -> Option<(i32, Memory)> {
        match self.ring.data(key) {
            Some(Owner::Waiting(slot)) => {
                remember(slot, waker);
                None
            }
            Some(Owner::Done(result)) => {
                let result = *result;
                let (memory, _) = self.ring.finish(key)?;
                Some((result, memory))
            }
            _ => Some((-libc::ECANCELED, Memory::None)),
        }
    }

    /// Nobody waits for this operation any more; its memory stays until the kernel is done.
    pub(crate) fn orphan(&mut self, key: OpKey, cancel: bool) {
        match self.ring.data(key) {
            Some(Owner::Done(_)) => drop(self.ring.finish(key)),
            Some(owner) => {
                *owner = Owner::Orphan;
                if cancel {
                    self.ring.cancel(key);
                }
            }
            None => {}
        }
    }

    // ---- connections ----

    pub(crate) fn add_stream(&mut self, fd: Rc<OwnedFd>) -> u32 {
        self.streams.insert(StreamState {
            fd,
            receive: None,
            send: None,
            reader: None,
            read_deadline: Mono::NEVER,
            send_deadline: Mono::NEVER,
            timer: None,
            timer_at: Mono::NEVER,
            end: None,
            head: NONE,
            tail: NONE,
            unread: 0,
            phase: Phase::Open,
            starved: false,
            pausing: false,
            leaving: false,
        }) as u32
    }

    pub(crate) fn stream_fd(&self, index: u32) -> &Rc<OwnedFd> {
        &self.streams[index as usize].fd
    }

    /// The next chunk of a connection; with nothing there, arms the receive.
    pub(crate) fn read(&mut self, index: u32) -> Read {
        if let Some(lease) = self.unpark(index) {
            let stream = &self.streams[index as usize];
            if stream.unread <= 1 && stream.receive.is_none() && stream.end.is_none() {
                self.arm(index);
            }
            return Read::Chunk(lease);
        }
        match self.streams[index as usize].end {
            Some(Ok(())) => Read::End,
            Some(Err(error)) => Read::Failed(error),
            None => {
                self.arm(index);
                Read::Wait
            }
        }
    }

    /// Leaves the reader's waker and deadline.
    pub(crate) fn await_read(&mut self, index: u32, waker: &Waker, deadline: Mono) {
        let stream = &mut self.streams[index as usize];
        remember(&mut stream.reader, waker);
        stream.read_deadline = deadline;
        self.set_stream_timer(index);
    }

    /// Notes which send is under way, and until when.
    pub(crate) fn await_send(&mut self, index: u32, send: Option<OpKey>, deadline: Mono) {
        let stream = &mut self.streams[index as usize];
        stream.send = send;
        stream.send_deadline = deadline;
        if send.is_some() {
            self.set_stream_timer(index);
        }
    }

    /// Ends the receive of a connection that leaves for another shard; ready once the kernel writes
    /// nothing more for it.
    pub(crate) fn poll_leave(&mut self, index: u32, waker: &Waker) -> Poll<()> {
        let stream = &mut self.streams[index as usize];
        stream.leaving = true;
        let Some(receive) = stream.receive else {
            return Poll::Ready(());
        };
        remember(&mut stream.reader, waker);
        if !std::mem::replace(&mut stream.pausing, true) {
            self.ring.cancel(receive);
        }
        Poll::Pending
    }

    /// Forgets a connection that has left, and gives out its socket; what it received and nobody
    /// read is appended to `unread`. None when an operation still holds the socket: it is closed.
    pub(crate) fn take_stream(&mut self, index: u32, unread: &mut Vec<u8>) -> Option<OwnedFd> {
        while let Some(lease) = self.unpark(index) {
            unread.extend_from_slice(&lease);
            self.give_back(lease);
        }
        let stream = self.streams.remove(index as usize);
        assert!(
            stream.receive.is_none(),
            "a connection left while the kernel received for it"
        );
        if let Some(timer) = stream.timer {
            self.wheel.cancel(timer);
        }
        Rc::try_unwrap(stream.fd).ok()
    }

    /// The holder dropped the connection.
    pub(crate) fn close_stream(&mut self, index: u32, stopped: bool) {
        let mut unread = false;
        while let Some(lease) = self.unpark(index) {
            self.give_back(lease);
            unread = true;
        }
        let stream = &mut self.streams[index as usize];
        stream.reader = None;
        stream.read_deadline = Mono::NEVER;
        stream.send_deadline = Mono::NEVER;
        if let Some(timer) = stream.timer.take() {
            self.wheel.cancel(timer);
        }
        stream.phase = Phase::Closing;
        if stream.end.is_none() && !stopped {
            if unread || unread_bytes(&stream.fd) > 0 {
                self.linger(index);
            } else if let Some(receive) = stream.receive {
                self.ring.cancel(receive);
            }
        }
        self.close_if_over(index);
    }

    /// Ends all lingering at once.
    pub(crate) fn stop_lingering(&mut self) {
        let lingering: Vec<u32> = self
            .streams
            .iter()
            .filter(|(_, stream)| stream.phase == Phase::Lingering)
            .map(|(index, _)| index as u32)
            .collect();
        for index in lingering {
            self.stream_timer(index);
        }
    }

    /// How many connections are dropped but not closed.
    pub(crate) fn closing(&self) -> usize {
        self.streams
            .iter()
            .filter(|(_, stream)| stream.phase != Phase::Open)
            .count()
    }

    /// How many connections exist, dropped ones that are not closed yet included.
    #[cfg(test)]
    pub(crate) fn streams_open(&self) -> usize {
        self.streams.len()
    }

    /// A chunk was dropped.
    pub(crate) fn give_back(&mut self, lease: Lease) {
        self.ring.give_back(lease);
    }

    /// Whether a connection waits for a buffer although one is free: then the shard must not sleep.
    pub(crate) fn is_hungry(&self) -> bool {
        !self.starved.is_empty() && self.ring.buffers_free() > 0
    }

    /// Arms as many starved connections as buffers are free, longest wait first. One that has
    /// nothing to receive takes no buffer, so the next turn arms more.
    fn feed_starved(&mut self) {
        for _ in 0..self.ring.buffers_free() {
            let Some(index) = self.starved.pop_front() else {
                return;
            };
            let stream = self.streams.get_mut(index as usize);
            if let Some(stream) = stream.filter(|stream| stream.starved && !stream.leaving) {
                stream.starved = false;
                self.arm(index);
            }
        }
    }

    fn arm(&mut self, index: u32) {
        let stream = &mut self.streams[index as usize];
        if stream.receive.is_none() && !stream.starved {
            let fd = Some(Rc::clone(&stream.fd));
            stream.pausing = false;
            stream.receive = Some(self.ring.start(fd, Request::Receive, Owner::Stream(index)));
        }
    }

    fn received(&mut self, index: u32, completion: Completion) {
        let Some(stream) = self.streams.get_mut(index as usize) else {
            return;
        };
        if !completion.more {
            stream.receive = None;
            // Who waits for the receive to be over is told here, whatever ended it.
            if stream.leaving
                && let Some(reader) = stream.reader.take()
            {
                reader.wake();
            }
        }
        match completion.result {
            0 => stream.end = Some(Ok(())),
            1.. => {}
            error => match -error {
                libc::ENOBUFS => return self.starve(index, completion.lease),
                libc::ECANCELED | libc::EINTR | libc::EAGAIN => {}
                error => stream.end = Some(Err(net_error(error))),
            },
        }
        match completion.lease {
            Some(lease) if lease.is_empty() || stream.phase != Phase::Open => {
                let late = stream.phase == Phase::Closing && stream.end.is_none();
                self.give_back(lease);
                if late {
                    self.linger(index);
                }
            }
            Some(lease) => self.park(index, lease),
            None => {}
        }
        self.after_receive(index);
    }

    /// Wakes the reader, and sees to it that a receive is under way or rightly is not.
    fn after_receive(&mut self, index: u32) {
        let Some(stream) = self.streams.get_mut(index as usize) else {
            return;
        };
        if stream.phase != Phase::Open {
            if stream.phase == Phase::Lingering && stream.end.is_none() {
                return self.arm(index);
            }
            return self.close_if_over(index);
        }
        if (stream.unread > 0 || stream.end.is_some())
            && let Some(reader) = stream.reader.take()
        {
            reader.wake();
        }
        if stream.receive.is_none() {
            // The kernel may end a multishot receive at any time.
            if stream.reader.is_some() && stream.end.is_none() && !stream.leaving {
                self.arm(index);
            }
            return;
        }
        let scarce = self.ring.buffers_free() < self.ring.buffers() / 2;
        let limit = if scarce { 1 } else { RECV_UNREAD_MAX };
        if stream.unread > limit && !stream.pausing {
            stream.pausing = true;
            if let Some(receive) = stream.receive {
                self.ring.cancel(receive);
            }
        }
    }

    /// No buffer was left: the connection queues for one.
    fn starve(&mut self, index: u32, lease: Option<Lease>) {
        if let Some(lease) = lease {
            self.give_back(lease);
        }
        let Some(stream) = self.streams.get_mut(index as usize) else {
            return;
        };
        if stream.phase == Phase::Closing {
            return self.close_if_over(index);
        }
        if !std::mem::replace(&mut stream.starved, true) {
            self.starved.push_back(index);
        }
    }

    fn linger(&mut self, index: u32) {
        let stream = &mut self.streams[index as usize];
        if let Err(error) = shutdown(stream.fd.as_raw_fd(), Shutdown::Write) {
            // The peer is gone: nobody is left to linger for.
            tracing::trace!(%error, "shutdown");
            stream.end = Some(Ok(()));
            return;
        }
        stream.phase = Phase::Lingering;
        let timer = self.wheel.set(self.now.after(LINGER), Fire::Stream(index));
        self.streams[index as usize].timer = Some(timer);
        self.arm(index);
    }

    fn close_if_over(&mut self, index: u32) {
        let Some(stream) = self.streams.get_mut(index as usize) else {
            return;
        };
        if stream.phase == Phase::Open {
            return;
        }
        if let Some(receive) = stream.receive {
            if stream.end.is_some() && !stream.pausing {
                stream.pausing = true;
                self.ring.cancel(receive);
            }
            return;
        }
        if stream.phase == Phase::Lingering && stream.end.is_none() {
            return;
        }
        let stream = self.streams.remove(index as usize);
        if let Some(timer) = stream.timer {
            self.wheel.cancel(timer);
        }
        self.ring.release(stream.fd);
    }

    /// One wheel entry serves both deadlines of a connection. It is moved only when the deadline
    /// comes nearer; when it fires before the current deadline it is simply set again.
    fn set_stream_timer(&mut self, index: u32) {
        let stream = &mut self.streams[index as usize];
        let at = stream.read_deadline.min(stream.send_deadline);
        if at == Mono::NEVER || (stream.timer.is_some() && stream.timer_at <= at) {
            return;
        }
        if let Some(timer) = stream.timer.take() {
            self.wheel.cancel(timer);
        }
        stream.timer = Some(self.wheel.set(at, Fire::Stream(index)));
        stream.timer_at = at;
    }

    fn stream_timer(&mut self, index: u32) {
        let now = self.now;
        let Some(stream) = self.streams.get_mut(index as usize) else {
            return;
        };
        if let Some(timer) = stream.timer.take() {
            self.wheel.cancel(timer);
        }
        if stream.phase != Phase::Open {
            stream.phase = Phase::Closing;
            stream.end = Some(Ok(()));
            // A starved stream has no receive; the starved list skips what it does not find.
            stream.pausing = false;
            return self.close_if_over(index);
        }
        if stream.read_deadline <= now {
            stream.read_deadline = Mono::NEVER;
            if let Some(reader) = stream.reader.take() {
                reader.wake();
            }
        }
        if stream.send_deadline <= now {
            stream.send_deadline = Mono::NEVER;
            if let Some(send) = stream.send
                && let Some(Owner::Waiting(waker)) = self.ring.data(send)
                && let Some(waker) = waker.take()
            {
                waker.wake();
            }
        }
        // A deadline that nobody waits for costs nothing: it is set again by the next wait.
        let stream = &mut self.streams[index as usize];
        if stream.reader.is_none() {
            stream.read_deadline = Mono::NEVER;
        }
        self.set_stream_timer(index);
    }

    fn park(&mut self, index: u32, lease: Lease) {
        let id = lease.id();
        let stream = &mut self.streams[index as usize];
        self.parked[usize::from(id)] = Parked {
            lease: Some(lease),
            next: NONE,
        };
        if stream.unread == 0 {
            stream.head = id;
        } else {
            self.parked[usize::from(stream.tail)].next = id;
        }
        stream.tail = id;
        stream.unread += 1;
    }

    fn unpark(&mut self, index: u32) -> Option<Lease> {
        let stream = &mut self.streams[index as usize];
        if stream.unread == 0 {
            return None;
        }
        let parked = &mut self.parked[usize::from(stream.head)];
        stream.head = parked.next;
        stream.unread -= 1;
        parked.lease.take()
    }

    // ---- listeners ----

    pub(crate) fn add_listener(&mut self, fd: OwnedFd) -> u32 {
        self.listeners.insert(ListenerState {
            fd: Rc::new(fd),
            accept: None,
            accepted: VecDeque::new(),
            failed: None,
            waiter: None,
            pause: None,
            told: false,
            closing: false,
        }) as u32
    }

    /// The next accepted connection, or leaves a waker.
    pub(crate) fn next_accepted(
        &mut self,
        index: u32,
        waker: &Waker,
    ) -> Option<Result<OwnedFd, NetError>> {
        let listener = &mut self.listeners[index as usize];
        let next = listener.accepted.pop_front().map(Ok);
        let next = next.or_else(|| listener.failed.take().map(Err));
        if next.is_none() {
            remember(&mut listener.waiter, waker);
        }
        if listener.accepted.is_empty() && listener.accept.is_none() && listener.pause.is_none() {
            let fd = Some(Rc::clone(&listener.fd));
            listener.accept = Some(self.ring.start(fd, Request::Accept, Owner::Listener(index)));
        }
        next
    }

    pub(crate) fn close_listener(&mut self, index: u32) {
        let listener = &mut self.listeners[index as usize];
        listener.closing = true;
        listener.waiter = None;
        let (accept, pause) = (listener.accept, listener.pause.take());
        for fd in std::mem::take(&mut listener.accepted) {
            self.ring.release(Rc::new(fd));
        }
        if let Some(pause) = pause {
            self.wheel.cancel(pause);
        }
        match accept {
            Some(accept) => self.ring.cancel(accept),
            None => self.remove_listener(index),
        }
    }

    fn remove_listener(&mut self, index: u32) {
        let listener = self.listeners.remove(index as usize);
        self.ring.release(listener.fd);
    }

    fn accepted(&mut self, index: u32, completion: Completion) {
        let Some(listener) = self.listeners.get_mut(index as usize) else {
            return;
        };
        if !completion.more {
            listener.accept = None;
        }
        if listener.closing {
            if let Some(fd) = completion.accepted {
                self.ring.release(Rc::new(fd));
            }
            if !completion.more {
                self.remove_listener(index);
            }
            return;
        }
        if let Some(fd) = completion.accepted {
            listener.told = false;
            listener.accepted.push_back(fd);
            if listener.accepted.len() == ACCEPTED_AHEAD_MAX
                && let Some(accept) = listener.accept
            {
                self.ring.cancel(accept);
            }
        } else {
            match -completion.result {
                libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM => {
                    if !std::mem::replace(&mut listener.told, true) {
                        let error = Errno::from_raw(-completion.result);
                        tracing::warn!(%error, "cannot accept; raise LimitNOFILE= in the unit");
                    }
                    let at = self.now.after(ACCEPT_PAUSE);
                    listener.pause = Some(self.wheel.set(at, Fire::Listener(index)));
                    return;
                }
                // A connection that died in the backlog, or our own cancel.
                libc::ECONNABORTED
                | libc::ECANCELED
                | libc::EINTR
                | libc::EAGAIN
                | libc::EPROTO => {}
                error => listener.failed = Some(net_error(error)),
            }
        }
        self.listener_timer(index);
    }

    /// Wakes who accepts: it takes what is there, or arms the accept again.
    fn listener_timer(&mut self, index: u32) {
        let Some(listener) = self.listeners.get_mut(index as usize) else {
            return;
        };
        listener.pause = None;
        if let Some(waiter) = listener.waiter.take() {
            waiter.wake();
        }
    }
}

/// Replaces a remembered waker only when it would wake another task.
pub(crate) fn remember(slot: &mut Option<Waker>, waker: &Waker) {
    match slot {
        Some(known) if known.will_wake(waker) => {}
        _ => *slot = Some(waker.clone()),
    }
}

/// The kind of a network error number.
pub(crate) fn net_error(errno: i32) -> NetError {
    match errno {
        libc::ECONNREFUSED => NetError::Refused,
        libc::ECONNRESET | libc::EPIPE | libc::ENOTCONN | libc::ECONNABORTED => NetError::Reset,
        libc::ETIMEDOUT => NetError::TimedOut,
        libc::EHOSTUNREACH | libc::ENETUNREACH | libc::ENETDOWN | libc::EHOSTDOWN => {
            NetError::Unreachable
        }
        libc::EADDRNOTAVAIL => NetError::AddressNotAvailable,
        libc::EADDRINUSE => NetError::AddressInUse,
        libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::EAGAIN => {
            NetError::Exhausted
        }
        libc::EACCES | libc::EPERM => NetError::Denied,
        other => NetError::Other(other),
    }
}
