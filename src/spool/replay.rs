//! spool::replay - what the state log says of messages, in the order of their sequences.

use std::ops::Range;

use super::types::SettlementKind;

/// What the state log says, sorted.
#[derive(Debug, Default)]
pub(super) struct Replay {
    /// Sequence, first recipient, recipients, what became of them.
    pub(super) settled: Vec<(u64, u32, u32, SettlementKind)>,
    /// Runs of sequences, first to end.
    pub(super) dead: Vec<(u64, u64)>,
    hint: usize,
}

impl Replay {
    pub(super) fn sort(&mut self) {
        self.settled.sort_unstable_by_key(|record| record.0);
        self.hint = 0;
        self.dead.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::new();
        for (first, end) in self.dead.drain(..) {
            match merged.last_mut() {
                Some(last) if first <= last.1 => last.1 = last.1.max(end),
                _ => merged.push((first, end)),
            }
        }
        self.dead = merged;
    }

    pub(super) fn is_dead(&self, sequence: u64) -> bool {
        let at = self.dead.partition_point(|run| run.0 <= sequence);
        at > 0 && sequence < self.dead[at - 1].1
    }

    /// The settlements of a message, as a range of `settled`. Messages come almost in order, so the
    /// search starts where the last one ended.
    pub(super) fn of(&mut self, sequence: u64) -> Range<usize> {
        let near = &self.settled[self.hint..self.settled.len().min(self.hint + 64)];
        let before = self.hint == 0 || self.settled[self.hint - 1].0 < sequence;
        let start = match near.iter().position(|record| record.0 >= sequence) {
            Some(skip) if before => self.hint + skip,
            _ => self.settled.partition_point(|record| record.0 < sequence),
        };
        let count = self.settled[start..]
            .iter()
            .take_while(|r| r.0 == sequence)
            .count();
        self.hint = start + count;
        start..start + count
    }
}
