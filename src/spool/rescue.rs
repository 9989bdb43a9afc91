//! spool::rescue - another record of a message, where the one that counts is damaged.
//!
//! What: a message that was copied forward has two records until the segment of the original is
//! recycled. Whichever counts, the other one serves when it turns out to be damaged.
//! Why this way: the index moves to the record that is whole, as it does when a message is copied,
//! so that its segment is kept from then on. Whoever walks the index when it starts, with
//! [`Spool::load_at`], sees each message once although it may move meanwhile.

use std::collections::BTreeSet;

use crate::message::MessageId;

use super::index::{Place, Slot, SlotState};
use super::segment::Phase;
use super::state::{Extent, Spool, Waiting};

/// How far the messages that recovery found are with whoever takes them over.
#[derive(Debug, Default)]
pub(super) struct Loading {
    /// The next place to be looked at.
    next: Place,
    /// Messages that were shown and are ahead of it again.
    shown: BTreeSet<u64>,
}

/// What [`Spool::use_record`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// Nothing: the message or the record is not where it was.
    No,
    /// That record counts from now on.
    Yes,
    /// It does, and [`Spool::load_at`] is past it, but never showed the message: it is to be asked
    /// for by its id.
    Unseen,
}

impl Spool {
    /// A message that recovery found, by its place, for the one who takes all of them over, in the
    /// order of places, until [`Spool::enable_reclaim`]: each message once.
    pub fn load_at(&mut self, segment: u32, slot: u32) -> Option<Waiting> {
        let waiting = self.waiting_at(segment, slot);
        let Some(loading) = &mut self.loading else {
            return waiting;
        };
        loading.next = Place {
            segment,
            slot: slot.saturating_add(1),
        };
        waiting.filter(|(id, ..)| !loading.shown.contains(&id.sequence()))
    }

    /// Other records of a waiting message: those that were copied forward, until their segments are
    /// recycled, and copies that never came to count. Rare, so that looking at every slot will do.
    #[must_use]
    pub fn other_records(&self, id: MessageId) -> Vec<(Place, Extent)> {
        let mut out = Vec::new();
        if self.find(id).is_none() {
            return out;
        }
        for (number, segment) in self.mail.iter() {
            // Not where a new header may be on its way, or on the disk although its write failed.
            let written = matches!(segment.phase, Phase::Active | Phase::Sealed);
            if !written || (segment.suspect && segment.live_slots == 0) {
                continue;
            }
            for (slot, at) in segment.slots.iter().zip(0..) {
                if slot.state == SlotState::Moved && slot.sequence == id.sequence() {
                    let place = Place {
                        segment: number,
                        slot: at,
                    };
                    out.push((place, self.extent(segment, place)));
                }
            }
        }
        out
    }

    /// Whether records of messages may be where recovery could not read.
    #[must_use]
    pub fn hides_mail(&self) -> bool {
        self.mail.count(|segment| segment.unread) > 0
    }

    /// The record of a waiting message at `damaged` is that, and the one at `whole`, out of
    /// [`Spool::other_records`], is not: that one counts from now on, if both still are what they
    /// were.
    pub fn use_record(
        &mut self,
        id: MessageId,
        damaged: &Extent,
        whole: (Place, Extent),
    ) -> Served {
        let sequence = id.sequence();
        let counts = self.find(id).is_some_and(|found| found == *damaged);
        let place = self.place(sequence).filter(|_| counts);
        let slot = place.and_then(|place| Some((place, *self.slot(place)?)));
        let (Some((old, slot)), true) = (slot, self.other_records(id).contains(&whole)) else {
            return Served::No;
        };
        self.damaged += 1;
        self.count_instead(old, slot, whole.0, SlotState::Torn)
    }

    /// The live slot at `old` is in `state` from now on, and the record at `new` counts.
    pub(super) fn count_instead(
        &mut self,
        old: Place,
        slot: Slot,
        new: Place,
        state: SlotState,
    ) -> Served {
        let sequence = slot.sequence;
        self.mail.at(old.segment).retire(old.slot, state);
        self.mail
            .at(new.segment)
            .revive(new.slot, slot.pending, slot.next, slot.attempts);
        self.admit(sequence, new);
        let Some(loading) = &mut self.loading else {
            return Served::Yes;
        };
        match (old < loading.next, new < loading.next) {
            (true, false) => {
                loading.shown.insert(sequence);
                Served::Yes
            }
            (false, true) if !loading.shown.remove(&sequence) => Served::Unseen,
            _ => Served::Yes,
        }
    }
}
