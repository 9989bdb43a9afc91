//! Block - memory that O_DIRECT accepts.
//!
//! What: a zeroed buffer whose address and length are multiples of 4096, the unit of the spool's
//! writes. Its length may change within its capacity, so that one block serves groups of any size.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;

use memmap2::{Advice, MmapMut};

/// The size of a huge page here, and what its address is a multiple of.
const HUGE_PAGE: usize = 2 << 20;

/// The alignment and granularity of the spool's disk writes, in bytes.
pub const BLOCK_ALIGN: usize = 4096;

/// An aligned, zero-initialised buffer.
pub struct Block {
    start: NonNull<u8>,
    len: usize,
    capacity: usize,
    /// The memory that it is a part of; without, it has an allocation of its own.
    within: Option<Arc<MmapMut>>,
}

// SAFETY: a Block owns its memory alone, as a Box<[u8]> does; of a shared map, its part of it.
// JUSTIFICATION: blocks are filled on one thread and may be freed by another at shutdown.
unsafe impl Send for Block {}
// SAFETY: shared access only reads.
// JUSTIFICATION: an error report may look at a block from another thread.
unsafe impl Sync for Block {}

impl Block {
    /// A zeroed block of `len` bytes, rounded up to a multiple of [`BLOCK_ALIGN`], at least one.
    ///
    /// Aborts the process when the system has no memory, as `Vec` does.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        let len = len.max(1).next_multiple_of(BLOCK_ALIGN);
        let layout = Self::layout(len);
        // SAFETY: the layout's size is not zero.
        // JUSTIFICATION: O_DIRECT needs an alignment that Vec<u8> cannot promise.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else {
            handle_alloc_error(layout)
        };
        Self {
            start,
            len,
            capacity: len,
            within: None,
        }
    }

    /// A block of `len` bytes, and those that fill one huge page with it, where the kernel gives
    /// one for the asking: it looks up each page of a write past its cache, which costs 0.3 to
    /// 0.5 us per message of 10 KiB in pages of 4 KiB. Where there is no memory, or `len` is no
    /// part of a huge page, one of the usual kind.
    #[must_use]
    pub fn together(len: usize) -> (Self, Vec<Self>) {
        let fits = len >= BLOCK_ALIGN && HUGE_PAGE.is_multiple_of(len);
        // A huge page begins at a multiple of its size.
        let map = fits.then(|| MmapMut::map_anon(2 * HUGE_PAGE));
        let Some(Ok(mut map)) = map else {
            return (Self::zeroed(len), Vec::new());
        };
        // Without huge pages it serves as well.
        drop(map.advise(Advice::HugePage));
        let lead = map.as_ptr().align_offset(HUGE_PAGE);
        let parts: Vec<_> = map[lead..lead + HUGE_PAGE]
            .chunks_exact_mut(len)
            .map(NonNull::from)
            .collect();
        let map = Arc::new(map);
        let block = |part: NonNull<[u8]>| Self {
            start: part.cast(),
            len,
            capacity: len,
            within: Some(Arc::clone(&map)),
        };
        let mut blocks: Vec<Self> = parts.into_iter().map(block).collect();
        let one = blocks.pop().unwrap_or_else(|| Self::zeroed(len));
        (one, blocks)
    }

    /// Bytes that the block can hold.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Sets the length to `len`, rounded up as in [`Block::zeroed`]. The bytes stay what they were.
    ///
    /// # Panics
    /// When that is more than the capacity: a bug.
    pub fn set_len(&mut self, len: usize) {
        let len = len.max(1).next_multiple_of(BLOCK_ALIGN);
        assert!(len <= self.capacity, "a block does not grow");
        self.len = len;
    }

    fn layout(len: usize) -> Layout {
        // A length near the address space's end cannot be allocated anyway; say so as Vec does.
        match Layout::from_size_align(len, BLOCK_ALIGN) {
            Ok(layout) => layout,
            Err(_) => panic!("capacity overflow"),
        }
    }
}

impl Deref for Block {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` points to `capacity >= len` initialised bytes that live as long as self.
        // JUSTIFICATION: the allocation was made by hand, see zeroed().
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Block {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in deref, and self is borrowed exclusively.
        // JUSTIFICATION: the allocation was made by hand, see zeroed().
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if self.within.is_some() {
            return;
        }
        // SAFETY: allocated in zeroed() with the same layout, freed once.
        // JUSTIFICATION: the allocation was made by hand, see zeroed().
        unsafe { dealloc(self.start.as_ptr(), Self::layout(self.capacity)) }
    }
}

impl std::fmt::Debug for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Block({} bytes)", self.len)
    }
}

/// Lets this process have huge pages only where it asks for them.
///
/// # Errors
/// The kernel is older than 6.18 and knows all or none.
pub fn huge_pages_for_the_asking() -> nix::Result<()> {
    /// PR_THP_DISABLE_EXCEPT_ADVISED of linux/prctl.h.
    const EXCEPT_ADVISED: libc::c_ulong = 1 << 1;
    let (on, none): (libc::c_ulong, libc::c_ulong) = (1, 0);
    // SAFETY: the call takes numbers alone and changes how later page faults are served.
    // JUSTIFICATION: nix passes no flags with PR_SET_THP_DISABLE.
    let done = unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, on, EXCEPT_ADVISED, none, none) };
    nix::errno::Errno::result(done).map(drop)
}

#[cfg(test)]
mod tests {
    use super::{BLOCK_ALIGN, Block, HUGE_PAGE};

    // Parts of a huge page do not overlap, and live as long as any of them.
    #[test]
    fn blocks_lie_together() {
        let (one, mut blocks) = Block::together(1 << 20);
        blocks.push(one);
        assert_eq!(blocks.len(), HUGE_PAGE >> 20);
        for (block, mark) in blocks.iter_mut().zip(1..) {
            assert!(block.iter().all(|byte| *byte == 0));
            assert_eq!(
                (block.len(), block.as_ptr().align_offset(1 << 20)),
                (1 << 20, 0)
            );
            block.fill(mark);
        }
        let last = blocks.pop();
        drop(blocks);
        assert!(last.is_some_and(|last| last.iter().all(|byte| *byte == 2)));
        assert!(Block::together(3 * BLOCK_ALIGN).1.is_empty());
    }

    // A shorter length hides bytes and a longer one shows them again, within the capacity.
    #[test]
    fn length_changes_within_the_capacity() {
        let mut block = Block::zeroed(8192);
        block[8191] = 9;
        block.set_len(100);
        assert_eq!((block.len(), block.capacity()), (4096, 8192));
        block.set_len(8192);
        assert_eq!(block[8191], 9);
    }

    // Address and length are what O_DIRECT wants, and the memory is zeroed and writable.
    #[test]
    fn is_aligned_zeroed_and_writable() {
        for (asked, got) in [(0, 4096), (1, 4096), (4096, 4096), (4097, 8192)] {
            let mut block = Block::zeroed(asked);
            assert_eq!(block.len(), got);
            assert_eq!(block.as_ptr() as usize % BLOCK_ALIGN, 0);
            assert!(block.iter().all(|byte| *byte == 0));
            block[got - 1] = 7;
            assert_eq!(block[got - 1], 7);
        }
    }
}
