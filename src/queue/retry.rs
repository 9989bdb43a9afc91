//! retry - when a message is tried again, and when it is too old.
//!
//! What: [`RetryPolicy`], a list of delays whose last one repeats, plus jitter, plus the expiry.
//! RFC 5321 4.5.4.1 advises 30 minutes or more between attempts and names variable strategies as
//! better: greylisting receivers open after about five minutes, so the first delays are shorter and
//! the later ones much longer. The RFC's expiry is 4 to 5 days; ours is 4 by default.

use std::time::Duration;

use crate::limits::{QUEUE_EXPIRY_MAX, QUEUE_RETRY_DELAY_MIN, QUEUE_RETRY_DELAYS_MAX};

use super::Random;

const MINUTE: Duration = Duration::from_secs(60);

/// A retry schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    delays: Box<[Duration]>,
    jitter_percent: u8,
    expiry: Duration,
}

/// Why a schedule is refused; the operator's mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryError {
    /// No delay was given.
    Empty,
    /// More than `limits::QUEUE_RETRY_DELAYS_MAX`.
    TooMany,
    /// A delay under `limits::QUEUE_RETRY_DELAY_MIN`: it would hammer the receiver.
    TooShort(Duration),
    /// Jitter over 50 percent.
    Jitter(u8),
    /// An expiry of zero, or over `limits::QUEUE_EXPIRY_MAX`.
    Expiry(Duration),
}

impl std::fmt::Display for RetryError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Empty => write!(f, "a retry schedule needs at least one delay"),
            Self::TooMany => write!(f, "more than {QUEUE_RETRY_DELAYS_MAX} delays"),
            Self::TooShort(delay) => {
                write!(f, "a delay of {delay:?} is under {QUEUE_RETRY_DELAY_MIN:?}")
            }
            Self::Jitter(percent) => write!(f, "a jitter of {percent} % is over 50 %"),
            Self::Expiry(expiry) => {
                write!(
                    f,
                    "an expiry of {expiry:?} is zero or over {QUEUE_EXPIRY_MAX:?}"
                )
            }
        }
    }
}

impl std::error::Error for RetryError {}

impl Default for RetryPolicy {
    /// 5 min, 15 min, 30 min, 1 h, 2 h, then every 4 h; 10 % jitter; 4 days.
    fn default() -> Self {
        Self {
            delays: [5, 15, 30, 60, 120, 240]
                .map(|minutes| MINUTE * minutes)
                .into(),
            jitter_percent: 10,
            expiry: MINUTE * 60 * 24 * 4,
        }
    }
}

impl RetryPolicy {
    /// A schedule: `delays[n]` after attempt n + 1, the last one from then on, each lengthened by
    /// up to `jitter_percent`.
    ///
    /// # Errors
    /// Where a value is out of its bounds.
    pub fn new(
        delays: &[Duration],
        jitter_percent: u8,
        expiry: Duration,
    ) -> Result<Self, RetryError> {
        if delays.is_empty() {
            return Err(RetryError::Empty);
        }
        if delays.len() > QUEUE_RETRY_DELAYS_MAX {
            return Err(RetryError::TooMany);
        }
        if let Some(delay) = delays.iter().find(|d| **d < QUEUE_RETRY_DELAY_MIN) {
            return Err(RetryError::TooShort(*delay));
        }
        if jitter_percent > 50 {
            return Err(RetryError::Jitter(jitter_percent));
        }
        if expiry.is_zero() || expiry > QUEUE_EXPIRY_MAX {
            return Err(RetryError::Expiry(expiry));
        }
        Ok(Self {
            delays: delays.into(),
            jitter_percent,
            expiry,
        })
    }

    /// The age at which a recipient that could not be delivered is reported to the sender.
    #[must_use]
    pub fn expiry(&self) -> Duration {
        self.expiry
    }

    /// The delay after the `attempts`-th attempt, without jitter.
    #[must_use]
    pub fn delay(&self, attempts: u16) -> Duration {
        let last = self.delays.len() - 1;
        self.delays[usize::from(attempts.saturating_sub(1)).min(last)]
    }

    /// The delay after the `attempts`-th attempt: jitter only lengthens it, so that the schedule is
    /// a lower bound that a greylisting receiver can rely on.
    pub(super) fn jittered(&self, attempts: u16, random: &mut Random) -> Duration {
        jitter(self.delay(attempts), self.jitter_percent, random)
    }
}

/// `delay` lengthened by up to `percent`.
pub(super) fn jitter(delay: Duration, percent: u8, random: &mut Random) -> Duration {
    let spread = delay.as_nanos() * u128::from(percent) / 100;
    let spread = u64::try_from(spread).unwrap_or(u64::MAX - 1);
    delay.saturating_add(Duration::from_nanos(random.below(spread + 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    // The default schedule, attempt by attempt.
    #[test]
    fn default_schedule_table() {
        let policy = RetryPolicy::default();
        let table = [
            (0, 5),
            (1, 5),
            (2, 15),
            (3, 30),
            (4, 60),
            (5, 120),
            (6, 240),
            (7, 240),
        ];
        for (attempts, minutes) in table {
            assert_eq!(
                policy.delay(attempts),
                MINUTE * minutes,
                "after attempt {attempts}"
            );
        }
        assert_eq!(policy.delay(u16::MAX), MINUTE * 240);
        assert_eq!(policy.expiry(), Duration::from_secs(345_600));
    }

    // Jitter lengthens, within its bound, and uses the whole of it.
    #[test]
    fn jitter_stays_within_its_bound() {
        let policy = RetryPolicy::default();
        let mut random = Random::new(3);
        let draws: Vec<Duration> = (0..10_000)
            .map(|_| policy.jittered(1, &mut random))
            .collect();
        assert!(
            draws
                .iter()
                .all(|d| *d >= MINUTE * 5 && *d <= Duration::from_secs(330))
        );
        assert!(draws.iter().any(|d| *d < Duration::from_secs(301)));
        assert!(draws.iter().any(|d| *d > Duration::from_secs(329)));
    }

    // What the operator may not ask for.
    #[test]
    fn impossible_schedules_are_refused() {
        let day = MINUTE * 60 * 24;
        let short = Duration::from_millis(1);
        assert_eq!(RetryPolicy::new(&[], 0, day), Err(RetryError::Empty));
        assert_eq!(
            RetryPolicy::new(&[MINUTE; 65], 0, day),
            Err(RetryError::TooMany)
        );
        assert_eq!(
            RetryPolicy::new(&[MINUTE, short], 0, day),
            Err(RetryError::TooShort(short))
        );
        assert_eq!(
            RetryPolicy::new(&[MINUTE], 51, day),
            Err(RetryError::Jitter(51))
        );
        assert_eq!(
            RetryPolicy::new(&[MINUTE], 0, Duration::ZERO),
            Err(RetryError::Expiry(Duration::ZERO))
        );
        assert_eq!(
            RetryPolicy::new(&[MINUTE], 0, day * 31),
            Err(RetryError::Expiry(day * 31))
        );
        assert!(RetryPolicy::new(&[MINUTE; 64], 50, day * 30).is_ok());
    }
}
