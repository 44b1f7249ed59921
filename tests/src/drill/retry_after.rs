//! After a burst, `Retry-After` is true: a retry at the stated time is admitted, one at 70 % of it is refused.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use super::Size;
use super::pressure::{Fate, Range, Source};
use super::report::Report;
use crate::harness::Cluster;
use crate::sim::Settings;

/// Slots of the worker; one of them is kept for keystroke.
const SLOTS: usize = 5;
/// How long the model server holds a slot, in milliseconds.
const SLOT_MS: u64 = 400;
/// How long a caller's one request takes where its own limit is drilled, in milliseconds.
const LONG_MS: u64 = 5500;
/// Requests that a person may have under way.
const LIMIT: usize = 8;
/// Waits to be stated after the burst, in seconds.
const WAITS: std::ops::Range<u64> = 4..9;
const FILLS: &str = "/v1/prompts/generate_commit_message";
const ASKS: &str = "/v1/prompts/glab_ask_git_command";

pub(super) async fn run(size: Size) -> Report {
    let mut report = Report::new("retry-after", size);
    let began = Instant::now();
    let cluster = cluster(SLOT_MS).await;
    let drill = Drill::new(&cluster);
    let teachers: Vec<_> = (0..SLOTS * 4)
        .map(|number| drill.person(FILLS, &format!("teacher-{number}")))
        .collect();
    drill.learn(&teachers).await;
    let bursts = if size.short {
        1
    } else {
        2 * (WAITS.end - WAITS.start)
    };
    for number in 0..bursts {
        let wait = WAITS.start + (size.seed + number) % (WAITS.end - WAITS.start);
        drill.lane_full(&mut report, number, wait).await;
    }
    cluster.assert_clean().await;
    let mut report = report.finish(cluster);
    if !size.short {
        let cluster = self::cluster(LONG_MS).await;
        let drill = Drill::new(&cluster);
        // Nobody else is about, with whom to share.
        let person = drill.person(FILLS, "eager");
        drill.learn([&person; LIMIT]).await;
        for _ in 0..3 {
            drill.caller_limit(&mut report, &person).await;
        }
        cluster.assert_clean().await;
        report = report.finish(cluster);
    }
    report.seconds = began.elapsed().as_secs_f64();
    report
}

/// One worker before a model server that holds a slot for so many milliseconds.
async fn cluster(slot_ms: u64) -> Cluster {
    let sim = Settings {
        tokens: 1,
        ttft_ms: slot_ms,
        ..Settings::default()
    };
    let cluster = Cluster::builder()
        .sim(sim)
        .slots(SLOTS)
        .configure(|config| {
            let mistral = |first: &str| {
                json!({"model": "mistral", "acknowledge": "drill", "first_byte_within": first, "end_within": "60s"})
            };
            config["features"]["generate_commit_message"] = mistral("50s");
            config["features"]["git_suggestions"] = mistral("2s");
        })
        .start()
        .await;
    cluster.slots_known().await;
    cluster
}

struct Drill<'a> {
    cluster: &'a Cluster,
    range: Arc<Range>,
}

impl<'a> Drill<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        Self {
            cluster,
            range: Range::new(vec![cluster.address_of(0)], Duration::from_secs(60)),
        }
    }

    fn person(&self, path: &'static str, name: &str) -> Source {
        let inputs: Value = match path {
            FILLS => json!({"inputs": {"diff": "+1"}}),
            _ => json!({"inputs": {"prompt": "how do I undo a commit?"}}),
        };
        let headers = self.cluster.rails_headers(name).into_iter();
        Source {
            name: name.to_owned(),
            path,
            headers: headers
                .map(|(name, value)| format!("{name}: {value}\r\n"))
                .collect(),
            body: inputs.to_string().into(),
            rate: 1.0,
        }
    }

    async fn ask(&self, source: &Source) -> Fate {
        self.range
            .shoot(source, &source.name, 0, Instant::now())
            .await
            .fate
    }

    /// Lets the broker learn how long a slot is held: a request of each.
    async fn learn(&self, people: impl IntoIterator<Item = &Source>) {
        let asked = people.into_iter().map(|person| self.ask(person));
        for fate in futures_util::future::join_all(asked).await {
            assert_eq!(fate, Fate::Answered, "nothing else happens yet");
        }
    }

    /// A burst of a patient feature, and someone in a hurry behind it.
    async fn lane_full(&self, report: &mut Report, burst: u64, wait: u64) {
        let serving = SLOTS - 1;
        // The one in a hurry has a bound of nearly two seconds beside the wait that is to be stated.
        let count = (wait * 1000 + 1300) as usize * serving / SLOT_MS as usize;
        let people = (0..count).map(|number| self.person(FILLS, &format!("burst-{burst}-{number}")));
        let people: Vec<_> = people.collect();
        let filling = people.iter().map(|person| self.ask(person));
        let trying = async {
            self.cluster.queued(count as u64).await;
            let impatient = self.person(ASKS, &format!("hurry-{burst}"));
            self.retry(report, "lane_full", &impatient).await;
        };
        let (fates, ()) = tokio::join!(futures_util::future::join_all(filling), trying);
        let unanswered = fates.iter().filter(|fate| **fate != Fate::Answered).count();
        report.counts.requests += count as u64;
        report.counts.completed += (count - unanswered) as u64;
        report.demand(unanswered == 0, || {
            format!("{unanswered} of the burst were not answered")
        });
    }

    /// A person with as many requests under way as it may have, and one more.
    async fn caller_limit(&self, report: &mut Report, person: &Source) {
        // Four are served at once, the others after them.
        let asked = (0..LIMIT).map(|_| self.ask(person));
        let trying = async {
            self.cluster.queued(LIMIT as u64).await;
            self.retry(report, "caller_limit", person).await;
        };
        let (fates, ()) = tokio::join!(futures_util::future::join_all(asked), trying);
        report.demand(fates.iter().all(|fate| *fate == Fate::Answered), || {
            format!("not all of one person's requests were answered: {fates:?}")
        });
    }

    async fn retry(&self, report: &mut Report, reason: &str, source: &Source) {
        let asked = Instant::now();
        let stated = match self.ask(source).await {
            Fate::Refused(why, Some(after)) if why == reason => after,
            other => {
                report.demand(false, || format!("no {reason} with a time, but {other:?}"));
                return;
            }
        };
        report.figure(&format!("{reason}: stated"), format!("{stated} s"));
        report.demand(stated >= 4, || {
            format!("{reason}: {stated} s is too little to drill")
        });
        let stated = Duration::from_secs(stated);
        sleep_until(asked + stated.mul_f64(0.7)).await;
        let early = self.ask(source).await;
        report.demand(matches!(&early, Fate::Refused(why, _) if why == reason), || {
            format!("{reason}: a retry after 70 % of {stated:?} got {early:?}")
        });
        sleep_until(asked + stated).await;
        let late = self.ask(source).await;
        report.demand(late == Fate::Answered, || {
            format!("{reason}: a retry after {stated:?} got {late:?}")
        });
    }
}
