//! budget - how much of something a shard has at a time.
//!
//! What: [`Budget`] bounds the memory that messages hold, [`Turns`] what is under way. Who finds no
//! room in a budget does without; who has no turn waits for one, in the order of arrival.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::engine::Signal;

/// How much memory messages of one kind hold, against their limit.
#[derive(Debug)]
pub struct Budget {
    limit: u64,
    used: AtomicU64,
}

impl Budget {
    /// Nothing taken of `limit` bytes.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        let used = AtomicU64::new(0);
        Self { limit, used }
    }

    /// Bytes held now.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Takes room for `len` bytes, or nothing where that would exceed the limit.
    ///
    /// Only the shard itself takes; any shard may give back, so the check cannot be overtaken.
    pub(super) fn charge(self: &Arc<Self>, len: usize) -> Option<Charge> {
        let bytes = u64::try_from(len).ok()?;
        if self.used().saturating_add(bytes) > self.limit {
            return None;
        }
        self.used.fetch_add(bytes, Ordering::Relaxed);
        Some(Charge {
            budget: Arc::clone(self),
            bytes,
        })
    }
}

/// Memory taken from a budget, given back when dropped.
#[derive(Debug)]
pub(super) struct Charge {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Drop for Charge {
    fn drop(&mut self) {
        let before = self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
        assert!(
            before >= self.bytes,
            "more memory was given back than taken"
        );
    }
}

/// Lets tasks do something long, as many at a time as their weights fit a limit.
#[derive(Debug)]
pub struct Turns {
    limit: usize,
    taken: Cell<usize>,
    waiting: RefCell<VecDeque<Rc<Seat>>>,
}

/// Somebody's place in the queue.
#[derive(Debug)]
struct Seat {
    weight: usize,
    admitted: Cell<bool>,
    signal: Signal,
}

/// Somebody's turn, or a place in the queue for one.
pub(super) struct Turn<'t> {
    turns: &'t Turns,
    seat: Rc<Seat>,
}

/// One task at a time.
impl Default for Turns {
    fn default() -> Self {
        Self::new(1)
    }
}

impl Turns {
    /// As much at a time as `limit` says.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            taken: Cell::new(0),
            waiting: RefCell::default(),
        }
    }

    /// Waits for a turn, in the order of arrival, which lasts until what is returned is dropped. A
    /// weight above the limit has it alone.
    pub(super) async fn take(&self, weight: usize) -> Turn<'_> {
        let seat = Rc::new(Seat {
            weight,
            admitted: Cell::new(false),
            signal: Signal::default(),
        });
        self.waiting.borrow_mut().push_back(Rc::clone(&seat));
        let turn = Turn { turns: self, seat };
        self.admit();
        while !turn.seat.admitted.get() {
            turn.seat.signal.raised().await;
        }
        turn
    }

    fn admit(&self) {
        let mut waiting = self.waiting.borrow_mut();
        while let Some(first) = waiting.front() {
            let taken = self.taken.get();
            if taken > 0 && taken + first.weight > self.limit {
                return;
            }
            self.taken.set(taken + first.weight);
            first.admitted.set(true);
            first.signal.raise();
            waiting.pop_front();
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let turns = self.turns;
        if self.seat.admitted.get() {
            turns.taken.set(turns.taken.get() - self.seat.weight);
        } else {
            let gone = |seat: &Rc<Seat>| Rc::ptr_eq(seat, &self.seat);
            turns.waiting.borrow_mut().retain(|seat| !gone(seat));
        }
        turns.admit();
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    // Who gives up while waiting, or after having been let in, holds up nobody.
    #[test]
    fn turns_pass_on() {
        let turns = Turns::new(8);
        let context = &mut Context::from_waker(Waker::noop());
        let whole = 8;
        let mut first = Box::pin(turns.take(2 * whole));
        let mut second = pin!(turns.take(whole));
        let mut third = pin!(turns.take(whole / 2));
        let mut fourth = pin!(turns.take(whole / 2));
        let taken = second.as_mut().poll(context);
        assert!(taken.is_ready(), "the first to ask");
        assert!(first.as_mut().poll(context).is_pending());
        assert!(third.as_mut().poll(context).is_pending());
        assert!(fourth.as_mut().poll(context).is_pending());
        drop(taken);
        // Let in, and gone before it knew.
        drop(first);
        assert!(third.as_mut().poll(context).is_ready());
        assert!(fourth.as_mut().poll(context).is_ready());
    }

    // What is held is bounded, and given back.
    #[test]
    fn budgets_are_bounded() {
        let budget = Arc::new(Budget::new(1_000));
        let all = budget.charge(1_000);
        assert!(all.is_some() && budget.charge(1).is_none());
        drop(all);
        assert!(budget.charge(1).is_some());
    }
}
