//! spool::commit - from waiting messages and settlements to the bytes of one group.
//!
//! What: the layout of a group into a block, with one copy and one checksum per content, and the
//! pool of blocks. Why apart: pure functions from records to bytes, measured by `benches/spool.rs`.

use bytes::Bytes;

use crate::engine::Block;
use crate::limits;
use crate::message::MessageId;
use crate::time::Wall;

use super::format::{
    BLOCK_BYTES, GROUP_HEADER_BYTES, GroupHeader, MessageRecord, RECORD_BYTES, STATE_RECORD_BYTES,
    Stamp, StateRecord, checksum,
};
use super::index::{Place, Slot, SlotState, head_units};

/// Bytes in front of the ids of a roster.
pub(super) const ROSTER_PREFIX_BYTES: usize = 16;

/// Where a message that waits to be written comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// A caller that waits for the proof, named by its token.
    Fresh(u64),
    /// Another segment, to be freed.
    Copy(Place),
}

/// A message that waits to be written, or is being written.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) id: MessageId,
    pub(super) origin: Origin,
    pub(super) received_at: Wall,
    pub(super) recipients: u32,
    pub(super) envelope: Vec<u8>,
    pub(super) content: Bytes,
}

impl Pending {
    pub(super) fn head_bytes(&self) -> usize {
        RECORD_BYTES + self.envelope.len().next_multiple_of(8)
    }

    /// Bytes in a group, without the group's own overhead.
    pub(super) fn bytes(&self) -> usize {
        self.head_bytes() + self.content.len().next_multiple_of(8)
    }
}

/// A message in a roster: its sequence, and how many recipients it has, as far as 12 bits tell.
pub(super) fn roster_entry(sequence: u64, recipients: u32) -> u64 {
    (u64::from(recipients.min(4095)) << 52) | (sequence & ((1 << 52) - 1))
}

/// Sequence and number of recipients of a message in a roster.
pub(super) fn roster_parts(entry: u64) -> (u64, u32) {
    (entry & ((1 << 52) - 1), (entry >> 52) as u32)
}

/// What the log remembers of its latest group, for the roster of the next.
#[derive(Debug, Clone, Default)]
pub(super) struct LastGroup {
    pub(super) sequence: u64,
    pub(super) generation: u64,
    pub(super) segment: u32,
    pub(super) offset: u32,
    pub(super) ids: Vec<u64>,
}

impl LastGroup {
    pub(super) fn bytes(&self) -> usize {
        if self.ids.is_empty() {
            0
        } else {
            ROSTER_PREFIX_BYTES + self.ids.len() * 8
        }
    }

    fn encode(&self, out: &mut [u8]) {
        if self.ids.is_empty() {
            return;
        }
        out[0..8].copy_from_slice(&self.generation.to_le_bytes());
        out[8..12].copy_from_slice(&self.segment.to_le_bytes());
        out[12..16].copy_from_slice(&self.offset.to_le_bytes());
        let (slots, _) = out[ROSTER_PREFIX_BYTES..].as_chunks_mut::<8>();
        for (slot, id) in slots.iter_mut().zip(&self.ids) {
            *slot = id.to_le_bytes();
        }
    }

    /// The roster at the start of `bytes`, of `count` ids, in the group with `sequence`.
    pub(super) fn decode(bytes: &[u8], count: u32, sequence: u64) -> Option<Self> {
        if count == 0 {
            return None;
        }
        let end = (count as usize)
            .checked_mul(8)?
            .checked_add(ROSTER_PREFIX_BYTES)?;
        let bytes = bytes.get(..end)?;
        let (ids, _) = bytes[ROSTER_PREFIX_BYTES..].as_chunks::<8>();
        Some(Self {
            sequence: sequence.checked_sub(1)?,
            generation: u64::from_le_bytes(bytes[0..8].try_into().ok()?),
            segment: u32::from_le_bytes(bytes[8..12].try_into().ok()?),
            offset: u32::from_le_bytes(bytes[12..16].try_into().ok()?),
            ids: ids.iter().map(|id| u64::from_le_bytes(*id)).collect(),
        })
    }
}

/// What a group needs besides its records.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame {
    pub(super) stamp: Stamp,
    pub(super) sequence: u64,
    pub(super) offset: u32,
    pub(super) proven: u64,
    pub(super) state_proven: u64,
    pub(super) next_sequence: u64,
}

/// Bytes on disk of a group of `messages` after `last`.
pub(super) fn mail_group_bytes(record_bytes: usize, last: &LastGroup) -> usize {
    (GROUP_HEADER_BYTES + last.bytes() + record_bytes).next_multiple_of(BLOCK_BYTES)
}

/// Lays out `messages` as one group into `block`, which has the group's exact length, and pushes
/// their slots.
///
/// Where `content_base` is given, the contents are there in the segment already (a large message)
/// with that checksum, and the block holds the head alone.
pub(super) fn lay_out_mail(
    frame: &Frame,
    last: &LastGroup,
    messages: &[Pending],
    placed: Option<(u32, u64)>,
    block: &mut Block,
    slots: &mut Vec<Slot>,
) {
    let records: usize = messages.iter().map(Pending::head_bytes).sum();
    let head_len = GROUP_HEADER_BYTES + last.bytes() + records;
    let (head, body) = block.split_at_mut(head_len);
    last.encode(&mut head[GROUP_HEADER_BYTES..]);
    let mut at = GROUP_HEADER_BYTES + last.bytes();
    let mut content_at = 0;
    for message in messages {
        let (content_offset, content_sum) = placed.unwrap_or_else(|| {
            let end = content_at + message.content.len();
            // The checksum comes first: it brings the content into the cache for the copy, and what
            // goes wrong in the copy shows when it is read. Eight interleaved runs of `e2e --
            // durable-accept` took 1.27 us a message (median), against 1.44 the other way round.
            let sum = checksum(&message.content);
            body[content_at..end].copy_from_slice(&message.content);
            let offset = frame.offset + (head_len + content_at) as u32;
            let padded = end.next_multiple_of(8).min(body.len());
            body[end..padded].fill(0);
            content_at = padded;
            (offset, sum)
        });
        let record = MessageRecord {
            id: message.id,
            received_at: message.received_at,
            generation: frame.stamp.generation,
            recipients: message.recipients,
            envelope_len: message.envelope.len() as u32,
            content_offset,
            content_len: message.content.len() as u32,
            content_sum,
        };
        record.encode(&message.envelope, &mut head[at..at + record.head_bytes()]);
        slots.push(slot_of(&record, frame.offset + at as u32));
        at += record.head_bytes();
    }
    body[content_at..].fill(0);
    let total_len = (head_len + body.len()) as u32;
    let header = header_of(
        frame,
        head_len as u32,
        total_len,
        messages.len(),
        last.ids.len(),
    );
    header.seal(head);
}

/// The slot of a record whose head is at `at`.
pub(super) fn slot_of(record: &MessageRecord, at: u32) -> Slot {
    Slot {
        sequence: record.id.sequence(),
        record: at,
        content: record.content_offset,
        len: record.content_len,
        next: 0,
        pending: u16::try_from(record.recipients).unwrap_or(u16::MAX),
        attempts: 0,
        head_units: head_units(record.head_bytes()),
        state: SlotState::Live,
        several: record.recipients > 1,
    }
}

fn header_of(
    frame: &Frame,
    head_len: u32,
    total_len: u32,
    records: usize,
    roster: usize,
) -> GroupHeader {
    GroupHeader {
        stamp: frame.stamp,
        sequence: frame.sequence,
        offset: frame.offset,
        head_len,
        total_len,
        records: records as u32,
        roster: roster as u32,
        proven: frame.proven,
        state_proven: frame.state_proven,
        next_sequence: frame.next_sequence,
    }
}

/// Bytes on disk of a group of `records` state records.
pub(super) fn state_group_bytes(records: usize) -> usize {
    (GROUP_HEADER_BYTES + records * STATE_RECORD_BYTES).next_multiple_of(BLOCK_BYTES)
}

/// Lays out state records as one group into `block`, which has the group's exact length.
pub(super) fn lay_out_state(frame: &Frame, records: &[StateRecord], block: &mut Block) {
    let head_len = GROUP_HEADER_BYTES + records.len() * STATE_RECORD_BYTES;
    let total_len = block.len() as u32;
    let (head, rest) = block.split_at_mut(head_len);
    let (slots, _) = head[GROUP_HEADER_BYTES..].as_chunks_mut::<STATE_RECORD_BYTES>();
    for (slot, record) in slots.iter_mut().zip(records) {
        record.encode(slot);
    }
    rest.fill(0);
    header_of(frame, head_len as u32, total_len, records.len(), 0).seal(head);
}

/// Blocks that are reused, so that steady traffic neither allocates nor faults pages in.
#[derive(Debug, Default)]
pub(super) struct BlockPool {
    blocks: Vec<Block>,
}

impl BlockPool {
    /// Blocks kept: what both logs may have in flight.
    const KEPT: usize = 2 * limits::SPOOL_GROUPS_IN_FLIGHT_MAX as usize;

    /// A block of `len` bytes of unknown content.
    pub(super) fn take(&mut self, len: usize) -> Block {
        if len > limits::SPOOL_GROUP_BYTES_MAX {
            return Block::zeroed(len);
        }
        let mut block = self.blocks.pop().unwrap_or_else(|| {
            let (one, others) = Block::together(limits::SPOOL_GROUP_BYTES_MAX);
            self.blocks = others;
            one
        });
        block.set_len(len);
        block
    }

    /// Takes a block back.
    pub(super) fn give(&mut self, block: Block) {
        if block.capacity() == limits::SPOOL_GROUP_BYTES_MAX && self.blocks.len() < Self::KEPT {
            self.blocks.push(block);
        }
    }
}
