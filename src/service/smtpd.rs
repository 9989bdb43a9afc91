//! smtpd - inbound SMTP service.
//!
//! Role: speak SMTP to injectors, turn each transaction into one stored message.
//! Flow: peer bytes -> `smtp::Server` -> `Inbound` -> `Intake` (check, spool) -> `Stored` -> 250.
//! Shard: every shard runs one per listener. Between two messages a session may go on elsewhere
//! (`balance`): what its connection has in hand then is the machine's state and unread octets.
//! Limits: `limits::SESSIONS_MAX` per shard, the listener's own cap, `limits::INGRESS_BYTES_MAX`.
//! Failure: the spool refuses -> 452 4.3.1 or 451 4.3.0; too many sessions -> 421 4.3.2 instead of
//! the banner; a drain -> 421 4.3.2, at once to who has no message under way, to others after the
//! reply to it, whatever they have pipelined behind it. Nothing is dropped after a 250.
//! Security: parses hostile bytes; holds no keys; names no files.
//! Standards: RFC 5321, 1870, 2034, 2920, 3030, 3461, 6152, 6531.
//!
//! One deliberate deviation from RFC 2920 3.2 (7): while a message is being synced, the replies to
//! the commands before it wait for its own reply, so that a pipelined transaction costs one send
//! instead of two. The wait is that of a group commit and the client could not go on anyway.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use slab::Slab;

use crate::engine::{Class, Moving, NetError, Port, Signal, Stream};
use crate::limits;
use crate::message::{Envelope, MessageId, Watch};
use crate::service::balance::Balance;
use crate::smtp::server::{Inbound, Refusal, Server, ServerConfig, ServerEvent};
use crate::spool::Stored;

/// Where a complete message goes. The one implementation is the shard's dispatcher; a trait, so
/// that the session can be tested without a spool.
pub trait Intake: 'static {
    /// The id that the next message of any session will get.
    fn next_id(&self) -> MessageId;

    /// Somebody who watches the next message of this envelope arrive.
    fn watch(&self, envelope: &Envelope) -> Option<Box<dyn Watch>>;

    /// Checks, stores and enqueues one message. Resolves only when the message is durable.
    fn accept(
        &self,
        id: MessageId,
        inbound: Box<Inbound>,
    ) -> impl Future<Output = Result<Stored, Refusal>>;

    /// Hands a session to another shard. One whose mailbox is full gives it back.
    fn hand_over(&self, to: u16, session: Box<MovingSession>) -> Result<(), Box<MovingSession>>;
}

/// A session between two shards; dropped, its connection is closed.
#[derive(Debug)]
pub struct MovingSession {
    connection: Moving,
    server: Server,
    /// Which listener of the configuration it came in by.
    listener: usize,
}

impl MovingSession {
    /// Which listener of the configuration it came in by.
    #[must_use]
    pub fn listener(&self) -> usize {
        self.listener
    }
}

/// What the sessions of one listener share.
pub struct Listener {
    /// Its position in the configuration, the same on every shard.
    pub number: usize,
    /// How many sessions of it are open on this shard.
    pub open: Cell<u32>,
    /// What the protocol machine is told.
    pub server: Arc<ServerConfig>,
    /// Which peers may relay without authentication.
    pub may_relay: Box<dyn Fn(IpAddr) -> bool>,
    /// Most sessions at a time on this shard's part of the listener.
    pub sessions_max: u32,
    /// How long a peer may stay silent (RFC 5321 4.5.3.2.7: at least 5 minutes).
    pub idle_timeout: Duration,
}

/// The sessions of one shard: how many there are, and whether they are to end.
#[derive(Debug)]
pub struct Sessions {
    open: Cell<u32>,
    total: Cell<u64>,
    refused: Cell<u64>,
    moved: Cell<u64>,
    draining: Cell<bool>,
    /// The tasks of the open sessions: woken once, for a drain.
    tasks: RefCell<Slab<Waker>>,
    changed: Signal,
    balance: RefCell<Balance>,
    /// Bytes that sessions hold, and may hold.
    memory: Cell<u64>,
    memory_max: u64,
    open_max: u32,
}

impl Sessions {
    /// None yet; at most `open_max` at a time, which together may hold `memory_max` bytes.
    #[must_use]
    pub fn new(open_max: u32, memory_max: u64, balance: Balance) -> Self {
        Self {
            open: Cell::default(),
            total: Cell::default(),
            refused: Cell::default(),
            moved: Cell::default(),
            draining: Cell::default(),
            tasks: RefCell::default(),
            changed: Signal::default(),
            balance: RefCell::new(balance),
            memory: Cell::default(),
            memory_max,
            open_max: open_max.min(limits::SESSIONS_MAX),
        }
    }

    /// Bytes that sessions hold.
    #[must_use]
    pub fn memory(&self) -> u64 {
        self.memory.get()
    }

    /// How many sessions are open.
    #[must_use]
    pub fn open(&self) -> u32 {
        self.open.get()
    }

    /// How many sessions there were, and how many connections were turned away.
    #[must_use]
    pub fn totals(&self) -> (u64, u64) {
        (self.total.get(), self.refused.get())
    }

    /// How many sessions went on to another shard.
    #[must_use]
    pub fn moved(&self) -> u64 {
        self.moved.get()
    }

    fn set_open(&self, open: u32) {
        self.open.set(open);
        self.balance.borrow().post(open);
    }

    /// From now on sessions end when they have no message under way, and no new one starts. Those
    /// without one end now: a client that says nothing must not hold up a restart.
    pub fn drain(&self) {
        if !self.draining.replace(true) {
            let tasks = self.tasks.borrow();
            tasks.iter().for_each(|(_, task)| task.wake_by_ref());
        }
    }

    /// Waits until a session has ended since the last call.
    pub async fn changed(&self) {
        self.changed.raised().await;
    }
}

/// Holds a place among the open sessions of the shard and of one listener.
struct Place {
    sessions: Rc<Sessions>,
    listener: Rc<Listener>,
    /// Bytes that the session holds.
    bytes: Cell<usize>,
    /// Its task's seat among [`Sessions::tasks`].
    seat: Cell<Option<u32>>,
}

impl Place {
    fn take(sessions: &Rc<Sessions>, listener: &Rc<Listener>) -> Self {
        sessions.set_open(sessions.open.get() + 1);
        listener.open.set(listener.open.get() + 1);
        Self {
            sessions: Rc::clone(sessions),
            listener: Rc::clone(listener),
            bytes: Cell::default(),
            seat: Cell::default(),
        }
    }

    /// Has the task that awaits this woken by a drain.
    async fn listen_for_drain(&self) {
        poll_fn(|context| {
            let mut tasks = self.sessions.tasks.borrow_mut();
            // Below `SESSIONS_MAX`.
            let seat = tasks.insert(context.waker().clone()) as u32;
            self.seat.set(Some(seat));
            Poll::Ready(())
        })
        .await;
    }

    /// Charges the shard's budget for what the session holds now; false where that is too much and
    /// the session must end.
    fn charge(&self, bytes: usize) -> bool {
        let before = self.bytes.replace(bytes);
        let memory = &self.sessions.memory;
        memory.set(memory.get() + bytes as u64 - before as u64);
        let grown = bytes > before && bytes > limits::SESSION_MEMORY_MIN;
        !(grown && memory.get() > self.sessions.memory_max)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.charge(0);
        if let Some(seat) = self.seat.get() {
            drop(self.sessions.tasks.borrow_mut().try_remove(seat as usize));
        }
        for count in [&self.sessions.open, &self.listener.open] {
            assert!(count.get() > 0, "a session ended that was never counted");
        }
        self.sessions.set_open(self.sessions.open.get() - 1);
        self.listener.open.set(self.listener.open.get() - 1);
        self.sessions.changed.raise();
    }
}

/// Accepts connections until the drain begins and starts a session for each.
pub async fn serve<P: Port, I: Intake>(
    port: P,
    mut socket: P::Listener,
    listener: Rc<Listener>,
    sessions: Rc<Sessions>,
    intake: Rc<I>,
) {
    loop {
        let stream = match port.accept(&mut socket).await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                port.sleep_until(port.now().after(ACCEPT_PAUSE)).await;
                continue;
            }
        };
        if sessions.draining.get() {
            return;
        }
        let full =
            listener.open.get() >= listener.sessions_max || sessions.open() >= sessions.open_max;
        if full {
            sessions.refused.set(sessions.refused.get() + 1);
            let refusal = turn_away(port.clone(), stream, Rc::clone(&listener));
            port.spawn(Class::Ingress, refusal);
            continue;
        }
        sessions.total.set(sessions.total.get() + 1);
        let session = Session {
            place: Place::take(&sessions, &listener),
            port: port.clone(),
            intake: Rc::clone(&intake),
        };
        port.spawn(Class::Ingress, session.begin(stream));
    }
}

/// Goes on with a session that another shard has handed over.
pub fn adopt<P: Port, I: Intake>(
    port: &P,
    moving: MovingSession,
    listener: &Rc<Listener>,
    sessions: &Rc<Sessions>,
    intake: &Rc<I>,
) {
    let stream = match port.adopt(moving.connection) {
        Ok(stream) => stream,
        // Between two messages a session holds nothing that could be lost.
        Err(error) => return tracing::warn!(%error, "a session was lost on its way"),
    };
    let session = Session {
        place: Place::take(sessions, listener),
        port: port.clone(),
        intake: Rc::clone(intake),
    };
    port.spawn(Class::Ingress, session.go_on(stream, moving.server));
}

/// How long to wait after accept() failed for a reason that waiting may cure.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Says 421 4.3.2 instead of the banner to one connection too many.
async fn turn_away<P: Port>(port: P, mut stream: P::Stream, listener: Rc<Listener>) {
    let peer = stream.peer().ip();
    let mut server = Server::new(Arc::clone(&listener.server), peer, false);
    let mut out = Vec::new();
    server.overload(&mut out);
    // The peer may be gone already; there is nothing to tell anybody then.
    if stream
        .send(vec![Bytes::from(out)], port.now().after(GOODBYE))
        .await
        .is_ok()
    {
        stream.finish();
    }
}

/// How long a last reply may take to leave before the connection is dropped with it.
const GOODBYE: Duration = Duration::from_secs(5);

/// One connection's driver.
struct Session<P: Port, I: Intake> {
    place: Place,
    port: P,
    intake: Rc<I>,
}

/// What a session does next.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Continue,
    /// It goes on at that shard, with this input that was not used.
    Move(u16, Vec<u8>),
    Close,
}

impl<P: Port, I: Intake> Session<P, I> {
    fn listener(&self) -> &Listener {
        &self.place.listener
    }

    /// The session of a new connection.
    fn begin(self, stream: P::Stream) -> impl Future<Output = ()> {
        let peer = stream.peer().ip();
        let may_relay = (self.listener().may_relay)(peer);
        let mut server = Server::new(Arc::clone(&self.listener().server), peer, may_relay);
        let mut out = Vec::new();
        server.greet(&mut out);
        let next = self.between_messages(&[]).unwrap_or(Next::Continue);
        self.run(stream, server, out, next)
    }

    /// A session that came from another shard.
    fn go_on(self, stream: P::Stream, server: Server) -> impl Future<Output = ()> {
        self.run(stream, server, Vec::new(), Next::Continue)
    }

    /// The dialogue.
    ///
    /// Not an `async fn`: that would keep its arguments twice, as what it was given and as its
    /// variables. It was 1,336 bytes, for every idle connection.
    #[expect(clippy::manual_async_fn, reason = "the arguments are kept once")]
    fn run(
        self,
        mut stream: P::Stream,
        mut server: Server,
        mut out: Vec<u8>,
        mut next: Next,
    ) -> impl Future<Output = ()> {
        async move {
            self.place.listen_for_drain().await;
            loop {
                if self.is_leaving(&server) && next != Next::Close {
                    server.shutting_down(&mut out);
                    next = Next::Close;
                }
                if self.flush(&mut stream, &mut out).await.is_err() {
                    return;
                }
                match next {
                    // A peer that is gone has nothing left to be told: every accepted message is
                    // stored.
                    Next::Close => return stream.finish(),
                    // Boxed, so that an idle session does not carry the room for it.
                    Next::Move(to, rest) => {
                        return Box::pin(self.move_to(to, stream, server, rest)).await;
                    }
                    Next::Continue => {}
                }
                let deadline = self.port.now().after(self.listener().idle_timeout);
                let received = poll_fn(|context| match stream.poll_recv(context, deadline) {
                    Poll::Pending if self.is_leaving(&server) => Poll::Ready(None),
                    received => received.map(Some),
                });
                next = match received.await {
                    None => Next::Continue,
                    Some(Ok(chunk)) if chunk.is_empty() => return,
                    Some(Ok(chunk)) => {
                        let next = self.feed(&mut server, chunk, &mut out).await;
                        if self.place.charge(server.memory()) {
                            next
                        } else {
                            // Growing on would end the process, and with it everybody's session.
                            server.overload(&mut out);
                            Next::Close
                        }
                    }
                    Some(Err(NetError::TimedOut)) => {
                        server.timeout(&mut out);
                        Next::Close
                    }
                    Some(Err(_)) => return,
                };
            }
        }
    }

    /// Whether a drain ends the session here.
    fn is_leaving(&self, server: &Server) -> bool {
        self.place.sessions.draining.get() && server.is_idle()
    }

    /// Whether the session goes on elsewhere, now that it has no message in hand.
    fn between_messages(&self, rest: &[u8]) -> Option<Next> {
        let (sessions, port) = (&self.place.sessions, &self.port);
        let to = sessions
            .balance
            .borrow_mut()
            .look(port.now(), || port.usage())?;
        Some(Next::Move(to, rest.to_vec()))
    }

    /// Takes the session to another shard. One that does not get there goes on here.
    async fn move_to(self, to: u16, stream: P::Stream, mut server: Server, rest: Vec<u8>) {
        server.forget_next_id();
        let connection = match stream.depart(rest).await {
            Ok(connection) => connection,
            Err(error) => return tracing::warn!(%error, "a session could not move"),
        };
        let moving = Box::new(MovingSession {
            connection,
            server,
            listener: self.place.listener.number,
        });
        let Err(back) = self.intake.hand_over(to, moving) else {
            let moved = &self.place.sessions.moved;
            return moved.set(moved.get() + 1);
        };
        let Place {
            sessions, listener, ..
        } = &self.place;
        adopt(&self.port, *back, listener, sessions, &self.intake);
    }

    async fn flush(&self, stream: &mut P::Stream, out: &mut Vec<u8>) -> Result<(), NetError> {
        if out.is_empty() {
            return Ok(());
        }
        let replies = Bytes::from(std::mem::take(out));
        let deadline = self.port.now().after(self.listener().idle_timeout);
        stream.send(vec![replies], deadline).await
    }

    /// Gives one received chunk to the machine, storing the messages that it completes.
    async fn feed<C: std::ops::Deref<Target = [u8]>>(
        &self,
        server: &mut Server,
        chunk: C,
        out: &mut Vec<u8>,
    ) -> Next {
        let now = self.port.wall();
        self.provide_id(server);
        let watchers = |envelope: &Envelope| self.intake.watch(envelope);
        let (used, event) = server.input_watched(&chunk, now, &watchers, out);
        let Some(event) = event else {
            assert!(
                used == chunk.len(),
                "the machine left input behind without an event"
            );
            return Next::Continue;
        };
        // Pipelined input behind a message is rare and small; the engine's buffer must not wait for
        // the disk with us.
        let rest: Vec<u8> = chunk[used..].to_vec();
        drop(chunk);
        // Boxed, so that an idle session does not carry the room for it.
        Box::pin(self.serve(server, event, &rest, out)).await
    }

    /// Does what the machine asks for, and goes on with what came behind it.
    async fn serve(
        &self,
        server: &mut Server,
        mut event: ServerEvent,
        mut rest: &[u8],
        out: &mut Vec<u8>,
    ) -> Next {
        let watchers = |envelope: &Envelope| self.intake.watch(envelope);
        loop {
            match event {
                ServerEvent::Close => return Next::Close,
                ServerEvent::Message(inbound) => self.store(server, inbound, out).await,
            }
            if self.place.sessions.draining.get() {
                // Whoever pipelines has always begun the next message: it was promised nothing.
                server.shutting_down(out);
                return Next::Close;
            }
            if let Some(elsewhere) = self.between_messages(rest) {
                return elsewhere;
            }
            if rest.is_empty() {
                return Next::Continue;
            }
            self.provide_id(server);
            let (used, next) = server.input_watched(rest, self.port.wall(), &watchers, out);
            rest = &rest[used..];
            let Some(next) = next else {
                return Next::Continue;
            };
            event = next;
        }
    }

    /// Stores one message and tells the machine what became of it.
    async fn store(&self, server: &mut Server, inbound: Box<Inbound>, out: &mut Vec<u8>) {
        let id = inbound.id.unwrap_or_else(|| self.intake.next_id());
        match self.intake.accept(id, inbound).await {
            Ok(stored) => server.accepted(stored.id(), out),
            Err(refusal) => server.refused(refusal, out),
        }
    }

    /// The machine names the next message in its trace field, so it needs the id beforehand.
    fn provide_id(&self, server: &mut Server) {
        if server.wants_id() {
            server.set_next_id(self.intake.next_id());
        }
    }
}
