//! Names and makes session folders.

use profilemate_format::RAW_FOLDER;
use rustix::rand::{GetRandomFlags, getrandom};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A new session's name: `session_<YYYYmmdd_HHMMSS>_<6 hex>`, in UTC. Makes nothing.
pub fn new_name() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let seconds = libc::time_t::try_from(now.as_secs()).unwrap_or(0);
    // SAFETY: all zero is a value of this plain struct, and gmtime_r writes it through a valid pointer.
    let date = unsafe {
        let mut date: libc::tm = std::mem::zeroed();
        libc::gmtime_r(&raw const seconds, &raw mut date);
        date
    };
    let mut random = [0; 3];
    if getrandom(&mut random, GetRandomFlags::empty()).is_err() {
        let fallback = (u64::from(now.subsec_nanos()) ^ u64::from(std::process::id()) << 7).to_le_bytes();
        random.copy_from_slice(&fallback[..3]);
    }
    format!(
        "session_{:04}{:02}{:02}_{:02}{:02}{:02}_{:02x}{:02x}{:02x}",
        date.tm_year + 1900,
        date.tm_mon + 1,
        date.tm_mday,
        date.tm_hour,
        date.tm_min,
        date.tm_sec,
        random[0],
        random[1],
        random[2]
    )
}

/// Makes the folder of a session, private to its user, with its folder of raw logs. Returns whether this call made it
/// (`false`: it was there already).
///
/// # Errors
/// When it cannot be made, or what is there may have been put there by somebody else: a link, a folder of another user, or
/// one in which others may write.
pub fn ensure(session: &Path) -> io::Result<bool> {
    if let Some(parent) = session.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let made = private(session)?;
    private(&session.join(RAW_FOLDER))?;
    Ok(made)
}

/// Makes a folder that only its user enters, or makes sure that the one that is there is nobody else's.
fn private(folder: &Path) -> io::Result<bool> {
    match std::fs::DirBuilder::new().mode(0o700).create(folder) {
        // What the process takes from the modes of its files does not count here.
        Ok(()) => std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700)).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => ours(folder).map(|()| false),
        Err(error) => Err(error),
    }
}

fn ours(folder: &Path) -> io::Result<()> {
    let refused =
        |why: &str| Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("{}: {why}", folder.display())));
    let found = std::fs::symlink_metadata(folder)?;
    if !found.is_dir() {
        return refused("what is there is no folder");
    }
    if found.mode() & 0o022 != 0 {
        return refused("what is there is a folder in which others may write");
    }
    if found.uid() != rustix::process::geteuid().as_raw() && found.uid() != owner_of_new_files(folder)? {
        return refused("what is there is a folder of another user");
    }
    Ok(())
}

/// Who owns what this process makes there: network file systems may call root somebody else.
fn owner_of_new_files(folder: &Path) -> io::Result<u32> {
    let probe = folder.join(format!(".owner-{}", std::process::id()));
    let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&probe)?;
    let owner = made.metadata().map(|metadata| metadata.uid());
    let _ = std::fs::remove_file(&probe);
    owner
}

/// Makes a new session folder in `output_dir`.
pub fn create(output_dir: &Path) -> io::Result<PathBuf> {
    loop {
        let session = output_dir.join(new_name());
        if ensure(&session)? {
            return Ok(session);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_date_a_time_and_six_hex_digits() {
        let name = new_name();
        let parts: Vec<&str> = name.split('_').collect();
        assert_eq!(parts.iter().map(|part| part.len()).collect::<Vec<_>>(), [7, 8, 6, 6], "{name}");
        assert!(parts[1].starts_with("20") && u32::from_str_radix(parts[3], 16).is_ok(), "{name}");
    }

    #[test]
    fn two_sessions_in_one_second_have_two_folders_that_only_their_user_enters() {
        let output = tempfile::tempdir().unwrap();
        let (one, two) = (create(output.path()).unwrap(), create(output.path()).unwrap());
        assert_ne!(one, two);
        assert_eq!(std::fs::metadata(&one).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(one.join(RAW_FOLDER).is_dir());
        assert!(!ensure(&one).unwrap());
    }

    #[test]
    fn what_somebody_else_may_have_put_there_is_refused() {
        let output = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let session = output.path().join("session_20260101_000000_abcdef");
        let said = |session: &Path| ensure(session).unwrap_err().to_string();
        std::os::unix::fs::symlink(elsewhere.path(), &session).unwrap();
        assert!(said(&session).ends_with("what is there is no folder"), "{}", said(&session));
        std::fs::remove_file(&session).unwrap();
        std::fs::create_dir(&session).unwrap();
        std::fs::set_permissions(&session, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(said(&session).ends_with("others may write"), "{}", said(&session));
        std::fs::set_permissions(&session, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), session.join(RAW_FOLDER)).unwrap();
        assert!(said(&session).ends_with("what is there is no folder"), "{}", said(&session));
        assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0);
        std::fs::remove_file(session.join(RAW_FOLDER)).unwrap();
        assert!(!ensure(&session).unwrap());
        // Only root can give a folder away.
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&session, Some(65_534), None).unwrap();
            assert!(said(&session).ends_with("a folder of another user"), "{}", said(&session));
            assert_eq!(std::fs::read_dir(&session).unwrap().count(), 1, "only `raw`");
        }
    }
}
