//! What the queue costs: a message through the brain, a deferred entry, a lookup of a path.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use postrider::message::MessageId;
use postrider::queue::{
    Action, Cause, CauseKind, ConnectionId, EntryId, Event, PathId, PathLimits, Queue, QueueConfig,
    Recipients,
};
use postrider::time::Mono;

const PATHS: usize = 64;

/// A queue with open connections on each path, and the messages to send over them.
struct Rig {
    queue: Queue<u64>,
    actions: Vec<Action>,
    paths: Vec<PathId>,
    now: u64,
    sent: u64,
}

impl Rig {
    fn new() -> Self {
        let limits = PathLimits {
            messages_per_connection_max: u32::MAX,
            connections_max: 1,
            rate: None,
        };
        let mut queue = Queue::new(QueueConfig {
            limits,
            ..QueueConfig::default()
        });
        let site = |n: usize| Arc::<str>::from(format!("site{n}.example"));
        let paths = (0..PATHS).map(|n| queue.path(0, &site(n))).collect();
        let mut rig = Self {
            queue,
            actions: Vec::new(),
            paths,
            now: 1 << 40,
            sent: 0,
        };
        for n in 0..PATHS {
            rig.enqueue(n, 0);
            let dial = rig.actions.drain(..).find_map(|action| match action {
                Action::Dial { connection, .. } => Some(connection),
                _ => None,
            });
            let connection = dial.expect("an empty path dials");
            rig.apply(Event::Connected {
                connection,
                slots: 4,
            });
            let (connection, entry) = rig.assigned().expect("an open connection is used");
            rig.settle(connection, entry);
        }
        rig
    }

    fn apply(&mut self, event: Event<u64>) {
        self.now += 50;
        self.queue.apply(event, Mono(self.now), &mut self.actions);
    }

    fn enqueue(&mut self, path: usize, due: u64) {
        self.sent += 1;
        self.apply(Event::Enqueue {
            path: self.paths[path % PATHS],
            message: MessageId::new(0, self.sent),
            recipients: Recipients::one(0),
            age: Duration::ZERO,
            attempts: 0,
            due: Mono(due),
            payload: self.sent,
        });
    }

    fn assigned(&mut self) -> Option<(ConnectionId, EntryId)> {
        self.actions.drain(..).find_map(|action| match action {
            Action::Assign { connection, entry } => Some((connection, entry)),
            _ => None,
        })
    }

    fn settle(&mut self, connection: ConnectionId, entry: EntryId) {
        self.apply(Event::Outcome {
            entry,
            deferred: None,
            cause: Cause::SETTLED,
        });
        self.apply(Event::Free { connection });
        self.actions.clear();
    }

    /// One message all the way: enqueue, assign, outcome, free.
    fn message(&mut self, path: usize) {
        self.enqueue(path, 0);
        let (connection, entry) = self.assigned().expect("a slot is free");
        self.settle(connection, entry);
    }
}

fn through(c: &mut Criterion) {
    let mut group = c.benchmark_group("queue");
    group.throughput(Throughput::Elements(1));
    let mut rig = Rig::new();
    let mut path = 0;
    group.bench_function("enqueue_assign_outcome_free", |b| {
        b.iter(|| {
            path += 1;
            rig.message(path);
        });
    });
    // The same beside a million deferred entries, whose memory the caches cannot hold.
    for n in 0..1_000_000u64 {
        let due = rig.now + 60_000_000_000 + n * 7_200_000;
        rig.enqueue(path + n as usize, due);
        rig.actions.clear();
    }
    group.bench_function("enqueue_assign_outcome_free_beside_1M_deferred", |b| {
        b.iter(|| {
            path += 1;
            rig.message(path);
        });
    });
    let site: Arc<str> = "site7.example".into();
    group.bench_function("path_lookup", |b| {
        b.iter(|| rig.queue.path(0, black_box(&site)))
    });
    group.finish();
}

fn deferred(c: &mut Criterion) {
    let mut group = c.benchmark_group("queue_deferred");
    const COUNT: u64 = 100_000;
    group.throughput(Throughput::Elements(COUNT));
    group.sample_size(10);
    // Recovery: entries with a future attempt, spread over four hours.
    group.bench_function("enqueue_100k_deferred", |b| {
        b.iter_batched_ref(
            Rig::new,
            |rig| {
                for n in 0..COUNT {
                    let due = rig.now + 60_000_000_000 + (n * 0x9e37_79b9 % COUNT) * 144_000_000;
                    rig.enqueue(n as usize, due);
                }
            },
            BatchSize::LargeInput,
        );
    });
    // 100,000 come due, are assigned, and are deferred again.
    group.bench_function("wake_assign_defer_100k", |b| {
        b.iter_batched_ref(
            || {
                let mut rig = Rig::new();
                for n in 0..COUNT {
                    rig.enqueue(n as usize, rig.now + 60_000_000_000 + n * 72_000);
                }
                rig.actions.clear();
                rig
            },
            |rig| {
                rig.now += 80_000_000_000;
                let mut done = 0;
                let mut todo = Vec::new();
                while done < COUNT {
                    rig.apply(Event::Wake);
                    todo.append(&mut rig.actions);
                    while let Some(action) = todo.pop() {
                        match action {
                            Action::Assign { connection, entry } => {
                                done += 1;
                                let deferred = Some(Recipients::one(0));
                                let cause = Cause::bare(CauseKind::Recipient);
                                rig.apply(Event::Outcome {
                                    entry,
                                    deferred,
                                    cause,
                                });
                                rig.apply(Event::Free { connection });
                            }
                            Action::Close { connection } => {
                                rig.apply(Event::Closed {
                                    connection,
                                    cause: Cause::IDLE,
                                });
                            }
                            Action::Dial { connection, .. } => {
                                rig.apply(Event::Connected {
                                    connection,
                                    slots: 4,
                                });
                            }
                            Action::Deferred { .. } | Action::Expired { .. } => {}
                            Action::AskForRoom { .. } => unreachable!("nothing is shared"),
                            Action::WakeAt(_) => {}
                        }
                        todo.append(&mut rig.actions);
                    }
                }
            },
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

criterion_group!(benches, through, deferred);
criterion_main!(benches);
