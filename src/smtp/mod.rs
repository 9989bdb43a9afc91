//! smtp - the protocol of RFC 5321, both ends, without any I/O.
//!
//! What: machines that take bytes and times and give bytes and events. The drivers move the bytes.
//! Why this way: the same machines run on io_uring, in the simulator and under the fuzzers, and a
//! whole session can be replayed one octet at a time.
//!
//! | file | what it is for |
//! |---|---|
//! | `command` | the commands of the protocol, parsed without allocating |
//! | `reply` | replies: encoding, incremental bounded parsing, their text in outcomes |
//! | `extension` | the keywords of EHLO, offered and understood; xtext |
//! | `data` | dot transparency and the line-end rule, at memory speed |
//! | `fuzz` | entry points for fuzzers, one per promise |
//! | `server` | the server end of one session |
//! | `client` | the client end of one connection, with several transactions in flight |
//!
//! Standards: RFC 5321, 1870, 2034, 2920, 3030, 3461, 6152, 6531, 7504, 9422.

pub mod client;
pub mod command;
pub mod data;
pub mod extension;
pub mod fuzz;
pub mod reply;
pub mod server;

pub use client::{
    Cause, Client, ClientConfig, ClientEvent, ClientTimeouts, Disconnect, DsnParameters, Outcome,
    RecipientDsn, Transaction,
};
pub use command::{Command, CommandError};
pub use extension::Capabilities;
pub use reply::{Reply, ReplyError, ReplyParser, ReplyText};
pub use server::{Inbound, Refusal, Server, ServerConfig, ServerEvent};
