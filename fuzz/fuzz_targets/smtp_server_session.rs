//! What a server says and takes does not depend on the splits.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| postrider::smtp::fuzz::server_session(data));
