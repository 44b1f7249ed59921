//! What a request leaves of its prompt and answer, by its feature's policy: nothing, digests, or the texts, sealed.
//!
//! Texts go to NATS before the terminal record that commits to them, so that a crash between loses neither: a text
//! without a record is there and is not proved, and the sweeper ends the request. Of a feature that keeps nothing,
//! nothing comes by here.

mod answer;

use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::HeaderMap;
use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use duo_contract::audit::AuditRecord;
use duo_contract::body::{BodyFacts, BodyHead, BodyMessage, BodyPart, CHUNK_BYTES};
use duo_contract::name::FeatureName;
use duo_contract::snapshot::{BodyPolicy, Feature};
use duo_contract::subject;
use duo_process::config::parse_duration;
use duo_process::metrics::register;
use duo_process::nats::Nats;
use duo_process::retry::RetryPolicy;
use duo_process::shutdown::Shutdown;
use prometheus::{IntCounter, IntGauge, Registry};
use time::Date;

use super::keys::{DataKeys, subject_of};
use super::redact::{self, Rules};
use super::sink::AuditSink;
use crate::dispatch::publish::{self, PublishError};
use crate::request::Work;
use crate::store::audit_events::day_of;

/// Bytes of prompts and answers that may wait to be sealed and for NATS.
const CAPACITY: usize = 256 << 20;
/// Features that keep texts are refused from so many on: open requests need the rest.
const RESERVE: usize = CAPACITY / 2;
/// Bytes of one answer that are held, framing included.
const MOST_ANSWER: usize = 16 << 20;
/// One publish may take this long before it is sent again.
const ACK_TIMEOUT: Duration = Duration::from_secs(5);
/// How often [`Bodies::settled`] looks.
const LOOK: Duration = Duration::from_millis(10);
/// What is kept without a word about it.
const USUAL_DAYS: u16 = 30;
/// Longest that texts are kept.
const MOST_DAYS: u64 = 3650;

/// How long texts are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptFor {
    days: u16,
    /// Features that differ.
    of: Vec<(FeatureName, u16)>,
}

impl Default for KeptFor {
    fn default() -> Self {
        Self {
            days: USUAL_DAYS,
            of: Vec::new(),
        }
    }
}

impl KeptFor {
    /// Days of a feature's texts.
    #[must_use]
    pub fn days(&self, feature: &FeatureName) -> u16 {
        let named = self.of.iter().find(|(name, _)| name == feature);
        named.map_or(self.days, |(_, days)| *days)
    }
}

impl std::fmt::Display for KeptFor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}d", self.days)?;
        for (feature, days) in &self.of {
            write!(f, ",{feature}={days}d")?;
        }
        Ok(())
    }
}

impl FromStr for KeptFor {
    type Err = String;

    /// Reads `30d` or `30d,duo_chat=7d`.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut kept = Self::default();
        for part in text.split(',').map(str::trim) {
            match part.split_once('=') {
                None => kept.days = days(part)?,
                Some((feature, span)) => {
                    let feature = FeatureName::parse(feature).map_err(|error| error.to_string())?;
                    kept.of.push((feature, days(span)?));
                }
            }
        }
        Ok(kept)
    }
}

/// Reads a span of whole days.
///
/// # Errors
/// It is none, or longer than ten years.
pub fn days(text: &str) -> Result<u16, String> {
    const DAY: u64 = 24 * 3600;
    let span: Duration = parse_duration(text)?;
    let days = span.as_secs() / DAY;
    if span.subsec_nanos() != 0 || !span.as_secs().is_multiple_of(DAY) || days == 0 || days > MOST_DAYS {
        return Err(format!(
            "{text:?} is not a number of days between 1d and {MOST_DAYS}d"
        ));
    }
    u16::try_from(days).map_err(|error| error.to_string())
}

/// What is done with texts.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// For how long.
    pub kept_for: KeptFor,
    /// Bytes of one text at most; the rest is cut.
    pub most: usize,
    /// What is taken out.
    pub rules: Rules,
}

/// What the keeper tells of itself.
#[derive(Debug, Clone)]
pub struct BodyMetrics {
    /// `duo_audit_bodies_total`: texts that NATS has.
    kept: IntCounter,
    /// `duo_audit_bodies_lost_total`: texts whose feature keeps them and that were not kept.
    lost: IntCounter,
    /// `duo_audit_bodies_redacted_total`: secrets taken out.
    redacted: IntCounter,
    /// `duo_audit_bodies_waiting_bytes`: bytes that wait to be sealed and for NATS.
    waiting: IntGauge,
}

impl BodyMetrics {
    /// Declares and registers them.
    ///
    /// # Panics
    /// When the registry has them already.
    #[must_use]
    pub fn register(registry: &Registry) -> Self {
        let counter = |name: &str, help: &str| {
            register(
                registry,
                IntCounter::new(name, help).expect("a valid metric name"),
            )
        };
        Self {
            kept: counter(
                "duo_audit_bodies_total",
                "Sealed prompts and answers that NATS has.",
            ),
            lost: counter(
                "duo_audit_bodies_lost_total",
                "Prompts and answers that should have been kept and were not.",
            ),
            redacted: counter(
                "duo_audit_bodies_redacted_total",
                "Secrets taken out of prompts and answers before they were kept.",
            ),
            waiting: register(
                registry,
                IntGauge::new(
                    "duo_audit_bodies_waiting_bytes",
                    "Bytes of prompts and answers that wait to be sealed and for NATS.",
                )
                .expect("a valid metric name"),
            ),
        }
    }
}

/// Keeps what requests leave. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Bodies(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    nats: Nats,
    /// Without them there are digests only.
    keys: Option<DataKeys>,
    settings: Settings,
    metrics: BodyMetrics,
    /// Bytes that wait.
    waiting: AtomicUsize,
    /// Has it said that there are no keys?
    has_complained: AtomicBool,
    shutdown: Shutdown,
}

/// What one request leaves so far.
#[derive(Debug)]
pub(super) struct Leaves {
    policy: BodyPolicy,
    feature: FeatureName,
    prompt: Bytes,
    stream: bool,
    /// As the model server wrote it, piece by piece.
    answer: Vec<Bytes>,
    answer_bytes: usize,
    /// Was there more of the answer than is held?
    cut: bool,
}

impl Leaves {
    /// Of a request that is about to be sent.
    pub(super) fn of(feature: &Feature, work: &Work) -> Self {
        Self {
            policy: feature.bodies,
            feature: feature.name.clone(),
            prompt: work.body.clone(),
            stream: work.stream,
            answer: Vec::new(),
            answer_bytes: 0,
            cut: false,
        }
    }

    /// A piece of the answer has come.
    pub(super) fn add(&mut self, piece: &Bytes) {
        if self.answer_bytes + piece.len() > MOST_ANSWER {
            self.cut = true;
        } else if !piece.is_empty() {
            self.answer_bytes += piece.len();
            self.answer.push(piece.clone());
        }
    }

    fn bytes(&self) -> usize {
        self.prompt.len() + self.answer_bytes
    }
}

/// What a terminal record says of a request's texts, and the messages with the texts themselves.
#[derive(Debug, Default)]
struct Sealed {
    digests: [Option<String>; 2],
    messages: Vec<(String, Bytes)>,
    texts: u64,
    redacted: u64,
}

impl Bodies {
    /// A keeper that sends through `nats`.
    #[must_use]
    pub fn new(
        nats: Nats,
        keys: Option<DataKeys>,
        settings: Settings,
        metrics: BodyMetrics,
        shutdown: Shutdown,
    ) -> Self {
        Self(Arc::new(Inner {
            nats,
            keys,
            settings,
            metrics,
            waiting: AtomicUsize::new(0),
            has_complained: AtomicBool::new(false),
            shutdown,
        }))
    }

    /// Can texts be sealed at all?
    #[must_use]
    pub fn can_seal(&self) -> bool {
        self.0.keys.is_some()
    }

    /// Do more texts wait for NATS than a new request should add to?
    pub(super) fn is_saturated(&self) -> bool {
        self.0.waiting.load(Ordering::Relaxed) >= RESERVE
    }

    /// Sees to what the request has left, then to its terminal record.
    pub(super) fn keep(&self, leaves: Box<Leaves>, mut record: AuditRecord, sink: &AuditSink) {
        let inner = &self.0;
        let bytes = leaves.bytes();
        let waiting = inner.waiting.fetch_add(bytes, Ordering::Relaxed) + bytes;
        inner
            .metrics
            .waiting
            .set(i64::try_from(waiting).unwrap_or(i64::MAX));
        let deferred = sink.defer();
        let runtime = tokio::runtime::Handle::try_current();
        let (Ok(runtime), true) = (runtime, waiting <= CAPACITY) else {
            tracing::error!(request_id = %record.request_id, "a prompt and its answer found no place and are not kept");
            inner.metrics.lost.inc_by(2);
            inner.done(bytes);
            return deferred.write(&record);
        };
        let inner = Arc::clone(inner);
        runtime.spawn(async move {
            let made = tokio::task::spawn_blocking({
                let (inner, record) = (Arc::clone(&inner), record.clone());
                move || inner.seal(&leaves, &record)
            });
            match made.await {
                Ok(Ok(sealed)) => {
                    if inner.send(&sealed.messages).await {
                        inner.metrics.kept.inc_by(sealed.texts);
                        inner.metrics.redacted.inc_by(sealed.redacted);
                    } else {
                        inner.metrics.lost.inc_by(sealed.texts);
                    }
                    if let Some(end) = &mut record.end {
                        [end.prompt_sha256, end.answer_sha256] = sealed.digests;
                    }
                }
                failed => {
                    // Neither says what the text was.
                    let failed = failed.is_err();
                    tracing::error!(request_id = %record.request_id, failed, "a prompt and its answer could not be sealed");
                    inner.metrics.lost.inc_by(2);
                }
            }
            deferred.write(&record);
            inner.done(bytes);
        });
    }

    /// Waits until nothing waits any more; false when something still does after `max`.
    pub async fn settled(&self, max: Duration) -> bool {
        let settled = async {
            while self.0.waiting.load(Ordering::Relaxed) > 0 {
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::time::timeout(max, settled).await.is_ok()
    }
}

impl Inner {
    fn done(&self, bytes: usize) {
        let before = self.waiting.fetch_sub(bytes, Ordering::Relaxed);
        let left = i64::try_from(before.saturating_sub(bytes)).unwrap_or(i64::MAX);
        self.metrics.waiting.set(left);
    }

    /// What a request leaves, made ready. Takes its time, so it runs beside the requests.
    fn seal(&self, leaves: &Leaves, record: &AuditRecord) -> anyhow::Result<Sealed> {
        let answer = answer::whole(leaves.stream, &leaves.answer.concat());
        let mut sealed = Sealed::default();
        let is_full = leaves.policy == BodyPolicy::Full;
        if is_full && self.keys.is_none() {
            self.metrics.lost.inc_by(2);
            if !self.has_complained.swap(true, Ordering::Relaxed) {
                tracing::error!(
                    feature = leaves.feature.as_str(),
                    "a feature is to keep prompts and answers since this broker started, and DUO_AUDIT_MASTER_KEY_FILE is \
                     not set: there are digests only"
                );
            }
        }
        let Some(keys) = self.keys.as_ref().filter(|_| is_full) else {
            sealed.digests[0] = Some(sha256(&leaves.prompt));
            sealed.digests[1] = answer.map(|answer| sha256(answer::text(&answer).as_bytes()));
            return Ok(sealed);
        };
        let period = day_of(record.request_id).unwrap_or(Date::MIN);
        let days = time::Duration::days(i64::from(self.settings.kept_for.days(&leaves.feature)) + 1);
        let drop_on = period.saturating_add(days);
        let key = keys.key(&subject_of(&record.who), period, drop_on)?;
        let texts = [
            (BodyPart::Prompt, Some(leaves.prompt.clone()), false),
            (BodyPart::Answer, answer, leaves.cut),
        ];
        for (number, (part, text, is_cut)) in texts.into_iter().enumerate() {
            let Some(text) = text else { continue };
            let (mut clean, redacted) = self.settings.rules.json(&text);
            let truncated = is_cut || clean.len() > self.settings.most;
            if clean.len() > self.settings.most {
                clean.to_mut().truncate(self.settings.most);
            }
            let facts = BodyFacts {
                request_id: record.request_id,
                part,
                bytes: text.len() as u64,
                truncated,
                rules: redact::REVISION,
                redacted,
            };
            let text = Bytes::from(key.seal(&facts.aad(), &clean)?);
            let sha256 = sha256(&text);
            let chunks = text.len().div_ceil(CHUNK_BYTES);
            for chunk in 0..chunks {
                let from = chunk * CHUNK_BYTES;
                let head = BodyHead {
                    facts: facts.clone(),
                    chunk: u32::try_from(chunk)?,
                    chunks: u32::try_from(chunks)?,
                    sha256: sha256.clone(),
                    drop_on: drop_on.to_string(),
                    key: key.wrapped.clone(),
                };
                let piece = text.slice(from..text.len().min(from + CHUNK_BYTES));
                let id = format!("{}-{}-{chunk}", record.request_id.simple(), part.as_str());
                let message = BodyMessage { head, sealed: piece };
                sealed.messages.push((id, message.encode()?));
            }
            sealed.digests[number] = Some(sha256);
            sealed.texts += 1;
            sealed.redacted += u64::from(redacted);
        }
        Ok(sealed)
    }

    /// Publishes until NATS has acknowledged all; false when it refuses one, or the process ends.
    async fn send(&self, messages: &[(String, Bytes)]) -> bool {
        let pause = RetryPolicy::try_new(Duration::from_millis(50), Duration::from_secs(2), u32::MAX)
            .expect("the constants are in order");
        for (id, payload) in messages {
            let mut attempt = 1;
            loop {
                match self.once(id, payload.clone()).await {
                    Ok(_) => break,
                    Err(error) if error.is_passing() || matches!(error, PublishError::Full) => {
                        tracing::debug!(error = %error, attempt, "a sealed text was not acknowledged; sending it again");
                    }
                    Err(error) => {
                        tracing::error!(error = %error, "a sealed text was refused and is not kept");
                        return false;
                    }
                }
                tokio::select! {
                    () = self.shutdown.aborted() => return false,
                    () = tokio::time::sleep(pause.delay(attempt)) => {}
                }
                attempt = attempt.saturating_add(1);
            }
        }
        true
    }

    async fn once(&self, id: &str, payload: Bytes) -> Result<u64, PublishError> {
        let mut headers = HeaderMap::new();
        headers.insert(async_nats::header::NATS_MESSAGE_ID, id);
        let subject = subject::AUDIT_BODIES.to_owned();
        let mut pending = self.nats.send(subject, Some(headers), payload).await?;
        publish::stored(&mut pending, ACK_TIMEOUT).await
    }
}

/// Hexadecimal.
fn sha256(bytes: &[u8]) -> String {
    hex::encode(digest(&SHA256, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_long_texts_are_kept_survives_its_text() {
        let name = |text: &str| FeatureName::parse(text).expect("a name");
        let kept: KeptFor = "90d, duo_chat=7d".parse().expect("parses");
        assert_eq!(
            (kept.days(&name("duo_chat")), kept.days(&name("code_completion"))),
            (7, 90)
        );
        assert_eq!(kept.to_string().parse(), Ok(kept));
        for wrong in ["", "0d", "36h", "duo_chat=1h", "Duo Chat=1d", "99999d"] {
            assert!(wrong.parse::<KeptFor>().is_err(), "{wrong:?}");
        }
    }
}
