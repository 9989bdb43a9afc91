//! Several brains that share a path: scenarios by hand, then seeded interleavings.

use std::collections::{BTreeMap, VecDeque};

use super::*;
use crate::limits::QUEUE_ROOM_LOOK;

const MILLI: Duration = Duration::from_millis(1);
const SITE: &str = "mx#.example.net";

/// Brains of one node, and what their drivers do: dials, messages and closes take their time.
struct Node {
    grants: Arc<Grants>,
    shards: Vec<Shard>,
    limit: u32,
    slots: u32,
    now: Mono,
    /// What will happen, in order.
    agenda: BTreeMap<(Mono, u64), (usize, What)>,
    planned: u64,
    events: u64,
    random: Random,
    /// In how many of a thousand dials and messages the receiver fails.
    trouble: u64,
    sent: u64,
    settled: u64,
}

struct Shard {
    queue: Queue<u64>,
    path: PathId,
    wake: Option<Mono>,
    /// Entries in flight, by connection.
    busy: BTreeMap<ConnectionId, Vec<EntryId>>,
    /// Since when it has mail, could dial, and has no connection.
    without: Option<Mono>,
    most: u32,
    asked: u64,
    closed_by_us: u64,
}

#[derive(Debug)]
enum What {
    Arrive(u64),
    Dialled(ConnectionId),
    Sent(ConnectionId, EntryId),
    Gone(ConnectionId),
    MakeRoom,
}

impl Node {
    fn new(seed: u64, shards: usize, limit: u32) -> Self {
        let grants = Arc::<Grants>::default();
        let config = |shard| QueueConfig {
            retry: retry(&[5], 10 * 86_400),
            limits: PathLimits {
                connections_max: limit,
                messages_per_connection_max: 1000,
                rate: None,
            },
            seed: seed * 16 + shard,
            ..QueueConfig::default()
        };
        let shard = |number| {
            let mut queue = Queue::new(config(number)).sharing(Arc::clone(&grants));
            let path = queue.path(1, &SITE.into());
            Shard {
                queue,
                path,
                wake: None,
                busy: BTreeMap::new(),
                without: None,
                most: 0,
                asked: 0,
                closed_by_us: 0,
            }
        };
        Self {
            shards: (0..shards as u64).map(shard).collect(),
            grants,
            limit,
            slots: 1,
            now: at(0),
            agenda: BTreeMap::new(),
            planned: 0,
            events: 0,
            random: Random::new(seed),
            trouble: 0,
            sent: 0,
            settled: 0,
        }
    }

    fn plan(&mut self, after: Duration, shard: usize, what: What) {
        self.planned += 1;
        let when = (self.now.after(after), self.planned);
        self.agenda.insert(when, (shard, what));
    }

    fn arrive(&mut self, after: Duration, shard: usize, messages: u64) {
        self.plan(after, shard, What::Arrive(messages));
    }

    /// Up to so many milliseconds, at least one.
    fn time(&mut self, most: u64) -> Duration {
        MILLI * (1 + self.random.below(most)) as u32
    }

    fn held(&self) -> Vec<u32> {
        let connections = |shard: &Shard| shard.queue.counters().connections;
        self.shards.iter().map(connections).collect()
    }

    fn apply(&mut self, number: usize, event: Event<u64>) {
        let mut actions = Vec::new();
        let shard = &mut self.shards[number];
        shard.queue.apply(event, self.now, &mut actions);
        // Every event counts its path; every list is walked now and then.
        self.events += 1;
        if self.events.is_multiple_of(64) {
            check(&mut shard.queue);
        }
        for action in actions {
            self.obey(number, action);
        }
        let held = self.held();
        assert!(held.iter().sum::<u32>() <= self.limit, "{held:?}");
        let taken = self.grants.taken(1, &SITE.into());
        assert_eq!(taken, held.iter().sum::<u32>());
        let shard = &mut self.shards[number];
        shard.most = shard.most.max(held[number]);
        let Some(report) = shard.queue.paths().next() else {
            panic!("the path is known")
        };
        let starves = report.ready > 0 && report.connections == 0 && report.backoff_until.is_none();
        shard.without = starves.then(|| shard.without.unwrap_or(self.now));
    }

    fn obey(&mut self, number: usize, action: Action) {
        match action {
            Action::Dial { connection, .. } => {
                self.shards[number].busy.insert(connection, Vec::new());
                let time = self.time(30);
                self.plan(time, number, What::Dialled(connection));
            }
            Action::Assign { connection, entry } => {
                match self.shards[number].busy.get_mut(&connection) {
                    Some(busy) => busy.push(entry),
                    None => panic!("assigned to a connection that is gone"),
                }
                let time = self.time(50);
                self.plan(time, number, What::Sent(connection, entry));
            }
            Action::Close { connection } => {
                self.shards[number].closed_by_us += 1;
                let time = self.time(20);
                self.plan(time, number, What::Gone(connection));
            }
            Action::AskForRoom { .. } => {
                self.shards[number].asked += 1;
                for other in (0..self.shards.len()).filter(|other| *other != number) {
                    let time = self.time(2);
                    self.plan(time, other, What::MakeRoom);
                }
            }
            Action::WakeAt(at) => self.shards[number].wake = Some(at),
            Action::Deferred { .. } | Action::Expired { .. } => {}
        }
    }

    fn act(&mut self, number: usize, what: What) {
        let fails = self.random.below(1000) < self.trouble;
        match what {
            What::Arrive(messages) => (0..messages).for_each(|_| self.enqueue(number)),
            What::Dialled(connection) if fails => {
                let cause = Cause::bare(CauseKind::Connection);
                self.shards[number].busy.remove(&connection);
                self.apply(number, Event::DialFailed { connection, cause });
            }
            What::Dialled(connection) => {
                let slots = self.slots;
                self.apply(number, Event::Connected { connection, slots });
            }
            What::Sent(connection, _) if fails => self.gone(number, connection),
            What::Sent(connection, entry) => {
                let Some(busy) = self.shards[number].busy.get_mut(&connection) else {
                    return;
                };
                busy.retain(|other| *other != entry);
                self.settled += 1;
                let (deferred, cause) = (None, Cause::SETTLED);
                self.apply(
                    number,
                    Event::Outcome {
                        entry,
                        deferred,
                        cause,
                    },
                );
                self.apply(number, Event::Free { connection });
            }
            What::Gone(connection) => self.gone(number, connection),
            What::MakeRoom => {
                let path = self.shards[number].path;
                self.apply(number, Event::MakeRoom { path });
            }
        }
    }

    fn gone(&mut self, number: usize, connection: ConnectionId) {
        let Some(busy) = self.shards[number].busy.remove(&connection) else {
            return;
        };
        // First: what is not tried must not be assigned to it once more.
        let cause = Cause::IDLE;
        self.apply(number, Event::Closed { connection, cause });
        for entry in busy {
            self.apply(
                number,
                Event::Outcome {
                    entry,
                    deferred: Some(Recipients::one(0)),
                    cause: Cause::bare(CauseKind::NotTried),
                },
            );
        }
    }

    fn enqueue(&mut self, number: usize) {
        self.sent += 1;
        let event = Event::Enqueue {
            path: self.shards[number].path,
            message: MessageId::new(1, self.sent),
            recipients: Recipients::one(0),
            age: Duration::ZERO,
            attempts: 0,
            due: Mono(0),
            payload: self.sent,
        };
        self.apply(number, event);
    }

    /// The next thing that happens, up to `until`; false where nothing does.
    fn step(&mut self, until: Mono) -> bool {
        let wakes = self.shards.iter().zip(0..);
        let wake = wakes.filter_map(|(shard, number)| Some((shard.wake?, number)));
        let wake = wake.min();
        let planned = self.agenda.first_key_value().map(|((at, _), _)| *at);
        let next = [wake.map(|(at, _)| at), planned];
        let Some(next) = next.into_iter().flatten().min().filter(|at| *at <= until) else {
            return false;
        };
        self.now = self.now.max(next);
        if planned == Some(next) {
            if let Some((_, (number, what))) = self.agenda.pop_first() {
                self.act(number, what);
            }
        } else if let Some((_, number)) = wake {
            self.shards[number].wake = None;
            self.apply(number, Event::Wake);
        }
        true
    }

    fn run(&mut self, time: Duration) {
        let until = self.now.after(time);
        while self.step(until) {}
        self.now = until;
    }

    /// Runs until all mail is sent, watching that no shard waits longer than `patience`.
    fn finish(&mut self, patience: Duration) {
        let end = self.now.after(SECOND * 86_400);
        while self.settled < self.sent || !self.agenda.is_empty() {
            let (settled, sent) = (self.settled, self.sent);
            assert!(self.step(end), "it stands still: {settled} of {sent}");
            for (shard, number) in self.shards.iter().zip(0..) {
                let Some(since) = shard.without else { continue };
                assert!(
                    self.now <= since.after(patience),
                    "shard {number} of {} has nothing since {:?}: {:?} of {}",
                    self.shards.len(),
                    self.now.since(since),
                    self.held(),
                    self.limit
                );
            }
        }
    }
}

// All the mail is one shard's: it uses every connection, and nobody is disturbed.
#[test]
fn one_shard_uses_every_connection() {
    let mut node = Node::new(1, 4, 20);
    node.arrive(MILLI, 2, 2000);
    node.finish(MILLI * 100);
    assert_eq!(node.shards[2].most, 20);
    assert_eq!(node.shards[2].asked, 0, "there is nobody to ask");
    node.run(SECOND * 10);
    assert_eq!(node.held(), [0; 4]);
    assert!(node.grants.is_quiet(1, &SITE.into()));
}

// A second shard's mail arrives while the first holds everything: within a message's time it has
// its part, and both keep theirs without opening and closing all the time.
#[test]
fn a_second_shard_gets_its_part() {
    let mut node = Node::new(2, 2, 20);
    node.arrive(MILLI, 0, 4_000);
    node.run(SECOND);
    assert_eq!(node.held(), [20, 0]);
    let before = node.shards[0].closed_by_us;
    node.arrive(MILLI, 1, 4_000);
    // A close takes up to 20 ms, a message 50, a look 25.
    node.run(MILLI * 100);
    assert!(node.held()[1] >= 2, "{:?}", node.held());
    node.run(SECOND);
    assert_eq!(node.held(), [10, 10]);
    assert_eq!(
        node.shards[0].closed_by_us - before,
        10,
        "no more than needed"
    );
    node.run(SECOND * 3);
    assert_eq!(node.held(), [10, 10]);
    let closed = node.shards.iter().map(|shard| shard.closed_by_us);
    assert_eq!(closed.sum::<u64>() - before, 10, "nobody is disturbed");
    node.finish(MILLI * 125);
}

// Idle connections go at once where a shard above its share is asked, and no more than are needed.
#[test]
fn idle_connections_make_room_at_once() {
    let mut node = Node::new(3, 2, 8);
    node.arrive(MILLI, 0, 500);
    node.finish(MILLI * 100);
    assert_eq!(node.held(), [8, 0], "kept for reuse");
    node.arrive(MILLI, 1, 1);
    node.run(MILLI * 4);
    assert_eq!(node.shards[0].closed_by_us, 1);
    node.run(MILLI * 100);
    assert_eq!(node.held(), [7, 1]);
    // With more mail than its fair share can take, the other shard gets what is not used.
    node.arrive(MILLI, 1, 500);
    node.run(MILLI * 800);
    assert_eq!(node.held(), [0, 8]);
}

// With connections that both use now and then, a short pause is not taken for the end of the mail.
#[test]
fn short_pauses_cost_no_connection() {
    let mut node = Node::new(4, 2, 4);
    for step in 0..500 {
        // Ten milliseconds apart, for two shards: about as much as four connections can send.
        node.arrive(MILLI * (1 + 15 * step), (step % 2) as usize, 2);
    }
    node.finish(MILLI * 200);
    let closed: u64 = node.shards.iter().map(|shard| shard.closed_by_us).sum();
    assert!(closed <= 20, "{closed} of 1000 messages cost a connection");
}

// One connection for two shards that both have mail: neither waits for the end of the other's.
#[test]
fn a_single_connection_is_held_in_turn() {
    let mut node = Node::new(5, 2, 1);
    node.arrive(MILLI, 0, 100);
    node.arrive(MILLI * 2, 1, 100);
    node.finish(MILLI * 200);
}

// A brain that ends, in whatever it was, gives back what it held.
#[test]
fn a_brain_that_ends_holds_nothing() {
    let mut node = Node::new(6, 2, 6);
    node.arrive(MILLI, 0, 500);
    node.arrive(MILLI, 1, 500);
    node.run(MILLI * 400);
    assert_eq!(node.held().iter().sum::<u32>(), 6);
    node.shards.remove(0);
    let held = node.held()[0];
    assert_eq!(node.grants.taken(1, &SITE.into()), held);
    node.shards.clear();
    assert!(node.grants.is_quiet(1, &SITE.into()));
}

// A path that was forgotten has given everything back.
#[test]
fn a_forgotten_path_holds_nothing() {
    let mut node = Node::new(7, 2, 2);
    node.arrive(MILLI, 0, 50);
    node.arrive(MILLI, 1, 1);
    node.finish(MILLI * 200);
    node.run(SECOND * 10);
    let queue = &mut node.shards[1].queue;
    for number in 0..=QUEUE_PATHS_VACANT_MAX {
        queue.path(1, &format!("s{number}.example").into());
    }
    assert_eq!(queue.known_path(1, &SITE.into()), None);
    assert_eq!(
        queue.known_path(1, &"s7.example".into()),
        Some(queue.path(1, &"s7.example".into()))
    );
    assert!(node.grants.is_quiet(1, &SITE.into()));
    // A letter about it is late.
    let path = node.shards[1].path;
    let before = node.shards[1].queue.counters().stale_events;
    let mut actions = Vec::new();
    let queue = &mut node.shards[1].queue;
    queue.apply(Event::MakeRoom { path }, node.now, &mut actions);
    assert_eq!(queue.counters().stale_events, before + 1);
}

// Seeded bursts over two to five shards, dials that fail and connections that die: the limit holds
// after every event, no shard with mail stays without a connection, and at the end nothing is held.
#[test]
fn interleavings_keep_the_limit_and_starve_nobody() {
    let (mut all_used, mut asked) = (0, 0);
    for seed in 0..150 {
        let mut random = Random::new(seed ^ 0xfeed);
        let shards = 2 + random.below(4) as usize;
        let limit = 1 + random.below(24) as u32;
        let mut node = Node::new(seed, shards, limit);
        node.slots = 1 + random.below(3) as u32;
        node.trouble = [0, 2, 20][random.below(3) as usize];
        for _ in 0..1 + random.below(30) {
            let after = MILLI * random.below(4000) as u32;
            let shard = random.below(shards as u64) as usize;
            let most = 1 << random.below(8);
            node.arrive(after, shard, 1 + random.below(most));
        }
        // A dial, a message and a close of another shard, and two looks; where there are fewer
        // connections than shards, so much for each turn.
        let turn = MILLI * (30 + 50 + 20) + QUEUE_ROOM_LOOK * 2;
        let turns = (shards as u32).div_ceil(limit);
        node.finish(turn * if turns == 1 { 2 } else { 4 * turns });
        node.run(SECOND * 20);
        assert_eq!(node.held(), vec![0; shards], "seed {seed}");
        assert!(node.grants.is_quiet(1, &SITE.into()), "seed {seed}");
        all_used += node
            .shards
            .iter()
            .filter(|shard| shard.most == limit)
            .count();
        asked += node.shards.iter().map(|shard| shard.asked).sum::<u64>();
    }
    assert!(
        all_used > 50 && asked > 300,
        "too tame: {all_used}, {asked}"
    );
}

// The same seed is the same run, also over several brains.
#[test]
fn shared_paths_repeat_exactly() {
    let run = || {
        let mut node = Node::new(77, 3, 5);
        node.trouble = 10;
        (0..12).for_each(|burst| node.arrive(MILLI * 70 * burst, burst as usize % 3, 40));
        node.finish(SECOND);
        let counts = node.shards.iter().map(|shard| (shard.asked, shard.most));
        (node.now, node.planned, counts.collect::<VecDeque<_>>())
    };
    assert_eq!(run(), run());
}
