//! From what somebody asks for, and a stored scenario, to a frozen run: pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use muster_protocol::api::{Confirm, RunRequest, version_shown};
use muster_protocol::envelope::{BundleHash, Door, MAX_PAYLOAD, Mode};
use muster_protocol::ids::RunId;
use muster_protocol::names::{FunctionName, LabelKey, PrincipalName, ScenarioName};
use muster_protocol::note::Expected;
use muster_protocol::predicate::{Predicate, PredicateError};
use muster_protocol::problem::{Kind, Problem};
use muster_protocol::run::{Gates, RunOptions, RunSpec, Target};
use muster_protocol::text::printable;
use muster_protocol::units::{Amount, Timestamp, after};
use muster_scenarios::manifest::{MAIN, Manifest, RUN, Shape};
use muster_scenarios::param::{Bound, Given, Mistake, bind};
use serde_json::{Map, Value};

use super::request::{ENVELOPE_ROOM, FrozenRun, FrozenSet, Plain, RequestError, plain};
use super::secrets::SecretValues;
use crate::inventory::{NodeRecord, Snapshot};
use crate::resolve::{Options, ResolveError, Resolved, resolve};

/// Longest value of a parameter in a title, and longest title, in characters.
const MAX_SHOWN: usize = 40;
const MAX_TITLE: usize = 160;
/// Most tries after the first that can be asked for.
const MAX_RETRY: u32 = 10;
/// Most labels with a failure budget of their own.
const MAX_BUDGETS: usize = 16;

/// A stored scenario, as far as a run is made of it.
#[derive(Clone, Debug)]
pub struct Program {
    /// Its name.
    pub name: ScenarioName,
    /// Which version.
    pub version: u32,
    /// What pins it.
    pub bundle: BundleHash,
    /// What it says of itself.
    pub manifest: Arc<Manifest>,
}

/// Why a stored scenario is not run as somebody asks.
#[derive(Debug, thiserror::Error)]
pub enum StoredError {
    /// What is wrong with any run.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// Parameters that do not fit, all of them.
    #[error("{} of `{scenario}` {}; nothing was run", counted(mistakes.len()), if mistakes.len() == 1 { "does not fit" } else { "do not fit" })]
    Params {
        /// The scenario.
        scenario: ScenarioName,
        /// Each.
        mistakes: Vec<Mistake>,
    },
    /// Parameters that are no map.
    #[error("the parameters of `{0}` are a map from names to values; nothing was run")]
    NotAMap(ScenarioName),
    /// It names no nodes, and nobody does.
    #[error("`{0}` says nothing of the nodes that it runs on; nothing was run")]
    NoTarget(ScenarioName),
    /// Its target and the one that was asked for together.
    #[error("the target of `{scenario}` cannot be narrowed so: {error}; nothing was run")]
    Narrow {
        /// The scenario.
        scenario: ScenarioName,
        /// What is wrong with both together.
        error: PredicateError,
    },
    /// It cannot say what it would do.
    #[error("`{0}` does not say that it can be tried without changing anything; nothing was run")]
    NoCheck(ScenarioName),
    /// More tries than there ever are.
    #[error(
        "{0} tries after the first are too many, at most {MAX_RETRY} are made; nothing was run"
    )]
    Retry(u32),
    /// More budgets than are ever counted.
    #[error(
        "failure budgets for {0} labels are too many, at most {MAX_BUDGETS} are counted; nothing was run"
    )]
    Budgets(usize),
    /// A node set.
    #[error("{}{error}", .set.as_ref().map(|set| format!("the node set `{set}`: ")).unwrap_or_default())]
    Resolve {
        /// Which one; `None` for the target.
        set: Option<String>,
        /// Why there is none.
        error: Box<ResolveError>,
    },
    /// A secret would go where facts say.
    #[error(
        "`{param}` is secret, and `{attribute}`, which {set} asks for, is no label of {node} that you have given it: a node could report it to be chosen; nothing was run"
    )]
    SecretByFact {
        /// The parameter.
        param: String,
        /// What the predicate asks for.
        attribute: String,
        /// Which set.
        set: String,
        /// The first such node.
        node: String,
    },
}

fn counted(mistakes: usize) -> String {
    if mistakes == 1 {
        "a parameter".to_owned()
    } else {
        format!("{mistakes} parameters")
    }
}

impl StoredError {
    /// As it is shown at the edge.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let title = self.to_string();
        let invalid = |title| Problem::new(Kind::InvalidRequest, title);
        match self {
            Self::Request(error) => error.problem(),
            Self::Params { scenario, mistakes } => {
                let lines: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
                invalid(title).detail(lines.join("\n")).hint(format!(
                    "muster scenario show {scenario} says what it takes"
                ))
            }
            Self::NoTarget(_) => invalid(title).hint("name them: --on PREDICATE"),
            Self::NoCheck(_) => invalid(title).hint(
                "a scenario whose dry run means something says so with `allow_check();` at its top",
            ),
            Self::Resolve { set: None, error } => error.problem(),
            Self::Resolve {
                set: Some(_),
                error,
            } => {
                let mut problem = error.problem();
                problem.title = title;
                problem
            }
            Self::SecretByFact { .. } => {
                invalid(title).hint("choose the nodes by name, role or label")
            }
            _ => invalid(title),
        }
    }
}

/// A request for a stored scenario that only lacks its nodes.
#[derive(Clone, Debug)]
pub struct Ready {
    program: Program,
    bound: Bound,
    options: RunOptions,
    target: Predicate,
    gates: Gates,
    mode: Mode,
    by_labels: BTreeSet<LabelKey>,
    resolve: Options,
}

/// What is given, by name: a text is read as a person writes it.
fn given(name: &ScenarioName, params: &Value) -> Result<BTreeMap<String, Given>, StoredError> {
    let read = |value: &Value| match value {
        Value::String(text) => Given::Text(text.clone()),
        other => Given::Json(other.clone()),
    };
    match params {
        Value::Null => Ok(BTreeMap::new()),
        Value::Object(map) => Ok(map.iter().map(|(k, v)| (k.clone(), read(v))).collect()),
        _ => Err(StoredError::NotAMap(name.clone())),
    }
}

/// The nodes that the scenario names, of which the request may take a part.
fn target(program: &Program, wanted: Option<&str>) -> Result<Predicate, StoredError> {
    let read = |text: &str| {
        Predicate::parse(text).map_err(|error| StoredError::Resolve {
            set: None,
            error: Box::new(ResolveError::Syntax {
                error,
                source_text: text
                    .chars()
                    .take(muster_protocol::predicate::MAX_LEN)
                    .collect(),
            }),
        })
    };
    match (&program.manifest.target, wanted) {
        (None, None) => Err(StoredError::NoTarget(program.name.clone())),
        (None, Some(text)) => read(text),
        (Some(own), None) => Ok(own.clone()),
        (Some(own), Some(text)) => {
            let wanted = read(text)?;
            if wanted.text() == own.text() || wanted == Predicate::all() {
                return Ok(own.clone());
            }
            let both = format!("({}) and ({})", own.text(), wanted.text());
            Predicate::parse(&both).map_err(|error| StoredError::Narrow {
                scenario: program.name.clone(),
                error,
            })
        }
    }
}

/// Holds a request against the scenario that it asks for: everything but the
/// nodes.
///
/// # Errors
/// [`StoredError`].
pub fn ready(request: &RunRequest, program: &Program) -> Result<Ready, StoredError> {
    let manifest = &program.manifest;
    let given = given(&program.name, &request.params)?;
    let bound = bind(&manifest.params, &given).map_err(|mistakes| StoredError::Params {
        scenario: program.name.clone(),
        mistakes,
    })?;
    if request.mode == Mode::Check && !manifest.allow_check {
        return Err(StoredError::NoCheck(program.name.clone()));
    }
    let retry = request.retry.unwrap_or(manifest.retry);
    if retry > MAX_RETRY {
        return Err(StoredError::Retry(retry));
    }
    let overall = |budgets: &[muster_scenarios::manifest::Budget]| -> Option<Amount> {
        budgets.iter().find(|b| b.by.is_none()).map(|b| b.amount)
    };
    let by_label: BTreeMap<LabelKey, Amount> = match &request.max_failures_by {
        Some(asked) => asked.clone(),
        None => manifest
            .budgets
            .iter()
            .filter_map(|budget| Some((budget.by.clone()?, budget.amount)))
            .collect(),
    };
    if by_label.len() > MAX_BUDGETS {
        return Err(StoredError::Budgets(by_label.len()));
    }
    let sealed = Value::Object(bound.sealed());
    let bytes = sealed.to_string().len();
    let most = MAX_PAYLOAD - ENVELOPE_ROOM;
    if bytes > most {
        return Err(RequestError::TooLarge { bytes, most }.into());
    }
    let Plain {
        timeout,
        deliver_within,
        output_bytes,
    } = plain(request, manifest.timeout)?;
    let target = target(program, request.predicate.as_deref())?;
    let by_labels = by_label.keys().cloned().collect();
    let options = RunOptions {
        timeout,
        deliver_within,
        batch: request.batch.or(manifest.batch),
        max_failures: request.max_failures.or_else(|| overall(&manifest.budgets)),
        max_failures_by: by_label,
        retry,
        wait_down: request.wait_down,
        output_bytes,
    };
    // What changes nothing waits for nobody.
    let gates = match request.mode {
        Mode::Check => Gates::default(),
        Mode::Apply => gates(manifest),
    };
    Ok(Ready {
        program: program.clone(),
        bound,
        options,
        target,
        gates,
        mode: request.mode,
        by_labels,
        resolve: super::request::options(request),
    })
}

impl Ready {
    /// How the run would go about its nodes.
    #[must_use]
    pub fn options(&self) -> &RunOptions {
        &self.options
    }

    /// Its parameters as they stand in a journal.
    #[must_use]
    pub fn params(&self) -> Value {
        Value::Object(self.bound.sealed())
    }

    /// The predicate of its target, in canonical form.
    #[must_use]
    pub fn predicate(&self) -> &str {
        self.target.text()
    }

    /// How the scenario runs.
    #[must_use]
    pub fn shape(&self) -> Shape {
        self.program.manifest.shape
    }

    /// Whether a person has to see what would happen first.
    #[must_use]
    pub fn asks(&self) -> bool {
        self.mode == Mode::Apply && self.program.manifest.confirm
    }

    /// The run, frozen: every declared set is resolved, once.
    ///
    /// # Errors
    /// [`StoredError::Resolve`], [`StoredError::SecretByFact`].
    pub fn freeze(
        self,
        snapshot: &Snapshot,
        id: RunId,
        (principal, door): (&PrincipalName, Door),
        now: Timestamp,
    ) -> Result<FrozenRun, StoredError> {
        let manifest = &self.program.manifest;
        let failed = |set: Option<&str>| {
            let set = set.map(str::to_owned);
            move |error| StoredError::Resolve {
                set,
                error: Box::new(error),
            }
        };
        let resolved = resolve(self.target.text(), snapshot, self.resolve).map_err(failed(None))?;
        let mut sets = Vec::new();
        // A scenario without `main` has no use for its further sets.
        let also = manifest.also.iter();
        let also = also.filter(|_| manifest.shape == Shape::Main);
        let secret = || self.bound.secret().iter().find(|(_, v)| !v.is_null());
        let safe = |what: String, predicate: &Predicate, nodes: &[Arc<NodeRecord>]| match secret() {
            Some((param, _)) => no_fact(param, what, predicate, nodes),
            None => Ok(()),
        };
        safe(
            "the target".to_owned(),
            &resolved.predicate,
            &resolved.nodes,
        )?;
        for (name, predicate) in also {
            let options = Options {
                limit: None,
                ..self.resolve
            };
            let nodes = match resolve(predicate.text(), snapshot, options) {
                Ok(resolved) => resolved.nodes,
                // A set may well be empty: the scenario decides what that
                // means, and a person sees it in the plan.
                Err(ResolveError::NoMatch { .. }) => Vec::new(),
                Err(error) => return Err(failed(Some(name))(error)),
            };
            safe(format!("the node set `{name}`"), predicate, &nodes)?;
            sets.push(FrozenSet {
                name: name.clone(),
                predicate: predicate.text().to_owned(),
                nodes: targets(&nodes, &self.by_labels),
            });
        }
        Ok(self.frozen(&resolved, sets, id, (principal, door), now))
    }

    fn frozen(
        self,
        resolved: &Resolved,
        sets: Vec<FrozenSet>,
        id: RunId,
        (principal, door): (&PrincipalName, Door),
        now: Timestamp,
    ) -> FrozenRun {
        let targets = targets(&resolved.nodes, &self.by_labels);
        let title = title(&self.program, &self.bound);
        let shape = self.program.manifest.shape;
        let params = self.params();
        let spec = RunSpec {
            id,
            principal: principal.clone(),
            door,
            scenario: self.program.name.clone(),
            version: Some(self.program.version),
            bundle: self.program.bundle,
            function: entry(shape),
            params,
            mode: self.mode,
            title,
            predicate: resolved.predicate.text().to_owned(),
            targets: u32::try_from(targets.len()).unwrap_or(u32::MAX),
            options: self.options,
            gates: self.gates,
            expect: Expected::default(),
            retry_of: None,
            left_out: resolved.left_out,
            local: None,
            rebuilt: None,
            main: None,
            part_of: None,
            takes_back: false,
            chat: None,
            created: now,
        };
        FrozenRun {
            spec,
            targets,
            shape,
            sets,
            secrets: SecretValues::new(self.bound.secret().clone()),
        }
    }
}

/// What a scenario wants to be given before it begins.
#[must_use]
pub(crate) fn gates(manifest: &Manifest) -> Gates {
    Gates {
        confirm_by: None,
        approvals: manifest.approvals,
        approve_through: None,
        locks: manifest.locks.clone(),
        windows: manifest.windows.iter().map(ToString::to_string).collect(),
    }
}

/// What a request says of the confirmation goes into the run: until when it
/// waits for one.
pub(crate) fn confirm_later(run: &mut FrozenRun, confirm: &Confirm, life: Duration) {
    if *confirm == Confirm::Later {
        run.spec.gates.confirm_by = Some(after(run.spec.created, life));
    }
}

/// The function that a scenario begins with.
fn entry(shape: Shape) -> FunctionName {
    let name = match shape {
        Shape::Main => MAIN,
        Shape::Run => RUN,
    };
    name.parse().expect("a constant name")
}

/// The nodes of a set, with the labels that the run counts by.
fn targets(nodes: &[Arc<NodeRecord>], by: &BTreeSet<LabelKey>) -> Vec<Target> {
    nodes
        .iter()
        .map(|node| Target {
            serial: node.serial,
            name: node.assignment.name.clone(),
            labels: node
                .assignment
                .labels
                .iter()
                .filter(|(label, _)| by.contains(*label))
                .map(|(label, value)| (label.clone(), value.clone()))
                .collect(),
        })
        .collect()
}

/// Refuses a set that a node may have got into by what it says of itself.
fn no_fact(
    param: &str,
    set: String,
    predicate: &Predicate,
    nodes: &[Arc<NodeRecord>],
) -> Result<(), StoredError> {
    for attribute in predicate.attributes() {
        let fact = nodes
            .iter()
            .find(|node| !node.assignment.labels.contains_key(attribute));
        if let Some(node) = fact {
            return Err(StoredError::SecretByFact {
                param: param.to_owned(),
                attribute: printable(attribute, 60),
                set,
                node: node.assignment.name.to_string(),
            });
        }
    }
    Ok(())
}

/// `web-upgrade v12 version=1.4.2 batch=25%`; of a secret only its name.
fn title(program: &Program, bound: &Bound) -> String {
    let version = version_shown(program.version);
    let mut title = format!("{} {version}", program.name);
    let all: Map<String, Value> = bound.sealed();
    for param in &program.manifest.params {
        let shown = match all.get(&param.name) {
            None | Some(Value::Null) => continue,
            Some(_) if param.secret => "[secret]".to_owned(),
            Some(Value::String(text)) if text.is_empty() || text.contains(char::is_whitespace) => {
                format!("'{}'", printable(text, MAX_SHOWN))
            }
            Some(Value::String(text)) => printable(text, MAX_SHOWN),
            Some(other) => printable(&other.to_string(), MAX_SHOWN),
        };
        let part = format!(" {}={shown}", param.name);
        if title.chars().count() + part.chars().count() > MAX_TITLE {
            title.push_str(" …");
            break;
        }
        title.push_str(&part);
    }
    title
}

#[cfg(test)]
mod tests;
