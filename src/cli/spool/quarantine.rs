//! cli::spool::quarantine - what the node put aside: listed and copied out.

use std::fs;

use serde_json::json;

use super::Lines;
use super::export::absent;
use super::place::Place;
use super::words::Row;
use crate::cli::Failure;
use crate::message::MessageId;
use crate::spool::inspect::Seen;
use crate::spool::quarantine::{Aside, read};

/// The files of one shard in quarantine, in the order of their ids.
pub(super) fn asides(place: &Place, shard: u16) -> Result<Vec<Aside>, Failure> {
    let failed = |error| place.failed(shard, error);
    let mut found = Vec::new();
    for entry in fs::read_dir(place.directory(shard)).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        found.extend(name.to_str().and_then(Aside::parse_file_name));
    }
    found.sort_by_key(|aside| (aside.id, aside.file_name()));
    Ok(found)
}

/// One file at a time: memory is the largest message.
fn walk(
    place: &Place,
    mut each: impl FnMut(Aside, Seen<'_>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    for shard in &place.shards {
        for aside in asides(place, *shard)? {
            let path = place.directory(*shard).join(aside.file_name());
            let bytes = fs::read(path).map_err(|error| place.failed(*shard, error))?;
            each(aside, read(aside, &bytes))?;
        }
    }
    Ok(())
}

pub(super) fn list(place: &Place, json: bool) -> Result<(), Failure> {
    let mut lines = Lines::new();
    walk(place, |aside, seen| {
        let row = Row::new(&seen);
        let line = if json {
            let mut value = row.json();
            value["reason"] = json!(aside.reason.to_string());
            format!("{value}\n")
        } else {
            format!("{} {}", aside.reason, row.line())
        };
        lines.write(&line);
        Ok(())
    })?;
    lines.end()
}

/// Shows those that are wanted, or all, to `each`.
pub(super) fn export(
    place: &Place,
    wanted: &[MessageId],
    mut each: impl FnMut(Seen<'_>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut missing: Vec<MessageId> = wanted.to_vec();
    walk(place, |aside, seen| {
        if !wanted.is_empty() && !wanted.contains(&aside.id) {
            return Ok(());
        }
        missing.retain(|id| *id != aside.id);
        each(seen)
    })?;
    missing.first().map_or(Ok(()), |id| Err(absent(*id)))
}
