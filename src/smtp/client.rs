//! client - the client end of one SMTP connection, without I/O.
//!
//! What: transactions go in, pieces to send and outcomes per recipient come out. Several
//! transactions may be in flight; replies are taken in order.
//! Why this way: the number of round trips decides the throughput of one connection. With
//! PIPELINING and CHUNKING, MAIL, RCPT and BDAT LAST with the content are one segment, and the next
//! transaction follows without waiting; with PIPELINING, MAIL, RCPT and DATA are; else a dialogue.
//! Failure: every transaction that was sent ends in exactly one `Done`, whatever the peer does. An
//! end of data without its reply is `Ambiguous`, never an error.
//! Security: replies are hostile octets: bounded, counted, and made printable.
//! Standards: RFC 5321, 1870, 2920, 3030, 3461, 6152, 6531, 7504, 9422.
//!
//! A driver's loop: `poll_output` until it returns false, writing the pieces; receive until
//! `deadline`; `input`; act on the events.

mod flight;
mod types;

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use self::flight::{Flight, Slot, Step};
pub use self::types::{
    Cause, ClientConfig, ClientEvent, ClientTimeouts, Disconnect, DsnParameters, Outcome,
    RecipientDsn, Transaction,
};
use super::data::Stuffer;
use super::extension::Capabilities;
use super::reply::{ReplyParser, ReplyRef, ReplyText};
use crate::limits;
use crate::message::EnhancedStatus;
use crate::time::Mono;

/// The client end of one connection.
#[derive(Debug)]
pub struct Client {
    config: ClientConfig,
    capabilities: Capabilities,
    state: State,
    parser: ReplyParser,
    outgoing: VecDeque<Item>,
    /// Transactions whose replies are not all here, oldest first.
    flights: VecDeque<Flight>,
    /// The number of the oldest flight.
    first: u64,
    /// Octets that `poll_output` gave.
    handed: u64,
    /// Octets of these that are known not to have reached the system.
    unsent: u64,
    transactions: u32,
    /// The recipient domains of this connection, kept only where the peer limits them.
    domains: Vec<Box<[u8]>>,
    /// A domain was refused for that limit: only another connection helps.
    domains_full: bool,
    /// The peer may still have a transaction open.
    reset_needed: bool,
    quit_wanted: bool,
    waiting_since: Option<Mono>,
}

/// Where the connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Greeting,
    Ehlo,
    Helo,
    Ready,
    Quitting,
    Closed,
}

/// What is to be sent.
#[derive(Debug)]
enum Item {
    /// The commands of this flight begin here.
    Start(u64),
    Piece(Bytes),
    Body(Stuffer),
    /// The content of this flight ends here.
    End(u64),
}

impl Client {
    /// A client that waits for the greeting.
    #[must_use]
    pub fn new(config: ClientConfig) -> Self {
        Self {
            config,
            capabilities: Capabilities::default(),
            state: State::Greeting,
            parser: ReplyParser::default(),
            outgoing: VecDeque::new(),
            flights: VecDeque::new(),
            first: 0,
            handed: 0,
            unsent: 0,
            transactions: 0,
            domains: Vec::new(),
            domains_full: false,
            reset_needed: false,
            quit_wanted: false,
            waiting_since: None,
        }
    }

    /// Appends pieces to send, in order, at most [`limits::SMTP_OUTPUT_PIECES_MAX`]; returns
    /// whether there were any. Call until it returns false, and before waiting: it starts the clock
    /// of the reply awaited.
    pub fn poll_output(&mut self, now: Mono, out: &mut Vec<Bytes>) -> bool {
        let before = out.len();
        while out.len() - before < limits::SMTP_OUTPUT_PIECES_MAX {
            let piece = match self.outgoing.front_mut() {
                None => break,
                Some(Item::Body(stuffer)) => stuffer.next(),
                Some(Item::Piece(piece)) => Some(std::mem::take(piece)),
                Some(Item::Start(flight)) => {
                    let flight = *flight;
                    if let Some(flight) = self.flight_mut(flight) {
                        flight.started = true;
                    }
                    None
                }
                Some(Item::End(flight)) => {
                    let (flight, handed) = (*flight, self.handed);
                    if let Some(flight) = self.flight_mut(flight) {
                        flight.end = Some(handed);
                    }
                    None
                }
            };
            let more = matches!(self.outgoing.front(), Some(Item::Body(_))) && piece.is_some();
            if !more {
                self.outgoing.pop_front();
            }
            if let Some(piece) = piece.filter(|piece| !piece.is_empty()) {
                self.handed += piece.len() as u64;
                out.push(piece);
            }
        }
        if self.waiting_since.is_none() && self.timeout().is_some() {
            self.waiting_since = Some(now);
        }
        out.len() > before
    }

    /// Takes octets of the peer and appends what they mean.
    pub fn input(&mut self, bytes: &[u8], now: Mono, events: &mut Vec<ClientEvent>) {
        let mut rest = bytes;
        let mut parser = std::mem::take(&mut self.parser);
        while self.state != State::Closed {
            match parser.take(&mut rest) {
                Ok(None) => break,
                Ok(Some(reply)) => {
                    self.reply(reply, events);
                    self.waiting_since = self.timeout().map(|_| now);
                }
                Err(error) => self.lose(&error.to_string(), events),
            }
        }
        self.parser = parser;
    }

    /// Whether [`Self::send`] may be called now.
    #[must_use]
    pub fn can_send(&self) -> bool {
        if self.state != State::Ready || self.is_spent() {
            return false;
        }
        let depth = if self.pipelines() {
            usize::from(self.config.pipeline_depth).max(1)
        } else {
            1
        };
        // RFC 2920 3.1: what follows the end of the content may be sent without waiting, but not
        // what follows a DATA whose reply is not known.
        self.flights.len() < depth && self.flights.back().is_none_or(Flight::is_queued)
    }

    /// Whether this connection takes no more transactions: its cap is reached, it quits, or is
    /// closed.
    #[must_use]
    pub fn is_spent(&self) -> bool {
        let caps = [
            self.config.transactions_max,
            self.capabilities.transactions_max.unwrap_or(0),
        ];
        let over = caps.iter().any(|cap| *cap > 0 && self.transactions >= *cap);
        let over = over || self.domains_full || self.quit_wanted;
        over || matches!(self.state, State::Quitting | State::Closed)
    }

    /// Transactions in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.flights.len()
    }

    /// What the peer offered.
    #[must_use]
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// Most recipients that one transaction sends; the surplus would be deferred as `NextBatch`.
    #[must_use]
    pub fn recipients_max(&self) -> u32 {
        let offered = self.capabilities.recipients_max.unwrap_or(u32::MAX);
        self.config.recipients_max.max(1).min(offered)
    }

    /// Starts a transaction. Precondition: [`Self::can_send`].
    ///
    /// Returns its `Done` at once where nothing can be sent: too big, or the peer lacks what the
    /// message needs. The connection is as before then.
    #[must_use]
    pub fn send(&mut self, transaction: Transaction) -> Option<ClientEvent> {
        assert!(
            self.can_send(),
            "a transaction is sent where there is room for it"
        );
        let slots = self.judge(&transaction);
        if !slots.contains(&Slot::Pending) {
            return Some(flight::done(transaction.token, slots));
        }
        self.transactions += 1;
        let chunking = self.capabilities.chunking && self.config.chunking;
        // Whether a peer ends the transaction when it refuses BDAT LAST, RFC 3030 does not say. A
        // next MAIL that is refused as nested would give our recipients to the old sender.
        let unknown = self.flights.back().is_some_and(|before| before.chunking);
        let reset = std::mem::take(&mut self.reset_needed) || unknown;
        let seq = self.first + self.flights.len() as u64;
        let mut flight = Flight::new(transaction, slots, chunking, reset);
        self.outgoing.push_back(Item::Start(seq));
        let mut line = Vec::with_capacity(flight.command_octets());
        if !self.pipelines() {
            flight.write(flight.awaiting, &self.capabilities, &mut line);
            flight.queued = flight.awaiting;
            self.push(line);
        } else {
            self.queue_group(&mut flight, seq, line);
        }
        self.flights.push_back(flight);
        None
    }

    /// Says QUIT after the transactions in flight.
    pub fn quit(&mut self) {
        self.quit_wanted = true;
        self.quit_if_done();
    }

    /// When the reply awaited now is overdue; `None` while none is awaited.
    #[must_use]
    pub fn deadline(&self) -> Option<Mono> {
        Some(self.waiting_since?.after(self.timeout()?))
    }

    /// So many octets of what `poll_output` gave, its tail, were never handed to the system. Say so
    /// before `timed_out` or `disconnected`: a message that cannot have been whole is not
    /// ambiguous.
    pub fn unsent(&mut self, octets: u64) {
        self.unsent = octets.min(self.handed);
    }

    /// The deadline passed: every transaction in flight ends. Nothing happens before the deadline.
    pub fn timed_out(&mut self, now: Mono, events: &mut Vec<ClientEvent>) {
        if self.deadline().is_some_and(|deadline| now >= deadline) {
            self.lose("no reply in time", events);
        }
    }

    /// The connection is gone: every transaction in flight ends.
    pub fn disconnected(&mut self, how: Disconnect, events: &mut Vec<ClientEvent>) {
        self.lose(
            match how {
                Disconnect::Eof => "the peer closed the connection",
                Disconnect::Reset => "the peer reset the connection",
                Disconnect::Io => "the connection failed",
            },
            events,
        );
    }

    fn pipelines(&self) -> bool {
        self.capabilities.pipelining && self.config.pipelining
    }

    fn flight_mut(&mut self, seq: u64) -> Option<&mut Flight> {
        let index = usize::try_from(seq.checked_sub(self.first)?).ok()?;
        self.flights.get_mut(index)
    }

    /// How long the reply awaited now may take.
    fn timeout(&self) -> Option<Duration> {
        let timeouts = &self.config.timeouts;
        match self.state {
            State::Greeting => Some(timeouts.greeting),
            State::Ehlo | State::Helo => Some(timeouts.hello),
            State::Quitting => Some(timeouts.quit),
            State::Closed => None,
            State::Ready => self.flights.front().map(|flight| match flight.awaiting {
                Step::Reset => timeouts.hello,
                Step::Mail => timeouts.mail,
                Step::Rcpt(_) => timeouts.rcpt,
                Step::Go => timeouts.data,
                Step::End => timeouts.end,
            }),
        }
    }

    fn push(&mut self, line: Vec<u8>) {
        self.outgoing.push_back(Item::Piece(Bytes::from(line)));
    }

    /// What can be said about each recipient before anything is sent.
    fn judge(&mut self, transaction: &Transaction) -> Vec<Slot> {
        let size: u64 = transaction
            .content
            .iter()
            .map(|piece| piece.len() as u64)
            .sum();
        let capabilities = self.capabilities;
        let every = |status, text| {
            let outcome = Outcome::Failed {
                status,
                text: ReplyText::local(text),
            };
            vec![Slot::Over(outcome); transaction.recipients.len()]
        };
        // RFC 1870 6: a size that the peer declared not to take need not be tried.
        if capabilities.size.is_some_and(|max| size > max) {
            return every(
                EnhancedStatus::MESSAGE_TOO_BIG,
                "message exceeds the receiver's size limit",
            );
        }
        let utf8 = transaction.smtputf8 || !transaction.sender.is_ascii();
        if utf8 && !capabilities.smtputf8 {
            // RFC 6531 3.5: an address, or else the header, is what cannot be sent.
            let plain = |address: &Bytes| address.is_ascii();
            let addresses_fit =
                plain(&transaction.sender) && transaction.recipients.iter().all(plain);
            let status = if addresses_fit {
                EnhancedStatus::UTF8_HEADER
            } else {
                EnhancedStatus::NON_ASCII_ADDRESS
            };
            return every(status, "receiver does not offer SMTPUTF8");
        }
        if transaction.eight_bit && !capabilities.eight_bit_mime {
            let text = "receiver does not offer 8BITMIME";
            return every(EnhancedStatus::CONVERSION_NOT_SUPPORTED, text);
        }
        if !flight::is_clean(&transaction.sender) {
            return every(
                EnhancedStatus::SENDER_SYNTAX,
                "control character in the sender address",
            );
        }
        let mut room = self.recipients_max();
        let mut slots = Vec::with_capacity(transaction.recipients.len());
        for recipient in &transaction.recipients {
            let slot = self.judge_recipient(recipient, utf8, &mut room);
            slots.push(slot);
        }
        slots
    }

    fn judge_recipient(&mut self, recipient: &Bytes, utf8: bool, room: &mut u32) -> Slot {
        let failed = |status, text| {
            Slot::Over(Outcome::Failed {
                status,
                text: ReplyText::local(text),
            })
        };
        if recipient.is_empty() || !flight::is_clean(recipient) {
            return failed(
                EnhancedStatus::RECIPIENT_SYNTAX,
                "recipient address cannot be sent",
            );
        }
        if !utf8 && !recipient.is_ascii() {
            return failed(
                EnhancedStatus::NON_ASCII_ADDRESS,
                "message does not ask for SMTPUTF8",
            );
        }
        if *room == 0 || !self.domain_fits(recipient) {
            return Slot::Over(flight::next_batch(
                "more recipients than one transaction takes",
            ));
        }
        *room -= 1;
        Slot::Pending
    }

    /// RFC 9422 RCPTDOMAINMAX.
    fn domain_fits(&mut self, recipient: &[u8]) -> bool {
        let Some(max) = self.capabilities.recipient_domains_max else {
            return true;
        };
        let from = memchr::memrchr(b'@', recipient).map_or(0, |at| at + 1);
        let domain = recipient[from..].to_ascii_lowercase();
        if self.domains.iter().any(|known| **known == *domain) {
            return true;
        }
        if self.domains.len() >= max as usize {
            self.domains_full = true;
            return false;
        }
        self.domains.push(domain.into());
        true
    }

    /// Queues all commands that may be sent before a reply (RFC 2920 3.1, RFC 3030 4.2).
    fn queue_group(&mut self, flight: &mut Flight, seq: u64, mut line: Vec<u8>) {
        let mut step = flight.awaiting;
        while step < Step::Go {
            flight.write(step, &self.capabilities, &mut line);
            flight.queued = step;
            step = flight.after(step);
        }
        if step == Step::Go {
            flight.write(Step::Go, &self.capabilities, &mut line);
            flight.queued = Step::Go;
            self.push(line);
        } else if flight.size <= self.config.eager_bytes_max {
            self.queue_chunk(flight, seq, line);
        } else {
            self.push(line);
        }
    }

    /// Queues BDAT LAST with the content, behind the commands in `line`.
    fn queue_chunk(&mut self, flight: &mut Flight, seq: u64, mut line: Vec<u8>) {
        flight.write(Step::End, &self.capabilities, &mut line);
        flight.queued = Step::End;
        self.push(line);
        let pieces = std::mem::take(&mut flight.transaction.content);
        self.outgoing.extend(pieces.into_iter().map(Item::Piece));
        self.outgoing.push_back(Item::End(seq));
    }

    fn quit_if_done(&mut self) {
        if self.quit_wanted && self.state == State::Ready && self.flights.is_empty() {
            self.outgoing
                .push_back(Item::Piece(Bytes::from_static(b"QUIT\r\n")));
            self.state = State::Quitting;
        }
    }

    /// Acts on one whole reply.
    fn reply(&mut self, reply: ReplyRef<'_>, events: &mut Vec<ClientEvent>) {
        match self.state {
            State::Closed => {}
            State::Quitting => self.close(events),
            State::Greeting => match reply.code {
                220 => {
                    self.hello("EHLO", State::Ehlo);
                }
                400.. => self.refused(reply, events),
                _ => self.lose("the greeting is no greeting", events),
            },
            State::Ehlo | State::Helo => self.hello_reply(reply, events),
            State::Ready if reply.code == 421 => self.host_down(reply, events),
            State::Ready => self.flight_reply(reply, events),
        }
    }

    fn hello(&mut self, verb: &str, state: State) {
        self.push(format!("{verb} {}\r\n", self.config.helo).into_bytes());
        self.state = state;
    }

    fn hello_reply(&mut self, reply: ReplyRef<'_>, events: &mut Vec<ClientEvent>) {
        if !self.outgoing.is_empty() && reply.code < 400 {
            return self.lose("a reply came before its command", events);
        }
        match (reply.code, self.state) {
            (250, state) => {
                if state == State::Ehlo {
                    let lines = reply.text.split(|octet| *octet == b'\n').skip(1);
                    lines.for_each(|line| self.capabilities.learn(line));
                }
                self.state = State::Ready;
                events.push(ClientEvent::Ready);
                self.quit_if_done();
            }
            // RFC 7504 4: 521 is final; RFC 5321 3.2: otherwise EHLO may just be unknown.
            (500..=520 | 522..=555 | 557.., State::Ehlo) => {
                self.outgoing.clear();
                self.hello("HELO", State::Helo);
            }
            (400.., _) => self.refused(reply, events),
            _ => self.lose("the reply to EHLO makes no sense", events),
        }
    }

    fn refused(&mut self, reply: ReplyRef<'_>, events: &mut Vec<ClientEvent>) {
        let permanent = reply.code >= 500;
        events.push(ClientEvent::Refused {
            reply: reply.to_reply(),
            permanent,
        });
        self.close(events);
    }

    /// 421: the host takes nothing more now (RFC 5321 3.8). What it did not answer, it does not
    /// have.
    fn host_down(&mut self, reply: ReplyRef<'_>, events: &mut Vec<ClientEvent>) {
        let text = reply.to_text();
        let deferred = Outcome::Deferred {
            status: reply.status(),
            text,
            cause: Cause::Host,
        };
        for mut flight in std::mem::take(&mut self.flights) {
            flight.settle_open(&deferred);
            events.push(flight.done());
        }
        self.close(events);
    }

    /// A reply to a command of the oldest flight.
    fn flight_reply(&mut self, reply: ReplyRef<'_>, events: &mut Vec<ClientEvent>) {
        let Some(flight) = self.flights.front_mut() else {
            return self.lose("a reply came without a command", events);
        };
        if !flight.started {
            return self.lose("a reply came before its command", events);
        }
        let step = flight.awaiting;
        let understood = match step {
            Step::Reset => reply.class() == 2,
            Step::Mail => flight.mail_reply(reply),
            Step::Rcpt(index) => flight.rcpt_reply(index, reply),
            Step::Go => return self.go_reply(reply, events),
            Step::End => return self.end_reply(reply, events),
        };
        if !understood {
            return self.lose("the reply does not fit its command", events);
        }
        flight.awaiting = flight.after(step);
        if flight.awaiting > flight.queued {
            self.queue_next(events);
        }
    }

    /// Queues the next command of the oldest flight, or ends it where nothing is left to try.
    fn queue_next(&mut self, events: &mut Vec<ClientEvent>) {
        let Some(mut flight) = self.flights.pop_front() else {
            return;
        };
        let step = flight.awaiting;
        if flight.mail_refused || (step >= Step::Go && flight.accepted == 0) {
            // The peer has the sender still, where it took it.
            self.reset_needed = !flight.mail_refused;
            return self.finish(flight, events);
        }
        let mut line = Vec::new();
        if step == Step::End {
            self.queue_chunk(&mut flight, self.first, line);
        } else {
            flight.write(step, &self.capabilities, &mut line);
            flight.queued = step;
            self.push(line);
        }
        self.flights.push_front(flight);
    }

    /// The reply to DATA.
    fn go_reply(&mut self, reply: ReplyRef<'_>, events: &mut Vec<ClientEvent>) {
        let Some(mut flight) = self.flights.pop_front() else {
            return;
        };
        if reply.code >= 400 {
            flight.settle_accepted(reply);
            self.reset_needed = !flight.mail_refused;
            return self.finish(flight, events);
        }
        let go = reply.code == 354;
        if go {
            // RFC 2920 3.1: 354 although every recipient was refused; the end alone is sent.
            let pieces = std::mem::take(&mut flight.transaction.content);
            let pieces = if flight.accepted == 0 {
                Vec::new()
            } else {
                pieces
            };
            self.outgoing.push_back(Item::Body(Stuffer::new(pieces)));
            self.outgoing.push_back(Item::End(self.first));
            flight.queued = Step::End;
            flight.awaiting = Step::End;
        }
        self.flights.push_front(flight);
        if !go {
            self.lose("the reply to DATA makes no sense", events);
        }
    }

    /// The reply to the end of data, or to BDAT LAST.
    fn end_reply(&mut self, reply: ReplyRef<'_>, events: &mut Vec<ClientEvent>) {
        let Some(mut flight) = self.flights.pop_front() else {
            return;
        };
        let early = flight.end.is_none();
        if reply.class() == 3 || (early && reply.class() == 2) {
            self.flights.push_front(flight);
            return self.lose("the reply does not fit the content", events);
        }
        if reply.class() == 2 && flight.chunking && flight.contradicted {
            // MAIL was refused, and yet recipients and content were taken: who has what is unknown.
            flight.doubt("the peer accepted a message whose sender it had refused");
            self.finish(flight, events);
            return self.lose("the peer contradicts itself", events);
        }
        flight.settle_accepted(reply);
        // After the end of DATA nothing is left open (RFC 5321 4.1.1.4). A transaction that is
        // already behind this one brought its own RSET.
        let unclear = flight.chunking && reply.class() != 2 && !flight.mail_refused;
        self.reset_needed = unclear && self.flights.is_empty();
        self.finish(flight, events);
        if early {
            // The rest of the content has nowhere to go.
            self.lose("the peer refused the content before its end", events);
        }
    }

    /// The oldest flight, already taken off, is over.
    fn finish(&mut self, flight: Flight, events: &mut Vec<ClientEvent>) {
        self.first += 1;
        events.push(flight.done());
        self.quit_if_done();
    }

    /// The connection is of no more use. What was sent whole is ambiguous, the rest deferred.
    fn lose(&mut self, why: &str, events: &mut Vec<ClientEvent>) {
        let reached = self.handed - self.unsent;
        if !self.flights.is_empty() {
            let status = EnhancedStatus::BAD_CONNECTION;
            let text = ReplyText::local(why);
            for mut flight in std::mem::take(&mut self.flights) {
                let text = text.clone();
                let whole = flight.end.is_some_and(|end| end <= reached);
                flight.settle_open(&if whole {
                    Outcome::Ambiguous { status, text }
                } else {
                    Outcome::Deferred {
                        status,
                        text,
                        cause: Cause::Connection,
                    }
                });
                events.push(flight.done());
            }
        }
        self.close(events);
    }

    fn close(&mut self, events: &mut Vec<ClientEvent>) {
        if self.state != State::Closed {
            self.state = State::Closed;
            self.outgoing.clear();
            self.waiting_since = None;
            events.push(ClientEvent::Closed);
        }
    }
}

#[cfg(test)]
mod tests;
