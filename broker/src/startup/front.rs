//! The API's listener: serves until the drain, then waits for what is under way.

use std::time::Duration;

use axum::Router;
use axum::middleware::map_response;
use axum::response::Response;
use duo_process::admin::Readiness;
use duo_process::shutdown::Shutdown;
use http::{HeaderValue, header};
use tokio::net::TcpListener;

use super::intake::Intake;
use crate::api::Peer;

/// Load balancers see the readiness go before connections are refused.
const READINESS_LEAD: Duration = Duration::from_millis(200);
/// How long a connection that was taken last has for its first bytes; then connections without a request are closed.
const FIRST_BYTES: Duration = Duration::from_millis(500);

/// How long the ends of cut requests may take to reach their clients.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What a drain waits for beside requests, how long for all, and what ends it.
pub(super) struct UnderWay<F, C> {
    /// The bound.
    pub(super) grace: Duration,
    /// Ends with the last of what is under way without a client.
    pub(super) besides: F,
    /// Ends requests that are not over by then.
    pub(super) cut: C,
}

/// Serves `app` until `shutdown` begins, then finishes what is under way for as long as the grace; true if all of it
/// ended in time. Otherwise it is cut, and its clients are told.
pub(super) async fn serve(
    listener: TcpListener,
    app: Router,
    shutdown: &Shutdown,
    readiness: &Readiness,
    under_way: UnderWay<impl Future<Output = ()>, impl FnOnce()>,
) -> bool {
    let UnderWay { grace, besides, cut } = under_way;
    let (close, closed) = (Shutdown::new(), Shutdown::new());
    let intake = match Intake::new(listener, close.clone(), closed.clone()) {
        Ok(intake) => intake,
        Err(error) => {
            tracing::error!(error = %error, "the API's listener failed");
            return true;
        }
    };
    let drain = {
        let (shutdown, readiness) = (shutdown.clone(), readiness.clone());
        async move {
            shutdown.begun().await;
            readiness.drain();
            tokio::time::sleep(READINESS_LEAD).await;
            close.begin();
            closed.begun().await;
            tokio::time::sleep(FIRST_BYTES).await;
        }
    };
    let draining = shutdown.clone();
    let app = app.layer(map_response(move |response| {
        std::future::ready(parting(&draining, response))
    }));
    let make = app.into_make_service_with_connect_info::<Peer>();
    let served = axum::serve(intake, make)
        .with_graceful_shutdown(drain)
        .into_future();
    let mut served = std::pin::pin!(served);
    tokio::select! {
        result = &mut served => {
            if let Err(error) = result {
                tracing::error!(error = %error, "the API's listener failed");
            }
            return true;
        }
        () = shutdown.begun() => {}
    }
    let mut is_served = false;
    let all = async {
        let _ = (&mut served).await;
        is_served = true;
        besides.await;
    };
    tokio::select! {
        () = all => return true,
        () = tokio::time::sleep(grace) => {}
        () = shutdown.aborted() => {}
    }
    cut();
    if !is_served {
        // Who does not read its last words does without.
        let _ = tokio::time::timeout(LAST_WORDS, served).await;
    }
    false
}

/// During the drain each answer tells its client to take the next request elsewhere, instead of having it find a
/// connection closed.
fn parting(shutdown: &Shutdown, mut response: Response) -> Response {
    if shutdown.is_begun() {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    response
}
