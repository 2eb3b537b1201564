//! `muster nodes`

use clap::Args;
use muster_protocol::api::{NodeView, Presence};
use muster_protocol::units::Timestamp;

use crate::Context;
use crate::failure::Failure;
use crate::ui::table::{Cell, Table, Tone};
use crate::ui::time::ago;
use crate::ui::{Paint, count};
use crate::verbs::{condition, labels, now};

/// Arguments of `muster nodes`.
#[derive(Args, Debug)]
pub struct NodesArgs {
    /// Only these nodes
    #[arg(value_name = "PREDICATE")]
    pub predicate: Option<String>,
    /// Names that no node has are meant
    #[arg(long)]
    pub allow_unknown: bool,
    /// One JSON array
    #[arg(long)]
    pub json: bool,
}

/// Lists nodes.
///
/// # Errors
/// [`Failure`].
pub async fn run(context: &Context, args: &NodesArgs) -> Result<u8, Failure> {
    let nodes = context
        .client()?
        .nodes(args.predicate.as_deref(), args.allow_unknown)
        .await?;
    if args.json {
        context.term.json(&nodes)?;
    } else if nodes.is_empty() {
        context.term.note(match args.predicate {
            Some(_) => "no node matches",
            None => "no nodes yet. Invite one: muster node invite --name web-01 --role web",
        });
    } else {
        context
            .term
            .say(&render(&nodes, context.term.out, context.term.width, now()))?;
    }
    // As `match` and `run`: a predicate that selects nothing is said in the
    // exit code too.
    Ok(if nodes.is_empty() && args.predicate.is_some() {
        3
    } else {
        0
    })
}

fn tone(state: Presence) -> Tone {
    match state {
        Presence::Up => Tone::Good,
        Presence::Late => Tone::Odd,
        Presence::Down => Tone::Bad,
        Presence::Never => Tone::Plain,
    }
}

/// The table, and under it what should be looked at.
#[must_use]
pub fn render(nodes: &[NodeView], paint: Paint, width: usize, now: Timestamp) -> String {
    let mut table = Table::new(&["NAME", "ROLES", "LABELS", "STATE", "LAST SEEN", "VERSION"]);
    let mut states = std::collections::BTreeMap::<Presence, usize>::new();
    for node in nodes {
        *states.entry(node.state).or_default() += 1;
        let mut roles: Vec<String> = node.roles.iter().map(ToString::to_string).collect();
        if node.infrastructure {
            roles.push("(infrastructure)".into());
        }
        table.row([
            node.name.as_str().into(),
            roles.join(",").into(),
            labels(&node.labels).into(),
            Cell::toned(node.state.as_str(), tone(node.state)),
            node.last_seen
                .map_or("never".to_owned(), |at| ago(at, now))
                .into(),
            node.version.as_deref().unwrap_or("-").into(),
        ]);
    }
    let mut out = table.render(paint, width);
    for node in nodes {
        for problem in &node.conditions {
            out.push_str(&format!(
                "{} {}\n",
                paint.odd(&format!("{}:", node.name)),
                condition(problem)
            ));
        }
    }
    let parts: Vec<String> = states
        .iter()
        .map(|(state, n)| format!("{n} {}", state.as_str()))
        .collect();
    out.push_str(&format!(
        "{}: {}\n",
        count(nodes.len(), "node"),
        parts.join(", ")
    ));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_protocol::api::Condition;
    use muster_protocol::ids::Serial;
    use muster_protocol::keys::PrivateKey;

    fn node(name: &str, state: Presence) -> NodeView {
        NodeView {
            name: name.parse().expect("name"),
            serial: Serial(1),
            roles: vec![
                "canary".parse().expect("role"),
                "web".parse().expect("role"),
            ],
            labels: [(
                "zone".parse().expect("label"),
                "gva2".parse().expect("value"),
            )]
            .into(),
            facts: serde_json::Map::new(),
            state,
            last_seen: (state != Presence::Never)
                .then(|| "2026-11-21T05:56:00Z".parse().expect("time")),
            version: Some("0.1.0\x1b[5m".into()),
            agent: None,
            infrastructure: false,
            enrolled: "2026-11-01T00:00:00Z".parse().expect("time"),
            key: PrivateKey::from_seed(&[1; 32]).public().fingerprint(),
            conditions: vec![],
        }
    }

    #[test]
    fn the_list_says_what_to_look_at() {
        let mut nodes = vec![
            node("web-01", Presence::Up),
            node("web-02", Presence::Down),
            node("db", Presence::Never),
        ];
        nodes[1].conditions = vec![
            Condition::Cloned,
            Condition::ClockSkew { ms: -3_600_000 },
            Condition::Note {
                text: "fact `zone` has a label's name".into(),
            },
        ];
        nodes[2].infrastructure = true;
        let now = "2026-11-21T06:00:00Z".parse().expect("time");
        insta::assert_snapshot!(render(&nodes, Paint::plain(), 100, now));
    }
}
