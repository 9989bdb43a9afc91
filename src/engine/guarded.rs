//! Guarded - state that a whole shard shares, and that no panic may leave half changed.
//!
//! What: a `RefCell` whose borrows end the process when a panic unwinds through them. A panic in
//! one connection's task ends that task alone; but when it strikes inside the books that all of
//! them share (the spool's index, the queue's lists), going on could acknowledge mail that is not
//! stored, or send more than is allowed. The spool is the truth, and the next start reads it.

use std::cell::{Ref, RefCell, RefMut};
use std::ops::{Deref, DerefMut};

use crate::engine::Port;

/// See the module.
pub struct Guarded<P: Port, T> {
    port: P,
    what: &'static str,
    value: RefCell<T>,
}

impl<P: Port, T> Guarded<P, T> {
    /// Guards `value`; `what` it is, for the last line of the log.
    pub fn new(port: P, what: &'static str, value: T) -> Self {
        Self {
            port,
            what,
            value: RefCell::new(value),
        }
    }

    /// As [`RefCell::borrow`].
    pub fn borrow(&self) -> Guard<'_, P, Ref<'_, T>> {
        Guard::new(self, self.value.borrow())
    }

    /// As [`RefCell::borrow_mut`].
    pub fn borrow_mut(&self) -> Guard<'_, P, RefMut<'_, T>> {
        Guard::new(self, self.value.borrow_mut())
    }
}

/// A borrow that must not be unwound through.
pub struct Guard<'a, P: Port, R> {
    inner: R,
    port: &'a P,
    what: &'static str,
    /// Borrowed by a destructor while something else unwinds: that is not the fault of these books.
    unwinding: bool,
}

impl<'a, P: Port, R> Guard<'a, P, R> {
    fn new<T>(owner: &'a Guarded<P, T>, inner: R) -> Self {
        Self {
            inner,
            port: &owner.port,
            what: owner.what,
            unwinding: std::thread::panicking(),
        }
    }
}

impl<P: Port, R: Deref> Deref for Guard<'_, P, R> {
    type Target = R::Target;

    fn deref(&self) -> &R::Target {
        &self.inner
    }
}

impl<P: Port, R: DerefMut> DerefMut for Guard<'_, P, R> {
    fn deref_mut(&mut self) -> &mut R::Target {
        &mut self.inner
    }
}

impl<P: Port, R> Drop for Guard<'_, P, R> {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.unwinding {
            self.port.give_up(self.what);
        }
    }
}
