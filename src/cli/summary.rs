//! The last line of a run, for people and for scripts.
//!
//! Pure. Guarantees: figures in the JSON are bytes and seconds; the line for people says the same in words.

use std::time::Duration;

use serde::Serialize;

use crate::delta::trailer::Counts;
use crate::units::{Bytes, count};

/// What a send or an apply did.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Summary {
    /// Where the data went.
    pub(super) destination: String,
    /// Size of the volume.
    pub(super) volume_size: u64,
    /// Extents in the change list.
    pub(super) extents: u64,
    /// Bytes of the volume that were compared at both ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) compared_bytes: Option<u64>,
    /// Bytes of the volume that travelled as data.
    pub(super) data_bytes: u64,
    /// Bytes of the volume that travelled as zero.
    pub(super) zero_bytes: u64,
    /// Bytes that went over the wire or into the file.
    pub(super) bytes_sent: u64,
    /// Bytes of the session, both ways, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) wire_bytes: Option<u64>,
    /// Wall-clock time.
    pub(super) seconds: f64,
    /// The undo that was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) undo: Option<String>,
    /// Program and version of the other end of the session.
    #[serde(skip)]
    pub(super) far_program: Option<String>,
    /// On which machine that is, if not on this one.
    #[serde(skip)]
    pub(super) undo_host: Option<String>,
    /// What was cut off from a longer file; or would be, where nothing was written, as asked.
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) cut_bytes: u64,
    /// Nothing was written, as asked.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) dry_run: bool,
    /// What was written was read back, and is what it should be.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) verified: bool,
    /// Frames that travelled; `None` as long as the figures are those of a plan.
    #[serde(skip)]
    pub(super) frames: Option<u64>,
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde asks for it this way"
)]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Summary {
    /// A connection begins at this volume offset, by comparing or not. What it compares is the rest of what the one before it
    /// did not get to.
    pub(super) fn goes_on_at(&mut self, offset: u64, compares: bool) {
        let compared = compares.then(|| self.volume_size.saturating_sub(offset));
        self.compared_bytes = self.compared_bytes.max(compared);
    }

    /// Adds what a connection carried, whatever came of it then: counts, and bytes of the delta. What was planned does not count
    /// any more.
    pub(super) fn carried(&mut self, (counts, bytes): (Counts, u64)) {
        if self.frames.is_none() {
            (self.data_bytes, self.zero_bytes, self.bytes_sent) = (0, 0, 0);
        }
        let frames = counts.data_frames + counts.zero_frames;
        self.frames = Some(self.frames.unwrap_or(0) + frames);
        self.data_bytes += counts.data_bytes;
        self.zero_bytes += counts.zero_bytes;
        self.bytes_sent += bytes;
    }

    /// "sent 12.5 MiB in 1.2 s (10.4 MiB/s); a full copy would be 256.0 MiB, 20 times as much".
    pub(super) fn sentence(&self, verb: &str) -> String {
        let elapsed = Duration::try_from_secs_f64(self.seconds).unwrap_or_default();
        let rate = Bytes(per_second(self.bytes_sent, elapsed));
        let mut text = format!(
            "{verb} {} in {} ({rate}/s): {}, {} data, {} zero",
            Bytes(self.bytes_sent),
            shown_seconds(elapsed),
            count(self.extents, "extent"),
            Bytes(self.data_bytes),
            Bytes(self.zero_bytes)
        );
        if self.volume_size > 0 {
            text.push_str(&format!("; a full copy is {}", Bytes(self.volume_size)));
            if let Some(times) = self
                .volume_size
                .checked_div(self.bytes_sent)
                .filter(|t| *t >= 2)
            {
                text.push_str(&format!(", {times} times as much"));
            }
        }
        if let Some(undo) = &self.undo {
            text.push_str("; undo ");
            if let Some(host) = &self.undo_host {
                text.push_str(&format!("at {host} "));
            }
            text.push_str(&format!("in {undo}"));
        }
        if self.verified {
            text.push_str("; verified: what was written reads back");
        }
        text
    }
}

/// Bytes a second; 0 before any time has passed.
pub(super) fn per_second(bytes: u64, elapsed: Duration) -> u64 {
    let milliseconds = elapsed.as_millis().max(1);
    u64::try_from(u128::from(bytes) * 1000 / milliseconds).unwrap_or(u64::MAX)
}

pub(super) fn shown_seconds(elapsed: Duration) -> String {
    let seconds = elapsed.as_secs();
    match seconds {
        0..60 => format!("{:.2} s", elapsed.as_secs_f64()),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sentence_says_what_a_full_copy_would_have_been() {
        let summary = Summary {
            volume_size: 256 << 20,
            extents: 7,
            data_bytes: 12 << 20,
            bytes_sent: 12 << 20,
            seconds: 2.0,
            ..Summary::default()
        };
        assert_eq!(
            summary.sentence("sent"),
            "sent 12.0 MiB in 2.00 s (6.0 MiB/s): 7 extents, 12.0 MiB data, 0 B zero; \
             a full copy is 256.0 MiB, 21 times as much"
        );
    }

    #[test]
    fn what_was_planned_gives_way_to_what_all_connections_carried() {
        let counts = |data_frames, data_bytes| Counts {
            data_frames,
            data_bytes,
            ..Counts::default()
        };
        let mut summary = Summary {
            volume_size: 100,
            data_bytes: 100,
            ..Summary::default()
        };
        summary.goes_on_at(10, true);
        summary.carried((counts(2, 40), 50));
        summary.goes_on_at(50, true);
        summary.carried((counts(3, 50), 60));
        let found = (summary.frames, summary.data_bytes, summary.bytes_sent);
        assert_eq!(found, (Some(5), 90, 110));
        assert_eq!(summary.compared_bytes, Some(90));
    }

    #[test]
    fn long_times_are_readable() {
        assert_eq!(shown_seconds(Duration::from_secs(61)), "1 min 1 s");
        assert_eq!(shown_seconds(Duration::from_secs(7260)), "2 h 1 min");
    }
}
