//! limits - every bound of the house, with the sentence that justifies it.
//!
//! What: constants only; each room has a section. Relations between neighbours are asserted at
//! compile time. What exceeds a limit gets a clear error, and nothing is lost.

// ---- engine ----

/// Most shards of one node: the shard number has 12 bits in a message id, and no server of this
/// decade has more cores to give.
pub const SHARDS_MAX: u16 = 1024;
const _: () = assert!(SHARDS_MAX <= 1 << 12);
