//! Exports with their signed manifests, on the command line and over the API.

use std::io::Read as _;
use std::process::{Command, Stdio};

use duo_broker::audit::manifest::{Manifest, SignedManifest};
use duo_broker::audit::verify::export::{Flaw, compare};
use parquet::file::reader::{FileReader as _, SerializedFileReader};

use super::*;

const FORMATS: [&str; 4] = ["ndjson", "csv", "ocsf", "parquet"];

/// A log with a key in a file, and exports of it.
struct Exported {
    log: Log,
    keys: PathBuf,
}

impl Exported {
    async fn new(records: u64) -> Self {
        let log = Log::with(records).await;
        let keys = log.folder.path().join("keys");
        std::fs::write(&keys, &log.keys).unwrap();
        Self { log, keys }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.log.folder.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.log.database.command(arguments);
        command.env("DUO_AUDIT_KEY_FILE", &self.keys);
        command
    }

    /// Writes a file and its manifest.
    fn export(&self, name: &str, arguments: &[&str]) -> (Vec<u8>, String) {
        let mut command = self.command(&["audit", "export", "--output"]);
        let output = command.arg(self.path(name)).args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let manifest = self.path(&format!("{name}.manifest"));
        (
            std::fs::read(self.path(name)).unwrap(),
            std::fs::read_to_string(manifest).unwrap(),
        )
    }

    /// What the command says of a file and a manifest, and whether it finds them good.
    fn verify(&self, file: &[u8], manifest: &str, keys: Option<&str>) -> (bool, String) {
        let (at, with) = (self.path("file"), self.path("file.manifest"));
        std::fs::write(&at, file).unwrap();
        std::fs::write(&with, manifest).unwrap();
        let mut command = self.log.database.command(&["audit", "verify", "--manifest"]);
        command.arg(with).arg(at).env_remove("DUO_DATABASE_URL");
        if let Some(keys) = keys {
            let file = self.path("key.pub");
            let keys = SigningKeys::parse(keys).unwrap().verifying().to_string();
            std::fs::write(&file, keys).unwrap();
            command.arg("--key").arg(file);
        }
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.stderr, b"", "{said}");
        match output.status.code() {
            Some(0) => (true, said),
            Some(1) => (false, said),
            other => panic!("{other:?}: {said}"),
        }
    }
}

#[tokio::test]
async fn every_change_of_an_export_or_its_manifest_is_found() {
    let exported = Exported::new(120).await;
    let keys = Some(exported.log.keys.as_str());
    let stranger = generate_key("log").unwrap();
    for format in FORMATS {
        let (file, manifest) = exported.export(format, &["--format", format]);
        let (good, said) = exported.verify(&file, &manifest, keys);
        assert!(good && said.contains("proved: log exported this file"), "{said}");
        let compared = said.contains("1 checkpoints, 1 of them compared with the records");
        assert_eq!(compared, format == "ndjson", "{said}");
        let (good, said) = exported.verify(&file, &manifest, None);
        assert!(
            good && said.contains("not proved: who wrote the manifest"),
            "{said}"
        );

        for at in [0, file.len() / 2, file.len() - 1] {
            let mut altered = file.clone();
            altered[at] ^= 1;
            let (good, said) = exported.verify(&altered, &manifest, keys);
            assert!(
                !good && said.contains("WRONG  the file is not the one"),
                "{format} {at}: {said}"
            );
        }
        let (good, said) = exported.verify(&file[..file.len() - 2], &manifest, keys);
        assert!(!good && said.contains("bytes, and"), "{said}");

        let records = "\"records\": 1";
        let altered = manifest.replacen(records, "\"records\": 2", 1);
        assert_ne!(altered, manifest);
        let (good, said) = exported.verify(&file, &altered, keys);
        let altered = "WRONG  the manifest is signed by none of the keys, or was altered";
        assert!(!good && said.contains(altered), "{said}");
        assert!(
            said.contains("records, and 2"),
            "the file has another number: {said}"
        );
        let (good, said) = exported.verify(&file, &manifest, Some(&stranger));
        assert!(!good && said.contains(altered), "{said}");
        let text = manifest.split_once("\n\n").unwrap().0;
        let forged = SigningKeys::parse(&stranger).unwrap().note(&format!("{text}\n"));
        let (good, said) = exported.verify(&file, &forged, keys);
        assert!(!good && said.contains(altered), "{said}");
        let bare = text.split_once('\n').unwrap().1;
        let (good, said) = exported.verify(&file, bare, keys);
        assert!(
            !good && said.contains("WRONG  the manifest is not signed"),
            "{said}"
        );
    }
}

#[tokio::test]
async fn records_that_do_not_give_the_root_of_the_manifests_checkpoint_are_found() {
    let exported = Exported::new(120).await;
    let (file, manifest) = exported.export("all", &[]);
    let altered = String::from_utf8(file).unwrap().replacen("person", "nobody", 1);
    // Whoever has the log's key can sign anything, but not the past.
    let keys = SigningKeys::parse(&exported.log.keys).unwrap();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, altered.as_bytes());
    let read = SignedManifest::parse(&manifest).unwrap();
    let text = manifest.split_once("\n\n").unwrap().0;
    let text = text.replace(&read.stated.sha256, &hex(digest.as_ref()));
    let (good, said) = exported.verify(
        altered.as_bytes(),
        &keys.note(&format!("{text}\n")),
        Some(&exported.log.keys),
    );
    assert!(
        !good && said.contains("WRONG  the first 120 records do not give the root"),
        "{said}"
    );
}

#[tokio::test]
async fn a_sample_is_proved_and_its_manifest_finds_yesterdays_database() {
    let exported = Exported::new(120).await;
    let (file, manifest) = exported.export("sample", &["--sample", "25", "--seed", "s"]);
    let (good, said) = exported.verify(&file, &manifest, Some(&exported.log.keys));
    assert!(good, "{said}");
    assert!(said.contains("25 of its lines are numbered records"), "{said}");
    assert!(
        said.contains("not proved: that these records are as they were written"),
        "{said}"
    );

    let verify = |with: bool| {
        let mut command = exported.command(&["audit", "verify"]);
        if with {
            command.arg("--manifest").arg(exported.path("sample.manifest"));
        }
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    assert_eq!(verify(true).0, Some(0));
    yesterday(&exported.log, 80).await;
    let (code, said) = verify(false);
    assert_eq!(code, Some(0), "an older database is good in itself: {said}");
    let (code, said) = verify(true);
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("a checkpoint in the file has 120 records"),
        "{said}"
    );
}

#[tokio::test]
async fn a_log_without_a_key_gives_a_manifest_without_a_signature_and_says_so() {
    let database = Database::create().await;
    insert(&database.store, 5).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("all.csv");
    let mut command = database.command(&["audit", "export", "--format", "csv", "--output"]);
    let output = command.arg(&file).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.success() && said.contains("the manifest is not signed"),
        "{said}"
    );
    let text = std::fs::read_to_string(folder.path().join("all.csv.manifest")).unwrap();
    let manifest = SignedManifest::parse(&text).unwrap();
    assert!(manifest.origin.is_none() && manifest.stated.log.is_none());
    let compared = compare(&file, &manifest, None, |_| {}).unwrap();
    assert_eq!((compared.signed_by, compared.problems), (None, vec![]));
    let keys = VerifyingKeys::parse(&generate_key("log").unwrap()).unwrap();
    let compared = compare(&file, &manifest, Some(&keys), |_| {}).unwrap();
    assert_eq!(compared.problems, [Flaw::NotSigned]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_over_the_api_has_the_same_signed_manifest() {
    let log = Log::with(120).await;
    let auditor = Auditor::of(&log).await;
    let request = "/audit/v1/export?format=parquet&kind=changed";
    let (parts, body) = auditor.get(request).await;
    assert_eq!(parts.status, 200);
    assert_eq!(parts.headers["content-type"], "application/vnd.apache.parquet");
    let id: Uuid = parts.headers["x-duo-export-id"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    let reader = SerializedFileReader::new(axum::body::Bytes::from(body.clone())).unwrap();
    assert_eq!(reader.metadata().file_metadata().num_rows(), 41);

    // No writer carries records into the database here.
    let records = auditor.records().await;
    let ended = records
        .iter()
        .find(|record| record.request_id == Manifest::record_of(id));
    log.database
        .store
        .insert_audit_records(&[ended.unwrap()])
        .await
        .unwrap();
    let (parts, text) = auditor.get(&format!("/audit/v1/exports/{id}")).await;
    assert_eq!(parts.headers["content-type"], "text/plain; charset=utf-8");
    let manifest = SignedManifest::parse(std::str::from_utf8(&text).unwrap()).unwrap();
    let file = log.folder.path().join("export");
    std::fs::write(&file, body).unwrap();
    let keys = VerifyingKeys::parse(&log.keys).unwrap();
    let compared = compare(&file, &manifest, Some(&keys), |_| {}).unwrap();
    assert_eq!(
        (compared.records, compared.tree_size, compared.problems),
        (Some(41), Some(120), vec![])
    );
    assert_eq!(compared.signed_by.as_deref(), Some("log"));
}

/// Most memory that a process has had, in KiB.
fn most_memory(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    most.unwrap().trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test]
async fn a_large_parquet_export_takes_no_more_memory_than_a_smaller_one() {
    let database = Database::create().await;
    // Writes so many records of requests, exports them, and gives what that took.
    let memory_with = |seed: &str, records: &str| {
        let generate = [
            "audit",
            "generate",
            "--records",
            records,
            "--days",
            "2",
            "--seed",
            seed,
        ];
        let generated = database.command(&generate).output().unwrap();
        assert!(generated.status.success(), "{generated:?}");
        let mut export = database.command(&["audit", "export", "--format", "parquet"]);
        let export = export.stdout(Stdio::piped()).stderr(Stdio::null());
        let mut export = export.spawn().unwrap();
        let mut out = export.stdout.take().unwrap();
        let (mut file, mut most) = (Vec::new(), 0);
        let mut chunk = vec![0; 1 << 16];
        loop {
            let read = out.read(&mut chunk).unwrap();
            if read == 0 {
                break;
            }
            // It cannot have ended: the pipe is open.
            most = most_memory(export.id()).max(most);
            file.extend_from_slice(&chunk[..read]);
        }
        assert!(export.wait().unwrap().success());
        let reader = SerializedFileReader::new(axum::body::Bytes::from(file)).unwrap();
        let groups = reader.metadata().row_groups().iter();
        (most, groups.map(|group| group.num_rows()).collect::<Vec<_>>())
    };
    let (small, groups) = memory_with("1", "42000");
    assert_eq!(groups.len(), 3, "{groups:?}");
    let (large, groups) = memory_with("2", "140000");
    assert!(groups.iter().all(|rows| *rows < 21_000), "{groups:?}");
    assert!(groups.iter().sum::<i64>() > 180_000, "{groups:?}");
    // As records 140 000 more take over 100 MiB.
    assert!(large < small + 40_000, "{small} KiB, then {large} KiB");
}
