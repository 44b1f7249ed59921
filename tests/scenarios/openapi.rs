//! schemathesis reads the administration API's own document and tries what it promises, with values that nobody thought of.

use std::path::PathBuf;
use std::process::Stdio;

use duo_system_tests::harness::{Cluster, PATIENCE};
use tokio::process::Command;
use tokio::time::timeout;

/// What is asked of each answer: no fault of ours, and nothing that the document does not say.
const CHECKS: &str =
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance";
/// Values tried with each operation; `DUO_TEST_EXAMPLES` sets another number.
const EXAMPLES: &str = "15";

#[tokio::test]
async fn the_administration_api_answers_as_its_document_says_whatever_comes() {
    let schemathesis = std::env::var_os("DUO_TEST_SCHEMATHESIS").map(PathBuf::from);
    let schemathesis = schemathesis.expect(
        "DUO_TEST_SCHEMATHESIS names the program schemathesis: \
         export DUO_TEST_SCHEMATHESIS=$(tests/schemathesis/prepare), as ./tests/run does",
    );
    let cluster = Cluster::builder().start().await;
    let token = cluster.cli.token("fuzz", "admin", &[]).await;
    let folder = tempfile::tempdir().expect("a folder");
    let document = folder.path().join("openapi.json");
    std::fs::write(&document, cluster.cli.succeed(&["openapi"]).await).expect("writes");
    let examples = std::env::var_os("DUO_TEST_EXAMPLES").and_then(|number| number.into_string().ok());
    let examples = examples.unwrap_or_else(|| EXAMPLES.to_owned());
    let authorization = format!("Authorization: Bearer {token}");
    let url = cluster.url();
    let document = document.display().to_string();
    let arguments = [
        "run",
        &document,
        "--url",
        &url,
        "--header",
        &authorization,
        "--checks",
        CHECKS,
        "--phases",
        "examples,coverage,fuzzing",
        "--max-examples",
        &examples,
        "--seed",
        "1",
        "--generation-database",
        "none",
        "--suppress-health-check",
        "all",
        "--no-color",
    ];
    // It leaves notes for a replay where it runs.
    let output = Command::new(&schemathesis)
        .args(arguments)
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(PATIENCE * 4, output)
        .await
        .expect("in time")
        .expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{errors}");
    cluster.assert_clean().await;
}
