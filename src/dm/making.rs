//! Making a logical volume for a first copy, and taking it away again if nothing came of it.
//!
//! Guarantees: names given to LVM were checked; what is made carries a tag until something of it is on record, so
//! that what a crash leaves can be told; only a volume with that tag is ever removed, by its UUID.

use std::fmt;
use std::process::Command;
use std::str::FromStr;

use super::lvm::{LvRow, lvm_command, volumes_of};
use super::name::{LvName, is_valid};
use super::pool::status_by_name;
use super::temporary::{Room, room_of};
use crate::error::{Error, Result};
use crate::units::Bytes;

/// Carried by a volume that was made and of which nothing is on record yet.
pub const NEW_TAG: &str = "lvmsync_new";

/// What kind of volume is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Making {
    /// Thin where the group has one thin pool, thick where it has none.
    Auto,
    /// Thick.
    Thick,
    /// Thin, in this pool of the same group.
    Thin(String),
}

impl FromStr for Making {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "thick" => Ok(Self::Thick),
            _ => match text.strip_prefix("thin:") {
                Some(pool) if is_valid(pool) => Ok(Self::Thin(pool.to_owned())),
                _ => Err(
                    "it is `auto`, `thick`, or `thin:POOL`, a thin pool of the same volume group"
                        .into(),
                ),
            },
        }
    }
}

impl fmt::Display for Making {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => write!(f, "auto"),
            Self::Thick => write!(f, "thick"),
            Self::Thin(pool) => write!(f, "thin:{pool}"),
        }
    }
}

/// What will be made where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Its name.
    pub name: LvName,
    /// The pool that gives the space; `None` for a thick volume.
    pub pool: Option<String>,
}

/// Looks at the volume group and says what would be made; an error where that cannot be.
pub fn plan(name: &LvName, making: &Making) -> Result<Plan> {
    let rows = volumes_of(name.vg())?;
    let plan = choose(name, making, &rows)?;
    if let Some(pool) = plan
        .pool
        .as_deref()
        .and_then(|pool| LvName::new(name.vg(), pool))
        && let Some(trouble) = status_by_name(&pool)?.and_then(|status| status.trouble(&pool))
    {
        let reason = trouble.reason.replacen("its thin pool", "the thin pool", 1);
        return Err(Error::refused(name.to_string(), reason, trouble.way_out));
    }
    Ok(plan)
}

/// The same, from the rows: pure.
fn choose(name: &LvName, making: &Making, rows: &[LvRow]) -> Result<Plan> {
    let vg = name.vg();
    if rows.iter().any(|row| row.name() == name.lv()) {
        return Err(Error::Lvm {
            what: name.to_string(),
            reason: super::lvm::no_device_reason(name, rows),
        });
    }
    let pools: Vec<&str> = rows
        .iter()
        .filter(|row| row.segtype == "thin-pool" && !row.lv_name.starts_with('['))
        .map(LvRow::name)
        .collect();
    let pool = match (making, pools.as_slice()) {
        (Making::Thick, _) | (Making::Auto, []) => None,
        (Making::Auto, [pool]) => Some((*pool).to_owned()),
        (Making::Auto, _) => {
            let choices: Vec<String> = pools
                .iter()
                .map(|pool| format!("--create=thin:{pool}"))
                .collect();
            return Err(Error::Usage(format!(
                "{name}: volume group {vg} has several thin pools; say which: {}, or --create=thick",
                choices.join(", ")
            )));
        }
        (Making::Thin(pool), _) if pools.contains(&pool.as_str()) => Some(pool.clone()),
        (Making::Thin(pool), _) => {
            let known = if pools.is_empty() {
                "it has none".to_owned()
            } else {
                format!("its thin pools: {}", pools.join(", "))
            };
            return Err(Error::Usage(format!(
                "{name}: volume group {vg} has no thin pool {pool}; {known}"
            )));
        }
    };
    Ok(Plan {
        name: name.clone(),
        pool,
    })
}

/// The refusal of a thick volume of `size_bytes` where its group has only this `room`.
fn lacking(name: &LvName, size_bytes: u64, room: Room) -> Option<Error> {
    let needed = size_bytes.div_ceil(room.extent_bytes);
    (needed > room.free_extents).then(|| {
        let bytes = |extents: u64| Bytes(extents.saturating_mul(room.extent_bytes));
        let vg = name.vg();
        Error::refused(
            name.to_string(),
            format!(
                "it would be made, with {}, and volume group {vg} has {} free",
                bytes(needed),
                bytes(room.free_extents)
            ),
            format!(
                "Make room there (lvremove, vgextend {vg} DISK), or make it thin: --create=thin:POOL"
            ),
        )
    })
}

impl Plan {
    /// An error where there is no room for a volume of `size_bytes`. What a thin pool promises it need not have.
    pub fn check_room(&self, size_bytes: u64) -> Result<()> {
        if self.pool.is_some() {
            return Ok(());
        }
        let room = room_of(self.name.vg())?;
        lacking(&self.name, size_bytes, room).map_or(Ok(()), Err)
    }

    /// Makes it, with at least `size_bytes`, which LVM rounds up to whole extents.
    pub fn make(&self, size_bytes: u64) -> Result<()> {
        let size = format!("{}b", size_bytes.max(1).next_multiple_of(512));
        let mut command = lvm_command("lvcreate");
        command.args(["-qq", "--yes", "--wipesignatures", "n", "--addtag", NEW_TAG]);
        match &self.pool {
            Some(pool) => {
                command.args(["--type", "thin", "--virtualsize", &size, "--thinpool", pool]);
            }
            None => {
                command.args(["--zero", "y", "--size", &size]);
            }
        }
        command.args(["--name", self.name.lv(), "--", self.name.vg()]);
        run(command, "lvcreate", &self.name)
    }
}

/// True if a run made this volume and left nothing on record of it.
pub fn is_new(name: &LvName, uuid: &str) -> Result<bool> {
    let rows = volumes_of(name.vg())?;
    Ok(rows
        .iter()
        .any(|row| row.lv_uuid == uuid && row.lv_tags.split(',').any(|tag| tag == NEW_TAG)))
}

/// From now on it is a volume like any other.
pub fn keep(name: &LvName) -> Result<()> {
    let mut command = lvm_command("lvchange");
    command
        .args(["-qq", "--deltag", NEW_TAG, "--"])
        .arg(name.to_string());
    run(command, "lvchange", name)
}

/// Takes away what was made. `uuid` tells it from another that took its name.
pub fn remove(name: &LvName, uuid: Option<&str>) -> Result<()> {
    let mut command = lvm_command("lvremove");
    let mut select = format!("lv_tags={NEW_TAG} && lv_name=\"{}\"", name.lv());
    if let Some(uuid) = uuid {
        select = format!("lv_tags={NEW_TAG} && lv_uuid=\"{uuid}\"");
    }
    command.args(["-qq", "--yes", "--select", &select, "--", name.vg()]);
    run(command, "lvremove", name)
}

fn run(mut command: Command, program: &str, name: &LvName) -> Result<()> {
    let failed = |reason: String| Error::Lvm {
        what: name.to_string(),
        reason,
    };
    let output = command
        .output()
        .map_err(|error| failed(format!("cannot run `{program}` (package lvm2): {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said: Vec<&str> = said
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    Err(failed(format!("`{program}` failed: {}", said.join("; "))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, segtype: &str) -> LvRow {
        LvRow {
            lv_name: name.into(),
            segtype: segtype.into(),
            ..LvRow::default()
        }
    }

    fn name() -> LvName {
        LvName::new("vg", "copy").unwrap()
    }

    fn chosen(making: &str, pools: &[&str]) -> std::result::Result<Option<String>, String> {
        let mut rows = vec![row("other", "linear"), row("[p_tdata]", "linear")];
        rows.extend(pools.iter().map(|pool| row(pool, "thin-pool")));
        choose(&name(), &making.parse().unwrap(), &rows)
            .map(|plan| plan.pool)
            .map_err(|error| error.chain())
    }

    #[test]
    fn a_volume_for_which_there_is_no_room_is_refused_before_it_is_made() {
        let name = LvName::parse("there/data").unwrap();
        let room = Room {
            extent_bytes: 4 << 20,
            free_extents: 3,
        };
        assert!(lacking(&name, 12 << 20, room).is_none());
        let text = lacking(&name, (12 << 20) + 1, room).unwrap().to_string();
        assert!(
            text.contains("16.0 MiB") && text.contains("12.0 MiB free"),
            "{text}"
        );
    }

    #[test]
    fn auto_takes_the_only_pool_and_asks_where_there_are_several() {
        assert_eq!(chosen("auto", &[]), Ok(None));
        assert_eq!(chosen("auto", &["p"]), Ok(Some("p".into())));
        let text = chosen("auto", &["p", "q"]).unwrap_err();
        assert!(
            text.contains("--create=thin:p, --create=thin:q, or --create=thick"),
            "{text}"
        );
        assert_eq!(chosen("thick", &["p", "q"]), Ok(None));
        assert_eq!(chosen("thin:q", &["p", "q"]), Ok(Some("q".into())));
        for (pools, words) in [(&["p"][..], "its thin pools: p"), (&[], "it has none")] {
            let text = chosen("thin:nope", pools).unwrap_err();
            assert!(text.contains(words), "{text}");
        }
    }

    #[test]
    fn what_is_there_but_inactive_is_not_made_again() {
        let error = choose(&name(), &Making::Thick, &[row("copy", "linear")]).unwrap_err();
        assert!(
            error.chain().contains("lvchange -ay vg/copy"),
            "{}",
            error.chain()
        );
    }

    #[test]
    fn the_words_are_checked() {
        for text in ["auto", "thick", "thin:pool-1"] {
            assert_eq!(text.parse::<Making>().unwrap().to_string(), text);
        }
        for text in [
            "", "thin", "thin:", "thin:-p", "thin:a/b", "thin:a b", "Thick",
        ] {
            assert!(text.parse::<Making>().is_err(), "{text}");
        }
    }
}
