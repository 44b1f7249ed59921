//! Curves over time as an SVG picture.

use crate::svg::Svg;

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
        let mut svg = Svg::new((WIDTH, HEIGHT), &self.title);
        svg.element(format_args!(
            "<path d=\"M{left} {top} V{bottom} H{right}\" fill=\"none\" stroke=\"black\"/>"
        ));
        for part in 0..=4 {
            let value = most * f64::from(part) / 4.0;
            svg.words((left - 6.0, y(value) + 4.0), "end", &format!("{value:.0}"));
            let second = seconds * f64::from(part) / 4.0;
            svg.words((x(second), bottom + 18.0), "middle", &format!("{second:.0} s"));
        }
        let level = y(self.level);
        svg.words(
            (right + 8.0, level + 4.0),
            "start",
            &format!("capacity {:.0}", self.level),
        );
        svg.element(format_args!(
            "<path d=\"M{left} {level:.1} H{right}\" stroke=\"gray\" stroke-dasharray=\"4\"/>"
        ));
        for (number, curve) in self.curves.iter().enumerate() {
            let colour = COLOURS[number % COLOURS.len()];
            let points = curve.values.iter().enumerate();
            let points: Vec<_> = points
                .map(|(second, value)| format!("{:.1},{:.1}", x(second as f64), y(*value)))
                .collect();
            let line = top + 20.0 * number as f64;
            svg.element(format_args!(
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\n\
                 <path d=\"M{:.1} {line:.1} h18\" stroke=\"{colour}\" stroke-width=\"2\"/>",
                points.join(" "),
                right + 86.0
            ));
            svg.words((right + 110.0, line + 4.0), "start", &curve.name);
        }
        svg.finish()
    }
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
