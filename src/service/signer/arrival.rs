//! signer::arrival - the body of a message is hashed while it arrives.
//!
//! What: [`Arrival`] watches one message. Whether anybody will sign it is known from its From
//! field; as soon as the header is complete, mail that nobody signs is let go, so that it costs no
//! hash.
//! Failure: whatever is found here is a shortcut. The signer hashes what it has no hash of.

use std::sync::Arc;

use crate::dkim::{ArrivingBody, BodyHasher, KeyRing};
use crate::message::{ArrivedBody, Watch, header};

/// Hashes the body of one message.
#[derive(Debug)]
pub(super) struct Arrival {
    body: ArrivingBody,
    /// To be asked about the From field, once there is one.
    ring: Option<Arc<KeyRing>>,
}

impl Arrival {
    /// Nothing has arrived yet. `ring`: who says whether the message will be signed, unless that is
    /// taken for granted.
    pub(super) fn new(hasher: BodyHasher, ring: Option<Arc<KeyRing>>) -> Self {
        Self {
            body: ArrivingBody::new(hasher),
            ring,
        }
    }

    /// Whether the message may be signed, as far as can be said.
    fn is_wanted(&mut self, content: &[u8]) -> bool {
        let Some(ring) = &self.ring else { return true };
        if self.body.find(content).is_none() {
            return true;
        }
        let wanted = ring.may_sign(super::from_domain(content, &header::scan(content)));
        self.ring = None;
        wanted
    }
}

impl Watch for Arrival {
    fn more(&mut self, content: &[u8]) -> bool {
        let wanted = self.is_wanted(content);
        if wanted {
            self.body.more(content);
        }
        wanted
    }

    fn finish(mut self: Box<Self>, content: &[u8]) -> Option<ArrivedBody> {
        self.is_wanted(content).then(|| self.body.finish(content))
    }

    fn memory(&self) -> usize {
        size_of::<Self>() + DIGEST_STATE
    }
}

/// What the digest's own state takes beside the hasher, about.
const DIGEST_STATE: usize = 256;
