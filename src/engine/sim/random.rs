//! The one source of chance of a world.

use std::cell::Cell;
use std::ops::RangeInclusive;

/// SplitMix64 (Steele, Lea, Flood 2014): tiny, and every seed is as good as any other.
#[derive(Debug)]
pub struct Random(Cell<u64>);

impl Random {
    /// A stream that depends on `seed` alone.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Cell::new(seed ^ 0x5851_f42d_4c95_7f2d))
    }

    /// The next 64 bits.
    pub fn next(&self) -> u64 {
        let state = self.0.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0.set(state);
        mix(state)
    }

    /// A number below `bound`; 0 for a bound of 0.
    pub fn below(&self, bound: u64) -> u64 {
        // The high half of the product: even enough for bounds far below 2^64.
        let product = u128::from(self.next()) * u128::from(bound);
        u64::try_from(product >> 64).unwrap_or(0)
    }

    /// An index into something of `len` elements; 0 when it is empty.
    pub fn index(&self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap_or(0)
    }

    /// A number in `range`.
    pub fn within(&self, range: &RangeInclusive<u64>) -> u64 {
        let width = range.end().saturating_sub(*range.start()).saturating_add(1);
        range.start().saturating_add(self.below(width))
    }

    /// True in `ppm` of a million cases. Draws nothing when it is impossible.
    pub fn chance(&self, ppm: u32) -> bool {
        ppm > 0 && self.below(1_000_000) < u64::from(ppm)
    }

    /// True in half of the cases.
    pub fn coin(&self) -> bool {
        self.next() & 1 == 1
    }
}

/// SplitMix64's finaliser: every input bit reaches every output bit.
pub(super) fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::Random;

    // The same seed gives the same numbers, another seed others, and every draw is in its range.
    #[test]
    fn draws_depend_on_the_seed_and_stay_in_range() {
        let draw = |seed| {
            let random = Random::new(seed);
            (0..100)
                .map(|_| random.within(&(3..=9)))
                .collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        assert!(draw(3).iter().all(|n| (3..=9).contains(n)));
        let random = Random::new(4);
        assert!(!random.chance(0));
        assert!(random.chance(1_000_000));
        assert_eq!(
            (random.below(0), random.below(1), random.index(0)),
            (0, 0, 0)
        );
    }
}
