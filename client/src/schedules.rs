//! Schedules.

use std::time::Duration;

use muster_protocol::api::{Page, PutSchedule, ScheduleView};
use muster_protocol::names::ScheduleName;
use reqwest::Method;

use crate::client::{Ask, Client};
use crate::error::ClientError;

impl Client {
    /// `GET /v1/schedules`: all of them, each with so many of its next starts.
    ///
    /// # Errors
    /// [`ClientError`], as for every method here.
    pub async fn schedules(&self, next: u32) -> Result<Vec<ScheduleView>, ClientError> {
        let page: Page<ScheduleView> = self
            .ask::<(), _>(Ask {
                method: Method::GET,
                path: &["v1", "schedules"],
                query: &[("next", next.to_string())],
                body: None,
                extra_time: Duration::ZERO,
                key: None,
            })
            .await?;
        Ok(page.items)
    }

    /// `GET /v1/schedules/{name}`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn schedule(
        &self,
        name: &ScheduleName,
        next: u32,
    ) -> Result<ScheduleView, ClientError> {
        self.ask::<(), _>(Ask {
            method: Method::GET,
            path: &["v1", "schedules", name.as_str()],
            query: &[("next", next.to_string())],
            body: None,
            extra_time: Duration::ZERO,
            key: None,
        })
        .await
    }

    /// `PUT /v1/schedules/{name}`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn put_schedule(
        &self,
        name: &ScheduleName,
        schedule: &PutSchedule,
    ) -> Result<ScheduleView, ClientError> {
        self.ask(Ask {
            method: Method::PUT,
            path: &["v1", "schedules", name.as_str()],
            query: &[],
            body: Some(schedule),
            extra_time: Duration::ZERO,
            key: None,
        })
        .await
    }

    /// `DELETE /v1/schedules/{name}`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn remove_schedule(&self, name: &ScheduleName) -> Result<(), ClientError> {
        self.tell::<()>(Ask {
            method: Method::DELETE,
            path: &["v1", "schedules", name.as_str()],
            query: &[],
            body: None,
            extra_time: Duration::ZERO,
            key: None,
        })
        .await
    }
}
