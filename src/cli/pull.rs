//! `lvmsync sync HOST:SRC DEST`: the ends of a sync the other way round. This one starts the session and receives; the
//! far one is asked for a volume and sends.
//!
//! Guarantees: those of every other way: the destination's record, the checks before the first write, and a lost
//! connection that is made again. What the far end could not do has its code, and its words. With `--verify` nothing is
//! written before it is known that what is read can be read once more.

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Instant;

use super::attempts::{Attempts, Failed};
use super::compare_far::Far;
use super::elsewhere::Elsewhere;
use super::progress::Terminal;
use super::remote::{Events, start, via};
use super::serve::{Heard, lost, serve};
use super::summary::Summary;
use super::sync::SyncArgs;
use crate::cancel::Cancel;
use crate::comparand::Medium;
use crate::engine::apply::Applied;
use crate::error::{Error, ExitCode, Result};
use crate::gate::Gate;
use crate::gate::policy::Policy;
use crate::monitor::Monitor;
use crate::session::SessionError;
use crate::session::handshake::{FEATURE_PULL, FEATURE_PULL_DRY_RUN, FEATURE_PULL_SNAPSHOT};
use crate::session::line::Line;
use crate::session::message::{
    ApplyOptions, CreateVolume, Done, OPERATION_PULL, OPERATION_SYNC, Open, PullOptions, Ready,
};
use crate::session::remote::RemoteEnd;
use crate::session::server::Server;
use crate::session::text::sanitise;

/// Makes `destination`, which is here, equal to `path` at `host`.
pub(super) fn pull(
    args: &SyncArgs,
    host: &str,
    path: &str,
    terminal: &Terminal,
    cancel: &Cancel,
) -> Result<Summary> {
    let start = Instant::now();
    let wish = args.snapshot.wish();
    let kept = wish.and_then(|wish| wish.keep);
    if args.verify && kept.is_none() {
        refuse_what_cannot_be_compared(args, host, path, cancel)?;
    }
    let mut attempts = Attempts::new(args.remote.retries);
    let mut summary = Summary {
        destination: args.destination.clone(),
        ..Summary::default()
    };
    let snapshot = loop {
        let mut recover = None;
        let attempted = attempt(
            args,
            host,
            path,
            terminal,
            cancel,
            &mut attempts,
            &mut summary,
            &mut recover,
        );
        let failed = match attempted {
            Ok(snapshot) => break snapshot,
            Err(failed) => failed,
        };
        attempts
            .wait_after(failed, cancel, terminal)
            .map_err(|error| {
                let source = recover.unwrap_or_else(|| path.to_owned());
                error.to_recover(|| args.line(&far_name(host, &source)))
            })?;
    };
    if args.verify {
        // A snapshot that was made and is still there has the content; what it was made of has another by now.
        let read = match snapshot.as_str() {
            "" => path,
            made => made,
        };
        super::verify::pulled(args, host, read, terminal, cancel).map_err(|error| {
            let source = far_name(host, error.recover().unwrap_or(read));
            error.to_recover(|| match read == path {
                true => args.line(&source),
                false => args.line_from_kept(&source),
            })
        })?;
        summary.verified = true;
    }
    summary.seconds = start.elapsed().as_secs_f64();
    Ok(summary)
}

/// How the user names a volume of another machine, of which that machine may have told.
pub(super) fn far_name(host: &str, path: &str) -> String {
    format!("{}:{}", sanitise(host), sanitise(path))
}

/// What the far end would not give digests of after all was written is better known before.
fn refuse_what_cannot_be_compared(
    args: &SyncArgs,
    host: &str,
    path: &str,
    cancel: &Cancel,
) -> Result<()> {
    let terminal = Terminal::silent();
    let there = Elsewhere {
        prestarted: None,
        remote: &args.remote,
        speaker: &terminal.speaker(),
        medium: Medium::Memory,
        host,
        path,
        cancel,
        monitor: &terminal,
    };
    let far = Far::open(&there).map_err(|failed| failed.error)?;
    far.leave()
}

/// What the far end must know for what is asked.
fn required_features(args: &SyncArgs) -> Vec<&'static str> {
    let mut features = vec![FEATURE_PULL];
    if args.snapshot.wish().is_some() {
        features.push(FEATURE_PULL_SNAPSHOT);
    }
    if args.dry_run {
        features.push(FEATURE_PULL_DRY_RUN);
    }
    features
}

fn pull_options(args: &SyncArgs) -> PullOptions {
    let wish = args.snapshot.wish();
    PullOptions {
        compress: args.to.compress.to_string(),
        bwlimit: args.to.bwlimit,
        snapshot: wish.is_some(),
        snapshot_size: wish.and_then(|wish| wish.size_bytes),
        keep_snapshot: wish.and_then(|wish| wish.keep).map(str::to_owned),
        verify: args.verify,
        dry_run: args.dry_run,
    }
}

/// Gives the name of the snapshot that was made there to be read; it is empty if there is none.
#[allow(
    clippy::too_many_arguments,
    reason = "what is asked for, who hears of it, and what lasts longer than one attempt"
)]
fn attempt(
    args: &SyncArgs,
    host: &str,
    path: &str,
    terminal: &Terminal,
    cancel: &Cancel,
    attempts: &mut Attempts,
    summary: &mut Summary,
    recover: &mut Option<String>,
) -> std::result::Result<String, Failed> {
    let speaker = terminal.speaker();
    let mut end = start(&args.remote, &speaker, host, &["serve"]).map_err(Failed::for_good)?;
    let events = Arc::new(Events {
        host: host.to_owned(),
        speaker,
    });
    let line = Line::new(cancel.clone(), args.remote.timeout.get());
    let client = end
        .connect(&line, &required_features(args), events)
        .map_err(Failed::connecting)?;
    let wanted = Open {
        operation: OPERATION_PULL.to_owned(),
        destination: path.to_owned(),
        pull: pull_options(args),
        via: via(&args.remote, host),
        ..Open::default()
    };
    let mut explain = |error: SessionError, end: &mut RemoteEnd| {
        *recover = error.recover().map(str::to_owned);
        Failed::in_session(error, end)
    };
    let pulled = client.pull(wanted);
    let (ready, mut server) = pulled.map_err(|error| explain(error, &mut end))?;
    let snapshot = sanitise(&ready.snapshot);
    if !snapshot.is_empty() {
        terminal.note(&format!("{host}: {path}: read from {snapshot}"));
    }
    let mut heard = Heard::default();
    summary.volume_size = ready.size_bytes;
    let received = receive(args, &ready, &mut server, &mut heard, terminal, cancel);
    attempts.reached(heard.resumed_at);
    summary.goes_on_at(heard.resumed_at, heard.compares);
    let before = summary.wire_bytes.unwrap_or(0);
    summary.wire_bytes = Some(before + server.traffic_bytes());
    match received {
        Ok(done) => {
            add(summary, &done);
            if args.keeps_snapshot() && !snapshot.is_empty() {
                let word = server.last_word();
                is_kept(word, args, host, &snapshot).map_err(Failed::for_good)?;
                terminal.note(&format!("{host}: {snapshot} is kept"));
            }
            // It waits for the end of its input.
            drop(server);
            end.close();
            Ok(snapshot)
        }
        Err(error) => {
            add(summary, &done_so_far(&heard.applied));
            match server.into_last_words(error.is_lost()) {
                // What ended the stream is the reason, whatever came of it here.
                Some(failure) => Err(explain(failure, &mut end)),
                None => Err(Failed::for_good(error)),
            }
        }
    }
}

/// What a connection wrote that was lost then.
fn done_so_far(applied: &Applied) -> Done {
    Done {
        bytes_written: applied.data_bytes,
        bytes_zeroed: applied.zero_bytes,
        frames: applied.data_frames + applied.zero_frames,
        ..Done::default()
    }
}

/// Adds what one connection wrote.
fn add(summary: &mut Summary, done: &Done) {
    summary.extents += done.frames;
    summary.cut_bytes += done.cut_bytes;
    summary.bytes_sent += done.bytes_written;
    summary.data_bytes += done.bytes_written;
    summary.zero_bytes += done.bytes_zeroed;
    summary.undo.clone_from(&done.undo);
    summary.dry_run = done.dry_run;
}

/// All was written, and is durable. Is the snapshot there, too, that increments are to go on from?
fn is_kept(
    word: std::result::Result<(u8, String), SessionError>,
    args: &SyncArgs,
    host: &str,
    snapshot: &str,
) -> Result<()> {
    let (code, reason) = match word {
        Ok((0, _)) => return Ok(()),
        Ok((code, reason)) => {
            let reason = format!("snapshot {snapshot} was not kept: {reason}");
            (ExitCode::from_number(code), reason)
        }
        Err(error) => {
            let look = format!(
                "whether snapshot {snapshot} was kept is not known: {error}. Look there: lvs"
            );
            (None, format!("{look} {snapshot}"))
        }
    };
    Err(Error::RemoteFailed {
        host: sanitise(host),
        message: format!("{} is whole and durable, but {reason}", args.destination),
        code: code
            .filter(|code| !matches!(code, ExitCode::Done | ExitCode::Interrupted))
            .unwrap_or(ExitCode::Remote),
        recover: String::new(),
    })
}

/// This end of it, once the far one is ready to send.
fn receive<R: Read, W: Write + Send + 'static>(
    args: &SyncArgs,
    ready: &Ready,
    server: &mut Server<R, W>,
    heard: &mut Heard,
    terminal: &Terminal,
    cancel: &Cancel,
) -> Result<Done> {
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
        options: options(args, ready.size_bytes),
        source: theirs.source,
        stream: theirs.stream,
        from: theirs.from,
        ..Open::default()
    };
    let gate = Gate::new(Policy::default());
    let state_dir = args.write.state.state_dir.as_deref();
    let done = serve(
        server, &open, &replies, &gate, state_dir, heard, terminal, cancel,
    );
    let done = done.inspect_err(|error| {
        // It may be what ended the session.
        let _ = replies.fail(error);
    })?;
    replies.done(done.clone()).map_err(lost)?;
    Ok(done)
}

fn options(args: &SyncArgs, size_bytes: u64) -> ApplyOptions {
    let write = &args.write;
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
        dry_run: args.dry_run,
        require_record: false,
        atomic: write.atomic,
        spool: write.spool.as_ref().map(text),
    }
}
