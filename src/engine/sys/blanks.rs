//! blanks - finds and squeezes blanks 64 octets at a time.
//!
//! What: the two loops of relaxed canonicalisation (RFC 6376 3.4.4) that look at every octet:
//! [`Blanks::clean_blocks`] says how far a body may be used as it is, and [`Blanks::squeeze`]
//! copies it with every run of blanks made one and those at line ends left out. Neither knows about
//! empty lines.
//! Why this way: SHA-256 takes 0.7 us per KiB, and looking for blanks must vanish beside it. With
//! AVX-512 (BW, VBMI2) a block is three compares, or eight instructions and one compressing store;
//! AVX2 looks for blanks the same way; elsewhere the compiler makes vectors of plain loops. All
//! ways give the same bytes.
//! Whether a blank stays depends only on the two octets after it: it does where no other blank
//! follows, and no CRLF. So no state goes from block to block.

/// Octets looked at as one.
pub const BLOCK: usize = 64;
/// Octets after a block that say what becomes of it.
const AHEAD: usize = 2;
/// Room for the result of [`Blanks::squeeze`].
pub const ROOM: usize = 2048;

/// The fastest way that this processor has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blanks(Way);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

impl Blanks {
    /// Asks the processor, which costs as much as a load: the answer is cached.
    #[must_use]
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vbmi2") {
                return Self(Way::Avx512);
            }
            if is_x86_feature_detected!("avx2") {
                return Self(Way::Avx2);
            }
        }
        Self(Way::Portable)
    }

    /// The length of a prefix of whole blocks in which squeezing would change nothing. The block
    /// behind it is not clean, or the piece ends within it and the octet after it.
    #[must_use]
    pub fn clean_blocks(self, piece: &[u8]) -> usize {
        match self.0 {
            // SAFETY: detect saw that the processor has the features.
            // JUSTIFICATION: a function with target features is called from one without.
            #[cfg(target_arch = "x86_64")]
            Way::Avx512 => unsafe { x86::clean_blocks_avx512(piece) },
            // SAFETY: detect saw that the processor has the features.
            // JUSTIFICATION: a function with target features is called from one without.
            #[cfg(target_arch = "x86_64")]
            Way::Avx2 => unsafe { x86::clean_blocks_avx2(piece) },
            Way::Portable => clean_blocks(piece),
        }
    }

    /// Squeezes whole blocks into `out` until it has no room for another, or the piece ends less
    /// than two octets after the next. Returns how many octets were taken and how many made.
    #[must_use]
    pub fn squeeze(self, piece: &[u8], out: &mut [u8; ROOM]) -> (usize, usize) {
        match self.0 {
            // SAFETY: detect saw that the processor has the features.
            // JUSTIFICATION: a function with target features is called from one without.
            #[cfg(target_arch = "x86_64")]
            Way::Avx512 => unsafe { x86::squeeze_avx512(piece, out) },
            _ => squeeze(piece, out),
        }
    }
}

/// A block and the octets after it that say what becomes of it.
fn block_at(piece: &[u8], at: usize) -> Option<&[u8; BLOCK + AHEAD]> {
    piece.get(at..)?.first_chunk()
}

fn clean_blocks(piece: &[u8]) -> usize {
    let mut at = 0;
    while let Some(block) = block_at(piece, at) {
        let mut dirty = 0u8;
        for (byte, next) in block[..BLOCK].iter().zip(&block[1..]) {
            dirty |= u8::from((*byte == b'\t') | ((*byte == b' ') & (*next <= b' ')));
        }
        if dirty != 0 {
            break;
        }
        at += BLOCK;
    }
    at
}

fn squeeze(piece: &[u8], out: &mut [u8; ROOM]) -> (usize, usize) {
    let (mut at, mut made) = (0, 0);
    while let Some(block) = block_at(piece, at) {
        let Some(room) = out.get_mut(made..made + BLOCK) else {
            break;
        };
        let mut kept = 0;
        for (index, byte) in block[..BLOCK].iter().enumerate() {
            let (next, after) = (block[index + 1], block[index + 2]);
            let blank = |byte: u8| (byte == b' ') | (byte == b'\t');
            let goes = blank(*byte) & (blank(next) | ((next == b'\r') & (after == b'\n')));
            // Without a branch; what goes is overwritten. At most one octet is kept per turn.
            room[kept & (BLOCK - 1)] = if *byte == b'\t' { b' ' } else { *byte };
            kept += usize::from(!goes);
        }
        at += BLOCK;
        made += kept;
    }
    (at, made)
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m256i, __m512i, _mm256_and_si256, _mm256_cmpeq_epi8, _mm256_loadu_si256, _mm256_min_epu8,
        _mm256_or_si256, _mm256_set1_epi8, _mm256_testz_si256, _mm512_cmpeq_epi8_mask,
        _mm512_loadu_si512, _mm512_mask_cmple_epu8_mask, _mm512_mask_mov_epi8,
        _mm512_maskz_compress_epi8, _mm512_set1_epi8, _mm512_storeu_si512,
    };

    use super::{AHEAD, BLOCK, ROOM, block_at};

    #[inline]
    #[target_feature(enable = "avx512bw")]
    fn load_512(bytes: &[u8; BLOCK]) -> __m512i {
        // SAFETY: 64 readable octets; the load wants no alignment.
        // JUSTIFICATION: std::arch has no safe load from memory.
        unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn load_256(bytes: &[u8; BLOCK / 2]) -> __m256i {
        // SAFETY: 32 readable octets; the load wants no alignment.
        // JUSTIFICATION: std::arch has no safe load from memory.
        unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
    }

    /// The `SIZE` octets from `START` on.
    #[inline(always)]
    fn part<const START: usize, const SIZE: usize>(block: &[u8; BLOCK + AHEAD]) -> &[u8; SIZE] {
        const { assert!(START + SIZE <= BLOCK + AHEAD) };
        match block[START..].first_chunk() {
            Some(part) => part,
            None => unreachable!("asserted above"),
        }
    }

    #[target_feature(enable = "avx512bw,avx512vbmi2")]
    pub(super) fn clean_blocks_avx512(piece: &[u8]) -> usize {
        let (space, tab) = (_mm512_set1_epi8(b' ' as i8), _mm512_set1_epi8(b'\t' as i8));
        let mut at = 0;
        while let Some(block) = block_at(piece, at) {
            let here = load_512(part::<0, BLOCK>(block));
            let next = load_512(part::<1, BLOCK>(block));
            let spaces = _mm512_cmpeq_epi8_mask(here, space);
            let dirty = _mm512_cmpeq_epi8_mask(here, tab)
                | _mm512_mask_cmple_epu8_mask(spaces, next, space);
            if dirty != 0 {
                break;
            }
            at += BLOCK;
        }
        at
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn clean_blocks_avx2(piece: &[u8]) -> usize {
        let (space, tab) = (_mm256_set1_epi8(b' ' as i8), _mm256_set1_epi8(b'\t' as i8));
        let dirty = |here: __m256i, next: __m256i| {
            // At most a space: the smaller of both is the octet itself.
            let low = _mm256_cmpeq_epi8(_mm256_min_epu8(next, space), next);
            let pair = _mm256_and_si256(_mm256_cmpeq_epi8(here, space), low);
            _mm256_or_si256(_mm256_cmpeq_epi8(here, tab), pair)
        };
        let mut at = 0;
        while let Some(block) = block_at(piece, at) {
            let low = dirty(
                load_256(part::<0, 32>(block)),
                load_256(part::<1, 32>(block)),
            );
            let high = dirty(
                load_256(part::<32, 32>(block)),
                load_256(part::<33, 32>(block)),
            );
            let any = _mm256_or_si256(low, high);
            if _mm256_testz_si256(any, any) == 0 {
                break;
            }
            at += BLOCK;
        }
        at
    }

    #[target_feature(enable = "avx512bw,avx512vbmi2")]
    pub(super) fn squeeze_avx512(piece: &[u8], out: &mut [u8; ROOM]) -> (usize, usize) {
        let find =
            |block: __m512i, byte: u8| _mm512_cmpeq_epi8_mask(block, _mm512_set1_epi8(byte as i8));
        let space = _mm512_set1_epi8(b' ' as i8);
        let (mut at, mut made) = (0, 0);
        while let Some(block) = block_at(piece, at) {
            let Some(room) = out
                .get_mut(made..)
                .and_then(<[u8]>::first_chunk_mut::<BLOCK>)
            else {
                break;
            };
            let here = load_512(part::<0, BLOCK>(block));
            let (next, after) = (block[BLOCK], block[BLOCK + 1]);
            let tabs = find(here, b'\t');
            let blanks = find(here, b' ') | tabs;
            // Bit i says what octet i + 1, or i + 2, is.
            let blank_next = blanks >> 1 | u64::from(next == b' ' || next == b'\t') << 63;
            let cr_next = find(here, b'\r') >> 1 | u64::from(next == b'\r') << 63;
            let lf_after = find(here, b'\n') >> 2
                | u64::from(next == b'\n') << 62
                | u64::from(after == b'\n') << 63;
            let kept = !(blanks & (blank_next | (cr_next & lf_after)));
            let plain = _mm512_mask_mov_epi8(here, tabs, space);
            let squeezed = _mm512_maskz_compress_epi8(kept, plain);
            // SAFETY: 64 writable octets; the store wants no alignment.
            // JUSTIFICATION: std::arch has no safe store to memory.
            unsafe { _mm512_storeu_si512(room.as_mut_ptr().cast(), squeezed) };
            at += BLOCK;
            made += kept.count_ones() as usize;
        }
        (at, made)
    }
}

#[cfg(test)]
mod tests {
    use super::{BLOCK, Blanks, ROOM, Way};

    /// All ways that this processor has.
    fn ways() -> Vec<Blanks> {
        let mut ways = vec![Blanks(Way::Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") {
                ways.push(Blanks(Way::Avx2));
            }
            ways.push(Blanks::detect());
        }
        ways
    }

    /// What squeezing keeps of `taken` octets, one at a time.
    fn plainly(piece: &[u8], taken: usize) -> Vec<u8> {
        let mut out = Vec::new();
        for at in 0..taken {
            let blank = |byte: u8| byte == b' ' || byte == b'\t';
            let rest = &piece[at + 1..];
            let goes = blank(piece[at]) && (blank(rest[0]) || rest.starts_with(b"\r\n"));
            if !goes {
                out.push(if blank(piece[at]) { b' ' } else { piece[at] });
            }
        }
        out
    }

    fn check(piece: &[u8]) {
        for way in ways() {
            let mut out = [0; ROOM];
            let (taken, made) = way.squeeze(piece, &mut out);
            let blocks = piece.len().saturating_sub(2) / BLOCK;
            assert!(taken == blocks * BLOCK || made + BLOCK > ROOM, "{way:?}");
            assert_eq!(&out[..made], plainly(piece, taken), "{way:?}");
            let clean = way.clean_blocks(piece);
            assert!(clean.is_multiple_of(BLOCK) && clean + 2 <= piece.len().max(2));
            assert_eq!(plainly(piece, clean), &piece[..clean], "{way:?}");
            // The next block has a reason to be refused.
            if let Some(block) = piece.get(clean..clean + BLOCK + 2) {
                let low = |pair: &[u8]| pair[0] == b'\t' || pair[0] == b' ' && pair[1] <= b' ';
                assert!(block[..BLOCK + 1].windows(2).any(low), "{way:?}");
            }
        }
    }

    // Every place of a block, and both octets after it, with everything that matters.
    #[test]
    fn every_place_of_a_block() {
        let pairs: [&[u8]; 10] = [
            b"  ", b" \r\n", b"\t", b" \t", b"\t\r\n", b" \r\r\n", b" \n", b" \ra", b" a", b"\r\n",
        ];
        for pair in pairs {
            for at in 0..2 * BLOCK {
                let mut piece = vec![b'x'; 3 * BLOCK + 2];
                piece[at..at + pair.len()].copy_from_slice(pair);
                check(&piece);
                check(&piece[..BLOCK + 2]);
            }
        }
    }

    // Any mixture, any length, also more than there is room for.
    #[test]
    fn random_mixtures() {
        let mut chance = 0x9e37_79b9_7f4a_7c15u64;
        for round in 0..4000usize {
            let len = if round.is_multiple_of(40) {
                5000
            } else {
                round % 300
            };
            // The rarer blanks are, the longer the clean prefix.
            let rarity = 1 << (round % 9);
            let piece: Vec<u8> = std::iter::repeat_with(|| {
                chance ^= chance << 13;
                chance ^= chance >> 7;
                chance ^= chance << 17;
                let word = (chance >> 33) as usize;
                if word.is_multiple_of(rarity) {
                    b" \t\r\n  \r\n"[word / rarity % 8]
                } else {
                    b'a' + (word % 26) as u8
                }
            })
            .take(len)
            .collect();
            check(&piece);
        }
    }
}
