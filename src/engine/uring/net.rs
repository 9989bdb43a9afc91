//! Sockets: listen, accept, connect, and the stream.

use std::cell::Cell;
use std::fmt;
use std::future::{Future, poll_fn};
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, Shutdown, SockFlag, SockType, SockaddrStorage, bind, getpeername,
    getsockname, listen, setsockopt, shutdown, socket, sockopt,
};

use super::core::{Core, Operation, Sleep};
use super::reactor::{Read, net_error};
use crate::engine::port::{Moving, MovingSocket};
use crate::engine::sys::buffers::Lease;
use crate::engine::sys::ring::{Gather, Memory, Request};
use crate::engine::{NetError, Stream};
use crate::time::Mono;

/// Received bytes, in the engine's buffer until dropped.
pub struct UringChunk {
    core: Rc<Core>,
    lease: Option<Lease>,
    /// What another shard received, before the connection came here.
    brought: Option<Box<[u8]>>,
}

impl Deref for UringChunk {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.lease {
            Some(lease) => lease,
            None => self.brought.as_deref().unwrap_or_default(),
        }
    }
}

impl Drop for UringChunk {
    fn drop(&mut self) {
        if let Some(lease) = self.lease.take() {
            self.core.reactor.borrow_mut().give_back(lease);
        }
    }
}

/// A connection.
pub struct UringStream {
    core: Rc<Core>,
    index: u32,
    peer: SocketAddr,
    local: Cell<Option<SocketAddr>>,
    brought: Option<Box<[u8]>>,
    /// The reactor knows it no more.
    left: bool,
}

impl UringStream {
    fn new(core: &Rc<Core>, fd: Rc<OwnedFd>, peer: SocketAddr, local: Option<SocketAddr>) -> Self {
        let index = core.reactor.borrow_mut().add_stream(fd);
        Self {
            core: Rc::clone(core),
            index,
            peer,
            local: Cell::new(local),
            brought: None,
            left: false,
        }
    }

    fn poll_send(
        &mut self,
        operation: &mut Operation,
        deadline: Mono,
        context: &mut Context<'_>,
    ) -> Poll<Result<(i32, Memory), NetError>> {
        if let Poll::Ready(done) = Pin::new(&mut *operation).poll(context) {
            return Poll::Ready(Ok(done));
        }
        if self.core.now.get() >= deadline {
            return Poll::Ready(Err(NetError::TimedOut));
        }
        let mut reactor = self.core.reactor.borrow_mut();
        reactor.await_send(self.index, Some(operation.key), deadline);
        Poll::Pending
    }

    async fn send_all(&mut self, mut pieces: Box<Gather>, deadline: Mono) -> Result<(), NetError> {
        while !pieces.is_done() {
            let fd = Rc::clone(self.core.reactor.borrow().stream_fd(self.index));
            let mut operation = self.core.operate(Some(&fd), Request::Send(pieces), true);
            drop(fd);
            let (sent, memory) =
                poll_fn(|context| self.poll_send(&mut operation, deadline, context)).await?;
            let sent = usize::try_from(sent).map_err(|_| net_error(-sent))?;
            let Memory::Pieces(mut rest) = memory else {
                return Err(NetError::Reset);
            };
            if sent == 0 {
                // Never with bytes left to send; a loop must not depend on it.
                return Err(NetError::Reset);
            }
            rest.advance(sent);
            pieces = rest;
        }
        self.core
            .reactor
            .borrow_mut()
            .await_send(self.index, None, Mono::NEVER);
        Ok(())
    }
}

impl Stream for UringStream {
    type Chunk = UringChunk;

    fn peer(&self) -> SocketAddr {
        self.peer
    }

    fn local(&self) -> SocketAddr {
        if let Some(local) = self.local.get() {
            return local;
        }
        let raw = self.core.reactor.borrow().stream_fd(self.index).as_raw_fd();
        // A socket always has a name; nothing depends on the placeholder.
        let local = getsockname(raw).ok().and_then(|name| address_of(&name));
        let local = local.unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0)));
        self.local.set(Some(local));
        local
    }

    fn poll_recv(
        &mut self,
        context: &mut Context<'_>,
        deadline: Mono,
    ) -> Poll<Result<UringChunk, NetError>> {
        if let Some(brought) = self.brought.take() {
            return Poll::Ready(Ok(UringChunk {
                core: Rc::clone(&self.core),
                lease: None,
                brought: Some(brought),
            }));
        }
        let mut reactor = self.core.reactor.borrow_mut();
        let lease = match reactor.read(self.index) {
            Read::Chunk(lease) => Some(lease),
            Read::End => None,
            Read::Failed(error) => return Poll::Ready(Err(error)),
            Read::Wait if self.core.now.get() >= deadline => {
                return Poll::Ready(Err(NetError::TimedOut));
            }
            Read::Wait => {
                reactor.await_read(self.index, context.waker(), deadline);
                return Poll::Pending;
            }
        };
        Poll::Ready(Ok(UringChunk {
            core: Rc::clone(&self.core),
            lease,
            brought: None,
        }))
    }

    fn send(
        &mut self,
        pieces: Vec<Bytes>,
        deadline: Mono,
    ) -> impl Future<Output = Result<(), NetError>> {
        self.send_all(Box::new(Gather::new(pieces)), deadline)
    }

    fn finish(&mut self) {
        let raw = self.core.reactor.borrow().stream_fd(self.index).as_raw_fd();
        if let Err(error) = shutdown(raw, Shutdown::Write) {
            // The connection is gone; the next read says so.
            tracing::trace!(%error, "shutdown");
        }
    }

    async fn depart(mut self, mut unread: Vec<u8>) -> Result<Moving, NetError> {
        if let Some(brought) = self.brought.take() {
            unread.extend_from_slice(&brought);
        }
        poll_fn(|context| {
            let mut reactor = self.core.reactor.borrow_mut();
            reactor.poll_leave(self.index, context.waker())
        })
        .await;
        self.left = true;
        let mut reactor = self.core.reactor.borrow_mut();
        let fd = reactor.take_stream(self.index, &mut unread);
        Ok(Moving {
            socket: MovingSocket::Descriptor(fd.ok_or(NetError::Reset)?),
            peer: self.peer,
            local: self.local.get(),
            unread,
        })
    }
}

impl fmt::Debug for UringStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UringStream({})", self.peer)
    }
}

impl Drop for UringStream {
    fn drop(&mut self) {
        if self.left {
            return;
        }
        self.core
            .reactor
            .borrow_mut()
            .close_stream(self.index, self.core.stopped.get());
    }
}

/// A listening socket of one shard.
pub struct UringListener {
    core: Rc<Core>,
    index: u32,
    pub(super) address: SocketAddr,
}

impl fmt::Debug for UringListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UringListener({})", self.address)
    }
}

impl Drop for UringListener {
    fn drop(&mut self) {
        self.core.reactor.borrow_mut().close_listener(self.index);
    }
}

pub(super) fn listen_on(core: &Rc<Core>, address: SocketAddr) -> Result<UringListener, NetError> {
    let (fd, address) = open_listener(address).map_err(|errno| net_error(errno as i32))?;
    let index = core.reactor.borrow_mut().add_listener(fd);
    Ok(UringListener {
        core: Rc::clone(core),
        index,
        address,
    })
}

fn open_listener(address: SocketAddr) -> Result<(OwnedFd, SocketAddr), Errno> {
    let (fd, address) = open_bound(address)?;
    // Accepted sockets inherit it, which saves a system call for each.
    setsockopt(&fd, sockopt::TcpNoDelay, &true)?;
    listen(&fd, Backlog::MAXCONN)?;
    Ok((fd, address))
}

/// A port of the kernel's choice, on which every shard can listen: each would get one of its own
/// otherwise. Nobody else gets it while the socket lives, which accepts nothing.
///
/// # Errors
/// The address is not of this host, or no port is free.
pub fn reserve_port(ip: IpAddr) -> Result<(OwnedFd, SocketAddr), NetError> {
    open_bound(SocketAddr::new(ip, 0)).map_err(|errno| net_error(errno as i32))
}

fn open_bound(address: SocketAddr) -> Result<(OwnedFd, SocketAddr), Errno> {
    let fd = open_socket(address)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    setsockopt(&fd, sockopt::ReusePort, &true)?;
    if address.is_ipv6() {
        setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
    }
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    let name = getsockname(fd.as_raw_fd())?;
    Ok((fd, address_of(&name).unwrap_or(address)))
}

fn open_socket(address: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv6() {
        AddressFamily::Inet6
    } else {
        AddressFamily::Inet
    };
    // Blocking on purpose: io_uring waits for readiness itself, except on non-blocking sockets.
    socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
}

pub(super) async fn accept_from(
    core: &Rc<Core>,
    listener: &mut UringListener,
) -> Result<UringStream, NetError> {
    loop {
        let next = |context: &mut Context<'_>| {
            let mut reactor = core.reactor.borrow_mut();
            match reactor.next_accepted(listener.index, context.waker()) {
                Some(next) => Poll::Ready(next),
                None => Poll::Pending,
            }
        };
        let fd = Rc::new(poll_fn(next).await?);
        let peer = getpeername(fd.as_raw_fd())
            .ok()
            .and_then(|name| address_of(&name));
        let Some(peer) = peer else {
            // It came and went; nobody misses it.
            core.reactor.borrow_mut().ring.release(fd);
            continue;
        };
        let local = (!listener.address.ip().is_unspecified()).then_some(listener.address);
        return Ok(UringStream::new(core, fd, peer, local));
    }
}

pub(super) fn adopt(core: &Rc<Core>, moving: Moving) -> Result<UringStream, NetError> {
    let MovingSocket::Descriptor(fd) = moving.socket else {
        return Err(NetError::Other(libc::EBADF));
    };
    let mut stream = UringStream::new(core, Rc::new(fd), moving.peer, moving.local);
    stream.brought = (!moving.unread.is_empty()).then(|| moving.unread.into_boxed_slice());
    Ok(stream)
}

pub(super) async fn connect_to(
    core: &Rc<Core>,
    source: Option<IpAddr>,
    target: SocketAddr,
    deadline: Mono,
) -> Result<UringStream, NetError> {
    let fd = open_outgoing(source, target).map_err(|errno| net_error(errno as i32))?;
    let fd = Rc::new(fd);
    let request = Request::Connect(Box::new(SockaddrStorage::from(target)));
    let mut operation = core.operate(Some(&fd), request, true);
    let mut sleep = Sleep {
        core: Rc::clone(core),
        deadline,
        timer: None,
    };
    let result = poll_fn(|context| {
        if let Poll::Ready((result, _)) = Pin::new(&mut operation).poll(context) {
            return Poll::Ready(result);
        }
        Pin::new(&mut sleep)
            .poll(context)
            .map(|()| -libc::ETIMEDOUT)
    })
    .await;
    drop((operation, sleep));
    if result < 0 {
        core.reactor.borrow_mut().ring.release(fd);
        return Err(match -result {
            // The source was fine in bind(2), so it is the ports that ran out.
            libc::EADDRNOTAVAIL => NetError::Exhausted,
            errno => net_error(errno),
        });
    }
    Ok(UringStream::new(core, fd, target, None))
}

fn open_outgoing(source: Option<IpAddr>, target: SocketAddr) -> Result<OwnedFd, Errno> {
    let fd = open_socket(target)?;
    setsockopt(&fd, sockopt::TcpNoDelay, &true)?;
    if let Some(source) = source {
        // The port is chosen at connect, so that one source address has 28,000 ports per target and
        // not in all.
        setsockopt(&fd, sockopt::IpBindAddressNoPort, &true)?;
        bind(
            fd.as_raw_fd(),
            &SockaddrStorage::from(SocketAddr::new(source, 0)),
        )?;
    }
    Ok(fd)
}

fn address_of(name: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(name) = name.as_sockaddr_in() {
        return Some(SocketAddr::V4((*name).into()));
    }
    name.as_sockaddr_in6()
        .map(|name| SocketAddr::V6((*name).into()))
}
