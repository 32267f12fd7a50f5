#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| profilemate_fuzz::command_line::run(data));
