//! connection - what the brain knows about each connection, from `Dial` to its end.
//!
//! What: [`Connections`], a slab. A connection is on two kinds of lists: its path's list of those
//! that have a free slot (taken from the front: the last used one again, so that the others grow
//! idle and close), and the queue's list of idle ones, the longest idle one first.

use crate::time::Mono;

use super::event::ConnectionId;
use super::ready::{Links, Nodes};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The place is free.
    Gone,
    Dialing,
    Open,
    /// `Close` was said; `Closed` is awaited.
    Closing,
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) generation: u32,
    pub(super) phase: Phase,
    pub(super) path: u32,
    /// Transactions at once.
    pub(super) slots: u32,
    pub(super) free: u32,
    /// Messages assigned so far.
    pub(super) assigned: u32,
    /// Gets nothing more: closed as soon as nothing is assigned to it. Counted by its path.
    pub(super) leaving: bool,
    pub(super) idle_since: Mono,
    available: Links,
    idle: Links,
}

#[derive(Debug)]
pub(super) struct Connections {
    places: Vec<Connection>,
    vacant: Vec<u32>,
}

impl Connections {
    pub(super) fn new() -> Self {
        Self {
            places: Vec::new(),
            vacant: Vec::new(),
        }
    }

    /// Connections that exist, dialing ones included.
    pub(super) fn len(&self) -> usize {
        self.places.len() - self.vacant.len()
    }

    /// Those that are about to end; for tests, O(n).
    #[cfg(test)]
    pub(super) fn leaving(&self) -> usize {
        let leaves = |place: &&Connection| place.phase != Phase::Gone && place.leaving;
        self.places.iter().filter(leaves).count()
    }

    /// A new one, dialing.
    pub(super) fn insert(&mut self, path: u32) -> ConnectionId {
        let fresh = Connection {
            generation: 0,
            phase: Phase::Dialing,
            path,
            slots: 0,
            free: 0,
            assigned: 0,
            leaving: false,
            idle_since: Mono(0),
            available: Links::DETACHED,
            idle: Links::DETACHED,
        };
        let Some(index) = self.vacant.pop() else {
            // At most QUEUE_CONNECTIONS_TOTAL_MAX of them, which fits; asserted by the conversion.
            let index = u32::try_from(self.places.len()).unwrap_or(u32::MAX);
            assert!(index < u32::MAX - 1, "connections are bounded");
            self.places.push(fresh);
            return ConnectionId {
                index,
                generation: 0,
            };
        };
        let place = &mut self.places[index as usize];
        assert!(
            place.phase == Phase::Gone,
            "the free list names only free places"
        );
        let generation = place.generation;
        *place = Connection {
            generation,
            ..fresh
        };
        ConnectionId { index, generation }
    }

    pub(super) fn remove(&mut self, index: u32) {
        let place = &mut self.places[index as usize];
        assert!(place.phase != Phase::Gone, "removed twice");
        assert!(
            place.available == Links::DETACHED,
            "it leaves its path's list first"
        );
        assert!(
            place.idle == Links::DETACHED,
            "it leaves the idle list first"
        );
        place.phase = Phase::Gone;
        place.generation = place.generation.wrapping_add(1);
        self.vacant.push(index);
    }

    /// The place of a connection, unless it is gone.
    pub(super) fn find(&self, id: ConnectionId) -> Option<u32> {
        let place = self.places.get(id.index as usize)?;
        (place.generation == id.generation && place.phase != Phase::Gone).then_some(id.index)
    }

    pub(super) fn id(&self, index: u32) -> ConnectionId {
        ConnectionId {
            index,
            generation: self.at(index).generation,
        }
    }

    pub(super) fn at(&self, index: u32) -> &Connection {
        &self.places[index as usize]
    }

    pub(super) fn at_mut(&mut self, index: u32) -> &mut Connection {
        &mut self.places[index as usize]
    }

    pub(super) fn is_available(&self, index: u32) -> bool {
        self.at(index).available != Links::DETACHED
    }

    pub(super) fn is_idle(&self, index: u32) -> bool {
        self.at(index).idle != Links::DETACHED
    }
}

/// The links of a path's list of connections with a free slot.
pub(super) struct Available<'a>(pub(super) &'a mut Connections);

impl Nodes for Available<'_> {
    fn links(&mut self, index: u32) -> &mut Links {
        &mut self.0.at_mut(index).available
    }
}

/// The links of the queue's list of idle connections.
pub(super) struct Idle<'a>(pub(super) &'a mut Connections);

impl Nodes for Idle<'_> {
    fn links(&mut self, index: u32) -> &mut Links {
        &mut self.0.at_mut(index).idle
    }
}
