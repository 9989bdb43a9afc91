//! dkim - from a fresh key to a verified message: keygen, the published record, the signature, the
//! change of keys while the daemon runs, and what mail without a key gets.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use mail_auth::hickory_resolver::config::{NameServerConfig, ResolverConfig, ResolverOpts};
use mail_auth::{AuthenticatedMessage, DkimResult, MessageAuthenticator};
use postrider::lab::dns::DnsServer;
use postrider::lab::zone::Zone;
use serde_json::Value;

use crate::harness::{Client, Daemon, PATIENCE, Received, Scratch, Sink, program};
use crate::samples;

/// Runs a verb and returns its exit code, stdout and stderr.
fn words(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = program().args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

/// A key made by the program: its file, and its record as name and text.
struct Key {
    file: PathBuf,
    name: String,
    record: String,
    config: String,
}

fn make(scratch: &Scratch, file: &str, selector: &str, algorithm: &str) -> Key {
    make_for("lab.test", scratch, file, selector, algorithm)
}

fn make_for(domain: &str, scratch: &Scratch, file: &str, selector: &str, algorithm: &str) -> Key {
    let file = scratch.path().join(file);
    let (code, stdout, stderr) = words(&[
        "keygen",
        "--domain",
        domain,
        "--selector",
        selector,
        "--algorithm",
        algorithm,
        "--out",
        file.to_str().unwrap(),
        "--json",
    ]);
    assert_eq!(code, Some(0), "{stderr}");
    let json: Value = serde_json::from_str(&stdout).unwrap();
    let text = |key: &str| json[key].as_str().unwrap().to_owned();
    assert_eq!(text("file"), file.to_str().unwrap());
    Key {
        file,
        name: text("record_name"),
        record: text("record"),
        config: text("config"),
    }
}

/// A name server that publishes the records of these keys.
fn publish(keys: &[&Key]) -> DnsServer {
    let records: Vec<(String, String)> = keys
        .iter()
        .map(|key| (key.name.clone(), key.record.clone()))
        .collect();
    let zone = Zone::new("lab.test", 1, Ipv4Addr::new(127, 9, 1, 1), &records).unwrap();
    DnsServer::start(zone, SocketAddr::from(([127, 0, 0, 1], 0))).unwrap()
}

/// What mail-auth says about each signature, asking that name server.
fn verdicts(message: &[u8], dns: &DnsServer) -> Vec<(String, DkimResult)> {
    let mut server = NameServerConfig::udp_and_tcp(dns.address().ip());
    for connection in &mut server.connections {
        connection.port = dns.address().port();
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let config = ResolverConfig::from_parts(None, vec![], vec![server]);
        let verifier = MessageAuthenticator::new(config, ResolverOpts::default()).unwrap();
        let parsed = AuthenticatedMessage::parse(message).unwrap();
        let outputs = verifier.verify_dkim(&parsed).await;
        let verdict = |output: &mail_auth::DkimOutput<'_>| {
            let signature = output.signature().unwrap();
            let name = format!("{} {:?}", signature.s, signature.a);
            (name, output.result().clone())
        };
        outputs.iter().map(verdict).collect()
    })
}

fn assert_passes(received: &Received, dns: &DnsServer, selectors: &[&str]) {
    let verdicts = verdicts(&received.content, dns);
    let text = received.text();
    assert_eq!(verdicts.len(), selectors.len(), "{verdicts:?}\n{text}");
    for ((name, verdict), selector) in verdicts.iter().zip(selectors) {
        assert!(name.starts_with(selector), "{verdicts:?}\n{text}");
        assert!(matches!(verdict, DkimResult::Pass), "{verdicts:?}\n{text}");
    }
}

/// Submits a message and returns the code of the reply to its end.
fn submit(client: &mut Client, message: &[u8]) -> u16 {
    assert_eq!(client.command("MAIL FROM:<sender@lab.test>"), 250);
    assert_eq!(client.command("RCPT TO:<recipient@b.example>"), 250);
    assert_eq!(client.command("DATA"), 354);
    client.send(samples::stuffed(message));
    client.read_reply()
}

fn message(from: &str) -> Vec<u8> {
    let awkward = String::from_utf8(samples::awkward()).unwrap();
    awkward
        .replace("Sender <sender@a.example>", from)
        .into_bytes()
}

/// What is refused where unsigned mail is, and that the session goes on after it.
fn refuses(client: &mut Client, sent: &[u8]) {
    // Nobody signs for this domain: the answer comes at once, and the session goes on.
    let foreign = message("Sender <sender@other.test>");
    assert_eq!(submit(client, &foreign), 550);
    assert!(
        client.reply.contains("5.7.1") && client.reply.contains("no DKIM key"),
        "{}",
        client.reply
    );
    // Nobody could sign this, whatever keys there are.
    let nameless = String::from_utf8(sent.to_vec()).unwrap();
    let nameless = nameless.replacen("From: ", "X-From: ", 1).into_bytes();
    assert_eq!(submit(client, &nameless), 554);
    assert!(
        client.reply.contains("5.6.0") && client.reply.contains("no From field"),
        "{}",
        client.reply
    );
}

// The whole way: two keys, their records proved, a message with two signatures that verify.
#[test]
fn a_message_is_signed_with_both_algorithms() {
    let scratch = Scratch::new();
    let rsa = make(&scratch, "rsa.pem", "r1", "rsa2048");
    let ed = make(&scratch, "ed.pem", "e1", "ed25519");
    let mode = std::fs::metadata(&rsa.file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let dns = publish(&[&rsa, &ed]);
    let sink = Sink::start();
    let more = format!(
        "[signing]\nno_key = \"reject\"\noversign = [\"X-Customer\"]\nexpire = \"14d\"\n{}{}",
        rsa.config, ed.config
    );
    let daemon = Daemon::start(sink.address, &more);
    let config = daemon.scratch.path().join("postrider.toml");
    let (config, server) = (config.to_str().unwrap(), dns.address().to_string());
    let check = |server: &str| {
        words(&[
            "check", "dkim", "lab.test", "--config", config, "--dns", server,
        ])
    };
    let (code, stdout, stderr) = check(&server);
    assert_eq!(code, Some(0), "{stdout}{stderr}");
    assert_eq!(stdout.matches("the key matches").count(), 2, "{stdout}");

    let mut client = Client::greeted(daemon.address);
    let sent = message("Sender <sender@Lab.Test>");
    assert_eq!(submit(&mut client, &sent), 250, "{}", client.reply);
    let received = sink.next();
    assert_passes(&received, &dns, &["r1", "e1"]);
    assert!(received.content.ends_with(&sent), "{}", received.text());
    assert!(received.text().contains(" x="), "{}", received.text());
    let forged = [b"X-Customer: another\r\n", &received.content[..]].concat();
    let forged = verdicts(&forged, &dns);
    assert!(
        forged
            .iter()
            .all(|(_, verdict)| !matches!(verdict, DkimResult::Pass)),
        "{forged:?}"
    );

    refuses(&mut client, &sent);
    assert_eq!(submit(&mut client, &sent), 250, "{}", client.reply);
    sink.next();

    let socket = daemon.scratch.path().join("admin.sock");
    let (code, status, stderr) = words(&[
        "ctl",
        "status",
        "--json",
        "--socket",
        socket.to_str().unwrap(),
    ]);
    assert_eq!(code, Some(0), "{stderr}");
    let status: Value = serde_json::from_str(&status).unwrap();
    let counter = |name: &str| status["shards"][0][name].as_u64().unwrap();
    let rsa_signatures = counter("dkim_lane_signatures") + counter("dkim_single_signatures");
    assert_eq!((rsa_signatures, counter("dkim_ed25519_signatures")), (2, 2));
    assert_eq!(
        (counter("dkim_mismatches"), counter("dkim_failures")),
        (0, 0)
    );
    assert_eq!(counter("dkim_hashed_on_arrival"), 2);
    assert_eq!(counter("messages_refused"), 2);
    assert_eq!(daemon.stop(), Some(0));
    assert!(sink.drain().is_empty());
}

// A record that is missing or of another key is found before mail goes out with it.
#[test]
fn a_wrong_record_is_found() {
    let scratch = Scratch::new();
    let key = make(&scratch, "key.pem", "s1", "rsa2048");
    let other = make(&scratch, "other.pem", "s1", "rsa2048");
    let text = format!("[node]\nhostname = \"mta.lab.test\"\n{}", key.config);
    let config = scratch.file("postrider.toml", text);
    let check = |domain: &str, dns: &DnsServer| {
        let server = dns.address().to_string();
        let config = config.to_str().unwrap();
        words(&[
            "check", "dkim", domain, "--config", config, "--dns", &server,
        ])
    };
    let (code, stdout, _) = check("lab.test", &publish(&[&other]));
    assert_eq!(code, Some(1), "{stdout}");
    assert!(stdout.contains("not the public half"), "{stdout}");
    let (code, stdout, _) = check("lab.test", &publish(&[]));
    assert_eq!(code, Some(1), "{stdout}");
    let shown = stdout.contains("not published") && stdout.contains("s1._domainkey.lab.test. 3600");
    assert!(shown, "{stdout}");
    let (code, _, stderr) = check("nobody.test", &publish(&[]));
    assert_eq!(code, Some(1));
    assert!(stderr.contains("signs for nobody.test"), "{stderr}");
    let (code, stdout, stderr) = check("lab.test", &publish(&[&key]));
    assert_eq!(code, Some(0), "{stdout}{stderr}");
}

fn hang_up(daemon: &Daemon) {
    let pid = daemon.pid().to_string();
    let kill = std::process::Command::new("kill")
        .args(["-HUP", &pid])
        .status();
    assert!(kill.unwrap().success());
}

// A key file that changes is used without a restart; one that is damaged leaves the old one at
// work.
#[test]
fn keys_change_while_the_daemon_runs() {
    let scratch = Scratch::new();
    let old = make(&scratch, "key.pem", "s1", "ed25519");
    let new = make(&scratch, "new.pem", "s1", "ed25519");
    let sink = Sink::start();
    let daemon = Daemon::start(sink.address, &old.config);
    let (old_dns, new_dns) = (publish(&[&old]), publish(&[&new]));
    let mut client = Client::greeted(daemon.address);
    let sent = message("sender@lab.test");
    let mut next = || {
        assert_eq!(submit(&mut client, &sent), 250);
        sink.next()
    };
    assert_passes(&next(), &old_dns, &["s1"]);

    let broken = scratch.file("broken.pem", "-----BEGIN PRIVATE KEY-----\n");
    private(&broken);
    std::fs::rename(broken, &old.file).unwrap();
    hang_up(&daemon);
    let until = Instant::now() + PATIENCE;
    while !daemon.log().contains("the old keys stay") {
        assert!(Instant::now() < until, "no complaint: {}", daemon.log());
        assert_passes(&next(), &old_dns, &["s1"]);
    }
    assert!(daemon.log().contains(old.file.to_str().unwrap()));
    assert_passes(&next(), &old_dns, &["s1"]);

    std::fs::rename(&new.file, &old.file).unwrap();
    hang_up(&daemon);
    let passes = |received: &Received| {
        let verdicts = verdicts(&received.content, &new_dns);
        matches!(verdicts.as_slice(), [(_, DkimResult::Pass)])
    };
    while !passes(&next()) {
        assert!(
            Instant::now() < until,
            "the old key stays: {}",
            daemon.log()
        );
    }
    assert_passes(&next(), &new_dns, &["s1"]);
    assert_eq!(daemon.stop(), Some(0));
}

fn private(file: &Path) {
    std::fs::set_permissions(file, PermissionsExt::from_mode(0o600)).unwrap();
}

/// RSA of 1024 bits; it protects nothing.
const SHORT_KEY: &str = include_str!("../data/dkim/bits_1024.pem");

// What the daemon cannot sign with it does not start with, and says what to do about it; so do the
// checks before it, and nobody starts it again and again (78).
#[test]
fn unusable_keys_are_named_at_the_start() {
    let scratch = Scratch::new();
    let short = scratch.file("short.pem", SHORT_KEY);
    private(&short);
    let open = make(&scratch, "open.pem", "s1", "ed25519").file;
    std::fs::set_permissions(&open, PermissionsExt::from_mode(0o644)).unwrap();
    let missing = scratch.path().join("missing.pem");
    for (file, parts) in [
        (&short, ["1024 bits", "postrider keygen"]),
        (&open, ["0644", "chmod 0600"]),
        (&missing, ["cannot be read", "No such file"]),
    ] {
        let text = format!(
            "[node]\nhostname = \"mta.test\"\ndata_dir = \"{}\"\n\
             [[dkim]]\ndomain = \"lab.test\"\nselector = \"s1\"\nkey = \"{}\"\n",
            scratch.path().join("data").display(),
            file.display()
        );
        let config = scratch.file("postrider.toml", text);
        let config = config.to_str().unwrap();
        let named = |text: &str| {
            let parts = parts.iter().all(|part| text.contains(part));
            parts && text.contains(file.to_str().unwrap())
        };
        for verb in [
            &["run"][..],
            &["check", "config"],
            &["check", "dkim", "lab.test"],
        ] {
            let (code, stdout, stderr) = words(&[verb, &["--config", config]].concat());
            assert_eq!(code, Some(78), "{verb:?}: {stderr}");
            assert!(named(&stderr), "{verb:?}: {stderr}");
            assert!(!stdout.contains("good"), "{verb:?}: {stdout}");
        }
        let (code, stdout, _) = words(&["check", "config", "--json", "--config", config]);
        let json: Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!((code, &json["ok"]), (Some(78), &Value::Bool(false)));
        assert!(named(json["key_errors"][0].as_str().unwrap()), "{stdout}");
        let (code, stdout, _) = words(&["check", "host", "--config", config]);
        assert_eq!(code, Some(1), "{stdout}");
        let line = stdout.lines().find(|line| line.contains("DKIM keys"));
        assert!(line.is_some_and(|line| line.starts_with("WRONG") && named(line)));
    }
}

// Every row that is wrong is named at once; keys that can be used are said to be good.
#[test]
fn all_keys_are_checked() {
    let scratch = Scratch::new();
    let good = make(&scratch, "good.pem", "s1", "ed25519");
    let text = format!("[node]\nhostname = \"mta.test\"\n{}", good.config);
    let row = |name| {
        let file = scratch.path().join(name);
        let row = "[[dkim]]\ndomain = \"lab.test\"\nselector =";
        format!("{row} \"{name}\"\nkey = \"{}.pem\"\n", file.display())
    };
    let config = scratch.file("postrider.toml", &text);
    let check = |what| words(&["check", what, "--config", config.to_str().unwrap()]);
    let (code, stdout, stderr) = check("config");
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.ends_with("good\n"), "{stdout}");
    let (_, stdout, _) = check("host");
    assert!(
        stdout.contains("good     DKIM keys: 1 can be used"),
        "{stdout}"
    );
    scratch.file("postrider.toml", text + &row("gone1") + &row("gone2"));
    let (code, _, stderr) = check("config");
    assert_eq!(code, Some(78), "{stderr}");
    let named = |name: &str| stderr.matches(name).count() > 0;
    assert!(
        named("gone1.pem") && named("gone2.pem") && !named("good.pem"),
        "{stderr}"
    );
}

/// The tags c, d and s of every signature, topmost first.
fn signers(message: &Received) -> Vec<[String; 3]> {
    let text = message.text();
    let head = text.split("\r\n\r\n").next().unwrap();
    let unfolded = head.replace("\r\n ", " ").replace("\r\n\t", " ");
    let fields = unfolded.split("\r\n");
    let values = fields.filter_map(|field| field.strip_prefix("DKIM-Signature:"));
    let tag = |value: &str, name: &str| {
        let mut tags = value
            .split(';')
            .filter_map(|tag| tag.trim().split_once('='));
        let found = tags.find(|(tag, _)| *tag == name);
        found.map(|(_, value)| value.to_owned()).unwrap_or_default()
    };
    values
        .map(|value| ["c", "d", "s"].map(|name| tag(value, name)))
        .collect()
}

// From the file to the wire: `canonicalization` is the c= of every signature; a key with
// `platform` signs below the sender's own, and alone for those without a key where `no_key` says
// so. All of it verifies.
#[test]
fn the_file_decides_who_signs_and_how() {
    let scratch = Scratch::new();
    let own = make(&scratch, "own.pem", "r1", "rsa2048");
    let platform = make_for("mail.lab.test", &scratch, "mail.pem", "p1", "ed25519");
    let dns = publish(&[&own, &platform]);
    let sink = Sink::start();
    let (sender, below) = (["lab.test", "r1"], ["mail.lab.test", "p1"]);
    for (signing, is_platform, c, by_owner, by_others) in [
        ("", false, "relaxed/relaxed", &[sender][..], &[][..]),
        (
            "canonicalization = \"simple/relaxed\"\nno_key = \"platform\"\n",
            true,
            "simple/relaxed",
            &[sender, below],
            &[below],
        ),
        (
            "canonicalization = \"relaxed/simple\"\n",
            true,
            "relaxed/simple",
            &[sender, below],
            &[],
        ),
        (
            "canonicalization = \"simple/simple\"\n",
            false,
            "simple/simple",
            &[sender],
            &[],
        ),
    ] {
        let row = if is_platform { "platform = true\n" } else { "" };
        let more = format!("[signing]\n{signing}{}{}{row}", own.config, platform.config);
        let daemon = Daemon::start(sink.address, &more);
        let mut client = Client::greeted(daemon.address);
        for (from, expected) in [("a@lab.test", by_owner), ("a@other.test", by_others)] {
            assert_eq!(submit(&mut client, &message(from)), 250);
            let received = sink.next();
            let wanted: Vec<_> = expected
                .iter()
                .map(|[domain, selector]| [c, domain, selector].map(str::to_owned))
                .collect();
            assert_eq!(signers(&received), wanted, "{more}\n{}", received.text());
            let selectors: Vec<&str> = expected.iter().map(|one| one[1]).collect();
            assert_passes(&received, &dns, &selectors);
        }
        assert_eq!(daemon.stop(), Some(0));
    }
}

// A second run never overwrites a key that is in use.
#[test]
fn keygen_replaces_nothing() {
    let scratch = Scratch::new();
    let key = make(&scratch, "key.pem", "s1", "ed25519");
    let before = std::fs::read(&key.file).unwrap();
    let file = key.file.to_str().unwrap();
    let again = [
        "keygen",
        "--domain",
        "lab.test",
        "--selector",
        "s1",
        "--out",
        file,
    ];
    let (code, _, stderr) = words(&again);
    assert_eq!(code, Some(1));
    assert!(stderr.contains(file), "{stderr}");
    assert_eq!(std::fs::read(&key.file).unwrap(), before);
    let (code, _, _) = words(&["keygen", "--domain", "lab", "--selector", "s1"]);
    assert_eq!(code, Some(2));
    let out = scratch.path().join("rsa.pem");
    let (code, stdout, _) = words(&[
        "keygen",
        "--domain",
        "lab.test",
        "--selector",
        "s2",
        "--out",
        out.to_str().unwrap(),
    ]);
    assert_eq!(code, Some(0));
    // RFC 1035 3.3.14: no string of the record is longer than 255 octets.
    let line = stdout
        .lines()
        .find(|line| line.contains("IN TXT"))
        .expect("no record");
    let strings: Vec<&str> = line.split('"').skip(1).step_by(2).collect();
    assert!(
        strings.len() == 2 && strings.iter().all(|text| text.len() <= 255),
        "{line}"
    );
    assert!(stdout.contains("[[dkim]]") && stdout.contains("postrider check dkim lab.test"));
}

/// A multipart with 8-bit text in two encodings, ASCII and binary.
const EIGHT_BIT: &str = "From: Sender <sender@lab.test>\r\nTo: recipient@b.example\r\n\
    Subject: 8-bit\r\nDate: Sat, 21 Nov 2026 12:00:00 +0000\r\nMessage-ID: <8@lab.test>\r\n\
    MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=\"a b\"\r\n\
    Content-Transfer-Encoding: 8bit\r\n\r\n--a b\r\nContent-Type: text/plain; charset=utf-8\r\n\
    Content-Transfer-Encoding: 8bit\r\n\r\n.Gr\u{fc}\u{df}e  aus K\u{f6}ln\t\r\n\r\n--a b\r\n\r\n\
    plain\r\n--a b\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n\u{43f}\u{440}\u{438}\
    \u{432}\u{435}\u{442}\r\n--a b--\r\n";

/// The text of every leaf, decoded by a program that is not ours.
fn texts(message: &[u8]) -> Vec<String> {
    let message = mail_parser::MessageParser::new().parse(message).unwrap();
    let count = message.text_body_count();
    (0..count)
        .map(|index| message.body_text(index).unwrap().into_owned())
        .collect()
}

// RFC 6152 3: a receiver without 8BITMIME gets the mail converted, under a signature that fits; one
// with it gets the octets that were submitted. What cannot be converted is returned, in ASCII.
#[test]
fn eight_bit_mail_is_converted_before_it_is_signed() {
    let scratch = Scratch::new();
    let (rsa, ed) = (
        make(&scratch, "rsa.pem", "r1", "rsa2048"),
        make(&scratch, "ed.pem", "e1", "ed25519"),
    );
    let dns = publish(&[&rsa, &ed]);
    let keys = format!("{}{}", rsa.config, ed.config);
    let (modern, old) = (
        Sink::start(),
        Sink::offering(b"250-old.test\r\n250 SIZE 9999999\r\n"),
    );
    for (sink, eight_bit) in [(&modern, true), (&old, false)] {
        let daemon = Daemon::start(sink.address, &keys);
        let mut client = Client::greeted(daemon.address);
        assert_eq!(
            submit(&mut client, EIGHT_BIT.as_bytes()),
            250,
            "{}",
            client.reply
        );
        let received = sink.next();
        let text = received.text();
        assert_passes(&received, &dns, &["r1", "e1"]);
        assert_eq!(
            received.content.ends_with(EIGHT_BIT.as_bytes()),
            eight_bit,
            "{text}"
        );
        assert_eq!(received.content.is_ascii(), !eight_bit, "{text}");
        assert_eq!(text.to_lowercase().contains("8bit"), eight_bit, "{text}");
        assert_eq!(
            texts(&received.content),
            texts(EIGHT_BIT.as_bytes()),
            "{text}"
        );
        assert_eq!(texts(&received.content).len(), 3, "{text}");

        if !eight_bit {
            let header = EIGHT_BIT.replace("Subject: 8-bit", "Subject: gr\u{fc}n");
            let signed = EIGHT_BIT.replace("multipart/mixed", "multipart/signed");
            for (message, status) in [(header, "5.6.9"), (signed, "5.6.3")] {
                assert_eq!(
                    submit(&mut client, message.as_bytes()),
                    250,
                    "{}",
                    client.reply
                );
                let notification = sink.next();
                let text = notification.text();
                assert_eq!(
                    (&*notification.sender, text.is_ascii()),
                    ("", true),
                    "{text}"
                );
                assert!(text.contains(&format!("Status: {status}")), "{text}");
            }
        }
        assert_eq!(daemon.stop(), Some(0));
        assert!(sink.drain().is_empty());
    }
}
