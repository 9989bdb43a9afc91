//! dkim::batch - the queue in front of the private key operations.
//!
//! What: [`Signer`] takes jobs (messages with their prepared signatures) and signs them, one batch
//! per call. Pure but for the arithmetic: no I/O, no clock, no waiting.
//! Flow: `Vec<Unsigned>` -> [`Signer::submit`] -> [`Ticket`]; [`Signer::run_batch`] -> [`Signed`].
//! Shard: one per shard. The driver calls `run_batch` when the shard has nothing more to receive in
//! this turn, and again in a later turn while [`Signer::pending`] is not zero; so a lone message is
//! signed at once, and a busy shard fills its lanes without a timer.
//! Limits: [`limits::DKIM_JOBS_MAX`] jobs, [`limits::DKIM_BATCH_MAX`] RSA operations per batch.
//! Failure: a signature that does not verify is made again by aws-lc-rs and counted as an alarm; if
//! that fails too, the job ends with [`SignFailed`] and the message is deferred, never sent
//! unsigned.

use std::collections::VecDeque;
use std::fmt;

use aws_lc_rs::signature::Ed25519KeyPair;

use crate::dkim::key::Secret;
use crate::dkim::rsa;
use crate::dkim::signature::Unsigned;
use crate::limits;

/// The name of a job until it is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// One message to sign: its signatures, the topmost first.
pub type Job = Vec<Unsigned>;

/// Neither engine could sign. The counters say more; the message must be deferred.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignFailed;

impl fmt::Display for SignFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the private key operation failed")
    }
}

impl std::error::Error for SignFailed {}

/// A finished job.
#[derive(Debug)]
pub struct Signed {
    /// Which one.
    pub ticket: Ticket,
    /// The `DKIM-Signature` fields, CRLF-terminated, to be put in front of the message.
    pub fields: Result<Vec<u8>, SignFailed>,
}

/// Switches of the signer.
#[derive(Debug, Clone, Copy, Default)]
pub struct SignerConfig {
    /// Never use the lanes, as if the processor had none.
    pub no_lanes: bool,
}

/// What the signer has done since it was made. All counters only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// RSA signatures made in the lanes.
    pub lane_signatures: u64,
    /// Runs of the lane engine.
    pub lane_batches: u64,
    /// RSA signatures made one at a time by aws-lc-rs.
    pub single_signatures: u64,
    /// Ed25519 signatures.
    pub ed25519_signatures: u64,
    /// Lane signatures that did not verify: alarm. The machine computes wrongly.
    pub lane_mismatches: u64,
    /// Signatures that no engine could make: alarm.
    pub failures: u64,
}

/// The queue and the engines of one shard.
pub struct Signer {
    engine: rsa::Engine,
    /// Jobs in the order of their tickets; `None` where one finished before an older one.
    jobs: VecDeque<Option<Slot>>,
    /// The ticket of the first of `jobs`.
    first: u64,
    /// What waits, per kind of work; an entry is (ticket, which of its signatures).
    queues: [VecDeque<(u64, usize)>; WORK_KINDS],
    report: Report,
}

struct Slot {
    unsigned: Vec<Unsigned>,
    signatures: Vec<Option<Vec<u8>>>,
    missing: usize,
    failed: bool,
}

/// Kinds of work: one per lane width, RSA keys that no lane fits, Ed25519.
const WORK_KINDS: usize = rsa::Width::COUNT + 2;
const SINGLE: usize = rsa::Width::COUNT;
const ED25519: usize = rsa::Width::COUNT + 1;

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer")
            .field("pending", &self.pending())
            .field("lanes", &self.has_lanes())
            .field("report", &self.report)
            .finish()
    }
}

impl Signer {
    /// A signer; looks at the processor once.
    #[must_use]
    pub fn new(config: SignerConfig) -> Self {
        Self {
            engine: rsa::Engine::new(!config.no_lanes),
            jobs: VecDeque::new(),
            first: 0,
            queues: Default::default(),
            report: Report::default(),
        }
    }

    /// For tests of the alarm: one lane computes wrongly from now on.
    #[cfg(test)]
    pub(crate) fn sabotage(&mut self) {
        self.engine.sabotage = true;
    }

    /// Whether this processor has the lanes (AVX-512 IFMA) and they are in use.
    #[must_use]
    pub fn has_lanes(&self) -> bool {
        self.engine.has_lanes()
    }

    /// Signatures that wait.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.queues.iter().map(VecDeque::len).sum()
    }

    /// Whether the batch that would run now has several signatures and lanes to spare: it costs the
    /// same with all lanes in use.
    #[must_use]
    pub fn is_short(&self) -> bool {
        let kind = self.next_kind();
        kind != SINGLE
            && kind != ED25519
            && (2..limits::DKIM_BATCH_MAX).contains(&self.queues[kind].len())
    }

    /// The queue whose first signature has waited longest.
    fn next_kind(&self) -> usize {
        let oldest = |kind: &usize| self.queues[*kind].front().map_or(u64::MAX, |front| front.0);
        (0..WORK_KINDS).min_by_key(oldest).unwrap_or(SINGLE)
    }

    /// What was done so far.
    #[must_use]
    pub fn report(&self) -> Report {
        self.report
    }

    /// Queues a message. Gives the job back when [`limits::DKIM_JOBS_MAX`] wait (the message stays
    /// in the spool and comes again), or when there is nothing to sign in it.
    pub fn submit(&mut self, job: Job) -> Result<Ticket, Job> {
        if self.jobs.len() >= limits::DKIM_JOBS_MAX || job.is_empty() {
            return Err(job);
        }
        let ticket = self.first + self.jobs.len() as u64;
        for (index, unsigned) in job.iter().enumerate() {
            let kind = match &unsigned.key.0 {
                Secret::Rsa(key) => self
                    .engine
                    .width(key)
                    .map_or(SINGLE, |width| width as usize),
                Secret::Ed25519(_) => ED25519,
            };
            self.queues[kind].push_back((ticket, index));
        }
        self.jobs.push_back(Some(Slot {
            signatures: job.iter().map(|_| None).collect(),
            missing: job.len(),
            failed: false,
            unsigned: job,
        }));
        Ok(Ticket(ticket))
    }

    /// Does one batch of work, the kind whose oldest signature waits longest, and appends the jobs
    /// that are complete. Costs at most as much as one full batch of the lane engine (0.9 ms for
    /// RSA-2048), or one signature where the lanes cannot help.
    pub fn run_batch(&mut self, out: &mut Vec<Signed>) {
        let kind = self.next_kind();
        let most = if kind == SINGLE {
            1
        } else {
            limits::DKIM_BATCH_MAX
        };
        let count = self.queues[kind].len().min(most);
        let batch: Vec<(u64, usize)> = self.queues[kind].drain(..count).collect();
        let signatures = self.sign(kind, &batch);
        debug_assert_eq!(signatures.len(), batch.len());
        for ((ticket, index), signature) in batch.into_iter().zip(signatures) {
            out.extend(self.store(ticket, index, signature));
        }
        while let Some(None) = self.jobs.front() {
            self.jobs.pop_front();
            self.first += 1;
        }
    }

    fn sign(&mut self, kind: usize, batch: &[(u64, usize)]) -> Vec<Option<Vec<u8>>> {
        let unsigned: Vec<&Unsigned> = batch
            .iter()
            .filter_map(|(ticket, index)| {
                let slot = self.jobs.get((ticket - self.first) as usize)?.as_ref()?;
                slot.unsigned.get(*index)
            })
            .collect();
        let mut rsa = Vec::with_capacity(unsigned.len());
        let mut signatures = Vec::with_capacity(unsigned.len());
        for piece in unsigned {
            match &piece.key.0 {
                Secret::Rsa(key) => rsa.push((&**key, &piece.hash)),
                Secret::Ed25519(pair) => {
                    self.report.ed25519_signatures += 1;
                    signatures.push(ed25519(pair, &piece.hash));
                }
            }
        }
        // A batch is of one kind: either loop above filled its vector.
        if kind != ED25519 {
            signatures = self.engine.sign(&rsa, &mut self.report);
        }
        signatures
    }

    /// Stores one signature; the job comes back when it was the last one missing.
    fn store(&mut self, ticket: u64, index: usize, signature: Option<Vec<u8>>) -> Option<Signed> {
        let place = self.jobs.get_mut((ticket - self.first) as usize)?;
        // A ticket in a queue has a slot: slots leave only when nothing is missing.
        debug_assert!(place.is_some(), "a signature without a job");
        let slot = place.as_mut()?;
        slot.missing -= 1;
        if signature.is_none() {
            slot.failed = true;
            self.report.failures += 1;
        }
        slot.signatures[index] = signature;
        if slot.missing > 0 {
            return None;
        }
        let fields = place.take()?.finish();
        Some(Signed {
            ticket: Ticket(ticket),
            fields,
        })
    }
}

impl Slot {
    fn finish(self) -> Result<Vec<u8>, SignFailed> {
        if self.failed {
            return Err(SignFailed);
        }
        let mut fields = Vec::with_capacity(self.unsigned.len() * 1536);
        for (unsigned, signature) in self.unsigned.into_iter().zip(self.signatures) {
            unsigned.finish(&signature.ok_or(SignFailed)?, &mut fields);
        }
        Ok(fields)
    }
}

/// RFC 8463 3: PureEdDSA over the hash.
///
/// Not verified afterwards: the check costs four times the signature (44 us against 10), and what
/// the check of RSA guards against, the arithmetic of our own lanes and a fault in one half of the
/// CRT that gives the key away, is not here.
fn ed25519(pair: &Ed25519KeyPair, hash: &[u8; 32]) -> Option<Vec<u8>> {
    let signature = pair.try_sign(hash).ok()?;
    Some(signature.as_ref().to_vec())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{Job, Signed, Signer, SignerConfig, Ticket};
    use crate::dkim::key::PrivateKey;
    use crate::dkim::record::{KeyKind, keygen};
    use crate::dkim::ring::Identity;
    use crate::dkim::signature::{SignOptions, prepare};
    use crate::limits;
    use crate::message::{BodyHash, Canon};
    use crate::time::Wall;

    fn identity(kind: KeyKind) -> Arc<Identity> {
        let key = Arc::new(PrivateKey::from_pem(&keygen(kind).unwrap().pem).unwrap());
        Arc::new(Identity::new("example.com", "s1", key).unwrap())
    }

    fn job(number: usize, identities: &[Arc<Identity>]) -> Job {
        let header = format!("From: a@example.com\r\nSubject: {number}\r\n");
        let body = BodyHash::of(Canon::Relaxed, b"x\r\n");
        let options = SignOptions::default();
        prepare(header.as_bytes(), &body, identities, &options, Wall(0)).unwrap()
    }

    fn run_all(signer: &mut Signer) -> Vec<Signed> {
        let mut out = Vec::new();
        while signer.pending() > 0 {
            signer.run_batch(&mut out);
        }
        out
    }

    // A lone message is signed by the first batch: it waits for no company.
    #[test]
    fn a_lone_message_is_signed_at_once() {
        let mut signer = Signer::new(SignerConfig::default());
        let ticket = signer
            .submit(job(0, &[identity(KeyKind::Rsa2048)]))
            .unwrap();
        let mut out = Vec::new();
        signer.run_batch(&mut out);
        assert_eq!(out.len(), 1);
        assert_eq!(out[0].ticket, ticket);
        assert!(
            out[0]
                .fields
                .as_ref()
                .unwrap()
                .starts_with(b"DKIM-Signature: ")
        );
        assert_eq!(signer.pending(), 0);
    }

    // Lanes and no lanes give the same fields, whatever the mixture and the batches.
    #[test]
    fn lanes_change_nothing_but_the_time() {
        let rsa = identity(KeyKind::Rsa2048);
        let ed25519 = identity(KeyKind::Ed25519);
        let long = identity(KeyKind::Rsa4096);
        let mut results = Vec::new();
        for no_lanes in [false, true] {
            let mut signer = Signer::new(SignerConfig { no_lanes });
            let mut tickets = Vec::new();
            for number in 0..21 {
                let identities = match number % 4 {
                    0 => vec![Arc::clone(&ed25519)],
                    1 => vec![Arc::clone(&rsa), Arc::clone(&ed25519), Arc::clone(&long)],
                    _ => vec![Arc::clone(&rsa)],
                };
                tickets.push(signer.submit(job(number, &identities)).unwrap());
            }
            let mut out = run_all(&mut signer);
            out.sort_by_key(|signed| signed.ticket);
            assert_eq!(
                out.iter().map(|one| one.ticket).collect::<Vec<_>>(),
                tickets
            );
            assert_eq!(signer.report().failures, 0);
            results.push(
                out.into_iter()
                    .map(|one| one.fields.unwrap())
                    .collect::<Vec<_>>(),
            );
            assert!(signer.jobs.is_empty());
        }
        assert_eq!(results[0], results[1]);
        let fields = String::from_utf8(results[0][1].clone()).unwrap();
        let algorithms: Vec<_> = fields.matches("a=").collect();
        assert!(algorithms.len() >= 3 && fields.matches("DKIM-Signature:").count() == 3);
    }

    // Tickets go on across batches; one batch takes at most eight; a full queue gives the job back.
    #[test]
    fn the_queue_is_bounded_and_batches_are_cut() {
        let ed25519 = [identity(KeyKind::Ed25519)];
        let one = job(0, &ed25519);
        let mut signer = Signer::new(SignerConfig::default());
        for number in 0..limits::DKIM_JOBS_MAX {
            assert_eq!(signer.submit(one.clone()).unwrap(), Ticket(number as u64));
        }
        assert!(signer.submit(one.clone()).is_err());
        let mut out = Vec::new();
        signer.run_batch(&mut out);
        assert_eq!(out.len(), limits::DKIM_BATCH_MAX);
        let next = signer.submit(one).unwrap();
        assert_eq!(next, Ticket(limits::DKIM_JOBS_MAX as u64));
        assert!(
            run_all(&mut signer)
                .iter()
                .any(|signed| signed.ticket == next)
        );
    }

    // A job without signatures comes back: nobody would ever finish it.
    #[test]
    fn an_empty_job_is_given_back() {
        let mut signer = Signer::new(SignerConfig::default());
        assert!(signer.submit(Vec::new()).is_err());
        assert_eq!(signer.pending(), 0);
    }
}
