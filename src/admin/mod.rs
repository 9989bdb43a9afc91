//! admin - the control plane's socket: what a running node tells, and how it is steered.
//!
//! Role: HTTP on a Unix socket, for `postrider ctl`, for scripts, for Prometheus.
//! Flow: request -> [`Call`] on a channel -> the node asks its shards by message -> answer -> JSON.
//! Shard: none; runs on the control thread. It knows nothing of shards and shares no state.
//! Limits: `limits::ADMIN_BODY_BYTES_MAX`; calls wait in a bounded channel; `ANSWER_TIMEOUT`.
//! Failure: a node that does not answer in time gives 504; a full channel makes callers wait.
//! Security: the socket has mode 0600 from the moment it can be reached; there is no other check.

mod http;
mod metrics;
mod socket;
mod status;
#[cfg(test)]
mod tests;

pub use http::{ANSWER_TIMEOUT, Call, Changed, Probed, Selector, Which, calls, serve};
pub use metrics::render;
pub use socket::{AdminError, AdminSocket};
pub use status::{
    Counters, NodeStatus, PathStatus, Quarantine, QuarantinedMessage, Released, ShardStatus,
    SpoolShardStatus,
};
