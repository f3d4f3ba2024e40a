//! What a far end may say, beyond what a single message may be.
//!
//! Guarantees: pure but for what passes a warning on; acks that go back or past the volume are an error; a
//! far end cannot fill the terminal with warnings, nor send them for ever.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::SessionError;
use super::client::SessionEvents;
use super::message::Ack;
use crate::extent::MAX_OFFSET;

/// So many warnings of one session are shown.
pub const WARNINGS_SHOWN: u32 = 100;
/// More than so many end it.
pub const MAX_WARNINGS: u32 = 10_000;

/// Holds each ack against the one before.
#[derive(Clone, Copy, Debug)]
pub struct AckCheck {
    last: Ack,
    most: u64,
}

impl Default for AckCheck {
    fn default() -> Self {
        Self {
            last: Ack::default(),
            most: MAX_OFFSET,
        }
    }
}

impl AckCheck {
    /// From now on no ack may be past byte `size_bytes` of the volume.
    pub fn limit_to(&mut self, size_bytes: u64) {
        self.most = size_bytes;
    }

    /// Takes the next ack.
    pub fn next(&mut self, ack: &Ack) -> Result<(), SessionError> {
        let grown = [
            ("offset", self.last.offset, ack.offset),
            ("frames", self.last.frames, ack.frames),
            ("bytes", self.last.bytes, ack.bytes),
        ];
        if let Some((field, before, now)) = grown.iter().find(|(_, before, now)| now < before) {
            return Err(SessionError::Violation(format!(
                "an Ack says {field} {now} after {before}, and it must not go down"
            )));
        }
        if ack.offset > self.most {
            return Err(SessionError::Violation(format!(
                "an Ack says that byte {} is durable, and the volume ends at {}",
                ack.offset, self.most
            )));
        }
        self.last = *ack;
        Ok(())
    }
}

/// Passes on what is heard, but not every warning of a flood.
pub(super) struct Bounded {
    listener: Arc<dyn SessionEvents>,
    warnings: AtomicU32,
}

impl Bounded {
    pub(super) fn new(listener: Arc<dyn SessionEvents>) -> Arc<Self> {
        let warnings = AtomicU32::new(0);
        Arc::new(Self { listener, warnings })
    }
}

impl SessionEvents for Bounded {
    fn acknowledged(&self, ack: &Ack) {
        self.listener.acknowledged(ack);
    }

    fn warning(&self, text: &str) {
        match self.warnings.fetch_add(1, Ordering::Relaxed) {
            before if before < WARNINGS_SHOWN => self.listener.warning(text),
            WARNINGS_SHOWN => self.listener.warning("further warnings are not shown"),
            _ => {}
        }
    }
}

/// A delta stream that is not one of version 3. Such a one names no base and has no end mark, its records may
/// repeat without end, and to undo one takes memory for each of them. No client of a session sends it.
pub struct WithoutProto3<R> {
    input: R,
    /// Bytes of its first line that were seen; `None` once the stream is known to be another.
    seen: Option<usize>,
}

const PROTO3: &[u8] = b"lvmsync PROTO[3]";

impl<R: Read> WithoutProto3<R> {
    /// The same bytes, unless they begin as version 3 does.
    pub fn new(input: R) -> Self {
        let seen = Some(0);
        Self { input, seen }
    }
}

impl<R: Read> Read for WithoutProto3<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        if let Some(seen) = self.seen {
            let arrived = buffer.get(..read).unwrap_or_default();
            let expected = PROTO3.get(seen..).unwrap_or_default();
            let compared = arrived.len().min(expected.len());
            let same = arrived[..compared] == expected[..compared];
            self.seen = same.then_some(seen + compared);
        }
        if self.seen == Some(PROTO3.len()) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a session takes deltas of version 4, and this is a PROTO[3] stream",
            ));
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Mutex;

    fn ack(offset: u64, frames: u64, bytes: u64) -> Ack {
        Ack {
            offset,
            frames,
            bytes,
        }
    }

    #[test]
    fn acks_only_grow_and_stay_inside() {
        let mut check = AckCheck::default();
        check.next(&ack(5, 1, 5)).unwrap();
        check.next(&ack(5, 1, 5)).unwrap();
        for (bad, word) in [
            (ack(4, 2, 6), "offset 4 after 5"),
            (ack(6, 0, 6), "frames 0 after 1"),
            (ack(6, 2, 4), "bytes 4 after 5"),
            (ack(u64::MAX, 2, 6), "the volume ends"),
        ] {
            let error = check.next(&bad).unwrap_err();
            assert!(!error.is_lost());
            assert!(error.to_string().contains(word), "{error}");
        }
        check.limit_to(10);
        check.next(&ack(10, 2, 6)).unwrap();
        assert!(check.next(&ack(11, 2, 6)).is_err());
    }

    proptest! {
        #[test]
        fn what_passes_is_sorted(acks in prop::collection::vec((0u64..9, 0u64..9, 0u64..9), 0..20)) {
            let mut check = AckCheck::default();
            let passed = acks.iter().map(|(o, f, b)| ack(*o, *f, *b));
            let passed: Vec<Ack> = passed.filter(|ack| check.next(ack).is_ok()).collect();
            let ascends = |w: &[Ack]| {
                w[0].offset <= w[1].offset && w[0].frames <= w[1].frames && w[0].bytes <= w[1].bytes
            };
            prop_assert!(passed.windows(2).all(ascends));
        }
    }

    proptest! {
        #[test]
        fn only_version_3_is_kept_out(
            bytes in "(lvmsync |lvmsync PROTO|lvmsync PROTO\\[[34]\\]|x)[a-z\\[\\]3]{0,20}", piece in 1usize..20,
        ) {
            let mut input = WithoutProto3::new(bytes.as_bytes());
            let (mut read, mut buffer) = (Vec::new(), vec![0; piece]);
            let result = loop {
                match input.read(&mut buffer) {
                    Ok(0) => break Ok(()),
                    Ok(n) => read.extend_from_slice(&buffer[..n]),
                    Err(error) => break Err(error),
                }
            };
            prop_assert_eq!(result.is_err(), bytes.starts_with("lvmsync PROTO[3]"));
            if result.is_ok() {
                prop_assert_eq!(read, bytes.into_bytes());
            }
        }
    }

    #[test]
    fn a_flood_of_warnings_is_cut_and_said_to_be() {
        #[derive(Default)]
        struct Heard(Mutex<Vec<String>>);
        impl SessionEvents for Heard {
            fn warning(&self, text: &str) {
                self.0.lock().unwrap().push(text.to_owned());
            }
        }
        let heard = Arc::new(Heard::default());
        let bounded = Bounded::new(Arc::clone(&heard) as Arc<dyn SessionEvents>);
        for number in 0..500 {
            bounded.warning(&number.to_string());
        }
        let heard = heard.0.lock().unwrap();
        assert_eq!(heard.len(), 101);
        assert_eq!(heard[99..], ["99", "further warnings are not shown"]);
    }
}
