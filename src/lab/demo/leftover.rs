//! lab::demo::leftover - what still waits in the spool of a daemon that has ended.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::engine::Port;
use crate::lab::LabError;
use crate::lab::check::Books;
use crate::lab::engine::engine;
use crate::lab::identity::recipient_index;
use crate::lab::parcel::{self, Parcel};
use crate::service::spooler::{Spooler, SpoolerConfig};

/// Messages whose envelopes are read at once.
const BATCH: usize = 256;

/// Enters every recipient that waits in the spools below `data` into the books.
pub(super) fn enter(data: &Path, books: &mut Books) -> Result<(), LabError> {
    for (shard, directory) in spools(data)? {
        let runtime = engine(shard, 0)?;
        let port = runtime.port();
        let config = SpoolerConfig {
            directory: directory.clone(),
            shard,
            segment_bytes: 64 << 20,
            low_water_bytes: 0,
            settle_wait: Duration::ZERO,
        };
        let entered = runtime.run(enter_one(port, config, books));
        entered.map_err(|error| LabError::File(directory, std::io::Error::other(error)))?;
    }
    Ok(())
}

async fn enter_one<P: Port>(
    port: P,
    config: SpoolerConfig,
    books: &mut Books,
) -> Result<(), String> {
    let (spooler, mut recovered) = Spooler::open(port, config)
        .await
        .map_err(|error| error.to_string())?;
    loop {
        let batch = spooler.load(&mut recovered.cursor, BATCH).await;
        if batch.is_empty() {
            break;
        }
        for loaded in batch {
            // A message that cannot be read is not deferred: the books will call it lost.
            let Ok(message) = spooler.read(loaded.queued.id).await else {
                continue;
            };
            let Parcel::Load(id, _) = parcel::open(&message.content, b"") else {
                continue;
            };
            for pending in &loaded.queued.pending {
                let recipient = loaded.envelope.recipients.get(pending.index as usize);
                let index = recipient.and_then(|recipient| {
                    let address = recipient.address.as_str().as_bytes();
                    recipient_index(address.split(|byte| *byte == b'@').next()?)
                });
                if let Some(index) = index {
                    books.waits(id, index);
                }
            }
        }
    }
    spooler.close().await;
    Ok(())
}

/// The shards' spools below `data`: directories whose name ends in the shard's number.
fn spools(data: &Path) -> Result<Vec<(u16, PathBuf)>, LabError> {
    let mut found = Vec::new();
    let mut open = vec![data.to_owned()];
    while let Some(directory) = open.pop() {
        let failed = |error| LabError::File(directory.clone(), error);
        let mut is_spool = false;
        for entry in fs::read_dir(&directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let kind = entry.file_type().map_err(failed)?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if kind.is_dir() {
                open.push(entry.path());
            } else if name.starts_with("mail-") && name.ends_with(".log") {
                is_spool = true;
            }
        }
        let name = directory
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let digits = name.trim_start_matches(|c: char| !c.is_ascii_digit());
        if is_spool && let Ok(shard) = digits.parse() {
            found.push((shard, directory));
        }
    }
    found.sort();
    Ok(found)
}

/// Bytes of all files below `directory`.
pub(super) fn size(directory: &Path) -> Result<u64, LabError> {
    let mut total = 0;
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        let failed = |error| LabError::File(directory.clone(), error);
        for entry in fs::read_dir(&directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let metadata = entry.metadata().map_err(failed)?;
            if metadata.is_dir() {
                open.push(entry.path());
            } else {
                total += metadata.len();
            }
        }
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::ledger::tests::Scratch;

    // Shards are found by their files and numbered by their directories.
    #[test]
    fn spools_are_found() {
        let scratch = Scratch::new();
        for directory in ["shard-001", "deep/shard-12", "shard-002"] {
            fs::create_dir_all(scratch.0.join(directory)).unwrap();
        }
        fs::write(scratch.0.join("shard-001/mail-00000000.log"), b"12345").unwrap();
        fs::write(scratch.0.join("deep/shard-12/mail-00000001.log"), b"1").unwrap();
        fs::write(scratch.0.join("shard-002/other"), b"1").unwrap();
        let found = spools(&scratch.0).unwrap();
        assert_eq!(
            found,
            [
                (1, scratch.0.join("shard-001")),
                (12, scratch.0.join("deep/shard-12"))
            ]
        );
        assert_eq!(size(&scratch.0).unwrap(), 7);
    }
}
