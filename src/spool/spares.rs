//! spool::spares - making segments, and probing after a failure.
//!
//! What: files are made ahead of need and get their first header; a failed write or creation stops
//! new mail until a header was written to another segment.

use std::time::Duration;

use crate::limits;
use crate::time::Mono;

use super::commit::{Origin, state_group_bytes};
use super::format::{Log, SegmentHeader};
use super::segment::{Phase, Segment};
use super::state::{Action, Completion, Failure, Flight, Outcome, Spool};
use super::types::AppendError;

impl Spool {
    /// Whether a segment of `len` bytes may be made for mail.
    pub(super) fn may_create(&self, len: u64) -> bool {
        self.no_files_until.is_none()
            && self.free_bytes >= len.saturating_add(self.config.low_water_bytes)
    }

    pub(super) fn may_create_state(&self) -> bool {
        self.no_files_until.is_none() && self.free_bytes >= self.config.state_segment_bytes
    }

    /// Whether settlements could not be written for want of space: mail that is taken now could not
    /// be settled.
    pub(super) fn state_is_starved(&self) -> bool {
        let need = state_group_bytes(limits::SPOOL_SETTLEMENTS_PER_GROUP_MAX) as u64;
        let open = |s: &Segment| match s.phase {
            Phase::Making | Phase::Stamping | Phase::Free => true,
            _ => s.phase == Phase::Active && s.room() >= need,
        };
        !self.may_create_state() && self.state.find(open).is_none()
    }

    /// No file can be made now, for want of space or of inodes. What is free already serves; a
    /// file is tried again after a while.
    pub(super) fn make_no_files(&mut self, now: Mono) {
        let pause = Duration::from_millis(limits::SPOOL_PROBE_MS);
        self.no_files_until = Some(now.after(pause));
    }

    pub(super) fn create(&mut self, log: Log, len: u64, large: bool) -> u32 {
        let stamp = self.stamp();
        let mut segment = Segment::new(stamp, len, Phase::Making);
        segment.large = large;
        let number = self.log(log).insert_new(segment);
        self.free_bytes = self.free_bytes.saturating_sub(len);
        self.actions.push_back(Action::Create {
            log,
            segment: number,
            len,
            prewrite: !large,
        });
        number
    }

    /// How long a segment that is being made leaves the disk to others after each portion of it.
    ///
    /// None where mail could wait for it soon. Else most of the time: 64 MiB at once keep the
    /// writes of everybody's mail waiting for a tenth of a second.
    #[must_use]
    pub fn making_pause(&self, log: Log) -> Duration {
        let free = |s: &Segment| s.phase == Phase::Free && !s.large;
        let active = self.mail.active.and_then(|active| self.mail.get(active));
        let half_full = active.is_none_or(|active| active.room() < active.len / 2);
        match (log, self.mail.count(free), half_full) {
            // They are small.
            (Log::State, ..) | (Log::Message, 0, true) => Duration::ZERO,
            (Log::Message, 0, false) => limits::SPOOL_MAKING_PAUSE / 4,
            (Log::Message, ..) => limits::SPOOL_MAKING_PAUSE,
        }
    }

    /// Writes a new header to a segment, which ends its earlier life.
    pub(super) fn restamp(&mut self, log: Log, number: u32) {
        let stamp = self.stamp();
        let (shard, next_sequence) = (self.config.shard, self.next_sequence);
        let segment = self.log(log).at(number);
        assert!(
            segment.in_flight == 0 && segment.live_slots == 0,
            "nothing live is recycled"
        );
        segment.phase = Phase::Stamping;
        segment.in_flight += 1;
        let (len, large) = (segment.len, segment.large);
        let header = SegmentHeader {
            log,
            shard,
            number,
            stamp,
            len,
            large,
            next_sequence,
        };
        self.write(
            Flight::Header { log, number, stamp },
            log,
            number,
            0,
            header.encode(),
        );
    }

    pub(super) fn make_spares(&mut self, now: Mono) {
        if self.no_files_until.is_some_and(|until| now >= until) {
            self.no_files_until = None;
        }
        self.probe(Log::State, now);
        self.probe(Log::Message, now);
        let ready = |s: &Segment| {
            !s.large && matches!(s.phase, Phase::Making | Phase::Stamping | Phase::Free)
        };
        while self.state_failure.is_none()
            && self.state.count(ready) < limits::SPOOL_SPARE_SEGMENTS
            && self.may_create_state()
        {
            self.create(Log::State, self.config.state_segment_bytes, false);
        }
        let len = self.config.segment_bytes;
        while self.mail_failure.is_none()
            && self.mail.count(ready) < limits::SPOOL_SPARE_SEGMENTS
            && self.may_create(len)
        {
            self.create(Log::Message, len, false);
        }
    }

    /// Tries the disk again now instead of when the wait is over: somebody has seen to it. Whether
    /// there is anything to try.
    pub fn probe_now(&mut self, now: Mono) -> bool {
        let mut waits = self.no_files_until.take().is_some();
        let failures = [&mut self.mail_failure, &mut self.state_failure];
        for failure in failures.into_iter().flatten() {
            failure.retry_at = failure.retry_at.min(now);
            waits = true;
        }
        waits
    }

    /// After a failure, tries a new segment once the wait is over; its header is the probe. A free
    /// one serves where there is no space for a new one.
    pub(super) fn probe(&mut self, log: Log, now: Mono) {
        let failure = match log {
            Log::Message => &mut self.mail_failure,
            Log::State => &mut self.state_failure,
        };
        let Some(failure) = failure else { return };
        if failure.probing || now < failure.retry_at {
            return;
        }
        failure.probing = true;
        let len = match log {
            Log::Message => self.config.segment_bytes,
            Log::State => self.config.state_segment_bytes,
        };
        let room = match log {
            Log::Message => self.may_create(len),
            Log::State => self.may_create_state(),
        };
        match self.free_segment(log) {
            Some(number) if !room => self.restamp(log, number),
            _ => {
                self.create(log, len, false);
            }
        }
    }

    fn free_segment(&mut self, log: Log) -> Option<u32> {
        self.log(log).find(|s| s.phase == Phase::Free && !s.large)
    }

    /// Answers [`Action::Create`].
    pub fn created(&mut self, log: Log, number: u32, outcome: Outcome, now: Mono) {
        let segment = self.log(log).at(number);
        assert_eq!(segment.phase, Phase::Making, "a file is made once");
        if outcome == Outcome::Done {
            self.no_files_until = None;
            self.restamp(log, number);
            return;
        }
        // The file may be there or not; it is removed before its number is used again.
        segment.suspect = true;
        segment.phase = Phase::Removing;
        let large = segment.large;
        self.actions.push_back(Action::Remove {
            log,
            segment: number,
        });
        if large {
            self.abandon_large(number, outcome);
        }
        if outcome == Outcome::Full {
            // Nothing that was written is in doubt.
            self.make_no_files(now);
            // A free segment can be tried at once.
            let pause = match self.free_segment(log) {
                Some(_) => Duration::ZERO,
                None => Duration::from_millis(limits::SPOOL_PROBE_MS),
            };
            let failure = match log {
                Log::Message => &mut self.mail_failure,
                Log::State => &mut self.state_failure,
            };
            if let Some(failure) = failure {
                failure.retry_at = now.after(pause);
                failure.probing = false;
            }
            if !self.may_store() && self.state_is_starved() {
                // What must be written before new mail has no place.
                self.refuse_waiting(AppendError::Full);
            }
            return;
        }
        self.fail(log, outcome, now);
    }

    /// A write or a creation failed: refuse, and probe later.
    pub(super) fn fail(&mut self, log: Log, outcome: Outcome, now: Mono) {
        let retry_at = now.after(Duration::from_millis(limits::SPOOL_PROBE_MS));
        let refusal = match outcome {
            Outcome::Full => AppendError::Full,
            Outcome::Done | Outcome::Failed => AppendError::Failed,
        };
        let failure = Some(Failure {
            retry_at,
            probing: false,
            refusal,
        });
        match log {
            Log::Message => self.mail_failure = failure,
            Log::State => self.state_failure = failure,
        }
        if log == Log::Message || !self.may_store() {
            self.refuse_waiting(refusal);
        }
    }

    pub(super) fn refuse_waiting(&mut self, error: AppendError) {
        while let Some(pending) = self.fresh.pop_front().or_else(|| self.large.pop_front()) {
            if let Origin::Fresh(token) = pending.origin {
                self.completions
                    .push_back(Completion::Append(token, Err(error)));
            }
        }
    }
}
