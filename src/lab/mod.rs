//! lab - everything that proves the daemon from outside: it loads it, receives from it, and counts.
//!
//! What: `load` injects a campaign and records every acknowledgement; `sink` receives for many
//! domains with the manners of many providers, and records every delivery; `dns` answers for those
//! domains; `check` compares the two ledgers; `demo` does all of it around a real daemon.
//! Why this way: the ledgers are written by programs that share no code path with the spool or the
//! queue, so that a message lost there cannot be lost here as well. What decides is pure
//! (`template`, `personality`, `receiver`, `zone`, `check`); what moves bytes is thin.

pub mod check;
pub mod demo;
pub mod dns;
pub mod engine;
pub mod error;
pub mod fingerprint;
pub mod identity;
pub mod ledger;
pub mod load;
pub mod parcel;
pub mod personality;
pub mod receiver;
pub mod sink;
pub mod template;
pub mod zone;

pub use error::LabError;

#[cfg(test)]
mod tests;
