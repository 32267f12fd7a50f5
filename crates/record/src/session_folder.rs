//! Names and makes session folders.

use profilemate_format::RAW_FOLDER;
use rustix::rand::{GetRandomFlags, getrandom};
use std::io;
use std::os::unix::fs::DirBuilderExt;
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
pub fn ensure(session: &Path) -> io::Result<bool> {
    if let Some(parent) = session.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let mut builder = std::fs::DirBuilder::new();
    builder.mode(0o700);
    let made = match builder.create(session) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        Err(error) => return Err(error),
    };
    match builder.create(session.join(RAW_FOLDER)) {
        Ok(()) => Ok(made),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(made),
        Err(error) => Err(error),
    }
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
        use std::os::unix::fs::PermissionsExt;
        let output = tempfile::tempdir().unwrap();
        let (one, two) = (create(output.path()).unwrap(), create(output.path()).unwrap());
        assert_ne!(one, two);
        assert_eq!(std::fs::metadata(&one).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(one.join(RAW_FOLDER).is_dir());
        assert!(!ensure(&one).unwrap());
    }
}
