//! Sizes as people read and write them: IEC units out, `512`, `64k`, `1.5GiB` in.
//!
//! Guarantees: parsing never wraps or loses a fraction of a byte silently; printing never claims more
//! precision than it has. Numbers for programs are plain bytes and do not pass through here.

use std::fmt;

/// The kernel's sector, the unit of every device-mapper table.
pub const SECTOR_BYTES: u64 = 512;

/// One mebibyte, the largest piece of volume data in a frame and the unit of large I/O.
pub const MIB: u64 = 1 << 20;

const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// A byte count that prints as `0 B`, `512 B`, `1.5 KiB`, `12.0 GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut unit = 0;
        while unit + 1 < UNITS.len() && self.0 >> (10 * (unit + 1)) > 0 {
            unit += 1;
        }
        if unit == 0 {
            return f.pad(&format!("{} B", self.0));
        }
        // Tenths in integers, rounded down: 1023.99 KiB must not print as 1024.0 KiB.
        let whole = self.0 >> (10 * unit);
        let rest = self.0 & ((1 << (10 * unit)) - 1);
        let tenths = (u128::from(rest) * 10) >> (10 * unit);
        f.pad(&format!("{whole}.{tenths} {}", UNITS[unit]))
    }
}

/// `1 extent`, `2 extents`.
pub fn count(number: u64, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

/// Turns 512-byte sectors into bytes; `None` when the product does not fit.
pub fn sectors_to_bytes(sectors: u64) -> Option<u64> {
    sectors.checked_mul(SECTOR_BYTES)
}

/// Reads a size: digits, an optional fraction, an optional unit.
///
/// `k`, `K`, `kiB` and so on all mean powers of 1024, as they do in lvm2 and rsync; a bare number is
/// bytes. Returns the number of bytes, or a sentence that says what was wrong.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || {
        format!(
            "`{text}` is not a size: write a number and a unit, such as 512, 64k, 10M or 1.5GiB"
        )
    };
    let text_trimmed = text.trim();
    let split = text_trimmed
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(text_trimmed.len());
    let (number, unit) = text_trimmed.split_at(split);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" | "kb" => 10,
        "m" | "mib" | "mb" => 20,
        "g" | "gib" | "gb" => 30,
        "t" | "tib" | "tb" => 40,
        "p" | "pib" | "pb" => 50,
        _ => return Err(wrong()),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.len() > 9 || fraction.contains('.') {
        return Err(wrong());
    }
    let whole: u128 = whole.parse().map_err(|_| wrong())?;
    let scale = 10u128.pow(u32::try_from(fraction.len()).unwrap_or(0));
    let fraction: u128 = if fraction.is_empty() {
        0
    } else {
        fraction.parse().map_err(|_| wrong())?
    };
    let bytes = whole
        .checked_mul(scale)
        .and_then(|n| n.checked_add(fraction))
        .and_then(|n| n.checked_mul(1 << shift))
        .map(|n| n / scale);
    bytes
        .and_then(|n| u64::try_from(n).ok())
        .ok_or_else(|| format!("`{text}` is too large: a size is at most 16 EiB"))
}

/// A time such as `500ms`, `5s`, `1.5m`, `2h`, `1d`; a number alone is seconds.
pub fn parse_seconds(text: &str) -> Result<f64, String> {
    let wrong = || {
        format!("`{text}` is not a time: write a number and a unit, such as 500ms, 5s, 15m or 2h")
    };
    let trimmed = text.trim();
    let split = trimmed
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(split);
    let scale = match unit.trim() {
        "ms" => 1e-3,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        "d" => 86400.0,
        "w" => 604_800.0,
        _ => return Err(wrong()),
    };
    let seconds = number.parse::<f64>().map_err(|_| wrong())? * scale;
    // Ten thousand years and more are a slip of the pen.
    if (0.0..1e12).contains(&seconds) {
        Ok(seconds)
    } else {
        Err(wrong())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_print_in_iec_units_without_rounding_up() {
        let shown = |n| Bytes(n).to_string();
        assert_eq!(shown(0), "0 B");
        assert_eq!(shown(1023), "1023 B");
        assert_eq!(shown(1024), "1.0 KiB");
        assert_eq!(shown(1536), "1.5 KiB");
        assert_eq!(shown((1 << 20) - 1), "1023.9 KiB");
        assert_eq!(shown(u64::MAX), "15.9 EiB");
    }

    #[test]
    fn sizes_parse_with_the_units_people_type() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("4k", 4096),
            ("4KiB", 4096),
            ("1.5G", 3 << 29),
            (" 10 M ", 10 << 20),
            ("16T", 16 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "k", "-1", "1.2.3", "1x", "99999P", "1.0000000001k", "٣"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
