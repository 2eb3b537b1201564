//! The broker's configuration file.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use muster_protocol::units::{Size, Span};
use serde::{Deserialize, Serialize};

use crate::audit::AuditConfig;
use crate::retention::Limits;

mod vm;
mod web;

pub use self::vm::VmConfig;
pub use self::web::{LimitsConfig, MetricsDoor, TlsConfig};

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Not readable.
    #[error("cannot read the configuration {}: {error}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// Not TOML, or not this.
    #[error("the configuration {} is wrong:\n{error}", .path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        error: Box<toml::de::Error>,
    },
    /// A value that cannot be.
    #[error("the configuration is wrong: `{field}` {why}")]
    Value {
        /// The setting.
        field: &'static str,
        /// What is wrong, and what to do.
        why: String,
    },
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

/// Who signs the certificate of the NATS servers.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(from = "String", into = "String")]
pub enum NatsCa {
    /// This cluster's own authority.
    #[default]
    Own,
    /// An authority that the machine trusts; agents use theirs, too.
    System,
    /// The authorities in this PEM file; agents are given them.
    File(PathBuf),
}

impl From<String> for NatsCa {
    fn from(text: String) -> Self {
        match text.as_str() {
            "own" => Self::Own,
            "system" => Self::System,
            _ => Self::File(text.into()),
        }
    }
}

impl From<NatsCa> for String {
    fn from(ca: NatsCa) -> Self {
        match ca {
            NatsCa::Own => "own".into(),
            NatsCa::System => "system".into(),
            NatsCa::File(path) => path.display().to_string(),
        }
    }
}

/// Everything that can be set. Every setting has a default, and a file with
/// an unknown one is refused.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The state directory.
    pub state: PathBuf,
    /// Where the HTTP API listens. Beyond loopback it speaks HTTPS with a
    /// certificate of the cluster's own authority.
    pub listen: SocketAddr,
    /// Names and addresses that the certificates are for, besides this
    /// machine's own.
    pub names: Vec<String>,
    /// Where people and agents reach this broker, as in
    /// `https://muster.example.org:7878`; found out when empty.
    pub url: String,
    /// A run on more nodes asks for a confirmation.
    pub confirm_above: u32,
    /// How long a plan, or a run that is to be confirmed later, waits for its
    /// confirmation.
    pub confirm_within: Span,
    /// How long a node's NATS credentials live; renewed at half of it.
    pub credentials_life: Span,
    /// How many unauthenticated requests (enrolments, credentials) one
    /// address may make in a second, on the average.
    pub open_requests_per_second: u32,
    /// The file with webhooks, triggers and routes; none when it is not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hooks_file: Option<PathBuf>,
    /// The directory with the bytes of disk images that were uploaded;
    /// `images` in the state directory when it is not said. Several brokers
    /// may share one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub images: Option<PathBuf>,
    /// How log lines look.
    pub log_format: LogFormat,
    /// Who may read `/metrics`.
    pub metrics: MetricsDoor,
    /// A certificate of the operator's own.
    pub tls: TlsConfig,
    /// How much the API takes at a time.
    pub limits: LimitsConfig,
    /// NATS.
    pub nats: NatsConfig,
    /// What is kept, and for how long.
    pub retention: RetentionConfig,
    /// The broker's own copy of what NATS holds.
    pub twin: TwinConfig,
    /// The record of who asked for what.
    pub audit: AuditConfig,
    /// How much of hypervisors is given to machines.
    pub vm: VmConfig,
}

/// What is kept, and for how long. Runs that have not ended are kept whatever
/// is said here.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionConfig {
    /// Age at which an ended run goes, with everything.
    pub runs: Span,
    /// Age at which its output goes; never later than the run.
    pub output: Span,
    /// Room for runs and output together. Above 90% of it the oldest output
    /// goes before its age, then the oldest runs, until 75% are used.
    pub bytes: Size,
    /// Age at which events of the cluster go.
    pub events: Span,
}

impl Default for RetentionConfig {
    fn default() -> Self {
        Self {
            runs: Span::from_secs(90 * 86_400),
            output: Span::from_secs(14 * 86_400),
            bytes: Size::new(4 << 30),
            events: Span::from_secs(400 * 86_400),
        }
    }
}

impl RetentionConfig {
    /// As retention takes them.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits {
            runs: self.runs.get(),
            output: self.output.get().min(self.runs.get()),
            bytes: self.bytes.get(),
        }
    }
}

/// How much of what NATS holds the broker has a copy of, in case NATS loses
/// it. Nodes, tokens and invites are always in it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct TwinConfig {
    /// How long journals of runs and events are kept in it.
    pub keep: Span,
    /// Most bytes of them; the oldest go first.
    pub max_bytes: u64,
}

impl Default for TwinConfig {
    fn default() -> Self {
        Self {
            keep: Span::from_secs(7 * 86_400),
            max_bytes: 512 << 20,
        }
    }
}

/// Where NATS is.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct NatsConfig {
    /// Where the broker finds it: `nats://` or `tls://`.
    pub urls: Vec<String>,
    /// Where agents find it; the same when empty.
    pub agent_urls: Vec<String>,
    /// Who signs the servers' certificate.
    pub ca: NatsCa,
}

impl Default for NatsConfig {
    fn default() -> Self {
        Self {
            urls: vec!["nats://127.0.0.1:4222".into()],
            agent_urls: Vec::new(),
            ca: NatsCa::Own,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state: "/var/lib/muster".into(),
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7878),
            names: Vec::new(),
            url: String::new(),
            confirm_above: 20,
            confirm_within: Span::from_secs(300),
            credentials_life: Span::from_secs(7 * 86_400),
            open_requests_per_second: 100,
            hooks_file: None,
            images: None,
            log_format: LogFormat::Human,
            metrics: MetricsDoor::default(),
            tls: TlsConfig::default(),
            limits: LimitsConfig::default(),
            nats: NatsConfig::default(),
            retention: RetentionConfig::default(),
            twin: TwinConfig::default(),
            audit: AuditConfig::default(),
            vm: VmConfig::default(),
        }
    }
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError::Read {
            path: path.to_owned(),
            error,
        })?;
        Self::parse(&text, path)
    }

    /// Checks the text of a file; `path` is for the error.
    ///
    /// # Errors
    /// [`ConfigError::Parse`], [`ConfigError::Value`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let wrong = |error: toml::de::Error| ConfigError::Parse {
            path: path.to_owned(),
            error: error.into(),
        };
        let config: Self = match renamed(text) {
            Some(table) => table.try_into().map_err(wrong)?,
            None => toml::from_str(text).map_err(wrong)?,
        };
        config.check()?;
        Ok(config)
    }

    /// The text of a file with these settings.
    ///
    /// # Errors
    /// [`ConfigError::Value`] for a path that is not UTF-8.
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        toml::to_string(self).map_err(|e| ConfigError::Value {
            field: "state",
            why: e.to_string(),
        })
    }

    /// The directory with the bytes of disk images.
    #[must_use]
    pub fn images(&self) -> PathBuf {
        let own = || self.state.join("images");
        self.images.clone().unwrap_or_else(own)
    }

    /// Where agents find NATS.
    #[must_use]
    pub fn agent_urls(&self) -> &[String] {
        if self.nats.agent_urls.is_empty() {
            &self.nats.urls
        } else {
            &self.nats.agent_urls
        }
    }

    /// Whether NATS is reached with TLS.
    #[must_use]
    pub fn nats_tls(&self) -> bool {
        self.nats
            .urls
            .iter()
            .chain(&self.nats.agent_urls)
            .any(|url| url.starts_with("tls://"))
    }

    /// Whether NATS is on this machine.
    #[must_use]
    pub fn nats_is_here(&self) -> bool {
        self.nats.urls.iter().all(|url| {
            let host = url.split_once("://").map_or("", |(_, rest)| rest);
            let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
            let address = host.trim_start_matches('[').trim_end_matches(']');
            host == "localhost"
                || address
                    .parse::<IpAddr>()
                    .is_ok_and(|address| address.is_loopback())
        })
    }

    /// Where people and agents reach this broker, which listens on `address`:
    /// as it is set, else the address, the first of `names`, or the name of
    /// this machine.
    #[must_use]
    pub fn public_url(&self, address: SocketAddr) -> String {
        if !self.url.is_empty() {
            return self.url.trim_end_matches('/').to_owned();
        }
        let ip = address.ip();
        if ip.is_loopback() && self.tls.files().is_none() {
            return format!("http://{address}");
        }
        let name = self.names.iter().find(|name| !name.contains('*'));
        let host = match name {
            Some(name) if name.parse::<Ipv6Addr>().is_ok() => format!("[{name}]"),
            Some(name) => name.clone(),
            None if !ip.is_unspecified() => return format!("https://{address}"),
            None => host_name(),
        };
        format!("https://{host}:{}", address.port())
    }

    fn check(&self) -> Result<(), ConfigError> {
        let wrong = |field, why: &str| {
            Err(ConfigError::Value {
                field,
                why: why.to_owned(),
            })
        };
        if self.nats.urls.is_empty() {
            return wrong(
                "nats.urls",
                "is empty; name at least one server, like nats://127.0.0.1:4222",
            );
        }
        for url in self.nats.urls.iter().chain(&self.nats.agent_urls) {
            check_url(url)?;
        }
        for name in &self.names {
            let dns = name.len() <= 253
                && !name.is_empty()
                && name
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-.*".contains(&b));
            if !dns && name.parse::<IpAddr>().is_err() {
                let name = muster_protocol::text::printable(name, 60);
                return wrong(
                    "names",
                    &format!("holds `{name}`, which is neither a host name nor an address"),
                );
            }
        }
        if !self.url.is_empty() {
            check_public(&self.url)?;
        }
        let within = self.confirm_within.get().as_secs();
        if !(1..=86_400).contains(&within) {
            return wrong("confirm_within", "must be between a second and a day");
        }
        let life = self.credentials_life.get().as_secs();
        if !(60..=90 * 86_400).contains(&life) {
            return wrong("credentials_life", "must be between a minute and 90 days");
        }
        self.retention.check()?;
        self.tls.check()?;
        self.limits.check()?;
        self.vm.check()?;
        self.audit
            .check()
            .map_err(|(field, why)| ConfigError::Value { field, why })?;
        if self.open_requests_per_second == 0 {
            return wrong("open_requests_per_second", "must be at least 1");
        }
        Ok(())
    }
}

/// The least room for runs that makes sense.
const LEAST_BYTES: Size = Size::new(8 << 20);

impl RetentionConfig {
    fn check(&self) -> Result<(), ConfigError> {
        let wrong = |field, why: String| Err(ConfigError::Value { field, why });
        let hour = Span::from_secs(3_600);
        for (field, span) in [
            ("retention.runs", self.runs),
            ("retention.output", self.output),
            ("retention.events", self.events),
        ] {
            if span < hour {
                return wrong(field, "must be at least an hour".into());
            }
        }
        if self.bytes < LEAST_BYTES {
            return wrong("retention.bytes", format!("must be at least {LEAST_BYTES}"));
        }
        Ok(())
    }
}

/// What was once called `keep_runs` is `retention.runs`: a file with the old
/// name still works. `None` for a file without it.
fn renamed(text: &str) -> Option<toml::Table> {
    let mut table: toml::Table = toml::from_str(text).ok()?;
    let keep = table.remove("keep_runs")?;
    let retention = table
        .entry("retention")
        .or_insert_with(|| toml::Table::new().into());
    if let Some(retention) = retention.as_table_mut() {
        retention.entry("runs").or_insert(keep);
    }
    Some(table)
}

/// The name of this machine.
fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

fn check_public(url: &str) -> Result<(), ConfigError> {
    let rest = url
        .strip_prefix("https://")
        .or_else(|| url.strip_prefix("http://"));
    let host = rest.and_then(|rest| rest.split('/').next());
    let plain = url
        .bytes()
        .all(|b| b.is_ascii_graphic() && !b"\"<>\\^`{|}?#,@".contains(&b));
    if host.is_some_and(|host| !host.is_empty()) && plain && url.len() <= 300 {
        return Ok(());
    }
    let shown = muster_protocol::text::printable(url, 80);
    Err(ConfigError::Value {
        field: "url",
        why: format!(
            "is `{shown}`, which is not where a broker is; write it like https://muster.example.org:7878"
        ),
    })
}

fn check_url(url: &str) -> Result<(), ConfigError> {
    let shown = muster_protocol::text::printable(url, 80);
    let wrong = |why: String| {
        Err(ConfigError::Value {
            field: "nats.urls",
            why,
        })
    };
    let Some((scheme, rest)) = url.split_once("://") else {
        return wrong(format!(
            "holds `{shown}`, which is no URL; write it like nats://HOST:4222"
        ));
    };
    if rest.contains('@') {
        return wrong("holds a URL with a password; muster makes its own credentials".into());
    }
    if !matches!(scheme, "nats" | "tls") || rest.is_empty() || rest.contains(['/', '?', '#', ' ']) {
        return wrong(format!(
            "holds `{shown}`; write it like nats://HOST:4222 or tls://HOST:4222"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("broker.toml")).map_err(|e| e.to_string())
    }

    #[test]
    fn the_example_is_the_default() {
        let example = include_str!("../../packaging/muster-broker.toml");
        assert_eq!(parse(example).unwrap(), Config::default());
        // Every setting is in it.
        let example: toml::Table = toml::from_str(example).unwrap();
        let all = toml::Table::try_from(Config::default()).unwrap();
        assert_eq!(example.keys().collect::<Vec<_>>().len(), all.len());
        for (key, value) in all {
            if let Some(table) = value.as_table() {
                for inner in table.keys() {
                    assert!(example[&key].get(inner).is_some(), "{key}.{inner}");
                }
            }
            assert!(example.contains_key(&key), "{key}");
        }
    }

    #[test]
    fn what_is_written_comes_back() {
        let config = Config {
            names: vec!["muster.example".into()],
            nats: NatsConfig {
                ca: NatsCa::File("/etc/ca.pem".into()),
                ..NatsConfig::default()
            },
            ..Config::default()
        };
        assert_eq!(parse(&config.to_toml().unwrap()).unwrap(), config);
        assert_eq!(parse("").unwrap(), Config::default());
    }

    #[test]
    fn mistakes_are_said_with_their_place() {
        let said = parse("confirm_abvoe = 3").unwrap_err();
        assert!(
            said.contains("broker.toml")
                && said.contains("confirm_abvoe")
                && said.contains("confirm_above"),
            "{said}"
        );
        for (text, word) in [
            ("nats.urls = []", "nats.urls"),
            ("nats.urls = ['http://x']", "nats://HOST"),
            ("nats.urls = ['nats://a:b@x']", "password"),
            ("nats.urls = ['x']", "no URL"),
            ("names = ['a b']", "names"),
            ("confirm_within = '2d'", "confirm_within"),
            ("credentials_life = '1s'", "credentials_life"),
            ("credentials_life = '5'", "duration"),
            ("keep_runs = '0s'", "retention.runs"),
            ("retention.output = '59m'", "retention.output"),
            ("retention.events = '1s'", "retention.events"),
            ("retention.bytes = '1MiB'", "retention.bytes"),
            ("retention.bytes = '1MB'", "is not a size"),
            ("retention.age = '1d'", "unknown field"),
            ("listen = 'everywhere'", "listen"),
            ("open_requests_per_second = 0", "open_requests"),
            ("log_format = 'xml'", "log_format"),
            ("metrics = 'all'", "loopback"),
            ("tls.cert = 'x.pem'", "tls.key"),
            ("tls.key = 'x.pem'", "tls.cert"),
            ("tls.ca = 'x.pem'", "tls.ca"),
            ("limits.watchers = 0", "limits.watchers"),
            ("limits.requests = 1", "unknown field"),
        ] {
            let said = parse(text).unwrap_err();
            assert!(said.contains(word), "{text}: {said}");
        }
    }

    #[test]
    fn the_old_name_of_a_setting_still_works() {
        let config = parse("keep_runs = '7d'").unwrap();
        let limits = config.retention.limits();
        assert_eq!(limits.runs, Span::from_secs(7 * 86_400).get());
        // Output never outlives its run.
        assert_eq!(limits.output, limits.runs);
        let both = parse("keep_runs = '7d'\nretention.runs = '30d'").unwrap();
        assert_eq!(both.retention.runs, Span::from_secs(30 * 86_400));
        let sized = parse("retention.bytes = 10485760").unwrap();
        assert_eq!(sized, parse("[retention]\nbytes = '10MiB'").unwrap());
    }

    #[test]
    fn a_mistake_is_said_once() {
        let error = Config::parse("nonsense = 1", Path::new("broker.toml")).expect_err("refused");
        assert!(error.to_string().contains("nonsense"), "{error}");
        // What the message holds already is no cause to be shown below it.
        assert!(std::error::Error::source(&error).is_none());
    }
}
