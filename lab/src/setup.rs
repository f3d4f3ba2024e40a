//! What a guest has: disks, memory, a time limit, programs in its PATH, environment.

use std::path::PathBuf;
use std::time::Duration;

/// What a guest has. Starts as one without disks, with 512 MiB of memory and two minutes to live.
#[derive(Clone, Debug)]
pub struct Setup {
    pub(crate) disks: Vec<u64>,
    pub(crate) memory_mib: u64,
    pub(crate) time_limit: Duration,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) programs: Vec<PathBuf>,
    pub(crate) systemd: Option<String>,
}

impl Default for Setup {
    fn default() -> Self {
        Self::new()
    }
}

impl Setup {
    /// No disks, 512 MiB, two minutes.
    pub fn new() -> Self {
        Self {
            disks: Vec::new(),
            memory_mib: 512,
            time_limit: Duration::from_secs(120),
            env: Vec::new(),
            programs: Vec::new(),
            systemd: None,
        }
    }

    /// One more disk: a sparse file, all zeroes, of a size such as `1G`. Panics if it is no size.
    pub fn disk(mut self, size: &str) -> Self {
        match parse_size(size) {
            Some(bytes) => self.disks.push(bytes),
            None => panic!("no disk size: {size:?} (say 512M or 1G)"),
        }
        self
    }

    /// The guest's memory. What it writes outside of its disks is kept there too.
    pub fn memory_mib(mut self, mib: u64) -> Self {
        self.memory_mib = mib;
        self
    }

    /// How long one boot may take, from power-on to halt; then it is killed and has failed.
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = limit;
        self
    }

    /// A variable for everything that runs in the guest.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A program under its file name in the PATH of the guest and of all its ssh hosts. A test gives its
    /// `env!("CARGO_BIN_EXE_lvmsync")` here.
    pub fn program(mut self, path: impl Into<PathBuf>) -> Self {
        self.programs.push(path.into());
        self
    }

    /// Process 1 is a real systemd, with udev, and LVM as the host has it configured. The test runs when local file systems
    /// are mounted, and then the machine is shut down in good order. `before` is a shell script that runs first: what it
    /// writes to `/etc` is in force.
    pub fn systemd(mut self, before: &str) -> Self {
        self.systemd = Some(before.to_owned());
        self
    }
}

/// Bytes of `512`, `4K`, `64M`, `1G`, `2T`: powers of 1024, as LVM's tools count.
pub fn parse_size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        "T" | "t" => 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::parse_size;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("512"), Some(512));
        assert_eq!(parse_size("4K"), Some(4096));
        assert_eq!(parse_size("1G"), Some(1 << 30));
        assert_eq!(parse_size("1X"), None);
        assert_eq!(parse_size("G"), None);
        assert_eq!(parse_size("99999999999T"), None);
    }
}
