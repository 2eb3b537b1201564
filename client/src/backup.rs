//! A backup, and other long answers, as they come.

use std::time::Duration;

use reqwest::{Method, Response};
use tokio::time::timeout;

use crate::brokers::{MOST_CHANGES, TAKEOVER, Target};
use crate::client::{Client, check, describe, transport};
use crate::error::ClientError;

/// Longest time between two pieces.
const SILENCE: Duration = Duration::from_secs(60);

/// The bytes of a long answer, in pieces. Whether they are a whole one only
/// what is in them says.
#[derive(Debug)]
pub struct Pieces {
    target: Target,
    response: Response,
    path: &'static [&'static str],
}

impl Client {
    /// `GET /v1/backup`: everything that the cluster is.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn backup(&self) -> Result<Pieces, ClientError> {
        self.pieces(&["v1", "backup"]).await
    }

    /// A long answer.
    pub(crate) async fn pieces(
        &self,
        path: &'static [&'static str],
    ) -> Result<Pieces, ClientError> {
        let what = describe(&Method::GET, path);
        let mut changes = 0;
        loop {
            let target = self.target(TAKEOVER).await?;
            let error = match begin(&target, path, &what).await {
                Ok(response) => {
                    return Ok(Pieces {
                        target,
                        response,
                        path,
                    });
                }
                Err(error) => error,
            };
            changes += 1;
            if changes > MOST_CHANGES || !self.brokers().elsewhere(&target, &error, true) {
                return Err(error);
            }
        }
    }
}

async fn begin(target: &Target, path: &[&str], what: &str) -> Result<Response, ClientError> {
    match timeout(SILENCE, target.http.get(target.at(path)).send()).await {
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

impl Pieces {
    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn next(
        &mut self,
    ) -> Result<Option<impl AsRef<[u8]> + std::ops::Deref<Target = [u8]> + use<>>, ClientError>
    {
        let what = describe(&Method::GET, self.path);
        match timeout(SILENCE, self.response.chunk()).await {
            Ok(piece) => piece.map_err(|e| transport(&self.target, &e, &what, SILENCE)),
            Err(_) => Err(late(&self.target, &what)),
        }
    }
}
