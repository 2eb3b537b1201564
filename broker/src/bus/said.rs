//! What a node says, read: pure.

use async_nats::Subject;
use bytes::Bytes;
use muster_protocol::envelope::{KEY_HEADER, MAX_PAYLOAD, SIGNATURE_HEADER};
use muster_protocol::firewall::{FirewallRepaired, GroupsAnswer, Probed};
use muster_protocol::freeze::FreezeTaken;
use muster_protocol::ids::Serial;
use muster_protocol::keys::SignedText;
use muster_protocol::subject::NodeSays;
use muster_protocol::text::printable;
use muster_protocol::vm::HypervisorReport;
use muster_protocol::wire::{
    Accepted, Beat, BundleRequest, Bye, Facts, Hello, LocalReport, MAX_CHUNK, MAX_FACTS,
    MAX_MESSAGE, OUTPUT_HEADER, OutcomeReport, OutputHead, Pong,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::runs::Proof;

/// A message of a node.
#[derive(Debug)]
pub(super) enum Said {
    Hello(Box<Hello>),
    /// A hello of a protocol that this broker does not speak.
    Stranger {
        protocol: u32,
    },
    Beat(Beat),
    Facts(Facts),
    Pong(Pong),
    Accepted(Accepted),
    Output(OutputHead, Bytes),
    Outcome(Box<OutcomeReport>),
    Local(Box<LocalReport>),
    Proof(Proof),
    Keys(SignedText),
    Bundle(BundleRequest),
    Freeze(FreezeTaken),
    Machines(Box<HypervisorReport>),
    Groups(GroupsAnswer),
    Probed(Probed),
    Repaired(FirewallRepaired),
    Bye(Bye),
}

/// A message that makes no sense.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Nonsense(pub(super) String);

/// Who said what kind of thing, from the subject alone. `None` for what no
/// agent says.
pub(super) fn kind(subject: &Subject) -> Option<(Serial, NodeSays)> {
    NodeSays::parse(subject)
}

/// Only what all versions of a hello have.
#[derive(Deserialize)]
struct AnyHello {
    protocol: u32,
}

/// Reads a message of that kind.
pub(super) fn read(kind: NodeSays, message: &async_nats::Message) -> Result<Said, Nonsense> {
    let bytes = &message.payload;
    let limit = match kind {
        NodeSays::Facts => MAX_FACTS + 4096,
        NodeSays::Output => MAX_CHUNK,
        NodeSays::Proof => MAX_PAYLOAD,
        NodeSays::Outcome
        | NodeSays::Hello
        | NodeSays::Local
        | NodeSays::Keys
        | NodeSays::Machines => MAX_MESSAGE,
        NodeSays::Beat
        | NodeSays::Pong
        | NodeSays::Accepted
        | NodeSays::Bundle
        | NodeSays::Freeze
        | NodeSays::Groups
        | NodeSays::Probed
        | NodeSays::Repaired
        | NodeSays::Bye => 16 * 1024,
    };
    if bytes.len() > limit {
        return Err(Nonsense(format!(
            "{}: {} bytes, at most {limit} are read",
            kind.as_str(),
            bytes.len()
        )));
    }
    Ok(match kind {
        NodeSays::Hello => match json(kind, bytes) {
            Ok(hello) => Said::Hello(Box::new(hello)),
            // Another version may say more or less; what it is must be told.
            Err(error) => match serde_json::from_slice::<AnyHello>(bytes) {
                Ok(any) if any.protocol != muster_protocol::PROTOCOL_VERSION => Said::Stranger {
                    protocol: any.protocol,
                },
                _ => return Err(error),
            },
        },
        NodeSays::Beat => Said::Beat(json(kind, bytes)?),
        NodeSays::Facts => Said::Facts(json(kind, bytes)?),
        NodeSays::Pong => Said::Pong(json(kind, bytes)?),
        NodeSays::Accepted => Said::Accepted(json(kind, bytes)?),
        NodeSays::Output => {
            let head = message.headers.as_ref().and_then(|h| h.get(OUTPUT_HEADER));
            let Some(head) = head else {
                return Err(Nonsense("output: no header".to_owned()));
            };
            Said::Output(json(kind, head.as_str().as_bytes())?, bytes.clone())
        }
        NodeSays::Outcome => Said::Outcome(json(kind, bytes)?),
        NodeSays::Local => Said::Local(json(kind, bytes)?),
        NodeSays::Proof => {
            let header = |name: &str| {
                let value = message.headers.as_ref()?.get(name)?;
                Some(value.as_str().to_owned())
            };
            Said::Proof(Proof {
                key: header(KEY_HEADER),
                signature: header(SIGNATURE_HEADER),
                bytes: bytes.clone(),
            })
        }
        NodeSays::Keys => Said::Keys(json(kind, bytes)?),
        NodeSays::Bundle => Said::Bundle(json(kind, bytes)?),
        NodeSays::Freeze => Said::Freeze(json(kind, bytes)?),
        NodeSays::Machines => Said::Machines(json(kind, bytes)?),
        NodeSays::Groups => Said::Groups(json(kind, bytes)?),
        NodeSays::Probed => Said::Probed(json(kind, bytes)?),
        NodeSays::Repaired => Said::Repaired(json(kind, bytes)?),
        NodeSays::Bye => Said::Bye(json(kind, bytes)?),
    })
}

fn json<T: DeserializeOwned>(kind: NodeSays, bytes: &[u8]) -> Result<T, Nonsense> {
    serde_json::from_slice(bytes)
        .map_err(|e| Nonsense(printable(&format!("{}: {e}", kind.as_str()), 200)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(payload: &[u8]) -> async_nats::Message {
        async_nats::Message {
            subject: "m1.from.1.x".into(),
            reply: None,
            payload: Bytes::copy_from_slice(payload),
            headers: None,
            status: None,
            description: None,
            length: payload.len(),
        }
    }

    #[test]
    fn a_hello_of_another_version_is_told_from_nonsense() {
        let said = read(NodeSays::Hello, &message(br#"{"protocol":9,"new":[]}"#));
        assert!(
            matches!(said, Ok(Said::Stranger { protocol: 9 })),
            "{said:?}"
        );
        assert!(read(NodeSays::Hello, &message(br#"{"protocol":1}"#)).is_err());
        assert!(read(NodeSays::Output, &message(b"x")).is_err());
        let nested = "[".repeat(100_000);
        assert!(read(NodeSays::Facts, &message(nested.as_bytes())).is_err());
        let deep = format!("{{\"facts\":{}", "{\"a\":".repeat(5_000));
        assert!(read(NodeSays::Facts, &message(deep.as_bytes())).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(payload in prop::collection::vec(any::<u8>(), 0..200)) {
            for kind in [NodeSays::Hello, NodeSays::Beat, NodeSays::Facts, NodeSays::Pong, NodeSays::Accepted,
                NodeSays::Output, NodeSays::Outcome, NodeSays::Local, NodeSays::Proof, NodeSays::Keys,
                NodeSays::Bundle, NodeSays::Machines, NodeSays::Groups, NodeSays::Probed, NodeSays::Repaired,
                NodeSays::Bye]
            {
                if let Err(Nonsense(why)) = read(kind, &message(&payload)) {
                    let safe = !why.contains('\x1b') && why.len() < 1_000;
                    prop_assert!(safe, "{}", why);
                }
            }
        }
    }
}
