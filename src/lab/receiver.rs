//! lab::receiver - the receiving end of one session, as one site's personality plays it. Sans-IO.
//!
//! What: bytes and the time in; replies and whole messages out. Written for speed, not for beauty
//! of errors: the sink shares its cores with the daemon it judges.
//! Why this way: a second, independent reading of the protocol. Were the sink built on
//! `smtp::Server`, a misreading there would agree with itself; the daemon's client meets another
//! implementation here.
//! Standards: RFC 5321, 2920, 3030, 1870, 6152, 6531.

use std::cell::Cell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use crate::lab::personality::{Attempt, Personality, Phase, Verdict, text_hash};
use crate::limits::{LAB_GREYLIST_MAX, LAB_LINE_MAX, LAB_RECIPIENTS_MAX};
use crate::time::Mono;

/// When each (sender, recipient) was first seen at a site; shared by the sink's threads.
pub type Greylist = Arc<Mutex<HashMap<u64, Mono>>>;

/// One site, as one thread sees it.
#[derive(Debug)]
pub struct Site {
    /// Its number.
    pub index: u32,
    /// Its name, `mx.d3.lab.test`.
    pub name: String,
    /// How it behaves.
    pub personality: Personality,
    /// Decides its refusals.
    pub seed: u64,
    /// The largest message it takes, in bytes.
    pub size_max: u64,
    /// What greylisting remembers.
    pub greylist: Greylist,
    /// Connections open now.
    pub open: Cell<u32>,
    ordinal: Cell<u64>,
}

impl Site {
    /// A site that nobody has talked to yet.
    #[must_use]
    pub fn new(index: u32, name: String, personality: Personality, seed: u64, max: u64) -> Self {
        Self {
            index,
            name,
            personality,
            seed,
            size_max: max,
            greylist: Greylist::default(),
            open: Cell::new(0),
            ordinal: Cell::new(0),
        }
    }

    /// How many decisions this site has made before this one.
    fn next_ordinal(&self) -> u64 {
        let ordinal = self.ordinal.get();
        self.ordinal.set(ordinal + 1);
        ordinal
    }

    fn closes(&self, phase: Phase) -> bool {
        match self.personality.close {
            Some((at, _)) if at == phase => {
                self.personality
                    .closes(phase, self.seed, self.next_ordinal())
            }
            Some(_) | None => false,
        }
    }

    /// When this pair was first seen: now, where it is new or no more pairs can be remembered
    /// (then it is not held up).
    fn first_seen(&self, pair: u64, now: Mono) -> Mono {
        // A poisoned lock means that another thread of the sink panicked; the table is still whole.
        let mut seen = self
            .greylist
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        if seen.len() >= LAB_GREYLIST_MAX && !seen.contains_key(&pair) {
            return Mono(0);
        }
        *seen.entry(pair).or_insert(now)
    }
}

/// What the driver must do before giving more input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReceiverEvent {
    /// A whole message is there: take it from [`Receiver::message`], then call
    /// [`Receiver::accepted`].
    Message,
    /// As [`ReceiverEvent::Message`], but the site hangs up without a reply.
    MessageThenClose,
    /// Send what is in `out`, then close.
    Close,
    /// Close at once; what is in `out` is never sent.
    HangUp,
}

/// What arrived in one transaction.
#[derive(Debug, Clone, Copy)]
pub struct Received<'a> {
    /// The whole content, dots un-doubled.
    pub content: &'a [u8],
    /// The sender, empty for the null one.
    pub sender: &'a [u8],
    /// The recipients that were accepted.
    pub recipients: &'a [Vec<u8>],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Command,
    /// After 354: content ends with a lone dot.
    Data,
    /// This many bytes of a chunk are to come.
    Chunk {
        left: u64,
        last: bool,
    },
    /// This many bytes of a refused chunk are to come.
    Skip {
        left: u64,
    },
}

/// The receiving end of one session.
#[derive(Debug)]
pub struct Receiver {
    state: State,
    line: Vec<u8>,
    extended: bool,
    sender: Option<Vec<u8>>,
    recipients: Vec<Vec<u8>>,
    /// Content so far; in DATA it starts with a CRLF that stands for the line before it.
    content: Vec<u8>,
    chunked: bool,
    messages: u32,
    violations: u64,
    refusals: u64,
}

impl Default for Receiver {
    fn default() -> Self {
        Self::new()
    }
}

impl Receiver {
    /// A session before its greeting.
    #[must_use]
    pub fn new() -> Self {
        Self {
            state: State::Command,
            line: Vec::new(),
            extended: false,
            sender: None,
            recipients: Vec::new(),
            content: Vec::new(),
            chunked: false,
            messages: 0,
            violations: 0,
            refusals: 0,
        }
    }

    /// Greets, or refuses the connection. `site.open` counts this connection already.
    pub fn greet(&mut self, site: &Site, out: &mut Vec<u8>) -> Option<ReceiverEvent> {
        if site.closes(Phase::Connect) {
            return Some(ReceiverEvent::HangUp);
        }
        if site
            .personality
            .connections_max
            .is_some_and(|max| site.open.get() > max)
        {
            self.refusals += 1;
            out.extend_from_slice(b"421 4.7.0 too many connections\r\n");
            return Some(ReceiverEvent::Close);
        }
        push(out, &["220 ", &site.name, " ESMTP sink"]);
        None
    }

    /// Takes bytes; returns how many, and what must be done before the rest.
    pub fn input(
        &mut self,
        bytes: &[u8],
        site: &Site,
        peer: IpAddr,
        now: Mono,
        out: &mut Vec<u8>,
    ) -> (usize, Option<ReceiverEvent>) {
        let mut at = 0;
        while at < bytes.len() {
            let (taken, event) = match self.state {
                State::Command => self.command_bytes(&bytes[at..], site, peer, now, out),
                State::Data => self.data_bytes(&bytes[at..], site, out),
                State::Chunk { left, last } => {
                    self.chunk_bytes(&bytes[at..], left, last, site, out)
                }
                State::Skip { left } => {
                    let taken = usize::try_from(left)
                        .map_or(bytes.len() - at, |left| left.min(bytes.len() - at));
                    self.state = match left - taken as u64 {
                        0 => State::Command,
                        left => State::Skip { left },
                    };
                    (taken, None)
                }
            };
            at += taken;
            if event.is_some() {
                return (at, event);
            }
        }
        (at, None)
    }

    /// The message that [`ReceiverEvent::Message`] announced.
    #[must_use]
    pub fn message(&self) -> Received<'_> {
        let start = if self.chunked {
            0
        } else {
            2.min(self.content.len())
        };
        Received {
            content: &self.content[start..],
            sender: self.sender.as_deref().unwrap_or_default(),
            recipients: &self.recipients,
        }
    }

    /// Replies 250 to the message.
    pub fn accepted(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"250 2.0.0 taken\r\n");
        self.messages += 1;
        self.reset();
    }

    /// Times that the sender used what was not offered, since the last call.
    pub fn take_violations(&mut self) -> u64 {
        std::mem::take(&mut self.violations)
    }

    /// Refusals by the personality, since the last call.
    pub fn take_refusals(&mut self) -> u64 {
        std::mem::take(&mut self.refusals)
    }

    fn reset(&mut self) {
        self.state = State::Command;
        self.sender = None;
        self.recipients.clear();
        self.content.clear();
        self.chunked = false;
    }

    fn command_bytes(
        &mut self,
        bytes: &[u8],
        site: &Site,
        peer: IpAddr,
        now: Mono,
        out: &mut Vec<u8>,
    ) -> (usize, Option<ReceiverEvent>) {
        let Some(end) = memchr::memchr(b'\n', bytes) else {
            self.line.extend_from_slice(bytes);
            if self.line.len() > LAB_LINE_MAX {
                out.extend_from_slice(b"500 5.5.6 line too long\r\n");
                return (bytes.len(), Some(ReceiverEvent::Close));
            }
            return (bytes.len(), None);
        };
        let taken = end + 1;
        let event = if self.line.is_empty() {
            self.command(&bytes[..end], site, peer, now, out)
        } else {
            let mut line = std::mem::take(&mut self.line);
            line.extend_from_slice(&bytes[..end]);
            self.command(&line, site, peer, now, out)
        };
        // More input while a reply is due, where PIPELINING was not offered. The content of a chunk
        // belongs to its command.
        let in_content = !matches!(self.state, State::Command);
        if taken < bytes.len() && !site.personality.pipelining && !in_content {
            self.violations += 1;
        }
        (taken, event)
    }

    fn command(
        &mut self,
        line: &[u8],
        site: &Site,
        peer: IpAddr,
        now: Mono,
        out: &mut Vec<u8>,
    ) -> Option<ReceiverEvent> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let mut verb = [0; 4];
        let (head, rest) = line.split_at(line.len().min(4));
        for (place, byte) in verb.iter_mut().zip(head) {
            *place = byte.to_ascii_uppercase();
        }
        match &verb {
            b"MAIL" => return self.mail(rest, site, out),
            b"RCPT" => return self.rcpt(rest, site, now, out),
            b"DATA" => return self.data(site, out),
            b"BDAT" => return self.bdat(rest, site, out),
            b"EHLO" | b"HELO" => return self.hello(&verb == b"EHLO", site, peer, out),
            b"RSET" => {
                self.reset();
                out.extend_from_slice(b"250 2.0.0 reset\r\n");
            }
            b"NOOP" => out.extend_from_slice(b"250 2.0.0 fine\r\n"),
            b"QUIT" => {
                out.extend_from_slice(b"221 2.0.0 bye\r\n");
                return Some(ReceiverEvent::Close);
            }
            _ => out.extend_from_slice(b"500 5.5.2 unknown command\r\n"),
        }
        None
    }

    fn hello(
        &mut self,
        extended: bool,
        site: &Site,
        peer: IpAddr,
        out: &mut Vec<u8>,
    ) -> Option<ReceiverEvent> {
        if site.closes(Phase::Ehlo) {
            return Some(ReceiverEvent::HangUp);
        }
        self.reset();
        self.extended = extended;
        if !extended {
            push(out, &["250 ", &site.name]);
            return None;
        }
        push(out, &["250-", &site.name, " greets ", &peer.to_string()]);
        if site.personality.pipelining {
            push(out, &["250-PIPELINING"]);
        }
        if site.personality.chunking {
            push(out, &["250-CHUNKING"]);
        }
        push(out, &["250-SIZE ", &site.size_max.to_string()]);
        if site.personality.eight_bit_mime {
            push(out, &["250-8BITMIME\r\n250-SMTPUTF8"]);
        }
        push(out, &["250 ENHANCEDSTATUSCODES"]);
        None
    }

    fn mail(&mut self, rest: &[u8], site: &Site, out: &mut Vec<u8>) -> Option<ReceiverEvent> {
        if site.closes(Phase::Mail) {
            return Some(ReceiverEvent::HangUp);
        }
        if site
            .personality
            .messages_max
            .is_some_and(|max| self.messages >= max)
        {
            self.refusals += 1;
            out.extend_from_slice(b"421 4.7.0 enough on this connection\r\n");
            return Some(ReceiverEvent::Close);
        }
        let Some((sender, parameters)) = path(rest) else {
            out.extend_from_slice(b"501 5.5.4 MAIL FROM:<address>\r\n");
            return None;
        };
        if self.sender.is_some() {
            out.extend_from_slice(b"503 5.5.1 one MAIL at a time\r\n");
            return None;
        }
        if declared_size(parameters).is_some_and(|size| size > site.size_max) {
            out.extend_from_slice(b"552 5.3.4 too large\r\n");
            return None;
        }
        self.sender = Some(sender.to_vec());
        out.extend_from_slice(b"250 2.1.0 ok\r\n");
        None
    }

    fn rcpt(
        &mut self,
        rest: &[u8],
        site: &Site,
        now: Mono,
        out: &mut Vec<u8>,
    ) -> Option<ReceiverEvent> {
        if site.closes(Phase::Rcpt) {
            return Some(ReceiverEvent::HangUp);
        }
        let Some(sender) = &self.sender else {
            out.extend_from_slice(b"503 5.5.1 MAIL first\r\n");
            return None;
        };
        let Some((recipient, _)) = path(rest).filter(|(recipient, _)| !recipient.is_empty()) else {
            out.extend_from_slice(b"501 5.5.4 RCPT TO:<address>\r\n");
            return None;
        };
        if self.recipients.len() >= LAB_RECIPIENTS_MAX {
            out.extend_from_slice(b"452 4.5.3 too many recipients\r\n");
            return None;
        }
        let verdict = verdict(site, sender, recipient, now);
        self.refusals += u64::from(verdict != Verdict::Accept);
        out.extend_from_slice(match verdict {
            Verdict::Accept => {
                self.recipients.push(recipient.to_vec());
                b"250 2.1.5 ok\r\n".as_slice()
            }
            Verdict::Greylisted => b"451 4.7.1 greylisted, come back later\r\n",
            Verdict::TempFail => b"451 4.3.0 not now\r\n",
            Verdict::Reject => b"550 5.1.1 no such user\r\n",
        });
        None
    }

    fn data(&mut self, site: &Site, out: &mut Vec<u8>) -> Option<ReceiverEvent> {
        if site.closes(Phase::Data) {
            return Some(ReceiverEvent::HangUp);
        }
        if self.recipients.is_empty() || self.chunked {
            out.extend_from_slice(b"503 5.5.1 no valid recipients\r\n");
            return None;
        }
        self.content.clear();
        self.content.extend_from_slice(b"\r\n");
        self.state = State::Data;
        out.extend_from_slice(b"354 go ahead\r\n");
        None
    }

    fn bdat(&mut self, rest: &[u8], site: &Site, out: &mut Vec<u8>) -> Option<ReceiverEvent> {
        let mut words = rest
            .split(|byte| *byte == b' ')
            .filter(|word| !word.is_empty());
        let size = words
            .next()
            .and_then(|word| str::from_utf8(word).ok()?.parse::<u64>().ok());
        let Some(size) = size else {
            // Without a length nothing that follows can be understood (RFC 3030 2).
            out.extend_from_slice(b"501 5.5.4 BDAT length\r\n");
            return Some(ReceiverEvent::Close);
        };
        let last = words
            .next()
            .is_some_and(|word| word.eq_ignore_ascii_case(b"LAST"));
        if !self.chunked && site.closes(Phase::Data) {
            return Some(ReceiverEvent::HangUp);
        }
        let refusal = if !site.personality.chunking {
            self.violations += 1;
            Some(b"502 5.5.1 CHUNKING was not offered\r\n".as_slice())
        } else if self.recipients.is_empty() {
            Some(b"503 5.5.1 no valid recipients\r\n".as_slice())
        } else if self.content.len() as u64 + size > site.size_max {
            Some(b"552 5.3.4 too large\r\n".as_slice())
        } else {
            None
        };
        if let Some(refusal) = refusal {
            out.extend_from_slice(refusal);
            self.reset();
            if size > 0 {
                self.state = State::Skip { left: size };
            }
            return None;
        }
        self.chunked = true;
        if size == 0 {
            return self.chunk_done(last, site, out);
        }
        self.state = State::Chunk { left: size, last };
        None
    }

    fn chunk_bytes(
        &mut self,
        bytes: &[u8],
        left: u64,
        last: bool,
        site: &Site,
        out: &mut Vec<u8>,
    ) -> (usize, Option<ReceiverEvent>) {
        let taken = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
        self.content.extend_from_slice(&bytes[..taken]);
        if site.closes(Phase::Content) {
            return (taken, Some(ReceiverEvent::HangUp));
        }
        let left = left - taken as u64;
        if left > 0 {
            self.state = State::Chunk { left, last };
            return (taken, None);
        }
        self.state = State::Command;
        (taken, self.chunk_done(last, site, out))
    }

    fn chunk_done(&mut self, last: bool, site: &Site, out: &mut Vec<u8>) -> Option<ReceiverEvent> {
        if last {
            return self.complete(site, out);
        }
        out.extend_from_slice(b"250 2.0.0 chunk taken\r\n");
        None
    }

    fn data_bytes(
        &mut self,
        bytes: &[u8],
        site: &Site,
        out: &mut Vec<u8>,
    ) -> (usize, Option<ReceiverEvent>) {
        if site.closes(Phase::Content) {
            return (bytes.len(), Some(ReceiverEvent::HangUp));
        }
        // The end may straddle two reads: look again at its first four bytes.
        let before = self.content.len();
        let from = before.saturating_sub(4);
        self.content.extend_from_slice(bytes);
        let Some(at) = memchr::memmem::find(&self.content[from..], b"\r\n.\r\n") else {
            if self.content.len() as u64 > site.size_max {
                out.extend_from_slice(b"552 5.3.4 too large\r\n");
                return (bytes.len(), Some(ReceiverEvent::Close));
            }
            return (bytes.len(), None);
        };
        let end = from + at;
        let taken = end + 5 - before;
        self.content.truncate(end + 2);
        self.state = State::Command;
        undouble(&mut self.content);
        (taken, self.complete(site, out))
    }

    fn complete(&mut self, site: &Site, out: &mut Vec<u8>) -> Option<ReceiverEvent> {
        if site.personality.tempfail_dot.fraction() > 0.0
            && site
                .personality
                .defers_message(site.seed, site.next_ordinal())
        {
            self.refusals += 1;
            self.reset();
            out.extend_from_slice(b"451 4.3.0 not this message, not now\r\n");
            return None;
        }
        if site.closes(Phase::Dot) {
            return Some(ReceiverEvent::MessageThenClose);
        }
        Some(ReceiverEvent::Message)
    }
}

/// Takes the doubled dots out of lines (RFC 5321 4.5.2). The content starts with a line end.
fn undouble(content: &mut Vec<u8>) {
    let Some(first) = memchr::memmem::find(content, b"\r\n.") else {
        return;
    };
    let mut kept = first + 2;
    let mut from = first + 3;
    loop {
        let next = memchr::memmem::find(&content[from..], b"\r\n.");
        let until = next.map_or(content.len(), |at| from + at + 2);
        content.copy_within(from..until, kept);
        kept += until - from;
        if next.is_none() {
            break;
        }
        from = until + 1;
    }
    content.truncate(kept);
}

fn verdict(site: &Site, sender: &[u8], recipient: &[u8], now: Mono) -> Verdict {
    let personality = &site.personality;
    let simple = personality.greylist.is_none()
        && personality.tempfail.fraction() == 0.0
        && personality.reject.fraction() == 0.0;
    if simple {
        return Verdict::Accept;
    }
    let hash = text_hash(site.seed, recipient);
    let first_seen = match personality.greylist {
        Some(_) => site.first_seen(text_hash(hash, sender), now),
        None => Mono(0),
    };
    let ordinal = site.next_ordinal();
    personality.judge(&Attempt {
        seed: site.seed,
        recipient: hash,
        ordinal,
        first_seen,
        now,
    })
}

/// What stands between `<` and `>`, and the parameters behind.
fn path(rest: &[u8]) -> Option<(&[u8], &[u8])> {
    let start = memchr::memchr(b'<', rest)? + 1;
    // A quoted local part may hold a `>`; the domain holds none.
    let end = if rest.get(start) == Some(&b'"') {
        let quote = memchr::memmem::find(&rest[start..], b"\"@")? + start;
        memchr::memchr(b'>', &rest[quote..])? + quote
    } else {
        memchr::memchr(b'>', &rest[start..])? + start
    };
    Some((&rest[start..end], &rest[end + 1..]))
}

fn declared_size(parameters: &[u8]) -> Option<u64> {
    parameters.split(|byte| *byte == b' ').find_map(|word| {
        let (name, value) = word.split_at_checked(5)?;
        if !name.eq_ignore_ascii_case(b"SIZE=") {
            return None;
        }
        str::from_utf8(value).ok()?.parse().ok()
    })
}

fn push(out: &mut Vec<u8>, parts: &[&str]) {
    for part in parts {
        out.extend_from_slice(part.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests;
