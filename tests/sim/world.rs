//! The simulator does what its documentation says: scenarios, each over several seeds.

use std::cell::RefCell;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use postrider::engine::mesh::mailbox;
use postrider::engine::sim::{
    CrashKind, DiskFaults, NetFaults, RunEnd, SimHost, SimOptions, SimPort, SimWorld,
};
use postrider::engine::{Block, Class, Map, NetError, OpenMode, Port, Stream};
use postrider::time::Mono;

const SEEDS: u64 = 40;
const STEPS: u64 = 1_000_000;
const DIR: &str = "/spool";

/// The smallest window that a test draws.
const WINDOW_MIN: usize = 100;

/// Runs `main` on a port of `host` and hands out what it returns.
fn run<T: 'static>(world: &SimWorld, port: &SimPort, main: impl Future<Output = T> + 'static) -> T {
    let result = Rc::new(RefCell::new(None));
    let shared = Rc::clone(&result);
    port.spawn(Class::Control, async move {
        let output = main.await;
        shared.replace(Some(output));
    });
    let end = world.run_until(Mono::NEVER, STEPS, || result.borrow().is_some());
    assert_eq!(end, RunEnd::Reached, "seed {}", world.seed());
    result.take().expect("run_until waited for it")
}

fn ip(last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, last))
}

fn hosts(world: &SimWorld) -> (SimHost, SimHost) {
    let (left, right) = (world.host("left"), world.host("right"));
    left.add_address(ip(1));
    right.add_address(ip(2));
    left.make_directory(Path::new(DIR));
    (left, right)
}

fn far(port: &SimPort) -> Mono {
    port.now().after(Duration::from_secs(3_600))
}

/// Echoes each connection until its end.
fn serve_echo(host: &SimHost) -> SocketAddr {
    let port = host.port();
    let address = SocketAddr::new(ip(2), 25);
    let mut listener = port.listen(address).unwrap();
    let acceptor = port.clone();
    port.spawn(Class::Ingress, async move {
        loop {
            let mut stream = acceptor.accept(&mut listener).await.unwrap();
            let port = acceptor.clone();
            acceptor.spawn(Class::Ingress, async move {
                while let Ok(chunk) = stream.recv(far(&port)).await {
                    if chunk.is_empty() || stream.send(vec![chunk], far(&port)).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// Sends `sent` in parts that fit the smallest window, collects what comes back until the end.
async fn call_echo(port: SimPort, address: SocketAddr, sent: Vec<u8>) -> Result<Vec<u8>, NetError> {
    let mut stream = port.connect(Some(ip(1)), address, far(&port)).await?;
    assert_eq!((stream.peer(), stream.local().ip()), (address, ip(1)));
    let mut got = Vec::new();
    for (number, part) in sent.chunks(WINDOW_MIN).enumerate() {
        let pieces = part.chunks(7).map(Bytes::copy_from_slice).collect();
        stream.send(pieces, far(&port)).await?;
        while got.len() < number * WINDOW_MIN + part.len() {
            let chunk = stream.recv(far(&port)).await?;
            assert!(!chunk.is_empty(), "ended early");
            got.extend_from_slice(&chunk);
        }
    }
    stream.finish();
    loop {
        let chunk = stream.recv(far(&port)).await?;
        if chunk.is_empty() {
            return Ok(got);
        }
        got.extend_from_slice(&chunk);
    }
}

fn split() -> SimOptions {
    let mut options = SimOptions::calm();
    options.net.split = 1_000_000;
    options.net.single_bytes = 300_000;
    options.net.window = WINDOW_MIN as u64..=5_000;
    options
}

fn text(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n % 251) as u8).collect()
}

// However the bytes are cut, and however small the window, they arrive whole and in order.
#[test]
fn echo_survives_any_split() {
    for seed in 0..SEEDS {
        let world = SimWorld::new(seed, split());
        let (left, right) = hosts(&world);
        let address = serve_echo(&right);
        let port = left.port();
        let got = run(&world, &port, call_echo(port.clone(), address, text(3_000)));
        assert_eq!(got, Ok(text(3_000)), "seed {seed}");
    }
}

fn echo_hash(seed: u64) -> u64 {
    let world = SimWorld::new(seed, SimOptions::swarm(seed));
    let (left, right) = hosts(&world);
    let address = serve_echo(&right);
    let port = left.port();
    // The outcome may be any; what counts is that it is the same.
    drop(run(
        &world,
        &port,
        call_echo(port.clone(), address, text(3_000)),
    ));
    world.trace_hash()
}

// One seed is one history; different seeds are different ones.
#[test]
fn a_seed_decides_everything() {
    let once: Vec<u64> = (0..SEEDS).map(echo_hash).collect();
    let twice: Vec<u64> = (0..SEEDS).map(echo_hash).collect();
    assert_eq!(once, twice);
    let mut distinct = once;
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len() as u64, SEEDS);
}

/// The outcome of one call in a network with these faults.
fn call_with(seed: u64, change: impl FnOnce(&mut NetFaults)) -> Result<Vec<u8>, NetError> {
    let mut options = SimOptions::calm();
    change(&mut options.net);
    let world = SimWorld::new(seed, options);
    let (left, right) = hosts(&world);
    let address = serve_echo(&right);
    let port = left.port();
    run(&world, &port, call_echo(port.clone(), address, text(3_000)))
}

// Each fault of a connection attempt, and of a connection, shows as what it is; none corrupts
// bytes.
#[test]
fn network_faults_show_as_what_they_are() {
    for seed in 0..SEEDS {
        assert_eq!(
            call_with(seed, |f| f.refuse = 1_000_000),
            Err(NetError::Refused)
        );
        assert_eq!(
            call_with(seed, |f| f.ignore = 1_000_000),
            Err(NetError::TimedOut)
        );
        assert_eq!(
            call_with(seed, |f| f.unreachable = 1_000_000),
            Err(NetError::Unreachable)
        );
        let within = |faults: &mut NetFaults| faults.strike_bytes = 5_000;
        let reset = call_with(seed, |f| {
            within(f);
            f.reset = 1_000_000;
        });
        assert_eq!(reset, Err(NetError::Reset), "seed {seed}");
        let silence = call_with(seed, |f| {
            within(f);
            f.silence = 1_000_000;
        });
        assert_eq!(silence, Err(NetError::TimedOut), "seed {seed}");
    }
}

// Nobody listens, and addresses that are not the host's, are refused as the kernel does.
#[test]
fn addresses_belong_to_their_hosts() {
    let world = SimWorld::new(1, SimOptions::calm());
    let (left, right) = hosts(&world);
    let port = left.port();
    assert!(matches!(
        port.listen(SocketAddr::new(ip(2), 25)),
        Err(NetError::AddressNotAvailable)
    ));
    let target = SocketAddr::new(ip(2), 25);
    let inner = port.clone();
    let (nobody, foreign) = run(&world, &port, async move {
        let nobody = inner.connect(None, target, far(&inner)).await.err();
        let foreign = inner.connect(Some(ip(2)), target, far(&inner)).await.err();
        (nobody, foreign)
    });
    assert_eq!(nobody, Some(NetError::Refused));
    assert_eq!(foreign, Some(NetError::AddressNotAvailable));
    // Two shards of one process share an address, as SO_REUSEPORT lets them; a second process does
    // not.
    let (first, second) = (right.port().listen(target), right.port().listen(target));
    assert!(first.is_ok() && second.is_ok());
}

// A process that is killed resets or ends its connections, its tasks are gone, and the next process
// may listen on its address.
#[test]
fn a_crash_ends_the_process_and_nothing_else() {
    for seed in 0..SEEDS {
        let world = SimWorld::new(seed, SimOptions::calm());
        let (left, right) = hosts(&world);
        let address = serve_echo(&right);
        let port = left.port();
        let inner = port.clone();
        let mut stream = run(&world, &port, async move {
            let mut stream = inner.connect(None, address, far(&inner)).await.unwrap();
            stream
                .send(vec![Bytes::from_static(b"x")], far(&inner))
                .await
                .unwrap();
            assert_eq!(&*stream.recv(far(&inner)).await.unwrap(), b"x");
            stream
        });
        right.crash(CrashKind::Kill);
        let inner = port.clone();
        let end = run(&world, &port, async move {
            stream
                .recv(inner.now().after(Duration::from_secs(1)))
                .await
                .map(|chunk| chunk.len())
        });
        assert!(
            matches!(end, Ok(0) | Err(NetError::Reset)),
            "seed {seed}: {end:?}"
        );
        let address = serve_echo(&right);
        let got = run(&world, &port, call_echo(port.clone(), address, text(10)));
        assert_eq!(got, Ok(text(10)));
        assert_eq!(right.crashes(), 1);
    }
}

fn page(byte: u8) -> Block {
    let mut block = Block::zeroed(8_192);
    block.fill(byte);
    block
}

fn file() -> std::path::PathBuf {
    Path::new(DIR).join("log")
}

// What was acknowledged survives a power cut; what was under way is there in any part, by sectors;
// nothing else changes.
#[test]
fn a_power_cut_keeps_what_was_durable_and_tears_the_rest() {
    let (mut lost, mut kept, mut torn) = (0, 0, 0);
    for seed in 0..SEEDS * 3 {
        let mut options = SimOptions::calm();
        // Longer than a timer may be late.
        options.disk.latency = 10_000_000..=20_000_000;
        let world = SimWorld::new(seed, options);
        let (left, _) = hosts(&world);
        let port = left.port();
        let inner = port.clone();
        run(&world, &port, async move {
            let log = inner.open(&file(), OpenMode::Create).unwrap();
            inner
                .prewrite(&log, 65_536, || Duration::ZERO)
                .await
                .unwrap();
            inner.sync_directory(Path::new(DIR)).await.unwrap();
            inner.write_durable(&log, 0, page(1)).await.1.unwrap();
            let late = inner.clone();
            inner.spawn(Class::Spool, async move {
                let (_, result) = late.write_durable(&log, 8_192, page(2)).await;
                unreachable!("the crash comes before {result:?}");
            });
            inner
                .sleep_until(inner.now().after(Duration::from_nanos(1)))
                .await;
        });
        left.crash(CrashKind::PowerCut);
        let durable = left.durable(&file()).unwrap();
        let port = left.port();
        let log = port.open(&file(), OpenMode::Existing).unwrap();
        let map = port.map(&log).unwrap();
        assert_eq!(map.bytes(), durable);
        assert_eq!(durable.len(), 65_536);
        assert!(
            durable[..8_192].iter().all(|byte| *byte == 1),
            "seed {seed}"
        );
        assert!(
            durable[16_384..].iter().all(|byte| *byte == 0),
            "seed {seed}"
        );
        let sectors = durable[8_192..16_384].chunks(512);
        let whole = |sector: &[u8]| sector.iter().all(|byte| *byte == sector[0]);
        assert!(
            sectors.clone().all(whole),
            "seed {seed}: smaller than a sector"
        );
        match sectors.filter(|sector| sector[0] == 2).count() {
            0 => lost += 1,
            16 => kept += 1,
            _ => torn += 1,
        }
    }
    assert!(
        lost > 0 && kept > 0 && torn > 0,
        "{lost} lost, {kept} kept, {torn} torn"
    );
}

// A name that was not synced may be gone after a power cut, and a removed one back; never after a
// kill.
#[test]
fn names_need_a_sync_of_their_directory() {
    let (mut gone, mut back) = (0, 0);
    for seed in 0..SEEDS {
        for kind in [CrashKind::Kill, CrashKind::PowerCut] {
            let world = SimWorld::new(seed, SimOptions::calm());
            let (left, _) = hosts(&world);
            let port = left.port();
            let (old, new) = (Path::new(DIR).join("old"), Path::new(DIR).join("new"));
            let (inner, removed) = (port.clone(), old.clone());
            run(&world, &port, async move {
                drop(inner.open(&removed, OpenMode::Create).unwrap());
                inner.sync_directory(Path::new(DIR)).await.unwrap();
                inner.remove(&removed).await.unwrap();
            });
            drop(port.open(&new, OpenMode::Create).unwrap());
            left.crash(kind);
            let names = left.port().list(Path::new(DIR)).unwrap();
            let (old, new) = (
                names.contains(&"old".to_owned()),
                names.contains(&"new".to_owned()),
            );
            if kind == CrashKind::Kill {
                assert_eq!((old, new), (false, true), "seed {seed}");
            } else {
                gone += u64::from(!new);
                back += u64::from(old);
            }
        }
    }
    assert!(
        gone > 0 && gone < SEEDS && back > 0 && back < SEEDS,
        "{gone} {back}"
    );
}

// A map shows what is written after it was made; errors and a full disk are reported; a flipped bit
// is seen.
#[test]
fn a_disk_shows_writes_and_reports_errors() {
    let world = SimWorld::new(7, SimOptions::calm());
    let (left, _) = hosts(&world);
    let port = left.port();
    let inner = port.clone();
    let disk = left.clone();
    run(&world, &port, async move {
        let log = inner.open(&file(), OpenMode::Create).unwrap();
        inner
            .prewrite(&log, 65_536, || Duration::ZERO)
            .await
            .unwrap();
        inner.sync_directory(Path::new(DIR)).await.unwrap();
        let map = inner.map(&log).unwrap();
        inner.write_durable(&log, 4_096, page(3)).await.1.unwrap();
        inner.prefetch(&map, 4_096..8_192).await.unwrap();
        assert_eq!((map.bytes()[4_095], map.bytes()[4_096]), (0, 3));
        assert!(disk.flip_bit(&file(), 4_096));
        assert_eq!(map.bytes()[4_096], 2);
        assert!(!disk.flip_bit(&file(), 65_536));

        disk.set_disk(DiskFaults {
            capacity: Some(65_536),
            ..DiskFaults::calm()
        });
        assert_eq!(inner.free_space(Path::new(DIR)).unwrap(), 0);
        let full = inner
            .write_durable(&log, 65_536, page(4))
            .await
            .1
            .unwrap_err();
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
        // An overwrite needs no space.
        inner.write_durable(&log, 0, page(4)).await.1.unwrap();

        disk.set_disk(DiskFaults {
            write_error: 1_000_000,
            ..DiskFaults::calm()
        });
        let error = inner
            .write_durable(&log, 8_192, page(5))
            .await
            .1
            .unwrap_err();
        assert_eq!(error.raw_os_error(), Some(5));
        assert!(
            inner
                .open(Path::new("/absent/log"), OpenMode::Create)
                .is_err()
        );
    });
}

// A mailbox between two shards of a process wakes its reader; dates jump, the clock does not.
#[test]
fn mailboxes_and_clocks_work() {
    let world = SimWorld::new(3, SimOptions::calm());
    let (left, _) = hosts(&world);
    let (reader, writer) = (left.port(), left.port());
    let (sender, receiver) = mailbox(reader.remote_waker(), 4);
    let inner = writer.clone();
    writer.spawn(Class::Control, async move {
        for number in 0..3 {
            inner
                .sleep_until(inner.now().after(Duration::from_millis(10)))
                .await;
            sender.try_send(number).unwrap();
        }
    });
    let inner = reader.clone();
    let got = run(&world, &reader, async move {
        let mut got = Vec::new();
        while got.len() < 3 {
            inner.remote_wakes().await;
            receiver.recv_all(&mut got);
        }
        got
    });
    assert_eq!(got, [0, 1, 2]);
    let (wall, mono) = (reader.wall(), reader.now());
    left.jump_wall(-3_600_000);
    assert_eq!(wall.since(reader.wall()), Duration::from_secs(3_600));
    assert_eq!(reader.now(), mono);
}

// A crash that is set to a number of polls strikes there, and a run without anything to do says so.
#[test]
fn a_crash_can_be_set_to_any_poll() {
    let world = SimWorld::new(5, SimOptions::calm());
    let (left, right) = hosts(&world);
    let polls = Rc::new(RefCell::new(0));
    let (port, count) = (left.port(), Rc::clone(&polls));
    let inner = port.clone();
    port.spawn(Class::Background, async move {
        loop {
            *count.borrow_mut() += 1;
            inner
                .sleep_until(inner.now().after(Duration::from_millis(1)))
                .await;
        }
    });
    left.crash_after(9, CrashKind::Kill);
    let (watcher, watched) = (right.port(), left.clone());
    run(&world, &watcher, async move { watched.crashed(0).await });
    assert_eq!(*polls.borrow(), 10);
    assert_eq!(world.run_until(Mono::NEVER, STEPS, || false), RunEnd::Over);
}
