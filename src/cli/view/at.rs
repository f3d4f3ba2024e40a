//! A point in time of a job's target as the files of a view.
//!
//! Guarantees: asks for the points and changes nothing; the files are those that a rollback to that point would apply.

use clap::Args;

use crate::cancel::Cancel;
use crate::cli::apply::StateArgs;
use crate::cli::history::{find, keeps_none, only};
use crate::cli::points::there::There;
use crate::cli::progress::Terminal;
use crate::cli::replicate::{JobsArgs, state_of};
use crate::commands::{Caller, word};
use crate::dm::name::LvName;
use crate::error::{Error, Result};
use crate::job::points::choose;
use crate::monitor::Monitor;
use crate::record::keeper::shown_time;

/// The options for a look into a job's history.
#[derive(Args, Debug)]
pub(super) struct AtArgs {
    /// DELTA is the name of a job: look at what its target held then, by its number in `lvmsync history` or the time
    #[arg(long, value_name = "TIME", conflicts_with = "base")]
    pub(super) at: Option<String>,

    /// Which target of the job, as its file names it; needed if there are several
    #[arg(long, value_name = "TARGET", requires = "at")]
    target: Option<String>,

    #[command(flatten)]
    place: JobsArgs,
}

/// What a view is made of.
pub(super) struct Wanted {
    pub(super) deltas: Vec<String>,
    pub(super) base: Option<String>,
}

/// The files that lead to the point `at` of the job that `names` has, and the volume that they begin from. `rest` is the
/// command behind them, for where they are on another machine.
pub(super) fn of_point(
    args: &AtArgs,
    at: &str,
    names: &[String],
    rest: &[String],
    state: &StateArgs,
    (terminal, cancel): (&Terminal, &Cancel),
) -> Result<Wanted> {
    let wanted = choose(at).map_err(Error::Usage)?;
    let [job_name] = names else {
        return Err(Error::Usage(format!(
            "--at takes the name of one job, not {} files",
            names.len()
        )));
    };
    let job = args.place.load_only(job_name)?;
    let target = only(job_name, &job, args.target.as_deref())?;
    let there = There::of((job_name, &job), target, state, terminal, cancel)?;
    let there = there.ok_or_else(|| keeps_none(job_name))?;
    let listing = there.list()?;
    let of_job = state_of(state, job_name)?;
    let known = of_job.targets.get(&target.to);
    let of_held = look_at(there.volume().unwrap_or_default());
    let point = find(&listing, wanted, known, (job_name, target), &of_held)?;
    let deltas = there.files_of(point);
    let base = there.volume().map(str::to_owned);
    if let Some(via) = there.via() {
        let base = base.iter().flat_map(|base| ["--base", base.as_str()]);
        let words = deltas.iter().map(String::as_str).chain(base);
        let words: Vec<&str> = words.chain(rest.iter().map(String::as_str)).collect();
        let caller = Caller {
            via,
            state_dir: None,
        };
        return Err(Error::refused(
            target.to.clone(),
            format!(
                "what it held at {} is in files of that machine",
                shown_time(point.at)
            ),
            format!("Look there: {}", caller.command("view", &words)),
        ));
    }
    terminal.remark(&format!(
        "{job_name}: {} as it was at {}",
        target.to,
        shown_time(point.at)
    ));
    Ok(Wanted { deltas, base })
}

/// How a volume is looked at that needs no view.
fn look_at(volume: &str) -> String {
    let device = match LvName::parse(volume) {
        Some(name) if !volume.starts_with(['/', '.']) => format!("/dev/{name}"),
        _ => volume.to_owned(),
    };
    format!(
        "Look at the volume itself, where it is: mount -o ro,noload {} /mnt   # XFS: -o ro,norecovery,nouuid",
        word(&device)
    )
}
