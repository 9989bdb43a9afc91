//! What the engine costs: CPU time per round trip of 10 KiB and of 64 bytes over 50 connections on
//! loopback, against one blocking thread per connection; and memory per idle connection.
//!
//! Plain main, no statistics: it prints a few lines to compare by eye before and after a change.
//! The client is the same in all rows, so that rows differ by the server alone.

use std::future::poll_fn;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::pin::pin;
use std::sync::mpsc;
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::sys::resource::{UsageWho, getrusage};
use postrider::engine::uring::{UringConfig, UringPort, UringRuntime};
use postrider::engine::{Class, Port, Signal, Stream};
use postrider::time::Mono;

const CONNECTIONS: usize = 50;

fn cpu(who: UsageWho) -> f64 {
    let usage = getrusage(who).expect("getrusage");
    let micros = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 * 1e6 + time.tv_usec() as f64;
    micros(usage.user_time()) + micros(usage.system_time())
}

fn runtime() -> UringRuntime {
    UringRuntime::new(UringConfig::default()).expect("io_uring")
}

fn loopback() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

/// Serves until the waker it sends along is rung.
fn uring_server(size: usize, ready: mpsc::Sender<(SocketAddr, Box<dyn Fn() + Send>)>) {
    let runtime = runtime();
    let port = runtime.port();
    runtime.run(async move {
        let mut listener = port.listen(loopback()).expect("listen");
        let address = port.listening_on(&listener);
        let waker = port.remote_waker();
        ready
            .send((address, Box::new(move || waker.wake())))
            .expect("main");
        let server = port.clone();
        port.spawn(Class::Ingress, async move {
            while let Ok(stream) = server.accept(&mut listener).await {
                server.spawn(Class::Ingress, serve(stream, size));
            }
        });
        port.remote_wakes().await;
    });
}

async fn serve<S: Stream>(mut stream: S, size: usize) {
    loop {
        let mut pieces = Vec::with_capacity(2);
        let mut left = size;
        while left > 0 {
            let Ok(chunk) = stream.recv(Mono::NEVER).await else {
                return;
            };
            if chunk.is_empty() {
                return;
            }
            left = left.saturating_sub(chunk.len());
            pieces.push(Bytes::copy_from_slice(&chunk));
        }
        if stream.send(pieces, Mono::NEVER).await.is_err() {
            return;
        }
    }
}

fn blocking_server(size: usize, ready: mpsc::Sender<(SocketAddr, Box<dyn Fn() + Send>)>) {
    let listener = TcpListener::bind(loopback()).expect("bind");
    ready
        .send((listener.local_addr().expect("address"), Box::new(|| {})))
        .expect("main");
    let threads: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let (mut stream, _) = listener.accept().expect("accept");
            stream.set_nodelay(true).expect("nodelay");
            thread::spawn(move || {
                let mut buffer = vec![0; size];
                while stream.read_exact(&mut buffer).is_ok() && stream.write_all(&buffer).is_ok() {}
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("server");
    }
}

/// Round trips over all connections for a while: how many, and the CPU time of this thread and of
/// the whole process meanwhile.
fn client(address: SocketAddr, size: usize, time: Duration) -> (u64, f64, f64) {
    let runtime = runtime();
    let port = runtime.port();
    runtime.run(async move {
        let (sender, receiver) = (Signal::default(), Signal::default());
        let count = std::rc::Rc::new(std::cell::Cell::new(0u64));
        let request = Bytes::from(vec![42u8; size]);
        let mut streams = Vec::new();
        for _ in 0..CONNECTIONS {
            streams.push(
                port.connect(None, address, Mono::NEVER)
                    .await
                    .expect("connect"),
            );
        }
        let end = port.now().after(time);
        let before = (cpu(UsageWho::RUSAGE_THREAD), cpu(UsageWho::RUSAGE_SELF));
        let left = std::rc::Rc::new(std::cell::Cell::new(CONNECTIONS));
        for mut stream in streams {
            let (port2, count, left) = (port.clone(), count.clone(), left.clone());
            let (request, sender) = (request.clone(), sender.clone());
            port.spawn(Class::Egress, async move {
                while port2.now() < end {
                    stream
                        .send(vec![request.clone()], Mono::NEVER)
                        .await
                        .expect("send");
                    let mut left = size;
                    while left > 0 {
                        let chunk = stream.recv(Mono::NEVER).await.expect("recv");
                        assert!(!chunk.is_empty());
                        left -= chunk.len();
                    }
                    count.set(count.get() + 1);
                }
                left.set(left.get() - 1);
                sender.raise();
            });
        }
        while left.get() > 0 {
            sender.raised().await;
        }
        drop(receiver);
        (
            count.get(),
            cpu(UsageWho::RUSAGE_THREAD) - before.0,
            cpu(UsageWho::RUSAGE_SELF) - before.1,
        )
    })
}

type Server = fn(usize, mpsc::Sender<(SocketAddr, Box<dyn Fn() + Send>)>);

fn measure(name: &str, server: Server, size: usize) {
    let (ready, address) = mpsc::channel();
    let server = thread::spawn(move || server(size, ready));
    let (address, stop) = address.recv().expect("server");
    let start = Instant::now();
    let (count, own, all) = client(address, size, Duration::from_secs(3));
    let seconds = start.elapsed().as_secs_f64();
    stop();
    server.join().expect("server");
    println!(
        "{name:>8} {size:>6} bytes: {:>8.0} trips/s, CPU us per trip: server {:.2}, client {:.2}",
        count as f64 / seconds,
        (all - own) / count as f64,
        own / count as f64
    );
}

fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").expect("statm");
    text.split(' ')
        .nth(1)
        .and_then(|pages| pages.parse::<usize>().ok())
        .expect("pages")
        * 4096
}

/// Memory of both ends of idle connections, each with a task that waits to receive.
fn idle_memory(count: usize) {
    let runtime = runtime();
    let port: UringPort = runtime.port();
    runtime.run(async move {
        let mut listener = port.listen(loopback()).expect("listen");
        let address = port.listening_on(&listener);
        let before = resident();
        for _ in 0..count {
            let near = port
                .connect(None, address, Mono::NEVER)
                .await
                .expect("connect");
            let far = port.accept(&mut listener).await.expect("accept");
            for mut stream in [near, far] {
                let deadline = port.now().after(Duration::from_secs(300));
                port.spawn(Class::Ingress, async move {
                    drop(stream.recv(deadline).await);
                });
            }
        }
        // Every task has armed its receive once the queue was gone through.
        let mut turns = 0;
        let mut done = pin!(poll_fn(move |context| {
            turns += 1;
            context.waker().wake_by_ref();
            if turns > 100 {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        }));
        done.as_mut().await;
        let each = (resident() - before) / (2 * count);
        println!(
            "    idle  {} connection ends: {each} bytes each, task included",
            2 * count
        );
    });
}

fn main() {
    for size in [10 << 10, 64] {
        measure("uring", uring_server, size);
        measure("blocking", blocking_server, size);
    }
    idle_memory(4000);
}
