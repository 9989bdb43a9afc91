//! engine - the port that drivers are written against, and what implements it.
//!
//! `uring` is production, `sim` the seeded world of the tests, `sys` the only place with unsafe
//! code.

pub mod guarded;
pub mod mesh;
pub mod port;
pub mod sim;
pub mod sys;
pub mod uring;

pub use guarded::Guarded;
pub use port::{
    Class, Map, Moving, NetError, OpenMode, Port, RemoteWaker, Signal, Stream, Usage, yield_now,
};
pub use sys::blanks;
pub use sys::block::{Block, huge_pages_for_the_asking};
pub use sys::ifma;
pub use sys::map::FileMap;
pub use sys::pairs;
pub use sys::shared::{CrashWatch, SharedWords, Words};
