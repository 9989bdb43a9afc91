//! The corpus the whole way: key files and a configuration, `postrider run`, SMTP in, `postrider
//! sink` at the other end, and the files that it dumps before all four verifiers.
//!
//! What SMTP cannot carry (a message without a final line end) stays with the form that calls the
//! library: the corpus proper has lines of at most 998 octets and no bare CR or LF.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Stdio};

use postrider::dkim::{Canon, KeyKind, keygen};

use crate::corpus::{self, Zone};
use crate::harness::{Client, Daemon, Scratch, first_line, free_address, program, wait_until};
use crate::mailauth::{Verifier, judged_by_mail_auth};
use crate::{interop, samples};

/// A `postrider sink` that writes what it gets into a directory; killed when dropped.
struct Receiver {
    child: Child,
    address: SocketAddr,
    scratch: Scratch,
}

impl Receiver {
    fn start() -> Self {
        let scratch = Scratch::new();
        let mut address = free_address();
        let mut child = program()
            .args(["sink", "--port", "0", "--domains", "1", "--dump"])
            .arg(scratch.path())
            .args(["--first-address", &address.ip().to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let line = first_line(child.stderr.take().unwrap()).expect("the sink says nothing");
        let port = line.rsplit_once("port ").map(|(_, port)| port.parse());
        match port {
            Some(Ok(port)) => address.set_port(port),
            _ => panic!("not ready: {line}"),
        }
        Self {
            child,
            address,
            scratch,
        }
    }

    /// Every message, as it came over the wire.
    fn messages(&self) -> Vec<Vec<u8>> {
        let entries = std::fs::read_dir(self.scratch.path()).unwrap();
        let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths
            .iter()
            .map(|path| std::fs::read(path).unwrap())
            .collect()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        // Ends here in any case: an error would only say that it has just ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Sends these through a daemon that signs with a new key of this kind, and returns what arrived
/// and the published record.
fn deliver(kind: KeyKind, selector: &str, messages: &[Vec<u8>]) -> (Vec<Vec<u8>>, Zone) {
    let receiver = Receiver::start();
    let keys = Scratch::new();
    let file = keys.path().join("key.pem");
    let key = keygen(kind).unwrap();
    key.write(&file).unwrap();
    let zone = vec![(format!("{selector}._domainkey.example.com"), key.record)];
    let more = format!(
        "[signing]\nno_key = \"reject\"\n[[dkim]]\ndomain = \"example.com\"\n\
         selector = \"{selector}\"\nkey = \"{}\"\n",
        file.display()
    );
    let daemon = Daemon::start(receiver.address, &more);
    let mut client = Client::greeted(daemon.address);
    for message in messages {
        assert_eq!(client.command("MAIL FROM:<sender@example.com>"), 250);
        assert_eq!(client.command("RCPT TO:<r@d0.lab.test>"), 250);
        assert_eq!(client.command("DATA"), 354);
        client.send(samples::stuffed(message));
        let shown = String::from_utf8_lossy(&message[..message.len().min(3000)]);
        assert_eq!(client.read_reply(), 250, "{}\n{shown}", client.reply);
    }
    let count = messages.len() as u64;
    wait_until("all deliveries", || {
        daemon.status()["shards"][0]["delivered"].as_u64() == Some(count)
    });
    let delivered = receiver.messages();
    assert_same(messages, &delivered);
    assert_eq!(daemon.stop(), Some(0));
    (delivered, zone)
}

/// Below our signature and the trace field is what was submitted, each message once.
fn assert_same(sent: &[Vec<u8>], delivered: &[Vec<u8>]) {
    let mut waiting: HashMap<&[u8], usize> = HashMap::new();
    for message in sent {
        *waiting.entry(message).or_default() += 1;
    }
    for message in delivered {
        let below = below_field(below_field(message));
        let count = waiting.get_mut(below).filter(|count| **count > 0);
        let shown = String::from_utf8_lossy(&message[..message.len().min(3000)]);
        *count.unwrap_or_else(|| panic!("this was not sent:\n{shown}")) -= 1;
    }
    assert_eq!(sent.len(), delivered.len());
}

/// What follows a message's first field: the daemon puts two on top.
fn below_field(message: &[u8]) -> &[u8] {
    let ends = memchr::memmem::find_iter(message, b"\r\n").map(|at| at + 2);
    let is_next = |at: &usize| !matches!(message.get(*at), Some(b' ' | b'\t'));
    &message[ends.into_iter().find(is_next).unwrap()..]
}

/// The files for the programs, and mail-auth's verdict on each of them.
fn judge(directory: &Path, kind: &str, delivered: &[Vec<u8>], zone: &Zone) {
    let verifier = Verifier::new(zone);
    let mut judged = 0;
    for (number, message) in delivered.iter().enumerate() {
        interop::write_pass(directory, kind, number, message);
        if judged_by_mail_auth(Canon::Relaxed, message) {
            verifier.assert_pass(message, 1);
            judged += 1;
        }
    }
    // The rest ends in lines of blanks, which the programs judge.
    assert!(judged * 3 > delivered.len() * 2, "{judged}");
    let insert = |message: &[u8], field: &str| {
        let at = message.len() - below_field(below_field(message)).len();
        [&message[..at], field.as_bytes(), &message[at..]].concat()
    };
    for (number, message) in delivered.iter().step_by(29).enumerate() {
        let mut forgeries = corpus::forgeries(message);
        // Between what the daemon put on top and what was submitted, in other letters.
        forgeries.push(insert(message, "from: forged@example.com\r\n"));
        forgeries.push(insert(message, "SUBJECT: forged\r\n"));
        interop::write_fail(directory, kind, number, &forgeries);
        for forged in &forgeries {
            verifier.assert_broken(forged);
        }
    }
}

// What leaves by SMTP verifies as delivered, four times over; a second From or Subject in a
// delivered file, or a longer body, breaks it for all four.
#[test]
fn four_verifiers_accept_what_the_daemon_delivers() {
    let scratch = Scratch::new();
    let messages = corpus::messages();
    assert!(messages.len() > 300, "{}", messages.len());
    let (rsa, mut zone) = deliver(KeyKind::Rsa2048, "rsa1", &messages);
    judge(scratch.path(), "rsa", &rsa, &zone);
    let some: Vec<_> = messages.iter().step_by(7).cloned().collect();
    let (ed25519, ed_zone) = deliver(KeyKind::Ed25519, "ed1", &some);
    judge(scratch.path(), "ed25519", &ed25519, &ed_zone);
    zone.extend(ed_zone);
    interop::judge(scratch.path(), &zone);
}
