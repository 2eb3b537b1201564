//! From what somebody asks for to a frozen run: pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use muster_protocol::api::{Role, RunRequest};
use muster_protocol::envelope::{Door, MAX_PAYLOAD, Mode};
use muster_protocol::ids::RunId;
use muster_protocol::names::PrincipalName;
use muster_protocol::nodeset::NodeSet;
use muster_protocol::note::Expected;
use muster_protocol::origin::Origin;
use muster_protocol::problem::{Kind, Problem};
use muster_protocol::run::{Gates, Main, RunOptions, RunSpec, RunState, Target};
use muster_protocol::units::{Amount, Span, Timestamp};
use muster_scenarios::manifest::Shape;
use muster_scenarios::{Builtin, BuiltinError};

use super::secrets::SecretValues;
use crate::resolve::{Options, Resolved};

/// Execution time on a node when nothing is said.
pub const TIMEOUT: Span = Span::from_secs(300);
/// Time to acknowledge when nothing is said.
pub const DELIVER_WITHIN: Span = Span::from_secs(15);
/// Output kept per node when nothing is said, in bytes.
pub const OUTPUT_BYTES: u64 = 1 << 20;
/// Agents that are upgraded at a time when nothing is said.
pub(super) const UPGRADE_BATCH: Amount = Amount::Percent(10);
/// Longest execution time and delivery time that can be asked for.
const LONGEST: Duration = Duration::from_secs(7 * 86_400);
/// Most output kept per node, in bytes.
const MOST_OUTPUT: u64 = 64 << 20;
/// The name of the set of a scenario's own target.
pub(crate) const TARGETS: &str = "targets";
/// Room in a message for everything but the parameters: set, predicate, names.
pub(super) const ENVELOPE_ROOM: usize = 128 * 1024;

/// A run with everything that is fixed about it, its nodes included: what a
/// policy judges, a person confirms, the journal holds and the nodes are sent.
#[derive(Clone, Debug, PartialEq)]
pub struct FrozenRun {
    /// What runs.
    pub spec: RunSpec,
    /// On which nodes, in the order in which they are taken.
    pub targets: Vec<Target>,
    /// Whether its function runs on the targets, or a `main` in the broker
    /// says what happens where.
    pub shape: Shape,
    /// The further node sets of a scenario with `main`, by name.
    pub sets: Vec<FrozenSet>,
    /// The values of its secret parameters: in memory only.
    pub secrets: SecretValues,
}

/// A node set that a scenario declares beside its target.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FrozenSet {
    /// Its name in the scenario.
    pub name: String,
    /// Its predicate in canonical form.
    pub predicate: String,
    /// Its nodes, in the order in which they are taken; possibly none.
    pub nodes: Vec<Target>,
}

impl FrozenRun {
    /// One function on the targets, without a secret.
    #[must_use]
    pub fn step(spec: RunSpec, targets: Vec<Target>) -> Self {
        Self {
            spec,
            targets,
            shape: Shape::Run,
            sets: Vec::new(),
            secrets: SecretValues::default(),
        }
    }

    /// The same on these nodes only, as the retry of that run.
    #[must_use]
    pub fn only(mut self, targets: Vec<Target>, retry_of: RunId) -> Self {
        self.spec.targets = u32::try_from(targets.len()).unwrap_or(u32::MAX);
        self.spec.retry_of = Some(retry_of);
        self.spec.left_out = 0;
        self.targets = targets;
        self
    }

    /// As it is written down: a run with a `main` has all nodes of its sets as
    /// its targets, and says which is in which set, and what whoever asked
    /// might do.
    #[must_use]
    pub(super) fn whole(mut self, role: Role, origin: Origin) -> Self {
        if self.shape != Shape::Main || self.spec.main.is_some() {
            return self;
        }
        let serials = |nodes: &[Target]| nodes.iter().map(|node| node.serial).collect();
        let own = muster_protocol::run::FrozenSet {
            predicate: self.spec.predicate.clone(),
            nodes: serials(&self.targets),
        };
        let mut sets = BTreeMap::from([(TARGETS.to_owned(), own)]);
        let mut there: BTreeSet<_> = self.targets.iter().map(|node| node.serial).collect();
        for set in std::mem::take(&mut self.sets) {
            let frozen = muster_protocol::run::FrozenSet {
                predicate: set.predicate,
                nodes: serials(&set.nodes),
            };
            sets.insert(set.name, frozen);
            let fresh = set
                .nodes
                .into_iter()
                .filter(|node| there.insert(node.serial));
            self.targets.extend(fresh);
        }
        self.spec.targets = u32::try_from(self.targets.len()).unwrap_or(u32::MAX);
        self.spec.main = Some(Box::new(Main { sets, role, origin }));
        self
    }

    /// Every node that it can touch: all its frozen sets together.
    #[must_use]
    pub fn set(&self) -> NodeSet {
        let also = self.sets.iter().flat_map(|set| &set.nodes);
        let all = self.targets.iter().chain(also);
        all.map(|target| target.serial).collect()
    }
}

/// Why a request for a run is refused before any node is looked at.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RequestError {
    /// A scenario that does not exist, or its parameters.
    #[error(transparent)]
    Call(#[from] BuiltinError),
    /// Parameters that do not fit into a message.
    #[error("the parameters have {bytes} bytes as JSON; at most {most} can be sent to nodes")]
    TooLarge {
        /// Their size.
        bytes: usize,
        /// The limit.
        most: usize,
    },
    /// A batch of no nodes.
    #[error("a batch of {0} holds no node")]
    EmptyBatch(Amount),
    /// A time that is zero or too long.
    #[error("{what} of {span} is not possible; it takes more than nothing and at most 7d")]
    Time {
        /// Which.
        what: &'static str,
        /// What was asked for.
        span: Span,
    },
    /// More output than is ever kept.
    #[error("{bytes} bytes of output per node are too many; at most {MOST_OUTPUT} are kept")]
    Output {
        /// What was asked for.
        bytes: u64,
    },
    /// What is built in runs where somebody says.
    #[error("a run of `{0}` needs a predicate: which nodes")]
    NoPredicate(&'static str),
    /// What only stored scenarios have.
    #[error("`{what}` is for stored scenarios; `{scenario}` is built in")]
    StoredOnly {
        /// What was asked for.
        what: &'static str,
        /// Of what.
        scenario: &'static str,
    },
    /// Built-in scenarios cannot say what they would do.
    #[error("a {0} cannot be checked without running it")]
    CheckMode(&'static str),
}

impl RequestError {
    /// As it is shown at the edge.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let title = format!("{self}; nothing was run");
        match self {
            Self::Call(BuiltinError::NoScenario(_)) => {
                Problem::new(Kind::NotFound, title).hint("muster scenario list says what there is")
            }
            Self::TooLarge { .. } => {
                Problem::new(Kind::TooLarge, title).hint("put large data in a file on the nodes")
            }
            Self::CheckMode(_) => Problem::new(Kind::InvalidRequest, title)
                .hint("leave `mode` out; only scenarios made of resources have a check mode"),
            _ => Problem::new(Kind::InvalidRequest, title),
        }
    }
}

/// How the request wants its predicate resolved.
#[must_use]
pub fn options(request: &RunRequest) -> Options {
    Options {
        limit: request.limit,
        include_infrastructure: request.include_infrastructure,
        allow_unknown: request.allow_unknown,
    }
}

/// Checks everything about a request but its predicate.
///
/// # Errors
/// [`RequestError`].
pub fn check(request: &RunRequest) -> Result<Checked, RequestError> {
    let call = Builtin::read(&request.scenario, &request.params)?;
    let name = match call {
        Builtin::Command(_) => "command",
        Builtin::Upgrade(_) => "agent-upgrade",
    };
    if request.mode == Mode::Check {
        return Err(RequestError::CheckMode(match call {
            Builtin::Command(_) => "command",
            Builtin::Upgrade(_) => "release",
        }));
    }
    for (what, given) in [
        ("version", request.version.is_some()),
        ("retry", request.retry.is_some()),
        ("max_failures_by", request.max_failures_by.is_some()),
    ] {
        if given {
            return Err(RequestError::StoredOnly {
                what,
                scenario: name,
            });
        }
    }
    let Some(predicate) = request.predicate.clone() else {
        return Err(RequestError::NoPredicate(name));
    };
    let bytes = request.params.to_string().len();
    let most = MAX_PAYLOAD - ENVELOPE_ROOM;
    if bytes > most {
        return Err(RequestError::TooLarge { bytes, most });
    }
    let Plain {
        timeout,
        deliver_within,
        output_bytes,
    } = plain(request, None)?;
    // An agent that does not come back takes its machine with it: a part of
    // the fleet at a time, and no more after the first failure, unless
    // somebody says otherwise.
    let (batch, max_failures) = match call {
        Builtin::Upgrade(_) => (Some(UPGRADE_BATCH), Some(Amount::Count(0))),
        Builtin::Command(_) => (None, None),
    };
    Ok(Checked {
        call,
        predicate,
        options: RunOptions {
            timeout,
            deliver_within,
            batch: request.batch.or(batch),
            max_failures: request.max_failures.or(max_failures),
            max_failures_by: BTreeMap::new(),
            retry: 0,
            wait_down: request.wait_down,
            output_bytes,
        },
    })
}

/// What is checked in the same way for every run.
pub(super) struct Plain {
    pub(super) timeout: Span,
    pub(super) deliver_within: Span,
    pub(super) output_bytes: u64,
}

/// The batch, the times and the room of a request; `usual` is the execution
/// time when it says none.
pub(super) fn plain(request: &RunRequest, usual: Option<Span>) -> Result<Plain, RequestError> {
    if let Some(batch) = request.batch.filter(|batch| batch.is_zero()) {
        return Err(RequestError::EmptyBatch(batch));
    }
    let time = |what, span: Option<Span>, usual: Span| {
        let span = span.unwrap_or(usual);
        let fits = !span.get().is_zero() && span.get() <= LONGEST;
        if fits {
            Ok(span)
        } else {
            Err(RequestError::Time { what, span })
        }
    };
    let timeout = time("a timeout", request.timeout, usual.unwrap_or(TIMEOUT))?;
    let deliver_within = time("a delivery time", request.deliver_within, DELIVER_WITHIN)?;
    let output_bytes = request.output_bytes.unwrap_or(OUTPUT_BYTES);
    if output_bytes > MOST_OUTPUT {
        return Err(RequestError::Output {
            bytes: output_bytes,
        });
    }
    Ok(Plain {
        timeout,
        deliver_within,
        output_bytes,
    })
}

/// A request that only lacks its nodes.
#[derive(Clone, Debug, PartialEq)]
pub struct Checked {
    call: Builtin,
    predicate: String,
    options: RunOptions,
}

impl Checked {
    /// How the run would go about its nodes.
    #[must_use]
    pub fn options(&self) -> &RunOptions {
        &self.options
    }

    /// The predicate as it was given.
    #[must_use]
    pub fn predicate(&self) -> &str {
        &self.predicate
    }

    /// The run, frozen.
    #[must_use]
    pub fn freeze(
        self,
        request: &RunRequest,
        resolved: &Resolved,
        id: RunId,
        (principal, door): (&PrincipalName, Door),
        now: Timestamp,
    ) -> FrozenRun {
        let targets = resolved.targets();
        let spec = RunSpec {
            id,
            principal: principal.clone(),
            door,
            scenario: request.scenario.clone(),
            version: None,
            bundle: self.call.bundle(),
            function: self.call.function(),
            params: request.params.clone(),
            mode: request.mode,
            title: self.call.title(),
            predicate: resolved.predicate.text().to_owned(),
            targets: u32::try_from(targets.len()).unwrap_or(u32::MAX),
            options: self.options,
            expect: Expected::default(),
            gates: Gates::default(),
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
        FrozenRun::step(spec, targets)
    }
}

/// The retry of a run on some of its nodes: a run of its own with the same
/// call and options, under a new id. `targets` are in the order of the old
/// run.
#[must_use]
pub fn retry(
    old: &RunState,
    targets: Vec<Target>,
    id: RunId,
    (principal, door): (&PrincipalName, Door),
    now: Timestamp,
) -> FrozenRun {
    let spec = RunSpec {
        id,
        principal: principal.clone(),
        door,
        targets: u32::try_from(targets.len()).unwrap_or(u32::MAX),
        // What a dry run said was said before the first try.
        expect: Expected::default(),
        retry_of: Some(old.spec.id),
        left_out: 0,
        local: None,
        rebuilt: None,
        part_of: None,
        takes_back: false,
        chat: None,
        created: now,
        gates: Gates {
            confirm_by: None,
            ..old.spec.gates.clone()
        },
        ..old.spec.clone()
    };
    FrozenRun::step(spec, targets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn request(more: serde_json::Value) -> RunRequest {
        let mut json = json!({"predicate": "*", "params": {"argv": ["nginx", "-v"]}});
        json.as_object_mut()
            .expect("object")
            .extend(more.as_object().expect("object").clone());
        serde_json::from_value(json).expect("a request")
    }

    #[test]
    fn what_is_not_said_has_the_documented_values() {
        let checked = check(&request(json!({}))).expect("fine");
        assert_eq!(checked.call.title(), "nginx -v");
        let o = checked.options;
        assert_eq!(
            (o.timeout, o.deliver_within, o.output_bytes),
            (TIMEOUT, DELIVER_WITHIN, 1 << 20)
        );
    }

    #[test]
    fn a_request_that_makes_no_sense_is_refused_with_what_and_why() {
        let refused = |more| check(&request(more)).expect_err("refused").problem().title;
        insta::assert_snapshot!(
            [
                refused(json!({"scenario": "web-upgrade"})),
                refused(json!({"params": {"argv": []}})),
                refused(json!({"batch": "0"})),
                refused(json!({"timeout": "0s"})),
                refused(json!({"deliver_within": "8d"})),
                refused(json!({"output_bytes": 1_u64 << 40})),
                refused(json!({"mode": "check"})),
                refused(json!({"params": {"argv": ["\u{1}".repeat(131_000), "\u{1}".repeat(131_000)]}})),
            ]
            .join("\n"),
            @r"
        there is no scenario `web-upgrade`; nothing was run
        there is no command to run; write it after `--`; nothing was run
        a batch of 0 holds no node; nothing was run
        a timeout of 0s is not possible; it takes more than nothing and at most 7d; nothing was run
        a delivery time of 8d is not possible; it takes more than nothing and at most 7d; nothing was run
        1099511627776 bytes of output per node are too many; at most 67108864 are kept; nothing was run
        a command cannot be checked without running it; nothing was run
        the parameters have 1572016 bytes as JSON; at most 917504 can be sent to nodes; nothing was run
        "
        );
    }
}
