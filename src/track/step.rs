//! One step of setting up or taking away, as words that can be shown, and doing it.
//!
//! Guarantees: the names that LVM and device-mapper are given were checked; a volume is removed only by UUID and tag
//! together. A command that outlives a killed run keeps that run's lock, so nobody plans on what it is about to change.

use std::fmt;
use std::fs::{self, File};

use super::names::TAG;
use crate::commands::word;
use crate::dm::device::DeviceMapper;
use crate::dm::lvm::lvm_command;
use crate::dm::name::LvName;
use crate::dm::wire::Selector;
use crate::error::{Error, Result};

/// What is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make the volume for the record. Its first block is zeroed, which is what dm-era formats.
    MakeMetadata {
        /// How it is called.
        name: LvName,
        /// At least so large.
        size_bytes: u64,
        /// From its first moment on.
        tags: Vec<String>,
    },
    /// Give a volume that is there a device.
    Activate(LvName),
    /// Put the era device up.
    StartDevice {
        /// Its name.
        device: String,
        /// Its device-mapper UUID.
        uuid: String,
        /// Its size.
        sectors: u64,
        /// Where the record is.
        metadata: LvName,
        /// What is tracked.
        volume: LvName,
        /// Size of a block of the record.
        block_sectors: u64,
    },
    /// Let no discards through: of one that spans several blocks dm-era records the first alone.
    RefuseDiscards {
        /// The era device.
        device: String,
    },
    /// The record is whole from here on.
    Unvoid {
        /// Where it is.
        metadata: LvName,
        /// The tags that go.
        gone: Vec<String>,
        /// The tags that come.
        come: Vec<String>,
    },
    /// The record proves nothing from here on.
    Void {
        /// Where it is.
        metadata: LvName,
        /// The tags that go.
        gone: Vec<String>,
        /// The tags that come.
        come: Vec<String>,
    },
    /// Put on record what the volume holds while nobody writes to it, in place of what was there.
    Rest {
        /// Where it is.
        metadata: LvName,
        /// The tag that comes.
        tag: String,
        /// The tag that goes.
        old: Option<String>,
    },
    /// Take that off: from now on it may be written to.
    Unrest {
        /// Where it is.
        metadata: LvName,
        /// The tag.
        tag: String,
    },
    /// Put on record that the volume is longer from now on.
    Grow {
        /// Where it is.
        metadata: LvName,
        /// The tags that come.
        tags: [String; 2],
        /// The tag that goes.
        old: String,
    },
    /// Give the era device another size. It is suspended for a moment, by a command that lasts until it is not, whoever is
    /// killed meanwhile: dm-era reads its record when a table is loaded, and nobody may write to that any more by then.
    Reload {
        /// Its name.
        device: String,
        /// The new table, and the old one, to which it goes back if the kernel refuses the new one.
        tables: [String; 2],
    },
    /// Take the era device down.
    StopDevice {
        /// Its name.
        device: String,
    },
    /// Remove the volume with the record.
    RemoveMetadata {
        /// Its name.
        name: LvName,
        /// LVM's UUID of it.
        uuid: String,
    },
}

const RELOAD: &str = "trap '' HUP INT TERM; dmsetup suspend \"$1\" || exit; \
    dmsetup load \"$1\" --table \"$2\" && dmsetup resume \"$1\" && exit; \
    dmsetup load \"$1\" --table \"$3\"; dmsetup resume \"$1\"; exit 1";

/// The table of an era device.
pub fn table(sectors: u64, metadata: &LvName, volume: &LvName, block_sectors: u64) -> String {
    format!("0 {sectors} era /dev/{metadata} /dev/{volume} {block_sectors}")
}

impl Step {
    /// Program and arguments; empty for what no program does.
    fn words(&self) -> Vec<String> {
        let strings = |words: &[&str]| -> Vec<String> {
            words.iter().map(|word| (*word).to_owned()).collect()
        };
        match self {
            Self::MakeMetadata {
                name,
                size_bytes,
                tags,
            } => {
                let size = format!("{size_bytes}b");
                let mut words: Vec<String> = strings(&[
                    "lvcreate",
                    "-qq",
                    "--yes",
                    "--wipesignatures",
                    "n",
                    "--zero",
                    "y",
                    "--size",
                    &size,
                ]);
                for tag in tags {
                    words.extend(["--addtag".to_owned(), tag.clone()]);
                }
                words.extend::<Vec<String>>(strings(&["--name", name.lv(), "--", name.vg()]));
                words
            }
            Self::Activate(name) => strings(&["lvchange", "-qq", "-ay", "--", &name.to_string()]),
            Self::StartDevice {
                device,
                uuid,
                sectors,
                metadata,
                volume,
                block_sectors,
            } => {
                let table = table(*sectors, metadata, volume, *block_sectors);
                strings(&[
                    "dmsetup", "create", device, "--uuid", uuid, "--table", &table,
                ])
            }
            Self::RefuseDiscards { .. } => Vec::new(),
            Self::Unvoid {
                metadata,
                gone,
                come,
            }
            | Self::Void {
                metadata,
                gone,
                come,
            } => {
                let mut words = strings(&["lvchange", "-qq"]);
                for tag in gone {
                    words.extend(["--deltag".to_owned(), tag.clone()]);
                }
                for tag in come {
                    words.extend(["--addtag".to_owned(), tag.clone()]);
                }
                words.extend(strings(&["--", &metadata.to_string()]));
                words
            }
            Self::Rest { metadata, tag, old } => {
                let mut words = strings(&["lvchange", "-qq"]);
                if let Some(old) = old {
                    words.extend(["--deltag".to_owned(), old.clone()]);
                }
                words.extend(strings(&["--addtag", tag, "--", &metadata.to_string()]));
                words
            }
            Self::Grow {
                metadata,
                tags: [first, second],
                old,
            } => {
                let name = metadata.to_string();
                strings(&[
                    "lvchange", "-qq", "--deltag", old, "--addtag", first, "--addtag", second,
                    "--", &name,
                ])
            }
            Self::Reload {
                device,
                tables: [new, old],
            } => strings(&["sh", "-c", RELOAD, "sh", device, new, old]),
            Self::Unrest { metadata, tag } => {
                let name = metadata.to_string();
                strings(&["lvchange", "-qq", "--deltag", tag, "--", &name])
            }
            Self::StopDevice { device } => strings(&["dmsetup", "remove", "--retry", device]),
            Self::RemoveMetadata { name, uuid } => {
                let select = format!("lv_tags={{\"{TAG}\"}} && lv_uuid=\"{uuid}\"");
                let vg = name.vg();
                strings(&["lvremove", "-qq", "--yes", "--select", &select, "--", vg])
            }
        }
    }

    /// Does it. `what` is the volume, for messages.
    pub fn run(&self, what: &str, lock: File) -> Result<()> {
        if let Self::RefuseDiscards { device } = self {
            return refuse_discards(device, what);
        }
        let words = self.words();
        let Some((program, arguments)) = words.split_first() else {
            return Ok(());
        };
        let failed = |reason: String| Error::Lvm {
            what: what.to_owned(),
            reason,
        };
        let output = lvm_command(program)
            .args(arguments)
            .stdin(lock)
            .output()
            .map_err(|error| failed(format!("cannot run `{program}` (package lvm2): {error}")))?;
        if output.status.success() || self.was_done_by_another() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.lines().map(str::trim).filter(|line| !line.is_empty());
        let said = said.collect::<Vec<_>>().join("; ");
        Err(failed(format!(
            "`{program}` failed: {said}\nThe same command again goes on from here, once the reason is gone"
        )))
    }

    /// At a shutdown others deactivate devices as well.
    fn was_done_by_another(&self) -> bool {
        let Self::StopDevice { device } = self else {
            return false;
        };
        let found = DeviceMapper::open().and_then(|dm| dm.info(Selector::Name(device)));
        matches!(found, Ok(None))
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Self::RefuseDiscards { device } = self {
            return write!(
                f,
                "echo 0 > /sys/block/DM/queue/discard_max_bytes, DM being /dev/mapper/{device}"
            );
        }
        let words: Vec<String> = self.words().iter().map(|text| word(text)).collect();
        write!(f, "{}", words.join(" "))
    }
}

/// Bytes that a discard on this device may span; 0 where it takes none.
pub fn discard_bytes(device: crate::sys::device::DeviceNumber) -> Option<u64> {
    let path = discard_limit(device);
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn discard_limit(device: crate::sys::device::DeviceNumber) -> String {
    format!("/sys/dev/block/{device}/queue/discard_max_bytes")
}

fn refuse_discards(device: &str, what: &str) -> Result<()> {
    let info = DeviceMapper::open()?.info(Selector::Name(device))?;
    let info = info.ok_or_else(|| Error::Lvm {
        what: what.to_owned(),
        reason: format!("its era device {device} is not there any more"),
    })?;
    if discard_bytes(info.device) == Some(0) {
        return Ok(());
    }
    let path = discard_limit(info.device);
    fs::write(&path, "0").map_err(|error| Error::io(format!("cannot write to {path}"), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_shown_as_commands() {
        let name = LvName::new("vg", "data_era").unwrap();
        let start = Step::StartDevice {
            device: "vg-data-era".into(),
            uuid: "LVMSYNC-ERA-u".into(),
            sectors: 131_072,
            metadata: name.clone(),
            volume: LvName::new("vg", "data").unwrap(),
            block_sectors: 128,
        };
        assert_eq!(
            start.to_string(),
            "dmsetup create vg-data-era --uuid LVMSYNC-ERA-u --table \
             '0 131072 era /dev/vg/data_era /dev/vg/data 128'"
        );
        let made = Step::MakeMetadata {
            name: name.clone(),
            size_bytes: 4096,
            tags: vec!["a".into(), "b".into()],
        };
        assert!(
            made.to_string()
                .ends_with("--zero y --size 4096b --addtag a --addtag b --name data_era -- vg"),
            "{made}"
        );
        let uuid = "m".to_owned();
        let removed = Step::RemoveMetadata { name, uuid }.to_string();
        assert!(
            removed.contains(TAG) && removed.contains("lv_uuid"),
            "{removed}"
        );
        let device = "vg-data-era".to_owned();
        let text = Step::RefuseDiscards { device }.to_string();
        assert!(text.contains("discard_max_bytes"), "{text}");
    }
}
