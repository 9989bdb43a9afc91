//! limits - every bound of the house, with the sentence that justifies it.
//!
//! What: constants only; each room has a section. Relations between neighbours are asserted at
//! compile time. What exceeds a limit gets a clear error, and nothing is lost.

// ---- engine ----

/// Most shards of one node: the shard number has 12 bits in a message id, and no server of this
/// decade has more cores to give.
pub const SHARDS_MAX: u16 = 1024;
const _: () = assert!(SHARDS_MAX <= 1 << 12);

// ---- config ----

/// Longest configuration file: ten thousand sources of 200 bytes are 2 MiB.
pub const CONFIG_BYTES_MAX: usize = 8 << 20;

/// Most mistakes reported at once: what a person corrects before looking again.
pub const CONFIG_ERRORS_MAX: usize = 50;

/// Most sources of one node: four /22 networks. A source number has 16 bits in a path.
pub const SOURCES_MAX: usize = 4096;
const _: () = assert!(SOURCES_MAX <= u16::MAX as usize);

/// Least number of recipients that a server must accept in one transaction (RFC 5321 4.5.3.1.8),
/// hence also the most that a client may count on.
pub const RECIPIENTS_ACCEPTED_MIN: u32 = 100;

// ---- admin ----

/// Longest head of a request or an answer on the admin socket; ours are under 500 bytes.
pub const ADMIN_HEAD_BYTES_MAX: usize = 16 << 10;

/// Longest answer that `postrider ctl` reads: 100,000 paths of 200 bytes are 20 MB.
pub const ADMIN_ANSWER_BYTES_MAX: usize = 64 << 20;

/// Longest request body on the admin socket: a selector of paths.
pub const ADMIN_BODY_BYTES_MAX: usize = 64 << 10;

/// Most admin requests that wait for the node: an operator, a script and a scraper, with room.
pub const ADMIN_CALLS_MAX: usize = 16;

// ---- lab ----

/// Bytes of ledger records gathered before they go to the file: large enough that the system call
/// costs nothing per message, small enough that a counter that is watched is never far ahead.
pub const LAB_LEDGER_BATCH: usize = 64 * 1024;

/// Most sites (addresses) of one sink: each costs a listener per thread, and a process may have
/// 1024 descriptors where nobody raised the limit.
pub const LAB_SITES_MAX: u32 = 512;

/// Most domains of one sink: their names are computed, not stored; five digits keep them short.
pub const LAB_DOMAINS_MAX: u32 = 100_000;
const _: () = assert!(LAB_SITES_MAX <= LAB_DOMAINS_MAX);

/// Most inbound sessions of one load generator: the ephemeral ports of one source address.
pub const LAB_SESSIONS_MAX: u32 = 20_000;

/// Longest command line that a sink reads, in bytes: RFC 5321 4.5.3.1.4 asks for 512; parameters of
/// extensions add to it.
pub const LAB_LINE_MAX: usize = 4096;

/// Most recipients that a sink takes in one transaction: RFC 5321 4.5.3.1.8 asks for 100 at least.
pub const LAB_RECIPIENTS_MAX: usize = 10_000;

/// Most (sender, recipient) pairs that greylisting remembers; a pair beyond it is taken at once, so
/// that a long run costs at most about 64 MiB.
pub const LAB_GREYLIST_MAX: usize = 2_000_000;
