//! sources - which address and which name mail leaves with, seen by the receiver; and the counters
//! that tell of it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::harness::{Client, Daemon, Received, Sink, free_address, program, wait_until};

/// Three sources with names of their own. "default" has the first two, three to one, "slow" the
/// last.
fn configuration(addresses: &[IpAddr; 3]) -> String {
    let mut text = String::new();
    for (number, address) in (1..).zip(addresses) {
        text.push_str(&format!(
            "[[source]]\nname = \"ip{number}\"\naddress = \"{address}\"\n\
             helo = \"out{number}.test.example\"\n"
        ));
    }
    text + "[[pool]]\nname = \"default\"\nsources = [{ source = \"ip1\", weight = 3 }, \
            { source = \"ip2\", weight = 1 }]\n\
            [[pool]]\nname = \"slow\"\nsources = [{ source = \"ip3\" }]\n"
}

/// One message with these header fields; the code of the last reply.
fn submit(client: &mut Client, fields: &str) -> u16 {
    assert_eq!(client.command("MAIL FROM:<a@a.example>"), 250);
    assert_eq!(client.command("RCPT TO:<b@b.example>"), 250);
    assert_eq!(client.command("DATA"), 354);
    client.send(format!("{fields}From: a@a.example\r\n\r\nhello\r\n"));
    client.command(".")
}

/// Whether a message came from a source of the configuration, by its address and its name.
fn is_from(received: &Received, number: usize, addresses: &[IpAddr; 3]) -> bool {
    let name = format!("out{number}.test.example");
    let same = received.peer == addresses[number - 1];
    assert_eq!(same, received.hello == name, "{received:?}");
    same
}

#[test]
fn mail_leaves_from_the_source_that_it_should() {
    let sink = Sink::start();
    let addresses = [(); 3].map(|()| free_address().ip());
    let daemon = Daemon::start_with(sink.address, "", |text| text + &configuration(&addresses));
    let mut client = Client::greeted(daemon.address);
    let named = [
        ("X-Postrider-Pool: slow\r\n", 3),
        ("X-Postrider-Source: ip2\r\n", 2),
        ("X-virtual-mta: slow\r\n", 3),
        ("X-virtual-mta: ip1\r\n", 1),
    ];
    for (fields, number) in named {
        assert_eq!(submit(&mut client, fields), 250, "{}", client.reply);
        let received = sink.next();
        assert!(is_from(&received, number, &addresses), "{received:?}");
        let text = received.text().to_ascii_lowercase();
        assert!(
            !text.contains("x-virtual-mta") && !text.contains("x-postrider"),
            "{text}"
        );
    }
    assert_eq!(submit(&mut client, "X-Postrider-Pool: no-such\r\n"), 550);
    assert!(client.reply.contains("no-such"), "{}", client.reply);
    // By chance, three to one: that fewer than 110 or more than 190 of 200 go one way has a
    // probability below 10^-9 (binomial, p = 3/4).
    for _ in 0..200 {
        assert_eq!(submit(&mut client, ""), 250);
    }
    let mut shares = BTreeMap::new();
    for _ in 0..200 {
        *shares.entry(sink.next().peer).or_insert(0) += 1;
    }
    assert_eq!(shares.len(), 2, "{shares:?}");
    assert!((110..=190).contains(&shares[&addresses[0]]), "{shares:?}");
}

// Each counter counts what its name says: one refusal of a session, one message, one attempt that
// was put off for want of a receiver.
#[test]
fn counters_count() {
    let nobody = free_address();
    let daemon = Daemon::start(nobody, "connections_max = 1\n");
    let mut client = Client::greeted(daemon.address);
    let mut second = Client::connect(daemon.address);
    assert_eq!(second.read_reply(), 421, "{}", second.reply);
    assert_eq!(submit(&mut client, ""), 250);
    let total = |name: &str| crate::books::total(&daemon.status(), name);
    wait_until("an attempt is put off", || total("deferred") == 1);
    assert_eq!(total("sessions_total"), 1);
    assert_eq!(total("sessions_refused"), 1);
    assert_eq!(
        (total("messages_accepted"), total("recipients_accepted")),
        (1, 1)
    );
    assert!(total("bytes_accepted") > 30);
    assert!(total("connections_failed") >= 1);
    assert_eq!(total("delivered"), 0);
}

// What does not work is said once in the log, with its reason, and so is its end.
#[test]
fn trouble_is_in_the_log() {
    let address = free_address();
    let absent = "[[source]]\nname = \"elsewhere\"\naddress = \"192.0.2.1\"\n\
                  [[source]]\nname = \"here\"\naddress = \"127.0.0.1\"\n\
                  [[pool]]\nname = \"default\"\nsources = [{ source = \"here\" }]\n\
                  [delivery]\nretry = [\"1s\"]\n";
    let daemon = Daemon::start_with(address, "", |text| text + absent);
    assert!(
        daemon.log().contains("no address of this host"),
        "{}",
        daemon.log()
    );
    let mut client = Client::greeted(daemon.address);
    assert_eq!(submit(&mut client, ""), 250);
    let failing = "deliveries to a site fail";
    wait_until("the failure is said", || daemon.log().contains(failing));
    let line = daemon
        .log()
        .lines()
        .find(|line| line.contains(failing))
        .unwrap()
        .to_owned();
    assert!(
        line.contains(&address.to_string()) && line.contains("here"),
        "{line}"
    );
    let sink = Sink::start_at(address);
    sink.next();
    wait_until("the end is said", || daemon.log().contains("work again"));
    assert_eq!(daemon.log().matches(failing).count(), 1, "{}", daemon.log());
}

// A path is suspended by the domain that goes there, its mail waits, and leaves when it is resumed.
#[test]
fn paths_are_suspended_and_resumed() {
    let address = free_address();
    let daemon = Daemon::start_with(address, "", |text| text + "[delivery]\nretry = [\"1s\"]\n");
    let mut client = Client::greeted(daemon.address);
    assert_eq!(submit(&mut client, ""), 250);
    let total = |name: &str| crate::books::total(&daemon.status(), name);
    wait_until("it waits", || total("deferred") == 1);
    let socket = daemon.scratch.path().join("admin.sock");
    let ctl = |words: &[&str]| {
        let mut command = program();
        command.arg("ctl").args(words).arg("--socket").arg(&socket);
        command.output().unwrap()
    };
    let nobody = ctl(&["suspend", "--site", "c.example"]);
    assert_eq!(nobody.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&nobody.stderr).contains("ctl paths"),
        "{nobody:?}"
    );
    let suspended = ctl(&["suspend", "--site", "b.example"]);
    assert_eq!(
        String::from_utf8_lossy(&suspended.stdout),
        "1 paths suspended\n"
    );
    let sink = Sink::start_at(address);
    // It comes due once a second at least, and stays where it is.
    wait_until("it is due", || total("ready") == 1);
    assert!(sink.drain().is_empty());
    assert_eq!(
        ctl(&["resume", "--site", "b.example"]).status.code(),
        Some(0)
    );
    sink.next();
}
