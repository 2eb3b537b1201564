//! Builds: how they ended last, and those that somebody asks for in chat.
//!
//! A CI system knows no request ids, so a request is sent once at most: it is
//! written down before, and what is not known of it is said and never tried
//! again.

pub mod declared;
pub mod results;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use muster_protocol::api::{ChatPlace, ClusterEvent, Say, Tone, Urgency};
use muster_protocol::names::{BuildName, PrincipalName};
use muster_protocol::text::printable;
use muster_protocol::units::{Timestamp, elapsed};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use self::declared::Build;
use super::sentences::builds::finished;
use super::spoken::id_of;
use crate::hooks::Held;
use crate::lease::Lease;
use crate::store::kv::{Kv, KvError};

/// What keys of requests begin with.
const PREFIX: &str = "build.";
/// How long the end of a build is waited for.
const WITHIN: Duration = Duration::from_secs(86_400);
/// Most that are waited for.
const MOST: usize = 200;
/// Longest reason that is said, in characters.
const MAX_WHY: usize = 200;

/// How far a request is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    /// It is about to be sent, or was, by a broker that did not come further.
    Intent,
    /// The other side took it.
    Taken,
    /// Nobody knows.
    Unknown,
}

/// Which build it became.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
struct Became {
    repository: Option<String>,
    name: Option<String>,
    number: String,
}

impl Became {
    fn of(event: &ClusterEvent) -> Option<Self> {
        let word = |name: &str| {
            let text = event.fields.get(name).and_then(|value| value.as_str());
            text.map(|text| printable(text, 120))
        };
        Some(Self {
            repository: word("repository"),
            name: word("name"),
            number: word("number")?,
        })
    }
}

/// A build that somebody asked for.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Asked {
    id: String,
    name: BuildName,
    params: BTreeMap<String, String>,
    by: PrincipalName,
    place: ChatPlace,
    at: Timestamp,
    state: State,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    became: Option<Became>,
}

/// What somebody asks for.
#[derive(Clone, Debug)]
pub struct Request {
    /// Which build.
    pub name: BuildName,
    /// What is said of its parameters.
    pub params: BTreeMap<String, String>,
    /// Who.
    pub by: PrincipalName,
    /// Where they wrote it, and are told.
    pub place: ChatPlace,
    /// Which line it was: the same line asks once.
    pub line: String,
}

/// Why a build is not asked for.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// No such build.
    #[error("there is no build `{name}`; {there}")]
    Unknown {
        /// The name.
        name: BuildName,
        /// Which there are.
        there: String,
    },
    /// A parameter.
    #[error("build {name}: {why}")]
    Params {
        /// Which build.
        name: BuildName,
        /// What is wrong.
        why: String,
    },
    /// The CI system said no, or is not there: nothing was begun.
    #[error("build {name} was not begun: {why}")]
    Refused {
        /// Which build.
        name: BuildName,
        /// Why.
        why: String,
    },
    /// Too many.
    #[error("the ends of {MOST} builds are waited for already; try again when some have ended")]
    TooMany,
    /// Another broker is active.
    #[error("this broker is not the active one now; nothing was begun; try again in a few seconds")]
    NotActive,
    /// The store.
    #[error("nothing was begun, because it cannot be written down first: {0}")]
    Store(#[from] KvError),
}

/// What came of one try.
enum Sent {
    Taken,
    Refused(String),
    Unknown(String),
}

/// Something that is to be said about a build that was asked for.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Heard {
    pub(super) place: ChatPlace,
    pub(super) say: Say,
    pub(super) id: String,
}

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Builds(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    bucket: Kv<Asked>,
    lease: Lease,
    held: Held,
    waiting: Mutex<BTreeMap<String, Asked>>,
}

fn key(id: &str) -> String {
    format!("{PREFIX}{id}")
}

impl Builds {
    /// Reads which ends are waited for.
    ///
    /// # Errors
    /// [`KvError`].
    pub async fn open(bucket: Kv<Asked>, lease: Lease, held: Held) -> Result<Self, KvError> {
        let mut waiting = BTreeMap::new();
        for key in bucket.keys().await? {
            if let Some(id) = key.strip_prefix(PREFIX)
                && let Some(entry) = bucket.get(&key).await?
            {
                waiting.insert(id.to_owned(), entry.value);
            }
        }
        Ok(Self(Arc::new(Inner {
            bucket,
            lease,
            held,
            waiting: Mutex::new(waiting),
        })))
    }

    /// Those that can be asked for, with their parameters.
    #[must_use]
    pub fn list(&self) -> BTreeMap<BuildName, Build> {
        self.0.held.get().builds.clone()
    }

    /// Asks for a build, once; its end is told to whoever asked.
    ///
    /// # Errors
    /// [`BuildError`]: nothing was begun.
    pub async fn start(&self, request: Request) -> Result<Say, BuildError> {
        let Request {
            name,
            params,
            by,
            place,
            line,
        } = request;
        let declared = self.0.held.get();
        let Some(build) = declared.builds.get(&name) else {
            let names: Vec<&str> = declared.builds.keys().map(BuildName::as_str).collect();
            let there = match names.as_slice() {
                [] => "none is declared".to_owned(),
                names => format!("there are: {}", names.join(", ")),
            };
            return Err(BuildError::Unknown { name, there });
        };
        let params = build.with(params).map_err(|why| BuildError::Params {
            name: name.clone(),
            why,
        })?;
        let mut id = id_of(&["build", place.network.as_str(), &line]);
        id.truncate(16);
        let asked = Asked {
            id: id.clone(),
            name: name.clone(),
            params,
            by,
            place,
            at: Timestamp::now(),
            state: State::Intent,
            became: None,
        };
        let refused = |why| BuildError::Refused {
            name: name.clone(),
            why,
        };
        let client = client(build).map_err(refused)?;
        let request = build.request(&client, &id, asked.by.as_str(), &asked.params);
        let request = request.map_err(refused)?;
        {
            let mut waiting = self.0.waiting.lock().await;
            if waiting.contains_key(&id) {
                return Ok(said(&asked, "was asked for before", Tone::Plain));
            }
            if waiting.len() >= MOST {
                return Err(BuildError::TooMany);
            }
            if self.0.lease.epoch().is_none() {
                return Err(BuildError::NotActive);
            }
            // Before it is sent: whoever finds it knows that it may have been.
            match self.0.bucket.create(&key(&id), &asked).await {
                Ok(_) => {}
                Err(KvError::Conflict { .. }) => {
                    return Ok(said(&asked, "was asked for before", Tone::Plain));
                }
                Err(error) => return Err(error.into()),
            }
            waiting.insert(id.clone(), asked.clone());
        }
        // Also when whoever asked goes away meanwhile.
        let this = self.clone();
        let sending = tokio::spawn(async move {
            muster_checkpoint::at("broker.build.intent", || id.clone()).await;
            if this.0.lease.epoch().is_none() {
                this.end(&id).await;
                return Err(BuildError::NotActive);
            }
            let sent = send(&client, request).await;
            muster_checkpoint::at("broker.build.sent", || id.clone()).await;
            match sent {
                Sent::Taken => {
                    this.settle(&id, State::Taken).await;
                    Ok(said(&asked, "is asked for", Tone::Plain))
                }
                Sent::Unknown(why) => {
                    this.settle(&id, State::Unknown).await;
                    Ok(unknown(&asked, &why))
                }
                Sent::Refused(why) => {
                    this.end(&id).await;
                    Err(BuildError::Refused {
                        name: asked.name,
                        why,
                    })
                }
            }
        });
        sending.await.unwrap_or_else(|error| {
            Err(BuildError::Refused {
                name,
                why: format!("the broker failed: {error}"),
            })
        })
    }

    /// Notes how far a request is. One that cannot be noted stays an intent:
    /// the next broker says that nobody knows.
    async fn settle(&self, id: &str, state: State) {
        let mut waiting = self.0.waiting.lock().await;
        if let Some(asked) = waiting.get_mut(id) {
            asked.state = state;
            self.store(asked).await;
        }
    }

    async fn store(&self, asked: &Asked) {
        if self.0.lease.epoch().is_none() {
            return;
        }
        if let Err(error) = self.0.bucket.put(&key(&asked.id), asked).await {
            tracing::warn!(id = asked.id, %error, "how far a build is cannot be stored");
        }
    }

    /// Nothing more is waited for.
    pub(super) async fn end(&self, id: &str) {
        let mut waiting = self.0.waiting.lock().await;
        waiting.remove(id);
        if self.0.lease.epoch().is_some()
            && let Err(error) = self.0.bucket.forget(&key(id)).await
        {
            tracing::warn!(id, %error, "a build that has ended cannot be forgotten");
        }
    }

    /// What the broker before was about to send: nobody knows whether it did.
    pub(super) async fn orphans(&self) -> Vec<Heard> {
        let mut waiting = self.0.waiting.lock().await;
        let mut heard = Vec::new();
        for asked in waiting.values_mut().filter(|a| a.state == State::Intent) {
            asked.state = State::Unknown;
            heard.push(Heard {
                place: asked.place.clone(),
                say: unknown(asked, "the broker ended while it was sent"),
                id: asked.id.clone(),
            });
        }
        heard
    }

    /// The same was said.
    pub(super) async fn orphan_was_told(&self, id: &str) {
        self.settle(id, State::Unknown).await;
    }

    /// What an event says of builds that were asked for; whoever tells it
    /// calls [`Builds::end`] behind that.
    pub(super) async fn take(&self, event: &ClusterEvent) -> Vec<Heard> {
        if !matches!(
            event.kind.as_str(),
            "build.queued" | "build.started" | "build.finished"
        ) {
            return Vec::new();
        }
        let declared = self.0.held.get();
        let mut waiting = self.0.waiting.lock().await;
        if waiting.is_empty() {
            return Vec::new();
        }
        let late: Vec<String> = waiting
            .values()
            .filter(|asked| elapsed(asked.at, Timestamp::now()) > WITHIN)
            .map(|asked| asked.id.clone())
            .collect();
        for id in late {
            waiting.remove(&id);
            if self.0.lease.epoch().is_some() {
                let _ = self.0.bucket.forget(&key(&id)).await;
            }
        }
        let became = Became::of(event);
        // Of most products it is the only thing that says for sure which one
        // it is.
        let whole = serde_json::to_string(&event.fields).unwrap_or_default();
        let named = waiting.values().find(|asked| whole.contains(&asked.id));
        let known = || {
            let is = |asked: &&Asked| asked.became.is_some() && asked.became == became;
            waiting.values().find(is)
        };
        let fitting = || {
            // The one that was asked for first.
            let fits = |asked: &&Asked| {
                asked.became.is_none()
                    && asked.at <= event.at
                    && declared
                        .builds
                        .get(&asked.name)
                        .is_some_and(|build| build.fits(event, &asked.params))
            };
            waiting.values().filter(fits).min_by_key(|asked| asked.at)
        };
        let Some(id) = named.or_else(known).or_else(fitting).map(|a| a.id.clone()) else {
            return Vec::new();
        };
        let Some(asked) = waiting.get_mut(&id) else {
            return Vec::new();
        };
        if event.kind != "build.finished" {
            if asked.became.is_none() && became.is_some() {
                asked.became = became;
                self.store(asked).await;
            }
            return Vec::new();
        }
        finished(event, None, true)
            .map(|say| Heard {
                place: asked.place.clone(),
                say,
                id,
            })
            .into_iter()
            .collect()
    }
}

fn said(asked: &Asked, how: &str, tone: Tone) -> Say {
    let params: Vec<String> = asked
        .params
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let params = match params.join(" ") {
        params if params.is_empty() => params,
        params => format!(" ({params})"),
    };
    Say {
        urgency: Urgency::Reply,
        tone,
        about: None,
        lines: vec![printable(
            &format!("build {}{params} {how}; its end is told here", asked.name),
            400,
        )],
        link: None,
    }
}

fn unknown(asked: &Asked, why: &str) -> Say {
    let how = format!("may have been asked for or not: {why}. Look there before you ask again");
    said(asked, &how, Tone::Warn)
}

fn client(build: &Build) -> Result<reqwest::Client, String> {
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("muster/", env!("CARGO_PKG_VERSION")))
        .timeout(build.timeout)
        .connect_timeout(build.timeout)
        // A token for one place is not for another one.
        .redirect(reqwest::redirect::Policy::none())
        // Nothing is ever tried again behind our back.
        .retry(reqwest::retry::never())
        .pool_max_idle_per_host(0);
    if let Some(pem) = &build.ca {
        let certs = reqwest::Certificate::from_pem_bundle(pem.as_bytes())
            .map_err(|e| format!("`ca_file`: {e}"))?;
        builder = builder.tls_certs_only(certs);
    }
    builder.build().map_err(|e| e.to_string())
}

async fn send(client: &reqwest::Client, request: reqwest::Request) -> Sent {
    let error = match client.execute(request).await {
        Ok(response) => {
            let status = response.status();
            return if status.is_success() {
                Sent::Taken
            } else if status.is_server_error() || status.as_u16() == 408 {
                Sent::Unknown(format!("the CI system answered {status}"))
            } else {
                Sent::Refused(format!("the CI system answered {status}"))
            };
        }
        Err(error) => error.without_url(),
    };
    let (mut why, mut cause) = (error.to_string(), std::error::Error::source(&error));
    while let Some(inner) = cause {
        why = inner.to_string();
        cause = inner.source();
    }
    let why = printable(&why, MAX_WHY);
    if error.is_connect() || error.is_builder() {
        Sent::Refused(format!("the CI system cannot be reached: {why}"))
    } else {
        Sent::Unknown(why)
    }
}
