//! A nats-server with JetStream, which can be killed and started again on the same port with the same files.

use std::fs;
use std::path::{Path, PathBuf};

use super::program::{Program, free_port};
use super::wait::{PATIENCE, until};

/// A running nats-server.
#[derive(Debug)]
pub struct Nats {
    program: Program,
    port: u16,
    store: PathBuf,
}

impl Nats {
    /// Starts a server whose files are in `folder`.
    ///
    /// The program is the one that `DUO_TEST_NATS_SERVER` names, else `nats-server` on the search path.
    ///
    /// # Panics
    /// It does not start.
    pub async fn start(folder: &Path) -> Self {
        let port = free_port();
        let store = folder.join("nats");
        let settings = folder.join("nats.conf");
        let text = format!(
            "server_name: test\nhost: 127.0.0.1\nport: {port}\nmax_payload: 8MB\n\
             jetstream {{ store_dir: {store:?}, max_file_store: 16GB, sync_interval: 1s }}\n"
        );
        fs::write(&settings, text).expect("the settings can be written");
        let program = std::env::var_os("DUO_TEST_NATS_SERVER")
            .map_or_else(|| PathBuf::from("nats-server"), PathBuf::from);
        let settings = settings.to_str().expect("a path of plain characters");
        let program = Program::start("nats", &program, &["-c", settings], Vec::new(), folder);
        let mut nats = Self { program, port, store };
        nats.ready().await;
        nats
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Where its streams are.
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// Its process.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Ends it as a power cut would.
    ///
    /// # Panics
    /// It does not run.
    pub async fn kill(&mut self) {
        self.program.kill().await;
    }

    /// Starts it again and waits until it answers.
    ///
    /// # Panics
    /// It does not start.
    pub async fn restart(&mut self) {
        self.program.again();
        self.ready().await;
    }

    /// A connection for looking into the streams.
    ///
    /// # Panics
    /// The server does not answer.
    pub async fn connect(&self) -> async_nats::Client {
        async_nats::connect(self.url())
            .await
            .expect("nats-server answers")
    }

    async fn ready(&mut self) {
        let url = self.url();
        let program = &mut self.program;
        until("nats-server is ready", PATIENCE, async || {
            if let Some(status) = program.exited() {
                panic!("nats-server ended ({status}); its log:\n{}", program.last_words());
            }
            let client = async_nats::connect(&url)
                .await
                .map_err(|error| error.to_string())?;
            let account = async_nats::jetstream::new(client).query_account().await;
            account.map(drop).map_err(|error| error.to_string())
        })
        .await;
    }
}
