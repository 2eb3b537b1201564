//! Where the broker is, and with which credentials to speak to it.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use muster_protocol::api::Secret;
use reqwest::Url;

use crate::ClientError;

/// Most URLs that may be given.
const MOST: usize = 8;

/// Where the broker is and how to speak to it.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// At least one.
    pub(crate) urls: Vec<Url>,
    pub(crate) token: Option<Secret>,
    pub(crate) ca_pem: Option<CaSource>,
    pub(crate) door: &'static str,
    pub(crate) connect_timeout: Duration,
    pub(crate) request_timeout: Duration,
    pub(crate) local: Option<IpAddr>,
}

/// A certificate authority, read late so that a plain-HTTP start reads nothing.
#[derive(Clone, Debug)]
pub(crate) enum CaSource {
    File(PathBuf),
    Pem(String),
}

impl Endpoint {
    /// From a URL such as `http://127.0.0.1:7878`, or several brokers of one
    /// cluster, separated by commas. A path in it is kept as a prefix (for a
    /// reverse proxy); user, query and fragment are refused.
    ///
    /// # Errors
    /// [`ClientError::Url`].
    pub fn new(urls: &str) -> Result<Self, ClientError> {
        let mut parsed: Vec<Url> = Vec::new();
        for url in urls.split(',').map(str::trim) {
            // A comma at the end is no mistake.
            if url.is_empty() && !parsed.is_empty() {
                continue;
            }
            let url = parse(url)?;
            if !parsed.contains(&url) {
                parsed.push(url);
            }
        }
        if parsed.len() > MOST {
            return Err(ClientError::Url {
                url: muster_protocol::text::printable(urls, 200),
                why: format!("these are more than {MOST}"),
            });
        }
        Ok(Self {
            urls: parsed,
            token: None,
            ca_pem: None,
            door: "http",
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(30),
            local: None,
        })
    }

    /// With an API token.
    #[must_use]
    pub fn token(mut self, token: Secret) -> Self {
        self.token = Some(token);
        self
    }

    /// With the certificate authority (PEM file) that the broker's certificate
    /// must be signed by; then no other is trusted.
    #[must_use]
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.ca_pem = Some(CaSource::File(path.into()));
        self
    }

    /// As [`Endpoint::ca_file`], from PEM text.
    #[must_use]
    pub fn ca_pem(mut self, pem: impl Into<String>) -> Self {
        self.ca_pem = Some(CaSource::Pem(pem.into()));
        self
    }

    /// Names the door for the audit: `cli` for the command line, else `http`.
    #[must_use]
    pub fn door(mut self, door: &'static str) -> Self {
        self.door = door;
        self
    }

    /// How long to wait for a connection (5 s) and for an answer (30 s).
    #[must_use]
    pub fn timeouts(mut self, connect: Duration, request: Duration) -> Self {
        self.connect_timeout = connect;
        self.request_timeout = request;
        self
    }

    /// Speaks from this address of the machine: a program that stands for
    /// many machines gives each one its own.
    #[must_use]
    pub fn from_address(mut self, local: IpAddr) -> Self {
        self.local = Some(local);
        self
    }

    /// The first of them. [`Endpoint::new`] lets no empty list in.
    pub(crate) fn first(&self) -> &Url {
        &self.urls[0]
    }

    /// The first URL, without the slash at its end.
    #[must_use]
    pub fn url(&self) -> &str {
        self.first().as_str().trim_end_matches('/')
    }

    /// All URLs, without the slashes at their ends.
    #[must_use]
    pub fn urls(&self) -> Vec<&str> {
        let urls = self.urls.iter();
        urls.map(|url| url.as_str().trim_end_matches('/')).collect()
    }

    /// All URLs, for people.
    pub(crate) fn urls_text(&self) -> String {
        self.urls().join(" and ")
    }

    /// The same for one of the URLs alone.
    #[must_use]
    pub fn only(&self, url: &str) -> Option<Self> {
        let same = |one: &&Url| one.as_str().trim_end_matches('/') == url;
        let one = self.urls.iter().find(same)?.clone();
        Some(Self {
            urls: vec![one],
            ..self.clone()
        })
    }

    /// Whether it speaks TLS, with each of them.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.urls.iter().all(|url| url.scheme() == "https")
    }

    /// Whether the hosts are this machine, said by an address or `localhost`.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.urls.iter().all(is_loopback)
    }

    /// The certificate authority's file, if one was named.
    #[must_use]
    pub fn ca_path(&self) -> Option<&Path> {
        match &self.ca_pem {
            Some(CaSource::File(path)) => Some(path),
            _ => None,
        }
    }
}

fn parse(url: &str) -> Result<Url, ClientError> {
    let fail = |why: String| ClientError::Url {
        url: muster_protocol::text::printable(url, 200),
        why,
    };
    let mut parsed = Url::parse(url).map_err(|e| fail(e.to_string()))?;
    if !matches!(parsed.scheme(), "http" | "https") {
        return Err(fail(format!(
            "it begins with `{}:`, not with http: or https:",
            parsed.scheme()
        )));
    }
    if !parsed.has_host() {
        return Err(fail("it names no host".into()));
    }
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return Err(fail(
            "it holds a user or password; the token goes into a file".into(),
        ));
    }
    if parsed.query().is_some() || parsed.fragment().is_some() {
        return Err(fail("it has a query or a fragment".into()));
    }
    if !parsed.path().ends_with('/') {
        let path = format!("{}/", parsed.path());
        parsed.set_path(&path);
    }
    Ok(parsed)
}

pub(crate) fn is_loopback(url: &Url) -> bool {
    let Some(host) = url.host_str() else {
        return false;
    };
    let literal = host.trim_start_matches('[').trim_end_matches(']');
    literal.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()) || host == "localhost"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_checked_before_they_are_used() {
        assert_eq!(
            Endpoint::new("http://[::1]:80/x")
                .map(|e| e.url().to_owned())
                .ok()
                .as_deref(),
            Some("http://[::1]/x")
        );
        for bad in [
            "",
            "127.0.0.1:1",
            "ftp://a",
            "http://u:p@a",
            "http://a?x=1",
            "http://a#f",
            "unix:/x",
        ] {
            assert!(
                matches!(Endpoint::new(bad), Err(ClientError::Url { .. })),
                "{bad}"
            );
        }
        for (url, here) in [
            ("http://127.0.0.1:1", true),
            ("http://[::1]", true),
            ("http://localhost", true),
            ("http://10.0.0.1", false),
        ] {
            assert_eq!(
                Endpoint::new(url).map(|e| e.is_loopback()).ok(),
                Some(here),
                "{url}"
            );
        }
    }

    #[test]
    fn several_brokers_are_given_with_commas() {
        let endpoint = Endpoint::new("http://a:1, https://b/,http://a:1/,").expect("urls");
        assert_eq!(endpoint.urls(), ["http://a:1", "https://b"]);
        assert_eq!(endpoint.url(), "http://a:1");
        assert!(!endpoint.is_tls() && !endpoint.is_loopback());
        let one = endpoint.only("https://b").expect("it is one of them");
        assert!(one.is_tls() && endpoint.only("https://c").is_none());
        for bad in [",http://a", "http://a,ftp://b", "http://a,b"] {
            assert!(Endpoint::new(bad).is_err(), "{bad}");
        }
        let many: Vec<String> = (0..9).map(|n| format!("http://a{n}")).collect();
        assert!(Endpoint::new(&many.join(",")).is_err());
    }

    #[test]
    fn a_token_does_not_print() {
        let endpoint = Endpoint::new("http://a")
            .expect("url")
            .token(Secret::new("mt1_hidden"));
        assert!(!format!("{endpoint:?}").contains("hidden"));
    }
}
