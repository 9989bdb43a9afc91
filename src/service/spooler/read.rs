//! spooler::read - records out of the maps of segments, verified.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::engine::{Map, Port};
use crate::limits;
use crate::message::{Envelope, MessageId};
use crate::spool::format::{Checksum, Log, MessageRecord, RECORD_BYTES};
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
