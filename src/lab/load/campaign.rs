//! lab::load::campaign - who sends what and when. Pure.
//!
//! What: hands out messages, on schedule where there is a rate, and takes back what must be tried
//! again. A message that is tried again gets a new number, so that a number is sent at most once.

use std::collections::VecDeque;
use std::time::Duration;

use crate::time::Mono;

/// One message to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Work {
    /// Its number; used once.
    pub(super) number: u64,
    /// When it should have started.
    pub(super) due: Mono,
    /// Tries before this one that were answered 4xx.
    pub(super) tries: u32,
}

/// What a free session does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Send this.
    Send(Work),
    /// Ask again then.
    Wait(Mono),
    /// There will be no more work, unless another session gives some back.
    Finished,
}

/// The work that is left.
#[derive(Debug)]
pub(super) struct Campaign {
    start: Mono,
    /// Nanoseconds between two messages.
    interval: Option<f64>,
    /// Messages of the schedule that have started.
    started: u64,
    messages: u64,
    next_number: u64,
    again: VecDeque<(Mono, u32)>,
    stopped: bool,
}

impl Campaign {
    /// `messages` of them from `start` on, `rate` per second.
    pub(super) fn new(messages: u64, rate: Option<f64>, start: Mono) -> Self {
        let interval = rate.map(|rate| 1e9 / rate);
        Self {
            start,
            interval,
            started: 0,
            messages,
            next_number: 0,
            again: VecDeque::new(),
            stopped: false,
        }
    }

    /// The next thing to do.
    pub(super) fn next(&mut self, now: Mono) -> Next {
        if self.stopped {
            return Next::Finished;
        }
        if let Some((due, tries)) = self.again.front().copied()
            && due <= now
        {
            self.again.pop_front();
            return Next::Send(self.work(due, tries));
        }
        if self.started < self.messages {
            let due = match self.interval {
                // Rounding by a few nanoseconds after years does not matter here.
                Some(nanos) => self
                    .start
                    .after(Duration::from_nanos((self.started as f64 * nanos) as u64)),
                None => now,
            };
            if due <= now {
                self.started += 1;
                return Next::Send(self.work(due, 0));
            }
            let retry = self.again.front().map_or(Mono::NEVER, |(due, _)| *due);
            return Next::Wait(due.min(retry));
        }
        match self.again.front() {
            Some((due, _)) => Next::Wait(*due),
            None => Next::Finished,
        }
    }

    fn work(&mut self, due: Mono, tries: u32) -> Work {
        let number = self.next_number;
        self.next_number += 1;
        Work { number, due, tries }
    }

    /// Takes back a message to be tried again at `at`. All delays are equal, so the line is in
    /// order.
    pub(super) fn again(&mut self, at: Mono, tries: u32) {
        self.again.push_back((at, tries));
    }

    /// Takes back a message that was never sent, for the next free session.
    pub(super) fn put_back(&mut self, work: Work) {
        self.again.push_front((work.due, work.tries));
    }

    /// No more work for anybody.
    pub(super) fn stop(&mut self) {
        self.stopped = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send(number: u64, due: u64, tries: u32) -> Next {
        Next::Send(Work {
            number,
            due: Mono(due),
            tries,
        })
    }

    // Without a rate everything is due at once; what comes back gets a new number and its turn.
    #[test]
    fn work_is_handed_out_once() {
        let mut campaign = Campaign::new(2, None, Mono(0));
        assert_eq!(campaign.next(Mono(5)), send(0, 5, 0));
        campaign.again(Mono(100), 1);
        assert_eq!(campaign.next(Mono(6)), send(1, 6, 0));
        assert_eq!(campaign.next(Mono(7)), Next::Wait(Mono(100)));
        campaign.put_back(Work {
            number: 1,
            due: Mono(6),
            tries: 0,
        });
        assert_eq!(campaign.next(Mono(7)), send(2, 6, 0));
        assert_eq!(campaign.next(Mono(100)), send(3, 100, 1));
        assert_eq!(campaign.next(Mono(100)), Next::Finished);
        campaign.again(Mono(0), 2);
        campaign.stop();
        assert_eq!(campaign.next(Mono(100)), Next::Finished);
    }

    // With a rate messages are due on schedule, however late they are asked for.
    #[test]
    fn a_rate_is_a_schedule() {
        let mut campaign = Campaign::new(3, Some(1000.0), Mono(1_000));
        assert_eq!(campaign.next(Mono(1_000)), send(0, 1_000, 0));
        assert_eq!(campaign.next(Mono(1_001)), Next::Wait(Mono(1_001_000)));
        campaign.again(Mono(500_000), 1);
        assert_eq!(campaign.next(Mono(1_002)), Next::Wait(Mono(500_000)));
        assert_eq!(campaign.next(Mono(9_000_000)), send(1, 500_000, 1));
        assert_eq!(campaign.next(Mono(9_000_000)), send(2, 1_001_000, 0));
        assert_eq!(campaign.next(Mono(9_000_000)), send(3, 2_001_000, 0));
        assert_eq!(campaign.next(Mono(9_000_000)), Next::Finished);
    }
}
