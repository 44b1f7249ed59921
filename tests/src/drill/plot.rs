//! Curves over time as an SVG picture.

use std::fmt::Write as _;

const WIDTH: f64 = 800.0;
const HEIGHT: f64 = 360.0;
/// Left, top, right and bottom of the field of the curves.
const FIELD: (f64, f64, f64, f64) = (60.0, 40.0, 570.0, 320.0);
const COLOURS: [&str; 6] = ["#1f77b4", "#aec7e8", "#d62728", "#ff9896", "#2ca02c", "#98df8a"];

/// A picture.
#[derive(Debug)]
pub struct Plot {
    title: String,
    /// A level that is drawn across.
    level: f64,
    /// Its curves.
    pub curves: Vec<Curve>,
}

/// One curve, a value for each second.
#[derive(Debug)]
pub struct Curve {
    /// Its name.
    pub name: String,
    /// Its values.
    pub values: Vec<f64>,
}

impl Plot {
    /// A picture without curves, with a line at `level`.
    pub fn new(title: &str, level: f64) -> Self {
        Self {
            title: title.to_owned(),
            level,
            curves: Vec::new(),
        }
    }

    /// The picture.
    pub fn svg(&self) -> String {
        let (left, top, right, bottom) = FIELD;
        let seconds = self.curves.iter().map(|curve| curve.values.len()).max();
        let seconds = seconds.unwrap_or(1).max(2) as f64 - 1.0;
        let values = self.curves.iter().flat_map(|curve| &curve.values).copied();
        let most = values.fold(self.level, f64::max) * 1.1;
        let x = |second: f64| left + (right - left) * second / seconds;
        let y = |value: f64| bottom - (bottom - top) * value / most;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
             <text x=\"{left}\" y=\"24\" font-size=\"15\">{}</text>\n\
             <path d=\"M{left} {top} V{bottom} H{right}\" fill=\"none\" stroke=\"black\"/>\n",
            escaped(&self.title)
        );
        let mut text = |x: f64, y: f64, anchor: &str, text: &str| {
            let text = escaped(text);
            // Writing to a string cannot fail.
            let _written = writeln!(
                svg,
                "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"
            );
        };
        for part in 0..=4 {
            let value = most * f64::from(part) / 4.0;
            text(left - 6.0, y(value) + 4.0, "end", &format!("{value:.0}"));
            let second = seconds * f64::from(part) / 4.0;
            text(x(second), bottom + 18.0, "middle", &format!("{second:.0} s"));
        }
        text(
            right + 8.0,
            y(self.level) + 4.0,
            "start",
            &format!("capacity {:.0}", self.level),
        );
        for (number, curve) in self.curves.iter().enumerate() {
            let line = top + 20.0 * number as f64 + 4.0;
            text(right + 110.0, line, "start", &curve.name);
        }
        let level = y(self.level);
        let _written = writeln!(
            svg,
            "<path d=\"M{left} {level:.1} H{right}\" stroke=\"gray\" stroke-dasharray=\"4\"/>"
        );
        for (number, curve) in self.curves.iter().enumerate() {
            let colour = COLOURS[number % COLOURS.len()];
            let points = curve.values.iter().enumerate();
            let points: Vec<_> = points
                .map(|(second, value)| format!("{:.1},{:.1}", x(second as f64), y(*value)))
                .collect();
            let line = top + 20.0 * number as f64;
            let _written = writeln!(
                svg,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\n\
                 <path d=\"M{:.1} {line:.1} h18\" stroke=\"{colour}\" stroke-width=\"2\"/>",
                points.join(" "),
                right + 86.0
            );
        }
        svg.push_str("</svg>\n");
        svg
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_has_every_curve_and_its_name() {
        let mut plot = Plot::new("A < B", 10.0);
        plot.curves.push(Curve {
            name: "with".to_owned(),
            values: vec![0.0, 10.0],
        });
        let svg = plot.svg();
        assert!(svg.contains("A &lt; B") && svg.contains(">with</text>"), "{svg}");
        assert!(svg.contains("points=\"60.0,320.0 570.0,65.5\""), "{svg}");
    }
}
