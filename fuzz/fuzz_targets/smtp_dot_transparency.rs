//! Stuffed and un-stuffed again, content is what it was.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| postrider::smtp::fuzz::dot_transparency(data));
