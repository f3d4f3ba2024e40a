//! The status words of a thin pool and of a thin volume, and what they mean for a write.
//!
//! Pure. Guarantees: a line that does not read as the kernel's documentation says is an error, never a
//! healthy pool; what is said of a pool names the command that mends it.

use super::name::LvName;
use super::table::TableError;
use crate::units::{Bytes, sectors_to_bytes};

/// What the kernel says of a thin pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PoolStatus {
    /// It answers nothing any more (`Fail`, `Error`).
    Failed,
    /// It has figures.
    Working(PoolFigures),
}

/// The figures of a pool that answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolFigures {
    /// Blocks of 4 KiB for its maps: in use, and in all.
    pub metadata: Share,
    /// Data blocks: in use, and in all.
    pub data: Share,
    /// The block of the superblock of a metadata snapshot, while one is held.
    pub held_root: Option<u64>,
    /// What it lets happen.
    pub mode: Mode,
    /// A write that finds no space fails at once. Otherwise it waits: for a minute, if nobody changed that.
    pub error_if_no_space: bool,
    /// Its maps want a check before anything is written.
    pub needs_check: bool,
}

/// So many of so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// In use.
    pub used: u64,
    /// In all.
    pub total: u64,
}

/// What a pool lets happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Everything.
    ReadWrite,
    /// Nothing that changes its maps. A discard then *succeeds and does nothing*.
    ReadOnly,
    /// Only what needs no new block.
    OutOfDataSpace,
}

impl Share {
    /// Not in use.
    pub fn free(self) -> u64 {
        self.total.saturating_sub(self.used)
    }

    /// In use, in percent.
    pub fn percent(self) -> u64 {
        self.used.saturating_mul(100) / self.total.max(1)
    }

    fn parse(text: &str) -> Option<Self> {
        let (used, total) = text.split_once('/')?;
        Some(Self {
            used: used.parse().ok()?,
            total: total.parse().ok()?,
        })
    }
}

/// Reads the status of a `thin-pool` target.
pub fn parse_pool_status(status: &str) -> Result<PoolStatus, TableError> {
    let parsed = match status.trim() {
        "Fail" | "Error" => Some(PoolStatus::Failed),
        words => figures(words).map(PoolStatus::Working),
    };
    parsed.ok_or_else(|| TableError {
        kind: "thin-pool status".into(),
        params: status.into(),
    })
}

/// `<transaction> <used>/<total meta> <used>/<total data> <held root|-> <mode> <discards> <no space> <check> <low>`;
/// the last two came with later kernels.
fn figures(words: &str) -> Option<PoolFigures> {
    let mut words = words.split_ascii_whitespace();
    words.next()?.parse::<u64>().ok()?;
    let metadata = Share::parse(words.next()?)?;
    let data = Share::parse(words.next()?)?;
    let held_root = match words.next()? {
        "-" => None,
        root => Some(root.parse().ok()?),
    };
    let mode = match words.next()? {
        "rw" => Mode::ReadWrite,
        "ro" => Mode::ReadOnly,
        "out_of_data_space" => Mode::OutOfDataSpace,
        _ => return None,
    };
    let discards = words.next()?;
    if !["ignore_discard", "discard_passdown", "no_discard_passdown"].contains(&discards) {
        return None;
    }
    let error_if_no_space = match words.next()? {
        "error_if_no_space" => true,
        "queue_if_no_space" => false,
        _ => return None,
    };
    let needs_check = match words.next() {
        None | Some("-") => false,
        Some("needs_check") => true,
        Some(_) => return None,
    };
    Some(PoolFigures {
        metadata,
        data,
        held_root,
        mode,
        error_if_no_space,
        needs_check,
    })
}

/// Reads the status of a `thin` target: how many bytes of it are mapped. `None` for one that failed.
pub fn parse_mapped_bytes(status: &str) -> Option<u64> {
    sectors_to_bytes(status.split_ascii_whitespace().next()?.parse().ok()?)
}

/// What is wrong with a pool, and the way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// What was found.
    pub reason: String,
    /// The command.
    pub way_out: String,
}

impl PoolStatus {
    /// Why nothing can be written to a volume of this pool.
    pub fn trouble(&self, pool: &LvName) -> Option<Trouble> {
        let figures = match self {
            Self::Failed => {
                return Some(Trouble {
                    reason: format!("its thin pool {pool} has failed"),
                    way_out: format!(
                        "The kernel's log says why; first of all the disk below its metadata has to be well. {}",
                        checked(pool)
                    ),
                });
            }
            Self::Working(figures) => figures,
        };
        let share = figures.shown();
        let (what, way_out) = if figures.needs_check && figures.is_short_of_metadata() {
            // The kernel lets no metadata grow that was not checked.
            let way_out = format!("{}\n{}", checked(pool), room_for_maps(pool));
            ("needs a check, and its metadata is full", way_out)
        } else if figures.needs_check {
            ("needs a check", checked(pool))
        } else if figures.mode == Mode::ReadOnly && figures.is_short_of_metadata() {
            let way_out = room_for_maps(pool);
            ("is read-only, for its metadata is full", way_out)
        } else if figures.mode == Mode::ReadOnly {
            let way_out = format!("The kernel's log says why. {}", checked(pool));
            ("is read-only", way_out)
        } else if figures.mode == Mode::OutOfDataSpace {
            ("is out of space", more_space(pool))
        } else {
            return None;
        };
        Some(Trouble {
            reason: format!("its thin pool {pool} {what} ({share})"),
            way_out,
        })
    }

    /// Why the maps of this pool cannot be read: the kernel freezes no copy of what it may not write. A pool that has
    /// only run out of space is no hindrance.
    pub fn trouble_for_reader(&self, pool: &LvName) -> Option<Trouble> {
        match self {
            Self::Working(figures) if figures.mode == Mode::OutOfDataSpace => None,
            _ => self.trouble(pool),
        }
    }

    /// What there is to know when a write failed. The way out is empty for a pool that is in order.
    pub fn after_failure(&self, pool: &LvName) -> Trouble {
        match (self.trouble(pool), self) {
            (Some(trouble), _) => trouble,
            (None, Self::Working(figures)) if figures.data.free() == 0 => Trouble {
                reason: format!("its thin pool {pool} is full ({})", figures.shown()),
                way_out: more_space(pool),
            },
            (None, Self::Working(figures)) if figures.is_short_of_metadata() => Trouble {
                reason: format!(
                    "the metadata of its thin pool {pool} is full ({})",
                    figures.shown()
                ),
                way_out: room_for_maps(pool),
            },
            (None, Self::Working(figures)) => Trouble {
                reason: format!("its thin pool {pool}: {}", figures.shown()),
                way_out: String::new(),
            },
            (None, Self::Failed) => Trouble {
                reason: format!("its thin pool {pool} has failed"),
                way_out: String::new(),
            },
        }
    }
}

/// The commands that have the maps of a pool checked, and the kernel believe it.
///
/// A pool is inactive only when each of its volumes is. The mark that the kernel has set is taken off by `thin_check`, and
/// not by `thin_repair` (of version 0.9 at least): and `thin_check` is told to only where LVM was built that way, which
/// it is not in Debian 12.
pub fn check_commands(pool: &LvName) -> String {
    let (vg, lv) = (pool.vg(), pool.lv());
    format!(
        "lvchange -an -S 'pool_lv=\"{lv}\"' {vg} && lvchange -an {pool} && lvchange -ay --config \
         'global/thin_check_options=[\"-q\",\"--clear-needs-check-flag\"]' {pool}"
    )
}

fn checked(pool: &LvName) -> String {
    format!(
        "To have its maps checked, all of it has to be inactive: {}\nIf they are damaged: lvconvert --repair \
         {pool}, and the last of these commands again. Then activate the volume",
        check_commands(pool)
    )
}

fn room_for_maps(pool: &LvName) -> String {
    format!("Make room for its maps: lvextend --poolmetadatasize +1G {pool}")
}

fn more_space(pool: &LvName) -> String {
    format!("Make it larger, then run the same again: lvextend -L +SIZE {pool}")
}

impl PoolFigures {
    /// What the kernel keeps in reserve counts as used.
    fn is_short_of_metadata(&self) -> bool {
        self.metadata.free() <= self.metadata.total / 100
    }

    fn shown(&self) -> String {
        let mode = match self.mode {
            Mode::ReadWrite => "read-write",
            Mode::ReadOnly => "read-only",
            Mode::OutOfDataSpace => "out of data space",
        };
        let policy = if self.error_if_no_space {
            "errors when full"
        } else {
            "waits when full"
        };
        format!(
            "data {} % of {} blocks, metadata {} % of {}, {mode}, {policy}",
            self.data.percent(),
            self.data.total,
            self.metadata.percent(),
            Bytes(self.metadata.total.saturating_mul(4096))
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pool() -> LvName {
        LvName::new("vg", "pool").unwrap()
    }

    fn trouble(status: &str) -> Option<Trouble> {
        parse_pool_status(status).unwrap().trouble(&pool())
    }

    #[test]
    fn a_line_of_a_real_kernel() {
        let line = "1 112/1024 64/256 - rw no_discard_passdown queue_if_no_space - 256 ";
        let figures = PoolFigures {
            metadata: Share {
                used: 112,
                total: 1024,
            },
            data: Share {
                used: 64,
                total: 256,
            },
            held_root: None,
            mode: Mode::ReadWrite,
            error_if_no_space: false,
            needs_check: false,
        };
        assert_eq!(
            parse_pool_status(line),
            Ok(PoolStatus::Working(figures.clone()))
        );
        assert_eq!(trouble(line), None);
        // An older kernel, and a pool whose metadata is held.
        let older = "0 112/1024 64/256 77 rw discard_passdown error_if_no_space";
        assert_eq!(
            parse_pool_status(older),
            Ok(PoolStatus::Working(PoolFigures {
                held_root: Some(77),
                error_if_no_space: true,
                ..figures
            }))
        );
        assert_eq!(parse_mapped_bytes("8192 8191"), Some(4 << 20));
        assert_eq!(parse_mapped_bytes("0 -"), Some(0));
        assert_eq!(parse_mapped_bytes("Fail"), None);
    }

    #[test]
    fn each_trouble_names_the_command_that_mends_it() {
        for (status, reason, way_out) in [
            ("Fail", "failed", "lvconvert --repair vg/pool"),
            ("Error", "failed", "lvconvert --repair vg/pool"),
            (
                "1 112/1024 64/256 - ro discard_passdown queue_if_no_space needs_check 256",
                "needs a check",
                "lvconvert --repair vg/pool",
            ),
            (
                "1 112/1024 64/256 - ro discard_passdown queue_if_no_space needs_check 256",
                "needs a check",
                "--clear-needs-check-flag\"]' vg/pool",
            ),
            (
                "1 1020/1024 64/256 - ro discard_passdown queue_if_no_space needs_check 256",
                "needs a check, and its metadata is full",
                "lvextend --poolmetadatasize",
            ),
            (
                "1 112/1024 64/256 - ro discard_passdown queue_if_no_space - 256",
                "is read-only (data 25 %",
                "lvchange -an -S 'pool_lv=\"pool\"' vg && lvchange -an vg/pool",
            ),
            (
                "1 1020/1024 64/256 - ro discard_passdown queue_if_no_space - 256",
                "metadata is full",
                "lvextend --poolmetadatasize",
            ),
            (
                "1 112/1024 256/256 - out_of_data_space discard_passdown error_if_no_space - 256",
                "out of space",
                "lvextend -L +SIZE vg/pool",
            ),
        ] {
            let found = trouble(status).unwrap();
            assert!(found.reason.contains(reason), "{status}: {found:?}");
            assert!(found.way_out.contains(way_out), "{status}: {found:?}");
        }
    }

    #[test]
    fn only_a_pool_that_may_not_write_keeps_its_maps_from_a_reader() {
        let line = "1 112/1024 256/256 - MODE discard_passdown error_if_no_space - 256";
        for (mode, is_trouble) in [("rw", false), ("out_of_data_space", false), ("ro", true)] {
            let status = parse_pool_status(&line.replace("MODE", mode)).unwrap();
            assert_eq!(
                status.trouble_for_reader(&pool()).is_some(),
                is_trouble,
                "{mode}"
            );
        }
        assert!(PoolStatus::Failed.trouble_for_reader(&pool()).is_some());
    }

    #[test]
    fn a_full_pool_that_has_not_noticed_yet_explains_a_failed_write() {
        let full = "1 112/1024 256/256 - rw discard_passdown error_if_no_space - 256";
        assert_eq!(trouble(full), None);
        let found = parse_pool_status(full).unwrap().after_failure(&pool());
        assert!(found.way_out.contains("lvextend -L"), "{found:?}");
        let sound = "1 112/1024 2/256 - rw discard_passdown error_if_no_space - 256";
        let found = parse_pool_status(sound).unwrap().after_failure(&pool());
        assert_eq!(found.way_out, "");
    }

    #[test]
    fn half_a_line_is_an_error_and_no_healthy_pool() {
        let whole = "1 112/1024 64/256 - rw no_discard_passdown queue_if_no_space";
        let words: Vec<&str> = whole.split(' ').collect();
        for length in 0..words.len() {
            assert!(parse_pool_status(&words[..length].join(" ")).is_err());
        }
        for wrong in [
            whole.replace("rw", "wr"),
            whole.replace("112/1024", "112"),
            whole.replace("queue_if_no_space", "queue"),
            format!("{whole} needs"),
        ] {
            assert!(parse_pool_status(&wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_an_answer_or_an_error(text in "\\PC{0,60}") {
            let _ = parse_pool_status(&text);
            let _ = parse_mapped_bytes(&text);
        }
    }
}
