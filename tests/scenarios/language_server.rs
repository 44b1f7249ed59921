//! An editor's language server against the running broker: straight to it while that goes well, else through GitLab.

use std::time::Duration;

use duo_system_tests::harness::cluster::completion;
use duo_system_tests::harness::setup::signing_keys;
use duo_system_tests::harness::{Cluster, PATIENCE};
use duo_system_tests::language_server::{LanguageServer, Suggestion};
use duo_system_tests::rails::Rails;
use duo_system_tests::sim::Settings;
use serde_json::json;

const ABOVE: &str = "def add(a, b):\n    ";
const HOUR: Duration = Duration::from_secs(60 * 60);

/// With a key in a folder that stays, for brokers that start again.
async fn cluster() -> (Cluster, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let keys = signing_keys(folder.path());
    let builder = Cluster::builder().broker_env("DUO_SIGNING_KEYS_FILE", &keys);
    (builder.start().await, folder)
}

fn direct(suggestion: &Suggestion) -> bool {
    matches!(suggestion, Suggestion::Direct(Some(_)))
}

fn through_gitlab(suggestion: &Suggestion) -> bool {
    matches!(suggestion, Suggestion::ThroughGitlab(Some(_)))
}

#[tokio::test]
async fn an_editor_asks_directly_and_renews_its_token_in_time() {
    let (mut cluster, _keys) = cluster().await;
    let rails = Rails::new(&cluster, "alice");
    let mut editor = LanguageServer::default();
    for _ in 0..3 {
        let shown = editor.suggest(&rails, ABOVE).await;
        assert_eq!(shown, Suggestion::Direct(Some(cluster.expected(16))));
    }
    assert_eq!(editor.fetched(), 1, "one token serves for an hour");
    editor.pass(HOUR - Duration::from_secs(60));
    assert!(direct(&editor.suggest(&rails, ABOVE).await));
    assert_eq!(editor.fetched(), 1);
    editor.pass(Duration::from_secs(30));
    assert!(direct(&editor.suggest(&rails, ABOVE).await));
    assert_eq!(editor.fetched(), 2, "renewed before its end");

    // A broker that comes back knows the tokens that it made before: the key is in a file.
    cluster
        .broker
        .set("DUO_SIGNING_KEYS_FILE", &signing_keys(cluster.folder()));
    cluster.restart_broker().await;
    let through = editor.suggest(&rails, ABOVE).await;
    assert!(
        through_gitlab(&through),
        "another key: the token is not taken, {through:?}"
    );
    assert!(direct(&editor.suggest(&rails, ABOVE).await), "a new token is");
    assert_eq!(editor.fetched(), 3);
    cluster.restart_broker().await;
    assert!(
        direct(&editor.suggest(&rails, ABOVE).await),
        "the same key: so is its token"
    );
    assert_eq!(editor.fetched(), 3);
    editor.spoil_token("not.a.token");
    assert!(through_gitlab(&editor.suggest(&rails, ABOVE).await));
    assert!(direct(&editor.suggest(&rails, ABOVE).await));
    assert_eq!(editor.fetched(), 4);
}

#[tokio::test]
async fn an_editor_goes_through_gitlab_where_no_token_can_be_made() {
    let cluster = Cluster::start().await;
    let rails = Rails::new(&cluster, "alice");
    let mut editor = LanguageServer::default();
    for _ in 0..3 {
        assert!(through_gitlab(&editor.suggest(&rails, ABOVE).await));
        editor.pass(Duration::from_secs(5));
    }
    assert_eq!(editor.fetched(), 0);
    cluster.assert_clean().await;
}

#[tokio::test]
async fn an_editors_breaker_opens_by_failures_and_not_by_overload() {
    let (mut cluster, _keys) = cluster().await;
    let rails = Rails::new(&cluster, "alice");
    let mut editor = LanguageServer::default();
    assert!(direct(&editor.suggest(&rails, ABOVE).await));

    // No time left: nothing to suggest, and the editor goes on asking directly.
    cluster.sim.set(|sim| sim.ttft_ms = 60_000);
    assert_eq!(editor.suggest(&rails, ABOVE).await, Suggestion::Direct(None));
    cluster.sim.set(|sim| *sim = Settings::default());
    assert!(direct(&editor.suggest(&rails, ABOVE).await));

    // No broker for a moment: nothing comes either way, and the next question goes through GitLab.
    cluster.broker.kill().await;
    assert_eq!(editor.suggest(&rails, ABOVE).await, Suggestion::Failed);
    cluster.broker.again();
    cluster.ready(PATIENCE).await;
    assert!(
        through_gitlab(&editor.suggest(&rails, ABOVE).await),
        "the breaker is open"
    );
    editor.pass(Duration::from_secs(1));
    assert!(
        direct(&editor.suggest(&rails, ABOVE).await),
        "and closes after its pause"
    );
}

#[tokio::test]
async fn an_editor_beyond_its_share_is_answered_gently() {
    let folder = tempfile::tempdir().expect("a folder");
    let sim = Settings {
        tokens: 1000,
        pace_ms: 20,
        ..Settings::default()
    };
    let cluster = Cluster::builder()
        .sim(sim)
        .slots(4)
        .broker_env("DUO_SIGNING_KEYS_FILE", &signing_keys(folder.path()))
        .configure(|config| {
            // Long enough that nothing expires meanwhile.
            config["features"]["code_completion"] =
                json!({"model": "codegemma", "first_byte_within": "50s", "end_within": "60s"});
        })
        .start()
        .await;
    let rails = Rails::new(&cluster, "alice");
    let mut editor = LanguageServer::default();
    let busy: Vec<_> = (0..8)
        .map(|number| {
            let mut body = completion(ABOVE, true);
            // Completions of one file would replace each other.
            body["current_file"]["file_name"] = format!("file{number}.py").into();
            let call = cluster.rails("/v2/code/completions", "alice", &body);
            tokio::spawn(async move {
                if let Ok(opened) = call.try_open().await {
                    drop(opened.rest().await);
                }
            })
        })
        .collect();
    cluster.queued(8).await;
    assert_eq!(editor.suggest(&rails, ABOVE).await, Suggestion::Direct(None));
    busy.iter().for_each(tokio::task::JoinHandle::abort);
    drop(busy);
    cluster.queued(0).await;
    cluster.sim.set(|sim| *sim = Settings::default());
    assert!(direct(&editor.suggest(&rails, ABOVE).await));
    cluster.assert_clean().await;
}
