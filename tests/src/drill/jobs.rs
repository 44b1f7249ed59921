//! Jobs are submitted, again and again until they are accepted, while everything that they depend on fails in turn:
//! each accepted one ends well, once.
//!
//! A submitter keeps one idempotency key for a job and tries at either broker until it hears 202, so the same
//! submission comes twice whenever an answer is lost. In the end each key has to have one job, each job one end, and
//! each end the right text.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use serde_json::json;
use tokio::time::sleep;

use super::Size;
use super::random::Random;
use super::report::{Report, millis};
use super::store_restored::copy_all;
use crate::harness::cluster::{answer_to, freeze};
use crate::harness::{Call, Cluster, PATIENCE, until};
use crate::sim::Settings;

/// Jobs of the short and of the full form, when no time is said.
const SHORT: u64 = 400;
const FULL: u64 = 100_000;
/// Submissions under way at once.
const SUBMITTERS: u64 = 24;
const WORDS: usize = 4;
/// Longest pause of a submitter between two jobs of the short form, which is to last as long as its faults.
const APART: Duration = Duration::from_secs(1);
/// Pause of a submitter that was not heard.
const PAUSE: Duration = Duration::from_millis(50);
/// How long one submission may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// How long what was accepted may take to end once nothing fails any more.
const ENDED_WITHIN: Duration = Duration::from_secs(240);
/// Results that are read in the full form; in the short one all are.
const READ: usize = 2000;

/// What is done to the programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    KillBroker,
    FreezeBroker,
    KillWorker,
    RestartNats,
    DeleteStream,
    RestoreStore,
    StopPostgres,
    FreezePostgres,
}

const FAULTS: [(Fault, u32); 8] = [
    (Fault::KillBroker, 3),
    (Fault::FreezeBroker, 1),
    (Fault::KillWorker, 3),
    (Fault::RestartNats, 2),
    (Fault::DeleteStream, 1),
    (Fault::RestoreStore, 1),
    (Fault::StopPostgres, 2),
    (Fault::FreezePostgres, 1),
];

/// What submitters share.
struct Work {
    calls: Vec<Call>,
    next: AtomicU64,
    count: u64,
    is_over: AtomicBool,
    accepted: Mutex<HashMap<String, String>>,
    tries: AtomicU64,
    refusals: Mutex<BTreeMap<String, u64>>,
}

pub(super) async fn run(size: Size) -> Report {
    let mut cluster = Cluster::builder()
        .own_postgres()
        .brokers(2)
        .workers(2)
        .slots(16)
        .lease("1s")
        .sim(Settings {
            tokens: WORDS,
            pace_ms: 5,
            ..Settings::default()
        })
        .broker_env("DUO_JOB_LEASE", "4s")
        .broker_env("DUO_ABANDON_AFTER", "20s")
        .start()
        .await;
    let mut report = Report::new("jobs", size);
    // A copy of the store that is whole: the server is down for it.
    cluster.nats.kill().await;
    copy_all(cluster.nats.store(), &copy_of_store(&cluster));
    cluster.nats.restart().await;
    cluster.ready(PATIENCE).await;
    let count = if size.short { SHORT } else { FULL };
    let work = Arc::new(Work {
        calls: (0..cluster.brokers())
            .map(|number| {
                cluster
                    .call_at(number, Method::POST, "/v1/jobs")
                    .token(&cluster.client_token)
            })
            .collect(),
        next: AtomicU64::new(0),
        count: size.seconds.map_or(count, |seconds| seconds * 100),
        is_over: AtomicBool::new(false),
        accepted: Mutex::default(),
        tries: AtomicU64::new(0),
        refusals: Mutex::default(),
    });
    let began = Instant::now();
    let submitters: Vec<_> = (0..SUBMITTERS)
        .map(|number| tokio::spawn(submit(Arc::clone(&work), size, number)))
        .collect();
    let mut random = Random::new(size.seed, 1);
    let least = if size.short { 6 } else { 20 };
    let mut faults = 0;
    while faults < size.faults.unwrap_or(least) || !work.is_over.load(Ordering::Acquire) {
        sleep(random.span(Duration::from_millis(300)..Duration::from_secs(2))).await;
        // The short form has each of the kinds that a key and a fence are for.
        let fault = match (size.short, faults) {
            (true, 0) => Fault::KillBroker,
            (true, 1) => Fault::StopPostgres,
            (true, 2) => Fault::KillWorker,
            (true, 3) => Fault::FreezeBroker,
            (true, 4) => Fault::RestartNats,
            (true, 5) => Fault::RestoreStore,
            (true, _) => break,
            (false, _) => random.weighted(&FAULTS),
        };
        strike(&mut cluster, fault, &mut random).await;
        *report.faults.entry(format!("{fault:?}")).or_default() += 1;
        faults += 1;
    }
    for submitter in submitters {
        submitter.await.expect("it ends");
    }
    report.seconds = began.elapsed().as_secs_f64();
    let drained = Instant::now();
    let accepted = work
        .accepted
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    check(&mut report, &cluster, &accepted, size).await;
    report.figure("tries", work.tries.load(Ordering::Relaxed).to_string());
    report.figure(
        "from the last submission to the last end",
        millis(drained.elapsed()),
    );
    for (why, count) in work
        .refusals
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .iter()
    {
        report.figure(&format!("not accepted: {why}"), count.to_string());
    }
    report.finish(cluster)
}

/// Submits jobs until there are enough; each until it is accepted.
async fn submit(work: Arc<Work>, size: Size, number: u64) {
    let mut random = Random::new(size.seed, 100 + number);
    loop {
        let job = work.next.fetch_add(1, Ordering::Relaxed);
        if job >= work.count {
            work.is_over.store(true, Ordering::Release);
            return;
        }
        if size.short {
            sleep(random.span(Duration::ZERO..APART)).await;
        }
        let key = format!("job-{job}");
        let body = json!({
            "feature": "openai_chat", "model": "mistral", "input": key, "max_output_tokens": WORDS,
        });
        loop {
            work.tries.fetch_add(1, Ordering::Relaxed);
            let call = work.calls[random.below(work.calls.len())].again();
            let call = call.header("idempotency-key", &key).json(&body);
            let answer = match tokio::time::timeout(ANSWER_WITHIN, call.try_open()).await {
                Ok(Ok(opened)) => opened.rest().await,
                Ok(Err(_)) => {
                    work.refused("no connection");
                    sleep(PAUSE).await;
                    continue;
                }
                Err(_) => {
                    work.refused("no answer in time");
                    continue;
                }
            };
            if answer.status == StatusCode::ACCEPTED && answer.broken.is_none() {
                let id = answer.json()["id"].as_str().unwrap_or_default().to_owned();
                let mut accepted = work.accepted.lock().unwrap_or_else(PoisonError::into_inner);
                accepted.insert(key, id);
                break;
            }
            work.refused(&answer.status.as_u16().to_string());
            sleep(PAUSE).await;
        }
    }
}

impl Work {
    fn refused(&self, why: &str) {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        *refusals.entry(why.to_owned()).or_default() += 1;
    }
}

fn copy_of_store(cluster: &Cluster) -> PathBuf {
    cluster.folder().join("copy")
}

async fn strike(cluster: &mut Cluster, fault: Fault, random: &mut Random) {
    let span = random.span(Duration::from_millis(200)..Duration::from_secs(2));
    let number = random.below(2);
    match fault {
        Fault::KillBroker => {
            cluster.broker_at(number).kill().await;
            sleep(span).await;
            cluster.broker_at(number).again();
            cluster.broker_ready(number, PATIENCE).await;
        }
        Fault::FreezeBroker => {
            // Longer than its word holds.
            freeze(cluster.broker_at(number), true);
            sleep(span + Duration::from_secs(6)).await;
            freeze(cluster.broker_at(number), false);
        }
        Fault::KillWorker => {
            cluster.kill_worker(number).await;
            sleep(span).await;
            cluster.worker(number).again();
            cluster.worker_ready(number, PATIENCE).await;
        }
        Fault::RestartNats => {
            cluster.nats.kill().await;
            sleep(span).await;
            cluster.nats.restart().await;
        }
        Fault::DeleteStream => {
            let context = async_nats::jetstream::new(cluster.nats.connect().await);
            // Somebody may have been faster.
            let _ = context.delete_stream("DUO_LIVE").await;
        }
        Fault::RestoreStore => {
            cluster.nats.kill().await;
            let (store, copy) = (cluster.nats.store().to_owned(), copy_of_store(cluster));
            fs::remove_dir_all(&store).expect("the store can be removed");
            copy_all(&copy, &store);
            cluster.nats.restart().await;
        }
        Fault::StopPostgres => {
            cluster.postgres.as_mut().expect("its own").stop();
            sleep(span).await;
            cluster.postgres.as_mut().expect("its own").start_again().await;
        }
        Fault::FreezePostgres => {
            cluster.postgres.as_ref().expect("its own").freeze(true);
            sleep(span).await;
            cluster.postgres.as_ref().expect("its own").freeze(false);
        }
    }
}

async fn check(report: &mut Report, cluster: &Cluster, accepted: &HashMap<String, String>, size: Size) {
    let count = async |sql: &'static str| cluster.database.count(sql).await;
    until("every job has ended", ENDED_WITHIN, async || {
        match count("SELECT count(*) FROM jobs WHERE ended_at IS NULL").await? {
            0 => Ok(()),
            open => Err(format!("{open} are open")),
        }
    })
    .await;
    let number = async |sql: &'static str| {
        let counted = count(sql).await.expect("the database is there");
        u64::try_from(counted).unwrap_or(0)
    };
    let jobs = number("SELECT count(*) FROM jobs").await;
    let well = number("SELECT count(*) FROM jobs WHERE state = 'succeeded'").await;
    let results = number("SELECT count(*) FROM job_results").await;
    let twice = number(
        "SELECT count(*) FROM (SELECT job_id FROM job_results GROUP BY job_id HAVING count(*) > 1) AS t",
    )
    .await;
    let again = number("SELECT count(*) FROM jobs WHERE run > 1").await;
    let known = accepted.len() as u64;
    report.counts.requests = known;
    report.counts.completed = well;
    report.counts.failed = jobs - well;
    report.counts.lost = known.saturating_sub(jobs);
    report.counts.duplicated = jobs.saturating_sub(known) + twice;
    report.figure("jobs run more than once", again.to_string());
    let ids: std::collections::HashSet<_> = accepted.values().collect();
    report.demand(ids.len() == accepted.len(), || "two keys have one job".to_owned());
    report.demand(jobs == known, || {
        format!("{known} keys were accepted, and there are {jobs} jobs")
    });
    report.demand(well == jobs, || {
        format!("{} of {jobs} jobs did not succeed", jobs - well)
    });
    report.demand(results == well && twice == 0, || {
        format!("{results} results of {well} jobs, {twice} twice")
    });
    let step = if size.short { 1 } else { accepted.len() / READ + 1 };
    for (key, id) in accepted.iter().step_by(step) {
        let call = cluster
            .call(Method::GET, &format!("/v1/jobs/{id}"))
            .token(&cluster.client_token);
        let job = call.send().await.json();
        if job["result"]["text"] != answer_to(key, WORDS) {
            report.counts.corrupted += 1;
            report.breaches.push(format!("{key}: {job}"));
        }
    }
    cluster.assert_clean().await;
}
