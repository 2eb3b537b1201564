//! The first thing of a session: who was shut out is out.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::Active;
use super::session::SessionError;
use crate::inventory::{AccountValue, InventoryError, shut_out};
use crate::lease::Lease;
use crate::nats::keys::UserKey;

/// How long a session waits for the brokers before to be shut out.
const SHUT_OUT_WITHIN: Duration = Duration::from_secs(1);

/// What the NATS servers were told before anything was read for a session.
pub(super) struct Fence {
    /// What of it every server has confirmed; see
    /// [`crate::inventory::Inventory::was_settled`].
    settled: Option<u64>,
    shutting: Option<Shutting>,
}

/// The NATS users of brokers before, who are being shut out.
struct Shutting {
    task: JoinHandle<Result<u64, InventoryError>>,
    users: Vec<UserKey>,
}

impl Drop for Shutting {
    fn drop(&mut self) {
        // Whoever is not shut out by then is so by the next session.
        self.task.abort();
    }
}

impl Fence {
    /// Has the servers shut out the brokers before, and whoever the store has
    /// `lost` to be revoked. A broker that was stopped in the middle of a
    /// write must not end it after this one has read what is there; and while
    /// what the store has lost is put back, nobody who was removed gets in.
    ///
    /// A server that holds very many connections needs seconds for it. A
    /// takeover does not wait so long: then everything is read again
    /// afterwards, see [`Fence::confirmed`]. Putting back does.
    ///
    /// # Errors
    /// [`SessionError`]; to be called again.
    pub(super) async fn raise(
        active: &Active<'_>,
        lost: Option<AccountValue>,
        settled: Option<u64>,
    ) -> Result<Self, SessionError> {
        let Active {
            parts,
            link,
            stores,
            lease,
            ..
        } = *active;
        let users = lease.to_shut_out();
        if users.is_empty() && lost.is_none() {
            return Ok(Self {
                settled,
                shutting: None,
            });
        }
        let within = if lost.is_some() {
            // The servers have a time of their own for it.
            Duration::MAX
        } else {
            SHUT_OUT_WITHIN
        };
        let task = {
            let (users, keys, system) =
                (users.clone(), Arc::clone(&parts.keys), link.system.clone());
            let bucket = stores.inventory.get().account;
            let life = parts.config.credentials_life;
            tokio::spawn(Box::pin(async move {
                shut_out(&users, lost, bucket, keys, system, life).await
            }))
        };
        let mut shutting = Shutting { task, users };
        match timeout(within, &mut shutting.task).await {
            Ok(done) => {
                let revision = done??;
                lease.are_shut_out(&shutting.users);
                Ok(Self {
                    settled: Some(revision),
                    shutting: None,
                })
            }
            Err(_) => Ok(Self {
                settled: None,
                shutting: Some(shutting),
            }),
        }
    }

    /// What every server has confirmed.
    pub(super) fn settled(&self) -> Option<u64> {
        self.settled
    }

    /// Whether the servers are not done yet.
    pub(super) fn is_open(&self) -> bool {
        self.shutting.is_some()
    }

    /// Returns once the brokers before are shut out, when that was not so when
    /// this was raised: what they have written in between is to be read. Gives
    /// what [`Fence::raise`] takes then.
    pub(super) async fn confirmed(&mut self, lease: &Lease) -> Option<u64> {
        let Some(shutting) = &mut self.shutting else {
            return std::future::pending().await;
        };
        let done = (&mut shutting.task).await;
        let shutting = self.shutting.take()?;
        match done {
            Ok(Ok(revision)) => {
                tracing::info!("the broker before is shut out; everything is read again");
                lease.are_shut_out(&shutting.users);
                Some(revision)
            }
            // The next session tries it again.
            Ok(Err(error)) => {
                tracing::warn!(%error, "the broker before could not be shut out");
                None
            }
            Err(error) => {
                tracing::error!(%error, "shutting the broker before out failed");
                None
            }
        }
    }
}
