//! spool::recover::last - the last writes before a crash, which no later group vouches for.
//!
//! What: those that are whole are written again, and the contents of all of them are checked.

use std::ops::Range;

use crate::message::MessageId;
use crate::spool::format::{Log, MessageRecord, SEGMENT_HEADER_BYTES, checksum};
use crate::spool::index::{Place, Slot, SlotState};

use super::{Check, Damage, Recovery, location};

/// A range to be written again as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewrite {
    /// Which log.
    pub log: Log,
    /// Which segment.
    pub segment: u32,
    /// Offsets in its file.
    pub range: Range<usize>,
    group: Option<u64>,
}

impl Recovery {
    /// The groups of the last writes that are whole, and the headers of segments without any.
    /// Before the spool may be used each must be written again, as it is, where it is: after a kill
    /// what can be read need not be on stable storage yet, and a power cut could take back what
    /// this life believed in. Writing the same bytes cannot tear.
    #[must_use]
    pub fn rewrites(&mut self) -> Vec<Rewrite> {
        let (mail, state) = (self.proven, self.state_proven);
        let mut out = Vec::new();
        for log in [Log::State, Log::Message] {
            out.extend(self.empty(log).into_iter().map(|number| Rewrite {
                log,
                segment: number,
                range: 0..SEGMENT_HEADER_BYTES,
                group: None,
            }));
        }
        for (log, number, range, sequence, doubted) in std::mem::take(&mut self.tail) {
            let proven = if log == Log::State { state } else { mail };
            if sequence >= proven || doubted {
                out.push(Rewrite {
                    log,
                    segment: number,
                    range,
                    group: Some(sequence),
                });
            }
        }
        out
    }

    /// Segments without a group, as far as they were scanned.
    pub(super) fn empty(&self, log: Log) -> Vec<u32> {
        let all = self.order(log).into_iter().map(|(number, _)| number);
        all.filter(|number| !self.filled.contains(&(log, *number)))
            .collect()
    }

    /// The contents that must be checked before the spool can be trusted: those of the last writes
    /// and those of groups that lie where they were not written.
    pub fn checks(&mut self) -> Vec<Check> {
        let proven = self.proven;
        let spool = &self.spool;
        let list = std::mem::take(&mut self.unproven);
        let mut checks: Vec<Check> = list
            .into_iter()
            .filter(|entry| entry.group >= proven || entry.misplaced || entry.void)
            .filter_map(|entry| {
                let slot = spool.slot(entry.place)?;
                if !matches!(slot.state, SlotState::Live | SlotState::Moved) {
                    return None;
                }
                let head = slot.record as usize;
                let content = slot.content as usize;
                Some(Check {
                    segment: entry.place.segment,
                    head: head..head + slot.head_units as usize * 64,
                    content: content..content + slot.len as usize,
                    place: entry.place,
                    misplaced: entry.misplaced && entry.group < proven && !entry.void,
                    group: entry.group,
                })
            })
            .collect();
        // Spare copies first: one that is not whole must not stand in for another.
        let is_live = |check: &Check| {
            spool
                .slot(check.place)
                .is_some_and(|slot| slot.state == SlotState::Live)
        };
        checks.sort_by_key(is_live);
        checks
    }

    /// A range could not be read, and so not be written again: the next recovery must not take it
    /// for proven.
    pub fn unrewritten(&mut self, rewrite: &Rewrite) {
        let at = rewrite.range.start as u32;
        self.unreadable(rewrite.log, rewrite.segment, at);
        if let (Log::Message, Some(group)) = (rewrite.log, rewrite.group) {
            self.spool.void(rewrite.segment, group);
        }
    }

    /// A content could not be read: the next recovery must check it again.
    pub fn unchecked(&mut self, check: &Check) {
        self.unreadable(Log::Message, check.segment, check.content.start as u32);
        self.spool.void(check.segment, check.group);
        // Nobody vouches for it: a record that can be read counts instead, or it would be used
        // again as the spare one.
        let slot = self.spool.slot(check.place).copied();
        let live = slot.filter(|slot| slot.state == SlotState::Live);
        if let Some(slot) = live
            && let Some(other) = self.other_record(slot.sequence)
            && !self.spool.mail.at(other.segment).unread
        {
            self.spool
                .count_instead(check.place, slot, other, SlotState::Moved);
        }
    }

    /// Checks a content in `file`, all bytes of its segment.
    pub fn check(&mut self, check: &Check, file: &[u8]) {
        let generation = self.spool.mail.at(check.place.segment).stamp.generation;
        let good = file
            .get(check.head.start..)
            .and_then(|bytes| MessageRecord::decode(bytes, generation))
            .is_some_and(|(record, _)| {
                file.get(check.content.clone())
                    .is_some_and(|c| checksum(c) == record.content_sum)
            });
        if good {
            return;
        }
        let Some(slot) = self.spool.slot(check.place).copied() else {
            return;
        };
        // Until this is on disk, the next recovery must check the group again.
        self.spool.void(check.segment, check.group);
        if slot.state == SlotState::Moved {
            self.spool.mail.at(check.segment).slots[check.place.slot as usize].state =
                SlotState::Torn;
            return;
        }
        if let Some(other) = self.other_record(slot.sequence) {
            // A copy forward that was torn: the message lives where it was.
            self.spool
                .count_instead(check.place, slot, other, SlotState::Torn);
            return;
        }
        let id = MessageId::new(self.spool.config.shard, slot.sequence);
        self.report.add(if check.misplaced {
            Damage::Message(id, location(check.segment, &slot))
        } else {
            Damage::Torn(id)
        });
        self.spool.end_unproven(check.place, slot.sequence);
    }

    /// Another record of a message, in a segment that can be read if there is one.
    fn other_record(&self, sequence: u64) -> Option<Place> {
        let moved = |slot: &Slot| slot.sequence == sequence && slot.state == SlotState::Moved;
        let all = self.spool.mail.iter().filter_map(|(segment, s)| {
            let slot = s.slots.iter().position(moved)? as u32;
            Some((s.unread, Place { segment, slot }))
        });
        all.min_by_key(|(unread, _)| *unread)
            .map(|(_, place)| place)
    }
}
