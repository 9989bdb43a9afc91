//! Tests of notifications, read back with a parser that is not ours.

use mail_parser::{MessageParser, MimeHeaders, PartType};

use super::*;
use crate::message::testing::Random;

const ORIGINAL: &str = "Received: from a ([192.0.2.1])\r\n\tby b; date\r\nFrom: me@example.com\r\n\
     Subject: the original\r\n\r\nHello.\r\n";

struct Case {
    sender: Option<Address>,
    recipients: Vec<Recipient>,
    diagnostic: String,
    remote: Option<&'static str>,
    content: Vec<u8>,
    ret: Option<Ret>,
    kind: Kind,
    smtputf8: bool,
    envid: Option<&'static str>,
}

impl Default for Case {
    fn default() -> Self {
        Self {
            sender: Some("bounce@example.com".parse().unwrap()),
            recipients: vec![Recipient::new("user@example.net".parse().unwrap())],
            diagnostic: "550 5.1.1 no such user here".to_owned(),
            remote: Some("mx.example.net"),
            content: ORIGINAL.as_bytes().to_vec(),
            ret: None,
            kind: Kind::Failed,
            smtputf8: false,
            envid: None,
        }
    }
}

impl Case {
    fn build(&self) -> Option<(Envelope, String)> {
        let (envelope, octets) = self.octets()?;
        Some((envelope, String::from_utf8(octets).unwrap()))
    }

    fn octets(&self) -> Option<(Envelope, Vec<u8>)> {
        let report = |recipient| Report {
            recipient,
            status: EnhancedStatus::NO_SUCH_MAILBOX,
            diagnostic: &self.diagnostic,
            remote_mta: self.remote,
        };
        let reports: Vec<Report<'_>> = self.recipients.iter().map(report).collect();
        let (envelope, content) = failure(&DsnInfo {
            reporting_mta: "mta1.example.com",
            sender: self.sender.as_ref(),
            envid: self.envid,
            ret: self.ret,
            smtputf8: self.smtputf8,
            reports: &reports,
            arrival: Wall(1_795_299_543_000),
            now: Wall(1_795_299_600_000),
            id: MessageId::new(1, 0x42),
            content: &self.content,
            kind: self.kind,
            seed: 7,
        })?;
        assert!(
            lines_are_clean(content.as_slice()),
            "CRLF lines of at most 998 octets"
        );
        assert_eq!(envelope.sender, None);
        let eight_bit = envelope.body == BodyType::EightBitMime;
        assert!(eight_bit || envelope.smtputf8 || content.is_ascii());
        Some((envelope, content.as_slice().to_vec()))
    }

    /// The three parts as the other parser sees them: media type and decoded octets.
    fn parts(&self) -> Vec<(String, Vec<u8>)> {
        let (_, octets) = self.octets().unwrap();
        let message = MessageParser::default().parse(&octets).unwrap();
        let top = message.content_type().unwrap();
        assert_eq!((top.ctype(), top.subtype()), ("multipart", Some("report")));
        assert_eq!(top.attribute("report-type"), Some("delivery-status"));
        let PartType::Multipart(children) = &message.parts[0].body else {
            panic!("no multipart")
        };
        let part = |index: &u32| {
            let part = &message.parts[*index as usize];
            let media = part.content_type().unwrap();
            let media = format!("{}/{}", media.ctype(), media.subtype().unwrap());
            (media, part.contents().to_vec())
        };
        children.iter().map(part).collect()
    }

    fn status_text(&self) -> String {
        let parts = self.parts();
        assert_eq!(parts.len(), 3);
        String::from_utf8(parts[1].1.clone()).unwrap()
    }
}

// An ordinary bounce: header, the text for people, the fields for programs, the returned header.
#[test]
fn ordinary_failure() {
    let case = Case {
        envid: Some("my id"),
        ..Case::default()
    };
    let (envelope, text) = case.build().unwrap();
    assert_eq!(
        envelope.recipients[0].address.as_str(),
        "bounce@example.com"
    );
    assert!(envelope.recipients[0].notify.is_never());
    for line in [
        "Date: Sat, 21 Nov 2026 22:20:00 +0000",
        "From: Mail Delivery System <MAILER-DAEMON@mta1.example.com>",
        "To: <bounce@example.com>",
        "Auto-Submitted: auto-replied",
        "    What happened: there is no mailbox with this name (5.1.1)",
        "    Its mail server mx.example.net said: 550 5.1.1 no such user here",
    ] {
        assert!(text.contains(&format!("{line}\r\n")), "{line}\n{text}");
    }
    assert_eq!(
        case.status_text().trim_end(),
        "Original-Envelope-Id: my id\r\n\
         Reporting-MTA: dns; mta1.example.com\r\n\
         X-Postrider-Queue-Id: 0010000000000042\r\n\
         Arrival-Date: Sat, 21 Nov 2026 22:19:03 +0000\r\n\
         \r\n\
         Final-Recipient: rfc822; user@example.net\r\n\
         Action: failed\r\n\
         Status: 5.1.1\r\n\
         Remote-MTA: dns; mx.example.net\r\n\
         Diagnostic-Code: smtp; 550 5.1.1 no such user here\r\n\
         Last-Attempt-Date: Sat, 21 Nov 2026 22:20:00 +0000"
    );
    let parts = case.parts();
    assert_eq!(
        (parts[0].0.as_str(), parts[1].0.as_str()),
        ("text/plain", "message/delivery-status")
    );
    assert_eq!(parts[2].0, "text/rfc822-headers");
    let returned = String::from_utf8(parts[2].1.clone()).unwrap();
    assert!(returned.contains("Subject: the original") && !returned.contains("Hello"));
}

// Who gets no report: the null sender, and recipients whose NOTIFY does not ask for it.
#[test]
fn notify_is_honoured() {
    assert!(
        Case {
            sender: None,
            ..Case::default()
        }
        .build()
        .is_none()
    );
    let delayed = Kind::Delayed {
        until: Wall(1_795_400_000_000),
    };
    let table = [
        (Notify::default(), [true, true, true, false]),
        (Notify::NEVER, [false; 4]),
        (Notify::FAILURE, [true, true, false, false]),
        (Notify::DELAY, [false, false, true, false]),
        (Notify::SUCCESS, [false, false, false, true]),
    ];
    for (notify, expected) in table {
        for (kind, wanted) in [Kind::Failed, Kind::Expired, delayed, Kind::Relayed]
            .into_iter()
            .zip(expected)
        {
            let mut case = Case {
                kind,
                ..Case::default()
            };
            case.recipients[0].notify = notify;
            assert_eq!(case.build().is_some(), wanted, "{notify:?} {kind:?}");
            // Another recipient who wants everything does not drag the first one in.
            case.recipients.push(Recipient {
                notify: Notify::SUCCESS.with(Notify::FAILURE).with(Notify::DELAY),
                ..Recipient::new("other@example.net".parse().unwrap())
            });
            let groups = case.status_text().matches("Final-Recipient").count();
            assert_eq!(groups, 1 + usize::from(wanted));
        }
    }
}

// Delay: the action, the date of giving up, and never the whole message.
#[test]
fn delay_says_until_when() {
    let kind = Kind::Delayed {
        until: Wall(1_795_400_000_000),
    };
    let case = Case {
        kind,
        ret: Some(Ret::Full),
        ..Case::default()
    };
    let status = case.status_text();
    assert!(status.contains("Action: delayed\r\n"));
    assert!(status.contains("Will-Retry-Until: Mon, 23 Nov 2026 02:13:20 +0000\r\n"));
    assert_eq!(case.parts()[2].0, "text/rfc822-headers");
    let human = String::from_utf8(case.parts()[0].1.clone())
        .unwrap()
        .replace("\r\n", " ");
    assert!(human.contains("You need not do anything"));
}

// RET=FULL returns small clean messages whole; big ones and ones with bad lines only as headers.
#[test]
fn returned_content() {
    let full = |content: &[u8]| {
        let case = Case {
            ret: Some(Ret::Full),
            content: content.to_vec(),
            ..Case::default()
        };
        (case.octets().unwrap().0.body, case.parts()[2].0.clone())
    };
    let with = |body: &[u8]| [ORIGINAL.as_bytes(), body].concat();
    let whole = "message/rfc822".to_owned();
    let headers = "text/rfc822-headers".to_owned();
    let (seven, eight) = (BodyType::SevenBit, BodyType::EightBitMime);
    assert_eq!(full(&with(b"more\r\n")), (seven, whole.clone()));
    assert_eq!(full(&with(b"no line end")), (seven, whole.clone()));
    assert_eq!(full(&with(b"\xe4\r\n")), (eight, whole));
    for body in [&b"bare\nLF"[..], b"bare\rCR", b"NUL\0", &[b'x'; 999]] {
        assert_eq!(full(&with(body)), (seven, headers.clone()));
    }
    assert_eq!(full(&with(&b"line\r\n".repeat(10_000))), (seven, headers));
    let (_, text) = Case {
        ret: Some(Ret::Full),
        ..Case::default()
    }
    .build()
    .unwrap();
    assert!(text.contains(ORIGINAL));
}

// Headers with octets above 127, with lines too long and with bare line ends come back decoded to
// the same octets; a header without end is cut at a line.
#[test]
fn returned_header_is_encoded() {
    for line in [
        &b"X: \xe4\xf6\r\n"[..],
        b"X: \xc3\xa9 =\t\r\n",
        &[b'y'; 1500],
        b"X: a\nb\rc \r\n",
    ] {
        let line = if line.len() > 999 {
            [b"Y: ", line, b"\r\n"].concat()
        } else {
            line.to_vec()
        };
        let content = [b"From: a@b\r\n", &line[..], b"To: c@d\r\n\r\nbody"].concat();
        let case = Case {
            content: content.clone(),
            ..Case::default()
        };
        let (_, octets) = case.octets().unwrap();
        let message = MessageParser::default().parse(&octets).unwrap();
        assert!(octets.is_ascii());
        if std::str::from_utf8(&line).is_ok() {
            let returned = message.parts.last().unwrap();
            let expected = &content[..content.len() - "\r\nbody".len()];
            assert_eq!(returned.contents(), expected, "{}", line.escape_ascii());
        }
    }
    let content = b"A: b\r\n".repeat(20_000);
    let (_, octets) = Case {
        content,
        ..Case::default()
    }
    .octets()
    .unwrap();
    assert!(octets.len() < limits::DSN_CONTENT_BYTES_MAX + 4096);
    assert!(octets.windows(10).any(|window| window == b"A: b\r\n\r\n--"));
    let empty = Case {
        content: Vec::new(),
        ..Case::default()
    };
    assert!(empty.octets().is_some());
}

// Non-ASCII recipients: RFC 6533 types; a non-ASCII sender needs SMTPUTF8 to be told.
#[test]
fn international_addresses() {
    let mut case = Case {
        smtputf8: true,
        ..Case::default()
    };
    case.recipients[0] = Recipient {
        orcpt: Some("utf-8;us\u{e9}r@example.net".into()),
        ..Recipient::new("us\u{e9}r@example.net".parse().unwrap())
    };
    case.diagnostic = "550 5.1.1 \u{4e0d}\u{5b58}\u{5728}".to_owned();
    case.content = "Subject: \u{e9}\r\n\r\nbody".as_bytes().to_vec();
    let (envelope, text) = case.build().unwrap();
    assert_eq!(
        (envelope.smtputf8, envelope.body),
        (false, BodyType::EightBitMime)
    );
    assert!(text.contains("Content-Type: message/global-delivery-status\r\n"));
    assert!(text.contains("Final-Recipient: utf-8; us\u{e9}r@example.net\r\n"));
    assert!(text.contains("Original-Recipient: utf-8;us\u{e9}r@example.net\r\n"));
    assert!(text.contains("Diagnostic-Code: smtp; 550 5.1.1 \u{4e0d}\u{5b58}\u{5728}\r\n"));
    assert!(text.contains("Content-Type: message/global-headers\r\n"));
    let human = String::from_utf8(case.parts()[0].1.clone()).unwrap();
    assert!(human.contains("<us\u{e9}r@example.net>"));
    case.sender = Some("\u{e9}@example.com".parse().unwrap());
    assert!(case.build().unwrap().0.smtputf8);
}

// A foreign reply text is encoded where the report is ASCII, and decodes to what was said.
#[test]
fn diagnostics_are_encoded() {
    let said = "550 Bo\u{ee}te inexistante (\u{e9}t\u{e9}?) ".repeat(8);
    let case = Case {
        diagnostic: said.clone(),
        ..Case::default()
    };
    let status = case.status_text();
    assert!(status.is_ascii());
    assert!(status.contains("Diagnostic-Code: smtp; 550\r\n"));
    let start = status.find("Diagnostic-Code: smtp;").unwrap();
    let end = status.find("Last-Attempt").unwrap();
    let field = status[start..end].replace("Diagnostic-Code: smtp;", "Subject:");
    assert!(field.lines().all(|line| line.len() <= 76), "{field}");
    let message = format!("{field}\r\n");
    let parsed = MessageParser::default().parse(message.as_bytes()).unwrap();
    assert_eq!(parsed.subject(), Some(said.trim()));
    let local = Case {
        remote: None,
        diagnostic: "no route".to_owned(),
        ..Case::default()
    };
    assert!(
        local
            .status_text()
            .contains("Diagnostic-Code: x-postrider; no route\r\n")
    );
}

// Whatever the remote system says and the original holds, there are three parts, and the report has
// the fields that we wrote.
#[test]
fn hostile_texts_stay_in_place() {
    let mut random = Random(4);
    let pieces: [&[u8]; 14] = [
        b"\r\n",
        b"\r\n\r\n",
        b"\n",
        b"Status: 2.0.0",
        b"--=_0010000000000042_0000000000000007",
        b" ",
        b"x",
        b"\xc3\xa9",
        b"\xe2\x80\xa8",
        b"\x00",
        b"=?",
        b"?=",
        b"Content-Type: a/b",
        b";",
    ];
    for round in 0..400 {
        let mut diagnostic = random.soup(&pieces, 40);
        if round % 10 == 0 {
            diagnostic = vec![b'z'; 3000];
        }
        let content = [ORIGINAL.as_bytes(), &random.soup(&pieces, 40)].concat();
        let case = Case {
            diagnostic: String::from_utf8(diagnostic).unwrap(),
            ret: Some(Ret::Full),
            content,
            ..Case::default()
        };
        let status = case.status_text();
        assert_eq!(
            status
                .lines()
                .filter(|line| line.starts_with("Status:"))
                .count(),
            1
        );
        assert_eq!(
            status
                .split("\r\n\r\n")
                .filter(|group| !group.trim().is_empty())
                .count(),
            2
        );
    }
}

// Many recipients: one report; people see the first, programs see all.
#[test]
fn many_recipients() {
    let recipient = |index| Recipient::new(format!("u{index}@example.net").parse().unwrap());
    let case = Case {
        recipients: (0..500).map(recipient).collect(),
        ..Case::default()
    };
    let parts = case.parts();
    let human = String::from_utf8(parts[0].1.clone()).unwrap();
    assert_eq!(
        human.matches("What happened").count(),
        limits::DSN_LISTED_MAX
    );
    assert!(human.contains("... and 450 more"));
    assert_eq!(case.status_text().matches("Final-Recipient").count(), 500);
}
