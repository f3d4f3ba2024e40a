//! Sending to another machine: a session with the lvmsync there, or a bare stream to an original.
//!
//! Guarantees: success is returned only after the far end said that everything is durable; when something
//! fails, the far end's own words come before ours; the child is gone on every way out. A connection that was
//! lost is made again, and the stream goes on where the far end has it durably.

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use super::attempts::{Attempts, Failed};
use super::prestart::connect;
use super::progress::Speaker;
use super::send::{Job, RemoteArgs};
use super::summary::Summary;
use super::sync_far::Places;
use crate::commands::{Caller, Via, word};
use crate::delta::codec::Compression;
use crate::delta::stream::StreamId;
use crate::engine::deliver::DeltaSink;
use crate::error::{Error, ExitCode, Result};
use crate::session::SessionError;
use crate::session::client::{Client, LastWord, SessionEvents};
use crate::session::handshake::{
    FEATURE_ATOMIC, FEATURE_CREATE_VOLUME, FEATURE_RECORD, FEATURE_SYNC, FEATURE_UNDO,
};
use crate::session::line::Line;
use crate::session::message::{
    Ack, ApplyOptions, CreateVolume, Done, Message, OPERATION_APPLY, OPERATION_SYNC, Open,
    SourceIdentity,
};
use crate::session::remote::{END_GRACE, OnLine, RemoteEnd, RemoteOptions};
use crate::session::text::sanitise;
use crate::source::SendSource;
use crate::units::Bytes;
use crate::volume::VolumeIdentity;
use crate::volume::host::boot_id;

/// So long the far end is waited for that was told that this one stops because somebody wants it to.
const INTERRUPTED_GRACE: Duration = Duration::from_secs(1);

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
    let mut attempts = Attempts::new(job.remote.retries);
    loop {
        let failed = match attempt(job, source, host, path, summary, &mut attempts) {
            Ok(()) => return Ok(()),
            Err(failed) => failed,
        };
        let is_lost = failed.lost;
        if let Err(error) = attempts.wait_after(failed, job.cancel, job.monitor) {
            let is_cut = is_lost || job.cancel.is_cancelled();
            if attempts.connected && is_cut && !job.dry_run {
                job.monitor.warn(&ways_out(job, host, path));
            }
            return Err(error);
        }
    }
}

/// What the far end cannot say any more.
fn ways_out(job: &Job<'_>, host: &str, path: &str) -> String {
    let mut text = format!(
        "{}:{path} may be partly written: run the same again to finish",
        sanitise(host)
    );
    if let Some(undo) = &job.write.undo {
        let caller = Caller {
            via: via(job.remote, host),
            state_dir: None,
        };
        let way_back = caller.command("apply", &[&undo.to_string_lossy(), path]);
        text.push_str(&format!(", or take it back: {way_back}"));
    }
    text
}

/// How the user runs a command at the far end.
pub(super) fn via(remote: &RemoteArgs, host: &str) -> Via {
    let sudo = if remote.sudo { "sudo -n " } else { "" };
    Via {
        shell: format!("{} {}", remote.rsh, word(host)),
        program: format!("{sudo}{}", word(&remote.remote_path)),
    }
}

/// One session.
fn attempt(
    job: &Job<'_>,
    source: &SendSource,
    host: &str,
    path: &str,
    summary: &mut Summary,
    attempts: &mut Attempts,
) -> std::result::Result<(), Failed> {
    let events = Arc::new(Events {
        host: host.to_owned(),
        speaker: job.speaker.clone(),
    });
    let line = Line::new(job.cancel.clone(), job.remote.timeout.get());
    let required = required_features(job);
    let party = (job.remote, &job.speaker);
    let connected = connect(job.prestarted, party, host, &line, &required, events);
    let (mut end, client) = connected.map_err(Failed::connecting)?;
    summary.far_program = Some(client.agreed().peer.speaker());
    let open = Open {
        destination: path.to_owned(),
        options: apply_options(job, source),
        via: via(job.remote, host),
        ..open(job, source)
    };
    // Nothing more is said: the far end hears that its input is closed.
    let conversed = converse(job, source, client, open, host, summary, attempts);
    match conversed.map(|(done, _)| done) {
        Ok(done) => {
            tracing::info!("{host}: {} frames are durable", done.frames);
            summary.cut_bytes = done.cut_bytes;
            end.close();
            Ok(())
        }
        Err(Trouble::Session(error)) => Err(Failed::in_session(error, &mut end)),
        Err(Trouble::Here(error)) => {
            // It makes durable what it has, and gives the destination free for who runs the same again.
            end.close_within(if job.cancel.is_cancelled() {
                INTERRUPTED_GRACE
            } else {
                END_GRACE
            });
            Err(Failed::for_good(error))
        }
    }
}

/// Asks for what `job` needs, of a source that the other end is told of.
pub(super) fn open(job: &Job<'_>, source: &SendSource) -> Open {
    let operation = if job.comparing {
        OPERATION_SYNC
    } else {
        OPERATION_APPLY
    };
    Open {
        operation: operation.to_owned(),
        source: identity(source),
        stream: Some(StreamId::of(&source.header, &source.samples)),
        from: format!("{}:{}", host_name(), source.name),
        ..Open::default()
    }
}

/// What ended a session early.
pub(super) enum Trouble {
    /// The connection, or the other end.
    Session(SessionError),
    /// This end.
    Here(Error),
}

/// Sends `source` through a session that is agreed.
pub(super) fn converse<R: Read + Send + 'static, W: Write + Send + 'static>(
    job: &Job<'_>,
    source: &SendSource,
    mut client: Client<R, W>,
    open: Open,
    name: &str,
    summary: &mut Summary,
    attempts: &mut Attempts,
) -> std::result::Result<(Done, LastWord<W>), Trouble> {
    client.limit_acks(source.header.volume_size);
    let (ready, mut out) = client.open(open).map_err(Trouble::Session)?;
    tracing::info!(
        "{name}: {} is a {} of {}",
        ready.destination,
        ready.kind,
        Bytes(ready.size_bytes)
    );
    let from_offset = if ready.already {
        source.header.volume_size
    } else {
        ready.resume_at.min(source.header.volume_size)
    };
    if from_offset > 0 && !attempts.connected && !job.dry_run {
        let left = source.changes.from_offset(from_offset).total_bytes();
        job.monitor.advance(source.changes.total_bytes() - left);
        if !ready.already {
            job.monitor.note(&format!(
                "{name}: goes on at byte {from_offset}, where it was cut"
            ));
        }
    }
    attempts.reached(from_offset);
    let compares = job.comparing && !ready.empty;
    summary.goes_on_at(from_offset, compares);
    let sent = if job.dry_run {
        rehearse(source, &mut out, name)
    } else if compares {
        let places = Places {
            from_offset,
            destination_bytes: ready.size_bytes,
        };
        super::sync_far::send(job, source, places, &mut out, name, summary)
    } else {
        job.write_delta(source, from_offset, &mut out, name, summary)
    };
    let before = summary.wire_bytes.unwrap_or(0);
    summary.wire_bytes = Some(before + out.traffic_bytes());
    match sent {
        Ok(()) => out.finish_and_tell().map_err(Trouble::Session),
        // Where the connection broke or the far end failed, that is the reason, ours is what followed.
        Err(error) => Err(match out.abort_with(&farewell(job, &error)) {
            Some(reason) => Trouble::Session(reason),
            None => Trouble::Here(error),
        }),
    }
}

/// Why this end stops. In a pull the user is at the other one.
fn farewell(job: &Job<'_>, error: &Error) -> Message {
    let recover = job
        .recover_at_peer
        .filter(|_| error.exit_code() == ExitCode::TrackingLost);
    let recover = recover.map_or_else(String::new, |recover| recover());
    Message::bye_with(error.exit_code() as u8, &error.chain(), &recover)
}

/// What the far end must know for what is asked.
fn required_features(job: &Job<'_>) -> Vec<&'static str> {
    let mut features = vec![FEATURE_RECORD];
    if job.comparing {
        features.push(FEATURE_SYNC);
    }
    if job.write.undo.is_some() {
        features.push(FEATURE_UNDO);
    }
    if job.write.atomic {
        features.push(FEATURE_ATOMIC);
    }
    if job.write.create.is_some() {
        features.push(FEATURE_CREATE_VOLUME);
    }
    features
}

/// For people who read records.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname");
    name.map_or_else(|_| "unknown".to_owned(), |name| name.trim().to_owned())
}

pub(super) fn start(
    remote: &RemoteArgs,
    speaker: &Speaker,
    host: &str,
    arguments: &[&str],
) -> Result<RemoteEnd> {
    let speaker = speaker.clone();
    let say = Box::new(move |line: &str| speaker.say(line));
    start_heard_by(remote, say, host, arguments)
}

/// The same; `on_line` hears what it writes to stderr.
pub(super) fn start_heard_by(
    remote: &RemoteArgs,
    on_line: OnLine,
    host: &str,
    arguments: &[&str],
) -> Result<RemoteEnd> {
    let RemoteArgs {
        rsh,
        sudo,
        remote_path,
        ..
    } = remote;
    let options = RemoteOptions {
        rsh: Some(rsh.clone()),
        remote_path: Some(remote_path.clone()),
        sudo: *sudo,
    };
    RemoteEnd::start(host, &options, arguments, on_line)
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
        create_volume: job.write.make(&source.header).map(|make| CreateVolume {
            kind: make.making.to_string(),
            size_bytes: make.size_bytes,
        }),
        dry_run: job.dry_run,
        require_record: job.write.require_record,
        atomic: job.write.atomic,
        spool: job
            .write
            .spool
            .as_ref()
            .map(|path| path.to_string_lossy().into_owned()),
    }
}

/// For a far end that turns out to be this machine.
fn identity(source: &SendSource) -> Option<SourceIdentity> {
    let boot_id = boot_id()?;
    let (device, file) = match source.identity() {
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
fn rehearse(source: &SendSource, out: &mut dyn Write, host: &str) -> Result<()> {
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
    let mut end = start(job.remote, &job.speaker, host, &arguments)?;
    // It never speaks, so there is no silence to be told from work; but a signal ends the wait.
    let stdin = Line::new(job.cancel.clone(), None).own_writer(end.take_stdin()?);
    // Dropping the pipe is the only end mark that the original knows.
    let sent = job.write_proto3(source, stdin, host, summary);
    let ended = end.wait(&|| job.cancel.is_cancelled());
    // Its exit code explains a broken pipe better than the pipe does.
    ended.and(sent)
}

/// What the far end tells meanwhile.
pub(super) struct Events {
    pub(super) host: String,
    pub(super) speaker: Speaker,
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
