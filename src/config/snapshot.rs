//! snapshot - the configuration as plain, checked values.
//!
//! What: what the daemon reads; built once from a file, never changed afterwards. A new file makes
//! a new snapshot, and a shard swaps the whole of it between two events.
//! Why this way: names are resolved here (a pool holds source numbers, not source names), so that
//! nothing behind this point looks up a string or can meet a reference to something missing.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::values::{Cidr, DomainPattern, HostPort, Rate};
use crate::dkim::{Canon, NoKey};
use crate::time::Wall;

/// One whole configuration, checked and immutable. Share it as `Arc<Snapshot>`.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// The machine: its name, its data, its cores.
    pub node: Node,
    /// The control socket.
    pub admin: Admin,
    /// Where mail comes in.
    pub listeners: Vec<Listener>,
    /// Whom to ask for MX and address records.
    pub dns: Dns,
    /// How mail goes out.
    pub delivery: Delivery,
    /// The durable logs.
    pub spool: Spool,
    /// Operational events on stderr.
    pub log: Log,
    /// How mail is signed.
    pub signing: Signing,
    /// DKIM keys, in the order of the file.
    pub dkim: Vec<Dkim>,
    /// Source addresses; never empty (without a `[[source]]` there is one that leaves the choice of
    /// the address to the kernel). The position is the source number of the queue.
    pub sources: Vec<Source>,
    /// Pools of sources; never empty (without a `[[pool]]` there is `default`, of all sources).
    pub pools: Vec<Pool>,
    /// Position in `pools` of the pool for mail that names none: the one called `default`, or the
    /// first.
    pub default_pool: usize,
    /// Routes in the order of the file; the first match wins, no match means MX.
    pub routes: Vec<Route>,
}

impl Snapshot {
    /// The position of the pool called `name`.
    #[must_use]
    pub fn pool(&self, name: &str) -> Option<usize> {
        self.pools.iter().position(|pool| &*pool.name == name)
    }

    /// The number of the source called `name`.
    #[must_use]
    pub fn source(&self, name: &str) -> Option<u16> {
        let position = self
            .sources
            .iter()
            .position(|source| &*source.name == name)?;
        u16::try_from(position).ok()
    }
}

/// `[node]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Our name: greeting, trace fields, reporting MTA, HELO of sources without a name. Lower case.
    pub hostname: Arc<str>,
    /// Where the spool and all other state live.
    pub data_dir: PathBuf,
    /// How many shards to run.
    pub shards: Shards,
}

/// How many shards to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shards {
    /// One per core that this process may use.
    Auto,
    /// This many; at most `limits::SHARDS_MAX`.
    Count(NonZeroU16),
}

/// `[admin]`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Admin {
    /// The Unix socket of the control API; none: no API.
    pub socket: Option<PathBuf>,
}

/// One `[[listener]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Address and port; port 0 lets the kernel choose.
    pub address: SocketAddr,
    /// Who may relay without authentication. Empty: nobody.
    pub relay_from: Vec<Cidr>,
    /// Largest message in bytes, announced with SIZE.
    pub max_message_size: u64,
    /// Most recipients of one transaction.
    pub max_recipients: u32,
    /// Most connections open at once on this listener, over all shards.
    pub connections_max: u32,
    /// How long a session may stay silent before 421.
    pub idle_timeout: Duration,
}

impl Listener {
    /// Whether `peer` may relay without authentication. An IPv4 peer of a dual-stack socket counts
    /// as IPv4.
    #[must_use]
    pub fn may_relay(&self, peer: IpAddr) -> bool {
        self.relay_from.iter().any(|network| network.contains(peer))
    }
}

/// `[dns]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dns {
    /// Name servers; empty: those of `/etc/resolv.conf`.
    pub servers: Vec<SocketAddr>,
    /// How long to wait for one answer.
    pub timeout: Duration,
    /// How often to ask before giving up, the first time included.
    pub attempts: u32,
}

/// `[delivery]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Delivery {
    /// The TCP port of receivers found by MX.
    pub port: u16,
    /// Most connections per (source, site).
    pub connections_max: u32,
    /// How long a TCP connection may take to be established.
    pub connect_timeout: Duration,
    /// How long an unused connection is kept.
    pub idle_timeout: Duration,
    /// Most transactions on one connection.
    pub messages_per_connection: u32,
    /// Most transactions in flight on one connection.
    pub pipeline_depth: u8,
    /// Most recipients of one outgoing transaction.
    pub recipients_per_message: u32,
    /// Waiting time before the second attempt, the third, ...; the last repeats. Never empty.
    pub retry: Vec<Duration>,
    /// Age at which an undelivered recipient fails.
    pub expire: Duration,
    /// Most messages per (source, site) and period; none: no limit.
    pub rate: Option<Rate>,
}

/// `[spool]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spool {
    /// At so many crashes in hand a message goes to quarantine.
    pub poison_crashes: u32,
    /// Bytes of one message log segment.
    pub segment_size: u64,
    /// Free bytes of the file system under which new mail is refused with 452.
    pub free_space_min: u64,
    /// Longest time that a result of a delivery waits to be written with others.
    pub settle_wait: Duration,
}

/// `[log]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// Least severe level that is written.
    pub level: LogLevel,
    /// The form of a line.
    pub format: LogFormat,
}

/// Severity of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Something is broken.
    Error,
    /// Something needs attention.
    Warn,
    /// Operational events; nothing per message.
    Info,
    /// Per connection and per message.
    Debug,
    /// Everything.
    Trace,
}

/// Form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people, in colour on a terminal.
    Text,
    /// One JSON object per line.
    Json,
}

/// One `[[dkim]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dkim {
    /// The From domains that are signed, lower case.
    pub domain: DomainPattern,
    /// The d= of the signature, lower case.
    pub signing_domain: Arc<str>,
    /// The selector under which the public key is published.
    pub selector: Arc<str>,
    /// The private key, PEM.
    pub key: PathBuf,
    /// Whether it also signs the mail of other domains that have keys.
    pub platform: bool,
    /// The i= of the signature; within `signing_domain`.
    pub identity: Option<Arc<str>>,
    /// When it begins to sign.
    pub not_before: Option<Wall>,
    /// When it signs no more; later than `not_before`.
    pub not_after: Option<Wall>,
}

/// `[signing]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signing {
    /// What happens to mail whose From domain has no key.
    pub no_key: NoKey,
    /// The c= of signatures: header, body.
    pub canonicalization: (Canon, Canon),
    /// Fields signed besides those that always are; they cannot be added afterwards.
    pub oversign: Vec<Arc<str>>,
    /// The x= of signatures, from the time of signing; longer than [`Delivery::expire`].
    pub expire: Option<Duration>,
}

/// One `[[source]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The name in pools, logs and headers.
    pub name: Arc<str>,
    /// The address that connections leave from; none: the kernel's choice.
    pub address: Option<IpAddr>,
    /// The name given in EHLO.
    pub helo: Arc<str>,
}

/// One `[[pool]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// The name in headers.
    pub name: Arc<str>,
    /// Its sources; never empty.
    pub members: Vec<PoolMember>,
}

/// A source in a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolMember {
    /// Position in [`Snapshot::sources`].
    pub source: u16,
    /// Share of the pool's messages, relative to the other members; at least 1.
    pub weight: u32,
}

/// One `[[route]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Recipient domains; never empty.
    pub domains: Vec<DomainPattern>,
    /// Where their mail goes, tried in this order; never empty.
    pub via: Vec<HostPort>,
}
