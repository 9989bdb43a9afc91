//! The client against our server, and against scripted peers that refuse, lie and vanish.

use std::net::{IpAddr, Ipv4Addr};

use super::*;
use crate::message::{MessageId, Notify, Ret};
use crate::smtp::server::{Server, ServerConfig, ServerEvent};
use crate::time::Wall;

const NOW: Mono = Mono(1_000_000_000);
const ALL: &[u8] = b"220 hi\r\n250-mx\r\n250-PIPELINING\r\n250-CHUNKING\r\n250-SIZE 100000\r\n\
    250-8BITMIME\r\n250 DSN\r\n";
const PIPELINING: &[u8] = b"220 hi\r\n250-mx\r\n250-SIZE\r\n250 PIPELINING\r\n";
const CHUNKING: &[u8] = b"220 hi\r\n250-mx\r\n250 CHUNKING\r\n";
const PLAIN: &[u8] = b"220 hi\r\n250 mx\r\n";

fn config(depth: u8) -> ClientConfig {
    ClientConfig {
        pipeline_depth: depth,
        ..ClientConfig::new("client.example")
    }
}

fn transaction(token: u64, recipients: &[&'static str], content: &'static str) -> Transaction {
    Transaction {
        token,
        sender: Bytes::from_static(b"a@x.example"),
        recipients: recipients
            .iter()
            .map(|path| Bytes::from_static(path.as_bytes()))
            .collect(),
        content: vec![Bytes::from_static(content.as_bytes())],
        size: content.len() as u64,
        ..Transaction::default()
    }
}

/// A client with a record of what it said.
struct Peer {
    client: Client,
    events: Vec<ClientEvent>,
}

impl Peer {
    /// A client that read the greeting and the reply to EHLO.
    fn ready(depth: u8, hello: &[u8]) -> Self {
        let mut peer = Self {
            client: Client::new(config(depth)),
            events: Vec::new(),
        };
        let split = memchr::memchr(b'\n', hello).unwrap() + 1;
        assert_eq!(peer.said(), "");
        peer.hears(&hello[..split]);
        assert_eq!(peer.said(), "EHLO client.example\r\n");
        peer.hears(&hello[split..]);
        assert_eq!(std::mem::take(&mut peer.events), [ClientEvent::Ready]);
        peer
    }

    /// What the client wants to send now.
    fn said(&mut self) -> String {
        let mut pieces = Vec::new();
        while self.client.poll_output(NOW, &mut pieces) {}
        String::from_utf8(pieces.concat()).unwrap()
    }

    fn hears(&mut self, replies: impl AsRef<[u8]>) {
        self.client.input(replies.as_ref(), NOW, &mut self.events);
    }

    fn sends(&mut self, transaction: Transaction) -> String {
        assert!(self.client.can_send());
        assert_eq!(self.client.send(transaction), None);
        self.said()
    }

    /// The outcomes of the transactions that ended, as short words.
    fn outcomes(&mut self) -> Vec<String> {
        let events = std::mem::take(&mut self.events);
        events.iter().map(describe).collect()
    }
}

fn describe(event: &ClientEvent) -> String {
    match event {
        ClientEvent::Ready => "ready".into(),
        ClientEvent::Closed => "closed".into(),
        ClientEvent::Refused { reply, permanent } => format!("refused {} {permanent}", reply.code),
        ClientEvent::Done { token, outcomes } => {
            let words = outcomes.iter().map(|outcome| match outcome {
                Outcome::Delivered { reply } => format!("ok {}", reply.code().unwrap_or(0)),
                Outcome::Deferred { status, cause, .. } => format!("later {status} {cause:?}"),
                Outcome::Failed { status, .. } => format!("no {status}"),
                Outcome::Ambiguous { status, .. } => format!("unknown {status}"),
            });
            format!("{token}: {}", words.collect::<Vec<_>>().join(", "))
        }
    }
}

// PIPELINING and CHUNKING: one segment, the content by reference.
#[test]
fn one_segment_with_bdat() {
    let mut peer = Peer::ready(1, ALL);
    assert_eq!(
        peer.sends(transaction(
            7,
            &["b@y.example", "c@y.example"],
            "A: b\r\n\r\n.x\r\n"
        )),
        "MAIL FROM:<a@x.example> SIZE=12\r\nRCPT TO:<b@y.example>\r\nRCPT TO:<c@y.example>\r\n\
         BDAT 12 LAST\r\nA: b\r\n\r\n.x\r\n"
    );
    assert!(!peer.client.can_send());
    peer.hears("250 ok\r\n250 ok\r\n550 5.1.1 no such user\r\n250 2.6.0 queued\r\n");
    assert_eq!(peer.outcomes(), ["7: ok 250, no 5.1.1"]);
    assert!(peer.client.can_send());
    // The next needs no RSET.
    assert!(
        peer.sends(transaction(8, &["d@y.example"], "x"))
            .starts_with("MAIL")
    );
}

// PIPELINING alone: the group up to DATA, then the content, stuffed.
#[test]
fn group_with_data() {
    let mut peer = Peer::ready(2, PIPELINING);
    let group = "MAIL FROM:<a@x.example> SIZE=7\r\nRCPT TO:<b@y.example>\r\nDATA\r\n";
    assert_eq!(
        peer.sends(transaction(1, &["b@y.example"], ".a\r\n..b")),
        group
    );
    assert!(
        !peer.client.can_send(),
        "nothing may follow DATA before its reply"
    );
    peer.hears("250 ok\r\n250 ok\r\n354 go\r\n");
    assert_eq!(peer.said(), "..a\r\n...b\r\n.\r\n");
    assert!(
        peer.client.can_send(),
        "the next group may follow the final dot"
    );
    assert_eq!(
        peer.sends(transaction(2, &["c@y.example"], ".a\r\n..b"))
            .replace("c@y", "b@y"),
        group
    );
    peer.hears("451 4.3.0 later\r\n250 ok\r\n250 ok\r\n554 5.5.1 no\r\n");
    assert_eq!(
        peer.outcomes(),
        ["1: later 4.3.0 ThisMessage", "2: no 5.5.1"]
    );
    assert!(
        peer.sends(transaction(3, &["d@y.example"], "x"))
            .starts_with("RSET\r\nMAIL")
    );
}

// No extension: one command at a time.
#[test]
fn plain_dialogue() {
    let mut peer = Peer::ready(4, PLAIN);
    assert_eq!(
        peer.sends(transaction(1, &["b@y.example", "c@y.example"], "x")),
        "MAIL FROM:<a@x.example>\r\n"
    );
    let dialogue = [
        ("250 ok\r\n", "RCPT TO:<b@y.example>\r\n"),
        ("450 4.2.0 later\r\n", "RCPT TO:<c@y.example>\r\n"),
        ("251 ok\r\n", "DATA\r\n"),
        ("354 go\r\n", "x\r\n.\r\n"),
        ("250 ok\r\n", ""),
    ];
    for (reply, said) in dialogue {
        assert!(!peer.client.can_send());
        peer.hears(reply);
        assert_eq!(peer.said(), said);
    }
    assert_eq!(peer.outcomes(), ["1: later 4.2.0 ThisRecipient, ok 250"]);
    // All recipients refused: no DATA, and RSET before the next MAIL, each waiting for its reply.
    peer.sends(transaction(2, &["b@y.example"], "x"));
    peer.hears("250 ok\r\n");
    peer.said();
    peer.hears("550 no\r\n");
    assert_eq!(
        (peer.said(), peer.outcomes()),
        (String::new(), vec!["2: no 5.0.0".to_owned()])
    );
    assert_eq!(
        peer.sends(transaction(3, &["b@y.example"], "x")),
        "RSET\r\n"
    );
    peer.hears("250 ok\r\n");
    assert_eq!(peer.said(), "MAIL FROM:<a@x.example>\r\n");
    peer.hears("553 5.1.8 no\r\n");
    assert_eq!(peer.outcomes(), ["3: no 5.1.8"]);
    assert_eq!(
        peer.sends(transaction(4, &["b@y.example"], "x")),
        "MAIL FROM:<a@x.example>\r\n"
    );
    // CHUNKING without PIPELINING spares one round trip.
    let mut peer = Peer::ready(4, CHUNKING);
    peer.sends(transaction(5, &["b@y.example"], "xyz"));
    peer.hears("250 ok\r\n");
    peer.said();
    peer.hears("250 ok\r\n");
    assert_eq!(peer.said(), "BDAT 3 LAST\r\nxyz");
    peer.hears("250 ok\r\n");
    assert_eq!(peer.outcomes(), ["5: ok 250"]);
}

// RFC 2920 3.1: 354 although all recipients were refused gets the end alone.
#[test]
fn go_without_recipients_sends_only_the_end() {
    let mut peer = Peer::ready(1, PIPELINING);
    peer.sends(transaction(1, &["b@y.example"], "secret\r\n"));
    peer.hears("250 ok\r\n550 5.1.1 no\r\n354 go\r\n");
    assert_eq!(peer.said(), ".\r\n");
    peer.hears("554 no recipients\r\n");
    assert_eq!(peer.outcomes(), ["1: no 5.1.1"]);
    peer.sends(transaction(2, &["b@y.example"], "secret\r\n"));
    peer.hears("550 5.7.1 not you\r\n503 no\r\n354 go\r\n");
    assert_eq!(peer.said(), ".\r\n");
    peer.hears("250 ok\r\n");
    assert_eq!(peer.outcomes(), ["2: no 5.7.1"]);
    assert!(peer.client.can_send());
}

// BDAT refused because no recipient was: the outcomes are those of RCPT. MAIL refused: all from it.
#[test]
fn bdat_without_recipients() {
    let mut peer = Peer::ready(1, ALL);
    peer.sends(transaction(1, &["b@y.example", "c@y.example"], "x"));
    peer.hears("250 ok\r\n450 4.2.1 a\r\n550 5.1.1 b\r\n503 5.5.1 no recipients\r\n");
    assert_eq!(peer.outcomes(), ["1: later 4.2.1 ThisRecipient, no 5.1.1"]);
    assert!(
        peer.sends(transaction(2, &["b@y.example"], "x"))
            .starts_with("RSET\r\nMAIL")
    );
    peer.hears("250 ok\r\n451 4.7.1 grey\r\n503 no\r\n503 no\r\n");
    assert_eq!(peer.outcomes(), ["2: later 4.7.1 ThisMessage"]);
    assert!(
        peer.sends(transaction(3, &["b@y.example"], "x"))
            .starts_with("MAIL")
    );
}

// Depth: the next transaction follows an unanswered BDAT, behind RSET.
#[test]
fn several_in_flight() {
    let mut peer = Peer::ready(3, ALL);
    peer.sends(transaction(1, &["b@y.example"], "x"));
    let second = peer.sends(transaction(2, &["b@y.example"], "y"));
    assert!(second.starts_with("RSET\r\nMAIL FROM:<a@x.example> SIZE=1\r\nRCPT"));
    peer.sends(transaction(3, &["b@y.example"], "z"));
    assert!(!peer.client.can_send());
    assert_eq!(peer.client.in_flight(), 3);
    peer.hears(
        "250 a\r\n250 b\r\n554 5.6.0 c\r\n250 r\r\n250 a\r\n250 b\r\n250 c\r\n250 r\r\n250 a\r\n",
    );
    assert_eq!(peer.outcomes(), ["1: no 5.6.0", "2: ok 250"]);
    peer.client
        .disconnected(Disconnect::Reset, &mut peer.events);
    assert_eq!(peer.outcomes(), ["3: unknown 4.4.2", "closed"]);
    assert!(!peer.client.can_send() && peer.client.is_spent());
}

// Ambiguous only where all of the content was handed over and reached the system.
#[test]
fn lost_connections() {
    // Nothing was polled: nothing was sent.
    let mut peer = Peer::ready(1, ALL);
    assert_eq!(
        peer.client.send(transaction(1, &["b@y.example"], "x")),
        None
    );
    peer.client.disconnected(Disconnect::Eof, &mut peer.events);
    assert_eq!(peer.outcomes(), ["1: later 4.4.2 Connection", "closed"]);
    // Everything was polled, the driver says that the last octet did not go out.
    let mut peer = Peer::ready(1, ALL);
    peer.sends(transaction(1, &["b@y.example"], "x"));
    peer.client.unsent(1);
    peer.client.disconnected(Disconnect::Eof, &mut peer.events);
    assert_eq!(peer.outcomes(), ["1: later 4.4.2 Connection", "closed"]);
    // With DATA, before the end.
    let mut peer = Peer::ready(1, PIPELINING);
    peer.sends(transaction(1, &["b@y.example"], "x"));
    peer.client.disconnected(Disconnect::Io, &mut peer.events);
    assert_eq!(peer.outcomes(), ["1: later 4.4.2 Connection", "closed"]);
    // With DATA, after the end: what RCPT refused is certain, the other is not.
    let mut peer = Peer::ready(1, PIPELINING);
    peer.sends(transaction(1, &["b@y.example", "c@y.example"], "x"));
    peer.hears("250 ok\r\n250 ok\r\n550 5.1.1 no\r\n354 go\r\n");
    peer.said();
    peer.client.disconnected(Disconnect::Eof, &mut peer.events);
    assert_eq!(peer.outcomes(), ["1: unknown 4.4.2, no 5.1.1", "closed"]);
    // Twice is once.
    peer.client.disconnected(Disconnect::Eof, &mut peer.events);
    peer.hears("250 ok\r\n");
    assert_eq!(peer.outcomes(), Vec::<String>::new());
}

// RFC 5321 4.5.3.2: each phase has its deadline; passing it ends everything.
#[test]
fn deadlines_follow_the_phase() {
    let timeouts = ClientTimeouts::default();
    let at = |wait: Duration| Some(NOW.after(wait));
    let mut peer = Peer {
        client: Client::new(config(1)),
        events: Vec::new(),
    };
    assert_eq!(peer.client.deadline(), None);
    peer.said();
    assert_eq!(peer.client.deadline(), at(timeouts.greeting));
    peer.client.timed_out(NOW, &mut peer.events);
    assert_eq!(peer.events, [], "it is not yet time");
    peer.hears("220 hi\r\n");
    peer.said();
    assert_eq!(peer.client.deadline(), at(timeouts.hello));
    peer.hears("250-mx\r\n250 PIPELINING\r\n");
    assert_eq!(peer.client.deadline(), None);
    peer.sends(transaction(1, &["b@y.example"], "x"));
    for (reply, wait) in [
        ("", timeouts.mail),
        ("250 ok\r\n", timeouts.rcpt),
        ("250 ok\r\n", timeouts.data),
        ("354 ok\r\n", timeouts.end),
    ] {
        peer.hears(reply);
        assert_eq!(peer.client.deadline(), at(wait));
    }
    peer.said();
    let late = NOW.after(timeouts.end);
    peer.client.timed_out(late, &mut peer.events);
    assert_eq!(peer.outcomes(), ["ready", "1: unknown 4.4.2", "closed"]);
    assert_eq!(peer.client.deadline(), None);
}

// Greetings and EHLO that refuse; HELO where EHLO is unknown.
#[test]
fn greetings() {
    let table = [
        ("421 4.3.2 busy\r\n", "refused 421 false"),
        ("451 no\r\n", "refused 451 false"),
        ("521 no mail here\r\n", "refused 521 true"),
        ("554 no\r\n", "refused 554 true"),
        ("220 hi\r\n421 no\r\n", "refused 421 false"),
    ];
    for (replies, expected) in table {
        let mut peer = Peer {
            client: Client::new(config(1)),
            events: Vec::new(),
        };
        for line in replies.split_inclusive('\n') {
            peer.said();
            peer.hears(line);
        }
        assert_eq!(peer.outcomes(), [expected, "closed"]);
    }
    let mut peer = Peer {
        client: Client::new(config(1)),
        events: Vec::new(),
    };
    peer.hears("220 hi\r\n");
    peer.said();
    peer.hears("502 what\r\n");
    assert_eq!(peer.said(), "HELO client.example\r\n");
    peer.hears("250 hi\r\n");
    assert_eq!(peer.outcomes(), ["ready"]);
    assert_eq!(*peer.client.capabilities(), Capabilities::default());
    for nonsense in [
        "250 hi\r\n",
        "354 go\r\n",
        "hello\r\n",
        "220-a\r\n221 b\r\n",
    ] {
        let mut peer = Peer {
            client: Client::new(config(1)),
            events: Vec::new(),
        };
        peer.hears(nonsense);
        assert_eq!(peer.outcomes(), ["closed"], "{nonsense}");
    }
    // A second reply before EHLO went out is no reply to it.
    let mut peer = Peer {
        client: Client::new(config(1)),
        events: Vec::new(),
    };
    peer.hears("220 hi\r\n250 PIPELINING\r\n");
    assert_eq!(peer.outcomes(), ["closed"]);
}

// 421 in any place is about the host: nothing that it did not answer was taken.
#[test]
fn host_down_at_any_time() {
    for before in ["", "250 ok\r\n", "250 ok\r\n250 ok\r\n"] {
        let mut peer = Peer::ready(2, ALL);
        peer.sends(transaction(1, &["b@y.example"], "x"));
        peer.sends(transaction(2, &["b@y.example"], "x"));
        peer.hears(format!("{before}421 4.3.2 going down\r\n"));
        let expected = ["1: later 4.3.2 Host", "2: later 4.3.2 Host", "closed"];
        assert_eq!(peer.outcomes(), expected, "{before}");
    }
    let mut idle = Peer::ready(2, ALL);
    idle.hears("421 idle for too long\r\n");
    assert_eq!(idle.outcomes(), ["closed"]);
}

// RFC 5321 4.5.3.1.10: after one accepted recipient, 452 and 552 mean the next batch.
#[test]
fn too_many_recipients_are_the_next_batch() {
    let mut peer = Peer::ready(1, ALL);
    peer.sends(transaction(
        1,
        &["b@y.example", "c@y.example", "d@y.example"],
        "x",
    ));
    peer.hears("250 ok\r\n250 ok\r\n452 4.5.3 many\r\n552 many\r\n250 ok\r\n");
    assert_eq!(
        peer.outcomes(),
        ["1: ok 250, later 4.5.3 NextBatch, later 4.5.3 NextBatch"]
    );
    peer.sends(transaction(2, &["b@y.example", "c@y.example"], "x"));
    peer.hears("250 ok\r\n552 5.2.2 full\r\n452 4.3.1 full\r\n503 no\r\n");
    assert_eq!(peer.outcomes(), ["2: no 5.2.2, later 4.3.1 ThisRecipient"]);
}

// RFC 9422: RCPTMAX, MAILMAX, RCPTDOMAINMAX.
#[test]
fn limits_of_the_peer_are_honoured() {
    let hello =
        b"220 hi\r\n250-mx\r\n250-PIPELINING\r\n250-CHUNKING\r\n250 LIMITS RCPTMAX=2 MAILMAX=2\r\n";
    let mut peer = Peer::ready(1, hello);
    assert_eq!(peer.client.recipients_max(), 2);
    let said = peer.sends(transaction(
        1,
        &["b@y.example", "c@y.example", "d@y.example"],
        "x",
    ));
    assert!(!said.contains("d@y.example"));
    peer.hears("250 ok\r\n250 ok\r\n250 ok\r\n250 ok\r\n");
    assert_eq!(
        peer.outcomes(),
        ["1: ok 250, ok 250, later 4.5.3 NextBatch"]
    );
    peer.sends(transaction(2, &["d@y.example"], "x"));
    peer.hears("250 ok\r\n250 ok\r\n250 ok\r\n");
    assert!(!peer.client.can_send() && peer.client.is_spent());
    let hello =
        b"220 hi\r\n250-mx\r\n250-PIPELINING\r\n250-CHUNKING\r\n250 LIMITS RCPTDOMAINMAX=1\r\n";
    let mut peer = Peer::ready(1, hello);
    peer.sends(transaction(
        1,
        &["b@y.example", "c@Y.EXAMPLE", "c@z.example"],
        "x",
    ));
    peer.hears("250 ok\r\n250 ok\r\n250 ok\r\n250 ok\r\n");
    assert_eq!(
        peer.outcomes(),
        ["1: ok 250, ok 250, later 4.5.3 NextBatch"]
    );
    assert!(peer.client.is_spent());
}

// What the peer cannot take is said at once, and nothing is sent.
#[test]
fn gates_are_local() {
    let mut peer = Peer::ready(1, b"220 hi\r\n250-mx\r\n250 SIZE 3\r\n");
    let mut refuse = |transaction: Transaction| {
        let event = peer.client.send(transaction).map(|event| describe(&event));
        assert!(peer.client.can_send());
        event.unwrap()
    };
    let plain = || transaction(1, &["b@y.example"], "abc");
    assert_eq!(
        refuse(transaction(1, &["b@y.example", "c@y.example"], "abcd")),
        "1: no 5.3.4, no 5.3.4"
    );
    assert_eq!(
        refuse(Transaction {
            eight_bit: true,
            ..plain()
        }),
        "1: no 5.6.3"
    );
    assert_eq!(
        refuse(Transaction {
            smtputf8: true,
            ..plain()
        }),
        "1: no 5.6.9"
    );
    let sender = Bytes::from("\u{e9}@x.example");
    assert_eq!(refuse(Transaction { sender, ..plain() }), "1: no 5.6.7");
    let sender = Bytes::from("a@x>\r\nDATA");
    assert_eq!(refuse(Transaction { sender, ..plain() }), "1: no 5.1.7");
    assert_eq!(
        refuse(transaction(1, &["b\r\n@y.example"], "abc")),
        "1: no 5.1.3"
    );
    assert_eq!(peer.said(), "");
    assert_eq!(peer.sends(plain()), "MAIL FROM:<a@x.example> SIZE=3\r\n");
}

// The parameters are passed on where they are offered.
#[test]
fn parameters_are_passed_on() {
    let dsn = DsnParameters {
        ret: Some(Ret::Headers),
        envid: Some(Bytes::from_static(b"q+1")),
        recipients: vec![
            RecipientDsn {
                notify: Notify::SUCCESS.with(Notify::DELAY),
                orcpt: Some(Bytes::from_static(b"rfc822;b=c@y")),
            },
            RecipientDsn {
                notify: Notify::NEVER,
                orcpt: None,
            },
            RecipientDsn::default(),
        ],
    };
    let sent = Transaction {
        eight_bit: true,
        smtputf8: true,
        dsn: Some(Box::new(dsn)),
        ..transaction(1, &["b@y.example", "c@y.example", "d@y.example"], "x")
    };
    let hello =
        b"220 hi\r\n250-mx\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 DSN\r\n";
    assert_eq!(
        Peer::ready(1, hello).sends(sent.clone()),
        "MAIL FROM:<a@x.example> BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=q+2B1\r\n\
         RCPT TO:<b@y.example> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;b+3Dc@y\r\n\
         RCPT TO:<c@y.example> NOTIFY=NEVER\r\nRCPT TO:<d@y.example>\r\nDATA\r\n"
    );
    let hello = b"220 hi\r\n250-mx\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n";
    let said = Peer::ready(1, hello).sends(sent);
    assert!(
        !said.contains("NOTIFY") && !said.contains("ENVID"),
        "{said}"
    );
}

// Lies and nonsense end the connection with outcomes for everybody.
#[test]
fn lies_close_the_connection() {
    let table = [
        ("250 a\r\n250 b\r\n250 c\r\n250 d\r\n", "1: ok 250"),
        ("354 a\r\n", "1: unknown 4.4.2"),
        ("250 a\r\n354 b\r\n", "1: unknown 4.4.2"),
        ("250 a\r\n250 b\r\n354 c\r\n", "1: unknown 4.4.2"),
        ("550 5.7.1 a\r\n250 b\r\n250 c\r\n", "1: unknown 4.4.2"),
        ("550 5.7.1 a\r\n???\r\n", "1: no 5.7.1"),
        ("250 a\r\n250-b\r\n251 c\r\n", "1: unknown 4.4.2"),
        ("\0\0\0\0\r\n", "1: unknown 4.4.2"),
    ];
    for (replies, outcome) in table {
        let mut peer = Peer::ready(1, ALL);
        peer.sends(transaction(1, &["b@y.example"], "x"));
        peer.hears(replies);
        assert_eq!(peer.outcomes(), [outcome, "closed"], "{replies}");
    }
    let mut peer = Peer::ready(1, ALL);
    peer.sends(transaction(1, &["b@y.example"], "x"));
    peer.hears("250-x\r\n".repeat(1000));
    assert_eq!(peer.outcomes(), ["1: unknown 4.4.2", "closed"]);
    // A reply to the end before the end was sent.
    let mut peer = Peer::ready(1, PIPELINING);
    peer.sends(transaction(1, &["b@y.example"], "x"));
    peer.hears("250 a\r\n250 b\r\n354 c\r\n250 d\r\n");
    assert_eq!(peer.outcomes(), ["1: later 4.4.2 Connection", "closed"]);
    // A refusal in the middle of the content counts, and the connection is done with.
    let mut peer = Peer::ready(1, PIPELINING);
    peer.sends(transaction(1, &["b@y.example"], "x"));
    peer.hears("250 a\r\n250 b\r\n354 c\r\n552 5.3.4 d\r\n");
    assert_eq!(peer.outcomes(), ["1: no 5.3.4", "closed"]);
    // An idle connection that talks.
    let mut peer = Peer::ready(1, ALL);
    peer.hears("250 spam\r\n");
    assert_eq!(peer.outcomes(), ["closed"]);
    // A reply that was there before its command.
    let mut peer = Peer::ready(1, ALL);
    assert_eq!(
        peer.client.send(transaction(1, &["b@y.example"], "x")),
        None
    );
    peer.hears("250 early\r\n");
    assert_eq!(peer.outcomes(), ["1: later 4.4.2 Connection", "closed"]);
}

// QUIT waits for the transactions in flight.
#[test]
fn quit_is_last() {
    let mut peer = Peer::ready(1, ALL);
    peer.sends(transaction(1, &["b@y.example"], "x"));
    peer.client.quit();
    assert_eq!(
        (peer.said(), peer.client.can_send()),
        (String::new(), false)
    );
    peer.hears("250 ok\r\n250 ok\r\n250 ok\r\n");
    assert_eq!(peer.said(), "QUIT\r\n");
    assert_eq!(
        peer.client.deadline(),
        Some(NOW.after(ClientTimeouts::default().quit))
    );
    peer.hears("221 bye\r\n");
    assert_eq!(peer.outcomes(), ["1: ok 250", "closed"]);
}

// A large content waits for the recipients; a body of dots comes in bounded batches.
#[test]
fn large_content() {
    let mut peer = Peer::ready(1, ALL);
    peer.client.config.eager_bytes_max = 3;
    assert!(
        peer.sends(transaction(1, &["b@y.example"], "abcd"))
            .ends_with("RCPT TO:<b@y.example>\r\n")
    );
    peer.hears("250 ok\r\n250 ok\r\n");
    assert_eq!(peer.said(), "BDAT 4 LAST\r\nabcd");
    peer.hears("250 ok\r\n");
    assert!(
        peer.sends(transaction(2, &["b@y.example"], "abcd"))
            .ends_with("RCPT TO:<b@y.example>\r\n")
    );
    peer.hears("250 ok\r\n550 no\r\n");
    assert_eq!(peer.outcomes(), ["1: ok 250", "2: no 5.0.0"]);
    let mut peer = Peer::ready(1, PIPELINING);
    let dots: &'static [u8] = b".\r\n".repeat(10_000).leak();
    let sent = Transaction {
        content: vec![Bytes::from_static(dots)],
        ..transaction(1, &["b@y.example"], "")
    };
    peer.sends(sent);
    peer.hears("250 ok\r\n250 ok\r\n354 go\r\n");
    let (mut batch, mut total) = (Vec::new(), 0);
    while peer.client.poll_output(NOW, &mut batch) {
        assert!(batch.len() <= limits::SMTP_OUTPUT_PIECES_MAX);
        total += batch.iter().map(Bytes::len).sum::<usize>();
        batch.clear();
    }
    assert_eq!(total, 40_000 + 3);
}

/// How many transactions ended, all delivered, in order from the token `next`.
fn delivered(events: impl Iterator<Item = ClientEvent>, next: u64) -> u64 {
    let mut count = 0;
    for event in events {
        if let ClientEvent::Done { token, outcomes } = event {
            assert_eq!(token, next + count, "in order");
            let ok = |outcome: &Outcome| matches!(outcome, Outcome::Delivered { .. });
            assert!(outcomes.iter().all(ok), "{outcomes:?}");
            count += 1;
        }
    }
    count
}

/// Our two ends, octets split at random: what goes in comes out, once, in order.
#[test]
fn client_and_server_agree() {
    let mut seed = 9u64;
    let mut next = move |bound: usize| {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % bound
    };
    let words: [&[u8]; 6] = [b".", b"..\r\n", b"\r\n", b"text", b"\r\n.\r\n", b"A: b\r\n"];
    for round in 0..600 {
        let config_server = ServerConfig {
            pipelining: round % 2 == 0,
            chunking: round % 3 == 0,
            ..ServerConfig::new("mx.example")
        };
        let mut server = Server::new(config_server.into(), IpAddr::V4(Ipv4Addr::LOCALHOST), true);
        let mut client = Client::new(config(1 + (round % 4) as u8));
        let (mut to_client, mut to_server) = (Vec::new(), Vec::new());
        server.greet(&mut to_client);
        let (mut expected, mut got, mut events) = (Vec::new(), Vec::new(), Vec::new());
        let (mut sent, mut done) = (0u64, 0u64);
        for step in 0.. {
            assert!(step < 100_000, "it ends");
            if done == 5 && sent == 5 {
                break;
            }
            if sent < 5 && client.can_send() {
                let mut body = Vec::new();
                (0..next(9)).for_each(|_| body.extend_from_slice(words[next(6)]));
                let cut = next(body.len() + 1);
                let pieces = vec![
                    Bytes::from(body[..cut].to_vec()),
                    Bytes::from(body[cut..].to_vec()),
                ];
                let chunks = client.capabilities().chunking;
                if !chunks && !body.is_empty() && !body.ends_with(b"\r\n") {
                    body.extend_from_slice(b"\r\n");
                }
                expected.push(body);
                let transaction = transaction(sent, &["b@y.example", "c@y.example"], "");
                assert_eq!(
                    client.send(Transaction {
                        content: pieces,
                        ..transaction
                    }),
                    None
                );
                sent += 1;
            }
            let mut pieces = Vec::new();
            client.poll_output(NOW, &mut pieces);
            pieces
                .iter()
                .for_each(|piece| to_server.extend_from_slice(piece));
            let take = next(to_server.len() + 1);
            let (used, event) = server.input(&to_server[..take], Wall(0), &mut to_client);
            to_server.drain(..used);
            if let Some(ServerEvent::Message(inbound)) = event {
                let content = inbound.content.as_slice();
                let from = memchr::memmem::find(content, b" +0000\r\n").unwrap() + 8;
                got.push(content[from..].to_vec());
                assert_eq!(inbound.envelope.recipients.len(), 2);
                server.accepted(MessageId(sent), &mut to_client);
            }
            let take = next(to_client.len() + 1);
            client.input(&to_client[..take], NOW, &mut events);
            to_client.drain(..take);
            done += delivered(events.drain(..), done);
        }
        assert_eq!(got, expected);
    }
}

/// What a hostile peer is made of.
const WORDS: [&[u8]; 24] = [
    b"250 ok\r\n",
    b"250 ok\r\n",
    b"250 2.1.5 ok\r\n",
    b"250-a\r\n",
    b"354 go\r\n",
    b"354 go\r\n",
    b"421 bye\r\n",
    b"450 4.2.1 x\r\n",
    b"550 5.1.1 x\r\n",
    b"552 many\r\n",
    b"452 many\r\n",
    b"220 hi\r\n",
    b"250-PIPELINING\r\n250-CHUNKING\r\n250 SIZE\r\n",
    b"250-x\r\n250 PIPELINING\r\n",
    b"503 no\r\n",
    b"554 no\r\n",
    b"\r\n",
    b"\xff",
    b"250",
    b" ",
    b"521 no\r\n",
    b"251 x\n",
    b"250-LIMITS RCPTMAX=1 RCPTDOMAINMAX=1\r\n",
    b"250 ok\r\n250 ok\r\n250 ok\r\n",
];

/// A peer that says anything: every transaction ends exactly once, with an outcome per recipient.
#[test]
fn fuzz_client_session() {
    let mut seed = 77u64;
    let mut next = move |bound: usize| {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % bound
    };
    let (mut delivered, mut ambiguous) = (0, 0);
    for _ in 0..8000 {
        let mut client = Client::new(config(1 + next(3) as u8));
        let (mut events, mut sent, mut pieces) = (Vec::new(), 0u64, Vec::new());
        let hello = [ALL, PIPELINING, CHUNKING, PLAIN][next(4)];
        let split = memchr::memchr(b'\n', hello).unwrap() + 1;
        if next(8) > 0 {
            client.input(&hello[..split], NOW, &mut events);
            client.poll_output(NOW, &mut pieces);
            client.input(&hello[split..], NOW, &mut events);
        }
        for _ in 0..next(16) {
            if client.can_send() && next(2) == 0 {
                let transaction = transaction(sent, &["b@y.example", "c@z.example"], ".a\r\nb\r\n");
                events.extend(client.send(transaction));
                sent += 1;
            }
            if next(5) > 0 {
                while client.poll_output(NOW, &mut pieces) {}
            }
            if next(20) == 0 {
                client.quit();
            }
            client.input(WORDS[next(WORDS.len())], NOW, &mut events);
        }
        client.unsent(next(3) as u64);
        client.disconnected(Disconnect::Eof, &mut events);
        let mut tokens = Vec::new();
        for event in &events {
            if let ClientEvent::Done { token, outcomes } = event {
                assert_eq!(outcomes.len(), 2);
                tokens.push(*token);
                delivered += outcomes
                    .iter()
                    .filter(|one| matches!(one, Outcome::Delivered { .. }))
                    .count();
                ambiguous += outcomes
                    .iter()
                    .filter(|one| matches!(one, Outcome::Ambiguous { .. }))
                    .count();
            }
        }
        tokens.sort_unstable();
        assert_eq!(tokens, (0..sent).collect::<Vec<_>>(), "each ends once");
        assert_eq!(
            events
                .iter()
                .filter(|event| **event == ClientEvent::Closed)
                .count(),
            1
        );
        assert_eq!(events.last(), Some(&ClientEvent::Closed));
        assert_eq!((client.in_flight(), client.deadline()), (0, None));
    }
    assert!(
        delivered > 100 && ambiguous > 100,
        "{delivered} {ambiguous}"
    );
}
