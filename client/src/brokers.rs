//! Several brokers of one cluster: which one is spoken to, and when another.
//!
//! Only one broker of a cluster is active. With several URLs the client asks
//! all of them where they are before its first request, takes the one that
//! says that it is active, and stays with it until something goes wrong. A
//! broker that stands by names the active one; that is followed, too.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use muster_protocol::api::Readiness;
use muster_protocol::problem::Kind;
use reqwest::Url;
use tokio::time::{Instant, sleep, timeout};

use crate::endpoint::Endpoint;
use crate::error::ClientError;

/// How long one broker may take to say where it is.
const SAYS_WITHIN: Duration = Duration::from_secs(2);
/// How long a request waits for a broker to become active, when at least one
/// is there: a takeover takes less.
pub(crate) const TAKEOVER: Duration = Duration::from_secs(15);
/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// Most brokers that are known at a time, the named ones included.
const MOST: usize = 16;
/// Most times that one request goes to another broker.
pub(crate) const MOST_CHANGES: usize = 4;

/// One broker, with the connections that fit it.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// Its base URL, with a slash at the end.
    pub(crate) url: Url,
    /// Connections.
    pub(crate) http: reqwest::Client,
}

impl Target {
    pub(crate) fn at(&self, path: &[&str]) -> Url {
        let mut url = self.url.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            // Every http URL has a path; `Endpoint::new` let no other in.
            segments.pop_if_empty().extend(path);
        }
        url
    }

    /// For people.
    pub(crate) fn name(&self) -> &str {
        self.url.as_str().trim_end_matches('/')
    }
}

/// How the connections to a URL are made: those alike share theirs.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Manner {
    pub(crate) tls: bool,
    pub(crate) loopback: bool,
}

impl Manner {
    pub(crate) fn of(url: &Url) -> Self {
        Self {
            tls: url.scheme() == "https",
            loopback: crate::endpoint::is_loopback(url),
        }
    }
}

/// The brokers that are known.
#[derive(Debug)]
pub(crate) struct Brokers {
    known: Mutex<Known>,
    connections: Mutex<HashMap<Manner, reqwest::Client>>,
}

#[derive(Debug)]
struct Known {
    urls: Vec<Url>,
    /// Index of the one that is spoken to.
    current: usize,
    /// It has said that it is active, or it is the only one.
    chosen: bool,
}

impl Brokers {
    pub(crate) fn new(endpoint: &Endpoint, first: reqwest::Client) -> Self {
        let urls = endpoint.urls.clone();
        let chosen = urls.len() < 2;
        let manner = Manner::of(endpoint.first());
        Self {
            known: Mutex::new(Known {
                urls,
                current: 0,
                chosen,
            }),
            connections: Mutex::new(HashMap::from([(manner, first)])),
        }
    }

    /// Whether there is a choice.
    pub(crate) fn several(&self) -> bool {
        self.known().urls.len() > 1
    }

    /// The one that is spoken to, as things are.
    pub(crate) fn current(&self, endpoint: &Endpoint) -> Result<Target, ClientError> {
        let url = {
            let known = self.known();
            known.urls[known.current].clone()
        };
        self.target(endpoint, url)
    }

    fn target(&self, endpoint: &Endpoint, url: Url) -> Result<Target, ClientError> {
        let manner = Manner::of(&url);
        let mut connections = lock(&self.connections);
        let http = match connections.get(&manner) {
            Some(http) => http.clone(),
            None => {
                let http = crate::client::connections(endpoint, manner)?;
                connections.insert(manner, http.clone());
                http
            }
        };
        Ok(Target { url, http })
    }

    /// The one to ask: the active one, looked for within `patience` when it
    /// is not known. Without any patience the look is a single one.
    ///
    /// # Errors
    /// What the brokers said, when none is active.
    pub(crate) async fn active(
        &self,
        endpoint: &Endpoint,
        patience: Duration,
    ) -> Result<Target, ClientError> {
        if self.known().chosen {
            return self.current(endpoint);
        }
        let end = Instant::now() + patience;
        loop {
            let looked = self.look(endpoint).await?;
            match looked {
                Looked::Active => return self.current(endpoint),
                // None is there at all: nobody will take over.
                Looked::Nobody(error) => return Err(error),
                Looked::Waiting(error) if Instant::now() >= end => return Err(error),
                Looked::Waiting(_) => sleep(LOOK_AGAIN).await,
            }
        }
    }

    /// Asks every broker where it is. The first that says that it is active
    /// is chosen.
    async fn look(&self, endpoint: &Endpoint) -> Result<Looked, ClientError> {
        let urls = self.known().urls.clone();
        let mut asked = FuturesUnordered::new();
        for (index, url) in urls.into_iter().enumerate() {
            let target = self.target(endpoint, url)?;
            asked.push(async move { (index, target.clone(), readiness(&target).await) });
        }
        let mut there: Option<ClientError> = None;
        let mut nobody: Vec<ClientError> = Vec::new();
        while let Some((index, target, said)) = asked.next().await {
            match said {
                Ok(Readiness::Active { .. }) => {
                    let mut known = self.known();
                    if known.urls.get(index) == Some(&target.url) {
                        known.current = index;
                        known.chosen = true;
                        return Ok(Looked::Active);
                    }
                }
                Ok(other) => {
                    if let Readiness::Standby {
                        active: Some(active),
                        ..
                    } = &other
                    {
                        self.learn(&target.url, active);
                    }
                    there = Some(ClientError::NotReady(other));
                }
                Err(error) => nobody.push(error),
            }
        }
        if let Some(error) = there {
            return Ok(Looked::Waiting(error));
        }
        // One that hangs says more than one that is not there.
        let slow = nobody
            .iter()
            .position(|error| !matches!(error, ClientError::Refused { .. }));
        let error = match slow {
            Some(index) => nobody.swap_remove(index),
            None => ClientError::Refused {
                url: endpoint.urls_text(),
            },
        };
        Ok(Looked::Nobody(error))
    }

    /// Takes up a broker that another one has named, where that is safe: the
    /// token is never sent in the clear because of it, nor to whatever listens
    /// on this machine.
    fn learn(&self, from: &Url, named: &str) -> bool {
        let Ok(endpoint) = Endpoint::new(named) else {
            return false;
        };
        let url = endpoint.first().clone();
        let (was, is) = (Manner::of(from), Manner::of(&url));
        if (was.tls && !is.tls) || (is.loopback && !was.loopback) {
            return false;
        }
        let mut known = self.known();
        if !known.urls.contains(&url) {
            if known.urls.len() >= MOST {
                return false;
            }
            known.urls.push(url);
        }
        true
    }

    /// What went wrong with a request to `target`: whether it can go to
    /// another broker. `repeatable`: doing it twice does no harm.
    pub(crate) fn elsewhere(&self, target: &Target, error: &ClientError, repeatable: bool) -> bool {
        let named = match error {
            ClientError::Problem(problem) if problem.not_active => problem.active.as_deref(),
            _ => None,
        };
        let followed = named.is_some_and(|named| self.learn(&target.url, named));
        if !followed && !self.several() {
            return false;
        }
        let undone = match error {
            // Nothing was done with it.
            ClientError::Problem(problem) if problem.not_active => true,
            ClientError::NotReady(_)
            | ClientError::Refused { .. }
            | ClientError::Connect { .. }
            | ClientError::Scheme { .. }
            | ClientError::Tls { .. } => true,
            // It is not known what was done.
            ClientError::Problem(problem) => {
                repeatable && matches!(problem.kind, Kind::Unavailable | Kind::Internal)
            }
            other => repeatable && other.is_passing(),
        };
        if undone {
            self.doubt(target);
        }
        undone
    }

    /// The one that was spoken to may not be the active one any more.
    pub(crate) fn doubt(&self, target: &Target) {
        let mut known = self.known();
        if known.urls.len() > 1 && known.urls.get(known.current) == Some(&target.url) {
            known.chosen = false;
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        lock(&self.known)
    }
}

enum Looked {
    Active,
    /// At least one is there, and none is active.
    Waiting(ClientError),
    /// None answers.
    Nobody(ClientError),
}

/// Where a broker says that it is.
async fn readiness(target: &Target) -> Result<Readiness, ClientError> {
    let what = "GET /readyz";
    let ask = async {
        let response = target
            .http
            .get(target.at(&["readyz"]))
            .send()
            .await
            .map_err(|e| ClientError::from_reqwest(&e, target.name(), what, SAYS_WITHIN))?;
        let status = response.status().as_u16();
        let body = crate::client::body(response, target, what, SAYS_WITHIN).await?;
        serde_json::from_slice(&body).map_err(|e| ClientError::Garbage {
            url: target.name().to_owned(),
            what: what.to_owned(),
            status,
            why: muster_protocol::text::printable(&e.to_string(), 300),
        })
    };
    timeout(SAYS_WITHIN, ask).await.unwrap_or_else(|_| {
        Err(ClientError::Timeout {
            url: target.name().to_owned(),
            what: what.to_owned(),
            after: SAYS_WITHIN,
        })
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn brokers(urls: &str) -> Brokers {
        let endpoint = Endpoint::new(urls).expect("urls");
        Brokers::new(&endpoint, reqwest::Client::new())
    }

    #[test]
    fn a_named_broker_is_followed_only_where_the_token_may_go() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        for (from, named, may) in [
            ("https://a.example", "https://b.example:7878", true),
            ("https://a.example", "http://b.example:7878", false),
            ("https://a.example", "https://127.0.0.1:7878", false),
            ("http://127.0.0.1:1", "http://127.0.0.1:2", true),
            ("http://127.0.0.1:1", "https://b.example", true),
            ("https://a.example", "ftp://b.example", false),
            ("https://a.example", "https://u:p@b.example", false),
            ("https://a.example", "", false),
        ] {
            let brokers = brokers(from);
            let from = Endpoint::new(from).expect("url").first().clone();
            assert_eq!(brokers.learn(&from, named), may, "{from} {named}");
            assert_eq!(brokers.several(), may);
        }
    }

    #[test]
    fn what_may_have_been_done_is_not_done_again_elsewhere() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let urls = "http://127.0.0.1:1,http://127.0.0.1:2";
        let endpoint = Endpoint::new(urls).expect("urls");
        let brokers = brokers(urls);
        let target = brokers.current(&endpoint).expect("target");
        let lost = ClientError::Lost {
            url: "x".into(),
            what: "x".into(),
            why: "x".into(),
        };
        assert!(!brokers.elsewhere(&target, &lost, false));
        assert!(brokers.elsewhere(&target, &lost, true));
        let refused = ClientError::Refused { url: "x".into() };
        assert!(brokers.elsewhere(&target, &refused, false));
        let problem = |not_active| {
            let mut problem = muster_protocol::problem::Problem::new(Kind::Unavailable, "standby");
            problem.not_active = not_active;
            ClientError::Problem(problem.into())
        };
        assert!(brokers.elsewhere(&target, &problem(true), false));
        assert!(!brokers.elsewhere(&target, &problem(false), false));
        let denied = muster_protocol::problem::Problem::new(Kind::Denied, "no");
        assert!(!brokers.elsewhere(&target, &ClientError::Problem(denied.into()), true));
    }
}
