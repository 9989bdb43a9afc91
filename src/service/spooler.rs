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

/// One shard's spool. Cloning shares it.
pub struct Spooler<P: Port> {
    port: P,
}

impl<P: Port> Spooler<P> {
    /// Recovers the shard's directory, making it when it does not exist.
    pub async fn open(port: P, config: SpoolerConfig) -> Result<(Self, Recovered), SpoolError> {
        let _ = (port, config);
        unimplemented!("first the signatures")
    }

    /// The id for the next message; never given twice, also across restarts.
    pub fn next_id(&self) -> MessageId {
        unimplemented!("first the signatures")
    }

    /// Makes a message durable. `Ok` is the proof.
    pub async fn append(
        &self,
        _id: MessageId,
        _envelope: &Envelope,
        _content: &Content,
        _received_at: Wall,
    ) -> Result<Stored, AppendError> {
        unimplemented!("first the signatures")
    }

    /// Notes what became of a recipient; durable within milliseconds, then `on_settled` is called.
    pub fn settle(&self, _settlement: Settlement) {
        unimplemented!("first the signatures")
    }

    /// Adds a callback for settlements that became durable.
    pub fn on_settled(&self, _callback: impl Fn(&Settlement) + 'static) {
        unimplemented!("first the signatures")
    }

    /// Reads a message: prefetched, verified, then handed out.
    pub async fn read(&self, _id: MessageId) -> Result<StoredMessage, ReadError> {
        unimplemented!("first the signatures")
    }

    /// The next messages that recovery found, at most `max`; empty at the end. Reads envelopes
    /// only. Segments are not reclaimed before the end is reached.
    pub async fn load(&self, _cursor: &mut LoadCursor, _max: usize) -> Vec<Loaded> {
        unimplemented!("first the signatures")
    }

    /// The spool in figures.
    pub fn status(&self) -> SpoolStatus {
        unimplemented!("first the signatures")
    }

    /// Makes everything durable and leaves the clean mark. New mail is refused from here on.
    pub async fn close(&self) {
        unimplemented!("first the signatures")
    }
}
