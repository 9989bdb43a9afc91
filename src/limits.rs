//! limits - every bound of the house, with the sentence that justifies it.
//!
//! What: constants only; each room has a section. Relations between neighbours are asserted at
//! compile time. What exceeds a limit gets a clear error, and nothing is lost.

// ---- engine ----

/// Most shards of one node: the shard number has 12 bits in a message id, and no server of this
/// decade has more cores to give.
pub const SHARDS_MAX: u16 = 1024;
const _: () = assert!(SHARDS_MAX <= 1 << 12);

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

/// Longest diagnostic text that a DSN repeats, in octets: two reply lines of the length that
/// RFC 5321 4.5.3.1.5 allows.
pub const DSN_DIAGNOSTIC_BYTES_MAX: usize = 1024;

/// Recipients that the part of a DSN for human readers lists; the machine readable part lists all.
pub const DSN_LISTED_MAX: usize = 50;

// ---- smtp ----

/// Longest command line that the server reads, in octets with its CRLF: RFC 5321 asks for 512, and
/// each extension adds its own; the longest legal RCPT (path, NOTIFY, ORCPT of 500) stays below.
pub const SMTP_COMMAND_BYTES_MAX: usize = 2048;
const _: () = assert!(SMTP_COMMAND_BYTES_MAX > 512 + 28 + 7 + ENVELOPE_TEXT_BYTES_MAX);

/// Longest line of a reply that the client reads, in octets: four times what RFC 5321 4.5.3.1.5
/// allows, because banners of real hosts are longer than allowed.
pub const SMTP_REPLY_LINE_BYTES_MAX: usize = 2048;

/// Most lines of one reply: the longest EHLO in the field has about 30; a reply without an end is
/// an attack on our patience.
pub const SMTP_REPLY_LINES_MAX: usize = 128;

/// Most octets of the text of one reply: what a peer may make us hold.
pub const SMTP_REPLY_BYTES_MAX: usize = 16 << 10;
const _: () = assert!(SMTP_REPLY_LINE_BYTES_MAX <= SMTP_REPLY_BYTES_MAX);

/// Longest text of a reply kept in an outcome, in octets: one reply line of RFC 5321 4.5.3.1.5. It
/// goes to the accounting record and the DSN.
pub const SMTP_OUTCOME_TEXT_BYTES_MAX: usize = 512;

/// Most room reserved for content on the word of the client (SIZE, BDAT), in octets: a lie must not
/// reserve more than the liar sends; above it, the content grows by doubling.
pub const SMTP_CONTENT_RESERVE_MAX: u64 = 256 << 10;

/// Room for content when the client announced no size, in octets: the common message fits.
pub const SMTP_CONTENT_RESERVE_DEFAULT: usize = 16 << 10;

/// Most pieces that one `poll_output` of the client yields: below IOV_MAX (1024), so that they go
/// out in one gathered write, and so that a body of dots does not become a million pieces at once.
pub const SMTP_OUTPUT_PIECES_MAX: usize = 512;

/// Largest message sent as BDAT in one segment with MAIL and RCPT, in octets, before any reply:
/// above it, the bandwidth lost when all recipients are refused weighs more than a round trip.
pub const SMTP_EAGER_BYTES_MAX: u64 = 1 << 20;

/// Longest ENVID in octets after decoding (RFC 3461 4.4).
pub const SMTP_ENVID_BYTES_MAX: usize = 100;
const _: () = assert!(SMTP_ENVID_BYTES_MAX <= ENVELOPE_TEXT_BYTES_MAX);
