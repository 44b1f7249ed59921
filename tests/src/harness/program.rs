//! One process under test: how it is found, started, signalled and ended.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use super::wait::soon;

/// Ports below the range that outgoing connections get theirs from.
const PORTS: std::ops::Range<u16> = 11_000..31_000;

/// A running (or ended) process with its log; it dies with its value.
#[derive(Debug)]
pub struct Program {
    name: String,
    command: Spec,
    child: Option<Child>,
}

/// What it takes to start it again.
#[derive(Debug)]
struct Spec {
    path: PathBuf,
    arguments: Vec<String>,
    env: Vec<(String, String)>,
    log: PathBuf,
}

impl Program {
    /// Starts the program at `path`; its output goes to `folder/name.log`.
    ///
    /// It gets no environment but `env` and the search path, so that what the caller's shell holds changes nothing.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn start(
        name: &str,
        path: &Path,
        arguments: &[&str],
        env: Vec<(String, String)>,
        folder: &Path,
    ) -> Self {
        let command = Spec {
            path: path.to_owned(),
            arguments: arguments.iter().map(|&text| text.to_owned()).collect(),
            env,
            log: folder.join(format!("{name}.log")),
        };
        let mut program = Self {
            name: name.to_owned(),
            command,
            child: None,
        };
        program.again();
        program
    }

    /// Starts it again after its end, with the same arguments and environment.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn again(&mut self) {
        let spec = &self.command;
        let child = bare(&spec.path, &spec.env)
            .args(&spec.arguments)
            .stdin(Stdio::null())
            .stdout(append(&spec.log))
            .stderr(append(&spec.log))
            .kill_on_drop(true)
            .spawn();
        self.child =
            Some(child.unwrap_or_else(|error| panic!("cannot start {}: {error}", spec.path.display())));
    }

    /// Changes one variable for the next start.
    pub fn set(&mut self, name: &str, value: &str) {
        self.command.env.retain(|(known, _)| known != name);
        self.command.env.push((name.to_owned(), value.to_owned()));
    }

    /// Its name in messages and of its log.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its output goes.
    pub fn log(&self) -> &Path {
        &self.command.log
    }

    /// Its process id while it runs.
    ///
    /// # Panics
    /// It does not run.
    pub fn pid(&self) -> Pid {
        let id = self.child.as_ref().and_then(Child::id);
        let id = id.unwrap_or_else(|| panic!("{} does not run", self.name));
        Pid::from_raw(i32::try_from(id).expect("a process id"))
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// It does not run.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap_or_else(|error| panic!("{signal} to {}: {error}", self.name));
    }

    /// Ends it as a power cut would, and waits until it is gone.
    ///
    /// # Panics
    /// It does not run.
    pub async fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.ended().await;
    }

    /// Asks it to end and waits for that.
    ///
    /// # Panics
    /// It does not run, or does not end in time.
    pub async fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.ended().await
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// It does not end in time.
    pub async fn ended(&mut self) -> ExitStatus {
        let child = self
            .child
            .as_mut()
            .unwrap_or_else(|| panic!("{} does not run", self.name));
        let status = soon(&format!("the end of {}", self.name), child.wait()).await;
        self.child = None;
        status.expect("a process can be waited for")
    }

    /// The processes that it has started, and those that they have.
    pub fn descendants(&self) -> Vec<Pid> {
        let mut found: Vec<u32> = self.child.as_ref().and_then(Child::id).into_iter().collect();
        let mut looked = 0;
        while let Some(&pid) = found.get(looked) {
            let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
            let children = list.unwrap_or_default();
            found.extend(
                children
                    .split_whitespace()
                    .filter_map(|child| child.parse::<u32>().ok()),
            );
            looked += 1;
        }
        let pids = found
            .into_iter()
            .skip(1)
            .filter_map(|pid| i32::try_from(pid).ok());
        pids.map(Pid::from_raw).collect()
    }

    /// Its exit status, if it has ended by itself.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.as_mut()?.try_wait().ok().flatten()
    }

    /// The end of its log.
    pub fn last_words(&self) -> String {
        last_lines(&self.command.log, 40)
    }
}

/// The last `count` lines of a file.
pub(crate) fn last_lines(path: &Path, count: usize) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// Runs the program to its end with the same care and gives its status, standard output and standard error.
///
/// # Panics
/// It cannot be started or does not end in time.
pub async fn run(path: &Path, arguments: &[&str], env: &[(String, String)]) -> (ExitStatus, String, String) {
    let output = bare(path, env)
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = soon(&format!("{} {}", path.display(), arguments.join(" ")), output).await;
    let output = output.unwrap_or_else(|error| panic!("cannot start {}: {error}", path.display()));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status, text(&output.stdout), text(&output.stderr))
}

fn bare(path: &Path, env: &[(String, String)]) -> Command {
    let mut command = Command::new(path);
    command.env_clear();
    for name in ["PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "RUST_BACKTRACE"] {
        command.envs(std::env::var_os(name).map(|value| (name, value)));
    }
    command.envs(env.iter().map(|(name, value)| (name, value)));
    command
}

fn append(path: &Path) -> File {
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()))
}

/// The program `name` that cargo has put beside this test.
///
/// # Panics
/// It is missing, or older than a source it is made of: build it with `cargo build --workspace`, as `./tests/run` does.
pub fn built(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the test's own path");
    // A test lies in target/<profile>/deps, a program in target/<profile>.
    let mut folders = test.ancestors().skip(1).take(2);
    let folder = folders
        .find(|folder| !folder.ends_with("deps"))
        .expect("target/<profile>/deps/<test>");
    let path = folder.join(name);
    let Ok(made) = fs::metadata(&path).and_then(|file| file.modified()) else {
        panic!(
            "{} is missing: run `cargo build --workspace` first, as ./tests/run does",
            path.display()
        );
    };
    // Cargo lists beside each program what it was made of.
    let sources = fs::read_to_string(path.with_extension("d")).unwrap_or_default();
    let sources = sources.split_once(": ").map_or("", |(_, sources)| sources);
    for source in sources.replace("\\ ", "\0").split_whitespace() {
        let source = PathBuf::from(source.replace('\0', " "));
        let changed = fs::metadata(&source).and_then(|file| file.modified());
        assert!(
            changed.is_ok_and(|changed| changed <= made),
            "{} is older than {}: run `cargo build --workspace` first, as ./tests/run does",
            path.display(),
            source.display()
        );
    }
    path
}

/// A port of 127.0.0.1 that nobody listens on now, and that no other process of these tests gets as long as this one
/// lives: a lock file of the port says so, since the server that is to listen there starts only later.
///
/// # Panics
/// There is none, or the temporary folder cannot be written.
pub fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeMap<u16, File>> = Mutex::new(BTreeMap::new());
    let folder = std::env::temp_dir().join("duo-test-ports");
    std::fs::create_dir_all(&folder).expect("the temporary folder can be written");
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..1000 {
        let port = rand::random_range(PORTS);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let lock = File::create(folder.join(port.to_string())).expect("a lock file can be made");
        if !given.contains_key(&port) && lock.try_lock().is_ok() && TcpListener::bind(address).is_ok() {
            given.insert(port, lock);
            return port;
        }
    }
    panic!("no free port")
}
