//! RSA in lanes gives what aws-lc-rs gives, for the keys and digests that the input chooses.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| postrider::dkim::fuzz::fuzz_rsa(data));
