//! What receivers were told: list, tell again, test.

use std::sync::Arc;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Extension, Path, Query, State};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::super::AdminState;
use super::super::dead::actor;
use super::super::edit::{self, Answer, Said, stored};
use super::super::openapi::Refusal;
use super::{fresh, moment};
use crate::api::error::ApiError;
use crate::caller::Caller;
use crate::store::webhooks::{Delivery, DeliveryState, MAX_PAGE};

/// Deliveries on a page when the request names no number.
const DEFAULT_PAGE: u32 = 100;

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in super::super) struct Asked {
    /// Deliveries on a page, 1 to 1000; 100 without it.
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
    /// `pending`, `delivered`, `failed` or `dropped`.
    state: Option<String>,
}

/// Deliveries, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(in super::super) struct Deliveries {
    deliveries: Vec<OneDelivery>,
    /// Give it back for the next page; absent on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// One event for one receiver.
#[derive(Debug, Serialize, ToSchema)]
pub(in super::super) struct OneDelivery {
    /// The receiver sees it as `webhook-id`.
    id: String,
    /// Such as `job.succeeded`.
    event: String,
    /// The job; none for a test.
    #[schema(format = "uuid")]
    #[serde(skip_serializing_if = "Option::is_none")]
    job_id: Option<String>,
    #[schema(format = "date-time")]
    occurred_at: String,
    /// `pending`, `delivered`, `failed` or `dropped`.
    state: &'static str,
    /// Why it was dropped: `receiver_gone` or `receiver_disabled`.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// When it is sent again, or a broker that is sending it is not waited for any more.
    #[schema(format = "date-time")]
    #[serde(skip_serializing_if = "Option::is_none")]
    next_at: Option<String>,
    #[schema(format = "date-time")]
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_at: Option<String>,
    /// The first one first.
    attempts: Vec<OneAttempt>,
}

/// What an attempt met.
#[derive(Debug, Serialize, ToSchema)]
struct OneAttempt {
    #[schema(format = "date-time")]
    at: String,
    broker: String,
    /// `delivered`, `gone`, `redirect`, `status`, `timed_out`, `unreachable`, `unresolved` or `address_refused`.
    result: String,
    /// The answer's status.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<i32>,
    /// More about it, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    duration_ms: i64,
}

impl From<Delivery> for OneDelivery {
    fn from(delivery: Delivery) -> Self {
        let attempts = delivery.attempts.into_iter().map(|attempt| OneAttempt {
            at: moment(attempt.at),
            broker: attempt.broker,
            result: attempt.result,
            status: attempt.status,
            detail: attempt.detail,
            duration_ms: attempt.duration_ms,
        });
        Self {
            id: delivery.id,
            event: delivery.event,
            job_id: delivery.job_id.map(|id| id.to_string()),
            occurred_at: moment(delivery.occurred_at),
            state: delivery.state.as_str(),
            reason: delivery.reason,
            next_at: delivery.next_at.map(moment),
            ended_at: delivery.ended_at.map(moment),
            attempts: attempts.collect(),
        }
    }
}

/// What a receiver was told or is to be told
#[utoipa::path(get, path = "/admin/v1/webhooks/{name}/deliveries", tag = "webhooks", operation_id = "listDeliveries",
    params(("name" = String, Path, description = "the receiver's name"), Asked),
    responses((status = 200, description = "one page", body = Deliveries), Refusal))]
pub(in super::super) async fn list(
    State(admin): State<Arc<AdminState>>,
    name: Said,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Answer {
    let Query(asked) = asked.map_err(|error| ApiError::invalid("", error.body_text()))?;
    let limit = asked.limit.unwrap_or(DEFAULT_PAGE);
    if limit == 0 || limit > MAX_PAGE {
        let words = format!("a page has 1 to {MAX_PAGE} deliveries");
        return Err(ApiError::invalid("limit", words).into());
    }
    if asked.cursor.as_ref().is_some_and(|text| text.contains('\0')) {
        let words = "that is no cursor; give back next_cursor of the page before";
        return Err(ApiError::invalid("cursor", words).into());
    }
    let state = asked.state.as_deref().map(str::parse::<DeliveryState>);
    let state = state
        .transpose()
        .map_err(|words| ApiError::invalid("state", words))?;
    let (name, cursor) = (edit::text(name)?, asked.cursor.as_deref());
    let page = admin.store.delivery_page(&name, state, limit, cursor).await;
    let page = page.map_err(|error| stored(&error))?;
    let page = Deliveries {
        deliveries: page.deliveries.into_iter().map(OneDelivery::from).collect(),
        next_cursor: page.next_cursor,
    };
    Ok(fresh(StatusCode::OK, &page))
}

/// Send a delivery again, under its own id
#[utoipa::path(post, path = "/admin/v1/webhooks/{name}/deliveries/{id}/replay", tag = "webhooks",
    operation_id = "replayDelivery",
    params(("name" = String, Path, description = "the receiver's name"),
        ("id" = String, Path, description = "the delivery's id")),
    responses((status = 202, description = "it is pending", body = OneDelivery), Refusal))]
pub(in super::super) async fn replay(
    State(admin): State<Arc<AdminState>>,
    Extension(caller): Extension<Caller>,
    said: Result<Path<(String, String)>, PathRejection>,
) -> Answer {
    let Ok(Path((name, id))) = said else {
        return Err(ApiError::NotFound("Not Found".into()).into());
    };
    let actor = actor(&caller);
    let queued = admin.store.replay_delivery(&actor, Some(&name), &id).await;
    let queued = queued.map_err(|error| stored(&error))?;
    admin.webhooks.wake();
    tracing::info!(actor, receiver = name, delivery = id, "a delivery is sent again");
    Ok(fresh(StatusCode::ACCEPTED, &OneDelivery::from(queued)))
}

/// Send a receiver a test, once
#[utoipa::path(post, path = "/admin/v1/webhooks/{name}/test", tag = "webhooks", operation_id = "testWebhook",
    params(("name" = String, Path, description = "the receiver's name")),
    responses((status = 202, description = "it is pending; the list of deliveries tells how it went",
        body = OneDelivery), Refusal))]
pub(in super::super) async fn test(
    State(admin): State<Arc<AdminState>>,
    Extension(caller): Extension<Caller>,
    name: Said,
) -> Answer {
    let (name, actor) = (edit::text(name)?, actor(&caller));
    let queued = admin.store.queue_test(&actor, &name).await;
    let queued = queued.map_err(|error| stored(&error))?;
    admin.webhooks.wake();
    tracing::info!(
        actor,
        receiver = name,
        delivery = queued.id,
        "a webhook receiver is tested"
    );
    Ok(fresh(StatusCode::ACCEPTED, &OneDelivery::from(queued)))
}
