//! What a policy is told of a run.

use muster_protocol::envelope::Mode;
use muster_protocol::names::ScenarioName;
use muster_protocol::nodeset::NodeSet;
use muster_protocol::run::{Gates, RunSpec, RunState, Target};
use serde_json::Value;

use crate::runs::{FrozenRun, TARGETS};

/// A run, as far as it decides who may run it. Secret parameters are marks,
/// not values.
#[derive(Clone, Debug, PartialEq)]
pub struct RunAsk {
    /// Which scenario.
    pub scenario: ScenarioName,
    /// Which version of it; absent for what is built in.
    pub version: Option<u32>,
    /// Whether it came with muster.
    pub stock: bool,
    /// Apply or check.
    pub mode: Mode,
    /// Its parameters.
    pub params: Value,
    /// Every declared set, `targets` first.
    pub sets: Vec<AskedSet>,
    /// How many nodes are in all sets together.
    pub size: u32,
    /// What it waits for before it begins, by itself.
    pub gates: Gates,
}

/// A set of nodes that a run may touch.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AskedSet {
    /// Its name in the scenario.
    pub name: String,
    /// The nodes that are asked for.
    pub nodes: NodeSet,
    /// How many the whole set has: more than are asked for in a step of a
    /// `main`.
    pub size: u32,
}

fn count(nodes: &NodeSet) -> u32 {
    u32::try_from(nodes.len()).unwrap_or(u32::MAX)
}

impl AskedSet {
    fn whole(name: &str, nodes: NodeSet) -> Self {
        Self {
            name: name.to_owned(),
            size: count(&nodes),
            nodes,
        }
    }
}

impl RunAsk {
    /// A run with nothing but its name, on no nodes: for documentation and
    /// tests.
    #[must_use]
    pub fn named(scenario: ScenarioName, stock: bool) -> Self {
        Self {
            scenario,
            version: (!stock).then_some(1),
            stock,
            mode: Mode::Apply,
            params: Value::Null,
            sets: vec![AskedSet::whole(TARGETS, NodeSet::new())],
            size: 0,
            gates: Gates::default(),
        }
    }

    fn of_spec(spec: &RunSpec, sets: Vec<AskedSet>, all: &NodeSet) -> Self {
        Self {
            scenario: spec.scenario.clone(),
            version: spec.version,
            stock: spec
                .version
                .is_none_or(|version| version == muster_protocol::api::STOCK_VERSION),
            mode: spec.mode,
            params: spec.params.clone(),
            sets,
            size: count(all),
            gates: spec.gates.clone(),
        }
    }

    /// A run that is about to be created.
    #[must_use]
    pub fn of(run: &FrozenRun) -> Self {
        let serials = |nodes: &[Target]| nodes.iter().map(|node| node.serial).collect();
        let mut sets = vec![AskedSet::whole(TARGETS, serials(&run.targets))];
        let also = run.sets.iter();
        sets.extend(also.map(|set| AskedSet::whole(&set.name, serials(&set.nodes))));
        Self::of_spec(&run.spec, sets, &run.set())
    }

    /// A run that is there.
    #[must_use]
    pub fn of_state(run: &RunState) -> Self {
        let all: NodeSet = run.nodes.keys().copied().collect();
        let sets = declared(run)
            .map(|(name, nodes)| AskedSet::whole(name, nodes.clone()))
            .collect::<Vec<_>>();
        let sets = if sets.is_empty() {
            vec![AskedSet::whole(TARGETS, all.clone())]
        } else {
            sets
        };
        Self::of_spec(&run.spec, sets, &all)
    }

    /// A step of a run with a `main`, on these nodes: judged as the whole run
    /// is, and in each set that has some of them.
    #[must_use]
    pub fn of_step(run: &RunState, nodes: &NodeSet) -> Self {
        let mut ask = Self::of_state(run);
        for set in &mut ask.sets {
            set.nodes = set
                .nodes
                .iter()
                .filter(|serial| nodes.contains(*serial))
                .collect();
        }
        ask.sets.retain(|set| !set.nodes.is_empty());
        let covered: NodeSet = ask.sets.iter().flat_map(|set| set.nodes.iter()).collect();
        if nodes.iter().any(|serial| !covered.contains(serial)) {
            // A step outside every declared set is refused long before; were
            // it not, it would be judged and not overlooked.
            ask.sets.push(AskedSet::whole(TARGETS, nodes.clone()));
        }
        ask
    }
}

/// The declared sets of a run with a `main`, `targets` first.
fn declared(run: &RunState) -> impl Iterator<Item = (&String, &NodeSet)> {
    let sets = run.spec.main.as_ref().map(|main| &main.sets);
    let pick = move |own: bool| {
        sets.into_iter()
            .flatten()
            .filter(move |(name, _)| (name.as_str() == TARGETS) == own)
            .map(|(name, set)| (name, &set.nodes))
    };
    pick(true).chain(pick(false))
}
