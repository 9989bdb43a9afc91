//! dates - how old a message is, and when it is due, whatever the operator does to the clock.
//!
//! What: dates in the spool are those of the wall clock, which may jump: an operator sets it, a
//! battery is empty, a virtual machine wakes up. A jump of a month must not expire all mail at
//! once, with a notification for each, nor make all that waits due in the same moment. So the jumps
//! are kept, and ages and due dates are corrected for those that lie in between.
//! Why this way: while the process runs a jump is what the wall clock moves beyond the clock that
//! never jumps. Across a restart there is no such clock, and a month without power looks like a
//! jump of a month: what the last life noted as its date is compared with the first of this one,
//! and at most a tenth of `delivery.expire` of the time in between counts. Mail that lay on a dead
//! machine for a month is therefore tried again for a while, rather than returned without an
//! attempt.
//!
//! Worked example, the clock set from 10:00 to 12:00: a message of 09:30 is 40 minutes old at
//! 12:10; one that was due at 10:20 is due at 12:20; one of 12:05 is 5 minutes old.

use std::time::Duration;

use crate::limits::JUMPS_KEPT_MAX;
use crate::time::{Mono, Wall};

/// Differences up to this are rounding, slewing, or a late turn of the loop, and no jump.
const JUMP_MIN_MS: u64 = 5_000;

/// A jump is seen so much later at most, and dated by when it was seen.
const JUMP_SEEN_MS: i128 = 60_000;

/// Words of [`Dates::encode`]: the last date, how many jumps, two words per jump.
pub const DATES_WORDS: usize = 2 + 2 * JUMPS_KEPT_MAX;

/// How much of the time between two lives counts, where mail expires after `expire`.
#[must_use]
pub fn counted_max(expire: Duration) -> Duration {
    expire / 10
}

/// The wall clock, about to show `at`, showed `millis` more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Jump {
    at: Wall,
    millis: i64,
}

impl Jump {
    /// What the clock showed then.
    fn after(&self) -> i128 {
        i128::from(self.at.0) + i128::from(self.millis)
    }
}

fn length(millis: i128) -> Duration {
    Duration::from_millis(u64::try_from(millis.max(0)).unwrap_or(u64::MAX))
}

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dates {
    /// In the order in which they happened.
    jumps: Vec<Jump>,
    /// The latest reading of both clocks in this life.
    last: Option<(Mono, Wall)>,
    /// The latest date of an earlier life.
    before: Option<Wall>,
}

impl Dates {
    /// A life that begins at `now`, after one that `self` is all that is known of. At most
    /// `counted_max` of the time between them counts.
    #[must_use]
    pub fn resume(mut self, now: Wall, counted_max: Duration) -> Self {
        let last = self.last.map(|(_, wall)| wall).or(self.before);
        if let Some(last) = last {
            let counted = u64::try_from(counted_max.as_millis()).unwrap_or(u64::MAX);
            let gap = i128::from(now.0) - i128::from(last.0);
            // Backwards by any amount; forwards by what does not count.
            let beyond = if gap < 0 {
                gap
            } else {
                (gap - i128::from(counted)).max(0)
            };
            let at = Wall(
                last.0
                    .saturating_add(counted.min(now.0.saturating_sub(last.0))),
            );
            self.note(at, beyond);
        }
        self.last = None;
        self.before = Some(now);
        self
    }

    /// Reads both clocks; true when the date has jumped since they were read last.
    pub fn observe(&mut self, now: Mono, wall: Wall) -> bool {
        let jumped = self.last.is_some_and(|(then, date)| {
            let expected = date.after(now.since(then));
            self.note(expected, i128::from(wall.0) - i128::from(expected.0))
        });
        self.last = Some((now, wall));
        jumped
    }

    fn note(&mut self, at: Wall, millis: i128) -> bool {
        if millis.unsigned_abs() < u128::from(JUMP_MIN_MS) {
            return false;
        }
        let bound = i128::from(i64::MAX);
        let millis = i64::try_from(millis.clamp(-bound, bound)).unwrap_or(0);
        if self.jumps.len() >= JUMPS_KEPT_MAX {
            // The oldest is the one that the fewest messages remember.
            self.jumps.remove(0);
        }
        self.jumps.push(Jump { at, millis });
        true
    }

    /// How old a message is at `wall`.
    ///
    /// Its date may have been shown more than once, where the clock was set back: the latest time
    /// is taken, since the younger is the safer guess. A date that was never shown, or only before
    /// the first jump, is of before every jump that led beyond it.
    #[must_use]
    pub fn age(&self, received_at: Wall, wall: Wall) -> Duration {
        let age = i128::from(wall.0) - i128::from(received_at.0);
        let received = i128::from(received_at.0);
        // What the jumps since then have added.
        let mut added = 0;
        let mut until = i128::MAX;
        for jump in self.jumps.iter().rev() {
            if received >= jump.after() - JUMP_SEEN_MS && received <= until {
                return length(age - added);
            }
            added += i128::from(jump.millis);
            until = i128::from(jump.at.0);
        }
        if received > until {
            let since = self.jumps.iter().filter(|jump| received < jump.after());
            added = since.map(|jump| i128::from(jump.millis)).sum();
        }
        length(age - added)
    }

    /// When what was due at `due` is due by the clock as it is now.
    #[must_use]
    pub fn due(&self, due: Wall) -> Wall {
        let mut due = due;
        for jump in &self.jumps {
            let Ok(millis) = u64::try_from(jump.millis) else {
                // Set back: the schedule bounds how long that can make anybody wait.
                continue;
            };
            // A date that the clock never showed is of before the jump.
            if due >= jump.at && due.0 < jump.at.0.saturating_add(millis) {
                due = Wall(due.0.saturating_add(millis));
            }
        }
        due
    }

    /// As words of a table that outlives the process.
    #[must_use]
    pub fn encode(&self) -> [u64; DATES_WORDS] {
        let mut words = [0; DATES_WORDS];
        words[0] = self
            .last
            .map(|(_, wall)| wall)
            .or(self.before)
            .map_or(0, |wall| wall.0);
        words[1] = self.jumps.len() as u64;
        for (jump, pair) in self.jumps.iter().zip(words[2..].chunks_exact_mut(2)) {
            pair.copy_from_slice(&[jump.at.0, jump.millis.cast_unsigned()]);
        }
        words
    }

    /// Reads words back. Total: any words give dates, at worst wrong ones.
    #[must_use]
    pub fn decode(words: &[u64]) -> Self {
        let [last, count, ref pairs @ ..] = *words else {
            return Self::default();
        };
        let count = usize::try_from(count).unwrap_or(0).min(JUMPS_KEPT_MAX);
        let jump = |pair: &[u64]| Jump {
            at: Wall(pair[0]),
            millis: pair[1].cast_signed(),
        };
        Self {
            jumps: pairs.chunks_exact(2).take(count).map(jump).collect(),
            last: None,
            before: (last > 0).then_some(Wall(last)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000;
    const HOUR: u64 = 3_600 * SECOND;
    const DAY: u64 = 24 * HOUR;
    /// An ordinary date.
    const NOON: u64 = 1_795_262_400_000;
    const COUNTED: Duration = Duration::from_secs(12 * 3_600);

    fn mono(millis: u64) -> Mono {
        Mono(millis * 1_000_000)
    }

    fn hours(duration: Duration) -> u64 {
        (duration.as_secs() + 1_800) / 3_600
    }

    // While running: an hour of life, a jump, an hour of life. Ages and dates go by the hours
    // lived.
    #[test]
    fn a_jump_while_running_ages_nobody() {
        for jump in [HOUR as i64, -(HOUR as i64), 30 * DAY as i64, -(DAY as i64)] {
            let mut dates = Dates::default();
            assert!(!dates.observe(mono(0), Wall(NOON)));
            assert!(!dates.observe(mono(HOUR), Wall(NOON + HOUR)));
            let after = |millis: u64| Wall((NOON + millis).saturating_add_signed(jump));
            assert!(dates.observe(mono(HOUR + SECOND), after(HOUR + SECOND)));
            assert!(!dates.observe(mono(2 * HOUR), after(2 * HOUR)));
            let now = after(2 * HOUR);
            // Set back by an hour, a message of the hour that came twice may be of either.
            let sure = Wall(NOON - 30 * DAY);
            assert_eq!(hours(dates.age(sure, now)), 30 * 24 + 2, "{jump}");
            assert!(hours(dates.age(Wall(NOON), now)) <= 2, "{jump}");
            assert_eq!(hours(dates.age(after(HOUR + HOUR / 2), now)), 1, "{jump}");
            // Due half an hour after the jump, as written before it.
            let due = dates.due(Wall(NOON + HOUR + HOUR / 2));
            let expected = if jump > 0 {
                after(HOUR + HOUR / 2)
            } else {
                Wall(NOON + HOUR + HOUR / 2)
            };
            assert_eq!(due, expected, "{jump}");
        }
    }

    // Across a restart: what the clock jumps beyond half a day of absence does not count.
    #[test]
    fn a_jump_across_a_restart_ages_by_the_time_that_counts() {
        let cases = [
            (HOUR as i64, 1),
            (-(HOUR as i64), 0),
            (30 * DAY as i64, 12),
            (-(DAY as i64), 0),
        ];
        for (jump, counted) in cases {
            let mut dates = Dates::default().resume(Wall(NOON), COUNTED);
            dates.observe(mono(5), Wall(NOON));
            dates.observe(mono(HOUR), Wall(NOON + HOUR));
            // The words are all that the next life has.
            let old = Dates::decode(&dates.encode());
            let begin = Wall((NOON + HOUR).saturating_add_signed(jump));
            let mut dates = old.resume(begin, COUNTED);
            assert!(!dates.observe(mono(77), begin));
            let received = Wall(NOON - 2 * DAY);
            assert_eq!(hours(dates.age(received, begin)), 49 + counted, "{jump}");
            assert_eq!(hours(dates.age(begin, begin.after(COUNTED))), 12);
            // A retry that was due in a day is due in a day, less what counts: no storm.
            if jump > DAY as i64 {
                let wait = dates.due(Wall(NOON + HOUR + DAY)).since(begin);
                assert_eq!(hours(wait), 24 - counted);
            }
        }
    }

    // Set back by a day, then forward by a month: mail of before both, of the day that came twice,
    // and of after, is as old as it is, or the younger of two ages where its date came twice.
    #[test]
    fn jumps_both_ways_age_nobody() {
        let mut dates = Dates::default();
        dates.observe(mono(0), Wall(NOON));
        dates.observe(mono(HOUR), Wall(NOON + HOUR - DAY));
        dates.observe(mono(2 * HOUR), Wall(NOON + 2 * HOUR + 29 * DAY));
        let now = Wall(NOON + 3 * HOUR + 29 * DAY);
        dates.observe(mono(3 * HOUR), now);
        let age = |at: Wall| hours(dates.age(at, now));
        assert_eq!(age(Wall(NOON - 2 * DAY)), 51);
        // Twelve hours before the first jump; its date was never shown again.
        assert_eq!(age(Wall(NOON - DAY / 2)), 15);
        assert_eq!(age(Wall(NOON)), 3);
        assert_eq!(age(Wall(NOON + HOUR + HOUR / 2 - DAY)), 2);
        assert_eq!(age(Wall(NOON + 2 * HOUR + 29 * DAY)), 1);
    }

    // A crash loop, each life a second long and the clock right: nothing is noted.
    #[test]
    fn lives_in_a_row_are_no_jumps() {
        let mut dates = Dates::default();
        for life in 0..500 {
            let now = Wall(NOON + life * 2 * SECOND);
            dates = Dates::decode(&dates.resume(now, COUNTED).encode());
        }
        assert!(dates.jumps.is_empty());
        assert_eq!(dates.before, Some(Wall(NOON + 998 * SECOND)));
    }

    // However often the clock jumps the notes are bounded, and any words can be read.
    #[test]
    fn notes_are_bounded_and_reading_is_total() {
        let mut dates = Dates::default();
        for step in 0..1_000u64 {
            let far = if step % 2 == 0 { 0 } else { 40 * DAY };
            dates.observe(mono(step * SECOND), Wall(NOON + step * SECOND + far));
        }
        assert_eq!(dates.jumps.len(), JUMPS_KEPT_MAX);
        assert_eq!(Dates::decode(&dates.encode()).jumps, dates.jumps);
        let mut random = crate::message::testing::Random(3);
        for _ in 0..500 {
            let words: Vec<u64> = (0..random.below(DATES_WORDS + 2))
                .map(|_| random.next())
                .collect();
            let dates = Dates::decode(&words).resume(Wall(random.next()), COUNTED);
            let (age, due) = (
                dates.age(Wall(random.next()), Wall(random.next())),
                dates.due(Wall(random.next())),
            );
            assert!(age <= Duration::from_millis(u64::MAX) && due <= Wall(u64::MAX));
        }
    }
}
