//! A broker and an IRC server of which a test holds the other end, and a whole
//! bot between them.

mod broker;
mod ircd;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use muster_bot::config::Config;
use muster_bot::cursor::StateDir;
use muster_bot::{cli, network};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

pub(crate) use broker::Broker;
pub(crate) use ircd::{Echo, Ircd};

/// Longer than anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until something is so.
pub(crate) async fn until(what: &str, is: impl Fn() -> bool) {
    let waited = timeout(PATIENCE, async {
        while !is() {
            sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "it never came: {what}");
}

/// A bot's files, and what it speaks to.
pub(crate) struct World {
    pub(crate) ircd: Ircd,
    pub(crate) broker: Broker,
    dir: TempDir,
}

/// A bot that runs.
pub(crate) struct Bot {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl World {
    pub(crate) async fn new(echo: Echo) -> Self {
        // The client wants one, also for plain HTTP.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self {
            ircd: Ircd::start(echo).await,
            broker: Broker::start().await,
            dir: tempfile::tempdir().expect("a directory"),
        }
    }

    /// The program itself, which is there when this returns. It waits longer
    /// than [`World::bot`] before it connects again.
    pub(crate) async fn program(&self, more: &str) -> Program {
        let joined = self.ircd.joined();
        let config = self.file(more);
        let program = Program::start(&config);
        until("the bot joins", || self.ircd.joined() > joined).await;
        program
    }

    /// The configuration, with more settings of the network.
    fn config(&self, more: &str) -> Config {
        let path = self.file(more);
        let mut config = Config::load(&path).expect("good");
        for network in &mut config.networks {
            network.irc.timing.pause_least = Duration::from_millis(20);
            network.irc.timing.pause_most = Duration::from_millis(40);
        }
        config
    }

    /// The file of the configuration.
    pub(crate) fn file(&self, more: &str) -> PathBuf {
        let dir = self.dir.path();
        let token = dir.join("ops.token");
        std::fs::write(&token, "mt1_x_y\n").expect("written");
        let mode = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&token, mode).expect("mode");
        let text = format!(
            "state = \"state\"\n\
             [broker]\nurl = \"http://{}\"\n\
             [networks.ops]\nserver = \"{}\"\ntls = false\nnick = \"muster\"\n\
             channels = [{}]\ntoken_file = \"ops.token\"\ncolours = false\nsymbols = false\n{more}",
            self.broker.address(),
            self.ircd.address(),
            self.ircd.channels(),
        );
        let path = dir.join("bot.toml");
        std::fs::write(&path, text).expect("written");
        path
    }

    pub(crate) fn state(&self) -> &Path {
        self.dir.path()
    }

    /// A bot, which is there when this returns.
    pub(crate) async fn bot(&self, more: &str) -> Bot {
        let joined = self.ircd.joined();
        let config = self.config(more);
        let stop = CancellationToken::new();
        let end = stop.clone();
        let task = tokio::spawn(async move {
            let state = StateDir::open(&config.state).expect("the state");
            cli::run(config, &state, end).await;
        });
        until("the bot joins", || self.ircd.joined() > joined).await;
        Bot { stop, task }
    }

    /// A network alone, as a task that can be cut off at any moment.
    pub(crate) async fn bare(&self, more: &str) -> JoinHandle<()> {
        let joined = self.ircd.joined();
        let config = self.config(more);
        let ops = config.networks[0].clone();
        let state = StateDir::open(&config.state).expect("the state");
        let task = tokio::spawn(async move {
            let cursor = state.cursor(&ops.irc.name);
            let stop = CancellationToken::new();
            network::run(ops, cursor, stop).await.expect("it runs");
        });
        until("the bot joins", || self.ircd.joined() > joined).await;
        task
    }
}

impl Bot {
    /// As SIGTERM does.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        timeout(PATIENCE, self.task)
            .await
            .expect("it ends")
            .expect("it ends well");
    }
}

/// The program, as a process of its own; killed when it is forgotten.
pub(crate) struct Program(Child);

impl Program {
    pub(crate) fn start(config: &Path) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_muster-bot"))
            .arg("--config")
            .arg(config)
            .stderr(Stdio::null())
            .spawn();
        Self(child.expect("it starts"))
    }

    /// As `kill -9` does.
    pub(crate) fn kill(mut self) {
        self.0.kill().expect("killed");
        self.0.wait().expect("gone");
    }

    /// As `kill` does.
    pub(crate) async fn stop(self) -> ExitStatus {
        let pid = self.0.id().to_string();
        let sent = Command::new("kill").arg(&pid).status();
        assert!(sent.expect("kill is there").success());
        self.ends().await
    }

    pub(crate) async fn ends(mut self) -> ExitStatus {
        let waited = timeout(PATIENCE, async {
            loop {
                if let Some(status) = self.0.try_wait().expect("a child") {
                    return status;
                }
                sleep(Duration::from_millis(5)).await;
            }
        });
        waited.await.expect("it ends")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
