//! Pictures as SVG text: what the plots of drills and benchmarks have in common.

use std::fmt::Write as _;

/// A picture that is being drawn; its origin is at the upper left.
#[derive(Debug)]
pub struct Svg {
    text: String,
}

impl Svg {
    /// A white sheet of this size with a title.
    #[must_use]
    pub fn new((width, height): (f64, f64), title: &str) -> Self {
        Self {
            text: format!(
                "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
                 font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
                 <text x=\"60\" y=\"24\" font-size=\"15\">{}</text>\n",
                escaped(title)
            ),
        }
    }

    /// Adds an element, given as markup.
    pub fn element(&mut self, markup: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _written = writeln!(self.text, "{markup}");
    }

    /// Writes words; `anchor` is the end that stands at `x`: `start`, `middle` or `end`.
    pub fn words(&mut self, (x, y): (f64, f64), anchor: &str, words: &str) {
        let words = escaped(words);
        self.element(format_args!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>"
        ));
    }

    /// The whole picture.
    #[must_use]
    pub fn finish(mut self) -> String {
        self.text.push_str("</svg>\n");
        self.text
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
