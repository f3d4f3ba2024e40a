//! `lvmsync apply`: puts deltas onto a volume.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;

use super::inspect::read_whole;
use super::preview::{self, PreviewArgs};
use super::progress::Terminal;
use super::summary::Summary;
use super::sync_line::SyncLine;
use super::{TalkArgs, output};
use crate::cancel::{Cancel, CancelableReader};
use crate::commands::{Caller, Via};
use crate::delta::FormatError;
use crate::delta::codec::Compression;
use crate::delta::header::{Header, Source};
use crate::delta::reader::DeltaReader;
use crate::delta::stream::StreamId;
use crate::destination::{Destination, DestinationOptions, Make};
use crate::dm::making::Making;
use crate::engine::receive::Received;
use crate::error::{Error, ExitCode, Result};
use crate::monitor::Monitor;
use crate::partial_file::{PARTIAL_SUFFIX, partial_name};
use crate::record::Record;
use crate::record::keeper::{Keeper, Resume};
use crate::record::store::StateDir;
use crate::volume::VolumeIdentity;

const AFTER_HELP: &str = "\
Examples:
  lvmsync apply monday.delta tuesday.delta /dev/vg/copy    in this order
  lvmsync apply monday.delta vg/copy --undo monday.undo    keep the way back
  lvmsync apply monday.undo vg/copy                        and go it
  ssh src lvmsync send --from vg/s1 vg/s2 --stdout | lvmsync apply - vg/copy
  lvmsync apply monday.delta vg/copy --check               would it fit? writes nothing
  lvmsync apply monday.delta vg/copy --preview             on a snapshot first: look at vg/copy-preview, and then
  lvmsync apply --commit vg/copy                           merge it, or
  lvmsync apply --discard vg/copy                          leave everything as it was
  lvmsync apply full.delta vg/copy --create                make the volume if there is none
  lvmsync apply monday.delta vg/copy --verify              and read it back afterwards";

/// Apply deltas to a volume
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP, override_usage = "lvmsync apply [OPTIONS] FILE... DEST")]
pub(super) struct ApplyArgs {
    /// Deltas in the order in which they are to be applied, `-` for standard input; then the volume
    // Not at least two: each group between two options would need as many.
    #[arg(required = true, num_args = 1.., value_name = "FILE|DEST")]
    pub(super) deltas_and_destination: Vec<String>,

    #[command(flatten)]
    pub(super) write: WriteArgs,

    #[command(flatten)]
    pub(super) preview: PreviewArgs,

    /// Check everything and write nothing; also --dry-run
    #[arg(short = 'n', long, visible_alias = "dry-run")]
    pub(super) check: bool,

    /// FILE is the undo (FILE.partial) of a run that was cut: put back what it saved, as far as it goes
    #[arg(long)]
    unfinished: bool,

    /// After each delta read back what was written, from the disk, and compare it with the delta
    #[arg(long, conflicts_with = "check")]
    verify: bool,

    /// Print the result as a JSON object on stdout
    #[arg(long)]
    pub(super) json: bool,

    #[command(flatten)]
    pub(super) talk: TalkArgs,
}

/// Options of everything that writes to a volume.
#[derive(Args, Debug, Clone, Default)]
pub(super) struct WriteArgs {
    /// Save what is overwritten as a delta in this file (where the destination is): the way back
    #[arg(long, value_name = "FILE", visible_alias = "snapback")]
    pub(super) undo: Option<PathBuf>,

    /// Replace files that exist (the undo, the output)
    #[arg(long)]
    pub(super) overwrite: bool,

    /// Write even to a destination that is not in the base state: the result is neither state
    #[arg(long)]
    pub(super) force: bool,

    /// Leave out what is past the end of a smaller destination, such as a DRBD backing device
    #[arg(long)]
    pub(super) allow_smaller: bool,

    /// Write even to a destination that is mounted or otherwise in use
    #[arg(long)]
    pub(super) allow_in_use: bool,

    /// Refuse a delta where no record at the destination names its base
    #[arg(long)]
    pub(super) require_record: bool,

    /// Keep the whole delta beside the destination, checked and durable, before the first block is written
    #[arg(long)]
    pub(super) atomic: bool,

    /// Directory for that (where the destination is) [default: the one of the records]
    #[arg(long, value_name = "DIR", requires = "atomic")]
    pub(super) spool: Option<PathBuf>,

    /// For a full copy: where there is no DEST, make the logical volume: thin in the group's only thin pool, or thick
    /// where there is none; thin:POOL and thick say which. One that is there is used as it is
    #[arg(long, value_name = "auto|thick|thin:POOL", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "auto", value_parser = parse_making)]
    pub(super) create: Option<Making>,

    #[command(flatten)]
    pub(super) state: StateArgs,
}

fn parse_making(text: &str) -> std::result::Result<Making, String> {
    text.parse()
}

/// Where records of destinations are kept.
#[derive(Args, Debug, Clone, Default)]
pub(super) struct StateArgs {
    /// Directory for the records of destinations on this machine [default: /var/lib/lvmsync]
    #[arg(long, value_name = "DIR")]
    pub(super) state_dir: Option<PathBuf>,
}

impl StateArgs {
    pub(super) fn directory(&self) -> StateDir {
        StateDir::choose(self.state_dir.as_deref())
    }

    /// Who is told which commands to run.
    pub(super) fn caller(&self) -> Caller {
        let state_dir = self.state_dir.as_ref();
        Caller {
            via: Via::default(),
            state_dir: state_dir.map(|directory| directory.display().to_string()),
        }
    }
}

impl WriteArgs {
    /// What `--create` asks for, for what has this header.
    pub(super) fn make(&self, header: &Header) -> Option<Make> {
        self.create.clone().map(|making| Make {
            making,
            size_bytes: header.is_full_copy().then_some(header.volume_size),
        })
    }

    pub(super) fn options(&self, undo_compression: Compression) -> DestinationOptions {
        DestinationOptions {
            undo: self.undo.clone(),
            overwrite: self.overwrite,
            force: self.force,
            allow_smaller: self.allow_smaller,
            allow_in_use: self.allow_in_use,
            create: false,
            make: None,
            no_links: false,
            unfinished: false,
            compared: false,
            undo_compression,
            state_dir: self.state.state_dir.clone(),
            require_record: self.require_record,
            from: String::new(),
            via: Via::default(),
            atomic: self.atomic,
            spool: self.spool.clone(),
            stands_for: None,
        }
    }
}

pub(super) fn run(args: &ApplyArgs, cancel: &Cancel) -> Result<ExitCode> {
    if args.preview.is_asked() {
        return preview::run(args, cancel);
    }
    let (destination, deltas) = match args.deltas_and_destination.split_last() {
        Some((destination, deltas)) if !deltas.is_empty() => (destination, deltas),
        _ => {
            return Err(Error::Usage(
                "name the deltas, and then the volume: lvmsync apply FILE... DEST".to_owned(),
            ));
        }
    };
    if args.write.undo.is_some() && deltas.len() > 1 {
        return Err(Error::Usage(
            "--undo undoes one delta: apply them one by one, each with its own undo file"
                .to_owned(),
        ));
    }
    let deltas: Vec<String> = deltas.iter().map(|delta| as_it_is_called(delta)).collect();
    if args.verify {
        super::verify::refuse_unreadable(&deltas)?;
    }
    let terminal = args.talk.terminal();
    let options = DestinationOptions {
        unfinished: args.unfinished,
        ..args.write.options(Compression::None)
    };
    let mut total = Summary {
        destination: destination.clone(),
        dry_run: args.check,
        ..Summary::default()
    };
    let start = Instant::now();
    let options = DestinationOptions {
        from: deltas.join(", "),
        ..options
    };
    let (header, mut peeked) = first_header(&deltas, args.write.create.is_some(), cancel)?;
    let full = header.as_ref().filter(|header| header.is_full_copy());
    let options = DestinationOptions {
        create: !args.check && !Path::new(destination).exists() && full.is_some(),
        make: header.as_ref().and_then(|header| args.write.make(header)),
        ..options
    };
    if args.check
        && options.make.is_some()
        && Destination::could_make(destination, &options)?.is_some()
    {
        for delta in &deltas {
            let input = peeked
                .take()
                .map_or_else(|| open_input(delta, cancel), Ok)?;
            read_whole(input, &shown_name(delta), cancel, &terminal)?;
        }
        terminal.finish();
        let sound =
            format!("{destination}: would be made; everything is sound; nothing was written");
        terminal.summary(&sound);
        return Ok(ExitCode::Done);
    }
    let options = DestinationOptions {
        make: options.make.filter(|_| !args.check),
        ..options
    };
    let mut target = Destination::open(destination, &identities(&deltas), &options)?;
    let on_record = |delta| as_on_record(delta, target.keeper());
    let deltas: Vec<String> = deltas.into_iter().map(on_record).collect();
    for delta in &deltas {
        refuse_cut_undo(delta, &target, args.unfinished)?;
    }
    let begun = if args.check {
        0
    } else {
        already_applied(&deltas, &target, &terminal)
    };
    for (number, delta) in deltas.iter().enumerate().skip(begun) {
        let peeked = peeked.take().filter(|_| number == 0);
        let input = peeked.map_or_else(|| open_input(delta, cancel), Ok)?;
        let name = shown_name(delta);
        if args.check {
            check(input, &name, number == 0, &target, cancel, &terminal)?;
        } else {
            let received = target.receive(input, &name, cancel, &terminal, &mut |_, _| Ok(()))?;
            add(&mut total, &received);
            if args.verify {
                let ends_at = received.ends_at;
                super::verify::applied(delta, ends_at, destination, cancel, &terminal)
                    .map_err(|error| error.to_recover(|| compare_with_new(args, destination)))?;
                total.verified = true;
            }
            // Where it does not read back it is still needed.
            if received.took_back {
                remove_used(delta, &terminal);
            }
        }
    }
    total.seconds = start.elapsed().as_secs_f64();
    total.undo = args
        .write
        .undo
        .as_ref()
        .map(|path| path.display().to_string());
    terminal.finish();
    if args.json {
        output::json(&total)?;
    }
    if args.check {
        terminal.summary(&format!(
            "{destination}: everything fits; nothing was written"
        ));
    } else {
        terminal.summary(&total.sentence("applied"));
    }
    Ok(ExitCode::Done)
}

/// What leads on where a delta does not read back: where it came from is known to the user alone.
fn compare_with_new(args: &ApplyArgs, destination: &str) -> String {
    SyncLine::of("NEW", destination)
        .write(&args.write)
        .verify(true)
        .line("sync", &args.write.state)
}

/// The undo of a run that was cut has not got its name.
fn as_it_is_called(delta: &str) -> String {
    let partial = partial_name(Path::new(delta));
    if delta != "-" && !Path::new(delta).exists() && partial.is_file() {
        return partial.to_string_lossy().into_owned();
    }
    delta.to_owned()
}

/// The undo that the record of an incomplete destination names has not got its name either, whatever older one has it
/// still.
fn as_on_record(delta: String, keeper: &Keeper) -> String {
    let cut = keeper
        .record()
        .and_then(|record| record.incomplete.as_ref());
    let partial = partial_name(Path::new(&delta));
    let Some(cut) = cut.filter(|_| delta != "-" && partial.is_file()) else {
        return delta;
    };
    let is_kept =
        |undo: &str| std::path::absolute(&delta).is_ok_and(|path| path == Path::new(undo));
    // Once it is being applied, the record says of the run that kept it no more than what is undone.
    let is_applied = || cut.undo_of.is_some() && stream_of(&partial) == cut.stream;
    if cut.undo.as_deref().is_some_and(is_kept) || is_applied() {
        return partial.to_string_lossy().into_owned();
    }
    delta
}

/// An undo that was cut, applied as if it were whole, would leave the destination torn at its end.
fn refuse_cut_undo(delta: &str, target: &Destination, unfinished: bool) -> Result<()> {
    let is_cut = |record: &Record| record.incomplete.is_some();
    let is_undo = || {
        let reader = reader_of(Path::new(delta));
        reader.is_some_and(|reader| reader.header().source == Source::Undo)
    };
    if unfinished
        || !delta.ends_with(PARTIAL_SUFFIX)
        || target.keeper().record().is_some_and(is_cut)
        || !is_undo()
    {
        return Ok(());
    }
    let reason = format!(
        "{delta} is an undo that was cut, and nothing is on record of a run that was cut here with it"
    );
    let caller = target.caller();
    let way_out = match target.keeper().record().is_some_and(Record::knows) {
        true => "It is on record as whole: what is not needed any more can be removed.".to_owned(),
        false => format!(
            "If that run was cut all the same: {}\nIf it is not needed any more, remove it.",
            caller.command("apply --unfinished", &[delta, target.name()])
        ),
    };
    Err(Error::refused(target.name(), reason, way_out))
}

/// Which delta is in a file; `None` if there is none.
pub(super) fn stream_of(path: &Path) -> Option<StreamId> {
    let reader = reader_of(path)?;
    Some(StreamId::of(reader.header(), reader.samples()))
}

/// The delta in a file; a pipe is not looked into.
fn reader_of(path: &Path) -> Option<DeltaReader<File>> {
    let file = File::open(path).ok()?;
    let is_file = file.metadata().is_ok_and(|metadata| metadata.is_file());
    DeltaReader::new(file).ok().filter(|_| is_file)
}

/// An undo that has taken back the run that was cut with it is of no use to anybody, and would stand in the way of
/// the next undo of that name.
fn remove_used(delta: &str, terminal: &Terminal) {
    if delta.ends_with(PARTIAL_SUFFIX) && std::fs::remove_file(delta).is_ok() {
        terminal.remark(&format!("{delta}: has done its work and was removed"));
    }
}

/// Of a chain that was cut: how many deltas need not be applied again.
fn already_applied(deltas: &[String], target: &Destination, terminal: &Terminal) -> usize {
    if deltas.len() < 2 || target.keeper().record().is_none() {
        return 0;
    }
    let resume = |delta: &String| {
        let stream = stream_of(Path::new(delta)).filter(|_| delta != "-")?;
        Some(target.keeper().resume_offset(&stream))
    };
    let last = deltas
        .iter()
        .enumerate()
        .rev()
        .find_map(|(number, delta)| match resume(delta)? {
            Resume::At(_) => Some(number),
            Resume::Done => Some(number + 1),
            Resume::Begin => None,
        });
    let begun = last.unwrap_or(0).min(deltas.len() - 1);
    if begun > 0 {
        terminal.remark(&format!(
            "goes on at {}: what comes before is applied",
            deltas[begun]
        ));
    }
    begun
}

/// Reads a whole delta. Only the `first` of several can be held against the destination: the others begin from
/// what that one makes of it.
fn check(
    input: impl Read,
    name: &str,
    first: bool,
    target: &Destination,
    cancel: &Cancel,
    terminal: &Terminal,
) -> Result<()> {
    let whole = read_whole(input, name, cancel, terminal)?;
    match &whole.header {
        Some(header) if first => target
            .examine(header, &whole.samples, cancel, terminal)
            .map(drop),
        Some(_) => {
            terminal.warn(&format!(
                "{name}: it is sound; whether it fits shows when the deltas before it are applied"
            ));
            Ok(())
        }
        None => {
            if first {
                target.keeper().admit_anonymous()?;
            }
            terminal.warn(&format!(
                "{name}: a PROTO[3] stream says nothing by which to see that it fits"
            ));
            Ok(())
        }
    }
}

type Input = Box<dyn Read + Send>;

/// The header of the first delta, which says whether something may be made for it, and how large. A pipe can be read
/// only once, so it is looked into only if that is `needed`, and what was read of it comes back with the rest.
fn first_header(
    deltas: &[String],
    needed: bool,
    cancel: &Cancel,
) -> Result<(Option<Header>, Option<Input>)> {
    let Some(first) = deltas.first() else {
        return Ok((None, None));
    };
    let is_file = first != "-" && std::fs::metadata(first).is_ok_and(|found| found.is_file());
    if !is_file && !needed {
        return Ok((None, None));
    }
    let mut seen = Seen {
        input: open_input(first, cancel)?,
        bytes: Vec::new(),
    };
    let header = match DeltaReader::new(&mut seen) {
        Ok(reader) => Some(reader.header().clone()),
        // Nothing can be made for what does not say how large it is.
        Err(FormatError::UnsupportedVersion { .. }) => None,
        Err(source) if needed => {
            let what = shown_name(first);
            return Err(Error::Damaged { what, source });
        }
        // Whoever reads it to the end reports it.
        Err(_) => None,
    };
    let Seen { input, bytes } = seen;
    let rest = (!is_file).then(|| Box::new(std::io::Cursor::new(bytes).chain(input)) as Input);
    Ok((header, rest))
}

/// Keeps what was read. Header and samples have limits, so that is not much.
struct Seen {
    input: Input,
    bytes: Vec<u8>,
}

impl Read for Seen {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.bytes.extend_from_slice(&buffer[..read]);
        Ok(read)
    }
}

pub(super) fn add(total: &mut Summary, received: &Received) {
    let applied = &received.applied;
    total.extents += applied.data_frames + applied.zero_frames;
    total.data_bytes += applied.data_bytes;
    total.zero_bytes += applied.zero_bytes;
    total.bytes_sent += received.delta_bytes;
    if let Some(header) = &received.header {
        total.volume_size = header.volume_size;
    }
}

/// The deltas themselves, none of which may be the destination.
pub(super) fn identities(deltas: &[String]) -> Vec<VolumeIdentity> {
    let path = |delta: &String| {
        if delta == "-" {
            "/dev/stdin".to_owned()
        } else {
            delta.clone()
        }
    };
    deltas
        .iter()
        .map(path)
        .filter_map(|path| VolumeIdentity::of_path(path).ok())
        .collect()
}

/// `-` is standard input.
pub(super) fn open_input(name: &str, cancel: &Cancel) -> Result<Box<dyn Read + Send>> {
    if name == "-" {
        return Ok(Box::new(CancelableReader::new(
            output::data_in()?,
            cancel.clone(),
        )));
    }
    let file = File::open(name).map_err(|error| Error::io(format!("cannot open {name}"), error))?;
    Ok(Box::new(CancelableReader::new(file, cancel.clone())))
}

/// How an input is called in messages.
pub(super) fn shown_name(name: &str) -> String {
    if name == "-" {
        "standard input".to_owned()
    } else {
        name.to_owned()
    }
}

/// For the classic command line and for `serve`: one delta from standard input or a file.
pub(super) fn apply_one(
    delta: &str,
    destination: &str,
    options: &DestinationOptions,
    cancel: &Cancel,
    monitor: &dyn Monitor,
) -> Result<Received> {
    let delta = &as_it_is_called(delta);
    let mut target = Destination::open(destination, &identities(&[delta.to_owned()]), options)?;
    let delta = as_on_record(delta.to_owned(), target.keeper());
    refuse_cut_undo(&delta, &target, options.unfinished)?;
    let input = open_input(&delta, cancel)?;
    target.receive(input, &shown_name(&delta), cancel, monitor, &mut |_, _| {
        Ok(())
    })
}
