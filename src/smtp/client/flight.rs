//! flight - one transaction on its way: the commands it sends and what became of each recipient.

use super::super::extension::{Capabilities, xtext_encode};
use super::super::reply::{ReplyRef, ReplyText};
use super::{Cause, ClientEvent, Outcome, Transaction};
use crate::message::{EnhancedStatus, Notify, Ret};

/// The steps of a transaction in the order of their replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    Reset,
    Mail,
    Rcpt(usize),
    /// DATA; BDAT has no such step.
    Go,
    /// The end of the content.
    End,
}

/// What is known about one recipient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Slot {
    /// RCPT is not answered.
    Pending,
    /// RCPT was accepted.
    Accepted,
    Over(Outcome),
}

/// One transaction on its way.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) transaction: Transaction,
    slots: Vec<Slot>,
    /// Octets of the content.
    pub(super) size: u64,
    /// BDAT, not DATA.
    pub(super) chunking: bool,
    /// The step whose reply is next.
    pub(super) awaiting: Step,
    /// The last step whose command is queued.
    pub(super) queued: Step,
    /// Its first command was given to the driver.
    pub(super) started: bool,
    /// Octets of the connection up to the end of the content, once all of it was given.
    pub(super) end: Option<u64>,
    /// Recipients accepted.
    pub(super) accepted: usize,
    pub(super) mail_refused: bool,
    /// What the refusal of MAIL means for every recipient.
    refusal: Option<Outcome>,
    /// MAIL was refused and yet a RCPT accepted.
    pub(super) contradicted: bool,
}

impl Flight {
    pub(super) fn new(
        transaction: Transaction,
        slots: Vec<Slot>,
        chunking: bool,
        reset: bool,
    ) -> Self {
        let size = transaction
            .content
            .iter()
            .map(|piece| piece.len() as u64)
            .sum();
        let first = if reset { Step::Reset } else { Step::Mail };
        Self {
            transaction,
            slots,
            size,
            chunking,
            awaiting: first,
            queued: first,
            started: false,
            end: None,
            accepted: 0,
            mail_refused: false,
            refusal: None,
            contradicted: false,
        }
    }

    /// Whether all of it is queued, so that the next transaction may follow.
    pub(super) fn is_queued(&self) -> bool {
        self.queued == Step::End
    }

    /// About how many octets the commands have.
    pub(super) fn command_octets(&self) -> usize {
        let paths: usize = self
            .transaction
            .recipients
            .iter()
            .map(|path| path.len() + 14)
            .sum();
        let dsn = self.transaction.dsn.as_ref().map_or(0, |_| 256);
        paths + dsn + self.transaction.sender.len() + 96
    }

    /// The step after `step`.
    pub(super) fn after(&self, step: Step) -> Step {
        let from = match step {
            Step::Reset => return Step::Mail,
            Step::Mail => 0,
            Step::Rcpt(index) => index + 1,
            Step::Go | Step::End => return Step::End,
        };
        // Recipients that were settled here, and not by a refused MAIL, have no RCPT on the wire.
        let next = self.slots[from..].iter().position(|slot| match slot {
            Slot::Pending => true,
            Slot::Accepted | Slot::Over(_) => false,
        });
        match next {
            Some(offset) => Step::Rcpt(from + offset),
            None if self.chunking => Step::End,
            None => Step::Go,
        }
    }

    /// Appends the command of a step.
    pub(super) fn write(&self, step: Step, capabilities: &Capabilities, line: &mut Vec<u8>) {
        match step {
            Step::Reset => line.extend_from_slice(b"RSET\r\n"),
            Step::Mail => self.write_mail(capabilities, line),
            Step::Rcpt(index) => self.write_rcpt(index, capabilities, line),
            Step::Go => line.extend_from_slice(b"DATA\r\n"),
            Step::End => {
                line.extend_from_slice(b"BDAT ");
                decimal(self.size, line);
                line.extend_from_slice(b" LAST\r\n");
            }
        }
    }

    fn write_mail(&self, capabilities: &Capabilities, line: &mut Vec<u8>) {
        let transaction = &self.transaction;
        line.extend_from_slice(b"MAIL FROM:<");
        line.extend_from_slice(&transaction.sender);
        line.push(b'>');
        if capabilities.size_offered {
            line.extend_from_slice(b" SIZE=");
            decimal(self.size, line);
        }
        if transaction.eight_bit {
            line.extend_from_slice(b" BODY=8BITMIME");
        }
        if transaction.smtputf8 || !transaction.sender.is_ascii() {
            line.extend_from_slice(b" SMTPUTF8");
        }
        // RFC 3461 5.2.1: only a hop that offers DSN gets the parameters.
        if let Some(dsn) = transaction.dsn.as_ref().filter(|_| capabilities.dsn) {
            match dsn.ret {
                Some(Ret::Full) => line.extend_from_slice(b" RET=FULL"),
                Some(Ret::Headers) => line.extend_from_slice(b" RET=HDRS"),
                None => {}
            }
            if let Some(envid) = &dsn.envid {
                line.extend_from_slice(b" ENVID=");
                xtext_encode(envid, line);
            }
        }
        line.extend_from_slice(b"\r\n");
    }

    fn write_rcpt(&self, index: usize, capabilities: &Capabilities, line: &mut Vec<u8>) {
        line.extend_from_slice(b"RCPT TO:<");
        line.extend_from_slice(&self.transaction.recipients[index]);
        line.push(b'>');
        let dsn = self.transaction.dsn.as_ref().filter(|_| capabilities.dsn);
        if let Some(dsn) = dsn.and_then(|dsn| dsn.recipients.get(index)) {
            write_notify(dsn.notify, line);
            if let Some(orcpt) = &dsn.orcpt
                && let Some(at) = memchr::memchr(b';', orcpt)
                && is_clean(&orcpt[..at])
            {
                line.extend_from_slice(b" ORCPT=");
                line.extend_from_slice(&orcpt[..=at]);
                xtext_encode(&orcpt[at + 1..], line);
            }
        }
        line.extend_from_slice(b"\r\n");
    }

    /// The reply to MAIL; false where it makes no sense.
    pub(super) fn mail_reply(&mut self, reply: ReplyRef<'_>) -> bool {
        if reply.class() == 2 {
            return true;
        }
        if reply.class() == 3 {
            return false;
        }
        self.mail_refused = true;
        // The slots stay pending: the replies to RCPT are still to come, and are passed over.
        self.refusal = Some(outcome(reply, Cause::ThisMessage));
        true
    }

    /// The reply to one RCPT; false where it makes no sense.
    pub(super) fn rcpt_reply(&mut self, index: usize, reply: ReplyRef<'_>) -> bool {
        if reply.class() == 3 {
            return false;
        }
        if self.mail_refused {
            self.contradicted |= reply.class() == 2;
            return true;
        }
        self.slots[index] = match reply.code {
            200..300 => {
                self.accepted += 1;
                Slot::Accepted
            }
            // RFC 5321 4.5.3.1.10: 552 is an old way to say 452, too many recipients.
            452 | 552 if self.accepted > 0 => {
                let text = reply.to_text();
                let status = EnhancedStatus::TOO_MANY_RECIPIENTS;
                Slot::Over(Outcome::Deferred {
                    status,
                    text,
                    cause: Cause::NextBatch,
                })
            }
            _ => Slot::Over(outcome(reply, Cause::ThisRecipient)),
        };
        true
    }

    /// The reply to DATA or to the end of the content, for the recipients that were accepted.
    pub(super) fn settle_accepted(&mut self, reply: ReplyRef<'_>) {
        if self.accepted == 0 {
            return;
        }
        let settled = outcome(reply, Cause::ThisMessage);
        for slot in self
            .slots
            .iter_mut()
            .filter(|slot| **slot == Slot::Accepted)
        {
            *slot = Slot::Over(settled.clone());
        }
    }

    /// Settles every recipient that is not settled.
    pub(super) fn settle_open(&mut self, settled: &Outcome) {
        let settled = self.refusal.as_ref().unwrap_or(settled);
        for slot in &mut self.slots {
            if !matches!(slot, Slot::Over(_)) {
                *slot = Slot::Over(settled.clone());
            }
        }
    }

    /// Nothing is certain about the recipients that were sent.
    pub(super) fn doubt(&mut self, why: &str) {
        self.refusal = None;
        let (status, text) = (EnhancedStatus::BAD_CONNECTION, ReplyText::local(why));
        self.settle_open(&Outcome::Ambiguous { status, text });
    }

    /// The event that ends it.
    pub(super) fn done(mut self) -> ClientEvent {
        if let Some(refusal) = self.refusal.take() {
            self.settle_open(&refusal);
        }
        done(self.transaction.token, self.slots)
    }
}

/// The event that ends a transaction whose recipients are all settled.
pub(super) fn done(token: u64, slots: Vec<Slot>) -> ClientEvent {
    let outcomes = slots.into_iter().map(|slot| match slot {
        Slot::Over(outcome) => outcome,
        Slot::Pending | Slot::Accepted => {
            unreachable!("a flight ends when every recipient is settled")
        }
    });
    ClientEvent::Done {
        token,
        outcomes: outcomes.collect(),
    }
}

/// The outcome that a reply means: delivered, deferred or failed by its class.
fn outcome(reply: ReplyRef<'_>, cause: Cause) -> Outcome {
    let (status, text) = (reply.status(), reply.to_text());
    match reply.class() {
        2 => Outcome::Delivered { reply: text },
        4 => Outcome::Deferred {
            status,
            text,
            cause,
        },
        _ => Outcome::Failed { status, text },
    }
}

/// A recipient that must go into another transaction.
pub(super) fn next_batch(why: &str) -> Outcome {
    Outcome::Deferred {
        status: EnhancedStatus::TOO_MANY_RECIPIENTS,
        text: ReplyText::local(why),
        cause: Cause::NextBatch,
    }
}

/// Whether a text can stand in a command line: no octet of it ends or breaks the line.
pub(super) fn is_clean(text: &[u8]) -> bool {
    text.iter().all(|octet| *octet >= 0x20 && *octet != 0x7f)
}

/// NOTIFY, where it was specified (RFC 3461 4.1).
fn write_notify(notify: Notify, line: &mut Vec<u8>) {
    if !notify.is_specified() {
        return;
    }
    line.extend_from_slice(b" NOTIFY=");
    if notify.is_never() {
        line.extend_from_slice(b"NEVER");
        return;
    }
    let words = [
        (notify.success(), &b"SUCCESS"[..]),
        (notify.failure(), b"FAILURE"),
        (notify.delay(), b"DELAY"),
    ];
    let mut first = true;
    for (_, word) in words.iter().filter(|(wanted, _)| *wanted) {
        if !first {
            line.push(b',');
        }
        first = false;
        line.extend_from_slice(word);
    }
}

/// Appends a number in decimal digits.
fn decimal(mut number: u64, line: &mut Vec<u8>) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        // A remainder by ten fits an octet.
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    line.extend_from_slice(&digits[at..]);
}
