//! The network: byte pipes with latency between the hosts of a world, and what befalls them.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::{Future, poll_fn};
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;

use super::Sleep;
use super::world::{CrashKind, Poison, Process, World};
use crate::engine::port::{Moving, MovingSocket};
use crate::engine::{NetError, Stream, yield_now};
use crate::time::Mono;

/// Connections that wait to be accepted before further ones are refused.
const BACKLOG_MAX: usize = 128;

/// Most bytes that one receive hands out, as the buffers of the real engine.
const CHUNK_MAX: usize = 16 << 10;

/// So many bytes of each send arrive one by one on a connection drawn to be so.
const SINGLE_BYTES_MAX: usize = 300;

/// Linux' range of ports for connections.
const EPHEMERAL_FIRST: u16 = 32_768;

/// What belongs to no single host.
#[derive(Default)]
pub(super) struct Net {
    /// Which machine has an address.
    pub(super) owners: BTreeMap<IpAddr, usize>,
    listeners: Vec<Rc<ListenerState>>,
    connections: Vec<Weak<Connection>>,
    /// Connections that left one shard and have not come to another.
    moving: BTreeMap<u64, SimStream>,
    numbers: u64,
}

/// A listening socket.
pub struct SimListener {
    pub(super) state: Rc<ListenerState>,
    world: Weak<World>,
}

pub(super) struct ListenerState {
    pub(super) address: SocketAddr,
    process: Rc<Process>,
    queue: RefCell<VecDeque<SimStream>>,
    waiter: RefCell<Option<Waker>>,
}

/// How the bytes of a connection are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    Whole,
    Drawn,
    Single,
}

/// What befalls a connection after so many bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Strike {
    Reset(u64),
    Silence(u64),
}

struct Connection {
    number: u64,
    ends: [End; 2],
    window: usize,
    cut: Cut,
    strike: Cell<Option<Strike>>,
    /// Nothing is carried any more.
    silent: Cell<bool>,
    carried: Cell<u64>,
}

/// One end, and the pipe that leads to it.
struct End {
    address: SocketAddr,
    process: Rc<Process>,
    /// Bytes that arrived and were not read.
    unread: RefCell<VecDeque<Bytes>>,
    /// Bytes under way to here or unread here.
    occupied: Cell<usize>,
    /// When the last byte under way to here arrives.
    last_arrival: Cell<Mono>,
    /// The peer's FIN has arrived.
    ended: Cell<bool>,
    reset: Cell<bool>,
    /// This end has sent its FIN.
    finished: Cell<bool>,
    /// The program has let go of it.
    closed: Cell<bool>,
    receiver: RefCell<Option<Waker>>,
    sender: RefCell<Option<Waker>>,
    /// When the receiver is to be woken for its deadline.
    alarm: Cell<Option<Mono>>,
}

impl End {
    fn new(address: SocketAddr, process: Rc<Process>) -> Self {
        Self {
            address,
            process,
            unread: RefCell::default(),
            occupied: Cell::new(0),
            last_arrival: Cell::new(Mono(0)),
            ended: Cell::new(false),
            reset: Cell::new(false),
            finished: Cell::new(false),
            closed: Cell::new(false),
            receiver: RefCell::default(),
            sender: RefCell::default(),
            alarm: Cell::new(None),
        }
    }

    fn wake(&self) {
        for waiter in [&self.receiver, &self.sender] {
            let waiter = waiter.borrow_mut().take();
            if let Some(waiter) = waiter {
                waiter.wake();
            }
        }
    }

    fn break_off(&self, forget: bool) {
        self.reset.set(true);
        if forget {
            self.unread.borrow_mut().clear();
        }
        self.wake();
    }
}

impl Connection {
    /// A drawn one-way delay, in order behind what is under way to `end` already.
    fn arrival(&self, world: &World, end: usize) -> Mono {
        let delay = {
            let options = world.options.borrow();
            world.random.within(&options.net.latency)
        };
        let at = world.now().after(Duration::from_nanos(delay));
        let at = at.max(self.ends[end].last_arrival.get());
        self.ends[end].last_arrival.set(at);
        at
    }

    /// Sends bytes on their way to `end`.
    fn carry(self: &Rc<Self>, world: &World, end: usize, data: &Bytes) {
        let mut data = data.clone();
        let sent = data.len();
        self.ends[end]
            .occupied
            .set(self.ends[end].occupied.get() + sent);
        let before = self.carried.get();
        self.carried.set(before + sent as u64);
        let strike = self.strike.get();
        if let Some(Strike::Reset(after) | Strike::Silence(after)) = strike
            && before + (sent as u64) > after
            && !self.silent.get()
        {
            data.truncate(usize::try_from(after.saturating_sub(before)).unwrap_or(0));
            self.strike.set(None);
            self.deliver_cut(world, end, data);
            self.silent.set(true);
            world.note(
                "strike",
                self.number,
                u64::from(matches!(strike, Some(Strike::Reset(_)))),
            );
            if let Some(Strike::Reset(_)) = strike {
                self.reset_end(world, 0);
                self.reset_end(world, 1);
            }
            return;
        }
        if !self.silent.get() {
            self.deliver_cut(world, end, data);
        }
    }

    /// Lets bytes arrive in pieces.
    fn deliver_cut(self: &Rc<Self>, world: &World, end: usize, mut data: Bytes) {
        let mut singles = 0;
        while !data.is_empty() {
            let len = match self.cut {
                Cut::Single if singles < SINGLE_BYTES_MAX => 1,
                Cut::Drawn => {
                    1 + world
                        .random
                        .index(data.len().min(1 << world.random.below(15)))
                }
                Cut::Single | Cut::Whole => data.len(),
            };
            singles += 1;
            let part = data.split_to(len.min(data.len()).min(CHUNK_MAX));
            let at = self.arrival(world, end);
            let connection = Rc::clone(self);
            world.schedule(at, move |world| connection.arrived(world, end, part));
        }
    }

    fn arrived(self: &Rc<Self>, world: &World, end: usize, data: Bytes) {
        world.note("arrival", self.number * 2 + end as u64, data.len() as u64);
        let here = &self.ends[end];
        if here.closed.get() {
            // Sometimes the kernel still drains what comes, sometimes it answers with a reset.
            if world.random.coin() {
                self.reset_end(world, 1 - end);
            }
            return;
        }
        if here.reset.get() {
            return;
        }
        here.unread.borrow_mut().push_back(data);
        if let Some(receiver) = here.receiver.take() {
            receiver.wake();
        }
    }

    /// Lets a reset arrive at `end`.
    fn reset_end(self: &Rc<Self>, world: &World, end: usize) {
        let at = self.arrival(world, end);
        let connection = Rc::clone(self);
        let forget = world.random.coin();
        world.schedule(at, move |world| {
            world.note(
                "reset",
                connection.number * 2 + end as u64,
                u64::from(forget),
            );
            connection.ends[end].break_off(forget);
        });
    }

    /// Sends the FIN of the end that faces `end`.
    fn finish_towards(self: &Rc<Self>, world: &World, end: usize) {
        if self.ends[1 - end].finished.replace(true) || self.silent.get() {
            return;
        }
        let at = self.arrival(world, end);
        let connection = Rc::clone(self);
        world.schedule(at, move |world| {
            world.note("end", connection.number * 2 + end as u64, 0);
            connection.ends[end].ended.set(true);
            if let Some(receiver) = connection.ends[end].receiver.take() {
                receiver.wake();
            }
        });
    }
}

/// One end of a connection. Dropping it closes it: what was sent is still delivered.
pub struct SimStream {
    world: Weak<World>,
    connection: Rc<Connection>,
    end: usize,
}

impl SimStream {
    fn here(&self) -> &End {
        &self.connection.ends[self.end]
    }

    fn there(&self) -> &End {
        &self.connection.ends[1 - self.end]
    }

    fn take_unread(&self) -> Option<Bytes> {
        let chunk = self.here().unread.borrow_mut().pop_front()?;
        self.here()
            .occupied
            .set(self.here().occupied.get().saturating_sub(chunk.len()));
        if let Some(sender) = self.there().sender.take() {
            sender.wake();
        }
        Some(chunk)
    }

    /// Has the receiver woken at `deadline`, with one event under way at a time for most deadlines.
    fn set_alarm(&self, world: &World, deadline: Mono) {
        let earlier = self
            .here()
            .alarm
            .get()
            .is_some_and(|alarm| alarm <= deadline);
        if earlier || deadline == Mono::NEVER {
            return;
        }
        self.here().alarm.set(Some(deadline));
        let (connection, end) = (Rc::clone(&self.connection), self.end);
        world.schedule(deadline, move |_| {
            let here = &connection.ends[end];
            if here.alarm.get() == Some(deadline) {
                here.alarm.set(None);
                if let Some(receiver) = here.receiver.take() {
                    receiver.wake();
                }
            }
        });
    }

    /// Takes as much of `pieces` as the window has room for. True when all of it is gone.
    fn push(&self, world: &World, pieces: &mut VecDeque<Bytes>) -> bool {
        let mut room = self
            .connection
            .window
            .saturating_sub(self.there().occupied.get());
        // One gathered write, as the kernel takes it: where bytes are cut is not the pieces'
        // business.
        let mut gathered = Vec::new();
        while let Some(piece) = pieces.front_mut() {
            let part = piece.split_to(piece.len().min(room));
            room -= part.len();
            gathered.extend_from_slice(&part);
            if !piece.is_empty() {
                break;
            }
            pieces.pop_front();
        }
        if !gathered.is_empty() {
            self.connection
                .carry(world, 1 - self.end, &Bytes::from(gathered));
        }
        pieces.is_empty()
    }
}

impl Stream for SimStream {
    type Chunk = Bytes;

    fn peer(&self) -> SocketAddr {
        self.there().address
    }

    fn local(&self) -> SocketAddr {
        self.here().address
    }

    fn poll_recv(
        &mut self,
        context: &mut Context<'_>,
        deadline: Mono,
    ) -> Poll<Result<Bytes, NetError>> {
        let Some(world) = self.world.upgrade() else {
            return Poll::Pending;
        };
        if let Some(chunk) = self.take_unread() {
            return Poll::Ready(Ok(chunk));
        }
        if self.here().reset.get() {
            return Poll::Ready(Err(NetError::Reset));
        }
        if self.here().ended.get() {
            return Poll::Ready(Ok(Bytes::new()));
        }
        if world.now() >= deadline {
            return Poll::Ready(Err(NetError::TimedOut));
        }
        self.set_alarm(&world, deadline);
        self.here().receiver.replace(Some(context.waker().clone()));
        Poll::Pending
    }

    async fn send(&mut self, pieces: Vec<Bytes>, deadline: Mono) -> Result<(), NetError> {
        let mut pieces: VecDeque<Bytes> = pieces.into();
        let Some(world) = self.world.upgrade() else {
            return Err(NetError::Reset);
        };
        strike(&world, &self.here().process, &pieces);
        let mut sleep = pin!(Sleep::new(&world, deadline));
        poll_fn(|context| {
            if self.here().reset.get() || self.here().finished.get() {
                return Poll::Ready(Err(NetError::Reset));
            }
            if self.push(&world, &mut pieces) {
                return Poll::Ready(Ok(()));
            }
            if sleep.as_mut().poll(context).is_ready() {
                return Poll::Ready(Err(NetError::TimedOut));
            }
            self.here().sender.replace(Some(context.waker().clone()));
            Poll::Pending
        })
        .await
    }

    fn finish(&mut self) {
        if let Some(world) = self.world.upgrade() {
            self.connection.finish_towards(&world, 1 - self.end);
        }
    }

    async fn depart(self, unread: Vec<u8>) -> Result<Moving, NetError> {
        let world = self.world.upgrade().ok_or(NetError::Reset)?;
        // As in production: the other shards run before the receive is over.
        yield_now().await;
        let (peer, local) = (self.peer(), self.local());
        let mut net = world.net.borrow_mut();
        net.numbers += 1;
        let number = net.numbers;
        net.moving.insert(number, self);
        drop(net);
        world.note("departure", number, unread.len() as u64);
        Ok(Moving {
            socket: MovingSocket::Simulated(number),
            peer,
            local: Some(local),
            unread,
        })
    }
}

/// Takes over a connection that departed from another shard of the process.
pub(super) fn adopt(world: &Rc<World>, moving: Moving) -> Result<SimStream, NetError> {
    let MovingSocket::Simulated(number) = moving.socket else {
        return Err(NetError::Reset);
    };
    let stream = world.net.borrow_mut().moving.remove(&number);
    let stream = stream.ok_or(NetError::Reset)?;
    if !moving.unread.is_empty() {
        let here = stream.here();
        here.occupied.set(here.occupied.get() + moving.unread.len());
        here.unread
            .borrow_mut()
            .push_front(Bytes::from(moving.unread));
    }
    Ok(stream)
}

/// Panics where the machine is told to at these bytes.
fn strike(world: &World, process: &Process, pieces: &VecDeque<Bytes>) {
    let machine = world.machines.borrow().get(process.machine).map(Rc::clone);
    let Some(machine) = machine else { return };
    let poison = machine.poison.borrow().clone();
    let Some((needle, how)) = poison.filter(|(needle, _)| !needle.is_empty()) else {
        return;
    };
    let holds = |piece: &Bytes| memchr::memmem::find(piece, &needle).is_some();
    if pieces.iter().any(holds) {
        machine.strikes.set(machine.strikes.get() + 1);
        process.broken.set(how == Poison::Abort);
        panic!("poison");
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        self.here().closed.set(true);
        self.here().unread.borrow_mut().clear();
        let Some(world) = self.world.upgrade() else {
            return;
        };
        // A crash says itself what the other end sees.
        if !self.here().process.dead.get() {
            self.connection.finish_towards(&world, 1 - self.end);
        }
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        let Some(world) = self.world.upgrade() else {
            return;
        };
        world
            .net
            .borrow_mut()
            .listeners
            .retain(|listener| !Rc::ptr_eq(listener, &self.state));
        let waiting = std::mem::take(&mut *self.state.queue.borrow_mut());
        for stream in &waiting {
            stream.connection.reset_end(&world, 1 - stream.end);
        }
    }
}

pub(super) fn listen(
    world: &Rc<World>,
    process: &Rc<Process>,
    address: SocketAddr,
) -> Result<SimListener, NetError> {
    let mut net = world.net.borrow_mut();
    let ip = address.ip();
    let ours = ip.is_loopback() || ip.is_unspecified();
    if !ours && net.owners.get(&ip) != Some(&process.machine) {
        return Err(NetError::AddressNotAvailable);
    }
    let mut address = address;
    if address.port() == 0 {
        net.numbers += 1;
        let offset = u16::try_from(net.numbers % 20_000).unwrap_or(0);
        address.set_port(EPHEMERAL_FIRST + offset);
    }
    let taken = |other: &Rc<ListenerState>| {
        let same_machine = other.process.machine == process.machine;
        let same_ip = other.address.ip() == ip || ip.is_unspecified();
        same_machine
            && other.address.port() == address.port()
            && same_ip
            && !Rc::ptr_eq(&other.process, process)
    };
    if net.listeners.iter().any(taken) {
        return Err(NetError::AddressInUse);
    }
    let state = Rc::new(ListenerState {
        address,
        process: Rc::clone(process),
        queue: RefCell::default(),
        waiter: RefCell::default(),
    });
    net.listeners.push(Rc::clone(&state));
    drop(net);
    world.note("listen", process.machine as u64, u64::from(address.port()));
    Ok(SimListener {
        state,
        world: Rc::downgrade(world),
    })
}

pub(super) async fn accept(listener: &mut SimListener) -> SimStream {
    poll_fn(
        |context| match listener.state.queue.borrow_mut().pop_front() {
            Some(stream) => Poll::Ready(stream),
            None => {
                listener.state.waiter.replace(Some(context.waker().clone()));
                Poll::Pending
            }
        },
    )
    .await
}

/// An attempt to connect, shared by its events and the future that waits.
#[derive(Default)]
struct Attempt {
    result: RefCell<Option<Result<SimStream, NetError>>>,
    waiter: RefCell<Option<Waker>>,
}

impl Attempt {
    fn end(&self, result: Result<SimStream, NetError>) {
        self.result.replace(Some(result));
        if let Some(waiter) = self.waiter.take() {
            waiter.wake();
        }
    }
}

pub(super) async fn connect(
    world: &Rc<World>,
    process: &Rc<Process>,
    source: Option<IpAddr>,
    target: SocketAddr,
    deadline: Mono,
) -> Result<SimStream, NetError> {
    let local = local_address(world, process, source, target)?;
    let (fate, delay) = {
        let options = world.options.borrow();
        let random = &world.random;
        let fate = if random.chance(options.net.unreachable) {
            Some(Err(NetError::Unreachable))
        } else if random.chance(options.net.refuse) {
            Some(Err(NetError::Refused))
        } else if random.chance(options.net.ignore) {
            None
        } else {
            Some(Ok(()))
        };
        (fate, random.within(&options.net.latency))
    };
    world.note("connect", process.machine as u64, u64::from(target.port()));
    let attempt = Rc::new(Attempt::default());
    let at = world.now().after(Duration::from_nanos(delay));
    let (shared, process) = (Rc::clone(&attempt), Rc::clone(process));
    match fate {
        None => {}
        Some(Err(error)) => world.schedule(at, move |_| shared.end(Err(error))),
        Some(Ok(())) => world.schedule(at, move |world| {
            let opened = open(world, &process, local, target);
            let back = world.random.within(&world.options.borrow().net.latency);
            let at = world.now().after(Duration::from_nanos(back));
            world.schedule(at, move |_| shared.end(opened));
        }),
    }
    let mut sleep = pin!(Sleep::new(world, deadline));
    poll_fn(|context| {
        if let Some(result) = attempt.result.take() {
            return Poll::Ready(result);
        }
        if sleep.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(NetError::TimedOut));
        }
        attempt.waiter.replace(Some(context.waker().clone()));
        Poll::Pending
    })
    .await
}

/// Which address of ours a connection has.
fn local_address(
    world: &World,
    process: &Process,
    source: Option<IpAddr>,
    target: SocketAddr,
) -> Result<SocketAddr, NetError> {
    let mut net = world.net.borrow_mut();
    let own = |ip: &IpAddr| ip.is_loopback() || net.owners.get(ip) == Some(&process.machine);
    let ip = match source {
        Some(ip) if !own(&ip) => return Err(NetError::AddressNotAvailable),
        Some(ip) => ip,
        None if target.ip().is_loopback() => target.ip(),
        None => {
            let mut owned = net
                .owners
                .iter()
                .filter(|(_, machine)| **machine == process.machine);
            let fits = owned.find(|(ip, _)| ip.is_ipv4() == target.is_ipv4());
            *fits.ok_or(NetError::Unreachable)?.0
        }
    };
    if ip.is_ipv4() != target.is_ipv4() {
        return Err(NetError::AddressNotAvailable);
    }
    net.numbers += 1;
    let offset = u16::try_from(net.numbers % 28_000).unwrap_or(0);
    Ok(SocketAddr::new(ip, EPHEMERAL_FIRST + offset))
}

/// The SYN has arrived: whoever listens there gets one end, the caller the other.
fn open(
    world: &Rc<World>,
    process: &Rc<Process>,
    local: SocketAddr,
    target: SocketAddr,
) -> Result<SimStream, NetError> {
    let mut net = world.net.borrow_mut();
    let machine = if target.ip().is_loopback() {
        process.machine
    } else {
        *net.owners.get(&target.ip()).ok_or(NetError::Unreachable)?
    };
    let fits = |listener: &&Rc<ListenerState>| {
        let ip = listener.address.ip();
        listener.process.machine == machine
            && listener.address.port() == target.port()
            && (ip == target.ip() || ip.is_unspecified())
            && listener.queue.borrow().len() < BACKLOG_MAX
    };
    let count = net.listeners.iter().filter(fits).count();
    let chosen = world.random.index(count);
    let listener = net.listeners.iter().filter(fits).nth(chosen).map(Rc::clone);
    let listener = listener.ok_or(NetError::Refused)?;
    let number = net.numbers;
    net.numbers += 1;
    let ends = [
        End::new(local, Rc::clone(process)),
        End::new(target, Rc::clone(&listener.process)),
    ];
    let connection = Rc::new(draw_connection(world, number, ends));
    net.connections
        .retain(|connection| connection.strong_count() > 0);
    net.connections.push(Rc::downgrade(&connection));
    drop(net);
    world.note("open connection", number, u64::from(target.port()));
    let end = |end| SimStream {
        world: Rc::downgrade(world),
        connection: Rc::clone(&connection),
        end,
    };
    listener.queue.borrow_mut().push_back(end(1));
    if let Some(waiter) = listener.waiter.take() {
        waiter.wake();
    }
    Ok(end(0))
}

fn draw_connection(world: &World, number: u64, ends: [End; 2]) -> Connection {
    let options = world.options.borrow();
    let (faults, random) = (&options.net, &world.random);
    let after = random.below(faults.strike_bytes.max(1));
    let strike = if random.chance(faults.reset) {
        Some(Strike::Reset(after))
    } else if random.chance(faults.silence) {
        Some(Strike::Silence(after))
    } else {
        None
    };
    let cut = if random.chance(faults.single_bytes) {
        Cut::Single
    } else if random.chance(faults.split) {
        Cut::Drawn
    } else {
        Cut::Whole
    };
    Connection {
        number,
        ends,
        window: usize::try_from(random.within(&faults.window)).unwrap_or(CHUNK_MAX),
        cut,
        strike: Cell::new(strike),
        silent: Cell::new(false),
        carried: Cell::new(0),
    }
}

/// What the other ends see of a process that is no more.
pub(super) fn crash(world: &Rc<World>, process: &Rc<Process>, kind: CrashKind) {
    let (connections, listeners, moving) = {
        let mut net = world.net.borrow_mut();
        let lost = |stream: &SimStream| Rc::ptr_eq(&stream.here().process, process);
        let (moving, rest) = std::mem::take(&mut net.moving)
            .into_iter()
            .partition::<BTreeMap<_, _>, _>(|(_, stream)| lost(stream));
        net.moving = rest;
        let ours = |listener: &Rc<ListenerState>| Rc::ptr_eq(&listener.process, process);
        let listeners: Vec<_> = net
            .listeners
            .iter()
            .filter(|l| ours(l))
            .map(Rc::clone)
            .collect();
        net.listeners.retain(|listener| !ours(listener));
        let connections: Vec<_> = net.connections.iter().filter_map(Weak::upgrade).collect();
        (connections, listeners, moving)
    };
    drop(moving);
    for connection in connections {
        for end in 0..2 {
            let here = &connection.ends[end];
            if !Rc::ptr_eq(&here.process, process) || here.closed.get() && here.finished.get() {
                continue;
            }
            here.closed.set(true);
            here.unread.borrow_mut().clear();
            match (kind, world.random.below(3)) {
                (CrashKind::Kill, 0) => connection.finish_towards(world, 1 - end),
                (CrashKind::PowerCut, 0 | 1) => connection.silent.set(true),
                _ => connection.reset_end(world, 1 - end),
            }
        }
    }
    // The streams in their queues point back to the world's handles only weakly.
    drop(listeners);
}
