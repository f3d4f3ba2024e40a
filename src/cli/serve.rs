//! `lvmsync serve`: the far end of a session, started by ssh.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use clap::Args;

use super::apply::StateArgs;
use super::compare_far::Place;
use super::timeout::TimeoutArgs;
use super::{TalkArgs, output};
use crate::cancel::Cancel;
use crate::commands::{Caller, Via};
use crate::delta::codec::Compression;
use crate::delta::reader::DeltaReader;
use crate::destination::{Destination, DestinationOptions, Make};
use crate::engine::apply::Applied;
use crate::error::{Error, ExitCode, Result};
use crate::gate::policy::{Permits, Policy};
use crate::gate::{Admitted, Gate};
use crate::monitor::Monitor;
use crate::record::keeper::Resume;
use crate::record::store::StateDir;
use crate::session::SessionError;
use crate::session::limits::WithoutProto3;
use crate::session::line::Line;
use crate::session::message::{
    Ack, ApplyOptions, Done, OPERATION_COMPARE, OPERATION_PULL, OPERATION_SYNC, Open, Ready,
};
use crate::session::server::{Replies, Server};
use crate::session::text::sanitise;
use crate::source::origin_of_lost;
use crate::sys::device::DeviceNumber;
use crate::volume::VolumeIdentity;
use crate::volume::host::boot_id;

/// The far end of a session; ssh starts it, people do not
#[derive(Args, Debug)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    state: StateArgs,

    #[command(flatten)]
    limits: LimitArgs,

    #[command(flatten)]
    timeout: TimeoutArgs,

    #[command(flatten)]
    talk: TalkArgs,
}

/// For a forced command in `authorized_keys`, or a line in sudoers: `docs/security.md`.
#[derive(Args, Debug)]
struct LimitArgs {
    /// Only destinations whose canonical name matches: /dev/vg/lv for a logical volume, else the path without
    /// links. `*` and `?` match no `/`. May be given several times. Quote it: the shell has globs of its own
    #[arg(long, value_name = "GLOB")]
    allow: Vec<String>,

    /// Write nothing: dry runs and comparing only
    #[arg(long)]
    read_only: bool,

    /// Where undo files go, by plain names; without it there are none
    #[arg(long, value_name = "DIR", requires = "allow")]
    undo_dir: Option<PathBuf>,

    /// What else clients may ask for, beside --force and --allow-smaller
    #[arg(long, value_enum, value_name = "WHAT")]
    permit: Vec<Permit>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Permit {
    /// --allow-in-use: write to an allowed destination that is mounted or held
    InUse,
    /// --overwrite: replace an undo file that exists
    Overwrite,
    /// --create: make a logical volume of an allowed name where there is none
    Create,
    /// sync HOST:SRC DEST: read the content of an allowed volume
    Read,
    /// With read: have a temporary snapshot made of an allowed volume that is live, and kept under an allowed name
    Snapshot,
}

impl LimitArgs {
    fn policy(&self) -> Result<Policy> {
        let undo_directory = self
            .undo_dir
            .as_ref()
            .map(|directory| {
                let action = || format!("--undo-dir {}: cannot use it", directory.display());
                std::fs::canonicalize(directory).map_err(|error| Error::io(action(), error))
            })
            .transpose()?;
        let of_reading = [Permit::Read, Permit::Snapshot];
        let is_of_use = |permit: &Permit| {
            !self.allow.is_empty() || (self.read_only && of_reading.contains(permit))
        };
        if !self.permit.iter().all(is_of_use) {
            return Err(Error::Usage(
                "--permit widens what --allow permits; a server without limits has nothing to permit, and with \
                 --read-only alone it is only `read` and `snapshot`"
                    .to_owned(),
            ));
        }
        if self.permit.contains(&Permit::Snapshot) && !self.permit.contains(&Permit::Read) {
            return Err(Error::Usage(
                "--permit snapshot is about volumes whose content is given away: it needs --permit read as well"
                    .to_owned(),
            ));
        }
        let permits = Permits {
            in_use: self.permit.contains(&Permit::InUse),
            overwrite: self.permit.contains(&Permit::Overwrite),
            create: self.permit.contains(&Permit::Create),
            read: self.permit.contains(&Permit::Read),
            snapshot: self.permit.contains(&Permit::Snapshot),
        };
        Policy::new(&self.allow, self.read_only, undo_directory, permits)
    }
}

pub(super) fn run(args: &ServeArgs, cancel: &Cancel) -> Result<ExitCode> {
    super::log::start(args.talk.verbose, args.talk.quiet);
    let gate = Gate::new(args.limits.policy()?);
    let line = Line::new(cancel.clone(), args.timeout.get());
    let (input, out) = (
        line.reader(output::data_in()?),
        line.shared_writer(output::data_out()?),
    );
    // Who only pings holds nothing yet, and must not hold us either.
    line.begins();
    let mut server = Server::accept_within(input, out, line.timeout()).map_err(lost)?;
    let open = server.request().map_err(lost)?;
    line.has_begun();
    server.keep_alive();
    if open.operation == OPERATION_PULL {
        let place = place(&open, args.state.state_dir.as_deref());
        return super::pull_far::send(server, &open, &gate, place, cancel);
    }
    let replies = server.replies();
    let state_dir = args.state.state_dir.as_deref();
    let monitor = Relay(replies.clone());
    match serve(
        &mut server,
        &open,
        &replies,
        &gate,
        state_dir,
        &mut Heard::default(),
        &monitor,
        cancel,
    ) {
        Ok(done) => {
            replies.done(done).map_err(lost)?;
            Ok(ExitCode::Done)
        }
        Err(error) => {
            // The true reason of a stream that broke is the connection's, not the delta's.
            let error = server.into_failure().map_or(error, lost);
            let error = if cancel.is_cancelled() {
                Error::Interrupted
            } else {
                error
            };
            let recover = recover(&open, &gate, &error);
            if replies.fail_to_recover(&error, &recover).is_err() {
                // Nobody is there to hear it; the log of whoever started us is.
                output::message(&format!("lvmsync: {}", error.chain()));
            }
            Ok(error.exit_code())
        }
    }
}

/// What is known of a stream that is received, whatever comes of it.
#[derive(Default)]
pub(super) struct Heard {
    /// Volume offset at which it goes on.
    pub(super) resumed_at: u64,
    /// What the destination held is compared.
    pub(super) compares: bool,
    /// What of it is durable.
    pub(super) applied: Applied,
}

/// The end that receives, and answers.
#[allow(
    clippy::too_many_arguments,
    reason = "the two ways into this have nothing in common but these"
)]
pub(super) fn serve<R: Read, W: Write + Send>(
    server: &mut Server<R, W>,
    open: &Open,
    replies: &Replies<W>,
    gate: &Gate,
    state_dir: Option<&Path>,
    heard: &mut Heard,
    monitor: &dyn Monitor,
    cancel: &Cancel,
) -> Result<Done> {
    let admitted = gate.admit(open)?;
    if open.operation == OPERATION_COMPARE {
        let place = place(open, state_dir);
        return super::compare_far::serve(server, open, gate, &admitted, &place, monitor, cancel);
    }
    let mut options = DestinationOptions {
        state_dir: state_dir.map(Path::to_owned),
        from: sanitise(&open.from),
        via: via(open),
        ..destination_options(&open.options, &admitted)?
    };
    if open.options.dry_run
        && let Some(kind) = Destination::could_make(&admitted.destination, &options)?
    {
        let destination = open.destination.clone();
        let ready = Ready {
            destination,
            size_bytes: 0,
            kind: kind.to_owned(),
            empty: true,
            ..Ready::default()
        };
        server.ready(ready).map_err(lost)?;
        let damaged = |source| Error::Damaged {
            what: "the sender".to_owned(),
            source,
        };
        let reader = DeltaReader::new(WithoutProto3::new(&mut *server)).map_err(damaged)?;
        let planned = reader.header().planned;
        drop(reader);
        std::io::copy(server, &mut std::io::sink())
            .map_err(|error| Error::io("cannot read what is sent", error))?;
        return Ok(Done {
            bytes_written: planned.data_bytes,
            bytes_zeroed: planned.zero_bytes,
            frames: planned.extents,
            dry_run: true,
            ..Done::default()
        });
    }
    // It was there a moment ago, and a dry run makes nothing.
    options.create &= !open.options.dry_run;
    options.make = options.make.filter(|_| !open.options.dry_run);
    let syncs = open.operation == OPERATION_SYNC;
    options.compared = syncs;
    let source = source_here(open);
    let mut destination = Destination::open(&admitted.destination, source.as_slice(), &options)?;
    gate.confirm(&admitted, destination.volume())?;
    let empty = destination.is_empty();
    let stream = open.stream.as_ref();
    let resume = match stream {
        // A dry run touches nothing, what is kept for `--atomic` included.
        Some(stream) if open.options.dry_run => Some(destination.keeper().resume_offset(stream)),
        Some(stream) => Some(destination.announce(stream)?),
        None => None,
    };
    let (resume_at, already) = match resume {
        Some(Resume::At(offset)) => (offset, false),
        // Whoever asks for a comparison wants to see it.
        Some(Resume::Done) => (0, !syncs),
        _ => (0, false),
    };
    server
        .ready(Ready {
            destination: open.destination.clone(),
            size_bytes: destination.size_bytes(),
            kind: destination.kind().to_owned(),
            resume_at,
            already,
            empty,
            ..Ready::default()
        })
        .map_err(lost)?;
    (heard.resumed_at, heard.compares) = (resume_at, syncs && !empty);
    let on_durable = &mut |offset: u64, applied: &Applied| {
        heard.applied = *applied;
        let frames = applied.data_frames + applied.zero_frames;
        replies
            .ack(Ack {
                offset,
                frames,
                bytes: applied.data_bytes,
            })
            .map_err(lost)
    };
    let what = "the sender";
    let received = if open.options.dry_run {
        destination.rehearse(server, what, cancel, monitor)?
    } else if syncs {
        super::sync_far::receive(
            server,
            &mut destination,
            replies,
            cancel,
            monitor,
            on_durable,
        )?
    } else {
        let input = WithoutProto3::new(server);
        destination.receive(input, what, cancel, monitor, on_durable)?
    };
    let volume_size = received
        .header
        .as_ref()
        .map_or(0, |header| header.volume_size);
    Ok(Done {
        bytes_written: received.applied.data_bytes,
        bytes_zeroed: received.applied.zero_bytes,
        frames: received.applied.data_frames + received.applied.zero_frames,
        undo: open.options.undo.clone(),
        dry_run: open.options.dry_run,
        compared_bytes: (syncs && !empty).then(|| volume_size.saturating_sub(resume_at)),
        cut_bytes: received.applied.cut_bytes,
        ..Done::default()
    })
}

/// In a comparison: what can be read where a snapshot is lost, as far as the client may hear of it.
fn recover(open: &Open, gate: &Gate, error: &Error) -> String {
    let is_lost =
        open.operation == OPERATION_COMPARE && error.exit_code() == ExitCode::TrackingLost;
    let origin = is_lost.then(|| origin_of_lost(&open.destination)).flatten();
    origin
        .filter(|origin| gate.may_name(origin))
        .unwrap_or_default()
}

/// Where this end keeps its records, and who is told of them.
fn place(open: &Open, state_dir: Option<&Path>) -> Place {
    Place {
        state: StateDir::choose(state_dir),
        caller: Caller {
            via: via(open),
            state_dir: state_dir.map(|directory| directory.display().to_string()),
        },
    }
}

/// How people at the client reach this machine, as the client says: words.
fn via(open: &Open) -> Via {
    Via {
        shell: sanitise(&open.via.shell),
        program: sanitise(&open.via.program),
    }
}

/// The session's end, as this end sees it.
pub(super) fn lost(error: SessionError) -> Error {
    error.into_error("the sender")
}

/// What the sender reads from, if that is on this very machine.
fn source_here(open: &Open) -> Option<VolumeIdentity> {
    let source = open.source.as_ref()?;
    if boot_id()? != source.boot_id {
        return None;
    }
    match (source.device, source.file) {
        (Some((major, minor)), _) => Some(VolumeIdentity::Block(DeviceNumber { major, minor })),
        (None, Some((filesystem, inode))) => Some(VolumeIdentity::File { filesystem, inode }),
        (None, None) => None,
    }
}

fn destination_options(options: &ApplyOptions, admitted: &Admitted) -> Result<DestinationOptions> {
    let make = options.create_volume.as_ref().map(|wish| {
        let making = wish.kind.parse().map_err(|reason| {
            Error::Usage(format!("--create={}: {reason}", sanitise(&wish.kind)))
        })?;
        Ok::<_, Error>(Make {
            making,
            size_bytes: wish.size_bytes,
        })
    });
    Ok(DestinationOptions {
        undo: admitted.undo.clone(),
        no_links: admitted.is_restricted(),
        overwrite: options.overwrite,
        force: options.force,
        allow_smaller: options.allow_smaller,
        allow_in_use: options.allow_in_use,
        create: options.create,
        make: make.transpose()?,
        unfinished: false,
        compared: false,
        undo_compression: Compression::None,
        state_dir: None,
        require_record: options.require_record,
        from: String::new(),
        via: Via::default(),
        atomic: options.atomic,
        spool: options.spool.clone().map(Into::into),
        stands_for: None,
    })
}

/// Warnings go to the sender; its own progress is its own.
pub(super) struct Relay<W>(pub(super) Replies<W>);

impl<W: Write + Send> Monitor for Relay<W> {
    fn plan(&self, _: u64) {}

    fn advance(&self, _: u64) {}

    fn warn(&self, text: &str) {
        // A broken connection shows itself at the next read or write that matters.
        let _ = self.0.warn(text);
    }

    fn remark(&self, text: &str) {
        let _ = self.0.warn(text);
    }

    fn note(&self, _: &str) {}
}
