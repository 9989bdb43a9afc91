//! grants - how the shards of a node share the connections of one egress path, exactly.
//!
//! What: [`Grants`] knows every path that several shards send on; [`PathGrants`] counts the
//! connections of one path over all shards; a brain holds a [`Share`] of it per path. A connection
//! is taken before its `Dial` and given back when it is gone, or when the share is dropped, so that
//! the sum never exceeds the limit, in any interleaving.
//! Why this way: a fixed part per shard leaves most of the limit unused when the mail arises on one
//! shard. So any shard may take all of it, and gives way when another asks:
//! - A shard *lacks* connections when it would open them and finds no room. It is *short* of those
//!   that it lacks up to its fair share, the limit divided by the shards that hold or lack some.
//! - Room that another shard is short of is not taken by one that has its fair share.
//! - While others are short, a shard above its fair share lets connections go after their current
//!   message, as many as are needed. While others lack some, idle connections go too.
//!
//! The fair share is rounded down: rounded up, the shards that have it may hold all there is while
//! one has nothing (limit 9, eight shards: four of them with two). What the division leaves over
//! belongs to whoever asks first. The limit may be below the number of shards; then it is held in
//! turn.
//!
//! Worked example, limit 20, shards A and B:
//! ```text
//! A dials 20                        A 20           its mail is all there is
//! B lacks 2, is short of 2          A 20           B asks for room
//! two of A's connections end their message and close
//! B looks again (25 ms), dials 2    A 18   B 2
//! B lacks 30, is short of 8         A 10   B 10    and so it stays while both have mail
//! ```
//! Budget: nothing per message but one relaxed load; a dial or a close costs a few atomic
//! operations on one cache line; the lock is taken when a shard meets a path that is new to it.
//! Memory order: only `used` must be exact, and a connection that is given back is gone before the
//! next one takes its place. The other counts decide who gives way, and soon; each stands for
//! itself.

use std::collections::HashMap;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::standing::Reach;

/// Every egress path of a node that several shards send on. One per node, shared by its shards.
#[derive(Debug, Default)]
pub struct Grants {
    paths: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// A path lives as long as a shard has a share of it.
    by_name: HashMap<(u16, Arc<str>), Weak<PathGrants>>,
    /// At this size the table is rid of the paths that nobody has.
    sweep_at: usize,
}

/// Least size at which the table is swept.
const SWEEP_MIN: usize = 1024;

impl Grants {
    /// A shard's share of a path, empty yet. The limit is everybody's: the last one said counts.
    pub(super) fn share(&self, source: u16, site: &Arc<str>, limit: u32) -> Share {
        // A thread that panicked with the lock left a table of names, which cannot be half right.
        let mut table = self.paths.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (source, Arc::clone(site));
        let known = table.by_name.get(&key).and_then(Weak::upgrade);
        let path = known.unwrap_or_else(|| {
            let fresh = Arc::new(PathGrants::default());
            if table.by_name.len() >= table.sweep_at {
                table.by_name.retain(|_, path| path.strong_count() > 0);
                table.sweep_at = SWEEP_MIN.max(table.by_name.len() * 2);
            }
            table.by_name.insert(key, Arc::downgrade(&fresh));
            fresh
        });
        path.limit.store(limit, Relaxed);
        Share {
            path,
            held: 0,
            lacks: 0,
            short: 0,
            asked: false,
            yields: 0,
        }
    }

    /// Connections of a path that are taken, by all shards.
    #[must_use]
    pub fn taken(&self, source: u16, site: &Arc<str>) -> u32 {
        let table = self.paths.lock().unwrap_or_else(PoisonError::into_inner);
        let path = table.by_name.get(&(source, Arc::clone(site)));
        path.and_then(Weak::upgrade)
            .map_or(0, |path| path.used.load(Relaxed))
    }
}

#[cfg(test)]
impl Grants {
    /// Whether nobody holds or lacks anything of a path.
    pub(super) fn is_quiet(&self, source: u16, site: &Arc<str>) -> bool {
        let share = self.share(source, site, 1);
        let counts = [
            &share.path.used,
            &share.path.sharing,
            &share.path.lacking,
            &share.path.short,
        ];
        counts.iter().all(|count| count.load(Relaxed) == 0)
    }
}

/// The connections of one path, counted over all shards. On a cache line of its own: it is written
/// at dials and closes only, and read by every shard.
#[derive(Debug, Default)]
#[repr(align(64))]
struct PathGrants {
    limit: AtomicU32,
    /// What the host takes of that.
    reach: Arc<Reach>,
    /// Connections that are open, dialing or closing.
    used: AtomicU32,
    /// Shards that hold or lack connections.
    sharing: AtomicU32,
    /// Connections that shards lack, in all.
    lacking: AtomicU32,
    /// Of these, what they lack of their fair shares.
    short: AtomicU32,
}

/// One shard's part in a path. What it holds goes back when it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    path: Arc<PathGrants>,
    held: u32,
    /// What this shard added to the counts of the path.
    lacks: u32,
    short: u32,
    /// Whether the shard found no room since the last look began.
    asked: bool,
    /// Looks for which this shard lets others go first: it has had its turn.
    yields: u8,
}

/// Between two looks of one shard every other that waits has looked too.
const YIELD_LOOKS: u8 = 2;

impl Share {
    /// What all shards know about the host.
    pub(super) fn reach(&self) -> Arc<Reach> {
        Arc::clone(&self.path.reach)
    }

    /// The limit as configured, or what the host takes where that is less.
    fn limit(&self) -> u32 {
        self.path.limit.load(Relaxed).min(self.path.reach.ceiling())
    }

    /// Connections that this shard holds.
    pub(super) fn held(&self) -> u32 {
        self.held
    }

    /// Another limit, for all shards.
    pub(super) fn set_limit(&self, limit: u32) {
        self.path.limit.store(limit, Relaxed);
    }

    /// Takes one connection; false, and nothing changes, where there is no room for this shard.
    pub(super) fn take(&mut self) -> bool {
        let limit = self.limit();
        let mut used = self.path.used.load(Relaxed);
        if used >= limit {
            return false;
        }
        let first = self.held < self.fair().max(1) && self.yields == 0;
        let reserved = if first { 0 } else { self.others_short() };
        let counted = self.is_counted();
        loop {
            if used.saturating_add(reserved) >= limit {
                return false;
            }
            let taken = self
                .path
                .used
                .compare_exchange_weak(used, used + 1, Acquire, Relaxed);
            match taken {
                Ok(_) => break,
                Err(now) => used = now,
            }
        }
        self.held += 1;
        self.recount(counted);
        if self.lacks > 0 {
            self.lack(self.lacks - 1);
        }
        true
    }

    /// Gives one connection back.
    pub(super) fn give_back(&mut self) {
        assert!(self.held > 0, "given back what was never taken");
        let counted = self.is_counted();
        self.held -= 1;
        let before = self.path.used.fetch_sub(1, Release);
        assert!(before > 0, "each connection is given back once");
        self.recount(counted);
        if self.fair() == 0 && self.others_short() > 0 {
            self.yields = YIELD_LOOKS;
        }
    }

    /// Says that the shard found no room for `wanted` connections; true where it did not lack any
    /// before. The counts are exact once per look and follow what doubles between: they must not
    /// cost anything per message.
    pub(super) fn wait(&mut self, wanted: u32) -> bool {
        let begins = self.lacks == 0 && wanted > 0;
        if begins || !self.asked || wanted / 2 >= self.lacks {
            self.lack(wanted);
        }
        self.asked = true;
        begins
    }

    /// The shard looks whether there is room now.
    pub(super) fn begin_look(&mut self) {
        self.asked = false;
        self.yields = self.yields.saturating_sub(1);
    }

    /// It has looked. Where it did not have to ask again, it lacks nothing.
    pub(super) fn end_look(&mut self) {
        if !self.asked && self.lacks > 0 {
            self.lack(0);
        }
    }

    /// Connections that other shards lack.
    pub(super) fn others_lack(&self) -> u32 {
        // Our own part is in the sum: both were changed by this thread.
        self.path.lacking.load(Relaxed).saturating_sub(self.lacks)
    }

    /// Whether a connection of this shard must end after its message, `leaving` of them being about
    /// to end already. One relaxed load where nobody is short.
    pub(super) fn gives_way(&self, leaving: u32) -> bool {
        let short = self.others_short();
        short > 0
            && self.held.saturating_sub(leaving) > self.fair()
            && short > leaving.saturating_add(self.room())
    }

    /// Whether an unused connection of this shard is needed by others.
    pub(super) fn is_wanted(&self, leaving: u32) -> bool {
        self.others_lack() > leaving.saturating_add(self.room())
    }

    fn others_short(&self) -> u32 {
        self.path.short.load(Relaxed).saturating_sub(self.short)
    }

    fn room(&self) -> u32 {
        let used = self.path.used.load(Relaxed);
        self.limit().saturating_sub(used)
    }

    /// The limit divided by the shards that want a part of it, this one among them.
    fn fair(&self) -> u32 {
        let others = self.path.sharing.load(Relaxed) - u32::from(self.is_counted());
        self.limit() / (others + 1)
    }

    fn is_counted(&self) -> bool {
        self.held + self.lacks > 0
    }

    /// Keeps the count of the shards that share, after a change of what this one has.
    fn recount(&self, before: bool) {
        match (before, self.is_counted()) {
            (false, true) => {
                self.path.sharing.fetch_add(1, Relaxed);
            }
            (true, false) => {
                let before = self.path.sharing.fetch_sub(1, Relaxed);
                assert!(before > 0, "each shard leaves once");
            }
            _ => {}
        }
    }

    /// Changes what this shard lacks; its shortage follows.
    fn lack(&mut self, wanted: u32) {
        let counted = self.is_counted();
        adjust(&self.path.lacking, &mut self.lacks, wanted);
        self.recount(counted);
        let entitled = self.fair().max(1).saturating_sub(self.held);
        adjust(&self.path.short, &mut self.short, wanted.min(entitled));
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.lack(0);
        while self.held > 0 {
            self.give_back();
        }
    }
}

/// Changes this shard's part of a sum.
fn adjust(sum: &AtomicU32, part: &mut u32, wanted: u32) {
    if wanted > *part {
        sum.fetch_add(wanted - *part, Relaxed);
    } else if wanted < *part {
        sum.fetch_sub(*part - wanted, Relaxed);
    }
    *part = wanted;
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::super::Random;
    use super::*;

    fn shares(limit: u32, count: usize) -> Vec<Share> {
        shares_of(&Grants::default(), limit, count)
    }

    fn shares_of(grants: &Grants, limit: u32, count: usize) -> Vec<Share> {
        let site = "mx.example".into();
        (0..count).map(|_| grants.share(0, &site, limit)).collect()
    }

    fn take_all(share: &mut Share) -> u32 {
        std::iter::repeat_with(|| share.take())
            .take_while(|taken| *taken)
            .count()
            .try_into()
            .unwrap_or(u32::MAX)
    }

    // Alone, a shard may take all there is, and nothing beyond it.
    #[test]
    fn one_shard_may_take_everything() {
        let mut all = shares(20, 3);
        assert_eq!(take_all(&mut all[0]), 20);
        assert!(!all[1].take());
        assert!(!all[0].gives_way(0), "nobody is short");
        all[0].give_back();
        assert!(all[1].take());
        assert!(!all[0].take());
    }

    // The story in the module's documentation.
    #[test]
    fn a_shard_above_its_share_gives_what_is_needed() {
        let mut all = shares(20, 2);
        let [a, b] = all.as_mut_slice() else {
            panic!("two")
        };
        take_all(a);
        assert!(b.wait(2), "it begins to wait");
        assert!(!b.wait(2), "it waits already");
        assert!(a.gives_way(0) && a.gives_way(1) && !a.gives_way(2));
        a.give_back();
        assert!(!a.take(), "the room is for the shard that is short");
        assert!(a.gives_way(0) && !a.gives_way(1), "one more is needed");
        a.give_back();
        assert!(!a.gives_way(0), "there is room already");
        assert!(b.take() && b.take() && !b.take());
        assert_eq!((b.lacks, b.short), (0, 0), "it has what it lacked");
        b.wait(30);
        assert_eq!(b.short, 8, "up to its fair share");
        while a.gives_way(0) {
            a.give_back();
            assert!(b.take());
        }
        assert_eq!((a.held, b.held), (10, 10));
        assert!(a.is_wanted(0), "what is idle may go all the same");
        assert!(a.wait(30), "it begins to wait");
        assert!(!b.gives_way(0), "nobody has less than the fair share");
    }

    // What the division leaves over may be used while everybody waits.
    #[test]
    fn the_rest_of_the_division_is_not_wasted() {
        let mut all = shares(21, 2);
        let [a, b] = all.as_mut_slice() else {
            panic!("two")
        };
        for _ in 0..10 {
            assert!(a.take() && b.take());
        }
        a.begin_look();
        a.wait(5);
        b.wait(5);
        assert_eq!((a.short, b.short), (0, 0));
        assert!(b.take() && !a.take());
        assert!(!b.gives_way(0), "a has its share");
    }

    // A rounded-up share would leave one of eight without anything here.
    #[test]
    fn nobody_is_left_out_by_rounding() {
        let mut all = shares(9, 8);
        for share in &mut all[..4] {
            assert!(share.take() && share.take());
        }
        for share in &mut all[4..] {
            share.begin_look();
            share.take();
            share.wait(1);
        }
        assert_eq!(all[4].held, 1);
        // Three have nothing yet; shards with two give way one after the other.
        for giver in 0..3 {
            assert!(all[giver].gives_way(0));
            all[giver].give_back();
            assert!(all[5 + giver].take());
        }
        assert!(all.iter().all(|share| share.held() >= 1));
        assert!(all.iter().all(|share| !share.gives_way(0)));
    }

    // With fewer connections than shards the holder lets go, and the other one is next.
    #[test]
    fn a_single_connection_goes_round() {
        let mut all = shares(1, 2);
        assert!(all[0].take());
        for turn in 0..10 {
            let (holder, other) = (turn % 2, (turn + 1) % 2);
            all[other].wait(3);
            assert!(all[holder].gives_way(0));
            all[holder].give_back();
            assert!(!all[holder].take(), "not before the other one");
            all[holder].wait(3);
            // Its own turn was a while ago.
            all[other].begin_look();
            all[other].begin_look();
            assert!(all[other].take());
        }
    }

    // A look after which nothing was asked ends the wait; so does the end of the share.
    #[test]
    fn demand_ends() {
        let grants = Grants::default();
        let mut all = shares_of(&grants, 4, 2);
        take_all(&mut all[0]);
        all[1].wait(7);
        assert_eq!(all[0].others_lack(), 7);
        all[1].begin_look();
        all[1].wait(3);
        assert_eq!(all[0].others_lack(), 3, "exact at the look");
        all[1].wait(4);
        assert_eq!(all[0].others_lack(), 3, "not for each message");
        all[1].wait(6);
        assert_eq!(all[0].others_lack(), 6, "but when it doubles");
        all[1].begin_look();
        all[1].end_look();
        assert_eq!(all[0].others_lack(), 0);
        all[1].wait(2);
        let keep = grants.share(0, &"mx.example".into(), 4);
        assert_eq!((keep.path.used.load(Relaxed), keep.others_lack()), (4, 2));
        drop(all);
        assert!(grants.is_quiet(0, &"mx.example".into()));
        drop(keep);
    }

    // The table forgets paths that nobody has a share of, and finds those that somebody has.
    #[test]
    fn the_table_is_bounded() {
        let grants = Grants::default();
        let kept: Arc<str> = "kept.example".into();
        let mut share = grants.share(0, &kept, 5);
        assert!(share.take());
        for number in 0..10 * SWEEP_MIN {
            drop(grants.share(0, &format!("s{number}.example").into(), 5));
        }
        let names = grants.paths.lock().map(|table| table.by_name.len());
        assert!(names.is_ok_and(|names| names <= SWEEP_MIN + 1));
        assert_eq!(grants.taken(0, &kept), 1);
        assert_eq!(grants.taken(1, &kept), 0, "another source is another path");
        drop(share);
        assert_eq!(grants.taken(0, &kept), 0);
    }

    // Four threads at play on one path: a count of our own never exceeds the limit, and at the end
    // all is given back.
    #[test]
    fn threads_never_exceed_the_limit() {
        let (grants, open) = (Grants::default(), AtomicU32::new(0));
        let site: Arc<str> = "mx.example".into();
        let keep = grants.share(0, &site, 7);
        thread::scope(|scope| {
            for seed in 0..4 {
                let (grants, open, site) = (&grants, &open, &site);
                scope.spawn(move || play(grants.share(0, site, 7), open, seed));
            }
        });
        assert!(grants.is_quiet(0, &site));
        drop(keep);
    }

    fn play(mut share: Share, open: &AtomicU32, seed: u64) {
        let mut random = Random::new(seed);
        for _ in 0..50_000 {
            match random.below(8) {
                0..4 => {
                    if share.take() {
                        assert!(open.fetch_add(1, Relaxed) < 7, "over the limit");
                    } else {
                        share.wait(1 + random.below(9) as u32);
                    }
                }
                4..7 if share.held() > 0 => {
                    assert!(open.fetch_sub(1, Relaxed) > 0);
                    share.give_back();
                }
                7 => {
                    share.begin_look();
                    share.end_look();
                }
                _ => {}
            }
        }
        open.fetch_sub(share.held(), Relaxed);
    }
}
