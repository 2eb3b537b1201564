//! Which users' JWTs are void.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::jwt::UnixSeconds;
use super::keys::{KeyError, UserKey};

/// NATS's name for all users together.
const EVERYONE: &str = "*";

/// Revoked users: for each key, the issue time up to which (inclusive) its JWTs
/// are void; and such a time for everyone.
///
/// The size of an account's claims is limited ([`super::jwt::MAX_JWT`]), so the
/// entries must be dropped again: see [`Revocations::compact`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    try_from = "BTreeMap<String, UnixSeconds>",
    into = "BTreeMap<String, UnixSeconds>"
)]
pub struct Revocations {
    everyone: Option<UnixSeconds>,
    users: BTreeMap<UserKey, UnixSeconds>,
}

impl Revocations {
    /// Voids all JWTs of `user` issued up to `until`, inclusive. Never moves an
    /// existing revocation back in time.
    pub fn revoke(&mut self, user: UserKey, until: UnixSeconds) {
        if self.everyone.is_some_and(|everyone| until <= everyone) {
            return;
        }
        let at = self.users.entry(user).or_insert(until);
        *at = (*at).max(until);
    }

    /// Adds what is revoked elsewhere.
    pub fn add(&mut self, other: Self) {
        self.everyone = self.everyone.max(other.everyone);
        for (user, until) in other.users {
            self.revoke(user, until);
        }
        let everyone = self.everyone;
        self.users
            .retain(|_, until| everyone.is_none_or(|everyone| *until > everyone));
    }

    /// Replaces single entries by one for everyone, as far as that voids
    /// nothing that is still in use: `oldest_valid` is the earliest issue time
    /// of all JWTs that must go on working, those of brokers included.
    ///
    /// When too many entries remain, give the nodes with the oldest JWTs new
    /// ones, and compact again.
    pub fn compact(&mut self, oldest_valid: UnixSeconds) {
        let Some(until) = oldest_valid.checked_sub(1) else {
            return;
        };
        let everyone = self.everyone.map_or(until, |old| old.max(until));
        self.everyone = Some(everyone);
        self.users.retain(|_, until| *until > everyone);
    }

    /// Only the single entries from `since` on.
    #[must_use]
    pub fn since(&self, since: UnixSeconds) -> Self {
        let users = self.users.iter().filter(|(_, until)| **until >= since);
        Self {
            everyone: None,
            users: users.map(|(user, until)| (user.clone(), *until)).collect(),
        }
    }

    /// Of the single entries from `since` on, keeps the newest `most`.
    pub fn keep_newest(&mut self, since: UnixSeconds, most: usize) {
        let mut times: Vec<UnixSeconds> = self
            .users
            .values()
            .copied()
            .filter(|until| *until >= since)
            .collect();
        if times.len() <= most {
            return;
        }
        times.sort_unstable_by(|a, b| b.cmp(a));
        let oldest = most.checked_sub(1).map_or(UnixSeconds::MAX, |n| times[n]);
        self.users
            .retain(|_, until| *until < since || *until >= oldest);
    }

    /// Whether a JWT of `user` issued at `issued_at` is void.
    #[must_use]
    pub fn revokes(&self, user: &UserKey, issued_at: UnixSeconds) -> bool {
        self.everyone.is_some_and(|until| issued_at <= until)
            || self
                .users
                .get(user)
                .is_some_and(|&until| issued_at <= until)
    }

    /// Number of users with an entry of their own.
    #[must_use]
    pub fn len(&self) -> usize {
        self.users.len()
    }

    /// Whether nobody is revoked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.users.is_empty() && self.everyone.is_none()
    }
}

impl From<Revocations> for BTreeMap<String, UnixSeconds> {
    fn from(revocations: Revocations) -> Self {
        let users = revocations
            .users
            .into_iter()
            .map(|(user, until)| (user.into(), until));
        let everyone = revocations
            .everyone
            .map(|until| (EVERYONE.to_owned(), until));
        users.chain(everyone).collect()
    }
}

impl TryFrom<BTreeMap<String, UnixSeconds>> for Revocations {
    type Error = KeyError;

    fn try_from(mut map: BTreeMap<String, UnixSeconds>) -> Result<Self, KeyError> {
        let everyone = map.remove(EVERYONE);
        let users = map
            .into_iter()
            .map(|(user, until)| Ok((user.parse()?, until)))
            .collect::<Result<_, KeyError>>()?;
        Ok(Self { everyone, users })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nkeys::KeyPair;

    fn user() -> UserKey {
        UserKey::of(&KeyPair::new_user()).unwrap()
    }

    #[test]
    fn a_revocation_never_goes_back() {
        let user = user();
        let mut revoked = Revocations::default();
        assert!(revoked.is_empty() && !revoked.revokes(&user, 10));
        revoked.revoke(user.clone(), 10);
        revoked.revoke(user.clone(), 5);
        assert!(revoked.revokes(&user, 10) && !revoked.revokes(&user, 11));
    }

    #[test]
    fn compacting_keeps_out_whom_it_kept_out_and_nobody_else() {
        let (gone, relabelled, never) = (user(), user(), user());
        let mut revoked = Revocations::default();
        revoked.revoke(gone.clone(), 50);
        revoked.revoke(relabelled.clone(), 80);
        revoked.compact(60);
        assert_eq!(revoked.len(), 1);
        assert!(revoked.revokes(&gone, 50) && revoked.revokes(&gone, 40));
        assert!(revoked.revokes(&relabelled, 80) && !revoked.revokes(&relabelled, 81));
        assert!(!revoked.revokes(&never, 60));
        // Never back in time, and nothing for what is void anyway.
        revoked.compact(10);
        revoked.revoke(gone.clone(), 59);
        assert_eq!(revoked.len(), 1);
        assert!(revoked.revokes(&never, 59));
        revoked.compact(0);
        revoked.compact(81);
        assert_eq!(revoked.len(), 0);
        assert!(!revoked.is_empty());
    }

    #[test]
    fn of_those_of_a_kind_the_newest_are_kept() {
        let node = user();
        let brokers: Vec<UserKey> = (0..5).map(|_| user()).collect();
        let mut revoked = Revocations::default();
        revoked.revoke(node.clone(), 80);
        for (n, broker) in brokers.iter().enumerate() {
            revoked.revoke(broker.clone(), 1_000 + n as u64);
        }
        assert_eq!(revoked.since(1_000).len(), 5);
        revoked.keep_newest(1_000, 5);
        assert_eq!(revoked.len(), 6);
        revoked.keep_newest(1_000, 2);
        assert_eq!(revoked.len(), 3);
        assert!(revoked.revokes(&node, 80));
        assert!(!revoked.revokes(&brokers[2], 1_000));
        assert!(revoked.revokes(&brokers[3], 1_000) && revoked.revokes(&brokers[4], 1_000));
        revoked.keep_newest(1_000, 0);
        assert_eq!(revoked.since(1_000).len(), 0);
    }

    #[test]
    fn they_come_back_from_json() {
        let mut revoked = Revocations::default();
        revoked.revoke(user(), 80);
        revoked.compact(60);
        let json = serde_json::to_string(&revoked).unwrap();
        assert!(json.contains(r#""*":59"#), "{json}");
        assert_eq!(serde_json::from_str::<Revocations>(&json).unwrap(), revoked);
        assert!(serde_json::from_str::<Revocations>(r#"{"nobody":1}"#).is_err());
    }
}
