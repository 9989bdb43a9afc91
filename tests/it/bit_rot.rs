//! bit_rot - a stopped daemon's files are damaged: it starts, it delivers what is whole, and never
//! sends anything that differs from what was submitted.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use postrider::lab::load::{self, LoadOptions};

use crate::books;
use crate::harness::{Scratch, is_long, wait_until};
use crate::life::{Dice, Life, place, sink};

const BLOCK: u64 = 4096;
const MESSAGES: u64 = 60;
const SIZE: usize = 6000;
/// So many are in one commit group at most, and one damaged place touches two groups at most.
const SESSIONS: u32 = 4;

/// The logs below `directory`.
fn logs(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|end| end == "log") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Bytes up to the last one that is not zero: what has been written to.
fn used(path: &Path) -> u64 {
    let bytes = fs::read(path).unwrap();
    let last = bytes.iter().rposition(|byte| *byte != 0);
    last.map_or(0, |last| last as u64 + 1)
}

/// Damages one place, and returns what was done and how many messages that may cost.
fn damage(path: &Path, dice: &mut Dice) -> (String, u64) {
    let used = used(path);
    let blocks = used.div_ceil(BLOCK).max(2);
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    // A block that is damaged belongs to one group, or to the end of one and the start of the next.
    let touched = 2 * u64::from(SESSIONS);
    match dice.below(4) {
        0 => {
            let (at, bit) = (dice.below(used.max(1)), dice.below(8));
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            byte[0] ^= 1 << bit;
            file.write_all_at(&byte, at).unwrap();
            (format!("{name}: bit {bit} of byte {at} flipped"), touched)
        }
        1 => {
            let cut = dice.below(used.clamp(1, 8 * BLOCK)) + 1;
            let end = used.saturating_sub(cut);
            file.set_len(end).unwrap();
            let gone = cut.div_ceil(SIZE as u64) + touched;
            (format!("{name}: cut at {end}, {cut} before the end"), gone)
        }
        2 => {
            let at = dice.below(blocks) * BLOCK;
            file.write_all_at(&[0; BLOCK as usize], at).unwrap();
            (format!("{name}: block at {at} zeroed"), touched)
        }
        _ => {
            let (one, two) = (dice.below(blocks) * BLOCK, dice.below(blocks) * BLOCK);
            swap(&file, one, two);
            (
                format!("{name}: blocks at {one} and {two} swapped"),
                2 * touched,
            )
        }
    }
}

fn swap(file: &File, one: u64, two: u64) {
    let mut blocks = [[0; BLOCK as usize]; 2];
    file.read_exact_at(&mut blocks[0], one).unwrap();
    file.read_exact_at(&mut blocks[1], two).unwrap();
    file.write_all_at(&blocks[0], two).unwrap();
    file.write_all_at(&blocks[1], one).unwrap();
}

/// A spool with acknowledged mail that nobody was there to receive, its daemon killed.
fn full_spool(scratch: &Scratch) -> (PathBuf, PathBuf) {
    let (data, ledger) = (
        scratch.path().join("pristine"),
        scratch.path().join("sent.ledger"),
    );
    let mut life = Life::new(&scratch.path().join("first"), &data, place());
    life.start();
    let report = load::run(LoadOptions {
        target: life.address,
        messages: MESSAGES,
        size: SIZE,
        sessions: SESSIONS,
        domains: 1,
        ledger: Some(ledger.clone()),
        ..LoadOptions::default()
    })
    .unwrap();
    assert_eq!(report.accepted, MESSAGES);
    life.kill();
    (data, ledger)
}

/// One damaged copy; how many messages it cost.
fn trial(number: u64, pristine: &Path, ledger: &Path) -> u64 {
    let scratch = Scratch::new();
    let data = scratch.path().join("data");
    copy(pristine, &data);
    let mut dice = Dice(number);
    let logs = logs(&data);
    assert!(!logs.is_empty());
    // Three of four in the file that has the mail, where it hurts most.
    let log = if dice.below(4) > 0 {
        logs.iter().max_by_key(|path| used(path)).unwrap()
    } else {
        &logs[usize::try_from(dice.below(logs.len() as u64)).unwrap()]
    };
    let (what, cost_max) = damage(log, &mut dice);
    let there = place();
    let receiver = sink(there, &scratch.path().join("arrivals"));
    let mut life = Life::new(&scratch.path().join("node"), &data, there);
    println!("trial {number}: {what}");
    life.start();
    wait_until("an empty queue", || life.waiting() == 0);
    assert!(life.runs(), "{what}: {}", life.log());
    life.kill();
    let ledgers = receiver.ledgers().to_vec();
    receiver.stop().unwrap();
    let verdict = books::verdict(ledger, &ledgers);
    let wrong = (verdict.corrupt, verdict.unknown, verdict.duplicates);
    assert_eq!(wrong, (0, 0, 0), "{what}: {verdict:?}");
    assert!(
        verdict.lost <= cost_max,
        "{what}: {verdict:?}\n{}",
        life.log()
    );
    verdict.lost
}

// Bit rot: a thousand damaged spools in the long form.
#[test]
fn damaged_files_cost_their_own_messages_and_nothing_wrong_is_sent() {
    let scratch = Scratch::new();
    let (pristine, ledger) = full_spool(&scratch);
    let trials = if is_long() { 1000 } else { 12 };
    let lost: u64 = (0..trials)
        .map(|number| trial(number, &pristine, &ledger))
        .sum();
    println!("{trials} damaged spools started; {lost} of their messages were damaged, none sent");
}
