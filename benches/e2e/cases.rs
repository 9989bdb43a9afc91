//! cases - what is measured: one function per kind of case does one run and gives its figures.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket};
use postrider::dkim::{KeyKind, keygen};
use serde_json::Value;

use crate::disk;
use crate::report::Figures;
use crate::stage::{Daemon, Outcome, Place, Sink, failed, free_address, load};

/// What a run is told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale<'a> {
    /// Where spools go.
    pub(crate) base: &'a Path,
    /// Messages, where the user has said.
    pub(crate) messages: Option<u64>,
    /// As small as can be: to see that everything works.
    pub(crate) smoke: bool,
}

impl Scale<'_> {
    pub(crate) fn messages(&self, usual: u64, smoke: u64) -> u64 {
        let usual = if self.smoke { smoke } else { usual };
        self.messages.unwrap_or(usual)
    }
}

/// A case: its name, what it is, one run.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) run: fn(Scale<'_>) -> Outcome<Figures>,
}

/// Every case, in the order of the report.
pub(crate) const CASES: &[Case] = &[
    Case {
        name: "pipelined-bdat",
        about: "one shard, PIPELINING and BDAT in, BDAT out",
        run: |scale| {
            throughput(
                scale,
                Way {
                    chunking: true,
                    ..Way::PLAIN
                },
            )
        },
    },
    Case {
        name: "pipelined-data",
        about: "one shard, PIPELINING and DATA in, BDAT out",
        run: |scale| throughput(scale, Way::PLAIN),
    },
    Case {
        name: "basic",
        about: "one shard, four round trips in, BDAT out",
        run: |scale| {
            throughput(
                scale,
                Way {
                    basic: true,
                    ..Way::PLAIN
                },
            )
        },
    },
    Case {
        name: "data-out",
        about: "one shard, PIPELINING and BDAT in, DATA out",
        run: |scale| {
            throughput(
                scale,
                Way {
                    chunking: true,
                    manners: "no-chunking=100",
                    ..Way::PLAIN
                },
            )
        },
    },
    Case {
        name: "all-shards",
        about: "one shard per core, ten sites, PIPELINING and BDAT in, BDAT out",
        run: |scale| {
            throughput(
                scale,
                Way {
                    chunking: true,
                    all_shards: true,
                    ..Way::PLAIN
                },
            )
        },
    },
    Case {
        name: "signed-rsa",
        about: "pipelined-bdat with a DKIM signature, RSA-2048",
        run: |scale| {
            throughput(
                scale,
                Way {
                    chunking: true,
                    key: Some(KeyKind::Rsa2048),
                    ..Way::PLAIN
                },
            )
        },
    },
    Case {
        name: "signed-ed25519",
        about: "pipelined-bdat with a DKIM signature, Ed25519",
        run: |scale| {
            throughput(
                scale,
                Way {
                    chunking: true,
                    key: Some(KeyKind::Ed25519),
                    ..Way::PLAIN
                },
            )
        },
    },
    Case {
        name: "idle-10k",
        about: "10,000 inbound connections after EHLO, silent",
        run: idle,
    },
    Case {
        name: "slow-path",
        about: "one connection to a receiver whose replies take 50 ms",
        run: slow_path,
    },
    Case {
        name: "big-queue",
        about: "messages of 2 KiB for a receiver that is down; kill -9, and back to work",
        run: big_queue,
    },
    Case {
        name: "durable-accept",
        about: "one shard's spool alone: 10 KiB, synced, 50 and 400 at a time",
        run: disk::durable_accept,
    },
    Case {
        name: "cold-storm",
        about: "mail in at 2,000/s while a queue leaves that no memory holds",
        run: disk::cold_storm,
    },
];

/// What distinguishes the cases of throughput.
#[derive(Debug, Clone, Copy)]
struct Way {
    basic: bool,
    chunking: bool,
    all_shards: bool,
    manners: &'static str,
    key: Option<KeyKind>,
}

impl Way {
    const PLAIN: Self = Self {
        basic: false,
        chunking: false,
        all_shards: false,
        manners: "accept=100",
        key: None,
    };
}

/// How long a load of so many messages may take: 200 per second is a tenth of the slowest machine.
pub(crate) fn patience(messages: u64) -> Duration {
    Duration::from_secs(60 + messages / 200)
}

/// Everything goes to one site.
pub(crate) fn route(domain: &str, via: SocketAddr) -> String {
    format!("[[route]]\ndomains = [\"{domain}\"]\nvia = \"{via}\"\n")
}

/// A campaign of 10 KiB messages over 50 sessions, each synced before its 250.
fn throughput(scale: Scale<'_>, way: Way) -> Outcome<Figures> {
    let messages = scale.messages(50_000, 500);
    let place = Place::new(scale.base)?;
    let cores = if way.all_shards {
        available_parallelism().map_or(1, usize::from)
    } else {
        1
    };
    let sites: u8 = if way.all_shards { 10 } else { 1 };
    let sink = Sink::start(&place, u16::from(sites), cores, way.manners)?;
    let mut more = String::new();
    for site in 0..sites {
        more.push_str(&route(&format!("d{site}.lab.test"), sink.address(site)));
    }
    if let Some(kind) = way.key {
        let key = keygen(kind).map_err(failed("a new DKIM key"))?;
        let path = place.write("dkim.pem", &key.pem)?;
        more.push_str(&format!(
            "[[dkim]]\ndomain = \"lab.test\"\nselector = \"bench\"\nkey = {:?}\n",
            path.to_string_lossy()
        ));
    }
    let mut daemon = Daemon::start(&place, cores, &more)?;
    let (number, domains) = (messages.to_string(), sites.to_string());
    let mut args = vec!["--size", "10KiB", "--sessions", "50", "--messages", &number];
    args.extend(["--domains", &domains]);
    args.extend(way.basic.then_some("--basic"));
    args.extend(way.chunking.then_some("--chunking"));
    let (cpu, start) = (daemon.cpu_us()?, Instant::now());
    let report = load(daemon.address, &args, patience(messages))?;
    daemon.wait_for(&["delivered"], messages, patience(messages))?;
    let seconds = start.elapsed().as_secs_f64();
    let cpu = daemon.cpu_us()? - cpu;
    let rss = daemon.memory("VmHWM")?;
    let in_lanes = daemon.status(&["dkim_lane_signatures"])?;
    let batches = daemon.status(&["dkim_lane_batches"])?;
    daemon.stop()?;
    let figure = |path: &str| {
        report
            .pointer(path)
            .and_then(Value::as_f64)
            .ok_or("no such figure")
    };
    let mut figures = vec![
        ("cpu_us_per_message", cpu / messages as f64),
        ("accepted_per_second", figure("/messages_per_second")?),
        ("delivered_per_second", messages as f64 / seconds),
        ("cores_used", cpu / 1e6 / seconds),
        ("accept_p50_ms", figure("/latency_us/p50")? / 1e3),
        ("accept_p99_ms", figure("/latency_us/p99")? / 1e3),
        ("rss_peak_mib", rss / f64::from(1 << 20)),
    ];
    if batches > 0 {
        figures.push(("signatures_per_batch", in_lanes as f64 / batches as f64));
    }
    Ok(figures)
}

/// Memory of the daemon per inbound connection that does nothing.
fn idle(scale: Scale<'_>) -> Outcome<Figures> {
    let wanted: u16 = if scale.smoke { 500 } else { 10_000 };
    let place = Place::new(scale.base)?;
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).map_err(failed("open files"))?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).map_err(failed("open files"))?;
    if most < u64::from(wanted) + 200 {
        return Err(format!(
            "{wanted} connections need `ulimit -Hn` above that; it is {most}"
        ));
    }
    let daemon = Daemon::start(&place, 1, &route("*", free_address()?))?;
    // What the first session brings into memory is not the sessions' own.
    drop(idle_session(daemon.address, 0)?);
    let before = daemon.memory("VmRSS")?;
    let sessions = (0..wanted).map(|number| idle_session(daemon.address, number));
    let sessions = sessions.collect::<Outcome<Vec<_>>>()?;
    let open = daemon.status(&["sessions"])?;
    if open < u64::from(wanted) {
        return Err(format!("only {open} sessions of {wanted} are open"));
    }
    let after = daemon.memory("VmRSS")?;
    drop(sessions);
    daemon.stop()?;
    Ok(vec![
        (
            "rss_bytes_per_connection",
            (after - before) / f64::from(wanted),
        ),
        ("rss_before_mib", before / f64::from(1 << 20)),
        ("rss_after_mib", after / f64::from(1 << 20)),
    ])
}

/// A session after its EHLO. A thousand come from one address: a listener sees many clients, and no
/// address runs out of ports.
fn idle_session(to: SocketAddr, number: u16) -> Outcome<TcpStream> {
    let what = "an idle connection";
    let SocketAddr::V4(to) = to else {
        return Err("the listener is not IPv4".to_owned());
    };
    let address = u8::try_from(number / 1000).unwrap_or(u8::MAX);
    let from = SockaddrIn::new(127, 9, 0, address + 1, 0);
    let fd = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .map_err(failed(what))?;
    bind(fd.as_raw_fd(), &from).map_err(failed(what))?;
    connect(fd.as_raw_fd(), &SockaddrIn::from(to)).map_err(failed(what))?;
    let stream = TcpStream::from(fd);
    Dialogue::new(&stream)?.greet()?;
    Ok(stream)
}

/// A client's side of a session, by hand.
struct Dialogue<'a> {
    stream: &'a TcpStream,
    lines: BufReader<&'a TcpStream>,
}

impl<'a> Dialogue<'a> {
    fn new(stream: &'a TcpStream) -> Outcome<Self> {
        let patience = Some(Duration::from_secs(60));
        stream
            .set_read_timeout(patience)
            .map_err(failed("a session"))?;
        stream
            .set_write_timeout(patience)
            .map_err(failed("a session"))?;
        // Every reply is awaited before the next command, so nothing is lost in this buffer.
        Ok(Self {
            stream,
            lines: BufReader::with_capacity(1024, stream),
        })
    }

    fn greet(&mut self) -> Outcome<()> {
        self.expect("220")?;
        self.say("EHLO bench.test\r\n", "250")
    }

    fn say(&mut self, words: &str, code: &str) -> Outcome<()> {
        self.stream
            .write_all(words.as_bytes())
            .map_err(failed("a session"))?;
        self.expect(code)
    }

    fn expect(&mut self, code: &str) -> Outcome<()> {
        let mut line = String::new();
        loop {
            line.clear();
            self.lines
                .read_line(&mut line)
                .map_err(failed("a session"))?;
            if !line.starts_with(code) {
                return Err(format!("expected {code}, got {line:?}"));
            }
            if line.as_bytes().get(3) != Some(&b'-') {
                return Ok(());
            }
        }
    }
}

/// Messages per second over one connection with 50 ms of latency, with the extensions and without.
fn slow_path(scale: Scale<'_>) -> Outcome<Figures> {
    let (fast, plain) = if scale.smoke { (20, 5) } else { (200, 50) };
    let fast = over_slow_path(scale, "delay:50ms=100", fast)?;
    let plain = over_slow_path(scale, "delay:50ms+no-chunking+no-pipelining=100", plain)?;
    Ok(vec![
        ("messages_per_second", fast),
        ("plain_messages_per_second", plain),
        ("ratio", fast / plain),
    ])
}

fn over_slow_path(scale: Scale<'_>, manners: &str, messages: u64) -> Outcome<f64> {
    let place = Place::new(scale.base)?;
    let sink = Sink::start(&place, 1, 1, manners)?;
    let more = format!(
        "[delivery]\nconnections_max = 1\n{}",
        route("*", sink.address(0))
    );
    let mut daemon = Daemon::start(&place, 1, &more)?;
    let number = messages.to_string();
    let start = Instant::now();
    load(
        daemon.address,
        &["--size", "10KiB", "--messages", &number],
        patience(messages),
    )?;
    daemon.wait_for(&["delivered"], messages, patience(messages))?;
    let seconds = start.elapsed().as_secs_f64();
    daemon.stop()?;
    Ok(messages as f64 / seconds)
}

/// A queue that cannot drain: what an entry costs in memory, how soon work goes on after a crash.
fn big_queue(scale: Scale<'_>) -> Outcome<Figures> {
    let messages = scale.messages(100_000, 1_000);
    let place = Place::new(scale.base)?;
    // Nobody listens there; the spool is the shard's own, so one shard is what is measured.
    let down = route("*", free_address()?);
    let mut daemon = Daemon::start(&place, 1, &down)?;
    let empty = daemon.memory("RssAnon")?;
    let number = messages.to_string();
    let args = ["--chunking", "--size", "2KiB", "--messages", &number];
    let report = load(daemon.address, &args, patience(messages))?;
    let accepted = report["messages_per_second"].as_f64().ok_or("no rate")?;
    let waiting = ["ready", "deferred", "in_flight"];
    daemon.wait_for(&waiting, messages, patience(messages))?;
    let grown = daemon.memory("RssAnon")? - empty;
    let start = Instant::now();
    daemon.crash_and_restart()?;
    let ready = start.elapsed().as_secs_f64();
    deliver_one(daemon.address)?;
    let first = start.elapsed().as_secs_f64();
    daemon.wait_for(&waiting, messages + 1, patience(messages))?;
    let loaded = start.elapsed().as_secs_f64();
    let index = daemon.memory("RssAnon")? - empty;
    daemon.stop()?;
    Ok(vec![
        ("accepted_per_second", accepted),
        ("ram_bytes_per_message", index / messages as f64),
        ("ram_mib_before_crash", grown / f64::from(1 << 20)),
        ("restart_ready_seconds", ready),
        ("restart_first_250_seconds", first),
        ("restart_all_queued_seconds", loaded),
    ])
}

/// One message by hand, up to its 250.
fn deliver_one(to: SocketAddr) -> Outcome<()> {
    let stream = TcpStream::connect(to).map_err(failed("the first session"))?;
    let mut dialogue = Dialogue::new(&stream)?;
    dialogue.greet()?;
    dialogue.say("MAIL FROM:<a@lab.test>\r\n", "250")?;
    dialogue.say("RCPT TO:<b@d0.lab.test>\r\n", "250")?;
    dialogue.say("DATA\r\n", "354")?;
    dialogue.say("Subject: first\r\n\r\nHello\r\n.\r\n", "250")?;
    dialogue.say("QUIT\r\n", "221")
}
