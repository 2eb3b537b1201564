//! What configures the machines of a stack: as the file says it, and held
//! against what there is.

use std::collections::BTreeMap;

use muster_protocol::api::{Configure, VmView};
use muster_protocol::run::RunPhase;
use muster_protocol::text::printable;
use serde_json::{Map, Value};

use super::Machine;
use super::doc::Block;
use super::plan::{Change, Why};

/// Longest text of a scenario with its parameters, in characters.
const MAX_SHOWN: usize = 120;

/// The keys `configure` and `params` of a machine.
pub(super) fn read(block: &mut Block<'_>, agent: bool) -> Option<Configure> {
    let params = block.json("params");
    if block.value("configure").is_none() {
        if let Some((_, at)) = params {
            let message = "`params` are those of `configure`, which is not there";
            block.wrong(&at, message, Some("like configure = \"deploy\"".to_owned()));
        }
        return None;
    }
    let (text, at) = block.text("configure")?;
    if !agent {
        let message = "without an agent nobody here takes orders in it, so it cannot be configured";
        let hint = "leave `configure` out, or agent = false";
        block.wrong(&at, message, Some(hint.to_owned()));
    }
    let scenario = block.parse(&text, &at)?;
    let params = params.map(|(params, _)| params).unwrap_or_default();
    Some(Configure { scenario, params })
}

/// `deploy version=1.4.2`.
pub(super) fn text(configure: &Configure) -> String {
    let mut out = configure.scenario.to_string();
    for (name, value) in &configure.params {
        out.push_str(&format!(" {name}={}", plain(value)));
    }
    printable(&out, MAX_SHOWN)
}

/// A value as a person would write it.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Whether both mean the same: a parameter may be kept as JSON or as text.
fn is_like(one: &Configure, other: &Configure) -> bool {
    // In whatever order they were written.
    let plain = |params: &Map<String, Value>| -> BTreeMap<String, String> {
        let all = params
            .iter()
            .map(|(name, value)| (name.clone(), plain(value)));
        all.collect()
    };
    one.scenario == other.scenario && plain(&one.params) == plain(&other.params)
}

/// What is to be done so that a machine is configured as its stack says.
/// Nothing where that says nothing of it.
pub(super) fn change(machine: &Machine, view: &VmView) -> Option<Change> {
    let wanted = machine.create.configure.as_ref()?;
    let why = match (&view.configure, &view.configured) {
        (None, _) | (Some(_), None) => Why::Never,
        (Some(is), _) if !is_like(is, wanted) => Why::Otherwise { is: text(is) },
        (Some(_), Some(configured)) => match configured.state {
            None => Why::UnderWay,
            Some(RunPhase::Succeeded) => return None,
            Some(_) => Why::Failed {
                reason: configured.why.as_deref().map(|why| printable(why, 200)),
            },
        },
    };
    Some(Change::Configure {
        configure: wanted.clone(),
        why,
    })
}

/// The same in words.
pub(super) fn changed(configure: &Configure, why: &Why) -> String {
    let text = text(configure);
    match why {
        Why::Never => format!("is configured by {text}"),
        Why::Otherwise { is } => format!("is configured by {is} → {text}"),
        Why::Failed { reason: None } => format!("is configured by {text} again"),
        Why::Failed { reason: Some(why) } => {
            format!("is configured by {text} again, which did not work: {why}")
        }
        Why::UnderWay => format!("is being configured by {text}"),
    }
}
