//! `lvmsync send`: sends what changed, or everything, to a volume here or elsewhere, a file, or stdout.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;

use super::apply::WriteArgs;
use super::prestart::Prestarted;
use super::progress::Speaker;
use super::summary::Summary;
use super::sync_line::SyncLine;
use super::thin::ThinArgs;
use super::timeout::TimeoutArgs;
use super::{TalkArgs, output};
use crate::cancel::Cancel;
use crate::delta::codec::Compression;
use crate::engine::deliver::{DeltaSink, Paced, Proto3Sink};
use crate::engine::effort::Effort;
use crate::engine::pump::{PumpOptions, pump};
use crate::engine::throttle::Throttle;
use crate::error::{Error, ExitCode, Result};
use crate::extent::Kind;
use crate::monitor::Monitor;
use crate::partial_file::PartialFile;
use crate::session::endpoint::{Endpoint, parse_endpoint};
use crate::session::text::sanitise;
use crate::source::{SendSource, SnapshotWish, SourceRequest, source_of_sync};
use crate::units::{Bytes, count, parse_size};
use crate::volume::VolumeIdentity;

const AFTER_HELP: &str = "\
NEW is a snapshot, an origin, or any block device or file. With --from OLD only what differs between OLD and
NEW is sent; OLD is an older snapshot of the same origin. Without it everything is sent: the first copy.

The rule that loses nothing: make the new snapshot first, then send, then remove the old one.
  lvcreate -s -pr -L 10G -n s2 vg/data
  lvmsync send --from vg/s1 vg/s2 backup:/dev/vg/data
  lvremove vg/s1                                  # s2 is the next OLD

More examples:
  lvmsync send vg/s1 backup:/dev/vg/data                    first copy over ssh
  lvmsync send vg/s1 backup:vg/data --create                and make the volume there, thin if there is a pool
  lvmsync send vg/s1 backup:vg/data --create=thin:pool2
  lvmsync send --from vg/s1 vg/s2 -o monday.delta -z zstd   into a file
  lvmsync send --from era:7 vg/data backup:vg/data          what was written since, as dm-era has recorded
  lvmsync send --from vg/s1 vg/s2 --stdout | gpg -e > x.gpg
  lvmsync send --from vg/s1 vg/s2 backup:vg/data --undo /var/undo/monday
  lvmsync send --from vg/s1 vg/s2 backup:vg/data -n         what would be sent?
  lvmsync send --from vg/s1 vg/s2 backup:vg/data --verify   and read it back afterwards
  lvmsync send --from vg/s1 vg/s2 -e 'ssh -p 2222' --sudo admin@backup:vg/data

A remote destination needs lvmsync there, too. The far end says done only when everything is on its disk.";

/// Send what changed (or everything) to a volume, a file or a pipe
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub(super) struct SendArgs {
    /// The old state: a snapshot of the same origin; or cow:STORE for an exception store in a file; or thin:ID;
    /// or era:N
    #[arg(long, value_name = "OLD")]
    from: Option<String>,

    /// The new state: a snapshot, an origin, a block device or a file; or thin:ID
    new: String,

    /// Where to: DEST or [USER@]HOST:DEST, a block device, a logical volume or a file
    #[arg(value_name = "[HOST:]DEST", required_unless_present_any = ["output", "stdout"])]
    #[arg(conflicts_with_all = ["output", "stdout"])]
    destination: Option<String>,

    /// With cow:STORE, thin:ID or era:N, size of the volume at OLD, if it was extended since
    #[arg(long, value_name = "SIZE", value_parser = parse_size, requires = "from")]
    base_size: Option<u64>,

    #[command(flatten)]
    thin: ThinArgs,

    /// With --thin-metadata, the volume or file that holds the content of NEW
    #[arg(long, value_name = "VOLUME", requires = "thin_metadata")]
    data_source: Option<String>,

    #[command(flatten)]
    to: ToArgs,

    #[command(flatten)]
    write: WriteArgs,

    #[command(flatten)]
    remote: RemoteArgs,

    /// Tell what would be sent, check the destination, and write nothing
    #[arg(short = 'n', long)]
    dry_run: bool,

    /// Afterwards read back what was written, from the disk, and compare it with what was sent
    #[arg(long, conflicts_with_all = ["dry_run", "output", "stdout", "compat"])]
    verify: bool,

    /// Print the result as a JSON object on stdout
    #[arg(long, conflicts_with = "stdout")]
    json: bool,

    #[command(flatten)]
    talk: TalkArgs,
}

#[derive(Args, Debug, Clone, Default)]
pub(super) struct ToArgs {
    /// Write the delta to this file
    #[arg(short, long, value_name = "FILE", conflicts_with = "stdout")]
    pub(super) output: Option<PathBuf>,

    /// Write the delta to standard output
    #[arg(long)]
    pub(super) stdout: bool,

    /// Format of the delta: v4, or proto3 for the original lvmsync, which checks nothing
    #[arg(long, value_enum, default_value_t = Format::V4, value_name = "FORMAT")]
    pub(super) format: Format,

    /// Compression: none, lz4, zstd, zstd:LEVEL (1 to 19), or auto: as much as the link is worth
    #[arg(short = 'z', long, value_name = "CODEC", default_value = "none")]
    pub(super) compress: Compression,

    /// Send at most so many bytes a second, such as 10M
    #[arg(long, value_name = "RATE", value_parser = parse_size)]
    pub(super) bwlimit: Option<u64>,
}

/// Pauses of 1, 2, 4 … 32 s: a minute in all.
pub(super) const RETRIES: u32 = 6;

/// How the far end is reached.
#[derive(Args, Debug, Clone, Default)]
pub(super) struct RemoteArgs {
    /// Remote shell, with options
    #[arg(short = 'e', long, value_name = "COMMAND", default_value = "ssh")]
    pub(super) rsh: String,

    /// Run lvmsync at the far end through sudo -n
    #[arg(long)]
    pub(super) sudo: bool,

    /// The lvmsync at the far end
    #[arg(long, value_name = "PATH", default_value = "lvmsync")]
    pub(super) remote_path: String,

    /// How often a lost connection is made again, after pauses that grow
    #[arg(long, value_name = "N", default_value_t = RETRIES)]
    pub(super) retries: u32,

    /// The far end is the original lvmsync: send version 3, without any of the checks
    #[arg(long)]
    pub(super) compat: bool,

    #[command(flatten)]
    pub(super) timeout: TimeoutArgs,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// docs/format.md
    #[default]
    V4,
    /// The stream of the original lvmsync
    Proto3,
}

/// A send, whichever command line it came from.
pub(super) struct Job<'a> {
    pub(super) request: SourceRequest<'a>,
    pub(super) destination: Option<&'a str>,
    pub(super) to: &'a ToArgs,
    pub(super) write: &'a WriteArgs,
    pub(super) remote: &'a RemoteArgs,
    /// Far ends that were started already.
    pub(super) prestarted: Option<&'a Prestarted>,
    pub(super) dry_run: bool,
    pub(super) verify: bool,
    /// Write only what differs.
    pub(super) comparing: bool,
    /// What `to.compress` asks for, and what is found out about it.
    pub(super) effort: Effort,
    /// In a pull, whose user is at the other end: what to name as SRC of the sync that needs no list of changes.
    pub(super) recover_at_peer: Option<&'a dyn Fn() -> String>,
    pub(super) cancel: &'a Cancel,
    pub(super) monitor: &'a dyn Monitor,
    pub(super) speaker: Speaker,
}

pub(super) fn run(args: &SendArgs, cancel: &Cancel) -> Result<ExitCode> {
    let terminal = args.talk.terminal();
    if args.destination.as_deref() == Some("-") {
        return Err(Error::Usage(
            "`-` is no volume: to write the delta to standard output, use --stdout. \
             If a file of that name is meant, write ./-"
                .to_owned(),
        ));
    }
    let job = Job {
        request: SourceRequest {
            from: args.from.as_deref(),
            new: Some(&args.new),
            data_source: args.data_source.as_deref(),
            base_size: args.base_size,
            thin_metadata: args.thin.metadata(),
            volume_size: args.thin.volume_size,
            snapshot: Some(SnapshotWish {
                only_tracked: true,
                only_look: args.dry_run,
                ..SnapshotWish::default()
            }),
            compression: args.to.compress,
            state: args.write.state.directory(),
            caller: args.write.state.caller(),
            cancel,
            monitor: &terminal,
        },
        destination: args.destination.as_deref(),
        to: &args.to,
        write: &args.write,
        remote: &args.remote,
        prestarted: None,
        dry_run: args.dry_run,
        verify: args.verify,
        comparing: false,
        effort: Effort::new(args.to.compress),
        recover_at_peer: None,
        cancel,
        monitor: &terminal,
        speaker: terminal.speaker(),
    };
    let summary = job.run();
    terminal.finish();
    let summary = summary?;
    if args.json {
        output::json(&summary)?;
    }
    terminal.summary(&sentence(&summary));
    Ok(ExitCode::Done)
}

/// Ends a delta, unless `sent` is an error, and counts what it carried in any case.
pub(super) fn finish<W: Write>(
    sink: DeltaSink<'_, W>,
    sent: Result<()>,
    summary: &mut Summary,
) -> Result<()> {
    let so_far = sink.so_far();
    let finished = sent.and_then(|()| sink.finish());
    let (result, carried) = match finished {
        Ok(whole) => (Ok(()), whole),
        Err(error) => (Err(error), so_far),
    };
    summary.carried(carried);
    result
}

/// The last line of a send.
pub(super) fn sentence(summary: &Summary) -> String {
    if !summary.dry_run {
        return summary.sentence("sent");
    }
    format!(
        "would send {} data and {} zero in {}, of {}; nothing was written",
        Bytes(summary.data_bytes),
        Bytes(summary.zero_bytes),
        count(summary.extents, "extent"),
        Bytes(summary.volume_size)
    )
}

impl Job<'_> {
    /// Does it, and says what was done.
    pub(super) fn run(&self) -> Result<Summary> {
        self.run_or(|| self.sync_instead())
    }

    /// Does it; where only a comparison helps, `recover` is the command for that.
    pub(super) fn run_or(&self, recover: impl FnOnce() -> String) -> Result<Summary> {
        self.try_run().map_err(|error| error.to_recover(recover))
    }

    /// The command that needs no list of changes.
    fn sync_instead(&self) -> String {
        let source = source_of_sync(&self.request);
        SyncLine::of(&source, self.destination.unwrap_or("DEST"))
            .way(self.remote)
            .write(self.write)
            .verify(self.verify)
            .line("sync", &self.write.state)
    }

    fn try_run(&self) -> Result<Summary> {
        let start = Instant::now();
        self.check_options()?;
        // A destination that is spelled wrong should be known before metadata is read for minutes.
        let destination = self.destination.map(parse_endpoint).transpose()?;
        let mut source = SendSource::open(&self.request)?;
        source.identify()?;
        if !self.dry_run {
            self.monitor.plan(source.changes.total_bytes());
        }
        let mut summary = Summary {
            destination: self.shown_destination(),
            volume_size: source.header.volume_size,
            extents: source.changes.len() as u64,
            data_bytes: source.changes.bytes(Kind::Data),
            zero_bytes: source.changes.bytes(Kind::Zero),
            undo: self
                .write
                .undo
                .as_ref()
                .map(|path| path.display().to_string()),
            dry_run: self.dry_run,
            ..Summary::default()
        };
        match &destination {
            None if self.dry_run => {}
            None => self.to_file_or_stdout(&source, &mut summary)?,
            Some(Endpoint::Local(path)) => {
                self.to_local(&source, &path.to_string_lossy(), &mut summary)?;
            }
            Some(Endpoint::Remote { host, path }) => {
                summary.undo_host = Some(sanitise(host));
                super::remote::send(self, &source, host, path, &mut summary)?;
            }
        }
        if let Some(destination) = destination.filter(|_| self.verify) {
            super::verify::sent(self, &mut source, &destination)?;
            summary.verified = true;
        }
        source.keep_snapshot(self.monitor)?;
        summary.seconds = start.elapsed().as_secs_f64();
        Ok(summary)
    }

    fn check_options(&self) -> Result<()> {
        let usage = |text: &str| Err(Error::Usage(text.to_owned()));
        let to_volume = self.destination.is_some();
        if self.write.create.is_some() && !to_volume {
            return usage("--create makes a destination volume; there is none here");
        }
        if self.write.create.is_some() && self.remote.compat {
            return usage("the original lvmsync at the far end makes no volumes");
        }
        // They go on the command line and into the records of another machine as text.
        let paths = [("--undo", &self.write.undo), ("--spool", &self.write.spool)];
        for (option, path) in paths {
            if path.as_ref().is_some_and(|path| path.to_str().is_none()) {
                return usage(&format!("{option}: the path is not UTF-8"));
            }
        }
        if self.write.undo.is_some() && !to_volume {
            return usage("--undo saves what a destination volume held; there is none here");
        }
        if self.to.format == Format::Proto3 && self.to.compress != Compression::None {
            return usage("the proto3 format knows no compression");
        }
        if self.to.format == Format::Proto3 && to_volume {
            return usage(
                "--format is for -o and --stdout; for an original lvmsync at the far end use --compat",
            );
        }
        Ok(())
    }

    fn shown_destination(&self) -> String {
        match (self.destination, &self.to.output) {
            (Some(destination), _) => destination.to_owned(),
            (None, Some(path)) => path.display().to_string(),
            (None, None) => "standard output".to_owned(),
        }
    }

    fn to_file_or_stdout(&self, source: &SendSource, summary: &mut Summary) -> Result<()> {
        let Some(path) = &self.to.output else {
            let stdout = output::stream_out()?;
            if io::IsTerminal::is_terminal(&stdout) {
                return Err(Error::Usage(
                    "standard output is a terminal: send the delta into a pipe or a file"
                        .to_owned(),
                ));
            }
            return self.write_delta(source, 0, stdout, "standard output", summary);
        };
        self.refuse_input_as_output(source, path)?;
        let file = PartialFile::create(path, self.write.overwrite)?;
        let name = path.display().to_string();
        let out = file
            .file()
            .map_err(|error| Error::io(format!("cannot write {name}"), error))?;
        self.write_delta(source, 0, out, &name, summary)?;
        file.persist()
    }

    /// The file that says what changed: `cow:STORE`, or the copy of a pool's or an era device's metadata.
    pub(super) fn store_identity(&self) -> Option<VolumeIdentity> {
        if let Some(metadata) = self.request.thin_metadata {
            return VolumeIdentity::of_path(metadata.path()).ok();
        }
        let store = self.request.from?.strip_prefix("cow:")?;
        VolumeIdentity::of_path(store).ok()
    }

    /// `--overwrite` must not cost the volume that is sent, or the store that says what changed.
    fn refuse_input_as_output(&self, source: &SendSource, path: &Path) -> Result<()> {
        let Ok(output) = VolumeIdentity::of_path(path) else {
            return Ok(());
        };
        if output == source.identity() || Some(output) == self.store_identity() {
            return Err(Error::Usage(format!(
                "{} is what is being sent; the delta cannot replace it",
                path.display()
            )));
        }
        Ok(())
    }

    /// Writes the delta, or its part from `from_offset` on, in the format that was asked for.
    pub(super) fn write_delta(
        &self,
        source: &SendSource,
        from_offset: u64,
        out: impl Write,
        name: &str,
        summary: &mut Summary,
    ) -> Result<()> {
        let out = Paced::new(out, Throttle::new(self.to.bwlimit, self.cancel));
        if self.to.format == Format::Proto3 {
            return self.write_proto3(source, out, name, summary);
        }
        let header = source.header.continued_at(from_offset);
        let mut sink = DeltaSink::new(out, &header, &source.samples, name)?;
        let sent = self.pump(source, from_offset, &mut sink);
        finish(sink, sent, summary)
    }

    /// Writes a stream for the original.
    pub(super) fn write_proto3(
        &self,
        source: &SendSource,
        out: impl Write,
        name: &str,
        summary: &mut Summary,
    ) -> Result<()> {
        let mut sink = Proto3Sink::new(out, name)?;
        self.pump(source, 0, &mut sink)?;
        summary.bytes_sent = sink.finish()?;
        Ok(())
    }

    fn pump(
        &self,
        source: &SendSource,
        from_offset: u64,
        sink: &mut dyn crate::engine::FrameSink,
    ) -> Result<()> {
        let options = PumpOptions {
            effort: &self.effort,
            cancel: self.cancel,
            monitor: self.monitor,
            unlike: None,
        };
        let rest;
        let changes = if from_offset == 0 {
            &source.changes
        } else {
            rest = source.changes.from_offset(from_offset);
            &rest
        };
        pump(source.side(), changes, sink, &options).map_err(|error| source.explain(error))?;
        source.check_unchanged()
    }
}
