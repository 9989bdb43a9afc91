//! setup - what the signing benches share: keys, jobs, the clock, and how much to do.

use std::sync::Arc;

use nix::time::{ClockId, clock_gettime};
use postrider::dkim::{
    BodyHash, Canon, Identity, Job, KeyKind, PrivateKey, SignOptions, keygen, prepare,
};
use postrider::time::Wall;

/// An identity of a key in PEM.
pub(crate) fn identity(pem: &[u8]) -> Arc<Identity> {
    let key = PrivateKey::from_pem(pem).unwrap();
    Arc::new(Identity::new("example.com", "s1", Arc::new(key)).unwrap())
}

/// An identity of a fresh key.
pub(crate) fn fresh(kind: KeyKind) -> Arc<Identity> {
    identity(&keygen(kind).unwrap().pem)
}

/// A message to sign, of which only the header matters.
pub(crate) fn job(header: &str, identity: &Arc<Identity>) -> Job {
    let body = BodyHash::of(Canon::Relaxed, b"x\r\n");
    let (identities, options) = ([Arc::clone(identity)], SignOptions::default());
    prepare(header.as_bytes(), &body, &identities, &options, Wall(0)).unwrap()
}

/// CPU time of this thread in nanoseconds.
pub(crate) fn cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap();
    time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
}

/// Whether to measure: `cargo bench` passes `--bench`; `--test`, and `cargo test`, only want to
/// know that everything runs.
pub(crate) fn measures() -> bool {
    let has = |wanted: &str| std::env::args().any(|word| word == wanted);
    has("--bench") && !has("--test")
}
