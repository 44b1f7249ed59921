//! Good bodies of every endpoint, for cases to change one thing of.

use duo_system_tests::harness::cluster;
use serde_json::{Value, json};

use crate::case::{Ask, post};

/// Where Rails asks for completions.
pub(crate) const COMPLETIONS: &str = "/v2/code/completions";
/// Where editors do.
pub(crate) const DIRECT: &str = "/v2/completions";
/// Where Rails asked for generations until about 17.5.
pub(crate) const GENERATIONS: &str = "/v2/code/generations";
/// Components, raw streams.
pub(crate) const V3: &str = "/v3/code/completions";
/// Components, streams of events.
pub(crate) const V4: &str = "/v4/code/suggestions";
/// Chat.
pub(crate) const AGENT: &str = "/v2/chat/agent";
/// A prompt with a plain answer.
pub(crate) const COMMIT: &str = "/v1/prompts/generate_commit_message";
/// Vectors of code.
pub(crate) const EMBEDDINGS: &str = "/v1/embeddings/code_embeddings";
/// What package files say.
pub(crate) const XRAY: &str = "/v1/x-ray/libraries";
/// A chat tool of old.
pub(crate) const EXPLAIN: &str = "/v1/chat/explain_code";
/// Tokens for IDEs.
pub(crate) const TOKEN: &str = "/v1/code/user_access_token";

/// A completion.
pub(crate) fn completion(path: &str) -> Ask {
    post(path, cluster::completion("def add(a, b):\n    ", false))
}

/// A generation of old, with a prompt of GitLab's own.
pub(crate) fn old_generation() -> Ask {
    completion(GENERATIONS).with("/prompt", "Write the body.".into())
}

/// A generation by components.
pub(crate) fn generation(path: &str) -> Ask {
    post(path, cluster::generation("add two numbers", false))
}

/// The payload of [`generation`] and [`component_completion`].
pub(crate) const PAYLOAD: &str = "/prompt_components/0/payload";

/// A completion by components.
pub(crate) fn component_completion(path: &str) -> Ask {
    let payload = json!({
        "file_name": "a.rs", "content_above_cursor": "fn main() {", "content_below_cursor": "}",
    });
    let component = json!({"type": "code_editor_completion", "payload": payload});
    post(path, json!({"prompt_components": [component]}))
}

/// A chat's first turn.
pub(crate) fn chat() -> Ask {
    post(AGENT, cluster::agent("What does this project do?"))
}

/// A chat's second turn, after a tool has run.
pub(crate) fn second_turn() -> Ask {
    let step = json!({
        "action": {"type": "action", "thought": "read it", "tool": "issue_reader", "tool_input": "7"},
        "observation": "a bug in the parser",
    });
    post(
        AGENT,
        json!({"messages": [
            {"role": "user", "content": "What is issue 7 about?"},
            {"role": "assistant", "content": null, "agent_scratchpad": [step]},
        ]}),
    )
}

/// A commit message.
pub(crate) fn commit() -> Ask {
    post(
        COMMIT,
        json!({"inputs": {"diff": "+ one line"}, "prompt_version": "^1.0.0"}),
    )
}

/// A chat tool of old.
pub(crate) fn old_tool() -> Ask {
    let payload = json!({"content": "Explain: x = 1", "provider": "litellm", "model": "mistral"});
    let metadata = json!({"source": "GitLab EE", "version": "17.3.0"});
    let component = json!({"type": "prompt", "metadata": metadata, "payload": payload});
    post(EXPLAIN, json!({"prompt_components": [component]}))
}

/// A package file.
pub(crate) fn xray() -> Ask {
    let payload = json!({"prompt": "gem 'rails'", "provider": "anthropic", "model": "claude-2.1"});
    let component = json!({"type": "x_ray_package_file_prompt", "payload": payload});
    post(XRAY, json!({"prompt_components": [component]}))
}

/// Texts to embed.
pub(crate) fn embeddings() -> Ask {
    post(
        EMBEDDINGS,
        json!({"contents": ["def a", "def b"], "model_metadata": metadata("embedding", "custom_openai/any")}),
    )
}

/// What Rails says of the model that an administrator has entered in GitLab.
pub(crate) fn metadata(name: &str, identifier: &str) -> Value {
    json!({
        "provider": "openai", "name": name, "identifier": identifier, "endpoint": "http://127.0.0.1:9/v1", "api_key": null,
    })
}

/// A good request of each endpoint that asks a model, with a word for the endpoint.
pub(crate) fn each() -> Vec<(&'static str, Ask)> {
    vec![
        ("completion", completion(COMPLETIONS)),
        ("direct completion", completion(DIRECT)),
        ("old generation", old_generation()),
        ("v3 generation", generation(V3)),
        ("v4 generation", generation(V4)),
        ("v3 completion", component_completion(V3)),
        ("v4 completion", component_completion(V4)),
        ("chat", chat()),
        ("v1 prompt", commit()),
        (
            "v2 prompt",
            post(
                "/v2/prompts/generate_commit_message",
                json!({"inputs": {"diff": "+ one line"}}),
            ),
        ),
        ("old chat tool", old_tool()),
        ("x-ray", xray()),
        ("code embeddings", embeddings()),
    ]
}

/// So many characters.
pub(crate) fn letters(count: usize) -> Value {
    "a".repeat(count).into()
}
