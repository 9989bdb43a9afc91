//! ifma - eight modular exponentiations at once with AVX-512 IFMA.
//!
//! What: Montgomery arithmetic on eight independent numbers, one per 64-bit lane, each with its own
//! modulus and exponent. A number of `N` limbs of 52 bits is `N` rows; row `i` holds limb `i` of
//! the eight numbers. Everything is safe to call for whoever holds an [`Ifma`], which exists only
//! where the processor has the instructions.
//! Why this way: `vpmadd52luq` and `vpmadd52huq` add the low or high half of a 52x52-bit product to
//! a 64-bit lane, two per cycle on server cores. Twelve spare bits let limbs pile up products
//! without carries; only the lowest limb of a row is carried at once (Gueron and Krasnov, "Software
//! implementation of modular exponentiation, using advanced vector instructions architectures"). R
//! = 2^(52 N) is at least 2^16 times the modulus, so almost-Montgomery products stay under 2 n by
//! themselves and are reduced fully only at the end.
//! Security: no branch, address or instruction count depends on a number or an exponent: loops have
//! public bounds, table entries are chosen by reading the whole table under masks, subtractions are
//! chosen by masks. Blinding is not used: it hides data-dependent timing, and there is none to
//! hide. The intermediate values that live in caller's memory ([`Table`]) are wiped on drop.

use zeroize::{DefaultIsZeroes, Zeroize};

/// Numbers worked on at once.
pub const LANES: usize = 8;
/// Bits of a limb.
pub const LIMB_BITS: usize = 52;
/// Bits of the exponent that one multiplication takes care of.
const WINDOW: usize = 4;
/// Powers kept in the table.
const POWERS: usize = 1 << WINDOW;

/// One limb (or word) of eight numbers.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Row(pub [u64; LANES]);

// Wiped as one volatile write.
impl DefaultIsZeroes for Row {}

/// Eight numbers of `N` limbs, the least significant first.
pub type Number<const N: usize> = [Row; N];

/// Eight zeros.
#[must_use]
pub fn zero<const N: usize>() -> Number<N> {
    [Row([0; LANES]); N]
}

/// Eight odd moduli and their Montgomery constants, R = 2^(52 N). A modulus must be under R / 2^10.
#[derive(Clone)]
pub struct Field<const N: usize> {
    /// The moduli.
    pub n: Number<N>,
    /// -1/n modulo 2^52.
    pub k0: Row,
    /// R^2 modulo n.
    pub r2: Number<N>,
    /// R^3 modulo n.
    pub r3: Number<N>,
}

impl<const N: usize> Default for Field<N> {
    fn default() -> Self {
        Self {
            n: zero(),
            k0: Row::default(),
            r2: zero(),
            r3: zero(),
        }
    }
}

impl<const N: usize> Zeroize for Field<N> {
    fn zeroize(&mut self) {
        self.n.zeroize();
        self.k0.zeroize();
        self.r2.zeroize();
        self.r3.zeroize();
    }
}

/// Memory for one exponentiation of secret numbers; wiped on drop.
pub struct Table<const N: usize> {
    powers: Box<[Number<N>]>,
    result: Number<N>,
    factor: Number<N>,
}

impl<const N: usize> Default for Table<N> {
    fn default() -> Self {
        Self {
            powers: vec![zero(); POWERS].into_boxed_slice(),
            result: zero(),
            factor: zero(),
        }
    }
}

impl<const N: usize> Table<N> {
    /// Wipes it.
    pub fn wipe(&mut self) {
        self.powers.as_flattened_mut().zeroize();
        self.result.zeroize();
        self.factor.zeroize();
    }
}

impl<const N: usize> Drop for Table<N> {
    fn drop(&mut self) {
        self.wipe();
    }
}

#[cfg(target_arch = "x86_64")]
pub use x86::Ifma;

#[cfg(not(target_arch = "x86_64"))]
pub use absent::Ifma;

#[cfg(not(target_arch = "x86_64"))]
mod absent {
    //! Other architectures: the proof cannot be had.
    use super::{Field, Number, Row, Table};

    /// Proof that the processor has AVX-512 IFMA; here there is none.
    #[derive(Debug, Clone, Copy)]
    pub enum Ifma {}

    impl Ifma {
        /// `None`.
        #[must_use]
        pub fn detect() -> Option<Self> {
            None
        }

        /// Cannot be called.
        pub fn power<const N: usize>(
            self,
            _field: &Field<N>,
            _base: [&Number<N>; 2],
            _exponent: (&[Row; N], usize),
            _table: &mut Table<N>,
            _out: &mut Number<N>,
        ) {
            match self {}
        }

        /// Cannot be called.
        pub fn recombine<const N: usize, const M: usize>(
            self,
            _field: &Field<N>,
            _q: &Number<N>,
            _qinv: &Number<N>,
            _parts: [&Number<N>; 2],
            _out: &mut Number<M>,
        ) {
            match self {}
        }

        /// Cannot be called.
        pub fn power_65537<const M: usize>(
            self,
            _field: &Field<M>,
            _base: &Number<M>,
            _out: &mut Number<M>,
        ) {
            match self {}
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m512i, _mm512_add_epi64, _mm512_and_si512, _mm512_cmpeq_epu64_mask,
        _mm512_cmplt_epi64_mask, _mm512_load_si512, _mm512_madd52hi_epu64, _mm512_madd52lo_epu64,
        _mm512_mask_mov_epi64, _mm512_or_si512, _mm512_set1_epi64, _mm512_setzero_si512,
        _mm512_shldi_epi64, _mm512_slli_epi64, _mm512_sllv_epi64, _mm512_srai_epi64,
        _mm512_srli_epi64, _mm512_srlv_epi64, _mm512_store_si512, _mm512_sub_epi64,
    };

    use super::{Field, LIMB_BITS, Number, POWERS, Row, Table, WINDOW, zero};

    const LIMB_MASK: i64 = (1 << LIMB_BITS) - 1;

    /// Proof that the processor has AVX-512 IFMA.
    #[derive(Debug, Clone, Copy)]
    pub struct Ifma(());

    impl Ifma {
        /// Asks the processor (and the operating system, which must save the registers).
        #[must_use]
        pub fn detect() -> Option<Self> {
            let has = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512ifma")
                // Came with IFMA in every server core that has it (Ice Lake, Zen 4).
                && is_x86_feature_detected!("avx512vbmi2");
            has.then_some(Self(()))
        }

        /// `out = base ^ exponent mod n` per lane, fully reduced; `base = base[0] + base[1] * R`,
        /// limbs under 2^52. The exponent is rows of 64-bit words, of which `bits` bits count.
        /// Constant time in the bases, exponents and moduli.
        ///
        /// # Panics
        /// Where `bits` is zero or more than the exponent has: a constant of the caller.
        pub fn power<const N: usize>(
            self,
            field: &Field<N>,
            base: [&Number<N>; 2],
            exponent: (&[Row; N], usize),
            table: &mut Table<N>,
            out: &mut Number<N>,
        ) {
            assert!((1..=N * 64).contains(&exponent.1));
            // SAFETY: self proves that the processor has the features.
            // JUSTIFICATION: a function with target features is called from one without.
            unsafe { power(field, base, exponent, table, out) }
        }

        /// The CRT: `out = b + q * ((a - b) * qinv mod p)`, where `parts` is `[a, b]`, a < p, b <
        /// q, `field` is that of p, `qinv` is 1/q mod p in Montgomery form, q < 2 p, and M = 2 N.
        pub fn recombine<const N: usize, const M: usize>(
            self,
            field: &Field<N>,
            q: &Number<N>,
            qinv: &Number<N>,
            parts: [&Number<N>; 2],
            out: &mut Number<M>,
        ) {
            const { assert!(M == 2 * N) };
            // SAFETY: self proves that the processor has the features.
            // JUSTIFICATION: a function with target features is called from one without.
            unsafe { recombine(field, q, qinv, parts, out) }
        }

        /// `out = base ^ 65537 mod n` per lane, fully reduced: the public operation.
        pub fn power_65537<const M: usize>(
            self,
            field: &Field<M>,
            base: &Number<M>,
            out: &mut Number<M>,
        ) {
            // SAFETY: self proves that the processor has the features.
            // JUSTIFICATION: a function with target features is called from one without.
            unsafe { power_65537(field, base, out) }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    fn load(row: &Row) -> __m512i {
        // SAFETY: a Row is 64 readable bytes at an address aligned to 64.
        // JUSTIFICATION: std::arch has no safe load from memory.
        unsafe { _mm512_load_si512(row.0.as_ptr().cast()) }
    }

    /// A load that stays where it is written. Loads of loop invariants look worth hoisting to the
    /// compiler, which then has 40 values for 10 registers and spills them to a stack that is not
    /// aligned to cache lines: 20 % slower (measured).
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    fn load_here(row: &Row) -> __m512i {
        // SAFETY: a Row is 64 readable bytes at an address aligned to 64, and any bits are a value.
        // JUSTIFICATION: volatile is the only way to tell the compiler not to move a load.
        unsafe { std::ptr::from_ref(row).cast::<__m512i>().read_volatile() }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    fn store(row: &mut Row, value: __m512i) {
        // SAFETY: a Row is 64 writable bytes at an address aligned to 64.
        // JUSTIFICATION: std::arch has no safe store to memory.
        unsafe { _mm512_store_si512(row.0.as_mut_ptr().cast(), value) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    fn lo(sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
        _mm512_madd52lo_epu64(sum, a, b)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    fn hi(sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
        _mm512_madd52hi_epu64(sum, a, b)
    }

    /// Carries sums of up to 63 bits upwards and writes limbs of 52 bits.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    fn normalise<const N: usize>(sums: &[__m512i; N], out: &mut Number<N>) {
        let mask = _mm512_set1_epi64(LIMB_MASK);
        let mut carry = _mm512_setzero_si512();
        for index in 0..N {
            let sum = _mm512_add_epi64(sums[index], carry);
            store(&mut out[index], _mm512_and_si512(sum, mask));
            carry = _mm512_srli_epi64::<52>(sum);
        }
    }

    /// As [`normalise`], but leaves what was carried in bits 52 and above of each limb: the
    /// multiplier does not look at them, and clearing them costs a twentieth of a product.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    fn carry_up(sums: &[__m512i; 20], out: &mut Number<20>) {
        let mut carry = _mm512_setzero_si512();
        for index in 0..20 {
            let sum = _mm512_add_epi64(sums[index], carry);
            store(&mut out[index], sum);
            carry = _mm512_srli_epi64::<52>(sum);
        }
    }

    /// Which multiple of n clears the lowest limb of a sum (in bits below 52), and what is carried
    /// out of it. `biased` is the sum plus 2^52 - 1: clearing rounds up to a multiple of 2^52, so
    /// the carry stands in its upper bits at once, without the product with the limb of n.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    fn clear_lowest(biased: __m512i, k0: __m512i) -> (__m512i, __m512i) {
        // (biased - (2^52 - 1)) k0 = biased k0 + k0 modulo 2^52.
        (lo(k0, biased, k0), _mm512_srli_epi64::<52>(biased))
    }

    /// Repeats a block with a constant that counts: the compiler must see every index as a constant
    /// to keep the sums in registers, and its own unrolling gives up at this size.
    macro_rules! repeat {
        ($name:ident in $($value:literal)* => $body:block) => {
            $({ const $name: usize = $value; $body })*
        };
    }

    /// Adds m n to 20 sums and moves down by a limb, without the lowest, which is zero then. `$top`
    /// is the sum that comes into sight. A macro, because the sums must stay in registers and an
    /// inline function that needs processor features is only a wish.
    macro_rules! add_multiple {
        ($sums:ident, $top:expr, $n:ident, $m:ident) => {
            let mut before = load_here(&$n[0]);
            repeat!(J in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 => {
                let here = load_here(&$n[J]);
                $sums[J - 1] = lo(hi($sums[J], before, $m), here, $m);
                before = here;
            });
            $sums[19] = hi($top, before, $m);
        };
    }

    /// [`multiply`] for 20 limbs, all sums in registers (20 of 32). Bits 52 and above of the limbs
    /// of `a` and `b` do not count, and those of the result are waste.
    ///
    /// The sums that will be lowest once start with the bias that [`clear_lowest`] wants. In a row
    /// the products with b come first, because those with n wait for `m`.
    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    fn multiply_20(a: &mut Number<20>, b: &Number<20>, n: &Number<20>, k0: __m512i) {
        let zero = _mm512_setzero_si512();
        let mut sums = [_mm512_set1_epi64(LIMB_MASK); 20];
        // Five rows a turn: moving the sums down by five limbs at once saves four of five moves.
        for rows in b.as_chunks::<5>().0 {
            repeat!(I in 0 1 2 3 4 => {
                let b_i = load_here(&rows[I]);
                let mut before = load_here(&a[0]);
                let (m, carry) = clear_lowest(lo(sums[0], before, b_i), k0);
                sums[1] = _mm512_add_epi64(sums[1], carry);
                repeat!(J in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 => {
                    let here = load_here(&a[J]);
                    sums[J] = lo(hi(sums[J], before, b_i), here, b_i);
                    before = here;
                });
                let top = hi(zero, before, b_i);
                add_multiple!(sums, top, n, m);
            });
        }
        carry_up(&sums, a);
    }

    /// [`square`] for 20 limbs, all sums in registers; see [`multiply_20`].
    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    fn square_20(a: &mut Number<20>, n: &Number<20>, k0: __m512i) {
        let mut sums = [_mm512_set1_epi64(LIMB_MASK); 20];
        let mut twice = super::zero::<20>();
        repeat!(J in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 => {
            // The topmost bit of the limb below comes in, whatever stands above it.
            let below = _mm512_slli_epi64::<12>(load_here(&a[J - 1]));
            store(&mut twice[J], _mm512_shldi_epi64::<1>(load_here(&a[J]), below));
        });
        repeat!(I in 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 => {
            let a_i = load_here(&a[I]);
            if I == 0 {
                sums[0] = lo(sums[0], a_i, a_i);
            }
            let (m, carry) = clear_lowest(sums[0], k0);
            sums[1] = _mm512_add_epi64(sums[1], carry);
            let mut before = a_i;
            repeat!(J in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 => {
                if J > I {
                    sums[J] = hi(sums[J], before, a_i);
                }
                if J + 1 > I {
                    before = if J == I {
                        a_i
                    } else if J == I + 1 {
                        _mm512_add_epi64(load_here(&a[J]), load_here(&a[J]))
                    } else {
                        load_here(&twice[J])
                    };
                    sums[J] = lo(sums[J], before, a_i);
                }
            });
            let top = hi(_mm512_setzero_si512(), before, a_i);
            add_multiple!(sums, top, n, m);
        });
        carry_up(&sums, a);
    }

    /// The part of two rows that does not depend on what is multiplied: which multiples of n clear
    /// the two lowest limbs, and what is carried out of them.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    fn clear_two<const N: usize>(
        lowest: __m512i,
        next: __m512i,
        n: &Number<N>,
        k0: __m512i,
    ) -> ([__m512i; 2], __m512i) {
        let zero = _mm512_setzero_si512();
        let (n_0, n_1) = (load(&n[0]), load(&n[1]));
        let m_0 = lo(zero, lowest, k0);
        let carry = _mm512_srli_epi64::<52>(lo(lowest, n_0, m_0));
        let next = _mm512_add_epi64(lo(hi(next, n_0, m_0), n_1, m_0), carry);
        let m_1 = lo(zero, next, k0);
        let carry = _mm512_srli_epi64::<52>(lo(next, n_0, m_1));
        ([m_0, m_1], carry)
    }

    /// Almost Montgomery product: `a b / R mod n`, under 2 n where a b < R n, as sums to carry.
    ///
    /// Per limb of b: add `a b_i`, add the multiple of n that clears the lowest limb, move down by
    /// one limb. Two limbs of b at once: the sums do not fit the registers, and so each is loaded
    /// and stored once for eight products.
    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    fn multiply<const N: usize>(
        a: &Number<N>,
        b: &Number<N>,
        n: &Number<N>,
        k0: __m512i,
    ) -> [__m512i; N] {
        const { assert!(N.is_multiple_of(2)) };
        let zero = _mm512_setzero_si512();
        let mut sums = [zero; N];
        for rows in b.as_chunks::<2>().0 {
            let (b_0, b_1) = (load(&rows[0]), load(&rows[1]));
            let (mut a_2, mut a_1) = (load(&a[0]), load(&a[1]));
            let lowest = lo(sums[0], a_2, b_0);
            let next = lo(lo(hi(sums[1], a_2, b_0), a_1, b_0), a_2, b_1);
            let ([m_0, m_1], carry) = clear_two(lowest, next, n, k0);
            let (mut n_2, mut n_1) = (load(&n[0]), load(&n[1]));
            for k in 2..N {
                let (a_k, n_k) = (load(&a[k]), load(&n[k]));
                let sum = hi(lo(hi(lo(sums[k], a_k, b_0), a_1, b_0), a_1, b_1), a_2, b_1);
                sums[k - 2] = hi(lo(hi(lo(sum, n_k, m_0), n_1, m_0), n_1, m_1), n_2, m_1);
                (a_2, a_1, n_2, n_1) = (a_1, a_k, n_1, n_k);
            }
            let sum = hi(lo(hi(zero, a_1, b_0), a_1, b_1), a_2, b_1);
            sums[N - 2] = hi(lo(hi(sum, n_1, m_0), n_1, m_1), n_2, m_1);
            sums[N - 1] = hi(hi(zero, a_1, b_1), n_1, m_1);
            sums[0] = _mm512_add_epi64(sums[0], carry);
        }
        sums
    }

    /// Almost Montgomery square. As [`multiply`], but each pair of limbs is multiplied once: row i
    /// takes `a_i (a_i + 2 (what is above limb i))`. Its products start at limb 2 i, so no product
    /// comes too late for the row that clears its limb.
    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    fn square<const N: usize>(a: &Number<N>, n: &Number<N>, k0: __m512i) -> [__m512i; N] {
        const { assert!(N.is_multiple_of(2)) };
        let zero = _mm512_setzero_si512();
        let mut sums = [zero; N];
        // 2 a; the multiplier ignores what stands above bit 51, so only bits from below are added.
        let mut even = [zero; N];
        for index in 1..N {
            let (below, here) = (load(&a[index - 1]), load(&a[index]));
            let bit = _mm512_srli_epi64::<51>(below);
            even[index] = _mm512_add_epi64(_mm512_add_epi64(here, here), bit);
        }
        // What the even and the odd rows multiply with: zero below limb i, a_i, and 2 a above, in
        // whose first limb the bit that limb i itself would carry over is missing.
        let mut odd = even;
        odd[0] = zero;
        let twice = |index: usize| {
            let limb = a.get(index).map_or(zero, |row| load(row));
            _mm512_add_epi64(limb, limb)
        };
        for i in (0..N).step_by(2) {
            let (a_0, a_1) = (load(&a[i]), load(&a[i + 1]));
            (even[i], even[i + 1], odd[i + 1]) = (a_0, twice(i + 1), a_1);
            if i + 2 < N {
                odd[i + 2] = twice(i + 2);
            }
            let (mut lowest, mut next) = (sums[0], sums[1]);
            if i == 0 {
                lowest = lo(lowest, even[0], a_0);
                next = lo(hi(next, even[0], a_0), even[1], a_0);
            }
            let ([m_0, m_1], carry) = clear_two(lowest, next, n, k0);
            let (mut n_2, mut n_1) = (load(&n[0]), load(&n[1]));
            let first = i.max(2);
            for k in 2..first {
                let n_k = load(&n[k]);
                sums[k - 2] = hi(lo(hi(lo(sums[k], n_k, m_0), n_1, m_0), n_1, m_1), n_2, m_1);
                (n_2, n_1) = (n_1, n_k);
            }
            let (mut even_1, mut odd_2, mut odd_1) =
                (even[first - 1], odd[first - 2], odd[first - 1]);
            for k in first..N {
                let (even_k, n_k) = (even[k], load(&n[k]));
                let sum = lo(hi(lo(sums[k], even_k, a_0), even_1, a_0), odd_1, a_1);
                let sum = hi(lo(hi(sum, odd_2, a_1), n_k, m_0), n_1, m_0);
                sums[k - 2] = hi(lo(sum, n_1, m_1), n_2, m_1);
                (even_1, odd_2, odd_1, n_2, n_1) = (even_k, odd_1, odd[k], n_1, n_k);
            }
            let sum = hi(lo(hi(zero, even_1, a_0), odd_1, a_1), odd_2, a_1);
            sums[N - 2] = hi(lo(hi(sum, n_1, m_0), n_1, m_1), n_2, m_1);
            sums[N - 1] = hi(hi(zero, odd_1, a_1), n_1, m_1);
            sums[0] = _mm512_add_epi64(sums[0], carry);
            (even[i], even[i + 1], odd[i + 1]) = (zero, zero, zero);
            if i + 2 < N {
                odd[i + 2] = zero;
            }
        }
        sums
    }

    /// `a := a b / R mod n`, in the fastest way for this size.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    fn multiply_by<const N: usize>(a: &mut Number<N>, b: &Number<N>, n: &Number<N>, k0: __m512i) {
        let narrow: Result<&mut Number<20>, _> = (&mut a[..]).try_into();
        match (narrow, b[..].try_into(), n[..].try_into()) {
            (Ok(a), Ok(b), Ok(n)) => multiply_20(a, b, n, k0),
            _ => normalise(&multiply(a, b, n, k0), a),
        }
    }

    /// `a := a^2 / R mod n`, in the fastest way for this size.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    fn square_in_place<const N: usize>(a: &mut Number<N>, n: &Number<N>, k0: __m512i) {
        let narrow: Result<&mut Number<20>, _> = (&mut a[..]).try_into();
        match (narrow, n[..].try_into()) {
            (Ok(a), Ok(n)) => square_20(a, n, k0),
            _ => normalise(&square(a, n, k0), a),
        }
    }

    /// Subtracts n where a >= n, for a < 2 n. Bits 52 and above of the limbs of a do not count.
    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    fn reduce_once<const N: usize>(a: &mut Number<N>, n: &Number<N>) {
        let zero = _mm512_setzero_si512();
        let mask = _mm512_set1_epi64(LIMB_MASK);
        let mut difference = [zero; N];
        let mut borrow = zero;
        for index in 0..N {
            let limb = _mm512_and_si512(load(&a[index]), mask);
            let limb = _mm512_sub_epi64(limb, load(&n[index]));
            let limb = _mm512_add_epi64(limb, borrow);
            borrow = _mm512_srai_epi64::<52>(limb);
            difference[index] = _mm512_and_si512(limb, mask);
        }
        let smaller = _mm512_cmplt_epi64_mask(borrow, zero);
        for index in 0..N {
            let limb = _mm512_and_si512(load(&a[index]), mask);
            let kept = _mm512_mask_mov_epi64(difference[index], smaller, limb);
            store(&mut a[index], kept);
        }
    }

    /// Out of Montgomery form, fully reduced.
    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    fn leave<const N: usize>(a: &Number<N>, n: &Number<N>, k0: __m512i, out: &mut Number<N>) {
        *out = zero();
        out[0] = Row([1; 8]);
        multiply_by(out, a, n, k0);
        reduce_once(out, n);
    }

    /// The entry of the table that each lane's index names. Reads the whole table.
    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    fn select<const N: usize>(table: &[Number<N>], index: __m512i, out: &mut Number<N>) {
        let mut chosen = [_mm512_setzero_si512(); N];
        let mut number = _mm512_setzero_si512();
        let one = _mm512_set1_epi64(1);
        for entry in table {
            let mask = _mm512_cmpeq_epu64_mask(index, number);
            for limb in 0..N {
                chosen[limb] = _mm512_mask_mov_epi64(chosen[limb], mask, load(&entry[limb]));
            }
            number = _mm512_add_epi64(number, one);
        }
        for limb in 0..N {
            store(&mut out[limb], chosen[limb]);
        }
    }

    /// `WINDOW` bits of the exponents, from bit `at` on.
    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    fn window<const N: usize>(exponent: &[Row; N], at: usize) -> __m512i {
        let (word, shift) = (at / 64, (at % 64) as i64);
        let low = _mm512_srlv_epi64(load(&exponent[word]), _mm512_set1_epi64(shift));
        let bits = match exponent.get(word + 1) {
            // A shift by 64 (shift == 0) gives zero, as it should.
            Some(next) => {
                let high = _mm512_sllv_epi64(load(next), _mm512_set1_epi64(64 - shift));
                _mm512_or_si512(low, high)
            }
            None => low,
        };
        _mm512_and_si512(bits, _mm512_set1_epi64(POWERS as i64 - 1))
    }

    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    fn power<const N: usize>(
        field: &Field<N>,
        base: [&Number<N>; 2],
        (exponent, bits): (&[Row; N], usize),
        table: &mut Table<N>,
        out: &mut Number<N>,
    ) {
        let (n, k0) = (&field.n, load(&field.k0));
        fill(&mut table.powers, field, base);
        let Table {
            powers,
            result,
            factor,
        } = table;
        let mut at = (bits - 1) / WINDOW * WINDOW;
        select(powers, window(exponent, at), result);
        while at > 0 {
            at -= WINDOW;
            for _ in 0..WINDOW {
                square_in_place(result, n, k0);
            }
            select(powers, window(exponent, at), factor);
            multiply_by(result, factor, n, k0);
        }
        leave(result, n, k0, out);
    }

    /// The powers 0 to `POWERS - 1` of the base, in Montgomery form.
    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    fn fill<const N: usize>(powers: &mut [Number<N>], field: &Field<N>, base: [&Number<N>; 2]) {
        let (n, k0) = (&field.n, load(&field.k0));
        // (base[0] + base[1] R) R = base[0] R^2 / R + base[1] R^3 / R; the sum stays under 4 n.
        (powers[0], powers[1]) = (field.r2, field.r3);
        multiply_by(&mut powers[0], base[0], n, k0);
        multiply_by(&mut powers[1], base[1], n, k0);
        let mask = _mm512_set1_epi64(LIMB_MASK);
        let mut sum = [_mm512_setzero_si512(); N];
        for index in 0..N {
            let limbs = [0, 1].map(|power| _mm512_and_si512(load(&powers[power][index]), mask));
            sum[index] = _mm512_add_epi64(limbs[0], limbs[1]);
        }
        normalise(&sum, &mut powers[1]);
        powers[0] = zero();
        powers[0][0] = Row([1; 8]);
        multiply_by(&mut powers[0], &field.r2, n, k0);
        for index in 2..POWERS {
            let (done, todo) = powers.split_at_mut(index);
            if index.is_multiple_of(2) {
                todo[0] = done[index / 2];
                square_in_place(&mut todo[0], n, k0);
            } else {
                todo[0] = done[index - 1];
                multiply_by(&mut todo[0], &done[1], n, k0);
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    fn recombine<const N: usize, const M: usize>(
        field: &Field<N>,
        q: &Number<N>,
        qinv: &Number<N>,
        parts: [&Number<N>; 2],
        out: &mut Number<M>,
    ) {
        let zero_row = _mm512_setzero_si512();
        let mask = _mm512_set1_epi64(LIMB_MASK);
        let (p, k0) = (&field.n, load(&field.k0));
        // a - b + 2 p: positive, because b < q < 2 p.
        let mut difference = zero();
        let mut carry = zero_row;
        for index in 0..N {
            let p_j = load(&p[index]);
            let limb = _mm512_sub_epi64(load(&parts[0][index]), load(&parts[1][index]));
            let limb = _mm512_add_epi64(limb, _mm512_add_epi64(p_j, p_j));
            let limb = _mm512_add_epi64(limb, carry);
            carry = _mm512_srai_epi64::<52>(limb);
            store(&mut difference[index], _mm512_and_si512(limb, mask));
        }
        let mut h = difference;
        multiply_by(&mut h, qinv, p, k0);
        reduce_once(&mut h, p);
        // b + h q.
        let mut sums = [zero_row; M];
        for index in 0..N {
            sums[index] = load(&parts[1][index]);
        }
        for (i, row) in h.iter().enumerate() {
            let h_i = load(row);
            for (j, row) in q.iter().enumerate() {
                let q_j = load(row);
                sums[i + j] = lo(sums[i + j], h_i, q_j);
                sums[i + j + 1] = hi(sums[i + j + 1], h_i, q_j);
            }
        }
        normalise(&sums, out);
    }

    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    fn power_65537<const M: usize>(field: &Field<M>, base: &Number<M>, out: &mut Number<M>) {
        let (n, k0) = (&field.n, load(&field.k0));
        *out = field.r2;
        multiply_by(out, base, n, k0);
        for _ in 0..16 {
            square_in_place(out, n, k0);
        }
        // One factor without R takes the result out of Montgomery form.
        multiply_by(out, base, n, k0);
        reduce_once(out, n);
    }
}
