//! Answers of prompts whose form Rails reads; what has another form is lost without a word, as it is there.

use serde_json::Value;

/// A review of a merge request.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Review {
    /// What is said of all of it.
    pub summary: Option<String>,
    /// Each with its place.
    pub comments: Vec<Comment>,
}

/// A comment on a line.
#[derive(Debug, PartialEq, Eq)]
pub struct Comment {
    /// The file's path.
    pub file: String,
    /// The line before the change.
    pub old_line: Option<u32>,
    /// The line after it.
    pub new_line: Option<u32>,
    /// The words, proposals taken out.
    pub text: String,
    /// What is there, and what is proposed in its place.
    pub proposals: Vec<(String, String)>,
}

/// What became of a vulnerability.
#[derive(Debug, PartialEq, Eq)]
pub enum Resolution {
    /// Pairs of what is there and what comes in its place.
    Fix(Vec<(String, String)>),
    /// Nothing to be fixed: also what an answer without a fix is taken for.
    FalsePositive,
}

/// The last review in `text`. A comment needs a file and a line, and its tag the beginning of a line.
pub fn review(text: &str) -> Option<Review> {
    let inner = last_block(text, "review")?;
    let mut comments = Vec::new();
    let mut rest = inner;
    while let Some(at) = tag_at_line_start(rest, "<comment ") {
        let Some((attributes, after)) = rest[at..].split_once('>') else {
            break;
        };
        let Some((body, after)) = after.split_once("</comment>") else {
            break;
        };
        rest = after;
        let number = |name: &str| attribute(attributes, name).and_then(|value| value.parse().ok());
        let (old_line, new_line) = (number("old_line"), number("new_line"));
        let Some(file) = attribute(attributes, "file").filter(|file| !file.is_empty()) else {
            continue;
        };
        if (old_line.is_none() && new_line.is_none()) || !body.starts_with('\n') {
            continue;
        }
        comments.push(comment(file, (old_line, new_line), body));
    }
    Some(Review {
        summary: last_block(inner, "summary").map(|text| text.trim().to_owned()),
        comments,
    })
}

fn comment(file: String, (old_line, new_line): (Option<u32>, Option<u32>), body: &str) -> Comment {
    let (mut text, mut proposals, mut rest) = (String::new(), Vec::new(), body);
    while let Some((before, after)) = rest.split_once("<from>") {
        let pair = after
            .split_once("</from>")
            .and_then(|(from, after)| Some((from, after.split_once("<to>")?.1.split_once("</to>")?)));
        let Some((from, (to, after))) = pair else { break };
        text += before;
        proposals.push((
            from.trim_matches('\n').to_owned(),
            to.trim_matches('\n').to_owned(),
        ));
        rest = after;
    }
    text += rest;
    Comment {
        file,
        old_line,
        new_line,
        text: text.trim().to_owned(),
        proposals,
    }
}

/// What is to be done about a vulnerability.
pub fn resolution(text: &str) -> Resolution {
    let Some((_, fixed)) = text.split_once("<fixed_code>\n") else {
        return Resolution::FalsePositive;
    };
    let Some((mut rest, _)) = fixed.split_once("</fixed_code>") else {
        return Resolution::FalsePositive;
    };
    let mut pairs = Vec::new();
    while let Some(((old, new), after)) = pair(rest) {
        pairs.push((
            old.trim_matches('\n').to_owned(),
            new.trim_matches('\n').to_owned(),
        ));
        rest = after;
    }
    Resolution::Fix(pairs)
}

fn pair(text: &str) -> Option<((&str, &str), &str)> {
    let (_, text) = text.split_once("<old_code>")?;
    let (old, text) = text.split_once("</old_code>")?;
    let (_, text) = text.split_once("<new_code>")?;
    let (new, text) = text.split_once("</new_code>")?;
    Some(((old, new), text))
}

/// What a reader was to find: the type of the identifier, and the identifier. An answer that only goes on with the
/// object that Rails would have begun counts too.
pub fn resource(text: &str) -> Option<(String, String)> {
    const KEY: &str = "\"ResourceIdentifierType\"";
    let mut text = unfenced(text).to_owned();
    if !text.contains(KEY) {
        text = format!("{{{KEY}: \"{text}");
    }
    let object: Value = serde_json::from_str(text.trim()).ok()?;
    let kind = object["ResourceIdentifierType"].as_str()?;
    let identifier = match &object["ResourceIdentifier"] {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    let known = ["current", "iid", "url", "reference"].contains(&kind);
    known.then(|| (kind.to_owned(), identifier))
}

/// An answer from the documentation, and the ids of the pages that it used.
pub fn documentation(text: &str) -> (String, Vec<String>) {
    let Some((answer, ids)) = text.split_once("ATTRS:") else {
        return (text.trim().to_owned(), Vec::new());
    };
    let ids = ids.split(|c: char| c.is_whitespace() || c == ',');
    let ids = ids
        .filter_map(|id| id.strip_prefix("CNT-IDX-"))
        .map(str::to_owned);
    (answer.trim().to_owned(), ids.collect())
}

/// A question's category and detailed category.
pub fn category(text: &str) -> Option<(String, String)> {
    let object: Value = serde_json::from_str(text.trim()).ok()?;
    let word = |name: &str| object[name].as_str().map(str::to_owned);
    Some((word("category")?, word("detailed_category")?))
}

fn unfenced(text: &str) -> &str {
    let text = text.trim();
    let inner = text.strip_prefix("```json").or_else(|| text.strip_prefix("```"));
    inner
        .and_then(|inner| inner.strip_suffix("```"))
        .unwrap_or(text)
        .trim()
}

fn last_block<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (before, _) = text.rsplit_once(&format!("</{name}>"))?;
    before.rsplit_once(&format!("<{name}>")).map(|(_, inner)| inner)
}

fn tag_at_line_start(text: &str, tag: &str) -> Option<usize> {
    text.match_indices(tag)
        .map(|(at, _)| at)
        .find(|at| *at == 0 || text[..*at].ends_with('\n'))
}

fn attribute(tag: &str, name: &str) -> Option<String> {
    let (_, rest) = tag.split_once(&format!("{name}=\""))?;
    rest.split_once('"').map(|(value, _)| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_reviews_the_last_counts_and_comments_need_a_place() {
        let text = "<review>old</review>\n<review>\n<comment file=\"a.rb\" old_line=\"\" new_line=\"4\">\nShort.\n<from>\n  x\n\
                    </from>\n<to>\n  y\n</to>\n</comment>\n<comment file=\"a.rb\" old_line=\"\" new_line=\"\">\nnowhere\n</comment>\n\
                    in a line <comment file=\"b.rb\" new_line=\"1\">\nno\n</comment>\n<summary>Fine.</summary>\n</review>";
        let review = review(text).unwrap();
        assert_eq!(review.summary.as_deref(), Some("Fine."));
        let [comment] = review.comments.as_slice() else {
            panic!("{review:?}")
        };
        assert_eq!(
            (comment.file.as_str(), comment.old_line, comment.new_line),
            ("a.rb", None, Some(4))
        );
        assert_eq!(comment.text, "Short.");
        assert_eq!(comment.proposals, [("  x".to_owned(), "  y".to_owned())]);
    }

    #[test]
    fn a_vulnerability_without_a_fix_is_taken_for_none() {
        let fix = "<fixed_code>\n<old_code>\na\n</old_code>\n<new_code>\nb\n</new_code>\n</fixed_code>";
        assert_eq!(
            resolution(fix),
            Resolution::Fix(vec![("a".to_owned(), "b".to_owned())])
        );
        assert_eq!(resolution("It is fine."), Resolution::FalsePositive);
    }

    #[test]
    fn a_resource_may_be_fenced_or_begun_by_rails() {
        let iid = Some(("iid".to_owned(), "7".to_owned()));
        let object = r#"{"ResourceIdentifierType": "iid", "ResourceIdentifier": 7}"#;
        assert_eq!(resource(object), iid);
        assert_eq!(resource(&format!("```json\n{object}\n```")), iid);
        assert_eq!(resource(r#"iid", "ResourceIdentifier": "7"}"#), iid);
        assert_eq!(resource("issue 7"), None);
        assert_eq!(resource(&object.replace("iid", "guess")), None);
    }

    #[test]
    fn sources_follow_their_mark() {
        let (text, ids) = documentation("In the settings.\n\nATTRS: CNT-IDX-a1 CNT-IDX-b2 other");
        assert_eq!(
            (text.as_str(), ids),
            ("In the settings.", vec!["a1".to_owned(), "b2".to_owned()])
        );
        assert_eq!(documentation("No sources.").1, Vec::<String>::new());
    }

    #[test]
    fn a_category_is_an_object_alone() {
        let object = r#"{"category": "a", "detailed_category": "b"}"#;
        assert_eq!(category(object), Some(("a".to_owned(), "b".to_owned())));
        assert_eq!(category(&format!("Here: {object}")), None);
    }
}
