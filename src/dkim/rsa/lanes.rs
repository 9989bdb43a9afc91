//! dkim::rsa::lanes - up to eight RSA signatures in the eight lanes of a vector.
//!
//! What: [`LaneKey`], a private key as limbs, and [`Workspace::sign`]: PKCS#1 v1.5 encoding, the
//! two half-size exponentiations of the CRT, recombination, and the public operation as proof.
//! Why this way: up to four signatures put their p halves in the lower and their q halves in the
//! upper lanes, one pass; up to eight take two passes. Lanes may have different keys, so a batch is
//! whatever waits. Measured per RSA-2048 batch of eight: see `benches/dkim.rs`.
//! Security: constant time in everything but the number of signatures; see `engine::ifma`. The
//! workspace is wiped after each batch.

use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::dkim::der::RsaParts;
use crate::dkim::rsa::number::{
    Limbs, from_octets, montgomery, negated_inverse, power_of_r, to_octets, to_words,
};
use crate::engine::ifma::{Field, Ifma, LANES, Number, Row, Table, zero};

/// The half that one prime does.
#[derive(Zeroize, ZeroizeOnDrop)]
struct Prime<const N: usize> {
    n: Limbs<N>,
    k0: u64,
    r2: Limbs<N>,
    r3: Limbs<N>,
    /// The private exponent modulo n - 1, in words of 64 bits.
    exponent: [u64; N],
}

impl<const N: usize> Prime<N> {
    fn new(n: &[u8], exponent: &[u8], bits: usize) -> Option<Self> {
        let limbs = from_octets(n)?;
        // The primes must have exactly half the bits of the modulus: recombination counts on
        // q < 2 p, and the kernel on primes far below R.
        let whole = n.len() * 8 == bits && n.first().is_some_and(|top| *top >= 0x80);
        let odd = n.last().is_some_and(|low| low % 2 == 1);
        if !whole || !odd || exponent.len() > n.len() {
            return None;
        }
        Some(Self {
            k0: negated_inverse(limbs[0]),
            r2: power_of_r(&limbs, 2),
            r3: power_of_r(&limbs, 3),
            exponent: to_words(exponent)?,
            n: limbs,
        })
    }

    fn put(&self, lane: usize, field: &mut Field<N>, exponent: &mut Number<N>) {
        put(&self.n, lane, &mut field.n);
        put(&self.r2, lane, &mut field.r2);
        put(&self.r3, lane, &mut field.r3);
        field.k0.0[lane] = self.k0;
        put(&self.exponent, lane, exponent);
    }
}

/// A private key whose primes have `N` limbs and whose modulus has `M` = 2 N.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(crate) struct LaneKey<const N: usize, const M: usize> {
    p: Prime<N>,
    q: Prime<N>,
    /// 1/q mod p, in Montgomery form.
    qinv: Limbs<N>,
    n: Limbs<M>,
    n_k0: u64,
    n_r2: Limbs<M>,
}

impl<const N: usize, const M: usize> LaneKey<N, M> {
    /// `None` where the key does not have the shape that the lanes want: another public exponent
    /// than 65537, primes of unequal size.
    pub(crate) fn new(parts: &RsaParts<'_>) -> Option<Self> {
        let bits = parts.n.len() * 8;
        if parts.e != [1, 0, 1] || parts.n.first().is_none_or(|top| *top < 0x80) {
            return None;
        }
        let p = Prime::new(parts.p, parts.dp, bits / 2)?;
        let q = Prime::new(parts.q, parts.dq, bits / 2)?;
        let mut qinv = from_octets(parts.qinv)?;
        let entered = montgomery(&qinv, &p.r2, &p.n, p.k0);
        qinv.zeroize();
        let n = from_octets(parts.n)?;
        Some(Self {
            p,
            q,
            qinv: entered,
            n_k0: negated_inverse(n[0]),
            n_r2: power_of_r(&n, 2),
            n,
        })
    }
}

/// Memory for one batch, allocated once.
pub(crate) struct Workspace<const N: usize, const M: usize> {
    table: Table<N>,
    secret: Secret<N>,
    public: Public<M>,
    #[cfg(test)]
    sabotage: bool,
}

/// What is wiped after each batch.
struct Secret<const N: usize> {
    p: Field<N>,
    q: Field<N>,
    dp: Number<N>,
    dq: Number<N>,
    qinv: Number<N>,
    a: Number<N>,
    b: Number<N>,
}

/// What anybody may see.
struct Public<const M: usize> {
    field: Field<M>,
    encoded: Number<M>,
    signature: Number<M>,
    check: Number<M>,
}

impl<const N: usize, const M: usize> Default for Workspace<N, M> {
    fn default() -> Self {
        Self {
            table: Table::default(),
            secret: Secret {
                p: Field::default(),
                q: Field::default(),
                dp: zero(),
                dq: zero(),
                qinv: zero(),
                a: zero(),
                b: zero(),
            },
            public: Public {
                field: Field::default(),
                encoded: zero(),
                signature: zero(),
                check: zero(),
            },
            #[cfg(test)]
            sabotage: false,
        }
    }
}

impl<const N: usize> Secret<N> {
    fn wipe(&mut self) {
        self.p.zeroize();
        self.q.zeroize();
        self.dp.zeroize();
        self.dq.zeroize();
        self.qinv.zeroize();
        self.a.zeroize();
        self.b.zeroize();
    }
}

/// How many signatures go through in one pass: both halves of each have a lane.
const ONE_PASS: usize = LANES / 2;

impl<const N: usize, const M: usize> Workspace<N, M> {
    /// Signs up to eight SHA-256 digests. `None` in place of a signature that did not verify.
    ///
    /// # Panics
    /// Where the batch is empty or larger than eight: the caller cuts batches.
    pub(crate) fn sign(
        &mut self,
        ifma: Ifma,
        batch: &[(&LaneKey<N, M>, &[u8; 32])],
    ) -> Vec<Option<Vec<u8>>> {
        assert!((1..=LANES).contains(&batch.len()));
        let octets = bits::<N>() / 4;
        self.encode(batch, octets);
        if batch.len() <= ONE_PASS {
            self.halves_together(ifma, batch);
        } else {
            self.halves_apart(ifma, batch);
        }
        let (secret, public) = (&mut self.secret, &mut self.public);
        let parts = [&secret.a, &secret.b];
        ifma.recombine(
            &secret.p,
            &secret.q.n,
            &secret.qinv,
            parts,
            &mut public.signature,
        );
        secret.wipe();
        self.table.wipe();
        #[cfg(test)]
        if self.sabotage {
            self.public.signature[3].0[2] ^= 1;
        }
        self.verified(ifma, batch, octets)
    }

    /// Lane 2 computes wrongly from now on, or no longer.
    #[cfg(test)]
    pub(crate) fn sabotage(&mut self, on: bool) {
        self.sabotage = on;
    }

    /// Lays out the encoded digests and the public numbers.
    fn encode(&mut self, batch: &[(&LaneKey<N, M>, &[u8; 32])], octets: usize) {
        let mut block = vec![0xff; octets];
        for (lane, (key, hash)) in lanes(batch) {
            encode_digest(hash, &mut block);
            // The block has as many octets as the modulus: it fits.
            let limbs: Limbs<M> = from_octets(&block).unwrap_or([0; M]);
            put(&limbs, lane, &mut self.public.encoded);
            put(&key.n, lane, &mut self.public.field.n);
            put(&key.n_r2, lane, &mut self.public.field.r2);
            self.public.field.k0.0[lane] = key.n_k0;
        }
    }

    /// Up to four signatures: p halves in lanes 0 to 3, q halves in lanes 4 to 7.
    fn halves_together(&mut self, ifma: Ifma, batch: &[(&LaneKey<N, M>, &[u8; 32])]) {
        let secret = &mut self.secret;
        let mut encoded = self.public.encoded;
        for lane in 0..ONE_PASS {
            let key = batch[lane % batch.len()].0;
            key.p.put(lane, &mut secret.p, &mut secret.dp);
            key.q.put(lane + ONE_PASS, &mut secret.p, &mut secret.dp);
            put(&key.q.n, lane, &mut secret.q.n);
            put(&key.qinv, lane, &mut secret.qinv);
        }
        for row in &mut encoded {
            row.0.copy_within(..ONE_PASS, ONE_PASS);
        }
        let base = halves(&encoded);
        let exponent = (&secret.dp, bits::<N>());
        ifma.power(&secret.p, base, exponent, &mut self.table, &mut secret.a);
        for (to, from) in secret.b.iter_mut().zip(&secret.a) {
            to.0[..ONE_PASS].copy_from_slice(&from.0[ONE_PASS..]);
        }
    }

    /// Up to eight signatures: all p halves, then all q halves.
    fn halves_apart(&mut self, ifma: Ifma, batch: &[(&LaneKey<N, M>, &[u8; 32])]) {
        let secret = &mut self.secret;
        for (lane, (key, _)) in lanes(batch) {
            key.p.put(lane, &mut secret.p, &mut secret.dp);
            key.q.put(lane, &mut secret.q, &mut secret.dq);
            put(&key.qinv, lane, &mut secret.qinv);
        }
        let base = halves(&self.public.encoded);
        let (dp, dq) = ((&secret.dp, bits::<N>()), (&secret.dq, bits::<N>()));
        ifma.power(&secret.p, base, dp, &mut self.table, &mut secret.a);
        ifma.power(&secret.q, base, dq, &mut self.table, &mut secret.b);
    }

    /// The public operation on what was made: only what gives the encoded digest is handed out.
    fn verified(
        &mut self,
        ifma: Ifma,
        batch: &[(&LaneKey<N, M>, &[u8; 32])],
        octets: usize,
    ) -> Vec<Option<Vec<u8>>> {
        let public = &mut self.public;
        ifma.power_65537(&public.field, &public.signature, &mut public.check);
        let hand_out = |lane: usize| {
            let same = public
                .check
                .iter()
                .zip(&public.encoded)
                .all(|(left, right)| left.0[lane] == right.0[lane]);
            let mut signature = vec![0; octets];
            to_octets(&take::<M>(&public.signature, lane), &mut signature);
            same.then_some(signature)
        };
        (0..batch.len()).map(hand_out).collect()
    }
}

/// Every lane with its work; lanes to spare repeat it, so that no lane computes on zeros.
fn lanes<T: Copy>(batch: &[T]) -> impl Iterator<Item = (usize, T)> {
    (0..LANES).map(|lane| (lane, batch[lane % batch.len()]))
}

/// Bits of a prime of `N` limbs: 1024 of 20, 1536 of 30, 2048 of 40.
const fn bits<const N: usize>() -> usize {
    N / 10 * 512
}

/// The low and the high `N` limbs.
fn halves<const N: usize, const M: usize>(number: &Number<M>) -> [&Number<N>; 2] {
    const { assert!(M == 2 * N) };
    let (low, high) = number.split_at(N);
    // The lengths are asserted above.
    match (low.try_into(), high.try_into()) {
        (Ok(low), Ok(high)) => [low, high],
        _ => unreachable!("M is twice N"),
    }
}

fn put<const N: usize>(limbs: &Limbs<N>, lane: usize, rows: &mut [Row; N]) {
    for (row, limb) in rows.iter_mut().zip(limbs) {
        row.0[lane] = *limb;
    }
}

fn take<const N: usize>(rows: &[Row; N], lane: usize) -> Limbs<N> {
    rows.map(|row| row.0[lane])
}

/// RFC 8017 9.2: the DER of DigestInfo for SHA-256, without the digest.
const DIGEST_INFO: [u8; 19] = [
    0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05,
    0x00, 0x04, 0x20,
];

/// EMSA-PKCS1-v1_5. The block is filled with 0xff where nothing else stands.
fn encode_digest(hash: &[u8; 32], block: &mut [u8]) {
    let end = block.len();
    block[0] = 0;
    block[1] = 1;
    block[end - 52] = 0;
    block[end - 51..end - 32].copy_from_slice(&DIGEST_INFO);
    block[end - 32..].copy_from_slice(hash);
}
