//! Device numbers, as the kernel prints and encodes them.
//!
//! Guarantees: printing and parsing are inverse; nothing is truncated silently.

use std::fmt;
use std::str::FromStr;

/// The major and minor number of a block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceNumber {
    /// The driver.
    pub major: u32,
    /// The device of that driver.
    pub minor: u32,
}

impl DeviceNumber {
    /// From `major` and `minor`.
    pub const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }

    /// From the `st_rdev` or `st_dev` of a `stat`.
    pub fn from_stat(device: u64) -> Self {
        Self {
            major: rustix::fs::major(device),
            minor: rustix::fs::minor(device),
        }
    }

    /// The kernel's own encoding, which device-mapper ioctls use (not the C library's).
    pub fn kernel_encoding(self) -> u64 {
        let (major, minor) = (u64::from(self.major), u64::from(self.minor));
        (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
    }

    /// The inverse of [`Self::kernel_encoding`].
    pub fn from_kernel_encoding(encoded: u64) -> Self {
        let low = |n: u64| u32::try_from(n & 0xffff_ffff).unwrap_or(u32::MAX);
        Self {
            major: low((encoded & 0xf_ff00) >> 8),
            minor: low((encoded & 0xff) | ((encoded >> 12) & 0xffff_ff00)),
        }
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl FromStr for DeviceNumber {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (major, minor) = text.trim().split_once(':').ok_or(())?;
        Ok(Self {
            major: major.parse().map_err(drop)?,
            minor: minor.parse().map_err(drop)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_kernel_encoding_go_both_ways() {
        for (major, minor) in [
            (0, 0),
            (8, 1),
            (253, 3),
            (253, 255),
            (253, 256),
            (259, 1_048_575),
        ] {
            let device = DeviceNumber::new(major, minor);
            assert_eq!(
                DeviceNumber::from_kernel_encoding(device.kernel_encoding()),
                device
            );
            assert_eq!(device.to_string().parse(), Ok(device));
        }
        assert_eq!(DeviceNumber::new(253, 3).kernel_encoding(), 0xfd03);
        for text in ["", "8", "8:", ":1", "a:b", "8:1:2", "-1:0"] {
            assert!(text.parse::<DeviceNumber>().is_err(), "{text}");
        }
    }
}
