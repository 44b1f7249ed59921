//! The administration API: each resource's life, what is refused, who may, what is recorded, and how fast it is
//! followed.

use std::time::Duration;

use duo_system_tests::harness::client::client;
use duo_system_tests::harness::cluster::{chat, completion};
use duo_system_tests::harness::{Answer, Call, Cluster, PATIENCE, until};
use duo_system_tests::sim::Settings;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::Row as _;
use tokio::time::Instant;

/// Within this a change is in force everywhere.
const FOLLOWED: Duration = Duration::from_secs(1);
/// Changes under load in every run; `DUO_TEST_CHANGES` sets another number.
const CHANGES: usize = 60;

/// An administrator with a token that every broker knows.
struct Admin<'a> {
    cluster: &'a Cluster,
    token: String,
    http: reqwest::Client,
}

impl<'a> Admin<'a> {
    async fn new(cluster: &'a Cluster) -> Self {
        let token = cluster.cli.token("ops", "admin", &[]).await;
        let admin = Self {
            cluster,
            token,
            http: client(),
        };
        for broker in 0..cluster.brokers() {
            until("the token is known", PATIENCE, async || {
                let answer = admin.call_at(broker, Method::GET, "models").send().await;
                match answer.status {
                    StatusCode::OK => Ok(()),
                    other => Err(other.to_string()),
                }
            })
            .await;
        }
        admin
    }

    fn call_at(&self, broker: usize, method: Method, path: &str) -> Call {
        let url = format!("http://{}/admin/v1/{path}", self.cluster.address_of(broker));
        Call::new(&self.http, method, &url).token(&self.token)
    }

    async fn get(&self, path: &str) -> Answer {
        self.call_at(0, Method::GET, path).send().await
    }

    /// An edit of whatever is there.
    async fn put(&self, path: &str, body: &Value) -> Answer {
        let call = self.call_at(0, Method::PUT, path).header("if-match", "*");
        call.json(body).send().await
    }

    async fn delete(&self, path: &str) -> Answer {
        let call = self.call_at(0, Method::DELETE, path).header("if-match", "*");
        call.send().await
    }

    async fn post(&self, path: &str, body: &Value) -> Answer {
        self.call_at(0, Method::POST, path).json(body).send().await
    }

    /// Sends a request without a body.
    async fn ask(&self, path: &str) -> Value {
        self.call_at(0, Method::POST, path).send().await.good().json()
    }
}

fn problem_fields(answer: &Answer) -> Vec<String> {
    let answer = answer.json();
    let problems = answer["problems"].as_array().expect("problems").iter();
    problems
        .map(|problem| problem["field"].as_str().expect("a field").to_owned())
        .collect()
}

fn model(family: &str) -> Value {
    json!({"family": family, "context_tokens": 4096, "max_output_tokens": 512})
}

/// Changes as they are recorded: who, what, which one, before, after.
async fn changes(cluster: &Cluster, what: &str) -> Vec<(String, String, Option<Value>, Option<Value>)> {
    let sql = "SELECT actor, subject, before, after FROM change_records WHERE what = $1 ORDER BY id";
    let rows = sqlx::query(sql)
        .bind(what)
        .fetch_all(cluster.database.pool())
        .await;
    let rows = rows.expect("Postgres is there");
    rows.iter()
        .map(|row| (row.get(0), row.get(1), row.get(2), row.get(3)))
        .collect()
}

#[tokio::test]
async fn a_model_is_added_assigned_changed_and_removed_and_each_change_is_recorded() {
    let cluster = Cluster::start().await;
    let admin = Admin::new(&cluster).await;
    let listed = admin.get("models").await.good();
    let etag = listed.header("etag").to_owned();
    assert_eq!(etag, format!("\"{}\"", listed.json()["revision"]));
    assert_eq!(listed.json()["models"][0]["name"], "codegemma");
    assert_eq!(listed.json()["models"][0]["features"], json!(["code_completion"]));

    // Names may hold slashes, written either way.
    let added = admin.put("models/org%2Fmixtral", &model("mixtral_8x7b")).await;
    assert_eq!(added.status, StatusCode::CREATED, "{added}");
    assert_ne!(added.header("etag"), etag);
    let shown = admin.get("models/org/mixtral").await.good();
    assert_eq!(shown.json(), added.json());
    assert_eq!(shown.header("etag"), added.header("etag"));
    let same = admin
        .put("models/org/mixtral", &model("mixtral_8x7b"))
        .await
        .good();
    assert_eq!(
        same.header("etag"),
        added.header("etag"),
        "nothing changed, nothing counts"
    );

    let feature = admin.get("features/code_generation").await.good().json();
    let choices = feature["choices"].as_array().expect("choices");
    let of = |name: &str| choices.iter().find(|choice| choice["model"] == name);
    assert_eq!(of("org/mixtral").expect("compatible")["level"], "supported");
    assert_eq!(of("mistral").expect("compatible")["selected"], true);
    let assigned = admin
        .put("features/code_generation", &json!({"model": "org/mixtral"}))
        .await
        .good();
    assert_eq!(assigned.json()["model"], "org/mixtral");
    let used = admin.delete("models/org/mixtral").await;
    assert_eq!(used.status, StatusCode::UNPROCESSABLE_ENTITY, "{used}");
    assert_eq!(problem_fields(&used), ["features.code_generation.model"]);
    admin
        .put("features/code_generation", &json!({"active": false}))
        .await
        .good();
    let gone = admin.delete("models/org/mixtral").await;
    assert_eq!(gone.status, StatusCode::NO_CONTENT, "{gone}");
    assert_eq!(
        admin.get("models/org/mixtral").await.status,
        StatusCode::NOT_FOUND
    );
    assert_eq!(
        admin.delete("models/org/mixtral").await.status,
        StatusCode::NOT_FOUND
    );

    let puts = changes(&cluster, "model.put").await;
    let (actor, subject, before, after) = puts.last().expect("recorded");
    assert!(actor.starts_with("token:"), "{actor}");
    assert_eq!(subject, "org/mixtral");
    assert_eq!(
        (before, &after.as_ref().expect("after")["family"]),
        (&None, &json!("mixtral_8x7b"))
    );
    let removed = changes(&cluster, "model.remove").await;
    let (_, _, before, after) = removed.last().expect("recorded");
    assert_eq!(
        (&before.as_ref().expect("before")["context_tokens"], after),
        (&json!(4096), &None)
    );
    let tokens = changes(&cluster, "token.create").await;
    let ops = tokens
        .iter()
        .find(|(_, _, _, after)| after.as_ref().is_some_and(|token| token["name"] == "ops"));
    let (_, id, ..) = ops.expect("the token's own record");
    assert_eq!(*actor, format!("token:{id}"), "the author is the token");
    cluster.assert_clean().await;
}

#[tokio::test]
async fn an_edit_says_where_it_starts_and_a_stale_one_changes_nothing() {
    let cluster = Cluster::start().await;
    let admin = Admin::new(&cluster).await;
    let path = "models/mixtral";
    let edit = |etag: &str| {
        let call = admin.call_at(0, Method::PUT, path).json(&model("mixtral_8x7b"));
        if etag.is_empty() {
            call
        } else {
            call.header("if-match", etag)
        }
    };
    let missing = edit("").send().await;
    assert_eq!(missing.status, StatusCode::PRECONDITION_REQUIRED, "{missing}");
    assert_eq!(missing.json()["error"], "revision_required");
    let nonsense = edit("latest").send().await;
    assert_eq!(nonsense.status, StatusCode::UNPROCESSABLE_ENTITY, "{nonsense}");

    let etag = admin.get("models").await.good().header("etag").to_owned();
    let first = edit(&etag).send().await;
    assert_eq!(first.status, StatusCode::CREATED, "{first}");
    let stale = edit(&etag).send().await;
    assert_eq!(stale.status, StatusCode::CONFLICT, "{stale}");
    assert_eq!(stale.json()["error"], "stale_revision");
    let removal = admin
        .call_at(0, Method::DELETE, path)
        .header("if-match", &etag)
        .send()
        .await;
    assert_eq!(removal.status, StatusCode::CONFLICT, "{removal}");
    let apply = admin
        .call_at(0, Method::POST, "config/apply")
        .header("if-match", &etag);
    let apply = apply.text("application/yaml", "models: []\n").send().await;
    assert_eq!(apply.status, StatusCode::CONFLICT, "{apply}");
    assert_eq!(
        admin.get("models").await.good().header("etag"),
        first.header("etag")
    );

    // Of two who start from the same revision one wins.
    let etag = first.header("etag").to_owned();
    let race = |level: &str| {
        let body = json!({"level": level, "reason": "a race"});
        let call = admin.call_at(0, Method::PUT, "support/fix_code/mixtral_8x7b");
        call.header("if-match", &etag).json(&body).send()
    };
    let (a, b) = tokio::join!(race("supported"), race("not_supported"));
    let mut statuses = [a.status, b.status];
    statuses.sort();
    assert_eq!(statuses, [StatusCode::CREATED, StatusCode::CONFLICT], "{a} {b}");
    cluster.assert_clean().await;
}

#[tokio::test]
async fn what_is_wrong_is_named_field_by_field_and_nothing_changes() {
    let cluster = Cluster::start().await;
    let admin = Admin::new(&cluster).await;
    let etag = admin.get("models").await.good().header("etag").to_owned();
    let malformed = admin.call_at(0, Method::PUT, "models/x").header("if-match", "*");
    let malformed = malformed.text("application/json", "{\"family\": ").send().await;
    assert_eq!(malformed.status, StatusCode::BAD_REQUEST, "{malformed}");
    let bad = json!({"family": "", "context_tokens": "many", "surprise": 1});
    let many_windows = json!({"family": "f", "context_tokens": 10, "max_output_tokens": 20});
    let unsaid = json!({"model": "mistral"});
    let unsupported = json!({"model": "mistral"});
    for (path, body, fields) in [
        (
            "models/x",
            &bad,
            &["family", "context_tokens", "max_output_tokens", "surprise"][..],
        ),
        ("models/x", &many_windows, &["max_output_tokens"]),
        ("models/x", &json!(7), &[""]),
        ("features/fix_code", &unsaid, &["model"]),
        ("features/code_completion", &unsupported, &["model"]),
        ("features/duo_chat", &json!({"model": "nobody"}), &["model"]),
        (
            "features/duo_chat",
            &json!({"lane": "background", "end_within": 5}),
            &["lane", "end_within"],
        ),
        ("features/duo_chat", &json!({"end_within": "1s"}), &["end_within"]),
        ("features/duo_chat", &json!({"acknowledge": ""}), &["acknowledge"]),
        (
            "support/duo_chat/mistral_7b",
            &json!({"level": "good"}),
            &["level", "reason"],
        ),
        (
            "support/code_generation/mistral_7b",
            &json!({"level": "not_supported", "reason": "x"}),
            &["features.code_generation.model"],
        ),
        (
            "prompts/chat/explain_code/base",
            &json!({"text": "no front matter"}),
            &["text"],
        ),
        (
            "prompts/chat/explain_code/base",
            &json!({"file": "/etc/hostname"}),
            &["text", "file"],
        ),
        ("issuers/nonsense", &json!({"audience": "a"}), &["url"]),
        (
            "issuers/https%3A%2F%2Fg.example",
            &json!({"url": "https://h.example", "audience": ""}),
            &["url", "audience"],
        ),
    ] {
        let refused = admin.put(path, body).await;
        assert_eq!(
            refused.status,
            StatusCode::UNPROCESSABLE_ENTITY,
            "{path} {body}: {refused}"
        );
        let mut found = problem_fields(&refused);
        found.sort();
        let mut fields: Vec<_> = fields.iter().map(ToString::to_string).collect();
        fields.sort();
        assert_eq!(found, fields, "{path} {body}: {refused}");
    }
    let unacknowledged = admin.put("features/fix_code", &unsaid).await;
    assert!(unacknowledged.text().contains("acknowledge"), "{unacknowledged}");
    assert_eq!(admin.delete("tokens/a%00b").await.status, StatusCode::NOT_FOUND);
    assert_eq!(
        admin.delete("prompts/a%00/base").await.status,
        StatusCode::NOT_FOUND
    );
    for path in ["features/fix_coed", "features/No%20Such", "prompts/base"] {
        let unknown = admin.put(path, &json!({"active": false})).await;
        assert_eq!(unknown.status, StatusCode::NOT_FOUND, "{path}: {unknown}");
    }
    let token = json!({"name": "", "role": "king", "limit": 0, "features": ["fix_coed"]});
    let refused = admin.post("tokens", &token).await;
    assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY, "{refused}");
    let mut fields = problem_fields(&refused);
    fields.sort();
    assert_eq!(fields, ["limit", "name", "role"]);
    let unknown = json!({"name": "x", "role": "client", "features": ["fix_coed"]});
    assert_eq!(
        problem_fields(&admin.post("tokens", &unknown).await),
        ["features"]
    );
    assert_eq!(admin.get("models").await.good().header("etag"), etag);
    cluster.assert_clean().await;
}

#[tokio::test]
async fn only_administrators_administer() {
    let cluster = Cluster::start().await;
    let admin = Admin::new(&cluster).await;
    for (method, path) in [
        (Method::GET, "models"),
        (Method::PUT, "models/x"),
        (Method::GET, "features"),
        (Method::PUT, "features/duo_chat"),
        (Method::POST, "features/duo_chat/check"),
        (Method::POST, "models/mistral/test"),
        (Method::GET, "support"),
        (Method::DELETE, "prompts/chat/explain_code/base"),
        (Method::GET, "issuers"),
        (Method::POST, "tokens"),
        (Method::GET, "config"),
        (Method::POST, "config/apply"),
        (Method::GET, "openapi.json"),
    ] {
        let path = format!("/admin/v1/{path}");
        for token in [&cluster.client_token, &cluster.auditor_token] {
            let refused = cluster.call(method.clone(), &path).token(token).send().await;
            assert_eq!(
                refused.status,
                StatusCode::FORBIDDEN,
                "{method} {path}: {refused}"
            );
        }
        let rails = cluster
            .call(method.clone(), &path)
            .headers(cluster.rails_headers("root"));
        assert_eq!(
            rails.send().await.status,
            StatusCode::FORBIDDEN,
            "{method} {path}"
        );
        let stranger = cluster.call(method.clone(), &path).send().await;
        assert_eq!(stranger.status, StatusCode::UNAUTHORIZED, "{method} {path}");
    }
    let document = admin.get("openapi.json").await.good().json();
    assert!(document["paths"]["/admin/v1/models/{name}/test"]["post"].is_object());
    let printed: Value = serde_json::from_str(&cluster.cli.succeed(&["openapi"]).await).expect("JSON");
    assert_eq!(printed, document);
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_pair_takes_a_word_or_a_level_and_a_template_is_followed() {
    let cluster = Cluster::start().await;
    let admin = Admin::new(&cluster).await;

    // A pair to be evaluated takes somebody's word, or a level that somebody raised.
    let raised = json!({"level": "supported", "reason": "a week of trials"});
    let level = admin.put("support/fix_code/mistral_7b", &raised).await;
    assert_eq!(level.status, StatusCode::CREATED, "{level}");
    let assigned = admin
        .put("features/fix_code", &json!({"model": "mistral"}))
        .await
        .good()
        .json();
    assert_eq!(
        (&assigned["active"], &assigned["acknowledgement"]),
        (&json!(true), &Value::Null)
    );
    let of_feature = admin.get("support?feature=fix_code").await.good().json();
    assert_eq!(
        of_feature["support"].as_array().expect("levels").len(),
        2,
        "{of_feature}"
    );
    let word = json!({"model": "mistral", "acknowledge": "two weeks of trials"});
    let acknowledged = admin.put("features/refactor_code", &word).await.good().json();
    assert_eq!(acknowledged["acknowledgement"]["text"], "two weeks of trials");
    assert!(
        acknowledged["acknowledgement"]["by"]
            .as_str()
            .expect("who")
            .starts_with("token:")
    );
    let choice = &acknowledged["choices"][1];
    assert_eq!(
        (&choice["model"], &choice["needs_acknowledgement"]),
        (&json!("mistral"), &json!(false))
    );

    // A template is in force at once, and gone again.
    let prompt = "prompts/chat%2Fexplain_code/base";
    let built_in = admin.get(prompt).await.good().json();
    assert_eq!(built_in["overridden"], false);
    let text = built_in["text"]
        .as_str()
        .expect("text")
        .replacen("[[user]]", "[[user]]\nAhoy.", 1);
    let put = admin.put(prompt, &json!({"text": text})).await;
    assert_eq!(put.status, StatusCode::CREATED, "{put}");
    let inputs = json!({"inputs": {"input": "/explain", "selected_text": "let x = 1;"}});
    let says = async |ahoy: bool| {
        until("the template is followed", FOLLOWED, async || {
            let path = "/v1/prompts/chat/explain_code";
            cluster.rails(path, "alice", &inputs).send().await.good();
            let body = cluster.last_body().to_string();
            if body.contains("Ahoy.") == ahoy {
                Ok(())
            } else {
                Err(body)
            }
        })
        .await;
    };
    says(true).await;
    let listed = admin.get("prompts").await.good().json();
    let ours = listed["prompts"]
        .as_array()
        .expect("prompts")
        .iter()
        .filter(|prompt| prompt["overridden"] == true);
    assert_eq!(
        ours.map(|prompt| &prompt["id"]).collect::<Vec<_>>(),
        ["chat/explain_code"]
    );
    assert_eq!(admin.delete(prompt).await.status, StatusCode::NO_CONTENT);
    says(false).await;
    assert_eq!(admin.delete(prompt).await.status, StatusCode::NOT_FOUND);
    let broken = text.replacen("Ahoy.", "{{ input.no.such }}", 1);
    let refused = admin.put(prompt, &json!({"text": broken})).await;
    assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY, "{refused}");
    assert!(refused.text().contains("rendered"), "{refused}");
    cluster.assert_clean().await;
}

#[tokio::test]
async fn instances_and_tokens_come_and_go() {
    let cluster = Cluster::start().await;
    let admin = Admin::new(&cluster).await;
    // An instance that is trusted no longer has strangers' tokens.
    let issuer = format!(
        "issuers/{}",
        cluster.gitlab.url().replace(':', "%3A").replace('/', "%2F")
    );
    let known = admin.get(&issuer).await.good().json();
    assert_eq!(known["audience"], "gitlab-ai-gateway");
    let other = admin
        .put(
            "issuers/https%3A%2F%2Fgitlab.example.com",
            &json!({"audience": "a", "openai": true}),
        )
        .await;
    assert_eq!(other.status, StatusCode::CREATED, "{other}");
    assert_eq!(other.json()["url"], "https://gitlab.example.com");
    assert_eq!(admin.delete(&issuer).await.status, StatusCode::NO_CONTENT);
    until("its tokens are refused", FOLLOWED, async || {
        let answer = cluster
            .rails("/v2/code/completions", "alice", &completion("x", false))
            .send()
            .await;
        match answer.status {
            StatusCode::UNAUTHORIZED => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;

    // A token's secret is shown once.
    let made = admin
        .post(
            "tokens",
            &json!({"name": "ci", "role": "client", "expires_in": "90d"}),
        )
        .await;
    assert_eq!(made.status, StatusCode::CREATED, "{made}");
    assert_eq!(made.header("cache-control"), "no-store");
    let made = made.json();
    let secret = made["secret"].as_str().expect("a secret");
    let twice = admin
        .post("tokens", &json!({"name": "ci", "role": "client"}))
        .await;
    assert_eq!(twice.status, StatusCode::CONFLICT, "{twice}");
    let works = async |expected: StatusCode| {
        until("the token is followed", FOLLOWED, async || {
            let call = cluster.call(Method::POST, "/v1/chat/completions").token(secret);
            let status = call.json(&chat("hello", 2, false)).send().await.status;
            if status == expected {
                Ok(())
            } else {
                Err(status.to_string())
            }
        })
        .await;
    };
    works(StatusCode::OK).await;
    let listed = admin.get("tokens").await.good();
    assert!(!listed.text().contains(secret));
    assert_eq!(listed.json()["tokens"][0]["name"], "ci");
    let id = made["id"].as_str().expect("an id");
    assert_eq!(
        admin.delete(&format!("tokens/{id}")).await.status,
        StatusCode::NO_CONTENT
    );
    works(StatusCode::UNAUTHORIZED).await;
    assert_eq!(
        admin.delete(&format!("tokens/{id}")).await.status,
        StatusCode::NOT_FOUND
    );
    let revoked = changes(&cluster, "token.revoke").await;
    assert!(
        revoked
            .last()
            .is_some_and(|(actor, ..)| actor.starts_with("token:")),
        "{revoked:?}"
    );
    cluster.assert_clean().await;
}

#[tokio::test]
async fn the_configuration_travels_as_one_file() {
    let cluster = Cluster::start().await;
    let admin = Admin::new(&cluster).await;
    let exported = admin.get("config").await.good();
    assert_eq!(exported.header("content-type"), "application/yaml");
    assert_eq!(
        exported.text().trim_end(),
        cluster.cli.succeed(&["config", "export"]).await.trim_end()
    );
    let file = |path: &str, text: &str| {
        let call = admin
            .call_at(0, Method::POST, path)
            .header("if-match", exported.header("etag"));
        call.text("application/yaml", text.to_owned()).send()
    };
    let same = file("config/apply", &exported.text()).await.good();
    assert_eq!(same.json()["changes"], json!([]));
    assert_eq!(same.header("etag"), exported.header("etag"));

    let change = "features: {code_generation: inactive}\nsupport_levels:\n  \
                  - {feature: fix_code, family: mistral_7b, level: supported, reason: trials}\n";
    let would = file("config/diff", change).await.good();
    let whats: Vec<_> = would.json()["changes"].as_array().expect("changes").clone();
    assert_eq!(
        whats.iter().map(|change| &change["what"]).collect::<Vec<_>>(),
        ["support.put", "feature.put"]
    );
    assert_eq!(
        (&whats[1]["before"]["active"], &whats[1]["after"]["active"]),
        (&json!(true), &json!(false))
    );
    assert_eq!(
        admin.get("config").await.good().text(),
        exported.text(),
        "a diff changes nothing"
    );
    let applied = file("config/apply", change).await.good();
    assert_eq!(applied.json(), would.json());
    assert_eq!(
        admin.get("features/code_generation").await.good().json()["active"],
        false
    );

    let wrong = "features: {code_completion: {model: mistral}, fix_coed: inactive}\n";
    let refused = admin.call_at(0, Method::POST, "config/diff");
    let refused = refused.text("application/yaml", wrong).send().await;
    assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY, "{refused}");
    let mut fields = problem_fields(&refused);
    fields.sort();
    assert_eq!(fields, ["features.code_completion.model", "features.fix_coed"]);
    let peek = "prompts: [{id: chat/explain_code, family: base, file: /etc/hostname}]\n";
    let refused = admin.call_at(0, Method::POST, "config/diff");
    let refused = refused.text("application/yaml", peek).send().await;
    assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY, "{refused}");
    assert!(refused.text().contains("prompts[0].file"), "{refused}");

    let path = cluster.folder().join("wrong.yaml");
    std::fs::write(&path, change).expect("our folder");
    let said = cluster
        .cli
        .succeed(&["config", "diff", path.to_str().expect("a plain path")])
        .await;
    assert!(said.contains("nothing to change"), "{said}");
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_test_asks_the_very_model_and_a_check_the_features_own_prompt() {
    let cluster = Cluster::start().await;

    let admin = Admin::new(&cluster).await;
    let tested = admin.ask("models/mistral/test").await;
    assert_eq!(
        (&tested["outcome"], &tested["endpoint"]),
        (&json!("answered"), &json!("/chat/completions"))
    );
    assert_eq!(
        (&tested["worker"], &tested["feature"]),
        (&json!("w1"), &json!("model_test"))
    );
    assert!(
        tested["message"]
            .as_str()
            .expect("words")
            .starts_with("mistral answered in "),
        "{tested}"
    );
    assert_eq!(cluster.last_body()["max_tokens"], 16);
    let tested = admin.ask("models/codegemma/test").await;
    assert_eq!(
        (&tested["outcome"], &tested["endpoint"]),
        (&json!("answered"), &json!("/completions"))
    );
    let tested = admin.ask("models/codegemma/test?as=chat").await;
    assert_eq!(tested["endpoint"], "/chat/completions", "{tested}");
    let of_the_test = cluster.last_body()["messages"].clone();

    let checked = admin.ask("features/duo_chat/check").await;
    assert_eq!(
        (&checked["outcome"], &checked["feature"]),
        (&json!("answered"), &json!("duo_chat"))
    );
    assert_ne!(cluster.last_body()["messages"], of_the_test, "its own prompt");
    let checked = admin.ask("features/openai_chat/check?model=codegemma").await;
    assert_eq!(
        (&checked["outcome"], &checked["model"]),
        (&json!("answered"), &json!("codegemma"))
    );
    for (path, status) in [
        ("features/openai_chat/check", StatusCode::UNPROCESSABLE_ENTITY),
        ("features/root_cause_analysis/check", StatusCode::CONFLICT),
        ("features/fix_coed/check", StatusCode::NOT_FOUND),
        ("models/nobody/test", StatusCode::NOT_FOUND),
        ("models/mistral", StatusCode::NOT_FOUND),
        ("models/mistral/test?as=song", StatusCode::UNPROCESSABLE_ENTITY),
    ] {
        let refused = admin.call_at(0, Method::POST, path).send().await;
        assert_eq!(refused.status, status, "{path}: {refused}");
    }
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_test_that_goes_wrong_tells_in_words_what_happened() {
    let cluster = Cluster::start().await;
    let admin = Admin::new(&cluster).await;
    cluster.sim.set(|sim| sim.fail_rate = 1.0);
    let tested = admin.ask("models/mistral/test").await;
    assert_eq!(
        (&tested["outcome"], &tested["upstream_status"]),
        (&json!("failed"), &json!(500)),
        "{tested}"
    );
    assert!(
        tested["message"]
            .as_str()
            .expect("words")
            .contains("mistral failed (status 500)"),
        "{tested}"
    );
    cluster.sim.set(|sim| {
        sim.fail_rate = 0.0;
        sim.ttft_ms = 20_000;
    });
    let tested = admin.ask("models/codegemma/test").await;
    assert!(
        ["late", "no_worker"].contains(&tested["outcome"].as_str().expect("an outcome")),
        "{tested}"
    );
    assert!(
        tested["latency_ms"].as_u64().expect("a number") < 3000,
        "{tested}"
    );
    let letters = admin.get("dead").await.good().json();
    assert_eq!(letters, json!({"letters": []}), "a probe leaves no letter");
    cluster.sim.set(|sim| sim.ttft_ms = 0);

    admin.put("models/mixtral", &model("mixtral_8x7b")).await;
    until("the model is there", FOLLOWED, async || {
        let tested = admin.call_at(0, Method::POST, "models/mixtral/test").send().await;
        match tested.status {
            StatusCode::OK => Ok(tested.json()),
            other => Err(other.to_string()),
        }
    })
    .await;
    let tested = admin.ask("models/mixtral/test").await;
    assert_eq!(tested["outcome"], "no_worker", "{tested}");
    let words = tested["message"].as_str().expect("words");
    assert!(words.contains("no worker serves mixtral"), "{words}");
    let said = cluster
        .cli
        .with("DUO_ADMIN_TOKEN", &admin.token)
        .with("DUO_URL", &cluster.url())
        .run(&["test", "model", "mixtral"])
        .await;
    assert!(!said.0 && said.1.contains("no worker serves mixtral"), "{said:?}");
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_test_goes_ahead_of_what_waits() {
    let sim = Settings {
        ttft_ms: 1500,
        ..Settings::default()
    };
    let cluster = Cluster::builder().sim(sim).slots(2).start().await;
    let admin = Admin::new(&cluster).await;
    let waiting: Vec<_> = (0..6)
        .map(|number| {
            let call = cluster.openai(
                "/v1/chat/completions",
                &chat(&format!("question {number}"), 2, false),
            );
            tokio::spawn(call.send())
        })
        .collect();
    cluster.sim_shows(|stats| stats.running >= 1).await;
    until("a line is there", PATIENCE, async || {
        let queued = cluster.messages("DUO_LIVE").await?;
        if queued == 6 {
            Ok(())
        } else {
            Err(queued.to_string())
        }
    })
    .await;
    let tested = admin.ask("models/mistral/test").await;
    assert_eq!(tested["outcome"], "answered", "{tested}");
    for answer in waiting {
        answer.await.expect("no panic").good();
    }
    cluster.assert_clean().await;
}

#[tokio::test]
async fn gitlabs_own_test_asks_the_model_that_it_names() {
    let cluster = Cluster::start().await;
    let path = "/v1/prompts/model_configuration%2Fcheck";
    let test = |identifier: &str| {
        let metadata =
            json!({"provider": "litellm", "identifier": identifier, "endpoint": "http://model", "name": "x"});
        let body = json!({"inputs": {}, "prompt_version": "^1.0.0", "model_metadata": metadata});
        cluster
            .rails(path, "root", &body)
            .header("x-request-id", identifier)
    };
    test("custom_openai/mistral").send().await.good();
    assert_eq!(
        cluster.last_body()["messages"][0]["role"],
        "user",
        "a chat model is asked to chat"
    );
    test("custom_openai/codegemma").send().await.good();
    assert!(
        cluster.last_body()["prompt"].is_string(),
        "a completion model to complete"
    );
    let unknown = test("custom_openai/nobody").send().await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND, "{unknown}");
    let words = unknown.json()["detail"][0]["msg"]
        .as_str()
        .expect("words")
        .to_owned();
    assert!(
        words.contains("mistral") && words.contains("custom_openai/"),
        "{words}"
    );

    // Whatever the features' state.
    let admin = Admin::new(&cluster).await;
    admin
        .put("features/code_completion", &json!({"active": false}))
        .await
        .good();
    until("the feature is inactive", FOLLOWED, async || {
        let answer = cluster
            .rails("/v2/code/completions", "a", &completion("x", false))
            .send()
            .await;
        match answer.status {
            StatusCode::FORBIDDEN => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
    test("custom_openai/mistral").send().await.good();
    let end = cluster.end_of("custom_openai/mistral").await;
    assert_eq!(end.0, "completed");
    let models =
        "SELECT DISTINCT model FROM audit_events WHERE feature = 'model_test' AND kind = 'ended' ORDER BY 1";
    until("the records say what was asked", PATIENCE, async || {
        let rows = sqlx::query(models).fetch_all(cluster.database.pool()).await;
        let rows = rows.map_err(|error| error.to_string())?;
        let found: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        if found == ["codegemma", "mistral"] {
            Ok(())
        } else {
            Err(format!("{found:?}"))
        }
    })
    .await;
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_change_is_in_force_at_every_broker_and_worker_within_a_second() {
    let cluster = Cluster::builder()
        .brokers(2)
        .configure(|config| {
            // The worker serves this one too, as soon as it exists.
            let models = config["models"].as_array_mut().expect("models");
            models.retain(|model| model["name"] != "codegemma");
            config["features"]["code_completion"] = "inactive".into();
        })
        .start()
        .await;
    let admin = Admin::new(&cluster).await;
    let complete = |broker: usize| {
        let url = format!("http://{}/v2/code/completions", cluster.address_of(broker));
        let call = Call::new(&admin.http, Method::POST, &url).headers(cluster.rails_headers("alice"));
        call.json(&completion("x", false))
    };
    for broker in 0..2 {
        assert_eq!(complete(broker).send().await.status, StatusCode::FORBIDDEN);
    }
    let mut worst = [Duration::ZERO; 2];
    admin.put("models/codegemma", &model("codegemma_7b")).await;
    for round in 0..5 {
        let began = Instant::now();
        admin
            .put("features/code_completion", &json!({"model": "codegemma"}))
            .await
            .good();
        let mut took = [Duration::ZERO; 2];
        for (broker, took) in took.iter_mut().enumerate() {
            until(
                "it is served at every broker by the worker",
                FOLLOWED,
                async || {
                    let answer = complete(broker).send().await;
                    let served =
                        answer.status == StatusCode::OK && answer.json()["choices"][0]["text"].is_string();
                    if served { Ok(()) } else { Err(answer.to_string()) }
                },
            )
            .await;
            *took = began.elapsed();
        }
        admin
            .put("features/code_completion", &json!({"active": false}))
            .await
            .good();
        for broker in 0..2 {
            until("it is inactive at every broker", FOLLOWED, async || {
                let answer = complete(broker).send().await;
                let refused = answer.status == StatusCode::FORBIDDEN;
                if refused { Ok(()) } else { Err(answer.to_string()) }
            })
            .await;
        }
        for (worst, took) in worst.iter_mut().zip(took) {
            *worst = (*worst).max(took);
        }
        assert!(
            worst.iter().all(|took| *took < FOLLOWED),
            "round {round}: {worst:?}"
        );
    }
    print(&format!(
        "a change was served by a worker within {worst:?} at the two brokers, worst of 5"
    ));
    cluster.assert_clean().await;
}

#[tokio::test]
async fn changes_under_load_fail_no_request() {
    let changes = std::env::vars().find(|(name, _)| name == "DUO_TEST_CHANGES");
    let changes = changes.map_or(CHANGES, |(_, text)| text.parse().expect("a number"));
    let cluster = Cluster::builder().brokers(2).slots(16).start().await;
    let admin = Admin::new(&cluster).await;
    cluster.slots_known().await;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let clients: Vec<_> = (0..4)
        .map(|number| {
            let broker = number % 2;
            let url = format!("http://{}", cluster.address_of(broker));
            let chatty = Call::new(&admin.http, Method::POST, &format!("{url}/v1/chat/completions"))
                .token(&cluster.client_token)
                .json(&chat("hello", 3, true));
            let coding = Call::new(&admin.http, Method::POST, &format!("{url}/v2/code/completions"))
                .headers(cluster.rails_headers(&format!("person {number}")))
                .json(&completion("x", false));
            let stopped = stopped.clone();
            tokio::spawn(async move {
                let mut fine = 0_usize;
                while !*stopped.borrow() {
                    let answer = chatty.again().send().await.good();
                    assert!(answer.looks_whole(), "{answer}");
                    let answer = coding.again().send().await.good();
                    assert!(answer.json()["choices"][0]["text"].is_string(), "{answer}");
                    fine += 2;
                }
                fine
            })
        })
        .collect();
    let began = Instant::now();
    let mut slowest = Duration::ZERO;
    for number in 0..changes {
        let sent = Instant::now();
        let limit = 1000 + number % 7;
        let body = json!({"family": "mistral_7b", "context_tokens": 8192, "max_output_tokens": limit});
        let call = admin
            .call_at(number % 2, Method::PUT, "models/mistral")
            .header("if-match", "*");
        call.json(&body).send().await.good();
        slowest = slowest.max(sent.elapsed());
    }
    let took = began.elapsed();
    let revision = admin.get("models").await.good().json()["revision"]
        .as_f64()
        .expect("a number");
    for broker in 0..2 {
        until("every broker follows", FOLLOWED, async || {
            let metrics = cluster.broker_metrics(broker).await?;
            let found = duo_system_tests::harness::cluster::sum(&metrics, "duo_config_revision");
            if found >= revision {
                Ok(())
            } else {
                Err(format!("{found} of {revision}"))
            }
        })
        .await;
    }
    stop.send_replace(true);
    let mut fine = 0;
    for client in clients {
        fine += client.await.expect("no request failed");
    }
    assert!(fine > 0);
    print(&format!(
        "{changes} changes in {took:?}, the slowest in {slowest:?}, while {fine} requests went well and none failed"
    ));
    cluster.assert_clean().await;
}

/// Says a figure where `--no-capture` shows it.
fn print(text: &str) {
    use std::io::Write as _;
    let _shown = writeln!(std::io::stderr(), "{text}");
}
