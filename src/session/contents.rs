//! What control messages contain: one struct for each kind, as JSON on the wire.
//!
//! Guarantees: pure data; a field that is not known is ignored and one that is missing has its default,
//! but for those without which the message means nothing.

use serde::{Deserialize, Serialize};

use crate::commands::Via;
use crate::delta::stream::StreamId;

/// Who speaks, which versions of the protocol they know, and which features.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// `lvmsync`, or the name of another implementation. For people.
    #[serde(default)]
    pub program: String,
    /// That program's version. For people.
    #[serde(default)]
    pub version: String,
    /// The oldest version of the protocol that is spoken.
    pub protocol_min: u32,
    /// The newest one.
    pub protocol_max: u32,
    /// Features, by name, that the peer must have for what is about to be asked.
    #[serde(default)]
    pub requires: Vec<String>,
    /// Features, by name, that the speaker has.
    #[serde(default)]
    pub features: Vec<String>,
    /// Milliseconds of silence after which the speaker gives the session up; 0 for never.
    #[serde(default)]
    pub timeout_ms: u64,
}

/// What is wanted of the server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// `apply`: a delta stream follows, to be applied to `destination`. `compare`: requests for digests of it.
    /// `sync`: both, among each other. `pull`: the ends exchange their parts once the server is ready, and
    /// `destination` is what it reads.
    pub operation: String,
    /// Volume, as the user named it; resolved by the server.
    pub destination: String,
    /// How.
    #[serde(default)]
    pub options: ApplyOptions,
    /// Where the data comes from, if the client can tell.
    #[serde(default)]
    pub source: Option<SourceIdentity>,
    /// The delta's identity, so that a run that was cut can go on.
    #[serde(default)]
    pub stream: Option<StreamId>,
    /// Where the data comes from, for the record. For people.
    #[serde(default)]
    pub from: String,
    /// In a pull: how the stream is to be made.
    #[serde(default)]
    pub pull: PullOptions,
    /// How people run commands on the server's machine from where they are, for those that it tells them.
    #[serde(default)]
    pub via: Via,
}

/// What the data is read from, so that a server on the same machine sees that it is not its destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceIdentity {
    /// The client's `/proc/sys/kernel/random/boot_id`: the same on one running kernel only.
    pub boot_id: String,
    /// Major and minor number, for a block device.
    #[serde(default)]
    pub device: Option<(u32, u32)>,
    /// Filesystem and inode number, for a file.
    #[serde(default)]
    pub file: Option<(u64, u64)>,
}

/// [`Open::operation`]: apply the delta stream that follows.
pub const OPERATION_APPLY: &str = "apply";

/// [`Open::operation`]: answer the requests for digests that follow.
pub const OPERATION_COMPARE: &str = "compare";

/// [`Open::operation`]: answer the requests for digests that come in between the delta stream, and apply that.
pub const OPERATION_SYNC: &str = "sync";

/// [`Open::operation`]: become the client, and sync the volume to here.
pub const OPERATION_PULL: &str = "pull";

/// How the stream of a pull is to be made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PullOptions {
    /// Compression, as on the command line; empty for none.
    pub compress: String,
    /// At most so many bytes a second.
    pub bwlimit: Option<u64>,
    /// Read a live logical volume from a snapshot that is made for it. Without, as it is.
    pub snapshot: bool,
    /// Of a thick one: its size.
    pub snapshot_size: Option<u64>,
    /// Keep it under this name when all is done.
    pub keep_snapshot: Option<String>,
    /// What was read will be compared once more, so it must not be a snapshot that is gone by then.
    pub verify: bool,
    /// Check everything, make no snapshot, and send no content.
    pub dry_run: bool,
}

/// How a delta is to be applied. A receiver ignores fields that it does not know, so whoever adds one
/// that must not be ignored names a feature for it in [`Hello::requires`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ApplyOptions {
    /// Path, on the server, of an undo file to write.
    pub undo: Option<String>,
    /// Apply although the base does not match.
    pub force: bool,
    /// Apply although the destination is smaller than the volume.
    pub allow_smaller: bool,
    /// Apply although the destination is mounted or otherwise held.
    pub allow_in_use: bool,
    /// Make the destination where there is none: a file, for a full copy.
    pub create: bool,
    /// Make a logical volume where there is none.
    pub create_volume: Option<CreateVolume>,
    /// Replace an undo file that exists.
    pub overwrite: bool,
    /// Check everything, write nothing.
    pub dry_run: bool,
    /// Refuse a delta where no record names its base.
    pub require_record: bool,
    /// Keep the whole delta beside the destination, checked and durable, before the first write.
    pub atomic: bool,
    /// Directory, on the server, for that.
    pub spool: Option<String>,
}

/// The logical volume that is to be made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CreateVolume {
    /// `auto`, `thick`, or `thin:POOL`.
    pub kind: String,
    /// Size of the volume that is copied; `None`: what comes is no full copy, so that none can be made.
    pub size_bytes: Option<u64>,
}

/// What the server found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ready {
    /// The destination's resolved name.
    pub destination: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// `block` or `file`.
    pub kind: String,
    /// The stream that was announced was cut: every frame that ends at or before this volume offset is durable,
    /// and the stream may begin there.
    pub resume_at: u64,
    /// The stream that was announced was applied already: nothing of it need be sent.
    pub already: bool,
    /// The destination holds nothing yet: there is nothing to be compared with.
    pub empty: bool,
    /// In a pull: the snapshot that was made to be read from; empty if there is none.
    pub snapshot: String,
    /// In a comparison: the same in a later session if nothing was written to the volume since this one opened it; empty if
    /// that cannot be told.
    pub version: String,
}

/// How far the server is. Sent from time to time, only with values that have grown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ack {
    /// Offset in the volume, in bytes: every frame that ends at or before it is durable.
    pub offset: u64,
    /// Frames applied so far, durable or not.
    pub frames: u64,
    /// Bytes of the volume in them.
    pub bytes: u64,
}

/// Something the user should know, and that does not stop the run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    /// One or more lines.
    pub text: String,
}

/// All is done and durable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Done {
    /// Bytes written as data.
    pub bytes_written: u64,
    /// Bytes made zero.
    pub bytes_zeroed: u64,
    /// Frames applied.
    pub frames: u64,
    /// The undo file that was written, if one was asked for.
    pub undo: Option<String>,
    /// True when nothing was written because a dry run was asked for.
    pub dry_run: bool,
    /// In a sync: bytes of the volume that were compared; `None` where the destination was empty.
    pub compared_bytes: Option<u64>,
    /// In a sync: bytes that were cut off from a file that was longer than the volume.
    pub cut_bytes: u64,
    /// In a comparison: it was written to meanwhile, so the digests are of no moment of it.
    pub changed: bool,
}

/// The server's failure: what it would have printed, and its exit code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Exit code, as in the command line's contract.
    pub code: u8,
    /// The whole chain of errors; may have several lines.
    pub message: String,
    /// With the code of a refusal: another process holds the destination at this moment. A client whose own
    /// connection was just lost may ask again; every other refusal is final.
    #[serde(default)]
    pub held: bool,
    /// In a pull or a comparison, where the volume is a snapshot that is lost: what to name in its place.
    #[serde(default)]
    pub recover: String,
}

/// The client stops before the end of its stream; or, in a pull with a snapshot that is to be kept, says after Done how
/// that went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bye {
    /// Why.
    #[serde(default)]
    pub reason: String,
    /// The exit code of what stopped it; 0 where there is none.
    #[serde(default)]
    pub code: u8,
    /// As in [`Failure::recover`].
    #[serde(default)]
    pub recover: String,
}
