//! `--verify`: reading back what was written.
//!
//! Guarantees: nothing is called verified that was not read again at both ends, from the volumes themselves,
//! after the end that wrote it said that it is durable; a difference is an error of code 3.

use std::fs::File;
use std::io::BufReader;
use std::sync::Arc;

use super::apply::{open_input, shown_name};
use super::compare;
use super::compare_found::clipped;
use super::elsewhere::Elsewhere;
use super::progress::Terminal;
use super::send::Job;
use super::sync::SyncArgs;
use crate::cancel::Cancel;
use crate::change_list::ChangeList;
use crate::comparand::{Comparand, Compared, Medium};
use crate::delta::proto3::{FirstLine, read_first_line};
use crate::engine::compare::{Side, compare_here};
use crate::engine::read_back::read_back;
use crate::error::{Error, Result};
use crate::extent::Extent;
use crate::monitor::{Monitor, Silent};
use crate::session::endpoint::Endpoint;
use crate::session::message::Ready;
use crate::source::SendSource;
use crate::units::{Bytes, count};

/// Extents that are named in an error.
const NAMED: usize = 3;

/// Compares what `source` sent to `destination` with what is there now.
pub(super) fn sent(job: &Job<'_>, source: &mut SendSource, destination: &Endpoint) -> Result<()> {
    source.data.forget_cached()?;
    let (cancel, monitor) = (job.cancel, job.monitor);
    let changes = Arc::new(std::mem::take(&mut source.changes).all_data());
    let near = Side {
        volume: &source.data,
        name: &source.name,
    };
    // What is past the end of a smaller destination was left out, as asked.
    let (name, compared) = match destination {
        Endpoint::Local(path) => {
            let name = path.to_string_lossy().into_owned();
            let written = Comparand::open(&name, &Silent)?;
            let changes = clipped(&changes, written.size_bytes());
            monitor.plan(changes.total_bytes());
            let differing = compare_here(&changes, near, written.side(), cancel, monitor)
                .map_err(|error| written.explain(error));
            (
                name,
                differing.and_then(|differing| Compared::of(differing, &[&written])),
            )
        }
        Endpoint::Remote { host, path } => {
            let there = Elsewhere {
                prestarted: job.prestarted,
                remote: job.remote,
                speaker: &job.speaker,
                medium: Medium::Disk,
                host,
                path,
                cancel,
                monitor,
            };
            let begin = &mut |ready: &Ready| Ok((clipped(&changes, ready.size_bytes), ()));
            let compared = there.compare(near, begin).map(|(compared, ())| compared);
            (format!("{host}:{path}"), compared)
        }
    };
    let compared = compared.map_err(|error| source.explain(error))?;
    // What was written to is no sign of a bad disk.
    source.check_unchanged()?;
    expect_equal(&name, &compared.vouched(monitor)?)
}

/// Compares what a pull has written with what it was read from, `path` at `host`, once more.
pub(super) fn pulled(
    args: &SyncArgs,
    host: &str,
    path: &str,
    terminal: &Terminal,
    cancel: &Cancel,
) -> Result<()> {
    let found = compare::find_from(&args.as_compare(), host, path, terminal, cancel)?;
    // What is past the end of a smaller destination was left out, as asked.
    let differing = match args.write.allow_smaller {
        true => found.differing.clip(found.destination_size),
        false => found.differing,
    };
    expect_equal(&args.destination, &differing)
}

/// `--verify` reads deltas twice, and needs to know what is in them before anything is written.
pub(super) fn refuse_unreadable(deltas: &[String]) -> Result<()> {
    for delta in deltas {
        let reason = if delta == "-" || !std::fs::metadata(delta).is_ok_and(|found| found.is_file())
        {
            "it has to be a file, which can be read twice"
        } else if is_version_3(delta) {
            "a PROTO[3] stream may write a place twice, so there is nothing to compare with"
        } else {
            continue;
        };
        let name = shown_name(delta);
        return Err(Error::Usage(format!(
            "--verify cannot check {name}: {reason}"
        )));
    }
    Ok(())
}

/// What cannot be read is the business of who reads it.
fn is_version_3(delta: &str) -> bool {
    File::open(delta).is_ok_and(|file| {
        matches!(
            read_first_line(&mut BufReader::new(file)),
            Ok(FirstLine::Version3)
        )
    })
}

/// Compares what is at `destination` now with the delta that was just applied to it, up to where it counts.
pub(super) fn applied(
    delta: &str,
    ends_at: Option<u64>,
    destination: &str,
    cancel: &Cancel,
    monitor: &dyn Monitor,
) -> Result<()> {
    let written = Comparand::open(destination, &Silent)?;
    let input = open_input(delta, cancel)?;
    let differing = read_back(input, delta, ends_at, written.side(), cancel, monitor)
        .map_err(|error| written.explain(error))?;
    let compared = Compared::of(differing, &[&written])?;
    expect_equal(destination, &compared.vouched(monitor)?)
}

fn expect_equal(name: &str, differing: &ChangeList) -> Result<()> {
    if differing.is_empty() {
        return Ok(());
    }
    let shown = |extent: Extent| format!("{} bytes at {}", extent.length(), extent.offset());
    let mut named: Vec<String> = differing
        .iter()
        .take(NAMED)
        .map(|change| shown(change.extent))
        .collect();
    if differing.len() > NAMED {
        named.push("and so on".to_owned());
    }
    Err(Error::Differ {
        what: name.to_owned(),
        reason: format!(
            "what was written does not read back as what was sent: {} in {} differ: {}\n\
             Unless somebody writes to one of the two meanwhile, a disk or a cable is not to be trusted. \
             Find what it is, then make it equal: lvmsync sync NEW DEST",
            Bytes(differing.total_bytes()),
            count(differing.len() as u64, "extent"),
            named.join(", ")
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ExitCode;
    use crate::extent::{Change, Kind};

    #[test]
    fn a_file_that_was_written_to_meanwhile_is_not_verified() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("copy");
        std::fs::write(&path, vec![1; 8192]).unwrap();
        let written = Comparand::open(path.to_str().unwrap(), &Silent).unwrap();
        let found = |differing: ChangeList| {
            Compared::of(differing, &[&written])
                .unwrap()
                .vouched(&Silent)
        };
        assert!(found(ChangeList::default()).is_ok());
        // Not in the tick of the clock in which it was opened.
        std::thread::sleep(std::time::Duration::from_millis(20));
        std::fs::write(&path, vec![1; 8192]).unwrap();
        let error = found(ChangeList::default()).unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::Failed);
        assert!(error.chain().contains("written while it was compared"));
        let differs = found(ChangeList::whole(8192)).unwrap();
        assert_eq!(differs.total_bytes(), 8192, "what differs differs");
    }

    #[test]
    fn what_does_not_read_back_is_3_and_the_first_places_are_named() {
        let change = |n: u64| Change {
            extent: Extent::new(n * 8192, 4096).unwrap(),
            kind: Kind::Data,
        };
        assert!(expect_equal("vg/copy", &ChangeList::default()).is_ok());
        let error = expect_equal("vg/copy", &(1..6).map(change).collect()).unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::Differ);
        let text = error.chain();
        for part in [
            "vg/copy: what was written does not read back as what was sent",
            "20.0 KiB in 5 extents",
            "4096 bytes at 8192, 4096 bytes at 16384, 4096 bytes at 24576, and so on",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }
}
