//! `muster-bot`, as it is set up in a network of the tests.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result};

use super::IrcNetwork;
use crate::{Up, bin};

/// Writes a file that nobody else reads.
///
/// # Errors
/// When it cannot be written.
pub fn private(path: &Path, text: &str) -> Result<()> {
    let mut file = File::create(path)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    file.write_all(text.as_bytes())?;
    Ok(())
}

/// The bot of a network, ended with this.
#[derive(Debug)]
pub struct Bot {
    child: Child,
    log: PathBuf,
}

impl Bot {
    /// The bot of the network `ops`, in the channels `#ops` and `#dev`, in that
    /// directory; and a cluster that knows these principals. `more` is what
    /// its file says besides.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(
        dir: &Path,
        network: &IrcNetwork,
        up: &Up,
        principals: &str,
        more: &str,
    ) -> Result<Self> {
        let policy = up.dir.path().join("policy");
        let policy_text = policy.to_string_lossy().into_owned();
        up.muster(&["policy", "show", "--out", &policy_text])
            .exits(0);
        std::fs::write(policy.join("principals.toml"), principals)?;
        up.muster(&["policy", "put", &policy_text]).exits(0);
        let made = up.muster(&["token", "create", "--for", "irc:ops", "--role", "witness"]);
        private(&dir.join("ops.token"), made.exits(0).out.trim())?;
        private(&dir.join("pw"), "muster-pass\n")?;
        let (port, _) = network.tls().context("it has TLS")?;
        let ca = up.state().join("keys/ca.pem");
        let ca = match up.url().starts_with("https:") {
            true => format!("ca_file = \"{}\"\n", ca.display()),
            false => String::new(),
        };
        let text = format!(
            r##"
state = "{}/bot"
[broker]
url = "{}"
{ca}[networks.ops]
server = "127.0.0.1:{port}"
nick = "muster"
channels = ["#ops", "#dev"]
tls_ca_file = "ca.pem"
token_file = "ops.token"
sasl = {{ mechanism = "plain", account = "muster", password_file = "pw" }}
colours = false
symbols = false
burst = 20
rate = 50
{more}
"##,
            dir.display(),
            up.url(),
        );
        private(&dir.join("bot.toml"), &text)?;
        Self::of(dir)
    }

    /// The bot whose file is in that directory.
    ///
    /// # Errors
    /// When it does not start.
    pub fn of(dir: &Path) -> Result<Self> {
        let log = dir.join("bot.log");
        let out = File::create(&log)?;
        let mut command = Command::new(bin("muster-bot"));
        command
            .arg("--config")
            .arg(dir.join("bot.toml"))
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out);
        let child = command.spawn()?;
        Ok(Self { child, log })
    }

    /// What it said of itself.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Bot {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
