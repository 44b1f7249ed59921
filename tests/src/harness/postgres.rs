//! PostgreSQL servers of the tests' own, and a database per test.
//!
//! A server runs under a shell that waits for the end of its input: when the test process goes, however it goes, the
//! shell stops the server and deletes its files.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, geteuid};
use sqlx::postgres::PgPoolOptions;
use sqlx::{Connection as _, PgConnection, PgPool};
use tokio::sync::OnceCell;

use super::program::{free_port, last_lines};
use super::wait::{PATIENCE, until};

/// Runs `"$@"` until the input ends (then deletes the folder `$0`) or says `stay`.
const KEEPER: &str =
    r#""$@" & pid=$!; word=; read -r word; kill -INT $pid; wait $pid; [ "$word" = stay ] || rm -rf "$0""#;

/// A PostgreSQL server.
#[derive(Debug)]
pub struct Postgres {
    folder: PathBuf,
    port: u16,
    keeper: Option<Child>,
}

/// A database of its own in a server.
#[derive(Debug, Clone)]
pub struct Database {
    url: String,
    pool: PgPool,
}

impl Postgres {
    /// Makes and starts a server.
    ///
    /// Its programs are in `DUO_TEST_PG_BIN`, else where package managers put them; as root it runs as the account
    /// `DUO_TEST_PG_USER`, else `postgres` or `nobody`.
    ///
    /// # Panics
    /// It cannot be made or started.
    pub async fn start() -> Self {
        Self::start_below(&std::env::temp_dir()).await
    }

    /// As [`Postgres::start`], with its files below this folder.
    ///
    /// # Panics
    /// It cannot be made or started.
    pub async fn start_below(parent: &Path) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("duo-postgres-")
            .tempdir_in(parent)
            .expect("a folder")
            .keep();
        if let Some(account) = account() {
            chown(&folder, Some(account.uid.as_raw()), Some(account.gid.as_raw()))
                .expect("root may give a folder away");
        }
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).expect("our folder");
        let data = folder.join("data");
        let mut initdb = command(
            &programs().join("initdb"),
            &[
                "-U",
                "duo",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--locale=C",
                "--no-sync",
                "-D",
            ],
        );
        let done = initdb
            .arg(&data)
            .output()
            .unwrap_or_else(|error| panic!("cannot run initdb: {error}"));
        assert!(
            done.status.success(),
            "initdb: {}",
            String::from_utf8_lossy(&done.stderr)
        );
        let mut server = Self {
            folder,
            port: free_port(),
            keeper: None,
        };
        server.start_again().await;
        server
    }

    /// Starts it after [`Postgres::stop`], on the same port with the same data.
    ///
    /// # Panics
    /// It does not start.
    pub async fn start_again(&mut self) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log())
            .expect("a log");
        let mut shell = command(Path::new("/bin/sh"), &["-c", KEEPER]);
        shell
            .arg(&self.folder)
            .arg(programs().join("postgres"))
            .arg("-D")
            .arg(self.data())
            .args(["-p", &self.port.to_string()]);
        for setting in [
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "fsync=off",
            "max_connections=200",
            // Little, so that a small disk has room for it.
            "min_wal_size=32MB",
        ] {
            shell.args(["-c", setting]);
        }
        let keeper = shell
            .stdin(Stdio::piped())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn();
        self.keeper = Some(keeper.expect("sh can be started"));
        let url = self.url("postgres");
        until("PostgreSQL is ready", PATIENCE, async || {
            match PgConnection::connect(&url).await {
                Ok(connection) => drop(connection.close().await),
                Err(error) => return Err(format!("{error}; its log: {}", last_lines(&self.log(), 10))),
            }
            Ok(())
        })
        .await;
    }

    /// Stops it at once: every connection is cut.
    ///
    /// # Panics
    /// It does not run.
    pub fn stop(&mut self) {
        self.end(b"stay\n");
    }

    /// Kills all of its processes, `kill -9`; [`Postgres::start_again`] finds what a crash leaves.
    ///
    /// # Panics
    /// It does not run.
    pub fn kill(&mut self) {
        for pid in self.processes() {
            // One that has just ended is as good as killed.
            let _gone = kill(pid, Signal::SIGKILL);
        }
        self.stop();
    }

    /// Freezes it (connections stay open and silent), or lets it go on.
    ///
    /// # Panics
    /// It does not run.
    pub fn freeze(&self, on: bool) {
        let signal = if on { Signal::SIGSTOP } else { Signal::SIGCONT };
        for pid in self.processes() {
            // One that has just ended is as good as frozen.
            let _gone = kill(pid, signal);
        }
    }

    /// Where its files are.
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// A new, empty database.
    ///
    /// # Panics
    /// The server refuses.
    pub async fn database(&self) -> Database {
        let name = format!("t{}", uuid::Uuid::new_v4().simple());
        let mut connection = PgConnection::connect(&self.url("postgres"))
            .await
            .expect("PostgreSQL answers");
        sqlx::query(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}")))
            .execute(&mut connection)
            .await
            .expect("a database");
        let url = self.url(&name);
        let pool = PgPoolOptions::new().acquire_timeout(Duration::from_secs(2));
        let pool = pool.connect_lazy(&url).expect("a good URL");
        Database { url, pool }
    }

    /// A new, empty database in the one server that all tests of this process share.
    ///
    /// # Panics
    /// The server cannot be started.
    pub async fn shared_database() -> Database {
        static SERVER: OnceCell<Postgres> = OnceCell::const_new();
        SERVER.get_or_init(Postgres::start).await.database().await
    }

    fn url(&self, database: &str) -> String {
        format!("postgres://duo@127.0.0.1:{}/{database}", self.port)
    }

    fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    fn processes(&self) -> Vec<Pid> {
        let file = fs::read_to_string(self.data().join("postmaster.pid")).expect("it runs");
        let main: i32 = file
            .lines()
            .next()
            .and_then(|line| line.parse().ok())
            .expect("a process id");
        let listed = Command::new("ps")
            .args(["-A", "-o", "pid=,ppid="])
            .output()
            .expect("ps runs");
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        let children = listed.lines().filter_map(|line| {
            let (pid, parent) = line.trim().split_once(char::is_whitespace)?;
            (parent.trim().parse() == Ok(main)).then_some(pid.parse().ok()?)
        });
        // The parent first, so that nothing new is born meanwhile.
        std::iter::once(main).chain(children).map(Pid::from_raw).collect()
    }

    fn end(&mut self, word: &[u8]) {
        let Some(mut keeper) = self.keeper.take() else {
            return;
        };
        if let Some(mut input) = keeper.stdin.take() {
            // A keeper that is gone needs no word.
            let _gone = input.write_all(word);
        }
        let _ended = keeper.wait();
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.end(b"");
    }
}

impl Database {
    /// Its URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Connections to it.
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// The number that a query of one row and column gives.
    ///
    /// # Errors
    /// PostgreSQL is away, or refuses.
    pub async fn count(&self, sql: &'static str) -> Result<i64, String> {
        let count = sqlx::query_scalar(sql).fetch_one(&self.pool);
        match tokio::time::timeout(PATIENCE, count).await {
            Ok(count) => count.map_err(|error| error.to_string()),
            Err(_) => Err(format!("{sql}: no answer")),
        }
    }
}

fn command(path: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(path);
    command.args(arguments).current_dir("/");
    if let Some(account) = account() {
        command.uid(account.uid.as_raw()).gid(account.gid.as_raw());
    }
    command
}

/// The account to run as: none unless we are root, which PostgreSQL refuses.
fn account() -> Option<User> {
    if !geteuid().is_root() {
        return None;
    }
    let named = std::env::var_os("DUO_TEST_PG_USER").and_then(|name| name.into_string().ok());
    let known = named.filter(|name| !name.is_empty()).map_or_else(
        || vec!["postgres".to_owned(), "nobody".to_owned()],
        |name| vec![name],
    );
    let found = known.iter().find_map(|name| User::from_name(name).ok().flatten());
    Some(
        found.unwrap_or_else(|| {
            panic!("PostgreSQL refuses to run as root, and there is no account {known:?}")
        }),
    )
}

fn programs() -> PathBuf {
    if let Some(folder) = std::env::var_os("DUO_TEST_PG_BIN") {
        return folder.into();
    }
    let versions = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    let mut versions: Vec<(u32, PathBuf)> = versions
        .filter_map(|folder| {
            Some((
                folder.file_name().to_str()?.parse().ok()?,
                folder.path().join("bin"),
            ))
        })
        .collect();
    versions.sort();
    let newest = versions
        .pop()
        .map(|(_, folder)| folder)
        .filter(|folder| folder.join("initdb").exists());
    newest.expect("DUO_TEST_PG_BIN names the folder with initdb and postgres; ./tests/run sets it")
}
