//! The file as the operators write it, and how it becomes settings.

use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use muster_protocol::api::Secret;
use muster_protocol::chat::ChannelName;
use muster_protocol::names::NetworkName;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde::Deserialize;

use super::{
    ChannelSettings, Identity, NetworkSettings, Pin, Sasl, SettingsError, Timing, TlsSettings,
};

/// Longest file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;
/// Most channels of a network.
const MAX_CHANNELS: usize = 200;

/// A network as the file describes it. What is not about the connection is in
/// [`NetworkFile::rest`]: whoever reads that must refuse what it does not know.
#[derive(Clone, Debug, Deserialize)]
pub struct NetworkFile {
    /// `host:port`; without a port 6697, or 6667 without TLS.
    pub server: String,
    /// The name that is wanted.
    pub nick: String,
    /// Names that are tried in turn while that one is taken.
    #[serde(default)]
    pub alt_nicks: Vec<String>,
    /// The part before the `@` of the own mask. Else `muster`.
    pub username: Option<String>,
    /// Shown to people who look the bot up.
    pub realname: Option<String>,
    /// Where it goes: `"#ops"` or `{ name = "#ops", key_file = "ops.key" }`.
    #[serde(default)]
    pub channels: Vec<ChannelFile>,
    /// Whether the connection is encrypted. Else true.
    pub tls: Option<bool>,
    /// The authorities that sign the server's certificate (PEM). Else those of
    /// this machine.
    pub tls_ca_file: Option<PathBuf>,
    /// `sha256:` and 64 hexadecimal digits: the server's certificate is this
    /// one. Without `tls_ca_file` that is all that is asked of it.
    pub tls_fingerprint: Option<String>,
    /// The name in the server's certificate. Else the host of `server`.
    pub server_name: Option<String>,
    /// The bot's own certificate (PEM), for SASL EXTERNAL.
    pub client_cert_file: Option<PathBuf>,
    /// Its key (PEM).
    pub client_key_file: Option<PathBuf>,
    /// How the bot logs in to services.
    pub sasl: Option<SaslFile>,
    /// A file with the password of the server itself.
    pub server_password_file: Option<PathBuf>,
    /// What a command begins with. Else `!`.
    pub prefix: Option<String>,
    /// All other settings of the network.
    #[serde(flatten)]
    pub rest: toml::Table,
}

/// A channel as the file describes it.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum ChannelFile {
    /// Its name alone.
    Name(String),
    /// With a key.
    Keyed(KeyedChannel),
}

/// A channel that only those get into who know its key.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyedChannel {
    /// Its name.
    pub name: String,
    /// A file with its key.
    pub key_file: Option<PathBuf>,
}

/// How the bot logs in to services, as the file describes it.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "mechanism", rename_all = "lowercase", deny_unknown_fields)]
pub enum SaslFile {
    /// By a password.
    Plain {
        /// The account.
        account: String,
        /// A file with its password.
        password_file: PathBuf,
    },
    /// By the own certificate.
    External {
        /// The account; else the one that the certificate belongs to.
        account: Option<String>,
    },
}

impl NetworkFile {
    /// Reads the files that it names, beside `dir` where their paths are
    /// relative, and checks everything.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn read(&self, name: NetworkName, dir: &Path) -> Result<NetworkSettings, SettingsError> {
        let reader = Reader { name, dir };
        let tls = self.tls.unwrap_or(true);
        let (host, port) = reader.server(&self.server, if tls { 6697 } else { 6667 })?;
        let tls = self.tls(&reader, tls, &host)?;
        let sasl = self.sasl(&reader, tls.as_ref(), &host)?;
        reader.nick("nick", &self.nick)?;
        for nick in &self.alt_nicks {
            reader.nick("alt_nicks", nick)?;
        }
        let username = self.username.as_deref().unwrap_or("muster");
        if !(1..=32).contains(&username.len())
            || !username
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        {
            let why = "it has 1 to 32 letters, digits, `-`, `_` and `.`";
            return Err(reader.value("username", username, why));
        }
        let realname = self
            .realname
            .as_deref()
            .unwrap_or("muster, the operators' bot");
        if !(1..=200).contains(&realname.len()) || realname.chars().any(char::is_control) {
            let why = "it has 1 to 200 bytes and no control character";
            return Err(reader.value("realname", realname, why));
        }
        let prefix = self.prefix.as_deref().unwrap_or("!");
        if !(1..=4).contains(&prefix.len())
            || prefix
                .chars()
                .any(|c| c.is_control() || c.is_whitespace() || c.is_alphanumeric())
        {
            let why = "it has 1 to 4 bytes, and no letter, digit or space";
            return Err(reader.value("prefix", prefix, why));
        }
        if self.channels.len() > MAX_CHANNELS {
            let count = self.channels.len().to_string();
            return Err(reader.value("channels", &count, "a network has at most 200"));
        }
        let mut channels = Vec::<ChannelSettings>::new();
        for channel in &self.channels {
            let (name, key_file) = match channel {
                ChannelFile::Name(name) => (name, None),
                ChannelFile::Keyed(channel) => (&channel.name, channel.key_file.as_ref()),
            };
            let name = name
                .parse::<ChannelName>()
                .map_err(|source| SettingsError::Channel {
                    network: reader.name.clone(),
                    source,
                })?;
            if channels.iter().any(|c| c.name == name) {
                return Err(reader.value("channels", name.as_str(), "it is there twice"));
            }
            let key = key_file
                .map(|path| reader.secret("key_file", path))
                .transpose()?;
            if let (Some(key), Some(path)) = (&key, key_file)
                && key.expose().contains([' ', ',', ':'])
            {
                let why = "a key has no space, comma or colon".to_owned();
                return Err(reader.file("key_file", path, why));
            }
            channels.push(ChannelSettings { name, key });
        }
        let server_password = self
            .server_password_file
            .as_ref()
            .map(|path| reader.secret("server_password_file", path))
            .transpose()?;
        Ok(NetworkSettings {
            host,
            port,
            tls,
            nick: self.nick.clone(),
            alt_nicks: self.alt_nicks.clone(),
            username: username.to_owned(),
            realname: realname.to_owned(),
            channels,
            sasl,
            server_password,
            prefix: prefix.to_owned(),
            timing: Timing::default(),
            name: reader.name,
        })
    }

    fn tls(
        &self,
        reader: &Reader<'_>,
        on: bool,
        host: &str,
    ) -> Result<Option<TlsSettings>, SettingsError> {
        let files = (&self.client_cert_file, &self.client_key_file);
        if !on {
            let any = self.tls_ca_file.is_some()
                || self.tls_fingerprint.is_some()
                || self.server_name.is_some()
                || files != (&None, &None);
            return if any {
                Err(reader.together(
                    "tls = false, and settings of TLS beside it: leave out the one or the others",
                ))
            } else {
                Ok(None)
            };
        }
        let server_name = self.server_name.as_deref().unwrap_or(host);
        let parsed = ServerName::try_from(server_name.to_owned()).map_err(|_| {
            let why = "it is a host name or an address";
            reader.value("server_name", server_name, why)
        })?;
        let roots = self.tls_ca_file.as_ref().map(|path| reader.roots(path));
        let pin = self.tls_fingerprint.as_deref().map(|text| {
            let pin = text.parse::<Pin>();
            pin.map_err(|why| reader.value("tls_fingerprint", text, why))
        });
        let identity = match files {
            (Some(cert), Some(key)) => Some(reader.identity(cert, key)?),
            (None, None) => None,
            _ => {
                return Err(reader
                    .together("client_cert_file and client_key_file belong together: give both"));
            }
        };
        Ok(Some(TlsSettings {
            server_name: parsed,
            roots: roots.transpose()?,
            pin: pin.transpose()?,
            identity,
        }))
    }

    fn sasl(
        &self,
        reader: &Reader<'_>,
        tls: Option<&TlsSettings>,
        host: &str,
    ) -> Result<Option<Sasl>, SettingsError> {
        let account = |account: &str| {
            let bad = account.is_empty()
                || account.len() > 200
                || account.chars().any(|c| c.is_control() || c.is_whitespace());
            let why = "an account has 1 to 200 bytes and no space";
            if bad {
                Err(reader.value("account", account, why))
            } else {
                Ok(account.to_owned())
            }
        };
        let sasl = match &self.sasl {
            None => return Ok(None),
            Some(SaslFile::Plain {
                account: name,
                password_file,
            }) => Sasl::Plain {
                account: account(name)?,
                password: reader.secret("password_file", password_file)?,
            },
            Some(SaslFile::External { account: name }) => Sasl::External {
                account: name.as_deref().map(account).transpose()?,
            },
        };
        match (&sasl, tls) {
            (Sasl::Plain { .. }, None) if !loopback(host) => Err(reader.together(
                "sasl with a password needs TLS: everybody on the way could read it. Leave out \
                 `tls = false`",
            )),
            (Sasl::External { .. }, None | Some(TlsSettings { identity: None, .. })) => Err(reader
                .together("sasl by certificate needs TLS, client_cert_file and client_key_file")),
            _ => Ok(Some(sasl)),
        }
    }
}

/// Whether nobody else can listen on the way to that host.
fn loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// Reads and refuses, for one network.
struct Reader<'a> {
    name: NetworkName,
    dir: &'a Path,
}

impl Reader<'_> {
    fn value(&self, setting: &'static str, value: &str, why: &'static str) -> SettingsError {
        SettingsError::Value {
            network: self.name.clone(),
            setting,
            value: muster_protocol::text::printable(value, 100),
            why,
        }
    }

    fn file(&self, setting: &'static str, path: &Path, why: String) -> SettingsError {
        SettingsError::File {
            network: self.name.clone(),
            setting,
            path: self.dir.join(path),
            why,
        }
    }

    fn together(&self, why: &'static str) -> SettingsError {
        SettingsError::Together {
            network: self.name.clone(),
            why,
        }
    }

    fn server(&self, text: &str, port: u16) -> Result<(String, u16), SettingsError> {
        let why = "it is a host, or `host:port`; an IPv6 address is in brackets";
        let wrong = || self.value("server", text, why);
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (host, rest) = rest.split_once(']').ok_or_else(wrong)?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| wrong())?;
            (
                host,
                rest.strip_prefix(':')
                    .map_or(port.to_string(), str::to_owned),
            )
        } else {
            match text.split_once(':') {
                Some((host, port)) => (host, port.to_owned()),
                None => (text, port.to_string()),
            }
        };
        let port = port
            .parse::<u16>()
            .ok()
            .filter(|p| *p > 0)
            .ok_or_else(wrong)?;
        if host.is_empty()
            || host.contains(|c: char| c.is_control() || c.is_whitespace() || c == '/')
        {
            return Err(wrong());
        }
        Ok((host.to_owned(), port))
    }

    fn nick(&self, setting: &'static str, nick: &str) -> Result<(), SettingsError> {
        let good = (1..=30).contains(&nick.len())
            && !nick.starts_with(|c: char| c.is_ascii_digit() || c == '-')
            && nick
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_[]\\`^{|}".contains(&b))
            // Servers put the name where these words mean something else.
            && nick.parse::<irc::proto::CapSubCommand>().is_err();
        if good {
            Ok(())
        } else {
            let why = "a name has 1 to 30 letters, digits and `-_[]\\`^{|}`, does not begin with \
                       a digit, and is no word of the protocol";
            Err(self.value(setting, nick, why))
        }
    }

    fn bytes(&self, setting: &'static str, path: &Path) -> Result<Vec<u8>, SettingsError> {
        let fail = |why| self.file(setting, path, why);
        let file = std::fs::File::open(self.dir.join(path)).map_err(|e| fail(e.to_string()))?;
        let mut bytes = Vec::new();
        file.take(MAX_FILE + 1)
            .read_to_end(&mut bytes)
            .map_err(|e| fail(e.to_string()))?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(fail("it is longer than 1 MiB".into()));
        }
        Ok(bytes)
    }

    /// Nobody but its owner and group may read what is in it.
    fn private(&self, setting: &'static str, path: &Path) -> Result<(), SettingsError> {
        let about = std::fs::metadata(self.dir.join(path))
            .map_err(|e| self.file(setting, path, e.to_string()))?;
        if about.permissions().mode() & 0o007 == 0 {
            return Ok(());
        }
        let why = "everybody can read or write it: chmod o-rwx it";
        Err(self.file(setting, path, why.to_owned()))
    }

    fn secret(&self, setting: &'static str, path: &Path) -> Result<Secret, SettingsError> {
        let fail = |why: &str| self.file(setting, path, why.to_owned());
        self.private(setting, path)?;
        let text = String::from_utf8(self.bytes(setting, path)?);
        let text = text.map_err(|_| fail("it is not UTF-8"))?;
        let text = text.trim_end_matches(['\r', '\n']);
        if text.is_empty() {
            return Err(fail("it is empty"));
        }
        if text.len() > 1024 || text.contains(['\r', '\n', '\0']) {
            return Err(fail("it is one line of at most 1,024 bytes"));
        }
        Ok(Secret::new(text))
    }

    fn roots(&self, path: &Path) -> Result<RootCertStore, SettingsError> {
        const SETTING: &str = "tls_ca_file";
        let mut roots = RootCertStore::empty();
        for cert in CertificateDer::pem_slice_iter(&self.bytes(SETTING, path)?) {
            let cert = cert.map_err(|e| self.file(SETTING, path, e.to_string()))?;
            let added = roots.add(cert);
            added.map_err(|e| self.file(SETTING, path, e.to_string()))?;
        }
        if roots.is_empty() {
            return Err(self.file(SETTING, path, "it holds no certificate".into()));
        }
        Ok(roots)
    }

    fn identity(&self, cert: &Path, key: &Path) -> Result<Identity, SettingsError> {
        const CERT: &str = "client_cert_file";
        const KEY: &str = "client_key_file";
        self.private(KEY, key)?;
        let chain = CertificateDer::pem_slice_iter(&self.bytes(CERT, cert)?)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| self.file(CERT, cert, e.to_string()))?;
        if chain.is_empty() {
            return Err(self.file(CERT, cert, "it holds no certificate".into()));
        }
        let key = PrivateKeyDer::from_pem_slice(&self.bytes(KEY, key)?)
            .map_err(|e| self.file(KEY, key, e.to_string()))?;
        Ok(Identity { chain, key })
    }
}
