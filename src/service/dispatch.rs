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
use std::collections::{HashMap, HashSet, VecDeque};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use crate::engine::{Class, Guarded, Port, Signal};
use crate::limits;
use crate::message::{Domain, EnhancedStatus, MessageId};
use crate::queue::{
    Action, Cause, CauseKind, ConnectionId, EntryId, Event, PathId, Queue, Recipients,
};
use crate::routing::{Own, RouteTable};
use crate::service::budget::{Budget, Turns};
use crate::service::dates::Dates;
use crate::service::delivery::{self, Link};
use crate::service::hands::Hands;
use crate::service::held::Held;
use crate::service::mesh::{
    Bounce, Failure, LendError, Lent, Mesh, ShardMessage, Target, Transfer,
};
use crate::service::resolver::Resolver;
use crate::service::signer::{SignError, SignService};
use crate::service::spooler::Spooler;
use crate::smtp::client::ClientConfig;
use crate::spool::{Settlement, SettlementKind};
use crate::time::{Mono, Wall};

mod intake;
mod letters;
mod operator;
mod settlements;
mod suspects;
mod watch;
mod ways;

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
    /// Whether every shard sends what it stores, over connections that the shards share.
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
    /// What is sent: the message, or its 7-bit form.
    pub form: Arc<Held>,
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

/// What a dispatcher works with, its spools aside.
pub struct Parts<P: Port> {
    /// The way to every shard.
    pub mesh: Mesh,
    /// The shard's view of the DNS.
    pub resolver: Resolver<P>,
    /// Who signs.
    pub signer: Rc<SignService<P>>,
    /// The brain, empty.
    pub queue: Queue<Option<Arc<Held>>>,
    /// What is in hand, and was when the process crashed.
    pub hands: Rc<Hands>,
    /// What is known of the clock, which was read when this life began: a recovery takes its time.
    pub dates: Dates,
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
    brain: Guarded<P, Queue<Option<Arc<Held>>>>,
    actions: RefCell<Vec<Action>>,
    paths: RefCell<HashMap<PathId, Rc<Path>>>,
    links: RefCell<HashMap<ConnectionId, Rc<Link>>>,
    wake_at: Cell<Mono>,
    wake_changed: Signal,
    ways: RefCell<HashMap<Domain, (Mono, Way)>>,
    unrouted: RefCell<HashMap<Domain, Vec<Load>>>,
    loans: RefCell<HashMap<u64, Rc<Loan>>>,
    next_loan: Cell<u64>,
    fresh: Arc<Budget>,
    counters: Cell<Counters>,
    stopping: Cell<bool>,
    hands: Rc<Hands>,
    dates: RefCell<Dates>,
    /// What was in hand at a crash and waits for its turn to be tried.
    suspects: RefCell<VecDeque<Transfer>>,
    trying_suspects: Cell<bool>,
    suspect_changed: Signal,
    /// Entries whose last attempt ended without a reply to their content.
    unanswered: RefCell<HashSet<EntryId>>,
    /// One message at a time is made 7-bit.
    conversions: Turns,
}

/// A message asked for from another shard.
#[derive(Default)]
struct Loan {
    answer: RefCell<Option<Result<Lent, LendError>>>,
    answered: Signal,
}

impl<P: Port> Dispatch<P> {
    /// A dispatcher over its shard's spools (its own first, then orphans it adopted).
    pub fn new(
        port: P,
        settings: Settings,
        spools: Vec<(u16, Spooler<P>)>,
        parts: Parts<P>,
    ) -> Rc<Self> {
        let Parts {
            mesh,
            resolver,
            signer,
            queue,
            hands,
            dates,
        } = parts;
        assert!(!spools.is_empty(), "a shard without a spool");
        assert!(!settings.sources.is_empty(), "a node without a source");
        let dispatch = Rc::new_cyclic(|me: &Weak<Self>| Self {
            settings,
            me: me.clone(),
            spools,
            mesh,
            overflow: RefCell::default(),
            resolver,
            signer,
            brain: Guarded::new(port.clone(), "the queue", queue),
            actions: RefCell::default(),
            paths: RefCell::default(),
            links: RefCell::default(),
            wake_at: Cell::new(Mono::NEVER),
            wake_changed: Signal::default(),
            ways: RefCell::default(),
            unrouted: RefCell::default(),
            loans: RefCell::default(),
            next_loan: Cell::new(0),
            fresh: Arc::new(Budget::new(limits::FRESH_BYTES_MAX)),
            counters: Cell::default(),
            stopping: Cell::new(false),
            dates: RefCell::new(dates),
            hands,
            suspects: RefCell::default(),
            trying_suspects: Cell::new(false),
            suspect_changed: Signal::default(),
            unanswered: RefCell::default(),
            conversions: Turns::default(),
            port,
        });
        for (_, spool) in &dispatch.spools {
            // Counted when durable: an accounting figure never runs ahead of its settlement.
            let me = dispatch.me.clone();
            spool.on_settled(move |settlement| {
                if let Some(me) = me.upgrade() {
                    me.count_settlement(settlement.kind);
                    if settlement.kind == SettlementKind::Quarantined {
                        me.is_aside(settlement.id);
                    }
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
            SettlementKind::Dropped
            | SettlementKind::Damaged
            | SettlementKind::Quarantined
            | SettlementKind::Deferred { .. } => {}
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

    // ---- the brain and its actions ----

    /// Takes over recipients whose egress path lives here.
    fn take_over(&self, transfer: Transfer) {
        if self.hands.is_suspect(transfer.id) {
            self.hold_back(transfer);
        } else {
            self.enter(transfer);
        }
    }

    /// Hands recipients to the brain.
    fn enter(&self, transfer: Transfer) {
        let (now, wall) = (self.port.now(), self.port.wall());
        self.read_clocks();
        let dates = self.dates.borrow();
        // A due date was written by a clock that may have been set back since: it never makes an
        // entry wait longer than the schedule could have.
        let wait = dates.due(transfer.due).since(wall);
        let wait = wait.min(self.settings.wait_max);
        drop(dates);
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

    /// How old mail is that was received then; jumps of the date do not count.
    fn age_of(&self, received_at: Wall) -> Duration {
        self.read_clocks();
        self.dates.borrow().age(received_at, self.port.wall())
    }

    /// Looks whether the date has jumped.
    fn read_clocks(&self) {
        let (now, wall) = (self.port.now(), self.port.wall());
        if self.dates.borrow_mut().observe(now, wall) {
            tracing::warn!("the wall clock has jumped: mail ages by the time that has passed");
        }
    }

    /// Writes the date down now and then, for the next start; runs for ever.
    pub async fn keep_dates(&self) {
        loop {
            self.read_clocks();
            self.hands.note_dates(&self.dates.borrow());
            let then = self.port.now().after(DATES_PAUSE);
            self.port.sleep_until(then).await;
        }
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
            Action::AskForRoom { path } => self.ask_for_room(path),
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
        let link = Rc::new(Link::new(self.hands.owner()));
        self.links.borrow_mut().insert(connection, Rc::clone(&link));
        let me = self.rc();
        let task = delivery::connection(me, path, connection, link);
        self.port.spawn(Class::Egress, task);
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

    /// Takes an assigned entry in hand for a connection and gets its message ready, or tells the
    /// brain why that cannot be.
    ///
    /// `eight_bit_mime` says whether the receiver takes 8-bit mail; for one that does not the
    /// message is converted, before it is signed (RFC 6376 5.3).
    pub async fn begin(&self, entry: EntryId, link: &Link, eight_bit_mime: bool) -> Option<Work> {
        let id = self.brain.borrow().get(entry)?.message();
        if self.hands.is_condemned(id) {
            // Another entry of it was in hand too often; it is on its way to quarantine.
            self.apply(Event::Outcome {
                entry,
                deferred: None,
                cause: Cause::SETTLED,
            });
            return None;
        }
        link.take(entry, self.hands.hold(id, link.owner()));
        let mut work = self.prepare(entry, eight_bit_mime).await;
        if let Some(ready) = &work
            && self.is_for_the_dead(entry, ready).await
        {
            self.reroute(entry, ready);
            work = None;
        }
        if work.is_none() {
            link.let_go(entry);
            self.acquit(id);
        }
        work
    }

    async fn prepare(&self, entry: EntryId, eight_bit_mime: bool) -> Option<Work> {
        let (id, mut recipients, held): (_, VecDeque<u32>, _) = {
            let brain = self.brain.borrow();
            let assigned = brain.get(entry)?;
            let recipients = assigned.recipients().as_slice().iter().copied().collect();
            (assigned.message(), recipients, assigned.payload().clone())
        };
        let lent = match held {
            Some(held) => {
                let ended = Vec::new();
                Ok(Lent { held, ended })
            }
            None => self.borrow_message(id).await,
        };
        let held = lent.and_then(|lent| {
            recipients.retain(|recipient| !lent.has_ended(*recipient));
            let some = !recipients.is_empty();
            some.then_some(lent.held).ok_or(LendError::Gone)
        });
        match held {
            Ok(held) => {
                let form = match held.for_receiver(eight_bit_mime, &self.conversions).await {
                    Ok(form) => form,
                    Err(reason) => {
                        let (status, text) = (reason.status(), reason.text());
                        self.failed(entry, &held, recipients, status, text);
                        return None;
                    }
                };
                if let Err(error) = self.signer.sign(&form).await {
                    match unsigned(error) {
                        Ok(text) => self.not_tried(entry, Cause::new(CauseKind::Local, text)),
                        Err(text) => {
                            let status = EnhancedStatus::MEDIA;
                            self.failed(entry, &held, recipients, status, &text);
                        }
                    }
                    return None;
                }
                Some(Work {
                    held,
                    form,
                    recipients,
                })
            }
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

    /// Fails all recipients of an entry by our own decision, and tells the sender.
    pub fn failed(
        &self,
        entry: EntryId,
        held: &Arc<Held>,
        recipients: VecDeque<u32>,
        status: EnhancedStatus,
        text: &str,
    ) {
        let failure = |recipient| Failure {
            recipient,
            status,
            text: Box::from(text),
            remote: None,
        };
        let failures = recipients.into_iter().map(failure).collect();
        self.settle_attempt(held, Vec::new(), failures);
        self.attempted(entry, held, &[], Cause::SETTLED);
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
            self.hands.bouncing(held.id);
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
        self.acquit(held.id);
        let deferred = Recipients::many(put_off);
        if deferred.is_some() {
            self.signer.keep(held);
        }
        match (&deferred, cause.kind) {
            (None, _) => self.answered(entry),
            (Some(_), CauseKind::Ambiguous) => {
                self.count(|c| c.ambiguous += 1);
                self.unanswered(entry);
            }
            (Some(_), CauseKind::NotTried | CauseKind::Spent) => {}
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
}

/// How far the date that was written down may be behind.
const DATES_PAUSE: Duration = Duration::from_secs(30);

/// Why a message cannot be signed now, for the operator; or ever, for its sender.
fn unsigned(error: SignError) -> Result<&'static str, String> {
    match error {
        SignError::Busy => Ok("4.3.1 too many messages wait for their DKIM signature"),
        SignError::Failed => Ok("4.3.0 the DKIM private key operation failed"),
        SignError::NoKey => Ok("4.7.0 no DKIM key for the From domain"),
        SignError::Form(reason) => Err(format!(
            "the message cannot be DKIM-signed and must not go out unsigned: {reason}"
        )),
    }
}
