//! Any bytes from the disk are an envelope or an error.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| postrider::message::envelope::fuzz_envelope(data));
