//! The spool on a fault disk: seeded worlds with a model of what was promised.
//!
//! A world draws its faults, runs appends, settlements, copies and crashes in random order, and
//! compares after each recovery: nothing acknowledged is lost, nothing settled comes back, nothing
//! corrupt is handed out, the disk stays within its bound.

mod rules;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;

use crate::engine::Block;
use crate::message::{Address, Envelope, MessageId, Recipient};
use crate::time::{Mono, Wall};

use crate::limits;

use super::format::{
    BLOCK_BYTES, Log, MessageRecord, SEGMENT_HEADER_BYTES, SegmentHeader, checksum,
};
use super::format::{HeaderRead, Stamp};
use super::recover::{Recovery, Scan, Step, elect_stamp};
use super::{
    Action, AppendError, Completion, Damage, Extent, Outcome, Place, ReadError, RecoveryReport,
    Served, Settlement, SettlementKind, Spool, SpoolConfig,
};

const SEGMENT: u64 = 64 << 10;
const STATE_SEGMENT: u64 = 80 << 10;

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }
}

type Files = BTreeMap<(Log, u32), Vec<u8>>;

/// What one world does wrong.
#[derive(Debug, Clone, Copy)]
struct Faults {
    write_fails: u64,
    create_fails: u64,
    crash: u64,
    long_tail: bool,
    capacity: u64,
    /// No file can be made, whatever the space.
    no_inodes: bool,
}

/// What was promised about a message.
#[derive(Debug)]
struct Promise {
    sum: u64,
    recipients: u32,
    /// 250 was said.
    acknowledged: bool,
    /// The append ended with an error.
    refused: bool,
    asked: BTreeSet<u32>,
    durable: BTreeSet<u32>,
    attempts: BTreeMap<u32, u16>,
}

struct World {
    random: Random,
    faults: Faults,
    /// Percent of settlements that do not wait for company.
    hurry: u64,
    /// Blocks of the message log that the last recovery could not read.
    hidden: BTreeSet<(u32, usize)>,
    spool: Spool,
    files: Files,
    in_flight: Vec<Action>,
    promises: BTreeMap<u64, Promise>,
    tokens: BTreeMap<u64, u64>,
    next_token: u64,
    now: Mono,
    live: Vec<u64>,
    most_disk: u64,
    last_report: RecoveryReport,
}

fn config(seed: u64) -> SpoolConfig {
    SpoolConfig {
        shard: 3,
        segment_bytes: SEGMENT,
        state_segment_bytes: STATE_SEGMENT,
        low_water_bytes: 0,
        free_kept: 4,
        settle_wait: Duration::from_millis(2),
        seed,
    }
}

fn envelope(recipients: u32) -> Envelope {
    let address = |n: u32| Address::parse_path(format!("r{n}@example.com").as_bytes());
    let list = (0..recipients).map(|n| Recipient::new(address(n).expect("an address")));
    Envelope {
        recipients: list.collect(),
        ..Envelope::default()
    }
}

/// Recovers from files, granting every range that is wanted.
fn recover(files: &Files, config: SpoolConfig, now: Mono) -> (Spool, RecoveryReport) {
    let mut recovery = scanned(files, config);
    for check in recovery.checks() {
        recovery.check(&check, &files[&(Log::Message, check.segment)]);
    }
    recovery.finish(u64::MAX / 2, now)
}

/// A recovery that has seen all groups.
fn scanned(files: &Files, config: SpoolConfig) -> Recovery {
    let mut recovery = Recovery::new(config);
    for ((log, number), bytes) in files {
        let len = bytes.len() as u64;
        if bytes.len() < SEGMENT_HEADER_BYTES {
            let blank = bytes.iter().all(|byte| *byte == 0);
            recovery.elected(*log, *number, None, blank, len);
        } else if recovery.file(*log, *number, bytes, len).is_none() {
            let blank = bytes[..SEGMENT_HEADER_BYTES].iter().all(|byte| *byte == 0);
            let stamp = elect_stamp(&bytes[SEGMENT_HEADER_BYTES..]);
            recovery.elected(*log, *number, stamp, blank, len);
        }
    }
    for log in [Log::State, Log::Message] {
        for (number, stamp) in recovery.order(log) {
            let bytes = &files[&(log, number)];
            walk(bytes, stamp, |found| match log {
                Log::State => recovery.state_group(number, &found),
                Log::Message => recovery.mail_group(number, &found),
            });
        }
        if log == Log::State {
            recovery.states_end();
        }
    }
    recovery
}

fn walk(bytes: &[u8], stamp: Stamp, mut each: impl FnMut(super::recover::Found<'_>)) {
    let mut scan = Scan::new(stamp);
    loop {
        match scan.step(bytes) {
            Step::Need(range) => scan.grant(range),
            Step::Group(found) => each(found),
            Step::End => return,
        }
    }
}

fn read(
    files: &Files,
    id: MessageId,
    extent: &Extent,
) -> Result<(Vec<u8>, Bytes, Wall), ReadError> {
    let bytes = files
        .get(&(Log::Message, extent.location.segment))
        .ok_or(ReadError::Io)?;
    let head = bytes
        .get(extent.location.offset as usize..)
        .ok_or(ReadError::Damaged)?;
    let (record, envelope) =
        MessageRecord::decode(head, extent.generation).ok_or(ReadError::Damaged)?;
    let start = record.content_offset as usize;
    let content = bytes.get(start..start + record.content_len as usize);
    let content = content.ok_or(ReadError::Damaged)?;
    if record.id != id || checksum(content) != record.content_sum {
        return Err(ReadError::Damaged);
    }
    Ok((
        envelope.to_vec(),
        Bytes::copy_from_slice(content),
        record.received_at,
    ))
}

impl World {
    fn new(seed: u64, faults: Faults) -> Self {
        let mut spool = recover(&Files::new(), config(seed), Mono(0)).0;
        spool.enable_reclaim();
        Self {
            random: Random(seed),
            faults,
            hurry: [0, 25, 100][(seed % 3) as usize],
            hidden: BTreeSet::new(),
            spool,
            files: Files::new(),
            in_flight: Vec::new(),
            promises: BTreeMap::new(),
            tokens: BTreeMap::new(),
            next_token: 0,
            now: Mono(0),
            live: Vec::new(),
            most_disk: 0,
            last_report: RecoveryReport::default(),
        }
    }

    fn disk(&self) -> u64 {
        self.files.values().map(|bytes| bytes.len() as u64).sum()
    }

    fn pump(&mut self) {
        if self.spool.wants_space(self.now) {
            let free = self.faults.capacity.saturating_sub(self.disk());
            self.spool.space(free, self.now);
        }
        while let Some(action) = self.spool.poll(self.now) {
            match action {
                Action::Release { segment } => self.spool.released(segment),
                Action::Remove { log, segment } => {
                    self.files.remove(&(log, segment));
                    self.spool.removed(log, segment, Outcome::Done);
                }
                Action::Copy { id, from } => self.copy(id, from),
                Action::Write { .. } | Action::Create { .. } => self.in_flight.push(action),
            }
        }
        while let Some(completion) = self.spool.completion() {
            self.complete(completion);
        }
        self.most_disk = self.most_disk.max(self.disk());
    }

    fn copy(&mut self, id: MessageId, from: Place) {
        let extent = self.spool.copy_source(from);
        let mut got = extent.map_or(Err(ReadError::Gone), |extent| {
            read(&self.files, id, &extent)
        });
        if let (Some(damaged), Err(ReadError::Damaged)) = (extent, &got) {
            let others = self.spool.other_records(id).into_iter();
            let mut whole = others.filter(|(_, other)| read(&self.files, id, other).is_ok());
            if let Some(other) = whole.next() {
                assert_eq!(self.spool.use_record(id, &damaged, other), Served::Yes);
                got = Err(ReadError::Gone);
            }
        }
        match &got {
            Ok((envelope, content, at)) => {
                self.spool
                    .copied(id, from, Ok((envelope, content.clone(), *at)), self.now);
            }
            Err(error) => self.spool.copied(id, from, Err(*error), self.now),
        }
    }

    fn complete(&mut self, completion: Completion) {
        match completion {
            Completion::Append(token, result) => {
                let sequence = self.tokens.remove(&token).expect("a token ends once");
                let promise = self.promises.get_mut(&sequence).expect("a promise");
                match result {
                    Ok(stored) => {
                        assert_eq!(stored.id().sequence(), sequence);
                        promise.acknowledged = true;
                        self.live.push(sequence);
                    }
                    Err(_) => promise.refused = true,
                }
            }
            Completion::Settled(settlement) => {
                let promise = self
                    .promises
                    .get_mut(&settlement.id.sequence())
                    .expect("a promise");
                match settlement.kind {
                    SettlementKind::Deferred { attempts, .. } => {
                        promise.attempts.insert(settlement.recipient, attempts);
                    }
                    _ => assert!(promise.durable.insert(settlement.recipient), "settled once"),
                }
            }
        }
    }

    /// Ends one action in flight, in any order.
    fn end_one(&mut self) {
        if self.in_flight.is_empty() {
            return;
        }
        let at = self.random.below(self.in_flight.len());
        match self.in_flight.swap_remove(at) {
            Action::Write {
                ticket,
                log,
                segment,
                offset,
                block,
            } => {
                let fails = self.random.chance(self.faults.write_fails);
                let percent = if fails { self.random.next() % 101 } else { 100 };
                self.put(log, segment, offset, &block, percent);
                let outcome = if fails {
                    Outcome::Failed
                } else {
                    Outcome::Done
                };
                self.spool.written(ticket, block, outcome, self.now);
            }
            Action::Create {
                log,
                segment,
                len,
                prewrite,
            } => {
                let full = self.disk() + len > self.faults.capacity || self.faults.no_inodes;
                let outcome = if full {
                    Outcome::Full
                } else if self.random.chance(self.faults.create_fails) {
                    Outcome::Failed
                } else {
                    Outcome::Done
                };
                if outcome == Outcome::Done || !self.faults.no_inodes && self.random.chance(50) {
                    let len = if prewrite { len as usize } else { 0 };
                    self.files.insert((log, segment), vec![0; len]);
                }
                self.spool.created(log, segment, outcome, self.now);
            }
            Action::Release { .. } | Action::Remove { .. } | Action::Copy { .. } => unreachable!(),
        }
    }

    /// Writes each sector of a block with a chance.
    fn put(&mut self, log: Log, segment: u32, offset: u64, block: &Block, percent: u64) {
        let file = self.files.get_mut(&(log, segment)).expect("a file");
        let end = offset as usize + block.len();
        if file.len() < end {
            file.resize(end, 0);
        }
        for (n, sector) in block.chunks(512).enumerate() {
            if percent == 100 || self.random.next() % 100 < percent {
                let at = offset as usize + n * 512;
                file[at..at + 512].copy_from_slice(sector);
            }
        }
    }

    fn append(&mut self) {
        let len = match self.random.below(40) {
            0 => 20_000 + self.random.below(60_000),
            1..10 => self.random.below(9_000),
            _ => self.random.below(900),
        };
        let recipients = match self.random.below(12) {
            0 => 1 + self.random.below(70) as u32,
            1..3 => 2,
            _ => 1,
        };
        self.append_of(len, recipients);
    }

    fn append_of(&mut self, len: usize, recipients: u32) {
        let id = self.spool.next_id();
        let mut content = vec![0u8; len];
        content
            .iter_mut()
            .for_each(|byte| *byte = self.random.next() as u8);
        let token = self.next_token;
        self.next_token += 1;
        let sum = checksum(&content);
        let taken = self.spool.append(
            token,
            id,
            &envelope(recipients),
            Bytes::from(content),
            Wall(9),
        );
        let promise = Promise {
            sum,
            recipients,
            acknowledged: false,
            refused: taken.is_err(),
            asked: BTreeSet::new(),
            durable: BTreeSet::new(),
            attempts: BTreeMap::new(),
        };
        let old = self.promises.insert(id.sequence(), promise);
        // An id that left no trace on the disk may come again.
        assert!(
            old.is_none_or(|old| !old.acknowledged),
            "an id names one message"
        );
        if taken.is_ok() {
            self.tokens.insert(token, id.sequence());
        }
    }

    fn settle(&mut self) {
        if self.live.is_empty() {
            return;
        }
        // With a long tail, most die young and some never.
        let at = if self.faults.long_tail {
            self.live.len() - 1 - self.random.below(self.live.len().min(20))
        } else {
            self.random.below(self.live.len())
        };
        let sequence = self.live[at];
        let promise = self.promises.get_mut(&sequence).expect("a promise");
        let open: Vec<u32> = (0..promise.recipients)
            .filter(|r| !promise.asked.contains(r))
            .collect();
        let id = MessageId::new(3, sequence);
        if self.random.chance(20) {
            let recipient = open[self.random.below(open.len())];
            let attempts = promise.attempts.get(&recipient).copied().unwrap_or(0) + 1;
            let kind = SettlementKind::Deferred {
                attempts,
                next: Wall(self.random.next() % 9_999),
            };
            self.spool.settle(
                Settlement {
                    id,
                    recipient,
                    kind,
                },
                self.now,
            );
            return;
        }
        let count = 1 + self.random.below(open.len());
        if self.random.chance(self.hurry) {
            // Alone in its group, as where settlements come sparsely.
            self.spool.due(self.now);
        }
        for recipient in open.iter().take(count) {
            promise.asked.insert(*recipient);
            let kind = SettlementKind::Delivered;
            assert!(self.spool.settle(
                Settlement {
                    id,
                    recipient: *recipient,
                    kind
                },
                self.now
            ));
        }
        if count == open.len() {
            self.live.swap_remove(at);
        }
    }

    /// The power goes: writes in flight leave any of their sectors, files being made may exist.
    fn crash(&mut self) {
        self.power_goes();
        self.restart();
        assert!(
            !self.last_report.is_damaged(),
            "a crash is no damage: {:?}",
            self.last_report
        );
    }

    fn power_goes(&mut self) {
        for action in std::mem::take(&mut self.in_flight) {
            match action {
                Action::Write {
                    log,
                    segment,
                    offset,
                    block,
                    ..
                } => {
                    let percent = [0, 50, 90, 100][self.random.below(4)];
                    self.put(log, segment, offset, &block, percent);
                }
                Action::Create {
                    log,
                    segment,
                    len,
                    prewrite,
                } if self.random.chance(50) => {
                    let len = if prewrite {
                        self.random.below(len as usize + 1)
                    } else {
                        0
                    };
                    self.files.insert((log, segment), vec![0; len]);
                }
                _ => {}
            }
        }
        self.tokens.clear();
    }

    fn restart(&mut self) {
        let (spool, report) = recover(&self.files, config(self.random.next()), self.now);
        self.spool = spool;
        self.last_report = report;
        self.spool.enable_reclaim();
    }

    /// After a recovery without rot: the index is what was promised.
    fn check(&mut self) {
        let mut found: BTreeMap<u64, Vec<(u32, u16)>> = BTreeMap::new();
        for (segment, slots) in self.spool.census() {
            for slot in 0..slots {
                let Some((id, extent, pending)) = self.spool.waiting_at(segment, slot) else {
                    continue;
                };
                let promise = &self.promises[&id.sequence()];
                let got = read(&self.files, id, &extent);
                let (_, content, _) =
                    got.unwrap_or_else(|e| panic!("{id}: {e:?} {extent:?} {promise:?}"));
                assert_eq!(checksum(&content), promise.sum, "content of {id}");
                let ended = self.spool.ended(id).expect("waits");
                for recipient in 0..promise.recipients {
                    let waits = pending.iter().any(|p| p.index == recipient);
                    assert_eq!(self.spool.waits(id, recipient), waits, "{id}/{recipient}");
                    let mut runs = ended.iter().map(|(first, count)| *first..first + count);
                    assert_eq!(runs.any(|run| run.contains(&recipient)), !waits, "{id}");
                }
                assert!(!self.spool.waits(id, promise.recipients));
                let list = pending.iter().map(|p| (p.index, p.attempts)).collect();
                assert!(
                    found.insert(id.sequence(), list).is_none(),
                    "{id} waits once"
                );
            }
        }
        for (sequence, promise) in &mut self.promises {
            let pending = found.get(sequence).map_or(&[][..], |list| list);
            for recipient in 0..promise.recipients {
                let waits = pending.iter().find(|(index, _)| *index == recipient);
                assert!(
                    !(promise.durable.contains(&recipient) && waits.is_some()),
                    "settled recipient {recipient} of {sequence} came back"
                );
                if promise.acknowledged && !promise.asked.contains(&recipient) {
                    let waits = waits.unwrap_or_else(|| panic!("{sequence}/{recipient} is lost"));
                    let known = promise.attempts.get(&recipient).copied().unwrap_or(0);
                    assert!(waits.1 >= known, "attempts of {sequence} went back");
                }
            }
            // What a crash decided is the truth from here on.
            promise.acknowledged |= !pending.is_empty();
            if promise.acknowledged {
                let waiting: BTreeSet<u32> = pending.iter().map(|p| p.0).collect();
                promise.asked = (0..promise.recipients)
                    .filter(|r| !waiting.contains(r))
                    .collect();
                promise.durable = promise.asked.clone();
                promise.attempts = pending.iter().copied().collect();
            }
        }
        self.live = found.into_keys().collect();
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..25 => self.append(),
            25..50 => self.settle(),
            50..90 => self.end_one(),
            _ => self.now = Mono(self.now.0 + self.random.next() % 3_000_000),
        }
        if self.random.chance(2) {
            self.now = Mono(self.now.0 + 1_000_000_000);
        }
        self.pump();
    }

    /// Lets everything in flight end well.
    fn quiesce(&mut self) {
        self.faults.write_fails = 0;
        self.faults.create_fails = 0;
        for _ in 0..20_000 {
            self.now = Mono(self.now.0 + 20_000_000);
            self.pump();
            if self.in_flight.is_empty() {
                if self.spool.status().settlements_waiting == 0 && self.tokens.is_empty() {
                    return;
                }
                continue;
            }
            self.end_one();
        }
        for (number, s) in self.spool.mail.iter() {
            eprintln!(
                "{number}: {:?} large {} len {} live {}",
                s.phase, s.large, s.len, s.live_slots
            );
        }
        panic!(
            "the spool does not come to rest: {:?} tokens {} in flight {:?} fresh {} copies {} \
             large {} job {:?}",
            self.spool.status(),
            self.tokens.len(),
            self.in_flight,
            self.spool.fresh.len(),
            self.spool.copies.len(),
            self.spool.large.len(),
            self.spool.job.is_some()
        );
    }
}

fn draw(random: &mut Random) -> Faults {
    Faults {
        write_fails: [0, 0, 1, 5][random.below(4)],
        create_fails: [0, 0, 10][random.below(3)],
        crash: [0, 1, 3][random.below(3)],
        long_tail: random.chance(50),
        capacity: [u64::MAX / 4, u64::MAX / 4, 3 << 20][random.below(3)],
        no_inodes: false,
    }
}

fn run(seed: u64, steps: usize) -> World {
    let mut random = Random(seed);
    let faults = draw(&mut random);
    let mut world = World::new(random.next(), faults);
    for _ in 0..steps {
        world.step();
        if world.random.chance(world.faults.crash) {
            world.crash();
            world.check();
        }
    }
    world.quiesce();
    world.crash();
    world.check();
    world
}

// Thousands of worlds with crashes, torn and misordered writes, failed writes and full disks.
#[test]
fn promises_hold_in_every_world() {
    for seed in 0..1_000 {
        let outcome = std::panic::catch_unwind(|| run(seed, 150));
        if let Err(panic) = outcome {
            eprintln!("seed {seed} fails");
            std::panic::resume_unwind(panic);
        }
    }
}

// Bit rot, zeroed and swapped blocks, cut tails on a stopped spool: it starts, hands out nothing
// wrong, and what is missing is in the report by id or in a damaged group.
#[test]
fn rot_is_contained_and_reported() {
    for seed in 0..300 {
        let mut random = Random(seed);
        let faults = Faults {
            write_fails: 0,
            create_fails: 0,
            crash: 0,
            long_tail: true,
            capacity: u64::MAX / 4,
            no_inodes: false,
        };
        let mut world = World::new(random.next(), faults);
        for _ in 0..120 {
            world.step();
        }
        world.quiesce();
        world.spool.close(world.now);
        world.quiesce();
        for _ in 0..50 {
            world.pump();
            world.end_one();
        }
        assert!(world.spool.is_closed());
        let before = waiting(&world.spool);
        let what = rot(&mut world.files, &mut random);
        let (spool, report) = recover(&world.files, config(1), world.now);
        let mut missing: BTreeSet<u64> = before.keys().copied().collect();
        for (sequence, extent) in waiting(&spool) {
            missing.remove(&sequence);
            let id = MessageId::new(3, sequence);
            if let Ok((_, content, _)) = read(&world.files, id, &extent) {
                assert_eq!(
                    checksum(&content),
                    world.promises[&sequence].sum,
                    "seed {seed}"
                );
            }
        }
        for sequence in missing {
            let id = MessageId::new(3, sequence);
            let listed = report.damage.iter().any(|damage| match damage {
                Damage::Lost(lost) | Damage::Torn(lost) | Damage::Message(lost, _) => *lost == id,
                _ => false,
            });
            let unknown = report.damage.iter().any(|damage| {
                matches!(
                    damage,
                    Damage::Group { .. } | Damage::Header(..) | Damage::Length(..)
                )
            });
            assert!(
                listed || unknown,
                "seed {seed} ({what}): {id} vanished: {report:?}"
            );
        }
    }
}

fn waiting(spool: &Spool) -> BTreeMap<u64, Extent> {
    let mut out = BTreeMap::new();
    for (segment, slots) in spool.census() {
        for slot in 0..slots {
            if let Some((id, extent, _)) = spool.waiting_at(segment, slot) {
                out.insert(id.sequence(), extent);
            }
        }
    }
    out
}

/// Damages one file and says how.
fn rot(files: &mut Files, random: &mut Random) -> &'static str {
    let keys: Vec<_> = files.keys().copied().collect();
    let key = keys[random.below(keys.len())];
    let file = files.get_mut(&key).expect("a file");
    let blocks = file.len() / BLOCK_BYTES;
    let (a, b) = (random.below(blocks), random.below(blocks));
    if blocks == 0 {
        return "nothing: the file is empty";
    }
    match random.below(4) {
        0 => {
            let at = random.below(file.len());
            file[at] ^= 1 << random.below(8);
            "a bit flipped"
        }
        1 => {
            file[a * BLOCK_BYTES..(a + 1) * BLOCK_BYTES].fill(0);
            "a block zeroed"
        }
        2 => {
            for at in 0..BLOCK_BYTES {
                file.swap(a * BLOCK_BYTES + at, b * BLOCK_BYTES + at);
            }
            "two blocks swapped"
        }
        _ => {
            file.truncate(random.below(file.len()));
            "the tail cut"
        }
    }
}

// Recovery from garbage of every length ends, with whatever it finds.
#[test]
fn recovery_is_total() {
    let mut random = Random(99);
    for _ in 0..200 {
        let mut files = Files::new();
        for number in 0..3 {
            for log in [Log::Message, Log::State] {
                let mut bytes = vec![0u8; random.below(60_000)];
                bytes
                    .iter_mut()
                    .for_each(|byte| *byte = random.next() as u8);
                files.insert((log, number), bytes);
            }
        }
        let (spool, _) = recover(&files, config(1), Mono(0));
        assert_eq!(spool.status().queued_messages, 0);
    }
}

// Most mail dies young, some lives for long: the disk stays within twice what is live and a
// constant.
#[test]
fn disk_is_bounded_with_long_tails() {
    for seed in 0..4 {
        let faults = Faults {
            write_fails: 0,
            create_fails: 0,
            crash: 0,
            long_tail: true,
            capacity: u64::MAX / 4,
            no_inodes: false,
        };
        let mut world = World::new(seed, faults);
        for round in 0..60 {
            for _ in 0..150 {
                world.step();
            }
            world.quiesce();
            let status = world.spool.status();
            let large = world
                .spool
                .mail
                .iter()
                .filter(|(_, s)| s.large)
                .map(|(_, s)| s.len);
            let large: u64 = large.sum();
            let bound = 2 * status.live_bytes + large + 9 * SEGMENT;
            let used = world.spool.mail.bytes();
            assert!(
                used <= bound,
                "seed {seed} round {round}: {used} > {bound}: {status:?}"
            );
            let state = world.spool.state.bytes();
            assert!(
                state <= 24 * STATE_SEGMENT,
                "seed {seed} round {round}: {state} of state"
            );
        }
        assert!(world.spool.groups_written > 300, "the world did something");
    }
}

// A header of a newer version is told from damage, so that an old program keeps its hands off.
#[test]
fn newer_versions_are_refused() {
    let stamp = Stamp {
        generation: 7,
        salt: 9,
    };
    let header = SegmentHeader {
        log: Log::State,
        shard: 1,
        number: 2,
        stamp,
        len: 8192,
        large: false,
        next_sequence: 5,
    };
    let mut bytes = header.encode().to_vec();
    assert_eq!(SegmentHeader::decode(&bytes), HeaderRead::Known(header));
    bytes[..BLOCK_BYTES].fill(0);
    assert_eq!(
        SegmentHeader::decode(&bytes),
        HeaderRead::Known(header),
        "the second copy serves"
    );
    bytes[BLOCK_BYTES + 8] = 2;
    assert_eq!(SegmentHeader::decode(&bytes), HeaderRead::Damaged);
    let sum = checksum(&bytes[BLOCK_BYTES..BLOCK_BYTES + 64]);
    bytes[BLOCK_BYTES + 64..BLOCK_BYTES + 72].copy_from_slice(&sum.to_le_bytes());
    assert_eq!(SegmentHeader::decode(&bytes), HeaderRead::Newer(2));
}

impl super::inspect::Files for &Files {
    type Bytes = Vec<u8>;

    fn names(&self) -> std::io::Result<Vec<String>> {
        Ok(self
            .keys()
            .map(|(log, number)| log.file_name(*number))
            .collect())
    }

    fn bytes(&self, name: &str) -> std::io::Result<Vec<u8>> {
        let key = Log::parse_file_name(name).expect("one of our names");
        Ok(self[&key].clone())
    }
}

// The offline tools see exactly what waits, verified, and tell a flipped bit.
#[test]
fn inspection_shows_what_waits() {
    let mut world = run(11, 150);
    let expected: BTreeSet<u64> = world.live.iter().copied().collect();
    assert!(expected.len() > 3);
    let look = |files: &Files| {
        let inspection = super::inspect::Inspection::open(files, 3, |_, _| {}).expect("readable");
        let mut seen = BTreeMap::new();
        let walked = inspection.walk(
            |_, _| {},
            |message| {
                seen.insert(message.id.sequence(), message.content.map(checksum));
                true
            },
        );
        walked.expect("readable");
        assert_eq!(inspection.stats().queued_messages, seen.len() as u64);
        seen
    };
    let seen = look(&world.files);
    assert_eq!(seen.keys().copied().collect::<BTreeSet<u64>>(), expected);
    for (sequence, sum) in &seen {
        assert_eq!(*sum, Some(world.promises[sequence].sum));
    }
    let victim = *expected.iter().next().expect("some");
    let id = MessageId::new(3, victim);
    let extent = world.spool.find(id).expect("waits");
    if extent.location.len > 0 {
        let file = world
            .files
            .get_mut(&(Log::Message, extent.location.segment))
            .expect("a file");
        file[extent.content as usize] ^= 1;
        assert!(look(&world.files).get(&victim).is_none_or(Option::is_none));
    }
}

// A path that fails puts off a million entries in a moment: however many dates wait for the disk,
// new mail is taken; what says that mail has left still counts against the limit.
#[test]
fn dates_of_next_attempts_never_refuse_mail() {
    let faults = Faults {
        write_fails: 0,
        create_fails: 0,
        crash: 0,
        long_tail: false,
        capacity: u64::MAX / 4,
        no_inodes: false,
    };
    let mut world = World::new(1, faults);
    for _ in 0..10 {
        world.append_of(100, 1);
    }
    world.quiesce();
    let ids: Vec<_> = world
        .live
        .iter()
        .map(|sequence| MessageId::new(3, *sequence))
        .collect();
    assert_eq!(ids.len(), 10);
    let spool = &mut world.spool;
    let wish = |id: &MessageId, kind| Settlement {
        id: *id,
        recipient: 0,
        kind,
    };
    let rounds = limits::SPOOL_SETTLEMENTS_WAITING_MAX / ids.len() + 1;
    for round in 0..rounds {
        for id in &ids {
            let kind = SettlementKind::Deferred {
                attempts: u16::try_from(round % 1000).expect("small"),
                next: Wall(5),
            };
            assert!(spool.settle(wish(id, kind), Mono(1)));
        }
    }
    assert_eq!(spool.may_append(), Ok(()));
    for _ in 0..rounds {
        for id in &ids {
            spool.settle(wish(id, SettlementKind::Delivered), Mono(1));
        }
    }
    assert_eq!(spool.may_append(), Err(AppendError::Failed));
}
