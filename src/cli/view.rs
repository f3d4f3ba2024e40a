//! `lvmsync view`: the state after some deltas, without applying them.
//!
//! Guarantees: the base and the deltas are only read; a snapshot that was made of a live base is removed whatever happens; a
//! base that is in another state is refused; a file that is written appears when it is whole.

mod args;
mod at;
mod base;
mod device;
mod export;
mod file;
mod fit;
mod stop;

use std::time::Instant;

use super::chain::Files;
use super::output;
use super::progress::Terminal;
use crate::cancel::Cancel;
use crate::changes::cow::Layout;
use crate::dm::preview::CHUNK_BYTES;
use crate::error::{Error, ExitCode, Result};
use crate::history::combine::Input;
use crate::monitor::Monitor;
use crate::record::shown;
use crate::units::{Bytes, count};
use crate::view::state::{Below, View, check};
use crate::volume::{ReadAt, Volume};
pub(super) use args::ViewArgs;
use at::Wanted;
use base::{Base, Wish};
use device::Making;

pub(super) fn run(args: &ViewArgs, cancel: &Cancel) -> Result<ExitCode> {
    let terminal = args.talk.terminal();
    let start = Instant::now();
    if let Some(name) = &args.stop {
        return stop::stop(name, &args.state.directory(), args.json, cancel, &terminal);
    }
    args.refuse_options_of_another()?;
    // Before anything is opened or made.
    let listen = args
        .nbd
        .as_ref()
        .map(|address| address.resolve(args.allow_network || args.tls_certificates.is_some()))
        .transpose()?;
    if let Some(path) = &args.to {
        file::refuse_device(path)?;
    }
    allow_many_files();
    let wanted = wanted(args, &terminal, cancel)?;
    let files = Files::open(&wanted.deltas)?;
    let chain = files.chain()?;
    let size_bytes = check(&chain)?;
    if let Some(path) = &args.to {
        files.refuse_as_output(path)?;
    }
    let base = wanted.base.as_deref();
    let wish = device_wish(args, (base, size_bytes), &chain, &terminal)?;
    // What was made for a device is taken back, however long LVM needs for that.
    let _holds_on = wish.as_ref().map(|_| cancel.hold_on());
    // Dropped after the base, which may be a snapshot that goes with it.
    let mut making = wish.as_ref().map(Making::begin).transpose()?;
    let base = {
        let through = making.as_ref().and_then(Making::snapshot);
        open_base(args, (base, through), &chain, cancel, &terminal)?
    };
    let explain = |error| match &base {
        Some(base) => base.explain(error),
        None => error,
    };
    let below = base.as_ref().map(Base::below);
    let view = View::open(&chain, below).map_err(explain)?;
    terminal.note(&format!(
        "{} open after {:.3} s: {}, the state is {}",
        count(chain.len() as u64, "delta"),
        start.elapsed().as_secs_f64(),
        Bytes(view.size_bytes()),
        shown(
            chain
                .last()
                .and_then(|last| last.delta.header().target.as_ref())
        )
    ));
    let unchanged = || {
        files.check_unchanged(&wanted.deltas)?;
        base.as_ref().map_or(Ok(()), Base::check_unchanged)
    };
    if let Some(range) = args.cat {
        file::cat(&view, range, cancel).map_err(explain)?;
        unchanged()?;
    }
    if let Some(path) = &args.to {
        if let Some(base) = &base {
            base.refuse_as_output(path)?;
        }
        let written = file::write(&view, path, args.overwrite, &unchanged, cancel, &terminal)
            .map_err(explain)?;
        terminal.finish();
        terminal.summary(&written.sentence(path, start.elapsed()));
    }
    if let Some(making) = &mut making {
        let store_bytes = making.finish(&view, &unchanged, cancel).map_err(explain)?;
        terminal.finish();
        if args.json {
            output::json(&making.report(&view, store_bytes))?;
        }
        terminal.summary(&making.sentence(&view, store_bytes));
    }
    if let (Some(address), Some(listen)) = (&args.nbd, listen) {
        let wish = export::Wish {
            address,
            listen,
            overlay: args.overlay.as_deref(),
            clients: args.clients.into(),
            certificates: args.tls_certificates.as_deref(),
        };
        export::serve(&view, &wish, cancel, &terminal).map_err(explain)?;
        unchanged()?;
    }
    Ok(ExitCode::Done)
}

/// The files that were named, or those of a point in time of a job.
fn wanted(args: &ViewArgs, terminal: &Terminal, cancel: &Cancel) -> Result<Wanted> {
    let Some(at) = &args.point.at else {
        return Ok(Wanted {
            deltas: args.deltas.clone(),
            base: args.base.clone(),
        });
    };
    let rest = args.rest();
    let talk = (terminal, cancel);
    at::of_point(&args.point, at, &args.deltas, &rest, &args.state, talk)
}

/// The device that is asked for.
fn device_wish<'a>(
    args: &'a ViewArgs,
    (base, size_bytes): (Option<&'a str>, u64),
    chain: &[&Input<Volume>],
    monitor: &'a dyn Monitor,
) -> Result<Option<device::Wish<'a>>> {
    let (Some(name), Some(first)) = (&args.device, chain.first()) else {
        return Ok(None);
    };
    let base = base.filter(|_| !first.delta.header().is_full_copy());
    let Some(base) = base else {
        return Err(Error::Usage(
            "--device shows a state over the logical volume that the first delta begins from: --base VOLUME. What begins \
             with a full copy begins from nothing: --to FILE, and losetup"
                .to_owned(),
        ));
    };
    let layout = args.chunk_size.or(Layout::new(CHUNK_BYTES));
    Ok(layout.map(|layout| device::Wish {
        name,
        base,
        size_bytes,
        store: args.store.as_deref(),
        layout,
        snapshot_bytes: args.snapshot_size,
        state: args.state.directory(),
        caller: args.state.caller(),
        force: args.force,
        monitor,
    }))
}

/// The base, held against what the chain begins from. It is read through a snapshot where that was made of it already.
fn open_base(
    args: &ViewArgs,
    (base, through): (Option<&str>, Option<&str>),
    chain: &[&Input<Volume>],
    cancel: &Cancel,
    monitor: &dyn Monitor,
) -> Result<Option<Base>> {
    let Some(first) = chain.first() else {
        return Err(Error::Usage("name the deltas".to_owned()));
    };
    let header = first.delta.header();
    match base {
        Some(name) if header.is_full_copy() => {
            monitor.remark(&format!(
                "{}: a full copy begins from nothing; {name} is not read",
                first.name
            ));
            Ok(None)
        }
        None if header.is_full_copy() => Ok(None),
        None => Err(Error::Usage(format!(
            "{} begins from {}: name a volume in that state with --base",
            first.name,
            shown(header.base.as_ref())
        ))),
        Some(name) => Base::open(&Wish {
            name,
            through,
            first,
            force: args.force,
            snapshot_bytes: args.snapshot_size,
            state: args.state.directory(),
            caller: args.state.caller(),
            cancel,
            monitor,
        })
        .map(Some),
    }
}

/// Each delta is an open file, and there may be more of them than a process has by default.
fn allow_many_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // Where that is not allowed, opening the file that is one too many says so.
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    );
}
