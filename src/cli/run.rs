//! run - the daemon, from the command line's side.

use std::path::PathBuf;
use std::sync::Arc;

use super::{Failure, logging};
use crate::config::{self, Snapshot};

/// Where the configuration is looked for.
pub const CONFIG_DEFAULT: &str = "/etc/postrider/postrider.toml";

/// Run the daemon until SIGTERM
///
/// Prints `postrider: ready` on stdout when it accepts mail. SIGTERM ends it in order: nothing new
/// is accepted, what is being sent is sent, and the rest stays in the spool.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  postrider run --config /etc/postrider/postrider.toml\n\
    Exit code 78 when the configuration is wrong, or a DKIM key that it names cannot be used."
)]
pub struct Args {
    /// The configuration file
    #[arg(long, short, value_name = "FILE", default_value = CONFIG_DEFAULT)]
    pub config: PathBuf,
}

/// Loads the configuration, starts logging, and serves until `serve` returns.
///
/// # Errors
/// A bad configuration (78), or what `serve` says.
pub fn execute(
    args: &Args,
    serve: impl FnOnce(Arc<Snapshot>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let loaded = config::load(&args.config)?;
    logging::start(&loaded.snapshot.log)?;
    for warning in &loaded.warnings {
        tracing::warn!(file = %args.config.display(), "{warning}");
    }
    serve(Arc::new(loaded.snapshot))
}
