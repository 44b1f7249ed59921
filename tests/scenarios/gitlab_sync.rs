//! What administrators choose in GitLab is proposed, or made so within what the configuration allows.

use std::time::Duration;

use duo_system_tests::gitlab::{GRAPHQL_TOKEN, Gitlab, GraphqlAnswer};
use duo_system_tests::harness::program::free_port;
use duo_system_tests::harness::{Cluster, Program, until};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(30);

/// Two models that the configuration has, one by its identifier and one by its name, and one that it has not.
fn models() -> Value {
    let model = |id: u8, name: &str, identifier: &str| {
        json!({"id": format!("gid://gitlab/Ai::SelfHostedModel/{id}"), "name": name, "identifier": identifier,
               "model": "MISTRAL", "endpoint": "http://127.0.0.1:9/steal", "hasApiToken": true})
    };
    json!([
        model(1, "Our Mistral", "custom_openai/mistral"),
        model(2, "codegemma", ""),
        model(3, "New", "custom_openai/org/new-model"),
    ])
}

fn setting(feature: &str, provider: &str, model: Option<u8>) -> Value {
    let model = model.map(|id| json!({"id": format!("gid://gitlab/Ai::SelfHostedModel/{id}")}));
    json!({"feature": feature, "provider": provider, "selfHostedModel": model})
}

/// Chat goes off, vulnerabilities may be explained by nobody here, completion stays, and the rest cannot be followed.
fn chosen() -> GraphqlAnswer {
    GraphqlAnswer::Settings(
        models(),
        json!([
            setting("code_completions", "self_hosted", Some(2)),
            setting("code_generations", "self_hosted", Some(1)),
            setting("duo_chat", "disabled", None),
            setting("duo_chat_fix_code", "self_hosted", Some(1)),
            setting("duo_chat_explain_vulnerability", "self_hosted", Some(1)),
            setting("duo_chat_write_tests", "self_hosted", Some(3)),
            setting("glab_ask_git_command", "vendored", None),
            setting("duo_agent_platform", "self_hosted", Some(1)),
            setting("summarize_review", "unassigned", None),
        ]),
    )
}

/// A further broker, which reads GitLab's settings.
fn reader(cluster: &Cluster, name: &str, mode: &str, token: &str) -> Program {
    let local = || format!("127.0.0.1:{}", free_port());
    let token_file = cluster.folder().join(format!("token-{name}"));
    std::fs::write(&token_file, format!("{token}\n")).expect("our folder");
    let changes = [
        ("DUO_BROKER_NAME", name.to_owned()),
        ("DUO_LISTEN", local()),
        ("DUO_ADMIN_LISTEN", local()),
        ("DUO_GITLAB_SYNC", mode.to_owned()),
        ("DUO_GITLAB_SYNC_URL", cluster.gitlab.url()),
        ("DUO_GITLAB_SYNC_TOKEN_FILE", token_file.display().to_string()),
        ("DUO_GITLAB_SYNC_EVERY", "1s".to_owned()),
    ];
    cluster
        .cli
        .serve(&format!("broker-{name}"), &changes, cluster.folder())
}

async fn shown(cluster: &Cluster) -> Value {
    let out = cluster.cli.succeed(&["gitlab-sync", "show", "--json"]).await;
    serde_json::from_str(&out).expect("JSON")
}

/// Waits until what is shown is as wanted.
async fn shows(cluster: &Cluster, what: &str, enough: impl Fn(&Value) -> bool) -> Value {
    until(what, PATIENCE, async || {
        let shown = shown(cluster).await;
        if enough(&shown) {
            Ok(shown)
        } else {
            Err(shown.to_string())
        }
    })
    .await
}

fn has_report(shown: &Value) -> bool {
    shown["error"].is_null() && shown["report"].is_object()
}

async fn changes_by_sync(cluster: &Cluster) -> i64 {
    let sql = "SELECT count(*) FROM change_records WHERE actor = 'gitlab_sync'";
    cluster.database.count(sql).await.expect("a count")
}

async fn features(cluster: &Cluster) -> String {
    cluster.cli.succeed(&["config", "export"]).await
}

#[tokio::test]
async fn a_proposal_is_shown_and_changes_nothing() {
    let cluster = Cluster::start().await;
    assert_eq!(shown(&cluster).await, Value::Null);
    let before = features(&cluster).await;
    cluster.gitlab.answer_graphql(chosen());
    let _reader = reader(&cluster, "sync", "propose", GRAPHQL_TOKEN);
    let shown = shows(&cluster, "GitLab was read", has_report).await;
    let report = &shown["report"];
    assert_eq!(report["applied"], false);
    let change = |feature: &str, from: Value, to: Value| json!({"feature": feature, "from": from, "to": to});
    assert_eq!(
        report["changes"],
        json!([change("duo_chat", json!("mistral"), Value::Null)]),
        "{report:#}"
    );
    let skipped = report["skipped"].as_array().expect("a list");
    let reason = |setting: &str| {
        let found = skipped.iter().find(|skipped| skipped["setting"] == setting);
        found.map(|skipped| skipped["reason"].as_str().expect("text").to_owned())
    };
    let says = |setting: &str, words: &str| {
        let reason = reason(setting);
        assert!(
            reason.as_ref().is_some_and(|text| text.contains(words)),
            "{setting}: {reason:?}"
        );
    };
    says("duo_chat_fix_code", "acknowledge");
    says("duo_chat_explain_vulnerability", "not_supported");
    says("duo_chat_write_tests", "no model of that name");
    says("duo_agent_platform", "no such feature");
    assert_eq!(skipped.len(), 4, "{report:#}");
    assert!(!shown.to_string().contains("steal"), "no endpoint is kept");

    let text = cluster.cli.succeed(&["gitlab-sync", "show"]).await;
    assert!(text.contains("~ duo_chat: mistral -> inactive"), "{text}");
    assert!(
        text.contains("! duo_chat_write_tests (custom_openai/org/new-model)"),
        "{text}"
    );
    assert_eq!(features(&cluster).await, before);
    assert_eq!(changes_by_sync(&cluster).await, 0);
    cluster.assert_clean().await;
}

#[tokio::test]
async fn what_is_allowed_is_applied_and_recorded_by_one_broker_of_several() {
    let mut cluster = Cluster::start().await;
    // Nobody had to say so for completions; for chat somebody has.
    let (fine, said) = cluster
        .apply(|config| config["features"]["code_completion"] = "inactive".into())
        .await;
    assert!(fine, "{said}");
    cluster.gitlab.answer_graphql(chosen());
    let _readers = [
        reader(&cluster, "sync-1", "apply", GRAPHQL_TOKEN),
        reader(&cluster, "sync-2", "apply", GRAPHQL_TOKEN),
    ];
    shows(&cluster, "nothing is left to change", |shown| {
        has_report(shown) && shown["report"]["changes"] == json!([])
    })
    .await;
    let export = features(&cluster).await;
    let chat = export.split("  duo_chat:\n").nth(1).unwrap_or_default();
    assert!(chat.trim_start().starts_with("active: false"), "{export}");
    assert!(
        !export.contains("new-model") && !export.contains("127.0.0.1:9"),
        "{export}"
    );
    assert_eq!(
        changes_by_sync(&cluster).await,
        2,
        "chat and completion, once each"
    );
    let record = "SELECT count(*) FROM change_records WHERE actor = 'gitlab_sync' AND what = 'feature.put' \
                  AND subject = 'duo_chat' AND before->>'model' = 'mistral' AND after->>'model' IS NULL";
    assert_eq!(cluster.database.count(record).await, Ok(1));
    let completion = cluster
        .rails(
            "/v2/code/completions",
            "alice",
            &duo_system_tests::harness::cluster::completion("x = ", false),
        )
        .send()
        .await;
    assert!(completion.status.is_success(), "{completion}");

    cluster.gitlab.answer_graphql(GraphqlAnswer::Empty);
    let asked = cluster.gitlab.graphql_asked();
    until("GitLab was asked again", PATIENCE, async || {
        let now = cluster.gitlab.graphql_asked();
        if now > asked + 1 {
            Ok(())
        } else {
            Err(now.to_string())
        }
    })
    .await;
    assert_eq!(changes_by_sync(&cluster).await, 2, "no answer, no change");
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_gitlab_that_fails_changes_nothing_and_is_told_of() {
    let cluster = Cluster::start().await;
    let elsewhere = Gitlab::start().await.expect("another");
    elsewhere.answer_graphql(chosen());
    cluster.gitlab.answer_graphql(GraphqlAnswer::Empty);
    let _reader = reader(&cluster, "sync", "apply", GRAPHQL_TOKEN);
    let good = shows(&cluster, "GitLab was read", has_report).await;
    let hidden = json!({"data": {"aiSelfHostedModels": null, "aiFeatureSettings": null}});
    let refused =
        json!({"errors": [{"message": "Field 'aiSelfHostedModels' doesn't exist on type 'Query'"}]});
    for (answer, words) in [
        (
            GraphqlAnswer::Text("<html>sign in".to_owned()),
            "no answer of GitLab's GraphQL API",
        ),
        (GraphqlAnswer::Text(hidden.to_string()), "shows no settings"),
        (GraphqlAnswer::Text(refused.to_string()), "doesn't exist on type"),
        (GraphqlAnswer::Status(401), "does not take the token"),
        (GraphqlAnswer::Status(502), "answered 502"),
        (GraphqlAnswer::Endless, "larger than"),
        (
            GraphqlAnswer::Redirect(format!("{}/api/graphql", elsewhere.url())),
            "answered 307",
        ),
        (GraphqlAnswer::Silence, "within 10 s"),
    ] {
        cluster.gitlab.answer_graphql(answer);
        let shown = shows(&cluster, words, |shown| {
            shown["error"].as_str().is_some_and(|error| error.contains(words))
        })
        .await;
        assert_eq!(shown["report"], good["report"], "the last good answer stays");
    }
    assert_eq!(elsewhere.graphql_asked(), 0, "the token goes nowhere else");
    cluster.gitlab.answer_graphql(GraphqlAnswer::Empty);
    shows(&cluster, "all is well again", has_report).await;
    assert_eq!(changes_by_sync(&cluster).await, 0);
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_wrong_token_is_told_and_neither_it_nor_a_right_one_is_in_a_log() {
    let cluster = Cluster::start().await;
    let wrong = "glpat-nobody-knows-it";
    let mut reader = reader(&cluster, "sync", "propose", wrong);
    shows(&cluster, "the token is refused", |shown| {
        shown["error"]
            .as_str()
            .is_some_and(|error| error.contains("does not take the token (401)"))
    })
    .await;
    assert!(reader.terminate().await.success());
    let log = std::fs::read_to_string(reader.log()).expect("a log");
    assert!(
        log.contains("does not take the token") && !log.contains(wrong),
        "{log}"
    );
    let checked = cluster.cli.with("DUO_GITLAB_SYNC", "apply");
    let (fine, out, err) = checked.run(&["serve", "--check-config"]).await;
    assert!(
        !fine && (out.clone() + &err).contains("DUO_GITLAB_SYNC_URL"),
        "{out}{err}"
    );
    cluster.assert_clean().await;
}
