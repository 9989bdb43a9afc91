//! client - the client end of one SMTP connection, without I/O.
//!
//! What: transactions go in, pieces to send and outcomes per recipient come out. Several
//! transactions may be in flight; replies are taken in order.
//! Why this way: the number of round trips decides the throughput of one connection. With PIPELINING
//! and CHUNKING, MAIL, RCPT and BDAT LAST with the content are one segment, and the next
//! transaction follows without waiting; with PIPELINING, MAIL, RCPT and DATA are; else a dialogue.
//! Failure: every transaction that was sent ends in exactly one `Done`, whatever the peer does. An
//! end of data without its reply is `Ambiguous`, never an error.
//! Security: replies are hostile octets: bounded, counted, and made printable.
//! Standards: RFC 5321, 1870, 2920, 3030, 3461, 6152, 6531, 7504, 9422.
//!
//! A driver's loop: `poll_output` until it returns false, writing the pieces; receive until
//! `deadline`; `input`; act on the events.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::extension::Capabilities;
use super::reply::{Reply, ReplyText};
use crate::message::{EnhancedStatus, Notify, Ret};
use crate::time::Mono;

/// How long to wait for each reply (RFC 5321 4.5.3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientTimeouts {
    /// The greeting (4.5.3.2.1).
    pub greeting: Duration,
    /// The reply to EHLO, HELO and RSET, which the RFC does not name: as for MAIL.
    pub hello: Duration,
    /// The reply to MAIL (4.5.3.2.2).
    pub mail: Duration,
    /// The reply to RCPT (4.5.3.2.3).
    pub rcpt: Duration,
    /// The reply to DATA (4.5.3.2.4).
    pub data: Duration,
    /// One block of content must be taken by the peer (4.5.3.2.5); for the driver's writes.
    pub block: Duration,
    /// The reply to the end of data, or to BDAT (4.5.3.2.6).
    pub end: Duration,
    /// The reply to QUIT: nothing depends on it, so it is short.
    pub quit: Duration,
}

impl Default for ClientTimeouts {
    fn default() -> Self {
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        Self {
            greeting: minutes(5),
            hello: minutes(5),
            mail: minutes(5),
            rcpt: minutes(5),
            data: minutes(2),
            block: minutes(3),
            end: minutes(10),
            quit: Duration::from_secs(5),
        }
    }
}

/// What a client needs to know about itself.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Our name in EHLO: that of the source address.
    pub helo: Arc<str>,
    /// Transactions in flight on one connection, at least 1.
    pub pipeline_depth: u8,
    /// Most recipients of one transaction; the surplus is deferred as `NextBatch`.
    pub recipients_max: u32,
    /// Transactions on this connection; 0: as many as the peer takes.
    pub transactions_max: u32,
    /// Use CHUNKING where it is offered.
    pub chunking: bool,
    /// Use PIPELINING where it is offered.
    pub pipelining: bool,
    /// Largest content sent before the replies to RCPT are known.
    pub eager_bytes_max: u64,
    /// Timeouts.
    pub timeouts: ClientTimeouts,
}

impl ClientConfig {
    /// The defaults, with this name in EHLO.
    #[must_use]
    pub fn new(helo: &str) -> Self {
        Self {
            helo: Arc::from(helo),
            pipeline_depth: 1,
            recipients_max: 100,
            transactions_max: 0,
            chunking: true,
            pipelining: true,
            eager_bytes_max: crate::limits::SMTP_EAGER_BYTES_MAX,
            timeouts: ClientTimeouts::default(),
        }
    }
}

/// One message for one or more recipients.
#[derive(Debug, Clone, Default)]
pub struct Transaction {
    /// The driver's name for it; comes back in `Done`.
    pub token: u64,
    /// The sender, without angle brackets; empty for the null sender.
    pub sender: Bytes,
    /// The recipients, without angle brackets; at least one.
    pub recipients: Vec<Bytes>,
    /// The content in pieces, in order; never copied.
    pub content: Vec<Bytes>,
    /// Octets of the content, for SIZE.
    pub size: u64,
    /// An address or the header needs SMTPUTF8.
    pub smtputf8: bool,
    /// The content has octets above 127.
    pub eight_bit: bool,
    /// What RFC 3461 lets a sender ask for; passed on where the peer offers DSN.
    pub dsn: Option<Box<DsnParameters>>,
}

/// DSN parameters of a transaction (RFC 3461 4), decoded.
#[derive(Debug, Clone, Default)]
pub struct DsnParameters {
    /// RET of MAIL.
    pub ret: Option<Ret>,
    /// ENVID of MAIL, not xtext-encoded.
    pub envid: Option<Bytes>,
    /// Per recipient, in the order of `Transaction::recipients`; missing ones have no parameters.
    pub recipients: Vec<RecipientDsn>,
}

/// DSN parameters of one recipient.
#[derive(Debug, Clone, Default)]
pub struct RecipientDsn {
    /// NOTIFY; written only where it was specified.
    pub notify: Notify,
    /// ORCPT as `type;address`, the address not xtext-encoded.
    pub orcpt: Option<Bytes>,
}

/// What the driver must know.
#[derive(Debug, Clone, PartialEq)]
pub enum ClientEvent {
    /// EHLO (or HELO) is done: transactions can be sent.
    Ready,
    /// A transaction is over.
    Done {
        /// The transaction's token.
        token: u64,
        /// One outcome per recipient, in their order.
        outcomes: Vec<Outcome>,
    },
    /// The greeting or EHLO was refused: no transaction was tried. `Closed` follows.
    Refused {
        /// What the peer said.
        reply: Reply,
        /// 5yz (RFC 5321 3.1, RFC 7504: 521 and 554).
        permanent: bool,
    },
    /// The connection is of no more use: flush nothing, close it. The last event.
    Closed,
}

/// What became of one recipient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The peer took responsibility.
    Delivered {
        /// What it said.
        reply: ReplyText,
    },
    /// Certainly not delivered; worth another try.
    Deferred {
        /// 4.x.x.
        status: EnhancedStatus,
        /// What the peer said, or what happened.
        text: ReplyText,
        /// How far the trouble reaches.
        cause: Cause,
    },
    /// Certainly not delivered; the same again cannot help.
    Failed {
        /// 5.x.x.
        status: EnhancedStatus,
        /// What the peer said, or what is wrong.
        text: ReplyText,
    },
    /// Everything was sent and the reply to the end of data never came: the peer may have it.
    Ambiguous {
        /// 4.4.2.
        status: EnhancedStatus,
        /// What happened.
        text: ReplyText,
    },
}

/// How far a deferral reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// This recipient.
    ThisRecipient,
    /// This message, whoever its recipients are: a 4yz to MAIL, DATA or the end of data.
    ThisMessage,
    /// One transaction does not take so many recipients: send again at once in another.
    NextBatch,
    /// The whole host: it said 421.
    Host,
    /// The connection was lost, or the peer broke the protocol.
    Connection,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disconnect {
    /// The peer closed it.
    Eof,
    /// The peer reset it.
    Reset,
    /// The system reported another error.
    Io,
}

/// The client end of one connection.
#[derive(Debug)]
pub struct Client {
    config: ClientConfig,
    capabilities: Capabilities,
}

impl Client {
    /// A client that waits for the greeting.
    #[must_use]
    pub fn new(config: ClientConfig) -> Self {
        Self {
            config,
            capabilities: Capabilities::default(),
        }
    }

    /// Appends pieces to send, in order, at most [`crate::limits::SMTP_OUTPUT_PIECES_MAX`]; returns
    /// whether there were any. Call until it returns false, and before waiting: it starts the clock
    /// of the reply awaited.
    pub fn poll_output(&mut self, _now: Mono, _out: &mut Vec<Bytes>) -> bool {
        false
    }

    /// Takes octets of the peer and appends what they mean.
    pub fn input(&mut self, _bytes: &[u8], _now: Mono, _events: &mut Vec<ClientEvent>) {}

    /// Whether [`Self::send`] may be called now.
    #[must_use]
    pub fn can_send(&self) -> bool {
        self.config.pipeline_depth > 0
    }

    /// Whether this connection takes no more transactions: its cap is reached, it quits, or is closed.
    #[must_use]
    pub fn is_spent(&self) -> bool {
        false
    }

    /// Transactions in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        0
    }

    /// What the peer offered.
    #[must_use]
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// Starts a transaction. Precondition: [`Self::can_send`].
    ///
    /// Returns its `Done` at once where nothing can be sent: too big, or the peer lacks what the
    /// message needs. The connection is as before then.
    #[must_use]
    pub fn send(&mut self, _transaction: Transaction) -> Option<ClientEvent> {
        None
    }

    /// Says QUIT after the transactions in flight.
    pub fn quit(&mut self) {}

    /// When the reply awaited now is overdue; `None` while none is awaited.
    #[must_use]
    pub fn deadline(&self) -> Option<Mono> {
        None
    }

    /// So many octets of what `poll_output` gave, its tail, were never handed to the system. Say so
    /// before `timed_out` or `disconnected`: a message that cannot have been whole is not ambiguous.
    pub fn unsent(&mut self, _octets: u64) {}

    /// The deadline passed: every transaction in flight ends.
    pub fn timed_out(&mut self, _now: Mono, _events: &mut Vec<ClientEvent>) {}

    /// The connection is gone: every transaction in flight ends.
    pub fn disconnected(&mut self, _how: Disconnect, _events: &mut Vec<ClientEvent>) {}
}
