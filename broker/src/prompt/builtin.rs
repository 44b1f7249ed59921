//! The templates that come with the program, from `broker/prompts/`.

macro_rules! templates {
    ($($path:literal,)*) => {
        &[$(($path, include_str!(concat!("../../prompts/", $path, ".md")))),*]
    };
}

/// Path below `broker/prompts/` without its ending, and text.
const TEMPLATES: &[(&str, &str)] = templates![
    "categorize_question/base",
    "chat/agent/base",
    "chat/agent/codegemma",
    "chat/agent/mistral",
    "chat/agent_with_tools/base",
    "chat/build_reader/base",
    "chat/commit_reader/base",
    "chat/documentation_search/base",
    "chat/epic_reader/base",
    "chat/explain_code/base",
    "chat/explain_vulnerability/base",
    "chat/fix_code/base",
    "chat/issue_reader/base",
    "chat/merge_request_reader/base",
    "chat/refactor_code/base",
    "chat/summarize_comments/base",
    "chat/troubleshoot_job/base",
    "chat/work_item_reader/base",
    "chat/write_tests/base",
    "classify_code_review_mention_intent/base",
    "code_suggestions/completions/base",
    "code_suggestions/completions/codegemma",
    "code_suggestions/completions/codellama",
    "code_suggestions/completions/codestral",
    "code_suggestions/completions/deepseekcoder",
    "code_suggestions/completions/mistral",
    "code_suggestions/completions/mixtral",
    "code_suggestions/completions/qwen",
    "code_suggestions/completions/starcoder",
    "code_suggestions/generations/base",
    "code_suggestions/generations/codegemma",
    "code_suggestions/generations/mistral",
    "fill_in_merge_request_template/base",
    "generate_commit_message/base",
    "generate_description/base",
    "generate_session_title/base",
    "glab_ask_git_command/base",
    "measure_comment_temperature/base",
    "model_configuration/check/base",
    "resolve_vulnerability/base",
    "resolve_vulnerability/mistral",
    "review_merge_request/base",
    "review_merge_request/mistral",
    "summarize_duo_workflow/base",
    "summarize_new_merge_request/base",
    "summarize_review/base",
];

/// Every template: prompt id, family, text.
pub(super) fn all() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    TEMPLATES.iter().filter_map(|(path, text)| {
        let (id, family) = path.rsplit_once('/')?;
        Some((id, family, *text))
    })
}

/// The text of one template.
pub(super) fn text(id: &str, family: &str) -> Option<&'static str> {
    all()
        .find(|(own_id, own_family, _)| (*own_id, *own_family) == (id, family))
        .map(|(_, _, text)| text)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    fn files(folder: &Path, below: &str, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).expect("the folder is readable") {
            let entry = entry.expect("the entry is readable");
            let name = entry.file_name().into_string().expect("names are text");
            if entry.path().is_dir() {
                files(&entry.path(), &format!("{below}{name}/"), found);
            } else if name != "README.md" {
                found.insert(format!("{below}{}", name.trim_end_matches(".md")));
            }
        }
    }

    #[test]
    fn every_template_file_is_built_in() {
        let mut found = BTreeSet::new();
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("prompts");
        files(&folder, "", &mut found);
        let built_in: BTreeSet<String> = TEMPLATES.iter().map(|(path, _)| (*path).to_owned()).collect();
        assert_eq!(built_in, found);
    }
}
