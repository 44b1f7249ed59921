use futures_util::StreamExt;
use http::{Method, StatusCode};
use tower::ServiceExt;

use super::*;

#[test]
fn a_slash_at_the_end_is_redirected_away_and_never_to_another_host() {
    let redirect = |path: &str| {
        without_slash(&path.parse().expect("a path"))
            .map(|response| response.headers()["location"].to_str().expect("text").to_owned())
    };
    assert_eq!(
        redirect("/v2/code/completions/?a=b").as_deref(),
        Some("/v2/code/completions?a=b")
    );
    assert_eq!(redirect("/nope"), None);
    assert_eq!(redirect("/"), None);
    assert_eq!(redirect("//elsewhere.example/"), None);
}

#[tokio::test]
async fn what_a_refusal_leaves_of_a_body_is_read_up_to_the_limit_and_in_bounded_time() {
    let refuse = || async { StatusCode::TOO_MANY_REQUESTS };
    let routes = || {
        Router::new()
            .route("/", post(refuse))
            .layer(from_fn(edge::absorb))
    };
    let left = |body: axum::body::Body, expect: bool| async move {
        let mut request = Request::builder().method(Method::POST).uri("/");
        if expect {
            request = request.header("expect", "100-continue");
        }
        let response = routes()
            .oneshot(request.body(body).expect("a request"))
            .await
            .expect("infallible");
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    };
    let counted = |pieces: usize| {
        let read = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counter = Arc::clone(&read);
        let pieces = futures_util::stream::iter(0..pieces).map(move |_| {
            counter.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            Ok::<_, std::io::Error>(bytes::Bytes::from(vec![b'x'; 1 << 20]))
        });
        (axum::body::Body::from_stream(pieces), read)
    };
    for (pieces, expect, expected) in [(3, false, 3), (40, false, 5), (3, true, 0)] {
        let (body, read) = counted(pieces);
        left(body, expect).await;
        assert_eq!(read.load(std::sync::atomic::Ordering::SeqCst), expected);
    }
    tokio::time::pause();
    let endless = futures_util::stream::pending::<Result<bytes::Bytes, std::io::Error>>();
    left(axum::body::Body::from_stream(endless), false).await;
}
