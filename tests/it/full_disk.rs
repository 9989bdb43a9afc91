//! full_disk - no space, or no inodes, under the spool: new mail is refused for now, what was
//! accepted leaves, and mail is taken again once there is space.

use std::fs::{self, File};
use std::time::{Duration, Instant};

use postrider::lab::load::{self, LoadOptions, LoadReport};

use crate::books;
use crate::harness::{Client, Scratch, is_long, require, wait_until};
use crate::life::{Life, Volume, may_mount, place, sink};

/// Bytes of a message.
const SIZE: usize = 64 << 10;

/// One message as large as those of the flood, over a new connection; the last reply. A small one
/// may still find room in the last file.
fn submit(life: &Life) -> String {
    let mut client = Client::greeted(life.address);
    for line in [
        "MAIL FROM:<a@b.example>",
        "RCPT TO:<r0@d0.lab.test>",
        "DATA",
    ] {
        if client.command(line) >= 400 {
            return client.reply;
        }
    }
    let lines = "Hello, is there any space?\r\n".repeat(SIZE / 28);
    client.send(format!("Subject: space\r\n\r\n{lines}.\r\n"));
    assert_ne!(client.read_reply(), 0, "it hung up");
    client.reply
}

/// A campaign that is more than the volume holds.
fn flood(life: &Life, scratch: &Scratch, codes: &[u16]) -> LoadReport {
    let report = load::run(LoadOptions {
        target: life.address,
        messages: 2500,
        size: SIZE,
        sessions: 10,
        domains: 1,
        ledger: Some(scratch.path().join("sent.ledger")),
        ..LoadOptions::default()
    })
    .unwrap();
    assert!(report.accepted > 0 && report.refused > 0, "{report:?}");
    assert_eq!(report.accepted + report.refused, 2500, "{report:?}");
    let known = |code| codes.contains(&code);
    assert!(
        report.refusals.iter().all(|row| known(row.code)),
        "{report:?}"
    );
    // Refused with a reply: nobody was hung up on.
    assert_eq!((report.errors, report.unanswered), (0, 0), "{report:?}");
    report
}

/// From full to empty: delivers all that was accepted, and waits until new mail is taken.
fn recover(mut life: Life, scratch: &Scratch, there: std::net::SocketAddr, report: &LoadReport) {
    let receiver = sink(there, &scratch.path().join("arrivals"));
    wait_until("the deliveries", || {
        receiver.report().delivered >= report.accepted
    });
    let freed = Instant::now();
    wait_until("new mail to be taken", || submit(&life).starts_with("250"));
    let again = freed.elapsed();
    println!("accepted again after {again:?}, {report:?}");
    if is_long() {
        assert!(again <= Duration::from_secs(5), "{again:?}");
    }
    assert!(life.runs());
    life.kill();
    let ledgers = receiver.ledgers().to_vec();
    receiver.stop().unwrap();
    let verdict = books::verdict(&scratch.path().join("sent.ledger"), &ledgers);
    let wrong = (verdict.lost, verdict.corrupt, verdict.duplicates);
    assert_eq!(wrong, (0, 0, 0), "{verdict:?}");
}

// A full disk.
#[test]
fn without_space_mail_gets_452_and_what_was_accepted_leaves() {
    if !may_mount() || require("mkfs.ext4").is_none() {
        return;
    }
    let scratch = Scratch::new();
    let volume = Volume::ext4(scratch.path(), 64, 1024);
    let there = place();
    let data = volume.path().join("data");
    let mut life = Life::new(&scratch.path().join("node"), &data, there);
    life.start();
    let report = flood(&life, &scratch, &[452]);
    let reply = submit(&life);
    assert!(reply.starts_with("452 4.3.1"), "{reply}");
    assert!(life.runs());
    recover(life, &scratch, there, &report);
}

// There is space, but no file can be made.
#[test]
fn without_inodes_mail_gets_452_and_what_was_accepted_leaves() {
    if !may_mount() || require("mkfs.ext4").is_none() {
        return;
    }
    let scratch = Scratch::new();
    let volume = Volume::ext4(scratch.path(), 512, 128);
    let there = place();
    let data = volume.path().join("data");
    let mut life = Life::new(&scratch.path().join("node"), &data, there);
    life.start();
    let mut fillers = Vec::new();
    loop {
        let path = volume.path().join(format!("filler-{}", fillers.len()));
        if File::create(&path).is_err() {
            break;
        }
        fillers.push(path);
        assert!(fillers.len() < 10_000, "the inodes do not end");
    }
    let report = flood(&life, &scratch, &[452]);
    let reply = submit(&life);
    assert!(reply.starts_with("452 4.3.1"), "{reply}");
    assert!(life.runs());
    for path in fillers {
        fs::remove_file(path).unwrap();
    }
    recover(life, &scratch, there, &report);
}
