//! A chat request: the conversation and what came along with it.

use std::borrow::Cow;

use minijinja::{Value, context};
use serde_json::json;

use super::calls;
use crate::api::error::ApiError;
use crate::api::fields::Fields;
use crate::prompt::{Call, Message, Role, ToolCall, budget};

const MAX_MESSAGES: usize = 1000;
const MAX_TEXT: usize = 400_000;
const MAX_NAME: usize = 1024;
const MAX_ATTACHMENTS: usize = 1000;
const MAX_STEPS: usize = 100;
/// Bytes of a step beside what it says, in either form.
const STEP_BYTES: usize = 60;
const PAGE_TYPES: [&str; 6] = ["issue", "epic", "merge_request", "commit", "work_item", "build"];
const CATEGORIES: [&str; 12] = [
    "file",
    "snippet",
    "merge_request",
    "issue",
    "dependency",
    "local_git",
    "terminal",
    "repository",
    "directory",
    "os_information",
    "user_rule",
    "agent_user_environment",
];

/// The category for which GitLab has no scope, so that no token could hold one.
const UNSCOPED: &str = "os_information";

/// The page that the user looks at.
#[derive(Debug, Clone)]
pub(super) struct Page<'a> {
    kind: Cow<'a, str>,
    title: Option<Cow<'a, str>>,
    content: Option<Cow<'a, str>>,
}

/// The file that is open in the editor.
#[derive(Debug, Clone)]
pub(super) struct CurrentFile<'a> {
    path: Cow<'a, str>,
    text: Cow<'a, str>,
    selected: bool,
}

/// Something that the user attached.
#[derive(Debug, Clone)]
pub(super) struct Attachment<'a> {
    category: Cow<'a, str>,
    id: Option<Cow<'a, str>>,
    content: Option<Cow<'a, str>>,
}

/// A part of the conversation.
#[derive(Debug, Clone)]
enum Turn {
    /// Somebody said something.
    Said(Message),
    /// GitLab ran a tool for the model.
    Step {
        thought: String,
        tool: String,
        input: String,
        observation: String,
    },
}

impl Turn {
    fn bytes(&self) -> usize {
        match self {
            Self::Said(message) => message.content.len(),
            Self::Step {
                thought,
                tool,
                input,
                observation,
            } => STEP_BYTES + thought.len() + tool.len() + input.len() + observation.len(),
        }
    }
}

/// A chat request.
#[derive(Debug, Clone, Default)]
pub(super) struct Question<'a> {
    /// The conversation.
    turns: Vec<Turn>,
    /// From the newest user message that has one.
    pub(super) page: Option<Page<'a>>,
    /// From the newest user message that has one.
    pub(super) current_file: Option<CurrentFile<'a>>,
    /// From the newest user message that has any.
    pub(super) attachments: Vec<Attachment<'a>>,
    /// Kinds of things that the user's plan does not show.
    pub(super) unavailable_resources: Vec<Cow<'a, str>>,
    /// Categories of all attachments, of older messages too.
    categories: Vec<Cow<'a, str>>,
    /// Where the newest user message stands among the turns.
    newest: usize,
}

impl<'a> Question<'a> {
    /// Reads and checks the body.
    pub(super) fn parse(fields: &Fields<'a>) -> Result<Self, ApiError> {
        let mut question = Self {
            unavailable_resources: fields.texts("unavailable_resources", MAX_ATTACHMENTS)?,
            ..Self::default()
        };
        let messages = fields.objects("messages", MAX_MESSAGES)?;
        if messages.is_empty() {
            return Err(fields.required("messages"));
        }
        for message in &messages {
            question.read_message(message)?;
        }
        let legacy = fields
            .object("options")?
            .map(|options| options.object("agent_scratchpad"));
        if let Some(scratchpad) = legacy.transpose()?.flatten() {
            for step in scratchpad.objects("steps", MAX_STEPS)? {
                question.push_step(&step, &step)?;
            }
        }
        Ok(question)
    }

    /// The conversation, with tool calls as text that the model reads and writes.
    pub(super) fn as_text(&self) -> Vec<Message> {
        let mut messages = Vec::with_capacity(self.turns.len());
        for turn in &self.turns {
            match turn {
                Turn::Said(message) => messages.push(message.clone()),
                Turn::Step {
                    thought,
                    tool,
                    input,
                    observation,
                } => {
                    let call = format!("Thought: {thought}\nAction: {tool}\nAction Input: {input}");
                    messages.push(Message::new(Role::Assistant, call));
                    messages.push(Message::new(Role::User, format!("Observation: {observation}")));
                }
            }
        }
        messages
    }

    /// The conversation, with tool calls as data.
    pub(super) fn as_calls(&self) -> Vec<Message> {
        let mut messages = Vec::with_capacity(self.turns.len());
        for (number, turn) in self.turns.iter().enumerate() {
            match turn {
                Turn::Said(message) => messages.push(message.clone()),
                Turn::Step {
                    thought,
                    tool,
                    input,
                    observation,
                } => {
                    let arguments = json!({(calls::ARGUMENT): input}).to_string();
                    messages.push(Message {
                        call: Some(Call::Made {
                            tool_calls: [ToolCall::new(number, tool, arguments)],
                        }),
                        ..Message::new(Role::Assistant, thought)
                    });
                    messages.push(Message {
                        call: Some(Call::Answered {
                            tool_call_id: ToolCall::id(number),
                        }),
                        ..Message::new(Role::Tool, observation)
                    });
                }
            }
        }
        messages
    }

    /// Categories of everything attached, for which scopes are asked.
    pub(super) fn categories(&self) -> impl Iterator<Item = &str> {
        let categories = self.categories.iter().map(Cow::as_ref);
        categories.filter(|category| *category != UNSCOPED)
    }

    /// Leaves out what `room` bytes cannot hold: old messages first, then
    /// attachments, then the end of the open file. The newest question and the
    /// tool calls after it stay.
    pub(super) fn fit(&mut self, room: usize) {
        let newest: usize = self.turns[self.newest..].iter().map(Turn::bytes).sum();
        let page = self.page.as_ref().and_then(|page| page.content.as_ref());
        let mut left = room
            .saturating_sub(newest)
            .saturating_sub(page.map_or(0, |text| text.len()));
        if let Some(file) = &mut self.current_file {
            let end = file.text.floor_char_boundary(left);
            if end < file.text.len() {
                file.text = Cow::Owned(file.text[..end].to_owned());
            }
            left -= end;
        }
        let attachments = std::mem::take(&mut self.attachments);
        self.attachments = budget::whole_items(left, attachments, Attachment::bytes);
        left -= self.attachments.iter().map(Attachment::bytes).sum::<usize>();
        let mut from = self.newest;
        while let Some(before) = from.checked_sub(1) {
            let Some(rest) = left.checked_sub(self.turns[before].bytes()) else {
                break;
            };
            (left, from) = (rest, before);
        }
        self.turns.drain(..from);
        self.newest -= from;
    }

    fn read_message(&mut self, message: &Fields<'a>) -> Result<(), ApiError> {
        let role = match &*message.required_text("role", MAX_NAME)? {
            "system" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            _ => return Err(message.invalid("role", "has to be system, user or assistant")),
        };
        if role != Role::Assistant && message.raw("agent_scratchpad").is_some() {
            return Err(ApiError::Senseless(
                "agent_scratchpad can only be given for the assistant role",
            ));
        }
        if let Some(content) = message.text("content", MAX_TEXT)?.filter(|text| !text.is_empty()) {
            if role == Role::User {
                self.newest = self.turns.len();
            }
            self.turns.push(Turn::Said(Message::new(role, content)));
        }
        for step in message.objects("agent_scratchpad", MAX_STEPS)? {
            self.push_step(&step.required_object("action")?, &step)?;
        }
        self.read_company(message, role)
    }

    /// What came along with a message.
    fn read_company(&mut self, message: &Fields<'a>, role: Role) -> Result<(), ApiError> {
        let page = message.object("context")?.map(|page| Page::parse(&page));
        let file = message
            .object("current_file")?
            .map(|file| CurrentFile::parse(&file));
        let (page, file) = (page.transpose()?, file.transpose()?);
        let items = message.objects("additional_context", MAX_ATTACHMENTS)?;
        let items = items
            .iter()
            .map(Attachment::parse)
            .collect::<Result<Vec<_>, _>>()?;
        for item in &items {
            if !self.categories.contains(&item.category) {
                self.categories.push(item.category.clone());
            }
        }
        if role == Role::User {
            self.page = page.or(self.page.take());
            self.current_file = file.or(self.current_file.take());
            if !items.is_empty() {
                self.attachments = items;
            }
        }
        Ok(())
    }

    /// One tool call of this question and its result.
    fn push_step(&mut self, action: &Fields<'a>, step: &Fields<'a>) -> Result<(), ApiError> {
        let text = |fields: &Fields<'a>, name| {
            let text = fields.text(name, MAX_TEXT)?;
            Ok::<_, ApiError>(text.map(Cow::into_owned).unwrap_or_default())
        };
        self.turns.push(Turn::Step {
            thought: text(action, "thought")?,
            tool: action.required_text("tool", MAX_NAME)?.into_owned(),
            input: text(action, "tool_input")?,
            observation: text(step, "observation")?,
        });
        Ok(())
    }
}

impl<'a> Page<'a> {
    fn parse(fields: &Fields<'a>) -> Result<Self, ApiError> {
        let kind = fields.required_text("type", MAX_NAME)?;
        if !PAGE_TYPES.contains(&&*kind) {
            return Err(fields.invalid("type", format!("has to be one of {}", PAGE_TYPES.join(", "))));
        }
        Ok(Self {
            kind,
            title: fields.text("title", MAX_TEXT)?,
            content: fields.text("content", MAX_TEXT)?,
        })
    }

    /// As the template takes it.
    pub(super) fn value(&self) -> Value {
        context! { type => &*self.kind, title => self.title.as_deref(), content => self.content.as_deref() }
    }
}

impl<'a> CurrentFile<'a> {
    fn parse(fields: &Fields<'a>) -> Result<Self, ApiError> {
        Ok(Self {
            path: fields.required_text("file_path", MAX_NAME)?,
            text: fields.required_text("data", MAX_TEXT)?,
            selected: fields.flag("selected_code")?,
        })
    }

    /// As the template takes it.
    pub(super) fn value(&self) -> Value {
        context! { file_path => &*self.path, data => &*self.text, selected_code => self.selected }
    }
}

impl<'a> Attachment<'a> {
    fn parse(fields: &Fields<'a>) -> Result<Self, ApiError> {
        let category = fields.required_text("category", MAX_NAME)?;
        if !CATEGORIES.contains(&&*category) {
            return Err(fields.invalid("category", format!("has to be one of {}", CATEGORIES.join(", "))));
        }
        fields.object("metadata")?;
        Ok(Self {
            category,
            id: fields.text("id", MAX_NAME)?,
            content: fields.text("content", MAX_TEXT)?,
        })
    }

    /// As the template takes it.
    pub(super) fn value(&self) -> Value {
        context! { category => &*self.category, id => self.id.as_deref(), content => self.content.as_deref() }
    }

    fn bytes(&self) -> usize {
        let text = |text: &Option<Cow<'_, str>>| text.as_ref().map_or(0, |text| text.len());
        text(&self.id) + text(&self.content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(body: &str) -> Result<Question<'_>, ApiError> {
        Question::parse(&Fields::parse(body.as_bytes()).expect("an object"))
    }

    #[test]
    fn earlier_tool_calls_read_as_the_model_wrote_them() {
        let new = r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":null,"agent_scratchpad":
            [{"action":{"type":"action","thought":"t","tool":"issue_reader","tool_input":"i"},"observation":"o"}]}]}"#;
        let legacy = r#"{"messages":[{"role":"user","content":"q"}],"options":{"agent_scratchpad":{"agent_type":"react",
            "steps":[{"thought":"t","tool":"issue_reader","tool_input":"i","observation":"o"}]}}}"#;
        for body in [new, legacy] {
            let mut question = question(body).expect("parses");
            question.fit(0);
            assert_eq!(
                question.as_text(),
                [
                    Message::new(Role::User, "q"),
                    Message::new(
                        Role::Assistant,
                        "Thought: t\nAction: issue_reader\nAction Input: i"
                    ),
                    Message::new(Role::User, "Observation: o"),
                ]
            );
        }
    }

    #[test]
    fn steps_are_data_where_the_model_calls_tools_by_itself() {
        let body = r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":null,"agent_scratchpad":[
            {"action":{"thought":"t","tool":"issue_reader","tool_input":"i"},"observation":"o"}]}]}"#;
        let messages = serde_json::to_value(question(body).expect("parses").as_calls()).expect("JSON");
        let function = json!({"name": "issue_reader", "arguments": "{\"question\":\"i\"}"});
        let call = json!({"id": "call00001", "type": "function", "function": function});
        assert_eq!(
            messages,
            json!([
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": "t", "tool_calls": [call]},
                {"role": "tool", "content": "o", "tool_call_id": "call00001"},
            ])
        );
    }

    #[test]
    fn a_scratchpad_on_a_user_message_makes_no_sense() {
        let body = r#"{"messages":[{"role":"user","content":"q","agent_scratchpad":[]}]}"#;
        assert!(matches!(question(body), Err(ApiError::Senseless(_))));
    }

    #[test]
    fn what_came_along_is_taken_from_the_newest_user_message_that_has_it() {
        let body = r#"{"messages":[
            {"role":"user","content":"a","context":{"type":"issue","title":"old"},
             "additional_context":[{"category":"snippet","content":"s"}]},
            {"role":"assistant","content":"b"},
            {"role":"user","content":"c","context":{"type":"epic","title":"new"},"x":1}]}"#;
        let question = question(body).expect("parses");
        assert_eq!(question.page.expect("a page").title.as_deref(), Some("new"));
        assert_eq!(question.attachments.len(), 1);
        assert_eq!(question.categories, ["snippet"]);
    }

    #[test]
    fn bad_fields_are_named() {
        for (body, path) in [
            (r#"{"messages":[]}"#, "messages"),
            (r#"{"messages":[{"role":"tool"}]}"#, "messages.0.role"),
            (
                r#"{"messages":[{"role":"user","content":1}]}"#,
                "messages.0.content",
            ),
            (
                r#"{"messages":[{"role":"user","context":{"type":"x"}}]}"#,
                "messages.0.context.type",
            ),
            (
                r#"{"messages":[{"role":"user","additional_context":[{"category":"x"}]}]}"#,
                "messages.0.additional_context.0.category",
            ),
        ] {
            let problem = question(body).expect_err(path).to_string();
            assert!(problem.starts_with(&format!("{path}: ")), "{problem}");
        }
    }

    #[test]
    fn a_small_window_keeps_the_newest_question() {
        let body = r#"{"messages":[{"role":"user","content":"0123456789"},{"role":"assistant","content":"abc"},
            {"role":"user","content":"now?","current_file":{"file_path":"f","data":"xxxxxxxxxx","selected_code":true}}]}"#;
        let fitted = |room| {
            let mut question = question(body).expect("parses");
            question.fit(room);
            (
                question.turns.len(),
                question.current_file.expect("a file").text.len(),
            )
        };
        assert_eq!(fitted(1000), (3, 10));
        assert_eq!(fitted(17), (2, 10), "the oldest message goes first");
        assert_eq!(fitted(9), (1, 5));
        assert_eq!(fitted(0), (1, 0));
    }
}
