//! books - what was acknowledged against what arrived, for tests that stage their own experiment.

use std::path::{Path, PathBuf};

use postrider::lab::check::{Books, Verdict};
use postrider::lab::ledger::{Arrival, LedgerReader, Sent};

/// The verdict of these ledgers; what waits in a spool counts as lost here.
pub(crate) fn verdict(sent: &Path, arrivals: &[PathBuf]) -> Verdict {
    let mut books = Books::open(LedgerReader::<Sent>::open(sent).unwrap()).unwrap();
    for path in arrivals {
        for arrival in LedgerReader::<Arrival>::open(path).unwrap() {
            books.arrived(&arrival.unwrap());
        }
    }
    books.verdict()
}

/// The sum of one number over the shards of a status.
pub(crate) fn total(status: &serde_json::Value, name: &str) -> u64 {
    let shards = status["shards"].as_array().unwrap();
    let numbers = shards.iter().map(|shard| shard[name].as_u64().unwrap());
    numbers.sum()
}
