//! Generated code without the Markdown that models wrap it in.

use super::fold::{self, Held};

const FENCE: &str = "```";
/// A fence that is indented further than this stands in the code itself, as in the comment of a function.
const DEEPEST_FENCE: usize = 3;

/// Drops the lines of fences. Where the answer begins with a fence, or with an introduction to one, what stands outside
/// of fences is said about the code and goes too. Text flows on at once; only what may turn out to be one of these is
/// held back.
#[derive(Debug, Default)]
pub(super) struct Code {
    place: Place,
    /// The beginning of the answer.
    begun: String,
    /// How much of it is blanks and an introduction.
    seen: usize,
    introduced: bool,
    /// The beginning of the line.
    held: Held,
    line: Line,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// No code yet.
    #[default]
    Before,
    /// The answer is code, whatever fences it begins or ends with.
    Bare,
    /// Within a fence.
    Within,
    /// Behind one.
    Behind,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Line {
    /// Nothing but what is held has come of it.
    #[default]
    Starting,
    /// It is text.
    Text,
    /// It is a fence.
    Fence,
}

impl Code {
    /// What can be passed on after `text` has come.
    pub(super) fn push(&mut self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        for piece in text.split_inclusive('\n') {
            self.push_piece(piece, &mut out);
        }
        out
    }

    /// What was held back until the end.
    pub(super) fn finish(&mut self) -> String {
        match self.place {
            Place::Before => std::mem::take(&mut self.begun),
            Place::Bare | Place::Within => self.held.take(),
            Place::Behind => String::new(),
        }
    }

    /// `piece` holds no line break but at its end.
    fn push_piece(&mut self, piece: &str, out: &mut String) {
        if self.place == Place::Before {
            self.begun.push_str(piece);
            if !self.begins() {
                return;
            }
            // Decided: what is held goes the way of all lines.
            let begun = std::mem::take(&mut self.begun);
            for line in begun.split_inclusive('\n') {
                self.push_line(line, out);
            }
            return;
        }
        self.push_line(piece, out);
    }

    /// Can the answer's beginning be told? An introduction to a fence is dropped here.
    fn begins(&mut self) -> bool {
        loop {
            let start = self.begun[self.seen..].trim_start();
            self.seen = self.begun.len() - start.len();
            let (line, ended) = match start.find('\n') {
                Some(at) => (&start[..=at], true),
                None => (start, false),
            };
            if line.starts_with(FENCE) {
                self.begun.drain(..self.seen);
                self.place = Place::Behind;
                return true;
            }
            if FENCE.starts_with(line) && !ended {
                return false;
            }
            if self.introduced || !fold::may_open(line) || (ended && !fold::is_introduction(line)) {
                self.place = Place::Bare;
                return true;
            }
            if !ended {
                return false;
            }
            self.introduced = true;
            self.seen += line.len();
        }
    }

    fn push_line(&mut self, piece: &str, out: &mut String) {
        match self.line {
            Line::Text => self.show(piece, out),
            Line::Fence => {}
            Line::Starting => {
                self.held.push(piece);
                let length = self.held.len();
                let start = self.held.begun();
                let indent = length - start.len();
                let deep = indent > DEEPEST_FENCE && self.place != Place::Behind;
                if start.starts_with(FENCE) && !deep {
                    self.line = Line::Fence;
                    self.held.take();
                } else if deep || !FENCE.starts_with(start) || piece.ends_with('\n') {
                    self.line = Line::Text;
                    let held = self.held.take();
                    self.show(&held, out);
                }
            }
        }
        if piece.ends_with('\n') {
            if self.line == Line::Fence {
                self.place = match self.place {
                    Place::Within => Place::Behind,
                    Place::Behind => Place::Within,
                    other => other,
                };
            }
            self.line = Line::Starting;
        }
    }

    fn show(&self, text: &str, out: &mut String) {
        if self.place != Place::Behind {
            out.push_str(text);
        }
    }
}
