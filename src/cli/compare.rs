//! `lvmsync compare`: is a volume equal to another, here or elsewhere?
//!
//! Guarantees: nothing is written at either end; "equal" is said only after every byte that was asked about was
//! read at both ends, from the volumes themselves, and not of a file that was written to meanwhile.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use clap::Args;

use super::apply::{StateArgs, open_input, shown_name};
use super::compare_far::Far;
use super::diff::write_map;
use super::progress::Terminal;
use super::pull::far_name;
use super::send::RemoteArgs;
use super::summary::{per_second, shown_seconds};
use super::sync_line::SyncLine;
use super::{TalkArgs, output};
use crate::cancel::Cancel;
use crate::change_list::{ChangeList, ChangeListBuilder};
use crate::comparand::{Comparand, Compared, Means, Medium};
use crate::delta::reader::DeltaReader;
use crate::dm::resolve::resolve;
use crate::engine::compare::compare_here;
use crate::error::{Error, ExitCode, Result};
use crate::extent::{Extent, Kind};
use crate::monitor::Monitor;
use crate::session::endpoint::{Endpoint, parse_endpoint};
use crate::source::{origin_of_lost, readable};
use crate::units::{Bytes, count};
use crate::volume::VolumeIdentity;

const AFTER_HELP: &str = "\
Examples:
  lvmsync compare vg/s2 backup:/dev/vg/data         is the copy what the snapshot is?
  lvmsync compare prod:vg/s2 vg/data                the same from the side of the copy
  lvmsync compare vg/s2 vg/copy --json              for scripts: offsets and lengths in bytes
  lvmsync compare vg/s2 vg/copy --only monday.delta only what this delta changed
  lvmsync compare -q vg/s2 vg/copy && echo equal

Both volumes are read whole, past the page cache, each where it is; over ssh only digests travel.
Nothing is written, and either may be in use: what is written meanwhile may count as different, so
compare a snapshot. Differences are told in blocks of 4 KiB.

A device as DEST may be longer than SRC: what is past SRC's end does not count. A longer file is
different, and so is anything shorter.

Exit code 0: equal; 3: different.";

/// Tell whether two volumes are equal, and where they differ
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP, mut_arg("compat", |arg| arg.hide(true)))]
pub(super) struct CompareArgs {
    /// A snapshot, an origin, a block device or a file; [USER@]HOST:SRC if it is elsewhere, and DEST here
    #[arg(value_name = "[HOST:]SRC")]
    pub(super) source: String,

    /// What should be equal: DEST or [USER@]HOST:DEST
    #[arg(value_name = "[HOST:]DEST")]
    pub(super) destination: String,

    /// Compare only the extents of this delta; `-` for standard input
    #[arg(long, value_name = "FILE")]
    pub(super) only: Option<String>,

    #[command(flatten)]
    pub(super) remote: RemoteArgs,

    #[command(flatten)]
    pub(super) state: StateArgs,

    /// One JSON object
    #[arg(long, conflicts_with = "map")]
    pub(super) json: bool,

    /// Draw where on the volume the differences are
    #[arg(long)]
    pub(super) map: bool,

    #[command(flatten)]
    pub(super) talk: TalkArgs,

    /// Not the user's to say: it is about what the disk has.
    #[arg(skip)]
    pub(super) medium: Medium,
}

/// What was found.
pub(super) struct Found {
    pub(super) volume_size: u64,
    pub(super) destination_size: u64,
    /// What a longer file has past the end of the other; in `differing`, too.
    pub(super) tail_bytes: u64,
    pub(super) compared_bytes: u64,
    pub(super) differing: ChangeList,
}

pub(super) fn run(args: &CompareArgs, cancel: &Cancel) -> Result<ExitCode> {
    let terminal = args.talk.terminal();
    refuse_stream([&args.source, &args.destination])?;
    let start = Instant::now();
    let found = match parse_endpoint(&args.source)? {
        Endpoint::Remote { host, path } => find_from(args, &host, &path, &terminal, cancel),
        Endpoint::Local(_) => find(args, &terminal, cancel),
    };
    terminal.finish();
    let found = found.map_err(|error| {
        let named = error.recover().map(str::to_owned);
        error.to_recover(|| sync_instead(args, named.as_deref()))
    })?;
    let listing =
        |write: &dyn Fn(&mut dyn Write) -> io::Result<()>| output::listing(|out| write(out));
    if args.json {
        listing(&|out| write_json(out, &found))?;
    } else if !args.talk.quiet && args.map {
        let end = found.volume_size.max(found.destination_size);
        listing(&|out| write_map(out, &found.differing, end))?;
    } else if !args.talk.quiet && !found.differing.is_empty() {
        listing(&|out| write_table(out, &found.differing))?;
    }
    terminal.summary(&sentence(&found, start.elapsed()));
    Ok(if found.differing.is_empty() {
        ExitCode::Done
    } else {
        ExitCode::Differ
    })
}

/// The sync that makes both equal where SRC is a snapshot that is lost; `named` is what its machine says to read.
fn sync_instead(args: &CompareArgs, named: Option<&str>) -> String {
    let source = match parse_endpoint(&args.source) {
        Ok(Endpoint::Remote { host, path }) => far_name(&host, named.unwrap_or(&path)),
        _ => readable(&args.source),
    };
    let line = SyncLine::of(&source, &args.destination).way(&args.remote);
    line.line("sync", &args.state)
}

/// Nothing that is written to a snapshot makes it whole again where it is lost: then no sync is the way out.
fn if_destination_is_lost(args: &CompareArgs, mut error: Error) -> Error {
    if error.exit_code() != ExitCode::TrackingLost {
        return error;
    }
    let origin = match parse_endpoint(&args.destination) {
        Ok(Endpoint::Remote { host, .. }) if matches!(error, Error::RemoteFailed { .. }) => {
            Some(far_name(&host, error.recover().unwrap_or("ORIGIN")))
        }
        Ok(Endpoint::Local(path)) => origin_of_lost(&path.to_string_lossy()),
        _ => None,
    };
    let Some(origin) = origin else { return error };
    if let Error::TrackingLost { reason: text, .. } | Error::RemoteFailed { message: text, .. } =
        &mut error
    {
        text.push_str(
            "\nIt is DEST, and no sync makes it whole: compare with its origin, or with a new snapshot of that",
        );
    }
    let other = match is_same(&args.source, &origin) {
        true => "NEW",
        false => &origin,
    };
    let only = args.only.as_deref();
    let line = SyncLine::of(&args.source, other).way(&args.remote);
    Error::ToRecover {
        error: Box::new(error),
        command: line.only(only).line("compare", &args.state),
    }
}

/// Two names of what is here.
fn is_same(one: &str, other: &str) -> bool {
    let identity = |name| VolumeIdentity::of_path(resolve(name).ok()?.path()).ok();
    identity(one).is_some_and(|one| identity(other) == Some(one))
}

/// Compares, and tells nobody.
pub(super) fn find(args: &CompareArgs, terminal: &Terminal, cancel: &Cancel) -> Result<Found> {
    find_to(args, terminal, cancel).map_err(|error| if_destination_is_lost(args, error))
}

fn find_to(args: &CompareArgs, terminal: &Terminal, cancel: &Cancel) -> Result<Found> {
    refuse_the_original(args)?;
    let destination = parse_endpoint(&args.destination)?;
    let (state, caller) = (args.state.directory(), args.state.caller());
    let means = Means {
        medium: args.medium,
        state: &state,
        cancel,
    };
    let source = Comparand::open_or_activate(&args.source, means, terminal)?;
    source.warn_of_half_written(&state, &caller, terminal);
    let only = Only::read(args, cancel)?;
    let only = only.map(|only| only.of(source.size_bytes(), &args.source));
    let only = only.transpose()?;
    match destination {
        Endpoint::Local(path) => {
            let path = path.to_string_lossy();
            let other = Comparand::open_or_activate(&path, means, terminal)?;
            if other.identity() == source.identity() {
                return Err(Error::Usage(format!(
                    "{} and {} are the same volume",
                    args.source, args.destination
                )));
            }
            other.warn_of_half_written(&state, &caller, terminal);
            let sizes = Sizes {
                source: source.size_bytes(),
                destination: other.size_bytes(),
                is_file: other.is_file(),
            };
            sizes.compare(only, terminal, |extents| {
                let differing =
                    compare_here(extents, source.side(), other.side(), cancel, terminal)
                        .map_err(|error| source.explain(other.explain(error)))?;
                Compared::of(differing, &[&source, &other])
            })
        }
        Endpoint::Remote { host, path } => {
            let far = far_of(args, &host, &path, terminal, cancel)?;
            let sizes = Sizes {
                source: source.size_bytes(),
                destination: far.ready.size_bytes,
                is_file: far.ready.kind == "file",
            };
            sizes.compare(only, terminal, |extents| {
                compare_with(far, &source, extents, cancel, terminal)
            })
        }
    }
}

/// The same, where SRC is `path` at `host`, and DEST is here.
pub(super) fn find_from(
    args: &CompareArgs,
    host: &str,
    path: &str,
    terminal: &Terminal,
    cancel: &Cancel,
) -> Result<Found> {
    find_to_here(args, (host, path), terminal, cancel)
        .map_err(|error| if_destination_is_lost(args, error))
}

fn find_to_here(
    args: &CompareArgs,
    (host, path): (&str, &str),
    terminal: &Terminal,
    cancel: &Cancel,
) -> Result<Found> {
    refuse_the_original(args)?;
    refuse_two_hosts(&args.destination)?;
    let only = Only::read(args, cancel)?;
    let (state, caller) = (args.state.directory(), args.state.caller());
    let means = Means {
        medium: args.medium,
        state: &state,
        cancel,
    };
    let destination = Comparand::open_or_activate(&args.destination, means, terminal)?;
    destination.warn_of_half_written(&state, &caller, terminal);
    let far = far_of(args, host, path, terminal, cancel)?;
    let sizes = Sizes {
        source: far.ready.size_bytes,
        destination: destination.size_bytes(),
        is_file: destination.is_file(),
    };
    let only = match only.map(|only| only.of(sizes.source, &args.source)) {
        Some(Err(error)) => {
            // It has done nothing wrong, and what it says of its end does not matter.
            let _ = far.leave();
            return Err(error);
        }
        only => only.transpose()?,
    };
    sizes.compare(only, terminal, |extents| {
        compare_with(far, &destination, extents, cancel, terminal)
    })
}

fn far_of(
    args: &CompareArgs,
    host: &str,
    path: &str,
    terminal: &Terminal,
    cancel: &Cancel,
) -> Result<Far> {
    let party = (&args.remote, &terminal.speaker());
    Far::open_with(None, party, args.medium, host, path, cancel)
}

fn compare_with(
    far: Far,
    near: &Comparand,
    extents: &ChangeList,
    cancel: &Cancel,
    terminal: &Terminal,
) -> Result<Compared> {
    let mut compared = far
        .compare(extents, near.side(), cancel, terminal)
        .map_err(|error| near.explain(error))?;
    compared.changed.extend(near.if_changed()?);
    Ok(compared)
}

/// Where the source is at another machine.
pub(super) fn refuse_two_hosts(destination: &str) -> Result<()> {
    if matches!(parse_endpoint(destination)?, Endpoint::Remote { .. }) {
        return Err(Error::Usage(
            "one of the two volumes has to be here: run this at one of the hosts".to_owned(),
        ));
    }
    Ok(())
}

/// Elsewhere `-` is standard input or output. Here it would be a file of that name, which nobody wants.
pub(super) fn refuse_stream(volumes: [&str; 2]) -> Result<()> {
    if volumes.contains(&"-") {
        return Err(Error::Usage(
            "`-` is no volume: what is compared is read at both ends, and cannot be a pipe. \
             If a file of that name is meant, write ./-"
                .to_owned(),
        ));
    }
    Ok(())
}

fn refuse_the_original(args: &CompareArgs) -> Result<()> {
    if args.remote.compat {
        return Err(Error::Usage(
            "the original lvmsync cannot compare: install this one at the far end".to_owned(),
        ));
    }
    Ok(())
}

/// What `--only` names.
struct Only {
    extents: ChangeList,
    /// Of the volume that the delta was made from.
    volume_size: u64,
    name: String,
}

impl Only {
    /// The extents of the delta, which is read to its end and found sound.
    fn read(args: &CompareArgs, cancel: &Cancel) -> Result<Option<Self>> {
        let Some(delta) = args.only.as_deref() else {
            return Ok(None);
        };
        let name = shown_name(delta);
        let damaged = |source| Error::Damaged {
            what: name.clone(),
            source,
        };
        let mut reader = DeltaReader::new(open_input(delta, cancel)?).map_err(damaged)?;
        let mut extents = ChangeListBuilder::default();
        while let Some(frame) = reader.next_frame().map_err(damaged)? {
            cancel.check()?;
            extents.push(frame.extent, Kind::Data);
        }
        Ok(Some(Self {
            extents: extents.finish(),
            volume_size: reader.header().volume_size,
            name,
        }))
    }

    /// The extents, if they can be those of `source`, which has `size` bytes.
    fn of(self, size: u64, source: &str) -> Result<ChangeList> {
        let volume_size = self.volume_size;
        if volume_size > size {
            return Err(Error::Usage(format!(
                "{} is of a volume of {volume_size} bytes ({}), and {source} has {size} ({}): \
                 name the volume that the delta was made from",
                self.name,
                Bytes(volume_size),
                Bytes(size)
            )));
        }
        Ok(self.extents)
    }
}

/// How long both are.
struct Sizes {
    source: u64,
    destination: u64,
    is_file: bool,
}

impl Sizes {
    /// Compares what both have of `only`, or of everything, and adds what only one of them has.
    fn compare(
        self,
        only: Option<ChangeList>,
        monitor: &dyn Monitor,
        compare: impl FnOnce(&ChangeList) -> Result<Compared>,
    ) -> Result<Found> {
        let whole = only.is_none();
        let extents = only.unwrap_or_else(|| ChangeList::whole(self.source));
        let mut missing = ChangeListBuilder::default();
        let beyond = |extent: Extent| {
            Extent::from_range(extent.offset().max(self.destination), extent.end())
        };
        for extent in extents.iter().filter_map(|change| beyond(change.extent)) {
            missing.push(extent, Kind::Data);
        }
        // A device is as long as it was made; a file that is longer is another file.
        let tail = Extent::from_range(self.source, self.destination);
        let tail = tail.filter(|_| whole && self.is_file);
        if let Some(tail) = tail {
            missing.push(tail, Kind::Data);
        }
        let extents = extents.clip(self.destination);
        let compared_bytes = extents.total_bytes();
        monitor.plan(compared_bytes);
        let mut compared = compare(&extents)?;
        compared.differing = compared.differing.union(missing.finish());
        let differing = compared.vouched(monitor)?;
        Ok(Found {
            volume_size: self.source,
            destination_size: self.destination,
            tail_bytes: tail.map_or(0, Extent::length),
            compared_bytes,
            differing,
        })
    }
}

/// Extent by extent, so that memory does not grow with the listing.
fn write_json(out: &mut dyn Write, found: &Found) -> io::Result<()> {
    write!(
        out,
        r#"{{"volume_size":{},"destination_size":{},"compared_bytes":{},"different_bytes":{},"extents":["#,
        found.volume_size,
        found.destination_size,
        found.compared_bytes,
        found.differing.total_bytes()
    )?;
    let mut separator = "";
    for change in found.differing.iter() {
        let (offset, length) = (change.extent.offset(), change.extent.length());
        write!(out, r#"{separator}{{"offset":{offset},"length":{length}}}"#)?;
        separator = ",";
    }
    out.write_all(b"]}\n")
}

fn write_table(out: &mut dyn Write, differing: &ChangeList) -> io::Result<()> {
    writeln!(out, "{:>20} {:>16}", "OFFSET", "LENGTH")?;
    for change in differing.iter() {
        let extent = change.extent;
        writeln!(out, "{:>20} {:>16}", extent.offset(), extent.length())?;
    }
    Ok(())
}

fn sentence(found: &Found, elapsed: Duration) -> String {
    let differing = &found.differing;
    let compared = format!(
        "{} compared in {} ({}/s)",
        Bytes(found.compared_bytes),
        shown_seconds(elapsed),
        Bytes(per_second(found.compared_bytes, elapsed))
    );
    let mut text = if differing.is_empty() {
        format!("equal: {compared}")
    } else {
        format!(
            "different: {} in {}; {compared}",
            Bytes(differing.total_bytes()),
            count(differing.len() as u64, "extent")
        )
    };
    let (size, destination) = (found.volume_size, found.destination_size);
    if destination < size {
        text.push_str(&format!(
            "; the destination is shorter by {} bytes",
            size - destination
        ));
    } else if destination > size {
        text.push_str(&format!(
            "; the destination is longer by {} bytes",
            destination - size
        ));
        if differing
            .iter()
            .last()
            .is_none_or(|last| last.extent.end() <= size)
        {
            text.push_str(", which do not count");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::Silent;

    fn found(sizes: (u64, u64), is_file: bool, only: Option<&[(u64, u64)]>) -> Found {
        let only = only.map(|extents| {
            let mut list = ChangeListBuilder::default();
            for (offset, length) in extents {
                list.push(Extent::new(*offset, *length).unwrap(), Kind::Data);
            }
            list.finish()
        });
        let sizes = Sizes {
            source: sizes.0,
            destination: sizes.1,
            is_file,
        };
        let equal = |_: &ChangeList| {
            Ok(Compared {
                differing: ChangeList::default(),
                changed: Vec::new(),
            })
        };
        sizes.compare(only, &Silent, equal).unwrap()
    }

    fn extents(found: &Found) -> Vec<(u64, u64)> {
        let pair = |extent: Extent| (extent.offset(), extent.length());
        found
            .differing
            .iter()
            .map(|change| pair(change.extent))
            .collect()
    }

    #[test]
    fn a_longer_device_is_equal_and_a_longer_file_or_anything_shorter_is_not() {
        let device = found((100, 160), false, None);
        assert_eq!((extents(&device), device.compared_bytes), (vec![], 100));
        let text = sentence(&device, Duration::from_secs(1));
        assert!(text.starts_with("equal: 100 B"), "{text}");
        assert!(
            text.ends_with("longer by 60 bytes, which do not count"),
            "{text}"
        );
        let file = found((100, 160), true, None);
        assert_eq!(extents(&file), [(100, 60)]);
        let text = sentence(&file, Duration::from_secs(1));
        assert!(text.ends_with("longer by 60 bytes"), "{text}");
        for is_file in [true, false] {
            let short = found((100, 60), is_file, None);
            assert_eq!(
                (extents(&short), short.compared_bytes),
                (vec![(60, 40)], 60)
            );
            let none = found((100, 0), is_file, None);
            assert_eq!((extents(&none), none.compared_bytes), (vec![(0, 100)], 0));
        }
        assert!(found((0, 0), true, None).differing.is_empty());
    }

    #[test]
    fn of_a_delta_only_its_extents_count() {
        let list = [(10, 5), (50, 20), (80, 5)];
        assert_eq!(extents(&found((100, 160), true, Some(&list))), []);
        let short = found((100, 60), true, Some(&list));
        assert_eq!(extents(&short), [(60, 10), (80, 5)]);
        assert_eq!(short.compared_bytes, 15);
        assert_eq!(extents(&found((100, 80), true, Some(&list))), [(80, 5)]);
    }

    #[test]
    fn json_is_what_the_manual_says() {
        let mut out = Vec::new();
        write_json(&mut out, &found((100, 60), false, None)).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "{\"volume_size\":100,\"destination_size\":60,\"compared_bytes\":60,\"different_bytes\":40,\
             \"extents\":[{\"offset\":60,\"length\":40}]}\n"
        );
    }
}
