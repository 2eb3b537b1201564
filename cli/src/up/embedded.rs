//! What the supervised NATS server and broker are started with.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use muster_broker::config::{Config, NatsCa};
use muster_broker::hooks::Held as HeldHooks;
use muster_broker::state_dir::{StateDir, StateDirError};
use muster_broker::{Embedded, EmbeddedError, EmbeddedOptions, prepare_embedded};

use super::layout::Layout;
use super::ports;
use super::process::Part;
use super::server::Server;
use super::{Wish, write_private};
use crate::failure::{Failure, NOT_ALL, USAGE};

/// The state directory, opened.
#[derive(Debug)]
pub struct State {
    dir: StateDir,
    cluster: String,
}

/// Opens the state directory, or makes it.
///
/// # Errors
/// Of a newer version, somebody else's, damaged, or not writable.
pub fn open(path: &Path) -> Result<State, Failure> {
    StateDir::open(path).map_err(|e| state_failure(&e))?;
    // Paths in it are told to other processes, which may be elsewhere.
    let path = std::fs::canonicalize(path)
        .map_err(|e| Failure::new(NOT_ALL, format!("cannot find {}: {e}", path.display())))?;
    let dir = StateDir::open(&path).map_err(|e| state_failure(&e))?;
    let root = dir.root().map_err(|e| state_failure(&e))?;
    Ok(State {
        dir,
        cluster: root.cluster.to_string(),
    })
}

fn state_failure(error: &StateDirError) -> Failure {
    let code = if matches!(error, StateDirError::Io { .. }) {
        NOT_ALL
    } else {
        USAGE
    };
    Failure::new(code, error.to_string())
}

/// Everything that is fixed before anything is started.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// Where the broker listens.
    pub listen: SocketAddr,
    /// The broker's URL, for other machines.
    pub url: String,
    /// The broker's URL, from this machine.
    pub reach: String,
    /// Where the NATS server listens.
    pub nats_listen: SocketAddr,
    /// The admin token; the broker writes it at its first start.
    pub token_file: PathBuf,
    /// The certificate authority, when the broker speaks HTTPS.
    pub ca_file: Option<PathBuf>,
    /// The broker's log.
    pub broker_log: PathBuf,
    /// The cluster.
    pub cluster: String,
    nats: Embedded,
    nats_text: String,
    broker_toml: PathBuf,
    broker_text: String,
}

impl Prepared {
    /// Decides about ports, and writes the configuration of the NATS server.
    ///
    /// # Errors
    /// A file that cannot be read or written, or that is wrong.
    pub fn new(
        wish: &Wish,
        layout: &Layout,
        state: &State,
        server: &Server,
    ) -> Result<Self, Failure> {
        let broker_toml = layout.root().join("broker.toml");
        // What the operator set in it stays.
        let mut config = if broker_toml.exists() {
            Some(Config::load(&broker_toml).map_err(|e| Failure::usage(e.to_string()))?)
        } else {
            None
        };
        let before = config.as_ref().map(|c| c.listen);
        let listen = same_or_free(wish.listen, before)?;
        let config = config.get_or_insert_with(Config::default);
        let options = EmbeddedOptions {
            listen: wish.nats_listen,
            names: config.names.clone(),
            version: server.version,
        };
        let nats = prepare_embedded(layout.root(), &options).map_err(|e| match &e {
            EmbeddedError::State(e) => state_failure(e),
            e => Failure::new(NOT_ALL, e.to_string()),
        })?;
        // A server that was started with another text is replaced.
        let nats_text = std::fs::read_to_string(&nats.config).map_err(|e| {
            Failure::new(
                NOT_ALL,
                format!("cannot read {}: {e}", nats.config.display()),
            )
        })?;

        config.state = layout.root().to_owned();
        config.listen = listen;
        config.nats.urls.clone_from(&nats.urls);
        config.nats.agent_urls.clone_from(&nats.agent_urls);
        config.nats.ca = NatsCa::Own;
        if let Some(file) = &wish.hooks {
            // The broker runs in another directory.
            let file = std::path::absolute(file)
                .map_err(|e| Failure::usage(format!("cannot find {}: {e}", file.display())))?;
            config.hooks_file = Some(file);
        }
        // Said here at once, and not by a broker that does not stay up.
        HeldHooks::open(config.hooks_file.as_deref()).map_err(|e| Failure::usage(e.to_string()))?;
        let broker_text = config
            .to_toml()
            .map_err(|e| Failure::usage(e.to_string()))?;

        let https = !listen.ip().is_loopback();
        let scheme = if https { "https" } else { "http" };
        let host = if listen.ip().is_unspecified() {
            hosts(listen.ip())
                .into_iter()
                .next()
                .unwrap_or_else(|| "localhost".into())
        } else {
            SocketAddr::new(listen.ip(), 0)
                .to_string()
                .trim_end_matches(":0")
                .to_owned()
        };
        Ok(Self {
            listen,
            url: format!("{scheme}://{host}:{}", listen.port()),
            reach: format!(
                "{scheme}://{}",
                SocketAddr::new(self::near(listen.ip()), listen.port())
            ),
            nats_listen: nats.listen,
            token_file: state.dir.admin_token(),
            ca_file: https.then(|| state.dir.keys().join("ca.pem")),
            broker_log: layout.log("broker"),
            cluster: state.cluster.clone(),
            nats,
            nats_text,
            broker_toml,
            broker_text,
        })
    }

    /// Writes the broker's configuration.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self) -> Result<(), Failure> {
        let head = "# Written by `muster up`. It sets state, listen and [nats] at each start;\n# what else you set here stays.\n\n";
        let text = format!("{head}{}", self.broker_text);
        write_private(&self.broker_toml, text.as_bytes()).map_err(|e| {
            Failure::new(
                NOT_ALL,
                format!("cannot write {}: {e}", self.broker_toml.display()),
            )
        })
    }

    /// Where NATS is, for programs.
    #[must_use]
    pub fn nats_url(&self) -> &str {
        self.nats.urls.first().map_or("", String::as_str)
    }

    /// The NATS server.
    #[must_use]
    pub fn nats_part(&self, layout: &Layout, server: &Server) -> Part {
        Part {
            name: "nats-server".into(),
            program: server.path.clone(),
            args: vec!["-c".into(), self.nats.config.clone().into_os_string()],
            environment: &[],
            config: self.nats_text.clone(),
            // What it says before it has read where its own log is.
            log: layout.log("nats-server"),
            note: layout.note("nats-server"),
            patience: Duration::from_secs(15),
        }
    }

    /// The broker: this very executable.
    ///
    /// # Errors
    /// The executable cannot be found.
    pub fn broker_part(&self, layout: &Layout) -> Result<Part, Failure> {
        let program = std::env::current_exe().map_err(|e| {
            Failure::new(
                NOT_ALL,
                format!("cannot find the executable of muster itself: {e}"),
            )
        })?;
        Ok(Part {
            name: "broker".into(),
            program,
            args: vec![
                "broker".into(),
                "--config".into(),
                self.broker_toml.clone().into_os_string(),
            ],
            environment: &[],
            config: self.broker_text.clone(),
            log: layout.log("broker"),
            note: layout.note("broker"),
            patience: Duration::from_secs(20),
        })
    }
}

/// `before`, when any port of its host will do; a free one otherwise.
fn same_or_free(wanted: SocketAddr, before: Option<SocketAddr>) -> Result<SocketAddr, Failure> {
    match before {
        Some(before) if wanted.port() == 0 && before.ip() == wanted.ip() && before.port() != 0 => {
            Ok(before)
        }
        _ => ports::choose(wanted),
    }
}

/// The address by which this machine itself reaches one that it listens on.
fn near(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(v4) if v4.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(v6) if v6.is_unspecified() => std::net::Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    }
}

/// By what names and addresses other machines may reach this one.
fn hosts(listen: IpAddr) -> Vec<String> {
    let mut hosts = Vec::new();
    // Nothing is sent: connecting a UDP socket only asks the routing table,
    // here for a documentation address (RFC 5737).
    let outward = std::net::UdpSocket::bind("0.0.0.0:0")
        .and_then(|socket| socket.connect("192.0.2.1:9").map(|()| socket))
        .and_then(|socket| socket.local_addr());
    if let Ok(address) = outward
        && !address.ip().is_unspecified()
    {
        hosts.push(address.ip().to_string());
    }
    let name = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    if !name.is_empty()
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b))
    {
        hosts.push(name);
    }
    if hosts.is_empty() {
        hosts.push(near(listen).to_string());
    }
    hosts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(state: &Path) -> Wish {
        Wish {
            state: state.to_owned(),
            listen: "127.0.0.1:0".parse().expect("address"),
            nats_listen: None,
            nodes: vec![],
            hooks: None,
            json: false,
        }
    }

    fn server() -> Server {
        Server {
            path: "/usr/sbin/nats-server".into(),
            version: "2.9.10".parse().expect("version"),
        }
    }

    #[test]
    fn a_second_start_finds_the_same_ports_and_writes_the_same_text() {
        let dir = tempfile::tempdir().expect("directory");
        let state = open(dir.path()).expect("state");
        let layout = Layout::new(dir.path()).expect("layout");
        let first = Prepared::new(&wish(dir.path()), &layout, &state, &server()).expect("prepared");
        first.write().expect("written");
        let again = open(dir.path()).expect("state");
        let second =
            Prepared::new(&wish(dir.path()), &layout, &again, &server()).expect("prepared");
        assert_eq!(
            (first.listen, first.nats_listen),
            (second.listen, second.nats_listen)
        );
        assert_eq!(first.nats_text, second.nats_text);
        assert_eq!(first.broker_text, second.broker_text);
        assert!(first.url.starts_with("http://127.0.0.1:") && first.ca_file.is_none());
    }

    #[test]
    fn what_the_operator_set_stays() {
        let dir = tempfile::tempdir().expect("directory");
        let state = open(dir.path()).expect("state");
        let layout = Layout::new(dir.path()).expect("layout");
        std::fs::write(dir.path().join("broker.toml"), "confirm_above = 3\n").expect("write");
        let prepared =
            Prepared::new(&wish(dir.path()), &layout, &state, &server()).expect("prepared");
        prepared.write().expect("written");
        let config = Config::load(&dir.path().join("broker.toml")).expect("config");
        assert_eq!(config.confirm_above, 3);
        assert_eq!(config.state, layout.root());
    }

    #[test]
    fn beyond_loopback_there_is_tls() {
        let dir = tempfile::tempdir().expect("directory");
        let state = open(dir.path()).expect("state");
        let layout = Layout::new(dir.path()).expect("layout");
        let wide = Wish {
            listen: "0.0.0.0:0".parse().expect("address"),
            nats_listen: Some("0.0.0.0:0".parse().expect("address")),
            ..wish(dir.path())
        };
        let prepared = Prepared::new(&wide, &layout, &state, &server()).expect("prepared");
        prepared.write().expect("written");
        assert!(
            prepared.url.starts_with("https://")
                && prepared.reach.starts_with("https://127.0.0.1:")
        );
        assert!(
            prepared.nats_text.contains("cert_file"),
            "{}",
            prepared.nats_text
        );
        let config = Config::load(&dir.path().join("broker.toml")).expect("config");
        assert!(config.nats.urls[0].starts_with("tls://127.0.0.1:"));
        assert!(
            config
                .nats
                .agent_urls
                .iter()
                .all(|u| u.starts_with("tls://")),
            "{:?}",
            config.nats.agent_urls
        );
    }

    #[test]
    fn a_newer_state_directory_is_refused() {
        let dir = tempfile::tempdir().expect("directory");
        std::fs::write(dir.path().join("version"), "99\n").expect("write");
        let error = open(dir.path()).expect_err("newer");
        assert_eq!(error.code, 2);
        assert!(error.message.contains("format 99"), "{}", error.message);
    }
}
