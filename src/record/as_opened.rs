//! What a volume was when it was opened: was it written to since?
//!
//! Guarantees: *written* is said of a file whose size or times are others by now, and of a device of which the kernel has
//! counted writes or discards since, whoever made them. Of a device that has no counts nobody can tell; of what is written
//! below it neither, as to the origin of a snapshot. Two that have the same [`AsOpened::version`] are of one volume, to which
//! nothing was written from the first one on until the second.

use super::witness::{Touched, Watch, activation, touched};
use crate::error::Result;
use crate::volume::ReadAt;
use crate::volume::file_version::FileVersion;
use crate::volume::host::boot_id;
use crate::volume::open::Volume;

/// One volume, as it was.
pub struct AsOpened {
    /// Of a regular file.
    file: Option<FileVersion>,
    /// Its size is another than when it was opened, a moment before.
    has_grown: bool,
    /// Of a device.
    device: Option<(Watch, Option<String>)>,
}

impl AsOpened {
    /// Looks at `volume`, before anything is read. What waits in memory for a device is written to it first, and does not
    /// count.
    pub fn of(volume: &Volume) -> Result<Self> {
        let file = FileVersion::of(volume)?;
        let device = volume.device().and_then(|_| {
            volume.write_back();
            let watch = Watch::of(volume).ok()?;
            let now = watch.now();
            Some((watch, now))
        });
        let size_bytes = volume.size_bytes();
        let has_grown = file
            .as_ref()
            .is_some_and(|file| file.size_bytes() != size_bytes);
        Ok(Self {
            file,
            has_grown,
            device,
        })
    }

    /// The content of a regular file.
    pub fn file(&self) -> Option<&FileVersion> {
        self.file.as_ref()
    }

    /// What it was, as a digest: for those who open it again, and for nobody to read. `None` if that could be the same after a
    /// write: of a device that cannot be told from its next activation, and of a file of which a part was in memory alone when
    /// the machine was started anew.
    pub fn version(&self, volume: &Volume) -> Option<String> {
        let told = match (&self.file, &self.device) {
            (Some(file), _) if !self.has_grown => file.id(),
            (None, Some((Watch::Device(device), Some(then)))) => {
                format!("{} {then}", activation(*device)?)
            }
            _ => return None,
        };
        let (boot, size_bytes) = (boot_id()?, volume.size_bytes());
        let told = format!("{boot} {:?} {size_bytes} {told}", volume.identity());
        Some(blake3::hash(told.as_bytes()).to_hex().to_string())
    }

    /// Whether `volume`, the same one, is something else by now.
    pub fn was_written(&self, volume: &Volume) -> Result<bool> {
        if let Some((watch, then)) = &self.device {
            return Ok(touched(then.as_deref(), watch.now().as_deref()) == Touched::Yes);
        }
        Ok(self.has_grown || FileVersion::of(volume)? != self.file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::io::Write;

    #[test]
    fn a_file_that_is_written_to_or_cut_is_another() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("volume");
        fs::write(&path, [1; 5000]).unwrap();
        let volume = Volume::open(&path).unwrap();
        let opened = AsOpened::of(&volume).unwrap();
        assert_eq!(opened.file(), FileVersion::of(&volume).unwrap().as_ref());
        assert!(!opened.was_written(&volume).unwrap());
        std::thread::sleep(std::time::Duration::from_millis(20));
        let mut file = File::options().write(true).open(&path).unwrap();
        file.write_all(b"other").unwrap();
        assert!(opened.was_written(&volume).unwrap());
        let opened = AsOpened::of(&volume).unwrap();
        assert!(!opened.was_written(&volume).unwrap());
        file.set_len(4999).unwrap();
        assert!(opened.was_written(&volume).unwrap());
    }

    #[test]
    fn a_version_is_of_one_file_and_what_is_in_it() {
        let directory = tempfile::tempdir().unwrap();
        let [path, other] = ["volume", "other"].map(|name| directory.path().join(name));
        fs::write(&path, [1; 5000]).unwrap();
        let version = |path| {
            let volume = Volume::open(path).unwrap();
            AsOpened::of(&volume).unwrap().version(&volume)
        };
        let before = version(&path).unwrap();
        assert_eq!(version(&path), Some(before.clone()));
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::write(&other, [1; 5000]).unwrap();
        assert_ne!(version(&other), Some(before.clone()));
        fs::write(&path, [1; 5000]).unwrap();
        let after = version(&path);
        assert!(after.is_some() && after != Some(before));
    }

    #[test]
    fn a_file_that_grew_between_two_looks_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("volume");
        fs::write(&path, [1; 5000]).unwrap();
        let volume = Volume::open(&path).unwrap();
        fs::write(&path, [1; 6000]).unwrap();
        let opened = AsOpened::of(&volume).unwrap();
        assert!(opened.was_written(&volume).unwrap());
        assert_eq!(opened.version(&volume), None);
    }
}
