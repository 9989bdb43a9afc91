//! lab::parcel - what a message that arrived at the sink is: one of the generator's, or a
//! notification about one.
//!
//! What: the trace fields that the daemon puts on top (Received, DKIM-Signature) are set aside;
//! what follows must be the message as it was injected, which starts with `X-Load-Id`. A
//! notification (RFC 3464) names the recipients that failed, and carries the mark in the header it
//! returns.

use crate::lab::identity::{ID_FIELD, LoadId, recipient_index};

/// What arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parcel<'a> {
    /// A message of a generator's: its id, and all of it below the trace fields.
    Load(LoadId, &'a [u8]),
    /// A notification about one: the recipients that failed, and those that are late.
    Notice {
        /// The message it is about.
        id: LoadId,
        /// Numbers of the recipients that failed for good.
        failed: Vec<u16>,
        /// Numbers of the recipients that are late.
        delayed: Vec<u16>,
    },
    /// Somebody else's mail.
    Foreign,
}

/// Looks at what arrived with this content from this envelope sender.
#[must_use]
pub fn open<'a>(content: &'a [u8], sender: &[u8]) -> Parcel<'a> {
    let original = below_trace(content);
    if let Some(id) = original.strip_prefix(ID_FIELD).and_then(LoadId::parse) {
        return Parcel::Load(id, original);
    }
    if sender.is_empty()
        && let Some(notice) = notice(content)
    {
        return notice;
    }
    // Ours, but not with our mark on top: it is counted, and its fingerprint will tell.
    let header_end = memchr::memmem::find(content, b"\r\n\r\n").unwrap_or(content.len());
    match marked(&content[..header_end]) {
        Some(id) => Parcel::Load(id, original),
        None => Parcel::Foreign,
    }
}

/// The content from the first field that no relay adds.
fn below_trace(content: &[u8]) -> &[u8] {
    let mut rest = content;
    while is_field(rest, b"received:") || is_field(rest, b"dkim-signature:") {
        rest = &rest[field_len(rest)..];
    }
    rest
}

fn is_field(text: &[u8], name: &[u8]) -> bool {
    text.get(..name.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(name))
}

/// Bytes of the field at the start of `text`, folded lines included.
fn field_len(text: &[u8]) -> usize {
    let mut len = 0;
    loop {
        match memchr::memmem::find(&text[len..], b"\r\n") {
            None => return text.len(),
            Some(at) => len += at + 2,
        }
        if !matches!(text.get(len), Some(b' ' | b'\t')) {
            return len;
        }
    }
}

/// The id in a line that starts with our field.
fn marked(text: &[u8]) -> Option<LoadId> {
    memchr::memmem::find_iter(text, ID_FIELD).find_map(|at| {
        let at_line_start = at == 0 || text[..at].ends_with(b"\n");
        at_line_start
            .then(|| LoadId::parse(&text[at + ID_FIELD.len()..]))
            .flatten()
    })
}

fn notice(content: &[u8]) -> Option<Parcel<'static>> {
    memchr::memmem::find(content, b"message/delivery-status")?;
    let id = marked(content)?;
    let (mut failed, mut delayed) = (Vec::new(), Vec::new());
    let mut recipient = None;
    for line in content.split(|byte| *byte == b'\n') {
        let line = line.trim_ascii();
        if line.is_empty() {
            recipient = None;
        } else if is_field(line, b"final-recipient:") {
            recipient = address_of(&line[b"final-recipient:".len()..]);
        } else if is_field(line, b"action:") {
            let action = line[b"action:".len()..].trim_ascii();
            match recipient {
                Some(index) if action.eq_ignore_ascii_case(b"failed") => failed.push(index),
                Some(index) if action.eq_ignore_ascii_case(b"delayed") => delayed.push(index),
                Some(_) | None => {}
            }
        }
    }
    Some(Parcel::Notice {
        id,
        failed,
        delayed,
    })
}

/// The recipient's number in `rfc822; r3.17@d0.lab.test`.
fn address_of(value: &[u8]) -> Option<u16> {
    let at = memchr::memchr(b';', value)?;
    let address = value[at + 1..].trim_ascii();
    recipient_index(&address[..memchr::memchr(b'@', address)?])
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE: &str = "X-Load-Id: 00000a-000000000007\r\nSubject: a\r\n\r\nbody\r\n";

    // The trace fields above are set aside, folded ones too; anything else above is not.
    #[test]
    fn a_message_is_what_stands_below_its_trace() {
        let id = LoadId::new(10, 7);
        let expected = Parcel::Load(id, MESSAGE.as_bytes());
        for trace in [
            "",
            "Received: from a\r\n\tby b;\r\n date\r\n",
            "DKIM-Signature: v=1;\r\n b=x\r\nRECEIVED: a\r\nReceived: b\r\n",
        ] {
            let content = [trace, MESSAGE].concat();
            assert_eq!(open(content.as_bytes(), b"s@x"), expected, "{trace:?}");
        }
        let added = ["Received: a\r\nX-Other: b\r\n", MESSAGE].concat();
        let from = &added.as_bytes()["Received: a\r\n".len()..];
        assert_eq!(open(added.as_bytes(), b"s@x"), Parcel::Load(id, from));
        for foreign in [
            "",
            "Received: a",
            "Subject: x\r\n\r\nX-Load-Id: 00000a-000000000007\r\n",
        ] {
            assert_eq!(
                open(foreign.as_bytes(), b"s@x"),
                Parcel::Foreign,
                "{foreign:?}"
            );
        }
    }

    // A notification gives the recipients of each action; one that returns no mark is foreign.
    #[test]
    fn notifications_name_their_recipients() {
        let text = "Received: x\r\nFrom: MAILER-DAEMON\r\n\r\n--b\r\n\
            Content-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; mta1\r\n\r\n\
            Final-Recipient: rfc822; r2.7@d0.lab.test\r\nAction: failed\r\nStatus: 5.1.1\r\n\r\n\
            Final-Recipient: rfc822;r3.7@d1.lab.test\r\nAction: delayed\r\n\r\n\
            Final-Recipient: rfc822; other@d1.lab.test\r\nAction: failed\r\n\r\n\
            --b\r\nContent-Type: text/rfc822-headers\r\n\r\n";
        let whole = [text, MESSAGE].concat();
        let expected = Parcel::Notice {
            id: LoadId::new(10, 7),
            failed: vec![2],
            delayed: vec![3],
        };
        assert_eq!(open(whole.as_bytes(), b""), expected);
        assert_eq!(open(text.as_bytes(), b""), Parcel::Foreign);
        assert_eq!(open(whole.as_bytes(), b"s@x"), Parcel::Foreign);
    }
}
