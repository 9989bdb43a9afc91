//! stage - the programs of one run: the daemon, the receiver, the load; their life and their cost.
//!
//! Every child is in one list from its start until it has been waited for, so that each way out of
//! the bench (success, error, panic, signal) leaves no process behind. Every wait has an end.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use serde_json::Value;

/// How long a program may take to say that it is ready; recovery of a million messages is seconds.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// How long a program may take to end after SIGTERM.
const END_WITHIN: Duration = Duration::from_secs(60);

/// How long one question to the admin socket may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// How often a wait looks. Asking the daemon costs it CPU time, some 0.1 ms each time.
const LOOK: Duration = Duration::from_millis(20);

pub(crate) type Outcome<T> = Result<T, String>;

/// Puts words before an error.
pub(crate) fn failed<E: std::fmt::Display>(what: &str) -> impl FnOnce(E) -> String + '_ {
    move |error| format!("{what}: {error}")
}

/// Everything to be undone when a signal ends the bench.
static RUNNING: Mutex<Vec<u32>> = Mutex::new(Vec::new());
static PLACES: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn locked<T>(list: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    list.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends everything and the process on SIGINT, SIGTERM or SIGHUP.
pub(crate) fn end_on_signals() -> Outcome<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(failed("signals"))?;
    let wait = async {
        let (Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)) = (
            signal(SignalKind::interrupt()),
            signal(SignalKind::terminate()),
            signal(SignalKind::hangup()),
        ) else {
            return;
        };
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
        // The locks are kept until the end: nothing new may start, and no child is waited for
        // meanwhile, so that no number in the list can belong to somebody else.
        let running = locked(&RUNNING);
        for pid in running.iter() {
            signal_process(*pid, Signal::SIGKILL);
        }
        for place in locked(&PLACES).iter() {
            // On the way out: what cannot be removed stays.
            drop(fs::remove_dir_all(place));
        }
        std::process::exit(130);
    };
    let thread = thread::Builder::new().name("signals".to_owned());
    thread
        .spawn(move || runtime.block_on(wait))
        .map(drop)
        .map_err(failed("signals"))
}

fn signal_process(pid: u32, signal: Signal) {
    if let Ok(pid) = i32::try_from(pid) {
        // An error says that it has just ended by itself.
        kill(Pid::from_raw(pid), signal).unwrap_or_default();
    }
}

/// A directory of one run, removed at its end.
#[derive(Debug)]
pub(crate) struct Place(PathBuf);

impl Place {
    pub(crate) fn new(base: &Path) -> Outcome<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = base.join(format!("postrider-bench-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).map_err(failed(&path.display().to_string()))?;
        locked(&PLACES).push(path.clone());
        Ok(Self(path))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn write(&self, name: &str, content: &[u8]) -> Outcome<PathBuf> {
        use std::io::Write;
        use std::os::unix::fs::OpenOptionsExt;
        let path = self.path(name);
        // Only for us: a private key that others can read is refused by the daemon.
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path);
        file.and_then(|mut file| file.write_all(content))
            .map_err(failed(name))?;
        Ok(path)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("cannot remove {}: {error}", self.0.display());
        }
        locked(&PLACES).retain(|place| *place != self.0);
    }
}

/// A child process; killed when dropped.
#[derive(Debug)]
struct Running {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Running {
    fn start(name: &'static str, command: &mut Command, log: PathBuf) -> Outcome<Self> {
        let mut running = locked(&RUNNING);
        let child = command.stdin(Stdio::null()).spawn().map_err(failed(name))?;
        running.push(child.id());
        Ok(Self { name, child, log })
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the end; whether it was a success.
    fn wait(&mut self, within: Duration) -> Outcome<bool> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(success) = self.look()? {
                return Ok(success);
            }
            if Instant::now() >= deadline {
                return Err(format!("{} did not end within {within:?}", self.name));
            }
            thread::park_timeout(LOOK);
        }
    }

    /// Whether it has ended, and how.
    fn look(&mut self) -> Outcome<Option<bool>> {
        let mut running = locked(&RUNNING);
        let status = self.child.try_wait().map_err(failed(self.name))?;
        if status.is_some() {
            running.retain(|pid| *pid != self.child.id());
        }
        Ok(status.map(|status| status.success()))
    }

    fn complaint(&self, what: &str) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().rev().take(5).collect();
        let last = lines.into_iter().rev().collect::<Vec<_>>().join("\n  ");
        format!("{} {what}; its last words:\n  {last}", self.name)
    }

    /// Kills it without warning.
    fn kill(&mut self) -> Outcome<()> {
        if self.look()?.is_none() {
            signal_process(self.pid(), Signal::SIGKILL);
            self.wait(END_WITHIN)?;
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("{error}");
        }
    }
}

/// The program under test.
fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_postrider"))
}

/// The first line of a pipe that starts with `wanted`. All of it is read and copied to `log`, so
/// that the writer never blocks.
fn line_of(pipe: impl Read + Send + 'static, wanted: &'static str, log: &Path) -> Option<String> {
    use std::io::Write;
    let mut log = File::options().create(true).append(true).open(log).ok()?;
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            // Neither the log nor a waiter that gave up may stop the reading.
            drop(writeln!(log, "{line}"));
            if line.starts_with(wanted) {
                drop(sender.send(line));
            }
        }
    });
    receiver.recv_timeout(READY_WITHIN).ok()
}

/// A port of 127.0.0.1 on which nobody listens now.
pub(crate) fn free_address() -> Outcome<SocketAddr> {
    free_port([127, 0, 0, 1])
}

fn free_port(address: [u8; 4]) -> Outcome<SocketAddr> {
    let listener = TcpListener::bind(SocketAddr::from((address, 0)));
    listener
        .and_then(|listener| listener.local_addr())
        .map_err(failed("a free port"))
}

/// `postrider sink`.
#[derive(Debug)]
pub(crate) struct Sink {
    _running: Running,
    port: u16,
}

/// The address of the sink's first site.
const FIRST_SITE: [u8; 4] = [127, 0, 1, 1];

impl Sink {
    pub(crate) fn start(place: &Place, sites: u16, shards: usize, manners: &str) -> Outcome<Self> {
        let any = SocketAddr::from((FIRST_SITE, 0));
        Self::start_at(place, any, sites, shards, manners)
    }

    /// Where a sink can be started later on, for one site.
    pub(crate) fn free_site() -> Outcome<SocketAddr> {
        free_port(FIRST_SITE)
    }

    /// Starts one whose sites have this address and those behind it, and this port; 0 is any.
    pub(crate) fn start_at(
        place: &Place,
        first: SocketAddr,
        sites: u16,
        shards: usize,
        manners: &str,
    ) -> Outcome<Self> {
        let log = place.path("sink.log");
        let mut command = program();
        command.args(["sink", "--json", "--personality", manners]);
        command.args(["--port", &first.port().to_string()]);
        command.args([
            "--domains",
            &sites.to_string(),
            "--shards",
            &shards.to_string(),
        ]);
        command.args(["--first-address", &first.ip().to_string()]);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut running = Running::start("sink", &mut command, log.clone())?;
        let ready = running
            .child
            .stderr
            .take()
            .and_then(|pipe| line_of(pipe, "postrider sink: ready", &log));
        let port = ready.as_deref().and_then(|line| {
            let digits = line.split("port ").nth(1)?;
            digits
                .split(|c: char| !c.is_ascii_digit())
                .next()?
                .parse()
                .ok()
        });
        match port {
            Some(port) => Ok(Self {
                _running: running,
                port,
            }),
            None => Err(running.complaint("was never ready")),
        }
    }

    /// Where a site listens.
    pub(crate) fn address(&self, site: u8) -> SocketAddr {
        let [a, b, c, first] = FIRST_SITE;
        SocketAddr::from(([a, b, c, first + site], self.port))
    }
}

/// `postrider run`.
#[derive(Debug)]
pub(crate) struct Daemon {
    running: Running,
    pub(crate) address: SocketAddr,
    socket: PathBuf,
    configuration: PathBuf,
}

impl Daemon {
    /// Starts one with a listener, an admin socket and the lines of `more`.
    pub(crate) fn start(place: &Place, shards: usize, more: &str) -> Outcome<Self> {
        let address = free_address()?;
        let socket = place.path("admin.sock");
        // Basic strings of TOML escape as Rust's debug form does for everything printable.
        let text = format!(
            "[node]\nhostname = \"mta.bench.test\"\ndata_dir = {:?}\nshards = {shards}\n\
             [admin]\nsocket = {:?}\n\
             [[listener]]\naddress = \"{address}\"\nrelay_from = [\"127.0.0.0/8\"]\n{more}",
            place.path("data").to_string_lossy(),
            socket.to_string_lossy(),
        );
        let configuration = place.write("postrider.toml", text.as_bytes())?;
        let running = Self::spawn(&configuration, place.path("daemon.log"))?;
        Ok(Self {
            running,
            address,
            socket,
            configuration,
        })
    }

    fn spawn(configuration: &Path, log: PathBuf) -> Outcome<Running> {
        let errors = File::options().create(true).append(true).open(&log);
        let mut command = program();
        command.args(["run", "--config"]).arg(configuration);
        command
            .stdout(Stdio::piped())
            .stderr(errors.map_err(failed("daemon.log"))?);
        let mut running = Running::start("daemon", &mut command, log.clone())?;
        let out = running.child.stdout.take();
        match out.and_then(|pipe| line_of(pipe, "postrider: ready", &log)) {
            Some(_) => Ok(running),
            None => Err(running.complaint("was never ready")),
        }
    }

    /// Kills it without warning and starts it again on the same data.
    pub(crate) fn crash_and_restart(&mut self) -> Outcome<()> {
        self.running.kill()?;
        let log = self.running.log.clone();
        self.running = Self::spawn(&self.configuration, log)?;
        Ok(())
    }

    /// Ends it in order.
    pub(crate) fn stop(mut self) -> Outcome<()> {
        signal_process(self.running.pid(), Signal::SIGTERM);
        if self.running.wait(END_WITHIN)? {
            Ok(())
        } else {
            Err(self.running.complaint("ended with an error"))
        }
    }

    /// CPU time since its start, all threads, those that have ended included; in microseconds.
    pub(crate) fn cpu_us(&self) -> Outcome<f64> {
        let pid = i32::try_from(self.running.pid()).map_err(failed("pid"))?;
        // The process's own CPU clock (clock_getcpuclockid(3)): nanoseconds, where /proc/PID/stat
        // has ticks of 10 ms.
        let clock = clock_getcpuclockid(Pid::from_raw(pid)).map_err(failed("CPU clock"))?;
        let time = clock_gettime(clock).map_err(failed("CPU clock"))?;
        Ok(Duration::from(time).as_secs_f64() * 1e6)
    }

    /// A line of /proc/PID/status that counts KiB, in bytes: "VmHWM", "VmRSS", "RssAnon".
    pub(crate) fn memory(&self, name: &str) -> Outcome<f64> {
        let path = format!("/proc/{}/status", self.running.pid());
        let status = fs::read_to_string(&path).map_err(failed(&path))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok());
        kib.map(|kib| kib * 1024.0)
            .ok_or_else(|| format!("{path} has no {name}"))
    }

    /// A sum over the shards of some figures of `postrider ctl status --json`.
    pub(crate) fn status(&self, names: &[&str]) -> Outcome<u64> {
        let mut command = program();
        command
            .args(["ctl", "status", "--json", "--socket"])
            .arg(&self.socket);
        let (text, success) = output("ctl", &mut command, ANSWER_WITHIN)?;
        let status: Value = serde_json::from_str(&text).map_err(failed("ctl status"))?;
        let shards = status["shards"]
            .as_array()
            .filter(|_| success)
            .ok_or("no shards in status")?;
        let figure =
            |shard: &Value| -> Option<u64> { names.iter().map(|name| shard[*name].as_u64()).sum() };
        shards
            .iter()
            .map(figure)
            .sum::<Option<u64>>()
            .ok_or_else(|| format!("no {names:?}"))
    }

    /// Waits until the sum of these figures is as wanted.
    pub(crate) fn wait_for(&mut self, names: &[&str], wanted: u64, most: Duration) -> Outcome<()> {
        self.wait_until(names, &format!("{wanted}"), |sum| sum == wanted, most)
    }

    /// Waits until the sum of these figures is less than `limit`.
    pub(crate) fn wait_below(&mut self, names: &[&str], limit: u64, most: Duration) -> Outcome<()> {
        self.wait_until(names, &format!("below {limit}"), |sum| sum < limit, most)
    }

    fn wait_until(
        &mut self,
        names: &[&str],
        wanted: &str,
        enough: impl Fn(u64) -> bool,
        most: Duration,
    ) -> Outcome<()> {
        let deadline = Instant::now() + most;
        loop {
            let now = self.status(names)?;
            if enough(now) {
                return Ok(());
            }
            if self.running.look()?.is_some() {
                return Err(self.running.complaint("ended by itself"));
            }
            if Instant::now() >= deadline {
                return Err(format!("{names:?} is {now} after {most:?}, not {wanted}"));
            }
            thread::park_timeout(LOOK);
        }
    }
}

/// Runs a program to its end: what it printed, and whether it succeeded.
fn output(name: &'static str, command: &mut Command, most: Duration) -> Outcome<(String, bool)> {
    command.stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut running = Running::start(name, command, PathBuf::new())?;
    let pipe = running.child.stdout.take().ok_or("no pipe")?;
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut text = String::new();
        let read = BufReader::new(pipe).read_to_string(&mut text);
        // Nobody listens any more when the time was over.
        drop(sender.send(read.map(|_| text)));
    });
    let text = receiver
        .recv_timeout(most)
        .map_err(|_| format!("{name} took over {most:?}"))?;
    let success = running.wait(END_WITHIN)?;
    Ok((text.map_err(failed(name))?, success))
}

/// `postrider load` to its end; its report, and the seconds it took. Fails unless every message was
/// accepted.
pub(crate) fn load(target: SocketAddr, args: &[&str], most: Duration) -> Outcome<Value> {
    let mut command = program();
    command
        .args(["load", "--json", "--quiet", "--target", &target.to_string()])
        .args(args);
    let (text, success) = output("load", &mut command, most)?;
    if !success {
        return Err(format!(
            "load: not every message was accepted: {}",
            text.trim()
        ));
    }
    serde_json::from_str(&text).map_err(failed("load"))
}
