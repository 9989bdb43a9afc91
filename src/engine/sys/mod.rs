//! engine::sys - all unsafe code of the house, each use with the reason why it is sound.

pub mod block;
pub mod ifma;
