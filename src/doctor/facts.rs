//! What was seen on a machine, as plain data.
//!
//! Guarantees: no opinion and no I/O; where looking failed the reason stands in the place of the fact.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::dm::SnapshotStatus;
use crate::hold::record::Held;
use crate::record::{Record, RecordError};
use crate::session::message::Hello;
use crate::view::shown::Shown;

/// What was seen, or why it could not be looked at.
pub type Looked<T> = Result<T, String>;

/// Everything.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The machine itself.
    pub machine: Machine,
    /// Its mapped devices.
    pub volumes: Vec<Device>,
    /// What lvmsync keeps on it.
    pub records: Records,
    /// Another machine, if one was asked about.
    pub far: Option<Far>,
}

/// Kernel, rights and tools.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// Effective user is root.
    pub root: bool,
    /// `uname -r`.
    pub release: String,
    /// `/dev/mapper/control`.
    pub control: Control,
    /// Target types that the kernel has now, with versions.
    pub targets: Option<Vec<(String, [u32; 3])>>,
    /// Names in `/sys/module`, underscores for hyphens.
    pub loaded: BTreeSet<String>,
    /// Modules that can be loaded, and those that are built in.
    pub modules: Option<Modules>,
    /// Programs.
    pub tools: Vec<Tool>,
    /// What installs packages here.
    pub installer: Option<Installer>,
}

/// The control device of device-mapper.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Control {
    /// It answers; the version of its interface.
    Usable([u32; 3]),
    /// There is none: no device-mapper in this kernel.
    #[default]
    Absent,
    /// Only root may use it.
    NeedsRoot,
    /// It is there and fails.
    Fails(String),
}

/// What `modules.dep` and `modules.builtin` list, underscores for hyphens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Modules {
    /// Can be loaded.
    pub loadable: BTreeSet<String>,
    /// Are part of the kernel.
    pub builtin: BTreeSet<String>,
}

/// A program that lvmsync or its user needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tool {
    /// Which.
    pub name: ToolName,
    /// Its version, or how asking for it failed; `None` where there is no such program.
    pub says: Option<Looked<String>>,
}

/// The programs that are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolName {
    /// LVM.
    Lvm,
    /// Device-mapper's own.
    Dmsetup,
    /// The remote shell.
    Ssh,
    /// One of the thin-provisioning-tools.
    ThinCheck,
}

/// What installs packages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Installer {
    /// Debian, Ubuntu.
    Apt,
    /// Fedora and its relatives.
    Dnf,
    /// SUSE.
    Zypper,
    /// Arch.
    Pacman,
}

/// A mapped device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Device-mapper's name.
    pub name: String,
    /// It belongs to LVM.
    pub of_lvm: bool,
    /// I/O is held back, and was a moment before, too.
    pub suspended: bool,
    /// What it is.
    pub kind: Looked<Kind>,
}

/// What matters of a mapped device here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A classic snapshot.
    Snapshot(SnapshotStatus),
    /// An origin that a snapshot is being merged into.
    Merge(SnapshotStatus),
    /// A thin pool.
    ThinPool(PoolStatus),
    /// A device whose writes dm-era records.
    Era {
        /// A frozen copy of its record is kept for somebody who reads it.
        held_root: bool,
    },
    /// Something else.
    Other,
}

/// The status of a thin pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolStatus {
    /// The kernel gave it up.
    Failed,
    /// In use.
    Running {
        /// Blocks of metadata in use, and all of them.
        metadata: (u64, u64),
        /// Blocks of data in use, and all of them.
        data: (u64, u64),
        /// A frozen copy of the metadata is kept for somebody who reads it.
        held_root: bool,
        /// Takes no writes that need a new block: read-only, or out of data space.
        restricted: bool,
        /// Its metadata must be checked before it is used again.
        needs_check: bool,
    },
}

/// What lvmsync keeps on this machine.
#[derive(Clone, Debug, Default)]
pub struct Records {
    /// The state directory.
    pub directory: String,
    /// It was named on the command line, so the commands that mend have to name it as well.
    pub named: bool,
    /// Whether something can be kept there.
    pub place: Place,
    /// The records in it, or why they could not be listed.
    pub records: Option<Looked<Vec<RecordFacts>>>,
    /// Records that were being written.
    pub partials: Vec<Partial>,
    /// Deltas that wait for the rest of them.
    pub spools: Vec<Partial>,
    /// What runs hold for a while, or held when they were killed.
    pub held: Vec<HeldFacts>,
    /// States that are shown as devices, or were.
    pub views: Vec<ViewFacts>,
    /// Devices that show states and are on no record there: their names.
    pub stray_devices: Vec<String>,
    /// Snapshots that lvmsync made and that are on no record there, or why they were not looked for.
    pub stray_snapshots: Option<Looked<Vec<String>>>,
}

/// A state that is on record as shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ViewFacts {
    /// What the record says, or why it cannot be read.
    pub shown: Looked<Shown>,
    /// The device is there.
    pub is_there: bool,
    /// What it is over can be written to.
    pub is_base_writable: bool,
    /// A run makes or removes it now.
    pub busy: bool,
}

/// Something that is on record as held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldFacts {
    /// What the record says.
    pub held: Held,
    /// What is held.
    pub kind: HeldKind,
    /// Its run lives.
    pub busy: bool,
    /// It was taken since the machine was started.
    pub this_boot: bool,
}

/// What can be on record as held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeldKind {
    /// A pool's metadata snapshot.
    Pool,
    /// An era device's metadata snapshot.
    Era,
    /// A volume that was activated.
    Volume,
    /// A snapshot that was made to be read, and whether LVM has it, under its name and with its tags.
    Snapshot(Looked<bool>),
}

/// Whether a directory can be used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// It is there and takes files.
    Writable,
    /// It is not there, and can be made.
    #[default]
    CanBeMade,
    /// This path, it or one above it, is no directory.
    NotADirectory(String),
    /// This path, it or one above it, takes no files, and why.
    NotWritable(String, String),
}

/// One record and what there is of what it speaks of.
#[derive(Clone, Debug)]
pub struct RecordFacts {
    /// Its file.
    pub file: String,
    /// What it says.
    pub content: Result<Record, Unusable>,
    /// Whether its destination is there.
    pub destination: Presence,
    /// A run holds the destination or its undo now.
    pub busy: bool,
    /// The undo of a cut write, if it named one.
    pub undo: Option<Undo>,
}

/// A record that says nothing.
#[derive(Clone, Debug)]
pub enum Unusable {
    /// The file could not be read.
    Unread(String),
    /// Its bytes make no sense. The identity is what they seem to say, confirmed by the name of the file.
    Damaged(RecordError, Option<String>),
}

/// Whether something is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Presence {
    /// It is.
    Here,
    /// It is not.
    Gone,
    /// Something else has its name.
    Replaced,
    /// That cannot be told, and why.
    #[default]
    Unknown,
}

/// The undo of a write that was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undo {
    /// As `NAME.partial`, as it should be.
    Partial,
    /// As `NAME`.
    Whole,
    /// Neither is there.
    Gone,
}

/// A file that was not finished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partial {
    /// Its path.
    pub path: String,
    /// A run is writing it.
    pub busy: bool,
    /// How long it is.
    pub bytes: u64,
}

/// Another machine.
#[derive(Clone, Debug)]
pub struct Far {
    /// As the user named it.
    pub host: String,
    /// The command that starts a login there, up to the host.
    pub shell: String,
    /// What came of it.
    pub outcome: Result<FarEnd, FarFailure>,
    /// What it wrote to stderr while a session with it began.
    pub words: Vec<String>,
}

/// A far end that answered.
#[derive(Clone, Debug)]
pub struct FarEnd {
    /// What it says of itself.
    pub hello: Hello,
    /// The version of the protocol that both speak.
    pub protocol: u32,
    /// From starting the remote shell to the answer.
    pub took: Duration,
}

/// A far end that cannot be used.
#[derive(Clone, Debug)]
pub struct FarFailure {
    /// Why, with its own words.
    pub reason: String,
    /// It printed something where the greeting should have been.
    pub noise: bool,
}
