//! How a run's messages get to its nodes.

use std::time::Duration;

use muster_protocol::envelope::{Ask, Call, Limits};
use muster_protocol::ids::{RequestId, Serial};
use muster_protocol::nodeset::NodeSet;
use muster_protocol::run::{RunSpec, Target};
use muster_protocol::seal::BoxHash;

use super::engine::Shared;
use super::schedule::{Message, Sent};
use super::seal::is_secret;
use crate::bus::{Order, SendError};
use crate::presence::Reach;
use crate::routing::{Route, route};

/// Repeats to more nodes go by group again, those to fewer to each alone: then
/// the server says who does not hear.
const MANY: usize = 256;

/// To whom something is sent, and in which way.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Split {
    /// Their groups reach them.
    pub(super) groups: Vec<Serial>,
    /// Each on its own subject.
    pub(super) alone: Vec<Serial>,
}

fn order(
    spec: &RunSpec,
    frozen: &NodeSet,
    message: Message,
    nodes: &[Serial],
    start_within: Duration,
    secrets: Option<BoxHash>,
) -> Order {
    let set: NodeSet = nodes.iter().copied().collect();
    let whole = if *frozen == set {
        NodeSet::new()
    } else {
        frozen.clone()
    };
    let ask = match message {
        Message::Call => Ask::Call(Call {
            scenario: spec.scenario.clone(),
            bundle: spec.bundle,
            function: spec.function.clone(),
            params: spec.params.clone(),
            mode: spec.mode,
            limits: Limits {
                timeout: spec.options.timeout,
                output_bytes: spec.options.output_bytes,
                retry: spec.options.retry,
            },
            expect: spec.expect.of(&set),
            secrets,
        }),
        Message::Cancel => Ask::Cancel,
    };
    Order {
        id: RequestId {
            run: spec.id,
            step: 0,
        },
        set,
        whole,
        created: Some(spec.created),
        predicate: spec.predicate.clone(),
        principal: spec.principal.clone(),
        door: spec.door,
        start_within,
        promised: false,
        ask,
    }
}

impl Shared {
    /// Whether the call of a run fits into one message, with all its nodes.
    pub(super) fn fits(&self, spec: &RunSpec, targets: &[Target]) -> Result<(), SendError> {
        let nodes: Vec<Serial> = targets.iter().map(|target| target.serial).collect();
        let frozen: NodeSet = nodes.iter().copied().collect();
        let mut largest = order(spec, &frozen, Message::Call, &nodes, Duration::ZERO, None);
        // As large as that of any part of it.
        largest.whole = frozen;
        match self.bus.sign(&largest) {
            Err(error @ SendError::TooLarge { .. }) => Err(error),
            // The other reasons are for whoever really sends.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// How repeats to these nodes are sent.
    pub(super) fn split_repeat(&self, nodes: &[Serial]) -> Split {
        let mut split = Split::default();
        if nodes.len() <= MANY {
            split.alone = nodes.to_vec();
            return split;
        }
        for (serial, reach) in nodes.iter().zip(self.presence.reach(nodes)) {
            match reach {
                Reach::Groups => split.groups.push(*serial),
                Reach::Alone | Reach::Down(_) | Reach::Barred(_) => split.alone.push(*serial),
            }
        }
        split
    }

    /// Signs and sends a message of a run. Says for each node how it went out;
    /// those that are not said were not sent to.
    pub(super) async fn send(
        &self,
        (spec, frozen): (&RunSpec, &NodeSet),
        message: Message,
        split: &Split,
        start_within: Duration,
    ) -> Result<Vec<(Serial, Sent)>, SendError> {
        let mut sent = Vec::with_capacity(split.groups.len() + split.alone.len());
        if message == Message::Call && is_secret(spec) {
            for node in split.groups.iter().chain(&split.alone) {
                self.send_secret((spec, frozen), *node, start_within)
                    .await?;
                sent.push((*node, Sent::ToNode));
            }
            return Ok(sent);
        }
        if !split.groups.is_empty() {
            let set: NodeSet = split.groups.iter().copied().collect();
            let mut order = order(spec, frozen, message, &split.groups, start_within, None);
            order.promised = self.promised(spec);
            let signed = self.bus.sign(&order)?;
            let snapshot = self.inventory.snapshot();
            let fleet: Vec<_> = snapshot
                .iter()
                .map(|node| (node.serial, &node.assignment))
                .collect();
            let way = route(&set, &fleet);
            self.bus.along(&way, &signed).await?;
            let how = match way {
                Route::Group(_) => Sent::ToGroup,
                Route::Nodes(_) => Sent::ToNode,
            };
            sent.extend(split.groups.iter().map(|serial| (*serial, how)));
        }
        if !split.alone.is_empty() {
            // Signed apart: a group must not carry it to those that are told
            // to be reached alone.
            let mut order = order(spec, frozen, message, &split.alone, start_within, None);
            order.promised = self.promised(spec);
            let signed = self.bus.sign(&order)?;
            self.bus
                .along(&Route::Nodes(split.alone.clone()), &signed)
                .await?;
            sent.extend(split.alone.iter().map(|serial| (*serial, Sent::ToNode)));
        }
        Ok(sent)
    }

    /// The call of a run with secret parameters, to one node.
    async fn send_secret(
        &self,
        (spec, frozen): (&RunSpec, &NodeSet),
        node: Serial,
        start_within: Duration,
    ) -> Result<(), SendError> {
        let Some(sealed) = self.boxed(spec, node) else {
            // Sent before by a broker that had them; it may be under way.
            tracing::warn!(%node, "a call is not sent again: its secret parameters are not here");
            return Ok(());
        };
        let secrets = Some(sealed.hash());
        let mut order = order(spec, frozen, Message::Call, &[node], start_within, secrets);
        order.promised = self.promised(spec);
        let signed = self.bus.sign(&order)?.with_secrets(&sealed);
        self.bus.to_node(node, &signed).await
    }
}
