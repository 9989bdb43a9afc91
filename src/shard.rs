//! shard - wires one core: the engine, the spools, the brain, the services.
//!
//! Everything here lives on one thread and is reached from others only through its mailbox. Generic
//! over the port, so that the simulator boots the very same shard.

use std::cell::Cell;
use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::config::Snapshot;
use crate::dkim::KeyRing;
use crate::engine::mesh::MailReceiver;
use crate::engine::{Class, NetError, Port, Signal, yield_now};
use crate::limits;
use crate::message::MessageId;
use crate::queue::{Grants, Queue};
use crate::service::balance::{Balance, Board};
use crate::service::dispatch::{Dispatch, Parts};
use crate::service::hands::Hands;
use crate::service::mesh::{Figures, Mesh, OperatorRequest, ShardMessage, answer};
use crate::service::resolver::{Ask, Resolver};
use crate::service::signer::SignService;
use crate::service::smtpd::{self, Listener, MovingSession, Sessions};
use crate::service::spooler::{LoadCursor, ReleaseError, SpoolError, Spooler};
use crate::settings;

/// What one shard is told at boot.
pub struct Plan {
    /// Its number, from 0.
    pub number: u16,
    /// How many shards the node has.
    pub shards: u16,
    /// Spools in its care: its own number first, then those of shards that are no more.
    pub spools: Vec<u16>,
    /// The configuration.
    pub snapshot: Arc<Snapshot>,
    /// The DKIM keys.
    pub keys: Arc<KeyRing>,
    /// The mailboxes of all shards.
    pub mesh: Mesh,
    /// The loads of all shards.
    pub board: Arc<Board>,
    /// How to put a question to the DNS.
    pub ask: Ask,
    /// The connections that the shards share, the same for all.
    pub grants: Arc<Grants>,
    /// Sessions that the descriptors allow.
    pub sessions_max: u32,
    /// Bytes that mail on its way in may take.
    pub session_memory_max: u64,
    /// What is in hand, and was when the process crashed.
    pub hands: Rc<Hands>,
}

/// Why a shard could not start.
#[derive(Debug)]
pub enum BootError {
    /// A spool could not be opened or recovered.
    Spool(SpoolError),
    /// A listener could not be opened.
    Listen(SocketAddr, NetError),
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spool(error) => write!(f, "{error}"),
            Self::Listen(address, error) => {
                write!(f, "cannot listen on {address}: {error}")?;
                match error {
                    NetError::AddressInUse => {
                        f.write_str("; another program has it: see `ss -ltnp`")
                    }
                    NetError::AddressNotAvailable => {
                        f.write_str("; this host has no such address: see `ip address`")
                    }
                    NetError::Denied => f.write_str(
                        "; a port below 1024 needs CAP_NET_BIND_SERVICE (see the systemd unit)",
                    ),
                    _ => Ok(()),
                }
            }
        }
    }
}

impl std::error::Error for BootError {}

/// A shard that is ready to run.
pub struct Shard<P: Port> {
    port: P,
    plan: Plan,
    dispatch: Rc<Dispatch<P>>,
    spools: Vec<(u16, Spooler<P>)>,
    cursors: Vec<LoadCursor>,
    sessions: Rc<Sessions>,
    sockets: Vec<P::Listener>,
    queued: u64,
}

impl<P: Port> Shard<P> {
    /// Opens the spools (recovering them) and the listeners; accepts nothing yet.
    ///
    /// # Errors
    /// A spool or a listener cannot be opened.
    pub async fn boot(port: P, plan: Plan) -> Result<Self, BootError> {
        let (mut spools, mut cursors, mut queued) = (Vec::new(), Vec::new(), 0);
        // Before anything waits: the clock may jump during a recovery, as it does where its first
        // synchronization comes after the start.
        let mut dates = plan.hands.dates();
        dates.observe(port.now(), port.wall());
        for number in &plan.spools {
            let config = settings::spooler(&plan.snapshot, *number);
            let (spooler, found) = Spooler::open(port.clone(), config)
                .await
                .map_err(BootError::Spool)?;
            if found.report.is_damaged() {
                let damage = &found.report.damage;
                tracing::error!(spool = number, ?damage, "recovery found damage");
            }
            spooler.watch(&plan.hands);
            plan.hands.forget_absent(*number, |id| spooler.has(id));
            queued += found.queued_messages;
            cursors.push(found.cursor);
            spools.push((*number, spooler));
        }
        let mut sockets = Vec::new();
        for listener in &plan.snapshot.listeners {
            let address = listener.address;
            let socket = port
                .listen(address)
                .map_err(|error| BootError::Listen(address, error))?;
            sockets.push(socket);
        }
        let mut queue = Queue::new(settings::queue(&plan.snapshot, port.random()));
        if plan.shards > 1 && settings::is_spread(&plan.snapshot, plan.shards) {
            queue = queue.sharing(Arc::clone(&plan.grants));
        }
        let options = settings::signing(&plan.snapshot);
        let signer = SignService::new(port.clone(), Arc::clone(&plan.keys), options);
        let signer = Rc::new(signer);
        port.spawn(Class::Sign, Rc::clone(&signer).run());
        let resolver = Resolver::new(port.clone(), Arc::clone(&plan.ask));
        let dispatch = Dispatch::new(
            port.clone(),
            settings::dispatch(&plan.snapshot, plan.number, plan.shards),
            spools.clone(),
            Parts {
                mesh: Arc::clone(&plan.mesh),
                resolver,
                signer: Rc::clone(&signer),
                queue,
                hands: Rc::clone(&plan.hands),
                dates,
            },
        );
        let board = Arc::clone(&plan.board);
        let balance = Balance::new(board, plan.number, guests_max(&plan));
        let sessions = Sessions::new(plan.sessions_max, plan.session_memory_max, balance);
        let sessions = Rc::new(sessions);
        Ok(Self {
            port,
            plan,
            dispatch,
            spools,
            cursors,
            sessions,
            sockets,
            queued,
        })
    }

    /// Messages that recovery found waiting.
    #[must_use]
    pub fn queued(&self) -> u64 {
        self.queued
    }

    /// The addresses that the listeners really have, in the order of the configuration.
    #[must_use]
    pub fn listening(&self) -> Vec<SocketAddr> {
        self.sockets
            .iter()
            .map(|socket| self.port.listening_on(socket))
            .collect()
    }

    /// Accepts and delivers mail until an operator's `Drain`; then ends in good order.
    pub async fn run(self, letters: MailReceiver<ShardMessage>) {
        let Self {
            port,
            plan,
            dispatch,
            spools,
            cursors,
            sessions,
            sockets,
            queued,
        } = self;
        let listeners: Rc<[Rc<Listener>]> = (0..plan.snapshot.listeners.len())
            .map(|number| Rc::new(settings::listener(&plan.snapshot, number, plan.shards)))
            .collect();
        for (socket, listener) in sockets.into_iter().zip(listeners.iter()) {
            port.spawn(
                // Not a connection's task: without it the listener would be deaf.
                Class::Control,
                smtpd::serve(
                    port.clone(),
                    socket,
                    Rc::clone(listener),
                    Rc::clone(&sessions),
                    Rc::clone(&dispatch),
                ),
            );
        }
        let restoring = Rc::new(Cell::new(queued));
        for ((_, spool), cursor) in spools.iter().zip(cursors) {
            let left = Rc::clone(&restoring);
            let load = restore(Rc::clone(&dispatch), spool.clone(), cursor, left);
            port.spawn(Class::Background, load);
        }
        let keeper = Rc::clone(&dispatch);
        port.spawn(Class::Control, async move { keeper.keep_time().await });
        let watcher = Rc::clone(&dispatch);
        port.spawn(Class::Control, async move { watcher.watch().await });
        if plan.number == 0 {
            let keeper = Rc::clone(&dispatch);
            port.spawn(Class::Control, async move { keeper.keep_dates().await });
        }
        let drained = Signal::default();
        let office = Office {
            port: port.clone(),
            dispatch: Rc::clone(&dispatch),
            spools: spools.clone(),
            sessions: Rc::clone(&sessions),
            listeners,
            restoring,
            drain: drained.clone(),
        };
        port.spawn(Class::Control, office.read_letters(letters));
        drained.raised().await;
        drain(&port, &dispatch, &sessions).await;
        for (_, spool) in &spools {
            spool.close().await;
        }
    }
}

/// With how many sessions a shard is given no more by others: half of what it may have, so that
/// new connections, which the kernel spreads, find room on every shard.
fn guests_max(plan: &Plan) -> u32 {
    let shares = plan
        .snapshot
        .listeners
        .iter()
        .map(|listener| settings::sessions_max(listener, plan.shards));
    shares.fold(plan.sessions_max, u32::min) / 2
}

/// Gives the brain what recovery found, a portion per turn, so that new mail is accepted meanwhile.
/// `left` is what is still to come, of all spools.
async fn restore<P: Port>(
    dispatch: Rc<Dispatch<P>>,
    spool: Spooler<P>,
    mut cursor: LoadCursor,
    left: Rc<Cell<u64>>,
) {
    let mut mine = cursor.messages();
    loop {
        let portion = spool.load(&mut cursor, limits::RESTORE_PORTION).await;
        // At the end some are missing: damaged, or to come later.
        let came = match portion.len() as u64 {
            0 => mine,
            messages => messages.min(mine),
        };
        mine -= came;
        left.set(left.get() - came);
        if portion.is_empty() {
            break;
        }
        for loaded in portion {
            dispatch.restore(loaded);
        }
        yield_now().await;
    }
    loop {
        for loaded in spool.load_late(limits::RESTORE_PORTION).await {
            dispatch.restore(loaded);
        }
    }
}

/// Ends sessions and deliveries in good order, within [`limits::DRAIN_TIME_MAX`].
async fn drain<P: Port>(port: &P, dispatch: &Rc<Dispatch<P>>, sessions: &Rc<Sessions>) {
    let deadline = port.now().after(limits::DRAIN_TIME_MAX);
    sessions.drain();
    dispatch.stop();
    while (sessions.open() > 0 || dispatch.in_hand() > 0) && port.now() < deadline {
        port.sleep_until(port.now().after(DRAIN_LOOK)).await;
        sessions.drain();
    }
}

/// How often a drain looks whether it is done.
const DRAIN_LOOK: Duration = Duration::from_millis(5);

async fn discard<P: Port>(spool: Option<Spooler<P>>, id: MessageId) -> Result<(), ReleaseError> {
    match spool.ok_or(ReleaseError::Absent)?.discard(id).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(ReleaseError::Absent),
        Err(error) => {
            tracing::error!(%id, %error, "cannot remove a message from quarantine");
            Err(ReleaseError::Io)
        }
    }
}

/// Reads the shard's mailbox.
struct Office<P: Port> {
    port: P,
    dispatch: Rc<Dispatch<P>>,
    spools: Vec<(u16, Spooler<P>)>,
    sessions: Rc<Sessions>,
    listeners: Rc<[Rc<Listener>]>,
    /// Messages that recovery found and the brain does not have yet.
    restoring: Rc<Cell<u64>>,
    drain: Signal,
}

impl<P: Port> Office<P> {
    async fn read_letters(self, letters: MailReceiver<ShardMessage>) {
        let mut batch = Vec::new();
        loop {
            letters.recv_all(&mut batch);
            for letter in batch.drain(..) {
                match letter {
                    ShardMessage::Operator(request) => self.serve(request),
                    ShardMessage::Session(session) => self.adopt(*session),
                    letter => self.dispatch.receive(letter),
                }
            }
            self.port.remote_wakes().await;
        }
    }

    fn adopt(&self, session: MovingSession) {
        // All shards have the listeners of one configuration.
        let listener = &self.listeners[session.listener()];
        smtpd::adopt(
            &self.port,
            session,
            listener,
            &self.sessions,
            &self.dispatch,
        );
    }

    fn serve(&self, request: OperatorRequest) {
        match request {
            OperatorRequest::Status(reply) => answer(reply, self.figures()),
            OperatorRequest::Paths(reply) => answer(reply, self.dispatch.path_figures()),
            OperatorRequest::Spools(reply) => {
                let status = self
                    .spools
                    .iter()
                    .map(|(number, spool)| (*number, spool.status()));
                answer(reply, status.collect());
            }
            OperatorRequest::Suspend {
                source,
                site,
                stop,
                reply,
            } => {
                let changed = self
                    .dispatch
                    .suspend(source.as_deref(), site.as_deref(), stop);
                answer(reply, changed);
            }
            OperatorRequest::Probe(reply) => {
                let probed = self.spools.iter().filter(|(_, spool)| spool.probe_now());
                answer(reply, probed.count() > 0);
            }
            OperatorRequest::Quarantine(reply) => {
                let spools = self.spools.clone();
                self.port.spawn(Class::Control, async move {
                    let (mut all, mut count) = (Vec::new(), 0);
                    for (_, spool) in &spools {
                        let (listed, found) = spool.quarantined().await;
                        all.extend(listed);
                        count += found;
                    }
                    answer(reply, (all, count));
                });
            }
            OperatorRequest::Release { id, reply } => {
                let dispatch = Rc::clone(&self.dispatch);
                self.port.spawn(Class::Control, async move {
                    answer(reply, dispatch.release(id).await);
                });
            }
            OperatorRequest::Discard { id, reply } => {
                let mut spools = self.spools.iter();
                let spool = spools.find(|(number, _)| *number == id.shard());
                let spool = spool.map(|(_, spool)| spool.clone());
                self.port.spawn(Class::Control, async move {
                    answer(reply, discard(spool, id).await);
                });
            }
            OperatorRequest::Drain => self.drain.raise(),
        }
    }

    fn figures(&self) -> Figures {
        let (sessions_total, sessions_refused) = self.sessions.totals();
        Figures {
            sessions: u64::from(self.sessions.open()),
            sessions_total,
            sessions_refused,
            sessions_moved: self.sessions.moved(),
            restoring: self.restoring.get(),
            ..self.dispatch.figures()
        }
    }
}
