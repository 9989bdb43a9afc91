//! spool - durable logs.

pub mod format;
pub mod recover;

mod commit;
mod index;
mod large;
mod reclaim;
mod segment;
mod state;
#[cfg(test)]
mod tests;
mod types;

pub use index::Place;
pub use recover::{Damage, RecoveryReport};
pub use state::{Action, Completion, Extent, Outcome, Spool, SpoolConfig};
pub use types::{
    Alarm, AppendError, Location, PendingRecipient, Queued, ReadError, Settlement, SettlementKind,
    SpoolStatus, Stored,
};
