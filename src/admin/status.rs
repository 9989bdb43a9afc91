//! status - what a node tells about itself, as plain values.
//!
//! The field names are interface: JSON of the control API and `--json` of `postrider ctl`. Fields
//! are added, never renamed.

use serde::{Deserialize, Serialize};

/// GET /status.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// `node.hostname`.
    pub hostname: String,
    /// The version of the program.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// Seconds since the node accepts mail.
    pub uptime_seconds: u64,
    /// Whether the node is draining: it accepts nothing more and ends when it is done.
    pub draining: bool,
    /// What somebody has to see to ([`Counters::alarms`] over all shards); empty: nothing. The
    /// spool's alarms are in GET /spool.
    #[serde(default)]
    pub alarms: Vec<String>,
    /// One per shard, in order.
    pub shards: Vec<ShardStatus>,
}

/// What one shard has at this moment, and what it has done since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardStatus {
    /// The number of the shard.
    pub shard: u16,
    /// Inbound connections open now.
    pub sessions: u64,
    /// Outbound connections open now.
    pub connections: u64,
    /// Entries that wait for a connection.
    pub ready: u64,
    /// Entries that wait for their next attempt.
    pub deferred: u64,
    /// Entries being sent now.
    pub in_flight: u64,
    /// Messages that were found at the start and are not in the queue yet.
    #[serde(default)]
    pub restoring: u64,
    /// What it has done.
    #[serde(flatten)]
    pub counters: Counters,
}

/// Totals since the start; they only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Inbound connections accepted.
    pub sessions_total: u64,
    /// Inbound connections refused because of a limit.
    pub sessions_refused: u64,
    /// Sessions that one shard handed to another to even out the load.
    pub sessions_moved: u64,
    /// Messages answered 250: they are on stable storage.
    pub messages_accepted: u64,
    /// Recipients of those messages.
    pub recipients_accepted: u64,
    /// Bytes of those messages.
    pub bytes_accepted: u64,
    /// Messages refused at the end of data.
    pub messages_refused: u64,
    /// Recipients delivered.
    pub delivered: u64,
    /// Attempts that were put off (one recipient may count many times).
    pub attempts_deferred: u64,
    /// Recipients refused for good by the receiver.
    pub failed: u64,
    /// Recipients given up by age.
    pub expired: u64,
    /// Attempts whose end-of-data reply never came.
    pub ambiguous: u64,
    /// Delivery status notifications made.
    pub notifications: u64,
    /// Outbound connections established.
    pub connections_total: u64,
    /// Outbound connections that could not be established.
    pub connections_failed: u64,
    /// RSA signatures made eight at a time.
    pub dkim_lane_signatures: u64,
    /// How many times that was done: with full batches an eighth of the signatures.
    pub dkim_lane_batches: u64,
    /// RSA signatures made one at a time.
    pub dkim_single_signatures: u64,
    /// Ed25519 signatures.
    pub dkim_ed25519_signatures: u64,
    /// Messages that went out again with the signature of an earlier attempt.
    pub dkim_reused: u64,
    /// Messages signed with the hash of the body that was taken while they arrived.
    #[serde(default)]
    pub dkim_hashed_on_arrival: u64,
    /// Messages sent unsigned, although there was a key, because their form is none to sign: no
    /// From field, or too many fields. One that was put off counts with every attempt.
    #[serde(default)]
    pub dkim_unsignable: u64,
    /// RSA signatures that came out wrong and were made again. Alarm: the machine computes wrongly.
    pub dkim_mismatches: u64,
    /// Signatures that could not be made. Alarm: their mail waits.
    pub dkim_failures: u64,
}

/// How many totals there are.
const COUNTERS: usize = 24;

impl Counters {
    /// Adds another shard's totals.
    pub fn add(&mut self, other: &Self) {
        for ((_, mine), (_, theirs)) in self.fields_mut().into_iter().zip(other.fields()) {
            *mine = mine.saturating_add(theirs);
        }
    }

    /// The totals that are alarms, in words, raised until the node is started again: a machine that
    /// has computed wrongly once is not trusted again because it has been quiet since.
    #[must_use]
    pub fn alarms(&self) -> Vec<String> {
        let mut alarms = Vec::new();
        if self.dkim_mismatches > 0 {
            alarms.push(format!(
                "{} RSA signatures came out wrong and were made again: this machine computes \
                 wrongly, test its processor and memory",
                self.dkim_mismatches
            ));
        }
        if self.dkim_failures > 0 {
            alarms.push(format!(
                "{} DKIM signatures could not be made; the mail waits, see the log",
                self.dkim_failures
            ));
        }
        alarms
    }

    /// Every total with its name.
    #[must_use]
    pub fn fields(&self) -> [(&'static str, u64); COUNTERS] {
        let mut copy = *self;
        copy.fields_mut().map(|(name, value)| (name, *value))
    }

    fn fields_mut(&mut self) -> [(&'static str, &mut u64); COUNTERS] {
        [
            ("sessions_total", &mut self.sessions_total),
            ("sessions_refused", &mut self.sessions_refused),
            ("sessions_moved", &mut self.sessions_moved),
            ("messages_accepted", &mut self.messages_accepted),
            ("recipients_accepted", &mut self.recipients_accepted),
            ("bytes_accepted", &mut self.bytes_accepted),
            ("messages_refused", &mut self.messages_refused),
            ("delivered", &mut self.delivered),
            ("attempts_deferred", &mut self.attempts_deferred),
            ("failed", &mut self.failed),
            ("expired", &mut self.expired),
            ("ambiguous", &mut self.ambiguous),
            ("notifications", &mut self.notifications),
            ("connections_total", &mut self.connections_total),
            ("connections_failed", &mut self.connections_failed),
            ("dkim_lane_signatures", &mut self.dkim_lane_signatures),
            ("dkim_lane_batches", &mut self.dkim_lane_batches),
            ("dkim_single_signatures", &mut self.dkim_single_signatures),
            ("dkim_ed25519_signatures", &mut self.dkim_ed25519_signatures),
            ("dkim_reused", &mut self.dkim_reused),
            ("dkim_hashed_on_arrival", &mut self.dkim_hashed_on_arrival),
            ("dkim_unsignable", &mut self.dkim_unsignable),
            ("dkim_mismatches", &mut self.dkim_mismatches),
            ("dkim_failures", &mut self.dkim_failures),
        ]
    }
}

/// One element of GET /paths: an egress path, a source with a site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathStatus {
    /// Name of the source.
    pub source: String,
    /// Name of the site.
    pub site: String,
    /// The shard that owns the path.
    pub shard: u16,
    /// Entries that wait for a connection.
    pub ready: u64,
    /// Entries that wait for their next attempt.
    pub deferred: u64,
    /// Entries being sent now.
    pub in_flight: u64,
    /// Connections open now.
    pub connections: u64,
    /// Whether an operator has suspended it.
    pub suspended: bool,
    /// Failures of the host in a row.
    pub failures: u32,
    /// Seconds until the path is tried again after them, rounded up; none where it is awake.
    pub sleeps_seconds: Option<u64>,
    /// What was last said or went wrong, as long as the path is known.
    pub last_error: Option<String>,
}

/// One element of GET /spool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpoolShardStatus {
    /// The number of the shard.
    pub shard: u16,
    /// Messages with a recipient that has no final outcome.
    pub messages: u64,
    /// Bytes of those messages.
    pub live_bytes: u64,
    /// Files of the message log.
    pub segments: u64,
    /// Free bytes of the file system.
    pub free_bytes: u64,
    /// Messages in quarantine.
    #[serde(default)]
    pub quarantined: u64,
    /// Whether new mail is accepted.
    pub accepting: bool,
    /// Why not, or what else is wrong; empty: nothing.
    pub alarms: Vec<String>,
}

/// GET /quarantine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantine {
    /// The messages, a bounded number of them per spool.
    pub messages: Vec<QuarantinedMessage>,
    /// How many there are.
    pub total: u64,
}

/// One message in quarantine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuarantinedMessage {
    /// Its id.
    pub id: String,
    /// Why: "poison" or "damaged".
    pub reason: String,
    /// Bytes of content.
    pub bytes: u64,
    /// When it was accepted, in milliseconds since 1970; none where its record is damaged.
    pub received_at_ms: Option<u64>,
    /// The sender; none where its envelope cannot be read.
    pub sender: Option<String>,
    /// Recipients that waited.
    pub waiting: u64,
}

/// Answer to a release (the new id) or a discard (the id).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Released {
    /// The message.
    pub id: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    // The list of names that metrics are made from is complete: it has every field of the JSON.
    #[test]
    fn every_counter_is_named() {
        let mut counters = Counters {
            delivered: u64::MAX,
            expired: 2,
            ..Counters::default()
        };
        let json = serde_json::to_value(counters).unwrap();
        let json = json.as_object().unwrap();
        assert_eq!(json.len(), counters.fields().len());
        for (name, value) in counters.fields() {
            assert_eq!(json[name].as_u64(), Some(value), "{name}");
        }
        counters.add(&Counters {
            delivered: 1,
            expired: 3,
            ..Counters::default()
        });
        assert_eq!((counters.delivered, counters.expired), (u64::MAX, 5));
    }
}
