//! bad_input - what is wrong gets a clear answer, costs nothing that was accepted, and never ends
//! the daemon.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use crate::harness::{Client, Daemon, Scratch, Sink, config, free_address, program};
use crate::samples;

#[test]
fn unknown_and_malformed_commands_get_a_reply() {
    let sink = Sink::start();
    let mut daemon = Daemon::start(sink.address, "");
    let mut client = Client::greeted(daemon.address);
    for (line, code) in [
        ("BREW coffee", 500),
        ("MAIL FROM:sender", 501),
        ("MAIL FROM:<a@b.example> SIZE=x", 501),
        ("MAIL FROM:<a@b.example> COLOUR=red", 555),
        ("RCPT TO:<a@b.example>", 503),
        ("DATA", 503),
        ("VRFY somebody", 252),
        ("NOOP", 250),
    ] {
        assert_eq!(client.command(line), code, "{line}: {}", client.reply);
    }
    let mut client = Client::greeted(daemon.address);
    client.send(b"\0\xff\x01\r\n");
    assert!(
        (500..600).contains(&client.read_reply()),
        "{}",
        client.reply
    );
    assert_eq!(client.command("NOOP"), 250);
    daemon.assert_alive();
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn overlong_lines_get_500_and_the_session_goes_on() {
    let sink = Sink::start();
    let daemon = Daemon::start(sink.address, "");
    let mut client = Client::greeted(daemon.address);
    client.send("NOOP ".to_owned() + &"x".repeat(200_000) + "\r\n");
    assert_eq!(client.read_reply(), 500, "{}", client.reply);
    assert_eq!(client.command("NOOP"), 250);
}

#[test]
fn recipients_over_the_limit_get_452_and_the_others_their_mail() {
    let sink = Sink::start();
    let daemon = Daemon::start(sink.address, "max_recipients = 100");
    let mut client = Client::greeted(daemon.address);
    assert_eq!(client.command("MAIL FROM:<sender@a.example>"), 250);
    for number in 0..100 {
        assert_eq!(
            client.command(&format!("RCPT TO:<r{number}@b.example>")),
            250
        );
    }
    assert_eq!(
        client.command("RCPT TO:<r100@b.example>"),
        452,
        "{}",
        client.reply
    );
    assert_eq!(client.command("DATA"), 354);
    client.send("Subject: many\r\n\r\nHello\r\n.\r\n");
    assert_eq!(client.read_reply(), 250);
    let mut recipients = Vec::new();
    while recipients.len() < 100 {
        recipients.extend(sink.next().recipients);
    }
    recipients.sort();
    recipients.dedup();
    assert_eq!(recipients.len(), 100);
    assert!(!recipients.contains(&"r100@b.example".to_owned()));
}

#[test]
fn messages_over_size_get_552_announced_or_not() {
    let sink = Sink::start();
    let daemon = Daemon::start(sink.address, "max_message_size = \"64KiB\"");
    let mut client = Client::greeted(daemon.address);
    assert!(client.command("EHLO x.example") == 250 && client.reply.contains("SIZE 65536"));
    assert_eq!(
        client.command("MAIL FROM:<a@b.example> SIZE=65537"),
        552,
        "{}",
        client.reply
    );
    assert_eq!(client.command("MAIL FROM:<a@b.example>"), 250);
    assert_eq!(client.command("RCPT TO:<c@d.example>"), 250);
    assert_eq!(client.command("DATA"), 354);
    client.send(samples::stuffed(&samples::large(200_000)));
    assert_eq!(client.read_reply(), 552, "{}", client.reply);
    // The session goes on, and the next message is taken.
    assert_eq!(client.command("MAIL FROM:<a@b.example>"), 250);
    assert_eq!(client.command("RCPT TO:<c@d.example>"), 250);
    assert_eq!(client.command("DATA"), 354);
    client.send("Subject: small\r\n\r\nHello\r\n.\r\n");
    assert_eq!(client.read_reply(), 250);
    assert!(sink.next().text().contains("Subject: small"));
    assert!(sink.drain().is_empty());
}

#[test]
fn a_bare_line_feed_never_ends_a_message() {
    let sink = Sink::start();
    let daemon = Daemon::start(sink.address, "");
    for end in ["\n.\n", "\r\n.\n", "\n.\r\n", "\r.\r"] {
        let mut client = Client::greeted(daemon.address);
        assert_eq!(client.command("MAIL FROM:<a@b.example>"), 250);
        assert_eq!(client.command("RCPT TO:<c@d.example>"), 250);
        assert_eq!(client.command("DATA"), 354);
        client.send(format!(
            "Subject: outer\r\n\r\nHello{end}MAIL FROM:<x@y.example>\r\n.\r\n"
        ));
        let code = client.read_reply();
        assert!((500..600).contains(&code), "{end:?}: {}", client.reply);
        assert_eq!(client.command("NOOP"), 250, "{end:?}");
    }
    assert_eq!(daemon.stop(), Some(0));
    assert!(
        sink.drain().is_empty(),
        "a message with a bare line end went out"
    );
}

#[test]
fn disconnects_in_every_phase_are_survived() {
    let sink = Sink::start();
    let mut daemon = Daemon::start(sink.address, "");
    let steps = [
        "EHLO client.test.example\r\n",
        "MAIL FROM:<a@b.example>\r\n",
        "RCPT TO:<c@d.example>\r\n",
        "DATA\r\n",
        "Subject: cut\r\n\r\nHalf a li",
        "ne\r\n.",
    ];
    for phase in 0..=steps.len() {
        let mut client = Client::connect(daemon.address);
        assert_eq!(client.read_reply(), 220);
        for (index, step) in steps[..phase].iter().enumerate() {
            client.send(step);
            if index < 4 {
                assert!(client.read_reply() < 400, "{step:?}: {}", client.reply);
            }
        }
        client.hang_up();
        // Half a command, then the end.
        let mut client = Client::greeted(daemon.address);
        client.send("MAIL FR");
        client.hang_up();
    }
    daemon.assert_alive();
    assert_eq!(daemon.stop(), Some(0));
    assert!(sink.drain().is_empty(), "an unfinished message went out");
}

#[test]
fn an_empty_message_is_carried() {
    let sink = Sink::start();
    let daemon = Daemon::start(sink.address, "");
    let mut client = Client::greeted(daemon.address);
    assert_eq!(client.command("MAIL FROM:<>"), 250);
    assert_eq!(client.command("RCPT TO:<c@d.example>"), 250);
    assert_eq!(client.command("DATA"), 354);
    assert_eq!(client.command("."), 250, "{}", client.reply);
    let received = sink.next();
    assert_eq!(
        (received.sender.as_str(), received.without_trace()),
        ("", &b""[..])
    );
}

#[test]
fn who_may_not_relay_gets_550() {
    let sink = Sink::start();
    let other = free_address();
    let more = format!("[[listener]]\naddress = \"{other}\"\nrelay_from = []\n");
    let daemon = Daemon::start(sink.address, &more);
    let mut client = Client::greeted(other);
    assert_eq!(client.command("MAIL FROM:<a@b.example>"), 250);
    assert_eq!(
        client.command("RCPT TO:<c@d.example>"),
        550,
        "{}",
        client.reply
    );
    assert_eq!(daemon.stop(), Some(0));
}

/// Runs the daemon with a configuration that must not work.
fn refused(scratch: &Scratch, text: &str) -> (Option<i32>, String) {
    refused_by(program(), scratch, text)
}

fn refused_by(mut command: Command, scratch: &Scratch, text: &str) -> (Option<i32>, String) {
    let file = scratch.file("postrider.toml", text);
    let log = scratch.path().join("words");
    command
        .args(["run", "--config"])
        .arg(file)
        .stdout(Stdio::piped());
    let mut child = command.stderr(File::create(&log).unwrap()).spawn().unwrap();
    // It ends, or it says that it is ready: one of both comes without waiting for a time.
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    if !line.is_empty() {
        child.kill().unwrap();
    }
    let code = child.wait().unwrap().code();
    assert_eq!(line, "", "it said that it is ready");
    (code, std::fs::read_to_string(log).unwrap())
}

#[test]
fn a_port_in_use_is_named() {
    let scratch = Scratch::new();
    std::fs::create_dir(scratch.path().join("data")).unwrap();
    let taken = TcpListener::bind(free_address()).unwrap();
    let address = taken.local_addr().unwrap();
    let (code, words) = refused(&scratch, &config(&scratch, address, free_address(), ""));
    assert_eq!(code, Some(1), "{words}");
    assert!(words.contains(&address.to_string()), "{words}");
}

#[test]
fn a_bad_data_directory_is_named() {
    let scratch = Scratch::new();
    let text = config(&scratch, free_address(), free_address(), "");
    let missing = text.replace("/data\"", "/no/such/data\"");
    let (code, words) = refused(&scratch, &missing);
    assert_eq!(code, Some(1), "{words}");
    assert!(words.contains("no/such/data"), "{words}");
    let file = scratch.file("data", "a file");
    let (code, words) = refused(&scratch, &text);
    assert_eq!(code, Some(1), "{words}");
    assert!(words.contains(file.to_str().unwrap()), "{words}");
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o000)).unwrap();
    let (code, words) = refused_by(unprivileged(), &scratch, &text);
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(code, Some(1), "{words}");
    assert!(words.contains(file.to_str().unwrap()), "{words}");
    assert!(words.contains("the user that runs the daemon"), "{words}");
}

/// The program without the right to enter everything, which root has.
fn unprivileged() -> Command {
    let uid = Command::new("id").arg("-u").output().unwrap();
    if uid.stdout.trim_ascii() != b"0" {
        return program();
    }
    let mut command = Command::new("setpriv");
    command
        .args(["--bounding-set", "-all", "--inh-caps", "-all", "--"])
        .arg(program().get_program());
    command
}

// One port for all shards, and the one that it says.
#[test]
fn a_port_of_the_kernels_choice_is_one_for_all_shards() {
    let address = free_address();
    let open = address
        .to_string()
        .replace(&format!(":{}", address.port()), ":0");
    let daemon = Daemon::start_with(free_address(), "", |text| {
        text.replace(&address_of_listener(&text), &open)
            .replace("shards = 1", "shards = 2")
    });
    let std::net::IpAddr::V4(ip) = address.ip() else {
        unreachable!("tests live in 127/8")
    };
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let name = format!("{:08X}:", u32::from_ne_bytes(ip.octets()));
    let listening = table.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let (local, state) = (words.next()?, words.nth(1)?);
        (state == "0A").then_some(())?;
        u16::from_str_radix(local.strip_prefix(&name)?, 16).ok()
    });
    let ports: Vec<u16> = listening.collect();
    assert_eq!(ports.len(), 2, "{table}");
    assert_eq!(ports[0], ports[1]);
    assert!(
        daemon.log().contains(&format!("{ip}:{}", ports[0])),
        "{}",
        daemon.log()
    );
}

/// What a configuration of the harness has its listener listen on.
fn address_of_listener(text: &str) -> String {
    let line = text.lines().find(|line| line.starts_with("address = "));
    line.unwrap().split('"').nth(1).unwrap().to_owned()
}

#[test]
fn a_typo_in_the_configuration_is_named() {
    let scratch = Scratch::new();
    let text = config(&scratch, free_address(), free_address(), "");
    let (code, words) = refused(&scratch, &text.replace("relay_from", "relay_form"));
    assert_eq!(code, Some(78), "{words}");
    let line = 1 + text
        .lines()
        .position(|line| line.starts_with("relay_from"))
        .unwrap();
    assert!(
        words.contains(&format!("postrider.toml:{line}:1: ")),
        "{words}"
    );
    assert!(words.contains("did you mean \"relay_from\"?"), "{words}");
}
