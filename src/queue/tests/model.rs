//! A seeded driver that does everything a network can do, and a naive model that checks every
//! action: legal in the state of the entry and the connection, within every limit, never early.

use std::collections::{BTreeMap, HashMap};

use super::*;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Where {
    /// Ready, or ready again from this time on.
    From(Mono),
    InFlight,
    Expired,
}

#[derive(Debug)]
struct Link {
    path: PathId,
    open: bool,
    closing: bool,
    slots: u32,
    /// Assigned, and `Free` not yet said.
    used: u32,
    assigned: u32,
    entries: Vec<EntryId>,
}

struct World {
    queue: Queue<u64>,
    random: Random,
    now: Mono,
    wake: Option<Mono>,
    paths: Vec<PathId>,
    names: Vec<Arc<str>>,
    /// Entries that have not ended.
    living: BTreeMap<EntryId, (u64, PathId, Where)>,
    ended: HashMap<u64, u32>,
    enqueued: u64,
    links: BTreeMap<ConnectionId, Link>,
    sent: HashMap<PathId, Vec<Mono>>,
    /// Ended connections and entries, for late events.
    gone: Vec<ConnectionId>,
    dead: Vec<EntryId>,
    calm: bool,
}

const LIMITS: PathLimits = PathLimits {
    connections_max: 3,
    messages_per_connection_max: 5,
    rate: None,
};
const TOTAL: u32 = 6;
const RATE: (u32, u64, u32) = (4, 3, 2);
const EXPIRY: u64 = 90;

impl World {
    fn new(seed: u64) -> Self {
        let Ok(rate) = Rate::new(RATE.0, SECOND * RATE.1 as u32, RATE.2) else {
            panic!("a rate")
        };
        let rule = PathRule {
            source: Some(1),
            site: SitePattern::parse("*.slow.example"),
            limits: PathLimits {
                rate: Some(rate),
                connections_max: 2,
                ..LIMITS
            },
            retry: Some(retry(&[3], 30)),
        };
        let mut queue = Queue::new(QueueConfig {
            retry: retry(&[2, 5, 20], EXPIRY),
            limits: LIMITS,
            rules: vec![rule],
            connections_total_max: TOTAL,
            seed,
            ..QueueConfig::default()
        });
        let names: Vec<Arc<str>> = ["a.example", "mx.slow.example", "c.example"]
            .iter()
            .map(|n| (*n).into())
            .collect();
        let paths = (0..6)
            .map(|n| queue.path(n as u16 % 2, &names[n / 2]))
            .collect();
        Self {
            queue,
            random: Random::new(seed),
            now: at(0),
            wake: None,
            paths,
            names,
            living: BTreeMap::new(),
            ended: HashMap::new(),
            enqueued: 0,
            links: BTreeMap::new(),
            sent: HashMap::new(),
            gone: Vec::new(),
            dead: Vec::new(),
            calm: false,
        }
    }

    fn is_slow(&self, path: PathId) -> bool {
        path == self.paths[3]
    }

    fn apply(&mut self, event: Event<u64>) {
        if matches!(event, Event::Wake) {
            self.wake = None;
        }
        let mut actions = Vec::new();
        self.queue.apply(event, self.now, &mut actions);
        check(&mut self.queue);
        for action in actions {
            self.obey(action);
        }
        // Woken in time for whatever waits for its time. (An entry that is ready may wait for a
        // connection instead.)
        let first = self
            .queue
            .entries()
            .filter(|(_, e)| e.state() == State::Deferred);
        let first = first.map(|(id, _)| match self.living.get(&id) {
            Some((_, _, Where::From(at))) => *at,
            _ => panic!("deferred, and the model does not know"),
        });
        if let Some(first) = first.min() {
            // An `Enqueue` names any time; the wheel rounds it up to its tick.
            let limit = Mono(first.max(self.now).0 + (1 << TICK_BITS));
            assert!(
                self.wake.is_some_and(|wake| wake < limit),
                "not woken in time"
            );
        }
    }

    fn obey(&mut self, action: Action) {
        match action {
            Action::Dial { path, connection } => self.dialled(path, connection),
            Action::Assign { connection, entry } => self.assigned(connection, entry),
            Action::Close { connection } => {
                let Some(link) = self.links.get_mut(&connection) else {
                    panic!("not ours")
                };
                assert!(link.open && !link.closing && link.used == 0);
                link.closing = true;
            }
            Action::Deferred { entry, next, .. } => {
                let Some((_, _, place)) = self.living.get_mut(&entry) else {
                    panic!("gone")
                };
                assert!(matches!(place, Where::From(_)), "deferred out of {place:?}");
                assert!(next >= self.now);
                *place = Where::From(next);
            }
            Action::Expired { entry } => {
                let Some((_, _, place)) = self.living.get_mut(&entry) else {
                    panic!("gone")
                };
                assert!(matches!(place, Where::From(_)), "expired out of {place:?}");
                *place = Where::Expired;
            }
            Action::AskForRoom { .. } => panic!("there is no other shard"),
            Action::WakeAt(at) => self.wake = Some(at),
        }
    }

    fn dialled(&mut self, path: PathId, connection: ConnectionId) {
        let limit = if self.is_slow(path) {
            2
        } else {
            LIMITS.connections_max
        };
        let open = self.links.values().filter(|link| link.path == path).count();
        assert!(open < limit as usize, "over the path's connections");
        assert!(self.links.len() < TOTAL as usize, "over all connections");
        let Some(report) = self.queue.paths().find(|report| report.id == path) else {
            panic!("dialled for nothing")
        };
        assert!(!report.suspended && report.backoff_until.is_none());
        let link = Link {
            path,
            open: false,
            closing: false,
            slots: 0,
            used: 0,
            assigned: 0,
            entries: Vec::new(),
        };
        assert!(
            self.links.insert(connection, link).is_none(),
            "a name used twice"
        );
    }

    fn assigned(&mut self, connection: ConnectionId, entry: EntryId) {
        let Some(link) = self.links.get_mut(&connection) else {
            panic!("not ours")
        };
        let Some((_, path, place)) = self.living.get_mut(&entry) else {
            panic!("gone")
        };
        assert!(link.open && !link.closing && link.path == *path);
        assert!(link.used < link.slots, "no slot was free");
        assert!(
            link.assigned < LIMITS.messages_per_connection_max,
            "over the cap"
        );
        let Where::From(due) = *place else {
            panic!("assigned out of {place:?}")
        };
        assert!(due <= self.now, "early");
        *place = Where::InFlight;
        let path = *path;
        link.used += 1;
        link.assigned += 1;
        link.entries.push(entry);
        if self.is_slow(path) {
            self.sent.entry(path).or_default().push(self.now);
        }
    }

    fn enqueue(&mut self) {
        let which = self.random.below(self.paths.len() as u64) as usize;
        let path = self.queue.path(which as u16 % 2, &self.names[which / 2]);
        assert_eq!(path, self.paths[which]);
        let delay = if self.random.below(4) == 0 {
            self.random.below(20)
        } else {
            0
        };
        let due = self.now.after(SECOND * delay as u32);
        let name = self.enqueued;
        self.enqueued += 1;
        let event = Event::Enqueue {
            path,
            message: MessageId::new(1, name),
            recipients: Recipients::one(0),
            age: SECOND * self.random.below(10) as u32,
            attempts: 0,
            due: if delay == 0 { Mono(0) } else { due },
            payload: name,
        };
        // The id is known only afterwards, but actions may name it at once.
        let known: Vec<EntryId> = self.living.keys().copied().collect();
        let mut actions = Vec::new();
        self.queue.apply(event, self.now, &mut actions);
        let fresh = self
            .queue
            .entries()
            .map(|(id, _)| id)
            .find(|id| known.binary_search(id).is_err());
        let Some(fresh) = fresh else {
            panic!("the entry is there")
        };
        assert!(!self.dead.contains(&fresh), "an id is never used again");
        self.living.insert(
            fresh,
            (
                name,
                path,
                Where::From(if delay == 0 { self.now } else { due }),
            ),
        );
        for action in actions {
            self.obey(action);
        }
        check(&mut self.queue);
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        let index = self.random.below(from.len() as u64) as usize;
        from.get(index).copied()
    }

    /// Ends an attempt or a report, in any way it can end.
    fn outcome(&mut self, entry: EntryId) {
        let kinds = [
            CauseKind::Settled,
            CauseKind::Settled,
            CauseKind::Recipient,
            CauseKind::Host,
            CauseKind::Connection,
            CauseKind::Spent,
            CauseKind::Ambiguous,
            CauseKind::Local,
            CauseKind::NotTried,
            CauseKind::NextBatch,
        ];
        let kind = match self.calm {
            true => CauseKind::Settled,
            false => self.pick(&kinds).unwrap_or(CauseKind::Settled),
        };
        let deferred = (kind != CauseKind::Settled).then(|| Recipients::one(0));
        if deferred.is_none() {
            let Some((name, ..)) = self.living.remove(&entry) else {
                panic!("ended twice")
            };
            *self.ended.entry(name).or_insert(0) += 1;
            self.dead.push(entry);
        } else if let Some((_, _, place)) = self.living.get_mut(&entry) {
            *place = Where::From(self.now);
        }
        self.apply(Event::Outcome {
            entry,
            deferred,
            cause: Cause::new(kind, "said so"),
        });
    }

    fn connection_step(&mut self, connection: ConnectionId) {
        let Some(link) = self.links.get_mut(&connection) else {
            return;
        };
        let dice = if self.calm { 0 } else { self.random.below(12) };
        let cause = Cause::bare(
            [
                CauseKind::Idle,
                CauseKind::Host,
                CauseKind::Connection,
                CauseKind::Spent,
            ][dice as usize % 4],
        );
        if !link.open {
            if dice < 8 {
                link.open = true;
                link.slots = 1 + self.random.below(3) as u32;
                let slots = link.slots;
                self.apply(Event::Connected { connection, slots });
            } else {
                self.links.remove(&connection);
                self.gone.push(connection);
                self.apply(Event::DialFailed { connection, cause });
            }
        } else if link.closing || dice == 11 {
            // Outcomes come before or after the end of the connection; a slot that one of them
            // frees elsewhere may bring an `Assign` that crosses the end.
            let before = self.random.below(link.entries.len() as u64 + 1) as usize;
            let first: Vec<EntryId> = link.entries.drain(..before).collect();
            first.into_iter().for_each(|entry| self.outcome(entry));
            let Some(link) = self.links.remove(&connection) else {
                return;
            };
            self.gone.push(connection);
            self.apply(Event::Closed { connection, cause });
            link.entries
                .into_iter()
                .for_each(|entry| self.outcome(entry));
        } else if dice < 6
            && let Some(entry) = link.entries.pop()
        {
            self.outcome(entry);
        } else if link.used > link.entries.len() as u32 || (dice > 8 && link.used > 0) {
            // A slot may be free before the outcome is known (pipelining).
            link.used -= 1;
            self.apply(Event::Free { connection });
        }
    }

    fn report_expired(&mut self) {
        let waiting = self
            .living
            .iter()
            .filter(|(_, (_, _, place))| *place == Where::Expired);
        let waiting: Vec<EntryId> = waiting.map(|(id, _)| *id).collect();
        if let Some(entry) = self.pick(&waiting) {
            self.outcome(entry);
        }
    }

    fn operator(&mut self) {
        let path = self.paths[self.random.below(6) as usize];
        let entries: Vec<EntryId> = self.living.keys().copied().collect();
        let Some(entry) = self.pick(&entries) else {
            return;
        };
        match self.random.below(6) {
            0 => self.apply(Event::Suspend { path }),
            1 | 2 => self.apply(Event::Resume { path }),
            3 => {
                if let Some((_, _, place @ Where::From(_))) = self.living.get_mut(&entry) {
                    *place = Where::From(Mono(self.now.0));
                }
                self.apply(Event::Requeue { entry });
            }
            4 => self.apply(Event::Expire { entry }),
            _ => self.late(),
        }
    }

    /// Events about what is gone change nothing.
    fn late(&mut self) {
        let before = self.queue.counters().stale_events;
        let (connection, entry) = (self.pick(&self.gone.clone()), self.pick(&self.dead.clone()));
        let (Some(connection), Some(entry)) = (connection, entry) else {
            return;
        };
        self.apply(Event::Free { connection });
        self.apply(Event::Connected {
            connection,
            slots: 3,
        });
        self.apply(Event::Closed {
            connection,
            cause: Cause::bare(CauseKind::Connection),
        });
        self.apply(Event::Outcome {
            entry,
            deferred: None,
            cause: Cause::SETTLED,
        });
        self.apply(Event::Requeue { entry });
        assert_eq!(self.queue.counters().stale_events, before + 5);
    }

    fn step(&mut self) {
        match self.random.below(20) {
            0..4 => self.enqueue(),
            4..14 => {
                let all: Vec<ConnectionId> = self.links.keys().copied().collect();
                if let Some(connection) = self.pick(&all) {
                    self.connection_step(connection);
                }
            }
            14 => self.report_expired(),
            15 => self.operator(),
            16 => self.now = Mono(self.now.0 + self.random.below(2_000_000_000)),
            _ => {
                if let Some(wake) = self.wake {
                    // Sometimes early, sometimes late, as timers are.
                    let early = self.random.below(4) == 0;
                    self.now = if early { self.now } else { self.now.max(wake) };
                    self.apply(Event::Wake);
                }
            }
        }
    }

    /// Everything heals: all that was accepted must end.
    fn heal(&mut self) {
        self.calm = true;
        for path in self.paths.clone() {
            self.apply(Event::Resume { path });
        }
        let end = self.now.after(SECOND * 3600);
        while !self.living.is_empty() || !self.links.is_empty() {
            assert!(self.now < end, "{} entries never ended", self.living.len());
            let links: Vec<ConnectionId> = self.links.keys().copied().collect();
            for connection in links {
                self.connection_step(connection);
            }
            self.report_expired();
            self.now = self.now.after(Duration::from_millis(50));
            if self.wake.is_some_and(|wake| wake <= self.now) {
                self.apply(Event::Wake);
            }
        }
    }

    /// The receiver's view: in every window no more than the burst and the rate.
    fn check_rate(&self) {
        let (messages, seconds, burst) = RATE;
        for times in self.sent.values() {
            for (first, from) in times.iter().enumerate() {
                for (count, until) in (1u128..).zip(&times[first..]) {
                    let elapsed = u128::from(until.0 - from.0);
                    let allowed = u128::from(burst)
                        + elapsed * u128::from(messages) / (u128::from(seconds) * 1_000_000_000);
                    assert!(count <= allowed, "{count} messages in {elapsed} ns");
                }
            }
        }
    }
}

// 60 seeds of 1,500 steps: dials that fail, connections that die with or without their outcomes,
// late events, an operator at play; then all heals. Every accepted entry ends exactly once.
#[test]
fn the_brain_agrees_with_the_model() {
    let (mut settled, mut limited) = (0, 0);
    for seed in 0..60 {
        let mut world = World::new(seed);
        for _ in 0..1500 {
            world.step();
        }
        world.heal();
        world.check_rate();
        assert_eq!(world.ended.len() as u64, world.enqueued, "seed {seed}");
        assert!(world.ended.values().all(|times| *times == 1), "seed {seed}");
        let counters = world.queue.counters();
        assert_eq!(
            (counters.entries, counters.deferred, counters.connections),
            (0, 0, 0)
        );
        settled += world.enqueued;
        limited += world.sent.values().map(Vec::len).sum::<usize>();
    }
    assert!(
        settled > 10_000 && limited > 500,
        "the driver was too tame: {settled}, {limited}"
    );
}

// One seed decides everything: the same run twice gives the same end.
#[test]
fn the_same_seed_gives_the_same_run() {
    let run = || {
        let mut world = World::new(99);
        for _ in 0..1500 {
            world.step();
        }
        (world.now, world.enqueued, format!("{:?}", world.living))
    };
    assert_eq!(run(), run());
}
