//! cli::spool::place - where the spools of a stopped node are, its lock, and their files.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use nix::fcntl::{Flock, FlockArg};

use crate::cli::Failure;
use crate::engine::FileMap;
use crate::engine::Map;
use crate::limits::SHARDS_MAX;
use crate::node::LOCK_FILE;
use crate::settings::spool_directory;
use crate::spool::inspect::{Files, Inspection};

/// What is read at once where the disk does not give all of a file.
const PIECE_BYTES: usize = 4096;

/// The data directory of a node that does not run while this lives.
#[derive(Debug)]
pub(super) struct Place {
    data: PathBuf,
    /// The numbers of the spools in it, in order; never empty.
    pub(super) shards: Vec<u16>,
    /// `None` where no node ever ran: a copy, for instance. It is not made here, because a lock
    /// file of another owner would keep the node from starting.
    _lock: Option<Flock<File>>,
}

impl Place {
    pub(super) fn open(data: &Path) -> Result<Self, Failure> {
        let lock = lock(data)?;
        let failed = |error| Failure::Failed(format!("{}: {error}", data.display()));
        let mut shards = Vec::new();
        for entry in fs::read_dir(data).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let digits = name.to_str().and_then(|name| name.strip_prefix("shard-"));
            if let Some(number) = digits.and_then(|digits| digits.parse::<u16>().ok())
                && number < SHARDS_MAX
                && spool_directory(data, number).file_name() == Some(&*name)
            {
                shards.push(number);
            }
        }
        if shards.is_empty() {
            let text = format!("{}: no spool is here", data.display());
            return Err(Failure::Failed(text));
        }
        shards.sort_unstable();
        Ok(Self {
            data: data.to_owned(),
            shards,
            _lock: lock,
        })
    }

    /// Recovers the spool of `shard` for reading. A thorough one reads every byte, and takes those
    /// that the disk does not give for zeros, so that they are reported as damage by id.
    pub(super) fn inspect(
        &self,
        shard: u16,
        thorough: bool,
        bar: &ProgressBar,
    ) -> Result<Inspection<ShardFiles>, Failure> {
        bar.set_message(format!("shard {shard}: files"));
        let files = ShardFiles {
            directory: self.directory(shard),
            thorough,
        };
        let told = |done: usize, total: usize| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        };
        let found = Inspection::open(files, shard, told).map_err(|error| self.failed(shard, error));
        bar.set_message(format!("shard {shard}: messages"));
        found
    }

    pub(super) fn directory(&self, shard: u16) -> PathBuf {
        spool_directory(&self.data, shard)
    }

    pub(super) fn failed(&self, shard: u16, error: impl std::fmt::Display) -> Failure {
        let directory = self.directory(shard);
        Failure::Failed(format!("{}: {error}", directory.display()))
    }
}

/// A shared lock: several tools may look, a node may not start meanwhile.
fn lock(data: &Path) -> Result<Option<Flock<File>>, Failure> {
    let failed =
        |error: io::Error| Failure::Failed(format!("{}: {error}", data.join(LOCK_FILE).display()));
    let file = match File::open(data.join(LOCK_FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed)?,
    };
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(Failure::Failed(format!(
            "{}: a postrider runs on it (the lock file is held); stop it first, or ask it with \
             `postrider ctl spool`",
            data.display()
        ))),
        Err((_, errno)) => Err(failed(errno.into())),
    }
}

/// The files of one shard.
#[derive(Debug)]
pub(super) struct ShardFiles {
    directory: PathBuf,
    thorough: bool,
}

/// What a file holds.
pub(super) enum Bytes {
    Map(FileMap),
    /// Of a file that the disk does not give whole: zeros in its place.
    Pieces(Vec<u8>),
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Map(map) => map.bytes(),
            Self::Pieces(bytes) => bytes,
        }
    }
}

impl Files for ShardFiles {
    type Bytes = Bytes;

    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            // A name that is not text is not one of ours.
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }

    fn bytes(&self, name: &str) -> io::Result<Bytes> {
        let file = File::open(self.directory.join(name))?;
        let map = FileMap::new(file.as_fd())?;
        let all = 0..map.bytes().len();
        // Reading through the map ends the process where the disk fails; populating says so.
        if self.thorough && !all.is_empty() && map.populate(&all).is_err() {
            return Ok(Bytes::Pieces(pieces(&file, all.end)));
        }
        Ok(Bytes::Map(map))
    }
}

fn pieces(file: &impl FileExt, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut at = 0;
    for piece in bytes.chunks_mut(PIECE_BYTES) {
        if file.read_exact_at(piece, at).is_err() {
            piece.fill(0);
        }
        at += piece.len() as u64;
    }
    bytes
}

/// A bar on stderr; none where that is no terminal (indicatif sees to it) or when `quiet`.
pub(super) fn bar(quiet: bool) -> ProgressBar {
    let bar = if quiet {
        ProgressBar::hidden()
    } else {
        ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr())
    };
    let style = "{msg:20} {bar:32} {human_pos:>9} of {human_len}";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk whose second piece cannot be read.
    struct Failing;

    impl FileExt for Failing {
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            if offset == PIECE_BYTES as u64 {
                buffer[0] = 9;
                return Err(io::Error::other("bad sector"));
            }
            buffer.fill(7);
            Ok(buffer.len())
        }

        fn write_at(&self, _: &[u8], _: u64) -> io::Result<usize> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    #[test]
    fn what_the_disk_does_not_give_is_zeros() {
        let bytes = pieces(&Failing, 2 * PIECE_BYTES + 10);
        let (one, rest) = bytes.split_at(PIECE_BYTES);
        let (two, three) = rest.split_at(PIECE_BYTES);
        assert!(one.iter().all(|byte| *byte == 7) && two.iter().all(|byte| *byte == 0));
        assert_eq!(three, [7; 10]);
    }

    #[test]
    fn a_directory_without_a_spool_is_refused() {
        for data in ["/proc/self/fdinfo", "/nowhere/at/all"] {
            assert!(Place::open(Path::new(data)).is_err(), "{data}");
        }
    }
}
