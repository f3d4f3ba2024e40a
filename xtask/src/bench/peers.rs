//! What a user would pick instead: programs of Debian's packages, and others where their user has built them.
//!
//! A peer that cannot be had is left out, with a word on it: the others are measured all the same.

use crate::packages;
use lab::Error;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Those that Debian has not, by the names that `--peer` takes.
const BY_PATH: [&str; 4] = ["original", "bdsync", "blocksync-fast", "thin_send"];

/// The peers that were given by path.
#[derive(Debug, Default)]
pub(crate) struct Peers(BTreeMap<String, PathBuf>);

impl Peers {
    /// Of `NAME=PATH`.
    pub(crate) fn parse(words: &[String]) -> lab::Result<Self> {
        let mut peers = BTreeMap::new();
        for word in words {
            let (name, path) = word
                .split_once('=')
                .filter(|(name, path)| BY_PATH.contains(name) && !path.is_empty())
                .ok_or_else(|| {
                    let known = BY_PATH.join(", ");
                    Error::new(format!(
                        "--peer {word}: say NAME=PATH, with NAME of {known}"
                    ))
                })?;
            peers.insert(name.to_owned(), PathBuf::from(path));
        }
        Ok(Self(peers))
    }

    pub(crate) fn given(&self, name: &str) -> Option<&Path> {
        self.0.get(name).map(PathBuf::as_path)
    }
}

/// Installs the peers that Debian has.
pub(crate) fn install() {
    if packages::install_these(&packages::FOR_BENCH).is_ok() {
        return;
    }
    // One that there is not would keep away all others.
    for need in packages::FOR_BENCH {
        if let Err(error) = packages::install_these(&[need]) {
            println!("{error}");
        }
    }
}

/// True when the program is there; says that its lines are left out where it is not.
pub(crate) fn there(program: &str) -> bool {
    let there = packages::on_path(program);
    if !there {
        println!("  {program}: not installed, left out");
    }
    there
}

/// What went over the wire, both ways, by `rsync --stats`.
pub(crate) fn rsync_wire(stats: &str) -> Option<u64> {
    let field = |name: &str| {
        let line = stats.lines().find_map(|line| line.strip_prefix(name))?;
        let digits: String = line.chars().filter(char::is_ascii_digit).collect();
        digits.parse::<u64>().ok()
    };
    Some(field("Total bytes sent:")? + field("Total bytes received:")?)
}

/// What went over the wire, both ways, by `lvmsync --json`.
pub(crate) fn our_wire(json: &str) -> Option<u64> {
    let summary: serde_json::Value = serde_json::from_str(json).ok()?;
    summary["wire_bytes"].as_u64()
}

#[cfg(test)]
mod tests {
    use super::{Peers, our_wire, rsync_wire};
    use std::path::Path;

    #[test]
    fn rsync_says_what_it_sent_and_received() {
        let stats = "\n\
            Number of files: 1 (reg: 1)\n\
            Literal data: 21,475,328 bytes\n\
            File list transfer time: 0.000 seconds\n\
            Total bytes sent: 22,000,123\n\
            Total bytes received: 1,048,653\n\
            \n\
            sent 22,000,123 bytes  received 1,048,653 bytes  2,095,343.27 bytes/sec\n";
        assert_eq!(rsync_wire(stats), Some(23_048_776));
        let plain = "Total bytes sent: 12\nTotal bytes received: 3\n";
        assert_eq!(rsync_wire(plain), Some(15));
        assert_eq!(rsync_wire("Total bytes sent: 12\n"), None);
    }

    #[test]
    fn ours_says_what_the_session_took() {
        assert_eq!(our_wire(r#"{"bytes_sent":5,"wire_bytes":77}"#), Some(77));
        assert_eq!(our_wire(r#"{"bytes_sent":5}"#), None);
        assert_eq!(our_wire(""), None);
    }

    #[test]
    fn peers_are_known_by_name() {
        let words = ["bdsync=/opt/bdsync", "original=/opt/a=b"].map(str::to_owned);
        let peers = Peers::parse(&words).unwrap();
        assert_eq!(peers.given("bdsync"), Some(Path::new("/opt/bdsync")));
        assert_eq!(peers.given("original"), Some(Path::new("/opt/a=b")));
        assert_eq!(peers.given("blocksync-fast"), None);
        for wrong in ["bdsync", "bdsync=", "rsync=/usr/bin/rsync"] {
            assert!(Peers::parse(&[wrong.to_owned()]).is_err(), "{wrong}");
        }
    }
}
