//! Where on the volume each delta changes something: rows of characters, and a picture that stands alone.
//!
//! Pure. Guarantees: memory and length follow the number of columns, not the number of extents; every changed byte is in
//! a mark, however small it is; what comes from a file is escaped.

use std::io::{self, Write};

use crate::extent::{Extent, Kind};
use crate::units::{Bytes, count};

/// Columns of a row of characters.
pub const COLUMNS: usize = 64;
/// Places across the picture that are told apart.
const PLACES: u64 = 2000;
/// The picture in its own units.
const WIDTH: u64 = 1000;
const LABEL: u64 = 260;
const ROW: u64 = 22;
const TOP: u64 = 44;

/// Extents that lie so near to each other that they are one mark.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Mark {
    start: u64,
    end: u64,
    extents: u64,
    data_bytes: u64,
    zero_bytes: u64,
}

/// What one delta changes.
#[derive(Clone, Debug)]
pub struct Row {
    /// The file.
    pub name: String,
    /// When and from where to where, for people.
    pub told: String,
    width_bytes: u64,
    cells: Vec<u64>,
    marks: Vec<Mark>,
}

impl Row {
    /// An empty row of a map that is `width_bytes` of the volume wide.
    pub fn new(name: &str, told: String, width_bytes: u64) -> Self {
        Self {
            name: name.to_owned(),
            told,
            width_bytes: width_bytes.max(1),
            cells: vec![0; COLUMNS],
            marks: Vec::new(),
        }
    }

    /// Adds an extent; they come in the order of the volume.
    pub fn add(&mut self, extent: Extent, kind: Kind) {
        let end = extent.end().min(self.width_bytes);
        let start = extent.offset().min(end);
        if start == end {
            return;
        }
        let cell = self.cell_bytes();
        let (mut position, mut column) = (start, start / cell);
        while position < end {
            let next = (column + 1).saturating_mul(cell).min(end);
            let place = usize::try_from(column).unwrap_or(usize::MAX);
            if let Some(changed) = self.cells.get_mut(place) {
                *changed += next - position;
            }
            (position, column) = (next, column + 1);
        }
        let place_bytes = self.width_bytes.div_ceil(PLACES).max(1);
        let length = end - start;
        let (data_bytes, zero_bytes) = match kind {
            Kind::Data => (length, 0),
            Kind::Zero => (0, length),
        };
        match self.marks.last_mut() {
            // It goes on where the last one ends, or in the same place of the picture.
            Some(last)
                if start <= last.end
                    || start / place_bytes <= last.end.saturating_sub(1) / place_bytes =>
            {
                last.end = end;
                last.extents += 1;
                last.data_bytes += data_bytes;
                last.zero_bytes += zero_bytes;
            }
            _ => self.marks.push(Mark {
                start,
                end,
                extents: 1,
                data_bytes,
                zero_bytes,
            }),
        }
    }

    /// ` ` nothing, `.` some, `o` half, `#` all changed, as `lvmsync diff --map` draws it.
    pub fn line(&self) -> String {
        let cell = self.cell_bytes();
        let mark = |(column, changed): (usize, &u64)| {
            let start = cell.saturating_mul(column as u64);
            let of = self.width_bytes.saturating_sub(start).min(cell);
            match *changed {
                0 => ' ',
                changed if changed >= of => '#',
                changed if changed >= of / 2 => 'o',
                _ => '.',
            }
        };
        self.cells.iter().enumerate().map(mark).collect()
    }

    fn cell_bytes(&self) -> u64 {
        self.width_bytes.div_ceil(COLUMNS as u64).max(1)
    }
}

/// Draws rows of characters, oldest first.
pub fn write_rows(out: &mut dyn Write, rows: &[Row], width_bytes: u64) -> io::Result<()> {
    let widest = rows.iter().map(|row| row.name.chars().count()).max();
    let widest = widest.unwrap_or(0);
    let end = Bytes(width_bytes).to_string();
    writeln!(out, "{:widest$}  0{end:>1$}", "", COLUMNS)?;
    for row in rows {
        writeln!(out, "{:widest$} |{}|", row.name, row.line())?;
    }
    Ok(())
}

/// Draws the picture: the volume across, time down, a row for each delta.
pub fn write_svg(out: &mut dyn Write, rows: &[Row], width_bytes: u64) -> io::Result<()> {
    let height = TOP + ROW * rows.len() as u64 + 20;
    let whole = LABEL + WIDTH + 20;
    writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {whole} {height}\" width=\"{whole}\" \
         height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">"
    )?;
    writeln!(out, "<title>Where each delta changes the volume</title>")?;
    writeln!(
        out,
        "<rect width=\"{whole}\" height=\"{height}\" fill=\"#ffffff\"/>"
    )?;
    for part in 0..=4u64 {
        let x = LABEL + WIDTH * part / 4;
        let at = u128::from(width_bytes) * u128::from(part) / 4;
        let at = Bytes(u64::try_from(at).unwrap_or(width_bytes));
        writeln!(
            out,
            "<text x=\"{x}\" y=\"{}\" text-anchor=\"middle\" fill=\"#555555\">{at}</text>\
             <line x1=\"{x}\" x2=\"{x}\" y1=\"{}\" y2=\"{}\" stroke=\"#dddddd\"/>",
            TOP - 14,
            TOP - 8,
            height - 16
        )?;
    }
    for (number, row) in rows.iter().enumerate() {
        write_svg_row(out, row, TOP + ROW * number as u64)?;
    }
    writeln!(out, "</svg>")
}

fn write_svg_row(out: &mut dyn Write, row: &Row, y: u64) -> io::Result<()> {
    let name = escaped(&row.name);
    let told = escaped(&row.told);
    writeln!(
        out,
        "<g><title>{name}: {told}</title><text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\
         <rect x=\"{LABEL}\" y=\"{y}\" width=\"{WIDTH}\" height=\"{}\" fill=\"#f4f4f4\"/></g>",
        LABEL - 8,
        y + 13,
        escaped(&shortened(&row.name)),
        ROW - 5
    )?;
    for mark in &row.marks {
        let x = place(mark.start, row.width_bytes);
        // What is too small to be seen is there all the same.
        let width = (place(mark.end, row.width_bytes) - x).max(0.5);
        let fill = match (mark.data_bytes, mark.zero_bytes) {
            (_, 0) => "#1f5fa8",
            (0, _) => "#c98a1b",
            _ => "#5f7f4f",
        };
        writeln!(
            out,
            "<rect x=\"{:.1}\" y=\"{y}\" width=\"{width:.1}\" height=\"{}\" fill=\"{fill}\"><title>{name}\n\
             offset {} to {} ({} to {})\n{}: {} data, {} zero</title></rect>",
            x + LABEL as f64,
            ROW - 5,
            mark.start,
            mark.end,
            Bytes(mark.start),
            Bytes(mark.end),
            count(mark.extents, "extent"),
            Bytes(mark.data_bytes),
            Bytes(mark.zero_bytes)
        )?;
    }
    Ok(())
}

/// A picture has no use for more digits than a float has.
fn place(offset: u64, width_bytes: u64) -> f64 {
    offset as f64 / width_bytes as f64 * WIDTH as f64
}

/// The picture in a page, with a table of what the rows are.
pub fn write_html(out: &mut dyn Write, rows: &[Row], width_bytes: u64) -> io::Result<()> {
    writeln!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>History of a volume</title>\n\
         <style>body{{font-family:sans-serif;margin:2em}}td{{padding:0 1em 0 0}}</style></head><body>\n\
         <h1>History of a volume</h1>\n<p>The volume across, time down: a row for each delta. Blue is data, ochre is \
         zero, green is both.</p>"
    )?;
    write_svg(out, rows, width_bytes)?;
    writeln!(out, "<table>")?;
    for row in rows {
        writeln!(
            out,
            "<tr><td>{}</td><td>{}</td></tr>",
            escaped(&row.name),
            escaped(&row.told)
        )?;
    }
    writeln!(out, "</table>\n</body></html>")
}

/// The end of a name is what tells files apart.
fn shortened(name: &str) -> String {
    const MOST: usize = 34;
    let length = name.chars().count();
    if length <= MOST {
        return name.to_owned();
    }
    let end: String = name.chars().skip(length - MOST + 1).collect();
    format!("…{end}")
}

/// For text between tags and in attributes. Control characters are in no page.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(width: u64, extents: &[(u64, u64)]) -> Row {
        let mut row = Row::new("a<b>&\"'\n", "told".to_owned(), width);
        for (offset, length) in extents {
            row.add(Extent::new(*offset, *length).unwrap(), Kind::Data);
        }
        row
    }

    #[test]
    fn a_row_shows_where() {
        let line = row(6400, &[(0, 100), (101, 5), (300, 60), (6399, 1)]).line();
        assert_eq!(line.len(), COLUMNS);
        assert!(line.starts_with("#. o  "), "{line}");
        assert!(line.ends_with(" ."), "{line}");
        // A volume of fewer bytes than columns has fewer cells.
        assert_eq!(row(3, &[(0, 3)]).line().trim_end(), "###");
        assert_eq!(row(0, &[]).line().trim(), "");
    }

    #[test]
    fn a_picture_is_bounded_says_every_byte_and_escapes_names() {
        let width = 1 << 40;
        let extents: Vec<(u64, u64)> = (0..100_000).map(|n| (n * 10_000_000, 4096)).collect();
        let row = row(width, &extents);
        assert!(row.marks.len() as u64 <= PLACES + 1, "{}", row.marks.len());
        let sum: u64 = row.marks.iter().map(|mark| mark.data_bytes).sum();
        assert_eq!(sum, 100_000 * 4096);
        let mut page = Vec::new();
        write_html(&mut page, &[row], width).unwrap();
        let page = String::from_utf8(page).unwrap();
        assert!(page.contains("a&lt;b&gt;&amp;&quot;&#39;\u{fffd}"));
        assert!(!page.contains("a<b>"));
        assert!(page.contains("<title>") && page.ends_with("</body></html>\n"));
        assert!(page.len() < 1 << 20);
    }
}
