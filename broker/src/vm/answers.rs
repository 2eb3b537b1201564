//! What whoever asked for something in a chat is told of its end.

use muster_protocol::api::VmAction;
use muster_protocol::names::VmName;
use muster_protocol::units::{Timestamp, elapsed};
use muster_protocol::vm::VmId;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::machines::Machines;
use super::records::{End, Life, StoredVm};

/// How far machines are that were asked for together.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Batch {
    /// The first of them: the same for all of them.
    pub id: VmId,
    /// Those that are up.
    pub up: Vec<VmName>,
    /// Those that were not made.
    pub failed: Vec<VmName>,
    /// How many are being made.
    pub open: usize,
}

/// What is told to whoever asked, beside whomever routes name.
const ANSWERS: [&str; 6] = [
    "vm.created",
    "vm.failed",
    "vm.deleted",
    "vm.changed",
    "vm.configured",
    "vm.configure-failed",
];

impl Machines {
    /// Where whoever asked is told of it, and what they need to know.
    pub(super) fn add_answer(&self, vm: &StoredVm, kind: &str, fields: &mut Map<String, Value>) {
        let Some(chat) = &vm.order.chat else {
            return;
        };
        let mut add = |name: &str, value: Value| {
            fields.insert(name.to_owned(), value);
        };
        if !ANSWERS.contains(&kind) {
            // An alarm is for everybody, also where it was asked for.
            if kind == "alarm.vm-doubtful" {
                add("asker", json!(chat));
            }
            return;
        }
        add("chat", json!(chat));
        if matches!(vm.life, Life::Gone { .. }) && kind == "vm.failed" {
            add("left", json!("nothing"));
        }
        if kind == "vm.created" {
            let took = elapsed(vm.made.at, Timestamp::now()).as_secs();
            // One that came back was made long ago.
            if vm.runs == 1 {
                add("seconds", json!(took));
            }
        }
        if matches!(kind, "vm.created" | "vm.failed")
            && let Some(batch) = self.batch(vm)
        {
            add("batch", json!(batch));
        }
    }

    /// How far the machines are that were asked for together with this one.
    fn batch(&self, vm: &StoredVm) -> Option<Batch> {
        let with = &vm.order.with;
        let records = &self.parts().records;
        let mut batch = Batch {
            id: records.get(with.first()?)?.vm.id,
            up: Vec::new(),
            failed: Vec::new(),
            open: 0,
        };
        for name in with {
            let held = records.get(name)?;
            match &held.vm.life {
                Life::Reserved | Life::Creating { .. } | Life::Ending { never: true, .. } => {
                    batch.open += 1;
                }
                Life::Gone {
                    failed: Some(_), ..
                }
                | Life::Doubtful { .. }
                | Life::Destroying {
                    end: End::Failed { .. },
                    ..
                } => batch.failed.push(name.clone()),
                _ => batch.up.push(name.clone()),
            }
        }
        Some(batch)
    }

    /// The machine that a run does something with, or did so last.
    #[must_use]
    pub fn of_run(&self, run: muster_protocol::ids::RunId) -> Option<std::sync::Arc<StoredVm>> {
        self.parts().records.by_run(run).map(|held| held.vm)
    }
}

/// What came of a change, as an event: its kind, and a sentence. Nothing where
/// somebody only looked.
pub(super) fn changed(
    vm: &StoredVm,
    what: &VmAction,
    failed: Option<String>,
) -> Option<(&'static str, String)> {
    let (by, name) = (&vm.order.by, &vm.name);
    let (done, undone) = match what {
        VmAction::Start => ("runs".to_owned(), "was not started"),
        VmAction::Stop { .. } => ("is stopped".to_owned(), "was not stopped"),
        VmAction::Reboot { .. } => ("was started anew".to_owned(), "was not started anew"),
        VmAction::Resize { .. } => (
            "is resized; processors and memory change when it starts anew".to_owned(),
            "was not resized",
        ),
        VmAction::Snapshot { snapshot } => (
            format!("has its disk kept as {snapshot}"),
            "could not be kept as a snapshot",
        ),
        VmAction::Restore { snapshot } => (
            format!("has its disk as in {snapshot}"),
            "could not be made as in the snapshot",
        ),
        VmAction::ConsoleLog { .. }
        | VmAction::Exec { .. }
        | VmAction::Provision { .. }
        | VmAction::Protect
        | VmAction::Unprotect
        | VmAction::Undelete => return None,
    };
    Some(match failed {
        None => (
            "vm.changed",
            format!("machine {name} {done} (asked by {by})"),
        ),
        Some(why) => (
            "vm.failed",
            format!("machine {name} {undone} (asked by {by}): {why}"),
        ),
    })
}
