//! replies - what the server says, as the octets it says.
//!
//! RFC 2034: every 2yz, 4yz and 5yz has an enhanced code, on every line. The greeting and the
//! replies to EHLO and HELO, which have none, are made where they are said.

pub(super) const MAIL_OK: &[u8] = b"250 2.1.0 Sender ok\r\n";
pub(super) const RCPT_OK: &[u8] = b"250 2.1.5 Recipient ok\r\n";
pub(super) const GO_AHEAD: &[u8] = b"354 End data with <CR><LF>.<CR><LF>\r\n";
pub(super) const OK: &[u8] = b"250 2.0.0 Ok\r\n";
pub(super) const BYE: &[u8] = b"221 2.0.0 Bye\r\n";
pub(super) const HELP: &[u8] =
    b"214 2.0.0 See RFC 5321: EHLO HELO MAIL RCPT DATA BDAT RSET NOOP VRFY QUIT\r\n";
pub(super) const CANNOT_VERIFY: &[u8] = b"252 2.0.0 Cannot verify, send mail to find out\r\n";
pub(super) const SPOOL_FULL: &[u8] = b"452 4.3.1 Insufficient system storage\r\n";
pub(super) const LOCAL_ERROR: &[u8] = b"451 4.3.0 Local error, try again later\r\n";
pub(super) const LOOP: &[u8] = b"554 5.4.6 Too many hops, this message loops\r\n";
pub(super) const TOO_BIG: &[u8] = b"552 5.3.4 Message exceeds the size limit\r\n";
pub(super) const BARE: &[u8] = b"554 5.6.0 Message has a bare CR, a bare LF or a NUL\r\n";
pub(super) const TOO_MANY_RECIPIENTS: &[u8] =
    b"452 4.5.3 Too many recipients, send the rest separately\r\n";
pub(super) const RELAY_DENIED: &[u8] = b"550 5.7.1 Relaying denied\r\n";
pub(super) const SENDER_SYNTAX: &[u8] = b"501 5.1.7 Bad sender address syntax\r\n";
pub(super) const RECIPIENT_SYNTAX: &[u8] = b"501 5.1.3 Bad recipient address syntax\r\n";
pub(super) const NEEDS_SMTPUTF8: &[u8] = b"553 5.6.7 Non-ASCII address without SMTPUTF8\r\n";
pub(super) const HELLO_FIRST: &[u8] = b"503 5.5.1 Send EHLO or HELO first\r\n";
pub(super) const NESTED_MAIL: &[u8] = b"503 5.5.1 Sender already given\r\n";
pub(super) const MAIL_FIRST: &[u8] = b"503 5.5.1 Send MAIL first\r\n";
pub(super) const CHUNKS_BEGUN: &[u8] = b"503 5.5.1 Content has begun, only BDAT or RSET now\r\n";
pub(super) const NO_RECIPIENTS: &[u8] = b"554 5.5.1 No valid recipients\r\n";
pub(super) const NOT_OFFERED: &[u8] = b"502 5.5.1 Command not implemented\r\n";
pub(super) const UNKNOWN: &[u8] = b"500 5.5.2 Command not recognized\r\n";
pub(super) const BAD_OCTET: &[u8] = b"500 5.5.2 Control or non-ASCII character in command\r\n";
pub(super) const LONG_LINE: &[u8] = b"500 5.5.2 Line too long\r\n";
pub(super) const BARE_LF: &[u8] = b"500 5.5.2 Lines end in CRLF\r\n";
pub(super) const ARGUMENTS: &[u8] = b"501 5.5.4 Wrong arguments\r\n";
pub(super) const PATH_SYNTAX: &[u8] =
    b"501 5.5.4 Syntax: MAIL FROM:<address> or RCPT TO:<address>\r\n";
pub(super) const PARAMETER: &[u8] = b"501 5.5.4 Bad parameter\r\n";
pub(super) const UNKNOWN_PARAMETER: &[u8] = b"555 5.5.4 Parameter not recognized\r\n";
pub(super) const CHUNK_SIZE: &[u8] = b"501 5.5.4 Bad chunk size, closing\r\n";
pub(super) const NOT_HTTP: &[u8] = b"554 5.5.1 This is SMTP, not HTTP\r\n";
pub(super) const TOO_MANY_ERRORS: &[u8] = b"421 4.7.0 Too many errors\r\n";
pub(super) const TOO_MANY_IDLE: &[u8] = b"421 4.7.0 Too many commands without mail\r\n";
pub(super) const BLIND_CONTENT: &[u8] = b"421 4.7.0 Content sent without 354\r\n";
pub(super) const OVERLOAD: &[u8] = b"421 4.3.2 Too busy, try again later\r\n";
pub(super) const TIMEOUT: &[u8] = b"421 4.4.2 Timeout\r\n";
pub(super) const SHUTTING_DOWN: &[u8] = b"421 4.3.2 Shutting down\r\n";
