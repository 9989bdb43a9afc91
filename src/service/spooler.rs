//! service::spooler - the driver of the spool: moves its bytes through the port.

use std::path::PathBuf;

use bytes::Bytes;

use crate::engine::Port;
use crate::message::{Content, Envelope, MessageId};
use crate::spool::{
    AppendError, Queued, ReadError, RecoveryReport, Settlement, SpoolStatus, Stored,
};
use crate::time::Wall;

/// What a shard's spool is told at boot.
#[derive(Debug, Clone)]
pub struct SpoolerConfig {
    /// The node's data directory; the shard's files are in `shard-NNN` below it.
    pub directory: PathBuf,
    /// The shard.
    pub shard: u16,
    /// Bytes of a message segment; made smaller where the file system is small.
    pub segment_bytes: u64,
    /// Below this much free space new mail is refused with [`AppendError::Full`].
    pub low_water_bytes: u64,
}

/// Why a spool cannot be opened.
#[derive(Debug)]
pub enum SpoolError {
    /// The operating system refused: what was done, and why.
    Io(PathBuf, std::io::Error),
    /// A file was written by a newer version of the program.
    Newer(PathBuf, u16),
    /// The file belongs to another shard.
    ForeignShard(PathBuf, u16),
}

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
pub struct LoadCursor {}

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


impl std::fmt::Display for SpoolError { fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { write!(f, "{self:?}") } }
struct Inner<P: Port> { port: P, shard: u16, next: std::cell::Cell<u64>, messages: std::cell::RefCell<std::collections::HashMap<MessageId, (StoredMessage, u32)>> }
/// TEMPORARY
pub struct Spooler<P: Port> {
    inner: std::rc::Rc<Inner<P>>,
}
impl<P: Port> Clone for Spooler<P> { fn clone(&self) -> Self { Self { inner: self.inner.clone() } } }

impl<P: Port> Spooler<P> {
    pub async fn open(port: P, config: SpoolerConfig) -> Result<(Self, Recovered), SpoolError> {
        Ok((Self { inner: std::rc::Rc::new(Inner { port, shard: config.shard, next: std::cell::Cell::new(1), messages: Default::default() }) },
        Recovered { queued_messages: 0, report: RecoveryReport::default(), cursor: LoadCursor {} }))
    }
    pub fn next_id(&self) -> MessageId {
        let n = self.inner.next.get(); self.inner.next.set(n + 1);
        MessageId::new(self.inner.shard, n)
    }
    pub async fn append(&self, id: MessageId, envelope: &Envelope, content: &Content, received_at: Wall) -> Result<Stored, AppendError> {
        let stored = StoredMessage { envelope: envelope.clone(), content: content.bytes(), received_at };
        let n = envelope.recipients.len() as u32;
        self.inner.messages.borrow_mut().insert(id, (stored, n));
        self.inner.port.sleep_until(self.inner.port.now()).await;
        Ok(Stored::proven(id, crate::spool::Location { segment: 0, offset: 0, len: 0 }))
    }
    pub fn settle(&self, s: Settlement) {
        if s.kind.is_terminal() {
            let mut m = self.inner.messages.borrow_mut();
            if let Some(e) = m.get_mut(&s.id) { e.1 -= 1; if e.1 == 0 { m.remove(&s.id); } }
        }
    }
    pub fn on_settled(&self, _callback: impl Fn(&Settlement) + 'static) {}
    pub async fn read(&self, id: MessageId) -> Result<StoredMessage, ReadError> {
        self.inner.messages.borrow().get(&id).map(|e| e.0.clone()).ok_or(ReadError::Gone)
    }
    pub async fn load(&self, _cursor: &mut LoadCursor, _max: usize) -> Vec<Loaded> { Vec::new() }
    pub fn status(&self) -> SpoolStatus { SpoolStatus::default() }
    pub fn probe(&self) -> bool { false }
    pub async fn close(&self) {}
}
