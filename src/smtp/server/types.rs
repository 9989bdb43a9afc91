//! types - what a session is told and what it hands over: configuration, events, messages,
//! refusals.

use std::net::IpAddr;

use crate::message::{ArrivedBody, Content, Envelope, MessageId, Watch};
use crate::smtp::reply::Reply;
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

/// Gives a message that begins to arrive somebody who watches it, or nobody.
pub type Watchers<'a> = dyn Fn(&Envelope) -> Option<Box<dyn Watch>> + 'a;

/// What the driver must act on before it gives more input.
#[derive(Debug)]
pub enum ServerEvent {
    /// A whole message: answer with `Server::accepted` or `Server::refused`.
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
    /// Whether any octet of that is above 127.
    pub eight_bit: bool,
    /// What its watcher learnt of the body, if it had one.
    pub body: Option<ArrivedBody>,
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
