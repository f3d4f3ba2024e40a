//! The far end of `lvmsync sync HOST:SRC DEST`: opens the volume that it is asked for, from a snapshot if that is live, and
//! becomes the end that sends.
//!
//! Guarantees: what is read is what the gate let in, or a snapshot of that which the gate let be made; the snapshot is gone
//! when this end is, unless the other one said that all is done and durable and it was to be kept. What fails here is told
//! with its own code.

use std::io::{Read, Write};
use std::sync::Arc;

use super::apply::WriteArgs;
use super::attempts::Attempts;
use super::compare_far::Place;
use super::output;
use super::progress::Terminal;
use super::remote::{Trouble, converse, open as open_sync};
use super::send::{Job, RemoteArgs, ToArgs};
use super::serve::{Relay, lost};
use super::summary::Summary;
use crate::cancel::Cancel;
use crate::delta::codec::Compression;
use crate::dm::name::LvName;
use crate::engine::effort::Effort;
use crate::error::{Error, ExitCode, Result};
use crate::gate::{Admitted, Gate};
use crate::monitor::{Monitor, Silent};
use crate::session::client::SessionEvents;
use crate::session::message::{Open, Ready};
use crate::session::server::Server;
use crate::session::text::sanitise;
use crate::source::{Admit, SendSource, SnapshotWish, SourceRequest, source_of_sync};

/// What is asked for, and where this end looks things up.
struct Asked<'a> {
    open: &'a Open,
    gate: &'a Gate,
    place: Place,
    cancel: &'a Cancel,
}

/// Sends what `open` names.
pub(super) fn send<R, W>(
    mut server: Server<R, W>,
    open: &Open,
    gate: &Gate,
    place: Place,
    cancel: &Cancel,
) -> Result<ExitCode>
where
    R: Read + Send + 'static,
    W: Write + Send + 'static,
{
    let replies = server.replies();
    let relay = Relay(replies.clone());
    let asked = Asked {
        open,
        gate,
        place,
        cancel,
    };
    let mut source = match asked.source(&relay) {
        Ok(source) => source,
        Err(error) => {
            let recover = match error.exit_code() {
                ExitCode::TrackingLost => asked.recover(),
                _ => String::new(),
            };
            replies.fail_to_recover(&error, &recover).map_err(lost)?;
            return Ok(error.exit_code());
        }
    };
    let snapshot = source.made().map(|(made, _)| made.to_string());
    let ready = Ready {
        destination: open.destination.clone(),
        size_bytes: source.header.volume_size,
        snapshot: snapshot.unwrap_or_default(),
        ..Ready::default()
    };
    server.ready(ready).map_err(lost)?;
    let client = server.into_client(Arc::new(Warnings));
    let to = ToArgs {
        compress: compression(open)?,
        bwlimit: open.pull.bwlimit,
        ..ToArgs::default()
    };
    let recover = || asked.recover();
    let job = Job {
        request: asked.request(&open.destination, None, &Silent)?,
        destination: None,
        to: &to,
        write: &WriteArgs::default(),
        remote: &RemoteArgs::default(),
        prestarted: None,
        dry_run: open.pull.dry_run,
        verify: false,
        comparing: true,
        effort: Effort::new(to.compress),
        recover_at_peer: Some(&recover),
        cancel,
        monitor: &Silent,
        speaker: Terminal::silent().speaker(),
    };
    let wish = open_sync(&job, &source);
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
        Ok((_, last_word)) if asked.keeps() && source.made().is_some() => {
            let kept = source.keep_snapshot(&Silent);
            let (code, text) = match &kept {
                Ok(()) => (ExitCode::Done, String::new()),
                Err(error) => (error.exit_code(), error.chain()),
            };
            last_word.say(code as u8, &text).map_err(lost)?;
            Ok(code)
        }
        Ok(_) => Ok(ExitCode::Done),
        // What reads from the receiver ends first, and takes that for the end of the session.
        Err(Trouble::Session(_)) if cancel.is_cancelled() => {
            // Nobody may be there to hear it.
            let _ = replies.bye(&Error::Interrupted);
            Err(Error::Interrupted)
        }
        // The receiver knows: it said so, or was told.
        Err(Trouble::Session(error)) => Ok(error.into_error(name).exit_code()),
        Err(Trouble::Here(error)) => Ok(error.exit_code()),
    }
}

impl Asked<'_> {
    fn source(&self, monitor: &dyn Monitor) -> Result<SendSource> {
        let admitted = self.gate.admit(self.open)?;
        let admit = |origin: &LvName, kept: Option<&LvName>| self.admit(&admitted, origin, kept);
        let wish = self.wish(&admit);
        let mut source = SendSource::open(&self.request(&admitted.destination, wish, monitor)?)?;
        match source.made() {
            Some((made, origin)) => {
                let live = source.live_identity();
                self.gate
                    .confirm_snapshot(&admitted, &source.data, made, origin, live)?;
            }
            None => self.gate.confirm(&admitted, &source.data)?,
        }
        source.identify()?;
        Ok(source)
    }

    /// May a snapshot be made, and is it of use?
    fn admit(&self, admitted: &Admitted, origin: &LvName, kept: Option<&LvName>) -> Result<()> {
        self.gate.admit_snapshot(admitted, origin, kept)?;
        if self.open.pull.verify && kept.is_none() {
            return Err(Error::refused(
                sanitise(&self.open.destination),
                "it is a live volume, and the snapshot that it would be read from would be gone before it could be \
                 compared once more",
                "Name a snapshot as SRC, or keep the one that is made: --keep-snapshot NAME",
            ));
        }
        Ok(())
    }

    fn wish<'w>(&'w self, admit: Admit<'w>) -> Option<SnapshotWish<'w>> {
        let pull = &self.open.pull;
        pull.snapshot.then_some(SnapshotWish {
            taken: None,
            named: None,
            only_tracked: false,
            size_bytes: pull.snapshot_size,
            keep: pull.keep_snapshot.as_deref(),
            admit: Some(admit),
            only_look: pull.dry_run,
        })
    }

    fn keeps(&self) -> bool {
        self.open.pull.snapshot && self.open.pull.keep_snapshot.is_some()
    }

    /// What to name as SRC of the sync that needs no list of changes, as far as the client may hear of it.
    fn recover(&self) -> String {
        let request = self.request(&self.open.destination, None, &Silent);
        let source = request.map(|request| source_of_sync(&request));
        source
            .ok()
            .filter(|source| self.gate.may_name(source))
            .unwrap_or_default()
    }

    fn request<'r>(
        &'r self,
        name: &'r str,
        snapshot: Option<SnapshotWish<'r>>,
        monitor: &'r dyn Monitor,
    ) -> Result<SourceRequest<'r>> {
        Ok(SourceRequest {
            from: None,
            new: Some(name),
            data_source: None,
            base_size: None,
            thin_metadata: None,
            volume_size: None,
            snapshot,
            compression: compression(self.open)?,
            state: self.place.state.clone(),
            caller: self.place.caller.clone(),
            cancel: self.cancel,
            monitor,
        })
    }
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
