//! life - a daemon that dies and comes back on the same data, and a file system of its own for it.

use std::fs::File;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use postrider::lab::sink::{Sink, SinkCounters, SinkOptions};

use crate::harness::{first_line, free_address, program, run, status, wait_until};

/// A daemon whose directory outlives it; killed when dropped.
pub(crate) struct Life {
    pub(crate) address: SocketAddr,
    directory: PathBuf,
    configuration: PathBuf,
    child: Option<Child>,
}

impl Life {
    /// Prepares one: its configuration and log are in `directory`, its spool in `data`, everything
    /// goes to `via`. The segments are small, so that a test soon has several.
    pub(crate) fn new(directory: &Path, data: &Path, via: SocketAddr) -> Self {
        let address = free_address();
        let socket = directory.join("admin.sock");
        let text = format!(
            "[node]\nhostname = \"mta.test.example\"\ndata_dir = {data:?}\nshards = 1\n\
             [admin]\nsocket = {socket:?}\n\
             [spool]\nsegment_size = \"4MiB\"\nfree_space_min = \"1MiB\"\n\
             [delivery]\nretry = [\"1s\", \"1s\", \"2s\", \"2s\"]\n\
             [[route]]\ndomains = [\"*\"]\nvia = \"{via}\"\n\
             [[listener]]\naddress = \"{address}\"\nrelay_from = [\"127.0.0.0/8\"]\n\
             max_message_size = \"1MiB\"\n"
        );
        std::fs::create_dir_all(directory).unwrap();
        std::fs::create_dir_all(data).unwrap();
        let configuration = directory.join("postrider.toml");
        std::fs::write(&configuration, text).unwrap();
        Self {
            address,
            directory: directory.to_owned(),
            configuration,
            child: None,
        }
    }

    /// Adds to the configuration of the next start.
    pub(crate) fn configure(&self, more: &str) {
        let mut text = std::fs::read_to_string(&self.configuration).unwrap();
        text.push_str(more);
        std::fs::write(&self.configuration, text).unwrap();
    }

    /// Starts it; how long it took until it was ready.
    pub(crate) fn start(&mut self) -> Duration {
        self.start_in(|_| {})
    }

    /// As [`Life::start`]; `confine` is told the process before it does anything: the shell that
    /// becomes the daemon waits for a line.
    pub(crate) fn start_in(&mut self, confine: impl FnOnce(u32)) -> Duration {
        let begin = Instant::now();
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.directory.join("log"))
            .unwrap();
        let mut child = Command::new("sh")
            .args([
                "-c",
                "read line && exec \"$0\" run --config \"$1\" </dev/null",
            ])
            .arg(program().get_program())
            .arg(&self.configuration)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        confine(child.id());
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(b"go\n").unwrap();
        drop(stdin);
        let line = first_line(child.stdout.take().unwrap());
        self.child = Some(child);
        assert_eq!(line.as_deref(), Some("postrider: ready"), "{}", self.log());
        begin.elapsed()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// What it says of itself.
    pub(crate) fn status(&self) -> serde_json::Value {
        status(&self.directory.join("admin.sock"))
    }

    /// Recipients that wait or are being sent, and messages that the queue does not have yet.
    pub(crate) fn waiting(&self) -> u64 {
        let status = self.status();
        let names = ["ready", "deferred", "in_flight", "restoring"];
        names
            .iter()
            .map(|name| crate::books::total(&status, name))
            .sum()
    }

    /// Whether it still runs.
    pub(crate) fn runs(&mut self) -> bool {
        self.child
            .as_mut()
            .is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("it was started");
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    /// Sends a signal that ends it, and returns the one that it ended by.
    pub(crate) fn strike(&mut self, signal: Signal) -> Option<i32> {
        self.signal(signal);
        let mut child = self.child.take().expect("it was started");
        child.wait().unwrap().signal()
    }

    /// Ends it in order, and returns its exit code.
    pub(crate) fn stop(&mut self) -> Option<i32> {
        self.signal(Signal::SIGTERM);
        let mut child = self.child.take().expect("it was started");
        child.wait().unwrap().code()
    }

    /// The answer of `postrider ctl --json` to these words.
    pub(crate) fn ctl(&self, words: &[&str]) -> serde_json::Value {
        let socket = self.directory.join("admin.sock");
        let mut command = program();
        let command = command.args(["ctl", "--json"]).args(words);
        let output = run(command.arg("--socket").arg(socket));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// kill -9.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // An error would only say that it has just ended by itself.
            drop(child.kill());
            child.wait().unwrap();
        }
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let last = lines.len().saturating_sub(30);
            eprintln!("the daemon's last words:\n{}", lines[last..].join("\n"));
        }
    }
}

/// Where a laboratory sink can be started later: nobody listens there until then.
pub(crate) fn place() -> SocketAddr {
    free_address()
}

/// The laboratory's receiving side at `place`, its ledger in `directory`.
pub(crate) fn sink(place: SocketAddr, directory: &Path) -> Sink {
    sink_counting(place, directory, Arc::default())
}

/// As [`sink`], with counters to watch.
pub(crate) fn sink_counting(
    place: SocketAddr,
    directory: &Path,
    counters: Arc<SinkCounters>,
) -> Sink {
    let SocketAddr::V4(address) = place else {
        panic!("a loopback address of IPv4");
    };
    let first: Ipv4Addr = *address.ip();
    Sink::start(SinkOptions {
        first_address: first,
        port: address.port(),
        domains: 1,
        ledger: Some(directory.to_owned()),
        counters,
        ..SinkOptions::default()
    })
    .unwrap()
}

/// Whether this process may mount; says so when it may not.
pub(crate) fn may_mount() -> bool {
    let root = nix::unistd::geteuid().is_root();
    let loops = Path::new("/dev/loop-control").exists();
    if !(root && loops) {
        // Past the capture of the test harness, so that it is seen.
        std::io::stderr()
            .write_all(b"SKIPPED: mounting a file system of its own needs root and loop devices\n")
            .unwrap();
    }
    root && loops
}

/// An ext4 file system of this test's own, in a file, on a loop device; gone when dropped.
pub(crate) struct Volume {
    device: String,
    mount: PathBuf,
    mounted: bool,
}

impl Volume {
    /// Makes and mounts one of `mib` MiB with `inodes` inodes.
    pub(crate) fn ext4(directory: &Path, mib: u64, inodes: u32) -> Self {
        let image = directory.join("image");
        File::create(&image).unwrap().set_len(mib << 20).unwrap();
        run(Command::new("mkfs.ext4")
            .args([
                "-q",
                "-F",
                "-m",
                "0",
                "-b",
                "4096",
                "-N",
                &inodes.to_string(),
            ])
            .arg(&image));
        let mount = directory.join("mount");
        std::fs::create_dir(&mount).unwrap();
        let output = run(Command::new("losetup")
            .args(["--find", "--show"])
            .arg(&image));
        let device = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        let mut volume = Self {
            device,
            mount,
            mounted: false,
        };
        volume.mount();
        volume
    }

    pub(crate) fn path(&self) -> &Path {
        &self.mount
    }

    pub(crate) fn mount(&mut self) {
        run(Command::new("mount")
            .args(["-t", "ext4", &self.device])
            .arg(&self.mount));
        self.mounted = true;
    }

    pub(crate) fn unmount(&mut self) {
        // The kernel lets go of a killed daemon's rings, and of their files, a little later.
        wait_until("the unmount", || {
            let mut umount = Command::new("umount");
            umount.arg(&self.mount).stderr(Stdio::null());
            umount.status().unwrap().success()
        });
        // Another mount namespace that was made meanwhile may hold the file system, cut as it is.
        wait_until("a device that nobody holds", || {
            let mut alone = File::options();
            alone.read(true).custom_flags(nix::libc::O_EXCL);
            alone.open(&self.device).is_ok()
        });
        self.mounted = false;
    }

    /// Cuts the power: nothing more reaches the device, not even the journal
    /// (EXT4_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH).
    pub(crate) fn cut(&self) {
        let script = "import fcntl, os, struct, sys\n\
            fd = os.open(sys.argv[1], os.O_RDONLY)\n\
            fcntl.ioctl(fd, 0x8004587d, struct.pack('I', 2))\n";
        run(Command::new("python3")
            .args(["-c", script])
            .arg(&self.mount));
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if self.mounted {
            self.unmount();
        }
        let mut command = Command::new("losetup");
        command.args(["--detach", &self.device]);
        match command.status() {
            Ok(status) if status.success() => {}
            result => eprintln!("{command:?}: {result:?}"),
        }
    }
}

/// Seeded numbers (SplitMix64): the same in every run.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (value ^ (value >> 31)) % limit
    }
}
