//! ctl - the client of the admin socket.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::run::CONFIG_DEFAULT;
use super::spool::plain;
use super::{Failure, print};
use crate::admin::{
    self, ANSWER_TIMEOUT, Changed, Counters, NodeStatus, PathStatus, Probed, Quarantine, Released,
    Selector, ShardStatus, SpoolShardStatus,
};
use crate::config;
use crate::limits::{ADMIN_ANSWER_BYTES_MAX, ADMIN_HEAD_BYTES_MAX};
use crate::message::MessageId;

/// Ask and steer a running node over its admin socket
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  postrider ctl status\n  \
                        postrider ctl --json paths\n  \
                        postrider ctl suspend --site gmail.com")]
pub(super) struct Args {
    /// The socket; without it, the one that the configuration names
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// The configuration to read the socket's path from
    #[arg(long, short, global = true, value_name = "FILE", default_value = CONFIG_DEFAULT)]
    config: PathBuf,
    /// Print the answer as JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// What the node is doing, by shard
    #[command(after_help = "Example:\n  postrider ctl status --json")]
    Status,
    /// The egress paths (source and site) that have work
    #[command(after_help = "Example:\n  postrider ctl paths")]
    Paths,
    /// The spool, by shard
    #[command(after_help = "Example:\n  postrider ctl spool")]
    Spool,
    /// All figures in the Prometheus text format
    #[command(after_help = "Example:\n  postrider ctl metrics")]
    Metrics,
    /// Stop sending on some paths until they are resumed, or the node starts again
    #[command(
        after_help = "Example:\n  postrider ctl suspend --source ip1 --site gmail.com\n\
                            It is about paths that have work now: those that `ctl paths` lists. \
                            Exit code 1 when there is none to change."
    )]
    Suspend(Which),
    /// Send again on some paths
    #[command(after_help = "Example:\n  postrider ctl resume --source ip1")]
    Resume(Which),
    /// Messages that were put aside: list them, send them after all, or remove them
    #[command(after_help = "Examples:\n  postrider ctl quarantine list\n  \
                            postrider ctl quarantine release 0000000000000001\n\
                            `postrider spool export --quarantined` copies them out of a stopped \
                            node.")]
    Quarantine {
        #[command(subcommand)]
        verb: Quarantined,
    },
    /// Let shards that stopped accepting after a write error try the disk again
    #[command(after_help = "Example:\n  postrider ctl probe")]
    Probe,
}

#[derive(Debug, clap::Subcommand)]
enum Quarantined {
    /// What is in quarantine: id, reason, bytes, sender, recipients that waited
    #[command(after_help = "Example:\n  postrider ctl quarantine list --json")]
    List,
    /// Send a message to those who waited, as a new message with a new id
    #[command(after_help = "Example:\n  postrider ctl quarantine release 0000000000000001")]
    Release {
        /// The message
        #[arg(value_name = "ID")]
        id: MessageId,
    },
    /// Remove a message for good; nobody is told
    #[command(after_help = "Example:\n  postrider ctl quarantine delete 0000000000000001")]
    Delete {
        /// The message
        #[arg(value_name = "ID")]
        id: MessageId,
    },
}

impl Quarantined {
    fn request(&self) -> Result<(&'static str, &'static str, Vec<u8>), Failure> {
        let body = |id: &MessageId| {
            let which = admin::Which { id: id.to_string() };
            serde_json::to_vec(&which).map_err(Failure::failed)
        };
        Ok(match self {
            Self::List => ("GET", "/quarantine", Vec::new()),
            Self::Release { id } => ("POST", "/quarantine/release", body(id)?),
            Self::Delete { id } => ("POST", "/quarantine/delete", body(id)?),
        })
    }

    fn show(&self, answer: &[u8]) -> Result<String, Failure> {
        Ok(match self {
            Self::List => show_quarantine(&read(answer)?),
            Self::Release { .. } => format!("released as {}\n", read::<Released>(answer)?.id),
            Self::Delete { .. } => format!("{} removed\n", read::<Released>(answer)?.id),
        })
    }
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = true)]
struct Which {
    /// The paths of this source
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// The paths to this site, named as `ctl paths` does or by a domain whose mail goes there
    #[arg(long, value_name = "NAME")]
    site: Option<String>,
}

/// How many paths are otherwise now; none is a failure, mostly of a name.
fn changed(answer: Changed, how: &str) -> Result<String, Failure> {
    match answer.paths {
        0 => Err(Failure::Failed(format!(
            "no path was {how}: none has this source and site, or they are so already; `postrider \
             ctl paths` lists them"
        ))),
        paths => Ok(format!("{paths} paths {how}\n")),
    }
}

impl Which {
    fn body(&self) -> Result<Vec<u8>, Failure> {
        let selector = Selector {
            source: self.source.clone(),
            site: self.site.clone(),
        };
        serde_json::to_vec(&selector).map_err(Failure::failed)
    }
}

pub(super) fn execute(args: &Args) -> Result<(), Failure> {
    let socket = socket(args)?;
    let (method, path, body) = match &args.verb {
        Verb::Status => ("GET", "/status", Vec::new()),
        Verb::Paths => ("GET", "/paths", Vec::new()),
        Verb::Spool => ("GET", "/spool", Vec::new()),
        Verb::Metrics => ("GET", "/metrics", Vec::new()),
        Verb::Suspend(which) => ("POST", "/suspend", which.body()?),
        Verb::Resume(which) => ("POST", "/resume", which.body()?),
        Verb::Probe => ("POST", "/spool/probe", Vec::new()),
        Verb::Quarantine { verb } => verb.request()?,
    };
    let answer = request(&socket, method, path, &body)
        .map_err(|error| Failure::Failed(format!("{}: {error}", socket.display())))?;
    if args.json || matches!(args.verb, Verb::Metrics) {
        let mut text = String::from_utf8_lossy(&answer).into_owned();
        if !text.ends_with('\n') {
            text.push('\n');
        }
        return print(&text);
    }
    print(&match &args.verb {
        Verb::Status => show_status(&read(&answer)?),
        Verb::Paths => show_paths(&read::<Vec<_>>(&answer)?),
        Verb::Spool => show_spool(&read::<Vec<_>>(&answer)?),
        Verb::Suspend(_) => changed(read::<Changed>(&answer)?, "suspended")?,
        Verb::Resume(_) => changed(read::<Changed>(&answer)?, "resumed")?,
        Verb::Probe => format!("{} shards try again\n", read::<Probed>(&answer)?.shards),
        Verb::Quarantine { verb } => verb.show(&answer)?,
        Verb::Metrics => return Ok(()),
    })
}

fn socket(args: &Args) -> Result<PathBuf, Failure> {
    if let Some(socket) = &args.socket {
        return Ok(socket.clone());
    }
    let snapshot = config::load(&args.config)?.snapshot;
    snapshot.admin.socket.ok_or_else(|| {
        let file = args.config.display();
        Failure::Failed(format!(
            "{file} has no admin.socket; set it, or name one with --socket"
        ))
    })
}

fn read<T: DeserializeOwned>(answer: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(answer)
        .map_err(|error| Failure::Failed(format!("the node's answer makes no sense: {error}")))
}

/// One request, one answer: the body of a 200, or a sentence.
fn request(socket: &Path, method: &str, path: &str, body: &[u8]) -> Result<Vec<u8>, String> {
    let mut stream = UnixStream::connect(socket).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => {
            format!("{error}; is the daemon running?")
        }
        _ => error.to_string(),
    })?;
    // The node has its own limit for an answer, and says so when it is over.
    let patience = ANSWER_TIMEOUT + Duration::from_secs(5);
    stream
        .set_read_timeout(Some(patience))
        .map_err(|error| error.to_string())?;
    stream
        .set_write_timeout(Some(patience))
        .map_err(|error| error.to_string())?;
    // HTTP/1.0: the answer has no chunks and ends with the connection.
    let head = format!(
        "{method} {path} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let sent = stream
        .write_all(head.as_bytes())
        .and_then(|()| stream.write_all(body));
    sent.map_err(|error| error.to_string())?;
    let limit = ADMIN_HEAD_BYTES_MAX + ADMIN_ANSWER_BYTES_MAX;
    let mut answer = Vec::new();
    stream
        .take(limit as u64)
        .read_to_end(&mut answer)
        .map_err(|error| error.to_string())?;
    parse_answer(&answer)
}

/// Splits an answer. Total: any bytes give a body or a sentence.
fn parse_answer(answer: &[u8]) -> Result<Vec<u8>, String> {
    let end = memchr::memmem::find(answer, b"\r\n\r\n").ok_or("the answer was cut off")?;
    let head = std::str::from_utf8(&answer[..end]).map_err(|_| "the answer is not HTTP")?;
    let body = &answer[end + 4..];
    let mut lines = head.split("\r\n");
    let mut status = lines.next().unwrap_or_default().split(' ');
    let is_http = status
        .next()
        .is_some_and(|version| version.starts_with("HTTP/1."));
    let code = status
        .next()
        .filter(|_| is_http)
        .ok_or("the answer is not HTTP")?;
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse::<usize>().ok());
    if length.is_some_and(|length| length != body.len()) {
        return Err("the answer was cut off".to_owned());
    }
    if code == "200" {
        return Ok(body.to_vec());
    }
    let value: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let text = value
        .as_ref()
        .and_then(|value| value.get("error")?.as_str());
    Err(text.map_or_else(|| format!("answered {code}"), str::to_owned))
}

fn show_status(status: &NodeStatus) -> String {
    let mut sum = ShardStatus::default();
    for shard in &status.shards {
        sum.sessions += shard.sessions;
        sum.connections += shard.connections;
        sum.ready += shard.ready;
        sum.deferred += shard.deferred;
        sum.in_flight += shard.in_flight;
        sum.restoring += shard.restoring;
        sum.counters.add(&shard.counters);
    }
    let mut rows = vec![row([
        "shard",
        "sessions",
        "connections",
        "ready",
        "deferred",
        "in flight",
    ])];
    let line = |name: String, shard: &ShardStatus| {
        let numbers = [
            shard.sessions,
            shard.connections,
            shard.ready,
            shard.deferred,
            shard.in_flight,
        ];
        let mut cells = vec![name];
        cells.extend(numbers.map(|number| number.to_string()));
        cells
    };
    rows.extend(
        status
            .shards
            .iter()
            .map(|shard| line(shard.shard.to_string(), shard)),
    );
    rows.push(line("all".to_owned(), &sum));
    let draining = if status.draining { ", draining" } else { "" };
    let restoring = match sum.restoring {
        0 => String::new(),
        messages => format!(", {messages} messages not in the queue yet"),
    };
    format!(
        "{} {}, pid {}, up {} s{draining}{restoring}\n\n{}\n{}",
        status.hostname,
        status.version,
        status.pid,
        status.uptime_seconds,
        table(&rows),
        show_counters(&sum.counters)
    ) + &show_alarms(&status.alarms)
}

/// What somebody has to see to; nothing where all is well.
fn show_alarms(alarms: &[String]) -> String {
    let line = |alarm: &String| format!("\nALARM: {alarm}\n");
    alarms.iter().map(line).collect()
}

fn show_counters(counters: &Counters) -> String {
    let mut rows = vec![row(["since the start", ""])];
    for (name, value) in counters.fields() {
        rows.push(vec![name.replace('_', " "), value.to_string()]);
        if name == "dkim_lane_batches" && value > 0 {
            let mean = counters.dkim_lane_signatures as f64 / value as f64;
            rows.push(vec![
                "dkim mean batch, of 8".to_owned(),
                format!("{mean:.1}"),
            ]);
        }
    }
    table(&rows)
}

fn show_paths(paths: &[PathStatus]) -> String {
    let head = [
        "source",
        "site",
        "shard",
        "ready",
        "deferred",
        "in flight",
        "connections",
        "state",
        "last error",
    ];
    let mut rows = vec![row(head)];
    for path in paths {
        let mut cells = vec![
            path.source.clone(),
            path.site.clone(),
            path.shard.to_string(),
        ];
        let numbers = [path.ready, path.deferred, path.in_flight, path.connections];
        cells.extend(numbers.map(|number| number.to_string()));
        cells.push(match (path.suspended, path.sleeps_seconds, path.failures) {
            (true, ..) => "suspended".to_owned(),
            (false, Some(seconds), failures) => format!("sleeps {seconds} s, failed {failures}"),
            (false, None, 0) => String::new(),
            (false, None, failures) => format!("failed {failures}"),
        });
        cells.push(plain(path.last_error.as_deref().unwrap_or_default()));
        rows.push(cells);
    }
    table(&rows)
}

fn show_quarantine(quarantine: &Quarantine) -> String {
    let mut rows = vec![row(["id", "reason", "bytes", "waiting", "sender"])];
    for message in &quarantine.messages {
        let sender = message.sender.as_deref().unwrap_or("?");
        rows.push(vec![
            // As a word: an id is no number to be aligned to the right.
            message.id.clone(),
            message.reason.clone(),
            message.bytes.to_string(),
            message.waiting.to_string(),
            format!("<{}>", plain(sender)),
        ]);
    }
    let shown = quarantine.messages.len();
    format!("{}{shown} of {} messages\n", table(&rows), quarantine.total)
}

fn show_spool(shards: &[SpoolShardStatus]) -> String {
    let head = [
        "shard",
        "messages",
        "live",
        "segments",
        "free",
        "quarantined",
        "accepting",
        "alarms",
    ];
    let mut rows = vec![row(head)];
    for shard in shards {
        rows.push(vec![
            shard.shard.to_string(),
            shard.messages.to_string(),
            mebibytes(shard.live_bytes),
            shard.segments.to_string(),
            mebibytes(shard.free_bytes),
            shard.quarantined.to_string(),
            if shard.accepting { "yes" } else { "NO" }.to_owned(),
            shard.alarms.join("; "),
        ]);
    }
    table(&rows)
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

/// Columns as wide as their widest cell; numbers to the right.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
    };
    let widths: Vec<usize> = (0..columns)
        .map(|column| width(column).unwrap_or(0))
        .collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let is_number = cell.starts_with(|first: char| first.is_ascii_digit());
            if is_number {
                line.push_str(&format!("{cell:>width$}  "));
            } else {
                line.push_str(&format!("{cell:<width$}  "));
            }
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    // A peer that is no daemon of ours, or died on the way, gives a sentence.
    #[test]
    fn answers_are_judged() {
        let answer = |text: &str| parse_answer(text.as_bytes());
        assert_eq!(
            answer("HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\n{}"),
            Ok(b"{}".to_vec())
        );
        assert_eq!(answer("HTTP/1.1 200 OK\r\n\r\nx"), Ok(b"x".to_vec()));
        let refused = answer("HTTP/1.0 400 Bad Request\r\n\r\n{\"error\":\"no\"}");
        assert_eq!(refused, Err("no".to_owned()));
        assert_eq!(
            answer("HTTP/1.0 504 Late\r\n\r\n"),
            Err("answered 504".to_owned())
        );
        let cut = Err("the answer was cut off".to_owned());
        assert_eq!(
            answer("HTTP/1.0 200 OK\r\ncontent-length: 3\r\n\r\n{}"),
            cut
        );
        assert_eq!(answer("HTTP/1.0 200 OK\r\n"), cut);
        for text in ["220 mta ESMTP\r\n\r\n", "\r\n\r\n", "\u{fc}\r\n\r\n"] {
            assert_eq!(
                answer(text),
                Err("the answer is not HTTP".to_owned()),
                "{text}"
            );
        }
    }

    // Why nothing goes out: how long a path sleeps, after how many failures, and what was said.
    #[test]
    fn paths_say_what_is_wrong() {
        let path = PathStatus {
            source: "ip1".to_owned(),
            site: "mx.example".to_owned(),
            shard: 0,
            ready: 7,
            deferred: 0,
            in_flight: 0,
            connections: 0,
            suspended: false,
            failures: 2,
            sleeps_seconds: Some(10),
            last_error: Some("mx.example [192.0.2.1]: slow\u{1b} down".to_owned()),
        };
        let well = PathStatus {
            failures: 0,
            sleeps_seconds: None,
            last_error: None,
            ..path.clone()
        };
        let shown = show_paths(&[path, well]);
        let lines: Vec<&str> = shown.lines().collect();
        let end = "sleeps 10 s, failed 2  mx.example [192.0.2.1]: slow\\u{1b} down";
        assert!(lines[1].ends_with(end), "{shown}");
        assert!(lines[2].ends_with(" 0"), "{shown}");
    }

    #[test]
    fn alarms_are_shown() {
        let mut status = NodeStatus {
            hostname: "mta.example".into(),
            version: "1".into(),
            pid: 2,
            uptime_seconds: 3,
            draining: false,
            alarms: vec![],
            shards: vec![ShardStatus::default()],
        };
        assert!(!show_status(&status).contains("ALARM"));
        assert!(!show_status(&status).contains("not in the queue"));
        // A node that has just started must not look empty.
        status.shards[0].restoring = 7;
        assert!(show_status(&status).contains(", 7 messages not in the queue yet\n"));
        status.alarms.push("the roof is on fire".into());
        assert!(show_status(&status).ends_with("\nALARM: the roof is on fire\n"));
    }

    #[test]
    fn tables_line_up() {
        let rows = [
            row(["name", "count"]),
            row(["a", "5"]),
            row(["longer", "12345"]),
        ];
        assert_eq!(
            table(&rows),
            "name    count\na           5\nlonger  12345\n"
        );
    }
}
