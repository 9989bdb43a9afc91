//! cli::spool::words - waiting messages and damage, in words and in JSON.

use serde_json::{Value, json};

use crate::message::MessageId;
use crate::message::envelope::{BodyType, EnvelopeError, EnvelopeView, Notify, Ret};
use crate::message::trace::civil;
use crate::spool::Damage;
use crate::spool::format::Log;
use crate::spool::inspect::Seen;
use crate::time::Wall;

/// RFC 3339, in UTC, with milliseconds.
pub(super) fn time(at: Wall) -> String {
    let seconds = at.0 / 1000;
    let (year, month, day) = civil(seconds / 86_400);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        seconds / 3600 % 24,
        seconds / 60 % 60,
        seconds % 60,
        at.0 % 1000
    )
}

/// What a list says of a message, besides its envelope.
#[derive(Debug)]
pub(super) struct Row<'a> {
    pub(super) seen: &'a Seen<'a>,
    /// The envelope, or `None` when it cannot be read.
    pub(super) envelope: Option<EnvelopeView<'a>>,
    /// Most attempts of a recipient that waits.
    attempts: u16,
    /// When the first of them is due; `None`: at once.
    next: Option<Wall>,
}

impl<'a> Row<'a> {
    pub(super) fn new(seen: &'a Seen<'a>) -> Self {
        let envelope = seen
            .envelope
            .and_then(|bytes| EnvelopeView::new(bytes).ok());
        let pending = seen.pending.iter();
        let due = pending.clone().map(|recipient| recipient.next.0).min();
        Self {
            seen,
            envelope,
            attempts: pending
                .map(|recipient| recipient.attempts)
                .max()
                .unwrap_or(0),
            next: due.filter(|due| *due > 0).map(Wall),
        }
    }

    /// Why the message cannot be delivered as it was accepted; `None` when it can.
    pub(super) fn fault(&self) -> Option<&'static str> {
        if self.seen.envelope.is_none() {
            return Some("its record is damaged");
        }
        if self.seen.content.is_none() {
            return Some("its content does not match its checksum");
        }
        let readable = self.envelope.is_some_and(|envelope| {
            let mut pending = self.seen.pending.iter();
            pending.all(|recipient| envelope.recipient(recipient.index).is_ok())
                && envelope.sender().is_ok()
        });
        (!readable).then_some("its envelope cannot be read")
    }

    /// One line of `list`.
    pub(super) fn line(&self) -> String {
        let received = self.seen.received_at.map_or_else(|| "-".to_owned(), time);
        let sender = self.envelope.map_or("?", |envelope| envelope.sender_text());
        let sender = plain(sender);
        let next = self.next.map_or_else(|| "now".to_owned(), time);
        format!(
            "{} {received} {} <{sender}> {} {} {next}{}\n",
            self.seen.id,
            self.seen.location.len,
            self.seen.pending.len(),
            self.attempts,
            if self.fault().is_some() {
                " DAMAGED"
            } else {
                ""
            },
        )
    }

    /// The same for a program.
    pub(super) fn json(&self) -> Value {
        json!({
            "id": self.seen.id.to_string(),
            "shard": self.seen.id.shard(),
            "received_at": self.seen.received_at.map(time),
            "bytes": self.seen.location.len,
            "sender": self.envelope.map(|envelope| envelope.sender_text()),
            "recipients": self.envelope.map(|envelope| envelope.recipient_count()),
            "waiting": self.seen.pending.len(),
            "attempts": self.attempts,
            "next": self.next.map(time),
            "damage": self.fault(),
        })
    }

    /// All that is known: what it takes to submit the message elsewhere.
    pub(super) fn whole(&self) -> Value {
        let mut value = self.json();
        if let (Some(view), Some(fields)) = (self.envelope, value.as_object_mut()) {
            fields.extend(envelope(view));
        }
        value["pending"] = self.pending();
        value
    }

    fn pending(&self) -> Value {
        let pending = self.seen.pending.iter().map(|waiting| {
            let read = |view: EnvelopeView<'a>| view.recipient_ref(waiting.index);
            let recipient = self
                .envelope
                .ok_or(EnvelopeError::Length)
                .and_then(read)
                .ok();
            json!({
                "index": waiting.index,
                "address": recipient.map(|recipient| recipient.address),
                "notify": recipient.and_then(|recipient| notify(recipient.notify)),
                "orcpt": recipient.and_then(|recipient| recipient.orcpt),
                "attempts": waiting.attempts,
                "next": Some(waiting.next).filter(|next| next.0 > 0).map(time),
            })
        });
        Value::Array(pending.collect())
    }
}

fn envelope(view: EnvelopeView<'_>) -> impl Iterator<Item = (String, Value)> + use<> {
    let body = match view.body() {
        BodyType::SevenBit => "7BIT",
        BodyType::EightBitMime => "8BITMIME",
    };
    let ret = view.ret().map(|ret| match ret {
        Ret::Full => "FULL",
        Ret::Headers => "HDRS",
    });
    [
        ("body", json!(body)),
        ("smtputf8", json!(view.smtputf8())),
        ("ret", json!(ret)),
        ("envid", json!(view.envid())),
        ("pool", json!(view.pool())),
        ("source", json!(view.source())),
        ("campaign", json!(view.campaign())),
        ("tenant", json!(view.tenant())),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
}

/// The value of NOTIFY; `None` when it was not given.
fn notify(notify: Notify) -> Option<String> {
    if !notify.is_specified() {
        return None;
    }
    if notify.is_never() {
        return Some("NEVER".to_owned());
    }
    let words = [
        (notify.success(), "SUCCESS"),
        (notify.failure(), "FAILURE"),
        (notify.delay(), "DELAY"),
    ];
    let given = words.iter().filter(|(given, _)| *given);
    Some(given.map(|(_, word)| *word).collect::<Vec<_>>().join(","))
}

/// The message that a piece of damage is about, if one is known.
pub(super) fn damaged_id(damage: &Damage) -> Option<MessageId> {
    match damage {
        Damage::Lost(id) | Damage::Message(id, _) | Damage::Torn(id) => Some(*id),
        Damage::Header(..)
        | Damage::Length(..)
        | Damage::Group { .. }
        | Damage::Settlements { .. }
        | Damage::Unreadable(..) => None,
    }
}

/// What a piece of damage is, its message not named.
pub(super) fn damage(damage: &Damage) -> String {
    match damage {
        Damage::Header(log, number) => {
            format!("{}: no copy of its header is whole", log.file_name(*number))
        }
        Damage::Length(log, number) => {
            format!("{}: not as long as it was made", log.file_name(*number))
        }
        Damage::Lost(_) => "it was acknowledged and is not there any more".to_owned(),
        Damage::Message(_, location) => format!(
            "its bytes do not match their checksum ({} at {})",
            Log::Message.file_name(location.segment),
            location.offset
        ),
        Damage::Group { segment, sequence } => format!(
            "{}: group {sequence} of messages cannot be read",
            Log::Message.file_name(*segment)
        ),
        Damage::Settlements { segment, offset } => format!(
            "{}: settlements at {offset} cannot be read; some mail may be sent again",
            Log::State.file_name(*segment)
        ),
        Damage::Torn(_) => {
            "not whole, written just before the end, never acknowledged as far as is known"
                .to_owned()
        }
        Damage::Unreadable(log, number, offset) => {
            format!(
                "{}: the disk does not give {offset}",
                log.file_name(*number)
            )
        }
    }
}

/// A stranger's text for a terminal, which it cannot steer: control characters are escaped.
pub(in crate::cli) fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for char in text.chars() {
        if char.is_control() {
            out.extend(char.escape_unicode());
        } else {
            out.push(char);
        }
    }
    out
}

/// A header section for a terminal: the same, but for tabs and the ends of lines.
pub(super) fn plain_header(text: &str) -> String {
    let lines = text.split_terminator("\r\n");
    let words = |line: &str| line.split('\t').map(plain).collect::<Vec<_>>().join("\t");
    lines.map(|line| words(line) + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(time(Wall(0)), "1970-01-01T00:00:00.000Z");
        assert_eq!(time(Wall(1_795_299_543_021)), "2026-11-21T22:19:03.021Z");
        assert_eq!(time(Wall(1_709_251_199_999)), "2024-02-29T23:59:59.999Z");
    }

    #[test]
    fn notify_is_as_it_was_given() {
        let both = Notify::SUCCESS.with(Notify::DELAY);
        assert_eq!(notify(both).as_deref(), Some("SUCCESS,DELAY"));
        assert_eq!(notify(Notify::NEVER).as_deref(), Some("NEVER"));
        assert_eq!(notify(Notify::UNSPECIFIED), None);
    }

    #[test]
    fn a_header_cannot_steer_the_terminal() {
        let shown = plain_header("Subject: \x1b[2J\u{9b}\r\n\tsecond\rX\r\n");
        assert_eq!(shown, "Subject: \\u{1b}[2J\\u{9b}\n\tsecond\\u{d}X\n");
        assert_eq!(plain("a\nb\u{7f} \u{e9}"), "a\\u{a}b\\u{7f} \u{e9}");
    }
}
