//! `lvmsync view`: the state after some deltas, without applying them.
//!
//! Guarantees: the base and the deltas are only read; a snapshot that was made of a live base is removed whatever happens; a
//! base that is in another state is refused; a file that is written appears when it is whole.

mod at;
mod base;
mod device;
mod export;
mod file;
mod fit;
mod stop;

use std::path::PathBuf;
use std::time::Instant;

use clap::{ArgGroup, Args};

use super::apply::StateArgs;
use super::chain::Files;
use super::progress::Terminal;
use super::snapshot::parse_chunk;
use super::{TalkArgs, output};
use crate::cancel::Cancel;
use crate::changes::cow::Layout;
use crate::dm::preview::CHUNK_BYTES;
use crate::dm::shown::parse_name;
use crate::error::{Error, ExitCode, Result};
use crate::history::combine::Input;
use crate::monitor::Monitor;
use crate::record::shown;
use crate::units::{Bytes, count, parse_size};
use crate::view::nbd::address::Address;
use crate::view::state::{Below, View, check};
use crate::volume::{ReadAt, Volume};
use at::{AtArgs, Wanted};
use base::{Base, Wish};
use device::Making;

/// At the same time, if nothing else is asked for.
const CLIENTS: u16 = 16;

const USAGE: &str = "\
lvmsync view [OPTIONS] DELTA... (--cat OFFSET:LENGTH | --to FILE | --nbd ADDRESS | --device NAME)
       lvmsync view --stop NAME";

const AFTER_HELP: &str = "\
Examples:
  lvmsync view mon.delta tue.delta --base vg/copy --cat 1M:4k | hexdump -C     a few bytes as they were on Tuesday
  lvmsync view mon.delta tue.delta --base vg/copy --to tuesday.img             the whole state, as a sparse file
  lvmsync view tue.undo --base vg/copy --nbd unix:/run/monday.sock             for other programs, until Ctrl-C
  lvmsync view mon.delta --base vg/copy --nbd unix:/run/try.sock --overlay /var/tmp/try    with writes, which are lost
  lvmsync view full.delta mon.delta --nbd tcp:localhost:10809                  a full copy needs no base
  lvmsync view full.delta --nbd tcp:0.0.0.0:10809 --tls-certificates DIR       for other machines, encrypted
  lvmsync view tue.undo --base vg/copy --device monday                         as /dev/mapper/monday, read-only; then
  lvmsync view --stop monday                                                   it goes, and all that was made for it
  lvmsync view data --at '2026-11-24 18:00' --nbd unix:/run/old.sock           what the target of job data held then

The deltas are a chain, in any order: what follows what is in them. VOLUME is in the state that the first of them begins
from; one that is live is read from a temporary snapshot. Nothing is applied, unpacked or written to it. One that is in
another state is refused (exit code 5), a damaged delta is exit code 6; an export answers the reads that touch the damage
with an error, and all others as ever. With --nbd the programs of others can look: nbdcopy, qemu-img, nbd-client, guestfish.";

/// Look into the state that deltas lead to, without applying them
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP, override_usage = USAGE)]
#[command(group = ArgGroup::new("what").required(true).args(["cat", "to", "nbd", "device", "stop"]))]
pub(super) struct ViewArgs {
    /// Deltas or undos that follow each other, in any order
    #[arg(
        required_unless_present = "stop",
        conflicts_with = "stop",
        value_name = "DELTA"
    )]
    deltas: Vec<String>,

    /// A volume in the state that the first delta begins from; a full copy begins from nothing
    #[arg(long, value_name = "VOLUME")]
    base: Option<String>,

    #[command(flatten)]
    point: AtArgs,

    /// Write these bytes of the state to stdout: 4k:512, 1M:64k; without LENGTH up to the end
    #[arg(long, value_name = "OFFSET:LENGTH", value_parser = parse_range)]
    cat: Option<Range>,

    /// Write the whole state to this file, which is sparse
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,

    /// Replace the file if it exists
    #[arg(long, requires = "to")]
    overwrite: bool,

    /// Serve the state as a network block device until Ctrl-C: unix:PATH or tcp:HOST:PORT
    #[arg(long, value_name = "ADDRESS")]
    nbd: Option<Address>,

    /// Show the state as the read-only device /dev/mapper/NAME, until --stop NAME. VOLUME is a logical volume: one that refuses
    /// writes, or one that a snapshot is made of
    #[arg(long, value_name = "NAME", value_parser = parse_name)]
    device: Option<String>,

    /// Remove the device NAME of --device and all that it stands on, also after a crash
    #[arg(long, value_name = "NAME", value_parser = parse_name,
          conflicts_with_all = ["base", "at", "overwrite", "store", "chunk_size", "overlay", "tls_certificates", "allow_network", "force",
                                "snapshot_size"])]
    stop: Option<String>,

    /// Keep what differs from VOLUME in this file, which is new, and goes with the device [default: where the records are]
    #[arg(long, value_name = "FILE", requires = "device")]
    store: Option<PathBuf>,

    /// Its chunks, 4k to 512k [default: 4k]
    #[arg(long, value_name = "SIZE", requires = "device", value_parser = parse_chunk)]
    chunk_size: Option<Layout>,

    /// Let clients write: into this file, which is new and gone when the export ends. Base and deltas stay as they are
    #[arg(long, value_name = "FILE", requires = "nbd")]
    overlay: Option<PathBuf>,

    /// Serve with TLS, and only clients that have a certificate of ca-cert.pem: DIR holds that, server-cert.pem and
    /// server-key.pem, as for nbdkit and QEMU
    #[arg(long, value_name = "DIR", requires = "nbd")]
    tls_certificates: Option<PathBuf>,

    /// Serve on an address that other machines reach, unencrypted and to everybody who can connect
    #[arg(long, requires = "nbd")]
    allow_network: bool,

    /// Serve at most so many clients at the same time
    #[arg(long, value_name = "NUMBER", default_value_t = CLIENTS, requires = "nbd",
          value_parser = clap::value_parser!(u16).range(1..=256))]
    clients: u16,

    /// Look all the same when VOLUME is in another state, or may be written meanwhile
    #[arg(long)]
    force: bool,

    /// Room for what is written to a thick live VOLUME meanwhile [default: a tenth of it, at least 1G, or what is free]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    snapshot_size: Option<u64>,

    /// With --device and --stop: tell what there is, or what is gone, as JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    state: StateArgs,

    #[command(flatten)]
    talk: TalkArgs,
}

/// Some bytes of a state.
#[derive(Clone, Copy, Debug)]
struct Range {
    offset: u64,
    /// `None`: up to the end.
    length: Option<u64>,
}

fn parse_range(text: &str) -> std::result::Result<Range, String> {
    let (offset, length) = text.split_once(':').ok_or_else(|| {
        format!("`{text}` is no range: write where it begins and how long it is, such as 1M:4k")
    })?;
    let length = match length {
        "" => None,
        length => Some(parse_size(length)?),
    };
    let offset = parse_size(offset)?;
    Ok(Range { offset, length })
}

pub(super) fn run(args: &ViewArgs, cancel: &Cancel) -> Result<ExitCode> {
    let terminal = args.talk.terminal();
    let start = Instant::now();
    if let Some(name) = &args.stop {
        return stop::stop(name, &args.state.directory(), args.json, cancel, &terminal);
    }
    refuse_options_of_another(args)?;
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

/// What clap does not see where one of several is asked for.
fn refuse_options_of_another(args: &ViewArgs) -> Result<()> {
    let given = [
        (
            "--overlay",
            args.overlay.is_some() && args.nbd.is_none(),
            "an export: it needs --nbd",
        ),
        (
            "--tls-certificates",
            args.tls_certificates.is_some() && args.nbd.is_none(),
            "an export: it needs --nbd",
        ),
        (
            "--allow-network",
            args.allow_network && args.nbd.is_none(),
            "an export: it needs --nbd",
        ),
        (
            "--store",
            args.store.is_some() && args.device.is_none(),
            "a device: it needs --device",
        ),
        (
            "--chunk-size",
            args.chunk_size.is_some() && args.device.is_none(),
            "a device: it needs --device",
        ),
        (
            "--json",
            args.json && args.device.is_none(),
            "a device: it needs --device or --stop",
        ),
    ];
    match given.into_iter().find(|(_, given, _)| *given) {
        Some((option, _, what)) => Err(Error::Usage(format!("{option} is for {what}"))),
        None => Ok(()),
    }
}

/// The files that were named, or those of a point in time of a job.
fn wanted(args: &ViewArgs, terminal: &Terminal, cancel: &Cancel) -> Result<Wanted> {
    let Some(at) = &args.point.at else {
        return Ok(Wanted {
            deltas: args.deltas.clone(),
            base: args.base.clone(),
        });
    };
    let rest = rest(args);
    let talk = (terminal, cancel);
    at::of_point(&args.point, at, &args.deltas, &rest, &args.state, talk)
}

/// What is asked for, of whatever it is a view: for a command on another machine.
fn rest(args: &ViewArgs) -> Vec<String> {
    let range = |Range { offset, length }: Range| {
        let length = length.map_or(String::new(), |length| length.to_string());
        format!("{offset}:{length}")
    };
    let shown = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
    let bytes = |layout: Layout| layout.chunk_bytes().to_string();
    let with_values = [
        ("--cat", args.cat.map(range)),
        ("--to", shown(&args.to)),
        ("--nbd", args.nbd.as_ref().map(ToString::to_string)),
        ("--device", args.device.clone()),
        ("--store", shown(&args.store)),
        ("--chunk-size", args.chunk_size.map(bytes)),
        ("--overlay", shown(&args.overlay)),
        ("--tls-certificates", shown(&args.tls_certificates)),
        (
            "--clients",
            (args.clients != CLIENTS).then(|| args.clients.to_string()),
        ),
        (
            "--snapshot-size",
            args.snapshot_size.map(|size| size.to_string()),
        ),
    ];
    let alone = [
        ("--overwrite", args.overwrite),
        ("--allow-network", args.allow_network),
        ("--force", args.force),
        ("--json", args.json),
    ];
    let with_values = with_values
        .into_iter()
        .filter_map(|(option, value)| Some([option.to_owned(), value?]));
    let alone = alone
        .into_iter()
        .filter(|(_, given)| *given)
        .map(|(option, _)| option.to_owned());
    with_values.flatten().chain(alone).collect()
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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::FromArgMatches;

    fn parsed(words: &[&str]) -> ViewArgs {
        let command = ViewArgs::augment_args(clap::Command::new("view"));
        let words = std::iter::once("view").chain(words.iter().copied());
        ViewArgs::from_arg_matches(&command.try_get_matches_from(words).unwrap()).unwrap()
    }

    #[test]
    fn a_command_for_another_machine_asks_for_the_same() {
        for words in [
            &["--cat", "1048576:512"][..],
            &["--cat", "0:"],
            &["--to", "a b.img", "--overwrite", "--force"],
            &["--nbd", "tcp:0.0.0.0:10809", "--allow-network"],
            &["--nbd", "tcp:0.0.0.0:1", "--tls-certificates", "/etc/x"],
            &["--nbd", "unix:/run/x", "--overlay", "try", "--clients", "3"],
            &[
                "--device",
                "tuesday",
                "--store",
                "here",
                "--chunk-size",
                "8192",
                "--snapshot-size",
                "1073741824",
                "--json",
            ],
        ] {
            let asked = [&["data", "--at", "1"], words].concat();
            let mut again = rest(&parsed(&asked));
            let mut words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            again.sort();
            words.sort();
            assert_eq!(again, words);
        }
    }
}
