//! Code generation as GitLab asked for it until about 17.5: the body of a completion, and a prompt of GitLab's own.

use serde_json::json;

use crate::bodies::{GENERATIONS, completion, letters, old_generation};
use crate::case::{Case, case};

/// Every case of these.
pub(crate) fn cases() -> Vec<Case> {
    let mut cases = answers();
    cases.extend(fields());
    cases
}

fn answers() -> Vec<Case> {
    let messages = json!([{"role": "user", "content": "Go on."}]);
    let rows = old_generation;
    vec![
        case("an old generation asks the model in GitLab's words", rows())
            .good()
            .asked(
                "/messages",
                json!([{"role": "user", "content": "Write the body."}]),
            )
            .asked("/stop", json!(["</new_code>"]))
            .asked("/max_tokens", 2048.into())
            .asked("/temperature", json!(0.2))
            .says("/object", "text_completion".into())
            .says("/id", "id".into())
            .says("/choices/0/finish_reason", "length".into()),
        case(
            "an old generation takes messages in version 3",
            rows()
                .with("/prompt_version", 3.into())
                .with("/prompt", messages.clone()),
        )
        .good()
        .asked("/messages", messages),
        case(
            "version 1 needs no prompt",
            completion(GENERATIONS)
                .with("/prompt_version", 1.into())
                .lacking("/prompt"),
        )
        .good(),
    ]
}

fn fields() -> Vec<Case> {
    let rows = old_generation;
    vec![
        case("version 2 without a prompt is told so", completion(GENERATIONS)).names("prompt"),
        case(
            "version 3 without a prompt is told so",
            completion(GENERATIONS).with("/prompt_version", 3.into()),
        )
        .names("prompt"),
        case(
            "version 2 with messages is told so",
            rows().with("/prompt", json!([{"role": "user", "content": "x"}])),
        )
        .names("prompt"),
        case(
            "version 3 with an unknown role is told so",
            rows()
                .with("/prompt_version", 3.into())
                .with("/prompt", json!([{"role": "robot", "content": "x"}])),
        )
        .names("prompt.0.role"),
        case("version 4 is told so", rows().with("/prompt_version", 4.into())).names("prompt_version"),
        case(
            "with the id of a prompt it is the gateway's own",
            completion(GENERATIONS).with("/prompt_id", "code_suggestions/generations".into()),
        )
        .good()
        .check(|_, cluster| {
            assert!(
                !cluster.last_body()["messages"]
                    .to_string()
                    .contains("Write the body.")
            )
        }),
        case(
            "in the middle of a line the code begins on the next",
            rows().with("/current_file/content_above_cursor", "x = ".into()),
        )
        .good()
        .check(|answer, _| {
            assert!(
                answer.json()["choices"][0]["text"]
                    .as_str()
                    .is_some_and(|text| text.starts_with('\n')),
                "{answer}"
            )
        }),
        case("an old generation of nothing is no choice", rows())
            .sim(|sim| sim.tokens = 0)
            .good()
            .says("/choices", json!([])),
        case(
            "an old generation streams the bare text",
            rows().with("/stream", true.into()),
        )
        .good()
        .header("content-type", "text/event-stream; charset=utf-8")
        .header("x-streaming-format", "")
        .check(|answer, cluster| assert_eq!(answer.text(), cluster.expected(16))),
        case(
            "an old generation takes any family",
            rows().with("/model_name", "general".into()),
        )
        .good()
        .says("/model/name", "mistral".into()),
        case(
            "a name in an old generation picks a model that is configured for it",
            rows().with("/model_name", "codegemma".into()),
        )
        .good()
        .says("/model/name", "codegemma".into()),
        case(
            "an old generation's file name may have 255 characters",
            rows().with("/current_file/file_name", letters(255)),
        )
        .good(),
        case(
            "an old generation's file name of 256 characters is named",
            rows().with("/current_file/file_name", letters(256)),
        )
        .names("current_file.file_name"),
    ]
}
