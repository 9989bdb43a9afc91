//! lab::sink - the receiving side: many sites with the manners of many providers, and a ledger.

//!
//! Role: stand in for the world's mail providers, and write down what really arrived.
//! Flow: bytes -> `receiver::Receiver` -> `parcel` -> ledger; replies through the outbox, which
//! adds the site's latency.
//! Shard: `SinkOptions::shards` threads, an engine each; every thread listens on every site. The
//! threads share what greylisting remembers, and counters.
//! Limits: `limits::LAB_SITES_MAX`, `LAB_LINE_MAX`, `LAB_RECIPIENTS_MAX`, `LAB_GREYLIST_MAX`.
//! Failure: an address in use is reported at start; a ledger that cannot be written ends the sink.
//! Bugs: no TLS; hanging up is an orderly close, a reset cannot be forced through the port.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use serde::Serialize;

use crate::lab::dns::DnsServer;
use crate::lab::engine::engine;
use crate::lab::error::LabError;
use crate::lab::personality::Mix;
use crate::lab::receiver::Greylist;
use crate::lab::zone::Zone;
use crate::limits::SHARDS_MAX;

mod outbox;
mod shard;

/// What to receive.
#[derive(Debug, Clone)]
pub struct SinkOptions {
    /// The address of the first site; the others follow it.
    pub first_address: Ipv4Addr,
    /// The port of every site; 0 asks the kernel for one (the same for all).
    pub port: u16,
    /// Domains `d0.ZONE` to `dN-1.ZONE`; each has a site of its own as long as there are addresses.
    pub domains: u32,
    /// The zone, `lab.test`.
    pub zone: String,
    /// Threads, each with a listener for every site.
    pub shards: u16,
    /// Which sites behave how.
    pub mix: Mix,
    /// Decides every refusal.
    pub seed: u64,
    /// The directory of the ledger files, one per thread; `None`: nothing is recorded.
    pub ledger: Option<PathBuf>,
    /// A directory that gets every message as a file, as it came.
    pub dump: Option<PathBuf>,
    /// Where the name server listens; `None`: none. Port 0 asks the kernel for one.
    pub dns: Option<SocketAddr>,
    /// TXT records to serve besides the sites' own: name, text.
    pub txt: Vec<(String, String)>,
    /// How long a connection may be idle.
    pub idle: Duration,
    /// The largest message taken, in bytes.
    pub size_max: u64,
    /// Counters to watch while it runs.
    pub counters: Arc<SinkCounters>,
}

impl Default for SinkOptions {
    fn default() -> Self {
        Self {
            first_address: Ipv4Addr::new(127, 0, 1, 1),
            port: 2526,
            domains: 10,
            zone: "lab.test".to_owned(),
            shards: 1,
            mix: Mix::default(),
            seed: 1,
            ledger: None,
            dump: None,
            dns: None,
            txt: Vec::new(),
            idle: Duration::from_secs(300),
            size_max: 1 << 30,
            counters: Arc::default(),
        }
    }
}

/// What a sink has seen so far; for whoever watches from another thread.
#[derive(Debug, Default)]
pub struct SinkCounters {
    /// Connections accepted.
    pub connections: AtomicU64,
    /// Connections open now.
    pub open: AtomicU64,
    /// Messages taken with 250.
    pub messages: AtomicU64,
    /// Bytes of those.
    pub bytes: AtomicU64,
    /// Recipients of those.
    pub delivered: AtomicU64,
    /// Recipients whose failure was notified.
    pub bounced: AtomicU64,
    /// Recipients whose delay was notified.
    pub delayed: AtomicU64,
    /// Commands answered 4xx or 5xx by a personality.
    pub refused: AtomicU64,
    /// Times a sender used an extension that was not offered.
    pub violations: AtomicU64,
    /// Questions answered by the name server.
    pub queries: AtomicU64,
    /// CPU time of the sink's threads, in nanoseconds, as of their last report.
    pub cpu_nanos: AtomicU64,
    /// Set to stop.
    pub stop: AtomicBool,
}

/// What a sink has seen in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct SinkReport {
    /// Connections accepted.
    pub connections: u64,
    /// Messages taken with 250.
    pub messages: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// Recipients that messages arrived for.
    pub delivered: u64,
    /// Recipients whose failure was notified.
    pub bounced: u64,
    /// Recipients whose delay was notified.
    pub delayed: u64,
    /// Commands that a personality refused.
    pub refused: u64,
    /// Times a sender used an extension that was not offered.
    pub violations: u64,
    /// Questions to the name server.
    pub dns_queries: u64,
}

/// A running sink; dropping it stops it.
#[derive(Debug)]
pub struct Sink {
    zone: Zone,
    port: u16,
    dns: Option<DnsServer>,
    threads: Vec<JoinHandle<Result<(), LabError>>>,
    counters: Arc<SinkCounters>,
    ledgers: Vec<PathBuf>,
}

impl Sink {
    /// Starts the threads and the name server; they are listening when this returns.
    ///
    /// # Errors
    /// Whatever keeps it from listening or recording.
    pub fn start(options: SinkOptions) -> Result<Self, LabError> {
        if options.shards == 0 || options.shards > SHARDS_MAX {
            return Err(LabError::Options("shards must be from 1 to 1024"));
        }
        let zone = Zone::new(
            &options.zone,
            options.domains,
            options.first_address,
            &options.txt,
        )?;
        for directory in [&options.ledger, &options.dump].into_iter().flatten() {
            std::fs::create_dir_all(directory)
                .map_err(|error| LabError::File(directory.clone(), error))?;
        }
        let dns = match options.dns {
            Some(address) => Some(DnsServer::start(zone.clone(), address)?),
            None => None,
        };
        let greylists: Vec<_> = (0..=zone.sites()).map(|_| Greylist::default()).collect();
        let counters = Arc::clone(&options.counters);
        let port = options.port;
        let mut sink = Self {
            zone,
            port,
            dns,
            threads: Vec::new(),
            counters,
            ledgers: vec![],
        };
        for number in 0..options.shards {
            // The first thread's port is everybody's.
            let options = SinkOptions {
                port: sink.port,
                ..options.clone()
            };
            if let Some(directory) = &options.ledger {
                sink.ledgers
                    .push(directory.join(format!("arrivals-{number}.ledger")));
            }
            let (zone, greylists) = (sink.zone.clone(), greylists.clone());
            let plan = shard::Plan {
                number,
                options,
                zone,
                greylists,
            };
            let (ready, started) = mpsc::channel();
            let thread = std::thread::Builder::new()
                .name(format!("lab-sink-{number}"))
                .spawn(move || thread(plan, &ready))
                .map_err(|error| LabError::File(PathBuf::from("lab-sink"), error))?;
            sink.threads.push(thread);
            sink.port = started.recv().map_err(|_| LabError::Thread("lab-sink"))??;
        }
        Ok(sink)
    }

    /// The port of all sites.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The names and addresses.
    #[must_use]
    pub fn zone(&self) -> &Zone {
        &self.zone
    }

    /// Where site `index` listens.
    #[must_use]
    pub fn address(&self, index: u32) -> SocketAddr {
        SocketAddr::from((self.zone.address(index), self.port))
    }

    /// Where the name server listens.
    #[must_use]
    pub fn dns_address(&self) -> Option<SocketAddr> {
        self.dns.as_ref().map(DnsServer::address)
    }

    /// The ledger files, complete up to a twentieth of a second ago.
    #[must_use]
    pub fn ledgers(&self) -> &[PathBuf] {
        &self.ledgers
    }

    /// What it has seen so far.
    #[must_use]
    pub fn report(&self) -> SinkReport {
        let counters = &self.counters;
        let queries = self.dns.as_ref().map_or(0, DnsServer::queries);
        counters.queries.store(queries, Ordering::Relaxed);
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        SinkReport {
            connections: read(&counters.connections),
            messages: read(&counters.messages),
            bytes: read(&counters.bytes),
            delivered: read(&counters.delivered),
            bounced: read(&counters.bounced),
            delayed: read(&counters.delayed),
            refused: read(&counters.refused),
            violations: read(&counters.violations),
            dns_queries: queries,
        }
    }

    /// Whether a thread has ended before it was told to.
    #[must_use]
    pub fn failed(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Stops all threads; the ledgers are complete afterwards.
    ///
    /// # Errors
    /// The first thing that went wrong in a thread since the start.
    pub fn stop(mut self) -> Result<SinkReport, LabError> {
        self.join()?;
        Ok(self.report())
    }

    fn join(&mut self) -> Result<(), LabError> {
        self.counters.stop.store(true, Ordering::Relaxed);
        let mut result = Ok(());
        for thread in self.threads.drain(..) {
            let ended = thread.join().unwrap_or(Err(LabError::Thread("lab-sink")));
            result = result.and(ended);
        }
        result
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if let Err(error) = self.join() {
            tracing::error!(%error, "the sink");
        }
    }
}

fn thread(plan: shard::Plan, ready: &mpsc::Sender<Result<u16, LabError>>) -> Result<(), LabError> {
    match engine(plan.number, plan.options.seed) {
        Ok(runtime) => {
            let port = runtime.port();
            runtime.run(shard::serve(port, plan, ready))
        }
        Err(error) => ready
            .send(Err(error))
            .map_err(|_| LabError::Thread("lab-sink")),
    }
}

/// Receives until the counters' `stop` is set; `ready` is called once everything listens.
///
/// # Errors
/// Whatever keeps it from listening or recording.
pub fn run(options: SinkOptions, ready: impl FnOnce(&Sink)) -> Result<SinkReport, LabError> {
    let counters = Arc::clone(&options.counters);
    let sink = Sink::start(options)?;
    ready(&sink);
    while !counters.stop.load(Ordering::Relaxed) && !sink.failed() {
        std::thread::sleep(Duration::from_millis(50));
    }
    sink.stop()
}
