//! spooler::read - records out of segments, verified.
//!
//! What: heads by way of the maps; contents from there too where they are in memory, else read by
//! themselves, a bounded number of bytes at a time.
//! Why this way: a map reads pages, and what the kernel thinks comes next. While a cold queue was
//! read through it, new mail waited 16 ms (p99) for its 250, and 1.3 to 2.7 ms now.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::engine::{Block, Map, Port};
use crate::limits;
use crate::message::{Envelope, MessageId};
use crate::service::budget::Charge;
use crate::spool::format::{BLOCK_BYTES, Checksum, Log, MessageRecord, RECORD_BYTES};
use crate::spool::{Extent, ReadError, Served};

use super::{Inner, StoredMessage};

/// What becomes of a message whose record is damaged.
pub(super) enum Rescue {
    /// It is to be looked for again: another record of it counts, or it has ended.
    Moved,
    /// Another record may be whole, and cannot be read now.
    Later,
    /// No record of it is whole.
    None,
}

/// A verified record, still in the map.
pub(super) struct Record<M: Map> {
    map: Arc<M>,
    envelope: Range<usize>,
    pub(super) content: Bytes,
    pub(super) fixed: MessageRecord,
}

impl<M: Map> Record<M> {
    pub(super) fn envelope(&self) -> &[u8] {
        &self.map.bytes()[self.envelope.clone()]
    }

    pub(super) fn message(&self) -> Result<StoredMessage, ReadError> {
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

/// A content that was read for one message.
struct Piece {
    block: Block,
    range: Range<usize>,
    _charge: Charge,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.block[self.range.clone()]
    }
}

impl<P: Port> Inner<P> {
    pub(super) fn map(&self, segment: u32) -> Result<Arc<P::Map>, ReadError> {
        if let Some(map) = self.maps.borrow().get(&segment) {
            return Ok(Arc::clone(map));
        }
        let file = self.files.borrow().get(&(Log::Message, segment)).cloned();
        let file = file.ok_or(ReadError::Io)?;
        let map = self.port.map(&file).map_err(|_| ReadError::Io)?;
        self.maps.borrow_mut().insert(segment, Arc::clone(&map));
        Ok(map)
    }

    pub(super) async fn mapped(
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

    /// Record and envelope of a message.
    pub(super) async fn head(
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
    pub(super) async fn record(
        &self,
        id: MessageId,
        extent: &Extent,
    ) -> Result<Record<P::Map>, ReadError> {
        let start = extent.location.offset as usize;
        let segment = extent.location.segment;
        let range = start..start + extent.head_len as usize;
        let (map, range) = self.mapped(segment, range).await?;
        let decoded = MessageRecord::decode(&map.bytes()[range.clone()], extent.generation);
        let (fixed, envelope) = decoded.ok_or(ReadError::Damaged)?;
        if fixed.id != id || fixed.content_offset != extent.content {
            return Err(ReadError::Damaged);
        }
        let envelope_start = range.start + RECORD_BYTES;
        let envelope = envelope_start..envelope_start + envelope.len();
        let start = fixed.content_offset as usize;
        let range = start..start + fixed.content_len as usize;
        if range.end > map.bytes().len() {
            return Err(ReadError::Damaged);
        }
        let (content, sum) = self.content(segment, &map, range).await?;
        if sum != fixed.content_sum {
            return Err(ReadError::Damaged);
        }
        Ok(Record {
            map,
            envelope,
            content,
            fixed,
        })
    }

    /// A range of a segment, and its checksum: on loan from the map where it is in memory, or is
    /// large; else read for this message alone, and no byte more.
    async fn content(
        &self,
        segment: u32,
        map: &Arc<P::Map>,
        range: Range<usize>,
    ) -> Result<(Bytes, u64), ReadError> {
        let mut sum = Checksum::default();
        if range.len() <= limits::SPOOL_READ_BYTES_MAX
            && !self.port.is_resident(map, &range)
            && let Some(charge) = self.read.charge(range.len())
        {
            let piece = self.piece(segment, range, charge).await?;
            sum.update(piece.as_ref());
            return Ok((Bytes::from_owner(piece), sum.finish()));
        }
        let mut at = range.start;
        while at < range.end {
            let end = range.end.min(at + limits::SPOOL_GROUP_BYTES_MAX);
            self.port
                .prefetch(map, at..end)
                .await
                .map_err(|_| ReadError::Io)?;
            sum.update(&map.bytes()[at..end]);
            at = end;
        }
        let slice = Slice {
            map: Arc::clone(map),
            range,
        };
        Ok((Bytes::from_owner(slice), sum.finish()))
    }

    async fn piece(
        &self,
        segment: u32,
        range: Range<usize>,
        charge: Charge,
    ) -> Result<Piece, ReadError> {
        let file = self.files.borrow().get(&(Log::Message, segment)).cloned();
        let file = file.ok_or(ReadError::Io)?;
        let offset = range.start / BLOCK_BYTES * BLOCK_BYTES;
        let range = range.start - offset..range.end - offset;
        let block = Block::zeroed(range.end);
        let turn = self.reads.take(block.len()).await;
        let (block, read) = self.port.read(&file, offset as u64, block).await;
        drop(turn);
        match read {
            Ok(bytes) if bytes >= range.end => Ok(Piece {
                block,
                range,
                _charge: charge,
            }),
            Ok(_) | Err(_) => Err(ReadError::Io),
        }
    }

    /// The record that counts was found damaged: looks for another one of the same message that is
    /// whole. Envelopes are not decoded.
    pub(super) async fn rescue(&self, id: MessageId, damaged: &Extent) -> Rescue {
        let counts = |found: Option<Extent>| found.is_some_and(|found| found == *damaged);
        let others = {
            let core = self.core.borrow();
            if !counts(core.find(id)) {
                // It was moved, or has ended, while this record was being read.
                return Rescue::Moved;
            }
            core.other_records(id)
        };
        let mut later = self.core.borrow().hides_mail();
        for other in others {
            match self.record(id, &other.1).await {
                Ok(_) => {}
                Err(ReadError::Io) => {
                    later = true;
                    continue;
                }
                Err(ReadError::Damaged | ReadError::Gone) => continue,
            }
            let served = self.core.borrow_mut().use_record(id, damaged, other);
            match served {
                Served::Yes => {}
                Served::Unseen => self.late.borrow_mut().push_back(id),
                Served::No => continue,
            }
            tracing::warn!(
                %id,
                segment = damaged.location.segment,
                instead = other.1.location.segment,
                "a record is damaged; another record of the same message serves"
            );
            return Rescue::Moved;
        }
        if !counts(self.core.borrow().find(id)) {
            Rescue::Moved
        } else if later {
            Rescue::Later
        } else {
            Rescue::None
        }
    }

    pub(super) fn is_condemned(&self, id: MessageId) -> bool {
        let hands = self.hands.borrow();
        hands.as_ref().is_some_and(|hands| hands.is_condemned(id))
    }

    /// As [`Inner::head`], noted as in hand meanwhile.
    pub(super) async fn head_in_hand(
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
}
