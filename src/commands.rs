//! Command lines: quoting for the far shell, and what users are told to run.
//!
//! Pure. Guarantees: what users are told can be pasted as it is into the shell that they sit at, whatever is in a name,
//! and whether it is about this machine or was asked for from another one.

use serde::{Deserialize, Serialize};

/// Quotes one word for a POSIX shell; the only place where words are made fit for a command line, of the far shell or of
/// the user.
///
/// Words that need no quotes get none, so that a forced command in `authorized_keys` sees them plain.
/// `None` for a word with a NUL, which no command line can carry.
pub fn quote(word: &str) -> Option<String> {
    let plain = |c: char| {
        c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/' | ':' | ',' | '@' | '+')
    };
    if word.contains('\0') {
        return None;
    }
    if !word.is_empty() && word.chars().all(plain) {
        return Some(word.to_owned());
    }
    // Inside single quotes nothing is special but the quote, which has to stand outside of them.
    Some(format!("'{}'", word.replace('\'', r"'\''")))
}

/// One word of a command that people will paste into a shell.
pub fn word(text: &str) -> String {
    // What no command line can carry cannot be typed either: then it is shown as it is.
    quote(text).unwrap_or_else(|| text.to_owned())
}

/// How the user reaches this machine from the one that they sit at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Via {
    /// What starts a command here: `ssh backup`. Empty: this is the machine that they sit at.
    pub shell: String,
    /// The lvmsync here, perhaps with `sudo -n` before it. Empty: `lvmsync`.
    pub program: String,
}

/// Who is told which commands to run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// From where.
    pub via: Via,
    /// The state directory that the run was given.
    pub state_dir: Option<String>,
}

impl Caller {
    /// Somebody at this machine.
    pub const HERE: Self = Self {
        via: Via {
            shell: String::new(),
            program: String::new(),
        },
        state_dir: None,
    };

    /// `lvmsync VERB WORDS…` for the shell of the user.
    pub fn command(&self, verb: &str, words: &[&str]) -> String {
        let program = match self.via.program.as_str() {
            "" => "lvmsync",
            program => program,
        };
        let mut line = format!("{program} {verb}");
        for text in words {
            line.push(' ');
            line.push_str(&word(text));
        }
        if let Some(directory) = &self.state_dir {
            line.push_str(" --state-dir ");
            line.push_str(&word(directory));
        }
        if self.via.shell.is_empty() {
            return line;
        }
        // The far shell reads it once more.
        format!("{} {}", self.via.shell, word(&line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_comes_through_one_shell_or_two_as_it_was() {
        let here = Caller {
            state_dir: Some("/s d".into()),
            ..Caller::default()
        };
        assert_eq!(
            here.command("apply", &["/u/mon day", "vg/copy"]),
            "lvmsync apply '/u/mon day' vg/copy --state-dir '/s d'"
        );
        let far = Caller {
            via: Via {
                shell: "ssh -p 2222 admin@backup".into(),
                program: "sudo -n lvmsync".into(),
            },
            state_dir: None,
        };
        let line = far.command("apply", &["it's", "vg/copy"]);
        let words = shlex::split(&line).unwrap();
        assert_eq!(words[..4], ["ssh", "-p", "2222", "admin@backup"]);
        assert_eq!(
            shlex::split(&words[4]).unwrap(),
            ["sudo", "-n", "lvmsync", "apply", "it's", "vg/copy"]
        );
    }
}
