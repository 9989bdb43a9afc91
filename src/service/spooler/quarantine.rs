//! quarantine - messages that the node will not try: put aside, listed, given back, thrown away.

use std::io;
use std::ops::Range;
use std::path::PathBuf;

use super::{Inner, Spooler};
use crate::engine::{Block, Map, OpenMode, Port};
use crate::limits;
use crate::message::{Content, Envelope, MessageId};
use crate::spool::format::BLOCK_BYTES;
use crate::spool::quarantine::{self, Aside, Reason};
use crate::spool::{Extent, PendingRecipient, Settlement, SettlementKind};
use crate::time::Wall;

/// A message in quarantine, for the operator's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Which, and why.
    pub aside: Aside,
    /// When it was accepted; `None` where its record is damaged.
    pub received_at: Option<Wall>,
    /// Who sent it; empty: a notification; `None` where the envelope cannot be read.
    pub sender: Option<String>,
    /// Recipients that waited.
    pub waiting: u64,
}

/// Why a message does not come back from quarantine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReleaseError {
    /// No such message is in quarantine.
    Absent,
    /// Its bytes do not match their checksum, or it has no envelope: it is never sent.
    Damaged,
    /// It is being released, or put aside, at this moment.
    UnderWay,
    /// The disk does not give it, or does not take it now.
    Io,
}

impl<P: Port> Spooler<P> {
    /// Puts a message aside that was in hand at repeated crashes, and settles its recipients. Reads
    /// its bytes as bytes only.
    pub async fn set_aside(&self, id: MessageId) {
        let found = self.0.core.borrow().waiting(id);
        let Some((_, extent, pending)) = found else {
            return;
        };
        if let Err(error) = self
            .0
            .put_aside(Reason::Poison, id, &extent, &pending)
            .await
        {
            // It waits in the spool, untried, and the next start tries to put it aside again.
            tracing::error!(%id, %error, "a poison message could not be put into quarantine");
            return;
        }
        tracing::error!(
            %id,
            "quarantined: in hand at repeated crashes; see `postrider ctl quarantine list`"
        );
        for recipient in pending {
            self.settle(Settlement {
                id,
                recipient: recipient.index,
                kind: SettlementKind::Quarantined,
            });
        }
    }

    /// The messages in quarantine, a bounded number of them, and how many there are in all.
    pub async fn quarantined(&self) -> (Vec<Listed>, u64) {
        let all = self.0.asides();
        let mut listed = Vec::new();
        for aside in all.iter().take(limits::QUARANTINE_LISTED_MAX) {
            let mut row = Listed {
                aside: *aside,
                received_at: None,
                sender: None,
                waiting: 0,
            };
            if let Ok(map) = self.0.load_aside(aside).await {
                let seen = quarantine::read(*aside, map.bytes());
                row.received_at = seen.received_at;
                row.waiting = seen.pending.len() as u64;
                let envelope = seen.envelope.and_then(|bytes| Envelope::decode(bytes).ok());
                row.sender = envelope.map(|envelope| {
                    envelope
                        .sender
                        .map_or_else(String::new, |sender| sender.as_str().to_owned())
                });
            }
            listed.push(row);
        }
        (listed, all.len() as u64)
    }

    /// A message in quarantine, for those who waited.
    pub(super) async fn quarantined_message(
        &self,
        id: MessageId,
    ) -> Result<(Envelope, Content), ReleaseError> {
        let mut found = self.0.asides().into_iter().filter(|aside| aside.id == id);
        let aside = found.next().ok_or(ReleaseError::Absent)?;
        let map = self.0.load_aside(&aside).await;
        let map = map.map_err(|_| ReleaseError::Io)?;
        let seen = quarantine::read(aside, map.bytes());
        let envelope = quarantine::envelope(&seen).ok_or(ReleaseError::Damaged)?;
        let content = seen.content.ok_or(ReleaseError::Damaged)?;
        Ok((envelope, Content::from(content.to_vec())))
    }

    /// Removes a message from quarantine; says whether it was there.
    ///
    /// # Errors
    /// What the operating system says.
    pub async fn discard(&self, id: MessageId) -> io::Result<bool> {
        let mut removed = false;
        for aside in self.0.asides().into_iter().filter(|aside| aside.id == id) {
            self.0.port.remove(&self.0.aside_path(&aside)).await?;
            removed = true;
        }
        if removed {
            self.0.port.sync_directory(&self.0.directory).await?;
            self.0.count_asides();
        }
        Ok(removed)
    }
}

impl<P: Port> Inner<P> {
    fn asides(&self) -> Vec<Aside> {
        // A directory that cannot be read has alarms of its own.
        let names = self.port.list(&self.directory).unwrap_or_default();
        let mut asides: Vec<Aside> = names
            .iter()
            .filter_map(|name| Aside::parse_file_name(name))
            .collect();
        asides.sort_by_key(|aside| (aside.id, aside.reason == Reason::Damaged));
        asides
    }

    /// Counts what is in quarantine, for the status.
    pub(super) fn count_asides(&self) {
        let asides = self.asides();
        let poison = |aside: &&Aside| aside.reason == Reason::Poison;
        self.poison.set(asides.iter().filter(poison).count() as u64);
        self.quarantined.set(asides.len() as u64);
    }

    fn aside_path(&self, aside: &Aside) -> PathBuf {
        self.directory.join(aside.file_name())
    }

    async fn load_aside(&self, aside: &Aside) -> io::Result<std::sync::Arc<P::Map>> {
        let file = self
            .port
            .open(&self.aside_path(aside), OpenMode::Existing)?;
        if self.port.file_len(&file)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let map = self.port.map(&file)?;
        self.port.prefetch(&map, 0..map.bytes().len()).await?;
        Ok(map)
    }

    /// Puts what is left of a damaged message aside.
    pub(super) async fn quarantine(&self, id: MessageId, extent: &Extent) -> io::Result<()> {
        let found = self.core.borrow().waiting(id);
        let pending = found.map_or_else(Vec::new, |(_, _, pending)| pending);
        self.put_aside(Reason::Damaged, id, extent, &pending).await
    }

    /// Writes a message down as it is, whatever it is. A file that is there already is written
    /// again: a crash may have left it unfinished.
    async fn put_aside(
        &self,
        reason: Reason,
        id: MessageId,
        extent: &Extent,
        pending: &[PendingRecipient],
    ) -> io::Result<()> {
        let len = extent.location.len;
        let path = self.aside_path(&Aside { reason, id, len });
        let file = match self.port.open(&path, OpenMode::Create) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.port.open(&path, OpenMode::Existing)?
            }
            other => other?,
        };
        let head = extent.location.offset as usize;
        let content = extent.content as usize;
        let mut offset = 0;
        for part in [
            head..head + extent.head_len as usize,
            content..content + len as usize,
        ] {
            offset = self
                .copy_out(&file, offset, extent.location.segment, part)
                .await?;
        }
        let footer = quarantine::footer(pending);
        let mut block = Block::zeroed(footer.len());
        block[..footer.len()].copy_from_slice(&footer);
        let (_, result) = self.port.write_durable(&file, offset, block).await;
        result?;
        self.port.sync_directory(&self.directory).await?;
        self.count_asides();
        Ok(())
    }

    /// Copies a part of a segment to `offset`, zeros up to a block; where the next part goes.
    async fn copy_out(
        &self,
        file: &P::File,
        mut offset: u64,
        segment: u32,
        part: Range<usize>,
    ) -> io::Result<u64> {
        let mut at = part.start;
        while at < part.end {
            let end = part.end.min(at + limits::SPOOL_GROUP_BYTES_MAX);
            let mapped = self.mapped(segment, at..end).await;
            let (map, range) = mapped.map_err(|_| io::Error::other("unreadable"))?;
            let mut block = Block::zeroed(end - at);
            block[..range.len()].copy_from_slice(&map.bytes()[range]);
            let len = block.len() as u64;
            let (_, result) = self.port.write_durable(file, offset, block).await;
            result?;
            offset += len;
            at = end;
        }
        Ok(offset)
    }
}

const _: () = assert!(limits::SPOOL_GROUP_BYTES_MAX.is_multiple_of(BLOCK_BYTES));
