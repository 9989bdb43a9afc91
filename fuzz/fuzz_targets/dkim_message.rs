//! However a message is cut, its hash is the same, and preparing its signature never panics.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| postrider::dkim::fuzz::fuzz_message(data));
