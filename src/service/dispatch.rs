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
use crate::message::{self, Content, Domain, Envelope, MessageId};
use crate::queue::{
    Action, Cause, CauseKind, ConnectionId, EntryId, Event, PathId, Queue, Recipients,
};
use crate::service::delivery::{self, HostAddress, Link};
use crate::service::held::{FreshBudget, Held};
use crate::service::mesh::{Bounce, Failure, LendError, Mesh, ShardMessage, Target, Transfer};
use crate::service::resolver::Resolver;
use crate::service::smtpd::Intake;
use crate::service::spooler::{Loaded, Spooler};
use crate::smtp::client::ClientConfig;
use crate::smtp::server::{Inbound, Refusal};
use crate::spool::{AppendError, ReadError, Settlement, SettlementKind, Stored};
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

/// A configured next hop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Via {
    /// The site's name: the hosts, joined.
    pub site: Arc<str>,
    /// Hosts in the order to try, by name or address literal, with their ports.
    pub hosts: Vec<(Arc<str>, u16)>,
}

/// What one shard's dispatcher is told; plain values, filled from the configuration.
#[derive(Debug, Clone)]
pub struct Settings {
    /// This shard's number and how many there are.
    pub shard: u16,
    /// How many shards the node has.
    pub shards: u16,
    /// The node's name.
    pub hostname: Arc<str>,
    /// All sources; an entry names one by its position.
    pub sources: Vec<Source>,
    /// All pools.
    pub pools: Vec<Pool>,
    /// The pool for mail that names none.
    pub default_pool: usize,
    /// Next hops of the routes; a route names one by its position.
    pub vias: Vec<Via>,
    /// Which route a domain takes, if any.
    pub routes: RouteTable,
    /// The port of hosts found by MX.
    pub mail_port: u16,
    /// How long a TCP connection may take to be made.
    pub connect_timeout: Duration,
    /// How long an unused connection is kept.
    pub idle_timeout: Duration,
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
    received_at: Wall,
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
        queue: Queue<Option<Arc<Held>>>,
    ) -> Rc<Self> {
        assert!(!spools.is_empty(), "a shard without a spool");
        assert!(!settings.sources.is_empty(), "a node without a source");
        Rc::new_cyclic(|me| Self {
            port,
            settings,
            me: me.clone(),
            spools,
            mesh,
            overflow: RefCell::default(),
            resolver,
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
        })
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
        self.spools.iter().find(|(own, _)| *own == number).map(|(_, spool)| spool)
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
        let whole = |index: u32| PendingRecipient { index, attempts: 0, next: Wall(0) };
        let load = |recipients, pending: PendingRecipient| Load {
            id: held.id,
            recipients,
            source,
            attempts: pending.attempts,
            due: pending.next,
            received_at: held.received_at,
            held: keep.clone(),
        };
        if let ([recipient], None) = (envelope.recipients.as_slice(), only) {
            self.place(recipient.address.domain(), load(Recipients::one(0), whole(0)));
            return;
        }
        // Recipients of one domain in one state travel together.
        let mut groups: HashMap<(&Domain, u16, Wall), Vec<u32>> = HashMap::new();
        let mut group = |pending: PendingRecipient| {
            let Some(recipient) = envelope.recipients.get(pending.index as usize) else { return };
            let key = (recipient.address.domain(), pending.attempts, pending.next);
            groups.entry(key).or_default().push(pending.index);
        };
        match only {
            Some(pending) => pending.iter().copied().for_each(&mut group),
            None => (0..).take(envelope.recipients.len()).map(whole).for_each(&mut group),
        }
        for ((domain, attempts, next), mut indexes) in groups {
            indexes.sort_unstable();
            let Some(recipients) = Recipients::many(&indexes) else { continue };
            let pending = PendingRecipient { index: 0, attempts, next };
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
        if let Some(name) = &envelope.source
            && let Some(position) = self.settings.sources.iter().position(|s| *s.name == **name)
        {
            return u16::try_from(position).unwrap_or(0);
        }
        let named = envelope.pool.as_deref().and_then(|name| self.pool(name));
        let pool = named.unwrap_or(&self.settings.pools[self.settings.default_pool]);
        if let [(only, _)] = pool.members.as_slice() {
            return *only;
        }
        let total: u64 = pool.members.iter().map(|(_, weight)| u64::from(*weight)).sum();
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
        let route = self.settings.routes.lookup(domain)?;
        let way = self.way_of_route(route);
        self.remember(domain, Mono::NEVER, &way);
        Some(way)
    }

    fn way_of_route(&self, route: usize) -> Way {
        let via = &self.settings.vias[route];
        Way::To(Arc::clone(&via.site), Target::Route(u16::try_from(route).unwrap_or(u16::MAX)))
    }

    /// Keeps a way for the next message; a full table is forgotten as a whole, which costs the names
    /// in use one look-up in the resolver's cache each.
    fn remember(&self, domain: &Domain, until: Mono, way: &Way) {
        let mut ways = self.ways.borrow_mut();
        if ways.len() >= limits::WAYS_MAX {
            ways.clear();
        }
        ways.insert(domain.clone(), (until, way.clone()));
    }

    async fn find_way(&self, domain: &Domain) -> Way {
        let answer = self.resolver.mail(domain.as_str()).await;
        let plan = self.plan(domain, &answer);
        let way = match &plan {
            Plan::Failed { status, text } => Way::Never(*status, text.clone()),
            Plan::Hosts(_) | Plan::Implicit(_) => {
                Way::To(routing::site_name(&plan), Target::Mail(domain.clone()))
            }
            // Not known now: a site of its own, whose dials will ask again and back off.
            Plan::Temporary(_) => Way::To(Arc::from(domain.as_str()), Target::Mail(domain.clone())),
        };
        self.remember(domain, answer.until, &way);
        way
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
                    received_at: load.received_at,
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
                self.start_bounce(Bounce { id: load.id, failures, expired: false, held: load.held });
            }
        }
    }

    /// The shard that owns an egress path: the highest of a hash per shard (rendezvous), so that a
    /// change of their number moves only the paths that it must.
    fn home(&self, source: u16, site: &str) -> u16 {
        if self.settings.shards == 1 {
            return 0;
        }
        let base = fnv(fnv(FNV_BASIS, &source.to_le_bytes()), site.as_bytes());
        let weight = |shard: u16| mix(base ^ mix(u64::from(shard) + 1));
        (0..self.settings.shards).max_by_key(|shard| weight(*shard)).unwrap_or(0)
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
            self.port.spawn(Class::Control, async move { me.flush_overflow(shard).await });
        }
    }

    async fn flush_overflow(&self, shard: u16) {
        loop {
            self.port.sleep_until(self.port.now().after(OVERFLOW_PAUSE)).await;
            let mut overflow = self.overflow.borrow_mut();
            let Some(waiting) = overflow.get_mut(&shard) else { return };
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
            ShardMessage::Reroute(transfer) => self.reroute(*transfer),
            ShardMessage::Lend { id, home, ticket } => self.lend(id, home, ticket),
            ShardMessage::Lent { ticket, result } => {
                // The connection that asked may be gone; then nobody waits.
                if let Some(loan) = self.loans.borrow_mut().remove(&ticket) {
                    *loan.answer.borrow_mut() = Some(result);
                    loan.answered.raise();
                }
            }
            ShardMessage::Resolved { name, answer } => self.resolver.answered(&name, &answer),
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
        let Some(spool) = self.spool(id.shard()) else { return Err(LendError::Gone) };
        match spool.read(id).await {
            Ok(stored) => {
                let (envelope, content) = (stored.envelope, stored.content);
                Ok(Arc::new(Held::mapped(id, envelope, content, stored.received_at)))
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
        let path = self.path(transfer.source, &transfer.site, &transfer.target);
        self.apply(Event::Enqueue {
            path,
            message: transfer.id,
            recipients: transfer.recipients,
            age: wall.since(transfer.received_at),
            attempts: transfer.attempts,
            due: now.after(transfer.due.since(wall)),
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
            paths.retain(|id, _| brain.knows(*id));
        }
        // Another domain of the same site: its mail exchangers are the same, any of them will do.
        let source = self.settings.sources[usize::from(source)].clone();
        let path = Path { source, site: Arc::clone(site), target: target.clone() };
        paths.insert(id, Rc::new(path));
        id
    }

    /// Tells the brain and does what it answers.
    fn apply(&self, event: Event<Option<Arc<Held>>>) {
        let mut actions = self.actions.take();
        self.brain.borrow_mut().apply(event, self.port.now(), &mut actions);
        for action in actions.drain(..) {
            self.perform(action);
        }
        // Performing never applies another event synchronously, so the scratch is still ours.
        self.actions.replace(actions);
    }

    fn perform(&self, action: Action) {
        match action {
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
            Action::Deferred { entry, attempts, next } => self.journal(entry, attempts, next),
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
    pub async fn addresses(&self, path: &Path) -> Result<Vec<HostAddress>, Cause> {
        let hosts = match &path.target {
            Target::Route(route) => {
                let via = &self.settings.vias[usize::from(*route)];
                self.resolver.hosts(&via.hosts).await
            }
            Target::Mail(domain) => {
                let answer = self.resolver.mail(domain.as_str()).await;
                match self.plan(domain, &answer) {
                    Plan::Failed { text, .. } => {
                        self.forget_way(domain);
                        return Err(Cause { kind: CauseKind::Local, text: Some(text) });
                    }
                    Plan::Temporary(text) => {
                        return Err(Cause { kind: CauseKind::Local, text: Some(text) });
                    }
                    plan => answer.addresses(&plan, self.settings.mail_port),
                }
            }
        };
        let family = |host: &HostAddress| {
            delivery::same_family(path.source.address, host.address.ip())
        };
        let usable: Vec<_> = hosts.into_iter().filter(family).collect();
        if usable.is_empty() {
            return Err(Cause::new(CauseKind::Local, "no host of the site has a usable address"));
        }
        Ok(usable)
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
            let assigned = brain.entry(entry)?;
            let recipients = assigned.recipients().as_slice().iter().copied().collect();
            (assigned.message(), recipients, assigned.payload().clone())
        };
        let held = match held {
            Some(held) => Ok(held),
            None => self.borrow_message(id).await,
        };
        match held {
            Ok(held) => Some(Work { held, recipients }),
            Err(LendError::Unreadable) => {
                let cause = Cause::new(CauseKind::Local, "the spool could not be read");
                self.not_tried(entry, cause);
                None
            }
            Err(LendError::Gone | LendError::Damaged) => {
                // Damage is reported and quarantined by the spool; there is nothing to send here.
                self.apply(Event::Outcome { entry, deferred: None, cause: Cause::SETTLED });
                None
            }
        }
    }

    /// Settles the recipients of one transaction that have reached their end.
    pub fn settle_attempt(&self, held: &Arc<Held>, delivered: Vec<u32>, failed: Vec<Failure>) {
        for recipient in delivered {
            let kind = SettlementKind::Delivered;
            self.settle(Settlement { id: held.id, recipient, kind });
        }
        if !failed.is_empty() {
            let held = Some(Arc::clone(held));
            let id = held.as_ref().map_or(MessageId(0), |held| held.id);
            self.bounce(Bounce { id, failures: failed, expired: false, held });
        }
    }

    /// An attempt has ended: the entry goes, or waits with the recipients that were put off.
    pub fn attempted(&self, entry: EntryId, put_off: &[u32], cause: Cause) {
        let deferred = Recipients::many(put_off);
        match (&deferred, cause.kind) {
            (None, _) => {}
            (Some(_), CauseKind::Ambiguous) => self.count(|c| c.ambiguous += 1),
            (Some(_), CauseKind::NotTried) => {}
            (Some(_), _) => self.count(|c| c.deferred += 1),
        }
        self.apply(Event::Outcome { entry, deferred, cause });
    }

    /// An entry goes back as it was.
    pub fn not_tried(&self, entry: EntryId, cause: Cause) {
        let recipients = self.brain.borrow().entry(entry).map(|e| e.recipients().clone());
        if let Some(recipients) = recipients {
            self.apply(Event::Outcome { entry, deferred: Some(recipients), cause });
        }
    }

    /// Journals when a deferred entry is due, so that a restart keeps the schedule.
    fn journal(&self, entry: EntryId, attempts: u16, next: Mono) {
        let next = self.port.wall().after(next.since(self.port.now()));
        let Some((id, recipients)) = self.who(entry) else { return };
        for recipient in recipients.as_slice() {
            let kind = SettlementKind::Deferred { attempts, next };
            self.settle(Settlement { id, recipient: *recipient, kind });
        }
    }

    fn who(&self, entry: EntryId) -> Option<(MessageId, Recipients)> {
        let brain = self.brain.borrow();
        let entry = brain.entry(entry)?;
        Some((entry.message(), entry.recipients().clone()))
    }

    /// An entry grew too old: its recipients fail with 4.4.7, and the sender is told.
    fn expire(&self, entry: EntryId) {
        let Some((id, recipients)) = self.who(entry) else { return };
        let failure = |recipient: &u32| Failure {
            recipient: *recipient,
            status: EnhancedStatus::DELIVERY_TIME_EXPIRED,
            text: Box::from("delivery time expired"),
            remote: None,
        };
        let failures = recipients.as_slice().iter().map(failure).collect();
        self.bounce(Bounce { id, failures, expired: true, held: None });
        // Reported by a task: the brain is being asked for actions right now.
        let me = self.rc();
        self.port.spawn(Class::Egress, async move {
            me.apply(Event::Outcome { entry, deferred: None, cause: Cause::SETTLED });
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
        self.port.spawn(Class::Spool, async move { me.carry_bounce(bounce).await });
    }

    /// Tells the sender, durably, and only then settles the failed recipients: a crash in between
    /// repeats the notification rather than losing it.
    async fn carry_bounce(&self, bounce: Bounce) {
        let held = match &bounce.held {
            Some(held) => Ok(Arc::clone(held)),
            None => self.read(bounce.id).await,
        };
        if let Ok(held) = held
            && let Some((envelope, content)) = self.notification(&held, &bounce)
        {
            self.store_notification(envelope, content).await;
        }
        let kind = if bounce.expired { SettlementKind::Expired } else { SettlementKind::Failed };
        for failure in &bounce.failures {
            self.settle_here(Settlement { id: bounce.id, recipient: failure.recipient, kind });
        }
    }

    fn notification(&self, held: &Held, bounce: &Bounce) -> Option<(Envelope, Content)> {
        let recipients = &held.envelope.recipients;
        let report = |failure| dsn_report(recipients, failure);
        let reports: Vec<_> = bounce.failures.iter().filter_map(report).collect();
        let kind = if bounce.expired { dsn::Kind::Expired } else { dsn::Kind::Failed };
        dsn::failure(&dsn::DsnInfo {
            reporting_mta: &self.settings.hostname,
            sender: held.envelope.sender.as_ref(),
            envid: held.envelope.envid.as_deref(),
            ret: held.envelope.ret,
            kind,
            reports: &reports,
            arrival: held.received_at,
            now: self.port.wall(),
            id: held.id,
            content: &held.content,
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
}

impl<P: Port> Intake for Dispatch<P> {
    fn next_id(&self) -> MessageId {
        self.own_spool().next_id()
    }

    async fn accept(&self, id: MessageId, inbound: Box<Inbound>) -> Result<Stored, Refusal> {
        let Inbound { mut envelope, content, received_at, .. } = *inbound;
        let content = self.check(&mut envelope, content)?;
        let appended = self.own_spool().append(id, &envelope, &content, received_at).await;
        let stored = appended.map_err(|error| match error {
            AppendError::Full => Refusal::InsufficientStorage,
            AppendError::Failed => Refusal::LocalError,
        });
        match stored {
            Ok(stored) => {
                let recipients = u64::try_from(envelope.recipients.len()).unwrap_or(u64::MAX);
                self.count(|counters| {
                    counters.accepted += 1;
                    counters.accepted_recipients += recipients;
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
    bytes.iter().fold(seed, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The finaliser of SplitMix64: every input bit reaches every output bit.
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
