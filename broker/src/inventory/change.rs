//! Everything that changes who a node is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use muster_protocol::api::{NodeChange, Presence};
use muster_protocol::ids::Serial;
use muster_protocol::keys::PublicKey;
use muster_protocol::names::{LabelKey, LabelValue, NodeName, RoleName};
use muster_protocol::units::Timestamp;
use muster_protocol::wire::Assignment;
use tokio::sync::MutexGuard;

use super::control::NodeControl;
use super::record::{NodeRecord, Standing};
use super::stored::StoredNode;
use super::{
    Index, Inventory, InventoryError, Kept, MAX_LABELS, MAX_ROLES, SERIAL_KEY, SerialCounter,
    fingerprint, now_seconds, user_key,
};
use crate::nats::keys::UserKey;
use crate::store::kv::KvError;

/// How long a node has to take up new credentials before the old ones are
/// revoked. Only a courtesy: it spares a live node a refused connection.
const COURTESY: Duration = Duration::from_millis(1_000);
/// How long a change waits for a live node after that.
const APPLY_WITHIN: Duration = Duration::from_secs(4);

/// A node that is about to enrol.
#[derive(Clone, Debug)]
pub struct NewNode {
    /// From [`Inventory::allocate`].
    pub serial: Serial,
    /// Its identity key; it was proven.
    pub node_key: PublicKey,
    /// Its NATS user key.
    pub nats_key: UserKey,
    /// Its name.
    pub name: NodeName,
    /// Its roles.
    pub roles: Vec<RoleName>,
    /// Its labels.
    pub labels: BTreeMap<LabelKey, LabelValue>,
    /// Whether it is one of the broker's own machines.
    pub infrastructure: bool,
    /// The node whose place it takes.
    pub replaces: Option<Serial>,
}

/// What a change has done.
#[derive(Clone, Debug)]
pub struct Changed {
    /// The node as it is now.
    pub node: Arc<NodeRecord>,
    /// Whether the node itself has taken it up.
    pub applied: bool,
}

impl Inventory {
    /// A serial that was never used before.
    ///
    /// # Errors
    /// [`InventoryError`].
    pub async fn allocate(&self) -> Result<Serial, InventoryError> {
        let kept = self.kept()?;
        loop {
            kept.active()?;
            let entry = kept.buckets.serial.get(SERIAL_KEY).await?;
            let last = entry.as_ref().map_or(0, |e| e.value.0);
            // A bucket from a backup may have an older counter than nodes.
            let known = kept
                .index
                .lock()
                .await
                .revisions
                .keys()
                .max()
                .map_or(0, |s| s.0);
            let next = SerialCounter(
                last.max(known)
                    .checked_add(1)
                    .ok_or(InventoryError::NoSerials)?,
            );
            let written = match entry {
                None => kept.buckets.serial.create(SERIAL_KEY, &next).await,
                Some(entry) => {
                    kept.buckets
                        .serial
                        .update(SERIAL_KEY, &next, entry.revision)
                        .await
                }
            };
            match written {
                Ok(_) => return Ok(Serial(next.0)),
                Err(KvError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Whether [`Inventory::add`] would take such a node now.
    ///
    /// # Errors
    /// [`InventoryError::NameTaken`], [`InventoryError::KnownKey`].
    pub async fn could_add(
        &self,
        node_key: &PublicKey,
        nats_key: &UserKey,
        name: &NodeName,
        replaces: Option<Serial>,
    ) -> Result<(), InventoryError> {
        let index = self.kept()?.index.lock().await;
        let known = index
            .keys
            .get(node_key.as_bytes())
            .or_else(|| index.nats_keys.get(nats_key.as_str()));
        if let Some((_, name)) = known {
            return Err(InventoryError::KnownKey(name.clone()));
        }
        match self.snapshot().by_name(name) {
            Some(holder) if replaces != Some(holder.serial) => {
                Err(InventoryError::NameTaken(name.clone()))
            }
            _ => Ok(()),
        }
    }

    /// Adds a node. The node that it replaces becomes a tombstone first. The
    /// same keys under the same serial again are fine.
    ///
    /// # Errors
    /// [`InventoryError::NameTaken`], [`InventoryError::KnownKey`], and
    /// others.
    pub async fn add(&self, new: NewNode) -> Result<Arc<NodeRecord>, InventoryError> {
        let kept = self.kept()?;
        let mut index = kept.index.lock().await;
        kept.active()?;
        let known = index
            .keys
            .get(new.node_key.as_bytes())
            .or_else(|| index.nats_keys.get(new.nats_key.as_str()));
        if let Some((serial, name)) = known {
            let snapshot = self.snapshot();
            return match snapshot.get(*serial) {
                Some(record)
                    if *serial == new.serial
                        && record.node_key == new.node_key
                        && record.nats_key == new.nats_key.as_str() =>
                {
                    Ok(Arc::clone(record))
                }
                _ => Err(InventoryError::KnownKey(name.clone())),
            };
        }
        check_counts(&new.roles, &new.labels)?;
        let snapshot = self.snapshot();
        let mut revision = 1;
        let old = snapshot.by_name(&new.name);
        if let Some(holder) = old {
            if new.replaces != Some(holder.serial) {
                return Err(InventoryError::NameTaken(new.name));
            }
            revision = holder.assignment.revision + 1;
            let by = format!(
                "replaced by node {} with key {}",
                new.serial,
                fingerprint(&new.node_key)
            );
            self.bury(kept, &mut index, holder, &by).await?;
        }
        let mut roles = new.roles;
        roles.sort();
        roles.dedup();
        let record = NodeRecord {
            serial: new.serial,
            node_key: new.node_key,
            nats_key: new.nats_key.as_str().to_owned(),
            assignment: Assignment {
                revision,
                name: new.name,
                roles,
                labels: new.labels,
            },
            infrastructure: new.infrastructure,
            enrolled: Timestamp::now(),
            jwt_iat: now_seconds(),
            standing: Standing::Active,
            facts: Arc::default(),
            notes: Vec::new(),
            last_seen: None,
        };
        let added = self.store(kept, &mut index, record).await;
        drop(index);
        // Also when the new one could not be stored: the old one is out.
        if let Some(old) = old {
            self.shut_out(kept, old).await;
        }
        added
    }

    /// Changes roles and labels, all or nothing: a new revision, new
    /// credentials, the old ones revoked. Waits a few seconds for a live node
    /// to take it up.
    ///
    /// # Errors
    /// [`InventoryError`]. When only the revocation could not reach every
    /// server yet, the change is made, and it is tried again.
    pub async fn change(
        &self,
        name: &NodeName,
        change: &NodeChange,
        control: &dyn NodeControl,
        by: &str,
    ) -> Result<Changed, InventoryError> {
        let kept = self.kept()?;
        let mut index = kept.index.lock().await;
        kept.active()?;
        let old = self.named(name)?;
        let assignment = changed(&old.assignment, change)?;
        let infrastructure = change.infrastructure.unwrap_or(old.infrastructure);
        let same = assignment == old.assignment;
        if same && infrastructure == old.infrastructure {
            let applied = control.presence(old.serial).revision >= Some(assignment.revision);
            return Ok(Changed { node: old, applied });
        }
        let mut record = (*old).clone();
        record.infrastructure = infrastructure;
        if !same {
            record.assignment = Assignment {
                revision: old.assignment.revision + 1,
                ..assignment
            };
            record.jwt_iat = now_seconds().max(old.jwt_iat + 1);
        }
        let node = self.store(kept, &mut index, record).await?;
        drop(index);
        kept.events
            .emit(
                "node.changed",
                name.as_str(),
                format!("{by} changed {}", describe(name, change)),
            )
            .await;
        if same {
            return Ok(Changed {
                node,
                applied: true,
            });
        }
        let (serial, revision) = (node.serial, node.assignment.revision);
        let live = matches!(
            control.presence(serial).state,
            Presence::Up | Presence::Late
        );
        control.refresh(serial, revision).await;
        let mut applied = live && control.wait_revision(serial, revision, COURTESY).await;
        self.revoke(kept, &node, node.jwt_iat - 1).await;
        if live && !applied {
            applied = control.wait_revision(serial, revision, APPLY_WITHIN).await;
        }
        Ok(Changed { node, applied })
    }

    /// Removes a node for ever: its keys are refused from now on, its
    /// connections end.
    ///
    /// # Errors
    /// [`InventoryError`].
    pub async fn remove(
        &self,
        name: &NodeName,
        control: &dyn NodeControl,
        by: &str,
    ) -> Result<(), InventoryError> {
        let kept = self.kept()?;
        let mut index = kept.index.lock().await;
        kept.active()?;
        let old = self.named(name)?;
        self.bury(kept, &mut index, &old, by).await?;
        drop(index);
        self.shut_out(kept, &old).await;
        control.forget(old.serial);
        kept.events
            .emit(
                "node.removed",
                name.as_str(),
                format!("{by} removed {name}; its key is refused"),
            )
            .await;
        Ok(())
    }

    /// Keeps a node out until it is replaced or removed: its NATS credentials
    /// are revoked, its connections end.
    ///
    /// # Errors
    /// [`InventoryError`].
    pub async fn quarantine(&self, node: Serial, reason: String) -> Result<(), InventoryError> {
        let snapshot = self.snapshot();
        let old = snapshot
            .get(node)
            .ok_or_else(|| InventoryError::NoNode(node.to_string()))?;
        let mut record = (**old).clone();
        record.standing = Standing::Quarantined {
            reason,
            since: Timestamp::now(),
        };
        let Some(kept) = &self.0.kept else {
            self.show(record);
            return Ok(());
        };
        let mut index = kept.index.lock().await;
        kept.active()?;
        // Again under the lock: it may have been changed or removed.
        let snapshot = self.snapshot();
        let now = snapshot
            .get(node)
            .ok_or_else(|| InventoryError::NoNode(node.to_string()))?;
        if !now.is_active() {
            return Ok(());
        }
        let record = NodeRecord {
            standing: record.standing,
            jwt_iat: now_seconds().max(now.jwt_iat + 1),
            ..(**now).clone()
        };
        let record = self.store(kept, &mut index, record).await?;
        drop(index);
        // Everything issued so far, and nothing more is issued.
        self.revoke(kept, &record, record.jwt_iat).await;
        Ok(())
    }

    /// The `iat` for a new JWT of a node: never below one that was given
    /// before, never one that is revoked.
    ///
    /// # Errors
    /// [`InventoryError::Quarantined`], and others.
    pub async fn next_iat(&self, node: Serial) -> Result<(Arc<NodeRecord>, u64), InventoryError> {
        let kept = self.kept()?;
        let mut index = kept.index.lock().await;
        kept.active()?;
        let snapshot = self.snapshot();
        let record = snapshot
            .get(node)
            .ok_or_else(|| InventoryError::NoNode(node.to_string()))?;
        if let Standing::Quarantined { reason, .. } = &record.standing {
            return Err(InventoryError::Quarantined {
                name: record.assignment.name.clone(),
                reason: reason.clone(),
            });
        }
        let iat = now_seconds().max(record.jwt_iat);
        if iat == record.jwt_iat {
            return Ok((Arc::clone(record), iat));
        }
        // Before it is issued: a later revocation must reach it.
        let record = NodeRecord {
            jwt_iat: iat,
            ..(**record).clone()
        };
        Ok((self.store(kept, &mut index, record).await?, iat))
    }

    fn kept(&self) -> Result<&Kept, InventoryError> {
        self.0.kept.as_ref().ok_or(InventoryError::NotActive)
    }

    fn named(&self, name: &NodeName) -> Result<Arc<NodeRecord>, InventoryError> {
        let snapshot = self.snapshot();
        snapshot
            .by_name(name)
            .cloned()
            .ok_or_else(|| InventoryError::NoNode(name.to_string()))
    }

    /// Ends the connections of a node that is a tombstone, and forgets what
    /// it reported.
    async fn shut_out(&self, kept: &Kept, old: &NodeRecord) {
        self.revoke(kept, old, now_seconds().max(old.jwt_iat)).await;
        if let Err(error) = kept.buckets.facts.forget(&old.serial.to_string()).await {
            tracing::warn!(node = %old.assignment.name, %error, "facts of a removed node stay in the bucket");
        }
    }

    /// Turns a node into a tombstone. [`Inventory::shut_out`] comes next,
    /// without the lock: it takes longer.
    async fn bury(
        &self,
        kept: &Kept,
        index: &mut MutexGuard<'_, Index>,
        old: &NodeRecord,
        by: &str,
    ) -> Result<(), InventoryError> {
        let buried = StoredNode::removed(old, by, Timestamp::now());
        self.write(kept, index, old.serial, &buried).await?;
        self.0.snapshot.rcu(|now| Arc::new(now.without(old.serial)));
        self.seen().at.remove(&old.serial);
        Ok(())
    }

    /// What was decided is stored; a server that does not take the revocation
    /// now is told again by [`Inventory::tend`].
    async fn revoke(&self, kept: &Kept, record: &NodeRecord, until: u64) {
        let Some(user) = user_key(record) else { return };
        if let Err(error) = kept.accounts.revoke(user, until).await {
            let name = record.assignment.name.as_str();
            tracing::error!(node = name, %error, "the node's old credentials are not revoked everywhere yet");
            kept.events
                .emit(
                    "alarm.revocation-pending",
                    name,
                    format!("old credentials of {name} still work: {error}"),
                )
                .await;
        }
    }

    async fn store(
        &self,
        kept: &Kept,
        index: &mut MutexGuard<'_, Index>,
        record: NodeRecord,
    ) -> Result<Arc<NodeRecord>, InventoryError> {
        self.write(kept, index, record.serial, &StoredNode::of(&record))
            .await?;
        Ok(self.show(record))
    }

    async fn write(
        &self,
        kept: &Kept,
        index: &mut MutexGuard<'_, Index>,
        serial: Serial,
        node: &StoredNode,
    ) -> Result<(), InventoryError> {
        kept.active()?;
        let key = serial.to_string();
        let written = match index.revisions.get(&serial) {
            None => kept.buckets.nodes.create(&key, node).await,
            Some(revision) => kept.buckets.nodes.update(&key, node, *revision).await,
        };
        let revision = match written {
            Ok(revision) => revision,
            Err(error) => match kept.buckets.nodes.get(&key).await? {
                // It was not confirmed, and stored all the same.
                Some(entry) if entry.value == *node => entry.revision,
                // An earlier write that was taken for failed was stored: the
                // memory is behind, and catches up.
                Some(entry) => {
                    index.note(serial, &entry.value, entry.revision);
                    match entry
                        .value
                        .into_record(serial, super::StoredFacts::default(), None)
                    {
                        Some(record) => drop(self.show(record)),
                        None => drop(self.0.snapshot.rcu(|now| Arc::new(now.without(serial)))),
                    }
                    return Err(error.into());
                }
                None => return Err(error.into()),
            },
        };
        index.note(serial, node, revision);
        Ok(())
    }

    fn show(&self, record: NodeRecord) -> Arc<NodeRecord> {
        let serial = record.serial;
        self.0.snapshot.rcu(|now| {
            let mut record = record.clone();
            // Facts are written beside this.
            if let Some(old) = now.get(serial) {
                record.facts = Arc::clone(&old.facts);
                record.notes.clone_from(&old.notes);
                record.last_seen = record.last_seen.or(old.last_seen);
            }
            Arc::new(now.with(Arc::new(record)))
        });
        self.snapshot()
            .get(serial)
            .cloned()
            .unwrap_or_else(|| Arc::new(record))
    }
}

fn check_counts(
    roles: &[RoleName],
    labels: &BTreeMap<LabelKey, LabelValue>,
) -> Result<(), InventoryError> {
    if roles.len() > MAX_ROLES || labels.len() > MAX_LABELS {
        return Err(InventoryError::TooMany);
    }
    Ok(())
}

fn changed(old: &Assignment, change: &NodeChange) -> Result<Assignment, InventoryError> {
    if let Some(role) = change
        .add_roles
        .iter()
        .find(|r| change.remove_roles.contains(r))
    {
        return Err(InventoryError::Contradiction(role.to_string()));
    }
    if let Some(key) = change
        .set_labels
        .keys()
        .find(|k| change.remove_labels.contains(k))
    {
        return Err(InventoryError::Contradiction(key.to_string()));
    }
    let mut next = old.clone();
    next.roles.extend(change.add_roles.iter().cloned());
    next.roles
        .retain(|role| !change.remove_roles.contains(role));
    next.roles.sort();
    next.roles.dedup();
    next.labels.extend(change.set_labels.clone());
    next.labels
        .retain(|key, _| !change.remove_labels.contains(key));
    check_counts(&next.roles, &next.labels)?;
    Ok(next)
}

/// `web-01: +web -lb zone=gva2 -rack`
fn describe(name: &NodeName, change: &NodeChange) -> String {
    let words = (change.add_roles.iter().map(|r| format!("role +{r}")))
        .chain(change.remove_roles.iter().map(|r| format!("role -{r}")))
        .chain(change.set_labels.iter().map(|(k, v)| format!("{k}={v}")))
        .chain(change.remove_labels.iter().map(|k| format!("-{k}")))
        .chain(
            change
                .infrastructure
                .map(|on| format!("infrastructure {on}")),
        );
    format!("{name}: {}", words.collect::<Vec<_>>().join(" "))
}
