//! `compare --only DELTA`: what a delta changed, and nothing else.
//!
//! Guarantees: the delta is read to its end and found sound before anything is compared.

use std::sync::Arc;

use super::apply::{open_input, shown_name};
use crate::cancel::Cancel;
use crate::change_list::{ChangeList, ChangeListBuilder};
use crate::delta::reader::DeltaReader;
use crate::error::{Error, Result};
use crate::extent::Kind;
use crate::units::Bytes;

/// What `--only` names.
pub(super) struct Only {
    extents: Arc<ChangeList>,
    /// Of the volume that the delta was made from.
    volume_size: u64,
    name: String,
}

impl Only {
    /// The extents of the delta, which is read to its end and found sound.
    pub(super) fn read(delta: Option<&str>, cancel: &Cancel) -> Result<Option<Self>> {
        let Some(delta) = delta else {
            return Ok(None);
        };
        let name = shown_name(delta);
        let damaged = |source| Error::Damaged {
            what: name.clone(),
            source,
        };
        let mut reader = DeltaReader::new(open_input(delta, cancel)?).map_err(damaged)?;
        let mut extents = ChangeListBuilder::default();
        while let Some(frame) = reader.next_frame().map_err(damaged)? {
            cancel.check()?;
            extents.push(frame.extent, Kind::Data);
        }
        Ok(Some(Self {
            extents: Arc::new(extents.finish()),
            volume_size: reader.header().volume_size,
            name,
        }))
    }

    /// The extents, if they can be those of `source`, which has `size` bytes.
    pub(super) fn of(&self, size: u64, source: &str) -> Result<&Arc<ChangeList>> {
        let volume_size = self.volume_size;
        if volume_size > size {
            return Err(Error::Usage(format!(
                "{} is of a volume of {volume_size} bytes ({}), and {source} has {size} ({}): \
                 name the volume that the delta was made from",
                self.name,
                Bytes(volume_size),
                Bytes(size)
            )));
        }
        Ok(&self.extents)
    }
}
