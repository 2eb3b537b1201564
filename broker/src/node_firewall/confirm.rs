//! Whether a node's new rules may stay.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use muster_protocol::envelope::Mode;
use muster_protocol::firewall::{
    Confirmation, MAX_PROBES_ASKED, MAX_ROLES_ASKED, ProbeAsk, ProbeResult, ProbeWish,
    RoleAddresses,
};
use muster_protocol::ids::{RequestId, Serial};
use muster_protocol::names::{NodeName, RoleName};
use muster_protocol::run::NodePhase;
use muster_protocol::text::printable;
use muster_protocol::units::Span;
use tokio::sync::Semaphore;

use super::addresses::{assigned, of_roles};
use super::probe::{NotProbed, Prober};
use crate::inventory::{Inventory, NodeRecord};
use crate::resolve::{Options, ResolveError, resolve};
use crate::runs::{Engine, EngineError};
use crate::submit::is_builtin;
use crate::vm::records::StoredVm;

/// Most nodes that make a probe: the first of those that match, by name.
const MAX_PROBERS: usize = 4;
/// How long one probe tries at most, and at least.
const TRIES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));
/// What of the node's time is kept for the ways to and fro.
const KEPT: Duration = Duration::from_millis(2_500);
/// Confirmations that are worked at at once.
const AT_ONCE: usize = 64;

/// Why a node gets no answer about its firewall.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeFirewallError {
    /// It has no business to ask.
    #[error(
        "run {0} has no step that is open on this node: nothing about its firewall is answered"
    )]
    NotOpen(String),
    /// Too much.
    #[error("{0}")]
    Wrong(String),
    /// Too many at once.
    #[error("{AT_ONCE} changes of firewalls are being confirmed; try again in a moment")]
    Busy,
    /// The run cannot be looked at now.
    #[error(transparent)]
    Engine(EngineError),
}

/// What nodes are answered. Cheap to clone.
#[derive(Clone)]
pub struct NodeFirewall(Arc<Inner>);

struct Inner {
    inventory: Inventory,
    engine: Engine,
    prober: Prober,
    room: Semaphore,
    /// Nodes whose change is being confirmed: each takes one place.
    busy: Mutex<HashSet<Serial>>,
}

/// A node's place; free again when it is dropped.
struct Place<'a>(&'a Inner, Serial);

impl<'a> Place<'a> {
    fn take(inner: &'a Inner, node: Serial) -> Option<Self> {
        let mut busy = inner.busy.lock().unwrap_or_else(PoisonError::into_inner);
        busy.insert(node).then_some(Self(inner, node))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut busy = self.0.busy.lock().unwrap_or_else(PoisonError::into_inner);
        busy.remove(&self.1);
    }
}

impl std::fmt::Debug for NodeFirewall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeFirewall").finish_non_exhaustive()
    }
}

impl NodeFirewall {
    /// One over these.
    #[must_use]
    pub fn new(inventory: Inventory, engine: Engine, prober: Prober) -> Self {
        Self(Arc::new(Inner {
            inventory,
            engine,
            prober,
            room: Semaphore::new(AT_ONCE),
            busy: Mutex::default(),
        }))
    }

    /// The addresses of roles, for a node with that step open.
    ///
    /// # Errors
    /// [`NodeFirewallError`].
    pub async fn addresses(
        &self,
        node: Serial,
        request: RequestId,
        roles: &[RoleName],
        machines: &[Arc<StoredVm>],
    ) -> Result<RoleAddresses, NodeFirewallError> {
        if roles.len() > MAX_ROLES_ASKED {
            return Err(NodeFirewallError::Wrong(format!(
                "{} roles; at most {MAX_ROLES_ASKED} are asked for at once",
                roles.len()
            )));
        }
        self.is_open(node, request, true).await?;
        Ok(of_roles(roles, &self.0.inventory.snapshot(), machines))
    }

    /// Whether that step is open on that node now, and can be about a
    /// firewall at all: what is built in is not.
    async fn is_open(
        &self,
        node: Serial,
        request: RequestId,
        dry_runs: bool,
    ) -> Result<(), NodeFirewallError> {
        let closed = || NodeFirewallError::NotOpen(request.run.short().to_string());
        let state = match self.0.engine.state(request.run).await {
            Ok(state) => state,
            Err(EngineError::Lookup(_)) => return Err(closed()),
            Err(error) => return Err(NodeFirewallError::Engine(error)),
        };
        let sent = state.nodes.get(&node).map(|node| &node.phase);
        let open = matches!(sent, Some(NodePhase::Sent { .. })) && !state.phase.is_final();
        let spec = &state.spec;
        let may = !is_builtin(&spec.scenario) && (dry_runs || spec.mode == Mode::Apply);
        (open && may && request.step == 0)
            .then_some(())
            .ok_or_else(closed)
    }

    /// Has the probes made that a node's new rules have to let through, and
    /// says what came of them. `remote` is where its request came from.
    ///
    /// # Errors
    /// [`NodeFirewallError`]; it is as if a probe had failed.
    pub async fn confirm(
        &self,
        node: Serial,
        request: RequestId,
        probes: &[ProbeWish],
        within: Span,
        (remote, machines): (Option<IpAddr>, &[Arc<StoredVm>]),
    ) -> Result<Confirmation, NodeFirewallError> {
        let inner = &*self.0;
        if probes.len() > MAX_PROBES_ASKED {
            return Err(NodeFirewallError::Wrong(format!(
                "{} probes; at most {MAX_PROBES_ASKED} are made for one change",
                probes.len()
            )));
        }
        self.is_open(node, request, false).await?;
        let _place = Place::take(inner, node).ok_or(NodeFirewallError::Busy)?;
        let _room = inner
            .room
            .try_acquire()
            .map_err(|_| NodeFirewallError::Busy)?;
        let snapshot = inner.inventory.snapshot();
        let Some(record) = snapshot.get(node).cloned() else {
            return Err(NodeFirewallError::NotOpen(request.run.short().to_string()));
        };
        let mut said = Confirmation::default();
        if probes.is_empty() {
            return Ok(said);
        }
        let Some(address) = address(&record, machines, remote) else {
            said.failed.push(format!(
                "no probe was made: no address of {} is known at which others reach it; give it the label `address`",
                record.assignment.name
            ));
            return Ok(said);
        };
        let left = within.get().saturating_sub(KEPT);
        let tries = left.clamp(TRIES.0, TRIES.1);
        let tries = Span::from_millis(u64::try_from(tries.as_millis()).unwrap_or(u64::MAX));
        let mut made = Vec::new();
        for probe in probes {
            match self.probers(probe, node) {
                Ok(nodes) => made.extend(nodes.into_iter().map(|from| (from, probe.tcp))),
                Err(why) => said.failed.push(why),
            }
        }
        let results = made.iter().map(|(from, tcp)| async move {
            let ask = ProbeAsk {
                address,
                tcp: *tcp,
                within: tries,
            };
            inner.prober.probe(from.serial, ask).await
        });
        for ((from, tcp), result) in made.iter().zip(join_all(results).await) {
            let (passed, text) = told(&from.assignment.name, *tcp, &result);
            if passed {
                said.passed.push(text);
            } else {
                said.failed.push(text);
            }
        }
        tracing::info!(
            node = %record.assignment.name, run = %request.run, %address,
            passed = said.passed.len(), failed = ?said.failed, "a change of a firewall is probed"
        );
        Ok(said)
    }

    /// Who makes a probe: others than the node itself.
    fn probers(&self, probe: &ProbeWish, node: Serial) -> Result<Vec<Arc<NodeRecord>>, String> {
        let from = &probe.from;
        let shown = format!("probe from {} to tcp/{}", printable(from, 60), probe.tcp);
        let options = Options {
            include_infrastructure: true,
            ..Options::default()
        };
        let nobody = || format!("{shown} was not made: no other node matches");
        let resolved = match resolve(from, &self.0.inventory.snapshot(), options) {
            Ok(resolved) => resolved,
            Err(ResolveError::NoMatch { .. }) => return Err(nobody()),
            Err(error) => {
                let why = printable(&error.to_string(), 200);
                return Err(format!("{shown} was not made: {why}"));
            }
        };
        let mut nodes = resolved.nodes;
        nodes.retain(|other| other.serial != node);
        nodes.truncate(MAX_PROBERS);
        if nodes.is_empty() {
            return Err(nobody());
        }
        Ok(nodes)
    }
}

/// Where others reach a node: the first address that the operators gave it,
/// else where its own request came from, unless that is only this machine, or
/// an address that the node does not say that it has: then somebody stands
/// between, whose door would be tried instead.
fn address(
    node: &NodeRecord,
    machines: &[Arc<StoredVm>],
    remote: Option<IpAddr>,
) -> Option<IpAddr> {
    let given = assigned(node, machines).into_iter().next();
    let came = remote.map(|ip| match ip {
        IpAddr::V6(v6) => Ipv6Addr::to_canonical(&v6),
        v4 => v4,
    });
    let its = |ip: &IpAddr| {
        let all = node.facts.get("addresses").and_then(|all| all.as_array());
        let mut all = all.into_iter().flatten().filter_map(|one| one.as_str());
        all.any(|one| one.parse() == Ok(*ip))
    };
    given.or(came.filter(|ip| !ip.is_loopback() && !ip.is_unspecified() && its(ip)))
}

/// Whether a probe passed, and that in words.
fn told(from: &NodeName, tcp: u16, result: &Result<ProbeResult, NotProbed>) -> (bool, String) {
    let probe = format!("probe from {from} to tcp/{tcp}");
    match result {
        Ok(result) => (
            *result == ProbeResult::Open,
            format!("{probe} {}", result.words()),
        ),
        Err(why) => (false, format!("{probe} was not made: {why}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_of_a_probe_is_said_of_who_made_it() {
        let from: NodeName = "bastion-1".parse().expect("a name");
        let said = |result| told(&from, 22, &result);
        assert!(said(Ok(ProbeResult::Open)).0);
        for bad in [
            Ok(ProbeResult::Silent),
            Ok(ProbeResult::Refused),
            Err(NotProbed::Away),
        ] {
            assert!(!said(bad).0);
        }
        insta::assert_snapshot!(said(Ok(ProbeResult::Silent)).1, @"probe from bastion-1 to tcp/22 got no answer");
        insta::assert_snapshot!(said(Err(NotProbed::Away)).1, @"probe from bastion-1 to tcp/22 was not made: it is not connected");
    }
}
