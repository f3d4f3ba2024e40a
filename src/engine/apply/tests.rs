//! Tests of the applier: zeroes, what is told to be durable, and who carries out a write.

use super::super::in_flight;
use super::*;
use crate::volume::ReadAt;
use crate::volume::faulty::{FaultyVolume, Op, OpKind};
use crate::volume::memory::MemoryVolume;
use proptest::prelude::*;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A volume whose space comes in blocks of 192 KiB.
struct Blocks(FaultyVolume<MemoryVolume>);

impl ReadAt for Blocks {
    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }
}

impl WriteAt for Blocks {
    fn write_all_at(&self, buffer: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(buffer, offset)
    }
    fn zero_at(&self, extent: Extent) -> io::Result<()> {
        self.0.zero_at(extent)
    }
    fn zero_block_bytes(&self) -> u64 {
        192 << 10
    }
    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }
}

fn zeroed(volume: &Blocks) -> Vec<Extent> {
    let zeroes = |op: &Op| match op {
        Op::Zero(extent) => Some(*extent),
        _ => None,
    };
    volume.0.ops().iter().filter_map(zeroes).collect()
}

fn volume() -> Blocks {
    Blocks(FaultyVolume::new(MemoryVolume::new(vec![7; 48 << 20])))
}

fn extent(offset: u64, end: u64) -> Extent {
    Extent::from_range(offset, end).unwrap()
}

#[test]
fn neighbouring_zeroes_become_one_range_also_through_an_undo() {
    for with_undo in [false, true] {
        let volume = volume();
        let mut undo = Vec::new();
        let undo = with_undo.then(|| {
            let header = crate::delta::header::Header {
                volume_size: 48 << 20,
                ..crate::engine::receive::anonymous_header(48 << 20)
            };
            UndoRecorder::new(
                &mut undo,
                "undo",
                &header,
                &crate::delta::samples::Samples::default(),
                crate::delta::codec::Compression::None,
            )
            .unwrap()
        });
        let (cancel, mut nothing) = (Cancel::new(), |_: u64, _: &Applied, _: &Places| Ok(()));
        let mut applier = Applier::new(&volume, "volume", undo, &cancel, &mut nothing);
        let mib = 1u64 << 20;
        // Frames of 1 MiB, as an undo has them, and one that is longer than the window of an undo.
        for number in 1..11 {
            applier
                .write_zeroes(extent(number * mib, (number + 1) * mib))
                .unwrap();
        }
        applier.write_zeroes(extent(11 * mib, 40 * mib)).unwrap();
        applier.write(extent(40 * mib, 40 * mib + 1), &[1]).unwrap();
        applier.write_zeroes(extent(41 * mib, 42 * mib)).unwrap();
        let Ended::Done(applied, _) = applier.end(Ok(())) else {
            panic!("it failed")
        };
        let expected = [extent(mib, 40 * mib), extent(41 * mib, 42 * mib)];
        assert_eq!(zeroed(&volume), expected, "undo: {with_undo}");
        assert_eq!(applied.zero_bytes, 40 * mib);
    }
}

#[test]
fn what_is_told_durable_is_written_zeroes_included() {
    let volume = volume();
    let mut told = Vec::new();
    let seen = &volume;
    let mut on_durable = |end: u64, _: &Applied, _: &Places| {
        told.push((end, zeroed(seen).last().map(|run| run.end())));
        Ok(())
    };
    let cancel = Cancel::new();
    let mut applier = Applier::<Vec<u8>>::new(&volume, "volume", None, &cancel, &mut on_durable);
    applier.sync_every_bytes = 1;
    applier.write_zeroes(extent(0, 4096)).unwrap();
    applier.write_zeroes(extent(4096, 8192)).unwrap();
    applier.write(extent(8192, 8193), &[1]).unwrap();
    let ended = applier.end(Err(Error::Interrupted));
    assert!(matches!(ended, Ended::Failed { touched: true, .. }));
    assert_eq!(told[0], (8192, Some(8192)));
    assert!(told.iter().all(|(end, _)| *end <= 8193), "{told:?}");
}

#[test]
fn zeroes_that_nothing_followed_have_touched_nothing_when_the_run_fails() {
    let volume = volume();
    let (cancel, mut nothing) = (Cancel::new(), |_: u64, _: &Applied, _: &Places| Ok(()));
    let mut applier = Applier::<Vec<u8>>::new(&volume, "volume", None, &cancel, &mut nothing);
    applier.write_zeroes(extent(0, 4096)).unwrap();
    let ended = applier.end(Err(Error::Interrupted));
    assert!(matches!(ended, Ended::Failed { touched: false, .. }));
    assert_eq!(zeroed(&volume), []);
}

#[test]
fn after_a_write_that_failed_all_before_it_is_durable_and_told() {
    // ENOSPC and EIO.
    for (errno, bad) in [(28, 20), (5, 0), (5, 39)] {
        let bad_block = extent(bad * 4096 + 100, bad * 4096 + 101);
        let volume = FaultyVolume::new(MemoryVolume::new(vec![7; 40 * 4096]))
            .fail_touching(OpKind::Write, bad_block, errno)
            .with_writes_at_once(4);
        let mut told = Vec::new();
        let mut on_durable = |end: u64, _: &Applied, _: &Places| {
            told.push(end);
            Ok(())
        };
        let cancel = Cancel::new();
        let ended = in_flight::with(&volume, |in_flight| {
            let mut applier =
                Applier::<Vec<u8>>::new(&volume, "volume", None, &cancel, &mut on_durable)
                    .write_by(in_flight);
            let written = (0..40).try_for_each(|block| {
                applier.write(extent(block * 4096, (block + 1) * 4096), &[1; 4096])
            });
            applier.end(written)
        });
        let Ended::Failed { is_durable, .. } = ended else {
            panic!("block {bad}: it did not fail")
        };
        assert!(is_durable);
        assert_eq!(told, [bad * 4096]);
        let bytes = volume.inner().bytes();
        let before = usize::try_from(bad).unwrap() * 4096;
        assert!(bytes[..before].iter().all(|byte| *byte == 1), "block {bad}");
    }
}

/// As a file is: large writes wait for a device, small ones go into memory.
struct Image {
    volume: MemoryVolume,
    large_under_way: AtomicUsize,
}

const LARGE_BYTES: usize = 64 << 10;

impl ReadAt for Image {
    fn size_bytes(&self) -> u64 {
        self.volume.size_bytes()
    }
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.volume.read_exact_at(buffer, offset)
    }
}

impl WriteAt for Image {
    fn write_all_at(&self, buffer: &[u8], offset: u64) -> io::Result<()> {
        if buffer.len() < LARGE_BYTES {
            let large = self.large_under_way.load(Ordering::SeqCst);
            assert_eq!(large, 0, "a small write beside a large one");
            return self.volume.write_all_at(buffer, offset);
        }
        self.large_under_way.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_micros(200));
        let written = self.volume.write_all_at(buffer, offset);
        self.large_under_way.fetch_sub(1, Ordering::SeqCst);
        written
    }
    fn zero_at(&self, extent: Extent) -> io::Result<()> {
        self.volume.zero_at(extent)
    }
    fn writes_at_once(&self) -> usize {
        2
    }
    fn waits_for_device(&self, extent: Extent) -> bool {
        extent.length() >= LARGE_BYTES as u64
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

proptest! {
    #[test]
    fn large_and_small_writes_leave_what_they_should_and_never_meet(
        pieces in prop::collection::vec(
            (1..3 * LARGE_BYTES, 0..3 * LARGE_BYTES, any::<u8>(), any::<bool>()),
            1..30,
        )
    ) {
        let size: usize = pieces.iter().map(|(length, gap, ..)| length + gap).sum();
        // The last piece may lie past the end in part, or whole.
        let kept = size - size / 40;
        let image = Image {
            volume: MemoryVolume::new(vec![9; kept]),
            large_under_way: AtomicUsize::new(0),
        };
        let mut model = vec![9; size];
        let (cancel, mut nothing) = (Cancel::new(), |_: u64, _: &Applied, _: &Places| Ok(()));
        let ended = in_flight::with(&image, |in_flight| {
            let mut applier = Applier::<Vec<u8>>::new(&image, "image", None, &cancel, &mut nothing)
                .write_by(in_flight);
            let (mut buffer, mut at) = (AlignedBuffer::new(0), 0);
            for (length, gap, fill, is_handed_over) in pieces {
                let place = extent(at as u64, (at + length) as u64);
                model[at..at + length].fill(fill);
                at += length + gap;
                if !is_handed_over {
                    applier.write(place, &vec![fill; length]).unwrap();
                    continue;
                }
                if buffer.len() < length {
                    buffer = AlignedBuffer::new(length);
                }
                buffer[..length].fill(fill);
                applier.write_from(place, &mut buffer).unwrap();
                assert!(buffer.len() >= length);
            }
            applier.end(Ok(()))
        });
        assert!(matches!(ended, Ended::Done(..)));
        assert!(image.volume.bytes() == model[..kept]);
    }
}
