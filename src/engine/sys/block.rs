//! Block - memory that O_DIRECT accepts.
//!
//! What: a zeroed buffer whose address and length are multiples of 4096, the unit of the spool's
//! writes. Its length may change within its capacity, so that one block serves groups of any size.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::slice;

/// The alignment and granularity of the spool's disk writes, in bytes.
pub const BLOCK_ALIGN: usize = 4096;

/// An aligned, zero-initialised buffer.
pub struct Block {
    start: NonNull<u8>,
    len: usize,
    capacity: usize,
}

// SAFETY: a Block owns its memory alone, as a Box<[u8]> does.
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
        }
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

#[cfg(test)]
mod tests {
    use super::{BLOCK_ALIGN, Block};

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
