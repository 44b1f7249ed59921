//! More work than there is room for, and no one to do it.

use std::time::Duration;

use duo_system_tests::harness::cluster::{agent, answer_to, chat, completion};
use duo_system_tests::harness::{Cluster, PATIENCE, until};
use duo_system_tests::sim::Settings;
use http::StatusCode;
use serde_json::{Value, json};

#[tokio::test]
async fn the_ninth_request_of_a_person_is_refused_gently_and_the_next_person_is_not() {
    let sim = Settings {
        tokens: 1000,
        pace_ms: 20,
        ..Settings::default()
    };
    let cluster = Cluster::builder()
        .sim(sim)
        .slots(4)
        .configure(|config| {
            // Long enough that nothing expires meanwhile.
            config["features"]["code_completion"] =
                json!({"model": "codegemma", "first_byte_within": "50s", "end_within": "60s"});
        })
        .start()
        .await;
    let asked: Vec<_> = (0..8)
        .map(|number| {
            let mut body = completion("x = ", true);
            // Completions of one file would replace each other.
            body["current_file"]["file_name"] = format!("file{number}.py").into();
            tokio::spawn(cluster.rails("/v2/code/completions", "alice", &body).try_open())
        })
        .collect();
    cluster.queued(8).await;
    let nothing = cluster.rails("/v2/code/completions", "alice", &completion("y", false));
    let nothing = nothing.header("x-request-id", "ninth").send().await.good();
    assert_eq!(nothing.json()["choices"], json!([]), "{nothing}");
    let streamed = cluster
        .rails("/v2/code/completions", "alice", &completion("y", true))
        .send()
        .await
        .good();
    assert_eq!(
        (streamed.text().as_str(), streamed.header("content-type")),
        ("", "text/event-stream; charset=utf-8")
    );
    let (outcome, reason) = cluster.end_of("ninth").await;
    assert_eq!(
        (outcome.as_str(), reason.as_deref()),
        ("refused", Some("caller_limit"))
    );
    cluster.queued(8).await;
    let other = tokio::spawn(
        cluster
            .rails("/v2/code/completions", "bob", &completion("z", true))
            .try_open(),
    );
    cluster.queued(9).await;
    asked.iter().for_each(tokio::task::JoinHandle::abort);
    other.abort();
    drop((asked, other));
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_service_clients_own_limit_answers_429_with_a_time_to_come_again() {
    let sim = Settings {
        tokens: 1000,
        pace_ms: 20,
        ..Settings::default()
    };
    let cluster = Cluster::builder().sim(sim).slots(2).start().await;
    let token = cluster.cli.token("small", "client", &["--limit", "8"]).await;
    let ask = |number: usize| {
        let body = chat(&format!("question {number}"), 1000, true);
        cluster
            .call(http::Method::POST, "/v1/chat/completions")
            .token(&token)
            .json(&body)
    };
    token_works(&cluster, &token).await;
    let asked: Vec<_> = (0..8)
        .map(|number| tokio::spawn(ask(number).try_open()))
        .collect();
    cluster.queued(8).await;
    let refused = ask(8).send().await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS, "{refused}");
    assert!(
        refused
            .header("retry-after")
            .parse::<u64>()
            .is_ok_and(|seconds| seconds > 0),
        "{refused}"
    );
    assert_eq!(refused.json()["error"]["type"], "rate_limit_exceeded");
    assert_eq!(refused.json()["error"]["code"], "caller_limit");
    assert_eq!(refused.header("x-duo-reason"), "caller_limit");
    asked.iter().for_each(tokio::task::JoinHandle::abort);
    drop(asked);
    cluster.assert_clean().await;
}

async fn token_works(cluster: &Cluster, token: &str) {
    duo_system_tests::harness::until(
        "the token is known",
        std::time::Duration::from_secs(5),
        async || {
            let answer = cluster
                .call(http::Method::GET, "/v1/models")
                .token(token)
                .send()
                .await;
            if answer.status == StatusCode::OK {
                Ok(())
            } else {
                Err(answer.to_string())
            }
        },
    )
    .await;
}

#[tokio::test]
async fn a_request_waits_for_a_worker_that_comes_back() {
    let mut cluster = Cluster::start().await;
    cluster.kill_worker(0).await;
    let asked = tokio::spawn(
        cluster
            .openai("/v1/chat/completions", &chat("hello", 5, false))
            .send(),
    );
    cluster.queued(1).await;
    cluster.restart_worker(0).await;
    let answer = asked.await.expect("an answer").good();
    assert_eq!(
        answer.json()["choices"][0]["message"]["content"],
        answer_to("hello", 5)
    );
    cluster.assert_clean().await;
}

#[tokio::test]
async fn without_any_worker_requests_wait_for_the_grace_and_are_refused_after_it() {
    let mut cluster = Cluster::builder()
        .broker_env("DUO_NO_WORKER_GRACE", "2s")
        .start()
        .await;
    cluster.slots_known().await;
    cluster.kill_worker(0).await;
    let early = tokio::spawn(
        cluster
            .openai("/v1/chat/completions", &chat("early", 5, false))
            .send(),
    );
    cluster.queued(1).await;
    // Its presence has to lapse before the grace begins.
    let refused = until("a request is refused", PATIENCE, async || {
        let call = cluster.openai("/v1/chat/completions", &chat("late", 5, false));
        let answer = tokio::time::timeout(Duration::from_millis(250), call.send()).await;
        answer.map_err(|_| "it waits".to_owned())
    })
    .await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE, "{refused}");
    assert_eq!(refused.json()["error"]["code"], "no_worker", "{refused}");

    let inputs = json!({"inputs": {"diff": "+1"}});
    let answers = [
        ("/v2/code/completions", completion("x", false), StatusCode::OK),
        ("/v2/chat/agent", agent("hello"), StatusCode::OK),
        (
            "/v1/prompts/generate_commit_message",
            inputs,
            StatusCode::MISDIRECTED_REQUEST,
        ),
    ];
    for (path, body, status) in answers {
        let id = format!("deserted{}", path.len());
        let call = cluster.rails(path, "alice", &body);
        let answer = call.header("x-request-id", &id).send().await;
        assert_eq!(answer.status, status, "{path}: {answer}");
        let told = match path {
            "/v2/code/completions" => answer.json()["choices"] == json!([]),
            "/v2/chat/agent" => answer.text().contains("\"error\""),
            _ => answer.text().contains("503"),
        };
        assert!(told, "{path}: {answer}");
        let end = cluster.end_of(&id).await;
        assert_eq!(end, ("refused".to_owned(), Some("no_worker".to_owned())));
    }

    cluster.restart_worker(0).await;
    let answer = early.await.expect("an answer").good();
    assert_eq!(
        answer.json()["choices"][0]["message"]["content"],
        answer_to("early", 5),
        "who came within the grace is served"
    );
    until("requests are admitted again", PATIENCE, async || {
        let call = cluster.openai("/v1/chat/completions", &chat("again", 5, false));
        match call.send().await {
            answer if answer.status == StatusCode::OK => Ok(()),
            answer => Err(answer.to_string()),
        }
    })
    .await;
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_completion_that_cannot_be_in_time_is_nothing_to_suggest() {
    let mut cluster = Cluster::start().await;
    cluster.kill_worker(0).await;
    let began = tokio::time::Instant::now();
    let answer = cluster.rails("/v2/code/completions", "alice", &completion("x", false));
    let answer = answer.header("x-request-id", "late").send().await.good();
    assert_eq!(answer.json()["choices"], json!([]), "{answer}");
    assert!(
        began.elapsed() < std::time::Duration::from_secs(4),
        "{:?}",
        began.elapsed()
    );
    let (outcome, _) = cluster.end_of("late").await;
    assert_eq!(outcome, "expired");
    cluster.restart_worker(0).await;
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_model_server_that_is_overloaded_is_told_in_each_clients_words() {
    let sim = Settings {
        fail_rate: 1.0,
        fail_status: 429,
        retry_after: Some(7),
        ..Settings::default()
    };
    let cluster = Cluster::builder()
        .sim(sim)
        .configure(|config| {
            for feature in ["duo_chat", "generate_commit_message"] {
                config["features"][feature]["first_byte_within"] = "3s".into();
            }
            config["features"]["openai_chat"] = json!({"first_byte_within": "3s"});
        })
        .start()
        .await;
    let openai = cluster
        .openai("/v1/chat/completions", &chat("hello", 5, false))
        .send()
        .await;
    assert!(
        [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE].contains(&openai.status),
        "{openai}"
    );
    let completion = cluster
        .rails("/v2/code/completions", "alice", &completion("x", false))
        .send()
        .await;
    assert_eq!(completion.good().json()["choices"], json!([]));
    let inputs = json!({"inputs": {"diff": "+1"}});
    let prompt = cluster
        .rails("/v1/prompts/generate_commit_message", "alice", &inputs)
        .send()
        .await;
    let told = [StatusCode::MISDIRECTED_REQUEST, StatusCode::TOO_MANY_REQUESTS];
    assert!(told.contains(&prompt.status), "{prompt}");
    let chat = cluster
        .rails("/v2/chat/agent", "alice", &agent("hello"))
        .send()
        .await;
    let event: Value =
        serde_json::from_str(chat.text().lines().last().unwrap_or_default()).unwrap_or_default();
    assert_eq!(event["type"], "error", "{chat}");
    cluster.assert_clean().await;
}

/// One more completion by `user`, of a file of its own.
fn typed(user: &str, number: usize) -> (String, Value) {
    let mut body = completion("x = ", false);
    body["current_file"]["file_name"] = format!("{user}{number}.py").into();
    (user.to_owned(), body)
}

/// Slow enough that nothing ends while a test looks.
fn slow() -> Settings {
    Settings {
        ttft_ms: 60_000,
        ..Settings::default()
    }
}

/// Asks in the background.
fn ask(
    cluster: &Cluster,
    (user, body): (String, Value),
) -> tokio::task::JoinHandle<Result<duo_system_tests::harness::Opened, String>> {
    tokio::spawn(cluster.rails("/v2/code/completions", &user, &body).try_open())
}

/// The refusal of one more request has this reason in the answer, the metrics and the audit record.
async fn refused_for(cluster: &Cluster, reason: &str, (user, body): (String, Value)) {
    let call = cluster.rails("/v2/code/completions", &user, &body);
    let answer = call.header("x-request-id", reason).send().await.good();
    assert_eq!(answer.json()["choices"], json!([]), "{answer}");
    assert_eq!(answer.header("x-duo-reason"), reason, "{answer}");
    let end = cluster.end_of(reason).await;
    assert_eq!(end, ("refused".to_owned(), Some(reason.to_owned())));
    let metrics = cluster.metrics().await.expect("the broker answers");
    let series = format!("duo_refusals_total{{reason=\"{reason}\"}} 1");
    assert!(metrics.contains(&series), "{reason}: {metrics}");
}

#[tokio::test]
async fn who_has_more_than_a_share_gives_way_when_others_wait() {
    let cluster = Cluster::builder()
        .sim(slow())
        .slots(2)
        .configure(|config| {
            config["features"]["code_completion"] =
                json!({"model": "codegemma", "first_byte_within": "50s", "end_within": "60s"});
        })
        .start()
        .await;
    cluster.slots_known().await;
    let greedy: Vec<_> = (0..7)
        .map(|number| ask(&cluster, typed("greedy", number)))
        .collect();
    cluster.sim_shows(|stats| stats.running == 2).await;
    cluster.queued(7).await;
    let other = ask(&cluster, typed("other", 0));
    cluster.queued(8).await;
    refused_for(&cluster, "fair_share", typed("greedy", 7)).await;
    let second = ask(&cluster, typed("other", 1));
    cluster.queued(9).await;
    greedy.iter().for_each(tokio::task::JoinHandle::abort);
    other.abort();
    second.abort();
    drop((greedy, other, second));
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_full_stream_says_so() {
    let cluster = Cluster::builder()
        .sim(slow())
        .slots(1)
        .broker_env("DUO_LIVE_MAX_MESSAGES", "4")
        .configure(|config| {
            config["features"]["code_completion"] =
                json!({"model": "codegemma", "first_byte_within": "50s", "end_within": "60s"});
        })
        .start()
        .await;
    let asked: Vec<_> = (0..4)
        .map(|number| ask(&cluster, typed(&format!("person{number}"), 0)))
        .collect();
    cluster.queued(4).await;
    refused_for(&cluster, "stream_full", typed("last", 0)).await;
    asked.iter().for_each(tokio::task::JoinHandle::abort);
    drop(asked);
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_full_lane_says_so() {
    let cluster = Cluster::builder()
        .sim(slow())
        .slots(1)
        .configure(|config| {
            config["features"]["code_completion"] =
                json!({"model": "codegemma", "first_byte_within": "50s", "end_within": "60s"});
            config["features"]["git_suggestions"] = json!({
                "model": "mistral", "acknowledge": "system tests", "lane": "keystroke", "first_byte_within": "2s",
                "end_within": "60s",
            });
        })
        .start()
        .await;
    cluster.slots_known().await;
    // Half a second each is what is guessed of a completion: the last would wait for about four.
    let asked: Vec<_> = (0..8)
        .map(|number| ask(&cluster, typed(&format!("person{number}"), 0)))
        .collect();
    cluster.queued(8).await;
    // Of another model on the same server: the slots are the same.
    let inputs = json!({"inputs": {"prompt": "undo a commit"}});
    let hurry = cluster.rails("/v1/prompts/glab_ask_git_command", "hurry", &inputs);
    let refused = hurry.header("x-request-id", "hurry").send().await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS, "{refused}");
    assert_eq!(refused.header("x-duo-reason"), "lane_full", "{refused}");
    assert_eq!(cluster.end_of("hurry").await.1.as_deref(), Some("lane_full"));
    asked.iter().for_each(tokio::task::JoinHandle::abort);
    drop(asked);
    cluster.assert_clean().await;
}
