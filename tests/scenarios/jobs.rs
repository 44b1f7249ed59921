//! Jobs: submitted and left, run by whichever broker, looked at from any, ended once.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use duo_system_tests::gitlab::TokenSpec;
use duo_system_tests::harness::cluster::{answer_to, chat, freeze};
use duo_system_tests::harness::{Answer, Call, Cluster, PATIENCE, until};
use duo_system_tests::sim::Settings;
use http::{Method, StatusCode};
use serde_json::{Value, json};

const PATH: &str = "/v1/jobs";

fn slow(words: u64, pace_ms: u64) -> Settings {
    Settings {
        tokens: usize::try_from(words).expect("few"),
        pace_ms,
        ..Settings::default()
    }
}

/// A job of an OpenAI client.
fn asked(question: &str, words: usize) -> Value {
    json!({"feature": "openai_chat", "model": "mistral", "input": question, "max_output_tokens": words})
}

fn submit(cluster: &Cluster, body: &Value) -> Call {
    cluster
        .call(Method::POST, PATH)
        .token(&cluster.client_token)
        .json(body)
}

async fn accepted(cluster: &Cluster, body: &Value) -> String {
    let answer = submit(cluster, body).send().await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{answer}");
    id_of(&answer)
}

fn id_of(answer: &Answer) -> String {
    answer.json()["id"].as_str().expect("an id").to_owned()
}

fn get(cluster: &Cluster, path: &str) -> Call {
    cluster.call(Method::GET, path).token(&cluster.client_token)
}

async fn job(cluster: &Cluster, id: &str) -> Value {
    get(cluster, &format!("{PATH}/{id}")).send().await.good().json()
}

async fn in_state(cluster: &Cluster, id: &str, state: &str) -> Value {
    until(&format!("the job is {state}"), PATIENCE, async || {
        let job = job(cluster, id).await;
        if job["state"] == state {
            Ok(job)
        } else {
            Err(job.to_string())
        }
    })
    .await
}

/// The text of a job's events, the id of each piece with the text up to it, and how they ended.
struct Followed {
    text: String,
    places: Vec<(String, String)>,
    restarts: usize,
    end: Option<Value>,
}

fn read_events(stream: &str) -> Followed {
    let mut followed = Followed {
        text: String::new(),
        places: Vec::new(),
        restarts: 0,
        end: None,
    };
    for event in stream.split("\n\n") {
        let field = |name: &str| {
            let mut lines = event.lines();
            lines.find_map(|line| line.strip_prefix(name)).map(str::to_owned)
        };
        let data = || serde_json::from_str::<Value>(&field("data: ").expect("data")).expect("JSON");
        match field("event: ").as_deref() {
            Some("text") => {
                followed.text.push_str(data()["text"].as_str().expect("text"));
                let id = field("id: ").expect("an id");
                followed.places.push((id, followed.text.clone()));
            }
            Some("restart") => {
                followed.restarts += 1;
                followed.text.clear();
            }
            Some("end") => followed.end = Some(data()),
            Some("state") | None => {}
            Some(other) => panic!("an unknown event: {other}"),
        }
    }
    followed
}

async fn events(cluster: &Cluster, broker: usize, id: &str, after: Option<&str>) -> Followed {
    let path = format!("{PATH}/{id}/events");
    let mut call = cluster
        .call_at(broker, Method::GET, &path)
        .token(&cluster.client_token);
    if let Some(after) = after {
        call = call.header("last-event-id", after);
    }
    read_events(&call.send().await.good().text())
}

#[tokio::test]
async fn a_job_is_accepted_run_and_read() {
    let cluster = Cluster::builder().start().await;
    let mut body = asked("why is the sky blue?", 12);
    body["metadata"] = json!({"issue": "42"});
    let answer = submit(&cluster, &body)
        .header("x-request-id", "from-rails-1")
        .send()
        .await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{answer}");
    let id = id_of(&answer);
    assert_eq!(answer.header("location"), format!("{PATH}/{id}"));
    let done = in_state(&cluster, &id, "succeeded").await;
    assert_eq!(done["result"]["text"], answer_to("why is the sky blue?", 12));
    assert_eq!(done["result"]["finish_reason"], "length");
    assert_eq!(done["result"]["usage"]["output_tokens"], 12);
    assert_eq!(
        (&done["lane"], &done["metadata"]["issue"], &done["error"]),
        (&json!("background"), &json!("42"), &Value::Null)
    );
    assert!(done["started_at"].is_string() && done["ended_at"].is_string());
    cluster.assert_clean().await;
    let id: uuid::Uuid = id.parse().expect("a UUID");
    for sql in [
        "SELECT count(*) FROM audit_events WHERE route = '/v1/jobs' AND outcome = 'completed' AND feature = 'openai_chat'",
        "SELECT count(*) FROM audit_events WHERE route = 'job' AND outcome = 'completed' AND lane = 'background' \
         AND model = 'mistral' AND correlation_id = 'from-rails-1' AND worker IS NOT NULL",
    ] {
        assert_eq!(cluster.database.count(sql).await, Ok(1), "{sql}");
    }
    let of_job: i64 = sqlx::query_scalar("SELECT count(*) FROM audit_events WHERE job_id = $1")
        .bind(id)
        .fetch_one(cluster.database.pool())
        .await
        .expect("a count");
    assert_eq!(of_job, 3, "its submission, and its run's two");
}

#[tokio::test]
async fn rails_submits_a_prompt_and_gets_its_answer_in_form() {
    let cluster = Cluster::builder()
        .configure(|config| {
            config["features"]["merge_request_summary"] =
                json!({"model": "mistral", "acknowledge": "system tests"});
        })
        .start()
        .await;
    let body = json!({
        "prompt_id": "summarize_new_merge_request",
        "inputs": {"extracted_diff": "+ a", "title": "t"},
        "deadline": 600,
    });
    let submitted = cluster.rails(PATH, "alice", &body).send().await;
    assert_eq!(submitted.status, StatusCode::ACCEPTED, "{submitted}");
    let id = id_of(&submitted);
    let mine = |user: &str| {
        cluster
            .call(Method::GET, &format!("{PATH}/{id}"))
            .headers(cluster.rails_headers(user))
    };
    let done = until("the job is done", PATIENCE, async || {
        let job = mine("alice").send().await.good().json();
        match job["state"].as_str() {
            Some("succeeded") => Ok(job),
            _ => Err(job.to_string()),
        }
    })
    .await;
    assert_eq!(done["feature"], "merge_request_summary");
    assert_eq!(done["prompt"]["id"], "summarize_new_merge_request");
    assert!(!done["result"]["text"].as_str().expect("text").is_empty());
    assert_eq!(
        mine("bob").send().await.status,
        StatusCode::NOT_FOUND,
        "somebody else's job is none"
    );
    let spec = TokenSpec::default().scopes(["duo_chat"]);
    let refused = cluster
        .call(Method::POST, PATH)
        .headers(cluster.rails_headers_with(&spec, "alice"))
        .json(&body)
        .send()
        .await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN, "{refused}");
    cluster.assert_clean().await;
}

#[tokio::test]
async fn one_key_is_one_job_however_often_and_wherever_it_is_submitted() {
    let cluster = Cluster::builder().brokers(2).start().await;
    let body = asked("once", 3);
    let tries = (0..24).map(|number| {
        cluster
            .call_at(number % 2, Method::POST, PATH)
            .token(&cluster.client_token)
            .header("idempotency-key", "\"the-key\"")
            .json(&body)
            .send()
    });
    let mut ids = HashSet::new();
    for answer in futures_util::future::join_all(tries).await {
        match answer.status {
            StatusCode::ACCEPTED => {
                ids.insert(id_of(&answer));
            }
            StatusCode::CONFLICT => {
                assert_eq!(answer.json()["error"], "idempotency_key_in_use");
                assert!(!answer.header("retry-after").is_empty());
            }
            other => panic!("{other}: {answer}"),
        }
    }
    assert_eq!(ids.len(), 1, "{ids:?}");
    let keyed = |body: &Value| submit(&cluster, body).header("idempotency-key", "the-key");
    // The same said otherwise is the same.
    let reordered: Value = serde_json::from_str(
        r#"{"max_output_tokens":3,"model":"mistral","input":"once","feature":"openai_chat"}"#,
    )
    .expect("JSON");
    let again = keyed(&reordered).send().await;
    assert_eq!(again.status, StatusCode::ACCEPTED, "{again}");
    assert!(ids.contains(&id_of(&again)));
    assert_eq!(again.header("idempotency-replayed"), "true");
    let other = keyed(&asked("something else", 3)).send().await;
    assert_eq!(other.status, StatusCode::UNPROCESSABLE_ENTITY, "{other}");
    assert_eq!(other.json()["error"], "idempotency_key_reused");
    let bad = submit(&cluster, &body)
        .header("idempotency-key", &"x".repeat(256))
        .send()
        .await;
    assert_eq!(bad.status, StatusCode::BAD_REQUEST, "{bad}");
    in_state(&cluster, ids.iter().next().expect("one"), "succeeded").await;
    assert_eq!(cluster.sim.stats().started, 1, "it ran once");
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_mistake_is_named_and_nothing_is_stored() {
    let cluster = Cluster::builder().start().await;
    let good = asked("q", 3);
    let with = |name: &str, value: Value| {
        let mut body = good.clone();
        body[name] = value;
        body
    };
    let without = |name: &str| {
        let mut body = good.clone();
        body.as_object_mut().expect("an object").remove(name);
        body
    };
    for (field, body) in [
        ("feature", without("feature")),
        ("feature", with("feature", "no_such_feature".into())),
        ("model", without("model")),
        ("model", with("model", "no-such-model".into())),
        ("input", without("input")),
        (
            "messages",
            with("messages", json!([{"role": "user", "content": "x"}])),
        ),
        ("prompt_id", with("prompt_id", "no/such/prompt".into())),
        ("inputs", with("inputs", json!({}))),
        ("lane", with("lane", "keystroke".into())),
        ("lane", with("lane", "urgent".into())),
        ("deadline", with("deadline", json!(0))),
        ("callback", with("callback", "nobody".into())),
        ("metadata", with("metadata", json!([]))),
        ("max_output_tokens", with("max_output_tokens", json!(0))),
        ("temperature", with("temperature", json!(9))),
        ("surprise", with("surprise", json!(1))),
        ("input", with("input", "x".repeat(1_000_000).into())),
    ] {
        let refused = submit(&cluster, &body).send().await;
        assert_eq!(
            refused.status,
            StatusCode::UNPROCESSABLE_ENTITY,
            "{field}: {refused}"
        );
        let problems = refused.json()["problems"].clone();
        assert_eq!(problems[0]["field"], field, "{refused}");
    }
    let malformed = cluster
        .call(Method::POST, PATH)
        .token(&cluster.client_token)
        .text("application/json", "{")
        .send()
        .await;
    assert_eq!(malformed.status, StatusCode::BAD_REQUEST, "{malformed}");
    let stranger = cluster
        .call(Method::POST, PATH)
        .token("nobody")
        .json(&good)
        .send()
        .await;
    assert_eq!(stranger.status, StatusCode::UNAUTHORIZED);
    for path in [
        format!("{PATH}/{}", uuid::Uuid::now_v7()),
        format!("{PATH}/nonsense"),
        format!("{PATH}/{}/events", uuid::Uuid::now_v7()),
    ] {
        assert_eq!(
            get(&cluster, &path).send().await.status,
            StatusCode::NOT_FOUND,
            "{path}"
        );
    }
    assert_eq!(cluster.database.count("SELECT count(*) FROM jobs").await, Ok(0));
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_cancelled_job_stops_its_gpu_and_one_that_waits_never_begins() {
    let cluster = Cluster::builder()
        .sim(slow(2000, 50))
        .slots(1)
        .brokers(2)
        .start()
        .await;
    let running = accepted(&cluster, &asked("running", 2000)).await;
    in_state(&cluster, &running, "running").await;
    let mut waiting = Vec::new();
    for number in 0..4 {
        waiting.push(accepted(&cluster, &asked(&format!("waiting {number}"), 2000)).await);
    }
    let last = waiting.last().expect("one").clone();
    let seen = job(&cluster, &last).await;
    assert_eq!(seen["state"], "queued");
    assert!(seen["position"].is_u64(), "{seen}");
    // By the other broker, which does not run it.
    let delete = |id: &str| {
        let path = format!("{PATH}/{id}");
        cluster
            .call_at(1, Method::DELETE, &path)
            .token(&cluster.client_token)
    };
    for id in &waiting {
        assert_eq!(delete(id).send().await.good().json()["state"], "cancelled");
    }
    let asked_at = Instant::now();
    assert_eq!(delete(&running).send().await.good().json()["state"], "cancelled");
    cluster
        .sim_shows(|stats| stats.running == 0 && stats.aborted == 1)
        .await;
    assert!(
        asked_at.elapsed() < Duration::from_secs(1),
        "{:?}",
        asked_at.elapsed()
    );
    let again = delete(&running).send().await.good().json();
    assert_eq!(again["state"], "cancelled", "as often as one likes");
    assert_eq!(again["error"]["code"], "cancelled");
    assert_eq!(cluster.sim.stats().started, 1, "the others never began");
    cluster.assert_clean().await;
    let recorded = "SELECT count(*) FROM audit_events WHERE route = 'job' AND outcome = 'cancelled' AND worker IS NOT NULL \
                    AND reason = 'job_cancelled'";
    assert_eq!(cluster.database.count(recorded).await, Ok(1));
    let as_client = "SELECT count(*) FROM audit_events WHERE route = 'job' AND reason = 'client_gone'";
    assert_eq!(cluster.database.count(as_client).await, Ok(0));
}

#[tokio::test]
async fn an_answer_can_be_followed_from_any_broker_and_from_any_place() {
    const WORDS: usize = 120;
    let cluster = Cluster::builder().sim(slow(120, 20)).brokers(2).start().await;
    let id = accepted(&cluster, &asked("tell", WORDS)).await;
    let whole = answer_to("tell", WORDS);
    let (first, second) = tokio::join!(events(&cluster, 0, &id, None), events(&cluster, 1, &id, None));
    for followed in [&first, &second] {
        assert_eq!(followed.text, whole);
        assert_eq!(followed.restarts, 0);
        let end = followed.end.as_ref().expect("an end");
        assert_eq!(
            (&end["state"], &end["result"]["text"]),
            (&json!("succeeded"), &json!(whole))
        );
    }
    assert!(
        first.places.len() > 5,
        "it came in pieces: {}",
        first.places.len()
    );
    // Who comes later finds all of it, and who has some of it gets the rest.
    let late = events(&cluster, 1, &id, None).await;
    assert_eq!(
        (late.text.as_str(), late.places == first.places),
        (whole.as_str(), true)
    );
    for (place, before) in first.places.iter().step_by(3) {
        let rest = events(&cluster, 1, &id, Some(place)).await;
        assert_eq!(format!("{before}{}", rest.text), whole, "after {place}");
    }
    // What the stream has lost, the result has.
    let context = async_nats::jetstream::new(cluster.nats.connect().await);
    let stream = context.get_stream("DUO_JOB_REPLIES").await.expect("it is there");
    stream.purge().await.expect("it goes");
    for (place, before) in first.places.iter().step_by(5) {
        let rest = events(&cluster, 0, &id, Some(place)).await;
        assert_eq!(
            format!("{before}{}", rest.text),
            whole,
            "from the result, after {place}"
        );
    }
    let nonsense = get(&cluster, &format!("{PATH}/{id}/events"))
        .header("last-event-id", "x")
        .send()
        .await;
    assert_eq!(nonsense.status, StatusCode::UNPROCESSABLE_ENTITY, "{nonsense}");
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_job_survives_the_death_of_its_broker_and_ends_once() {
    const WORDS: usize = 100;
    let mut cluster = Cluster::builder()
        .sim(slow(100, 50))
        .lease("1s")
        .brokers(2)
        .broker_env("DUO_JOB_LEASE", "4s")
        .broker_env("DUO_ABANDON_AFTER", "1s")
        .start()
        .await;
    let id = accepted(&cluster, &asked("survive", WORDS)).await;
    in_state(&cluster, &id, "running").await;
    let owner: String = sqlx::query_scalar("SELECT owner FROM jobs")
        .fetch_one(cluster.database.pool())
        .await
        .expect("an owner");
    let number = usize::from(!owner.starts_with("b1"));
    let path = format!("{PATH}/{id}/events");
    let follower = cluster
        .call_at(1 - number, Method::GET, &path)
        .token(&cluster.client_token)
        .send();
    let followed = tokio::spawn(follower);
    cluster.sim_shows(|stats| stats.running == 1).await;
    cluster.broker_at(number).kill().await;
    let followed = read_events(&followed.await.expect("it follows").good().text());
    assert_eq!(followed.text, answer_to("survive", WORDS));
    assert!(followed.restarts <= 1, "{}", followed.restarts);
    let end = followed.end.expect("an end");
    assert_eq!((&end["state"], &end["runs"]), (&json!("succeeded"), &json!(2)));
    cluster.broker_at(number).again();
    cluster.broker_ready(number, PATIENCE).await;
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_job_whose_time_runs_out_expires_and_says_so() {
    let cluster = Cluster::builder().workers(0).start().await;
    let mut body = asked("late", 3);
    body["deadline"] = json!(1);
    let id = accepted(&cluster, &body).await;
    let expired = in_state(&cluster, &id, "expired").await;
    assert_eq!(expired["error"]["code"], "deadline");
    let followed = events(&cluster, 0, &id, None).await;
    assert_eq!(followed.end.expect("an end")["state"], "expired");
    assert_eq!(cluster.messages("DUO_LIVE").await, Ok(0));
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_job_that_runs_out_of_time_is_recorded_as_expired() {
    let cluster = Cluster::builder().sim(slow(2000, 50)).start().await;
    let mut body = asked("too long", 2000);
    body["deadline"] = json!(3);
    let id = accepted(&cluster, &body).await;
    in_state(&cluster, &id, "expired").await;
    cluster.sim_shows(|stats| stats.running == 0).await;
    cluster.assert_clean().await;
    let expired = "SELECT count(*) FROM audit_events WHERE route = 'job' AND outcome = 'expired' AND worker IS NOT NULL";
    assert_eq!(cluster.database.count(expired).await, Ok(1));
    let cancelled = "SELECT count(*) FROM audit_events WHERE route = 'job' AND outcome = 'cancelled'";
    assert_eq!(cluster.database.count(cancelled).await, Ok(0));
}

#[tokio::test]
async fn what_the_model_server_calls_bad_fails_and_what_passes_is_tried_again() {
    let cluster = Cluster::builder().start().await;
    cluster
        .sim
        .set(|sim| (sim.fail_rate, sim.fail_status) = (1.0, 400));
    let bad = accepted(&cluster, &asked("bad", 3)).await;
    let failed = in_state(&cluster, &bad, "failed").await;
    assert_eq!(failed["error"]["code"], "invalid_request", "{failed}");
    assert_eq!(failed["error"]["upstream_status"], 400);
    cluster
        .sim
        .set(|sim| (sim.fail_rate, sim.fail_status) = (1.0, 503));
    let good = accepted(&cluster, &asked("good", 3)).await;
    until("it was tried", PATIENCE, async || {
        match job(&cluster, &good).await {
            tried if tried["attempts"].as_i64() > Some(0) && tried["error"].is_object() => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
    cluster.sim.set(|sim| sim.fail_rate = 0.0);
    in_state(&cluster, &good, "succeeded").await;
    cluster.assert_clean().await;
}

#[tokio::test]
async fn postgres_away_costs_time_and_no_job() {
    let cluster = Cluster::builder().own_postgres().sim(slow(40, 25)).start().await;
    let id = accepted(&cluster, &asked("slowly", 40)).await;
    in_state(&cluster, &id, "running").await;
    let postgres = cluster.postgres.as_ref().expect("its own");
    postgres.freeze(true);
    let refused = submit(&cluster, &asked("now", 3)).send();
    cluster.sim_shows(|stats| stats.running == 0).await;
    postgres.freeze(false);
    // Which came first decides; either way nothing is half done.
    let refused = refused.await;
    assert!(
        matches!(
            refused.status,
            StatusCode::ACCEPTED | StatusCode::SERVICE_UNAVAILABLE
        ),
        "{refused}"
    );
    let done = in_state(&cluster, &id, "succeeded").await;
    assert_eq!(done["result"]["text"], answer_to("slowly", 40));
    assert_eq!(done["runs"], 1, "{done}");
    cluster.assert_clean().await;
}

#[tokio::test]
async fn after_a_postgres_that_hung_nobody_takes_what_others_run() {
    const JOBS: usize = 6;
    const WORDS: usize = 160;
    let cluster = Cluster::builder()
        .own_postgres()
        .sim(slow(160, 50))
        .brokers(2)
        .broker_env("DUO_JOB_LEASE", "4s")
        .start()
        .await;
    let mut ids = Vec::new();
    for number in 0..JOBS {
        ids.push(accepted(&cluster, &asked(&format!("hung {number}"), WORDS)).await);
    }
    for id in &ids {
        in_state(&cluster, id, "running").await;
    }
    let postgres = cluster.postgres.as_ref().expect("its own");
    postgres.freeze(true);
    let frozen = Instant::now();
    // The answers take twice as long as a lease.
    cluster.sim_shows(|stats| stats.running == 0).await;
    assert!(
        frozen.elapsed() > Duration::from_secs(5),
        "{:?} is no longer than a lease",
        frozen.elapsed()
    );
    postgres.freeze(false);
    for (number, id) in ids.iter().enumerate() {
        let done = in_state(&cluster, id, "succeeded").await;
        assert_eq!(
            done["result"]["text"],
            answer_to(&format!("hung {number}"), WORDS),
            "{done}"
        );
        assert_eq!(done["runs"], 1, "its run was thrown away: {done}");
    }
    let results = "SELECT count(*) FROM job_results";
    assert_eq!(cluster.database.count(results).await, Ok(6));
    assert_eq!(cluster.sim.stats().started, JOBS as u64, "none ran twice");
    cluster.assert_clean().await;
}

#[tokio::test]
async fn nobody_waits_for_postgres_without_end() {
    let mut cluster = Cluster::builder().own_postgres().sim(slow(300, 50)).start().await;
    let id = accepted(&cluster, &asked("looked at", 300)).await;
    in_state(&cluster, &id, "running").await;
    let path = format!("{PATH}/{id}");
    let events = format!("{path}/events");
    let mut follower = get(&cluster, &events).open().await;
    follower.until(|so_far| so_far.contains("event: text")).await;
    cluster.postgres.as_ref().expect("its own").freeze(true);
    let asked_at = Instant::now();
    let delete = cluster
        .call(Method::DELETE, &format!("{PATH}/{}", uuid::Uuid::now_v7()))
        .token(&cluster.client_token);
    let looks = [
        get(&cluster, &path),
        get(&cluster, &events),
        get(&cluster, PATH),
        delete,
    ];
    let looks = futures_util::future::join_all(looks.map(Call::send)).await;
    for answer in looks {
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{answer}");
        assert_eq!(answer.json()["error"], "database_unavailable", "{answer}");
    }
    assert!(
        asked_at.elapsed() < Duration::from_secs(25),
        "{:?}",
        asked_at.elapsed()
    );
    // Whoever follows already goes on, and hears of the end.
    cluster.sim.set(|sim| sim.pace_ms = 1);
    cluster.sim_shows(|stats| stats.running == 0).await;
    cluster.postgres.as_ref().expect("its own").freeze(false);
    let followed = read_events(&follower.rest().await.good().text());
    assert_eq!(followed.text, answer_to("looked at", 300));
    assert_eq!(followed.end.expect("an end")["state"], "succeeded");
    let postgres = cluster.postgres.as_mut().expect("its own");
    postgres.stop();
    let away = get(&cluster, &path).send().await;
    assert_eq!(away.status, StatusCode::SERVICE_UNAVAILABLE, "{away}");
    assert_eq!(away.json()["error"], "database_unavailable", "{away}");
    cluster.postgres.as_mut().expect("its own").start_again().await;
    in_state(&cluster, &id, "succeeded").await;
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_frozen_broker_that_thaws_ends_nothing_twice() {
    let cluster = Cluster::builder()
        .sim(slow(60, 50))
        .lease("1s")
        .brokers(2)
        .broker_env("DUO_JOB_LEASE", "4s")
        .broker_env("DUO_ABANDON_AFTER", "30s")
        .start()
        .await;
    let mut ids = Vec::new();
    for number in 0..6 {
        ids.push(accepted(&cluster, &asked(&format!("frozen {number}"), 60)).await);
    }
    for id in &ids {
        in_state(&cluster, id, "running").await;
    }
    freeze(&cluster.broker, true);
    let done = until("the other broker has ended all", PATIENCE, async || {
        let open = "SELECT count(*) FROM jobs WHERE state <> 'succeeded'";
        match cluster.database.count(open).await? {
            0 => Ok(()),
            left => Err(format!("{left} are open")),
        }
    });
    done.await;
    freeze(&cluster.broker, false);
    for (number, id) in ids.iter().enumerate() {
        let done = job(&cluster, id).await;
        assert_eq!(
            done["result"]["text"],
            answer_to(&format!("frozen {number}"), 60),
            "{done}"
        );
    }
    let results = "SELECT count(*) FROM job_results";
    assert_eq!(cluster.database.count(results).await, Ok(6));
    cluster.assert_clean().await;
}

#[tokio::test]
async fn clients_have_turns_and_people_do_not_wait_for_jobs() {
    let cluster = Cluster::builder().sim(slow(4, 20)).slots(2).start().await;
    let other = cluster.cli.token("other", "client", &[]).await;
    let mut many = Vec::new();
    for number in 0..40 {
        many.push(accepted(&cluster, &asked(&format!("many {number}"), 4)).await);
    }
    let mut few = Vec::new();
    until("the broker knows the token", PATIENCE, async || {
        let answer = cluster
            .call(Method::POST, PATH)
            .token(&other)
            .json(&asked("few", 4))
            .send()
            .await;
        match answer.status {
            StatusCode::ACCEPTED => {
                few.push(id_of(&answer));
                if few.len() == 3 {
                    Ok(())
                } else {
                    Err(String::new())
                }
            }
            _ => Err(answer.to_string()),
        }
    })
    .await;
    // A person comes in between.
    let person = cluster
        .openai("/v1/chat/completions", &chat("me", 4, false))
        .send()
        .await
        .good();
    assert!(person.json()["choices"][0]["message"]["content"].is_string());
    until("all are done", PATIENCE, async || {
        let open = "SELECT count(*) FROM jobs WHERE ended_at IS NULL";
        match cluster.database.count(open).await? {
            0 => Ok(()),
            left => Err(format!("{left} are open")),
        }
    })
    .await;
    let behind = "SELECT count(*) FROM jobs WHERE client = (SELECT client FROM jobs ORDER BY id LIMIT 1) \
                  AND ended_at > (SELECT max(ended_at) FROM jobs WHERE client <> (SELECT client FROM jobs ORDER BY id LIMIT 1))";
    let behind = cluster.database.count(behind).await.expect("a count");
    assert!(behind >= 10, "only {behind} of the many ended after the few");
    let page = get(&cluster, &format!("{PATH}?limit=15&state=succeeded"))
        .send()
        .await
        .good()
        .json();
    assert_eq!(page["jobs"].as_array().map(Vec::len), Some(15));
    let mut seen = 15;
    let mut cursor = page["next_cursor"].as_str().map(str::to_owned);
    while let Some(at) = cursor {
        let page = get(&cluster, &format!("{PATH}?limit=15&cursor={at}"))
            .send()
            .await
            .good()
            .json();
        seen += page["jobs"].as_array().expect("jobs").len();
        cursor = page["next_cursor"].as_str().map(str::to_owned);
    }
    assert_eq!(seen, many.len(), "one's own, each once");
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_broker_that_stops_hands_its_jobs_to_the_next() {
    let mut cluster = Cluster::builder()
        .sim(slow(200, 50))
        .brokers(2)
        .broker_env("DUO_DRAIN_GRACE", "1s")
        .start()
        .await;
    let id = accepted(&cluster, &asked("handed on", 200)).await;
    in_state(&cluster, &id, "running").await;
    let owner: String = sqlx::query_scalar("SELECT owner FROM jobs")
        .fetch_one(cluster.database.pool())
        .await
        .expect("an owner");
    let number = usize::from(!owner.starts_with("b1"));
    assert!(cluster.broker_at(number).terminate().await.success());
    cluster.sim.set(|sim| sim.pace_ms = 1);
    let path = format!("{PATH}/{id}");
    let done = until("the other one has done it", PATIENCE, async || {
        let job = cluster
            .call_at(1 - number, Method::GET, &path)
            .token(&cluster.client_token)
            .send()
            .await
            .good()
            .json();
        match job["state"].as_str() {
            Some("succeeded") => Ok(job),
            _ => Err(job.to_string()),
        }
    })
    .await;
    assert_eq!((&done["runs"], &done["error"]), (&json!(2), &Value::Null));
    assert_eq!(done["result"]["text"], answer_to("handed on", 200));
    cluster.broker_at(number).again();
    cluster.broker_ready(number, PATIENCE).await;
    cluster.assert_clean().await;
}

#[tokio::test]
async fn an_operator_lists_cancels_and_repeats_jobs() {
    let cluster = Cluster::builder().workers(0).start().await;
    let id = accepted(&cluster, &asked("again", 5)).await;
    let run = async |arguments: &[&str]| {
        let (fine, out, told) = cluster.cli.run(arguments).await;
        assert!(fine, "{arguments:?}: {told}");
        out
    };
    let listed = run(&["jobs", "list", "--state", "queued"]).await;
    assert!(listed.contains(&id) && listed.contains("background"), "{listed}");
    run(&["jobs", "cancel", &id, "--actor", "ops"]).await;
    assert_eq!(
        job(&cluster, &id).await["error"]["message"],
        "cancelled by an administrator"
    );
    let told = run(&["jobs", "retry", &id, "--actor", "ops"]).await;
    let again = told.split_whitespace().next().expect("an id").to_owned();
    let shown: Value = serde_json::from_str(&run(&["jobs", "show", &again, "--json"]).await).expect("JSON");
    assert_eq!(
        (&shown["state"], &shown["retry_of"]),
        (&json!("queued"), &json!(id))
    );
    assert_eq!(job(&cluster, &again).await["retry_of"], id);
    let records =
        "SELECT count(*) FROM change_records WHERE actor = 'ops' AND what IN ('job.cancel', 'job.retry')";
    assert_eq!(cluster.database.count(records).await, Ok(2));
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_repeated_job_asks_for_the_same() {
    let cluster = Cluster::builder().start().await;
    let mut body = asked("the same", 6);
    body["deadline"] = json!(3600);
    let id = accepted(&cluster, &body).await;
    in_state(&cluster, &id, "succeeded").await;
    let refused = cluster.cli.run(&["jobs", "retry", &id]).await;
    assert!(!refused.0, "what succeeded is not repeated: {}", refused.1);
    sqlx::query("UPDATE jobs SET state = 'dead'")
        .execute(cluster.database.pool())
        .await
        .expect("it changes");
    let (_, told, _) = cluster.cli.run(&["jobs", "retry", &id]).await;
    let again = told.split_whitespace().next().expect("an id").to_owned();
    let done = in_state(&cluster, &again, "succeeded").await;
    assert_eq!(done["result"]["text"], answer_to("the same", 6));
    cluster.assert_clean().await;
}
