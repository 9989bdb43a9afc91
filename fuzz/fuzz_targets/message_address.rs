//! Any address is parsed or refused, and what was parsed keeps the limits.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| postrider::message::address::fuzz_address(data));
