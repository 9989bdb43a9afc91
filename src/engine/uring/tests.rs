//! The engine against the real kernel, over loopback and a temporary directory.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::pin::pin;
use std::process::Command;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{Backlog, listen, setsockopt, sockopt};

use super::{UringConfig, UringPort, UringRuntime, UringSetupError, UringStream};
use crate::engine::mesh::mailbox;
use crate::engine::port::{Moving, MovingSocket};
use crate::engine::{Block, Class, Guarded, Map, NetError, OpenMode, Port, Signal, Stream};
use crate::limits::TASKS_PER_TURN;
use crate::time::Mono;

/// Long enough that reaching it means that something is lost.
const LONG: Duration = Duration::from_secs(30);

fn run_with<F: Future>(config: UringConfig, main: impl FnOnce(UringPort) -> F) -> F::Output {
    let runtime = UringRuntime::new(config).expect("io_uring");
    let main = main(runtime.port());
    runtime.run(main)
}

fn run<F: Future>(main: impl FnOnce(UringPort) -> F) -> F::Output {
    run_with(UringConfig::default(), main)
}

fn any_port() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

fn long(port: &UringPort) -> Mono {
    port.now().after(LONG)
}

/// A connection and its other end, both on this shard.
async fn pair(port: &UringPort) -> (UringStream, UringStream) {
    let mut listener = port.listen(any_port()).expect("listen");
    let address = port.listening_on(&listener);
    let near = port
        .connect(None, address, long(port))
        .await
        .expect("connect");
    let far = port.accept(&mut listener).await.expect("accept");
    (near, far)
}

/// A connection whose other end is a plain blocking socket.
async fn foreign(port: &UringPort) -> (UringStream, TcpStream) {
    let listener = TcpListener::bind(any_port()).expect("bind");
    let address = listener.local_addr().expect("address");
    let near = port
        .connect(None, address, long(port))
        .await
        .expect("connect");
    (near, listener.accept().expect("accept").0)
}

/// Echoes until the peer's end, on a task for each connection.
fn serve_echo(port: &UringPort) -> SocketAddr {
    let mut listener = port.listen(any_port()).expect("listen");
    let address = port.listening_on(&listener);
    let server = port.clone();
    port.spawn(Class::Ingress, async move {
        while let Ok(mut stream) = server.accept(&mut listener).await {
            let deadline = long(&server);
            server.spawn(Class::Ingress, async move {
                while let Ok(chunk) = stream.recv(deadline).await {
                    let copy = Bytes::copy_from_slice(&chunk);
                    drop(chunk);
                    if copy.is_empty() || stream.send(vec![copy], deadline).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    address
}

async fn read_exactly(stream: &mut UringStream, len: usize, deadline: Mono) -> Vec<u8> {
    let mut got = Vec::new();
    while got.len() < len {
        let chunk = stream.recv(deadline).await.expect("recv");
        assert!(
            !chunk.is_empty(),
            "early end after {} of {len} bytes",
            got.len()
        );
        got.extend_from_slice(&chunk);
    }
    got
}

/// Sends nothing for long: a blocked send that fills every buffer between the two ends.
fn huge() -> Vec<Bytes> {
    vec![Bytes::from(vec![7u8; 1 << 20]); 64]
}

/// Polls a future once, then drops it.
async fn poll_once<F: Future>(future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    poll_fn(|context| {
        Poll::Ready(match future.as_mut().poll(context) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        })
    })
    .await
}

/// Runs the named test again in a process of its own, with a word that tells it so.
fn in_own_process(name: &str) -> std::process::Output {
    Command::new(std::env::current_exe().expect("path of the test"))
        .args([
            "--exact",
            &format!("engine::uring::tests::{name}"),
            "--nocapture",
        ])
        .env("POSTRIDER_TEST_CHILD", name)
        .output()
        .expect("child")
}

fn is_child(name: &str) -> bool {
    std::env::var("POSTRIDER_TEST_CHILD").is_ok_and(|child| child == name)
}

// Bytes come back as they were sent, both ends know each other, and the peer's end is an empty
// chunk, again and again.
#[test]
fn echoes() {
    run(|port| async move {
        let deadline = long(&port);
        let (mut near, mut far) = pair(&port).await;
        assert_eq!(near.peer(), far.local());
        assert_eq!(near.local(), far.peer());
        let pieces = vec![Bytes::from("hello, "), Bytes::new(), Bytes::from("world")];
        near.send(pieces, deadline).await.expect("send");
        near.send(Vec::new(), deadline)
            .await
            .expect("nothing to send");
        near.finish();
        let got = read_exactly(&mut far, 12, deadline).await;
        assert_eq!(got, b"hello, world");
        for _ in 0..2 {
            assert!(far.recv(deadline).await.expect("end").is_empty());
        }
        far.send(vec![Bytes::from(got)], deadline)
            .await
            .expect("send back");
        assert_eq!(read_exactly(&mut near, 12, deadline).await, b"hello, world");
    });
}

// Single bytes, and more pieces than one gathered write takes, arrive complete and in order.
#[test]
fn sends_any_split() {
    run(|port| async move {
        let deadline = long(&port);
        let mut stream = port
            .connect(None, serve_echo(&port), deadline)
            .await
            .expect("connect");
        let text: Vec<u8> = (0..3000u32).map(|byte| byte as u8).collect();
        for byte in &text[..100] {
            stream
                .send(vec![Bytes::copy_from_slice(&[*byte])], deadline)
                .await
                .expect("send");
            assert_eq!(read_exactly(&mut stream, 1, deadline).await, [*byte]);
        }
        let pieces = text
            .iter()
            .map(|byte| Bytes::copy_from_slice(&[*byte]))
            .collect();
        stream.send(pieces, deadline).await.expect("send");
        assert_eq!(read_exactly(&mut stream, text.len(), deadline).await, text);
    });
}

// 64 MiB through a peer that reads at its own pace: partial sends continue, receives pause.
#[test]
fn sends_more_than_the_kernel_takes() {
    run(|port| async move {
        let deadline = long(&port);
        let (mut near, mut far) = pair(&port).await;
        port.spawn(Class::Egress, async move {
            near.send(huge(), deadline).await.expect("send");
        });
        let mut count = 0usize;
        loop {
            let chunk = far.recv(deadline).await.expect("recv");
            if chunk.is_empty() {
                break;
            }
            assert!(chunk.iter().all(|byte| *byte == 7));
            count += chunk.len();
        }
        assert_eq!(count, 64 << 20);
    });
}

// A dropped receive loses nothing; a dropped send, connect, accept and sleep leave nothing behind.
#[test]
fn dropped_futures_do_no_harm() {
    run(|port| async move {
        let deadline = long(&port);
        let (mut near, mut far) = pair(&port).await;
        for _ in 0..10 {
            assert!(poll_once(far.recv(deadline)).await.is_none());
        }
        near.send(vec![Bytes::from("x")], deadline)
            .await
            .expect("send");
        assert_eq!(read_exactly(&mut far, 1, deadline).await, b"x");
        assert!(poll_once(near.send(huge(), deadline)).await.is_none());
        drop(near);
        while far
            .recv(deadline)
            .await
            .is_ok_and(|chunk| !chunk.is_empty())
        {}

        let mut listener = port.listen(any_port()).expect("listen");
        let address = port.listening_on(&listener);
        assert!(poll_once(port.accept(&mut listener)).await.is_none());
        assert!(
            poll_once(port.connect(None, address, deadline))
                .await
                .is_none()
        );
        assert!(poll_once(port.sleep_until(deadline)).await.is_none());
        let near = port
            .connect(None, address, deadline)
            .await
            .expect("connect");
        // The dropped connect may have come through; this one does in any case.
        loop {
            let stream = port.accept(&mut listener).await.expect("accept");
            if stream.peer() == near.local() {
                break;
            }
        }
    });
}

// Deadlines end receive, send and connect, none of them early, and a later one counts.
#[test]
fn deadlines_end_what_hangs() {
    run(|port| async move {
        let soon = || port.now().after(Duration::from_millis(30));
        let (mut near, mut far) = pair(&port).await;
        assert!(poll_once(far.recv(soon())).await.is_none());
        let deadline = soon();
        assert_eq!(far.recv(deadline).await.err(), Some(NetError::TimedOut));
        assert!(port.now() >= deadline);
        let deadline = soon();
        assert_eq!(
            near.send(huge(), deadline).await.err(),
            Some(NetError::TimedOut)
        );
        assert!(port.now() >= deadline);
        assert_eq!(far.recv(Mono::NEVER).await.map(|chunk| chunk[0]), Ok(7));

        // A listener that takes nobody: once its backlog is full, the kernel ignores who connects.
        let listener = TcpListener::bind(any_port()).expect("bind");
        listen(&listener, Backlog::new(0).expect("backlog")).expect("listen");
        let address = listener.local_addr().expect("address");
        let mut held = Vec::new();
        loop {
            let deadline = soon();
            match port.connect(None, address, deadline).await {
                Ok(stream) => held.push(stream),
                Err(error) => {
                    assert_eq!(error, NetError::TimedOut);
                    assert!(port.now() >= deadline);
                    break;
                }
            }
            assert!(held.len() < 100, "a backlog of 0 took a hundred");
        }
    });
}

// Each way in which a connection cannot be made has its name.
#[test]
fn connect_errors_have_names() {
    run(|port| async move {
        let deadline = long(&port);
        let gone = TcpListener::bind(any_port()).expect("bind");
        let address = gone.local_addr().expect("address");
        drop(gone);
        let refused = port.connect(None, address, deadline).await;
        assert_eq!(refused.err(), Some(NetError::Refused));
        // RFC 5737: an address that no host has.
        let foreign = Some("192.0.2.1".parse().expect("address"));
        let nowhere = port.connect(foreign, address, deadline).await;
        assert_eq!(nowhere.err(), Some(NetError::AddressNotAvailable));
        let taken = TcpListener::bind(any_port()).expect("bind");
        let address = taken.local_addr().expect("address");
        assert_eq!(port.listen(address).err(), Some(NetError::AddressInUse));
    });
}

// The peer sees the source address that was asked for; the same for version 6 where there is one.
#[test]
fn connects_from_a_source() {
    run(|port| async move {
        let deadline = long(&port);
        for (source, host) in [("127.1.2.3", "127.0.0.1:0"), ("::1", "[::1]:0")] {
            let Ok(mut listener) = port.listen(host.parse().expect("address")) else {
                assert_eq!(source, "::1", "version 4 is always there");
                continue;
            };
            let source = source.parse().expect("address");
            let address = port.listening_on(&listener);
            let near = port
                .connect(Some(source), address, deadline)
                .await
                .expect("connect");
            let far = port.accept(&mut listener).await.expect("accept");
            assert_eq!(far.peer().ip(), source);
            assert_eq!(near.local(), far.peer());
            assert_eq!(far.local(), address);
        }
    });
}

// Two shards listen on the same port.
#[test]
fn shards_share_a_port() {
    run(|port| async move {
        let listener = port.listen(any_port()).expect("listen");
        let address = port.listening_on(&listener);
        let again = port.listen(address).expect("listen again");
        assert_eq!(port.listening_on(&again), address);
    });
}

// With two small buffers for 50 connections, everybody gets through.
#[test]
fn two_buffers_serve_fifty() {
    let config = UringConfig {
        buffers: 2,
        buffer_bytes: 512,
        entries: 8,
        ..Default::default()
    };
    run_with(config, |port| async move {
        let deadline = long(&port);
        let address = serve_echo(&port);
        let left = Rc::new(Cell::new(50));
        let done = Signal::default();
        for number in 0..50u8 {
            let (client, left, done) = (port.clone(), Rc::clone(&left), done.clone());
            port.spawn(Class::Egress, async move {
                let mut stream = client
                    .connect(None, address, deadline)
                    .await
                    .expect("connect");
                let text = vec![number; 3000];
                for _ in 0..5 {
                    let pieces = vec![Bytes::from(text.clone())];
                    stream.send(pieces, deadline).await.expect("send");
                    assert_eq!(read_exactly(&mut stream, 3000, deadline).await, text);
                }
                left.set(left.get() - 1);
                done.raise();
            });
        }
        while left.get() > 0 {
            done.raised().await;
        }
    });
}

// While every buffer is held, others wait; each buffer that comes back serves one of them, although
// idle connections stand in the same line.
#[test]
fn a_returned_buffer_finds_who_needs_it() {
    let config = UringConfig {
        buffers: 2,
        buffer_bytes: 512,
        ..Default::default()
    };
    run_with(config, |port| async move {
        let deadline = long(&port);
        let mut held = Vec::new();
        let mut ends = Vec::new();
        for _ in 0..2 {
            let (mut near, mut far) = pair(&port).await;
            near.send(vec![Bytes::from("held")], deadline)
                .await
                .expect("send");
            held.push(far.recv(deadline).await.expect("recv"));
            ends.push((near, far));
        }
        // Idle connections that ask while nothing is free, then one that has bytes.
        for _ in 0..10 {
            let (near, mut far) = pair(&port).await;
            assert!(poll_once(far.recv(deadline)).await.is_none());
            ends.push((near, far));
        }
        let (mut near, mut far) = pair(&port).await;
        near.send(vec![Bytes::from("late")], deadline)
            .await
            .expect("send");
        let wait = port.now().after(Duration::from_millis(20));
        assert_eq!(far.recv(wait).await.err(), Some(NetError::TimedOut));
        assert_eq!(&*held[0], b"held");
        held.pop();
        assert_eq!(&*far.recv(deadline).await.expect("recv"), b"late");
        assert_eq!(&*held[0], b"held");
    });
}

// A peer that resets is an error for the reader and for the sender.
#[test]
fn a_reset_is_told() {
    run(|port| async move {
        let deadline = long(&port);
        let (mut near, far) = foreign(&port).await;
        let none = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        setsockopt(&far, sockopt::Linger, &none).expect("linger");
        drop(far);
        assert_eq!(near.recv(deadline).await.err(), Some(NetError::Reset));
        let sent = near.send(vec![Bytes::from("x")], deadline).await;
        assert_eq!(sent.err(), Some(NetError::Reset));
    });
}

// What was sent before a drop arrives, and the peer reads an end and no reset, even though it had
// sent bytes that nobody read: arrived or not, received or not.
#[test]
fn dropping_delivers_the_last_words() {
    for reads in [0, 1, 2] {
        run(|port| async move {
            let deadline = long(&port);
            let (mut near, mut far) = foreign(&port).await;
            far.write_all(&[1; 100]).expect("write");
            if reads > 0 {
                assert_eq!(near.recv(deadline).await.expect("recv").len(), 100);
            }
            if reads > 1 {
                // The receive is armed: these wait in the engine.
                far.write_all(&[2; 100]).expect("write");
                port.sleep_until(port.now().after(Duration::from_millis(5)))
                    .await;
            }
            near.send(vec![Bytes::from("bye")], deadline)
                .await
                .expect("send");
            drop(near);
            let reader = thread::spawn(move || {
                let mut got = Vec::new();
                let end = far.read_to_end(&mut got);
                (got, end.map_err(|error| error.kind()))
            });
            while !reader.is_finished() {
                port.sleep_until(port.now().after(Duration::from_millis(1)))
                    .await;
            }
            let (got, end) = reader.join().expect("reader");
            assert_eq!(
                (got.as_slice(), end),
                (&b"bye"[..], Ok(3)),
                "reads = {reads}"
            );
        });
    }
}

// A connection may be dropped at any moment, by a task or with the runtime.
#[test]
fn closes_in_every_phase() {
    for phase in 0..6 {
        run(|port| async move {
            let deadline = long(&port);
            let (mut near, mut far) = pair(&port).await;
            match phase {
                0 => {}
                1 => assert!(poll_once(near.recv(deadline)).await.is_none()),
                2 => assert!(poll_once(near.send(huge(), deadline)).await.is_none()),
                3 => {
                    far.send(huge()[..1].to_vec(), deadline)
                        .await
                        .expect("send");
                    assert!(!near.recv(deadline).await.expect("recv").is_empty());
                }
                4 => {
                    far.finish();
                    assert!(near.recv(deadline).await.expect("recv").is_empty());
                }
                _ => {
                    drop(far);
                    drop(near);
                    return;
                }
            }
            drop(near);
            if phase == 3 {
                return;
            }
            // Whatever was under way, the other end learns that it is over.
            while far
                .recv(deadline)
                .await
                .is_ok_and(|chunk| !chunk.is_empty())
            {}
        });
    }
}

// A thousand connections at once echo, then all go; nothing of them stays.
#[test]
fn serves_a_thousand() {
    run(|port| async move {
        let deadline = long(&port);
        let address = serve_echo(&port);
        let mut streams = Vec::new();
        for _ in 0..1000 {
            streams.push(
                port.connect(None, address, deadline)
                    .await
                    .expect("connect"),
            );
        }
        for round in 0..3u8 {
            for stream in &mut streams {
                stream
                    .send(vec![Bytes::from(vec![round; 100])], deadline)
                    .await
                    .expect("send");
            }
            for stream in &mut streams {
                assert_eq!(read_exactly(stream, 100, deadline).await, [round; 100]);
            }
        }
        drop(streams);
        while port.0.reactor.borrow().streams_open() > 0 {
            port.sleep_until(port.now().after(Duration::from_millis(1)))
                .await;
        }
    });
}

// Sleepers wake in the order of their dates and never early; one in the past is ready at once.
#[test]
fn timers_fire_in_order() {
    run(|port| async move {
        let order = Rc::new(RefCell::new(Vec::new()));
        let done = Signal::default();
        let start = port.now();
        for millis in [70, 5, 0, 130, 12, 64, 1, 65] {
            let (order, done, clock) = (Rc::clone(&order), done.clone(), port.clone());
            port.spawn(Class::Background, async move {
                let deadline = start.after(Duration::from_millis(millis));
                clock.sleep_until(deadline).await;
                assert!(clock.now() >= deadline);
                order.borrow_mut().push(millis);
                done.raise();
            });
        }
        while order.borrow().len() < 8 {
            done.raised().await;
        }
        assert_eq!(*order.borrow(), [0, 1, 5, 12, 64, 65, 70, 130]);
        assert!(port.wall().0 > 1_700_000_000_000);
        assert_ne!(port.random(), port.random());
    });
}

// Who serves a session comes before deliveries that were ready earlier, again and again; deliveries
// keep their order among themselves and are not left out.
#[test]
fn deliveries_wait_for_sessions() {
    run(|port| async move {
        let order = Rc::new(RefCell::new(Vec::new()));
        let done = Signal::default();
        for number in 0..3 {
            let (order, done) = (Rc::clone(&order), done.clone());
            let class = if number == 2 {
                Class::Ingress
            } else {
                Class::Egress
            };
            port.spawn(class, async move {
                for _ in 0..2 {
                    order.borrow_mut().push(number);
                    crate::engine::yield_now().await;
                }
                done.raise();
            });
        }
        while order.borrow().len() < 6 {
            done.raised().await;
        }
        assert_eq!(*order.borrow(), [2, 0, 1, 2, 0, 1]);
    });
}

// Whoever gives way is not polled again before the kernel had its turn (each reads the clocks
// anew), whatever its class and whoever else is ready.
#[test]
fn who_gives_way_waits_for_the_kernel() {
    run(|port| async move {
        let (left, done) = (Rc::new(Cell::new(3)), Signal::default());
        for class in [Class::Sign, Class::Ingress, Class::Egress] {
            let (clock, left, done) = (port.clone(), Rc::clone(&left), done.clone());
            port.spawn(class, async move {
                for _ in 0..200 {
                    let before = clock.now();
                    crate::engine::yield_now().await;
                    assert!(clock.now() > before, "{class:?} was polled twice in a turn");
                }
                left.set(left.get() - 1);
                done.raise();
            });
        }
        while left.get() > 0 {
            done.raised().await;
        }
    });
}

// While more comes in than goes out, sessions do not all go first; else they do.
#[test]
fn hurried_deliveries_come_between_sessions() {
    for hurried in [false, true] {
        run(|port| async move {
            let order = Rc::new(RefCell::new(Vec::new()));
            port.hurry(hurried);
            let mine = Rc::clone(&order);
            port.spawn(Class::Egress, async move {
                for _ in 0..100 {
                    mine.borrow_mut().push('d');
                    crate::engine::yield_now().await;
                }
            });
            crate::engine::yield_now().await;
            for _ in 0..TASKS_PER_TURN {
                let order = Rc::clone(&order);
                port.spawn(Class::Ingress, async move { order.borrow_mut().push('s') });
            }
            while order.borrow().iter().filter(|who| **who == 's').count() < TASKS_PER_TURN {
                crate::engine::yield_now().await;
            }
            let order = order.borrow();
            let first = order.iter().position(|who| *who == 's').unwrap_or(0);
            let last = order.iter().rposition(|who| *who == 's').unwrap_or(0);
            let between = order[first..last].iter().filter(|who| **who == 'd').count();
            if hurried {
                assert!(between > 2, "{between} deliveries between sessions");
            } else {
                assert_eq!(between, 0);
            }
        });
    }
}

// Letting go of a map leaves it to who else holds it.
#[test]
fn a_map_lives_as_long_as_its_last_holder() {
    let directory = Directory::new("unmap");
    run(|port| async move {
        let path = directory.0.join("file");
        std::fs::write(&path, vec![9; 20 << 20]).expect("write");
        let file = port.open(&path, OpenMode::Existing).expect("open");
        let map = port.map(&file).expect("map");
        let other = std::sync::Arc::clone(&map);
        port.unmap(map).await;
        port.remove(&path).await.expect("remove");
        let again = port.remove(&path).await.err().map(|error| error.kind());
        assert_eq!(again, Some(io::ErrorKind::NotFound));
        assert!(other.bytes().iter().all(|byte| *byte == 9));
        port.unmap(other).await;
    });
}

struct Directory(PathBuf);

impl Directory {
    /// Under the build directory, which is a real file system where /tmp may be none.
    fn new(name: &str) -> Self {
        let exe = std::env::current_exe().expect("path of the test");
        let name = format!("uring-{name}-{}", std::process::id());
        let path = exe.parent().expect("directory").join(name);
        std::fs::create_dir_all(&path).expect("directory");
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("{}: {error}", self.0.display());
        }
    }
}

async fn writes_and_reads(port: UringPort, directory: PathBuf) {
    let path = directory.join("segment");
    let file = port.open(&path, OpenMode::Create).expect("create");
    let again = port
        .open(&path, OpenMode::Create)
        .err()
        .map(|error| error.kind());
    assert_eq!(again, Some(io::ErrorKind::AlreadyExists));
    // More than one chunk of zeros, and a rest.
    let size = (2 << 20) + 4096;
    port.prewrite(&file, size, || Duration::ZERO)
        .await
        .expect("prewrite");
    assert_eq!(port.file_len(&file).expect("len"), size);
    let map = port.map(&file).expect("map");
    assert!(map.bytes().iter().all(|byte| *byte == 0));
    let mut block = Block::zeroed(8192);
    block.fill(42);
    let (block, done) = port.write_durable(&file, 4096, block).await;
    done.expect("write");
    assert_eq!(block[8191], 42);
    // The map that was read before the write sees it too.
    assert_eq!(map.bytes()[4095..4098], [0, 42, 42]);
    let map = port
        .map(&port.open(&path, OpenMode::Existing).expect("open"))
        .expect("map");
    port.prefetch(&map, 5000..6000).await.expect("prefetch");
    assert_eq!(map.bytes()[4095..4098], [0, 42, 42]);
    assert_eq!(map.bytes()[12287..12289], [42, 0]);
    // Past the page cache, to the end of the file and no further; nothing beyond it.
    let (block, read) = port.read(&file, 4096, Block::zeroed(12288)).await;
    assert_eq!(read.expect("read"), 12288);
    assert_eq!(block[8190..8194], [42, 42, 0, 0]);
    let (_, read) = port.read(&file, 2 << 20, Block::zeroed(8192)).await;
    assert_eq!(read.expect("the last block"), 4096);
    let (_, read) = port.read(&file, size, Block::zeroed(4096)).await;
    assert_eq!(read.expect("the end"), 0);
    assert!(port.read(&file, 100, Block::zeroed(1)).await.1.is_err());
    let (_, odd) = port.write_durable(&file, 100, Block::zeroed(1)).await;
    assert_eq!(
        odd.err().map(|error| error.kind()),
        Some(io::ErrorKind::InvalidInput)
    );
    assert!(port.prewrite(&file, 100, || Duration::ZERO).await.is_err());
    port.sync_directory(&directory).await.expect("sync");
    assert_eq!(port.list(&directory).expect("list"), ["segment"]);
    assert!(port.free_space(&directory).expect("space") > 0);
    port.remove(&path).await.expect("remove");
    assert!(port.list(&directory).expect("list").is_empty());
}

// A block written durably is read back through a map, with O_DIRECT where the file system has it,
// and on one that may not (tmpfs of older kernels).
#[test]
fn a_durable_block_is_read_back() {
    let directory = Directory::new("durable");
    run(|port| writes_and_reads(port, directory.0.clone()));
    let memory = PathBuf::from(format!("/dev/shm/uring-durable-{}", std::process::id()));
    if std::fs::create_dir_all(&memory).is_ok() {
        let memory = Directory(memory);
        run(|port| writes_and_reads(port, memory.0.clone()));
    }
}

// Cold pages come in through the ring; a range past the map, or past the file's end (which would be
// a signal when touched), is an error.
#[test]
fn prefetch_reports_what_cannot_be_read() {
    let directory = Directory::new("prefetch");
    run(|port| async move {
        let path = directory.0.join("file");
        std::fs::write(&path, vec![9; 3 << 20]).expect("write");
        let file = port.open(&path, OpenMode::Existing).expect("open");
        let map = port.map(&file).expect("map");
        port.prefetch(&map, 0..3 << 20).await.expect("prefetch");
        port.prefetch(&map, 10..10).await.expect("nothing");
        assert_eq!(map.bytes()[(3 << 20) - 1], 9);
        assert!(port.is_resident(&map, &(5000..20_000)));
        assert!(
            !port.is_resident(&map, &(0..3 << 20)),
            "too much to look at"
        );
        let outside = port.prefetch(&map, 0..(3 << 20) + 1).await;
        assert_eq!(
            outside.err().map(|error| error.kind()),
            Some(io::ErrorKind::InvalidInput)
        );
        // What the spool never does: the file shrinks below its map.
        std::fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .expect("open")
            .set_len(0)
            .expect("cut");
        assert!(port.prefetch(&map, 0..4096).await.is_err());
    });
}

// Other threads wake a sleeping shard: by the remote waker, a mailbox, and a task's own waker.
#[test]
fn other_threads_wake_the_shard() {
    run(|port| async move {
        let (sender, receiver) = mailbox(port.remote_waker(), 16);
        let threads: Vec<_> = (0..4u64)
            .map(|_| {
                let sender = sender.clone();
                thread::spawn(move || {
                    for number in 0..1000u64 {
                        let mut message = number;
                        while let Err(back) = sender.try_send(message) {
                            message = back;
                            thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        let mut got = Vec::new();
        while got.len() < 4000 {
            port.remote_wakes().await;
            receiver.recv_all(&mut got);
        }
        assert_eq!(got.iter().sum::<u64>(), 4 * 999 * 1000 / 2);
        for thread in threads {
            thread.join().expect("thread");
        }

        let slot = Arc::new(Mutex::new((false, None::<Waker>)));
        let other = Arc::clone(&slot);
        let thread = thread::spawn(move || {
            loop {
                let mut slot = other.lock().expect("lock");
                if let Some(waker) = slot.1.take() {
                    slot.0 = true;
                    drop(slot);
                    return waker.wake();
                }
                drop(slot);
                thread::yield_now();
            }
        });
        poll_fn(|context| {
            let mut slot = slot.lock().expect("lock");
            slot.1 = Some(context.waker().clone());
            if slot.0 {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
        thread.join().expect("thread");
    });
}

// A waker that outlives its runtime does nothing.
#[test]
fn a_late_waker_is_harmless() {
    let (waker, remote) = run(|port| async move {
        let waker = poll_fn(|context| Poll::Ready(context.waker().clone())).await;
        (waker, port.remote_waker())
    });
    remote.wake();
    waker.wake_by_ref();
    let late = thread::spawn(move || waker.wake());
    late.join().expect("thread");
}

// A panic ends its own task and frees what it held; the rest goes on.
#[test]
fn a_panic_stays_in_its_task() {
    run(|port| async move {
        let deadline = long(&port);
        let (near, mut far) = pair(&port).await;
        port.spawn(Class::Ingress, async move {
            let _near = near;
            panic!("on purpose");
        });
        assert!(far.recv(deadline).await.expect("recv").is_empty());
        let mut stream = port
            .connect(None, serve_echo(&port), deadline)
            .await
            .expect("connect");
        stream
            .send(vec![Bytes::from("alive")], deadline)
            .await
            .expect("send");
        assert_eq!(read_exactly(&mut stream, 5, deadline).await, b"alive");
    });
}

// A panic in the spool's class takes the node down.
#[test]
fn a_panic_in_the_spool_ends_the_process() {
    const NAME: &str = "a_panic_in_the_spool_ends_the_process";
    if is_child(NAME) {
        return run(|port| async move {
            port.spawn(Class::Spool, async { panic!("on purpose") });
            port.sleep_until(long(&port)).await;
        });
    }
    assert_eq!(in_own_process(NAME).status.signal(), Some(libc::SIGABRT));
}

// A panic in any task that is the only one of its kind takes the node down: it could not go on.
#[test]
fn a_panic_of_a_keeper_ends_the_process() {
    const NAME: &str = "a_panic_of_a_keeper_ends_the_process";
    if is_child(NAME) {
        return run(|port| async move {
            port.spawn(Class::Control, async { panic!("on purpose") });
            port.sleep_until(long(&port)).await;
        });
    }
    assert_eq!(in_own_process(NAME).status.signal(), Some(libc::SIGABRT));
}

// An assertion that fails in the books that all connections share ends the process, whoever's task
// it was.
#[test]
fn a_panic_within_shared_books_ends_the_process() {
    const NAME: &str = "a_panic_within_shared_books_ends_the_process";
    if is_child(NAME) {
        return run(|port| async move {
            let books = Rc::new(Guarded::new(port.clone(), "the books", 1));
            let shared = Rc::clone(&books);
            port.spawn(Class::Ingress, async move {
                let books = shared.borrow_mut();
                assert_eq!(*books, 2, "on purpose");
            });
            port.sleep_until(long(&port)).await;
        });
    }
    assert_eq!(in_own_process(NAME).status.signal(), Some(libc::SIGABRT));
}

// Out of descriptors, the listener waits and then goes on; nobody gets an error.
#[test]
fn accept_waits_out_missing_descriptors() {
    const NAME: &str = "accept_waits_out_missing_descriptors";
    if !is_child(NAME) {
        let child = in_own_process(NAME);
        assert!(
            child.status.success(),
            "{}",
            String::from_utf8_lossy(&child.stderr)
        );
        return;
    }
    run(|port| async move {
        let deadline = long(&port);
        let mut listener = port.listen(any_port()).expect("listen");
        let address = port.listening_on(&listener);
        let first = TcpStream::connect(address).expect("connect");
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("limit");
        let full = first.as_raw_fd() as u64 + 1;
        setrlimit(Resource::RLIMIT_NOFILE, full, hard).expect("limit");
        assert!(poll_once(port.accept(&mut listener)).await.is_none());
        let again = Rc::new(Cell::new(false));
        let (later, raised) = (port.clone(), Rc::clone(&again));
        port.spawn(Class::Control, async move {
            later
                .sleep_until(later.now().after(Duration::from_millis(20)))
                .await;
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("limit");
            raised.set(true);
        });
        let mut stream = port.accept(&mut listener).await.expect("accept");
        assert!(again.get(), "accepted without a descriptor");
        assert_eq!(stream.peer(), first.local_addr().expect("address"));
        drop(first);
        assert!(stream.recv(deadline).await.expect("recv").is_empty());
    });
}

// A runtime that ends gives back every descriptor, whatever its tasks were doing.
#[test]
fn a_runtime_leaves_no_descriptor() {
    const NAME: &str = "a_runtime_leaves_no_descriptor";
    if !is_child(NAME) {
        let child = in_own_process(NAME);
        assert!(
            child.status.success(),
            "{}",
            String::from_utf8_lossy(&child.stderr)
        );
        return;
    }
    let count = || {
        std::fs::read_dir("/proc/self/fd")
            .expect("descriptors")
            .count()
    };
    let before = count();
    run(|port| async move {
        let deadline = long(&port);
        let address = serve_echo(&port);
        for phase in 0..30 {
            let client = port.clone();
            port.spawn(Class::Egress, async move {
                let mut stream = client
                    .connect(None, address, deadline)
                    .await
                    .expect("connect");
                match phase % 3 {
                    0 => drop(stream.recv(deadline).await),
                    1 => drop(stream.send(huge(), deadline).await),
                    _ => client.sleep_until(deadline).await,
                }
            });
        }
        port.sleep_until(port.now().after(Duration::from_millis(20)))
            .await;
    });
    assert_eq!(count(), before);
}

// Ten engines live in one process, each on its thread, and talk to each other.
#[test]
fn ten_runtimes_in_one_process() {
    let (ready, address) = std::sync::mpsc::channel();
    let stop = Arc::new(std::sync::Barrier::new(10));
    let waiting = Arc::clone(&stop);
    let server = thread::spawn(move || {
        let (sender, receiver) = std::sync::mpsc::channel();
        run(|port| async move {
            ready
                .send((serve_echo(&port), port.remote_waker()))
                .expect("main");
            thread::spawn(move || {
                waiting.wait();
                sender.send(()).expect("server");
            });
            while receiver.try_recv().is_err() {
                port.remote_wakes().await;
            }
        });
    });
    let (address, waker) = address.recv().expect("server");
    let clients: Vec<_> = (0..9u8)
        .map(|number| {
            let (stop, waker) = (Arc::clone(&stop), waker.clone());
            thread::spawn(move || {
                run(|port| async move {
                    let deadline = long(&port);
                    let mut stream = port
                        .connect(None, address, deadline)
                        .await
                        .expect("connect");
                    for _ in 0..20 {
                        let pieces = vec![Bytes::from(vec![number; 2000])];
                        stream.send(pieces, deadline).await.expect("send");
                        let got = read_exactly(&mut stream, 2000, deadline).await;
                        assert_eq!(got, [number; 2000]);
                    }
                });
                stop.wait();
                waker.wake();
            })
        })
        .collect();
    for client in clients {
        client.join().expect("client");
    }
    // The message may come after the last ring: ring until the server is gone.
    while !server.is_finished() {
        waker.wake();
        thread::yield_now();
    }
    server.join().expect("server");
}

// Each refusal of the kernel names what to change.
#[test]
fn setup_errors_say_what_to_change() {
    for (errno, word) in [
        (libc::ENOSYS, "6.1"),
        (libc::EINVAL, "6.1"),
        (libc::EPERM, "kernel.io_uring_disabled"),
        (libc::ENOMEM, "LimitMEMLOCK"),
        (libc::EMFILE, "LimitNOFILE"),
        (libc::EIO, "Input/output"),
    ] {
        let text = UringSetupError::from_errno(errno).to_string();
        assert!(text.contains(word), "{text}");
    }
    let config = UringConfig {
        cpu: Some(1023),
        ..Default::default()
    };
    let error = UringRuntime::new(config)
        .err()
        .map(|error| error.to_string());
    assert!(error.is_some_and(|text| text.contains("CPU 1023")));
}

// A connection moves to another runtime and back while its peer keeps sending: every octet arrives
// once and in order, also those that came during a move and those that a holder handed back.
#[test]
fn a_connection_moves_between_threads_without_losing_an_octet() {
    const OCTETS: u32 = 400_000;
    const MOVES: usize = 40;
    let listener = TcpListener::bind(any_port()).expect("bind");
    let address = listener.local_addr().expect("address");
    let peer = thread::spawn(move || {
        let mut peer = TcpStream::connect(address).expect("connect");
        let octets: Vec<u8> = (0..OCTETS).map(|at| (at % 251) as u8).collect();
        for part in octets.chunks(997) {
            peer.write_all(part).expect("the connection stays");
        }
        let mut rest = Vec::new();
        peer.read_to_end(&mut rest).expect("an orderly end");
        rest
    });
    let mut moving = run(|port| async move {
        let stream = port
            .adopt(Moving {
                socket: MovingSocket::Descriptor(listener.accept().expect("accept").0.into()),
                peer: address,
                local: None,
                unread: Vec::new(),
            })
            .expect("our own kind");
        stream.depart(Vec::new()).await.expect("descriptors")
    });
    let mut got = 0;
    for turn in 0..MOVES {
        // A thread of its own each time, as shards have.
        let hop = move || {
            run(|port| async move {
                let mut stream = port.adopt(moving).expect("our own kind");
                let chunk = stream.recv(long(&port)).await.expect("more to come");
                let used = chunk.len().min(1 + 97 * turn);
                for (at, octet) in (got..).zip(&chunk[..used]) {
                    assert_eq!(*octet, (at % 251) as u8, "octet {at} in turn {turn}");
                }
                let rest = chunk[used..].to_vec();
                drop(chunk);
                let used = u32::try_from(used).expect("short");
                (stream.depart(rest).await.expect("descriptors"), got + used)
            })
        };
        (moving, got) = thread::spawn(hop).join().expect("no panic");
    }
    run(|port| async move {
        let mut stream = port.adopt(moving).expect("our own kind");
        while got < OCTETS {
            let chunk = stream.recv(long(&port)).await.expect("more to come");
            assert!(!chunk.is_empty(), "the end came early");
            for octet in chunk.iter() {
                assert_eq!(*octet, (got % 251) as u8, "octet {got}");
                got += 1;
            }
        }
        let bye = vec![Bytes::from_static(b"bye")];
        stream.send(bye, long(&port)).await.expect("the peer reads");
    });
    assert_eq!(peer.join().expect("no panic"), b"bye");
}
