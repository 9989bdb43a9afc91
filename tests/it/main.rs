//! it - the whole program from outside: `postrider run` as a process, mail in, mail out.
//!
//! One binary, one module per promise. Nothing here sleeps, has a fixed port, or asserts a time:
//! what is awaited is awaited on a channel or a pipe, with a patience that only a hang exceeds.

mod bad_input;
mod books;
mod commands;
mod harness;
mod interop;
mod kill9;
mod promises;
mod samples;
