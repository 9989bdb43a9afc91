//! Tests of the header scan and of the control fields.

use super::*;
use crate::message::testing::Random;

const OURS: &str = "Received: from a ([192.0.2.1])\r\n\tby b; date\r\n";

fn checked(text: &str) -> Result<(Checked, Envelope), CheckError> {
    let mut envelope = Envelope::default();
    let checked = check(Content::from(text.as_bytes().to_vec()), &mut envelope)?;
    Ok((checked, envelope))
}

// One ordinary header: where it ends, what it holds, whom it is from.
#[test]
fn ordinary_header() {
    let text = format!(
        "{OURS}DATE: x\r\nFrom: =?utf-8?q?x?=\r\n \"a@b, <c>\" <me@News.Example.com>\r\n\
         message-id : <1@x>\r\nSubject: \u{e9}\r\n\r\nX-Job: body\r\n"
    );
    let scan = scan(text.as_bytes());
    assert_eq!(&text[scan.body..], "X-Job: body\r\n");
    assert_eq!(scan.body, scan.end + 2);
    assert_eq!((scan.fields, scan.received_count), (5, 1));
    assert!(scan.has_date && scan.has_message_id && scan.has_8bit && !scan.too_long);
    assert_eq!(&text[scan.from_domain.clone().unwrap()], "News.Example.com");
    assert!(scan.controls().is_empty());
}

// Where the header ends when there is no empty line, no header, or nothing at all.
#[test]
fn ends_of_headers() {
    let table: [(&[u8], usize, usize, u32); 8] = [
        (b"", 0, 0, 0),
        (b"\r\nbody", 0, 2, 0),
        (b"A: b", 4, 4, 1),
        (b"A: b\r\n", 6, 6, 1),
        (b"A: b\r\nno field\r\n\r\n", 6, 6, 1),
        (b"A: b\r\n \r\n c\r\nB:\r\n\r\n", 17, 19, 2),
        (b"A: b\nB: c\r\n\r\n", 11, 13, 1),
        (b": x\r\n\r\n", 0, 0, 0),
    ];
    for (text, end, body, fields) in table {
        let scan = scan(text);
        assert_eq!(
            (scan.end, scan.body, scan.fields),
            (end, body, fields),
            "{}",
            text.escape_ascii()
        );
    }
}

// The domain of the author in the forms that RFC 5322 allows, and in those it does not.
#[test]
fn from_domains() {
    let table = [
        ("a@x.org", Some("x.org")),
        ("<a@x.org>", Some("x.org")),
        ("a@y.org <b@x.org> (c@z.org)", Some("x.org")),
        ("(c@z.org (nested@q)) a@x.org, b@y.org", Some("x.org")),
        ("\"a\\\"@y\" <b@x.org>", Some("x.org")),
        ("\"quoted@local\"@x.org", Some("x.org")),
        ("Group: a@x.org, b@y.org;", Some("x.org")),
        ("a@\r\n x.org", Some("x.org")),
        ("a@[192.0.2.1]", None),
        ("a@x!y", None),
        ("a@", None),
        ("nobody", None),
        ("(unclosed a@x.org", None),
        ("\"unclosed a@x.org\\", None),
    ];
    for (value, domain) in table {
        let text = format!("From: {value}\r\n\r\n");
        let found = scan(text.as_bytes())
            .from_domain
            .map(|range| text[range].to_owned());
        assert_eq!(found.as_deref(), domain, "{value}");
    }
}

// Control fields go into the envelope and leave no trace; the offsets still fit; our names win.
#[test]
fn control_fields_are_cut() {
    let text = format!(
        "{OURS}X-Job: old\r\nSubject: s\r\nx-postrider-CAMPAIGN:\r\n autumn 26 \r\n\
         From: a@x.org\r\nX-Postrider-Tenant: acme\r\nX-Postrider-Source:\r\n\
         X-Virtual-MTA: pool1\r\nX-Jobs: kept\r\nX-virtual-mta: pool1\r\n\r\nX-Job: body\r\n"
    );
    let (checked, envelope) = checked(&text).unwrap();
    let rest = "Subject: s\r\nFrom: a@x.org\r\nX-Jobs: kept\r\n\r\nX-Job: body\r\n";
    assert_eq!(
        checked.content.as_slice(),
        format!("{OURS}{rest}").as_bytes()
    );
    assert_eq!(checked.scan, scan(checked.content.as_slice()));
    assert_eq!(envelope.campaign.as_deref(), Some("autumn 26"));
    assert_eq!(envelope.tenant.as_deref(), Some("acme"));
    assert_eq!(envelope.source, None);
    assert_eq!(envelope.pool.as_deref(), Some("pool1"));
}

// What a control field may not hold, and the reply that says so.
#[test]
fn control_fields_are_checked() {
    let refused = |fields: &str| checked(&format!("{OURS}{fields}\r\n")).unwrap_err();
    let long = "x".repeat(limits::CONTROL_VALUE_BYTES_MAX);
    assert!(checked(&format!("X-Job: {long}\r\n\r\n")).is_ok());
    let table = [
        (
            format!("X-Job: {long}x\r\n"),
            CheckError::ControlValue(ControlName::Job),
        ),
        (
            "X-Job: a\r\n b\r\n".to_owned(),
            CheckError::ControlValue(ControlName::Job),
        ),
        (
            "X-Job: \u{e9}\r\n".to_owned(),
            CheckError::ControlValue(ControlName::Job),
        ),
        (
            "X-Postrider-Pool: a\r\nX-Postrider-Pool: b\r\n".to_owned(),
            CheckError::ControlTwice(ControlName::Pool),
        ),
        ("X-Job: a\r\n".repeat(13), CheckError::TooManyControls),
    ];
    for (fields, error) in table {
        assert_eq!(refused(&fields), error);
        assert_eq!((error.code(), error.status()), (554, EnhancedStatus::MEDIA));
        assert!(error.to_string().len() < 100);
    }
}

// 99 Received fields before ours pass, 101 are a loop (RFC 5321 6.3).
#[test]
fn loops_are_cut() {
    let message = |hops: usize| format!("{OURS}{}\r\n", OURS.repeat(hops));
    assert!(checked(&message(99)).is_ok());
    let error = checked(&message(101)).unwrap_err();
    assert_eq!(
        (error, error.status()),
        (CheckError::Loop, EnhancedStatus::ROUTING_LOOP)
    );
}

// A header at the limit passes, one above is refused, with one field or with many.
#[test]
fn header_length_is_bounded() {
    let one = |len: usize| format!("A: {}\r\n\r\nbody", "x".repeat(len - 5));
    assert!(checked(&one(limits::HEADER_BYTES_MAX)).is_ok());
    let error = checked(&one(limits::HEADER_BYTES_MAX + 1)).unwrap_err();
    assert_eq!((error, error.code()), (CheckError::HeaderTooLong, 552));
    let many = "A: b\r\n".repeat(limits::HEADER_BYTES_MAX / 6 + 1) + "\r\n";
    assert_eq!(checked(&many).unwrap_err(), CheckError::HeaderTooLong);
    assert!(checked(&("A: b\r\n".repeat(10_000) + "\r\n")).is_ok());
}

// SMTPUTF8 without anything non-ASCII is forgotten; with something it stays.
#[test]
fn smtputf8_is_settled() {
    let settle = |sender: &str, header: &str| {
        let mut envelope = Envelope {
            sender: Some(sender.parse().unwrap()),
            smtputf8: true,
            ..Envelope::default()
        };
        check(Content::from(header.as_bytes().to_vec()), &mut envelope).unwrap();
        envelope.smtputf8
    };
    assert!(!settle("a@x", "Subject: a\r\n\r\n\u{e9}"));
    assert!(settle("a@x", "Subject: \u{e9}\r\n\r\n"));
    assert!(settle("\u{e9}@x", "Subject: a\r\n\r\n"));
}

// Random headers from pieces that matter, and random octets, through the fuzz hook.
#[test]
fn random_octets() {
    let mut random = Random(3);
    let pieces: [&[u8]; 22] = [
        b"\r\n",
        b"\r\n",
        b"\r\n",
        b"\r\n ",
        b"\n",
        b"\r",
        b"X-Job: a",
        b"X-Job:",
        b"x-virtual-mta:b",
        b"X-Postrider-Pool : c",
        b"From: ",
        b"Received: d",
        b"a@b.c",
        b"<",
        b">",
        b"\"",
        b"\\",
        b"(",
        b")",
        b":",
        b"\xc3\xa9",
        b"\x00",
    ];
    for _ in 0..100_000 {
        fuzz_header(&random.soup(&pieces, 14));
    }
    for _ in 0..5_000 {
        let octets: Vec<u8> = (0..random.below(300))
            .map(|_| random.next() as u8)
            .collect();
        fuzz_header(&octets);
    }
}
