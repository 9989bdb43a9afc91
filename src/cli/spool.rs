//! spool - the spool of a stopped node: is it whole, what waits in it, and how to get it out.
//!
//! Writes nothing into the data directory. Memory is the index and one segment, whatever the number
//! of messages.

mod export;
mod place;
mod quarantine;
mod words;

use std::collections::HashSet;
use std::io::{BufWriter, StdoutLock, Write};
use std::path::PathBuf;

use indicatif::ProgressBar;
use serde_json::{Value, json};

use self::place::Place;
use self::words::Row;
pub(in crate::cli) use self::words::plain;
use super::run::CONFIG_DEFAULT;
use super::{Failure, print, print_json};
use crate::config;
use crate::message::{MessageId, header};
use crate::spool::inspect::Seen;
use crate::spool::{Damage, RecoveryReport};

/// Look at the spool of a stopped node: verify, list, show, export
///
/// A node that runs keeps its spool to itself: stop it, or ask it with `postrider ctl`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  postrider spool verify\n  \
                        postrider spool list --data /var/lib/postrider\n  \
                        postrider spool export --out /tmp/mail")]
pub(super) struct Args {
    /// The configuration to read the data directory from
    #[arg(long, short, global = true, value_name = "FILE", default_value = CONFIG_DEFAULT)]
    config: PathBuf,
    /// The data directory; without it, the one that the configuration names
    #[arg(long, global = true, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Print the result as JSON; what is many is one document per line
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Read every byte and check every waiting message; exit code 1 when something is damaged
    #[command(after_help = "Example:\n  postrider spool verify --data /var/lib/postrider")]
    Verify,
    /// One line per waiting message: id, received, bytes, sender, recipients waiting, attempts, due
    #[command(after_help = "Examples:\n  postrider spool list --json | head\n  \
                            postrider spool list --quarantined")]
    List {
        /// What was put aside instead: damaged, or in hand at repeated crashes
        #[arg(long)]
        quarantined: bool,
    },
    /// One waiting message: its envelope, its header section, and who waits
    #[command(after_help = "Example:\n  postrider spool show 0000000000000001")]
    Show {
        /// The message
        #[arg(value_name = "ID")]
        id: MessageId,
    },
    /// Copy waiting messages out: ID.eml for each, and envelopes.jsonl for all
    #[command(after_help = "Examples:\n  \
        postrider spool export --out /tmp/mail\n  \
        postrider spool export --out /tmp/mail 0000000000000001\n  \
        postrider spool export --out /tmp/mail --quarantined\n\
        Never overwrites. A damaged message becomes ID.damaged, and the exit code 1.")]
    Export(export::Args),
    /// Messages, bytes, segments and damage, by shard
    #[command(after_help = "Example:\n  postrider spool stats --json")]
    Stats,
}

pub(super) fn execute(args: &Args) -> Result<(), Failure> {
    let place = match &args.data {
        Some(data) => Place::open(data)?,
        None => Place::open(&config::load(&args.config)?.snapshot.node.data_dir)?,
    };
    match &args.verb {
        Verb::Verify => verify(&place, args.json),
        Verb::List { quarantined: true } => quarantine::list(&place, args.json),
        Verb::List { quarantined: false } => list(&place, args.json),
        Verb::Show { id } => show(&place, *id, args.json),
        Verb::Export(which) => export::execute(&place, which, args.json),
        Verb::Stats => stats(&place, args.json),
    }
}

/// Lines on stdout; a reader that has left ends the verb quietly.
struct Lines {
    out: BufWriter<StdoutLock<'static>>,
    failure: Option<std::io::Error>,
}

impl Lines {
    fn new() -> Self {
        Self {
            out: BufWriter::new(std::io::stdout().lock()),
            failure: None,
        }
    }

    /// Whether there is any use in writing more.
    fn write(&mut self, text: &str) -> bool {
        if self.failure.is_none() {
            self.failure = self.out.write_all(text.as_bytes()).err();
        }
        self.failure.is_none()
    }

    /// Whether the reader has all of it.
    fn end(mut self) -> Result<(), Failure> {
        let flushed = self.out.flush();
        match self.failure.map_or(flushed, Err) {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            other => other.map_err(|error| Failure::Failed(format!("cannot write: {error}"))),
        }
    }
}

/// Shows each waiting message of a shard until `each` says false.
fn walk(
    place: &Place,
    inspection: &crate::spool::inspect::Inspection<place::ShardFiles>,
    shard: u16,
    bar: &ProgressBar,
    each: impl FnMut(Seen<'_>) -> bool,
) -> Result<(), Failure> {
    let told = |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    };
    let walked = inspection.walk(told, each);
    walked.map_err(|error| place.failed(shard, error))
}

/// What a verification has found so far.
struct Verified {
    json: bool,
    lines: Lines,
    messages: u64,
    /// Pieces of damage; torn last writes are none.
    damaged: u64,
}

impl Verified {
    fn note(&mut self, shard: u16, id: Option<MessageId>, kind: &str, what: &str) {
        self.damaged += u64::from(kind == "damaged");
        let id = id.map(|id| id.to_string());
        let line = if self.json {
            format!("{}\n", json!({ "shard": shard, "id": id, kind: what }))
        } else {
            let name = id.unwrap_or_else(|| format!("shard {shard}"));
            format!("{name}: {kind}: {what}\n")
        };
        self.lines.write(&line);
    }

    /// Notes what recovery found, and returns the messages that were named.
    fn report(&mut self, shard: u16, report: &RecoveryReport) -> HashSet<MessageId> {
        let mut named = HashSet::new();
        for damage in &report.damage {
            let id = words::damaged_id(damage);
            let kind = match damage {
                Damage::Torn(_) => "torn",
                _ => "damaged",
            };
            self.note(shard, id, kind, &words::damage(damage));
            named.extend(id);
        }
        if report.damage_unlisted > 0 {
            let what = format!("{} more, not listed", report.damage_unlisted);
            self.note(shard, None, "damaged", &what);
        }
        named
    }
}

fn verify(place: &Place, json: bool) -> Result<(), Failure> {
    let bar = place::bar(false);
    let mut found = Verified {
        json,
        lines: Lines::new(),
        messages: 0,
        damaged: 0,
    };
    for shard in &place.shards {
        let inspection = place.inspect(*shard, true, &bar)?;
        let named = found.report(*shard, inspection.report());
        walk(place, &inspection, *shard, &bar, |seen| {
            found.messages += 1;
            if let Some(what) = Row::new(&seen).fault()
                && !named.contains(&seen.id)
            {
                found.note(*shard, Some(seen.id), "damaged", what);
            }
            true
        })?;
    }
    bar.finish_and_clear();
    let (messages, damaged) = (found.messages, found.damaged);
    found.lines.write(&if json {
        let good = damaged == 0;
        format!(
            "{}\n",
            json!({ "ok": good, "messages": messages, "damaged": damaged })
        )
    } else {
        format!("messages waiting: {messages}, damaged: {damaged}\n")
    });
    found.lines.end()?;
    if damaged > 0 {
        return Err(Failure::Reported);
    }
    Ok(())
}

fn list(place: &Place, json: bool) -> Result<(), Failure> {
    use std::io::IsTerminal;
    // Lines and a bar on the same terminal would be in each other's way.
    let bar = place::bar(std::io::stdout().is_terminal());
    let mut lines = Lines::new();
    for shard in &place.shards {
        let inspection = place.inspect(*shard, false, &bar)?;
        walk(place, &inspection, *shard, &bar, |seen| {
            let row = Row::new(&seen);
            lines.write(&if json {
                format!("{}\n", row.json())
            } else {
                row.line()
            })
        })?;
        if lines.failure.is_some() {
            break;
        }
    }
    bar.finish_and_clear();
    lines.end()
}

fn show(place: &Place, id: MessageId, json: bool) -> Result<(), Failure> {
    let absent = || Failure::Failed(format!("{id}: no such message waits here"));
    if !place.shards.contains(&id.shard()) {
        return Err(absent());
    }
    let bar = place::bar(false);
    let inspection = place.inspect(id.shard(), false, &bar)?;
    let mut shown = None;
    let looked = inspection.show(id, |seen| {
        let row = Row::new(&seen);
        let content = seen.content.unwrap_or_default();
        let head = String::from_utf8_lossy(&content[..header::scan(content).end]).into_owned();
        shown = Some((row.whole(), head));
    });
    bar.finish_and_clear();
    looked.map_err(|error| place.failed(id.shard(), error))?;
    let (mut value, head) = shown.ok_or_else(absent)?;
    if json {
        value["header"] = json!(head);
        return print_json(&value);
    }
    print(&format!("{}\n{}", card(&value), words::plain_header(&head)))
}

/// The fields of a message that have a value, one per line.
fn card(value: &Value) -> String {
    let mut out = String::new();
    let text = |value: &Value| match value {
        Value::String(text) => words::plain(text),
        other => other.to_string(),
    };
    for (name, field) in value.as_object().into_iter().flatten() {
        if !field.is_null() && !field.is_array() {
            out.push_str(&format!("{name}: {}\n", text(field)));
        }
    }
    for waiting in value["pending"].as_array().into_iter().flatten() {
        let next = match &waiting["next"] {
            Value::Null => "now".to_owned(),
            next => text(next),
        };
        let (address, attempts) = (text(&waiting["address"]), &waiting["attempts"]);
        out.push_str(&format!(
            "waits: <{address}> attempts {attempts} next {next}\n"
        ));
    }
    out
}

fn stats(place: &Place, json: bool) -> Result<(), Failure> {
    let bar = place::bar(false);
    let mut rows = Vec::new();
    for shard in &place.shards {
        let inspection = place.inspect(*shard, false, &bar)?;
        let (status, report) = (inspection.stats(), inspection.report());
        let damage = report.damage.iter();
        let torn = damage.filter(|damage| matches!(damage, Damage::Torn(_)));
        let torn = torn.count();
        rows.push(json!({
            "shard": shard,
            "messages": status.queued_messages,
            "live_bytes": status.live_bytes,
            "disk_bytes": status.disk_bytes,
            "segments": status.segments,
            "settled_records": report.settled_records,
            "damage": (report.damage.len() - torn) as u64 + report.damage_unlisted,
            "torn": torn,
            "quarantined": quarantine::asides(place, *shard)?.len(),
            "closed_in_order": report.clean,
        }));
    }
    bar.finish_and_clear();
    if json {
        return print_json(&json!({ "shards": rows }));
    }
    let mut out = String::new();
    for row in &rows {
        let fields = row.as_object().into_iter().flatten();
        let fields: Vec<String> = fields
            .map(|(name, value)| format!("{name} {value}"))
            .collect();
        out.push_str(&format!("{}\n", fields.join(", ")));
    }
    print(&out)
}
