//! build - rows of typed values into a snapshot; what concerns several parameters is checked here.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::error::nearest;
use super::read::{Cell, Problems, Row, Sections, Value};
use super::snapshot::{
    Admin, Delivery, Dkim, Dns, Listener, Log, LogFormat, LogLevel, Node, Pool, PoolMember, Route,
    Shards, Signing, Snapshot, Source, Spool,
};
use super::values::{Cidr, DomainPattern, Host, HostPort, Rate, show_duration, show_size};
use crate::dkim::{Canon, NoKey, SignOptions};
use crate::limits::SOURCES_MAX;

/// Typed access to a cell: none where it is absent (or wrong, which was reported).
macro_rules! cell {
    ($row:expr, $name:literal, $variant:ident) => {
        match $row.cells.get($name) {
            Some(Cell {
                value: Value::$variant(value),
                ..
            }) => Some(value.clone()),
            _ => None,
        }
    };
}

fn only<'s>(sections: &'s Sections, name: &str) -> Option<&'s Row> {
    sections.get(name)?.first()
}

fn all<'s>(sections: &'s Sections, name: &str) -> &'s [Row] {
    sections.get(name).map_or(&[], Vec::as_slice)
}

fn place(row: &Row, name: &str) -> (Range<usize>, String) {
    let span = row.cells.get(name).map_or(&row.span, |cell| &cell.span);
    (span.clone(), format!("{}.{name}", row.path))
}

/// Reports what is impossible in combination. Works on whatever rows could be read.
pub(super) fn check(sections: &Sections, problems: &mut Problems<'_>) {
    unique(sections, "source", "name", problems);
    unique(sections, "pool", "name", problems);
    check_listeners(sections, problems);
    check_sources(sections, problems);
    check_pools(sections, problems);
    check_dkim(sections, problems);
    check_signing(sections, problems);
    check_routes(sections, problems);
    check_delivery(sections, problems);
    check_spool(sections, problems);
}

fn unique(sections: &Sections, section: &str, name: &str, problems: &mut Problems<'_>) {
    let mut seen: HashMap<Arc<str>, &str> = HashMap::new();
    for row in all(sections, section) {
        let Some(Cell {
            value: Value::Text(text),
            ..
        }) = row.cells.get(name)
        else {
            continue;
        };
        if let Some(first) = seen.insert(text.clone(), &row.path) {
            let (span, key) = place(row, name);
            problems.add(
                &span,
                &key,
                format!("\"{text}\" is already the {name} of {first}"),
            );
        }
    }
}

fn check_listeners(sections: &Sections, problems: &mut Problems<'_>) {
    let mut seen: HashMap<SocketAddr, &str> = HashMap::new();
    for row in all(sections, "listener") {
        let Some(address) = cell!(row, "address", Socket) else {
            continue;
        };
        if address.port() == 0 {
            continue;
        }
        if let Some(first) = seen.insert(address, &row.path) {
            let (span, key) = place(row, "address");
            problems.add(
                &span,
                &key,
                format!("{address} is already the address of {first}"),
            );
        }
    }
}

fn check_sources(sections: &Sections, problems: &mut Problems<'_>) {
    for (index, row) in all(sections, "source").iter().enumerate() {
        if index == SOURCES_MAX {
            problems.add(
                &row.span,
                &row.path,
                format!("more than {SOURCES_MAX} sources"),
            );
        }
        let Some(address) = cell!(row, "address", Address) else {
            continue;
        };
        if address.is_unspecified() || address.is_multicast() {
            let (span, key) = place(row, "address");
            let hint = "mail cannot leave from it; leave the key out to let the kernel choose";
            problems.add(&span, &key, format!("{address}: {hint}"));
        }
    }
}

fn check_pools(sections: &Sections, problems: &mut Problems<'_>) {
    let names: Vec<Arc<str>> = all(sections, "source")
        .iter()
        .filter_map(|row| cell!(row, "name", Text))
        .collect();
    for pool in all(sections, "pool") {
        let mut seen: Vec<Arc<str>> = Vec::new();
        for member in &cell!(pool, "sources", Rows).unwrap_or_default() {
            let Some(name) = cell!(member, "source", Text) else {
                continue;
            };
            let (span, key) = place(member, "source");
            if !names.contains(&name) {
                let near = nearest(&name, names.iter().map(|name| &**name));
                let message = match (&near, names.is_empty()) {
                    (None, false) => format!("no [[source]] is called \"{name}\""),
                    (None, true) => format!("no [[source]] is called \"{name}\"; there is none"),
                    (Some(_), _) => format!("no [[source]] is called \"{name}\""),
                };
                problems.add_near(&span, &key, message, near);
            } else if seen.contains(&name) {
                problems.add(&span, &key, format!("\"{name}\" is in this pool already"));
            }
            seen.push(name);
        }
    }
}

fn check_dkim(sections: &Sections, problems: &mut Problems<'_>) {
    type Record = (Arc<str>, Arc<str>);
    let mut rules: HashMap<(DomainPattern, Record), &str> = HashMap::new();
    let mut files: HashMap<Record, (PathBuf, &str)> = HashMap::new();
    for row in all(sections, "dkim") {
        check_dkim_row(row, problems);
        let names = signing_domain(row).zip(cell!(row, "selector", Text));
        let Some(((domain, selector), pattern)) = names.zip(cell!(row, "domain", Pattern)) else {
            continue;
        };
        let record = (domain.clone(), selector.clone());
        let (span, key) = place(row, "selector");
        if let Some(first) = rules.insert((pattern, record.clone()), &row.path) {
            let message = format!("{first} is already the key of {selector}._domainkey.{domain}");
            problems.add(&span, &key, message);
            continue;
        }
        let Some(file) = cell!(row, "key", Path) else {
            continue;
        };
        let (other, first) = files
            .entry(record)
            .or_insert_with(|| (file.clone(), &row.path));
        if *other != file {
            let message = format!(
                "{first} has another key for {selector}._domainkey.{domain}; a record has one key"
            );
            problems.add(&span, &key, message);
        }
    }
}

fn check_dkim_row(row: &Row, problems: &mut Problems<'_>) {
    if let Some((from, until)) = cell!(row, "not_before", Date).zip(cell!(row, "not_after", Date))
        && until <= from
    {
        let (span, key) = place(row, "not_after");
        let message = "not later than not_before: this key would never sign";
        problems.add(&span, &key, message);
    }
    let Some(pattern) = cell!(row, "domain", Pattern) else {
        return;
    };
    let (span, key) = place(row, "domain");
    if cell!(row, "platform", Flag) == Some(true) && !matches!(pattern, DomainPattern::Exact(_)) {
        let message = format!("the platform has one domain, not {pattern}");
        problems.add(&span, &key, message);
    }
    let Some(domain) = signing_domain(row) else {
        // Absent, or wrong and reported: only the first is news.
        if !row.cells.contains_key("signing_domain") {
            let message = "\"*\" does not say who signs; give signing_domain as well";
            problems.add(&span, &key, message);
        }
        return;
    };
    if !domain.contains('.') {
        let (span, key) = place(row, "domain");
        let message = format!("\"{domain}\" cannot sign: not a full domain name");
        problems.add(&span, &key, message);
    }
    let within = |identity: &str| {
        let below = identity
            .rsplit_once('@')
            .and_then(|(_, host)| host.strip_suffix(&*domain));
        below.is_some_and(|head| head.is_empty() || head.ends_with('.'))
    };
    if let Some(identity) = cell!(row, "identity", Text)
        && !within(&identity)
    {
        let (span, key) = place(row, "identity");
        let message = format!("{identity} is not within the signing domain {domain}");
        problems.add(&span, &key, message);
    }
}

fn check_signing(sections: &Sections, problems: &mut Problems<'_>) {
    let Some(row) = only(sections, "signing") else {
        return;
    };
    let platform = |row: &Row| cell!(row, "platform", Flag) == Some(true);
    let no_key = cell!(row, "no_key", Text);
    if no_key.as_deref() == Some("platform") && !all(sections, "dkim").iter().any(platform) {
        let (span, key) = place(row, "no_key");
        let message = "no [[dkim]] has platform = true, so nobody would sign";
        problems.add(&span, &key, message);
    }
    let mut options = SignOptions::default();
    for name in cell!(row, "oversign", Texts).unwrap_or_default() {
        if !options.oversign(&name) {
            let (span, key) = place(row, "oversign");
            problems.add(&span, &key, "too many fields");
            break;
        }
    }
    let expire = cell!(row, "expire", Duration);
    let queued = only(sections, "delivery").and_then(|row| cell!(row, "expire", Duration));
    if let (Some(expire), Some(queued)) = (expire, queued)
        && expire <= queued
    {
        let (span, key) = place(row, "expire");
        let (expire, queued) = (show_duration(expire), show_duration(queued));
        let message = format!(
            "signatures expire after {expire}, mail waits up to {queued} (delivery.expire)"
        );
        problems.add(&span, &key, message);
    }
}

fn check_routes(sections: &Sections, problems: &mut Problems<'_>) {
    let own: Vec<SocketAddr> = all(sections, "listener")
        .iter()
        .filter_map(|row| cell!(row, "address", Socket))
        .collect();
    for row in all(sections, "route") {
        for via in cell!(row, "via", Hosts).unwrap_or_default() {
            let Host::Address(address) = via.host else {
                continue;
            };
            if own.contains(&SocketAddr::new(address, via.port)) {
                let (span, key) = place(row, "via");
                let message = format!("{via} is a [[listener]] of this node: a mail loop");
                problems.add(&span, &key, message);
            }
        }
    }
}

fn check_delivery(sections: &Sections, problems: &mut Problems<'_>) {
    let Some(row) = only(sections, "delivery") else {
        return;
    };
    let expire = cell!(row, "expire", Duration);
    let first = cell!(row, "retry", Durations).and_then(|retry| retry.first().copied());
    if let (Some(expire), Some(first)) = (expire, first)
        && expire <= first
    {
        let (span, key) = place(row, "expire");
        let (expire, first) = (show_duration(expire), show_duration(first));
        let message = format!("mail expires after {expire}, before its second attempt at {first}");
        problems.add(&span, &key, message);
    }
}

fn check_spool(sections: &Sections, problems: &mut Problems<'_>) {
    let Some(segment) = only(sections, "spool").and_then(|row| {
        let bytes = cell!(row, "segment_size", Number)?;
        let (span, key) = place(row, "segment_size");
        if !bytes.is_multiple_of(4096) {
            problems.add(
                &span,
                &key,
                "must be a multiple of 4 KiB, as direct writes are",
            );
        }
        Some(bytes)
    }) else {
        return;
    };
    for row in all(sections, "listener") {
        let Some(size) = cell!(row, "max_message_size", Number) else {
            continue;
        };
        // A record does not span segments; the envelope and the group's head need room beside it.
        if size.saturating_add(size / 8) > segment {
            let (span, key) = place(row, "max_message_size");
            let (size, segment) = (show_size(size), show_size(segment));
            let message = format!(
                "{size} does not fit into a segment: spool.segment_size is {segment}, and must be \
                 an eighth larger than the largest message"
            );
            problems.add(&span, &key, message);
        }
    }
}

/// The snapshot; none only where the rows are not whole, which was reported.
pub(super) fn build(sections: &Sections) -> Option<Snapshot> {
    let node = build_node(only(sections, "node")?)?;
    let mut sources: Vec<Source> = all(sections, "source")
        .iter()
        .map(|row| {
            Some(Source {
                name: cell!(row, "name", Text)?,
                address: cell!(row, "address", Address),
                helo: cell!(row, "helo", Text).unwrap_or_else(|| node.hostname.clone()),
            })
        })
        .collect::<Option<_>>()?;
    if sources.is_empty() {
        sources.push(Source {
            name: "default".into(),
            address: None,
            helo: node.hostname.clone(),
        });
    }
    let pools = build_pools(sections, &sources)?;
    let default_pool = pools
        .iter()
        .position(|pool| &*pool.name == "default")
        .unwrap_or(0);
    Some(Snapshot {
        admin: Admin {
            socket: cell!(only(sections, "admin")?, "socket", Path),
        },
        listeners: all(sections, "listener")
            .iter()
            .map(build_listener)
            .collect::<Option<_>>()?,
        dns: build_dns(only(sections, "dns")?)?,
        delivery: build_delivery(only(sections, "delivery")?)?,
        spool: build_spool(only(sections, "spool")?)?,
        log: build_log(only(sections, "log")?)?,
        signing: build_signing(only(sections, "signing")?)?,
        dkim: all(sections, "dkim")
            .iter()
            .map(build_dkim)
            .collect::<Option<_>>()?,
        routes: all(sections, "route")
            .iter()
            .map(build_route)
            .collect::<Option<_>>()?,
        node,
        sources,
        pools,
        default_pool,
    })
}

fn build_node(row: &Row) -> Option<Node> {
    let shards = match cell!(row, "shards", AutoOr)? {
        None => Shards::Auto,
        Some(count) => Shards::Count(NonZeroU16::new(u16::try_from(count).ok()?)?),
    };
    let hostname: Arc<str> = cell!(row, "hostname", Text)?;
    let data_dir: PathBuf = cell!(row, "data_dir", Path)?;
    Some(Node {
        hostname,
        data_dir,
        shards,
    })
}

fn build_listener(row: &Row) -> Option<Listener> {
    let relay_from: Vec<Cidr> = cell!(row, "relay_from", Networks)?;
    Some(Listener {
        address: cell!(row, "address", Socket)?,
        relay_from,
        max_message_size: cell!(row, "max_message_size", Number)?,
        max_recipients: u32::try_from(cell!(row, "max_recipients", Number)?).ok()?,
        connections_max: u32::try_from(cell!(row, "connections_max", Number)?).ok()?,
        idle_timeout: cell!(row, "idle_timeout", Duration)?,
    })
}

fn build_dns(row: &Row) -> Option<Dns> {
    Some(Dns {
        servers: cell!(row, "servers", Sockets).unwrap_or_default(),
        timeout: cell!(row, "timeout", Duration)?,
        attempts: u32::try_from(cell!(row, "attempts", Number)?).ok()?,
    })
}

fn build_delivery(row: &Row) -> Option<Delivery> {
    let retry: Vec<Duration> = cell!(row, "retry", Durations)?;
    let rate: Option<Rate> = cell!(row, "rate", Rate);
    let number = |value: Option<u64>| u32::try_from(value?).ok();
    Some(Delivery {
        port: u16::try_from(cell!(row, "port", Number)?).ok()?,
        connections_max: number(cell!(row, "connections_max", Number))?,
        connect_timeout: cell!(row, "connect_timeout", Duration)?,
        idle_timeout: cell!(row, "idle_timeout", Duration)?,
        messages_per_connection: number(cell!(row, "messages_per_connection", Number))?,
        pipeline_depth: u8::try_from(cell!(row, "pipeline_depth", Number)?).ok()?,
        recipients_per_message: number(cell!(row, "recipients_per_message", Number))?,
        retry,
        expire: cell!(row, "expire", Duration)?,
        rate,
    })
}

fn build_spool(row: &Row) -> Option<Spool> {
    Some(Spool {
        poison_crashes: u32::try_from(cell!(row, "poison_crashes", Number)?).ok()?,
        segment_size: cell!(row, "segment_size", Number)?,
        free_space_min: cell!(row, "free_space_min", Number)?,
        settle_wait: cell!(row, "settle_wait", Duration)?,
    })
}

fn build_log(row: &Row) -> Option<Log> {
    let level = match &*cell!(row, "level", Text)? {
        "error" => LogLevel::Error,
        "warn" => LogLevel::Warn,
        "info" => LogLevel::Info,
        "debug" => LogLevel::Debug,
        "trace" => LogLevel::Trace,
        _ => return None,
    };
    let format = match &*cell!(row, "format", Text)? {
        "text" => LogFormat::Text,
        "json" => LogFormat::Json,
        _ => return None,
    };
    Some(Log { level, format })
}

fn build_dkim(row: &Row) -> Option<Dkim> {
    Some(Dkim {
        domain: cell!(row, "domain", Pattern)?,
        signing_domain: signing_domain(row)?,
        selector: cell!(row, "selector", Text)?,
        key: cell!(row, "key", Path)?,
        platform: cell!(row, "platform", Flag)?,
        identity: cell!(row, "identity", Text),
        not_before: cell!(row, "not_before", Date),
        not_after: cell!(row, "not_after", Date),
    })
}

/// The d= of a row: as given, or the domain of its pattern; none where neither says it.
fn signing_domain(row: &Row) -> Option<Arc<str>> {
    let given = cell!(row, "signing_domain", Text);
    given.or_else(|| match cell!(row, "domain", Pattern)? {
        DomainPattern::Any => None,
        DomainPattern::Exact(domain) | DomainPattern::Below(domain) => Some(domain),
    })
}

fn build_signing(row: &Row) -> Option<Signing> {
    let no_key = match &*cell!(row, "no_key", Text)? {
        "unsigned" => NoKey::SendUnsigned,
        "reject" => NoKey::Reject,
        "platform" => NoKey::SignAsPlatform,
        _ => return None,
    };
    let canon = |word| match word {
        "relaxed" => Some(Canon::Relaxed),
        "simple" => Some(Canon::Simple),
        _ => None,
    };
    let words = cell!(row, "canonicalization", Text)?;
    let (header, body) = words.split_once('/')?;
    Some(Signing {
        no_key,
        canonicalization: (canon(header)?, canon(body)?),
        oversign: cell!(row, "oversign", Texts)?,
        expire: cell!(row, "expire", Duration),
    })
}

fn build_route(row: &Row) -> Option<Route> {
    let domains: Vec<DomainPattern> = cell!(row, "domains", Patterns)?;
    let via: Vec<HostPort> = cell!(row, "via", Hosts)?;
    Some(Route { domains, via })
}

fn build_pools(sections: &Sections, sources: &[Source]) -> Option<Vec<Pool>> {
    let mut pools = Vec::new();
    for row in all(sections, "pool") {
        let mut members = Vec::new();
        for member in &cell!(row, "sources", Rows)? {
            let name: Arc<str> = cell!(member, "source", Text)?;
            let position = sources.iter().position(|source| source.name == name)?;
            members.push(PoolMember {
                source: u16::try_from(position).ok()?,
                weight: u32::try_from(cell!(member, "weight", Number)?).ok()?,
            });
        }
        pools.push(Pool {
            name: cell!(row, "name", Text)?,
            members,
        });
    }
    if pools.is_empty() {
        let count = u16::try_from(sources.len()).ok()?;
        let members = (0..count)
            .map(|source| PoolMember { source, weight: 1 })
            .collect();
        pools.push(Pool {
            name: "default".into(),
            members,
        });
    }
    Some(pools)
}

/// Adds what is allowed but probably not meant.
pub(super) fn warn(sections: &Sections, snapshot: &Snapshot, warnings: &mut Problems<'_>) {
    if snapshot.listeners.is_empty() {
        let message = "no [[listener]]: this node only sends what its spool holds already";
        warnings.add(&(0..0), "", message);
    }
    if let Some(row) = only(sections, "node")
        && !snapshot.node.hostname.contains('.')
    {
        let (span, key) = place(row, "hostname");
        warnings.add(
            &span,
            &key,
            "not a full name: many receivers refuse such a HELO",
        );
    }
    for (row, listener) in all(sections, "listener").iter().zip(&snapshot.listeners) {
        warn_listener(row, listener, warnings);
    }
    if snapshot.signing.no_key == NoKey::Reject
        && snapshot.dkim.is_empty()
        && let Some(row) = only(sections, "signing")
    {
        let (span, key) = place(row, "no_key");
        let message = "no [[dkim]] at all: every message is refused";
        warnings.add(&span, &key, message);
    }
    let mut everything: Option<&str> = None;
    for (row, route) in all(sections, "route").iter().zip(&snapshot.routes) {
        if let Some(first) = everything {
            warnings.add(
                &row.span,
                &row.path,
                format!("never used: {first} takes every domain"),
            );
        } else if route.domains.contains(&DomainPattern::Any) {
            everything = Some(&row.path);
        }
    }
}

fn warn_listener(row: &Row, listener: &Listener, warnings: &mut Problems<'_>) {
    let (span, key) = place(row, "relay_from");
    if listener.relay_from.is_empty() {
        let message = "empty: nobody may relay through this listener, every RCPT gets 550";
        warnings.add(&span, &key, message);
    }
    let anybody = |text: &str| {
        text.parse::<IpAddr>()
            .is_ok_and(|peer| listener.may_relay(peer))
    };
    // Two addresses that nobody's network holds together, except by holding everything.
    let open = (anybody("8.8.8.8") && anybody("203.0.113.9"))
        || (anybody("2001:4860::1") && anybody("fe00::1"));
    if open && !listener.address.ip().is_loopback() {
        warnings.add(
            &span,
            &key,
            "an open relay: everybody who reaches it may send to anywhere",
        );
    }
}
