//! Kept prompts and answers, their keys, holds and retention, against a real PostgreSQL.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![expect(dead_code, reason = "other tests use the rest of it")]

#[path = "support/servers.rs"]
mod servers;

use bytes::Bytes;
use duo_broker::audit::checkpoint;
use duo_broker::audit::keys::{DataKey, MasterKeys};
use duo_broker::audit::reader::{Kept, ReadError, Reader};
use duo_broker::audit::retention::{self, Look};
use duo_broker::audit::tree::Tree;
use duo_broker::store::StoreError;
use duo_broker::store::audit_bodies::Piece;
use duo_broker::store::audit_holds::NewHold;
use duo_broker::store::audit_keys::{Erasure, OldKey};
use duo_contract::audit::{AuditKind, AuditRecord, End, Outcome, What, Who};
use duo_contract::body::{BodyFacts, BodyHead, BodyMessage, BodyPart};
use serde_json::Value;
use sqlx::AssertSqlSafe;
use time::macros::date;
use time::{Date, OffsetDateTime};
use uuid::Uuid;

use self::servers::Database;

const MASTER: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
const NEXT_MASTER: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";

fn masters() -> MasterKeys {
    MasterKeys::parse(MASTER).unwrap()
}

fn id_on(day: Date) -> Uuid {
    let seconds = day.midnight().assume_utc().unix_timestamp();
    let seconds = u64::try_from(seconds).unwrap() + 3600;
    Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, seconds, 0))
}

/// A text in `chunks` pieces, and the hash of what is sealed.
fn pieces(
    key: &DataKey,
    id: Uuid,
    part: BodyPart,
    text: &str,
    chunks: u32,
    drop_on: Date,
) -> (Vec<Piece>, String) {
    let facts = BodyFacts {
        request_id: id,
        part,
        bytes: text.len() as u64,
        truncated: false,
        rules: 1,
        redacted: 0,
    };
    let sealed = Bytes::from(key.seal(&facts.aad(), text.as_bytes()).unwrap());
    let sha256 = hex::encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &sealed));
    let size = sealed.len().div_ceil(chunks as usize);
    let piece = |chunk: u32| {
        let from = chunk as usize * size;
        let head = BodyHead {
            facts: facts.clone(),
            chunk,
            chunks,
            sha256: sha256.clone(),
            drop_on: drop_on.to_string(),
            key: key.wrapped.clone(),
        };
        let sealed = sealed.slice(from..sealed.len().min(from + size));
        let message = BodyMessage { head, sealed }.encode().unwrap();
        Piece::try_from(BodyMessage::decode(&message).unwrap()).unwrap()
    };
    ((0..chunks).map(piece).collect(), sha256)
}

async fn keep(database: &Database, pieces: &[Piece]) {
    for piece in pieces {
        database
            .store
            .create_audit_body_partition(piece.drop_on)
            .await
            .unwrap();
        database.store.insert_audit_body(piece).await.unwrap();
    }
}

/// One text of a subject for a request of a day.
async fn keep_one(database: &Database, subject: &str, day: Date, drop_on: Date) -> Uuid {
    let key = masters().make(subject, day).unwrap();
    let id = id_on(day);
    keep(
        database,
        &pieces(&key, id, BodyPart::Prompt, "a prompt", 1, drop_on).0,
    )
    .await;
    id
}

async fn read(database: &Database, id: Uuid) -> Result<Kept, ReadError> {
    let reader = Reader::new(database.store.clone(), Some(masters()), "b1");
    let who = Who {
        auth: "api_token".into(),
        token_id: Some("auditor".into()),
        ..Who::default()
    };
    reader.read(&who, id, "a complaint").await
}

fn ended(id: Uuid, prompt_sha256: Option<String>) -> AuditRecord {
    AuditRecord {
        kind: AuditKind::Ended,
        request_id: id,
        occurred_at_us: 1,
        broker: "b1".into(),
        who: Who::default(),
        what: What::of("/v1/chat/completions", 1),
        end: Some(End {
            outcome: Outcome::Completed,
            reason: None,
            worker: None,
            attempts: 1,
            queue_wait_us: None,
            first_byte_us: None,
            duration_us: 1,
            input_tokens: None,
            output_tokens: None,
            prompt_sha256,
            answer_sha256: None,
        }),
        details: None,
    }
}

async fn insert(database: &Database, record: &AuditRecord) {
    let day = duo_broker::store::audit_events::day_of(record.request_id).unwrap();
    database.store.create_audit_partition(day).await.unwrap();
    database.store.insert_audit_records(&[record]).await.unwrap();
}

/// The details of records of a kind, the newest last.
async fn details(database: &Database, kind: &str, what: &str) -> Vec<Value> {
    let texts: Vec<String> = sqlx::query_scalar(
        "SELECT details FROM audit_events WHERE kind = $1 AND details::jsonb ->> 'what' = $2 ORDER BY seq",
    )
    .bind(kind)
    .bind(what)
    .fetch_all(&database.pool)
    .await
    .unwrap();
    texts
        .iter()
        .map(|text| serde_json::from_str(text).unwrap())
        .collect()
}

#[tokio::test]
async fn a_text_in_pieces_is_read_whole_and_every_reading_is_recorded() {
    let database = Database::create().await;
    let (day, drop_on) = (date!(2026 - 11 - 01), date!(2026 - 12 - 02));
    let id = id_on(day);
    let key = masters().make("user:x", day).unwrap();
    let prompt = "prompt ".repeat(1000);
    let (first, hash) = pieces(&key, id, BodyPart::Prompt, &prompt, 3, drop_on);
    keep(&database, &first[..2]).await;
    assert!(matches!(
        read(&database, id).await,
        Err(ReadError::Unreadable(..))
    ));
    // Delivered again, in another order: it is there once.
    keep(&database, &[first[2].clone(), first[0].clone(), first[2].clone()]).await;
    let (answer, _) = pieces(&key, id, BodyPart::Answer, "an answer", 1, drop_on);
    keep(&database, &answer).await;
    insert(&database, &ended(id, Some(hash.clone()))).await;

    let kept = read(&database, id).await.unwrap();
    let shown = kept.prompt.unwrap();
    assert_eq!((shown.text, shown.sha256), (prompt, hash));
    assert_eq!(shown.matches_record, Some(true));
    assert_eq!(kept.answer.unwrap().text, "an answer");
    let readings = details(&database, "read", "bodies").await;
    assert_eq!(readings.len(), 2, "the one that failed too: {readings:?}");
    assert_eq!(readings[1]["reason"], "a complaint");
    assert_eq!(readings[1]["request_id"], id.to_string());

    let nowhere = read(&database, id_on(day)).await;
    assert!(matches!(nowhere, Err(ReadError::NotFound(_))));
    let reader = Reader::new(database.store.clone(), Some(masters()), "b1");
    let silent = reader.read(&Who::default(), id, "  ").await;
    assert!(matches!(silent, Err(ReadError::NoReason)));
    let without = Reader::new(database.store.clone(), None, "b1");
    let closed = without.read(&Who::default(), id, "why").await;
    assert!(matches!(closed, Err(ReadError::NoMasterKey)));
    for sql in [
        "UPDATE audit_bodies SET sealed = ''",
        "DELETE FROM audit_bodies",
        "DELETE FROM audit_keys",
    ] {
        let refused = sqlx::query(AssertSqlSafe(sql))
            .execute(&database.pool)
            .await
            .unwrap_err();
        assert!(refused.to_string().contains("append-only"), "{sql}: {refused}");
    }
}

#[tokio::test]
async fn an_altered_text_is_not_shown() {
    let database = Database::create().await;
    let (day, drop_on) = (date!(2026 - 11 - 01), date!(2026 - 12 - 02));
    let id = keep_one(&database, "user:x", day, drop_on).await;
    sqlx::query("ALTER TABLE audit_bodies DISABLE TRIGGER USER")
        .execute(&database.pool)
        .await
        .unwrap();
    sqlx::query("UPDATE audit_bodies SET sealed = set_byte(sealed, 20, get_byte(sealed, 20) # 1)")
        .execute(&database.pool)
        .await
        .unwrap();
    assert!(matches!(
        read(&database, id).await,
        Err(ReadError::Unreadable(..))
    ));
}

#[tokio::test]
async fn who_is_erased_is_unreadable_for_good_and_the_others_are_not() {
    let database = Database::create().await;
    let (day, next, drop_on) = (
        date!(2026 - 11 - 01),
        date!(2026 - 11 - 02),
        date!(2026 - 12 - 02),
    );
    let mine = keep_one(&database, "user:x", day, drop_on).await;
    let also_mine = keep_one(&database, "user:x", next, drop_on).await;
    let yours = keep_one(&database, "user:y", next, drop_on).await;
    let user = Erasure::User("x".into());
    assert_eq!(
        database
            .store
            .destroy_keys("dpo", &user, Some("asked for"))
            .await
            .unwrap(),
        2
    );
    for id in [mine, also_mine] {
        assert!(matches!(read(&database, id).await, Err(ReadError::Erased(..))));
    }
    assert!(read(&database, yours).await.is_ok());
    let left = "SELECT count(*) FROM audit_keys WHERE wrapped IS NOT NULL OR master IS NOT NULL";
    assert_eq!(database.count(left).await, 1);
    let told = details(&database, "changed", "audit.erase").await;
    assert_eq!(
        (&told[0]["subject"], &told[0]["before"]["keys"]),
        (&"x".into(), &2.into())
    );
    assert_eq!(told[0]["after"]["reason"], "asked for");

    let revived = sqlx::query("UPDATE audit_keys SET wrapped = 'k', master = 'm', destroyed_at = NULL")
        .execute(&database.pool)
        .await;
    assert!(revived.unwrap_err().to_string().contains("stays destroyed"));
    let period = Erasure::Period(next);
    assert_eq!(
        database.store.destroy_keys("dpo", &period, None).await.unwrap(),
        1
    );
    assert!(matches!(read(&database, yours).await, Err(ReadError::Erased(..))));
}

#[tokio::test]
async fn a_late_piece_does_not_bring_an_erased_key_back() {
    let database = Database::create().await;
    let (day, drop_on) = (date!(2026 - 11 - 01), date!(2026 - 12 - 02));
    let key = masters().make("user:x", day).unwrap();
    let id = id_on(day);
    let (prompt, _) = pieces(&key, id, BodyPart::Prompt, "a prompt", 1, drop_on);
    keep(&database, &prompt).await;
    let user = Erasure::User("x".into());
    database.store.destroy_keys("dpo", &user, None).await.unwrap();
    let later = id_on(day);
    let (late, _) = pieces(&key, later, BodyPart::Prompt, "another", 1, drop_on);
    keep(&database, &late).await;
    assert!(matches!(read(&database, later).await, Err(ReadError::Erased(..))));
}

fn moment(day: Date) -> OffsetDateTime {
    day.midnight().assume_utc()
}

fn hold(subject: Option<&str>, since: Date, until: Option<Date>) -> NewHold {
    NewHold {
        subject: subject.map(str::to_owned),
        since: moment(since),
        until: until.map(moment),
        reason: "case 12".into(),
    }
}

#[tokio::test]
async fn a_legal_hold_keeps_what_it_covers_until_it_is_lifted() {
    let database = Database::create().await;
    let store = &database.store;
    let (day, drop_on) = (date!(2026 - 11 - 01), date!(2026 - 12 - 02));
    keep_one(&database, "user:x", day, drop_on).await;
    keep_one(&database, "user:y", day, drop_on).await;
    // Of another day, and of another person: neither is in the way.
    store
        .place_hold("law", &hold(None, date!(2026 - 11 - 02), None))
        .await
        .unwrap();
    store
        .place_hold("law", &hold(Some("user:z"), day, None))
        .await
        .unwrap();
    let mine = store
        .place_hold("law", &hold(Some("user:x"), day, Some(date!(2026 - 11 - 02))))
        .await
        .unwrap();

    let refused = store.destroy_keys("dpo", &Erasure::User("x".into()), None).await;
    assert!(
        matches!(&refused, Err(StoreError::Conflict(text)) if text.contains(&mine.to_string())),
        "{refused:?}"
    );
    assert!(matches!(
        store.destroy_keys("dpo", &Erasure::Period(day), None).await,
        Err(StoreError::Conflict(_))
    ));
    assert_eq!(
        store
            .destroy_keys("dpo", &Erasure::User("y".into()), None)
            .await
            .unwrap(),
        1
    );
    let looked = retention::look(store, drop_on, 400).await.unwrap();
    assert_eq!(
        looked,
        Look {
            due: 1,
            held: 1,
            ..Look::default()
        }
    );

    store.lift_hold("law", mine).await.unwrap();
    assert!(matches!(
        store.lift_hold("law", mine).await,
        Err(StoreError::NotFound(_))
    ));
    assert_eq!(store.holds(false).await.unwrap().len(), 2);
    assert_eq!(store.holds(true).await.unwrap().len(), 3);
    let looked = retention::look(store, drop_on, 400).await.unwrap();
    assert_eq!(
        looked,
        Look {
            dropped: 1,
            ..Look::default()
        }
    );
    assert_eq!(details(&database, "changed", "audit.hold.place").await.len(), 3);
    assert_eq!(details(&database, "changed", "audit.hold.lift").await.len(), 1);
    let backwards = store.place_hold("law", &hold(None, day, Some(day))).await;
    assert!(matches!(backwards, Err(StoreError::Refused(_))));
}

#[tokio::test]
async fn partitions_are_found_whatever_way_postgres_takes_through_its_catalogs() {
    let database = Database::create().await;
    insert(&database, &ended(id_on(date!(2026 - 01 - 01)), None)).await;
    let mut connection = database.pool.acquire().await.unwrap();
    // What it takes by itself once it has statistics of them.
    sqlx::query("SET enable_nestloop = off")
        .execute(&mut *connection)
        .await
        .unwrap();
    let days = "SELECT day FROM audit_partition_days('audit_events') AS day WHERE day < '2026-02-01'";
    let days: Vec<Date> = sqlx::query_scalar(days)
        .fetch_all(&mut *connection)
        .await
        .unwrap();
    assert_eq!(days, [date!(2026 - 01 - 01)]);
}

#[tokio::test]
async fn what_is_over_is_dropped_whole_and_what_it_was_can_be_proved() {
    let database = Database::create().await;
    let store = &database.store;
    let (old, young, today) = (
        date!(2026 - 01 - 01),
        date!(2026 - 11 - 30),
        date!(2026 - 12 - 01),
    );
    for _ in 0..5 {
        insert(&database, &ended(id_on(old), None)).await;
    }
    insert(&database, &ended(id_on(young), None)).await;
    // A tile of the tree holds 256.
    let others: Vec<AuditRecord> = (0..251).map(|_| ended(id_on(young), None)).collect();
    let others: Vec<&AuditRecord> = others.iter().collect();
    store.insert_audit_records(&others).await.unwrap();
    let leaves = store.audit_leaves(0..5).await.unwrap();
    let mut tree = Tree::default();
    for leaf in leaves.hashes {
        tree.append(leaf.unwrap(), &mut Vec::new());
    }
    // Due today, and tomorrow.
    keep_one(&database, "user:x", old, today).await;
    let kept = keep_one(&database, "user:x", young, date!(2026 - 12 - 02)).await;

    let looked = retention::look(store, today, 300).await.unwrap();
    assert_eq!(
        looked,
        Look {
            dropped: 2,
            ..Look::default()
        }
    );
    assert!(read(&database, kept).await.is_ok());
    let gone = "SELECT count(*) FROM pg_class WHERE relname IN
                ('audit_events_20260101', 'audit_bodies_20261201', 'audit_keys_20261201')";
    assert_eq!(database.count(gone).await, 0);
    let told = details(&database, "changed", "retention.drop_records").await;
    assert_eq!(told.len(), 1);
    assert_eq!(told[0]["subject"], "audit_events/2026-01-01");
    assert_eq!(told[0]["after"]["dropped"], serde_json::json!([[0, 4]]));
    let was = &told[0]["before"];
    assert_eq!(
        (&was["records"], &was["first_seq"], &was["last_seq"]),
        (&5.into(), &0.into(), &4.into())
    );
    assert_eq!(was["root_sha256"], hex::encode(tree.root()));
    let told = details(&database, "changed", "retention.drop_bodies").await;
    assert_eq!(
        told[0]["before"],
        serde_json::json!({"texts": 1, "requests": 1, "keys": 1})
    );
    assert_eq!(database.count("SELECT min(seq) FROM audit_events").await, 5);
    assert_eq!(
        database
            .count("SELECT count(*) FROM audit_counts WHERE day = '2026-01-01'")
            .await,
        0
    );
    assert_eq!(
        database
            .count("SELECT count(*) FROM audit_day_counts WHERE day = '2026-01-01'")
            .await,
        0
    );
    assert_eq!(retention::look(store, today, 300).await.unwrap(), Look::default());
}

#[tokio::test]
async fn a_reader_of_the_table_delays_a_drop_and_a_drop_delays_no_writer_for_long() {
    let database = Database::create().await;
    let store = &database.store;
    let old = date!(2026 - 01 - 01);
    insert(&database, &ended(id_on(old), None)).await;
    let today = date!(2026 - 12 - 01);
    let others: Vec<AuditRecord> = (0..255).map(|_| ended(id_on(today), None)).collect();
    let others: Vec<&AuditRecord> = others.iter().collect();
    store.create_audit_partition(today).await.unwrap();
    store.insert_audit_records(&others).await.unwrap();
    checkpoint::keep_tiles(store).await.unwrap();
    let mut reader = database.pool.begin().await.unwrap();
    sqlx::query("SELECT count(*) FROM audit_events")
        .execute(&mut *reader)
        .await
        .unwrap();
    let record = ended(id_on(today), None);
    let write = async {
        let began = std::time::Instant::now();
        store.insert_audit_records(&[&record]).await.unwrap();
        began.elapsed()
    };
    let (looked, waited) = tokio::join!(retention::look(store, today, 300), write);
    let put_off = Look {
        due: 1,
        put_off: 1,
        ..Look::default()
    };
    assert_eq!(looked.unwrap(), put_off);
    assert!(waited.as_secs() < 4, "{waited:?}");
    reader.rollback().await.unwrap();
    assert_eq!(retention::look(store, today, 300).await.unwrap().dropped, 1);
}

#[tokio::test]
async fn rewrapped_keys_open_with_the_new_master_key_alone() {
    let database = Database::create().await;
    let (day, drop_on) = (date!(2026 - 11 - 01), date!(2026 - 12 - 02));
    let ids = [
        keep_one(&database, "user:x", day, drop_on).await,
        keep_one(&database, "user:y", day, drop_on).await,
    ];
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("master");
    std::fs::write(&file, format!("{NEXT_MASTER}\n{MASTER}\n")).unwrap();
    for expected in ["wrapped 2 keys", "wrapped 0 keys"] {
        let output = database
            .command(&["audit", "rewrap", "--actor", "ops"])
            .env("DUO_AUDIT_MASTER_KEY_FILE", &file)
            .output()
            .unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(
            said.contains(expected),
            "{said}{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    assert!(matches!(
        read(&database, ids[0]).await,
        Err(ReadError::Unreadable(..))
    ));
    std::fs::write(&file, NEXT_MASTER).unwrap();
    for id in ids {
        let id = id.to_string();
        let output = database
            .command(&["audit", "body", &id, "--reason", "after the rotation"])
            .env("DUO_AUDIT_MASTER_KEY_FILE", &file)
            .output()
            .unwrap();
        let kept: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(kept["prompt"]["text"], "a prompt");
    }
    assert_eq!(details(&database, "changed", "audit.rewrap").await.len(), 1);
    let old: Vec<OldKey> = database.store.old_keys("nobody", 10).await.unwrap();
    let again = old.iter().map(|old| masters().rewrap(&old.key).is_err());
    assert_eq!(again.collect::<Vec<_>>(), [true, true]);
}

#[test]
fn the_command_line_wants_one_of_user_and_period() {
    for arguments in [
        &["audit", "erase"][..],
        &["audit", "erase", "--user", "x", "--period", "2026-11-01"],
    ] {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_duo-broker"))
            .args(arguments)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2));
    }
}
