//! parameters - the one table of everything that can be configured.
//!
//! What: a row per parameter, with its type, bounds, default, example and a sentence. The reader
//! checks a file against these rows, and the reference documentation is printed from them, so that
//! neither can know a parameter that the other does not.
//! A new parameter is a row here, a field in [`super::Snapshot`], a line in `build.rs`, and a
//! reader of the field outside this room: `tests/tidy.rs` refuses a row that nothing reads.

use crate::limits::{RECIPIENTS_ACCEPTED_MIN, SHARDS_MAX};

/// A table of the file.
#[derive(Debug, Clone, Copy)]
pub struct Section {
    /// The name between brackets; "pool.sources" for a table inside an array.
    pub name: &'static str,
    /// How it is written.
    pub shape: Shape,
    /// What it is for, in a sentence or two.
    pub about: &'static str,
}

/// How a section is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// `[name]`, at most once.
    Table,
    /// `[[name]]`, any number of times.
    Array,
    /// `{ ... }` inside the list that is the value of the parameter of this name.
    Inline,
}

/// One parameter.
#[derive(Debug, Clone, Copy)]
pub struct Parameter {
    /// The section it stands in.
    pub section: &'static str,
    /// Its key.
    pub name: &'static str,
    /// Type and bounds.
    pub kind: Kind,
    /// What happens when it is not given.
    pub absent: Absent,
    /// A value as it is written in the file.
    pub example: &'static str,
    /// What it does, in a sentence or two.
    pub about: &'static str,
    /// Whether a change takes effect only when the daemon starts.
    pub needs_restart: bool,
}

impl Parameter {
    /// "listener.address".
    #[must_use]
    pub fn path(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }
}

/// What a missing parameter means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absent {
    /// An error.
    Refused,
    /// This value, as it would be written in the file.
    Default(&'static str),
    /// What the sentence fragment says.
    Means(&'static str),
}

/// The type of a parameter, with its bounds (both included).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A host name.
    Hostname,
    /// A name that other parts of the file or headers refer to.
    Name,
    /// A file system path.
    Path,
    /// "auto" or a number from 1.
    AutoOr {
        /// The largest number.
        max: u64,
    },
    /// A whole number.
    Integer {
        /// The smallest value.
        min: u64,
        /// The largest value.
        max: u64,
    },
    /// A size with a unit.
    Size {
        /// The smallest value in bytes.
        min: u64,
        /// The largest value in bytes.
        max: u64,
    },
    /// A duration with a unit.
    Duration {
        /// The smallest value in milliseconds.
        min_ms: u64,
        /// The largest value in milliseconds.
        max_ms: u64,
    },
    /// A list of durations, not empty, each within the bounds.
    Durations {
        /// The smallest value in milliseconds.
        min_ms: u64,
        /// The largest value in milliseconds.
        max_ms: u64,
    },
    /// So many per period.
    Rate,
    /// true or false.
    Flag,
    /// A list of header field names.
    FieldNames,
    /// A mail address whose part before the @ may be empty.
    Identity,
    /// A date and a time of day with its offset from UTC (RFC 3339).
    DateTime,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// An IP address.
    Address,
    /// An address and a port.
    SocketAddress,
    /// A list of addresses with or without a port.
    SocketAddresses {
        /// The port of an address without one.
        port: u16,
    },
    /// A list of networks.
    Networks,
    /// One domain pattern.
    Pattern,
    /// A list of domain patterns, not empty.
    Patterns,
    /// One host, or a list of hosts in order, each with or without a port.
    Hosts {
        /// The port of a host without one.
        port: u16,
    },
    /// A list of inline tables, not empty, of the section called "parent.name".
    Tables,
}

const SECOND: u64 = 1_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

const fn table(name: &'static str, about: &'static str) -> Section {
    Section {
        name,
        shape: Shape::Table,
        about,
    }
}

const fn array(name: &'static str, about: &'static str) -> Section {
    Section {
        name,
        shape: Shape::Array,
        about,
    }
}

/// Every section, in the order of the documentation.
pub const SECTIONS: &[Section] = &[
    table("node", "The machine: its name, its data, its cores."),
    table(
        "admin",
        "The local control socket that `postrider ctl` talks to.",
    ),
    array(
        "listener",
        "Where mail comes in. A node without one only sends what its spool holds.",
    ),
    table("dns", "Whom to ask for MX and address records."),
    table("delivery", "How mail goes out."),
    table(
        "spool",
        "The durable logs of messages and of what became of them.",
    ),
    table("signing", "How mail is signed (DKIM, RFC 6376)."),
    array(
        "dkim",
        "A signing key. A message is signed when its From domain matches: by the rows of exactly \
         that \
         domain, else of the nearest \"*.parent\", else of \"*\"; all rows of the rule found \
         sign, so \
         that two algorithms and two selectors can be active at once. A key file that changes is \
         read \
         again while the daemon runs (at once on SIGHUP); one that cannot be used leaves the old \
         keys \
         at work.",
    ),
    array(
        "source",
        "An address that mail leaves from, with its name. Without any, the kernel chooses the \
         address and the HELO name is node.hostname.",
    ),
    array(
        "pool",
        "Sources that share traffic by weight. Mail that names no pool uses the one called \
         \"default\", or else the first; without any, \"default\" holds all sources equally.",
    ),
    Section {
        name: "pool.sources",
        shape: Shape::Inline,
        about: "A source of a pool, with its share.",
    },
    array(
        "route",
        "Where mail for some domains goes; first match wins, without a match MX.",
    ),
    table(
        "log",
        "Operational events on stderr. Nothing is logged per message at level info.",
    ),
];

/// A row. Nothing can be changed while the daemon runs yet, hence every row needs a restart.
const fn row(
    section: &'static str,
    name: &'static str,
    kind: Kind,
    absent: Absent,
    example: &'static str,
    about: &'static str,
) -> Parameter {
    Parameter {
        section,
        name,
        kind,
        absent,
        example,
        about,
        needs_restart: true,
    }
}

/// Every parameter, in the order of the documentation.
pub const PARAMETERS: &[Parameter] = &[
    row(
        "node",
        "hostname",
        Kind::Hostname,
        Absent::Refused,
        "\"mta1.example.com\"",
        "The full name of this machine: in the greeting, in trace fields, in bounces, and as HELO \
         where a source has none. Receivers expect it to resolve to the sending address.",
    ),
    row(
        "node",
        "data_dir",
        Kind::Path,
        Absent::Default("\"/var/lib/postrider\""),
        "\"/srv/postrider\"",
        "The directory of the spool and all other state. It is created where its parent exists; \
         put it on local storage that honours flushes.",
    ),
    row(
        "node",
        "shards",
        Kind::AutoOr {
            max: SHARDS_MAX as u64,
        },
        Absent::Default("\"auto\""),
        "2",
        "How many shards to run, each on a core of its own; \"auto\" is one per usable core.",
    ),
    row(
        "admin",
        "socket",
        Kind::Path,
        Absent::Means("no control socket"),
        "\"/run/postrider/admin.sock\"",
        "The Unix socket of the control API. It is made with mode 0600: who may open it may steer \
         the node.",
    ),
    row(
        "listener",
        "address",
        Kind::SocketAddress,
        Absent::Refused,
        "\"127.0.0.1:2525\"",
        "The address and port to listen on; port 0 lets the kernel choose.",
    ),
    row(
        "listener",
        "relay_from",
        Kind::Networks,
        Absent::Default("[]"),
        "[\"127.0.0.0/8\", \"10.1.2.0/24\"]",
        "The networks whose clients may send mail to anywhere without authentication.",
    ),
    row(
        "listener",
        "max_message_size",
        // RFC 5321 4.5.3.1.7: at least 64 KiB. The upper bound is that of a record's length.
        Kind::Size {
            min: 64 << 10,
            max: 1 << 30,
        },
        Absent::Default("\"50MiB\""),
        "\"25MiB\"",
        "The largest message accepted, announced with SIZE; a larger one gets 552.",
    ),
    row(
        "listener",
        "max_recipients",
        Kind::Integer {
            min: RECIPIENTS_ACCEPTED_MIN as u64,
            max: 10_000,
        },
        Absent::Default("1000"),
        "500",
        "The most recipients of one transaction; further ones get 452 and may be sent next.",
    ),
    row(
        "listener",
        "connections_max",
        Kind::Integer {
            min: 1,
            max: 1_000_000,
        },
        Absent::Default("20000"),
        "2000",
        "The most connections open at once, shared equally by the shards; further ones get 421.",
    ),
    row(
        "listener",
        "idle_timeout",
        Kind::Duration {
            min_ms: SECOND,
            max_ms: DAY,
        },
        Absent::Default("\"5m\""),
        "\"10m\"",
        "How long a session may stay silent before it gets 421 (RFC 5321 asks for 5 minutes).",
    ),
    row(
        "dns",
        "servers",
        Kind::SocketAddresses { port: 53 },
        Absent::Means("those of /etc/resolv.conf"),
        "[\"127.0.0.1\", \"[::1]:5353\"]",
        "The name servers to ask, with a port where it is not 53. A caching resolver on the same \
         machine is best.",
    ),
    row(
        "dns",
        "timeout",
        Kind::Duration {
            min_ms: 100,
            max_ms: MINUTE,
        },
        Absent::Default("\"5s\""),
        "\"2s\"",
        "How long to wait for one answer.",
    ),
    row(
        "dns",
        "attempts",
        Kind::Integer { min: 1, max: 10 },
        Absent::Default("2"),
        "3",
        "How often a question is asked before its mail is deferred, the first time included.",
    ),
    row(
        "delivery",
        "port",
        Kind::Integer {
            min: 1,
            max: 65_535,
        },
        Absent::Default("25"),
        "2526",
        "The TCP port of receivers found by MX; another one is for tests.",
    ),
    row(
        "delivery",
        "connections_max",
        Kind::Integer { min: 1, max: 1_000 },
        Absent::Default("20"),
        "10",
        "The most connections at once per source and site, by all shards together. A shard may use \
         all of them while no other has mail for the site.",
    ),
    row(
        "delivery",
        "connect_timeout",
        Kind::Duration {
            min_ms: SECOND,
            max_ms: 10 * MINUTE,
        },
        Absent::Default("\"30s\""),
        "\"1m\"",
        "How long a TCP connection may take to be established before the next host is tried.",
    ),
    row(
        "delivery",
        "idle_timeout",
        Kind::Duration {
            min_ms: 0,
            max_ms: 5 * MINUTE,
        },
        Absent::Default("\"5s\""),
        "\"30s\"",
        "How long an unused connection is kept open for the next message.",
    ),
    row(
        "delivery",
        "messages_per_connection",
        Kind::Integer {
            min: 1,
            max: 1_000_000_000,
        },
        Absent::Default("1000"),
        "100",
        "The most messages on one connection before it is closed and another opened.",
    ),
    row(
        "delivery",
        "pipeline_depth",
        Kind::Integer { min: 1, max: 16 },
        Absent::Default("2"),
        "1",
        "The most messages in flight on one connection to a receiver with PIPELINING and CHUNKING; \
         with 1 each waits for the answer to the one before.",
    ),
    row(
        "delivery",
        "recipients_per_message",
        Kind::Integer {
            min: 1,
            max: RECIPIENTS_ACCEPTED_MIN as u64,
        },
        Absent::Default("100"),
        "50",
        "The most recipients of one outgoing transaction; a message with more is sent in several.",
    ),
    row(
        "delivery",
        "retry",
        Kind::Durations {
            min_ms: SECOND,
            max_ms: 7 * DAY,
        },
        Absent::Default("[\"5m\", \"15m\", \"30m\", \"1h\", \"2h\", \"4h\"]"),
        "[\"1m\", \"5m\", \"30m\"]",
        "The waits before the second attempt, the third and so on; the last one repeats until \
         delivery.expire.",
    ),
    row(
        "delivery",
        "expire",
        Kind::Duration {
            min_ms: SECOND,
            max_ms: 30 * DAY,
        },
        Absent::Default("\"4d\""),
        "\"2d\"",
        "The age at which an undelivered recipient fails and the sender is told.",
    ),
    row(
        "delivery",
        "rate",
        Kind::Rate,
        Absent::Means("no limit"),
        "\"100/s\"",
        "The most messages per source and site in a period.",
    ),
    row(
        "spool",
        "segment_size",
        Kind::Size {
            min: 1 << 20,
            max: 1 << 30,
        },
        Absent::Default("\"64MiB\""),
        "\"128MiB\"",
        "The size of one file of the message log, a multiple of 4 KiB, and at most a 32nd of the \
         file system. Files are written in full before their first use and then reused.",
    ),
    row(
        "spool",
        "free_space_min",
        Kind::Size {
            min: 0,
            max: 1 << 50,
        },
        Absent::Default("\"256MiB\""),
        "\"10GiB\"",
        "The free space of the file system under which no further file is made and new mail gets \
         452; mail already accepted goes on. The default is a sixteenth of a file system that is \
         smaller than 4 GiB.",
    ),
    row(
        "spool",
        "settle_wait",
        Kind::Duration {
            min_ms: 0,
            max_ms: 100,
        },
        Absent::Default("\"2ms\""),
        "\"10ms\"",
        "How long the result of a delivery may wait to be written with others, a quarter of a \
         millisecond at most where results come slowly. What still waits when the power goes is \
         sent again; what is written alone costs a write of its own.",
    ),
    row(
        "spool",
        "poison_crashes",
        Kind::Integer { min: 1, max: 100 },
        Absent::Default("3"),
        "5",
        "A message that was in hand at so many crashes of the daemon, by a fault of its own (a \
         panic, an abort, an invalid access; never SIGKILL, a lack of memory or a power cut), \
         with no attempt that ended in between, goes to quarantine instead of being tried again.",
    ),
    row(
        "signing",
        "no_key",
        Kind::Choice(&["unsigned", "reject", "platform"]),
        Absent::Default("\"unsigned\""),
        "\"reject\"",
        "What happens to mail whose From domain has no key: it goes out unsigned, it is refused \
         with \
         550 when it is submitted, or the platform's keys alone sign it. Mail that has a key and \
         cannot be signed (no From field, or more than 1,000 fields to sign) is refused with 554 \
         where this is \"reject\", and else goes out unsigned, which is logged and counted as \
         dkim_unsignable.",
    ),
    row(
        "signing",
        "canonicalization",
        Kind::Choice(&[
            "relaxed/relaxed",
            "relaxed/simple",
            "simple/relaxed",
            "simple/simple",
        ]),
        Absent::Default("\"relaxed/relaxed\""),
        "\"relaxed/simple\"",
        "The c= of signatures, header/body. What is not relaxed breaks when a relay folds a field \
         or \
         removes a trailing blank.",
    ),
    row(
        "signing",
        "oversign",
        Kind::FieldNames,
        Absent::Default("[]"),
        "[\"X-Customer\", \"X-Entity-ID\"]",
        "Header fields that are signed besides From, To, Cc, Subject, Date and the others that \
         always \
         are, and that nobody may add afterwards.",
    ),
    row(
        "signing",
        "expire",
        Kind::Duration {
            min_ms: HOUR,
            max_ms: 365 * DAY,
        },
        Absent::Means("signatures do not expire"),
        "\"14d\"",
        "The x= of signatures: how long after signing they count. Longer than delivery.expire, \
         since \
         a message is signed once, before its first attempt.",
    ),
    row(
        "dkim",
        "domain",
        Kind::Pattern,
        Absent::Refused,
        "\"example.com\"",
        "The From domain that this key signs for: \"example.com\" is itself only, \
         \"*.example.com\" \
         what is below it, \"*\" everything that has no other row.",
    ),
    row(
        "dkim",
        "signing_domain",
        Kind::Hostname,
        Absent::Means("dkim.domain, without its \"*.\""),
        "\"example.com\"",
        "The d= of the signature; needed where dkim.domain is \"*\".",
    ),
    row(
        "dkim",
        "selector",
        Kind::Hostname,
        Absent::Refused,
        "\"s1\"",
        "The name under which the public key is published: <selector>._domainkey.<signing_domain>.",
    ),
    row(
        "dkim",
        "key",
        Kind::Path,
        Absent::Refused,
        "\"/etc/postrider/dkim/example.com.pem\"",
        "The file of the private key, in PEM: RSA from 2048 bits or Ed25519. Nobody but its owner \
         may \
         read it (mode 0600). `postrider keygen` makes one.",
    ),
    row(
        "dkim",
        "platform",
        Kind::Flag,
        Absent::Default("false"),
        "true",
        "Whether this key is the platform's: it then signs every message that has a key of its \
         sender's domain too, below the sender's own signature.",
    ),
    row(
        "dkim",
        "identity",
        Kind::Identity,
        Absent::Means("no i= tag"),
        "\"@example.com\"",
        "The i= of the signature, within the signing domain; some feedback loops go by it.",
    ),
    row(
        "dkim",
        "not_before",
        Kind::DateTime,
        Absent::Means("from the start"),
        "2027-01-01T00:00:00Z",
        "When this key begins to sign, for a rotation planned beforehand: the new selector is \
         published and configured days before, and signs from this moment on.",
    ),
    row(
        "dkim",
        "not_after",
        Kind::DateTime,
        Absent::Means("no end"),
        "2027-01-08T00:00:00Z",
        "When this key signs no more. Mail whose From domain has no other key at that time is \
         treated as signing.no_key says. Leave its record published for delivery.expire longer, \
         and as long as receivers may still verify what it has signed.",
    ),
    row(
        "source",
        "name",
        Kind::Name,
        Absent::Refused,
        "\"ip1\"",
        "The name in pools, logs and the X-Postrider-Source header.",
    ),
    row(
        "source",
        "address",
        Kind::Address,
        Absent::Means("the kernel's choice"),
        "\"192.0.2.10\"",
        "The local address that connections leave from. It must be configured on this machine.",
    ),
    row(
        "source",
        "helo",
        Kind::Hostname,
        Absent::Means("node.hostname"),
        "\"ip1.example.com\"",
        "The name given in EHLO; it should resolve to the address and back.",
    ),
    row(
        "pool",
        "name",
        Kind::Name,
        Absent::Refused,
        "\"default\"",
        "The name in the X-Postrider-Pool header.",
    ),
    row(
        "pool",
        "sources",
        Kind::Tables,
        Absent::Refused,
        "[{ source = \"ip1\", weight = 3 }, { source = \"ip2\" }]",
        "The sources of this pool.",
    ),
    row(
        "pool.sources",
        "source",
        Kind::Name,
        Absent::Refused,
        "\"ip1\"",
        "The name of a [[source]].",
    ),
    row(
        "pool.sources",
        "weight",
        Kind::Integer {
            min: 1,
            max: 10_000,
        },
        Absent::Default("1"),
        "3",
        "The share of the pool's messages, relative to the other sources.",
    ),
    row(
        "route",
        "domains",
        Kind::Patterns,
        Absent::Refused,
        "[\"example.com\", \"*.example.net\"]",
        "The recipient domains: \"example.com\" is itself only, \"*.example.com\" what is below \
         it, \"*\" everything.",
    ),
    row(
        "route",
        "via",
        Kind::Hosts { port: 25 },
        Absent::Refused,
        "\"relay.example.com:25\"",
        "The host that takes their mail, by name or address, or a list tried in order.",
    ),
    row(
        "log",
        "level",
        Kind::Choice(&["error", "warn", "info", "debug", "trace"]),
        Absent::Default("\"info\""),
        "\"debug\"",
        "The least severe events that are written; RUST_LOG, where set, goes before it.",
    ),
    row(
        "log",
        "format",
        Kind::Choice(&["text", "json"]),
        Absent::Default("\"text\""),
        "\"json\"",
        "Lines for people, or one JSON object per line.",
    ),
];

/// The section called `name`.
#[must_use]
pub(super) fn section(name: &str) -> Option<&'static Section> {
    SECTIONS.iter().find(|section| section.name == name)
}

/// The rows of a section, in order.
pub(super) fn rows(section: &str) -> impl Iterator<Item = &'static Parameter> + Clone {
    PARAMETERS.iter().filter(move |row| row.section == section)
}
