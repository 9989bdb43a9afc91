//! The provided buffers that the kernel receives into.
//!
//! What: `count` buffers of `size` bytes and the ring (io_uring_setup_buf_ring, kernel 5.19)
//! through which the kernel takes them. A received buffer is a [`Lease`]; giving it back makes it
//! the kernel's again. Who holds a lease holds the memory too, so a lease is sound for as long as
//! it lives; one that is dropped instead of given back is lost to the ring, nothing worse.

use std::io;
use std::ops::Deref;
use std::ptr::NonNull;
use std::rc::Rc;
use std::slice;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::IoUring;
use io_uring::types::BufRingEntry;
use memmap2::MmapMut;

/// The only buffer group of a ring.
pub(super) const GROUP: u16 = 0;

/// The buffers' memory, mapped lazily: untouched buffers cost nothing.
struct Memory {
    start: NonNull<u8>,
    size: usize,
    _map: MmapMut,
}

/// One received buffer: owned by its holder, not by the kernel.
pub(crate) struct Lease {
    memory: Rc<Memory>,
    len: u32,
    id: u16,
}

impl Lease {
    /// Which buffer it is, below the ring's count.
    pub(crate) fn id(&self) -> u16 {
        self.id
    }
}

impl Deref for Lease {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `lease` checked that id and len lie within the memory, which the Rc keeps mapped;
        // the kernel does not write to a buffer between its completion and its return to the ring,
        // and returning consumes the lease.
        // JUSTIFICATION: bytes are parsed where the kernel put them; a copy costs a tenth of a
        // session's work.
        unsafe {
            let start = self
                .memory
                .start
                .add(usize::from(self.id) * self.memory.size);
            slice::from_raw_parts(start.as_ptr(), self.len as usize)
        }
    }
}

/// The buffers of one ring.
pub(super) struct Pool {
    memory: Rc<Memory>,
    ring: MmapMut,
    entries: NonNull<BufRingEntry>,
    tail: u16,
    count: u16,
    out: u16,
}

impl Pool {
    /// Maps `count` (rounded up to a power of two, at most 32768) buffers of `size` bytes.
    pub(super) fn new(count: u16, size: usize) -> io::Result<Self> {
        let count = count.clamp(1, 1 << 15).next_power_of_two();
        let size = size.clamp(64, 1 << 24);
        let mut map = MmapMut::map_anon(usize::from(count) * size)?;
        let mut ring = MmapMut::map_anon(usize::from(count) * size_of::<BufRingEntry>())?;
        let Some(start) = NonNull::new(map.as_mut_ptr()) else {
            return Err(io::ErrorKind::OutOfMemory.into());
        };
        let Some(entries) = NonNull::new(ring.as_mut_ptr().cast()) else {
            return Err(io::ErrorKind::OutOfMemory.into());
        };
        let memory = Rc::new(Memory {
            start,
            size,
            _map: map,
        });
        Ok(Self {
            memory,
            ring,
            entries,
            tail: 0,
            count,
            out: count,
        })
    }

    /// Registers the ring with the kernel and hands it all buffers.
    pub(super) fn register(&mut self, uring: &IoUring) -> io::Result<()> {
        let address = self.ring.as_ptr() as u64;
        // SAFETY: the mapping holds `count` entries, is page aligned, and lives in self, which the
        // Ring drops after the kernel's ring (the kernel pins the pages besides).
        // JUSTIFICATION: there is no safe interface to provided buffers.
        unsafe {
            uring
                .submitter()
                .register_buf_ring_with_flags(address, self.count, GROUP, 0)?;
        }
        for id in 0..self.count {
            self.put(id);
        }
        Ok(())
    }

    /// How many buffers there are.
    pub(super) fn count(&self) -> u16 {
        self.count
    }

    /// How many of them are leased now.
    pub(super) fn out(&self) -> u16 {
        self.out
    }

    /// Takes over the buffer that a completion names. None when the kernel names one that is not
    /// ours, which would be its bug.
    ///
    /// # Safety
    ///
    /// A completion of this pool's ring must have named the buffer, and each such naming makes one
    /// lease at most.
    pub(super) unsafe fn lease(&mut self, id: u16, len: u32) -> Option<Lease> {
        if id >= self.count || len as usize > self.memory.size {
            return None;
        }
        self.out += 1;
        Some(Lease {
            memory: Rc::clone(&self.memory),
            id,
            len,
        })
    }

    /// Gives a buffer back to the kernel.
    pub(super) fn give_back(&mut self, lease: Lease) {
        // A lease of another runtime's pool must not enter this ring.
        if Rc::ptr_eq(&lease.memory, &self.memory) {
            self.put(lease.id);
        }
    }

    /// Keeps the memory mapped for ever: the kernel may still write to it.
    pub(super) fn leak(&self) {
        std::mem::forget(Rc::clone(&self.memory));
    }

    fn put(&mut self, id: u16) {
        let slot = usize::from(self.tail & (self.count - 1));
        // SAFETY: slot < count and id < count; the entry at the tail is not the kernel's until the
        // tail is published below (release), and the ring cannot be overrun because each buffer is
        // in it at most once. The tail lies in the first entry's reserved field, 2-aligned.
        // JUSTIFICATION: the ring is memory shared with the kernel.
        unsafe {
            let entry = &mut *self.entries.as_ptr().add(slot);
            entry.set_addr(
                self.memory.start.as_ptr() as u64 + u64::from(id) * self.memory.size as u64,
            );
            entry.set_len(self.memory.size as u32);
            entry.set_bid(id);
            self.tail = self.tail.wrapping_add(1);
            let tail = BufRingEntry::tail(self.entries.as_ptr()).cast_mut();
            AtomicU16::from_ptr(tail).store(self.tail, Ordering::Release);
        }
        self.out -= 1;
    }
}
