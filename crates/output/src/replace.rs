//! Files that appear whole or not at all: each is written under another name and renamed when all are complete.

use std::fs::{self, DirBuilder, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::Error;

/// Bytes gathered before they are written.
const BUFFER_BYTES: usize = 256 << 10;

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_path_buf();
    |cause| Error::Write { path, cause }
}

/// Makes a file that only its user reads. What is there under its name is not written to, be it a link that somebody else
/// put there: it is what a process left that was killed, and goes.
fn create(path: &Path) -> std::io::Result<File> {
    let mut options = File::options();
    options.write(true).create_new(true).mode(0o600);
    let file = match options.open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            fs::remove_file(path)?;
            options.open(path)?
        }
        other => other?,
    };
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    Ok(file)
}

/// Makes a folder that only its user enters, or takes the one that is there; a link is none.
fn create_folder(path: &Path) -> std::io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => fs::set_permissions(path, fs::Permissions::from_mode(0o700)),
        Err(error)
            if error.kind() == std::io::ErrorKind::AlreadyExists && fs::symlink_metadata(path)?.is_dir() =>
        {
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// A file that is being written.
pub(crate) struct NewFile {
    path: PathBuf,
    temporary: PathBuf,
    writer: BufWriter<File>,
    kept: bool,
}

impl NewFile {
    /// Begins a file of this name in `folder`.
    pub(crate) fn create(folder: &Path, name: &str) -> Result<Self, Error> {
        let path = folder.join(name);
        let temporary = folder.join(format!(".{name}.tmp"));
        let file = create(&temporary).map_err(failed(&path))?;
        Ok(Self { path, temporary, writer: BufWriter::with_capacity(BUFFER_BYTES, file), kept: false })
    }

    /// The same in a folder of this name in `folder`, which is made if it is not there; an empty name is `folder` itself.
    pub(crate) fn create_in(folder: &Path, inner: &str, name: &str) -> Result<Self, Error> {
        if inner.is_empty() {
            return Self::create(folder, name);
        }
        let folder = folder.join(inner);
        create_folder(&folder).map_err(failed(&folder))?;
        Self::create(&folder, name)
    }

    /// Appends.
    #[inline]
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.writer.write_all(bytes).map_err(failed(&self.path))
    }

    /// Where it will be.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Everything is written; it still has its other name.
    pub(crate) fn finish(&mut self) -> Result<(), Error> {
        self.writer.flush().map_err(failed(&self.path))
    }

    /// What to say when what should go into it cannot be made.
    pub(crate) fn failed(&self, cause: std::io::Error) -> Error {
        failed(&self.path)(cause)
    }

    /// Takes the place of what was there.
    pub(crate) fn keep(mut self) -> Result<(), Error> {
        fs::rename(&self.temporary, &self.path).map_err(failed(&self.path))?;
        self.kept = true;
        Ok(())
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.writer.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.writer.flush()
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.kept {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Lets one process at a time write the tables of a folder. A file system without locks lets all.
pub(crate) fn one_at_a_time(folder: &Path) -> Result<File, Error> {
    let handle = File::open(folder).map_err(failed(folder))?;
    let _ = flock(&handle, FlockOperation::LockExclusive);
    Ok(handle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_in_the_way_is_not_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let victim = folder.path().join("victim");
        fs::write(&victim, "untouched").unwrap();
        let path = folder.path().join("table.csv");
        for name in [".table.csv.tmp", "table.csv"] {
            let planted = folder.path().join(name);
            for hard in [true, false] {
                let _ = fs::remove_file(&path);
                if hard {
                    fs::hard_link(&victim, &planted).unwrap();
                } else {
                    std::os::unix::fs::symlink(&victim, &planted).unwrap();
                }
                let mut file = NewFile::create(folder.path(), "table.csv").unwrap();
                file.append(b"new").unwrap();
                file.finish().unwrap();
                file.keep().unwrap();
                assert_eq!(fs::read(&victim).unwrap(), b"untouched", "{name}");
                let made = fs::symlink_metadata(&path).unwrap();
                assert!(made.is_file() && made.permissions().mode() & 0o777 == 0o600, "{name}");
            }
        }
    }

    #[test]
    fn what_was_there_stays_until_the_new_file_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table.csv");
        fs::write(&path, "old").unwrap();
        let mut file = NewFile::create(folder.path(), "table.csv").unwrap();
        file.append(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        drop(file);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "the unfinished file is gone");
        let mut file = NewFile::create(folder.path(), "table.csv").unwrap();
        file.append(b"new").unwrap();
        file.finish().unwrap();
        file.keep().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }
}
