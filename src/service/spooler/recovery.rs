//! spooler::recovery - brings a shard's directory before `spool::recover`.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use crate::engine::{Block, Map, OpenMode, Port};
use crate::limits;
use crate::spool::format::{BLOCK_BYTES, HeaderRead, Log, SegmentHeader};
use crate::spool::recover::{Recovery, Scan, Step, elect_stamp};
use crate::spool::{RecoveryReport, Spool, SpoolConfig};

use super::{RELEASE_RETRY, SpoolError, SpoolerConfig};

/// Bytes that recovery brings into memory at once where groups are small.
const SCAN_WINDOW_BYTES: usize = 128 << 10;
/// How often the rewriting of a last group is tried again before the spool does not open.
const REWRITE_TRIES: u32 = 20;

pub(super) struct Opened<P: Port> {
    pub(super) core: Spool,
    pub(super) report: RecoveryReport,
    pub(super) files: HashMap<(Log, u32), P::File>,
}

struct Listed<P: Port> {
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
    port.sync_directory(directory).map_err(failed)?;
    let listed = list(port, config)?;
    let free = port.free_space(directory).map_err(failed)?;
    let held: u64 = listed.iter().map(|file| file.len).sum();
    let mut recovery = Recovery::new(sizes(config, free.saturating_add(held), port.random()));
    for file in &listed {
        announce(port, config, file, &mut recovery).await?;
    }
    let files: HashMap<(Log, u32), P::File> = listed
        .into_iter()
        .map(|f| ((f.log, f.number), f.file))
        .collect();
    for log in [Log::State, Log::Message] {
        for (number, stamp) in recovery.order(log) {
            let Some(file) = files.get(&(log, number)) else {
                continue;
            };
            let map = match port.file_len(file) {
                Ok(len) if len > 0 => port.map(file).map_err(failed)?,
                _ => continue,
            };
            scan(port, &map, log, number, Scan::new(stamp), &mut recovery).await;
        }
        if log == Log::State {
            recovery.states_end();
        }
    }
    for (log, number, range) in recovery.rewrites() {
        let Some(file) = files.get(&(log, number)) else {
            continue;
        };
        let rewritten = rewrite(port, file, range).await;
        rewritten.map_err(|e| SpoolError::Io(directory.join(log.file_name(number)), e))?;
    }
    for check in recovery.checks() {
        let Some(file) = files.get(&(Log::Message, check.segment)) else {
            continue;
        };
        let map = port.map(file).map_err(failed)?;
        let head = port.prefetch(
            &map,
            check.head.start..check.head.end.min(map.bytes().len()),
        );
        let whole = head.await.is_ok()
            && port
                .prefetch(&map, check.content.start..check.content.end)
                .await
                .is_ok();
        if whole {
            recovery.check(&check, map.bytes());
        } else {
            recovery.unchecked(&check);
        }
    }
    let (core, report) = recovery.finish(free, port.now());
    Ok(Opened {
        core,
        report,
        files,
    })
}

fn list<P: Port>(port: &P, config: &SpoolerConfig) -> Result<Vec<Listed<P>>, SpoolError> {
    let directory = &config.directory;
    let names = port
        .list(directory)
        .map_err(|e| SpoolError::Io(directory.clone(), e))?;
    let mut listed = Vec::new();
    for (log, number) in names.iter().filter_map(|name| Log::parse_file_name(name)) {
        let path = directory.join(log.file_name(number));
        let file = port.open(&path, OpenMode::Existing);
        let file = file.map_err(|error| SpoolError::Io(path.clone(), error))?;
        let len = port
            .file_len(&file)
            .map_err(|error| SpoolError::Io(path.clone(), error))?;
        listed.push(Listed {
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

/// Writes a range of a file again as it is, so that what was read is on stable storage.
pub(super) async fn rewrite<P: Port>(
    port: &P,
    file: &P::File,
    range: Range<usize>,
) -> io::Result<()> {
    if port.file_len(file)? == 0 {
        return Ok(());
    }
    let map = port.map(file)?;
    // A file that a crash left when it was being made may be shorter than a header.
    let whole = map.bytes().len() / BLOCK_BYTES * BLOCK_BYTES;
    let range = range.start..range.end.min(whole);
    let mut at = range.start;
    while at < range.end {
        let end = range.end.min(at + limits::SPOOL_GROUP_BYTES_MAX);
        let mut tries = 0;
        loop {
            let result = match port.prefetch(&map, at..end).await {
                Ok(()) => {
                    let mut block = Block::zeroed(end - at);
                    block.copy_from_slice(&map.bytes()[at..end]);
                    port.write_durable(file, at as u64, block).await.1
                }
                Err(error) => Err(error),
            };
            match result {
                Ok(()) => break,
                // The same bytes over the same bytes: unlike a new group, this may be tried again.
                Err(_) if tries < REWRITE_TRIES => tries += 1,
                Err(error) => return Err(error),
            }
            port.sleep_until(port.now().after(RELEASE_RETRY)).await;
        }
        at = end;
    }
    Ok(())
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
        low_water_bytes: config.low_water_bytes.min(budget / 16),
        seed,
    }
}

/// Reads the header of a file and tells recovery.
async fn announce<P: Port>(
    port: &P,
    config: &SpoolerConfig,
    file: &Listed<P>,
    recovery: &mut Recovery,
) -> Result<(), SpoolError> {
    let (log, number, len) = (file.log, file.number, file.len);
    if len == 0 {
        // A crash left it when it was being made.
        recovery.elected(log, number, None, true, len);
        return Ok(());
    }
    let map = port
        .map(&file.file)
        .map_err(|e| SpoolError::Io(file.path.clone(), e))?;
    let bytes = map.bytes();
    let start = bytes.len().min(2 * BLOCK_BYTES);
    let readable = port.prefetch(&map, 0..start).await.is_ok();
    let header = if readable { &bytes[..start] } else { &[] };
    match SegmentHeader::decode(header) {
        HeaderRead::Newer(version) => return Err(SpoolError::Newer(file.path.clone(), version)),
        HeaderRead::Known(known) if known.shard != config.shard => {
            return Err(SpoolError::ForeignShard(file.path.clone(), known.shard));
        }
        HeaderRead::Known(_) | HeaderRead::Damaged => {}
    }
    if recovery.file(log, number, header, len).is_some() {
        return Ok(());
    }
    // Rare: ask every group of the file, as far as it can be read.
    let mut stamp = None;
    let mut at = start;
    while at < bytes.len() {
        let end = bytes.len().min(at + BLOCK_BYTES);
        if port.prefetch(&map, at..end).await.is_ok() {
            let found = elect_stamp(&bytes[at..end]);
            let newer = found.filter(|f| {
                stamp.is_none_or(|s: crate::spool::format::Stamp| s.generation < f.generation)
            });
            stamp = newer.or(stamp);
        }
        at = end;
    }
    let blank = readable && header.iter().all(|byte| *byte == 0);
    recovery.elected(log, number, stamp, blank, len);
    Ok(())
}

async fn scan<P: Port>(
    port: &P,
    map: &Arc<P::Map>,
    log: Log,
    number: u32,
    mut scan: Scan,
    recovery: &mut Recovery,
) {
    let bytes = map.bytes();
    loop {
        match scan.step(bytes) {
            Step::Need(range) => {
                let end = bytes
                    .len()
                    .min(range.end.max(range.start + SCAN_WINDOW_BYTES));
                let window = range.start..end;
                if port.prefetch(map, window.clone()).await.is_ok() {
                    scan.grant(window);
                } else if port.prefetch(map, range.clone()).await.is_ok() {
                    scan.grant(range);
                } else {
                    recovery.unreadable(log, number, range.start as u32);
                    scan.unreadable();
                }
            }
            Step::Group(found) if log == Log::State => recovery.state_group(number, &found),
            Step::Group(found) => recovery.mail_group(number, &found),
            Step::End => return,
        }
    }
}
