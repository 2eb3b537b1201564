//! Machines, and what they are made of, in the lines of a chat. Pure.

use std::collections::BTreeMap;

use muster_protocol::api::{
    ClusterEvent, Drained, HypervisorView, ImageView, NetworkView, Say, Tone, VmAction, VmPlan,
    VmStatus, VmView, VmsCreated,
};
use muster_protocol::fold::folded;
use muster_protocol::names::VmName;
use muster_protocol::text::printable;
use muster_protocol::units::Timestamp;

use super::super::read::ago_since;
use super::super::say::{self, count};
use crate::http::status_word;

/// Longest list of names in a line, in characters.
const NAMES: usize = 200;
/// Longest text that comes from elsewhere, in characters.
const MAX_TEXT: usize = 300;

/// What is made, or would be.
pub(super) fn made(made: &VmsCreated) -> Say {
    match made.machines.as_slice() {
        [one] => {
            let said = say::plain(plan(one, made.dry_run));
            match one.vm.run.filter(|_| !made.dry_run) {
                Some(run) => say::about(said, &run.short()),
                None => said,
            }
        }
        several => say::plain(plans(several, made.dry_run)),
    }
}

fn addresses(vm: &VmView) -> String {
    let all: Vec<String> = vm.addresses.iter().map(ToString::to_string).collect();
    all.join(", ")
}

/// `web-03: 192.0.2.57 on hv-2 (of 3, 2 fit), image debian-12 is there`.
fn plan(plan: &VmPlan, dry: bool) -> String {
    let vm = &plan.vm;
    let place = format!(
        "{} (of {}, {} fit)",
        vm.hypervisor, plan.looked_at, plan.fit
    );
    let image = if plan.image_there {
        "is there"
    } else {
        "is to be fetched"
    };
    if dry {
        return format!(
            "{} would be made on {place}; image {} {image}, addresses are given when it is made",
            vm.name, vm.image
        );
    }
    let at = match addresses(vm) {
        none if none.is_empty() => String::new(),
        at => format!(" at {at}"),
    };
    format!(
        "{} is being made{at} on {place}; image {} {image}",
        vm.name, vm.image
    )
}

fn plans(plans: &[VmPlan], dry: bool) -> String {
    let names = folded(plans.iter().map(|plan| plan.vm.name.as_str()), NAMES);
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    for plan in plans {
        *places.entry(plan.vm.hypervisor.as_str()).or_default() += 1;
    }
    let places: Vec<String> = places
        .into_iter()
        .map(|(node, n)| format!("{node} ({n})"))
        .collect();
    let places = folded(places.iter().map(String::as_str), NAMES);
    let verb = if dry {
        "would be made"
    } else {
        "are being made"
    };
    let machines = count(plans.len(), "machine");
    format!("{machines} {verb}: {names} on {places}")
}

/// Machines by how they are, and each that is otherwise than it is wanted.
pub(super) fn list(vms: &[VmView], on: Option<&str>, deleted: bool) -> Say {
    if vms.is_empty() {
        return say::plain(match (on, deleted) {
            (Some(on), _) => format!("no machine matches {}", printable(on, MAX_TEXT)),
            (None, true) => "no machine was destroyed".to_owned(),
            (None, false) => "no machines yet".to_owned(),
        });
    }
    let mut by_status: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for vm in vms {
        let names = by_status.entry(status_word(vm.status)).or_default();
        names.push(vm.name.as_str());
    }
    let mut lines = vec![count(vms.len(), "machine")];
    for (status, names) in &by_status {
        let names_folded = folded(names.iter().copied(), NAMES);
        lines.push(format!("{status} {}: {names_folded}", names.len()));
    }
    if lines.len() == 2 {
        let last = lines.pop().unwrap_or_default();
        lines[0].push_str(&format!(", {last}"));
    }
    let mut odd = false;
    for vm in vms {
        for drift in &vm.drift {
            odd = true;
            lines.push(format!("{} {}", vm.name, printable(&drift.text, MAX_TEXT)));
        }
        if let Some(why) = &vm.why {
            lines.push(format!("{}: {}", vm.name, first_line(why)));
        }
        if let Some(until) = vm.kept_until {
            lines.push(format!(
                "{}: its disk is kept until {}",
                vm.name,
                moment(until)
            ));
        }
    }
    Say {
        tone: if odd { Tone::Warn } else { Tone::Plain },
        ..say::several(lines)
    }
}

fn first_line(text: &str) -> String {
    printable(text.lines().next().unwrap_or_default(), MAX_TEXT)
}

fn moment(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M UTC").to_string()
}

/// Everything known of a machine that fits into a few lines.
pub(super) fn card(vm: &VmView, now: Timestamp) -> Say {
    let mut first = format!("{} is {}", vm.name, status_word(vm.status));
    if vm.status != VmStatus::Deleted {
        first.push_str(&format!(" on {}", vm.hypervisor));
    }
    if let Some(since) = vm.since {
        first.push_str(&format!(", up {}", ago_since(since, now)));
    }
    let at = addresses(vm);
    if !at.is_empty() {
        first.push_str(&format!(", {at}"));
    }
    if vm.protected {
        first.push_str(", protected");
    }
    let mut lines = vec![first];
    let mut facts = vec![
        format!("{} cpus", vm.cpus),
        format!("{} of memory", vm.memory),
        format!("{} of disk", vm.disk),
        format!("image {}", vm.image),
    ];
    if let Some(account) = &vm.account {
        facts.push(format!("account {account}"));
    }
    if !vm.roles.is_empty() {
        let roles: Vec<&str> = vm.roles.iter().map(|role| role.as_str()).collect();
        facts.push(format!("role {}", roles.join(", ")));
    }
    let labels = vm.labels.iter().map(|(k, v)| format!("{k}={v}"));
    facts.extend(labels);
    if !vm.agent {
        facts.push("no agent".to_owned());
    }
    lines.push(printable(&facts.join(", "), say::MAX_LINE));
    lines.push(format!("made {} by {}", moment(vm.made), vm.by));
    let mut tone = Tone::Plain;
    for drift in &vm.drift {
        tone = Tone::Warn;
        lines.push(printable(&drift.text, MAX_TEXT));
    }
    if let Some(why) = &vm.why {
        lines.push(first_line(why));
    }
    if let Some(until) = vm.kept_until {
        lines.push(format!(
            "its disk is kept until {}: !vm undelete {}",
            moment(until),
            vm.name
        ));
    }
    Say {
        tone,
        ..say::several(lines)
    }
}

/// What has begun and takes a while.
pub(super) fn begun(name: &VmName, what: &VmAction, vm: &VmView) -> String {
    let doing = match what {
        VmAction::Start => "is being started",
        VmAction::Stop { .. } => "is being stopped: asked first, then forced",
        VmAction::Reboot { .. } => "is being started anew: asked first, then forced",
        VmAction::Resize { .. } => "is being resized",
        VmAction::Snapshot { .. } => "has its disk kept",
        VmAction::Restore { .. } => "has its disk restored",
        VmAction::ConsoleLog { .. } => "is asked for its console",
        VmAction::Exec { .. } => "runs it",
        VmAction::Provision { .. } => "is being configured",
        VmAction::Undelete => "is being brought back",
        VmAction::Protect | VmAction::Unprotect => "is changed",
    };
    format!("{name} {doing} on {}", vm.hypervisor)
}

/// Whether a machine like that can be destroyed.
pub(super) fn can_go(vm: &VmView, purge: bool) -> bool {
    match vm.status {
        VmStatus::Deleted => purge && vm.kept_until.is_some(),
        VmStatus::Creating | VmStatus::Destroying => false,
        VmStatus::Doubtful => purge,
        _ => true,
    }
}

/// What is asked before a machine is destroyed.
pub(super) fn question(vm: &VmView, purge: bool, now: Timestamp) -> String {
    let mut parts = vec![match &vm.account {
        Some(account) => format!("of {account}"),
        None => "of nobody's account".to_owned(),
    }];
    parts.push(match vm.since {
        Some(since) => format!("{} for {}", status_word(vm.status), ago_since(since, now)),
        None => status_word(vm.status).to_owned(),
    });
    let at = addresses(vm);
    if !at.is_empty() {
        parts.push(at);
    }
    parts.push(format!("{} of disk on {}", vm.disk, vm.hypervisor));
    let end = if purge {
        "destroy it with its disk? Nothing of it stays"
    } else {
        "destroy it? Its disk and its addresses stay for 24 hours"
    };
    format!(
        "{} ({}): {end}.  !yes · !no  (5 min)",
        vm.name,
        parts.join("; ")
    )
}

/// What happened to a machine, the newest last.
pub(super) fn log(name: &VmName, events: &[ClusterEvent], now: Timestamp) -> Say {
    if events.is_empty() {
        return say::plain(format!("nothing is known to have happened to {name}"));
    }
    let line = |event: &ClusterEvent| {
        let text = first_line(&event.text);
        let text = text.strip_prefix("machine ").unwrap_or(&text);
        format!("{} ago: {text}", ago_since(event.at, now))
    };
    say::several(events.iter().map(line).collect())
}

/// All images.
pub(super) fn images(all: &[ImageView]) -> Say {
    if all.is_empty() {
        return say::plain("no images yet: muster image add in a shell adds one".to_owned());
    }
    let line = |image: &ImageView| {
        format!(
            "{}: {}, a disk of {}; on {}, {} made of it",
            image.name,
            image.size,
            image.virtual_size,
            count(image.on as usize, "hypervisor"),
            count(image.machines as usize, "machine")
        )
    };
    say::several(all.iter().map(line).collect())
}

/// All networks.
pub(super) fn networks(all: &[NetworkView]) -> Say {
    if all.is_empty() {
        return say::plain("no networks yet: muster network add in a shell adds one".to_owned());
    }
    let line = |network: &NetworkView| {
        let free = match network.free {
            u32::MAX => "many".to_owned(),
            free => free.to_string(),
        };
        format!(
            "{}: {} on {}; {} used, {free} free",
            network.name,
            printable(&network.pools.join(", "), MAX_TEXT),
            network.bridge,
            network.used
        )
    };
    say::several(all.iter().map(line).collect())
}

/// All hypervisors, and what of them is given.
pub(super) fn hypervisors(all: &[HypervisorView]) -> Say {
    if all.is_empty() {
        let line = "no hypervisors yet: a node is one by its role, hypervisor";
        return say::plain(line.to_owned());
    }
    let mut tone = Tone::Plain;
    let mut lines = Vec::new();
    for one in all {
        let state = match (one.connected, &one.problem, one.cordoned) {
            (false, ..) => "away",
            (true, Some(_), _) => "has a problem",
            (true, None, true) => "cordoned",
            (true, None, false) if one.capacity.is_none() => "silent",
            (true, None, false) => "up",
        };
        if !one.connected || one.problem.is_some() {
            tone = Tone::Warn;
        }
        let of = |given: String, all: Option<String>| match all {
            Some(all) => format!("{given} of {all}"),
            None => given,
        };
        let has = one.capacity;
        let mut line = format!(
            "{}: {state}, {}, cpus {}, memory {}, disk {}",
            one.node,
            count(one.machines as usize, "machine"),
            of(one.cpus_given.to_string(), has.map(|h| h.cpus.to_string())),
            of(
                one.memory_given.to_string(),
                has.map(|h| h.memory.to_string())
            ),
            of(one.disk_given.to_string(), has.map(|h| h.disk.to_string())),
        );
        if !one.unknown.is_empty() {
            line.push_str(&format!(
                ", {} that muster does not know",
                count(one.unknown.len(), "domain")
            ));
        }
        if let Some(problem) = &one.problem {
            line.push_str(&format!(": {}", first_line(problem)));
        }
        lines.push(line);
    }
    Say {
        tone,
        ..say::several(lines)
    }
}

/// A hypervisor that is to be empty, and what of it runs.
pub(super) fn drained(drained: &Drained) -> Say {
    let hypervisor = &drained.hypervisor;
    let node = &hypervisor.node;
    let there = drained.machines.iter().map(|one| one.vm.name.as_str());
    let running = hypervisor.running as usize;
    if drained.machines.is_empty() {
        return say::good(format!("nothing new is put on {node}; no machine is on it"));
    }
    say::warn(format!(
        "nothing new is put on {node}; {} on it stay, as their disks are there: {}; {running} may run: \
         stop them one by one, or with muster hypervisor drain {node} --stop in a shell",
        count(drained.machines.len(), "machine"),
        folded(there, NAMES)
    ))
}

#[cfg(test)]
mod tests;
