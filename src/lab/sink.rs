//! lab::sink - the receiving side: many sites with the manners of many providers, and a ledger.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use crate::lab::personality::Mix;

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
    pub dns: Option<std::net::SocketAddr>,
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
