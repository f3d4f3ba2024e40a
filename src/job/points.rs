//! Points in time of a target: how their files are called, and what one side of a job asks the other about them.
//!
//! Pure. Guarantees: a file's name tells when the state was taken that it leads to; a name that comes from outside is a
//! plain one, so that it can name nothing outside of its directory.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::grid::Grid;

/// Ends the names of undos, which lead back.
pub const UNDO_SUFFIX: &str = ".undo";
/// Ends the names of deltas in a directory that collects them.
pub const DELTA_SUFFIX: &str = ".delta";
const TIME: &str = "%Y%m%dT%H%M%SZ";
/// `20261126T012340Z`
const TIME_BYTES: usize = 16;

/// The name of a file that leads to the state that was taken `at`; `tag` tells apart what leads to one moment.
pub fn file_name(at: i64, tag: &str, suffix: &str) -> String {
    let time = jiff::Timestamp::from_second(at).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    format!("{}-{tag}{suffix}", time.strftime(TIME))
}

/// When the state was taken that this file leads to; `None` if it is not called as these files are.
pub fn taken_at(name: &str) -> Option<i64> {
    let time = name.get(..TIME_BYTES)?;
    let behind = name.get(TIME_BYTES..)?;
    let time = jiff::civil::DateTime::strptime(TIME, time).ok()?;
    let time = jiff::tz::TimeZone::UTC.to_timestamp(time).ok()?;
    (behind.starts_with('-') && is_plain(name)).then(|| time.as_second())
}

/// It names a file of a directory, and nothing else.
pub fn is_plain(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    !name.is_empty() && name.len() <= 200 && !name.starts_with('.') && name.chars().all(fits)
}

/// The directory of one destination below that of its job: readable, and another one for each.
pub fn directory_name(destination: &str) -> String {
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || c == '_' {
            c
        } else {
            '-'
        }
    };
    let readable: String = destination.chars().take(60).map(plain).collect();
    let digest = blake3::hash(destination.as_bytes()).to_hex();
    format!("{}-{}", readable.trim_matches('-'), &digest[..6])
}

/// Which point is meant by an argument: its number in the table, or a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chosen {
    /// In the table, from 1.
    Number(usize),
    /// The newest one that is not later.
    NotLaterThan(i64),
}

/// Reads `3`, `2026-11-26T01:23:40Z`, `2026-11-26 01:23` or `2026-11-26`; without a zone it is UTC, as in the table.
pub fn choose(text: &str) -> Result<Chosen, String> {
    let text = text.trim();
    if let Ok(number) = text.parse::<usize>() {
        return match number {
            0 => Err("points are counted from 1, the newest".to_owned()),
            _ => Ok(Chosen::Number(number)),
        };
    }
    let zoned = || text.parse::<jiff::Timestamp>().ok();
    let of_utc = || {
        let time = text.parse::<jiff::civil::DateTime>().ok()?;
        jiff::tz::TimeZone::UTC.to_timestamp(time).ok()
    };
    let time = zoned().or_else(of_utc).ok_or_else(|| {
        format!(
            "`{text}` is no point in time: write its number in `lvmsync history`, or a time such as \
             2026-11-26T01:23:40Z or 2026-11-26 01:23 (UTC)"
        )
    })?;
    Ok(Chosen::NotLaterThan(time.as_second()))
}

/// What is asked of the machine that has a target. One line of JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Where the files are.
    pub directory: PathBuf,
    /// The volume that undos lead back; none where deltas are collected.
    pub destination: Option<String>,
    /// What is to be done.
    pub wish: Wish,
}

/// See [`Request`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wish {
    /// Make everything ready for a run that keeps its undo in the file of this name, if any.
    Prepare {
        /// A plain name.
        undo: Option<String>,
    },
    /// Which points can be reached?
    List,
    /// Give up what the grid does not keep.
    Keep {
        /// The grid, as users write it.
        grid: String,
        /// Ids of states that are kept whatever it says.
        also: Vec<String>,
    },
    /// Go back.
    Back {
        /// The file that leads to the point.
        to: String,
        /// The undo of that: a plain name.
        undo: String,
        /// Only look whether it would work.
        dry_run: bool,
    },
}

impl Request {
    /// Holds against the rules what came from outside.
    pub fn check(&self) -> Result<(), String> {
        if !self.directory.is_absolute() {
            return Err(format!(
                "{}: the directory has to be an absolute path",
                self.directory.display()
            ));
        }
        let names: Vec<&String> = match &self.wish {
            Wish::Prepare { undo } => undo.iter().collect(),
            Wish::Back { to, undo, .. } => vec![to, undo],
            Wish::Keep { grid, .. } => return grid.parse::<Grid>().map(|_| ()),
            Wish::List => Vec::new(),
        };
        match names.into_iter().find(|name| taken_at(name).is_none()) {
            Some(name) => Err(format!(
                "`{name}` cannot be the name of a file of the history"
            )),
            None => Ok(()),
        }
    }
}

/// What it answers. One line of JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// To [`Wish::Prepare`].
    Prepared(Prepared),
    /// To [`Wish::List`].
    Listing(Listing),
    /// To [`Wish::Keep`].
    Kept(Kept),
    /// To [`Wish::Back`].
    Back(Back),
    /// It failed.
    Failed {
        /// Exit code.
        code: u8,
        /// All there is to say.
        message: String,
    },
}

/// What becomes of the undo of the next run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prepared {
    /// It can be kept.
    Ready,
    /// It is there: that run was done, and nobody was told.
    Whole,
    /// It would lead back to nothing that anybody wants.
    Impossible {
        /// Why.
        reason: String,
    },
}

/// What can be reached from what a target holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Listing {
    /// Id of the state that it holds, if that is known.
    pub held: Option<String>,
    /// Since when, by the clock there: seconds since 1970 UTC, 0 where that is not known.
    #[serde(default)]
    pub held_since: i64,
    /// It is on record as half-written.
    pub incomplete: bool,
    /// The newest first.
    pub points: Vec<Point>,
    /// Files that cannot be used, with why.
    pub unusable: Vec<String>,
    /// Files that begin from a state that cannot be reached.
    pub strays: Vec<String>,
    /// Bytes of all files.
    pub bytes: u64,
}

/// A point in time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// When the state was taken: seconds since 1970 UTC.
    pub at: i64,
    /// Its id.
    pub id: String,
    /// Its name, for people.
    pub name: String,
    /// All files on the way to it, in the order in which they are applied; the last one is its own.
    pub files: Vec<String>,
    /// Bytes of its own file.
    pub own_bytes: u64,
    /// Bytes of all files on the way.
    pub bytes: u64,
}

/// What is meant by a [`Chosen`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meant<'a> {
    /// This point.
    Point(&'a Point),
    /// What the target holds, which was taken then: seconds since 1970 UTC.
    Held(i64),
    /// There is no such point.
    Nothing,
}

impl Listing {
    /// What is meant by `chosen`. What the target holds is none of its points, and is what a time may mean all the same:
    /// `held_at` is when that was taken, if it is known.
    pub fn find(&self, chosen: Chosen, held_at: Option<i64>) -> Meant<'_> {
        let (point, held) = match chosen {
            Chosen::Number(number) => (self.points.get(number.wrapping_sub(1)), None),
            Chosen::NotLaterThan(time) => (
                self.points.iter().find(|point| point.at <= time),
                held_at.filter(|at| *at <= time),
            ),
        };
        match (point, held) {
            // Of two that were taken in one second it is the one that is somewhere else.
            (Some(point), Some(at)) if at <= point.at => Meant::Point(point),
            (_, Some(at)) => Meant::Held(at),
            (Some(point), None) => Meant::Point(point),
            (None, None) => Meant::Nothing,
        }
    }
}

/// What a retention did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Points that were given up.
    pub given_up: u64,
    /// Bytes that this made free; negative where two files folded are larger.
    pub freed_bytes: i64,
    /// What was left as it is, with why.
    pub remarks: Vec<String>,
    /// States that were to be kept, and that nothing leads to.
    pub missing: Vec<String>,
}

/// How a rollback went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Back {
    /// Id of the state that the target holds now, or would.
    pub held: Option<String>,
    /// Files that were applied as one.
    pub files: Vec<String>,
    /// Bytes of the volume in them.
    pub volume_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_times_and_lead_nowhere_else() {
        let name = file_name(1_795_656_220, "12", UNDO_SUFFIX);
        assert_eq!(
            name,
            "20261126T000340Z-12.undo".replace("000340", &name[9..15])
        );
        assert_eq!(taken_at(&name), Some(1_795_656_220));
        for name in [
            "",
            "x.undo",
            "20261126T012340Z",
            "20261126T012340Z-/x",
            "20261126T012340Z-../x",
            "20261326T012340Z-1.undo",
            "20261126T012340Z-a b",
        ] {
            assert_eq!(taken_at(name), None, "{name}");
        }
        let names = ["vg/data", "vg-data", "/dev/vg/data", "../../x"].map(directory_name);
        assert!(names.iter().all(|name| is_plain(name)), "{names:?}");
        assert_ne!(names[0], names[1]);
    }

    #[test]
    fn a_point_is_chosen_by_number_or_time() {
        let at = 1_795_656_220;
        let shown = crate::record::keeper::shown_time(at);
        assert_eq!(choose("3"), Ok(Chosen::Number(3)));
        assert_eq!(choose(&shown), Ok(Chosen::NotLaterThan(at)));
        assert_eq!(
            choose(shown.trim_end_matches('Z')),
            Ok(Chosen::NotLaterThan(at))
        );
        assert_eq!(
            choose(&shown[..16].replace('T', " ")),
            Ok(Chosen::NotLaterThan(at / 60 * 60))
        );
        assert_eq!(
            choose(&shown[..10]),
            Ok(Chosen::NotLaterThan(at / 86_400 * 86_400))
        );
        for text in ["0", "yesterday", "", "-1", "2026-13-01"] {
            assert!(choose(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_time_never_means_a_point_before_what_is_held() {
        let point = |at: i64| Point {
            at,
            id: format!("lvm:{at}"),
            name: String::new(),
            files: Vec::new(),
            own_bytes: 0,
            bytes: 0,
        };
        let listing = Listing {
            points: vec![point(1400), point(1200), point(1100)],
            ..Listing::default()
        };
        let find = |time: i64, held_at| match listing.find(Chosen::NotLaterThan(time), held_at) {
            Meant::Point(point) => Ok(Some(point.at)),
            Meant::Held(at) => Err(at),
            Meant::Nothing => Ok(None),
        };
        // It holds what is newer than all.
        assert_eq!(find(1530, Some(1500)), Err(1500));
        assert_eq!(find(1500, Some(1500)), Err(1500));
        assert_eq!(find(1499, Some(1500)), Ok(Some(1400)));
        // It was put back before: what is newer can be come back to.
        assert_eq!(find(1530, Some(1300)), Ok(Some(1400)));
        assert_eq!(find(1399, Some(1300)), Err(1300));
        assert_eq!(find(1299, Some(1300)), Ok(Some(1200)));
        assert_eq!(find(1000, Some(1000)), Err(1000));
        assert_eq!(find(999, Some(1000)), Ok(None));
        // Two of one second.
        assert_eq!(find(1250, Some(1200)), Ok(Some(1200)));
        // Nobody knows.
        assert_eq!(find(1530, None), Ok(Some(1400)));
        // A number is that of the table.
        let first = listing.find(Chosen::Number(1), Some(1500));
        assert_eq!(first, Meant::Point(&listing.points[0]));
        assert_eq!(listing.find(Chosen::Number(4), Some(1)), Meant::Nothing);
    }

    #[test]
    fn what_comes_from_outside_is_checked() {
        let request = |directory: &str, wish| Request {
            directory: directory.into(),
            destination: None,
            wish,
        };
        let undo = |name: &str| Wish::Prepare {
            undo: Some(name.to_owned()),
        };
        let good = file_name(0, "1", UNDO_SUFFIX);
        assert_eq!(request("/x", undo(&good)).check(), Ok(()));
        assert!(request("x", Wish::List).check().is_err());
        assert!(request("/x", undo("../../etc/passwd")).check().is_err());
        let back = |to: &str| Wish::Back {
            to: to.to_owned(),
            undo: good.clone(),
            dry_run: false,
        };
        assert!(request("/x", back(&good)).check().is_ok());
        assert!(request("/x", back("/etc/x")).check().is_err());
        let text = serde_json::to_string(&request("/x", back(&good))).unwrap();
        assert_eq!(
            serde_json::from_str::<Request>(&text).unwrap(),
            request("/x", back(&good))
        );
    }
}
