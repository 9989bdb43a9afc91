//! limits - every bound of the house, with the sentence that justifies it.
//!
//! What: constants only; each room has a section. Relations between neighbours are asserted at
//! compile time. What exceeds a limit gets a clear error, and nothing is lost.

use std::time::Duration;

// ---- engine ----

/// Most shards of one node: the shard number has 12 bits in a message id, and no server of this
/// decade has more cores to give.
pub const SHARDS_MAX: u16 = 1024;
const _: () = assert!(SHARDS_MAX <= 1 << 12);

/// Receive buffers of one shard: 50 busy pipelining sessions with 4 unread chunks each stay below
/// it; beyond it sessions wait in line for a buffer.
pub const RECV_BUFFERS: u16 = 256;

/// Bytes of a receive buffer: a 10 KiB message with its commands arrives in one completion. With
/// 256 of them 4 MiB per shard, touched only when used.
pub const RECV_BUFFER_BYTES: usize = 16 << 10;

/// Most received chunks that wait for a session's reader before its receive is paused: a pipelining
/// peer keeps two or three in flight. When buffers are scarce it is 1.
pub const RECV_UNREAD_MAX: u16 = 4;
const _: () = assert!(RECV_UNREAD_MAX * 50 < RECV_BUFFERS);

/// Most connections accepted ahead of the task that takes them; the rest wait in the kernel's
/// backlog, which refuses on its own.
pub const ACCEPTED_AHEAD_MAX: usize = 128;

/// Most tasks polled in one turn, so that a storm of wakes cannot keep the kernel waiting: at about
/// a microsecond each, half a millisecond.
pub const TASKS_PER_TURN: usize = 512;

/// How long deliveries run in one turn although a session may have become ready meanwhile: two or
/// three of them. A message on its way in needs about five turns, so that with 200 us here, and
/// what the kernel sends in each, its 250 came 7 ms after it beside a storm of retries, not 2 to 4;
/// an enter of the kernel per turn costs a microsecond.
pub const PATIENT_SLICE: Duration = Duration::from_micros(25);

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

/// Deepest nesting of MIME parts that is converted to 7 bit: real mail has up to 6, and each level
/// is read again.
pub const CONVERSION_DEPTH_MAX: usize = 20;

/// How many octets of a message are converted to 7 bit, or hashed for its signature, before others
/// have their turn: a tenth of a millisecond.
pub const MESSAGE_SLICE_BYTES: usize = 64 << 10;

/// Most MIME parts of a message that is converted to 7 bit: a digest has some hundred.
pub const CONVERSION_PARTS_MAX: usize = 1000;

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

/// Most signing jobs (messages) that wait in one shard: about a quarter of a second of RSA work;
/// the spool is the place to wait longer.
pub const DKIM_JOBS_MAX: usize = 2048;

/// Most RSA operations in one batch: one per lane. A batch takes under a millisecond (measured:
/// 0.9 ms), which is how long signing may keep a shard from its sockets.
pub const DKIM_BATCH_MAX: usize = 8;

/// Most bytes of signatures that one shard keeps for messages that wait for their next attempt:
/// about seven thousand of one RSA signature each.
pub const SIGNATURES_KEPT_BYTES_MAX: usize = 8 * 1024 * 1024;

/// How often the key files are looked at: a rotation is planned days ahead, a look is one stat call
/// per file.
pub const KEY_LOOK_EVERY: Duration = Duration::from_secs(5);
const _: () = assert!(DKIM_SIGNATURES_MAX <= DKIM_JOBS_MAX);

// ---- routing ----

/// MX hosts of a domain that are used, best preference first: the largest providers publish 6; a
/// hostile zone could name thousands.
pub const MX_MAX: usize = 20;

/// Addresses of one MX host and family that are used: the host is one party, and eight of its
/// addresses that do not answer are enough.
pub const HOST_ADDRESSES_MAX: usize = 8;

/// Addresses that one delivery attempt may try, all hosts together.
pub const TARGETS_MAX: usize = 40;
const _: () = assert!(HOST_ADDRESSES_MAX * 2 <= TARGETS_MAX);
const _: () = assert!(MX_MAX <= TARGETS_MAX);

/// Links of a CNAME chain that are followed; longer ones are mistakes (as BIND and Unbound hold).
pub const CNAME_CHAIN_MAX: usize = 8;

/// Bytes of a site's name; a longer roll-up is cut and ends in a hash of the whole.
pub const SITE_NAME_BYTES_MAX: usize = 200;

/// Routes of a node; each lookup is a few hash probes, however many.
pub const ROUTES_MAX: usize = 100_000;

// ---- spool ----

/// Largest message the spool takes, in bytes of content: above the 100 MiB that the product
/// promises, so that trace fields still fit.
pub const SPOOL_MESSAGE_BYTES_MAX: u64 = 128 << 20;

/// Largest encoded envelope: the index keeps the size of a record's head in 16 bits of 64 bytes.
pub const SPOOL_ENVELOPE_BYTES_MAX: usize = 4_190_000;
const _: () = assert!(SPOOL_ENVELOPE_BYTES_MAX + 64 <= 64 * u16::MAX as usize);
const _: () = assert!(RECIPIENTS_MAX <= u16::MAX as u32);

/// Bytes of a message segment unless configured otherwise: 160 ms of mail at 40,000 messages of 10
/// KiB per second, and small enough that freeing one soon matters.
pub const SPOOL_SEGMENT_BYTES: u64 = 64 << 20;

/// Smallest segment: on small file systems segments shrink, below this headers would dominate.
pub const SPOOL_SEGMENT_BYTES_MIN: u64 = 1 << 20;

/// Largest segment: offsets in it have 32 bits, with room for the largest message's own segment.
pub const SPOOL_SEGMENT_BYTES_MAX: u64 = 1 << 30;
const _: () = assert!(SPOOL_SEGMENT_BYTES <= SPOOL_SEGMENT_BYTES_MAX);
const _: () = assert!(SPOOL_MESSAGE_BYTES_MAX < SPOOL_SEGMENT_BYTES_MAX);

/// How long a start waits for a block of mail that the disk does not give: a bus reset takes
/// seconds. After that the mail is late: it is looked at again while the node runs.
pub const SPOOL_MAIL_READ_WAIT: Duration = Duration::from_secs(10);

/// How long a start waits for a block of settlements that the disk does not give: after that mail
/// may be delivered again. Twice this for all of them.
pub const SPOOL_STATE_READ_WAIT: Duration = Duration::from_secs(30);

/// Largest content that is read for its message alone when it is not in memory; larger ones are
/// brought into the page cache, and lent from there.
pub const SPOOL_READ_BYTES_MAX: usize = 256 << 10;

/// Bytes of such contents that one shard holds. Beyond it, the page cache serves.
pub const SPOOL_READ_BYTES_HELD_MAX: u64 = 64 << 20;

/// Bytes that one shard asks of the disk at a time for messages that are to be sent: a write waits
/// behind what has been asked for. Beside writes of 16 KiB, reads of 12 KiB (fio, virtio disk):
/// four at a time 604 MB/s, and writes take 0.47 ms (p99); sixteen, 727 MB/s and 1.1 ms. Two reads
/// of 1 MiB: 38 ms. In the `cold-storm` bench the p99 of a 250 is 1.1 ms with 96 KiB, 1.9 with 128,
/// 4.0 with 256 KiB; 14,000, 22,000 and 29,000 messages/s leave.
pub const SPOOL_READ_BYTES_ASKED: usize = 128 << 10;

/// How long what cannot be read is left alone before it is looked at again, at first; doubled each
/// time.
pub const SPOOL_LATE_PAUSE: Duration = Duration::from_secs(1);

/// The same, at most: a disk that fails for good is not kept busy with it.
pub const SPOOL_LATE_PAUSE_MAX: Duration = Duration::from_secs(300);

/// Bytes of a state segment: 125,000 settlements.
pub const SPOOL_STATE_SEGMENT_BYTES: u64 = 4 << 20;

/// Smallest state segment: two groups of settlements.
pub const SPOOL_STATE_SEGMENT_BYTES_MIN: u64 = 256 << 10;
const _: () =
    assert!(SPOOL_SETTLEMENTS_PER_GROUP_MAX * 32 * 2 < SPOOL_STATE_SEGMENT_BYTES_MIN as usize);

/// A commit group grows to this, unless one message alone is larger: at 2 GB/s half a millisecond
/// of writing, so that a message waits for two groups well below 5 ms.
pub const SPOOL_GROUP_BYTES_MAX: usize = 1 << 20;

/// Groups of one log in flight at once: enough to keep an NVMe queue busy, few enough that a torn
/// tail is short.
pub const SPOOL_GROUPS_IN_FLIGHT_MAX: u32 = 4;

/// Longest wait of a settlement for company where settlements come further apart than this, in
/// microseconds: company is not worth waiting for then, and what waits at a crash is sent again.
pub const SPOOL_SETTLE_SPARSE_US: u64 = 250;

/// Settlements of one state group: 64 KiB of records.
pub const SPOOL_SETTLEMENTS_PER_GROUP_MAX: usize = 2_000;

/// Free space under which new mail is refused, unless configured otherwise: a quarter of a minute
/// of settlements and stragglers at full speed, which need room to make room.
pub const SPOOL_LOW_WATER_BYTES: u64 = 256 << 20;

/// Most domains of one entry that are looked up again before a retry: nearly all mail has one per
/// site; the others are looked at when their turn comes.
pub const DOMAINS_ASKED_MAX: usize = 16;

/// Rest of the disk after each half megabyte of a segment that is made in advance: with 10 ms a
/// segment of 64 MiB is there after 1.4 s, and takes a twentieth of what a disk of 1 GB/s gives.
pub const SPOOL_MAKING_PAUSE: Duration = Duration::from_millis(10);

/// Free message segments kept ready: one to roll over to, one while the next is being made.
pub const SPOOL_SPARE_SEGMENTS: u32 = 2;

/// Most free message segments kept where the disk is large, 1 GiB at full size: a backlog comes
/// again, and to make a segment is 64 MiB of writing. To remove one holds up the disk for 25 ms
/// where the file system is mounted with `discard`: with a queue of 1 GiB draining at full speed
/// the accept p99 was 22 ms instead of 8.
pub const SPOOL_FREE_SEGMENTS_MAX: u32 = 16;

/// Pause after the removal of a message segment of full size, for the same reason; less after
/// smaller ones, none while space is low.
pub const SPOOL_REMOVE_PAUSE: Duration = Duration::from_secs(1);

/// Messages copied forward in one batch, which becomes one group: many, because small messages are
/// only dense when they share blocks; few enough that reading them does not flood the disk.
pub const SPOOL_COPIES_IN_FLIGHT_MAX: u32 = 512;

/// Damage listed one by one at recovery; what exceeds it is counted only.
pub const SPOOL_DAMAGE_LISTED_MAX: usize = 10_000;

/// How long after a failed write the disk is probed again, in milliseconds: mail is taken again
/// within 5 s of the disk's return.
pub const SPOOL_PROBE_MS: u64 = 1_000;

/// How often free space is asked for, in milliseconds.
pub const SPOOL_SPACE_MS: u64 = 500;

/// Settlements that may wait for a failing disk before new mail is refused.
pub const SPOOL_SETTLEMENTS_WAITING_MAX: usize = 100_000;

/// Settlements that may wait before dates of next attempts are no longer journaled: a path that
/// fails puts off a million entries in a moment, and advice for the next start must not be what
/// refuses new mail.
pub const SPOOL_DATES_WAITING_MAX: usize = 50_000;
const _: () = assert!(SPOOL_DATES_WAITING_MAX < SPOOL_SETTLEMENTS_WAITING_MAX);

/// Messages that one shard notes as in hand: every connection that it can have with a pipeline of
/// four, and more. What is beyond is not noted, and never accused of a crash.
pub const HANDS_SLOTS: usize = 16_384;

/// Messages that were in hand at a crash and are not cleared yet, of the whole node: all that one
/// shard can have in hand.
pub const SUSPECTS_MAX: usize = 16_384;
const _: () = assert!(SUSPECTS_MAX >= HANDS_SLOTS);

/// Jumps of the wall clock that are remembered: more than a clock makes in the life of a message,
/// unless it is broken.
pub const JUMPS_KEPT_MAX: usize = 64;

/// Messages of one quarantine that a listing names; the rest is counted.
pub const QUARANTINE_LISTED_MAX: usize = 1_000;

/// Releases from one quarantine that failed, or are under way, and that nothing is known of yet: an
/// operator who tries more often has a disk to mend first.
pub const RELEASE_NOTES_MAX: usize = 1_000;

// ---- queue ----

/// Most entries of one shard's queue: 2^26, 4 GiB of entries. Beyond it a shard must refuse mail;
/// the memory budget of a real server is met long before.
pub const QUEUE_ENTRIES_MAX: u32 = 1 << 26;

/// Most egress paths of one shard: a path that has nothing to do is forgotten and one with work has
/// an entry or a connection, so the entries bound the paths too; this is only where indexes end.
pub const QUEUE_PATHS_MAX: u32 = 1 << 27;
const _: () = assert!(QUEUE_ENTRIES_MAX < QUEUE_PATHS_MAX / 2 + 1);

/// Paths without entries and connections that are remembered, with their backoff and counters:
/// 65,536, about 16 MiB.
pub const QUEUE_PATHS_VACANT_MAX: u32 = 1 << 16;
const _: () = assert!(QUEUE_PATHS_VACANT_MAX < QUEUE_PATHS_MAX);

/// Most connections of one path, whatever is configured: above a thousand to one site from one
/// address every receiver we know refuses.
pub const QUEUE_PATH_CONNECTIONS_MAX: u32 = 1024;

/// Connections of all paths of a shard, by default: half of the 65,536 descriptors that a service
/// unit usually gets, the other half being for inbound sessions.
pub const QUEUE_CONNECTIONS_TOTAL_MAX: u32 = 32_768;
const _: () = assert!(QUEUE_PATH_CONNECTIONS_MAX <= QUEUE_CONNECTIONS_TOTAL_MAX);

/// Connections that a path opens before its first success: two, so that one slow host of the site
/// does not hold up the path, and a dead one costs only two attempts.
pub const QUEUE_CONNECTIONS_INITIAL: u32 = 2;
const _: () = assert!(QUEUE_CONNECTIONS_INITIAL <= QUEUE_PATH_CONNECTIONS_MAX);

/// Entries that one event may move (wheel, expiry, deferral of a whole path): 1,024 at about 100 ns
/// keep the shard's other work waiting for 0.1 ms at most.
pub const QUEUE_WORK_MAX: u32 = 1024;

/// How long a message taken proves that a host works: longer than a slow receiver needs for one
/// message, shorter than an outage that anybody would call one.
pub const QUEUE_PROOF: Duration = Duration::from_secs(60);

/// After a host refused a connection while others delivered, one more is tried after this: one
/// refused dial a second harms nobody. Doubled with each that is refused again.
pub const QUEUE_GROW_FIRST: Duration = Duration::from_secs(1);

/// Longest time between two such tries, so that a host that takes more again is noticed.
pub const QUEUE_GROW_MAX: Duration = Duration::from_secs(30);
const _: () = assert!(QUEUE_GROW_FIRST.as_nanos() < QUEUE_GROW_MAX.as_nanos());
const _: () = assert!(QUEUE_GROW_MAX.as_nanos() < QUEUE_PROOF.as_nanos());

/// The first rest of a path whose host took mail a moment ago and now refuses its only connection:
/// two dials a second. Doubled each time.
pub const QUEUE_STUMBLE_FIRST: Duration = Duration::from_millis(500);

/// After so many of these rests (0.5, 1, 2 and 4 s) in a row the host is down.
pub const QUEUE_STUMBLES_MAX: u32 = 4;

/// Times in a row that an entry goes back because its connection was ended by a host that works:
/// more often, and the message itself may be what ends connections.
pub const QUEUE_RETURNS_MAX: u8 = 5;

/// How often a shard looks whether there is room again on a path whose connections others hold, and
/// how long an idle connection stays when others need it: an order above a round trip within a
/// continent, so that a connection that is in use is never taken for an idle one, and 40 looks a
/// second, which cost nothing.
pub const QUEUE_ROOM_LOOK: core::time::Duration = core::time::Duration::from_millis(25);

/// Bytes of the last error that a path keeps for the operator: one reply line.
pub const QUEUE_CAUSE_BYTES_MAX: usize = 512;

/// Most delays of a retry schedule; 64 distinct ones are more than anybody can reason about.
pub const QUEUE_RETRY_DELAYS_MAX: usize = 64;

/// Shortest delay between two attempts: one second; shorter ones hammer the receiver.
pub const QUEUE_RETRY_DELAY_MIN: core::time::Duration = core::time::Duration::from_secs(1);

/// Longest expiry: 30 days, six times what RFC 5321 4.5.4.1 advises.
pub const QUEUE_EXPIRY_MAX: core::time::Duration = core::time::Duration::from_secs(30 * 86_400);
const _: () = assert!(QUEUE_RETRY_DELAY_MIN.as_nanos() < QUEUE_EXPIRY_MAX.as_nanos());

/// Longest period of a rate: 31 days, a monthly quota.
pub const QUEUE_RATE_PERIOD_MAX: core::time::Duration =
    core::time::Duration::from_secs(31 * 86_400);

// ---- service ----

/// Most inbound sessions of one shard: 10,000 idle ones at under 2 KiB each are 20 MiB, and twice
/// that is still little beside the fresh messages.
pub const SESSIONS_MAX: u32 = 20_000;

/// Descriptors of a shard that no inbound session may have: files of the spool, the ring, sockets
/// of the control thread, with room.
pub const DESCRIPTORS_KEPT: u64 = 64;

/// The part of a process's memory that mail on its way in may take, of all shards together: a
/// quarter. Fresh messages, connections and the spool's buffers have the rest.
pub const SESSION_MEMORY_PART: u64 = 4;

/// What mail on its way in may take where the system tells no limit, in bytes per shard.
pub const SESSION_MEMORY_DEFAULT: u64 = 256 << 20;

/// Bytes that a session may hold even where its shard is over its budget: small mail passes, and
/// the large is sent away.
pub const SESSION_MEMORY_MIN: usize = 64 << 10;

/// Bytes of fresh messages that one shard keeps in memory for their first attempt: some 6,000 of
/// 10 KiB, a fifth of a second of saturated traffic; beyond it delivery reads the spool.
pub const FRESH_BYTES_MAX: u64 = 64 << 20;

/// From here on mail that waits in memory makes sessions go slower where the processor is short: it
/// is far more than deliveries have in hand at a time, and what lies longer has left every cache by
/// the time it is sent. Signing with Ed25519 took 44 us per message with 8 MiB waiting, 52 to 67
/// with 130.
pub const FRESH_BYTES_CALM: u64 = 8 << 20;

/// Most entries per shard of which it is remembered that nobody knows whether the site took them;
/// more are sent again like any other.
pub const UNANSWERED_MAX: usize = 10_000;

/// Domains whose way a shard remembers: a campaign's usual few hundred thousand cost 20 MiB.
pub const WAYS_MAX: usize = 200_000;

/// Egress paths whose target a shard remembers before it drops those that the brain has forgotten.
pub const PATHS_REMEMBERED_MAX: usize = 100_000;

/// Addresses tried in one dial: RFC 5321 5.1 wants at least two; with a connect timeout each, more
/// would keep a dead site's dial busy for minutes.
pub const DIAL_ADDRESSES_MAX: usize = 6;

/// How long the kernel may take to accept one write of a message: RFC 5321 4.5.3.2.5 gives a block
/// three minutes.
pub const SEND_TIMEOUT: Duration = Duration::from_secs(180);

/// Messages that recovery gives to the brain in one turn of the loop: a fifth of a millisecond of
/// work, so that mail coming in meanwhile does not wait for it.
pub const RESTORE_PORTION: usize = 64;

/// Messages whose heads are asked for together before that.
pub const RESTORE_FETCHED: u32 = 512;

/// How long a drain waits for sessions and deliveries in hand: systemd kills after 90 s by default.
pub const DRAIN_TIME_MAX: Duration = Duration::from_secs(20);

/// Letters that wait in a shard's mailbox: some 50 ms of saturated cross-shard traffic; what does
/// not fit waits with its sender.
pub const MAILBOX_LETTERS_MAX: usize = 16_384;

/// Answers of the DNS that a shard keeps: beside [`WAYS_MAX`], as a site asks again for each dial.
pub const RESOLVER_ANSWERS_MAX: usize = 100_000;

/// Shortest life of a DNS answer here: a TTL of zero must not mean a question per message.
pub const RESOLVER_TTL_MIN: Duration = Duration::from_secs(5);

/// Longest life of a DNS answer here, whatever its TTL says (RFC 8767 suggests at most a week).
pub const RESOLVER_TTL_MAX: Duration = Duration::from_secs(86_400);

/// Longest life of a negative answer (RFC 2308 5: one to three hours work well; we want less, since
/// it delays mail to a domain that was just set up).
pub const RESOLVER_NEGATIVE_TTL_MAX: Duration = Duration::from_secs(600);

/// DNS questions under way at once; the rest wait in order.
pub const QUESTIONS_AT_ONCE_MAX: usize = 512;

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
