//! Generated code without the Markdown that models wrap it in.

use super::fold;

const FENCE: &str = "```";
/// A fence that is indented further than this stands in the code itself, as in the comment of a function.
const DEEPEST_FENCE: usize = 3;

/// Drops the lines of fences. Where the answer begins with a fence, or with an introduction to one, what stands outside
/// of fences is said about the code and goes too. Text flows on at once; only what may turn out to be one of these is
/// held back.
#[derive(Debug, Default)]
pub(super) struct Code {
    place: Place,
    /// The beginning of the answer, or of the line.
    held: String,
    line: Line,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// No code yet.
    #[default]
    Before,
    /// The answer is code, whatever fences it holds.
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
        let held = std::mem::take(&mut self.held);
        match self.place {
            Place::Behind => String::new(),
            _ => held,
        }
    }

    /// `piece` holds no line break but at its end.
    fn push_piece(&mut self, piece: &str, out: &mut String) {
        if self.place == Place::Before {
            self.held.push_str(piece);
            if !self.begins() {
                return;
            }
            // Decided: what is held goes the way of all lines.
            let held = std::mem::take(&mut self.held);
            for line in held.split_inclusive('\n') {
                self.push_line(line, out);
            }
            return;
        }
        self.push_line(piece, out);
    }

    /// Can the answer's beginning be told? An introduction to a fence is dropped here.
    fn begins(&mut self) -> bool {
        let mut at = 0;
        let mut introduced = false;
        for line in self.held.split_inclusive('\n') {
            let start = line.trim_start();
            if start.is_empty() {
                at += line.len();
                continue;
            }
            if start.starts_with(FENCE) {
                self.held.drain(..at);
                self.place = Place::Behind;
                return true;
            }
            if FENCE.starts_with(start) && !line.ends_with('\n') {
                return false;
            }
            let ended = line.ends_with('\n');
            if introduced || !fold::may_open(start) || (ended && !fold::is_introduction(line)) {
                self.place = Place::Bare;
                return true;
            }
            introduced = true;
            at += line.len();
        }
        false
    }

    fn push_line(&mut self, piece: &str, out: &mut String) {
        match self.line {
            Line::Text => self.show(piece, out),
            Line::Fence => {}
            Line::Starting => {
                self.held.push_str(piece);
                let start = self.held.trim_start();
                let indent = self.held.len() - start.len();
                let deep = self.place == Place::Within && indent > DEEPEST_FENCE;
                if start.starts_with(FENCE) && !deep {
                    self.line = Line::Fence;
                    self.held.clear();
                } else if deep || !FENCE.starts_with(start) || piece.ends_with('\n') {
                    self.line = Line::Text;
                    let held = std::mem::take(&mut self.held);
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
