//! A backup as it comes.

use std::time::Duration;

use reqwest::{Method, Response};
use tokio::time::timeout;

use crate::brokers::{MOST_CHANGES, TAKEOVER, Target};
use crate::client::{Client, check, describe, transport};
use crate::error::ClientError;

/// Longest time between two pieces.
const SILENCE: Duration = Duration::from_secs(60);
const PATH: [&str; 2] = ["v1", "backup"];

/// The bytes of a backup, in pieces. Whether they are a whole one only its
/// own hashes say.
#[derive(Debug)]
pub struct BackupPieces {
    target: Target,
    response: Response,
}

impl Client {
    /// `GET /v1/backup`: everything that the cluster is.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn backup(&self) -> Result<BackupPieces, ClientError> {
        let what = describe(&Method::GET, &PATH);
        let mut changes = 0;
        loop {
            let target = self.target(TAKEOVER).await?;
            let error = match begin(&target, &what).await {
                Ok(response) => return Ok(BackupPieces { response, target }),
                Err(error) => error,
            };
            changes += 1;
            if changes > MOST_CHANGES || !self.brokers().elsewhere(&target, &error, true) {
                return Err(error);
            }
        }
    }
}

async fn begin(target: &Target, what: &str) -> Result<Response, ClientError> {
    match timeout(SILENCE, target.http.get(target.at(&PATH)).send()).await {
        Ok(Ok(response)) => check(response, target, what, SILENCE).await,
        Ok(Err(error)) => Err(transport(target, &error, what, SILENCE)),
        Err(_) => Err(late(target, what)),
    }
}

fn late(target: &Target, what: &str) -> ClientError {
    ClientError::Timeout {
        url: target.name().to_owned(),
        what: what.to_owned(),
        after: SILENCE,
    }
}

impl BackupPieces {
    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn next(
        &mut self,
    ) -> Result<Option<impl AsRef<[u8]> + std::ops::Deref<Target = [u8]> + use<>>, ClientError>
    {
        let what = describe(&Method::GET, &PATH);
        match timeout(SILENCE, self.response.chunk()).await {
            Ok(piece) => piece.map_err(|e| transport(&self.target, &e, &what, SILENCE)),
            Err(_) => Err(late(&self.target, &what)),
        }
    }
}
