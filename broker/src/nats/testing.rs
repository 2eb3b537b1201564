//! A real nats-server in operator mode for tests: free port, directory of its
//! own, killed on drop.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use async_nats::{Client, ConnectOptions};

use super::admin::SystemClient;
use super::config::{EmbeddedConfig, Identity, embedded_config};
use super::credentials::Credentials;
use super::jwt::{
    AccountClaims, JetStreamLimits, OperatorClaims, Revocations, UnixSeconds, UserClaims,
};
use super::keys::NatsKeys;
use super::permissions::{Permissions, broker_permissions, system_permissions};
use super::version::ServerVersion;

/// How long anything may take in a test before it has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Seconds since the epoch.
pub(crate) fn now() -> UnixSeconds {
    u64::try_from(jiff::Timestamp::now().as_second()).unwrap()
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// A running server with keys of its own.
pub(crate) struct TestServer {
    dir: tempfile::TempDir,
    pub(crate) keys: NatsKeys,
    child: Child,
    port: u16,
}

impl TestServer {
    /// Starts a server whose account has all of JetStream.
    pub(crate) async fn start() -> Self {
        Self::start_with(JetStreamLimits::default()).await
    }

    /// Starts a server whose account has these JetStream limits.
    pub(crate) async fn start_with(limits: JetStreamLimits) -> Self {
        Self::start_edited(limits, |text| text).await
    }

    /// Starts a server whose accounts are in its configuration only.
    pub(crate) async fn start_without_resolver() -> Self {
        Self::start_edited(JetStreamLimits::default(), |text| {
            let (before, rest) = text.split_once("resolver {").unwrap();
            let (_, after) = rest.split_once("}\n").unwrap();
            format!("{before}resolver: MEMORY\n{after}")
        })
        .await
    }

    async fn start_edited(limits: JetStreamLimits, edit: impl FnOnce(String) -> String) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let keys = NatsKeys::generate();
        let config = dir.path().join("nats.conf");
        let text = edit(Self::config(dir.path(), &keys, limits, 0));
        std::fs::write(&config, text).unwrap();
        let child = spawn(&config, dir.path());
        let port = port_of(dir.path(), child.id()).await;
        Self {
            dir,
            keys,
            child,
            port,
        }
    }

    /// Starts servers that form a cluster, with the same keys and without
    /// JetStream, which could not elect a leader among two.
    pub(crate) async fn start_cluster(size: usize) -> Vec<Self> {
        let keys = NatsKeys::generate();
        let ports: Vec<u16> = (0..size).map(|_| unused_port()).collect();
        let routes: Vec<String> = ports
            .iter()
            .map(|p| format!("nats://127.0.0.1:{p}"))
            .collect();
        let mut servers = Vec::new();
        for (n, port) in ports.iter().enumerate() {
            let dir = tempfile::tempdir().unwrap();
            let config = dir.path().join("nats.conf");
            let text = Self::config(dir.path(), &keys, JetStreamLimits::default(), 0);
            let (before, rest) = text.split_once("jetstream {").unwrap();
            let (_, after) = rest.split_once("}\n").unwrap();
            let text = format!(
                "{before}{after}cluster {{ name: test, listen: \"127.0.0.1:{port}\", routes: [{}] }}\n",
                routes.join(", ")
            )
            .replace("\"test\"", &format!("\"test-{n}\""));
            std::fs::write(&config, text).unwrap();
            let child = spawn(&config, dir.path());
            let port = port_of(dir.path(), child.id()).await;
            servers.push(Self {
                dir,
                keys: keys.copy(),
                child,
                port,
            });
        }
        servers
    }

    /// Ends the server with SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn config(dir: &Path, keys: &NatsKeys, limits: JetStreamLimits, port: u16) -> String {
        let version = Command::new("nats-server")
            .arg("--version")
            .output()
            .unwrap();
        let version: ServerVersion = String::from_utf8(version.stdout).unwrap().parse().unwrap();
        let identity = identity(keys, limits);
        embedded_config(&EmbeddedConfig {
            version,
            server_name: "test".into(),
            listen: ([127, 0, 0, 1], port).into(),
            tls: None,
            identity,
            resolver_dir: dir.join("accounts"),
            jetstream_dir: dir.join("jetstream"),
            jetstream_memory: 16 << 20,
            jetstream_disk: Some(256 << 20),
            pid_file: dir.join("pid"),
            ports_dir: Some(dir.to_owned()),
            log_file: Some(dir.join("log")),
        })
        .unwrap()
    }

    /// All bytes that it has on its disk.
    pub(crate) fn everything_on_disk(&self) -> Vec<u8> {
        let mut all = Vec::new();
        let mut dirs = vec![self.dir.path().to_owned()];
        while let Some(dir) = dirs.pop() {
            all.extend_from_slice(dir.as_os_str().as_encoded_bytes());
            for entry in std::fs::read_dir(&dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    dirs.push(path);
                } else {
                    all.extend(std::fs::read(&path).unwrap_or_default());
                }
            }
        }
        all
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Kills the server with SIGKILL and starts it again with the
    /// configuration that it was first started with, on the same port.
    pub(crate) async fn kill_and_restart(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let config = self.dir.path().join("nats.conf");
        let text = std::fs::read_to_string(&config).unwrap();
        std::fs::write(
            &config,
            text.replace("port: -1", &format!("port: {}", self.port)),
        )
        .unwrap();
        self.child = spawn(&config, self.dir.path());
        let port = port_of(self.dir.path(), self.child.id()).await;
        assert_eq!(port, self.port);
    }

    fn store(&self) -> PathBuf {
        self.dir.path().join("jetstream")
    }

    /// Stops the server, copies what JetStream holds, and starts it again.
    pub(crate) async fn copy_store(&mut self, to: &Path) {
        self.kill();
        copy_dir(&self.store(), to);
        self.kill_and_restart().await;
    }

    /// Kills the server, puts that copy back (nothing at all without one), and
    /// starts it again.
    pub(crate) async fn put_store(&mut self, from: Option<&Path>) {
        self.kill();
        std::fs::remove_dir_all(self.store()).unwrap();
        if let Some(from) = from {
            copy_dir(from, &self.store());
        }
        self.kill_and_restart().await;
    }

    /// Credentials of a user of muster's account with these permissions.
    pub(crate) fn user(&self, name: &str, permissions: Permissions) -> Credentials {
        Credentials::issue(self.keys.account(), |user| UserClaims {
            name: name.into(),
            user,
            issued_at: now(),
            expires_at: None,
            permissions,
            max_subscriptions: None,
            max_payload: None,
        })
        .unwrap()
    }

    /// A connection that may do everything in muster's account.
    pub(crate) async fn broker(&self) -> Client {
        self.user("broker", broker_permissions())
            .connect_options()
            .connect(self.url())
            .await
            .unwrap()
    }

    /// A connection of the system account.
    pub(crate) async fn system(&self) -> SystemClient {
        let credentials = self.system_credentials();
        SystemClient::connect(&[self.url()], &credentials, |o: ConnectOptions| o)
            .await
            .unwrap()
    }

    /// Credentials of a user of the system account.
    pub(crate) fn system_credentials(&self) -> Credentials {
        Credentials::issue(self.keys.system(), |user| UserClaims {
            name: "system".into(),
            user,
            issued_at: now(),
            expires_at: None,
            permissions: system_permissions(),
            max_subscriptions: None,
            max_payload: None,
        })
        .unwrap()
    }

    /// Claims of muster's account with these revocations.
    pub(crate) fn account_claims(
        &self,
        issued_at: UnixSeconds,
        revocations: Revocations,
    ) -> String {
        AccountClaims {
            name: "muster".into(),
            account: self.keys.account_key(),
            issued_at,
            jetstream: Some(JetStreamLimits::default()),
            revocations,
        }
        .sign(self.keys.operator())
        .unwrap()
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            #[allow(clippy::print_stderr)]
            for line in &lines[lines.len().saturating_sub(30)..] {
                eprintln!("nats-server: {line}");
            }
        }
    }
}

/// The identity of a server with these keys.
pub(crate) fn identity(keys: &NatsKeys, limits: JetStreamLimits) -> Identity {
    // A while ago, so that tests can issue newer claims at once.
    let issued_at = now() - 100;
    let account = |name: &str, account, jetstream| {
        AccountClaims {
            name: name.into(),
            account,
            issued_at,
            jetstream,
            revocations: Revocations::default(),
        }
        .sign(keys.operator())
        .unwrap()
    };
    Identity {
        operator_jwt: OperatorClaims {
            name: "muster".into(),
            system_account: keys.system_key(),
            issued_at,
        }
        .sign(keys.operator())
        .unwrap(),
        system_account: keys.system_key(),
        system_jwt: account("system", keys.system_key(), None),
        account: keys.account_key(),
        account_jwt: account("muster", keys.account_key(), Some(limits)),
    }
}

/// A port that nobody listens on, below those that the kernel gives to outgoing
/// connections, so that none takes it before the server does.
fn unused_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let offset = u16::try_from(std::process::id() % 199).unwrap() * 100;
    loop {
        let port = 11_000 + (offset + NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

fn spawn(config: &Path, dir: &Path) -> Child {
    let log = |name: &str| std::fs::File::create(dir.join(name)).unwrap();
    Command::new("nats-server")
        .arg("-c")
        .arg(config)
        .stdin(Stdio::null())
        .stdout(log("stdout"))
        .stderr(log("stderr"))
        .spawn()
        .expect("nats-server is installed (make test does it)")
}

/// Waits for the file in which the server tells its ports.
async fn port_of(dir: &Path, pid: u32) -> u16 {
    let file: PathBuf = dir.join(format!("nats-server_{pid}.ports"));
    let end = Instant::now() + PATIENCE;
    loop {
        let told = std::fs::read_to_string(&file).ok().and_then(|text| {
            let ports: serde_json::Value = serde_json::from_str(&text).ok()?;
            let url = ports["nats"][0].as_str()?;
            url.rsplit(':').next()?.parse().ok()
        });
        if let Some(port) = told {
            return port;
        }
        assert!(
            Instant::now() < end,
            "nats-server did not start: {}{}",
            std::fs::read_to_string(dir.join("stderr")).unwrap_or_default(),
            std::fs::read_to_string(dir.join("log")).unwrap_or_default(),
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
