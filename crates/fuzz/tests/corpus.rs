//! Every target over the corpus that fuzzing kept, and over pieces of it: what was found once is found here.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use std::fs;
use std::path::{Path, PathBuf};

use profilemate_fuzz::TARGETS;

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

/// The corpus, and what was found with it.
fn inputs(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let files = |folder: &str| fs::read_dir(fuzz().join(folder).join(target)).into_iter().flatten();
    let mut paths: Vec<PathBuf> =
        files("corpus").chain(files("findings")).map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), fs::read(&path).unwrap())).collect()
}

fn replay(target: &str) {
    let (_, run) = TARGETS.iter().find(|(name, _)| *name == target).unwrap();
    let inputs = inputs(target);
    assert!(!inputs.is_empty(), "there is no corpus of {target}");
    for (path, data) in inputs {
        // On a failure, this says which input it was.
        println!("{}", path.display());
        run(&data);
        run(&data[..data.len() / 2]);
        run(&data[data.len() / 3..]);
    }
    run(&[]);
}

macro_rules! replays {
    ($($target:ident),* $(,)?) => {
        $(
            #[test]
            fn $target() {
                replay(stringify!($target));
            }
        )*

        #[test]
        fn every_target_is_replayed_and_has_a_program() {
            let tested = [$(stringify!($target)),*];
            for (target, _) in TARGETS {
                assert!(tested.contains(&target), "{target} has no test here");
                let program = fuzz().join(format!("fuzz_targets/{target}.rs"));
                let text = fs::read_to_string(program).unwrap();
                assert!(text.contains(&format!("profilemate_fuzz::{target}::run(")), "{target}");
            }
            assert_eq!(tested.len(), TARGETS.len());
        }
    };
}

replays!(head, segment, record, session, outputs, settings, vllm_log, vllm_log_line, condition, command_line);
