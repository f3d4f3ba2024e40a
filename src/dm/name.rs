//! Names of logical volumes: LVM's own and device-mapper's.
//!
//! Guarantees: pure; [`LvName`] holds names that LVM accepts, so they are safe as arguments and as parts
//! of a path; building a device-mapper name and splitting it are inverse.

use std::fmt;

/// A volume group and a logical volume in it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LvName {
    vg: String,
    lv: String,
}

/// LVM's limit on a name (`NAME_LEN` less the final NUL).
const MAX_NAME_BYTES: usize = 127;

impl LvName {
    /// A name, if LVM would accept both parts.
    pub fn new(vg: &str, lv: &str) -> Option<Self> {
        (is_valid(vg) && is_valid(lv)).then(|| Self {
            vg: vg.to_owned(),
            lv: lv.to_owned(),
        })
    }

    /// From `vg/lv`: exactly two parts, no leading slash.
    pub fn parse(text: &str) -> Option<Self> {
        let (vg, lv) = text.split_once('/')?;
        Self::new(vg, lv)
    }

    /// From the path of a device node: `/dev/vg/lv` or `/dev/mapper/vg-lv`.
    ///
    /// The path is taken as text; whether the node exists is not looked at.
    pub fn from_path(path: &str) -> Option<Self> {
        if let Some(name) = path.strip_prefix("/dev/mapper/") {
            return match split_dm_name(name)? {
                (name, None) => Some(name),
                (_, Some(_)) => None,
            };
        }
        Self::parse(path.strip_prefix("/dev/")?)
    }

    /// The volume group.
    pub fn vg(&self) -> &str {
        &self.vg
    }

    /// The logical volume.
    pub fn lv(&self) -> &str {
        &self.lv
    }

    /// The device-mapper name: hyphens doubled, joined by a single one.
    pub fn dm_name(&self) -> String {
        format!(
            "{}-{}",
            self.vg.replace('-', "--"),
            self.lv.replace('-', "--")
        )
    }
}

impl fmt::Display for LvName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.vg, self.lv)
    }
}

/// True for what LVM accepts as the name of a volume group or logical volume.
pub fn is_valid(name: &str) -> bool {
    let valid = |c: u8| c.is_ascii_alphanumeric() || b"+_.-".contains(&c);
    !name.is_empty()
        && name.len() <= MAX_NAME_BYTES
        && name.bytes().all(valid)
        && !name.starts_with('-')
        && name != "."
        && name != ".."
}

/// Splits a device-mapper name into volume and layer (`real`, `cow`, `tpool`, …).
pub fn split_dm_name(name: &str) -> Option<(LvName, Option<String>)> {
    let name = unmangle(name)?;
    // A hyphen that belongs to a name is doubled, and no name begins with one: so a separator is the
    // *last* hyphen of a run of odd length, and `a---b` is `a-` and `b`.
    let mut parts = vec![String::new()];
    let mut rest = name.as_str();
    while let Some(start) = rest.find('-') {
        let run = rest[start..].bytes().take_while(|b| *b == b'-').count();
        let part = parts.last_mut()?;
        part.push_str(&rest[..start]);
        part.extend(std::iter::repeat_n('-', run / 2));
        if run % 2 == 1 {
            parts.push(String::new());
        }
        rest = &rest[start + run..];
    }
    parts.last_mut()?.push_str(rest);
    match parts.as_slice() {
        [vg, lv] => Some((LvName::new(vg, lv)?, None)),
        [vg, lv, layer] if !layer.is_empty() => Some((LvName::new(vg, lv)?, Some(layer.clone()))),
        _ => None,
    }
}

/// Undoes libdm's `\xNN` for bytes outside its whitelist. `None` if the result is not text.
pub fn unmangle(name: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some(at) = rest.find("\\x") {
        bytes.extend_from_slice(&rest.as_bytes()[..at]);
        let digits = rest.get(at + 2..at + 4)?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &rest[at + 4..];
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(vg: &str, lv: &str) -> LvName {
        LvName::new(vg, lv).unwrap()
    }

    #[test]
    fn users_write_names_in_three_ways() {
        let expected = name("my-vg", "data.1+x");
        assert_eq!(LvName::parse("my-vg/data.1+x"), Some(expected.clone()));
        assert_eq!(
            LvName::from_path("/dev/my-vg/data.1+x"),
            Some(expected.clone())
        );
        assert_eq!(
            LvName::from_path("/dev/mapper/my--vg-data.1+x"),
            Some(expected)
        );
        for text in [
            "", "vg", "vg/", "/lv", "vg/a/b", "./lv", "../lv", "-vg/lv", "vg/-lv", "v g/lv",
        ] {
            assert_eq!(LvName::parse(text), None, "{text}");
        }
        for path in [
            "/dev/sda",
            "/dev/disk/by-id/x",
            "/dev/mapper/vg-lv-real",
            "/srv/vg/lv",
            "vg/lv",
        ] {
            assert_eq!(LvName::from_path(path), None, "{path}");
        }
    }

    #[test]
    fn hyphens_are_doubled_and_layers_are_single() {
        assert_eq!(name("a-b", "c--d").dm_name(), "a--b-c----d");
        for (text, vg, lv, layer) in [
            ("vg-lv", "vg", "lv", None),
            ("a--b-c----d", "a-b", "c--d", None),
            ("a---b", "a-", "b", None),
            ("vg-lv-real", "vg", "lv", Some("real")),
            ("v--g-l--v-cow", "v-g", "l-v", Some("cow")),
            (r"vg-l\x76", "vg", "lv", None),
        ] {
            let expected = Some((name(vg, lv), layer.map(str::to_owned)));
            assert_eq!(split_dm_name(text), expected, "{text}");
        }
        for text in [
            "",
            "control",
            "a--b",
            "a-b-c-d",
            r"a-b\xzz",
            r"a-b\x2",
            "a-",
            r"a-\x2fetc",
        ] {
            assert_eq!(split_dm_name(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn names_survive_the_round_trip(
            vg in "[0-9A-Za-z+_.][0-9A-Za-z+_.-]{0,12}", lv in "[0-9A-Za-z+_.][0-9A-Za-z+_.-]{0,12}",
            layer in prop::option::of("(real|cow|tpool)"),
        ) {
            prop_assume!(is_valid(&vg) && is_valid(&lv));
            let name = name(&vg, &lv);
            let mut dm_name = name.dm_name();
            if let Some(layer) = &layer {
                dm_name = format!("{dm_name}-{layer}");
            }
            prop_assert_eq!(split_dm_name(&dm_name), Some((name, layer)));
        }

        #[test]
        fn any_text_can_be_split(text in "\\PC{0,20}") {
            let _ = split_dm_name(&text);
        }
    }
}
