//! What signing costs: the lanes against aws-lc-rs, the public operation, preparation, body hashes.
//!
//! `cargo bench --bench dkim`. Besides criterion's figures, `rsa_interleaved` prints the ratio that
//! the README quotes: batches of the lanes and single signatures of aws-lc-rs in turn, in CPU time
//! of this thread, so that neighbours and clock changes hit both alike.

mod setup;

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use postrider::dkim::{
    ArrivingBody, BodyHash, BodyHasher, Canon, Identity, Job, KeyKind, SignOptions, Signer,
    SignerConfig, prepare,
};
use postrider::time::Wall;

use crate::setup::{cpu_ns, fresh, measures};

const HEADER: &str = "Received: from app.example.com (app.example.com [192.0.2.1])\r\n\
    \tby mta.example.com with ESMTP id 0123456789abcdef;\r\n\tFri, 20 Nov 2026 10:00:00 +0000\r\n\
    From: Example News <news@example.com>\r\nTo: Some Body <some.body@example.net>\r\n\
    Subject: =?utf-8?q?The_news_of_the_week?=\r\nDate: Fri, 20 Nov 2026 10:00:00 +0000\r\n\
    Message-ID: <0123456789abcdef@example.com>\r\nMIME-Version: 1.0\r\n\
    Content-Type: multipart/alternative; boundary=\"0123456789\"\r\n\
    List-Unsubscribe: <https://example.com/u?t=0123456789>\r\n\
    List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\nFeedback-ID: 1:2:3:example\r\n\r\n";

fn job(number: usize, identity: &Arc<Identity>) -> Job {
    let header = format!("X-Number: {number}\r\nReply-To: {number}@example.com\r\n{HEADER}");
    setup::job(&header, identity)
}

/// CPU time of this thread in microseconds.
fn cpu_us() -> f64 {
    cpu_ns() as f64 / 1e3
}

/// The least, the first quartile and the median.
fn quantiles(mut samples: Vec<f64>) -> [f64; 3] {
    samples.sort_by(f64::total_cmp);
    [0, samples.len() / 4, samples.len() / 2].map(|place| samples[place])
}

fn interleaved(kind: KeyKind, name: &str, rounds: usize) {
    let identity = fresh(kind);
    let jobs: Vec<Job> = (0..8).map(|number| job(number, &identity)).collect();
    let mut lanes = Signer::new(SignerConfig::default());
    let mut single = Signer::new(SignerConfig { no_lanes: true });
    let mut out = Vec::new();
    let mut run = |signer: &mut Signer, count: usize| {
        for job in &jobs[..count] {
            signer.submit(job.clone()).unwrap();
        }
        let start = cpu_us();
        signer.run_batch(&mut out);
        let spent = cpu_us() - start;
        assert_eq!(
            out.drain(..).filter(|one| one.fields.is_ok()).count(),
            count
        );
        spent
    };
    let sizes = [8, 5, 4, 3, 2, 1];
    let mut samples = vec![Vec::new(); sizes.len() + 1];
    for _ in 0..rounds {
        for (place, size) in sizes.iter().enumerate() {
            samples[place].push(run(&mut lanes, *size) / *size as f64);
        }
        samples[sizes.len()].push(run(&mut single, 1));
    }
    let [least, _, reference] = quantiles(samples.pop().unwrap_or_default());
    println!(
        "{name}: aws-lc-rs one at a time, verified: {reference:.1} us per signature ({least:.1} \
         least)"
    );
    for (size, samples) in sizes.iter().zip(samples) {
        let [least, quarter, each] = quantiles(samples);
        println!(
            "{name}: batch of {size}: {each:.1} us per signature ({least:.1} least, {quarter:.1} \
             first quartile), {:.2} times",
            reference / each
        );
    }
    println!("{name}: {:?}", lanes.report());
}

fn rsa_interleaved(_: &mut Criterion) {
    let whole = measures();
    interleaved(KeyKind::Rsa2048, "rsa2048", if whole { 400 } else { 2 });
    interleaved(KeyKind::Rsa4096, "rsa4096", if whole { 60 } else { 1 });
}

fn signatures(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sign");
    for (name, kind, size) in [
        ("rsa2048_batch_of_8", KeyKind::Rsa2048, 8),
        ("rsa2048_lone", KeyKind::Rsa2048, 1),
        ("ed25519_batch_of_8", KeyKind::Ed25519, 8),
    ] {
        let identity = fresh(kind);
        let jobs: Vec<Job> = (0..size).map(|number| job(number, &identity)).collect();
        let mut signer = Signer::new(SignerConfig::default());
        let mut out = Vec::new();
        group.throughput(Throughput::Elements(size as u64));
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                || jobs.clone(),
                |jobs| {
                    for job in jobs {
                        signer.submit(job).unwrap();
                    }
                    signer.run_batch(&mut out);
                    out.clear();
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

fn preparation(criterion: &mut Criterion) {
    let identity = [fresh(KeyKind::Ed25519)];
    let options = SignOptions::default();
    let body = BodyHash::of(Canon::Relaxed, b"x\r\n");
    criterion.bench_function("prepare", |bencher| {
        bencher.iter(|| prepare(HEADER.as_bytes(), &body, &identity, &options, Wall(0)).unwrap());
    });
}

const CLEAN: &[u8] = b"The quick brown fox jumps over the lazy dog, and then it all goes home.\r\n";
const DIRTY: &[u8] =
    b"    <td>  two blanks,  and\ta tab, and one at the end of the line </td> \r\n";

/// Body hashes and SHA-256 alone in turn, in CPU time, ten at a time.
fn bodies_interleaved(_: &mut Criterion) {
    use aws_lc_rs::digest::{SHA256, digest};
    const AT_ONCE: usize = 10;
    let rounds = if measures() { 1000 } else { 1 };
    for (name, line) in [("clean", CLEAN), ("dirty", DIRTY)] {
        for size in [10 << 10, 50 << 10] {
            let body: Vec<u8> = line.iter().cycle().take(size).copied().collect();
            let mut samples = [Vec::new(), Vec::new()];
            for _ in 0..rounds {
                let start = cpu_us();
                for _ in 0..AT_ONCE {
                    black_box(BodyHash::of(Canon::Relaxed, black_box(&body)));
                }
                let middle = cpu_us();
                for _ in 0..AT_ONCE {
                    black_box(digest(&SHA256, black_box(&body)));
                }
                samples[0].push((middle - start) / AT_ONCE as f64);
                samples[1].push((cpu_us() - middle) / AT_ONCE as f64);
            }
            let [whole, hash] = samples.map(quantiles);
            println!(
                "body, {name}, {} KiB: {:.2} us ({:.2} least, {:.2} first quartile); SHA-256 alone \
                 {:.2} us ({:.2}, {:.2})",
                size >> 10,
                whole[2],
                whole[0],
                whole[1],
                hash[2],
                hash[0],
                hash[1],
            );
        }
    }
}

fn bodies(criterion: &mut Criterion) {
    for (name, line) in [("clean", CLEAN), ("dirty", DIRTY)] {
        let text: Vec<u8> = line.iter().cycle().take(50 << 10).copied().collect();
        let mut group = criterion.benchmark_group(format!("body_{name}"));
        for size in [10 << 10, 50 << 10] {
            let body = &text[..size];
            group.throughput(Throughput::Bytes(size as u64));
            group.bench_function(format!("relaxed_{}k", size >> 10), |bencher| {
                bencher.iter(|| BodyHash::of(Canon::Relaxed, black_box(body)));
            });
            group.bench_function(format!("relaxed_{}k_in_segments", size >> 10), |bencher| {
                bencher.iter(|| {
                    let mut hasher = BodyHasher::new(Canon::Relaxed);
                    black_box(body)
                        .chunks(1448)
                        .for_each(|piece| hasher.update(piece));
                    hasher.finish()
                });
            });
            let content = [HEADER.as_bytes(), body].concat();
            let pieces = [("at_once", content.len()), ("in_segments", 1448)];
            for (how, step) in pieces {
                group.bench_function(format!("arriving_{}k_{how}", size >> 10), |bencher| {
                    let options = SignOptions::default();
                    bencher.iter(|| {
                        let mut arriving = ArrivingBody::new(options.body_hasher());
                        for end in (step..content.len()).step_by(step) {
                            arriving.more(&black_box(&content)[..end]);
                        }
                        arriving.finish(black_box(&content))
                    });
                });
            }
            group.bench_function(format!("sha256_alone_{}k", size >> 10), |bencher| {
                use aws_lc_rs::digest::{SHA256, digest};
                bencher.iter(|| digest(&SHA256, black_box(body)));
            });
        }
        group.finish();
    }
}

criterion_group!(
    benches,
    rsa_interleaved,
    bodies_interleaved,
    signatures,
    preparation,
    bodies
);
criterion_main!(benches);
