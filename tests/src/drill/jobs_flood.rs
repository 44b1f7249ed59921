//! A backlog of background jobs is in nobody's way: people have their first token about as soon as without it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use serde_json::json;

use super::Size;
use super::asking::busy_token;
use super::report::{Report, millis};
use crate::harness::cluster::chat;
use crate::harness::{Call, Cluster, until};
use crate::sim::Settings;

/// Jobs of the short and of the full form.
const SHORT: usize = 800;
const FULL: usize = 10_000;
/// Submissions under way at once.
const SUBMITTERS: usize = 16;
/// Questions of a person, one after the other, without jobs and with them.
const QUESTIONS: usize = 30;
const SLOTS: usize = 16;
/// Slots that workers leave to background work.
const BUSY: u64 = 12;
const WORDS: usize = 4;
/// How much later the first token may come, as a ratio of medians.
const MOST: f64 = 1.2;
/// How long the backlog may take to end, once the model server is fast.
const ENDED_WITHIN: Duration = Duration::from_secs(240);

pub(super) async fn run(size: Size) -> Report {
    let mut report = Report::new("jobs-flood", size);
    let cluster = Cluster::builder()
        .slots(SLOTS)
        .sim(Settings {
            tokens: WORDS,
            ttft_ms: 150,
            pace_ms: 20,
            ..Settings::default()
        })
        .start()
        .await;
    let token = busy_token(&cluster).await;
    let count = if size.short { SHORT } else { FULL };
    let began = Instant::now();
    let without = first_tokens(&cluster).await;
    let submitted = Instant::now();
    let accepted = flood(&cluster, &token, count).await;
    report.figure("jobs accepted in", millis(submitted.elapsed()));
    cluster.sim_shows(|stats| stats.running >= BUSY).await;
    let with = first_tokens(&cluster).await;
    let waiting = cluster
        .database
        .count("SELECT count(*) FROM jobs WHERE state = 'queued'")
        .await;
    report.seconds = began.elapsed().as_secs_f64();
    let ratio = with.as_secs_f64() / without.as_secs_f64();
    report.figure("first token without jobs, median", millis(without));
    report.figure("first token with jobs, median", millis(with));
    report.figure("ratio", format!("{ratio:.2}"));
    report.figure("jobs that waited at the end of it", format!("{waiting:?}"));
    report.counts.requests = count as u64;
    report.demand(accepted == count, || {
        format!("{accepted} of {count} jobs accepted")
    });
    report.demand(waiting.is_ok_and(|waiting| waiting > 0), || {
        "no job waited any more, so nothing was shown".to_owned()
    });
    report.demand(ratio <= MOST, || {
        format!(
            "the first token came after {} instead of {}",
            millis(with),
            millis(without)
        )
    });
    cluster.sim.set(|sim| (sim.ttft_ms, sim.pace_ms) = (0, 0));
    until("every job has ended", ENDED_WITHIN, async || {
        let open = "SELECT count(*) FROM jobs WHERE state <> 'succeeded'";
        match cluster.database.count(open).await? {
            0 => Ok(()),
            open => Err(format!("{open} have not succeeded")),
        }
    })
    .await;
    report.counts.completed = count as u64;
    cluster.assert_clean().await;
    report.finish(cluster)
}

/// The median time to the first token of a person's questions.
async fn first_tokens(cluster: &Cluster) -> Duration {
    let mut took = Vec::with_capacity(QUESTIONS);
    for number in 0..QUESTIONS {
        let question = chat(&format!("question {number}"), WORDS, true);
        let answer = cluster.openai("/v1/chat/completions", &question).send().await;
        took.push(answer.good().first_byte());
    }
    took.sort_unstable();
    took[QUESTIONS / 2]
}

/// Submits jobs; how many were accepted.
async fn flood(cluster: &Cluster, token: &str, count: usize) -> usize {
    let next = Arc::new(AtomicUsize::new(0));
    let call = cluster.call(Method::POST, "/v1/jobs").token(token);
    let submitters = (0..SUBMITTERS).map(|_| tokio::spawn(submit(call.again(), Arc::clone(&next), count)));
    let mut accepted = 0;
    for submitter in submitters.collect::<Vec<_>>() {
        accepted += submitter.await.expect("it ends");
    }
    accepted
}

async fn submit(call: Call, next: Arc<AtomicUsize>, count: usize) -> usize {
    let mut accepted = 0;
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= count {
            return accepted;
        }
        let body = json!({
            "feature": "openai_chat", "model": "mistral", "input": format!("job {number}"), "max_output_tokens": WORDS,
        });
        let answer = call.again().json(&body).send().await;
        accepted += usize::from(answer.status == StatusCode::ACCEPTED);
    }
}
