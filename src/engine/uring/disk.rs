//! Files: what the spool needs of them.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::fstat;
use nix::sys::statvfs::statvfs;

use super::core::Core;
use crate::engine::sys::block::BLOCK_ALIGN;
use crate::engine::sys::map::FileMap;
use crate::engine::sys::ring::{Memory, Request};
use crate::engine::{Block, OpenMode};

/// Bytes written at a time while a file is given its zeros: some milliseconds of a disk's time, so
/// that group commits get in between.
const PREWRITE_BYTES: u32 = 512 << 10;

/// Bytes populated per operation: the same, for reading.
const POPULATE_BYTES: usize = 1 << 20;

/// Longest range that is read, and thrown away, to have it in the page cache: beyond it copying
/// costs more than what is saved.
const READ_CACHED_BYTES: usize = 128 << 10;

/// Bytes unmapped per operation: about a fifth of a millisecond of the lock that page faults need.
const VACATE_BYTES: usize = 8 << 20;

/// An open file of the spool.
#[derive(Debug, Clone)]
pub struct UringFile {
    pub(super) fd: Rc<OwnedFd>,
}

pub(super) fn open(core: &Core, path: &Path, mode: OpenMode) -> io::Result<UringFile> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    // std opens with O_CLOEXEC.
    options.create_new(mode == OpenMode::Create);
    let file = options.open(path)?;
    if core.direct.get() {
        // Set afterwards: a file system that refuses O_DIRECT in open(2) has made the file already.
        let flags = OFlag::from_bits_truncate(fcntl(&file, FcntlArg::F_GETFL)?);
        if let Err(error) = fcntl(&file, FcntlArg::F_SETFL(flags | OFlag::O_DIRECT)) {
            core.direct.set(false);
            let path = path.display();
            tracing::warn!(%error, %path, "no O_DIRECT here; writing through the page cache");
        }
    }
    Ok(UringFile {
        fd: Rc::new(OwnedFd::from(file)),
    })
}

pub(super) fn len(file: &UringFile) -> io::Result<u64> {
    let stat = fstat(&*file.fd)?;
    u64::try_from(stat.st_size).map_err(io::Error::other)
}

pub(super) async fn write_durable(
    core: &Rc<Core>,
    file: &UringFile,
    offset: u64,
    block: Block,
) -> (Block, io::Result<()>) {
    let len = block.len();
    let (block, result) = transfer(core, file, offset, block, Request::WriteDurable).await;
    (block, whole(result, len))
}

pub(super) async fn read(
    core: &Rc<Core>,
    file: &UringFile,
    offset: u64,
    block: Block,
) -> (Block, io::Result<usize>) {
    let (block, result) = transfer(core, file, offset, block, Request::Read).await;
    let read = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result));
    (block, read)
}

/// Moves a block to or from a file and hands it back: bytes moved, or a negative error number.
async fn transfer(
    core: &Rc<Core>,
    file: &UringFile,
    offset: u64,
    block: Block,
    request: fn(u64, Block) -> Request,
) -> (Block, i32) {
    let len = block.len();
    if !offset.is_multiple_of(BLOCK_ALIGN as u64) || len > i32::MAX as usize {
        return (block, -libc::EINVAL);
    }
    // Not cancelled when dropped: a write that is half done helps nobody.
    let request = request(offset, block);
    let (result, memory) = core.operate(Some(&file.fd), request, false).await;
    let Memory::Block(block) = memory else {
        // The ring hands back what it was given; only a runtime that ended has nothing to give.
        return (Block::zeroed(len), -libc::EINTR);
    };
    (block, result)
}

/// A write is whole or it failed.
fn whole(result: i32, len: usize) -> io::Result<()> {
    match usize::try_from(result) {
        Ok(written) if written == len => Ok(()),
        Ok(_) => Err(io::ErrorKind::WriteZero.into()),
        Err(_) => Err(io::Error::from_raw_os_error(-result)),
    }
}

/// Reserves the space of a file that is to be zeroed.
pub(super) async fn allocate(core: &Rc<Core>, file: &UringFile, len: u64) -> io::Result<()> {
    if !len.is_multiple_of(BLOCK_ALIGN as u64) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    if len == 0 {
        return Ok(());
    }
    let request = Request::Allocate(len);
    match -core.operate(Some(&file.fd), request, false).await.0 {
        // Some file systems only allocate by writing, which comes next.
        0 | libc::EOPNOTSUPP => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Writes the first portion of a range with zeros, and says where it ends.
pub(super) async fn zero(core: &Rc<Core>, file: &UringFile, range: Range<u64>) -> io::Result<u64> {
    thread_local! {
        static ZEROS: Rc<Block> = Rc::new(Block::together(PREWRITE_BYTES as usize).0);
    }
    let left = range.end.saturating_sub(range.start);
    let part = u32::try_from(left).unwrap_or(u32::MAX).min(PREWRITE_BYTES);
    let request = Request::WriteZeros(range.start, ZEROS.with(Rc::clone), part);
    let (result, _) = core.operate(Some(&file.fd), request, false).await;
    whole(result, part as usize)?;
    Ok(range.start + u64::from(part))
}

pub(super) async fn sync(core: &Rc<Core>, file: &UringFile) -> io::Result<()> {
    let (result, _) = core.operate(Some(&file.fd), Request::Sync, false).await;
    whole(result, 0)
}

pub(super) async fn prefetch(
    core: &Rc<Core>,
    map: &Arc<FileMap>,
    range: Range<usize>,
) -> io::Result<()> {
    let size = crate::engine::Map::bytes(&**map).len();
    if range.start > range.end || range.end > size {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    if map.is_resident(&range) {
        return Ok(());
    }
    if range.len() <= READ_CACHED_BYTES && read_cached(core, map, &range).await {
        return Ok(());
    }
    let mut start = range.start;
    while start < range.end {
        let part = start..range.end.min(start + POPULATE_BYTES);
        start = part.end;
        if part.len() > BLOCK_ALIGN {
            // Populating alone would wait for each page in turn. Whether this works shows there.
            let request = Request::Fetch(Arc::clone(map), part.clone());
            drop(core.operate(None, request, false).await);
        }
        let request = Request::Populate(Arc::clone(map), part.clone());
        let (result, _) = core.operate(None, request, false).await;
        match -result {
            0 => {}
            // The kernel does not take this advice through a ring: ask it directly.
            libc::EINVAL | libc::EOPNOTSUPP => map.populate(&part)?,
            error => return Err(io::Error::from_raw_os_error(error)),
        }
    }
    Ok(())
}

/// Brings a short range into the page cache, and says whether all of it came: a read with which no
/// thread of the kernel's waits, unlike the advice to populate. What was read is of no use here.
async fn read_cached(core: &Rc<Core>, map: &Arc<FileMap>, range: &Range<usize>) -> bool {
    let start = range.start / BLOCK_ALIGN * BLOCK_ALIGN;
    let block = Block::zeroed(range.end - start);
    let request = Request::ReadCached(Arc::clone(map), start as u64, block);
    let (read, _) = core.operate(None, request, false).await;
    usize::try_from(read).is_ok_and(|read| read >= range.end - start)
}

/// Empties the map piece by piece before it is dropped, where nobody else holds it.
pub(super) async fn unmap(core: &Rc<Core>, mut map: Arc<FileMap>) {
    let size = crate::engine::Map::bytes(&*map).len();
    let mut start = 0;
    while start < size && Arc::get_mut(&mut map).is_some() {
        let part = start..size.min(start + VACATE_BYTES);
        start = part.end;
        let request = Request::Vacate(Arc::clone(&map), part);
        // Where the kernel refuses, dropping the map does it.
        let (result, memory) = core.operate(None, request, false).await;
        drop(memory);
        if result < 0 {
            break;
        }
    }
}

pub(super) async fn sync_directory(core: &Rc<Core>, path: &Path) -> io::Result<()> {
    let directory = Rc::new(OwnedFd::from(File::open(path)?));
    let (result, _) = core.operate(Some(&directory), Request::Sync, false).await;
    whole(result, 0)
}

pub(super) async fn remove(core: &Rc<Core>, path: &Path) -> io::Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let (result, _) = core.operate(None, Request::Remove(name), false).await;
    match -result {
        // A kernel before 5.11, or one that refuses it in a ring.
        libc::EINVAL | libc::EOPNOTSUPP => fs::remove_file(path),
        _ => whole(result, 0),
    }
}

pub(super) fn list(path: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path)? {
        // A name that is not UTF-8 is not ours.
        names.extend(entry?.file_name().into_string().ok());
    }
    Ok(names)
}

pub(super) fn free_space(path: &Path) -> io::Result<u64> {
    let stat = statvfs(path)?;
    Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
}
