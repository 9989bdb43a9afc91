//! Does the time of a signature depend on what is secret? A statistical test in the manner of
//! dudect (Reparaz, Balasch, Verbauwhede, "Dude, is my code constant time?").
//!
//! `cargo bench --bench dkim_timing [-- SAMPLES]`. Two classes of work are done in random order;
//! Welch's t of their times, slowest tenth cut off, says whether they differ. |t| under 4.5: no
//! leak found; above 10: a leak, and the report shows its size. It asserts nothing: a noisy
//! neighbour is not a leak, and a human reads it.
//! Classes: one digest again and again against random ones; primes with nearly all limbs empty
//! against primes with all limbs full; p < q against p > q; and two controls, the same work twice
//! (must find nothing) and a microsecond more in one class (must find it).

use std::hint::black_box;
use std::sync::Arc;

use nix::time::{ClockId, clock_gettime};
use postrider::dkim::{
    BodyHash, Canon, Identity, Job, KeyKind, PrivateKey, SignOptions, Signer, SignerConfig, keygen,
    prepare,
};
use postrider::time::Wall;

/// Signatures of one sample: one pass of the lanes.
const BATCH: usize = 4;

fn main() {
    // Cargo passes `--bench`; a number is ours.
    let samples = std::env::args()
        .find_map(|word| word.parse().ok())
        .unwrap_or(20_000);
    let signer = Signer::new(SignerConfig::default());
    println!(
        "lanes: {}, {samples} samples of {BATCH} signatures a class",
        signer.has_lanes()
    );
    drop(signer);
    let random = identity(&keygen(KeyKind::Rsa2048).unwrap().pem);
    let full = identity(include_bytes!("../tests/data/dkim/limbs_full.pem"));
    let swapped = identity(include_bytes!(
        "../tests/data/dkim/limbs_full_p_less_than_q.pem"
    ));
    let empty = identity(include_bytes!("../tests/data/dkim/limbs_empty.pem"));
    let fixed = |_: u64| 0;
    let varied = |number: u64| number;
    compare(
        "control: same work",
        samples,
        [(&random, &varied), (&random, &varied)],
        0,
    );
    compare(
        "control: 1 us more",
        samples,
        [(&random, &varied), (&random, &varied)],
        1000,
    );
    compare(
        "digest: fixed, random",
        samples,
        [(&random, &fixed), (&random, &varied)],
        0,
    );
    compare(
        "key: full, empty limbs",
        samples,
        [(&full, &varied), (&empty, &varied)],
        0,
    );
    compare(
        "key: p > q, p < q",
        samples,
        [(&full, &varied), (&swapped, &varied)],
        0,
    );
    compare(
        "key: random, empty limbs",
        samples,
        [(&random, &varied), (&empty, &varied)],
        0,
    );
}

fn identity(pem: &[u8]) -> Arc<Identity> {
    let key = PrivateKey::from_pem(pem).unwrap();
    Arc::new(Identity::new("example.com", "s1", Arc::new(key)).unwrap())
}

type Class<'a> = (&'a Arc<Identity>, &'a dyn Fn(u64) -> u64);

fn compare(name: &str, samples: usize, classes: [Class<'_>; 2], extra_ns: u64) {
    let mut signer = Signer::new(SignerConfig::default());
    let mut times = [Vec::new(), Vec::new()];
    let mut chance = 0x9e37_79b9_7f4a_7c15u64;
    let mut out = Vec::new();
    for number in 0..2 * samples as u64 {
        chance ^= chance << 13;
        chance ^= chance >> 7;
        chance ^= chance << 17;
        let class = (chance >> 40 & 1) as usize;
        let (identity, content) = classes[class];
        for place in 0..BATCH as u64 {
            let job = job(content(number * BATCH as u64 + place), identity);
            signer.submit(job).unwrap();
        }
        let start = cpu_ns();
        signer.run_batch(&mut out);
        if class == 1 && extra_ns > 0 {
            spin(extra_ns);
        }
        times[class].push((cpu_ns() - start) as f64);
        black_box(&out);
        out.clear();
    }
    let (means, t) = welch(&times);
    let verdict = match t.abs() {
        t if t < 4.5 => "no difference found",
        t if t < 10.0 => "doubtful: more samples, a quieter machine",
        _ => "DIFFERENT",
    };
    println!(
        "{name:26} mean {:.2} / {:.2} us, difference {:+.3} us, t = {t:+.2}: {verdict}",
        means[0] / 1e3,
        means[1] / 1e3,
        (means[1] - means[0]) / 1e3,
    );
}

fn job(number: u64, identity: &Arc<Identity>) -> Job {
    let header = format!("From: a@example.com\r\nSubject: {number:020}\r\n");
    let body = BodyHash::of(Canon::Relaxed, b"x\r\n");
    let identities = [Arc::clone(identity)];
    prepare(
        header.as_bytes(),
        &body,
        &identities,
        &SignOptions::default(),
        Wall(0),
    )
    .unwrap()
}

/// CPU time of this thread in nanoseconds.
fn cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap();
    time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
}

fn spin(nanoseconds: u64) {
    let end = cpu_ns() + nanoseconds;
    while cpu_ns() < end {}
}

/// The means, and Welch's t, of the samples below the ninetieth percentile of both classes
/// together.
fn welch(times: &[Vec<f64>; 2]) -> ([f64; 2], f64) {
    let mut all: Vec<f64> = times.concat();
    all.sort_by(f64::total_cmp);
    let limit = all[all.len() * 9 / 10];
    let moments = times.each_ref().map(|samples| {
        let kept: Vec<f64> = samples
            .iter()
            .copied()
            .filter(|time| *time <= limit)
            .collect();
        let count = kept.len() as f64;
        let mean = kept.iter().sum::<f64>() / count;
        let variance = kept.iter().map(|time| (time - mean).powi(2)).sum::<f64>() / (count - 1.0);
        (mean, variance / count)
    });
    let [(first, first_error), (second, second_error)] = moments;
    (
        [first, second],
        (second - first) / (first_error + second_error).sqrt(),
    )
}
