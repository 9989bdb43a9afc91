//! entry - one destination of one message, and the slab that all entries live in.
//!
//! What: [`Entry`] is 64 bytes with an 8-byte payload: one cache line, because the wheel touches
//! millions of them. [`Slab`] keeps them in chunks of fixed size, so that growing never copies and
//! never needs twice the memory, and hands out ids with a generation, so that a late event for an
//! entry that is gone is recognised and ignored.
//!
//! | field | bytes | |
//! |---|---|---|
//! | message | 8 | queue id |
//! | payload | 8 | the driver's, e.g. a shared body |
//! | recipients | 16 | one index inline, or a boxed list |
//! | born, due | 4 + 4 | ticks of the wheel |
//! | links | 4 + 4 | the one list that the entry is on |
//! | path | 4 | index of the egress path |
//! | generation | 4 | |
//! | attempts, slot | 2 + 2 | |
//! | state | 1 | |

use std::fmt;

use crate::limits::QUEUE_ENTRIES_MAX;
use crate::message::MessageId;

use super::ready::{Links, Nodes};

/// Names one entry of one queue; stale once the entry is gone, and then never names another one
/// (the generation has 32 bits).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId {
    pub(super) index: u32,
    pub(super) generation: u32,
}

impl EntryId {
    /// The id as one number, e.g. for the token of an SMTP transaction.
    #[must_use]
    pub fn to_bits(self) -> u64 {
        (u64::from(self.generation) << 32) | u64::from(self.index)
    }

    /// The inverse of [`EntryId::to_bits`].
    #[must_use]
    pub fn from_bits(bits: u64) -> Self {
        let [a, b, c, d, e, f, g, h] = bits.to_be_bytes();
        Self {
            index: u32::from_be_bytes([e, f, g, h]),
            generation: u32::from_be_bytes([a, b, c, d]),
        }
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.index, self.generation)
    }
}

/// Which recipients of the message an entry is for: indexes into the envelope, in order.
#[derive(Clone, PartialEq, Eq)]
pub struct Recipients(Which);

#[derive(Clone, PartialEq, Eq)]
enum Which {
    One(u32),
    Many(Box<[u32]>),
}

impl Recipients {
    /// One recipient; allocates nothing.
    #[must_use]
    pub fn one(index: u32) -> Self {
        Self(Which::One(index))
    }

    /// Several recipients; `None` for an empty list, since an entry for nobody can never end.
    #[must_use]
    pub fn many(indexes: &[u32]) -> Option<Self> {
        match indexes {
            [] => None,
            [index] => Some(Self::one(*index)),
            more => Some(Self(Which::Many(more.into()))),
        }
    }

    /// The indexes; never empty.
    #[must_use]
    pub fn as_slice(&self) -> &[u32] {
        match &self.0 {
            Which::One(index) => std::slice::from_ref(index),
            Which::Many(indexes) => indexes,
        }
    }

    /// How many; at least 1.
    #[must_use]
    pub fn count(&self) -> usize {
        self.as_slice().len()
    }
}

impl fmt::Debug for Recipients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.as_slice()).finish()
    }
}

/// Where an entry is; each state has its own list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// On no list; only while it moves from one to another inside `apply`.
    Moving,
    /// On its path's ready list: goes out as soon as a connection takes it.
    Ready,
    /// On the wheel: waits for its next attempt.
    Deferred,
    /// Assigned to a connection.
    InFlight,
    /// Too old: handed to the driver, which makes the report and then settles it.
    Expired,
}

/// One destination of one message.
#[derive(Debug)]
pub struct Entry<T> {
    pub(super) message: MessageId,
    pub(super) payload: T,
    pub(super) recipients: Recipients,
    pub(super) born: u32,
    pub(super) due: u32,
    pub(super) links: Links,
    pub(super) path: u32,
    pub(super) generation: u32,
    pub(super) attempts: u16,
    pub(super) slot: u16,
    /// Times that it went back without an attempt, since the last one that counts.
    pub(super) returns: u8,
    pub(super) state: State,
}

const _: () = assert!(size_of::<Recipients>() == 16);
const _: () = assert!(size_of::<Entry<u64>>() == 64);
const _: () = assert!(size_of::<Entry<Option<std::sync::Arc<u8>>>>() == 64);
// A vacant place costs no tag: it hides in the values that `State` never has.
const _: () = assert!(size_of::<Place<u64>>() == 64);

impl<T> Entry<T> {
    /// The message.
    #[must_use]
    pub fn message(&self) -> MessageId {
        self.message
    }

    /// The recipients that still need this entry.
    #[must_use]
    pub fn recipients(&self) -> &Recipients {
        &self.recipients
    }

    /// Attempts made so far; saturates at 65,535.
    #[must_use]
    pub fn attempts(&self) -> u16 {
        self.attempts
    }

    /// What the driver keeps with it.
    #[must_use]
    pub fn payload(&self) -> &T {
        &self.payload
    }

    /// Where it is.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }
}

#[derive(Debug)]
enum Place<T> {
    Vacant { next: u32, generation: u32 },
    Used(Entry<T>),
}

/// Entries per chunk: 16,384, 1 MiB with an 8-byte payload. Small enough that an idle node pays
/// little, large enough that ten million entries are 611 chunks.
const CHUNK: usize = 1 << CHUNK_BITS;
const CHUNK_BITS: u32 = 14;
const NIL: u32 = u32::MAX;
const _: () = assert!(QUEUE_ENTRIES_MAX < NIL - 1);

/// All entries of one queue, at stable places.
#[derive(Debug)]
pub(super) struct Slab<T> {
    chunks: Vec<Vec<Place<T>>>,
    vacant: u32,
    places: u32,
    used: u32,
}

impl<T> Slab<T> {
    pub(super) fn new() -> Self {
        Self {
            chunks: Vec::new(),
            vacant: NIL,
            places: 0,
            used: 0,
        }
    }

    /// Entries in use.
    pub(super) fn len(&self) -> u32 {
        self.used
    }

    /// Puts `entry` at a free place; its generation and links are set here.
    pub(super) fn insert(&mut self, mut entry: Entry<T>) -> EntryId {
        assert!(
            self.used < QUEUE_ENTRIES_MAX,
            "the driver must refuse mail before this"
        );
        self.used += 1;
        entry.links = Links::DETACHED;
        if self.vacant == NIL {
            let index = self.places;
            entry.generation = 0;
            self.places += 1;
            if index as usize & (CHUNK - 1) == 0 {
                self.chunks.push(Vec::with_capacity(CHUNK));
            }
            self.chunks[index as usize >> CHUNK_BITS].push(Place::Used(entry));
            return EntryId {
                index,
                generation: 0,
            };
        }
        let index = self.vacant;
        let place = self.place_mut(index);
        let Place::Vacant { next, generation } = *place else {
            unreachable!("the free list names only vacant places");
        };
        entry.generation = generation;
        *place = Place::Used(entry);
        self.vacant = next;
        EntryId { index, generation }
    }

    /// Takes the entry at `index` out; its id is stale from now on.
    pub(super) fn remove(&mut self, index: u32) -> Entry<T> {
        let next = self.vacant;
        let place = self.place_mut(index);
        let generation = match place {
            Place::Used(entry) => entry.generation.wrapping_add(1),
            Place::Vacant { .. } => unreachable!("removed twice"),
        };
        let Place::Used(entry) = std::mem::replace(place, Place::Vacant { next, generation })
        else {
            unreachable!("it was in use a line ago");
        };
        assert!(
            entry.links == Links::DETACHED,
            "an entry leaves its list before it goes"
        );
        self.vacant = index;
        self.used -= 1;
        entry
    }

    /// The entry, unless it is gone.
    pub(super) fn get(&self, id: EntryId) -> Option<&Entry<T>> {
        match self
            .chunks
            .get(id.index as usize >> CHUNK_BITS)?
            .get(id.index as usize & (CHUNK - 1))?
        {
            Place::Used(entry) if entry.generation == id.generation => Some(entry),
            _ => None,
        }
    }

    /// The entry at a place that one of our lists names.
    pub(super) fn at(&self, index: u32) -> &Entry<T> {
        match &self.chunks[index as usize >> CHUNK_BITS][index as usize & (CHUNK - 1)] {
            Place::Used(entry) => entry,
            Place::Vacant { .. } => unreachable!("lists name only entries in use"),
        }
    }

    pub(super) fn at_mut(&mut self, index: u32) -> &mut Entry<T> {
        match self.place_mut(index) {
            Place::Used(entry) => entry,
            Place::Vacant { .. } => unreachable!("lists name only entries in use"),
        }
    }

    pub(super) fn id(&self, index: u32) -> EntryId {
        EntryId {
            index,
            generation: self.at(index).generation,
        }
    }

    /// Every entry in use, in no useful order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (EntryId, &Entry<T>)> {
        let places = self.chunks.iter().flatten();
        places.zip(0u32..).filter_map(|(place, index)| match place {
            Place::Used(entry) => Some((
                EntryId {
                    index,
                    generation: entry.generation,
                },
                entry,
            )),
            Place::Vacant { .. } => None,
        })
    }

    fn place_mut(&mut self, index: u32) -> &mut Place<T> {
        &mut self.chunks[index as usize >> CHUNK_BITS][index as usize & (CHUNK - 1)]
    }
}

impl<T> Nodes for Slab<T> {
    fn links(&mut self, index: u32) -> &mut Links {
        &mut self.at_mut(index).links
    }
}

#[cfg(test)]
pub(super) fn blank<T>(payload: T) -> Entry<T> {
    Entry {
        message: MessageId::new(0, 1),
        payload,
        recipients: Recipients::one(0),
        born: 0,
        due: 0,
        links: Links::DETACHED,
        path: 0,
        generation: 0,
        attempts: 0,
        slot: 0,
        returns: 0,
        state: State::Moving,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A place is used again, but the old id never finds the new entry.
    #[test]
    fn stale_ids_find_nothing() {
        let mut slab = Slab::new();
        let first = slab.insert(blank(7u64));
        assert_eq!(slab.get(first).map(|e| e.payload), Some(7));
        assert_eq!(slab.remove(first.index).payload, 7);
        assert!(slab.get(first).is_none());
        let second = slab.insert(blank(8u64));
        assert_eq!(second.index, first.index);
        assert!(slab.get(first).is_none());
        assert_eq!(slab.get(second).map(|e| e.payload), Some(8));
        assert_eq!(EntryId::from_bits(second.to_bits()), second);
        assert!(
            slab.get(EntryId {
                index: 4_000_000,
                generation: 0
            })
            .is_none()
        );
    }

    // Filling over several chunks, emptying and filling again allocates no further chunk.
    #[test]
    fn chunks_are_reused() {
        let mut slab = Slab::new();
        let count = CHUNK as u32 * 2 + 5;
        for round in 0..3 {
            let ids: Vec<EntryId> = (0..count)
                .map(|n| slab.insert(blank(u64::from(n))))
                .collect();
            assert_eq!(slab.len(), count);
            assert_eq!(slab.iter().count(), count as usize);
            for (n, id) in (0u64..).zip(&ids) {
                assert_eq!(slab.get(*id).map(|e| e.payload), Some(n), "round {round}");
            }
            for id in &ids {
                slab.remove(id.index);
            }
        }
        assert_eq!(slab.chunks.len(), 3);
        assert!(slab.chunks.iter().all(|chunk| chunk.capacity() == CHUNK));
    }

    // An entry for nobody could never end, so it cannot be made.
    #[test]
    fn recipients_are_never_empty() {
        assert_eq!(Recipients::many(&[]), None);
        assert_eq!(Recipients::many(&[3]), Some(Recipients::one(3)));
        let list = Recipients::many(&[3, 5]).map(|r| r.as_slice().to_vec());
        assert_eq!(list, Some(vec![3, 5]));
    }
}
