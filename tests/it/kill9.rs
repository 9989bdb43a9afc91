//! kill9 - the daemon is killed without warning, again and again, during a campaign: what was
//! acknowledged arrives, unchanged, and only what was in flight arrives twice.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use postrider::lab::demo::{DemoOptions, DemoReport, run};
use postrider::lab::ledger::Arrival;
use postrider::time::Mono;

use crate::harness::{Scratch, is_long};
use crate::life::Dice;
use crate::under_load::{UnderLoad, connect, submit};

/// One campaign with at most `kills` kills.
fn storm(options: DemoOptions) -> DemoReport {
    let scratch = Scratch::new();
    let report = run(DemoOptions {
        program: Some(env!("CARGO_BIN_EXE_postrider").into()),
        keep: Some(scratch.path().join("demo")),
        drain: Duration::from_secs(120),
        ..options
    });
    let report = report.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((report.lost, report.corrupt), (0, 0), "{report:?}");
    assert!(
        report.duplicates <= report.duplicates_explained_max,
        "{report:?}"
    );
    assert!(report.holds(), "{report:?}");
    // Every message was sent again until it had its answer, and every one has left.
    assert_eq!(report.accepted, options.messages, "{report:?}");
    assert_eq!((report.refused, report.deferred), (0, 0), "{report:?}");
    report
}

// As many kills as are asked for, in as many campaigns as that takes: a slow machine has fewer
// of them per campaign.
#[test]
fn killed_during_a_campaign_nothing_is_lost_and_only_what_was_in_flight_comes_twice() {
    let (kills_wanted, accepted_wanted, messages, rate, every) = if is_long() {
        (200, 100_000, 100_000, 1000.0, Duration::from_millis(1500))
    } else {
        (20, 6_000, 6_000, 300.0, Duration::from_millis(600))
    };
    let (mut kills, mut accepted, mut duplicates, mut seed) = (0, 0, 0, 1);
    while kills < kills_wanted || accepted < accepted_wanted {
        let report = storm(DemoOptions {
            messages,
            rate: Some(rate),
            sessions: 20,
            shards: Some(1),
            kill_every: Some(every),
            kills_max: Some(kills_wanted - kills),
            seed,
            ..DemoOptions::default()
        });
        kills += report.kills;
        accepted += report.accepted;
        duplicates += report.duplicates;
        seed += 1;
        assert!(seed < 50, "only {kills} kills in {seed} campaigns");
    }
    println!("{kills} kills, {accepted} acknowledged, lost 0, corrupt 0, duplicates {duplicates}");
    if is_long() {
        assert!(duplicates * 1000 <= accepted, "{duplicates} of {accepted}");
    }
}

/// A delivery may be in flight for so long: answered by the receiver, and not settled on disk. A
/// settlement waits 2 ms for its group and then for the disk, which others keep busy too; most take
/// less than 3 ms in all.
const IN_FLIGHT: Duration = Duration::from_millis(250);

/// The end of one life, and the start of the next.
struct Kill {
    /// When it was killed.
    at: Mono,
    /// When the receiver had read all that it sent, before the next was started.
    over: Mono,
    /// From the start of the next until its first 250.
    first: Duration,
}

/// What came of one kill.
#[derive(Debug, Default)]
struct Harm {
    in_flight: u64,
    repeated: u64,
    /// How long before the kill the oldest of what was repeated had arrived.
    oldest: Duration,
}

/// The clock of the ledgers.
fn now() -> Mono {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap();
    Mono(u64::try_from(Duration::from(time).as_nanos()).unwrap())
}

/// Holds every delivery that came again against the kill that ended the life of the one before.
fn harm(arrivals: &[Arrival], kills: &[Kill]) -> Vec<Harm> {
    let life = |at: Mono| kills.partition_point(|kill| kill.over <= at);
    let mut harm: Vec<Harm> = kills.iter().map(|_| Harm::default()).collect();
    let mut last = HashMap::new();
    for arrival in arrivals {
        if let Some(kill) = kills.get(life(arrival.at)) {
            let fresh = kill.at.since(arrival.at) <= IN_FLIGHT;
            harm[life(arrival.at)].in_flight += u64::from(fresh);
        }
        let recipient = (arrival.id.bits(), arrival.recipient);
        let Some(before) = last.insert(recipient, arrival.at) else {
            continue;
        };
        let one = life(before);
        assert!(one < life(arrival.at), "twice in one life: {arrival:?}");
        // So it is one of those counted as in flight at that kill.
        let age = kills[one].at.since(before);
        // The short form runs on machines that stand still for longer than that.
        if is_long() {
            assert!(age <= IN_FLIGHT, "{age:?} before kill {one}: {arrival:?}");
        }
        harm[one].repeated += 1;
        harm[one].oldest = harm[one].oldest.max(age);
    }
    harm
}

// What comes twice is held against what was in flight at the kill between, each by itself.
#[test]
fn each_kill_repeats_only_what_was_in_flight_at_it() {
    let (wanted, rate, life) = if is_long() {
        (200, 1000.0, 1000)
    } else {
        (10, 300.0, 400)
    };
    let scratch = Scratch::new();
    let mut node = UnderLoad::start(&scratch, rate, "");
    let mut dice = Dice(9);
    let mut kills = Vec::new();
    for _ in 0..wanted {
        node.wait_for(30 + dice.below(life));
        let at = now();
        node.life.kill();
        node.wait_for_the_receiver();
        let (over, begin) = (now(), Instant::now());
        node.life.start();
        submit(&mut connect(node.life.address));
        let first = begin.elapsed();
        kills.push(Kill { at, over, first });
    }
    let outcome = node.end();
    let verdict = outcome.verdict;
    assert_eq!((verdict.lost, verdict.corrupt), (0, 0), "{verdict:?}");
    let harm = harm(&outcome.arrivals, &kills);
    for (kill, harm) in kills.iter().zip(&harm) {
        println!("first 250 after {:?}, {harm:?}", kill.first);
    }
    let repeated: u64 = harm.iter().map(|harm| harm.repeated).sum();
    let slowest = kills.iter().map(|kill| kill.first).max().unwrap();
    println!("{wanted} kills, slowest first 250 {slowest:?}, repeated {repeated}, {verdict:?}");
    assert_eq!(repeated, verdict.duplicates + verdict.repeated);
    if is_long() {
        assert!(slowest <= Duration::from_secs(1), "{slowest:?}");
    }
}
