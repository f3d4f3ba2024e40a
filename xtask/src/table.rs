//! Plain tables for a terminal. Pure.

/// Lines of columns that are as wide as they must be; the first row is the heading, numbers go right.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let right: Vec<bool> = (0..columns).map(|column| numeric(rows, column)).collect();
    let mut text = String::new();
    for (n, row) in rows.iter().enumerate() {
        let cells = row.iter().zip(&widths).zip(&right);
        let line: Vec<String> = cells
            .map(|((cell, width), right)| pad(cell, *width, *right))
            .collect();
        text.push_str(line.join("  ").trim_end());
        text.push('\n');
        if n == 0 {
            let rule: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
            text.push_str(&rule.join("  "));
            text.push('\n');
        }
    }
    text
}

/// All cells below the heading begin with a digit, or say nothing.
fn numeric(rows: &[Vec<String>], column: usize) -> bool {
    let mut cells = rows.iter().skip(1).filter_map(|row| row.get(column));
    cells.all(|cell| cell.is_empty() || cell.starts_with(|c: char| c.is_ascii_digit()))
}

fn pad(cell: &str, width: usize, right: bool) -> String {
    if right {
        format!("{cell:>width$}")
    } else {
        format!("{cell:<width$}")
    }
}

#[cfg(test)]
mod tests {
    use super::table;

    #[test]
    fn columns_are_aligned() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let rows = [
            row(["step", "count", "result"]),
            row(["lab", "7", "ok"]),
            row(["format", "12", ""]),
        ];
        assert_eq!(
            table(&rows),
            "step    count  result\n------  -----  ------\nlab         7  ok\nformat     12\n"
        );
    }
}
