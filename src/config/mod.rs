//! config - one TOML file in, one immutable [`Snapshot`] out, or every mistake in the file at once.
//!
//! What: [`PARAMETERS`] is the table of everything that can be configured; [`load`] checks a file
//! against it; [`describe()`] prints the reference from it.
//! Why this way: nobody below this room knows that configuration exists; it fills plain structs.
//! Flow: text -> `read` (types, bounds, names) -> `build::check` (combinations) -> `Snapshot`.

mod build;
mod describe;
mod error;
mod parameters;
mod read;
mod snapshot;
#[cfg(test)]
mod tests;
pub mod values;

use std::io::Read;
use std::path::Path;

pub use describe::{describe, json, markdown};
pub use error::{ConfigError, Problem};
pub use parameters::{Absent, Kind, PARAMETERS, Parameter, SECTIONS, Section, Shape};
pub use snapshot::{
    Admin, Delivery, Dkim, Dns, Listener, Log, LogFormat, LogLevel, Node, Pool, PoolMember, Route,
    Shards, Signing, Snapshot, Source, Spool,
};
pub use values::{Cidr, DomainPattern, Host, HostPort, Rate};

use crate::limits::CONFIG_BYTES_MAX;

/// A checked configuration.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// What the daemon reads.
    pub snapshot: Snapshot,
    /// What is allowed but probably not meant.
    pub warnings: Vec<Problem>,
}

/// Reads and checks a configuration file.
///
/// # Errors
/// The file cannot be read, is larger than `limits::CONFIG_BYTES_MAX`, or says something wrong.
pub fn load(file: &Path) -> Result<Loaded, ConfigError> {
    let unreadable = |error| ConfigError::Unreadable {
        file: file.to_owned(),
        error,
    };
    let mut bytes = Vec::new();
    // One byte more than allowed, so that a file that is too large is told from one that fits.
    let limit = CONFIG_BYTES_MAX as u64 + 1;
    std::fs::File::open(file)
        .and_then(|open| open.take(limit).read_to_end(&mut bytes))
        .map_err(unreadable)?;
    parse(&bytes).map_err(|problems| ConfigError::Wrong {
        file: file.to_owned(),
        problems,
    })
}

/// Checks a configuration. Total: any bytes give a snapshot or problems.
///
/// # Errors
/// Every mistake that was found (at most `limits::CONFIG_ERRORS_MAX`), in the order of the text.
pub fn parse(bytes: &[u8]) -> Result<Loaded, Vec<Problem>> {
    if bytes.len() > CONFIG_BYTES_MAX {
        let mut problems = read::Problems::new("");
        problems.add(
            &(0..0),
            "",
            format!("the file is larger than {CONFIG_BYTES_MAX} bytes"),
        );
        return Err(problems.into_sorted());
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let valid = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
            let mut problems = read::Problems::new(&valid);
            problems.add(&(valid.len()..valid.len()), "", "not UTF-8 from here on");
            return Err(problems.into_sorted());
        }
    };
    let mut problems = read::Problems::new(text);
    let sections = read::read(text, &mut problems);
    build::check(&sections, &mut problems);
    let snapshot = if problems.is_empty() {
        build::build(&sections)
    } else {
        None
    };
    match snapshot {
        Some(snapshot) => {
            let mut warnings = read::Problems::new(text);
            build::warn(&sections, &snapshot, &mut warnings);
            Ok(Loaded {
                snapshot,
                warnings: warnings.into_sorted(),
            })
        }
        None => {
            // The table and `build` disagree; a test builds every parameter, so no release can.
            if problems.is_empty() {
                problems.add(
                    &(0..0),
                    "",
                    "internal error: a checked file gave no snapshot",
                );
            }
            Err(problems.into_sorted())
        }
    }
}
