//! restart - a node is restarted, and told to read its keys again, under load: nothing is lost,
//! nothing comes twice, nobody has to send a message again, and it is away for a moment only.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::{Scratch, is_long, program, run, wait_until};
use crate::under_load::{Outcome, UnderLoad, connect};

/// Restarts, or reloads.
fn times() -> usize {
    if is_long() { 20 } else { 5 }
}

/// Messages per second.
const RATE: f64 = 300.0;

fn assert_exact(outcome: &Outcome) {
    let Outcome {
        report, verdict, ..
    } = outcome;
    let wrong = (verdict.lost, verdict.duplicates, verdict.repeated);
    assert_eq!(wrong, (0, 0, 0), "{report:?}, {verdict:?}");
    assert_eq!((verdict.corrupt, verdict.unknown), (0, 0), "{verdict:?}");
    assert_eq!(verdict.delivered, verdict.acknowledged, "{verdict:?}");
    // Whoever had sent a message had its reply.
    assert_eq!((report.refused, report.unanswered), (0, 0), "{report:?}");
    assert_eq!(verdict.unacknowledged, 0, "{verdict:?}");
}

// SIGTERM and a start, again and again. Each time there is a client that says nothing: nobody
// waits for it.
#[test]
fn restarts_under_load_lose_and_repeat_nothing() {
    let scratch = Scratch::new();
    let mut node = UnderLoad::start(&scratch, RATE, "");
    let (mut slowest_end, mut slowest_start, mut away) = Default::default();
    for restart in 0..times() {
        node.wait_for(200);
        let mut idle = connect(node.life.address);
        let begin = Instant::now();
        let code = node.life.stop();
        assert_eq!(code, Some(0), "restart {restart}: {}", node.life.log());
        slowest_end = begin.elapsed().max(slowest_end);
        assert_eq!(idle.read_reply(), 421, "{}", idle.reply);
        slowest_start = node.life.start().max(slowest_start);
        connect(node.life.address).hang_up();
        away = begin.elapsed().max(away);
    }
    let outcome = node.end();
    let Outcome {
        report, verdict, ..
    } = &outcome;
    println!(
        "{} restarts, slowest end {slowest_end:?}, start {slowest_start:?}, from signal to \
         greeting {away:?}, {report:?}, {verdict:?}",
        times()
    );
    assert_exact(&outcome);
    // Replies other than 421 refuse nobody here.
    assert!(
        report.refusals.iter().all(|row| row.code == 421),
        "{report:?}"
    );
    if is_long() {
        assert!(away <= Duration::from_secs(1), "{away:?}");
    }
}

/// A new key in place of the one at `file`, as `postrider keygen` makes it.
fn change_key(file: &Path) {
    let new = file.with_extension("new");
    run(program()
        .args(["keygen", "--domain", "lab.test", "--selector", "s1"])
        .args(["--algorithm", "ed25519", "--out"])
        .arg(&new));
    std::fs::rename(new, file).unwrap();
}

// SIGHUP with a new key, again and again: no session notices.
#[test]
fn reloads_under_load_lose_and_repeat_nothing() {
    let scratch = Scratch::new();
    let key = scratch.path().join("key.pem");
    change_key(&key);
    let more = format!("[[dkim]]\ndomain = \"lab.test\"\nselector = \"s1\"\nkey = {key:?}\n");
    let node = UnderLoad::start(&scratch, RATE, &more);
    let again = "the DKIM keys were read again";
    for reload in 0..times() {
        node.wait_for(200);
        change_key(&key);
        node.life.signal(Signal::SIGHUP);
        wait_until("a reload", || {
            node.life.log().matches(again).count() > reload
        });
    }
    let outcome = node.end();
    let Outcome {
        report, verdict, ..
    } = &outcome;
    println!("{} reloads, {report:?}, {verdict:?}", times());
    assert_exact(&outcome);
    assert_eq!((report.errors, report.retried), (0, 0), "{report:?}");
    assert!(report.refusals.is_empty(), "{report:?}");
}
