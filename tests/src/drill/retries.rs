//! Every way a model server fails, for every form of request: the right answer in the end or an honest failure, and
//! never more calls than declared.

use std::time::Duration;

use duo_contract::failure::calls_of_request;
use http::Method;
use tokio::time::Instant;

use super::Size;
use super::asking::{Form, worker_metric};
use super::random::Random;
use super::report::{Report, millis};
use crate::harness::{Answer, Cluster, PATIENCE, until};
use crate::sim::{Fault, Settings};

/// Attempts of a request, as the broker has them by default.
const ATTEMPTS: u32 = 3;
/// Words of an answer, and of its part before a fault in mid-stream.
const WORDS: usize = 12;
const BEFORE: usize = 4;
/// Longest until a request that meets one fault is answered, and until one that meets nothing else has failed.
const ANSWERED: Duration = Duration::from_secs(10);
const FAILED: Duration = Duration::from_secs(25);

/// What the model server does to requests.
#[derive(Debug, Clone, Copy)]
struct Trouble {
    name: &'static str,
    fault: Fault,
    status: u16,
    retry_after: Option<u64>,
    /// Words before it.
    after: Option<usize>,
    /// Most calls when every one of them meets it.
    most_calls: u32,
    /// Is it over with the first call?
    heals: bool,
}

const fn refusal(name: &'static str, status: u16, most_calls: u32) -> Trouble {
    Trouble {
        name,
        fault: Fault::Fail,
        status,
        retry_after: None,
        after: None,
        most_calls,
        heals: most_calls > 2,
    }
}

fn troubles() -> Vec<Trouble> {
    let most = calls_of_request(ATTEMPTS);
    let fault = |name, fault, after| Trouble {
        fault,
        after,
        ..refusal(name, 500, most)
    };
    let told = Trouble {
        retry_after: Some(1),
        ..refusal("429 with Retry-After", 429, most)
    };
    vec![
        refusal("400", 400, 1),
        refusal("413", 413, 1),
        refusal("422", 422, 1),
        // Once by each of the two workers.
        refusal("401", 401, 2),
        refusal("403", 403, 2),
        refusal("404", 404, 2),
        refusal("500", 500, most),
        refusal("503", 503, most),
        refusal("429", 429, most),
        told,
        fault("reset before headers", Fault::Reset, None),
        fault("reset after headers", Fault::Cut, Some(0)),
        fault("cut", Fault::Cut, Some(BEFORE)),
        fault("stall before the first word", Fault::Stall, Some(0)),
        fault("stall", Fault::Stall, Some(BEFORE)),
        fault("abort", Fault::Abort, Some(BEFORE)),
        fault("error event", Fault::ErrorMid, Some(BEFORE)),
        fault("malformed", Fault::Malformed, Some(BEFORE)),
    ]
}

pub(super) async fn run(size: Size) -> Report {
    let mut report = Report::new("retries", size);
    let began = Instant::now();
    let sim = Settings {
        tokens: WORDS,
        ..Settings::default()
    };
    let cluster = Cluster::builder()
        .sim(sim)
        .workers(2)
        .worker_env("DUO_MODEL_FIRST_TIMEOUT", "500ms")
        .worker_env("DUO_MODEL_IDLE_TIMEOUT", "500ms")
        .start()
        .await;
    let mut random = Random::new(size.seed, 0);
    let (mut most_calls, mut slowest) = (0, Duration::ZERO);
    for trouble in troubles() {
        let forms: Vec<_> = [(true, true), (true, false), (false, true), (false, false)]
            .map(|(chat, stream)| Form {
                chat,
                stream,
                words: WORDS,
            })
            .into_iter()
            // Nobody can tell a long silence of an answer in one piece from work: its deadline ends it.
            .filter(|form| form.stream || trouble.fault != Fault::Stall)
            .collect();
        let chosen = random.below(forms.len());
        let some = |(number, _): &(usize, Form)| !size.short || *number == chosen;
        for (_, form) in forms.into_iter().enumerate().filter(some) {
            for every in [false, true] {
                if !every && !trouble.heals {
                    continue;
                }
                let at = format!(
                    "{}, {}, {form:?}",
                    trouble.name,
                    if every { "every call" } else { "one call" }
                );
                all_is_well(&cluster).await;
                let met = meet(&cluster, trouble, form, every, &at).await;
                judge(&mut report, trouble, form, every, &met, &at);
                report.counts.requests += 1;
                most_calls = most_calls.max(met.calls);
                slowest = slowest.max(met.took);
            }
        }
    }
    cluster.sim.set(calm);
    report.seconds = began.elapsed().as_secs_f64();
    report.figure("most calls for one request", most_calls.to_string());
    report.figure("slowest", millis(slowest));
    all_is_well(&cluster).await;
    cluster.assert_clean().await;
    report.finish(cluster)
}

struct Met {
    question: String,
    answer: Answer,
    calls: u32,
    took: Duration,
}

fn calm(sim: &mut Settings) {
    *sim = Settings {
        tokens: sim.tokens,
        ..Settings::default()
    };
}

/// One request to a server in this trouble.
async fn meet(cluster: &Cluster, trouble: Trouble, form: Form, every: bool, at: &str) -> Met {
    cluster.sim.set(|sim| {
        calm(sim);
        sim.fail_status = trouble.status;
        sim.retry_after = trouble.retry_after;
        sim.fault_after = trouble.after;
        if !every {
            return sim.next_faults.push(trouble.fault);
        }
        let rate = match trouble.fault {
            Fault::Fail => &mut sim.fail_rate,
            Fault::Reset => &mut sim.reset_rate,
            Fault::Cut => &mut sim.cut_rate,
            Fault::Stall => &mut sim.stall_rate,
            Fault::Abort => &mut sim.abort_rate,
            Fault::ErrorMid => &mut sim.error_mid_rate,
            Fault::Malformed => &mut sim.malformed_rate,
        };
        *rate = 1.0;
    });
    let calls = || {
        let requests = cluster.sim.stats().requests;
        requests.chat + requests.completions
    };
    let (before, began) = (calls(), Instant::now());
    let question = format!("what about {at}?");
    let answer = cluster
        .call(Method::POST, form.path())
        .token(&cluster.client_token)
        .json(&form.body(&question))
        .send()
        .await;
    let took = began.elapsed();
    // Whatever is called behind the client's back would be called now.
    tokio::time::sleep(Duration::from_millis(300)).await;
    Met {
        question,
        answer,
        calls: u32::try_from(calls() - before).unwrap_or(u32::MAX),
        took,
    }
}

fn judge(report: &mut Report, trouble: Trouble, form: Form, every: bool, met: &Met, at: &str) {
    let right = form.is_right(&met.question, &met.answer);
    let most = if every { trouble.most_calls } else { 3 };
    report.demand(met.calls <= most, || {
        format!("{at}: {} calls, {most} at most", met.calls)
    });
    if right {
        report.counts.completed += 1;
    } else {
        report.counts.failed += 1;
    }
    if !every {
        report.demand(right, || format!("{at}: {}", met.answer));
        report.demand(met.took <= ANSWERED, || {
            format!("{at}: answered after {}", millis(met.took))
        });
        return;
    }
    let honest = right || met.answer.status != 200 || !met.answer.looks_whole();
    report.demand(honest, || format!("{at}: looks whole: {}", met.answer));
    report.demand(met.took <= FAILED, || {
        format!("{at}: failed after {}", millis(met.took))
    });
    if trouble.most_calls <= 2 {
        report.demand(met.answer.status.as_u16() >= 400, || {
            format!("{at}: {}", met.answer)
        });
    }
}

/// Waits until both workers' breakers let pass; a probing one needs a request to try.
async fn all_is_well(cluster: &Cluster) {
    let form = Form {
        chat: false,
        stream: false,
        words: 1,
    };
    cluster.sim.set(calm);
    until("both breakers pass", PATIENCE, async || {
        for number in 0..cluster.workers() {
            if worker_metric(cluster, number, "duo_worker_breaker_state").await != Some(0.0) {
                cluster.openai(form.path(), &form.body("well?")).send().await;
                return Err(format!("worker {number} is not"));
            }
        }
        Ok(())
    })
    .await;
}
