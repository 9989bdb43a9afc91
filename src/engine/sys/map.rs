//! FileMap - a file of the spool, mapped for reading.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use memmap2::{Advice, Mmap, MmapOptions};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::engine::port::Map;

/// The page size that addresses are rounded to: 4096 on every machine we build for with this spool
/// (`Block` has the same unit); on a larger page size the kernel would refuse, and say so.
const PAGE: usize = 4096;

/// Most bytes whose residency is looked up on the shard instead of being populated by the ring.
const RESIDENT_CHECK_MAX: usize = 64 * PAGE;

/// A whole file as memory.
pub struct FileMap {
    map: Mmap,
    /// The same file, read through the page cache.
    cached: Option<OwnedFd>,
}

impl FileMap {
    /// Maps the file as long as it is now.
    pub(crate) fn new(file: BorrowedFd<'_>) -> io::Result<Self> {
        let file = File::from(file.as_fd().try_clone_to_owned()?);
        // SAFETY: a segment is never truncated while it is mapped (the spool only ever removes the
        // name of one), and bytes that a write changes are ones that nobody reads yet: records are
        // read only after their write completed.
        // JUSTIFICATION: messages go from the page cache to the socket without a copy of our own.
        let map = unsafe { MmapOptions::new().map(&file)? };
        Ok(Self { map, cached: None })
    }

    /// Maps the file for reads here and there. A fault reads its page alone: what the kernel would
    /// read ahead on its own (8 MiB, where the system says so) keeps the disk from the writes that
    /// sessions wait for.
    pub(crate) fn scattered(file: BorrowedFd<'_>) -> io::Result<Self> {
        let mut map = Self::new(file)?;
        map.map.advise(Advice::Random)?;
        // The descriptor that writes past the page cache cannot fill it. Without another one,
        // populating the map does that.
        let again = format!("/proc/self/fd/{}", file.as_raw_fd());
        let cached = File::open(again).ok().map(OwnedFd::from);
        map.cached = cached.filter(|file| {
            posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM).is_ok()
        });
        Ok(map)
    }

    /// The descriptor to read with so that the page cache has what was read, and no more.
    pub(super) fn cached(&self) -> Option<RawFd> {
        self.cached.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// The page-aligned part of the map that covers `range`, as address and length.
    pub(super) fn pages(&self, range: &Range<usize>) -> io::Result<(*const u8, usize)> {
        if range.start > range.end || range.end > self.map.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let start = range.start & !(PAGE - 1);
        Ok((self.map[start..].as_ptr(), range.end - start))
    }

    /// Whether all of `range` is in the page cache now, asked without reading anything. False for
    /// long ranges, and where the kernel does not tell.
    pub(crate) fn is_resident(&self, range: &Range<usize>) -> bool {
        let Ok((address, len)) = self.pages(range) else {
            return false;
        };
        if len > RESIDENT_CHECK_MAX {
            return false;
        }
        let mut pages = [0u8; RESIDENT_CHECK_MAX / PAGE];
        // SAFETY: the range lies in the map, and the vector has a byte for each page of it.
        // JUSTIFICATION: populating through the ring costs a trip to a kernel thread; most mail is
        // sent while its pages are still in memory.
        let done = unsafe { libc::mincore(address.cast_mut().cast(), len, pages.as_mut_ptr()) };
        done == 0 && pages[..len.div_ceil(PAGE)].iter().all(|page| page & 1 == 1)
    }

    /// Reads `range` into memory, blocking; an unreadable block is an error.
    pub(crate) fn populate(&self, range: &Range<usize>) -> io::Result<()> {
        let (address, len) = self.pages(range)?;
        // SAFETY: the range lies in the map, and populating for reading changes no byte.
        // JUSTIFICATION: where the ring refuses MADVISE this is the only way that reports errors.
        let done =
            unsafe { libc::madvise(address.cast_mut().cast(), len, libc::MADV_POPULATE_READ) };
        if done == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

impl Map for FileMap {
    fn bytes(&self) -> &[u8] {
        &self.map
    }
}
