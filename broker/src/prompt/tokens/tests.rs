use duo_contract::name::ModelName;
use minijinja::context;
use serde_json::{Value as Json, json};

use super::*;
use crate::prompt::{PromptError, Prompts, Use};

/// A small tokenizer in the form of model repositories: bytes, and some words of their own.
fn tokenizer() -> Json {
    // The 256 signs in which byte-level tokenizers write bytes.
    let printable = |byte: &u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let mut next = 255;
    let mut signs: Vec<String> = (0..256_u32)
        .map(|byte| {
            let sign = if printable(&byte) {
                byte
            } else {
                next += 1;
                next
            };
            char::from_u32(sign).expect("a character").to_string()
        })
        .collect();
    let merges = [("a", "b"), ("ab", "ab"), ("abab", "abab")];
    signs.extend(merges.iter().map(|(one, other)| format!("{one}{other}")));
    let vocab: serde_json::Map<String, Json> = signs
        .into_iter()
        .enumerate()
        .map(|(id, sign)| (sign, id.into()))
        .collect();
    let merges: Vec<String> = merges
        .iter()
        .map(|(one, other)| format!("{one} {other}"))
        .collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": merges},
    })
}

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).expect("a file");
    }
    folder
}

fn model(family: &str, context_tokens: u32) -> Model {
    Model {
        name: ModelName::parse("small").expect("a name"),
        family: family.to_owned(),
        context_tokens,
        max_output_tokens: 64,
    }
}

#[tokio::test]
async fn a_models_tokenizer_is_found_by_model_and_family_and_counts() {
    let text = tokenizer().to_string();
    let folder = folder(&[
        ("small.json", &text),
        ("codegemma.json", &text),
        ("notes.txt", "no"),
    ]);
    let tokenizers = Tokenizers::load(folder.path()).expect("loads");
    assert_eq!(tokenizers.names(), ["codegemma", "small"]);
    let mut other = model("codegemma_2b", 100);
    other.name = ModelName::parse("other").expect("a name");
    assert!(tokenizers.of(&other).is_some());
    other.family = "llama3".to_owned();
    assert!(tokenizers.of(&other).is_none());
    let own = tokenizers.of(&model("llama3", 100)).expect("its own");
    let content = Content::Text("abababab ab!".to_owned());
    let (_, count) = tokenizers.count(own, content).await;
    assert_eq!(count, Some(4), "abababab, blank, ab, !");
}

#[test]
fn a_file_that_is_no_tokenizer_is_named() {
    for text in ["{}", "no json"] {
        let folder = folder(&[("bad.json", text)]);
        let problem = Tokenizers::load(folder.path()).expect_err("refused").to_string();
        assert!(problem.contains("bad.json"), "{problem}");
    }
    let problem = Tokenizers::load(Path::new("/no/such/folder")).expect_err("refused");
    assert!(problem.to_string().contains("/no/such/folder"));
}

/// A completion with that much text before the cursor, and what of it is asked.
async fn asked(prompts: &Prompts, prefix: &str) -> Result<(usize, String), PromptError> {
    let model = model("codegemma_2b", 1000);
    let rendered = prompts
        .fit("code_suggestions/completions", &model, |room| {
            let fitted = crate::prompt::budget::fit(room, prefix, "suffix", 0);
            Use {
                id: "code_suggestions/completions",
                model: &model,
                inputs: context! { prefix => fitted.prefix, suffix => fitted.suffix },
                messages: vec![],
                stream: false,
            }
        })
        .await?;
    let body: Json = serde_json::from_slice(&rendered.body).expect("JSON");
    let prompt = body["prompt"].as_str().expect("text").to_owned();
    Ok((prompt.matches(['a', 'b']).count(), prompt))
}

#[tokio::test]
async fn a_tokenizer_lets_in_what_an_estimate_leaves_out_and_leaves_out_what_it_lets_in() {
    let folder = folder(&[("small.json", &tokenizer().to_string())]);
    let counted = Prompts::with_tokenizers(Tokenizers::load(folder.path()).expect("loads"));
    let estimated = Prompts::builtin();
    // Eight bytes a token, then one.
    let dense = "ab".repeat(3000);
    let (kept, prompt) = asked(&counted, &dense).await.expect("fits");
    assert_eq!(kept, 6000);
    assert!(
        prompt.ends_with("<|fim_suffix|>suffix<|fim_middle|>"),
        "the suffix stays"
    );
    let (kept, _) = asked(&estimated, &dense).await.expect("fits");
    assert!((2000..3000).contains(&kept), "{kept}");
    let thin = "ba,".repeat(2000);
    let (kept, prompt) = asked(&counted, &thin).await.expect("fits");
    // All of it has a token a byte, but for what is left of the window there is room.
    assert!((340..600).contains(&kept), "{kept}");
    assert!(
        prompt.contains("ba,<|fim_suffix|>suffix"),
        "what is next to the cursor stays"
    );
    let tokenizer = counted.tokenizers().of(&model("x", 1)).expect("it");
    let (_, count) = counted.tokenizers().count(tokenizer, Content::Text(prompt)).await;
    assert!(count.is_some_and(|count| count <= 1000 - 64 - 64), "{count:?}");
    let (kept, _) = asked(&estimated, &thin).await.expect("fits");
    assert!(kept > 1500, "an estimate cannot know: {kept}");
}

#[tokio::test]
async fn a_prompt_that_is_known_not_to_fit_is_refused() {
    let folder = folder(&[("small.json", &tokenizer().to_string())]);
    let counted = Prompts::with_tokenizers(Tokenizers::load(folder.path()).expect("loads"));
    let model = model("codegemma_2b", 1000);
    let text = "ba,".repeat(500);
    let call = || Use {
        id: "resolve_vulnerability",
        model: &model,
        inputs: context! { filename => "f", name => "n", source_code => text.clone() },
        messages: vec![],
        stream: false,
    };
    let refused = counted.fit("resolve_vulnerability", &model, |_| call()).await;
    assert!(matches!(refused, Err(PromptError::TooLong { window: 1000 })));
    assert!(
        Prompts::builtin().render(call()).is_ok(),
        "the estimate lets it pass"
    );
}
