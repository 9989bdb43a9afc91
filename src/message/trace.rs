//! trace - the Received field that we put in front of a message (RFC 5321 4.4).

use std::net::IpAddr;

use super::address::Address;
use super::envelope::MessageId;
use crate::time::Wall;

/// How a message came: the `with` clause (RFC 3848 3, RFC 6531 4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Protocol {
    /// EHLO was said, not HELO.
    pub esmtp: bool,
    /// MAIL had SMTPUTF8.
    pub utf8: bool,
    /// The session was encrypted.
    pub tls: bool,
    /// The client authenticated itself.
    pub auth: bool,
}

/// What the Received field says.
#[derive(Debug, Clone, Copy)]
pub struct TraceInfo<'a> {
    /// What the peer said in EHLO or HELO: hostile bytes.
    pub helo: &'a [u8],
    /// Where the connection came from.
    pub peer: IpAddr,
    /// Our own name.
    pub hostname: &'a str,
    /// How it came.
    pub with: Protocol,
    /// The queue id.
    pub id: Option<MessageId>,
    /// The recipient, only where there is exactly one: two would tell each about the other.
    pub for_: Option<&'a Address>,
    /// When.
    pub at: Wall,
}

/// Appends the Received field with its CRLF.
pub fn received(_out: &mut Vec<u8>, _info: &TraceInfo<'_>) {}
