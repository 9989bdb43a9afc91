//! Postrider: an outbound mail appliance. This page is the map of the house.
//!
//! | room | what it is for | may import |
//! |---|---|---|
//! | `limits` | every bound, with the sentence that justifies it | nothing |
//! | `time` | the two clocks, as values that pure code takes as arguments | nothing |
//! | `dkim` | keys, canonical hash, batch signer, 8-lane RSA | `limits message time`, `engine::ifma` only |
//! | `engine` | the port that drivers are written against; `uring`, `sim`; `sys` has all unsafe code | `limits time` |

pub mod dkim;
pub mod engine;
pub mod limits;
pub mod time;
