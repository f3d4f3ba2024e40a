//! The two ends of a comparison over a session: the one that asks, and the one that `serve` answers with.
//!
//! Guarantees: the far volume is opened for reading only; if it is a file that was written to meanwhile, that is told; when
//! something fails, the far end's own words come before ours; the child is gone on every way out.

use std::io::{Read, Write};
use std::process::ChildStdin;
use std::sync::Arc;

use super::attempts::Failed;
use super::elsewhere::Elsewhere;
use super::prestart::connect;
use super::remote::{Events, via};
use super::serve::lost;
use crate::cancel::Cancel;
use crate::change_list::ChangeList;
use crate::commands::Caller;
use crate::comparand::{Comparand, Means, Medium};
use crate::engine::compare::{self, Side, SoFar, answer, compare_there};
use crate::error::Result;
use crate::gate::{Admitted, Gate};
use crate::monitor::Monitor;
use crate::record::store::StateDir;
use crate::session::client::Outgoing;
use crate::session::handshake::FEATURE_COMPARE;
use crate::session::line::{Line, LineWriter};
use crate::session::message::{ApplyOptions, Done, OPERATION_COMPARE, Open, Ready};
use crate::session::remote::RemoteEnd;
use crate::session::server::Server;

/// A volume at the far end of a session.
pub(super) struct Far {
    end: RemoteEnd,
    out: Outgoing<LineWriter<ChildStdin>>,
    /// What was found there.
    pub(super) ready: Ready,
}

impl Far {
    /// Opens the volume for comparing.
    pub(super) fn open(there: &Elsewhere<'_>) -> std::result::Result<Self, Failed> {
        let Elsewhere { remote, host, .. } = *there;
        let events = Arc::new(Events {
            host: host.to_owned(),
            speaker: there.speaker.clone(),
        });
        let line = Line::new(there.cancel.clone(), remote.timeout.get());
        let party = (remote, there.speaker);
        let required = [FEATURE_COMPARE];
        let connected = connect(there.prestarted, party, host, &line, &required, events);
        let (mut end, client) = connected.map_err(Failed::connecting)?;
        let open = Open {
            operation: OPERATION_COMPARE.to_owned(),
            destination: there.path.to_owned(),
            via: via(remote, host),
            options: ApplyOptions {
                dry_run: there.medium == Medium::Memory,
                ..ApplyOptions::default()
            },
            ..Open::default()
        };
        let opened = client.open(open);
        let (ready, out) = opened.map_err(|error| Failed::in_session(error, &mut end))?;
        Ok(Self { end, out, ready })
    }

    /// Ends the session without a question.
    pub(super) fn leave(mut self) -> Result<()> {
        match self.out.finish() {
            Ok(_) => {
                self.end.close();
                Ok(())
            }
            Err(error) => Err(self.end.explain(error)),
        }
    }

    /// Compares what is not settled so far, and ends the session.
    pub(super) fn compare(
        mut self,
        extents: &ChangeList,
        so_far: &mut SoFar,
        near: Side<'_>,
        cancel: &Cancel,
        monitor: &dyn Monitor,
    ) -> std::result::Result<Done, Failed> {
        match compare_there(extents, so_far, near, self.out, cancel, monitor) {
            Ok(done) => {
                self.end.close();
                Ok(done)
            }
            Err(compare::Failed::Here(error)) => Err(Failed::for_good(error)),
            Err(compare::Failed::There(error)) => Err(Failed::in_session(error, &mut self.end)),
        }
    }
}

/// Where records are, and who is told of them.
pub(super) struct Place {
    pub(super) state: StateDir,
    pub(super) caller: Caller,
}

/// The far end of it.
pub(super) fn serve<R: Read, W: Write>(
    server: &mut Server<R, W>,
    open: &Open,
    gate: &Gate,
    admitted: &Admitted,
    place: &Place,
    monitor: &dyn Monitor,
    cancel: &Cancel,
) -> Result<Done> {
    // Who only looks what a sync would write gives nothing up for it.
    let medium = match open.options.dry_run {
        true => Medium::Memory,
        false => Medium::Disk,
    };
    let means = Means {
        medium,
        state: &place.state,
        caller: &place.caller,
        cancel,
    };
    let volume = Comparand::open_or_activate(&admitted.destination, means, monitor)?;
    gate.confirm(admitted, volume.volume())?;
    volume.warn_of_half_written(&place.state, &place.caller, monitor);
    let kind = if volume.is_file() { "file" } else { "block" };
    let ready = Ready {
        destination: open.destination.clone(),
        size_bytes: volume.size_bytes(),
        kind: kind.to_owned(),
        version: volume.version().unwrap_or_default(),
        ..Ready::default()
    };
    server.ready(ready).map_err(lost)?;
    match answer(server, volume.side(), cancel) {
        Ok(()) => Ok(Done {
            changed: volume.if_changed()?.is_some(),
            ..Done::default()
        }),
        Err(compare::Failed::Here(error)) => Err(volume.explain(error)),
        Err(compare::Failed::There(error)) => Err(lost(error)),
    }
}
