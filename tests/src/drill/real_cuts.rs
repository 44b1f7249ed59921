//! Workers are killed in mid-stream before a real model server at temperature 0: each answer is token for token what
//! the server says to the same question when nobody cuts it.
//!
//! Code and chat, with characters of several bytes in the prompts, with and without stop strings (which end some
//! answers behind the cut), usage and token ids. Two workers, of which the busy one is killed; it comes back while
//! the other goes on.

mod question;

use std::time::Duration;

use super::Size;
use super::random::Random;
use super::report::Report;
use crate::harness::cluster::sum;
use crate::harness::model_server::ModelServer;
use crate::harness::{Answer, Cluster, Opened, PATIENCE};
use question::Question;

const WORKERS: usize = 2;
/// Cuts of the short form, and of the full one.
const SHORT: u64 = 6;
const FULL: u64 = 100;
/// Questions whose answer is over before the worker is dead are asked again, so often in all.
const MISSES_PER_CUT: u64 = 3;
/// The lease of the cluster and what a stall may take beside it.
const MOST_STALL: Duration = Duration::from_secs(2);

pub(super) async fn run(size: Size) -> Report {
    let server = ModelServer::start(size.model_server, WORKERS).await;
    let mut cluster = server.cluster().slots(WORKERS).workers(WORKERS).start().await;
    let mut report = Report::new("real-cuts", size);
    let cuts = size.cuts.unwrap_or(if size.short { SHORT } else { FULL });
    let mut tally = Tally::default();
    let began = std::time::Instant::now();
    for number in 0..cuts * MISSES_PER_CUT {
        if tally.cuts == cuts {
            break;
        }
        let mut random = Random::new(size.seed, number);
        let question = Question::draw(server.kind, &mut random, &server).await;
        cut(&server, &mut cluster, question, &mut random, &mut tally).await;
    }
    cluster.assert_clean().await;
    report.seconds = began.elapsed().as_secs_f64();
    report.counts.requests = tally.questions;
    report.counts.completed = tally.questions - tally.wrong.len() as u64;
    report.counts.corrupted = tally.wrong.len() as u64;
    report.counts.longest_gap_ms = tally.stall.as_millis() as u64;
    report.figure("model server", server.kind.name());
    report.figure("exact", format!("{} of {} cuts", tally.exact, tally.cuts));
    report.figure("of these chats", tally.chats.to_string());
    report.figure("over before the cut", (tally.questions - tally.cuts).to_string());
    report.demand(tally.cuts == cuts, || {
        format!("only {} of {cuts} answers were cut", tally.cuts)
    });
    report.demand(tally.stall <= MOST_STALL, || {
        format!("a stream stood still for {:?}", tally.stall)
    });
    report.breaches.extend(tally.wrong);
    report.finish(cluster)
}

/// What has been seen.
#[derive(Debug, Default)]
struct Tally {
    questions: u64,
    cuts: u64,
    chats: u64,
    exact: u64,
    wrong: Vec<String>,
    stall: Duration,
}

async fn cut(
    server: &ModelServer,
    cluster: &mut Cluster,
    question: Question,
    random: &mut Random,
    tally: &mut Tally,
) {
    let continued = claims(cluster).await;
    let events = question.cut_after(random);
    let mut stream = cluster.openai(question.path, &question.body).open().await;
    // Who works on it is asked at once, so that the cut itself takes no time.
    assert!(stream.next().await, "{}: no answer", question.name());
    let victim = busy(cluster).await;
    let mut seen = events_in(&stream);
    while seen < events && stream.next().await {
        seen += events_in(&stream);
    }
    if let Some(victim) = victim {
        cluster.kill_worker(victim).await;
    }
    let answer = stream.rest().await;
    if let Some(victim) = victim {
        cluster.worker(victim).again();
        cluster.worker_ready(victim, PATIENCE).await;
    }
    tally.questions += 1;
    let was_cut = claims(cluster).await > continued;
    tally.cuts += u64::from(was_cut);
    if !was_cut {
        return;
    }
    tally.chats += u64::from(question.is_chat());
    tally.stall = tally.stall.max(longest_gap(&answer));
    match question.compare(&answer) {
        Ok(()) => tally.exact += 1,
        Err(why) => tally.wrong.push(format!(
            "{} at {}, cut after {events} events: {why}",
            question.name(),
            server.kind.name()
        )),
    }
}

/// Answers that went on after a cut.
async fn claims(cluster: &Cluster) -> f64 {
    let metrics = cluster.metrics().await.expect("metrics");
    let lines = metrics
        .lines()
        .filter(|line| line.contains("answer=\"continue\""));
    sum(&lines.collect::<Vec<_>>().join("\n"), "duo_claims_total")
}

/// The worker that holds a slot now.
async fn busy(cluster: &Cluster) -> Option<usize> {
    for number in 0..WORKERS {
        let metrics = cluster.worker_metrics(number).await.ok()?;
        if sum(&metrics, "duo_worker_slots_in_use") > 0.0 {
            return Some(number);
        }
    }
    None
}

/// Events that begin in the piece that came last.
fn events_in(stream: &Opened) -> usize {
    let last = stream.so_far().pieces.last();
    last.map_or(0, |(_, piece)| {
        piece.windows(6).filter(|six| six == b"data: ").count()
    })
}

fn longest_gap(answer: &Answer) -> Duration {
    let pairs = answer.pieces.iter().zip(answer.pieces.iter().skip(1));
    pairs
        .map(|((one, _), (next, _))| *next - *one)
        .max()
        .unwrap_or_default()
}
