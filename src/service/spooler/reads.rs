//! spooler::reads - how much is read from the disk at a time, and held.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::engine::Signal;
use crate::limits;

/// Bounds what one shard reads for messages that are to be sent.
#[derive(Debug, Default)]
pub(super) struct Reads {
    /// Bytes that the disk was asked for and has not given.
    asked: Cell<usize>,
    waiting: RefCell<VecDeque<Rc<Seat>>>,
    /// Bytes that were read and are still held, by any shard.
    held: Arc<AtomicU64>,
}

/// Somebody's place in the queue.
#[derive(Debug, Default)]
struct Seat {
    bytes: usize,
    admitted: Cell<bool>,
    signal: Signal,
}

/// Somebody's turn at the disk, or a place in the queue for one.
pub(super) struct Turn<'r> {
    reads: &'r Reads,
    seat: Rc<Seat>,
}

/// Room for bytes that are held, given back when dropped.
#[derive(Debug)]
pub(super) struct Share {
    held: Arc<AtomicU64>,
    bytes: u64,
}

impl Reads {
    /// Takes room for `bytes`, or nothing where that would exceed the limit.
    pub(super) fn share(&self, bytes: usize) -> Option<Share> {
        let bytes = bytes as u64;
        // Only this shard takes; any shard may give back.
        let held = self.held.load(Ordering::Relaxed);
        if held + bytes > limits::SPOOL_READ_BYTES_HELD_MAX {
            return None;
        }
        self.held.fetch_add(bytes, Ordering::Relaxed);
        let held = Arc::clone(&self.held);
        Some(Share { held, bytes })
    }

    /// Waits until `bytes` may be asked for, in the order of arrival. The turn ends when what is
    /// returned is dropped.
    pub(super) async fn turn(&self, bytes: usize) -> Turn<'_> {
        let seat = Rc::new(Seat {
            bytes,
            ..Seat::default()
        });
        self.waiting.borrow_mut().push_back(Rc::clone(&seat));
        let turn = Turn { reads: self, seat };
        self.admit();
        while !turn.seat.admitted.get() {
            turn.seat.signal.raised().await;
        }
        turn
    }

    fn admit(&self) {
        let mut waiting = self.waiting.borrow_mut();
        while let Some(first) = waiting.front() {
            let asked = self.asked.get();
            // One may always ask, however much it wants.
            if asked > 0 && asked + first.bytes > limits::SPOOL_READ_BYTES_ASKED {
                return;
            }
            self.asked.set(asked + first.bytes);
            first.admitted.set(true);
            first.signal.raise();
            waiting.pop_front();
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let reads = self.reads;
        if self.seat.admitted.get() {
            reads.asked.set(reads.asked.get() - self.seat.bytes);
        } else {
            let gone = |seat: &Rc<Seat>| Rc::ptr_eq(seat, &self.seat);
            reads.waiting.borrow_mut().retain(|seat| !gone(seat));
        }
        reads.admit();
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.held.fetch_sub(self.bytes, Ordering::Relaxed);
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
        let reads = Reads::default();
        let context = &mut Context::from_waker(Waker::noop());
        let whole = limits::SPOOL_READ_BYTES_ASKED;
        let mut first = Box::pin(reads.turn(2 * whole));
        let mut second = pin!(reads.turn(whole));
        let mut third = pin!(reads.turn(whole / 2));
        let mut fourth = pin!(reads.turn(whole / 2));
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
    fn shares_are_bounded() {
        let reads = Reads::default();
        let most = usize::try_from(limits::SPOOL_READ_BYTES_HELD_MAX).unwrap_or(0);
        let all = reads.share(most);
        assert!(all.is_some() && reads.share(1).is_none());
        drop(all);
        assert!(reads.share(1).is_some());
    }
}
