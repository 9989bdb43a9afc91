//! server - the server end of one SMTP session, without I/O.
//!
//! What: octets of the peer go in, replies and [`ServerEvent`]s come out. At the end of a message
//! the machine stops until the driver says `accepted`, with a message that is durable, or `refused`.
//! Why this way: replies depend on the octets alone, never on how they were split, so one segment
//! with a whole session and one octet at a time give the same session.
//! Limits: `ServerConfig`, `limits::SMTP_*`. An idle session holds no buffer at all.
//! Failure: whatever is not accepted gets a reply that says why; only `accepted` says 250 to a
//! message. What breaks the line rule is refused whole at its true end.
//! Security: hostile octets; no line that ends in anything but CRLF is a command, or ends a message.
//! Standards: RFC 5321, 1870, 2034, 2920, 3030, 3461, 6152, 6531.
//!
//! Example of use, for a driver:
//! ```text
//! server.set_next_id(spooler.next_id());
//! loop { let (used, event) = server.input(&bytes[at..], now, &mut out); at += used; match event {..} }
//! ```

use std::net::IpAddr;
use std::sync::Arc;

use super::reply::Reply;
use crate::message::{Content, Envelope, MessageId};
use crate::time::Wall;

/// What all sessions of one listener share.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Our name in the greeting, in EHLO and in the Received field.
    pub hostname: Box<str>,
    /// Largest message in octets, counted as RFC 1870 wants: without stuffing, with CRLF.
    pub size_max: u64,
    /// Most recipients of one transaction; the surplus gets 452 4.5.3.
    pub recipients_max: u32,
    /// Commands that are unknown or malformed before the session is closed with 421.
    pub bad_commands_max: u16,
    /// Commands that move no mail (NOOP, RSET, VRFY, EHLO, refused ones) between two messages
    /// before the session is closed with 421.
    pub idle_commands_max: u16,
    /// Offer PIPELINING.
    pub pipelining: bool,
    /// Offer CHUNKING.
    pub chunking: bool,
    /// Offer 8BITMIME.
    pub eight_bit_mime: bool,
    /// Offer SMTPUTF8.
    pub smtputf8: bool,
    /// Offer DSN.
    pub dsn: bool,
}

impl ServerConfig {
    /// The defaults, with all extensions, for a host of this name.
    #[must_use]
    pub fn new(hostname: &str) -> Self {
        Self {
            hostname: hostname.into(),
            size_max: 50 << 20,
            recipients_max: 1000,
            bad_commands_max: 25,
            idle_commands_max: 2000,
            pipelining: true,
            chunking: true,
            eight_bit_mime: true,
            smtputf8: true,
            dsn: true,
        }
    }
}

/// What the driver must act on before it gives more input.
#[derive(Debug)]
pub enum ServerEvent {
    /// A whole message: answer with [`Server::accepted`] or [`Server::refused`].
    Message(Box<Inbound>),
    /// Send what is in `out`, then close the connection.
    Close,
}

/// One message as it was received.
#[derive(Debug)]
pub struct Inbound {
    /// Sender, recipients and what was asked for them.
    pub envelope: Envelope,
    /// Our Received field, then the content as the peer sent it.
    pub content: Content,
    /// Where it came from.
    pub peer: IpAddr,
    /// When its content began to arrive.
    pub received_at: Wall,
    /// The id that the Received field names: what `set_next_id` gave.
    pub id: Option<MessageId>,
}

/// Why a whole message is not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// 452 4.3.1: the spool is full.
    InsufficientStorage,
    /// 451 4.3.0: a failure of our own; durability is not proven.
    LocalError,
    /// 554 5.4.6: too many Received fields.
    Loop,
    /// What policy says; 4yz or 5yz.
    Policy(Reply),
}

/// The server end of one session.
#[derive(Debug)]
pub struct Server {
    config: Arc<ServerConfig>,
    peer: IpAddr,
    may_relay: bool,
    next_id: Option<MessageId>,
}

// 10,000 idle sessions must cost less than 2 KiB each, driver and socket included.
const _: () = assert!(size_of::<Server>() <= 256);

impl Server {
    /// A session with `peer`. `may_relay`: whether it may send to any domain; if not, only our own
    /// postmaster is a valid recipient.
    #[must_use]
    pub fn new(config: Arc<ServerConfig>, peer: IpAddr, may_relay: bool) -> Self {
        Self {
            config,
            peer,
            may_relay,
            next_id: None,
        }
    }

    /// Appends the greeting. Called once, first.
    pub fn greet(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(format!("220 {} ESMTP\r\n", self.config.hostname).as_bytes());
    }

    /// The id of the next message: the Received field names it, and the reply that accepts it. The
    /// driver sets one before input whenever [`Self::wants_id`].
    pub fn set_next_id(&mut self, id: MessageId) {
        self.next_id = Some(id);
    }

    /// Whether the id set last was used for a message, or none was set.
    #[must_use]
    pub fn wants_id(&self) -> bool {
        self.next_id.is_none()
    }

    /// Takes octets of the peer, appends replies to `out`, and stops at an event. Returns the octets
    /// consumed: all of them unless there is an event. While a message waits for its answer nothing
    /// is consumed. After `Close`, everything is consumed and `Close` repeated.
    pub fn input(
        &mut self,
        bytes: &[u8],
        _now: Wall,
        _out: &mut Vec<u8>,
    ) -> (usize, Option<ServerEvent>) {
        let _known = (self.peer, self.may_relay);
        (bytes.len(), None)
    }

    /// Appends 250 for the message in hand. Call it only with proof that the message is durable.
    /// Precondition: a `Message` event waits for its answer.
    pub fn accepted(&mut self, _id: MessageId, _out: &mut Vec<u8>) {}

    /// Appends the refusal of the message in hand; the session goes on.
    /// Precondition: a `Message` event waits for its answer.
    pub fn refused(&mut self, _refusal: Refusal, _out: &mut Vec<u8>) {}

    /// Appends 421 4.3.2: too much to do. The session is over; close after sending.
    pub fn overload(&mut self, _out: &mut Vec<u8>) {}

    /// Appends 421 4.4.2: the peer was silent for too long. The session is over.
    pub fn timeout(&mut self, _out: &mut Vec<u8>) {}

    /// Appends 421 4.3.2: this node stops. The session is over.
    pub fn shutting_down(&mut self, _out: &mut Vec<u8>) {}

    /// Whether no transaction is open and nothing is half read: a drain may end the session here.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        true
    }

    /// Octets of memory that this session holds beyond its own size: for the shard's budget.
    #[must_use]
    pub fn memory(&self) -> usize {
        0
    }
}
