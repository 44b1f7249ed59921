//! Tools that GitLab can run for the model between two turns.

use serde_json::json;

use super::calls::ARGUMENT;
use crate::api::version;
use crate::caller::Caller;

/// One tool. Its name, in camel case, is GitLab's own for it.
#[derive(Debug)]
pub(super) struct Tool {
    pub(super) name: &'static str,
    pub(super) description: &'static str,
    pub(super) example: &'static str,
    scope: &'static str,
    /// The first GitLab that knows it.
    since: Option<[u32; 3]>,
}

const READERS_SINCE: Option<[u32; 3]> = Some([17, 5, 0]);

static TOOLS: [Tool; 7] = [
    Tool {
        name: "issue_reader",
        description: "Reads one issue: title, description, comments, labels, state, people, dates. \
                      Input: the user's words that say which issue, with number or link if known.",
        example: "Thought: I need the text of issue 42.\nAction: issue_reader\n\
                  Action Input: Summarize issue #42",
        scope: "ask_issue",
        since: None,
    },
    Tool {
        name: "work_item_reader",
        description: "Reads one work item that is not an issue or an epic, such as a task or an objective. \
                      Input: the user's words that say which work item.",
        example: "Thought: I need the text of the task.\nAction: work_item_reader\n\
                  Action Input: What is open in task 7?",
        scope: "ask_work_item",
        since: None,
    },
    Tool {
        name: "epic_reader",
        description: "Reads one epic: title, description, comments, labels, state, dates. \
                      Input: the user's words that say which epic.",
        example: "Thought: I need the text of epic 3.\nAction: epic_reader\n\
                  Action Input: Who wrote epic &3?",
        scope: "ask_epic",
        since: None,
    },
    Tool {
        name: "merge_request_reader",
        description: "Reads one merge request: title, description, comments, changes, reviewers, state. \
                      Input: the user's words that say which merge request.",
        example: "Thought: I need merge request 5.\nAction: merge_request_reader\n\
                  Action Input: What does !5 change?",
        scope: "ask_merge_request",
        since: READERS_SINCE,
    },
    Tool {
        name: "commit_reader",
        description: "Reads one commit: message, author, changes. \
                      Input: the user's words that say which commit.",
        example: "Thought: I need the commit.\nAction: commit_reader\n\
                  Action Input: Why was this commit made?",
        scope: "ask_commit",
        since: READERS_SINCE,
    },
    Tool {
        name: "build_reader",
        description: "Reads one CI/CD job: status, log, stage, duration. \
                      Input: the user's words that say which job.",
        example: "Thought: I need the log of the job.\nAction: build_reader\n\
                  Action Input: Why did this job fail?",
        scope: "ask_build",
        since: READERS_SINCE,
    },
    Tool {
        name: "gitlab_documentation",
        description: "Searches GitLab's documentation and answers questions on how GitLab works and is used. \
                      Input: the question as a whole sentence.",
        example: "Thought: The documentation says how.\nAction: gitlab_documentation\n\
                  Action Input: How do I protect a branch?",
        scope: "documentation_search",
        since: None,
    },
];

/// The tools that the caller's token and GitLab allow. A caller without GitLab
/// has nobody who could run one.
pub(super) fn offered(caller: &Caller) -> Vec<&'static Tool> {
    let version = caller.gitlab_version.as_deref().unwrap_or_default();
    TOOLS
        .iter()
        .filter(|tool| caller.has_scope(tool.scope))
        .filter(|tool| tool.since.is_none_or(|since| version::at_least(version, since)))
        .collect()
}

/// The tools as model servers want them described, a JSON array.
pub(super) fn as_data(tools: &[&'static Tool]) -> String {
    let described = |tool: &&Tool| {
        let question = json!({"type": "string", "description": "What to find, in the user's words"});
        json!({"type": "function", "function": {
            "name": tool.name,
            "description": tool.description,
            "parameters": {
                "type": "object",
                "properties": {(ARGUMENT): question},
                "required": [ARGUMENT],
            },
        }})
    };
    serde_json::Value::from_iter(tools.iter().map(described)).to_string()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use duo_contract::audit::Who;

    use super::*;
    use crate::caller::Grant;

    fn names(scopes: &[&str], version: Option<&str>) -> Vec<&'static str> {
        let caller = Caller {
            grant: Arc::new(Grant::GitLab {
                scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect(),
                openai: false,
                issuer: String::new(),
                realm: None,
            }),
            who: Who::default(),
            share_key: String::new(),
            limit: 8,
            gitlab_version: version.map(str::to_owned),
        };
        offered(&caller).iter().map(|tool| tool.name).collect()
    }

    #[test]
    fn a_tool_needs_its_scope_and_for_some_a_newer_gitlab() {
        let scopes = ["ask_issue", "ask_commit", "duo_chat"];
        assert_eq!(
            names(&scopes, Some("17.5.0-pre")),
            ["issue_reader", "commit_reader"]
        );
        assert_eq!(names(&scopes, Some("17.4.2")), ["issue_reader"]);
        assert_eq!(names(&scopes, None), ["issue_reader"]);
        assert!(names(&["duo_chat"], Some("18.9.0")).is_empty());
    }
}
