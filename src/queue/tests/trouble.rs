//! Tests of what a path does when its host refuses or ends connections.

use super::*;
use crate::limits::{QUEUE_RETURNS_MAX, QUEUE_STUMBLES_MAX};

const LIMIT: &str = "421 4.7.0 too many connections";

impl Desk {
    fn connect(&mut self, connection: ConnectionId, now: Mono) -> Vec<Action> {
        let slots = 1;
        self.apply(Event::Connected { connection, slots }, now)
    }

    fn refuse(&mut self, connection: ConnectionId, now: Mono) -> Vec<Action> {
        let cause = Cause::new(CauseKind::Host, LIMIT);
        self.apply(Event::DialFailed { connection, cause }, now)
    }

    fn end(&mut self, connection: ConnectionId, kind: CauseKind, now: Mono) -> Vec<Action> {
        let cause = Cause::new(kind, LIMIT);
        self.apply(Event::Closed { connection, cause }, now)
    }

    /// A message is taken on a connection; what follows, its next message among that.
    fn settle(&mut self, connection: ConnectionId, entry: EntryId, now: Mono) -> Vec<Action> {
        let mut actions = self.outcome(entry, CauseKind::Settled, now);
        actions.extend(self.apply(Event::Free { connection }, now));
        actions
    }

    /// One connection that has taken one message and has the next; and the other dials.
    fn working(&mut self, now: Mono) -> (ConnectionId, EntryId, Vec<ConnectionId>) {
        let mut dialled = dials(&self.fresh(50, now));
        let connection = dialled.remove(0);
        let entry = assigned(&self.connect(connection, now))[0];
        let actions = self.settle(connection, entry, now);
        dialled.extend(dials(&actions));
        (connection, assigned(&actions)[0], dialled)
    }
}

// A host that takes ten messages on a connection and then says 421 wants another connection,
// nothing else: no sleep, no attempt counted, and a dial at once.
#[test]
fn a_connection_that_took_mail_is_only_used_up() {
    let mut desk = Desk::new(QueueConfig {
        connections_initial: 1,
        limits: PathLimits {
            connections_max: 1,
            ..PathLimits::default()
        },
        ..QueueConfig::default()
    });
    let (connection, entry, _) = desk.working(at(0));
    let actions = desk.end(connection, CauseKind::Spent, at(1));
    assert_eq!(dials(&actions).len(), 1, "the next connection at once");
    let next = dials(&actions)[0];
    assert_eq!(desk.outcome(entry, CauseKind::Spent, at(1)), []);
    let report = desk.report();
    assert_eq!((report.ready, report.deferred, report.failures), (49, 0, 0));
    assert_eq!(report.backoff_until, None);
    assert_eq!(report.counters.spent, 1);
    assert_eq!(
        assigned(&desk.connect(next, at(1))),
        [entry],
        "it goes first"
    );
    assert_eq!(desk.queue.entry(entry).attempts(), 0);
}

// The message may be what ends connections: it is put off after some times.
#[test]
fn an_entry_goes_back_a_bounded_number_of_times() {
    let mut desk = Desk::new(QueueConfig::default());
    let (mut connection, mut entry, mut others) = desk.working(at(0));
    for _ in 0..QUEUE_RETURNS_MAX {
        let mut actions = desk.end(connection, CauseKind::Spent, at(1));
        actions.extend(desk.outcome(entry, CauseKind::Spent, at(1)));
        assert!(!actions.iter().any(|a| matches!(a, Action::Deferred { .. })));
        others.extend(dials(&actions));
        connection = others.remove(0);
        entry = assigned(&desk.connect(connection, at(1)))[0];
    }
    desk.end(connection, CauseKind::Spent, at(1));
    let actions = desk.outcome(entry, CauseKind::Spent, at(1));
    let counted = |action: &Action| matches!(action, Action::Deferred { attempts: 1, .. });
    assert!(actions.iter().any(counted));
}

// A host that refuses more connections than it has open gets no more, and its path does not sleep;
// one more is tried after a second, and after two when that was refused too.
#[test]
fn a_refused_dial_shrinks_a_path_that_works() {
    let mut desk = Desk::new(QueueConfig::default());
    let (connection, mut entry, others) = desk.working(at(0));
    assert!(!others.is_empty());
    let mut actions = Vec::new();
    for other in others {
        actions.extend(desk.refuse(other, at(0)));
    }
    assert_eq!(dials(&actions), []);
    let report = desk.report();
    assert_eq!((report.backoff_until, report.failures), (None, 0));
    assert_eq!((report.deferred, report.connections), (0, 1));
    let mut tries = Vec::new();
    for tenth in 1..=80 {
        let now = at(0).after(Duration::from_millis(100) * tenth);
        let mut actions = desk.apply(Event::Wake, now);
        actions.extend(desk.settle(connection, entry, now));
        if let Some(next) = assigned(&actions).first() {
            entry = *next;
        }
        for dial in dials(&actions) {
            tries.push(tenth);
            assert_eq!(dials(&desk.refuse(dial, now)), []);
        }
        if desk.report().ready == 0 {
            break;
        }
    }
    assert_eq!(tries, [10, 30], "one, and the next after twice the time");
}

// What one more connection is allowed, and taken, comes back by ones.
#[test]
fn a_path_grows_again_by_ones() {
    let mut desk = Desk::new(QueueConfig::default());
    let (_, _, others) = desk.working(at(0));
    for other in others {
        desk.refuse(other, at(0));
    }
    for second in 1..=2 {
        let dialled = dials(&desk.apply(Event::Wake, at(second)));
        assert_eq!(dialled.len(), 1);
        let actions = desk.connect(dialled[0], at(second));
        let entry = assigned(&actions)[0];
        let actions = desk.settle(dialled[0], entry, at(second));
        assert_eq!(assigned(&actions).len(), 1);
        assert_eq!(dials(&actions), [], "not before the next second");
    }
}

// The only connection is gone and the next is refused: short rests first, for the host took mail a
// moment ago; then it is down.
#[test]
fn a_path_stumbles_before_it_falls() {
    let mut desk = Desk::new(QueueConfig::default());
    let (connection, entry, others) = desk.working(at(0));
    let mut pending = others;
    pending.extend(dials(&desk.end(connection, CauseKind::Spent, at(0))));
    pending.extend(dials(&desk.outcome(entry, CauseKind::Spent, at(0))));
    let (mut rests, mut now) = (Vec::new(), at(0));
    while rests.len() < 6 {
        for dial in std::mem::take(&mut pending) {
            desk.refuse(dial, now);
        }
        let Some(until) = desk.report().backoff_until else {
            panic!("nothing is open: it rests")
        };
        rests.push(until.since(now).as_millis());
        let expected = u32::try_from(rests.len())
            .unwrap_or(0)
            .saturating_sub(QUEUE_STUMBLES_MAX);
        assert_eq!(desk.report().failures, expected);
        now = until;
        pending = dials(&desk.apply(Event::Wake, now));
        assert_eq!(pending.len(), 1, "one asks");
    }
    let least = [500, 1000, 2000, 4000, 5000, 10_000];
    for (rest, least) in rests.iter().zip(least) {
        assert!((least..=least * 12 / 10).contains(rest), "{rests:?}");
    }
}

// One of the first two connections is refused, the other greets: it gets mail at once.
#[test]
fn a_connection_that_greets_is_not_left_asleep() {
    let mut desk = Desk::new(QueueConfig::default());
    let dialled = dials(&desk.fresh(10, at(0)));
    desk.refuse(dialled[0], at(0));
    assert!(desk.report().backoff_until.is_some());
    let actions = desk.connect(dialled[1], at(0));
    assert_eq!((assigned(&actions).len(), dials(&actions).len()), (1, 0));
}

// Two shards, one host with few connections: the shard that is refused knows that the other's
// work, and waits for its turn.
#[test]
fn shards_share_what_a_host_takes() {
    let grants = Arc::new(Grants::default());
    let site: Arc<str> = "mx#.example.net".into();
    let shard = || {
        let mut queue = Queue::new(QueueConfig::default()).sharing(Arc::clone(&grants));
        let path = queue.path(1, &site);
        let sent = 0;
        Desk { queue, path, sent }
    };
    let (mut one, mut other) = (shard(), shard());
    let dialled = dials(&other.fresh(10, at(0)));
    let (connection, _, more) = one.working(at(0));
    for dial in more {
        one.refuse(dial, at(0));
    }
    for dial in dialled {
        assert_eq!(dials(&other.refuse(dial, at(0))), []);
    }
    assert_eq!(other.report().backoff_until, None);
    assert_eq!(other.report().deferred, 0);
    // The first shard has done with its connection, and the second takes its place.
    one.apply(Event::Suspend { path: one.path }, at(0));
    one.end(connection, CauseKind::Spent, at(0));
    let later = at(0).after(Duration::from_millis(30));
    assert_eq!(dials(&other.apply(Event::Wake, later)).len(), 1);
}
