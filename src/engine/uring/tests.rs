//! The engine against the real kernel, over loopback and a temporary directory.

use std::time::Duration;

use bytes::Bytes;

use super::{UringConfig, UringPort, UringRuntime};
use crate::engine::{Class, Port, Stream};

fn run<F: Future>(main: impl FnOnce(UringPort) -> F) -> F::Output {
    let runtime = UringRuntime::new(UringConfig::default()).expect("io_uring");
    let main = main(runtime.port());
    runtime.run(main)
}

// Bytes come back as they were sent, and the peer's end is an empty chunk.
#[test]
fn echoes() {
    run(|port| async move {
        let mut listener = port
            .listen("127.0.0.1:0".parse().expect("address"))
            .expect("listen");
        let address = port.listening_on(&listener);
        let server = port.clone();
        port.spawn(Class::Ingress, async move {
            let deadline = server.now().after(Duration::from_secs(20));
            let mut stream = server.accept(&mut listener).await.expect("accept");
            loop {
                let chunk = stream.recv(deadline).await.expect("recv");
                if chunk.is_empty() {
                    break;
                }
                let copy = vec![Bytes::copy_from_slice(&chunk)];
                stream.send(copy, deadline).await.expect("send");
            }
        });
        let deadline = port.now().after(Duration::from_secs(20));
        let mut stream = port
            .connect(None, address, deadline)
            .await
            .expect("connect");
        stream
            .send(vec![Bytes::from("hello, "), Bytes::from("world")], deadline)
            .await
            .expect("send");
        let mut got = Vec::new();
        while got.len() < 12 {
            got.extend_from_slice(&stream.recv(deadline).await.expect("recv"));
        }
        assert_eq!(got, b"hello, world");
        stream.finish();
        assert!(stream.recv(deadline).await.expect("end").is_empty());
    });
}
