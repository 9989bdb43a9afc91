//! metrics - a status in the Prometheus text format (version 0.0.4).

use super::status::{NodeStatus, ShardStatus, SpoolShardStatus};

/// A name, its type and meaning, and how to read it off a shard.
type Gauge<T> = (&'static str, &'static str, fn(&T) -> u64);

const SHARD_GAUGES: [Gauge<ShardStatus>; 7] = [
    ("sessions", "Inbound connections open now.", |shard| {
        shard.sessions
    }),
    ("connections", "Outbound connections open now.", |shard| {
        shard.connections
    }),
    (
        "entries_ready",
        "Entries that wait for a connection.",
        |shard| shard.ready,
    ),
    (
        "entries_deferred",
        "Entries that wait for their next attempt.",
        |shard| shard.deferred,
    ),
    ("entries_in_flight", "Entries being sent now.", |shard| {
        shard.in_flight
    }),
    (
        "messages_restoring",
        "Messages that were found at the start and are not in the queue yet.",
        |shard| shard.restoring,
    ),
    (
        "dkim_alarms",
        "Alarms of the signer: wrong signatures were made (and replaced), or none could be.",
        |shard| shard.counters.alarms().len() as u64,
    ),
];

const SPOOL_GAUGES: [Gauge<SpoolShardStatus>; 7] = [
    ("spool_quarantined", "Messages in quarantine.", |spool| {
        spool.quarantined
    }),
    (
        "spool_messages",
        "Messages without a final outcome.",
        |spool| spool.messages,
    ),
    ("spool_live_bytes", "Bytes of those messages.", |spool| {
        spool.live_bytes
    }),
    ("spool_segments", "Files of the message log.", |spool| {
        spool.segments
    }),
    (
        "spool_free_bytes",
        "Free bytes of the file system.",
        |spool| spool.free_bytes,
    ),
    (
        "spool_accepting",
        "1 while new mail is accepted.",
        |spool| u64::from(spool.accepting),
    ),
    ("spool_alarms", "Alarms raised now.", |spool| {
        spool.alarms.len() as u64
    }),
];

/// Prints the metrics of a node, one sample per shard.
#[must_use]
pub fn render(status: &NodeStatus, spool: &[SpoolShardStatus]) -> String {
    let mut out = String::new();
    head(
        &mut out,
        "uptime_seconds",
        "gauge",
        "Seconds since the node accepts mail.",
    );
    out.push_str(&format!(
        "postrider_uptime_seconds {}\n",
        status.uptime_seconds
    ));
    head(&mut out, "draining", "gauge", "1 while the node ends.");
    out.push_str(&format!(
        "postrider_draining {}\n",
        u8::from(status.draining)
    ));
    for (name, help, read) in SHARD_GAUGES {
        head(&mut out, name, "gauge", help);
        for shard in &status.shards {
            sample(&mut out, name, shard.shard, read(shard));
        }
    }
    let counters = status
        .shards
        .first()
        .map(|shard| shard.counters.fields())
        .unwrap_or_default();
    for (index, (field, _)) in counters.iter().enumerate() {
        // A counter ends in _total by the conventions of OpenMetrics.
        let name = format!("{}_total", field.trim_end_matches("_total"));
        head(
            &mut out,
            &name,
            "counter",
            &format!("{} since the start.", field.replace('_', " ")),
        );
        for shard in &status.shards {
            sample(
                &mut out,
                &name,
                shard.shard,
                shard.counters.fields()[index].1,
            );
        }
    }
    for (name, help, read) in SPOOL_GAUGES {
        head(&mut out, name, "gauge", help);
        for shard in spool {
            sample(&mut out, name, shard.shard, read(shard));
        }
    }
    out
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    out.push_str(&format!(
        "# HELP postrider_{name} {help}\n# TYPE postrider_{name} {kind}\n"
    ));
}

fn sample(out: &mut String, name: &str, shard: u16, value: u64) {
    out.push_str(&format!("postrider_{name}{{shard=\"{shard}\"}} {value}\n"));
}
