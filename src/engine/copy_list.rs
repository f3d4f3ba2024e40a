//! The change list of a full copy: everything, with what is known to be zero called zero.
//!
//! Guarantees: covers the volume exactly; only what the volume itself calls a hole is called zero here
//! (zeroes in the data are found when it is read).

use std::io;

use crate::cancel::Cancel;
use crate::change_list::{ChangeList, ChangeListBuilder};
use crate::error::{Error, Result};
use crate::extent::{Extent, Kind};
use crate::volume::ReadAt;

/// All of `volume`, its holes as zero. `name` is for messages.
pub fn whole_volume(volume: &dyn ReadAt, name: &str, cancel: &Cancel) -> Result<ChangeList> {
    let size = volume.size_bytes();
    let mut builder = ChangeListBuilder::default();
    let mut position = 0;
    while position < size {
        cancel.check()?;
        let data = volume.next_data(position).map_err(|error: io::Error| {
            Error::io(format!("cannot find the holes of {name}"), error)
        })?;
        let start = data.map_or(size, |data| data.offset().clamp(position, size));
        if let Some(hole) = Extent::from_range(position, start) {
            builder.push(hole, Kind::Zero);
        }
        let end = data.map_or(size, |data| data.end().clamp(start, size));
        if let Some(data) = Extent::from_range(start, end) {
            builder.push(data, Kind::Data);
        }
        position = if end > position { end } else { size };
    }
    Ok(builder.finish())
}
