//! Fresh credentials, before the old ones end and whenever they are refused.

use std::sync::Arc;
use std::time::Duration;

use muster_protocol::keys::{KeyListError, Purpose, SignedText};
use muster_protocol::units::{Timestamp, after, elapsed};
use muster_protocol::wire::{CredentialsAnswer, CredentialsRequest, proof_text};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::enroll::verification;
use crate::http::{BaseUrl, Client, HttpError, awake_first};
use crate::identity::{AnswerError, Identity, TakeError};
use crate::pace::{Backoff, jitter};

/// How often a node asks that the broker knows no more.
const REMOVED_EVERY: Duration = Duration::from_secs(300);
/// Fewest seconds between two fetches, whoever asks.
const AT_MOST_EVERY: Duration = Duration::from_secs(1);
/// Longest wait between tries.
const LONGEST: Duration = Duration::from_secs(60);
/// Longest sleep in one piece: the wall clock may be set meanwhile.
const NAP: Duration = Duration::from_secs(600);

/// Why credentials could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The broker.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// Its answer.
    #[error(transparent)]
    Take(#[from] TakeError),
    /// The address that the node has of it.
    #[error("the broker's address `{url}` is not usable: {why}")]
    Url {
        /// The address.
        url: String,
        /// Why not.
        why: String,
    },
}

/// The handle by which others ask for fresh credentials.
#[derive(Clone, Debug, Default)]
pub struct Keeper {
    wanted: Arc<Notify>,
}

impl Keeper {
    /// A keeper that nobody runs yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks for fresh credentials soon. Many calls make one fetch.
    pub fn want(&self) {
        self.wanted.notify_one();
    }

    /// Fetches when asked, and at half of the credentials' life, until
    /// `stop`.
    pub async fn run(self, identity: Identity, brokers: Vec<String>, stop: CancellationToken) {
        let mut backoff = Backoff::new(AT_MOST_EVERY, LONGEST);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.wanted.notified() => {}
                () = half_life(&identity) => debug!("half of the credentials' life is over"),
            }
            loop {
                let wait = match fetch(&identity, &brokers).await {
                    Ok(changed) => {
                        backoff.reset();
                        let credentials = &identity.now().stored.credentials;
                        if changed {
                            info!(
                                revision = credentials.assignment.revision,
                                expires = %credentials.expires,
                                "fresh credentials"
                            );
                        }
                        None
                    }
                    Err(FetchError::Http(e)) if e.is_final() => {
                        error!(
                            "the broker knows this node no more: {e}; asking again every {} min. Enrol it again with: muster-agent enroll --again",
                            REMOVED_EVERY.as_secs() / 60
                        );
                        Some(jitter(REMOVED_EVERY) + REMOVED_EVERY / 2)
                    }
                    Err(e) => {
                        let wait = backoff.wait();
                        warn!("no fresh credentials: {e}; trying again in {:.0?}", wait);
                        Some(wait)
                    }
                };
                // Even a success is followed by a pause: whoever asks in a
                // circle must not make a storm of it.
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(wait.unwrap_or(AT_MOST_EVERY)) => {}
                }
                if wait.is_none() {
                    break;
                }
            }
        }
    }
}

/// Returns when half of the credentials' life is over, by this node's clock.
async fn half_life(identity: &Identity) {
    let mut changes = identity.watch();
    loop {
        let (issued, expires) = {
            let enrolled = changes.borrow_and_update().clone();
            let held = &enrolled.stored.credentials;
            (held.issued, held.expires)
        };
        let half = after(issued, elapsed(issued, expires) / 2);
        let left = elapsed(Timestamp::now(), half);
        if left.is_zero() {
            // A node whose clock is beyond the end would otherwise ask
            // without a pause.
            tokio::time::sleep(jitter(Duration::from_secs(30))).await;
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(left.min(NAP)) => {}
            _ = changes.changed() => {}
        }
    }
}

/// Asks the brokers in turn, whoever is awake first; whether anything new came.
///
/// # Errors
/// [`FetchError`] of the last one asked.
pub async fn fetch(identity: &Identity, brokers: &[String]) -> Result<bool, FetchError> {
    let enrolled = identity.now();
    let own = enrolled.stored.brokers();
    let urls = if brokers.is_empty() { &own } else { brokers };
    let ca = enrolled.stored.ca.as_deref();
    let urls = awake_first(urls, |base| verification(base, ca)).await;
    let mut last = None;
    for url in &urls {
        match fetch_from(identity, url).await {
            Ok(changed) => return Ok(changed),
            Err(e) => last = Some(e),
        }
    }
    Err(last.unwrap_or_else(|| FetchError::Url {
        url: String::new(),
        why: "there is none".into(),
    }))
}

async fn fetch_from(identity: &Identity, url: &str) -> Result<bool, FetchError> {
    let enrolled = identity.now();
    let bad = |why: &dyn std::fmt::Display| FetchError::Url {
        url: url.to_owned(),
        why: why.to_string(),
    };
    let base = BaseUrl::parse(url).map_err(|e| bad(&e))?;
    let client = Client::new(&base, &verification(&base, enrolled.stored.ca.as_deref()))?;
    let answer = ask(&client, identity, None).await?;
    match identity.take_answer(&answer) {
        // Only a list that the root key signed is older: the broker has gone
        // back in time. It takes the list that this node holds, and answers
        // under that; once, for it may be refused.
        Err(TakeError::Answer(AnswerError::Keys(KeyListError::Older { ours, theirs })))
            if theirs < ours =>
        {
            warn!(
                ours,
                theirs, "the broker's key list is older than this node's; giving it this one"
            );
            let held = identity.now().stored.keys.clone();
            let answer = ask(&client, identity, Some(held)).await?;
            Ok(identity.take_answer(&answer)?)
        }
        taken => Ok(taken?),
    }
}

async fn ask(
    client: &Client,
    identity: &Identity,
    held: Option<SignedText>,
) -> Result<CredentialsAnswer, HttpError> {
    let enrolled = identity.now();
    let challenge = client.challenge().await?.challenge;
    let keys = identity.keys();
    let text = proof_text(&enrolled.stored.root, &challenge, &keys.nats.public_key());
    let request = CredentialsRequest {
        serial: enrolled.serial(),
        challenge,
        proof: keys.identity.sign(Purpose::NodeProof, &text),
        keys: held,
    };
    client.credentials(&request).await
}
