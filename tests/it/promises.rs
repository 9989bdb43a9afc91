//! promises - whatever the receiving side is like, each accepted recipient is delivered once or
//! notified once, and the content is what was submitted.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use mail_parser::{MessageParser, MimeHeaders};
use postrider::lab::demo::{DemoOptions, DemoReport, run};
use postrider::lab::load::{self, LoadOptions};
use postrider::lab::personality::Mix;
use postrider::lab::sink::{Sink as LabSink, SinkOptions};

use crate::books;
use crate::harness::{
    Client, Daemon, Scratch, Sink, free_address, is_long, require, run as run_command,
    tool_command, wait_until,
};

/// One campaign to sites of these manners; everything is settled and right at its end.
fn kept(personalities: &[&str], options: DemoOptions) -> DemoReport {
    let scratch = Scratch::new();
    let report = run(DemoOptions {
        messages: if is_long() { 20_000 } else { 300 },
        size: 4096,
        sessions: 10,
        shards: Some(1),
        personalities: personalities.iter().map(ToString::to_string).collect(),
        program: Some(env!("CARGO_BIN_EXE_postrider").into()),
        keep: Some(scratch.path().join("demo")),
        drain: Duration::from_secs(180),
        ..options
    });
    let report = report.unwrap_or_else(|error| panic!("{error}"));
    assert!(report.holds(), "{report:?}");
    assert_eq!(
        (
            report.lost,
            report.duplicates,
            report.corrupt,
            report.deferred,
            report.refused
        ),
        (0, 0, 0, 0, 0),
        "{report:?}"
    );
    assert_eq!(report.delivered + report.bounced, report.recipients);
    report
}

/// As `kept`, where every recipient gets the message in the end.
fn all_delivered(personalities: &[&str], options: DemoOptions) {
    let report = kept(personalities, options);
    assert_eq!(report.bounced, 0, "{report:?}");
}

#[test]
fn a_greylisted_message_arrives_once() {
    all_delivered(&["greylist:1s=100"], DemoOptions::default());
}

#[test]
fn a_recipient_refused_for_now_is_tried_again() {
    all_delivered(&["tempfail:10=100"], DemoOptions::default());
}

#[test]
fn a_message_refused_for_now_after_its_content_is_tried_again() {
    all_delivered(&["tempfail-dot:10=100"], DemoOptions::default());
}

#[test]
fn a_site_that_takes_few_messages_per_connection_gets_all_of_them_once() {
    all_delivered(&["messages:20=100"], DemoOptions::default());
}

#[test]
fn a_site_without_chunking_gets_the_same_bytes() {
    all_delivered(&["no-chunking=100"], DemoOptions::default());
}

#[test]
fn a_site_without_pipelining_gets_the_same_bytes() {
    all_delivered(&["no-pipelining+no-chunking=100"], DemoOptions::default());
}

#[test]
fn a_message_with_recipients_in_many_domains_reaches_each_once() {
    let options = DemoOptions {
        recipients: 20,
        domains: 7,
        chunking: true,
        ..DemoOptions::default()
    };
    all_delivered(&["tempfail:5=50"], options);
}

#[test]
fn a_rejected_recipient_is_notified_and_the_others_get_the_message() {
    let options = DemoOptions {
        recipients: 3,
        ..DemoOptions::default()
    };
    let report = kept(&["reject:20=100"], options);
    // A fifth of them: with this many draws far from none and from all.
    assert!(
        report.bounced * 20 > report.recipients && report.bounced * 2 < report.recipients,
        "{report:?}"
    );
}

/// The laboratory's receiving side with one site of these manners.
fn site(personality: &str, scratch: &Scratch) -> LabSink {
    let SocketAddr::V4(address) = free_address() else {
        panic!("a loopback address of IPv4");
    };
    // The site of bounces is the address above it, so the last octet stays below 255.
    let first: Ipv4Addr = *address.ip();
    LabSink::start(SinkOptions {
        first_address: first,
        port: address.port(),
        domains: 1,
        mix: Mix::parse(&[personality.to_owned()]).unwrap(),
        ledger: Some(scratch.path().join("arrivals")),
        ..SinkOptions::default()
    })
    .unwrap()
}

fn null_sender_campaign(daemon: &Daemon, scratch: &Scratch) -> u64 {
    let report = load::run(LoadOptions {
        target: daemon.address,
        messages: 200,
        sessions: 5,
        domains: 1,
        sender: Some(String::new()),
        ledger: Some(scratch.path().join("sent.ledger")),
        ..LoadOptions::default()
    })
    .unwrap();
    assert_eq!((report.accepted, report.refused), (200, 0));
    report.accepted
}

#[test]
fn mail_of_the_null_sender_arrives_once() {
    let scratch = Scratch::new();
    let sink = site("accept=100", &scratch);
    let daemon = Daemon::start(sink.address(0), "");
    let accepted = null_sender_campaign(&daemon, &scratch);
    wait_until("the deliveries", || sink.report().delivered >= accepted);
    assert_eq!(daemon.stop(), Some(0));
    let ledgers = sink.ledgers().to_vec();
    sink.stop().unwrap();
    let verdict = books::verdict(&scratch.path().join("sent.ledger"), &ledgers);
    assert_eq!(
        (verdict.lost, verdict.duplicates, verdict.corrupt),
        (0, 0, 0)
    );
}

// RFC 5321 6.1: a notification about mail of the null sender would be the start of a loop.
#[test]
fn rejected_mail_of_the_null_sender_is_not_notified() {
    let scratch = Scratch::new();
    let sink = site("reject:100=100", &scratch);
    let mut daemon = Daemon::start(sink.address(0), "");
    let accepted = null_sender_campaign(&daemon, &scratch);
    wait_until("the refusals", || {
        books::total(&daemon.status(), "failed") >= accepted
    });
    let status = daemon.status();
    assert_eq!(books::total(&status, "notifications"), 0, "{status}");
    daemon.assert_alive();
    assert_eq!(daemon.stop(), Some(0));
    let report = sink.stop().unwrap();
    assert_eq!((report.messages, report.bounced), (0, 0));
}

/// Submits one message to a recipient that its site rejects, and returns the notification.
fn notification() -> (Vec<u8>, Daemon) {
    let scratch = Scratch::new();
    let rejecting = site("reject:100=100", &scratch);
    let sink = Sink::start();
    // The first route that matches wins, so the sender's domain has its own before the rest.
    let daemon = Daemon::start_with(rejecting.address(0), "", |config| {
        let route = format!(
            "[[route]]\ndomains = [\"a.example\"]\nvia = \"{}\"\n[[route]]\n",
            sink.address
        );
        config.replacen("[[route]]\n", &route, 1)
    });
    let mut client = Client::greeted(daemon.address);
    assert_eq!(client.command("MAIL FROM:<sender@a.example>"), 250);
    assert_eq!(client.command("RCPT TO:<gone@reject.example>"), 250);
    assert_eq!(client.command("DATA"), 354);
    client.send("Subject: for nobody\r\nMessage-ID: <m1@a.example>\r\n\r\nHello\r\n.\r\n");
    assert_eq!(client.read_reply(), 250);
    let received = sink.next();
    assert_eq!(received.sender, "", "a notification has the null sender");
    assert_eq!(received.recipients, ["sender@a.example"]);
    rejecting.stop().unwrap();
    (received.content, daemon)
}

#[test]
fn a_notification_is_what_rfc_3464_says() {
    let (content, daemon) = notification();
    let message = MessageParser::default().parse(&content).unwrap();
    let kind = message.content_type().unwrap();
    assert_eq!(
        (kind.ctype(), kind.subtype()),
        ("multipart", Some("report"))
    );
    assert_eq!(kind.attribute("report-type"), Some("delivery-status"));
    let status = message
        .parts
        .iter()
        .find(|part| {
            part.content_type()
                .is_some_and(|kind| kind.subtype() == Some("delivery-status"))
        })
        .expect("no delivery-status");
    let text = String::from_utf8_lossy(status.contents()).into_owned();
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name} in {text}"))
            .trim()
            .to_owned()
    };
    let recipient = field("Final-Recipient:");
    let (kind, address) = recipient.split_once(';').unwrap();
    assert_eq!(
        (kind.trim(), address.trim()),
        ("rfc822", "gone@reject.example")
    );
    assert_eq!(field("Action:"), "failed");
    assert!(field("Status:").starts_with("5."), "{text}");
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_notification_is_read_by_python() {
    let Some(python) = require("python3") else {
        return;
    };
    let (content, daemon) = notification();
    let file = daemon.scratch.file("dsn", &content);
    let script = "import email, email.policy, sys\n\
        m = email.message_from_bytes(open(sys.argv[1], 'rb').read(), policy=email.policy.default)\n\
        assert not m.defects, m.defects\n\
        assert m.get_content_type() == 'multipart/report', m.get_content_type()\n\
        status = [p for p in m.walk() if p.get_content_type() == 'message/delivery-status']\n\
        assert len(status) == 1, status\n\
        groups = status[0].get_payload()\n\
        recipient = groups[1]\n\
        kind, _, address = recipient['Final-Recipient'].partition(';')\n\
        assert kind.strip().lower() == 'rfc822', kind\n\
        assert address.strip() == 'gone@reject.example', address\n\
        assert recipient['Status'].strip().startswith('5.'), recipient['Status']\n\
        assert recipient['Action'].strip() == 'failed'\n\
        assert groups[0]['Reporting-MTA'], 'no Reporting-MTA'\n";
    run_command(tool_command(&python).args(["-c", script]).arg(&file));
    assert_eq!(daemon.stop(), Some(0));
}
