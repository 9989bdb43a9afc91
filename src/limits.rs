//! limits - every bound of the house, with the sentence that justifies it.
//!
//! What: constants only; each room has a section. Relations between neighbours are asserted at
//! compile time. What exceeds a limit gets a clear error, and nothing is lost.

// ---- engine ----

/// Most shards of one node: the shard number has 12 bits in a message id, and no server of this
/// decade has more cores to give.
pub const SHARDS_MAX: u16 = 1024;
const _: () = assert!(SHARDS_MAX <= 1 << 12);

/// Receive buffers of one shard: 50 busy pipelining sessions with 4 unread chunks each stay below it;
/// beyond it sessions wait in line for a buffer.
pub const RECV_BUFFERS: u16 = 256;

/// Bytes of a receive buffer: a 10 KiB message with its commands arrives in one completion. With 256
/// of them 4 MiB per shard, touched only when used.
pub const RECV_BUFFER_BYTES: usize = 16 << 10;

/// Most received chunks that wait for a session's reader before its receive is paused: a pipelining
/// peer keeps two or three in flight. When buffers are scarce it is 1.
pub const RECV_UNREAD_MAX: u16 = 4;
const _: () = assert!(RECV_UNREAD_MAX * 50 < RECV_BUFFERS);

/// Most connections accepted ahead of the task that takes them; the rest wait in the kernel's
/// backlog, which refuses on its own.
pub const ACCEPTED_AHEAD_MAX: usize = 128;

/// Most tasks polled in one turn, so that a storm of wakes cannot keep the kernel waiting: at about a
/// microsecond each, half a millisecond.
pub const TASKS_PER_TURN: usize = 512;
