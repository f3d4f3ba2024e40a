//! `lvmsync migrate`: moves a live logical volume to another machine, with a pause of seconds.
//!
//! Guarantees: the service runs here until the far side has everything, durably and read back; whatever fails before that
//! leaves it here as if nothing had happened, and the same command goes on with what is done. The volume here is safe from a
//! second start before anything is told to start there.

mod cycle;
mod eras;
mod handover;
mod machine;
mod pause;
mod report;
mod snapshots;

use std::time::{Duration, Instant};

use clap::Args;

use super::apply::StateArgs;
use super::progress::Terminal;
use super::send::RemoteArgs;
use super::{TalkArgs, output};
use crate::cancel::Cancel;
use crate::delta::codec::Compression;
use crate::dm::base::Store;
use crate::dm::making::Making;
use crate::error::{Error, ExitCode, Result};
use crate::job::rounds::{Next, Why, next, predicted_seconds};
use crate::monitor::Monitor;
use crate::session::endpoint::parse_endpoint;
use crate::units::{parse_seconds, parse_size};
use cycle::{Aborted, Cycle};
pub(super) use handover::{MIGRATED_TAG, use_here};
use pause::{Pause, PauseArgs};
use report::{Report, Told, plan, print_plan, sentence};

/// While somebody is asked to stop the service, a round sends what was written in so many times the pause: few services write
/// a sixth of what the link takes.
const COLLECTED_IN_PAUSES: f64 = 6.0;
/// Each round makes a snapshot, and each snapshot holds the service up for a moment.
const SHORTEST_WAIT: Duration = Duration::from_secs(2);
const LONGEST_WAIT: Duration = Duration::from_secs(300);

const AFTER_HELP: &str = "\
Examples:
  lvmsync migrate vg/vm1 new:vg/vm1 --create --vm vm1                   a virtual machine of libvirt
  lvmsync migrate vg/db new:/dev/vg/db --pause-cmd 'systemctl stop db && umount /srv/db' \\
      --back-cmd 'mount /srv/db && systemctl start db' \\
      --resume-cmd-there 'mount /srv/db && systemctl start db'
  lvmsync migrate vg/db new:vg/db                                       it asks when to stop the service
  lvmsync migrate vg/db new:vg/db -n                                    what would be done?
  lvmsync migrate vg/db new:vg/db --abort                               give it up, and clean up here

While the service runs, a snapshot is copied, and then what was written meanwhile, in rounds that get shorter, until
the last one is predicted to fit in --max-pause. Then the service is stopped, the last increment is sent, read back
there, and the service may start there. The volume here then refuses writes: --keep-writable leaves it as it is.

If anything fails, --back-cmd starts the service here again. Run the same command to go on.";

/// Move a live logical volume to another machine, with a short pause
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP, mut_arg("compat", |arg| arg.hide(true)))]
pub(super) struct MigrateArgs {
    /// The logical volume, thick or thin: VG/LV or its path
    #[arg(value_name = "LV")]
    source: String,

    /// Where it goes: [USER@]HOST:DEST, or a volume of this machine
    #[arg(value_name = "[HOST:]DEST")]
    destination: String,

    /// Make the logical volume there if there is none: thin in the group's only thin pool, or thick where there is none;
    /// thin:POOL and thick say which
    #[arg(long, value_name = "auto|thick|thin:POOL", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "auto", value_parser = parse_making)]
    create: Option<Making>,

    /// Make rounds until the pause is predicted to be this short, such as 5s or 500ms
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_seconds)]
    max_pause: f64,

    /// Make no more rounds than this
    #[arg(long, value_name = "N", default_value_t = 20)]
    max_rounds: u32,

    #[command(flatten)]
    pause: PauseArgs,

    /// Leave the volume here writable when all is done: it gets the tag alone
    #[arg(long)]
    keep_writable: bool,

    /// Room for what is written to a thick LV during a round: a size, or max, which is never too small
    /// [default: a tenth of it, at least 1G, or what is free; made larger while it fills]
    #[arg(long, value_name = "SIZE|max", value_parser = parse_store)]
    snapshot_size: Option<Store>,

    /// Make no snapshot that fills larger than this [default: as long as the group has room]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    extend_limit: Option<u64>,

    /// Compression: none, lz4, zstd, zstd:LEVEL (1 to 19), or auto: as much as the link is worth
    #[arg(short = 'z', long, value_name = "CODEC", default_value = "none")]
    compress: Compression,

    /// Send at most so many bytes a second while the service runs, such as 10M. In the pause there is no limit
    #[arg(long, value_name = "RATE", value_parser = parse_size)]
    bwlimit: Option<u64>,

    /// Write even to a destination that is mounted or otherwise in use
    #[arg(long)]
    allow_in_use: bool,

    #[command(flatten)]
    remote: RemoteArgs,

    #[command(flatten)]
    state: StateArgs,

    /// Check both ends, print what would be done, and do nothing
    #[arg(short = 'n', long, conflicts_with = "abort")]
    dry_run: bool,

    /// Give up a migration that was cut: remove what it has left here
    #[arg(long)]
    abort: bool,

    /// Print the result as a JSON object on stdout
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    talk: TalkArgs,
}

fn parse_making(text: &str) -> std::result::Result<Making, String> {
    text.parse()
}

fn parse_store(text: &str) -> std::result::Result<Store, String> {
    match text {
        "max" => Ok(Store::Most),
        _ => parse_size(text).map(Store::Bytes),
    }
}

pub(super) fn run(args: &MigrateArgs, cancel: &Cancel) -> Result<ExitCode> {
    let terminal = args.talk.terminal();
    let start = Instant::now();
    parse_endpoint(&args.destination)?;
    if args.remote.compat {
        return Err(Error::Usage(
            "the original lvmsync cannot tell when its data is durable, so nothing is migrated to it".to_owned(),
        ));
    }
    let mut cycle = Cycle::open(args, &terminal, cancel)?;
    if args.abort {
        return abort(args, cycle);
    }
    let mut pause = Pause::of(args, cancel)?;
    if cycle.is_handed_over() {
        return finish(args, cycle, &pause, &terminal);
    }
    pause.check()?;
    let found = cycle.check()?;
    if args.dry_run {
        return print_plan(args, &cycle, plan(args, &cycle, &pause, found));
    }
    terminal.note(&cycle.plan());
    let mut report = Report {
        outcome: "moved",
        source: cycle.name().to_string(),
        destination: args.destination.clone(),
        volume_size: cycle.size_bytes(),
        ..Report::default()
    };
    let copied = cycle
        .first_copy(&mut report)
        .and_then(|()| rounds(args, &mut cycle, &mut report));
    let why = copied.map_err(|error| without_strays(&cycle, error))?;
    if why != Why::Fits {
        terminal.warn(&format!(
            "{}: {}; the pause is predicted to take {:.1} s more than it takes to stop and start the service, and not {} s",
            report.source,
            match why {
                Why::NotShrinking => "rounds do not get shorter any more",
                _ => "as many rounds as allowed were made",
            },
            report.predicted_pause_seconds.unwrap_or_default(),
            args.max_pause
        ));
    }
    cancel.check()?;
    // From here on nothing ends the run but its end: a service that was stopped is started somewhere.
    let holds_on = cancel.hold_on();
    let paused = wait_for_answer(args, &mut cycle, &mut pause, &mut report)
        .and_then(|()| hand_over(&mut cycle, &mut pause, &mut report));
    terminal.finish();
    if let Err(error) = paused {
        // Only when the service is back: it must not wait for that.
        return Err(without_strays(&cycle, pause.give_back(error, &terminal)));
    }
    let resumed = pause.resume();
    report.pause.seconds = pause.begun().elapsed().as_secs_f64();
    report.pause.resume_seconds = report.pause.seconds - report.pause.until_resume();
    drop(holds_on);
    resumed.map_err(|error| not_started(args, &error))?;
    clean_up(args, cycle, &terminal);
    report.seconds = start.elapsed().as_secs_f64();
    if args.json {
        output::json(&report)?;
    }
    terminal.summary(&sentence(&report));
    Ok(ExitCode::Done)
}

/// A snapshot that nobody needs any more costs room, and each write of the service another one.
fn without_strays(cycle: &Cycle<'_>, error: Error) -> Error {
    if let Err(left) = cycle.remove_strays() {
        cycle.terminal.warn(&left.chain());
    }
    error
}

/// Increments while the service runs.
fn rounds(args: &MigrateArgs, cycle: &mut Cycle<'_>, report: &mut Report) -> Result<Why> {
    let limit = usize::try_from(args.max_rounds).unwrap_or(usize::MAX);
    let mut done = Vec::new();
    loop {
        report.predicted_pause_seconds = predicted_seconds(&done);
        if let Next::Pause(why) = next(&done, args.max_pause, limit.max(1)) {
            return Ok(why);
        }
        done.push(report.add(cycle.round(false)?));
    }
}

/// Nobody knows when whoever is asked stops the service: rounds go on until it is said, so that the last increment is short
/// whenever that is.
fn wait_for_answer(
    args: &MigrateArgs,
    cycle: &mut Cycle<'_>,
    pause: &mut Pause<'_>,
    report: &mut Report,
) -> Result<()> {
    if !pause.ask() {
        return Ok(());
    }
    let every = Duration::try_from_secs_f64(args.max_pause * COLLECTED_IN_PAUSES)
        .unwrap_or(LONGEST_WAIT)
        .clamp(SHORTEST_WAIT, LONGEST_WAIT);
    while !cycle.while_waiting(|| pause.is_answered(every))? {
        report.add(cycle.round(false)?);
    }
    Ok(())
}

/// The pause, until all is there and the volume here is safe.
fn hand_over(cycle: &mut Cycle<'_>, pause: &mut Pause<'_>, report: &mut Report) -> Result<()> {
    cycle.while_waiting(|| pause.begin())?;
    let begun = pause.begun();
    cycle.prepare_sessions();
    let stopped = cycle.while_waiting(|| pause.stop());
    // The command may have come as far as taking the era device down.
    if stopped.is_err()
        && let Err(error) = cycle.bring_era_device_back()
    {
        cycle.terminal.warn(&error.chain());
    }
    stopped?;
    report.pause.stop_seconds = begun.elapsed().as_secs_f64();
    let handed_over = cycle.hand_over(&mut report.pause);
    if handed_over.is_err()
        && let Err(worse) = cycle.take_back()
    {
        return Err(worse);
    }
    report.pause.bytes = handed_over?;
    pause.is_over();
    Ok(())
}

/// An earlier run has moved the volume, and has not started the service there, or not tidied up.
fn finish(
    args: &MigrateArgs,
    cycle: Cycle<'_>,
    pause: &Pause<'_>,
    terminal: &Terminal,
) -> Result<ExitCode> {
    cycle.refuse_used_again()?;
    let name = cycle.name().to_string();
    if args.dry_run {
        let plan = format!(
            "{name}: it is moved to {} by an earlier run; {}, and what was left here is removed",
            args.destination,
            pause.resume_plan()
        );
        return print_plan(args, &cycle, vec![plan]);
    }
    pause.resume().map_err(|error| not_started(args, &error))?;
    clean_up(args, cycle, terminal);
    if args.json {
        Told::of("moved_earlier", &name, &args.destination).print()?;
    }
    terminal.summary(&format!(
        "{name} was moved to {} by an earlier run; the service was started, and what was left is removed",
        args.destination
    ));
    Ok(ExitCode::Done)
}

fn not_started(args: &MigrateArgs, error: &Error) -> Error {
    Error::io(
        format!(
            "{}: all is moved, and {} has it, durably; but the service was not started there: run this again, which does no \
             more than that, or start it by hand and forget this run: {}",
            args.source,
            args.destination,
            abort_command(args, &args.destination)
        ),
        std::io::Error::other(error.chain()),
    )
}

fn abort_command(args: &MigrateArgs, destination: &str) -> String {
    let words = [&*args.source, destination, "--abort"];
    args.state.caller().command("migrate", &words)
}

/// What is left over is no failure of the move.
fn clean_up(args: &MigrateArgs, cycle: Cycle<'_>, terminal: &Terminal) {
    let name = cycle.name().to_string();
    if let Err(error) = cycle.clean_up() {
        terminal.warn(&format!(
            "{name}: it is moved, but not all that was needed for it could be removed here: {}; later: {}",
            error.chain(),
            abort_command(args, &args.destination)
        ));
    }
}

fn abort(args: &MigrateArgs, cycle: Cycle<'_>) -> Result<ExitCode> {
    let name = cycle.name().to_string();
    let terminal = args.talk.terminal();
    let (outcome, destination, text) = match cycle.abort()? {
        Aborted::Nothing => (
            "nothing",
            args.destination.clone(),
            format!("{name}: there is no migration of it"),
        ),
        Aborted::Copying { destination } => {
            let text = format!(
                "{name}: the migration is given up, and what it had left here is removed; {destination} holds what came of it, \
                 and is on record there as what it is"
            );
            ("given_up", destination, text)
        }
        Aborted::Moved {
            destination,
            way_back,
        } => {
            let way_back = way_back.map_or_else(String::new, |way_back| format!(". {way_back}"));
            let text = format!(
                "{name}: it was moved to {destination} already, and that stays as it is; what was left here of the migration \
                 is removed{way_back}"
            );
            ("stays_moved", destination, text)
        }
    };
    if args.json {
        Told::of(outcome, &name, &destination).print()?;
    }
    terminal.summary(&text);
    Ok(ExitCode::Done)
}
