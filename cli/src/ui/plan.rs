//! The question before a large run.

use muster_protocol::api::{Plan, version_shown};
use muster_protocol::names::NodeName;
use muster_protocol::text::printable;

use super::count;
use super::report::left_out;
use muster_protocol::fold::folded;

/// Values of a label that are told apart; more of them say nothing.
const MOST_VALUES: usize = 8;

/// `24 nodes match role=web: web-01 … web-24, in gva2 (12), dk2 (12).  Run …?`
#[must_use]
pub fn question(plan: &Plan) -> String {
    if let (Some(name), Some(version)) = (&plan.scenario, plan.version) {
        return of_scenario(plan, name.as_str(), version);
    }
    let left_out = left_out(plan.left_out).map_or(String::new(), |text| format!("{text}\n"));
    format!(
        "{left_out}{} match{} {}: {}{}.  Run `{}` on all of them?",
        count(plan.nodes.len(), "node"),
        if plan.nodes.len() == 1 { "es" } else { "" },
        printable(&plan.predicate, 200),
        folded(
            plan.nodes
                .iter()
                .map(muster_protocol::names::NodeName::as_str),
            120
        ),
        spread(plan),
        printable(&plan.title, 200),
    )
}

/// The plan of a stored scenario: everything that would count.
fn of_scenario(plan: &Plan, name: &str, version: u32) -> String {
    let mut out = left_out(plan.left_out).map_or(String::new(), |text| format!("{text}\n"));
    let batches = match plan.batches {
        0 | 1 => String::new(),
        n => format!(" in {n} batches"),
    };
    out.push_str(&format!(
        "{}  on {}{batches}  ({})\n",
        printable(&plan.title, 200),
        count(plan.nodes.len(), "node"),
        printable(&plan.predicate, 200)
    ));
    let names = |nodes: &[NodeName]| folded(nodes.iter().map(NodeName::as_str), 120);
    out.push_str(&format!("  {}{}\n", names(&plan.nodes), spread(plan)));
    for set in &plan.sets {
        let nodes = if set.nodes.is_empty() {
            "no node".to_owned()
        } else {
            names(&set.nodes)
        };
        out.push_str(&format!(
            "  {}: {nodes}  ({})\n",
            printable(&set.name, 40),
            printable(&set.predicate, 200)
        ));
    }
    for line in rules(plan) {
        out.push_str(&format!("  {line}\n"));
    }
    out.push_str(&format!(
        "Run {} {}?",
        printable(name, 64),
        version_shown(version)
    ));
    out
}

/// When it stops, and what it waits for.
fn rules(plan: &Plan) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(options) = &plan.options {
        let mut stops = Vec::new();
        if let Some(most) = options.max_failures {
            stops.push(format!("more than {most} failed"));
        }
        for (label, most) in &options.max_failures_by {
            stops.push(format!("more than {most} with one {label} failed"));
        }
        if !stops.is_empty() {
            lines.push(format!("stops when {}", stops.join(" or ")));
        }
    }
    let gates = &plan.gates;
    let mut waits = Vec::new();
    if gates.approvals > 0 {
        waits.push(count(gates.approvals as usize, "approval"));
    }
    if !gates.windows.is_empty() {
        let windows: Vec<String> = gates.windows.iter().map(|w| printable(w, 60)).collect();
        waits.push(format!("its window ({})", windows.join("; ")));
    }
    for lock in &gates.locks {
        waits.push(format!("the lock `{}`", printable(lock, 60)));
    }
    if !waits.is_empty() {
        lines.push(format!("waits for {}", waits.join(", ")));
    }
    if plan.batches == 0 && plan.options.is_some() {
        lines.push("what it does where is decided while it runs, on these nodes only".to_owned());
    }
    lines
}

/// How the nodes are spread, by the label that tells most with fewest words:
/// every node has it, and it has two to a handful of values.
fn spread(plan: &Plan) -> String {
    let total = plan.nodes.len();
    let best = plan
        .labels
        .iter()
        .filter(|(_, values)| (1..=MOST_VALUES).contains(&values.len()))
        .filter(|(_, values)| values.values().map(|n| *n as usize).sum::<usize>() == total)
        .min_by_key(|(key, values)| {
            let rank = match key.as_str() {
                "zone" => 0,
                "site" | "datacenter" | "region" => 1,
                _ => 2,
            };
            (rank, values.len() == 1, values.len())
        });
    let Some((_, values)) = best else {
        return String::new();
    };
    let mut values: Vec<_> = values.iter().collect();
    values.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
    let text: Vec<String> = values
        .iter()
        .map(|(v, n)| format!("{} ({n})", printable(v, 40)))
        .collect();
    format!(", in {}", text.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn the_question_says_what_and_where() {
        let nodes = (1..=24)
            .map(|n| format!("web-{n:02}").parse().expect("name"))
            .collect();
        let zones = BTreeMap::from([("gva2".to_owned(), 12), ("dk2".to_owned(), 12)]);
        let racks = (1..=24).map(|n| (format!("r{n}"), 1)).collect();
        let plan = Plan {
            run: muster_protocol::ids::RunId::from_bytes([7; 16]),
            id: muster_protocol::ids::PlanId::from_bytes([1; 16]),
            title: "systemctl restart webapp".into(),
            predicate: "role=web".into(),
            nodes,
            labels: BTreeMap::from([
                ("zone".parse().expect("label"), zones),
                ("rack".parse().expect("label"), racks),
            ]),
            left_out: 0,
            scenario: None,
            version: None,
            params: serde_json::Value::Null,
            mode: muster_protocol::envelope::Mode::Apply,
            options: None,
            sets: vec![],
            batches: 0,
            gates: muster_protocol::run::Gates::default(),
            checked: 0,
            expires: "2026-11-21T06:00:00Z".parse().expect("time"),
        };
        insta::assert_snapshot!(question(&plan), @"24 nodes match role=web: web-01 … web-24, in dk2 (12), gva2 (12).  Run `systemctl restart webapp` on all of them?");
        let bare = Plan {
            labels: BTreeMap::new(),
            nodes: plan.nodes[..1].to_vec(),
            left_out: 2,
            ..plan
        };
        insta::assert_snapshot!(question(&bare), @r"
        2 of the broker's own machines match and are left out  (--include-infrastructure)
        1 node matches role=web: web-01.  Run `systemctl restart webapp` on all of them?
        ");
    }
}
