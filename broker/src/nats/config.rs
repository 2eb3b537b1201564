//! nats-server configuration as text, from typed settings. Pure functions.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::keys::AccountKey;
use super::version::ServerVersion;

/// Largest message, in bytes. Above the server's default of 1 MiB, because an
/// account's claims, which list revoked nodes, alone may be that long.
pub const MAX_PAYLOAD: u64 = 4 * 1024 * 1024;

/// Longest protocol line, in bytes. A node's JWT travels in its CONNECT line
/// and grows with its roles and labels; the server's default is 4 KiB.
pub const MAX_CONTROL_LINE: u64 = 64 * 1024;

/// The operator and the accounts that a server must know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The operator's JWT.
    pub operator_jwt: String,
    /// The system account.
    pub system_account: AccountKey,
    /// The system account's JWT.
    pub system_jwt: String,
    /// muster's account.
    pub account: AccountKey,
    /// The JWT of muster's account, as of now.
    pub account_jwt: String,
}

/// Settings of the server that muster supervises itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmbeddedConfig {
    /// The server that will read it: newer ones know more settings.
    pub version: ServerVersion,
    /// Name in the server's own messages.
    pub server_name: String,
    /// Where to listen. Port 0 lets the server choose a free one, which it
    /// tells in a file in `ports_dir`.
    pub listen: SocketAddr,
    /// Certificate and key; needed when `listen` is not loopback.
    pub tls: Option<TlsFiles>,
    /// Who may connect.
    pub identity: Identity,
    /// Directory of the account resolver.
    pub resolver_dir: PathBuf,
    /// Directory of JetStream.
    pub jetstream_dir: PathBuf,
    /// Memory that JetStream may use, in bytes.
    pub jetstream_memory: u64,
    /// Disk that JetStream may use, in bytes; `None` for three quarters of
    /// what is free at its start.
    pub jetstream_disk: Option<u64>,
    /// Where the server writes its process id.
    pub pid_file: PathBuf,
    /// Where the server writes its ports (see `listen`).
    pub ports_dir: Option<PathBuf>,
    /// Where the server logs; `None` for its standard error. A supervised
    /// server that must outlive its supervisor needs a file: it would die of a
    /// broken pipe.
    pub log_file: Option<PathBuf>,
}

/// Files for TLS, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate chain.
    pub cert: PathBuf,
    /// Private key.
    pub key: PathBuf,
    /// Authority that client certificates must be signed by; `None` when
    /// clients need none (their JWT is what identifies them).
    pub client_ca: Option<PathBuf>,
}

/// Why there can be no such configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Listens to the world without TLS.
    #[error(
        "the NATS server would listen on {0} without TLS; beyond loopback muster always uses TLS: give a certificate, or listen on 127.0.0.1"
    )]
    PlainBeyondLoopback(SocketAddr),
    /// A path is not UTF-8.
    #[error("the path {} is not UTF-8, which a nats-server configuration cannot express; use another directory", .0.display())]
    Path(PathBuf),
}

/// The configuration of the server that muster supervises.
///
/// # Errors
/// [`ConfigError`]: no TLS beyond loopback, or a path that cannot be written.
pub fn embedded_config(config: &EmbeddedConfig) -> Result<String, ConfigError> {
    if config.tls.is_none() && !config.listen.ip().is_loopback() {
        return Err(ConfigError::PlainBeyondLoopback(config.listen));
    }
    let mut out = Text::default();
    out.line("# Written by muster at every start of its NATS server. Changes are lost.");
    out.set("server_name", &quote(&config.server_name));
    let port = match config.listen.port() {
        0 => "-1".to_owned(),
        port => port.to_string(),
    };
    out.set("host", &quote(&config.listen.ip().to_string()));
    out.set("port", &port);
    out.set("pid_file", &path(&config.pid_file)?);
    if let Some(dir) = &config.ports_dir {
        out.set("ports_file_dir", &path(dir)?);
    }
    if let Some(file) = &config.log_file {
        out.set("log_file", &path(file)?);
        out.set("logfile_size_limit", "64MB");
    }
    out.line("");
    limits(&mut out, false);
    if let Some(tls) = &config.tls {
        out.line("");
        out.line("tls {");
        out.set("  cert_file", &path(&tls.cert)?);
        out.set("  key_file", &path(&tls.key)?);
        if let Some(ca) = &tls.client_ca {
            out.set("  ca_file", &path(ca)?);
            out.set("  verify", "true");
        }
        out.line("  # A whole fleet that reconnects at once waits for its handshakes.");
        out.set("  timeout", "10");
        out.line("}");
    }
    out.line("");
    out.line("jetstream {");
    out.set("  store_dir", &path(&config.jetstream_dir)?);
    out.set("  max_mem", &config.jetstream_memory.to_string());
    if let Some(bytes) = config.jetstream_disk {
        out.set("  max_file", &bytes.to_string());
    }
    if config.version >= SYNC_ALWAYS {
        out.line("  # An acknowledged message is on the disk, not only in memory.");
        out.set("  sync_interval", "always");
    }
    out.line("}");
    out.line("");
    identity(&mut out, &config.identity, &config.resolver_dir, false)?;
    Ok(out.0)
}

/// What an existing server or cluster needs, as text to be included in the
/// configuration of each of its servers, with a comment for each setting.
///
/// `resolver_dir` is a directory of the NATS server's machine.
///
/// # Errors
/// [`ConfigError::Path`].
pub fn external_config(
    who: &Identity,
    resolver_dir: &Path,
    version: Option<ServerVersion>,
) -> Result<String, ConfigError> {
    let mut out = Text::default();
    out.line("# What muster needs from a NATS server or cluster, version 2.9 or newer.");
    out.line("# Put it into the configuration of EVERY server, restart them, then start the");
    out.line(
        "# broker with `urls = [\"tls://nats-1:4222\", ...]` in the [nats] section of its file.",
    );
    out.line("# The server must have no `accounts`, `users` or `authorization` of its own: these");
    out.line("# keys make muster the operator of the servers. To share servers with other");
    out.line("# applications, run muster's NATS as a separate server.");
    out.line("# Nothing below is secret: JWTs are signed statements, not passwords.");
    out.line("");
    limits(&mut out, true);
    out.line("");
    out.line("# Journals, state and usage live in JetStream. Choose a disk that is backed up.");
    out.line("jetstream {");
    out.set("  store_dir", "\"/var/lib/nats/jetstream\"");
    match version {
        Some(version) if version < SYNC_ALWAYS => {
            out.line("  # From 2.10 on, add: sync_interval: always");
        }
        Some(_) => {
            out.line("  # An acknowledged message is on the disk, not only in memory.");
            out.set("  sync_interval", "always");
        }
        None => {
            out.line(
                "  # Acknowledged messages must be on the disk. Servers from 2.10 on know this",
            );
            out.line("  # setting, a 2.9 refuses to start with it; take the comment sign away:");
            out.line("  # sync_interval: always");
        }
    }
    out.line("}");
    out.line("");
    out.line("# Agents are elsewhere: give the server a certificate that they can verify.");
    out.line(
        "# tls { cert_file: \"/etc/nats/cert.pem\", key_file: \"/etc/nats/key.pem\", timeout: 10 }",
    );
    out.line("");
    identity(&mut out, who, resolver_dir, true)?;
    Ok(out.0)
}

/// First version that knows `sync_interval: always`.
const SYNC_ALWAYS: ServerVersion = ServerVersion {
    major: 2,
    minor: 10,
    patch: 0,
};

fn limits(out: &mut Text, explain: bool) {
    let why = |out: &mut Text, text: &str| {
        if explain {
            out.line(text);
        }
    };
    why(
        out,
        "# Largest message in bytes: the list of revoked nodes travels in one.",
    );
    out.set("max_payload", &MAX_PAYLOAD.to_string());
    why(
        out,
        "# A node's JWT travels in its CONNECT line and grows with its labels.",
    );
    out.set("max_control_line", &MAX_CONTROL_LINE.to_string());
    why(
        out,
        "# Twenty thousand agents, and room for the brokers and for reconnects.",
    );
    out.set("max_connections", "65536");
    why(
        out,
        "# A dead connection is noticed within about a minute and a half.",
    );
    out.set("ping_interval", "\"30s\"");
    out.set("ping_max", "2");
    why(
        out,
        "# How long a write to a slow agent may block before it is cut off.",
    );
    out.set("write_deadline", "\"10s\"");
    why(
        out,
        "# A fleet that reconnects at once waits for its signatures to be checked.",
    );
    out.line("authorization { timeout: 10 }");
}

fn identity(
    out: &mut Text,
    who: &Identity,
    resolver_dir: &Path,
    explain: bool,
) -> Result<(), ConfigError> {
    let why = |out: &mut Text, text: &str| {
        if explain {
            out.line(text);
        }
    };
    why(out, "# Who signs accounts: muster's operator key.");
    out.set("operator", &quote(&who.operator_jwt));
    why(
        out,
        "# The account in which muster asks the servers who is connected, and tells them",
    );
    why(out, "# about revoked nodes.");
    out.set("system_account", &quote(who.system_account.as_str()));
    why(
        out,
        "# Servers keep accounts in this directory and tell each other about changes: a",
    );
    why(
        out,
        "# revoked node stays revoked when a server restarts. It must be writable by the",
    );
    why(
        out,
        "# server. `full` is needed: with a memory resolver no node could be removed.",
    );
    out.line("resolver {");
    out.set("  type", "full");
    out.set("  dir", &path(resolver_dir)?);
    out.set("  allow_delete", "false");
    why(
        out,
        "  # How often servers compare their directories with each other: a server that was\n  # away may let a revoked node in for this long.",
    );
    out.set("  interval", "\"5s\"");
    out.line("}");
    why(
        out,
        "# What a server starts with while its directory is empty: the system account and",
    );
    why(
        out,
        "# muster's account. A newer state in the directory wins over these.",
    );
    out.line("resolver_preload {");
    out.set(
        &format!("  {}", who.system_account),
        &quote(&who.system_jwt),
    );
    out.set(&format!("  {}", who.account), &quote(&who.account_jwt));
    out.line("}");
    Ok(())
}

#[derive(Default)]
struct Text(String);

impl Text {
    fn line(&mut self, text: &str) {
        self.0.push_str(text);
        self.0.push('\n');
    }

    fn set(&mut self, key: &str, value: &str) {
        writeln!(self.0, "{key}: {value}").expect("writing to a String cannot fail");
    }
}

fn path(path: &Path) -> Result<String, ConfigError> {
    path.to_str()
        .map(quote)
        .ok_or_else(|| ConfigError::Path(path.to_owned()))
}

/// A double-quoted string of nats-server's configuration language.
fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if u32::from(c) < 0x20 => {
                write!(out, "\\x{:02X}", u32::from(c)).expect("writing to a String cannot fail");
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        let key = |fill| {
            nkeys::KeyPair::new_from_raw(nkeys::KeyPairType::Account, [fill; 32])
                .unwrap()
                .public_key()
                .parse::<AccountKey>()
                .unwrap()
        };
        Identity {
            operator_jwt: "OPERATOR.JWT".into(),
            system_account: key(1),
            system_jwt: "SYSTEM.JWT".into(),
            account: key(2),
            account_jwt: "ACCOUNT.JWT".into(),
        }
    }

    fn config(version: &str, listen: &str) -> EmbeddedConfig {
        EmbeddedConfig {
            version: version.parse().unwrap(),
            server_name: "muster".into(),
            listen: listen.parse().unwrap(),
            tls: None,
            identity: identity(),
            resolver_dir: "/state/nats/accounts".into(),
            jetstream_dir: "/state/nats/jetstream".into(),
            jetstream_memory: 64 * 1024 * 1024,
            jetstream_disk: None,
            pid_file: "/state/nats/pid".into(),
            ports_dir: None,
            log_file: None,
        }
    }

    #[test]
    fn embedded_on_loopback() {
        insta::assert_snapshot!(embedded_config(&config("2.9.10", "127.0.0.1:4222")).unwrap());
    }

    #[test]
    fn embedded_with_tls_on_a_newer_server() {
        let config = EmbeddedConfig {
            tls: Some(TlsFiles {
                cert: "/state/tls/cert.pem".into(),
                key: "/state/tls/key.pem".into(),
                client_ca: None,
            }),
            jetstream_disk: Some(1 << 30),
            ports_dir: Some("/state/nats".into()),
            log_file: Some("/state/nats/log".into()),
            ..config("2.10.27", "[::]:0")
        };
        insta::assert_snapshot!(embedded_config(&config).unwrap());
    }

    #[test]
    fn external() {
        insta::assert_snapshot!(
            external_config(&identity(), Path::new("/var/lib/nats/accounts"), None).unwrap()
        );
    }

    #[test]
    fn plain_text_never_leaves_loopback() {
        let refused = embedded_config(&config("2.9.10", "0.0.0.0:4222")).unwrap_err();
        assert!(matches!(refused, ConfigError::PlainBeyondLoopback(_)));
    }

    #[test]
    fn odd_paths_cannot_break_out_of_their_string() {
        let odd = EmbeddedConfig {
            jetstream_dir: "/tmp/a\"}\nport: 1 \\ $HOME".into(),
            ..config("2.9.10", "127.0.0.1:0")
        };
        let text = embedded_config(&odd).unwrap();
        assert!(
            text.contains(r#"store_dir: "/tmp/a\"}\nport: 1 \\ $HOME""#),
            "{text}"
        );
    }

    /// Lets the installed server read a configuration.
    fn accepted(text: &str) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("nats.conf");
        std::fs::write(&file, text).unwrap();
        let said = std::process::Command::new("nats-server")
            .arg("-t")
            .arg("-c")
            .arg(&file)
            .output()
            .unwrap();
        assert!(
            said.status.success(),
            "{}\n{text}",
            String::from_utf8_lossy(&said.stderr)
        );
    }

    fn installed() -> ServerVersion {
        let said = std::process::Command::new("nats-server")
            .arg("--version")
            .output()
            .unwrap();
        String::from_utf8(said.stdout).unwrap().parse().unwrap()
    }

    #[test]
    fn the_installed_server_accepts_both() {
        let dir = tempfile::tempdir().unwrap();
        let keys = crate::nats::keys::NatsKeys::generate();
        let identity = crate::nats::testing::identity(&keys, Default::default());
        let own = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
        std::fs::write(&cert, own.cert.pem()).unwrap();
        std::fs::write(&key, own.signing_key.serialize_pem()).unwrap();
        let version = installed();
        let embedded = EmbeddedConfig {
            identity: identity.clone(),
            version,
            resolver_dir: dir.path().join("accounts"),
            jetstream_disk: Some(1 << 30),
            ports_dir: Some(dir.path().to_owned()),
            log_file: Some(dir.path().join("log")),
            tls: Some(TlsFiles {
                cert: cert.clone(),
                key,
                client_ca: Some(cert),
            }),
            ..config("2.9.10", "0.0.0.0:0")
        };
        accepted(&embedded_config(&embedded).unwrap());
        let resolver = dir.path().join("external");
        for version in [None, Some(version)] {
            accepted(&external_config(&identity, &resolver, version).unwrap());
        }
    }
}
