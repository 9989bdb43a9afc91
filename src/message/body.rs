//! body - the digest of a message's body, and who takes it while the message arrives.
//!
//! What: [`BodyHash`], the one thing that a signature says about a body (RFC 6376 3.7), and
//! [`Watch`], by which whoever wants to look at a content does so before it is complete.
//! Why this way: a body that has just been received lies in the processor's caches, and is signed
//! only after it was synced. The protocol knows nothing of signatures: it tells a watcher about
//! every growth of the content and passes on what it found.

use std::fmt;

/// A canonicalisation algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Canon {
    /// RFC 6376 3.4.1 and 3.4.3.
    Simple,
    /// RFC 6376 3.4.2 and 3.4.4.
    #[default]
    Relaxed,
}

impl Canon {
    /// The word in the `c=` tag.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Simple => "simple",
            Self::Relaxed => "relaxed",
        }
    }
}

/// The SHA-256 of a canonical body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BodyHash {
    /// How the body was canonicalised.
    pub canon: Canon,
    /// The digest.
    pub digest: [u8; 32],
}

/// The hash of a body that was taken while it arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArrivedBody {
    /// The hash.
    pub hash: BodyHash,
    /// Octets of the body as it arrived. A body of another length is another body.
    pub len: usize,
}

/// Looks at the content of one message while it arrives.
pub trait Watch: fmt::Debug + Send {
    /// The content has grown; this is all of it so far, our trace field included. False: the
    /// watcher wants to see no more of it.
    fn more(&mut self, content: &[u8]) -> bool;

    /// The content is complete. Returns what was learnt about its body, if anything.
    fn finish(self: Box<Self>, content: &[u8]) -> Option<ArrivedBody>;

    /// Octets of memory that the watcher holds, about.
    fn memory(&self) -> usize;
}
