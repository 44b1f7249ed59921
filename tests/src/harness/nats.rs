//! nats-servers with JetStream: one, or a cluster of three, each of which can be killed, frozen and started again on
//! the same port with the same files.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_nats::ServerAddr;
use async_nats::jetstream;
use nix::sys::signal::Signal;

use super::program::{Program, free_port};
use super::wait::{PATIENCE, until};

/// How long one look at a server may take.
const LOOK: Duration = Duration::from_secs(2);
/// How long the servers of a cluster may take to elect their leaders, on a busy machine.
const ELECTION: Duration = Duration::from_secs(60);

/// What a nats-server, or a cluster of them, is to be like.
#[derive(Debug, Clone)]
pub struct NatsPlan {
    /// How many servers: one alone, or three with routes between them.
    pub servers: usize,
    /// Where the files are; the test's own folder otherwise. Something of bounded size, such as a small tmpfs.
    pub store: Option<PathBuf>,
    /// What the server says of its disk. A server reserves what streams may hold, so it has to be more than these.
    pub max_file_store: &'static str,
}

impl Default for NatsPlan {
    fn default() -> Self {
        Self {
            servers: 1,
            store: None,
            max_file_store: "16GB",
        }
    }
}

/// Running nats-servers.
#[derive(Debug)]
pub struct Nats {
    servers: Vec<Server>,
}

#[derive(Debug)]
struct Server {
    name: String,
    program: Program,
    port: u16,
    store: PathBuf,
}

impl Server {
    fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }
}

impl Nats {
    /// Starts one server whose files are in `folder`.
    ///
    /// The program is the one that `DUO_TEST_NATS_SERVER` names, else `nats-server` on the search path.
    ///
    /// # Panics
    /// It does not start.
    pub async fn start(folder: &Path) -> Self {
        Self::start_as(folder, &NatsPlan::default()).await
    }

    /// Starts what `plan` says, with settings and logs in `folder`, and waits until it answers.
    ///
    /// # Panics
    /// Something does not start.
    pub async fn start_as(folder: &Path, plan: &NatsPlan) -> Self {
        let ports: Vec<(u16, u16)> = (0..plan.servers).map(|_| (free_port(), free_port())).collect();
        let routes: Vec<String> = ports
            .iter()
            .map(|(_, route)| format!("nats://127.0.0.1:{route}"))
            .collect();
        let files = plan.store.as_deref().unwrap_or(folder);
        let servers = ports.iter().enumerate().map(|(number, &(port, route))| {
            let alone = plan.servers == 1;
            let name = if alone {
                "nats".to_owned()
            } else {
                format!("nats-{number}")
            };
            let store = files.join(&name);
            let cluster = if alone {
                String::new()
            } else {
                format!(
                    "cluster {{ name: test, listen: \"127.0.0.1:{route}\", routes: [{}] }}\n",
                    routes.join(", ")
                )
            };
            let text = format!(
                "server_name: {name}\nhost: 127.0.0.1\nport: {port}\nmax_payload: 8MB\n\
                 ping_interval: 1s\nping_max: 2\n\
                 jetstream {{ store_dir: {store:?}, max_file_store: {}, sync_interval: 1s }}\n{cluster}",
                plan.max_file_store
            );
            let settings = folder.join(format!("{name}.conf"));
            fs::write(&settings, text).expect("the settings can be written");
            let program = std::env::var_os("DUO_TEST_NATS_SERVER")
                .map_or_else(|| PathBuf::from("nats-server"), PathBuf::from);
            let settings = settings.to_str().expect("a path of plain characters");
            let program = Program::start(&name, &program, &["-c", settings], Vec::new(), folder);
            Server {
                name,
                program,
                port,
                store,
            }
        });
        let mut nats = Self {
            servers: servers.collect(),
        };
        nats.ready().await;
        nats
    }

    /// The URLs of all its servers, as the programs are given them.
    pub fn url(&self) -> String {
        self.servers.iter().map(Server::url).collect::<Vec<_>>().join(",")
    }

    /// How many servers there are.
    pub fn count(&self) -> usize {
        self.servers.len()
    }

    /// The port of the first server.
    pub fn port(&self) -> u16 {
        self.servers[0].port
    }

    /// Where the streams of the first server are.
    pub fn store(&self) -> &Path {
        &self.servers[0].store
    }

    /// The process of the first server.
    pub fn program(&self) -> &Program {
        &self.servers[0].program
    }

    /// Ends the first server as a power cut would.
    ///
    /// # Panics
    /// It does not run.
    pub async fn kill(&mut self) {
        self.kill_server(0).await;
    }

    /// Asks the first server to end, and waits until it has.
    ///
    /// # Panics
    /// It does not end in time.
    pub async fn stop(&mut self) {
        // Its exit status tells nothing: it is 1 after a signal, whatever happened.
        let _status = self.servers[0].program.terminate().await;
    }

    /// Starts the first server again and waits until it answers.
    ///
    /// # Panics
    /// It does not start.
    pub async fn restart(&mut self) {
        self.restart_server(0).await;
    }

    /// Ends a server as a power cut would.
    ///
    /// # Panics
    /// It does not run.
    pub async fn kill_server(&mut self, number: usize) {
        self.servers[number].program.kill().await;
    }

    /// Starts a server again and waits until it answers; in a cluster until its streams may be asked for.
    ///
    /// # Panics
    /// It does not start.
    pub async fn restart_server(&mut self, number: usize) {
        self.servers[number].program.again();
        self.ready().await;
    }

    /// Starts a server again and waits for nothing.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn begin_restart(&mut self, number: usize) {
        self.servers[number].program.again();
    }

    /// Freezes a server, or lets it go on.
    ///
    /// # Panics
    /// It does not run.
    pub fn freeze(&self, number: usize, on: bool) {
        let signal = if on { Signal::SIGSTOP } else { Signal::SIGCONT };
        self.servers[number].program.signal(signal);
    }

    /// A connection for looking into the streams, to whichever server answers.
    ///
    /// # Panics
    /// None answers.
    pub async fn connect(&self) -> async_nats::Client {
        self.try_connect().await.expect("nats-server answers")
    }

    /// A connection for looking into the streams, to whichever server answers.
    ///
    /// # Errors
    /// None answers.
    pub async fn try_connect(&self) -> Result<async_nats::Client, String> {
        let servers: Vec<ServerAddr> = self
            .servers
            .iter()
            .map(|server| server.url().parse().expect("our URL"))
            .collect();
        let connect = async_nats::ConnectOptions::new()
            .connection_timeout(LOOK)
            .connect(servers);
        connect.await.map_err(|error| error.to_string())
    }

    /// How many messages a stream holds.
    ///
    /// # Errors
    /// NATS does not answer, or there is no such stream.
    pub async fn messages(&self, stream: &str) -> Result<u64, String> {
        let context = self.context().await?;
        let stream = context
            .get_stream(stream)
            .await
            .map_err(|error| error.to_string())?;
        Ok(stream.cached_info().state.messages)
    }

    /// Which server leads a stream; always the first where it is alone.
    ///
    /// # Errors
    /// There is no leader just now.
    pub async fn leader_of(&self, stream: &str) -> Result<usize, String> {
        if self.servers.len() == 1 {
            return Ok(0);
        }
        let context = self.context().await?;
        let info = context
            .get_stream(stream)
            .await
            .map_err(|error| error.to_string())?;
        let cluster = info.cached_info().cluster.clone();
        let leader = cluster.and_then(|cluster| cluster.leader).unwrap_or_default();
        let place = self.servers.iter().position(|server| server.name == leader);
        place.ok_or_else(|| format!("the leader of {stream} is {leader:?}"))
    }

    /// Makes a stream's leader hand over to another server.
    ///
    /// # Errors
    /// Nobody answers.
    pub async fn step_down(&self, stream: &str) -> Result<(), String> {
        let client = self.try_connect().await?;
        let subject = format!("$JS.API.STREAM.LEADER.STEPDOWN.{stream}");
        let asked = tokio::time::timeout(LOOK, client.request(subject, "".into())).await;
        match asked {
            Err(_) => Err("no answer in time".to_owned()),
            Ok(answer) => answer.map(drop).map_err(|error| error.to_string()),
        }
    }

    async fn context(&self) -> Result<jetstream::Context, String> {
        let mut context = jetstream::new(self.try_connect().await?);
        context.set_timeout(LOOK);
        Ok(context)
    }

    /// Waits until JetStream answers; in a cluster, whoever of it runs.
    async fn ready(&mut self) {
        let max = if self.servers.len() == 1 {
            PATIENCE
        } else {
            ELECTION
        };
        until("nats-server is ready", max, async || {
            for server in &mut self.servers {
                let program = &mut server.program;
                if let Some(status) = program.exited() {
                    panic!(
                        "{} ended ({status}); its log:\n{}",
                        server.name,
                        program.last_words()
                    );
                }
            }
            let account = self.context().await?;
            account
                .query_account()
                .await
                .map(drop)
                .map_err(|error| error.to_string())
        })
        .await;
    }
}
