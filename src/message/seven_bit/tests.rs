//! Tests of the conversion; mail-parser reads what it made.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use mail_parser::{MessageParser, PartType};

use super::convert_at_once as convert;
use super::{SLICE, Unconvertible, fuzz_seven_bit};
use crate::limits;
use crate::message::testing::Random;

fn text(octets: &[u8]) -> String {
    String::from_utf8(convert(octets).unwrap()).unwrap()
}

/// The decoded content of every leaf.
fn leaves(octets: &[u8]) -> Vec<Vec<u8>> {
    let message = MessageParser::new().parse(octets).unwrap();
    collect(&message)
}

fn collect(message: &mail_parser::Message<'_>) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for part in &message.parts {
        match &part.body {
            PartType::Multipart(_) => {}
            PartType::Message(nested) => all.extend(collect(nested)),
            _ => all.push(part.contents().to_vec()),
        }
    }
    all
}

// A flat text becomes quoted-printable, one that is all foreign becomes base64, and binary always.
#[test]
fn a_leaf_gets_the_shorter_encoding() {
    let head = "From: a@b.example\r\nMIME-Version: 1.0\r\nContent-Type: text/plain;\r\n\
                \tcharset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\nSubject: x\r\n\r\n";
    let plain = format!("{head}Gr\u{fc}\u{df}e = greetings \r\n.\r\n");
    assert_eq!(
        text(plain.as_bytes()),
        format!("{head}Gr=C3=BC=C3=9Fe =3D greetings=20\r\n.\r\n")
            .replace(": 8bit", ": quoted-printable")
    );
    let foreign = format!("{head}{}\r\n", "\u{436}".repeat(60));
    let converted = text(foreign.as_bytes());
    assert!(converted.contains("Content-Transfer-Encoding: base64\r\nSubject"));
    assert!(converted.lines().all(|line| line.len() <= 76));
    assert_eq!(leaves(converted.as_bytes()), leaves(foreign.as_bytes()));
    let image =
        b"MIME-Version: 1.0\r\nContent-Type: image/png\r\nContent-Transfer-Encoding: binary\
                  \r\n\r\nabc\xff\r\n";
    assert!(text(image).ends_with("Encoding: base64\r\n\r\nYWJj/w0K\r\n"));
}

// What is no MIME becomes MIME; a guess at the charset only where the octets leave no doubt.
#[test]
fn mail_without_mime_gets_it() {
    let converted = text("From: a@b.example\r\n\r\nGr\u{fc}n\r\n".as_bytes());
    assert_eq!(
        converted,
        "From: a@b.example\r\nContent-Transfer-Encoding: quoted-printable\r\nMIME-Version: 1.0\r\n\
         Content-Type: text/plain; charset=utf-8\r\n\r\nGr=C3=BCn\r\n"
    );
    assert!(text(b"From: a@b.example\r\n\r\nGr\xfcn\r\n").contains("charset=unknown-8bit"));
}

const NESTED: &str = "From: a@b.example\r\nMIME-Version: 1.0\r\n\
    Content-Type: multipart/mixed; boundary=\"out er\" (the outer one)\r\n\
    Content-Transfer-Encoding: 8bit\r\n\r\nPr\u{e9}amble\r\n--out er\r\n\
    Content-Type: multipart/alternative; boundary=out\r\n\r\n--out\r\n\r\nplain\r\n--out \t\r\n\
    Content-Type: text/html\r\nContent-Transfer-Encoding: 8bit\r\n\r\n<p>gr\u{fc}n\r\n--outer\r\n\
    --out--\r\n\r\n--out er\r\nContent-Type: message/rfc822\r\nContent-Transfer-Encoding: 8bit\r\n\
    \r\nSubject: inner\r\n\r\nr\u{f6}t\r\n--out er\r\nContent-Type: application/octet-stream\r\n\
    Content-Transfer-Encoding: base64\r\n\r\nAAEC\r\n--out er--\r\nepilogu\u{e9}\r\n";

// Everything nested: leaves decode to what they were, labels say 7bit, ASCII parts are untouched.
#[test]
fn parts_are_converted_where_they_stand() {
    let converted = text(NESTED.as_bytes());
    assert_eq!(leaves(converted.as_bytes()), leaves(NESTED.as_bytes()));
    assert!(leaves(converted.as_bytes()).len() >= 4);
    assert!(!converted.contains("8bit"), "{converted}");
    assert!(
        converted.contains("<p>gr=C3=BCn\r\n--outer\r\n--out--"),
        "{converted}"
    );
    assert!(
        converted.contains("--out\r\n\r\nplain\r\n--out \t\r\n"),
        "{converted}"
    );
    assert!(converted.contains("Pr??amble\r\n--out er") && converted.ends_with("epilogu??\r\n"));
    assert!(
        converted.contains("base64\r\n\r\nAAEC\r\n--out er--"),
        "{converted}"
    );
    // The nested message had no MIME fields of its own.
    assert!(converted.contains("r=C3=B6t") && converted.matches("MIME-Version").count() == 2);
}

// A digest's parts are messages; a missing end of the multipart is the end of its last part.
#[test]
fn digests_and_open_ends() {
    let digest = "MIME-Version: 1.0\r\nContent-Type: multipart/digest; boundary=b\r\n\r\n\
                  --b\r\n\r\nSubject: one\r\n\r\ngr\u{fc}n, blue and yellow\r\n\
                  --b\r\n\r\nSubject: two\r\n\r\nred\r\n";
    let converted = text(digest.as_bytes());
    assert_eq!(leaves(converted.as_bytes()), leaves(digest.as_bytes()));
    assert!(converted.contains("Subject: one\r\nContent-Transfer-Encoding: quoted-printable\r\n"));
    assert!(converted.ends_with("Subject: two\r\n\r\nred\r\n"));
}

// What must not be touched, and what could be read in two ways.
#[test]
fn what_cannot_be_converted_says_why() {
    let body = "\r\n\r\n--b\r\nContent-Type: text/plain\r\n\r\ngr\u{fc}n\r\n--b--\r\n";
    let multipart =
        |kind: &str| format!("MIME-Version: 1.0\r\nContent-Type: {kind}; boundary=b{body}");
    let leaf = |fields: &str| format!("MIME-Version: 1.0\r\n{fields}\r\n\r\ngr\u{fc}n\r\n");
    let cases = [
        (leaf("Subject: gr\u{fc}n"), Unconvertible::Header),
        (
            multipart("multipart/mixed").replace("text/plain", "text/plain; name=\u{fc}"),
            Unconvertible::Header,
        ),
        (multipart("multipart/signed"), Unconvertible::Signed),
        (multipart("MULTIPART/Encrypted"), Unconvertible::Signed),
        (
            leaf("Content-Type: multipart/mixed"),
            Unconvertible::Structure,
        ),
        (
            leaf("Content-Type: multipart/mixed; boundary=b"),
            Unconvertible::Structure,
        ),
        (
            leaf("Content-Type: message/partial"),
            Unconvertible::Structure,
        ),
        (leaf("Content-Type: text"), Unconvertible::Structure),
        (
            leaf("Content-Type: text/plain\r\nContent-Type: text/html"),
            Unconvertible::Structure,
        ),
        (
            leaf("Content-Transfer-Encoding: base64"),
            Unconvertible::Structure,
        ),
        (
            leaf("Content-Transfer-Encoding: 8bit, x"),
            Unconvertible::Structure,
        ),
        (
            multipart("multipart/mixed; boundary*0=b").replace("; boundary=b", ""),
            Unconvertible::Structure,
        ),
    ];
    for (message, reason) in cases {
        assert_eq!(convert(message.as_bytes()), Err(reason), "{message}");
    }
    assert_eq!(Unconvertible::Header.status().to_string(), "5.6.9");
    assert_eq!(Unconvertible::Signed.status().to_string(), "5.6.3");
}

// Neither depth nor number of parts is without end.
#[test]
fn structure_is_bounded() {
    let nest = |depth: usize| {
        let wrap = |inner: String, level| {
            format!(
                "MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b{level}.\r\n\r\n\
                 --b{level}.\r\n{inner}\r\n--b{level}.--\r\n"
            )
        };
        (0..depth).fold(String::from("\r\n\u{fc}"), wrap)
    };
    assert!(convert(nest(limits::CONVERSION_DEPTH_MAX).as_bytes()).is_ok());
    let deep = convert(nest(limits::CONVERSION_DEPTH_MAX + 1).as_bytes());
    assert_eq!(deep, Err(Unconvertible::Structure));
    let parts = |count: usize| {
        let head = "MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n";
        format!(
            "{head}\r\n{}--b--\r\n",
            "--b\r\n\r\n\u{fc}\r\n".repeat(count)
        )
    };
    assert!(convert(parts(limits::CONVERSION_PARTS_MAX - 1).as_bytes()).is_ok());
    let many = convert(parts(limits::CONVERSION_PARTS_MAX).as_bytes());
    assert_eq!(many, Err(Unconvertible::Structure));
}

// Any octets, and damaged mail: an error or clean ASCII, which stays as it is the second time.
#[test]
fn anything_is_survived() {
    let words: [&[u8]; 16] = [
        b"Content-Type: ",
        b"multipart/mixed",
        b"; boundary=b",
        b"text/plain",
        b"message/rfc822",
        b"\r\n",
        b"\r\n\r\n",
        b"--b",
        b"--b--",
        b"Content-Transfer-Encoding: ",
        b"8bit",
        b"\xfc",
        b"\"",
        b"(",
        b" ",
        b"x",
    ];
    let mut random = Random(6152);
    for _ in 0..20_000 {
        fuzz_seven_bit(&random.soup(&words, 40));
    }
    for at in 0..NESTED.len() {
        let mut damaged = NESTED.as_bytes().to_vec();
        damaged[at] = [0, 10, 13, 34, 45, 58, 128][random.below(7)];
        fuzz_seven_bit(&damaged);
        fuzz_seven_bit(&NESTED.as_bytes()[at..]);
        fuzz_seven_bit(&NESTED.as_bytes()[..at]);
    }
}

// Leaves of random octets decode to themselves.
#[test]
fn random_leaves_survive() {
    let words: [&[u8]; 9] = [
        b"\r\n",
        b" ",
        b"\t",
        b"=",
        b".",
        b"text",
        b"\xc3\xbc",
        b"\0",
        b"\x7f",
    ];
    let mut random = Random(2045);
    for round in 0..2_000 {
        let mut body = random.soup(&words, 400);
        body.extend_from_slice(b"\xc3\xbc\r\n");
        let media = ["text/plain; charset=utf-8", "application/x-any"][round % 2];
        let mut message =
            format!("MIME-Version: 1.0\r\nContent-Type: {media}\r\n\r\n").into_bytes();
        message.extend_from_slice(&body);
        let converted = convert(&message).unwrap();
        assert_eq!(leaves(&converted)[0], body, "round {round}");
        let long = converted
            .split(|byte| *byte == b'\n')
            .any(|line| line.len() > 78);
        assert!(!long, "round {round}");
    }
}

/// Converts with pauses that each take a turn. Returns how many there were as well.
fn convert_in_turns(content: &[u8]) -> (Result<Vec<u8>, Unconvertible>, usize) {
    let pauses = Cell::new(0);
    let pause = || -> Pin<Box<dyn Future<Output = ()>>> {
        pauses.set(pauses.get() + 1);
        let mut yielded = false;
        Box::pin(poll_fn(move |_| {
            if std::mem::replace(&mut yielded, true) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        }))
    };
    let mut work = pin!(super::convert(content, &pause));
    let mut context = Context::from_waker(Waker::noop());
    for turns in 0.. {
        if let Poll::Ready(result) = work.as_mut().poll(&mut context) {
            assert_eq!(turns, pauses.get());
            return (result, turns);
        }
    }
    unreachable!("counting has no end")
}

// A long message is converted in slices, to what it would be in one piece: texts of one line and of
// many, characters and boundaries across the borders of slices.
#[test]
fn a_long_message_is_converted_in_slices() {
    let part = |kind: &str, body: String| format!("--b\r\nContent-Type: {kind}\r\n\r\n{body}\r\n");
    let head = "From: a@b.test\r\nMIME-Version: 1.0\r\n";
    let mixed = |shift: usize| {
        let parts = [
            "x".repeat(shift),
            "\r\n".to_owned(),
            part("text/plain; charset=utf-8", "gr\u{fc}n ".repeat(SLICE / 3)),
            part(
                "text/plain",
                "plain ASCII of some length\r\n".repeat(SLICE / 9),
            ),
            part("application/x", "\u{436}\r\n".repeat(SLICE)),
        ];
        let body = parts.concat();
        format!("{head}Content-Type: multipart/mixed; boundary=b\r\n\r\n{body}--b--\r\n")
    };
    // The first delimiter at every place around the border of a slice.
    for shift in (SLICE - 8..SLICE + 3).chain([0, 2 * SLICE]) {
        let message = mixed(shift);
        let (converted, pauses) = convert_in_turns(message.as_bytes());
        let converted = converted.unwrap();
        assert!(pauses >= 2 * message.len() / SLICE, "{pauses} pauses");
        assert_eq!(leaves(&converted), leaves(message.as_bytes()), "{shift}");
        assert_eq!(convert(message.as_bytes()).unwrap(), converted);
    }
    // Without a label: its characters are looked at, in slices that cut them.
    for shift in 0..4 {
        let text = format!("{}{}", "x".repeat(shift), "\u{1f600}".repeat(SLICE));
        let converted = convert_in_turns(format!("{head}\r\n{text}").as_bytes()).0;
        let converted = String::from_utf8(converted.unwrap()).unwrap();
        assert!(converted.contains("charset=utf-8"));
        let broken = [format!("{head}\r\n{text}").as_bytes(), b"\xf0\x9f"].concat();
        let converted = String::from_utf8(convert(&broken).unwrap()).unwrap();
        assert!(converted.contains("charset=unknown-8bit"));
    }
}

// What would have to be read at one go has a bound: the header of a part, a delimiter line.
#[test]
fn what_cannot_be_sliced_is_bounded() {
    let head = "MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n";
    let wide = |blanks: usize| {
        let blanks = " ".repeat(blanks);
        format!("{head}--b{blanks}\r\n\r\n\u{fc}\r\n--b--\r\n")
    };
    assert!(convert(wide(SLICE - 1).as_bytes()).is_ok());
    let wide = convert(wide(SLICE).as_bytes());
    assert_eq!(wide, Err(Unconvertible::Structure));
    for field in [
        "A: b\r\n".to_owned(),
        format!("A: {}\r\n", "b".repeat(1000)),
    ] {
        let long = |count| format!("{}\r\n\u{fc}\r\n", field.repeat(count));
        let most = (limits::HEADER_BYTES_MAX - 1) / field.len();
        assert!(convert(long(most).as_bytes()).is_ok());
        let long = convert(long(most + 2).as_bytes());
        assert_eq!(long, Err(Unconvertible::Structure));
    }
    let endless = format!(
        "A: {}\r\n\r\n\u{fc}\r\n",
        "b".repeat(limits::HEADER_BYTES_MAX)
    );
    assert_eq!(convert(endless.as_bytes()), Err(Unconvertible::Structure));
}
