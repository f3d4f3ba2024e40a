//! The command line: parse, run, report, exit code.
//!
//! Guarantees: stdout carries data or the listing that was asked for and nothing else; every way out has
//! its documented exit code; errors are printed once, as a chain, by [`run`].

mod apply;
mod attempts;
mod chain;
mod classic;
mod combine;
mod compare;
mod compare_far;
mod compare_found;
mod compare_only;
mod diff;
mod diff_json;
mod doctor;
mod elsewhere;
mod history;
mod hold;
mod inspect;
mod inspect_chain;
mod inspect_map;
mod invert;
mod log;
mod migrate;
mod output;
mod points;
mod prestart;
mod preview;
mod progress;
mod pull;
mod pull_far;
mod remote;
mod replicate;
mod rollback;
mod send;
mod send_here;
mod serve;
mod snapshot;
mod state;
mod status;
mod summary;
mod sync;
mod sync_far;
mod sync_line;
mod thin;
mod timeout;
mod track;
mod verify;
mod view;
mod watched;

use std::ffi::OsString;

use clap::{Args, Parser, Subcommand};

use crate::cancel::Cancel;
use crate::error::{Error, ExitCode, Result};
use progress::{ProgressMode, Terminal};

const VERBS: [&str; 20] = [
    "diff",
    "send",
    "apply",
    "sync",
    "compare",
    "migrate",
    "replicate",
    "status",
    "history",
    "rollback",
    "combine",
    "invert",
    "view",
    "inspect",
    "state",
    "doctor",
    "track",
    "serve",
    "help",
    points::VERB,
];

const AFTER_HELP: &str = "\
Examples:
  First copy of a volume, from a snapshot, over ssh:
    lvcreate -s -pr -L 10G -n s1 vg/data
    lvmsync send vg/s1 backup:/dev/vg/data

  What changed since, from a second snapshot (the first can be removed afterwards):
    lvcreate -s -pr -L 10G -n s2 vg/data
    lvmsync send --from vg/s1 vg/s2 backup:/dev/vg/data

  The same into a file, and applied later:
    lvmsync send --from vg/s1 vg/s2 -o monday.delta
    lvmsync apply monday.delta /dev/vg/copy

  The deltas of a week become one:
    lvmsync combine mon.delta tue.delta wed.delta -o week.delta

  A state of last week, without restoring it:
    lvmsync view mon.undo --base vg/copy --nbd unix:/run/monday.sock

  Is the copy what it should be?
    lvmsync compare vg/s2 backup:/dev/vg/data

  Is this machine in order, and is that one?
    lvmsync doctor backup

The command line of the original lvmsync works, too:
    lvmsync SNAPSHOT [HOST:]DEST, --stdout, --apply, --server, --snapback, --data-source, --rsh

Exit codes:
  0 done                      4 tracking lost: sync, which compares
  1 failed                    5 refused: not safe
  2 wrong usage               6 damaged or truncated delta
  3 volumes differ            7 remote end or transport failed
                            130 interrupted";

/// Moves, replicates and keeps block devices by sending only what changed
#[derive(Parser, Debug)]
#[command(name = "lvmsync", version, after_help = AFTER_HELP, max_term_width = 100)]
#[command(
    disable_help_subcommand = false,
    subcommand_required = true,
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    Diff(diff::DiffArgs),
    Send(Box<send::SendArgs>),
    Apply(apply::ApplyArgs),
    Sync(Box<sync::SyncArgs>),
    Compare(compare::CompareArgs),
    Migrate(Box<migrate::MigrateArgs>),
    Replicate(replicate::ReplicateArgs),
    Status(status::StatusArgs),
    History(history::HistoryArgs),
    Rollback(rollback::RollbackArgs),
    Combine(combine::CombineArgs),
    Invert(invert::InvertArgs),
    View(Box<view::ViewArgs>),
    Inspect(inspect::InspectArgs),
    State(state::StateVerb),
    Doctor(doctor::DoctorArgs),
    Track(track::TrackVerb),
    Serve(serve::ServeArgs),
    #[command(hide = true, name = crate::hold::VERB)]
    Hold(hold::HoldArgs),
    #[command(hide = true, name = points::VERB)]
    Points(points::PointsArgs),
}

/// Options that every verb has.
#[derive(Args, Debug, Clone, Default)]
struct TalkArgs {
    /// Say more; twice for details of every step
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,

    /// No progress and no summary; warnings and errors only
    #[arg(short, long, conflicts_with = "verbose")]
    quiet: bool,

    /// How progress is shown on stderr; auto is a bar on a terminal and nothing elsewhere
    #[arg(long, value_enum, default_value_t = ProgressMode::Auto, value_name = "HOW")]
    progress: ProgressMode,
}

impl TalkArgs {
    fn terminal(&self) -> Terminal {
        log::start(self.verbose, self.quiet);
        Terminal::new(self.progress, self.quiet, self.verbose > 0)
    }

    /// For several things that are done at a time.
    fn terminal_without_progress(&self) -> Terminal {
        log::start(self.verbose, self.quiet);
        Terminal::new(ProgressMode::None, self.quiet, self.verbose > 0)
    }
}

/// The definition of the command line, for manual pages.
pub fn command() -> clap::Command {
    <Cli as clap::CommandFactory>::command()
}

/// Runs the command line and says with which code the process ends.
pub fn run(arguments: Vec<OsString>) -> ExitCode {
    if arguments
        .get(1)
        .is_some_and(|word| word == crate::hold::VERB)
    {
        return guard(arguments);
    }
    let cancel = match Cancel::on_signals() {
        Ok(cancel) => cancel,
        Err(error) => {
            return report(&Error::io("cannot watch for signals", error));
        }
    };
    let hint = hint_at_verb(&arguments);
    let result = match parse(arguments) {
        Ok(Parsed::Modern(cli)) => dispatch(cli.verb, &cancel),
        Ok(Parsed::Classic(args)) => {
            classic::run(&args, &cancel).map_err(|error| match (error, hint) {
                (Error::Usage(text), Some(hint)) => Error::Usage(format!("{text}\n{hint}")),
                (error, _) => error,
            })
        }
        Err(error) => {
            let code = output::clap_message(&error);
            if let (ExitCode::Usage, Some(hint)) = (code, hint) {
                output::message(&hint);
            }
            return code;
        }
    };
    match result {
        Ok(code) => code,
        // Whatever failed after a signal failed because of it.
        Err(_) if cancel.is_cancelled() => report(&Error::Interrupted),
        Err(error) => report(&error.to_recover(|| "lvmsync sync NEW DEST".to_owned())),
    }
}

/// The guard has an end of its own: that of the run which it guards, and no signal.
fn guard(arguments: Vec<OsString>) -> ExitCode {
    match Cli::try_parse_from(arguments) {
        Ok(Cli {
            verb: Verb::Hold(args),
        }) => hold::run(&args).unwrap_or_else(|error| report(&error)),
        Ok(_) => ExitCode::Usage,
        Err(error) => output::clap_message(&error),
    }
}

enum Parsed {
    Modern(Cli),
    Classic(classic::ClassicArgs),
}

/// A verb as the first word, or nothing that the original knew: ours. Everything else is the original's.
fn parse(arguments: Vec<OsString>) -> std::result::Result<Parsed, clap::Error> {
    if is_the_originals(&arguments) {
        return classic::ClassicArgs::try_parse_from(arguments).map(Parsed::Classic);
    }
    let place = 1 + options_before_the_verb(&arguments);
    // Options before the verb belong behind it, and behind the second word of a verb that has two.
    let mut ordered = arguments;
    let verb = ordered.iter().skip(place).position(is_verb);
    let verb = verb.map(|behind| place + behind);
    if let Some(verb) = verb.filter(|verb| *verb > 1) {
        let words = 1 + usize::from(has_second_word(&ordered[verb..]));
        ordered[1..verb + words].rotate_right(words);
    }
    Cli::try_parse_from(ordered).map(Parsed::Modern)
}

fn is_the_originals(arguments: &[OsString]) -> bool {
    let tells = |word: &OsString| {
        ["-h", "--help", "-V", "--version"]
            .iter()
            .any(|option| word == option)
    };
    let first = arguments.get(1 + options_before_the_verb(arguments));
    !first.is_none_or(|word| is_verb(word) || tells(word))
}

fn is_verb(word: &OsString) -> bool {
    VERBS.iter().any(|verb| word == verb)
}

/// For words that are the original's and wrong, but have a verb among them: what may be meant.
fn hint_at_verb(arguments: &[OsString]) -> Option<String> {
    if !is_the_originals(arguments) {
        return None;
    }
    let verb = arguments.iter().skip(1).find(|word| is_verb(word))?;
    let verb = verb.to_string_lossy();
    Some(format!(
        "If you mean the verb `{verb}`, its options go behind it: lvmsync {verb} ..."
    ))
}

/// True for words that begin with a verb and one of its own, such as `state show`.
fn has_second_word(words: &[OsString]) -> bool {
    let [verb, second, ..] = words else {
        return false;
    };
    let is_option = second.to_string_lossy().starts_with('-');
    !is_option
        && command()
            .find_subcommand(verb)
            .is_some_and(clap::Command::has_subcommands)
}

/// How many words are options that all verbs have, or nearly all, and their values.
fn options_before_the_verb(arguments: &[OsString]) -> usize {
    let alone = ["-q", "--verbose", "--quiet"];
    let with_value = ["--progress", "--state-dir"];
    let mut words = arguments.iter().skip(1);
    let mut count = 0;
    while let Some(word) = words.next() {
        if with_value.iter().any(|option| word == option) {
            count += 1 + usize::from(words.next().is_some());
            continue;
        }
        let text = word.to_string_lossy();
        let holds_value = text
            .split_once('=')
            .is_some_and(|(option, _)| with_value.contains(&option));
        // `-v` as often as one likes.
        let is_verbose = text
            .strip_prefix("-v")
            .is_some_and(|more| more.bytes().all(|byte| byte == b'v'));
        if !holds_value && !is_verbose && !alone.iter().any(|option| word == option) {
            break;
        }
        count += 1;
    }
    count
}

fn dispatch(verb: Verb, cancel: &Cancel) -> Result<ExitCode> {
    match verb {
        Verb::Diff(args) => diff::run(&args, cancel),
        Verb::Send(args) => send::run(&args, cancel),
        Verb::Apply(args) => apply::run(&args, cancel),
        Verb::Sync(args) => sync::run(&args, cancel),
        Verb::Compare(args) => compare::run(&args, cancel),
        Verb::Migrate(args) => migrate::run(&args, cancel),
        Verb::Replicate(args) => replicate::run(&args, cancel),
        Verb::Status(args) => status::run(&args, cancel),
        Verb::History(args) => history::run(&args, cancel),
        Verb::Rollback(args) => rollback::run(&args, cancel),
        Verb::Combine(args) => combine::run(&args, cancel),
        Verb::Invert(args) => invert::run(&args, cancel),
        Verb::View(args) => view::run(&args, cancel),
        Verb::Inspect(args) => inspect::run(&args, cancel),
        Verb::State(args) => state::run(&args),
        Verb::Doctor(args) => doctor::run(&args, cancel),
        Verb::Track(args) => track::run(&args, cancel),
        Verb::Serve(args) => serve::run(&args, cancel),
        Verb::Hold(args) => hold::run(&args),
        Verb::Points(args) => points::run(&args, cancel),
    }
}

fn report(error: &Error) -> ExitCode {
    log::failure(&error.chain());
    error.exit_code()
}

#[cfg(test)]
mod tests;
