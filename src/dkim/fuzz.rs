//! dkim::fuzz - entries for a fuzzer; the tests feed them a seeded corpus.
//!
//! What: each function takes any bytes and panics where a promise is broken.

use std::sync::{Arc, OnceLock};

use crate::dkim::arriving::ArrivingBody;
use crate::dkim::batch::Report;
use crate::dkim::canon::BodyHasher;
use crate::dkim::key::{PrivateKey, Secret};
use crate::dkim::record::{KeyKind, PublicRecord, keygen};
use crate::dkim::ring::Identity;
use crate::dkim::signature::{SignOptions, body_start, prepare};
use crate::dkim::{der, rsa};
use crate::limits;
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

macro_rules! test_keys {
    ($($name:literal),+) => {
        [$(include_bytes!(concat!(
            env!("CARGO_MANIFEST_DIR"), "/tests/data/dkim/", $name, ".pem"
        )).as_slice()),+]
    };
}

/// Keys for [`fuzz_rsa`]: RSA-2048 that the lanes take, primes of extreme limbs among them; from
/// `LANE_KEYS` on, longer ones and those that the lanes refuse.
static RSA_KEYS: [&[u8]; 9] = test_keys!(
    "limbs_full",
    "limbs_full_p_less_than_q",
    "limbs_empty",
    "limbs_empty_p_less_than_q",
    "limbs_sparse",
    "limbs_in_turn",
    "bits_4096",
    "exponent_3",
    "primes_unequal"
);
const LANE_KEYS: usize = 6;

/// RSA in lanes against aws-lc-rs: the signatures are identical (PKCS#1 v1.5 is deterministic), and
/// no lane needed to be replaced. The first octet says which keys take part; then each signature of
/// a batch has an octet for its key and up to 32 for its digest, zeros after the end of the input.
/// Without AVX-512 IFMA it compares aws-lc-rs with itself.
pub fn fuzz_rsa(data: &[u8]) {
    static KEYS: OnceLock<Vec<PrivateKey>> = OnceLock::new();
    let keys = KEYS.get_or_init(|| {
        let read = |pem: &&[u8]| PrivateKey::from_pem(pem).expect("a key of our tests");
        RSA_KEYS.iter().map(read).collect()
    });
    let Some((mode, rest)) = data.split_first() else {
        return;
    };
    // Mixed widths go to aws-lc-rs, so most inputs keep to the lanes.
    let choice = if *mode >= 0xe0 { keys.len() } else { LANE_KEYS };
    let batch: Vec<(&rsa::RsaKey, [u8; 32])> = rest
        .chunks(33)
        .take(limits::DKIM_BATCH_MAX)
        .map(|piece| {
            let mut hash = [0; 32];
            hash[..piece.len() - 1].copy_from_slice(&piece[1..]);
            match &keys[usize::from(piece[0]) % choice].0 {
                Secret::Rsa(key) => (&**key, hash),
                Secret::Ed25519(_) => unreachable!("all keys of RSA_KEYS are RSA"),
            }
        })
        .collect();
    let jobs: Vec<_> = batch.iter().map(|(key, hash)| (*key, hash)).collect();
    let mut report = Report::default();
    let signatures = rsa::Engine::new(true).sign(&jobs, &mut report);
    assert_eq!(signatures.len(), batch.len());
    assert_eq!((report.lane_mismatches, report.failures), (0, 0));
    for ((key, hash), signature) in batch.iter().zip(signatures) {
        let alone = key
            .sign_one(hash)
            .expect("aws-lc-rs signs with a key it took");
        assert_eq!(signature.expect("as above"), alone);
    }
}

#[cfg(test)]
mod tests {
    use super::{LANE_KEYS, RSA_KEYS, fuzz_keys, fuzz_message, fuzz_rsa};
    use crate::message::testing::Random;

    // Batches of one to eight and more, digests cut short, the lanes' keys and mixed ones.
    #[test]
    fn rsa_of_any_input() {
        fuzz_rsa(b"");
        let mut random = Random(4);
        for length in [1, 2, 30, 34, 67, 133, 265, 280] {
            for mode in [0, 0xe0] {
                let mut input: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
                input[0] = mode;
                fuzz_rsa(&input);
            }
        }
        const { assert!(LANE_KEYS < RSA_KEYS.len()) };
    }

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
