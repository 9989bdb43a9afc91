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
    Shards, Snapshot, Source, Spool,
};
use super::values::{Cidr, DomainPattern, Host, HostPort, Rate, show_duration, show_size};
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
    let mut seen: HashMap<(Arc<str>, Arc<str>), &str> = HashMap::new();
    for row in all(sections, "dkim") {
        let names = cell!(row, "domain", Text).zip(cell!(row, "selector", Text));
        let Some((domain, selector)) = names else {
            continue;
        };
        if let Some(first) = seen.insert((domain.clone(), selector.clone()), &row.path) {
            let (span, key) = place(row, "selector");
            let message = format!("{first} is already the key of {selector}._domainkey.{domain}");
            problems.add(&span, &key, message);
        }
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
        segment_size: cell!(row, "segment_size", Number)?,
        free_space_min: cell!(row, "free_space_min", Number)?,
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
        domain: cell!(row, "domain", Text)?,
        selector: cell!(row, "selector", Text)?,
        key: cell!(row, "key", Path)?,
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
