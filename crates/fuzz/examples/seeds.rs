//! Writes what fuzzing begins with: the golden sessions and logs, as the targets take them.
//!
//! `cargo run -p profilemate-fuzz --example seeds -- FOLDER` makes a folder for each target there.

#![allow(clippy::unwrap_used, reason = "an example")]

use std::fs;
use std::path::{Path, PathBuf};

use profilemate_fuzz::pieces::{of_head, of_log};

/// Most records of a log that go into a seed.
const RECORDS: usize = 60;

fn sorted(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

fn main() {
    let output = PathBuf::from(std::env::args().nth(1).unwrap());
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let put = |target: &str, name: &str, bytes: &[u8]| {
        fs::create_dir_all(output.join(target)).unwrap();
        fs::write(output.join(target).join(name), bytes).unwrap();
    };
    for session in sorted(&root.join("crates/session/tests/golden/v1")) {
        let session_name = session.file_name().unwrap().to_string_lossy().into_owned();
        let raw = sorted(&session.join("raw"));
        let heads: Vec<&PathBuf> = raw.iter().filter(|path| path.extension().unwrap() == "head").collect();
        let mut script = Vec::new();
        for (number, path) in (0..).zip(heads.into_iter().take(4)) {
            let head = fs::read(path).unwrap();
            let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
            let segments: Vec<(u8, Vec<u8>)> = raw
                .iter()
                .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(&format!("{stem}.0")))
                .take(2)
                .map(|path| fs::read(path).unwrap())
                .map(|bytes| (bytes[32], bytes))
                .collect();
            script.extend(of_log(&head, &segments, number, RECORDS));
            let name = format!("{session_name}-{stem}");
            put("head", &name, &of_head(&head, 600));
            if let Some((_, segment)) = segments.first() {
                let mut bytes = vec![3, 200, 0];
                bytes.extend_from_slice(&segment[..segment.len().min(64 + 12 * 64)]);
                put("segment", &name, &bytes);
                for slot in segment[64..].chunks_exact(64).take(12) {
                    put("record", &format!("{name}-{}", slot[16]), &[&[0, 0], &slot[..56]].concat());
                }
            }
        }
        put("session", &session_name, &[&[1, 100, 1], &script[..]].concat());
        put("outputs", &session_name, &[&[2 | 4 | 8], &script[..]].concat());
    }
    for log in sorted(&root.join("crates/import/tests/logs")) {
        let text = fs::read_to_string(&log).unwrap();
        let name = log.file_name().unwrap().to_string_lossy().into_owned();
        let told: Vec<&str> = text.lines().filter(|line| line.contains("Iteration(")).take(8).collect();
        let about: Vec<&str> =
            text.lines().filter(|line| line.contains("engine") && line.len() < 2000).take(2).collect();
        let lines = [about, told].concat();
        // The end of 2026.
        put("vllm_log", &name, &[&[0x7f, 0x0b, 0x95, 0x6a], lines.join("\n").as_bytes()].concat());
        for (number, line) in lines.iter().enumerate() {
            put("vllm_log_line", &format!("{name}-{number}"), line.as_bytes());
        }
    }
    let json = r#"{"message": "Iteration(5): 1 context requests, 30 context tokens, 7 generation requests, 7 generation tokens, iteration elapsed time: 10.99 ms (dummy)", "asctime": "2026-11-24 20:31:05,123", "processName": "EngineCore_DP0", "process": 7}"#;
    put("vllm_log_line", "json", json.as_bytes());
    put("vllm_log", "json", &[&[0x7f, 0x0b, 0x95, 0x6a], json.as_bytes()].concat());
    let engine = "Engine 001: Iteration(6): 1 context requests, 30 context tokens, 7 generation requests, 7 generation tokens, iteration elapsed time: 10.99 ms, GPU KV cache usage: 12.3%, encoder inputs: 4, encoder output embeddings: 3520";
    put(
        "vllm_log_line",
        "encoder",
        format!("(APIServer pid=9) INFO 11-24 20:31:05 [loggers.py:352] {engine}").as_bytes(),
    );
    put("settings", "file", b"log_interval = 7\nmax_bytes = \"3M\"\nverbose = true\nnonsense = 1\ntiming = \"lightweight\"\noutput_dir = \"/x\"\n");
    put(
        "settings",
        "variables",
        b"max_bytes = 5\n\x00\x001\n\x01true\n\x02off\n\x0464M\n\x061G\n\x08/tmp/x\n\x0aevents\n",
    );
    for (number, text) in [
        "decode.p99>5%",
        " throughput.tokens_per_sec < -3 % ",
        "gpu.idle_pct > 0.5pp",
        "decodes.p98 > 5%",
        "ttft.p50 > +.5e%",
        "scheduling",
        "FULL num_tokens=8 num_reqs=8 uniform=1 has_lora=0",
        "NONE num_tokens=17",
        "\u{202e}=cmd|' /C calc'!A0",
    ]
    .iter()
    .enumerate()
    {
        put("condition", &number.to_string(), text.as_bytes());
    }
    for (number, text) in [
        "vllm\0serve\0m\0--api-key\0s1\0s2\0--port\x001",
        "bash\0-c\0HF_TOKEN=x vllm serve m --api-key y",
        "{\"api_key\": \"s\\\"t\", \"a\": [1, {\"password\": \"x\"}]}",
        "https://me:pw@host/x?token=t&b=2,http://d:e@f:1/g",
        "os.environ[\"HF_TOKEN\"] = \"s t\"\0Authorization: Bearer abc",
        "{\\\"apiKey\\\":\\\"s\\\",\\\"b\\\":1}",
    ]
    .iter()
    .enumerate()
    {
        for form in 0..8 {
            put("command_line", &format!("{number}-{form}"), &[&[1, form], text.as_bytes()].concat());
        }
    }
}
