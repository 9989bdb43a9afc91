//! settings - turns the configuration snapshot into the plain structs that each room defines.
//!
//! The only place that knows both sides: below it nobody knows that a configuration file exists.

use std::cell::Cell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::config::{self, Snapshot};
use crate::dkim::{Identity, KeyRing, PrivateKey, RingError, SignOptions};
use crate::queue::{PathLimits, QueueConfig, Rate, RetryPolicy};
use crate::routing::{DomainPattern, HostPort, Own, Route, RouteHost, RouteTable};
use crate::service::dispatch::{Pool, Settings, Source};
use crate::service::smtpd::Listener;
use crate::service::spooler::SpoolerConfig;
use crate::smtp::client::ClientConfig;
use crate::smtp::server::ServerConfig;

/// What a spool is told.
#[must_use]
pub fn spooler(snapshot: &Snapshot, number: u16) -> SpoolerConfig {
    SpoolerConfig {
        directory: spool_directory(&snapshot.node.data_dir, number),
        shard: number,
        segment_bytes: snapshot.spool.segment_size,
        low_water_bytes: snapshot.spool.free_space_min,
        settle_wait: snapshot.spool.settle_wait,
    }
}

/// The directory of the spool with this number; offline tools know it by the same name.
#[must_use]
pub fn spool_directory(data: &Path, number: u16) -> PathBuf {
    data.join(format!("shard-{number:03}"))
}

/// What the brain is told.
#[must_use]
pub fn queue(snapshot: &Snapshot, seed: u64) -> QueueConfig {
    let delivery = &snapshot.delivery;
    QueueConfig {
        retry: RetryPolicy::new(&delivery.retry, RETRY_JITTER_PERCENT, delivery.expire)
            .unwrap_or_default(),
        limits: PathLimits {
            connections_max: delivery.connections_max,
            messages_per_connection_max: delivery.messages_per_connection,
            rate: delivery
                .rate
                .and_then(|rate| Rate::new(rate.amount, rate.period, rate.amount).ok()),
        },
        idle_max: delivery.idle_timeout,
        seed,
        ..QueueConfig::default()
    }
}

/// Whether every shard sends what it stores itself, over connections of a path that the shards
/// share by grants, instead of handing it to the one home shard of the path.
///
/// Both keep the limit exact. Spreading saves two letters between threads per message (two shards,
/// 4 round trips in, DATA out: a third of the CPU). With fewer connections than shards they would
/// be handed round, a dial per message; and a rate is counted in one place.
#[must_use]
pub fn is_spread(snapshot: &Snapshot, shards: u16) -> bool {
    let delivery = &snapshot.delivery;
    delivery.rate.is_none() && delivery.connections_max >= u32::from(shards)
}

/// Retries of one moment's failures spread over a tenth of their delay either way.
const RETRY_JITTER_PERCENT: u8 = 10;

/// How many sessions of a listener one shard may have.
#[must_use]
pub fn sessions_max(listener: &config::Listener, shards: u16) -> u32 {
    listener.connections_max.div_ceil(u32::from(shards))
}

/// What a shard's part of the listener at this position is told.
#[must_use]
pub fn listener(snapshot: &Snapshot, number: usize, shards: u16) -> Listener {
    let listener = &snapshot.listeners[number];
    let mut server = ServerConfig::new(&snapshot.node.hostname);
    server.size_max = listener.max_message_size;
    server.recipients_max = listener.max_recipients;
    Listener {
        number,
        open: Cell::default(),
        server: Arc::new(server),
        may_relay: {
            let listener = listener.clone();
            Box::new(move |peer| listener.may_relay(peer))
        },
        sessions_max: sessions_max(listener, shards),
        idle_timeout: listener.idle_timeout,
    }
}

/// What a dispatcher is told.
#[must_use]
pub fn dispatch(snapshot: &Snapshot, shard: u16, shards: u16) -> Settings {
    let delivery = &snapshot.delivery;
    let mut client = ClientConfig::new(&snapshot.node.hostname);
    client.pipeline_depth = delivery.pipeline_depth;
    client.recipients_max = delivery.recipients_per_message;
    client.transactions_max = delivery.messages_per_connection;
    Settings {
        shard,
        shards,
        spread: is_spread(snapshot, shards),
        hostname: Arc::clone(&snapshot.node.hostname),
        sources: sources(snapshot),
        pools: snapshot
            .pools
            .iter()
            .map(|pool| Pool {
                name: Arc::clone(&pool.name),
                members: pool
                    .members
                    .iter()
                    .map(|member| (member.source, member.weight))
                    .collect(),
            })
            .collect(),
        default_pool: snapshot.default_pool,
        routes: routes(snapshot),
        own: own(snapshot),
        mail_port: delivery.port,
        // Twice the longest delay leaves room for its jitter.
        wait_max: delivery
            .retry
            .iter()
            .max()
            .map_or(Duration::ZERO, |longest| *longest * 2),
        connect_timeout: delivery.connect_timeout,
        client,
    }
}

/// The routes; the configuration has checked them, so an empty table is not an expected outcome.
fn routes(snapshot: &Snapshot) -> RouteTable {
    let pattern = |pattern: &config::DomainPattern| match pattern {
        config::DomainPattern::Any => DomainPattern::Any,
        config::DomainPattern::Exact(name) => DomainPattern::Exact(Box::from(&**name)),
        config::DomainPattern::Below(name) => DomainPattern::Below(Box::from(&**name)),
    };
    let hop = |hop: &config::HostPort| HostPort {
        host: match &hop.host {
            config::Host::Name(name) => RouteHost::Name(Arc::clone(name)),
            config::Host::Address(ip) => RouteHost::Address(*ip),
        },
        port: Some(hop.port),
    };
    let route = |route: &config::Route| Route {
        domains: route.domains.iter().map(pattern).collect(),
        via: route.via.iter().map(hop).collect(),
    };
    RouteTable::new(snapshot.routes.iter().map(route).collect()).unwrap_or_default()
}

/// Who we are, for the cut of RFC 5321 5.1: our name, and our addresses where we listen on the very
/// port that mail exchangers are reached at.
fn own(snapshot: &Snapshot) -> Own {
    let addresses: Vec<_> = snapshot
        .listeners
        .iter()
        .filter(|listener| listener.address.port() == snapshot.delivery.port)
        .map(|listener| listener.address.ip())
        .filter(|address| !address.is_unspecified())
        .collect();
    Own::new([&*snapshot.node.hostname], &addresses)
}

/// The DKIM keys, loaded, for a node.
///
/// # Errors
/// The first of what [`load_keys`] finds, and how much more there is: one line for the log.
pub fn key_ring(snapshot: &Snapshot) -> Result<KeyRing, String> {
    load_keys(snapshot).map_err(|faults| {
        let more = faults.len().saturating_sub(1);
        let first = faults.into_iter().next().unwrap_or_default();
        if more == 0 {
            first
        } else {
            format!("{first} (and {more} more: postrider check config lists them)")
        }
    })
}

/// The DKIM keys, loaded, for somebody who wants to put right everything that is wrong with them.
///
/// # Errors
/// Every row whose key file cannot be read, is open to others, or holds no usable key, in the order
/// of the configuration: which row, and why. Never empty.
pub fn load_keys(snapshot: &Snapshot) -> Result<KeyRing, Vec<String>> {
    let mut ring = KeyRing::new(snapshot.signing.no_key);
    let mut faults = Vec::new();
    // Rows that share a file share the key.
    let mut keys: HashMap<&Path, Arc<PrivateKey>> = HashMap::new();
    for entry in &snapshot.dkim {
        if let Err(error) = add_row(&mut ring, &mut keys, entry) {
            let (domain, selector) = (&entry.domain, &entry.selector);
            faults.push(format!(
                "[[dkim]] {domain} ({selector}), key {}: {error}",
                entry.key.display()
            ));
        }
    }
    if faults.is_empty() {
        Ok(ring)
    } else {
        Err(faults)
    }
}

/// Loads the key of a row, unless another row has, and enters it.
fn add_row<'a>(
    ring: &mut KeyRing,
    keys: &mut HashMap<&'a Path, Arc<PrivateKey>>,
    entry: &'a config::Dkim,
) -> Result<(), Box<dyn std::error::Error>> {
    let key = match keys.get(&*entry.key) {
        Some(key) => Arc::clone(key),
        None => {
            let (key, _) = PrivateKey::load(&entry.key)?;
            let key = Arc::new(key);
            keys.insert(&entry.key, Arc::clone(&key));
            key
        }
    };
    let identity = identity(entry, key)?;
    ring.add(&entry.domain.to_string(), Arc::clone(&identity))?;
    if entry.platform {
        ring.add_platform(identity)?;
    }
    Ok(())
}

fn identity(entry: &config::Dkim, key: Arc<PrivateKey>) -> Result<Arc<Identity>, RingError> {
    let identity = Identity::new(&entry.signing_domain, &entry.selector, key)?
        .with_period(entry.not_before, entry.not_after);
    Ok(Arc::new(match &entry.identity {
        Some(agent) => identity.with_agent(agent)?,
        None => identity,
    }))
}

/// How messages are signed.
#[must_use]
pub fn signing(snapshot: &Snapshot) -> SignOptions {
    let signing = &snapshot.signing;
    let (header, body) = signing.canonicalization;
    let mut options = SignOptions::default()
        .with_canon(header, body)
        .with_lifetime(signing.expire);
    for name in &signing.oversign {
        let taken = options.oversign(name);
        debug_assert!(taken, "the configuration has tried every name");
    }
    options
}

fn sources(snapshot: &Snapshot) -> Vec<Source> {
    let source = |source: &config::Source| Source {
        name: Arc::clone(&source.name),
        address: source.address,
        helo: Arc::clone(&source.helo),
    };
    snapshot.sources.iter().map(source).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dkim::{Choice, KeyKind, keygen};
    use crate::time::Wall;

    // From the file to the spool.
    #[test]
    fn the_spool_is_told_what_the_file_says() {
        let spool = |text: &str| {
            let text = format!("[node]\nhostname = \"mta.own.test\"\n[spool]\n{text}");
            spooler(&config::parse(text.as_bytes()).unwrap().snapshot, 2)
        };
        assert_eq!(spool("").settle_wait, Duration::from_millis(2));
        let told =
            spool("settle_wait = \"9ms\"\nsegment_size = \"8MiB\"\nfree_space_min = \"3MiB\"");
        assert_eq!(told.settle_wait, Duration::from_millis(9));
        assert_eq!(
            (told.segment_bytes, told.low_water_bytes),
            (8 << 20, 3 << 20)
        );
    }

    // From the file to the ring: which selectors sign when.
    #[test]
    fn keys_have_the_period_of_their_row() {
        let name = format!("postrider-periods-{}.pem", std::process::id());
        let path = std::env::temp_dir().join(name);
        keygen(KeyKind::Ed25519).unwrap().write(&path).unwrap();
        let row = |selector, period| {
            let key = path.display();
            format!(
                "[[dkim]]\ndomain = \"own.test\"\nselector = \"{selector}\"\n\
                 key = \"{key}\"\n{period}\n"
            )
        };
        let text = [
            "[node]\nhostname = \"mta.own.test\"\n".to_owned(),
            row("old", "not_after = 2027-01-08T00:00:00Z"),
            row("new", "not_before = 2027-01-01T00:00:00Z"),
        ];
        let snapshot = config::parse(text.concat().as_bytes()).unwrap().snapshot;
        let ring = key_ring(&snapshot);
        std::fs::remove_file(&path).unwrap();
        let ring = ring.unwrap();
        let signers = |at| match ring.choose(Some("own.test"), Wall(at)) {
            Choice::Sign(signers) => signers
                .iter()
                .map(|one| one.selector().to_owned())
                .collect(),
            Choice::Unsigned | Choice::Reject => Vec::new(),
        };
        assert_eq!(signers(1_798_761_599_999), ["old"]);
        assert_eq!(signers(1_798_761_600_000), ["old", "new"]);
        assert_eq!(signers(1_799_366_400_000), ["new"]);
    }
}
