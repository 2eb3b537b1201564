//! Stored scenarios.

use std::time::Duration;

use muster_protocol::api::{Page, RollbackScenario, ScenarioStored, ScenarioVersion, ScenarioView};
use muster_protocol::names::ScenarioName;
use reqwest::header::{ACCEPT, CONTENT_TYPE};
use reqwest::{Method, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::brokers::{MOST_CHANGES, TAKEOVER, Target};
use crate::client::{Ask, Client, body, check, describe, garbage, transport};
use crate::error::ClientError;
use crate::once::Key;

/// How long the broker may take to check and store a scenario, or to read a
/// large one.
const TO_CHECK: Duration = Duration::from_secs(30);

type Answer<T> = Result<T, ClientError>;

fn changed(expect: Option<u32>, note: Option<&str>) -> Vec<(&'static str, String)> {
    let expect = expect.map(|expect| ("expect", expect.to_string()));
    let note = note.map(|note| ("note", note.to_owned()));
    expect.into_iter().chain(note).collect()
}

fn of(version: Option<u32>) -> Vec<(&'static str, String)> {
    version
        .map(|version| ("version", version.to_string()))
        .into_iter()
        .collect()
}

impl Client {
    /// Asks for something that does no harm when it is asked for again.
    async fn scenario_ask<B: Serialize, T: DeserializeOwned>(
        &self,
        (method, path): (Method, &[&str]),
        query: &[(&str, String)],
        body: Option<&B>,
    ) -> Answer<T> {
        self.ask(Ask {
            method,
            path,
            query,
            body,
            extra_time: TO_CHECK,
            key: Some(&Key::random()),
        })
        .await
    }

    /// `GET /v1/scenarios`: the newest version of each, by name.
    ///
    /// # Errors
    /// [`ClientError`], as for every method here.
    pub async fn scenarios(&self) -> Answer<Vec<ScenarioVersion>> {
        let path: (_, &[&str]) = (Method::GET, &["v1", "scenarios"]);
        let page: Page<ScenarioVersion> = self.scenario_ask::<(), _>(path, &[], None).await?;
        Ok(page.items)
    }

    /// `GET /v1/scenarios/{name}`, the newest version when none is named.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn scenario(
        &self,
        name: &ScenarioName,
        version: Option<u32>,
    ) -> Answer<ScenarioView> {
        let path: (_, &[&str]) = (Method::GET, &["v1", "scenarios", name.as_str()]);
        self.scenario_ask::<(), _>(path, &of(version), None).await
    }

    /// `GET /v1/scenarios/{name}/history`, the newest first.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn scenario_history(&self, name: &ScenarioName) -> Answer<Vec<ScenarioVersion>> {
        let path: (_, &[&str]) = (Method::GET, &["v1", "scenarios", name.as_str(), "history"]);
        let page: Page<ScenarioVersion> = self.scenario_ask::<(), _>(path, &[], None).await?;
        Ok(page.items)
    }

    /// `GET /v1/scenarios/{name}/bundle`: its packed bytes. Whether they are
    /// what was stored only their hash says.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn scenario_bundle(
        &self,
        name: &ScenarioName,
        version: Option<u32>,
    ) -> Answer<Vec<u8>> {
        let path = ["v1", "scenarios", name.as_str(), "bundle"];
        let what = describe(&Method::GET, &path);
        let query = of(version);
        let (target, response) = self
            .send_raw(&what, |target| {
                let request = target.http.get(target.at(&path)).query(&query);
                request.header(ACCEPT, "application/octet-stream, application/problem+json")
            })
            .await?;
        body(response, &target, &what, TO_CHECK).await
    }

    /// `PUT /v1/scenarios/{name}`: stores a packed bundle. With `expect` only
    /// on top of that version.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn put_scenario(
        &self,
        name: &ScenarioName,
        packed: Vec<u8>,
        expect: Option<u32>,
        note: Option<&str>,
    ) -> Answer<ScenarioStored> {
        let path = ["v1", "scenarios", name.as_str()];
        let what = describe(&Method::PUT, &path);
        let query = changed(expect, note);
        let (target, response) = self
            .send_raw(&what, |target| {
                let request = target.http.put(target.at(&path)).query(&query);
                request
                    .header(ACCEPT, "application/json, application/problem+json")
                    .header(CONTENT_TYPE, "application/octet-stream")
                    .body(packed.clone())
            })
            .await?;
        let status = response.status().as_u16();
        let body = body(response, &target, &what, TO_CHECK).await?;
        serde_json::from_slice(&body).map_err(|e| garbage(&target, &what, status, &e.to_string()))
    }

    /// `DELETE /v1/scenarios/{name}`: its history stays.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn remove_scenario(
        &self,
        name: &ScenarioName,
        expect: Option<u32>,
        note: Option<&str>,
    ) -> Answer<ScenarioStored> {
        let path: (_, &[&str]) = (Method::DELETE, &["v1", "scenarios", name.as_str()]);
        self.scenario_ask::<(), _>(path, &changed(expect, note), None)
            .await
    }

    /// `POST /v1/scenarios/{name}/rollback`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn rollback_scenario(
        &self,
        name: &ScenarioName,
        request: &RollbackScenario,
    ) -> Answer<ScenarioStored> {
        let path: (_, &[&str]) = (
            Method::POST,
            &["v1", "scenarios", name.as_str(), "rollback"],
        );
        self.scenario_ask(path, &[], Some(request)).await
    }

    /// Sends bytes, or asks for some, at the active broker: at another one
    /// when that one has gone. Doing it twice does no harm.
    async fn send_raw(
        &self,
        what: &str,
        request: impl Fn(&Target) -> reqwest::RequestBuilder,
    ) -> Answer<(Target, Response)> {
        let mut changes = 0;
        loop {
            let target = self.target(TAKEOVER).await?;
            let sent = request(&target).timeout(TO_CHECK).send().await;
            let error = match sent.map_err(|e| transport(&target, &e, what, TO_CHECK)) {
                Ok(response) => match check(response, &target, what, TO_CHECK).await {
                    Ok(response) => return Ok((target, response)),
                    Err(error) => error,
                },
                Err(error) => error,
            };
            changes += 1;
            if changes > MOST_CHANGES || !self.brokers().elsewhere(&target, &error, true) {
                return Err(error);
            }
        }
    }
}
