//! What of a bucket is to be written again: pure.
//!
//! Mostly the newer of two values counts. But what was removed, revoked or
//! used up stays so, whichever is newer, and what only rises never falls.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::db::Message;
use super::{BUNDLES, CLUSTER, INVITES, NODES, POLICY, SCENARIOS, SCHEDULES, TOKENS, past};
use crate::enroll::StoredInvite;
use crate::freeze::{self, FreezeValue};
use crate::inventory::{AccountValue, StoredNode};
use crate::library::History;
use crate::policy::StoredPolicy;
use crate::schedules::StoredSchedule;
use muster_protocol::keys::{KeyList, SignedText};

/// What is to be written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Write {
    /// A value.
    Put(Bytes),
    /// A deletion.
    Delete,
}

/// A value that this version cannot read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Unreadable(pub(super) String);

/// What to write for a key whose newest known value is `lost`; nothing when
/// what the store has `now` is to stay.
pub(super) fn decide(
    stream: &str,
    key: &str,
    now: Option<&Message>,
    lost: &Message,
) -> Result<Option<Write>, Unreadable> {
    if let Some(now) = now
        && now.gone == lost.gone
        && now.payload == lost.payload
    {
        return Ok(None);
    }
    let there = now.filter(|now| !now.gone);
    if lost.gone && there.is_none() {
        return Ok(None);
    }
    let newer = now.is_none_or(|now| now.time <= lost.time);
    let whole = || {
        if lost.gone {
            Write::Delete
        } else {
            Write::Put(lost.payload.clone())
        }
    };
    let newest = newer.then(whole);
    match (stream, key) {
        // A token or an invite that is gone never comes back: their ids are
        // random and are not used again.
        (TOKENS | INVITES, _) if lost.gone => Ok(Some(Write::Delete)),
        (TOKENS | INVITES, _) if now.is_some_and(|now| now.gone) => Ok(None),
        (INVITES, _) => {
            let used = read::<StoredInvite>(lost)?.is_used();
            match there.map(read::<StoredInvite>).transpose()? {
                Some(now) if now.is_used() => Ok(None),
                Some(_) if used => Ok(Some(whole())),
                _ => Ok(newest),
            }
        }
        (NODES, _) => {
            let Some(now) = there else { return Ok(newest) };
            if lost.gone {
                return Ok(newest);
            }
            let (now, lost) = (read::<StoredNode>(now)?, read::<StoredNode>(lost)?);
            put(now.reconciled(lost, newer).as_ref())
        }
        (SCENARIOS, _) => {
            let Some(now) = there else { return Ok(newest) };
            if lost.gone {
                return Ok(newest);
            }
            let (now, lost) = (read::<History>(now)?, read::<History>(lost)?);
            let both = History::reconciled(now.clone(), lost, newer);
            put((both != now).then_some(&both))
        }
        (SCHEDULES, _) => {
            let Some(now) = there else { return Ok(newest) };
            if lost.gone {
                return Ok(newest);
            }
            let (now, lost) = (read::<StoredSchedule>(now)?, read::<StoredSchedule>(lost)?);
            let both = StoredSchedule::reconciled(now.clone(), lost, newer);
            put((both != now).then_some(&both))
        }
        (POLICY, _) => {
            let Some(now) = there else { return Ok(newest) };
            if lost.gone {
                return Ok(None);
            }
            let (now, lost) = (read::<StoredPolicy>(now)?, read::<StoredPolicy>(lost)?);
            let counts = StoredPolicy::reconciled(now.clone(), lost);
            put((counts != now).then_some(&counts))
        }
        // Under a hash is what belongs there, or nothing; what nobody needs
        // is removed later.
        (BUNDLES, _) if lost.gone || there.is_some() => Ok(None),
        (BUNDLES, _) => Ok(Some(whole())),
        (CLUSTER, "lease") => Ok(None),
        (CLUSTER, "serial") => match there.map(read::<u32>).transpose()? {
            Some(now) if now >= read::<u32>(lost)? => Ok(None),
            _ => Ok(Some(whole())),
        },
        (CLUSTER, "account") => {
            let lost = read::<AccountValue>(lost)?;
            match there.map(read::<AccountValue>).transpose()? {
                Some(now) => {
                    let both = now.clone().and(lost);
                    put((both != now).then_some(&both))
                }
                None => put(Some(&lost)),
            }
        }
        // Whoever loads it checks the signature, and compares with its disk.
        (CLUSTER, "key-list") => match there.map(epoch_of).transpose()? {
            Some(now) if now >= epoch_of(lost)? => Ok(None),
            _ => Ok(Some(whole())),
        },
        (CLUSTER, freeze::KEY) => {
            let Some(now) = there else { return Ok(newest) };
            if lost.gone {
                return Ok(None);
            }
            let (now, lost) = (read::<FreezeValue>(now)?, read::<FreezeValue>(lost)?);
            let counts = freeze::reconciled(now.clone(), lost);
            put((counts != now).then_some(&counts))
        }
        (CLUSTER, past::KEY) => {
            let lost = read::<past::StoredPast>(lost)?;
            match there.map(read::<past::StoredPast>).transpose()? {
                Some(now) => {
                    let both = now.clone().and(lost);
                    put((both != now).then_some(&both))
                }
                None => put(Some(&lost)),
            }
        }
        _ => Ok(newest),
    }
}

fn epoch_of(message: &Message) -> Result<u64, Unreadable> {
    let signed = read::<SignedText>(message)?;
    serde_json::from_str::<KeyList>(&signed.text)
        .map(|list| list.epoch)
        .map_err(|e| Unreadable(e.to_string()))
}

fn read<T: DeserializeOwned>(message: &Message) -> Result<T, Unreadable> {
    serde_json::from_slice(&message.payload).map_err(|e| Unreadable(e.to_string()))
}

fn put<T: Serialize>(value: Option<&T>) -> Result<Option<Write>, Unreadable> {
    value
        .map(|value| serde_json::to_vec(value).map(|json| Write::Put(json.into())))
        .transpose()
        .map_err(|e| Unreadable(e.to_string()))
}
