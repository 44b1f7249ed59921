//! The API's listener: serves until the drain, then waits for what is under way.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::serve::ListenerExt as _;
use duo_process::admin::Readiness;
use duo_process::shutdown::Shutdown;
use tokio::net::TcpListener;

/// Load balancers see the readiness go before connections are refused.
const READINESS_LEAD: Duration = Duration::from_millis(200);

/// How long the ends of cut requests may take to reach their clients.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Serves `app` until `shutdown` begins, then finishes requests under way for
/// `grace` at most; true if all of them ended in time. Otherwise `cut` ends
/// them, and their clients are told.
pub(super) async fn serve(
    listener: TcpListener,
    app: Router,
    shutdown: &Shutdown,
    readiness: &Readiness,
    grace: Duration,
    cut: impl FnOnce(),
) -> bool {
    let listener = listener.tap_io(|socket| {
        if let Err(error) = socket.set_nodelay(true) {
            tracing::debug!(error = %error, "a socket keeps its delay");
        }
    });
    let drain = {
        let (shutdown, readiness) = (shutdown.clone(), readiness.clone());
        async move {
            shutdown.begun().await;
            readiness.drain();
            tokio::time::sleep(READINESS_LEAD).await;
        }
    };
    let make = app.into_make_service_with_connect_info::<SocketAddr>();
    let served = axum::serve(listener, make)
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
    tokio::select! {
        _ = &mut served => return true,
        () = tokio::time::sleep(grace) => {}
        () = shutdown.aborted() => {}
    }
    cut();
    // Who does not read its last words does without.
    let _ = tokio::time::timeout(LAST_WORDS, served).await;
    false
}
