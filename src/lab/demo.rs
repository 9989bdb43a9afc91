//! lab::demo - the whole way in one command: sink, daemon and load on loopback, then the books.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::lab::load::{Dialogue, Latency};

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
    /// Kill the daemon with SIGKILL and start it again at random moments, on average this far apart.
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
    /// Deliveries that differ from what was injected.
    pub corrupt: u64,
    /// From the first connection to the last acknowledgement.
    pub seconds: f64,
    /// Acknowledged messages per second.
    pub messages_per_second: f64,
    /// From the first connection to the last delivery, in seconds.
    pub seconds_end_to_end: f64,
    /// Recipients delivered or bounced per second, end to end.
    pub deliveries_per_second: f64,
    /// CPU time of the daemon alone per acknowledged message, in microseconds.
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
    /// Where everything is, when it was kept.
    pub directory: Option<PathBuf>,
}

impl DemoReport {
    /// Whether the promise was kept: nothing lost, nothing corrupt, and no duplicate that no crash
    /// explains.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.lost == 0 && self.corrupt == 0 && self.duplicates <= self.duplicates_explained_max
    }
}
