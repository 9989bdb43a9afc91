//! The lanes against aws-lc-rs: PKCS#1 v1.5 is deterministic, so signatures must be identical.
//! On a processor without IFMA the same tests compare aws-lc-rs with itself, and say so.

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::RsaKeyPair;

use super::{Engine, RsaKey, Width};
use crate::dkim::batch::Report;
use crate::dkim::der::{self, Pkcs8};
use crate::dkim::key::{PrivateKey, Secret};
use crate::engine::ifma::Ifma;

macro_rules! extreme_key {
    ($name:literal) => {
        from_pem(include_bytes!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/data/dkim/",
            $name,
            ".pem"
        )))
    };
}

fn from_pem(pem: &[u8]) -> RsaKey {
    match PrivateKey::from_pem(pem).unwrap().0 {
        Secret::Rsa(key) => *key,
        Secret::Ed25519(_) => panic!("not an RSA key"),
    }
}

fn generated(size: KeySize) -> RsaKey {
    let pair = RsaKeyPair::generate(size).unwrap();
    let pkcs8: Pkcs8V1Der<'_> = pair.as_der().unwrap();
    let Some(Pkcs8::Rsa(der)) = der::pkcs8(pkcs8.as_ref()) else {
        panic!("not an RSA key");
    };
    RsaKey::from_pkcs1(der).unwrap()
}

/// Digests: all zeros, all ones, then hashes of a counter.
fn hash(number: u64) -> [u8; 32] {
    match number {
        0 => [0; 32],
        1 => [0xff; 32],
        _ => digest(&SHA256, &number.to_be_bytes())
            .as_ref()
            .try_into()
            .unwrap(),
    }
}

/// Signs `batch` and compares each signature with aws-lc-rs.
fn compare(engine: &mut Engine, batch: &[(&RsaKey, [u8; 32])], report: &mut Report) {
    let jobs: Vec<_> = batch.iter().map(|(key, hash)| (*key, hash)).collect();
    let signatures = engine.sign(&jobs, report);
    assert_eq!(signatures.len(), batch.len());
    for ((key, hash), signature) in jobs.iter().zip(signatures) {
        assert_eq!(signature.unwrap(), key.sign_one(hash).unwrap());
    }
}

fn assert_lanes_worked(report: &Report, signatures: u64) {
    assert_eq!(report.lane_mismatches, 0);
    if Ifma::detect().is_some() {
        assert_eq!(report.lane_signatures, signatures);
    } else {
        println!("no AVX-512 IFMA here: the lanes were not tested");
    }
}

// Random keys, random digests, keys mixed in one batch, every batch size. With POSTRIDER_LONG=1 the
// ten thousand of the promise.
#[test]
fn lanes_and_aws_lc_agree_on_random_keys() {
    let long = std::env::var("POSTRIDER_LONG").as_deref() == Ok("1");
    let (rounds, keys_a_round, batches) = if long { (26, 10, 60) } else { (1, 6, 40) };
    let mut engine = Engine::new(true);
    let mut report = Report::default();
    let (mut number, mut in_lanes) = (0, 0);
    for _ in 0..rounds {
        let keys: Vec<_> = (0..keys_a_round)
            .map(|_| generated(KeySize::Rsa2048))
            .collect();
        for batch in 0..batches {
            let size = if batch % 4 == 0 { 1 + batch / 4 % 8 } else { 8 };
            let mut jobs = Vec::new();
            for _ in 0..size {
                // A walk that puts every key into every lane.
                let key = &keys[(number as usize * 7 + batch / 8) % keys.len()];
                jobs.push((key, hash(number)));
                number += 1;
            }
            in_lanes += if size > 1 { size as u64 } else { 0 };
            compare(&mut engine, &jobs, &mut report);
        }
    }
    assert!(number >= if long { 10_000 } else { 250 }, "{number}");
    assert_lanes_worked(&report, in_lanes);
}

// Primes and moduli of full, empty, sparse and alternating limbs; p above and below q.
#[test]
fn lanes_and_aws_lc_agree_on_extreme_limbs() {
    let keys = [
        extreme_key!("limbs_full"),
        extreme_key!("limbs_full_p_less_than_q"),
        extreme_key!("limbs_empty"),
        extreme_key!("limbs_empty_p_less_than_q"),
        extreme_key!("limbs_sparse"),
        extreme_key!("limbs_in_turn"),
    ];
    let mut engine = Engine::new(true);
    let mut report = Report::default();
    assert!(keys.iter().all(|key| key.lanes.is_some()));
    for round in 0..8 {
        // Both ways of using the lanes: halves together (four) and apart (eight).
        for size in [4, 8] {
            let job = |index: usize| {
                (
                    &keys[(index + round) % keys.len()],
                    hash((round + index) as u64),
                )
            };
            let batch: Vec<_> = (0..size).map(job).collect();
            compare(&mut engine, &batch, &mut report);
        }
    }
    assert_lanes_worked(&report, 8 * 12);
}

// RSA-3072 and RSA-4096 in their own lanes.
#[test]
fn lanes_and_aws_lc_agree_on_longer_keys() {
    let mut engine = Engine::new(true);
    let mut report = Report::default();
    let keys = [generated(KeySize::Rsa3072), generated(KeySize::Rsa3072)];
    let long = [extreme_key!("bits_4096"), generated(KeySize::Rsa4096)];
    for (keys, width) in [(&keys, Width::Rsa3072), (&long, Width::Rsa4096)] {
        assert_eq!(keys[0].lanes.as_ref().unwrap().width(), width);
        for size in [2, 5, 8] {
            let job = |index: usize| (&keys[index % 2], hash(index as u64));
            let batch: Vec<_> = (0..size).map(job).collect();
            compare(&mut engine, &batch, &mut report);
        }
    }
    assert_lanes_worked(&report, 2 * 15);
}

// Keys that the lanes cannot take are signed one at a time.
#[test]
fn odd_keys_are_signed_by_aws_lc() {
    let mut engine = Engine::new(true);
    for key in [extreme_key!("exponent_3"), extreme_key!("primes_unequal")] {
        assert!(engine.width(&key).is_none());
        let mut report = Report::default();
        compare(
            &mut engine,
            &[(&key, hash(2)), (&key, hash(3))],
            &mut report,
        );
        assert_eq!(report.single_signatures, 2);
        assert_eq!(report.lane_mismatches, 0);
    }
}

// A lane that computes wrongly is found by verification: the signature comes from aws-lc-rs, and
// the alarm counts.
#[test]
fn a_wrong_lane_is_replaced_and_counted() {
    let key = generated(KeySize::Rsa2048);
    let mut engine = Engine::new(true);
    engine.sabotage = true;
    let mut report = Report::default();
    let batch: Vec<_> = (0..5).map(|number| (&key, hash(number))).collect();
    compare(&mut engine, &batch, &mut report);
    if Ifma::detect().is_some() {
        assert_eq!(report.lane_mismatches, 1);
        assert_eq!(report.lane_signatures, 4);
        assert_eq!(report.single_signatures, 1);
    }
}

// Without the instructions everything works, one at a time.
#[test]
fn without_lanes_aws_lc_signs() {
    let key = generated(KeySize::Rsa2048);
    let mut engine = Engine::new(false);
    assert!(!engine.has_lanes());
    assert!(engine.width(&key).is_none());
    let mut report = Report::default();
    let batch: Vec<_> = (0..3).map(|number| (&key, hash(number))).collect();
    compare(&mut engine, &batch, &mut report);
    assert_eq!(report.single_signatures, 3);
}
