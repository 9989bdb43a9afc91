//! The codec's share of a message: what the two SMTP machines cost without sockets and disk.
//!
//! Run with `cargo bench --bench smtp`. The message has 10 KiB in lines of 76 columns, the size
//! that all figures of the README are about.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use postrider::message::MessageId;
use postrider::smtp::client::{Client, ClientConfig, ClientEvent, Transaction};
use postrider::smtp::command;
use postrider::smtp::data::{LineRule, Stuffer, Unstuffer};
use postrider::smtp::server::{Server, ServerConfig, ServerEvent};
use postrider::time::{Mono, Wall};

const NOW: Wall = Wall(1_790_000_000_000);

/// 10 KiB: a short header and base64-like lines of 76 columns.
fn message() -> Vec<u8> {
    let mut content = b"From: a@x.example\r\nTo: b@y.example\r\nSubject: bench\r\n\r\n".to_vec();
    while content.len() < 10 << 10 {
        content.extend_from_slice(&[b'x'; 76]);
        content.extend_from_slice(b"\r\n");
    }
    content
}

fn server() -> Server {
    let config = Arc::new(ServerConfig::new("mx.example"));
    let mut server = Server::new(config, IpAddr::V4(Ipv4Addr::LOCALHOST), true);
    let mut out = Vec::new();
    server.input(b"EHLO client.example\r\n", NOW, &mut out);
    server
}

/// One transaction through the server, in as few pieces as the machine allows.
fn serve(server: &mut Server, session: &[u8], out: &mut Vec<u8>) {
    server.set_next_id(MessageId(42));
    let (used, event) = server.input(session, NOW, out);
    assert_eq!(used, session.len());
    let Some(ServerEvent::Message(inbound)) = event else {
        panic!("no message")
    };
    black_box(&inbound);
    server.accepted(MessageId(42), out);
}

fn commands(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("command");
    for (name, line) in [
        (
            "mail",
            &b"MAIL FROM:<bounce+0123456789@news.example.com> SIZE=10240 BODY=8BITMIME"[..],
        ),
        ("rcpt", b"RCPT TO:<customer.name@mail.example.net>"),
        ("bdat", b"BDAT 10240 LAST"),
    ] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| command::parse(black_box(line)))
        });
    }
    group.finish();
}

fn data(criterion: &mut Criterion) {
    let content = message();
    let mut wire: Vec<u8> = Stuffer::new(vec![Bytes::from(content.clone())])
        .flatten()
        .collect();
    let mut group = criterion.benchmark_group("data");
    group.throughput(Throughput::Bytes(content.len() as u64));
    group.bench_function("line_rule_10k", |bencher| {
        bencher.iter(|| {
            let mut rule = LineRule::default();
            rule.feed(black_box(&content));
            rule.is_kept()
        });
    });
    group.bench_function("unstuff_10k", |bencher| {
        let mut out = Vec::with_capacity(wire.len());
        bencher.iter(|| {
            out.clear();
            Unstuffer::default().feed(black_box(&wire), |span| out.extend_from_slice(span))
        });
    });
    wire.truncate(0);
    let shared = Bytes::from(content.clone());
    group.bench_function("stuff_10k", |bencher| {
        bencher.iter(|| Stuffer::new(vec![black_box(&shared).clone()]).count());
    });
    group.finish();
}

fn servers(criterion: &mut Criterion) {
    let content = message();
    let envelope = format!(
        "MAIL FROM:<bounce+0123456789@news.example.com> SIZE={}\r\nRCPT TO:<b@y.example>\r\n",
        content.len()
    );
    let data = [envelope.as_bytes(), b"DATA\r\n", &content, b".\r\n"].concat();
    let bdat = [
        envelope.as_bytes(),
        format!("BDAT {} LAST\r\n", content.len()).as_bytes(),
        &content,
    ]
    .concat();
    let mut group = criterion.benchmark_group("server");
    group.throughput(Throughput::Bytes(content.len() as u64));
    for (name, session) in [("data_10k", &data), ("bdat_10k", &bdat)] {
        let mut server = server();
        let mut out = Vec::with_capacity(1024);
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                out.clear();
                serve(&mut server, black_box(session), &mut out);
            });
        });
    }
    // As the reactor delivers it: buffers of 4 KiB.
    let (mut server, mut out) = (server(), Vec::with_capacity(1024));
    group.bench_function("data_10k_in_4k_reads", |bencher| {
        bencher.iter(|| {
            out.clear();
            server.set_next_id(MessageId(42));
            for read in data.chunks(4096) {
                if let (_, Some(ServerEvent::Message(inbound))) = server.input(read, NOW, &mut out)
                {
                    black_box(&inbound);
                    server.accepted(MessageId(42), &mut out);
                }
            }
        });
    });
    group.finish();
}

/// A client that is ready, for a peer with this reply to EHLO.
fn ready(hello: &[u8]) -> Client {
    let mut client = Client::new(ClientConfig::new("client.example"));
    let (mut events, mut pieces) = (Vec::new(), Vec::new());
    client.input(b"220 hi\r\n", Mono(0), &mut events);
    client.poll_output(Mono(0), &mut pieces);
    client.input(hello, Mono(0), &mut events);
    assert_eq!(events, [ClientEvent::Ready]);
    client
}

/// A name, the peer's reply to EHLO, and what it answers to one transaction.
type Mode = (&'static str, &'static [u8], &'static [&'static [u8]]);

fn clients(criterion: &mut Criterion) {
    let content = Bytes::from(message());
    let transaction = || Transaction {
        token: 1,
        sender: Bytes::from_static(b"bounce+0123456789@news.example.com"),
        recipients: vec![Bytes::from_static(b"customer.name@mail.example.net")],
        content: vec![content.clone()],
        size: content.len() as u64,
        ..Transaction::default()
    };
    let mut group = criterion.benchmark_group("client");
    let modes: [Mode; 2] = [
        (
            "bdat_10k",
            b"250-mx\r\n250-PIPELINING\r\n250-SIZE\r\n250 CHUNKING\r\n",
            &[b"250 2.1.0 ok\r\n250 2.1.5 ok\r\n250 2.0.0 Ok: queued as 0123456789abcdef\r\n"],
        ),
        (
            "data_10k",
            b"250-mx\r\n250-SIZE\r\n250 PIPELINING\r\n",
            &[
                b"250 2.1.0 ok\r\n250 2.1.5 ok\r\n354 go\r\n",
                b"250 2.0.0 Ok: queued as 0123456789abcdef\r\n",
            ],
        ),
    ];
    for (name, hello, replies) in modes {
        let mut client = ready(hello);
        let (mut pieces, mut events) = (Vec::new(), Vec::new());
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                transaction,
                |transaction| {
                    events.clear();
                    assert_eq!(client.send(transaction), None);
                    for reply in replies {
                        pieces.clear();
                        while client.poll_output(Mono(1), &mut pieces) {}
                        client.input(black_box(reply), Mono(2), &mut events);
                    }
                    assert_eq!(events.len(), 1);
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, commands, data, servers, clients);
criterion_main!(benches);
