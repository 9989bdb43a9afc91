//! resolver - one shard's view of the DNS.
//!
//! Role: answers of the control thread's resolver, kept for as long as they are good, so that a
//! message for a known domain costs no message between threads.
//! Flow: `mail(domain)` -> cache, or `Question` to the control thread -> `answered` -> every
//! waiter.
//! Shard: each has its own; nothing is shared.
//! Limits: `limits::RESOLVER_ANSWERS_MAX` answers; lifetimes are clamped to
//! `limits::RESOLVER_TTL_MIN ..= limits::RESOLVER_TTL_MAX`.
//! Failure: a question that cannot be asked is answered with a temporary failure.
//! Standards: RFC 5321 5.1, RFC 2308 (negative answers are kept too).

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use crate::engine::Port;
use crate::limits;
use crate::routing::{DnsFailure, DnsResult, Host, HostAddresses, Mx};
use crate::time::Mono;

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Question {
    /// The MX records of a domain and the addresses of their hosts (or of the domain itself where
    /// it has none).
    Mail(Arc<str>),
    /// The addresses of one host.
    Host(Arc<str>),
}

/// All that the DNS says about a question; shared by every shard that asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MailAnswer {
    /// The MX records; for [`Question::Host`] always no data.
    pub mx: DnsResult<Vec<Mx>>,
    /// The addresses of each host that was looked up, by name in lower case without a final dot.
    pub addresses: HashMap<Arc<str>, HostAddresses>,
    /// For how long this is good.
    pub lifetime: Duration,
}

impl MailAnswer {
    /// The answer when nobody could be asked.
    #[must_use]
    pub fn unavailable() -> Self {
        let lifetime = limits::RESOLVER_TTL_MIN;
        Self {
            mx: Err(DnsFailure::Temporary),
            addresses: HashMap::new(),
            lifetime,
        }
    }

    /// The addresses of `hosts`, in their order; a host that was not looked up is unknown for now.
    #[must_use]
    pub fn addresses_of(&self, hosts: &[Host]) -> Vec<HostAddresses> {
        let unknown = || HostAddresses {
            v4: Err(DnsFailure::Temporary),
            v6: Err(DnsFailure::Temporary),
        };
        hosts
            .iter()
            .map(|host| {
                self.addresses
                    .get(&host.name)
                    .cloned()
                    .unwrap_or_else(unknown)
            })
            .collect()
    }
}

/// Puts a question to the control thread; false when that is impossible.
pub type Ask = Arc<dyn Fn(Question) -> bool + Send + Sync>;

/// One shard's resolver.
pub struct Resolver<P: Port> {
    port: P,
    ask: Ask,
    answers: RefCell<HashMap<Question, (Mono, Arc<MailAnswer>)>>,
    waiting: RefCell<HashMap<Question, Vec<Rc<Waiter>>>>,
}

#[derive(Default)]
struct Waiter {
    answer: RefCell<Option<(Mono, Arc<MailAnswer>)>>,
    waker: RefCell<Option<Waker>>,
}

/// An answer and how long it is good on this shard's clock.
#[derive(Debug, Clone)]
pub struct Known {
    /// What the DNS says.
    pub answer: Arc<MailAnswer>,
    /// Until when.
    pub until: Mono,
}

impl<P: Port> Resolver<P> {
    /// A resolver that knows nothing yet.
    pub fn new(port: P, ask: Ask) -> Self {
        Self {
            port,
            ask,
            answers: RefCell::default(),
            waiting: RefCell::default(),
        }
    }

    /// What the DNS says, from memory or by asking. Never fails: no answer is an answer too.
    pub async fn look_up(&self, question: Question) -> Known {
        if let Some((until, answer)) = self.answers.borrow().get(&question)
            && *until > self.port.now()
        {
            return Known {
                answer: Arc::clone(answer),
                until: *until,
            };
        }
        let waiter = Rc::new(Waiter::default());
        let first = {
            let mut waiting = self.waiting.borrow_mut();
            let waiters = waiting.entry(question.clone()).or_default();
            waiters.push(Rc::clone(&waiter));
            waiters.len() == 1
        };
        if first && !(self.ask)(question.clone()) {
            self.answered(&question, &Arc::new(MailAnswer::unavailable()));
        }
        let (until, answer) = poll_fn(|context| match waiter.answer.borrow_mut().take() {
            Some(answer) => Poll::Ready(answer),
            None => {
                *waiter.waker.borrow_mut() = Some(context.waker().clone());
                Poll::Pending
            }
        })
        .await;
        Known { answer, until }
    }

    /// An answer has come: keep it and wake whoever waits for it.
    pub fn answered(&self, question: &Question, answer: &Arc<MailAnswer>) {
        let lifetime = answer
            .lifetime
            .clamp(limits::RESOLVER_TTL_MIN, limits::RESOLVER_TTL_MAX);
        let until = self.port.now().after(lifetime);
        let mut answers = self.answers.borrow_mut();
        if answers.len() >= limits::RESOLVER_ANSWERS_MAX {
            // Rare, and cheap to recover from: the control thread has a cache of its own.
            answers.clear();
        }
        answers.insert(question.clone(), (until, Arc::clone(answer)));
        drop(answers);
        let waiters = self.waiting.borrow_mut().remove(question);
        for waiter in waiters.unwrap_or_default() {
            *waiter.answer.borrow_mut() = Some((until, Arc::clone(answer)));
            if let Some(waker) = waiter.waker.take() {
                waker.wake();
            }
        }
    }
}
