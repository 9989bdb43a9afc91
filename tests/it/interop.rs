//! interop - programs that we did not write send through the daemon and receive from it, and the
//! receiver's copy is compared byte by byte after the trace field that we add.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use crate::harness::{Client, Daemon, PATIENCE, Scratch, Sink, header, require, run, tool_command};
use crate::samples;

fn assert_same(received: &[u8], sent: &[u8]) {
    if received == sent {
        return;
    }
    let at = received
        .iter()
        .zip(sent)
        .position(|(left, right)| left != right);
    let at = at.unwrap_or_else(|| received.len().min(sent.len()));
    let near = |bytes: &[u8]| {
        let part = &bytes[at.saturating_sub(40).min(bytes.len())..(at + 40).min(bytes.len())];
        String::from_utf8_lossy(part).into_owned()
    };
    let (got, wanted) = (near(received), near(sent));
    panic!(
        "{} and {} bytes differ at {at}: {got:?} for {wanted:?}",
        received.len(),
        sent.len()
    );
}

fn assert_trace(received: &[u8]) {
    let fields = header(received);
    let trace = &fields["received"];
    assert!(
        trace.contains("by mta.test.example") && trace.contains("+0000"),
        "{trace}"
    );
}

#[test]
fn python_smtplib_sends() {
    let Some(python) = require("python3") else {
        return;
    };
    let sink = Sink::start();
    let daemon = Daemon::start(sink.address, "");
    for message in [samples::awkward(), samples::large(300_000)] {
        let file = daemon.scratch.file("message", &message);
        let script = "import smtplib, sys\n\
            host, port, file = sys.argv[1:]\n\
            with smtplib.SMTP(host, int(port), local_hostname='client.test.example') as smtp:\n\
            \x20   refused = smtp.sendmail('sender@a.example', ['recipient@b.example',\n\
            \x20       'other@c.example'], open(file, 'rb').read())\n\
            \x20   assert not refused, refused\n";
        let ip = daemon.address.ip().to_string();
        let port = daemon.address.port().to_string();
        run(tool_command(&python)
            .args(["-c", script, &ip, &port])
            .arg(&file));
        let mut recipients = Vec::new();
        while recipients.len() < 2 {
            let received = sink.next();
            assert_eq!(received.sender, "sender@a.example");
            assert_trace(&received.content);
            assert_same(received.without_trace(), &message);
            recipients.extend(received.recipients);
        }
        recipients.sort();
        assert_eq!(recipients, ["other@c.example", "recipient@b.example"]);
    }
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn curl_sends() {
    let Some(curl) = require("curl") else { return };
    let sink = Sink::start();
    let daemon = Daemon::start(sink.address, "");
    let message = samples::large(50_000);
    let file = daemon.scratch.file("message", &message);
    let url = format!("smtp://{}/client.test.example", daemon.address);
    let mut command = tool_command(&curl);
    command.args([
        "--silent",
        "--show-error",
        "--url",
        &url,
        "--mail-from",
        "sender@a.example",
    ]);
    run(command
        .args(["--mail-rcpt", "recipient@b.example", "--upload-file"])
        .arg(&file));
    let received = sink.next();
    assert_eq!(received.recipients, ["recipient@b.example"]);
    assert_trace(&received.content);
    assert_same(received.without_trace(), &message);
}

#[test]
fn swaks_sends() {
    let Some(swaks) = require("swaks") else {
        return;
    };
    let sink = Sink::start();
    let daemon = Daemon::start(sink.address, "");
    let message = samples::awkward();
    // swaks takes a file with the line ends of Unix, stuffs dots, and ends it with one more line
    // end.
    let file = daemon.scratch.file("message", samples::unix(&message));
    let server = daemon.address.ip().to_string();
    let port = daemon.address.port().to_string();
    let mut command = tool_command(&swaks);
    command.args([
        "--server",
        &server,
        "--port",
        &port,
        "--ehlo",
        "client.test.example",
    ]);
    command.args([
        "--from",
        "sender@a.example",
        "--to",
        "recipient@b.example",
        "--no-data-fixup",
    ]);
    // Without the fix-up swaks sends what it is given: the CRs and dots are ours to put in.
    let wire = samples::stuffed(&message);
    std::fs::write(&file, &wire).unwrap();
    run(command.arg("--data").arg(format!("@{}", file.display())));
    let received = sink.next();
    assert_trace(&received.content);
    assert_same(received.without_trace(), &message);
}

#[test]
fn smtp_source_sends() {
    let Some(source) = require("smtp-source") else {
        return;
    };
    let sink = Sink::start();
    let daemon = Daemon::start(sink.address, "");
    let count = 200;
    let message = samples::awkward();
    // It takes a file with the line ends of Unix, stuffs dots itself, and ends the message with a
    // line end of its own.
    let text = samples::unix(&message);
    let text = text.strip_suffix(b"\n").unwrap();
    let file = daemon.scratch.file("message", text);
    let target = format!("inet:{}:{}", daemon.address.ip(), daemon.address.port());
    let mut command = tool_command(&source);
    command.arg("-F").arg(&file).args([
        "-s",
        "10",
        "-m",
        &count.to_string(),
        "-M",
        "client.test.example",
    ]);
    command.args(["-f", "sender@a.example", "-t", "recipient@b.example"]);
    run(command.arg(&target));
    for _ in 0..count {
        let received = sink.next();
        assert_eq!(received.sender, "sender@a.example");
        assert_trace(&received.content);
        assert_same(received.without_trace(), &message);
    }
    assert!(sink.drain().is_empty(), "more arrived than was sent");
}

/// A child that is ended with the test.
struct Background(Child);

impl Drop for Background {
    fn drop(&mut self) {
        // An error would only say that it has ended already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Waits until `address` answers with a greeting. Connecting is retried at once: between two
/// refusals lies a system call, and the patience is a deadline.
fn wait_for_greeting(address: SocketAddr) {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        while std::net::TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_err() {
            std::thread::yield_now();
        }
        // The test may have given up.
        sender.send(()).ok();
    });
    receiver.recv_timeout(PATIENCE).expect("nobody listens");
    assert_eq!(Client::connect(address).read_reply(), 220);
}

fn send(daemon: &Daemon, message: &[u8]) {
    let mut client = Client::greeted(daemon.address);
    assert_eq!(client.command("MAIL FROM:<sender@a.example>"), 250);
    assert_eq!(client.command("RCPT TO:<recipient@b.example>"), 250);
    assert_eq!(client.command("DATA"), 354);
    client.send(samples::stuffed(message));
    assert_eq!(client.read_reply(), 250, "{}", client.reply);
    assert_eq!(client.command("QUIT"), 221);
}

/// Reads `directory` again and again until it holds a file that is complete.
fn wait_for_file(directory: &Path, complete: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        for entry in std::fs::read_dir(directory).unwrap() {
            // A file may be renamed between the listing and the reading.
            let content = std::fs::read(entry.unwrap().path()).unwrap_or_default();
            if complete(&content) {
                return content;
            }
        }
        assert!(
            std::time::Instant::now() < deadline,
            "no whole message in {directory:?}"
        );
        std::thread::yield_now();
    }
}

#[test]
fn smtp_sink_receives() {
    let Some(program) = require("smtp-sink") else {
        return;
    };
    let scratch = Scratch::new();
    let address = crate::harness::free_address();
    let mut command = tool_command(&program);
    command
        .current_dir(scratch.path())
        .args(["-d", "dump.", "-u", "root"]);
    if std::env::var("USER").as_deref() != Ok("root") && !is_root() {
        command = tool_command(&program);
        command.current_dir(scratch.path()).args(["-d", "dump."]);
    }
    let target = format!("inet:{}:{}", address.ip(), address.port());
    let child = command
        .arg(&target)
        .arg("100")
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let _sink = Background(child);
    wait_for_greeting(address);
    let daemon = Daemon::start(address, "");
    let message = samples::large(20_000);
    send(&daemon, &message);
    // smtp-sink writes X- lines and its own Received field in front, and Unix line ends.
    let sent = samples::unix(&message);
    let content = wait_for_file(scratch.path(), |content| {
        content.trim_ascii_end().ends_with(sent.trim_ascii_end())
    });
    let text = String::from_utf8_lossy(&content);
    let start = text
        .find("From: Sender")
        .expect("the message's first field");
    let received = text[start..].trim_end_matches('\n');
    assert_eq!(
        received,
        String::from_utf8_lossy(&sent).trim_end_matches('\n')
    );
    assert!(
        text[..start].contains("by mta.test.example"),
        "{}",
        &text[..start]
    );
}

fn is_root() -> bool {
    let output = run(std::process::Command::new("id").arg("-u"));
    output.stdout.trim_ascii() == b"0"
}

/// What a Postfix that delivers into a maildir needs of `master.cf`.
const POSTFIX_SERVICES: &str = "cleanup unix n - n - 0 cleanup\nqmgr unix n - n 300 1 qmgr\n\
    rewrite unix - - n - - trivial-rewrite\nbounce unix - - n - 0 bounce\n\
    defer unix - - n - 0 bounce\ntrace unix - - n - 0 bounce\nproxymap unix - - n - - proxymap\n\
    error unix - - n - - error\nretry unix - - n - - error\nvirtual unix - n n - - virtual\n\
    anvil unix - - n - 1 anvil\ntlsmgr unix - - n 1000? 1 tlsmgr\n\
    postlog unix-dgram n - n - 1 postlogd\n";

/// A Postfix of Debian's package in directories of its own, that delivers everything for b.example
/// into one maildir. It needs root, because its master gives up root for each of its parts.
fn postfix(scratch: &Scratch, master: &Path, address: SocketAddr) -> Background {
    let root = scratch.path();
    let parts = master.parent().unwrap();
    let make = |name: &str| {
        let path = root.join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    };
    let (conf, mail) = (make("conf"), make("mail"));
    let queues = [
        "active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming",
        "maildrop", "pid", "private", "public", "saved", "trace",
    ];
    queues
        .iter()
        .for_each(|name| drop(make(&format!("queue/{name}"))));
    let own = |owner: &str, paths: &[&Path]| {
        run(std::process::Command::new("chown").arg(owner).args(paths));
    };
    let data = make("data");
    let paths: Vec<_> = queues
        .iter()
        .map(|name| root.join("queue").join(name))
        .collect();
    let mut paths: Vec<&Path> = paths.iter().map(AsRef::as_ref).collect();
    paths.retain(|path| !path.ends_with("pid"));
    // Users that every Debian has; Postfix wants its own, and any that is not root will do.
    own("daemon", &paths);
    own("daemon", &[&data]);
    own("nobody", &[&mail]);
    let main = format!(
        "compatibility_level = 3.6\nqueue_directory = {root}/queue\ndata_directory = {root}/data\n\
         daemon_directory = {parts}\nmail_owner = daemon\nsetgid_group = mail\n\
         shlib_directory = {shared}\nmeta_directory = {root}/conf\n\
         myhostname = postfix.test.example\nmydestination =\nalias_maps =\n\
         local_header_rewrite_clients =\ninet_protocols = ipv4\nmynetworks =\n\
         virtual_mailbox_domains = b.example\nvirtual_mailbox_base = {root}\n\
         virtual_mailbox_maps = static:mail/\nvirtual_uid_maps = static:65534\n\
         virtual_gid_maps = static:65534\nmaillog_file = {root}/log\n\
         maillog_file_prefixes = {root}\n\
         import_environment = MAIL_CONFIG LD_LIBRARY_PATH LANG=C\n",
        root = root.display(),
        parts = parts.display(),
        shared = parts.parent().unwrap().display(),
    );
    let inet = format!("{}:{} inet n - n - - smtpd\n", address.ip(), address.port());
    std::fs::write(conf.join("main.cf"), main).unwrap();
    std::fs::write(conf.join("master.cf"), inet + POSTFIX_SERVICES).unwrap();
    // Its parts run as other users and look for their configuration.
    run(std::process::Command::new("chmod")
        .arg("755")
        .args([root, &conf]));
    let mut command = tool_command(master);
    command
        .arg("-c")
        .arg(&conf)
        .arg("-d")
        .env("MAIL_CONFIG", &conf)
        .env("MAIL_LOGTAG", "postfix");
    Background(
        command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    )
}

#[test]
fn postfix_receives() {
    let Some(master) = require("master") else {
        return;
    };
    if !is_root() {
        eprintln!("SKIPPED: Postfix's master needs root");
        return;
    }
    let scratch = Scratch::new();
    let address = crate::harness::free_address();
    let _postfix = postfix(&scratch, &master, address);
    wait_for_greeting(address);
    let daemon = Daemon::start(address, "");
    let message = samples::large(100_000);
    send(&daemon, &message);
    // A maildir's files are whole from the moment they are in "new", with Unix line ends.
    let sent = samples::unix(&message);
    let new = scratch.path().join("mail/new");
    let deadline = std::time::Instant::now() + PATIENCE;
    while !new.is_dir() {
        assert!(
            std::time::Instant::now() < deadline,
            "nothing was delivered"
        );
        std::thread::yield_now();
    }
    let content = wait_for_file(&new, |content| content.len() > sent.len());
    let (head, received) = content.split_at(content.len() - sent.len());
    assert_same(received, &sent);
    let head = String::from_utf8_lossy(head);
    assert!(head.contains("by mta.test.example"), "{head}");
}
