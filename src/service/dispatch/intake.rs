//! intake - from an accepted message to its loads: the checks before it is stored, the choice of
//! its source, and the grouping of its recipients by domain.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::engine::Port;
use crate::limits;
use crate::message::{
    ArrivedBody, Content, Domain, EnhancedStatus, Envelope, MessageId, Watch, header,
};
use crate::queue::Recipients;
use crate::service::dispatch::{Dispatch, Load, Pool};
use crate::service::held::Held;
use crate::service::mesh::ShardMessage;
use crate::service::signer::SignError;
use crate::service::smtpd::{Intake, MovingSession};
use crate::service::spooler::Loaded;
use crate::smtp::reply::Reply;
use crate::smtp::server::{Inbound, Refusal};
use crate::spool::{AppendError, PendingRecipient, Stored};
use crate::time::Wall;

impl<P: Port> Dispatch<P> {
    /// Sends the recipients of a message on their way, by domain.
    fn dispatch(&self, held: &Arc<Held>, shared: bool, only: Option<&[PendingRecipient]>) {
        let envelope = &held.envelope;
        let keep = shared.then(|| Arc::clone(held));
        let source = self.choose_source(envelope);
        let whole = |index: u32| PendingRecipient {
            index,
            attempts: 0,
            next: Wall(0),
        };
        // The date says how old mail of an earlier life is; from here on only the clock counts,
        // which nobody sets, while the DNS is asked and the message crosses shards.
        let as_of = self.port.now();
        let age = match only {
            Some(_) => self.age_of(held.received_at),
            None => Duration::ZERO,
        };
        let load = |recipients, pending: PendingRecipient| Load {
            id: held.id,
            recipients,
            source,
            attempts: pending.attempts,
            due: pending.next,
            age,
            as_of,
            held: keep.clone(),
        };
        if let ([recipient], None) = (envelope.recipients.as_slice(), only) {
            self.place(
                recipient.address.domain(),
                load(Recipients::one(0), whole(0)),
            );
            return;
        }
        // Recipients of one domain in one state travel together.
        let mut groups: HashMap<(&Domain, u16, Wall), Vec<u32>> = HashMap::new();
        let mut group = |pending: PendingRecipient| {
            let Some(recipient) = envelope.recipients.get(pending.index as usize) else {
                return;
            };
            let key = (recipient.address.domain(), pending.attempts, pending.next);
            groups.entry(key).or_default().push(pending.index);
        };
        match only {
            Some(pending) => pending.iter().copied().for_each(&mut group),
            None => (0..)
                .take(envelope.recipients.len())
                .map(whole)
                .for_each(&mut group),
        }
        // In the order of the envelope: that of a hash table would differ from run to run.
        let mut groups: Vec<_> = groups.into_iter().collect();
        groups
            .iter_mut()
            .for_each(|(_, indexes)| indexes.sort_unstable());
        groups.sort_unstable_by_key(|(_, indexes)| indexes.first().copied());
        for ((domain, attempts, next), indexes) in groups {
            let Some(recipients) = Recipients::many(&indexes) else {
                continue;
            };
            let pending = PendingRecipient {
                index: 0,
                attempts,
                next,
            };
            self.place(domain, load(recipients, pending));
        }
    }

    /// Brings back what recovery found.
    pub fn restore(&self, loaded: Loaded) {
        let queued = loaded.queued;
        let held = Arc::new(Held::mapped(
            queued.id,
            loaded.envelope,
            bytes::Bytes::new(),
            queued.received_at,
        ));
        self.dispatch(&held, false, Some(&queued.pending));
    }

    /// The source that a message leaves from: named, or drawn from its pool by weight.
    pub(super) fn choose_source(&self, envelope: &Envelope) -> u16 {
        if let Some(number) = envelope
            .source
            .as_deref()
            .and_then(|name| self.source_number(name))
        {
            return number;
        }
        let named = envelope.pool.as_deref().and_then(|name| self.pool(name));
        let pool = named.unwrap_or(&self.settings.pools[self.settings.default_pool]);
        if let [(only, _)] = pool.members.as_slice() {
            return *only;
        }
        let total: u64 = pool
            .members
            .iter()
            .map(|(_, weight)| u64::from(*weight))
            .sum();
        let mut draw = self.port.random() % total.max(1);
        for (source, weight) in &pool.members {
            let weight = u64::from(*weight);
            if draw < weight {
                return *source;
            }
            draw -= weight;
        }
        pool.members[0].0
    }

    fn pool(&self, name: &str) -> Option<&Pool> {
        self.settings.pools.iter().find(|pool| *pool.name == *name)
    }

    /// A message is on stable storage: it may go out.
    pub(super) fn stored(
        &self,
        stored: &Stored,
        envelope: Envelope,
        content: Content,
        received_at: Wall,
        may_be_eight_bit: bool,
        body: Option<ArrivedBody>,
    ) {
        // Few messages are, and a field that is taken out may have held the only such octet.
        let content = content.bytes();
        let eight_bit = may_be_eight_bit && !content.is_ascii();
        let mut held = Held::new(stored.id(), envelope, content, received_at, eight_bit);
        held.body = body;
        let (held, shared) = held.fresh(&self.fresh);
        self.port
            .hurry(self.fresh.used() > limits::FRESH_BYTES_CALM);
        self.dispatch(&held, shared, None);
    }

    /// Looks at a message before it is stored: takes control fields out, refuses loops and names of
    /// pools and sources that do not exist (a typo must not send a campaign from the wrong
    /// address), and mail that nobody would sign where policy says so.
    fn check(&self, envelope: &mut Envelope, content: Content) -> Result<Content, Refusal> {
        let checked = header::check(content, envelope).map_err(|error| {
            let reply = Reply::new(error.code(), Some(error.status()), &error.to_string());
            Refusal::Policy(reply)
        })?;
        self.signer
            .admits(checked.content.as_slice(), &checked.scan)
            .map_err(|error| Refusal::Policy(unsigned(error)))?;
        // The name that PowerMTA users give may be a pool here or a single source.
        if let Some(name) = &envelope.pool
            && self.pool(name).is_none()
            && envelope.source.is_none()
        {
            envelope.source = envelope.pool.take();
        }
        let unknown = envelope
            .pool
            .as_deref()
            .filter(|name| self.pool(name).is_none());
        let unknown = unknown.or_else(|| {
            envelope
                .source
                .as_deref()
                .filter(|name| self.source_number(name).is_none())
        });
        match unknown {
            None => Ok(checked.content),
            Some(name) => {
                let text = format!("no pool or source is called {name}");
                let reply = Reply::new(550, Some(EnhancedStatus::INVALID_ARGUMENTS), &text);
                Err(Refusal::Policy(reply))
            }
        }
    }

    fn source_number(&self, name: &str) -> Option<u16> {
        let position = self
            .settings
            .sources
            .iter()
            .position(|source| *source.name == *name);
        position.and_then(|position| u16::try_from(position).ok())
    }
}

/// Why mail that would go out unsigned is not taken.
fn unsigned(error: SignError) -> Reply {
    let (code, status, reason) = match error {
        SignError::Form(reason) => (554, EnhancedStatus::MEDIA, reason.to_string()),
        _ => {
            let reason = "no DKIM key for the domain of the From field".to_owned();
            (550, EnhancedStatus::NOT_AUTHORIZED, reason)
        }
    };
    let text = format!("{reason}; mail is not sent unsigned here");
    Reply::new(code, Some(status), &text)
}

impl<P: Port> Intake for Dispatch<P> {
    fn next_id(&self) -> MessageId {
        self.own_spool().next_id()
    }

    fn hand_over(&self, to: u16, session: Box<MovingSession>) -> Result<(), Box<MovingSession>> {
        // Never through the overflow: it stays here rather than wait.
        let letter = ShardMessage::Session(session);
        match self.mesh[usize::from(to)].try_send(letter) {
            Err(ShardMessage::Session(session)) => Err(session),
            _ => Ok(()),
        }
    }

    fn watch(&self, envelope: &Envelope) -> Option<Box<dyn Watch>> {
        self.signer.watch(envelope)
    }

    async fn accept(&self, id: MessageId, inbound: Box<Inbound>) -> Result<Stored, Refusal> {
        let Inbound {
            mut envelope,
            content,
            received_at,
            eight_bit,
            body,
            ..
        } = *inbound;
        let checked = self.check(&mut envelope, content);
        let content = checked.inspect_err(|_| self.count(|counters| counters.refused += 1))?;
        let appended = self
            .own_spool()
            .append(id, &envelope, &content, received_at)
            .await;
        let stored = appended.map_err(|error| match error {
            AppendError::Full => Refusal::InsufficientStorage,
            AppendError::Failed => Refusal::LocalError,
            AppendError::TooLarge => Refusal::Policy(Reply::new(
                552,
                Some(EnhancedStatus::MESSAGE_TOO_BIG),
                "the message is larger than the spool can hold",
            )),
        });
        match stored {
            Ok(stored) => {
                let recipients = u64::try_from(envelope.recipients.len()).unwrap_or(u64::MAX);
                let octets = u64::try_from(content.len()).unwrap_or(u64::MAX);
                self.count(|counters| {
                    counters.accepted += 1;
                    counters.accepted_recipients += recipients;
                    counters.accepted_bytes += octets;
                });
                self.stored(&stored, envelope, content, received_at, eight_bit, body);
                Ok(stored)
            }
            Err(refusal) => {
                self.count(|counters| counters.refused += 1);
                Err(refusal)
            }
        }
    }
}
