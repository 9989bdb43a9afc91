//! spooler::recovery - brings a shard's directory before `spool::recover`.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::engine::{Block, Map, OpenMode, Port};
use crate::limits;
use crate::spool::format::{BLOCK_BYTES, HeaderRead, Log, SegmentHeader, Stamp};
use crate::spool::recover::{Recovery, elect_stamp};
use crate::spool::{RecoveryReport, Spool, SpoolConfig};
use crate::time::Mono;

use super::heads::{is_blank, read_range, scan_all};
use super::{RELEASE_RETRY, SpoolError, SpoolerConfig};

/// How often the rewriting of a last group is tried again before the spool does not open.
const REWRITE_TRIES: u32 = 20;
/// The wait before a range that the disk did not give is asked for again, at first and at most.
const READ_PAUSE: Duration = Duration::from_millis(10);
const READ_PAUSE_MAX: Duration = Duration::from_secs(1);

pub(super) struct Opened<P: Port> {
    pub(super) core: Spool,
    pub(super) report: RecoveryReport,
    pub(super) files: HashMap<(Log, u32), P::File>,
    /// All that is in the directory.
    pub(super) names: Vec<String>,
}

struct FoundFile<P: Port> {
    log: Log,
    number: u32,
    path: PathBuf,
    file: P::File,
    len: u64,
}

pub(super) async fn recover<P: Port>(
    port: &P,
    config: &SpoolerConfig,
) -> Result<Opened<P>, SpoolError> {
    let directory = &config.directory;
    let failed = |error| SpoolError::Io(directory.clone(), error);
    // Names that an earlier life made or removed must not come back, or vanish, behind this one's
    // back.
    port.sync_directory(directory).await.map_err(failed)?;
    let names = port.list(directory).map_err(failed)?;
    let listed = open_logs(port, config, &names)?;
    let free = port.free_space(directory).map_err(failed)?;
    let held: u64 = listed.iter().map(|file| file.len).sum();
    let mut recovery = Recovery::new(sizes(config, free.saturating_add(held), port.random()));
    let patience = Patience::for_log(port, Log::State);
    let mut files = HashMap::new();
    for found in listed {
        let blank = announce(port, config, &found, &patience, &mut recovery).await?;
        // Each crash leaves some behind, and those of many would fill the disk.
        if blank && port.remove(&found.path).await.is_ok() {
            continue;
        }
        if blank {
            recovery.elected(found.log, found.number, None, true, found.len);
        }
        files.insert((found.log, found.number), found.file);
    }
    let mut patience = patience;
    for log in [Log::State, Log::Message] {
        scan_all(port, log, &files, &patience, &mut recovery).await;
        if log == Log::State {
            recovery.states_end();
            patience = Patience::for_log(port, Log::Message);
        }
    }
    write_again(port, directory, &files, &patience, &mut recovery).await?;
    check_contents(port, directory, &files, &patience, &mut recovery).await?;
    let (core, report) = recovery.finish(free, port.now());
    Ok(Opened {
        core,
        report,
        files,
        names,
    })
}

/// Writes the last groups again, as they are: see [`Recovery::rewrites`].
async fn write_again<P: Port>(
    port: &P,
    directory: &Path,
    files: &HashMap<(Log, u32), P::File>,
    patience: &Patience,
    recovery: &mut Recovery,
) -> Result<(), SpoolError> {
    for again in recovery.rewrites() {
        let Some(file) = files.get(&(again.log, again.segment)) else {
            continue;
        };
        match rewrite(port, file, again.range.clone(), patience).await {
            Ok(()) => {}
            // Read a moment ago, and unreadable now: late, like all that cannot be read.
            Err(Rewritten::Unread) => recovery.unrewritten(&again),
            Err(Rewritten::Unwritten(error)) => {
                let path = directory.join(again.log.file_name(again.segment));
                return Err(SpoolError::Io(path, error));
            }
        }
    }
    Ok(())
}

/// Checks the contents that nothing vouches for.
async fn check_contents<P: Port>(
    port: &P,
    directory: &Path,
    files: &HashMap<(Log, u32), P::File>,
    patience: &Patience,
    recovery: &mut Recovery,
) -> Result<(), SpoolError> {
    for check in recovery.checks() {
        let Some(file) = files.get(&(Log::Message, check.segment)) else {
            continue;
        };
        let map = port.map(file);
        let map = map.map_err(|error| SpoolError::Io(directory.to_path_buf(), error))?;
        let head = check.head.start..check.head.end.min(map.bytes().len());
        let whole = patience.bring(port, &map, head).await.is_ok()
            && patience
                .bring(port, &map, check.content.clone())
                .await
                .is_ok();
        if whole {
            recovery.check(&check, map.bytes());
        } else {
            recovery.unchecked(&check);
        }
    }
    Ok(())
}

fn open_logs<P: Port>(
    port: &P,
    config: &SpoolerConfig,
    names: &[String],
) -> Result<Vec<FoundFile<P>>, SpoolError> {
    let directory = &config.directory;
    let mut listed = Vec::new();
    for (log, number) in names.iter().filter_map(|name| Log::parse_file_name(name)) {
        let path = directory.join(log.file_name(number));
        let file = port.open(&path, OpenMode::Existing);
        let file = file.map_err(|error| SpoolError::Io(path.clone(), error))?;
        let len = port
            .file_len(&file)
            .map_err(|error| SpoolError::Io(path.clone(), error))?;
        listed.push(FoundFile {
            log,
            number,
            path,
            file,
            len,
        });
    }
    listed.sort_by_key(|file| (file.log, file.number));
    Ok(listed)
}

/// Why a range could not be written again.
#[derive(Debug)]
pub(super) enum Rewritten {
    /// It cannot be read.
    Unread,
    /// It cannot be written.
    Unwritten(io::Error),
}

/// Writes a range of a file again as it is, so that what was read is on stable storage.
pub(super) async fn rewrite<P: Port>(
    port: &P,
    file: &P::File,
    range: Range<usize>,
    patience: &Patience,
) -> Result<(), Rewritten> {
    if port.file_len(file).map_err(|_| Rewritten::Unread)? == 0 {
        return Ok(());
    }
    let map = port.map(file).map_err(|_| Rewritten::Unread)?;
    // A file that a crash left when it was being made may be shorter than a header.
    let whole = map.bytes().len() / BLOCK_BYTES * BLOCK_BYTES;
    let range = range.start..range.end.min(whole);
    let mut at = range.start;
    while at < range.end {
        let end = range.end.min(at + limits::SPOOL_GROUP_BYTES_MAX);
        let brought = patience.bring(port, &map, at..end).await;
        brought.map_err(|_| Rewritten::Unread)?;
        let mut tries = 0;
        loop {
            let mut block = Block::zeroed(end - at);
            block.copy_from_slice(&map.bytes()[at..end]);
            match port.write_durable(file, at as u64, block).await.1 {
                Ok(()) => break,
                // The same bytes over the same bytes: unlike a new group, this may be tried again.
                Err(_) if tries < REWRITE_TRIES => tries += 1,
                Err(error) => return Err(Rewritten::Unwritten(error)),
            }
            port.sleep_until(port.now().after(RELEASE_RETRY)).await;
        }
        at = end;
    }
    Ok(())
}

/// How long recovery waits for bytes that the disk does not give.
///
/// Settlements are waited for longer: without them mail is sent twice. Mail that is not given in
/// time is late only: [`super::Spooler::load_late`] looks at it again.
#[derive(Debug)]
pub(super) struct Patience {
    /// With one range.
    range: Duration,
    /// With all.
    until: Mono,
}

impl Patience {
    fn for_log<P: Port>(port: &P, log: Log) -> Self {
        let (range, all) = match log {
            Log::State => (
                limits::SPOOL_STATE_READ_WAIT,
                limits::SPOOL_STATE_READ_WAIT * 2,
            ),
            Log::Message => (
                limits::SPOOL_MAIL_READ_WAIT,
                limits::SPOOL_MAIL_READ_WAIT * 2,
            ),
        };
        Self {
            range,
            until: port.now().after(all),
        }
    }

    /// None at all: for those that come back by themselves.
    pub(super) fn none() -> Self {
        Self {
            range: Duration::ZERO,
            until: Mono(0),
        }
    }

    /// Brings a range of a map into memory.
    async fn bring<P: Port>(
        &self,
        port: &P,
        map: &Arc<P::Map>,
        range: Range<usize>,
    ) -> io::Result<()> {
        self.insist(port, || port.prefetch(map, range.clone()))
            .await
    }

    /// Asks until it is given, or patience ends.
    pub(super) async fn insist<P: Port, T>(
        &self,
        port: &P,
        ask: impl AsyncFn() -> io::Result<T>,
    ) -> io::Result<T> {
        let until = port.now().after(self.range).min(self.until);
        let mut pause = READ_PAUSE;
        loop {
            match ask().await {
                Ok(given) => return Ok(given),
                Err(error) if port.now() >= until => return Err(error),
                Err(_) => {}
            }
            port.sleep_until(port.now().after(pause)).await;
            pause = (pause * 2).min(READ_PAUSE_MAX);
        }
    }
}

/// Sizes for a file system that could give the spool `budget` bytes.
fn sizes(config: &SpoolerConfig, budget: u64, seed: u64) -> SpoolConfig {
    let block = BLOCK_BYTES as u64;
    let most = config.segment_bytes.min(limits::SPOOL_SEGMENT_BYTES_MAX);
    // The configuration has a lower bound of its own; tests go below it.
    let least = limits::SPOOL_SEGMENT_BYTES_MIN.min(most);
    let segment = (budget / 32).min(most).max(least);
    // A message needs more room than its settlements.
    let state = (budget / 64)
        .min(limits::SPOOL_STATE_SEGMENT_BYTES)
        .min(segment);
    SpoolConfig {
        shard: config.shard,
        segment_bytes: segment / block * block,
        state_segment_bytes: state.max(limits::SPOOL_STATE_SEGMENT_BYTES_MIN) / block * block,
        // What somebody has asked for is kept; what nobody has chosen must not make a small disk
        // useless.
        low_water_bytes: match config.low_water_bytes {
            limits::SPOOL_LOW_WATER_BYTES => limits::SPOOL_LOW_WATER_BYTES.min(budget / 16),
            chosen => chosen,
        },
        settle_wait: config.settle_wait,
        // What a backlog leaves is used again by the next one, where the disk has room for it.
        free_kept: u32::try_from(budget / 64 / segment.max(1))
            .unwrap_or(u32::MAX)
            .clamp(
                2 * limits::SPOOL_SPARE_SEGMENTS,
                limits::SPOOL_FREE_SEGMENTS_MAX,
            ),
        seed,
    }
}

/// Reads the header of a file and tells recovery, unless the file is blank: a crash came when it
/// was being made. Says whether it is.
async fn announce<P: Port>(
    port: &P,
    config: &SpoolerConfig,
    file: &FoundFile<P>,
    patience: &Patience,
    recovery: &mut Recovery,
) -> Result<bool, SpoolError> {
    let (log, number, len) = (file.log, file.number, file.len);
    if len == 0 {
        return Ok(true);
    }
    let map = port
        .map(&file.file)
        .map_err(|e| SpoolError::Io(file.path.clone(), e))?;
    let bytes = map.bytes();
    let start = bytes.len().min(2 * BLOCK_BYTES);
    // Block by block: one copy serves, if it is whole.
    let mut copies = vec![0; start];
    let (mut given, mut withheld) = (0, 0);
    for at in (0..start).step_by(BLOCK_BYTES) {
        let range = at..start.min(at + BLOCK_BYTES);
        if patience.bring(port, &map, range.clone()).await.is_ok() {
            copies[range.clone()].copy_from_slice(&bytes[range]);
            given += 1;
        } else {
            withheld += 1;
        }
    }
    let header = &copies[..];
    match SegmentHeader::decode(header) {
        HeaderRead::Newer(version) => return Err(SpoolError::Newer(file.path.clone(), version)),
        HeaderRead::Known(known) if known.shard != config.shard => {
            return Err(SpoolError::ForeignShard(file.path.clone(), known.shard));
        }
        HeaderRead::Known(_) | HeaderRead::Damaged => {}
    }
    if recovery.file(log, number, header, len).is_some() {
        return Ok(false);
    }
    if given == 0 || withheld > 0 {
        recovery.unheaded(log, number, len);
        return Ok(false);
    }
    if is_blank(port, &file.file, 0).await {
        return Ok(true);
    }
    // Rare: ask every group of the file. All of them: the latest life is wanted.
    let mut stamp: Option<Stamp> = None;
    let mut at = start;
    while at < bytes.len() {
        let piece = at..bytes.len().min(at + limits::SPOOL_GROUP_BYTES_MAX);
        at = piece.end;
        let read = async || read_range(port, &file.file, piece.clone()).await;
        let Ok(blocks) = patience.insist(port, read).await else {
            recovery.unheaded(log, number, len);
            return Ok(false);
        };
        let found = elect_stamp(&blocks);
        let newer = |found: &Stamp| stamp.is_none_or(|stamp| stamp.generation < found.generation);
        stamp = found.filter(newer).or(stamp);
    }
    let blank = header.iter().all(|byte| *byte == 0);
    recovery.elected(log, number, stamp, blank, len);
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::{SpoolerConfig, sizes};

    // A small disk keeps few free segments, a large one no more than the limit; the wait of
    // settlements is what was configured.
    #[test]
    fn free_segments_follow_the_disk() {
        let config = SpoolerConfig {
            directory: std::path::PathBuf::new(),
            shard: 0,
            segment_bytes: crate::limits::SPOOL_SEGMENT_BYTES,
            low_water_bytes: 0,
            settle_wait: std::time::Duration::from_millis(7),
        };
        assert_eq!(sizes(&config, 1 << 30, 1).settle_wait, config.settle_wait);
        let kept = |gib: u64| sizes(&config, gib << 30, 1).free_kept;
        assert_eq!((kept(1), kept(32), kept(1024)), (4, 8, 16));
    }
}
