//! event - what the brain is told, and what it answers.
//!
//! What: the vocabulary between [`super::Queue`] and its driver. The driver may report late: ids
//! carry generations, and an event for something that is gone is counted and ignored. What can only
//! be a bug of the driver (an outcome for an entry that was never assigned) is asserted.

use std::fmt;
use std::time::Duration;

use crate::message::MessageId;
use crate::time::Mono;

use super::entry::{EntryId, Recipients};

/// Names one egress path, (source, site). Valid while the path has entries or connections, and for
/// at least `limits::QUEUE_PATHS_VACANT_MAX` further calls of `Queue::path` after that: ask
/// again for each message rather than keep one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PathId {
    pub(super) index: u32,
    pub(super) generation: u32,
}

/// Names one connection, from its `Dial` to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId {
    pub(super) index: u32,
    pub(super) generation: u32,
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.index, self.generation)
    }
}

/// Whose fault it was; decides what is retried, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CauseKind {
    /// Nothing to retry: delivered, failed for good, or reported as expired.
    Settled,
    /// 4xx for this recipient or message; the path is healthy.
    Recipient,
    /// 421, or 4xx to the greeting or EHLO: the host wants less (RFC 5321 4.5.4.1). The path
    /// opens fewer connections, or sleeps where none works.
    Host,
    /// Refused, reset, timed out, no route.
    Connection,
    /// The reply to end of data never came: possibly delivered. Deferred like a 4xx, counted apart.
    Ambiguous,
    /// The peer took some recipients and wants the rest in the next transaction (RFC 5321
    /// 4.5.3.1.10): no attempt is counted, the rest goes out at once.
    NextBatch,
    /// The connection ended before this entry was tried: no attempt is counted.
    NotTried,
    /// A local or DNS problem (4.4.3, 4.3.0): deferred, the path is not blamed.
    Local,
    /// The peer ended a connection that had taken mail before, with a 421 or without a word: only
    /// this connection is used up. No attempt is counted (within `limits::QUEUE_RETURNS_MAX`).
    Spent,
    /// The connection ended without fault: idle, QUIT, message cap, our `Close`.
    Idle,
}

/// A cause with the words of the peer, for the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// Whose fault.
    pub kind: CauseKind,
    /// What was said; cut to `limits::QUEUE_CAUSE_BYTES_MAX` when it is kept.
    pub text: Option<Box<str>>,
}

impl Cause {
    /// All is settled.
    pub const SETTLED: Self = Self {
        kind: CauseKind::Settled,
        text: None,
    };
    /// A connection ended without fault.
    pub const IDLE: Self = Self {
        kind: CauseKind::Idle,
        text: None,
    };

    /// A cause with text.
    #[must_use]
    pub fn new(kind: CauseKind, text: &str) -> Self {
        Self {
            kind,
            text: Some(text.into()),
        }
    }

    /// A cause that needs no words.
    #[must_use]
    pub fn bare(kind: CauseKind) -> Self {
        Self { kind, text: None }
    }
}

/// What happened.
#[derive(Debug)]
pub enum Event<T> {
    /// A message (or a recovered rest of one) for a path. It must be durable already.
    Enqueue {
        /// From `Queue::path`, asked for just before.
        path: PathId,
        /// The message.
        message: MessageId,
        /// Whom the entry is for.
        recipients: Recipients,
        /// How long ago it was accepted, by the wall clock; zero for a fresh one.
        age: Duration,
        /// Attempts made before a restart.
        attempts: u16,
        /// Not before this; `Mono(0)` for at once.
        due: Mono,
        /// The driver's.
        payload: T,
    },
    /// A `Dial` succeeded; the connection takes `slots` transactions at once (0 is taken as 1).
    Connected {
        /// From the `Dial`.
        connection: ConnectionId,
        /// Transactions in flight at once.
        slots: u32,
    },
    /// One more slot is free: a transaction ended, or the next may already follow it. One for each
    /// `Assign`, but none from a connection that takes nothing more: its `Closed` follows.
    Free {
        /// The connection.
        connection: ConnectionId,
    },
    /// A `Dial` failed: connect, TLS, greeting or EHLO.
    DialFailed {
        /// From the `Dial`.
        connection: ConnectionId,
        /// Why.
        cause: Cause,
    },
    /// A connection is gone; the outcomes of its entries are reported one by one, before or after.
    Closed {
        /// The connection.
        connection: ConnectionId,
        /// `Idle` where nobody is to blame.
        cause: Cause,
    },
    /// An attempt, or the report about an expired entry, has ended.
    Outcome {
        /// The entry.
        entry: EntryId,
        /// Whom to try again; `None` when all are settled: the entry is removed.
        deferred: Option<Recipients>,
        /// Why.
        cause: Cause,
    },
    /// The operator stops a path: nothing is assigned and nothing dialled until `Resume`.
    Suspend {
        /// The path.
        path: PathId,
    },
    /// The operator opens a path again, and forgets its backoff.
    Resume {
        /// The path.
        path: PathId,
    },
    /// The operator wants a deferred entry tried now. No effect in other states.
    Requeue {
        /// The entry.
        entry: EntryId,
    },
    /// The operator wants a ready or deferred entry ended: it is handed out as `Expired`, and the
    /// driver decides between a report and silence. No effect in other states.
    Expire {
        /// The entry.
        entry: EntryId,
    },
    /// Another shard has mail for this path and no connection (its `AskForRoom`): connections that
    /// it needs more than this shard are closed, the idle ones at once.
    MakeRoom {
        /// The path, from `Queue::known_path`.
        path: PathId,
    },
    /// The time of the last `WakeAt` has come.
    Wake,
}

/// What the driver is to do, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Open a connection; answer with `Connected` or `DialFailed`.
    Dial {
        /// For its source and site: `Queue::source`, `Queue::site`.
        path: PathId,
        /// Its name from now on.
        connection: ConnectionId,
    },
    /// Send this entry; answer with one `Outcome` and one `Free`. Where the connection is ending
    /// already, answer with an `Outcome` of `NotTried` and the `Closed`.
    Assign {
        /// Where.
        connection: ConnectionId,
        /// What.
        entry: EntryId,
    },
    /// Nothing to do for this connection: QUIT, then answer with `Closed`. Never while it has
    /// an assigned entry.
    Close {
        /// The connection.
        connection: ConnectionId,
    },
    /// Journal that the entry waits.
    Deferred {
        /// The entry.
        entry: EntryId,
        /// Attempts made, this one included.
        attempts: u16,
        /// The next attempt, not before.
        next: Mono,
    },
    /// Too old, or ended by the operator: report, settle, then answer with `Outcome { deferred:
    /// None }` (or with whom to keep, where the report could not be made).
    Expired {
        /// The entry.
        entry: EntryId,
    },
    /// Other shards hold the connections that this path could use: tell each of them with
    /// `MakeRoom`.
    AskForRoom {
        /// For its source and site: `Queue::source`, `Queue::site`.
        path: PathId,
    },
    /// Send `Wake` at this time; replaces the earlier one.
    WakeAt(Mono),
}
