//! Does the time of a signature depend on what is secret? A statistical test in the manner of
//! dudect (Reparaz, Balasch, Verbauwhede, "Dude, is my code constant time?").
//!
//! `cargo bench --bench dkim_timing [-- SAMPLES]`; `--test` takes a few samples only, to see that
//! it runs. All classes of work are done in one random order, so that whatever else the machine
//! does meets all of them alike; from each time the median of its neighbours in that order is taken
//! away, because the clock of a busy machine changes by a tenth from one second to the next. Two
//! classes at a time are compared by Welch's t of their times, whole and with the slowest cut off
//! at many percentiles: noise lives in the slow tail, a leak may live anywhere. The largest |t| of
//! a comparison counts. Under 4.5 for one crop no leak is found; the largest of many crops reaches
//! 5 by chance. Above 10: a leak, and the report shows its size. It asserts nothing: a noisy
//! neighbour is not a leak, and a human reads it. No difference is found says little where the
//! second control is not told from the first either: then take more samples.
//! Classes: one digest again and again against random ones; primes with nearly all limbs empty, and
//! with all limbs full; p < q and p > q; and two controls, the same work twice (must find nothing)
//! and half a microsecond more (must find it).

mod setup;

use std::hint::black_box;
use std::sync::Arc;

use postrider::dkim::{Identity, KeyKind, Signer, SignerConfig};

use crate::setup::{cpu_ns, fresh, identity, job, measures};

/// Signatures of one sample: one pass of the lanes.
const BATCH: usize = 4;
/// Samples per class where nothing is said.
const SAMPLES: usize = 15_000;
/// Samples per class for `--test`.
const FEW: usize = 50;
/// What the second control does more.
const EXTRA_NS: u64 = 500;
/// The parts of all samples, the fastest first, that are compared, in percent.
const CROPS: [usize; 12] = [100, 99, 98, 95, 90, 80, 70, 60, 50, 40, 30, 20];

/// How many samples in a row are neighbours: some 30 ms.
const NEIGHBOURS: usize = 64;

/// One kind of work, and how much longer than its neighbours it took.
struct Class {
    identity: Arc<Identity>,
    /// Sign the same digest every time.
    fixed: bool,
    extra_ns: u64,
    times: Vec<f64>,
}

fn class(identity: &Arc<Identity>, fixed: bool, extra_ns: u64) -> Class {
    Class {
        identity: Arc::clone(identity),
        fixed,
        extra_ns,
        times: Vec::new(),
    }
}

fn main() {
    // Cargo passes `--bench`; a number is ours.
    let usual = if measures() { SAMPLES } else { FEW };
    let samples = std::env::args().find_map(|word| word.parse().ok());
    let samples = samples.unwrap_or(usual);
    let random = fresh(KeyKind::Rsa2048);
    let full = identity(include_bytes!("../tests/data/dkim/limbs_full.pem"));
    let swapped = identity(include_bytes!(
        "../tests/data/dkim/limbs_full_p_less_than_q.pem"
    ));
    let empty = identity(include_bytes!("../tests/data/dkim/limbs_empty.pem"));
    let mut classes = [
        class(&random, false, 0),
        class(&random, false, 0),
        class(&random, false, EXTRA_NS),
        class(&random, true, 0),
        class(&full, false, 0),
        class(&swapped, false, 0),
        class(&empty, false, 0),
    ];
    let lanes = sample(&mut classes, samples);
    println!("lanes: {lanes}, about {samples} samples of {BATCH} signatures a class");
    println!("largest |t| of {} crops, and t of some:", CROPS.len());
    for (name, first, second) in [
        ("control: same work", 0, 1),
        ("control: 0.5 us more", 0, 2),
        ("digest: random, fixed", 0, 3),
        ("key: random, full limbs", 0, 4),
        ("key: p > q, p < q", 4, 5),
        ("key: full, empty limbs", 4, 6),
        ("key: random, empty limbs", 0, 6),
    ] {
        compare(name, &classes[first].times, &classes[second].times);
    }
}

/// Measures all classes in one random order. Whether there were lanes.
fn sample(classes: &mut [Class], samples: usize) -> bool {
    let mut signer = Signer::new(SignerConfig::default());
    let mut chance = 0x9e37_79b9_7f4a_7c15u64;
    let mut out = Vec::new();
    let mut order = Vec::with_capacity(classes.len() * samples);
    for number in 0..(classes.len() * samples) as u64 {
        chance ^= chance << 13;
        chance ^= chance >> 7;
        chance ^= chance << 17;
        let place = (chance >> 33) as usize % classes.len();
        let class = &classes[place];
        for message in 0..BATCH as u64 {
            let content = if class.fixed {
                0
            } else {
                number * BATCH as u64 + message
            };
            let header = format!("From: a@example.com\r\nSubject: {content:020}\r\n");
            signer.submit(job(&header, &class.identity)).unwrap();
        }
        let start = cpu_ns();
        signer.run_batch(&mut out);
        let end = cpu_ns() + class.extra_ns;
        // Both controls end with the same look at the clock.
        while cpu_ns() < end {}
        order.push((place, (cpu_ns() - start) as f64));
        black_box(&out);
        out.clear();
    }
    for neighbours in order.chunks(NEIGHBOURS) {
        let mut times: Vec<f64> = neighbours.iter().map(|(_, time)| *time).collect();
        times.sort_by(f64::total_cmp);
        let median = times[times.len() / 2];
        for (place, time) in neighbours {
            classes[*place].times.push(time - median);
        }
    }
    signer.has_lanes()
}

/// Prints the comparison of two classes.
fn compare(name: &str, first: &[f64], second: &[f64]) {
    let mut all: Vec<f64> = [first, second].concat();
    all.sort_by(f64::total_cmp);
    let results = CROPS.map(|crop| {
        let limit = all[(all.len() * crop / 100).saturating_sub(1)];
        welch(first, second, limit)
    });
    let worst =
        results.iter().copied().fold(
            (0.0f64, 0.0f64),
            |a, b| if b.1.abs() > a.1.abs() { b } else { a },
        );
    let verdict = match worst.1.abs() {
        t if t < 5.0 => "no difference found",
        t if t < 10.0 => "doubtful: more samples, a quieter machine",
        _ => "DIFFERENT",
    };
    let some: Vec<String> = CROPS
        .iter()
        .zip(&results)
        .step_by(2)
        .map(|(crop, (_, t))| format!("{crop}%:{t:+.1}"))
        .collect();
    println!(
        "{name:26} {:5.2}, difference there {:+.0} ns [{}]: {verdict}",
        worst.1.abs(),
        worst.0,
        some.join(" ")
    );
}

/// The difference of the means and Welch's t, of the samples up to `limit`.
fn welch(first: &[f64], second: &[f64], limit: f64) -> (f64, f64) {
    let moments = [first, second].map(|samples| {
        let kept: Vec<f64> = samples
            .iter()
            .copied()
            .filter(|time| *time <= limit)
            .collect();
        let count = (kept.len() as f64).max(2.0);
        let mean = kept.iter().sum::<f64>() / count;
        let squares = kept.iter().map(|time| (time - mean).powi(2)).sum::<f64>();
        (mean, squares / (count - 1.0) / count)
    });
    let [(first, first_error), (second, second_error)] = moments;
    let error = (first_error + second_error).sqrt();
    let difference = second - first;
    (
        difference,
        if error > 0.0 { difference / error } else { 0.0 },
    )
}
