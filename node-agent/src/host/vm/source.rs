//! Where images and seeds come from: the broker, or where it says.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use muster_protocol::keys::Purpose;
use muster_protocol::problem::Kind;
use muster_protocol::vm::{ImageRef, SeedText, VmId};
use muster_protocol::wire::{ImageRequest, SeedRequest, proof_text};
use tokio::time::Instant;

use crate::enroll::verification;
use crate::http::{BaseUrl, Client, HttpError, ImageAnswer, awake_first, piece};
use crate::identity::Identity;
use crate::pace::Backoff;

/// For how long a seed is asked for, of all brokers: one that was killed is
/// back by then, or another one is active.
const SEED_WITHIN: Duration = Duration::from_secs(60);

/// Why something does not come.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The broker.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The address that the node has of it.
    #[error("the broker's address `{0}` is not usable")]
    Url(String),
    /// There is nobody to ask.
    #[error("{0}")]
    Nobody(String),
}

impl SourceError {
    /// Whether whoever was asked only has too much to do: then it is waited
    /// for, for as long as the step may take.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::Http(HttpError::Problem(problem)) if problem.kind == Kind::RateLimited)
    }

    /// Whether asking again soon is of no use.
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            Self::Http(error) => error.is_final(),
            Self::Url(_) | Self::Nobody(_) => true,
        }
    }
}

/// The bytes of an image, as they come.
pub struct Coming {
    /// Which byte is the first; 0 where it cannot be gone on.
    pub from: u64,
    /// They.
    pub pieces: BoxStream<'static, Result<Bytes, SourceError>>,
}

/// Whoever has images and seeds.
pub trait Source: Send + Sync + 'static {
    /// The bytes of an image, from one on. What comes is believed in nothing.
    fn image<'a>(
        &'a self,
        image: &'a ImageRef,
        from: u64,
    ) -> BoxFuture<'a, Result<Coming, SourceError>>;

    /// A new seed for a machine: the one before is good for nothing then.
    fn seed(&self, machine: VmId) -> BoxFuture<'_, Result<SeedText, SourceError>>;
}

/// The brokers of the cluster.
#[derive(Clone)]
pub struct Brokers {
    identity: Identity,
    urls: Vec<String>,
}

impl Brokers {
    /// Asks these, or those that the node has heard of where there are none.
    #[must_use]
    pub fn new(identity: Identity, urls: Vec<String>) -> Self {
        Self { identity, urls }
    }

    /// They, in the order to ask.
    async fn urls(&self) -> Vec<String> {
        let enrolled = self.identity.now();
        let own = enrolled.stored.brokers();
        let urls = if self.urls.is_empty() {
            &own
        } else {
            &self.urls
        };
        let ca = enrolled.stored.ca.as_deref();
        awake_first(urls, |base| verification(base, ca)).await
    }

    fn client(&self, url: &str) -> Result<Client, SourceError> {
        let enrolled = self.identity.now();
        let base = BaseUrl::parse(url).map_err(|_| SourceError::Url(url.to_owned()))?;
        let verify = verification(&base, enrolled.stored.ca.as_deref());
        Ok(Client::new(&base, &verify)?)
    }

    async fn image_from(
        &self,
        url: &str,
        image: &ImageRef,
        from: u64,
    ) -> Result<Coming, SourceError> {
        let client = self.client(url)?;
        let challenge = client.challenge().await?.challenge;
        let (enrolled, keys) = (self.identity.now(), self.identity.keys());
        let text = proof_text(&enrolled.stored.root, &challenge, &keys.nats.public_key());
        let request = ImageRequest {
            serial: enrolled.serial(),
            challenge,
            proof: keys.identity.sign(Purpose::NodeProof, &text),
            image: image.sha256,
            from,
        };
        let (answer, from) = match client.image(&request).await? {
            ImageAnswer::Bytes(answer) => (answer, from),
            ImageAnswer::Elsewhere(url) => Client::elsewhere(&url, from).await?,
        };
        let pieces = stream::unfold(Some(answer), |answer| async {
            let mut answer = answer?;
            match piece(&mut answer).await {
                Ok(None) => None,
                Ok(Some(bytes)) => Some((Ok(bytes), Some(answer))),
                Err(e) => Some((Err(SourceError::Http(e)), None)),
            }
        });
        Ok(Coming {
            from,
            pieces: pieces.boxed(),
        })
    }

    async fn seed_from(&self, url: &str, machine: VmId) -> Result<SeedText, SourceError> {
        let client = self.client(url)?;
        let challenge = client.challenge().await?.challenge;
        let (enrolled, keys) = (self.identity.now(), self.identity.keys());
        let text = proof_text(&enrolled.stored.root, &challenge, &keys.nats.public_key());
        let request = SeedRequest {
            serial: enrolled.serial(),
            challenge,
            proof: keys.identity.sign(Purpose::NodeProof, &text),
            machine,
        };
        Ok(client.seed(&request).await?)
    }
}

impl Source for Brokers {
    fn image<'a>(
        &'a self,
        image: &'a ImageRef,
        from: u64,
    ) -> BoxFuture<'a, Result<Coming, SourceError>> {
        Box::pin(async move {
            let mut last = SourceError::Nobody("this node knows no broker".to_owned());
            for url in &self.urls().await {
                match self.image_from(url, image, from).await {
                    Ok(coming) => return Ok(coming),
                    Err(e) => last = e,
                }
            }
            Err(last)
        })
    }

    fn seed(&self, machine: VmId) -> BoxFuture<'_, Result<SeedText, SourceError>> {
        Box::pin(async move {
            let mut backoff = Backoff::new(Duration::from_millis(300), Duration::from_secs(5));
            let mut last = SourceError::Nobody("this node knows no broker".to_owned());
            let until = Instant::now() + SEED_WITHIN;
            loop {
                for url in &self.urls().await {
                    match self.seed_from(url, machine).await {
                        Ok(seed) => return Ok(seed),
                        Err(e) => last = e,
                    }
                }
                // Another broker may not be the active one, so each is asked
                // once before a no counts.
                let wait = backoff.wait();
                if last.is_final() || Instant::now() + wait > until {
                    return Err(last);
                }
                tokio::time::sleep(wait).await;
            }
        })
    }
}
