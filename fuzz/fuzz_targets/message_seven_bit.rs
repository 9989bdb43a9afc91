//! Any message is converted to ASCII, or refused.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| postrider::message::seven_bit::fuzz_seven_bit(data));
