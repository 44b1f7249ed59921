//! A model's answer in the form that GitLab reads.
//!
//! GitLab parses the answers of many prompts, and a feature whose answer it
//! cannot parse fails without a word. Each prompt id has a [`Format`] here: what
//! can be repaired (fences, introductions, missing ends, a value of the wrong
//! type) is repaired, an answer that is right passes byte for byte, and one
//! that cannot be used is given the form in which GitLab does no harm with it,
//! or is refused where every form would claim something false. A stream holds
//! back what its format needs, no more. Knows neither HTTP nor how an answer is
//! wrapped; the handlers in [`crate::api`] call it.
//!
//! | format | held back in a stream | an answer beyond repair |
//! |---|---|---|
//! | code | the first line while it may be a fence or an introduction to one, the beginning of a line that may be a fence | passes |
//! | prose | the first line while it may be a wrapper or an introduction, fences that may end a wrapper | passes |
//! | sources | what may be the beginning of the list of sources, then the list | passes without sources |
//! | identifier | all (a line of JSON) | passes: GitLab asks again |
//! | categories | all | values that GitLab counts as invalid |
//! | temperature | all | lets the comment pass |
//! | intent | all (a word) | `agentic_chat`, where nothing happens |
//! | title, commands | all | passes |
//! | review, fixed code | all | refused: nothing found, or a false positive, would be a lie |

use std::borrow::Cow;

mod code;
mod commands;
mod fixed_code;
mod fold;
mod object;
mod prose;
mod review;
mod sources;
mod thinking;
mod word;

use code::Code;
use prose::Prose;
use sources::Sources;
pub use thinking::Thinking;

/// An answer from which nothing can be made that GitLab may be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the model's answer is not in the form that its prompt asks for")]
pub struct Unusable;

/// What is known of an answer's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// Did the output limit end it?
    pub cut: bool,
}

/// Repairs a whole answer.
type Repair = for<'a> fn(&'a str, End) -> Result<Cow<'a, str>, Unusable>;

/// The form of a prompt's answers.
#[derive(Debug, Clone, Copy)]
enum Format {
    /// Every byte counts.
    AsItIs,
    /// Markdown that may hold fences of its own, even at its beginning.
    Markdown,
    /// Markdown in which a fence around the whole is a mistake.
    Prose(prose::Wrappers),
    /// Markdown with the documents that it comes from.
    Sources,
    /// Something that is read as a whole.
    Whole(Repair),
}

impl Format {
    fn of(id: &str) -> Self {
        use prose::Wrappers::{Any, Markdown};
        match id {
            "model_configuration/check" => Self::AsItIs,
            "chat/documentation_search" => Self::Sources,
            "chat/explain_code"
            | "chat/explain_vulnerability"
            | "chat/summarize_comments"
            | "chat/troubleshoot_job" => Self::Prose(Markdown),
            "fill_in_merge_request_template"
            | "generate_commit_message"
            | "generate_description"
            | "summarize_duo_workflow"
            | "summarize_new_merge_request"
            | "summarize_review" => Self::Prose(Any),
            "categorize_question" => Self::Whole(object::categories),
            "measure_comment_temperature" => Self::Whole(object::temperature),
            "classify_code_review_mention_intent" => Self::Whole(word::intent),
            "generate_session_title" => Self::Whole(word::title),
            "glab_ask_git_command" => Self::Whole(commands::repair),
            "review_merge_request" => Self::Whole(review::repair),
            "resolve_vulnerability" => Self::Whole(fixed_code::repair),
            _ if id.starts_with("chat/") && id.ends_with("_reader") => Self::Whole(object::identifier),
            _ => Self::Markdown,
        }
    }
}

/// Gives one answer its form, piece by piece.
#[derive(Debug)]
pub struct Formatter {
    thinking: Option<Thinking>,
    shape: Shape,
}

#[derive(Debug)]
enum Shape {
    Flowing,
    Code(Code),
    Prose(Prose),
    Sources(Sources),
    Held(String, Repair),
}

impl Formatter {
    /// For an answer to the prompt `id`. `sources` are the ids of the documents
    /// that the prompt was given, as the model was shown them.
    #[must_use]
    pub fn new(id: &str, sources: Vec<String>) -> Self {
        let format = Format::of(id);
        let shape = match format {
            Format::AsItIs | Format::Markdown => Shape::Flowing,
            Format::Prose(wrappers) => Shape::Prose(Prose::new(wrappers)),
            Format::Sources => Shape::Sources(Sources::new(sources)),
            Format::Whole(repair) => Shape::Held(String::new(), repair),
        };
        let thinking = (!matches!(format, Format::AsItIs)).then(Thinking::default);
        Self { thinking, shape }
    }

    /// For code that goes into a file of `language`, GitLab's name for it.
    #[must_use]
    pub fn code(language: &str) -> Self {
        let shape = match language {
            // Its fences are its own.
            "markdown" => Shape::Prose(Prose::new(prose::Wrappers::Markdown)),
            _ => Shape::Code(Code::default()),
        };
        Self {
            thinking: Some(Thinking::default()),
            shape,
        }
    }

    /// What can be passed on after `text` has come.
    #[must_use]
    pub fn push<'a>(&mut self, text: &'a str) -> Cow<'a, str> {
        let text = match &mut self.thinking {
            Some(thinking) => thinking.push(text),
            None => Cow::Borrowed(text),
        };
        match &mut self.shape {
            Shape::Flowing => text,
            Shape::Code(code) => code.push(&text).into(),
            Shape::Prose(prose) => prose.push(&text).into(),
            Shape::Sources(sources) => sources.push(&text).into(),
            Shape::Held(held, _) => {
                held.push_str(&text);
                Cow::Borrowed("")
            }
        }
    }

    /// What was held back until the end.
    ///
    /// # Errors
    /// Nothing can be made of the answer.
    pub fn finish(&mut self, end: End) -> Result<String, Unusable> {
        let rest = match &mut self.thinking {
            Some(thinking) => thinking.finish()?,
            None => String::new(),
        };
        match &mut self.shape {
            Shape::Flowing => Ok(rest),
            Shape::Code(code) => Ok(code.push(&rest) + &code.finish()),
            Shape::Prose(prose) => Ok(prose.push(&rest) + &prose.finish()),
            Shape::Sources(sources) => Ok(sources.push(&rest) + &sources.finish()),
            Shape::Held(held, repair) => {
                held.push_str(&rest);
                repair(held, end).map(Cow::into_owned)
            }
        }
    }
}

/// A whole answer in its form.
///
/// # Errors
/// Nothing can be made of it.
pub fn whole(mut formatter: Formatter, text: String, end: End) -> Result<String, Unusable> {
    if let (None, Shape::Flowing) = (&formatter.thinking, &formatter.shape) {
        return Ok(text);
    }
    let mut out = formatter.push(&text).into_owned();
    out.push_str(&formatter.finish(end)?);
    Ok(out)
}

#[cfg(test)]
mod tests;
