//! Markdown that ends with the documents it comes from: a line `ATTRS:` with their ids, by which GitLab finds the links.

const MARKER: &str = "ATTRS";
/// Most bytes of blanks and signs around the marker that count as belonging to it.
const LONGEST_LEAD: usize = 64;

/// Passes the text on and puts the list behind it in order.
#[derive(Debug)]
pub(super) struct Sources {
    /// Ids as the model was shown them.
    known: Vec<String>,
    /// What may be the beginning of the list, or the list.
    held: String,
    listing: bool,
}

impl Sources {
    pub(super) fn new(known: Vec<String>) -> Self {
        Self {
            known,
            held: String::new(),
            listing: false,
        }
    }

    /// What can be passed on after `text` has come.
    pub(super) fn push(&mut self, text: &str) -> String {
        self.held.push_str(text);
        if self.listing {
            return String::new();
        }
        let from = self.begins();
        let out = self.held[..from].to_owned();
        self.held.drain(..from);
        out
    }

    /// The list, or what looked like one.
    pub(super) fn finish(&mut self) -> String {
        let held = std::mem::take(&mut self.held);
        if !self.listing || self.known.is_empty() {
            return held;
        }
        let named = self.named(&held);
        let blanks = held.find(|c: char| !c.is_whitespace()).unwrap_or(0);
        match named.is_empty() {
            true => String::new(),
            // Of the list itself nothing but the ids is needed.
            false if is_exact(&held, &named) => held,
            false => format!("{}{MARKER}: {}", &held[..blanks], named.join(" ")),
        }
    }

    /// Where the list begins or may begin; the end of the text where it does not.
    fn begins(&mut self) -> usize {
        let text = &self.held;
        let mut from = 0;
        while let Some(found) = text[from..].find(MARKER) {
            let at = from + found;
            let all = &text[at + MARKER.len()..];
            let behind = all.trim_start_matches(['*', ' ']);
            let near = all.len() - behind.len() <= LONGEST_LEAD;
            if behind.is_empty() && near {
                return before(text, at);
            }
            if behind.starts_with(':') && near {
                self.listing = true;
                return before(text, at);
            }
            from = at + MARKER.len();
        }
        let tail = (1..MARKER.len())
            .rev()
            .find(|length| text.ends_with(&MARKER[..*length]));
        before(text, text.len() - tail.unwrap_or(0))
    }

    /// The known documents that the list names, each once.
    fn named(&self, list: &str) -> Vec<&str> {
        let words = list.split(|c: char| c.is_whitespace() || "*,;[]()<>`\"'".contains(c));
        let mut named: Vec<&str> = Vec::new();
        for word in words.map(|word| word.trim_end_matches('.')) {
            let found = self.known.iter().find(|id| {
                // Models leave out the part that all ids share.
                let short = id.rsplit_once('-').map_or(id.as_str(), |(_, short)| short);
                !word.is_empty() && (*id == word || short == word)
            });
            if let Some(id) = found.filter(|id| !named.contains(&id.as_str())) {
                named.push(id);
            }
        }
        named
    }
}

/// Where what leads up to the marker at `at` begins: blanks and the signs of bold text.
fn before(text: &str, at: usize) -> usize {
    let from = text.floor_char_boundary(at.saturating_sub(LONGEST_LEAD));
    let lead = text[from..at].trim_end_matches('*');
    from + lead.trim_end_matches(['\n', '\r', ' ']).len()
}

/// Is the list as it was asked for?
fn is_exact(list: &str, named: &[&str]) -> bool {
    let rest = list
        .trim()
        .strip_prefix(MARKER)
        .and_then(|rest| rest.strip_prefix(": "));
    rest.is_some_and(|ids| ids.split(' ').eq(named.iter().copied()))
}
