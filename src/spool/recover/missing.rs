//! spool::recover::missing - groups that should be there and are not whole.

use std::collections::BTreeSet;

use crate::limits;
use crate::message::MessageId;
use crate::spool::commit::roster_parts;
use crate::spool::format::Log;
use crate::spool::index::SlotState;
use crate::spool::state::Void;

use super::{Damage, Recovery, has_run};

impl Recovery {
    /// Groups that are not whole: their messages by id where the next group's roster lists them.
    /// Each is noted as void, so that it is reported once.
    pub(super) fn report_missing(&mut self) {
        for (log, number) in std::mem::take(&mut self.short) {
            // A large message's file that a crash left half written holds no group: no damage. Any
            // other file has its length before its header.
            let segment = self.spool.mail.get(number);
            let damaged = segment.is_some_and(|s| !s.large || !s.slots.is_empty());
            if log == Log::State || damaged {
                self.report.add(Damage::Length(log, number));
            }
        }
        for (id, location) in std::mem::take(&mut self.misfits) {
            // Unless another record of the message serves.
            if self.spool.find(id).is_none() {
                self.report.add(Damage::Message(id, location));
            }
        }
        for (sequence, segment, offset) in std::mem::take(&mut self.torn_states) {
            if sequence < self.state_proven {
                self.report.add(Damage::Settlements { segment, offset });
            } else {
                let generation = self.spool.state.at(segment).stamp.generation;
                let torn = Void {
                    group: sequence,
                    generation,
                    segment,
                };
                self.spool.state_torn.push(torn);
            }
        }
        let known = std::mem::take(&mut self.voids);
        let explained: BTreeSet<u64> = known.iter().map(|void| void.group).collect();
        let spool = &self.spool;
        let mut known: BTreeSet<Void> = known.into_iter().filter(|v| spool.may_hold(v)).collect();
        self.spool.voids.extend(known.iter().copied());
        self.spool.voids.sort_unstable();
        self.spool.voids.dedup();
        for (group, mut roster) in std::mem::take(&mut self.rosters) {
            roster.ids.sort_unstable();
            roster.ids.dedup();
            let (generation, segment) = (roster.generation, roster.segment);
            let void = Void {
                group,
                generation,
                segment,
            };
            if !self.is_current(&void) || known.contains(&void) {
                let unread = self.spool.mail.get(segment).is_some_and(|s| s.unread);
                if unread && !self.is_vouched(segment, group) {
                    self.mentioned.insert(void);
                }
                continue;
            }
            self.spool.tails.push(roster.clone());
            if has_run(&self.whole, group) {
                continue;
            }
            self.broken.retain(|(_, sequence)| *sequence != group);
            self.spool.void(segment, group);
            known.insert(void);
            for entry in roster.ids {
                self.report_lost(entry, group, segment);
            }
        }
        self.report_broken(&known, &explained);
    }

    /// Groups that are missing or not whole, and that no roster explains. `explained` are those
    /// that were not whole, wherever that was.
    fn report_broken(&mut self, known: &BTreeSet<Void>, explained: &BTreeSet<u64>) {
        for (segment, missing) in std::mem::take(&mut self.holes) {
            if self.spool.mail.get(segment).is_none_or(|s| s.unread) {
                // What lies there could not be read, and is looked at again.
                continue;
            }
            // Which of the missing groups lay in the hole is unknown, as some may have been in the
            // segments of large messages. One that is known to be torn explains it.
            let generation = self.spool.mail.at(segment).stamp.generation;
            let torn = |group| {
                known.contains(&Void {
                    group,
                    generation,
                    segment,
                })
            };
            if !missing.clone().any(torn) {
                let unexplained = missing.filter(|group| !explained.contains(group));
                self.broken
                    .extend(unexplained.map(|group| (segment, group)));
            }
        }
        self.broken.sort_unstable();
        self.broken.dedup();
        for (segment, group) in std::mem::take(&mut self.broken) {
            let Some(generation) = self.spool.mail.get(segment).map(|s| s.stamp.generation) else {
                continue;
            };
            let void = Void {
                group,
                generation,
                segment,
            };
            if has_run(&self.whole, group) || known.contains(&void) {
                continue;
            }
            self.spool.void(segment, group);
            if self.is_vouched(segment, group) {
                self.report.add(Damage::Group {
                    segment,
                    sequence: group,
                });
            }
        }
    }

    fn is_current(&self, void: &Void) -> bool {
        let segment = self.spool.mail.get(void.segment);
        // Nothing can be said about what could not be read.
        segment.is_some_and(|s| s.stamp.generation == void.generation && !s.unread)
    }

    fn report_lost(&mut self, entry: u64, group: u64, segment: u32) {
        let (sequence, recipients) = roster_parts(entry);
        let spool = &mut self.spool;
        spool.next_sequence = spool.next_sequence.max(sequence.saturating_add(1));
        if spool.place(sequence).is_some() || self.replay.is_dead(sequence) {
            return;
        }
        let settled = self.replay.of(sequence);
        let mut ended: Vec<u32> = Vec::new();
        for (_, first, count, kind) in &self.replay.settled[settled] {
            if kind.is_terminal() {
                ended.extend(*first..first.saturating_add((*count).min(limits::RECIPIENTS_MAX)));
            }
        }
        ended.sort_unstable();
        ended.dedup();
        let slots = &spool.mail.at(segment).slots;
        let known = slots.iter().any(|s| {
            let ended = matches!(s.state, SlotState::Dead | SlotState::Unsure);
            s.sequence == sequence && ended
        });
        if known || ended.len() >= recipients as usize {
            return;
        }
        let id = MessageId::new(spool.config.shard, sequence);
        self.report.add(if self.is_vouched(segment, group) {
            Damage::Lost(id)
        } else {
            Damage::Torn(id)
        });
    }
}
