//! Sets of nodes in `main`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use muster_protocol::ids::Serial;
use muster_protocol::names::NodeName;
use muster_protocol::nodeset::NodeSet;
use rhai::{Array, Dynamic, Engine, EvalAltResult, NativeCallContext};

/// A node of a frozen set.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Member {
    /// The node.
    pub serial: Serial,
    /// Its name when the set was frozen.
    pub name: NodeName,
}

/// All nodes of a run, in the order in which they are taken.
#[derive(Debug)]
pub(super) struct Cast {
    members: Vec<Member>,
    place: HashMap<Serial, usize>,
}

impl Cast {
    pub(super) fn new(sets: &BTreeMap<String, Vec<Member>>) -> Self {
        let mut cast = Self {
            members: Vec::new(),
            place: HashMap::new(),
        };
        for member in sets.values().flatten() {
            cast.place.entry(member.serial).or_insert_with(|| {
                cast.members.push(member.clone());
                cast.members.len() - 1
            });
        }
        cast
    }

    /// The node's name; its serial where it is none of the run's.
    pub(super) fn name(&self, serial: Serial) -> String {
        self.place.get(&serial).map_or_else(
            || serial.to_string(),
            |place| self.members[*place].name.to_string(),
        )
    }
}

/// Nodes in order, each once.
#[derive(Clone)]
pub struct Nodes {
    serials: Arc<Vec<Serial>>,
    cast: Arc<Cast>,
}

impl Nodes {
    /// These nodes, in the order of the run.
    pub(super) fn of(cast: &Arc<Cast>, serials: impl IntoIterator<Item = Serial>) -> Self {
        let mut serials: Vec<Serial> = serials.into_iter().collect();
        serials.sort_by_key(|serial| cast.place.get(serial).copied().unwrap_or(usize::MAX));
        serials.dedup();
        Self {
            serials: Arc::new(serials),
            cast: Arc::clone(cast),
        }
    }

    pub(super) fn set(&self) -> NodeSet {
        self.serials.iter().copied().collect()
    }

    pub(super) fn cast(&self) -> &Arc<Cast> {
        &self.cast
    }

    /// So many at a time, in order.
    pub(super) fn chunks(&self, size: usize) -> Vec<Self> {
        let chunk = |serials: &[Serial]| Self {
            serials: Arc::new(serials.to_vec()),
            cast: Arc::clone(&self.cast),
        };
        self.serials.chunks(size.max(1)).map(chunk).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.serials.len()
    }

    fn names(&mut self) -> Array {
        let name = |serial: &Serial| Dynamic::from(self.cast.name(*serial));
        self.serials.iter().map(name).collect()
    }

    fn limit(
        context: NativeCallContext<'_>,
        nodes: &mut Self,
        most: i64,
    ) -> Result<Self, Box<EvalAltResult>> {
        let most = usize::try_from(most).map_err(|_| {
            EvalAltResult::ErrorRuntime(
                "`limit` takes a number of nodes that is not negative".into(),
                context.call_position(),
            )
        })?;
        Ok(Self {
            serials: Arc::new(nodes.serials.iter().copied().take(most).collect()),
            cast: Arc::clone(&nodes.cast),
        })
    }

    fn minus(&mut self, other: Self) -> Self {
        let other = other.set();
        Self {
            serials: Arc::new(
                self.serials
                    .iter()
                    .copied()
                    .filter(|serial| !other.contains(*serial))
                    .collect(),
            ),
            cast: Arc::clone(&self.cast),
        }
    }

    fn plus(&mut self, other: Self) -> Self {
        let all = self.serials.iter().chain(other.serials.iter()).copied();
        Self::of(&self.cast, all)
    }
}

/// Splits nodes into batches of a size, each with nodes of every value of a
/// label as far as there are enough: no batch takes a whole rack. `nodes`
/// come with their value, in the order in which they are taken.
#[must_use]
pub fn spread(nodes: &[(Serial, Option<&str>)], size: usize) -> Vec<NodeSet> {
    let mut domains = BTreeMap::<Option<&str>, Vec<Serial>>::new();
    for (serial, value) in nodes {
        domains.entry(*value).or_default().push(*serial);
    }
    // Node `i` of `n` of a domain stands at (2i + 1) / 2n of the way. Exact:
    // fractions are compared by multiplication.
    let mut placed: Vec<(u128, u128, Serial)> = Vec::with_capacity(nodes.len());
    for domain in domains.values() {
        let n = domain.len() as u128;
        let place = |(i, serial): (usize, &Serial)| (2 * i as u128 + 1, 2 * n, *serial);
        placed.extend(domain.iter().enumerate().map(place));
    }
    placed.sort_by(|a, b| (a.0 * b.1).cmp(&(b.0 * a.1)));
    placed
        .chunks(size.max(1))
        .map(|batch| batch.iter().map(|(_, _, serial)| *serial).collect())
        .collect()
}

pub(super) fn register(engine: &mut Engine) {
    engine
        .register_type_with_name::<Nodes>("Nodes")
        .register_get("names", Nodes::names)
        .register_get("count", |nodes: &mut Nodes| {
            i64::try_from(nodes.len()).unwrap_or(i64::MAX)
        })
        .register_fn("is_empty", |nodes: &mut Nodes| nodes.len() == 0)
        .register_fn("limit", Nodes::limit)
        .register_fn("plus", Nodes::plus)
        .register_fn("minus", Nodes::minus);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn batches_hold_everybody_once_and_no_rack_is_taken_whole(
            racks in proptest::collection::vec(0..4u8, 0..60),
            size in 0..20usize,
        ) {
            let names = ["r0", "r1", "r2"];
            let value = |rack: &u8| names.get(usize::from(*rack)).copied();
            let nodes: Vec<(Serial, Option<&str>)> = racks
                .iter()
                .enumerate()
                .map(|(i, rack)| (Serial(u32::try_from(i).expect("small")), value(rack)))
                .collect();
            let batches = spread(&nodes, size);
            let mut all: Vec<Serial> = batches.iter().flat_map(NodeSet::iter).collect();
            all.sort_unstable();
            prop_assert_eq!(all, nodes.iter().map(|(s, _)| *s).collect::<Vec<_>>());
            prop_assert!(batches.iter().all(|b| b.len() <= size.max(1)));
            for rack in [Some("r0"), Some("r1"), Some("r2"), None] {
                let of = |serial: Serial| nodes[serial.0 as usize].1 == rack;
                let total = nodes.iter().filter(|(s, _)| of(*s)).count();
                for batch in &batches {
                    // Its fair share, and one for what does not come out even
                    // at either end.
                    let here = batch.iter().filter(|s| of(*s)).count();
                    let fair = (total * batch.len()).div_ceil(nodes.len());
                    prop_assert!(here <= fair + 2, "{here} of {total}, {fair} is fair");
                }
            }
        }
    }
}
