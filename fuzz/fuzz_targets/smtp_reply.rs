//! Replies do not depend on the splits.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| postrider::smtp::fuzz::smtp_reply(data));
