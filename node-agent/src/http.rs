//! The broker over HTTP, as far as an agent needs it. A client is made when
//! it is needed and dropped after, so that an idle agent holds none.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use muster_protocol::api::Challenge;
use muster_protocol::firewall::{AddressesRequest, ConfirmRequest, Confirmation, RoleAddresses};
use muster_protocol::problem::{Kind, Problem};
use muster_protocol::text::printable;
use muster_protocol::vm::SeedText;
use muster_protocol::wire::{
    CredentialsAnswer, CredentialsRequest, EnrollRequest, ImageRequest, ReleaseRequest,
    SeedRequest, Trust,
};
use reqwest::Certificate;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Most bytes of an answer.
const MAX_ANSWER: usize = 1 << 20;
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// A broker that says nothing for so long is asked after the others.
const AWAKE_WITHIN: Duration = Duration::from_secs(2);
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// A release of any size, over any line that can be worked with.
const WHOLE_RELEASE: Duration = Duration::from_secs(3_600);
/// The same of a disk image.
const WHOLE_IMAGE: Duration = Duration::from_secs(24 * 3_600);
/// Where an image may be elsewhere, after so many turns.
const MAX_TURNS: usize = 5;

/// The address of a broker: `https`, or `http` to this machine itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct BaseUrl(reqwest::Url);

/// Why a text is not the address of a broker.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum UrlError {
    /// Not a URL.
    #[error("it is not a URL ({0}); write it like `https://broker.example.org:7878`")]
    Syntax(String),
    /// Another scheme.
    #[error("its scheme is `{0}`; it must be https")]
    Scheme(String),
    /// Unencrypted over a network.
    #[error(
        "plain http is only taken for loopback addresses, because the token would travel readable; use https"
    )]
    Plain,
}

impl BaseUrl {
    /// Reads and checks it.
    ///
    /// # Errors
    /// [`UrlError`].
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        let mut url = reqwest::Url::parse(text).map_err(|e| UrlError::Syntax(e.to_string()))?;
        match url.scheme() {
            "https" if url.host_str().is_some_and(|host| !host.is_empty()) => {}
            "http" => {
                if !is_loopback(&url) {
                    return Err(UrlError::Plain);
                }
            }
            other => return Err(UrlError::Scheme(printable(other, 20))),
        }
        if !url.path().ends_with('/') {
            let path = format!("{}/", url.path());
            url.set_path(&path);
        }
        url.set_query(None);
        url.set_fragment(None);
        Ok(Self(url))
    }

    /// Whether it is on this machine, said by an address or `localhost`.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        is_loopback(&self.0)
    }

    /// Whether it is encrypted.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.0.scheme() == "https"
    }
}

fn is_loopback(url: &reqwest::Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str().trim_end_matches('/'))
    }
}

/// Why the broker did not give what was asked.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// No connection, no answer, no TLS.
    #[error("no broker answers at {url}: {why}")]
    Unreachable {
        /// Where.
        url: String,
        /// Why, with all causes.
        why: String,
    },
    /// An answer that says no.
    #[error("{}", show(.0))]
    Problem(Box<Problem>),
    /// An answer that is none of muster's.
    #[error("{url} does not answer like a muster broker (HTTP {status}); is the URL right?")]
    Strange {
        /// Where.
        url: String,
        /// The status.
        status: u16,
    },
    /// The certificate authority cannot be read.
    #[error("the certificate authority is not usable: {0}")]
    Certificate(String),
}

fn show(problem: &Problem) -> String {
    let mut text = printable(&problem.title, 300);
    for more in [&problem.detail, &problem.hint].into_iter().flatten() {
        text.push_str("; ");
        text.push_str(&printable(more, 300));
    }
    text
}

impl HttpError {
    /// Whether the broker said that this node or token has no business here,
    /// so that asking again soon is of no use.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Problem(p) if matches!(p.kind, Kind::Denied | Kind::NotFound | Kind::Unauthenticated))
    }
}

/// How far the other side is believed to be who it says.
#[derive(Clone, Debug)]
pub enum Verify {
    /// Not at all. Only for [`Client::trust`], whose content carries its own
    /// proof.
    Nothing,
    /// It has a certificate by one of these authorities, PEM.
    Authority(String),
    /// It has a certificate that the operating system trusts.
    System,
}

/// These brokers in the order in which to ask them: as they are, but beginning
/// with one that says anything at all. One that hangs takes connections and
/// never answers, and whoever asks it first waits for long.
pub async fn awake_first(urls: &[String], verify: impl Fn(&BaseUrl) -> Verify) -> Vec<String> {
    let mut order = urls.to_vec();
    if urls.len() < 2 {
        return order;
    }
    for (at, url) in urls.iter().enumerate() {
        // What is wrong with it otherwise is said when it is asked.
        let Ok(base) = BaseUrl::parse(url) else { break };
        let Ok(client) = Client::new(&base, &verify(&base)) else {
            break;
        };
        if client.is_awake().await {
            order.rotate_left(at);
            break;
        }
    }
    order
}

/// What a broker answers when it is asked for an image.
#[derive(Debug)]
pub enum ImageAnswer {
    /// The bytes.
    Bytes(reqwest::Response),
    /// They are there.
    Elsewhere(String),
}

/// Where an image is.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Elsewhere {
    url: String,
}

/// The next piece of what somebody sends; `None` at its end.
///
/// # Errors
/// [`HttpError::Unreachable`].
pub async fn piece(answer: &mut reqwest::Response) -> Result<Option<bytes::Bytes>, HttpError> {
    let lost = |answer: &reqwest::Response, why: &str| HttpError::Unreachable {
        url: shown(answer.url()),
        why: printable(why, 300),
    };
    match tokio::time::timeout(ANSWER_WITHIN, answer.chunk()).await {
        Ok(Ok(piece)) => Ok(piece),
        Ok(Err(e)) => Err(lost(answer, &chain(&e.without_url()))),
        Err(_) => Err(lost(answer, "nothing came for a while")),
    }
}

/// A URL for people, without what may be a password in it.
fn shown(url: &reqwest::Url) -> String {
    let mut url = url.clone();
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    printable(url.as_str(), 200)
}

/// A client for one broker.
pub struct Client {
    base: BaseUrl,
    http: reqwest::Client,
}

impl Client {
    /// Makes one.
    ///
    /// # Errors
    /// [`HttpError::Certificate`].
    pub fn new(base: &BaseUrl, verify: &Verify) -> Result<Self, HttpError> {
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_WITHIN)
            .timeout(ANSWER_WITHIN)
            .redirect(reqwest::redirect::Policy::none())
            .pool_max_idle_per_host(1)
            .user_agent(concat!("muster-agent/", env!("CARGO_PKG_VERSION")));
        if !base.is_tls() {
            builder = builder.no_proxy();
        }
        let bad = |e: &dyn fmt::Display| HttpError::Certificate(e.to_string());
        builder = match verify {
            // A client needs some roots even when they are not asked.
            Verify::Nothing => builder
                .tls_certs_only([])
                .tls_danger_accept_invalid_certs(true),
            Verify::Authority(pem) => {
                let certificates =
                    Certificate::from_pem_bundle(pem.as_bytes()).map_err(|e| bad(&chain(&e)))?;
                if certificates.is_empty() {
                    return Err(bad(&"it holds no certificate"));
                }
                builder.tls_certs_only(certificates)
            }
            Verify::System if base.is_tls() => builder,
            Verify::System => builder.tls_certs_only([]),
        };
        let http = builder.build().map_err(|e| bad(&chain(&e)))?;
        Ok(Self {
            base: base.clone(),
            http,
        })
    }

    /// Whether anything is said there soon, be it a refusal.
    async fn is_awake(&self) -> bool {
        let Ok(url) = self.url("healthz") else {
            return true;
        };
        let asked = self.http.get(url).timeout(AWAKE_WITHIN).send().await;
        !matches!(asked, Err(error) if error.is_timeout())
    }

    /// What can be known of a cluster before trusting it.
    ///
    /// # Errors
    /// [`HttpError`].
    pub async fn trust(&self) -> Result<Trust, HttpError> {
        self.send(self.http.get(self.url("v1/trust")?)).await
    }

    /// A challenge to sign.
    ///
    /// # Errors
    /// [`HttpError`].
    pub async fn challenge(&self) -> Result<Challenge, HttpError> {
        self.send(self.http.post(self.url("v1/agent/challenge")?))
            .await
    }

    /// Presents an invite.
    ///
    /// # Errors
    /// [`HttpError`].
    pub async fn enroll(&self, request: &EnrollRequest) -> Result<CredentialsAnswer, HttpError> {
        self.post("v1/enroll", request).await
    }

    /// Asks for fresh credentials.
    ///
    /// # Errors
    /// [`HttpError`].
    pub async fn credentials(
        &self,
        request: &CredentialsRequest,
    ) -> Result<CredentialsAnswer, HttpError> {
        self.post("v1/agent/credentials", request).await
    }

    /// Asks for the bytes of a release.
    ///
    /// # Errors
    /// [`HttpError`].
    pub async fn release(&self, request: &ReleaseRequest) -> Result<reqwest::Response, HttpError> {
        let mut answer = self
            .http
            .post(self.url("v1/agent/release")?)
            .json(request)
            // Whoever reads bounds the time for each piece.
            .timeout(WHOLE_RELEASE)
            .send()
            .await
            .map_err(|e| self.unreachable(chain(&e.without_url())))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let body = self.body(&mut answer).await?;
        Err(self.refused(status, &body))
    }

    /// Asks for the bytes of a disk image.
    ///
    /// # Errors
    /// [`HttpError`].
    pub async fn image(&self, request: &ImageRequest) -> Result<ImageAnswer, HttpError> {
        let mut answer = self
            .http
            .post(self.url("v1/agent/image")?)
            .json(request)
            .timeout(WHOLE_IMAGE)
            .send()
            .await
            .map_err(|e| self.unreachable(chain(&e.without_url())))?;
        let status = answer.status();
        let kind = answer.headers().get(reqwest::header::CONTENT_TYPE);
        let json = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
        if status.is_success() && !json {
            return Ok(ImageAnswer::Bytes(answer));
        }
        let body = self.body(&mut answer).await?;
        if !status.is_success() {
            return Err(self.refused(status, &body));
        }
        match serde_json::from_slice::<Elsewhere>(&body) {
            Ok(Elsewhere { url }) => Ok(ImageAnswer::Elsewhere(url)),
            Err(_) => Err(HttpError::Strange {
                url: self.base.to_string(),
                status: status.as_u16(),
            }),
        }
    }

    /// The bytes at any URL from one on, and which is the first that comes.
    /// Who sends them is believed in nothing: their hash decides.
    ///
    /// # Errors
    /// [`HttpError`].
    pub async fn elsewhere(url: &str, from: u64) -> Result<(reqwest::Response, u64), HttpError> {
        let strange = |why: &str| HttpError::Unreachable {
            url: printable(url, 200),
            why: why.to_owned(),
        };
        let url = reqwest::Url::parse(url).map_err(|e| strange(&e.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(strange("an image comes by http or https"));
        }
        let lost = |why: String| HttpError::Unreachable {
            url: shown(&url),
            why: printable(&why, 300),
        };
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_WITHIN)
            .redirect(reqwest::redirect::Policy::limited(MAX_TURNS))
            .user_agent(concat!("muster-agent/", env!("CARGO_PKG_VERSION")));
        if url.scheme() == "http" {
            builder = builder.tls_certs_only([]);
        }
        let http = builder.build().map_err(|e| lost(chain(&e)))?;
        let mut request = http.get(url.clone()).timeout(WHOLE_IMAGE);
        if from > 0 {
            request = request.header(reqwest::header::RANGE, format!("bytes={from}-"));
        }
        let sent = request.send().await;
        let answer = sent.map_err(|e| lost(chain(&e.without_url())))?;
        match answer.status().as_u16() {
            200 => Ok((answer, 0)),
            206 if begins_at(&answer, from) => Ok((answer, from)),
            status => Err(HttpError::Strange {
                url: shown(&url),
                status,
            }),
        }
    }

    /// Asks for the seed of a machine.
    ///
    /// # Errors
    /// [`HttpError`].
    pub async fn seed(&self, request: &SeedRequest) -> Result<SeedText, HttpError> {
        self.post("v1/agent/seed", request).await
    }

    /// Asks which addresses nodes of some roles have.
    ///
    /// # Errors
    /// [`HttpError`].
    pub async fn firewall_addresses(
        &self,
        request: &AddressesRequest,
    ) -> Result<RoleAddresses, HttpError> {
        self.post("v1/agent/firewall/addresses", request).await
    }

    /// Asks whether new rules of this node's firewall may stay.
    ///
    /// # Errors
    /// [`HttpError`].
    pub async fn confirm_firewall(
        &self,
        request: &ConfirmRequest,
    ) -> Result<Confirmation, HttpError> {
        self.post("v1/agent/firewall/confirm", request).await
    }

    fn url(&self, path: &str) -> Result<reqwest::Url, HttpError> {
        self.base
            .0
            .join(path)
            .map_err(|e| self.unreachable(e.to_string()))
    }

    async fn post<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T, HttpError> {
        self.send(self.http.post(self.url(path)?).json(body)).await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        request: reqwest::RequestBuilder,
    ) -> Result<T, HttpError> {
        let mut answer = request
            .send()
            .await
            .map_err(|e| self.unreachable(chain(&e.without_url())))?;
        let status = answer.status();
        let body = self.body(&mut answer).await?;
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|_| HttpError::Strange {
                url: self.base.to_string(),
                status: status.as_u16(),
            });
        }
        Err(self.refused(status, &body))
    }

    fn refused(&self, status: reqwest::StatusCode, body: &[u8]) -> HttpError {
        match serde_json::from_slice::<Problem>(body) {
            Ok(problem) => HttpError::Problem(Box::new(problem)),
            Err(_) => HttpError::Strange {
                url: self.base.to_string(),
                status: status.as_u16(),
            },
        }
    }

    async fn body(&self, answer: &mut reqwest::Response) -> Result<Vec<u8>, HttpError> {
        let mut body = Vec::new();
        while let Some(part) = answer
            .chunk()
            .await
            .map_err(|e| self.unreachable(chain(&e.without_url())))?
        {
            if body.len() + part.len() > MAX_ANSWER {
                return Err(self.unreachable("the answer is too large".into()));
            }
            body.extend_from_slice(&part);
        }
        Ok(body)
    }

    fn unreachable(&self, why: String) -> HttpError {
        HttpError::Unreachable {
            url: self.base.to_string(),
            why: printable(&why, 300),
        }
    }
}

/// Whether an answer begins with that byte.
fn begins_at(answer: &reqwest::Response, from: u64) -> bool {
    let range = answer.headers().get(reqwest::header::CONTENT_RANGE);
    let range = range.and_then(|range| range.to_str().ok());
    range.is_some_and(|range| range.starts_with(&format!("bytes {from}-")))
}

/// An error with its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_broker_that_hangs_is_asked_last() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        // Takes connections, and says nothing.
        let hangs = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = |listener: &tokio::net::TcpListener| {
            format!("http://{}", listener.local_addr().unwrap())
        };
        let (hangs_url, dead_url) = (url(&hangs), url(&free));
        drop(free);
        let (one, two) = (hangs_url.clone(), dead_url.clone());
        let order = async |urls: &[String]| awake_first(urls, |_| Verify::System).await;
        // One that is not there says so at once.
        assert_eq!(order(&[one.clone(), two.clone()]).await, [&*two, &*one]);
        assert_eq!(order(&[two.clone(), one.clone()]).await, [&*two, &*one]);
        // Nobody is better than another.
        assert_eq!(order(&[one.clone(), one.clone()]).await, [&*one, &*one]);
        assert_eq!(order(std::slice::from_ref(&one)).await, [&*one]);
        let bad = [one, "no URL".to_owned(), two];
        assert_eq!(order(&bad).await, bad);
    }

    #[test]
    fn a_token_never_travels_readable() {
        for good in [
            "https://broker.example.org:7878",
            "http://127.0.0.1:80",
            "http://[::1]:1/x",
            "http://localhost",
        ] {
            assert!(BaseUrl::parse(good).is_ok(), "{good}");
        }
        assert_eq!(
            BaseUrl::parse("http://broker.example.org"),
            Err(UrlError::Plain)
        );
        assert_eq!(
            BaseUrl::parse("http://127.0.0.1.example.org"),
            Err(UrlError::Plain)
        );
        for bad in [
            "",
            "broker",
            "ftp://127.0.0.1",
            "https://",
            "file:///etc/passwd",
        ] {
            assert!(BaseUrl::parse(bad).is_err(), "{bad}");
        }
        let url = BaseUrl::parse("https://a.example/muster?x#y").expect("is one");
        assert_eq!(url.to_string(), "https://a.example/muster");
        assert_eq!(
            url.0.join("v1/trust").expect("joins").as_str(),
            "https://a.example/muster/v1/trust"
        );
    }
}
