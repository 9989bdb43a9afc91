//! Tests of the whole brain: scenarios by hand, then a seeded driver against a naive model.

use std::collections::HashSet;

use super::*;
use crate::limits::{QUEUE_PATHS_VACANT_MAX, QUEUE_WORK_MAX};

const SECOND: Duration = Duration::from_secs(1);

fn at(seconds: u64) -> Mono {
    Mono(1_000_000_000_000).after(SECOND * u32::try_from(seconds).unwrap_or(u32::MAX))
}

fn retry(delays: &[u64], expiry: u64) -> RetryPolicy {
    let delays: Vec<Duration> = delays.iter().map(|s| Duration::from_secs(*s)).collect();
    match RetryPolicy::new(&delays, 10, Duration::from_secs(expiry)) {
        Ok(policy) => policy,
        Err(error) => panic!("{error}"),
    }
}

/// A queue with one path, and the hands to drive it.
struct Desk {
    queue: Queue<u64>,
    path: PathId,
    sent: u64,
}

impl Desk {
    fn new(config: QueueConfig) -> Self {
        let mut queue = Queue::new(config);
        let path = queue.path(1, &"mx#.example.net".into());
        Self {
            queue,
            path,
            sent: 0,
        }
    }

    fn apply(&mut self, event: Event<u64>, now: Mono) -> Vec<Action> {
        let mut actions = Vec::new();
        self.queue.apply(event, now, &mut actions);
        check(&mut self.queue);
        actions
    }

    fn enqueue(&mut self, age: Duration, due: Mono, now: Mono) -> Vec<Action> {
        self.sent += 1;
        let (path, payload) = (self.path, self.sent);
        let message = MessageId::new(1, payload);
        let recipients = Recipients::one(0);
        self.apply(
            Event::Enqueue {
                path,
                message,
                recipients,
                age,
                attempts: 0,
                due,
                payload,
            },
            now,
        )
    }

    fn fresh(&mut self, count: usize, now: Mono) -> Vec<Action> {
        (0..count)
            .flat_map(|_| self.enqueue(Duration::ZERO, Mono(0), now))
            .collect()
    }

    fn outcome(&mut self, entry: EntryId, kind: CauseKind, now: Mono) -> Vec<Action> {
        let deferred = (kind != CauseKind::Settled).then(|| Recipients::one(0));
        self.apply(
            Event::Outcome {
                entry,
                deferred,
                cause: Cause::bare(kind),
            },
            now,
        )
    }

    fn report(&self) -> PathReport<'_> {
        match self.queue.paths().find(|report| report.id == self.path) {
            Some(report) => report,
            None => panic!("the path is known"),
        }
    }
}

fn dials(actions: &[Action]) -> Vec<ConnectionId> {
    let dial = |action: &Action| match action {
        Action::Dial { connection, .. } => Some(*connection),
        _ => None,
    };
    actions.iter().filter_map(dial).collect()
}

fn assigned(actions: &[Action]) -> Vec<EntryId> {
    let entry = |action: &Action| match action {
        Action::Assign { entry, .. } => Some(*entry),
        _ => None,
    };
    actions.iter().filter_map(entry).collect()
}

fn woken_at(actions: &[Action]) -> Option<Mono> {
    actions.iter().rev().find_map(|action| match action {
        Action::WakeAt(at) => Some(*at),
        _ => None,
    })
}

fn expired(actions: &[Action]) -> usize {
    actions
        .iter()
        .filter(|action| matches!(action, Action::Expired { .. }))
        .count()
}

/// Every entry is on exactly one list, the one of its state; all counts agree.
fn check<T>(queue: &mut Queue<T>) {
    let mut listed = HashSet::new();
    let (mut deferred, mut connections) = (0, 0);
    let lists: Vec<(u32, State, List)> = queue
        .paths
        .iter_mut()
        .zip(0u32..)
        .flat_map(|(path, index)| {
            deferred += path.deferred;
            connections += path.connections;
            assert!(path.spill <= path.ready.len());
            assert!(path.dialing + path.leaving <= path.connections);
            let held = path.share.as_ref().map(|share| share.held());
            assert!(held.is_none_or(|held| held == path.connections));
            [
                (index, State::Ready, path.ready),
                (index, State::InFlight, path.in_flight),
                (index, State::Expired, path.expired),
            ]
        })
        .collect();
    for (path, state, list) in lists {
        for index in list.to_vec(&mut queue.slab) {
            assert!(listed.insert(index), "on two lists");
            let entry = queue.slab.at(index);
            assert_eq!((entry.path, entry.state), (path, state));
        }
    }
    let waiting = queue
        .entries()
        .filter(|(_, entry)| entry.state == State::Deferred)
        .count();
    assert_eq!(
        (deferred, queue.wheel.len()),
        (waiting as u32, waiting as u32)
    );
    assert_eq!(
        listed.len() + waiting,
        queue.slab.len() as usize,
        "on no list"
    );
    assert_eq!(connections as usize, queue.connections.len());
    let leaving: u32 = queue.paths.iter_mut().map(|path| path.leaving).sum();
    assert_eq!(leaving as usize, queue.connections.leaving());
}

// The worked example of the module's documentation.
#[test]
fn one_message_over_a_new_path() {
    let mut desk = Desk::new(QueueConfig::default());
    let dial = dials(&desk.fresh(1, at(0)));
    assert_eq!(dial.len(), 1);
    let connection = dial[0];
    let actions = desk.apply(
        Event::Connected {
            connection,
            slots: 2,
        },
        at(1),
    );
    let entry = assigned(&actions)[0];
    assert_eq!(*desk.queue.entry(entry).payload(), 1);
    assert_eq!(
        desk.queue.age(entry, at(1)).map(|age| age.as_secs()),
        Some(0)
    );
    assert_eq!(desk.outcome(entry, CauseKind::Settled, at(2)), []);
    assert!(desk.queue.get(entry).is_none());
    let wake = woken_at(&desk.apply(Event::Free { connection }, at(2)));
    assert_eq!(wake, Some(at(7)), "the idle timer");
    let wake = woken_at(&desk.apply(Event::Wake, at(6)));
    assert_eq!(wake, Some(at(7)), "woken too early: told again");
    assert_eq!(
        desk.apply(Event::Wake, at(7)),
        [Action::Close { connection }]
    );
    assert_eq!(
        desk.apply(
            Event::Closed {
                connection,
                cause: Cause::IDLE
            },
            at(8)
        ),
        []
    );
    assert_eq!(desk.queue.counters(), QueueCounters::default());
    // Late news about what is gone is counted, not believed.
    assert_eq!(desk.apply(Event::Free { connection }, at(9)), []);
    assert_eq!(desk.outcome(entry, CauseKind::Settled, at(9)), []);
    assert_eq!(desk.queue.counters().stale_events, 2);
}

// Two connections first; each window of successes doubles them, up to the limit.
#[test]
fn slow_start_doubles_to_the_limit() {
    let limits = PathLimits {
        connections_max: 7,
        ..PathLimits::default()
    };
    let mut desk = Desk::new(QueueConfig {
        limits,
        ..QueueConfig::default()
    });
    let mut open: Vec<ConnectionId> = dials(&desk.fresh(1000, at(0)));
    let mut steps = vec![open.len()];
    let mut busy = Vec::new();
    for connection in open.clone() {
        let actions = desk.apply(
            Event::Connected {
                connection,
                slots: 1,
            },
            at(0),
        );
        busy.extend(
            assigned(&actions)
                .into_iter()
                .map(|entry| (connection, entry)),
        );
    }
    for _ in 0..60 {
        let (connection, entry) = busy.remove(0);
        let mut actions = desk.outcome(entry, CauseKind::Settled, at(1));
        actions.extend(desk.apply(Event::Free { connection }, at(1)));
        busy.extend(
            assigned(&actions)
                .into_iter()
                .map(|entry| (connection, entry)),
        );
        for connection in dials(&actions) {
            open.push(connection);
            let actions = desk.apply(
                Event::Connected {
                    connection,
                    slots: 1,
                },
                at(1),
            );
            busy.extend(
                assigned(&actions)
                    .into_iter()
                    .map(|entry| (connection, entry)),
            );
        }
        if steps.last() != Some(&open.len()) {
            steps.push(open.len());
        }
    }
    assert_eq!(steps.first(), Some(&2));
    assert_eq!(steps.last(), Some(&7));
    assert!(steps.contains(&4));
    assert_eq!(desk.report().window, 7);
}

// Dials fail: the path sleeps longer each time, its entries stay ready; at the third failure in a
// row they count an attempt; in the end they expire, and nothing else happens to them.
#[test]
fn a_dead_site_sleeps_defers_and_expires() {
    let config = QueueConfig {
        retry: retry(&[60, 600], 3600),
        ..QueueConfig::default()
    };
    let mut desk = Desk::new(config);
    let mut now = at(0);
    let mut actions = desk.fresh(3, now);
    let (mut sleeps, mut deferrals, mut ended) = (Vec::new(), 0, 0);
    for _ in 0..200 {
        let dialled = dials(&actions);
        assert_eq!(assigned(&actions), []);
        deferrals += actions
            .iter()
            .filter(|a| matches!(a, Action::Deferred { .. }))
            .count();
        ended += expired(&actions);
        if ended == 3 {
            break;
        }
        actions = Vec::new();
        for connection in dialled {
            let cause = Cause::new(CauseKind::Connection, "connection refused");
            actions.extend(desk.apply(Event::DialFailed { connection, cause }, now));
            sleeps.extend(desk.report().backoff_until.map(|until| until.since(now)));
            deferrals += actions
                .iter()
                .filter(|a| matches!(a, Action::Deferred { .. }))
                .count();
            actions.retain(|action| !matches!(action, Action::Deferred { .. }));
        }
        if actions.iter().all(|a| matches!(a, Action::WakeAt(_))) {
            now = desk.queue.announced.max(now);
            actions = desk.apply(Event::Wake, now);
        }
    }
    assert_eq!(ended, 3);
    assert!((5..=6).contains(&sleeps[0].as_secs()), "{sleeps:?}");
    assert!(sleeps.iter().all(|s| *s <= SECOND * 360));
    assert!(
        sleeps.iter().any(|s| *s >= SECOND * 300),
        "bounded, but it grows that far"
    );
    assert!(
        deferrals >= 9,
        "each counts attempts while the site is dead: {deferrals}"
    );
    assert!((3590..=3700).contains(&now.since(at(0)).as_secs()));
    let report = desk.report();
    assert_eq!(
        report.last_error,
        Some((CauseKind::Connection, "connection refused"))
    );
    assert_eq!((report.expired, report.ready, report.deferred), (3, 0, 0));
    // A report that could not be made waits and comes again.
    let entry = desk.queue.entries().map(|(id, _)| id).min();
    let Some(entry) = entry else {
        panic!("three entries are left")
    };
    let actions = desk.outcome(entry, CauseKind::Local, now);
    assert!(actions.iter().any(|a| matches!(a, Action::Deferred { .. })));
    let again = desk.apply(Event::Wake, now.after(SECOND * 700));
    assert_eq!(expired(&again), 1);
    assert!(assigned(&again).is_empty());
}

// A 421 makes the path sleep; ready entries are not touched and go out afterwards. Several 421 at
// once are one failure.
#[test]
fn a_421_is_about_the_host() {
    let mut desk = Desk::new(QueueConfig::default());
    let open = dials(&desk.fresh(10, at(0)));
    let mut busy = Vec::new();
    for connection in &open {
        let event = Event::Connected {
            connection: *connection,
            slots: 1,
        };
        busy.extend(assigned(&desk.apply(event, at(0))));
    }
    for (connection, entry) in open.into_iter().zip(busy) {
        let actions = desk.outcome(entry, CauseKind::Host, at(1));
        assert!(matches!(actions[0], Action::Deferred { attempts: 1, .. }));
        let cause = Cause::new(CauseKind::Host, "421 4.7.0 slow down");
        assert_eq!(
            dials(&desk.apply(Event::Closed { connection, cause }, at(1))),
            []
        );
    }
    let report = desk.report();
    assert_eq!((report.ready, report.deferred, report.failures), (8, 2, 1));
    assert_eq!(report.counters.deferred_host, 2);
    let wake = report.backoff_until;
    let Some(wake) = wake else {
        panic!("it sleeps")
    };
    assert_eq!(dials(&desk.apply(Event::Wake, Mono(wake.0 - 1))), []);
    // One connection asks; two would keep a host that takes one at a time saying 421 for ever.
    assert_eq!(dials(&desk.apply(Event::Wake, wake)).len(), 1);
}

// What was not tried, and the rest of a message with too many recipients, goes out at once and
// counts no attempt; a host that takes none of the rest gets no busy loop.
#[test]
fn untried_and_next_batch_count_no_attempt() {
    let mut desk = Desk::new(QueueConfig::default());
    let Some(recipients) = Recipients::many(&[0, 1, 2]) else {
        panic!("three")
    };
    let (path, message) = (desk.path, MessageId::new(1, 1));
    let (age, due) = (Duration::ZERO, Mono(0));
    let event = Event::Enqueue {
        path,
        message,
        recipients,
        age,
        attempts: 0,
        due,
        payload: 1,
    };
    let connection = dials(&desk.apply(event, at(0)))[0];
    let entry = assigned(&desk.apply(
        Event::Connected {
            connection,
            slots: 1,
        },
        at(0),
    ))[0];
    let rest = |desk: &mut Desk, left: &[u32], kind| {
        let event = Event::Outcome {
            entry,
            deferred: Recipients::many(left),
            cause: Cause::bare(kind),
        };
        let mut actions = desk.apply(event, at(1));
        actions.extend(desk.apply(Event::Free { connection }, at(1)));
        actions
    };
    assert_eq!(
        assigned(&rest(&mut desk, &[0, 1, 2], CauseKind::NotTried)),
        [entry]
    );
    assert_eq!(
        assigned(&rest(&mut desk, &[1, 2], CauseKind::NextBatch)),
        [entry]
    );
    assert_eq!(desk.queue.entry(entry).attempts(), 0);
    assert_eq!(desk.queue.entry(entry).recipients().as_slice(), [1, 2]);
    let actions = rest(&mut desk, &[1, 2], CauseKind::NextBatch);
    assert!(matches!(actions[0], Action::Deferred { attempts: 1, .. }));
    assert_eq!(assigned(&actions), []);
}

// An attempt whose end is unknown is deferred like a 4xx and counted apart.
#[test]
fn ambiguous_outcomes_have_their_own_count() {
    let mut desk = Desk::new(QueueConfig::default());
    let connection = dials(&desk.fresh(1, at(0)))[0];
    let entry = assigned(&desk.apply(
        Event::Connected {
            connection,
            slots: 1,
        },
        at(0),
    ))[0];
    let actions = desk.outcome(entry, CauseKind::Ambiguous, at(1));
    let Action::Deferred {
        attempts: 1, next, ..
    } = actions[0]
    else {
        panic!("{actions:?}")
    };
    assert!((300..=330).contains(&next.since(at(1)).as_secs()));
    assert_eq!(desk.report().counters.ambiguous, 1);
    assert_eq!(desk.report().counters.deferred_recipient, 0);
}

// All descriptors are in use: an idle connection of another path is closed, and the waiting path
// dials as soon as it is gone.
#[test]
fn idle_connections_make_room() {
    let mut desk = Desk::new(QueueConfig {
        connections_total_max: 1,
        ..QueueConfig::default()
    });
    let connection = dials(&desk.fresh(1, at(0)))[0];
    let entry = assigned(&desk.apply(
        Event::Connected {
            connection,
            slots: 1,
        },
        at(0),
    ))[0];
    let first = desk.path;
    desk.path = desk.queue.path(1, &"other.example".into());
    assert_eq!(desk.fresh(1, at(0)), [], "all are busy");
    desk.outcome(entry, CauseKind::Settled, at(1));
    desk.apply(Event::Free { connection }, at(1));
    let actions = desk.fresh(1, at(1));
    assert_eq!(actions, [Action::Close { connection }]);
    let actions = desk.apply(
        Event::Closed {
            connection,
            cause: Cause::IDLE,
        },
        at(2),
    );
    assert_eq!(dials(&actions).len(), 1);
    assert_eq!(
        desk.queue.path_of_connection(dials(&actions)[0]),
        Some(desk.path)
    );
    assert_ne!(first, desk.path);
}

// The cap of messages per connection: closed when the last one has ended, never earlier.
#[test]
fn a_spent_connection_is_closed() {
    let limits = PathLimits {
        messages_per_connection_max: 3,
        ..PathLimits::default()
    };
    let mut desk = Desk::new(QueueConfig {
        limits,
        ..QueueConfig::default()
    });
    let dialled = dials(&desk.fresh(10, at(0)));
    let connection = dialled[0];
    let entries = assigned(&desk.apply(
        Event::Connected {
            connection,
            slots: 5,
        },
        at(0),
    ));
    assert_eq!(entries.len(), 3);
    let mut actions = Vec::new();
    for entry in entries {
        assert!(!actions.contains(&Action::Close { connection }));
        desk.outcome(entry, CauseKind::Settled, at(1));
        actions = desk.apply(Event::Free { connection }, at(1));
    }
    assert!(actions.contains(&Action::Close { connection }));
    let actions = desk.apply(
        Event::Closed {
            connection,
            cause: Cause::IDLE,
        },
        at(1),
    );
    assert!(!dials(&actions).is_empty());
}

// Recovery hands out what is past its expiry, in slices that one event can bear.
#[test]
fn a_herd_of_old_mail_expires_in_slices() {
    let mut desk = Desk::new(QueueConfig::default());
    desk.apply(Event::Suspend { path: desk.path }, at(0));
    let count = QUEUE_WORK_MAX as usize * 2 + 10;
    let old = Duration::from_secs(5 * 86_400);
    let mut queue = desk.queue;
    let mut actions = Vec::new();
    for payload in 0..count as u64 {
        let (path, message, recipients) =
            (desk.path, MessageId::new(1, payload), Recipients::one(0));
        let due = if payload % 2 == 0 { Mono(0) } else { at(60) };
        let event = Event::Enqueue {
            path,
            message,
            recipients,
            age: old,
            attempts: 9,
            due,
            payload,
        };
        queue.apply(event, at(1), &mut actions);
    }
    queue.apply(Event::Resume { path: desk.path }, at(2), &mut actions);
    let mut total = expired(&actions);
    assert!(total <= QUEUE_WORK_MAX as usize);
    for _ in 0..10 {
        actions.clear();
        let now = queue.announced.max(at(2));
        queue.apply(Event::Wake, now, &mut actions);
        assert!(expired(&actions) <= 2 * QUEUE_WORK_MAX as usize);
        total += expired(&actions);
        check(&mut queue);
    }
    assert_eq!(total, count);
}

// A suspended path does nothing; the operator may end, hurry and resume.
#[test]
fn operators_can_stop_hurry_and_end() {
    let mut desk = Desk::new(QueueConfig::default());
    let path = desk.path;
    desk.apply(Event::Suspend { path }, at(0));
    assert_eq!(desk.fresh(2, at(0)), []);
    desk.enqueue(Duration::ZERO, at(500), at(0));
    let ids: Vec<EntryId> = desk.queue.entries().map(|(id, _)| id).collect();
    assert_eq!(desk.queue.path_of(ids[2]), Some(path));
    assert_eq!(desk.queue.entry(ids[2]).state(), State::Deferred);
    assert!(expired(&desk.apply(Event::Expire { entry: ids[0] }, at(1))) == 1);
    desk.apply(Event::Requeue { entry: ids[2] }, at(1));
    assert_eq!(desk.queue.entry(ids[2]).state(), State::Ready);
    let connection = dials(&desk.apply(Event::Resume { path }, at(2)))[0];
    let order = assigned(&desk.apply(
        Event::Connected {
            connection,
            slots: 9,
        },
        at(2),
    ));
    assert_eq!(order, [ids[2], ids[1]], "the hurried one first");
    assert_eq!(
        desk.apply(Event::Expire { entry: ids[1] }, at(2)),
        [],
        "in flight: let it end"
    );
}

// Vacant paths are forgotten, the longest unused first; names are bounded in memory, not in number.
#[test]
fn vacant_paths_are_forgotten() {
    let mut queue: Queue<u64> = Queue::new(QueueConfig::default());
    let first = queue.path(1, &"first.example".into());
    let busy = queue.path(1, &"busy.example".into());
    let (age, due, payload) = (Duration::ZERO, Mono(0), 1);
    let (message, recipients) = (MessageId::new(1, 1), Recipients::one(0));
    let event = Event::Enqueue {
        path: busy,
        message,
        recipients,
        age,
        attempts: 0,
        due,
        payload,
    };
    queue.apply(event, at(0), &mut Vec::new());
    for n in 0..QUEUE_PATHS_VACANT_MAX + 10 {
        queue.path(1, &format!("d{n}.example").into());
    }
    assert_eq!(queue.site(first), None);
    assert_eq!(queue.site(busy).map(|site| &**site), Some("busy.example"));
    assert_eq!(queue.source(busy), Some(1));
    assert!(queue.paths().count() <= QUEUE_PATHS_VACANT_MAX as usize + 3);
    let mut actions = Vec::new();
    queue.apply(Event::Suspend { path: first }, at(0), &mut actions);
    assert_eq!(queue.counters().stale_events, 1);
}

#[test]
#[should_panic(expected = "the driver did not have")]
fn an_outcome_without_an_assign_is_a_bug() {
    let mut desk = Desk::new(QueueConfig::default());
    desk.fresh(1, at(0));
    let ids: Vec<EntryId> = desk.queue.entries().map(|(id, _)| id).collect();
    desk.outcome(ids[0], CauseKind::Settled, at(0));
}

mod grants;
mod model;
mod trouble;
