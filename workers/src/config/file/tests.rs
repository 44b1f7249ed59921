use proptest::prelude::*;
use secrecy::ExposeSecret as _;
use serde_json::{Value as Json, json};

use super::*;

const GOOD: &str = "
servers:
  - name: local
    url: http://127.0.0.1:8000/v1/
    slots: 8
    api_key_env: VLLM_KEY
    models:
      - model: mistral
        served_as: Mistral-7B
        tools: true
      - model: codegemma
";

#[test]
fn a_server_is_read_with_its_defaults_and_its_key() {
    let servers = parse(GOOD, |name| (name == "VLLM_KEY").then(|| "secret".to_owned())).expect("valid");
    let server = &servers[0];
    assert_eq!(server.url, "http://127.0.0.1:8000/v1");
    assert_eq!((server.slots, server.kind), (Slots::Fixed(8), ServerKind::Vllm));
    assert_eq!(server.models[0].served_as, "Mistral-7B");
    assert_eq!(server.models[1].served_as, "codegemma");
    assert_eq!((server.models[0].tools, server.models[1].tools), (true, false));
    assert_eq!(server.api_key.as_ref().expect("a key").expose_secret(), "secret");
    assert!(!format!("{server:?}").contains("secret"));
}

#[test]
fn every_mistake_is_named() {
    let text = "
servers:
  - {name: a, url: 'ftp://x', slots: 0, models: []}
  - {name: a, url: 'http://x', slots: 1, api_key_env: DUO_KEY, models: [{model: m}, {model: m}]}
";
    let problems = parse(text, |_| None).expect_err("refused").join("\n");
    for part in [
        "http:// or https://",
        "slots must",
        "models is empty",
        "two servers",
        "DUO_",
        "twice",
    ] {
        assert!(problems.contains(part), "{part:?} is not in {problems}");
    }
    assert!(parse(&GOOD.replace("slots", "slot"), |_| None).is_err());
}

/// Text that some files have where others have a word.
const STRANGE: &str = "[a-z:/?#@ \"'\\\\{}\\[\\]&*!|>%,.\u{e4}\u{4e2d}-]{0,12}";

/// A server that is as it should be, but for its name.
fn server() -> impl Strategy<Value = Json> {
    let port = prop_oneof![Just(String::new()), (1u16..).prop_map(|port| format!(":{port}"))];
    let path = prop::sample::select(vec!["", "/", "/v1", "/v1/", "/a/b//"]);
    let scheme = prop::sample::select(vec!["http", "https"]);
    let url = (scheme, "[a-z][a-z0-9]{0,8}", port, path)
        .prop_map(|(scheme, host, port, path)| format!("{scheme}://{host}{port}{path}"));
    let kind = prop::sample::select(vec!["vllm", "llama", "openai", "kserve"]);
    let served_as = prop_oneof![Just(Json::Null), STRANGE.prop_map(Json::from)];
    let models = prop::collection::btree_map("[a-z][a-z0-9.-]{0,9}", (served_as, any::<bool>()), 1..4);
    (url, 1u32..=4096, kind, models, any::<bool>()).prop_map(|(url, slots, kind, models, key)| {
        let models = models.into_iter();
        let models =
            models.map(|(model, (name, tools))| json!({"model": model, "served_as": name, "tools": tools}));
        let models: Vec<_> = models.collect();
        json!({"url": url, "slots": slots, "kind": kind, "models": models, "api_key_env": key.then_some("KEY")})
    })
}

fn servers() -> impl Strategy<Value = Vec<Json>> {
    let name = prop_oneof![
        "[a-z]{1,8}",
        STRANGE.prop_filter("a name", |name| !name.is_empty())
    ];
    prop::collection::btree_map(name, server(), 1..4).prop_map(|servers| {
        let named = servers.into_iter().map(|(name, mut server)| {
            server["name"] = name.into();
            server
        });
        named.collect()
    })
}

/// JSON is YAML.
fn read(servers: &[Json]) -> Result<Vec<ServerConfig>, Vec<String>> {
    let text = json!({ "servers": servers }).to_string();
    parse(&text, |name| (name == "KEY").then(|| "secret".to_owned()))
}

/// What every server holds that is not refused.
fn is_usable(server: &ServerConfig) -> bool {
    let asked = Url::parse(&format!("{}/models", server.url));
    let asks_it = asked.is_ok_and(|url| {
        let plain = url.query().is_none() && url.fragment().is_none() && url.password().is_none();
        plain && url.username().is_empty() && url.path().ends_with("/models") && url.has_host()
    });
    let models: BTreeSet<_> = server.models.iter().map(|served| &served.model).collect();
    asks_it && server.slots.most() > 0 && !models.is_empty() && models.len() == server.models.len()
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(written in servers()) {
        let read = read(&written).expect("good servers");
        prop_assert_eq!(read.len(), written.len());
        for (server, written) in read.iter().zip(&written) {
            prop_assert!(is_usable(server), "{:?}", server);
            let url = written["url"].as_str().and_then(|url| Url::parse(url).ok()).expect("a URL");
            prop_assert_eq!(&*server.url, url.as_str().trim_end_matches('/'));
            prop_assert_eq!(Some(&*server.name), written["name"].as_str());
            prop_assert_eq!(json!(server.slots.most()), written["slots"].clone());
            prop_assert_eq!(json!(server.kind.as_str()), written["kind"].clone());
            prop_assert_eq!(server.api_key.is_some(), written["api_key_env"].is_string());
            let models = server.models.iter().map(|served| {
                let as_model = served.served_as == served.model.as_str();
                json!([served.model.as_str(), served.served_as, as_model, served.tools])
            });
            let wanted = written["models"].as_array().into_iter().flatten().map(|model| {
                let name = model["served_as"].as_str().unwrap_or(model["model"].as_str().unwrap_or_default());
                json!([model["model"], name, model["model"] == name, model["tools"]])
            });
            prop_assert!(models.eq(wanted));
        }
    }

    #[test]
    fn a_mistake_is_named_with_its_server_and_no_other(
        mut written in servers(), at in any::<prop::sample::Index>(), mistake in 0usize..5
    ) {
        let at = at.index(written.len());
        let mistakes = [
            ("url", json!("ftp://x")),
            ("slots", json!(0)),
            ("models", json!([])),
            ("api_key_env", json!("DUO_KEY")),
            ("api_key_env", json!("MISSING")),
        ];
        let (field, value) = &mistakes[mistake];
        written[at][field] = value.clone();
        let problems = read(&written).expect_err("a mistake");
        let server = format!("server {:?}: ", written[at]["name"].as_str().expect("a name"));
        prop_assert_eq!(problems.len(), 1, "{:?}", problems);
        prop_assert!(problems[0].starts_with(&server), "{:?}", problems);
    }

    #[test]
    fn what_is_not_refused_can_be_used(
        mut written in servers(),
        scheme in prop::sample::select(vec!["http://", "https://", "http:", " http://", "x://", ""]),
        rest in STRANGE,
    ) {
        written[0]["url"] = format!("{scheme}{rest}").into();
        for server in read(&written).into_iter().flatten() {
            prop_assert!(is_usable(&server), "{:?}", server);
        }
    }

    #[test]
    fn any_text_is_servers_or_problems(
        text in prop_oneof![
            "\\PC{0,200}",
            "(servers:|- |name: |  |\n|url: http://x|slots: (1|auto)|models: |\\[|\\]|\\{|\\}|&a |\\*a|!t |\"|'|,|: |<<: |#){0,40}",
        ]
    ) {
        match parse(&text, |_| None) {
            Ok(servers) => prop_assert!(!servers.is_empty() && servers.iter().all(is_usable)),
            Err(problems) => prop_assert!(!problems.is_empty()),
        }
    }
}

#[test]
fn an_address_that_nothing_can_be_appended_to_is_refused() {
    for url in [
        "http://x/v1?key=1",
        "http://x/v1#a",
        "http://x?",
        "http://:secret@x",
    ] {
        let text = GOOD.replace("http://127.0.0.1:8000/v1/", url);
        let problems = parse(&text, |_| Some("secret".to_owned())).expect_err(url);
        assert!(problems[0].starts_with("server \"local\": url"), "{problems:?}");
        assert!(!problems[0].contains("secret"), "{problems:?}");
    }
    let text = GOOD.replace("http://127.0.0.1:8000/v1/", "\" http://x/v1 \"");
    let servers = parse(&text, |_| Some("secret".to_owned())).expect("blanks are no part of it");
    assert_eq!(servers[0].url, "http://x/v1");
}

#[test]
fn a_key_that_no_header_can_carry_is_refused() {
    let problems = parse(GOOD, |_| Some("two\nlines".to_owned())).expect_err("refused");
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(
        problems[0].starts_with("server \"local\": the API key"),
        "{problems:?}"
    );
}
