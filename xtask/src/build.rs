//! Where the project and its build are, and building the program.

use lab::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The project's directory.
pub(crate) fn root() -> &'static Path {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask)
}

/// Cargo, in the project's directory.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env!("CARGO"));
    command.current_dir(root());
    command
}

/// The target directory that this program runs from.
pub(crate) fn target() -> lab::Result<PathBuf> {
    let exe = std::env::current_exe().map_err(|e| Error::new(format!("where am I? {e}")))?;
    exe.ancestors()
        .find(|path| path.join("CACHEDIR.TAG").exists())
        .map(Path::to_owned)
        .ok_or_else(|| Error::new("xtask does not run from a target directory"))
}

/// Builds the program and says where it is.
pub(crate) fn lvmsync(profile: &str) -> lab::Result<PathBuf> {
    let status = cargo()
        .args(["build", "--quiet", "--package", "lvmsync"])
        .args(["--bin", "lvmsync", "--profile", profile])
        .status()
        .map_err(|e| Error::new(format!("cannot run cargo: {e}")))?;
    if !status.success() {
        return Err(Error::new("lvmsync does not build"));
    }
    let directory = if profile == "dev" { "debug" } else { profile };
    Ok(target()?.join(directory).join("lvmsync"))
}
