//! A tracked volume and copies that follow it by its eras.

use serde_json::Value;

use super::{Run, Tool};

/// The era device of vg/data.
pub(crate) const DEVICE: &str = "/dev/mapper/vg-data-era";

/// The first row that a command with `--json` prints.
#[track_caller]
pub(crate) fn row(tool: &Tool, arguments: &str) -> Value {
    let run = tool.run(arguments).ok();
    let rows: Value = serde_json::from_str(&run.stdout).unwrap();
    rows[0].clone()
}

/// What is on record for the copy.
#[track_caller]
pub(crate) fn record(tool: &Tool, copy: &str) -> Value {
    row(tool, &format!("state show {copy} --json"))
}

/// The id of the state that the copy holds; empty if it has none.
#[track_caller]
pub(crate) fn held(tool: &Tool, copy: &str) -> String {
    let record = record(tool, copy);
    record["holds"]["id"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// The era that such an id names.
#[track_caller]
pub(crate) fn era_of(id: &str) -> u64 {
    id.rsplit(':').next().unwrap().parse().unwrap()
}

/// The era that the copy holds, or held before a run that was cut.
#[track_caller]
pub(crate) fn base(tool: &Tool, copy: &str) -> u64 {
    let record = record(tool, copy);
    let state = match record["incomplete"].is_null() {
        true => &record["holds"],
        false => &record["incomplete"]["base"],
    };
    era_of(state["id"].as_str().unwrap())
}

/// Sends what was written since the era that the copy holds.
#[track_caller]
pub(crate) fn send(tool: &Tool, copy: &str) -> Run {
    let era = base(tool, copy);
    tool.run(&format!("send --from era:{era} {DEVICE} {copy}"))
}

/// How `track status` calls what vg/data is in.
#[track_caller]
pub(crate) fn state(tool: &Tool) -> String {
    let row = row(tool, "track status vg/data --json");
    row["state"].as_str().unwrap().to_owned()
}
