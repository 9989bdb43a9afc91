//! message - the mail itself, apart from the protocol that carries it.
//!
//! What: addresses, the envelope and its bytes on disk, the content, the header scan at
//! submission, what is learnt about a body while it arrives, conversion to 7 bit, the trace field,
//! delivery status notifications, enhanced status codes.
//! Why this way: everything here is pure, total on hostile bytes and bounded by `limits`.

pub mod address;
pub mod body;
pub mod content;
pub mod dsn;
pub mod envelope;
pub mod header;
pub mod seven_bit;
pub mod status;
pub mod trace;
mod transfer;

pub use address::{Address, AddressError, Domain};
pub use body::{ArrivedBody, BodyHash, Canon, Watch};
pub use content::{Content, ContentBuilder};
pub use envelope::{
    BodyType, Envelope, EnvelopeError, EnvelopeView, MessageId, Notify, Recipient, RecipientRef,
    Ret,
};
pub use header::{CheckError, Checked, HeaderScan};
pub use status::EnhancedStatus;
pub use trace::{Protocol, TraceInfo};

#[cfg(test)]
pub(crate) mod testing {
    //! A small seeded generator for the random tests of this room.

    /// SplitMix64: every seed gives a different, well-mixed sequence.
    pub(crate) struct Random(pub(crate) u64);

    impl Random {
        pub(crate) fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }

        /// A number below `bound`, which is not zero.
        pub(crate) fn below(&mut self, bound: usize) -> usize {
            (self.next() % bound as u64) as usize
        }

        /// Up to `len_max` pieces of `alphabet`, concatenated.
        pub(crate) fn soup(&mut self, alphabet: &[&[u8]], len_max: usize) -> Vec<u8> {
            let len = self.below(len_max + 1);
            (0..len)
                .flat_map(|_| alphabet[self.below(alphabet.len())].to_vec())
                .collect()
        }
    }
}
