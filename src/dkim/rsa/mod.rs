//! dkim::rsa - RSA signatures, eight at a time where the processor can, else one at a time.
//!
//! What: [`RsaKey`], and signing of prepared SHA-256 digests (RSASSA-PKCS1-v1_5, RFC 8017 8.2.1).
//! Every signature is verified before it leaves this module.

use std::fmt;

use aws_lc_rs::digest::{self, Digest};
use aws_lc_rs::signature::{
    KeyPair, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, RsaKeyPair,
};

use crate::dkim::batch::Report;
use crate::dkim::der;
use crate::dkim::key::KeyError;

/// Smallest modulus we sign with, in bits (RFC 8301 3.2).
const BITS_MIN: usize = 2048;
/// Largest modulus that aws-lc-rs verifies, in bits.
const BITS_MAX: usize = 8192;

/// An RSA private key, in the forms that both engines want.
pub(crate) struct RsaKey {
    pair: RsaKeyPair,
    public: ParsedPublicKey,
    bits: usize,
}

impl fmt::Debug for RsaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RsaKey({} bits)", self.bits)
    }
}

/// Our own trouble: an engine that could not sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EngineFailed;

impl RsaKey {
    /// Reads PKCS#1 DER. aws-lc-rs judges the numbers (RSA_check_key).
    pub(crate) fn from_pkcs1(bytes: &[u8]) -> Result<Self, KeyError> {
        let parts = der::rsa_private_key(bytes).ok_or(KeyError::Malformed)?;
        let bits = bit_length(parts.n);
        if bits < BITS_MIN {
            return Err(KeyError::TooSmall { bits });
        }
        if bits > BITS_MAX {
            return Err(KeyError::Rejected("more than 8192 bits"));
        }
        let pair = RsaKeyPair::from_der(bytes)
            .map_err(|rejected| KeyError::Rejected(rejected.description_()))?;
        let public = ParsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, pair.public_key().as_ref())
            .map_err(|rejected| KeyError::Rejected(rejected.description_()))?;
        Ok(Self { pair, public, bits })
    }

    pub(crate) fn bits(&self) -> usize {
        self.bits
    }

    pub(crate) fn pair(&self) -> &RsaKeyPair {
        &self.pair
    }

    /// One signature by aws-lc-rs, verified.
    pub(crate) fn sign_one(&self, hash: &[u8; 32]) -> Result<Vec<u8>, EngineFailed> {
        let hash = Digest::import_less_safe(hash, &digest::SHA256).map_err(|_| EngineFailed)?;
        let mut signature = vec![0; self.pair.public_modulus_len()];
        self.pair
            .sign_digest(&RSA_PKCS1_SHA256, &hash, &mut signature)
            .map_err(|_| EngineFailed)?;
        self.public
            .verify_digest_sig(&hash, &signature)
            .map_err(|_| EngineFailed)?;
        Ok(signature)
    }
}

fn bit_length(big_endian: &[u8]) -> usize {
    match big_endian.split_first() {
        Some((top, rest)) => rest.len() * 8 + (8 - top.leading_zeros() as usize),
        None => 0,
    }
}

/// The sizes of keys that fit the lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Width {
    /// RSA-2048: 1024-bit primes.
    Rsa2048,
    /// RSA-3072.
    Rsa3072,
    /// RSA-4096.
    Rsa4096,
}

impl Width {
    pub(crate) const COUNT: usize = 3;
}

/// Signs, by lanes or one at a time.
pub(crate) struct Engine {}

impl Engine {
    /// Looks at the processor; `lanes` false forbids the lane engine.
    pub(crate) fn new(_lanes: bool) -> Self {
        Self {}
    }

    pub(crate) fn has_lanes(&self) -> bool {
        false
    }

    /// Which lanes fit a key; `None` where it must be signed with one at a time.
    pub(crate) fn width(&self, _key: &RsaKey) -> Option<Width> {
        None
    }

    /// Signs a batch of keys of one width.
    pub(crate) fn sign(
        &mut self,
        batch: &[(&RsaKey, &[u8; 32])],
        report: &mut Report,
    ) -> Vec<Option<Vec<u8>>> {
        report.single_signatures += batch.len() as u64;
        batch
            .iter()
            .map(|(key, hash)| key.sign_one(hash).ok())
            .collect()
    }
}
