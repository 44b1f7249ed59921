//! Takes the lines of Markdown fences out of generated code.

const FENCE: &str = "```";

/// Drops every line that starts with a fence. Text flows on at once; only the
/// beginning of a line that may yet turn out to be a fence is held back.
#[derive(Debug, Default)]
pub(in crate::api) struct Fences {
    held: String,
    line: Line,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Line {
    /// Nothing but what is held has come of it.
    #[default]
    Starting,
    /// It is code.
    Code,
    /// It is a fence.
    Fence,
}

impl Fences {
    /// What can be passed on after `text` has come.
    pub(in crate::api) fn push(&mut self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        for piece in text.split_inclusive('\n') {
            self.push_piece(piece, &mut out);
        }
        out
    }

    /// What was held back until the end.
    pub(in crate::api) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// `piece` holds no line break but at its end.
    fn push_piece(&mut self, piece: &str, out: &mut String) {
        match self.line {
            Line::Code => out.push_str(piece),
            Line::Fence => {}
            Line::Starting => {
                self.held.push_str(piece);
                let start = self.held.trim_start();
                if start.starts_with(FENCE) {
                    self.line = Line::Fence;
                    self.held.clear();
                } else if !FENCE.starts_with(start) || piece.ends_with('\n') {
                    self.line = Line::Code;
                    out.push_str(&self.held);
                    self.held.clear();
                }
            }
        }
        if piece.ends_with('\n') {
            self.line = Line::Starting;
        }
    }
}

/// A whole text without the lines of fences.
pub(in crate::api) fn strip(text: &str) -> String {
    let mut fences = Fences::default();
    let mut out = fences.push(text);
    out.push_str(&fences.finish());
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_of_fences_go_and_all_else_stays() {
        assert_eq!(strip("```python\na = `1`\n\n  ```\n"), "a = `1`\n\n");
        assert_eq!(strip("no fence"), "no fence");
        assert_eq!(strip("a ``` b\n``"), "a ``` b\n``");
        assert_eq!(strip("```"), "");
    }

    #[test]
    fn text_of_a_line_is_not_held_until_its_end() {
        let mut fences = Fences::default();
        assert_eq!(fences.push("    re"), "    re");
        assert_eq!(fences.push("turn\n  `"), "turn\n");
        assert_eq!(fences.push("x"), "  `x");
    }

    proptest! {
        #[test]
        fn cuts_make_no_difference(text in "[`a \n]{0,40}", at in 0usize..40) {
            let at = at.min(text.len());
            let mut fences = Fences::default();
            let mut out = fences.push(&text[..at]);
            out.push_str(&fences.push(&text[at..]));
            out.push_str(&fences.finish());
            prop_assert_eq!(out, strip(&text));
        }
    }
}
