//! The subjects that reach a set of nodes: pure.
//!
//! A subject is routing only. A node obeys the signed set, so a route that
//! reaches too many costs them a look at a message; one that missed a node of
//! the set would be a defect, and [`route`] is property-tested against that.

use std::collections::BTreeSet;

use muster_protocol::ids::Serial;
use muster_protocol::nodeset::NodeSet;
use muster_protocol::subject;
use muster_protocol::wire::Assignment;

/// A set is sent to node by node when the smallest group that covers it has
/// so many times more members: that many machines would be woken in vain.
const SPARSE: usize = 8;

/// How a message reaches the nodes of a set.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Route {
    /// Each on a subject of its own.
    Nodes(Vec<Serial>),
    /// One subject that all of them have, and perhaps others.
    Group(String),
}

impl Route {
    /// The subjects to publish to.
    #[must_use]
    pub fn subjects(&self) -> Vec<String> {
        match self {
            Self::Nodes(nodes) => nodes.iter().copied().map(subject::node_subject).collect(),
            Self::Group(subject) => vec![subject.clone()],
        }
    }
}

/// What a node may subscribe to besides its own subject.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Group<'a> {
    Role(&'a str),
    Label(&'a str, &'a str),
}

impl Group<'_> {
    fn has(self, node: &Assignment) -> bool {
        match self {
            Self::Role(role) => node.roles.iter().any(|r| r.as_str() == role),
            Self::Label(key, value) => node.labels.get(key).is_some_and(|v| v.as_str() == value),
        }
    }

    fn subject(self) -> String {
        match self {
            Self::Role(role) => subject::role_subject(role),
            Self::Label(key, value) => subject::label_subject(key, value),
        }
    }
}

fn groups(node: &Assignment) -> BTreeSet<Group<'_>> {
    let roles = node.roles.iter().map(|role| Group::Role(role.as_str()));
    let labels = node
        .labels
        .iter()
        .map(|(k, v)| Group::Label(k.as_str(), v.as_str()));
    roles.chain(labels).collect()
}

/// The narrowest way to reach `set`: one node on its own subject; else the
/// role or label with the fewest members that every node of the set has, or
/// all nodes when there is none; and node by node where the set is much
/// smaller than that. `fleet` is every enrolled node with the assignment that
/// it is known to live by.
#[must_use]
pub fn route(set: &NodeSet, fleet: &[(Serial, &Assignment)]) -> Route {
    let wanted = set.len();
    if wanted <= 1 {
        return Route::Nodes(set.iter().collect());
    }
    let mut covering: Option<BTreeSet<Group<'_>>> = None;
    let mut known = 0;
    for &(serial, node) in fleet {
        if set.contains(serial) {
            known += 1;
            match &mut covering {
                None => covering = Some(groups(node)),
                Some(groups) => groups.retain(|group| group.has(node)),
            }
        }
    }
    // Of a node that is not in the inventory no group is known.
    let covering = if known == wanted {
        covering.unwrap_or_default()
    } else {
        BTreeSet::new()
    };
    let smallest = covering
        .into_iter()
        .map(|group| {
            (
                fleet.iter().filter(|(_, node)| group.has(node)).count(),
                group,
            )
        })
        .min();
    let (members, subject) = match smallest {
        Some((members, group)) => (members, group.subject()),
        None => (fleet.len(), subject::ALL.to_owned()),
    };
    if wanted.saturating_mul(SPARSE) <= members {
        Route::Nodes(set.iter().collect())
    } else {
        Route::Group(subject)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use proptest::prelude::*;

    fn node(roles: &[&str], labels: &[(&str, &str)]) -> Assignment {
        Assignment {
            revision: 1,
            name: "n".parse().expect("valid"),
            roles: roles.iter().map(|r| r.parse().expect("valid")).collect(),
            labels: labels
                .iter()
                .map(|(k, v)| (k.parse().expect("valid"), v.parse().expect("valid")))
                .collect(),
        }
    }

    fn subscribed(serial: Serial, node: &Assignment) -> Vec<String> {
        let mut subjects = vec![subject::ALL.to_owned(), subject::node_subject(serial)];
        subjects.extend(node.roles.iter().map(|r| subject::role_subject(r.as_str())));
        subjects.extend(
            node.labels
                .iter()
                .map(|(k, v)| subject::label_subject(k.as_str(), v.as_str())),
        );
        subjects
    }

    fn routed(fleet: &BTreeMap<Serial, Assignment>, set: &[u32]) -> Route {
        let set = set.iter().copied().map(Serial).collect();
        route(
            &set,
            &fleet.iter().map(|(s, a)| (*s, a)).collect::<Vec<_>>(),
        )
    }

    #[test]
    fn the_narrowest_subject_is_chosen() {
        let mut fleet = BTreeMap::new();
        for i in 0..40 {
            let zone = if i < 10 { "gva2" } else { "dk2" };
            fleet.insert(
                Serial(i),
                node(
                    if i % 2 == 0 { &["web"] } else { &["db"] },
                    &[("zone", zone)],
                ),
            );
        }
        assert_eq!(routed(&fleet, &[]), Route::Nodes(vec![]));
        assert_eq!(routed(&fleet, &[7]), Route::Nodes(vec![Serial(7)]));
        // Both are web and in gva2; fewer nodes are in gva2.
        assert_eq!(
            routed(&fleet, &[0, 2]).subjects(),
            ["m1.do.label.zone.gva2"]
        );
        assert_eq!(routed(&fleet, &[0, 2, 20]).subjects(), ["m1.do.role.web"]);
        // Nothing in common, and many enough.
        assert_eq!(
            routed(&fleet, &[0, 1, 20, 21, 22, 23]).subjects(),
            ["m1.do.all"]
        );
        // Nothing in common, and few: the other 38 sleep on.
        assert_eq!(
            routed(&fleet, &[0, 11]),
            Route::Nodes(vec![Serial(0), Serial(11)])
        );
        // A node that nobody knows is in no group.
        assert_eq!(
            routed(&fleet, &[0, 99]).subjects(),
            ["m1.do.node.0", "m1.do.node.99"]
        );
    }

    proptest! {
        #[test]
        fn every_node_of_the_set_hears_it(
            nodes in prop::collection::btree_map(
                0u32..300,
                (prop::collection::btree_set(0usize..4, 0..3), prop::collection::btree_map(0usize..3, 0usize..3, 0..3)),
                1..80,
            ),
            picked in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
        ) {
            const WORDS: [&str; 4] = ["web", "db", "x.y", "lb"];
            let fleet: BTreeMap<Serial, Assignment> = nodes
                .iter()
                .map(|(serial, (roles, labels))| {
                    let roles: Vec<&str> = roles.iter().map(|r| WORDS[*r]).collect();
                    let labels: Vec<(&str, &str)> = labels.iter().map(|(k, v)| (WORDS[*k], WORDS[*v])).collect();
                    (Serial(*serial), node(&roles, &labels))
                })
                .collect();
            let serials: Vec<Serial> = fleet.keys().copied().collect();
            let set: NodeSet = picked.iter().map(|i| *i.get(&serials)).collect();
            let subjects = route(&set, &fleet.iter().map(|(s, a)| (*s, a)).collect::<Vec<_>>()).subjects();
            for serial in set.iter() {
                let hears = subscribed(serial, &fleet[&serial]);
                prop_assert!(subjects.iter().any(|s| hears.contains(s)), "{serial}: {subjects:?}");
            }
        }
    }
}
