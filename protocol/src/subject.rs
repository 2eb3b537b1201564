//! NATS subjects: the only place that builds one.
//!
//! | subject | who says it | what |
//! |---|---|---|
//! | `m1.do.all` | broker | a signed request to every node |
//! | `m1.do.role.<role>`, `m1.do.label.<key>.<value>` | broker | to the nodes with that role or label |
//! | `m1.do.node.<serial>` | broker | to one node |
//! | `m1.from.<serial>.<kind>` | that node | everything a node says, see [`NodeSays`] |
//! | `m1.run.<run>.j`, `m1.run.<run>.o` | broker | the run's journal, and its nodes' output |
//! | `m1.event` | broker | what happened in the cluster |
//! | `m1.audit` | broker | the record of who did what |
//! | `m1.chat.<network>` | broker | what is to be said in a chat network |
//! | `m1.release.<sha256>.meta`, `m1.release.<sha256>.part.<n>` | broker | an agent release, and the bytes of it |
//!
//! The subject is routing only. What a node obeys is the signed set.

use std::fmt;

use crate::ids::{RunId, Serial};
use crate::names::NetworkName;
use crate::release::ReleaseId;

/// Requests to every node.
pub const ALL: &str = "m1.do.all";
/// What all nodes say, for the broker's subscription.
pub const FROM_ALL: &str = "m1.from.*.*";
/// Every run's journal and output.
pub const RUN_ALL: &str = "m1.run.>";
/// Every run's journal.
pub const JOURNAL_ALL: &str = "m1.run.*.j";
/// What happened in the cluster.
pub const EVENT: &str = "m1.event";
/// The record of who did what.
pub const AUDIT: &str = "m1.audit";
/// Where brokers say to each other that they are there.
pub const BROKERS: &str = "m1.broker";

/// What is to be said in every chat network.
pub const CHAT_ALL: &str = "m1.chat.*";

/// What is to be said in a chat network.
#[must_use]
pub fn chat(network: &NetworkName) -> String {
    format!("m1.chat.{}", token(network.as_str()))
}

/// Text as one token of a subject: `A-Z a-z 0-9 _ -` stay, every other byte
/// becomes `=` and two hex digits, so that no text can add a token or a
/// wildcard. The empty text is `=`: an empty token would be no subject.
#[must_use]
pub fn token(text: &str) -> String {
    use fmt::Write as _;
    if text.is_empty() {
        return "=".to_owned();
    }
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-') {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "={byte:02X}");
        }
    }
    out
}

/// Requests to one node.
#[must_use]
pub fn node_subject(node: Serial) -> String {
    format!("m1.do.node.{node}")
}

/// Requests to the nodes with a role.
#[must_use]
pub fn role_subject(role: &str) -> String {
    format!("m1.do.role.{}", token(role))
}

/// Requests to the nodes with a label of that value.
#[must_use]
pub fn label_subject(key: &str, value: &str) -> String {
    format!("m1.do.label.{}.{}", token(key), token(value))
}

/// Where a node may publish: `m1.from.<serial>`, without a trailing dot.
#[must_use]
pub fn from_prefix(node: Serial) -> String {
    format!("m1.from.{node}")
}

/// The prefix of a node's own reply subjects, without a trailing dot.
#[must_use]
pub fn inbox_prefix(node: Serial) -> String {
    format!("_INBOX.m1.{node}")
}

/// The journal of a run.
#[must_use]
pub fn journal(run: RunId) -> String {
    format!("m1.run.{run}.j")
}

/// The output of a run's nodes.
#[must_use]
pub fn output(run: RunId) -> String {
    format!("m1.run.{run}.o")
}

/// Journal and output of a run, for a subscription.
#[must_use]
pub fn run_all(run: RunId) -> String {
    format!("m1.run.{run}.*")
}

/// Every agent release.
pub const RELEASE_ALL: &str = "m1.release.>";
/// What is said of every whole agent release.
pub const RELEASE_META_ALL: &str = "m1.release.*.meta";

/// What is said of an agent release, once it is whole.
#[must_use]
pub fn release_meta(release: ReleaseId) -> String {
    format!("m1.release.{release}.meta")
}

/// A part of the bytes of an agent release, from 0.
#[must_use]
pub fn release_part(release: ReleaseId, part: u32) -> String {
    format!("m1.release.{release}.part.{part}")
}

/// Everything of an agent release.
#[must_use]
pub fn release_all(release: ReleaseId) -> String {
    format!("m1.release.{release}.>")
}

/// The kinds of message that a node sends.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum NodeSays {
    /// [`crate::wire::Hello`], answered by [`crate::wire::Welcome`].
    Hello,
    /// [`crate::wire::Beat`].
    Beat,
    /// [`crate::wire::Facts`].
    Facts,
    /// [`crate::wire::Pong`].
    Pong,
    /// [`crate::wire::Accepted`].
    Accepted,
    /// [`crate::wire::OutputHead`] in a header, the bytes as payload.
    Output,
    /// [`crate::wire::OutcomeReport`], answered by [`crate::wire::OutcomeAnswer`].
    Outcome,
    /// [`crate::wire::LocalReport`], answered by [`crate::wire::LocalAnswer`].
    Local,
    /// A signed request as it once came, headers and payload, to a broker
    /// that has lost the run; answered by [`crate::wire::ProofAnswer`].
    Proof,
    /// A list of broker keys, a [`crate::keys::SignedText`] of the root key;
    /// answered by [`crate::wire::KeysAnswer`].
    Keys,
    /// [`crate::wire::BundleRequest`], answered by a part of the bundle.
    Bundle,
    /// [`crate::freeze::FreezeTaken`].
    Freeze,
    /// [`crate::vm::HypervisorReport`]: what a hypervisor has.
    Machines,
    /// [`crate::firewall::GroupsAnswer`]: what a hypervisor holds of groups.
    Groups,
    /// [`crate::firewall::Probed`]: what came of a probe.
    Probed,
    /// [`crate::firewall::FirewallRepaired`]: its own firewall was changed by
    /// somebody else.
    Repaired,
    /// [`crate::wire::Bye`].
    Bye,
}

impl NodeSays {
    const ALL: [(Self, &'static str); 17] = [
        (Self::Hello, "hello"),
        (Self::Beat, "beat"),
        (Self::Facts, "facts"),
        (Self::Pong, "pong"),
        (Self::Accepted, "accepted"),
        (Self::Output, "output"),
        (Self::Outcome, "outcome"),
        (Self::Local, "local"),
        (Self::Proof, "proof"),
        (Self::Keys, "keys"),
        (Self::Bundle, "bundle"),
        (Self::Freeze, "freeze"),
        (Self::Machines, "machines"),
        (Self::Groups, "groups"),
        (Self::Probed, "probed"),
        (Self::Repaired, "repaired"),
        (Self::Bye, "bye"),
    ];

    /// The last token of the subject.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(k, _)| *k == self)
            .map_or("", |(_, t)| t)
    }

    /// The subject for a node.
    #[must_use]
    pub fn subject(self, node: Serial) -> String {
        format!("m1.from.{node}.{}", self.as_str())
    }

    /// Who said what, from the subject of a message. The server has checked
    /// the serial against the sender's credentials, so it can be trusted;
    /// `None` for anything else that a node may publish below its prefix.
    #[must_use]
    pub fn parse(subject: &str) -> Option<(Serial, Self)> {
        let rest = subject.strip_prefix("m1.from.")?;
        let (serial, kind) = rest.split_once('.')?;
        let (kind, _) = Self::ALL.iter().find(|(_, text)| *text == kind)?;
        Some((serial.parse().ok()?, *kind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_token_is_one_token_without_wildcards(text in "\\PC*") {
            let token = token(&text);
            prop_assert!(!token.is_empty());
            prop_assert!(token.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-=".contains(&b)));
        }

        #[test]
        fn different_texts_have_different_tokens(a in "\\PC{0,8}", b in "\\PC{0,8}") {
            prop_assert_eq!(a == b, token(&a) == token(&b));
        }
    }

    #[test]
    fn text_stays_one_token() {
        assert_eq!(
            label_subject("os.version", "12.1/a*>"),
            "m1.do.label.os=2Eversion.12=2E1=2Fa=2A=3E"
        );
        assert_eq!(token("="), "=3D");
    }

    #[test]
    fn what_a_node_says_is_known_or_nothing() {
        for (kind, _) in NodeSays::ALL {
            assert_eq!(
                NodeSays::parse(&kind.subject(Serial(7))),
                Some((Serial(7), kind))
            );
        }
        for bad in [
            "m1.from.7",
            "m1.from.7.x",
            "m1.from.x.beat",
            "m1.from.07.beat",
            "m1.from.7.beat.y",
            "m1.do.all",
        ] {
            assert_eq!(NodeSays::parse(bad), None, "{bad}");
        }
    }
}
