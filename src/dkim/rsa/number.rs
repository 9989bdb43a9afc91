//! dkim::rsa::number - numbers of one lane: limbs, and the constants of a modulus.
//!
//! What: conversions between big-endian octets and limbs of 52 bits, and what Montgomery arithmetic
//! wants to know about a modulus. Runs once per key; no branch or address depends on a value.

use zeroize::Zeroize;

use crate::engine::ifma::LIMB_BITS;

const LIMB_MASK: u64 = (1 << LIMB_BITS) - 1;

/// One number of `N` limbs of 52 bits, the least significant first.
pub(crate) type Limbs<const N: usize> = [u64; N];

/// Reads big-endian octets; `None` where they do not fit.
pub(crate) fn from_octets<const N: usize>(octets: &[u8]) -> Option<Limbs<N>> {
    let mut limbs = [0; N];
    for (index, octet) in octets.iter().rev().enumerate() {
        let bit = index * 8;
        let (limb, shift) = (bit / LIMB_BITS, bit % LIMB_BITS);
        if limb >= N {
            return None;
        }
        let wide = u64::from(*octet) << shift;
        limbs[limb] |= wide & LIMB_MASK;
        match limbs.get_mut(limb + 1) {
            Some(next) => *next |= wide >> LIMB_BITS,
            None if wide >> LIMB_BITS != 0 => return None,
            None => {}
        }
    }
    Some(limbs)
}

/// Writes the low `octets.len()` octets, big-endian.
pub(crate) fn to_octets<const N: usize>(limbs: &Limbs<N>, octets: &mut [u8]) {
    for (index, octet) in octets.iter_mut().rev().enumerate() {
        let bit = index * 8;
        let (limb, shift) = (bit / LIMB_BITS, bit % LIMB_BITS);
        let low = limbs.get(limb).copied().unwrap_or(0) >> shift;
        let high = limbs.get(limb + 1).copied().unwrap_or(0) << (LIMB_BITS - shift);
        *octet = (low | high) as u8;
    }
}

/// Reads big-endian octets into 64-bit words, the least significant first; `None` where they do not
/// fit.
pub(crate) fn to_words<const N: usize>(octets: &[u8]) -> Option<[u64; N]> {
    let mut words = [0; N];
    for (index, octet) in octets.iter().rev().enumerate() {
        *words.get_mut(index / 8)? |= u64::from(*octet) << (index % 8 * 8);
    }
    Some(words)
}

/// -1/n modulo 2^52, for odd n.
pub(crate) fn negated_inverse(lowest: u64) -> u64 {
    // Newton: each step doubles the number of right bits; n itself is right to three.
    let mut inverse = lowest;
    for _ in 0..5 {
        inverse = inverse.wrapping_mul(2u64.wrapping_sub(lowest.wrapping_mul(inverse)));
    }
    inverse.wrapping_neg() & LIMB_MASK
}

/// R^power modulo n, R = 2^(52 N). `n` must leave the topmost bit of its limbs free.
pub(crate) fn power_of_r<const N: usize>(n: &Limbs<N>, power: usize) -> Limbs<N> {
    let mut value = [0; N];
    value[0] = 1;
    for _ in 0..LIMB_BITS * N * power {
        double(&mut value, n);
    }
    value
}

/// a := 2 a mod n, for a < n.
fn double<const N: usize>(a: &mut Limbs<N>, n: &Limbs<N>) {
    let mut carry = 0;
    for limb in a.iter_mut() {
        let twice = (*limb << 1) | carry;
        carry = twice >> LIMB_BITS;
        *limb = twice & LIMB_MASK;
    }
    subtract_once(a, n);
}

/// Subtracts n where a >= n.
fn subtract_once<const N: usize>(a: &mut Limbs<N>, n: &Limbs<N>) {
    let mut difference = [0; N];
    let mut borrow = 0u64;
    for (out, (left, right)) in difference.iter_mut().zip(a.iter().zip(n)) {
        let limb = left.wrapping_sub(*right).wrapping_sub(borrow);
        borrow = limb >> 63;
        *out = limb & LIMB_MASK;
    }
    let keep = borrow.wrapping_neg();
    for (limb, other) in a.iter_mut().zip(&difference) {
        *limb = (*limb & keep) | (other & !keep);
    }
    difference.zeroize();
}

/// a b / R mod n by the schoolbook; for constants of a key.
pub(crate) fn montgomery<const N: usize>(
    a: &Limbs<N>,
    b: &Limbs<N>,
    n: &Limbs<N>,
    k0: u64,
) -> Limbs<N> {
    let mut sums = [0u64; N];
    for b_i in b {
        let low = |x: u64, y: u64| (x.wrapping_mul(y)) & LIMB_MASK;
        let high = |x: u64, y: u64| ((u128::from(x) * u128::from(y)) >> LIMB_BITS) as u64;
        let lowest = sums[0] + low(a[0], *b_i);
        let m = low(lowest & LIMB_MASK, k0);
        let mut carry = (lowest + low(n[0], m)) >> LIMB_BITS;
        for j in 1..N {
            let below = high(a[j - 1], *b_i) + high(n[j - 1], m);
            let sum = sums[j] + below + low(a[j], *b_i) + low(n[j], m) + carry;
            // Carrying at once keeps every limb under 2^52.
            sums[j - 1] = sum & LIMB_MASK;
            carry = sum >> LIMB_BITS;
        }
        sums[N - 1] = high(a[N - 1], *b_i) + high(n[N - 1], m) + carry;
    }
    subtract_once(&mut sums, n);
    sums
}
