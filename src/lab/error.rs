//! lab::error - why an experiment could not be carried out.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::engine::NetError;
use crate::engine::uring::UringSetupError;
use crate::lab::template::TemplateError;

/// Why `load`, `sink` or `demo` stopped before its result. What the daemon did wrong is not here:
/// it is in the report.
#[derive(Debug)]
pub enum LabError {
    /// The options contradict each other, or one is out of range; the text names it.
    Options(&'static str),
    /// The engine could not be started.
    Engine(UringSetupError),
    /// An address could not be listened on.
    Listen(SocketAddr, NetError),
    /// Nobody answered at the target, not even once.
    Connect(SocketAddr, NetError),
    /// A file or directory of the laboratory could not be used.
    File(PathBuf, io::Error),
    /// The message asked for cannot be made.
    Template(TemplateError),
    /// The name server could not be started.
    Dns(io::Error),
    /// A ledger is not one of ours, or was cut.
    Ledger(PathBuf),
    /// The daemon could not be started, or did not say that it is ready in time; its last words are
    /// in the file named.
    Daemon(PathBuf, io::Error),
    /// A thread of the laboratory panicked: a defect of ours.
    Thread(&'static str),
}

impl fmt::Display for LabError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Options(what) => f.write_str(what),
            Self::Engine(error) => write!(f, "cannot start the engine: {error}"),
            Self::Listen(address, error) => write!(f, "cannot listen on {address}: {error}"),
            Self::Connect(address, error) => write!(f, "cannot connect to {address}: {error}"),
            Self::File(path, error) => write!(f, "{}: {error}", path.display()),
            Self::Template(error) => write!(f, "cannot make the message: {error}"),
            Self::Dns(error) => write!(f, "cannot start the name server: {error}"),
            Self::Ledger(path) => write!(f, "{} is not a whole ledger", path.display()),
            Self::Daemon(log, error) => {
                write!(f, "the daemon: {error}; its log is {}", log.display())
            }
            Self::Thread(name) => write!(f, "the thread {name} of the laboratory failed"),
        }
    }
}

impl std::error::Error for LabError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Engine(error) => Some(error),
            Self::File(_, error) | Self::Dns(error) | Self::Daemon(_, error) => Some(error),
            Self::Listen(_, error) | Self::Connect(_, error) => Some(error),
            Self::Template(error) => Some(error),
            Self::Options(_) | Self::Ledger(_) | Self::Thread(_) => None,
        }
    }
}

impl From<TemplateError> for LabError {
    fn from(error: TemplateError) -> Self {
        Self::Template(error)
    }
}
