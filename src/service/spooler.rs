//! spooler - the driver of the spool: moves its bytes through the port.
//!
//! Role: give the rest of the shard `append`, `settle` and `read`, and do what `spool::Spool` says.
//! Flow: `Envelope`, `Content` -> `Stored` (the only thing that may become a 250); `Settlement` ->
//!   the `on_settled` callbacks once durable; `MessageId` -> `StoredMessage`, verified.
//! Shard: every shard has one, with a directory of its own; clones share it and never leave the
//! shard.
//! Limits: section "spool" of `limits`.
//! Failure: a failed write or sync -> `AppendError::Failed` and the alarm `DiskFailed`, deliveries
//! go
//!   on, a probe on a new segment every second; no space -> `AppendError::Full` until there is
//!   some; a record that does not match its checksum -> `ReadError::Damaged`, its recipients
//!   settled as
//!   `Damaged`, and what is left of it in `quarantine/`.
//! Security: file names are numbers of ours; no byte of a mail chooses one.
//! Bugs: the directory must exist; the port cannot make one. A content of 100 MiB is verified in
//!   pieces of 1 MiB, each of which occupies the shard for about 50 us.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;

use crate::engine::{Block, Class, Guarded, Map, OpenMode, Port, Signal};
use crate::limits;
use crate::message::{Content, Envelope, MessageId};
use crate::service::hands::Hands;
use crate::spool::format::{BLOCK_BYTES, Checksum, HeaderRead, Log, MessageRecord, SegmentHeader};
use crate::spool::recover::{Recovery, Scan, Step, elect_stamp};
use crate::spool::{
    Action, Alarm, AppendError, Completion, Extent, Outcome, Place, Queued, ReadError,
    RecoveryReport, Settlement, SettlementKind, Spool, SpoolConfig, SpoolStatus, Stored,
};
use crate::time::{Mono, Wall};

mod quarantine;

pub use quarantine::{Listed, ReleaseError};

/// Bytes that recovery brings into memory at once where groups are small.
const SCAN_WINDOW_BYTES: usize = 128 << 10;
/// How often a segment that readers hold is looked at again.
const RELEASE_RETRY: Duration = Duration::from_millis(100);
/// How often the rewriting of a last group is tried again before the spool does not open.
const REWRITE_TRIES: u32 = 20;
/// How long [`Spooler::close`] waits for a failing disk.
const CLOSE_PATIENCE: Duration = Duration::from_secs(10);

/// What a shard's spool is told at boot.
#[derive(Debug, Clone)]
pub struct SpoolerConfig {
    /// The shard's directory, which exists.
    pub directory: PathBuf,
    /// The shard.
    pub shard: u16,
    /// Bytes of a message segment, at most; smaller where the file system is small.
    pub segment_bytes: u64,
    /// Below this much free space new mail is refused with [`AppendError::Full`]; at most a
    /// sixteenth of what the spool could have.
    pub low_water_bytes: u64,
}

/// Why a spool cannot be opened.
#[derive(Debug)]
pub enum SpoolError {
    /// The operating system refused something about this path.
    Io(PathBuf, io::Error),
    /// A file was written by a newer version of the program: its format's number.
    Newer(PathBuf, u16),
    /// The file belongs to another shard.
    ForeignShard(PathBuf, u16),
}

impl fmt::Display for SpoolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(path, error) => write!(f, "{}: {error}", path.display()),
            Self::Newer(path, version) => {
                write!(
                    f,
                    "{}: written by a newer version (format {version})",
                    path.display()
                )
            }
            Self::ForeignShard(path, shard) => {
                write!(f, "{}: belongs to shard {shard}", path.display())
            }
        }
    }
}

impl std::error::Error for SpoolError {}

/// What recovery found.
#[derive(Debug)]
pub struct Recovered {
    /// Messages that wait.
    pub queued_messages: u64,
    /// Damage, by message id where it is known.
    pub report: RecoveryReport,
    /// Where [`Spooler::load`] starts.
    pub cursor: LoadCursor,
}

/// How far [`Spooler::load`] got.
#[derive(Debug)]
pub struct LoadCursor {
    segments: Vec<(u32, u32)>,
    next: u32,
}

/// A message of an earlier life of the process, with the envelope that the queue needs.
#[derive(Debug)]
pub struct Loaded {
    /// Id, place and waiting recipients.
    pub queued: Queued,
    /// Who it is for.
    pub envelope: Envelope,
}

/// A message out of the spool, verified.
#[derive(Debug, Clone)]
pub struct StoredMessage {
    /// Who it is for.
    pub envelope: Envelope,
    /// The content, on loan from the map of its segment.
    pub content: Bytes,
    /// When it was accepted.
    pub received_at: Wall,
}

/// One shard's spool. Cloning shares it.
pub struct Spooler<P: Port>(Rc<Inner<P>>);

impl<P: Port> Clone for Spooler<P> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<P: Port> fmt::Debug for Spooler<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Spooler({})", self.0.directory.display())
    }
}

type Callback = Box<dyn Fn(&Settlement)>;

struct Inner<P: Port> {
    port: P,
    directory: PathBuf,
    core: Guarded<P, Spool>,
    files: RefCell<HashMap<(Log, u32), P::File>>,
    maps: RefCell<HashMap<u32, Arc<P::Map>>>,
    releasing: RefCell<Vec<u32>>,
    waiters: RefCell<Waiters>,
    callbacks: RefCell<Vec<Rc<Callback>>>,
    wake: Signal,
    stopped: Cell<bool>,
    /// What was in hand at crashes, once the shard has said so.
    hands: RefCell<Option<Rc<Hands>>>,
    /// Files in quarantine, and those of them that are poison.
    quarantined: Cell<u64>,
    poison: Cell<u64>,
}

/// Appends that wait for their group.
#[derive(Default)]
struct Waiters {
    list: Vec<Waiter>,
    free: Vec<usize>,
}

enum Waiter {
    Idle,
    Waiting(Option<Waker>),
    Done(Result<Stored, AppendError>),
    /// Nobody waits any more: if it is stored all the same, it is dropped again.
    Abandoned {
        recipients: u32,
    },
}

impl Waiters {
    fn enter(&mut self) -> usize {
        let at = self.free.pop().unwrap_or_else(|| {
            self.list.push(Waiter::Idle);
            self.list.len() - 1
        });
        self.list[at] = Waiter::Waiting(None);
        at
    }

    fn leave(&mut self, at: usize) {
        self.list[at] = Waiter::Idle;
        self.free.push(at);
    }

    /// Hands a result over; gives it back, with the number of recipients, if nobody wants it.
    fn finish(&mut self, at: usize, result: Result<Stored, AppendError>) -> Option<u32> {
        let before = std::mem::replace(&mut self.list[at], Waiter::Done(result));
        match before {
            Waiter::Waiting(waker) => {
                if let Some(waker) = waker {
                    waker.wake();
                }
                None
            }
            Waiter::Abandoned { recipients } => {
                self.leave(at);
                Some(recipients)
            }
            Waiter::Idle | Waiter::Done(_) => unreachable!("an append ends once"),
        }
    }

    fn poll(&mut self, at: usize, context: &mut Context<'_>) -> Poll<Result<Stored, AppendError>> {
        if let Waiter::Done(result) = self.list[at] {
            return Poll::Ready(result);
        }
        self.list[at] = Waiter::Waiting(Some(context.waker().clone()));
        Poll::Pending
    }
}

/// Cleans up after an append whose future is dropped.
struct Seat<'a> {
    waiters: &'a RefCell<Waiters>,
    at: usize,
    recipients: u32,
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        let mut waiters = self.waiters.borrow_mut();
        if matches!(waiters.list[self.at], Waiter::Waiting(_)) {
            waiters.list[self.at] = Waiter::Abandoned {
                recipients: self.recipients,
            };
        } else {
            waiters.leave(self.at);
        }
    }
}

impl<P: Port> Spooler<P> {
    /// Recovers the shard's directory and starts the spool's task.
    ///
    /// # Errors
    /// When files cannot be opened, or are not ours to touch. Damage is no error.
    pub async fn open(port: P, config: SpoolerConfig) -> Result<(Self, Recovered), SpoolError> {
        let opened = recover(&port, &config).await?;
        let segments = opened.core.census();
        let queued_messages = opened.report.queued_messages;
        let inner = Rc::new(Inner {
            port: port.clone(),
            directory: config.directory,
            core: Guarded::new(port.clone(), "the spool", opened.core),
            files: RefCell::new(opened.files),
            maps: RefCell::new(HashMap::new()),
            releasing: RefCell::default(),
            waiters: RefCell::default(),
            callbacks: RefCell::default(),
            wake: Signal::default(),
            stopped: Cell::new(false),
            hands: RefCell::default(),
            quarantined: Cell::new(0),
            poison: Cell::new(0),
        });
        inner.count_asides();
        let spooler = Self(inner);
        let mut cursor = LoadCursor { segments, next: 0 };
        cursor.segments.reverse();
        if queued_messages == 0 {
            cursor.segments.clear();
            spooler.0.core.borrow_mut().enable_reclaim();
        }
        let driver = spooler.clone();
        port.spawn(Class::Spool, async move { driver.run().await });
        Ok((
            spooler,
            Recovered {
                queued_messages,
                report: opened.report,
                cursor,
            },
        ))
    }

    /// The id for the next message; never given twice, also across restarts.
    #[must_use]
    pub fn next_id(&self) -> MessageId {
        self.0.core.borrow_mut().next_id()
    }

    /// Makes a message durable. `Ok` is the proof.
    ///
    /// Dropping the future gives the message up: if it becomes durable all the same, it is settled
    /// as dropped.
    ///
    /// # Errors
    /// See [`AppendError`]; the message will not be delivered.
    pub async fn append(
        &self,
        id: MessageId,
        envelope: &Envelope,
        content: &Content,
        received_at: Wall,
    ) -> Result<Stored, AppendError> {
        let waiters = &self.0.waiters;
        let at = waiters.borrow_mut().enter();
        let taken =
            self.0
                .core
                .borrow_mut()
                .append(at as u64, id, envelope, content.bytes(), received_at);
        if let Err(error) = taken {
            waiters.borrow_mut().leave(at);
            return Err(error);
        }
        let _seat = Seat {
            waiters,
            at,
            recipients: envelope.recipients.len() as u32,
        };
        self.0.wake.raise();
        poll_fn(|context| waiters.borrow_mut().poll(at, context)).await
    }

    /// Notes what became of a recipient; durable within milliseconds, then `on_settled` is called.
    /// A settlement of a message that is not there is forgotten.
    pub fn settle(&self, settlement: Settlement) {
        let now = self.0.port.now();
        if self.0.core.borrow_mut().settle(settlement, now) {
            self.0.wake.raise();
        }
    }

    /// Adds a callback for settlements that became durable. Repeated settlements are not told.
    pub fn on_settled(&self, callback: impl Fn(&Settlement) + 'static) {
        self.0
            .callbacks
            .borrow_mut()
            .push(Rc::new(Box::new(callback)));
    }

    /// Reads a message: prefetched, verified, then handed out.
    ///
    /// # Errors
    /// See [`ReadError`]. A damaged message goes to quarantine and is settled as such.
    pub async fn read(&self, id: MessageId) -> Result<StoredMessage, ReadError> {
        let extent = self.0.core.borrow().find(id).ok_or(ReadError::Gone)?;
        let result = match self.0.record(id, &extent).await {
            Ok(record) => record.message(),
            Err(error) => Err(error),
        };
        if matches!(result, Err(ReadError::Damaged)) {
            self.condemn(id, &extent).await;
        }
        result
    }

    /// The next messages that recovery found, at most `max`; empty at the end, and only there.
    /// Reads envelopes only. Segments are not emptied before the end is reached.
    pub async fn load(&self, cursor: &mut LoadCursor, max: usize) -> Vec<Loaded> {
        let mut out = Vec::new();
        while out.len() < max.max(1) {
            let Some((segment, slots)) = cursor.segments.last().copied() else {
                self.0.core.borrow_mut().enable_reclaim();
                break;
            };
            if cursor.next == slots {
                cursor.segments.pop();
                cursor.next = 0;
                continue;
            }
            let waiting = self.0.core.borrow().waiting_at(segment, cursor.next);
            cursor.next += 1;
            let Some((id, extent, pending)) = waiting else {
                continue;
            };
            if self.0.is_condemned(id) {
                self.set_aside(id).await;
                continue;
            }
            match self.0.head_in_hand(id, &extent).await {
                Ok((record, envelope)) => out.push(Loaded {
                    queued: Queued {
                        id,
                        location: extent.location,
                        received_at: record.received_at,
                        pending,
                    },
                    envelope,
                }),
                Err(ReadError::Damaged) => self.condemn(id, &extent).await,
                // It stays in the spool, and in the report of the next start.
                Err(ReadError::Gone | ReadError::Io) => {}
            }
        }
        out
    }

    /// The spool in figures.
    #[must_use]
    pub fn status(&self) -> SpoolStatus {
        let mut status = self.0.core.borrow().status();
        status.quarantined = self.0.quarantined.get();
        if self.0.poison.get() > 0 {
            status.alarms.push(Alarm::PoisonFound);
        }
        status
    }

    /// Tells the spool what is in hand, and was at crashes: before its first message is loaded.
    pub fn watch(&self, hands: &Rc<Hands>) {
        self.0.hands.replace(Some(Rc::clone(hands)));
    }

    /// Whether the message is here, with a recipient that waits.
    #[must_use]
    pub fn has(&self, id: MessageId) -> bool {
        self.0.core.borrow().find(id).is_some()
    }

    /// Refuses new mail, makes everything durable and leaves the clean mark. Gives up after ten
    /// seconds of a failing disk: recovery finds all that was acknowledged anyway.
    pub async fn close(&self) {
        let port = &self.0.port;
        let deadline = port.now().after(CLOSE_PATIENCE);
        self.0.core.borrow_mut().close(port.now());
        self.0.wake.raise();
        while !self.0.core.borrow().is_closed() && port.now() < deadline {
            port.sleep_until(port.now().after(Duration::from_millis(2)))
                .await;
        }
        self.0.stopped.set(true);
        self.0.wake.raise();
    }

    /// Puts what is left of a damaged message into quarantine and settles it.
    async fn condemn(&self, id: MessageId, extent: &Extent) {
        if let Err(error) = self.0.quarantine(id, extent).await {
            tracing::warn!(%id, %error, "a damaged message could not be put into quarantine");
        }
        tracing::error!(%id, segment = extent.location.segment, "a message is damaged");
        let now = self.0.port.now();
        self.0.core.borrow_mut().condemn(id, now);
        self.0.wake.raise();
    }

    // ---- the task ----

    async fn run(self) {
        while !self.0.stopped.get() {
            self.pump();
            let wake_at = self.0.wake_at();
            let mut sleep = pin!(self.0.port.sleep_until(wake_at));
            poll_fn(|context| {
                if self.0.wake.poll_raised(context).is_ready() {
                    return Poll::Ready(());
                }
                sleep.as_mut().poll(context)
            })
            .await;
        }
    }

    /// Does all that can be done now.
    fn pump(&self) {
        let inner = &self.0;
        let now = inner.port.now();
        if inner.core.borrow().wants_space(now) {
            // When the system does not say, the last answer stands.
            let free = inner.port.free_space(&inner.directory);
            let mut core = inner.core.borrow_mut();
            let known = core.status().free_bytes;
            core.space(free.unwrap_or(known), now);
        }
        inner.retry_releases();
        loop {
            let action = inner.core.borrow_mut().poll(now);
            let Some(action) = action else { break };
            self.perform(action);
        }
        self.complete();
    }

    fn complete(&self) {
        let now = self.0.port.now();
        loop {
            let completion = self.0.core.borrow_mut().completion();
            match completion {
                None => return,
                Some(Completion::Append(token, result)) => {
                    // Tokens are indices of `waiters`.
                    let unwanted = self.0.waiters.borrow_mut().finish(token as usize, result);
                    if let (Some(recipients), Ok(stored)) = (unwanted, result) {
                        let kind = SettlementKind::Dropped;
                        for recipient in 0..recipients {
                            let dropped = Settlement {
                                id: stored.id(),
                                recipient,
                                kind,
                            };
                            self.0.core.borrow_mut().settle(dropped, now);
                        }
                        self.0.wake.raise();
                    }
                }
                Some(Completion::Settled(settlement)) => {
                    // A callback may add callbacks, and settle.
                    let count = self.0.callbacks.borrow().len();
                    for at in 0..count {
                        let callback = Rc::clone(&self.0.callbacks.borrow()[at]);
                        callback(&settlement);
                    }
                }
            }
        }
    }

    fn perform(&self, action: Action) {
        match action {
            Action::Write {
                ticket,
                log,
                segment,
                offset,
                block,
            } => {
                let file = self.0.files.borrow().get(&(log, segment)).cloned();
                let Some(file) = file else {
                    unreachable!("segments have files")
                };
                let driver = self.clone();
                self.0.port.spawn(Class::Spool, async move {
                    let (block, result) = driver.0.port.write_durable(&file, offset, block).await;
                    let outcome = outcome(&result);
                    if let Err(error) = result {
                        tracing::error!(?log, segment, offset, %error, "a durable write failed");
                    }
                    let now = driver.0.port.now();
                    driver
                        .0
                        .core
                        .borrow_mut()
                        .written(ticket, block, outcome, now);
                    driver.0.wake.raise();
                });
            }
            Action::Create {
                log,
                segment,
                len,
                prewrite,
            } => {
                let driver = self.clone();
                self.0.port.spawn(Class::Spool, async move {
                    let result = driver.0.create(log, segment, len, prewrite).await;
                    if let Err(error) = &result {
                        tracing::error!(?log, segment, %error, "a segment could not be made");
                    }
                    let now = driver.0.port.now();
                    driver
                        .0
                        .core
                        .borrow_mut()
                        .created(log, segment, outcome(&result), now);
                    driver.0.wake.raise();
                });
            }
            Action::Release { segment } => {
                self.0.releasing.borrow_mut().push(segment);
                self.0.retry_releases();
            }
            Action::Remove { log, segment } => {
                let result = self.0.remove(log, segment);
                self.0
                    .core
                    .borrow_mut()
                    .removed(log, segment, outcome(&result));
            }
            Action::Copy { id, from } => {
                let driver = self.clone();
                self.0
                    .port
                    .spawn(Class::Spool, async move { driver.copy(id, from).await });
            }
        }
    }

    async fn copy(&self, id: MessageId, from: Place) {
        let extent = self.0.core.borrow().copy_source(from);
        let read = match &extent {
            Some(extent) => self.0.record(id, extent).await,
            None => Err(ReadError::Gone),
        };
        if let (Err(ReadError::Damaged), Some(extent)) = (&read, &extent)
            && let Err(error) = self.0.quarantine(id, extent).await
        {
            tracing::warn!(%id, %error, "a damaged message could not be put into quarantine");
        }
        let now = self.0.port.now();
        let mut core = self.0.core.borrow_mut();
        match &read {
            Ok(record) => {
                let read = (
                    record.envelope(),
                    record.content.clone(),
                    record.fixed.received_at,
                );
                core.copied(id, from, Ok(read), now);
            }
            Err(error) => core.copied(id, from, Err(*error), now),
        }
        drop(core);
        self.0.wake.raise();
    }
}

fn outcome(result: &io::Result<()>) -> Outcome {
    match result {
        Ok(()) => Outcome::Done,
        Err(error) if is_full(error) => Outcome::Full,
        Err(_) => Outcome::Failed,
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// A verified record, still in the map.
struct Record<M: Map> {
    map: Arc<M>,
    envelope: Range<usize>,
    content: Bytes,
    fixed: MessageRecord,
}

impl<M: Map> Record<M> {
    fn envelope(&self) -> &[u8] {
        &self.map.bytes()[self.envelope.clone()]
    }

    fn message(&self) -> Result<StoredMessage, ReadError> {
        let envelope = Envelope::decode(self.envelope()).map_err(|_| ReadError::Damaged)?;
        let received_at = self.fixed.received_at;
        Ok(StoredMessage {
            envelope,
            content: self.content.clone(),
            received_at,
        })
    }
}

/// A range of a map that keeps the map alive.
struct Slice<M: Map> {
    map: Arc<M>,
    range: Range<usize>,
}

impl<M: Map> AsRef<[u8]> for Slice<M> {
    fn as_ref(&self) -> &[u8] {
        &self.map.bytes()[self.range.clone()]
    }
}

impl<P: Port> Inner<P> {
    fn path(&self, log: Log, segment: u32) -> PathBuf {
        self.directory.join(log.file_name(segment))
    }

    fn wake_at(&self) -> Mono {
        let core = self.core.borrow().wake_at();
        if self.releasing.borrow().is_empty() {
            core
        } else {
            core.min(self.port.now().after(RELEASE_RETRY))
        }
    }

    /// Forgets the maps of segments that are to be recycled, where no reader holds one.
    fn retry_releases(&self) {
        let mut maps = self.maps.borrow_mut();
        let mut core = self.core.borrow_mut();
        self.releasing.borrow_mut().retain(|segment| {
            if maps
                .get(segment)
                .is_some_and(|map| Arc::strong_count(map) > 1)
            {
                return true;
            }
            maps.remove(segment);
            core.released(*segment);
            false
        });
    }

    async fn create(&self, log: Log, segment: u32, len: u64, prewrite: bool) -> io::Result<()> {
        let path = self.path(log, segment);
        let file = match self.port.open(&path, OpenMode::Create) {
            // Left from a removal that failed; nobody names its number.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.port.remove(&path)?;
                self.port.open(&path, OpenMode::Create)?
            }
            other => other?,
        };
        if prewrite {
            self.port.prewrite(&file, len).await?;
        }
        self.port.sync_directory(&self.directory)?;
        self.files.borrow_mut().insert((log, segment), file);
        Ok(())
    }

    fn remove(&self, log: Log, segment: u32) -> io::Result<()> {
        self.files.borrow_mut().remove(&(log, segment));
        if log == Log::Message {
            self.maps.borrow_mut().remove(&segment);
        }
        match self.port.remove(&self.path(log, segment)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        self.port.sync_directory(&self.directory)
    }

    fn map(&self, segment: u32) -> Result<Arc<P::Map>, ReadError> {
        if let Some(map) = self.maps.borrow().get(&segment) {
            return Ok(Arc::clone(map));
        }
        let file = self.files.borrow().get(&(Log::Message, segment)).cloned();
        let file = file.ok_or(ReadError::Io)?;
        let map = self.port.map(&file).map_err(|_| ReadError::Io)?;
        self.maps.borrow_mut().insert(segment, Arc::clone(&map));
        Ok(map)
    }

    async fn mapped(
        &self,
        segment: u32,
        range: Range<usize>,
    ) -> Result<(Arc<P::Map>, Range<usize>), ReadError> {
        let map = self.map(segment)?;
        let end = range.end.min(map.bytes().len());
        if range.start > end {
            return Err(ReadError::Damaged);
        }
        self.port
            .prefetch(&map, range.start..end)
            .await
            .map_err(|_| ReadError::Io)?;
        Ok((map, range.start..end))
    }

    fn is_condemned(&self, id: MessageId) -> bool {
        let hands = self.hands.borrow();
        hands.as_ref().is_some_and(|hands| hands.is_condemned(id))
    }

    /// As [`Inner::head`], noted as in hand meanwhile.
    async fn head_in_hand(
        &self,
        id: MessageId,
        extent: &Extent,
    ) -> Result<(MessageRecord, Envelope), ReadError> {
        let hands = self.hands.borrow().clone();
        let Some(hands) = hands else {
            return self.head(id, extent).await;
        };
        let owner = hands.owner();
        let _mark = hands.hold(id, owner);
        hands.during(owner, self.head(id, extent)).await
    }

    /// Record and envelope of a message.
    async fn head(
        &self,
        id: MessageId,
        extent: &Extent,
    ) -> Result<(MessageRecord, Envelope), ReadError> {
        let start = extent.location.offset as usize;
        let range = start..start + extent.head_len as usize;
        let (map, range) = self.mapped(extent.location.segment, range).await?;
        let decoded = MessageRecord::decode(&map.bytes()[range], extent.generation);
        let (record, envelope) = decoded.ok_or(ReadError::Damaged)?;
        let envelope = Envelope::decode(envelope).map_err(|_| ReadError::Damaged)?;
        if record.id != id {
            Err(ReadError::Damaged)
        } else {
            Ok((record, envelope))
        }
    }

    /// The record of a message, verified.
    async fn record(&self, id: MessageId, extent: &Extent) -> Result<Record<P::Map>, ReadError> {
        let start = extent.location.offset as usize;
        let segment = extent.location.segment;
        let range = start..start + extent.head_len as usize;
        let (map, range) = self.mapped(segment, range).await?;
        let decoded = MessageRecord::decode(&map.bytes()[range.clone()], extent.generation);
        let (fixed, envelope) = decoded.ok_or(ReadError::Damaged)?;
        if fixed.id != id || fixed.content_offset != extent.content {
            return Err(ReadError::Damaged);
        }
        let envelope_start = range.start + crate::spool::format::RECORD_BYTES;
        let envelope = envelope_start..envelope_start + envelope.len();
        let start = fixed.content_offset as usize;
        let content = start..start + fixed.content_len as usize;
        if content.end > map.bytes().len() {
            return Err(ReadError::Damaged);
        }
        let mut sum = Checksum::default();
        let mut at = content.start;
        while at < content.end {
            let end = content.end.min(at + limits::SPOOL_GROUP_BYTES_MAX);
            self.port
                .prefetch(&map, at..end)
                .await
                .map_err(|_| ReadError::Io)?;
            sum.update(&map.bytes()[at..end]);
            at = end;
        }
        if sum.finish() != fixed.content_sum {
            return Err(ReadError::Damaged);
        }
        let slice = Slice {
            map: Arc::clone(&map),
            range: content,
        };
        Ok(Record {
            map,
            envelope,
            content: Bytes::from_owner(slice),
            fixed,
        })
    }
}

// ---- recovery ----

struct Opened<P: Port> {
    core: Spool,
    report: RecoveryReport,
    files: HashMap<(Log, u32), P::File>,
}

struct FoundFile<P: Port> {
    log: Log,
    number: u32,
    path: PathBuf,
    file: P::File,
    len: u64,
}

async fn recover<P: Port>(port: &P, config: &SpoolerConfig) -> Result<Opened<P>, SpoolError> {
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

fn list<P: Port>(port: &P, config: &SpoolerConfig) -> Result<Vec<FoundFile<P>>, SpoolError> {
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

/// Writes a range of a file again as it is, so that what was read is on stable storage.
async fn rewrite<P: Port>(port: &P, file: &P::File, range: Range<usize>) -> io::Result<()> {
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
    let segment = (budget / 32).min(most).max(limits::SPOOL_SEGMENT_BYTES_MIN);
    let state = (budget / 64).min(limits::SPOOL_STATE_SEGMENT_BYTES);
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
    file: &FoundFile<P>,
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

#[cfg(test)]
mod tests;
