//! What is to be done so that there is what a stack says: pure.

use std::collections::{BTreeMap, BTreeSet};

use muster_protocol::api::{Configure, NetworkView, VmStatus, VmView};
use muster_protocol::ids::RunId;
use muster_protocol::names::LanName;
use muster_protocol::text::printable;
use muster_protocol::units::{Size as Exact, Timestamp};
use muster_protocol::vm::{Size, VmId};
use serde::Serialize;

use super::{Labels, Machine, Stack, StackId, configure, is_own, network};

/// What there is: all machines, those that were destroyed too, and networks.
#[derive(Clone, Copy, Debug)]
pub struct There<'a> {
    /// Machines.
    pub vms: &'a [VmView],
    /// Machines that were destroyed.
    pub deleted: &'a [VmView],
    /// Networks.
    pub networks: &'a [NetworkView],
}

/// What is to be done, in the order of the file; then what the file names no
/// more.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// Which stack.
    #[serde(flatten)]
    pub id: StackId,
    /// Each network and each machine.
    pub items: Vec<Item>,
}

/// What an item is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A network.
    Network,
    /// A machine.
    Machine,
}

/// A network or a machine, held against what there is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Item {
    /// What it is.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// How it stands.
    #[serde(flatten)]
    pub is: Is,
    /// What is otherwise than in the file, and stays so.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fixed: Vec<Difference>,
    /// What should be known of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Its place in the stack, if it is in the file.
    #[serde(skip)]
    pub of: Option<usize>,
}

/// How something stands.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "is")]
pub enum Is {
    /// It is to be made.
    New {
        /// What it will be, for people.
        text: String,
    },
    /// It is being made; that is waited for.
    BeingMade {
        /// By which run.
        run: Option<RunId>,
    },
    /// It is to be changed.
    Changed {
        /// How.
        changes: Vec<Change>,
    },
    /// It is as in the file.
    Same,
    /// The name is somebody else's: nothing is done at all.
    Foreign {
        /// The stack that it is of, if any.
        #[serde(flatten)]
        of: Option<StackId>,
    },
    /// Nothing can be done with it now.
    Blocked {
        /// Why.
        why: String,
        /// What to do.
        hint: String,
    },
    /// The file does not name it any more.
    Vanished {
        /// Whether it is protected, and stays.
        protected: bool,
        /// Which machine.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<VmId>,
    },
}

/// Something that is otherwise.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Difference {
    /// The key of the file.
    pub what: &'static str,
    /// As it is.
    pub is: String,
    /// As it is in the file.
    pub wanted: String,
}

/// Something that is to be changed.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "change")]
pub enum Change {
    /// Its size; each as it is and as it is to be.
    Size {
        /// Processors.
        #[serde(skip_serializing_if = "Option::is_none")]
        cpus: Option<(u16, u16)>,
        /// Memory.
        #[serde(skip_serializing_if = "Option::is_none")]
        memory: Option<(Size, Size)>,
        /// Disk.
        #[serde(skip_serializing_if = "Option::is_none")]
        disk: Option<(Size, Size)>,
    },
    /// Whether it runs.
    Running {
        /// From now on.
        running: bool,
    },
    /// Whether it is protected.
    Protect {
        /// From now on.
        protect: bool,
    },
    /// What configures it.
    Configure {
        /// By which scenario it is to be.
        configure: Configure,
        /// Why it is not yet.
        why: Why,
    },
    /// A network.
    Network {
        /// What of it.
        differences: Vec<Difference>,
    },
}

/// Why a machine is not configured as its stack says.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "why")]
pub enum Why {
    /// Nothing ever configured it.
    Never,
    /// Something else does, or the same with other parameters.
    Otherwise {
        /// What, for people.
        is: String,
    },
    /// It did not work.
    Failed {
        /// Why not.
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// It is being configured; that is waited for.
    UnderWay,
}

impl Plan {
    /// Holds a stack against what there is.
    #[must_use]
    pub fn of(stack: &Stack, there: There<'_>) -> Self {
        let mut items = Vec::new();
        let networks: BTreeMap<&str, &NetworkView> = there
            .networks
            .iter()
            .map(|view| (view.name.as_str(), view))
            .collect();
        for (at, network) in stack.networks.iter().enumerate() {
            let view = networks.get(network.name.as_str()).copied();
            let mut item = network::item_of(&stack.id, network, view);
            item.of = Some(at);
            items.push(item);
        }
        // One that is there counts before one of its name that was destroyed.
        let machines: BTreeMap<&str, &VmView> = there
            .deleted
            .iter()
            .chain(there.vms)
            .map(|view| (view.name.as_str(), view))
            .collect();
        for (at, machine) in stack.machines.iter().enumerate() {
            let view = machines.get(machine.name.as_str()).copied();
            let mut item = item_of(&stack.id, machine, view);
            item.of = Some(at);
            items.push(item);
        }
        let named: BTreeSet<&str> = stack.machines.iter().map(|m| m.name.as_str()).collect();
        let ours = |labels: &Labels| stack.id.owns(labels);
        for view in there.vms {
            if ours(&view.labels) && !named.contains(view.name.as_str()) {
                let is = Is::Vanished {
                    protected: view.protected,
                    id: Some(view.id),
                };
                items.push(Item::of(Kind::Machine, view.name.as_str(), is));
            }
        }
        let named: BTreeSet<&LanName> = stack.networks.iter().map(|n| &n.name).collect();
        for view in there.networks {
            if ours(&view.labels) && !named.contains(&view.name) {
                let is = Is::Vanished {
                    protected: false,
                    id: None,
                };
                items.push(Item::of(Kind::Network, view.name.as_str(), is));
            }
        }
        Self {
            id: stack.id.clone(),
            items,
        }
    }

    /// Whether somebody else has a name of it.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        let foreign = |item: &Item| matches!(item.is, Is::Foreign { .. });
        self.items.iter().any(foreign)
    }

    /// Whether anything is to be done.
    #[must_use]
    pub fn has_work(&self, prune: bool) -> bool {
        self.items.iter().any(|item| item.is.is_work(prune))
    }

    /// Whether something is otherwise than in the file, and stays so.
    #[must_use]
    pub fn stays_otherwise(&self) -> bool {
        self.items.iter().any(Item::stays_otherwise)
    }
}

impl Item {
    pub(super) fn of(kind: Kind, name: &str, is: Is) -> Self {
        Self {
            kind,
            name: name.to_owned(),
            is,
            fixed: Vec::new(),
            notes: Vec::new(),
            of: None,
        }
    }

    /// Whether it is otherwise than in the file, and stays so.
    #[must_use]
    pub fn stays_otherwise(&self) -> bool {
        !self.fixed.is_empty() || matches!(self.is, Is::Blocked { .. } | Is::Foreign { .. })
    }
}

impl Is {
    /// Whether something is to be done.
    #[must_use]
    pub fn is_work(&self, prune: bool) -> bool {
        match self {
            Self::New { .. } | Self::BeingMade { .. } | Self::Changed { .. } => true,
            Self::Vanished { protected, .. } => prune && !protected,
            Self::Same | Self::Foreign { .. } | Self::Blocked { .. } => false,
        }
    }
}

/// A number of bytes, exactly.
pub(super) fn exact(size: Size) -> String {
    Exact::new(size.bytes()).to_string()
}

pub(super) fn joined<T: ToString>(all: impl IntoIterator<Item = T>) -> String {
    let all: Vec<String> = all.into_iter().map(|one| one.to_string()).collect();
    if all.is_empty() {
        "-".to_owned()
    } else {
        all.join(", ")
    }
}

pub(super) fn different(
    pairs: impl IntoIterator<Item = (&'static str, String, String)>,
) -> Vec<Difference> {
    let all = pairs.into_iter().filter(|(_, is, wanted)| is != wanted);
    all.map(|(what, is, wanted)| Difference { what, is, wanted })
        .collect()
}

/// A machine of a stack, held against the machine of its name.
#[must_use]
pub fn item_of(stack: &StackId, machine: &Machine, view: Option<&VmView>) -> Item {
    let mut item = Item::of(Kind::Machine, machine.name.as_str(), Is::Same);
    let view = view.filter(|view| view.status != VmStatus::Deleted || view.kept_until.is_some());
    let Some(view) = view else {
        item.is = Is::New {
            text: new_text(machine),
        };
        return item;
    };
    if !stack.owns(&view.labels) {
        let of = StackId::of(&view.labels);
        item.is = Is::Foreign { of };
        return item;
    }
    if let Some(is) = unfit(view) {
        item.is = is;
        return item;
    }
    let mut changes;
    (changes, item.fixed) = differences(machine, view);
    let shown = |text: &str| printable(text, 200);
    item.notes = view.drift.iter().map(|drift| shown(&drift.text)).collect();
    if let Some(change) = configure::change(machine, view) {
        // Nobody takes orders in one that does not run.
        let starts = changes.contains(&Change::Running { running: true });
        if starts || view.status == VmStatus::Running {
            changes.push(change);
        } else {
            let text = format!("{}, once it runs", super::changed(&change));
            item.notes.push(text);
        }
    }
    if !changes.is_empty() {
        item.is = Is::Changed { changes };
    }
    if view.status == VmStatus::Unreachable {
        let text = format!("{} cannot be heard", view.hypervisor);
        item.notes.push(text);
    }
    item
}

/// What a machine that is not there will be.
fn new_text(machine: &Machine) -> String {
    let create = &machine.create;
    let mut parts = vec![
        create.image.to_string(),
        crate::ui::count(usize::from(create.cpus), "processor"),
        exact(create.memory),
    ];
    parts.extend(create.disk.map(|disk| format!("{} of disk", exact(disk))));
    if !create.networks.is_empty() {
        parts.push(format!("in {}", joined(&create.networks)));
    }
    if !create.roles.is_empty() {
        parts.push(format!("role {}", joined(&create.roles)));
    }
    if !create.groups.is_empty() {
        parts.push(format!("group {}", joined(&create.groups)));
    }
    if let Some(configure) = &create.configure {
        parts.push(format!("configured by {}", configure::text(configure)));
    }
    parts.join(", ")
}

/// Why nothing can be changed of a machine now.
fn unfit(view: &VmView) -> Option<Is> {
    let name = &view.name;
    let blocked = |why: String, hint: String| Some(Is::Blocked { why, hint });
    match view.status {
        VmStatus::Creating => Some(Is::BeingMade { run: view.run }),
        VmStatus::Destroying => blocked(
            "it is being destroyed".to_owned(),
            "apply again when it is gone".to_owned(),
        ),
        VmStatus::Deleted => {
            let until = view.kept_until.map(|until: Timestamp| {
                let until = crate::ui::time::moment(until);
                format!(", and its disk is kept until {until}")
            });
            blocked(
                format!("it was destroyed{}", until.unwrap_or_default()),
                format!(
                    "muster vm undelete {name} brings it back; muster vm destroy {name} --purge makes room for a new one"
                ),
            )
        }
        VmStatus::Doubtful => blocked(
            format!(
                "it cannot be said whether it is there: {}",
                printable(view.why.as_deref().unwrap_or("no reason is known"), 200)
            ),
            format!("muster looks again as soon as {} is heard", view.hypervisor),
        ),
        VmStatus::Missing => blocked(
            format!("{} does not have it", view.hypervisor),
            format!("muster vm destroy {name} --purge, and apply again makes it anew"),
        ),
        VmStatus::Running
        | VmStatus::Paused
        | VmStatus::Stopped
        | VmStatus::Crashed
        | VmStatus::Unreachable => None,
    }
}

/// What is to be changed of a machine, and what cannot be.
fn differences(machine: &Machine, view: &VmView) -> (Vec<Change>, Vec<Difference>) {
    let create = &machine.create;
    let yes = |yes: bool| yes.to_string();
    let labels = |labels: &Labels| {
        let all = labels.iter().filter(|(key, _)| !is_own(key));
        joined(all.map(|(key, value)| format!("{key}={value}")))
    };
    let mut fixed = different([
        ("image", view.image.to_string(), create.image.to_string()),
        (
            "networks",
            joined(view.nics.iter().map(|nic| &nic.network)),
            joined(&create.networks),
        ),
        ("account", joined(&view.account), joined(&create.account)),
        ("agent", yes(view.agent), yes(create.agent)),
        ("roles", joined(&view.roles), joined(&create.roles)),
        ("groups", joined(&view.groups), joined(&create.groups)),
        ("labels", labels(&view.labels), labels(&create.labels)),
        ("autostart", yes(view.autostart), yes(create.autostart)),
    ]);
    let other = |is: Size, wanted: Size| (is != wanted).then_some((is, wanted));
    let cpus = (view.cpus != create.cpus).then_some((view.cpus, create.cpus));
    let memory = other(view.memory, create.memory);
    let mut disk = create.disk.and_then(|disk| other(view.disk, disk));
    // A disk only grows.
    if let Some((is, wanted)) = disk.take_if(|(is, wanted)| wanted < is) {
        fixed.push(Difference {
            what: "disk",
            is: exact(is),
            wanted: exact(wanted),
        });
    }
    let mut changes = Vec::new();
    if cpus.is_some() || memory.is_some() || disk.is_some() {
        changes.push(Change::Size { cpus, memory, disk });
    }
    if let Some(running) = machine.running {
        let seen = match view.status {
            VmStatus::Stopped | VmStatus::Crashed => false,
            VmStatus::Running => true,
            _ => view.should_run,
        };
        if view.should_run != running || seen != running {
            changes.push(Change::Running { running });
        }
    }
    if let Some(protect) = machine.protect.filter(|protect| *protect != view.protected) {
        changes.push(Change::Protect { protect });
    }
    (changes, fixed)
}
