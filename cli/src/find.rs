//! Which broker, and with which token.
//!
//! In this order: `--url` and `--token-file`; `MUSTER_URL` and `MUSTER_TOKEN`;
//! `~/.config/muster/config.toml`; the `muster up` of this user that is
//! running. URL and token are looked for one after the other, but a token
//! that was written beside a URL (in the file, by `muster up`) is only ever
//! sent to that URL.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use muster_client::{Client, Endpoint, Secret};
use serde::{Deserialize, Serialize};

use crate::failure::{Failure, UNREACHABLE};
use crate::up::identity::Identity;

/// Where to look. Values, not the environment itself, so that it can be
/// tested.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// `--url`.
    pub url: Option<String>,
    /// `--token-file`.
    pub token_file: Option<PathBuf>,
    /// `--ca-file`, else `MUSTER_CA_FILE`.
    pub ca_file: Option<PathBuf>,
    /// `MUSTER_URL`.
    pub env_url: Option<String>,
    /// `MUSTER_TOKEN`.
    pub env_token: Option<Secret>,
    /// The configuration file.
    pub config: Option<PathBuf>,
    /// Where a running `muster up` says so.
    pub up: Option<PathBuf>,
}

/// `~/.config/muster/config.toml`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct File {
    /// The broker's URL, or a list of those of several brokers.
    pub url: Option<OneOrMore>,
    /// File that holds the token, nothing else.
    pub token_file: Option<PathBuf>,
    /// The certificate authority that signed the broker's certificate, PEM.
    pub ca_file: Option<PathBuf>,
}

/// One text, or several.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum OneOrMore {
    /// One; commas in it separate several.
    One(String),
    /// Several.
    More(Vec<String>),
}

impl OneOrMore {
    fn joined(self) -> String {
        match self {
            Self::One(text) => text,
            Self::More(texts) => texts.join(","),
        }
    }
}

/// What a running `muster up` says of itself, for other commands of the same
/// user.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct UpFile {
    /// The process, so that a file left behind is not believed.
    #[serde(flatten)]
    pub identity: Identity,
    /// Where its broker listens.
    pub url: String,
    /// Its admin token.
    pub token_file: PathBuf,
    /// Its certificate authority, when it has TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
}

/// What was found, and where.
#[derive(Clone, Debug)]
pub struct Found {
    /// The broker's URL, or several with commas.
    pub url: String,
    /// For people: where the URL was found.
    pub url_from: String,
    /// The token; some routes need none.
    pub token: Option<Secret>,
    /// For people: where the token was found.
    pub token_from: String,
    /// The certificate authority.
    pub ca_file: Option<PathBuf>,
}

impl Sources {
    /// From the command line and the environment.
    #[must_use]
    pub fn of_process(
        urls: &[String],
        token_file: Option<PathBuf>,
        ca_file: Option<PathBuf>,
    ) -> Self {
        let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty());
        let text = |name: &str| var(name).map(|v| v.to_string_lossy().into_owned());
        Self {
            url: (!urls.is_empty()).then(|| urls.join(",")),
            token_file,
            ca_file: ca_file.or_else(|| var("MUSTER_CA_FILE").map(PathBuf::from)),
            env_url: text("MUSTER_URL"),
            env_token: text("MUSTER_TOKEN").map(|t| Secret::new(t.trim())),
            config: config_path(var("XDG_CONFIG_HOME"), var("HOME")),
            up: up_path(var("XDG_RUNTIME_DIR"), var("HOME")),
        }
    }

    /// Looks in order.
    ///
    /// # Errors
    /// A file that cannot be read or is wrong; nothing found.
    pub fn find(&self) -> Result<Found, Failure> {
        let explicit_url = self
            .url
            .as_ref()
            .map(|u| (u.clone(), "--url"))
            .or_else(|| self.env_url.as_ref().map(|u| (u.clone(), "MUSTER_URL")));
        let explicit_token = match &self.token_file {
            Some(path) => Some((read_token(path)?, path.display().to_string())),
            None => self
                .env_token
                .as_ref()
                .map(|t| (t.clone(), "MUSTER_TOKEN".to_owned())),
        };
        if let (Some((url, from)), Some((token, token_from))) = (&explicit_url, &explicit_token) {
            return Ok(Found {
                url: url.clone(),
                url_from: (*from).to_owned(),
                token: Some(token.clone()),
                token_from: token_from.clone(),
                ca_file: self.ca_file.clone(),
            });
        }
        for written in [self.config()?, self.running()].into_iter().flatten() {
            let Some(written_url) = written.url else {
                continue;
            };
            // The token beside another URL is not this broker's.
            let among = |urls: &str| each(urls).all(|url| each(&written_url).any(|one| one == url));
            if explicit_url.as_ref().is_some_and(|(urls, _)| !among(urls)) {
                continue;
            }
            let (token, token_from) = match (&explicit_token, &written.token_file) {
                (Some((token, from)), _) => (Some(token.clone()), from.clone()),
                (None, Some(path)) => (Some(read_token(path)?), path.display().to_string()),
                (None, None) => (None, "nowhere".to_owned()),
            };
            return Ok(Found {
                url: explicit_url.as_ref().map_or(written_url, |(urls, _)| {
                    each(urls).collect::<Vec<_>>().join(",")
                }),
                url_from: explicit_url
                    .as_ref()
                    .map_or(written.from, |(_, from)| (*from).to_owned()),
                token,
                token_from,
                ca_file: self.ca_file.clone().or(written.ca_file),
            });
        }
        match explicit_url {
            Some((url, from)) => Ok(Found {
                url,
                url_from: from.to_owned(),
                token: None,
                token_from: "nowhere".into(),
                ca_file: self.ca_file.clone(),
            }),
            None => Err(self.nothing()),
        }
    }

    fn nothing(&self) -> Failure {
        let config = self
            .config
            .as_deref()
            .unwrap_or(Path::new("~/.config/muster/config.toml"));
        Failure::new(UNREACHABLE, "no broker is known")
            .detail(format!(
                "looked at --url, MUSTER_URL, {}, and for a running `muster up` of this user",
                config.display()
            ))
            .hint(
                "start one with `muster up --state DIR`, or name one: --url URL --token-file FILE",
            )
    }

    fn config(&self) -> Result<Option<Written>, Failure> {
        let Some(path) = &self.config else {
            return Ok(None);
        };
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => {
                return Err(Failure::usage(format!(
                    "cannot read {}: {e}",
                    path.display()
                )));
            }
        };
        let file: File = toml::from_str(&text).map_err(|e| {
            Failure::usage(format!("{} has an error", path.display()))
                .detail(e.to_string().trim_end().to_owned())
                .hint("it takes url, token_file and ca_file")
        })?;
        // Paths in the file are meant from where the file is.
        let base = path.parent().unwrap_or(Path::new("."));
        Ok(Some(Written {
            url: file.url.map(OneOrMore::joined),
            token_file: file.token_file.map(|p| base.join(p)),
            ca_file: file.ca_file.map(|p| base.join(p)),
            from: path.display().to_string(),
        }))
    }

    fn running(&self) -> Option<Written> {
        let path = self.up.as_ref()?;
        let text = std::fs::read_to_string(path).ok()?;
        let up: UpFile = serde_json::from_str(&text).ok()?;
        // Another `muster up` may have ended without cleaning up.
        up.identity.is_alive().then(|| Written {
            url: Some(up.url),
            token_file: Some(up.token_file),
            ca_file: up.ca_file,
            from: format!("the running `muster up` (pid {})", up.identity.pid),
        })
    }
}

/// The URLs of a list.
fn each(urls: &str) -> impl Iterator<Item = &str> {
    urls.split(',')
        .map(|url| url.trim().trim_end_matches('/'))
        .filter(|url| !url.is_empty())
}

struct Written {
    url: Option<String>,
    token_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
    from: String,
}

impl Found {
    /// The endpoint.
    ///
    /// # Errors
    /// When the URL is none.
    pub fn endpoint(&self) -> Result<Endpoint, Failure> {
        let mut endpoint = Endpoint::new(&self.url)
            .map_err(|e| {
                let mut failure = Failure::from(e);
                failure.detail = Some(format!("it comes from {}", self.url_from));
                failure
            })?
            .door("cli");
        if let Some(token) = &self.token {
            endpoint = endpoint.token(token.clone());
        }
        if let Some(ca) = &self.ca_file {
            endpoint = endpoint.ca_file(ca);
        }
        Ok(endpoint)
    }

    /// A client.
    ///
    /// # Errors
    /// As [`Found::endpoint`], and what [`Client::new`] says.
    pub fn client(&self) -> Result<Client, Failure> {
        Ok(Client::new(self.endpoint()?)?)
    }
}

fn read_token(path: &Path) -> Result<Secret, Failure> {
    let text = std::fs::read_to_string(path).map_err(|e| {
        let failure = Failure::usage(format!("cannot read the token in {}: {e}", path.display()));
        if e.kind() == std::io::ErrorKind::PermissionDenied {
            failure.hint(
                "it belongs to somebody else; ask for a token of your own: `muster token create`",
            )
        } else {
            failure.hint("`muster up` writes one to `admin.token` in its state directory")
        }
    })?;
    let token = Secret::new(text.trim());
    if token.expose().is_empty() {
        return Err(Failure::usage(format!(
            "the token file {} is empty",
            path.display()
        )));
    }
    Ok(token)
}

/// `$XDG_CONFIG_HOME/muster/config.toml`, else `~/.config/muster/config.toml`.
fn config_path(xdg: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    absolute(xdg)
        .or_else(|| absolute(home).map(|home| home.join(".config")))
        .map(|dir| dir.join("muster").join("config.toml"))
}

/// `$XDG_RUNTIME_DIR/muster/up.json`, else `~/.local/state/muster/up.json`.
#[must_use]
pub fn up_path(xdg: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    absolute(xdg)
        .or_else(|| absolute(home).map(|home| home.join(".local").join("state")))
        .map(|dir| dir.join("muster").join("up.json"))
}

fn absolute(path: Option<OsString>) -> Option<PathBuf> {
    path.map(PathBuf::from).filter(|p| p.is_absolute())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ui::Paint;
    use std::fs;

    struct Home {
        dir: tempfile::TempDir,
        sources: Sources,
    }

    fn home() -> Home {
        let dir = tempfile::tempdir().expect("directory");
        let home = Some(dir.path().as_os_str().to_owned());
        let sources = Sources {
            config: config_path(None, home.clone()),
            up: up_path(None, home),
            ..Sources::default()
        };
        Home { dir, sources }
    }

    impl Home {
        fn write(&self, path: &str, text: &str) -> PathBuf {
            let path = self.dir.path().join(path);
            fs::create_dir_all(path.parent().expect("parent")).expect("directory");
            fs::write(&path, text).expect("write");
            path
        }

        fn config(&self) {
            self.write(".config/muster/token", "mt1_config\n");
            self.write(
                ".config/muster/config.toml",
                "url = \"http://config\"\ntoken_file = \"token\"\n",
            );
        }

        fn up(&self, identity: Identity) {
            let token_file = self.write("state/admin.token", "mt1_up\n");
            let up = UpFile {
                identity,
                url: "http://up".into(),
                token_file,
                ca_file: None,
            };
            self.write(
                ".local/state/muster/up.json",
                &serde_json::to_string(&up).expect("json"),
            );
        }

        fn found(&self) -> (String, Option<String>) {
            let found = self.sources.find().expect("found");
            (found.url, found.token.map(|t| t.expose().to_owned()))
        }
    }

    fn me() -> Identity {
        Identity::of(std::process::id()).expect("this process lives")
    }

    #[test]
    fn the_nearest_source_wins() {
        let mut home = home();
        let error = home.sources.find().expect_err("nothing is there");
        assert_eq!(error.code, 5);
        assert!(error.render(Paint::plain()).contains("muster up"));

        home.up(me());
        assert_eq!(home.found(), ("http://up".into(), Some("mt1_up".into())));
        home.config();
        assert_eq!(
            home.found(),
            ("http://config".into(), Some("mt1_config".into()))
        );
        home.sources.env_token = Some(Secret::new("mt1_env"));
        assert_eq!(
            home.found(),
            ("http://config".into(), Some("mt1_env".into()))
        );
        home.sources.env_url = Some("http://env".into());
        assert_eq!(home.found(), ("http://env".into(), Some("mt1_env".into())));
        home.sources.token_file = Some(home.write("t", "mt1_flag"));
        assert_eq!(home.found(), ("http://env".into(), Some("mt1_flag".into())));
        home.sources.url = Some("http://flag".into());
        assert_eq!(
            home.found(),
            ("http://flag".into(), Some("mt1_flag".into()))
        );
    }

    #[test]
    fn a_token_goes_only_to_the_url_it_was_written_beside() {
        let mut home = home();
        home.config();
        home.up(me());
        home.sources.url = Some("http://stranger".into());
        assert_eq!(home.found(), ("http://stranger".into(), None));
        home.sources.url = Some("http://up/".into());
        assert_eq!(home.found(), ("http://up".into(), Some("mt1_up".into())));
    }

    #[test]
    fn several_urls_are_a_list_and_a_token_goes_to_those_of_it_alone() {
        let mut home = home();
        home.write(".config/muster/token", "mt1_config\n");
        home.write(
            ".config/muster/config.toml",
            "url = [\"http://a\", \"http://b/\"]\ntoken_file = \"token\"\n",
        );
        let token = || Some("mt1_config".to_owned());
        assert_eq!(home.found(), ("http://a,http://b/".into(), token()));
        home.sources.env_url = Some("http://b".into());
        assert_eq!(home.found(), ("http://b".into(), token()));
        home.sources.env_url = Some("http://b, http://a/".into());
        assert_eq!(home.found(), ("http://b,http://a".into(), token()));
        home.sources.env_url = Some("http://b,http://stranger".into());
        assert_eq!(home.found(), ("http://b,http://stranger".into(), None));
    }

    #[test]
    fn an_up_that_ended_is_not_believed() {
        let home = home();
        home.up(Identity { started: 1, ..me() });
        assert!(home.sources.find().is_err());
    }

    #[test]
    fn a_wrong_file_says_where() {
        let home = home();
        home.write(
            ".config/muster/config.toml",
            "url = \"http://a\"\ntokn = 1\n",
        );
        let error = home.sources.find().expect_err("wrong");
        assert_eq!(error.code, 2);
        let text = error.render(Paint::plain());
        assert!(
            text.contains("tokn") && text.contains("config.toml"),
            "{text}"
        );
    }

    #[test]
    fn an_empty_or_missing_token_file_is_said() {
        let mut home = home();
        home.sources.url = Some("http://a".into());
        home.sources.token_file = Some(home.write("empty", "\n"));
        assert!(
            home.sources
                .find()
                .expect_err("empty")
                .message
                .contains("is empty")
        );
        home.sources.token_file = Some(home.dir.path().join("none"));
        assert!(
            home.sources
                .find()
                .expect_err("missing")
                .message
                .contains("cannot read")
        );
    }
}
