//! harness - a daemon in a directory of its own, a receiver that keeps every byte, a small client.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

/// How long anything may take before the test calls it a hang.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The program under test.
pub(crate) fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_postrider"))
}

/// Whether the long forms are asked for: the README's specification names them.
pub(crate) fn is_long() -> bool {
    std::env::var("POSTRIDER_LONG").as_deref() == Ok("1")
}

/// Looks again and again until it is so, or calls it a hang. Parked in between, so that what is
/// waited for has the processor.
pub(crate) fn wait_until(what: &str, mut so: impl FnMut() -> bool) {
    let patience = if is_long() {
        10 * PATIENCE
    } else {
        3 * PATIENCE
    };
    let deadline = Instant::now() + patience;
    while !so() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::park_timeout(Duration::from_millis(10));
    }
}

/// What the node at this admin socket says of itself.
pub(crate) fn status(socket: &Path) -> serde_json::Value {
    let mut command = program();
    let output = run(command
        .args(["ctl", "--json", "status", "--socket"])
        .arg(socket));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A directory of one test, removed at its end unless the test fails.
#[derive(Debug)]
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("postrider-it-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("kept: {}", self.0.display());
        } else if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("cannot remove {}: {error}", self.0.display());
        }
    }
}

/// A port that was free a moment ago, on an address that only this call has: each call takes its
/// own address of 127/8, so that no two tests meet.
pub(crate) fn free_address() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed) % 250 + 1;
    let process = std::process::id().to_be_bytes();
    let ip = IpAddr::from([
        127,
        process[2] | 1,
        process[3],
        u8::try_from(number).unwrap(),
    ]);
    TcpListener::bind(SocketAddr::new(ip, 0))
        .unwrap()
        .local_addr()
        .unwrap()
}

/// A running `postrider run`; killed when dropped.
#[derive(Debug)]
pub(crate) struct Daemon {
    pub(crate) address: SocketAddr,
    child: Child,
    pub(crate) scratch: Scratch,
}

/// The configuration of a test's daemon: everything to `via`, plus `more`.
pub(crate) fn config(scratch: &Scratch, listen: SocketAddr, via: SocketAddr, more: &str) -> String {
    let data = scratch.path().join("data");
    let socket = scratch.path().join("admin.sock");
    format!(
        "[node]\nhostname = \"mta.test.example\"\ndata_dir = \"{}\"\nshards = 1\n\
         [admin]\nsocket = \"{}\"\n\
         [spool]\nsegment_size = \"64MiB\"\nfree_space_min = \"1MiB\"\n\
         [[route]]\ndomains = [\"*\"]\nvia = \"{via}\"\n\
         [[listener]]\naddress = \"{listen}\"\nrelay_from = [\"127.0.0.0/8\"]\n{more}\n",
        data.display(),
        socket.display(),
    )
}

impl Daemon {
    /// Starts a daemon whose `[[listener]]` also has the lines `more`, and waits until it is ready.
    pub(crate) fn start(via: SocketAddr, more: &str) -> Self {
        Self::start_with(via, more, |config| config)
    }

    /// As [`Daemon::start`], with a configuration that was changed.
    pub(crate) fn start_with(
        via: SocketAddr,
        more: &str,
        change: impl FnOnce(String) -> String,
    ) -> Self {
        let scratch = Scratch::new();
        std::fs::create_dir(scratch.path().join("data")).unwrap();
        let address = free_address();
        let text = change(config(&scratch, address, via, more));
        let config = scratch.file("postrider.toml", text);
        let log = std::fs::File::create(scratch.path().join("log")).unwrap();
        let mut child = program()
            .args(["run", "--config"])
            .arg(&config)
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let line = first_line(child.stdout.take().unwrap());
        let daemon = Self {
            address,
            child,
            scratch,
        };
        assert_eq!(
            line.as_deref(),
            Some("postrider: ready"),
            "its log: {}",
            daemon.log()
        );
        daemon
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.scratch.path().join("log")).unwrap_or_default()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn status(&self) -> serde_json::Value {
        status(&self.scratch.path().join("admin.sock"))
    }

    /// The answer of `postrider ctl --json` to these words.
    pub(crate) fn ctl(&self, words: &[&str]) -> serde_json::Value {
        let socket = self.scratch.path().join("admin.sock");
        let mut command = program();
        let command = command.args(["ctl", "--json"]).args(words);
        let output = run(command.arg("--socket").arg(socket));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Ends it in order, and returns its exit code.
    pub(crate) fn stop(mut self) -> Option<i32> {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &pid])
                .status()
                .unwrap()
                .success()
        );
        let (sender, receiver) = channel();
        let stopped = thread::scope(|scope| {
            scope.spawn(|| sender.send(self.child.wait().unwrap().code()).unwrap());
            receiver.recv_timeout(PATIENCE)
        });
        stopped.expect("the daemon did not end on SIGTERM")
    }

    /// Whether it still runs and takes a message: what a test of bad input ends with.
    pub(crate) fn assert_alive(&mut self) {
        assert!(
            self.child.try_wait().unwrap().is_none(),
            "it ended: {}",
            self.log()
        );
        let mut client = Client::greeted(self.address);
        assert_eq!(client.command("NOOP"), 250);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            // Ends here in any case: an error would only say that it has just ended by itself.
            drop(self.child.kill());
            drop(self.child.wait());
        }
        if thread::panicking() {
            eprintln!("the daemon's log:\n{}", self.log());
        }
    }
}

/// The first line of a pipe, or none when nothing comes in time. The rest is read and dropped, so
/// that the writer never blocks.
pub(crate) fn first_line(pipe: impl Read + Send + 'static) -> Option<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut lines = BufReader::new(pipe).lines();
        if let Some(Ok(line)) = lines.next() {
            // The test may have given up.
            drop(sender.send(line));
        }
        lines.for_each(drop);
    });
    receiver.recv_timeout(PATIENCE).ok()
}

/// A message as the receiver got it: un-stuffed, otherwise as it was on the wire.
#[derive(Debug, Clone)]
pub(crate) struct Received {
    pub(crate) sender: String,
    pub(crate) recipients: Vec<String>,
    pub(crate) content: Vec<u8>,
    /// The address it came from.
    pub(crate) peer: IpAddr,
    /// What the client called itself.
    pub(crate) hello: String,
}

impl Received {
    /// The content without the trace field that the daemon put on top.
    pub(crate) fn without_trace(&self) -> &[u8] {
        assert!(self.content.starts_with(b"Received: "), "{:?}", self.text());
        let mut at = 0;
        loop {
            let end = find(&self.content[at..], b"\r\n").expect("the trace field has no end");
            at += end + 2;
            if !matches!(self.content.get(at), Some(b' ' | b'\t')) {
                return &self.content[at..];
            }
        }
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.content).into_owned()
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// A receiving server without CHUNKING or PIPELINING in a few lines that share nothing with ours.
#[derive(Debug)]
pub(crate) struct Sink {
    pub(crate) address: SocketAddr,
    messages: Receiver<Received>,
}

impl Sink {
    /// A receiver that takes 8-bit mail.
    pub(crate) fn start() -> Self {
        Self::start_at(free_address())
    }

    /// Starts one at a free address that is known already.
    pub(crate) fn start_at(address: SocketAddr) -> Self {
        Self::listening(
            address,
            b"250-sink.test\r\n250-SIZE 200000000\r\n250 8BITMIME\r\n",
        )
    }

    /// A receiver with this answer to EHLO.
    pub(crate) fn offering(hello: &'static [u8]) -> Self {
        Self::listening(free_address(), hello)
    }

    fn listening(address: SocketAddr, hello: &'static [u8]) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, messages) = channel();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let sender = sender.clone();
                // A client that hangs up is its own business; the message then does not arrive.
                thread::spawn(move || drop(receive(stream, hello, &sender)));
            }
        });
        Self { address, messages }
    }

    pub(crate) fn next(&self) -> Received {
        self.messages
            .recv_timeout(PATIENCE)
            .expect("nothing arrived")
    }

    /// Whatever else has arrived.
    pub(crate) fn drain(&self) -> Vec<Received> {
        self.messages.try_iter().collect()
    }
}

fn receive(
    stream: TcpStream,
    hello: &'static [u8],
    sender: &Sender<Received>,
) -> std::io::Result<()> {
    let mut writer = stream.try_clone()?;
    let peer = stream.peer_addr()?.ip();
    let mut reader = BufReader::new(stream);
    writer.write_all(b"220 sink.test ready\r\n")?;
    let mut message = Received {
        sender: String::new(),
        recipients: vec![],
        content: vec![],
        peer,
        hello: String::new(),
    };
    loop {
        let mut line = Vec::new();
        if reader.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let line = String::from_utf8_lossy(&line).into_owned();
        let path = || {
            line.split_once('<')
                .and_then(|(_, rest)| rest.split_once('>'))
        };
        let reply: &[u8] = match line
            .get(..4)
            .unwrap_or_default()
            .to_ascii_uppercase()
            .as_str()
        {
            "EHLO" | "HELO" => {
                message.hello = line[4..].trim().to_owned();
                hello
            }
            "MAIL" => {
                message.sender = path().map(|(path, _)| path.to_owned()).unwrap_or_default();
                message.recipients.clear();
                b"250 sender\r\n"
            }
            "RCPT" => {
                message
                    .recipients
                    .extend(path().map(|(path, _)| path.to_owned()));
                b"250 recipient\r\n"
            }
            "DATA" => {
                writer.write_all(b"354 go on\r\n")?;
                message.content = read_data(&mut reader)?;
                // The test may be over.
                drop(sender.send(message.clone()));
                b"250 kept\r\n"
            }
            "QUIT" => {
                return writer.write_all(b"221 bye\r\n");
            }
            "RSET" | "NOOP" => b"250 fine\r\n",
            _ => b"500 what\r\n",
        };
        writer.write_all(reply)?;
    }
}

fn read_data(reader: &mut impl BufRead) -> std::io::Result<Vec<u8>> {
    let mut content = Vec::new();
    loop {
        let mut line = Vec::new();
        if reader.read_until(b'\n', &mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if line == b".\r\n" {
            return Ok(content);
        }
        content.extend_from_slice(if line.starts_with(b".") {
            &line[1..]
        } else {
            &line
        });
    }
}

/// A client that says exactly what a test tells it to.
#[derive(Debug)]
pub(crate) struct Client {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
    /// The last reply, whole.
    pub(crate) reply: String,
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).unwrap())
    }

    /// Connects, where somebody listens.
    pub(crate) fn try_connect(address: SocketAddr) -> Option<Self> {
        TcpStream::connect(address).ok().map(Self::over)
    }

    fn over(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let reader = BufReader::new(stream.try_clone().unwrap());
        Self {
            stream,
            reader,
            reply: String::new(),
        }
    }

    /// Connected, and past EHLO.
    pub(crate) fn greeted(address: SocketAddr) -> Self {
        let mut client = Self::connect(address);
        assert_eq!(client.read_reply(), 220);
        assert_eq!(client.command("EHLO client.test.example"), 250);
        client
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    pub(crate) fn command(&mut self, line: &str) -> u16 {
        self.send(format!("{line}\r\n"));
        self.read_reply()
    }

    /// Reads one reply and returns its code; 0 when the connection has ended.
    pub(crate) fn read_reply(&mut self) -> u16 {
        self.reply.clear();
        loop {
            let start = self.reply.len();
            match self.reader.read_line(&mut self.reply) {
                Ok(0) | Err(_) => return 0,
                Ok(_) => {}
            }
            let line = &self.reply[start..];
            assert!(line.ends_with("\r\n"), "a reply without an end: {line:?}");
            if line.as_bytes().get(3) != Some(&b'-') {
                return line[..3].parse().unwrap();
            }
        }
    }

    pub(crate) fn hang_up(self) {
        drop(self.reader);
        drop(self.stream);
    }
}

/// Where a program that is not ours is: on the path, or in the directory of unpacked packages that
/// `.ci/run` names in POSTRIDER_TEST_TOOLS.
pub(crate) fn tool(name: &str) -> Option<PathBuf> {
    let unpacked = std::env::var_os("POSTRIDER_TEST_TOOLS").map(PathBuf::from);
    let inside = ["usr/sbin", "usr/bin", "usr/lib/postfix/sbin"];
    let unpacked = unpacked
        .iter()
        .flat_map(|root| inside.map(|directory| root.join(directory)));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/usr/lib/postfix/sbin"].map(PathBuf::from);
    let directories = unpacked.chain(std::env::split_paths(&path)).chain(system);
    directories
        .map(|directory| directory.join(name))
        .find(|file| file.is_file())
}

/// The program, or none after saying so; with CI=true its absence fails the test.
pub(crate) fn require(name: &str) -> Option<PathBuf> {
    let found = tool(name);
    if found.is_none() {
        let message = format!("SKIPPED: {name} is not installed (.ci/run installs it)");
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{message}");
        // Past the capture of the test harness, so that it is seen.
        std::io::stderr()
            .write_all(format!("{message}\n").as_bytes())
            .unwrap();
    }
    found
}

/// A command that runs an unpacked Debian program with the libraries of its own package.
pub(crate) fn tool_command(program: &Path) -> Command {
    let mut command = Command::new(program);
    if let Some(root) = std::env::var_os("POSTRIDER_TEST_TOOLS").map(PathBuf::from)
        && program.starts_with(&root)
    {
        let mut libraries = vec![root.join("usr/lib/postfix")];
        let triplets = std::fs::read_dir(root.join("usr/lib"))
            .into_iter()
            .flatten()
            .flatten();
        libraries.extend(triplets.map(|entry| entry.path()).filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().ends_with("-linux-gnu"))
        }));
        command.env("LD_LIBRARY_PATH", std::env::join_paths(libraries).unwrap());
    }
    command
}

/// Runs to the end and fails with its words where it fails.
pub(crate) fn run(command: &mut Command) -> Output {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let words = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        words.join("\n")
    );
    output
}

/// Header fields of a message, unfolded, by lower-case name.
pub(crate) fn header(content: &[u8]) -> HashMap<String, String> {
    let text = String::from_utf8_lossy(content)
        .replace("\r\n ", " ")
        .replace("\r\n\t", " ");
    let head = text.split("\r\n\r\n").next().unwrap_or_default();
    let fields = head.split("\r\n").filter_map(|line| line.split_once(':'));
    fields
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect()
}
