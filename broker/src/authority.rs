//! Whom the nodes obey: the root key, the signed list of broker keys, and the
//! key that this broker signs with.

use std::sync::Arc;

use arc_swap::ArcSwap;
use muster_protocol::ids::ClusterId;
use muster_protocol::keys::{KeyList, PrivateKey, SignedText};

/// What signs a request.
#[derive(Clone, Debug)]
pub struct Signer {
    /// The cluster.
    pub cluster: ClusterId,
    /// The broker key in use.
    pub key: PrivateKey,
}

#[derive(Clone, Debug)]
struct Now {
    signer: Signer,
    list: Arc<KeyList>,
    signed: SignedText,
}

/// The keys of the cluster. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Authority(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    now: ArcSwap<Now>,
}

impl Authority {
    /// The key to sign with now. Ask each time: a rotation changes it at once.
    #[must_use]
    pub fn signer(&self) -> Signer {
        self.0.now.load().signer.clone()
    }

    /// The list of broker keys.
    #[must_use]
    pub fn list(&self) -> Arc<KeyList> {
        Arc::clone(&self.0.now.load().list)
    }

    /// The list of broker keys, signed by the root key.
    #[must_use]
    pub fn signed_list(&self) -> SignedText {
        self.0.now.load().signed.clone()
    }

    /// An authority that is in memory only, for tests: a root key and one
    /// broker key.
    #[must_use]
    pub fn in_memory() -> (PrivateKey, Self) {
        use muster_protocol::keys::{BrokerKey, BrokerKeyState};
        use muster_protocol::units::Timestamp;
        let (root, key) = (PrivateKey::generate(), PrivateKey::generate());
        let cluster = ClusterId::random();
        let now = Timestamp::now();
        let list = KeyList {
            cluster,
            epoch: 1,
            root: root.public(),
            keys: vec![BrokerKey { key: key.public(), state: BrokerKeyState::Active, added: now }],
            issued: now,
        };
        let signed = list.sign(&root);
        let now = Now { signer: Signer { cluster, key }, list: Arc::new(list), signed };
        (root, Self(Arc::new(Inner { now: ArcSwap::from_pointee(now) })))
    }
}
