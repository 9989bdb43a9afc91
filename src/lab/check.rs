//! lab::check - the books: what was acknowledged against what arrived.
//!
//! What: every recipient of every acknowledged message must have arrived, or be notified as failed,
//! or still wait in the spool; at most once; unchanged.
//! Why this way: a million messages are checked in about a second and 40 MB: the acknowledged ones
//! are sorted once, each arrival is one binary search and two bits. Messages whose reply never came
//! may arrive too, and are checked for damage and duplicates like the others, but cannot be lost.

use std::io;

use crate::lab::fingerprint::Fingerprint;
use crate::lab::identity::LoadId;
use crate::lab::ledger::{Arrival, ArrivalKind, Sent, SentKind};
use crate::time::Mono;

/// The outcome: counts of recipients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Verdict {
    /// Of acknowledged messages.
    pub acknowledged: u64,
    /// Those that got their message.
    pub delivered: u64,
    /// Those that did not, but whose failure was notified.
    pub bounced: u64,
    /// Those that neither got it nor were notified, and are in the spool.
    pub deferred: u64,
    /// The rest.
    pub lost: u64,
    /// Deliveries after one that the sink answered with 250.
    pub duplicates: u64,
    /// Deliveries after ones that the sink left unanswered: it asked for them.
    pub repeated: u64,
    /// Recipients that got the message, with a 250 of the sink, and a failure notification.
    pub contradicted: u64,
    /// Deliveries with other content than what was injected.
    pub corrupt: u64,
    /// Deliveries of messages whose injector never got a reply: legitimate.
    pub unacknowledged: u64,
    /// Deliveries that no injector knows of.
    pub unknown: u64,
}

impl Verdict {
    /// Recipients without an outcome that the sender has seen.
    #[must_use]
    pub fn outstanding(&self) -> u64 {
        self.deferred + self.lost
    }
}

/// A message's line in the books.
#[derive(Debug, Clone, Copy)]
struct Line {
    id: LoadId,
    fingerprint: Fingerprint,
    at: Mono,
    /// Where its recipients' marks start.
    first: u32,
    recipients: u16,
    acknowledged: bool,
}

/// Marks of one recipient.
const DELIVERED: u8 = 1;
const BOUNCED: u8 = 2;
const WAITING: u8 = 4;
const ANSWERED: u8 = 8;

/// The books of one experiment.
#[derive(Debug)]
pub struct Books {
    lines: Vec<Line>,
    marks: Vec<u8>,
    verdict: Verdict,
}

impl Books {
    /// Opens the books with what the injectors recorded.
    ///
    /// # Errors
    /// The first unreadable record; or more recipients than 32 bits count.
    pub fn open(sent: impl Iterator<Item = io::Result<Sent>>) -> io::Result<Self> {
        let mut lines = Vec::new();
        let mut total = 0_u32;
        for record in sent {
            let record = record?;
            lines.push(Line {
                id: record.id,
                fingerprint: record.fingerprint,
                at: record.at,
                first: total,
                recipients: record.recipients,
                acknowledged: record.kind == SentKind::Acknowledged,
            });
            total = total
                .checked_add(u32::from(record.recipients))
                .ok_or_else(|| {
                    io::Error::other("more than 4 billion recipients cannot be checked at once")
                })?;
        }
        lines.sort_unstable_by_key(|line| line.id);
        if lines.windows(2).any(|pair| pair[0].id == pair[1].id) {
            // An id is used once, whatever happens: otherwise nothing below means anything.
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "an id was used twice",
            ));
        }
        Ok(Self {
            lines,
            marks: vec![0; total as usize],
            verdict: Verdict::default(),
        })
    }

    fn line(&self, id: LoadId) -> Option<Line> {
        let at = self.lines.binary_search_by_key(&id, |line| line.id).ok()?;
        Some(self.lines[at])
    }

    fn mark(&mut self, line: &Line, recipient: u16) -> Option<&mut u8> {
        if recipient >= line.recipients {
            return None;
        }
        self.marks
            .get_mut(line.first as usize + usize::from(recipient))
    }

    /// Enters one arrival. Returns the time from its acknowledgement for a first delivery of an
    /// acknowledged message: zero where it arrived before the acknowledgement was read.
    pub fn arrived(&mut self, arrival: &Arrival) -> Option<std::time::Duration> {
        let Some(line) = self.line(arrival.id) else {
            self.verdict.unknown += 1;
            return None;
        };
        let Some(mark) = self.mark(&line, arrival.recipient) else {
            self.verdict.unknown += 1;
            return None;
        };
        let before = *mark;
        match arrival.kind {
            ArrivalKind::Delayed => return None,
            ArrivalKind::Bounced => {
                *mark |= BOUNCED;
                return None;
            }
            ArrivalKind::Delivered => *mark |= DELIVERED | ANSWERED,
            ArrivalKind::Unanswered => *mark |= DELIVERED,
        }
        if arrival.fingerprint != line.fingerprint {
            self.verdict.corrupt += 1;
        }
        let first = before & DELIVERED == 0;
        if before & ANSWERED != 0 {
            self.verdict.duplicates += 1;
        } else if !first {
            self.verdict.repeated += 1;
        }
        if !line.acknowledged {
            self.verdict.unacknowledged += u64::from(first);
            return None;
        }
        first.then(|| arrival.at.since(line.at))
    }

    /// Enters a recipient that is still in the spool.
    pub fn waits(&mut self, id: LoadId, recipient: u16) {
        if let Some(line) = self.line(id)
            && let Some(mark) = self.mark(&line, recipient)
        {
            *mark |= WAITING;
        }
    }

    /// The outcome of what was entered so far.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        let mut verdict = self.verdict;
        for line in &self.lines {
            let first = line.first as usize;
            for mark in &self.marks[first..first + usize::from(line.recipients)] {
                verdict.contradicted += u64::from(mark & ANSWERED != 0 && mark & BOUNCED != 0);
                if !line.acknowledged {
                    continue;
                }
                verdict.acknowledged += 1;
                if mark & DELIVERED != 0 {
                    verdict.delivered += 1;
                } else if mark & BOUNCED != 0 {
                    verdict.bounced += 1;
                } else if mark & WAITING != 0 {
                    verdict.deferred += 1;
                } else {
                    verdict.lost += 1;
                }
            }
        }
        let settled = verdict.delivered + verdict.bounced;
        assert!(settled + verdict.deferred + verdict.lost == verdict.acknowledged);
        verdict
    }

    /// Some acknowledged recipients that are lost, for the operator to look for.
    pub fn lost(&self) -> impl Iterator<Item = (LoadId, u16)> + '_ {
        self.lines
            .iter()
            .filter(|line| line.acknowledged)
            .flat_map(move |line| {
                let first = line.first as usize;
                (0..line.recipients)
                    .filter(move |index| self.marks[first + usize::from(*index)] == 0)
                    .map(|index| (line.id, index))
            })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::lab::ledger::tests::{arrival, sent};

    fn books(records: &[Sent]) -> Books {
        Books::open(records.iter().map(|record| Ok(*record))).unwrap()
    }

    // Each way a recipient can end, once: the sum is what was acknowledged.
    #[test]
    fn every_recipient_ends_somewhere() {
        let mut books = books(&[sent(3), sent(1), sent(2)]);
        assert_eq!(
            books.arrived(&arrival(1, 0)),
            Some(Duration::from_nanos(500))
        );
        books.arrived(&arrival(1, 1));
        books.arrived(&Arrival {
            kind: ArrivalKind::Bounced,
            ..arrival(2, 0)
        });
        books.waits(LoadId::new(7, 2), 1);
        books.arrived(&Arrival {
            kind: ArrivalKind::Delayed,
            ..arrival(3, 0)
        });
        // Delivered, and its settlement not yet written: in the spool too, but not deferred.
        books.waits(LoadId::new(7, 1), 1);
        let verdict = books.verdict();
        let expected = Verdict {
            acknowledged: 6,
            delivered: 2,
            bounced: 1,
            deferred: 1,
            lost: 2,
            ..Verdict::default()
        };
        assert_eq!(verdict, expected);
        assert_eq!(verdict.outstanding(), 3);
        let lost: Vec<_> = books.lost().collect();
        assert_eq!(lost, [(LoadId::new(7, 3), 0), (LoadId::new(7, 3), 1)]);
    }

    // A second delivery is a duplicate, unless the sink kept silent; damage shows each time.
    #[test]
    fn duplicates_and_damage_are_counted() {
        let mut books = books(&[sent(1), sent(2)]);
        books.arrived(&Arrival {
            kind: ArrivalKind::Unanswered,
            ..arrival(1, 0)
        });
        books.arrived(&Arrival {
            kind: ArrivalKind::Unanswered,
            ..arrival(1, 0)
        });
        books.arrived(&arrival(1, 0));
        books.arrived(&arrival(2, 0));
        assert_eq!(books.arrived(&arrival(2, 0)), None);
        books.arrived(&Arrival {
            fingerprint: [9; 16],
            ..arrival(2, 1)
        });
        books.arrived(&Arrival {
            kind: ArrivalKind::Bounced,
            ..arrival(2, 1)
        });
        let verdict = books.verdict();
        assert_eq!(
            (verdict.duplicates, verdict.repeated, verdict.corrupt),
            (1, 2, 1)
        );
        assert_eq!(
            (verdict.delivered, verdict.contradicted, verdict.lost),
            (3, 1, 1)
        );
    }

    // What was never acknowledged cannot be lost, but its damage and its duplicates count.
    #[test]
    fn unanswered_messages_are_held_to_the_rest() {
        let unanswered = Sent {
            kind: SentKind::Unanswered,
            ..sent(5)
        };
        let mut books = books(&[unanswered, sent(6)]);
        assert_eq!(books.arrived(&arrival(5, 0)), None);
        books.arrived(&Arrival {
            fingerprint: [0; 16],
            ..arrival(5, 0)
        });
        books.arrived(&arrival(99, 0));
        books.arrived(&arrival(6, 2));
        let verdict = books.verdict();
        assert_eq!((verdict.acknowledged, verdict.lost), (2, 2));
        assert_eq!(
            (verdict.unacknowledged, verdict.duplicates, verdict.corrupt),
            (1, 1, 1)
        );
        assert_eq!(verdict.unknown, 2);
        let twice = [sent(1), sent(1)];
        assert!(Books::open(twice.iter().map(|record| Ok(*record))).is_err());
    }
}
