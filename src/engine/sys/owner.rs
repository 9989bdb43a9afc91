//! OwnerCell - a value that only the thread which made it can touch, in a type that is Sync.
//!
//! What: the run queue of a shard. A `Waker` must be `Send + Sync` by its type although nearly all
//! wakes happen on the shard's own thread; this cell lets those skip the lock and tells the others.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};

/// Numbers threads; a number is never given twice in the life of the process.
static NEXT_THREAD: AtomicU64 = AtomicU64::new(1);

thread_local! {
    static THREAD: u64 = NEXT_THREAD.fetch_add(1, Ordering::Relaxed);
}

/// See the module.
pub(crate) struct OwnerCell<T> {
    owner: u64,
    value: RefCell<T>,
}

// SAFETY: the RefCell is only touched in `with`, after the check that the running thread is the one
// that made the cell; thread numbers are never reused. Dropping needs `&mut` or ownership, which
// excludes other threads, and T is Send, so any thread may drop it.
// JUSTIFICATION: a mutex in the wake path of every task would cost more than the wake.
unsafe impl<T: Send> Sync for OwnerCell<T> {}

impl<T> OwnerCell<T> {
    /// Makes a cell that belongs to the running thread.
    pub(crate) fn new(value: T) -> Self {
        Self {
            owner: THREAD.with(|number| *number),
            value: RefCell::new(value),
        }
    }

    /// Runs `action` on the value, or returns None on any other thread (and when called from within
    /// another `with`).
    pub(crate) fn with<R>(&self, action: impl FnOnce(&mut T) -> R) -> Option<R> {
        let here = THREAD.try_with(|number| *number).ok()?;
        if here != self.owner {
            return None;
        }
        let mut value = self.value.try_borrow_mut().ok()?;
        Some(action(&mut value))
    }
}

#[cfg(test)]
mod tests {
    use super::OwnerCell;

    // The owner gets in, another thread and a nested call do not.
    #[test]
    fn only_the_owner_gets_in() {
        let cell = OwnerCell::new(1);
        assert_eq!(cell.with(|value| *value), Some(1));
        assert_eq!(cell.with(|_| cell.with(|value| *value)), Some(None));
        let other = std::thread::scope(|scope| scope.spawn(|| cell.with(|value| *value)).join());
        assert_eq!(other.ok(), Some(None));
    }
}
