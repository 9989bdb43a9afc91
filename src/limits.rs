//! limits - every bound of the house, with the sentence that justifies it.
//!
//! What: constants only; each room has a section. Relations between neighbours are asserted at
//! compile time. What exceeds a limit gets a clear error, and nothing is lost.

// ---- engine ----

/// Most shards of one node: the shard number has 12 bits in a message id, and no server of this
/// decade has more cores to give.
pub const SHARDS_MAX: u16 = 1024;
const _: () = assert!(SHARDS_MAX <= 1 << 12);

// ---- dkim ----

/// Largest private key file, in bytes: an RSA-8192 key in PEM has 6.4 KiB; more is not a key.
pub const DKIM_KEY_FILE_BYTES_MAX: u64 = 16 * 1024;

/// Most signatures on one message: two algorithms for the sender's domain and two for the
/// platform's, twice over during a rotation.
pub const DKIM_SIGNATURES_MAX: usize = 8;

/// Most names in `h=`: RFC 5322 allows each field we sign once; a message that repeats them a
/// thousand times would get a signature field larger than most mail.
pub const DKIM_SIGNED_FIELDS_MAX: usize = 1000;

/// Most different field names that may be signed: the 27 of ours and room for the operator's.
pub const DKIM_NAMES_MAX: usize = 64;

/// Most signing jobs (messages) that wait in one shard: about a quarter of a second of RSA work; the
/// spool is the place to wait longer.
pub const DKIM_JOBS_MAX: usize = 2048;

/// Most RSA operations in one batch: one per lane. A batch takes under a millisecond (measured:
/// 0.7 ms), which is how long signing may keep a shard from its sockets.
pub const DKIM_BATCH_MAX: usize = 8;
const _: () = assert!(DKIM_SIGNATURES_MAX <= DKIM_JOBS_MAX);
