//! The client itself: one connection pool, and the ways to ask.

use std::sync::Arc;
use std::time::Duration;

use muster_protocol::api::{DOOR_HEADER, Readiness};
use muster_protocol::problem::{Kind, Problem};
use muster_protocol::text::printable;
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Response, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::endpoint::{CaSource, Endpoint};
use crate::error::ClientError;
use crate::once::Key;

/// Most bytes of an answer that is read; a longer one is refused. Twenty
/// thousand nodes with their facts come in pages far below it.
pub const MAX_BODY: usize = 64 << 20;

/// What to do when none was sent.
const NO_TOKEN: &str = "no token was sent, as none is known for this URL: name one with --token-file FILE or in MUSTER_TOKEN";

/// A client of one broker. Cheap to clone: clones share their connections.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    http: reqwest::Client,
    endpoint: Endpoint,
}

/// What is said in a request besides its route.
pub(crate) struct Ask<'a, B: Serialize + ?Sized> {
    pub(crate) method: Method,
    pub(crate) path: &'a [&'a str],
    pub(crate) query: &'a [(&'a str, String)],
    pub(crate) body: Option<&'a B>,
    pub(crate) extra_time: Duration,
    /// With it, the same request does the same thing once however often it is
    /// sent.
    pub(crate) key: Option<&'a Key>,
}

impl Client {
    /// Builds a client; connects nowhere yet.
    ///
    /// # Errors
    /// [`ClientError::CaFile`], [`ClientError::Setup`].
    pub fn new(endpoint: Endpoint) -> Result<Self, ClientError> {
        // Whoever else in this process installed a provider chose the same one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut headers = HeaderMap::new();
        headers.insert(
            HeaderName::from_static(DOOR_HEADER),
            HeaderValue::from_static(endpoint.door),
        );
        if let Some(token) = &endpoint.token {
            let mut value =
                HeaderValue::from_str(&format!("Bearer {}", token.expose())).map_err(|_| {
                    ClientError::Setup {
                        why: "the token holds characters that no token has; is it the right file?"
                            .into(),
                    }
                })?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("muster/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers)
            .connect_timeout(endpoint.connect_timeout)
            // A redirect would carry the token to wherever it points.
            .redirect(reqwest::redirect::Policy::none())
            .local_address(endpoint.local)
            .tcp_nodelay(true);
        if endpoint.is_loopback() {
            builder = builder.no_proxy();
        }
        builder = if endpoint.is_tls() {
            match &endpoint.ca_pem {
                Some(ca) => builder.tls_certs_only(read_ca(ca)?),
                None => builder,
            }
        } else {
            // Reading the system's certificates takes longer than a request.
            builder.tls_certs_only([])
        };
        let http = builder
            .build()
            .map_err(|e| ClientError::Setup { why: deepest(&e) })?;
        Ok(Self {
            inner: Arc::new(Inner { http, endpoint }),
        })
    }

    /// Where it speaks to.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.inner.endpoint
    }

    pub(crate) fn http(&self) -> &reqwest::Client {
        &self.inner.http
    }

    pub(crate) fn url(&self, path: &[&str]) -> Url {
        let mut url = self.inner.endpoint.url.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            // Every http URL has a path; `Endpoint::new` let no other in.
            segments.pop_if_empty().extend(path);
        }
        url
    }

    /// Sends and reads an answer with a body.
    pub(crate) async fn ask<B: Serialize + ?Sized, T: DeserializeOwned>(
        &self,
        ask: Ask<'_, B>,
    ) -> Result<T, ClientError> {
        let what = describe(&ask.method, ask.path);
        let after = self.inner.endpoint.request_timeout + ask.extra_time;
        let response = self.send(ask).await?;
        let status = response.status().as_u16();
        let body = self.read(response, &what, after).await?;
        serde_json::from_slice(&body).map_err(|e| self.garbage(&what, status, &e.to_string()))
    }

    /// Sends and expects an answer without content.
    pub(crate) async fn tell<B: Serialize + ?Sized>(
        &self,
        ask: Ask<'_, B>,
    ) -> Result<(), ClientError> {
        self.send(ask).await.map(drop)
    }

    async fn send<B: Serialize + ?Sized>(&self, ask: Ask<'_, B>) -> Result<Response, ClientError> {
        let what = describe(&ask.method, ask.path);
        let after = self.inner.endpoint.request_timeout + ask.extra_time;
        let mut request = self
            .http()
            .request(ask.method, self.url(ask.path))
            .timeout(after)
            .header(ACCEPT, "application/json, application/problem+json");
        if let Some(key) = ask.key {
            request = request.header(Key::HEADER, key.as_str());
        }
        if !ask.query.is_empty() {
            request = request.query(ask.query);
        }
        if let Some(body) = ask.body {
            request = request.json(body);
        }
        let response = request
            .send()
            .await
            .map_err(|e| self.transport(&e, &what, after))?;
        self.check(response, &what, after).await
    }

    /// Turns everything but a success into an error.
    pub(crate) async fn check(
        &self,
        response: Response,
        what: &str,
        after: Duration,
    ) -> Result<Response, ClientError> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = self.read(response, what, after).await?;
        if let Ok(readiness) = serde_json::from_slice::<Readiness>(&body) {
            return Err(ClientError::NotReady(readiness));
        }
        match serde_json::from_slice::<Problem>(&body) {
            Ok(problem)
                if problem.kind == Kind::Unauthenticated && self.inner.endpoint.token.is_none() =>
            {
                Err(ClientError::Problem(Box::new(problem.hint(NO_TOKEN))))
            }
            Ok(problem) => Err(ClientError::Problem(Box::new(problem))),
            Err(_) => {
                let text = String::from_utf8_lossy(&body);
                let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
                let why = if text.is_empty() {
                    "no content".into()
                } else {
                    printable(&text, 120)
                };
                Err(self.garbage(what, status.as_u16(), &why))
            }
        }
    }

    async fn read(
        &self,
        mut response: Response,
        what: &str,
        after: Duration,
    ) -> Result<Vec<u8>, ClientError> {
        let status = response.status().as_u16();
        let mut body = Vec::new();
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|e| self.transport(&e, what, after))?
        {
            if body.len() + chunk.len() > MAX_BODY {
                return Err(self.garbage(what, status, "the answer is larger than 64 MiB"));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    pub(crate) fn transport(
        &self,
        error: &reqwest::Error,
        what: &str,
        after: Duration,
    ) -> ClientError {
        ClientError::from_reqwest(error, self.inner.endpoint.url(), what, after)
    }

    pub(crate) fn garbage(&self, what: &str, status: u16, why: &str) -> ClientError {
        ClientError::Garbage {
            url: self.inner.endpoint.url().to_owned(),
            what: what.to_owned(),
            status,
            why: printable(why, 300),
        }
    }
}

pub(crate) fn describe(method: &Method, path: &[&str]) -> String {
    format!("{method} /{}", path.join("/"))
}

fn read_ca(source: &CaSource) -> Result<Vec<reqwest::Certificate>, ClientError> {
    let (path, pem) = match source {
        CaSource::File(path) => {
            let fail = |why: String| ClientError::CaFile {
                path: path.clone(),
                why,
            };
            (
                path.clone(),
                std::fs::read(path).map_err(|e| fail(e.to_string()))?,
            )
        }
        CaSource::Pem(pem) => ("the configuration".into(), pem.clone().into_bytes()),
    };
    let fail = |why: String| ClientError::CaFile {
        path: path.clone(),
        why,
    };
    let certs = reqwest::Certificate::from_pem_bundle(&pem).map_err(|e| fail(deepest(&e)))?;
    if certs.is_empty() {
        return Err(fail("it holds no certificate".into()));
    }
    Ok(certs)
}

fn deepest(error: &dyn std::error::Error) -> String {
    let mut last = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        last = e.to_string();
        cause = e.source();
    }
    last
}
