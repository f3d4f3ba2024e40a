//! Installs what the project's commands need from Debian's packages, and says what is missing where it cannot.

use lab::{Error, Need};
use std::io::IsTerminal;
use std::process::Command;

/// The fuzzers' engine is written in C++.
pub(crate) const FOR_FUZZERS: Need = Need {
    program: "g++",
    package: "g++",
};

/// `tests/kills.rs` has a sshd and links of its own. The lab needs the same.
pub(crate) const FOR_KILLS: [Need; 3] = [
    Need {
        program: "sshd",
        package: "openssh-server",
    },
    Need {
        program: "ssh",
        package: "openssh-client",
    },
    Need {
        program: "ip",
        package: "iproute2",
    },
];

/// The benchmarks compare with these.
pub(crate) const FOR_BENCH: [Need; 9] = [
    Need {
        program: "rsync",
        package: "rsync",
    },
    Need {
        program: "casync",
        package: "casync",
    },
    Need {
        program: "qemu-img",
        package: "qemu-utils",
    },
    Need {
        program: "nbdcopy",
        package: "libnbd-bin",
    },
    Need {
        program: "xdelta3",
        package: "xdelta3",
    },
    Need {
        program: "zstd",
        package: "zstd",
    },
    Need {
        program: "lz4",
        package: "lz4",
    },
    Need {
        program: "cmp",
        package: "diffutils",
    },
    Need {
        program: "losetup",
        package: "mount",
    },
];

/// `tests/thin_metadata.rs` compares with these. The lab needs them, too.
pub(crate) const FOR_THIN: [Need; 2] = [
    Need {
        program: "thin_delta",
        package: "thin-provisioning-tools",
    },
    Need {
        program: "thin_restore",
        package: "thin-provisioning-tools",
    },
];

/// `tests/view` and `tests/lab_view.rs` read and write exports with these clients, and the recipes look into a filesystem.
pub(crate) const FOR_VIEW: [Need; 6] = [
    Need {
        program: "nbd-client",
        package: "nbd-client",
    },
    Need {
        program: "nbdinfo",
        package: "libnbd-bin",
    },
    Need {
        program: "nbdcopy",
        package: "libnbd-bin",
    },
    Need {
        program: "qemu-img",
        package: "qemu-utils",
    },
    Need {
        program: "qemu-io",
        package: "qemu-utils",
    },
    Need {
        program: "debugfs",
        package: "e2fsprogs",
    },
];

/// Installs what the lab needs, and `more`. Fails with the whole list when it may not.
pub(crate) fn install(more: &[Need]) -> lab::Result<()> {
    let mut needs = lab::missing();
    needs.extend(more);
    install_these(&needs)
}

/// Installs those of `needs` that are missing. Fails with the whole list when it may not.
pub(crate) fn install_these(needs: &[Need]) -> lab::Result<()> {
    let missing = || {
        let missing = needs.iter().copied().filter(|need| !need.installed());
        missing.collect::<Vec<Need>>()
    };
    let wanted = names(&missing());
    if wanted.is_empty() {
        return Ok(());
    }
    let list = wanted.join(" ");
    if !on_path("apt-get") {
        return Err(Error::new(format!(
            "not installed, and this is no Debian machine on which to install it: {}",
            programs(&missing())
        )));
    }
    let root = rustix::process::geteuid().is_root();
    if !root && !on_path("sudo") {
        return Err(Error::new(format!(
            "not installed: {list}. As root: apt-get install {list}"
        )));
    }
    println!("Installing Debian packages: {list}");
    if !root {
        println!("sudo may ask for your password, since Debian's packages are root's to install.");
    }
    if wanted.contains(&"openssh-server") {
        println!(
            "openssh-server also starts a sshd on this machine; `systemctl disable --now ssh` ends that."
        );
    }
    // Without a fresh list the versions in it may be gone, but a fresh list takes long and is seldom needed.
    let installed = apt(root, &wanted) || (apt(root, &["update"]) && apt(root, &wanted));
    let still = names(&missing());
    if !installed || !still.is_empty() {
        return Err(Error::new(format!(
            "apt-get could not install everything; missing: {}",
            if still.is_empty() { &wanted } else { &still }.join(" ")
        )));
    }
    Ok(())
}

/// `update`, or the packages to install.
fn apt(root: bool, what: &[&str]) -> bool {
    let mut command = if root {
        Command::new("env")
    } else {
        Command::new("sudo")
    };
    if !root && !std::io::stdin().is_terminal() {
        command.arg("--non-interactive");
    }
    command.args([
        "DEBIAN_FRONTEND=noninteractive",
        "apt-get",
        "--quiet",
        "--yes",
    ]);
    match what {
        ["update"] => command.arg("update"),
        packages => command
            .args(["install", "--no-install-recommends"])
            .args(packages),
    };
    command.status().is_ok_and(|status| status.success())
}

/// Parts of Rust that a small installation leaves out.
pub(crate) fn components() -> lab::Result<()> {
    for (subcommand, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
        let there = || {
            let output = crate::build::cargo()
                .args([subcommand, "--version"])
                .output();
            output.is_ok_and(|output| output.status.success())
        };
        if there() {
            continue;
        }
        println!("Installing a part of Rust: {component}");
        let _ = Command::new("rustup")
            .args(["component", "add", component])
            .status();
        if !there() {
            return Err(Error::new(format!(
                "`cargo {subcommand}` does not run; install it with: rustup component add {component}"
            )));
        }
    }
    Ok(())
}

fn names(needs: &[Need]) -> Vec<&'static str> {
    let mut names: Vec<_> = needs.iter().map(|need| need.package).collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn programs(needs: &[Need]) -> String {
    let all: Vec<_> = needs
        .iter()
        .map(|need| format!("{} (package {})", need.program, need.package))
        .collect();
    all.join(", ")
}

/// True when there is such a program.
pub(crate) fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}
