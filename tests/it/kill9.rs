//! kill9 - the daemon is killed without warning, again and again, during a campaign: what was
//! acknowledged arrives, unchanged, and only what was in flight arrives twice.

use std::time::Duration;

use postrider::lab::demo::{DemoOptions, DemoReport, run};

use crate::harness::{Scratch, is_long};

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

// R1: as many kills as are asked for, in as many campaigns as that takes: a slow machine has fewer
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
