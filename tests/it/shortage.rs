//! shortage - too little memory, too few descriptors: mail is refused for now or waits, nothing
//! dies, nothing is lost.

use std::fs;
use std::path::{Path, PathBuf};

use postrider::lab::load::{self, LoadOptions};

use crate::books;
use crate::harness::{Client, Scratch, wait_until};
use crate::life::{Life, place, sink};

const MIB: usize = 1 << 20;

/// A control group with a limit on memory; removed when dropped.
struct Group {
    directory: PathBuf,
    /// Where the kernel counts the processes that it killed for want of memory.
    kills: &'static str,
}

impl Group {
    /// None, after saying so, where this process may not make one.
    fn new(limit: usize) -> Option<Self> {
        let name = format!("postrider-it-{}", std::process::id());
        let versions = [
            (
                "/sys/fs/cgroup/memory",
                "memory.limit_in_bytes",
                "memory.oom_control",
            ),
            ("/sys/fs/cgroup", "memory.max", "memory.events"),
        ];
        for (root, file, kills) in versions {
            let directory = Path::new(root).join(&name);
            if fs::create_dir(&directory).is_err() {
                continue;
            }
            let group = Self { directory, kills };
            // Made by this process, removed with it; a group without the file is of no use.
            let limited = fs::write(group.directory.join(file), limit.to_string());
            // Swapping would hide the shortage.
            drop(fs::write(group.directory.join("memory.swap.max"), "0"));
            if limited.is_ok() {
                return Some(group);
            }
        }
        use std::io::Write;
        let text = b"SKIPPED: a memory limit needs root and the memory controller of cgroups\n";
        // Past the capture of the test harness, so that it is seen.
        std::io::stderr().write_all(text).unwrap();
        None
    }

    fn add(&self, pid: u32) {
        fs::write(self.directory.join("cgroup.procs"), pid.to_string()).unwrap();
    }

    fn kills(&self) -> u64 {
        let text = fs::read_to_string(self.directory.join(self.kills)).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        line.map_or(0, |count| count.trim().parse().unwrap())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Its processes end a moment before it is empty.
        wait_until("the end of the control group", || {
            fs::remove_dir(&self.directory).is_ok()
        });
    }
}

/// Sends campaigns of large messages over many sessions to a daemon whose queue nobody empties;
/// then everything that was acknowledged arrives.
fn hold_on(life: &mut Life, scratch: &Scratch, there: std::net::SocketAddr, size: usize) {
    let ledger = scratch.path().join("sent.ledger");
    let report = load::run(LoadOptions {
        target: life.address,
        messages: 600,
        size,
        sessions: 300,
        domains: 1,
        ledger: Some(ledger.clone()),
        reconnect: true,
        retries: 100,
        ..LoadOptions::default()
    })
    .unwrap();
    println!("{report:?}");
    assert!(life.runs(), "{}", life.log());
    let temporary = |code: u16| (400..500).contains(&code);
    assert!(
        report.refusals.iter().all(|row| temporary(row.code)),
        "{report:?}"
    );
    assert!(report.accepted > 0, "{report:?}");
    // It recovers: an ordinary message is taken at once, and all of it leaves.
    let mut client = Client::greeted(life.address);
    assert_eq!(client.command("NOOP"), 250);
    let receiver = sink(there, &scratch.path().join("arrivals"));
    wait_until("an empty queue", || life.waiting() == 0);
    let ledgers = receiver.ledgers().to_vec();
    receiver.stop().unwrap();
    let verdict = books::verdict(&ledger, &ledgers);
    println!("{verdict:?}");
    assert_eq!(verdict.acknowledged, report.accepted);
    assert_eq!(
        (verdict.lost, verdict.corrupt, verdict.duplicates),
        (0, 0, 0),
        "{verdict:?}"
    );
}

// 300 sessions with a message of a megabyte each, in 256 MiB.
#[test]
fn a_lack_of_memory_refuses_mail_and_kills_nobody() {
    let Some(group) = Group::new(256 * MIB) else {
        return;
    };
    let scratch = Scratch::new();
    let there = place();
    let data = scratch.path().join("data");
    let mut life = Life::new(&scratch.path().join("node"), &data, there);
    life.start_in(|pid| group.add(pid));
    hold_on(&mut life, &scratch, there, MIB - 4096);
    assert_eq!(group.kills(), 0);
    life.kill();
}

// 256 descriptors, 300 sessions.
#[test]
fn a_lack_of_descriptors_makes_connections_wait() {
    let scratch = Scratch::new();
    let there = place();
    let data = scratch.path().join("data");
    let mut life = Life::new(&scratch.path().join("node"), &data, there);
    life.start_in(|pid| limit_descriptors(pid, 256));
    hold_on(&mut life, &scratch, there, 4096);
    life.kill();
}

/// Takes descriptors away from a process that has just been started.
fn limit_descriptors(pid: u32, count: u64) {
    let mut command = std::process::Command::new("prlimit");
    command.args([
        "--pid",
        &pid.to_string(),
        &format!("--nofile={count}:{count}"),
    ]);
    crate::harness::run(&mut command);
}
