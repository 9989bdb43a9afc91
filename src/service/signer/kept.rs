//! signer::kept - signatures of messages that wait for their next attempt.
//!
//! What: a map from message to signature fields, bounded in bytes; the one used longest ago goes
//! first. Why this way: a deferred message is read again from the spool, and signing it again costs
//! a hundred times what keeping a kilobyte does. What is not kept is made again: nothing is lost.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

use crate::message::MessageId;

/// What an entry costs besides its bytes: both maps' slots and the allocation's head, about.
const ENTRY_BYTES: usize = 128;

/// A message, and which form of it.
pub(super) type Key = (MessageId, bool);

/// Signature fields by message and form.
#[derive(Debug)]
pub(super) struct Kept {
    bytes_max: usize,
    bytes: usize,
    turn: u64,
    by_message: HashMap<Key, (u64, Bytes)>,
    by_turn: BTreeMap<u64, Key>,
}

impl Kept {
    /// Nothing yet, and never more than `bytes_max`.
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            bytes: 0,
            turn: 0,
            by_message: HashMap::new(),
            by_turn: BTreeMap::new(),
        }
    }

    /// The fields of a message, which are then the last to go.
    pub(super) fn get(&mut self, message: Key) -> Option<Bytes> {
        let (turn, fields) = self.by_message.get_mut(&message)?;
        self.by_turn.remove(turn);
        self.turn += 1;
        *turn = self.turn;
        self.by_turn.insert(self.turn, message);
        Some(fields.clone())
    }

    /// Keeps the fields of a message; those of others go where there is no room.
    pub(super) fn put(&mut self, message: Key, fields: &[u8]) {
        let cost = fields.len() + ENTRY_BYTES;
        if cost > self.bytes_max {
            return;
        }
        self.remove(message);
        while self.bytes + cost > self.bytes_max {
            let Some((_, oldest)) = self.by_turn.first_key_value() else {
                break;
            };
            self.remove(*oldest);
        }
        self.turn += 1;
        self.bytes += cost;
        // A copy, because what the signer made has room to spare and would be held as a whole.
        self.by_message
            .insert(message, (self.turn, Bytes::copy_from_slice(fields)));
        self.by_turn.insert(self.turn, message);
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        *self = Self {
            turn: self.turn,
            ..Self::new(self.bytes_max)
        };
    }

    fn remove(&mut self, message: Key) {
        if let Some((turn, fields)) = self.by_message.remove(&message) {
            self.by_turn.remove(&turn);
            self.bytes -= fields.len() + ENTRY_BYTES;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{ENTRY_BYTES, Kept};
    use crate::message::MessageId;

    // Full: the one used longest ago goes, and nothing is counted twice.
    #[test]
    fn the_least_recently_used_goes_first() {
        let mut kept = Kept::new(3 * (ENTRY_BYTES + 10));
        let message = |number| (MessageId::new(0, number), false);
        for number in 0..3 {
            kept.put(message(number), &[b'x'; 10]);
        }
        assert!(kept.get(message(0)).is_some());
        kept.put(message(2), &[b'y'; 10]);
        kept.put(message(3), &[b'z'; 10]);
        assert_eq!(kept.get(message(1)), None);
        assert_eq!(kept.get(message(2)).as_deref(), Some(&[b'y'; 10][..]));
        assert!(kept.get(message(0)).is_some() && kept.get(message(3)).is_some());
        assert_eq!((kept.bytes, kept.by_turn.len()), (kept.bytes_max, 3));
    }

    // What could never fit is not kept, and does not push out the others.
    #[test]
    fn the_bound_holds() {
        let mut kept = Kept::new(1_000);
        kept.put((MessageId::new(0, 1), false), &[0; 10]);
        kept.put((MessageId::new(0, 2), true), &[0; 1_000]);
        assert!(kept.get((MessageId::new(0, 1), false)).is_some());
        assert_eq!(kept.get((MessageId::new(0, 2), true)), None);
        for number in 0..10_000 {
            kept.put(
                (MessageId::new(0, number), false),
                &vec![0; (number % 300) as usize],
            );
            assert!(kept.bytes <= kept.bytes_max);
            assert_eq!(kept.by_turn.len(), kept.by_message.len());
        }
        kept.clear();
        assert_eq!(
            (kept.bytes, kept.by_turn.len(), kept.by_message.len()),
            (0, 0, 0)
        );
    }
}
