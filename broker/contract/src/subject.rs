//! The only code that builds or parses a subject, and the home of every
//! stream, consumer and bucket name.

use uuid::Uuid;

use crate::name::{FeatureName, Lane, ModelName};

/// Requests: work queue, owner is the broker that holds the client or runs the job.
pub const LIVE_STREAM: &str = "DUO_LIVE";
/// What answers of jobs have so far, for whoever follows them.
pub const JOB_REPLIES_STREAM: &str = "DUO_JOB_REPLIES";
/// Audit records on their way to Postgres.
pub const AUDIT_STREAM: &str = "DUO_AUDIT";
/// Requests that were given up, with every attempt's story.
pub const DEAD_STREAM: &str = "DUO_DEAD";

/// Key-value bucket of the configuration snapshot; brokers and workers read it.
pub const CONFIG_BUCKET: &str = "duo_config";
/// Key-value bucket of token hashes and issuers; brokers only.
pub const IDENTITY_BUCKET: &str = "duo_identity";
/// Key-value bucket of worker presence; keys expire.
pub const WORKERS_BUCKET: &str = "duo_workers";
/// The one key of [`CONFIG_BUCKET`] and of [`IDENTITY_BUCKET`].
pub const SNAPSHOT_KEY: &str = "snapshot";

/// Subjects that the live stream stores.
pub const LIVE_SUBJECTS: &str = "duo.requests.>";
/// Subjects that the job replies stream stores.
pub const JOB_REPLIES_SUBJECTS: &str = "duo.job_replies.>";
/// Subjects that the audit stream stores.
pub const AUDIT_SUBJECTS: &str = "duo.audit.>";
/// Subjects that the dead-letter stream stores.
pub const DEAD_SUBJECTS: &str = "duo.dead.>";
/// Durable consumer that moves audit records into Postgres.
pub const AUDIT_CONSUMER: &str = "audit_writer";

/// NATS header naming the key that sealed the body.
pub const KEY_ID_HEADER: &str = "Duo-Key-Id";

/// Subject of a live request: `duo.requests.<lane>.<feature>.<model>.<key>`.
#[must_use]
pub fn request(lane: Lane, feature: &FeatureName, model: &ModelName, key: &str) -> String {
    format!("duo.requests.{lane}.{feature}.{}.{key}", model.token())
}

/// The key under which a broker publishes a live request again, which no
/// caller's limit covers.
#[must_use]
pub fn republish_key(request: Uuid) -> String {
    format!("r-{}", request.simple())
}

/// Filter of the consumer that serves one live lane of one model.
#[must_use]
pub fn live_filter(lane: Lane, model: &ModelName) -> String {
    format!("duo.requests.{lane}.*.{}.*", model.token())
}

/// Durable consumer of one lane and model: `<lane>-<model>`.
#[must_use]
pub fn consumer(lane: Lane, model: &ModelName) -> String {
    format!("{lane}-{}", model.token())
}

/// Where a worker's pull for one message is sent.
#[must_use]
pub fn pull(stream: &str, consumer: &str) -> String {
    format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}")
}

/// What a broker publishes into the live stream to learn whether it stores anything; no consumer takes it.
#[must_use]
pub fn probe(broker: &str) -> String {
    format!("duo.requests.probe.{broker}")
}

/// Where a broker hears what workers say of its live requests, claims and frames, in [`crate::bundle`]s.
#[must_use]
pub fn bundles(broker: &str) -> String {
    format!("duo.bundles.{broker}")
}

/// Where the owner of one request is asked whether it knows it ([`crate::frame::ReplyFrame::question`]).
#[must_use]
pub fn question(broker: &str, request: Uuid) -> String {
    format!("duo.questions.{broker}.{}", request.simple())
}

/// Every such question to one broker.
#[must_use]
pub fn questions_of(broker: &str) -> String {
    format!("duo.questions.{broker}.*")
}

/// The request a question is about.
#[must_use]
pub fn request_of_question(subject: &str) -> Option<Uuid> {
    let mut tokens = subject.strip_prefix("duo.questions.")?.split('.');
    let (_broker, request) = (tokens.next()?, tokens.next()?);
    if tokens.next().is_some() {
        return None;
    }
    Uuid::try_parse(request).ok()
}

/// Where pieces of a job's answer are stored.
#[must_use]
pub fn job_replies(job: Uuid) -> String {
    format!("duo.job_replies.{}", job.simple())
}

/// Where whoever follows a job hears that its row has changed.
#[must_use]
pub fn job_news(job: Uuid) -> String {
    format!("duo.job_news.{}", job.simple())
}

/// Where every broker hears that a job is over, so that whoever runs it stops; the payload is its id and why, one word.
pub const JOB_STOPS: &str = "duo.job_stops";

/// Where a worker hears that an attempt is to stop.
#[must_use]
pub fn cancels(worker: &str) -> String {
    format!("duo.cancels.{worker}")
}

/// Where brokers hear that a newer request of the same person and file has
/// taken an older one's place.
#[must_use]
pub fn superseded(key: &str) -> String {
    format!("duo.superseded.{key}")
}

/// Every [`superseded`] subject.
pub const SUPERSEDED_ALL: &str = "duo.superseded.*";

/// Subject of audit records, several in a message ([`crate::audit::join`]).
pub const AUDIT_RECORDS: &str = "duo.audit.records";

/// Subject of a piece of a sealed prompt or answer ([`crate::body`]).
pub const AUDIT_BODIES: &str = "duo.audit.bodies";

/// Subject of a dead letter: `duo.dead.<feature>.<model>.<request>`, its own,
/// so that it is found by its id.
#[must_use]
pub fn dead(feature: &FeatureName, model: &ModelName, request: Uuid) -> String {
    format!("duo.dead.{feature}.{}.{}", model.token(), request.simple())
}

/// The subject of one dead letter whose feature and model are not known.
#[must_use]
pub fn dead_by_id(request: Uuid) -> String {
    format!("duo.dead.*.*.{}", request.simple())
}

/// The dead letters of one feature, of one model, or of all.
#[must_use]
pub fn dead_filter(feature: Option<&FeatureName>, model: Option<&ModelName>) -> String {
    let feature = feature.map_or("*", FeatureName::as_str);
    let model = model.map_or("*".into(), ModelName::token);
    format!("duo.dead.{feature}.{model}.*")
}

/// Is `text` safe as one subject token, as broker and worker names must be?
#[must_use]
pub fn is_token(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 64
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_questions_subject_names_its_request() {
        let id = Uuid::now_v7();
        let subject = question("b1", id);
        assert_eq!(request_of_question(&subject), Some(id));
        assert_eq!(request_of_question("duo.questions.b1.x"), None);
        assert_eq!(request_of_question(&format!("{subject}.more")), None);
    }

    #[test]
    fn a_dead_letter_is_found_by_its_id_and_by_its_model() {
        let model = ModelName::parse("v0.3").expect("a name");
        let feature = FeatureName::parse("duo_chat").expect("a name");
        let subject = dead(&feature, &model, Uuid::from_u128(7));
        assert_eq!(
            subject,
            "duo.dead.duo_chat.v0_2E3.00000000000000000000000000000007"
        );
        assert_eq!(
            dead_by_id(Uuid::from_u128(7)),
            "duo.dead.*.*.00000000000000000000000000000007"
        );
        assert_eq!(dead_filter(None, Some(&model)), "duo.dead.*.v0_2E3.*");
        assert_eq!(dead_filter(Some(&feature), None), "duo.dead.duo_chat.*.*");
    }

    #[test]
    fn a_request_subject_is_covered_by_its_consumers_filter() {
        let model = ModelName::parse("v0.3").expect("a name");
        let feature = FeatureName::parse("duo_chat").expect("a name");
        let subject = request(Lane::Interactive, &feature, &model, "abc-0");
        assert_eq!(subject, "duo.requests.interactive.duo_chat.v0_2E3.abc-0");
        assert_eq!(
            live_filter(Lane::Interactive, &model),
            "duo.requests.interactive.*.v0_2E3.*"
        );
    }
}
