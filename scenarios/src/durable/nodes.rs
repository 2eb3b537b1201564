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
