//! The timer wheel of a shard.
//!
//! What: timers with a resolution of one millisecond; setting and cancelling are O(1), and a timer
//! costs one slab entry. Six levels of 64 slots, level n counting in units of 64^n ms: a timer sits
//! at the level of the highest digit (base 64) in which its date differs from now, and moves down
//! when that digit's turn comes.
//! Why this way: sessions set a deadline with every read and hardly any is ever reached.
//! Limits: dates beyond 2^36 ms (two years) fire at 2^36 ms; who set them checks the date and sets
//! again. A fired timer is never early with respect to the clock that `advance` was given.

use std::task::Waker;
use std::time::Duration;

use slab::Slab;

use crate::time::Mono;

const LEVELS: usize = 6;
const NONE: u32 = u32::MAX;
const HORIZON: u64 = 1 << (6 * LEVELS);
const MILLI: u64 = 1_000_000;

/// Names a set timer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TimerKey {
    index: u32,
    generation: u32,
}

/// Whom a timer is for.
#[derive(Debug)]
pub(crate) enum Fire {
    /// A task.
    Task(Waker),
    /// A connection, by its slot.
    Stream(u32),
    /// A listener, by its slot.
    Listener(u32),
}

struct Timer {
    at: u64,
    next: u32,
    previous: u32,
    generation: u32,
    slot: u16,
    fire: Fire,
}

/// See the module.
pub(crate) struct Wheel {
    timers: Slab<Timer>,
    heads: [u32; LEVELS * 64],
    occupied: [u64; LEVELS],
    elapsed: u64,
    generation: u32,
}

impl Wheel {
    /// A wheel that starts at `now`.
    pub(crate) fn new(now: Mono) -> Self {
        Self {
            timers: Slab::new(),
            heads: [NONE; LEVELS * 64],
            occupied: [0; LEVELS],
            elapsed: now.0 / MILLI,
            generation: 0,
        }
    }

    /// Sets a timer; in the past means at the next millisecond.
    pub(crate) fn set(&mut self, at: Mono, fire: Fire) -> TimerKey {
        self.generation = self.generation.wrapping_add(1);
        let generation = self.generation;
        let at =
            at.0.div_ceil(MILLI)
                .clamp(self.elapsed + 1, self.elapsed + HORIZON - 1);
        let timer = Timer {
            at,
            next: NONE,
            previous: NONE,
            generation,
            slot: 0,
            fire,
        };
        // Below u32::MAX: memory ends first.
        let index = self.timers.insert(timer) as u32;
        self.link(index);
        TimerKey { index, generation }
    }

    /// Takes a timer out; nothing happens when it fired already.
    pub(crate) fn cancel(&mut self, key: TimerKey) {
        let timer = self.timers.get(key.index as usize);
        if timer.is_some_and(|timer| timer.generation == key.generation) {
            self.unlink(key.index);
            self.timers.remove(key.index as usize);
        }
    }

    /// Who waits, when a task's timer is set already and only its waker changed.
    pub(crate) fn fire_mut(&mut self, key: TimerKey) -> Option<&mut Fire> {
        let timer = self.timers.get_mut(key.index as usize)?;
        (timer.generation == key.generation).then_some(&mut timer.fire)
    }

    /// How long nothing can fire, at most. None when no timer is set.
    pub(crate) fn idle_for(&self, now: Mono) -> Option<Duration> {
        let (_, at) = self.next_slot()?;
        Some(Duration::from_nanos(
            at.saturating_mul(MILLI).saturating_sub(now.0),
        ))
    }

    /// Takes out all timers that are due, in the order of their dates.
    pub(crate) fn advance(&mut self, now: Mono, due: &mut Vec<Fire>) {
        let now = now.0 / MILLI;
        while let Some((slot, at)) = self.next_slot() {
            if at > now {
                break;
            }
            self.elapsed = at;
            let mut index = self.heads[slot];
            self.heads[slot] = NONE;
            self.occupied[slot / 64] &= !(1 << (slot % 64));
            while index != NONE {
                let timer = &mut self.timers[index as usize];
                let next = std::mem::replace(&mut timer.next, NONE);
                if timer.at <= at {
                    due.push(self.timers.remove(index as usize).fire);
                } else {
                    self.link(index);
                }
                index = next;
            }
        }
        self.elapsed = self.elapsed.max(now);
    }

    /// How many timers are set.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.timers.len()
    }

    /// The first slot that has its turn, and when.
    fn next_slot(&self) -> Option<(usize, u64)> {
        for level in 0..LEVELS {
            let shift = 6 * level as u32;
            let bits = self.occupied[level];
            if bits == 0 {
                continue;
            }
            let current = (self.elapsed >> shift & 63) as u32;
            let ahead = bits.rotate_right(current).trailing_zeros();
            let slot = (current + ahead) & 63;
            let base = self.elapsed >> shift & !63;
            let mut at = (base + u64::from(slot)) << shift;
            if at <= self.elapsed {
                // Only the top level wraps: a lower level never holds what is behind its digit.
                at += 64 << shift;
            }
            return Some((level * 64 + slot as usize, at));
        }
        None
    }

    fn link(&mut self, index: u32) {
        let at = self.timers[index as usize].at;
        let differs = (at ^ self.elapsed) | 1;
        let level = ((63 - differs.leading_zeros()) as usize / 6).min(LEVELS - 1);
        let slot = level * 64 + (at >> (6 * level) & 63) as usize;
        let head = std::mem::replace(&mut self.heads[slot], index);
        if head != NONE {
            self.timers[head as usize].previous = index;
        }
        self.occupied[level] |= 1 << (slot % 64);
        let timer = &mut self.timers[index as usize];
        timer.next = head;
        timer.previous = NONE;
        timer.slot = slot as u16;
    }

    fn unlink(&mut self, index: u32) {
        let timer = &self.timers[index as usize];
        let (next, previous, slot) = (timer.next, timer.previous, usize::from(timer.slot));
        if next != NONE {
            self.timers[next as usize].previous = previous;
        }
        if previous == NONE {
            self.heads[slot] = next;
        } else {
            self.timers[previous as usize].next = next;
        }
        if self.heads[slot] == NONE {
            self.occupied[slot / 64] &= !(1 << (slot % 64));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{Fire, MILLI, Wheel};
    use crate::time::Mono;

    fn number(fire: &Fire) -> u32 {
        match fire {
            Fire::Stream(number) => *number,
            other => panic!("unexpected {other:?}"),
        }
    }

    // Against an ordered set: with random dates, cancels and steps, each timer fires in the first
    // advance at or after its date, in the order of the dates, and never early.
    #[test]
    fn agrees_with_an_ordered_set() {
        for seed in 0..40u64 {
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let mut random = move |below: u64| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state % below
            };
            let mut now = random(1 << 50);
            let mut wheel = Wheel::new(Mono(now));
            let mut model = BTreeSet::new();
            let mut keys = Vec::new();
            for serial in 0..2000u32 {
                let span = 1 << random(46);
                let at = now + 1 + random(span);
                keys.push((wheel.set(Mono(at), Fire::Stream(serial)), at, serial));
                model.insert((at.div_ceil(MILLI), serial));
                if random(3) == 0 {
                    let (key, at, serial) = keys.swap_remove(random(keys.len() as u64) as usize);
                    wheel.cancel(key);
                    model.remove(&(at.div_ceil(MILLI), serial));
                }
                if random(4) == 0 {
                    let idle = wheel
                        .idle_for(Mono(now))
                        .map(|idle| now + idle.as_nanos() as u64);
                    if let (Some(idle), Some((first, _))) = (idle, model.first()) {
                        assert!(idle <= first * MILLI, "would sleep past a timer");
                    }
                    let step = 1 << random(44);
                    now += random(step);
                    let mut due = Vec::new();
                    wheel.advance(Mono(now), &mut due);
                    let mut fired = Vec::new();
                    while model.first().is_some_and(|(at, _)| at * MILLI <= now) {
                        fired.extend(model.pop_first());
                    }
                    assert_eq!(due.len(), fired.len());
                    let mut last = 0;
                    for fire in &due {
                        let found = fired.iter().find(|(_, serial)| *serial == number(fire));
                        let (at, _) = found.copied().unwrap_or_else(|| panic!("not due"));
                        assert!(at >= last, "out of order");
                        last = at;
                    }
                }
                assert_eq!(wheel.len(), model.len());
            }
        }
    }
}
