//! A release comes from the broker, over HTTP. The transport is believed in
//! nothing: what came is held against the signed request afterwards.

use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use muster_protocol::keys::Purpose;
use muster_protocol::wire::{ReleaseRequest, proof_text};
use muster_scenarios::upgrade::Upgrade;
use tracing::warn;

use crate::enroll::verification;
use crate::http::{BaseUrl, Client, HttpError, awake_first, piece};
use crate::identity::Identity;
use crate::pace::Backoff;

/// Why a release is not here.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    /// The broker.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The address that the node has of it.
    #[error("the broker's address `{0}` is not usable")]
    Url(String),
    /// More than was signed.
    #[error("more came than the {0} bytes that were signed")]
    TooLong(u64),
    /// The connection ended before the release did.
    #[error("it broke off after {0} bytes")]
    Short(u64),
    /// The disk.
    #[error("{path} cannot be written: {source}")]
    Disk {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
}

impl FetchError {
    /// Whether asking again is of no use.
    fn is_final(&self) -> bool {
        match self {
            Self::Http(e) => e.is_final(),
            Self::Url(_) | Self::TooLong(_) | Self::Disk { .. } => true,
            Self::Short(_) => false,
        }
    }
}

/// Fetches the release into a new file, executable and on disk, from the
/// brokers in turn and again and again: whoever calls bounds the time.
///
/// # Errors
/// Why it cannot be had, for people.
pub(super) async fn fetch_release(
    identity: &Identity,
    brokers: &[String],
    upgrade: &Upgrade,
    to: &Path,
) -> Result<(), String> {
    let disk = |source| FetchError::Disk {
        path: to.display().to_string(),
        source,
    };
    let _ = std::fs::remove_file(to);
    let mut file = std::fs::OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o755)
        .open(to)
        .map_err(|e| disk(e).to_string())?;
    let own = identity.now().stored.brokers();
    let urls = if brokers.is_empty() { &own } else { brokers };
    let mut have = 0;
    let mut backoff = Backoff::new(Duration::from_millis(300), Duration::from_secs(10));
    loop {
        let mut last = FetchError::Url(String::new());
        let enrolled = identity.now();
        let ca = enrolled.stored.ca.as_deref();
        for url in &awake_first(urls, |base| verification(base, ca)).await {
            let before = have;
            match fetch_from(identity, url, upgrade, &mut file, &mut have).await {
                Ok(()) => {
                    // Against a strict umask.
                    return file
                        .set_permissions(std::fs::Permissions::from_mode(0o755))
                        .and_then(|()| file.sync_all())
                        .map_err(|e| disk(e).to_string());
                }
                Err(e) => last = e,
            }
            if have > before {
                backoff.reset();
            }
        }
        if last.is_final() {
            return Err(last.to_string());
        }
        let wait = backoff.wait();
        warn!("the release does not come: {last}; trying again in {wait:.1?}");
        tokio::time::sleep(wait).await;
    }
}

async fn fetch_from(
    identity: &Identity,
    url: &str,
    upgrade: &Upgrade,
    file: &mut std::fs::File,
    have: &mut u64,
) -> Result<(), FetchError> {
    let enrolled = identity.now();
    let base = BaseUrl::parse(url).map_err(|_| FetchError::Url(url.to_owned()))?;
    let client = Client::new(&base, &verification(&base, enrolled.stored.ca.as_deref()))?;
    let challenge = client.challenge().await?.challenge;
    let keys = identity.keys();
    let text = proof_text(&enrolled.stored.root, &challenge, &keys.nats.public_key());
    let request = ReleaseRequest {
        serial: enrolled.serial(),
        challenge,
        proof: keys.identity.sign(Purpose::NodeProof, &text),
        release: upgrade.release,
        from: *have,
    };
    let mut answer = client.release(&request).await?;
    while let Some(piece) = piece(&mut answer).await? {
        if *have + piece.len() as u64 > upgrade.size {
            return Err(FetchError::TooLong(upgrade.size));
        }
        // Half a megabyte at most: a disk takes that while nothing waits.
        file.write_all(&piece).map_err(|source| FetchError::Disk {
            path: "the new executable".into(),
            source,
        })?;
        *have += piece.len() as u64;
    }
    if *have < upgrade.size {
        return Err(FetchError::Short(*have));
    }
    Ok(())
}
