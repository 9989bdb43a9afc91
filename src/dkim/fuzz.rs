//! dkim::fuzz - entries for a fuzzer; the tests feed them a seeded corpus.
//!
//! What: each function takes any bytes and panics where a promise is broken.

use std::sync::{Arc, OnceLock};

use crate::dkim::arriving::ArrivingBody;
use crate::dkim::canon::BodyHasher;
use crate::dkim::key::PrivateKey;
use crate::dkim::record::{KeyKind, PublicRecord, keygen};
use crate::dkim::ring::Identity;
use crate::dkim::signature::{SignOptions, body_start, prepare};
use crate::dkim::{der, rsa};
use crate::message::{BodyHash, Canon};
use crate::time::Wall;

/// Any message: however the message is cut, the hash is the same; preparing never panics.
pub fn fuzz_message(data: &[u8]) {
    static IDENTITY: OnceLock<Arc<Identity>> = OnceLock::new();
    let identity = IDENTITY.get_or_init(|| {
        // A fuzzer without a working random generator cannot go on.
        let pem = keygen(KeyKind::Ed25519).expect("a key").pem;
        let key = Arc::new(PrivateKey::from_pem(&pem).expect("our own key"));
        Arc::new(Identity::new("example.com", "s1", key).expect("a good identity"))
    });
    let (cut, message) = data
        .split_first()
        .map_or((1, data), |(cut, rest)| (*cut, rest));
    let (header, body) = message.split_at(body_start(message));
    for canon in [Canon::Simple, Canon::Relaxed] {
        let hash = BodyHash::of(canon, body);
        let mut hasher = BodyHasher::new(canon);
        body.chunks(usize::from(cut).max(1))
            .for_each(|piece| hasher.update(piece));
        assert_eq!(hasher.finish(), hash);
        let mut arriving = ArrivingBody::new(BodyHasher::new(canon));
        let step = usize::from(cut).max(1);
        for end in (step..message.len()).step_by(step) {
            arriving.more(&message[..end]);
        }
        let arrived = arriving.finish(message);
        assert_eq!((arrived.hash, arrived.len), (hash, body.len()));
        let options = SignOptions::default().with_canon(canon, canon);
        if let Ok(all) = prepare(header, &hash, &[Arc::clone(identity)], &options, Wall(0)) {
            assert_eq!(all.len(), 1);
        }
    }
}

/// Any key file or DNS record: a value or an error.
pub fn fuzz_keys(data: &[u8]) {
    if let Ok(key) = PrivateKey::from_pem(data) {
        assert!(key.bits() >= 256);
    }
    if let Some(parts) = der::rsa_private_key(data) {
        assert!(!parts.n.is_empty());
        assert!(rsa::RsaKey::from_pkcs1(data).is_err() || parts.n.len() >= 256);
    }
    if let Ok(record) = PublicRecord::parse(data) {
        assert!(PublicRecord::parse(data).as_ref() == Ok(&record));
    }
}

#[cfg(test)]
mod tests {
    use super::{fuzz_keys, fuzz_message};

    // Seeds, each damaged in many places.
    #[test]
    fn seeds_and_damaged_seeds() {
        let message =
            b"\x07From: a@b.c\r\nSubject: x\r\n\t y\r\nTo:z\r\n\r\na  b\t\r\n \r\nc\r\n\r\n";
        let record = b"v=DKIM1; k=ed25519; t=s; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=";
        let key = include_bytes!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/data/dkim/limbs_sparse.pem"
        ));
        for at in 0..message.len() {
            for byte in [0, 9, 10, 13, 32, 58, 255] {
                let mut damaged = message.to_vec();
                damaged[at] = byte;
                fuzz_message(&damaged);
                fuzz_message(&damaged[at..]);
            }
        }
        // Judging a whole RSA key takes milliseconds: not at every octet.
        for (seed, step) in [(&record[..], 1), (key, 13)] {
            for at in (0..seed.len()).step_by(step) {
                let mut damaged = seed.to_vec();
                damaged[at] ^= 1 << (at % 7);
                fuzz_keys(&damaged);
                fuzz_keys(&seed[..at]);
            }
        }
    }
}
