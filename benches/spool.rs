//! What the spool's core costs: appending and laying out messages of 10 KiB, and recovering heads.

use std::hint::black_box;
use std::time::Duration;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use postrider::message::{Address, Envelope, Recipient};
use postrider::spool::format::Log;
use postrider::spool::recover::{Recovery, Scan, Step};
use postrider::spool::{Action, Completion, Outcome, Spool, SpoolConfig};
use postrider::time::{Mono, Wall};

fn config() -> SpoolConfig {
    SpoolConfig {
        shard: 0,
        segment_bytes: 64 << 20,
        state_segment_bytes: 4 << 20,
        low_water_bytes: 0,
        free_kept: 4,
        settle_wait: Duration::from_millis(2),
        seed: 1,
    }
}

fn envelope() -> Envelope {
    let address = |text: &[u8]| Address::parse_path(text).expect("an address");
    Envelope {
        sender: Some(address(b"bounce-1234567@news.example.com")),
        recipients: vec![Recipient::new(address(b"somebody@example.org"))],
        ..Envelope::default()
    }
}

/// Answers what the core asks for; keeps the bytes of one segment where wanted.
fn drive(spool: &mut Spool, now: Mono, kept: &mut Option<Vec<u8>>) -> u64 {
    let mut stored = 0;
    while let Some(action) = spool.poll(now) {
        match action {
            Action::Write {
                ticket,
                log,
                segment,
                offset,
                block,
            } => {
                if let (Some(file), Log::Message, 0) = (kept.as_mut(), log, segment) {
                    let at = offset as usize;
                    file[at..at + block.len()].copy_from_slice(&block);
                }
                spool.written(ticket, block, Outcome::Done, now);
            }
            Action::Create { log, segment, .. } => spool.created(log, segment, Outcome::Done, now),
            Action::Release { segment } => spool.released(segment),
            Action::Remove { log, segment } => spool.removed(log, segment, Outcome::Done),
            Action::Copy { .. } => unreachable!("reclaim is not enabled"),
        }
    }
    while let Some(completion) = spool.completion() {
        stored += u64::from(matches!(completion, Completion::Append(_, Ok(_))));
    }
    stored
}

fn new_spool() -> Spool {
    let mut recovery = Recovery::new(config());
    recovery.states_end();
    recovery.finish(u64::MAX / 2, Mono(0)).0
}

/// One group of 64 messages of 10 KiB: the CPU between `append` and the proof, without the disk.
/// The index fills as in life, and the spool is made anew when it has 100,000 messages.
fn commit(c: &mut Criterion) {
    let mut group = c.benchmark_group("spool");
    group.throughput(Throughput::Elements(64));
    let content = Bytes::from(vec![b'x'; 10 << 10]);
    let envelope = envelope();
    let mut spool = new_spool();
    let mut count = 0;
    group.bench_function("commit 64 x 10 KiB", |b| {
        b.iter(|| {
            if count > 100_000 {
                (spool, count) = (new_spool(), 0);
            }
            for token in 0..64 {
                let id = spool.next_id();
                let taken = spool.append(token, id, &envelope, content.clone(), Wall(1));
                taken.expect("space");
            }
            count += drive(&mut spool, Mono(1), &mut None);
        });
    });
    group.finish();
}

/// One full segment of small messages: what a restart costs per message.
fn recover(c: &mut Criterion) {
    let mut spool = new_spool();
    let mut file = Some(vec![0u8; 64 << 20]);
    let envelope = envelope();
    drive(&mut spool, Mono(1), &mut file);
    let content = Bytes::from(vec![b'x'; 1 << 10]);
    let mut messages = 0;
    for _ in 0..700 {
        for token in 0..64 {
            let id = spool.next_id();
            spool
                .append(token, id, &envelope, content.clone(), Wall(1))
                .expect("space");
        }
        messages += drive(&mut spool, Mono(1), &mut file);
    }
    let file = file.unwrap_or_default();
    let mut group = c.benchmark_group("spool");
    group.sample_size(10);
    group.throughput(Throughput::Elements(messages));
    group.bench_function("recover heads", |b| {
        b.iter(|| {
            let mut recovery = Recovery::new(config());
            let len = file.len() as u64;
            let stamp = recovery
                .file(Log::Message, 0, &file[..8192], len)
                .expect("a header");
            recovery.states_end();
            let mut scan = Scan::new(stamp);
            scan.grant(0..file.len());
            while let Step::Group(found) = scan.step(&file) {
                recovery.mail_group(0, &found);
            }
            let (spool, report) = recovery.finish(u64::MAX / 2, Mono(0));
            assert_eq!(report.queued_messages, messages);
            black_box(spool.status().index_bytes)
        });
    });
    group.finish();
}

criterion_group!(benches, commit, recover);
criterion_main!(benches);
