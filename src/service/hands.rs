//! hands - which messages were in hand when the process died, and how often.
//!
//! What: a table of words that outlives the process (`in-hand` in the data directory, mapped and
//! never synced). A shard notes there what it works on; a process that ends by its own fault marks
//! its table ([`crate::engine::CrashWatch`]); the next start reads both and counts. A message that
//! was in hand at `spool.poison_crashes` crashes is not tried again: it goes to quarantine.
//! Why this way: a process that dies by a panic or a signal of its own making was doing something
//! for somebody, and the page cache survives it. After SIGKILL, an OOM kill or a power cut there is
//! no mark, and nothing is counted: those say nothing about the mail, and an operator's `kill -9`
//! during a campaign must not put honest mail aside, however often it comes.
//!
//! # Whom a crash accuses
//! A shard works on one thing at a time, and notes whose turn it is ([`Hands::turn`]). A crash in
//! somebody's turn accuses what that somebody had in hand, which is the messages of one connection;
//! a crash in nobody's turn (the spool's, the signer's, another thread's) accuses all that was in
//! hand. The accused are tried one after the other (`service::suspects`), each alone on its
//! connection, so that the innocent are cleared by an attempt that ends, however it ends, and the
//! guilty one is alone when it strikes again.
//! A panic that ends one connection's task only, and not the process, accuses in the same way.
//!
//! # Words
//! | word | content |
//! |---|---|
//! | 0 | "PRHANDS" and the version, 1 |
//! | 1 | shards; from bit 32 on, slots of each |
//! | 2 | places for suspects |
//! | 3 | words 0, 1 and 2 combined, to tell a torn file |
//! | 4.. | the last date, and the jumps of the clock ([`crate::service::dates`]) |
//! | then | suspects, two words each: message id + 1, crashes |
//! | per shard | 1 when it crashed; whose turn; slots, two words each: message id + 1, who has it |
//!
//! The next start writes the new file beside the old one and renames it, so that a crash on the way
//! counts nothing twice.
//!
//! Cost: two stores to take a message in hand, one to let it go, two per turn. 256 KiB per shard
//! and 256 KiB for suspects, on disk; in memory what was ever touched.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::engine::Words;
use crate::limits::{HANDS_SLOTS, SUSPECTS_MAX};
use crate::message::MessageId;
use crate::service::dates::{DATES_WORDS, Dates};

const MAGIC: u64 = u64::from_le_bytes(*b"PRHANDS\x01");
const HEADER_WORDS: usize = 4;
/// Where suspects are listed.
const SUSPECTS_AT: usize = HEADER_WORDS + DATES_WORDS;
/// Words of a suspect, and of a slot.
const PAIR: usize = 2;
/// Before a shard's slots: whether it crashed, and whose turn it was.
const SECTION_HEAD: usize = 2;

/// How often each suspect was in hand at a crash.
pub type Suspects = BTreeMap<MessageId, u64>;

const fn section_words() -> usize {
    SECTION_HEAD + PAIR * HANDS_SLOTS
}

/// Words of a table for so many shards.
#[must_use]
pub fn table_words(shards: u16) -> usize {
    SUSPECTS_AT + PAIR * SUSPECTS_MAX + shards as usize * section_words()
}

/// The word that a crash of this shard sets to 1.
#[must_use]
pub fn crash_word(shard: u16) -> usize {
    SUSPECTS_AT + PAIR * SUSPECTS_MAX + shard as usize * section_words()
}

/// The first words of a table: everything about it but what is in hand.
#[must_use]
pub fn encode(shards: u16, suspects: &Suspects, dates: &Dates) -> Vec<u64> {
    let mut words = vec![0; table_words(shards)];
    let head = [
        MAGIC,
        u64::from(shards) | (HANDS_SLOTS as u64) << 32,
        SUSPECTS_MAX as u64,
    ];
    words[..3].copy_from_slice(&head);
    words[3] = seal(head);
    words[HEADER_WORDS..SUSPECTS_AT].copy_from_slice(&dates.encode());
    // Those accused most often first: they must not be forgotten where there is not room for all.
    let mut listed: Vec<_> = suspects.iter().collect();
    listed.sort_by_key(|(_, crashes)| std::cmp::Reverse(**crashes));
    for ((id, crashes), pair) in listed
        .into_iter()
        .take(SUSPECTS_MAX)
        .zip(words[SUSPECTS_AT..].chunks_exact_mut(PAIR))
    {
        pair.copy_from_slice(&[id.0 + 1, *crashes]);
    }
    words
}

fn seal(head: [u64; 3]) -> u64 {
    head.iter().fold(!0, |seal, word| {
        (seal ^ word)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(29)
    })
}

/// What an earlier life's table says: the suspects, those of its last crash counted, and its dates.
/// Total: words that make no sense accuse nobody.
#[must_use]
pub fn absorb(words: &[u64]) -> (Suspects, Dates) {
    let mut suspects = Suspects::new();
    let Some([magic, sizes, places, sealed]) = words.first_chunk() else {
        return (suspects, Dates::default());
    };
    let (slots, shards) = ((sizes >> 32) as usize, (sizes & 0xffff_ffff) as usize);
    let known = *magic == MAGIC && *sealed == seal([*magic, *sizes, *places]);
    if !known || *places != SUSPECTS_MAX as u64 || slots != HANDS_SLOTS {
        return (suspects, Dates::default());
    }
    let (dates, rest) = words[HEADER_WORDS..]
        .split_at_checked(DATES_WORDS)
        .unwrap_or_default();
    let (listed, sections) = rest
        .split_at_checked(PAIR * SUSPECTS_MAX)
        .unwrap_or_default();
    for pair in listed.chunks_exact(PAIR) {
        if let Some(id) = id_of(pair[0]) {
            suspects.insert(id, pair[1]);
        }
    }
    for section in sections.chunks_exact(section_words()).take(shards) {
        for id in accused(section) {
            let crashes = suspects.entry(id).or_default();
            *crashes = crashes.saturating_add(1);
        }
    }
    (suspects, Dates::decode(dates))
}

/// Whom the last crash of a shard accuses; each once, however many of its recipients were in hand.
fn accused(section: &[u64]) -> impl Iterator<Item = MessageId> {
    let (crashed, turn) = (section[0] == 1, section[1]);
    let mut ids: Vec<MessageId> = section[SECTION_HEAD..]
        .chunks_exact(PAIR)
        .filter(|pair| crashed && (turn == 0 || pair[1] == turn))
        .filter_map(|pair| id_of(pair[0]))
        .collect();
    ids.sort_unstable();
    ids.dedup();
    ids.into_iter()
}

fn id_of(word: u64) -> Option<MessageId> {
    let id = MessageId(word.checked_sub(1)?);
    (id.shard() < crate::limits::SHARDS_MAX).then_some(id)
}

/// One shard's part of the table.
pub struct Hands {
    words: Arc<dyn Words>,
    /// Where the shard's words start.
    base: usize,
    /// Slots given back, and the first that was never taken.
    free: RefCell<Vec<u32>>,
    untouched: Cell<u32>,
    next_owner: Cell<u64>,
    /// Of the suspects this shard knows: where they are listed, and what they are accused of.
    suspects: RefCell<HashMap<MessageId, Suspect>>,
    crashes_max: u64,
}

#[derive(Debug, Clone, Copy)]
struct Suspect {
    /// None for one that another shard has condemned, or that is put aside: it is for this life.
    place: Option<usize>,
    crashes: u64,
    /// Its sender is about to be told of a failure: an attempt that has ended does not clear it.
    bouncing: bool,
}

/// Who has a message in hand: a connection, a notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner(u64);

impl std::fmt::Debug for Hands {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Hands({} suspects)", self.suspects.borrow().len())
    }
}

impl Hands {
    /// The part of `shard` in a table that [`encode`] made. What was in hand at `crashes_max`
    /// crashes is condemned.
    ///
    /// # Panics
    /// Where the table is too short for the shard: the node made it.
    #[must_use]
    pub fn new(words: Arc<dyn Words>, shard: u16, crashes_max: u32) -> Rc<Self> {
        let base = crash_word(shard);
        assert!(words.words().len() >= base + section_words());
        let mut suspects = HashMap::new();
        for place in 0..SUSPECTS_MAX {
            let at = SUSPECTS_AT + PAIR * place;
            let pair = [at, at + 1].map(|at| words.words()[at].load(Ordering::Relaxed));
            if let Some(id) = id_of(pair[0]) {
                let suspect = Suspect {
                    place: Some(place),
                    crashes: pair[1],
                    bouncing: false,
                };
                suspects.insert(id, suspect);
            }
        }
        Rc::new(Self {
            words,
            base,
            free: RefCell::default(),
            untouched: Cell::new(0),
            next_owner: Cell::new(1),
            suspects: RefCell::new(suspects),
            crashes_max: u64::from(crashes_max),
        })
    }

    /// A table that only this process knows: where there is no file.
    #[must_use]
    pub fn unkept(crashes_max: u32) -> Rc<Self> {
        let words = encode(1, &Suspects::new(), &Dates::default());
        let words: Vec<AtomicU64> = words.into_iter().map(AtomicU64::new).collect();
        Self::new(Arc::new(words), 0, crashes_max)
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        &self.words.words()[at]
    }

    /// What is known of the clock.
    #[must_use]
    pub fn dates(&self) -> Dates {
        let words = HEADER_WORDS..SUSPECTS_AT;
        let words: Vec<u64> = words
            .map(|at| self.word(at).load(Ordering::Relaxed))
            .collect();
        Dates::decode(&words)
    }

    /// Writes the date down, and the jumps so far. For one shard of the node: they all see the
    /// same.
    pub fn note_dates(&self, dates: &Dates) {
        for (at, word) in (HEADER_WORDS..SUSPECTS_AT).zip(dates.encode()) {
            self.word(at).store(word, Ordering::Relaxed);
        }
    }

    /// Somebody new, who will have messages in hand.
    #[must_use]
    pub fn owner(&self) -> Owner {
        let owner = self.next_owner.get();
        self.next_owner.set(owner + 1);
        Owner(owner)
    }

    /// Notes that `owner` works on a message, until the mark is dropped. A full table notes
    /// nothing: then a crash accuses fewer than it might.
    #[must_use]
    pub fn hold(self: &Rc<Self>, id: MessageId, owner: Owner) -> Mark {
        let slot = self.free.borrow_mut().pop().or_else(|| self.touch());
        if let Some(slot) = slot {
            let at = self.slot(slot);
            self.word(at + 1).store(owner.0, Ordering::Relaxed);
            self.word(at).store(id.0 + 1, Ordering::Relaxed);
        }
        Mark {
            hands: Rc::clone(self),
            id,
            slot,
        }
    }

    /// The next slot that was never taken: few pages are ever touched.
    fn touch(&self) -> Option<u32> {
        let slot = self.untouched.get();
        let left = (slot as usize) < HANDS_SLOTS;
        left.then(|| {
            self.untouched.set(slot + 1);
            slot
        })
    }

    fn slot(&self, slot: u32) -> usize {
        self.base + SECTION_HEAD + PAIR * slot as usize
    }

    /// Notes that it is `owner`'s turn, until the guard is dropped.
    #[must_use]
    pub fn turn(&self, owner: Owner) -> Turn<'_> {
        let word = self.word(self.base + 1);
        let before = word.swap(owner.0, Ordering::Relaxed);
        Turn { word, before }
    }

    /// A panic has ended somebody's turn, and the process lives.
    pub fn turn_is_over(&self) {
        self.word(self.base + 1).store(0, Ordering::Relaxed);
    }

    /// Runs `task` as `owner`'s, whose turn it is whenever it is polled.
    pub async fn during<T>(&self, owner: Owner, task: impl Future<Output = T>) -> T {
        let mut task = pin!(task);
        poll_fn(|context| {
            let _turn = self.turn(owner);
            task.as_mut().poll(context)
        })
        .await
    }

    /// Whether a message was in hand at a crash and has not been cleared since.
    #[must_use]
    pub fn is_suspect(&self, id: MessageId) -> bool {
        let suspects = self.suspects.borrow();
        !suspects.is_empty() && suspects.contains_key(&id)
    }

    /// Whether a message was in hand so often that it is not tried again.
    #[must_use]
    pub fn is_condemned(&self, id: MessageId) -> bool {
        let suspects = self.suspects.borrow();
        !suspects.is_empty()
            && suspects
                .get(&id)
                .is_some_and(|suspect| suspect.crashes >= self.crashes_max)
    }

    /// How often a message was in hand at a crash.
    #[must_use]
    pub fn crashes(&self, id: MessageId) -> u64 {
        let suspects = self.suspects.borrow();
        suspects.get(&id).map_or(0, |suspect| suspect.crashes)
    }

    /// A panic that the process survives struck while the message was in hand.
    pub fn accuse(&self, id: MessageId) {
        let mut suspects = self.suspects.borrow_mut();
        if let Some(suspect) = suspects.get_mut(&id) {
            suspect.crashes = suspect.crashes.saturating_add(1);
            if let Some(place) = suspect.place {
                self.word(SUSPECTS_AT + PAIR * place + 1)
                    .store(suspect.crashes, Ordering::Relaxed);
            }
            return;
        }
        let free = (0..SUSPECTS_MAX).find(|place| {
            let word = self.word(SUSPECTS_AT + PAIR * place);
            // Other shards take places too.
            word.compare_exchange(0, id.0 + 1, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        });
        if let Some(place) = free {
            self.word(SUSPECTS_AT + PAIR * place + 1)
                .store(1, Ordering::Relaxed);
            let suspect = Suspect {
                place: Some(place),
                crashes: 1,
                bouncing: false,
            };
            suspects.insert(id, suspect);
        }
    }

    /// Another shard has condemned a message: it is not tried here either, as long as this process
    /// lives. What is kept for the next is that shard's note. Where there is no room nothing is
    /// noted: then it is tried here, and condemned by what comes of that.
    pub fn condemn(&self, id: MessageId) {
        let mut suspects = self.suspects.borrow_mut();
        if let Some(suspect) = suspects.get_mut(&id) {
            suspect.crashes = suspect.crashes.max(self.crashes_max);
        } else if suspects.len() < SUSPECTS_MAX {
            let suspect = Suspect {
                place: None,
                crashes: self.crashes_max,
                bouncing: false,
            };
            suspects.insert(id, suspect);
        }
    }

    /// A message is in quarantine: the next life need not know of it, and whoever still has an
    /// entry of it in this one does not try it.
    pub fn put_aside(&self, id: MessageId) {
        self.clear(id);
        self.condemn(id);
    }

    /// The sender of a message is being told of a failure: what comes of that is still to be seen.
    pub fn bouncing(&self, id: MessageId) {
        if let Some(suspect) = self.suspects.borrow_mut().get_mut(&id) {
            suspect.bouncing = true;
        }
    }

    /// Forgets suspects of a spool that are not in it any more: they left, and the note that
    /// cleared them was lost.
    pub fn forget_absent(&self, spool: u16, has: impl Fn(MessageId) -> bool) {
        let suspects = self.suspects.borrow();
        let absent = suspects
            .keys()
            .copied()
            .filter(|id| id.shard() == spool && !has(*id));
        let absent: Vec<MessageId> = absent.collect();
        drop(suspects);
        for id in absent {
            self.clear(id);
        }
    }

    /// An attempt has ended, and the process lives: the message is cleared, unless its sender is
    /// still to be told of a failure.
    pub fn tried(&self, id: MessageId) {
        let suspects = self.suspects.borrow();
        if suspects.get(&id).is_some_and(|suspect| !suspect.bouncing) {
            drop(suspects);
            self.clear(id);
        }
    }

    /// The message has left, or its sender has been told: it is cleared.
    pub fn clear(&self, id: MessageId) {
        let removed = self.suspects.borrow_mut().remove(&id);
        if let Some(place) = removed.and_then(|suspect| suspect.place) {
            let at = SUSPECTS_AT + PAIR * place;
            self.word(at + 1).store(0, Ordering::Relaxed);
            self.word(at).store(0, Ordering::Relaxed);
        }
    }
}

/// A message in hand, until dropped.
#[derive(Debug)]
pub struct Mark {
    hands: Rc<Hands>,
    id: MessageId,
    slot: Option<u32>,
}

impl Mark {
    /// The message.
    #[must_use]
    pub fn id(&self) -> MessageId {
        self.id
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        // A panic that ends the process unwinds through here first: the note must outlive it.
        if let Some(slot) = self.slot.filter(|_| !std::thread::panicking()) {
            self.hands
                .word(self.hands.slot(slot))
                .store(0, Ordering::Relaxed);
            self.hands.free.borrow_mut().push(slot);
        }
    }
}

/// Somebody's turn, until dropped.
pub struct Turn<'a> {
    word: &'a AtomicU64,
    before: u64,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // As with a mark; where the process lives, `turn_is_over` is called.
        if !std::thread::panicking() {
            self.word.store(self.before, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::SHARDS_MAX;

    type Table = Arc<Vec<AtomicU64>>;

    fn table(shards: u16, suspects: &Suspects) -> Table {
        let words = encode(shards, suspects, &Dates::default());
        Arc::new(words.into_iter().map(AtomicU64::new).collect())
    }

    fn hands(table: &Table, shard: u16) -> Rc<Hands> {
        Hands::new(Arc::clone(table) as Arc<dyn Words>, shard, 3)
    }

    fn image(table: &Table) -> Vec<u64> {
        table
            .iter()
            .map(|word| word.load(Ordering::Relaxed))
            .collect()
    }

    fn suspects_of(table: &Table) -> Suspects {
        absorb(&image(table)).0
    }

    fn crash(table: &Table, shard: u16) {
        table[crash_word(shard)].store(1, Ordering::Relaxed);
    }

    fn id(sequence: u64) -> MessageId {
        MessageId::new(1, sequence)
    }

    // Killed with 1,000 messages in hand, 200 times: nobody is accused.
    #[test]
    fn a_kill_accuses_nobody() {
        let mut suspects = Suspects::new();
        for _ in 0..200 {
            let table = table(2, &suspects);
            let hands = hands(&table, 1);
            let owner = hands.owner();
            let marks: Vec<Mark> = (0..1_000).map(|n| hands.hold(id(n), owner)).collect();
            let _turn = hands.turn(owner);
            suspects = suspects_of(&table);
            drop(marks);
        }
        assert!(suspects.is_empty());
    }

    // A crash in a connection's turn accuses what that connection has; a crash in nobody's turn all
    // that the shard has; neither what another shard has.
    #[test]
    fn a_crash_accuses_those_in_hand() {
        let table = table(2, &Suspects::new());
        let (one, two) = (hands(&table, 0), hands(&table, 1));
        let (a, b) = (one.owner(), one.owner());
        let marks = [
            one.hold(id(1), a),
            one.hold(id(2), b),
            // Two entries of one message are one message.
            one.hold(id(1), a),
            two.hold(id(3), two.owner()),
        ];
        crash(&table, 0);
        assert_eq!(
            suspects_of(&table),
            Suspects::from([(id(1), 1), (id(2), 1)])
        );
        let turn = one.turn(a);
        assert_eq!(suspects_of(&table), Suspects::from([(id(1), 1)]));
        drop(turn);
        drop(marks);
        assert_eq!(suspects_of(&table), Suspects::new());
    }

    // Three lives with the same message in hand condemn it; one attempt that ends in between clears
    // it.
    #[test]
    fn three_crashes_condemn_and_an_attempt_clears() {
        let mut suspects = Suspects::new();
        for life in 0..5u64 {
            let table = table(1, &suspects);
            let hands = hands(&table, 0);
            assert_eq!(hands.crashes(id(7)), life);
            assert_eq!(hands.is_suspect(id(7)), life > 0);
            assert_eq!(hands.is_condemned(id(7)), life >= 3);
            let owner = hands.owner();
            let innocent = hands.hold(id(8), owner);
            hands.tried(id(8));
            assert_eq!(hands.crashes(id(8)), 0);
            let _marks = [innocent, hands.hold(id(7), owner)];
            crash(&table, 0);
            suspects = suspects_of(&table);
        }
        let table = table(1, &suspects);
        hands(&table, 0).tried(id(7));
        assert_eq!(suspects_of(&table).get(&id(7)), None);
    }

    // What another shard has condemned is not tried, and takes no place in the table; what this
    // one accused itself keeps its place until it is put aside.
    #[test]
    fn the_condemned_of_others_are_not_tried() {
        let table = table(2, &Suspects::new());
        let (one, two) = (hands(&table, 0), hands(&table, 1));
        for _ in 0..3 {
            one.accuse(id(7));
        }
        two.condemn(id(7));
        assert!(one.is_condemned(id(7)) && two.is_condemned(id(7)));
        assert_eq!(suspects_of(&table), Suspects::from([(id(7), 3)]));
        two.accuse(id(7));
        two.accuse(id(8));
        two.condemn(id(8));
        assert!(two.is_condemned(id(8)) && !one.is_condemned(id(8)));
        let both = Suspects::from([(id(7), 3), (id(8), 1)]);
        assert_eq!(suspects_of(&table), both);
        for hands in [&one, &two] {
            hands.put_aside(id(7));
            assert!(hands.is_condemned(id(7)));
        }
        assert_eq!(suspects_of(&table), Suspects::from([(id(8), 1)]));
        // As many as there is room for.
        for n in 0..2 * SUSPECTS_MAX as u64 {
            two.condemn(id(1_000 + n));
        }
        assert_eq!(two.suspects.borrow().len(), SUSPECTS_MAX);
        assert!(two.is_condemned(id(1_000)));
        assert!(!two.is_condemned(id(999 + 2 * SUSPECTS_MAX as u64)));
    }

    // What is still to be told to the sender is not cleared by the attempt.
    #[test]
    fn a_failure_clears_only_when_the_sender_was_told() {
        let table = table(1, &Suspects::from([(id(7), 2)]));
        let hands = hands(&table, 0);
        hands.bouncing(id(7));
        hands.tried(id(7));
        assert!(hands.is_suspect(id(7)));
        hands.clear(id(7));
        assert!(!hands.is_suspect(id(7)));
        assert_eq!(suspects_of(&table), Suspects::new());
    }

    // A panic that the process survives is kept for the next life, and condemns like a crash.
    #[test]
    fn panics_are_counted_and_kept() {
        let table = table(1, &Suspects::new());
        let hands = hands(&table, 0);
        for count in 1..=3 {
            hands.accuse(id(7));
            assert_eq!(hands.is_condemned(id(7)), count == 3);
            assert_eq!(suspects_of(&table), Suspects::from([(id(7), count)]));
        }
    }

    // More than there is room for: what was accused most often is kept, and nothing breaks.
    #[test]
    fn a_full_table_holds_what_it_can() {
        let mut suspects: Suspects = (0..SUSPECTS_MAX as u64 + 10).map(|n| (id(n), 1)).collect();
        let last = id(SUSPECTS_MAX as u64 + 9);
        suspects.insert(last, 2);
        let table = table(1, &suspects);
        let hands = hands(&table, 0);
        assert_eq!(hands.crashes(last), 2);
        hands.accuse(id(1 << 40));
        assert!(!hands.is_suspect(id(1 << 40)));
        let owner = hands.owner();
        let marks: Vec<Mark> = (0..HANDS_SLOTS as u64 + 5)
            .map(|n| hands.hold(id(n), owner))
            .collect();
        drop(marks);
        assert_eq!(
            hands.free.borrow().len(),
            HANDS_SLOTS,
            "all were given back"
        );
    }

    // Any words at all: no panic, and ids that exist.
    #[test]
    fn any_words_are_absorbed() {
        let mut random = crate::message::testing::Random(1);
        let whole = encode(3, &Suspects::from([(id(1), 1)]), &Dates::default());
        for _ in 0..300 {
            let mut words = whole.clone();
            for _ in 0..random.below(40) {
                let at = random.below(words.len());
                words[at] = random.next();
            }
            if random.below(2) == 0 {
                words[crash_word(1)] = 1;
            }
            words.truncate(random.below(words.len() + 1));
            for id in absorb(&words).0.keys() {
                assert!(id.shard() < SHARDS_MAX);
            }
        }
        assert!(absorb(&[]).0.is_empty() && absorb(&[MAGIC]).0.is_empty());
    }
}
