//! Finds the newest session of an output folder.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::Error;

/// Whether a folder is one of this user's: in a folder where everybody may write, others could put one in front.
fn is_ours(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|found| found.is_dir() && found.uid() == rustix::process::geteuid().as_raw())
}

/// The newest of this user's sessions in an output folder: names of sessions begin with their time.
///
/// # Errors
/// When the folder cannot be listed, or holds no session.
pub fn newest(output_dir: &Path) -> Result<PathBuf, Error> {
    std::fs::read_dir(output_dir)
        .map_err(|cause| Error::Unlisted { path: output_dir.to_path_buf(), cause })?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("session_")))
        .filter(|path| is_ours(path))
        .max()
        .ok_or_else(|| Error::NoSession(output_dir.to_path_buf()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_name_wins_and_nothing_else_counts() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(newest(folder.path()), Err(Error::NoSession(_))));
        assert!(matches!(newest(&folder.path().join("nowhere")), Err(Error::Unlisted { .. })));
        for name in ["session_20260102_000000_aaaaaa", "session_20260101_000000_bbbbbb", "z"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        assert!(newest(folder.path()).unwrap().ends_with("session_20260102_000000_aaaaaa"));
        // A link, and a file, in front of it.
        std::os::unix::fs::symlink("/", folder.path().join("session_99990101_000000_cccccc")).unwrap();
        std::fs::write(folder.path().join("session_99980101_000000_dddddd"), "").unwrap();
        assert!(newest(folder.path()).unwrap().ends_with("session_20260102_000000_aaaaaa"));
    }
}
