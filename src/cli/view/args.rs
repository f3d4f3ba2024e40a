//! What `lvmsync view` is asked for.
//!
//! Guarantees: options that do not go together are refused before anything is opened; what is asked for can be said again, for
//! another machine.

use std::path::PathBuf;

use clap::{ArgGroup, Args};

use super::at::AtArgs;
use crate::changes::cow::Layout;
use crate::cli::TalkArgs;
use crate::cli::apply::StateArgs;
use crate::cli::snapshot::parse_chunk;
use crate::dm::shown::parse_name;
use crate::error::{Error, Result};
use crate::units::parse_size;
use crate::view::nbd::address::Address;

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
pub(in crate::cli) struct ViewArgs {
    /// Deltas or undos that follow each other, in any order
    #[arg(
        required_unless_present = "stop",
        conflicts_with = "stop",
        value_name = "DELTA"
    )]
    pub(super) deltas: Vec<String>,

    /// A volume in the state that the first delta begins from; a full copy begins from nothing
    #[arg(long, value_name = "VOLUME")]
    pub(super) base: Option<String>,

    #[command(flatten)]
    pub(super) point: AtArgs,

    /// Write these bytes of the state to stdout: 4k:512, 1M:64k; without LENGTH up to the end
    #[arg(long, value_name = "OFFSET:LENGTH", value_parser = parse_range)]
    pub(super) cat: Option<Range>,

    /// Write the whole state to this file, which is sparse
    #[arg(long, value_name = "FILE")]
    pub(super) to: Option<PathBuf>,

    /// Replace the file if it exists
    #[arg(long, requires = "to")]
    pub(super) overwrite: bool,

    /// Serve the state as a network block device until Ctrl-C: unix:PATH or tcp:HOST:PORT
    #[arg(long, value_name = "ADDRESS")]
    pub(super) nbd: Option<Address>,

    /// Show the state as the read-only device /dev/mapper/NAME, until --stop NAME. VOLUME is a logical volume: one that refuses
    /// writes, or one that a snapshot is made of
    #[arg(long, value_name = "NAME", value_parser = parse_name)]
    pub(super) device: Option<String>,

    /// Remove the device NAME of --device and all that it stands on, also after a crash
    #[arg(long, value_name = "NAME", value_parser = parse_name,
          conflicts_with_all = ["base", "at", "overwrite", "store", "chunk_size", "overlay", "tls_certificates", "allow_network", "force",
                                "snapshot_size"])]
    pub(super) stop: Option<String>,

    /// Keep what differs from VOLUME in this file, which is new, and goes with the device [default: where the records are]
    #[arg(long, value_name = "FILE", requires = "device")]
    pub(super) store: Option<PathBuf>,

    /// Its chunks, 4k to 512k [default: 4k]
    #[arg(long, value_name = "SIZE", requires = "device", value_parser = parse_chunk)]
    pub(super) chunk_size: Option<Layout>,

    /// Let clients write: into this file, which is new and gone when the export ends. Base and deltas stay as they are
    #[arg(long, value_name = "FILE", requires = "nbd")]
    pub(super) overlay: Option<PathBuf>,

    /// Serve with TLS, and only clients that have a certificate of ca-cert.pem: DIR holds that, server-cert.pem and
    /// server-key.pem, as for nbdkit and QEMU
    #[arg(long, value_name = "DIR", requires = "nbd")]
    pub(super) tls_certificates: Option<PathBuf>,

    /// Serve on an address that other machines reach, unencrypted and to everybody who can connect
    #[arg(long, requires = "nbd")]
    pub(super) allow_network: bool,

    /// Serve at most so many clients at the same time
    #[arg(long, value_name = "NUMBER", default_value_t = CLIENTS, requires = "nbd",
          value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(super) clients: u16,

    /// Look all the same when VOLUME is in another state, or may be written meanwhile
    #[arg(long)]
    pub(super) force: bool,

    /// Room for what is written to a thick live VOLUME meanwhile [default: a tenth of it, at least 1G, or what is free]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(super) snapshot_size: Option<u64>,

    /// With --device and --stop: tell what there is, or what is gone, as JSON
    #[arg(long)]
    pub(super) json: bool,

    #[command(flatten)]
    pub(super) state: StateArgs,

    #[command(flatten)]
    pub(super) talk: TalkArgs,
}
/// Some bytes of a state.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    pub(super) offset: u64,
    /// `None`: up to the end.
    pub(super) length: Option<u64>,
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

impl ViewArgs {
    /// What clap does not see where one of several is asked for.
    pub(super) fn refuse_options_of_another(&self) -> Result<()> {
        let given = [
            (
                "--overlay",
                self.overlay.is_some() && self.nbd.is_none(),
                "an export: it needs --nbd",
            ),
            (
                "--tls-certificates",
                self.tls_certificates.is_some() && self.nbd.is_none(),
                "an export: it needs --nbd",
            ),
            (
                "--allow-network",
                self.allow_network && self.nbd.is_none(),
                "an export: it needs --nbd",
            ),
            (
                "--store",
                self.store.is_some() && self.device.is_none(),
                "a device: it needs --device",
            ),
            (
                "--chunk-size",
                self.chunk_size.is_some() && self.device.is_none(),
                "a device: it needs --device",
            ),
            (
                "--json",
                self.json && self.device.is_none(),
                "a device: it needs --device or --stop",
            ),
        ];
        match given.into_iter().find(|(_, given, _)| *given) {
            Some((option, _, what)) => Err(Error::Usage(format!("{option} is for {what}"))),
            None => Ok(()),
        }
    }
    /// What is asked for, of whatever it is a view: for a command on another machine.
    pub(super) fn rest(&self) -> Vec<String> {
        let range = |Range { offset, length }: Range| {
            let length = length.map_or(String::new(), |length| length.to_string());
            format!("{offset}:{length}")
        };
        let shown = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        let bytes = |layout: Layout| layout.chunk_bytes().to_string();
        let with_values = [
            ("--cat", self.cat.map(range)),
            ("--to", shown(&self.to)),
            ("--nbd", self.nbd.as_ref().map(ToString::to_string)),
            ("--device", self.device.clone()),
            ("--store", shown(&self.store)),
            ("--chunk-size", self.chunk_size.map(bytes)),
            ("--overlay", shown(&self.overlay)),
            ("--tls-certificates", shown(&self.tls_certificates)),
            (
                "--clients",
                (self.clients != CLIENTS).then(|| self.clients.to_string()),
            ),
            (
                "--snapshot-size",
                self.snapshot_size.map(|size| size.to_string()),
            ),
        ];
        let alone = [
            ("--overwrite", self.overwrite),
            ("--allow-network", self.allow_network),
            ("--force", self.force),
            ("--json", self.json),
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
            let mut again = parsed(&asked).rest();
            let mut words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            again.sort();
            words.sort();
            assert_eq!(again, words);
        }
    }
}
