//! The driver in the simulator: crashes at any await, disks that fail, and a ledger.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use super::{ReleaseError, Released, Spooler, SpoolerConfig};
use crate::engine::sim::{CrashKind, DiskFaults, RunEnd, SimHost, SimOptions, SimPort, SimWorld};
use crate::engine::{Class, Port};
use crate::message::{Address, Content, Envelope, MessageId, Recipient};
use crate::spool::format::Log;
use crate::spool::{Alarm, AppendError, Damage, Extent, ReadError, Settlement, SettlementKind};
use crate::time::{Mono, Wall};

#[derive(Default)]
struct Ledger {
    /// What was acknowledged, by id.
    stored: BTreeMap<MessageId, Vec<u8>>,
    /// What was asked to be settled, and what was said to be.
    asked: BTreeSet<MessageId>,
    settled: BTreeSet<MessageId>,
    lives: u64,
    /// Seconds that mail was waited for, and how much of it came late.
    waits: u64,
    late: u64,
    refused: u64,
}

fn config() -> SpoolerConfig {
    SpoolerConfig {
        directory: PathBuf::from("/spool/shard-000"),
        shard: 0,
        segment_bytes: 1 << 20,
        low_water_bytes: 0,
        settle_wait: Duration::from_millis(2),
    }
}

fn envelope() -> Envelope {
    let address = Address::parse_path(b"a@example.com").expect("an address");
    Envelope {
        recipients: vec![Recipient::new(address)],
        ..Envelope::default()
    }
}

/// One life of the process: recovers, compares with the ledger, works until the end.
async fn life(port: SimPort, ledger: Rc<RefCell<Ledger>>, done: Rc<Cell<bool>>) {
    let opened = Spooler::open(port.clone(), config()).await;
    // A disk that fails may fail at boot: the next life tries again.
    let Ok((spooler, recovered)) = opened else {
        return;
    };
    let mut cursor = recovered.cursor;
    let mut found = BTreeSet::new();
    loop {
        let batch = spooler.load(&mut cursor, 7).await;
        if batch.is_empty() {
            break;
        }
        for loaded in batch {
            assert_eq!(loaded.envelope, envelope());
            assert!(found.insert(loaded.queued.id), "loaded once");
        }
    }
    // No crash damages anything; what the disk did not give is late.
    let worse = |damage: &Damage| !matches!(damage, Damage::Torn(_) | Damage::Unreadable(..));
    assert!(
        !recovered.report.damage.iter().any(worse),
        "{:?}",
        recovered.report
    );
    wait_for_late(&spooler, &port, &ledger, &mut found).await;
    let missing: Vec<MessageId> = {
        let mut ledger = ledger.borrow_mut();
        ledger.lives += 1;
        assert!(found.is_disjoint(&ledger.settled), "settled mail came back");
        let owed = ledger.stored.keys().filter(|id| !ledger.asked.contains(id));
        owed.filter(|id| !found.contains(id)).copied().collect()
    };
    for id in missing {
        // A head that the disk did not give is not loaded; it is there all the same.
        assert_ne!(
            spooler.read(id).await.err(),
            Some(ReadError::Gone),
            "{id} is lost"
        );
    }
    let settled = Rc::clone(&ledger);
    spooler.on_settled(move |settlement| {
        assert!(
            settled.borrow_mut().settled.insert(settlement.id),
            "told once"
        );
    });
    let workers = Rc::new(Cell::new(3));
    for worker in 0..3 {
        let task = work(spooler.clone(), port.clone(), Rc::clone(&ledger), worker);
        let (workers, done, spooler) = (Rc::clone(&workers), Rc::clone(&done), spooler.clone());
        port.spawn(Class::Ingress, async move {
            task.await;
            workers.set(workers.get() - 1);
            if workers.get() == 0 {
                spooler.close().await;
                done.set(true);
            }
        });
    }
}

/// Collects what comes late, until nothing does any more.
async fn wait_for_late(
    spooler: &Spooler<SimPort>,
    port: &SimPort,
    ledger: &Rc<RefCell<Ledger>>,
    found: &mut BTreeSet<MessageId>,
) {
    let late = Rc::new(RefCell::new(Vec::new()));
    let (reader, list) = (spooler.clone(), Rc::clone(&late));
    port.spawn(Class::Background, async move {
        loop {
            let loaded = reader.load_late(3).await;
            list.borrow_mut()
                .extend(loaded.into_iter().map(|l| l.queued.id));
        }
    });
    while spooler.status().alarms.contains(&Alarm::Unread) {
        ledger.borrow_mut().waits += 1;
        port.sleep_until(port.now().after(Duration::from_secs(1)))
            .await;
    }
    for id in late.borrow_mut().drain(..) {
        ledger.borrow_mut().late += 1;
        assert!(found.insert(id), "loaded once");
    }
}

async fn work(spooler: Spooler<SimPort>, port: SimPort, ledger: Rc<RefCell<Ledger>>, worker: u64) {
    for round in 0..40 {
        let id = spooler.next_id();
        let len = if port.random().is_multiple_of(30) {
            400_000
        } else {
            port.random() % 9_000
        };
        let mut bytes = format!("Subject: {worker} {round} {id}\r\n\r\n").into_bytes();
        bytes.resize(bytes.len() + len as usize, b'x');
        let content = Content::from(bytes.clone());
        match spooler.append(id, &envelope(), &content, Wall(1)).await {
            Ok(stored) => {
                assert_eq!(stored.id(), id);
                assert!(ledger.borrow_mut().stored.insert(id, bytes).is_none());
            }
            Err(AppendError::Failed | AppendError::Full) => {
                ledger.borrow_mut().refused += 1;
                port.sleep_until(port.now().after(Duration::from_millis(300)))
                    .await;
            }
            Err(AppendError::TooLarge) => unreachable!("nothing is that large"),
        }
        let pick: Option<MessageId> = {
            let ledger = ledger.borrow();
            let open = ledger.stored.keys().filter(|id| !ledger.asked.contains(id));
            let open: Vec<MessageId> = open.copied().collect();
            if open.is_empty() {
                None
            } else {
                Some(open[port.random() as usize % open.len()])
            }
        };
        let Some(id) = pick else { continue };
        match spooler.read(id).await {
            Ok(message) => {
                assert_eq!(
                    message.content,
                    ledger.borrow().stored[&id],
                    "content of {id}"
                );
                if ledger.borrow_mut().asked.insert(id) {
                    let kind = SettlementKind::Delivered;
                    spooler.settle(Settlement {
                        id,
                        recipient: 0,
                        kind,
                    });
                }
            }
            // Another worker settled it meanwhile, or the disk does not give it now.
            Err(ReadError::Gone) => assert!(ledger.borrow().asked.contains(&id), "{id} is gone"),
            Err(ReadError::Io) => {}
            Err(ReadError::Damaged) => panic!("{id} is damaged"),
        }
    }
}

fn run(seed: u64, faults: impl Fn(u64) -> DiskFaults, crashes: u64) -> (Ledger, u64) {
    let world = SimWorld::new(seed, SimOptions::calm());
    let host = world.host("mta");
    host.make_directory(&config().directory);
    host.set_disk(faults(seed));
    let ledger = Rc::new(RefCell::new(Ledger::default()));
    for round in 0..crashes {
        let polls = 1 + world.random().below(4_000);
        let kind = if world.random().coin() {
            CrashKind::PowerCut
        } else {
            CrashKind::Kill
        };
        start(&world, &host, &ledger);
        host.crash_after(polls, kind);
        let end = Mono(world.now().0).after(Duration::from_secs(60));
        world.run_until(end, 2_000_000, || host.crashes() > round);
        if host.crashes() == round {
            host.crash(kind);
        }
    }
    host.set_disk(DiskFaults::calm());
    let done = start(&world, &host, &ledger);
    let end = Mono(world.now().0).after(Duration::from_secs(600));
    let ended = world.run_until(end, 5_000_000, || done.get());
    assert_eq!(
        ended,
        RunEnd::Reached,
        "seed {seed}: the last life ends in order"
    );
    let hash = world.trace_hash();
    drop(world);
    (ledger.take(), hash)
}

fn start(world: &SimWorld, host: &SimHost, ledger: &Rc<RefCell<Ledger>>) -> Rc<Cell<bool>> {
    let port = host.port();
    let done = Rc::new(Cell::new(false));
    assert!(world.now() >= Mono(0));
    port.spawn(
        Class::Control,
        life(port.clone(), Rc::clone(ledger), Rc::clone(&done)),
    );
    done
}

fn failing(seed: u64) -> DiskFaults {
    let mut faults = DiskFaults::calm();
    if seed % 3 == 1 {
        faults.write_error = 20_000;
        faults.directory_error = 20_000;
    }
    if seed % 3 == 2 {
        faults.read_error = 20_000;
        faults.outage = 500_000;
        faults.outage_time = 1_000_000_000..=25_000_000_000;
        faults.slow = 50_000;
        faults.slow_latency = 20_000_000..=2_000_000_000;
    }
    faults
}

// Power cuts and kills at any await, on calm, failing and slow disks: the ledger holds.
#[test]
fn ledger_holds_through_crashes() {
    let (mut stored, mut late) = (0, 0);
    for seed in 0..60 {
        let (ledger, _) = run(seed, failing, 4);
        stored += ledger.stored.len();
        late += ledger.late;
        assert!(ledger.lives > 0);
    }
    assert!(stored > 2_000, "{stored} messages were stored");
    assert!(late > 0, "nothing came late");
}

// A run is decided by its seed alone.
#[test]
fn runs_replay() {
    let (first, hash) = run(7, failing, 2);
    let (second, again) = run(7, failing, 2);
    assert_eq!((hash, first.stored.len()), (again, second.stored.len()));
}

// A disk that is full refuses mail, keeps what it has, and takes mail again when there is space.
#[test]
fn full_disk_refuses_and_recovers() {
    let faults = |_| {
        let mut faults = DiskFaults::calm();
        faults.capacity = Some(6 << 20);
        faults
    };
    let (ledger, _) = run(3, faults, 3);
    assert!(ledger.refused > 0, "the disk was full");
    assert!(!ledger.stored.is_empty());
}

/// What one life of the process loads: at once, and late. Ends when nothing is unread.
fn found(world: &SimWorld, host: &SimHost) -> (BTreeSet<MessageId>, BTreeSet<MessageId>) {
    let port = host.port();
    let result = Rc::new(RefCell::new(None));
    let (shared, inner) = (Rc::clone(&result), port.clone());
    let disk = host.clone();
    port.spawn(Class::Control, async move {
        let (spooler, recovered) = Spooler::open(inner.clone(), config()).await.expect("opens");
        let mut cursor = recovered.cursor;
        let mut at_once = BTreeSet::new();
        loop {
            let batch = spooler.load(&mut cursor, 100).await;
            if batch.is_empty() {
                break;
            }
            at_once.extend(batch.into_iter().map(|loaded| loaded.queued.id));
        }
        let unread = spooler.status().alarms.contains(&Alarm::Unread);
        // Nothing is forgotten however much happens meanwhile.
        for id in at_once.iter().copied() {
            let kind = SettlementKind::Delivered;
            spooler.settle(Settlement {
                id,
                recipient: 0,
                kind,
            });
        }
        inner
            .sleep_until(inner.now().after(Duration::from_secs(30)))
            .await;
        assert_eq!(spooler.status().alarms.contains(&Alarm::Unread), unread);
        disk.set_disk(DiskFaults::calm());
        let mut late = BTreeSet::new();
        wait_for_late(&spooler, &inner, &Rc::default(), &mut late).await;
        for id in late.iter().copied() {
            assert!(spooler.read(id).await.is_ok(), "{id}");
        }
        shared.replace(Some((at_once, late)));
    });
    let end = Mono(world.now().0).after(Duration::from_secs(3_600));
    world.run_until(end, 5_000_000, || result.borrow().is_some());
    result.take().expect("the life ends")
}

// A disk that gives few bytes at the start and all of them later: each message is found once, at
// once or late, and none that was settled comes back, in this life or the next.
#[test]
fn what_cannot_be_read_at_the_start_is_late() {
    let mut came_late = 0;
    for seed in 0..30 {
        let world = SimWorld::new(seed, SimOptions::calm());
        let host = world.host("mta");
        host.make_directory(&config().directory);
        let ledger = Rc::new(RefCell::new(Ledger::default()));
        let done = start(&world, &host, &ledger);
        let end = Mono(world.now().0).after(Duration::from_secs(600));
        assert_eq!(
            world.run_until(end, 5_000_000, || done.get()),
            RunEnd::Reached
        );
        host.crash(CrashKind::PowerCut);
        let owed: BTreeSet<MessageId> = {
            let ledger = ledger.borrow();
            let owed = ledger.stored.keys().filter(|id| !ledger.asked.contains(id));
            owed.copied().collect()
        };
        let mut faults = DiskFaults::calm();
        faults.read_error = 300_000;
        faults.outage = 1_000_000;
        faults.outage_time = 1_000_000_000_000..=1_000_000_000_000;
        host.set_disk(faults);
        let (at_once, late) = found(&world, &host);
        came_late += late.len();
        assert!(at_once.is_disjoint(&late), "seed {seed}: found twice");
        let all: BTreeSet<MessageId> = at_once.union(&late).copied().collect();
        // Mail whose settlements were not given in time may be seen again, as late ones are not.
        assert!(all.is_superset(&owed), "seed {seed}: lost");
        assert!(late.is_subset(&owed), "seed {seed}: came back");
        host.crash(CrashKind::PowerCut);
        let (next, later) = found(&world, &host);
        assert_eq!(
            (next, later),
            (late, BTreeSet::new()),
            "seed {seed}: the next life"
        );
    }
    assert!(came_late > 30, "{came_late} came late");
}

/// Stores a message with this content.
async fn store(spooler: &Spooler<SimPort>, content: &[u8]) -> MessageId {
    let id = spooler.next_id();
    let content = Content::from(content.to_vec());
    let stored = spooler.append(id, &envelope(), &content, Wall(1)).await;
    stored.expect("a calm disk").id()
}

fn text_of(number: u64) -> Vec<u8> {
    let mut text = format!("Subject: {number}\r\n\r\n").into_bytes();
    text.resize(3_000, b'x');
    text
}

/// Runs one life to the end of its task.
fn to_the_end<T: 'static>(
    world: &SimWorld,
    host: &SimHost,
    task: impl AsyncFnOnce(SimPort) -> T + 'static,
) -> T {
    let port = host.port();
    let result = Rc::new(RefCell::new(None));
    let (shared, inner) = (Rc::clone(&result), port.clone());
    port.spawn(Class::Control, async move {
        let value = task(inner).await;
        shared.replace(Some(value));
    });
    let end = Mono(world.now().0).after(Duration::from_secs(3_600));
    world.run_until(end, 20_000_000, || result.borrow().is_some());
    result.take().expect("the task ends")
}

/// Flips a bit `at` bytes into the segment of a record.
fn flip(disk: &SimHost, record: &Extent, at: u32) {
    let name = Log::Message.file_name(record.location.segment);
    let path = config().directory.join(name);
    assert!(disk.flip_bit(&path, u64::from(at)));
}

/// Stores messages, settles most of them, and waits until stragglers are being copied while their
/// originals are still there; the disk stops that half way. The numbers of those that wait.
async fn stragglers(
    spooler: &Spooler<SimPort>,
    port: &SimPort,
    disk: &SimHost,
) -> BTreeMap<MessageId, u64> {
    let mut waiting = BTreeMap::new();
    for number in 0..3_000 {
        let id = store(spooler, &text_of(number)).await;
        waiting.insert(id, number);
    }
    for id in waiting.keys().filter(|id| id.sequence() % 5 > 1) {
        let kind = SettlementKind::Delivered;
        spooler.settle(Settlement {
            id: *id,
            recipient: 0,
            kind,
        });
    }
    waiting.retain(|id, _| id.sequence() % 5 <= 1);
    for _ in 0..5_000 {
        port.sleep_until(port.now().after(Duration::from_micros(50)))
            .await;
        if pairs(spooler, &waiting).is_empty() {
            continue;
        }
        let mut faults = DiskFaults::calm();
        faults.read_error = 1_000_000;
        disk.set_disk(faults);
        port.sleep_until(port.now().after(Duration::from_millis(20)))
            .await;
        disk.set_disk(DiskFaults::calm());
        if !pairs(spooler, &waiting).is_empty() {
            return waiting;
        }
    }
    panic!("no stragglers are copied");
}

/// Messages that have another record than the one that counts: both.
fn pairs(
    spooler: &Spooler<SimPort>,
    waiting: &BTreeMap<MessageId, u64>,
) -> Vec<(MessageId, Extent, Extent)> {
    let core = spooler.0.core.borrow();
    let pair = |id: &MessageId| {
        let (_, other) = *core.other_records(*id).first()?;
        Some((*id, core.find(*id)?, other))
    };
    waiting.keys().filter_map(pair).collect()
}

// The record that counts is rotten, and the one that it was copied from is whole: the message is
// read from that one; when that one rots too it is damaged.
#[test]
fn a_rotten_copy_is_replaced_by_its_original() {
    let world = SimWorld::new(1, SimOptions::calm());
    let host = world.host("mta");
    host.make_directory(&config().directory);
    let disk = host.clone();
    to_the_end(&world, &host, async move |port| {
        let (spooler, _) = Spooler::open(port.clone(), config()).await.expect("opens");
        let waiting = stragglers(&spooler, &port, &disk).await;
        let (id, copy, original) = pairs(&spooler, &waiting)[0];
        flip(&disk, &copy, copy.content);
        let read = spooler.read(id).await.expect("whole");
        assert!(read.content == text_of(waiting[&id]));
        drop(read);
        let status = spooler.status();
        assert_eq!((status.quarantined, status.damaged_messages), (0, 1));
        assert!(status.alarms.contains(&Alarm::DamageFound));
        flip(&disk, &original, original.content);
        let again = spooler.read(id).await.map(|_| ());
        assert_eq!(again, Err(ReadError::Damaged));
        assert_eq!(spooler.status().quarantined, 1);
    });
}

// A crash while stragglers were copied, and then rot in the records that count, some in the head
// and some in the content: all messages are loaded, once, and read from the other records.
#[test]
fn rotten_originals_are_replaced_by_their_copies() {
    let mut replaced = 0;
    for seed in 0..20 {
        let world = SimWorld::new(seed, SimOptions::calm());
        let host = world.host("mta");
        host.make_directory(&config().directory);
        let disk = host.clone();
        let waiting = to_the_end(&world, &host, async move |port| {
            let (spooler, _) = Spooler::open(port.clone(), config()).await.expect("opens");
            stragglers(&spooler, &port, &disk).await
        });
        host.crash(CrashKind::PowerCut);
        let disk = host.clone();
        replaced += to_the_end(&world, &host, async move |port| {
            let (spooler, recovered) = Spooler::open(port.clone(), config()).await.expect("opens");
            // What is spent is recycled first.
            port.sleep_until(port.now().after(Duration::from_secs(1)))
                .await;
            let rotten = pairs(&spooler, &waiting);
            for (at, (_, counts, _)) in rotten.iter().enumerate() {
                let head = counts.location.offset + 70;
                flip(
                    &disk,
                    counts,
                    if at % 2 == 0 { head } else { counts.content },
                );
            }
            let mut cursor = recovered.cursor;
            let mut loaded = Vec::new();
            loop {
                let batch = spooler.load(&mut cursor, 50).await;
                if batch.is_empty() {
                    break;
                }
                for message in batch {
                    let id = message.queued.id;
                    assert_eq!(message.envelope, envelope());
                    // Some are read while the others are being loaded.
                    let read = spooler.read(id).await.expect("whole");
                    // Settlements of the last moment may have been lost.
                    if let Some(number) = waiting.get(&id) {
                        assert_eq!(read.content[..], text_of(*number));
                        loaded.push(id);
                    }
                }
            }
            loaded.sort_unstable();
            let expected: Vec<MessageId> = waiting.keys().copied().collect();
            assert_eq!(loaded, expected, "seed {seed}");
            assert_eq!(spooler.status().quarantined, 0, "seed {seed}");
            rotten.len()
        });
    }
    assert!(replaced > 100, "{replaced} replaced");
}

// A node that crashes soon after each start leaves files behind that it was making. They are gone
// at the next start, or the disk would fill, and each start take longer.
#[test]
fn crashes_leave_no_files_behind() {
    let world = SimWorld::new(1, SimOptions::calm());
    let host = world.host("mta");
    host.make_directory(&config().directory);
    for life in 0..20 {
        to_the_end(&world, &host, async move |port| {
            let (spooler, recovered) = Spooler::open(port.clone(), config()).await.expect("opens");
            assert_eq!(recovered.report.damage, [], "life {life}");
            store(&spooler, &text_of(life)).await;
            port.sleep_until(port.now().after(Duration::from_millis(10)))
                .await;
        });
        host.crash(CrashKind::Kill);
    }
    let waiting = to_the_end(&world, &host, async move |port| {
        let (_, recovered) = Spooler::open(port.clone(), config()).await.expect("opens");
        recovered.queued_messages
    });
    assert_eq!(waiting, 20);
    let files = host.port().list(&config().directory).expect("it is there");
    // Each life has a segment of its own in each log, and the state log is compacted later.
    let mail = files.iter().filter(|name| name.starts_with("mail-"));
    assert!(
        mail.count() < 20 + 5 && files.len() < 20 * 3 + 10,
        "{files:?}"
    );
}

// Each life leaves segments of settlements to the next, which writes down anew what still counts.
// They go faster than they come, or each start would take longer than the one before.
#[test]
fn what_short_lives_leave_is_removed_in_time() {
    let world = SimWorld::new(2, SimOptions::calm());
    let host = world.host("mta");
    host.make_directory(&config().directory);
    for life in 0..60 {
        to_the_end(&world, &host, async move |port| {
            let (spooler, mut recovered) =
                Spooler::open(port.clone(), config()).await.expect("opens");
            assert_eq!(recovered.report.damage, [], "life {life}");
            assert!(spooler.load(&mut recovered.cursor, 10).await.is_empty());
            let id = store(&spooler, &text_of(life)).await;
            spooler.settle(Settlement {
                id,
                recipient: 0,
                kind: SettlementKind::Delivered,
            });
            port.sleep_until(port.now().after(Duration::from_millis(500)))
                .await;
        });
        host.crash(CrashKind::Kill);
    }
    let files = host.port().list(&config().directory).expect("it is there");
    assert!(files.len() <= 20, "{files:?}");
}

/// One life that takes over what waits, and releases `old` until it is not in quarantine any more.
/// `sent` is all that it could send.
async fn releasing(
    port: SimPort,
    old: MessageId,
    sent: Rc<RefCell<BTreeSet<MessageId>>>,
    done: Rc<Cell<bool>>,
) {
    let Ok((spooler, recovered)) = Spooler::open(port.clone(), config()).await else {
        return;
    };
    let send = move |spooler: &Spooler<SimPort>, id: MessageId| {
        sent.borrow_mut().insert(id);
        // Half of them have been delivered when the next crash comes.
        if id.sequence().is_multiple_of(2) {
            let kind = SettlementKind::Delivered;
            let recipient = 0;
            spooler.settle(Settlement {
                id,
                recipient,
                kind,
            });
        }
    };
    let send = Rc::new(send);
    let mut cursor = recovered.cursor;
    let (early, sends) = (spooler.clone(), Rc::clone(&send));
    port.spawn(Class::Background, async move {
        loop {
            let batch = early.load(&mut cursor, 5).await;
            if batch.is_empty() {
                break;
            }
            batch
                .iter()
                .for_each(|loaded| sends(&early, loaded.queued.id));
        }
        loop {
            let batch = early.load_late(5).await;
            batch
                .iter()
                .for_each(|loaded| sends(&early, loaded.queued.id));
        }
    });
    loop {
        match spooler.release(old, Wall(2)).await {
            Ok(Released::Now(stored, of, content)) => {
                assert_eq!((of, content.as_slice()), (envelope(), &text_of(7)[..]));
                send(&spooler, stored.id());
            }
            Ok(Released::Before(_)) => {}
            Err(ReleaseError::Absent) => break,
            Err(ReleaseError::Damaged) => panic!("nothing rots here"),
            Err(ReleaseError::UnderWay | ReleaseError::Io) => {
                port.sleep_until(port.now().after(Duration::from_millis(300)))
                    .await;
            }
        }
    }
    port.sleep_until(port.now().after(Duration::from_secs(30)))
        .await;
    assert_eq!(spooler.status().quarantined, 0);
    let names = port.list(&config().directory).expect("it is there");
    let notes = names.iter().filter(|name| name.starts_with("release-"));
    assert_eq!(notes.count(), 0, "{names:?}");
    done.set(true);
}

// Crashes anywhere in a release, and disks that fail: what is released becomes one new message,
// never two, and never none.
#[test]
fn a_release_makes_one_message() {
    for seed in 0..300 {
        let world = SimWorld::new(seed, SimOptions::calm());
        let host = world.host("mta");
        host.make_directory(&config().directory);
        let old = to_the_end(&world, &host, async move |port| {
            let (spooler, _) = Spooler::open(port.clone(), config()).await.expect("opens");
            let id = store(&spooler, &text_of(7)).await;
            spooler.set_aside(id).await;
            while spooler.has(id) {
                port.sleep_until(port.now().after(Duration::from_millis(1)))
                    .await;
            }
            assert_eq!(spooler.status().quarantined, 1);
            id
        });
        host.set_disk(failing(seed));
        let sent = Rc::new(RefCell::new(BTreeSet::new()));
        let life = || {
            let (port, done) = (host.port(), Rc::new(Cell::new(false)));
            let life = releasing(port.clone(), old, Rc::clone(&sent), Rc::clone(&done));
            port.spawn(Class::Control, life);
            done
        };
        for round in 0..4 {
            host.crash(if world.random().coin() {
                CrashKind::PowerCut
            } else {
                CrashKind::Kill
            });
            life();
            host.crash_after(1 + world.random().below(400), CrashKind::PowerCut);
            let end = Mono(world.now().0).after(Duration::from_secs(5));
            world.run_until(end, 2_000_000, || host.crashes() > 2 * round + 1);
            if host.crashes() < 2 * round + 2 {
                host.crash(CrashKind::PowerCut);
            }
        }
        host.set_disk(DiskFaults::calm());
        let done = life();
        let end = Mono(world.now().0).after(Duration::from_secs(600));
        let ended = world.run_until(end, 5_000_000, || done.get());
        assert_eq!(ended, RunEnd::Reached, "seed {seed}");
        assert_eq!(sent.borrow().len(), 1, "seed {seed}: {:?}", sent.borrow());
    }
}
