//! Cuts a Markdown page into sections by its headings. Takes any text whatever.

use std::collections::HashMap;

/// Sections that are longer are cut again, between lines where there are some: a chat's prompt has room for a few.
const LONGEST: usize = 6000;
/// Deeper headings stay inside of the section they are in.
const DEEPEST: usize = 3;

/// A page in pieces.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Page {
    /// By its front matter, else by its first heading of the first level.
    pub title: Option<String>,
    /// What it says; none without any text.
    pub sections: Vec<Section>,
}

/// A piece of a page.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Section {
    /// Its heading; empty before the first.
    pub heading: String,
    /// What leads to it within the page, without `#`; empty before the first heading.
    pub anchor: String,
    /// The text below the heading.
    pub content: String,
}

/// Cuts `text`.
#[must_use]
pub fn cut(text: &str) -> Page {
    let text = text
        .trim_start_matches('\u{feff}')
        .replace("\r\n", "\n")
        .replace(['\0', '\r'], "\u{fffd}");
    let (front, body) = front_matter(&text);
    let mut cutter = Cutter {
        page: Page {
            title: front.and_then(title),
            sections: Vec::new(),
        },
        open: Section::default(),
        anchors: HashMap::new(),
        fence: None,
        comment: false,
    };
    for line in body.lines() {
        cutter.line(line);
    }
    cutter.close();
    cutter.page
}

/// The lines between a first and a next `---`, and what comes after them.
fn front_matter(text: &str) -> (Option<&str>, &str) {
    let Some(rest) = text.strip_prefix("---\n") else {
        return (None, text);
    };
    match rest.split_once("\n---\n") {
        Some((front, body)) => (Some(front), body),
        None => match rest.strip_suffix("\n---") {
            Some(front) => (Some(front), ""),
            None => (None, text),
        },
    }
}

fn title(front: &str) -> Option<String> {
    let value = front.lines().find_map(|line| line.strip_prefix("title:"))?.trim();
    let quoted = |quote: char| value.strip_prefix(quote)?.strip_suffix(quote);
    let value = quoted('"').or_else(|| quoted('\'')).unwrap_or(value).trim();
    (!value.is_empty()).then(|| value.to_owned())
}

struct Cutter {
    page: Page,
    open: Section,
    /// How often each anchor was there: the next one of the same name has a number.
    anchors: HashMap<String, usize>,
    /// The fence that a block of code ends with.
    fence: Option<(char, usize)>,
    /// Within a comment?
    comment: bool,
}

impl Cutter {
    fn line(&mut self, line: &str) {
        if let Some((sign, length)) = self.fence {
            if fence(line)
                .is_some_and(|(other, found, rest)| other == sign && found >= length && rest.is_empty())
            {
                self.fence = None;
            }
            return self.keep(line);
        }
        if self.comment {
            self.comment = !line.contains("-->");
            return;
        }
        let trimmed = line.trim();
        if let Some(comment) = trimmed.strip_prefix("<!--") {
            self.comment = !comment.contains("-->");
            return;
        }
        // What the documentation's site puts a box or tabs around.
        if trimmed.starts_with("{{<") && trimmed.ends_with(">}}") {
            return;
        }
        if let Some((sign, length, _)) = fence(line) {
            self.fence = Some((sign, length));
            return self.keep(line);
        }
        match heading(line) {
            Some((1, text)) if self.page.title.is_none() => self.page.title = Some(text.0),
            Some((level, (text, anchor))) if level <= DEEPEST => {
                self.close();
                self.open.anchor = self.anchor(anchor.unwrap_or_else(|| slug(&text)));
                self.open.heading = text;
            }
            _ => self.keep(line),
        }
    }

    fn keep(&mut self, line: &str) {
        self.open.content.push_str(line);
        self.open.content.push('\n');
    }

    fn anchor(&mut self, name: String) -> String {
        let times = self.anchors.entry(name.clone()).or_default();
        *times += 1;
        match *times {
            1 => name,
            times => format!("{name}-{}", times - 1),
        }
    }

    /// Ends the section under way, if it says anything.
    fn close(&mut self) {
        let section = std::mem::take(&mut self.open);
        for content in pieces(section.content.trim()) {
            self.page.sections.push(Section {
                heading: section.heading.clone(),
                anchor: section.anchor.clone(),
                content: content.to_owned(),
            });
        }
    }
}

/// A run of at least three backticks or tildes, and what follows it.
fn fence(line: &str) -> Option<(char, usize, &str)> {
    let line = line.trim();
    let sign = line.chars().next().filter(|sign| matches!(sign, '`' | '~'))?;
    let rest = line.trim_start_matches(sign);
    let length = line.len() - rest.len();
    (length >= 3).then_some((sign, length, rest.trim()))
}

/// The level of a heading with its text and the anchor it names, `{#name}`.
fn heading(line: &str) -> Option<(usize, (String, Option<String>))> {
    let rest = line.trim_start_matches('#');
    let level = line.len() - rest.len();
    if !(1..=6).contains(&level) || !rest.starts_with([' ', '\t']) {
        return None;
    }
    let text = rest.trim().trim_end_matches('#').trim_end();
    let (text, anchor) = match text.strip_suffix('}').and_then(|text| text.rsplit_once("{#")) {
        Some((text, anchor)) => (text.trim_end(), Some(anchor.to_owned())),
        None => (text, None),
    };
    let text = text.replace(['`', '*'], "");
    (!text.is_empty()).then_some((level, (text, anchor)))
}

/// The anchor that GitLab's site makes of a heading.
fn slug(heading: &str) -> String {
    let mut slug = String::with_capacity(heading.len());
    for sign in heading.to_lowercase().chars() {
        if sign.is_alphanumeric() || sign == '_' {
            slug.push(sign);
        } else if matches!(sign, ' ' | '-') && !slug.ends_with('-') {
            slug.push('-');
        }
    }
    slug.trim_matches('-').to_owned()
}

/// A text in pieces of at most [`LONGEST`] bytes: between paragraphs, else between lines, else anywhere.
fn pieces(mut text: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    while text.len() > LONGEST {
        let most = &text[..text.floor_char_boundary(LONGEST)];
        let end = most
            .rfind("\n\n")
            .filter(|end| *end > 0)
            .or_else(|| most.rfind('\n').filter(|end| *end > 0))
            .unwrap_or(most.len());
        let piece = text[..end].trim_end();
        if !piece.is_empty() {
            pieces.push(piece);
        }
        text = text[end..].trim_start_matches('\n');
    }
    if !text.trim().is_empty() {
        pieces.push(text);
    }
    pieces
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headings(page: &Page) -> Vec<(&str, &str)> {
        page.sections
            .iter()
            .map(|section| (section.heading.as_str(), section.anchor.as_str()))
            .collect()
    }

    #[test]
    fn a_page_is_cut_at_its_headings_and_titled_by_its_front_matter() {
        let page = cut(
            "---\nstage: Create\ntitle: \"Merge requests\"\n---\n\n<!-- vale off -->\nIntro.\n\n## Create `one`\n\nStep.\n\n\
             #### Deep\n\nStill.\n\n### Create one\n\nOther.\n\n## Empty\n\n## Named {#here} \n\nText.\n",
        );
        assert_eq!(page.title.as_deref(), Some("Merge requests"));
        assert_eq!(
            headings(&page),
            [
                ("", ""),
                ("Create one", "create-one"),
                ("Create one", "create-one-1"),
                ("Named", "here")
            ]
        );
        assert_eq!(page.sections[0].content, "Intro.");
        assert_eq!(page.sections[1].content, "Step.\n\n#### Deep\n\nStill.");
    }

    #[test]
    fn a_first_heading_is_the_title_and_code_has_no_headings() {
        let page =
            cut("# GitLab CI/CD & more!\n\n```shell\n# a comment\n~~~\n## still code\n```\n\n## Next\n\nx\n");
        assert_eq!(page.title.as_deref(), Some("GitLab CI/CD & more!"));
        assert_eq!(headings(&page), [("", ""), ("Next", "next")]);
        assert!(page.sections[0].content.contains("## still code"));
        assert_eq!(slug("GitLab CI/CD & more!"), "gitlab-cicd-more");
    }

    #[test]
    fn what_only_the_site_or_nobody_reads_is_left_out() {
        let page = cut(
            "{{< details >}}\n- Tier: Free\n{{< /details >}}\n<!-- one\ntwo -->\nthree\n---\nno front matter",
        );
        assert_eq!(
            page.sections[0].content,
            "- Tier: Free\nthree\n---\nno front matter"
        );
        assert_eq!(cut("").sections, []);
        assert_eq!(
            cut("---\ntitle: x\n---"),
            Page {
                title: Some("x".into()),
                sections: Vec::new()
            }
        );
    }

    #[test]
    fn a_long_section_is_cut_between_its_paragraphs() {
        let paragraph = "word ".repeat(700);
        let page = cut(&format!("## Long\n\n{paragraph}\n\n{paragraph}\n\n{paragraph}\n"));
        assert_eq!(page.sections.len(), 3);
        assert!(
            page.sections
                .iter()
                .all(|section| section.content.len() <= LONGEST)
        );
        assert!(page.sections.iter().all(|section| section.anchor == "long"));
    }

    proptest! {
        #[test]
        fn any_text_is_cut_into_sections_that_postgres_takes(
            lines in prop::collection::vec(
                prop_oneof![
                    "(?s).{0,40}",
                    "#{0,7}[ \t]?.{0,20}",
                    "[`~]{2,5}[a-z]{0,5}",
                    Just("---".to_owned()),
                    Just("title: '".to_owned()),
                    Just("<!--".to_owned()),
                    Just("x-->".to_owned()),
                    Just("{{< x >}}".to_owned()),
                    "[ß-ÿ]{0,9000}",
                ],
                0..30,
            ),
            end in prop_oneof![Just("\n"), Just("\r\n"), Just("\r")],
        ) {
            for section in cut(&lines.join(end)).sections {
                prop_assert!(section.content.len() <= LONGEST);
                prop_assert!(!section.content.trim().is_empty());
                prop_assert!(!section.content.contains('\0') && !section.heading.contains('\0'));
            }
        }
    }
}
