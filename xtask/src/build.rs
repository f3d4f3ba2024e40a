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

/// Builds the program as it is given to users: for release, with everything in one file, so that it runs on whatever
/// distribution the far end has, and starts in less time. Says where it is.
pub(crate) fn for_users() -> lab::Result<PathBuf> {
    let host = host()?;
    let variable = host.to_uppercase().replace('-', "_");
    let status = cargo()
        .args(["build", "--quiet", "--package", "lvmsync"])
        .args(["--bin", "lvmsync", "--release", "--target", &host])
        .env(
            format!("CARGO_TARGET_{variable}_RUSTFLAGS"),
            "-C target-feature=+crt-static",
        )
        .status()
        .map_err(|e| Error::new(format!("cannot run cargo: {e}")))?;
    if !status.success() {
        let reason = "lvmsync does not build in one file. Where the static C library is missing (glibc-static, which \
                      Debian has in libc6-dev), use: cargo build --release";
        return Err(Error::new(reason));
    }
    Ok(target()?.join(host).join("release").join("lvmsync"))
}

/// The name that rustc has for this machine.
fn host() -> lab::Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc)
        .arg("-vV")
        .output()
        .map_err(|e| Error::new(format!("cannot run rustc: {e}")))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned)
        .ok_or_else(|| Error::new("rustc -vV names no host"))
}
