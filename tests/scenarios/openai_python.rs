//! OpenAI's own Python client library against the product.

use std::path::PathBuf;

use duo_system_tests::harness::{Cluster, program};

#[tokio::test]
async fn openais_own_client_library_is_content() {
    let python = std::env::var_os("DUO_TEST_OPENAI_PYTHON").map(PathBuf::from);
    let python = python.expect(
        "DUO_TEST_OPENAI_PYTHON names a Python with the package openai: \
         export DUO_TEST_OPENAI_PYTHON=$(tests/openai-client/prepare), as ./tests/run does",
    );
    let cluster = Cluster::builder().slots(16).start().await;
    // Made first, used last: by then the broker knows it.
    let small = cluster.cli.token("small", "client", &["--limit", "8"]).await;
    let check = concat!(env!("CARGO_MANIFEST_DIR"), "/openai-client/check.py");
    let env = [
        ("DUO_URL".to_owned(), cluster.url()),
        ("DUO_CLIENT_TOKEN".to_owned(), cluster.client_token.clone()),
        ("DUO_SMALL_TOKEN".to_owned(), small),
        ("SIM_URL".to_owned(), cluster.sim.url()),
    ];
    let (status, out, err) = program::run(&python, &[check], &env).await;
    assert!(status.success(), "{out}\n{err}");
    cluster.assert_clean().await;
}
