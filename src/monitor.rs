//! What a run tells while it goes on: progress, warnings, notes.
//!
//! Guarantees: nothing here writes to stdout; the engine calls a [`Monitor`] and does not know whether a
//! terminal, a script or a test listens.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Listens to a run. All methods may be called from several threads.
pub trait Monitor: Send + Sync {
    /// The run will handle this many bytes of the volume.
    fn plan(&self, bytes: u64);
    /// This many more bytes of the volume were handled.
    fn advance(&self, bytes: u64);
    /// Something that the user should know and that does not stop the run.
    fn warn(&self, text: &str);
    /// Something that the user should know and need not worry about: shown unless quiet.
    fn remark(&self, text: &str) {
        self.note(text);
    }
    /// Something that the user may like to know: shown with `-v`.
    fn note(&self, text: &str);
}

/// Passes on what is said, and no progress: for work that is done in two goes.
pub struct Words<'a>(pub &'a dyn Monitor);

impl Monitor for Words<'_> {
    fn plan(&self, _: u64) {}
    fn advance(&self, _: u64) {}
    fn warn(&self, text: &str) {
        self.0.warn(text);
    }
    fn remark(&self, text: &str) {
        self.0.remark(text);
    }
    fn note(&self, text: &str) {
        self.0.note(text);
    }
}

/// Listens to nothing.
#[derive(Debug, Default)]
pub struct Silent;

impl Monitor for Silent {
    fn plan(&self, _: u64) {}
    fn advance(&self, _: u64) {}
    fn warn(&self, _: &str) {}
    fn note(&self, _: &str) {}
}

/// Remembers everything, for tests.
#[derive(Debug, Default)]
pub struct Recording {
    planned: AtomicU64,
    advanced: AtomicU64,
    warnings: Mutex<Vec<String>>,
}

impl Recording {
    /// Bytes planned and bytes handled.
    pub fn progress(&self) -> (u64, u64) {
        (
            self.planned.load(Ordering::Relaxed),
            self.advanced.load(Ordering::Relaxed),
        )
    }

    /// The warnings so far.
    pub fn warnings(&self) -> Vec<String> {
        self.warnings
            .lock()
            .map(|warnings| warnings.clone())
            .unwrap_or_default()
    }
}

impl Monitor for Recording {
    fn plan(&self, bytes: u64) {
        self.planned.fetch_add(bytes, Ordering::Relaxed);
    }

    fn advance(&self, bytes: u64) {
        self.advanced.fetch_add(bytes, Ordering::Relaxed);
    }

    fn warn(&self, text: &str) {
        if let Ok(mut warnings) = self.warnings.lock() {
            warnings.push(text.to_owned());
        }
    }

    fn note(&self, _: &str) {}
}
