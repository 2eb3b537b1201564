//! What came of a step, as `main` sees it.

use std::sync::Arc;

use muster_protocol::ids::Serial;
use muster_protocol::run::Outcome;
use rhai::{Dynamic, Engine, EvalAltResult, Map, NativeCallContext, Position};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::nodes::{Cast, Nodes};
use crate::plain::from_json;

/// What a step came to on one node.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NodeReply {
    /// The node.
    pub serial: Serial,
    /// How it ended.
    pub outcome: Outcome,
    /// What the function returned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Value>,
    /// Why it did not succeed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Exit code, where the function was a command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<i32>,
    /// The beginning of what it wrote to standard output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout: Option<String>,
}

/// What a step came to.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct StepReply {
    /// One for each node.
    pub nodes: Vec<NodeReply>,
    /// Why the step went no further, when more failed than may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<String>,
}

/// A step's reply in a script.
#[derive(Clone)]
pub(super) struct Came {
    pub(super) reply: Arc<StepReply>,
    pub(super) cast: Arc<Cast>,
}

impl Came {
    fn those(&self, which: impl Fn(&NodeReply) -> bool) -> Nodes {
        let serials = self.reply.nodes.iter().filter(|node| which(node));
        Nodes::of(&self.cast, serials.map(|node| node.serial))
    }

    fn ok(&mut self) -> bool {
        self.reply.stopped.is_none()
            && self
                .reply
                .nodes
                .iter()
                .all(|node| node.outcome == Outcome::Succeeded)
    }

    fn values(&mut self) -> Map {
        let mut all = Map::new();
        for node in &self.reply.nodes {
            if let Some(value) = &node.value {
                all.insert(self.cast.name(node.serial).into(), from_json(value));
            }
        }
        all
    }

    fn node(&self, name: &str, at: Position) -> Result<Map, Box<EvalAltResult>> {
        let node = self
            .reply
            .nodes
            .iter()
            .find(|node| self.cast.name(node.serial) == name)
            .ok_or_else(|| {
                let name = muster_protocol::text::printable(name, 80);
                EvalAltResult::ErrorRuntime(format!("the step had no node `{name}`").into(), at)
            })?;
        let text = |text: &Option<String>| text.clone().map_or(Dynamic::UNIT, Dynamic::from);
        let value = node.value.as_ref().map_or(Dynamic::UNIT, from_json);
        Ok(Map::from([
            ("ok".into(), (node.outcome == Outcome::Succeeded).into()),
            ("outcome".into(), node.outcome.as_str().into()),
            ("value".into(), value),
            ("reason".into(), text(&node.reason)),
            ("stdout".into(), text(&node.stdout)),
            (
                "exit".into(),
                node.exit
                    .map_or(Dynamic::UNIT, |exit| i64::from(exit).into()),
            ),
        ]))
    }
}

pub(super) fn register(engine: &mut Engine) {
    engine
        .register_type_with_name::<Came>("Result")
        .register_get("ok", Came::ok)
        .register_get("failed", |came: &mut Came| {
            came.those(|node| node.outcome != Outcome::Succeeded)
        })
        .register_get("succeeded", |came: &mut Came| {
            came.those(|node| node.outcome == Outcome::Succeeded)
        })
        .register_get("values", Came::values)
        .register_indexer_get(|c: NativeCallContext<'_>, came: &mut Came, name: &str| {
            came.node(name, c.call_position())
        });
}
