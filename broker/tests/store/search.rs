//! Searching and counting: what comes out is what a look at every record would find.

use std::collections::BTreeMap;

use duo_broker::store::audit_facets::{Count, Facet};
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use parquet::record::Field;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::*;

/// Numbers that are the same in each run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % most
    }

    fn one_of<'a>(&mut self, words: &[&'a str]) -> Option<&'a str> {
        let at = usize::try_from(self.below(words.len() as u64 + 1)).unwrap();
        words.get(at).copied()
    }

    fn record(&mut self) -> AuditRecord {
        let day = self.below(3);
        // Some occur long after the day of their id.
        let late = if self.below(10) == 0 {
            self.below(4) * 86_400
        } else {
            0
        };
        let second = i64::try_from(day * 86_400 + self.below(86_400) + late).unwrap();
        let mut record = if self.below(3) == 0 {
            admitted(id_on(day), second, "b1")
        } else {
            ended(id_on(day), second, "b1")
        };
        record.who.user_id = self.one_of(&["ann", "bob"]).map(str::to_owned);
        record.who.token_id = self.one_of(&["token-1", "token-2"]).map(str::to_owned);
        record.who.instance_id = self.one_of(&["here", "there"]).map(str::to_owned);
        record.who.client = self.one_of(&["Workhorse", "curl"]).map(str::to_owned);
        record.what.feature = self.one_of(&["code_completion", "duo_chat"]).map(feature);
        record.what.model = self
            .one_of(&["mistral", "codegemma"])
            .map(|name| ModelName::parse(name).unwrap());
        record.what.correlation_id = self.one_of(&["c-1", "c-2"]).map(str::to_owned);
        if let Some(end) = &mut record.end {
            end.outcome = Outcome::ALL[usize::try_from(self.below(6)).unwrap()];
            end.reason = self.one_of(&["overloaded", "internal"]).map(str::to_owned);
        }
        record
    }

    fn moment(&mut self) -> Option<OffsetDateTime> {
        let hour = NEW_YEAR + self.below(5 * 24) * 3600;
        let past = [0, self.below(3600)][usize::try_from(self.below(2)).unwrap()];
        let moment = OffsetDateTime::from_unix_timestamp(i64::try_from(hour + past).unwrap()).unwrap();
        (self.below(3) == 0).then_some(moment)
    }

    fn filter(&mut self) -> Filter {
        let mut text = |words: &[&str]| {
            let word = self.one_of(words).map(str::to_owned);
            word.filter(|_| self.below(3) == 0)
        };
        let mut filter = Filter {
            feature: text(&["code_completion", "duo_chat", "none"]),
            model: text(&["mistral", "codegemma"]),
            user: text(&["ann", "token-1"]),
            instance: text(&["here", "there"]),
            client: text(&["curl"]),
            reason: text(&["internal"]),
            correlation_id: text(&["c-1"]),
            q: text(&["WORKHORSE", "over", "v2/code"]),
            ..Filter::default()
        };
        filter.since = self.moment();
        filter.until = self.moment();
        filter.kind = (self.below(4) == 0).then_some(AuditKind::Ended);
        filter.outcome = (self.below(4) == 0).then_some(Outcome::Failed);
        filter
    }
}

fn moment(record: &AuditRecord) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(record.occurred_at_us) * 1000).unwrap()
}

fn value(record: &AuditRecord, facet: Facet) -> Option<String> {
    let end = record.end.as_ref();
    match facet {
        Facet::Kind => Some(record.kind.as_str().to_owned()),
        Facet::Outcome => end.map(|end| end.outcome.as_str().to_owned()),
        Facet::Reason => end.and_then(|end| end.reason.clone()),
        Facet::Feature => record.what.feature.as_ref().map(|name| name.as_str().to_owned()),
        Facet::Model => record.what.model.as_ref().map(|name| name.as_str().to_owned()),
        Facet::Instance => record.who.instance_id.clone(),
    }
}

fn lets_through(filter: &Filter, record: &AuditRecord) -> bool {
    let is = |wanted: &Option<String>, has: Option<&str>| wanted.is_none() || wanted.as_deref() == has;
    let of = |wanted: Option<&str>, facet| wanted.is_none() || wanted == value(record, facet).as_deref();
    let who = &record.who;
    let said = [
        Some(record.what.route.as_str()),
        who.user_id.as_deref(),
        who.token_id.as_deref(),
        who.client.as_deref(),
        record.what.correlation_id.as_deref(),
    ];
    let facets = Facet::ALL.map(|facet| value(record, facet));
    let said = said
        .into_iter()
        .flatten()
        .chain(facets[2..5].iter().filter_map(|value| value.as_deref()))
        .any(|text| {
            text.to_lowercase()
                .contains(&filter.q.clone().unwrap_or_default().to_lowercase())
        });
    of(filter.feature.as_deref(), Facet::Feature)
        && of(filter.model.as_deref(), Facet::Model)
        && of(filter.instance.as_deref(), Facet::Instance)
        && of(filter.reason.as_deref(), Facet::Reason)
        && of(filter.kind.map(AuditKind::as_str), Facet::Kind)
        && of(filter.outcome.map(Outcome::as_str), Facet::Outcome)
        && is(&filter.user, who.user_id.as_deref().or(who.token_id.as_deref()))
        && is(&filter.client, who.client.as_deref())
        && is(&filter.correlation_id, record.what.correlation_id.as_deref())
        && filter.since.is_none_or(|since| moment(record) >= since)
        && filter.until.is_none_or(|until| moment(record) < until)
        && (filter.q.is_none() || said)
}

async fn found(store: &Store, filter: &Filter, limit: u32) -> Vec<Uuid> {
    let (mut found, mut cursor) = (Vec::new(), None);
    loop {
        let page = store.audit_page(filter, limit, cursor.as_ref()).await.unwrap();
        found.extend(page.events.iter().map(|event| event.request_id));
        cursor = page
            .next_cursor
            .map(|next| Cursor::parse(&next.to_string()).unwrap());
        if cursor.is_none() {
            return found;
        }
    }
}

#[tokio::test]
async fn pages_and_counts_are_those_of_a_look_at_every_record() {
    let database = Database::create().await;
    let store = &database.store;
    let mut numbers = Numbers(7);
    let records: Vec<AuditRecord> = (0..600).map(|_| numbers.record()).collect();
    for batch in records.chunks(100) {
        let batch: Vec<_> = batch.iter().collect();
        assert_eq!(insert(store, &batch).await, 100);
    }
    // What comes twice is counted once.
    let again: Vec<_> = records[50..150].iter().collect();
    assert_eq!(insert(store, &again).await, 0);
    for counts in ["audit_counts", "audit_day_counts"] {
        let counted = format!("SELECT sum(records)::bigint FROM {counts}");
        assert_eq!(database.count(&counted).await, 600);
    }

    let mut ones = 0;
    for turn in 0..150 {
        let filter = if turn == 0 {
            Filter::default()
        } else {
            numbers.filter()
        };
        let mut expected: Vec<_> = records
            .iter()
            .filter(|record| lets_through(&filter, record))
            .collect();
        expected.sort_by_key(|record| std::cmp::Reverse((record.occurred_at_us, record.request_id)));
        let ids: Vec<_> = expected.iter().map(|record| record.request_id).collect();
        ones += usize::from(!ids.is_empty());
        assert_eq!(found(store, &filter, 7).await, ids, "{filter:?}");
        assert_eq!(found(store, &filter, 1000).await, ids, "{filter:?}");

        let facets = store.audit_facets(&filter, &Facet::ALL).await.unwrap();
        assert_eq!(facets.records, i64::try_from(ids.len()).unwrap(), "{filter:?}");
        assert_eq!(facets.counted_to, None);
        for facet in Facet::ALL {
            let mut counts: BTreeMap<Option<String>, i64> = BTreeMap::new();
            for record in &expected {
                *counts.entry(value(record, facet)).or_default() += 1;
            }
            let told = facets.facets[facet.as_str()].iter();
            let told: BTreeMap<_, _> = told
                .map(|Count { value, records }| (value.clone(), *records))
                .collect();
            assert_eq!(told, counts, "{facet:?} {filter:?}");
        }
    }
    assert!(ones > 50, "most filters find nothing: {ones}");
}

#[tokio::test]
async fn a_database_with_real_requests_gets_no_generated_ones() {
    let database = Database::create().await;
    let text = |arguments: &[&str], good: bool| {
        let output = database.command(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.success(), good, "{arguments:?}: {said}");
        (String::from_utf8(output.stdout).unwrap(), said)
    };
    let json = |arguments: &[&str]| -> Value { serde_json::from_str(&text(arguments, true).0).unwrap() };
    let generate = [
        "audit",
        "generate",
        "--records",
        "3000",
        "--days",
        "2",
        "--users",
        "5",
    ];
    text(&generate, true);
    assert_eq!(database.count("SELECT count(*) FROM audit_events").await, 3000);
    assert_eq!(database.count("SELECT size FROM audit_head").await, 3000);
    assert_eq!(
        database
            .count("SELECT sum(records)::bigint FROM audit_counts")
            .await,
        3000
    );
    let strange = "SELECT count(*) FROM audit_events WHERE day <> date_trunc('day', to_timestamp(
        ('x0000' || left(replace(request_id::text, '-', ''), 12))::bit(64)::bigint / 1000) AT TIME ZONE 'UTC')";
    assert_eq!(database.count(strange).await, 0);

    let facets = json(&[
        "audit", "facets", "--kind", "ended", "--by", "outcome", "--format", "json",
    ]);
    assert_eq!(facets["records"], 1500, "{facets}");
    let page = json(&[
        "audit",
        "search",
        "--outcome",
        "failed",
        "--limit",
        "3",
        "--format",
        "json",
        "--actor",
        "eve",
    ]);
    let id = page["events"][0]["request_id"].as_str().unwrap();
    let both = json(&["audit", "show", id]);
    assert_eq!(both["events"].as_array().unwrap().len(), 2, "{both}");
    // Each of them is in the log by now, with who read what.
    let reads = json(&[
        "audit", "search", "--kind", "read", "--user", "eve", "--format", "json",
    ]);
    let read = &reads["events"][0];
    assert_eq!(read["auth"], "command_line");
    assert_eq!(read["details"]["filter"]["outcome"], "failed", "{read}");
    assert_eq!(read["details"]["rows"], 3);
    assert_eq!(
        database
            .count("SELECT count(*) FROM audit_events WHERE kind = 'read'")
            .await,
        4
    );

    insert(&database.store, &[&ended(id_on(0), 5, "b1")]).await;
    let (_, said) = text(&generate, false);
    assert!(said.contains("real requests"), "{said}");
}

/// The rows of a Parquet file as lines of JSON have them.
fn rows(file: Vec<u8>) -> Vec<Value> {
    let reader = SerializedFileReader::new(axum::body::Bytes::from(file)).unwrap();
    let rows = reader.get_row_iter(None).unwrap();
    rows.map(|row| {
        let row = row.unwrap();
        let columns = row.get_column_iter().filter_map(|(name, field)| {
            let value = match field {
                Field::Null => return None,
                Field::Str(text) if name == "details" => serde_json::from_str(text).unwrap(),
                Field::Str(text) => Value::from(text.as_str()),
                Field::Long(number) => Value::from(*number),
                Field::Bool(is) => Value::from(*is),
                Field::TimestampMicros(micros) => {
                    let nanos = i128::from(*micros) * 1000;
                    let moment = OffsetDateTime::from_unix_timestamp_nanos(nanos).unwrap();
                    Value::from(moment.format(&Rfc3339).unwrap())
                }
                other => panic!("{name} is {other:?}"),
            };
            Some((name.clone(), value))
        });
        columns.collect::<serde_json::Map<_, _>>().into()
    })
    .collect()
}

#[tokio::test]
async fn an_export_holds_what_its_manifest_says_in_every_format() {
    let database = Database::create().await;
    let mut numbers = Numbers(3);
    let mut records: Vec<AuditRecord> = (0..400).map(|_| numbers.record()).collect();
    records[5].who.client = Some("=HYPERLINK(\"http://evil.example\",\"x\")\r\n+1".into());
    records[5].details = Some("{\"b\": 1, \"a\":\"é\"}".into());
    let all: Vec<_> = records.iter().collect();
    insert(&database.store, &all).await;
    let folder = tempfile::tempdir().unwrap();
    let export_bytes = |more: &[&str]| {
        let path = folder.path().join(more.join("_").replace('/', "_"));
        let mut command =
            database.command(&["audit", "export", "--until", "2026-06-01T00:00:00Z", "--output"]);
        let output = command.arg(&path).args(more).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        let manifest = std::fs::read(format!("{}.manifest", path.display())).unwrap();
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &bytes);
        assert_eq!(manifest["sha256"], hex::encode(digest));
        assert_eq!(manifest["bytes"], bytes.len());
        assert!(
            said.contains(&format!("{} records", manifest["records"])),
            "{said}"
        );
        (manifest, bytes)
    };
    let export = |more: &[&str]| {
        let (manifest, bytes) = export_bytes(more);
        (manifest, String::from_utf8(bytes).unwrap())
    };
    let lines = |text: &str| -> Vec<Value> {
        let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
        lines.collect()
    };

    let (manifest, text) = export(&["--format", "ndjson"]);
    let found = lines(&text);
    let numbers: Vec<_> = found.iter().map(|event| event["seq"].as_i64().unwrap()).collect();
    assert_eq!(numbers, (0..400).collect::<Vec<_>>());
    assert_eq!(
        (&manifest["records"], &manifest["last_seq"]),
        (&Value::from(400), &Value::from(399))
    );
    assert_eq!(manifest["is_whole"], true);
    assert!(
        text.contains(r#""details":{"b": 1, "a":"é"}"#),
        "not byte for byte"
    );
    for (event, record) in found.iter().zip(&records) {
        assert_eq!(event["request_id"], record.request_id.to_string());
        assert_eq!(event["client"].as_str(), record.who.client.as_deref());
    }

    let (manifest, file) = export_bytes(&["--format", "parquet"]);
    assert_eq!(manifest["records"], 400);
    assert_eq!(rows(file), found);

    let (_, text) = export(&["--format", "csv", "--kind", "ended"]);
    let ended = records
        .iter()
        .filter(|record| record.kind == AuditKind::Ended)
        .count();
    assert_eq!(
        text.matches("\r\n").count() - text.matches("\r\n+1\"").count(),
        ended + 1
    );
    let evil = "\"'=HYPERLINK(\"\"http://evil.example\"\",\"\"x\"\")\r\n+1\"";
    assert_eq!(text.contains(evil), records[5].kind == AuditKind::Ended);
    assert!(!text.contains(",=") && !text.contains("\"="), "a formula");

    let (manifest, text) = export(&["--format", "ocsf", "--outcome", "failed"]);
    let found = lines(&text);
    assert_eq!(manifest["records"], found.len());
    for event in &found {
        assert_eq!(
            (&event["class_uid"], &event["status_id"]),
            (&Value::from(6003), &Value::from(2))
        );
        assert_eq!(
            event["type_uid"],
            600_300 + event["activity_id"].as_i64().unwrap()
        );
        assert_eq!(event["unmapped"]["outcome"], "failed");
    }

    let sample = |seed| lines(&export(&["--sample", "25", "--seed", seed]).1);
    let (first, other) = (sample("one"), sample("two"));
    assert_eq!((first.len(), other.len()), (25, 25));
    assert_ne!(first, other);
    let mut again = database.command(&["audit", "export", "--until", "2026-06-01T00:00:00Z"]);
    let again = again.args(["--sample", "25", "--seed", "one"]).output().unwrap();
    assert_eq!(lines(&String::from_utf8(again.stdout).unwrap()), first);
    // Each is recorded before and after.
    let reads = "SELECT count(*) FROM audit_events WHERE kind = 'read' AND route = 'audit export'";
    assert_eq!(database.count(reads).await, 14);
}
