//! Any command line is parsed or refused.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| postrider::smtp::fuzz::smtp_command(data));
