//! fuzz - entry points for fuzzers: any octets in, a broken promise is a panic.
//!
//! What: one function per promise. The first octets of the input choose splits and modes, the rest
//! is what the peer says. `cargo test` feeds them seeded random input; a coverage-guided fuzzer can
//! call the same functions.

use std::net::{IpAddr, Ipv4Addr};

use bytes::Bytes;

use super::client::{Client, ClientConfig, ClientEvent, Disconnect, Transaction};
use super::command::{self, Command};
use super::data::{LineRule, Stuffer, Unstuffer, stuff_points};
use super::reply::{Reply, ReplyError, ReplyParser};
use super::server::{Server, ServerConfig, ServerEvent};
use crate::message::MessageId;
use crate::time::{Mono, Wall};

/// A command line is parsed or refused; its parameters can always be iterated to their end.
pub fn smtp_command(octets: &[u8]) {
    if let Ok(Command::Mail { parameters, .. } | Command::Rcpt { parameters, .. }) =
        command::parse(octets)
    {
        assert!(parameters.count() <= octets.len());
    }
}

/// Replies do not depend on the splits.
pub fn smtp_reply(octets: &[u8]) {
    let (step, octets) = step(octets);
    assert_eq!(replies(octets, step), replies(octets, octets.len().max(1)));
}

/// What a server says and takes does not depend on the splits; no message breaks the line rule.
pub fn server_session(octets: &[u8]) {
    let (step, octets) = step(octets);
    assert_eq!(serve(octets, step), serve(octets, octets.len().max(1)));
}

/// Whatever a peer says, each transaction ends once, and the connection closes once.
pub fn client_session(octets: &[u8]) {
    let (step, octets) = step(octets);
    let config = ClientConfig {
        pipeline_depth: 3,
        ..ClientConfig::new("client.example")
    };
    let (mut client, mut events, mut pieces) = (Client::new(config), Vec::new(), Vec::new());
    let mut sent = 0;
    for piece in octets.chunks(step) {
        while client.poll_output(Mono(1), &mut pieces) {
            pieces.clear();
        }
        client.input(piece, Mono(1), &mut events);
        if client.can_send() {
            let transaction = Transaction {
                token: sent,
                recipients: vec![Bytes::from_static(b"b@y.example"); 2],
                content: vec![Bytes::from_static(b".\r\n")],
                size: 3,
                ..Transaction::default()
            };
            events.extend(client.send(transaction));
            sent += 1;
        }
    }
    client.disconnected(Disconnect::Eof, &mut events);
    let done = |event: &&ClientEvent| matches!(event, ClientEvent::Done { .. });
    assert_eq!(events.iter().filter(done).count() as u64, sent);
    assert_eq!(
        events
            .iter()
            .filter(|event| **event == ClientEvent::Closed)
            .count(),
        1
    );
}

/// Stuffed and un-stuffed again, content is what it was, where it keeps the line rule.
pub fn dot_transparency(octets: &[u8]) {
    let (step, octets) = step(octets);
    let mut rule = LineRule::default();
    rule.feed(octets);
    if !rule.is_kept() {
        return;
    }
    let pieces = octets.chunks(step).map(Bytes::copy_from_slice).collect();
    let wire: Vec<u8> = Stuffer::new(pieces).flatten().collect();
    let (mut content, mut unstuffer) = (Vec::new(), Unstuffer::default());
    let mut used = 0;
    for piece in wire.chunks(step) {
        let (taken, done) = unstuffer.feed(piece, |span| content.extend_from_slice(span));
        used += taken;
        assert_eq!(done, used == wire.len(), "the end is at the end");
    }
    let closed = octets.is_empty() || octets.ends_with(b"\r\n");
    assert_eq!(
        content.strip_suffix(if closed { &b""[..] } else { b"\r\n" }),
        Some(octets)
    );
    assert_eq!(
        stuff_points(octets).count() + octets.len(),
        wire.len() - if closed { 3 } else { 5 }
    );
}

/// The first octet, as a length of splits.
fn step(octets: &[u8]) -> (usize, &[u8]) {
    octets.split_first().map_or((1, octets), |(first, rest)| {
        (usize::from(*first % 16) + 1, rest)
    })
}

fn replies(octets: &[u8], step: usize) -> (Vec<Reply>, Option<ReplyError>) {
    let (mut parser, mut replies) = (ReplyParser::default(), Vec::new());
    for mut piece in octets.chunks(step) {
        loop {
            match parser.take(&mut piece) {
                Ok(Some(reply)) => replies.push(reply.to_reply()),
                Ok(None) => break,
                Err(error) => return (replies, Some(error)),
            }
        }
    }
    (replies, None)
}

fn serve(octets: &[u8], step: usize) -> (Vec<u8>, Vec<Vec<u8>>) {
    let config = ServerConfig {
        size_max: 4096,
        recipients_max: 3,
        ..ServerConfig::new("mx.example")
    };
    let mut server = Server::new(config.into(), IpAddr::V4(Ipv4Addr::LOCALHOST), true);
    let (mut out, mut messages) = (Vec::new(), Vec::new());
    for piece in octets.chunks(step) {
        let mut rest = piece;
        while !rest.is_empty() {
            let (used, event) = server.input(rest, Wall(0), &mut out);
            rest = &rest[used..];
            match event {
                None => assert!(rest.is_empty(), "without an event everything is consumed"),
                Some(ServerEvent::Close) => return (out, messages),
                Some(ServerEvent::Message(inbound)) => {
                    let mut rule = LineRule::default();
                    rule.feed(inbound.content.as_slice());
                    assert!(rule.is_kept(), "no bare CR, no bare LF, no NUL");
                    assert!(!inbound.envelope.recipients.is_empty());
                    messages.push(inbound.content.as_slice().to_vec());
                    server.accepted(MessageId(1), &mut out);
                }
            }
        }
    }
    (out, messages)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::testing::Random;

    const WORDS: [&[u8]; 28] = [
        b"EHLO a\r\n",
        b"MAIL FROM:<a@x.example>\r\n",
        b"RCPT TO:<b@y.example>\r\n",
        b"DATA\r\n",
        b"\r\n.\r\n",
        b"BDAT 3 LAST\r\n",
        b"BDAT 2\r\n",
        b"RSET\r\n",
        b" SIZE=1 BODY=8BITMIME",
        b"<\"a\\",
        b">",
        b"=",
        b"+2B",
        b"250 ok\r\n",
        b"250-x\r\n",
        b"354 go\r\n",
        b"220 hi\r\n250-a\r\n250 PIPELINING\r\n",
        b"220 hi\r\n250-a\r\n250-PIPELINING\r\n250 CHUNKING\r\n",
        b"550 no\r\n",
        b"421 bye\r\n",
        b"\r\n",
        b".",
        b"\n",
        b"\r",
        b"\0",
        b"\xff",
        b"text",
        b"MAIL FROM:<>\r\nRCPT TO:<b@y.example>\r\n",
    ];

    // Soup of the protocols' words, thousands of cases for every hook.
    #[test]
    fn hooks_hold_on_seeded_input() {
        let mut random = Random(2026);
        for _ in 0..6000 {
            let soup = random.soup(&WORDS, 24);
            smtp_command(&soup);
            smtp_reply(&soup);
            server_session(&[b"\x03EHLO a\r\n", &soup[..]].concat());
            client_session(&soup);
            dot_transparency(&soup);
        }
        let clean: [&[u8]; 5] = [b".", b"\r\n", b"x", b"..\r\n", b"\r\n.\r\n"];
        for _ in 0..6000 {
            dot_transparency(&[b"\x02", &random.soup(&clean, 12)[..]].concat());
        }
    }
}
