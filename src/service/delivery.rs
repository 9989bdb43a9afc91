//! delivery - outbound SMTP service.
//!
//! Role: one task per connection: find a host of the site, connect from the source's address, send
//! what the brain assigns, report one outcome per recipient.
//! Flow: `Dial` -> hosts -> `Port::connect` -> `smtp::Client`; `Assign` -> `Held` -> `Transaction`
//! -> `Outcome` per recipient -> `Dispatch::attempted`.
//! Shard: the home shard of the egress path.
//! Limits: `limits::DIAL_ADDRESSES_MAX` addresses per dial, the client machine's own deadlines.
//! Failure: a lost connection ends each transaction in flight with its right outcome: deferred
//! where the message cannot have been taken, ambiguous where the end-of-data reply is missing.
//! Security: parses hostile replies (bounded in `smtp::reply`).
//! Standards: RFC 5321 4.5.4, 5.1; RFC 2920; RFC 3030.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;

use crate::engine::{Class, NetError, Port, Signal, Stream};
use crate::limits;
use crate::message::MessageId;
use crate::queue::{Cause, CauseKind, ConnectionId, EntryId};
use crate::service::dispatch::{Dispatch, Path};
use crate::service::hands::{Mark, Owner};
use crate::service::held::Held;
use crate::service::mesh::Failure;
use crate::smtp::client::{
    self, Client, ClientConfig, ClientEvent, Disconnect, DsnParameters, Outcome, RecipientDsn,
    Transaction,
};
use crate::time::Mono;

/// What the brain's side and a connection's task share.
#[derive(Debug)]
pub struct Link {
    assigned: RefCell<VecDeque<EntryId>>,
    /// What is in hand: known here, because the task may die with it.
    taken: RefCell<Vec<Taken>>,
    owner: Owner,
    closing: Cell<bool>,
    changed: Signal,
}

/// An entry in the hands of a connection.
#[derive(Debug)]
pub struct Taken {
    /// The entry.
    pub entry: EntryId,
    /// Recipients whose end has been reported.
    pub settled: Vec<u32>,
    mark: Mark,
}

impl Taken {
    /// The message.
    #[must_use]
    pub fn id(&self) -> MessageId {
        self.mark.id()
    }
}

impl Link {
    /// The link of a new connection.
    #[must_use]
    pub fn new(owner: Owner) -> Self {
        Self {
            assigned: RefCell::default(),
            taken: RefCell::default(),
            owner,
            closing: Cell::new(false),
            changed: Signal::default(),
        }
    }

    /// Who the connection is, among those that have something in hand.
    #[must_use]
    pub fn owner(&self) -> Owner {
        self.owner
    }

    /// Notes an entry as in hand.
    pub fn take(&self, entry: EntryId, mark: Mark) {
        let settled = Vec::new();
        self.taken.borrow_mut().push(Taken {
            entry,
            settled,
            mark,
        });
    }

    /// The entry is in hand no more.
    pub fn let_go(&self, entry: EntryId) {
        self.taken.borrow_mut().retain(|taken| taken.entry != entry);
    }

    fn settled(&self, entry: EntryId, recipients: impl Iterator<Item = u32>) {
        let mut taken = self.taken.borrow_mut();
        if let Some(taken) = taken.iter_mut().find(|taken| taken.entry == entry) {
            taken.settled.extend(recipients);
        }
    }

    /// All that was in hand, when the task that had it is dead.
    #[must_use]
    pub fn taken_over(&self) -> Vec<Taken> {
        self.taken.take()
    }

    /// Hands an entry to the connection.
    pub fn assign(&self, entry: EntryId) {
        self.assigned.borrow_mut().push_back(entry);
        self.changed.raise();
    }

    /// Asks the connection to say QUIT once nothing is in flight.
    pub fn close(&self) {
        self.closing.set(true);
        self.changed.raise();
    }

    /// As [`Link::close`], and nothing that is assigned but not begun is begun any more.
    pub fn stop(&self) {
        self.assigned.borrow_mut().clear();
        self.close();
    }

    /// Whether a transaction is under way: a drain waits for its end.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        !self.taken.borrow().is_empty()
    }

    /// The next entry that is assigned and not begun.
    pub fn next(&self) -> Option<EntryId> {
        self.assigned.borrow_mut().pop_front()
    }
}

/// An entry that this connection has in hand, possibly over several transactions.
struct InHand {
    entry: EntryId,
    held: Arc<Held>,
    /// What is sent: the message, or its 7-bit form.
    form: Arc<Held>,
    /// Recipients that no transaction has tried yet, in order.
    untried: VecDeque<u32>,
    /// Recipients of the transaction in flight, in its order.
    trying: Vec<u32>,
    /// Recipients to try again, and why the last of them was put off.
    put_off: Vec<u32>,
    cause: Cause,
}

/// Drives one connection from its dial to its end and reports both to the brain; also where the
/// task panics.
pub async fn connection<P: Port>(
    dispatch: Rc<Dispatch<P>>,
    path: Rc<Path>,
    id: ConnectionId,
    link: Rc<Link>,
) {
    let (hands, owner) = (Rc::clone(dispatch.hands()), link.owner());
    let _witness = Witness {
        dispatch: Rc::clone(&dispatch),
        id,
        link: Rc::clone(&link),
    };
    hands.during(owner, drive(dispatch, path, id, link)).await;
}

/// Sees to it that the brain hears of a connection whose task has panicked: a bug that one message
/// or one peer brings out must not leave mail in hand for ever, nor a connection counted.
struct Witness<P: Port> {
    dispatch: Rc<Dispatch<P>>,
    id: ConnectionId,
    link: Rc<Link>,
}

impl<P: Port> Drop for Witness<P> {
    fn drop(&mut self) {
        // An orderly end, or that of the whole process, was reported or needs no report.
        if !std::thread::panicking() {
            return;
        }
        let (dispatch, id, link) = (Rc::clone(&self.dispatch), self.id, Rc::clone(&self.link));
        // By a task of its own: nothing more may go wrong while this one unwinds.
        self.dispatch
            .port
            .spawn(Class::Control, async move { dispatch.mourn(id, &link) });
    }
}

async fn drive<P: Port>(
    dispatch: Rc<Dispatch<P>>,
    path: Rc<Path>,
    id: ConnectionId,
    link: Rc<Link>,
) {
    if dispatch.is_dead_end(&path).await {
        turn_back(&dispatch, id, &link).await;
        return;
    }
    let mut failure = Cause::bare(CauseKind::Connection);
    let addresses = match dispatch.addresses(&path).await {
        Ok(addresses) => addresses,
        Err(cause) => {
            dispatch.dial_failed(id, cause);
            return;
        }
    };
    for host in addresses.iter().take(limits::DIAL_ADDRESSES_MAX) {
        let mut connection = match open(&dispatch, &path, host).await {
            Ok(stream) => Connection::new(&dispatch, &path, id, &link, stream, host),
            Err(error) => {
                let text = format!("{} [{}]: {error}", host.name, host.address);
                failure = Cause::new(CauseKind::Connection, &text);
                continue;
            }
        };
        match connection.greet().await {
            Ok(()) => {
                dispatch.connected(id, connection.slots());
                connection.serve().await;
                return;
            }
            Err(cause) => failure = cause,
        }
    }
    dispatch.dial_failed(id, failure);
}

/// Takes the place of a connection where there is nowhere to connect to: every entry that the brain
/// assigns is routed anew.
async fn turn_back<P: Port>(dispatch: &Dispatch<P>, id: ConnectionId, link: &Link) {
    dispatch.connected(id, 1);
    loop {
        while let Some(entry) = link.next() {
            if let Some(work) = dispatch.begin(entry, link, true).await {
                dispatch.reroute(entry, &work);
                link.let_go(entry);
            }
            dispatch.free(id);
        }
        if link.closing.get() {
            break;
        }
        link.changed.raised().await;
    }
    dispatch.closed(id, Cause::IDLE);
}

/// One address to try for a site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostAddress {
    /// The host's name, for logs, DSNs and (later) certificates.
    pub name: Arc<str>,
    /// Where it listens.
    pub address: SocketAddr,
}

async fn open<P: Port>(
    dispatch: &Dispatch<P>,
    path: &Path,
    host: &HostAddress,
) -> Result<P::Stream, NetError> {
    let deadline = dispatch.port.now().after(dispatch.settings.connect_timeout);
    dispatch
        .port
        .connect(path.source.address, host.address, deadline)
        .await
}

struct Connection<'a, P: Port> {
    dispatch: &'a Rc<Dispatch<P>>,
    id: ConnectionId,
    link: &'a Link,
    host: &'a HostAddress,
    stream: P::Stream,
    client: Client,
    in_hand: Vec<InHand>,
    events: Vec<ClientEvent>,
    pieces: Vec<Bytes>,
    /// The peer has taken a message.
    accepted: bool,
    /// The brain knows that the connection is gone.
    gone: bool,
}

/// What a connection's task woke up for.
enum Woken<C> {
    Input(C),
    Assigned,
    Deadline,
    Lost(Disconnect),
}

impl<'a, P: Port> Connection<'a, P> {
    fn new(
        dispatch: &'a Rc<Dispatch<P>>,
        path: &Path,
        id: ConnectionId,
        link: &'a Link,
        stream: P::Stream,
        host: &'a HostAddress,
    ) -> Self {
        let config = ClientConfig {
            helo: Arc::clone(&path.source.helo),
            ..dispatch.settings.client.clone()
        };
        let client = Client::new(config);
        let (in_hand, events, pieces) = (Vec::new(), Vec::new(), Vec::new());
        Self {
            dispatch,
            id,
            link,
            host,
            stream,
            client,
            in_hand,
            events,
            pieces,
            accepted: false,
            gone: false,
        }
    }

    /// How many transactions the connection takes at once.
    fn slots(&self) -> u32 {
        u32::from(self.dispatch.settings.client.pipeline_depth)
    }

    /// Waits for the greeting and the answer to EHLO.
    async fn greet(&mut self) -> Result<(), Cause> {
        loop {
            self.send_output().await;
            if !self.events.is_empty() {
                // Only the first: what comes behind it is for `serve`.
                match self.events.remove(0) {
                    ClientEvent::Ready => return Ok(()),
                    ClientEvent::Refused { reply, .. } => {
                        let text = self.at_host(reply.text().as_str());
                        return Err(Cause::new(CauseKind::Host, &text));
                    }
                    ClientEvent::Closed => {
                        let text = self.at_host("the connection ended before the greeting did");
                        return Err(Cause::new(CauseKind::Connection, &text));
                    }
                    ClientEvent::Done { .. } => {
                        unreachable!("no transaction was given to the machine yet")
                    }
                }
            }
            let deadline = self.client.deadline().unwrap_or(Mono::NEVER);
            let woken = self.wait(deadline, false).await;
            self.woken(woken);
        }
    }

    fn at_host(&self, text: &str) -> String {
        format!("{} [{}]: {text}", self.host.name, self.host.address.ip())
    }

    /// Sends what is assigned until the connection ends, and reports that.
    async fn serve(&mut self) {
        loop {
            let events = std::mem::take(&mut self.events);
            // The brain hears of the end before the outcomes: it must not count a connection that
            // is gone when it decides about them, nor assign anything to it.
            if let Some(cause) = self.end_of(&events) {
                self.gone = true;
                self.dispatch.closed(self.id, cause);
            }
            for event in events {
                if let ClientEvent::Done { token, outcomes } = event {
                    self.done(token, outcomes);
                }
            }
            if self.gone {
                self.give_back();
                return;
            }
            // What was done makes room: the commands of the next transaction go out with the
            // content that the same replies asked for, in one segment instead of two.
            self.begin_assigned().await;
            self.send_output().await;
            if self.has_work() {
                continue;
            }
            let idle = self.in_hand.is_empty();
            if idle && (self.link.closing.get() || self.client.is_spent()) {
                self.client.quit();
                self.send_output().await;
            }
            // No deadline of its own while idle: the brain closes what has been idle for long.
            let deadline = self.client.deadline().unwrap_or(Mono::NEVER);
            let woken = self.wait(deadline, true).await;
            self.woken(woken);
        }
    }

    /// Why the connection ended, where one of these events is its end.
    fn end_of(&self, events: &[ClientEvent]) -> Option<Cause> {
        let mut accepted = self.accepted;
        let (mut ended, mut cause) = (false, Cause::IDLE);
        for event in events {
            match event {
                ClientEvent::Closed => ended = true,
                ClientEvent::Ready => {}
                ClientEvent::Refused { reply, .. } => {
                    ended = true;
                    cause = Cause::new(CauseKind::Host, &self.at_host(reply.text().as_str()));
                }
                ClientEvent::Done { outcomes, .. } => {
                    accepted |= outcomes.iter().any(is_delivered);
                    if let Some((kind, text)) = outcomes.iter().find_map(ends_connection) {
                        cause = Cause::new(kind, &self.at_host(text));
                    }
                }
            }
        }
        if accepted && cause.kind != CauseKind::Idle {
            cause.kind = CauseKind::Spent;
        }
        ended.then_some(cause)
    }

    /// Whether something can be sent or was answered without waiting.
    fn has_work(&self) -> bool {
        !self.events.is_empty()
            || (self.client.can_send()
                && (self.may_begin() || self.in_hand.iter().any(|hand| hand.trying.is_empty())))
    }

    /// Whether the next assigned entry may be begun: some are alone on their connection.
    fn may_begin(&self) -> bool {
        let Some(next) = self.link.assigned.borrow().front().copied() else {
            return false;
        };
        let mut in_hand = self.in_hand.iter();
        self.in_hand.is_empty()
            || !(self.dispatch.goes_alone(next)
                || in_hand.any(|hand| self.dispatch.goes_alone(hand.entry)))
    }

    async fn wait(
        &mut self,
        deadline: Mono,
        assignments: bool,
    ) -> Woken<<P::Stream as Stream>::Chunk> {
        poll_fn(|context| {
            if assignments && self.link.changed.poll_raised(context).is_ready() {
                return Poll::Ready(Woken::Assigned);
            }
            self.stream
                .poll_recv(context, deadline)
                .map(|result| match result {
                    Ok(chunk) if chunk.is_empty() => Woken::Lost(Disconnect::Eof),
                    Ok(chunk) => Woken::Input(chunk),
                    Err(NetError::TimedOut) => Woken::Deadline,
                    Err(_) => Woken::Lost(Disconnect::Reset),
                })
        })
        .await
    }

    fn woken<C: Deref<Target = [u8]>>(&mut self, woken: Woken<C>) {
        let now = self.dispatch.port.now();
        match woken {
            Woken::Input(chunk) => self.client.input(&chunk, now, &mut self.events),
            Woken::Assigned => {}
            Woken::Deadline => self.client.timed_out(now, &mut self.events),
            Woken::Lost(how) => self.client.disconnected(how, &mut self.events),
        }
    }

    async fn send_output(&mut self) {
        // The machine yields a long message in portions of what one gathered write takes.
        while self
            .client
            .poll_output(self.dispatch.port.now(), &mut self.pieces)
        {
            let pieces = std::mem::take(&mut self.pieces);
            let deadline = self.dispatch.port.now().after(limits::SEND_TIMEOUT);
            if self.stream.send(pieces, deadline).await.is_err() {
                self.client
                    .disconnected(Disconnect::Reset, &mut self.events);
                return;
            }
        }
    }

    /// Starts transactions for what is assigned, as far as the machine takes them.
    async fn begin_assigned(&mut self) {
        while self.client.can_send() {
            if let Some(hand) = self.in_hand.iter_mut().find(|hand| hand.trying.is_empty()) {
                let recipients_max = self.client.recipients_max();
                let transaction = next_transaction(hand, recipients_max);
                let at_once = self.client.send(transaction);
                self.events.extend(at_once);
                if !self.events.is_empty() {
                    return;
                }
                continue;
            }
            if !self.may_begin() {
                return;
            }
            let Some(entry) = self.link.next() else {
                return;
            };
            let eight_bit_mime = self.client.capabilities().eight_bit_mime;
            let begun = self.dispatch.begin(entry, self.link, eight_bit_mime);
            let Some(work) = begun.await else {
                // The message is gone or unreadable; the dispatcher has told the brain.
                self.dispatch.free(self.id);
                continue;
            };
            let hand = InHand {
                entry,
                held: work.held,
                form: work.form,
                untried: work.recipients,
                trying: Vec::new(),
                put_off: Vec::new(),
                cause: Cause::SETTLED,
            };
            self.in_hand.push(hand);
        }
    }

    /// One transaction has ended: settle what can be settled, go on with the rest of the entry.
    fn done(&mut self, token: u64, outcomes: Vec<Outcome>) {
        let position = self
            .in_hand
            .iter()
            .position(|hand| hand.entry.to_bits() == token);
        let Some(position) = position else {
            unreachable!("the machine ended a transaction that it was not given")
        };
        let hand = &mut self.in_hand[position];
        let tried = std::mem::take(&mut hand.trying);
        assert_eq!(tried.len(), outcomes.len(), "one outcome per recipient");
        let mut attempt = Attempt::default();
        for (recipient, outcome) in tried.into_iter().zip(outcomes) {
            attempt.sort(recipient, outcome, self.host);
        }
        self.accepted |= !attempt.delivered.is_empty();
        let next_batch = attempt.next_batch;
        if let Some(mut cause) = attempt.cause.take() {
            let lost = matches!(cause.kind, CauseKind::Host | CauseKind::Connection);
            if lost && (attempt.refused || !hand.put_off.is_empty()) {
                // Some recipients were put off for themselves, and must wait.
                cause.kind = CauseKind::Recipient;
            } else if lost && self.accepted {
                cause.kind = CauseKind::Spent;
            }
            hand.cause = cause;
        }
        hand.put_off.append(&mut attempt.put_off);
        // Recipients that the peer wants in a transaction of their own go to the front again.
        for recipient in next_batch.into_iter().rev() {
            hand.untried.push_front(recipient);
        }
        let held = Arc::clone(&hand.held);
        let failed = attempt.failed.iter().map(|failure| failure.recipient);
        self.link
            .settled(hand.entry, attempt.delivered.iter().copied().chain(failed));
        self.dispatch
            .settle_attempt(&held, attempt.delivered, attempt.failed);
        if hand.untried.is_empty() || self.client.is_spent() {
            self.end_entry(position);
        }
    }

    /// Reports an entry that this connection will not touch again.
    fn end_entry(&mut self, position: usize) {
        let mut hand = self.in_hand.swap_remove(position);
        if !hand.untried.is_empty() && hand.put_off.is_empty() {
            hand.cause = Cause::bare(CauseKind::NotTried);
        }
        hand.put_off.extend(hand.untried);
        self.dispatch
            .attempted(hand.entry, &hand.held, &hand.put_off, hand.cause);
        self.link.let_go(hand.entry);
        // One that takes nothing more has no free slot: it ends now.
        if !self.gone && !self.client.is_spent() {
            self.dispatch.free(self.id);
        }
    }

    /// Returns everything that was not sent to the brain, after the connection's end.
    fn give_back(&mut self) {
        while !self.in_hand.is_empty() {
            assert!(
                self.in_hand[0].trying.is_empty(),
                "a transaction outlived its connection"
            );
            self.end_entry(0);
        }
        while let Some(entry) = self.link.next() {
            self.dispatch
                .not_tried(entry, Cause::bare(CauseKind::NotTried));
        }
    }
}

fn is_delivered(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Delivered { .. })
}

/// What an outcome says about the end of its connection.
fn ends_connection(outcome: &Outcome) -> Option<(CauseKind, &str)> {
    match outcome {
        Outcome::Deferred {
            cause: client::Cause::Host,
            text,
            ..
        } => Some((CauseKind::Host, text.as_str())),
        Outcome::Deferred {
            cause: client::Cause::Connection,
            text,
            ..
        }
        | Outcome::Ambiguous { text, .. } => Some((CauseKind::Connection, text.as_str())),
        _ => None,
    }
}

/// The outcomes of one transaction, sorted by what is to be done about them.
#[derive(Default)]
struct Attempt {
    delivered: Vec<u32>,
    failed: Vec<Failure>,
    put_off: Vec<u32>,
    next_batch: Vec<u32>,
    cause: Option<Cause>,
    /// A recipient was put off for a reason of its own, not because the connection ended.
    refused: bool,
}

impl Attempt {
    fn sort(&mut self, recipient: u32, outcome: Outcome, host: &HostAddress) {
        match outcome {
            Outcome::Delivered { .. } => self.delivered.push(recipient),
            Outcome::Failed { status, text } => self.failed.push(Failure {
                recipient,
                status,
                text: Box::from(text.as_str()),
                remote: Some(Box::from(&*host.name)),
            }),
            Outcome::Deferred {
                cause: client::Cause::NextBatch,
                ..
            } => {
                self.next_batch.push(recipient);
            }
            Outcome::Deferred { cause, text, .. } => {
                self.put_off.push(recipient);
                let kind = match cause {
                    client::Cause::Host => CauseKind::Host,
                    client::Cause::Connection => CauseKind::Connection,
                    client::Cause::ThisRecipient
                    | client::Cause::ThisMessage
                    | client::Cause::NextBatch => CauseKind::Recipient,
                };
                self.refused |= kind == CauseKind::Recipient;
                self.cause = Some(Cause::new(kind, text.as_str()));
            }
            Outcome::Ambiguous { .. } => {
                self.put_off.push(recipient);
                self.refused = true;
                self.cause = Some(Cause::bare(CauseKind::Ambiguous));
            }
        }
    }
}

/// The next transaction for an entry: as many untried recipients as one transaction may have.
fn next_transaction(hand: &mut InHand, recipients_max: u32) -> Transaction {
    let most = usize::try_from(recipients_max).unwrap_or(usize::MAX).max(1);
    let count = hand.untried.len().min(most);
    hand.trying = hand.untried.drain(..count).collect();
    assert!(
        !hand.trying.is_empty(),
        "an entry without recipients was assigned"
    );
    transaction(hand)
}

/// What the machine needs to send a message to these of its recipients. The bytes are shared.
fn transaction(hand: &InHand) -> Transaction {
    let (envelope, form) = (&hand.held.envelope, &hand.form);
    let chosen = || {
        hand.trying
            .iter()
            .filter_map(|index| envelope.recipients.get(*index as usize))
    };
    let text = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    let wants_dsn = envelope.ret.is_some()
        || envelope.envid.is_some()
        || chosen().any(|to| to.notify.is_specified() || to.orcpt.is_some());
    let dsn = wants_dsn.then(|| {
        Box::new(DsnParameters {
            ret: envelope.ret,
            envid: envelope.envid.as_deref().map(text),
            recipients: chosen()
                .map(|to| RecipientDsn {
                    notify: to.notify,
                    orcpt: to.orcpt.as_deref().map(text),
                })
                .collect(),
        })
    });
    let mut content = Vec::with_capacity(2);
    content.extend(form.signature.get().cloned());
    content.push(form.content.clone());
    Transaction {
        token: hand.entry.to_bits(),
        sender: envelope
            .sender
            .as_ref()
            .map_or_else(Bytes::new, |sender| text(sender.as_str())),
        recipients: chosen().map(|to| text(to.address.as_str())).collect(),
        size: content
            .iter()
            .map(|piece| u64::try_from(piece.len()).unwrap_or(u64::MAX))
            .sum(),
        content,
        smtputf8: envelope.smtputf8,
        eight_bit: form.eight_bit,
        dsn,
    }
}
