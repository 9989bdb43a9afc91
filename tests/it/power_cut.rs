//! power_cut - the file system under the spool is shut down without its journal, as by a power
//! cut, under load: what was acknowledged is there after the remount.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use postrider::lab::load::{self, LoadCounters, LoadOptions};

use crate::books;
use crate::harness::{PATIENCE, Scratch, is_long, require, wait_until};
use crate::life::{Dice, Life, Volume, may_mount, place, sink};

// The ledgers are on another file system.
#[test]
fn a_power_cut_loses_nothing_that_was_acknowledged() {
    if !may_mount() || require("mkfs.ext4").is_none() || require("python3").is_none() {
        return;
    }
    let cuts = if is_long() { 50 } else { 3 };
    let scratch = Scratch::new();
    let mut volume = Volume::ext4(scratch.path(), 512, 1024);
    let there = place();
    let receiver = sink(there, &scratch.path().join("arrivals"));
    let data = volume.path().join("data");
    let mut life = Life::new(&scratch.path().join("node"), &data, there);
    life.start();
    let counters = Arc::<LoadCounters>::default();
    let ledger = scratch.path().join("sent.ledger");
    let options = LoadOptions {
        target: life.address,
        messages: u64::MAX,
        rate: Some(300.0),
        sessions: 10,
        domains: 1,
        ledger: Some(ledger.clone()),
        retries: 1000,
        reconnect: true,
        reconnect_patience: PATIENCE,
        counters: Arc::clone(&counters),
        ..LoadOptions::default()
    };
    let load = std::thread::spawn(move || load::run(options).unwrap());
    let accepted = || counters.accepted.load(Ordering::Relaxed);
    let mut dice = Dice(2);
    let mut slowest = Duration::ZERO;
    for cut in 0..cuts {
        let at = accepted() + 50 + dice.below(400);
        wait_until("mail before the cut", || accepted() >= at);
        volume.cut();
        assert!(life.runs(), "it ended at cut {cut}: {}", life.log());
        life.kill();
        volume.unmount();
        volume.mount();
        slowest = slowest.max(life.start());
    }
    let at = accepted() + 100;
    wait_until("mail after the last cut", || accepted() >= at);
    counters.stop.store(true, Ordering::Relaxed);
    let report = load.join().unwrap();
    wait_until("an empty queue", || life.waiting() == 0);
    life.kill();
    let ledgers = receiver.ledgers().to_vec();
    receiver.stop().unwrap();
    let verdict = books::verdict(&ledger, &ledgers);
    println!("{cuts} cuts, slowest start {slowest:?}, {report:?}, {verdict:?}");
    assert_eq!(verdict.acknowledged, report.accepted);
    assert_eq!((verdict.lost, verdict.corrupt), (0, 0), "{verdict:?}");
    // The ledger does not list what was answered 451 after the cut. Such a message may be whole on
    // the disk, and nothing could be written any more to take it back: it may come twice, under the
    // number of each try.
    assert!(verdict.unknown <= report.retried, "{verdict:?}");
    if is_long() {
        assert!(slowest <= Duration::from_secs(5), "{slowest:?}");
    }
}
