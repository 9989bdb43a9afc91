//! Sessions of the server: each is a script of octets, run at every split.

use std::net::Ipv4Addr;
use std::sync::Mutex;

use super::*;
use crate::message::{ArrivedBody, BodyHash, Canon, EnhancedStatus, Watch};
use crate::smtp::reply::Reply;

const ID: u64 = 0x0010_0000_0000_002a;
const NOW: Wall = Wall(1_700_000_000_000);

/// A message as the driver got it, without our trace field.
#[derive(Debug, Clone, PartialEq)]
struct Got {
    sender: String,
    recipients: Vec<String>,
    content: Vec<u8>,
}

/// What a session said and took.
#[derive(Debug, Clone, PartialEq, Default)]
struct Run {
    replies: String,
    messages: Vec<Got>,
    closed: bool,
}

impl Run {
    fn codes(&self) -> Vec<&str> {
        self.replies
            .lines()
            .filter(|line| line.as_bytes()[3] == b' ')
            .map(|line| &line[..3])
            .collect()
    }

    fn last(&self) -> &str {
        self.replies.lines().last().unwrap_or_default()
    }
}

fn config() -> ServerConfig {
    ServerConfig::new("mx.example")
}

fn peer() -> IpAddr {
    IpAddr::V4(Ipv4Addr::LOCALHOST)
}

/// The content behind the trace field, whose continuation lines begin with a blank.
fn without_trace(content: &[u8]) -> Vec<u8> {
    let mut at = 0;
    assert!(
        content.starts_with(b"Received: "),
        "the trace field is first"
    );
    loop {
        at += memchr::memmem::find(&content[at..], b"\r\n").map_or(content.len(), |end| end + 2);
        if !matches!(content.get(at), Some(b' ' | b'\t')) {
            return content[at.min(content.len())..].to_vec();
        }
    }
}

/// Runs a session; `next` says how many octets come at once.
fn run_split(
    config: ServerConfig,
    may_relay: bool,
    input: &[u8],
    mut next: impl FnMut() -> usize,
) -> Run {
    let mut server = Server::new(Arc::new(config), peer(), may_relay);
    let (mut out, mut run, mut at) = (Vec::new(), Run::default(), 0);
    while at < input.len() && !run.closed {
        let end = (at + next().max(1)).min(input.len());
        while at < end && !run.closed {
            if server.wants_id() {
                server.set_next_id(MessageId(ID));
            }
            let (used, event) = server.input(&input[at..end], NOW, &mut out);
            assert!(used > 0 || event.is_some(), "input makes progress");
            at += used;
            match event {
                None => assert_eq!(at, end, "without an event everything is consumed"),
                Some(ServerEvent::Close) => run.closed = true,
                Some(ServerEvent::Message(inbound)) => {
                    assert_eq!(server.input(b"NOOP\r\n", NOW, &mut out).0, 0, "it waits");
                    let envelope = &inbound.envelope;
                    assert_eq!(inbound.id, Some(MessageId(ID)));
                    run.messages.push(Got {
                        sender: envelope.sender.as_ref().map_or("", Address::as_str).into(),
                        recipients: envelope
                            .recipients
                            .iter()
                            .map(|recipient| recipient.address.as_str().to_owned())
                            .collect(),
                        content: without_trace(inbound.content.as_slice()),
                    });
                    server.accepted(MessageId(ID), &mut out);
                }
            }
        }
    }
    run.replies = String::from_utf8(out).unwrap();
    for line in run.replies.lines() {
        check_reply_line(line);
    }
    run
}

/// RFC 2034 4: a code with an enhanced code of the same class, but for 3yz and EHLO.
fn check_reply_line(line: &str) {
    let code = &line[..3];
    if code == "354" || line.starts_with("250-") || line == "250 HELP" || line == "250 mx.example" {
        return;
    }
    let status = EnhancedStatus::parse(&line.as_bytes()[4..]);
    assert_eq!(
        status.map(|status| status.class),
        Some(code.as_bytes()[0] - b'0'),
        "{line}"
    );
}

/// Runs a session whole, octet by octet and at seeded random splits: all must be equal.
fn run_with(config: &ServerConfig, may_relay: bool, input: &[u8]) -> Run {
    let whole = run_split(config.clone(), may_relay, input, || usize::MAX);
    let single = run_split(config.clone(), may_relay, input, || 1);
    assert_eq!(single, whole, "octet by octet");
    let mut seed = input.len() as u64 + 1;
    for _ in 0..20 {
        let random = run_split(config.clone(), may_relay, input, || {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_041);
            (seed >> 33) as usize % 40
        });
        assert_eq!(random, whole, "random splits");
    }
    whole
}

fn run(input: &[u8]) -> Run {
    run_with(&config(), true, input)
}

const HELLO: &str = "EHLO client.example\r\n";
const ENVELOPE: &str = "MAIL FROM:<a@x.example>\r\nRCPT TO:<b@y.example>\r\n";

fn session(rest: &str) -> Run {
    run(format!("{HELLO}{rest}").as_bytes())
}

// One segment with a whole session: DATA and BDAT, two messages, QUIT.
#[test]
fn a_whole_session_in_any_split() {
    let run = session(&format!(
        "{ENVELOPE}DATA\r\nSubject: 1\r\n\r\n..dot\r\n.\r\n\
         MAIL FROM:<>\r\nRCPT TO:<c@z.example>\r\nRCPT TO:<d@z.example>\r\n\
         BDAT 5\r\nA: b\rBDAT 3 LAST\r\n\nC\nQUIT\r\nNOOP\r\n"
    ));
    // The bare LF in the second message refuses it.
    assert_eq!(
        run.codes(),
        "250 250 250 354 250 250 250 250 250 554 221"
            .split(' ')
            .collect::<Vec<_>>()
    );
    assert_eq!(run.messages.len(), 1);
    assert_eq!(run.messages[0].content, b"Subject: 1\r\n\r\n.dot\r\n");
    assert_eq!(run.messages[0].sender, "a@x.example");
    assert!(run.closed);
    assert!(
        run.replies
            .contains("250 2.0.0 Ok: queued as 001000000000002a\r\n")
    );
}

// CR and LF may fall into different chunks.
#[test]
fn chunks_join_line_ends() {
    let run = session(&format!(
        "{ENVELOPE}BDAT 5\r\nA: b\rBDAT 5\r\n\n\r\nC\rBDAT 1 LAST\r\n\n"
    ));
    assert_eq!(run.codes(), ["250", "250", "250", "250", "250", "250"]);
    assert_eq!(run.messages[0].content, b"A: b\r\n\r\nC\r\n");
    let run = session(&format!(
        "{ENVELOPE}BDAT 0\r\nBDAT 4 LAST\r\n.\r\n.MAIL FROM:<>\r\n"
    ));
    assert_eq!(run.codes(), ["250", "250", "250", "250", "250", "250"]);
    assert_eq!(run.messages[0].content, b".\r\n.");
    let run = session(&format!("{ENVELOPE}BDAT 0 LAST\r\n"));
    assert_eq!((run.codes().len(), run.messages[0].content.len()), (4, 0));
}

// An empty message is a message.
#[test]
fn an_empty_message_works() {
    let run = session(&format!("{ENVELOPE}DATA\r\n.\r\nQUIT\r\n"));
    assert_eq!(run.codes(), ["250", "250", "250", "354", "250", "221"]);
    assert_eq!(run.messages[0].content, b"");
}

// SMTP smuggling: nothing but CRLF.CRLF ends the message, what contains another line end is refused
// whole, and the commands hidden in it are content.
#[test]
fn smuggling_never_ends_a_message() {
    let ends = [
        "\n.\n",
        "\n.\r\n",
        "\r\n.\n",
        "\r.\r",
        "\r.\r\n",
        "\r\n.\r",
        "\r\n.\r\r\n",
        "\n.\r",
        "\r.\n",
        "\n\r.\r\n",
        "\r\n\n.\r\n",
        "\r\n.\0\r\n",
        "\r\n\0.\r\n",
        "\r\r\n.\r\r\n",
        "\n\n.\n\n",
        "\r\n.\r\0\n",
    ];
    for end in ends {
        let hidden = "MAIL FROM:<evil@x.example>\r\nRCPT TO:<v@y.example>\r\nDATA\r\nevil\r\n";
        for body in [
            format!("Subject: x\r\n\r\nhi{end}{hidden}"),
            format!("{end}{hidden}"),
        ] {
            let data = session(&format!("{ENVELOPE}DATA\r\n{body}.\r\nNOOP\r\n"));
            let name = end.escape_debug();
            assert_eq!(
                data.codes(),
                ["250", "250", "250", "354", "554", "250"],
                "DATA {name}"
            );
            assert_eq!(data.messages, [], "DATA {name}");
            let size = body.len();
            let bdat = session(&format!("{ENVELOPE}BDAT {size} LAST\r\n{body}NOOP\r\n"));
            assert_eq!(
                bdat.codes(),
                ["250", "250", "250", "554", "250"],
                "BDAT {name}"
            );
            assert_eq!(bdat.messages, []);
        }
    }
}

/// Scripts after EHLO, lines split at `|`, and the codes they get.
const ORDERS: &[(&str, &str)] = &[
    ("RCPT TO:<b@y.example>", "503"),
    ("DATA", "503"),
    ("BDAT 3 LAST\r\nabc", ""),
    ("MAIL FROM:<a@x.example>|DATA", "250 554"),
    ("MAIL FROM:<a@x.example>|MAIL FROM:<a@x.example>", "250 503"),
    ("MAIL FROM:<a@x.example>|RSET|MAIL FROM:<>", "250 250 250"),
    (
        "MAIL FROM:<a@x.example>|EHLO again|RCPT TO:<b@y.example>",
        "250 250 503",
    ),
    (
        "MAIL FROM:<a@x.example>|HELO again|MAIL FROM:<>",
        "250 250 250",
    ),
    (
        "MAIL FROM:<a@x.example>|BDAT 0 LAST|MAIL FROM:<>",
        "250 554 250",
    ),
    (
        "MAIL FROM:<>|RCPT TO:<b@y.example>|BDAT 0|RCPT TO:<c@y.example>",
        "250 250 250 503",
    ),
    (
        "MAIL FROM:<>|RCPT TO:<b@y.example>|BDAT 0|DATA",
        "250 250 250 503",
    ),
    (
        "MAIL FROM:<>|RCPT TO:<b@y.example>|BDAT 0|MAIL FROM:<>",
        "250 250 250 503",
    ),
    (
        "MAIL FROM:<>|RCPT TO:<b@y.example>|BDAT 0|RSET|BDAT 0 LAST",
        "250 250 250 250 503",
    ),
    (
        "MAIL FROM:<>|RCPT TO:<b@y.example>|BDAT 0 LAST|BDAT 0 LAST",
        "250 250 250 503",
    ),
    (
        "VRFY x|EXPN x|HELP|HELP x|NOOP|NOOP x|RSET",
        "252 502 214 214 250 250 250",
    ),
    (
        "VRFY|EXPN|RSET x|DATA x|QUIT x|STARTTLS x|EHLO",
        "501 501 501 501 501 501 501",
    ),
    (
        "STARTTLS|AUTH PLAIN =|ETRN x|TURN|FOO|",
        "502 502 502 502 500",
    ),
    ("mail from: <a@x.example> |rcpt to:<b@y.example>", "250 250"),
    (
        "MAIL FROM:a@x.example|MAIL FROM:<a@x|MAIL|MAIL FROM:<a@x@y>",
        "501 501 501 501",
    ),
    (
        "MAIL FROM:<>|RCPT TO:<>|RCPT TO:<@>|RCPT TO:<b>",
        "250 501 501 501",
    ),
    (
        "MAIL FROM:<@r.example:a@x.example>|RCPT TO:<\"b c\"@y.example>",
        "250 250",
    ),
    ("MAIL FROM:<> SIZE=1000|MAIL FROM:<> SIZE=1", "250 503"),
    (
        "MAIL FROM:<> SIZE=|MAIL FROM:<> SIZE=x|MAIL FROM:<> SIZE",
        "501 501 501",
    ),
    ("MAIL FROM:<> SIZE=99999999999999999999", "552"),
    (
        "MAIL FROM:<> SIZE=52428800|RSET|MAIL FROM:<> SIZE=52428801",
        "250 250 552",
    ),
    (
        "MAIL FROM:<> SIZE=1 SIZE=1|MAIL FROM:<> FOO=1|MAIL FROM:<> AUTH=<>",
        "501 555 555",
    ),
    (
        "MAIL FROM:<> BODY=8BITMIME|RSET|MAIL FROM:<> BODY=7bit",
        "250 250 250",
    ),
    ("MAIL FROM:<> BODY=BINARYMIME|MAIL FROM:<> BODY", "501 501"),
    (
        "MAIL FROM:<\u{e9}@x.example>|MAIL FROM:<\u{e9}@x.example> SMTPUTF8",
        "553 250",
    ),
    (
        "MAIL FROM:<> SMTPUTF8=1|MAIL FROM:<>|RCPT TO:<\u{e9}@x.example>",
        "501 250 553",
    ),
    (
        "MAIL FROM:<> RET=FULL ENVID=a+2Bb|RSET|MAIL FROM:<> RET=x",
        "250 250 501",
    ),
    ("MAIL FROM:<> ENVID=a+2b|MAIL FROM:<> ENVID=+0A", "501 501"),
    (
        "MAIL FROM:<>|RCPT TO:<b@y.example> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;b+40y",
        "250 250",
    ),
    (
        "MAIL FROM:<>|RCPT TO:<b@y.example> NOTIFY=NEVER,DELAY",
        "250 501",
    ),
    (
        "MAIL FROM:<>|RCPT TO:<b@y.example> NOTIFY=|RCPT TO:<b@y.example> ORCPT=x",
        "250 501 501",
    ),
    ("MAIL FROM:<>|RCPT TO:<b@y.example> SIZE=1", "250 555"),
    (
        "MAIL FROM:<>|RCPT TO:<pOSTmaster>|RCPT TO:<Postmaster@MX.example>",
        "250 250 250",
    ),
    (
        "HELO c|MAIL FROM:<> SIZE=1|MAIL FROM:<>|RCPT TO:<b@y.example> NOTIFY=NEVER",
        "250 555 250 555",
    ),
];

// The order of commands, after EHLO: what each session answers.
#[test]
fn command_orders() {
    for (script, expected) in ORDERS {
        let lines: String = script
            .split('|')
            .filter(|line| !line.is_empty())
            .map(|line| format!("{line}\r\n"))
            .collect();
        let run = session(&lines);
        let expected = match *expected {
            // The chunk's octets end without CRLF; what follows it is the CRLF of the table.
            "" => vec!["250", "503", "500"],
            codes => std::iter::once("250").chain(codes.split(' ')).collect(),
        };
        assert_eq!(run.codes(), expected, "{script}: {}", run.replies);
        assert!(!run.closed, "{script}");
    }
    let before_hello = run(b"MAIL FROM:<>\r\nRCPT TO:<b@y.example>\r\nNOOP\r\n");
    assert_eq!(before_hello.codes(), ["503", "503", "250"]);
}

// A refused chunk is consumed; numbers that nobody can count end the session.
#[test]
fn refused_chunks_are_consumed() {
    let hidden = "MAIL FROM:<evil@x.example>\r\n";
    let run = session(&format!(
        "MAIL FROM:<>\r\nRCPT TO:<bad>\r\nBDAT {0}\r\n{hidden}BDAT {0} LAST\r\n{hidden}NOOP\r\n",
        hidden.len()
    ));
    assert_eq!(run.codes(), ["250", "250", "501", "554", "554", "250"]);
    for number in [
        "99999999999999999999",
        "18446744073709551616",
        "-1",
        "x",
        "",
    ] {
        let run = session(&format!("{ENVELOPE}BDAT {number} LAST\r\n{hidden}"));
        assert_eq!(run.codes(), ["250", "250", "250", "501"], "{number}");
        assert!(run.closed);
    }
    // The largest number that can be counted is just a message that is too big, and never ends.
    let run = session(&format!(
        "{ENVELOPE}BDAT 18446744073709551615 LAST\r\n{hidden}"
    ));
    assert_eq!((run.codes().len(), run.closed), (3, false));
    let off = ServerConfig {
        chunking: false,
        ..config()
    };
    let run = run_with(
        &off,
        true,
        format!("{HELLO}{ENVELOPE}BDAT 4 LAST\r\nabcdNOOP\r\n").as_bytes(),
    );
    assert_eq!(run.codes(), ["250", "250", "250", "502", "250"]);
    assert!(!run.replies.contains("CHUNKING"));
}

// RFC 1870: the size counts what is left after un-stuffing, with CRLF; one octet more is refused
// at the end, whatever the client declared, and the session goes on.
#[test]
fn the_size_limit_is_exact() {
    let small = ServerConfig {
        size_max: 100,
        ..config()
    };
    for (octets, code) in [(100, "250"), (101, "552"), (5000, "552")] {
        let body = format!(".{}\r\n", "x".repeat(octets - 3));
        let data = format!("{HELLO}{ENVELOPE}DATA\r\n.{body}.\r\nNOOP\r\n");
        let run = run_with(&small, true, data.as_bytes());
        assert_eq!(
            run.codes(),
            ["250", "250", "250", "354", code, "250"],
            "{octets}"
        );
        let bdat = format!("{HELLO}{ENVELOPE}BDAT {octets} LAST\r\n{body}NOOP\r\n");
        let run = run_with(&small, true, bdat.as_bytes());
        assert_eq!(run.codes(), ["250", "250", "250", code, "250"], "{octets}");
        let half = octets / 2;
        let (one, two) = body.split_at(half);
        let bdat = format!(
            "{HELLO}{ENVELOPE}BDAT {half}\r\n{one}BDAT {} LAST\r\n{two}",
            octets - half
        );
        let run = run_with(&small, true, bdat.as_bytes());
        assert_eq!(*run.codes().last().unwrap(), code, "{octets}");
    }
}

// What cannot be accepted any more is not stored.
#[test]
fn oversize_content_is_not_stored() {
    let config = Arc::new(ServerConfig {
        size_max: 1000,
        ..config()
    });
    let mut server = Server::new(config, peer(), true);
    let mut out = Vec::new();
    server.input(
        format!("{HELLO}{ENVELOPE}DATA\r\n").as_bytes(),
        NOW,
        &mut out,
    );
    for _ in 0..1000 {
        server.input(&b"0123456789\r\n".repeat(100), NOW, &mut out);
    }
    assert!(server.memory() < 2048, "{}", server.memory());
    server.input(b".\r\nRSET\r\n", NOW, &mut out);
    assert!(out.ends_with(b"552 5.3.4 Message exceeds the size limit\r\n250 2.0.0 Ok\r\n"));
    assert!(server.is_idle());
}

// RFC 5321 4.5.3.1.10: the surplus is deferred, the rest is delivered.
#[test]
fn too_many_recipients_are_deferred() {
    let few = ServerConfig {
        recipients_max: 3,
        ..config()
    };
    let rcpt: String = (0..5)
        .map(|index| format!("RCPT TO:<r{index}@y.example>\r\n"))
        .collect();
    let run = run_with(
        &few,
        true,
        format!("{HELLO}MAIL FROM:<>\r\n{rcpt}DATA\r\nx\r\n.\r\n").as_bytes(),
    );
    assert_eq!(
        run.codes(),
        [
            "250", "250", "250", "250", "250", "452", "452", "354", "250"
        ]
    );
    assert!(run.replies.contains("452 4.5.3 "));
    assert_eq!(
        run.messages[0].recipients,
        ["r0@y.example", "r1@y.example", "r2@y.example"]
    );
}

// Without the right to relay, only our postmaster can be written to.
#[test]
fn relaying_is_denied() {
    let input = format!("{HELLO}{ENVELOPE}DATA\r\nRCPT TO:<PostMaster>\r\nDATA\r\nx\r\n.\r\n");
    let run = run_with(&config(), false, input.as_bytes());
    assert_eq!(
        run.codes(),
        ["250", "250", "550", "554", "250", "354", "250"]
    );
    assert!(run.replies.contains("550 5.7.1 "));
    assert_eq!(run.messages[0].recipients, ["postmaster@mx.example"]);
}

// Line lengths: at the limit a command, one more 500; the session goes on in step.
#[test]
fn command_lines_are_bounded() {
    let fits = format!(
        "NOOP {}\r\n",
        "x".repeat(limits::SMTP_COMMAND_BYTES_MAX - 7)
    );
    assert_eq!(fits.len(), limits::SMTP_COMMAND_BYTES_MAX);
    let over = format!(
        "NOOP {}\r\n",
        "x".repeat(limits::SMTP_COMMAND_BYTES_MAX - 6)
    );
    let far = format!("NOOP {}\r\n", "x".repeat(100_000));
    let run = run(format!("{fits}{over}{far}NOOP\r\n").as_bytes());
    assert_eq!(run.codes(), ["250", "500", "500", "250"]);
    let bare = session("NOOP\nMAIL FROM:<>\nNOOP x\ry\r\nNOOP\r\n");
    assert_eq!(bare.codes(), ["250", "500", "500", "500", "250"]);
}

// Too many bad or idle commands end the session with 421.
#[test]
fn patience_is_bounded() {
    let bad = run("FOO\r\n".repeat(100).as_bytes());
    assert_eq!(
        bad.codes().len(),
        usize::from(config().bad_commands_max) + 1
    );
    assert!(bad.closed && bad.last().starts_with("421 4.7.0"));
    let short = ServerConfig {
        idle_commands_max: 10,
        ..config()
    };
    let idle = run_with(&short, true, "NOOP\r\nRSET\r\n".repeat(100).as_bytes());
    assert_eq!((idle.codes().len(), idle.closed), (11, true));
    // Messages that are accepted start the count again.
    let one = format!("{ENVELOPE}BDAT 3 LAST\r\nabcRSET\r\nNOOP\r\n");
    let busy = run_with(
        &short,
        true,
        format!("{HELLO}{}", one.repeat(30)).as_bytes(),
    );
    assert_eq!((busy.messages.len(), busy.closed), (30, false));
}

// A browser is cut off before its headers are read.
#[test]
fn http_is_closed_at_once() {
    for line in [
        "GET / HTTP/1.1",
        "POST /x HTTP/1.1",
        "CONNECT mx.example:25 HTTP/1.1",
    ] {
        let run = run(format!("{line}\r\nHost: x\r\nMAIL FROM:<>\r\n").as_bytes());
        assert_eq!((run.codes(), run.closed), (vec!["554"], true));
    }
}

// Content that follows a refused DATA is not taken for commands; a client that waited goes on.
#[test]
fn content_after_a_refused_data_is_not_read() {
    let run1 = session("MAIL FROM:<>\r\nDATA\r\nSubject: x\r\n\r\nMAIL FROM:<evil@x.example>\r\n");
    assert_eq!(
        (run1.codes(), run1.closed),
        (vec!["250", "250", "554", "421"], true)
    );
    let run2 = session(&format!(
        "MAIL FROM:<>\r\nDATA\r\nRSET\r\nFOO\r\n{ENVELOPE}QUIT\r\n"
    ));
    assert_eq!(
        run2.codes(),
        ["250", "250", "554", "250", "500", "250", "250", "221"]
    );
}

// What EHLO lists follows the configuration; HELO lists nothing.
#[test]
fn extensions_follow_the_configuration() {
    let all = session("");
    for keyword in [
        "PIPELINING",
        "SIZE 52428800",
        "8BITMIME",
        "SMTPUTF8",
        "CHUNKING",
        "DSN",
    ] {
        assert!(
            all.replies.contains(&format!("250-{keyword}\r\n")),
            "{keyword}"
        );
    }
    assert!(all.replies.contains("ENHANCEDSTATUSCODES"));
    let none = ServerConfig {
        pipelining: false,
        chunking: false,
        eight_bit_mime: false,
        smtputf8: false,
        dsn: false,
        ..config()
    };
    let input = format!(
        "{HELLO}MAIL FROM:<> RET=FULL\r\nMAIL FROM:<> BODY=7BIT\r\nMAIL FROM:<> SMTPUTF8\r\n\
         MAIL FROM:<>\r\nRCPT TO:<b@y.example> NOTIFY=NEVER\r\n"
    );
    let run = run_with(&none, true, input.as_bytes());
    assert_eq!(run.codes(), ["250", "555", "555", "555", "250", "555"]);
    assert_eq!(
        run.replies
            .lines()
            .filter(|line| line.starts_with("250-"))
            .count(),
        3
    );
    let helo = super::tests::run(b"HELO c\r\n");
    assert_eq!(helo.replies, "250 mx.example\r\n");
}

// The parameters reach the envelope, decoded.
#[test]
fn parameters_reach_the_envelope() {
    let mut server = Server::new(Arc::new(config()), peer(), true);
    let input = format!(
        "{HELLO}MAIL FROM:<\u{e9}@x.example> SMTPUTF8 BODY=8BITMIME RET=HDRS ENVID=q+2B1 SIZE=5\r\n\
         RCPT TO:<b@y.example> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;b+2Bc@y.example\r\n\
         RCPT TO:<c@y.example>\r\nRCPT TO:<d@y.example> NOTIFY=NEVER ORCPT=utf-8;\u{e9}@y\r\n\
         BDAT 1 LAST\r\nx"
    );
    let mut out = Vec::new();
    server.set_next_id(MessageId(ID));
    let (used, event) = server.input(input.as_bytes(), NOW, &mut out);
    assert_eq!(used, input.len());
    let Some(ServerEvent::Message(inbound)) = event else {
        panic!("{}", out.escape_ascii())
    };
    let envelope = &inbound.envelope;
    assert!(envelope.smtputf8);
    assert_eq!(envelope.body, crate::message::BodyType::EightBitMime);
    assert_eq!(envelope.ret, Some(crate::message::Ret::Headers));
    assert_eq!(envelope.envid.as_deref(), Some("q+1"));
    let [one, two, three] = &envelope.recipients[..] else {
        panic!("three recipients")
    };
    assert!(one.notify.success() && one.notify.failure() && !one.notify.delay());
    assert_eq!(one.orcpt.as_deref(), Some("rfc822;b+c@y.example"));
    assert_eq!(two, &Recipient::new(two.address.clone()));
    assert!(three.notify.is_never());
    assert_eq!(three.orcpt.as_deref(), Some("utf-8;\u{e9}@y"));
    assert_eq!(inbound.received_at, NOW);
    let trace = String::from_utf8_lossy(inbound.content.as_slice()).into_owned();
    assert!(
        trace.contains("client.example") && trace.contains("001000000000002a"),
        "{trace}"
    );
    assert!(
        !trace.contains("b@y.example"),
        "several recipients are not told about each other"
    );
}

// Each refusal has its code, the session goes on; 421 ends it; nothing is said after the end.
#[test]
fn refusals_and_endings() {
    let message = format!("{ENVELOPE}BDAT 1 LAST\r\nx");
    let policy = Reply::new(550, Some(EnhancedStatus::NOT_AUTHORIZED), "no");
    let table = [
        (Refusal::InsufficientStorage, "452 4.3.1"),
        (Refusal::LocalError, "451 4.3.0"),
        (Refusal::Loop, "554 5.4.6"),
        (Refusal::Policy(policy), "550 5.7.1 no"),
    ];
    let mut server = Server::new(Arc::new(config()), peer(), true);
    let mut out = Vec::new();
    server.greet(&mut out);
    assert_eq!(out, b"220 mx.example ESMTP\r\n");
    server.input(HELLO.as_bytes(), NOW, &mut out);
    for (refusal, expected) in table {
        let (_, event) = server.input(message.as_bytes(), NOW, &mut out);
        assert!(matches!(event, Some(ServerEvent::Message(_))));
        out.clear();
        server.refused(refusal, &mut out);
        assert!(
            out.starts_with(expected.as_bytes()),
            "{}",
            out.escape_ascii()
        );
    }
    out.clear();
    server.timeout(&mut out);
    server.overload(&mut out);
    server.shutting_down(&mut out);
    assert_eq!(out, b"421 4.4.2 Timeout\r\n");
    assert!(matches!(
        server.input(b"NOOP\r\n", NOW, &mut out),
        (6, Some(ServerEvent::Close))
    ));
}

// An idle session holds no memory but its name.
#[test]
fn an_idle_session_is_small() {
    let mut server = Server::new(Arc::new(config()), peer(), true);
    let mut out = Vec::new();
    for octet in HELLO.bytes() {
        server.input(&[octet], NOW, &mut out);
    }
    assert_eq!(server.memory(), "client.example".len());
}

/// What a watcher has seen: the content at each call, and the complete one.
#[derive(Debug, Default)]
struct Seen {
    growing: Vec<Vec<u8>>,
    complete: Vec<Vec<u8>>,
    alive: bool,
}

/// Watches for so many calls.
#[derive(Debug)]
struct Witness(Arc<Mutex<Seen>>, usize);

impl Watch for Witness {
    fn more(&mut self, content: &[u8]) -> bool {
        self.0.lock().unwrap().growing.push(content.to_vec());
        self.1 -= 1;
        self.1 > 0
    }

    fn finish(self: Box<Self>, content: &[u8]) -> Option<ArrivedBody> {
        self.0.lock().unwrap().complete.push(content.to_vec());
        let hash = BodyHash {
            canon: Canon::Relaxed,
            digest: [7; 32],
        };
        let len = content.len();
        Some(ArrivedBody { hash, len })
    }

    fn memory(&self) -> usize {
        100_000
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.0.lock().unwrap().alive = false;
    }
}

/// Runs a session in steps of `step` octets whose messages are watched for `calls` calls each.
/// Returns what was seen, and the messages.
fn watched(script: &str, step: usize, calls: usize, config: ServerConfig) -> (Seen, Vec<Inbound>) {
    let seen = Arc::new(Mutex::new(Seen::default()));
    let watchers = |envelope: &Envelope| -> Option<Box<dyn Watch>> {
        assert_eq!(envelope.recipients.len(), 1);
        seen.lock().unwrap().alive = true;
        Some(Box::new(Witness(Arc::clone(&seen), calls)))
    };
    let mut server = Server::new(Arc::new(config), peer(), true);
    let (mut out, mut messages) = (Vec::new(), Vec::new());
    for mut piece in script.as_bytes().chunks(step) {
        while !piece.is_empty() {
            let (used, event) = server.input_watched(piece, NOW, &watchers, &mut out);
            piece = &piece[used..];
            let alive = seen.lock().unwrap().alive;
            assert_eq!(server.memory() >= 100_000, alive);
            if let Some(ServerEvent::Message(inbound)) = event {
                messages.push(*inbound);
                server.accepted(MessageId(ID), &mut out);
            }
        }
    }
    drop(server);
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    (seen, messages)
}

// A watcher sees all of a content and nothing else, however it comes; what it found goes with the
// message; one that has seen enough is let go.
#[test]
fn a_message_is_watched_while_it_arrives() {
    let data = format!("{HELLO}{ENVELOPE}DATA\r\nA: b\r\n\r\n..x\r\n.\r\n");
    let bdat = format!("{HELLO}{ENVELOPE}BDAT 7\r\nA: b\r\n\rBDAT 5 LAST\r\n\n.x\r\n");
    for (script, step) in [&data, &bdat].iter().zip([1, 2, 7, 1000]) {
        let (seen, messages) = watched(script, step, usize::MAX, config());
        let [message] = &messages[..] else {
            panic!("one message, not {}", messages.len())
        };
        let content = message.content.as_slice();
        assert!(content.ends_with(b"\r\nA: b\r\n\r\n.x\r\n"));
        assert_eq!(seen.complete, [content]);
        assert!(seen.growing.iter().all(|part| content.starts_with(part)));
        assert_eq!(seen.growing.last().unwrap(), content);
        assert_eq!(message.body.unwrap().len, content.len());
        assert!(!seen.alive);
    }
    let (seen, messages) = watched(&data, 1, 2, config());
    assert_eq!((seen.growing.len(), seen.complete.len()), (2, 0));
    assert_eq!(messages[0].body, None);
}

// What cannot be accepted is not watched on.
#[test]
fn a_refused_message_is_not_watched() {
    let small = || ServerConfig {
        size_max: 100,
        ..config()
    };
    let long = "0123456789\r\n".repeat(50);
    for (script, config) in [
        ("DATA\r\nbare\nLF\r\n.\r\n".to_owned(), config()),
        (format!("DATA\r\n{long}.\r\n"), small()),
        (format!("BDAT 3\r\nabcBDAT 600 LAST\r\n{long}"), small()),
        ("BDAT 3\r\nabcRSET\r\n".to_owned(), small()),
    ] {
        let (seen, messages) = watched(&format!("{HELLO}{ENVELOPE}{script}"), 1, 9999, config);
        assert!(messages.is_empty());
        assert_eq!((seen.complete.len(), seen.alive), (0, false));
        assert!(!seen.growing.is_empty());
    }
}

/// Any octets of the protocol's alphabet, any split: no panic, and the split does not matter.
#[test]
fn fuzz_server_session() {
    let words: [&[u8]; 30] = [
        b"EHLO a\r\n",
        b"HELO b\r\n",
        b"MAIL FROM:<a@x.example>\r\n",
        b"MAIL FROM:<>\r\n",
        b"RCPT TO:<b@y.example>\r\n",
        b"RCPT TO:<b@y.example>\r\n",
        b"DATA\r\n",
        b".\r\n",
        b"\r\n.\r\n",
        b"BDAT 7\r\n",
        b"BDAT 3 LAST\r\n",
        b"BDAT 0 LAST\r\n",
        b"BDAT 0\r\n",
        b"RSET\r\n",
        b"QUIT\r\n",
        b"NOOP\r\n",
        b"\r",
        b"\n",
        b"..",
        b"text\r\n",
        b"\0",
        b"\xff",
        b"<",
        b"\r\n",
        b"DATA\r\n.\r\n",
        b"MAIL FROM:<a@x.example> SIZE=9\r\n",
        b"RCPT TO:<c@y.example> NOTIFY=NEVER\r\n",
        b"EHLO a\r\nMAIL FROM:<>\r\nRCPT TO:<d@y.example>\r\n",
        b"VRFY x\r\n",
        b" ",
    ];
    let mut seed = 42u64;
    let mut next = move |bound: usize| {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % bound
    };
    let small = ServerConfig {
        size_max: 40,
        recipients_max: 2,
        ..config()
    };
    let mut messages = 0;
    for _ in 0..8000 {
        let mut input = b"EHLO a\r\n".to_vec();
        for _ in 0..next(24) {
            input.extend_from_slice(words[next(words.len())]);
        }
        let whole = run_split(small.clone(), true, &input, || usize::MAX);
        let split = run_split(small.clone(), true, &input, || next(9) + 1);
        assert_eq!(split, whole, "{}", input.escape_ascii());
        for message in &whole.messages {
            let text = String::from_utf8_lossy(&message.content).replace("\r\n", "");
            assert!(
                !text.contains(['\r', '\n', '\0']),
                "{}",
                message.content.escape_ascii()
            );
            assert!(message.content.len() <= 40 && !message.recipients.is_empty());
            messages += 1;
        }
    }
    assert!(
        messages > 500,
        "the corpus reaches whole messages: {messages}"
    );
}
