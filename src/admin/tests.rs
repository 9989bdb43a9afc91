//! Tests of the admin socket over a real Unix socket, with a node made of a few lines.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use super::*;

/// A directory of this test alone, removed at its end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("postrider-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("admin.sock")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

fn exchange(socket: &Path, request: &str) -> (String, String) {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

fn get(socket: &Path, path: &str) -> (String, String) {
    exchange(socket, &format!("GET {path} HTTP/1.0\r\n\r\n"))
}

fn post(socket: &Path, path: &str, body: &str) -> (String, String) {
    let length = body.len();
    let head = format!("POST {path} HTTP/1.0\r\nContent-Type: application/json\r\n");
    exchange(
        socket,
        &format!("{head}Content-Length: {length}\r\n\r\n{body}"),
    )
}

fn status() -> NodeStatus {
    let counters = Counters {
        delivered: 41,
        ..Counters::default()
    };
    let shard = |shard| ShardStatus {
        shard,
        ready: 7,
        counters,
        ..ShardStatus::default()
    };
    NodeStatus {
        hostname: "mta1.example.com".into(),
        version: "1".into(),
        pid: 2,
        uptime_seconds: 3,
        draining: false,
        alarms: vec![],
        shards: vec![shard(0), shard(1)],
    }
}

fn spool() -> Vec<SpoolShardStatus> {
    let alarms = vec!["write: EIO".to_owned()];
    let (messages, live_bytes, segments, free_bytes) = (5, 6, 7, 8);
    vec![SpoolShardStatus {
        shard: 0,
        messages,
        live_bytes,
        segments,
        free_bytes,
        quarantined: 9,
        accepting: false,
        alarms,
    }]
}

/// A client that has left is no concern of the node.
fn send<T>(reply: tokio::sync::oneshot::Sender<T>, value: T) {
    let _ = reply.send(value);
}

fn answer(call: Call) {
    match call {
        Call::Status { reply } => send(reply, status()),
        Call::Spool { reply } => send(reply, spool()),
        Call::Suspend { selector, reply } => {
            let paths = [
                ("ip1", "a.example"),
                ("ip1", "b.example"),
                ("ip2", "a.example"),
            ];
            let hit = paths
                .iter()
                .filter(|(source, site)| selector.matches(source, site));
            send(
                reply,
                Changed {
                    paths: hit.count() as u64,
                },
            );
        }
        Call::Resume { reply, .. } => send(reply, Changed { paths: 0 }),
        Call::Release { id, reply } => send(reply, Ok(Released { id })),
        Call::Discard { reply, .. } => send(reply, Err("no such message".to_owned())),
        Call::Quarantine { reply } => {
            let (messages, total) = (Vec::new(), 3);
            send(reply, Quarantine { messages, total });
        }
        Call::ProbeSpool { reply } => send(reply, Probed { shards: 1 }),
        // As a node that ends: the way back is dropped without an answer.
        Call::Paths { reply } => drop(reply),
    }
}

/// Serves on `socket` with a node that answers as above, while `client` runs.
fn with_node(socket: &Path, client: impl FnOnce(&Path) + Send) {
    let admin = AdminSocket::bind(socket).unwrap();
    let (sender, mut receiver) = calls();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut builder = tokio::runtime::Builder::new_current_thread();
            let runtime = builder.enable_all().build().unwrap();
            runtime.block_on(async {
                tokio::spawn(async move {
                    while let Some(call) = receiver.recv().await {
                        answer(call);
                    }
                });
                let until = async move { drop(stopped.await) };
                serve(admin, sender, until).await.unwrap();
            });
        });
        // Dropping `stop` ends the server, also when the client panics.
        let _stop = stop;
        client(socket);
    });
}

#[test]
fn requests_reach_the_node_and_answers_come_back() {
    let scratch = Scratch::new("admin");
    with_node(&scratch.socket(), |socket| {
        let mode = std::fs::metadata(socket).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let (line, body) = get(socket, "/status");
        assert_eq!(line, "HTTP/1.0 200 OK");
        assert_eq!(serde_json::from_str::<NodeStatus>(&body).unwrap(), status());
        let (_, body) = get(socket, "/spool");
        assert_eq!(
            serde_json::from_str::<Vec<SpoolShardStatus>>(&body).unwrap(),
            spool()
        );
        let (_, body) = get(socket, "/metrics");
        assert!(
            body.contains("postrider_delivered_total{shard=\"1\"} 41\n"),
            "{body}"
        );
        assert!(
            body.contains("postrider_spool_accepting{shard=\"0\"} 0\n"),
            "{body}"
        );
        assert_eq!(
            post(socket, "/suspend", "{\"source\":\"ip1\"}").1,
            "{\"paths\":2}"
        );
        assert_eq!(
            post(socket, "/suspend", "{\"site\":\"A.example\"}").1,
            "{\"paths\":2}"
        );
        assert_eq!(post(socket, "/spool/probe", "").1, "{\"shards\":1}");
    });
    assert!(!scratch.socket().exists(), "the socket stayed behind");
}

#[test]
fn wrong_requests_get_a_reason() {
    let scratch = Scratch::new("admin-wrong");
    with_node(&scratch.socket(), |socket| {
        for (body, part) in [
            ("{}", "name a source"),
            ("{\"sight\":\"x\"}", "unknown field"),
            ("nonsense", "Failed to parse"),
        ] {
            let (line, answer) = post(socket, "/suspend", body);
            assert_eq!(line, "HTTP/1.0 400 Bad Request", "{body}");
            assert!(answer.contains(part), "{body}: {answer}");
        }
        let large = format!("{{\"site\":\"{}\"}}", "x".repeat(100_000));
        assert!(post(socket, "/suspend", &large).0.contains("400"));
        assert!(get(socket, "/nothing").0.contains("404"));
        assert!(get(socket, "/suspend").0.contains("405"));
        assert!(get(socket, "/paths").0.contains("503"));
    });
}

// A stale socket is replaced; one that answers, and a file of another kind, are not.
#[test]
fn only_a_stale_socket_is_replaced() {
    let scratch = Scratch::new("admin-bind");
    let path = scratch.socket();
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let first = AdminSocket::bind(&path).unwrap();
    let error = AdminSocket::bind(&path).unwrap_err().to_string();
    assert!(
        error.contains("another process answers") && error.contains("admin.sock"),
        "{error}"
    );
    drop(first);
    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(
        AdminSocket::bind(&path),
        Err(AdminError::NotASocket { .. })
    ));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    let error = AdminSocket::bind(Path::new("/nowhere/at/all/s"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("/nowhere/at/all/s"), "{error}");
    // The directory itself is made, as a fresh /run has none.
    let fresh = scratch.socket().with_file_name("fresh").join("admin.sock");
    drop(AdminSocket::bind(&fresh).unwrap());
    assert!(fresh.parent().unwrap().is_dir());
}

// A node that ends does not take away the socket of its successor.
#[test]
fn a_successors_socket_stays() {
    let scratch = Scratch::new("admin-successor");
    let path = scratch.socket();
    let first = AdminSocket::bind(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let second = AdminSocket::bind(&path).unwrap();
    drop(first);
    assert!(UnixStream::connect(&path).is_ok());
    drop(second);
    assert!(!path.exists());
}
