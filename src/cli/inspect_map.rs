//! `lvmsync inspect --map`: from the record headers of deltas to rows, and to a page in a file.
//!
//! Guarantees: payloads are not read; a page appears under its name when it is whole.

use std::io::{self, Write};
use std::path::Path;

use super::inspect_chain::Entry;
use crate::cancel::Cancel;
use crate::delta::header::Header;
use crate::delta::stored::StoredDelta;
use crate::error::{Error, Result};
use crate::history::map::{Row, write_html, write_svg};
use crate::partial_file::PartialFile;
use crate::record::keeper::shown_time;

pub(super) type Drawn = (Vec<Row>, u64, Option<Error>);

/// The rows of the map, its width, and the first file whose frames cannot be followed to the end.
pub(super) fn draw<'a>(
    entries: impl Iterator<Item = &'a Entry> + Clone,
    cancel: &Cancel,
) -> Result<Drawn> {
    let size = |header: &Header| header.volume_size.max(header.base_size.unwrap_or(0));
    let sizes = entries.clone().filter_map(Entry::header).map(size);
    let width_bytes = sizes.max().unwrap_or(0);
    let mut rows = Vec::new();
    let mut failed = None;
    for entry in entries {
        let told = match entry.header() {
            Some(header) => format!("{}, {}", shown_time(header.created), entry.states()),
            None => "names no states".to_owned(),
        };
        let mut row = Row::new(&entry.name, told, width_bytes);
        for frame in entry.delta.iter().flat_map(StoredDelta::frames) {
            cancel.check()?;
            match frame {
                Ok(frame) => row.add(frame.extent, frame.kind),
                Err(source) => {
                    let what = entry.name.clone();
                    failed.get_or_insert(Error::Damaged { what, source });
                    row.told.push_str("; NOT SOUND");
                }
            }
        }
        rows.push(row);
    }
    Ok((rows, width_bytes, failed))
}

/// The picture in a file: which kind it is its name says.
pub(super) fn write_page(
    path: &Path,
    overwrite: bool,
    rows: &[Row],
    width_bytes: u64,
) -> Result<()> {
    let write = page_of(path)?;
    let file = PartialFile::create(path, overwrite)?;
    let failed = |error| Error::io(format!("cannot write {}", path.display()), error);
    let mut out = io::BufWriter::new(file.file().map_err(failed)?);
    write(&mut out, rows, width_bytes)
        .and_then(|()| out.flush())
        .map_err(failed)?;
    drop(out);
    file.persist()
}

pub(super) type WritePage = fn(&mut dyn Write, &[Row], u64) -> io::Result<()>;

/// What a map of this name is.
pub(super) fn page_of(path: &Path) -> Result<WritePage> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("svg") => Ok(write_svg),
        Some("html") => Ok(write_html),
        _ => Err(Error::Usage(format!(
            "{}: a map is a picture or a page: name it .svg or .html",
            path.display()
        ))),
    }
}
