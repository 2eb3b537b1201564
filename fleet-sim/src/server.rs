//! A NATS server of one's own, gone when dropped.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;

const PATIENCE: Duration = Duration::from_secs(20);

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The program cannot be started.
    #[error("cannot start `{program}`: {source}; install nats-server, or name another with --url")]
    Start {
        /// The program.
        program: String,
        /// Why not.
        source: std::io::Error,
    },
    /// It does not come up.
    #[error("nats-server did not say where it listens: {0}")]
    Silent(String),
    /// A place for its files.
    #[error("no temporary directory: {0}")]
    Directory(std::io::Error),
}

/// A running server on a port of loopback that was free.
#[derive(Debug)]
pub struct Server {
    child: Child,
    dir: tempfile::TempDir,
    url: String,
}

#[derive(Deserialize)]
struct Ports {
    nats: Vec<String>,
}

impl Server {
    /// Starts one, with a configuration file or without.
    ///
    /// # Errors
    /// [`ServerError`].
    pub async fn start(program: &str, config: Option<&Path>) -> Result<Self, ServerError> {
        let dir = tempfile::Builder::new()
            .prefix("muster-nats-")
            .tempdir()
            .map_err(ServerError::Directory)?;
        let mut command = Command::new(program);
        command
            .args(["-a", "127.0.0.1", "-p", "-1", "--ports_file_dir"])
            .arg(dir.path())
            .arg("-l")
            .arg(dir.path().join("nats.log"));
        if let Some(config) = config {
            command.arg("-c").arg(config);
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|source| ServerError::Start {
                program: program.to_owned(),
                source,
            })?;
        let mut server = Self {
            child,
            dir,
            url: String::new(),
        };
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(url) = server.find_url() {
                server.url = url;
                return Ok(server);
            }
            let ended = server.child.try_wait().ok().flatten().is_some();
            if ended || Instant::now() > until {
                let log = std::fs::read_to_string(server.dir.path().join("nats.log"));
                let log = log.unwrap_or_default();
                let last = log.lines().last().unwrap_or("it said nothing");
                return Err(ServerError::Silent(last.to_owned()));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Where clients connect.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn find_url(&self) -> Option<String> {
        let files = std::fs::read_dir(self.dir.path()).ok()?;
        let ports = files
            .flatten()
            .find(|f| f.path().extension().is_some_and(|e| e == "ports"))?;
        // It may be half written.
        let text = std::fs::read_to_string(ports.path()).ok()?;
        let ports: Ports = serde_json::from_str(&text).ok()?;
        ports.nats.into_iter().next()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
