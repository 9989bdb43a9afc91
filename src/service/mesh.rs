//! mesh - what shards say to each other and what the control thread says to them.
//!
//! Flow: a message is stored on one shard (the storing shard, the only writer of its spool) and
//! sent by the home shard of its egress path; the two meet here. Batches are made by the receiving
//! side, which takes everything that waits at once.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::dkim::{KeyRing, Report};
use crate::engine::mesh::MailSender;
use crate::message::{Domain, EnhancedStatus, MessageId};
use crate::queue::Recipients;
use crate::service::dispatch::Counters;
use crate::service::held::Held;
use crate::service::resolver::{MailAnswer, Question};
use crate::service::smtpd::MovingSession;
use crate::service::spooler::{Listed, ReleaseError};
use crate::spool::{Settlement, SpoolStatus};
use crate::time::{Mono, Wall};

/// One letter between threads of a node.
#[derive(Debug)]
pub enum ShardMessage {
    /// Storing shard to home shard: take over these recipients of a message.
    Enqueue(Box<Transfer>),
    /// Home shard to storing shard: lend me this message.
    Lend {
        /// Which message.
        id: MessageId,
        /// Who asks.
        home: u16,
        /// The number under which the home shard waits for the answer.
        ticket: u64,
    },
    /// Storing shard to home shard: the message asked for, or why it cannot be had.
    Lent {
        /// The number of the request.
        ticket: u64,
        /// The message.
        result: Result<Lent, LendError>,
    },
    /// Home shard to storing shard: what became of recipients.
    Settle(Settlement),
    /// Home shard to storing shard: put this message into quarantine; it was in hand too often.
    SetAside(MessageId),
    /// Shard to all others: this message was in hand too often here; do not try it either.
    Condemned(MessageId),
    /// Home shard to storing shard: these recipients failed; tell the sender, then settle them.
    Bounce(Box<Bounce>),
    /// Shard to shard: I have mail for this egress path, and you and others its connections.
    MakeRoom {
        /// Source number.
        source: u16,
        /// The site's name.
        site: Arc<str>,
    },
    /// Shard to shard: go on with this session.
    Session(Box<MovingSession>),
    /// Control thread to shard: an answer of the DNS.
    Resolved {
        /// The question.
        question: Question,
        /// The answer.
        answer: Arc<MailAnswer>,
    },
    /// Control thread to shard: these keys sign from now on.
    Rekey(Arc<KeyRing>),
    /// Control thread to shard: an operator's wish.
    Operator(OperatorRequest),
}

/// Some recipients of one message, all at one site, on their way to the home shard.
#[derive(Debug)]
pub struct Transfer {
    /// Which message; its shard number names the storing shard's spool.
    pub id: MessageId,
    /// Which of its recipients.
    pub recipients: Recipients,
    /// Source number.
    pub source: u16,
    /// The site's name.
    pub site: Arc<str>,
    /// How to find the site's hosts.
    pub target: Target,
    /// Attempts made so far.
    pub attempts: u16,
    /// When the next attempt is due.
    pub due: Wall,
    /// How old the message was.
    pub age: Duration,
    /// When it was that old.
    pub as_of: Mono,
    /// The message itself, while it is in memory.
    pub held: Option<Arc<Held>>,
}

/// Where to connect for a site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The hosts of this route of the configuration, by position.
    Route(u32),
    /// The mail exchangers of this domain, one of the site's.
    Mail(Domain),
}

/// A message lent for delivery, and who is not to get it.
#[derive(Debug)]
pub struct Lent {
    /// The message.
    pub held: Arc<Held>,
    /// Recipients that have reached their end, as runs: first, how many. An entry may know less:
    /// where settlements could not be read at the start, but later.
    pub ended: Vec<(u32, u32)>,
}

impl Lent {
    /// Whether a recipient has reached its end.
    #[must_use]
    pub fn has_ended(&self, recipient: u32) -> bool {
        let before = self.ended.partition_point(|run| run.0 <= recipient);
        let run = before.checked_sub(1).and_then(|at| self.ended.get(at));
        run.is_some_and(|(first, count)| recipient - first < *count)
    }
}

/// Why a message could not be lent for delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LendError {
    /// Its stored bytes fail their checksum: never sent.
    Damaged,
    /// All of its recipients are settled already.
    Gone,
    /// The disk did not answer; later perhaps.
    Unreadable,
}

/// Recipients that failed for good, on the way to their sender.
#[derive(Debug)]
pub struct Bounce {
    /// Which message.
    pub id: MessageId,
    /// The failures, one per recipient.
    pub failures: Vec<Failure>,
    /// Whether they failed because the message grew too old.
    pub expired: bool,
    /// The message, if it is in memory.
    pub held: Option<Arc<Held>>,
}

/// One recipient's failure.
#[derive(Debug, Clone)]
pub struct Failure {
    /// Position in the envelope.
    pub recipient: u32,
    /// Enhanced status of the failure.
    pub status: EnhancedStatus,
    /// What the remote host or we said.
    pub text: Box<str>,
    /// The remote host that said it, if one did.
    pub remote: Option<Box<str>>,
}

/// What the operator asks of one shard; the answer goes back through the channel inside. A dropped
/// channel says that the shard has ended.
#[derive(Debug)]
pub enum OperatorRequest {
    /// Report the figures.
    Status(oneshot::Sender<Figures>),
    /// Report the egress paths that live here.
    Paths(oneshot::Sender<Vec<PathFigures>>),
    /// Report the spools in this shard's care.
    Spools(oneshot::Sender<Vec<(u16, SpoolStatus)>>),
    /// Stop or restart sending on the paths of a source, to a site, or both; answers how many.
    Suspend {
        /// Name of a source; none: all.
        source: Option<String>,
        /// Name of a site; none: all.
        site: Option<String>,
        /// Whether to stop (true) or to go on (false).
        stop: bool,
        /// The way back.
        reply: oneshot::Sender<u64>,
    },
    /// List what is in quarantine: a bounded number per spool, and how many there are.
    Quarantine(oneshot::Sender<(Vec<Listed>, u64)>),
    /// Send a message in quarantine after all; answers its new id.
    Release {
        /// Which message.
        id: MessageId,
        /// The way back.
        reply: oneshot::Sender<Result<MessageId, ReleaseError>>,
    },
    /// Remove a message from quarantine for good.
    Discard {
        /// Which message.
        id: MessageId,
        /// The way back.
        reply: oneshot::Sender<Result<(), ReleaseError>>,
    },
    /// Try the disk again after an alarm; answers whether there was one.
    Probe(oneshot::Sender<bool>),
    /// Finish what is in hand, make everything durable, and end.
    Drain,
}

/// One shard at this moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Inbound connections open now.
    pub sessions: u64,
    /// Outbound connections open now.
    pub connections: u64,
    /// Entries that wait for a connection.
    pub ready: u64,
    /// Entries that wait for their next attempt.
    pub deferred: u64,
    /// Entries in the hands of connections.
    pub in_flight: u64,
    /// Messages of an earlier life that the queue does not have yet.
    pub restoring: u64,
    /// Totals of the sessions: accepted, and turned away.
    pub sessions_total: u64,
    /// Connections turned away because of a limit.
    pub sessions_refused: u64,
    /// Sessions that went on to another shard.
    pub sessions_moved: u64,
    /// Totals of the mail.
    pub counters: Counters,
    /// Totals of the signer.
    pub signing: Report,
    /// Messages that went out again with a signature that was kept.
    pub signatures_reused: u64,
    /// Messages signed with the hash of the body that was taken while they arrived.
    pub hashed_on_arrival: u64,
    /// Messages sent unsigned because of their form, although there was a key.
    pub unsignable: u64,
}

/// One egress path at this moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathFigures {
    /// Name of the source.
    pub source: String,
    /// Name of the site.
    pub site: String,
    /// Entries that wait for a connection.
    pub ready: u64,
    /// Entries that wait for their next attempt.
    pub deferred: u64,
    /// Entries in the hands of connections.
    pub in_flight: u64,
    /// Connections, dials included.
    pub connections: u64,
    /// Whether an operator has stopped it.
    pub suspended: bool,
    /// Failures of the host in a row.
    pub failures: u32,
    /// Seconds until the path is tried again after them, rounded up; none where it is awake.
    pub sleeps_seconds: Option<u64>,
    /// What was last said or went wrong, as long as the path is known.
    pub last_error: Option<String>,
}

/// The way to every shard of the node, by shard number.
pub type Mesh = Arc<[MailSender<ShardMessage>]>;

/// Answers an operator's request. A caller that has gone away wants no answer.
pub fn answer<T>(reply: oneshot::Sender<T>, value: T) {
    if reply.send(value).is_err() {
        tracing::debug!("an operator went away before the answer");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Envelope;

    #[test]
    fn runs_say_who_has_ended() {
        let content = bytes::Bytes::from_static(b"x");
        let id = MessageId::new(1, 2);
        let held = Held::mapped(id, Envelope::default(), content, Wall(1));
        let mut lent = Lent {
            held: Arc::new(held),
            ended: vec![(1, 2), (5, 1), (7, 9)],
        };
        let ended = |lent: &Lent| {
            (0..20)
                .filter(|at| lent.has_ended(*at))
                .collect::<Vec<u32>>()
        };
        assert_eq!(ended(&lent), [1, 2, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
        lent.ended.clear();
        assert!(ended(&lent).is_empty());
    }
}
