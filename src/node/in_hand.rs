//! node::in_hand - the file of what is in hand: read and counted, written anew, mapped.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::engine::{SharedWords, Words};
use crate::service::dates::{Dates, counted_max};
use crate::service::hands::{Suspects, absorb, encode, table_words};
use crate::time::Wall;

/// Its name in the data directory.
const FILE: &str = "in-hand";
/// The same while it is made.
const FILE_NEW: &str = "in-hand.new";

/// The table of this life: who was in hand at the crashes of earlier ones. Where there can be no
/// file the table is known to this process alone: then crashes are not counted, and everything else
/// works.
pub(super) fn open(data: &Path, shards: u16, expire: Duration) -> Arc<dyn Words> {
    let (suspects, dates) = match earlier(data) {
        Ok(known) => known,
        Err(error) => {
            tracing::warn!(%error, "cannot read what was in hand: crashes so far are forgotten");
            Default::default()
        }
    };
    for (id, crashes) in suspects.iter().take(20) {
        tracing::warn!(%id, crashes, "was in hand at a crash: it is tried alone");
    }
    if !suspects.is_empty() {
        tracing::warn!(count = suspects.len(), "messages were in hand at a crash");
    }
    let dates = dates.resume(today(), counted_max(expire));
    let words = encode(shards, &suspects, &dates);
    match keep(data, &words) {
        Ok(table) => Arc::new(table),
        Err(error) => {
            tracing::warn!(%error, "cannot note what is in hand: crashes will not be counted");
            let words: Vec<AtomicU64> = words.into_iter().map(AtomicU64::new).collect();
            Arc::new(words)
        }
    }
}

fn today() -> Wall {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let millis = since.unwrap_or_default().as_millis();
    Wall(u64::try_from(millis).unwrap_or(u64::MAX))
}

fn earlier(data: &Path) -> io::Result<(Suspects, Dates)> {
    let path = data.join(FILE);
    let len = match fs::metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Default::default()),
        other => other?.len(),
    };
    // The largest that there can be; whatever is longer is none of ours.
    if len > (table_words(crate::limits::SHARDS_MAX) * size_of::<u64>()) as u64 {
        return Ok(Default::default());
    }
    let bytes = fs::read(path)?;
    let words: Vec<u64> = bytes
        .chunks_exact(size_of::<u64>())
        .map(|word| {
            word.iter()
                .rev()
                .fold(0, |word, byte| word << 8 | u64::from(*byte))
        })
        .collect();
    Ok(absorb(&words))
}

/// Writes the new table in full (a hole would be a SIGBUS on a full disk), puts it in the place of
/// the old one, and maps it. The words are of this machine's order: they never leave it.
fn keep(data: &Path, words: &[u64]) -> io::Result<SharedWords> {
    let path = data.join(FILE_NEW);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)?;
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    file.write_all(&bytes)?;
    file.sync_all()?;
    let table = SharedWords::new(&file)?;
    fs::rename(&path, data.join(FILE))?;
    File::open(data)?.sync_all()?;
    Ok(table)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::message::MessageId;
    use crate::service::hands::{Hands, crash_word};

    const EXPIRE: Duration = Duration::from_secs(5 * 86_400);

    // What a life notes is there for the next one, and nothing is counted twice.
    #[test]
    fn crashes_are_counted_across_lives() {
        let data = std::env::temp_dir().join(format!("postrider-in-hand-{}", std::process::id()));
        fs::create_dir_all(&data).unwrap();
        let id = MessageId::new(1, 5);
        for life in 0..4 {
            let table = open(&data, 2, EXPIRE);
            let hands = Hands::new(Arc::clone(&table), 1, 3);
            assert_eq!(hands.crashes(id), life);
            assert_eq!(hands.is_condemned(id), life == 3);
            let mark = hands.hold(id, hands.owner());
            table.words()[crash_word(1)].store(1, Ordering::Relaxed);
            // Another start that fails before it has a table of its own.
            fs::write(data.join(FILE_NEW), b"half").unwrap();
            std::mem::forget(mark);
        }
        fs::write(data.join(FILE), b"any bytes at all, and no table").unwrap();
        let hands = Hands::new(open(&data, 1, EXPIRE), 0, 3);
        assert!(!hands.is_suspect(id));
        fs::remove_dir_all(&data).unwrap();
        // No directory, no file: it works all the same.
        let hands = Hands::new(open(&data, 1, EXPIRE), 0, 3);
        hands.accuse(id);
        assert_eq!(hands.crashes(id), 1);
    }
}
