//! Configuration, tokens and audit records against a real PostgreSQL and a real nats-server.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "store/search.rs"]
mod search;
#[path = "support/servers.rs"]
mod servers;

use std::path::Path;
use std::time::Duration;

use async_nats::jetstream;
use duo_broker::audit::writer::{self, WriterMetrics};
use duo_broker::config_file::{self, Applied, ApplyError};
use duo_broker::jobs::state::JobState;
use duo_broker::relay;
use duo_broker::store::api_tokens::NewToken;
use duo_broker::store::audit_open::Place;
use duo_broker::store::audit_search::{Cursor, Filter};
use duo_broker::store::jobs::{Fence, JobEnd};
use duo_broker::store::support_levels::level_of;
use duo_broker::store::{PoolConfig, Store, StoreError};
use duo_contract::audit::{AuditKind, AuditRecord, End, Outcome, What, Who};
use duo_contract::name::{FeatureName, Lane, ModelName};
use duo_contract::snapshot::{ConfigSnapshot, IdentitySnapshot, PromptOverride, Role, SupportLevel};
use duo_contract::subject;
use duo_process::nats::Nats;
use duo_process::shutdown::Shutdown;
use prometheus::Registry;
use secrecy::ExposeSecret as _;
use uuid::Uuid;

use self::servers::{Database, admin, nats};

const FAMILIES: [&str; 5] = [
    "mistral_7b",
    "mixtral_8x7b",
    "mixtral_8x22b",
    "codegemma_7b",
    "codegemma_2b",
];

/// The blueprint's table, one letter per family.
const TABLE: [(&str, &str); 16] = [
    ("duo_chat", "EEEEE"),
    ("code_completion", "NNNSS"),
    ("code_generation", "SSSEE"),
    ("git_suggestions", "EEEEE"),
    ("discussion_summary", "EEEEE"),
    ("issue_description_generation", "EEEEE"),
    ("test_generation", "EEEEE"),
    ("merge_request_template_population", "EEEEE"),
    ("suggested_reviewers", "EEEEE"),
    ("merge_request_summary", "EEEEE"),
    ("code_review_summary", "EEEEE"),
    ("vulnerability_explanation", "NEEEE"),
    ("vulnerability_resolution", "EEEEE"),
    ("code_explanation", "EEEEE"),
    ("root_cause_analysis", "EEEEE"),
    ("value_stream_forecasting", "EEEEE"),
];

const MODELS: &str = "models:
  - {name: mistral, family: mistral_7b, context_tokens: 32768, max_output_tokens: 4096}
  - {name: codegemma, family: codegemma_7b, context_tokens: 8192, max_output_tokens: 1024}
";

fn any_prompt(_: &PromptOverride) -> Result<(), String> {
    Ok(())
}

async fn apply(store: &Store, text: &str) -> Result<Applied, Vec<String>> {
    let texts =
        |problems: Vec<config_file::Problem>| problems.iter().map(ToString::to_string).collect::<Vec<_>>();
    let file = config_file::parse(text, Some(Path::new(".")), &any_prompt).map_err(texts)?;
    match config_file::apply(store, &file, "tester", None, &any_prompt).await {
        Ok(applied) => Ok(applied),
        Err(ApplyError::Refused(problems)) => Err(texts(problems)),
        Err(other) => panic!("{other:?}"),
    }
}

fn feature(name: &str) -> FeatureName {
    FeatureName::parse(name).unwrap()
}

#[tokio::test]
async fn the_seeds_are_the_blueprints_table() {
    let database = Database::create().await;
    let (config, identities) = database.store.snapshots().await.unwrap();
    assert_eq!((config.revision, identities.revision), (1, 1));

    for (name, letters) in TABLE {
        for (family, letter) in FAMILIES.iter().zip(letters.chars()) {
            let expected = match letter {
                'S' => SupportLevel::Supported,
                'N' => SupportLevel::NotSupported,
                _ => SupportLevel::ToBeEvaluated,
            };
            let row = config
                .support_levels
                .iter()
                .find(|row| row.feature.as_str() == name && row.family == *family);
            assert_eq!(row.map(|row| row.level), Some(expected), "{name} with {family}");
        }
    }
    let level = |name: &str, family: &str| level_of(config.support_levels.iter(), &feature(name), family);
    assert_eq!(level("openai_chat", "whatever"), SupportLevel::Supported);
    assert_eq!(
        level("review_merge_request", "mistral_7b"),
        SupportLevel::ToBeEvaluated
    );
    assert_eq!(
        level("code_completion", "starcoder_3b"),
        SupportLevel::ToBeEvaluated
    );

    let active: Vec<_> = config
        .features
        .iter()
        .filter(|f| f.active)
        .map(|f| f.name.as_str())
        .collect();
    assert_eq!(active, ["openai_chat", "openai_completion", "openai_embedding"]);
    assert_eq!(config.features.len(), 29);
    let found = |name: &str| config.features.iter().find(|f| f.name.as_str() == name).unwrap();
    let completion = found("code_completion");
    assert_eq!(completion.lane, Lane::Keystroke);
    assert_eq!(
        (completion.first_byte_within_ms, completion.end_within_ms),
        (2500, 2500)
    );
    assert_eq!(
        (
            found("duo_chat").first_byte_within_ms,
            found("duo_chat").end_within_ms
        ),
        (50_000, 600_000)
    );
    assert_eq!(found("categorize_question").end_within_ms, 12_000);
}

#[tokio::test]
async fn every_prompt_belongs_to_a_seeded_feature() {
    let database = Database::create().await;
    let (config, _) = database.store.snapshots().await.unwrap();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("prompts")];
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            if entry.path().is_dir() {
                folders.push(entry.path());
                continue;
            }
            let text = std::fs::read_to_string(entry.path()).unwrap();
            if let Some(name) = text.lines().find_map(|line| line.strip_prefix("feature: ")) {
                assert!(
                    config.features.iter().any(|f| f.name.as_str() == name),
                    "no feature {name}"
                );
                seen += 1;
            }
        }
    }
    assert!(seen > 30, "only {seen} prompts found");
}

#[tokio::test]
async fn migrations_run_twice_and_together() {
    let database = Database::empty().await;
    let (first, second) = tokio::join!(database.store.migrate(), database.store.migrate());
    first.unwrap();
    second.unwrap();
    assert_eq!(database.store.migrate().await.unwrap(), []);
    assert!(database.store.missing_rights().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_pair_that_is_not_supported_is_refused_with_its_names() {
    let database = Database::create().await;
    let text = format!("{MODELS}features:\n  code_completion: {{model: mistral}}\n");
    let problems = apply(&database.store, &text).await.unwrap_err();
    assert_eq!(problems.len(), 1);
    for part in [
        "line 5, column 28",
        "code_completion",
        "mistral_7b",
        "not_supported",
    ] {
        assert!(problems[0].contains(part), "{part} is missing: {}", problems[0]);
    }
    let (config, _) = database.store.snapshots().await.unwrap();
    assert_eq!((config.revision, config.models.len()), (1, 0));
}

#[tokio::test]
async fn a_pair_to_be_evaluated_needs_an_acknowledgement_which_is_kept() {
    let database = Database::create().await;
    let plain =
        format!("{MODELS}features:\n  duo_chat: {{model: mistral}}\n  code_generation: {{model: mistral}}\n");
    let problems = apply(&database.store, &plain).await.unwrap_err();
    assert_eq!(problems.len(), 1);
    assert!(
        problems[0].contains("duo_chat") && problems[0].contains("acknowledge"),
        "{}",
        problems[0]
    );

    let answered = plain.replace(
        "duo_chat: {",
        "duo_chat: {acknowledge: \"tried by the platform team\", ",
    );
    assert_eq!(apply(&database.store, &answered).await.unwrap().revision, 2);
    let state = database.store.config_state().await.unwrap();
    let chat = state
        .features
        .iter()
        .find(|row| row.feature.name.as_str() == "duo_chat")
        .unwrap();
    let given = chat.acknowledgement.as_ref().unwrap();
    assert_eq!(
        (given.by.as_str(), given.family.as_str()),
        ("tester", "mistral_7b")
    );
    assert_eq!(given.text, "tried by the platform team");
    assert_eq!(
        database
            .count("SELECT count(*) FROM change_records WHERE what = 'feature.put' AND subject = 'duo_chat' AND revision = 2 AND after->'acknowledgement'->>'text' = 'tried by the platform team'")
            .await,
        1
    );

    // The acknowledgement stands for its family: it need not be repeated for it, and is worth nothing for another.
    assert_eq!(apply(&database.store, &plain).await.unwrap().edits, []);
    let other = "features:\n  duo_chat: {model: codegemma}\n";
    assert!(apply(&database.store, other).await.unwrap_err()[0].contains("codegemma_7b"));
}

#[tokio::test]
async fn a_level_that_changes_has_an_author_and_a_reason() {
    let database = Database::create().await;
    apply(
        &database.store,
        &format!("{MODELS}features:\n  code_generation: {{model: mistral}}\n"),
    )
    .await
    .unwrap();
    let raise = "support_levels:\n  - {feature: duo_chat, family: mistral_7b, level: supported, reason: trials}\n\
                 features:\n  duo_chat: {model: mistral}\n";
    apply(&database.store, raise).await.unwrap();
    assert_eq!(
        database
            .count("SELECT count(*) FROM support_levels WHERE reason = 'trials' AND changed_by = 'tester'")
            .await,
        1
    );
    let lower = raise
        .replace("supported", "not_supported")
        .replace("features:\n  duo_chat: {model: mistral}\n", "");
    let problems = apply(&database.store, &lower).await.unwrap_err();
    assert!(problems[0].contains("features.duo_chat.model"), "{}", problems[0]);
    let gone = "models: []\n";
    let problems = apply(&database.store, gone).await.unwrap_err();
    assert_eq!(
        problems.len(),
        2,
        "both assignments would lose their model: {problems:?}"
    );
}

#[tokio::test]
async fn an_export_applies_to_the_same_state() {
    let database = Database::create().await;
    let text = format!(
        "{MODELS}features:
  code_completion: {{model: codegemma, first_byte_within: 1999ms, end_within: 2s, bodies: digest}}
  duo_chat: {{model: mistral, acknowledge: \"it's \\\"fine\\\": yes\", end_within: 1h}}
  openai_completion: inactive
issuers:
  - {{url: \"http://127.0.0.1:9000\", audience: gitlab-ai-gateway, openai: true}}
support_levels:
  - {{feature: duo_chat, family: mixtral_8x7b, level: not_supported, reason: \"no: too slow\"}}
prompts:
  - {{id: chat/explain_code, family: base, text: \"---\\nversion: 1.0.0\\n---\\n  a\\tb # no comment\\n\\n\\n\"}}
  - {{id: chat/write_tests, family: mistral, text: \" leading and no last line break\\n{{% if x -%}}\"}}
"
    );
    apply(&database.store, &text).await.unwrap();
    let state = database.store.config_state().await.unwrap();
    let exported = config_file::export(&state);
    assert_eq!(
        apply(&database.store, &exported).await.unwrap().edits,
        [],
        "{exported}"
    );

    let fresh = Database::create().await;
    apply(&fresh.store, &exported).await.unwrap();
    let mut copy = fresh.store.config_state().await.unwrap();
    for (copied, original) in copy.features.iter_mut().zip(&state.features) {
        if let (Some(copied), Some(original)) = (&mut copied.acknowledgement, &original.acknowledgement) {
            copied.at = original.at;
        }
    }
    assert_eq!(copy, state, "{exported}");
}

#[tokio::test]
async fn a_file_with_mistakes_is_refused_whole_with_every_mistake() {
    let database = Database::create().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("duo.yaml");
    let bad = format!(
        "{MODELS}features:\n  no_such_feature: inactive\n  duo_chat: {{model: absent}}\n  openai_chat: {{model: mistral}}\n  code_completion: active\n"
    );
    std::fs::write(&path, &bad).unwrap();
    for command in ["check", "apply"] {
        let output = database
            .command(&["config", command, path.to_str().unwrap()])
            .output()
            .unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(78), "{told}");
        for part in ["line 5", "line 6", "line 7", "line 8", "4 problems"] {
            assert!(told.contains(part), "{part} is missing: {told}");
        }
    }
    let (config, _) = database.store.snapshots().await.unwrap();
    assert_eq!((config.revision, config.models.len()), (1, 0));
    assert_eq!(database.count("SELECT count(*) FROM change_records").await, 0);
}

#[tokio::test]
async fn the_program_applies_a_file_and_says_what_changed() {
    let database = Database::empty().await;
    let run = |arguments: &[&str]| {
        let output = database.command(arguments).output().unwrap();
        let (out, err) = (
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        );
        assert!(output.status.success(), "{arguments:?}: {out}{err}");
        out
    };
    assert!(run(&["migrate"]).contains("applied 0001 create tables"));
    assert!(run(&["migrate"]).contains("nothing to do"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("duo.yaml");
    std::fs::write(
        &path,
        format!("{MODELS}features:\n  code_completion: {{model: codegemma}}\n"),
    )
    .unwrap();
    let path = path.to_str().unwrap();
    assert!(run(&["config", "apply", path, "--dry-run"]).contains("would change 3 rows and make revision 2"));
    let said = run(&["config", "apply", path, "--actor", "jo"]);
    assert!(
        said.contains("+ model.put codegemma") && said.contains("~ feature.put code_completion"),
        "{said}"
    );
    assert!(said.contains("changed 3 rows; the revision is 2"), "{said}");
    assert!(run(&["config", "apply", path]).contains("nothing to change; the revision stays 2"));
    assert!(run(&["config", "export"]).contains("code_completion:"));
    assert_eq!(
        database
            .count("SELECT count(*) FROM change_records WHERE actor = 'jo'")
            .await,
        3
    );

    let secret = run(&[
        "token",
        "create",
        "--name",
        "ci",
        "--role",
        "client",
        "--expires",
        "30d",
    ]);
    assert!(
        secret.starts_with("duo_c_") && secret.trim_end().len() == 49,
        "standard output has the secret alone"
    );
    let listed = run(&["token", "list"]);
    assert!(
        listed.contains("ci") && !listed.contains(secret.trim_end()),
        "{listed}"
    );
    run(&["token", "revoke", "ci"]);
    assert!(
        !database
            .command(&["token", "revoke", "ci"])
            .output()
            .unwrap()
            .status
            .success()
    );
    assert!(run(&["audit", "search", "--since", "10m"]).starts_with("TIME"));
    let mut without = database.command(&["config", "export"]);
    assert_eq!(
        without
            .env_remove("DUO_DATABASE_URL")
            .output()
            .unwrap()
            .status
            .code(),
        Some(78)
    );
}

#[tokio::test]
async fn a_token_is_in_the_snapshot_until_it_is_revoked_and_its_secret_nowhere() {
    let database = Database::create().await;
    let store = &database.store;
    let new = NewToken {
        name: "ci".into(),
        role: Role::Client,
        expires_at: None,
        features: Some(vec![feature("openai_chat")]),
        models: Some(vec![ModelName::parse("mistral").unwrap()]),
        limit: 7,
    };
    let (id, secret) = store.create_token("tester", &new).await.unwrap();
    assert!(matches!(
        store.create_token("tester", &new).await,
        Err(StoreError::Conflict(_))
    ));
    let strange = NewToken {
        name: "strange".into(),
        features: Some(vec![feature("absent")]),
        ..new.clone()
    };
    assert!(matches!(
        store.create_token("tester", &strange).await,
        Err(StoreError::NotFound(_))
    ));

    let (_, identities) = store.snapshots().await.unwrap();
    assert_eq!(identities.revision, 2);
    let token = &identities.tokens[0];
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, secret.expose_secret().as_bytes());
    assert_eq!(
        (token.id, token.limit, token.sha256.as_str()),
        (id, 7, hex::encode(digest).as_str())
    );
    assert_eq!(token.features, new.features);
    let told = format!("{identities:?}{:?}", store.tokens().await.unwrap());
    assert!(!told.contains(secret.expose_secret()));
    assert_eq!(
        database
            .count("SELECT count(*) FROM change_records WHERE what = 'token.create' AND after::text NOT LIKE '%sha256%'")
            .await,
        1
    );

    assert_eq!(store.revoke_token("tester", &id.to_string()).await.unwrap(), id);
    let (_, identities) = store.snapshots().await.unwrap();
    assert_eq!((identities.revision, identities.tokens.len()), (3, 0));
    assert_eq!(store.tokens().await.unwrap()[0].state, "revoked");
    store
        .create_token("tester", &new)
        .await
        .expect("the name is free again");
}

#[tokio::test]
async fn changes_at_the_same_time_get_a_revision_each() {
    let database = Database::create().await;
    let changes = (0..8).map(|number| {
        let store = database.store.clone();
        let new = NewToken {
            name: format!("token {number}"),
            role: Role::Auditor,
            expires_at: None,
            features: None,
            models: None,
            limit: 1,
        };
        async move { store.create_token("tester", &new).await.unwrap() }
    });
    futures_util::future::join_all(changes).await;
    assert_eq!(database.store.revision().await.unwrap(), 9);
    assert_eq!(
        database
            .count("SELECT count(DISTINCT revision) FROM change_records")
            .await,
        8
    );
    assert_eq!(database.count("SELECT count(*) FROM config_outbox").await, 9);
}

#[tokio::test]
async fn records_refuse_to_be_changed() {
    let database = Database::create().await;
    let record = ended(id_on(0), 1, "b1");
    insert(&database.store, &[&record]).await;
    apply(&database.store, MODELS).await.unwrap();
    for sql in [
        "UPDATE change_records SET actor = 'x'",
        "DELETE FROM change_records",
        "TRUNCATE change_records",
        "UPDATE audit_events SET outcome = 'failed'",
        "DELETE FROM audit_events",
        "TRUNCATE audit_events",
    ] {
        let refused = sqlx::query(sqlx::AssertSqlSafe(sql))
            .execute(&database.pool)
            .await
            .unwrap_err();
        assert!(refused.to_string().contains("append-only"), "{sql}: {refused}");
    }
}

/// 2026-01-01T00:00:00Z.
const NEW_YEAR: u64 = 1_767_225_600;

/// A request id of the given day after new year.
fn id_on(day: u64) -> Uuid {
    Uuid::new_v7(uuid::Timestamp::from_unix(
        uuid::NoContext,
        NEW_YEAR + day * 86_400,
        0,
    ))
}

fn admitted(request_id: Uuid, second: i64, broker: &str) -> AuditRecord {
    AuditRecord {
        kind: AuditKind::Admitted,
        request_id,
        occurred_at_us: i64::try_from(NEW_YEAR).unwrap() * 1_000_000 + second * 1_000_000 + 123_456,
        broker: broker.into(),
        who: Who {
            auth: "gitlab".into(),
            user_id: Some("person".into()),
            ..Who::default()
        },
        what: What {
            route: "/v2/code/completions".into(),
            feature: Some(feature("code_completion")),
            lane: Some(Lane::Keystroke),
            model: Some(ModelName::parse("codegemma").unwrap()),
            prompt_id: None,
            prompt_version: None,
            config_revision: 3,
            stream: true,
            body_bytes: 99,
            correlation_id: None,
            trace_id: None,
            job_id: None,
        },
        end: None,
        details: None,
    }
}

fn ended(request_id: Uuid, second: i64, broker: &str) -> AuditRecord {
    AuditRecord {
        kind: AuditKind::Ended,
        end: Some(End {
            outcome: Outcome::Completed,
            reason: None,
            worker: Some("w1".into()),
            attempts: 1,
            queue_wait_us: Some(200),
            first_byte_us: None,
            duration_us: 12_345,
            input_tokens: Some(5),
            output_tokens: Some(7),
            prompt_sha256: None,
            answer_sha256: None,
        }),
        ..admitted(request_id, second, broker)
    }
}

async fn insert(store: &Store, records: &[&AuditRecord]) -> u64 {
    for record in records {
        let day = duo_broker::store::audit_events::day_of(record.request_id).unwrap();
        store.create_audit_partition(day).await.unwrap();
    }
    store.insert_audit_records(records).await.unwrap()
}

/// The numbers that records have, in order.
async fn numbers(database: &Database) -> Vec<i64> {
    sqlx::query_scalar("SELECT seq FROM audit_events ORDER BY seq")
        .fetch_all(&database.pool)
        .await
        .unwrap()
}

#[tokio::test]
async fn records_have_numbers_without_gaps_whoever_writes_them_and_however_often() {
    let database = Database::create().await;
    let ids: Vec<_> = (0..40).map(|_| id_on(0)).collect();
    let records: Vec<_> = ids.iter().map(|id| admitted(*id, 1, "b1")).collect();
    let writer = |from: usize| {
        let (store, records) = (database.store.clone(), &records);
        async move {
            for batch in records[from..].chunks(7) {
                insert(&store, &batch.iter().collect::<Vec<_>>()).await;
            }
        }
    };
    // Three writers get overlapping deliveries, and a change is made meanwhile.
    let change = async {
        let token = NewToken {
            name: "nightly".into(),
            role: Role::Client,
            features: None,
            models: None,
            limit: 7,
            expires_at: None,
        };
        database.store.create_token("tester", &token).await.unwrap();
    };
    tokio::join!(writer(0), writer(5), writer(20), change);
    let whole: Vec<i64> = (0..41).collect();
    assert_eq!(numbers(&database).await, whole);
    let size: i64 = sqlx::query_scalar("SELECT size FROM audit_head")
        .fetch_one(&database.pool)
        .await
        .unwrap();
    assert_eq!(size, 41);
    let changed = database
        .store
        .audit_page(
            &Filter {
                kind: Some(AuditKind::Changed),
                ..Filter::default()
            },
            10,
            None,
        )
        .await
        .unwrap();
    let changed = serde_json::to_value(changed).unwrap();
    assert_eq!(changed["events"][0]["details"]["what"], "token.create");
    assert_eq!(changed["events"][0]["user_id"], "tester");
}

#[tokio::test]
async fn the_first_terminal_record_wins_and_another_is_a_late_end() {
    let database = Database::create().await;
    let (first, second) = (id_on(0), id_on(1));
    let (begin, end, other) = (
        admitted(first, 1, "b1"),
        ended(first, 2, "b1"),
        ended(second, 3, "b1"),
    );
    assert_eq!(insert(&database.store, &[&begin, &end, &other]).await, 3);
    // The same again, as a redelivery brings it, is nothing new.
    assert_eq!(insert(&database.store, &[&begin, &end, &end]).await, 0);
    assert_eq!(database.count("SELECT count(*) FROM audit_late_ends").await, 0);

    let mut late = ended(first, 4, "b2");
    late.end.as_mut().unwrap().outcome = Outcome::Abandoned;
    assert_eq!(insert(&database.store, &[&late, &late]).await, 0);
    assert_eq!(insert(&database.store, &[&late]).await, 0);
    assert_eq!(
        database
            .count("SELECT count(*) FROM audit_late_ends WHERE outcome = 'abandoned'")
            .await,
        1
    );
    // Two ends of one request in one batch: one stands, the other is kept.
    let third = id_on(1);
    assert_eq!(
        insert(&database.store, &[&ended(third, 5, "b1"), &ended(third, 5, "b2")]).await,
        1
    );
    assert_eq!(database.count("SELECT count(*) FROM audit_late_ends").await, 2);

    assert_eq!(
        database.count("SELECT count(*) FROM audit_events_20260101").await,
        2
    );
    assert_eq!(
        database.count("SELECT count(*) FROM audit_events_20260102").await,
        2
    );
    let page = database
        .store
        .audit_page(&Filter::default(), 10, None)
        .await
        .unwrap();
    let event = page
        .events
        .iter()
        .find(|event| event.request_id == first && event.kind == "ended")
        .unwrap();
    assert_eq!(
        event.occurred_at.unix_timestamp_nanos() / 1000,
        i128::from(end.occurred_at_us)
    );
    assert_eq!(event.outcome.as_deref(), Some("completed"));
    assert_eq!(
        (event.attempts, event.duration_us, event.output_tokens),
        (Some(1), Some(12_345), Some(7))
    );
}

#[tokio::test]
async fn open_requests_are_found_page_by_page_with_all_that_was_recorded() {
    let database = Database::create().await;
    let ids: Vec<_> = (0..5).map(|_| id_on(0)).collect();
    let begins: Vec<_> = (0..)
        .zip(&ids)
        .map(|(n, id)| admitted(*id, 10 + n, "b1"))
        .collect();
    insert(&database.store, &begins.iter().collect::<Vec<_>>()).await;
    insert(&database.store, &[&ended(ids[1], 20, "b1")]).await;
    let second = |second: i64| {
        time::OffsetDateTime::from_unix_timestamp(i64::try_from(NEW_YEAR).unwrap() + second).unwrap()
    };
    let store = &database.store;
    let first = store.unended(Place::at(second(0)), second(14), 2).await.unwrap();
    assert_eq!(first, [begins[0].clone(), begins[2].clone()]);
    let after = Place {
        at: time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(first[1].occurred_at_us) * 1000)
            .unwrap(),
        request_id: ids[2],
    };
    // The last one was admitted after the end of the span.
    assert_eq!(
        store.unended(after, second(14), 2).await.unwrap(),
        [begins[3].clone()]
    );
    assert_eq!(store.ended_among(&ids).await.unwrap(), [ids[1]]);
}

#[tokio::test]
async fn partitions_are_made_by_many_at_once() {
    let database = Database::create().await;
    let makers = (0..6).map(|_| {
        let store = database.store.clone();
        async move {
            for day in 0..5 {
                insert(&store, &[&ended(id_on(day), 1, "b1")]).await;
            }
        }
    });
    futures_util::future::join_all(makers).await;
    assert_eq!(database.count("SELECT count(*) FROM audit_events").await, 30);
}

#[tokio::test]
async fn pages_do_not_shift_when_events_are_added() {
    let database = Database::create().await;
    let store = &database.store;
    let mut expected = Vec::new();
    let days = 3 * 86_400;
    for number in 0..25 {
        // Two share each moment, so that a page may end between them.
        let record = ended(id_on(number % 3), days + i64::try_from(number / 2).unwrap(), "b1");
        insert(store, &[&record]).await;
        expected.push((record.occurred_at_us, record.request_id));
    }
    expected.sort_unstable();
    expected.reverse();
    let mut found = Vec::new();
    let mut cursor: Option<Cursor> = None;
    loop {
        let page = store
            .audit_page(&Filter::default(), 4, cursor.as_ref())
            .await
            .unwrap();
        found.extend(page.events.iter().map(|event| event.request_id));
        let newer = ended(id_on(2), days + 1000 + i64::try_from(found.len()).unwrap(), "b1");
        insert(store, &[&newer]).await;
        let Some(next) = page.next_cursor else { break };
        cursor = Some(Cursor::parse(&next.to_string()).unwrap());
    }
    assert_eq!(found, expected.iter().map(|(_, id)| *id).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_search_finds_what_all_its_filters_name() {
    let database = Database::create().await;
    let store = &database.store;
    let mut failed = ended(id_on(0), 10, "b1");
    failed.end.as_mut().unwrap().outcome = Outcome::Failed;
    failed.who.user_id = None;
    failed.who.token_id = Some("token".into());
    let completed = ended(id_on(1), 20, "b1");
    insert(
        store,
        &[&failed, &completed, &admitted(failed.request_id, 9, "b1")],
    )
    .await;
    let moment = |record: &AuditRecord| {
        time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(record.occurred_at_us) * 1000).unwrap()
    };
    for (filter, count) in [
        (
            Filter {
                outcome: Some(Outcome::Failed),
                ..Filter::default()
            },
            1,
        ),
        (
            Filter {
                user: Some("token".into()),
                ..Filter::default()
            },
            1,
        ),
        (
            Filter {
                user: Some("person".into()),
                ..Filter::default()
            },
            2,
        ),
        (
            Filter {
                request_id: Some(failed.request_id),
                ..Filter::default()
            },
            2,
        ),
        (
            Filter {
                kind: Some(AuditKind::Admitted),
                ..Filter::default()
            },
            1,
        ),
        (
            Filter {
                feature: Some("duo_chat".into()),
                ..Filter::default()
            },
            0,
        ),
        (
            Filter {
                model: Some("codegemma".into()),
                since: Some(moment(&completed)),
                ..Filter::default()
            },
            1,
        ),
        (
            Filter {
                until: Some(moment(&completed)),
                ..Filter::default()
            },
            2,
        ),
    ] {
        let page = store.audit_page(&filter, 10, None).await.unwrap();
        assert_eq!(page.events.len(), count, "{filter:?}");
        assert!(page.next_cursor.is_none());
    }
    let page = store.audit_page(&Filter::default(), 1, None).await.unwrap();
    let json = serde_json::to_value(&page).unwrap();
    assert_eq!(json["events"][0]["outcome"], "completed");
    assert!(json["next_cursor"].is_string());
}

/// The audit stream and both buckets as a broker makes them; tests that use them take turns.
async fn topology() -> (Nats, tokio::sync::MutexGuard<'static, ()>) {
    static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let turn = TURN.lock().await;
    let nats = nats().await;
    let context = nats.jetstream();
    for bucket in [subject::CONFIG_BUCKET, subject::IDENTITY_BUCKET] {
        let _ = context.delete_key_value(bucket).await;
        let config = jetstream::kv::Config {
            bucket: bucket.to_owned(),
            ..Default::default()
        };
        context.create_key_value(config).await.unwrap();
    }
    let _ = context.delete_stream(subject::AUDIT_STREAM).await;
    let stream = jetstream::stream::Config {
        name: subject::AUDIT_STREAM.to_owned(),
        subjects: vec![subject::AUDIT_SUBJECTS.to_owned()],
        retention: jetstream::stream::RetentionPolicy::WorkQueue,
        ..Default::default()
    };
    let stream = context.create_stream(stream).await.unwrap();
    let consumer = jetstream::consumer::pull::Config {
        durable_name: Some(subject::AUDIT_CONSUMER.to_owned()),
        ack_wait: Duration::from_secs(2),
        max_ack_pending: 10_000,
        ..Default::default()
    };
    stream.create_consumer(consumer).await.unwrap();
    (nats, turn)
}

/// Waits until something holds; the bound is far beyond what it takes.
async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let waited = tokio::time::timeout(Duration::from_secs(20), async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("never: {what}"));
}

async fn held<T: serde::de::DeserializeOwned>(nats: &Nats, bucket: &str) -> Option<T> {
    let store = nats.jetstream().get_key_value(bucket).await.unwrap();
    let value = store.get(subject::SNAPSHOT_KEY).await.unwrap()?;
    Some(serde_json::from_slice(&value).unwrap())
}

#[tokio::test]
async fn a_change_is_relayed_and_put_back_when_a_bucket_loses_it() {
    let (nats, _turn) = topology().await;
    let database = Database::create().await;
    let shutdown = Shutdown::new();
    // Two brokers relay at the same time.
    for _ in 0..2 {
        shutdown.spawn(
            "relay",
            relay::run(database.store.clone(), nats.clone(), shutdown.clone()),
        );
    }
    apply(&database.store, MODELS).await.unwrap();
    let config = async || held::<ConfigSnapshot>(&nats, subject::CONFIG_BUCKET).await;
    until("the change is in the bucket", async || {
        config().await.is_some_and(|c| c.revision == 2)
    })
    .await;
    assert_eq!(
        config().await.unwrap(),
        database.store.snapshots().await.unwrap().0
    );
    until("the outbox is empty", async || {
        database.count("SELECT count(*) FROM config_outbox").await == 0
    })
    .await;

    let store = nats
        .jetstream()
        .get_key_value(subject::IDENTITY_BUCKET)
        .await
        .unwrap();
    store.purge(subject::SNAPSHOT_KEY).await.unwrap();
    let identities = async || held::<IdentitySnapshot>(&nats, subject::IDENTITY_BUCKET).await;
    until("the bucket is full again", async || identities().await.is_some()).await;

    let newer = ConfigSnapshot {
        revision: 50,
        ..ConfigSnapshot::default()
    };
    let store = nats
        .jetstream()
        .get_key_value(subject::CONFIG_BUCKET)
        .await
        .unwrap();
    store
        .put(subject::SNAPSHOT_KEY, serde_json::to_vec(&newer).unwrap().into())
        .await
        .unwrap();
    apply(&database.store, "features:\n  openai_chat: inactive\n")
        .await
        .unwrap();
    until("the identities follow", async || {
        identities().await.is_some_and(|i| i.revision == 3)
    })
    .await;
    assert_eq!(
        config().await.unwrap().revision,
        50,
        "a newer revision is never replaced by an older one"
    );
    shutdown.begin();
    assert!(shutdown.drained(Duration::from_secs(5)).await);
}

async fn publish(nats: &Nats, record: &AuditRecord) {
    let context = nats.jetstream();
    let payload = serde_json::to_vec(record).unwrap();
    context
        .publish(subject::AUDIT_RECORDS, payload.into())
        .await
        .unwrap()
        .await
        .unwrap();
}

async fn stored(nats: &Nats) -> u64 {
    let mut stream = nats.jetstream().get_stream(subject::AUDIT_STREAM).await.unwrap();
    stream.info().await.unwrap().state.messages
}

#[tokio::test]
async fn the_writer_empties_the_stream_into_postgres_and_survives_its_absence() {
    let (nats, _turn) = topology().await;
    let database = Database::create().await;
    let shutdown = Shutdown::new();
    let registry = Registry::new();
    let metrics = WriterMetrics::register(&registry);
    shutdown.spawn(
        "audit writer",
        writer::run(database.store.clone(), nats.clone(), metrics, shutdown.clone()),
    );
    for number in 0..1200 {
        let id = id_on(number % 2);
        publish(&nats, &admitted(id, 1, "b1")).await;
        if number % 100 == 0 {
            publish(&nats, &ended(id, 2, "b1")).await;
        }
    }
    let context = nats.jetstream();
    context
        .publish(subject::AUDIT_RECORDS, "not a record".into())
        .await
        .unwrap()
        .await
        .unwrap();
    let written = async || database.count("SELECT count(*) FROM audit_events").await;
    until("all are written", async || written().await == 1212).await;
    until("the stream is empty", async || stored(&nats).await == 0).await;
    assert_eq!(
        database
            .count("SELECT count(*) FROM audit_rejects WHERE payload = 'not a record'")
            .await,
        1
    );

    // The database vanishes; records wait in their stream and are written when it is back.
    database.pool.close().await;
    let name = &database.name;
    let away = format!("{name}_away");
    until("the database is away", async || {
        admin(&format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
        ))
        .await;
        let renamed = tokio::spawn({
            let sql = format!("ALTER DATABASE {name} RENAME TO {away}");
            async move { admin(&sql).await }
        });
        renamed.await.is_ok()
    })
    .await;
    for _ in 0..20 {
        publish(&nats, &ended(id_on(2), 3, "b1")).await;
    }
    let lag = || {
        let families = registry.gather();
        let family = families
            .iter()
            .find(|family| family.name() == "duo_audit_lag_seconds");
        family.unwrap().get_metric()[0].get_gauge().get_value()
    };
    until("the writer has tried in vain for a second", async || lag() > 1.0).await;
    assert_eq!(stored(&nats).await, 20);
    admin(&format!("ALTER DATABASE {away} RENAME TO {name}")).await;
    until("the stream is empty again", async || stored(&nats).await == 0).await;
    let page = database
        .store
        .audit_page(
            &Filter {
                kind: Some(AuditKind::Ended),
                ..Filter::default()
            },
            100,
            None,
        )
        .await
        .unwrap();
    assert_eq!(page.events.len(), 32);

    shutdown.begin();
    assert!(shutdown.drained(Duration::from_secs(5)).await);
    let families = registry.gather();
    let total = |name: &str| {
        let family = families.iter().find(|family| family.name() == name).unwrap();
        family.get_metric()[0].get_counter().get_value()
    };
    assert!((total("duo_audit_written_total") - 1232.0).abs() < 0.5);
    assert!((total("duo_audit_rejected_total") - 1.0).abs() < 0.5);
    assert!(
        total("duo_audit_batches_total") < 300.0,
        "records are written in batches"
    );
}

#[tokio::test]
async fn only_a_broker_whose_own_word_holds_takes_jobs_of_one_that_died() {
    let database = Database::create().await;
    let store = &database.store;
    let minute = Duration::from_secs(60);
    let today = duo_process::clock::now().date();
    store.create_job_partitions(today).await.unwrap();
    let owned = "WITH job AS (
        INSERT INTO jobs (day, id, client, client_limit, who, feature, model, lane, config_revision, deadline, owner, run)
        SELECT (now() AT TIME ZONE 'UTC')::date, gen_random_uuid(), 'c', 8, '{}', 'f', 'm', 'background', 1,
               now() + interval '1 day', owner, 1
        FROM unnest(ARRAY['dead', 'alive']) AS owner RETURNING id)
        SELECT count(*) FROM job";
    assert_eq!(database.count(owned).await, 2);
    store.say_alive("alive", minute).await.unwrap();
    assert_eq!(store.recover_jobs("me", 10).await.unwrap(), 0, "it never spoke");
    store.say_alive("me", Duration::ZERO).await.unwrap();
    assert_eq!(
        store.recover_jobs("me", 10).await.unwrap(),
        0,
        "its word has run out"
    );
    store.say_alive("me", minute).await.unwrap();
    assert_eq!(store.recover_jobs("me", 10).await.unwrap(), 1);
    let left = "SELECT count(*) FROM jobs WHERE owner = 'alive'";
    assert_eq!(database.count(left).await, 1);
}

/// Jobs of today: so many that have ended, and some that wait.
async fn fill_jobs(database: &Database, ended: i64, waiting: i64) {
    let filled = format!(
        "WITH job AS (
             INSERT INTO jobs (day, id, client, client_limit, who, state, feature, model, lane, config_revision,
                               deadline, ended_at)
             SELECT (now() AT TIME ZONE 'UTC')::date,
                    (lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint), 12, '0') || '7000' || '8000'
                        || lpad(to_hex(n), 12, '0'))::uuid,
                    'c', 100, '{{\"auth\": \"api_token\"}}', CASE WHEN n > {waiting} THEN 'succeeded' ELSE 'queued' END,
                    'duo_chat', 'm', 'background', 1, now() + interval '1 day', CASE WHEN n > {waiting} THEN now() END
             FROM generate_series(1, {ended} + {waiting}) AS n RETURNING id)
         SELECT count(*) FROM job"
    );
    assert_eq!(database.count(&filled).await, ended + waiting);
}

/// A run of each statement that finds jobs to change; how many were taken and ended.
async fn take_and_end(store: &Store) -> (usize, usize) {
    let model = ModelName::parse("m").unwrap();
    let line = (Lane::Background, &model);
    let (taken, _) = store.take_jobs("me", line, 64, 64, "").await.unwrap();
    let fences: Vec<_> = taken
        .iter()
        .map(|job| Fence {
            id: job.id,
            owner: "me".to_owned(),
            run: job.run,
        })
        .collect();
    store.note_started(&fences).await.unwrap();
    let ends: Vec<_> = fences.iter().cloned().map(failed).collect();
    let ended = store.end_jobs(&ends).await.unwrap();
    store.expire_jobs(10).await.unwrap();
    store.say_alive("me", Duration::from_secs(60)).await.unwrap();
    store.recover_jobs("me", 10).await.unwrap();
    (taken.len(), ended.len())
}

fn failed(fence: Fence) -> JobEnd {
    JobEnd {
        fence,
        state: JobState::Failed,
        request_id: None,
        started_at: None,
        worker: None,
        reason: None,
        message: None,
        upstream_status: None,
        input_tokens: None,
        output_tokens: None,
        result: None,
    }
}

#[tokio::test]
async fn what_has_ended_is_not_read_to_find_what_waits() {
    const WAITING: usize = 20;
    let database = Database::create().await;
    let today = duo_process::clock::now().date();
    database.store.create_job_partitions(today).await.unwrap();
    let pool = PoolConfig {
        max_connections: 1,
        ..PoolConfig::default()
    };
    let url = secrecy::SecretString::from(database.url.clone());
    let store = Store::connect(&url, pool).unwrap();
    // Plans that were made while there was nothing are the ones that are used for the rest of the day.
    for _ in 0..6 {
        assert_eq!(take_and_end(&store).await, (0, 0));
    }
    fill_jobs(&database, 20_000, WAITING as i64).await;
    assert_eq!(take_and_end(&store).await, (WAITING, WAITING));
    // A connection that ends tells what it has read.
    let ended = "WITH told AS MATERIALIZED (SELECT pid FROM pg_stat_activity WHERE application_name = 'duo-broker' \
                 AND datname = current_database() AND pid <> pg_backend_pid()) \
                 SELECT count(*) FROM told WHERE pg_terminate_backend(pid, 5000)";
    assert!(database.count(ended).await > 0);
    let read = "SELECT (sum(seq_tup_read) + sum(coalesce(idx_tup_fetch, 0)))::bigint FROM pg_stat_user_tables \
                WHERE relname LIKE 'jobs\\_%'";
    let read = database.count(read).await;
    assert!(read < 1000, "{read} rows were read to take and end {WAITING}");
}

#[tokio::test]
async fn past_days_of_all_that_is_kept_for_days_are_dropped() {
    let database = Database::create().await;
    let day = time::macros::date!(2026 - 01 - 10);
    database.store.create_job_partitions(day).await.unwrap();
    for table in [
        "job_results",
        "job_inputs",
        "jobs",
        "file_chunks",
        "files",
        "batches",
        "responses",
    ] {
        let dropped = database.store.drop_job_partitions(table, day).await.unwrap();
        assert_eq!(dropped, 0, "{table}: the day itself stays");
        let after = day.next_day().unwrap();
        let dropped = database.store.drop_job_partitions(table, after).await.unwrap();
        assert_eq!(dropped, 1, "{table}");
    }
    let partitioned = "SELECT count(*) FROM pg_class WHERE relkind = 'p' AND relname NOT LIKE 'audit%'";
    assert_eq!(
        database.count(partitioned).await,
        7,
        "a table that the list above lacks"
    );
}
