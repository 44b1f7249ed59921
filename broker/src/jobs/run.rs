//! One run of a job: sent as a live request is, read to its end, told.

use std::sync::Arc;
use std::time::Duration;

use duo_contract::failure::FailureKind;
use duo_contract::name::Lane;
use duo_process::clock;
use duo_process::retry::RetryPolicy;
use time::OffsetDateTime;
use tokio::sync::oneshot;
use tokio::time::MissedTickBehavior;
use uuid::Uuid;

use super::replies::Writer;
use super::settle::Word;
use super::state::JobState;
use super::work::{Answer, AnswerError, JobWork, Outcome};
use super::{Jobs, MOST_FAILURES, Stopped};
use crate::audit::OpenRecord;
use crate::caller::{Caller, Grant};
use crate::exchange::Reply;
use crate::request::{ExchangeError, ReplyEvent, RoutedRequest};
use crate::store::jobs::{Fence, HandBack, JobEnd, Taken};

/// What audit records of runs have in the place of a route; their `job_id` is the job.
const ROUTE: &str = "job";
/// Longest that a run may wait for its first byte; then it goes back into the line.
const FIRST_BYTE_WITHIN: Duration = Duration::from_secs(15 * 60);
/// Longest that a run may take, unless its feature allows more.
const END_WITHIN: Duration = Duration::from_secs(30 * 60);
/// How often it is looked whether a worker has the job.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Pauses after runs that the system failed or refused.
const RETRY_BASE: Duration = Duration::from_secs(1);
const RETRY_CAP: Duration = Duration::from_secs(60);

/// How a run ended.
enum Ended {
    Well {
        answer: Box<(Outcome, duo_contract::frame::Summary)>,
    },
    Badly {
        error: ExchangeError,
        /// Had it got as far as the queue?
        was_sent: bool,
    },
    /// The job is not this run's any more.
    Stopped,
}

/// Runs `job` until it has an end, or is stopped by whoever else ended it.
pub(super) async fn run(jobs: &Jobs, job: Taken, mut stopped: oneshot::Receiver<Stopped>) {
    let record = jobs.parts().audit.open(
        job.who.clone(),
        ROUTE,
        job.correlation_id.clone(),
        job.traceparent.as_deref(),
    );
    record.note_job(job.id);
    record.leave_no_letter();
    record.judge_answer();
    let mut run = Run {
        jobs,
        fence: Fence {
            id: job.id,
            owner: jobs.parts().broker.clone(),
            run: job.run,
        },
        started_at: None,
        replies: Writer::new(jobs, job.id, job.run),
    };
    let ended = {
        let mut work = std::pin::pin!(run.until_its_end(&job, &record));
        tokio::select! {
            biased;
            // Noted before the work is dropped, which takes back what it has sent.
            why = &mut stopped => {
                let (outcome, reason) = why.unwrap_or(Stopped::TakenOver).recorded();
                record.note_job_over(outcome, reason);
                Ended::Stopped
            }
            ended = &mut work => ended,
        }
    };
    run.tell(&job, &record, ended).await;
}

struct Run<'a> {
    jobs: &'a Jobs,
    fence: Fence,
    started_at: Option<OffsetDateTime>,
    replies: Writer,
}

impl Run<'_> {
    async fn until_its_end(&mut self, job: &Taken, record: &OpenRecord) -> Ended {
        let (reply, answer) = match self.send(job, record).await {
            Ok(sent) => sent,
            Err(error) => {
                return Ended::Badly {
                    error,
                    was_sent: false,
                };
            }
        };
        match self.read(reply, answer).await {
            Ok(answer) => Ended::Well {
                answer: Box::new(answer),
            },
            Err(error) => Ended::Badly {
                error,
                was_sent: true,
            },
        }
    }

    async fn send(&self, job: &Taken, record: &OpenRecord) -> Result<(Reply, Answer), ExchangeError> {
        let lost = || {
            let message = "what the job asks for is not there any more";
            ExchangeError::new(FailureKind::InvalidRequest, "input_gone", message)
        };
        let sealed = job.input.as_ref().ok_or_else(lost)?;
        let work = JobWork::open(job.input_of, sealed, self.jobs.keys()).map_err(|error| {
            tracing::error!(job = %job.id, error = &error as &dyn std::error::Error, "a job cannot be opened");
            let message = "what the job asks for cannot be opened by this broker; see its log";
            ExchangeError::new(FailureKind::InvalidRequest, "input_unreadable", message)
        })?;
        let exchange = &self.jobs.parts().exchange;
        if exchange.routing().load().revision() < job.config_revision {
            let message = "this broker does not have the configuration that the job was made under yet";
            return Err(ExchangeError::new(
                FailureKind::ModelUnavailable,
                "configuration_behind",
                message,
            ));
        }
        let routed = exchange.again(&job.feature, &job.model)?;
        let routed = bounded(routed, job);
        record.note_route(&routed.feature, routed.revision);
        let answer = work.answer();
        let reply = exchange
            .run_job(&caller(job), record, &routed, work.work())
            .await?;
        Ok((reply, answer))
    }

    async fn read(
        &mut self,
        mut reply: Reply,
        mut answer: Answer,
    ) -> Result<(Outcome, duo_contract::frame::Summary), ExchangeError> {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // What is over within moments is never said to have started.
        looks.reset();
        let mut is_told = false;
        loop {
            let event = tokio::select! {
                biased;
                _ = looks.tick(), if !is_told => {
                    if reply.is_started() {
                        is_told = true;
                        self.started().await;
                    }
                    continue;
                }
                event = reply.next() => event,
                () = self.replies.due() => {
                    self.replies.flush().await;
                    continue;
                }
            };
            match event {
                Some(Ok(ReplyEvent::Chunks(lines))) => {
                    let text = answer.push(&lines).map_err(unusable)?;
                    self.replies.push(&text);
                    if self.replies.is_full() {
                        self.replies.flush().await;
                    }
                }
                Some(Ok(ReplyEvent::Done { summary, body })) => {
                    let (rest, outcome) = answer.finish(&summary, &body).map_err(unusable)?;
                    self.replies.push(&rest);
                    self.replies.finish().await;
                    return Ok((outcome, summary));
                }
                Some(Err(error)) => return Err(error),
                None => return Err(unusable(AnswerError::Unreadable(crate::chunk::Unreadable))),
            }
            if self.started_at.is_none() && reply.is_started() {
                self.started_at = Some(clock::now());
            }
        }
    }

    /// A worker has it; its row says so soon.
    async fn started(&mut self) {
        self.started_at.get_or_insert_with(clock::now);
        self.jobs.say(Word::Started(self.fence.clone())).await;
    }

    async fn tell(self, job: &Taken, record: &OpenRecord, ended: Ended) {
        let request_id = Some(record.request_id());
        match ended {
            Ended::Stopped => {}
            Ended::Well { answer } => {
                let (outcome, summary) = *answer;
                let result = match outcome.seal(job.id, self.jobs.keys()) {
                    Ok(sealed) => sealed,
                    Err(error) => {
                        tracing::error!(job = %job.id, error = &error as &dyn std::error::Error, "a result cannot be sealed");
                        let error = ExchangeError::new(
                            FailureKind::Internal,
                            "seal",
                            "the result could not be sealed",
                        );
                        return self.give_up_or_back(job, request_id, error, true).await;
                    }
                };
                let end = JobEnd {
                    state: JobState::Succeeded,
                    worker: Some(summary.worker),
                    input_tokens: summary.input_tokens,
                    output_tokens: summary.output_tokens,
                    result: Some(result),
                    ..self.bad_end(request_id, None)
                };
                self.end(end).await;
            }
            Ended::Badly { error, was_sent } => {
                record.refuse(&error.reason);
                self.give_up_or_back(job, request_id, error, was_sent).await;
            }
        }
    }

    /// What of a bad end makes the job fail, and what is tried again.
    async fn give_up_or_back(
        self,
        job: &Taken,
        request_id: Option<Uuid>,
        error: ExchangeError,
        was_sent: bool,
    ) {
        let verdict = verdict(&error, was_sent, job);
        let state = match verdict {
            Verdict::End(state) => state,
            Verdict::Back { is_failure, after } => {
                let metrics = &self.jobs.parts().metrics;
                metrics.handed_back.with_label_values(&[&error.reason]).inc();
                let word = Word::HandBack(HandBack {
                    fence: self.fence,
                    is_failure,
                    after,
                    request_id,
                    reason: error.reason.into_owned(),
                    message: error.message,
                });
                return self.jobs.say(word).await;
            }
        };
        let end = JobEnd {
            state,
            ..self.bad_end(request_id, Some(error))
        };
        self.end(end).await;
    }

    fn bad_end(&self, request_id: Option<Uuid>, error: Option<ExchangeError>) -> JobEnd {
        let upstream_status = error.as_ref().and_then(|error| error.upstream_status);
        let (reason, message) = error
            .map(|error| (error.reason.into_owned(), error.message))
            .unzip();
        JobEnd {
            fence: self.fence.clone(),
            state: JobState::Failed,
            request_id,
            started_at: self.started_at,
            worker: None,
            reason,
            message,
            upstream_status,
            input_tokens: None,
            output_tokens: None,
            result: None,
        }
    }

    async fn end(self, end: JobEnd) {
        self.jobs.say(Word::End(Box::new(end))).await;
    }
}

/// What is to become of a job whose run ended badly.
#[derive(Debug, PartialEq)]
enum Verdict {
    /// This.
    End(JobState),
    /// It waits again.
    Back {
        /// Does it count?
        is_failure: bool,
        /// Not again before.
        after: Duration,
    },
}

fn verdict(error: &ExchangeError, was_sent: bool, job: &Taken) -> Verdict {
    let policy = RetryPolicy::try_new(RETRY_BASE, RETRY_CAP, u32::MAX).expect("constants that make a policy");
    let tries = u32::try_from(job.failures).unwrap_or(0).saturating_add(1);
    let pause = policy
        .delay(tries)
        .max(RETRY_BASE / 2)
        .max(error.retry_after.unwrap_or_default());
    match error.kind {
        FailureKind::InvalidRequest
        | FailureKind::FeatureInactive
        | FailureKind::Unsupported
        | FailureKind::Unauthorized => Verdict::End(JobState::Failed),
        _ if error.reason == "unusable_answer" => Verdict::End(JobState::Failed),
        // This broker stops; another one may go on at once.
        _ if error.reason == "broker_stopping" => Verdict::Back {
            is_failure: false,
            after: Duration::ZERO,
        },
        // Its turn has not come, or there was no room.
        FailureKind::DeadlineExceeded if error.reason == "first_byte_deadline" => Verdict::Back {
            is_failure: false,
            after: pause,
        },
        _ if !was_sent => Verdict::Back {
            is_failure: false,
            after: pause,
        },
        _ if job.failures + 1 >= MOST_FAILURES => Verdict::End(JobState::Dead),
        _ => Verdict::Back {
            is_failure: true,
            after: pause,
        },
    }
}

fn unusable(error: AnswerError) -> ExchangeError {
    match error {
        AnswerError::Unusable(unusable) => unusable.into(),
        AnswerError::Unreadable(unreadable) => ExchangeError::new(
            FailureKind::ModelServerFault,
            "unreadable_answer",
            unreadable.to_string(),
        ),
    }
}

/// The request under the job's lane and deadline.
fn bounded(routed: RoutedRequest, job: &Taken) -> RoutedRequest {
    let left = Duration::try_from(job.deadline - clock::now()).unwrap_or_default();
    let ms = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX).max(1);
    let end = Duration::from_millis(routed.feature.end_within_ms).max(END_WITHIN);
    let mut routed = routed;
    routed.feature.lane = job.lane;
    routed.feature.first_byte_within_ms = ms(left.min(FIRST_BYTE_WITHIN));
    routed.feature.end_within_ms = ms(left.min(end));
    routed
}

/// Who asks, as admission and queue count. In the background the turns of clients are kept by who takes jobs, so each
/// job stands for itself; in a lane that people wait in it counts among its client's requests.
fn caller(job: &Taken) -> Caller {
    let (share_key, limit) = match job.lane {
        Lane::Background => (format!("j-{}", job.id.simple()), 1),
        Lane::Keystroke | Lane::Interactive => (job.client.clone(), job.client_limit),
    };
    Caller {
        grant: Arc::new(Grant::Direct),
        who: job.who.clone(),
        share_key,
        limit,
        gitlab_version: None,
    }
}

#[cfg(test)]
mod tests {
    use duo_contract::name::{FeatureName, ModelName};

    use super::*;

    fn job(failures: i32) -> Taken {
        Taken {
            id: Uuid::now_v7(),
            client: "c".to_owned(),
            client_limit: 8,
            who: duo_contract::audit::Who::default(),
            feature: FeatureName::parse("duo_chat").expect("a name"),
            model: ModelName::parse("m").expect("a name"),
            lane: Lane::Background,
            config_revision: 0,
            traceparent: None,
            correlation_id: None,
            deadline: clock::now() + Duration::from_secs(60),
            run: failures + 1,
            failures,
            input_of: Uuid::nil(),
            input: None,
        }
    }

    fn judged(kind: FailureKind, reason: &'static str, was_sent: bool, failures: i32) -> Verdict {
        verdict(&ExchangeError::new(kind, reason, ""), was_sent, &job(failures))
    }

    #[test]
    fn what_the_client_did_wrong_fails_at_once() {
        for was_sent in [false, true] {
            let bad = judged(FailureKind::InvalidRequest, "invalid_request", was_sent, 0);
            assert_eq!(bad, Verdict::End(JobState::Failed));
        }
        let form = judged(FailureKind::ModelServerFault, "unusable_answer", true, 0);
        assert_eq!(form, Verdict::End(JobState::Failed));
    }

    #[test]
    fn the_systems_faults_count_and_in_the_end_the_job_is_dead() {
        let fault = |failures| {
            judged(
                FailureKind::ModelServerFault,
                "model_server_fault",
                true,
                failures,
            )
        };
        let Verdict::Back { is_failure, after } = fault(0) else {
            panic!("it is tried again");
        };
        assert!(is_failure && after >= RETRY_BASE / 2 && after <= RETRY_CAP);
        assert_eq!(fault(MOST_FAILURES - 1), Verdict::End(JobState::Dead));
    }

    #[test]
    fn a_refusal_or_a_stopping_broker_costs_no_try() {
        for (kind, reason, was_sent) in [
            (FailureKind::Overloaded, "lane_full", false),
            (FailureKind::ModelUnavailable, "no_worker", false),
            (FailureKind::ModelUnavailable, "queue_unavailable", false),
            (FailureKind::ModelUnavailable, "configuration_behind", false),
            (FailureKind::ModelUnavailable, "broker_stopping", true),
            (FailureKind::DeadlineExceeded, "first_byte_deadline", true),
        ] {
            let verdict = judged(kind, reason, was_sent, MOST_FAILURES - 1);
            assert!(
                matches!(
                    verdict,
                    Verdict::Back {
                        is_failure: false,
                        ..
                    }
                ),
                "{reason}"
            );
        }
    }
}
