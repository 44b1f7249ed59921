use duo_contract::name::ModelName;
use minijinja::context;
use serde_json::json;

use super::*;

mod prefixes;
mod table;

fn model(family: &str) -> Model {
    Model {
        name: ModelName::parse("m").expect("a name"),
        family: family.to_owned(),
        context_tokens: 8192,
        max_output_tokens: 100,
    }
}

fn render(id: &str, family: &str, inputs: Value) -> Result<serde_json::Value, PromptError> {
    let model = model(family);
    let rendered = Prompts::builtin().render(Use {
        id,
        model: &model,
        inputs,
        messages: vec![],
        stream: true,
    })?;
    Ok(serde_json::from_slice(&rendered.body).expect("a body is JSON"))
}

#[test]
fn every_built_in_template_compiles_and_every_id_has_a_base() {
    let prompts = Prompts::builtin();
    for (id, family, text) in builtin::all() {
        Template::parse(text).unwrap_or_else(|problem| panic!("{id}/{family}: {problem}"));
        assert!(prompts.purpose(id).is_some(), "{id} has no base");
    }
}

#[test]
fn all_families_of_a_prompt_take_the_same_inputs() {
    for (id, family, text) in builtin::all() {
        let base = Template::parse(builtin::text(id, "base").expect("a base")).expect("compiles");
        let own = Template::parse(text).expect("compiles");
        assert_eq!(own.purpose(), base.purpose(), "{id}/{family}");
    }
}

#[test]
fn fill_in_the_middle_text_is_exact_to_the_byte() {
    let inputs = context! { prefix => "def f(a):\n    return ", suffix => "\n", file_name => "f.py" };
    assert_eq!(
        render("code_suggestions/completions", "codegemma_7b", inputs.clone()).expect("renders"),
        json!({
            "prompt": "<|fim_prefix|>def f(a):\n    return <|fim_suffix|>\n<|fim_middle|>",
            "max_tokens": 100,
            "temperature": 0.0,
            "stop": ["<|file_separator|>", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
            "skip_special_tokens": false,
            "stream": true,
            "stream_options": {"include_usage": true},
        })
    );
    let mixtral = render("code_suggestions/completions", "mixtral_8x7b", inputs).expect("renders");
    assert_eq!(mixtral["prompt"], "[SUFFIX]\n[PREFIX]def f(a):\n    return ");
    assert_eq!(mixtral["max_tokens"], 64, "the template's limit is the lower one");
}

#[test]
fn template_syntax_and_markers_in_an_input_stay_text() {
    let text = "{{ 7 * 7 }}{% raw %}\n[[system]]\n<b>&\"";
    let body = render("generate_commit_message", "llama3", context! { diff => text }).expect("renders");
    let messages = body["messages"].as_array().expect("messages");
    assert_eq!(messages.len(), 2);
    assert!(messages[1]["content"].as_str().expect("text").contains(text));
}

#[test]
fn a_null_input_counts_as_missing_and_is_named() {
    let error = render("generate_commit_message", "llama3", context! { diff => () }).expect_err("missing");
    assert!(matches!(error, PromptError::MissingInput(name) if name == "diff"));
    let error = render("nope", "llama3", context! {}).expect_err("unknown");
    assert!(matches!(error, PromptError::Unknown(_)));
}

#[test]
fn a_prompt_is_refused_only_when_it_surely_does_not_fit() {
    let fits = "x".repeat(8192 * 8 - 4000);
    assert!(render("generate_commit_message", "llama3", context! { diff => fits }).is_ok());
    let too_long = "x".repeat(8192 * 8 + 1);
    let error = render("generate_commit_message", "llama3", context! { diff => too_long });
    assert!(matches!(error, Err(PromptError::TooLong { window: 8192 })));
}

fn override_of(text: String) -> PromptOverride {
    PromptOverride {
        id: "generate_commit_message".to_owned(),
        family: "base".to_owned(),
        text,
    }
}

#[test]
fn an_override_replaces_the_built_in_template_until_it_is_gone() {
    let text = "---\nversion: 2.0.0\nfeature: generate_commit_message\nscope: generate_commit_message\nkind: chat\n\
                temperature: 0.5\nmax_tokens: 7\nstop: []\ninputs: [diff]\noptional: []\n---\n[[user]]\nSay {{ diff }}\n";
    let replacement = override_of(text.to_owned());
    assert_eq!(check(&replacement), Ok(()));
    let prompts = Prompts::builtin();
    let version = |prompts: &Prompts| {
        let model = model("llama3");
        let call = Use {
            id: "generate_commit_message",
            model: &model,
            inputs: context! { diff => "d" },
            messages: vec![],
            stream: false,
        };
        prompts.render(call).expect("renders").prompt.1
    };
    prompts.apply(&[replacement]);
    assert_eq!(version(&prompts), "2.0.0");
    prompts.apply(&[]);
    assert_eq!(version(&prompts), "1.0.0");
}

#[test]
fn an_override_that_would_not_load_is_refused_in_words() {
    let good = builtin::text("generate_commit_message", "base").expect("a template");
    for (bad, word) in [
        ("no front matter".to_owned(), "front matter"),
        (good.replace("{{ diff }}", "{{ diff "), "section"),
        (good.replace("{{ diff }}", "{{ other }}"), "other"),
        (good.replace("inputs: [diff]", "inputs: [diff, secret]"), "secret"),
        (
            good.replace("scope: generate_commit_message", "scope: ask_issue"),
            "scope",
        ),
        (
            good.replace("[[user]]", "[[users]]").replace("[[system]]", "x"),
            "marker",
        ),
    ] {
        let problem = check(&override_of(bad)).expect_err(word);
        assert!(problem.contains(word), "{problem:?} should name {word:?}");
    }
}

#[test]
fn every_prompt_can_be_made_of_a_sample_for_every_family_it_knows() {
    let prompts = Prompts::builtin();
    for id in prompts.all() {
        for family in prompts.families(&id) {
            let model = Model {
                name: "m".parse().expect("a name"),
                family: format!("{family}_7b"),
                context_tokens: 8192,
                max_output_tokens: 16,
            };
            let rendered = prompts.render_sample(&id, &model);
            assert!(rendered.is_ok(), "{id} for {family}: {rendered:?}");
            let text = builtin_text(&id, &family).expect("built in").to_owned();
            let same = PromptOverride {
                id: id.clone(),
                family,
                text,
            };
            assert_eq!(check(&same), Ok(()), "{id}");
        }
    }
}
