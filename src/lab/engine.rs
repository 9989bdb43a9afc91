//! lab::engine - the laboratory's threads: an engine each, and what they cost.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::engine::uring::{UringConfig, UringRuntime};
use crate::lab::error::LabError;

/// An engine for this thread.
///
/// # Errors
/// [`LabError::Engine`] with what to change on this machine.
pub fn engine(shard: u16, seed: u64) -> Result<UringRuntime, LabError> {
    let config = UringConfig {
        shard,
        seed,
        buffers: 512,
        ..UringConfig::default()
    };
    UringRuntime::new(config).map_err(LabError::Engine)
}

/// CPU time that this thread has used.
#[must_use]
pub fn thread_cpu() -> Duration {
    // The clock of the calling thread always exists.
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
        .map(Duration::from)
        .unwrap_or_default()
}
