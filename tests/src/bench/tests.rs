//! The generator against a simulated model server that answers right, wrong, or not at all.

use clap::Parser;

use super::*;
use crate::sim::{Fault, Settings, Sim};

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
}

fn options(sim: &Sim, more: &[&str]) -> Options {
    let url = sim.url();
    let mut words = vec!["duo-bench", "--direct", &url, "--seconds", "1", "--warm-up", "0"];
    words.extend(more);
    let mut options = Arguments::parse_from(words).options;
    // Whatever the environment says, only the simulated server is measured here.
    (options.broker, options.jwt) = (None, None);
    options
}

fn measure(options: Options) -> anyhow::Result<Report> {
    run(&options, |_| {})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn right_answers_are_counted_and_timed() {
    let sim = Sim::start(Settings::default()).await.unwrap();
    let pid = format!("model={}", std::process::id());
    // The model server stands in for a gateway too.
    let peer = format!("peer={}", sim.url());
    let peer_pid = format!("peer={}", std::process::id());
    let options = options(
        &sim,
        &[
            "--concurrency",
            "2,4",
            "--pid",
            &pid,
            "--peer",
            &peer,
            "--pid",
            &peer_pid,
        ],
    );
    let report = tokio::task::spawn_blocking(|| measure(options))
        .await
        .unwrap()
        .unwrap();
    assert!(report.all_right(), "{report:?}");
    assert_eq!(report.rows.len(), 4 + 2 * 4);
    for row in &report.rows {
        assert!(row.first_us.p50 <= row.whole_us.p50 && row.whole_us.p50 <= row.whole_us.max);
        let used: Vec<_> = row.used.iter().map(|used| used.name.as_str()).collect();
        let expected: &[_] = match (row.scenario, row.over.as_str()) {
            ("hop", _) => &[],
            (_, "direct") => &["model", "generator"],
            _ => &["model", "peer", "generator"],
        };
        assert_eq!(used, expected, "{row:?}");
        assert_eq!(row.resident_bytes.is_some(), used.contains(&"peer"), "{row:?}");
    }
    assert_eq!(report.plot().matches("<rect").count(), 1 + 2 * 4);
    let lines = report.lines().join("\n");
    assert!(
        lines.contains("ANSWERS/S") && lines.contains("first token"),
        "{lines}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_few_wrong_answers_among_many_are_told() {
    let sim = Sim::start(Settings::default()).await.unwrap();
    let faults = vec![Fault::Cut, Fault::Abort, Fault::ErrorMid, Fault::Fail];
    sim.set(|settings| settings.next_faults.clone_from(&faults));
    let options = options(&sim, &["throughput", "--concurrency", "2"]);
    let report = tokio::task::spawn_blocking(|| measure(options))
        .await
        .unwrap()
        .unwrap();
    let wrong: u64 = report.rows.iter().map(|row| row.wrong).sum();
    assert_eq!((wrong, report.all_right()), (faults.len() as u64, false));
    assert!(report.lines().join("\n").contains("WRONG"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_token_of_many_streams_is_counted() {
    let sim = Sim::start(Settings::default()).await.unwrap();
    let pid = format!("model={}", std::process::id());
    let options = options(
        &sim,
        &["streams", "--streams", "20", "--pace-ms", "20", "--pid", &pid],
    );
    let report = tokio::task::spawn_blocking(|| measure(options))
        .await
        .unwrap()
        .unwrap();
    assert!(report.all_right(), "{report:?}");
    let [row] = &report.streams[..] else {
        panic!("{report:?}");
    };
    assert_eq!((row.ended, row.missing), (20, 0));
    // Two seconds and the ramp, at 50 a second; all of them but the first tokens have a gap.
    assert!(row.tokens >= 100 && row.gap_us.p50 > 5_000.0, "{row:?}");
    assert!(report.lines().join("\n").contains("STALLS"));
    assert_eq!(sim.settings().pace_ms, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_cut_misses_tokens() {
    let sim = Sim::start(Settings::default()).await.unwrap();
    sim.set(|settings| settings.next_faults = vec![Fault::Cut]);
    let options = options(&sim, &["streams", "--streams", "3", "--pace-ms", "20"]);
    let report = tokio::task::spawn_blocking(|| measure(options))
        .await
        .unwrap()
        .unwrap();
    assert!(
        report.streams[0].missing > 0 && report.streams[0].wrong == 1,
        "{report:?}"
    );
    assert!(!report.all_right());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_waits_on_purpose_is_not_measured() {
    let settings = Settings {
        pace_ms: 5,
        ..Settings::default()
    };
    let sim = Sim::start(settings).await.unwrap();
    let options = options(&sim, &[]);
    let error = tokio::task::spawn_blocking(|| measure(options))
        .await
        .unwrap()
        .unwrap_err();
    assert!(error.to_string().contains("pace_ms 5"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_of_every_size_are_asked() {
    let sim = Sim::start(Settings::default()).await.unwrap();
    let options = options(&sim, &["prompts", "--sizes", "1,64"]);
    let report = tokio::task::spawn_blocking(|| measure(options))
        .await
        .unwrap()
        .unwrap();
    assert!(report.all_right(), "{report:?}");
    let sizes: Vec<_> = report.prompts.iter().map(|row| row.kib).collect();
    assert_eq!(sizes, [1, 64]);
    let last = sim.last_request().unwrap().body.len();
    assert!((64_000..66_000).contains(&last), "{last}");
    assert!(report.lines().join("\n").contains("A FURTHER KIB"));
}
