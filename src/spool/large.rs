//! spool::large - a message too large for a shared segment.
//!
//! What: such a message gets a file of its own, of exactly its size, not prewritten and removed
//! afterwards. Its content is written first, in pieces of a group's size; the group's head that
//! makes it exist is written last, when every piece is durable. So a torn large message has no head
//! and never was, and no buffer is larger than a group. One at a time: such mail is rare, and its
//! buffers are bounded that way.

use crate::limits;

use super::commit::{Origin, Pending, mail_group_bytes};
use super::format::{BLOCK_BYTES, Checksum, Log, SEGMENT_HEADER_BYTES};
use super::segment::Phase;
use super::state::{Completion, Flight, Outcome, Spool};
use super::types::AppendError;

/// The large message in work.
#[derive(Debug)]
pub(super) struct LargeJob {
    pending: Option<Pending>,
    number: u32,
    content_offset: u64,
    written: usize,
    pieces_in_flight: u32,
    sum: Checksum,
}

impl Spool {
    pub(super) fn advance_large(&mut self) {
        if self.job.is_none() && self.mail_failure.is_none() {
            self.begin_large();
        }
        let Some(job) = &self.job else { return };
        let number = job.number;
        if self.mail.at(number).phase == Phase::Free {
            self.mail.at(number).phase = Phase::Active;
        }
        if self.mail.at(number).phase == Phase::Active {
            self.write_pieces();
        }
    }

    fn begin_large(&mut self) {
        let Some(pending) = self.large.pop_front() else {
            return;
        };
        // The roster is that of the moment when the head is written: room for the largest.
        let roster = limits::SPOOL_GROUP_BYTES_MAX / 8;
        let head = (pending.head_bytes() + roster + BLOCK_BYTES).next_multiple_of(BLOCK_BYTES);
        let content = pending.content.len().next_multiple_of(BLOCK_BYTES);
        let len = (SEGMENT_HEADER_BYTES + head + content) as u64;
        if !self.may_create(len) {
            if let Origin::Fresh(token) = pending.origin {
                self.completions
                    .push_back(Completion::Append(token, Err(AppendError::Full)));
            }
            return;
        }
        let number = self.create(Log::Message, len, true);
        self.job = Some(LargeJob {
            pending: Some(pending),
            number,
            content_offset: (SEGMENT_HEADER_BYTES + head) as u64,
            written: 0,
            pieces_in_flight: 0,
            sum: Checksum::default(),
        });
    }

    fn write_pieces(&mut self) {
        while let Some(job) = &mut self.job
            && let Some(pending) = &job.pending
            && job.pieces_in_flight < limits::SPOOL_GROUPS_IN_FLIGHT_MAX
            && job.written < pending.content.len()
        {
            let left = pending.content.len() - job.written;
            let len = left.min(limits::SPOOL_GROUP_BYTES_MAX);
            let mut block = self.pool.take(len);
            block[..len].copy_from_slice(&pending.content[job.written..job.written + len]);
            block[len..].fill(0);
            job.sum.update(&block[..len]);
            let offset = job.content_offset + job.written as u64;
            job.written += len;
            job.pieces_in_flight += 1;
            let number = job.number;
            self.mail.at(number).in_flight += 1;
            self.write(
                Flight::Piece { number },
                Log::Message,
                number,
                offset,
                block,
            );
        }
        self.write_large_head();
    }

    /// Once every piece is durable, the head follows.
    fn write_large_head(&mut self) {
        let may = self.may_store();
        let starved = !may && self.state_is_starved();
        let Some(job) = &mut self.job else { return };
        let done = job
            .pending
            .as_ref()
            .is_some_and(|p| job.pieces_in_flight == 0 && job.written == p.content.len());
        if done && starved {
            // What must be written before it has no place.
            let number = job.number;
            self.mail.at(number).phase = Phase::Sealed;
            self.abandon_large(number, Outcome::Full);
            return;
        }
        if !done || !may || self.mail.groups_in_flight >= limits::SPOOL_GROUPS_IN_FLIGHT_MAX {
            return;
        }
        let Some(pending) = job.pending.take() else {
            return;
        };
        let (number, at, sum) = (job.number, job.content_offset as u32, job.sum.finish());
        self.job = None;
        let head = mail_group_bytes(pending.head_bytes(), &self.last);
        let block = self.pool.take(head);
        self.write_group(number, vec![pending], Vec::new(), Some((at, sum)), block);
    }

    pub(super) fn piece_written(&mut self, number: u32, outcome: Outcome, trusted: bool) {
        let Some(job) = &mut self.job else { return };
        if job.number != number {
            return;
        }
        job.pieces_in_flight -= 1;
        if !trusted {
            self.abandon_large(number, outcome);
        }
    }

    /// The large message's file failed: so does its append. Nothing of it can ever be found.
    pub(super) fn abandon_large(&mut self, number: u32, outcome: Outcome) {
        let Some(job) = self.job.take_if(|job| job.number == number) else {
            return;
        };
        let error = match outcome {
            Outcome::Full => AppendError::Full,
            Outcome::Done | Outcome::Failed => AppendError::Failed,
        };
        if let Some(Pending {
            origin: Origin::Fresh(token),
            ..
        }) = job.pending
        {
            self.completions
                .push_back(Completion::Append(token, Err(error)));
        }
    }
}
