//! Plain tables for people: the first column to the left, the others to the right.

/// Lines up `rows` under `headings`; each line is indented by `indent` blanks and ends without any.
#[must_use]
pub fn lines(indent: usize, headings: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let mut widths: Vec<_> = headings.iter().map(|heading| heading.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let headings = headings.iter().map(|heading| (*heading).to_owned()).collect();
    std::iter::once(&headings)
        .chain(rows)
        .map(|row| line(indent, &widths, row))
        .collect()
}

fn line(indent: usize, widths: &[usize], row: &[String]) -> String {
    let mut line = " ".repeat(indent);
    for (index, (cell, width)) in row.iter().zip(widths).enumerate() {
        if index == 0 {
            line.push_str(&format!("{cell:<width$}"));
        } else {
            line.push_str(&format!("  {cell:>width$}"));
        }
    }
    line.truncate(line.trim_end().len());
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [
            vec!["unary".to_owned(), "1".to_owned()],
            vec!["x".to_owned(), "12345 µs".to_owned()],
        ];
        assert_eq!(
            lines(2, &["WHAT", "P50"], &rows),
            ["  WHAT        P50", "  unary         1", "  x      12345 µs"]
        );
    }
}
