//! The UUIDs by which LVM labels its mapped devices.
//!
//! Guarantees: pure; building and parsing are inverse; LVM's dashed form is what people and `lvs` see.

use std::fmt;

/// `LVM-`, 32 characters for the volume group, 32 for the logical volume, and perhaps a layer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DmUuid {
    vg: String,
    lv: String,
    layer: Option<String>,
}

const PREFIX: &str = "LVM-";
const UUID_CHARS: usize = 32;
/// Where LVM puts its dashes.
const GROUPS: [usize; 7] = [6, 4, 4, 4, 4, 4, 6];

impl DmUuid {
    /// Reads a device-mapper UUID; `None` for devices that are not LVM's logical volumes.
    pub fn parse(text: &str) -> Option<Self> {
        let body = text.strip_prefix(PREFIX)?;
        let (ids, rest) = (body.get(..2 * UUID_CHARS)?, &body[2 * UUID_CHARS..]);
        if !ids.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return None;
        }
        let layer = match rest.strip_prefix('-') {
            Some(layer) if !layer.is_empty() => Some(layer.to_owned()),
            None if rest.is_empty() => None,
            _ => return None,
        };
        let (vg, lv) = ids.split_at(UUID_CHARS);
        Some(Self {
            vg: vg.to_owned(),
            lv: lv.to_owned(),
            layer,
        })
    }

    /// The public device of the volume, or one of its layers (`real`, `cow`, `tpool`, …).
    pub fn layer(&self) -> Option<&str> {
        self.layer.as_deref()
    }

    /// True for what LVM shows in `/dev`: no layer, or a pool's (`-pool`; `-tpool` while the pool is
    /// empty and needs no layer of its own, which only the *name* then tells from the hidden one).
    pub fn is_public(&self) -> bool {
        matches!(self.layer(), None | Some("pool" | "tpool"))
    }

    /// The same logical volume's other device.
    pub fn with_layer(&self, layer: Option<&str>) -> Self {
        Self {
            layer: layer.map(str::to_owned),
            ..self.clone()
        }
    }

    /// The logical volume's UUID, with dashes.
    pub fn lv_uuid(&self) -> String {
        dashed(&self.lv)
    }

    /// The volume group's UUID, with dashes.
    pub fn vg_uuid(&self) -> String {
        dashed(&self.vg)
    }
}

impl fmt::Display for DmUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}{}", self.vg, self.lv)?;
        match &self.layer {
            Some(layer) => write!(f, "-{layer}"),
            None => Ok(()),
        }
    }
}

/// 32 characters in LVM's groups: `abcdef-ghij-…`.
fn dashed(plain: &str) -> String {
    let mut text = String::with_capacity(UUID_CHARS + GROUPS.len());
    let mut rest = plain;
    for group in GROUPS {
        let (head, tail) = rest.split_at_checked(group).unwrap_or((rest, ""));
        if !text.is_empty() {
            text.push('-');
        }
        text.push_str(head);
        rest = tail;
    }
    text
}

/// A dashed UUID without its dashes; `None` if it is not one.
pub fn undashed(uuid: &str) -> Option<String> {
    let groups: Vec<usize> = uuid.split('-').map(str::len).collect();
    let text = uuid.replace('-', "");
    (groups == GROUPS && text.bytes().all(|b| b.is_ascii_alphanumeric())).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VG: &str = "IuZkMDEAWGcCBWydMGeGd6rEYeZbLQQk";
    const LV: &str = "lSGJMZc5B6nUoVYDIrHkhE2tjJDDbQlS";
    const LV_DASHED: &str = "lSGJMZ-c5B6-nUoV-YDIr-HkhE-2tjJ-DDbQlS";

    #[test]
    fn layers_are_told_apart() {
        for (suffix, layer) in [("", None), ("-real", Some("real")), ("-cow", Some("cow"))] {
            let text = format!("LVM-{VG}{LV}{suffix}");
            let uuid = DmUuid::parse(&text).unwrap();
            assert_eq!(uuid.layer(), layer);
            assert_eq!(uuid.lv_uuid(), LV_DASHED);
            assert_eq!(uuid.to_string(), text);
        }
        let public = DmUuid::parse(&format!("LVM-{VG}{LV}")).unwrap();
        assert_eq!(
            public.with_layer(Some("cow")).to_string(),
            format!("LVM-{VG}{LV}-cow")
        );
        assert_eq!(public.with_layer(Some("cow")).with_layer(None), public);
        for (layer, shown) in [(None, true), (Some("pool"), true), (Some("tmeta"), false)] {
            assert_eq!(public.with_layer(layer).is_public(), shown, "{layer:?}");
        }
    }

    #[test]
    fn only_lvms_uuids_parse() {
        let short = format!("LVM-{VG}");
        let tail = format!("LVM-{VG}{LV}x");
        let dash = format!("LVM-{VG}{LV}-");
        for text in [
            "",
            "LVM-",
            "CRYPT-LUKS2-abc",
            "mpath-3600",
            &short,
            &tail,
            &dash,
            "LVM-é",
        ] {
            assert_eq!(DmUuid::parse(text), None, "{text}");
        }
    }

    #[test]
    fn dashes_go_in_and_out() {
        assert_eq!(dashed(LV), LV_DASHED);
        assert_eq!(undashed(LV_DASHED).as_deref(), Some(LV));
        for text in [
            "",
            LV,
            "lSGJMZ-c5B6",
            "lSGJMZ-c5B6-nUoV-YDIr-HkhE-2tjJ-DDbQl!",
        ] {
            assert_eq!(undashed(text), None, "{text}");
        }
    }
}
