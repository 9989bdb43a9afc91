//! What can go wrong in a world, and how often.

use std::ops::RangeInclusive;

use super::random::Random;

/// One microsecond in nanoseconds.
const US: u64 = 1_000;
/// One millisecond in nanoseconds.
const MS: u64 = 1_000_000;

/// How a world behaves. Chances are in parts per million, durations in nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimOptions {
    /// The network between all hosts.
    pub net: NetFaults,
    /// The disk that a new host gets.
    pub disk: DiskFaults,
    /// Virtual time that one poll of a task costs.
    pub poll_cost: RangeInclusive<u64>,
    /// Print every event with its time.
    pub print: bool,
}

impl SimOptions {
    /// A world without faults: short latencies, whole segments, a disk that obeys.
    #[must_use]
    pub fn calm() -> Self {
        Self {
            net: NetFaults::calm(),
            disk: DiskFaults::calm(),
            poll_cost: US..=5 * US,
            print: false,
        }
    }

    /// A swarm: which faults exist in this run, and how likely each is, depends on `seed`. Leaving
    /// faults out at random finds what their interplay would hide.
    #[must_use]
    pub fn swarm(seed: u64) -> Self {
        let random = Random::new(seed);
        Self {
            net: NetFaults::swarm(&random),
            disk: DiskFaults::swarm(&random),
            poll_cost: US..=random.within(&(5 * US..=100 * US)),
            print: false,
        }
    }
}

/// What the network does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetFaults {
    /// One way, per segment.
    pub latency: RangeInclusive<u64>,
    /// A connection attempt is refused although somebody listens.
    pub refuse: u32,
    /// A connection attempt is never answered.
    pub ignore: u32,
    /// A connection attempt finds no route.
    pub unreachable: u32,
    /// A connection is reset after a drawn number of bytes.
    pub reset: u32,
    /// A connection goes silent after a drawn number of bytes: nothing arrives any more, neither
    /// data nor its end.
    pub silence: u32,
    /// Up to how many bytes into a connection the two faults above strike.
    pub strike_bytes: u64,
    /// A connection whose bytes arrive one by one (the first few hundred of each send).
    pub single_bytes: u32,
    /// A connection whose sends are cut at drawn places.
    pub split: u32,
    /// Bytes that may be under way or unread in one direction.
    pub window: RangeInclusive<u64>,
}

impl NetFaults {
    /// Nothing goes wrong.
    #[must_use]
    pub fn calm() -> Self {
        Self {
            latency: 20 * US..=200 * US,
            refuse: 0,
            ignore: 0,
            unreachable: 0,
            reset: 0,
            silence: 0,
            strike_bytes: 0,
            single_bytes: 0,
            split: 0,
            window: 256 << 10..=256 << 10,
        }
    }

    fn swarm(random: &Random) -> Self {
        let maybe = |max: u64| {
            let ppm = if random.coin() { random.below(max) } else { 0 };
            u32::try_from(ppm).unwrap_or(0)
        };
        let slowest = random.within(&(MS..=200 * MS));
        Self {
            latency: 20 * US..=slowest,
            refuse: maybe(200_000),
            ignore: maybe(100_000),
            unreachable: maybe(50_000),
            reset: maybe(300_000),
            silence: maybe(100_000),
            strike_bytes: random.within(&(1_000..=100_000)),
            single_bytes: maybe(200_000),
            split: maybe(1_000_000),
            window: random.within(&(2_048..=16_384))..=256 << 10,
        }
    }
}

/// What a disk does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskFaults {
    /// From the request to stable storage.
    pub latency: RangeInclusive<u64>,
    /// A write takes `slow_latency` instead.
    pub slow: u32,
    /// How long a slow write takes.
    pub slow_latency: RangeInclusive<u64>,
    /// A write or its sync fails with EIO; any part of it may have happened.
    pub write_error: u32,
    /// A prefetch or a read fails with EIO.
    pub read_error: u32,
    /// One that fails leaves the first page of its range unreadable for a while; once in the
    /// life of a page.
    pub outage: u32,
    /// How long such a page stays unreadable.
    pub outage_time: RangeInclusive<u64>,
    /// Making a file, or syncing a directory, fails with EIO.
    pub directory_error: u32,
    /// Bytes that fit; growing a file beyond gives ENOSPC.
    pub capacity: Option<u64>,
    /// A write is reported durable and is not, until its bytes are written again: no honest disk,
    /// but the canary of the checkers.
    pub lie: u32,
    /// Most bits that flip in the stored data at a crash; 0: none ever.
    pub rot: u32,
}

impl DiskFaults {
    /// Nothing goes wrong.
    #[must_use]
    pub fn calm() -> Self {
        Self {
            latency: 50 * US..=500 * US,
            slow: 0,
            slow_latency: 0..=0,
            write_error: 0,
            read_error: 0,
            outage: 0,
            outage_time: 0..=0,
            directory_error: 0,
            capacity: None,
            lie: 0,
            rot: 0,
        }
    }

    /// No rot: it is switched on apart, since what may be lost depends on it.
    fn swarm(random: &Random) -> Self {
        let maybe = |max: u64| {
            let ppm = if random.coin() { random.below(max) } else { 0 };
            u32::try_from(ppm).unwrap_or(0)
        };
        let usual = random.within(&(100 * US..=20 * MS));
        Self {
            latency: 50 * US..=usual,
            slow: maybe(50_000),
            slow_latency: 20 * MS..=3_000 * MS,
            write_error: maybe(20_000),
            read_error: maybe(50_000),
            outage: maybe(120_000),
            outage_time: 1_000 * MS..=15_000 * MS,
            directory_error: maybe(20_000),
            capacity: None,
            lie: 0,
            rot: 0,
        }
    }
}
