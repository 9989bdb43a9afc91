//! lab::demo - the whole way in one command: sink, daemon and load on loopback, then the books.
//!
//! Role: show on any machine, without root, that what is acknowledged arrives, and what that costs.
//! Flow: sink and name server (threads) <- daemon (a process) <- load (a thread); then SIGTERM, the
//! ledgers against each other, and what is left in the spool.
//! Limits: ports are the kernel's choice; the wait for the last delivery is bounded by `drain`.
//! Failure: a daemon that does not start, or ends by itself, is an error with its log's path; what
//! it loses is in the report.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use self::daemon::{Daemon, Setup};
use self::stage::{Stage, books};
use crate::lab::LabError;
use crate::lab::load::{Dialogue, Latency, LoadOptions, percentiles};
use crate::lab::personality::Mix;
use crate::lab::sink::{Sink, SinkCounters, SinkOptions};

mod daemon;
mod leftover;
mod stage;

/// What to show.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    /// Messages to inject.
    pub messages: u64,
    /// Bytes of each.
    pub size: usize,
    /// Inbound connections.
    pub sessions: u32,
    /// Destination domains.
    pub domains: u32,
    /// Recipients per message.
    pub recipients: u16,
    /// Messages per second; `None`: as fast as possible.
    pub rate: Option<f64>,
    /// Shards of the daemon; `None`: one per core.
    pub shards: Option<u16>,
    /// Manners of the sites, as [`crate::lab::personality::Mix::parse`] reads them.
    pub personalities: Vec<String>,
    /// Kill the daemon with SIGKILL and start it again at random moments, on average this far
    /// apart.
    pub kill_every: Option<Duration>,
    /// At most so many kills; `None`: until the campaign is in.
    pub kills_max: Option<u32>,
    /// Route everything to one site instead of asking for MX records.
    pub via: bool,
    /// How the load is injected.
    pub dialogue: Dialogue,
    /// BDAT in.
    pub chunking: bool,
    /// Keep everything in this directory; `None`: a temporary one, removed when all is well.
    pub keep: Option<PathBuf>,
    /// Decides the messages, the refusals and the kills.
    pub seed: u64,
    /// How long to wait after the load for the last delivery.
    pub drain: Duration,
    /// The program to run as the daemon; `None`: this one.
    pub program: Option<PathBuf>,
    /// Show progress on standard error, when that is a terminal.
    pub progress: bool,
}

impl Default for DemoOptions {
    fn default() -> Self {
        Self {
            messages: 100_000,
            size: 10 * 1024,
            sessions: 50,
            domains: 10,
            recipients: 1,
            rate: None,
            shards: None,
            personalities: Vec::new(),
            kill_every: None,
            kills_max: None,
            via: false,
            dialogue: Dialogue::Pipelining,
            chunking: false,
            keep: None,
            seed: 1,
            drain: Duration::from_secs(60),
            program: None,
            progress: false,
        }
    }
}

/// The result: counts are recipients, except `accepted`, which counts messages.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DemoReport {
    /// Messages acknowledged.
    pub accepted: u64,
    /// Recipients of those.
    pub recipients: u64,
    /// Messages refused.
    pub refused: u64,
    /// Recipients that got the message.
    pub delivered: u64,
    /// Recipients still in the spool at the end.
    pub deferred: u64,
    /// Recipients whose failure was notified to the sender.
    pub bounced: u64,
    /// Acknowledged recipients that are nowhere.
    pub lost: u64,
    /// Deliveries beyond the first of a recipient, those excepted that the sink left unanswered.
    pub duplicates: u64,
    /// Duplicates that crashes explain at most: what was in flight at each kill.
    pub duplicates_explained_max: u64,
    /// Recipients that were delivered to and reported as failed; a crash explains it as it
    /// explains a duplicate.
    pub contradicted: u64,
    /// Deliveries that differ from what was injected.
    pub corrupt: u64,
    /// Deliveries that nobody asked for.
    pub unknown: u64,
    /// From the first connection to the last acknowledgement.
    pub seconds: f64,
    /// Acknowledged messages per second.
    pub messages_per_second: f64,
    /// From the first connection to the last delivery, in seconds.
    pub seconds_end_to_end: f64,
    /// Recipients delivered or bounced per second, end to end.
    pub deliveries_per_second: f64,
    /// CPU time of the daemon alone per acknowledged message, from the first connection to the last
    /// outcome, in microseconds.
    pub cpu_us_per_message: f64,
    /// Submission latency.
    pub latency_us: Latency,
    /// From the 250 to the arrival at the sink.
    pub delivery_latency_us: Latency,
    /// Peak memory of the daemon, in MiB.
    pub rss_mib: f64,
    /// Bytes of the spool on disk at the end.
    pub spool_bytes: u64,
    /// Times the daemon was killed.
    pub kills: u32,
    /// The daemon ended with success after SIGTERM.
    pub clean_exit: bool,
    /// Where everything is, when it was kept.
    pub directory: Option<PathBuf>,
}

impl DemoReport {
    /// Whether the promise was kept: nothing lost, corrupt or unheard of, no duplicate and no
    /// contradiction that no crash explains, and an orderly end.
    #[must_use]
    pub fn holds(&self) -> bool {
        let kept = self.lost == 0 && self.corrupt == 0 && self.unknown == 0;
        let explained = self.duplicates.saturating_add(self.contradicted);
        kept && explained <= self.duplicates_explained_max && self.clean_exit
    }
}

/// Everything of one demo on disk.
struct Place {
    directory: PathBuf,
    data: PathBuf,
    ledgers: PathBuf,
    temporary: bool,
}

impl Place {
    fn make(options: &DemoOptions) -> Result<Self, LabError> {
        let directory = match &options.keep {
            Some(directory) => directory.clone(),
            None => {
                // On many systems /tmp is memory, where a sync costs nothing and proves nothing.
                let base = Path::new("/var/tmp");
                let base = if base.is_dir() {
                    base.to_owned()
                } else {
                    std::env::temp_dir()
                };
                base.join(format!("postrider-demo-{}", std::process::id()))
            }
        };
        let place = Self {
            data: directory.join("data"),
            ledgers: directory.join("ledgers"),
            temporary: options.keep.is_none(),
            directory,
        };
        if place.data.exists() {
            return Err(LabError::Options(
                "the directory to keep holds an earlier demo",
            ));
        }
        for directory in [&place.data, &place.ledgers] {
            fs::create_dir_all(directory)
                .map_err(|error| LabError::File(directory.clone(), error))?;
        }
        Ok(place)
    }

    fn log(&self) -> PathBuf {
        self.directory.join("daemon.log")
    }

    fn sent(&self) -> PathBuf {
        self.ledgers.join("sent.ledger")
    }

    fn remove(&self) -> Result<(), LabError> {
        fs::remove_dir_all(&self.directory)
            .map_err(|error| LabError::File(self.directory.clone(), error))
    }
}

/// Runs the demo.
///
/// # Errors
/// Whatever keeps it from reaching a result; then everything is left in its directory, unless what
/// was asked for makes no sense.
pub fn run(options: DemoOptions) -> Result<DemoReport, LabError> {
    if options.messages == 0 {
        return Err(LabError::Options("a demo needs a message"));
    }
    let mix = Mix::parse(&options.personalities)
        .map_err(|_| LabError::Options("a personality makes no sense; see `demo --help`"))?;
    let place = Place::make(&options)?;
    let result = run_in(&place, mix, options);
    let senseless = matches!(result, Err(LabError::Options(_) | LabError::Template(_)));
    if senseless && place.temporary {
        place.remove()?;
    }
    result
}

fn run_in(place: &Place, mix: Mix, options: DemoOptions) -> Result<DemoReport, LabError> {
    let arrived: Arc<SinkCounters> = Arc::default();
    let sink = Sink::start(SinkOptions {
        port: 0,
        domains: options.domains,
        mix,
        seed: options.seed,
        ledger: Some(place.ledgers.clone()),
        dns: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
        counters: Arc::clone(&arrived),
        ..SinkOptions::default()
    })?;
    let listener = free_address().map_err(|error| LabError::Daemon(place.log(), error))?;
    let daemon = start_daemon(&options, place, &sink, listener)?;
    let mut stage = Stage::new(&options, daemon, &sink, arrived, place.sent());
    let report = play(&mut stage, place, listener)?;
    drop(stage);
    sink.stop()?;
    if place.temporary && report.holds() {
        place.remove()?;
        return Ok(report);
    }
    Ok(DemoReport {
        directory: Some(place.directory.clone()),
        ..report
    })
}

/// An address on which nobody listens now.
fn free_address() -> std::io::Result<SocketAddr> {
    TcpListener::bind(("127.0.0.1", 0))?.local_addr()
}

fn start_daemon(
    options: &DemoOptions,
    place: &Place,
    sink: &Sink,
    listener: SocketAddr,
) -> Result<Daemon, LabError> {
    let zone = sink.zone();
    let routes = if options.via {
        let bounces = (
            format!("bounces.{}", zone.name()),
            sink.address(zone.sites()),
        );
        vec![bounces, ("*".to_owned(), sink.address(0))]
    } else {
        Vec::new()
    };
    let text = daemon::configuration(&Setup {
        listener,
        // The sink was started with a name server.
        dns: sink.dns_address().ok_or(LabError::Thread("lab-dns"))?,
        sink_port: sink.port(),
        routes: &routes,
        shards: options.shards,
        data: &place.data,
    });
    let path = place.directory.join("postrider.toml");
    fs::write(&path, text).map_err(|error| LabError::File(path.clone(), error))?;
    let program = match &options.program {
        Some(program) => program.clone(),
        None => std::env::current_exe().map_err(|error| LabError::Daemon(place.log(), error))?,
    };
    Daemon::start(program, path, place.log())
}

/// What is injected.
fn campaign(options: &DemoOptions, place: &Place, listener: SocketAddr) -> LoadOptions {
    LoadOptions {
        target: listener,
        messages: options.messages,
        size: options.size,
        sessions: options.sessions,
        rate: options.rate,
        domains: options.domains,
        recipients: options.recipients,
        dialogue: options.dialogue,
        chunking: options.chunking,
        seed: options.seed,
        ledger: Some(place.sent()),
        reconnect: options.kill_every.is_some(),
        retries: 10,
        ..LoadOptions::default()
    }
}

fn play(
    stage: &mut Stage<'_>,
    place: &Place,
    listener: SocketAddr,
) -> Result<DemoReport, LabError> {
    let options = stage.options;
    let cpu = stage.daemon.cpu();
    let start = Instant::now();
    let load = stage.inject(campaign(options, place, listener))?;
    stage.drain(load.recipients)?;
    let end_to_end = stage
        .last_arrival()
        .saturating_duration_since(start)
        .as_secs_f64();
    let cpu = stage.daemon.cpu().saturating_sub(cpu);
    let rss = stage.daemon.peak_rss();
    let clean_exit = stage.daemon.stop()?;
    stage.finish();
    // Two reports of the sink later its ledger has everything that the daemon sent.
    std::thread::sleep(Duration::from_millis(150));
    let spool_bytes = leftover::size(&place.data)?;
    let (mut books, latency) = books(&place.sent(), stage.sink.ledgers())?;
    if books.verdict().outstanding() > 0 {
        leftover::enter(&place.data, &mut books)?;
    }
    let verdict = books.verdict();
    for (id, recipient) in books.lost().take(10) {
        tracing::error!(%id, recipient, "acknowledged, and nowhere");
    }
    let settled = (verdict.delivered + verdict.bounced) as f64;
    Ok(DemoReport {
        accepted: load.accepted,
        recipients: load.recipients,
        refused: load.refused,
        delivered: verdict.delivered,
        deferred: verdict.deferred,
        bounced: verdict.bounced,
        lost: verdict.lost,
        duplicates: verdict.duplicates,
        duplicates_explained_max: stage.explained,
        contradicted: verdict.contradicted,
        corrupt: verdict.corrupt,
        unknown: verdict.unknown,
        seconds: load.seconds,
        messages_per_second: load.messages_per_second,
        seconds_end_to_end: end_to_end,
        deliveries_per_second: if end_to_end > 0.0 {
            settled / end_to_end
        } else {
            0.0
        },
        cpu_us_per_message: cpu.as_secs_f64() * 1e6 / load.accepted.max(1) as f64,
        latency_us: load.latency_us,
        delivery_latency_us: percentiles(&latency),
        rss_mib: rss as f64 / f64::from(1 << 20),
        spool_bytes,
        kills: stage.daemon.kills,
        clean_exit,
        directory: None,
    })
}
