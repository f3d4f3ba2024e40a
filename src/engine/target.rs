//! The volume that is to be written, held against the delta that is to be put on it.
//!
//! Guarantees: nothing is written here; only a regular file that is the base gets the size that the delta
//! needs. A destination that is too small, or not in the base state, is refused with both sides named.

use crate::cancel::Cancel;
use crate::delta::codec::Compression;
use crate::delta::header::{Header, Source};
use crate::delta::samples::Samples;
use crate::error::{Error, Result};
use crate::monitor::Monitor;
use crate::units::Bytes;
use crate::volume::{ReadAt, WriteAt};

/// A volume that is to be written.
pub struct Target<'a> {
    /// The volume.
    pub volume: &'a dyn WriteAt,
    /// Its name for messages.
    pub name: &'a str,
    /// A regular file: may be made longer, and shorter again by an undo.
    pub is_file: bool,
    /// Up to how many bytes it can hold, where it takes its space from a pool.
    pub room_bytes: Option<u64>,
}

/// What the caller allows, and who listens.
pub struct ReceiveOptions<'a> {
    /// Accept a destination that is not in the base state.
    pub force: bool,
    /// Accept a destination that is smaller, leaving out what is past its end.
    pub allow_smaller: bool,
    /// The delta is the undo of an apply that was cut: put back what it saved, as far as that goes.
    pub unfinished: bool,
    /// The stream is made while this destination is compared: it carries what differs here, and is of no use elsewhere.
    pub compared: bool,
    /// Compression of the undo.
    pub undo_compression: Compression,
    /// Stops the run.
    pub cancel: &'a Cancel,
    /// Hears of progress and warnings.
    pub monitor: &'a dyn Monitor,
}

/// Makes a file as long as the delta needs it to be.
pub fn grow(header: &Header, target: &Target<'_>) -> Result<()> {
    let size = size_while_written(header, target);
    if size == target.volume.size_bytes() {
        return Ok(());
    }
    target.volume.set_size(size).map_err(|error| {
        let action = format!(
            "cannot make {} {} long",
            target.name,
            Bytes(header.volume_size)
        );
        Error::io(action, error)
    })
}

/// A file that is longer than the volume is made as long as that, in the end: who compares wants the same file.
pub fn cuts_file(header: &Header, target: &Target<'_>) -> bool {
    header.source == Source::Compare
        && target.is_file
        && target.volume.size_bytes() > header.volume_size
}

/// The size that [`grow`] leaves the destination with.
pub fn size_while_written(header: &Header, target: &Target<'_>) -> u64 {
    let size = target.volume.size_bytes();
    if may_grow(header, target) {
        size.max(header.volume_size)
    } else {
        size
    }
}

/// Checks a destination against the delta that is to be applied: its size, and that it is the base. Writes
/// nothing. Where that it is the base `is_on_record`, nobody has to be told that there are no samples. `false`: the samples
/// say no, and `--force` says go on.
pub fn check(
    header: &Header,
    samples: &Samples,
    target: &Target<'_>,
    options: &ReceiveOptions<'_>,
    is_on_record: bool,
) -> Result<bool> {
    refuse_compared_elsewhere(header, target.name, options)?;
    let size = target.volume.size_bytes();
    let needed = header.volume_size;
    if size < needed && !may_grow(header, target) {
        let found = format!(
            "the destination has {size} bytes ({}), the delta needs {needed} ({})",
            Bytes(size),
            Bytes(needed)
        );
        if !options.allow_smaller {
            let way_out = "Make it larger, or leave out what is past its end with --allow-smaller.";
            return Err(Error::refused(target.name, found, way_out));
        }
        options.monitor.warn(&format!(
            "{}: {found}; what is past its end is left out",
            target.name
        ));
    }
    warn_of_little_room(header, target, options);
    let comparable = if options.allow_smaller {
        size
    } else {
        u64::MAX
    };
    let samples = samples.below(comparable);
    if samples.is_empty() && is_on_record {
        return Ok(true);
    }
    check_samples(header, &samples, target, options)
}

/// What differed from another destination, or from this one at another time, makes nothing whole.
fn refuse_compared_elsewhere(
    header: &Header,
    name: &str,
    options: &ReceiveOptions<'_>,
) -> Result<()> {
    if header.source != Source::Compare || options.compared {
        return Ok(());
    }
    Err(Error::refused(
        name,
        "this stream was made by comparing with a destination, and is for that one, in that session",
        "Make the destination equal with lvmsync sync, or send it a full copy.",
    ))
}

/// Zeroes that a pool takes back make room, and the plan may count zeroes as data: so this is no refusal.
fn warn_of_little_room(header: &Header, target: &Target<'_>, options: &ReceiveOptions<'_>) {
    let planned = header.planned.data_bytes;
    if let Some(room) = target.room_bytes.filter(|room| planned > *room) {
        options.monitor.warn(&format!(
            "{}: up to {} are to be written, and with what is free in its thin pool there is room for {}: the \
             pool may run full",
            target.name,
            Bytes(planned),
            Bytes(room)
        ));
    }
}

/// A file that has at least the size of the base grows with the volume.
fn may_grow(header: &Header, target: &Target<'_>) -> bool {
    target.is_file && target.volume.size_bytes() >= header.base_size.unwrap_or(0)
}

fn check_samples(
    header: &Header,
    samples: &Samples,
    target: &Target<'_>,
    options: &ReceiveOptions<'_>,
) -> Result<bool> {
    let Some(offset) = mismatch(
        header,
        samples,
        &target.volume,
        target.name,
        options.monitor,
    )?
    else {
        return Ok(true);
    };
    if options.force {
        return Ok(false);
    }
    Err(Error::refused(
        target.name,
        format!(
            "the destination is not in the state that this delta begins from: {}. Nothing was written",
            shown_mismatch(header, offset)
        ),
        "Apply the deltas that are missing in between, or make it equal: lvmsync sync NEW DEST. \
         --force applies it all the same, and the result is neither state.",
    ))
}

/// The offset of the first sampled block that `volume`, called `name`, does not hold; `None` if it is the base as far as
/// that can be seen.
pub fn mismatch(
    header: &Header,
    samples: &Samples,
    volume: &dyn ReadAt,
    name: &str,
    monitor: &dyn Monitor,
) -> Result<Option<u64>> {
    if header.is_full_copy() {
        return Ok(None);
    }
    if samples.is_empty() {
        monitor.warn(&format!(
            "{name}: this delta has no samples of blocks that it leaves alone, so it cannot be seen whether \
             the destination is its base"
        ));
    }
    samples
        .first_mismatch(volume)
        .map_err(|error| Error::io(format!("cannot read the sampled blocks of {name}"), error))
}

/// What [`mismatch`] found, in words.
pub fn shown_mismatch(header: &Header, offset: u64) -> String {
    let base = header.base.as_ref().map_or_else(
        || "its base".to_owned(),
        |base| format!("its base {} ({})", base.name, base.id),
    );
    format!("the block at {offset} is not what it is in {base}")
}
