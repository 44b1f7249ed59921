//! The audit log's hash tree against a real PostgreSQL: signed, proved, tampered with.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/app.rs"]
mod app;
#[path = "audit_tree/exports.rs"]
mod exports;
#[path = "support/servers.rs"]
mod servers;

use std::path::PathBuf;
use std::sync::Arc;

use async_nats::jetstream;
use axum::Router;
use axum::body::Body;
use duo_broker::audit::canonical::FIELDS;
use duo_broker::audit::checkpoint::{CheckpointError, CheckpointMetrics, Checkpointer, Contradiction, Parts};
use duo_broker::audit::note::{Checkpoint, SigningKeys, VerifyingKeys, generate_key};
use duo_broker::audit::prove;
use duo_broker::audit::retention;
use duo_broker::audit::tree::{Hash, TILE, Tile, verify_consistency, verify_inclusion};
use duo_broker::audit::verify::{Options, Place, Problem, Report, verify, verify_export};
use duo_broker::fleet::Fleet;
use duo_broker::store::audit_events::day_of;
use duo_broker::store::audit_retention::{Dropped, Partitioned};
use duo_broker::store::audit_search::Filter;
use duo_broker::store::{PoolConfig, Store};
use duo_contract::audit::{self, AuditKind, AuditRecord, End, Outcome, What, Who};
use duo_contract::snapshot::{ConfigSnapshot, Role};
use duo_contract::subject;
use duo_process::clock;
use prometheus::Registry;
use secrecy::SecretString;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use time::OffsetDateTime;
use tower::ServiceExt as _;
use uuid::Uuid;

use self::servers::{Database, admin};

/// More than two tiles, and a part of one.
const SOME: u64 = 2 * TILE + 88;

/// A log of its own with what signs it.
struct Log {
    database: Database,
    keys: String,
    folder: tempfile::TempDir,
    checkpointer: Checkpointer,
    /// Its own clock, on which every look comes when something is due.
    now: OffsetDateTime,
}

impl Log {
    async fn new() -> Log {
        let database = Database::create().await;
        let keys = generate_key("log").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("checkpoints");
        let checkpointer = checkpointer(&database.store, &keys, Some(file));
        Log {
            database,
            keys,
            folder,
            checkpointer,
            now: clock::now(),
        }
    }

    /// One with so many records, all of them signed, and a checkpoint before the last of them.
    async fn with(records: u64) -> Log {
        let mut log = Log::new().await;
        log.insert(records - 40).await;
        log.sign().await;
        log.insert(40).await;
        assert_eq!(log.sign().await.size, records);
        log
    }

    async fn insert(&self, records: u64) {
        insert(&self.database.store, records).await;
    }

    async fn sign(&mut self) -> Checkpoint {
        let later = self.later();
        self.checkpointer.turn(later).await.unwrap().unwrap()
    }

    fn later(&mut self) -> OffsetDateTime {
        self.now += time::Duration::hours(2);
        self.now
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("checkpoints")
    }

    fn kept(&self) -> Vec<Checkpoint> {
        Checkpoint::read_file(&std::fs::read_to_string(self.file()).unwrap()).0
    }

    fn options(&self) -> Options {
        Options {
            keys: Some(VerifyingKeys::parse(&self.keys).unwrap()),
            file: self.kept(),
            ..Options::default()
        }
    }

    async fn verify(&self) -> Report {
        verify(&self.database.store, self.options(), |_, _| {})
            .await
            .unwrap()
    }

    async fn problems(&self) -> Vec<Problem> {
        self.verify().await.problems
    }

    /// What somebody does whom no trigger stops.
    async fn tamper(&self, sql: &str) {
        let mut connection = PgConnection::connect(&self.database.url).await.unwrap();
        let sql = format!("SET session_replication_role = replica; {sql}");
        sqlx::raw_sql(AssertSqlSafe(sql))
            .execute(&mut connection)
            .await
            .unwrap();
    }
}

fn checkpointer(store: &Store, keys: &str, file: Option<PathBuf>) -> Checkpointer {
    let parts = Parts {
        store: store.clone(),
        keys: SigningKeys::parse(keys).unwrap(),
        file,
    };
    Checkpointer::new(parts, CheckpointMetrics::register(&Registry::new()))
}

/// Both records of requests, and changes with details.
fn record(number: u64) -> AuditRecord {
    let is_change = number.is_multiple_of(3);
    AuditRecord {
        kind: if is_change {
            AuditKind::Changed
        } else {
            AuditKind::Ended
        },
        request_id: Uuid::now_v7(),
        occurred_at_us: 1_790_000_000_000_000 + i64::try_from(number).unwrap(),
        broker: "b".into(),
        who: Who {
            auth: "gitlab".into(),
            user_id: Some(format!("person \u{e9} {number}")),
            ..Who::default()
        },
        what: What {
            job_id: number.is_multiple_of(2).then(Uuid::now_v7),
            ..What::of("/v2/code/completions", number)
        },
        end: (!is_change).then_some(End {
            outcome: Outcome::Completed,
            reason: None,
            worker: Some("w".into()),
            attempts: 1,
            queue_wait_us: Some(200),
            first_byte_us: None,
            duration_us: -1,
            input_tokens: Some(i64::MAX),
            output_tokens: Some(0),
            prompt_sha256: None,
            answer_sha256: None,
        }),
        details: is_change.then(|| r#"{"what": "a.b",  "x":[1.50]}"#.to_owned()),
    }
}

async fn insert(store: &Store, records: u64) {
    let records: Vec<AuditRecord> = (0..records).map(record).collect();
    let mut days: Vec<_> = records
        .iter()
        .filter_map(|record| day_of(record.request_id))
        .collect();
    days.dedup();
    for day in days {
        store.create_audit_partition(day).await.unwrap();
    }
    let records: Vec<&AuditRecord> = records.iter().collect();
    assert_eq!(
        store.insert_audit_records(&records).await.unwrap(),
        records.len() as u64
    );
}

#[tokio::test]
async fn every_column_but_the_day_is_hashed() {
    let database = Database::create().await;
    let columns: Vec<(String, String)> = sqlx::query_as(
        "SELECT column_name::text, data_type::text FROM information_schema.columns
         WHERE table_name = 'audit_events' AND column_name <> 'day'",
    )
    .fetch_all(&database.pool)
    .await
    .unwrap();
    let mut fields: Vec<&str> = FIELDS.iter().map(|(name, _)| *name).collect();
    let mut names: Vec<&str> = columns.iter().map(|(name, _)| name.as_str()).collect();
    fields.sort_unstable();
    names.sort_unstable();
    assert_eq!(fields, names);
    for (name, kind) in FIELDS {
        let (_, of) = columns.iter().find(|(column, _)| column == name).unwrap();
        let kinds = match of.as_str() {
            "text" => "Text",
            "bigint" | "integer" => "Integer",
            "boolean" => "Boolean",
            "uuid" => "Uuid",
            "timestamp with time zone" => "Moment",
            "bytea" => "Bytes",
            other => panic!("{name} is {other}, which canonical bytes do not know"),
        };
        assert_eq!(format!("{kind:?}"), kinds, "{name}");
    }
}

#[tokio::test]
async fn a_log_that_was_left_alone_is_good_whole_and_in_part() {
    let log = Log::with(SOME).await;
    let report = log.verify().await;
    assert_eq!(report.problems, []);
    assert_eq!((report.records, report.signed, report.unsigned), (SOME, SOME, 0));
    // Two checkpoints, in the table and in the file.
    assert_eq!((report.checkpoints, report.roots, report.signatures), (4, 4, 4));
    let tiles = log.database.count("SELECT count(*) FROM audit_tiles").await;
    assert_eq!(tiles, 2);
    let part = Options {
        from: 300,
        to: Some(310),
        ..log.options()
    };
    let report = verify(&log.database.store, part, |_, _| {}).await.unwrap();
    assert_eq!(
        (report.from, report.to, report.problems),
        (256, SOME - 40, vec![])
    );
}

#[tokio::test]
async fn an_export_is_verified_without_the_database() {
    let log = Log::with(120).await;
    let mut page = log
        .database
        .store
        .audit_page(&Filter::default(), 1000, None)
        .await
        .unwrap();
    page.events.sort_by_key(|event| std::cmp::Reverse(event.seq));
    let mut lines: Vec<String> = page
        .events
        .iter()
        .map(|event| serde_json::to_string(event).unwrap())
        .collect();
    let check = |lines: &[String]| {
        let text = lines.join("\n");
        verify_export(text.as_bytes(), &log.options(), |_| {}).unwrap()
    };
    let report = check(&lines);
    assert_eq!((report.records, report.roots, report.problems), (120, 2, vec![]));

    let (whole, cut) = (lines.clone(), lines.split_off(1));
    let last = whole[0].clone();
    assert!(last.contains("\"seq\":119"), "the last first: {last}");
    let shrunk = Problem::Shrunk {
        place: Place::File,
        signed: 120,
        there: 119,
    };
    assert_eq!(check(&cut).problems, [shrunk]);
    let mut gap = whole.clone();
    gap.remove(20);
    assert_eq!(check(&gap).problems, [Problem::Missing { from: 99, to: 99 }]);
    let mut edited = whole;
    edited[100] = edited[100].replace("person", "nobody");
    let roots = [80, 120].map(|size| Problem::Root {
        size,
        place: Place::File,
    });
    assert_eq!(check(&edited).problems, roots);
}

#[tokio::test]
async fn every_edit_of_a_superuser_is_found() {
    let log = Log::with(SOME).await;
    let name: Uuid = sqlx::query_scalar("SELECT request_id FROM audit_events WHERE seq = 300")
        .fetch_one(&log.database.pool)
        .await
        .unwrap();
    let kind: String = sqlx::query_scalar("SELECT kind FROM audit_events WHERE seq = 300")
        .fetch_one(&log.database.pool)
        .await
        .unwrap();
    log.tamper("UPDATE audit_events SET user_id = 'nobody' WHERE seq = 300")
        .await;
    let altered = |seq, record| Problem::Altered { seq, record };
    assert_eq!(
        log.problems().await,
        [altered(300, Some(format!("{name} {kind}")))]
    );
    let mut command = log.database.command(&["audit", "verify"]);
    let output = command.output().unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(
        told.contains(&format!("record 300 was altered ({name} {kind})")),
        "{told}"
    );
    log.tamper("UPDATE audit_events SET user_id = 'person \u{e9} 300' WHERE seq = 300")
        .await;
    assert_eq!(log.problems().await, []);

    log.tamper("UPDATE audit_events SET seq = 1 - seq WHERE seq IN (0, 1)")
        .await;
    let swapped = log.problems().await;
    assert!(
        matches!(
            swapped[..],
            [Problem::Altered { seq: 0, .. }, Problem::Altered { seq: 1, .. }]
        ),
        "{swapped:?}"
    );
    log.tamper("UPDATE audit_events SET seq = 1 - seq WHERE seq IN (0, 1)")
        .await;

    log.tamper("UPDATE audit_events SET seq = NULL WHERE seq = 7")
        .await;
    let hidden = log.problems().await;
    assert!(
        matches!(
            hidden[..],
            [Problem::Missing { from: 7, to: 7 }, Problem::Unnumbered { .. }]
        ),
        "{hidden:?}"
    );
    log.tamper("UPDATE audit_events SET seq = 7 WHERE seq IS NULL")
        .await;

    // In no tile yet, so that the root alone tells.
    log.tamper("UPDATE audit_events SET broker = 'c' WHERE seq = 560")
        .await;
    let found = log.problems().await;
    let root = |place| Problem::Root { size: SOME, place };
    assert_eq!(found, [root(Place::Table), root(Place::File)]);
    log.tamper("UPDATE audit_events SET broker = 'b' WHERE seq = 560")
        .await;

    log.tamper("DELETE FROM audit_events WHERE seq IN (10, 11, 12, 300)")
        .await;
    let gone = [
        Problem::Missing { from: 10, to: 12 },
        Problem::Missing { from: 300, to: 300 },
    ];
    assert_eq!(log.problems().await, gone);
}

/// A day long past.
const PAST: time::Date = time::macros::date!(2026 - 01 - 01);

/// Records of [`PAST`] and of today, turn and turn about.
async fn insert_old_and_new(store: &Store, records: u64) {
    for day in [PAST, clock::now().date()] {
        store.create_audit_partition(day).await.unwrap();
    }
    let seconds = u64::try_from(PAST.midnight().assume_utc().unix_timestamp()).unwrap();
    let records: Vec<AuditRecord> = (0..records)
        .map(|number| {
            let mut record = record(number);
            if number.is_multiple_of(2) {
                let at = uuid::Timestamp::from_unix(uuid::NoContext, seconds + number, 0);
                record.request_id = Uuid::new_v7(at);
            }
            record
        })
        .collect();
    for batch in records.chunks(500) {
        let batch: Vec<&AuditRecord> = batch.iter().collect();
        store.insert_audit_records(&batch).await.unwrap();
    }
}

#[tokio::test]
async fn what_rule_dropped_is_no_gap_and_all_else_is() {
    let mut log = Log::new().await;
    let store = log.database.store.clone();
    insert_old_and_new(&store, 300).await;
    log.sign().await;
    // Record 298 is in no full tile, and without it nothing could be proved of it.
    let early = store.drop_partition(Partitioned::Events, PAST).await.unwrap();
    assert_eq!(early, Dropped::NotInTree);
    log.insert(300).await;
    log.sign().await;
    let gone = store.drop_partition(Partitioned::Events, PAST).await.unwrap();
    assert_eq!(gone, Dropped::Gone);
    log.insert(5).await;
    let last = log.sign().await;
    assert_eq!(last.size, 606);

    let report = log.verify().await;
    assert_eq!(report.problems, []);
    assert_eq!(
        (report.records, report.dropped, report.dropped_by),
        (456, 150, Some(600))
    );
    // A broker that has just started makes the tree of what is there.
    let mut next = checkpointer(&store, &log.keys, Some(log.file()));
    let later = log.later();
    assert_eq!(next.turn(later).await.unwrap().unwrap().root, last.root);
    // So does a proof that begins among the dropped.
    let growth = prove::growth(&store, 99, 606).await.unwrap();
    assert_eq!(growth.new_root, hex(&last.root));

    log.tamper("DELETE FROM audit_events WHERE seq = 101").await;
    assert_eq!(log.problems().await, [Problem::Missing { from: 101, to: 101 }]);
    // A drop that is made to say more than it said is found, also where only a part is verified.
    log.insert(300).await;
    log.sign().await;
    log.tamper(
        "UPDATE audit_events SET details = replace(details, '[100,100]', '[100,101]') WHERE seq = 600",
    )
    .await;
    let part = Options {
        to: Some(256),
        ..log.options()
    };
    let report = verify(&store, part, |_, _| {}).await.unwrap();
    for problems in [report.problems, log.problems().await] {
        assert!(
            matches!(problems[..], [Problem::Altered { seq: 600, .. }]),
            "{problems:?}"
        );
    }
}

#[tokio::test]
async fn a_log_that_nobody_signed_can_drop_records_and_be_signed_later() {
    let mut log = Log::new().await;
    let store = log.database.store.clone();
    insert_old_and_new(&store, 600).await;
    let today = log.now.date();
    let look = retention::look(&store, today, 2).await.unwrap();
    assert_eq!(
        (look.dropped, look.due),
        (0, 1),
        "the last ones are in no full tile"
    );
    log.insert(256).await;
    let look = retention::look(&store, today, 2).await.unwrap();
    assert_eq!((look.dropped, look.due), (1, 0));
    assert_eq!(log.sign().await.size, 857);
    let report = log.verify().await;
    assert_eq!(report.problems, []);
    assert_eq!((report.records, report.dropped), (557, 300));
}

#[tokio::test]
async fn altered_tiles_and_checkpoints_are_found() {
    let log = Log::with(SOME).await;
    let original: Vec<u8> =
        sqlx::query_scalar("SELECT hashes FROM audit_tiles WHERE level = 0 AND number = 1")
            .fetch_one(&log.database.pool)
            .await
            .unwrap();
    log.tamper("UPDATE audit_tiles SET hashes = set_byte(hashes, 40, 1 - sign(get_byte(hashes, 40))::int) WHERE number = 1")
        .await;
    let tile = Problem::TileAltered { level: 0, number: 1 };
    assert_eq!(log.problems().await, [tile]);
    log.tamper("DELETE FROM audit_tiles WHERE number = 1").await;
    assert_eq!(
        log.problems().await,
        [Problem::TileMissing { level: 0, number: 1 }]
    );
    log.tamper(&format!(
        "INSERT INTO audit_tiles VALUES (0, 1, decode('{}', 'hex'))",
        hex(&original)
    ))
    .await;
    assert_eq!(log.problems().await, []);

    log.tamper("UPDATE audit_checkpoints SET root = sha256('x') WHERE id = 1")
        .await;
    let found = log.problems().await;
    let (size, place) = (SOME - 40, Place::Table);
    assert_eq!(
        found,
        [Problem::Checkpoint { size, place }, Problem::NotInTable { size }]
    );
    log.tamper("DELETE FROM audit_checkpoints WHERE id = 1").await;
    assert_eq!(log.problems().await, [Problem::NotInTable { size }]);

    // One that somebody else has signed.
    let stranger = SigningKeys::parse(&generate_key("log").unwrap()).unwrap();
    let kept = log.kept().remove(0);
    let forged = stranger.sign(kept.size, &kept.root, kept.at.unwrap());
    log.tamper(&format!(
        "INSERT INTO audit_checkpoints (size, root, signed_at, note) VALUES ({}, decode('{}', 'hex'), now(), '{}')",
        forged.size,
        hex(&forged.root),
        forged.note
    ))
    .await;
    let found = log.problems().await;
    assert_eq!(
        found,
        [Problem::Signature { size, place }, Problem::NotInTable { size }]
    );
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Puts the database back to what it was when it had `size` records.
async fn yesterday(log: &Log, size: u64) {
    log.tamper(&format!(
        "DELETE FROM audit_events WHERE seq >= {size}; DELETE FROM audit_checkpoints WHERE size > {size};
         DELETE FROM audit_tiles WHERE (number + 1) * 256 > {size}; UPDATE audit_head SET size = {size}"
    ))
    .await;
}

#[tokio::test]
async fn yesterdays_database_is_found_and_not_signed_over() {
    let mut log = Log::with(SOME).await;
    let before = SOME - 40;
    log.tamper(&format!("DELETE FROM audit_events WHERE seq >= {before}"))
        .await;
    assert_eq!(
        log.problems().await,
        [
            Problem::Missing {
                from: before,
                to: SOME - 1
            },
            Problem::Shrunk {
                place: Place::Table,
                signed: SOME,
                there: before
            },
            Problem::Shrunk {
                place: Place::File,
                signed: SOME,
                there: before
            }
        ]
    );
    yesterday(&log, before).await;
    let alone = Options {
        file: vec![],
        ..log.options()
    };
    let report = verify(&log.database.store, alone, |_, _| {}).await.unwrap();
    assert_eq!(report.problems, [], "an older database is good in itself");
    let shrunk = Problem::Shrunk {
        place: Place::File,
        signed: SOME,
        there: before,
    };
    assert_eq!(log.problems().await, [shrunk]);

    let later = log.later();
    let refused = |ended: Result<_, CheckpointError>| match ended {
        Err(CheckpointError::Contradiction(why)) => why,
        other => panic!("{other:?}"),
    };
    let why = refused(log.checkpointer.turn(later).await);
    assert_eq!(
        why,
        Contradiction::Shrunk {
            place: "the file",
            signed: SOME,
            there: before
        }
    );
    // Others write on, beyond what was signed: it is another history.
    log.insert(100).await;
    let why = refused(log.checkpointer.turn(later).await);
    assert_eq!(
        why,
        Contradiction::Root {
            place: "the file",
            size: SOME
        }
    );
    assert_eq!(
        log.database.count("SELECT count(*) FROM audit_checkpoints").await,
        1
    );
    // The operator has looked into it, and puts the file away.
    std::fs::rename(log.file(), log.folder.path().join("before")).unwrap();
    assert_eq!(log.sign().await.size, before + 100);
    assert_eq!(log.problems().await, []);
}

#[tokio::test]
async fn what_a_crash_leaves_is_gone_on_with() {
    let mut log = Log::new().await;
    log.insert(SOME).await;
    let leaves = log.database.store.audit_leaves(0..TILE).await.unwrap();
    let hashes: Vec<Hash> = leaves.hashes.into_iter().map(Option::unwrap).collect();
    let tile = Tile {
        level: 0,
        number: 0,
        hashes,
    };
    // Killed before the turn was over: nothing stands.
    let mut turn = log.database.store.begin_audit_turn().await.unwrap().unwrap();
    turn.insert_tiles(std::slice::from_ref(&tile)).await.unwrap();
    assert!(log.database.store.begin_audit_turn().await.unwrap().is_none());
    drop(turn);
    let store = &log.database.store;
    // A tile that stands without a checkpoint, as a restored table may have it, and half an entry in the file.
    let mut turn = loop {
        // The lock goes with the transaction, which ends a moment after it was dropped.
        match store.begin_audit_turn().await.unwrap() {
            Some(turn) => break turn,
            None => tokio::task::yield_now().await,
        }
    };
    turn.insert_tiles(&[tile]).await.unwrap();
    turn.commit().await.unwrap();
    std::fs::write(log.file(), "log\n12\nhalf").unwrap();
    log.sign().await;
    log.insert(40).await;
    log.sign().await;
    assert_eq!(log.problems().await, []);
    assert_eq!(log.kept().len(), 2);
}

#[tokio::test]
async fn a_false_tile_is_not_signed_over() {
    let mut log = Log::new().await;
    log.insert(TILE).await;
    log.tamper("INSERT INTO audit_tiles VALUES (0, 0, decode(repeat('00', 8192), 'hex'))")
        .await;
    let later = log.later();
    assert!(log.checkpointer.turn(later).await.is_err());
    assert_eq!(
        log.database.count("SELECT count(*) FROM audit_checkpoints").await,
        0
    );
}

#[tokio::test]
async fn checkpoints_come_when_they_are_due() {
    let mut log = Log::new().await;
    let start = clock::now();
    let mut at = async |seconds: i64| {
        let now = start + time::Duration::seconds(seconds);
        let signed = log.checkpointer.turn(now).await.unwrap();
        signed.map(|checkpoint| checkpoint.size)
    };
    assert_eq!(at(0).await, None, "an empty log");
    insert(&log.database.store, 5).await;
    assert_eq!(at(1).await, Some(5));
    insert(&log.database.store, 999).await;
    assert_eq!(at(2).await, None);
    insert(&log.database.store, 1).await;
    assert_eq!(at(3).await, Some(1005), "a thousand new ones");
    insert(&log.database.store, 1).await;
    assert_eq!((at(12).await, at(13).await), (None, Some(1006)), "ten seconds");
    assert_eq!((at(3612).await, at(3613).await), (None, Some(1006)), "an hour");
}

#[tokio::test(flavor = "multi_thread")]
async fn brokers_that_write_and_sign_at_once_make_one_log() {
    let mut log = Log::new().await;
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let signers: Vec<_> = (0..2)
        .map(|_| {
            let mut signer = checkpointer(&log.database.store, &log.keys, None);
            let done = Arc::clone(&done);
            tokio::spawn(async move {
                let mut signed = 0;
                let mut now = clock::now();
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    now += time::Duration::minutes(1);
                    signed += u32::from(signer.turn(now).await.unwrap().is_some());
                }
                signed
            })
        })
        .collect();
    let writers = (0..3).map(|_| {
        let store = log.database.store.clone();
        tokio::spawn(async move {
            for _ in 0..15 {
                insert(&store, 41).await;
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    let mut signed = 0;
    for signer in signers {
        signed += signer.await.unwrap();
    }
    assert!(signed > 2, "{signed} checkpoints");
    let later = clock::now() + time::Duration::days(9);
    assert_eq!(
        log.checkpointer.turn(later).await.unwrap().unwrap().size,
        3 * 15 * 41
    );
    assert_eq!(log.problems().await, []);
}

fn hash(value: &Value) -> Hash {
    let text = value.as_str().unwrap();
    let bytes: Vec<u8> = (0..32)
        .map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap())
        .collect();
    bytes.try_into().unwrap()
}

/// Who reads the log over the API, and the stream that records it.
struct Auditor {
    app: Router,
    stream: jetstream::stream::Stream,
}

impl Auditor {
    async fn of(log: &Log) -> Self {
        let nats = servers::nats().await;
        let config = jetstream::stream::Config {
            name: subject::AUDIT_STREAM.to_owned(),
            subjects: vec![subject::AUDIT_SUBJECTS.to_owned()],
            ..Default::default()
        };
        let stream = nats.jetstream().create_stream(config).await.unwrap();
        let keys = SigningKeys::parse(&log.keys).unwrap();
        let app = app::app(
            nats,
            ["duo_a_one", "duo_a_two"]
                .map(|name| app::token(name, Role::Auditor))
                .to_vec(),
            ConfigSnapshot::default(),
            Fleet::default(),
            Some((log.database.store.clone(), Some(Arc::new(keys)))),
        );
        Self { app, stream }
    }

    async fn get_as(&self, token: &str, path: &str) -> (http::response::Parts, Vec<u8>) {
        let request = http::Request::get(path).header("authorization", format!("Bearer {token}"));
        let request = request.body(Body::empty()).unwrap();
        let response = self.app.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        (parts, axum::body::to_bytes(body, 1 << 20).await.unwrap().to_vec())
    }

    async fn get(&self, path: &str) -> (http::response::Parts, Vec<u8>) {
        self.get_as("duo_a_one", path).await
    }

    /// What was recorded so far.
    async fn records(&self) -> Vec<AuditRecord> {
        let mut records = Vec::new();
        let state = self.stream.get_info().await.unwrap().state;
        for number in 1..=state.last_sequence {
            let message = self.stream.get_raw_message(number).await.unwrap();
            for record in audit::split(&message.payload) {
                records.push(AuditRecord::decode(record).unwrap());
            }
        }
        records
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn records_and_growth_are_proved_over_the_api() {
    let log = Log::with(SOME).await;
    log.insert(1).await;
    let auditor = Auditor::of(&log).await;
    let get = async |path: String| {
        let (parts, body) = auditor.get(&path).await;
        (parts.status, String::from_utf8(body).unwrap())
    };
    let json = |(status, text): (http::StatusCode, String)| -> Value {
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(&text).unwrap()
    };
    for seq in [0, 255, 256, SOME - 1] {
        let id: Uuid = sqlx::query_scalar(AssertSqlSafe(format!(
            "SELECT request_id FROM audit_events WHERE seq = {seq}"
        )))
        .fetch_one(&log.database.pool)
        .await
        .unwrap();
        let found = json(get(format!("/audit/v1/events/{id}/proof")).await);
        let proof = &found["proofs"][0];
        let path: Vec<Hash> = proof["path"].as_array().unwrap().iter().map(hash).collect();
        let note = proof["checkpoint"].as_str().unwrap();
        let checkpoint = Checkpoint::parse(note).unwrap();
        assert!(VerifyingKeys::parse(&log.keys).unwrap().prove(&checkpoint));
        assert_eq!((proof["seq"].as_u64(), checkpoint.size), (Some(seq), SOME));
        let leaf = hash(&proof["leaf_hash"]);
        assert!(
            verify_inclusion(&leaf, seq, SOME, &path, &checkpoint.root),
            "{seq}"
        );
    }
    let id: Uuid = sqlx::query_scalar("SELECT request_id FROM audit_events ORDER BY seq DESC LIMIT 1")
        .fetch_one(&log.database.pool)
        .await
        .unwrap();
    let found = json(get(format!("/audit/v1/events/{id}/proof")).await);
    assert_eq!(
        (
            found["proofs"].as_array().map(Vec::len),
            found["unsigned"][0].as_u64()
        ),
        (Some(0), Some(SOME))
    );

    let list = json(get("/audit/v1/checkpoints?limit=1".into()).await);
    let before = list["next_before"].as_i64().unwrap();
    let older = json(get(format!("/audit/v1/checkpoints?before={before}")).await);
    assert_eq!(older["checkpoints"][0]["size"].as_u64(), Some(SOME - 40));
    assert_eq!(
        get("/audit/v1/checkpoints/latest".into()).await.1,
        list["checkpoints"][0]["note"].as_str().unwrap()
    );

    let growth = json(get(format!("/audit/v1/consistency?old={}&new={SOME}", SOME - 40)).await);
    let path: Vec<Hash> = growth["path"].as_array().unwrap().iter().map(hash).collect();
    let (old, new) = (hash(&growth["old_root"]), hash(&growth["new_root"]));
    assert!(verify_consistency(SOME - 40, SOME, &path, &old, &new));
    assert_eq!(hash(&older["checkpoints"][0]["root"]), old);

    for (path, status) in [
        ("/audit/v1/events/x/proof".to_owned(), 422),
        (format!("/audit/v1/events/{}/proof", Uuid::now_v7()), 404),
        ("/audit/v1/consistency?old=0&new=1".to_owned(), 422),
        (format!("/audit/v1/consistency?old=1&new={}", SOME + 1), 422),
        ("/audit/v1/checkpoints?limit=0".to_owned(), 422),
    ] {
        let (found, text) = get(path.clone()).await;
        assert_eq!(found, status, "{path}: {text}");
    }

    // Each was recorded before it was shown, polling once for each caller.
    for token in ["duo_a_one", "duo_a_two", "duo_a_two"] {
        let (parts, _) = auditor.get_as(token, "/audit/v1/checkpoints/latest").await;
        assert_eq!(parts.status, 200);
    }
    let records = auditor.records().await;
    assert!(records.iter().all(|record| record.kind == AuditKind::Read));
    let mut reads: Vec<String> = records
        .iter()
        .map(|record| serde_json::from_str::<Value>(record.details.as_deref().unwrap()).unwrap())
        .map(|details| details["read"].as_str().unwrap().to_owned())
        .collect();
    reads.sort_unstable();
    let mut expected = [
        "checkpoint",
        "checkpoint",
        "checkpoints",
        "checkpoints",
        "consistency",
    ]
    .to_vec();
    expected.extend(["proof"; 6]);
    assert_eq!(reads, expected);
}

/// A store that speaks as `role`, which is what a login in it may do.
async fn store_as(database: &Database, role: &str) -> Store {
    let login = format!("{}_{role}", database.name);
    admin(&format!("CREATE ROLE {login} LOGIN IN ROLE {role}")).await;
    let url = database.url.replace("duo@", &format!("{login}@"));
    Store::connect(&SecretString::from(url), PoolConfig::default()).unwrap()
}

#[tokio::test]
async fn roles_may_do_their_work_and_nothing_else() {
    let mut log = Log::with(300).await;
    let roles = include_str!("../../deploy/postgres/roles.sql");
    for _ in 0..2 {
        sqlx::raw_sql(roles).execute(&log.database.pool).await.unwrap();
    }
    let app = store_as(&log.database, "duo_app").await;
    assert!(app.server().await.unwrap().may_create);
    assert_eq!(app.missing_rights().await.unwrap(), [""; 0]);
    insert(&app, 300).await;
    app.create_audit_partition(time::macros::date!(2020 - 01 - 01))
        .await
        .unwrap();
    let mut signer = checkpointer(&app, &log.keys, Some(log.file()));
    let later = log.later();
    assert_eq!(signer.turn(later).await.unwrap().unwrap().size, 600);
    let auditor = store_as(&log.database, "duo_auditor").await;
    let report = verify(&auditor, log.options(), |_, _| {}).await.unwrap();
    assert_eq!((report.records, report.problems), (600, vec![]));
    readings_are_recorded_where_the_login_may_write(&log).await;

    let tables = [
        "audit_events",
        "audit_late_ends",
        "audit_tiles",
        "audit_checkpoints",
        "audit_head",
        "change_records",
        "audit_events_20200101",
    ];
    for role in [
        "duo_app",
        "duo_auditor",
        "duo_retention",
        "duo_checkpoint",
        "duo_owner",
    ] {
        for table in tables {
            for statement in [
                format!("DELETE FROM {table}"),
                format!("TRUNCATE {table}"),
                format!("UPDATE {table} SET {} = {0}", column(table)),
                format!("DROP TABLE {table}"),
                format!("ALTER TABLE {table} DISABLE TRIGGER ALL"),
            ] {
                let is_owner = match table {
                    "audit_checkpoints" => role == "duo_checkpoint",
                    _ => role == "duo_owner",
                };
                let is_of_owners = statement.starts_with("DROP") || statement.starts_with("ALTER");
                let may_count = role == "duo_app" && statement.starts_with("UPDATE audit_head");
                let is_empty =
                    ["audit_late_ends", "audit_events_20200101", "change_records"].contains(&table);
                // Owners are stopped by triggers, which need rows, and by nothing in taking a table away: nobody is one.
                if is_owner && (is_of_owners || (is_empty && !statement.starts_with("TRUNCATE"))) || may_count
                {
                    continue;
                }
                if is_owner && statement.starts_with("UPDATE audit_head") {
                    continue;
                }
                let mut connection = PgConnection::connect(&log.database.url).await.unwrap();
                let sql = format!("BEGIN; SET LOCAL ROLE {role}; {statement}");
                let ended = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await;
                assert!(ended.is_err(), "{role}: {statement}");
            }
        }
    }
    let mut connection = PgConnection::connect(&log.database.url).await.unwrap();
    for statement in [
        "UPDATE audit_head SET size = size - 1",
        "SELECT drop_job_partitions('audit_events', '2100-01-01')",
        "SET session_replication_role = replica",
        "CREATE TABLE mine ()",
    ] {
        let sql = format!("BEGIN; SET LOCAL ROLE duo_app; {statement}");
        let ended = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await;
        assert!(ended.is_err(), "{statement}");
        sqlx::raw_sql("ROLLBACK").execute(&mut connection).await.unwrap();
    }
    assert_eq!(log.problems().await, []);
}

/// `audit prove` and `audit verify` work for both, and leave a record where that is possible.
async fn readings_are_recorded_where_the_login_may_write(log: &Log) {
    let name = log.database.store.record_name(7).await.unwrap().unwrap();
    let id = name.request_id.to_string();
    let reads = "SELECT count(*) FROM audit_events WHERE kind = 'read' AND user_id = 'eve'";
    for (role, recorded) in [("duo_auditor", 0), ("duo_app", 2)] {
        let login = format!("{}_{role}@", log.database.name);
        let url = log.database.url.replace("duo@", &login);
        for command in [vec!["audit", "prove", &id], vec!["audit", "verify"]] {
            let mut command = log.database.command(&command);
            command.env("DUO_DATABASE_URL", &url).args(["--actor", "eve"]);
            let output = command.output().unwrap();
            let said = String::from_utf8(output.stderr).unwrap();
            assert!(output.status.success(), "{role}: {said}");
            assert_eq!(said.contains("reads only"), recorded == 0, "{role}: {said}");
        }
        assert_eq!(log.database.count(reads).await, recorded, "{role}");
    }
}

fn column(table: &str) -> &'static str {
    match table {
        "audit_tiles" => "hashes",
        "audit_checkpoints" => "note",
        "audit_head" => "size",
        "change_records" => "what",
        _ => "broker",
    }
}

#[tokio::test]
async fn a_key_is_made_and_its_public_half_shown() {
    let database = Database::empty().await;
    let made = database
        .command(&["audit", "key", "--name", "gateway"])
        .output()
        .unwrap();
    assert!(made.status.success());
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &made.stdout).unwrap();
    let path = file.path().to_str().unwrap();
    let shown = database
        .command(&["audit", "key", "--public", path])
        .output()
        .unwrap();
    let keys = SigningKeys::parse(std::str::from_utf8(&made.stdout).unwrap()).unwrap();
    assert_eq!(
        String::from_utf8(shown.stdout).unwrap(),
        keys.verifying().to_string()
    );
    assert_eq!(keys.origin(), "gateway");
}
