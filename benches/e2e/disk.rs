//! disk - what stands on the disk's own speed: how fast one shard makes mail durable, and whether
//! mail that is not in memory ever holds up mail that comes in.

use std::cell::{Cell, RefCell};
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use postrider::engine::uring::{UringConfig, UringPort, UringRuntime};
use postrider::engine::{Class, Port, Signal};
use postrider::limits;
use postrider::message::{Address, Content, Envelope, Recipient};
use postrider::service::spooler::{Spooler, SpoolerConfig};
use postrider::spool::{Settlement, SettlementKind};
use serde_json::Value;

use crate::cases::{Scale, patience, route};
use crate::report::Figures;
use crate::stage::{Daemon, Outcome, Place, Sink, failed, load};

/// One shard's spool alone: tasks that each store a message of 10 KiB, wait for the proof, settle
/// it and go on, as sessions do. Fifty for the wait, and as many as a busy shard has for the rate.
pub(crate) fn durable_accept(scale: Scale<'_>) -> Outcome<Figures> {
    let messages = scale.messages(200_000, 2_000);
    let few = store(scale, messages, 50)?;
    let many = store(scale, messages, 400)?;
    Ok(vec![
        ("stored_per_second_50", few.rate),
        ("wait_p50_ms_50", few.p50_ms),
        ("wait_p99_ms_50", few.p99_ms),
        ("cpu_us_per_message_50", few.cpu_us),
        ("stored_per_second_400", many.rate),
        ("wait_p99_ms_400", many.p99_ms),
        ("cpu_us_per_message_400", many.cpu_us),
    ])
}

struct Stored {
    rate: f64,
    p50_ms: f64,
    p99_ms: f64,
    cpu_us: f64,
}

fn store(scale: Scale<'_>, messages: u64, tasks: u64) -> Outcome<Stored> {
    let place = Place::new(scale.base)?;
    let directory = place.path("spool");
    fs::create_dir(&directory).map_err(failed("the spool"))?;
    let runtime = UringRuntime::new(UringConfig::default()).map_err(failed("io_uring"))?;
    let port = runtime.port();
    let config = SpoolerConfig {
        directory,
        shard: 0,
        segment_bytes: limits::SPOOL_SEGMENT_BYTES,
        low_water_bytes: 0,
        settle_wait: Duration::from_millis(2),
    };
    runtime.run(async move {
        let opened = Spooler::open(port.clone(), config).await;
        let (spool, _) = opened.map_err(failed("the spool"))?;
        let left = Rc::new(Cell::new(messages));
        let count = Rc::new(Cell::new(0));
        let waits = Rc::new(RefCell::new(Vec::new()));
        let (begun, busy) = (Instant::now(), port.usage().busy);
        let ended = Signal::default();
        let open = Rc::new(Cell::new(tasks));
        for _ in 0..tasks {
            let (spool, left, waits) = (spool.clone(), Rc::clone(&left), Rc::clone(&waits));
            let (ended, open, clock) = (ended.clone(), Rc::clone(&open), port.clone());
            let count = Rc::clone(&count);
            port.spawn(Class::Ingress, async move {
                store_some(&clock, &spool, &left, &count, &waits).await;
                open.set(open.get() - 1);
                ended.raise();
            });
        }
        while open.get() > 0 {
            ended.raised().await;
        }
        let seconds = begun.elapsed().as_secs_f64();
        let busy = port.usage().busy.saturating_sub(busy);
        spool.close().await;
        let mut waits = waits.take();
        waits.sort_unstable();
        if count.get() != messages {
            return Err(format!("{} of {messages} were stored", count.get()));
        }
        let quantile = |percent: usize| {
            let at = (waits.len() - 1) * percent / 100;
            waits[at].as_secs_f64() * 1e3
        };
        Ok(Stored {
            rate: messages as f64 / seconds,
            p50_ms: quantile(50),
            p99_ms: quantile(99),
            cpu_us: busy.as_secs_f64() * 1e6 / messages as f64,
        })
    })
}

/// Of so many messages the wait of one is measured: to read the clock for each costs a fifteenth of
/// what the spool does.
const TIMED: u64 = 8;

/// Stores messages one after the other until none is left to store.
async fn store_some(
    port: &UringPort,
    spool: &Spooler<UringPort>,
    left: &Cell<u64>,
    count: &Cell<u64>,
    waits: &RefCell<Vec<Duration>>,
) {
    let address = |text: &[u8]| Address::parse_path(text).ok();
    let envelope = Envelope {
        sender: address(b"bounce-1234567@news.example.com"),
        recipients: address(b"somebody@example.org")
            .map(Recipient::new)
            .into_iter()
            .collect(),
        ..Envelope::default()
    };
    let content = Content::from(vec![b'x'; 10 << 10]);
    while let Some(rest) = left.get().checked_sub(1) {
        left.set(rest);
        let begun = rest.is_multiple_of(TIMED).then(Instant::now);
        let stored = spool.append(spool.next_id(), &envelope, &content, port.wall());
        // A refusal shows as a message that is missing at the end.
        let Ok(stored) = stored.await else { return };
        waits
            .borrow_mut()
            .extend(begun.map(|begun| begun.elapsed()));
        count.set(count.get() + 1);
        spool.settle(Settlement {
            id: stored.id(),
            recipient: 0,
            kind: SettlementKind::Delivered,
        });
    }
}

/// Mail comes in at a steady rate while a queue that is on the disk alone goes out as fast as it
/// can; and the same with the queue in the page cache, and with no queue at all.
pub(crate) fn cold_storm(scale: Scale<'_>) -> Outcome<Figures> {
    let queued = scale.messages(100_000, 500);
    let quiet = accept_beside(scale, 0, true)?;
    let warm = accept_beside(scale, queued, false)?;
    let cold = accept_beside(scale, queued, true)?;
    Ok(vec![
        ("quiet_accept_p99_ms", quiet.p99_ms),
        ("warm_accept_p99_ms", warm.p99_ms),
        ("cold_accept_p99_ms", cold.p99_ms),
        ("cold_to_quiet", cold.p99_ms / quiet.p99_ms),
        ("cold_to_warm", cold.p99_ms / warm.p99_ms),
        ("cold_left_at_end", cold.left),
    ])
}

struct Accepted {
    p99_ms: f64,
    /// Messages of the queue that had not left when the last of the new ones was accepted.
    left: f64,
}

/// Queues mail for a receiver that is down, takes its bodies out of the page cache or into it,
/// starts the receiver, and measures how long new mail waits for its 250 while the queue leaves.
fn accept_beside(scale: Scale<'_>, queued: u64, cold: bool) -> Outcome<Accepted> {
    let place = Place::new(scale.base)?;
    let site = Sink::free_site()?;
    let retry = "[delivery]\nretry = [\"1s\"]\n";
    let mut daemon = Daemon::start(&place, 1, &format!("{retry}{}", route("*", site)))?;
    let args = ["--chunking", "--size", "10KiB", "--messages"];
    let waiting = ["ready", "deferred", "in_flight"];
    // A spool that has no segments to use again is busy making some: the quiet one gets them, too.
    let before = queued.max(if scale.smoke { 200 } else { 40_000 });
    let up = || Sink::start_at(&place, site, 1, 1, "accept=100");
    let mut sink = if queued == 0 { Some(up()?) } else { None };
    let number = before.to_string();
    let first = [&args[..], &[&number]].concat();
    load(daemon.address, &first, patience(before))?;
    daemon.wait_for(&waiting, queued, patience(before))?;
    visit(&place.path("data"), cold)?;
    if sink.is_none() {
        sink = Some(up()?);
        // The next attempt comes within seconds.
        daemon.wait_below(&waiting, queued, patience(queued))?;
    }
    let number = if scale.smoke { "200" } else { "4000" };
    let args = [&args[..], &[number, "--rate", "2000"]].concat();
    let report = load(daemon.address, &args, patience(queued))?;
    let left = daemon.status(&waiting)?;
    daemon.wait_for(&waiting, 0, patience(queued))?;
    daemon.stop()?;
    drop(sink);
    let p99 = report.pointer("/latency_us/p99").and_then(Value::as_f64);
    Ok(Accepted {
        p99_ms: p99.ok_or("no latency")? / 1e3,
        left: left as f64,
    })
}

/// Takes every file below `path` out of the page cache, or reads all of it.
fn visit(path: &Path, cold: bool) -> Outcome<()> {
    let Ok(entries) = fs::read_dir(path) else {
        return Ok(());
    };
    for entry in entries {
        let path = entry.map_err(failed("the spool"))?.path();
        if path.is_dir() {
            visit(&path, cold)?;
            continue;
        }
        let mut file = File::open(&path).map_err(failed("the spool"))?;
        if cold {
            file.sync_all().map_err(failed("the spool"))?;
            let advice = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
            posix_fadvise(&file, 0, 0, advice).map_err(failed("posix_fadvise"))?;
        } else {
            let mut block = vec![0; 1 << 20];
            while file.read(&mut block).map_err(failed("the spool"))? > 0 {}
        }
    }
    Ok(())
}
