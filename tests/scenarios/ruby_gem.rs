//! The Ruby gem of `deploy/rails`: its own tests, and itself with real ActiveJob and Sidekiq against the product.

use std::path::{Path, PathBuf};

use duo_system_tests::harness::program::free_port;
use duo_system_tests::harness::{Cluster, program};

const CHECK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/ruby-client/check.rb");
const WEBHOOK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/ruby-client/webhook.rb");
const GEM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/rails");

fn ruby() -> PathBuf {
    let ruby = std::env::var_os("DUO_TEST_RUBY").map(PathBuf::from);
    ruby.expect(
        "DUO_TEST_RUBY names a Ruby with ActiveJob, Sidekiq and minitest: \
         export DUO_TEST_RUBY=$(tests/ruby-client/prepare), as ./tests/run does",
    )
}

/// Runs an example by itself, as its first lines say.
async fn example(name: &str, env: &[(String, String)]) -> String {
    let gem = Path::new(GEM);
    let (lib, example) = (gem.join("lib"), gem.join("examples").join(name));
    let words = ["-I", text(&lib), text(&example), "why is the sky blue?"];
    let (status, out, err) = program::run(&ruby(), &words, env).await;
    assert!(status.success(), "{name}: {out}\n{err}");
    out
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

#[tokio::test]
async fn the_gems_own_tests_pass() {
    let gem = Path::new(GEM);
    let (lib, test, all) = (gem.join("lib"), gem.join("test"), gem.join("test/all.rb"));
    let words = ["-w", "-I", text(&lib), "-I", text(&test), text(&all)];
    let (status, out, err) = program::run(&ruby(), &words, &[]).await;
    assert!(status.success(), "{out}\n{err}");
    assert!(out.contains(" 0 failures, 0 errors, 0 skips"), "{out}");
}

#[tokio::test]
async fn the_gem_submits_once_waits_follows_and_cancels_with_active_job_and_sidekiq() {
    let cluster = Cluster::builder().slots(16).start().await;
    let env = [
        ("DUO_URL".to_owned(), cluster.url()),
        ("DUO_CLIENT_TOKEN".to_owned(), cluster.client_token.clone()),
        ("SIM_URL".to_owned(), cluster.sim.url()),
    ];
    let (status, out, err) = program::run(&ruby(), &[CHECK], &env).await;
    assert!(status.success(), "{out}\n{err}");
    for name in ["active_job.rb", "sidekiq.rb"] {
        let out = example(name, &env).await;
        let state = out.lines().next().and_then(|line| line.split(' ').nth(1));
        assert_eq!(state, Some("succeeded"), "{name}: {out}");
        assert!(out.lines().count() > 1, "{name} prints an answer: {out}");
    }
    cluster.assert_clean().await;
}

/// What the broker sends is what the gem checks.
#[tokio::test]
async fn the_gem_trusts_the_brokers_own_webhook_and_no_other() {
    let cluster = Cluster::start().await;
    let port = free_port().to_string();
    let url = format!("http://localhost:{port}/duo/webhook");
    let add = [
        "webhooks",
        "add",
        "rails",
        &url,
        "--address",
        "127.0.0.0/8",
        "--address",
        "::1",
    ];
    let secret = cluster.cli.succeed(&add).await;
    let env = [
        ("DUO_URL".to_owned(), cluster.url()),
        ("DUO_CLIENT_TOKEN".to_owned(), cluster.client_token.clone()),
        ("DUO_WEBHOOK_SECRETS".to_owned(), secret.trim().to_owned()),
        ("WEBHOOK_PORT".to_owned(), port),
    ];
    let (status, out, err) = program::run(&ruby(), &[WEBHOOK], &env).await;
    assert!(status.success(), "{out}\n{err}");
    assert_eq!(out, "fine\n");
    cluster.assert_clean().await;
}
