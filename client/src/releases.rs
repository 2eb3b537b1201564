//! Agent releases: up, in parts.

use std::time::Duration;

use muster_protocol::api::{Page, ReleaseOffer, ReleaseUpload, ReleaseView};
use muster_protocol::release::ReleaseId;
use reqwest::Method;
use reqwest::header::CONTENT_TYPE;

use crate::brokers::TAKEOVER;
use crate::client::{Ask, Client, check, describe, transport};
use crate::error::ClientError;

/// How long the broker may take to read and check a whole release.
const TO_CHECK: Duration = Duration::from_secs(60);

impl Client {
    /// `GET /v1/releases`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn releases(&self) -> Result<Vec<ReleaseView>, ClientError> {
        let page: Page<ReleaseView> = self
            .ask::<(), _>(Ask {
                method: Method::GET,
                path: &["v1", "releases"],
                query: &[],
                body: None,
                extra_time: Duration::ZERO,
                key: None,
            })
            .await?;
        Ok(page.items)
    }

    /// `PUT /v1/releases/{sha256}`: what is missing of it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn offer_release(
        &self,
        id: ReleaseId,
        size: u64,
    ) -> Result<ReleaseUpload, ClientError> {
        self.ask(Ask {
            method: Method::PUT,
            path: &["v1", "releases", &id.to_string()],
            query: &[],
            body: Some(&ReleaseOffer { size }),
            extra_time: TO_CHECK,
            key: None,
        })
        .await
    }

    /// `PUT /v1/releases/{sha256}/parts/{part}`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn put_release_part(
        &self,
        id: ReleaseId,
        part: u32,
        data: Vec<u8>,
    ) -> Result<(), ClientError> {
        let (id, part) = (id.to_string(), part.to_string());
        let path = ["v1", "releases", &id, "parts", &part];
        let what = describe(&Method::PUT, &path);
        let target = self.target(TAKEOVER).await?;
        let response = target
            .http
            .put(target.at(&path))
            .timeout(TO_CHECK)
            .header(CONTENT_TYPE, "application/octet-stream")
            .body(data)
            .send()
            .await
            .map_err(|e| transport(&target, &e, &what, TO_CHECK))?;
        check(response, &target, &what, TO_CHECK).await.map(drop)
    }

    /// `POST /v1/releases/{sha256}/commit`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn commit_release(&self, id: ReleaseId) -> Result<ReleaseView, ClientError> {
        self.ask::<(), _>(Ask {
            method: Method::POST,
            path: &["v1", "releases", &id.to_string(), "commit"],
            query: &[],
            body: None,
            extra_time: TO_CHECK,
            key: None,
        })
        .await
    }

    /// `DELETE /v1/releases/{sha256}`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn remove_release(&self, id: ReleaseId) -> Result<(), ClientError> {
        self.tell::<()>(Ask {
            method: Method::DELETE,
            path: &["v1", "releases", &id.to_string()],
            query: &[],
            body: None,
            extra_time: Duration::ZERO,
            key: None,
        })
        .await
    }
}
