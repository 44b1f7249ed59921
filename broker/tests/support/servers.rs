//! A PostgreSQL and a nats-server of the tests' own, one of each per test binary and a database per test.
//!
//! Each server has a shell beside it that waits for its standard input to close, which happens however the test
//! process ends, and then stops the server and removes its folder.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use duo_broker::store::{PoolConfig, Store};
use duo_process::nats::{Nats, NatsConfig};
use secrecy::SecretString;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, PgPool};

/// A database of one test's own, migrated.
pub(crate) struct Database {
    pub(crate) store: Store,
    /// For looking at what the store has no function for.
    pub(crate) pool: PgPool,
    pub(crate) url: String,
    pub(crate) name: String,
}

impl Database {
    pub(crate) async fn create() -> Database {
        let database = Database::empty().await;
        database.store.migrate().await.unwrap();
        database
    }

    pub(crate) async fn empty() -> Database {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        admin(&format!("CREATE DATABASE {name}")).await;
        let url = url(&name);
        let store = Store::connect(&SecretString::from(url.clone()), PoolConfig::default()).unwrap();
        let pool = PgPool::connect_lazy(&url).unwrap();
        Database {
            store,
            pool,
            url,
            name,
        }
    }

    pub(crate) async fn count(&self, sql: &str) -> i64 {
        sqlx::query_scalar(AssertSqlSafe(sql))
            .fetch_one(&self.pool)
            .await
            .unwrap()
    }

    /// Runs the program itself.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_duo-broker"));
        command
            .env_clear()
            .env("DUO_DATABASE_URL", &self.url)
            .args(arguments);
        command
    }
}

/// Runs a statement in the database of the server itself.
pub(crate) async fn admin(sql: &str) {
    let mut connection = PgConnection::connect(&url("postgres")).await.unwrap();
    sqlx::query(AssertSqlSafe(sql))
        .execute(&mut connection)
        .await
        .unwrap();
}

fn url(database: &str) -> String {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(start_postgres);
    format!("postgres://duo@localhost/{database}?host={}", folder.display())
}

fn start_postgres() -> PathBuf {
    let bin = postgres_bin();
    let folder = folder("pg");
    let data = folder.join("data");
    std::fs::create_dir(&data).unwrap();
    let mut prefix = String::new();
    if Command::new("id").arg("-u").output().unwrap().stdout == b"0\n" {
        // PostgreSQL refuses to run as root.
        let user = postgres_user();
        run(&format!("chown {user} {}", data.display()));
        prefix = format!("setpriv --reuid={user} --regid=$(id -g {user}) --clear-groups");
    }
    let (bin, data_text) = (bin.display(), data.display());
    run(&format!(
        "{prefix} {bin}/initdb -D {data_text} -U duo -A trust -E UTF8 --locale=C -N"
    ));
    run(&format!(
        "{prefix} {bin}/pg_ctl -D {data_text} -w -t 60 -l {data_text}/log -o \
         \"-c listen_addresses='' -c unix_socket_directories='{data_text}' -c fsync=off\" start"
    ));
    stop_with_us(
        &format!("{prefix} {bin}/pg_ctl -D {data_text} -m immediate stop"),
        &folder,
    );
    data
}

fn postgres_bin() -> PathBuf {
    if let Some(bin) = variable("DUO_TEST_PG_BIN") {
        return bin.into();
    }
    let versions = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    let newest = versions.max_by_key(|entry| entry.file_name().to_string_lossy().parse::<u32>().unwrap_or(0));
    newest
        .map(|entry| entry.path().join("bin"))
        .expect("PostgreSQL is installed, or DUO_TEST_PG_BIN names the folder of initdb")
}

fn postgres_user() -> String {
    let exists = |user: &str| Command::new("id").arg(user).output().unwrap().status.success();
    variable("DUO_TEST_PG_USER")
        .unwrap_or_else(|| if exists("postgres") { "postgres" } else { "nobody" }.to_owned())
}

/// A connection to this binary's nats-server, whose streams all tests of the binary share.
pub(crate) async fn nats() -> Nats {
    let config = NatsConfig {
        url: nats_url(),
        name: "store tests".to_owned(),
        inbox_prefix: "_INBOX_test".to_owned(),
        credentials_file: None,
        ca_file: None,
    };
    Nats::connect(&config).await.unwrap()
}

/// Where it listens.
pub(crate) fn nats_url() -> String {
    static URL: OnceLock<String> = OnceLock::new();
    URL.get_or_init(start_nats).clone()
}

fn start_nats() -> String {
    let folder = folder("nats");
    let program = variable("DUO_TEST_NATS_SERVER").unwrap_or_else(|| "nats-server".to_owned());
    let server: Child = Command::new(program)
        .args(["--jetstream", "--addr", "127.0.0.1", "--port", "-1"])
        .arg("--store_dir")
        .arg(&folder)
        .arg("--ports_file_dir")
        .arg(&folder)
        .stderr(Stdio::null())
        .spawn()
        .expect("nats-server is on the PATH, or DUO_TEST_NATS_SERVER names it");
    let pid = server.id();
    std::mem::forget(server);
    stop_with_us(&format!("kill {pid}"), &folder);
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let ports = std::fs::read_dir(&folder).unwrap().flatten();
        let ports = ports
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|e| e == "ports"));
        let ports = ports.and_then(|path| std::fs::read_to_string(path).ok());
        let ports = ports.and_then(|text| serde_json::from_str::<serde_json::Value>(&text).ok());
        if let Some(url) = ports.and_then(|ports| Some(ports["nats"][0].as_str()?.to_owned())) {
            return url;
        }
        assert!(Instant::now() < deadline, "nats-server does not start");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "tests have settings of their own, which the programs do not know"
)]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// A new folder that others may enter, such as the user that PostgreSQL runs as.
fn folder(kind: &str) -> PathBuf {
    let folder = tempfile::Builder::new()
        .prefix(&format!("duo-{kind}-"))
        .tempdir()
        .unwrap()
        .keep();
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

fn run(command: &str) {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {told}");
}

/// Starts the shell that cleans up after us; the write end of its standard input closes when we end.
fn stop_with_us(command: &str, folder: &Path) {
    let script = format!(
        "trap '' INT TERM; cat; {command}; sleep 0.2; rm -rf {}",
        folder.display()
    );
    let shell = Command::new("sh")
        .args(["-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::mem::forget(shell);
}
