//! Bulk work in OpenAI's shapes: files, batches whose lines are jobs, responses in the background.

use std::collections::{BTreeMap, BTreeSet};

use duo_system_tests::harness::cluster::{answer_to, freeze};
use duo_system_tests::harness::{Call, Cluster, PATIENCE, until};
use duo_system_tests::sim::Settings;
use http::{Method, StatusCode};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const BOUNDARY: &str = "a-boundary";

fn slow(words: usize, pace_ms: u64) -> Settings {
    Settings {
        tokens: words,
        pace_ms,
        ..Settings::default()
    }
}

/// A line of a file that asks for `words` words.
fn line(custom_id: &str, question: &str, words: usize) -> Value {
    let body = json!({
        "model": "mistral",
        "messages": [{"role": "user", "content": question}],
        "max_tokens": words,
    });
    json!({"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body})
}

fn jsonl(lines: &[Value]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn form(purpose: &str, content: &str) -> String {
    format!(
        "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\n{purpose}\r\n\
         --{BOUNDARY}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"questions.jsonl\"\r\n\
         Content-Type: application/octet-stream\r\n\r\n{content}\r\n--{BOUNDARY}--\r\n"
    )
}

fn upload(cluster: &Cluster, purpose: &str, content: &str) -> Call {
    cluster
        .call(Method::POST, "/v1/files")
        .token(&cluster.client_token)
        .text(
            &format!("multipart/form-data; boundary={BOUNDARY}"),
            form(purpose, content),
        )
}

async fn file_of(cluster: &Cluster, content: &str) -> String {
    let file = upload(cluster, "batch", content).send().await.good().json();
    assert_eq!(file["bytes"], content.len(), "{file}");
    file["id"].as_str().expect("an id").to_owned()
}

fn batch_call(cluster: &Cluster, body: &Value) -> Call {
    cluster.openai("/v1/batches", body)
}

async fn batch_of(cluster: &Cluster, file: &str, window: &str) -> String {
    let body = json!({
        "input_file_id": file,
        "endpoint": CHAT,
        "completion_window": window,
        "metadata": {"night": "1"},
    });
    let batch = batch_call(cluster, &body).send().await.good().json();
    assert!(
        ["validating", "in_progress", "failed", "finalizing", "completed"].contains(&text(&batch["status"])),
        "{batch}"
    );
    text(&batch["id"]).to_owned()
}

fn get(cluster: &Cluster, path: &str) -> Call {
    cluster.call(Method::GET, path).token(&cluster.client_token)
}

fn post(cluster: &Cluster, path: &str) -> Call {
    cluster.call(Method::POST, path).token(&cluster.client_token)
}

async fn batch(cluster: &Cluster, id: &str) -> Value {
    get(cluster, &format!("/v1/batches/{id}"))
        .send()
        .await
        .good()
        .json()
}

async fn in_status(cluster: &Cluster, id: &str, status: &str) -> Value {
    until(&format!("the batch is {status}"), PATIENCE, async || {
        let batch = batch(cluster, id).await;
        match batch["status"] == status {
            true => Ok(batch),
            false => Err(batch.to_string()),
        }
    })
    .await
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

fn counts(batch: &Value) -> (i64, i64, i64) {
    let count = |name: &str| batch["request_counts"][name].as_i64().expect("a count");
    (count("total"), count("completed"), count("failed"))
}

/// The lines of a file of results by their names, in order; none twice.
async fn results(cluster: &Cluster, file: &Value) -> Vec<(String, Value)> {
    let path = format!("/v1/files/{}/content", text(file));
    let content = get(cluster, &path).send().await.good().text();
    let lines = content.lines().map(|line| {
        let line: Value = serde_json::from_str(line).expect("JSON");
        (text(&line["custom_id"]).to_owned(), line)
    });
    let lines: Vec<_> = lines.collect();
    let names: BTreeSet<_> = lines.iter().map(|(name, _)| name).collect();
    assert_eq!(names.len(), lines.len(), "a line twice: {content}");
    lines
}

fn said(line: &Value) -> &str {
    text(&line["response"]["body"]["choices"][0]["message"]["content"])
}

#[tokio::test]
async fn a_batch_goes_from_its_file_to_what_came_of_each_line() {
    let cluster = Cluster::start().await;
    let mut lines: Vec<Value> = (0..8)
        .map(|number| {
            line(
                &format!("line {number}"),
                &format!("question {number}"),
                4 + number,
            )
        })
        .collect();
    lines[5]["body"]["temperature"] = json!(-1);
    // A blank line is none, and the last one needs no end.
    let content = jsonl(&lines).replacen('\n', "\n\r\n", 1);
    let file = file_of(&cluster, content.trim_end()).await;
    let head = get(&cluster, &format!("/v1/files/{file}"))
        .send()
        .await
        .good()
        .json();
    assert_eq!(
        (&head["object"], &head["purpose"], &head["filename"]),
        (&json!("file"), &json!("batch"), &json!("questions.jsonl"))
    );
    let sent = get(&cluster, &format!("/v1/files/{file}/content"))
        .send()
        .await
        .good();
    assert_eq!(sent.text(), content.trim_end());
    let id = batch_of(&cluster, &file, "24h").await;
    let done = in_status(&cluster, &id, "completed").await;
    assert_eq!(counts(&done), (8, 7, 1), "{done}");
    assert_eq!(
        (
            &done["metadata"]["night"],
            &done["errors"],
            &done["input_file_id"]
        ),
        (&json!("1"), &Value::Null, &json!(file))
    );
    for moment in [
        "created_at",
        "in_progress_at",
        "finalizing_at",
        "completed_at",
        "expires_at",
    ] {
        assert!(done[moment].is_i64(), "{moment}: {done}");
    }
    assert!(done["usage"]["output_tokens"].as_i64() > Some(0), "{done}");
    let output = results(&cluster, &done["output_file_id"]).await;
    let names: Vec<&str> = output.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "line 0", "line 1", "line 2", "line 3", "line 4", "line 6", "line 7"
        ],
        "in the order of the lines"
    );
    for (name, line) in &output {
        let number: usize = name.trim_start_matches("line ").parse().expect("a number");
        assert_eq!(said(line), answer_to(&format!("question {number}"), 4 + number));
        assert_eq!(
            (&line["response"]["status_code"], &line["error"]),
            (&json!(200), &Value::Null)
        );
        assert!(!text(&line["response"]["request_id"]).is_empty(), "{line}");
    }
    let failures = results(&cluster, &done["error_file_id"]).await;
    assert_eq!(failures.len(), 1);
    assert_eq!(failures[0].0, "line 5");
    assert_eq!(failures[0].1["response"]["status_code"], 400, "{}", failures[0].1);
    assert!(failures[0].1["response"]["body"]["error"]["message"].is_string());
    assert_eq!(cluster.sim.stats().finished, 7, "each ran once");
    let metrics = cluster.metrics().await.expect("metrics");
    for line in [
        "duo_batches_accepted_total 1",
        "duo_batches_ended_total{state=\"completed\"} 1",
        "duo_batch_lines_made_total 8",
        "duo_batch_lines_written_total 8",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    cluster.assert_clean().await;
}

#[tokio::test]
async fn what_is_kept_is_listed_for_its_owner_only_and_can_be_deleted() {
    let cluster = Cluster::builder().workers(0).start().await;
    let other = cluster.cli.token("other", "client", &[]).await;
    let admin = cluster.cli.token("boss", "admin", &[]).await;
    let mut files = Vec::new();
    for number in 0..3 {
        files.push(file_of(&cluster, &jsonl(&[line(&format!("{number}"), "q", 3)])).await);
    }
    let id = batch_of(&cluster, &files[0], "24h").await;
    let listed = get(&cluster, "/v1/files?limit=2").send().await.good().json();
    assert_eq!(
        (
            &listed["data"][0]["id"],
            &listed["data"][1]["id"],
            &listed["has_more"]
        ),
        (&json!(files[2]), &json!(files[1]), &json!(true))
    );
    let path = format!("/v1/files?limit=2&after={}", files[1]);
    let rest = get(&cluster, &path).send().await.good().json();
    assert_eq!(
        (&rest["data"][0]["id"], &rest["has_more"]),
        (&json!(files[0]), &json!(false))
    );
    let oldest = get(&cluster, "/v1/files?order=asc&purpose=batch")
        .send()
        .await
        .good()
        .json();
    assert_eq!(oldest["data"][0]["id"], json!(files[0]));
    let batches = get(&cluster, "/v1/batches").send().await.good().json();
    assert_eq!(
        (&batches["data"][0]["id"], &batches["object"]),
        (&json!(id), &json!("list"))
    );
    until("the broker knows the tokens", PATIENCE, async || {
        for token in [&other, &admin] {
            let answer = cluster.call(Method::GET, "/v1/batches").token(token).send().await;
            if answer.status != StatusCode::OK {
                return Err(answer.to_string());
            }
        }
        Ok(())
    })
    .await;
    for path in [
        format!("/v1/files/{}", files[0]),
        format!("/v1/files/{}/content", files[0]),
        format!("/v1/batches/{id}"),
    ] {
        let stranger = cluster.call(Method::GET, &path).token(&other).send().await;
        assert_eq!(stranger.status, StatusCode::NOT_FOUND, "{path}: {stranger}");
        assert!(
            stranger.json()["error"]["message"].is_string(),
            "in OpenAI's shape: {stranger}"
        );
        cluster.call(Method::GET, &path).token(&admin).send().await.good();
    }
    let nothing = cluster
        .call(Method::GET, "/v1/files")
        .token(&other)
        .send()
        .await
        .good()
        .json();
    assert_eq!(nothing["data"], json!([]));
    let delete = |id: &str| {
        let path = format!("/v1/files/{id}");
        cluster
            .call(Method::DELETE, &path)
            .token(&cluster.client_token)
            .send()
    };
    assert_eq!(
        delete(&files[0]).await.status,
        StatusCode::CONFLICT,
        "a batch reads it"
    );
    post(&cluster, &format!("/v1/batches/{id}/cancel"))
        .send()
        .await
        .good();
    in_status(&cluster, &id, "cancelled").await;
    for file in &files {
        let gone = delete(file).await.good().json();
        assert_eq!(gone, json!({"id": file, "object": "file", "deleted": true}));
        assert_eq!(delete(file).await.status, StatusCode::NOT_FOUND);
    }
    let left = "SELECT count(*) FROM file_chunks JOIN files ON files.id = file_id WHERE purpose = 'batch'";
    assert_eq!(cluster.database.count(left).await, Ok(0));
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_wrong_file_batch_or_line_is_told_and_nothing_runs() {
    let cluster = Cluster::start().await;
    let good = line("good", "q", 3);
    let with = |change: &dyn Fn(&mut Value)| {
        let mut line = line(&uuid::Uuid::now_v7().to_string(), "q", 3);
        change(&mut line);
        line.to_string()
    };
    let wrong = [
        ("duplicate_custom_id", json!("custom_id"), good.to_string()),
        ("invalid_json_line", Value::Null, "{".to_owned()),
        (
            "invalid_url",
            json!("url"),
            with(&|line| line["url"] = json!("/v1/embeddings")),
        ),
        (
            "invalid_method",
            json!("method"),
            with(&|line| line["method"] = json!("GET")),
        ),
        (
            "model_not_found",
            json!("body.model"),
            with(&|line| line["body"]["model"] = json!("nothing")),
        ),
        (
            "context_length_exceeded",
            json!("body.messages"),
            with(&|line| line["body"]["messages"][0]["content"] = json!("x".repeat(1_000_000))),
        ),
        (
            "line_too_long",
            Value::Null,
            with(&|line| line["body"]["messages"][0]["content"] = json!("x".repeat(5_000_000))),
        ),
    ];
    let lines: String = wrong.iter().map(|(_, _, line)| format!("{line}\n")).collect();
    let file = file_of(&cluster, &format!("{good}\n{lines}")).await;
    let id = batch_of(&cluster, &file, "24h").await;
    let failed = in_status(&cluster, &id, "failed").await;
    let errors = failed["errors"]["data"].as_array().expect("errors");
    assert_eq!(errors.len(), wrong.len(), "{failed}");
    for (number, ((code, param, _), error)) in wrong.iter().zip(errors).enumerate() {
        assert_eq!(
            (&error["code"], &error["param"]),
            (&json!(code), param),
            "{error}"
        );
        assert_eq!(error["line"], number + 2, "{error}");
        assert!(!text(&error["message"]).is_empty());
    }
    let empty = file_of(&cluster, "\n \n").await;
    let id = batch_of(&cluster, &empty, "24h").await;
    let failed = in_status(&cluster, &id, "failed").await;
    assert_eq!(failed["errors"]["data"][0]["code"], "empty_file", "{failed}");
    let asked = json!({"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"});
    let with = |name: &str, value: Value| {
        let mut body = asked.clone();
        body[name] = value;
        body
    };
    for (param, body) in [
        ("input_file_id", with("input_file_id", json!("file-nothing"))),
        ("endpoint", with("endpoint", json!("/v1/images"))),
        ("completion_window", with("completion_window", json!("8d"))),
        ("metadata", with("metadata", json!([]))),
        (
            "output_expires_after",
            with("output_expires_after", json!({"seconds": 1})),
        ),
    ] {
        let refused = batch_call(&cluster, &body).send().await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{refused}");
        assert_eq!(refused.json()["error"]["param"], param, "{refused}");
    }
    let other_purpose = upload(&cluster, "fine-tune", "{}").send().await;
    assert_eq!(other_purpose.status, StatusCode::BAD_REQUEST, "{other_purpose}");
    assert_eq!(other_purpose.json()["error"]["param"], "purpose");
    let no_form = post(&cluster, "/v1/files").json(&json!({})).send().await;
    assert_eq!(no_form.status, StatusCode::BAD_REQUEST, "{no_form}");
    assert_eq!(cluster.database.count("SELECT count(*) FROM jobs").await, Ok(0));
    let unfinished = "SELECT count(*) FROM files WHERE NOT is_whole";
    assert_eq!(cluster.database.count(unfinished).await, Ok(0));
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_cancelled_batch_stops_and_keeps_what_was_done() {
    let cluster = Cluster::builder()
        .sim(slow(3, 1))
        .slots(1)
        .brokers(2)
        .start()
        .await;
    let mut lines: Vec<Value> = (0..3)
        .map(|number| line(&format!("short {number}"), "q", 3))
        .collect();
    let mut long = line("long", "long", 2000);
    long["body"]["max_tokens"] = json!(2000);
    lines.push(long);
    lines.extend((0..40).map(|number| line(&format!("late {number}"), "q", 2000)));
    cluster.sim.set(|sim| (sim.tokens, sim.pace_ms) = (2000, 20));
    let file = file_of(&cluster, &jsonl(&lines)).await;
    let id = batch_of(&cluster, &file, "24h").await;
    until("the short ones are done", PATIENCE, async || {
        let batch = batch(&cluster, &id).await;
        match counts(&batch) {
            (44, 3.., _) => Ok(()),
            _ => Err(batch.to_string()),
        }
    })
    .await;
    let path = format!("/v1/batches/{id}/cancel");
    let cancelled = cluster
        .call_at(1, Method::POST, &path)
        .token(&cluster.client_token)
        .send()
        .await
        .good()
        .json();
    assert!(
        ["cancelling", "cancelled"].contains(&text(&cancelled["status"])),
        "{cancelled}"
    );
    let done = in_status(&cluster, &id, "cancelled").await;
    assert!(
        done["cancelling_at"].is_i64() && done["cancelled_at"].is_i64(),
        "{done}"
    );
    cluster.sim_shows(|stats| stats.running == 0).await;
    let output = results(&cluster, &done["output_file_id"]).await;
    let failures = results(&cluster, &done["error_file_id"]).await;
    assert_eq!(output.len() + failures.len(), 44, "every line has an end");
    assert!(output.len() >= 3 && failures.len() >= 40, "{}", output.len());
    for (_, line) in &failures {
        assert_eq!(line["error"]["code"], "batch_cancelled", "{line}");
    }
    let again = post(&cluster, &path).send().await.good().json();
    assert_eq!(again["status"], "cancelled", "as often as one likes");
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_batch_without_time_expires_and_says_so_of_every_line() {
    let cluster = Cluster::builder().workers(0).start().await;
    let lines: Vec<Value> = (0..5).map(|number| line(&format!("{number}"), "q", 3)).collect();
    let file = file_of(&cluster, &jsonl(&lines)).await;
    let id = batch_of(&cluster, &file, "2s").await;
    let expired = in_status(&cluster, &id, "expired").await;
    assert_eq!(counts(&expired), (5, 0, 5), "{expired}");
    assert!(expired["expired_at"].is_i64() && expired["output_file_id"].is_null());
    let failures = results(&cluster, &expired["error_file_id"]).await;
    assert_eq!(failures.len(), 5);
    for (_, line) in &failures {
        assert_eq!(
            (&line["error"]["code"], &line["response"]),
            (&json!("batch_expired"), &Value::Null)
        );
    }
    let late = post(&cluster, &format!("/v1/batches/{id}/cancel")).send().await;
    assert_eq!(late.status, StatusCode::CONFLICT, "{late}");
    cluster.assert_clean().await;
}

#[tokio::test]
async fn brokers_that_are_killed_lose_no_line_and_finish_none_twice() {
    const LINES: usize = 700;
    let mut cluster = Cluster::builder()
        .slots(16)
        .lease("1s")
        .brokers(2)
        .broker_env("DUO_JOB_LEASE", "4s")
        .broker_env("DUO_ABANDON_AFTER", "1s")
        .start()
        .await;
    let lines: Vec<Value> = (0..LINES)
        .map(|number| line(&format!("{number}"), &format!("question {number}"), 3))
        .collect();
    let file = file_of(&cluster, &jsonl(&lines)).await;
    let id = batch_of(&cluster, &file, "24h").await;
    // The one in the midst of making jobs of lines, as far as that can be hit, then the other in the midst of running them.
    for (number, reached) in [
        (0, "SELECT made FROM batches"),
        (1, "SELECT completed - 150 FROM batches"),
    ] {
        until("the batch has come so far", PATIENCE, async || {
            let far: i32 = sqlx::query_scalar(reached)
                .fetch_one(cluster.database.pool())
                .await
                .map_err(|error| error.to_string())?;
            if far > 0 { Ok(()) } else { Err(far.to_string()) }
        })
        .await;
        cluster.broker_at(number).kill().await;
        cluster.broker_at(number).again();
        cluster.broker_ready(number, PATIENCE).await;
    }
    let done = in_status(&cluster, &id, "completed").await;
    assert_eq!(counts(&done), (700, 700, 0), "{done}");
    let output: BTreeMap<String, Value> = results(&cluster, &done["output_file_id"])
        .await
        .into_iter()
        .collect();
    assert_eq!(output.len(), LINES);
    for number in [0, 1, 255, 256, 257, LINES - 1] {
        let line = &output[&number.to_string()];
        assert_eq!(said(line), answer_to(&format!("question {number}"), 3));
    }
    for sql in [
        "SELECT count(*) FROM jobs",
        "SELECT count(*) FROM jobs WHERE state = 'succeeded'",
        "SELECT count(*) FROM job_results",
    ] {
        assert_eq!(cluster.database.count(sql).await, Ok(700), "{sql}");
    }
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_batch_that_loses_its_broker_while_results_are_written_writes_them_once() {
    const LINES: usize = 600;
    let cluster = Cluster::builder().slots(16).brokers(2).start().await;
    let lines: Vec<Value> = (0..LINES)
        .map(|number| line(&format!("{number}"), "q", 3))
        .collect();
    let file = file_of(&cluster, &jsonl(&lines)).await;
    let id = batch_of(&cluster, &file, "24h").await;
    let done = in_status(&cluster, &id, "completed").await;
    let before = results(&cluster, &done["output_file_id"]).await;
    let path = format!("/v1/files/{}/content", text(&done["output_file_id"]));
    let content = get(&cluster, &path).send().await.good().text();
    let bytes = |text: &str| i64::try_from(text.len()).expect("few");
    let first: String = content.split_inclusive('\n').take(256).collect();
    // As it was after the first piece, held by a broker that is gone.
    let mut transaction = cluster.database.pool().begin().await.expect("it begins");
    for sql in [
        "DELETE FROM files WHERE purpose = 'batch_output'",
        "DELETE FROM file_chunks WHERE number > 0 AND file_id = (SELECT output_file FROM batches)",
    ] {
        let done = sqlx::query(sql)
            .execute(&mut *transaction)
            .await
            .expect("it changes");
        assert!(done.rows_affected() > 0, "{sql}");
    }
    let sql = "UPDATE batches SET state = 'finalizing', ended_at = NULL, collected_line = 256, collected_byte = $1, \
               output_chunks = 1, output_bytes = $2, owner = 'gone', held_until = now() + interval '1s', look_at = now()";
    sqlx::query(sql)
        .bind(bytes(&jsonl(&lines[..256])))
        .bind(bytes(&first))
        .execute(&mut *transaction)
        .await
        .expect("it changes");
    transaction.commit().await.expect("it is so");
    let done = in_status(&cluster, &id, "completed").await;
    let after = results(&cluster, &done["output_file_id"]).await;
    assert_eq!(after, before);
    cluster.assert_clean().await;
}

fn background(question: &str, words: usize) -> Value {
    json!({"model": "mistral", "input": question, "max_output_tokens": words, "background": true})
}

fn response_at(cluster: &Cluster, broker: usize, id: &str, query: &str) -> Call {
    let path = format!("/v1/responses/{id}{query}");
    cluster
        .call_at(broker, Method::GET, &path)
        .token(&cluster.client_token)
}

async fn response_in(cluster: &Cluster, id: &str, status: &str) -> Value {
    until(&format!("the response is {status}"), PATIENCE, async || {
        let response = response_at(cluster, 0, id, "").send().await.good().json();
        match response["status"] == status {
            true => Ok(response),
            false => Err(response.to_string()),
        }
    })
    .await
}

/// The events of a stream as they came, without what only fills silence.
fn raw_events(stream: &str) -> Vec<String> {
    let events = stream.split_inclusive("\n\n");
    events
        .filter(|event| !event.starts_with(':'))
        .map(str::to_owned)
        .collect()
}

fn data_of(event: &str) -> Value {
    let data = event.lines().find_map(|line| line.strip_prefix("data: "));
    serde_json::from_str(data.expect("data")).expect("JSON")
}

fn kinds(events: &[String]) -> Vec<String> {
    let mut kinds: Vec<String> = events
        .iter()
        .map(|event| text(&data_of(event)["type"]).to_owned())
        .collect();
    kinds.dedup();
    kinds
}

const WHOLE: [&str; 10] = [
    "response.created",
    "response.queued",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.completed",
];

#[tokio::test]
async fn a_background_response_is_left_polled_and_cancelled() {
    let cluster = Cluster::builder().sim(slow(400, 0)).slots(1).start().await;
    let mut asked = background("why?", 30);
    asked["instructions"] = json!("be brief");
    asked["metadata"] = json!({"issue": "42"});
    let made = cluster.openai("/v1/responses", &asked).send().await.good().json();
    assert_eq!(
        (&made["status"], &made["object"], &made["background"]),
        (&json!("queued"), &json!("response"), &json!(true)),
        "{made}"
    );
    let id = text(&made["id"]).to_owned();
    let cut = response_in(&cluster, &id, "incomplete").await;
    assert_eq!(cut["incomplete_details"]["reason"], "max_output_tokens", "{cut}");
    assert_eq!(cut["output"][0]["content"][0]["text"], cluster.expected(30));
    assert_eq!(
        (&cut["instructions"], &cut["metadata"]["issue"]),
        (&json!("be brief"), &json!("42"))
    );
    assert_eq!(cut["usage"]["output_tokens"], 30);
    assert_eq!(
        cluster.last_body()["messages"],
        json!([{"role": "system", "content": "be brief"}, {"role": "user", "content": "why?"}])
    );
    let stored = "SELECT count(*) FROM responses WHERE position('be brief'::bytea IN sealed) > 0";
    assert_eq!(cluster.database.count(stored).await, Ok(0), "it is sealed");
    cluster.sim.set(|sim| sim.pace_ms = 50);
    let running = cluster
        .openai("/v1/responses", &background("long", 400))
        .send()
        .await
        .good()
        .json();
    let running = text(&running["id"]);
    response_in(&cluster, running, "in_progress").await;
    let cancel = format!("/v1/responses/{running}/cancel");
    for _ in 0..2 {
        let cancelled = post(&cluster, &cancel).send().await.good().json();
        assert_eq!(cancelled["status"], "cancelled", "{cancelled}");
    }
    cluster.sim_shows(|stats| stats.running == 0).await;
    let other = cluster.cli.token("other", "client", &[]).await;
    until("the broker knows the token", PATIENCE, async || {
        let path = format!("/v1/responses/{id}");
        let answer = cluster.call(Method::GET, &path).token(&other).send().await;
        match answer.status {
            StatusCode::NOT_FOUND => Ok(()),
            _ => Err(answer.to_string()),
        }
    })
    .await;
    let path = format!("/v1/responses/{id}");
    let gone = cluster
        .call(Method::DELETE, &path)
        .token(&cluster.client_token)
        .send()
        .await
        .good()
        .json();
    assert_eq!(gone["deleted"], true);
    assert_eq!(get(&cluster, &path).send().await.status, StatusCode::NOT_FOUND);
    for (param, value) in [
        ("tools", json!([{"type": "web_search"}])),
        ("previous_response_id", json!("resp_1")),
        ("store", json!(false)),
    ] {
        let mut body = background("q", 3);
        body[param] = value;
        let refused = cluster.openai("/v1/responses", &body).send().await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{refused}");
        assert_eq!(refused.json()["error"]["param"], param, "{refused}");
    }
    cluster.assert_clean().await;
}

#[tokio::test]
async fn the_events_of_a_response_go_on_at_any_broker_byte_for_byte() {
    let cluster = Cluster::builder().sim(slow(80, 25)).brokers(2).start().await;
    let mut asked = background("tell", 200);
    asked["stream"] = json!(true);
    let stream = cluster.openai("/v1/responses", &asked).open().await;
    assert_eq!(stream.status, StatusCode::OK);
    let whole = stream.rest().await.good().text();
    let events = raw_events(&whole);
    assert_eq!(kinds(&events), WHOLE);
    for (number, event) in events.iter().enumerate() {
        assert_eq!(data_of(event)["sequence_number"], number, "{event}");
    }
    let expected = answer_to("tell", 80);
    let deltas: String = events
        .iter()
        .map(|event| data_of(event)["delta"].as_str().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(deltas, expected);
    let done = data_of(events.last().expect("an end"));
    let id = text(&done["response"]["id"]).to_owned();
    assert_eq!(done["response"]["output"][0]["content"][0]["text"], expected);
    for (number, broker) in (0..events.len()).zip([0, 1].into_iter().cycle()) {
        let query = format!("?stream=true&starting_after={number}");
        let rest = response_at(&cluster, broker, &id, &query)
            .send()
            .await
            .good()
            .text();
        assert_eq!(rest, events[number + 1..].concat(), "after {number}");
    }
    // What the stream of pieces has lost, the result has.
    let context = async_nats::jetstream::new(cluster.nats.connect().await);
    let stream = context.get_stream("DUO_JOB_REPLIES").await.expect("it is there");
    stream.purge().await.expect("it goes");
    let again = response_at(&cluster, 1, &id, "?stream=true").send().await.good();
    assert_eq!(again.text(), events.concat());
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_reader_who_was_cut_off_goes_on_while_the_answer_comes() {
    let cluster = Cluster::builder().sim(slow(120, 40)).brokers(2).start().await;
    let made = cluster
        .openai("/v1/responses", &background("tell", 200))
        .send()
        .await
        .good()
        .json();
    let id = text(&made["id"]).to_owned();
    let mut first = response_at(&cluster, 0, &id, "?stream=true").open().await;
    first
        .until(|so_far| so_far.matches("output_text.delta").count() > 6)
        .await;
    let mut seen = raw_events(&first.so_far().text());
    // What came of the last one may not be whole.
    seen.truncate(5);
    drop(first);
    let last = data_of(seen.last().expect("some"))["sequence_number"].clone();
    let query = format!("?stream=true&starting_after={last}");
    let rest = response_at(&cluster, 1, &id, &query).send().await.good().text();
    let whole = response_at(&cluster, 0, &id, "?stream=true")
        .send()
        .await
        .good()
        .text();
    assert_eq!(seen.concat() + &rest, whole);
    assert_eq!(kinds(&raw_events(&whole)), WHOLE);
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_response_that_is_waited_for_comes_at_once_and_ends_with_its_client() {
    let cluster = Cluster::builder().sim(slow(12, 0)).start().await;
    let asked = json!({
        "model": "mistral",
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "now"}]}],
    });
    let done = cluster.openai("/v1/responses", &asked).send().await.good().json();
    assert_eq!(done["status"], "completed", "{done}");
    assert_eq!(done["output"][0]["content"][0]["text"], answer_to("now", 12));
    let mut streamed = asked.clone();
    streamed["stream"] = json!(true);
    let events = cluster
        .openai("/v1/responses", &streamed)
        .send()
        .await
        .good()
        .text();
    let kinds = kinds(&raw_events(&events));
    assert_eq!(
        (kinds[0].as_str(), kinds[1].as_str()),
        ("response.created", "response.in_progress")
    );
    assert_eq!(kinds.last().map(String::as_str), Some("response.completed"));
    let mut wrong = asked.clone();
    wrong["model"] = json!("nothing");
    let unknown = cluster.openai("/v1/responses", &wrong).send().await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND, "{unknown}");
    assert_eq!(unknown.json()["error"]["code"], "model_not_found");
    cluster.sim.set(|sim| (sim.tokens, sim.pace_ms) = (2000, 20));
    let mut leaving = cluster.openai("/v1/responses", &streamed).open().await;
    leaving.until(|so_far| so_far.contains("output_text.delta")).await;
    drop(leaving);
    cluster
        .sim_shows(|stats| stats.running == 0 && stats.aborted == 1)
        .await;
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_broker_that_dies_or_freezes_while_it_makes_jobs_of_lines_makes_each_once() {
    const LINES: usize = 3000;
    let mut cluster = Cluster::builder()
        .workers(0)
        .brokers(2)
        .broker_env("DUO_JOB_LEASE", "4s")
        .start()
        .await;
    // Each step takes so long that the first one seen is never the last.
    for sql in [
        "CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN PERFORM pg_sleep(0.2); RETURN NULL; END $$",
        "CREATE TRIGGER slowly BEFORE INSERT ON job_inputs FOR EACH STATEMENT EXECUTE FUNCTION slowly()",
    ] {
        sqlx::query(sql)
            .execute(cluster.database.pool())
            .await
            .expect("it is made");
    }
    let lines: Vec<Value> = (0..LINES)
        .map(|number| line(&format!("{number}"), "q", 3))
        .collect();
    let file = file_of(&cluster, &jsonl(&lines)).await;
    for dies in [true, false] {
        let id = batch_of(&cluster, &file, "24h").await;
        let row = async |of: &Cluster| -> Result<(i32, Option<String>), String> {
            sqlx::query_as("SELECT made, owner FROM batches ORDER BY id DESC LIMIT 1")
                .fetch_one(of.database.pool())
                .await
                .map_err(|error| error.to_string())
        };
        let owner = until("some are made", PATIENCE, async || match row(&cluster).await? {
            (1.., Some(owner)) => Ok(owner),
            other => Err(format!("{other:?}")),
        })
        .await;
        let number = usize::from(!owner.starts_with("b1"));
        match dies {
            true => cluster.broker_at(number).kill().await,
            false => freeze(cluster.broker_at(number), true),
        }
        let (made, _) = row(&cluster).await.expect("a row");
        assert!(made < 3000, "it was stopped in the midst of it: {made}");
        let all = "SELECT count(*) FROM batches WHERE made = 3000 AND ended_at IS NULL";
        until(
            "the other one has made the rest",
            PATIENCE,
            async || match cluster.database.count(all).await? {
                1 => Ok(()),
                _ => Err(format!("{:?}", row(&cluster).await)),
            },
        )
        .await;
        match dies {
            true => cluster.broker_at(number).again(),
            false => freeze(cluster.broker_at(number), false),
        }
        cluster.broker_ready(number, PATIENCE).await;
        let prefix = id.trim_start_matches("batch_")[..24].to_owned();
        let of_batch = "SELECT count(*) FROM jobs WHERE replace(id::text, '-', '') LIKE $1 || '%'";
        let count: i64 = sqlx::query_scalar(of_batch)
            .bind(&prefix)
            .fetch_one(cluster.database.pool())
            .await
            .expect("a count");
        assert_eq!(count, 3000);
        let cancel = format!("/v1/batches/{id}/cancel");
        post(&cluster, &cancel).send().await.good();
        let done = in_status(&cluster, &id, "cancelled").await;
        let failures = results(&cluster, &done["error_file_id"]).await;
        let names: Vec<String> = failures.into_iter().map(|(name, _)| name).collect();
        let expected: Vec<String> = (0..LINES).map(|number| number.to_string()).collect();
        assert_eq!(names, expected);
    }
    cluster.assert_clean().await;
}

#[tokio::test]
async fn the_events_of_a_response_go_on_after_the_death_of_the_broker_that_ran_it() {
    let mut cluster = Cluster::builder()
        .sim(slow(100, 50))
        .lease("1s")
        .brokers(2)
        .broker_env("DUO_JOB_LEASE", "4s")
        .broker_env("DUO_ABANDON_AFTER", "1s")
        .start()
        .await;
    let made = cluster
        .openai("/v1/responses", &background("survive", 200))
        .send()
        .await
        .good()
        .json();
    let id = text(&made["id"]).to_owned();
    response_in(&cluster, &id, "in_progress").await;
    let owner: String = sqlx::query_scalar("SELECT owner FROM jobs")
        .fetch_one(cluster.database.pool())
        .await
        .expect("an owner");
    let number = usize::from(!owner.starts_with("b1"));
    let mut stream = response_at(&cluster, 1 - number, &id, "?stream=true")
        .open()
        .await;
    stream
        .until(|so_far| so_far.matches("output_text.delta").count() > 4)
        .await;
    cluster.broker_at(number).kill().await;
    let events = raw_events(&stream.rest().await.good().text());
    assert_eq!(kinds(&events), WHOLE);
    for (number, event) in events.iter().enumerate() {
        assert_eq!(data_of(event)["sequence_number"], number, "{event}");
    }
    cluster.broker_at(number).again();
    cluster.broker_ready(number, PATIENCE).await;
    let again = response_at(&cluster, number, &id, "?stream=true")
        .send()
        .await
        .good();
    assert_eq!(raw_events(&again.text()), events, "the same from its start");
    let said: String = events
        .iter()
        .map(|event| data_of(event)["delta"].as_str().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(said, answer_to("survive", 100));
    cluster.assert_clean().await;
}
