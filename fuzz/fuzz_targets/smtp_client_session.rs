//! Whatever a server says, each transaction ends once.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| postrider::smtp::fuzz::client_session(data));
