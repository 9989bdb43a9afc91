//! lab - the words of `load`, `sink` and `demo`, into the laboratory's options.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::values::{duration, rate, size};
use super::{Failure, print, print_json};
use crate::lab::LabError;
use crate::lab::demo::{self, DemoOptions, DemoReport};
use crate::lab::load::{self, Dialogue, Latency, LoadOptions, LoadReport};
use crate::lab::personality::Mix;
use crate::lab::sink::{self, SinkOptions, SinkReport};

const PERSONALITIES: &str = "How a share of the sites behaves, as TRAIT+TRAIT=PERCENT: accept, \
    greylist:TIME, tempfail:P, tempfail-dot:P, reject:P, messages:N, connections:N, delay:TIME, \
    tarpit:TIME, no-chunking, no-pipelining, no-8bitmime, close:PHASE[:P]; repeat it, or separate \
    by commas";

/// How messages are injected: shared by `load` and `demo`.
#[derive(Debug, Clone, clap::Args)]
pub struct Campaign {
    /// How many messages
    #[arg(long, short = 'n', default_value_t = 10_000, value_name = "N")]
    pub messages: u64,
    /// The size of each, header included: 10KiB, 2MB, 4096
    #[arg(long, short, default_value = "10KiB", value_parser = size, value_name = "SIZE")]
    pub size: usize,
    /// Connections at once
    #[arg(long, short = 'c', default_value_t = 50, value_name = "N")]
    pub sessions: u32,
    /// Messages per second (500, 500/s, 30000/min); without it, as fast as they are taken
    #[arg(long, value_parser = rate, value_name = "RATE")]
    pub rate: Option<f64>,
    /// How many recipient domains
    #[arg(long, default_value_t = 10, value_name = "N")]
    pub domains: u32,
    /// Recipients of each message
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub recipients: u16,
    /// Send each command only after the answer to the one before, without PIPELINING
    #[arg(long)]
    pub basic: bool,
    /// Send messages with BDAT instead of DATA
    #[arg(long)]
    pub chunking: bool,
    /// Decides every random choice
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
    /// Print the result as one JSON object
    #[arg(long)]
    pub json: bool,
    /// Show no progress bar
    #[arg(long, short)]
    pub quiet: bool,
}

impl Campaign {
    fn dialogue(&self) -> Dialogue {
        if self.basic {
            Dialogue::Basic
        } else {
            Dialogue::Pipelining
        }
    }
}

/// Send a campaign over SMTP and measure it
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:\n  \
    postrider load --target 127.0.0.1:2525 --messages 100000 --size 10KiB --sessions 50\n  \
    postrider load --rate 500/s --ledger sent.ledger --json\n\
    Exit code 1 when a message was refused or stayed unanswered.")]
pub struct LoadArgs {
    /// Where to send
    #[arg(
        long,
        short,
        default_value = "127.0.0.1:2525",
        value_name = "ADDRESS:PORT"
    )]
    pub target: SocketAddr,
    /// What to send, and how
    #[command(flatten)]
    pub campaign: Campaign,
    /// The local address to connect from
    #[arg(long, value_name = "ADDRESS")]
    pub source: Option<IpAddr>,
    /// Recipients are at d0.ZONE, d1.ZONE and so on
    #[arg(long, default_value = "lab.test", value_name = "ZONE")]
    pub zone: String,
    /// The envelope sender; empty for the null sender
    #[arg(long, value_name = "ADDRESS")]
    pub sender: Option<String>,
    /// The name given in EHLO
    #[arg(long, default_value = "load.lab.test", value_name = "NAME")]
    pub helo: String,
    /// A message to send instead of generated ones
    #[arg(long, value_name = "FILE")]
    pub message: Option<PathBuf>,
    /// A header field to add, such as "X-Postrider-Pool: bulk"; may be repeated
    #[arg(long = "header", value_name = "FIELD")]
    pub headers: Vec<String>,
    /// Where to record what was acknowledged
    #[arg(long, value_name = "FILE")]
    pub ledger: Option<PathBuf>,
    /// How often to try a message again that was answered 4xx
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub retries: u32,
    /// Connect again after a lost connection, for at most this long in vain
    #[arg(long, value_parser = duration, value_name = "TIME")]
    pub reconnect: Option<Duration>,
    /// How long one reply may take
    #[arg(long, default_value = "5m", value_parser = duration, value_name = "TIME")]
    pub timeout: Duration,
}

impl LoadArgs {
    /// What the laboratory understands.
    #[must_use]
    pub fn options(&self) -> LoadOptions {
        let campaign = &self.campaign;
        let defaults = LoadOptions::default();
        LoadOptions {
            target: self.target,
            source: self.source,
            messages: campaign.messages,
            size: campaign.size,
            sessions: campaign.sessions,
            rate: campaign.rate,
            domains: campaign.domains,
            recipients: campaign.recipients,
            zone: self.zone.clone(),
            sender: self.sender.clone(),
            helo: self.helo.clone(),
            message_file: self.message.clone(),
            header_fields: self.headers.clone(),
            dialogue: campaign.dialogue(),
            chunking: campaign.chunking,
            seed: campaign.seed,
            ledger: self.ledger.clone(),
            retries: self.retries,
            reconnect: self.reconnect.is_some(),
            reconnect_patience: self.reconnect.unwrap_or(defaults.reconnect_patience),
            timeout: self.timeout,
            progress: !campaign.quiet,
            ..defaults
        }
    }
}

/// Receive for many domains like many providers, with a name server and a ledger
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:\n  \
    postrider sink --domains 100 --dns 127.0.0.1:5353 --ledger received/\n  \
    postrider sink --personality greylist:5s=10 --personality tempfail:20=5")]
pub struct SinkArgs {
    /// The address of the first site; the others follow it
    #[arg(long, default_value = "127.0.1.1", value_name = "ADDRESS")]
    pub first_address: Ipv4Addr,
    /// The port of every site; 0 lets the kernel choose one for all
    #[arg(long, default_value_t = 2526, value_name = "PORT")]
    pub port: u16,
    /// Receive for d0.ZONE, d1.ZONE and so on
    #[arg(long, default_value_t = 10, value_name = "N")]
    pub domains: u32,
    /// The zone of the domains
    #[arg(long, default_value = "lab.test", value_name = "ZONE")]
    pub zone: String,
    /// How many threads
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub shards: u16,
    #[arg(long = "personality", value_delimiter = ',', value_name = "NAME=PERCENT",
        help = PERSONALITIES)]
    pub personalities: Vec<String>,
    /// Decides every refusal
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
    /// The directory to record arrivals in
    #[arg(long, value_name = "DIRECTORY")]
    pub ledger: Option<PathBuf>,
    /// A directory that gets every message as a file, as it came
    #[arg(long, value_name = "DIRECTORY")]
    pub dump: Option<PathBuf>,
    /// Where the name server listens; port 0 lets the kernel choose; without it there is none
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub dns: Option<SocketAddr>,
    /// A TXT record to serve, as NAME=TEXT; may be repeated
    #[arg(long, value_name = "NAME=TEXT")]
    pub txt: Vec<String>,
    /// How long a connection may be idle
    #[arg(long, default_value = "5m", value_parser = duration, value_name = "TIME")]
    pub idle: Duration,
    /// The largest message taken
    #[arg(long, default_value = "1GiB", value_parser = size, value_name = "SIZE")]
    pub size_max: usize,
    /// Print the result as one JSON object
    #[arg(long)]
    pub json: bool,
}

impl SinkArgs {
    /// What the laboratory understands.
    ///
    /// # Errors
    /// A personality or TXT record that makes no sense.
    pub fn options(&self) -> Result<SinkOptions, Failure> {
        let usage = |error: String| Failure::Usage(error);
        let mix = Mix::parse(&self.personalities)
            .map_err(|error| usage(format!("--personality: {error}")))?;
        let mut txt = Vec::new();
        for record in &self.txt {
            let parts = record.split_once('=');
            let (name, text) = parts.ok_or_else(|| usage(format!("--txt {record}: no \"=\"")))?;
            txt.push((name.to_owned(), text.to_owned()));
        }
        Ok(SinkOptions {
            first_address: self.first_address,
            port: self.port,
            domains: self.domains,
            zone: self.zone.clone(),
            shards: self.shards,
            mix,
            seed: self.seed,
            ledger: self.ledger.clone(),
            dump: self.dump.clone(),
            dns: self.dns,
            txt,
            idle: self.idle,
            size_max: self.size_max as u64,
            ..SinkOptions::default()
        })
    }
}

/// Show the whole way on this machine: sink, daemon and load on loopback, then the books
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:\n  \
    postrider demo --messages 100000 --size 10KiB\n  \
    postrider demo --personality greylist:5s=10,tempfail:20=10 --kill-every 5s\n\
    Needs no root. Exit code 1 when anything was lost, corrupted, or duplicated without a crash.")]
pub struct DemoArgs {
    /// What to send, and how
    #[command(flatten)]
    pub campaign: Campaign,
    /// Shards of the daemon; without it, one per core
    #[arg(long, value_name = "N")]
    pub shards: Option<u16>,
    #[arg(long = "personality", value_delimiter = ',', value_name = "NAME=PERCENT",
        help = PERSONALITIES)]
    pub personalities: Vec<String>,
    /// Kill the daemon with SIGKILL at random moments, on average this far apart, and start it
    /// again
    #[arg(long, value_parser = duration, value_name = "TIME")]
    pub kill_every: Option<Duration>,
    /// At most so many kills
    #[arg(long, requires = "kill_every", value_name = "N")]
    pub kills_max: Option<u32>,
    /// Send everything to one site through a route, without MX
    #[arg(long)]
    pub via: bool,
    /// Keep the spool, the ledgers and the logs in this directory
    #[arg(long, value_name = "DIRECTORY")]
    pub keep: Option<PathBuf>,
    /// How long to wait after the campaign for the last delivery
    #[arg(long, default_value = "60s", value_parser = duration, value_name = "TIME")]
    pub drain: Duration,
    /// The program to run as the daemon; without it, this one
    #[arg(long, value_name = "FILE")]
    pub program: Option<PathBuf>,
}

impl DemoArgs {
    /// What the laboratory understands.
    #[must_use]
    pub fn options(&self) -> DemoOptions {
        let campaign = &self.campaign;
        DemoOptions {
            messages: campaign.messages,
            size: campaign.size,
            sessions: campaign.sessions,
            domains: campaign.domains,
            recipients: campaign.recipients,
            rate: campaign.rate,
            shards: self.shards,
            personalities: self.personalities.clone(),
            kill_every: self.kill_every,
            kills_max: self.kills_max,
            via: self.via,
            dialogue: campaign.dialogue(),
            chunking: campaign.chunking,
            keep: self.keep.clone(),
            seed: campaign.seed,
            drain: self.drain,
            program: self.program.clone(),
            progress: !campaign.quiet,
        }
    }
}

/// Which exit code an experiment that could not be carried out ends with, and what is said.
fn failure(error: LabError) -> Failure {
    let text = error.to_string();
    match error {
        LabError::Options(_) | LabError::Template(_) => Failure::Usage(text),
        LabError::Daemon(log, _) => {
            // Its last words are mostly the reason.
            let words = std::fs::read_to_string(log).unwrap_or_default();
            let last: Vec<&str> = words.lines().rev().take(5).collect();
            let last = last.into_iter().rev().map(|line| format!("\n  {line}"));
            Failure::Failed(text + &last.collect::<String>())
        }
        _ => Failure::Failed(text),
    }
}

/// Sends the campaign, prints the report, and fails when a message was not acknowledged.
pub(super) fn load(args: &LoadArgs) -> Result<(), Failure> {
    let options = args.options();
    let counters = Arc::clone(&options.counters);
    on_signal(move || counters.stop.store(true, Ordering::Relaxed))?;
    let report = load::run(options).map_err(failure)?;
    if args.campaign.json {
        print_json(&report)?;
    } else {
        print(&show_load(&report))?;
    }
    let complete = report.accepted == args.campaign.messages;
    if complete {
        Ok(())
    } else {
        Err(Failure::Reported)
    }
}

/// Receives until SIGINT or SIGTERM, and prints the report.
pub(super) fn sink(args: &SinkArgs) -> Result<(), Failure> {
    let options = args.options()?;
    let counters = Arc::clone(&options.counters);
    on_signal(move || counters.stop.store(true, Ordering::Relaxed))?;
    let report = sink::run(options, |sink| {
        let dns = sink
            .dns_address()
            .map(|address| format!(", name server on {address}"));
        let sites = format!("{} and on, port {}", args.first_address, sink.port());
        eprintln!(
            "postrider sink: ready on {sites}{}",
            dns.unwrap_or_default()
        );
    });
    let report = report.map_err(failure)?;
    if args.json {
        print_json(&report)
    } else {
        print(&show_sink(&report))
    }
}

/// Runs the demo, prints the report, and fails when the promise was broken.
pub(super) fn demo(args: &DemoArgs) -> Result<(), Failure> {
    Mix::parse(&args.personalities)
        .map_err(|error| Failure::Usage(format!("--personality: {error}")))?;
    let report = demo::run(args.options()).map_err(failure)?;
    if args.campaign.json {
        print_json(&report)?;
    } else {
        print(&show_demo(&report))?;
    }
    if report.holds() {
        Ok(())
    } else {
        Err(Failure::Reported)
    }
}

/// Calls `stop` on the first SIGINT or SIGTERM; on the second the process ends at once.
fn on_signal(stop: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build().map_err(Failure::failed)?;
    let wait = async move {
        let (Ok(mut interrupt), Ok(mut terminate)) = (
            signal(SignalKind::interrupt()),
            signal(SignalKind::terminate()),
        ) else {
            return;
        };
        let mut stop = Some(stop);
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            match stop.take() {
                Some(stop) => stop(),
                None => std::process::exit(1),
            }
        }
    };
    let thread = std::thread::Builder::new().name("signals".to_owned());
    thread
        .spawn(move || runtime.block_on(wait))
        .map(drop)
        .map_err(Failure::failed)
}

/// The report of a sink, for people.
fn show_sink(report: &SinkReport) -> String {
    format!(
        "received    {} messages, {} bytes, {} recipients on {} connections\n\
         bounced     {}\ndelayed     {}\nrefused     {}\nviolations  {}\nqueries     {}\n",
        report.messages,
        report.bytes,
        report.delivered,
        report.connections,
        report.bounced,
        report.delayed,
        report.refused,
        report.violations,
        report.dns_queries,
    )
}

fn milliseconds(latency: &Latency) -> String {
    let show = |micros: u64| format!("{:.2}", micros as f64 / 1e3);
    let [p50, p99, p999, max] = [latency.p50, latency.p99, latency.p999, latency.max].map(show);
    format!("p50 {p50} ms, p99 {p99} ms, p99.9 {p999} ms, max {max} ms")
}

/// The report of a load, for people.
#[must_use]
pub fn show_load(report: &LoadReport) -> String {
    let mut out = format!(
        "accepted    {} messages, {} recipients, {:.0} messages/s in {:.1} s\n\
         latency     {}\n",
        report.accepted,
        report.recipients,
        report.messages_per_second,
        report.seconds,
        milliseconds(&report.latency_us),
    );
    if report.rate.is_some() {
        let from_due = milliseconds(&report.latency_from_due_us);
        out.push_str(&format!("from due    {from_due}\n"));
    }
    out.push_str(&format!(
        "refused     {}\nunanswered  {}\nretried     {}\nlost conns  {}\n",
        report.refused, report.unanswered, report.retried, report.errors
    ));
    for refusal in &report.refusals {
        let line = format!(
            "  {} times {} {}",
            refusal.count, refusal.code, refusal.text
        );
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// The report of a demo, for people.
#[must_use]
pub fn show_demo(report: &DemoReport) -> String {
    let mut out = format!(
        "accepted    {} messages, {} recipients, {:.0} messages/s in {:.1} s\n\
         delivered   {} recipients, {:.0} a second end to end\n\
         bounced     {}\ndeferred    {}\nrefused     {}\n\
         lost        {}\nduplicates  {} (crashes explain {})\ncorrupt     {}\n\
         latency     {}\nto the sink {}\n\
         daemon      {:.1} us CPU per message, {:.0} MiB at most, {} kills, spool {} MiB\n",
        report.accepted,
        report.recipients,
        report.messages_per_second,
        report.seconds,
        report.delivered,
        report.deliveries_per_second,
        report.bounced,
        report.deferred,
        report.refused,
        report.lost,
        report.duplicates,
        report.duplicates_explained_max,
        report.corrupt,
        milliseconds(&report.latency_us),
        milliseconds(&report.delivery_latency_us),
        report.cpu_us_per_message,
        report.rss_mib,
        report.kills,
        report.spool_bytes >> 20,
    );
    if report.contradicted + report.unknown > 0 {
        let (both, unknown) = (report.contradicted, report.unknown);
        out.push_str(&format!(
            "delivered and bounced {both}\nnever sent  {unknown}\n"
        ));
    }
    if let Some(directory) = &report.directory {
        out.push_str(&format!("kept in     {}\n", directory.display()));
    }
    let verdict = if report.holds() {
        "the promise was kept"
    } else {
        "THE PROMISE WAS BROKEN"
    };
    out.push_str(&format!("{verdict}\n"));
    out
}

#[cfg(test)]
mod tests {
    use clap::{Args, FromArgMatches};

    use super::*;

    fn parse<T: Args + FromArgMatches>(words: &[&str]) -> Result<T, clap::Error> {
        let command = T::augment_args(clap::Command::new("test"));
        let words = std::iter::once("test").chain(words.iter().copied());
        T::from_arg_matches(&command.try_get_matches_from(words)?)
    }

    // All options arrive where the laboratory looks for them.
    #[test]
    fn words_become_options() {
        let load: LoadArgs = parse(&[
            "--messages",
            "5",
            "--size",
            "2KiB",
            "--rate",
            "60/min",
            "--basic",
            "--reconnect",
            "9s",
        ])
        .unwrap();
        let options = load.options();
        assert_eq!(
            (options.messages, options.size, options.rate),
            (5, 2048, Some(1.0))
        );
        assert_eq!(options.dialogue, Dialogue::Basic);
        assert_eq!(
            (options.reconnect, options.reconnect_patience.as_secs()),
            (true, 9)
        );
        let demo: DemoArgs = parse(&["--messages", "7", "--kill-every", "250ms", "--via"]).unwrap();
        let options = demo.options();
        assert_eq!((options.messages, options.via), (7, true));
        assert_eq!(options.kill_every, Some(Duration::from_millis(250)));
        let sink: SinkArgs = parse(&["--personality", "greylist:5s=10", "--txt", "a=b=c"]).unwrap();
        let options = sink.options().unwrap();
        assert_eq!(options.txt, [("a".to_owned(), "b=c".to_owned())]);
        assert_ne!(options.mix, Mix::default());
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(parse::<LoadArgs>(&["--size", "10 bananas"]).is_err());
        assert!(parse::<LoadArgs>(&["--rate", "0"]).is_err());
        assert!(parse::<DemoArgs>(&["--kills-max", "3"]).is_err());
        let sink: SinkArgs = parse(&["--personality", "grumpy"]).unwrap();
        assert!(matches!(sink.options(), Err(Failure::Usage(_))));
        let sink: SinkArgs = parse(&["--txt", "nothing"]).unwrap();
        assert!(matches!(sink.options(), Err(Failure::Usage(_))));
    }
}
