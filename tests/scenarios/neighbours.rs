//! The harness itself: servers that are killed come back as they were.

use std::time::Duration;

use async_nats::jetstream::{self, stream};
use duo_system_tests::harness::{Nats, Postgres};

#[tokio::test]
async fn a_killed_nats_server_comes_back_with_what_it_had_stored() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut nats = Nats::start(folder.path()).await;
    let context = jetstream::new(nats.connect().await);
    let config = stream::Config {
        name: "KEPT".to_owned(),
        subjects: vec!["kept.>".to_owned()],
        ..stream::Config::default()
    };
    context.create_stream(config).await.expect("a stream");
    let published = context.publish("kept.one", "1".into()).await.expect("sent");
    published.await.expect("stored");
    nats.kill().await;
    nats.restart().await;
    let context = jetstream::new(nats.connect().await);
    let stream = context.get_stream("KEPT").await.expect("the stream");
    assert_eq!(stream.cached_info().state.messages, 1);
}

#[tokio::test]
async fn a_stopped_or_frozen_postgres_comes_back_with_its_data() {
    let mut postgres = Postgres::start().await;
    let database = postgres.database().await;
    sqlx::query("CREATE TABLE kept AS SELECT 7::bigint AS number")
        .execute(database.pool())
        .await
        .expect("a table");
    postgres.stop();
    assert!(database.count("SELECT number FROM kept").await.is_err());
    postgres.start_again().await;
    assert_eq!(database.count("SELECT number FROM kept").await, Ok(7));

    postgres.freeze(true);
    let silent = tokio::time::timeout(
        Duration::from_millis(300),
        database.count("SELECT number FROM kept"),
    );
    assert!(silent.await.is_err(), "a frozen server does not answer");
    postgres.freeze(false);
    assert_eq!(database.count("SELECT number FROM kept").await, Ok(7));
}
