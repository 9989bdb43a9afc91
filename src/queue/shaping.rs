//! shaping - how many messages a path may send per unit of time.
//!
//! What: [`Rate`] and its [`Bucket`], a token bucket in exact integer arithmetic. The level is kept
//! in units of 1/period of a message, so no fraction is ever rounded: over any time the messages
//! taken never exceed `burst + elapsed * messages / period`, and none of that is lost either.
//! The default burst is 1: messages are spaced evenly, which is what a receiver that counts wants.

use std::time::Duration;

use crate::limits::QUEUE_RATE_PERIOD_MAX;
use crate::time::Mono;

/// So many messages per so much time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Divided by the greatest common divisor with `period`.
    messages: u64,
    /// Nanoseconds, divided likewise.
    period: u64,
    burst: u64,
}

/// Why a rate is refused; the operator's mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RateError {
    /// Zero messages: suspend the path instead.
    Zero,
    /// A period of zero, or over `limits::QUEUE_RATE_PERIOD_MAX`.
    Period,
    /// A burst of zero, or so large that it could not be counted.
    Burst,
}

impl std::fmt::Display for RateError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Zero => write!(f, "a rate of zero messages: suspend the path instead"),
            Self::Period => write!(f, "a period of zero or over {QUEUE_RATE_PERIOD_MAX:?}"),
            Self::Burst => write!(f, "a burst of zero, or one too large to be counted"),
        }
    }
}

impl std::error::Error for RateError {}

impl Rate {
    /// `messages` per `period`, of which `burst` may go at once after a quiet time.
    ///
    /// # Errors
    /// Where a value is out of its bounds.
    pub fn new(messages: u32, period: Duration, burst: u32) -> Result<Self, RateError> {
        if messages == 0 {
            return Err(RateError::Zero);
        }
        if period.is_zero() || period > QUEUE_RATE_PERIOD_MAX {
            return Err(RateError::Period);
        }
        let nanos = u64::try_from(period.as_nanos()).map_err(|_| RateError::Period)?;
        let messages = u64::from(messages);
        let divisor = gcd(messages, nanos);
        let (messages, period, burst) = (messages / divisor, nanos / divisor, u64::from(burst));
        if burst == 0 || burst.checked_mul(period).is_none() {
            return Err(RateError::Burst);
        }
        Ok(Self {
            messages,
            period,
            burst,
        })
    }

    fn full(self) -> u64 {
        self.burst * self.period
    }
}

fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// The state of one rate; starts full.
#[derive(Debug, Clone, Copy)]
pub struct Bucket {
    rate: Rate,
    level: u64,
    at: Mono,
}

impl Bucket {
    /// A full bucket.
    #[must_use]
    pub fn new(rate: Rate, now: Mono) -> Self {
        Self {
            rate,
            level: rate.full(),
            at: now,
        }
    }

    /// Another rate for the same path, e.g. after a reload. What was used stays used: the new
    /// bucket holds as many messages as the old one, up to its own burst.
    pub fn set_rate(&mut self, rate: Rate, now: Mono) {
        let held = self.available(now);
        self.rate = rate;
        self.level = held.min(rate.burst) * rate.period;
    }

    /// The rate.
    #[must_use]
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Whole messages that may go now.
    pub fn available(&mut self, now: Mono) -> u64 {
        self.refill(now);
        self.level / self.rate.period
    }

    /// Takes one message out; false, and nothing changes, where there is none.
    pub fn take(&mut self, now: Mono) -> bool {
        self.refill(now);
        if self.level < self.rate.period {
            return false;
        }
        self.level -= self.rate.period;
        true
    }

    /// Gives one back that was not used after all.
    pub fn give_back(&mut self) {
        self.level = self
            .level
            .saturating_add(self.rate.period)
            .min(self.rate.full());
    }

    /// The first time at which a message may go; `now` or earlier where one may go already.
    pub fn next(&mut self, now: Mono) -> Mono {
        self.refill(now);
        let missing = self.rate.period.saturating_sub(self.level);
        Mono(
            self.at
                .0
                .saturating_add(missing.div_ceil(self.rate.messages)),
        )
    }

    fn refill(&mut self, now: Mono) {
        let elapsed = now.0.saturating_sub(self.at.0);
        let missing = self.rate.full() - self.level;
        // Compared as times first: the product below then cannot overflow.
        if elapsed >= missing.div_ceil(self.rate.messages) {
            self.level = self.rate.full();
        } else {
            self.level += elapsed * self.rate.messages;
        }
        assert!(
            self.level <= self.rate.full(),
            "a bucket never holds more than its burst"
        );
        self.at = self.at.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Random;
    use super::*;

    // Seeded rates and steps against the same bucket in u128 without any clamping tricks.
    #[test]
    fn bucket_agrees_with_wide_arithmetic() {
        let mut random = Random::new(11);
        for case in 0..300 {
            let messages = 1 + random.below(1 << (1 + case % 31)) as u32;
            let period = 1 + random.below(1 << (1 + case % 46));
            let burst = 1 + random.below(1 << (case % 16)) as u32;
            let Ok(rate) = Rate::new(messages, Duration::from_nanos(period), burst) else {
                panic!("all of these are countable");
            };
            let mut now = random.below(1 << 40);
            let mut bucket = Bucket::new(rate, Mono(now));
            let (wide_messages, wide_period) = (u128::from(messages), u128::from(period));
            let full = u128::from(burst) * wide_period;
            let mut level = full;
            for _ in 0..300 {
                let step = random.below(2 * period / u64::from(messages).min(period) + 3);
                now += step;
                level = full.min(level + u128::from(step) * wide_messages);
                let expected = level >= wide_period;
                assert_eq!(u128::from(bucket.available(Mono(now))), level / wide_period);
                let wait = wide_period.saturating_sub(level).div_ceil(wide_messages);
                assert_eq!(u128::from(bucket.next(Mono(now)).0), u128::from(now) + wait);
                assert_eq!(bucket.take(Mono(now)), expected);
                if expected {
                    level -= wide_period;
                }
            }
        }
    }

    // Taking whenever `next` says so uses exactly the rate: 5,000 a day, none more, none fewer.
    #[test]
    fn the_rate_is_used_to_the_last_message() {
        let day = Duration::from_secs(86_400);
        let Ok(rate) = Rate::new(5000, day, 1) else {
            panic!("a plain rate")
        };
        let mut bucket = Bucket::new(rate, Mono(0));
        let (mut now, mut taken) = (Mono(0), 0u32);
        while now.0 < 86_400_000_000_000 {
            assert!(bucket.take(now));
            taken += 1;
            assert!(!bucket.take(now), "no two at once with a burst of 1");
            let next = bucket.next(now);
            assert!(!bucket.take(Mono(next.0 - 1)), "not a nanosecond early");
            now = next;
        }
        assert_eq!(taken, 5000);
    }

    // A clock that stands still or an event from the past gives nothing.
    #[test]
    fn time_never_runs_back() {
        let Ok(rate) = Rate::new(1, Duration::from_secs(1), 2) else {
            panic!("a plain rate")
        };
        let mut bucket = Bucket::new(rate, Mono(5_000_000_000));
        assert!(bucket.take(Mono(5_000_000_000)));
        assert!(bucket.take(Mono(0)));
        assert!(!bucket.take(Mono(5_999_999_999)));
        assert!(bucket.take(Mono(6_000_000_000)));
        bucket.give_back();
        assert!(bucket.take(Mono(0)));
        assert!(Mono::NEVER > bucket.next(Mono(u64::MAX - 1)));
    }

    // A reload never grants more than was left.
    #[test]
    fn a_new_rate_keeps_what_was_used() {
        let second = Duration::from_secs(1);
        let (Ok(slow), Ok(fast)) = (Rate::new(1, second, 3), Rate::new(1000, second, 10)) else {
            panic!("plain rates");
        };
        let mut bucket = Bucket::new(slow, Mono(0));
        assert!(bucket.take(Mono(0)));
        bucket.set_rate(fast, Mono(0));
        assert_eq!(bucket.available(Mono(0)), 2);
        assert_eq!(bucket.available(Mono(1_000_000_000)), 10);
    }

    #[test]
    fn impossible_rates_are_refused() {
        let second = Duration::from_secs(1);
        assert_eq!(Rate::new(0, second, 1), Err(RateError::Zero));
        assert_eq!(Rate::new(1, Duration::ZERO, 1), Err(RateError::Period));
        assert_eq!(
            Rate::new(1, Duration::from_secs(40 * 86_400), 1),
            Err(RateError::Period)
        );
        assert_eq!(Rate::new(1, second, 0), Err(RateError::Burst));
        assert_eq!(
            Rate::new(7, Duration::from_secs(86_400), u32::MAX),
            Err(RateError::Burst)
        );
    }
}
