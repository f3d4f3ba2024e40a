//! Frames, decompressed when they are asked for.
//!
//! Guarantees: the checksum of a frame is compared whenever it is read; a few are kept, 16 MiB of them at most, and
//! several threads may ask at the same time.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use super::window::damaged;
use crate::delta::codec::decompress;
use crate::delta::{FormatError, MAX_FRAME_BYTES};
use crate::error::Result;
use crate::extent::Extent;
use crate::history::combine::Input;
use crate::volume::ReadAt;

const KEPT_BYTES: usize = 16 << 20;

/// A frame in memory.
pub struct Frame {
    /// Which bytes of the volume.
    pub extent: Extent,
    data: Vec<u8>,
}

impl Frame {
    /// The bytes of `part`, which has to lie in the frame.
    pub fn part(&self, part: Extent) -> Option<&[u8]> {
        let start = part.offset().checked_sub(self.extent.offset())?;
        let start = usize::try_from(start).ok()?;
        let length = usize::try_from(part.length()).ok()?;
        self.data.get(start..start.checked_add(length)?)
    }
}

/// Place of the delta in the chain, and delta offset of the record.
type Key = (usize, u64);

/// The frames that were used last.
#[derive(Default)]
pub struct Frames {
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    frames: VecDeque<(Key, Arc<Frame>)>,
    bytes: usize,
}

impl Frames {
    /// The frame of `input` whose record stands at `key`.
    pub fn get<V: ReadAt>(
        &self,
        input: &Input<V>,
        key: Key,
        stored_length: u32,
    ) -> Result<Arc<Frame>> {
        if let Some(frame) = self.lock().find(key) {
            return Ok(frame);
        }
        let frame = read(input, key.1, stored_length).map_err(|error| damaged(input, error))?;
        let frame = Arc::new(frame);
        self.lock().keep(key, &frame);
        Ok(frame)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// The one that was used last comes last.
    fn find(&mut self, key: Key) -> Option<Arc<Frame>> {
        let place = self.frames.iter().position(|(kept, _)| *kept == key)?;
        let found = self.frames.remove(place)?;
        let frame = found.1.clone();
        self.frames.push_back(found);
        Some(frame)
    }

    fn keep(&mut self, key: Key, frame: &Arc<Frame>) {
        if self.find(key).is_some() {
            return;
        }
        self.bytes += frame.data.len();
        self.frames.push_back((key, frame.clone()));
        while self.bytes > KEPT_BYTES {
            let Some((_, oldest)) = self.frames.pop_front() else {
                break;
            };
            self.bytes -= oldest.data.len();
        }
    }
}

fn read<V: ReadAt>(
    input: &Input<V>,
    at: u64,
    stored_length: u32,
) -> std::result::Result<Frame, FormatError> {
    let mut stored = Vec::new();
    let record = input.delta.payload(at, stored_length, &mut stored)?;
    let (extent, _) = record.frame().ok_or_else(|| FormatError::OutOfOrder {
        at,
        found: record.kind.name().to_owned(),
        expected: "a data frame".to_owned(),
    })?;
    let length = extent.length().min(MAX_FRAME_BYTES);
    let mut data = vec![0; usize::try_from(length).unwrap_or_default()];
    decompress(record.codec, &stored, &mut data).map_err(|reason| FormatError::Payload {
        at,
        codec: record.codec.name(),
        length: record.length,
        reason,
    })?;
    Ok(Frame { extent, data })
}
