//! Bodies to be sent: good ones of every endpoint, changed in ways that keep most of their shape, and plain noise.

use serde_json::{Map, Value, json};

/// Random numbers that a number repeats.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, most: usize) -> usize {
        (self.next() % most.max(1) as u64) as usize
    }

    fn one_in(&mut self, many: usize) -> bool {
        self.below(many) == 0
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}

/// Texts that have hurt somebody somewhere.
const TEXTS: [&str; 22] = [
    "",
    " ",
    "\u{0}",
    "null",
    "{{ 7 * 7 }}",
    "{% for x in range(9) %}",
    "{% raw %}",
    "[[user]]",
    "</new_code>",
    "<|fim_prefix|>",
    "Observation:",
    "\r\n\r\n",
    "\u{feff}",
    "\u{202e}e\u{301}",
    "😀",
    "../../etc/passwd",
    "custom_openai/",
    "/",
    "^1.0.0",
    "true",
    "-0",
    "data: [DONE]",
];

/// Texts as JSON that no writer of ours would write.
const RAW: [&str; 10] = [
    "\"\\ud83d\"",
    "\"\\udc00x\"",
    "1e999",
    "-1e-999",
    "18446744073709551616",
    "\"\\u0000\"",
    "[[[[[[[[[[[[]]]]]]]]]]]]",
    "{\"a\":{\"a\":{\"a\":{}}}}",
    "0.1e1",
    "\"\\q\"",
];

/// A good body of every endpoint, and of every prompt.
pub(crate) fn seeds() -> Vec<(String, Value)> {
    let file = json!({
        "file_name": "app/main.py", "language_identifier": "python", "content_above_cursor": "def a():\n", "content_below_cursor": "\n",
    });
    let item = json!({"type": "file", "name": "lib.py", "content": "x = 1"});
    let completion = json!({
        "prompt_version": 2, "project_path": "g/p", "project_id": 7, "current_file": file, "model_provider": "litellm", "model_name": "mistral",
        "model_endpoint": "http://127.0.0.1:9", "model_identifier": "custom_openai/mistral", "prompt": "Write.", "stream": false, "choices_count": 1,
        "context": [item.clone()], "telemetry": [{"requests": 1, "accepts": 0, "errors": 0}], "intent": "completion",
    });
    let metadata = json!({"provider": "openai", "name": "mistral", "endpoint": "http://127.0.0.1:9/v1", "api_key": null, "identifier": "custom_openai/mistral"});
    let enhancer = json!({
        "examples_array": [{"example": "a", "response": "b", "trigger_type": "comment"}], "trimmed_content_above_cursor": "# add\n",
        "trimmed_content_below_cursor": "", "related_files": ["<file>x</file>"], "related_snippets": ["y"], "libraries": ["numpy"], "user_instruction": "add",
    });
    let component = |kind: &str, more: Value| {
        let mut payload = file.clone();
        if let (Value::Object(payload), Value::Object(more)) = (&mut payload, more) {
            payload.extend(more);
        }
        json!({"type": kind, "payload": payload, "metadata": {"source": "GitLab EE", "version": "18.9.0"}})
    };
    let generation = component(
        "code_editor_generation",
        json!({"stream": true, "prompt_id": "code_suggestions/generations", "prompt_version": "^1.0.0", "prompt_enhancer": enhancer}),
    );
    let suggestion =
        json!({"prompt_components": [generation], "model_metadata": metadata, "current_file": file});
    let parts = json!({"prompt_components": [component("code_editor_completion", json!({"choices_count": 1})), {"type": "code_context", "payload": item}]});
    let step = json!({"action": {"type": "a", "thought": "t", "tool": "issue_reader", "tool_input": "7"}, "observation": "o"});
    let chat = json!({"messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What?", "context": {"type": "issue", "title": "t", "content": "c"},
         "current_file": {"file_path": "a.rb", "data": "x", "selected_code": true}},
        {"role": "assistant", "content": null, "agent_scratchpad": [step.clone()]},
    ], "options": {"agent_scratchpad": {"agent_type": "react", "steps": [{"thought": "t", "tool": "x", "tool_input": "i", "observation": "o"}]}},
       "unavailable_resources": ["Pipelines"], "model_metadata": metadata});
    let old = json!({"prompt_components": [{"type": "prompt", "metadata": {"source": "x", "version": "1"}, "payload": {
        "content": [{"role": "user", "content": "x"}], "provider": "litellm", "model": "mistral",
        "params": {"stop_sequences": ["END"], "temperature": 0.1, "max_tokens_to_sample": 99}}}], "stream": false});
    let xray = json!({"prompt_components": [{"type": "x_ray_package_file_prompt", "payload": {"prompt": "gem", "provider": "anthropic", "model": "claude-2.1"}}]});
    let embeddings = json!({"contents": ["a", "b"], "dimensions": 8, "litellm_drop_params": true, "model_metadata": metadata});
    let openai = json!({"model": "mistral", "messages": [{"role": "user", "content": "x"}], "max_tokens": 5, "stream": true,
        "stream_options": {"include_usage": true}, "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]});
    let mut seeds: Vec<(String, Value)> = [
        ("/v2/code/completions", completion.clone()),
        ("/v2/completions", completion.clone()),
        ("/v2/code/generations", completion),
        ("/v3/code/completions", suggestion.clone()),
        ("/v4/code/suggestions", suggestion),
        ("/v3/code/completions", parts.clone()),
        ("/v4/code/suggestions", parts),
        ("/v2/chat/agent", chat),
        ("/v1/chat/explain_code", old),
        ("/v1/x-ray/libraries", xray),
        ("/v1/embeddings/code_embeddings", embeddings),
        ("/v1/chat/completions", openai),
        (
            "/v1/completions",
            json!({"model": "mistral", "prompt": ["a"], "max_tokens": 5, "n": 1}),
        ),
        ("/v1/embeddings", json!({"model": "mistral", "input": ["a", "b"]})),
    ]
    .into_iter()
    .map(|(path, body)| (path.to_owned(), body))
    .collect();
    seeds.extend(prompts());
    seeds
}

/// Every prompt with the inputs that Rails sends.
fn prompts() -> impl Iterator<Item = (String, Value)> {
    let texts = [
        "file_content",
        "input",
        "language_info",
        "selected_text",
        "libraries",
        "file_content_reuse",
        "identifiers",
        "title",
        "vulnerability_description",
        "vulnerability_info",
        "notes_content",
        "suggestions",
        "question",
        "diff",
        "extracted_diff",
        "draft_notes_content",
        "filename",
        "name",
        "source_code",
        "vulnerable_code",
        "mr_title",
        "mr_description",
        "diff_lines",
        "full_file_intro",
        "full_content_section",
        "custom_instructions_section",
        "prompt",
        "content",
        "template",
        "previous_answer",
        "message",
        "context",
        "definition",
        "logs",
    ];
    let mut inputs: Map<String, Value> = texts
        .iter()
        .map(|name| ((*name).to_owned(), "text".into()))
        .collect();
    inputs.insert("documents".into(), json!([{"id": "1", "content": "n"}]));
    inputs.insert("content_id".into(), "CNT-IDX".into());
    inputs.insert("labels".into(), json!(["j"]));
    inputs.insert(
        "categories".into(),
        json!([{"category": "k", "detailed_categories": ["l"]}]),
    );
    let ids = [
        "chat/explain_code",
        "chat/write_tests",
        "chat/refactor_code",
        "chat/fix_code",
        "chat/explain_vulnerability",
        "chat/summarize_comments",
        "chat/troubleshoot_job",
        "chat/issue_reader",
        "chat/work_item_reader",
        "chat/epic_reader",
        "chat/merge_request_reader",
        "chat/commit_reader",
        "chat/build_reader",
        "chat/documentation_search",
        "generate_commit_message",
        "summarize_new_merge_request",
        "summarize_review",
        "resolve_vulnerability",
        "review_merge_request",
        "glab_ask_git_command",
        "generate_description",
        "categorize_question",
        "measure_comment_temperature",
        "model_configuration%2Fcheck",
        "fill_in_merge_request_template",
        "classify_code_review_mention_intent",
        "generate_session_title",
        "summarize_duo_workflow",
    ];
    ids.into_iter().enumerate().map(move |(number, id)| {
        let version = 1 + number % 2;
        let body = json!({"inputs": inputs, "prompt_version": "^1.0.0", "stream": number % 3 == 0});
        (format!("/v{version}/prompts/{id}"), body)
    })
}

/// Changes good bodies.
pub(crate) struct Mutator {
    seeds: Vec<(String, Value)>,
}

impl Mutator {
    pub(crate) fn new(seeds: Vec<(String, Value)>) -> Self {
        Self { seeds }
    }

    /// A path and a body for it.
    pub(crate) fn request(&self, dice: &mut Dice) -> (String, Vec<u8>) {
        let (path, seed) = dice.pick(&self.seeds);
        let mut path = path.clone();
        if dice.one_in(50) {
            path = (*dice.pick(&[
                "/v1/prompts/%ff",
                "/v1/prompts/a%2F..%2Fb",
                "/v1/prompts//",
                "/v2/prompts/%00",
                "/v1/chat/%7B%7B",
                "/v9/x",
            ]))
            .to_owned();
        }
        if dice.one_in(12) {
            let count = dice.below(400);
            return (path, (0..count).map(|_| dice.next() as u8).collect());
        }
        let mut body = seed.clone();
        for _ in 0..dice.below(4) {
            let other = &dice.pick(&self.seeds).1;
            change(&mut body, other, dice, 0);
        }
        let mut text = body.to_string();
        while dice.one_in(6) {
            text = garble(text, dice);
        }
        let mut bytes = text.into_bytes();
        if dice.one_in(8) {
            flip(&mut bytes, dice);
        }
        (path, bytes)
    }
}

/// Changes one thing, somewhere.
fn change(value: &mut Value, other: &Value, dice: &mut Dice, depth: usize) {
    let stop = depth > 0 && dice.one_in(3);
    match value {
        Value::Object(fields) if !fields.is_empty() && !stop => {
            let name = fields
                .keys()
                .nth(dice.below(fields.len()))
                .cloned()
                .unwrap_or_default();
            match dice.below(8) {
                0 => drop(fields.remove(&name)),
                1 => {
                    let taken = fields.remove(&name).unwrap_or_default();
                    fields.insert((*dice.pick(&TEXTS)).to_owned(), taken);
                }
                2 => drop(fields.insert((*dice.pick(&TEXTS)).to_owned(), odd(other, dice))),
                _ => change(&mut fields[&name], other, dice, depth + 1),
            }
        }
        Value::Array(items) if !items.is_empty() && !stop => {
            let at = dice.below(items.len());
            match dice.below(6) {
                0 => drop(items.remove(at)),
                1 => {
                    let again = items[at].clone();
                    let many = *dice.pick(&[1, 2, 100, 101, 1001]);
                    items.extend(std::iter::repeat_n(again, many));
                }
                _ => change(&mut items[at], other, dice, depth + 1),
            }
        }
        value => *value = odd(other, dice),
    }
}

/// A value that nobody expects.
fn odd(other: &Value, dice: &mut Dice) -> Value {
    match dice.below(12) {
        0 => Value::Null,
        1 => dice.one_in(2).into(),
        2 => (*dice.pick(&[0_i64, 1, -1, 9, 1 << 31, i64::MAX, i64::MIN])).into(),
        3 => (*dice.pick(&[0.5, -0.0, 1e308, 1e-320])).into(),
        4 => Value::Array(Vec::new()),
        5 => Value::Object(Map::new()),
        6 => other.clone(),
        7 => {
            let depth = dice.below(200);
            (0..depth).fold(Value::Null, |inner, _| json!([inner]))
        }
        8 => {
            let most = *dice.pick(&[255, 256, 1024, 1025, 5_000]);
            dice.pick(&["a", "é", "😀", "\n"]).repeat(most).into()
        }
        9 if dice.one_in(40) => "x".repeat(*dice.pick(&[100_000, 100_001, 400_001])).into(),
        _ => {
            let (a, b) = (*dice.pick(&TEXTS), *dice.pick(&TEXTS));
            format!("{a}{b}").into()
        }
    }
}

/// Changes the text itself, at a place where a value stands.
fn garble(text: String, dice: &mut Dice) -> String {
    let raw = *dice.pick(&RAW);
    let places: Vec<usize> = text.match_indices(':').map(|(at, _)| at + 1).collect();
    if places.is_empty() {
        return raw.to_owned();
    }
    let at = *dice.pick(&places);
    let end = text[at..]
        .find([',', '}', ']'])
        .map_or(text.len(), |length| at + length);
    match dice.below(4) {
        0 => format!("{}{raw}{}", &text[..at], &text[end..]),
        1 => format!("\u{feff}{text}"),
        // The first field once more.
        2 => match text.strip_prefix('{').and_then(|rest| rest.split_once(',')) {
            Some((first, _)) => format!("{{{first},{}", &text[1..]),
            None => text,
        },
        _ => {
            let depth = *dice.pick(&[127, 128, 129, 20_000]);
            format!(
                "{}{}{}{}",
                &text[..at],
                "[".repeat(depth),
                "]".repeat(depth),
                &text[end..]
            )
        }
    }
}

fn flip(bytes: &mut Vec<u8>, dice: &mut Dice) {
    for _ in 0..=dice.below(4) {
        if bytes.is_empty() {
            return;
        }
        let at = dice.below(bytes.len());
        match dice.below(4) {
            0 => bytes[at] = dice.next() as u8,
            1 => bytes.truncate(at),
            2 => drop(bytes.remove(at)),
            _ => bytes.insert(at, *dice.pick(b"\"{}[],:\\\0\xff\xc3")),
        }
    }
}
