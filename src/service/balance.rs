//! balance - which shard a session belongs on.
//!
//! What: each shard posts its load on a board that all of them read; a session that has just
//! finished a message asks whether it should go on elsewhere.
//! Why: two half-idle shards cost more than one that is busy. Fewer completions per wake-up,
//! smaller commit groups and smaller signing batches: with smtp-source and smtp-sink at 14,000
//! messages/s two shards used 45 us per message where one used 36. So light load gathers on the
//! first shards, and load that one core cannot carry is shared out. It also mends what the kernel's
//! hash of new connections leaves uneven.
//! Why between messages: that is where a session is smallest, and its next message gets an id of
//! the shard that will store it.
//! Pure: `(usage, sessions, now)` in, a shard's number out; the board is a few relaxed atomics.
//! Limits: a session moves at most once per look; a shard gives away at most half of the difference
//! per [`WINDOW`], after two full ones, and takes none back for [`CLOSED_TIME`] after it had too
//! many.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::engine::Usage;
use crate::time::Mono;

/// How long the load is averaged.
pub const WINDOW: Duration = Duration::from_millis(50);

/// How long a posted load counts; a shard without messages posts none and has none.
const STALE_AFTER: Duration = Duration::from_millis(200);

/// How long a shard that gave sessions away is left with what it has.
const CLOSED_TIME: Duration = Duration::from_secs(10);

/// Loads of two shards, in thousandths of a core, that one may carry alone.
const GATHER_MAX: u32 = 750;

/// Thousandths of the time awake from which a shard has too much. Time and not processor use: a
/// core that also serves the network card is full before its thread has used all of it.
const FULL: u32 = 950;

/// How much less a shard must have to do, in thousandths of a core, to be given sessions.
const DIFFERENCE_MIN: u32 = 200;

/// The loads of all shards.
#[derive(Debug)]
pub struct Board(Box<[Seat]>);

/// One shard's line; of a size that keeps two shards from writing to one cache line.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Seat {
    /// Thousandths of a core.
    load: AtomicU32,
    sessions: AtomicU32,
    posted: AtomicU64,
    closed_until: AtomicU64,
}

impl Board {
    /// A board for so many shards.
    #[must_use]
    pub fn new(shards: u16) -> Arc<Self> {
        Arc::new(Self((0..shards).map(|_| Seat::default()).collect()))
    }

    fn load(&self, shard: u16, now: Mono) -> u32 {
        let seat = &self.0[usize::from(shard)];
        let posted = Mono(seat.posted.load(Ordering::Relaxed));
        match posted.after(STALE_AFTER) > now {
            true => seat.load.load(Ordering::Relaxed),
            false => 0,
        }
    }

    fn is_closed(&self, shard: u16, now: Mono) -> bool {
        Mono(
            self.0[usize::from(shard)]
                .closed_until
                .load(Ordering::Relaxed),
        ) > now
    }

    /// Notes how many sessions a shard has.
    fn post_sessions(&self, shard: u16, sessions: u32) {
        self.0[usize::from(shard)]
            .sessions
            .store(sessions, Ordering::Relaxed);
    }

    fn sessions(&self, shard: u16) -> u32 {
        self.0[usize::from(shard)].sessions.load(Ordering::Relaxed)
    }
}

/// One shard's view of the board.
#[derive(Debug)]
pub struct Balance {
    board: Arc<Board>,
    me: u16,
    /// No shard gets so many sessions from others.
    sessions_max: u32,
    /// When the window began, and the usage then; nothing before the first look.
    since: Option<(Mono, Usage)>,
    /// Where sessions go in this window, and how many still may.
    moves: Option<(u16, u32)>,
    /// The window before was full too: one alone may be a hiccup, and the others' loads are known
    /// only after it.
    was_full: bool,
}

impl Balance {
    /// The view of shard `me`. A shard with `sessions_max` sessions is given none by others.
    #[must_use]
    pub fn new(board: Arc<Board>, me: u16, sessions_max: u32) -> Self {
        assert!(
            usize::from(me) < board.0.len(),
            "a shard without a seat on the board"
        );
        Self {
            board,
            me,
            sessions_max,
            since: None,
            moves: None,
            was_full: false,
        }
    }

    /// Notes how many sessions this shard has.
    pub fn post(&self, sessions: u32) {
        self.board.post_sessions(self.me, sessions);
    }

    /// Where a session goes that has nothing in hand; none: it stays. `usage` is asked once per
    /// window.
    pub fn look(&mut self, now: Mono, usage: impl FnOnce() -> Usage) -> Option<u16> {
        if self.board.0.len() < 2 {
            return None;
        }
        match self.since {
            None => self.since = Some((now, usage())),
            Some((since, before)) if now >= since.after(WINDOW) => {
                let usage = usage();
                self.since = Some((now, usage));
                self.moves = self.judge(now, now.since(since), before, usage);
            }
            Some(_) => {}
        }
        let (to, left) = self.moves.as_mut()?;
        *left = left.checked_sub(1)?;
        (self.board.sessions(*to) < self.sessions_max).then_some(*to)
    }

    /// Posts the load of the window that ends now, and says where how many sessions go.
    fn judge(
        &mut self,
        now: Mono,
        elapsed: Duration,
        before: Usage,
        after: Usage,
    ) -> Option<(u16, u32)> {
        let load = thousandths(after.busy.saturating_sub(before.busy), elapsed);
        let slept = thousandths(after.slept.saturating_sub(before.slept), elapsed);
        let seat = &self.board.0[usize::from(self.me)];
        seat.load.store(load, Ordering::Relaxed);
        seat.posted.store(now.0, Ordering::Relaxed);
        let is_full = 1000 - slept >= FULL;
        let was_full = std::mem::replace(&mut self.was_full, is_full);
        if is_full {
            if !was_full {
                return None;
            }
            let to = self.least_loaded(load, now)?;
            let until = now.after(CLOSED_TIME).0;
            seat.closed_until.store(until, Ordering::Relaxed);
            let difference = load - self.board.load(to, now);
            let sessions = u64::from(self.board.sessions(self.me));
            let half = sessions * u64::from(difference) / (2 * u64::from(load.max(1)));
            return Some((to, u32::try_from(half).unwrap_or(u32::MAX).max(1)));
        }
        let carries = |shard: &u16| {
            !self.board.is_closed(*shard, now) && self.board.load(*shard, now) + load <= GATHER_MAX
        };
        // All of them: half a load would leave two shards awake.
        (0..self.me).find(carries).map(|to| (to, u32::MAX))
    }

    /// The shard with the least to do, if that is clearly less than `load`.
    fn least_loaded(&self, load: u32, now: Mono) -> Option<u16> {
        let shards = u16::try_from(self.board.0.len()).unwrap_or(u16::MAX);
        let load_of = |shard: &u16| self.board.load(*shard, now);
        (0..shards)
            .filter(|shard| *shard != self.me)
            .min_by_key(load_of)
            .filter(|shard| load_of(shard) + DIFFERENCE_MIN <= load)
    }
}

fn thousandths(part: Duration, whole: Duration) -> u32 {
    let part = part.as_nanos().saturating_mul(1000) / whole.as_nanos().max(1);
    u32::try_from(part).unwrap_or(1000).min(1000)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::{Balance, Board, CLOSED_TIME, WINDOW};
    use crate::engine::Usage;
    use crate::time::Mono;

    const SESSIONS_MAX: u32 = 100;

    /// Shards whose loads a test sets.
    struct House {
        board: Arc<Board>,
        now: Mono,
        shards: Vec<(Balance, Usage, u32)>,
    }

    impl House {
        fn new(sessions: &[u32]) -> Self {
            let board = Board::new(u16::try_from(sessions.len()).expect("few"));
            let shard = |me: u16| Balance::new(Arc::clone(&board), me, SESSIONS_MAX);
            let shards: Vec<_> = (0..)
                .zip(sessions)
                .map(|(me, open)| (shard(me), Usage::default(), *open))
                .collect();
            let mut house = Self {
                board,
                now: Mono(1_000_000_000),
                shards,
            };
            for shard in 0..sessions.len() {
                house.ask(shard);
            }
            house
        }

        /// One session of `shard` has finished a message: where does it go?
        fn ask(&mut self, shard: usize) -> Option<u16> {
            let (balance, usage, open) = &mut self.shards[shard];
            let number = u16::try_from(shard).expect("few");
            self.board.post_sessions(number, *open);
            let to = balance.look(self.now, || *usage);
            if let Some(to) = to {
                self.shards[shard].2 -= 1;
                self.shards[usize::from(to)].2 += 1;
                let there = self.shards[usize::from(to)].2;
                self.board.post_sessions(to, there);
            }
            to
        }

        /// A window passes in which each shard was awake for so many thousandths, all of it at
        /// work.
        fn pass(&mut self, loads: &[u64]) {
            self.now = self.now.after(WINDOW);
            let window = u64::try_from(WINDOW.as_nanos()).expect("short");
            for ((_, usage, _), load) in self.shards.iter_mut().zip(loads) {
                usage.busy += Duration::from_nanos(window * load / 1000);
                usage.slept += Duration::from_nanos(window * (1000 - load) / 1000);
            }
        }

        /// Each session of each shard asks once.
        fn round(&mut self) {
            for shard in 0..self.shards.len() {
                for _ in 0..self.shards[shard].2 {
                    self.ask(shard);
                }
            }
        }

        fn sessions(&self) -> Vec<u32> {
            self.shards.iter().map(|shard| shard.2).collect()
        }
    }

    // Light load gathers on the first shard; nothing moves before a load is known, nor back.
    #[test]
    fn gathers_light_load() {
        let mut house = House::new(&[10, 10, 10]);
        house.round();
        assert_eq!(house.sessions(), [10, 10, 10]);
        house.pass(&[200, 200, 200]);
        house.round();
        assert_eq!(house.sessions(), [30, 0, 0]);
        for _ in 0..100 {
            house.pass(&[600, 0, 0]);
            house.round();
        }
        assert_eq!(house.sessions(), [30, 0, 0]);
    }

    // What one core cannot carry is shared out, half of the difference at a time, and stays so:
    // the shard that was full is not filled again at once, however light the parts look.
    #[test]
    fn shares_out_a_full_shard() {
        let mut house = House::new(&[20, 0]);
        house.pass(&[1000, 0]);
        house.round();
        assert_eq!(house.sessions(), [20, 0]);
        house.pass(&[1000, 0]);
        house.round();
        assert_eq!(house.sessions(), [10, 10]);
        let passes = CLOSED_TIME.as_millis() / WINDOW.as_millis() - 1;
        for _ in 0..passes {
            house.pass(&[300, 300]);
            house.round();
            assert_eq!(house.sessions(), [10, 10]);
        }
        house.pass(&[300, 300]);
        house.pass(&[300, 300]);
        house.round();
        assert_eq!(house.sessions(), [20, 0]);
    }

    // Two full shards keep what they have; loads that one core could not carry do not gather.
    #[test]
    fn leaves_even_loads_alone() {
        let mut house = House::new(&[10, 12]);
        for _ in 0..3 {
            house.pass(&[1000, 1000]);
            house.round();
        }
        house.pass(&[500, 500]);
        house.round();
        assert_eq!(house.sessions(), [10, 12]);
    }

    // A shard that others have filled to its limit is given no more.
    #[test]
    fn respects_the_limit_of_sessions() {
        let mut house = House::new(&[SESSIONS_MAX - 3, 10]);
        house.pass(&[100, 100]);
        house.round();
        assert_eq!(house.sessions(), [SESSIONS_MAX, 7]);
    }

    // A node of one shard asks for no figures at all.
    #[test]
    fn one_shard_has_nothing_to_weigh() {
        let mut alone = Balance::new(Board::new(1), 0, SESSIONS_MAX);
        let look = alone.look(Mono(1), || unreachable!("asked for the usage"));
        assert_eq!(look, None);
    }
}
