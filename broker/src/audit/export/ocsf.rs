//! Records as events of the Open Cybersecurity Schema Framework, class API Activity with the profile AI Operation; see
//! `docs/audit-ocsf.md`.

use duo_contract::audit::AuditKind;
use serde_json::{Map, Value, json};

use crate::store::audit_events::Event;

/// The version of the schema that this follows.
const SCHEMA: &str = "1.9.0-dev";
/// API Activity, of the category Application Activity.
const CLASS: i64 = 6003;
const CATEGORY: i64 = 6;

/// What was done with the interface.
fn activity_of(event: &Event) -> (i64, &'static str) {
    if event.kind == AuditKind::Read.as_str() {
        return (2, "Read");
    }
    if event.kind == AuditKind::Changed.as_str() {
        return (3, "Update");
    }
    if event.kind == AuditKind::SignInFailed.as_str() {
        return (99, "Sign-in");
    }
    (1, "Create")
}

/// What became of it.
fn status_of(event: &Event) -> (i64, &'static str) {
    match event.outcome.as_deref() {
        Some("completed") => (1, "Success"),
        Some(_) => (2, "Failure"),
        None if event.kind == AuditKind::SignInFailed.as_str() => (2, "Failure"),
        None if event.kind == AuditKind::Admitted.as_str() => (0, "Unknown"),
        None => (1, "Success"),
    }
}

pub(super) fn activity(event: &Event) -> Value {
    let (activity, activity_name) = activity_of(event);
    let (status, status_name) = status_of(event);
    let millis = i64::try_from(event.occurred_at.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX);
    let mut user = Map::new();
    put(
        &mut user,
        "uid",
        event.user_id.as_ref().or(event.token_id.as_ref()),
    );
    let mut actor = Map::new();
    if !user.is_empty() {
        actor.insert("user".into(), user.into());
    }
    put(&mut actor, "app_name", event.client.as_ref());
    let mut activity = json!({
        "activity_id": activity,
        "activity_name": activity_name,
        "category_uid": CATEGORY,
        "category_name": "Application Activity",
        "class_uid": CLASS,
        "class_name": "API Activity",
        "type_uid": CLASS * 100 + activity,
        "severity_id": if status == 2 { 2 } else { 1 },
        "status_id": status,
        "status": status_name,
        "time": millis,
        "metadata": {
            "version": SCHEMA,
            "profiles": ["ai_operation"],
            "product": {"name": "duo-broker", "vendor_name": "duo-broker", "feature": {"name": event.feature}},
            "uid": format!("{}/{}", event.request_id, event.kind),
            "correlation_uid": event.correlation_id,
            "sequence": event.seq,
            "log_name": event.kind,
            "original_time": event.occurred_at.unix_timestamp_nanos().to_string(),
        },
        "api": {"operation": event.route, "request": {"uid": event.request_id}, "service": {"name": event.broker}},
        "actor": actor,
        "src_endpoint": {"ip": event.address, "name": event.instance_id},
        "unmapped": unmapped(event),
    });
    if let Some(all) = activity.as_object_mut() {
        put(all, "status_detail", event.reason.as_ref());
        if let Some(micros) = event.duration_us {
            all.insert("duration".into(), (micros / 1000).into());
        }
        if let Some(model) = &event.model {
            all.insert(
                "ai_model".into(),
                json!({"name": model, "ai_provider": "self-hosted"}),
            );
        }
        if event.input_tokens.is_some() || event.output_tokens.is_some() {
            let total = event.input_tokens.unwrap_or(0) + event.output_tokens.unwrap_or(0);
            let context = json!({
                "prompt_tokens": event.input_tokens,
                "completion_tokens": event.output_tokens,
                "total_tokens": total,
            });
            all.insert("message_context".into(), context);
        }
    }
    without_nulls(activity)
}

/// What the schema has no place for, under our own names.
fn unmapped(event: &Event) -> Value {
    let all = serde_json::to_value(event).unwrap_or_default();
    let kept = [
        "auth",
        "token_id",
        "lane",
        "prompt_id",
        "prompt_version",
        "config_revision",
        "stream",
        "body_bytes",
        "trace_id",
        "job_id",
        "outcome",
        "worker",
        "attempts",
        "queue_wait_us",
        "first_byte_us",
        "duration_us",
        "recorded_at",
        "details",
    ];
    let kept = kept
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), all.get(name)?.clone())));
    Value::Object(kept.collect())
}

fn put(map: &mut Map<String, Value>, name: &str, value: Option<&String>) {
    if let Some(value) = value {
        map.insert(name.to_owned(), value.clone().into());
    }
}

/// Attributes without a value are left out, and so are objects that have none left. Our own are as they are.
fn without_nulls(value: Value) -> Value {
    let Value::Object(map) = value else { return value };
    let kept = map.into_iter().filter_map(|(name, value)| {
        if name == "unmapped" {
            return Some((name, value));
        }
        let value = without_nulls(value);
        let is_nothing = value.is_null() || value.as_object().is_some_and(Map::is_empty);
        (!is_nothing).then_some((name, value))
    });
    Value::Object(kept.collect())
}
