//! lab::load - the load generator: a campaign over SMTP, every acknowledgement on record.
//!
//! Role: inject as fast as the daemon takes it, or on schedule; know exactly what was acknowledged.
//! Flow: `campaign` hands out work -> `template` makes the message -> `session` talks -> ledger.
//! Shard: one thread with an engine of its own; all sessions live on it.
//! Limits: `limits::LAB_SESSIONS_MAX`; one message per session in memory.
//! Failure: nobody at the target and an unwritable ledger end the run; everything else is counted.
//! Why its own client: in steady state a transaction is one write and one read, for about 1 us of
//! our own CPU, because the generator shares two cores with the daemon it measures.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use serde::Serialize;

use crate::lab::engine::engine;
use crate::lab::error::LabError;
use crate::limits::LAB_SESSIONS_MAX;

mod campaign;
mod reply;
mod runner;
mod session;

pub(in crate::lab) use self::runner::percentiles;

/// How the commands of a transaction are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Dialogue {
    /// MAIL, all RCPT and DATA in one write, behind the previous message (RFC 2920).
    #[default]
    Pipelining,
    /// Each command waits for the reply to the one before.
    Basic,
}

/// What to inject.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Where the daemon listens.
    pub target: SocketAddr,
    /// The address to connect from, where it matters.
    pub source: Option<IpAddr>,
    /// How many messages to have acknowledged or refused.
    pub messages: u64,
    /// Bytes of each generated message, header included.
    pub size: usize,
    /// Connections at once.
    pub sessions: u32,
    /// Messages per second, started on schedule whatever the daemon does; `None`: as fast as it
    /// takes them.
    pub rate: Option<f64>,
    /// Recipients are at `d0.ZONE`, `d1.ZONE` ... in turn.
    pub domains: u32,
    /// Recipients per message.
    pub recipients: u16,
    /// The zone, `lab.test`.
    pub zone: String,
    /// The envelope sender; `None`: `bounce@bounces.ZONE`, which the sink counts as bounces. An
    /// empty text is the null sender.
    pub sender: Option<String>,
    /// What to say in EHLO.
    pub helo: String,
    /// A message to send instead of generated ones; `X-Load-Id` is put on top of it.
    pub message_file: Option<PathBuf>,
    /// Fields to add to every header, `Name: value` without the line end (a campaign, a pool).
    pub header_fields: Vec<String>,
    /// How commands are sent.
    pub dialogue: Dialogue,
    /// BDAT instead of DATA (RFC 3030).
    pub chunking: bool,
    /// Decides the text of the messages and, with the clock, the run's id.
    pub seed: u64,
    /// The run's id; `None`: from seed and clock.
    pub run: Option<u32>,
    /// Where acknowledgements are recorded.
    pub ledger: Option<PathBuf>,
    /// How often a message that was answered 4xx is tried again, after
    /// [`LoadOptions::retry_delay`].
    pub retries: u32,
    /// The wait before such a try.
    pub retry_delay: Duration,
    /// On a lost connection connect again and go on; what was unanswered is sent again under a new
    /// id. Without it a lost connection is an error and its session ends.
    pub reconnect: bool,
    /// How long nobody may answer at the target before the run gives up.
    pub reconnect_patience: Duration,
    /// How long one reply may take.
    pub timeout: Duration,
    /// Show a progress bar on standard error, when that is a terminal.
    pub progress: bool,
    /// Counters to watch while it runs.
    pub counters: Arc<LoadCounters>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            target: SocketAddr::from(([127, 0, 0, 1], 2525)),
            source: None,
            messages: 10_000,
            size: 10 * 1024,
            sessions: 50,
            rate: None,
            domains: 10,
            recipients: 1,
            zone: "lab.test".to_owned(),
            sender: None,
            helo: "load.lab.test".to_owned(),
            message_file: None,
            header_fields: Vec::new(),
            dialogue: Dialogue::Pipelining,
            chunking: false,
            seed: 1,
            run: None,
            ledger: None,
            retries: 0,
            retry_delay: Duration::from_secs(1),
            reconnect: false,
            reconnect_patience: Duration::from_secs(60),
            timeout: Duration::from_secs(300),
            progress: false,
            counters: Arc::default(),
        }
    }
}

/// What a run has done so far; for whoever watches from another thread.
#[derive(Debug, Default)]
pub struct LoadCounters {
    /// Messages acknowledged.
    pub accepted: AtomicU64,
    /// Recipients of those.
    pub recipients: AtomicU64,
    /// Messages given up after a 4xx or 5xx.
    pub refused: AtomicU64,
    /// Messages whose reply never came.
    pub unanswered: AtomicU64,
    /// Set to stop early; transactions under way are finished.
    pub stop: AtomicBool,
}

/// Percentiles of a latency, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Latency {
    /// Half were faster.
    pub p50: u64,
    /// 99 of 100 were faster.
    pub p99: u64,
    /// 999 of 1000 were faster.
    pub p999: u64,
    /// The slowest.
    pub max: u64,
}

/// How often one reply code refused a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RefusalCount {
    /// The reply code.
    pub code: u16,
    /// How often.
    pub count: u64,
    /// What was said with it the first time.
    pub text: String,
}

/// What only the daemon and the receivers know: null in the load generator's report, so that all
/// reports of the laboratory have the same keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Unseen {
    /// Recipients that got the message.
    pub delivered: Option<u64>,
    /// Recipients still in the spool.
    pub deferred: Option<u64>,
    /// Recipients whose failure was notified.
    pub bounced: Option<u64>,
    /// Acknowledged recipients that are nowhere.
    pub lost: Option<u64>,
    /// Deliveries beyond the first.
    pub duplicates: Option<u64>,
    /// Deliveries that differ from what was injected.
    pub corrupt: Option<u64>,
    /// CPU time of the daemon per message.
    pub cpu_us_per_message: Option<u64>,
}

/// The result of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LoadReport {
    /// Messages acknowledged by a final 250.
    pub accepted: u64,
    /// Recipients of those.
    pub recipients: u64,
    /// Messages given up after a refusal.
    pub refused: u64,
    /// Refusals by reply code, retried ones included.
    pub refusals: Vec<RefusalCount>,
    /// Tries after a 4xx.
    pub retried: u64,
    /// Connections lost or refused.
    pub errors: u64,
    /// Messages whose final reply never came.
    pub unanswered: u64,
    /// From the first connection to the last reply.
    pub seconds: f64,
    /// Acknowledged messages per second.
    pub messages_per_second: f64,
    /// The rate asked for.
    pub rate: Option<f64>,
    /// From handing a message to the kernel until its 250 was read.
    pub latency_us: Latency,
    /// From the moment a message was due until its 250 was read: includes waiting for a free
    /// session. Equal to `latency_us` without a rate.
    pub latency_from_due_us: Latency,
    /// CPU time of the generator per acknowledged message, in microseconds.
    pub client_cpu_us_per_message: f64,
    /// The run's id, as in `X-Load-Id`.
    pub run: String,
    /// What `postrider demo` says and this cannot.
    #[serde(flatten)]
    pub unseen: Unseen,
}

/// Injects the campaign; returns when every message is acknowledged or given up.
///
/// # Errors
/// Options out of range, nobody at the target, or a ledger that cannot be written.
pub fn run(options: LoadOptions) -> Result<LoadReport, LabError> {
    if options.sessions == 0 || options.sessions > LAB_SESSIONS_MAX {
        return Err(LabError::Options("sessions must be from 1 to 20000"));
    }
    if options.recipients == 0 {
        return Err(LabError::Options("a message needs a recipient"));
    }
    if options
        .rate
        .is_some_and(|rate| !(rate > 0.0 && rate.is_finite()))
    {
        return Err(LabError::Options(
            "the rate must be more than 0 messages per second",
        ));
    }
    let runtime = engine(0, options.seed)?;
    let port = runtime.port();
    runtime.run(runner::run(port, options))
}
