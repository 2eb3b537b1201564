//! What is seen, held against what is wanted: told, and nothing more.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use muster_protocol::ids::Serial;
use muster_protocol::units::Timestamp;
use muster_protocol::vm::VmId;
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::choose::is_ours;
use super::drift::{Seen, drift};
use super::error::VmError;
use super::keep::{Held, Records};
use super::machines::Machines;
use super::observed::is_hypervisor;
use super::records::{Life, StoredVm};
use crate::events::Once;

/// How often everything is looked at, also without a report.
const LOOK: Duration = Duration::from_secs(60);

impl Machines {
    /// Tells what is otherwise than it is wanted, until `cancel`.
    pub async fn reconcile(self, cancel: CancellationToken) {
        let mut reports = self.parts().observed.changes();
        let mut tick = interval(LOOK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut unknown = HashSet::new();
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                _ = tick.tick() => {
                    self.tidy(Timestamp::now()).await;
                    self.follow_nodes().await;
                }
                changed = reports.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
            }
            let snapshot = self.parts().inventory.snapshot();
            self.parts().observed.tidy(&snapshot);
            self.compare().await;
            self.sweep().await;
            self.find_unknown(&mut unknown).await;
        }
    }

    /// Machines that are gone for long are forgotten.
    pub(super) async fn tidy(&self, now: Timestamp) {
        let keep = self.parts().settings.keep_records.get();
        match self.parts().records.forget(now, keep).await {
            Ok(0) => {}
            Ok(gone) => tracing::info!(gone, "machines that are gone for long are forgotten"),
            Err(error) => tracing::debug!(%error, "old machines are not forgotten yet"),
        }
    }

    /// Nodes of machines that somebody gave a new key: they go with the machine,
    /// too. Of how it came about is known for a day only, so it is written down.
    pub(super) async fn follow_nodes(&self) {
        let snapshot = self.parts().inventory.snapshot();
        for held in self.parts().records.all() {
            let Life::Ready { .. } = held.vm.life else {
                continue;
            };
            let gone = held.vm.node.filter(|node| snapshot.get(*node).is_none());
            let Some(gone) = gone else {
                continue;
            };
            let successor = self.parts().doorman.successor(gone).await;
            let Ok(Some(successor)) = successor else {
                continue;
            };
            let Some(_turn) = self.turn_now(&held.vm.name) else {
                continue;
            };
            let mut next = StoredVm::clone(&held.vm);
            next.node = Some(successor);
            if let Err(error) = self.parts().records.change(&held, next).await {
                tracing::debug!(vm = %held.vm.name, %error, "a machine's new node is not written down yet");
            }
        }
    }

    /// Addresses of machines that are not there any more are free: of one whose
    /// reservation was written although nobody heard so.
    pub(super) async fn sweep(&self) {
        // Whoever has addresses then has a record before.
        let holders = self.parts().reserves.holders();
        for machine in nobodys(&holders, &self.parts().records) {
            match self.parts().reserves.release(machine).await {
                Ok(()) => {
                    tracing::info!(%machine, "addresses of a machine that is not there are free")
                }
                Err(error) => {
                    let error = error.title;
                    tracing::debug!(%machine, error, "addresses of a machine that is not there are not free yet");
                }
            }
        }
    }

    /// Each machine once.
    pub(super) async fn compare(&self) {
        for held in self.parts().records.all() {
            let vm = &held.vm;
            let heard = self.parts().observed.of(vm.place.serial);
            let seen = Seen::of(vm, self.is_connected(vm.place.serial), heard.as_deref());
            let Some(now) = drift(vm, seen) else {
                continue;
            };
            let now: BTreeMap<String, String> =
                now.into_iter().map(|one| (one.what, one.text)).collect();
            if now == vm.drift {
                continue;
            }
            // Whoever does something with it now changes what is wanted.
            let Some(_turn) = self.turn_now(&vm.name) else {
                continue;
            };
            if let Err(error) = self.drifts(&held, now).await {
                tracing::debug!(vm = %vm.name, %error, "what a machine is otherwise is not written down yet");
            }
        }
    }

    /// Tells it, then writes down that it is told: rather twice than never,
    /// and who reads events sees it once.
    async fn drifts(&self, held: &Held, now: BTreeMap<String, String>) -> Result<(), VmError> {
        let vm = &held.vm;
        let mark = |what: &str| format!("{what}.{}", held.revision);
        for (what, text) in &now {
            if vm.drift.get(what) != Some(text) {
                let text = format!("machine {} {text}", vm.name);
                let fields = serde_json::Map::from_iter([
                    ("what".to_owned(), json!(what)),
                    ("should_run".to_owned(), json!(vm.should_run)),
                    ("roles".to_owned(), json!(vm.wish.roles)),
                    ("labels".to_owned(), json!(vm.wish.labels)),
                ]);
                let mark = mark(what);
                self.tell_with(vm, ("vm.drift", &mark), text, fields).await;
            }
        }
        for what in vm.drift.keys().filter(|what| !now.contains_key(*what)) {
            let text = format!("machine {} is as it should be: {}", vm.name, ended(what));
            self.tell(vm, "vm.drift-ended", &mark(what), text).await;
        }
        let mut next = StoredVm::clone(vm);
        next.drift = now;
        self.parts().records.change(held, next).await?;
        Ok(())
    }

    /// Domains of which muster knows nothing, each once.
    pub(super) async fn find_unknown(&self, told: &mut HashSet<(Serial, VmId)>) {
        let snapshot = self.parts().inventory.snapshot();
        let records = &self.parts().records;
        let mut there = HashSet::new();
        for node in snapshot.iter().filter(|node| is_hypervisor(node)) {
            let Some(heard) = self.parts().observed.of(node.serial) else {
                continue;
            };
            for guest in &heard.report.guests {
                if is_ours(records, guest.id) {
                    continue;
                }
                let key = (node.serial, guest.id);
                there.insert(key);
                if told.contains(&key) {
                    continue;
                }
                let name = &node.assignment.name;
                let text = format!(
                    "{name} has a domain that muster does not know: {} ({}); it is not touched",
                    guest.name, guest.id
                );
                let event = Once {
                    id: format!("vm.{}.unknown.{}", guest.id, node.serial),
                    kind: "vm.drift".to_owned(),
                    subject: name.to_string(),
                    text,
                    fields: serde_json::Map::from_iter([
                        ("hypervisor".to_owned(), json!(name)),
                        ("id".to_owned(), json!(guest.id)),
                        ("domain".to_owned(), json!(guest.name)),
                    ]),
                };
                self.parts().events.once(event).await;
            }
        }
        *told = there;
    }
}

/// Those that have addresses, and no record of a machine that is there.
pub(super) fn nobodys(holders: &[VmId], records: &Records) -> Vec<VmId> {
    let all = holders.iter().copied();
    all.filter(|id| !is_ours(records, *id)).collect()
}

fn ended(what: &str) -> &str {
    match what {
        "state" => "it runs or not, as it should",
        "memory" => "its memory is what was asked for",
        "cpus" => "its processors are what was asked for",
        "missing" => "it is there",
        other => other,
    }
}
