//! server - the server end of one SMTP session, without I/O.
//!
//! What: octets of the peer go in, replies and [`ServerEvent`]s come out. At the end of a message
//! the machine stops until the driver says `accepted`, with a message that is durable, or
//! `refused`.
//! Whoever wants to may watch a message arrive ([`Watchers`]).
//! Why this way: replies depend on the octets alone, never on how they were split, so one segment
//! with a whole session and one octet at a time give the same session.
//! Cost: 1.7 us per 10 KiB message with BDAT, 2.0 us with DATA, trace field and envelope included
//! (benches/smtp.rs, the fastest samples on a busy machine).
//! Limits: `ServerConfig`, `limits::SMTP_*`. An idle session holds no buffer at all.
//! Failure: whatever is not accepted gets a reply that says why; only `accepted` says 250 to a
//! message. What breaks the line rule is refused whole at its true end.
//! Security: hostile octets; no line that ends in anything but CRLF is a command, or ends a
//! message.
//! Standards: RFC 5321, 1870, 2034, 2920, 3030, 3461, 6152, 6531.
//!
//! Example of use, for a driver:
//! ```text
//! server.set_next_id(spooler.next_id());
//! let (used, event) = server.input(&bytes[at..], now, &mut out);
//! match event { Some(Message(inbound)) => .., Some(Close) => .., None => receive more }
//! ```

mod parameters;
mod replies;
mod transaction;
mod types;

use std::net::IpAddr;
use std::sync::Arc;

use self::parameters::{mail_parameter, rcpt_parameter, recipient_address};
use self::replies::{
    ARGUMENTS, BAD_OCTET, BARE, BARE_LF, BLIND_CONTENT, BYE, CANNOT_VERIFY, CHUNK_SIZE,
    CHUNKS_BEGUN, GO_AHEAD, HELLO_FIRST, HELP, LOCAL_ERROR, LONG_LINE, LOOP, MAIL_FIRST, MAIL_OK,
    NEEDS_SMTPUTF8, NESTED_MAIL, NO_RECIPIENTS, NOT_HTTP, NOT_OFFERED, OK, OVERLOAD, PARAMETER,
    PATH_SYNTAX, RCPT_OK, RELAY_DENIED, SENDER_SYNTAX, SHUTTING_DOWN, SPOOL_FULL, TIMEOUT,
    TOO_MANY_ERRORS, TOO_MANY_IDLE, TOO_MANY_RECIPIENTS, UNKNOWN, UNKNOWN_PARAMETER,
};
use self::transaction::{Transaction, Watcher};
pub use self::types::{Inbound, Refusal, ServerConfig, ServerEvent, Watchers};
use super::command::{self, Command, CommandError, Parameters};
use super::data::{LineRule, Unstuffer};
use crate::limits;
use crate::message::trace::{self, Protocol, TraceInfo};
use crate::message::{Address, Content, Envelope, MessageId, Recipient};
use crate::time::Wall;

/// The server end of one session.
#[derive(Debug)]
pub struct Server {
    config: Arc<ServerConfig>,
    /// What the peer called itself; `None` before EHLO or HELO.
    helo: Option<Box<str>>,
    /// Everything about the message under way; boxed, because an idle session has none.
    transaction: Option<Box<Transaction>>,
    /// A command line without its end yet; holds no memory between lines.
    partial: Vec<u8>,
    phase: Phase,
    next_id: Option<MessageId>,
    peer: IpAddr,
    bad_commands: u16,
    idle_commands: u16,
    may_relay: bool,
    /// EHLO was said, not HELO.
    esmtp: bool,
    /// DATA was just refused: a next line that is no command is content that was sent blindly.
    data_refused: bool,
}

// 10,000 idle sessions must cost less than 2 KiB each, driver and socket included.
const _: () = assert!(size_of::<Server>() <= 256);

/// What the next octets are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Command lines.
    Command,
    /// The rest of a command line that is too long.
    LongLine,
    /// Content with dot transparency.
    Data,
    /// So many octets of content are left of this chunk.
    Chunk { left: u64, last: bool },
    /// So many octets are left of a chunk that is refused; then this is the reply.
    Discard { left: u64, reply: &'static [u8] },
    /// None: a message waits for `accepted` or `refused`.
    Answer,
    /// None: the session is over.
    Closed,
}

impl Server {
    /// A session with `peer`. `may_relay`: whether it may send to any domain; if not, only our own
    /// postmaster is a valid recipient.
    #[must_use]
    pub fn new(config: Arc<ServerConfig>, peer: IpAddr, may_relay: bool) -> Self {
        Self {
            config,
            helo: None,
            transaction: None,
            partial: Vec::new(),
            phase: Phase::Command,
            next_id: None,
            peer,
            bad_commands: 0,
            idle_commands: 0,
            may_relay,
            esmtp: false,
            data_refused: false,
        }
    }

    /// Appends the greeting. Called once, first.
    pub fn greet(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"220 ");
        out.extend_from_slice(self.config.hostname.as_bytes());
        out.extend_from_slice(b" ESMTP\r\n");
    }

    /// The id of the next message: the Received field names it. The driver sets one before input
    /// whenever [`Self::wants_id`].
    pub fn set_next_id(&mut self, id: MessageId) {
        self.next_id = Some(id);
    }

    /// Gives back the id that no message has used: it names the shard, and the session is to go on
    /// elsewhere. Precondition: the session [is idle](Self::is_idle).
    pub fn forget_next_id(&mut self) {
        self.next_id = None;
    }

    /// Whether the id set last was used for a message, or none was set. An id that a refused
    /// message would have had serves for the next one.
    #[must_use]
    pub fn wants_id(&self) -> bool {
        self.next_id.is_none()
    }

    /// Takes octets of the peer, appends replies to `out`, and stops at an event. Returns the
    /// octets consumed: all of them unless there is an event. While a message waits for its answer
    /// nothing is consumed. After `Close`, everything is consumed and `Close` repeated.
    pub fn input(
        &mut self,
        bytes: &[u8],
        now: Wall,
        out: &mut Vec<u8>,
    ) -> (usize, Option<ServerEvent>) {
        self.input_watched(bytes, now, &|_| None, out)
    }

    /// As [`Self::input`]; whoever `watchers` gives a message sees its content grow, until it
    /// cannot be accepted any more. They are asked once per message, with its envelope, when its
    /// first octets have come.
    pub fn input_watched(
        &mut self,
        bytes: &[u8],
        now: Wall,
        watchers: &Watchers<'_>,
        out: &mut Vec<u8>,
    ) -> (usize, Option<ServerEvent>) {
        let mut at = 0;
        loop {
            let rest = &bytes[at..];
            let (used, event) = match self.phase {
                Phase::Closed => return (bytes.len(), Some(ServerEvent::Close)),
                Phase::Answer => return (at, None),
                _ if rest.is_empty() => return (at, None),
                Phase::Command => self.line(rest, now, out),
                Phase::LongLine => (self.long_line(rest, out), None),
                Phase::Data => self.data(rest, watchers, out),
                Phase::Chunk { left, last } => self.chunk(rest, (left, last), watchers, out),
                Phase::Discard { left, reply } => (self.discard(rest, left, reply, out), None),
            };
            at += used;
            if event.is_some() {
                return (at, event);
            }
        }
    }

    /// Appends 250 for the message in hand. Call it only with proof that the message is durable.
    /// Precondition: a `Message` event waits for its answer, or the session ended meanwhile.
    pub fn accepted(&mut self, id: MessageId, out: &mut Vec<u8>) {
        if self.phase == Phase::Closed {
            return;
        }
        assert!(
            self.phase == Phase::Answer,
            "250 is said to a message that was handed over"
        );
        out.extend_from_slice(b"250 2.0.0 Ok: queued as ");
        for shift in (0..16).rev() {
            let nibble = usize::from((id.0 >> (shift * 4)) as u8 & 15);
            out.push(b"0123456789abcdef"[nibble]);
        }
        out.extend_from_slice(b"\r\n");
        self.idle_commands = 0;
        self.phase = Phase::Command;
    }

    /// Appends the refusal of the message in hand; the session goes on.
    /// Precondition: a `Message` event waits for its answer, or the session ended meanwhile.
    pub fn refused(&mut self, refusal: Refusal, out: &mut Vec<u8>) {
        if self.phase == Phase::Closed {
            return;
        }
        assert!(
            self.phase == Phase::Answer,
            "only a message that was handed over is refused"
        );
        self.phase = Phase::Command;
        match refusal {
            Refusal::InsufficientStorage => out.extend_from_slice(SPOOL_FULL),
            Refusal::LocalError => out.extend_from_slice(LOCAL_ERROR),
            Refusal::Loop => out.extend_from_slice(LOOP),
            Refusal::Policy(reply) => {
                reply.encode(out);
                // RFC 5321 3.8: 421 closes the channel, whoever says it.
                if reply.code == 421 {
                    self.close();
                }
            }
        }
    }

    /// Appends 421 4.3.2: too much to do. The session is over; close after sending.
    pub fn overload(&mut self, out: &mut Vec<u8>) {
        self.say_421(OVERLOAD, out);
    }

    /// Appends 421 4.4.2: the peer was silent for too long. The session is over.
    pub fn timeout(&mut self, out: &mut Vec<u8>) {
        self.say_421(TIMEOUT, out);
    }

    /// Appends 421 4.3.2: this node stops. The session is over. Not while a message waits for its
    /// answer, or the peer will send it again.
    pub fn shutting_down(&mut self, out: &mut Vec<u8>) {
        self.say_421(SHUTTING_DOWN, out);
    }

    /// Whether no transaction is open and nothing is half read: a drain may end the session here.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        let at_rest = matches!(self.phase, Phase::Command | Phase::Closed);
        at_rest && self.transaction.is_none() && self.partial.is_empty()
    }

    /// Octets of memory that this session holds beyond its own size: for the shard's budget.
    #[must_use]
    pub fn memory(&self) -> usize {
        let helo = self.helo.as_ref().map_or(0, |helo| helo.len());
        let transaction = self.transaction.as_ref().map_or(0, |transaction| {
            let texts: usize = transaction
                .envelope
                .recipients
                .iter()
                .map(recipient_octets)
                .sum();
            let slots = transaction.envelope.recipients.capacity() * size_of::<Recipient>();
            let watcher = match &transaction.watcher {
                Watcher::Somebody(watcher) => watcher.memory(),
                Watcher::Unasked | Watcher::Nobody => 0,
            };
            size_of::<Transaction>() + transaction.content.capacity() + slots + texts + watcher
        });
        self.partial.capacity() + helo + transaction
    }

    fn say_421(&mut self, reply: &'static [u8], out: &mut Vec<u8>) {
        if self.phase != Phase::Closed {
            out.extend_from_slice(reply);
            self.close();
        }
    }

    fn close(&mut self) {
        self.phase = Phase::Closed;
        self.transaction = None;
        self.partial = Vec::new();
    }

    /// Reads one command line, or the part of it that is there.
    fn line(&mut self, rest: &[u8], now: Wall, out: &mut Vec<u8>) -> (usize, Option<ServerEvent>) {
        let max = limits::SMTP_COMMAND_BYTES_MAX;
        let Some(end) = memchr::memchr(b'\n', rest) else {
            if self.partial.len() + rest.len() >= max {
                self.partial = Vec::new();
                self.phase = Phase::LongLine;
            } else {
                self.partial.extend_from_slice(rest);
            }
            return (rest.len(), None);
        };
        let used = end + 1;
        if self.partial.len() + used > max {
            self.partial = Vec::new();
            self.not_a_command(LONG_LINE, out);
            return (used, None);
        }
        if self.partial.is_empty() {
            return (used, self.whole_line(&rest[..end], now, out));
        }
        let mut line = std::mem::take(&mut self.partial);
        line.extend_from_slice(&rest[..end]);
        (used, self.whole_line(&line, now, out))
    }

    /// Passes over the rest of a line that is too long.
    fn long_line(&mut self, rest: &[u8], out: &mut Vec<u8>) -> usize {
        let Some(end) = memchr::memchr(b'\n', rest) else {
            return rest.len();
        };
        self.phase = Phase::Command;
        self.not_a_command(LONG_LINE, out);
        end + 1
    }

    /// Acts on one line, given without its LF.
    fn whole_line(&mut self, line: &[u8], now: Wall, out: &mut Vec<u8>) -> Option<ServerEvent> {
        // RFC 5321 2.3.8: only CRLF ends a line.
        let Some((b'\r', line)) = line.split_last() else {
            self.not_a_command(BARE_LF, out);
            return None;
        };
        match command::parse(line) {
            Ok(command) => {
                self.data_refused = false;
                self.command(command, now, out)
            }
            Err(error) => {
                self.malformed(error, out);
                None
            }
        }
    }

    fn malformed(&mut self, error: CommandError, out: &mut Vec<u8>) {
        let reply = match error {
            CommandError::Unknown => return self.not_a_command(UNKNOWN, out),
            CommandError::BadOctet => return self.not_a_command(BAD_OCTET, out),
            CommandError::Arguments => ARGUMENTS,
            CommandError::Path => PATH_SYNTAX,
            CommandError::Parameter => PARAMETER,
            CommandError::ChunkSize => {
                // Nobody knows how many octets of content follow: as commands they would be a hole.
                out.extend_from_slice(CHUNK_SIZE);
                return self.close();
            }
        };
        self.bad(reply, out);
    }

    /// A line that is not even a known verb. After a refused DATA it is most likely content: were
    /// its lines read as commands, whoever wrote the content could speak for the client.
    fn not_a_command(&mut self, reply: &'static [u8], out: &mut Vec<u8>) {
        if self.data_refused {
            return self.say_421(BLIND_CONTENT, out);
        }
        self.bad(reply, out);
    }

    /// Refuses a malformed command, and ends the session when there were too many.
    fn bad(&mut self, reply: &'static [u8], out: &mut Vec<u8>) {
        self.bad_commands = self.bad_commands.saturating_add(1);
        if self.bad_commands > self.config.bad_commands_max {
            self.say_421(TOO_MANY_ERRORS, out);
        } else {
            out.extend_from_slice(reply);
        }
    }

    /// Answers a command that moves no mail, and ends the session when there were too many.
    fn idle(&mut self, reply: &'static [u8], out: &mut Vec<u8>) {
        if self.count_idle(out) {
            out.extend_from_slice(reply);
        }
    }

    /// False where the session ended because there were too many.
    fn count_idle(&mut self, out: &mut Vec<u8>) -> bool {
        self.idle_commands = self.idle_commands.saturating_add(1);
        let within = self.idle_commands <= self.config.idle_commands_max;
        if !within {
            self.say_421(TOO_MANY_IDLE, out);
        }
        within
    }

    fn command(
        &mut self,
        command: Command<'_>,
        now: Wall,
        out: &mut Vec<u8>,
    ) -> Option<ServerEvent> {
        match command {
            Command::Mail { path, parameters } => match self.mail(path, parameters) {
                Ok(()) => out.extend_from_slice(MAIL_OK),
                Err(reply) => self.idle(reply, out),
            },
            Command::Rcpt { path, parameters } => match self.rcpt(path, parameters) {
                Ok(()) => out.extend_from_slice(RCPT_OK),
                Err(reply) => self.idle(reply, out),
            },
            Command::Data => self.begin_data(now, out),
            Command::Bdat { size, last } => return self.begin_chunk(size, last, now, out),
            Command::Ehlo(name) => self.hello(name, true, out),
            Command::Helo(name) => self.hello(name, false, out),
            Command::Rset => {
                self.transaction = None;
                self.idle(OK, out);
            }
            Command::Noop => self.idle(OK, out),
            Command::Vrfy => self.idle(CANNOT_VERIFY, out),
            Command::Help => self.idle(HELP, out),
            Command::Quit => {
                out.extend_from_slice(BYE);
                self.close();
            }
            Command::Expn | Command::Turn | Command::StartTls | Command::Auth(_) => {
                self.idle(NOT_OFFERED, out);
            }
            Command::Http => {
                // What follows are header lines that somebody else chose: none is to be read.
                out.extend_from_slice(NOT_HTTP);
                self.close();
            }
        }
        None
    }

    /// EHLO and HELO: both reset the transaction (RFC 5321 4.1.4).
    fn hello(&mut self, name: &str, esmtp: bool, out: &mut Vec<u8>) {
        if !self.count_idle(out) {
            return;
        }
        self.transaction = None;
        self.helo = Some(name.into());
        self.esmtp = esmtp;
        let config = &self.config;
        out.extend_from_slice(if esmtp { b"250-" } else { b"250 " });
        out.extend_from_slice(config.hostname.as_bytes());
        out.extend_from_slice(b"\r\n");
        if !esmtp {
            return;
        }
        let mut offer = |offered: bool, line: &str| {
            if offered {
                out.extend_from_slice(line.as_bytes());
            }
        };
        offer(config.pipelining, "250-PIPELINING\r\n");
        offer(true, &format!("250-SIZE {}\r\n", config.size_max));
        offer(config.eight_bit_mime, "250-8BITMIME\r\n");
        offer(config.smtputf8, "250-SMTPUTF8\r\n");
        offer(config.chunking, "250-CHUNKING\r\n");
        offer(config.dsn, "250-DSN\r\n");
        offer(true, "250-ENHANCEDSTATUSCODES\r\n250 HELP\r\n");
    }

    fn mail(&mut self, path: &[u8], parameters: Parameters<'_>) -> Result<(), &'static [u8]> {
        if self.helo.is_none() {
            return Err(HELLO_FIRST);
        }
        if let Some(transaction) = &self.transaction {
            return Err(if transaction.begun {
                CHUNKS_BEGUN
            } else {
                NESTED_MAIL
            });
        }
        let sender = if path.is_empty() {
            None
        } else {
            Some(Address::parse_path(path).map_err(|_| SENDER_SYNTAX)?)
        };
        let envelope = Envelope {
            sender,
            ..Envelope::default()
        };
        let mut transaction = Transaction {
            envelope,
            declared: 0,
            content: Vec::new(),
            size: 0,
            rule: LineRule::default(),
            unstuffer: Unstuffer::default(),
            begun: false,
            too_big: false,
            eight_bit: false,
            received_at: Wall(0),
            id: None,
            watcher: Watcher::Unasked,
        };
        let mut seen = 0;
        for parameter in parameters {
            let parameter = parameter.map_err(|_| PARAMETER)?;
            // RFC 5321 4.1.1.11: parameters are for those who said EHLO.
            if !self.esmtp {
                return Err(UNKNOWN_PARAMETER);
            }
            let Transaction {
                envelope, declared, ..
            } = &mut transaction;
            mail_parameter(&self.config, envelope, declared, parameter, &mut seen)?;
        }
        let ascii = transaction
            .envelope
            .sender
            .as_ref()
            .is_none_or(Address::is_ascii);
        if !ascii && !transaction.envelope.smtputf8 {
            return Err(NEEDS_SMTPUTF8);
        }
        self.transaction = Some(Box::new(transaction));
        Ok(())
    }

    fn rcpt(&mut self, path: &[u8], parameters: Parameters<'_>) -> Result<(), &'static [u8]> {
        let config = &*self.config;
        let transaction = self.transaction.as_mut().ok_or(MAIL_FIRST)?;
        if transaction.begun {
            return Err(CHUNKS_BEGUN);
        }
        let (address, ours) = recipient_address(path, &config.hostname)?;
        if !transaction.envelope.smtputf8 && !address.is_ascii() {
            return Err(NEEDS_SMTPUTF8);
        }
        let mut recipient = Recipient::new(address);
        if !parameters.is_empty() {
            if !self.esmtp || !config.dsn {
                return Err(UNKNOWN_PARAMETER);
            }
            let mut seen = 0;
            for parameter in parameters {
                let parameter = parameter.map_err(|_| PARAMETER)?;
                rcpt_parameter(&mut recipient, parameter, &mut seen)?;
            }
        }
        if !self.may_relay && !ours {
            return Err(RELAY_DENIED);
        }
        // RFC 5321 4.5.3.1.10: 452, so that the client sends the rest in another transaction.
        let count = transaction.envelope.recipients.len();
        if count >= config.recipients_max.min(limits::RECIPIENTS_MAX) as usize {
            return Err(TOO_MANY_RECIPIENTS);
        }
        transaction.envelope.recipients.push(recipient);
        Ok(())
    }

    /// DATA: 354 only where a whole message could follow.
    fn begin_data(&mut self, now: Wall, out: &mut Vec<u8>) {
        let refusal = match &self.transaction {
            None => Some(MAIL_FIRST),
            Some(transaction) if transaction.begun => Some(CHUNKS_BEGUN),
            // RFC 5321 3.3 and RFC 2920 3.1.
            Some(transaction) if transaction.envelope.recipients.is_empty() => Some(NO_RECIPIENTS),
            Some(_) => None,
        };
        if let Some(reply) = refusal {
            self.data_refused = true;
            return self.idle(reply, out);
        }
        self.begin_content(0, now);
        self.phase = Phase::Data;
        out.extend_from_slice(GO_AHEAD);
    }

    /// BDAT: whatever the reply will be, the octets of the chunk come first (RFC 3030 2).
    fn begin_chunk(
        &mut self,
        size: u64,
        last: bool,
        now: Wall,
        out: &mut Vec<u8>,
    ) -> Option<ServerEvent> {
        let refusal = match &self.transaction {
            _ if !self.config.chunking => Some(NOT_OFFERED),
            None => Some(MAIL_FIRST),
            Some(transaction) if transaction.envelope.recipients.is_empty() => Some(NO_RECIPIENTS),
            Some(_) => None,
        };
        if let Some(reply) = refusal {
            if last && self.config.chunking {
                // The end of the message, though nobody gets it: a next MAIL is in order.
                self.transaction = None;
            }
            if size == 0 {
                self.idle(reply, out);
            } else {
                self.phase = Phase::Discard { left: size, reply };
            }
            return None;
        }
        self.begin_content(size, now);
        if let Some(transaction) = &mut self.transaction
            && transaction.size.saturating_add(size) > self.config.size_max
        {
            transaction.too_big = true;
            transaction.content = Vec::new();
            transaction.watcher = Watcher::Nobody;
        }
        if size == 0 {
            return self.chunk_end(last, out);
        }
        self.phase = Phase::Chunk { left: size, last };
        None
    }

    /// Makes room for `expected` octets more, and writes the Received field before the first.
    fn begin_content(&mut self, expected: u64, now: Wall) {
        let Some(transaction) = &mut self.transaction else {
            return;
        };
        let hint = expected
            .max(transaction.declared)
            .min(limits::SMTP_CONTENT_RESERVE_MAX);
        // Bounded by the minimum above, so it fits any usize.
        let hint = usize::try_from(hint).unwrap_or(0);
        if transaction.begun {
            return;
        }
        transaction.begun = true;
        transaction.received_at = now;
        transaction.id = self.next_id;
        let room = if hint == 0 {
            limits::SMTP_CONTENT_RESERVE_DEFAULT
        } else {
            hint
        };
        transaction.content.reserve(TRACE_ROOM + room);
        let recipients = &transaction.envelope.recipients;
        let info = TraceInfo {
            helo: self.helo.as_deref().unwrap_or_default().as_bytes(),
            peer: self.peer,
            hostname: &self.config.hostname,
            with: Protocol::of(self.esmtp, transaction.envelope.smtputf8, false, false),
            id: transaction.id,
            // RFC 5321 7.6: with several recipients, `for` would tell each about another.
            for_: if let [only] = &recipients[..] {
                Some(&only.address)
            } else {
                None
            },
            at: now,
        };
        trace::received(&mut transaction.content, &info);
        transaction.eight_bit = !transaction.content.is_ascii();
    }

    /// Content with dot transparency, up to its end.
    fn data(
        &mut self,
        rest: &[u8],
        watchers: &Watchers<'_>,
        out: &mut Vec<u8>,
    ) -> (usize, Option<ServerEvent>) {
        let size_max = self.config.size_max;
        let Some(transaction) = &mut self.transaction else {
            unreachable!("the phase Data has a transaction: begin_data saw one");
        };
        let mut unstuffer = transaction.unstuffer;
        let (used, done) = unstuffer.feed(rest, |span| {
            transaction.store(span, size_max, watchers);
        });
        transaction.unstuffer = unstuffer;
        if !done {
            return (used, None);
        }
        (used, self.message_end(out))
    }

    /// Octets of a chunk.
    fn chunk(
        &mut self,
        rest: &[u8],
        (left, last): (u64, bool),
        watchers: &Watchers<'_>,
        out: &mut Vec<u8>,
    ) -> (usize, Option<ServerEvent>) {
        let size_max = self.config.size_max;
        let span = &rest[..usize::try_from(left).map_or(rest.len(), |left| left.min(rest.len()))];
        if let Some(transaction) = &mut self.transaction {
            transaction.store(span, size_max, watchers);
        }
        let left = left - span.len() as u64;
        self.phase = Phase::Chunk { left, last };
        let event = if left == 0 {
            self.chunk_end(last, out)
        } else {
            None
        };
        (span.len(), event)
    }

    /// All octets of a chunk are here.
    fn chunk_end(&mut self, last: bool, out: &mut Vec<u8>) -> Option<ServerEvent> {
        if last {
            return self.message_end(out);
        }
        self.phase = Phase::Command;
        let defect = self
            .transaction
            .as_ref()
            .and_then(|transaction| transaction.defect());
        match defect {
            Some(reply) => self.idle(reply, out),
            None => out.extend_from_slice(OK),
        }
        None
    }

    /// The true end of a message: hands it over, or refuses it whole.
    fn message_end(&mut self, out: &mut Vec<u8>) -> Option<ServerEvent> {
        self.phase = Phase::Command;
        let transaction = self.transaction.take()?;
        let unfinished = (!transaction.rule.is_kept()).then_some(BARE);
        if let Some(reply) = transaction.defect().or(unfinished) {
            self.idle(reply, out);
            return None;
        }
        self.phase = Phase::Answer;
        self.next_id = None;
        let body = match transaction.watcher {
            Watcher::Somebody(watcher) => watcher.finish(&transaction.content),
            Watcher::Unasked | Watcher::Nobody => None,
        };
        Some(ServerEvent::Message(Box::new(Inbound {
            envelope: transaction.envelope,
            content: Content::from(transaction.content),
            eight_bit: transaction.eight_bit || transaction.rule.is_eight_bit(),
            body,
            peer: self.peer,
            received_at: transaction.received_at,
            id: transaction.id,
        })))
    }

    /// Octets of a chunk that is refused.
    fn discard(
        &mut self,
        rest: &[u8],
        left: u64,
        reply: &'static [u8],
        out: &mut Vec<u8>,
    ) -> usize {
        let used = usize::try_from(left).map_or(rest.len(), |left| left.min(rest.len()));
        let left = left - used as u64;
        self.phase = Phase::Discard { left, reply };
        if left == 0 {
            self.phase = Phase::Command;
            self.idle(reply, out);
        }
        used
    }
}

/// Room for the Received field, in octets: names of 255 octets each are rare.
const TRACE_ROOM: usize = 512;

fn recipient_octets(recipient: &Recipient) -> usize {
    recipient.address.as_str().len() + recipient.orcpt.as_ref().map_or(0, |orcpt| orcpt.len())
}

#[cfg(test)]
mod tests;
