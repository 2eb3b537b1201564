//! What people were told, from what `muster` printed.

use std::collections::BTreeMap;
use std::fmt;

use muster_protocol::ids::RunId;
use muster_protocol::run::Outcome;
use serde::Deserialize as _;
use serde_json::Value;

use crate::Said;

/// Something that a person was told about a run.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Told {
    /// That it is there.
    Created {
        /// The run.
        run: RunId,
    },
    /// How it ended on a node.
    Outcome {
        /// The run.
        run: RunId,
        /// The node.
        node: String,
        /// How.
        outcome: Outcome,
    },
    /// That a node said something else later.
    Late {
        /// The run.
        run: RunId,
        /// The node.
        node: String,
        /// What.
        outcome: Outcome,
    },
    /// That it has ended.
    Ended {
        /// The run.
        run: RunId,
        /// How: `succeeded`, `failed` or `cancelled`.
        state: String,
        /// What was said of its nodes at the same time.
        nodes: BTreeMap<String, Outcome>,
    },
    /// The exit code of the command that watched it to its end.
    Exit {
        /// The run.
        run: RunId,
        /// The code.
        code: i32,
    },
}

impl Told {
    /// The run.
    #[must_use]
    pub fn run(&self) -> RunId {
        match self {
            Self::Created { run }
            | Self::Outcome { run, .. }
            | Self::Late { run, .. }
            | Self::Ended { run, .. }
            | Self::Exit { run, .. } => *run,
        }
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let run = self.run();
        write!(f, "a person was told of run {run} ")?;
        match self {
            Self::Created { .. } => write!(f, "that it is there"),
            Self::Outcome { node, outcome, .. } => write!(f, "that {node} {outcome}"),
            Self::Late { node, outcome, .. } => write!(f, "that {node} said {outcome} late"),
            Self::Ended { state, nodes, .. } => write!(f, "that it {state}, with {nodes:?}"),
            Self::Exit { code, .. } => write!(f, "exit code {code}"),
        }
    }
}

/// What a command has told: the JSON of `run`, `runs watch`, `runs show` and
/// `runs list`. Other text tells nothing here.
#[must_use]
pub fn told(said: &Said) -> Vec<Told> {
    let mut all = Vec::new();
    for line in said.out.lines() {
        match serde_json::from_str::<Value>(line) {
            Ok(Value::Array(items)) => items.iter().for_each(|item| view(item, &mut all)),
            Ok(value) => frame(&value, said.code, &mut all),
            Err(_) => {}
        }
    }
    all
}

fn run_of(value: &Value) -> Option<RunId> {
    value.as_str()?.parse().ok()
}

fn outcome_of(value: &Value) -> Option<Outcome> {
    Outcome::deserialize(value).ok()
}

fn frame(line: &Value, code: i32, all: &mut Vec<Told>) {
    let Some(kind) = line["type"].as_str() else {
        return view(line, all);
    };
    let Some(run) = run_of(&line["run"]) else {
        return;
    };
    let node = || line["node"].as_str().unwrap_or_default().to_owned();
    match (kind, outcome_of(&line["outcome"])) {
        ("run_created", _) => all.push(Told::Created { run }),
        ("outcome", Some(outcome)) => all.push(Told::Outcome {
            run,
            node: node(),
            outcome,
        }),
        ("late_outcome", Some(outcome)) => all.push(Told::Late {
            run,
            node: node(),
            outcome,
        }),
        ("run_finished", _) => {
            all.push(Told::Ended {
                run,
                state: line["state"].as_str().unwrap_or_default().to_owned(),
                nodes: BTreeMap::deserialize(&line["nodes"]).unwrap_or_default(),
            });
            all.push(Told::Exit { run, code });
        }
        _ => {}
    }
}

/// A run as `runs show` and `runs list` print it.
fn view(item: &Value, all: &mut Vec<Told>) {
    let Some(run) = run_of(&item["id"]) else {
        return;
    };
    all.push(Told::Created { run });
    let mut nodes = BTreeMap::new();
    for result in item["results"].as_array().into_iter().flatten() {
        if let (Some(node), Some(outcome)) =
            (result["node"].as_str(), outcome_of(&result["outcome"]))
        {
            nodes.insert(node.to_owned(), outcome);
        }
    }
    match item["state"].as_str() {
        Some(state @ ("succeeded" | "failed" | "cancelled")) => all.push(Told::Ended {
            run,
            state: state.to_owned(),
            nodes,
        }),
        _ => all.extend(nodes.into_iter().map(|(node, outcome)| Told::Outcome {
            run,
            node,
            outcome,
        })),
    }
}
