//! check - is the configuration right, and is the host fit for it?

mod dkim;

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};

use nix::sys::resource::{Resource, getrlimit};
use nix::sys::statvfs::statvfs;
use serde::Serialize;

use super::run::CONFIG_DEFAULT;
use super::{Failure, print, print_json};
use crate::config::{self, ConfigError, Problem, Snapshot};
use crate::engine::uring::{UringConfig, UringRuntime};
use crate::settings;

/// Check the configuration or the host
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Check a configuration file and the DKIM keys it names, or explain what can be configured
    #[command(after_help = "Examples:\n  \
        postrider check config --config /etc/postrider/postrider.toml\n  \
        postrider check config --describe delivery.retry\n\
        Exit code 78 when the file is wrong, or a DKIM key that it names cannot be used. Run it\n\
        as the daemon's user, who must be able to read the keys.")]
    Config(ConfigArgs),
    /// Check kernel, limits, addresses, disk and keys against what the configuration needs
    #[command(
        after_help = "Example:\n  postrider check host --config /etc/postrider/postrider.toml"
    )]
    Host(HostArgs),
    /// Fetch the published DKIM keys of a domain and prove that they match the private ones
    #[command(after_help = "Examples:\n  \
        postrider check dkim example.com --config /etc/postrider/postrider.toml\n  \
        postrider check dkim example.com --dns 192.0.2.53:53\n\
        Exit code 1 when a key is not published, or another one is.")]
    Dkim(dkim::Args),
}

#[derive(Debug, clap::Args)]
struct ConfigArgs {
    /// The configuration file
    #[arg(long, short, value_name = "FILE", default_value = CONFIG_DEFAULT)]
    config: PathBuf,
    /// Explain a parameter or a section, or all of them, instead of checking a file
    #[arg(long, value_name = "KEY", num_args = 0..=1, default_missing_value = "")]
    describe: Option<String>,
    /// With --describe: the whole reference as Markdown
    #[arg(long, requires = "describe")]
    markdown: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct HostArgs {
    /// The configuration file
    #[arg(long, short, value_name = "FILE", default_value = CONFIG_DEFAULT)]
    config: PathBuf,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn execute(args: &Args) -> Result<(), Failure> {
    match &args.verb {
        Verb::Config(args) => match &args.describe {
            Some(key) => describe(key, args),
            None => check_config(args),
        },
        Verb::Host(args) => check_host(args),
        Verb::Dkim(args) => dkim::execute(args),
    }
}

fn describe(key: &str, args: &ConfigArgs) -> Result<(), Failure> {
    if args.json {
        return print_json(&config::json());
    }
    if args.markdown {
        return print(&config::markdown());
    }
    if !key.is_empty() {
        return print(&config::describe(key).map_err(Failure::Usage)?);
    }
    let mut out = String::new();
    for section in config::SECTIONS {
        let text = config::describe(section.name).map_err(Failure::Usage)?;
        out.push_str(&text);
        out.push('\n');
    }
    print(&out)
}

fn check_config(args: &ConfigArgs) -> Result<(), Failure> {
    let result = config::load(&args.config);
    let faults = match &result {
        Ok(loaded) => settings::load_keys(&loaded.snapshot).err(),
        Err(_) => None,
    };
    if args.json {
        let unreadable = result.as_ref().err().map(|error| Problem {
            line: 0,
            column: 0,
            key: String::new(),
            message: error.to_string(),
            nearest: None,
        });
        let unreadable: Vec<Problem> = unreadable.into_iter().collect();
        let (errors, warnings) = match &result {
            Ok(loaded) => (&[][..], &loaded.warnings[..]),
            Err(ConfigError::Wrong { problems, .. }) => (&problems[..], &[][..]),
            Err(ConfigError::Unreadable { .. }) => (&unreadable[..], &[][..]),
        };
        print_json(&serde_json::json!({
            "file": args.config, "ok": result.is_ok() && faults.is_none(), "errors": errors,
            "warnings": warnings, "key_errors": faults.clone().unwrap_or_default(),
        }))?;
        result?;
        return faults.map_or(Ok(()), |faults| Err(Failure::Unusable(faults)));
    }
    let loaded = result?;
    let mut out = String::new();
    for warning in &loaded.warnings {
        out.push_str(&format!("{}:{warning} (warning)\n", args.config.display()));
    }
    if let Some(faults) = faults {
        print(&out)?;
        return Err(Failure::Unusable(faults));
    }
    out.push_str(&format!("{}: good\n", args.config.display()));
    print(&out)
}

/// How a finding is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Good,
    Warning,
    Wrong,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    state: State,
    what: String,
    found: String,
    /// What to do about it; empty where it is good.
    advice: String,
}

impl Finding {
    fn judge(good: bool, otherwise: State, what: &str, found: String, advice: &str) -> Self {
        let state = if good { State::Good } else { otherwise };
        let advice = if good {
            String::new()
        } else {
            advice.to_owned()
        };
        Self {
            state,
            what: what.to_owned(),
            found,
            advice,
        }
    }
}

fn check_host(args: &HostArgs) -> Result<(), Failure> {
    let snapshot = config::load(&args.config)?.snapshot;
    let mut findings = vec![kernel(), io_uring(), ring()];
    findings.extend(
        [locked_memory(), open_files(&snapshot)]
            .into_iter()
            .flatten(),
    );
    findings.extend(ephemeral_ports());
    findings.push(data_dir(
        &snapshot.node.data_dir,
        snapshot.spool.free_space_min,
    ));
    findings.extend(addresses(&snapshot));
    findings.extend(keys(&snapshot));
    if args.json {
        print_json(&findings)?;
    } else {
        print(&show(&findings))?;
    }
    let wrong = findings.iter().any(|finding| finding.state == State::Wrong);
    if wrong {
        Err(Failure::Reported)
    } else {
        Ok(())
    }
}

fn show(findings: &[Finding]) -> String {
    let mut out = String::new();
    for finding in findings {
        let mark = match finding.state {
            State::Good => "good   ",
            State::Warning => "warning",
            State::Wrong => "WRONG  ",
        };
        out.push_str(&format!("{mark}  {}: {}\n", finding.what, finding.found));
        if !finding.advice.is_empty() {
            out.push_str(&format!("         {}\n", finding.advice));
        }
    }
    out
}

/// The first two numbers of "6.1.0-18-amd64".
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(str::parse::<u32>);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn read_line(path: &str) -> Option<String> {
    fs::read_to_string(path)
        .ok()
        .map(|text| text.trim().to_owned())
}

fn kernel() -> Finding {
    let release = read_line("/proc/sys/kernel/osrelease").unwrap_or_default();
    // 6.1: the oldest with DEFER_TASKRUN, multishot receive and provided-buffer rings together.
    let good = version(&release).is_some_and(|version| version >= (6, 1));
    Finding::judge(
        good,
        State::Wrong,
        "kernel",
        release,
        "Linux 6.1 or newer is needed",
    )
}

fn io_uring() -> Finding {
    let value = read_line("/proc/sys/kernel/io_uring_disabled").unwrap_or_else(|| "0".to_owned());
    let advice = "set sysctl kernel.io_uring_disabled=0, or 1 and kernel.io_uring_group";
    Finding::judge(
        value == "0",
        State::Wrong,
        "kernel.io_uring_disabled",
        value,
        advice,
    )
}

/// Whether a ring can be had: a seccomp filter or a limit may forbid what the sysctl allows.
fn ring() -> Finding {
    let what = "a ring of the engine";
    match UringRuntime::new(UringConfig::default()) {
        Ok(_) => Finding::judge(true, State::Wrong, what, "works".to_owned(), ""),
        Err(error) => Finding::judge(
            false,
            State::Wrong,
            what,
            "refused".to_owned(),
            &error.to_string(),
        ),
    }
}

fn locked_memory() -> Option<Finding> {
    let (soft, _) = getrlimit(Resource::RLIMIT_MEMLOCK).ok()?;
    let advice = "raise LimitMEMLOCK in the unit: old kernels charge rings and buffers to it";
    let found = config::values::show_size(soft);
    Some(Finding::judge(
        soft >= 64 << 20,
        State::Warning,
        "locked memory",
        found,
        advice,
    ))
}

fn open_files(snapshot: &Snapshot) -> Option<Finding> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    let inbound: u64 = snapshot
        .listeners
        .iter()
        .map(|l| u64::from(l.connections_max))
        .sum();
    // As many connections out as in, and the files of the spool.
    let wanted = inbound.saturating_mul(2).saturating_add(1024);
    let found = format!("{soft}, may be raised to {hard}; up to {wanted} may be needed");
    let advice = "raise LimitNOFILE in the unit, or lower listener.connections_max";
    Some(Finding::judge(
        hard >= wanted,
        State::Warning,
        "open files",
        found,
        advice,
    ))
}

fn ephemeral_ports() -> Option<Finding> {
    let range = read_line("/proc/sys/net/ipv4/ip_local_port_range")?;
    let mut ends = range.split_whitespace().map(str::parse::<u32>);
    let (low, high) = (ends.next()?.ok()?, ends.next()?.ok()?);
    let good = high.saturating_sub(low) >= 40_000;
    let advice = "more ports allow more connections from one source to one address: see tuning/";
    Some(Finding::judge(
        good,
        State::Warning,
        "net.ipv4.ip_local_port_range",
        range,
        advice,
    ))
}

fn data_dir(path: &Path, free_min: u64) -> Finding {
    let what = format!("node.data_dir {}", path.display());
    let wrong =
        |found: String, advice: &str| Finding::judge(false, State::Wrong, &what, found, advice);
    let existing = if path.exists() {
        path
    } else {
        path.parent().unwrap_or(path)
    };
    let meta = match fs::metadata(existing) {
        Ok(meta) => meta,
        Err(error) => return wrong(error.to_string(), "make it, owned by the daemon's user"),
    };
    if !meta.is_dir() {
        return wrong("not a directory".to_owned(), "name a directory");
    }
    let access = nix::unistd::AccessFlags::R_OK
        | nix::unistd::AccessFlags::W_OK
        | nix::unistd::AccessFlags::X_OK;
    if let Err(error) = nix::unistd::access(existing, access) {
        return wrong(
            error.to_string(),
            "give it to the user that runs the daemon (and this)",
        );
    }
    match statvfs(existing) {
        Err(error) => wrong(error.to_string(), "cannot tell the free space"),
        Ok(space) => {
            let free = space
                .blocks_available()
                .saturating_mul(space.fragment_size());
            let found = format!("{} MiB free", free >> 20);
            let advice = "less than spool.free_space_min: new mail will get 452";
            Finding::judge(free > free_min, State::Wrong, &what, found, advice)
        }
    }
}

/// Whether every address is one of this machine's, by binding a port of the kernel's choice.
fn addresses(snapshot: &Snapshot) -> Vec<Finding> {
    let bind = |what: String, address: std::net::IpAddr| {
        let result = UdpSocket::bind(SocketAddr::new(address, 0));
        let found = match &result {
            Ok(_) => format!("{address} is here"),
            Err(error) => format!("{address}: {error}"),
        };
        let advice = "add the address to an interface of this machine";
        Finding::judge(result.is_ok(), State::Wrong, &what, found, advice)
    };
    let sources = snapshot
        .sources
        .iter()
        .filter_map(|source| Some(bind(format!("source {}", source.name), source.address?)));
    let listeners = snapshot.listeners.iter().map(|listener| {
        bind(
            format!("listener {}", listener.address),
            listener.address.ip(),
        )
    });
    sources.chain(listeners).collect()
}

/// The DKIM keys, as the daemon would load them; nothing where there are none.
fn keys(snapshot: &Snapshot) -> Vec<Finding> {
    let finding = |good, found| {
        let advice = "put the key file right, or make a new one with postrider keygen";
        Finding::judge(good, State::Wrong, "DKIM keys", found, advice)
    };
    match settings::load_keys(snapshot) {
        Ok(_) if snapshot.dkim.is_empty() => Vec::new(),
        Ok(_) => vec![finding(
            true,
            format!("{} can be used", snapshot.dkim.len()),
        )],
        Err(faults) => faults.into_iter().map(|one| finding(false, one)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions() {
        assert_eq!(version("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(version("5.15.153.1-microsoft"), Some((5, 15)));
        assert_eq!(version("6.12"), Some((6, 12)));
        for release in ["", "linux", "6", "6.x"] {
            assert_eq!(version(release), None, "{release}");
        }
    }

    // An address of a network reserved for documentation is on no machine; loopback is on all.
    #[test]
    fn foreign_addresses_are_found() {
        let text = b"[node]\nhostname = \"a.example\"\n\
            [[source]]\nname = \"here\"\naddress = \"127.0.0.1\"\n\
            [[source]]\nname = \"elsewhere\"\naddress = \"203.0.113.77\"\n";
        let findings = addresses(&config::parse(text).unwrap().snapshot);
        let states: Vec<State> = findings.iter().map(|finding| finding.state).collect();
        assert_eq!(states, [State::Good, State::Wrong]);
        assert!(show(&findings).contains("WRONG    source elsewhere: 203.0.113.77"));
    }

    #[test]
    fn data_directories_are_judged() {
        assert_eq!(data_dir(Path::new("/tmp"), 0).state, State::Good);
        assert_eq!(data_dir(Path::new("/tmp"), u64::MAX).state, State::Wrong);
        assert_eq!(
            data_dir(Path::new("/nowhere/at/all"), 0).state,
            State::Wrong
        );
        assert_eq!(
            data_dir(Path::new("/proc/version"), 0).found,
            "not a directory"
        );
    }
}
