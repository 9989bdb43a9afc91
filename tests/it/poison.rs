//! poison - a message that is in hand whenever the daemon crashes: put aside after three times,
//! listed, exported and released; and a killed daemon, which accuses nobody.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use nix::sys::signal::Signal;

use crate::harness::{Client, PATIENCE, Scratch, program, run, wait_until};
use crate::life::{Life, place};

/// Half a megabyte would be sent by a suspect too; this is what tells it.
const MARK: &str = "Subject: poison";

/// A receiver that never answers the dot of the marked message, while it is told not to.
struct Stall {
    address: SocketAddr,
    /// Subjects of what has arrived, whether or not it was answered.
    arrived: Receiver<String>,
    patient: Arc<AtomicBool>,
}

impl Stall {
    fn start() -> Self {
        let listener = TcpListener::bind(place()).unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, arrived) = channel();
        let patient = Arc::new(AtomicBool::new(false));
        let shared = Arc::clone(&patient);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (sender, patient) = (sender.clone(), Arc::clone(&shared));
                // A daemon that is killed hangs up: that is what it is for.
                thread::spawn(move || drop(receive(stream, &sender, &patient)));
            }
        });
        Self {
            address,
            arrived,
            patient,
        }
    }

    fn next(&self) -> String {
        self.arrived
            .recv_timeout(PATIENCE)
            .expect("nothing arrived")
    }
}

fn receive(
    mut stream: TcpStream,
    sender: &Sender<String>,
    patient: &AtomicBool,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    stream.write_all(b"220 stall.test\r\n")?;
    while let Some(line) = lines.next() {
        let reply: &[u8] = match line?.get(..4).unwrap_or_default() {
            "DATA" => {
                stream.write_all(b"354 go on\r\n")?;
                let mut subject = String::new();
                for line in lines.by_ref() {
                    let line = line?;
                    if line == "." {
                        break;
                    }
                    if line.starts_with("Subject: ") {
                        subject = line;
                    }
                }
                let marked = subject == MARK;
                drop(sender.send(subject));
                if marked && !patient.load(Ordering::Relaxed) {
                    lines.by_ref().for_each(drop);
                    return Ok(());
                }
                b"250 kept\r\n"
            }
            "QUIT" => b"221 bye\r\n",
            _ => b"250 fine\r\n",
        };
        stream.write_all(reply)?;
    }
    Ok(())
}

fn submit(life: &Life, subject: &str) {
    let mut client = Client::greeted(life.address);
    assert_eq!(client.command("MAIL FROM:<sender@from.example>"), 250);
    assert_eq!(client.command("RCPT TO:<to@to.example>"), 250);
    assert_eq!(client.command("DATA"), 354);
    client.send(format!(
        "From: <sender@from.example>\r\nDate: Sat, 21 Nov 2026 22:19:03 +0000\r\n\
         Message-ID: <{}@from.example>\r\n{subject}\r\n\r\nHello.\r\n.\r\n",
        subject.len()
    ));
    assert_eq!(client.read_reply(), 250, "{}", client.reply);
}

fn lines(data: &Path, words: &[&str]) -> Vec<serde_json::Value> {
    let mut command = program();
    let output = run(command.arg("spool").args(words).arg("--data").arg(data));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The tools for a stopped node.
fn look(scratch: &Scratch, data: &Path, id: &str) {
    assert!(lines(data, &["list", "--json"]).is_empty());
    let rows = lines(data, &["list", "--quarantined", "--json"]);
    assert_eq!(
        (&rows[0]["id"], &rows[0]["reason"]),
        (&id.into(), &"poison".into())
    );
    let out = scratch.path().join("out");
    let words = [
        "export",
        "--quarantined",
        "--json",
        "--out",
        out.to_str().unwrap(),
    ];
    let mut export = program();
    let export = run(export.arg("spool").args(words).arg("--data").arg(data));
    let done: serde_json::Value = serde_json::from_slice(&export.stdout).unwrap();
    assert_eq!(
        (&done["messages"], &done["damaged"]),
        (&1.into(), &0.into())
    );
    let copy = std::fs::read_to_string(out.join(format!("{id}.eml"))).unwrap();
    assert!(
        copy.contains(MARK) && copy.ends_with("\r\n\r\nHello.\r\n"),
        "{copy}"
    );
    let mut stats = program();
    let stats = run(stats.args(["spool", "stats", "--json", "--data"]).arg(data));
    let stats: serde_json::Value = serde_json::from_slice(&stats.stdout).unwrap();
    assert_eq!(stats["shards"][0]["quarantined"], 1, "{stats}");
}

// The daemon dies of SIGSEGV and SIGABRT with the message in hand, and is started again.
#[test]
fn what_is_in_hand_at_three_crashes_is_put_aside_and_can_be_had_back() {
    let scratch = Scratch::new();
    let data = scratch.path().join("data");
    let stall = Stall::start();
    let mut life = Life::new(&scratch.path().join("node"), &data, stall.address);
    life.start();
    submit(&life, MARK);
    for signal in [Signal::SIGSEGV, Signal::SIGABRT, Signal::SIGBUS] {
        assert_eq!(stall.next(), MARK);
        assert_eq!(life.strike(signal), Some(signal as i32), "{}", life.log());
        life.start();
    }
    // Not tried a fourth time: it is in quarantine, with an alarm; and other mail goes on.
    let listed = || life.ctl(&["quarantine", "list"]);
    wait_until("a message in quarantine", || listed()["total"] == 1);
    let message = listed()["messages"][0].clone();
    assert_eq!(message["reason"], "poison", "{message}");
    assert_eq!(message["sender"], "sender@from.example");
    assert_eq!(message["waiting"], 1);
    submit(&life, "Subject: innocent");
    assert_eq!(stall.next(), "Subject: innocent");
    wait_until("an empty queue", || life.waiting() == 0);
    let spool = &life.ctl(&["spool"])[0];
    assert_eq!(spool["quarantined"], 1, "{spool}");
    assert!(spool["alarms"][0].as_str().unwrap().contains("in hand"));
    assert!(life.log().contains("quarantined"), "{}", life.log());
    life.kill();
    let id = message["id"].as_str().unwrap();
    look(&scratch, &data, id);
    // Back again, once the receiver is kind.
    life.start();
    stall.patient.store(true, Ordering::Relaxed);
    let released = life.ctl(&["quarantine", "release", id]);
    assert_ne!(released["id"], message["id"]);
    assert_eq!(stall.next(), MARK);
    wait_until("an empty queue", || life.waiting() == 0);
    assert_eq!(life.ctl(&["quarantine", "list"])["total"], 0);
    let spool = &life.ctl(&["spool"])[0];
    assert_eq!(spool["alarms"].as_array().map(Vec::len), Some(0), "{spool}");
}

// A `kill -9` says nothing about the mail, however often it comes.
#[test]
fn kills_accuse_nobody() {
    let scratch = Scratch::new();
    let stall = Stall::start();
    let data = scratch.path().join("data");
    let mut life = Life::new(&scratch.path().join("node"), &data, stall.address);
    life.start();
    submit(&life, MARK);
    for _ in 0..5 {
        assert_eq!(stall.next(), MARK);
        life.kill();
        life.start();
    }
    stall.patient.store(true, Ordering::Relaxed);
    wait_until("an empty queue", || life.waiting() == 0);
    assert_eq!(life.ctl(&["quarantine", "list"])["total"], 0);
    assert!(!life.log().contains("was in hand"), "{}", life.log());
}

// What an operator asks for that is not there is answered with a sentence.
#[test]
fn nothing_is_released_that_is_not_in_quarantine() {
    let scratch = Scratch::new();
    let data = scratch.path().join("data");
    let directory = scratch.path().join("node");
    let mut life = Life::new(&directory, &data, place());
    life.start();
    for verb in ["release", "delete"] {
        let mut command: Command = program();
        let command = command.args(["ctl", "quarantine", verb, "0000000000000007", "--socket"]);
        let output = command.arg(directory.join("admin.sock")).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains("no such message is in quarantine"), "{text}");
    }
}
