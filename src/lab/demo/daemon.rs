//! lab::demo::daemon - the daemon as a child process: its configuration, its life, what it costs.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, SysconfVar, sysconf};

use crate::lab::LabError;

/// How long the daemon may take to say that it is ready: recovery of a million messages is a
/// second.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// How long it may take to end after SIGTERM.
const END_WITHIN: Duration = Duration::from_secs(60);

/// What the daemon's configuration needs to know.
#[derive(Debug)]
pub(super) struct Setup<'a> {
    pub(super) listener: SocketAddr,
    pub(super) dns: SocketAddr,
    pub(super) sink_port: u16,
    /// Domain pattern and address, in order.
    pub(super) routes: &'a [(String, SocketAddr)],
    pub(super) shards: Option<u16>,
    pub(super) data: &'a Path,
}

/// The daemon's configuration file.
pub(super) fn configuration(setup: &Setup<'_>) -> String {
    // A path may hold what TOML must escape; its basic strings escape as Rust's debug form does for
    // everything printable.
    let data = setup.data.to_string_lossy();
    let shards = match setup.shards {
        Some(number) => number.to_string(),
        None => "\"auto\"".to_owned(),
    };
    let mut text = format!(
        "[node]\nhostname = \"mta1.lab.test\"\ndata_dir = {data:?}\nshards = {shards}\n\n\
         [[listener]]\naddress = \"{}\"\nrelay_from = [\"127.0.0.0/8\"]\n\n\
         [dns]\nservers = [\"{}\"]\n\n\
         [delivery]\nport = {}\nretry = [\"2s\", \"4s\", \"8s\", \"15s\", \"30s\", \"60s\"]\n",
        setup.listener, setup.dns, setup.sink_port
    );
    for (pattern, via) in setup.routes {
        text.push_str(&format!(
            "\n[[route]]\ndomains = [\"{pattern}\"]\nvia = \"{via}\"\n"
        ));
    }
    text
}

/// The daemon, through any number of lives.
#[derive(Debug)]
pub(super) struct Daemon {
    program: PathBuf,
    configuration: PathBuf,
    log: PathBuf,
    child: Child,
    /// CPU time of the lives that are over.
    past_cpu: Duration,
    peak_rss: u64,
    pub(super) kills: u32,
}

impl Daemon {
    /// Starts it and waits until it says that it is ready.
    pub(super) fn start(
        program: PathBuf,
        configuration: PathBuf,
        log: PathBuf,
    ) -> Result<Self, LabError> {
        let child = spawn(&program, &configuration, &log)?;
        Ok(Self {
            program,
            configuration,
            log,
            child,
            past_cpu: Duration::ZERO,
            peak_rss: 0,
            kills: 0,
        })
    }

    /// CPU time of the daemon so far, all lives.
    pub(super) fn cpu(&self) -> Duration {
        self.past_cpu + cpu_of(self.child.id()).unwrap_or_default()
    }

    /// Peak memory in bytes so far, all lives.
    pub(super) fn peak_rss(&mut self) -> u64 {
        self.peak_rss = self.peak_rss.max(peak_rss_of(self.child.id()).unwrap_or(0));
        self.peak_rss
    }

    /// An error where it has ended by itself.
    pub(super) fn check(&mut self) -> Result<(), LabError> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(self.ended(status)),
            Err(error) => Err(LabError::Daemon(self.log.clone(), error)),
        }
    }

    fn ended(&self, status: ExitStatus) -> LabError {
        let error = io::Error::other(format!("ended by itself: {status}"));
        LabError::Daemon(self.log.clone(), error)
    }

    /// Kills it without warning.
    pub(super) fn kill(&mut self) -> Result<(), LabError> {
        self.past_cpu = self.cpu();
        self.peak_rss();
        let killed = self.child.kill().and_then(|()| self.child.wait());
        killed.map_err(|error| LabError::Daemon(self.log.clone(), error))?;
        self.kills += 1;
        Ok(())
    }

    /// Starts it again on the same data.
    pub(super) fn restart(&mut self) -> Result<(), LabError> {
        self.child = spawn(&self.program, &self.configuration, &self.log)?;
        Ok(())
    }

    /// Ends it in order; whether it ended with success and in time.
    pub(super) fn stop(&mut self) -> Result<bool, LabError> {
        let failed = |error| LabError::Daemon(self.log.clone(), error);
        let pid = i32::try_from(self.child.id()).map_err(|_| failed(io::Error::other("pid")))?;
        kill(Pid::from_raw(pid), Signal::SIGTERM).map_err(|errno| failed(errno.into()))?;
        let deadline = Instant::now() + END_WITHIN;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().map_err(failed)? {
                return Ok(status.success());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.child
            .kill()
            .and_then(|()| self.child.wait())
            .map_err(failed)?;
        Ok(false)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Already ended in the good case; then neither does anything.
        if self.child.kill().and_then(|()| self.child.wait()).is_err() {
            tracing::error!("the daemon of the demo may still run");
        }
    }
}

fn spawn(program: &Path, configuration: &Path, log: &Path) -> Result<Child, LabError> {
    let failed = |error| LabError::Daemon(log.to_owned(), error);
    let output = File::options()
        .create(true)
        .append(true)
        .open(log)
        .map_err(failed)?;
    let mut child = Command::new(program)
        .arg("run")
        .arg("--config")
        .arg(configuration)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(output)
        .spawn()
        .map_err(failed)?;
    let Some(stdout) = child.stdout.take() else {
        return Err(failed(io::Error::other("no standard output")));
    };
    let (tell, ready) = mpsc::channel();
    // Reads to the end, so that the daemon never blocks on its output.
    let reader = std::thread::Builder::new()
        .name("lab-daemon-out".to_owned())
        .spawn(move || {
            for line in BufReader::new(stdout).lines() {
                match line {
                    // Nobody listens any more once it was ready.
                    Ok(line) if line == "postrider: ready" => tell.send(()).unwrap_or_default(),
                    Ok(_) => {}
                    Err(_) => break,
                }
            }
        });
    reader.map_err(failed)?;
    match ready.recv_timeout(READY_WITHIN) {
        Ok(()) => Ok(child),
        Err(_) => {
            let status = child.kill().and_then(|()| child.wait()).map_err(failed)?;
            Err(failed(io::Error::other(format!(
                "was never ready ({status})"
            ))))
        }
    }
}

/// User and system time of a process (proc(5), fields 14 and 15 of stat).
fn cpu_of(pid: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let ticks = cpu_ticks(&stat)?;
    let per_second = sysconf(SysconfVar::CLK_TCK).ok()??;
    let per_second = u32::try_from(per_second).ok().filter(|hertz| *hertz > 0)?;
    Some(Duration::from_secs_f64(
        ticks as f64 / f64::from(per_second),
    ))
}

fn cpu_ticks(stat: &str) -> Option<u64> {
    // The second field is the name in parentheses, which may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// Peak resident memory of a process, in bytes.
fn peak_rss_of(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    high_water(&status)
}

fn high_water(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    // proc(5): names with spaces and parentheses do not move the fields.
    #[test]
    fn process_figures_are_read() {
        let stat = "42 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 70 30 0 0 20";
        assert_eq!(cpu_ticks(stat), Some(100));
        assert_eq!(cpu_ticks("42 (a"), None);
        let status = "Name:\ta\nVmPeak:\t 9 kB\nVmHWM:\t  2048 kB\n";
        assert_eq!(high_water(status), Some(2 << 20));
        assert!(peak_rss_of(std::process::id()).unwrap() > 1 << 20);
        assert!(cpu_of(std::process::id()).is_some());
    }

    // The file says what the demo needs, as the reference of the configuration spells it.
    #[test]
    fn the_configuration_is_toml() {
        let listener = SocketAddr::from(([127, 0, 0, 1], 2525));
        let via = SocketAddr::from(([127, 0, 1, 1], 2526));
        let text = configuration(&Setup {
            listener,
            dns: SocketAddr::from(([127, 0, 0, 1], 5353)),
            sink_port: 2526,
            routes: &[("*".to_owned(), via)],
            shards: None,
            data: Path::new("/tmp/a \"b\""),
        });
        let table: toml::Table = text.parse().unwrap();
        assert_eq!(table["node"]["data_dir"].as_str(), Some("/tmp/a \"b\""));
        assert_eq!(table["node"]["shards"].as_str(), Some("auto"));
        assert_eq!(
            table["listener"][0]["address"].as_str(),
            Some("127.0.0.1:2525")
        );
        assert_eq!(table["delivery"]["port"].as_integer(), Some(2526));
        assert_eq!(table["route"][0]["via"].as_str(), Some("127.0.1.1:2526"));
    }
}
