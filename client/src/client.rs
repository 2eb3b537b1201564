//! The client itself: one connection pool, and the ways to ask.

use std::sync::Arc;
use std::time::Duration;

use muster_protocol::api::{DOOR_HEADER, Readiness};
use muster_protocol::problem::{Kind, Problem};
use muster_protocol::text::printable;
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::brokers::{Brokers, MOST_CHANGES, Manner, TAKEOVER, Target};
use crate::endpoint::{CaSource, Endpoint};
use crate::error::ClientError;
use crate::once::Key;

/// Most bytes of an answer that is read; a longer one is refused. Twenty
/// thousand nodes with their facts come in pages far below it.
pub const MAX_BODY: usize = 64 << 20;

/// What to do when none was sent.
const NO_TOKEN: &str = "no token was sent, as none is known for this URL: name one with --token-file FILE or in MUSTER_TOKEN";

/// A client of one cluster. Cheap to clone: clones share their connections.
///
/// With the URLs of several brokers it speaks to the active one, and changes
/// over when another one takes over: at once for a request of which nothing
/// was done, and for one that can be repeated without harm.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    brokers: Brokers,
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

impl<'a, B: Serialize + ?Sized> Ask<'a, B> {
    /// A request in the time that every one may take.
    pub(crate) fn plain(method: Method, path: &'a [&'a str], body: Option<&'a B>) -> Self {
        Self {
            method,
            path,
            query: &[],
            body,
            extra_time: Duration::ZERO,
            key: None,
        }
    }

    /// What it is, for errors.
    pub(crate) fn what(&self) -> String {
        describe(&self.method, self.path)
    }

    /// Whether doing it twice does no harm.
    fn is_repeatable(&self) -> bool {
        self.method.is_safe() || self.key.is_some()
    }
}

impl Client {
    /// Builds a client; connects nowhere yet.
    ///
    /// # Errors
    /// [`ClientError::CaFile`], [`ClientError::Setup`].
    pub fn new(endpoint: Endpoint) -> Result<Self, ClientError> {
        let first = connections(&endpoint, Manner::of(endpoint.first()))?;
        let brokers = Brokers::new(&endpoint, first);
        Ok(Self {
            inner: Arc::new(Inner { brokers, endpoint }),
        })
    }

    /// Where it speaks to.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.inner.endpoint
    }

    /// The brokers that it knows.
    pub(crate) fn brokers(&self) -> &Brokers {
        &self.inner.brokers
    }

    /// The broker to ask, looked for within `patience` when it is not known.
    ///
    /// # Errors
    /// When there are several and none is active.
    pub(crate) async fn target(&self, patience: Duration) -> Result<Target, ClientError> {
        let inner = &self.inner;
        inner.brokers.active(&inner.endpoint, patience).await
    }

    /// Sends and reads an answer with a body.
    pub(crate) async fn ask<B: Serialize + ?Sized, T: DeserializeOwned>(
        &self,
        ask: Ask<'_, B>,
    ) -> Result<T, ClientError> {
        self.ask_for(&ask).await
    }

    /// The same, of what may be asked again.
    pub(crate) async fn ask_for<B: Serialize + ?Sized, T: DeserializeOwned>(
        &self,
        ask: &Ask<'_, B>,
    ) -> Result<T, ClientError> {
        let mut changes = 0;
        loop {
            let target = self.target(TAKEOVER).await?;
            let error = match self.ask_at(&target, ask).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            self.may_repeat(&target, ask, &mut changes, error)?;
        }
    }

    /// Reads a page that is text, whichever broker gives it.
    pub(crate) async fn text(&self, path: &str) -> Result<String, ClientError> {
        let path = [path];
        let ask = Ask::<()> {
            method: Method::GET,
            path: &path,
            query: &[],
            body: None,
            extra_time: Duration::ZERO,
            key: None,
        };
        let target = self.target(TAKEOVER).await?;
        let what = describe(&ask.method, ask.path);
        let after = self.inner.endpoint.request_timeout;
        let response = self.send(&target, &ask).await?;
        let status = response.status().as_u16();
        let body = body(response, &target, &what, after).await?;
        String::from_utf8(body).map_err(|e| garbage(&target, &what, status, &e.to_string()))
    }

    /// Sends and expects an answer without content.
    pub(crate) async fn tell<B: Serialize + ?Sized>(
        &self,
        ask: Ask<'_, B>,
    ) -> Result<(), ClientError> {
        let mut changes = 0;
        loop {
            let target = self.target(TAKEOVER).await?;
            let error = match self.send(&target, &ask).await {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            self.may_repeat(&target, &ask, &mut changes, error)?;
        }
    }

    /// Gives the error back when another broker is not to be asked.
    fn may_repeat<B: Serialize + ?Sized>(
        &self,
        target: &Target,
        ask: &Ask<'_, B>,
        changes: &mut usize,
        error: ClientError,
    ) -> Result<(), ClientError> {
        *changes += 1;
        if *changes <= MOST_CHANGES
            && self
                .brokers()
                .elsewhere(target, &error, ask.is_repeatable())
        {
            Ok(())
        } else {
            Err(error)
        }
    }

    async fn ask_at<B: Serialize + ?Sized, T: DeserializeOwned>(
        &self,
        target: &Target,
        ask: &Ask<'_, B>,
    ) -> Result<T, ClientError> {
        let what = describe(&ask.method, ask.path);
        let after = self.inner.endpoint.request_timeout + ask.extra_time;
        let response = self.send(target, ask).await?;
        let status = response.status().as_u16();
        let body = body(response, target, &what, after).await?;
        serde_json::from_slice(&body).map_err(|e| garbage(target, &what, status, &e.to_string()))
    }

    async fn send<B: Serialize + ?Sized>(
        &self,
        target: &Target,
        ask: &Ask<'_, B>,
    ) -> Result<Response, ClientError> {
        let what = describe(&ask.method, ask.path);
        let after = self.inner.endpoint.request_timeout + ask.extra_time;
        let mut request = target
            .http
            .request(ask.method.clone(), target.at(ask.path))
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
            .map_err(|e| transport(target, &e, &what, after))?;
        match check(response, target, &what, after).await {
            Err(ClientError::Problem(problem))
                if problem.kind == Kind::Unauthenticated && self.inner.endpoint.token.is_none() =>
            {
                Err(ClientError::Problem(Box::new(problem.hint(NO_TOKEN))))
            }
            result => result,
        }
    }
}

/// Turns everything but a success into an error.
pub(crate) async fn check(
    response: Response,
    target: &Target,
    what: &str,
    after: Duration,
) -> Result<Response, ClientError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let body = body(response, target, what, after).await?;
    if let Ok(readiness) = serde_json::from_slice::<Readiness>(&body) {
        return Err(ClientError::NotReady(readiness));
    }
    match serde_json::from_slice::<Problem>(&body) {
        Ok(problem) => Err(ClientError::Problem(Box::new(problem))),
        Err(_) => {
            let text = String::from_utf8_lossy(&body);
            let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
            let why = if text.is_empty() {
                "no content".into()
            } else {
                printable(&text, 120)
            };
            Err(garbage(target, what, status.as_u16(), &why))
        }
    }
}

/// Reads an answer to its end.
pub(crate) async fn body(
    mut response: Response,
    target: &Target,
    what: &str,
    after: Duration,
) -> Result<Vec<u8>, ClientError> {
    let status = response.status().as_u16();
    let mut body = Vec::new();
    while let Some(chunk) = response
        .chunk()
        .await
        .map_err(|e| transport(target, &e, what, after))?
    {
        if body.len() + chunk.len() > MAX_BODY {
            return Err(garbage(
                target,
                what,
                status,
                "the answer is larger than 64 MiB",
            ));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

pub(crate) fn transport(
    target: &Target,
    error: &reqwest::Error,
    what: &str,
    after: Duration,
) -> ClientError {
    ClientError::from_reqwest(error, target.name(), what, after)
}

pub(crate) fn garbage(target: &Target, what: &str, status: u16, why: &str) -> ClientError {
    ClientError::Garbage {
        url: target.name().to_owned(),
        what: what.to_owned(),
        status,
        why: printable(why, 300),
    }
}

/// The connections to brokers of that manner.
pub(crate) fn connections(
    endpoint: &Endpoint,
    manner: Manner,
) -> Result<reqwest::Client, ClientError> {
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
    if manner.loopback {
        builder = builder.no_proxy();
    }
    builder = if manner.tls {
        match &endpoint.ca_pem {
            Some(ca) => builder.tls_certs_only(read_ca(ca)?),
            None => builder,
        }
    } else {
        // Reading the system's certificates takes longer than a request.
        builder.tls_certs_only([])
    };
    builder
        .build()
        .map_err(|e| ClientError::Setup { why: deepest(&e) })
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
