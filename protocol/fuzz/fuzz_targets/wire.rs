//! The libFuzzer target. What it checks is in `check.rs`, which the crate's tests use as well.

#![no_main]

#[path = "../check.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|data: &[u8]| check::check(data));
