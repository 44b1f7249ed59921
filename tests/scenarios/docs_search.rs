//! Search in GitLab's documentation: an index of Markdown is built, asked, replaced and away.

use std::fs;
use std::path::Path;
use std::time::Duration;

use duo_system_tests::gitlab::TokenSpec;
use duo_system_tests::harness::Cluster;
use duo_system_tests::harness::client::Answer;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::Instant;

const PATH: &str = "/v1/search/gitlab-docs";

fn asked(query: &str) -> Value {
    json!({
        "type": "search-docs",
        "metadata": {"source": "GitLab EE", "version": "18.9.2-ee"},
        "payload": {"query": query, "page_size": 4},
    })
}

async fn ask(cluster: &Cluster, query: &str) -> Value {
    let answer = cluster.rails(PATH, "alice", &asked(query)).send().await.good();
    answer.json()
}

/// The addresses of what was found.
async fn found(cluster: &Cluster, query: &str) -> Vec<String> {
    let answer = ask(cluster, query).await;
    let results = answer["response"]["results"].as_array().expect("a list");
    let url = |result: &Value| {
        result["metadata"]["source_url"]
            .as_str()
            .expect("text")
            .to_owned()
    };
    results.iter().map(url).collect()
}

fn write(folder: &Path, path: &str, text: &str) {
    let path = folder.join(path);
    fs::create_dir_all(path.parent().expect("a folder")).expect("our folder");
    fs::write(path, text).expect("our folder");
}

async fn index(cluster: &Cluster, folder: &Path, version: &str) -> (bool, String) {
    let folder = folder.to_str().expect("plain");
    let base = "https://gitlab.example.internal/help/";
    let arguments = ["docs", "index", folder, "--version", version, "--base-url", base];
    let (fine, out, err) = cluster.cli.run(&arguments).await;
    (fine, out + &err)
}

fn documentation(folder: &Path) {
    write(
        folder,
        "user/project/forking.md",
        "---\nstage: Create\ntitle: 'Forks'\n---\n\nA fork is a copy of a project.\n\n## Create a fork\n\nTo fork an existing \
         project, select **Fork**.\n\n## Update your fork\n\nPull from upstream.\n",
    );
    write(
        folder,
        "ci/_index.md",
        "# Pipelines\n\nA pipeline runs jobs of a project.\n\n```yaml\n## no heading\nfork: never\n```\n",
    );
    write(
        folder,
        ".hidden/secret.md",
        "# Fork\n\nNobody finds a fork here.\n",
    );
    write(folder, "user/notes.txt", "fork fork fork\n");
}

#[tokio::test]
async fn without_an_index_nothing_is_found_and_with_one_the_best_section_comes_first() {
    let cluster = Cluster::start().await;
    let question = "How do I create a fork of an existing project?";
    let empty = ask(&cluster, question).await;
    assert_eq!(empty["response"]["results"], json!([]));
    assert!(
        empty["metadata"]["timestamp"].is_i64() && empty["metadata"]["provider"].is_string(),
        "{empty}"
    );
    let status = cluster.cli.succeed(&["docs", "status", "--json"]).await;
    assert_eq!(status.trim(), "[]");

    let folder = tempfile::tempdir().expect("a folder");
    let (fine, said) = index(&cluster, folder.path(), "18.9").await;
    assert!(!fine && said.contains("holds no Markdown"), "{said}");
    documentation(folder.path());
    let (fine, said) = index(&cluster, folder.path(), "18.9").await;
    assert!(
        fine && said.contains("indexed 4 sections of 2 pages for version 18.9"),
        "{said}"
    );

    let answer = ask(&cluster, question).await;
    let first = &answer["response"]["results"][0];
    let page = "https://gitlab.example.internal/help/user/project/forking/#create-a-fork";
    assert_eq!(
        first["metadata"],
        json!({"title": "Forks", "section": "Create a fork", "source": "user/project/forking.md", "source_type": "doc",
               "source_url": page})
    );
    let content = first["content"].as_str().expect("text");
    assert_eq!(
        content,
        "# Forks\n\n## Create a fork\n\nTo fork an existing project, select **Fork**."
    );
    assert!(first["id"].as_str().is_some_and(|id| !id.is_empty()), "{first}");
    assert!(
        !found(&cluster, "secret hidden notes")
            .await
            .iter()
            .any(|url| url.contains("secret"))
    );

    let mut one = asked(question);
    one["payload"]["page_size"] = 1.into();
    let one = cluster.rails(PATH, "alice", &one).send().await.good().json();
    assert_eq!(
        one["response"]["results"].as_array().map(Vec::len),
        Some(1),
        "{one}"
    );
    // What was found is what the prompt takes.
    let prompt = json!({"inputs": {"question": question, "content_id": "CNT-IDX", "documents": answer["response"]["results"]}});
    cluster
        .rails("/v1/prompts/chat/documentation_search", "alice", &prompt)
        .send()
        .await
        .good();
    let sent = cluster.last_body()["messages"].to_string();
    assert!(sent.contains("To fork an existing project"), "{sent}");

    let records = "SELECT count(*) FROM audit_events WHERE kind = 'ended' AND outcome = 'completed' \
                   AND route = '/v1/search/gitlab-docs' AND feature = 'duo_chat' AND attempts = 0";
    cluster.assert_clean().await;
    assert_eq!(cluster.database.count(records).await, Ok(4));
    let changes = "SELECT count(*) FROM change_records WHERE what = 'docs.index' AND subject = '18.9'";
    assert_eq!(cluster.database.count(changes).await, Ok(1));
}

#[tokio::test]
async fn an_index_is_replaced_whole_and_the_nearest_version_answers() {
    let cluster = Cluster::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    documentation(folder.path());
    for version in ["18.9", "19.0"] {
        let (fine, said) = index(&cluster, folder.path(), version).await;
        assert!(fine, "{said}");
    }
    write(
        folder.path(),
        "user/project/forking.md",
        "# Spoons\n\nThere is no fork.\n",
    );
    fs::create_dir(folder.path().join("folder.md")).expect("our folder");
    let link = folder.path().join("link.md");
    std::os::unix::fs::symlink("/nowhere", &link).expect("a link");
    let (fine, said) = index(&cluster, folder.path(), "19.0").await;
    assert!(fine, "links and folders are no pages: {said}");

    // The question names 18.9.2-ee; 19.0 was built last.
    let answer = ask(&cluster, "fork").await;
    assert!(answer.to_string().contains("A fork is a copy"), "{answer}");
    let mut newer = asked("fork");
    newer["metadata"]["version"] = "19.0".into();
    let newer = cluster.rails(PATH, "alice", &newer).send().await.good().json();
    assert!(
        newer.to_string().contains("Spoons") && !newer.to_string().contains("a copy"),
        "{newer}"
    );
    cluster.cli.succeed(&["docs", "drop", "18.9"]).await;
    assert!(ask(&cluster, "fork").await.to_string().contains("Spoons"));
    let (fine, _, said) = cluster.cli.run(&["docs", "drop", "18.9"]).await;
    assert!(!fine && said.contains("there is no index"), "{said}");
    let status = cluster.cli.succeed(&["docs", "status"]).await;
    assert!(status.contains("19.0") && !status.contains("18.9"), "{status}");
    cluster.assert_clean().await;
}

#[tokio::test]
async fn no_question_is_an_error_and_what_is_no_question_is_refused() {
    let cluster = Cluster::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    documentation(folder.path());
    assert!(index(&cluster, folder.path(), "18.9").await.0);
    let long = "fork ".repeat(80_000);
    for query in [
        "",
        " ",
        "'",
        "fork & | !",
        "\"fork",
        "fork:* <-> ((",
        "\0fork\u{1F600}",
        "-- ; DROP TABLE features",
        "or OR or",
        "the a of",
        &long,
    ] {
        let answer = cluster.rails(PATH, "alice", &asked(query)).send().await.good();
        assert!(
            answer.json()["response"]["results"].is_array(),
            "{query:.20}: {answer}"
        );
    }
    assert!(!found(&cluster, &long).await.is_empty());

    let with = |path: &[&str], value: Value| {
        let mut body = asked("fork");
        let mut at = &mut body;
        for name in path {
            at = &mut at[*name];
        }
        *at = value;
        body
    };
    for (name, body) in [
        ("type", with(&["type"], Value::Null)),
        ("type", with(&["type"], "x".repeat(101).into())),
        ("metadata", with(&["metadata"], json!("none"))),
        (
            "metadata.version",
            with(&["metadata", "version"], "9".repeat(101).into()),
        ),
        ("metadata.source", with(&["metadata", "source"], json!(7))),
        ("payload", with(&["payload"], Value::Null)),
        ("payload.query", with(&["payload", "query"], Value::Null)),
        (
            "payload.query",
            with(&["payload", "query"], "x".repeat(400_001).into()),
        ),
        ("payload.page_size", with(&["payload", "page_size"], json!(0))),
        ("payload.page_size", with(&["payload", "page_size"], json!(21))),
        ("payload.page_size", with(&["payload", "page_size"], json!("4"))),
    ] {
        let refused = cluster.rails(PATH, "alice", &body).send().await;
        assert_eq!(
            refused.status,
            StatusCode::UNPROCESSABLE_ENTITY,
            "{name}: {refused}"
        );
        assert!(refused.text().contains(name), "{name}: {refused}");
    }
    let spec = TokenSpec::default().scopes(["complete_code", "duo_chat"]);
    let refused = cluster
        .call(Method::POST, PATH)
        .headers(cluster.rails_headers_with(&spec, "alice"))
        .json(&asked("fork"))
        .send()
        .await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
    assert_eq!(refused.json()["detail"], "Unauthorized to search documentations");
    cluster.assert_clean().await;
}

#[tokio::test]
async fn while_postgres_is_away_a_search_says_so_in_bounded_time() {
    let mut cluster = Cluster::builder().own_postgres().start().await;
    let folder = tempfile::tempdir().expect("a folder");
    documentation(folder.path());
    assert!(index(&cluster, folder.path(), "18.9").await.0);
    assert!(!found(&cluster, "fork").await.is_empty());
    let unavailable = |answer: Answer| {
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{answer}");
        assert_eq!(
            answer.header("x-duo-reason"),
            "documentation_unavailable",
            "{answer}"
        );
        assert!(!answer.header("retry-after").is_empty(), "{answer}");
        assert!(answer.json()["detail"].is_string(), "{answer}");
    };
    cluster.postgres.as_ref().expect("its own").freeze(true);
    let began = Instant::now();
    let calls = (0..12).map(|_| cluster.rails(PATH, "alice", &asked("fork")).send());
    for answer in futures_util::future::join_all(calls).await {
        unavailable(answer);
    }
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    cluster.postgres.as_ref().expect("its own").freeze(false);
    cluster.postgres.as_mut().expect("its own").stop();
    unavailable(cluster.rails(PATH, "alice", &asked("fork")).send().await);
    cluster.postgres.as_mut().expect("its own").start_again().await;
    duo_system_tests::harness::wait::until("the index answers again", Duration::from_secs(20), async || {
        let answer = cluster.rails(PATH, "alice", &asked("fork")).send().await;
        match answer.status {
            StatusCode::OK => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
    cluster.assert_clean().await;
}
