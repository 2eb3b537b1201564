//! A backup as it comes.

use std::time::Duration;

use reqwest::{Method, Response};
use tokio::time::timeout;

use crate::client::{Client, describe};
use crate::error::ClientError;

/// Longest time between two pieces.
const SILENCE: Duration = Duration::from_secs(60);
const PATH: [&str; 2] = ["v1", "backup"];

/// The bytes of a backup, in pieces. Whether they are a whole one only its
/// own hashes say.
#[derive(Debug)]
pub struct BackupPieces {
    client: Client,
    response: Response,
}

impl Client {
    /// `GET /v1/backup`: everything that the cluster is.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn backup(&self) -> Result<BackupPieces, ClientError> {
        let what = describe(&Method::GET, &PATH);
        let asked = timeout(SILENCE, self.http().get(self.url(&PATH)).send()).await;
        let response = match asked {
            Ok(sent) => sent.map_err(|e| self.transport(&e, &what, SILENCE))?,
            Err(_) => return Err(self.late(what)),
        };
        Ok(BackupPieces {
            response: self.check(response, &what, SILENCE).await?,
            client: self.clone(),
        })
    }

    fn late(&self, what: String) -> ClientError {
        ClientError::Timeout {
            url: self.endpoint().url().to_owned(),
            what,
            after: SILENCE,
        }
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
            Ok(piece) => piece.map_err(|e| self.client.transport(&e, &what, SILENCE)),
            Err(_) => Err(self.client.late(what)),
        }
    }
}
