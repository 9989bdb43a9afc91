//! Load generator and sink against each other, over io_uring and loopback, no daemon between them.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use super::check::{Books, Verdict};
use super::ledger::tests::Scratch;
use super::ledger::{Arrival, LedgerReader, Sent};
use super::load::{Dialogue, LoadOptions, LoadReport};
use super::personality::Mix;
use super::sink::{Sink, SinkOptions, SinkReport};
use super::{LabError, load};

/// A sink on addresses of this test's own.
fn sink(scratch: &Scratch, personality: &str) -> Sink {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let block = NEXT.fetch_add(1, Ordering::Relaxed);
    let process = std::process::id();
    let first = Ipv4Addr::new(
        127,
        100 + (process % 100) as u8,
        (process / 100 % 250) as u8,
        block,
    );
    let options = SinkOptions {
        // Consecutive addresses: blocks of 4, for at most 3 domains.
        first_address: Ipv4Addr::from((u32::from(first) & !0xff) + u32::from(block) * 4),
        port: 0,
        domains: 3,
        mix: Mix::parse(&[personality]).unwrap(),
        ledger: Some(scratch.0.clone()),
        ..SinkOptions::default()
    };
    Sink::start(options).unwrap()
}

fn options(sink: &Sink, scratch: &Scratch) -> LoadOptions {
    LoadOptions {
        target: sink.address(0),
        messages: 300,
        size: 5_000,
        sessions: 7,
        domains: 3,
        recipients: 2,
        ledger: Some(scratch.0.join("sent.ledger")),
        ..LoadOptions::default()
    }
}

fn books(directory: &Path, sink: SinkReport, report: &LoadReport) -> Verdict {
    let sent = LedgerReader::<Sent>::open(&directory.join("sent.ledger")).unwrap();
    let mut books = Books::open(sent).unwrap();
    let mut arrivals = 0;
    for arrival in LedgerReader::<Arrival>::open(&directory.join("arrivals-0.ledger")).unwrap() {
        books.arrived(&arrival.unwrap());
        arrivals += 1;
    }
    let verdict = books.verdict();
    assert_eq!(verdict.acknowledged, report.recipients);
    assert_eq!((verdict.corrupt, verdict.unknown, verdict.lost), (0, 0, 0));
    assert!(arrivals >= sink.delivered);
    verdict
}

// Every way to send, against a sink that takes everything: all arrive once, unchanged.
#[test]
fn every_dialogue_delivers_every_message() {
    for dialogue in [Dialogue::Pipelining, Dialogue::Basic] {
        for chunking in [false, true] {
            let scratch = Scratch::new();
            let sink = sink(&scratch, "accept");
            let report = load::run(LoadOptions {
                dialogue,
                chunking,
                ..options(&sink, &scratch)
            })
            .unwrap();
            assert_eq!((report.accepted, report.recipients), (300, 600));
            assert_eq!(
                (report.refused, report.errors, report.unanswered),
                (0, 0, 0)
            );
            assert!(report.latency_us.p50 > 0 && report.latency_us.max >= report.latency_us.p50);
            let seen = sink.stop().unwrap();
            assert_eq!(
                (seen.messages, seen.delivered, seen.violations),
                (300, 600, 0)
            );
            let verdict = books(&scratch.0, seen, &report);
            assert_eq!((verdict.delivered, verdict.duplicates), (600, 0));
        }
    }
}

// Connections that end by themselves, refusals for now and without reply: with reconnect and tries
// every message is acknowledged in the end, and what was sent twice has two ids.
#[test]
fn a_difficult_receiver_gets_everything_in_the_end() {
    for personality in [
        "messages:3",
        "tempfail:20",
        "tempfail-dot:20",
        "close:dot:10",
        "close:content:10",
    ] {
        for chunking in [false, true] {
            let scratch = Scratch::new();
            let sink = sink(&scratch, personality);
            let report = load::run(LoadOptions {
                chunking,
                recipients: 1,
                reconnect: true,
                retries: 1000,
                retry_delay: Duration::from_millis(1),
                ..options(&sink, &scratch)
            })
            .unwrap();
            assert_eq!((report.accepted, report.refused), (300, 0), "{personality}");
            let seen = sink.stop().unwrap();
            let verdict = books(&scratch.0, seen, &report);
            assert_eq!(
                (verdict.delivered, verdict.duplicates),
                (300, 0),
                "{personality}"
            );
            let silent = personality.starts_with("close");
            assert_eq!(report.unanswered > 0, silent, "{personality}");
            let arrived_unanswered = personality == "close:dot:10";
            assert_eq!(
                verdict.unacknowledged > 0,
                arrived_unanswered,
                "{personality}"
            );
        }
    }
}

// A refusal is counted by its code and the message given up; what some recipients took may arrive.
#[test]
fn refusals_are_counted_by_code() {
    let scratch = Scratch::new();
    let sink = sink(&scratch, "reject:30");
    let report = load::run(options(&sink, &scratch)).unwrap();
    assert_eq!(report.accepted + report.refused, 300);
    assert!(report.accepted > 0 && report.refused > 0);
    assert_eq!(
        report
            .refusals
            .iter()
            .map(|r| (r.code, r.count))
            .collect::<Vec<_>>(),
        [(550, report.refused)]
    );
    assert!(!report.refusals[0].text.is_empty(), "{report:?}");
    let seen = sink.stop().unwrap();
    let verdict = books(&scratch.0, seen, &report);
    assert_eq!(verdict.delivered, report.recipients);
    assert!(verdict.unacknowledged > 0);
}

// A schedule is kept: with two sessions, and a due time for every message.
#[test]
fn a_rate_is_reported_with_both_latencies() {
    let scratch = Scratch::new();
    let sink = sink(&scratch, "no-chunking+no-pipelining");
    let load = LoadOptions {
        rate: Some(5_000.0),
        sessions: 2,
        ..options(&sink, &scratch)
    };
    let report = load::run(load).unwrap();
    assert_eq!((report.accepted, report.rate), (300, Some(5_000.0)));
    // The keys that programs read in every report; null says "not seen from here".
    let json = serde_json::to_value(&report).unwrap();
    for key in [
        "delivered",
        "deferred",
        "bounced",
        "lost",
        "duplicates",
        "corrupt",
    ] {
        assert_eq!(json.get(key), Some(&serde_json::Value::Null), "{key}");
    }
    assert!(report.seconds >= 299.0 / 5_000.0);
    assert!(report.latency_from_due_us.max >= report.latency_us.p50);
    assert_eq!(sink.stop().unwrap().violations, 0);
}

// Nobody at the target, and options that make no sense: an error that says so.
#[test]
fn errors_are_reported() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let target = free.local_addr().unwrap();
    drop(free);
    let nobody = load::run(LoadOptions {
        target,
        sessions: 2,
        ..LoadOptions::default()
    });
    assert!(matches!(nobody, Err(LabError::Connect(address, _)) if address == target));
    let none = LoadOptions {
        sessions: 0,
        ..LoadOptions::default()
    };
    assert!(matches!(load::run(none), Err(LabError::Options(_))));
    let small = LoadOptions {
        size: 10,
        ..LoadOptions::default()
    };
    assert!(matches!(load::run(small), Err(LabError::Template(_))));
    let rate = LoadOptions {
        rate: Some(0.0),
        ..LoadOptions::default()
    };
    assert!(matches!(load::run(rate), Err(LabError::Options(_))));
}
