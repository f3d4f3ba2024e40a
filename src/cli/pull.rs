//! `lvmsync sync HOST:SRC DEST`: the ends of a sync the other way round. This one starts the session and receives; the
//! far one is asked for a volume and sends.
//!
//! Guarantees: those of every other way: the destination's record, the checks before the first write, and a lost
//! connection that is made again.

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Instant;

use super::apply::WriteArgs;
use super::attempts::{Attempts, Failed, is_lost};
use super::output;
use super::progress::Terminal;
use super::remote::{Events, Trouble, converse, open, start, via};
use super::send::{Job, RemoteArgs, ToArgs};
use super::serve::{Relay, lost, serve};
use super::summary::Summary;
use super::sync::SyncArgs;
use crate::cancel::Cancel;
use crate::delta::codec::Compression;
use crate::engine::effort::Effort;
use crate::error::{Error, ExitCode, Result};
use crate::gate::Gate;
use crate::gate::policy::Policy;
use crate::monitor::{Monitor, Silent};
use crate::record::store::StateDir;
use crate::session::SessionError;
use crate::session::client::SessionEvents;
use crate::session::handshake::FEATURE_PULL;
use crate::session::line::Line;
use crate::session::message::{
    ApplyOptions, CreateVolume, Done, OPERATION_PULL, OPERATION_SYNC, Open, PullOptions, Ready,
};
use crate::session::server::Server;
use crate::session::text::sanitise;
use crate::source::{SendSource, SourceRequest};

/// Makes `destination`, which is here, equal to `path` at `host`.
pub(super) fn pull(
    args: &SyncArgs,
    host: &str,
    path: &str,
    terminal: &Terminal,
    cancel: &Cancel,
) -> Result<Summary> {
    let start = Instant::now();
    let mut attempts = Attempts::new(args.remote.retries);
    loop {
        let failed = match attempt(args, host, path, terminal, cancel, &mut attempts) {
            Ok(summary) => {
                return Ok(Summary {
                    seconds: start.elapsed().as_secs_f64(),
                    ..summary
                });
            }
            Err(failed) => failed,
        };
        cancel.check()?;
        let Some((pause, number)) = attempts.next_pause(&failed) else {
            return Err(failed.error);
        };
        terminal.warn(&format!(
            "{}; trying again in {} s ({number} of {})",
            failed.error.chain(),
            pause.as_secs(),
            args.remote.retries
        ));
        cancel.sleep(pause);
    }
}

fn attempt(
    args: &SyncArgs,
    host: &str,
    path: &str,
    terminal: &Terminal,
    cancel: &Cancel,
    attempts: &mut Attempts,
) -> std::result::Result<Summary, Failed> {
    let speaker = terminal.speaker();
    let mut end = start(&args.remote, &speaker, host, &["serve"]).map_err(Failed::for_good)?;
    let events = Arc::new(Events {
        host: host.to_owned(),
        speaker,
    });
    let line = Line::new(cancel.clone(), args.remote.timeout.get());
    let client = end
        .connect(&line, &[FEATURE_PULL], events)
        .map_err(|error| Failed {
            lost: error.is_lost(),
            held: false,
            error,
        })?;
    let wanted = Open {
        operation: OPERATION_PULL.to_owned(),
        destination: path.to_owned(),
        pull: PullOptions {
            compress: args.to.compress.to_string(),
            bwlimit: args.to.bwlimit,
        },
        via: via(&args.remote, host),
        ..Open::default()
    };
    let pulled = client.pull(wanted).map_err(|error| Failed {
        lost: is_lost(&error),
        held: false,
        error: end.explain(error),
    });
    let (ready, mut server) = pulled?;
    let mut resumed_at = 0;
    let received = receive(args, &ready, &mut server, &mut resumed_at, terminal, cancel);
    attempts.reached(resumed_at);
    match received {
        Ok(summary) => {
            end.close();
            Ok(summary)
        }
        Err(error) => match server.into_failure() {
            // What ended the stream is the reason, whatever came of it here.
            Some(failure) => Err(Failed {
                lost: is_lost(&failure),
                held: false,
                error: end.explain(failure),
            }),
            None => Err(Failed::for_good(error)),
        },
    }
}

/// This end of it, once the far one is ready to send.
fn receive<R: Read, W: Write + Send + 'static>(
    args: &SyncArgs,
    ready: &Ready,
    server: &mut Server<R, W>,
    resumed_at: &mut u64,
    terminal: &Terminal,
    cancel: &Cancel,
) -> Result<Summary> {
    let theirs = server.request().map_err(lost)?;
    let replies = server.replies();
    if theirs.operation != OPERATION_SYNC {
        let unexpected = SessionError::Incompatible(format!(
            "a pull is answered by a sync, not by `{}`",
            sanitise(&theirs.operation)
        ));
        return Err(lost(unexpected));
    }
    // Of what it says only this concerns it.
    let open = Open {
        operation: theirs.operation,
        destination: args.destination.clone(),
        options: options(&args.write, ready.size_bytes),
        source: theirs.source,
        stream: theirs.stream,
        from: theirs.from,
        ..Open::default()
    };
    let gate = Gate::new(Policy::default());
    let state_dir = args.write.state.state_dir.as_deref();
    let mut on_ready = |offset| *resumed_at = offset;
    let done = serve(
        server,
        &open,
        &replies,
        &gate,
        state_dir,
        &mut on_ready,
        terminal,
        cancel,
    );
    let done = done.inspect_err(|error| {
        // It may be what ended the session.
        let _ = replies.fail(error);
    })?;
    let summary = Summary {
        destination: args.destination.clone(),
        volume_size: ready.size_bytes,
        extents: done.frames,
        compared_bytes: done.compared_bytes,
        bytes_sent: done.bytes_written,
        data_bytes: done.bytes_written,
        zero_bytes: done.bytes_zeroed,
        wire_bytes: Some(server.traffic_bytes()),
        undo: done.undo.clone(),
        ..Summary::default()
    };
    replies.done(done).map_err(lost)?;
    Ok(summary)
}

fn options(write: &WriteArgs, size_bytes: u64) -> ApplyOptions {
    let text = |path: &std::path::PathBuf| path.to_string_lossy().into_owned();
    ApplyOptions {
        undo: write.undo.as_ref().map(text),
        overwrite: write.overwrite,
        force: write.force,
        allow_smaller: write.allow_smaller,
        allow_in_use: write.allow_in_use,
        create: true,
        create_volume: write.create.as_ref().map(|making| CreateVolume {
            kind: making.to_string(),
            size_bytes: Some(size_bytes),
        }),
        dry_run: false,
        require_record: false,
        atomic: write.atomic,
        spool: write.spool.as_ref().map(text),
    }
}

/// The far end: opens the volume, and becomes the client.
pub(super) fn send<R, W>(
    mut server: Server<R, W>,
    open: &Open,
    gate: &Gate,
    state: StateDir,
    cancel: &Cancel,
) -> Result<ExitCode>
where
    R: Read + Send + 'static,
    W: Write + Send + 'static,
{
    let replies = server.replies();
    let relay = Relay(replies.clone());
    let source = match source(open, gate, state.clone(), &relay, cancel) {
        Ok(source) => source,
        Err(error) => {
            replies.fail(&error).map_err(lost)?;
            return Ok(error.exit_code());
        }
    };
    let ready = Ready {
        destination: open.destination.clone(),
        size_bytes: source.header.volume_size,
        ..Ready::default()
    };
    server.ready(ready).map_err(lost)?;
    let client = server.into_client(Arc::new(Warnings));
    let to = ToArgs {
        compress: compression(open)?,
        bwlimit: open.pull.bwlimit,
        ..ToArgs::default()
    };
    let job = Job {
        request: request(open, state, &Silent, cancel)?,
        destination: None,
        to: &to,
        write: &WriteArgs::default(),
        remote: &RemoteArgs::default(),
        dry_run: false,
        verify: false,
        comparing: true,
        effort: Effort::new(to.compress),
        cancel,
        monitor: &Silent,
        speaker: Terminal::silent().speaker(),
    };
    let wish = self::open(&job, &source);
    let name = "the receiver";
    let (mut summary, mut attempts) = (Summary::default(), Attempts::new(0));
    summary.volume_size = source.header.volume_size;
    match converse(
        &job,
        &source,
        client,
        wish,
        name,
        &mut summary,
        &mut attempts,
    ) {
        Ok(Done { .. }) => Ok(ExitCode::Done),
        // The receiver knows: it said so, or was told.
        Err(Trouble::Session(error)) => Ok(error.into_error(name).exit_code()),
        Err(Trouble::Here(error)) => Ok(error.exit_code()),
    }
}

fn source(
    open: &Open,
    gate: &Gate,
    state: StateDir,
    monitor: &dyn Monitor,
    cancel: &Cancel,
) -> Result<SendSource> {
    let admitted = gate.admit(open)?;
    let open = Open {
        destination: admitted.destination.clone(),
        ..open.clone()
    };
    let mut source = SendSource::open(&request(&open, state, monitor, cancel)?)?;
    gate.confirm(&admitted, &source.data)?;
    source.identify()?;
    Ok(source)
}

fn request<'a>(
    open: &'a Open,
    state: StateDir,
    monitor: &'a dyn Monitor,
    cancel: &'a Cancel,
) -> Result<SourceRequest<'a>> {
    Ok(SourceRequest {
        from: None,
        new: Some(&open.destination),
        data_source: None,
        base_size: None,
        thin_metadata: None,
        volume_size: None,
        // The gate lets in the volume that was named, and nobody at this end could choose a size.
        snapshot: None,
        compression: compression(open)?,
        state,
        cancel,
        monitor,
    })
}

fn compression(open: &Open) -> Result<Compression> {
    match open.pull.compress.as_str() {
        "" => Ok(Compression::None),
        text => text
            .parse()
            .map_err(|reason| Error::Usage(format!("{}: {reason}", sanitise(text)))),
    }
}

/// The receiver's warnings are for its own user, who has heard them.
struct Warnings;

impl SessionEvents for Warnings {
    fn warning(&self, text: &str) {
        output::message(&format!("lvmsync: warning: {text}"));
    }
}
