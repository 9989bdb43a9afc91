//! The scan of any header stays within it.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| postrider::message::header::fuzz_header(data));
