//! cli::spool::export - waiting messages as files that any other program can submit.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{DirBuilder, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::place::{self, Place};
use super::quarantine;
use super::words::Row;
use crate::cli::{Failure, print, print_json};
use crate::message::MessageId;
use crate::spool::inspect::Seen;

/// What to copy, and where to.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The directory to copy to; made when missing
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// What was put aside instead: damaged, or in hand at repeated crashes
    #[arg(long)]
    quarantined: bool,
    /// The messages; without any, all
    #[arg(value_name = "ID")]
    ids: Vec<MessageId>,
}

pub(super) fn execute(place: &Place, args: &Args, json: bool) -> Result<(), Failure> {
    let mut export = Export::new(&args.out)?;
    if args.quarantined {
        quarantine::export(place, &args.ids, |seen| {
            export.take(&seen);
            export.check()
        })?;
    } else {
        waiting(place, args, &mut export)?;
    }
    let (messages, damaged) = export.end()?;
    if json {
        print_json(&json!({ "messages": messages, "damaged": damaged, "out": args.out }))?;
    } else {
        let out = args.out.display();
        print(&format!(
            "{messages} messages are in {out}; {damaged} of them are damaged\n"
        ))?;
    }
    match damaged {
        0 => Ok(()),
        _ => Err(Failure::Reported),
    }
}

/// Copies messages that wait.
fn waiting(place: &Place, args: &Args, export: &mut Export) -> Result<(), Failure> {
    let mut wanted: BTreeMap<u16, BTreeSet<MessageId>> = BTreeMap::new();
    for id in &args.ids {
        if !place.shards.contains(&id.shard()) {
            return Err(absent(*id));
        }
        wanted.entry(id.shard()).or_default().insert(*id);
    }
    let bar = place::bar(false);
    for shard in &place.shards {
        let ids = wanted.get(shard);
        if ids.is_none() && !wanted.is_empty() {
            continue;
        }
        let inspection = place.inspect(*shard, true, &bar)?;
        let Some(ids) = ids else {
            super::walk(place, &inspection, *shard, &bar, |seen| export.take(&seen))?;
            export.check()?;
            continue;
        };
        for id in ids {
            let shown = inspection.show(*id, |seen| {
                export.take(&seen);
            });
            if !shown.map_err(|error| place.failed(*shard, error))? {
                return Err(absent(*id));
            }
            export.check()?;
        }
    }
    bar.finish_and_clear();
    Ok(())
}

pub(super) fn absent(id: MessageId) -> Failure {
    Failure::Failed(format!("{id}: no such message waits here"))
}

/// A directory that is being filled.
struct Export {
    out: PathBuf,
    envelopes: BufWriter<File>,
    messages: u64,
    damaged: u64,
    failure: Option<(PathBuf, io::Error)>,
}

impl Export {
    fn new(out: &Path) -> Result<Self, Failure> {
        let failed = |path: &Path, error| Failure::Failed(format!("{}: {error}", path.display()));
        match DirBuilder::new().mode(0o700).create(out) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed(out, error));
            }
            _ => {}
        }
        let list = out.join("envelopes.jsonl");
        let file = create(&list).map_err(|error| failed(&list, error))?;
        Ok(Self {
            out: out.to_owned(),
            envelopes: BufWriter::new(file),
            messages: 0,
            damaged: 0,
            failure: None,
        })
    }

    /// Writes one message; false when there is no use in going on.
    fn take(&mut self, seen: &Seen<'_>) -> bool {
        let row = Row::new(seen);
        let damaged = row.fault().is_some();
        let end = if damaged { "damaged" } else { "eml" };
        let name = format!("{}.{end}", seen.id);
        let path = self.out.join(&name);
        let mut value = row.whole();
        value["file"] = json!(name);
        let written = create(&path)
            .and_then(|mut file| file.write_all(seen.content.unwrap_or(seen.raw_content)))
            .and_then(|()| writeln!(self.envelopes, "{value}"));
        self.messages += 1;
        self.damaged += u64::from(damaged);
        self.failure = written.err().map(|error| (path, error));
        self.failure.is_none()
    }

    fn check(&mut self) -> Result<(), Failure> {
        match self.failure.take() {
            Some((path, error)) => Err(Failure::Failed(format!("{}: {error}", path.display()))),
            None => Ok(()),
        }
    }

    /// How many messages there are, and how many of them are damaged, when all are on the disk:
    /// whoever exports may well remove the spool next.
    fn end(self) -> Result<(u64, u64), Failure> {
        let failed = |error: io::Error| Failure::Failed(format!("{}: {error}", self.out.display()));
        let into = self.envelopes.into_inner();
        let file = into.map_err(|error| failed(error.into_error()))?;
        nix::unistd::syncfs(&file).map_err(|errno| failed(errno.into()))?;
        Ok((self.messages, self.damaged))
    }
}

/// A new file that only its owner may read: it is other people's mail.
fn create(path: &Path) -> io::Result<File> {
    File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}
