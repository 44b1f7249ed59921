//! Behaviour of [`Shutdown`]; but for the signals, on a paused clock.

use std::future::pending;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::time::{Instant, sleep, timeout};

use super::*;

const GRACE: Duration = Duration::from_secs(30);

#[tokio::test(start_paused = true)]
async fn a_task_that_ends_inside_the_grace_is_waited_for() {
    let shutdown = Shutdown::new();
    let start = Instant::now();
    let task = shutdown.clone();
    shutdown.spawn("worker", async move {
        task.begun().await;
        sleep(Duration::from_secs(7)).await;
    });

    shutdown.begin();
    assert!(shutdown.is_begun());
    assert!(shutdown.drained(GRACE).await);
    assert_eq!(start.elapsed(), Duration::from_secs(7));
}

#[tokio::test(start_paused = true)]
async fn a_stuck_task_is_dropped_when_the_grace_is_over() {
    struct Flag(Arc<AtomicBool>);
    impl Drop for Flag {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let shutdown = Shutdown::new();
    let dropped = Arc::new(AtomicBool::new(false));
    let flag = Flag(Arc::clone(&dropped));
    shutdown.spawn("stuck", async move {
        let _flag = flag;
        pending::<()>().await;
    });
    let start = Instant::now();

    assert!(!shutdown.drained(GRACE).await);
    assert_eq!(start.elapsed(), GRACE);
    assert!(dropped.load(Ordering::SeqCst));
    shutdown.aborted().await;
}

#[tokio::test(start_paused = true)]
async fn an_abort_cuts_the_grace_short() {
    let shutdown = Shutdown::new();
    shutdown.spawn("stuck", pending());
    let aborter = shutdown.clone();
    shutdown.spawn("aborter", async move {
        sleep(Duration::from_secs(3)).await;
        aborter.abort();
    });
    let start = Instant::now();

    assert!(!shutdown.drained(GRACE).await);
    assert_eq!(start.elapsed(), Duration::from_secs(3));
}

#[tokio::test(start_paused = true)]
async fn a_panic_ends_its_task_alone() {
    let shutdown = Shutdown::new();
    shutdown.spawn("broken", async { panic!("a test's panic") });
    shutdown.spawn("sound", sleep(Duration::from_secs(1)));

    assert!(shutdown.drained(GRACE).await);
    assert!(!shutdown.is_begun());
}

#[tokio::test(start_paused = true)]
async fn a_task_may_start_another_while_draining() {
    let shutdown = Shutdown::new();
    let outer = shutdown.clone();
    shutdown.spawn("outer", async move {
        outer.begun().await;
        outer.spawn("inner", sleep(Duration::from_secs(2)));
    });
    let start = Instant::now();

    shutdown.begin();
    assert!(shutdown.drained(GRACE).await);
    assert_eq!(start.elapsed(), Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn with_no_tasks_the_drain_is_over_at_once() {
    let start = Instant::now();
    assert!(Shutdown::new().drained(GRACE).await);
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test]
async fn the_first_signal_begins_and_the_second_aborts() {
    let shutdown = Shutdown::new();
    shutdown.listen_to_signals();

    send_to_self("-TERM");
    timeout(GRACE, shutdown.begun())
        .await
        .expect("SIGTERM begins the shutdown");
    assert!(shutdown.aborted().now_or_never().is_none());

    send_to_self("-INT");
    timeout(GRACE, shutdown.aborted())
        .await
        .expect("a second signal aborts");
}

#[test]
fn a_panic_keeps_its_message() {
    assert_eq!(panic_text(&"literal"), "literal");
    assert_eq!(panic_text(&String::from("formatted")), "formatted");
    assert_eq!(panic_text(&7), "no message");
}

fn send_to_self(signal: &str) {
    let sent = Command::new("kill")
        .args([signal, &std::process::id().to_string()])
        .status();
    assert!(sent.expect("the kill program runs").success());
}
