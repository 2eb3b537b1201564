//! A network of a stack, held against what there is: when the plan is made,
//! and again when it is carried out.

use muster_protocol::api::NetworkView;

use super::plan::{Change, Is, Item, Kind, different, joined};
use super::{Network, StackId};

/// A network of a stack, held against the network of its name.
pub(super) fn item_of(stack: &StackId, network: &Network, view: Option<&NetworkView>) -> Item {
    let put = &network.put;
    let is = match view {
        None => Is::New {
            text: format!("{} on {}", joined(&put.pools), put.bridge),
        },
        Some(view) if !stack.owns(&view.labels) => Is::Foreign {
            of: StackId::of(&view.labels),
        },
        Some(view) => {
            let mtu = |mtu: Option<u16>| mtu.unwrap_or(1500).to_string();
            let pairs = [
                ("bridge", view.bridge.to_string(), put.bridge.to_string()),
                ("pools", joined(&view.pools), joined(&put.pools)),
                ("gateways", joined(&view.gateways), joined(&put.gateways)),
                ("dns", joined(&view.dns), joined(&put.dns)),
                ("reserved", joined(&view.reserved), joined(&put.reserved)),
                ("mtu", mtu(view.mtu), mtu(put.mtu)),
            ];
            let differences = different(pairs);
            if differences.is_empty() {
                Is::Same
            } else {
                Is::Changed {
                    changes: vec![Change::Network { differences }],
                }
            }
        }
    };
    Item::of(Kind::Network, network.name.as_str(), is)
}

/// How a network stands when something is about to be done with it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Still {
    /// As it was when the plan was made.
    AsPlanned,
    /// Nothing is left to be done.
    Right,
    /// Somebody did something else with it, which is said.
    Otherwise(String),
}

/// Holds a network that was planned against what there is now: nobody was
/// asked about anything else. `wanted` is none of what is to be removed.
#[must_use]
pub fn still(
    stack: &StackId,
    wanted: Option<&Network>,
    was: Option<&NetworkView>,
    now: Option<&NetworkView>,
) -> Still {
    let Some(view) = now else {
        return match (wanted, was) {
            (None, _) => Still::Right,
            (Some(_), None) => Still::AsPlanned,
            (Some(_), Some(_)) => Still::Otherwise("was removed meanwhile".to_owned()),
        };
    };
    if was.is_some_and(|was| is_the_same(was, view)) {
        return Still::AsPlanned;
    }
    let item = wanted.map(|wanted| item_of(stack, wanted, now));
    if item.is_some_and(|item| item.is == Is::Same) {
        return Still::Right;
    }
    let did = if was.is_some() { "changed" } else { "made" };
    Still::Otherwise(format!("was {did} by {} meanwhile", view.by))
}

/// Whether nothing was changed of a network: machines come and go.
fn is_the_same(was: &NetworkView, now: &NetworkView) -> bool {
    let still = |view: &NetworkView| NetworkView {
        used: 0,
        free: 0,
        addresses: Vec::new(),
        ..view.clone()
    };
    still(was) == still(now)
}
