//! types - what goes into the client and what comes out: configuration, transactions, outcomes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::limits;
use crate::message::{EnhancedStatus, Notify, Ret};
use crate::smtp::reply::{Reply, ReplyText};

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
            eager_bytes_max: limits::SMTP_EAGER_BYTES_MAX,
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
    /// Octets of the content: the sum of its pieces.
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
    /// One transaction does not take so many recipients, or this connection so many domains: send
    /// again at once in another transaction, on another connection where this one is spent.
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
