//! Campaigns: mail from an injector through the real shards to receivers, under bad luck; then the
//! faults end, and everything that was acknowledged must have come to exactly one end.

mod clock;
mod hangup;
mod injector;
mod ledger;
mod node;
mod poison;
mod receiver;
mod shards;
mod unread;
mod vanish;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use postrider::config;
use postrider::engine::sim::{
    CrashKind, DiskFaults, NetFaults, Random, RunEnd, SimHost, SimOptions, SimPort, SimWorld,
};
use postrider::engine::{Class, Port};
use postrider::lab::receiver::Site;
use postrider::settings;
use postrider::time::Mono;

use self::injector::Injector;
use self::ledger::{Key, Sent, Shared, content};
use self::node::{DATA, Node};

/// Seeds of an ordinary test run.
const SMOKE_SEEDS: u64 = 200;

/// Seeds of an ordinary test run with outages of the disk.
const OUTAGE_SEEDS: u64 = 60;

/// Turns after which a campaign is taken to spin.
const STEPS_MAX: u64 = 20_000_000;

/// Virtual time from the end of the faults within which everything must have ended.
const DRAIN_TIME: Duration = Duration::from_secs(6 * 3_600);

/// Virtual time after the drain in which nothing more may arrive.
const QUIET_TIME: Duration = Duration::from_secs(1_800);

const HOME: &str = "home.test";

/// What one seed is about, drawn before its world is made.
#[derive(Debug)]
struct Scenario {
    seed: u64,
    shards: u16,
    /// Connections per source and site, and transactions at once on each.
    connections: u64,
    depth: u64,
    messages: u64,
    bytes_max: u64,
    segment_bytes: u64,
    /// Longest wait of a settlement for company, in milliseconds.
    settle_wait: u64,
    recipients_max: u64,
    sessions: u64,
    /// Longest pause of a sender before a message, in milliseconds.
    spread: u64,
    personalities: Vec<String>,
    /// How long faults last.
    trouble: Duration,
    crashes: u64,
    jumps: bool,
    rot: bool,
    dns_fails: u64,
    options: SimOptions,
}

impl Scenario {
    /// Without any bad luck: what a test adds is all that happens.
    fn calm(seed: u64) -> Self {
        Self {
            trouble: Duration::ZERO,
            crashes: 0,
            jumps: false,
            rot: false,
            dns_fails: 0,
            options: SimOptions::calm(),
            ..Self::draw(seed)
        }
    }

    fn draw(seed: u64) -> Self {
        let random = Random::new(seed ^ 0xc0ff_ee00);
        let mut options = SimOptions::swarm(random.next());
        options.print = std::env::var_os("POSTRIDER_SIM_TRACE").is_some();
        let rot = random.below(8) == 0;
        if rot {
            options.disk.rot = 8;
        }
        if random.below(4) == 0 {
            options.net = NetFaults::calm();
        }
        if random.below(3) == 0 {
            options.disk = DiskFaults {
                rot: options.disk.rot,
                ..DiskFaults::calm()
            };
        }
        if random.below(6) == 0 {
            options.disk.capacity = Some(random.within(&(6 << 20..=24 << 20)));
        }
        let receivers = random.within(&(1..=4));
        let manners = Random::new(seed ^ 0xbeef);
        let depth = manners.within(&(1..=4));
        Self {
            depth,
            connections: manners.within(&(1..=4)),
            settle_wait: [0, 2, 2, 20][manners.index(4)],
            seed,
            shards: u16::try_from(random.within(&(1..=3))).unwrap_or(1),
            messages: random.within(&(1..=30)),
            bytes_max: [600, 5_000, 40_000][random.index(3)],
            recipients_max: random.within(&(1..=5)),
            sessions: random.within(&(1..=4)),
            spread: [0, 500, 10_000][random.index(3)],
            personalities: (0..receivers).map(|_| personality(&random)).collect(),
            trouble: Duration::from_secs(random.within(&(1..=300))),
            crashes: if random.below(4) == 0 {
                0
            } else {
                random.within(&(1..=8))
            },
            jumps: random.below(4) == 0,
            rot,
            dns_fails: if random.coin() {
                random.below(300_000)
            } else {
                0
            },
            segment_bytes: [256 << 10, 256 << 10, 256 << 10, 1 << 20][random.index(4)],
            options,
        }
    }

    fn config(&self) -> String {
        let depth = self.depth;
        format!(
            "[node]\nhostname = \"node.test\"\ndata_dir = \"{DATA}\"\nshards = {}\n\
             [[listener]]\naddress = \"10.0.0.1:2525\"\nrelay_from = [\"0.0.0.0/0\"]\n\
             idle_timeout = \"2m\"\nmax_message_size = \"512KiB\"\n\
             [delivery]\nport = 25\nconnections_max = {}\npipeline_depth = {depth}\n\
             retry = [\"5s\", \"30s\", \"1m\"]\nexpire = \"30d\"\nconnect_timeout = \"10s\"\n\
             [spool]\nsegment_size = \"1MiB\"\nfree_space_min = \"1MiB\"\nsettle_wait = \"{}ms\"\n\
             [[source]]\nname = \"a\"\naddress = \"10.0.0.2\"\nhelo = \"a.node.test\"\n\
             [[source]]\nname = \"b\"\naddress = \"10.0.0.3\"\nhelo = \"b.node.test\"\n\
             [[pool]]\nname = \"default\"\nsources = [{{ source = \"a\" }}, \
              {{ source = \"b\" }}]\n",
            self.shards, self.connections, self.settle_wait,
        )
    }
}

/// The manners of one receiver.
fn personality(random: &Random) -> String {
    let mut text = String::from("accept");
    let mut maybe = |trait_: String| {
        if random.below(5) == 0 {
            text.push('+');
            text.push_str(&trait_);
        }
    };
    maybe(format!("greylist:{}s", random.within(&(1..=60))));
    maybe(format!("tempfail:{}%", random.within(&(1..=50))));
    maybe(format!("tempfail-dot:{}%", random.within(&(1..=50))));
    maybe(format!("reject:{}%", random.within(&(1..=60))));
    maybe(format!("messages:{}", random.within(&(1..=5))));
    maybe(format!("connections:{}", random.within(&(1..=2))));
    maybe(format!("delay:{}ms", random.within(&(1..=2_000))));
    maybe("no-chunking".to_owned());
    maybe("no-pipelining".to_owned());
    let phase = ["connect", "ehlo", "mail", "rcpt", "data", "content", "dot"][random.index(7)];
    maybe(format!("close:{phase}:{}%", random.within(&(1..=40))));
    text
}

/// What a campaign came to.
#[derive(Debug)]
struct Report {
    hash: u64,
    violations: Vec<String>,
    acknowledged: usize,
    receipts: usize,
    bounces: usize,
    crashes: u64,
    steps: u64,
}

struct Campaign {
    scenario: Scenario,
    world: SimWorld,
    node: Rc<Node>,
    control: SimPort,
    ledger: Shared,
    injector: Rc<Injector>,
    sites: Vec<Rc<Site>>,
}

fn receiver_address(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 1, 0, u8::try_from(number + 1).unwrap_or(u8::MAX))
}

impl Campaign {
    fn new(scenario: Scenario) -> Self {
        let world = SimWorld::new(scenario.seed, scenario.options.clone());
        let ledger: Shared = Rc::default();
        ledger.borrow_mut().rot = scenario.rot;
        ledger.borrow_mut().disk_failed = scenario.options.disk.write_error > 0
            || scenario.options.disk.directory_error > 0
            || scenario.options.disk.capacity.is_some();
        let (zone, sites) = receivers(&world, &scenario, &ledger);
        let host = world.host("node");
        for last in 1..=3 {
            host.add_address(IpAddr::V4(Ipv4Addr::new(10, 0, 0, last)));
        }
        for number in 0..scenario.shards {
            host.make_directory(&Path::new(DATA).join(format!("shard-{number:03}")));
        }
        let mut loaded = config::parse(scenario.config().as_bytes()).expect("the scenario's file");
        // Smaller than an operator may choose: segments fill, and are recycled, within one run.
        loaded.snapshot.spool.segment_size = scenario.segment_bytes;
        let keys = settings::key_ring(&loaded.snapshot).expect("no key is configured");
        let node = Rc::new(Node {
            host: host.clone(),
            snapshot: Arc::new(loaded.snapshot),
            keys: Arc::new(keys),
            shards: scenario.shards,
            zone: Rc::new(RefCell::new(zone)),
            dns_fails: Rc::new(Cell::new(scenario.dns_fails)),
            mesh: RefCell::new(None),
            failures: RefCell::default(),
            in_hand: Rc::default(),
        });
        let injector_host = world.host("injector");
        injector_host.add_address(IpAddr::V4(Ipv4Addr::new(10, 2, 0, 1)));
        let injector = Rc::new(Injector {
            seed: scenario.seed,
            port: injector_host.port(),
            node: host,
            target: SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), 2525),
            ledger: Rc::clone(&ledger),
            waiting: RefCell::default(),
            open: Cell::new(scenario.messages),
            spread: scenario.spread,
        });
        let control = world.host("control").port();
        let campaign = Self {
            scenario,
            world,
            node,
            control,
            ledger,
            injector,
            sites,
        };
        campaign.write_messages();
        campaign
    }

    fn write_messages(&self) {
        let (scenario, random) = (&self.scenario, self.world.random());
        let domains = scenario.personalities.len() as u64 + 2;
        for id in 0..scenario.messages {
            let count = random.within(&(1..=scenario.recipients_max));
            let mut recipients = BTreeSet::new();
            for number in 0..count {
                recipients.insert(format!("u{number}-{id}@d{}.test", random.below(domains)));
            }
            let len = usize::try_from(random.within(&(200..=scenario.bytes_max))).unwrap_or(200);
            let sent = Sent {
                recipients: recipients.into_iter().collect(),
                content: content(scenario.seed, id, len),
                acknowledged: BTreeSet::new(),
            };
            self.ledger.borrow_mut().sent.insert(id, sent);
            self.injector.waiting.borrow_mut().push_back(id);
        }
    }

    fn run(self) -> Report {
        self.begin();
        let trouble = Trouble {
            port: self.control.clone(),
            host: self.node.host.clone(),
            crashes: Cell::new(self.scenario.crashes),
            jumps: self.scenario.jumps,
        };
        let end = self.world.now().after(self.scenario.trouble);
        self.control.spawn(Class::Background, trouble.run(end));
        self.advance(end);
        self.heal();
        self.drain();
        self.check_quiet();
        self.ledger.borrow_mut().judge();
        let mut ledger = self.ledger.borrow_mut();
        Report {
            hash: self.world.trace_hash(),
            violations: std::mem::take(&mut ledger.violations),
            acknowledged: ledger
                .sent
                .values()
                .map(|sent| sent.acknowledged.len())
                .sum(),
            receipts: ledger.receipts.values().map(Vec::len).sum(),
            bounces: ledger.bounces.len(),
            crashes: self.node.host.crashes(),
            steps: self.world.steps(),
        }
    }

    /// Starts the node and those who send to it.
    fn begin(&self) {
        let node = Rc::clone(&self.node);
        self.control
            .spawn(Class::Control, node.supervise(self.control.clone()));
        self.injector.start(self.scenario.sessions);
        let crashes = Rc::clone(&self.ledger);
        note_crashes(&self.control, &self.node.host, crashes);
    }

    /// Says who gets each message.
    fn address(&self, recipients: impl Fn(u64) -> Vec<String>) {
        for (id, sent) in &mut self.ledger.borrow_mut().sent {
            sent.recipients = recipients(*id);
        }
    }

    /// Runs until `done`, which must come within `limit`.
    fn until(&self, what: &str, limit: Duration, done: impl FnMut() -> bool) {
        let deadline = self.world.now().after(limit);
        let end = self.world.run_until(deadline, STEPS_MAX, done);
        let (seed, missing) = (self.scenario.seed, self.ledger.borrow().missing());
        assert_eq!(end, RunEnd::Reached, "seed {seed}: {what}, {missing:?}");
    }

    /// Nothing happened that must not.
    fn assert_sound(&self) {
        let ledger = self.ledger.borrow();
        let seed = self.scenario.seed;
        assert_eq!(ledger.violations, Vec::<String>::new(), "seed {seed}");
    }

    fn advance(&self, until: Mono) {
        let end = self.world.run_until(until, STEPS_MAX, || false);
        if end == RunEnd::Steps {
            self.ledger
                .borrow_mut()
                .violate(format!("it spins: {STEPS_MAX} turns"));
        }
    }

    fn heal(&self) {
        self.world.change(|options| options.net = NetFaults::calm());
        self.node.host.set_disk(DiskFaults::calm());
        self.node.dns_fails.set(0);
        for last in 2..=3 {
            self.node
                .host
                .add_address(IpAddr::V4(Ipv4Addr::new(10, 0, 0, last)));
        }
    }

    /// Lets time pass until everything has ended, by both the ledger and the node.
    fn drain(&self) {
        let empty = Rc::new(Cell::new(None));
        let (node, port, shared) = (
            Rc::clone(&self.node),
            self.control.clone(),
            Rc::clone(&empty),
        );
        let injector = Rc::clone(&self.injector);
        self.control.spawn(Class::Control, async move {
            loop {
                // What a shard said while mail was still coming says nothing about the end.
                let all_sent = injector.open.get() == 0;
                let queued = node.queued(&port).await;
                shared.set(queued.filter(|_| all_sent));
                port.sleep_until(port.now().after(Duration::from_secs(30)))
                    .await;
            }
        });
        let deadline = self.world.now().after(DRAIN_TIME);
        let done = || {
            self.injector.open.get() == 0
                && empty.get() == Some(0)
                && (self.scenario.rot || self.ledger.borrow().missing().is_empty())
        };
        let end = self.world.run_until(deadline, STEPS_MAX, done);
        if end != RunEnd::Reached {
            let text = format!(
                "not drained ({end:?}): {} messages unsent, queued {:?}, starts that failed {:?}{}",
                self.injector.open.get(),
                empty.get(),
                self.node.failures.borrow().last(),
                self.describe_node(),
            );
            self.ledger.borrow_mut().violate(text);
        }
    }

    fn describe_node(&self) -> String {
        let text = Rc::new(RefCell::new(None));
        let (node, port, shared) = (
            Rc::clone(&self.node),
            self.control.clone(),
            Rc::clone(&text),
        );
        self.control.spawn(Class::Control, async move {
            let said = node.describe(&port).await;
            shared.replace(Some(said));
        });
        self.world
            .run_until(Mono::NEVER, STEPS_MAX, || text.borrow().is_some());
        text.take().unwrap_or_default()
    }

    /// A restart finds nothing to do: what was settled stays settled, and what was refused because
    /// a write failed has been buried since.
    fn check_quiet(&self) {
        let before = self.ends();
        let drained = self.world.now();
        self.advance(self.world.now().after(Duration::from_secs(20)));
        self.node.host.crash(CrashKind::PowerCut);
        self.advance(self.world.now().after(QUIET_TIME));
        let after = self.ends();
        let mut ledger = self.ledger.borrow_mut();
        for (key, count) in after {
            let known = before.get(&key).copied().unwrap_or(0);
            if count > known {
                let receipts = ledger.receipts.get(&key);
                let text = format!(
                    "came back after the drain ({drained:?}): {key:?}, {known} times before, \
                     {receipts:?}"
                );
                ledger.violate(text);
            }
        }
    }

    /// How often each recipient came to an end.
    fn ends(&self) -> BTreeMap<Key, usize> {
        let ledger = self.ledger.borrow();
        let mut ends = BTreeMap::new();
        for (key, receipts) in &ledger.receipts {
            *ends.entry(key.clone()).or_default() += receipts.len();
        }
        for (key, bounces) in &ledger.bounces {
            *ends.entry(key.clone()).or_default() += *bounces as usize;
        }
        ends
    }
}

/// Starts the receivers; returns the mail exchanger of each domain, and who is behind it.
fn receivers(
    world: &SimWorld,
    scenario: &Scenario,
    ledger: &Shared,
) -> (HashMap<String, Ipv4Addr>, Vec<Rc<Site>>) {
    let (mut zone, mut sites) = (HashMap::new(), Vec::new());
    let home = ("accept".to_owned(), HOME.to_owned());
    let named = (0..).zip(&scenario.personalities);
    let named = named.map(|(number, text): (u32, _)| (text.clone(), format!("d{number}.test")));
    for (number, (text, domain)) in named.chain([home]).enumerate() {
        let host = world.host(&domain);
        let address = receiver_address(number);
        host.add_address(IpAddr::V4(address));
        let personality = text.parse().expect("drawn from what it knows");
        let index = u32::try_from(number).unwrap_or(u32::MAX);
        let site = Site::new(index, domain.clone(), personality, scenario.seed, 50 << 20);
        let target = SocketAddr::new(IpAddr::V4(address), 25);
        let site = Rc::new(site);
        sites.push(Rc::clone(&site));
        receiver::start(&host, target, site, Rc::clone(ledger));
        zone.insert(domain, address);
    }
    // One more domain at the first receiver, and (by its absence) one that does not exist.
    zone.insert(
        format!("d{}.test", scenario.personalities.len()),
        receiver_address(0),
    );
    (zone, sites)
}

/// Writes down when the node crashed.
fn note_crashes(port: &SimPort, host: &SimHost, ledger: Shared) {
    let (inner, host) = (port.clone(), host.clone());
    port.spawn(Class::Background, async move {
        loop {
            host.crashed(host.crashes()).await;
            ledger.borrow_mut().crashes.push(inner.now());
        }
    });
}

/// Whatever befalls the node from outside.
struct Trouble {
    port: SimPort,
    host: SimHost,
    crashes: Cell<u64>,
    jumps: bool,
}

impl Trouble {
    async fn run(self, end: Mono) {
        while self.port.now() < end {
            let pause = 1 << (self.port.random() % 15);
            let pause = Duration::from_millis(self.port.random() % pause + 1);
            self.port.sleep_until(self.port.now().after(pause)).await;
            match self.port.random() % 8 {
                0..=3 => self.crash(),
                4 if self.jumps => self.jump(),
                5 => {
                    let address = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));
                    self.host.remove_address(address);
                    let back = Duration::from_secs(self.port.random() % 60);
                    self.port.sleep_until(self.port.now().after(back)).await;
                    self.host.add_address(address);
                }
                _ => {}
            }
        }
    }

    /// Soon: within a few polls, which during recovery hits it, or later.
    fn crash(&self) {
        let left = self.crashes.get();
        if left == 0 {
            return;
        }
        self.crashes.set(left - 1);
        let polls = self.port.random() % (1 << (self.port.random() % 12));
        let kind = if self.port.random() & 1 == 0 {
            CrashKind::Kill
        } else {
            CrashKind::PowerCut
        };
        self.host.crash_after(polls, kind);
    }

    fn jump(&self) {
        let hour = 3_600_000;
        let jumps = [hour, -hour, -24 * hour, 30 * 24 * hour];
        let chosen = usize::try_from(self.port.random() % 4).unwrap_or(0);
        self.host.jump_wall(jumps[chosen]);
    }
}

/// Runs one seed; a panic inside is a violation like any other.
fn run(scenario: Scenario) -> Report {
    let campaign = AssertUnwindSafe(|| Campaign::new(scenario).run());
    match catch_unwind(campaign) {
        Ok(report) => report,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Report {
                hash: 0,
                violations: vec![format!("panic: {}", text.unwrap_or_default())],
                acknowledged: 0,
                receipts: 0,
                bounces: 0,
                crashes: 0,
                steps: 0,
            }
        }
    }
}

fn complain(seed: u64, report: &Report) -> String {
    let mut text = format!(
        "seed {seed}: replay with POSTRIDER_SIM_SEEDS={seed}..{} cargo test --test sim campaign -- \
         --nocapture (POSTRIDER_SIM_TRACE=1 prints every event)\n{:?}\n",
        seed + 1,
        Scenario::draw(seed)
    );
    for violation in &report.violations {
        // Writing to a String cannot fail.
        let _: std::fmt::Result = writeln!(text, "  {violation}");
    }
    text
}

/// The seeds to run: those of the environment, or the smoke seeds.
fn seeds() -> (std::ops::Range<u64>, bool) {
    let Ok(text) = std::env::var("POSTRIDER_SIM_SEEDS") else {
        return (0..SMOKE_SEEDS, false);
    };
    let (from, to) = text.split_once("..").expect("POSTRIDER_SIM_SEEDS=FROM..TO");
    let number = |text: &str| {
        text.parse::<u64>()
            .expect("POSTRIDER_SIM_SEEDS=FROM..TO, numbers")
    };
    (number(from)..number(to), true)
}

/// Shows what the node logs, if that is wanted.
fn show_log() {
    if std::env::var_os("POSTRIDER_SIM_LOG").is_some() {
        // Another test may have done so.
        let log = tracing_subscriber::fmt().with_writer(std::io::stderr);
        drop(log.try_init());
    }
}

/// Nothing acknowledged is lost, nothing corrupt is delivered, duplicates have their excuse, and
/// everything ends, whatever happens.
#[test]
fn campaigns_keep_the_promises() {
    show_log();
    let (seeds, loud) = seeds();
    let start = Instant::now();
    let (mut failed, mut totals) = (Vec::new(), [0_u64; 5]);
    for seed in seeds.clone() {
        let report = run(Scenario::draw(seed));
        let counts = [report.acknowledged, report.receipts, report.bounces].map(|n| n as u64);
        let [acknowledged, receipts, bounces] = counts;
        let counts = [
            acknowledged,
            receipts,
            bounces,
            report.crashes,
            report.steps,
        ];
        for (total, count) in totals.iter_mut().zip(counts) {
            *total += count;
        }
        if !report.violations.is_empty() {
            eprintln!("{}", complain(seed, &report));
            failed.push(seed);
        }
        if loud && seed % 1_000 == 999 {
            let per_second = (seed + 1 - seeds.start) as f64 / start.elapsed().as_secs_f64();
            eprintln!(
                "seed {seed}: {} failed, {per_second:.0} seeds/s",
                failed.len()
            );
        }
    }
    let [acknowledged, receipts, bounces, crashes, steps] = totals;
    println!(
        "{} seeds in {:.1} s: {acknowledged} recipients acknowledged, {receipts} receipts, \
         {bounces} \
         bounces, {crashes} crashes, {steps} turns",
        seeds.end - seeds.start,
        start.elapsed().as_secs_f64()
    );
    assert!(failed.is_empty(), "violations with seeds {failed:?}");
    assert!(
        loud || acknowledged > SMOKE_SEEDS,
        "the campaigns did next to nothing"
    );
}

/// Pages that cannot be read for a while, again and again: what a start could not read comes late,
/// once, and nothing that was settled comes back. Shorter than a start waits for settlements,
/// without which mail may come twice.
#[test]
fn campaigns_survive_outages() {
    show_log();
    let (seeds, loud) = seeds();
    let seeds = if loud { seeds } else { 0..OUTAGE_SEEDS };
    let mut failed = Vec::new();
    for seed in seeds {
        let mut scenario = Scenario::draw(seed);
        let disk = &mut scenario.options.disk;
        disk.read_error = disk.read_error.max(50_000);
        disk.outage = 1_000_000;
        disk.outage_time = 1_000_000_000..=25_000_000_000;
        let report = run(scenario);
        if !report.violations.is_empty() {
            eprintln!("with outages, {}", complain(seed, &report));
            failed.push(seed);
        }
    }
    assert!(failed.is_empty(), "violations with seeds {failed:?}");
}

/// One seed is one history, also through the shards.
#[test]
fn campaigns_repeat_exactly() {
    for seed in 0..SMOKE_SEEDS {
        let once = run(Scenario::draw(seed)).hash;
        assert_eq!(once, run(Scenario::draw(seed)).hash, "seed {seed}");
    }
}

/// The checkers see a disk that lies: a power cut loses what was acknowledged.
#[test]
fn the_canary_is_found() {
    let mut scenario = Scenario::draw(1);
    scenario.options.disk.lie = 1_000_000;
    scenario.rot = false;
    assert!(scenario.messages > 0);
    let report = run(scenario);
    let found = |text: &String| text.contains("acknowledged before it was durable");
    assert!(report.violations.iter().any(found), "{report:?}");
}
