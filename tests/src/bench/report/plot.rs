//! The throughput as bars: one group for each kind of request and concurrency, one bar for each way.

use super::{Report, Row};
use crate::svg::Svg;

const WIDTH: f64 = 800.0;
const TOP: f64 = 50.0;
const BAR: f64 = 18.0;
const GAP: f64 = 34.0;
/// Where the bars of answers a second and those of CPU time begin, and how long the longest is.
const COLUMNS: [(f64, f64); 2] = [(130.0, 220.0), (480.0, 220.0)];
const OURS: &str = "#1f77b4";
const OTHERS: &str = "#aab4be";

impl Report {
    /// The throughput through broker and peers as SVG; direct is the table's affair, it would dwarf the rest.
    #[must_use]
    pub fn plot(&self) -> String {
        let rows: Vec<_> = self
            .rows
            .iter()
            .filter(|row| row.scenario == "throughput" && row.over != "direct")
            .collect();
        let groups: Vec<_> = rows
            .chunk_by(|one, other| (one.request, one.concurrency) == (other.request, other.concurrency))
            .collect();
        let height = TOP + groups.len() as f64 * GAP + rows.len() as f64 * BAR + 10.0;
        let mut svg = Svg::new(
            (WIDTH, height),
            "Answers a second (left) and CPU time an answer in microseconds (right)",
        );
        let mut y = TOP;
        for group in groups {
            let (request, concurrency) = (group[0].request, group[0].concurrency);
            svg.words(
                (10.0, y + 4.0),
                "start",
                &format!("{request}, {concurrency} at a time"),
            );
            y += GAP - BAR;
            for row in group {
                svg.words((COLUMNS[0].0 - 6.0, y + 12.0), "end", &row.over);
                y += BAR;
            }
            for (column, value) in [answers, cpu].into_iter().enumerate() {
                bars(&mut svg, column, y - BAR * group.len() as f64, group, value);
            }
            y += BAR;
        }
        svg.finish()
    }
}

fn bars(svg: &mut Svg, column: usize, top: f64, group: &[&Row], value: fn(&Row) -> f64) {
    let (left, length) = COLUMNS[column];
    let most = group
        .iter()
        .map(|row| value(row))
        .fold(f64::MIN_POSITIVE, f64::max);
    for (number, row) in group.iter().enumerate() {
        let (y, width) = (top + BAR * number as f64, length * value(row) / most);
        let colour = if row.over == "broker" { OURS } else { OTHERS };
        svg.element(format_args!(
            "<rect x=\"{left:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{:.1}\" fill=\"{colour}\"/>",
            BAR - 4.0
        ));
        svg.words(
            (left + width + 6.0, y + 12.0),
            "start",
            &format!("{:.0}", value(row)),
        );
    }
}

fn answers(row: &Row) -> f64 {
    row.per_second.unwrap_or_default()
}

fn cpu(row: &Row) -> f64 {
    row.cpu_us.unwrap_or_default()
}
