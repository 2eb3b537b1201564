//! What only ever rises, after a time of which nobody has a copy.
//!
//! Nodes may have seen later revisions and have later credentials than the
//! store knows, and serials may have been given. As after a restored backup
//! all of it jumps ahead, once.

use async_nats::jetstream::Context;
use muster_protocol::units::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::put_back::PutBackError;
use super::{StoredPast, past};
use crate::backup::Leap;
use crate::inventory::{AccountValue, StoredNode, now_seconds};
use crate::lease::Lease;
use crate::store::kv::{BucketConfig, Kv, ensure_bucket};

/// Does what is still to be done of it.
pub(super) async fn leap(
    js: &Context,
    lease: &Lease,
    bucket: &Kv<StoredPast>,
) -> Result<(), PutBackError> {
    let Some(entry) = bucket.get(past::KEY).await? else {
        return Ok(());
    };
    let mut known = entry.value;
    let owed = known.times.iter().filter(|time| time.leap);
    let Some(since) = owed.map(|time| time.since).min() else {
        return Ok(());
    };
    let leap = Leap::since(since, Timestamp::now());
    let active = || lease.epoch().ok_or(PutBackError::NotActive);
    active()?;
    // All credentials from before are void; nodes fetch new ones.
    let until = now_seconds();
    let accounts: Kv<AccountValue> = open(js, "muster_cluster").await?;
    if let Some(entry) = accounts.get("account").await? {
        active()?;
        let next = entry.value.nobody_before(until);
        accounts.update("account", &next, entry.revision).await?;
    }
    let serials: Kv<u32> = open(js, "muster_cluster").await?;
    let last = serials.get("serial").await?;
    let next = last
        .as_ref()
        .map_or(0, |entry| entry.value)
        .saturating_add(leap.serials);
    active()?;
    match last {
        Some(entry) => serials.update("serial", &next, entry.revision).await?,
        None => serials.create("serial", &next).await?,
    };
    let nodes: Kv<StoredNode> = open(js, "muster_nodes").await?;
    for entry in nodes.list().await?.entries {
        if entry.value.is_removed() {
            continue;
        }
        active()?;
        let next = entry.value.moved_on(leap.epochs, until + 1);
        nodes.update(&entry.key, &next, entry.revision).await?;
    }
    for time in &mut known.times {
        time.leap = false;
    }
    active()?;
    bucket.update(past::KEY, &known, entry.revision).await?;
    tracing::warn!(
        ?leap,
        "serials, revisions and issue times jumped ahead of what is lost"
    );
    Ok(())
}

async fn open<T: Serialize + DeserializeOwned>(
    js: &Context,
    name: &str,
) -> Result<Kv<T>, PutBackError> {
    Ok(Box::pin(ensure_bucket(js, BucketConfig::new(name))).await?)
}
