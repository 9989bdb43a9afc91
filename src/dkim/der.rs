//! dkim::der - a strict, bounded reader of the little DER that private keys are written in.
//!
//! What: PKCS#1 `RSAPrivateKey` (RFC 8017 A.1.2) and the PKCS#8 wrapper (RFC 5208), read into
//! borrowed slices. Total: any bytes give a value or `None`, no recursion, no allocation.
//! Why our own: aws-lc-rs judges whether a key is valid, but does not hand out the CRT parts that
//! the eight-lane engine needs. What this reader takes, aws-lc-rs has accepted before.

/// The numbers of an RSA private key, big-endian without leading zeros.
pub(crate) struct RsaParts<'a> {
    pub(crate) n: &'a [u8],
    pub(crate) e: &'a [u8],
    pub(crate) p: &'a [u8],
    pub(crate) q: &'a [u8],
    pub(crate) dp: &'a [u8],
    pub(crate) dq: &'a [u8],
    pub(crate) qinv: &'a [u8],
}

/// What a PKCS#8 structure holds.
pub(crate) enum Pkcs8<'a> {
    /// PKCS#1 bytes.
    Rsa(&'a [u8]),
    /// An RFC 8410 Ed25519 key; read by aws-lc-rs.
    Ed25519,
    /// Another algorithm.
    Other,
}

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const OID: u8 = 0x06;
const SEQUENCE: u8 = 0x30;
/// 1.2.840.113549.1.1.1
const RSA_ENCRYPTION: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
/// 1.3.101.112
const ED25519: &[u8] = &[0x2b, 0x65, 0x70];

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(count)?;
        self.0 = tail;
        Some(head)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    /// The content of the next element, which must have this tag and a minimal length encoding.
    fn element(&mut self, tag: u8) -> Option<&'a [u8]> {
        if self.byte()? != tag {
            return None;
        }
        let first = self.byte()?;
        let length = match first {
            0..=0x7f => usize::from(first),
            0x81 => usize::from(self.byte()?),
            0x82 => usize::from(u16::from_be_bytes(self.take(2)?.try_into().ok()?)),
            _ => return None,
        };
        let minimal = match first {
            0x81 => length > 0x7f,
            0x82 => length > 0xff,
            _ => true,
        };
        minimal.then(|| self.take(length)).flatten()
    }

    /// A positive integer, without its sign octet; minimal encoding required.
    fn positive(&mut self) -> Option<&'a [u8]> {
        let bytes = self.element(INTEGER)?;
        match bytes {
            [0, rest @ ..] if rest.first().is_some_and(|top| *top >= 0x80) => Some(rest),
            [1..=0x7f, ..] => Some(bytes),
            _ => None,
        }
    }

    fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

/// Reads a PKCS#1 `RSAPrivateKey` of two primes (version 0).
pub(crate) fn rsa_private_key(der: &[u8]) -> Option<RsaParts<'_>> {
    let mut outer = Reader(der);
    let mut inner = Reader(outer.element(SEQUENCE)?);
    outer.end()?;
    if inner.element(INTEGER)? != [0] {
        return None;
    }
    let (n, e) = (inner.positive()?, inner.positive()?);
    let _d = inner.positive()?;
    let (p, q) = (inner.positive()?, inner.positive()?);
    let (dp, dq) = (inner.positive()?, inner.positive()?);
    let qinv = inner.positive()?;
    inner.end()?;
    Some(RsaParts {
        n,
        e,
        p,
        q,
        dp,
        dq,
        qinv,
    })
}

/// Reads the PKCS#8 wrapper; attributes and a public key may follow the private key.
pub(crate) fn pkcs8(der: &[u8]) -> Option<Pkcs8<'_>> {
    let mut outer = Reader(der);
    let mut inner = Reader(outer.element(SEQUENCE)?);
    outer.end()?;
    if !matches!(inner.element(INTEGER)?, [0 | 1]) {
        return None;
    }
    let mut algorithm = Reader(inner.element(SEQUENCE)?);
    let oid = algorithm.element(OID)?;
    let key = inner.element(OCTET_STRING)?;
    Some(match oid {
        RSA_ENCRYPTION => Pkcs8::Rsa(key),
        ED25519 => Pkcs8::Ed25519,
        _ => Pkcs8::Other,
    })
}

/// The modulus and exponent of a public key: `RSAPublicKey`, or `SubjectPublicKeyInfo` around one.
pub(crate) fn rsa_public_key(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut outer = Reader(der);
    let mut inner = Reader(outer.element(SEQUENCE)?);
    outer.end()?;
    if inner.0.first() == Some(&SEQUENCE) {
        let mut algorithm = Reader(inner.element(SEQUENCE)?);
        if algorithm.element(OID)? != RSA_ENCRYPTION {
            return None;
        }
        let [0, key @ ..] = inner.element(BIT_STRING)? else {
            return None;
        };
        inner.end()?;
        return bare_public_key(key);
    }
    bare_public_key(der)
}

fn bare_public_key(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut outer = Reader(der);
    let mut inner = Reader(outer.element(SEQUENCE)?);
    outer.end()?;
    let parts = (inner.positive()?, inner.positive()?);
    inner.end()?;
    Some(parts)
}

#[cfg(test)]
mod tests {
    use super::{Reader, pkcs8, rsa_private_key, rsa_public_key};

    // Lengths must be minimal and within the input; integers positive and minimal.
    #[test]
    fn encodings_are_strict() {
        let integer = |bytes: &[u8]| Reader(bytes).positive().map(<[u8]>::to_vec);
        assert_eq!(integer(&[2, 1, 5]), Some(vec![5]));
        assert_eq!(integer(&[2, 2, 0, 0x80]), Some(vec![0x80]));
        for wrong in [
            &[2, 1, 0][..],
            &[2, 1, 0x80],
            &[2, 2, 0, 0x7f],
            &[2, 0x81, 1, 5],
            &[2, 0x82, 0, 1, 5],
            &[2, 0x83, 0, 0, 1, 5],
            &[2, 0x80],
            &[2, 2, 5],
            &[2, 0],
            &[2],
            &[],
        ] {
            assert_eq!(integer(wrong), None, "{wrong:?}");
        }
    }

    // Every truncation of, and every single changed byte in, a small structure is survived.
    #[test]
    fn damaged_input_never_panics() {
        let one = [2u8, 1, 1];
        let mut key = vec![0x30, 27, 2, 1, 0];
        key.extend(one.repeat(8));
        assert!(rsa_private_key(&key).is_some());
        for cut in 0..key.len() {
            assert!(rsa_private_key(&key[..cut]).is_none());
        }
        for at in 0..key.len() {
            for byte in 0..=255 {
                let mut damaged = key.clone();
                damaged[at] = byte;
                // Only the outcome "no panic" is asserted: some changes give another valid key.
                std::hint::black_box(rsa_private_key(&damaged).is_some());
                std::hint::black_box(pkcs8(&damaged).is_some());
                std::hint::black_box(rsa_public_key(&damaged).is_some());
            }
        }
    }
}
