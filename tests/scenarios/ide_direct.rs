//! IDEs that ask the broker directly, with a token that GitLab has fetched for them.

use duo_system_tests::gitlab::TokenSpec;
use duo_system_tests::harness::Cluster;
use duo_system_tests::harness::client::Answer;
use duo_system_tests::harness::cluster::completion;
use duo_system_tests::harness::setup::signing_keys;
use http::{Method, StatusCode};
use serde_json::{Value, json};

const TOKEN: &str = "/v1/code/user_access_token";
const KEYS: &str = "DUO_SIGNING_KEYS_FILE";

async fn cluster_that_signs() -> Cluster {
    let folder = tempfile::tempdir().expect("a folder");
    // A broker reads the file at its start; the folder may go then.
    Cluster::builder()
        .broker_env(KEYS, &signing_keys(folder.path()))
        .start()
        .await
}

async fn ask_for_token(cluster: &Cluster, headers: Vec<(&'static str, String)>) -> Answer {
    cluster.call(Method::POST, TOKEN).headers(headers).send().await
}

/// What an IDE says of a file: no model, no language, and a version of its own.
fn from_ide() -> Value {
    json!({
        "prompt_version": 1,
        "project_path": "group/project",
        "project_id": -1,
        "current_file": {
            "file_name": "app/main.py",
            "content_above_cursor": "def add(a, b):\n    ",
            "content_below_cursor": "",
        },
        "choices_count": 1,
        "intent": "completion",
    })
}

#[tokio::test]
async fn a_token_that_gitlab_fetches_opens_the_direct_path_alone() {
    let cluster = cluster_that_signs().await;
    let given = ask_for_token(&cluster, cluster.rails_headers("alice"))
        .await
        .good()
        .json();
    assert!(given["expires_at"].is_u64(), "{given}");
    let token = given["token"].as_str().expect("a token").to_owned();

    // What Rails hands to the IDE: the same headers with the other token.
    let ide = |path: &str, user: &str| {
        let mut headers = cluster.rails_headers(user);
        headers.retain(|(name, _)| !name.eq_ignore_ascii_case("authorization"));
        cluster.call(Method::POST, path).headers(headers).token(&token)
    };
    let answer = ide("/v2/completions", "alice")
        .json(&from_ide())
        .send()
        .await
        .good();
    assert_eq!(
        answer.json()["choices"][0]["text"],
        cluster.expected(16),
        "{answer}"
    );

    let other = ide("/v2/completions", "bob").json(&from_ide()).send().await;
    assert_eq!(other.status, StatusCode::UNAUTHORIZED, "{other}");
    assert_eq!(other.json()["error"], "Header mismatch 'X-Gitlab-Global-User-Id'");

    let code = completion("x = ", false);
    let prompt = json!({"inputs": {}});
    let chat = json!({"messages": [{"role": "user", "content": "hello"}]});
    for (path, body, text) in [
        (
            "/v2/code/completions",
            &code,
            "Unauthorized to access code completions",
        ),
        (
            "/v2/code/generations",
            &code,
            "Unauthorized to access code generations",
        ),
        (
            "/v1/prompts/model_configuration%2Fcheck",
            &prompt,
            "Unauthorized to access",
        ),
        ("/v2/chat/agent", &chat, "Unauthorized to access duo chat"),
        (TOKEN, &prompt, "Unauthorized to create user access token"),
    ] {
        let refused = ide(path, "alice").json(body).send().await;
        assert_eq!(refused.status, StatusCode::FORBIDDEN, "{path}: {refused}");
        assert!(refused.text().contains(text), "{path}: {refused}");
    }
    let mut openai = chat.clone();
    openai["model"] = "mistral".into();
    let refused = ide("/v1/chat/completions", "alice").json(&openai).send().await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN, "{refused}");

    // The keys are there for everybody to see, their private halves are not.
    let published = cluster
        .call(Method::GET, "/.well-known/jwks.json")
        .send()
        .await
        .good();
    let key = &published.json()["keys"][0];
    let mut fields: Vec<&String> = key.as_object().expect("a key").keys().collect();
    fields.sort();
    assert_eq!(fields, ["alg", "e", "kid", "kty", "n", "use"], "{published}");
    cluster.assert_clean().await;
}

#[tokio::test]
async fn whoever_may_not_have_a_token_gets_none() {
    let cluster = cluster_that_signs().await;
    let spec = TokenSpec::default().scopes(["duo_chat"]);
    let without_scope = cluster.rails_headers_with(&spec, "alice");
    let mut without_person = cluster.rails_headers("alice");
    without_person.retain(|(name, _)| *name != "x-gitlab-global-user-id");
    for headers in [without_scope, without_person] {
        let refused = ask_for_token(&cluster, headers).await;
        assert_eq!(refused.status, StatusCode::FORBIDDEN, "{refused}");
        assert_eq!(
            refused.json()["detail"],
            "Unauthorized to create user access token"
        );
    }
    let refused = cluster.openai(TOKEN, &json!({})).send().await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN, "{refused}");
    cluster.assert_clean().await;
}

#[tokio::test]
async fn without_a_signing_key_the_token_is_all_that_is_missing() {
    let cluster = Cluster::start().await;
    let refused = ask_for_token(&cluster, cluster.rails_headers("alice")).await;
    assert_eq!(refused.status, StatusCode::INTERNAL_SERVER_ERROR, "{refused}");
    assert_eq!(refused.json()["detail"], "Failed to generate JWT");
    let keys = cluster
        .call(Method::GET, "/.well-known/jwks.json")
        .send()
        .await
        .good();
    assert_eq!(keys.json(), json!({"keys": []}));
    let path = "/v2/code/completions";
    cluster
        .rails(path, "alice", &completion("x = ", false))
        .send()
        .await
        .good();
    cluster.assert_clean().await;
}
