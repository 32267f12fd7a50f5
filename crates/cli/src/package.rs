//! Finds the Python package that belongs to this executable.

use std::path::{Path, PathBuf};

use anyhow::bail;

/// Names the package, where it is not beside the executable.
const VARIABLE: &str = "PROFILEMATE_PACKAGE";

/// Folder in the package that goes on PYTHONPATH.
const SITE_FOLDER: &str = "sitecustomize";

/// Folder in the package that holds the executable when a wheel installed it.
const BINARY_FOLDER: &str = "_bin";

/// The package, in a checkout of the repository.
const IN_REPOSITORY: &str = "python/profilemate";

fn is_package(folder: &Path) -> bool {
    folder.join(SITE_FOLDER).is_dir()
}

/// The folder of the Python package.
pub(crate) fn find() -> anyhow::Result<PathBuf> {
    let executable = std::env::current_exe()?;
    let executable = executable.canonicalize().unwrap_or(executable);
    if let Some(folder) = executable.parent()
        && folder.file_name().is_some_and(|name| name == BINARY_FOLDER)
        && let Some(package) = folder.parent()
        && is_package(package)
    {
        return Ok(package.to_path_buf());
    }
    if let Some(given) = std::env::var_os(VARIABLE).filter(|given| !given.is_empty()) {
        let folder = std::path::absolute(PathBuf::from(given))?;
        if is_package(&folder) {
            return Ok(folder);
        }
        bail!(
            "{VARIABLE} names {}, which is not the Python package (it has no folder `{SITE_FOLDER}`): \
             set it to the installed package `profilemate`, or unset it",
            folder.display()
        );
    }
    for folder in executable.ancestors() {
        let package = folder.join(IN_REPOSITORY);
        if is_package(&package) {
            return Ok(package);
        }
    }
    bail!(
        "cannot find the Python package that belongs to {}: install ProfileMate with pip, \
         or set {VARIABLE} to the folder of the package",
        executable.display()
    )
}

/// The folder that goes on PYTHONPATH.
pub(crate) fn site_folder() -> anyhow::Result<PathBuf> {
    Ok(find()?.join(SITE_FOLDER))
}
