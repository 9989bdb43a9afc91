//! it - the whole program from outside: `postrider run` as a process, mail in, mail out.
//!
//! One binary, one module per promise. Nothing here sleeps, has a fixed port, or asserts a time
//! (the long forms, POSTRIDER_LONG=1, hold the recovery times of the specification): what is
//! awaited is awaited on a channel, a pipe or a counter, with a patience that only a hang exceeds.

mod bad_input;
mod bit_rot;
mod books;
mod commands;
mod dkim;
mod full_disk;
mod harness;
mod interop;
mod kill9;
mod life;
mod pipelining;
mod poison;
mod power_cut;
mod promises;
mod restart;
mod samples;
mod shortage;
mod sizes;
mod sources;
mod spool;
mod under_load;
