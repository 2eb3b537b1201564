//! Who wrote a line, as far as somebody vouches for it.

use data_encoding::HEXLOWER;
use muster_protocol::api::{ChatLine, Role, Vouched};
use muster_protocol::chat::Proof;
use muster_protocol::envelope::Door;
use muster_protocol::names::{NetworkName, PrincipalName};
use muster_protocol::units::Timestamp;
use sha2::{Digest as _, Sha256};

use super::{Line, say};
use crate::authz::{Action, Caller, Origin};
use crate::chat::totp::TotpError;
use crate::http::AppState;

/// Whoever is not known at all.
const NOBODY: &str = "irc-nobody";

/// The principal of an account that `principals.toml` gives to nobody.
fn stranger(network: &NetworkName, account: &str) -> PrincipalName {
    let plain = format!("irc:{network}:{}", account.to_ascii_lowercase());
    // An account can hold what no name does, and be longer than one: then it
    // is a hash, behind a sign that no account has.
    let hash = Sha256::digest(account.to_ascii_lowercase());
    let other = format!("irc:{network}:/{}", HEXLOWER.encode(&hash[..12]));
    let fits = !account.contains('/');
    plain
        .parse()
        .ok()
        .filter(|_| fits)
        .or_else(|| other.parse().ok())
        .unwrap_or_else(nobody)
}

fn nobody() -> PrincipalName {
    NOBODY.parse().expect("a constant name")
}

/// Who asks, as it is judged.
pub(super) fn asker(state: &AppState, witness: &Caller, line: &ChatLine) -> Caller {
    let document = state.policies.document();
    let principals = &document.principals;
    let speaker = &line.speaker;
    let linked = || {
        let sight = speaker.sight.as_deref()?;
        state.desk.links.of(&line.network, sight, Timestamp::now())
    };
    let (principal, role, proof) = match &speaker.account {
        Some(account) => {
            let proof = match account.vouched {
                Vouched::Tag => Proof::Tag,
                Vouched::Tracked => Proof::Tracked,
            };
            match principals.by_account(&line.network, &account.name) {
                Some(principal) => (principal.clone(), principals.role(principal), proof),
                None => {
                    let principal = stranger(&line.network, &account.name);
                    let role = principals.role(&principal);
                    (principal, role, proof)
                }
            }
        }
        None => match linked() {
            // The role of the token with which the code was made: for as long
            // as the link lasts, and for reading, unless a code comes with it.
            Some(linked) => (linked.principal, linked.role, Proof::Link),
            None => (nobody(), Role::Member, Proof::None),
        },
    };
    Caller {
        principal,
        role,
        token: witness.token.clone(),
        door: Door::Irc,
        origin: Origin::Chat {
            network: line.network.clone(),
            account: speaker.account.as_ref().map(|account| account.name.clone()),
            nick: speaker.nick.clone(),
            sight: speaker.sight.clone(),
            channel: line.channel.clone(),
            line: line.id.clone(),
            proof,
        },
    }
}

/// The same, with a code of that person's own device.
pub(super) async fn with_code(
    state: &AppState,
    mut caller: Caller,
    code: &str,
) -> Result<Caller, TotpError> {
    let totps = &state.desk.totps;
    totps
        .take(&caller.principal, code, Timestamp::now())
        .await?;
    if let Origin::Chat { proof, .. } = &mut caller.origin {
        *proof = Proof::Code;
    }
    Ok(caller)
}

fn proof(caller: &Caller) -> Proof {
    match &caller.origin {
        Origin::Chat { proof, .. } => *proof,
        _ => Proof::None,
    }
}

/// How it is known who somebody is.
fn known_by(caller: &Caller) -> &'static str {
    match proof(caller) {
        Proof::None => "nobody vouches for you",
        Proof::Link => {
            "linked by a one-time code: you may read; what changes anything needs --code"
        }
        Proof::Tracked => {
            "the network said earlier that you are logged in: you may read; what changes anything needs --code"
        }
        Proof::Tag => "the network vouches for every line of yours",
        Proof::Code => "the code of your device says so",
    }
}

impl Line<'_> {
    pub(super) async fn who(&self) -> super::Answer {
        self.allowed(Action::WhoAmI).await.or_else(|error| {
            // Whoever may do nothing may know that.
            if error.0.kind == muster_protocol::problem::Kind::Denied {
                Ok(())
            } else {
                Err(error)
            }
        })?;
        let document = self.state.policies.document();
        let principals = &document.principals;
        let caller = &self.caller;
        let groups: Vec<&str> = principals
            .groups_of(&caller.principal)
            .map(String::as_str)
            .collect();
        let mut first = format!("you are {}", caller.principal);
        if let Some(kind) = principals.kind(&caller.principal) {
            first.push_str(&format!(" ({kind}, {})", caller.role, kind = kind.as_str()));
        } else if caller.principal.as_str() == NOBODY {
            first = "I do not know you".to_owned();
        } else {
            first.push_str(", whom principals.toml does not name");
        }
        if !groups.is_empty() {
            first.push_str(&format!(", in {}", groups.join(", ")));
        }
        Ok(vec![say::several(vec![format!(
            "{first}: {}",
            known_by(caller)
        )])])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_accounts_are_one_principal() {
        let ops: NetworkName = "ops".parse().unwrap();
        let name = |account: &str| stranger(&ops, account).to_string();
        assert_eq!(name("Ana"), "irc:ops:ana");
        assert_eq!(name("ana"), "irc:ops:ana");
        let odd = ["a/b", "a|b", "[ana]", "a^b", &"x".repeat(80), "ana "];
        let mut names: Vec<String> = odd.iter().map(|odd| name(odd)).collect();
        assert!(
            names.iter().all(|name| name.starts_with("irc:ops:/")),
            "{names:?}"
        );
        names.sort();
        names.dedup();
        assert_eq!(names.len(), odd.len());
    }
}
