//! What a model's family means for prompts.

use super::template::{Message, Role};

/// The family whose templates serve every other.
pub(super) const BASE: &str = "base";

/// Families that read another's prompts when they have none of their own.
const PARENTS: [(&str, &str); 4] = [
    ("mixtral", "mistral"),
    ("codestral", "mistral"),
    ("codellama", "codegemma"),
    ("deepseekcoder", "codegemma"),
];

/// Families whose chat templates know no system message and want user and
/// assistant in turns.
const STRICT_TURNS: [&str; 5] = ["mistral", "mixtral", "codestral", "codegemma", "gemma"];

/// The families whose templates serve `family` (such as `mixtral_8x7b`), best first.
pub(super) fn chain(family: &str) -> impl Iterator<Item = &str> {
    let own = prompt_family(family);
    let parent = PARENTS.iter().find(|(name, _)| *name == own);
    [Some(own), parent.map(|(_, parent)| *parent), Some(BASE)]
        .into_iter()
        .flatten()
}

/// Rewrites a conversation for `family`: where it needs strict turns, system
/// text moves into the first user message and neighbours of one role are joined.
pub(super) fn arrange(family: &str, messages: Vec<Message>) -> Vec<Message> {
    if !STRICT_TURNS.contains(&prompt_family(family)) {
        return messages;
    }
    let mut turns: Vec<Message> = Vec::with_capacity(messages.len());
    for mut message in messages {
        if message.role == Role::System {
            message.role = Role::User;
        }
        match turns.last_mut() {
            Some(last) if last.role == message.role && last.call.is_none() && message.call.is_none() => {
                last.content.push_str("\n\n");
                last.content.push_str(&message.content);
            }
            _ => turns.push(message),
        }
    }
    turns
}

/// The part of a family's name that picks prompts.
pub(super) fn prompt_family(family: &str) -> &str {
    family.split('_').next().unwrap_or(family)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_without_prompts_reads_its_parents() {
        assert!(chain("mixtral_8x22b").eq(["mixtral", "mistral", "base"]));
        assert!(chain("codellama").eq(["codellama", "codegemma", "base"]));
        assert!(chain("codegemma_2b").eq(["codegemma", "base"]));
        assert!(chain("general").eq(["general", "base"]));
    }

    #[test]
    fn a_family_with_strict_turns_gets_no_system_message() {
        let talk = || {
            vec![
                Message::new(Role::System, "rules"),
                Message::new(Role::User, "one"),
                Message::new(Role::User, "two"),
                Message::new(Role::Assistant, "three"),
            ]
        };
        assert_eq!(
            arrange("mistral_7b", talk()),
            [
                Message::new(Role::User, "rules\n\none\n\ntwo"),
                Message::new(Role::Assistant, "three")
            ]
        );
        assert_eq!(arrange("llama3", talk()), talk());
    }
}
