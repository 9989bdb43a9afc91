//! dkim::rsa - RSA signatures, eight at a time where the processor can, else one at a time.
//!
//! What: [`RsaKey`], and signing of prepared SHA-256 digests (RSASSA-PKCS1-v1_5, RFC 8017 8.2.1).
//! Every signature is verified before it leaves this module.

mod lanes;
mod number;

use std::fmt;

use aws_lc_rs::digest::{self, Digest};
use aws_lc_rs::signature::{
    KeyPair, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, RsaKeyPair,
};

use crate::dkim::batch::Report;
use crate::dkim::der::{self, RsaParts};
use crate::dkim::key::KeyError;
use crate::dkim::rsa::lanes::{LaneKey, Workspace};
use crate::engine::ifma::Ifma;

/// Smallest modulus we sign with, in bits (RFC 8301 3.2).
const BITS_MIN: usize = 2048;
/// Largest modulus that aws-lc-rs verifies, in bits.
const BITS_MAX: usize = 8192;

/// An RSA private key, in the forms that both engines want.
pub(crate) struct RsaKey {
    pair: RsaKeyPair,
    public: ParsedPublicKey,
    bits: usize,
    /// `None` where the key does not fit the lanes.
    lanes: Option<LaneForm>,
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
        Ok(Self {
            pair,
            public,
            bits,
            lanes: LaneForm::new(&parts),
        })
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
    /// RSA-2048: primes of 1024 bits, 20 limbs.
    Rsa2048,
    /// RSA-3072: 30 limbs.
    Rsa3072,
    /// RSA-4096: 40 limbs.
    Rsa4096,
}

impl Width {
    pub(crate) const COUNT: usize = 3;
}

/// A key as limbs.
enum LaneForm {
    Rsa2048(Box<LaneKey<20, 40>>),
    Rsa3072(Box<LaneKey<30, 60>>),
    Rsa4096(Box<LaneKey<40, 80>>),
}

impl LaneForm {
    fn new(parts: &RsaParts<'_>) -> Option<Self> {
        match parts.n.len() {
            256 => LaneKey::new(parts).map(|key| Self::Rsa2048(Box::new(key))),
            384 => LaneKey::new(parts).map(|key| Self::Rsa3072(Box::new(key))),
            512 => LaneKey::new(parts).map(|key| Self::Rsa4096(Box::new(key))),
            _ => None,
        }
    }

    fn width(&self) -> Width {
        match self {
            Self::Rsa2048(_) => Width::Rsa2048,
            Self::Rsa3072(_) => Width::Rsa3072,
            Self::Rsa4096(_) => Width::Rsa4096,
        }
    }
}

/// Fewest signatures for which a run of the lanes beats signing one at a time (measured on Emerald
/// Rapids, `benches/dkim.rs`): up to four share one pass, which costs as much as one signature of
/// aws-lc-rs.
const LANES_PAY_FROM: usize = 2;

/// Signs, by lanes or one at a time.
pub(crate) struct Engine {
    ifma: Option<Ifma>,
    /// Allocated when a key of that width first signs.
    rsa2048: Option<Box<Workspace<20, 40>>>,
    rsa3072: Option<Box<Workspace<30, 60>>>,
    rsa4096: Option<Box<Workspace<40, 80>>>,
    /// For tests of the alarm: lane 2 computes wrongly.
    #[cfg(test)]
    pub(crate) sabotage: bool,
}

impl Engine {
    /// Looks at the processor; `lanes` false forbids the lane engine.
    pub(crate) fn new(lanes: bool) -> Self {
        Self {
            ifma: lanes.then(Ifma::detect).flatten(),
            rsa2048: None,
            rsa3072: None,
            rsa4096: None,
            #[cfg(test)]
            sabotage: false,
        }
    }

    pub(crate) fn has_lanes(&self) -> bool {
        self.ifma.is_some()
    }

    /// Which lanes fit a key; `None` where it must be signed with one at a time.
    pub(crate) fn width(&self, key: &RsaKey) -> Option<Width> {
        self.ifma?;
        key.lanes.as_ref().map(LaneForm::width)
    }

    /// Signs up to eight digests with keys of one width. `None` where no engine could.
    pub(crate) fn sign(
        &mut self,
        batch: &[(&RsaKey, &[u8; 32])],
        report: &mut Report,
    ) -> Vec<Option<Vec<u8>>> {
        let lanes = match self.ifma {
            Some(ifma) if batch.len() >= LANES_PAY_FROM => self.sign_in_lanes(ifma, batch),
            _ => None,
        };
        let one = |key: &RsaKey, hash: &[u8; 32], report: &mut Report| {
            report.single_signatures += 1;
            key.sign_one(hash).ok()
        };
        let Some(lanes) = lanes else {
            return batch
                .iter()
                .map(|(key, hash)| one(key, hash, report))
                .collect();
        };
        report.lane_batches += 1;
        let judge = |((key, hash), signature): (&(&RsaKey, &[u8; 32]), Option<Vec<u8>>)| {
            if signature.is_some() {
                report.lane_signatures += 1;
                return signature;
            }
            report.lane_mismatches += 1;
            one(key, hash, report)
        };
        batch.iter().zip(lanes).map(judge).collect()
    }

    /// `None` where the batch does not fit the lanes.
    fn sign_in_lanes(
        &mut self,
        ifma: Ifma,
        batch: &[(&RsaKey, &[u8; 32])],
    ) -> Option<Vec<Option<Vec<u8>>>> {
        macro_rules! run {
            ($form:path, $work:expr) => {{
                let mut jobs = Vec::with_capacity(batch.len());
                for (key, hash) in batch {
                    let Some($form(key)) = &key.lanes else {
                        return None;
                    };
                    jobs.push((&**key, *hash));
                }
                let work = $work.get_or_insert_default();
                #[cfg(test)]
                work.sabotage(self.sabotage);
                work.sign(ifma, &jobs)
            }};
        }
        let first = batch.first()?.0.lanes.as_ref()?;
        Some(match first.width() {
            Width::Rsa2048 => run!(LaneForm::Rsa2048, self.rsa2048),
            Width::Rsa3072 => run!(LaneForm::Rsa3072, self.rsa3072),
            Width::Rsa4096 => run!(LaneForm::Rsa4096, self.rsa4096),
        })
    }
}

#[cfg(test)]
mod tests;
