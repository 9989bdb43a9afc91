//! lab::sink::outbox - replies on their way, held back as long as the site's latency asks.

use std::collections::VecDeque;
use std::time::Duration;

use crate::lab::personality::Personality;
use crate::time::Mono;

/// Replies that have not left yet, in order.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    waiting: VecDeque<(Mono, Vec<u8>)>,
    last: Mono,
}

impl Outbox {
    /// Takes the replies in `out`, which is emptied.
    pub(super) fn push(&mut self, out: &mut Vec<u8>, personality: &Personality, now: Mono) {
        if out.is_empty() {
            return;
        }
        let replies = std::mem::take(out);
        if let Some(pause) = personality.tarpit {
            for reply in split(&replies) {
                self.last = self.last.max(now).after(pause);
                self.waiting.push_back((self.last, reply.to_vec()));
            }
            return;
        }
        let due = now.after(personality.delay.unwrap_or(Duration::ZERO));
        self.waiting.push_back((due, replies));
    }

    /// What may leave now.
    pub(super) fn take_due(&mut self, now: Mono) -> Vec<u8> {
        let mut due = Vec::new();
        while let Some((at, _)) = self.waiting.front()
            && *at <= now
            && let Some((_, mut reply)) = self.waiting.pop_front()
        {
            if due.is_empty() {
                due = reply
            } else {
                due.append(&mut reply)
            }
        }
        due
    }

    /// When the next reply may leave.
    pub(super) fn next_due(&self) -> Option<Mono> {
        self.waiting.front().map(|(at, _)| *at)
    }
}

/// The single replies of `text`: a reply ends with the line that has no hyphen behind its code.
fn split(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let mut len = 0;
        while len < rest.len() {
            let more = rest.get(len + 3) == Some(&b'-');
            len = memchr::memchr(b'\n', &rest[len..]).map_or(rest.len(), |at| len + at + 1);
            if !more {
                break;
            }
        }
        let (reply, after) = rest.split_at(len);
        rest = after;
        (!reply.is_empty()).then_some(reply)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    // Without latency replies leave at once; with a delay, in parallel; in a tarpit one by one.
    #[test]
    fn replies_leave_as_the_personality_says() {
        let replies = || b"250-a\r\n250 b\r\n250 c\r\n354 d\r\n".to_vec();
        let mut outbox = Outbox::default();
        outbox.push(&mut replies(), &Personality::default(), Mono(5));
        assert_eq!(outbox.take_due(Mono(5)), replies());

        let slow: Personality = "delay:1s".parse().unwrap();
        outbox.push(&mut replies(), &slow, Mono(0));
        outbox.push(&mut b"250 e\r\n".to_vec(), &slow, Mono(10));
        assert_eq!(outbox.next_due(), Some(Mono(SECOND)));
        assert_eq!(outbox.take_due(Mono(SECOND - 1)), b"");
        assert_eq!(outbox.take_due(Mono(SECOND)), replies());
        assert_eq!(outbox.take_due(Mono(SECOND + 10)), b"250 e\r\n");

        let pit: Personality = "tarpit:1s".parse().unwrap();
        outbox.push(&mut replies(), &pit, Mono(0));
        assert_eq!(outbox.take_due(Mono(SECOND)), b"250-a\r\n250 b\r\n");
        assert_eq!(outbox.take_due(Mono(2 * SECOND)), b"250 c\r\n");
        assert_eq!(outbox.take_due(Mono(9 * SECOND)), b"354 d\r\n");
        assert_eq!(outbox.next_due(), None);
    }
}
