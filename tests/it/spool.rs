//! spool - `postrider spool` on the data of a daemon that was killed with mail nobody received.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde_json::Value;

use crate::harness::{Client, Received, Scratch, program};
use crate::life::{Life, place};

/// Sends one message and returns what it is, by its sender.
fn submit(client: &mut Client, number: usize) -> (String, String) {
    let sender = format!("sender{number}@from.example");
    let body = format!("line {number}\r\n").repeat(number * number * 40);
    let content = format!(
        "From: <{sender}>\r\nDate: Sat, 21 Nov 2026 22:19:03 +0000\r\n\
         Message-ID: <{number}@from.example>\r\nSubject: number {number}\r\n\r\n\
         .begins with a dot\r\n{body}"
    );
    assert_eq!(client.command(&format!("MAIL FROM:<{sender}>")), 250);
    for recipient in 0..=number {
        let to = format!("RCPT TO:<r{recipient}@to.example> NOTIFY=NEVER");
        assert_eq!(client.command(&to), 250, "{}", client.reply);
    }
    assert_eq!(client.command("DATA"), 354);
    client.send(content.replace("\r\n.", "\r\n.."));
    assert_eq!(client.command("."), 250, "{}", client.reply);
    (sender, content)
}

/// The exit code, what was printed and what was complained of.
fn spool(data: &Path, words: &[&str]) -> (Option<i32>, String, String) {
    let mut command = program();
    let command = command.arg("spool").args(words).arg("--data").arg(data);
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

/// The documents, one per line, of a verb that succeeds.
fn lines(data: &Path, words: &[&str]) -> Vec<Value> {
    let (code, stdout, stderr) = spool(data, words);
    assert_eq!((code, &*stderr), (Some(0), ""), "{words:?}: {stdout}");
    let lines = stdout.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

/// A killed daemon's data, and the contents by sender.
fn waiting(scratch: &Scratch, messages: usize) -> BTreeMap<String, String> {
    let data = scratch.path().join("data");
    let mut life = Life::new(&scratch.path().join("node"), &data, place());
    life.start();
    let mut client = Client::greeted(life.address);
    let sent = (0..messages).map(|number| submit(&mut client, number));
    let sent = sent.collect();
    // While it runs, its spool is its own.
    for words in [&["verify"][..], &["list"], &["stats"]] {
        let (code, stdout, stderr) = spool(&data, words);
        assert_eq!((code, &*stdout), (Some(1), ""), "{stderr}");
        assert!(stderr.contains("lock file is held"), "{stderr}");
    }
    assert!(life.runs());
    life.kill();
    sent
}

#[test]
fn what_waits_is_verified_listed_shown_and_exported_as_it_was_sent() {
    let scratch = Scratch::new();
    let sent = waiting(&scratch, 8);
    let data = scratch.path().join("data");
    let out = scratch.path().join("out");
    assert_eq!(
        spool(&data, &["verify"]),
        (
            Some(0),
            "messages waiting: 8, damaged: 0\n".to_owned(),
            String::new()
        )
    );
    let rows = lines(&data, &["list", "--json"]);
    let senders: Vec<&str> = rows.iter().map(|row| text(&row["sender"])).collect();
    assert_eq!(senders, sent.keys().map(String::as_str).collect::<Vec<_>>());
    let (_, stdout, _) = spool(&data, &["list"]);
    assert_eq!(stdout.lines().count(), 8);
    for (number, row) in rows.iter().enumerate() {
        assert_eq!(row["waiting"], number + 1);
        let line = stdout.lines().nth(number).unwrap();
        assert!(line.starts_with(text(&row["id"])), "{line}");
        let (code, card, _) = spool(&data, &["show", text(&row["id"])]);
        assert_eq!(code, Some(0));
        assert!(
            card.contains(&format!("\nSubject: number {number}\n")),
            "{card}"
        );
        assert!(
            card.contains(&format!("waits: <r{number}@to.example>")),
            "{card}"
        );
        assert!(!card.contains("begins with a dot"), "{card}");
    }
    let out = out.to_str().unwrap();
    let (code, stdout, stderr) = spool(&data, &["export", "--out", out]);
    assert_eq!((code, &*stderr), (Some(0), ""), "{stdout}");
    compare(Path::new(out), &sent);
    // Nothing is overwritten, and nothing was changed by looking.
    let (code, _, stderr) = spool(&data, &["export", "--out", out]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("File exists"), "{stderr}");
    let (_, stdout, _) = spool(&data, &["stats", "--json"]);
    let stats: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(stats["shards"][0]["messages"], 8);
    assert_eq!(stats["shards"][0]["damage"], 0);
}

fn compare(out: &Path, sent: &BTreeMap<String, String>) {
    let envelopes = fs::read_to_string(out.join("envelopes.jsonl")).unwrap();
    assert_eq!(envelopes.lines().count(), sent.len());
    for line in envelopes.lines() {
        let envelope: Value = serde_json::from_str(line).unwrap();
        let file = text(&envelope["file"]);
        assert_eq!(file, format!("{}.eml", text(&envelope["id"])));
        let exported = Received {
            sender: text(&envelope["sender"]).to_owned(),
            recipients: vec![],
            content: fs::read(out.join(file)).unwrap(),
            peer: std::net::Ipv4Addr::UNSPECIFIED.into(),
            hello: String::new(),
        };
        assert_eq!(envelope["bytes"], exported.content.len());
        let content = sent[&exported.sender].as_bytes();
        assert!(exported.without_trace() == content, "{}", exported.text());
        let pending = envelope["pending"].as_array().unwrap();
        for (number, waiting) in pending.iter().enumerate() {
            assert_eq!(waiting["address"], format!("r{number}@to.example"));
            assert_eq!(waiting["notify"], "NEVER");
        }
    }
}

// One flipped bit: named by id, exported apart, the others untouched.
#[test]
fn damage_is_named_and_never_exported_as_mail() {
    let scratch = Scratch::new();
    let mut sent = waiting(&scratch, 4);
    let data = scratch.path().join("data");
    flip(&data.join("shard-000"), b"Subject: number 2");
    let (code, stdout, _) = spool(&data, &["verify"]);
    assert_eq!(code, Some(1), "{stdout}");
    let rows = lines(&data, &["list", "--json"]);
    let damaged = rows.iter().find(|row| !row["damage"].is_null()).unwrap();
    assert_eq!(damaged["sender"], "sender2@from.example");
    let id = text(&damaged["id"]);
    assert!(stdout.starts_with(&format!("{id}: damaged: ")), "{stdout}");
    assert!(
        stdout.ends_with("messages waiting: 4, damaged: 1\n"),
        "{stdout}"
    );
    let out = scratch.path().join("out");
    let words = ["export", "--out", out.to_str().unwrap()];
    assert_eq!(spool(&data, &words).0, Some(1));
    assert!(out.join(format!("{id}.damaged")).exists());
    assert!(!out.join(format!("{id}.eml")).exists());
    // The others alone.
    sent.remove("sender2@from.example");
    let rest = scratch.path().join("rest");
    let mut words = vec!["export", "--out", rest.to_str().unwrap()];
    words.extend(
        rows.iter()
            .map(|row| text(&row["id"]))
            .filter(|other| *other != id),
    );
    assert_eq!(spool(&data, &words).0, Some(0));
    compare(&rest, &sent);
}

/// Flips a bit of the last byte of `what` in the only log that has it.
fn flip(directory: &Path, what: &[u8]) {
    let paths = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let found = paths.filter_map(|path| {
        let bytes = fs::read(&path).unwrap();
        let at = bytes
            .windows(what.len())
            .position(|window| window == what)?;
        Some((path, bytes, at + what.len() - 1))
    });
    let [(path, bytes, at)] = &found.collect::<Vec<_>>()[..] else {
        panic!("not in one file");
    };
    let file = fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(&[bytes[*at] ^ 1], *at as u64).unwrap();
}

#[test]
fn what_is_not_there_is_said() {
    let scratch = Scratch::new();
    let (code, _, stderr) = spool(scratch.path(), &["list"]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("no spool is here"), "{stderr}");
    waiting(&scratch, 1);
    let data = scratch.path().join("data");
    for id in ["0000000000ffffff", "00f0000000000001"] {
        let (code, _, stderr) = spool(&data, &["show", id]);
        assert_eq!(code, Some(1));
        assert!(stderr.contains("no such message"), "{stderr}");
    }
    assert_eq!(spool(&data, &["show", "nonsense"]).0, Some(2));
}
