//! What the lab needs of the host, and the Debian packages that bring it.

use std::path::Path;

/// A file that has to be there and the package it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// A program's name, looked for where Debian puts programs.
    pub program: &'static str,
    /// The package that has it.
    pub package: &'static str,
}

const NEEDS: &[Need] = &[
    Need {
        program: "linux.uml",
        package: "user-mode-linux",
    },
    Need {
        program: "lvm",
        package: "lvm2",
    },
    Need {
        program: "dmsetup",
        package: "dmsetup",
    },
    Need {
        program: "thin_delta",
        package: "thin-provisioning-tools",
    },
    Need {
        program: "modprobe",
        package: "kmod",
    },
    Need {
        program: "ip",
        package: "iproute2",
    },
    Need {
        program: "sshd",
        package: "openssh-server",
    },
    Need {
        program: "ssh",
        package: "openssh-client",
    },
    Need {
        program: "mkfs.ext4",
        package: "e2fsprogs",
    },
    Need {
        program: "taskset",
        package: "util-linux",
    },
    Need {
        program: "mount",
        package: "mount",
    },
    Need {
        program: "udevadm",
        package: "udev",
    },
    Need {
        program: "systemd-analyze",
        package: "systemd",
    },
    Need {
        program: "sqlite3",
        package: "sqlite3",
    },
];

/// What is not installed; empty when the lab can run.
pub fn missing() -> Vec<Need> {
    NEEDS
        .iter()
        .copied()
        .filter(|need| !need.installed())
        .collect()
}

impl Need {
    /// Not through PATH: an ordinary user's has no sbin, and the guest's root does.
    pub fn installed(&self) -> bool {
        ["/usr/bin", "/usr/sbin", "/bin", "/sbin"]
            .iter()
            .any(|directory| Path::new(directory).join(self.program).exists())
    }
}

/// One sentence that says what to install, or nothing.
pub(crate) fn complaint() -> Option<String> {
    let mut packages: Vec<_> = missing().iter().map(|need| need.package).collect();
    packages.dedup();
    if packages.is_empty() {
        return None;
    }
    Some(format!(
        "the lab needs packages that are not installed: `cargo xtask test` installs them, or: apt-get install {}\n\
         (LVMSYNC_LAB=off skips lab tests)",
        packages.join(" ")
    ))
}
