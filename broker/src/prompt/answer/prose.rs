//! Markdown that models like to wrap: in an introduction, in a fence around the whole.

use super::fold::{self, Held, LONGEST_INTRODUCTION};

const FENCE: &str = "```";

/// Which fences around the whole are taken off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wrappers {
    /// Those that name Markdown: the text may begin with code, and flows to a person.
    Markdown,
    /// Any without a language too, and introductions: the text is put into a field as it is.
    Any,
}

impl Wrappers {
    /// The lines that open one.
    fn names(self) -> &'static [&'static str] {
        match self {
            Wrappers::Markdown => &["```markdown", "```md"],
            Wrappers::Any => &["```markdown", "```md", "```", "```text", "```txt", "```plaintext"],
        }
    }
}

fn wraps(names: &[&str], line: &str) -> bool {
    line.len() <= LONGEST_INTRODUCTION && names.contains(&line.trim())
}

/// May `beginning`, the first part of a line, become one that wraps?
fn may_wrap(names: &[&str], beginning: &str) -> bool {
    let said = beginning.trim();
    beginning.len() <= LONGEST_INTRODUCTION && names.iter().any(|name| name.starts_with(said))
}

/// Text without its wrapping.
#[derive(Debug)]
pub(super) struct Prose {
    wrappers: Wrappers,
    /// The beginning.
    begun: Held,
    state: State,
    /// Within a wrapper, a fence that may be its end with the blanks behind it.
    held: String,
    /// The line so far, within a wrapper, if it may be a fence.
    line: Held,
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
            begun: Held::default(),
            state: State::Starting,
            held: String::new(),
            line: Held::default(),
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
                self.begun.push(text);
                self.start()
            }
        }
    }

    /// What was held back until the end.
    pub(super) fn finish(&mut self) -> String {
        let held = std::mem::take(&mut self.held);
        let line = self.line.take();
        match self.state {
            State::Flowing => String::new(),
            State::Introduced => self.begun.begun().to_owned(),
            State::Starting => self.begun.take(),
            State::Wrapped if line.trim() == FENCE && !self.inside => String::new(),
            State::Wrapped if line.trim().is_empty() && !held.is_empty() => String::new(),
            State::Wrapped => held + &line,
        }
    }

    /// Decides by the first line that is not empty.
    fn start(&mut self) -> String {
        loop {
            let names = self.wrappers.names();
            let introduces = self.wrappers == Wrappers::Any && !self.introduced;
            let begun = self.begun.begun();
            if begun.is_empty() {
                return String::new();
            }
            let Some((line, rest)) = begun.split_once('\n') else {
                if may_wrap(names, begun) || (introduces && fold::may_introduce(begun)) {
                    return String::new();
                }
                return self.flow();
            };
            if wraps(names, line) {
                let rest = rest.to_owned();
                self.begun.take();
                self.state = State::Wrapped;
                return self.unwrap(&rest);
            }
            if introduces && fold::may_introduce(line) && fold::is_introduction(line) {
                let rest = rest.to_owned();
                self.begun.take();
                self.begun.push(&rest);
                self.state = State::Introduced;
                self.introduced = true;
                continue;
            }
            return self.flow();
        }
    }

    fn flow(&mut self) -> String {
        let held = self.begun.take();
        let introduced = self.state == State::Introduced;
        self.state = State::Flowing;
        match introduced {
            true => held.trim_start_matches(['\n', '\r']).to_owned(),
            false => held,
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
            self.line.push(piece);
            let start = self.line.begun();
            if !ended && (FENCE.starts_with(start) || start.starts_with(FENCE)) {
                self.mid_line = false;
                continue;
            }
            let line = self.line.take();
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
