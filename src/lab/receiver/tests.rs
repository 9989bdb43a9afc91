//! Dialogues with the receiving end, whole and split at every byte.

use super::*;

const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

fn site(personality: &str) -> Site {
    Site::new(
        0,
        "mx.d0.lab.test".into(),
        personality.parse().unwrap(),
        1,
        1 << 20,
    )
}

/// What one session produced.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    replies: String,
    messages: Vec<(String, Vec<String>, String)>,
    end: Option<ReceiverEvent>,
}

fn run(receiver: &mut Receiver, site: &Site, pieces: &[&[u8]], now: Mono) -> Outcome {
    let mut outcome = Outcome::default();
    let mut out = Vec::new();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    'session: for piece in pieces {
        let mut rest = *piece;
        while !rest.is_empty() {
            let (taken, event) = receiver.input(rest, site, PEER, now, &mut out);
            rest = &rest[taken..];
            match event {
                Some(event @ (ReceiverEvent::Message | ReceiverEvent::MessageThenClose)) => {
                    let message = receiver.message();
                    let recipients = message.recipients.iter().map(|r| text(r)).collect();
                    let entry = (text(message.sender), recipients, text(message.content));
                    outcome.messages.push(entry);
                    if event == ReceiverEvent::MessageThenClose {
                        outcome.end = Some(event);
                        break 'session;
                    }
                    receiver.accepted(&mut out);
                }
                Some(event) => {
                    outcome.end = Some(event);
                    break 'session;
                }
                None => assert!(rest.is_empty()),
            }
        }
    }
    outcome.replies = text(&out);
    outcome
}

fn codes(outcome: &Outcome) -> Vec<u16> {
    let last = |line: &&str| line.as_bytes().get(3) == Some(&b' ');
    let lines = outcome.replies.lines().filter(last);
    lines.map(|line| line[..3].parse().unwrap()).collect()
}

fn session(personality: &str, input: &str) -> Outcome {
    run(
        &mut Receiver::new(),
        &site(personality),
        &[input.as_bytes()],
        Mono(1),
    )
}

const TALK: &str = "EHLO a\r\nMAIL FROM:<s@x> SIZE=10\r\nRCPT TO:<r0.1@d0.lab.test>\r\n\
    RCPT TO:<\"a>b\"@d1.lab.test>\r\nDATA\r\n..dot\r\n.\r.\nx\r\n...\r\n\r\n.\r\n\
    MAIL FROM:<>\r\nRCPT TO:<p@q>\r\nBDAT 6\r\n.\r\n.\r\nBDAT 0 LAST\r\n\
    MAIL FROM:<s@x>\r\nRCPT TO:<p@q>\r\nDATA\r\n.\r\nQUIT\r\n";

// Both ways to send content, an empty message, dots at line starts; and the same when every byte
// comes alone or the input is cut in two at any place.
#[test]
fn dialogues_are_understood_however_they_are_split() {
    let whole = session("accept", TALK);
    let recipients = vec![
        "r0.1@d0.lab.test".to_owned(),
        "\"a>b\"@d1.lab.test".to_owned(),
    ];
    assert_eq!(
        whole.messages,
        [
            (
                "s@x".into(),
                recipients,
                ".dot\r\n\r.\nx\r\n..\r\n\r\n".into()
            ),
            (String::new(), vec!["p@q".into()], ".\r\n.\r\n".into()),
            ("s@x".into(), vec!["p@q".into()], String::new()),
        ]
    );
    assert_eq!(
        codes(&whole),
        [
            250, 250, 250, 250, 354, 250, 250, 250, 250, 250, 250, 250, 354, 250, 221
        ]
    );
    assert_eq!(whole.end, Some(ReceiverEvent::Close));
    let bytes = TALK.as_bytes();
    for cut in 1..bytes.len() {
        let pieces = [&bytes[..cut], &bytes[cut..]];
        assert_eq!(
            run(&mut Receiver::new(), &site("accept"), &pieces, Mono(1)),
            whole,
            "{cut}"
        );
    }
    let single: Vec<&[u8]> = bytes.chunks(1).collect();
    assert_eq!(
        run(&mut Receiver::new(), &site("accept"), &single, Mono(1)),
        whole
    );
}

// Extensions that are not offered are not in the EHLO reply, and their use is refused and counted.
#[test]
fn what_is_not_offered_is_a_violation() {
    let plain = site("no-chunking+no-pipelining");
    let mut receiver = Receiver::new();
    let talk = "EHLO a\r\nMAIL FROM:<s@x>\r\nRCPT TO:<p@q>\r\nBDAT 3 LAST\r\nabcNOOP\r\n";
    let lines: Vec<&[u8]> = talk
        .as_bytes()
        .split_inclusive(|byte| *byte == b'\n')
        .collect();
    let outcome = run(&mut receiver, &plain, &lines, Mono(1));
    assert!(!outcome.replies.contains("250-CHUNKING"));
    assert_eq!(codes(&outcome), [250, 250, 250, 502, 250]);
    assert_eq!(receiver.take_violations(), 1);
    run(&mut receiver, &plain, &[b"NOOP\r\nNOOP\r\n"], Mono(1));
    assert_eq!(receiver.take_violations(), 1);
    assert!(
        session("accept", "EHLO a\r\n")
            .replies
            .contains("250-CHUNKING\r\n")
    );
}

// Each trait that refuses does so with its code, at its place.
#[test]
fn personalities_refuse_as_described() {
    let talk = "MAIL FROM:<s@x>\r\nRCPT TO:<p@q>\r\nDATA\r\nx\r\n.\r\n";
    assert_eq!(codes(&session("reject:100", talk))[..3], [250, 550, 503]);
    assert_eq!(codes(&session("tempfail:100", talk))[..3], [250, 451, 503]);
    assert_eq!(
        codes(&session("tempfail-dot:100", talk)),
        [250, 250, 354, 451]
    );
    assert_eq!(session("tempfail-dot:100", talk).messages, []);
    let twice = session("messages:1", &[talk, talk].concat());
    assert_eq!(codes(&twice), [250, 250, 354, 250, 421]);
    assert_eq!(twice.end, Some(ReceiverEvent::Close));

    let grey = site("greylist:1s");
    let at = |now| {
        codes(&run(
            &mut Receiver::new(),
            &grey,
            &[talk.as_bytes()],
            Mono(now),
        ))
    };
    assert_eq!(at(5)[..2], [250, 451]);
    assert_eq!(at(999_999_999)[..2], [250, 451]);
    assert_eq!(at(1_000_000_005), [250, 250, 354, 250]);

    let limited = site("connections:1");
    let mut out = Vec::new();
    limited.open.set(1);
    assert_eq!(Receiver::new().greet(&limited, &mut out), None);
    limited.open.set(2);
    assert_eq!(
        Receiver::new().greet(&limited, &mut out),
        Some(ReceiverEvent::Close)
    );
    assert!(String::from_utf8(out).unwrap().contains("\r\n421 "));
}

// A site hangs up in the phase it names and in no other; at the dot the message counts as received.
#[test]
fn sites_hang_up_in_their_phase() {
    let talk = "EHLO a\r\nMAIL FROM:<s@x>\r\nRCPT TO:<p@q>\r\nDATA\r\nx\r\n.\r\n";
    let cut = talk.len() - 3;
    for (phase, replies) in [
        ("ehlo", 0),
        ("mail", 1),
        ("rcpt", 2),
        ("data", 3),
        ("content", 4),
    ] {
        let site = site(&format!("close:{phase}"));
        let pieces = [&talk.as_bytes()[..cut], &talk.as_bytes()[cut..]];
        let outcome = run(&mut Receiver::new(), &site, &pieces, Mono(1));
        assert_eq!(outcome.end, Some(ReceiverEvent::HangUp), "{phase}");
        assert_eq!(codes(&outcome).len(), replies, "{phase}");
    }
    let dot = session("close:dot", talk);
    assert_eq!(dot.end, Some(ReceiverEvent::MessageThenClose));
    assert_eq!((dot.messages.len(), codes(&dot).len()), (1, 4));
    let connect = site("close:connect");
    let event = Receiver::new().greet(&connect, &mut Vec::new());
    assert_eq!(event, Some(ReceiverEvent::HangUp));
}

// Commands out of order, bad parameters, lines and messages without end: a code, and no panic.
#[test]
fn bad_input_is_refused() {
    for (input, expected) in [
        ("RCPT TO:<a@b>\r\n", vec![503]),
        ("DATA\r\n", vec![503]),
        ("MAIL FROM:a@b\r\n", vec![501]),
        ("MAIL FROM:<a@b> SIZE=9999999\r\n", vec![552]),
        ("MAIL FROM:<a@b>\r\nMAIL FROM:<a@b>\r\n", vec![250, 503]),
        ("MAIL FROM:<a@b>\r\nRCPT TO:<>\r\n", vec![250, 501]),
        ("MAIL FROM:<a@b>\r\nRCPT TO:<\"x>\r\n", vec![250, 501]),
        ("BDAT x\r\n", vec![501]),
        ("BDAT 2\r\nabRSET\r\n", vec![503, 250]),
        ("X\r\n\r\nHELO a\r\n", vec![500, 500, 250]),
    ] {
        assert_eq!(codes(&session("accept", input)), expected, "{input:?}");
    }
    let long = session("accept", &"x".repeat(LAB_LINE_MAX + 1));
    assert_eq!(
        (codes(&long), long.end),
        (vec![500], Some(ReceiverEvent::Close))
    );
    let body = "y".repeat(2 << 20);
    let large = ["MAIL FROM:<a@b>\r\nRCPT TO:<a@b>\r\nDATA\r\n", &body].concat();
    assert_eq!(codes(&session("accept", &large)), [250, 250, 354, 552]);
    let chunk = [
        "MAIL FROM:<a@b>\r\nRCPT TO:<a@b>\r\nBDAT 2097152 LAST\r\n",
        &body,
    ]
    .concat();
    assert_eq!(
        codes(&session("accept", &[&chunk, "NOOP\r\n"].concat())),
        [250, 250, 552, 250]
    );
}
