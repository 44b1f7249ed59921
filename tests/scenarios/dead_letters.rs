//! What was given up is kept with its story, can be run again, and goes when an administrator says so.

use duo_system_tests::harness::cluster::{answer_to, chat};
use duo_system_tests::harness::{Cluster, PATIENCE, until};
use duo_system_tests::sim::Settings;
use http::{Method, StatusCode};
use serde_json::{Value, json};

/// The dead letters as the tool lists them, once there are so many.
async fn letters(cluster: &Cluster, count: usize, filters: &[&str]) -> Vec<Value> {
    until(&format!("{count} dead letters"), PATIENCE, async || {
        let mut arguments = vec!["dead", "list", "--json"];
        arguments.extend(filters);
        let page: Value = serde_json::from_str(&cluster.cli.succeed(&arguments).await).expect("JSON");
        let letters = page["letters"].as_array().expect("a list").clone();
        if letters.len() == count {
            Ok(letters)
        } else {
            Err(page.to_string())
        }
    })
    .await
}

/// An administrator's token that the broker knows already.
async fn admin(cluster: &Cluster) -> String {
    let token = cluster.cli.token("ops", "admin", &[]).await;
    until("the token is known", PATIENCE, async || {
        let answer = cluster
            .call(Method::GET, "/admin/v1/dead")
            .token(&token)
            .send()
            .await;
        let status = answer.status;
        if status == StatusCode::OK {
            Ok(())
        } else {
            Err(status.to_string())
        }
    })
    .await;
    token
}

fn id(letter: &Value) -> &str {
    letter["request_id"].as_str().expect("an id")
}

#[tokio::test]
async fn a_request_that_kills_its_workers_is_kept_with_the_story_of_each() {
    let sim = Settings {
        ttft_ms: 20_000,
        ..Settings::default()
    };
    let mut cluster = Cluster::builder()
        .sim(sim)
        .lease("1s")
        .broker_env("DUO_MAX_ATTEMPTS", "2")
        .start()
        .await;
    let call = cluster.openai("/v1/chat/completions", &chat("poison", 5, true));
    let asked = tokio::spawn(call.header("x-request-id", "the-poison").send());
    for attempt in 1..=2 {
        cluster.sim_shows(|stats| stats.running == 1).await;
        cluster.attempted(attempt).await;
        cluster.kill_worker(0).await;
        cluster.sim_shows(|stats| stats.running == 0).await;
        cluster.restart_worker(0).await;
    }
    let answer = asked.await.expect("an answer");
    assert!(answer.status.is_server_error(), "{answer}");
    let letter = letters(&cluster, 1, &["--reason", "workers_lost", "--model", "mistral"])
        .await
        .remove(0);
    assert_eq!(
        (
            &letter["attempts"],
            &letter["correlation_id"],
            &letter["replayable"]
        ),
        (&json!(2), &json!("the-poison"), &json!(false))
    );
    for (story, number) in letter["stories"].as_array().expect("stories").iter().zip(1..) {
        assert_eq!(
            (
                &story["attempt"],
                &story["worker"],
                &story["server"],
                &story["end"]
            ),
            (&json!(number), &json!("w1"), &json!("local"), &json!("lost"))
        );
    }
    let shown = cluster.cli.succeed(&["dead", "show", id(&letter)]).await;
    assert!(shown.contains("lost after 0 frames"), "{shown}");

    // Who may look and what they see over HTTP.
    let admin = admin(&cluster).await;
    for token in [&cluster.client_token, &cluster.auditor_token] {
        let answer = cluster
            .call(Method::GET, "/admin/v1/dead")
            .token(token)
            .send()
            .await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{answer}");
    }
    let at = |rest: &str| format!("/admin/v1/dead/{}{rest}", id(&letter));
    let get = |path: String| cluster.call(Method::GET, &path).token(&admin).send();
    assert_eq!(get(at("")).await.good().json(), letter);
    let page = get("/admin/v1/dead?limit=1&feature=openai_chat".into())
        .await
        .good()
        .json();
    assert_eq!(page, json!({"letters": [letter]}));
    let none = get("/admin/v1/dead?since=2999-01-01T00:00:00Z".into())
        .await
        .good()
        .json();
    assert_eq!(none, json!({"letters": []}));
    assert_eq!(
        get("/admin/v1/dead?limit=0".into()).await.status,
        StatusCode::UNPROCESSABLE_ENTITY
    );
    assert_eq!(
        get("/admin/v1/dead/nonsense".into()).await.status,
        StatusCode::UNPROCESSABLE_ENTITY
    );

    // Its body was not kept, so it cannot run again; it can be dropped once.
    let replay = cluster
        .call(Method::POST, &at("/replay"))
        .token(&admin)
        .send()
        .await;
    assert_eq!(replay.status, StatusCode::CONFLICT, "{replay}");
    let drop_it = async || cluster.call(Method::DELETE, &at("")).token(&admin).send().await;
    assert_eq!(drop_it().await.status, StatusCode::NO_CONTENT);
    assert_eq!(drop_it().await.status, StatusCode::NOT_FOUND);
    let records = "SELECT count(*) FROM change_records WHERE what = 'dead.drop' AND actor LIKE 'token:%'";
    assert_eq!(cluster.database.count(records).await, Ok(1));
    let (fine, _, complaint) = cluster.cli.run(&["dead", "show", id(&letter)]).await;
    assert!(
        !fine && complaint.contains("there is no dead letter"),
        "{complaint}"
    );
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_dead_letter_with_its_body_runs_again_and_then_goes() {
    let sim = Settings {
        fail_rate: 1.0,
        ..Settings::default()
    };
    let cluster = Cluster::builder()
        .sim(sim)
        .broker_env("DUO_MAX_ATTEMPTS", "1")
        .configure(|config| config["features"]["openai_chat"] = json!({"bodies": "full"}))
        .start()
        .await;
    for stream in [true, false] {
        let body = chat("once more", 5, stream);
        let answer = cluster.openai("/v1/chat/completions", &body).send().await;
        assert!(!answer.looks_whole(), "{answer}");
    }
    let kept = letters(&cluster, 2, &[]).await;
    assert_eq!(kept[0]["stories"][0]["end"], "failed", "{kept:?}");
    let files = duo_system_tests::harness::cluster::files_with(cluster.nats.store(), b"once more");
    assert!(files.is_empty(), "a body lies open in {files:?}");

    // While the model server still fails, the letter stays and there is no second one.
    let admin = admin(&cluster).await;
    let ops = cluster.cli.with("DUO_ADMIN_TOKEN", &admin);
    let url = cluster.url();
    let replay = async |letter: &Value, more: &[&str]| {
        let mut arguments = vec!["dead", "replay", "--url", &url, "--json", id(letter)];
        arguments.extend(more);
        let (fine, out, err) = ops.run(&arguments).await;
        let answer: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{err}"));
        (fine, answer)
    };
    let (fine, failed) = replay(&kept[0], &[]).await;
    assert_eq!((fine, &failed["outcome"]), (false, &json!("failed")), "{failed}");
    assert_eq!(failed["letter_kept"], true);
    letters(&cluster, 2, &[]).await;

    cluster.sim.set(|sim| sim.fail_rate = 0.0);
    for letter in &kept {
        let (fine, done) = replay(letter, &["--keep"]).await;
        assert_eq!((fine, &done["letter_kept"]), (true, &json!(true)), "{done}");
    }
    for letter in &kept {
        let (fine, done) = replay(letter, &[]).await;
        assert_eq!((fine, &done["letter_kept"]), (true, &json!(false)), "{done}");
        let said: String = match done["answer"].as_array() {
            Some(chunks) => chunks
                .iter()
                .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str())
                .collect(),
            None => done["answer"]["choices"][0]["message"]["content"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
        };
        assert_eq!(said, answer_to("once more", 5), "{done}");
    }
    letters(&cluster, 0, &[]).await;
    let (fine, _, complaint) = ops.run(&["dead", "replay", "--url", &url, id(&kept[0])]).await;
    assert!(
        !fine && complaint.contains("there is no dead letter"),
        "{complaint}"
    );
    let as_client = cluster.cli.with("DUO_ADMIN_TOKEN", &cluster.client_token);
    let (fine, _, complaint) = as_client
        .run(&["dead", "replay", "--url", &url, id(&kept[0])])
        .await;
    assert!(!fine && complaint.contains("403"), "{complaint}");
    cluster.assert_clean().await;
    let replays = "SELECT count(*) FROM audit_events AS e WHERE kind = 'ended' AND outcome = 'completed' \
         AND route LIKE '/admin/v1/dead/%/replay' AND feature = 'openai_chat' \
         AND token_id = (SELECT id::text FROM api_tokens WHERE name = 'ops')";
    assert_eq!(cluster.database.count(replays).await, Ok(4));
}

#[tokio::test]
async fn all_dead_letters_of_a_model_are_dropped_only_when_one_means_it() {
    let sim = Settings {
        fail_rate: 1.0,
        ..Settings::default()
    };
    let cluster = Cluster::builder()
        .sim(sim)
        .broker_env("DUO_MAX_ATTEMPTS", "1")
        .start()
        .await;
    for number in 0..3 {
        let body = chat(&number.to_string(), 5, true);
        cluster.openai("/v1/chat/completions", &body).send().await;
    }
    let newest = letters(&cluster, 3, &[]).await;
    assert_eq!(letters(&cluster, 2, &["--limit", "2"]).await, newest[..2]);
    letters(&cluster, 0, &["--model", "codegemma"]).await;
    let (fine, ..) = cluster.cli.run(&["dead", "drop", "--all"]).await;
    assert!(!fine, "without --yes");
    let none = cluster
        .cli
        .succeed(&["dead", "drop", "--all", "--yes", "--model", "codegemma"])
        .await;
    assert_eq!(none.trim(), "dropped 0");
    let all = cluster
        .cli
        .succeed(&["dead", "drop", "--all", "--yes", "--model", "mistral"])
        .await;
    assert_eq!(all.trim(), "dropped 3");
    letters(&cluster, 0, &[]).await;
    let records = "SELECT count(*) FROM change_records WHERE what = 'dead.drop'";
    assert_eq!(cluster.database.count(records).await, Ok(3));
    cluster.assert_clean().await;
}

#[tokio::test]
async fn an_administrator_sees_what_waits_and_who_serves_it() {
    let sim = Settings {
        tokens: 2000,
        pace_ms: 20,
        ..Settings::default()
    };
    let cluster = Cluster::builder().sim(sim).slots(1).start().await;
    let admin = admin(&cluster).await;
    let see = async |what: &str| {
        let path = format!("/admin/v1/{what}");
        cluster
            .call(Method::GET, &path)
            .token(&admin)
            .send()
            .await
            .good()
            .json()[what]
            .clone()
    };
    let body = chat("long", 2000, true);
    let mut holder = cluster.openai("/v1/chat/completions", &body).open().await;
    assert!(holder.next().await);
    let waiting = tokio::spawn(cluster.openai("/v1/chat/completions", &body).try_open());
    cluster.queued(2).await;
    until("the line shows", PATIENCE, async || {
        let queues = see("queues").await;
        let queue = queues
            .as_array()
            .expect("a list")
            .iter()
            .find(|queue| queue["model"] == "mistral" && queue["lane"] == "interactive");
        let queue = queue.expect("a line").clone();
        let sound = queue["depth"] == 1
            && queue["in_flight"] == 1
            && queue["slots"] == 1
            && queue["oldest_seconds"].as_f64().is_some_and(|age| age > 0.0)
            && queue["drain_per_second"].as_f64().is_some_and(|rate| rate > 0.0);
        if sound { Ok(()) } else { Err(queue.to_string()) }
    })
    .await;
    until("the worker shows", PATIENCE, async || {
        let workers = see("workers").await;
        let served = &workers[0]["models"][0];
        let sound = workers[0]["worker"]
            .as_str()
            .is_some_and(|name| name.starts_with("w1"))
            && workers[0]["draining"] == false
            && served["server"] == "local"
            && served["breaker"] == "passing"
            && served["in_flight"] == 1;
        if sound { Ok(()) } else { Err(workers.to_string()) }
    })
    .await;
    let refused = cluster
        .call(Method::GET, "/admin/v1/queues")
        .token(&cluster.client_token)
        .send()
        .await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN, "{refused}");
    drop(holder);
    waiting.abort();
    cluster.assert_clean().await;
}
