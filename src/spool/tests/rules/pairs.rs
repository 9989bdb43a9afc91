//! Messages with two records, one of which is torn or cannot be read.

use super::*;

/// A message with two records: the one that counts, and the other.
type Pair = (MessageId, Extent, Extent);

/// A world at the moment when some messages have two records, if it comes.
fn with_pairs(seed: u64) -> (World, Vec<Pair>) {
    let mut world = with_stragglers(seed);
    for _ in 0..3_000 {
        world.step();
        if with_others(&world.spool).len() > 1 {
            break;
        }
    }
    let others = with_others(&world.spool).into_iter();
    let pairs = others.filter_map(|(id, other)| Some((id, world.spool.find(id)?, other.1)));
    let pairs = pairs.collect();
    (world, pairs)
}

/// What becomes of the segment of a message that was delivered.
#[derive(Debug, Clone, Copy)]
enum Afterwards {
    Stays,
    UsedAgain,
    Removed,
}

impl Afterwards {
    fn is_seen(self, world: &World, number: u32) -> bool {
        let segment = world.spool.mail.get(number);
        let holds = segment.map(|segment| !segment.slots.is_empty());
        match self {
            Self::Stays => holds == Some(true),
            Self::UsedAgain => holds == Some(false),
            Self::Removed => holds.is_none(),
        }
    }
}

impl World {
    /// Delivers messages to all their recipients.
    fn deliver(&mut self, which: impl Fn(Place, MessageId) -> bool) {
        for id in self.ids() {
            let place = self.spool.place(id.sequence());
            if !place.is_some_and(|place| which(place, id)) {
                continue;
            }
            for recipient in 0..self.promises[&id.sequence()].recipients {
                let kind = SettlementKind::Delivered;
                let settlement = Settlement {
                    id,
                    recipient,
                    kind,
                };
                self.spool.settle(settlement, self.now);
            }
        }
    }
}

// A message is delivered while another record of it is where nothing can be read. When that can be
// read, it does not come back, whatever became of the one that it was delivered from.
#[test]
fn what_was_delivered_stays_so_when_another_record_is_read() {
    for afterwards in [
        Afterwards::Stays,
        Afterwards::UsedAgain,
        Afterwards::Removed,
    ] {
        let mut ended = 0;
        for seed in 0..100 {
            let (mut world, pairs) = with_pairs(seed);
            world.in_flight.clear();
            world.tokens.clear();
            let apart = |(_, copy, other): &&Pair| copy.location.segment != other.location.segment;
            let Some((id, copy, other)) = pairs.iter().find(apart).copied() else {
                continue;
            };
            let (here, unread) = (copy.location.segment, other.location.segment);
            recover_without_segments(&mut world, &BTreeSet::from([unread]));
            world.spool.reclaim.enabled = false;
            world.settle_down();
            assert_eq!(world.spool.find(id), Some(copy), "seed {seed}");
            world.spool.config.free_kept = match afterwards {
                Afterwards::Removed => limits::SPOOL_SPARE_SEGMENTS,
                Afterwards::Stays | Afterwards::UsedAgain => 100,
            };
            let all = !matches!(afterwards, Afterwards::Stays);
            world.deliver(|place, one| one == id || all && place.segment == here);
            world.settle_down();
            assert!(world.spool.find(id).is_none(), "seed {seed}: delivered");
            if !afterwards.is_seen(&world, here) {
                continue;
            }
            let file = world.files[&(Log::Message, unread)].clone();
            world.spool.doubtful(Log::Message, unread, &file);
            let adopted = world.spool.adopt(Log::Message, unread, &file, world.now);
            assert!(
                !adopted.waiting.contains(&id) && world.spool.find(id).is_none(),
                "seed {seed}, {afterwards:?}: it came back"
            );
            world.settle_down();
            world.crash_only();
            assert!(
                world.spool.find(id).is_none(),
                "seed {seed}, {afterwards:?}: the next start brought it back"
            );
            ended += 1;
        }
        assert!(ended > 20, "{ended} messages, {afterwards:?}");
    }
}

/// The last block of a record's content, if no head is in it.
fn last_block(record: &Extent) -> Option<(u32, usize)> {
    let end = (record.content + record.location.len) as usize;
    let last = end.checked_sub(1)? / BLOCK_BYTES * BLOCK_BYTES;
    (last >= record.content as usize).then_some((record.location.segment, last))
}

// The content of a copy cannot be read at the start, and nothing vouches for it: the original
// counts, which can be read. If it did not, it would be taken for the spare one and used again.
#[test]
fn an_original_stands_in_for_a_copy_that_cannot_be_checked() {
    let (mut stood_in, none) = (0, BTreeSet::new());
    for seed in 0..400 {
        let (mut world, pairs) = with_pairs(seed);
        world.in_flight.clear();
        world.tokens.clear();
        let config = config(seed);
        for (id, copy, other) in pairs {
            recover_without(&mut world, config, BTreeSet::new(), &none);
            let Some(block) = last_block(&copy) else {
                continue;
            };
            if world.spool.find(id) == Some(copy) && world.is_whole(id, &other) {
                recover_without(&mut world, config, BTreeSet::from([block]), &none);
                stood_in += usize::from(world.spool.find(id) == Some(other));
            }
        }
    }
    assert!(stood_in > 5, "{stood_in} stood in");
}

// The original of a message can be read late only, and then the content of its copy, which a crash
// tore: the message is not lost.
#[test]
fn an_original_stands_in_for_a_torn_copy_that_is_read_later() {
    let mut torn = 0;
    for seed in 0..400 {
        let (mut world, pairs) = with_pairs(seed);
        world.in_flight.clear();
        world.tokens.clear();
        let config = config(seed);
        for (id, copy, other) in pairs {
            let (first, second) = (other.location.segment, copy.location.segment);
            let Some(block) = last_block(&copy) else {
                continue;
            };
            if first == second || !world.is_whole(id, &other) {
                continue;
            }
            let files = world.files.clone();
            let file = world.files.get_mut(&(Log::Message, second));
            file.expect("a file")[block.1] ^= 1;
            let unheaded = BTreeSet::from([first]);
            recover_without(&mut world, config, BTreeSet::from([block]), &unheaded);
            world.spool.reclaim.enabled = false;
            // Of a group that others vouch for no content is checked.
            if world.spool.unread().contains(&(Log::Message, second)) {
                assert_eq!(world.spool.find(id), Some(copy), "seed {seed}");
                for segment in [first, second] {
                    let file = &world.files[&(Log::Message, segment)];
                    world.spool.doubtful(Log::Message, segment, file);
                    world.spool.adopt(Log::Message, segment, file, world.now);
                }
                assert_eq!(world.spool.find(id), Some(other), "seed {seed}");
                torn += 1;
            }
            world.files = files;
        }
    }
    assert!(torn > 5, "{torn} torn");
}

// A copy that a crash tore is the only record of its message that a start can read: the message is
// not buried, for its original is whole, and read later.
#[test]
fn a_torn_copy_does_not_bury_an_original_that_is_read_later() {
    let mut came = 0;
    for seed in 0..400 {
        let (mut world, pairs) = with_pairs(seed);
        world.in_flight.clear();
        world.tokens.clear();
        for (id, copy, other) in pairs {
            let (first, second) = (other.location.segment, copy.location.segment);
            let Some((_, at)) = last_block(&copy) else {
                continue;
            };
            if first == second || !world.is_whole(id, &other) {
                continue;
            }
            let files = world.files.clone();
            let file = world.files.get_mut(&(Log::Message, second));
            file.expect("a file")[at] ^= 1;
            recover_without_segments(&mut world, &BTreeSet::from([first]));
            // Of a group that others vouch for no content is checked.
            if world.spool.find(id).is_none() {
                // All that is known is written down.
                world.settle_down();
                let file = world.files[&(Log::Message, first)].clone();
                world.spool.doubtful(Log::Message, first, &file);
                let adopted = world.spool.adopt(Log::Message, first, &file, world.now);
                assert!(adopted.waiting.contains(&id), "seed {seed}: it is lost");
                world.settle_down();
                world.crash_only();
                assert!(
                    world.spool.find(id).is_some(),
                    "seed {seed}: it is lost then"
                );
                came += 1;
            }
            world.files = files;
        }
    }
    assert!(came > 5, "{came} came");
}
