//! All nodes at one moment.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, OnceLock};

use muster_protocol::ids::Serial;
use muster_protocol::names::NodeName;
use muster_protocol::predicate::Attributes as _;
use serde_json::Value;

use super::record::NodeRecord;

/// Nodes with the same serial divided by this share a page, so that a change
/// copies a page and not the fleet.
const PAGE: u32 = 128;

type PageMap = BTreeMap<Serial, Arc<NodeRecord>>;

/// All nodes at one moment; never changes. Quarantined nodes are in it,
/// removed ones are not.
#[derive(Debug, Default)]
pub struct Snapshot {
    pages: BTreeMap<u32, Arc<PageMap>>,
    names: Arc<HashMap<NodeName, Serial>>,
    len: usize,
    revision: u64,
    candidates: OnceLock<Vec<String>>,
}

impl Snapshot {
    /// From records; of two with one serial the last one counts.
    #[must_use]
    pub fn new(records: impl IntoIterator<Item = NodeRecord>) -> Self {
        let mut pages: BTreeMap<u32, PageMap> = BTreeMap::new();
        for record in records {
            pages
                .entry(record.serial.0 / PAGE)
                .or_default()
                .insert(record.serial, Arc::new(record));
        }
        let nodes = pages.values().flat_map(BTreeMap::values);
        let names: HashMap<_, _> = nodes
            .map(|r| (r.assignment.name.clone(), r.serial))
            .collect();
        Self {
            len: pages.values().map(BTreeMap::len).sum(),
            pages: pages
                .into_iter()
                .map(|(at, page)| (at, Arc::new(page)))
                .collect(),
            names: Arc::new(names),
            revision: 1,
            candidates: OnceLock::new(),
        }
    }

    /// A node by its serial.
    #[must_use]
    pub fn get(&self, serial: Serial) -> Option<&Arc<NodeRecord>> {
        self.pages.get(&(serial.0 / PAGE))?.get(&serial)
    }

    /// A node by its name.
    #[must_use]
    pub fn by_name(&self, name: &NodeName) -> Option<&Arc<NodeRecord>> {
        self.get(*self.names.get(name)?)
    }

    /// All nodes, by rising serial.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<NodeRecord>> + Clone {
        self.pages.values().flat_map(|page| page.values())
    }

    /// How many nodes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
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
        self.iter()
            .any(|node| node.label(name).is_some() || node.fact(name).is_some())
    }

    /// The names of all labels and facts, sorted, for suggestions.
    #[must_use]
    pub fn candidates(&self) -> &[String] {
        self.candidates.get_or_init(|| {
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
            names.into_iter().collect()
        })
    }

    /// The next snapshot, with this node as it is now.
    #[must_use]
    pub(super) fn with(&self, record: Arc<NodeRecord>) -> Self {
        let old = self.get(record.serial);
        let renamed = old.is_none_or(|old| old.assignment.name != record.assignment.name);
        let mut next = self.next();
        if renamed {
            let names = Arc::make_mut(&mut next.names);
            if let Some(old) = old {
                names.remove(&old.assignment.name);
            }
            names.insert(record.assignment.name.clone(), record.serial);
        }
        next.len += usize::from(old.is_none());
        let page = next.pages.entry(record.serial.0 / PAGE).or_default();
        Arc::make_mut(page).insert(record.serial, record);
        next
    }

    /// The next snapshot, without this node.
    #[must_use]
    pub(super) fn without(&self, serial: Serial) -> Self {
        let Some(old) = self.get(serial) else {
            return self.next();
        };
        let mut next = self.next();
        if self.names.get(&old.assignment.name) == Some(&serial) {
            Arc::make_mut(&mut next.names).remove(&old.assignment.name);
        }
        if let Some(page) = next.pages.get_mut(&(serial.0 / PAGE)) {
            Arc::make_mut(page).remove(&serial);
        }
        next.len -= 1;
        next
    }

    fn next(&self) -> Self {
        Self {
            pages: self.pages.clone(),
            names: Arc::clone(&self.names),
            len: self.len,
            revision: self.revision + 1,
            candidates: OnceLock::new(),
        }
    }
}

/// How far into nested facts names are looked for.
const MAX_FACT_DEPTH: usize = 8;

fn fact_names(path: &str, value: &Value, depth: usize, names: &mut BTreeSet<String>) {
    if !names.contains(path) {
        names.insert(path.to_owned());
    }
    let Some(map) = value.as_object().filter(|_| depth > 0) else {
        return;
    };
    for (key, inner) in map {
        fact_names(&format!("{path}.{key}"), inner, depth - 1, names);
    }
}
