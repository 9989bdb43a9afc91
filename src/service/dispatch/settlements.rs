//! settlements - what became of recipients: the journal, failures, and the sender's notification.

use std::sync::Arc;
use std::time::Duration;

use crate::engine::{Class, Port};
use crate::message::{Content, EnhancedStatus, Envelope, MessageId, dsn};
use crate::queue::{Cause, EntryId, Event, Recipients};
use crate::service::dispatch::Dispatch;
use crate::service::held::Held;
use crate::service::mesh::{Bounce, Failure, LendError, ShardMessage};
use crate::spool::{Settlement, SettlementKind};
use crate::time::Mono;

impl<P: Port> Dispatch<P> {
    /// Journals when a deferred entry is due, so that a restart keeps the schedule.
    pub(super) fn journal(&self, entry: EntryId, attempts: u16, next: Mono) {
        let next = self.port.wall().after(next.since(self.port.now()));
        let Some((id, recipients)) = self.who(entry) else {
            return;
        };
        for recipient in recipients.as_slice() {
            let kind = SettlementKind::Deferred { attempts, next };
            self.settle(Settlement {
                id,
                recipient: *recipient,
                kind,
            });
        }
    }

    fn who(&self, entry: EntryId) -> Option<(MessageId, Recipients)> {
        let brain = self.brain.borrow();
        let entry = brain.get(entry)?;
        Some((entry.message(), entry.recipients().clone()))
    }

    /// An entry grew too old: its recipients fail with 4.4.7, and the sender is told.
    pub(super) fn expire(&self, entry: EntryId) {
        let Some((id, recipients)) = self.who(entry) else {
            return;
        };
        let failure = |recipient: &u32| Failure {
            recipient: *recipient,
            status: EnhancedStatus::EXPIRED,
            text: Box::from("delivery time expired"),
            remote: None,
        };
        let failures = recipients.as_slice().iter().map(failure).collect();
        self.bounce(Bounce {
            id,
            failures,
            expired: true,
            held: None,
        });
        // Reported by a task: the brain is being asked for actions right now.
        let me = self.rc();
        self.port.spawn(Class::Egress, async move {
            me.apply(Event::Outcome {
                entry,
                deferred: None,
                cause: Cause::SETTLED,
            });
        });
    }

    pub(super) fn settle(&self, settlement: Settlement) {
        let storing = self.storing_shard(settlement.id);
        if storing == self.settings.shard {
            self.settle_here(settlement);
        } else {
            self.post(storing, ShardMessage::Settle(settlement));
        }
    }

    pub(super) fn settle_here(&self, settlement: Settlement) {
        if let Some(spool) = self.spool(settlement.id.shard()) {
            spool.settle(settlement);
        }
    }

    pub(super) fn bounce(&self, bounce: Bounce) {
        let storing = self.storing_shard(bounce.id);
        if storing == self.settings.shard {
            self.start_bounce(bounce);
        } else {
            self.post(storing, ShardMessage::Bounce(Box::new(bounce)));
        }
    }

    pub(super) fn start_bounce(&self, bounce: Bounce) {
        let me = self.rc();
        self.port.spawn(Class::Spool, async move {
            let (id, owner) = (bounce.id, me.hands.owner());
            let _mark = me.hands.hold(id, owner);
            me.hands.during(owner, me.carry_bounce(bounce)).await;
            me.clear_suspect(id);
        });
    }

    /// Tells the sender, durably, and only then settles the failed recipients: a crash in between
    /// repeats the notification rather than losing it. Of those that have reached another end,
    /// nothing is told.
    async fn carry_bounce(&self, mut bounce: Bounce) {
        let held = loop {
            match &bounce.held {
                Some(held) => break Ok(Arc::clone(held)),
                None => match self.read(bounce.id).await {
                    // A disk that does not answer now is no reason to tell the sender nothing.
                    Err(LendError::Unreadable) => {
                        let pause = self.port.now().after(NOTIFICATION_PAUSE);
                        self.port.sleep_until(pause).await;
                    }
                    read => break read.map(|lent| lent.held),
                },
            }
        };
        if let Some(spool) = self.spool(bounce.id.shard()) {
            let waits = |failure: &Failure| spool.waits(bounce.id, failure.recipient);
            bounce.failures.retain(waits);
        }
        if bounce.failures.is_empty() {
            return;
        }
        if let Ok(held) = held
            && let Some((envelope, content)) = self.notification(&held, &bounce)
        {
            self.store_notification(envelope, content).await;
        }
        let kind = if bounce.expired {
            SettlementKind::Expired
        } else {
            SettlementKind::Failed
        };
        for failure in &bounce.failures {
            self.settle_here(Settlement {
                id: bounce.id,
                recipient: failure.recipient,
                kind,
            });
        }
    }

    fn notification(&self, held: &Held, bounce: &Bounce) -> Option<(Envelope, Content)> {
        let recipients = &held.envelope.recipients;
        let reports: Vec<_> = bounce
            .failures
            .iter()
            .filter_map(|failure| {
                Some(dsn::Report {
                    recipient: recipients.get(failure.recipient as usize)?,
                    status: failure.status,
                    diagnostic: &failure.text,
                    remote_mta: failure.remote.as_deref(),
                })
            })
            .collect();
        dsn::failure(&dsn::DsnInfo {
            reporting_mta: &self.settings.hostname,
            sender: held.envelope.sender.as_ref(),
            envid: held.envelope.envid.as_deref(),
            ret: held.envelope.ret,
            smtputf8: held.envelope.smtputf8,
            reports: &reports,
            arrival: held.received_at,
            now: self.port.wall(),
            id: held.id,
            content: &held.content,
            kind: if bounce.expired {
                dsn::Kind::Expired
            } else {
                dsn::Kind::Failed
            },
            seed: self.port.random(),
        })
    }

    async fn store_notification(&self, envelope: Envelope, content: Content) {
        loop {
            let (id, now) = (self.own_spool().next_id(), self.port.wall());
            match self.own_spool().append(id, &envelope, &content, now).await {
                Ok(stored) => {
                    self.count(|counters| counters.notifications += 1);
                    self.stored(&stored, envelope, content, now, true, None);
                    return;
                }
                Err(error) => {
                    tracing::warn!(?error, "a delivery status notification waits for the spool");
                    let pause = self.port.now().after(NOTIFICATION_PAUSE);
                    self.port.sleep_until(pause).await;
                }
            }
        }
    }
}

/// How long a notification waits when the spool takes nothing.
const NOTIFICATION_PAUSE: Duration = Duration::from_secs(5);
