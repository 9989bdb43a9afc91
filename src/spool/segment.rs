//! spool::segment - the life of a segment file.
//!
//! What: what the core knows of each file, and the table of files of one log.
//!
//! ```text
//! Making -> Stamping -> Free -> Active -> Sealed -> Releasing -> Stamping (recycled)
//!                                                            \-> Removing
//! ```

use super::format::{SEGMENT_HEADER_BYTES, Stamp};
use super::index::{Slot, SlotState};

/// Where in its life a segment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The driver makes the file.
    Making,
    /// A new header is being written.
    Stamping,
    /// Ready to be written to.
    Free,
    /// Groups are appended to it.
    Active,
    /// Full, or no longer to be written to.
    Sealed,
    /// Nothing in it counts; waiting until no reader holds a map of it.
    Releasing,
    /// The driver removes the file.
    Removing,
    /// Neither its header nor any group in it can be read: evidence for the operator, not touched.
    LeftAlone,
}

/// One segment.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) stamp: Stamp,
    pub(super) len: u64,
    pub(super) phase: Phase,
    /// Made for one large message; removed afterwards.
    pub(super) large: bool,
    /// A write to it failed: no completion of it is trusted any more, and it is never reused.
    pub(super) suspect: bool,
    /// Recovery could not read all of it: neither recycled nor removed in this life.
    pub(super) unread: bool,
    /// Copying a message out of it failed: not to be tried again.
    pub(super) stuck: bool,
    /// Where the next group goes.
    pub(super) write_offset: u64,
    /// Writes not completed.
    pub(super) in_flight: u32,
    /// Copies of its messages that have not ended. Until then it stays, spent or not: its slots are
    /// what keeps the tombstones of messages that die meanwhile.
    pub(super) copying: u32,
    pub(super) slots: Vec<Slot>,
    pub(super) live_slots: u32,
    pub(super) live_bytes: u64,
}

impl Segment {
    pub(super) fn new(stamp: Stamp, len: u64, phase: Phase) -> Self {
        Self {
            stamp,
            len,
            phase,
            large: false,
            suspect: false,
            unread: false,
            stuck: false,
            write_offset: SEGMENT_HEADER_BYTES as u64,
            in_flight: 0,
            copying: 0,
            slots: Vec::new(),
            live_slots: 0,
            live_bytes: 0,
        }
    }

    /// Bytes that groups can still take.
    pub(super) fn room(&self) -> u64 {
        self.len.saturating_sub(self.write_offset)
    }

    /// Adds a slot and says its place in the segment.
    pub(super) fn push(&mut self, slot: Slot) -> u32 {
        // A segment has at most 2^30 bytes and a record at least 64: it fits.
        let at = self.slots.len() as u32;
        if slot.state == SlotState::Live {
            self.live_slots += 1;
            self.live_bytes += slot.bytes();
        }
        self.slots.push(slot);
        at
    }

    /// A live slot stops counting.
    pub(super) fn retire(&mut self, at: u32, state: SlotState) {
        let slot = &mut self.slots[at as usize];
        assert_eq!(slot.state, SlotState::Live, "only a live slot retires");
        slot.state = state;
        let bytes = slot.bytes();
        assert!(
            self.live_slots > 0 && self.live_bytes >= bytes,
            "live counts are exact"
        );
        self.live_slots -= 1;
        self.live_bytes -= bytes;
    }

    /// A moved slot counts again, with what is known of its only recipient.
    pub(super) fn revive(&mut self, at: u32, pending: u16, next: u32, attempts: u16) {
        let slot = &mut self.slots[at as usize];
        assert_eq!(slot.state, SlotState::Moved, "only a moved slot revives");
        (slot.pending, slot.next, slot.attempts) = (pending, next, attempts);
        slot.state = SlotState::Live;
        let bytes = slot.bytes();
        self.live_slots += 1;
        self.live_bytes += bytes;
    }

    /// Whether nothing in it counts any more.
    pub(super) fn is_spent(&self) -> bool {
        let idle = self.in_flight == 0 && self.copying == 0 && !self.unread;
        self.phase == Phase::Sealed && idle && self.live_slots == 0
    }
}

/// The segments of one log, by number.
#[derive(Debug)]
pub(super) struct Segments {
    list: Vec<Option<Box<Segment>>>,
    pub(super) active: Option<u32>,
    /// Sequence of the next group.
    pub(super) group_sequence: u64,
    /// Groups in flight.
    pub(super) groups_in_flight: u32,
}

impl Segments {
    pub(super) fn new() -> Self {
        Self {
            list: Vec::new(),
            active: None,
            group_sequence: 1,
            groups_in_flight: 0,
        }
    }

    pub(super) fn get(&self, number: u32) -> Option<&Segment> {
        self.list.get(number as usize)?.as_deref()
    }

    pub(super) fn get_mut(&mut self, number: u32) -> Option<&mut Segment> {
        self.list.get_mut(number as usize)?.as_deref_mut()
    }

    /// The segment with this number. Precondition: there is one.
    pub(super) fn at(&mut self, number: u32) -> &mut Segment {
        match self.get_mut(number) {
            Some(segment) => segment,
            None => unreachable!("segment {number} was named by a place that outlived it"),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Segment)> {
        self.list
            .iter()
            .enumerate()
            .filter_map(|(number, segment)| {
                // Numbers are given out by `insert`, which counts in u32.
                segment.as_deref().map(|segment| (number as u32, segment))
            })
    }

    /// Adds a segment under a number that no file has.
    pub(super) fn insert_new(&mut self, segment: Segment) -> u32 {
        let number = self
            .list
            .iter()
            .position(Option::is_none)
            .unwrap_or(self.list.len()) as u32;
        self.insert(number, segment);
        number
    }

    /// Adds a segment under its number.
    pub(super) fn insert(&mut self, number: u32, segment: Segment) {
        let at = number as usize;
        if self.list.len() <= at {
            self.list.resize_with(at + 1, || None);
        }
        assert!(self.list[at].is_none(), "a number names one file");
        self.list[at] = Some(Box::new(segment));
    }

    pub(super) fn remove(&mut self, number: u32) {
        if let Some(entry) = self.list.get_mut(number as usize) {
            *entry = None;
        }
    }

    pub(super) fn count(&self, wanted: impl Fn(&Segment) -> bool) -> u32 {
        self.iter().filter(|(_, segment)| wanted(segment)).count() as u32
    }

    pub(super) fn find(&self, wanted: impl Fn(&Segment) -> bool) -> Option<u32> {
        self.iter()
            .find(|(_, segment)| wanted(segment))
            .map(|(number, _)| number)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.iter().map(|(_, segment)| segment.len).sum()
    }

    /// Ends writing to the active segment.
    pub(super) fn seal_active(&mut self) {
        if let Some(number) = self.active.take() {
            let segment = self.at(number);
            segment.phase = Phase::Sealed;
            segment.slots.shrink_to_fit();
        }
    }

    /// A group of `bytes` begins at the returned offset of the active segment.
    pub(super) fn reserve(&mut self, number: u32, bytes: u64) -> u64 {
        self.groups_in_flight += 1;
        let segment = self.at(number);
        assert!(segment.room() >= bytes, "a group fits its segment");
        assert!(!segment.suspect, "nothing is written to a suspect segment");
        let offset = segment.write_offset;
        segment.write_offset += bytes;
        segment.in_flight += 1;
        offset
    }
}
