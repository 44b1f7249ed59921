//! A model server that dies in mid-stream never yields an answer that looks whole.

use duo_system_tests::harness::cluster::{agent, chat, completion, generation};
use duo_system_tests::harness::{Answer, Cluster};
use duo_system_tests::sim::{Fault, Settings};
use http::StatusCode;
use serde_json::Value;

async fn cluster() -> Cluster {
    // Three tokens are said before the fault, with time between them to be sent on.
    let sim = Settings {
        tokens: 40,
        pace_ms: 20,
        fault_after: Some(3),
        ..Settings::default()
    };
    Cluster::builder()
        .sim(sim)
        .worker_env("DUO_MODEL_IDLE_TIMEOUT", "500ms")
        .start()
        .await
}

/// Every fault that may break an answer which cannot be continued.
const FAULTS: [Fault; 5] = [
    Fault::Cut,
    Fault::ErrorMid,
    Fault::Abort,
    Fault::Stall,
    Fault::Malformed,
];

/// Makes the answer one that cannot be continued elsewhere: it has two choices.
fn two_choices(mut body: Value) -> Value {
    body["n"] = 2.into();
    body
}

/// Lets every request from now on meet this fault, so that trying again does not help. A good answer comes before:
/// it tells the worker that the server is well, else too many failures in a row would make it pause.
async fn faulty(cluster: &Cluster, fault: Fault) {
    cluster.sim.set(|sim| sim.no_faults());
    cluster
        .openai("/v1/chat/completions", &chat("well", 2, false))
        .send()
        .await
        .good();
    cluster.sim.set(|sim| sim.fault_rate_of(fault));
}

trait Faulty {
    fn no_faults(&mut self);
    fn fault_rate_of(&mut self, fault: Fault);
}

impl Faulty for Settings {
    fn no_faults(&mut self) {
        (self.cut_rate, self.stall_rate, self.abort_rate) = (0.0, 0.0, 0.0);
        (self.fail_rate, self.reset_rate) = (0.0, 0.0);
        (self.error_mid_rate, self.malformed_rate) = (0.0, 0.0);
    }

    fn fault_rate_of(&mut self, fault: Fault) {
        self.no_faults();
        match fault {
            Fault::Cut => self.cut_rate = 1.0,
            Fault::Stall => self.stall_rate = 1.0,
            Fault::Abort => self.abort_rate = 1.0,
            Fault::ErrorMid => self.error_mid_rate = 1.0,
            Fault::Malformed => self.malformed_rate = 1.0,
            Fault::Fail => self.fail_rate = 1.0,
            Fault::Reset => self.reset_rate = 1.0,
        }
    }
}

#[tokio::test]
async fn an_openai_stream_that_breaks_says_so_and_never_looks_whole() {
    let cluster = cluster().await;
    for fault in FAULTS {
        faulty(&cluster, fault).await;
        let body = two_choices(chat("hello", 40, true));
        let answer = cluster.openai("/v1/chat/completions", &body).send().await;
        assert_eq!(answer.status, StatusCode::OK, "{fault:?}: {answer}");
        assert!(!answer.looks_whole(), "{fault:?}: {answer}");
        assert!(
            answer.broken.is_some() || answer.text().contains("\"error\""),
            "{fault:?}: {answer}"
        );
    }
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_raw_stream_that_breaks_is_cut() {
    let cluster = cluster().await;
    for fault in FAULTS {
        faulty(&cluster, fault).await;
        let body = completion("x = ", true);
        let answer = cluster.rails("/v2/code/completions", "alice", &body).send().await;
        assert_broken(&answer, fault);
        faulty(&cluster, fault).await;
        let body = generation("add", true);
        let answer = cluster.rails("/v3/code/completions", "alice", &body).send().await;
        assert_broken(&answer, fault);
    }
    cluster.assert_clean().await;
}

/// Broken off after the 200, or refused with a status before it.
fn assert_broken(answer: &Answer, fault: Fault) {
    let honest = answer.broken.is_some() || answer.status == StatusCode::SERVICE_UNAVAILABLE;
    assert!(honest, "{fault:?}: {answer}");
}

#[tokio::test]
async fn a_v4_stream_that_breaks_has_no_end_event() {
    let cluster = cluster().await;
    for fault in FAULTS {
        faulty(&cluster, fault).await;
        let answer = cluster
            .rails("/v4/code/suggestions", "alice", &generation("add", true))
            .send()
            .await;
        assert!(!answer.text().contains("stream_end"), "{fault:?}: {answer}");
        assert_broken(&answer, fault);
    }
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_chat_turn_that_breaks_ends_with_an_error_event() {
    let cluster = cluster().await;
    for fault in FAULTS {
        faulty(&cluster, fault).await;
        let answer = cluster
            .rails("/v2/chat/agent", "alice", &agent("hello"))
            .send()
            .await;
        let text = answer.text();
        assert_eq!(answer.status, StatusCode::OK, "{fault:?}: {answer}");
        let last: Value = serde_json::from_str(text.lines().last().unwrap_or_default()).unwrap_or_default();
        assert_eq!(last["type"], "error", "{fault:?}: {answer}");
        assert!(!text.contains("\"stop\""), "{fault:?}: {answer}");
    }
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_whole_answer_that_breaks_is_an_error() {
    let cluster = cluster().await;
    faulty(&cluster, Fault::Reset).await;
    let body = chat("hello", 40, false);
    let openai = cluster.openai("/v1/chat/completions", &body).send().await;
    assert_eq!(openai.status, StatusCode::BAD_GATEWAY, "{openai}");
    assert!(openai.json()["error"]["message"].is_string());
    faulty(&cluster, Fault::Reset).await;
    let body = completion("x", false);
    let code = cluster.rails("/v2/code/completions", "alice", &body).send().await;
    // Someone who types is told nothing when the time for trying again runs out.
    let nothing = code.status == StatusCode::OK && code.json()["choices"] == serde_json::json!([]);
    assert!(
        nothing || code.status == StatusCode::SERVICE_UNAVAILABLE,
        "{code}"
    );
    faulty(&cluster, Fault::Reset).await;
    let inputs = serde_json::json!({"inputs": {"diff": "+1"}});
    let prompt = cluster
        .rails("/v1/prompts/generate_commit_message", "alice", &inputs)
        .send()
        .await;
    assert_eq!(prompt.status, StatusCode::MISDIRECTED_REQUEST, "{prompt}");
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_model_server_that_goes_away_in_mid_stream_breaks_every_stream() {
    let cluster = cluster().await;
    cluster.sim.set(|sim| (sim.tokens, sim.pace_ms) = (1000, 50));
    let body = two_choices(chat("hello", 1000, true));
    let mut stream = cluster.openai("/v1/chat/completions", &body).open().await;
    stream.until(|text| text.matches("data: ").count() > 3).await;
    cluster.sim.kill().await;
    let answer = stream.rest().await;
    assert!(!answer.looks_whole(), "{answer}");
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_server_that_fails_before_its_first_word_is_asked_again() {
    let cluster = cluster().await;
    cluster
        .sim
        .set(|sim| sim.next_faults = vec![Fault::Reset, Fault::Fail]);
    let answer = cluster
        .openai("/v1/chat/completions", &chat("hello", 5, true))
        .send()
        .await
        .good();
    assert_eq!(answer.said(), cluster.expected(5));
    cluster.assert_clean().await;
}
