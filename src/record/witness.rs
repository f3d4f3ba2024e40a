//! Was a destination written to since its record was made?
//!
//! Guarantees: *untouched* is said only of a file whose size, time of last write and time of last change are what they
//! were (a time of last write can be put back, that of the last change cannot; but a new name changes that, too, so that
//! it alone proves nothing, nor does another inode), and of a device that was there all the time and of which this kernel has
//! counted no written sector since. Whatever else
//! happened, the answer is *touched* or *unknown*, never *untouched*.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;

use crate::sys::device::DeviceNumber;
use crate::volume::Volume;
use crate::volume::host::{boot_id, disk_sequence};

/// Words of a device's `stat` that count what was written, from 0 (`Documentation/block/stat.rst`).
const WRITTEN_SECTORS: usize = 6;
const DISCARDED_SECTORS: usize = 13;

/// What is known of writes by others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Touched {
    /// There were none.
    No,
    /// There were some.
    Yes,
    /// The machine was started anew, or there is nothing to tell by.
    #[default]
    Unknown,
}

/// Looks at one volume, now and later.
#[derive(Debug)]
pub enum Watch {
    /// A regular file.
    File(File),
    /// A block device.
    Device(DeviceNumber),
}

impl Watch {
    /// Watches an open volume.
    pub fn of(volume: &Volume) -> io::Result<Self> {
        match (volume.device(), volume.try_clone_file()?) {
            (Some(device), _) => Ok(Self::Device(device)),
            (None, Some(file)) => Ok(Self::File(file)),
            (None, None) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// What there is to tell by, as text for the record.
    pub fn now(&self) -> Option<String> {
        match self {
            Self::File(file) => {
                let found = file.metadata().ok()?;
                Some(format!(
                    "file {} {} {}.{:09} {}.{:09}",
                    found.ino(),
                    found.len(),
                    found.mtime(),
                    found.mtime_nsec(),
                    found.ctime(),
                    found.ctime_nsec()
                ))
            }
            Self::Device(device) => {
                let stat = stat_of(*device).ok()?;
                of_device(&boot_id()?, disk_sequence(*device).as_deref(), &stat)
            }
        }
    }
}

/// What a volume keeps as long as it is active, and never gets again: deactivated and activated it is another device that
/// counts from zero. `None` before Linux 5.15, where that cannot be told.
pub fn activation(device: DeviceNumber) -> Option<String> {
    Some(format!("boot {}/{}", boot_id()?, disk_sequence(device)?))
}

/// Whether anything was written to or discarded in a device since it is active. What is below it does not count: the
/// origin of a snapshot is another device.
pub fn was_written(device: DeviceNumber) -> bool {
    stat_of(device).is_ok_and(|stat| counts_writes(&stat))
}

fn stat_of(device: DeviceNumber) -> io::Result<String> {
    fs::read_to_string(format!("/sys/dev/block/{device}/stat"))
}

fn counts_writes(stat: &str) -> bool {
    let words: Vec<&str> = stat.split_whitespace().collect();
    [WRITTEN_SECTORS, DISCARDED_SECTORS]
        .iter()
        .any(|index| words.get(*index).is_some_and(|count| *count != "0"))
}

fn of_device(boot: &str, sequence: Option<&str>, stat: &str) -> Option<String> {
    let sequence = sequence.map_or(String::new(), |sequence| format!("/{sequence}"));
    let words: Vec<&str> = stat.split_whitespace().collect();
    let written = words.get(WRITTEN_SECTORS)?;
    let discarded = words.get(DISCARDED_SECTORS).unwrap_or(&"0");
    Some(format!("boot {boot}{sequence} {written} {discarded}"))
}

/// Compares what a record holds with what there is now.
pub fn touched(then: Option<&str>, now: Option<&str>) -> Touched {
    let (Some(then), Some(now)) = (then, now) else {
        return Touched::Unknown;
    };
    if then == now {
        return Touched::No;
    }
    // The kernel counts from zero when it starts, or the device does.
    let boot = |text: &str| {
        text.strip_prefix("boot ")
            .map(|rest| rest.split(' ').next().map(str::to_owned))
    };
    match (boot(then), boot(now)) {
        (Some(then), Some(now)) if then != now => Touched::Unknown,
        // Before Linux 5.15 a device that was deactivated and activated again is not told from what it was.
        (Some(_), Some(_)) if has_fewer(then, now) => Touched::Unknown,
        _ if but_for_change(then).is_some() && but_for_change(then) == but_for_change(now) => {
            Touched::Unknown
        }
        _ => Touched::Yes,
    }
}

/// A count that fell was begun anew.
fn has_fewer(then: &str, now: &str) -> bool {
    let counts = |text: &str| -> Vec<u64> {
        let words = text.split(' ').skip(2);
        words.filter_map(|word| word.parse().ok()).collect()
    };
    let counts = counts(then).into_iter().zip(counts(now));
    counts.into_iter().any(|(then, now)| now < then)
}

/// Size and time of last write of a file: without its time of last change, which older records do not have, and without its
/// inode, for which some filesystems choose another number when they are mounted again.
fn but_for_change(text: &str) -> Option<[&str; 2]> {
    let mut words = text.split(' ');
    let mut next = || words.next();
    let [kind, _, size, written] = [next()?, next()?, next()?, next()?];
    (kind == "file").then_some([size, written])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_flushes_are_no_writes() {
        let only_read = "  10 0 80 5 0 0 0 7 0 12 12 0 0 0 1 3 0";
        assert!(!counts_writes(only_read) && !counts_writes(""));
        assert!(counts_writes("  10 0 80 5 17 0 128 7 0 12 12 0 0 0 1 3 0"));
        assert!(counts_writes("  10 0 80 5 0 0 0 7 0 12 12 3 0 24 1 0 0"));
    }

    #[test]
    fn a_device_is_untouched_only_on_the_same_boot_with_the_same_counts() {
        let stat = "  10 0 80 5 20 0 160 7 0 12 12 3 0 24 1 0 0";
        let then = of_device("a", Some("7"), stat).unwrap();
        assert_eq!(then, "boot a/7 160 24");
        let compare = |boot, from: &str, to: &str| {
            let now = of_device(boot, Some("7"), &stat.replace(from, to));
            touched(Some(&then), now.as_deref())
        };
        let reactivated = of_device("a", Some("8"), stat);
        assert_eq!(
            touched(Some(&then), reactivated.as_deref()),
            Touched::Unknown
        );
        assert_eq!(compare("a", " 10 0", " 99 0"), Touched::No);
        assert_eq!(compare("a", "160", "168"), Touched::Yes);
        assert_eq!(compare("a", "24", "32"), Touched::Yes);
        assert_eq!(compare("b", "160", "160"), Touched::Unknown);
        assert_eq!(touched(None, Some(&then)), Touched::Unknown);
        assert_eq!(of_device("a", None, "1 2 3"), None);
    }

    #[test]
    fn a_file_is_touched_by_a_write_and_not_by_a_new_name() {
        use std::io::Write;
        let directory = tempfile::tempdir().unwrap();
        let (a, b) = (directory.path().join("a"), directory.path().join("b"));
        fs::write(&a, "one").unwrap();
        let watch = Watch::of(&Volume::open(&a).unwrap()).unwrap();
        let then = watch.now();
        assert_eq!(
            touched(then.as_deref(), watch.now().as_deref()),
            Touched::No
        );
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::rename(&a, &b).unwrap();
        let renamed = watch.now();
        // Some filesystems do not call a new name a change of the file.
        assert_ne!(touched(then.as_deref(), renamed.as_deref()), Touched::Yes);
        let older = then.as_ref().unwrap().rsplit_once(' ').unwrap().0;
        assert_eq!(touched(Some(older), renamed.as_deref()), Touched::Unknown);
        let modified = fs::metadata(&b).unwrap().modified().unwrap();
        File::options()
            .write(true)
            .open(&b)
            .and_then(|mut file| {
                file.write_all(b"new")?;
                file.set_modified(modified)
            })
            .unwrap();
        assert_eq!(
            touched(then.as_deref(), watch.now().as_deref()),
            Touched::Unknown
        );
        std::thread::sleep(std::time::Duration::from_millis(20));
        File::options()
            .write(true)
            .open(&b)
            .unwrap()
            .write_all(b"two")
            .unwrap();
        assert_eq!(
            touched(then.as_deref(), watch.now().as_deref()),
            Touched::Yes
        );
    }

    #[test]
    fn what_was_begun_anew_tells_nothing() {
        let stat = |written| format!("  10 0 80 5 20 0 {written} 7 0 12 12 3 0 24 1 0 0");
        let device = |sequence, written| of_device("a", sequence, &stat(written));
        let seen =
            |then: Option<String>, now: Option<String>| touched(then.as_deref(), now.as_deref());
        // Before Linux 5.15 there is no sequence.
        assert_eq!(seen(device(None, 160), device(None, 8)), Touched::Unknown);
        assert_eq!(seen(device(None, 160), device(None, 168)), Touched::Yes);
        assert_eq!(
            seen(device(Some("7"), 160), device(Some("7"), 168)),
            Touched::Yes
        );
        let file = |inode, size| Some(format!("file {inode} {size} 5.000000001 6.000000002"));
        assert_eq!(seen(file(1, 9), file(2, 9)), Touched::Unknown);
        assert_eq!(seen(file(1, 9), file(1, 8)), Touched::Yes);
    }
}
