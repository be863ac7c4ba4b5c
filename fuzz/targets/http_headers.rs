#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| lexikon_auth_fuzz::http_headers(data));
