//! The configuration of the bot: one TOML file.
//!
//! ```toml
//! state = "/var/lib/muster-bot"
//!
//! [broker]
//! url = "https://muster.example.org:7878"
//!
//! [networks.ops]
//! server = "irc.example.org"
//! nick = "muster"
//! channels = ["#ops", "#dev"]
//! token_file = "ops.token"
//! ```

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use muster_client::{ClientError, Endpoint, Secret};
use muster_protocol::names::NetworkName;
use muster_protocol::units::Span;
use serde::Deserialize;

use crate::irc::{NetworkFile, NetworkSettings, SettingsError};
use crate::queue::Pace;
use crate::render::Style;

/// Where the configuration is looked for when none is named.
pub const DEFAULT_PATH: &str = "/etc/muster/bot.toml";
/// Largest file that is read.
const MAX_FILE: u64 = 1 << 20;
/// Largest token that is read.
const MAX_TOKEN: u64 = 1 << 10;
/// Most networks of one bot.
const MOST_NETWORKS: usize = 32;

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {why}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// The cause.
        why: String,
    },
    /// The file is not what it should be.
    #[error("{}: {why}", path.display())]
    Syntax {
        /// Which.
        path: PathBuf,
        /// What and where.
        why: String,
    },
    /// A setting of a connection is wrong.
    #[error("{}: {why}", path.display())]
    Network {
        /// The configuration.
        path: PathBuf,
        /// What is wrong.
        why: Box<SettingsError>,
    },
    /// Any other setting is wrong.
    #[error("{}: {setting}: {why}", path.display())]
    Value {
        /// The configuration.
        path: PathBuf,
        /// Which setting.
        setting: String,
        /// What is wrong and what to do.
        why: String,
    },
    /// The broker cannot be spoken to in this way.
    #[error("{}: broker: {why}", path.display())]
    Broker {
        /// The configuration.
        path: PathBuf,
        /// What is wrong.
        why: Box<ClientError>,
    },
}

/// The file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    #[serde(default = "default_state")]
    state: PathBuf,
    broker: BrokerFile,
    networks: BTreeMap<NetworkName, NetworkFile>,
}

fn default_state() -> PathBuf {
    "/var/lib/muster-bot".into()
}

/// Where the broker is.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BrokerFile {
    url: Option<String>,
    #[serde(default)]
    urls: Vec<String>,
    ca_file: Option<PathBuf>,
}

/// The settings of a network that are not about its connection.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct VoiceFile {
    token_file: Option<PathBuf>,
    max_lines: usize,
    progress_every: Span,
    burst: u32,
    rate: f64,
    colours: bool,
    symbols: bool,
}

impl Default for VoiceFile {
    fn default() -> Self {
        Self {
            token_file: None,
            max_lines: 6,
            progress_every: Span::from_secs(5),
            burst: 4,
            rate: 1.0,
            colours: true,
            symbols: true,
        }
    }
}

/// Everything that can be configured, read and checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it is kept how far each network was told.
    pub state: PathBuf,
    /// The networks, at least one.
    pub networks: Vec<Network>,
}

/// One network.
#[derive(Clone, Debug)]
pub struct Network {
    /// The connection.
    pub irc: NetworkSettings,
    /// The broker, with the token of this network.
    pub endpoint: Endpoint,
    /// How fast it speaks.
    pub pace: Pace,
    /// How that looks.
    pub style: Style,
}

impl Config {
    /// Reads the file and the files that it names; their paths are relative to
    /// its own folder.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = read(path, MAX_FILE).map_err(|why| ConfigError::Read {
            path: path.to_owned(),
            why,
        })?;
        let syntax = |why: String| ConfigError::Syntax {
            path: path.to_owned(),
            why: why.trim_end().to_owned(),
        };
        let file: ConfigFile = toml::from_str(&text).map_err(|e| syntax(e.to_string()))?;
        let reader = Reader {
            path,
            dir: path.parent().unwrap_or(Path::new(".")),
        };
        let count = file.networks.len();
        if !(1..=MOST_NETWORKS).contains(&count) {
            let why = format!("there are {count}; a bot is in 1 to {MOST_NETWORKS}");
            return Err(reader.value("networks", why));
        }
        let endpoint = reader.endpoint(&file.broker)?;
        let networks = file.networks.into_iter();
        let networks = networks.map(|(name, network)| reader.network(name, network, &endpoint));
        Ok(Self {
            state: reader.dir.join(file.state),
            networks: networks.collect::<Result<_, _>>()?,
        })
    }
}

struct Reader<'a> {
    path: &'a Path,
    dir: &'a Path,
}

impl Reader<'_> {
    fn value(&self, setting: impl Into<String>, why: impl Into<String>) -> ConfigError {
        ConfigError::Value {
            path: self.path.to_owned(),
            setting: setting.into(),
            why: why.into(),
        }
    }

    fn endpoint(&self, file: &BrokerFile) -> Result<Endpoint, ConfigError> {
        let urls = match (&file.url, file.urls.as_slice()) {
            (Some(url), []) => url.clone(),
            (None, urls @ [_, ..]) => urls.join(","),
            (None, []) => {
                let why = "name the broker: url = \"https://muster.example.org:7878\"";
                return Err(self.value("broker.url", why));
            }
            (Some(_), _) => {
                return Err(self.value("broker.url", "`url` and `urls`: only one of them"));
            }
        };
        let broker = |why| ConfigError::Broker {
            path: self.path.to_owned(),
            why: Box::new(why),
        };
        let mut endpoint = Endpoint::new(&urls).map_err(broker)?;
        if let Some(ca) = &file.ca_file {
            endpoint = endpoint.ca_file(self.dir.join(ca));
        }
        if !endpoint.is_tls() && !endpoint.is_loopback() {
            let why = "http:// to another machine: everybody on the way could read the token. Write https://";
            return Err(self.value("broker.url", why));
        }
        Ok(endpoint)
    }

    fn network(
        &self,
        name: NetworkName,
        file: NetworkFile,
        endpoint: &Endpoint,
    ) -> Result<Network, ConfigError> {
        let setting = |key: &str| format!("networks.{name}.{key}");
        let voice: VoiceFile = file.rest.clone().try_into().map_err(|e: toml::de::Error| {
            let why = e.message().to_owned();
            self.value(format!("networks.{name}"), why)
        })?;
        let within = |key: &str, good: bool, why: &str| {
            if good {
                Ok(())
            } else {
                Err(self.value(setting(key), why))
            }
        };
        within(
            "max_lines",
            (2..=50).contains(&voice.max_lines),
            "2 to 50 lines are said at once",
        )?;
        within(
            "burst",
            (1..=1_000).contains(&voice.burst),
            "1 to 1,000 lines are said without a pause",
        )?;
        within(
            "rate",
            (0.05..=1_000.0).contains(&voice.rate),
            "0.05 to 1,000 lines are said in a second",
        )?;
        within(
            "progress_every",
            voice.progress_every.get() <= Duration::from_secs(3_600),
            "progress is told at least once an hour",
        )?;
        let token_file = voice.token_file.ok_or_else(|| {
            let why = format!(
                "name the file with this network's token; `muster token create irc:{name} --role witness` makes one"
            );
            self.value(setting("token_file"), why)
        })?;
        let token = self
            .token(&token_file)
            .map_err(|why| self.value(setting("token_file"), why))?;
        let irc = file.read(name.clone(), self.dir);
        let irc = irc.map_err(|why| ConfigError::Network {
            path: self.path.to_owned(),
            why: Box::new(why),
        })?;
        Ok(Network {
            endpoint: endpoint.clone().token(token),
            pace: Pace {
                burst: voice.burst,
                every: Duration::from_secs_f64(1.0 / voice.rate),
                progress: voice.progress_every.get(),
            },
            style: Style {
                colours: voice.colours,
                symbols: voice.symbols,
                max_lines: voice.max_lines,
                prefix: irc.prefix.clone(),
            },
            irc,
        })
    }

    /// A token, from a file that nobody else can read.
    fn token(&self, file: &Path) -> Result<Secret, String> {
        let path = self.dir.join(file);
        let fail = |why: String| format!("{}: {why}", path.display());
        let about = std::fs::metadata(&path).map_err(|e| fail(e.to_string()))?;
        if about.permissions().mode() & 0o007 != 0 {
            let why = "everybody can read or write it: chmod o-rwx it".to_owned();
            return Err(fail(why));
        }
        let text = read(&path, MAX_TOKEN).map_err(fail)?;
        let text = text.trim();
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(fail("it does not hold a token".to_owned()));
        }
        Ok(Secret::new(text))
    }
}

fn read(path: &Path, most: u64) -> Result<String, String> {
    let file = std::fs::File::open(path).map_err(|e| e.to_string())?;
    let mut text = String::new();
    let read = file.take(most + 1).read_to_string(&mut text);
    read.map_err(|e| e.to_string())?;
    if text.len() as u64 > most {
        return Err(format!("it has more than {most} bytes"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r##"
[broker]
url = "http://127.0.0.1:7878"

[networks.ops]
server = "127.0.0.1:6667"
tls = false
nick = "muster"
channels = ["#ops"]
token_file = "ops.token"
"##;

    fn load(text: &str, mode: u32) -> Result<Config, String> {
        let dir = tempfile::tempdir().expect("a directory");
        let token = dir.path().join("ops.token");
        std::fs::write(&token, "mt1_hidden\n").expect("written");
        std::fs::set_permissions(&token, std::fs::Permissions::from_mode(mode)).expect("mode");
        let path = dir.path().join("bot.toml");
        std::fs::write(&path, text).expect("written");
        Config::load(&path)
            .map_err(|e| e.to_string().replace(&*dir.path().to_string_lossy(), "DIR"))
    }

    #[test]
    fn what_is_not_said_has_a_default() {
        let config = load(GOOD, 0o600).expect("good");
        assert_eq!(config.state, Path::new("/var/lib/muster-bot"));
        let ops = &config.networks[0];
        assert_eq!(
            (ops.pace.burst, ops.pace.every),
            (4, Duration::from_secs(1))
        );
        assert_eq!(ops.pace.progress, Duration::from_secs(5));
        assert!(ops.style.colours && ops.style.symbols);
        assert_eq!((ops.style.max_lines, ops.style.prefix.as_str()), (6, "!"));
        assert!(!format!("{config:?}").contains("hidden"));
    }

    #[test]
    fn every_setting_is_known() {
        let text = GOOD.replace("token_file", "max_lines = 3\nprogress_every = \"1s\"\nburst = 9\nrate = 0.5\ncolours = false\nsymbols = false\nprefix = \",\"\ntoken_file");
        let text = format!("state = \"state\"\n{text}");
        let config = load(&text, 0o640).expect("good");
        assert!(config.state.ends_with("state") && config.state.is_absolute());
        let ops = &config.networks[0];
        assert_eq!(
            (ops.pace.burst, ops.pace.every),
            (9, Duration::from_secs(2))
        );
        assert!(!ops.style.colours && !ops.style.symbols);
        assert_eq!((ops.style.max_lines, ops.style.prefix.as_str()), (3, ","));
    }

    /// What the example says is there is there.
    #[test]
    fn the_example_is_understood() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/muster-bot.toml");
        let text = std::fs::read_to_string(path).expect("the example");
        toml::from_str::<ConfigFile>(&text).expect("good as it is");
        let all: Vec<&str> = text
            .lines()
            .filter(|line| !line.contains("\"external\""))
            .map(|line| match line.strip_prefix('#') {
                Some(setting) if !setting.starts_with(' ') => setting,
                _ => line,
            })
            .collect();
        let file: ConfigFile = toml::from_str(&all.join("\n")).expect("good with everything");
        let ops = file.networks.values().next().expect("a network");
        let voice: VoiceFile = ops.rest.clone().try_into().expect("known settings");
        assert!(ops.sasl.is_some() && voice.token_file.is_some());
        // What is said to be the default is it.
        let default = VoiceFile::default();
        assert_eq!(file.state, default_state());
        assert_eq!(
            (voice.max_lines, voice.progress_every, voice.burst),
            (default.max_lines, default.progress_every, default.burst)
        );
        assert_eq!(
            (voice.rate, voice.colours, voice.symbols),
            (default.rate, default.colours, default.symbols)
        );
    }

    #[test]
    fn mistakes_say_where_they_are() {
        let cases: [(&str, &str, u32); 11] = [
            ("nick = ", "nik = ", 0o600),
            ("token_file", "max_lines = 0\ntoken_file", 0o600),
            ("token_file", "rate = 0\ntoken_file", 0o600),
            ("token_file", "rate = nan\ntoken_file", 0o600),
            ("token_file", "burst = 0\ntoken_file", 0o600),
            ("token_file", "colors = true\ntoken_file", 0o600),
            ("token_file = \"ops.token\"", "", 0o600),
            ("token_file", "token_file", 0o644),
            ("http://127.0.0.1", "http://192.0.2.1", 0o600),
            ("url = ", "ulr = ", 0o600),
            ("networks.ops", "networks.OPS", 0o600),
        ];
        let said: Vec<String> = cases
            .iter()
            .map(|(from, to, mode)| load(&GOOD.replacen(from, to, 1), *mode).expect_err(to))
            .collect();
        insta::assert_snapshot!(said.join("\n---\n"));
    }
}
