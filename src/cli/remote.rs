//! Sending to another machine: a session with the lvmsync there, or a bare stream to an original.
//!
//! Guarantees: success is returned only after the far end said that everything is durable; when something
//! fails, the far end's own words come before ours; the child is gone on every way out.

use std::sync::Arc;

use super::progress::Speaker;
use super::send::{Job, RemoteArgs};
use super::summary::Summary;
use crate::delta::codec::Compression;
use crate::engine::deliver::DeltaSink;
use crate::error::{Error, Result};
use crate::session::client::SessionEvents;
use crate::session::line::Line;
use crate::session::message::{Ack, ApplyOptions, OPERATION_APPLY, Open, SourceIdentity};
use crate::session::remote::{RemoteEnd, RemoteOptions};
use crate::source::SendSource;
use crate::units::Bytes;
use crate::volume::VolumeIdentity;
use crate::volume::host::boot_id;

/// Sends `source` to `path` at `host`.
pub(super) fn send(
    job: &Job<'_>,
    source: &SendSource,
    host: &str,
    path: &str,
    summary: &mut Summary,
) -> Result<()> {
    if job.remote.compat {
        return send_to_original(job, source, host, path, summary);
    }
    let mut end = start(job, host, &["serve"])?;
    let events = Arc::new(Events {
        host: host.to_owned(),
        speaker: job.speaker.clone(),
    });
    let line = Line::new(job.cancel.clone(), job.remote.timeout.get());
    let mut client = end.connect(&line, &[], events)?;
    client.limit_acks(source.header.volume_size);
    let open = Open {
        operation: OPERATION_APPLY.to_owned(),
        destination: path.to_owned(),
        options: apply_options(job, source),
        source: identity(source),
    };
    let (ready, mut out) = client.open(open).map_err(|error| end.explain(error))?;
    tracing::info!(
        "{host}: {} is a {} of {}",
        ready.destination,
        ready.kind,
        Bytes(ready.size_bytes)
    );
    let sent = if job.dry_run {
        rehearse(source, &mut out, host)
    } else {
        job.write_delta(source, &mut out, host, summary)
    };
    match sent {
        Ok(()) => {
            let done = out.finish().map_err(|error| end.explain(error))?;
            tracing::info!("{host}: {} frames are durable", done.frames);
            end.close();
            Ok(())
        }
        Err(error) => match out.abort(&error.to_string()) {
            Some(_) if job.cancel.is_cancelled() => Err(Error::Interrupted),
            // The connection broke or the far end failed: that is the reason, ours is what followed.
            Some(reason) => Err(end.explain(reason)),
            None => Err(error),
        },
    }
}

fn start(job: &Job<'_>, host: &str, arguments: &[&str]) -> Result<RemoteEnd> {
    let RemoteArgs {
        rsh,
        sudo,
        remote_path,
        ..
    } = job.remote;
    let options = RemoteOptions {
        rsh: Some(rsh.clone()),
        remote_path: Some(remote_path.clone()),
        sudo: *sudo,
    };
    let speaker = job.speaker.clone();
    RemoteEnd::start(
        host,
        &options,
        arguments,
        Box::new(move |line| speaker.say(line)),
    )
}

fn apply_options(job: &Job<'_>, source: &SendSource) -> ApplyOptions {
    ApplyOptions {
        undo: job
            .write
            .undo
            .as_ref()
            .map(|path| path.to_string_lossy().into_owned()),
        overwrite: job.write.overwrite,
        force: job.write.force,
        allow_smaller: job.write.allow_smaller,
        allow_in_use: job.write.allow_in_use,
        create: source.header.is_full_copy(),
        dry_run: job.dry_run,
    }
}

/// For a far end that turns out to be this machine.
fn identity(source: &SendSource) -> Option<SourceIdentity> {
    let boot_id = boot_id()?;
    let (device, file) = match source.data.identity() {
        VolumeIdentity::Block(device) => (Some((device.major, device.minor)), None),
        VolumeIdentity::File { filesystem, inode } => (None, Some((filesystem, inode))),
    };
    Some(SourceIdentity {
        boot_id,
        device,
        file,
    })
}

/// A delta without frames: enough for the far end to see whether the real one would fit.
fn rehearse(source: &SendSource, out: &mut dyn std::io::Write, host: &str) -> Result<()> {
    DeltaSink::new(out, &source.header, &source.samples, host)?
        .finish()
        .map(|_| ())
}

/// The far end is the original: it takes a stream of version 3 and answers with its exit code alone.
fn send_to_original(
    job: &Job<'_>,
    source: &SendSource,
    host: &str,
    path: &str,
    summary: &mut Summary,
) -> Result<()> {
    if job.to.compress != Compression::None {
        return Err(Error::Usage(
            "the original lvmsync knows no compression".to_owned(),
        ));
    }
    job.monitor.warn(&format!(
        "{host}: the original lvmsync checks nothing: not the base, not the size, not that the stream is \
         whole, and it syncs nothing"
    ));
    if job.dry_run {
        return Ok(());
    }
    let undo = job
        .write
        .undo
        .as_ref()
        .map(|path| path.to_string_lossy().into_owned());
    let mut arguments = vec!["--apply", "-"];
    if let Some(undo) = &undo {
        arguments.extend(["--snapback", undo]);
    }
    arguments.push(path);
    let mut end = start(job, host, &arguments)?;
    // It never speaks, so there is no silence to be told from work; but a signal ends the wait.
    let stdin = Line::new(job.cancel.clone(), None).own_writer(end.take_stdin()?);
    // Dropping the pipe is the only end mark that the original knows.
    let sent = job.write_proto3(source, stdin, host, summary);
    let ended = end.wait(&|| job.cancel.is_cancelled());
    // Its exit code explains a broken pipe better than the pipe does.
    ended.and(sent)
}

/// What the far end tells meanwhile.
struct Events {
    host: String,
    speaker: Speaker,
}

impl SessionEvents for Events {
    fn acknowledged(&self, ack: &Ack) {
        tracing::debug!("{}: durable up to byte {}", self.host, ack.offset);
    }

    fn warning(&self, text: &str) {
        self.speaker
            .say(&format!("lvmsync: {}: warning: {text}", self.host));
    }
}
