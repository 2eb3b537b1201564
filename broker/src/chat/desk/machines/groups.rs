//! Security groups, in a chat: judged and done as through any other door.

use axum::http::{HeaderMap, HeaderValue};
use muster_protocol::api::{GroupChanged, GroupView, InForce, VmGuarded};
use muster_protocol::chat::command::groups::GroupCommand;
use muster_protocol::text::printable;

use super::super::{Answer, Line, say};
use crate::authz::Action;
use crate::groups::Change;
use crate::http::{
    IDEMPOTENCY_KEY, allow_in_group, change_vm_groups, create_group, deny_in_group, remove_group,
    rollback_group, show_group,
};

/// Rules, versions, prefixes and names that are shown at a time.
const SHOWN: usize = 12;

impl Line<'_> {
    pub(super) async fn groups(&self, command: &GroupCommand) -> Answer {
        // A line that is told again, to whatever broker, does it once.
        let mut headers = HeaderMap::new();
        if let Ok(key) = HeaderValue::from_str(&self.run.to_string()) {
            headers.insert(IDEMPOTENCY_KEY, key);
        }
        let (state, caller) = (self.state, &self.caller);
        let any = |name: &muster_protocol::names::GroupName| Change {
            name: name.clone(),
            what: (),
            expect: None,
        };
        let changed = match command {
            GroupCommand::Create(group) => {
                Box::pin(create_group(state, caller, &headers, group.clone())).await?
            }
            GroupCommand::Allow(name, rule) => {
                let what = any(name).with(rule.clone());
                Box::pin(allow_in_group(state, caller, &headers, what)).await?
            }
            GroupCommand::Deny(name, rule) => {
                let what = any(name).with(*rule);
                Box::pin(deny_in_group(state, caller, &headers, what)).await?
            }
            GroupCommand::Rollback(name, to) => {
                let what = any(name).with(to.clone());
                Box::pin(rollback_group(state, caller, &headers, what)).await?
            }
            GroupCommand::Remove(name) => {
                remove_group(state, caller, any(name)).await?;
                return Ok(vec![say::good(format!("group {name} is removed"))]);
            }
            GroupCommand::Vm(vm, change) => {
                let asked = (vm.clone(), change.clone());
                let view = Box::pin(change_vm_groups(state, caller, &headers, asked)).await?;
                return Ok(vec![say::good(guarded(&view))]);
            }
            GroupCommand::Show(name) => {
                let view = show_group(state, caller, name).await?;
                return Ok(vec![say::several(card(&view))]);
            }
            GroupCommand::List => {
                self.allowed(Action::ReadGroups).await?;
                let all = state.groups.list();
                let lines = all.iter().map(|view| {
                    let (rules, machines) = (view.count as usize, view.machines as usize);
                    let rules = say::count(rules, "rule");
                    format!(
                        "{}: {rules}, {}",
                        view.name,
                        say::count(machines, "machine")
                    )
                });
                let none = "no groups yet: !group create makes one";
                return Ok(vec![some(lines.collect(), none)]);
            }
            GroupCommand::History(name) => {
                self.allowed(Action::ReadGroups).await?;
                let all = state.groups.history(name)?;
                let lines = all.iter().map(|one| {
                    let at = one.at.strftime("%Y-%m-%d %H:%M UTC");
                    let what = printable(&one.what, 200);
                    format!("{} {at} {}: {what}", one.version, one.by)
                });
                return Ok(vec![some(lines.collect(), "nothing is kept")]);
            }
            GroupCommand::Sets => {
                self.allowed(Action::ReadGroups).await?;
                let all = state.groups.sets();
                let lines = all.iter().map(|view| {
                    let prefixes = say::count(view.count as usize, "prefix");
                    format!("{}: {prefixes}", view.name).replace("prefixs", "prefixes")
                });
                let none = "no address sets yet: muster address-set put makes one";
                return Ok(vec![some(lines.collect(), none)]);
            }
            GroupCommand::Set(name) => {
                self.allowed(Action::ReadGroups).await?;
                let view = state.groups.set(name)?;
                let lines = view.prefixes.iter().map(ToString::to_string);
                return Ok(vec![some(lines.collect(), "nobody is in it")]);
            }
        };
        Ok(vec![done(&changed)])
    }
}

fn done(changed: &GroupChanged) -> muster_protocol::api::Say {
    let line = format!("{}, {}", changed.what, in_force(&changed.force));
    if changed.force.waiting.is_empty() {
        say::good(line)
    } else {
        say::warn(line)
    }
}

/// `in force on 4 of 4 hypervisors`.
fn in_force(force: &InForce) -> String {
    if force.of == 0 {
        return "no hypervisor is concerned".to_owned();
    }
    let all = say::count(force.of as usize, "hypervisor");
    let mut text = format!("in force on {} of {all}", force.on);
    if !force.waiting.is_empty() {
        let names: Vec<&str> = force
            .waiting
            .iter()
            .take(SHOWN)
            .map(|n| n.as_str())
            .collect();
        text.push_str(&format!("; waits for {}", names.join(", ")));
    }
    text
}

fn guarded(view: &VmGuarded) -> String {
    let groups: Vec<&str> = view.groups.iter().map(|group| group.as_str()).collect();
    let is = match groups.as_slice() {
        [] => "is in no group".to_owned(),
        groups => format!("is in {}", groups.join(", ")),
    };
    format!("{} {is}; {}", view.name, in_force(&view.force))
}

/// The first ones, and how many more there are.
fn some(mut lines: Vec<String>, none: &str) -> muster_protocol::api::Say {
    if lines.is_empty() {
        return say::plain(none.to_owned());
    }
    let more = lines.len().saturating_sub(SHOWN);
    lines.truncate(SHOWN);
    if more > 0 {
        lines.push(format!("and {more} more"));
    }
    say::several(lines)
}

fn card(view: &GroupView) -> Vec<String> {
    let mut lines = vec![format!(
        "{}: version {} by {}, {}",
        view.name,
        view.version,
        view.by,
        say::count(view.machines as usize, "machine")
    )];
    if view.rules.is_empty() {
        lines.push("no rules: nothing gets in".to_owned());
    }
    for rule in view.rules.iter().take(SHOWN) {
        lines.push(format!("{}: {rule}", rule.id));
    }
    let more = view.rules.len().saturating_sub(SHOWN);
    if more > 0 {
        lines.push(format!("and {more} more"));
    }
    lines
}
