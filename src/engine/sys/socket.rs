//! The one question about a socket that no safe wrapper asks.

use std::os::fd::{AsRawFd, OwnedFd};

/// How many received bytes nobody read yet; 0 where the kernel does not tell.
pub(crate) fn unread_bytes(socket: &OwnedFd) -> usize {
    let mut count: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int to the pointer it is given.
    // JUSTIFICATION: closing with unread bytes resets the connection, and nothing else tells.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::FIONREAD, &raw mut count) };
    if done == 0 {
        usize::try_from(count).unwrap_or(0)
    } else {
        0
    }
}
