//! Rules of the spool, one by one, where the worlds of the parent would meet them by chance only.

mod pairs;

use std::ops::Range;

use super::*;
use crate::spool::Alarm;
use crate::spool::format::StateRecord;
use crate::spool::index::SlotState;
use crate::spool::segment::Phase;
use crate::spool::state::Flight;

fn calm() -> Faults {
    Faults {
        write_fails: 0,
        create_fails: 0,
        crash: 0,
        long_tail: false,
        capacity: u64::MAX / 4,
        no_inodes: false,
    }
}

/// A world with its spare segments ready.
fn ready(seed: u64) -> World {
    let mut world = World::new(seed, calm());
    world.hurry = 0;
    world.settle_down();
    world
}

impl World {
    /// Lets actions end until there is none, and time pass.
    fn settle_down(&mut self) {
        for _ in 0..200 {
            self.now = Mono(self.now.0 + 20_000_000);
            self.pump();
            while !self.in_flight.is_empty() {
                self.end_one();
                self.pump();
            }
        }
    }

    /// Ends what is in flight, but for what is to stay, and what follows from it.
    fn end_all_but(&mut self, stays: impl Fn(&Action) -> bool) {
        while let Some(at) = self.in_flight.iter().position(|action| !stays(action)) {
            let action = self.in_flight.swap_remove(at);
            let others = std::mem::replace(&mut self.in_flight, vec![action]);
            self.end_one();
            self.in_flight = others;
            self.pump();
        }
    }

    fn is_mail_group(action: &Action) -> bool {
        matches!(action, Action::Write { log: Log::Message, offset, .. } if *offset > 0)
    }

    /// Ends the only write of a group of messages: all its bytes are there, and it failed.
    fn fail_mail_group(&mut self) {
        let at = self.in_flight.iter().position(Self::is_mail_group);
        let action = self.in_flight.swap_remove(at.expect("a group in flight"));
        let Action::Write {
            ticket,
            log,
            segment,
            offset,
            block,
        } = action
        else {
            unreachable!()
        };
        self.put(log, segment, offset, &block, 100);
        self.spool.written(ticket, block, Outcome::Failed, self.now);
    }

    fn acknowledged(&self) -> usize {
        self.promises.values().filter(|p| p.acknowledged).count()
    }
}

// An operator who has mended the disk does not wait for the next probe.
#[test]
fn a_failed_disk_is_tried_when_told() {
    let mut world = ready(1);
    world.append();
    world.pump();
    assert!(!world.spool.probe_now(world.now), "there is nothing to try");
    world.fail_mail_group();
    world.pump();
    let making = |world: &World| {
        let is_probe = |action: &Action| match action {
            Action::Create { log, .. } => *log == Log::Message,
            Action::Write { log, offset, .. } => *log == Log::Message && *offset == 0,
            _ => false,
        };
        world
            .in_flight
            .iter()
            .filter(|action| is_probe(action))
            .count()
    };
    let before = making(&world);
    assert!(world.spool.probe_now(world.now));
    world.pump();
    assert!(making(&world) > before, "a probe is under way at once");
}

// A message that was refused because its sync failed, but is whole on the disk, is under a
// tombstone before any later message is acknowledged: a power cut after that cannot bring it back.
#[test]
fn nothing_is_acknowledged_before_what_was_refused_is_buried() {
    for seed in 0..20 {
        let mut world = ready(seed);
        world.append();
        world.pump();
        world.fail_mail_group();
        world.pump();
        let (refused, promise) = world.promises.iter().next().expect("one");
        assert!(promise.refused);
        let refused = *refused;
        // The probe succeeds, but the state log is slow.
        let slow = |action: &Action| match action {
            Action::Write { log, offset, .. } => *log == Log::State && *offset > 0,
            _ => false,
        };
        for _ in 0..200 {
            world.now = Mono(world.now.0 + 20_000_000);
            world.pump();
            while let Some(at) = world.in_flight.iter().position(|action| !slow(action)) {
                let last = world.in_flight.len() - 1;
                world.in_flight.swap(at, last);
                let held = world.in_flight.split_off(last);
                let slow = std::mem::replace(&mut world.in_flight, held);
                world.end_one();
                world.in_flight.extend(slow);
                world.pump();
            }
            if world.spool.may_append().is_ok() && world.tokens.is_empty() {
                world.append();
            }
        }
        assert!(world.spool.may_append().is_ok(), "the probe succeeded");
        assert!(!world.tokens.is_empty(), "a message waits");
        assert_eq!(
            world.acknowledged(),
            0,
            "seed {seed}: 250 before the tombstone"
        );
        world.settle_down();
        assert!(
            world.acknowledged() > 0,
            "seed {seed}: taken once it is buried"
        );
        world.crash();
        let found = waiting(&world.spool);
        assert!(!found.contains_key(&refused), "seed {seed}: it came back");
        assert!(!found.is_empty());
    }
}

// When no file can be made, mail goes on in the segments that are free, and in those that settled
// mail leaves; it is refused for want of space only when there is none, and taken again as soon as
// a file can be made.
#[test]
fn without_inodes_mail_goes_on_in_what_is_free() {
    for seed in 0..10 {
        let mut world = ready(seed);
        world.faults.no_inodes = true;
        // With settlements there is no end: segments are recycled.
        let mut taken = 0;
        for _ in 0..600 {
            if world.spool.may_append().is_ok() {
                world.append_small();
                taken += 1;
            }
            world.settle_down_shortly();
            while !world.live.is_empty() {
                world.settle();
            }
            world.settle_down_shortly();
        }
        let refused = world.promises.values().filter(|p| p.refused).count();
        assert_eq!(
            (taken, refused),
            (600, 0),
            "seed {seed}: {:?}",
            world.spool.status()
        );
        assert!(world.spool.status().alarms.contains(&Alarm::NoFiles));
        // Without them it ends: with no space, not with a failure.
        for _ in 0..600 {
            match world.spool.may_append() {
                Ok(()) => world.append_small(),
                Err(error) => assert_eq!(error, AppendError::Full),
            }
            world.settle_down_shortly();
        }
        let refused = world.promises.values().filter(|p| p.refused).count();
        assert!(refused > 0, "seed {seed}");
        assert!(!world.spool.status().alarms.contains(&Alarm::DiskFailed));
        world.faults.no_inodes = false;
        let before = world.acknowledged();
        world.now = Mono(world.now.0 + 1_100_000_000);
        world.settle_down_shortly();
        world.append_small();
        world.settle_down_shortly();
        assert_eq!(world.acknowledged(), before + 1, "seed {seed}");
        assert!(!world.spool.status().alarms.contains(&Alarm::NoFiles));
    }
}

impl World {
    fn settle_down_shortly(&mut self) {
        for _ in 0..4 {
            self.now = Mono(self.now.0 + 3_000_000);
            self.pump();
            while !self.in_flight.is_empty() {
                self.end_one();
                self.pump();
            }
        }
    }

    /// One message of a kilobyte for one recipient.
    fn append_small(&mut self) {
        self.append_of(1_000, 1);
    }
}

/// Lets a spool whose recovery has chores do them all, on a disk that works.
fn finish_chores(files: Files, spool: Spool, now: Mono) -> World {
    let mut world = World::new(1, calm());
    (world.files, world.spool, world.now) = (files, spool, now);
    world.settle_down();
    world
}

// One recovery is a fixpoint: whatever is damaged, the next start finds the same mail, with the
// same recipients waiting, when it comes at once, and when it comes after all that the first one
// had to write down. Nothing is hidden for one start and seen at another.
#[test]
fn two_recoveries_find_the_same_mail() {
    let (mut found, mut damaged) = (0, 0);
    for seed in 0..400 {
        let mut random = Random(seed);
        let faults = Faults {
            write_fails: [0, 3][random.below(2)],
            create_fails: 0,
            long_tail: random.chance(50),
            ..calm()
        };
        let mut world = World::new(random.next(), faults);
        for _ in 0..120 {
            world.step();
        }
        if random.chance(50) {
            world.crash();
        }
        for _ in 0..=random.below(4) {
            rot(&mut world.files, &mut random);
        }
        let (first, report) = recover(&world.files, config(1), world.now);
        let seen = mail(&world.files, &first);
        found += seen.len();
        damaged += usize::from(report.is_damaged());
        let (again, _) = recover(&world.files, config(2), world.now);
        assert_eq!(mail(&world.files, &again), seen, "seed {seed}: at once");
        let mut later = finish_chores(world.files, first, world.now);
        assert_eq!(
            mail(&later.files, &later.spool),
            seen,
            "seed {seed}: while it runs"
        );
        later.crash_only();
        assert_eq!(
            mail(&later.files, &later.spool),
            seen,
            "seed {seed}: at the next start"
        );
    }
    assert!(
        found > 2_000 && damaged > 100,
        "{found} found, {damaged} damaged"
    );
}

/// What waits and is whole: by sequence, who waits, and the checksum of the content.
type Mail = BTreeMap<u64, (Vec<(u32, u16)>, u64)>;

fn mail(files: &Files, spool: &Spool) -> Mail {
    let mut out = Mail::new();
    for (segment, slots) in spool.census() {
        for slot in 0..slots {
            let Some((id, extent, pending)) = spool.waiting_at(segment, slot) else {
                continue;
            };
            // What is not whole is condemned when it is read; the copying of stragglers reads it.
            let Ok((_, content, _)) = read(files, id, &extent) else {
                continue;
            };
            let pending = pending.iter().map(|p| (p.index, p.attempts)).collect();
            out.insert(id.sequence(), (pending, checksum(&content)));
        }
    }
    out
}

impl World {
    /// What a recovery found is the truth about the messages that it saw; but for those that were
    /// never acknowledged, and whose contents it could not read.
    fn believe(&mut self) {
        for (segment, slots) in self.spool.census() {
            for slot in 0..slots {
                let Some((id, extent, pending)) = self.spool.waiting_at(segment, slot) else {
                    continue;
                };
                let waiting: BTreeSet<u32> = pending.iter().map(|p| p.index).collect();
                let promise = self.promises.get_mut(&id.sequence()).expect("a promise");
                let content = extent.content as usize;
                let content = content..content + extent.location.len as usize;
                if !promise.acknowledged && is_hidden(&self.hidden, segment, &content) {
                    self.live.retain(|sequence| *sequence != id.sequence());
                    continue;
                }
                promise.acknowledged = true;
                promise.asked = (0..promise.recipients)
                    .filter(|recipient| !waiting.contains(recipient))
                    .collect();
            }
        }
    }

    /// The power goes while nothing is in flight.
    fn crash_only(&mut self) {
        assert!(self.in_flight.is_empty());
        self.tokens.clear();
        self.restart();
    }
}

/// Whether some block of a range is among those that cannot be read.
fn is_hidden(hidden: &BTreeSet<(u32, usize)>, segment: u32, range: &Range<usize>) -> bool {
    let first = range.start / BLOCK_BYTES * BLOCK_BYTES;
    let mut blocks = (first..range.end).step_by(BLOCK_BYTES);
    blocks.any(|at| hidden.contains(&(segment, at)))
}

/// Recovers while some blocks of the message log cannot be read; returns which segments.
fn recover_partly(world: &mut World, percent: u64) -> Vec<(Log, u32)> {
    let config = config(world.random.next());
    let (mut hidden, mut unheaded) = (BTreeSet::new(), BTreeSet::new());
    for ((log, number), bytes) in &world.files {
        for at in (SEGMENT_HEADER_BYTES..bytes.len()).step_by(BLOCK_BYTES) {
            if *log == Log::Message && world.random.chance(percent) {
                hidden.insert((*number, at));
            }
        }
        let may = bytes.len() >= SEGMENT_HEADER_BYTES && *log == Log::Message;
        if may && world.random.chance(percent) {
            unheaded.insert(*number);
        }
    }
    recover_without(world, config, hidden, &unheaded)
}

/// Recovers while nothing of these segments can be read.
fn recover_without_segments(world: &mut World, segments: &BTreeSet<u32>) {
    let mut hidden = BTreeSet::new();
    for ((_, number), bytes) in world.files.iter().filter(|file| file.0.0 == Log::Message) {
        let blocks = (SEGMENT_HEADER_BYTES..bytes.len()).step_by(BLOCK_BYTES);
        hidden.extend(
            blocks
                .filter(|_| segments.contains(number))
                .map(|at| (*number, at)),
        );
    }
    let config = config(world.random.next());
    recover_without(world, config, hidden, segments);
}

fn recover_without(
    world: &mut World,
    config: SpoolConfig,
    hidden: BTreeSet<(u32, usize)>,
    unheaded: &BTreeSet<u32>,
) -> Vec<(Log, u32)> {
    let mut recovery = Recovery::new(config);
    for ((log, number), bytes) in &world.files {
        let len = bytes.len() as u64;
        if bytes.len() < SEGMENT_HEADER_BYTES {
            let blank = bytes.iter().all(|byte| *byte == 0);
            recovery.elected(*log, *number, None, blank, len);
        } else if *log == Log::Message && unheaded.contains(number) {
            recovery.unheaded(*log, *number, len);
        } else if recovery.file(*log, *number, bytes, len).is_none() {
            let blank = bytes[..SEGMENT_HEADER_BYTES].iter().all(|byte| *byte == 0);
            let stamp = elect_stamp(&bytes[SEGMENT_HEADER_BYTES..]);
            recovery.elected(*log, *number, stamp, blank, len);
        }
    }
    for log in [Log::State, Log::Message] {
        for (number, stamp) in recovery.order(log) {
            let bytes = &world.files[&(log, number)];
            let mut scan = Scan::new(stamp);
            loop {
                match scan.step(bytes) {
                    Step::Need(range) => {
                        if log == Log::Message && is_hidden(&hidden, number, &range) {
                            recovery.unreadable(log, number, range.start as u32);
                            scan.unreadable();
                        } else {
                            scan.grant(range);
                        }
                    }
                    Step::Group(found) if log == Log::State => {
                        recovery.state_group(number, &found);
                    }
                    Step::Group(found) => recovery.mail_group(number, &found),
                    Step::End => break,
                }
            }
        }
        if log == Log::State {
            recovery.states_end();
        }
    }
    for check in recovery.checks() {
        if is_hidden(&hidden, check.segment, &check.content) {
            recovery.unchecked(&check);
        } else {
            recovery.check(&check, &world.files[&(Log::Message, check.segment)]);
        }
    }
    let (spool, _) = recovery.finish(u64::MAX / 2, world.now);
    let unread = spool.unread();
    world.hidden = hidden;
    world.spool = spool;
    world.spool.enable_reclaim();
    world.live = waiting(&world.spool).into_keys().collect();
    unread
}

// What could not be read at the start is taken in later: nothing of it is lost, and nothing that
// ended meanwhile comes back, however much was copied, recycled and compacted in between.
#[test]
fn what_is_taken_in_late_is_what_waits() {
    let (mut segments, mut messages) = (0, 0);
    for seed in 0..400 {
        let mut random = Random(seed);
        let faults = Faults {
            long_tail: random.chance(50),
            ..calm()
        };
        let mut world = World::new(random.next(), faults);
        for _ in 0..150 {
            world.step();
        }
        world.crash();
        world.check();
        let unread = recover_partly(&mut world, [1, 5, 30][random.below(3)]);
        segments += unread.len();
        let seen: BTreeSet<u64> = world.live.iter().copied().collect();
        let until = random.below(600);
        for _ in 0..until {
            world.step();
        }
        world.settle_down();
        for (log, number) in unread {
            let file = world.files[&(log, number)].clone();
            world.spool.doubtful(log, number, &file);
            let adopted = world.spool.adopt(log, number, &file, world.now);
            for id in adopted.waiting {
                assert!(!seen.contains(&id.sequence()), "seed {seed}: told twice");
                world.live.push(id.sequence());
                messages += 1;
            }
            assert_eq!(adopted.damaged, 0, "seed {seed}");
        }
        assert!(world.spool.unread().is_empty());
        world.settle_down();
        world.check();
        for _ in 0..100 {
            world.step();
        }
        world.quiesce();
        world.crash_only();
        assert!(
            !world.last_report.is_damaged(),
            "seed {seed}: a crash is no damage: {:?}",
            world.last_report
        );
        world.check();
    }
    assert!(
        segments > 200 && messages > 200,
        "{segments} segments, {messages} messages"
    );
}

// Some starts in a row that cannot read all, each after a crash that tore the last groups, and none
// that lives to take it in; then one that reads everything: what was torn is not called lost, and
// what was promised is there.
#[test]
fn what_a_start_could_not_read_is_judged_by_the_next_that_can() {
    let mut segments = 0;
    // Of the first 8,000 seeds those that showed something: two lives in a row that could not read
    // the same, and a checkpoint that ran while the last record of a message went.
    for seed in (0..400).chain([879, 2762]) {
        let mut random = Random(seed);
        let faults = Faults {
            long_tail: random.chance(50),
            ..calm()
        };
        let mut world = World::new(random.next(), faults);
        for _ in 0..150 {
            world.step();
        }
        for _ in 0..=random.below(3) {
            world.power_goes();
            segments += recover_partly(&mut world, [1, 5, 30][random.below(3)]).len();
            world.believe();
            for _ in 0..random.below(300) {
                world.step();
            }
        }
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            world.crash();
            world.check();
        }));
        if let Err(panic) = outcome {
            eprintln!("seed {seed} fails");
            std::panic::resume_unwind(panic);
        }
    }
    assert!(segments > 200, "{segments} segments");
}

/// Waiting messages that have another record than the one that counts, and one such each.
fn with_others(spool: &Spool) -> Vec<(MessageId, (Place, Extent))> {
    let ids = waiting(spool).into_keys();
    let ids = ids.map(|sequence| MessageId::new(3, sequence));
    ids.filter_map(|id| Some((id, *spool.other_records(id).first()?)))
        .collect()
}

/// A world in which stragglers are copied forward.
fn with_stragglers(seed: u64) -> World {
    let mut world = ready(seed);
    world.faults.long_tail = true;
    world
}

/// Cuts a file within the content of one of the records.
fn cut_within(
    files: &mut Files,
    records: &[(MessageId, Extent, Extent)],
    random: &mut Random,
) -> &'static str {
    for ((_, number), file) in files {
        let here = records.iter().flat_map(|(_, one, other)| [one, other]);
        let here = here.filter(|record| record.location.segment == *number);
        let here: Vec<&Extent> = here.filter(|record| record.location.len > 1).collect();
        if let Some(record) = here.get(random.below(here.len())) {
            file.truncate((record.content + record.location.len / 2) as usize);
        }
    }
    "cut within a content"
}

impl World {
    /// Whether a record can be read, in the life of its segment that it was written in.
    fn is_whole(&self, id: MessageId, record: &Extent) -> bool {
        let file = self.files.get(&(Log::Message, record.location.segment));
        let header = file.map(|file| SegmentHeader::decode(file));
        let Some(HeaderRead::Known(header)) = header else {
            return false;
        };
        header.stamp.generation == record.generation && read(&self.files, id, record).is_ok()
    }

    /// Puts messages off until the state log has been rewritten.
    fn write_down(&mut self, records: &[(MessageId, Extent, Extent)], attempts: u16) {
        for attempts in attempts..attempts + 150 {
            let kind = SettlementKind::Deferred {
                attempts,
                next: Wall(5),
            };
            for (id, ..) in records {
                // One whose last whole record was recycled may be gone.
                self.spool.settle(
                    Settlement {
                        id: *id,
                        recipient: 0,
                        kind,
                    },
                    self.now,
                );
            }
            self.now = Mono(self.now.0 + 20_000_000);
            self.pump();
            while !self.in_flight.is_empty() {
                self.end_one();
                self.pump();
            }
        }
    }
}

// The record that counts is damaged, and another one of the same message is not: that one counts
// from then on, and everything else stays as it was, also after a crash.
#[test]
fn another_record_serves() {
    let mut served = 0;
    for seed in 0..200 {
        let mut world = with_stragglers(seed);
        for _ in 0..400 {
            world.step();
            let Some((id, other)) = with_others(&world.spool).pop() else {
                continue;
            };
            let waited = world.spool.waiting(id).map(|(_, _, pending)| pending);
            let damaged = world.spool.find(id).expect("waits");
            assert_ne!(damaged, other.1);
            let spool = &mut world.spool;
            assert_eq!(spool.use_record(id, &other.1, other), Served::No);
            assert_eq!(
                spool.use_record(id, &damaged, other),
                Served::Yes,
                "seed {seed}"
            );
            assert_eq!(spool.find(id), Some(other.1), "seed {seed}");
            let waits = spool.waiting(id).map(|(_, _, pending)| pending);
            assert_eq!(waits, waited, "seed {seed}");
            assert_eq!(spool.use_record(id, &damaged, other), Served::No);
            let spares = spool.other_records(id);
            assert!(spares.iter().all(|(_, spare)| *spare != damaged));
            assert!(read(&world.files, id, &other.1).is_ok(), "seed {seed}");
            served += 1;
        }
        world.quiesce();
        world.crash();
        world.check();
    }
    assert!(served > 20, "{served} served");
}

// While recovery's messages are handed over, in the order of their places, some move to other
// records: each is handed over once all the same, by its place or by its id.
#[test]
fn messages_that_move_are_loaded_once() {
    let (mut served, mut unseen) = (0, 0);
    for seed in 0..400 {
        let mut world = with_stragglers(seed);
        for _ in 0..3_000 {
            world.step();
            if with_others(&world.spool).len() > 1 {
                break;
            }
        }
        world.power_goes();
        let spool = &mut world.spool;
        *spool = recover(&world.files, config(1), world.now).0;
        let expected: Vec<u64> = waiting(spool).into_keys().collect();
        let mut loaded = Vec::new();
        for (segment, slots) in spool.census() {
            for slot in 0..slots {
                let found = spool.load_at(segment, slot);
                loaded.extend(found.map(|waiting| waiting.0.sequence()));
                let others = with_others(spool);
                if others.is_empty() || !world.random.chance(20) {
                    continue;
                }
                let (id, other) = others[world.random.below(others.len())];
                let damaged = spool.find(id).expect("waits");
                match spool.use_record(id, &damaged, other) {
                    Served::No => panic!("seed {seed}: nothing has changed"),
                    Served::Yes => {}
                    Served::Unseen => {
                        loaded.push(id.sequence());
                        unseen += 1;
                    }
                }
                served += 1;
            }
        }
        loaded.sort_unstable();
        assert_eq!(loaded, expected, "seed {seed}");
    }
    assert!(
        served > 50 && unseen > 5,
        "{served} served, {unseen} unseen"
    );
}

// Bit rot, zeroed and swapped blocks and cut tails in a spool with messages that have two records:
// whoever has a whole one is not lost, now or after the next start.
#[test]
fn a_message_with_a_whole_record_is_not_lost() {
    let (mut pairs, mut halves, mut misfits) = (0, [0, 0], 0);
    for seed in 0..800 {
        let mut world = with_stragglers(seed);
        for _ in 0..3_000 {
            world.step();
            if with_others(&world.spool).len() > 1 {
                break;
            }
        }
        // Both records are durable: nothing is in flight that could tear.
        world.spool.reclaim.enabled = false;
        world.settle_down();
        let records: Vec<(MessageId, Extent, Extent)> = with_others(&world.spool)
            .into_iter()
            .filter_map(|(id, other)| Some((id, world.spool.find(id)?, other.1)))
            .collect();
        pairs += records.len();
        let mut random = Random(seed);
        let mail: Vec<u32> = records
            .iter()
            .flat_map(|(_, one, other)| [one.location.segment, other.location.segment])
            .collect();
        if mail.is_empty() {
            continue;
        }
        let victim = (Log::Message, mail[random.below(mail.len())]);
        let mut one = Files::from([(victim, world.files[&victim].clone())]);
        let what = if seed % 3 == 0 {
            cut_within(&mut one, &records, &mut random)
        } else {
            rot(&mut one, &mut random)
        };
        world.files.append(&mut one);
        for (start, half) in halves.iter_mut().enumerate() {
            world.spool = recover(&world.files, config(seed), world.now).0;
            let spool = &world.spool;
            let slots = spool.mail.iter().flat_map(|(_, segment)| &segment.slots);
            for slot in slots.filter(|slot| spool.place(slot.sequence).is_some()) {
                // A checkpoint would bury it.
                assert_ne!(slot.state, SlotState::Dead, "seed {seed} ({what})");
                misfits += usize::from(slot.state == SlotState::Unsure);
            }
            for (id, one, other) in &records {
                let whole = [one, other].map(|record| world.is_whole(*id, record));
                *half += usize::from(whole[0] != whole[1]);
                let found = world.spool.find(*id);
                let others = world.spool.other_records(*id).into_iter();
                let mut all = found.into_iter().chain(others.map(|(_, other)| other));
                assert!(
                    whole == [false, false] || all.any(|record| world.is_whole(*id, &record)),
                    "seed {seed} ({what}), start {start}: {id} {whole:?}"
                );
            }
            // Nor when what is known is written down, and stragglers are copied.
            world.write_down(&records, 300);
            world.spool.enable_reclaim();
            world.write_down(&records, 450);
        }
    }
    assert!(
        pairs > 100 && halves[0] > 30 && halves[1] > 30 && misfits > 10,
        "{pairs} pairs, {halves:?} halves, {misfits} misfits"
    );
}

impl World {
    /// Stores messages until so many segments are full.
    fn fill(&mut self, segments: u32) {
        while self.spool.mail.count(|s| s.phase == Phase::Sealed) < segments {
            self.append_of(3_000, 1);
            self.pump();
            self.end_all_but(|_| false);
        }
    }

    /// Messages that wait, as far as the model knows.
    fn ids(&self) -> Vec<MessageId> {
        let live = self.live.iter();
        live.map(|sequence| MessageId::new(3, *sequence)).collect()
    }

    /// The only recipient of a message is settled.
    fn settle_only(&mut self, id: MessageId, kind: SettlementKind) {
        let settlement = Settlement {
            id,
            recipient: 0,
            kind,
        };
        assert!(self.spool.settle(settlement, self.now));
    }

    /// As [`World::settle_only`], and that goes to the disk now.
    fn settle_now(&mut self, id: MessageId, kind: SettlementKind) {
        self.settle_only(id, kind);
        self.spool.due(self.now);
        self.pump();
        self.end_all_but(Self::is_mail_group);
    }

    /// What is in flight in groups of messages.
    fn flying(&self) -> Vec<MessageId> {
        let flights = self.spool.flights.iter().flatten();
        let groups = flights.filter_map(|flight| match flight {
            Flight::Mail { messages, .. } => Some(messages.iter().map(|message| message.id)),
            _ => None,
        });
        groups.flatten().collect()
    }

    fn is_state_group(action: &Action) -> bool {
        matches!(action, Action::Write { log: Log::State, offset, .. } if *offset > 0)
    }

    /// Fails the write of tombstones that a checkpoint wrote down, if there is one: nothing of it
    /// is on the disk.
    fn fail_tombstones(&mut self) -> bool {
        if self.spool.checkpoint.is_none() {
            return false;
        }
        let flights = &self.spool.flights;
        let buries = |action: &Action| match action {
            Action::Write { ticket, .. } => match &flights[*ticket as usize] {
                Some(Flight::State { records, .. }) => {
                    let mut records = records.iter();
                    records.any(|record| matches!(record, StateRecord::Dead { .. }))
                }
                _ => false,
            },
            _ => false,
        };
        let Some(at) = self.in_flight.iter().position(buries) else {
            return false;
        };
        if let Action::Write { ticket, block, .. } = self.in_flight.swap_remove(at) {
            self.spool.written(ticket, block, Outcome::Failed, self.now);
        }
        true
    }

    fn state_lives(&self) -> BTreeSet<(u32, u64)> {
        let segments = self.spool.state.iter();
        segments
            .map(|(number, segment)| (number, segment.stamp.generation))
            .collect()
    }
}

// A message dies while a copy of it is being written. The copy's record can be found after a crash,
// so its settlement must outlive the segment that the message was in, and any checkpoint.
#[test]
fn what_dies_while_it_is_copied_stays_dead() {
    let mut world = ready(9);
    world.fill(8);
    // Of each segment one message lives: the first victim is copied, and stays in flight.
    let mut kept = BTreeSet::new();
    for id in world.ids() {
        let place = world.spool.place(id.sequence()).expect("it lives");
        if !kept.insert(place.segment) {
            world.settle_now(id, SettlementKind::Delivered);
        }
        if !world.flying().is_empty() {
            break;
        }
    }
    let copied = world.flying();
    assert!(!copied.is_empty(), "something is copied");
    for id in &copied {
        world.settle_now(*id, SettlementKind::Delivered);
    }
    // Until every settlement so far is in a checkpoint, or forgotten.
    let mut ids = world.ids().into_iter();
    let other = ids.find(|id| world.spool.find(*id).is_some());
    let other = other.expect("others live");
    let old = world.state_lives();
    for attempts in 1..1_000 {
        let next = Wall(u64::from(attempts) * 1_000);
        world.settle_now(other, SettlementKind::Deferred { attempts, next });
        if old.is_disjoint(&world.state_lives()) {
            break;
        }
    }
    assert!(old.is_disjoint(&world.state_lives()), "no checkpoint");
    assert_eq!(world.flying(), copied);
    world.end_all_but(|_| false);
    world.power_goes();
    world.restart();
    for id in copied {
        assert!(world.spool.find(id).is_none(), "{id} came back");
    }
}

// The disk refuses a write of a checkpoint. As long as it is not written elsewhere, the segments
// that say the same are kept: a crash brings nothing back.
#[test]
fn a_checkpoint_waits_for_what_is_written_again() {
    let mut world = ready(11);
    world.fill(2);
    let ids = world.ids();
    let (other, settled) = (ids[0], &ids[1..ids.len() - 1]);
    for id in settled {
        world.settle_now(*id, SettlementKind::Delivered);
    }
    let mut failed = false;
    for attempts in 1..1_000 {
        let next = Wall(u64::from(attempts) * 1_000);
        world.settle_only(other, SettlementKind::Deferred { attempts, next });
        world.spool.due(world.now);
        world.pump();
        while !failed && !world.in_flight.is_empty() {
            failed = world.fail_tombstones();
            if !failed {
                world.end_one();
            }
            world.pump();
        }
        if failed {
            break;
        }
    }
    assert!(failed, "no checkpoint");
    // The second attempt takes its time; all else goes on.
    for _ in 0..200 {
        world.now = Mono(world.now.0 + 20_000_000);
        world.pump();
        world.end_all_but(World::is_state_group);
    }
    world.in_flight.clear();
    world.restart();
    for id in settled {
        assert!(world.spool.find(*id).is_none(), "{id} came back");
    }
    assert!(world.spool.find(other).is_some());
}

// A file is cut so short that none of its groups is left: what was in it cannot be named, except
// for the last group, but it is not passed over in silence.
#[test]
fn a_file_without_any_of_its_groups_is_reported() {
    let mut world = ready(10);
    world.fill(2);
    world.quiesce();
    world.spool.close(world.now);
    world.quiesce();
    let first = world.live.first().copied();
    let place = first.and_then(|sequence| world.spool.place(sequence));
    let number = place.expect("it lives").segment;
    let file = world.files.get_mut(&(Log::Message, number));
    file.expect("its file").truncate(2 * BLOCK_BYTES);
    let (_, report) = recover(&world.files, config(1), world.now);
    let length = Damage::Length(Log::Message, number);
    assert!(report.damage.contains(&length), "{report:?}");
}

// What comes once in a while is written soon, for what waits at a crash is sent again; what comes
// thick and fast waits for company, and fills groups.
#[test]
fn settlements_wait_for_company_where_there_is_some() {
    let mut world = ready(8);
    for _ in 0..40 {
        world.append_of(100, 1);
    }
    world.settle_down();
    let mut live = world.ids();
    // One settlement; how many nanoseconds it may wait.
    let mut settle = |world: &mut World| {
        let id = live.pop().expect("one more");
        world.settle_only(id, SettlementKind::Delivered);
        world.spool.wake_at().0 - world.now.0
    };
    // Groups of settlements that are written within a time.
    let pass = |world: &mut World, time: u64| {
        world.now = Mono(world.now.0 + time);
        world.pump();
        let flying = world.in_flight.iter();
        let groups = flying.filter(|action| World::is_state_group(action));
        let groups = groups.count();
        world.end_all_but(|_| false);
        groups
    };
    let (soon, late) = (250_000, 2_000_000);
    for _ in 0..5 {
        assert_eq!(settle(&mut world), soon);
        assert_eq!(pass(&mut world, soon), 1);
        assert_eq!(pass(&mut world, 750_000), 0);
    }
    for already in 0..12 {
        assert_eq!(settle(&mut world), soon - already * 20_000);
        assert_eq!(pass(&mut world, 20_000), 0);
    }
    assert_eq!(pass(&mut world, 10_000), 1);
    assert_eq!(settle(&mut world), late);
    assert_eq!(pass(&mut world, soon), 0);
    assert_eq!(pass(&mut world, late - soon), 1);
    assert_eq!(settle(&mut world), soon);
}

// A record names a shard that there cannot be: one flipped bit. It is no record then.
#[test]
fn an_id_of_no_shard_is_damage() {
    let mut world = ready(12);
    world.fill(1);
    world.quiesce();
    let id = world.ids()[0];
    let extent = world.spool.find(id).expect("it lives");
    let place = extent.location;
    let file = world.files.get_mut(&(Log::Message, place.segment));
    let file = file.expect("its file");
    file[place.offset as usize + 15] |= 0xc0;
    let (spool, report) = recover(&world.files, config(1), world.now);
    assert!(spool.find(id).is_none());
    assert!(report.is_damaged(), "{report:?}");
    assert!(read(&world.files, id, &extent).is_err());
}

// A node without inodes is started again: what it had free serves, and results of deliveries are
// durable.
#[test]
fn a_start_without_inodes_uses_what_there_is() {
    let mut world = ready(13);
    world.fill(1);
    world.settle_down();
    world.faults.no_inodes = true;
    world.crash();
    world.check();
    let id = world.ids()[0];
    world.settle_now(id, SettlementKind::Delivered);
    world.settle_down();
    world.crash();
    assert!(world.spool.find(id).is_none(), "it came back");
}

// No file can be made, stragglers wait for room, and nothing is settled any more: whatever was
// taken is stored or refused all the same.
#[test]
fn new_mail_does_not_wait_for_stragglers() {
    let mut refused = 0;
    for seed in 0..200 {
        let mut world = with_stragglers(seed);
        world.fill(4);
        world.faults.no_inodes = true;
        for _ in 0..1_500 {
            world.step();
            // Sizes that fill what is left.
            if world.random.chance(20) && world.spool.may_append().is_ok() {
                world.append_of(3_000, 1);
            }
        }
        world.settle_down();
        assert!(world.tokens.is_empty(), "seed {seed}: {:?}", world.tokens);
        let promises = world.promises.values();
        refused += promises.filter(|promise| promise.refused).count();
    }
    assert!(refused > 1_000, "{refused} refused");
}

/// The numbers of the groups of messages on the disk, each with where it is.
fn group_numbers(files: &Files) -> Vec<(u64, u32, u32)> {
    let mut numbers = Vec::new();
    for ((log, number), bytes) in files {
        if *log != Log::Message || bytes.len() < SEGMENT_HEADER_BYTES {
            continue;
        }
        let HeaderRead::Known(header) = SegmentHeader::decode(bytes) else {
            continue;
        };
        let mut scan = Scan::new(header.stamp);
        scan.grant(0..bytes.len());
        while let Step::Group(found) = scan.step(bytes) {
            numbers.push((found.header.sequence, *number, found.at));
        }
    }
    numbers.sort_unstable();
    numbers
}

// Which groups a life cannot read is on disk before it writes one of its own. The life after it, if
// it can read neither, takes other numbers.
#[test]
fn lives_that_cannot_read_take_numbers_of_their_own() {
    for slow in [true, false] {
        let mut world = ready(3);
        world.fill(2);
        world.settle_down();
        let mut stored = world.acknowledged();
        for _ in 0..3 {
            let all = world.files.keys().filter(|(log, _)| *log == Log::Message);
            let all = all.map(|(_, number)| *number).collect();
            recover_without_segments(&mut world, &all);
            assert!(!world.spool.unread().is_empty());
            for _ in 0..200 {
                world.now = Mono(world.now.0 + 20_000_000);
                if world.spool.may_append().is_ok() && world.tokens.is_empty() {
                    world.append_of(300, 1);
                }
                world.pump();
                world.end_all_but(|action| slow && World::is_state_group(action));
            }
            let now = world.acknowledged();
            assert_eq!(now == stored, slow, "{now} stored, {stored} before");
            stored = now;
            // What is in flight never reaches the disk.
            world.in_flight.clear();
            world.tokens.clear();
        }
        let numbers = group_numbers(&world.files);
        let twice = numbers.windows(2).find(|two| two[0].0 == two[1].0);
        assert_eq!(twice, None);
    }
}

// A record goes while a checkpoint is being written, and another one of its message is where
// nothing can be read. That the message ended is in this checkpoint, though it began before.
#[test]
fn what_ends_during_a_checkpoint_stays_ended() {
    let mut world = ready(5);
    world.fill(3);
    world.settle_down();
    let ids = world.ids();
    let place_of = |world: &World, id: MessageId| world.spool.place(id.sequence());
    let gone = ids[0];
    let unread = place_of(&world, gone).expect("it waits").segment;
    recover_without_segments(&mut world, &BTreeSet::from([unread]));
    assert!(world.spool.find(gone).is_none(), "it is hidden");
    let mut ids = ids.into_iter();
    let other = ids
        .find(|id| place_of(&world, *id).is_some())
        .expect("others can be read");
    world.settle_down();
    let old = world.state_lives();
    for attempts in 1..1_000 {
        let next = Wall(u64::from(attempts) * 1_000);
        world.settle_only(other, SettlementKind::Deferred { attempts, next });
        world.spool.due(world.now);
        world.pump();
        if world.spool.checkpoint.is_some() {
            break;
        }
        world.end_all_but(|_| false);
    }
    assert!(world.spool.checkpoint.is_some(), "no checkpoint");
    let place = place_of(&world, other).expect("it waits");
    let mut slot = *world.spool.slot(place).expect("its slot");
    slot.sequence = gone.sequence();
    slot.state = SlotState::Dead;
    world.spool.outlive(&[slot]);
    world.settle_down();
    let kept = world.state_lives();
    assert!(
        world.spool.checkpoint.is_none() && old != kept,
        "it goes on"
    );
    world.crash_only();
    assert!(world.spool.find(gone).is_none(), "it came back");
    assert!(world.spool.find(other).is_some());
}

// Writes fail while no file can be made, now and then and at the end for good: what is free is
// tried instead, so that whatever was taken is stored or refused, a large message with a file of
// its own as well.
#[test]
fn a_failed_disk_without_inodes_tries_what_is_free() {
    let mut large = 0;
    for seed in 0..200 {
        let mut world = with_stragglers(seed);
        world.fill(2);
        world.faults.write_fails = 5;
        for turn in 0..1_500 {
            world.faults.no_inodes = turn >= 1_000 || turn / 50 % 2 == 1;
            world.step();
            if world.random.chance(10) && world.spool.may_append().is_ok() {
                world.append_of(20_000, 1);
                large += 1;
            }
        }
        world.faults.write_fails = 0;
        world.settle_down();
        assert!(world.tokens.is_empty(), "seed {seed}: {:?}", world.tokens);
        // What is settled is written down as well, if a segment is free.
        let waiting = world.spool.status().settlements_waiting;
        let free = world.spool.state.find(|s| s.phase == Phase::Free);
        assert!(waiting == 0 || free.is_none(), "seed {seed}: {free:?}");
    }
    assert!(large > 1_000, "{large} large messages");
}

// A tombstone has no place, and no file can be made for it: what must not be written before it is
// refused, the large message whose file is there already and the small one that comes.
#[test]
fn mail_is_refused_while_a_tombstone_has_no_place() {
    let mut world = ready(17);
    world.append_of(20_000, 1);
    world.pump();
    world.end_all_but(World::is_mail_group);
    assert!(world.spool.job.is_some() && !world.in_flight.is_empty());
    world.append_of(300, 1);
    world.pump();
    let flights = &world.spool.flights;
    let small = world.in_flight.iter().position(|action| match action {
        Action::Write { ticket, .. } => {
            matches!(flights[*ticket as usize], Some(Flight::Mail { .. }))
        }
        _ => false,
    });
    let last = world.in_flight.len() - 1;
    world
        .in_flight
        .swap(small.expect("it is being written"), last);
    let pieces: Vec<Action> = world.in_flight.drain(..last).collect();
    world.fail_mail_group();
    world.in_flight.extend(pieces);
    assert_eq!(world.spool.graves.len(), 1);
    world.faults.no_inodes = true;
    let states: Vec<u32> = world.spool.state.iter().map(|(number, _)| number).collect();
    for number in states {
        world.spool.state.at(number).phase = Phase::Removing;
    }
    world.spool.state.active = None;
    world.settle_down();
    assert!(world.tokens.is_empty(), "the large one waits");
    for _ in 0..200 {
        world.now = Mono(world.now.0 + 20_000_000);
        world.pump();
        if world.spool.may_append().is_ok() {
            world.append_of(300, 1);
        }
        world.pump();
        world.end_all_but(|_| false);
    }
    world.settle_down();
    assert!(world.tokens.is_empty(), "a small one waits");
    assert_eq!(world.acknowledged(), 0);
    world.faults.no_inodes = false;
    world.settle_down();
    world.append_of(300, 1);
    world.settle_down();
    assert_eq!(world.acknowledged(), 1);
}

// A group whose write failed can look whole, as long as the memory of the machine holds it: whoever
// finds it writes it again, whatever was written since.
#[test]
fn a_group_that_failed_and_looks_whole_is_written_again() {
    let mut world = ready(23);
    world.fill(1);
    world.append_of(300, 1);
    world.pump();
    let before = group_numbers(&world.files).len();
    world.fail_mail_group();
    let all = group_numbers(&world.files);
    let (failed, segment, at) = *all.last().expect("groups");
    assert_eq!(all.len(), before + 1);
    world.settle_down();
    for _ in 0..20 {
        world.append_of(300, 1);
        world.settle_down();
    }
    let last = group_numbers(&world.files).last().expect("groups").0;
    assert!(last > failed + 10, "others vouch for it: {last}, {failed}");
    let mut recovery = scanned(&world.files, config(23));
    let again = recovery.rewrites().into_iter();
    let mail = again.filter(|again| again.log == Log::Message);
    let places: Vec<(u32, usize)> = mail
        .map(|again| (again.segment, again.range.start))
        .collect();
    assert!(places.contains(&(segment, at as usize)), "{places:?}");
    assert!(places.len() < 10, "not all are: {places:?}");
}
