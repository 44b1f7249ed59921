//! The body of a submission: read and routed here, rendered in [`render`].
//!
//! A job asks for a prompt by id with its inputs, for messages, or for an input: a text, texts to make vectors of, or
//! tensors. What is sent to the model server is made now, under the configuration of now; whether its feature is
//! still active and its model still there is looked at when it runs.

mod render;

use std::time::Duration;

use aws_lc_rs::digest;
use duo_contract::name::{FeatureName, Lane};
use duo_process::clock;
use http::HeaderMap;
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use super::{JobsError, jobs};
use crate::api::error::ApiError;
use crate::api::fields::Fields;
use crate::api::inbound::Inbound;
use crate::caller::Grant;
use crate::jobs::{DEADLINE, KEY_KEPT, LONGEST_DEADLINE, LOOKED_WITHIN};
use crate::prompt::Purpose;
use crate::request::{ModelChoice, RoutedRequest};
use crate::routing::{INFERENCE, OPENAI_PREFIX};
use crate::store::in_time;
use crate::store::jobs::{Key, NewJob};

/// Every field of a submission.
const FIELDS: [&str; 13] = [
    "feature",
    "input",
    "messages",
    "prompt_id",
    "inputs",
    "model",
    "lane",
    "deadline",
    "callback",
    "metadata",
    "max_output_tokens",
    "temperature",
    "stop",
];
const MAX_NAME: usize = 255;
const MAX_URL: usize = 2048;
/// As OpenAI has them: pairs, and characters of keys and values.
const MAX_PAIRS: usize = 16;
const MAX_PAIR_KEY: usize = 64;
const MAX_PAIR_VALUE: usize = 512;

/// The job that `body` asks for.
pub(super) async fn read(inbound: &Inbound, body: &[u8], key: Option<String>) -> Result<NewJob, JobsError> {
    let fields = Fields::parse(body)?;
    for (name, _) in fields.entries() {
        if !FIELDS.contains(&&**name) {
            let known = FIELDS.join(", ");
            return Err(
                ApiError::invalid(name.to_string(), format!("unknown field; there are {known}")).into(),
            );
        }
    }
    let purpose = prompt(inbound, &fields)?;
    let feature = feature(inbound, &fields, purpose.as_ref())?;
    let choice = fields.text("model", MAX_NAME)?;
    let choice = match choice {
        Some(model) => ModelChoice::Named(model.into_owned()),
        None if feature.as_str().starts_with(OPENAI_PREFIX) => return Err(fields.required("model").into()),
        None => ModelChoice::Assigned,
    };
    let routed = inbound.route(&feature, &choice, false).map_err(by_field)?;
    let lane = lane(&fields, &routed)?;
    let deadline = deadline(&fields)?;
    let metadata = metadata(&fields)?;
    let callback = callback(inbound, &fields).await?;
    let work = render::work(inbound, &fields, purpose.as_ref(), &routed).await?;
    let id = Uuid::now_v7();
    let input = jobs(&inbound.api)?.seal(id, &work).map_err(|error| {
        tracing::error!(
            error = &error as &dyn std::error::Error,
            "a job could not be sealed"
        );
        ApiError::unreadable()
    })?;
    Ok(NewJob {
        id,
        client: inbound.caller.share_key.clone(),
        client_limit: inbound.caller.limit,
        who: inbound.caller.who.clone(),
        feature: routed.feature.name.clone(),
        model: routed.model.name.clone(),
        lane,
        prompt: work.prompt().cloned(),
        config_revision: routed.revision,
        traceparent: Some(inbound.record.traceparent().to_owned()),
        correlation_id: correlation(&inbound.headers),
        metadata,
        callback,
        retry_of: None,
        deadline,
        input,
        key: key.map(|key| Key {
            key,
            fingerprint: fingerprint(body),
            expires_at: clock::now() + KEY_KEPT,
        }),
    })
}

pub(in crate::api) fn correlation(headers: &HeaderMap) -> Option<String> {
    let text = headers.get("x-request-id")?.to_str().ok()?;
    Some(text.chars().take(MAX_NAME).collect())
}

/// The webhook receiver to tell, by its name or URL.
async fn callback(inbound: &Inbound, fields: &Fields<'_>) -> Result<Option<String>, JobsError> {
    let Some(named) = fields.text("callback", MAX_URL)? else {
        return Ok(None);
    };
    if named.contains('\0') {
        return Err(fields.invalid("callback", "may hold no NUL character").into());
    }
    let found = jobs(&inbound.api)?.store().find_receiver(&named);
    let found = in_time(LOOKED_WITHIN, found).await?;
    let problem = match found {
        Some(receiver) if receiver.disabled.is_none() => return Ok(Some(receiver.name)),
        Some(receiver) => format!(
            "the webhook receiver {} is disabled; an administrator can enable it",
            receiver.name
        ),
        None => "there is no such webhook receiver; an administrator can register one".to_owned(),
    };
    Err(fields.invalid("callback", problem).into())
}

/// SHA-256 of the route and the body with its keys in order.
fn fingerprint(body: &[u8]) -> Vec<u8> {
    let canonical = serde_json::from_slice::<Value>(body).map(|value| value.to_string());
    let text = format!("POST /v1/jobs\n{}", canonical.unwrap_or_default());
    digest::digest(&digest::SHA256, text.as_bytes()).as_ref().to_vec()
}

/// The prompt that is asked for, if one is.
fn prompt(inbound: &Inbound, fields: &Fields<'_>) -> Result<Option<(String, Purpose)>, ApiError> {
    let Some(id) = fields.text("prompt_id", MAX_NAME)? else {
        return Ok(None);
    };
    let purpose = inbound.api.prompts.purpose(&id);
    let purpose = purpose.ok_or_else(|| fields.invalid("prompt_id", "there is no such prompt"))?;
    Ok(Some((id.into_owned(), purpose)))
}

/// The feature, once it is clear that the caller may use it.
fn feature(
    inbound: &Inbound,
    fields: &Fields<'_>,
    prompt: Option<&(String, Purpose)>,
) -> Result<FeatureName, ApiError> {
    let named = fields.text("feature", MAX_NAME)?;
    let named = named
        .map(|name| {
            let table = inbound.api.exchange.routing().load();
            let known = FeatureName::parse(&name)
                .ok()
                .filter(|name| table.feature(name).is_some());
            known.ok_or_else(|| fields.invalid("feature", "there is no such feature"))
        })
        .transpose()?;
    let feature = match (named, prompt) {
        (Some(named), Some((id, purpose))) if named != purpose.feature => {
            let problem = format!("prompt {id} is of feature {}", purpose.feature);
            return Err(fields.invalid("feature", problem));
        }
        (Some(named), _) => named,
        (None, Some((_, purpose))) => purpose.feature.clone(),
        (None, None) => return Err(fields.required("feature")),
    };
    let scopes = match (&*inbound.caller.grant, prompt) {
        (Grant::GitLab { .. }, Some((_, purpose))) => vec![purpose.scope.clone()],
        (Grant::GitLab { .. }, None) if feature.as_str().starts_with(OPENAI_PREFIX) => {
            return match inbound.caller.may_use(&feature) {
                true => Ok(feature),
                false => Err(ApiError::Forbidden(
                    format!("this token may not use the feature {feature}").into(),
                )),
            };
        }
        (Grant::GitLab { .. }, None) if INFERENCE.contains(&feature.as_str()) => {
            vec![feature.as_str().to_owned()]
        }
        (Grant::GitLab { .. }, None) => inbound.api.prompts.scopes(&feature),
        (Grant::ApiToken { .. } | Grant::Direct, _) => Vec::new(),
    };
    let scopes: Vec<&str> = scopes.iter().map(String::as_str).collect();
    inbound.require(
        &scopes,
        &feature,
        format!("this token may not use the feature {feature}"),
    )?;
    Ok(feature)
}

/// What a body names and nobody has is the field's fault.
fn by_field(error: ApiError) -> ApiError {
    match error {
        ApiError::Exchange(error)
            if error.reason == "unknown_model" || error.reason == "unsupported_pair" =>
        {
            ApiError::invalid("model", error.message)
        }
        ApiError::Exchange(error) if error.reason == "unknown_feature" => {
            ApiError::invalid("feature", error.message)
        }
        other => other,
    }
}

/// A job may be as urgent as its feature's own requests, or less.
fn lane(fields: &Fields<'_>, routed: &RoutedRequest) -> Result<Lane, ApiError> {
    let Some(text) = fields.text("lane", MAX_NAME)? else {
        return Ok(Lane::Background);
    };
    let known = "has to be background, interactive or keystroke";
    let lane: Lane = text.parse().map_err(|_| fields.invalid("lane", known))?;
    let most = routed.feature.lane;
    if (lane as usize) < (most as usize) {
        let problem = format!(
            "may not be more urgent than {most}, the lane of {}",
            routed.feature.name
        );
        return Err(fields.invalid("lane", problem));
    }
    Ok(lane)
}

/// Seconds from now, or a moment.
fn deadline(fields: &Fields<'_>) -> Result<OffsetDateTime, ApiError> {
    let now = clock::now();
    let Some(raw) = fields.raw("deadline") else {
        return Ok(now + DEADLINE);
    };
    let seconds = raw.get().parse::<u64>().ok().map(Duration::from_secs);
    let moment = || {
        let text: String = serde_json::from_str(raw.get()).ok()?;
        let moment = OffsetDateTime::parse(&text, &Rfc3339).ok()?;
        Duration::try_from(moment - now).ok()
    };
    match seconds.or_else(moment) {
        Some(left) if !left.is_zero() && left <= LONGEST_DEADLINE => Ok(now + left),
        _ => Err(fields.invalid(
            "deadline",
            "has to be seconds from now or a moment such as 2026-01-31T12:00:00Z, within the next 7 days",
        )),
    }
}

/// Pairs of texts.
pub(in crate::api) fn metadata(fields: &Fields<'_>) -> Result<Option<Value>, ApiError> {
    let Some(pairs) = fields.object("metadata")? else {
        return Ok(None);
    };
    if pairs.entries().len() > MAX_PAIRS {
        return Err(fields.invalid("metadata", format!("may have at most {MAX_PAIRS} pairs")));
    }
    let mut kept = Map::new();
    for (key, _) in pairs.entries() {
        if key.chars().count() > MAX_PAIR_KEY {
            let problem = format!("keys may have at most {MAX_PAIR_KEY} characters");
            return Err(fields.invalid("metadata", problem));
        }
        let value = pairs.required_text(key, MAX_PAIR_VALUE)?;
        if key.contains('\0') || value.contains('\0') {
            return Err(fields.invalid("metadata", "may hold no NUL character"));
        }
        kept.insert(key.to_string(), value.into());
    }
    Ok(Some(kept.into()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_fingerprint_depends_on_what_is_said_not_on_how() {
        let one = fingerprint(br#"{"feature": "a", "input": "b"}"#);
        assert_eq!(one, fingerprint(br#"{"input":"b","feature":"a"}"#));
        assert_ne!(one, fingerprint(br#"{"input":"c","feature":"a"}"#));
        assert_eq!(one.len(), 32);
    }

    fn parsed<T>(body: &str, read: impl Fn(&Fields<'_>) -> Result<T, ApiError>) -> Result<T, String> {
        let fields = Fields::parse(body.as_bytes()).expect("an object");
        read(&fields).map_err(|error| error.to_string())
    }

    #[test]
    fn a_deadline_is_a_span_or_a_moment_within_a_week() {
        let soon = clock::now() + Duration::from_secs(60);
        let text = soon.format(&Rfc3339).expect("formats");
        for body in [
            "{}",
            r#"{"deadline": 60}"#,
            &format!(r#"{{"deadline": "{text}"}}"#),
        ] {
            let at = parsed(body, deadline).expect(body);
            assert!(at > clock::now() && at <= clock::now() + DEADLINE, "{body}");
        }
        for body in [
            r#"{"deadline": 0}"#,
            r#"{"deadline": -1}"#,
            r#"{"deadline": 604801}"#,
            r#"{"deadline": "soon"}"#,
            r#"{"deadline": "2020-01-01T00:00:00Z"}"#,
        ] {
            assert!(parsed(body, deadline).is_err(), "{body}");
        }
    }

    #[test]
    fn metadata_are_a_few_short_texts() {
        assert_eq!(parsed("{}", metadata), Ok(None));
        let good = parsed(r#"{"metadata": {"a": "b"}}"#, metadata).expect("good");
        assert_eq!(good, Some(json!({"a": "b"})));
        assert_eq!(
            parsed(r#"{"metadata": {"a": 1}}"#, metadata),
            Err("metadata.a: has to be a string".to_owned())
        );
        let many: Map<String, Value> = (0..17).map(|n| (n.to_string(), "".into())).collect();
        assert!(parsed(&json!({"metadata": many}).to_string(), metadata).is_err());
    }
}
