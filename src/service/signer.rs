//! signer - DKIM signing for one shard.
//!
//! Role: give each message its signature fields once, before its first attempt; its 7-bit form, for
//! receivers without 8BITMIME, is signed as a message of its own.
//! Flow: a message arrives -> `arrival` (body hash) -> `Held` -> key ring -> `dkim::prepare` (hash
//! of the header, and of a body that has none) -> `dkim::Signer` -> `Held`.
//! Shard: the home shard of the egress path; a message for several sites is signed by whoever comes
//! first, and the others find the signature in the shared `Held`.
//! Limits: `limits::DKIM_JOBS_MAX` messages wait; more are put off as if the spool were slow.
//! Failure: a message that should be signed and cannot be now is deferred, never sent unsigned. One
//! that can never be, by its form, is treated as one without a key.
//! Retries: the signature of a message that was put off is kept
//! (`limits::SIGNATURES_KEPT_BYTES_MAX`); one that was pushed out, or lost with the process, is
//! made again.
//! Batching: a job waits one turn of the loop, in which every other task that is ready submits its
//! own; while a batch of eight runs (0.7 ms) the next one gathers. A lone job waits for nothing
//! else; several that leave lanes empty wait for others, a millisecond at most, where batches
//! follow each other closely: a batch of six costs as much as one of eight.
//! Security: the only service that sees private keys, and only as `dkim` types without a `Debug`.

mod arrival;
mod kept;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;

use crate::dkim::{
    Choice, KeyRing, PrepareError, Report, SignOptions, Signed, Signer, SignerConfig, Ticket,
    Unsigned, body_start, prepare, signable,
};
use crate::engine::{Port, Signal, yield_now};
use crate::limits;
use crate::message::header::{self, HeaderScan};
use crate::message::{BodyHash, Envelope, MessageId, Watch};
use crate::service::held::Held;
use crate::time::Mono;

use self::arrival::Arrival;
use self::kept::Kept;

/// Why a message has no signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignError {
    /// Too many messages wait for signatures.
    Busy,
    /// The private key operation failed.
    Failed,
    /// No key for the From domain, and policy says that such mail is not sent.
    NoKey,
    /// The message has no form to sign, and policy says that such mail is not sent.
    Form(PrepareError),
}

/// One shard's signing service.
pub struct SignService<P: Port> {
    port: P,
    ring: RefCell<Arc<KeyRing>>,
    options: SignOptions,
    signer: RefCell<Signer>,
    waiting: RefCell<HashMap<Ticket, Rc<Waiter>>>,
    work: Signal,
    kept: RefCell<Kept>,
    reused: Cell<u64>,
    /// Messages whose body had been hashed when they were signed.
    hashed: Cell<u64>,
    /// Messages that somebody should have signed, whose form is none to sign.
    unsignable: Cell<u64>,
    /// When the last batch ended.
    last_batch: Cell<Mono>,
}

#[derive(Default)]
struct Waiter {
    fields: RefCell<Option<Result<Vec<u8>, SignError>>>,
    done: Signal,
}

impl<P: Port> SignService<P> {
    /// A service that signs with the keys of `ring` as `options` say.
    pub fn new(port: P, ring: Arc<KeyRing>, options: SignOptions) -> Self {
        Self {
            port,
            ring: RefCell::new(ring),
            options,
            signer: RefCell::new(Signer::new(SignerConfig::default())),
            waiting: RefCell::default(),
            work: Signal::default(),
            kept: RefCell::new(Kept::new(limits::SIGNATURES_KEPT_BYTES_MAX)),
            reused: Cell::new(0),
            hashed: Cell::new(0),
            unsignable: Cell::new(0),
            last_batch: Cell::new(Mono(0)),
        }
    }

    /// From now on other keys sign; what is under way ends with the old ones, and what was put off
    /// is signed anew: a key may have been replaced because somebody stole it.
    pub fn rekey(&self, ring: Arc<KeyRing>) {
        *self.ring.borrow_mut() = ring;
        self.kept.borrow_mut().clear();
    }

    /// Whether a message may be submitted.
    ///
    /// # Errors
    /// Policy says that unsigned mail is refused, and there is no key for its From domain, or it
    /// cannot be signed by its form.
    pub fn admits(&self, content: &[u8], scan: &HeaderScan) -> Result<(), SignError> {
        let ring = self.ring.borrow();
        if !ring.refuses_unsigned() {
            return Ok(());
        }
        let plain = header_of(content, scan).is_some() && self.options.fits(scan.fields as usize);
        if !(plain && scan.from_domain.is_some()) {
            signable(&content[..body_start(content)], &self.options).map_err(SignError::Form)?;
        }
        match ring.choose(from_domain(content, scan), self.port.wall()) {
            Choice::Reject => Err(SignError::NoKey),
            Choice::Sign(_) | Choice::Unsigned => Ok(()),
        }
    }

    /// Keeps the signature of a message that was put off, for its next attempt.
    pub fn keep(&self, held: &Held) {
        let forms = std::iter::once(held).chain(held.converted().map(|form| &**form));
        for form in forms {
            if let Some(fields) = form.signature.get().filter(|fields| !fields.is_empty()) {
                self.kept.borrow_mut().put(key(form), fields);
            }
        }
    }

    /// How many messages went out again with a signature that was kept.
    pub fn reused(&self) -> u64 {
        self.reused.get()
    }

    /// How many messages were signed with the hash of the body that was taken while they arrived.
    pub fn hashed_on_arrival(&self) -> u64 {
        self.hashed.get()
    }

    /// How many messages went out unsigned, although there was a key, because their form is none to
    /// sign; one that was put off counts with every attempt.
    pub fn unsignable(&self) -> u64 {
        self.unsignable.get()
    }

    /// Somebody who hashes the body of a message with this envelope while it arrives; nobody where
    /// it would not be signed.
    pub fn watch(&self, envelope: &Envelope) -> Option<Box<dyn Watch>> {
        let ring = self.ring.borrow();
        // With no identity there is nobody whose signature could want the hash.
        ring.identities().next()?;
        let sender = envelope.sender.as_ref();
        let sender = sender.map(|sender| sender.domain().as_str());
        // Mail is mostly from the domain that its envelope names: then the header need not be read.
        let asked = (!ring.may_sign(sender)).then(|| Arc::clone(&ring));
        Some(Box::new(Arrival::new(self.options.body_hasher(), asked)))
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
        let kept = self.kept.borrow_mut().get(key(held));
        let fields = match kept {
            Some(fields) => {
                self.reused.set(self.reused.get() + 1);
                fields
            }
            None => match self.job(held).await? {
                Some(job) => Bytes::from(self.queue(job).await?),
                None => Bytes::new(),
            },
        };
        // Another shard may have been first; either signature is good.
        drop(held.signature.set(fields));
        Ok(())
    }

    /// The signatures that a message needs; none where nobody signs it.
    async fn job(&self, held: &Held) -> Result<Option<Vec<Unsigned>>, SignError> {
        let ring = Arc::clone(&self.ring.borrow());
        if ring.is_empty() {
            return Ok(None);
        }
        let content = &held.content;
        let scan = header::scan(content);
        let now = self.port.wall();
        let identities = match ring.choose(from_domain(content, &scan), now) {
            Choice::Sign(identities) => identities,
            Choice::Unsigned => return Ok(None),
            // Our own notifications never pass a submission.
            Choice::Reject if held.envelope.sender.is_none() => return Ok(None),
            // It had a key when it was submitted, and the key is gone.
            Choice::Reject => return Err(SignError::NoKey),
        };
        let start = match header_of(content, &scan) {
            Some(header) => header.len(),
            None => body_start(content),
        };
        let body = self.body_hash(held, start).await;
        match prepare(&content[..start], &body, &identities, &self.options, now) {
            Ok(job) => Ok(Some(job)),
            // The submission refuses such mail: its conversion made it so, or it was stored under
            // another policy. Our own notifications pass no submission.
            Err(error) if ring.refuses_unsigned() && held.envelope.sender.is_some() => {
                Err(SignError::Form(error))
            }
            Err(error) => {
                self.sends_unsigned(held.id, error);
                Ok(None)
            }
        }
    }

    /// Counts a message that goes out unsigned because of its form, and says so ever more rarely.
    fn sends_unsigned(&self, id: MessageId, reason: PrepareError) {
        let before = self.unsignable.get();
        self.unsignable.set(before + 1);
        if is_due(before, before + 1) {
            tracing::warn!(
                %id,
                %reason,
                so_far = before + 1,
                "a message with a DKIM key for it goes out unsigned"
            );
        }
    }

    /// The hash of the body, which starts at `start`: as it was taken on arrival, if this is still
    /// that body.
    async fn body_hash(&self, held: &Held, start: usize) -> BodyHash {
        let body = held.content.get(start..).unwrap_or_default();
        match &held.body {
            Some(arrived)
                if arrived.len == body.len() && arrived.hash.canon == self.options.body_canon() =>
            {
                debug_assert_eq!(
                    arrived.hash,
                    BodyHash::of(arrived.hash.canon, body),
                    "the body of {:?} has changed",
                    held.id
                );
                self.hashed.set(self.hashed.get() + 1);
                arrived.hash
            }
            _ => {
                let mut hasher = self.options.body_hasher();
                for (number, slice) in body.chunks(limits::MESSAGE_SLICE_BYTES).enumerate() {
                    if number > 0 {
                        yield_now().await;
                    }
                    hasher.update(slice);
                }
                hasher.finish()
            }
        }
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

    /// Waits for company, as the module says.
    async fn gather(&self) {
        self.take_turns().await;
        let now = self.port.now();
        if now >= self.last_batch.get().after(CLOSE_BATCHES) {
            return;
        }
        let mut sleep = pin!(self.port.sleep_until(now.after(COMPANY_WAIT)));
        while self.signer.borrow().is_short() {
            let came = poll_fn(|context| match self.work.poll_raised(context) {
                Poll::Ready(()) => Poll::Ready(true),
                Poll::Pending => sleep.as_mut().poll(context).map(|()| false),
            });
            if !came.await {
                return;
            }
        }
    }

    /// Gives the shard a turn to bring more work, and another as long as each turn does, until the
    /// lanes are full.
    async fn take_turns(&self) {
        let mut pending = 0;
        while self.signer.borrow().pending() > pending && pending < limits::DKIM_BATCH_MAX {
            pending = self.signer.borrow().pending();
            yield_now().await;
        }
    }

    /// Runs batches while there is work; runs for ever.
    pub async fn run(self: Rc<Self>) {
        let mut signed = Vec::new();
        loop {
            self.work.raised().await;
            while self.signer.borrow().pending() > 0 {
                self.gather().await;
                let before = self.report();
                self.signer.borrow_mut().run_batch(&mut signed);
                self.last_batch.set(self.port.now());
                raise_alarms(before, self.report());
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

/// Batches that follow each other this closely are of a load that fills the next one soon.
const CLOSE_BATCHES: Duration = Duration::from_millis(5);

/// How long a batch with empty lanes waits then.
const COMPANY_WAIT: Duration = Duration::from_millis(1);

/// The name of a form of a message: only a message with octets above 127 has another, without.
fn key(form: &Held) -> (MessageId, bool) {
    (form.id, form.eight_bit)
}

/// The header with its empty line, where it has one: then the scan has seen each of its fields.
fn header_of<'a>(content: &'a [u8], scan: &HeaderScan) -> Option<&'a [u8]> {
    let whole = content.get(scan.end..scan.body) == Some(b"\r\n");
    content.get(..scan.body).filter(|_| whole)
}

/// The domain of the first From address, if it has one.
fn from_domain<'a>(content: &'a [u8], scan: &HeaderScan) -> Option<&'a str> {
    let range = scan.from_domain.clone()?;
    std::str::from_utf8(content.get(range)?).ok()
}

/// Whether what has been counted on is to be said again: ever more rarely.
fn is_due(before: u64, now: u64) -> bool {
    (before..now).any(|count| (count + 1).is_power_of_two())
}

/// Says what went wrong in a batch; a machine that goes on so says it ever more rarely.
fn raise_alarms(before: Report, now: Report) {
    if is_due(before.lane_mismatches, now.lane_mismatches) {
        tracing::error!(
            so_far = now.lane_mismatches,
            "an RSA signature came out wrong and was made again: this machine computes wrongly, \
             test its processor and memory"
        );
    }
    if is_due(before.failures, now.failures) {
        tracing::error!(
            so_far = now.failures,
            "a DKIM signature could not be made; its mail waits"
        );
    }
}

#[cfg(test)]
mod tests;
