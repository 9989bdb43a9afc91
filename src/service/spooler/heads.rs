//! spooler::heads - the groups of a log, read for recovery.
//!
//! What: [`scan_all`] shows recovery the groups of each segment, in order.
//! Why this way: where one group ends its header says, so the heads of a segment can only be asked
//! for one after the other, and a disk answers a single asker slowly. Several segments are read at
//! a time; what those behind the first give waits for its turn. Heads alone are read where much
//! content lies between them, and past the page cache: of a million messages of 2 KiB that is 600
//! instead of 2,400 MB, in 1.5 instead of 2.2 s.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::{Future, poll_fn};
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use crate::engine::{Block, Port};
use crate::spool::format::{BLOCK_BYTES, GroupHeader, Log, SEGMENT_HEADER_BYTES, Stamp};
use crate::spool::recover::{Found, Recovery, Scan, Step};

use super::recovery::Patience;

/// Bytes that are read at once where groups are small.
const WINDOW_BYTES: usize = 16 << 10;
/// And where there are none: in what is left of a segment's earlier life.
const DESERT_BYTES: usize = 128 << 10;
/// Contents of a group from which on its neighbours' heads are read without them: a disk gives this
/// much in the time that it needs for one more request.
const APART_BYTES: usize = 24 << 10;
/// Where a file is looked at to see whether it is blank: a piece of its start, the rest of that,
/// and a piece now and then.
const BLANK_START_BYTES: usize = 1 << 20;
const BLANK_STEP_BYTES: usize = 4 << 20;
const BLANK_PIECE_BYTES: usize = 64 << 10;
/// Segments that are read at a time.
const SEGMENTS_AT_ONCE: usize = 8;
/// Heads that may wait for the first segment.
const WAITING_BYTES: usize = 32 << 20;

/// What a walk came upon.
enum Seen {
    Group {
        header: GroupHeader,
        at: u32,
        whole: bool,
        head: Box<[u8]>,
    },
    /// The disk does not give the block at this offset.
    Unreadable(u32),
}

/// What the walks over the segments of a log share.
#[derive(Default)]
struct Shared {
    /// The segment whose turn it is, as a place in their order.
    first: Cell<usize>,
    /// Bytes of heads that wait.
    waiting: Cell<usize>,
}

type Reading<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// A segment being read.
struct Walk<'a> {
    number: u32,
    seen: Rc<RefCell<VecDeque<Seen>>>,
    reading: Option<Reading<'a>>,
}

/// Shows recovery the groups of a log, segment by segment.
pub(super) async fn scan_all<P: Port>(
    port: &P,
    log: Log,
    files: &HashMap<(Log, u32), P::File>,
    patience: &Patience,
    recovery: &mut Recovery,
) {
    let order = recovery.order(log).into_iter();
    let mut order = order
        .filter_map(|(number, stamp)| Some((number, stamp, files.get(&(log, number))?)))
        .enumerate();
    let shared = Shared::default();
    let mut walks: VecDeque<Walk<'_>> = VecDeque::new();
    poll_fn(|context| {
        loop {
            while walks.len() < SEGMENTS_AT_ONCE
                && let Some((place, (number, stamp, file))) = order.next()
            {
                let seen = Rc::default();
                let sight = Sight {
                    place,
                    shared: &shared,
                    seen: Rc::clone(&seen),
                };
                let reading = walk(port, file, stamp, patience, sight);
                walks.push_back(Walk {
                    number,
                    seen,
                    reading: Some(Box::pin(reading)),
                });
            }
            for walk in &mut walks {
                walk.go_on(context);
            }
            let Some(first) = walks.front() else {
                return Poll::Ready(());
            };
            for seen in first.seen.take() {
                shared.show(log, first.number, &seen, recovery);
            }
            if first.reading.is_some() {
                return Poll::Pending;
            }
            walks.pop_front();
            shared.first.set(shared.first.get() + 1);
        }
    })
    .await;
}

impl Shared {
    fn show(&self, log: Log, number: u32, seen: &Seen, recovery: &mut Recovery) {
        match seen {
            Seen::Unreadable(offset) => recovery.unreadable(log, number, *offset),
            Seen::Group {
                header,
                at,
                whole,
                head,
            } => {
                self.waiting.set(self.waiting.get() - head.len());
                let found = Found {
                    header: *header,
                    at: *at,
                    head,
                    whole: *whole,
                };
                match log {
                    Log::State => recovery.state_group(number, &found),
                    Log::Message => recovery.mail_group(number, &found),
                }
            }
        }
    }
}

impl Walk<'_> {
    fn go_on(&mut self, context: &mut Context<'_>) {
        let over = |reading: &mut Reading<'_>| reading.as_mut().poll(context).is_ready();
        if self.reading.as_mut().is_some_and(over) {
            self.reading = None;
        }
    }
}

/// Where a walk puts what it comes upon.
struct Sight<'a> {
    place: usize,
    shared: &'a Shared,
    seen: Rc<RefCell<VecDeque<Seen>>>,
}

impl Sight<'_> {
    fn group(&self, found: &Found<'_>) {
        let waiting = &self.shared.waiting;
        waiting.set(waiting.get() + found.head.len());
        self.seen.borrow_mut().push_back(Seen::Group {
            header: found.header,
            at: found.at,
            whole: found.whole,
            head: found.head.into(),
        });
    }

    /// Waits while too much waits for the first segment. Looked at whenever that one goes on.
    async fn room(&self) {
        let shared = self.shared;
        poll_fn(|_| {
            let room = shared.waiting.get() < WAITING_BYTES;
            match room || shared.first.get() == self.place {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await;
    }
}

async fn walk<P: Port>(
    port: &P,
    file: &P::File,
    stamp: Stamp,
    patience: &Patience,
    sight: Sight<'_>,
) {
    // A file that cannot be looked at is as one that is empty: its segment stays as it is.
    let len = port.file_len(file).map_or(0, |len| len as usize);
    if is_blank(port, file, SEGMENT_HEADER_BYTES).await {
        return;
    }
    let mut scan = Scan::new(stamp);
    let mut window = Window::default();
    let mut held = Block::zeroed(BLOCK_BYTES);
    let mut granted = 0;
    loop {
        match scan.step_within(&held[..granted], len) {
            Step::Need(needed) => {
                sight.room().await;
                let wide = window.around(&needed, len);
                let read = match read_range(port, file, wide.clone()).await {
                    Ok(block) => Ok((block, wide)),
                    Err(_) => patience
                        .insist(port, async || read_range(port, file, needed.clone()).await)
                        .await
                        .map(|block| (block, needed.clone())),
                };
                match read {
                    Ok((block, range)) => {
                        (held, granted) = (block, range.len());
                        scan.grant(range);
                    }
                    Err(_) => {
                        sight
                            .seen
                            .borrow_mut()
                            .push_back(Seen::Unreadable(needed.start as u32));
                        granted = 0;
                        scan.grant(0..0);
                        scan.unreadable();
                    }
                }
            }
            Step::Group(found) => {
                window.follow(&found);
                sight.group(&found);
            }
            Step::End => return,
        }
    }
}

/// Whether a file holds nothing but zeros from `start` on, wherever it is looked at: a segment that
/// was made ahead of need. To read all of one takes 50 ms, and a start may find many; one that was
/// used has mail in its first mebibyte, whatever became of its headers.
pub(super) async fn is_blank<P: Port>(port: &P, file: &P::File, start: usize) -> bool {
    let len = port.file_len(file).map_or(0, |len| len as usize);
    let first = [
        start..start + BLANK_PIECE_BYTES,
        start + BLANK_PIECE_BYTES..BLANK_START_BYTES,
    ];
    let others = (BLANK_STEP_BYTES..len).step_by(BLANK_STEP_BYTES);
    let others = others.map(|at| at..at + BLANK_PIECE_BYTES);
    for range in first.into_iter().chain(others) {
        let range = range.start..range.end.min(len);
        if range.is_empty() {
            continue;
        }
        let read = read_range(port, file, range).await;
        if !read.is_ok_and(|block| block.iter().all(|byte| *byte == 0)) {
            return false;
        }
    }
    true
}

/// A range of a file that begins with a block, whole.
pub(super) async fn read_range<P: Port>(
    port: &P,
    file: &P::File,
    range: Range<usize>,
) -> io::Result<Block> {
    let block = Block::zeroed(range.len());
    let (block, read) = port.read(file, range.start as u64, block).await;
    match read? {
        read if read >= range.len() => Ok(block),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// How much is read at once: of large groups the heads alone, of small ones several.
#[derive(Debug, Default)]
struct Window {
    /// Where the group before ends, and how much to read there.
    next: Option<(usize, usize)>,
}

impl Window {
    fn follow(&mut self, group: &Found<'_>) {
        let head = group.header.head_len as usize;
        let total = group.header.total_len as usize;
        // With room for a head that is somewhat larger than this one.
        let bytes = match total.saturating_sub(head) >= APART_BYTES {
            true => head + head / 4,
            false => WINDOW_BYTES,
        };
        self.next = Some((group.at as usize + total, bytes));
    }

    /// What to ask for when `needed` is needed of a file of `len` bytes.
    fn around(&self, needed: &Range<usize>, len: usize) -> Range<usize> {
        let bytes = match self.next {
            Some((next, bytes)) if next == needed.start => bytes,
            _ => DESERT_BYTES,
        };
        let end = needed.start.saturating_add(bytes).max(needed.end);
        needed.start..end.next_multiple_of(BLOCK_BYTES).min(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(at: u32, head: u32, total: u32) -> Found<'static> {
        let header = GroupHeader {
            stamp: Stamp {
                generation: 1,
                salt: 1,
            },
            sequence: 1,
            offset: at,
            head_len: head,
            total_len: total,
            records: 1,
            roster: 0,
            proven: 0,
            state_proven: 0,
            next_sequence: 0,
        };
        Found {
            header,
            at,
            head: &[],
            whole: true,
        }
    }

    // Where a large group ends, the next head is asked for and little more; where a small one ends,
    // several; elsewhere, much; never beyond the file.
    #[test]
    fn asks_for_heads() {
        let mut window = Window::default();
        let asked = |window: &Window, at: usize| {
            let needed = at..at + BLOCK_BYTES;
            window.around(&needed, 1 << 20).len()
        };
        assert_eq!(asked(&window, 8192), DESERT_BYTES);
        window.follow(&group(8192, 10_000, 200 << 10));
        assert_eq!(asked(&window, 8192 + (200 << 10)), 16 << 10);
        assert_eq!(asked(&window, 12288 + (200 << 10)), DESERT_BYTES);
        window.follow(&group(8192, 400, 4096));
        assert_eq!(asked(&window, 12288), WINDOW_BYTES);
        assert_eq!(asked(&window, (1 << 20) - 4096), 4096);
        // A head that is larger than what is asked for otherwise.
        assert_eq!(window.around(&(12288..100_000), 1 << 20), 12288..102_400);
    }
}
