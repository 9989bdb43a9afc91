//! The simulator's tests: its own scenarios, and campaigns of the real shard through bad luck.
//!
//! `cargo test --test sim` runs a few hundred seeds. `POSTRIDER_SIM_SEEDS=0..100000 cargo test
//! --release --test sim campaign -- --nocapture` runs as many as wanted; a failing seed says how to
//! run it alone.

mod campaign;
mod world;
