//! `lvmsync serve`: the far end of a session, started by ssh.

use std::fs::File;
use std::path::Path;

use clap::Args;

use super::apply::StateArgs;
use super::{TalkArgs, output};
use crate::cancel::{Cancel, CancelableReader};
use crate::delta::codec::Compression;
use crate::destination::{Destination, DestinationOptions};
use crate::engine::apply::Applied;
use crate::error::{Error, ExitCode, Result};
use crate::monitor::Monitor;
use crate::record::keeper::Resume;
use crate::session::SessionError;
use crate::session::message::{Ack, ApplyOptions, Done, OPERATION_COMPARE, Open, Ready};
use crate::session::server::{Replies, Server};
use crate::session::text::sanitise;
use crate::sys::device::DeviceNumber;
use crate::volume::VolumeIdentity;
use crate::volume::host::boot_id;

/// The far end of a session; ssh starts it, people do not
#[derive(Args, Debug)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    state: StateArgs,

    #[command(flatten)]
    talk: TalkArgs,
}

pub(super) fn run(args: &ServeArgs, cancel: &Cancel) -> Result<ExitCode> {
    super::start_logging(args.talk.verbose);
    let input = CancelableReader::new(output::data_in()?, cancel.clone());
    let mut server = Server::accept(input, output::data_out()?).map_err(lost)?;
    let open = server.request().map_err(lost)?;
    let replies = server.replies();
    match serve(
        &mut server,
        &open,
        &replies,
        args.state.state_dir.as_deref(),
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
            if replies.fail(&error).is_err() {
                // Nobody is there to hear it; the log of whoever started us is.
                output::message(&format!("lvmsync: {}", error.chain()));
            }
            Ok(error.exit_code())
        }
    }
}

type Stdin = CancelableReader<File>;

fn serve(
    server: &mut Server<Stdin, File>,
    open: &Open,
    replies: &Replies<File>,
    state_dir: Option<&Path>,
    cancel: &Cancel,
) -> Result<Done> {
    let monitor = Relay(replies.clone());
    if open.operation == OPERATION_COMPARE {
        return super::compare_far::serve(server, &open.destination, &monitor, cancel);
    }
    let options = DestinationOptions {
        state_dir: state_dir.map(Path::to_owned),
        from: sanitise(&open.from),
        ..destination_options(&open.options)
    };
    if open.options.dry_run && Destination::could_make(&open.destination, &options) {
        let destination = open.destination.clone();
        let ready = Ready {
            destination,
            size_bytes: 0,
            kind: "file".to_owned(),
            ..Ready::default()
        };
        server.ready(ready).map_err(lost)?;
        std::io::copy(server, &mut std::io::sink())
            .map_err(|error| Error::io("cannot read what is sent", error))?;
        return Ok(Done {
            dry_run: true,
            ..Done::default()
        });
    }
    let mut destination =
        Destination::open(&open.destination, source_here(open).as_slice(), &options)?;
    let (resume_at, already) = match open
        .stream
        .as_ref()
        .map(|stream| destination.keeper().resume_offset(stream))
    {
        Some(Resume::At(offset)) => (offset, false),
        Some(Resume::Done) => (0, true),
        _ => (0, false),
    };
    server
        .ready(Ready {
            destination: open.destination.clone(),
            size_bytes: destination.size_bytes(),
            kind: destination.kind().to_owned(),
            resume_at,
            already,
        })
        .map_err(lost)?;
    let on_durable = &mut |offset: u64, applied: &Applied| {
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
        destination.rehearse(server, what, cancel, &monitor)?
    } else {
        destination.receive(server, what, cancel, &monitor, on_durable)?
    };
    Ok(Done {
        bytes_written: received.applied.data_bytes,
        bytes_zeroed: received.applied.zero_bytes,
        frames: received.applied.data_frames + received.applied.zero_frames,
        undo: open.options.undo.clone(),
        dry_run: open.options.dry_run,
    })
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

fn destination_options(options: &ApplyOptions) -> DestinationOptions {
    DestinationOptions {
        undo: options.undo.clone().map(Into::into),
        overwrite: options.overwrite,
        force: options.force,
        allow_smaller: options.allow_smaller,
        allow_in_use: options.allow_in_use,
        create: options.create,
        unfinished: false,
        undo_compression: Compression::None,
        state_dir: None,
        require_record: options.require_record,
        from: String::new(),
        atomic: options.atomic,
        spool: options.spool.clone().map(Into::into),
    }
}

/// Warnings go to the sender; its own progress is its own.
struct Relay(Replies<File>);

impl Monitor for Relay {
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
