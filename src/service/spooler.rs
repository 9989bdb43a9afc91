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
//!   `Damaged`, and what is left of it in `quarantine/`; bytes that the disk does not give at the
//!   start -> asked for again for seconds, then the alarm `Unread` and `load_late`.
//! Security: file names are numbers of ours; no byte of a mail chooses one.
//! Bugs: the directory must exist; the port cannot make one. A content of 100 MiB is verified in
//!   pieces of 1 MiB, each of which occupies the shard for about 50 us. A segment that could be
//!   read only later is taken in at once: some 100 ms for 64 MiB of small messages.

use std::cell::{Cell, RefCell};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::path::PathBuf;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;

use crate::engine::{Class, Guarded, OpenMode, Port, Signal};
use crate::limits;
use crate::message::{Content, Envelope, MessageId};
use crate::service::budget::{Budget, Turns};
use crate::service::hands::Hands;
use crate::spool::format::Log;
use crate::spool::{
    Action, Alarm, AppendError, Completion, Extent, Outcome, ReadError, RecoveryReport, Settlement,
    SettlementKind, Spool, SpoolStatus, Stored,
};
use crate::time::{Mono, Wall};

use self::read::Rescue;

mod copy;
mod heads;
mod late;
mod load;
mod quarantine;
mod read;
mod recovery;
mod release;

pub use self::load::{LoadCursor, Loaded};
pub use self::quarantine::{Listed, ReleaseError};
use self::recovery::recover;
pub use self::release::Released;
use self::release::Releases;

/// How often a segment that readers hold is looked at again.
const RELEASE_RETRY: Duration = Duration::from_millis(100);
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
    /// Longest time that a settlement waits to be written with others.
    pub settle_wait: Duration,
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

/// A message out of the spool, verified.
#[derive(Debug, Clone)]
pub struct StoredMessage {
    /// Who it is for.
    pub envelope: Envelope,
    /// The content: on loan from the map of its segment, or read for this message.
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
    /// Files to remove, and whether a task is at it.
    removals: RefCell<VecDeque<(Log, u32)>>,
    removing: Cell<bool>,
    releasing: RefCell<Vec<u32>>,
    waiters: RefCell<Waiters>,
    callbacks: RefCell<Vec<Rc<Callback>>>,
    wake: Signal,
    stopped: Cell<bool>,
    /// What is asked of the disk for messages that are to be sent, and what of it is held.
    reads: Turns,
    read: Arc<Budget>,
    /// Messages whose envelope could not be read.
    late: RefCell<VecDeque<MessageId>>,
    late_pause: Cell<Duration>,
    /// What was in hand at crashes, once the shard has said so.
    hands: RefCell<Option<Rc<Hands>>>,
    releases: RefCell<Releases>,
    /// Files in quarantine, and those of them that are poison.
    quarantined: Cell<u64>,
    poison: Cell<u64>,
}

/// A reader holds the map of a segment.
struct InUse;

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
            removals: RefCell::default(),
            removing: Cell::new(false),
            releasing: RefCell::default(),
            waiters: RefCell::default(),
            callbacks: RefCell::default(),
            wake: Signal::default(),
            stopped: Cell::new(false),
            reads: Turns::new(limits::SPOOL_READ_BYTES_ASKED),
            read: Arc::new(Budget::new(limits::SPOOL_READ_BYTES_HELD_MAX)),
            late: RefCell::default(),
            late_pause: Cell::new(limits::SPOOL_LATE_PAUSE),
            hands: RefCell::default(),
            releases: RefCell::new(Releases::found(&opened.names)),
            quarantined: Cell::new(0),
            poison: Cell::new(0),
        });
        inner.count_asides();
        let spooler = Self(inner);
        let cursor = LoadCursor::new(segments, queued_messages);
        if queued_messages == 0 {
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
        loop {
            let extent = self.0.core.borrow().find(id).ok_or(ReadError::Gone)?;
            let result = match self.0.record(id, &extent).await {
                Ok(record) => record.message(),
                Err(error) => Err(error),
            };
            if !matches!(result, Err(ReadError::Damaged)) {
                return result;
            }
            match self.0.rescue(id, &extent).await {
                Rescue::Moved => {}
                Rescue::Later => return Err(ReadError::Io),
                Rescue::None => {
                    self.condemn(id, &extent).await;
                    return result;
                }
            }
        }
    }

    /// Has the disk tried at once after it failed, or was full. Whether there is anything to try.
    pub fn probe_now(&self) -> bool {
        let now = self.0.port.now();
        let waits = self.0.core.borrow_mut().probe_now(now);
        if waits {
            self.0.wake.raise();
        }
        waits
    }

    /// The spool in figures.
    #[must_use]
    pub fn status(&self) -> SpoolStatus {
        let mut status = self.0.core.borrow().status();
        let late = !self.0.late.borrow().is_empty();
        if late && !status.alarms.contains(&Alarm::Unread) {
            status.alarms.push(Alarm::Unread);
        }
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

    /// Recipients of a message that have reached their end, as runs: first, how many. `None` for a
    /// message that is not here, or has no recipient that waits.
    #[must_use]
    pub fn ended(&self, id: MessageId) -> Option<Vec<(u32, u32)>> {
        self.0.core.borrow().ended(id)
    }

    /// Whether this recipient of a message waits.
    #[must_use]
    pub fn waits(&self, id: MessageId, recipient: u32) -> bool {
        self.0.core.borrow().waits(id, recipient)
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
        self.retry_releases();
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
                self.retry_releases();
            }
            Action::Remove { log, segment } => {
                self.0.removals.borrow_mut().push_back((log, segment));
                if !self.0.removing.replace(true) {
                    let driver = self.clone();
                    let removing = async move { driver.remove_files().await };
                    self.0.port.spawn(Class::Spool, removing);
                }
            }
            Action::Copy { id, from } => {
                let driver = self.clone();
                self.0
                    .port
                    .spawn(Class::Spool, async move { driver.copy(id, from).await });
            }
        }
    }

    /// Forgets the maps of segments that are to be recycled, where no reader holds one.
    fn retry_releases(&self) {
        let inner = &self.0;
        inner.releasing.borrow_mut().retain(|segment| {
            let segment = *segment;
            match inner.take_map(segment) {
                Err(InUse) => return true,
                Ok(None) => inner.core.borrow_mut().released(segment),
                Ok(Some(map)) => {
                    let driver = self.clone();
                    inner.port.spawn(Class::Spool, async move {
                        driver.0.port.unmap(map).await;
                        driver.0.core.borrow_mut().released(segment);
                        driver.0.wake.raise();
                    });
                }
            }
            false
        });
    }

    /// Removes the files that are to go, one after the other and with pauses.
    async fn remove_files(&self) {
        let inner = &self.0;
        loop {
            let first = inner.removals.borrow_mut().pop_front();
            let Some((log, segment)) = first else { break };
            let result = inner.remove(log, segment).await;
            let mut core = inner.core.borrow_mut();
            let pause = core.removing_pause(log, segment);
            core.removed(log, segment, outcome(&result));
            drop(core);
            inner.wake.raise();
            let status = inner.core.borrow().status();
            if !status.alarms.contains(&Alarm::DiskFull) && !status.alarms.contains(&Alarm::NoFiles)
            {
                let until = inner.port.now().after(pause);
                inner.port.sleep_until(until).await;
            }
        }
        inner.removing.set(false);
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

impl<P: Port> Inner<P> {
    fn path(&self, log: Log, segment: u32) -> PathBuf {
        self.directory.join(log.file_name(segment))
    }

    /// Takes the map of a segment, if there is one, from those that are kept.
    fn take_map(&self, segment: u32) -> Result<Option<Arc<P::Map>>, InUse> {
        match self.maps.borrow_mut().entry(segment) {
            Entry::Vacant(_) => Ok(None),
            Entry::Occupied(map) if Arc::strong_count(map.get()) > 1 => Err(InUse),
            Entry::Occupied(map) => Ok(Some(map.remove())),
        }
    }

    fn wake_at(&self) -> Mono {
        let core = self.core.borrow().wake_at();
        if self.releasing.borrow().is_empty() {
            core
        } else {
            core.min(self.port.now().after(RELEASE_RETRY))
        }
    }

    async fn create(&self, log: Log, segment: u32, len: u64, prewrite: bool) -> io::Result<()> {
        let path = self.path(log, segment);
        let file = match self.port.open(&path, OpenMode::Create) {
            // Left from a removal that failed; nobody names its number.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.port.remove(&path).await?;
                self.port.open(&path, OpenMode::Create)?
            }
            other => other?,
        };
        if prewrite {
            let pause = || self.core.borrow().making_pause(log);
            self.port.prewrite(&file, len, pause).await?;
        }
        self.port.sync_directory(&self.directory).await?;
        self.files.borrow_mut().insert((log, segment), file);
        Ok(())
    }

    async fn remove(&self, log: Log, segment: u32) -> io::Result<()> {
        self.files.borrow_mut().remove(&(log, segment));
        let map = match log {
            Log::Message => self.maps.borrow_mut().remove(&segment),
            Log::State => None,
        };
        if let Some(map) = map {
            self.port.unmap(map).await;
        }
        match self.port.remove(&self.path(log, segment)).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        self.port.sync_directory(&self.directory).await
    }
}

#[cfg(test)]
mod tests;
