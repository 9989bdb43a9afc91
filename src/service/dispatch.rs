//! dispatch - what happens to a message between the spool and the wire.
//!
//! Role: one per shard. As the storing shard it takes messages in, finds each recipient's site and
//! source, and hands entries to the home shard of their egress path; as the home shard it feeds the
//! brain and carries out its actions. Settlements go back to the storing shard, the only writer of
//! its spool.
//! Flow: `Inbound` -> check -> `Stored` -> `Load` per domain -> `Transfer` -> brain -> `Dial`,
//! `Assign` -> delivery -> `settle_attempt` and `attempted` -> `Settlement`, `Bounce`.
//! Limits: `limits::FRESH_BYTES_MAX`, `limits::WAYS_MAX`; the mesh's mailboxes are bounded and what
//! does not fit waits here.
//! Failure: whatever cannot be settled stays in the spool: a restart finds it again.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use crate::engine::{Class, Port, Signal};
use crate::limits;
use crate::message::{Content, Domain, EnhancedStatus, Envelope, MessageId, dsn, header};
use crate::queue::{
    Action, Cause, CauseKind, ConnectionId, EntryId, Event, PathId, PathReport, Queue, Recipients,
};
use crate::routing::{
    self, AddressPlan, Families, Host, HostPort, Own, Plan, RouteHost, RouteTable,
};
use crate::service::delivery::{self, HostAddress, Link};
use crate::service::held::{FreshBudget, Held};
use crate::service::mesh::{
    Bounce, Failure, Figures, LendError, Mesh, PathFigures, ShardMessage, Target, Transfer,
};
use crate::service::resolver::{Known, Question, Resolver};
use crate::service::signer::{SignError, SignService};
use crate::service::smtpd::Intake;
use crate::service::spooler::{Loaded, Spooler};
use crate::smtp::client::ClientConfig;
use crate::smtp::reply::Reply;
use crate::smtp::server::{Inbound, Refusal};
use crate::spool::{AppendError, PendingRecipient, ReadError, Settlement, SettlementKind, Stored};
use crate::time::{Mono, Wall};

/// A source address with its name, as delivery needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The name in pools, headers and logs.
    pub name: Arc<str>,
    /// The address that connections leave from; none: the kernel's choice.
    pub address: Option<std::net::IpAddr>,
    /// The name given in EHLO.
    pub helo: Arc<str>,
}

/// A pool: sources by number, each with its weight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// The name in headers.
    pub name: Arc<str>,
    /// Source number and weight, at least 1; never empty.
    pub members: Vec<(u16, u32)>,
}

/// What one shard's dispatcher is told; plain values, filled from the configuration.
#[derive(Debug, Clone)]
pub struct Settings {
    /// This shard's number and how many there are.
    pub shard: u16,
    /// How many shards the node has.
    pub shards: u16,
    /// Whether every shard sends what it stores, with a share of each path's connections.
    pub spread: bool,
    /// The node's name.
    pub hostname: Arc<str>,
    /// All sources; an entry names one by its position.
    pub sources: Vec<Source>,
    /// All pools.
    pub pools: Vec<Pool>,
    /// The pool for mail that names none.
    pub default_pool: usize,
    /// Which route a domain takes, if any.
    pub routes: RouteTable,
    /// The names and addresses that are us.
    pub own: Own,
    /// The port of hosts found by MX, and of routes that name none.
    pub mail_port: u16,
    /// The longest that an entry may have to wait for its next attempt, by the schedule.
    pub wait_max: Duration,
    /// How long a TCP connection may take to be made.
    pub connect_timeout: Duration,
    /// What each client machine is told, the HELO name aside.
    pub client: ClientConfig,
}

/// An egress path, as its connections need it.
#[derive(Debug)]
pub struct Path {
    /// Where connections leave from.
    pub source: Source,
    /// The site's name.
    pub site: Arc<str>,
    /// Where its hosts are found.
    pub target: Target,
}

/// Where the mail of one domain goes.
#[derive(Debug, Clone)]
enum Way {
    /// To a site.
    To(Arc<str>, Target),
    /// Nowhere, for good.
    Never(EnhancedStatus, Box<str>),
}

/// Recipients of one message at one domain, before their site is known.
struct Load {
    id: MessageId,
    recipients: Recipients,
    source: u16,
    attempts: u16,
    due: Wall,
    age: Duration,
    as_of: Mono,
    held: Option<Arc<Held>>,
}

/// An entry in the hands of a connection.
pub struct Work {
    /// The message.
    pub held: Arc<Held>,
    /// Whom to send it to.
    pub recipients: VecDeque<u32>,
}

/// Figures since the start, one shard's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Messages accepted (250 said or about to be).
    pub accepted: u64,
    /// Recipients of those.
    pub accepted_recipients: u64,
    /// Octets of those, our trace field included.
    pub accepted_bytes: u64,
    /// Messages refused after their end of data.
    pub refused: u64,
    /// Recipients delivered.
    pub delivered: u64,
    /// Recipients failed for good.
    pub failed: u64,
    /// Recipients that grew too old.
    pub expired: u64,
    /// Attempts put off, by entry.
    pub deferred: u64,
    /// Attempts whose end-of-data reply never came: possible duplicates.
    pub ambiguous: u64,
    /// Delivery status notifications made.
    pub notifications: u64,
    /// Connections made, and dials that failed.
    pub connections: u64,
    /// Dials that found no host willing.
    pub dials_failed: u64,
}

/// One shard's dispatcher.
pub struct Dispatch<P: Port> {
    /// The engine.
    pub port: P,
    /// What it was told.
    pub settings: Settings,
    me: Weak<Self>,
    spools: Vec<(u16, Spooler<P>)>,
    mesh: Mesh,
    overflow: RefCell<HashMap<u16, VecDeque<ShardMessage>>>,
    resolver: Resolver<P>,
    signer: Rc<SignService<P>>,
    brain: RefCell<Queue<Option<Arc<Held>>>>,
    actions: RefCell<Vec<Action>>,
    paths: RefCell<HashMap<PathId, Rc<Path>>>,
    links: RefCell<HashMap<ConnectionId, Rc<Link>>>,
    wake_at: Cell<Mono>,
    wake_changed: Signal,
    ways: RefCell<HashMap<Domain, (Mono, Way)>>,
    unrouted: RefCell<HashMap<Domain, Vec<Load>>>,
    loans: RefCell<HashMap<u64, Rc<Loan>>>,
    next_loan: Cell<u64>,
    fresh: Arc<FreshBudget>,
    counters: Cell<Counters>,
    stopping: Cell<bool>,
}

/// A message asked for from another shard.
#[derive(Default)]
struct Loan {
    answer: RefCell<Option<Result<Arc<Held>, LendError>>>,
    answered: Signal,
}

impl<P: Port> Dispatch<P> {
    /// A dispatcher over its shard's spools (its own first, then orphans it adopted).
    pub fn new(
        port: P,
        settings: Settings,
        spools: Vec<(u16, Spooler<P>)>,
        mesh: Mesh,
        resolver: Resolver<P>,
        signer: Rc<SignService<P>>,
        queue: Queue<Option<Arc<Held>>>,
    ) -> Rc<Self> {
        assert!(!spools.is_empty(), "a shard without a spool");
        assert!(!settings.sources.is_empty(), "a node without a source");
        let dispatch = Rc::new_cyclic(|me: &Weak<Self>| Self {
            port,
            settings,
            me: me.clone(),
            spools,
            mesh,
            overflow: RefCell::default(),
            resolver,
            signer,
            brain: RefCell::new(queue),
            actions: RefCell::default(),
            paths: RefCell::default(),
            links: RefCell::default(),
            wake_at: Cell::new(Mono::NEVER),
            wake_changed: Signal::default(),
            ways: RefCell::default(),
            unrouted: RefCell::default(),
            loans: RefCell::default(),
            next_loan: Cell::new(0),
            fresh: Arc::default(),
            counters: Cell::default(),
            stopping: Cell::new(false),
        });
        for (_, spool) in &dispatch.spools {
            // Counted when durable: an accounting figure never runs ahead of its settlement.
            let me = dispatch.me.clone();
            spool.on_settled(move |settlement| {
                if let Some(me) = me.upgrade() {
                    me.count_settlement(settlement.kind);
                }
            });
        }
        dispatch
    }

    fn count_settlement(&self, kind: SettlementKind) {
        self.count(|counters| match kind {
            SettlementKind::Delivered => counters.delivered += 1,
            SettlementKind::Failed => counters.failed += 1,
            SettlementKind::Expired => counters.expired += 1,
            SettlementKind::Dropped | SettlementKind::Damaged | SettlementKind::Deferred { .. } => {
            }
        });
    }

    /// The figures so far.
    pub fn counters(&self) -> Counters {
        self.counters.get()
    }

    fn count(&self, change: impl FnOnce(&mut Counters)) {
        let mut counters = self.counters.get();
        change(&mut counters);
        self.counters.set(counters);
    }

    fn rc(&self) -> Rc<Self> {
        match self.me.upgrade() {
            Some(me) => me,
            None => unreachable!("a method runs only while the dispatcher is alive"),
        }
    }

    fn own_spool(&self) -> &Spooler<P> {
        &self.spools[0].1
    }

    /// The spool with this number, if it is in this shard's care.
    fn spool(&self, number: u16) -> Option<&Spooler<P>> {
        self.spools
            .iter()
            .find(|(own, _)| *own == number)
            .map(|(_, spool)| spool)
    }

    /// The shard that cares for the spool of this message. A spool without a shard of its number
    /// (the node had more shards once) is in the care of its number modulo the shards there are.
    fn storing_shard(&self, id: MessageId) -> u16 {
        id.shard() % self.settings.shards
    }

    // ---- the storing side: from the spool to the home shard ----

    /// Sends the recipients of a message on their way, by domain.
    fn dispatch(&self, held: &Arc<Held>, shared: bool, only: Option<&[PendingRecipient]>) {
        let envelope = &held.envelope;
        let keep = shared.then(|| Arc::clone(held));
        let source = self.choose_source(envelope);
        let whole = |index: u32| PendingRecipient {
            index,
            attempts: 0,
            next: Wall(0),
        };
        // The date says how old mail of an earlier life is; from here on only the clock counts,
        // which nobody sets, while the DNS is asked and the message crosses shards.
        let as_of = self.port.now();
        let age = match only {
            Some(_) => self.port.wall().since(held.received_at),
            None => Duration::ZERO,
        };
        let load = |recipients, pending: PendingRecipient| Load {
            id: held.id,
            recipients,
            source,
            attempts: pending.attempts,
            due: pending.next,
            age,
            as_of,
            held: keep.clone(),
        };
        if let ([recipient], None) = (envelope.recipients.as_slice(), only) {
            self.place(
                recipient.address.domain(),
                load(Recipients::one(0), whole(0)),
            );
            return;
        }
        // Recipients of one domain in one state travel together.
        let mut groups: HashMap<(&Domain, u16, Wall), Vec<u32>> = HashMap::new();
        let mut group = |pending: PendingRecipient| {
            let Some(recipient) = envelope.recipients.get(pending.index as usize) else {
                return;
            };
            let key = (recipient.address.domain(), pending.attempts, pending.next);
            groups.entry(key).or_default().push(pending.index);
        };
        match only {
            Some(pending) => pending.iter().copied().for_each(&mut group),
            None => (0..)
                .take(envelope.recipients.len())
                .map(whole)
                .for_each(&mut group),
        }
        // In the order of the envelope: that of a hash table would differ from run to run.
        let mut groups: Vec<_> = groups.into_iter().collect();
        groups
            .iter_mut()
            .for_each(|(_, indexes)| indexes.sort_unstable());
        groups.sort_unstable_by_key(|(_, indexes)| indexes.first().copied());
        for ((domain, attempts, next), indexes) in groups {
            let Some(recipients) = Recipients::many(&indexes) else {
                continue;
            };
            let pending = PendingRecipient {
                index: 0,
                attempts,
                next,
            };
            self.place(domain, load(recipients, pending));
        }
    }

    /// Brings back what recovery found.
    pub fn restore(&self, loaded: Loaded) {
        let queued = loaded.queued;
        let held = Arc::new(Held::mapped(
            queued.id,
            loaded.envelope,
            bytes::Bytes::new(),
            queued.received_at,
        ));
        self.dispatch(&held, false, Some(&queued.pending));
    }

    /// The source that a message leaves from: named, or drawn from its pool by weight.
    fn choose_source(&self, envelope: &Envelope) -> u16 {
        if let Some(number) = envelope
            .source
            .as_deref()
            .and_then(|name| self.source_number(name))
        {
            return number;
        }
        let named = envelope.pool.as_deref().and_then(|name| self.pool(name));
        let pool = named.unwrap_or(&self.settings.pools[self.settings.default_pool]);
        if let [(only, _)] = pool.members.as_slice() {
            return *only;
        }
        let total: u64 = pool
            .members
            .iter()
            .map(|(_, weight)| u64::from(*weight))
            .sum();
        let mut draw = self.port.random() % total.max(1);
        for (source, weight) in &pool.members {
            let weight = u64::from(*weight);
            if draw < weight {
                return *source;
            }
            draw -= weight;
        }
        pool.members[0].0
    }

    fn pool(&self, name: &str) -> Option<&Pool> {
        self.settings.pools.iter().find(|pool| *pool.name == *name)
    }

    /// Finds the way of a domain, now or after asking the DNS, and sends the load along it.
    fn place(&self, domain: &Domain, load: Load) {
        if let Some(way) = self.way(domain) {
            self.send_along(&way, load);
            return;
        }
        let mut unrouted = self.unrouted.borrow_mut();
        if let Some(waiting) = unrouted.get_mut(domain) {
            waiting.push(load);
            return;
        }
        unrouted.insert(domain.clone(), vec![load]);
        drop(unrouted);
        let (me, domain) = (self.rc(), domain.clone());
        self.port.spawn(Class::Resolve, async move {
            let way = me.find_way(&domain).await;
            let waiting = me.unrouted.borrow_mut().remove(&domain);
            for load in waiting.unwrap_or_default() {
                me.send_along(&way, load);
            }
        });
    }

    /// The way of a domain, where the routes or a recent answer tell it.
    fn way(&self, domain: &Domain) -> Option<Way> {
        if let Some((until, way)) = self.ways.borrow().get(domain)
            && *until > self.port.now()
        {
            return Some(way.clone());
        }
        let position = self.settings.routes.position(domain)?;
        let via = &self.settings.routes.routes()[position].via;
        let target = Target::Route(u32::try_from(position).unwrap_or(u32::MAX));
        let way = Way::To(routing::route_site_name(via), target);
        self.remember(domain, Mono::NEVER, &way);
        Some(way)
    }

    /// Keeps a way for the next message; a full table is forgotten as a whole, which costs the
    /// names in use one look-up in the resolver's cache each.
    fn remember(&self, domain: &Domain, until: Mono, way: &Way) {
        let mut ways = self.ways.borrow_mut();
        if ways.len() >= limits::WAYS_MAX {
            ways.clear();
        }
        ways.insert(domain.clone(), (until, way.clone()));
    }

    async fn find_way(&self, domain: &Domain) -> Way {
        let (plan, known) = self.plan(domain).await;
        let way = match (&plan, plan.failure()) {
            // Not known now: a site of its own, whose dials will ask again and back off.
            (Plan::Temporary, _) => {
                Way::To(Arc::from(domain.as_str()), Target::Mail(domain.clone()))
            }
            (_, Some(status)) => Way::Never(status, unroutable(&plan)),
            (_, None) => Way::To(routing::site_name(&plan), Target::Mail(domain.clone())),
        };
        let until = known.map_or(Mono::NEVER, |known| known.until);
        self.remember(domain, until, &way);
        way
    }

    /// Which hosts take mail for a domain, by its MX records; and the answer that says so.
    async fn plan(&self, domain: &Domain) -> (Plan, Option<Known>) {
        let mut random = || self.port.random();
        if domain.is_literal() {
            let nothing = Ok(Vec::new());
            return (
                routing::plan(domain, nothing, &self.settings.own, &mut random),
                None,
            );
        }
        let known = self
            .resolver
            .look_up(Question::Mail(Arc::from(domain.as_str())))
            .await;
        let mx = known.answer.mx.clone();
        (
            routing::plan(domain, mx, &self.settings.own, &mut random),
            Some(known),
        )
    }

    fn send_along(&self, way: &Way, load: Load) {
        match way {
            Way::To(site, target) => {
                let home = self.home(load.source, site);
                let transfer = Transfer {
                    id: load.id,
                    recipients: load.recipients,
                    source: load.source,
                    site: Arc::clone(site),
                    target: target.clone(),
                    attempts: load.attempts,
                    due: load.due,
                    age: load.age,
                    as_of: load.as_of,
                    held: load.held,
                };
                if home == self.settings.shard {
                    self.take_over(transfer);
                } else {
                    self.post(home, ShardMessage::Enqueue(Box::new(transfer)));
                }
            }
            Way::Never(status, text) => {
                let failure = |recipient: &u32| Failure {
                    recipient: *recipient,
                    status: *status,
                    text: text.clone(),
                    remote: None,
                };
                let failures = load.recipients.as_slice().iter().map(failure).collect();
                self.start_bounce(Bounce {
                    id: load.id,
                    failures,
                    expired: false,
                    held: load.held,
                });
            }
        }
    }

    /// The shard that owns an egress path: the highest of a hash per shard (rendezvous), so that a
    /// change of their number moves only the paths that it must.
    fn home(&self, source: u16, site: &str) -> u16 {
        if self.settings.spread {
            return self.settings.shard;
        }
        let base = fnv(fnv(FNV_BASIS, &source.to_le_bytes()), site.as_bytes());
        let weight = |shard: u16| mix(base ^ mix(u64::from(shard) + 1));
        (0..self.settings.shards)
            .max_by_key(|shard| weight(*shard))
            .unwrap_or(0)
    }

    // ---- between shards ----

    /// Sends a letter; what the mailbox does not take waits here, in order.
    fn post(&self, shard: u16, letter: ShardMessage) {
        let mut overflow = self.overflow.borrow_mut();
        if let Some(waiting) = overflow.get_mut(&shard)
            && !waiting.is_empty()
        {
            waiting.push_back(letter);
            return;
        }
        if let Err(letter) = self.mesh[usize::from(shard)].try_send(letter) {
            overflow.entry(shard).or_default().push_back(letter);
            drop(overflow);
            let me = self.rc();
            self.port.spawn(
                Class::Control,
                async move { me.flush_overflow(shard).await },
            );
        }
    }

    async fn flush_overflow(&self, shard: u16) {
        loop {
            self.port
                .sleep_until(self.port.now().after(OVERFLOW_PAUSE))
                .await;
            let mut overflow = self.overflow.borrow_mut();
            let Some(waiting) = overflow.get_mut(&shard) else {
                return;
            };
            while let Some(letter) = waiting.pop_front() {
                if let Err(letter) = self.mesh[usize::from(shard)].try_send(letter) {
                    waiting.push_front(letter);
                    break;
                }
            }
            if waiting.is_empty() {
                return;
            }
        }
    }

    /// Acts on one letter.
    pub fn receive(&self, letter: ShardMessage) {
        match letter {
            ShardMessage::Enqueue(transfer) => self.take_over(*transfer),
            ShardMessage::Settle(settlement) => self.settle_here(settlement),
            ShardMessage::Bounce(bounce) => self.start_bounce(*bounce),
            ShardMessage::Lend { id, home, ticket } => self.lend(id, home, ticket),
            ShardMessage::Lent { ticket, result } => {
                // The connection that asked may be gone; then nobody waits.
                if let Some(loan) = self.loans.borrow_mut().remove(&ticket) {
                    *loan.answer.borrow_mut() = Some(result);
                    loan.answered.raise();
                }
            }
            ShardMessage::Resolved { question, answer } => {
                self.resolver.answered(&question, &answer)
            }
            ShardMessage::Rekey(ring) => self.signer.rekey(ring),
            ShardMessage::Operator(_) => unreachable!("the shard answers its operator itself"),
        }
    }

    fn lend(&self, id: MessageId, home: u16, ticket: u64) {
        let me = self.rc();
        self.port.spawn(Class::Spool, async move {
            let result = me.read(id).await;
            me.post(home, ShardMessage::Lent { ticket, result });
        });
    }

    async fn read(&self, id: MessageId) -> Result<Arc<Held>, LendError> {
        let Some(spool) = self.spool(id.shard()) else {
            return Err(LendError::Gone);
        };
        match spool.read(id).await {
            Ok(stored) => {
                let (envelope, content) = (stored.envelope, stored.content);
                Ok(Arc::new(Held::mapped(
                    id,
                    envelope,
                    content,
                    stored.received_at,
                )))
            }
            Err(ReadError::Damaged) => Err(LendError::Damaged),
            Err(ReadError::Gone) => Err(LendError::Gone),
            Err(ReadError::Io) => Err(LendError::Unreadable),
        }
    }

    /// The message from wherever it is: this shard's spool or another's.
    async fn borrow_message(&self, id: MessageId) -> Result<Arc<Held>, LendError> {
        let storing = self.storing_shard(id);
        if storing == self.settings.shard {
            return self.read(id).await;
        }
        let ticket = self.next_loan.get();
        self.next_loan.set(ticket + 1);
        let loan = Rc::new(Loan::default());
        self.loans.borrow_mut().insert(ticket, Rc::clone(&loan));
        let home = self.settings.shard;
        self.post(storing, ShardMessage::Lend { id, home, ticket });
        loan.answered.raised().await;
        let answer = loan.answer.borrow_mut().take();
        answer.unwrap_or(Err(LendError::Unreadable))
    }

    // ---- the home side: the brain and its actions ----

    /// Takes over recipients whose egress path lives here.
    fn take_over(&self, transfer: Transfer) {
        let (now, wall) = (self.port.now(), self.port.wall());
        // A due date was written by a clock that may have been set back since: it never makes an
        // entry wait longer than the schedule could have.
        let wait = transfer.due.since(wall).min(self.settings.wait_max);
        let path = self.path(transfer.source, &transfer.site, &transfer.target);
        self.apply(Event::Enqueue {
            path,
            message: transfer.id,
            recipients: transfer.recipients,
            age: transfer.age + now.since(transfer.as_of),
            attempts: transfer.attempts,
            due: now.after(wait),
            payload: transfer.held,
        });
    }

    fn path(&self, source: u16, site: &Arc<str>, target: &Target) -> PathId {
        let id = self.brain.borrow_mut().path(source, site);
        let mut paths = self.paths.borrow_mut();
        if let Some(path) = paths.get(&id)
            && path.target == *target
        {
            return id;
        }
        if paths.len() >= limits::PATHS_REMEMBERED_MAX {
            let brain = self.brain.borrow();
            paths.retain(|id, _| brain.site(*id).is_some());
        }
        // Another domain of the same site: its mail exchangers are the same, any of them will do.
        let source = self.settings.sources[usize::from(source)].clone();
        let path = Path {
            source,
            site: Arc::clone(site),
            target: target.clone(),
        };
        paths.insert(id, Rc::new(path));
        id
    }

    /// Tells the brain and does what it answers.
    fn apply(&self, event: Event<Option<Arc<Held>>>) {
        let mut actions = self.actions.take();
        self.brain
            .borrow_mut()
            .apply(event, self.port.now(), &mut actions);
        for action in actions.drain(..) {
            self.perform(action);
        }
        // Performing never applies another event synchronously, so the scratch is still ours.
        self.actions.replace(actions);
    }

    fn perform(&self, action: Action) {
        match action {
            // The process is about to end: what is ready stays in the spool for the next one.
            Action::Dial { .. } | Action::Assign { .. } if self.stopping.get() => {}
            Action::Dial { path, connection } => self.dial(path, connection),
            Action::Assign { connection, entry } => {
                if let Some(link) = self.links.borrow().get(&connection) {
                    link.assign(entry);
                }
            }
            Action::Close { connection } => {
                if let Some(link) = self.links.borrow().get(&connection) {
                    link.close();
                }
            }
            Action::Deferred {
                entry,
                attempts,
                next,
            } => {
                // Its memory is for messages that have not been tried yet.
                if let Some(payload) = self.brain.borrow_mut().payload_mut(entry) {
                    *payload = None;
                }
                self.journal(entry, attempts, next);
            }
            Action::Expired { entry } => self.expire(entry),
            Action::WakeAt(at) => {
                self.wake_at.set(at);
                self.wake_changed.raise();
            }
        }
    }

    /// Wakes the brain when it asked to be; runs for ever.
    pub async fn keep_time(&self) {
        loop {
            let at = self.wake_at.get();
            if at <= self.port.now() {
                self.wake_at.set(Mono::NEVER);
                self.apply(Event::Wake);
                continue;
            }
            let mut sleep = std::pin::pin!(self.port.sleep_until(at));
            std::future::poll_fn(|context| {
                if self.wake_changed.poll_raised(context).is_ready() {
                    return std::task::Poll::Ready(());
                }
                sleep.as_mut().poll(context)
            })
            .await;
        }
    }

    fn dial(&self, path: PathId, connection: ConnectionId) {
        let known = self.paths.borrow().get(&path).map(Rc::clone);
        let Some(path) = known else {
            unreachable!("the brain dials a path that it was never asked for")
        };
        let link = Rc::new(Link::default());
        self.links.borrow_mut().insert(connection, Rc::clone(&link));
        let me = self.rc();
        let task = delivery::connection(me, path, connection, link);
        self.port.spawn(Class::Egress, task);
    }

    /// The addresses to try for a path, in order.
    ///
    /// # Errors
    /// What the operator is told where there are none; always a matter of time, since what can
    /// never work is bounced when the message is routed.
    pub async fn addresses(&self, path: &Path) -> Result<Vec<HostAddress>, Cause> {
        match &path.target {
            Target::Route(route) => {
                let route = usize::try_from(*route).unwrap_or(usize::MAX);
                let via = self
                    .settings
                    .routes
                    .routes()
                    .get(route)
                    .map(|route| route.via.clone());
                self.addresses_of_route(path, &via.unwrap_or_default())
                    .await
            }
            Target::Mail(domain) => self.addresses_of_domain(path, domain).await,
        }
    }

    async fn addresses_of_route(
        &self,
        path: &Path,
        via: &[HostPort],
    ) -> Result<Vec<HostAddress>, Cause> {
        let mut found = Vec::new();
        let mut failure = Cause::new(CauseKind::Local, "the route has no host");
        for hop in via {
            let port = hop.port.unwrap_or(self.settings.mail_port);
            match &hop.host {
                RouteHost::Address(ip) => {
                    let (name, address) = (Arc::from(ip.to_string()), (*ip, port).into());
                    found.push(HostAddress { name, address });
                }
                RouteHost::Name(name) => {
                    let known = self
                        .resolver
                        .look_up(Question::Host(Arc::clone(name)))
                        .await;
                    let host = Host {
                        name: Arc::clone(name),
                        preference: 0,
                    };
                    match self.targets(path, std::slice::from_ref(&host), &known, port) {
                        Ok(addresses) => found.extend(addresses),
                        Err(cause) => failure = cause,
                    }
                }
            }
        }
        if found.is_empty() {
            Err(failure)
        } else {
            Ok(found)
        }
    }

    /// Why a path leads nowhere, for good. Only for a path that was opened for one domain while the
    /// DNS did not answer: now it does, and says that the domain takes no mail (RFC 5321 5.1). A
    /// path to real hosts may carry other domains too, and none of them fails for one.
    pub async fn dead_end(&self, path: &Path) -> Option<(EnhancedStatus, Box<str>)> {
        let Target::Mail(domain) = &path.target else {
            return None;
        };
        if *path.site != *domain.as_str() {
            return None;
        }
        match self.plan(domain).await.0 {
            Plan::Temporary => None,
            plan => Some((plan.failure()?, unroutable(&plan))),
        }
    }

    async fn addresses_of_domain(
        &self,
        path: &Path,
        domain: &Domain,
    ) -> Result<Vec<HostAddress>, Cause> {
        let (plan, known) = self.plan(domain).await;
        if let Plan::Literal(ip) = plan {
            let (name, address) = (
                Arc::from(ip.to_string()),
                (ip, self.settings.mail_port).into(),
            );
            return Ok(vec![HostAddress { name, address }]);
        }
        match (plan.failure(), known) {
            (None, Some(known)) => {
                self.targets(path, plan.hosts(), &known, self.settings.mail_port)
            }
            _ => {
                // The DNS has changed its mind since the domain was routed: ask anew next time.
                self.forget_way(domain);
                Err(Cause {
                    kind: CauseKind::Local,
                    text: Some(unroutable(&plan)),
                })
            }
        }
    }

    fn targets(
        &self,
        path: &Path,
        hosts: &[Host],
        known: &Known,
        port: u16,
    ) -> Result<Vec<HostAddress>, Cause> {
        let answers = known.answer.addresses_of(hosts);
        let both = Families { v4: true, v6: true };
        let families = path.source.address.map_or(both, Families::of);
        let mut random = || self.port.random();
        match routing::targets(hosts, &answers, families, &self.settings.own, &mut random) {
            AddressPlan::Targets(targets) => {
                let address = |target: routing::Target| HostAddress {
                    name: Arc::clone(&hosts[target.host].name),
                    address: (target.address, port).into(),
                };
                Ok(targets.into_iter().map(address).collect())
            }
            AddressPlan::Temporary => Err(Cause::new(
                CauseKind::Local,
                "4.4.3 the DNS does not answer for the site's hosts",
            )),
            AddressPlan::NotUsable => Err(Cause::new(
                CauseKind::Local,
                "5.4.4 no host of the site has an address",
            )),
            AddressPlan::WrongFamily => Err(Cause::new(
                CauseKind::Local,
                "5.4.4 no host of the site has an address of the source's family",
            )),
            AddressPlan::Loop => Err(Cause::new(
                CauseKind::Local,
                "5.4.6 the site's hosts are this host",
            )),
        }
    }

    fn forget_way(&self, domain: &Domain) {
        self.ways.borrow_mut().remove(domain);
    }

    /// A connection is ready for work.
    pub fn connected(&self, connection: ConnectionId, slots: u32) {
        self.count(|counters| counters.connections += 1);
        self.apply(Event::Connected { connection, slots });
    }

    /// A dial found nobody.
    pub fn dial_failed(&self, connection: ConnectionId, cause: Cause) {
        self.count(|counters| counters.dials_failed += 1);
        self.links.borrow_mut().remove(&connection);
        self.apply(Event::DialFailed { connection, cause });
    }

    /// A connection has ended; its entries were reported before.
    pub fn closed(&self, connection: ConnectionId, cause: Cause) {
        self.links.borrow_mut().remove(&connection);
        self.apply(Event::Closed { connection, cause });
    }

    /// One of a connection's slots is free.
    pub fn free(&self, connection: ConnectionId) {
        self.apply(Event::Free { connection });
    }

    /// Gets an assigned entry's message ready, or tells the brain why that cannot be.
    pub async fn begin(&self, entry: EntryId) -> Option<Work> {
        let (id, recipients, held) = {
            let brain = self.brain.borrow();
            let assigned = brain.get(entry)?;
            let recipients = assigned.recipients().as_slice().iter().copied().collect();
            (assigned.message(), recipients, assigned.payload().clone())
        };
        let held = match held {
            Some(held) => Ok(held),
            None => self.borrow_message(id).await,
        };
        match held {
            Ok(held) => match self.signer.sign(&held).await {
                Ok(()) => Some(Work { held, recipients }),
                Err(error) => {
                    self.not_tried(entry, Cause::new(CauseKind::Local, unsigned(error)));
                    None
                }
            },
            Err(LendError::Unreadable) => {
                let cause = Cause::new(CauseKind::Local, "the spool could not be read");
                self.not_tried(entry, cause);
                None
            }
            Err(LendError::Gone | LendError::Damaged) => {
                // Damage is reported and quarantined by the spool; there is nothing to send here.
                self.apply(Event::Outcome {
                    entry,
                    deferred: None,
                    cause: Cause::SETTLED,
                });
                None
            }
        }
    }

    /// Settles the recipients of one transaction that have reached their end.
    pub fn settle_attempt(&self, held: &Arc<Held>, delivered: Vec<u32>, failed: Vec<Failure>) {
        for recipient in delivered {
            let kind = SettlementKind::Delivered;
            self.settle(Settlement {
                id: held.id,
                recipient,
                kind,
            });
        }
        if !failed.is_empty() {
            self.bounce(Bounce {
                id: held.id,
                failures: failed,
                expired: false,
                held: Some(Arc::clone(held)),
            });
        }
    }

    /// An attempt has ended: the entry goes, or waits with the recipients that were put off.
    pub fn attempted(&self, entry: EntryId, held: &Held, put_off: &[u32], cause: Cause) {
        let deferred = Recipients::many(put_off);
        if deferred.is_some() {
            self.signer.keep(held);
        }
        match (&deferred, cause.kind) {
            (None, _) => {}
            (Some(_), CauseKind::Ambiguous) => self.count(|c| c.ambiguous += 1),
            (Some(_), CauseKind::NotTried) => {}
            (Some(_), _) => self.count(|c| c.deferred += 1),
        }
        self.apply(Event::Outcome {
            entry,
            deferred,
            cause,
        });
    }

    /// An entry goes back as it was.
    pub fn not_tried(&self, entry: EntryId, cause: Cause) {
        let recipients = self
            .brain
            .borrow()
            .get(entry)
            .map(|e| e.recipients().clone());
        if let Some(recipients) = recipients {
            self.apply(Event::Outcome {
                entry,
                deferred: Some(recipients),
                cause,
            });
        }
    }

    /// Journals when a deferred entry is due, so that a restart keeps the schedule.
    fn journal(&self, entry: EntryId, attempts: u16, next: Mono) {
        let next = self.port.wall().after(next.since(self.port.now()));
        let Some((id, recipients)) = self.who(entry) else {
            return;
        };
        for recipient in recipients.as_slice() {
            let kind = SettlementKind::Deferred { attempts, next };
            self.settle(Settlement {
                id,
                recipient: *recipient,
                kind,
            });
        }
    }

    fn who(&self, entry: EntryId) -> Option<(MessageId, Recipients)> {
        let brain = self.brain.borrow();
        let entry = brain.get(entry)?;
        Some((entry.message(), entry.recipients().clone()))
    }

    /// An entry grew too old: its recipients fail with 4.4.7, and the sender is told.
    fn expire(&self, entry: EntryId) {
        let Some((id, recipients)) = self.who(entry) else {
            return;
        };
        let failure = |recipient: &u32| Failure {
            recipient: *recipient,
            status: EnhancedStatus::EXPIRED,
            text: Box::from("delivery time expired"),
            remote: None,
        };
        let failures = recipients.as_slice().iter().map(failure).collect();
        self.bounce(Bounce {
            id,
            failures,
            expired: true,
            held: None,
        });
        // Reported by a task: the brain is being asked for actions right now.
        let me = self.rc();
        self.port.spawn(Class::Egress, async move {
            me.apply(Event::Outcome {
                entry,
                deferred: None,
                cause: Cause::SETTLED,
            });
        });
    }

    // ---- settlements and bounces ----

    fn settle(&self, settlement: Settlement) {
        let storing = self.storing_shard(settlement.id);
        if storing == self.settings.shard {
            self.settle_here(settlement);
        } else {
            self.post(storing, ShardMessage::Settle(settlement));
        }
    }

    fn settle_here(&self, settlement: Settlement) {
        if let Some(spool) = self.spool(settlement.id.shard()) {
            spool.settle(settlement);
        }
    }

    fn bounce(&self, bounce: Bounce) {
        let storing = self.storing_shard(bounce.id);
        if storing == self.settings.shard {
            self.start_bounce(bounce);
        } else {
            self.post(storing, ShardMessage::Bounce(Box::new(bounce)));
        }
    }

    fn start_bounce(&self, bounce: Bounce) {
        let me = self.rc();
        self.port
            .spawn(Class::Spool, async move { me.carry_bounce(bounce).await });
    }

    /// Tells the sender, durably, and only then settles the failed recipients: a crash in between
    /// repeats the notification rather than losing it.
    async fn carry_bounce(&self, bounce: Bounce) {
        let held = loop {
            match &bounce.held {
                Some(held) => break Ok(Arc::clone(held)),
                None => match self.read(bounce.id).await {
                    // A disk that does not answer now is no reason to tell the sender nothing.
                    Err(LendError::Unreadable) => {
                        let pause = self.port.now().after(NOTIFICATION_PAUSE);
                        self.port.sleep_until(pause).await;
                    }
                    read => break read,
                },
            }
        };
        if let Ok(held) = held
            && let Some((envelope, content)) = self.notification(&held, &bounce)
        {
            self.store_notification(envelope, content).await;
        }
        let kind = if bounce.expired {
            SettlementKind::Expired
        } else {
            SettlementKind::Failed
        };
        for failure in &bounce.failures {
            self.settle_here(Settlement {
                id: bounce.id,
                recipient: failure.recipient,
                kind,
            });
        }
    }

    fn notification(&self, held: &Held, bounce: &Bounce) -> Option<(Envelope, Content)> {
        let recipients = &held.envelope.recipients;
        let reports: Vec<_> = bounce
            .failures
            .iter()
            .filter_map(|failure| {
                Some(dsn::Report {
                    recipient: recipients.get(failure.recipient as usize)?,
                    status: failure.status,
                    diagnostic: &failure.text,
                    remote_mta: failure.remote.as_deref(),
                })
            })
            .collect();
        dsn::failure(&dsn::DsnInfo {
            reporting_mta: &self.settings.hostname,
            sender: held.envelope.sender.as_ref(),
            envid: held.envelope.envid.as_deref(),
            ret: held.envelope.ret,
            smtputf8: held.envelope.smtputf8,
            reports: &reports,
            arrival: held.received_at,
            now: self.port.wall(),
            id: held.id,
            content: &held.content,
            kind: if bounce.expired {
                dsn::Kind::Expired
            } else {
                dsn::Kind::Failed
            },
            seed: self.port.random(),
        })
    }

    async fn store_notification(&self, envelope: Envelope, content: Content) {
        loop {
            let (id, now) = (self.own_spool().next_id(), self.port.wall());
            match self.own_spool().append(id, &envelope, &content, now).await {
                Ok(stored) => {
                    self.count(|counters| counters.notifications += 1);
                    self.stored(&stored, envelope, content, now);
                    return;
                }
                Err(error) => {
                    tracing::warn!(?error, "a delivery status notification waits for the spool");
                    let pause = self.port.now().after(NOTIFICATION_PAUSE);
                    self.port.sleep_until(pause).await;
                }
            }
        }
    }

    /// A message is on stable storage: it may go out.
    fn stored(&self, stored: &Stored, envelope: Envelope, content: Content, received_at: Wall) {
        let held = Held::mapped(stored.id(), envelope, content.bytes(), received_at);
        let (held, shared) = held.fresh(&self.fresh);
        self.dispatch(&held, shared, None);
    }

    /// Looks at a message before it is stored: takes control fields out, refuses loops and names of
    /// pools and sources that do not exist (a typo must not send a campaign from the wrong
    /// address), and mail that nobody would sign where policy says so.
    fn check(&self, envelope: &mut Envelope, content: Content) -> Result<Content, Refusal> {
        let checked = header::check(content, envelope).map_err(|error| {
            let reply = Reply::new(error.code(), Some(error.status()), &error.to_string());
            Refusal::Policy(reply)
        })?;
        if !self
            .signer
            .admits(checked.content.as_slice(), &checked.scan)
        {
            let text =
                "no DKIM key for the domain of the From field; mail is not sent unsigned here";
            let reply = Reply::new(550, Some(EnhancedStatus::NOT_AUTHORIZED), text);
            return Err(Refusal::Policy(reply));
        }
        // The name that PowerMTA users give may be a pool here or a single source.
        if let Some(name) = &envelope.pool
            && self.pool(name).is_none()
            && envelope.source.is_none()
        {
            envelope.source = envelope.pool.take();
        }
        let unknown = envelope
            .pool
            .as_deref()
            .filter(|name| self.pool(name).is_none());
        let unknown = unknown.or_else(|| {
            envelope
                .source
                .as_deref()
                .filter(|name| self.source_number(name).is_none())
        });
        match unknown {
            None => Ok(checked.content),
            Some(name) => {
                let text = format!("no pool or source is called {name}");
                let reply = Reply::new(550, Some(EnhancedStatus::INVALID_ARGUMENTS), &text);
                Err(Refusal::Policy(reply))
            }
        }
    }

    fn source_number(&self, name: &str) -> Option<u16> {
        let position = self
            .settings
            .sources
            .iter()
            .position(|source| *source.name == *name);
        position.and_then(|position| u16::try_from(position).ok())
    }

    // ---- the operator ----

    /// Takes nothing new into hand from now on; connections say QUIT when they are done.
    pub fn stop(&self) {
        self.stopping.set(true);
        for link in self.links.borrow().values() {
            link.stop();
        }
    }

    /// Connections with a transaction under way.
    pub fn in_hand(&self) -> usize {
        self.links
            .borrow()
            .values()
            .filter(|link| link.is_busy())
            .count()
    }

    /// The outbound half of the shard's figures.
    pub fn figures(&self) -> Figures {
        let mut figures = Figures {
            counters: self.counters.get(),
            signing: self.signer.report(),
            signatures_reused: self.signer.reused(),
            ..Figures::default()
        };
        for path in self.brain.borrow().paths() {
            figures.connections += u64::from(path.connections);
            figures.ready += u64::from(path.ready);
            figures.deferred += u64::from(path.deferred);
            figures.in_flight += u64::from(path.in_flight);
        }
        figures
    }

    /// Every egress path that lives here.
    pub fn path_figures(&self) -> Vec<PathFigures> {
        let brain = self.brain.borrow();
        let figures = |path: PathReport<'_>| PathFigures {
            source: self.settings.sources[usize::from(path.source)]
                .name
                .to_string(),
            site: path.site.to_string(),
            ready: u64::from(path.ready),
            deferred: u64::from(path.deferred),
            in_flight: u64::from(path.in_flight),
            connections: u64::from(path.connections),
            suspended: path.suspended,
        };
        brain.paths().map(figures).collect()
    }

    /// Stops or restarts the paths of a source, to a site, or both; returns how many.
    pub fn suspend(&self, source: Option<&str>, site: Option<&str>, stop: bool) -> u64 {
        let chosen: Vec<PathId> = {
            let brain = self.brain.borrow();
            let wanted = |path: &PathReport<'_>| {
                let name = &self.settings.sources[usize::from(path.source)].name;
                source.is_none_or(|wanted| *wanted == **name)
                    && site.is_none_or(|wanted| wanted.eq_ignore_ascii_case(path.site))
                    && path.suspended != stop
            };
            brain.paths().filter(wanted).map(|path| path.id).collect()
        };
        for path in &chosen {
            let path = *path;
            self.apply(if stop {
                Event::Suspend { path }
            } else {
                Event::Resume { path }
            });
        }
        u64::try_from(chosen.len()).unwrap_or(u64::MAX)
    }
}

/// Why a message cannot be signed now, for the operator.
fn unsigned(error: SignError) -> &'static str {
    match error {
        SignError::Busy => "4.3.1 too many messages wait for their DKIM signature",
        SignError::Failed => "4.3.0 the DKIM private key operation failed",
        SignError::NoKey => "4.7.0 no DKIM key for the From domain",
    }
}

/// Why a plan leads nowhere, in words for the sender and the operator.
fn unroutable(plan: &Plan) -> Box<str> {
    Box::from(match plan {
        Plan::Null => "the domain accepts no mail (null MX)",
        Plan::NoSuchDomain => "the domain does not exist",
        Plan::Temporary => "the DNS does not answer for the domain",
        Plan::NotUsable => "the domain has no usable mail exchanger",
        Plan::Loop => "the domain's mail exchanger is this host",
        Plan::Hosts(_) | Plan::Implicit(_) | Plan::Literal(_) => "the domain is routable",
    })
}

impl<P: Port> Intake for Dispatch<P> {
    fn next_id(&self) -> MessageId {
        self.own_spool().next_id()
    }

    async fn accept(&self, id: MessageId, inbound: Box<Inbound>) -> Result<Stored, Refusal> {
        let Inbound {
            mut envelope,
            content,
            received_at,
            ..
        } = *inbound;
        let checked = self.check(&mut envelope, content);
        let content = checked.inspect_err(|_| self.count(|counters| counters.refused += 1))?;
        let appended = self
            .own_spool()
            .append(id, &envelope, &content, received_at)
            .await;
        let stored = appended.map_err(|error| match error {
            AppendError::Full => Refusal::InsufficientStorage,
            AppendError::Failed => Refusal::LocalError,
            AppendError::TooLarge => Refusal::Policy(Reply::new(
                552,
                Some(EnhancedStatus::MESSAGE_TOO_BIG),
                "the message is larger than the spool can hold",
            )),
        });
        match stored {
            Ok(stored) => {
                let recipients = u64::try_from(envelope.recipients.len()).unwrap_or(u64::MAX);
                let octets = u64::try_from(content.len()).unwrap_or(u64::MAX);
                self.count(|counters| {
                    counters.accepted += 1;
                    counters.accepted_recipients += recipients;
                    counters.accepted_bytes += octets;
                });
                self.stored(&stored, envelope, content, received_at);
                Ok(stored)
            }
            Err(refusal) => {
                self.count(|counters| counters.refused += 1);
                Err(refusal)
            }
        }
    }
}

/// How long letters wait when another shard's mailbox is full: it is busy, not gone.
const OVERFLOW_PAUSE: Duration = Duration::from_millis(2);

/// How long a notification waits when the spool takes nothing.
const NOTIFICATION_PAUSE: Duration = Duration::from_secs(5);

const FNV_BASIS: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a: short names, no adversary (a receiver cannot choose a shard to its advantage).
fn fnv(seed: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(seed, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The finaliser of SplitMix64: every input bit reaches every output bit.
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
