//! Fuzzing of the server for network block devices: whatever a client sends.

use std::io::{self, Read, Write};

use crate::extent::{Change, Extent, Kind};
use crate::view::nbd::Export;
use crate::view::nbd::client::{Connection, Patience, serve};
use crate::volume::memory::MemoryVolume;
use crate::volume::{ReadAt, WriteAt};

const SIZE: usize = 20_000;

/// A client that has said all that it will.
struct Said<'a> {
    input: &'a [u8],
    output: Vec<u8>,
}

impl Read for Said<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.input.read(buffer)
    }
}

impl Write for Said<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        // Enough to look at; a fuzzer's memory is limited.
        if self.output.len() < 1 << 20 {
            self.output.extend_from_slice(buffer);
        }
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Connection for Said<'_> {
    fn patience(&mut self, _: Patience) {}
}

struct InMemory {
    volume: MemoryVolume,
    is_writable: bool,
}

impl Export for InMemory {
    fn size_bytes(&self) -> u64 {
        self.volume.size_bytes()
    }

    fn is_writable(&self) -> bool {
        self.is_writable
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        assert!(buffer.len() <= 1 << 20, "bounded");
        self.volume.read_exact_at(buffer, offset)
    }

    fn map(&self, extent: Extent, most: usize) -> io::Result<Vec<Change>> {
        assert!(extent.end() <= self.size_bytes(), "inside");
        let mut found = Vec::new();
        let mut at = extent.offset();
        while at < extent.end() && found.len() < most {
            let end = (at / 3000 * 3000 + 3000).min(extent.end());
            let kind = if (at / 3000).is_multiple_of(2) {
                Kind::Data
            } else {
                Kind::Zero
            };
            found.extend(Extent::from_range(at, end).map(|extent| Change { extent, kind }));
            at = end;
        }
        Ok(found)
    }

    fn write(&self, data: &[u8], offset: u64) -> io::Result<()> {
        assert!(self.is_writable, "only where that was agreed");
        self.volume.write_all_at(data, offset)
    }

    fn zero(&self, extent: Extent) -> io::Result<()> {
        assert!(self.is_writable, "only where that was agreed");
        self.volume.zero_at(extent)
    }
}

/// What a client sends, from its flags on; the first byte says whether it may write.
///
/// Holds: no panic; reads and writes lie inside the export and are bounded; without permission nothing is written; the
/// greeting comes first.
pub fn fuzz_nbd(data: &[u8]) {
    let Some((first, input)) = data.split_first() else {
        return;
    };
    let export = InMemory {
        volume: MemoryVolume::new(vec![3; SIZE]),
        is_writable: first & 1 == 1,
    };
    let mut said = Said {
        input,
        output: Vec::new(),
    };
    let _ = serve(&mut said, &export, &|_| {});
    assert!(said.output.starts_with(&crate::view::nbd::wire::greeting()));
    assert!(export.is_writable || export.volume.bytes() == vec![3; SIZE]);
}

/// Seeds: a client of our day, and one of an older.
#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::view::nbd::wire::{ALLOCATION, OPTION_MAGIC, REQUEST_MAGIC};

    fn option(number: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
        bytes.extend(number.to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(data);
        bytes
    }

    fn request(command: u16, offset: u64, length: u32) -> Vec<u8> {
        let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
        bytes.extend([0, 0]);
        bytes.extend(command.to_be_bytes());
        bytes.extend(1u64.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes
    }

    pub(in crate::fuzzing) fn modern() -> Vec<u8> {
        let mut queries = vec![0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, ALLOCATION.len() as u8];
        queries.extend(ALLOCATION.as_bytes());
        [
            vec![0, 0, 0, 0, 3],
            option(8, &[]),
            option(9, &[0; 8]),
            option(10, &queries),
            option(6, &[0, 0, 0, 0, 0, 1, 0, 3]),
            option(7, &[0; 6]),
            request(7, 0, 20_000),
            request(0, 2000, 9000),
            request(5, 0, 4096),
            request(3, 0, 0),
            request(2, 0, 0),
        ]
        .concat()
    }

    pub(in crate::fuzzing) fn old_and_writing() -> Vec<u8> {
        [
            vec![1, 0, 0, 0, 1],
            option(3, &[]),
            option(1, &[]),
            request(1, 100, 5),
            b"hello".to_vec(),
            request(6, 4096, 4096),
            request(4, 0, 512),
            request(0, 0, 20_000),
            request(0, 20_000, 1),
        ]
        .concat()
    }

    #[test]
    fn the_seeds_are_served_to_their_end() {
        for (seed, bytes) in [(modern(), 4000), (old_and_writing(), 15_000)] {
            let export = InMemory {
                volume: MemoryVolume::new(vec![3; SIZE]),
                is_writable: seed[0] == 1,
            };
            let mut said = Said {
                input: &seed[1..],
                output: Vec::new(),
            };
            serve(&mut said, &export, &|error| panic!("{error}")).unwrap();
            assert!(said.input.is_empty());
            let threes = said.output.iter().filter(|byte| **byte == 3).count();
            assert!(threes >= bytes, "{threes}");
            fuzz_nbd(&seed);
        }
    }
}
