//! What a person sees: headings, text as it arrives, figures. Colours only where they are wanted.

use std::io::{self, IsTerminal as _, Write};

/// Where the demonstration is shown; with no place to write, nothing is.
pub struct Screen<W> {
    out: Option<W>,
    colours: bool,
    /// The next character of an answer begins a line.
    fresh: bool,
}

const BAR: &str = "     │ ";
const RESET: &str = "\x1b[0m";

impl Screen<io::Stdout> {
    /// Standard output, in colour on a terminal unless `NO_COLOR` asks for none; or nothing at all.
    #[must_use]
    pub fn standard(silent: bool, no_color: bool) -> Self {
        let colours = !no_color && io::stdout().is_terminal();
        Self::new((!silent).then(io::stdout), colours)
    }
}

impl<W: Write> Screen<W> {
    /// A screen on `out`.
    #[must_use]
    pub fn new(out: Option<W>, colours: bool) -> Self {
        Self {
            out,
            colours,
            fresh: true,
        }
    }

    /// Begins a step.
    ///
    /// # Errors
    /// Nobody reads.
    pub fn heading(&mut self, words: &str) -> io::Result<()> {
        let (bold, reset) = self.paint("\x1b[1m");
        self.put(&format!("\n{bold}{words}{reset}\n"))
    }

    /// One line below a heading.
    ///
    /// # Errors
    /// Nobody reads.
    pub fn line(&mut self, words: &str) -> io::Result<()> {
        self.put(&format!("     {words}\n"))
    }

    /// One line that tells of a failure.
    ///
    /// # Errors
    /// Nobody reads.
    pub fn problem(&mut self, words: &str) -> io::Result<()> {
        let (red, reset) = self.paint("\x1b[31m");
        self.put(&format!("     {red}{words}{reset}\n"))
    }

    /// A piece of an answer, at once.
    ///
    /// # Errors
    /// Nobody reads.
    pub fn piece(&mut self, text: &str) -> io::Result<()> {
        let (green, reset) = self.paint("\x1b[32m");
        let mut shown = green.to_owned();
        for character in text.chars() {
            if std::mem::take(&mut self.fresh) {
                shown.extend([reset, BAR, green]);
            }
            match character {
                '\n' => self.fresh = true,
                '\t' => {}
                // What a model says must not steer the terminal.
                _ if character.is_control() => {
                    shown.push('\u{fffd}');
                    continue;
                }
                _ => {}
            }
            shown.push(character);
        }
        shown.push_str(reset);
        self.put(&shown)
    }

    /// Ends an answer's last line.
    ///
    /// # Errors
    /// Nobody reads.
    pub fn end_of_answer(&mut self) -> io::Result<()> {
        if std::mem::replace(&mut self.fresh, true) {
            return Ok(());
        }
        self.put("\n")
    }

    fn put(&mut self, text: &str) -> io::Result<()> {
        let Some(out) = &mut self.out else {
            return Ok(());
        };
        out.write_all(text.as_bytes())?;
        out.flush()
    }

    fn paint(&self, colour: &'static str) -> (&'static str, &'static str) {
        if self.colours { (colour, RESET) } else { ("", "") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(colours: bool) -> String {
        let mut out = Vec::new();
        let mut screen = Screen::new(Some(&mut out), colours);
        screen.heading("one").unwrap();
        for piece in ["a", "b\n", "c\x1b[2J", "\td"] {
            screen.piece(piece).unwrap();
        }
        screen.end_of_answer().unwrap();
        screen.end_of_answer().unwrap();
        screen.problem("bad").unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn an_answer_is_set_off_and_cannot_steer_the_terminal() {
        assert_eq!(
            shown(false),
            "\none\n     │ ab\n     │ c\u{fffd}[2J\td\n     bad\n"
        );
    }

    #[test]
    fn colours_come_only_where_wanted() {
        assert!(!shown(false).contains('\x1b'));
        assert!(shown(true).contains("\x1b[31mbad\x1b[0m"));
    }
}
