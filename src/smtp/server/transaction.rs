//! transaction - one message under way: its envelope, its content as far as it has come, and who
//! watches that.

use super::replies::{BARE, TOO_BIG};
use super::types::Watchers;
use crate::message::{Envelope, MessageId, Watch};
use crate::smtp::data::{LineRule, Unstuffer};
use crate::time::Wall;

/// One mail transaction.
#[derive(Debug)]
pub(super) struct Transaction {
    pub(super) envelope: Envelope,
    /// SIZE of MAIL.
    pub(super) declared: u64,
    /// The Received field and the content; empty until the content begins.
    pub(super) content: Vec<u8>,
    /// Octets of the content without our field, also those not stored.
    pub(super) size: u64,
    pub(super) rule: LineRule,
    pub(super) unstuffer: Unstuffer,
    /// Content has begun: with BDAT, no more RCPT and no DATA.
    pub(super) begun: bool,
    pub(super) too_big: bool,
    /// An octet of the Received field is above 127.
    pub(super) eight_bit: bool,
    pub(super) received_at: Wall,
    pub(super) id: Option<MessageId>,
    pub(super) watcher: Watcher,
}

/// Who watches a message arrive.
#[derive(Debug)]
pub(super) enum Watcher {
    /// Nobody was asked yet: no content has come.
    Unasked,
    /// Nobody, or nobody any more.
    Nobody,
    Somebody(Box<dyn Watch>),
}

impl Transaction {
    /// Takes a span of content. What can never be accepted is counted and not stored.
    pub(super) fn store(&mut self, span: &[u8], size_max: u64, watchers: &Watchers<'_>) {
        self.size = self.size.saturating_add(span.len() as u64);
        self.rule.feed(span);
        if self.size > size_max {
            self.too_big = true;
        }
        if self.too_big || self.rule.is_broken() {
            self.content = Vec::new();
            self.watcher = Watcher::Nobody;
        } else {
            self.content.extend_from_slice(span);
            self.show(watchers);
        }
    }

    /// Shows the content so far to the watcher.
    fn show(&mut self, watchers: &Watchers<'_>) {
        if matches!(self.watcher, Watcher::Unasked) {
            let watcher = watchers(&self.envelope);
            self.watcher = watcher.map_or(Watcher::Nobody, Watcher::Somebody);
        }
        if let Watcher::Somebody(watcher) = &mut self.watcher
            && !watcher.more(&self.content)
        {
            self.watcher = Watcher::Nobody;
        }
    }

    /// Why the content so far cannot be accepted.
    pub(super) fn defect(&self) -> Option<&'static [u8]> {
        if self.too_big {
            Some(TOO_BIG)
        } else if self.rule.is_broken() {
            Some(BARE)
        } else {
            None
        }
    }
}
