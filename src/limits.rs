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
// ---- message ----

/// Longest local part in octets, quotes included: RFC 5321 4.5.3.1.1.
pub const LOCAL_PART_BYTES_MAX: usize = 64;

/// Longest domain in octets: RFC 5321 4.5.3.1.2.
pub const DOMAIN_BYTES_MAX: usize = 255;

/// Longest label of a domain in octets: RFC 1035 2.3.4.
pub const LABEL_BYTES_MAX: usize = 63;

/// Longest path in octets, with its angle brackets: RFC 5321 4.5.3.1.3.
pub const PATH_BYTES_MAX: usize = 256;
const _: () = assert!(LOCAL_PART_BYTES_MAX + DOMAIN_BYTES_MAX > PATH_BYTES_MAX);

/// Most recipients of one message: a hundred times what RFC 5321 4.5.3.1.8 asks for, and what a
/// mailing list server hands over at once; the envelope stays below 8 MiB.
pub const RECIPIENTS_MAX: u32 = 10_000;

/// Longest free text of an envelope (ENVID, ORCPT, pool, campaign ...) in octets: ORCPT is the
/// longest with 500 (RFC 3461 4.2).
pub const ENVELOPE_TEXT_BYTES_MAX: usize = 500;
const _: () = assert!(ENVELOPE_TEXT_BYTES_MAX <= u16::MAX as usize);
const _: () = assert!(PATH_BYTES_MAX <= ENVELOPE_TEXT_BYTES_MAX);
const _: () =
    assert!((RECIPIENTS_MAX as usize) * (PATH_BYTES_MAX + ENVELOPE_TEXT_BYTES_MAX + 16) < 8 << 20);

/// Received fields at which a message is taken to be in a loop: RFC 5321 6.3 asks for at least 100.
pub const RECEIVED_MAX: u32 = 100;

/// Largest header section in octets: four times what the largest receivers take; the scan of a
/// header must not hold up the other connections of its core (1 MiB takes about a millisecond).
pub const HEADER_BYTES_MAX: usize = 1 << 20;

/// Longest value of a control field (X-Postrider-Campaign ...) in octets: it becomes a label of
/// metrics and accounting records.
pub const CONTROL_VALUE_BYTES_MAX: usize = 128;
const _: () = assert!(CONTROL_VALUE_BYTES_MAX <= ENVELOPE_TEXT_BYTES_MAX);

/// Most control fields in one message: six names exist; more than twice as many are a mistake.
pub const CONTROL_FIELDS_MAX: usize = 12;

/// Longest line of a message in octets, without its CRLF: RFC 5321 4.5.3.1.6.
pub const TEXT_LINE_BYTES_MAX: usize = 998;

/// Largest part of the original message that a DSN returns, in octets: a campaign of large messages
/// to a dead domain must not come back at full size.
pub const DSN_CONTENT_BYTES_MAX: usize = 50 << 10;

/// Longest diagnostic text that a DSN repeats, in octets: RFC 5321 4.5.3.1.5 allows a reply line 512.
pub const DSN_DIAGNOSTIC_BYTES_MAX: usize = 1024;

/// Recipients that the part of a DSN for human readers lists; the machine readable part lists all.
pub const DSN_LISTED_MAX: usize = 50;

// ---- spool ----

/// Largest message the spool takes, in bytes of content: above the 100 MiB that the product promises,
/// so that trace fields still fit.
pub const SPOOL_MESSAGE_BYTES_MAX: u64 = 128 << 20;

/// Largest encoded envelope: the index keeps the size of a record's head in 16 bits of 64 bytes.
pub const SPOOL_ENVELOPE_BYTES_MAX: usize = 4_190_000;
const _: () = assert!(SPOOL_ENVELOPE_BYTES_MAX + 64 <= 64 * u16::MAX as usize);
const _: () = assert!(RECIPIENTS_MAX <= u16::MAX as u32);

/// Bytes of a message segment unless configured otherwise: 160 ms of mail at 40,000 messages of 10 KiB
/// per second, and small enough that freeing one soon matters.
pub const SPOOL_SEGMENT_BYTES: u64 = 64 << 20;

/// Smallest segment: on small file systems segments shrink, below this headers would dominate.
pub const SPOOL_SEGMENT_BYTES_MIN: u64 = 1 << 20;

/// Largest segment: offsets in it have 32 bits, with room for the largest message's own segment.
pub const SPOOL_SEGMENT_BYTES_MAX: u64 = 1 << 30;
const _: () = assert!(SPOOL_SEGMENT_BYTES <= SPOOL_SEGMENT_BYTES_MAX);
const _: () = assert!(SPOOL_MESSAGE_BYTES_MAX < SPOOL_SEGMENT_BYTES_MAX);

/// Bytes of a state segment: 125,000 settlements.
pub const SPOOL_STATE_SEGMENT_BYTES: u64 = 4 << 20;

/// Smallest state segment: two groups of settlements.
pub const SPOOL_STATE_SEGMENT_BYTES_MIN: u64 = 256 << 10;
const _: () = assert!(SPOOL_SETTLEMENTS_PER_GROUP_MAX * 32 * 2 < SPOOL_STATE_SEGMENT_BYTES_MIN as usize);

/// A commit group grows to this, unless one message alone is larger: at 2 GB/s half a millisecond of
/// writing, so that a message waits for two groups well below 5 ms.
pub const SPOOL_GROUP_BYTES_MAX: usize = 1 << 20;

/// Groups of one log in flight at once: enough to keep an NVMe queue busy, few enough that a torn
/// tail is short.
pub const SPOOL_GROUPS_IN_FLIGHT_MAX: u32 = 4;

/// Longest wait of a settlement for company, in microseconds.
pub const SPOOL_SETTLE_WAIT_US: u64 = 2_000;

/// Settlements of one state group: 64 KiB of records.
pub const SPOOL_SETTLEMENTS_PER_GROUP_MAX: usize = 2_000;

/// Free message segments kept ready: one to roll over to, one while the next is being made.
pub const SPOOL_SPARE_SEGMENTS: u32 = 2;

/// Messages being copied forward at once; they compete with deliveries for the disk.
pub const SPOOL_COPIES_IN_FLIGHT_MAX: u32 = 8;

/// Damage listed one by one at recovery; what exceeds it is counted only.
pub const SPOOL_DAMAGE_LISTED_MAX: usize = 10_000;

/// How long after a failed write the disk is probed again, in milliseconds: mail is taken again
/// within 5 s of the disk's return.
pub const SPOOL_PROBE_MS: u64 = 1_000;

/// How often free space is asked for, in milliseconds.
pub const SPOOL_SPACE_MS: u64 = 500;

/// Settlements that may wait for a failing disk before new mail is refused.
pub const SPOOL_SETTLEMENTS_WAITING_MAX: usize = 100_000;
