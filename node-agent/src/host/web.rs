//! HTTP requests that a script makes from the node.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::Duration;

use muster_protocol::envelope::Mode;
use muster_protocol::text::printable;
use muster_protocol::units::Span;
use muster_scenarios::node::{Change, HostError, HttpCall, HttpWish, Performed};
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, NoProxy, Proxy, Url};
use serde_json::{Map, Value, json};

use super::tools::{ToolError, Tools};

/// Most bytes of an answer that a script sees.
const MAX_BODY: usize = 1 << 20;
/// How long one try may take when nothing is said.
const TRY: Span = Span::from_secs(30);
/// How long a connection may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// Addresses that one request may be sent on to.
const MAX_REDIRECTS: usize = 5;
/// Most tries of `until`.
const MAX_TRIES: u32 = 10_000;

/// Why a request did not come to what was wanted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WebError {
    /// No address.
    #[error("`{url}` is not an address: {why}")]
    Url {
        /// It.
        url: String,
        /// Why not.
        why: String,
    },
    /// No header.
    #[error("`{0}` cannot be a header")]
    Header(String),
    /// A client cannot be made.
    #[error("no request can be made on this node: {0}")]
    Client(String),
    /// No answer.
    #[error("{0}")]
    Unanswered(String),
    /// An answer that says no.
    #[error("it answered {status}{said}")]
    Status {
        /// The status.
        status: u16,
        /// `": "` and the beginning of what it said, if anything.
        said: String,
    },
    /// None of the answers was the one.
    #[error("{tries} tries, and the last one: {last}")]
    NotUntil {
        /// How many.
        tries: u32,
        /// What came of the last.
        last: String,
    },
    /// The step is to end.
    #[error(transparent)]
    Tool(#[from] ToolError),
}

impl From<WebError> for HostError {
    fn from(error: WebError) -> Self {
        match error {
            WebError::Tool(ToolError::Stopped) => Self::Stopped,
            other => Self::Failed(other.to_string()),
        }
    }
}

/// Makes requests; the client is made at the first one.
#[derive(Debug, Default)]
pub struct Web {
    client: OnceLock<Client>,
}

struct Answered {
    status: u16,
    headers: Map<String, Value>,
    body: Vec<u8>,
    truncated: bool,
}

impl Web {
    /// Does it. In a dry run nothing is posted, and nothing waited for.
    ///
    /// # Errors
    /// [`WebError`].
    pub fn perform(
        &self,
        tools: &Tools,
        call: &HttpCall,
        mode: Mode,
    ) -> Result<Performed, WebError> {
        let url = parse(&call.url)?;
        let headers = headers(&call.headers)?;
        let within = call.timeout.unwrap_or(TRY).get();
        let client = self.client(tools.environment(), url.scheme() == "https")?;
        let get = || {
            let request = client.get(url.clone()).headers(headers.clone());
            ask(tools, request.timeout(within))
        };
        match &call.wish {
            HttpWish::Get => {
                let answered = get()??;
                let value = answered.well()?.value();
                Ok(Performed {
                    change: None,
                    value,
                })
            }
            HttpWish::Post { .. } if mode == Mode::Check => Ok(Performed {
                change: Some(Change::WouldChange {
                    summary: "would post".to_owned(),
                    diff: Vec::new(),
                }),
                value: nothing(),
            }),
            HttpWish::Post { body } => {
                let mut request = client.post(url.clone()).headers(headers.clone());
                request = match body {
                    Value::Null => request,
                    Value::String(text) => request.body(text.clone()),
                    other if headers.contains_key(CONTENT_TYPE) => request.body(other.to_string()),
                    other => request.json(other),
                };
                let answered = ask(tools, request.timeout(within))??.well()?;
                Ok(Performed {
                    change: Some(Change::Changed {
                        summary: format!("answered {}", answered.status),
                        diff: Vec::new(),
                    }),
                    value: answered.value(),
                })
            }
            HttpWish::Until {
                status,
                tries,
                every,
            } => {
                let tries = if mode == Mode::Check {
                    1
                } else {
                    (*tries).clamp(1, MAX_TRIES)
                };
                let mut last = String::new();
                for n in 0..tries {
                    if n > 0 {
                        tools.wait(async { tokio::time::sleep(every.get()).await })?;
                    }
                    match get()? {
                        Ok(answered) if answered.status == *status => {
                            return Ok(Performed {
                                change: None,
                                value: answered.value(),
                            });
                        }
                        Ok(answered) => last = answered.refusal().to_string(),
                        Err(e) => last = e.to_string(),
                    }
                }
                if mode == Mode::Check {
                    // It may well be what the step would have brought about.
                    return Ok(Performed {
                        change: None,
                        value: nothing(),
                    });
                }
                Err(WebError::NotUntil { tries, last })
            }
        }
    }

    fn client(
        &self,
        environment: &BTreeMap<String, String>,
        tls: bool,
    ) -> Result<&Client, WebError> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let client = match build(environment, true) {
            // A small container has no authorities, and needs none to ask
            // itself how it is.
            Err(_) if !tls => build(environment, false)?,
            other => other?,
        };
        Ok(self.client.get_or_init(|| client))
    }
}

/// A client that trusts whom the system trusts, or nobody.
fn build(environment: &BTreeMap<String, String>, tls: bool) -> Result<Client, WebError> {
    let wrong = |e: &dyn std::fmt::Display| WebError::Client(printable(&e.to_string(), 300));
    let mut builder = Client::builder()
        .connect_timeout(CONNECT_WITHIN)
        .redirect(reqwest::redirect::Policy::limited(MAX_REDIRECTS))
        .user_agent(concat!("muster-agent/", env!("CARGO_PKG_VERSION")))
        // Only what the node's own configuration says.
        .no_proxy();
    let said = |name: &str| {
        let upper = name.to_ascii_uppercase();
        environment.get(name).or_else(|| environment.get(&upper))
    };
    let except = said("no_proxy").and_then(|text| NoProxy::from_string(text));
    let proxies = [
        said("http_proxy").map(Proxy::http),
        said("https_proxy").map(Proxy::https),
    ];
    for proxy in proxies.into_iter().flatten() {
        let proxy = proxy.map_err(|e| wrong(&e))?;
        builder = builder.proxy(proxy.no_proxy(except.clone()));
    }
    if !tls {
        builder = builder.tls_certs_only([]);
    }
    builder.build().map_err(|e| wrong(&e))
}

impl Answered {
    /// Itself, unless the status says that something is wrong.
    fn well(self) -> Result<Self, WebError> {
        if self.status < 400 {
            return Ok(self);
        }
        Err(self.refusal())
    }

    fn refusal(&self) -> WebError {
        let text = String::from_utf8_lossy(&self.body);
        let line = text.lines().find(|line| !line.trim().is_empty());
        WebError::Status {
            status: self.status,
            said: line.map_or(String::new(), |line| {
                format!(": {}", printable(line.trim(), 200))
            }),
        }
    }

    fn value(&self) -> Value {
        let json = self
            .headers
            .get("content-type")
            .and_then(Value::as_str)
            .filter(|kind| kind.contains("json") && !self.truncated)
            .and_then(|_| serde_json::from_slice(&self.body).ok())
            .unwrap_or(Value::Null);
        json!({
            "status": self.status,
            "headers": self.headers,
            "body": String::from_utf8_lossy(&self.body),
            "json": json,
            "truncated": self.truncated,
        })
    }
}

/// What a script sees of an answer that there is not.
fn nothing() -> Value {
    json!({"status": 0, "headers": {}, "body": "", "json": null, "truncated": false})
}

/// The outer error ends the step; the inner one is that of this try.
#[allow(clippy::type_complexity)]
fn ask(
    tools: &Tools,
    request: reqwest::RequestBuilder,
) -> Result<Result<Answered, WebError>, ToolError> {
    tools.wait(Box::pin(async {
        let unanswered = |e: reqwest::Error| WebError::Unanswered(chain(e));
        let mut answer = request.send().await.map_err(unanswered)?;
        let headers = answer
            .headers()
            .iter()
            .filter_map(|(name, value)| {
                let value = value.to_str().ok()?;
                Some((name.as_str().to_owned(), Value::from(value)))
            })
            .collect();
        let status = answer.status().as_u16();
        let mut body = Vec::new();
        let mut truncated = false;
        while let Some(chunk) = answer.chunk().await.map_err(unanswered)? {
            let room = (MAX_BODY - body.len()).min(chunk.len());
            body.extend_from_slice(&chunk[..room]);
            if room < chunk.len() {
                // The rest is not even fetched.
                truncated = true;
                break;
            }
        }
        Ok(Answered {
            status,
            headers,
            body,
            truncated,
        })
    }))
}

fn parse(text: &str) -> Result<Url, WebError> {
    let wrong = |why: &str| WebError::Url {
        url: printable(text, 120),
        why: why.to_owned(),
    };
    let url = Url::parse(text).map_err(|e| wrong(&e.to_string()))?;
    match url.scheme() {
        "http" | "https" => Ok(url),
        _ => Err(wrong("it must begin with http:// or https://")),
    }
}

fn headers(all: &BTreeMap<String, String>) -> Result<HeaderMap, WebError> {
    let mut map = HeaderMap::new();
    for (name, value) in all {
        // The value may be a secret.
        let wrong = || WebError::Header(printable(name, 60));
        let key: HeaderName = name.parse().map_err(|_| wrong())?;
        let mut value: HeaderValue = value.parse().map_err(|_| wrong())?;
        value.set_sensitive(true);
        map.insert(key, value);
    }
    Ok(map)
}

/// What went wrong, down to its cause; without the address, which the caller
/// says anyhow, and which may hold a password.
fn chain(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    printable(&text, 300)
}

#[cfg(test)]
mod tests;
