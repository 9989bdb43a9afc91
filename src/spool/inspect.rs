//! spool::inspect - the spool of a stopped node, looked at and exported.
//!
//! What: the library behind `postrider spool verify|list|show|export|stats`. It recovers as the
//! node would, but writes nothing, and then walks the message log file by file, so that memory is
//! the index and one segment, whatever the number of messages.
//! Why this way: one recovery for the node and its tools, so that they never disagree. Whoever
//! calls this holds the lock of the data directory.

use std::io;
use std::time::Duration;

use crate::message::MessageId;
use crate::time::{Mono, Wall};

use super::format::{
    HeaderRead, Log, MessageRecord, SEGMENT_HEADER_BYTES, SegmentHeader, checksum,
};
use super::recover::{Recovery, Scan, Step, elect_stamp};
use super::types::{Location, PendingRecipient};
use super::{Extent, RecoveryReport, Spool, SpoolConfig, SpoolStatus, Waiting};

/// The files of a shard's directory, to be read whole, one at a time.
pub trait Files {
    /// What holds the bytes of a file.
    type Bytes: AsRef<[u8]>;

    /// The names in the directory.
    ///
    /// # Errors
    /// What the operating system says.
    fn names(&self) -> io::Result<Vec<String>>;

    /// All bytes of a file.
    ///
    /// # Errors
    /// What the operating system says.
    fn bytes(&self, name: &str) -> io::Result<Self::Bytes>;
}

/// Why a directory cannot be inspected.
#[derive(Debug)]
pub enum InspectError {
    /// A file cannot be read.
    Io(String, io::Error),
    /// A file was written by a newer version: its format's number.
    Newer(String, u16),
}

impl std::fmt::Display for InspectError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Io(name, error) => write!(f, "{name}: {error}"),
            Self::Newer(name, version) => {
                write!(f, "{name}: written by a newer version (format {version})")
            }
        }
    }
}

impl std::error::Error for InspectError {}

/// One waiting message, as the walk shows it.
#[derive(Debug)]
pub struct Seen<'a> {
    /// The message.
    pub id: MessageId,
    /// Where it lies.
    pub location: Location,
    /// When it was accepted; `None` when its record is damaged.
    pub received_at: Option<Wall>,
    /// Its encoded envelope; `None` when its record is damaged.
    pub envelope: Option<&'a [u8]>,
    /// Its content; `None` when it does not match its checksum.
    pub content: Option<&'a [u8]>,
    /// What the file holds where the content should be, whatever it is.
    pub raw_content: &'a [u8],
    /// Who waits.
    pub pending: Vec<PendingRecipient>,
}

/// A directory, recovered for reading.
#[derive(Debug)]
pub struct Inspection<F: Files> {
    files: F,
    spool: Spool,
    report: RecoveryReport,
}

impl<F: Files> Inspection<F> {
    /// Reads the directory of `shard`. `progress` is told files done and files in all, now and
    /// then.
    ///
    /// # Errors
    /// See [`InspectError`]. Damage is in the report.
    pub fn open(
        files: F,
        shard: u16,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Self, InspectError> {
        let names = files
            .names()
            .map_err(|error| InspectError::Io(".".to_owned(), error))?;
        let listed: Vec<(Log, u32)> = names
            .iter()
            .filter_map(|name| Log::parse_file_name(name))
            .collect();
        let config = SpoolConfig {
            shard,
            segment_bytes: crate::limits::SPOOL_SEGMENT_BYTES,
            state_segment_bytes: crate::limits::SPOOL_STATE_SEGMENT_BYTES,
            low_water_bytes: 0,
            free_kept: 4,
            settle_wait: Duration::ZERO,
            seed: 0,
        };
        let mut recovery = Recovery::new(config);
        let total = 2 * listed.len();
        for (at, (log, number)) in listed.iter().enumerate() {
            progress(at, total);
            announce(&files, *log, *number, &mut recovery)?;
        }
        let mut done = listed.len();
        for log in [Log::State, Log::Message] {
            for (number, stamp) in recovery.order(log) {
                progress(done, total);
                done += 1;
                let bytes = load(&files, log, number)?;
                let mut scan = Scan::new(stamp);
                loop {
                    match scan.step(bytes.as_ref()) {
                        Step::Need(range) => scan.grant(range),
                        Step::Group(found) if log == Log::State => {
                            recovery.state_group(number, &found);
                        }
                        Step::Group(found) => recovery.mail_group(number, &found),
                        Step::End => break,
                    }
                }
            }
            if log == Log::State {
                recovery.states_end();
            }
        }
        for check in recovery.checks() {
            let bytes = load(&files, Log::Message, check.segment)?;
            recovery.check(&check, bytes.as_ref());
        }
        let (spool, report) = recovery.finish(0, Mono(0));
        Ok(Self {
            files,
            spool,
            report,
        })
    }

    /// What recovery found.
    #[must_use]
    pub fn report(&self) -> &RecoveryReport {
        &self.report
    }

    /// The spool in figures.
    #[must_use]
    pub fn stats(&self) -> SpoolStatus {
        self.spool.status()
    }

    /// Shows each waiting message, segment by segment, contents verified, until `each` says false.
    /// `progress` is told messages done and messages in all, once per segment.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn walk(
        &self,
        mut progress: impl FnMut(u64, u64),
        mut each: impl FnMut(Seen<'_>) -> bool,
    ) -> Result<(), InspectError> {
        let total = self.report.queued_messages;
        let mut done = 0;
        for (segment, slots) in self.spool.census() {
            progress(done, total);
            let bytes = load(&self.files, Log::Message, segment)?;
            for slot in 0..slots {
                let Some(waiting) = self.spool.waiting_at(segment, slot) else {
                    continue;
                };
                done += 1;
                let mut more = true;
                self.see(bytes.as_ref(), waiting, |seen| more = each(seen))?;
                if !more {
                    return Ok(());
                }
            }
        }
        progress(done, total);
        Ok(())
    }

    /// Shows one message; says whether it waits here.
    ///
    /// # Errors
    /// When its file cannot be read.
    pub fn show(&self, id: MessageId, each: impl FnOnce(Seen<'_>)) -> Result<bool, InspectError> {
        let waits = self.spool.find(id).is_some();
        let Some(waiting) = self.spool.waiting(id).filter(|_| waits) else {
            return Ok(false);
        };
        let bytes = load(&self.files, Log::Message, waiting.1.location.segment)?;
        self.see(bytes.as_ref(), waiting, each)?;
        Ok(true)
    }

    /// Shows a message whose record is in `file`; if that is damaged, another record of it that is
    /// whole, as the node would.
    fn see(
        &self,
        file: &[u8],
        (id, extent, pending): Waiting,
        each: impl FnOnce(Seen<'_>),
    ) -> Result<(), InspectError> {
        let counts = seen(file, id, &extent, &pending);
        if counts.content.is_none() {
            for (_, other) in self.spool.other_records(id) {
                let bytes = load(&self.files, Log::Message, other.location.segment)?;
                let other = seen(bytes.as_ref(), id, &other, &pending);
                if other.content.is_some() {
                    each(other);
                    return Ok(());
                }
            }
        }
        each(counts);
        Ok(())
    }
}

fn seen<'a>(
    file: &'a [u8],
    id: MessageId,
    extent: &Extent,
    pending: &[PendingRecipient],
) -> Seen<'a> {
    let head = file.get(extent.location.offset as usize..).unwrap_or(&[]);
    let record = MessageRecord::decode(head, extent.generation);
    let record = record.filter(|(record, _)| record.id == id);
    let start = extent.content as usize;
    let raw = file
        .get(start..start + extent.location.len as usize)
        .unwrap_or(&[]);
    let whole = record.as_ref().is_some_and(|(record, _)| {
        raw.len() == record.content_len as usize && checksum(raw) == record.content_sum
    });
    Seen {
        id,
        location: extent.location,
        received_at: record.as_ref().map(|(record, _)| record.received_at),
        envelope: record.map(|(_, envelope)| envelope),
        content: whole.then_some(raw),
        raw_content: raw,
        pending: pending.to_vec(),
    }
}

fn load<F: Files>(files: &F, log: Log, number: u32) -> Result<F::Bytes, InspectError> {
    let name = log.file_name(number);
    files
        .bytes(&name)
        .map_err(|error| InspectError::Io(name, error))
}

fn announce<F: Files>(
    files: &F,
    log: Log,
    number: u32,
    recovery: &mut Recovery,
) -> Result<(), InspectError> {
    let bytes = load(files, log, number)?;
    let bytes = bytes.as_ref();
    let start = &bytes[..bytes.len().min(SEGMENT_HEADER_BYTES)];
    let len = bytes.len() as u64;
    if let HeaderRead::Newer(version) = SegmentHeader::decode(start) {
        return Err(InspectError::Newer(log.file_name(number), version));
    }
    if recovery.file(log, number, start, len).is_none() {
        let blank = start.iter().all(|byte| *byte == 0);
        let stamp = elect_stamp(&bytes[start.len()..]);
        recovery.elected(log, number, stamp, blank, len);
    }
    Ok(())
}
