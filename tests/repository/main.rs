//! Rules about the repository that the compiler does not know: which package
//! may depend on what, and which words stand in one place only.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ lies in the root")
        .to_path_buf()
}

/// Direct dependencies that a package is built with, by package name.
fn dependencies() -> HashMap<String, HashSet<String>> {
    let cargo = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--offline", "--no-deps"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(
        cargo.status.success(),
        "{}",
        String::from_utf8_lossy(&cargo.stderr)
    );
    let metadata: Value = serde_json::from_slice(&cargo.stdout).expect("metadata is JSON");
    let text = |value: &Value| value.as_str().expect("a name").to_owned();
    let packages = metadata["packages"].as_array().expect("packages");
    packages
        .iter()
        .map(|package| {
            let all = package["dependencies"].as_array().expect("dependencies");
            let normal = all.iter().filter(|dependency| dependency["kind"].is_null());
            (
                text(&package["name"]),
                normal.map(|dependency| text(&dependency["name"])).collect(),
            )
        })
        .collect()
}

#[test]
fn the_contract_has_no_runtime_and_no_network() {
    let contract = &dependencies()["duo-contract"];
    for banned in [
        "tokio",
        "async-nats",
        "axum",
        "reqwest",
        "http",
        "sqlx",
        "futures-util",
    ] {
        assert!(!contract.contains(banned), "duo-contract depends on {banned}");
    }
}

#[test]
fn workers_know_no_database_and_no_broker() {
    let workers = &dependencies()["duo-workers"];
    for banned in ["duo-broker", "sqlx", "axum", "jsonwebtoken"] {
        assert!(!workers.contains(banned), "duo-workers depends on {banned}");
    }
}

#[test]
fn there_is_one_tls_backend() {
    let tree = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--offline",
            "--workspace",
            "--edges",
            "normal",
            "--prefix",
            "none",
        ])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    let tree = String::from_utf8_lossy(&tree.stdout);
    for banned in ["ring v", "openssl v", "native-tls v"] {
        assert!(
            !tree.lines().any(|line| line.starts_with(banned)),
            "a second TLS backend: {banned}"
        );
    }
    assert!(
        tree.lines().any(|line| line.starts_with("aws-lc-rs v")),
        "the one TLS backend is gone"
    );
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("the folder reads") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Source lines of the programs that hold `needle` outside the files named.
fn elsewhere(needle: &str, home: &[&str]) -> Vec<String> {
    let mut files = Vec::new();
    for folder in [
        "broker/src",
        "broker/contract/src",
        "broker/process/src",
        "workers/src",
    ] {
        sources(&root().join(folder), &mut files);
    }
    let is_home = |path: &Path| home.iter().any(|home| path.starts_with(root().join(home)));
    let mut hits = Vec::new();
    for path in files.iter().filter(|path| !is_home(path)) {
        let text = std::fs::read_to_string(path).expect("the file reads");
        hits.extend(
            text.lines()
                .filter(|line| line.contains(needle))
                .map(|line| format!("{}: {line}", path.display())),
        );
    }
    hits
}

#[test]
fn subjects_sql_and_backoff_have_one_home() {
    assert_eq!(
        elsewhere("format!(\"duo.", &["broker/contract/src/subject.rs"]),
        [""; 0]
    );
    assert_eq!(
        elsewhere("sqlx::query", &["broker/src/store", "broker/src/store.rs"]),
        [""; 0]
    );
    assert_eq!(elsewhere("backoff::", &["broker/process/src/retry.rs"]), [""; 0]);
    assert_eq!(elsewhere("unbounded_channel", &[]), [""; 0]);
}

#[test]
fn every_variable_that_a_program_reads_is_in_the_example() {
    let example = std::fs::read_to_string(root().join("deploy/example.env")).expect("the example reads");
    let mut missing = Vec::new();
    for folder in ["broker/src", "workers/src"] {
        let mut files = Vec::new();
        sources(&root().join(folder), &mut files);
        for path in files.iter().filter(|path| path.ends_with("config.rs")) {
            let text = std::fs::read_to_string(path).expect("the file reads");
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            for name in code.split('"').filter(|part| part.starts_with("DUO_")) {
                let name = name
                    .split(|c: char| c != '_' && !c.is_ascii_uppercase())
                    .next()
                    .unwrap_or_default();
                if !example.contains(&format!("{name}=")) {
                    missing.push(format!("{}: {name}", path.display()));
                }
            }
        }
    }
    assert_eq!(missing, [""; 0]);
}
