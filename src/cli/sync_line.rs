//! A run that leads on where this one cannot, as one line for the user's shell: mostly the sync that needs no list of changes.
//!
//! Pure. Guarantees: it has every option that was given and without which it could be refused, or not get through; none that
//! may stand in its way now, such as the `--undo` of a run that was cut.

use super::apply::{StateArgs, WriteArgs};
use super::send::{RETRIES, RemoteArgs};
use super::snapshot::SnapshotArgs;
use super::timeout::TimeoutArgs;
use crate::dm::making::Making;

/// A line that is put together.
pub(super) struct SyncLine {
    words: Vec<String>,
}

impl SyncLine {
    /// With these two ends, as the user names them.
    pub(super) fn of(source: &str, destination: &str) -> Self {
        let words = vec![source.to_owned(), destination.to_owned()];
        Self { words }
    }

    /// How the far end is reached.
    pub(super) fn way(mut self, remote: &RemoteArgs) -> Self {
        if remote.rsh != "ssh" {
            self.put(&["-e", &remote.rsh]);
        }
        if remote.sudo {
            self.put(&["--sudo"]);
        }
        if remote.remote_path != "lvmsync" {
            self.put(&["--remote-path", &remote.remote_path]);
        }
        if remote.retries != RETRIES {
            self.put(&["--retries", &remote.retries.to_string()]);
        }
        let timeout = remote.timeout.get();
        if timeout != TimeoutArgs::default().get() {
            let seconds = timeout.map_or(0, |timeout| timeout.as_secs());
            self.put(&["--timeout", &seconds.to_string()]);
        }
        self
    }

    /// How a live SRC is read.
    pub(super) fn snapshot(mut self, snapshot: &SnapshotArgs) -> Self {
        let Some(wish) = snapshot.wish() else {
            self.put(&["--no-snapshot"]);
            return self;
        };
        if let Some(size_bytes) = wish.size_bytes {
            self.put(&["--snapshot-size", &size_bytes.to_string()]);
        }
        if let Some(name) = wish.keep {
            self.put(&["--keep-snapshot", name]);
        }
        self
    }

    /// What may be done to DEST, and how.
    pub(super) fn write(mut self, write: &WriteArgs) -> Self {
        if write.allow_smaller {
            self.put(&["--allow-smaller"]);
        }
        if write.allow_in_use {
            self.put(&["--allow-in-use"]);
        }
        match &write.create {
            None => {}
            Some(Making::Auto) => self.put(&["--create"]),
            Some(making) => self.put(&[&format!("--create={making}")]),
        }
        if write.atomic {
            self.put(&["--atomic"]);
        }
        if let Some(spool) = &write.spool {
            self.put(&["--spool", &spool.to_string_lossy()]);
        }
        self
    }

    /// Whether it is to be read once more in the end.
    pub(super) fn verify(mut self, verify: bool) -> Self {
        if verify {
            self.put(&["--verify"]);
        }
        self
    }

    /// Only what this delta changed.
    pub(super) fn only(mut self, delta: Option<&str>) -> Self {
        if let Some(delta) = delta {
            self.put(&["--only", delta]);
        }
        self
    }

    /// The whole line.
    pub(super) fn line(self, verb: &str, state: &StateArgs) -> String {
        let words: Vec<&str> = self.words.iter().map(String::as_str).collect();
        state.caller().command(verb, &words)
    }

    fn put(&mut self, words: &[&str]) {
        self.words.extend(words.iter().map(|&word| word.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::cli::sync::SyncArgs;
    use crate::cli::{Cli, Verb};

    fn parsed(words: &[String]) -> Box<SyncArgs> {
        match Cli::try_parse_from(words).unwrap().verb {
            Verb::Sync(args) => args,
            other => panic!("{other:?}"),
        }
    }

    fn line(options: &str) -> String {
        let words = shlex::split(&format!("lvmsync sync vg/data h:vg/copy {options}"));
        parsed(&words.unwrap()).line("vg/data")
    }

    #[test]
    fn it_has_the_options_that_decide_whether_it_works_and_no_others() {
        let bare = "lvmsync sync vg/data h:vg/copy";
        for options in [
            "",
            " -e 'ssh -p 2' --sudo --remote-path /opt/l",
            " --retries 0 --timeout 0",
            " --retries 20 --timeout 600",
            " --no-snapshot",
            " --snapshot-size 1073741824 --keep-snapshot s1",
            " --allow-smaller --allow-in-use",
            " --create",
            " '--create=thin:pool2'",
            " --atomic --spool '/s p'",
            " --verify",
            " --state-dir /s",
        ] {
            let expected = format!("{bare}{options}");
            assert_eq!(line(options), expected);
            // It can be run as it is, and says the same once more.
            let again = shlex::split(&expected).unwrap();
            assert_eq!(parsed(&again).line("vg/data"), expected);
        }
        // What would be refused of a destination that was written to, or only takes time.
        let needless = "--undo u --overwrite --force --bwlimit 1M -z zstd --json -v";
        assert_eq!(line(needless), bare);
    }
}
