//! All nodes at one moment.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, OnceLock};

use muster_protocol::ids::Serial;
use muster_protocol::names::NodeName;
use serde_json::Value;

use super::record::NodeRecord;

/// All nodes at one moment; never changes. Quarantined nodes are in it,
/// removed ones are not.
#[derive(Debug, Default)]
pub struct Snapshot {
    nodes: BTreeMap<Serial, Arc<NodeRecord>>,
    names: HashMap<NodeName, Serial>,
    revision: u64,
    known: OnceLock<BTreeSet<String>>,
}

impl Snapshot {
    /// From records.
    #[must_use]
    pub fn new(records: impl IntoIterator<Item = NodeRecord>) -> Self {
        let nodes: BTreeMap<_, _> = records.into_iter().map(|r| (r.serial, Arc::new(r))).collect();
        let names = nodes.values().map(|r| (r.assignment.name.clone(), r.serial)).collect();
        Self { nodes, names, revision: 1, known: OnceLock::new() }
    }

    /// A node by its serial.
    #[must_use]
    pub fn get(&self, serial: Serial) -> Option<&Arc<NodeRecord>> {
        self.nodes.get(&serial)
    }

    /// A node by its name.
    #[must_use]
    pub fn by_name(&self, name: &NodeName) -> Option<&Arc<NodeRecord>> {
        self.names.get(name).and_then(|serial| self.nodes.get(serial))
    }

    /// All nodes, by rising serial.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<NodeRecord>> {
        self.nodes.values()
    }

    /// How many nodes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Rises with every change of any node.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Whether any node has a label or a fact of this name (dots lead into
    /// facts).
    #[must_use]
    pub fn knows(&self, name: &str) -> bool {
        self.names_known().contains(name)
            || self.iter().any(|node| {
                use muster_protocol::predicate::Attributes as _;
                node.label(name).is_some() || node.fact(name).is_some()
            })
    }

    /// The names of all labels and facts, sorted, for suggestions.
    #[must_use]
    pub fn candidates(&self) -> Vec<String> {
        self.names_known().iter().cloned().collect()
    }

    fn names_known(&self) -> &BTreeSet<String> {
        self.known.get_or_init(|| {
            let mut names = BTreeSet::new();
            for node in self.iter() {
                for key in node.assignment.labels.keys() {
                    if !names.contains(key.as_str()) {
                        names.insert(key.to_string());
                    }
                }
                for (key, value) in node.facts.iter() {
                    fact_names(key, value, MAX_FACT_DEPTH, &mut names);
                }
            }
            names
        })
    }

    /// A copy with other nodes, one revision later.
    #[must_use]
    pub(super) fn with(&self, change: impl FnOnce(&mut BTreeMap<Serial, Arc<NodeRecord>>)) -> Self {
        let mut nodes = self.nodes.clone();
        change(&mut nodes);
        let names = nodes.values().map(|r| (r.assignment.name.clone(), r.serial)).collect();
        Self { nodes, names, revision: self.revision + 1, known: OnceLock::new() }
    }
}

/// How far into nested facts names are looked for.
const MAX_FACT_DEPTH: usize = 8;

fn fact_names(path: &str, value: &Value, depth: usize, names: &mut BTreeSet<String>) {
    if !names.contains(path) {
        names.insert(path.to_owned());
    }
    let Some(map) = value.as_object().filter(|_| depth > 0) else { return };
    for (key, inner) in map {
        fact_names(&format!("{path}.{key}"), inner, depth - 1, names);
    }
}
