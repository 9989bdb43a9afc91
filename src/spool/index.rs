//! spool::index - which messages wait, and where they lie.
//!
//! What: a slot of 32 bytes per record in each segment, a hash table from message sequence to slot
//! for the live ones, and a side table for messages of several recipients that are partly settled.
//! Why this way: the slots of a segment are one allocation that goes when the segment goes; the
//! table holds only (segment, slot) pairs and compares with the slot, so that a queued message of
//! one recipient costs 32 bytes plus 11 to 22 of table. The table is cut in 64 parts that grow one
//! by one, so that no single insertion stalls the shard.

use std::collections::HashMap;

use crate::time::Wall;

use super::types::{PendingRecipient, SettlementKind};

/// What a slot's record is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SlotState {
    /// Some recipient waits, and this is the copy that counts.
    Live,
    /// Settled, or never acknowledged; remembered until the segment is recycled.
    Dead,
    /// Copied forward; the other copy counts.
    Moved,
    /// Not whole, while another copy counts.
    Torn,
    /// Not whole, and another copy may be where nothing could be read: no tombstone yet.
    Unsure,
}

/// One record of the message log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) sequence: u64,
    /// Byte offset of the record's head.
    pub(super) record: u32,
    /// Byte offset of the content.
    pub(super) content: u32,
    /// Bytes of content.
    pub(super) len: u32,
    /// When the only recipient is due, in seconds since 1970; zero when it was never tried.
    pub(super) next: u32,
    /// Recipients not settled.
    pub(super) pending: u16,
    /// Attempts for the only recipient.
    pub(super) attempts: u16,
    /// Bytes of record and envelope, in units of 64, rounded up.
    pub(super) head_units: u16,
    pub(super) state: SlotState,
    /// Whether the message has more than one recipient.
    pub(super) several: bool,
}

const _: () = assert!(size_of::<Slot>() == 32);

impl Slot {
    /// Bytes of the record: head and content.
    pub(super) fn bytes(&self) -> u64 {
        u64::from(self.head_units) * 64 + u64::from(self.len)
    }
}

/// `bytes` of a head in the units of a slot.
pub(super) fn head_units(bytes: usize) -> u16 {
    u16::try_from(bytes.div_ceil(64)).unwrap_or(u16::MAX)
}

/// A date in whole seconds, rounded up, as slots keep it.
pub(super) fn to_seconds(at: Wall) -> u32 {
    u32::try_from(at.0.div_ceil(1000)).unwrap_or(u32::MAX)
}

/// The date of a slot.
pub(super) fn from_seconds(seconds: u32) -> Wall {
    Wall(u64::from(seconds) * 1000)
}

/// Where a slot is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub(super) segment: u32,
    pub(super) slot: u32,
}

const PARTS: usize = 64;
const EMPTY: Place = Place {
    segment: u32::MAX,
    slot: u32::MAX,
};

/// Live messages by sequence. The caller says which sequence a place has; the table stores none.
#[derive(Debug, Default)]
pub(super) struct Table {
    parts: Vec<Part>,
    len: usize,
}

#[derive(Debug, Default)]
struct Part {
    places: Vec<Place>,
    used: usize,
}

fn mix(sequence: u64) -> u64 {
    // Fibonacci hashing after a fold: sequences are consecutive, and chosen by us, not by a peer.
    (sequence ^ (sequence >> 29)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl Table {
    pub(super) fn new() -> Self {
        Self {
            parts: (0..PARTS).map(|_| Part::default()).collect(),
            len: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn bytes(&self) -> usize {
        self.parts
            .iter()
            .map(|part| part.places.capacity() * size_of::<Place>())
            .sum()
    }

    pub(super) fn get(&self, sequence: u64, of: impl Fn(Place) -> u64) -> Option<Place> {
        let hash = mix(sequence);
        let part = &self.parts[(hash >> 58) as usize];
        let at = part.find(hash, sequence, of)?;
        Some(part.places[at])
    }

    /// Adds or replaces.
    pub(super) fn insert(&mut self, sequence: u64, place: Place, of: impl Fn(Place) -> u64) {
        let hash = mix(sequence);
        let part = &mut self.parts[(hash >> 58) as usize];
        if let Some(at) = part.find(hash, sequence, &of) {
            part.places[at] = place;
            return;
        }
        if (part.used + 1) * 4 > part.places.len() * 3 {
            part.grow(of);
        }
        part.put(hash, place);
        self.len += 1;
    }

    pub(super) fn remove(&mut self, sequence: u64, of: impl Fn(Place) -> u64) -> Option<Place> {
        let hash = mix(sequence);
        let part = &mut self.parts[(hash >> 58) as usize];
        let at = part.find(hash, sequence, &of)?;
        let place = part.places[at];
        part.take(at, of);
        self.len -= 1;
        Some(place)
    }
}

impl Part {
    fn mask(&self) -> usize {
        self.places.len() - 1
    }

    fn find(&self, hash: u64, sequence: u64, of: impl Fn(Place) -> u64) -> Option<usize> {
        if self.places.is_empty() {
            return None;
        }
        let mut at = home(hash, self.mask());
        while self.places[at] != EMPTY {
            if of(self.places[at]) == sequence {
                return Some(at);
            }
            at = (at + 1) & self.mask();
        }
        None
    }

    fn put(&mut self, hash: u64, place: Place) {
        let mut at = home(hash, self.mask());
        while self.places[at] != EMPTY {
            at = (at + 1) & self.mask();
        }
        self.places[at] = place;
        self.used += 1;
    }

    fn grow(&mut self, of: impl Fn(Place) -> u64) {
        let len = (self.places.len() * 2).max(16);
        let old = std::mem::replace(&mut self.places, vec![EMPTY; len]);
        self.used = 0;
        for place in old {
            if place != EMPTY {
                self.put(mix(of(place)), place);
            }
        }
    }

    /// Empties `hole` and moves later members of its run back, so that no search stops short.
    fn take(&mut self, mut hole: usize, of: impl Fn(Place) -> u64) {
        let mask = self.mask();
        let mut at = hole;
        loop {
            at = (at + 1) & mask;
            if self.places[at] == EMPTY {
                break;
            }
            let wanted = home(mix(of(self.places[at])), mask);
            if (at.wrapping_sub(wanted) & mask) >= (at.wrapping_sub(hole) & mask) {
                self.places[hole] = self.places[at];
                hole = at;
            }
        }
        self.places[hole] = EMPTY;
        self.used -= 1;
    }
}

fn home(hash: u64, mask: usize) -> usize {
    // The top six bits chose the part; the next ones choose the place.
    ((hash >> 20) as usize) & mask
}

/// The recipients of one message with several, once some settlement came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Progress {
    total: u32,
    pending: u32,
    settled: Vec<u64>,
    /// Deferred recipients, by index.
    deferred: Vec<PendingRecipient>,
}

/// What a settlement changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing: repeated, superseded, or about nobody.
    None,
    /// The recipient still waits, with more attempts.
    Deferred,
    /// The recipient is done; others wait.
    Settled,
    /// The last recipient is done.
    Finished,
}

impl Progress {
    pub(super) fn new(total: u32) -> Self {
        let words = (total as usize).div_ceil(64);
        Self {
            total,
            pending: total,
            settled: vec![0; words],
            deferred: Vec::new(),
        }
    }

    /// Recipients of the message.
    pub(super) fn total(&self) -> u32 {
        self.total
    }

    /// Whether there is such a recipient, not at its end.
    pub(super) fn waits(&self, recipient: u32) -> bool {
        recipient < self.total && !self.is_settled(recipient)
    }

    fn is_settled(&self, recipient: u32) -> bool {
        self.settled[recipient as usize / 64] >> (recipient % 64) & 1 == 1
    }

    pub(super) fn apply(&mut self, recipient: u32, kind: SettlementKind) -> Change {
        if recipient >= self.total || self.is_settled(recipient) {
            return Change::None;
        }
        let found = self.deferred.binary_search_by_key(&recipient, |d| d.index);
        if let SettlementKind::Deferred { attempts, next } = kind {
            let next = from_seconds(to_seconds(next));
            let new = PendingRecipient {
                index: recipient,
                attempts,
                next,
            };
            match found {
                Ok(at) if supersedes(&self.deferred[at], attempts, next) => self.deferred[at] = new,
                Ok(_) => return Change::None,
                Err(at) => self.deferred.insert(at, new),
            }
            return Change::Deferred;
        }
        if let Ok(at) = found {
            self.deferred.remove(at);
        }
        self.settled[recipient as usize / 64] |= 1 << (recipient % 64);
        self.pending -= 1;
        if self.pending == 0 {
            Change::Finished
        } else {
            Change::Settled
        }
    }

    /// Those that wait, in order.
    pub(super) fn waiting(&self) -> Vec<PendingRecipient> {
        let mut deferred = self.deferred.iter().peekable();
        let mut out = Vec::with_capacity(self.pending as usize);
        for index in 0..self.total {
            if self.is_settled(index) {
                continue;
            }
            let known = deferred.next_if(|d| d.index == index);
            out.push(known.copied().unwrap_or(PendingRecipient {
                index,
                attempts: 0,
                next: Wall(0),
            }));
        }
        out
    }

    /// Settled recipients as runs (first, count).
    pub(super) fn settled_runs(&self) -> Vec<(u32, u32)> {
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for index in (0..self.total).filter(|index| self.is_settled(*index)) {
            match runs.last_mut() {
                Some((first, count)) if *first + *count == index => *count += 1,
                _ => runs.push((index, 1)),
            }
        }
        runs
    }

    /// Those that were tried and wait.
    pub(super) fn deferred(&self) -> &[PendingRecipient] {
        &self.deferred
    }

    pub(super) fn bytes(&self) -> usize {
        size_of::<Self>()
            + self.settled.capacity() * 8
            + self.deferred.capacity() * size_of::<PendingRecipient>()
    }
}

/// Whether a deferral beats what is known: more attempts do, then the later date. A total order, so
/// that replaying records in any order ends the same.
pub(super) fn supersedes(known: &PendingRecipient, attempts: u16, next: Wall) -> bool {
    (known.attempts, known.next) < (attempts, next)
}

/// Progress of messages with several recipients; few at a time.
pub(super) type ProgressTable = HashMap<u64, Box<Progress>>;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{Change, Place, Progress, Table, Wall};
    use crate::spool::types::SettlementKind;

    // The table against a model, through growth, replacement and removal in every order.
    #[test]
    fn table_agrees_with_a_map() {
        let mut random = 7u64;
        let mut next = || {
            random = random
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            random >> 33
        };
        let mut slots: Vec<u64> = Vec::new();
        let mut table = Table::new();
        let mut model: BTreeMap<u64, u32> = BTreeMap::new();
        for step in 0..60_000u32 {
            let sequence = next() % 9_000;
            if next() % 5 < 2 {
                let got = table.remove(sequence, |p| slots[p.slot as usize]);
                assert_eq!(got.map(|p| p.slot), model.remove(&sequence));
            } else {
                slots.push(sequence);
                let place = Place {
                    segment: 1,
                    slot: step_slot(&slots),
                };
                table.insert(sequence, place, |p| slots[p.slot as usize]);
                model.insert(sequence, place.slot);
            }
            if step % 97 == 0 {
                assert_eq!(table.len(), model.len());
            }
        }
        for sequence in 0..9_000 {
            let got = table
                .get(sequence, |p| slots[p.slot as usize])
                .map(|p| p.slot);
            assert_eq!(got, model.get(&sequence).copied());
        }
    }

    fn step_slot(slots: &[u64]) -> u32 {
        u32::try_from(slots.len() - 1).expect("a short test")
    }

    // Settlements of one message in every order of application end in the same state.
    #[test]
    fn progress_does_not_depend_on_order() {
        let steps = [
            (
                0,
                SettlementKind::Deferred {
                    attempts: 1,
                    next: Wall(5_000),
                },
            ),
            (
                0,
                SettlementKind::Deferred {
                    attempts: 2,
                    next: Wall(4_000),
                },
            ),
            (
                1,
                SettlementKind::Deferred {
                    attempts: 1,
                    next: Wall(1_000),
                },
            ),
            (1, SettlementKind::Delivered),
        ];
        let mut ends = Vec::new();
        for rotation in 0..steps.len() {
            let mut progress = Progress::new(3);
            for at in 0..steps.len() {
                let (recipient, kind) = steps[(at + rotation) % steps.len()];
                progress.apply(recipient, kind);
            }
            ends.push(progress);
        }
        assert!(ends.windows(2).all(|pair| pair[0] == pair[1]));
        let waiting = ends[0].waiting();
        assert_eq!(waiting.len(), 2);
        assert_eq!((waiting[0].attempts, waiting[0].next), (2, Wall(4_000)));
        assert_eq!(ends[0].settled_runs(), vec![(1, 1)]);
        assert_eq!(
            ends[0].clone().apply(9, SettlementKind::Failed),
            Change::None
        );
        assert_eq!(
            ends[0].clone().apply(1, SettlementKind::Failed),
            Change::None
        );
    }
}
