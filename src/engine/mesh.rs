//! engine::mesh - messages between the threads of a node.
//!
//! What: a bounded mailbox of one shard that any thread may send to.
//! Who rings: [`MailSender::try_send`] does, after each message; a ring costs a system call only
//! when the shard sleeps. The receiving shard has one task that awaits `Port::remote_wakes` and
//! then empties all its mailboxes with [`MailReceiver::recv_all`]; a message sent while it does so
//! rings again, so none waits for another. The simulator's port is rung the same way.
//! Limits: `capacity` messages, allocated at once; a full mailbox hands the message back.

use std::fmt;
use std::sync::Arc;

use crossbeam::queue::ArrayQueue;

use crate::engine::RemoteWaker;

/// Makes a mailbox of at most `capacity` messages (at least one), whose sender rings `waker`.
#[must_use]
pub fn mailbox<M: Send>(waker: RemoteWaker, capacity: usize) -> (MailSender<M>, MailReceiver<M>) {
    let queue = Arc::new(ArrayQueue::new(capacity.max(1)));
    (
        MailSender {
            queue: Arc::clone(&queue),
            waker,
        },
        MailReceiver { queue },
    )
}

/// The end that any thread may hold.
pub struct MailSender<M> {
    queue: Arc<ArrayQueue<M>>,
    waker: RemoteWaker,
}

impl<M: Send> MailSender<M> {
    /// Leaves a message and rings. A full mailbox hands it back: the shard is overloaded or gone,
    /// and the sender decides what that means.
    pub fn try_send(&self, message: M) -> Result<(), M> {
        self.queue.push(message)?;
        self.waker.wake();
        Ok(())
    }
}

impl<M> Clone for MailSender<M> {
    fn clone(&self) -> Self {
        Self {
            queue: Arc::clone(&self.queue),
            waker: self.waker.clone(),
        }
    }
}

impl<M> fmt::Debug for MailSender<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MailSender({} waiting)", self.queue.len())
    }
}

/// The shard's end.
pub struct MailReceiver<M> {
    queue: Arc<ArrayQueue<M>>,
}

impl<M: Send> MailReceiver<M> {
    /// Appends the messages that wait, oldest first, to `into`; at most as many as the mailbox
    /// holds, so that senders cannot keep the shard here.
    pub fn recv_all(&self, into: &mut Vec<M>) {
        for _ in 0..self.queue.capacity() {
            let Some(message) = self.queue.pop() else {
                return;
            };
            into.push(message);
        }
    }
}

impl<M> fmt::Debug for MailReceiver<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MailReceiver({} waiting)", self.queue.len())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::mailbox;
    use crate::engine::RemoteWaker;

    // Each accepted message rings once and comes out in order; a full mailbox hands it back unrung.
    #[test]
    fn rings_and_bounds() {
        let rings = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&rings);
        let waker = RemoteWaker::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let (sender, receiver) = mailbox(waker, 2);
        assert_eq!(sender.try_send(1), Ok(()));
        assert_eq!(sender.clone().try_send(2), Ok(()));
        assert_eq!(sender.try_send(3), Err(3));
        assert_eq!(rings.load(Ordering::Relaxed), 2);
        let mut got = Vec::new();
        receiver.recv_all(&mut got);
        assert_eq!(got, [1, 2]);
        assert_eq!(sender.try_send(4), Ok(()));
    }
}
