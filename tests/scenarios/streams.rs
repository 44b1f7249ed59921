//! Many streams at once.

use duo_system_tests::harness::Cluster;
use duo_system_tests::harness::cluster::{answer_to, chat};
use duo_system_tests::sim::Settings;
use futures_util::future::join_all;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_streams_through_one_worker_have_every_byte_right() {
    const STREAMS: usize = 200;
    const WORDS: usize = 50;
    let sim = Settings {
        tokens: WORDS,
        ttft_ms: 20,
        pace_ms: 10,
        ..Settings::default()
    };
    let cluster = Cluster::builder().sim(sim).slots(STREAMS).start().await;
    let streams = (0..STREAMS).map(|number| {
        let cluster = &cluster;
        async move {
            let question = format!("question number {number}");
            let answer = cluster
                .openai("/v1/chat/completions", &chat(&question, WORDS, true))
                .send()
                .await
                .good();
            assert_eq!(answer.said(), answer_to(&question, WORDS), "stream {number}");
            assert_eq!(
                answer.events().last().map(String::as_str),
                Some("[DONE]"),
                "stream {number}"
            );
        }
    });
    join_all(streams).await;
    assert_eq!(cluster.sim.stats().finished, STREAMS as u64);
    cluster.assert_clean().await;
}
