//! sizes - from a hundred bytes to a hundred MiB, and ten thousand recipients of one message.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use crate::harness::{Client, Daemon, Sink, free_address, wait_until};

const MIB: usize = 1 << 20;

/// A daemon that takes the largest messages.
fn daemon(via: SocketAddr) -> Daemon {
    let more = "max_message_size = \"110MiB\"\nmax_recipients = 10000";
    let larger = |config: String| config.replace("64MiB", "128MiB");
    Daemon::start_with(via, more, larger)
}

/// A message of exactly `len` bytes.
fn message(len: usize) -> Vec<u8> {
    let mut content = b"From: <a@from.example>\r\nSubject: sized\r\n\r\n".to_vec();
    let line = b"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\r\n";
    while content.len() + line.len() < len {
        content.extend_from_slice(line);
    }
    content.resize(len - 2, b'x');
    content.extend_from_slice(b"\r\n");
    content
}

fn submit(client: &mut Client, recipients: usize, content: &[u8]) {
    assert_eq!(client.command("MAIL FROM:<a@from.example>"), 250);
    for number in 0..recipients {
        let to = format!("RCPT TO:<r{number}@to.example>");
        assert_eq!(client.command(&to), 250, "{}", client.reply);
    }
    assert_eq!(client.command("DATA"), 354);
    client.send(content);
    assert_eq!(client.command("."), 250, "{}", client.reply);
}

#[test]
fn a_hundred_bytes_and_a_hundred_mib_arrive_as_they_were() {
    let sink = Sink::start();
    let mut daemon = daemon(sink.address);
    let mut client = Client::greeted(daemon.address);
    for len in [100, MIB, 100 * MIB, 100] {
        let content = message(len);
        assert_eq!(content.len(), len);
        submit(&mut client, 1, &content);
        let received = sink.next();
        assert!(
            received.content.ends_with(&content),
            "{len} bytes arrived changed"
        );
        // What the node puts in front of it: its trace, and the fields that the message lacks.
        assert!(received.content.len() < len + 1_000);
    }
    daemon.assert_alive();
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn ten_thousand_recipients_share_one_body() {
    let there = free_address();
    let daemon = daemon(there);
    let content = message(MIB);
    submit(&mut Client::greeted(daemon.address), 10_000, &content);
    // One body, and for each recipient little more than the address.
    let spool = daemon.ctl(&["spool"]);
    let live = spool[0]["live_bytes"].as_u64().unwrap();
    assert_eq!(spool[0]["messages"], 1);
    assert!(live > MIB as u64, "{spool}");
    assert!(
        live < (MIB + 10_000 * 64) as u64,
        "{live} bytes for one body"
    );
    println!("10,000 recipients of 1 MiB: {live} bytes in the spool");
    let sink = Sink::start_at(there);
    let mut served = BTreeSet::new();
    while served.len() < 10_000 {
        let received = sink.next();
        assert!(received.content.ends_with(&content));
        for recipient in received.recipients {
            assert!(served.insert(recipient), "a recipient was served twice");
        }
    }
    wait_until("an empty spool", || {
        daemon.ctl(&["spool"])[0]["messages"] == 0
    });
    assert!(sink.drain().is_empty());
    assert_eq!(daemon.stop(), Some(0));
}
