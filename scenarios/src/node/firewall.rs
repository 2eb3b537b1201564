//! `firewall::…`: the node's own firewall.

use muster_protocol::firewall::host::HostOrder;
use muster_protocol::text::printable;
use rhai::{Dynamic, Engine, FuncRegistration, Map, Module, NativeCallContext};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::effect::{Change, Effect};
use super::engine::{Said, perform, wrong};
use crate::engine::FIREWALL;
use crate::plain;

type Context<'a> = NativeCallContext<'a>;

/// What a script wants of a node's own firewall.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "firewall", deny_unknown_fields)]
pub enum FirewallCall {
    /// These rules, and no others; confirmed or rolled back.
    Host {
        /// They, and what has to work with them.
        order: Box<HostOrder>,
    },
    /// Which rules are in force.
    Show,
    /// Which changes there were.
    History,
    /// What a change was to do, and how it ended.
    Diff {
        /// The run that made it, or how its id begins; the newest change when
        /// absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        run: Option<String>,
    },
    /// The rules before the present ones; confirmed or rolled back.
    Rollback,
}

impl FirewallCall {
    /// Its name in the language, without the `firewall::`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Host { .. } => "host",
            Self::Show => "show",
            Self::History => "history",
            Self::Diff { .. } => "diff",
            Self::Rollback => "rollback",
        }
    }

    /// Whether it can change something.
    #[must_use]
    pub fn changes(&self) -> bool {
        matches!(self, Self::Host { .. } | Self::Rollback)
    }
}

/// Whether a call changed something, and what else it said.
fn changed(context: &Context<'_>, call: FirewallCall) -> Said<Map> {
    let performed = perform(context, &Effect::Firewall(call))?;
    let mut map = match &performed.value {
        Value::Object(more) => plain::map_from_json(more),
        _ => Map::new(),
    };
    let changed = matches!(
        performed.change,
        Some(Change::Changed { .. } | Change::WouldChange { .. })
    );
    map.insert("changed".into(), changed.into());
    Ok(map)
}

fn value(context: &Context<'_>, call: FirewallCall) -> Said<Dynamic> {
    let performed = perform(context, &Effect::Firewall(call))?;
    Ok(plain::from_json(&performed.value))
}

fn host(context: &Context<'_>, map: &Map) -> Said<Map> {
    let bad = |why: &dyn std::fmt::Display| {
        let why = printable(&why.to_string(), 300);
        wrong(context, format!("firewall::host: {why}"))
    };
    let value = plain::map_to_json(map).map_err(|e| bad(&e))?;
    let order = HostOrder::read(&Value::Object(value)).map_err(|e| bad(&e))?;
    let order = Box::new(order);
    changed(context, FirewallCall::Host { order })
}

fn diff(context: &Context<'_>, run: Option<&str>) -> Said<Dynamic> {
    let run = match run {
        None | Some("") => None,
        Some(text) => {
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
            if !(4..=26).contains(&text.len()) || !text.chars().all(plain) {
                let shown = printable(text, 60);
                let message = format!("firewall::diff: `{shown}` is not how a run's id begins");
                return Err(wrong(context, message));
            }
            Some(text.to_owned())
        }
    };
    value(context, FirewallCall::Diff { run })
}

/// Gives an engine the words about a node's own firewall.
pub(super) fn register(engine: &mut Engine) {
    let mut words = Module::new();
    macro_rules! words {
        ($($name:literal => $function:expr;)+) => {
            $(FuncRegistration::new($name).set_into_module(&mut words, $function);)+
        };
    }
    words! {
        "host" => |c: Context<'_>, order: Map| host(&c, &order);
        "show" => |c: Context<'_>| value(&c, FirewallCall::Show);
        "history" => |c: Context<'_>| value(&c, FirewallCall::History);
        "diff" => |c: Context<'_>| diff(&c, None);
        "diff" => |c: Context<'_>, run: &str| diff(&c, Some(run));
        "rollback" => |c: Context<'_>| changed(&c, FirewallCall::Rollback);
    }
    engine.register_static_module(FIREWALL, words.into());
}
