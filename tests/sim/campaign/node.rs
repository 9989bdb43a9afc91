//! The node of a campaign: the real shards, and what `node` and `control` do for them in
//! production.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use postrider::config::Snapshot;
use postrider::dkim::KeyRing;
use postrider::engine::mesh::{MailReceiver, mailbox};
use postrider::engine::sim::{CrashKind, SimHost, SimPort};
use postrider::engine::{Class, Port};
use postrider::limits;
use postrider::queue::Grants;
use postrider::routing::{DnsFailure, HostAddresses, Mx};
use postrider::service::balance::Board;
use postrider::service::dates::counted_max;
use postrider::service::hands::{Hands, absorb, crash_word, encode};
use postrider::service::mesh::{Mesh, OperatorRequest, ShardMessage};
use postrider::service::resolver::{Ask, MailAnswer, Question};
use postrider::shard::{Plan, Shard};
use tokio::sync::oneshot;

/// The node's data directory.
pub(crate) const DATA: &str = "/data";

/// At so many crashes in hand a message is put aside.
const POISON_CRASHES: u32 = 3;

/// How long the DNS takes to answer, at most.
const DNS_TIME_MS: u64 = 300;

/// How long an answer is good.
const DNS_LIFETIME: Duration = Duration::from_secs(60);

/// The node, across its crashes.
pub(crate) struct Node {
    pub(crate) host: SimHost,
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) shards: u16,
    /// No keys: signing has tests of its own, and is none of what a crash can break.
    pub(crate) keys: Arc<KeyRing>,
    /// Mail exchanger of each domain; none: the name does not exist.
    pub(crate) zone: Rc<RefCell<HashMap<String, Ipv4Addr>>>,
    /// In how many of a million questions the DNS fails; zero once healed.
    pub(crate) dns_fails: Rc<std::cell::Cell<u64>>,
    /// The mailboxes of the shards that run now.
    pub(crate) mesh: RefCell<Option<Mesh>>,
    /// Why shards did not start.
    pub(crate) failures: RefCell<Vec<String>>,
    /// What is in hand, across crashes, as the file in the data directory.
    pub(crate) in_hand: Rc<RefCell<Arc<Vec<AtomicU64>>>>,
}

/// What a process leaves that dies by its own fault: every shard's mark is set, and all is as it
/// was, since no destructor runs any more (the simulator's would).
pub(crate) fn mark_crashed(in_hand: &RefCell<Arc<Vec<AtomicU64>>>, shards: u16) {
    let words = in_hand.borrow().clone();
    let words = words.iter().map(|word| word.load(Ordering::Relaxed));
    let words: Vec<AtomicU64> = words.map(AtomicU64::new).collect();
    for shard in 0..shards {
        words[crash_word(shard)].store(1, Ordering::Relaxed);
    }
    in_hand.replace(Arc::new(words));
}

impl Node {
    /// Starts the node and starts it again after each crash, for ever.
    pub(crate) async fn supervise(self: Rc<Self>, port: SimPort) {
        loop {
            let before = self.host.crashes();
            self.boot();
            self.host.crashed(before).await;
            self.mesh.take();
            let pause = Duration::from_millis(1 + port.random() % 1_000);
            port.sleep_until(port.now().after(pause)).await;
        }
    }

    fn boot(self: &Rc<Self>) {
        let in_hand = Arc::clone(&self.in_hand.borrow());
        let words: Vec<u64> = in_hand
            .iter()
            .map(|word| word.load(Ordering::Relaxed))
            .collect();
        let (suspects, dates) = absorb(&words);
        let counted = counted_max(self.snapshot.delivery.expire);
        let dates = dates.resume(self.host.port().wall(), counted);
        let words = encode(self.shards, &suspects, &dates).into_iter();
        let in_hand: Arc<Vec<AtomicU64>> = Arc::new(words.map(AtomicU64::new).collect());
        self.in_hand.replace(Arc::clone(&in_hand));
        let control = self.host.port();
        let (asked, questions) = mailbox(control.remote_waker(), limits::MAILBOX_LETTERS_MAX);
        let mut shards = Vec::new();
        let mut mesh = Vec::new();
        for number in 0..self.shards {
            let port = self.host.port();
            let (sender, letters) = mailbox(port.remote_waker(), limits::MAILBOX_LETTERS_MAX);
            mesh.push(sender);
            shards.push((number, port, letters));
        }
        let mesh: Mesh = mesh.into_iter().collect();
        let board = Board::new(self.shards);
        self.mesh.replace(Some(Arc::clone(&mesh)));
        let grants = Arc::<Grants>::default();
        for (number, port, letters) in shards {
            let asked = asked.clone();
            let ask: Ask = Arc::new(move |question| asked.try_send((number, question)).is_ok());
            let plan = Plan {
                number,
                shards: self.shards,
                spools: vec![number],
                snapshot: Arc::clone(&self.snapshot),
                mesh: Arc::clone(&mesh),
                board: Arc::clone(&board),
                ask,
                keys: Arc::clone(&self.keys),
                grants: Arc::clone(&grants),
                sessions_max: limits::SESSIONS_MAX,
                session_memory_max: 64 << 20,
                hands: Hands::new(in_hand.clone(), number, POISON_CRASHES),
            };
            let me = Rc::clone(self);
            port.clone().spawn(Class::Control, async move {
                me.run_shard(port, plan, letters).await
            });
        }
        let names = Names {
            zone: Rc::clone(&self.zone),
            fails: Rc::clone(&self.dns_fails),
            mesh,
        };
        control
            .clone()
            .spawn(Class::Control, names.answer_all(control, questions));
    }

    async fn run_shard(&self, port: SimPort, plan: Plan, letters: MailReceiver<ShardMessage>) {
        let number = plan.number;
        // Boxed: a shard's boot is a large future, once per process.
        match Box::pin(Shard::boot(port.clone(), plan)).await {
            Ok(shard) => shard.run(letters).await,
            Err(error) => {
                // As in production: the process ends, and systemd starts it again.
                self.failures
                    .borrow_mut()
                    .push(format!("shard {number}: {error}"));
                port.sleep_until(port.now().after(Duration::from_secs(1)))
                    .await;
                self.host.crash(CrashKind::Kill);
            }
        }
    }

    /// Messages queued on all shards, and their alarms; none when a shard does not answer.
    pub(crate) async fn queued(&self, port: &SimPort) -> Option<u64> {
        let mesh = self.mesh.borrow().clone()?;
        let mut queued = 0;
        for sender in mesh.iter() {
            let (reply, mut answer) = oneshot::channel();
            sender
                .try_send(ShardMessage::Operator(OperatorRequest::Spools(reply)))
                .ok()?;
            port.sleep_until(port.now().after(Duration::from_secs(1)))
                .await;
            let spools = answer.try_recv().ok()?;
            queued += spools
                .iter()
                .map(|(_, status)| status.queued_messages)
                .sum::<u64>();
        }
        Some(queued)
    }
}

impl Node {
    /// What every shard says about itself, for the report of a failure.
    pub(crate) async fn describe(&self, port: &SimPort) -> String {
        let Some(mesh) = self.mesh.borrow().clone() else {
            return "it is down".to_owned();
        };
        let mut text = String::new();
        for (number, sender) in mesh.iter().enumerate() {
            let (figures, mut figures_said) = oneshot::channel();
            let (paths, mut paths_said) = oneshot::channel();
            let (spools, mut spools_said) = oneshot::channel();
            let asked = [
                OperatorRequest::Status(figures),
                OperatorRequest::Paths(paths),
                OperatorRequest::Spools(spools),
            ];
            let sent =
                asked.map(|request| sender.try_send(ShardMessage::Operator(request)).is_ok());
            port.sleep_until(port.now().after(Duration::from_secs(1)))
                .await;
            text.push_str(&format!(
                "\n  shard {number} {sent:?}: {:?}\n  {:?}\n  {:?}",
                figures_said.try_recv(),
                paths_said.try_recv(),
                spools_said.try_recv(),
            ));
        }
        text
    }
}

/// The control thread's resolver, as far as a campaign needs one.
struct Names {
    zone: Rc<RefCell<HashMap<String, Ipv4Addr>>>,
    fails: Rc<std::cell::Cell<u64>>,
    mesh: Mesh,
}

impl Names {
    async fn answer_all(self, port: SimPort, questions: MailReceiver<(u16, Question)>) {
        let me = Rc::new(self);
        let mut asked = Vec::new();
        loop {
            questions.recv_all(&mut asked);
            for (shard, question) in asked.drain(..) {
                let (me, inner) = (Rc::clone(&me), port.clone());
                port.spawn(Class::Resolve, async move {
                    let pause = Duration::from_millis(inner.random() % DNS_TIME_MS);
                    inner.sleep_until(inner.now().after(pause)).await;
                    let failed = inner.random() % 1_000_000 < me.fails.get();
                    let answer = if failed {
                        MailAnswer::unavailable()
                    } else {
                        me.answer(&question)
                    };
                    let answer = Arc::new(answer);
                    let letter = ShardMessage::Resolved { question, answer };
                    assert!(
                        me.mesh[usize::from(shard)].try_send(letter).is_ok(),
                        "a full mailbox"
                    );
                });
            }
            port.remote_wakes().await;
        }
    }

    fn answer(&self, question: &Question) -> MailAnswer {
        let Question::Mail(domain) = question else {
            return MailAnswer::unavailable();
        };
        let zone = self.zone.borrow();
        let Some(address) = zone.get(&**domain) else {
            return MailAnswer {
                mx: Err(DnsFailure::NoSuchDomain),
                addresses: HashMap::new(),
                lifetime: DNS_LIFETIME,
            };
        };
        let exchange: Arc<str> = Arc::from(format!("mx-{address}.test"));
        let addresses = HostAddresses {
            v4: Ok(vec![*address]),
            v6: Err(DnsFailure::NoData),
        };
        MailAnswer {
            mx: Ok(vec![Mx {
                preference: 10,
                exchange: Box::from(&*exchange),
            }]),
            addresses: HashMap::from([(exchange, addresses)]),
            lifetime: DNS_LIFETIME,
        }
    }
}
