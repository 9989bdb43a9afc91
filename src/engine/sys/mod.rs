//! engine::sys - all unsafe code of the house, each use with the reason why it is sound.

pub mod blanks;
pub mod block;
pub(crate) mod buffers;
pub mod ifma;
pub(crate) mod map;
pub(crate) mod owner;
pub mod pairs;
pub(crate) mod ring;
pub mod shared;
pub(crate) mod socket;
