//! status - enhanced mail system status codes (RFC 3463, registry of RFC 5248).
//!
//! What: the three numbers, their text form, names for the codes that we send ourselves, and one
//! sentence for people per code.
//! Example: `EnhancedStatus::parse(b"5.1.1 no such user")` is `Some(NO_SUCH_MAILBOX)`.

use std::fmt;

/// `class.subject.detail`; class is 2, 4 or 5, the others have at most three digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EnhancedStatus {
    /// 2 success, 4 persistent transient failure, 5 permanent failure (RFC 3463 2).
    pub class: u8,
    /// What the status is about: 1 addressing, 2 mailbox, 3 system, 4 network, 5 protocol,
    /// 6 content, 7 policy.
    pub subject: u16,
    /// The case within the subject.
    pub detail: u16,
}

impl EnhancedStatus {
    /// Success, nothing more to say.
    pub const OK: Self = Self::new(2, 0, 0);
    /// Sender address valid.
    pub const SENDER_OK: Self = Self::new(2, 1, 0);
    /// Destination address valid.
    pub const RECIPIENT_OK: Self = Self::new(2, 1, 5);
    /// Message accepted.
    pub const MESSAGE_OK: Self = Self::new(2, 6, 0);
    /// Success at the level of the protocol.
    pub const PROTOCOL_OK: Self = Self::new(2, 5, 0);

    /// Temporary, cause unknown.
    pub const TEMPORARY: Self = Self::new(4, 0, 0);
    /// Other or undefined mail system status, temporary: a local error.
    pub const SYSTEM_TEMPORARY: Self = Self::new(4, 3, 0);
    /// Mail system full: no space in the spool.
    pub const SYSTEM_FULL: Self = Self::new(4, 3, 1);
    /// System not accepting network messages: overload or shutdown.
    pub const SYSTEM_NOT_ACCEPTING: Self = Self::new(4, 3, 2);
    /// Other or undefined network status, temporary.
    pub const NETWORK_TEMPORARY: Self = Self::new(4, 4, 0);
    /// No answer from host: the connection could not be opened.
    pub const NO_ANSWER: Self = Self::new(4, 4, 1);
    /// Bad connection: it was lost, or the peer was silent for too long.
    pub const BAD_CONNECTION: Self = Self::new(4, 4, 2);
    /// Directory server failure: the DNS gave no usable answer.
    pub const DIRECTORY_FAILURE: Self = Self::new(4, 4, 3);
    /// Mail system congestion.
    pub const CONGESTION: Self = Self::new(4, 4, 5);
    /// Delivery time expired while the failures were temporary.
    pub const EXPIRED: Self = Self::new(4, 4, 7);
    /// Too many recipients for one transaction.
    pub const TOO_MANY_RECIPIENTS: Self = Self::new(4, 5, 3);
    /// Policy, temporary: greylisting and rate limits.
    pub const POLICY_TEMPORARY: Self = Self::new(4, 7, 0);

    /// Permanent, cause unknown.
    pub const PERMANENT: Self = Self::new(5, 0, 0);
    /// Other address status.
    pub const ADDRESS: Self = Self::new(5, 1, 0);
    /// Bad destination mailbox address: no such user.
    pub const NO_SUCH_MAILBOX: Self = Self::new(5, 1, 1);
    /// Bad destination system address: the domain does not exist.
    pub const NO_SUCH_DOMAIN: Self = Self::new(5, 1, 2);
    /// Bad destination mailbox address syntax.
    pub const RECIPIENT_SYNTAX: Self = Self::new(5, 1, 3);
    /// Bad sender's mailbox address syntax.
    pub const SENDER_SYNTAX: Self = Self::new(5, 1, 7);
    /// Bad sender's system address.
    pub const SENDER_DOMAIN: Self = Self::new(5, 1, 8);
    /// Recipient address has null MX (RFC 7505 4.1).
    pub const RECIPIENT_NULL_MX: Self = Self::new(5, 1, 10);
    /// Mailbox disabled.
    pub const MAILBOX_DISABLED: Self = Self::new(5, 2, 1);
    /// Mailbox full.
    pub const MAILBOX_FULL: Self = Self::new(5, 2, 2);
    /// Message longer than the mailbox's administrator allows.
    pub const MAILBOX_LENGTH: Self = Self::new(5, 2, 3);
    /// System not capable of a selected feature.
    pub const NOT_CAPABLE: Self = Self::new(5, 3, 3);
    /// Message too big for the system.
    pub const MESSAGE_TOO_BIG: Self = Self::new(5, 3, 4);
    /// Unable to route.
    pub const UNROUTABLE: Self = Self::new(5, 4, 4);
    /// Routing loop detected.
    pub const ROUTING_LOOP: Self = Self::new(5, 4, 6);
    /// Delivery time expired, as the final status of a message given up.
    pub const EXPIRED_FINAL: Self = Self::new(5, 4, 7);
    /// Other or undefined protocol status.
    pub const PROTOCOL: Self = Self::new(5, 5, 0);
    /// Invalid command: unknown or out of sequence.
    pub const INVALID_COMMAND: Self = Self::new(5, 5, 1);
    /// Syntax error: the command is too long or cannot be read.
    pub const SYNTAX_ERROR: Self = Self::new(5, 5, 2);
    /// Too many recipients, for good.
    pub const TOO_MANY_RECIPIENTS_FINAL: Self = Self::new(5, 5, 3);
    /// Invalid command arguments.
    pub const INVALID_ARGUMENTS: Self = Self::new(5, 5, 4);
    /// Other or undefined media error: the content breaks a rule of the message format.
    pub const MEDIA: Self = Self::new(5, 6, 0);
    /// Conversion required but not supported: 8-bit content for a 7-bit receiver.
    pub const CONVERSION_NOT_SUPPORTED: Self = Self::new(5, 6, 3);
    /// Non-ASCII addresses not permitted for that sender or recipient (RFC 6531 3.5).
    pub const NON_ASCII_ADDRESS: Self = Self::new(5, 6, 7);
    /// UTF-8 header message cannot be transferred (RFC 6531 3.5).
    pub const UTF8_HEADER: Self = Self::new(5, 6, 9);
    /// Other or undefined security status.
    pub const SECURITY: Self = Self::new(5, 7, 0);
    /// Delivery not authorized, message refused.
    pub const NOT_AUTHORIZED: Self = Self::new(5, 7, 1);
    /// Security features not supported.
    pub const SECURITY_NOT_SUPPORTED: Self = Self::new(5, 7, 4);
    /// Sender address has null MX (RFC 7505 4.2).
    pub const SENDER_NULL_MX: Self = Self::new(5, 7, 27);
    /// REQUIRETLS support required (RFC 8689 5).
    pub const REQUIRETLS: Self = Self::new(5, 7, 30);

    /// A code from its three numbers. Precondition: class is 2, 4 or 5, the others are below 1000.
    #[must_use]
    pub const fn new(class: u8, subject: u16, detail: u16) -> Self {
        assert!(class == 2 || class == 4 || class == 5);
        assert!(subject < 1000);
        assert!(detail < 1000);
        Self {
            class,
            subject,
            detail,
        }
    }

    /// The code at the start of `text`, which ends there or goes on after a space (RFC 2034 4);
    /// `None` where there is none. Leading zeros are refused (RFC 3463 2).
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let (class, rest) = text.split_first()?;
        if !matches!(class, b'2' | b'4' | b'5') {
            return None;
        }
        let (subject, rest) = number(rest.strip_prefix(b".")?)?;
        let (detail, rest) = number(rest.strip_prefix(b".")?)?;
        if !matches!(rest.first(), None | Some(b' ' | b'\t' | b'\r' | b'\n')) {
            return None;
        }
        Some(Self {
            class: class - b'0',
            subject,
            detail,
        })
    }

    /// Octets of the text form, for cutting a parsed code off a reply text.
    #[must_use]
    pub fn text_len(self) -> usize {
        let digits = |number: u16| 1 + usize::from(number >= 10) + usize::from(number >= 100);
        3 + digits(self.subject) + digits(self.detail)
    }

    /// Whether trying the same again cannot help.
    #[must_use]
    pub fn is_permanent(self) -> bool {
        self.class == 5
    }

    /// The same subject and detail as a permanent failure: what a DSN reports for a message given
    /// up.
    #[must_use]
    pub fn permanent(self) -> Self {
        Self { class: 5, ..self }
    }

    /// One clause for a person who does not know the codes; it fits after "What happened:".
    #[must_use]
    pub fn meaning(self) -> &'static str {
        match (self.subject, self.detail) {
            (1, 1) => "there is no mailbox with this name",
            (1, 2) => "the domain after the @ does not exist",
            (1, 3) => "the address is not written correctly",
            (1, 6) => "the mailbox has moved and left no new address",
            (1, 10) => "the domain says that it receives no mail at all",
            (1, _) => "something is wrong with the address",
            (2, 1) => "the mailbox is closed or not in use",
            (2, 2) => "the mailbox is full",
            (2, 3) | (3, 4) => "the message is too big for the receiver",
            (2, _) => "something is wrong with the receiver's mailbox",
            (3, 1) => "the receiving mail system has no space left",
            (3, _) => "something is wrong with the receiving mail system",
            (4, 1) => "the receiving mail server did not answer",
            (4, 2) => "the connection to the receiving mail server broke",
            (4, 3) => "the domain name system gave no usable answer for the domain",
            (4, 4) => "no mail server could be found for the domain",
            (4, 6) => "the message went round in a circle between mail servers",
            (4, 7) => "the message could not be delivered in the time it was given",
            (4, _) => "the network or the receiving mail server failed",
            (5, 3) => "the receiving mail server does not take so many recipients at once",
            (5, _) => "the receiving mail server and this one did not understand each other",
            (6, 7 | 9) => "the receiving mail server does not support international addresses",
            (6, _) => "the receiving mail server does not take this kind of content",
            (7, 30) => "the message must travel encrypted, and that was not possible",
            (7, _) => "the receiving mail server refused the message because of its rules",
            _ => "the receiving mail server gave no exact reason",
        }
    }
}

impl fmt::Display for EnhancedStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.class, self.subject, self.detail)
    }
}

/// One to three digits without a leading zero, and what follows them.
fn number(text: &[u8]) -> Option<(u16, &[u8])> {
    let len = text
        .iter()
        .take(4)
        .take_while(|byte| byte.is_ascii_digit())
        .count();
    if len == 0 || len > 3 || (len > 1 && text[0] == b'0') {
        return None;
    }
    let value = text[..len]
        .iter()
        .fold(0, |sum, byte| sum * 10 + u16::from(byte - b'0'));
    Some((value, &text[len..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    // Text to code and back, for the valid forms, with the length that a caller cuts off.
    #[test]
    fn parses_and_prints() {
        let table: [(&[u8], EnhancedStatus); 4] = [
            (b"5.1.1 no such user", EnhancedStatus::NO_SUCH_MAILBOX),
            (b"5.1.10", EnhancedStatus::RECIPIENT_NULL_MX),
            (b"2.0.0\tok", EnhancedStatus::OK),
            (b"4.999.100\r\n", EnhancedStatus::new(4, 999, 100)),
        ];
        for (text, status) in table {
            assert_eq!(EnhancedStatus::parse(text), Some(status));
            assert!(text.starts_with(status.to_string().as_bytes()));
            assert_eq!(status.to_string().len(), status.text_len());
        }
    }

    // What only looks like a code is left in the text of the reply.
    #[test]
    fn refuses_other_text() {
        for text in [
            "", "5", "5.1", "5.1.", "5..1", "3.1.1", "55.1.1", "5.01.1", "5.1.1000", "5.1.1x",
            "5.1.1.1", " 5.1.1", "-5.1.1",
        ] {
            assert_eq!(EnhancedStatus::parse(text.as_bytes()), None, "{text}");
        }
        assert!(EnhancedStatus::EXPIRED.permanent() == EnhancedStatus::EXPIRED_FINAL);
    }
}
