//! Any key file or DNS record is a key, or an error.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| postrider::dkim::fuzz::fuzz_keys(data));
