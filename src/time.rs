//! time - the two clocks, as values.
//!
//! What: `Mono`, for deadlines and durations, and `Wall`, for dates that leave the process.
//! Why this way: pure code takes the time as an argument, so the simulator can own it; two types,
//! so that a deadline is never computed from a clock that the operator may set back by an hour.

use std::time::Duration;

/// Nanoseconds on a clock that never goes back; its origin means nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mono(pub u64);

impl Mono {
    /// A deadline that is never reached.
    pub const NEVER: Self = Self(u64::MAX);

    /// This instant plus `delay`, saturating at [`Mono::NEVER`].
    #[must_use]
    pub fn after(self, delay: Duration) -> Self {
        let nanos = u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(nanos))
    }

    /// The time from `earlier` to this instant; zero where `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// Milliseconds since 1970-01-01T00:00:00Z, leap seconds ignored; may jump either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Wall(pub u64);

impl Wall {
    /// This date plus `delay`, saturating.
    #[must_use]
    pub fn after(self, delay: Duration) -> Self {
        let millis = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(millis))
    }

    /// The time from `earlier` to this date; zero where `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Arithmetic at both ends saturates: a deadline computed from garbage is far away, never a
    // panic.
    #[test]
    fn arithmetic_saturates() {
        assert_eq!(Mono(5).after(Duration::MAX), Mono::NEVER);
        assert_eq!(Mono(5).since(Mono(9)), Duration::ZERO);
        assert_eq!(Wall(5).after(Duration::from_secs(1)), Wall(1005));
        assert_eq!(Wall(5).since(Wall(9)), Duration::ZERO);
    }
}
