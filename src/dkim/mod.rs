//! dkim - keys, canonical hash, batch signer (RFC 6376, 8301, 8463).
//!
//! What: a message's header and body hash become a [`Job`] ([`signature::prepare`]), jobs wait in a
//! [`Signer`], one batch at a time becomes `DKIM-Signature` fields to put in front of the message.
//! Why this way: RSA is nine tenths of the cost of a bulk message. Eight operations at once in the
//! lanes of AVX-512 IFMA cost a quarter of eight in a row (`rsa`), so signing has its own queue; it
//! is pure, and the shard's driver decides when a batch runs.
//! Worked example: [`KeyRing::choose`] -> [`BodyHasher`] over the body -> [`signature::prepare`] ->
//! [`Signer::submit`] -> [`Signer::run_batch`] -> `signature field ++ header ++ body` on the wire.
//! Security: private keys live in [`PrivateKey`] alone, are wiped on drop and never printed. The
//! lane engine runs in constant time; every RSA signature is verified before it is used.

pub mod arriving;
mod base64;
pub mod batch;
pub mod canon;
mod der;
#[cfg(any(fuzzing, test))]
pub mod fuzz;
pub mod key;
pub mod record;
pub mod ring;
mod rsa;
pub mod signature;

pub use crate::message::{BodyHash, Canon};
pub use arriving::ArrivingBody;
pub use batch::{Job, Report, SignFailed, Signed, Signer, SignerConfig, Ticket};
pub use canon::BodyHasher;
pub use key::{Algorithm, FileStamp, KeyError, PrivateKey};
pub use record::{KeyKind, NewKey, PublicRecord, RecordError, keygen, published_key_matches};
pub use ring::{Choice, Identity, KeyRing, NoKey, RingError};
pub use signature::{PrepareError, SignOptions, Unsigned, body_start, prepare, signable};

// Jobs may be stolen by another shard, and rings are shared by all of them.
const _: () = {
    const fn can_move<T: Send>() {}
    const fn can_be_shared<T: Send + Sync>() {}
    can_move::<Job>();
    can_move::<Signer>();
    can_be_shared::<KeyRing>();
    can_be_shared::<SignOptions>();
};
