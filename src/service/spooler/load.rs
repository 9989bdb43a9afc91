//! spooler::load - what recovery found, handed to the queue.

use std::future::{Future, poll_fn};
use std::ops::Range;
use std::pin::Pin;
use std::task::Poll;

use crate::engine::Port;
use crate::limits;
use crate::message::Envelope;
use crate::spool::format::BLOCK_BYTES;
use crate::spool::{Queued, ReadError, Waiting};

use super::read::Rescue;
use super::{Inner, Spooler};

/// Longest range that is asked for at once.
const FETCH_BYTES: usize = 128 << 10;

/// How far [`Spooler::load`] got.
#[derive(Debug)]
pub struct LoadCursor {
    segments: Vec<(u32, u32)>,
    next: u32,
    /// Slots of the segment whose heads have been asked for.
    fetched: u32,
    messages: u64,
}

impl LoadCursor {
    /// At the start of segments with so many records each, in which `messages` wait.
    pub(super) fn new(mut segments: Vec<(u32, u32)>, messages: u64) -> Self {
        if messages == 0 {
            segments.clear();
        }
        // The first is taken from the end.
        segments.reverse();
        Self {
            segments,
            next: 0,
            fetched: 0,
            messages,
        }
    }

    /// Messages that recovery found waiting: at most as many are loaded.
    #[must_use]
    pub fn messages(&self) -> u64 {
        self.messages
    }
}

/// A message of an earlier life of the process, with the envelope that the queue needs.
#[derive(Debug)]
pub struct Loaded {
    /// Id, place and waiting recipients.
    pub queued: Queued,
    /// Who it is for.
    pub envelope: Envelope,
}

impl<P: Port> Spooler<P> {
    /// The next messages that recovery found, at most `max`; empty at the end, and only there.
    /// Reads envelopes only. Segments are not emptied before the end is reached.
    pub async fn load(&self, cursor: &mut LoadCursor, max: usize) -> Vec<Loaded> {
        let mut out = Vec::new();
        while out.len() < max.max(1) {
            let Some((segment, slots)) = cursor.segments.last().copied() else {
                self.0.core.borrow_mut().enable_reclaim();
                self.judge_notes().await;
                break;
            };
            if cursor.next == slots {
                cursor.segments.pop();
                (cursor.next, cursor.fetched) = (0, 0);
                self.0.let_go(segment).await;
                continue;
            }
            if cursor.next >= cursor.fetched {
                let end = slots.min(cursor.next + limits::RESTORE_FETCHED);
                self.0.fetch_heads(segment, cursor.next..end).await;
                cursor.fetched = end;
            }
            let waiting = self.0.core.borrow_mut().load_at(segment, cursor.next);
            cursor.next += 1;
            let Some(waiting) = waiting else { continue };
            let id = waiting.0;
            if self.load_one(waiting, &mut out).await {
                self.0.late.borrow_mut().push_back(id);
            }
        }
        out
    }

    /// Reads the envelope of a message that waits and adds it to `out`, unless it is to be put
    /// aside. True when the disk did not give it: it is to be tried again.
    pub(super) async fn load_one(&self, waiting: Waiting, out: &mut Vec<Loaded>) -> bool {
        let id = waiting.0;
        if self.0.is_condemned(id) {
            self.set_aside(id).await;
            return false;
        }
        if !self.may_be_handed_over(id).await {
            return true;
        }
        let mut waiting = Some(waiting);
        while let Some((_, extent, pending)) = waiting {
            match self.0.head_in_hand(id, &extent).await {
                Ok((record, envelope)) => {
                    out.push(Loaded {
                        queued: Queued {
                            id,
                            location: extent.location,
                            received_at: record.received_at,
                            pending,
                        },
                        envelope,
                    });
                    return false;
                }
                Err(ReadError::Io) => return true,
                Err(ReadError::Gone) => return false,
                Err(ReadError::Damaged) => {}
            }
            match self.0.rescue(id, &extent).await {
                Rescue::Moved => waiting = self.0.core.borrow().waiting(id),
                Rescue::Later => return true,
                Rescue::None => {
                    self.condemn(id, &extent).await;
                    return false;
                }
            }
        }
        false
    }
}

impl<P: Port> Inner<P> {
    /// Forgets the map of a segment whose messages the queue has, unless somebody reads there.
    /// What was read counts as memory of the process as long as it is mapped: 2.4 GiB of heads for
    /// 10 million messages.
    async fn let_go(&self, segment: u32) {
        if let Ok(Some(map)) = self.take_map(segment) {
            self.port.unmap(map).await;
        }
    }

    /// Brings the records of waiting messages into memory, where they can be read. One after the
    /// other, those of a million messages take 7 s.
    pub(super) async fn fetch_heads(&self, segment: u32, slots: Range<u32>) {
        let mut ranges: Vec<Range<usize>> = Vec::new();
        for slot in slots {
            let waiting = self.core.borrow().waiting_at(segment, slot);
            let Some((_, extent, _)) = waiting else {
                continue;
            };
            let start = extent.location.offset as usize;
            let end = start + extent.head_len as usize;
            match ranges.last_mut() {
                Some(last)
                    if start <= last.end + BLOCK_BYTES && end - last.start <= FETCH_BYTES =>
                {
                    last.end = last.end.max(end);
                }
                _ => ranges.push(start..end),
            }
        }
        let mut reads: Vec<Pin<Box<dyn Future<Output = ()> + '_>>> = Vec::new();
        for range in ranges {
            reads.push(Box::pin(async move {
                let _turn = self.reads.take(range.len()).await;
                // Who needs it will see whether it came.
                drop(self.mapped(segment, range).await);
            }));
        }
        poll_fn(|context| {
            reads.retain_mut(|read| read.as_mut().poll(context).is_pending());
            match reads.is_empty() {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await;
    }
}
