//! One-time links: who has no account in a network ties what a witness sees
//! of them to who they are here. Kept in memory: a link lives no longer than
//! the sight of that person does, and after a restart it is made again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use data_encoding::BASE32_NOPAD;
use muster_protocol::api::{Role, Secret};
use muster_protocol::ids::random_bytes;
use muster_protocol::names::{NetworkName, PrincipalName};
use muster_protocol::units::{Timestamp, after};

use crate::secrets::SecretHash;

/// How long a code works.
pub const CODE_LIFE: Duration = Duration::from_secs(600);
/// How long a link lasts at most, seen without a break or not.
pub const LINK_LIFE: Duration = Duration::from_secs(12 * 3_600);
/// Most codes and links that are kept, each; the oldest go.
const MOST: usize = 10_000;
/// Wrong codes of one sight after which it gets no link.
const TRIES: u32 = 5;

/// Whom a link is of.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Linked {
    /// The principal that made the code.
    pub principal: PrincipalName,
    /// What the token could do with which it was made.
    pub role: Role,
}

#[derive(Debug)]
struct Code {
    hash: SecretHash,
    linked: Linked,
    until: Timestamp,
}

/// In which network, and which sight.
type Seen = (NetworkName, String);

#[derive(Debug, Default)]
struct Table {
    codes: Vec<Code>,
    links: HashMap<Seen, (Linked, Timestamp)>,
    wrong: HashMap<Seen, (u32, Timestamp)>,
}

/// Why there is no link.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum LinkError {
    /// Nothing is seen of that connection, so nothing would end the link.
    #[error(
        "I see you in no channel, so I would not notice when you are gone: join one that I am in, then link again"
    )]
    Unseen,
    /// No such code.
    #[error("that code is unknown, used, or over: `muster irc link` makes a new one")]
    Wrong,
    /// Too many wrong ones.
    #[error("too many wrong codes: leave and come back to try again")]
    TooMany,
}

/// Codes and links. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Links(Arc<Mutex<Table>>);

impl Links {
    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A code that links whoever shows it to `linked`, once, and until when.
    pub fn code(&self, linked: Linked, now: Timestamp) -> (Secret, Timestamp) {
        let text = BASE32_NOPAD
            .encode(&random_bytes::<10>())
            .to_ascii_lowercase();
        let code = Secret::new(text);
        let until = after(now, CODE_LIFE);
        let mut table = self.table();
        table.codes.retain(|code| code.until > now);
        if table.codes.len() >= MOST {
            table.codes.remove(0);
        }
        table.codes.push(Code {
            hash: SecretHash::of(&code),
            linked,
            until,
        });
        (code, until)
    }

    /// Ties a sight to whom the code is of; the code is used up.
    ///
    /// # Errors
    /// [`LinkError`].
    pub fn link(
        &self,
        network: &NetworkName,
        sight: Option<&str>,
        code: &str,
        now: Timestamp,
    ) -> Result<Linked, LinkError> {
        let sight = sight.ok_or(LinkError::Unseen)?;
        let seen = (network.clone(), sight.to_owned());
        let mut table = self.table();
        table.wrong.retain(|_, (_, until)| *until > now);
        if table.wrong.get(&seen).is_some_and(|(n, _)| *n >= TRIES) {
            return Err(LinkError::TooMany);
        }
        let code = Secret::new(code.trim().to_ascii_lowercase());
        let found = table
            .codes
            .iter()
            .position(|known| known.until > now && known.hash.fits(&code));
        let Some(found) = found else {
            if table.wrong.len() < MOST {
                let wrong = table
                    .wrong
                    .entry(seen)
                    .or_insert((0, after(now, CODE_LIFE)));
                wrong.0 += 1;
            }
            return Err(LinkError::Wrong);
        };
        let linked = table.codes.remove(found).linked;
        table.links.retain(|_, (_, until)| *until > now);
        if table.links.len() >= MOST {
            let oldest = table.links.iter().min_by_key(|(_, (_, until))| *until);
            if let Some(oldest) = oldest.map(|(seen, _)| seen.clone()) {
                table.links.remove(&oldest);
            }
        }
        table
            .links
            .insert(seen, (linked.clone(), after(now, LINK_LIFE)));
        Ok(linked)
    }

    /// Whom a sight is linked to.
    #[must_use]
    pub fn of(&self, network: &NetworkName, sight: &str, now: Timestamp) -> Option<Linked> {
        let table = self.table();
        let seen = (network.clone(), sight.to_owned());
        let (linked, until) = table.links.get(&seen)?;
        (*until > now).then(|| linked.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_links_one_sight_once() {
        let (links, now) = (Links::default(), Timestamp::now());
        let ops: NetworkName = "ops".parse().unwrap();
        let ana = Linked {
            principal: "ana".parse().unwrap(),
            role: Role::Operator,
        };
        let (code, _) = links.code(ana.clone(), now);
        let code = code.expose().to_owned();
        assert_eq!(links.link(&ops, None, &code, now), Err(LinkError::Unseen));
        assert_eq!(
            links.link(&ops, Some("s1"), "wrong", now),
            Err(LinkError::Wrong)
        );
        let shouted = code.to_ascii_uppercase();
        assert_eq!(links.link(&ops, Some("s1"), &shouted, now), Ok(ana.clone()));
        assert_eq!(
            links.link(&ops, Some("s2"), &code, now),
            Err(LinkError::Wrong)
        );
        assert_eq!(links.of(&ops, "s1", now), Some(ana.clone()));
        assert_eq!(links.of(&ops, "s2", now), None);
        let other: NetworkName = "dev".parse().unwrap();
        assert_eq!(links.of(&other, "s1", now), None);
        assert_eq!(links.of(&ops, "s1", after(now, LINK_LIFE)), None);
        let (code, _) = links.code(ana, now);
        let late = after(now, CODE_LIFE);
        assert_eq!(
            links.link(&ops, Some("s3"), code.expose(), late),
            Err(LinkError::Wrong)
        );
    }

    #[test]
    fn whoever_guesses_is_stopped() {
        let (links, now) = (Links::default(), Timestamp::now());
        let ops: NetworkName = "ops".parse().unwrap();
        for _ in 0..TRIES {
            assert_eq!(links.link(&ops, Some("s"), "x", now), Err(LinkError::Wrong));
        }
        assert_eq!(
            links.link(&ops, Some("s"), "x", now),
            Err(LinkError::TooMany)
        );
    }
}
