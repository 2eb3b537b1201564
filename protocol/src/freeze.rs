//! Stopping everything new on all nodes at once, and letting it go on.
//!
//! What is in force is one [`Freeze`], with a revision that rises with every
//! change. A broker signs it anew for each node that it tells; a node keeps
//! the highest revision on its disk and never goes back to a lower one. So an
//! old message, however well signed, thaws nobody.

use serde::{Deserialize, Serialize};

use crate::ids::{ClusterId, InstanceId};
use crate::keys::{KeyError, KeyList, PrivateKey, Purpose, SignedText};
use crate::names::PrincipalName;
use crate::units::Timestamp;

/// The longest reason, in characters.
pub const MAX_WHY: usize = 300;

/// What is in force.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Freeze {
    /// The cluster.
    pub cluster: ClusterId,
    /// Rises with every change.
    pub revision: u64,
    /// Whether nothing new is begun.
    pub frozen: bool,
    /// Why, in that person's words.
    pub why: String,
    /// Who said so.
    pub by: PrincipalName,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
}

/// Why a freeze is not taken.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum FreezeError {
    /// The signature or the content.
    #[error("the freeze is refused: {0}")]
    Key(#[from] KeyError),
    /// Another cluster's.
    #[error("the freeze is for cluster {0}")]
    Cluster(ClusterId),
    /// Older than what is held.
    #[error("the freeze has revision {theirs}, {ours} is known already")]
    Older {
        /// The revision held.
        ours: u64,
        /// The revision offered.
        theirs: u64,
    },
}

impl Freeze {
    /// Signs it with a broker key.
    #[must_use]
    pub fn sign(&self, key: &PrivateKey) -> SignedText {
        SignedText::sign(key, Purpose::Freeze, self)
    }

    /// Reads one that an active broker key of this cluster signed, and that
    /// does not go back behind `held`. The same once more is fine.
    ///
    /// # Errors
    /// [`FreezeError`].
    pub fn successor(
        signed: &SignedText,
        keys: &KeyList,
        held: Option<&Self>,
    ) -> Result<Self, FreezeError> {
        let next: Self = keys.open_signed(signed, Purpose::Freeze)?;
        if next.cluster != keys.cluster {
            return Err(FreezeError::Cluster(next.cluster));
        }
        match held {
            Some(held) if next.revision < held.revision => Err(FreezeError::Older {
                ours: held.revision,
                theirs: next.revision,
            }),
            // Two of one revision: the one that stops counts.
            Some(held) if next.revision == held.revision && held.frozen && !next.frozen => {
                Err(FreezeError::Older {
                    ours: held.revision,
                    theirs: next.revision,
                })
            }
            _ => Ok(next),
        }
    }

    /// `frozen by ana: the switch in gva2 is being replaced`
    #[must_use]
    pub fn reason(&self) -> String {
        format!(
            "frozen by {}: {}",
            self.by,
            crate::text::printable(&self.why, MAX_WHY)
        )
    }
}

/// What a node says that it knows of a freeze.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FreezeMark {
    /// The revision on its disk; 0 for none.
    pub revision: u64,
    /// What it holds, as it was signed: for a broker that has forgotten it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<SignedText>,
}

/// A node has this on its disk, and goes by it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FreezeTaken {
    /// This start of the agent.
    pub instance: InstanceId,
    /// The revision.
    pub revision: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{BrokerKey, BrokerKeyState};

    #[test]
    fn only_a_broker_of_the_cluster_freezes_and_only_forward() {
        let (root, key) = (PrivateKey::generate(), PrivateKey::generate());
        let cluster = ClusterId::from_bytes([1; 16]);
        let mut keys = KeyList {
            cluster,
            epoch: 1,
            root: root.public(),
            keys: vec![BrokerKey {
                key: key.public(),
                state: BrokerKeyState::Active,
                added: Timestamp::UNIX_EPOCH,
            }],
            issued: Timestamp::UNIX_EPOCH,
        };
        let of = |revision, frozen| Freeze {
            cluster,
            revision,
            frozen,
            why: "a test\x1b[31m".into(),
            by: "ana".parse().unwrap(),
            at: Timestamp::UNIX_EPOCH,
        };
        let held = of(5, true);
        let take = |freeze: &Freeze, key: &PrivateKey, keys: &KeyList| {
            Freeze::successor(&freeze.sign(key), keys, Some(&held))
        };
        assert_eq!(take(&of(6, false), &key, &keys), Ok(of(6, false)));
        assert!(take(&of(5, true), &key, &keys).is_ok());
        assert!(take(&of(5, false), &key, &keys).is_err());
        assert!(take(&of(4, false), &key, &keys).is_err());
        assert!(take(&of(6, false), &PrivateKey::generate(), &keys).is_err());
        let other = Freeze {
            cluster: ClusterId::from_bytes([2; 16]),
            ..of(6, false)
        };
        assert!(take(&other, &key, &keys).is_err());
        let mistaken = SignedText::sign(&key, Purpose::Request, &of(6, false));
        assert!(Freeze::successor(&mistaken, &keys, None).is_err());
        keys.keys[0].state = BrokerKeyState::Revoked;
        assert!(take(&of(6, false), &key, &keys).is_err());
        assert_eq!(held.reason(), "frozen by ana: a test\\x1b[31m");
    }
}
