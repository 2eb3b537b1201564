//! What a `main` asks of the rest of the broker, in a test: other scenarios,
//! and machines.

use muster_protocol::envelope::Mode;
use muster_protocol::ids::Serial;
use muster_protocol::names::{NodeName, ScenarioName};
use muster_protocol::predicate::Predicate;
use muster_protocol::run::Outcome;
use muster_protocol::text::printable;
use serde_json::{Map, Value, json};

use super::fleet::{Fake, MAX_NODES};
use super::play::{Went, World, ended};
use crate::durable::{self, Reply, StepReply};

impl World {
    /// Another scenario, which does well and returns nothing unless the test
    /// says otherwise: `reply("web-*", "scenario NAME", #{ value: 1 })`.
    pub(super) fn another(&mut self, scenario: &ScenarioName, on: Option<&str>) -> Reply {
        let title = format!("scenario {scenario}");
        let mut fleet = self.fleet.lock();
        let fleet = &mut *fleet;
        let nodes: Vec<NodeName> = match on.map(Predicate::parse) {
            None => Vec::new(),
            Some(Err(error)) => return Reply::Error(error.to_string()),
            Some(Ok(on)) => {
                let those = fleet.there().filter(|node| on.matches(*node));
                let nodes: Vec<NodeName> = those.map(|node| node.name.clone()).collect();
                if nodes.is_empty() {
                    let on = printable(on.text(), 80);
                    return Reply::Error(format!(
                        "run_scenario {scenario}: no node matches `{on}`"
                    ));
                }
                nodes
            }
        };
        let told = nodes.iter().map(|node| (node.clone(), title.clone()));
        fleet.done.effects.extend(told);
        let rule = fleet.asked(&nodes, &title);
        if let Some(text) = rule.as_ref().and_then(|rule| rule.fails.clone()) {
            return Reply::Error(format!("scenario {scenario} has failed: {text}"));
        }
        let mut value = json!({"value": null});
        if let Some(rule) = rule {
            rule.over(&mut value);
        } else if on.is_none() {
            return Reply::Error(format!(
                "a test runs one scenario: say what `{scenario}` returns: reply(\"*\", \"{title}\", #{{ value: 1 }})"
            ));
        }
        Reply::Value(value["value"].take())
    }

    /// A machine, which is up at once unless the test says otherwise:
    /// `reply("web-25", "machine web-25", #{ fails: "no place" })`.
    pub(super) fn machine(&mut self, call: u64, machine: &Map<String, Value>) -> Reply {
        let asked = match durable::wanted(machine) {
            Ok(asked) => asked,
            Err(why) => return Reply::Error(format!("machine: {why}")),
        };
        let name: NodeName = match asked.name.parse() {
            Ok(name) => name,
            Err(error) => return Reply::Error(format!("machine: {error}")),
        };
        let title = format!("machine {name}");
        let mut fleet = self.fleet.lock();
        let fleet = &mut *fleet;
        if fleet.there().any(|node| node.name == name) {
            return Reply::Error(format!("machine {name}: there is a node {name} already"));
        }
        if fleet.nodes.len() >= MAX_NODES {
            return Reply::Error(format!("a test has at most {MAX_NODES} nodes"));
        }
        let dry = self.mode == Mode::Check;
        let mut value = json!({
            "name": name, "node": asked.agent.then_some(&name), "hypervisor": "hypervisor",
            "addresses": if dry { json!([]) } else { json!(["192.0.2.10"]) }, "made": !dry,
        });
        let rule = fleet.asked(std::slice::from_ref(&name), &title);
        if let Some(text) = rule.as_ref().and_then(|rule| rule.fails.clone()) {
            return Reply::Error(format!("machine {name} was not made: {text}"));
        }
        if let Some(rule) = rule {
            rule.over(&mut value);
        }
        if dry {
            fleet.done.logs.push(format!("would make machine {name}"));
            return Reply::Value(value);
        }
        fleet.done.effects.push((name.clone(), title));
        let fake = Fake {
            serial: Serial(u32::try_from(fleet.nodes.len()).unwrap_or(u32::MAX - 1) + 1),
            name: name.clone(),
            roles: asked.roles.iter().map(ToString::to_string).collect(),
            labels: asked
                .labels
                .iter()
                .map(|(key, value)| (key.to_string(), value.to_string()))
                .collect(),
            facts: json!({}),
            down: false,
            // Nobody here runs anything in one without an agent.
            gone: !asked.agent,
        };
        // One of a run before may have had the name.
        match fleet.nodes.iter_mut().find(|node| node.name == name) {
            Some(old) => {
                let serial = old.serial;
                *old = Fake { serial, ..fake };
            }
            None => fleet.nodes.push(fake),
        }
        self.machines.insert(call, name);
        Reply::Value(value)
    }

    /// A machine is taken back, if the call has made one.
    pub(super) fn destroy(&mut self, call: u64) {
        let Some(name) = self.machines.remove(&call) else {
            return;
        };
        let title = format!("machine {name} destroyed");
        let serial = {
            let mut fleet = self.fleet.lock();
            fleet.done.effects.push((name.clone(), title));
            let found = fleet.nodes.iter_mut().find(|node| node.name == name);
            let Some(node) = found else { return };
            node.gone = true;
            node.serial
        };
        let Ok(function) = "machine".parse() else {
            return;
        };
        self.steps.push(Went {
            function,
            reply: StepReply {
                nodes: vec![ended(serial, Outcome::Succeeded, None)],
                stopped: None,
            },
        });
    }
}
