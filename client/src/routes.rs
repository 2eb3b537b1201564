//! One method a route.

use std::time::Duration;

use muster_protocol::api::{
    AnswerRequest, Challenge, ClusterEvent, EventsStored, HookTest, HookTested, HookView, Invite,
    InviteRequest, InviteView, Invites, Keys, MatchAnswer, MatchRequest, NodeChange, NodeChanged,
    NodeView, Page, PingAnswer, PingRequest, Plan, ReplaceRequest, RetryRequest, RouteView,
    RunBrief, RunRequest, RunView, StandbyKit, Status, TokenCreated, TokenRequest, TokenView,
    TriggerView, WhoAmI,
};
use muster_protocol::keys::KeyId;
use muster_protocol::names::{HookName, NodeName};
use muster_protocol::run::Wish;
use muster_protocol::text::printable;
use muster_protocol::units::{Span, Timestamp};
use muster_protocol::wire::{CredentialsAnswer, CredentialsRequest, EnrollRequest, Trust};
use reqwest::Method;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::client::{Ask, Client, describe};
use crate::error::ClientError;
use crate::happenings::Happenings;
use crate::once::Key;
use crate::reference::Reference;
use crate::watch::RunEvents;

/// Most items that are asked for in one page.
const PAGE: u32 = 1_000;
/// Most pages that are followed, so that a broker that says `next` for ever
/// does not hold the client for ever.
const MAX_PAGES: usize = 1_000;
/// A change of a node waits for the node, up to 5 s.
const FOR_THE_NODE: Duration = Duration::from_secs(10);

/// Which events are asked for.
#[derive(Clone, Debug, Default)]
pub struct EventsQuery {
    /// Those after this position; the newest when absent.
    pub after: Option<u64>,
    /// How many at most, 1 to 1000.
    pub limit: u32,
    /// Any of these kinds, as `alarm.*`; all when empty.
    pub kinds: Vec<String>,
    /// About this, as `web-*`.
    pub subject: Option<String>,
    /// Since then.
    pub since: Option<Timestamp>,
}

type Answer<T> = Result<T, ClientError>;

/// A page whose items are still text.
#[derive(Deserialize)]
struct Unread {
    items: Box<RawValue>,
    #[serde(default)]
    next: Option<String>,
}

impl Client {
    async fn get<T: DeserializeOwned>(&self, path: &[&str], query: &[(&str, String)]) -> Answer<T> {
        self.ask::<(), T>(Ask {
            method: Method::GET,
            path,
            query,
            body: None,
            extra_time: Duration::ZERO,
            key: None,
        })
        .await
    }

    async fn post<B: Serialize, T: DeserializeOwned>(&self, path: &[&str], body: &B) -> Answer<T> {
        self.post_slow(path, body, Duration::ZERO).await
    }

    async fn post_slow<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &B,
        extra_time: Duration,
    ) -> Answer<T> {
        self.ask(Ask {
            method: Method::POST,
            path,
            query: &[],
            body: Some(body),
            extra_time,
            key: None,
        })
        .await
    }

    async fn post_empty<T: DeserializeOwned>(&self, path: &[&str]) -> Answer<T> {
        self.ask::<(), T>(Ask {
            method: Method::POST,
            path,
            query: &[],
            body: None,
            extra_time: Duration::ZERO,
            key: None,
        })
        .await
    }

    pub(crate) async fn delete(&self, path: &[&str]) -> Answer<()> {
        let ask = Ask {
            method: Method::DELETE,
            path,
            query: &[],
            body: None,
            extra_time: FOR_THE_NODE,
            key: None,
        };
        self.tell::<()>(ask).await
    }

    /// Follows the pages of a list to its end.
    pub(crate) async fn all<T: DeserializeOwned + Send + 'static>(
        &self,
        path: &[&str],
        query: &[(&str, String)],
    ) -> Answer<Vec<T>> {
        self.all_by(path, query, PAGE).await
    }

    /// The same with so many items on a page.
    pub(crate) async fn all_by<T: DeserializeOwned + Send + 'static>(
        &self,
        path: &[&str],
        query: &[(&str, String)],
        page: u32,
    ) -> Answer<Vec<T>> {
        let mut reading: Vec<JoinHandle<_>> = Vec::new();
        let mut cursor: Option<String> = None;
        for _ in 0..MAX_PAGES {
            let mut query = query.to_vec();
            query.push(("limit", page.to_string()));
            if let Some(cursor) = &cursor {
                query.push(("cursor", cursor.clone()));
            }
            let page: Unread = self.get(path, &query).await?;
            // What is in it is read while the next one is on its way.
            let read = move || serde_json::from_str::<Vec<T>>(page.items.get());
            match page.next {
                // A cursor that does not move would be read for ever.
                Some(next) if cursor.as_ref() != Some(&next) => {
                    cursor = Some(next);
                    reading.push(spawn_blocking(read));
                }
                _ if reading.is_empty() => return read().map_err(|e| self.strange(path, &e)),
                _ => {
                    reading.push(spawn_blocking(read));
                    break;
                }
            }
        }
        let mut items = Vec::new();
        for page in reading {
            let read = page.await.map_err(|e| self.strange(path, &e))?;
            items.extend(read.map_err(|e| self.strange(path, &e))?);
        }
        Ok(items)
    }

    /// A list that holds something else.
    fn strange(&self, path: &[&str], why: &dyn std::fmt::Display) -> ClientError {
        ClientError::Garbage {
            url: self.endpoint().url().to_owned(),
            what: describe(&Method::GET, path),
            status: 200,
            why: printable(&why.to_string(), 300),
        }
    }

    /// `GET /v1/nodes`, one page.
    ///
    /// # Errors
    /// [`ClientError`], as for every method here.
    pub async fn nodes_page(
        &self,
        predicate: Option<&str>,
        allow_unknown: bool,
        cursor: Option<&str>,
        limit: Option<u32>,
    ) -> Answer<Page<NodeView>> {
        let mut query = match_query(predicate, allow_unknown);
        if let Some(cursor) = cursor {
            query.push(("cursor", cursor.to_owned()));
        }
        if let Some(limit) = limit {
            query.push(("limit", limit.to_string()));
        }
        self.get(&["v1", "nodes"], &query).await
    }

    /// `GET /v1/nodes`, all pages.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn nodes(
        &self,
        predicate: Option<&str>,
        allow_unknown: bool,
    ) -> Answer<Vec<NodeView>> {
        self.all(&["v1", "nodes"], &match_query(predicate, allow_unknown))
            .await
    }

    /// `GET /v1/nodes/{name}`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn node(&self, name: &NodeName) -> Answer<NodeView> {
        self.get(&["v1", "nodes", name.as_str()], &[]).await
    }

    /// `PATCH /v1/nodes/{name}`: waits up to 5 s for the node to take it up.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn change_node(&self, name: &NodeName, change: &NodeChange) -> Answer<NodeChanged> {
        self.ask(Ask {
            method: Method::PATCH,
            path: &["v1", "nodes", name.as_str()],
            query: &[],
            body: Some(change),
            extra_time: FOR_THE_NODE,
            key: None,
        })
        .await
    }

    /// `DELETE /v1/nodes/{name}`: its key is refused for ever.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn remove_node(&self, name: &NodeName) -> Answer<()> {
        self.delete(&["v1", "nodes", name.as_str()]).await
    }

    /// `POST /v1/nodes/{name}/replace`: an invite for a new key under the name.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn replace_node(&self, name: &NodeName, request: &ReplaceRequest) -> Answer<Invite> {
        self.post(&["v1", "nodes", name.as_str(), "replace"], request)
            .await
    }

    /// `POST /v1/match`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn matching(&self, request: &MatchRequest) -> Answer<MatchAnswer> {
        self.post(&["v1", "match"], request).await
    }

    /// `POST /v1/ping`: answers when the last node did, or its time is over.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn ping(&self, request: &PingRequest) -> Answer<PingAnswer> {
        let extra = request
            .timeout
            .map_or(Duration::from_secs(2), muster_protocol::units::Span::get);
        self.post_slow(&["v1", "ping"], request, extra).await
    }

    /// `POST /v1/runs`. A run that needs a confirmation is
    /// [`ClientError::Problem`] of kind `confirmation-required` with a plan.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn create_run(&self, request: &RunRequest, key: &Key) -> Answer<RunView> {
        self.once(&["v1", "runs"], request, key).await
    }

    /// `POST /v1/runs?wait=…`: as [`Client::create_run`], and waits until the
    /// run has ended or that time is over. Also when nobody waits for the
    /// answer any more the run goes on.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn create_run_and_wait(
        &self,
        request: &RunRequest,
        key: &Key,
        wait: Span,
    ) -> Answer<RunView> {
        self.once_and_wait(&["v1", "runs"], request, key, Some(wait))
            .await
    }

    /// `GET /v1/runs`, newest first, one page.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn runs_page(
        &self,
        cursor: Option<&str>,
        limit: u32,
        parts: bool,
    ) -> Answer<Page<RunBrief>> {
        let mut query = vec![("limit", limit.to_string())];
        if parts {
            query.push(("parts", "true".to_owned()));
        }
        if let Some(cursor) = cursor {
            query.push(("cursor", cursor.to_owned()));
        }
        self.get(&["v1", "runs"], &query).await
    }

    /// `GET /v1/runs/{run}`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn run(&self, run: &Reference) -> Answer<RunView> {
        self.get(&["v1", "runs", run.as_str()], &[]).await
    }

    /// `POST /v1/runs/{run}/cancel`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn cancel_run(&self, run: &Reference) -> Answer<RunView> {
        self.post_empty(&["v1", "runs", run.as_str(), "cancel"])
            .await
    }

    /// `POST /v1/runs/{run}/answer`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn answer_run(&self, run: &Reference, text: &str) -> Answer<RunView> {
        let text = text.to_owned();
        self.post(
            &["v1", "runs", run.as_str(), "answer"],
            &AnswerRequest { text },
        )
        .await
    }

    /// `POST /v1/runs/{run}/retry?wait=…`: as [`Client::retry_run`], and waits
    /// until the run has ended or that time is over.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn retry_run_and_wait(
        &self,
        run: &Reference,
        request: &RetryRequest,
        key: &Key,
        wait: Span,
    ) -> Answer<RunView> {
        let path = ["v1", "runs", run.as_str(), "retry"];
        self.once_and_wait(&path, request, key, Some(wait)).await
    }

    /// `POST /v1/runs/{run}/retry`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn retry_run(
        &self,
        run: &Reference,
        request: &RetryRequest,
        key: &Key,
    ) -> Answer<RunView> {
        self.once(&["v1", "runs", run.as_str(), "retry"], request, key)
            .await
    }

    /// `POST /v1/runs/{run}/plan`: of a dry run that has ended.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn plan_of_run(&self, run: &Reference) -> Answer<Plan> {
        self.post_empty(&["v1", "runs", run.as_str(), "plan"]).await
    }

    /// `POST /v1/runs/{run}/confirm`, `POST /v1/runs/{run}/approve`,
    /// `POST /v1/runs/{run}/pause` or `POST /v1/runs/{run}/resume`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn wish_of_run(&self, run: &Reference, wish: Wish) -> Answer<RunView> {
        self.post_empty(&["v1", "runs", run.as_str(), wish.as_str()])
            .await
    }

    /// `GET /v1/runs/{run}/events`, from the beginning to `run_finished`,
    /// through lost connections. Connects at the first
    /// [`RunEvents::next`].
    #[must_use]
    pub fn run_events(&self, run: &Reference) -> RunEvents {
        RunEvents::new(self.clone(), run.clone())
    }

    /// `POST /v1/invites`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn invite(&self, request: &InviteRequest) -> Answer<Invites> {
        self.post(&["v1", "invites"], request).await
    }

    /// `GET /v1/invites`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn invites(&self) -> Answer<Vec<InviteView>> {
        self.all(&["v1", "invites"], &[]).await
    }

    /// `DELETE /v1/invites/{id}`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn revoke_invite(&self, id: &Reference) -> Answer<()> {
        self.delete(&["v1", "invites", id.as_str()]).await
    }

    /// `POST /v1/tokens`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn create_token(&self, request: &TokenRequest) -> Answer<TokenCreated> {
        self.post(&["v1", "tokens"], request).await
    }

    /// `GET /v1/tokens`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn tokens(&self) -> Answer<Vec<TokenView>> {
        self.all(&["v1", "tokens"], &[]).await
    }

    /// `DELETE /v1/tokens/{id}`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn revoke_token(&self, id: &Reference) -> Answer<()> {
        self.delete(&["v1", "tokens", id.as_str()]).await
    }

    /// `GET /v1/keys`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn keys(&self) -> Answer<Keys> {
        self.get(&["v1", "keys"], &[]).await
    }

    /// `POST /v1/brokers/kit`: what another broker of the cluster needs. Secret.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn standby_kit(&self) -> Answer<StandbyKit> {
        self.post_empty(&["v1", "brokers", "kit"]).await
    }

    /// `POST /v1/keys/rotate`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn rotate_keys(&self) -> Answer<Keys> {
        self.post_empty(&["v1", "keys", "rotate"]).await
    }

    /// `POST /v1/keys/{id}/revoke`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn revoke_key(&self, id: KeyId) -> Answer<Keys> {
        self.post_empty(&["v1", "keys", &id.to_string(), "revoke"])
            .await
    }

    /// `GET /v1/events`: those after a position, or the newest; oldest first.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn events(&self, after: Option<u64>, limit: u32) -> Answer<Page<ClusterEvent>> {
        self.events_of(&EventsQuery {
            after,
            limit,
            ..EventsQuery::default()
        })
        .await
    }

    /// `GET /v1/events`: those that are asked for, oldest first.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn events_of(&self, asked: &EventsQuery) -> Answer<Page<ClusterEvent>> {
        let mut query = vec![("limit", asked.limit.to_string())];
        if let Some(after) = asked.after {
            query.push(("after", after.to_string()));
        }
        if !asked.kinds.is_empty() {
            query.push(("kind", asked.kinds.join(",")));
        }
        if let Some(subject) = &asked.subject {
            query.push(("subject", subject.clone()));
        }
        if let Some(since) = asked.since {
            query.push(("since", since.to_string()));
        }
        self.get(&["v1", "events"], &query).await
    }

    /// `GET /v1/events/watch`: what happens after that position, or from now
    /// on, of those kinds and about that (all where nothing is said), through
    /// lost connections. Connects at the first [`Happenings::next`].
    #[must_use]
    pub fn follow_events(
        &self,
        after: Option<u64>,
        kinds: &[String],
        subject: Option<&str>,
    ) -> Happenings {
        Happenings::new(self.clone(), after, kinds, subject)
    }

    /// `POST /v1/events`: puts one in. Again, it is the same one.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn put_event(&self, event: &ClusterEvent) -> Answer<EventsStored> {
        self.post(&["v1", "events"], event).await
    }

    /// `GET /v1/hooks`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn hooks(&self) -> Answer<Page<HookView>> {
        self.get(&["v1", "hooks"], &[]).await
    }

    /// `POST /v1/hooks/{name}/test`: each event that a delivery would become.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn test_hook(&self, name: &HookName, test: &HookTest) -> Answer<Page<HookTested>> {
        self.post(&["v1", "hooks", name.as_str(), "test"], test)
            .await
    }

    /// `GET /v1/triggers`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn triggers(&self) -> Answer<Page<TriggerView>> {
        self.get(&["v1", "triggers"], &[]).await
    }

    /// `GET /v1/routes`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn routes(&self) -> Answer<Page<RouteView>> {
        self.get(&["v1", "routes"], &[]).await
    }

    /// `GET /v1/status`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn status(&self) -> Answer<Status> {
        self.get(&["v1", "status"], &[]).await
    }

    /// `GET /v1/whoami`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn whoami(&self) -> Answer<WhoAmI> {
        self.get(&["v1", "whoami"], &[]).await
    }

    /// `GET /v1/trust`: needs no token.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn trust(&self) -> Answer<Trust> {
        self.get(&["v1", "trust"], &[]).await
    }

    /// `POST /v1/agent/challenge`: needs no token.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn challenge(&self) -> Answer<Challenge> {
        self.post_empty(&["v1", "agent", "challenge"]).await
    }

    /// `POST /v1/enroll`: by invite.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn enroll(&self, request: &EnrollRequest) -> Answer<CredentialsAnswer> {
        self.post(&["v1", "enroll"], request).await
    }

    /// `POST /v1/agent/credentials`: by node key.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn agent_credentials(
        &self,
        request: &CredentialsRequest,
    ) -> Answer<CredentialsAnswer> {
        self.post(&["v1", "agent", "credentials"], request).await
    }

    /// `GET /healthz`: the process serves.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn healthz(&self) -> Answer<()> {
        self.probe("healthz").await
    }

    /// `GET /readyz`: it can take runs.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn readyz(&self) -> Answer<()> {
        self.probe("readyz").await
    }

    async fn probe(&self, path: &str) -> Answer<()> {
        let ask = Ask {
            method: Method::GET,
            path: &[path],
            query: &[],
            body: None,
            extra_time: Duration::ZERO,
            key: None,
        };
        self.tell::<()>(ask).await
    }

    /// `GET /metrics`: what the broker counts, in the text of OpenMetrics.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn metrics(&self) -> Answer<String> {
        self.text("metrics").await
    }

    /// `GET /reference`: the API as a page, HTML.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn reference(&self) -> Answer<String> {
        self.text("reference").await
    }

    /// `GET /openapi.json`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn openapi(&self) -> Answer<Value> {
        self.get(&["openapi.json"], &[]).await
    }
}

fn match_query(predicate: Option<&str>, allow_unknown: bool) -> Vec<(&'static str, String)> {
    let mut query = Vec::new();
    if let Some(predicate) = predicate {
        query.push(("match", predicate.to_owned()));
    }
    if allow_unknown {
        query.push(("allow_unknown", "true".to_owned()));
    }
    query
}
