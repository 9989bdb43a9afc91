//! socket - the Unix socket of the control API: made, found stale, removed.

use std::fmt;
use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Why there is no control socket; every text names the path.
#[derive(Debug)]
pub enum AdminError {
    /// Another process answers on it.
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// The path is a file of another kind, which is left alone.
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// The kernel refused a step.
    Io {
        /// The socket.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why not.
        error: io::Error,
    },
}

impl fmt::Display for AdminError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InUse { path } => {
                write!(
                    f,
                    "admin.socket {}: another process answers on it",
                    path.display()
                )
            }
            Self::NotASocket { path } => {
                write!(
                    f,
                    "admin.socket {}: exists and is not a socket",
                    path.display()
                )
            }
            Self::Io {
                path,
                action,
                error,
            } => {
                write!(
                    f,
                    "admin.socket {}: cannot {action}: {error}",
                    path.display()
                )
            }
        }
    }
}

impl std::error::Error for AdminError {}

/// A listening socket with mode 0600; the file goes when this goes.
#[derive(Debug)]
pub struct AdminSocket {
    path: PathBuf,
    identity: (u64, u64),
    pub(super) listener: UnixListener,
}

impl AdminSocket {
    /// Makes the socket, in place of a stale one.
    ///
    /// # Errors
    /// Another process answers there, the path is something else, or the kernel refuses.
    pub fn bind(path: &Path) -> Result<Self, AdminError> {
        refuse_live(path)?;
        let io = |action| {
            move |error| AdminError::Io {
                path: path.to_owned(),
                action,
                error,
            }
        };
        // Between bind and chmod a socket has the mode of the umask. So it is made in a directory
        // that nobody else may enter, and moved to its place, which also replaces a stale one.
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        // As for the data directory: only the last level, which may be one of a mistyped path.
        match DirBuilder::new().mode(0o755).create(parent) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(io("make its directory")(error));
            }
            _ => {}
        }
        let private = parent.join(format!(".{}", std::process::id()));
        DirBuilder::new()
            .mode(0o700)
            .create(&private)
            .map_err(io("make it"))?;
        let result = bind_in(&private, path);
        let removed = fs::remove_dir_all(&private);
        let (listener, identity) = result.map_err(io("make it"))?;
        let socket = Self {
            path: path.to_owned(),
            identity,
            listener,
        };
        removed.map_err(io("remove the directory it was made in"))?;
        Ok(socket)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        // Only our own: a successor may have put its socket in this place already.
        let ours =
            fs::symlink_metadata(&self.path).is_ok_and(|meta| identity(&meta) == self.identity);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the admin socket");
        }
    }
}

fn identity(meta: &fs::Metadata) -> (u64, u64) {
    (meta.dev(), meta.ino())
}

fn bind_in(private: &Path, path: &Path) -> io::Result<(UnixListener, (u64, u64))> {
    let temporary = private.join("s");
    let listener = UnixListener::bind(&temporary)?;
    listener.set_nonblocking(true)?;
    fs::set_permissions(&temporary, Permissions::from_mode(0o600))?;
    let identity = identity(&fs::symlink_metadata(&temporary)?);
    fs::rename(&temporary, path)?;
    Ok((listener, identity))
}

/// Nothing at `path`, or a socket on which nobody answers.
fn refuse_live(path: &Path) -> Result<(), AdminError> {
    let io = |action, error| AdminError::Io {
        path: path.to_owned(),
        action,
        error,
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io("look at it", error)),
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(AdminError::NotASocket {
                path: path.to_owned(),
            });
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(AdminError::InUse {
            path: path.to_owned(),
        }),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
        // Removed since we looked.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io("see whether it is in use", error)),
    }
}
