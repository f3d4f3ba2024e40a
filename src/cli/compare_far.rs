//! The two ends of a comparison over a session: the one that asks, and the one that `serve` answers with.
//!
//! Guarantees: the far volume is opened for reading only; if it is a file that was written to meanwhile, that is told; when
//! something fails, the far end's own words come before ours; the child is gone on every way out.

use std::io::{Read, Write};
use std::process::ChildStdin;
use std::sync::Arc;

use super::prestart::{Prestarted, connect};
use super::progress::Speaker;
use super::remote::{Events, via};
use super::send::RemoteArgs;
use super::serve::lost;
use crate::cancel::Cancel;
use crate::change_list::ChangeList;
use crate::commands::Caller;
use crate::comparand::{Comparand, Compared, Means, Medium};
use crate::engine::compare::{Failed, Side, answer, compare_there};
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
    /// For messages.
    name: String,
}

impl Far {
    /// Opens `path` at `host` to see whether it can be compared.
    pub(super) fn open(
        remote: &RemoteArgs,
        speaker: &Speaker,
        host: &str,
        path: &str,
        cancel: &Cancel,
    ) -> Result<Self> {
        Self::open_with(None, (remote, speaker), Medium::Memory, host, path, cancel)
    }

    /// Opens it for comparing; the far end may be under way already.
    pub(super) fn open_with(
        prestarted: Option<&Prestarted>,
        (remote, speaker): (&RemoteArgs, &Speaker),
        medium: Medium,
        host: &str,
        path: &str,
        cancel: &Cancel,
    ) -> Result<Self> {
        let events = Arc::new(Events {
            host: host.to_owned(),
            speaker: speaker.clone(),
        });
        let line = Line::new(cancel.clone(), remote.timeout.get());
        let party = (remote, speaker);
        let (mut end, client) =
            connect(prestarted, party, host, &line, &[FEATURE_COMPARE], events)?;
        let open = Open {
            operation: OPERATION_COMPARE.to_owned(),
            destination: path.to_owned(),
            via: via(remote, host),
            options: ApplyOptions {
                dry_run: medium == Medium::Memory,
                ..ApplyOptions::default()
            },
            ..Open::default()
        };
        let (ready, out) = client.open(open).map_err(|error| end.explain(error))?;
        Ok(Self {
            end,
            out,
            ready,
            name: format!("{host}:{path}"),
        })
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

    /// Compares and ends the session.
    pub(super) fn compare(
        mut self,
        extents: &ChangeList,
        near: Side<'_>,
        cancel: &Cancel,
        monitor: &dyn Monitor,
    ) -> Result<Compared> {
        match compare_there(extents, near, self.out, cancel, monitor) {
            Ok((differing, done)) => {
                self.end.close();
                let changed = done.changed.then_some(self.name);
                Ok(Compared {
                    differing,
                    changed: changed.into_iter().collect(),
                })
            }
            Err(Failed::Here(error)) => Err(error),
            Err(Failed::There(error)) => {
                cancel.check()?;
                Err(self.end.explain(error))
            }
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
        ..Ready::default()
    };
    server.ready(ready).map_err(lost)?;
    match answer(server, volume.side(), cancel) {
        Ok(()) => Ok(Done {
            changed: volume.if_changed()?.is_some(),
            ..Done::default()
        }),
        Err(Failed::Here(error)) => Err(volume.explain(error)),
        Err(Failed::There(error)) => Err(lost(error)),
    }
}
