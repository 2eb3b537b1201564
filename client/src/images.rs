//! Disk images: what there is, and up in parts.

use std::time::Duration;

use muster_protocol::api::{ImageUpload, ImageView, Page, PutImage};
use muster_protocol::names::ImageName;
use muster_protocol::vm::Size;
use reqwest::Method;
use reqwest::header::CONTENT_TYPE;

use crate::brokers::TAKEOVER;
use crate::client::{Ask, Client, check, describe, transport};
use crate::error::ClientError;

/// How long the broker may take to write a part to its disk.
const TO_WRITE: Duration = Duration::from_secs(60);
/// How many bytes a broker reads and hashes in a second, at least.
const READ_PER_SECOND: u64 = 16 << 20;

/// How long the broker may take to read and check a whole image.
fn to_check(size: Size) -> Duration {
    TO_WRITE + Duration::from_secs(size.bytes() / READ_PER_SECOND)
}

impl Client {
    /// `GET /v1/images`.
    ///
    /// # Errors
    /// [`ClientError`], as for every method here.
    pub async fn images(&self) -> Result<Vec<ImageView>, ClientError> {
        let page: Page<ImageView> = self
            .ask::<(), _>(Ask::plain(Method::GET, &["v1", "images"], None))
            .await?;
        Ok(page.items)
    }

    /// `PUT /v1/images/{name}`: what is missing of it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn put_image(
        &self,
        name: &ImageName,
        image: &PutImage,
    ) -> Result<ImageUpload, ClientError> {
        self.ask(Ask {
            method: Method::PUT,
            path: &["v1", "images", name.as_str()],
            query: &[],
            body: Some(image),
            extra_time: to_check(image.size),
            key: None,
        })
        .await
    }

    /// `PUT /v1/images/{name}/parts/{part}`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn put_image_part(
        &self,
        name: &ImageName,
        part: u32,
        data: Vec<u8>,
    ) -> Result<(), ClientError> {
        let part = part.to_string();
        let path = ["v1", "images", name.as_str(), "parts", &part];
        let what = describe(&Method::PUT, &path);
        let target = self.target(TAKEOVER).await?;
        let response = target
            .http
            .put(target.at(&path))
            .timeout(TO_WRITE)
            .header(CONTENT_TYPE, "application/octet-stream")
            .body(data)
            .send()
            .await
            .map_err(|e| transport(&target, &e, &what, TO_WRITE))?;
        check(response, &target, &what, TO_WRITE).await.map(drop)
    }

    /// `POST /v1/images/{name}/commit`: of an image of that size.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn commit_image(
        &self,
        name: &ImageName,
        size: Size,
    ) -> Result<ImageView, ClientError> {
        self.ask::<(), _>(Ask {
            method: Method::POST,
            path: &["v1", "images", name.as_str(), "commit"],
            query: &[],
            body: None,
            extra_time: to_check(size),
            key: None,
        })
        .await
    }

    /// `DELETE /v1/images/{name}`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn remove_image(&self, name: &ImageName) -> Result<(), ClientError> {
        self.tell::<()>(Ask::plain(
            Method::DELETE,
            &["v1", "images", name.as_str()],
            None,
        ))
        .await
    }
}
