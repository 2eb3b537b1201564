//! How a machine becomes a node, and how a node gets fresh credentials.

mod challenge;
mod names;
mod proof;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use muster_protocol::api::{
    Challenge, Invite, InviteRequest, InviteToken, InviteView, Invites, Secret,
};
use muster_protocol::ids::Serial;
use muster_protocol::keys::{PublicKey, Purpose, SignedText};
use muster_protocol::names::{LabelKey, LabelValue, NodeName, PrincipalName, RoleName};
use muster_protocol::units::{Span, Timestamp, after};
use muster_protocol::wire::{
    self, Credentials, CredentialsAnswer, CredentialsRequest, EnrollRequest, MAX_MESSAGE, Trust,
};
use serde::{Deserialize, Serialize};
use tokio::sync::RwLock;

use self::challenge::Challenges;
use crate::authority::Authority;
use crate::events::Events;
use crate::inventory::{
    Inventory, InventoryError, MAX_LABELS, MAX_ROLES, NewNode, NodeControl, NodeRecord, now_seconds,
};
use crate::lease::Lease;
use crate::nats::jwt::{JwtError, UserClaims};
use crate::nats::keys::{NatsKeys, UserKey};
use crate::nats::permissions::node_permissions;
use crate::peers::Peers;
use crate::secrets::SecretHash;
use crate::store::kv::{Kv, KvError};
use crate::vm::ports::ForMachine;

pub use self::names::{MAX_COUNT, PatternError, expand};

/// How long an invite lives when nobody says.
const DEFAULT_LIFE: Span = Span::from_secs(3_600);
/// Longest life of an invite.
const MAX_LIFE: Span = Span::from_secs(90 * 86_400);
/// A used invite is remembered so long after its end, so that a node whose
/// answer was lost can ask again.
const KEEP_USED: Duration = Duration::from_secs(86_400);
/// Subscriptions that a node may hold beyond those for its roles and labels.
const SPARE_SUBSCRIPTIONS: usize = 32;
/// Room for headers beside the largest message.
const HEADERS: usize = 4096;

/// A value of `muster_invites`; the key is the invite's id.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct StoredInvite {
    hash: SecretHash,
    name: NodeName,
    roles: Vec<RoleName>,
    labels: BTreeMap<LabelKey, LabelValue>,
    infrastructure: bool,
    by: PrincipalName,
    expires: Timestamp,
    /// The node whose name it gives to a new key.
    replaces: Option<Serial>,
    /// Who has used it.
    used: Option<Used>,
}

impl StoredInvite {
    /// Whether a node was made with it.
    pub(crate) fn is_used(&self) -> bool {
        self.used.is_some()
    }
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
struct Used {
    serial: Serial,
    node_key: PublicKey,
    nats_key: String,
}

/// Why a machine does not become a node, or gets no credentials.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnrollError {
    /// The names asked for.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// More than fits into credentials.
    #[error("a node has at most {MAX_ROLES} roles and {MAX_LABELS} labels")]
    TooMany,
    /// An invite that would never work, or for too long.
    #[error("an invite lives between a second and 90 days")]
    Life,
    /// No such invite.
    #[error("there is no invite {0}; `muster node invites` shows them")]
    NoInvite(String),
    /// Unknown, or with a wrong secret.
    #[error(
        "this invite is not valid: it is unknown, was withdrawn, or is mistyped; ask for a new one"
    )]
    BadInvite,
    /// Too late.
    #[error("this invite expired at {0}; ask for a new one")]
    Expired(Timestamp),
    /// It works once.
    #[error("this invite was used by another key; ask for a new one")]
    Used,
    /// Unknown, used, or older than a minute.
    #[error("the challenge is unknown, was used, or is older than a minute; ask for another")]
    BadChallenge,
    /// Too many challenges are open.
    #[error("too many enrolments at once; try again in a minute")]
    Busy,
    /// The key was not proven.
    #[error("the proof does not match the key")]
    BadProof,
    /// Not a NATS user key.
    #[error("the NATS key is not the public key of a NATS user (U...)")]
    BadNatsKey,
    /// No node of that serial.
    #[error("node {0} is not enrolled: it was removed or replaced; its key is refused for ever")]
    Gone(Serial),
    /// A serial that this broker never gave, as far as it knows.
    #[error(
        "node {0} is not known to this broker; it may have been restored from a backup: enrol again"
    )]
    Unknown(Serial),
    /// It makes no machines.
    #[error("{0} has not the role hypervisor: it gets no images")]
    NoHypervisor(NodeName),
    /// The inventory says no.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    /// This broker may not write now.
    #[error("this broker is not the active one now; try again in a few seconds")]
    NotActive,
    /// NATS.
    #[error("the invites could not be read or written: {0}")]
    Store(#[from] KvError),
    /// The account key cannot sign.
    #[error("the node's credentials cannot be signed: {0}")]
    Sign(#[from] JwtError),
}

/// What nodes are told about how to connect.
#[derive(Clone, Debug)]
pub struct Connect {
    /// Where NATS is.
    pub nats_urls: Vec<String>,
    /// The authority that signs its certificate; PEM.
    pub nats_ca: Option<String>,
    /// The authority that signs the broker's certificate; PEM.
    pub broker_ca: Option<String>,
    /// How long NATS credentials live.
    pub life: Span,
    /// The brokers of the cluster.
    pub peers: Peers,
}

impl Connect {
    /// Where nodes find brokers; empty when there is only one, which they
    /// know.
    fn brokers(&self) -> Vec<String> {
        let urls = self.peers.urls();
        if urls.len() > 1 { urls } else { Vec::new() }
    }
}

/// Invites and enrolment. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Enrolment(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    bucket: Kv<StoredInvite>,
    inventory: Inventory,
    authority: Authority,
    keys: Arc<NatsKeys>,
    lease: Lease,
    events: Events,
    connect: Connect,
    challenges: Challenges,
    /// Held to read by whoever enrols, to write by whoever ends an invite: who
    /// was let in by it is a node then, or never will be.
    door: RwLock<()>,
}

impl Enrolment {
    /// Invites in `bucket`, nodes in `inventory`.
    #[must_use]
    pub fn new(
        bucket: Kv<StoredInvite>,
        inventory: Inventory,
        authority: Authority,
        keys: Arc<NatsKeys>,
        lease: Lease,
        events: Events,
        connect: Connect,
    ) -> Self {
        let challenges = Challenges::default();
        Self(Arc::new(Inner {
            bucket,
            inventory,
            authority,
            keys,
            lease,
            events,
            connect,
            challenges,
            door: RwLock::new(()),
        }))
    }

    /// Makes invites, one for each name.
    ///
    /// # Errors
    /// [`EnrollError`]; then none of them works.
    pub async fn invite(
        &self,
        request: InviteRequest,
        by: &PrincipalName,
    ) -> Result<Invites, EnrollError> {
        let names = expand(&request.name, request.count)?;
        if request.roles.len() > MAX_ROLES || request.labels.len() > MAX_LABELS {
            return Err(EnrollError::TooMany);
        }
        let expires = ends(request.expires)?;
        let snapshot = self.0.inventory.snapshot();
        if let Some(taken) = names.iter().find(|name| snapshot.by_name(name).is_some()) {
            return Err(InventoryError::NameTaken(taken.clone()).into());
        }
        let (mut roles, count) = (request.roles, names.len());
        roles.sort();
        roles.dedup();
        let made = names.into_iter().map(|name| StoredInvite {
            hash: SecretHash::of(&Secret::new("")),
            name,
            roles: roles.clone(),
            labels: request.labels.clone(),
            infrastructure: request.infrastructure,
            by: by.clone(),
            expires,
            replaces: None,
            used: None,
        });
        let stored = stream::iter(made)
            .map(|invite| self.store(invite))
            .buffered(64);
        let invites: Vec<Invite> = stored.try_collect().await?;
        let text = match count {
            1 => format!("{by} made an invite for {}", request.name),
            n => format!("{by} made {n} invites for {}", request.name),
        };
        self.0
            .events
            .emit("invite.created", &request.name, text)
            .await;
        Ok(Invites {
            invites,
            brokers: self.0.connect.peers.urls(),
        })
    }

    /// Makes an invite by which a new key takes the place of a node.
    ///
    /// # Errors
    /// [`EnrollError`].
    pub async fn invite_replacement(
        &self,
        name: &NodeName,
        expires: Option<Span>,
        by: &PrincipalName,
    ) -> Result<Invite, EnrollError> {
        let expires = ends(expires)?;
        let snapshot = self.0.inventory.snapshot();
        let node = snapshot
            .by_name(name)
            .ok_or_else(|| InventoryError::NoNode(name.to_string()))?;
        let invite = self
            .store(StoredInvite {
                hash: SecretHash::of(&Secret::new("")),
                name: name.clone(),
                roles: node.assignment.roles.clone(),
                labels: node.assignment.labels.clone(),
                infrastructure: node.infrastructure,
                by: by.clone(),
                expires,
                replaces: Some(node.serial),
                used: None,
            })
            .await?;
        let text = format!("{by} made an invite for a new key of {name}");
        self.0
            .events
            .emit("invite.created", name.as_str(), text)
            .await;
        Ok(invite)
    }

    /// Invites that can be used, the next to end first.
    ///
    /// # Errors
    /// [`EnrollError::Store`].
    pub async fn list(&self) -> Result<Vec<InviteView>, EnrollError> {
        let now = Timestamp::now();
        let entries = self.0.bucket.list().await?.entries;
        let mut views: Vec<_> = entries
            .into_iter()
            .filter(|e| e.value.used.is_none() && e.value.expires > now)
            .map(|e| InviteView {
                id: e.key,
                name: e.value.name,
                roles: e.value.roles,
                labels: e.value.labels,
                by: e.value.by,
                replaces: e.value.replaces,
                expires: e.value.expires,
            })
            .collect();
        views.sort_by(|a, b| (a.expires, &a.name, &a.id).cmp(&(b.expires, &b.name, &b.id)));
        Ok(views)
    }

    /// Withdraws an invite that was not used.
    ///
    /// # Errors
    /// [`EnrollError::NoInvite`], and others.
    pub async fn withdraw(&self, id: &str, by: &PrincipalName) -> Result<(), EnrollError> {
        self.active()?;
        let missing = || EnrollError::NoInvite(muster_protocol::text::printable(id, 40));
        if id.is_empty() || id.len() > 40 {
            return Err(missing());
        }
        let entry = self
            .0
            .bucket
            .get(id)
            .await?
            .filter(|e| e.value.used.is_none())
            .ok_or_else(missing)?;
        self.0
            .bucket
            .delete(id, entry.revision)
            .await
            .map_err(|error| match error {
                // It was used just now.
                KvError::Conflict { .. } => missing(),
                error => error.into(),
            })?;
        let name = entry.value.name.as_str();
        self.0
            .events
            .emit(
                "invite.withdrawn",
                name,
                format!("{by} withdrew an invite for {name}"),
            )
            .await;
        Ok(())
    }

    /// Forgets invites that ended long ago.
    ///
    /// # Errors
    /// [`EnrollError::Store`].
    pub async fn tidy(&self) -> Result<(), EnrollError> {
        let now = Timestamp::now();
        for entry in self.0.bucket.list().await?.entries {
            if after(entry.value.expires, KEEP_USED) < now && self.active().is_ok() {
                match self.0.bucket.delete(&entry.key, entry.revision).await {
                    Ok(_) | Err(KvError::Conflict { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    /// The text of an invite that nobody has yet.
    pub(crate) fn token(&self) -> InviteToken {
        InviteToken::generate(self.0.authority.root().fingerprint())
    }

    /// Where brokers are.
    pub(crate) fn brokers(&self) -> Vec<String> {
        self.0.connect.peers.urls()
    }

    /// Lets the agent in a new machine in, by a token that its record names
    /// already.
    pub(crate) async fn invite_machine(
        &self,
        token: &InviteToken,
        invite: ForMachine,
    ) -> Result<(), EnrollError> {
        self.active()?;
        let stored = StoredInvite {
            hash: SecretHash::of(&token.secret),
            name: invite.name,
            roles: invite.roles,
            labels: invite.labels,
            infrastructure: false,
            by: invite.by,
            expires: invite.expires,
            replaces: None,
            used: None,
        };
        self.0.bucket.create(&token.id, &stored).await?;
        Ok(())
    }

    /// The node that has taken a node's place. That is known for a day after
    /// the invite for it has ended.
    pub(crate) async fn successor(&self, node: Serial) -> Result<Option<Serial>, EnrollError> {
        let _door = self.0.door.write().await;
        let invites = self.0.bucket.list().await?.entries.into_iter();
        let mut taken = invites.filter(|entry| entry.value.replaces == Some(node));
        Ok(taken.find_map(|entry| entry.value.used.map(|used| used.serial)))
    }

    /// Nothing is known of an invite any more, also when it was used: whoever
    /// was let in by it, and has not heard so, is refused when it asks again.
    pub(crate) async fn bar(&self, id: &str) -> Result<(), EnrollError> {
        let _door = self.0.door.write().await;
        // The second time it is used, for better or worse.
        for _ in 0..3 {
            self.active()?;
            let Some(entry) = self.0.bucket.get(id).await? else {
                return Ok(());
            };
            match self.0.bucket.delete(id, entry.revision).await {
                Ok(_) => return Ok(()),
                Err(KvError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(EnrollError::Used)
    }

    /// An invite lets nobody in any more; the node that it has let in.
    pub(crate) async fn void(&self, id: &str) -> Result<Option<Serial>, EnrollError> {
        let _door = self.0.door.write().await;
        // The second time it is used, for better or worse.
        for _ in 0..3 {
            self.active()?;
            let Some(entry) = self.0.bucket.get(id).await? else {
                return Ok(None);
            };
            if let Some(used) = &entry.value.used {
                return Ok(Some(used.serial));
            }
            match self.0.bucket.delete(id, entry.revision).await {
                Ok(_) => return Ok(None),
                Err(KvError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(EnrollError::Used)
    }

    /// What can be known of the cluster before trusting it.
    #[must_use]
    pub fn trust(&self) -> Trust {
        let cluster = self.0.authority.list().cluster;
        let authority = wire::Authority {
            cluster,
            certificate: self.0.connect.broker_ca.clone(),
        };
        Trust {
            root: self.0.authority.root(),
            keys: self.0.authority.signed_list(),
            authority: self
                .0
                .authority
                .sign_with_root(Purpose::Authority, &authority),
        }
    }

    /// A challenge for the next proof.
    ///
    /// # Errors
    /// [`EnrollError::Busy`].
    pub fn challenge(&self) -> Result<Challenge, EnrollError> {
        let challenge = self
            .0
            .challenges
            .give(Instant::now())
            .ok_or(EnrollError::Busy)?;
        Ok(Challenge { challenge })
    }

    /// Makes a node of a machine that has an invite and proves its key. Of
    /// several that use one invite, exactly one becomes a node; the same one
    /// may ask again when the answer was lost.
    ///
    /// # Errors
    /// [`EnrollError`].
    pub async fn enroll(&self, request: &EnrollRequest) -> Result<CredentialsAnswer, EnrollError> {
        self.active()?;
        let nats_key: UserKey = request
            .nats_key
            .parse()
            .map_err(|_| EnrollError::BadNatsKey)?;
        self.prove(
            &request.node_key,
            &request.challenge,
            nats_key.as_str(),
            &request.proof,
        )?;
        let token: InviteToken = request.token.parse().map_err(|_| EnrollError::BadInvite)?;
        // Until it is a node, nobody ends the invite that it comes by.
        let _door = self.0.door.read().await;
        // The second time it is used, for better or worse.
        for _ in 0..3 {
            let entry = self
                .0
                .bucket
                .get(&token.id)
                .await?
                .ok_or(EnrollError::BadInvite)?;
            let mut invite = entry.value;
            if !invite.hash.fits(&token.secret) {
                return Err(EnrollError::BadInvite);
            }
            if let Some(used) = &invite.used {
                if used.node_key != request.node_key || used.nats_key != request.nats_key {
                    return Err(EnrollError::Used);
                }
                let serial = used.serial;
                return self.join(invite, serial, request, nats_key).await;
            }
            if invite.expires <= Timestamp::now() {
                return Err(EnrollError::Expired(invite.expires));
            }
            // What will surely fail must not use the invite up.
            let could = self.0.inventory.could_add(
                &request.node_key,
                &nats_key,
                &invite.name,
                invite.replaces,
            );
            if let Err(error) = could.await {
                // Or has the invite been used since it was read? Then that is
                // the reason, and not that its name is taken now.
                match self.0.bucket.get(&token.id).await? {
                    Some(now) if now.revision != entry.revision => continue,
                    _ => return Err(error.into()),
                }
            }
            let serial = self.0.inventory.allocate().await?;
            invite.used = Some(Used {
                serial,
                node_key: request.node_key,
                nats_key: request.nats_key.clone(),
            });
            self.active()?;
            match self
                .0
                .bucket
                .update(&token.id, &invite, entry.revision)
                .await
            {
                Ok(_) => return self.join(invite, serial, request, nats_key).await,
                Err(KvError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(EnrollError::Used)
    }

    async fn join(
        &self,
        invite: StoredInvite,
        serial: Serial,
        request: &EnrollRequest,
        nats_key: UserKey,
    ) -> Result<CredentialsAnswer, EnrollError> {
        let snapshot = self.0.inventory.snapshot();
        let fresh = snapshot.get(serial).is_none();
        // Roles and labels as they are now, not as they were when the invite
        // was made.
        let old = invite.replaces.and_then(|old| snapshot.get(old));
        let (roles, labels, infrastructure) = match old {
            Some(old) => (
                old.assignment.roles.clone(),
                old.assignment.labels.clone(),
                old.infrastructure,
            ),
            None => (invite.roles, invite.labels, invite.infrastructure),
        };
        let new = NewNode {
            serial,
            node_key: request.node_key,
            nats_key,
            name: invite.name,
            roles,
            labels,
            infrastructure,
            replaces: invite.replaces,
        };
        let record = self.0.inventory.add(new).await?;
        if fresh {
            let name = record.assignment.name.as_str();
            let print = request.node_key.fingerprint();
            let what = match old {
                Some(_) => {
                    format!("{name} enrolled with a new key {print}; its old key is refused")
                }
                None => format!("{name} enrolled with key {print}, invited by {}", invite.by),
            };
            self.0.events.emit("node.enrolled", name, what).await;
        }
        self.issue(serial).await
    }

    /// Fresh credentials for a node that proves its key. When it gives a
    /// newer list of broker keys, that is taken first, so that it can believe
    /// the answer: this broker has gone back in time.
    ///
    /// # Errors
    /// [`EnrollError`].
    pub async fn credentials(
        &self,
        request: &CredentialsRequest,
        control: &dyn NodeControl,
    ) -> Result<CredentialsAnswer, EnrollError> {
        let record = self
            .proven(request.serial, &request.challenge, &request.proof)
            .await?;
        if let Some(list) = &request.keys {
            self.hear_keys(&record, list, control).await;
        }
        self.issue(request.serial).await
    }

    /// A list that is not taken is no reason to refuse the credentials: the
    /// node judges the answer.
    async fn hear_keys(&self, node: &NodeRecord, list: &SignedText, control: &dyn NodeControl) {
        let name = &node.assignment.name;
        let bytes = list.text.len();
        if bytes > MAX_MESSAGE {
            tracing::warn!(node = %name, bytes, "a list of broker keys that a node gives is too large");
            return;
        }
        let authority = &self.0.authority;
        if let Err(error) = authority.hear(list, control, name.as_str()).await {
            tracing::warn!(node = %name, %error, "a list of broker keys that a node gives is not taken");
        }
    }

    async fn issue(&self, serial: Serial) -> Result<CredentialsAnswer, EnrollError> {
        // Before what is stored: when this broker is stopped in between and
        // overtaken, the node sees that the other one's answer is newer.
        let issued = Timestamp::now();
        let (record, iat) = match self.0.inventory.next_iat(serial).await {
            Err(InventoryError::NoNode(_)) => return Err(EnrollError::Gone(serial)),
            other => other?,
        };
        let life = self.0.connect.life.get();
        // From the later of the two, so that a clock that was set back does
        // not shorten it; rounded to the seconds that the JWT knows.
        let ends_at = iat.max(now_seconds()).saturating_add(life.as_secs());
        let expires = i64::try_from(ends_at)
            .ok()
            .and_then(|at| Timestamp::from_second(at).ok())
            .unwrap_or(Timestamp::MAX);
        let jwt = self
            .claims(&record, iat, ends_at)?
            .sign(self.0.keys.account())?;
        let signer = self.0.authority.signer();
        let credentials = Credentials {
            cluster: signer.cluster,
            serial,
            node_key: record.node_key,
            assignment: record.assignment.clone(),
            nats_urls: self.0.connect.nats_urls.clone(),
            brokers: self.0.connect.brokers(),
            nats_ca: self.0.connect.nats_ca.clone(),
            jwt,
            expires,
            issued,
        };
        self.active()?;
        Ok(CredentialsAnswer {
            credentials: SignedText::sign(&signer.key, Purpose::Credentials, &credentials),
            keys: self.0.authority.signed_list(),
        })
    }

    fn claims(
        &self,
        record: &NodeRecord,
        iat: u64,
        expires_at: u64,
    ) -> Result<UserClaims, EnrollError> {
        let user: UserKey = record
            .nats_key
            .parse()
            .map_err(|_| EnrollError::BadNatsKey)?;
        let Assigned { roles, labels } = Assigned::of(record);
        let subscriptions = roles.len() + labels.len() + SPARE_SUBSCRIPTIONS;
        Ok(UserClaims {
            name: record.assignment.name.to_string(),
            user,
            issued_at: iat,
            expires_at: Some(expires_at),
            permissions: node_permissions(record.serial.0, &roles, &labels),
            max_subscriptions: u32::try_from(subscriptions).ok(),
            max_payload: u32::try_from(MAX_MESSAGE + HEADERS).ok(),
        })
    }

    async fn store(&self, mut invite: StoredInvite) -> Result<Invite, EnrollError> {
        let root = self.0.authority.root().fingerprint();
        loop {
            self.active()?;
            let token = InviteToken::generate(root);
            invite.hash = SecretHash::of(&token.secret);
            match self.0.bucket.create(&token.id, &invite).await {
                Ok(_) => {
                    let token = token.text().expose().to_owned();
                    return Ok(Invite {
                        name: invite.name,
                        token,
                        expires: invite.expires,
                    });
                }
                // An id of 40 random bits that was there already.
                Err(KvError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn active(&self) -> Result<u64, EnrollError> {
        self.0.lease.epoch().ok_or(EnrollError::NotActive)
    }
}

struct Assigned<'a> {
    roles: Vec<&'a str>,
    labels: Vec<(&'a str, &'a str)>,
}

impl<'a> Assigned<'a> {
    fn of(record: &'a NodeRecord) -> Self {
        let assignment = &record.assignment;
        Self {
            roles: assignment.roles.iter().map(RoleName::as_str).collect(),
            labels: assignment
                .labels
                .iter()
                .map(|(k, v)| (k.as_str(), v.as_str()))
                .collect(),
        }
    }
}

fn ends(life: Option<Span>) -> Result<Timestamp, EnrollError> {
    let life = life.unwrap_or(DEFAULT_LIFE);
    if life.get() < Duration::from_secs(1) || life > MAX_LIFE {
        return Err(EnrollError::Life);
    }
    Ok(after(Timestamp::now(), life.get()))
}
