//! signer - DKIM signing for one shard.
//!
//! Role: give each message its signature fields once, before its first attempt.
//! Flow: `Held` -> key ring -> `dkim::prepare` (header and body hash) -> `dkim::Signer` -> `Held`.
//! Shard: the home shard of the egress path; a message for several sites is signed by whoever comes
//! first, and the others find the signature in the shared `Held`.
//! Limits: `limits::DKIM_JOBS_MAX` messages wait; more are put off as if the spool were slow.
//! Failure: a message that should be signed and cannot be is deferred, never sent unsigned.
//! Batching: no timer. A job waits one turn of the loop, in which every other task that is ready
//! submits its own; while a batch of eight runs (0.7 ms) the next one gathers.
//! Security: the only service that sees private keys, and only as `dkim` types without a `Debug`.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;

use crate::dkim::{
    BodyHash, Canon, Choice, KeyRing, Report, SignOptions, Signed, Signer, SignerConfig, Ticket,
    Unsigned, body_start, prepare,
};
use crate::engine::{Port, Signal};
use crate::message::header;
use crate::service::held::Held;

/// Why a message has no signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignError {
    /// Too many messages wait for signatures.
    Busy,
    /// The private key operation failed.
    Failed,
    /// No key for the From domain, and policy says that such mail is not sent.
    NoKey,
}

/// One shard's signing service.
pub struct SignService<P: Port> {
    port: P,
    ring: RefCell<Arc<KeyRing>>,
    options: SignOptions,
    signer: RefCell<Signer>,
    waiting: RefCell<HashMap<Ticket, Rc<Waiter>>>,
    work: Signal,
}

#[derive(Default)]
struct Waiter {
    fields: RefCell<Option<Result<Vec<u8>, SignError>>>,
    done: Signal,
}

impl<P: Port> SignService<P> {
    /// A service that signs with the keys of `ring`.
    pub fn new(port: P, ring: Arc<KeyRing>) -> Self {
        Self {
            port,
            ring: RefCell::new(ring),
            options: SignOptions::default(),
            signer: RefCell::new(Signer::new(SignerConfig::default())),
            waiting: RefCell::default(),
            work: Signal::default(),
        }
    }

    /// From now on other keys sign; what is under way ends with the old ones.
    pub fn rekey(&self, ring: Arc<KeyRing>) {
        *self.ring.borrow_mut() = ring;
    }

    /// What the signer has done so far.
    pub fn report(&self) -> Report {
        self.signer.borrow().report()
    }

    /// Sees to it that `held` has its signature fields, which may be none.
    ///
    /// # Errors
    /// It should have some and cannot get them now; it must not be sent.
    pub async fn sign(&self, held: &Held) -> Result<(), SignError> {
        if held.signature.get().is_some() {
            return Ok(());
        }
        let fields = match self.job(held)? {
            Some(job) => Bytes::from(self.queue(job).await?),
            None => Bytes::new(),
        };
        // Another shard may have been first; either signature is good.
        drop(held.signature.set(fields));
        Ok(())
    }

    /// The signatures that a message needs; none where nobody signs it.
    fn job(&self, held: &Held) -> Result<Option<Vec<Unsigned>>, SignError> {
        let ring = Arc::clone(&self.ring.borrow());
        if ring.is_empty() {
            return Ok(None);
        }
        let content = &held.content;
        let scan = header::scan(content);
        let from = scan.from_domain.and_then(|range| content.get(range));
        let from = from.and_then(|domain| std::str::from_utf8(domain).ok());
        let now = self.port.wall();
        let identities = match ring.choose(from, now) {
            Choice::Sign(identities) => identities,
            Choice::Unsigned => return Ok(None),
            Choice::Reject => return Err(SignError::NoKey),
        };
        let start = body_start(content);
        let body = BodyHash::of(Canon::Relaxed, content.get(start..).unwrap_or_default());
        // A message that cannot be signed by its form (no From field) goes out as it is.
        Ok(prepare(&content[..start], &body, &identities, &self.options, now).ok())
    }

    async fn queue(&self, job: Vec<Unsigned>) -> Result<Vec<u8>, SignError> {
        let submitted = self.signer.borrow_mut().submit(job);
        let ticket = submitted.map_err(|_| SignError::Busy)?;
        let waiter = Rc::new(Waiter::default());
        self.waiting.borrow_mut().insert(ticket, Rc::clone(&waiter));
        self.work.raise();
        waiter.done.raised().await;
        let fields = waiter.fields.borrow_mut().take();
        fields.unwrap_or(Err(SignError::Failed))
    }

    /// Runs batches while there is work; runs for ever.
    pub async fn run(self: Rc<Self>) {
        let mut signed = Vec::new();
        loop {
            self.work.raised().await;
            while self.signer.borrow().pending() > 0 {
                // A deadline in the past lets every ready task run first: they fill the lanes.
                self.port.sleep_until(self.port.now()).await;
                self.signer.borrow_mut().run_batch(&mut signed);
                for Signed { ticket, fields } in signed.drain(..) {
                    if let Some(waiter) = self.waiting.borrow_mut().remove(&ticket) {
                        *waiter.fields.borrow_mut() = Some(fields.map_err(|_| SignError::Failed));
                        waiter.done.raise();
                    }
                }
            }
        }
    }
}
