//! Rules of the spool, one by one, where the worlds of the parent would meet them by chance only.

use super::*;
use crate::spool::Alarm;

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
    /// The power goes while nothing is in flight.
    fn crash_only(&mut self) {
        assert!(self.in_flight.is_empty());
        self.tokens.clear();
        self.restart();
    }
}
