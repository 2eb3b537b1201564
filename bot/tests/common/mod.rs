//! A broker and an IRC server of which a test holds the other end, and a whole
//! bot between them.

mod broker;
mod ircd;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
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

    /// The configuration, with more settings of the network.
    pub(crate) fn config(&self, more: &str) -> Config {
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
        let mut config = Config::load(&path).expect("good");
        for network in &mut config.networks {
            network.irc.timing.pause_least = Duration::from_millis(20);
            network.irc.timing.pause_most = Duration::from_millis(40);
        }
        config
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
