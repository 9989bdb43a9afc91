//! suspects - what was in hand at a crash: tried one after the other, and put aside in the end.

use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use crate::engine::{Class, Port};
use crate::limits;
use crate::message::MessageId;
use crate::queue::{Cause, CauseKind, ConnectionId, EntryId, Event, Recipients};
use crate::service::delivery::{Link, Taken};
use crate::service::dispatch::Dispatch;
use crate::service::hands::Hands;
use crate::service::mesh::{ShardMessage, Transfer};
use crate::service::spooler::{ReleaseError, Released};

/// How long suspects wait after the start: whatever else crashes the node does so without them.
const SUSPECTS_WAIT: Duration = Duration::from_secs(2);

/// How long one suspect holds up the next. A receiver may take minutes to answer; what crashes us
/// does so when it is our turn.
const SUSPECT_TIME_MAX: Duration = Duration::from_secs(10);

impl<P: Port> Dispatch<P> {
    /// What is in hand on this shard.
    #[must_use]
    pub fn hands(&self) -> &Rc<Hands> {
        &self.hands
    }

    /// Whether the message of an entry was in hand at a crash: it is alone on its connection then.
    #[must_use]
    pub fn is_suspect(&self, entry: EntryId) -> bool {
        let brain = self.brain.borrow();
        brain
            .get(entry)
            .is_some_and(|entry| self.hands.is_suspect(entry.message()))
    }

    /// Whether an entry shares its connection with no other at a time: a suspect, so that a crash
    /// accuses nobody else; and one whose last attempt ended without a reply to its content. A site
    /// that hangs up at some later command may take the replies to all before it along, and what is
    /// sent together again would be taken again, by the same receivers, for as often.
    #[must_use]
    pub fn goes_alone(&self, entry: EntryId) -> bool {
        self.is_suspect(entry) || self.unanswered.borrow().contains(&entry)
    }

    /// Nobody knows whether the site has taken the message of this entry.
    pub(super) fn unanswered(&self, entry: EntryId) {
        let mut unanswered = self.unanswered.borrow_mut();
        if unanswered.len() >= limits::UNANSWERED_MAX {
            // Entries may end without an attempt.
            let brain = self.brain.borrow();
            unanswered.retain(|entry| brain.get(*entry).is_some());
        }
        if unanswered.len() < limits::UNANSWERED_MAX {
            unanswered.insert(entry);
        }
    }

    /// An entry has ended.
    pub(super) fn answered(&self, entry: EntryId) {
        self.unanswered.borrow_mut().remove(&entry);
    }

    /// Takes recipients of a suspect into the line of those that are tried one after the other.
    pub(super) fn hold_back(&self, transfer: Transfer) {
        let mut suspects = self.suspects.borrow_mut();
        suspects.push_back(transfer);
        if self.trying_suspects.replace(true) {
            return;
        }
        drop(suspects);
        let me = self.rc();
        self.port
            .spawn(Class::Control, async move { me.try_suspects().await });
    }

    async fn try_suspects(&self) {
        let begin = self.port.now().after(SUSPECTS_WAIT);
        self.port.sleep_until(begin).await;
        loop {
            let next = self.suspects.borrow_mut().pop_front();
            let Some(transfer) = next else { break };
            let (id, wall) = (transfer.id, self.port.wall());
            let due = transfer.due <= wall;
            self.enter(transfer);
            // One whose next attempt is far off holds up nobody: it will be alone on its
            // connection.
            if due {
                tracing::warn!(%id, crashes = self.hands.crashes(id), "trying a suspect");
                self.suspect_tried(id).await;
            }
        }
        self.trying_suspects.set(false);
    }

    /// Waits until a suspect is cleared, for a while.
    async fn suspect_tried(&self, id: MessageId) {
        let deadline = self.port.now().after(SUSPECT_TIME_MAX);
        let mut sleep = std::pin::pin!(self.port.sleep_until(deadline));
        std::future::poll_fn(|context| {
            loop {
                if !self.hands.is_suspect(id) || self.hands.is_condemned(id) {
                    return Poll::Ready(());
                }
                if self.suspect_changed.poll_raised(context).is_pending() {
                    return sleep.as_mut().poll(context);
                }
            }
        })
        .await;
    }

    /// An attempt has ended without a crash. It says nothing for one that is condemned meanwhile.
    pub(super) fn acquit(&self, id: MessageId) {
        if self.hands.is_suspect(id) && !self.hands.is_condemned(id) {
            self.hands.tried(id);
            self.suspect_changed.raise();
        }
    }

    /// Its sender has been told: the message is no suspect any more, unless it is condemned.
    pub(super) fn clear_suspect(&self, id: MessageId) {
        if self.hands.is_suspect(id) && !self.hands.is_condemned(id) {
            self.hands.clear(id);
            self.suspect_changed.raise();
        }
    }

    /// A connection's task has panicked: what it had in hand is accused, and waits or is put aside;
    /// what it was only given goes to other connections.
    pub fn mourn(&self, connection: ConnectionId, link: &Link) {
        self.hands.turn_is_over();
        for taken in link.taken_over() {
            let id = taken.id();
            self.hands.accuse(id);
            let crashes = self.hands.crashes(id);
            tracing::error!(%id, crashes, "in hand when a connection's task panicked");
            let deferred = if self.hands.is_condemned(id) {
                self.condemn(id);
                None
            } else {
                self.left_of(&taken)
            };
            self.apply(Event::Outcome {
                entry: taken.entry,
                deferred,
                cause: Cause::new(CauseKind::Recipient, "4.3.0 internal error, see the log"),
            });
            self.free(connection);
        }
        while let Some(entry) = link.next() {
            self.not_tried(entry, Cause::bare(CauseKind::NotTried));
            self.free(connection);
        }
        self.suspect_changed.raise();
        self.closed(connection, Cause::IDLE);
    }

    /// The recipients of an entry whose outcome was not known when its task died.
    fn left_of(&self, taken: &Taken) -> Option<Recipients> {
        let brain = self.brain.borrow();
        let recipients = brain.get(taken.entry)?.recipients();
        let left: Vec<u32> = recipients
            .as_slice()
            .iter()
            .copied()
            .filter(|recipient| !taken.settled.contains(recipient))
            .collect();
        Recipients::many(&left)
    }

    /// A message is not tried any more, by no shard, and put aside.
    fn condemn(&self, id: MessageId) {
        for shard in (0..self.settings.shards).filter(|shard| *shard != self.settings.shard) {
            self.post(shard, ShardMessage::Condemned(id));
        }
        self.set_aside(id);
    }

    /// Another shard has condemned a message: entries of it that are here go when their turn comes,
    /// and the next suspect's comes at once.
    pub(super) fn condemned(&self, id: MessageId) {
        self.hands.condemn(id);
        self.suspect_changed.raise();
    }

    /// The message is in quarantine: entries of it go as the condemned do.
    pub(super) fn is_aside(&self, id: MessageId) {
        self.hands.put_aside(id);
        self.suspect_changed.raise();
    }

    /// Puts a message aside, wherever it is stored.
    pub(super) fn set_aside(&self, id: MessageId) {
        let storing = self.storing_shard(id);
        if storing != self.settings.shard {
            self.post(storing, ShardMessage::SetAside(id));
            return;
        }
        let me = self.rc();
        self.port.spawn(Class::Spool, async move {
            if let Some(spool) = me.spool(id.shard()) {
                spool.set_aside(id).await;
            }
        });
    }

    /// Takes a message out of quarantine and sends it as a new one; returns its new id. Once: a
    /// crash on the way leaves it in quarantine, or sends it at the next start.
    ///
    /// # Errors
    /// See [`ReleaseError`].
    pub async fn release(&self, id: MessageId) -> Result<MessageId, ReleaseError> {
        let spool = self.spool(id.shard()).ok_or(ReleaseError::Absent)?;
        let now = self.port.wall();
        let new = match spool.release(id, now).await? {
            Released::Now(stored, envelope, content) => {
                let new = stored.id();
                self.stored(&stored, envelope, content, now, true, None);
                new
            }
            Released::Before(new) => new,
        };
        tracing::warn!(%id, %new, "released from quarantine");
        Ok(new)
    }
}
