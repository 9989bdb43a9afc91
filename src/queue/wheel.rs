//! wheel - the timers of all deferred entries: four levels of 256 slots.
//!
//! What: [`Wheel`] sorts entries by their due tick (2^26 ns, 67 ms) with no memory but the slots;
//! the links are in the entries. An entry goes to the level of the highest byte in which its due
//! tick differs from the current one, so it is moved at most three times before it is due; insert
//! and remove are O(1).
//! Why this way: a heap of ten million entries costs a cache miss per level and per move; a tree
//! costs memory besides. Four levels of 8 bits cover 2^32 ticks, nine years.
//!
//! Bounded work: [`Wheel::pop`] takes a budget and counts each entry that it moves, so a million
//! entries that are due at once come out in slices and never stall a shard.

use super::entry::{Slab, State};
use super::ready::{List, Nodes};

const LEVELS: usize = 4;
const SLOTS: usize = 256;
const WORDS: usize = SLOTS / 64;

#[derive(Debug)]
pub(super) struct Wheel {
    slots: Box<[List]>,
    occupied: [[u64; WORDS]; LEVELS],
    now: u32,
    len: u32,
}

/// The byte of `tick` that level `level` looks at.
fn digit(tick: u32, level: usize) -> usize {
    usize::from(tick.to_le_bytes()[level])
}

impl Wheel {
    /// An empty wheel that stands at tick `now`.
    pub(super) fn new(now: u32) -> Self {
        Self {
            slots: vec![List::EMPTY; LEVELS * SLOTS].into(),
            occupied: [[0; WORDS]; LEVELS],
            now,
            len: 0,
        }
    }

    pub(super) fn len(&self) -> u32 {
        self.len
    }

    /// Hangs an entry in at its `due` tick; one that is past is due at once.
    pub(super) fn insert<T>(&mut self, slab: &mut Slab<T>, index: u32) {
        let entry = slab.at_mut(index);
        assert!(entry.state == State::Moving, "an entry is on one list");
        entry.state = State::Deferred;
        self.place(slab, index);
        self.len += 1;
    }

    /// Takes an entry out before it is due.
    pub(super) fn remove<T>(&mut self, slab: &mut Slab<T>, index: u32) {
        let entry = slab.at_mut(index);
        assert!(
            entry.state == State::Deferred,
            "only deferred entries are on the wheel"
        );
        entry.state = State::Moving;
        let slot = usize::from(entry.slot);
        self.unplace(slab, slot, index);
        self.len -= 1;
    }

    /// The next entry that is due at tick `now`; each entry that is moved costs one of `budget`.
    /// `None` where nothing is due or the budget is spent; [`Wheel::next`] tells which.
    pub(super) fn pop<T>(&mut self, slab: &mut Slab<T>, now: u32, budget: &mut u32) -> Option<u32> {
        while *budget > 0 {
            if let Some((slot, index)) = self.cascading() {
                *budget -= 1;
                self.unplace(slab, slot, index);
                self.place(slab, index);
                continue;
            }
            let Some((level, slot, start)) = self.earliest().filter(|found| found.2 <= now) else {
                self.now = self.now.max(now);
                return None;
            };
            assert!(start >= self.now, "a slot of the past was left behind");
            self.now = start;
            if level > 0 {
                // Its slot is now a cascading one.
                continue;
            }
            *budget -= 1;
            let index = self.slots[slot].first()?;
            assert!(
                slab.at(index).due.max(self.now) == self.now,
                "due earlier than its slot"
            );
            self.remove(slab, index);
            return Some(index);
        }
        None
    }

    /// The tick at which [`Wheel::pop`] has work again: when the first entry is due, or earlier,
    /// when a slot of a higher level must be spread.
    pub(super) fn next(&self) -> Option<u32> {
        if self.cascading().is_some() {
            return Some(self.now);
        }
        self.earliest().map(|(_, _, start)| start)
    }

    /// An entry in a slot of a higher level whose time has come.
    fn cascading(&self) -> Option<(usize, u32)> {
        (1..LEVELS).rev().find_map(|level| {
            let slot = level * SLOTS + digit(self.now, level);
            self.slots[slot].first().map(|index| (slot, index))
        })
    }

    /// The first slot that is not empty: level, slot, and the first tick of it. Lower levels come
    /// before higher ones, since they divide the present slot of the level above.
    fn earliest(&self) -> Option<(usize, usize, u32)> {
        (0..LEVELS).find_map(|level| {
            let found = self.first_occupied(level, digit(self.now, level))?;
            let shift = 8 * level as u32;
            // Bits above this level's byte are those of the present; `checked_shl` because level 3
            // has none above.
            let above = u32::MAX.checked_shl(shift + 8).unwrap_or(0);
            let start = (self.now & above) | ((found as u32) << shift);
            Some((level, level * SLOTS + found, start))
        })
    }

    fn first_occupied(&self, level: usize, from: usize) -> Option<usize> {
        let words = &self.occupied[level];
        let first = words[from / 64] & (u64::MAX << (from % 64));
        let rest = (from / 64 + 1..WORDS).map(|word| (word, words[word]));
        std::iter::once((from / 64, first))
            .chain(rest)
            .find(|(_, bits)| *bits != 0)
            .map(|(word, bits)| word * 64 + bits.trailing_zeros() as usize)
    }

    fn place<T>(&mut self, slab: &mut Slab<T>, index: u32) {
        let entry = slab.at_mut(index);
        let due = entry.due.max(self.now);
        let differing = due ^ self.now;
        let level = (31 - (differing | 1).leading_zeros()) as usize / 8;
        let within = digit(due, level);
        let slot = level * SLOTS + within;
        // 1,023 at most.
        entry.slot = slot as u16;
        self.slots[slot].push_back(slab, index);
        self.occupied[level][within / 64] |= 1 << (within % 64);
    }

    fn unplace(&mut self, nodes: &mut impl Nodes, slot: usize, index: u32) {
        self.slots[slot].remove(nodes, index);
        if self.slots[slot].is_empty() {
            let within = slot % SLOTS;
            self.occupied[slot / SLOTS][within / 64] &= !(1 << (within % 64));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::Random;
    use super::super::entry::blank;
    use super::*;

    fn add(wheel: &mut Wheel, slab: &mut Slab<u64>, due: u32, name: u64) -> u32 {
        let id = slab.insert(blank(name));
        slab.at_mut(id.index).due = due;
        wheel.insert(slab, id.index);
        id.index
    }

    // Seeded inserts, removals and advances with any budget, against a BTreeMap by due tick:
    // everything that is due comes out, in order of ticks, nothing early, and `next` is never late.
    #[test]
    fn wheel_agrees_with_a_tree() {
        for seed in 0..40 {
            let mut random = Random::new(seed);
            let mut now = [0u32, 1 << 25, 0xff_ff00, u32::MAX - (1 << 27)][seed as usize % 4];
            let (mut wheel, mut slab) = (Wheel::new(now), Slab::new());
            let mut model: BTreeMap<(u32, u64), u32> = BTreeMap::new();
            for name in 0..2500u64 {
                match random.below(10) {
                    0..5 => {
                        let range = 1u64 << random.below(26);
                        let due = now.saturating_add(random.below(range) as u32);
                        let index = add(&mut wheel, &mut slab, due, name);
                        model.insert((due, name), index);
                    }
                    5 => {
                        let skip = random.below(model.len() as u64 + 1) as usize;
                        if let Some((key, index)) = model.iter().nth(skip).map(|(k, v)| (*k, *v)) {
                            wheel.remove(&mut slab, index);
                            slab.remove(index);
                            model.remove(&key);
                        }
                    }
                    _ => {
                        let range = 1u64 << random.below(22);
                        now = now.saturating_add(random.below(range) as u32);
                        drain(&mut wheel, &mut slab, &mut model, now, &mut random);
                    }
                }
                assert_eq!(wheel.len() as usize, model.len());
                let first = model.keys().next().map(|key| key.0);
                assert_eq!(wheel.next().is_some(), first.is_some());
                assert!(
                    wheel.next() <= first.map(|due| due.max(wheel.now)),
                    "woken too late"
                );
            }
        }
    }

    fn drain(
        wheel: &mut Wheel,
        slab: &mut Slab<u64>,
        model: &mut BTreeMap<(u32, u64), u32>,
        now: u32,
        random: &mut Random,
    ) {
        let mut last = 0;
        loop {
            let mut budget = 1 + random.below(40) as u32;
            while let Some(index) = wheel.pop(slab, now, &mut budget) {
                let entry = slab.remove(index);
                assert!(entry.due <= now, "early");
                assert!(entry.due >= last, "out of order");
                last = entry.due;
                assert_eq!(model.remove(&(entry.due, entry.payload)), Some(index));
            }
            if wheel.next().is_none_or(|next| next > now) {
                break;
            }
        }
        assert!(
            model.keys().next().is_none_or(|key| key.0 > now),
            "left behind"
        );
    }

    // One pop never moves more entries than its budget, even out of one crowded slot.
    #[test]
    fn a_herd_comes_out_in_slices() {
        let (mut wheel, mut slab) = (Wheel::new(0), Slab::new());
        for name in 0..5000 {
            add(&mut wheel, &mut slab, 70_000, name);
        }
        let (mut out, mut calls) = (0, 0);
        while wheel.len() > 0 {
            let mut budget = 100;
            while let Some(index) = wheel.pop(&mut slab, 70_000, &mut budget) {
                assert_eq!(slab.remove(index).payload, out, "first in, first out");
                out += 1;
            }
            calls += 1;
        }
        // Each is moved from level 2 to 1, to 0, and out: three steps of work.
        assert_eq!((out, calls), (5000, 150));
    }

    // What is due already, or due at the very end of time, is held like the rest.
    #[test]
    fn edges_of_time() {
        let (mut wheel, mut slab) = (Wheel::new(1000), Slab::new());
        add(&mut wheel, &mut slab, 0, 1);
        add(&mut wheel, &mut slab, u32::MAX, 2);
        assert_eq!(wheel.next(), Some(1000));
        let mut budget = 9;
        let first = wheel
            .pop(&mut slab, 1000, &mut budget)
            .map(|i| slab.remove(i).payload);
        assert_eq!(first, Some(1));
        assert_eq!(wheel.pop(&mut slab, u32::MAX - 1, &mut budget), None);
        let mut budget = 9;
        let last = wheel
            .pop(&mut slab, u32::MAX, &mut budget)
            .map(|i| slab.remove(i).payload);
        assert_eq!(last, Some(2));
        assert_eq!(wheel.next(), None);
    }
}
