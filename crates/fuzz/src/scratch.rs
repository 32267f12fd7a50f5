//! A folder for the files of one run of a target: in memory where there is such a place, and empty again afterwards.

use std::cell::OnceCell;
use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

thread_local! {
    static FOLDER: OnceCell<TempDir> = const { OnceCell::new() };
}

/// Gives `work` an empty folder, and empties it.
pub(crate) fn with_folder<T>(work: impl FnOnce(&Path) -> T) -> T {
    FOLDER.with(|folder| {
        let folder = folder.get_or_init(|| {
            let in_memory = PathBuf::from("/dev/shm");
            let parent = if in_memory.is_dir() { in_memory } else { std::env::temp_dir() };
            tempfile::Builder::new().prefix("profilemate-fuzz-").tempdir_in(parent).expect("a folder for files")
        });
        let result = work(folder.path());
        clear(folder.path());
        result
    })
}

fn clear(folder: &Path) {
    for entry in fs::read_dir(folder).expect("the folder is ours").flatten() {
        let path = entry.path();
        let removed = if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        removed.expect("its files are ours");
    }
}
