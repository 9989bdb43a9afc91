//! Does the time of a signature depend on what is secret? A statistical test in the manner of
//! dudect (Reparaz, Balasch, Verbauwhede, "Dude, is my code constant time?").
//!
//! `cargo bench --bench dkim_timing [-- ROUNDS]`; without a number it goes on until it is certain
//! of the leak that it has planted itself, however long that takes on this machine (some minutes on
//! a busy one), so that finding no other means something; `--test` takes a few rounds only, to see
//! that it runs. In each round every class of work gets a new input, and all classes do theirs
//! `TIMES` times in turn, each time in another random order; what counts of an input is its
//! shortest time. So whatever else the machine does (interrupts, a neighbour on the other half of
//! the core, a clock that changes) meets all classes of a round alike or lengthens times that do
//! not count. Two classes are compared by their differences within each round: Yuen's t of the mean
//! with both tails trimmed at several percentiles, because what noise is left lives in the tails.
//! The largest |t| of a comparison counts. Under 4.5, dudect's threshold, no leak is found; above
//! 10 there is one, and the report shows its size. It asserts nothing: a human reads it.
//! Classes: one digest again and again against random ones; primes with nearly all limbs empty, and
//! with all limbs full; p < q and p > q; and two controls, the same work twice (must find nothing)
//! and a microsecond more (must find it; a five-hundredth of the work).

mod setup;

use std::hint::black_box;
use std::ops::Range;
use std::sync::Arc;

use postrider::dkim::{Identity, Job, KeyKind, Signed, Signer, SignerConfig};

use crate::setup::{cpu_ns, fresh, identity, job, measures};

/// Signatures of one measurement: one pass of the lanes.
const BATCH: usize = 4;
/// How many times an input is measured; the shortest counts.
const TIMES: usize = 6;
/// Rounds at least, and at most, where nothing is said: 20 seconds, and 20 minutes.
const ROUNDS: [usize; 2] = [1_000, 60_000];
/// Rounds for `--test`.
const FEW: usize = 8;
/// Rounds between two looks at the planted leak.
const LOT: usize = 500;
/// What the second control does more.
const EXTRA_NS: u64 = 1_000;
/// How much is trimmed at either end of the differences, in percent.
const TRIMS: [usize; 5] = [0, 2, 5, 10, 25];
/// From here on a difference is doubtful, and from here on certain.
const DOUBTFUL: f64 = 4.5;
const CERTAIN: f64 = 10.0;

/// One kind of work, and its shortest CPU time in each round in nanoseconds.
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

impl Class {
    /// The input of a round.
    fn jobs(&self, round: usize) -> Vec<Job> {
        let content = |message| match self.fixed {
            true => 0,
            false => round * BATCH + message,
        };
        let headers = (0..BATCH).map(|message| {
            let content = content(message);
            format!("From: a@example.com\r\nSubject: {content:020}\r\n")
        });
        headers.map(|header| job(&header, &self.identity)).collect()
    }

    fn measure(&self, jobs: &[Job], signer: &mut Signer, out: &mut Vec<Signed>) -> f64 {
        for job in jobs {
            signer.submit(job.clone()).unwrap();
        }
        let start = cpu_ns();
        signer.run_batch(out);
        let end = cpu_ns() + self.extra_ns;
        // All classes end with the same look at the clock.
        while cpu_ns() < end {}
        let time = (cpu_ns() - start) as f64;
        black_box(&out);
        out.clear();
        time
    }
}

fn main() {
    // Cargo passes `--bench`; a number is ours.
    let [least, most] = if measures() { ROUNDS } else { [FEW; 2] };
    let given: Option<usize> = std::env::args().find_map(|word| word.parse().ok());
    let (least, most) = given.map_or((least, most), |rounds| (rounds, rounds));
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
    let mut sampler = Sampler::default();
    let mut rounds = 0;
    while rounds < least || (rounds < most && !is_found(&classes)) {
        let lot = LOT.min(most - rounds);
        sampler.sample(&mut classes, rounds..rounds + lot);
        rounds += lot;
    }
    let lanes = sampler.signer.has_lanes();
    println!("lanes: {lanes}, {rounds} rounds, the shortest of {TIMES} times {BATCH} signatures");
    println!("largest |t| of {} trims, and each:", TRIMS.len());
    for (name, first, second) in [
        ("control: same work", 0, 1),
        ("control: 1 us more", 0, PLANTED),
        ("digest: random, fixed", 0, 3),
        ("key: random, full limbs", 0, 4),
        ("key: p > q, p < q", 4, 5),
        ("key: full, empty limbs", 4, 6),
        ("key: random, empty limbs", 0, 6),
    ] {
        compare(name, &classes[first].times, &classes[second].times);
    }
}

/// The class with the planted leak.
const PLANTED: usize = 2;

/// Whether the planted leak is certain.
fn is_found(classes: &[Class]) -> bool {
    let differences = differences(&classes[0].times, &classes[PLANTED].times);
    TRIMS
        .iter()
        .any(|trim| yuen(&differences, *trim).1 >= CERTAIN)
}

struct Sampler {
    signer: Signer,
    chance: u64,
}

impl Default for Sampler {
    fn default() -> Self {
        Self {
            signer: Signer::new(SignerConfig::default()),
            chance: 0x9e37_79b9_7f4a_7c15,
        }
    }
}

impl Sampler {
    fn below(&mut self, bound: usize) -> usize {
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        (self.chance >> 33) as usize % bound
    }

    /// Measures all classes in each of these rounds.
    fn sample(&mut self, classes: &mut [Class], rounds: Range<usize>) {
        let mut out = Vec::new();
        let mut order: Vec<usize> = (0..classes.len()).collect();
        for round in rounds {
            let inputs: Vec<Vec<Job>> = classes.iter().map(|class| class.jobs(round)).collect();
            let mut shortest = vec![f64::INFINITY; classes.len()];
            for _ in 0..TIMES {
                for place in (1..order.len()).rev() {
                    order.swap(place, self.below(place + 1));
                }
                for place in &order {
                    let jobs = &inputs[*place];
                    let time = classes[*place].measure(jobs, &mut self.signer, &mut out);
                    shortest[*place] = shortest[*place].min(time);
                }
            }
            for (class, time) in classes.iter_mut().zip(shortest) {
                class.times.push(time);
            }
        }
    }
}

/// The differences within each round, sorted.
fn differences(first: &[f64], second: &[f64]) -> Vec<f64> {
    let mut all: Vec<f64> = first.iter().zip(second).map(|(a, b)| b - a).collect();
    all.sort_by(f64::total_cmp);
    all
}

/// Prints the comparison of two classes.
fn compare(name: &str, first: &[f64], second: &[f64]) {
    let differences = differences(first, second);
    let results = TRIMS.map(|trim| yuen(&differences, trim));
    let worst =
        results.into_iter().fold(
            (0.0f64, 0.0f64),
            |a, b| if b.1.abs() > a.1.abs() { b } else { a },
        );
    let verdict = match worst.1.abs() {
        t if t < DOUBTFUL => "no difference found",
        t if t < CERTAIN => "doubtful: more rounds, a quieter machine",
        _ => "DIFFERENT",
    };
    let each: Vec<String> = TRIMS
        .iter()
        .zip(&results)
        .map(|(trim, (_, t))| format!("{trim}%:{t:+.1}"))
        .collect();
    println!(
        "{name:26} {:5.2}, difference there {:+.0} ns [{}]: {verdict}",
        worst.1.abs(),
        worst.0,
        each.join(" ")
    );
}

/// The mean without so many percent at either end, and Yuen's t of it: its error is that of the
/// values with the ends drawn in to where the trimming begins. `sorted` is.
fn yuen(sorted: &[f64], trim: usize) -> (f64, f64) {
    let cut = sorted.len() * trim / 100;
    let kept = &sorted[cut..sorted.len() - cut];
    let (Some(least), Some(most)) = (kept.first(), kept.last()) else {
        return (0.0, 0.0);
    };
    let count = sorted.len() as f64;
    let mean = kept.iter().sum::<f64>() / kept.len() as f64;
    let drawn = sorted.iter().map(|value| value.clamp(*least, *most));
    let centre = drawn.clone().sum::<f64>() / count;
    let squares = drawn.map(|value| (value - centre).powi(2)).sum::<f64>();
    let deviation = (squares / (count - 1.0).max(1.0)).sqrt();
    let error = deviation / (kept.len() as f64 / count) / count.sqrt();
    let t = if error > 0.0 { mean / error } else { 0.0 };
    (mean, t)
}
