//! Markdown that models like to wrap: in an introduction, in a fence around the whole.

use super::fold;

const FENCE: &str = "```";

/// Which fences around the whole are taken off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wrappers {
    /// Those that name Markdown: the text may begin with code, and flows to a person.
    Markdown,
    /// Any without a language too, and introductions: the text is put into a field as it is.
    Any,
}

/// Text without its wrapping.
#[derive(Debug)]
pub(super) struct Prose {
    wrappers: Wrappers,
    /// The beginning, or a fence that may be the wrapper's end with the blanks behind it.
    held: String,
    state: State,
    /// The line so far, within a wrapper, if it may be a fence.
    line: String,
    /// Within a line that flows?
    mid_line: bool,
    /// Within a fence that stands inside the wrapper?
    inside: bool,
    introduced: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Starting,
    /// Behind an introduction, nothing but blanks so far.
    Introduced,
    Wrapped,
    Flowing,
}

impl Prose {
    pub(super) fn new(wrappers: Wrappers) -> Self {
        Self {
            wrappers,
            held: String::new(),
            state: State::Starting,
            line: String::new(),
            mid_line: false,
            inside: false,
            introduced: false,
        }
    }

    /// What can be passed on after `text` has come.
    pub(super) fn push(&mut self, text: &str) -> String {
        match self.state {
            State::Flowing => text.to_owned(),
            State::Wrapped => self.unwrap(text),
            State::Starting | State::Introduced => {
                self.held.push_str(text);
                self.start()
            }
        }
    }

    /// What was held back until the end.
    pub(super) fn finish(&mut self) -> String {
        let held = std::mem::take(&mut self.held);
        let line = std::mem::take(&mut self.line);
        match self.state {
            State::Flowing => String::new(),
            State::Introduced => held.trim_start().to_owned(),
            State::Starting => held,
            State::Wrapped if line.trim() == FENCE && !self.inside => String::new(),
            State::Wrapped if line.trim().is_empty() && !held.is_empty() => String::new(),
            State::Wrapped => held + &line,
        }
    }

    /// Decides by the first line that is not empty.
    fn start(&mut self) -> String {
        loop {
            let begun = self.held.trim_start_matches(['\n', '\r', ' ', '\t']);
            if begun.is_empty() {
                return String::new();
            }
            let Some((line, rest)) = begun.split_once('\n') else {
                if self.may_wrap(begun) || self.may_introduce(begun) {
                    return String::new();
                }
                return self.flow();
            };
            if self.wraps(line) {
                let rest = rest.to_owned();
                self.held.clear();
                self.state = State::Wrapped;
                return self.unwrap(&rest);
            }
            if self.may_introduce(line) && fold::is_introduction(line) {
                self.held = rest.to_owned();
                self.state = State::Introduced;
                self.introduced = true;
                continue;
            }
            return self.flow();
        }
    }

    fn flow(&mut self) -> String {
        let held = std::mem::take(&mut self.held);
        let introduced = self.state == State::Introduced;
        self.state = State::Flowing;
        match introduced {
            true => held.trim_start_matches(['\n', '\r']).to_owned(),
            false => held,
        }
    }

    fn wraps(&self, line: &str) -> bool {
        self.names().contains(&line.trim())
    }

    fn may_wrap(&self, beginning: &str) -> bool {
        let beginning = beginning.trim();
        self.names().iter().any(|name| name.starts_with(beginning))
    }

    fn may_introduce(&self, beginning: &str) -> bool {
        self.wrappers == Wrappers::Any && !self.introduced && fold::may_introduce(beginning)
    }

    fn names(&self) -> &'static [&'static str] {
        match self.wrappers {
            Wrappers::Markdown => &["```markdown", "```md"],
            Wrappers::Any => &["```markdown", "```md", "```", "```text", "```txt", "```plaintext"],
        }
    }

    /// Passes text within a wrapper on, but for a bare fence, which is held until something follows it.
    fn unwrap(&mut self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        for piece in text.split_inclusive('\n') {
            let ended = piece.ends_with('\n');
            if std::mem::replace(&mut self.mid_line, !ended) {
                out.push_str(piece);
                continue;
            }
            self.line.push_str(piece);
            let start = self.line.trim_start();
            if !ended && (FENCE.starts_with(start) || start.starts_with(FENCE)) {
                self.mid_line = false;
                continue;
            }
            let line = std::mem::take(&mut self.line);
            self.take_line(&line, &mut out);
        }
        out
    }

    fn take_line(&mut self, line: &str, out: &mut String) {
        let trimmed = line.trim();
        if trimmed.is_empty() && !self.held.is_empty() {
            self.held.push_str(line);
            return;
        }
        if trimmed == FENCE && !self.inside && self.held.is_empty() {
            self.held.push_str(line);
            return;
        }
        if !self.held.is_empty() && !trimmed.is_empty() {
            // It was no end: a fence without a language opened here.
            out.push_str(&std::mem::take(&mut self.held));
            self.inside = true;
        }
        if trimmed == FENCE && self.inside {
            self.inside = false;
        } else if trimmed.starts_with(FENCE) {
            self.inside = true;
        }
        out.push_str(line);
    }
}
