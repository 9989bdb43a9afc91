//! letters - between shards: what is posted, what waits for a full mailbox, messages on loan.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::engine::{Class, Port};
use crate::message::MessageId;
use crate::queue::{Event, PathId};
use crate::service::dispatch::{Dispatch, Loan};
use crate::service::held::Held;
use crate::service::mesh::{LendError, Lent, ShardMessage};
use crate::spool::ReadError;

impl<P: Port> Dispatch<P> {
    /// Sends a letter; what the mailbox does not take waits here, in order.
    pub(super) fn post(&self, shard: u16, letter: ShardMessage) {
        let mut overflow = self.overflow.borrow_mut();
        if let Some(waiting) = overflow.get_mut(&shard)
            && !waiting.is_empty()
        {
            waiting.push_back(letter);
            return;
        }
        if let Err(letter) = self.mesh[usize::from(shard)].try_send(letter) {
            overflow.entry(shard).or_default().push_back(letter);
            drop(overflow);
            let me = self.rc();
            self.port.spawn(
                Class::Control,
                async move { me.flush_overflow(shard).await },
            );
        }
    }

    async fn flush_overflow(&self, shard: u16) {
        loop {
            self.port
                .sleep_until(self.port.now().after(OVERFLOW_PAUSE))
                .await;
            let mut overflow = self.overflow.borrow_mut();
            let Some(waiting) = overflow.get_mut(&shard) else {
                return;
            };
            while let Some(letter) = waiting.pop_front() {
                if let Err(letter) = self.mesh[usize::from(shard)].try_send(letter) {
                    waiting.push_front(letter);
                    break;
                }
            }
            if waiting.is_empty() {
                return;
            }
        }
    }

    /// Acts on one letter.
    pub fn receive(&self, letter: ShardMessage) {
        match letter {
            ShardMessage::Enqueue(transfer) => self.take_over(*transfer),
            ShardMessage::Settle(settlement) => self.settle_here(settlement),
            ShardMessage::Bounce(bounce) => self.start_bounce(*bounce),
            ShardMessage::MakeRoom { source, site } => self.make_room(source, &site),
            ShardMessage::SetAside(id) => self.set_aside(id),
            ShardMessage::Condemned(id) => self.condemned(id),
            ShardMessage::Lend { id, home, ticket } => self.lend(id, home, ticket),
            ShardMessage::Lent { ticket, result } => {
                // The connection that asked may be gone; then nobody waits.
                if let Some(loan) = self.loans.borrow_mut().remove(&ticket) {
                    *loan.answer.borrow_mut() = Some(result);
                    loan.answered.raise();
                }
            }
            ShardMessage::Resolved { question, answer } => {
                self.resolver.answered(&question, &answer)
            }
            ShardMessage::Rekey(ring) => self.signer.rekey(ring),
            ShardMessage::Session(_) | ShardMessage::Operator(_) => {
                unreachable!("the shard sees to its sessions and its operator itself")
            }
        }
    }

    /// Tells the other shards that this one has mail for a path and no room.
    pub(super) fn ask_for_room(&self, path: PathId) {
        let brain = self.brain.borrow();
        let (Some(source), Some(site)) = (brain.source(path), brain.site(path)) else {
            return;
        };
        for shard in (0..self.settings.shards).filter(|shard| *shard != self.settings.shard) {
            let site = Arc::clone(site);
            self.post(shard, ShardMessage::MakeRoom { source, site });
        }
    }

    /// Another shard has no room on a path; where it is not known here, nothing is held of it.
    fn make_room(&self, source: u16, site: &Arc<str>) {
        let known = self.brain.borrow().known_path(source, site);
        if let Some(path) = known {
            self.apply(Event::MakeRoom { path });
        }
    }

    fn lend(&self, id: MessageId, home: u16, ticket: u64) {
        let me = self.rc();
        self.port.spawn(Class::Spool, async move {
            let result = me.read(id).await;
            me.post(home, ShardMessage::Lent { ticket, result });
        });
    }

    pub(super) async fn read(&self, id: MessageId) -> Result<Lent, LendError> {
        let Some(spool) = self.spool(id.shard()) else {
            return Err(LendError::Gone);
        };
        match spool.read(id).await {
            Ok(stored) => {
                let ended = spool.ended(id).ok_or(LendError::Gone)?;
                let (envelope, content) = (stored.envelope, stored.content);
                let held = Held::mapped(id, envelope, content, stored.received_at);
                let held = Arc::new(held);
                Ok(Lent { held, ended })
            }
            Err(ReadError::Damaged) => Err(LendError::Damaged),
            Err(ReadError::Gone) => Err(LendError::Gone),
            Err(ReadError::Io) => Err(LendError::Unreadable),
        }
    }

    /// The message from wherever it is: this shard's spool or another's.
    pub(super) async fn borrow_message(&self, id: MessageId) -> Result<Lent, LendError> {
        let storing = self.storing_shard(id);
        if storing == self.settings.shard {
            return self.read(id).await;
        }
        let ticket = self.next_loan.get();
        self.next_loan.set(ticket + 1);
        let loan = Rc::new(Loan::default());
        self.loans.borrow_mut().insert(ticket, Rc::clone(&loan));
        let home = self.settings.shard;
        self.post(storing, ShardMessage::Lend { id, home, ticket });
        loan.answered.raised().await;
        let answer = loan.answer.borrow_mut().take();
        answer.unwrap_or(Err(LendError::Unreadable))
    }
}

/// How long letters wait when another shard's mailbox is full: it is busy, not gone.
const OVERFLOW_PAUSE: Duration = Duration::from_millis(2);
