//! A refusal reaches a client that is still sending 2.5 MB, and costs next to nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use tokio::time::Instant;

use super::Size;
use super::pressure::{Fate, Range, Source, quantile};
use super::report::{Report, millis};
use crate::bench::cpu::{Process, Usage};
use crate::harness::Cluster;
use crate::harness::cluster::{chat, completion};
use crate::sim::Settings;

/// Clients that send much.
const CLIENTS: usize = 60;
/// How much each of them sends, in bytes.
const LARGE: usize = 2_500_000;
/// Refusals whose cost is measured.
const SMALL: usize = 4000;
/// Clients that ask for those, one request after the other.
const ASKERS: usize = 4;
/// What a refusal may cost the broker.
const MOST_CPU: Duration = Duration::from_micros(100);

const PROMPT: &str = "/v1/prompts/generate_commit_message";
const COMPLETION: &str = "/v2/code/completions";
const CHAT: &str = "/v1/chat/completions";

pub(super) async fn run(size: Size) -> Report {
    let mut report = Report::new("large-refusal", size);
    let sim = Settings {
        tokens: 1,
        // Longer than the drill.
        ttft_ms: 120_000,
        ..Settings::default()
    };
    let mut cluster = Cluster::builder()
        .sim(sim)
        .slots(2)
        .configure(|config| {
            let hurry = json!({
                "model": "mistral", "acknowledge": "drill", "lane": "interactive", "first_byte_within": "2s",
                "end_within": "60s",
            });
            config["features"]["generate_commit_message"] = hurry.clone();
            config["features"]["code_completion"] = hurry;
            // On the same server, so what waits for the one model stands before the other's requests too.
            config["features"]["code_completion"]["model"] = "codegemma".into();
            config["features"]["openai_chat"] = json!({"first_byte_within": "2s"});
        })
        .start()
        .await;
    cluster.slots_known().await;
    let began = Instant::now();
    let range = Range::new(vec![cluster.address_of(0)], Duration::from_secs(60));
    // Somebody patient stands before everybody else.
    let filling: Vec<_> = (0..4)
        .map(|number| {
            let inputs = json!({"inputs": {"prompt": "how do I undo a commit?"}});
            let user = format!("patient-{number}");
            tokio::spawn(
                cluster
                    .rails("/v1/prompts/glab_ask_git_command", &user, &inputs)
                    .try_open(),
            )
        })
        .collect();
    cluster.queued(4).await;
    large(&cluster, &range, &mut report).await;
    let count = if size.short { SMALL / 4 } else { SMALL };
    cost(&mut cluster, &range, count, &mut report).await;
    filling.iter().for_each(tokio::task::JoinHandle::abort);
    drop(filling);
    report.seconds = began.elapsed().as_secs_f64();
    cluster.assert_clean().await;
    report.finish(cluster)
}

/// Sixty clients that all send much at once.
async fn large(cluster: &Cluster, range: &Range, report: &mut Report) {
    let much = "x".repeat(LARGE);
    let bodies = [
        (PROMPT, json!({"inputs": {"diff": much}})),
        (COMPLETION, completion(&much, false)),
        (CHAT, chat(&much, 5, false)),
    ];
    let bodies = bodies.map(|(path, body)| (path, Arc::<str>::from(body.to_string())));
    let sources: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let (path, body) = &bodies[number % bodies.len()];
            source(cluster, path, &format!("large-{number}"), Arc::clone(body))
        })
        .collect();
    let due = Instant::now();
    let asked = sources
        .iter()
        .map(|source| range.shoot(source, &source.name, 0, due));
    let shots = join_all(asked).await;
    let mut fates: BTreeMap<String, u64> = BTreeMap::new();
    for shot in &shots {
        *fates.entry(format!("{:?}", shot.fate)).or_default() += 1;
    }
    let refused = shots
        .iter()
        .filter(|shot| matches!(&shot.fate, Fate::Refused(reason, _) if reason == "lane_full"))
        .count();
    let slowest = shots.iter().map(|shot| shot.whole).max().unwrap_or_default();
    report.counts.requests += CLIENTS as u64;
    report.counts.failed += refused as u64;
    report.figure(
        "clients of 2.5 MB that read their refusal",
        format!("{refused} of {CLIENTS}"),
    );
    report.figure("the slowest of them after", millis(slowest));
    report.demand(refused == CLIENTS, || {
        format!("not all were refused as they should: {fates:?}")
    });
}

/// What a refusal costs the broker, and how long it takes.
async fn cost(cluster: &mut Cluster, range: &Arc<Range>, count: usize, report: &mut Report) {
    let body: Arc<str> = json!({"inputs": {"diff": "+1"}}).to_string().into();
    let pid = cluster.broker.pid().as_raw();
    let broker = [Process {
        name: "broker".to_owned(),
        pid: u32::try_from(pid).expect("a process number"),
    }];
    let askers: Vec<_> = (0..ASKERS)
        .map(|number| source(cluster, PROMPT, &format!("small-{number}"), Arc::clone(&body)))
        .collect();
    // The connections are opened and the tokens known.
    for asker in &askers {
        range.shoot(asker, &asker.name, 0, Instant::now()).await;
    }
    let before = Usage::of_all(&broker).expect("it runs");
    let asked = askers.into_iter().map(|asker| {
        let range = Arc::clone(range);
        tokio::spawn(async move {
            let mut shots = Vec::new();
            for _ in 0..count / ASKERS {
                shots.push(range.shoot(&asker, &asker.name, 0, Instant::now()).await);
            }
            shots
        })
    });
    let mut shots = Vec::new();
    for some in join_all(asked).await {
        shots.extend(some.expect("a client does not fail"));
    }
    let used = Usage::between(before, Usage::of_all(&broker).expect("it runs"));
    let each = used[0].cpu / u32::try_from(shots.len()).expect("a few thousand");
    let refused = |shot: &&super::pressure::Shot| matches!(&shot.fate, Fate::Refused(reason, Some(_)) if reason == "lane_full");
    let other = shots.len() - shots.iter().filter(refused).count();
    let mut took: Vec<_> = shots.iter().map(|shot| shot.whole).collect();
    report.counts.requests += shots.len() as u64;
    report.counts.failed += (shots.len() - other) as u64;
    report.figure("broker's CPU for one refusal", format!("{} µs", each.as_micros()));
    let p99 = quantile(&mut took, 0.99);
    report.figure("refusals, p99", format!("{:.2} ms", p99.as_secs_f64() * 1000.0));
    report.demand(other == 0, || {
        format!("{other} were not refused with a time to come again")
    });
    // Unoptimised programs cost several times as much.
    report.demand(cfg!(debug_assertions) || each < MOST_CPU, || {
        format!("a refusal costs the broker {} µs", each.as_micros())
    });
}

fn source(cluster: &Cluster, path: &'static str, name: &str, body: Arc<str>) -> Source {
    let headers = match path {
        CHAT => format!("authorization: Bearer {}\r\n", cluster.client_token),
        _ => cluster
            .rails_headers(name)
            .into_iter()
            .map(|(name, value)| format!("{name}: {value}\r\n"))
            .collect(),
    };
    Source {
        name: name.to_owned(),
        path,
        headers,
        body,
        rate: 1.0,
    }
}
