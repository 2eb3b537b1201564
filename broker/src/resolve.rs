//! From a predicate to a frozen set: pure.
//!
//! This is done once for a run. What comes out is what is judged, confirmed,
//! journaled and signed.

use std::cmp::Ordering;
use std::sync::Arc;

use muster_protocol::names::NodeName;
use muster_protocol::predicate::{Predicate, PredicateError, UnknownName};
use muster_protocol::problem::{Kind, Problem};
use muster_protocol::run::Target;
use muster_protocol::text::printable;
use muster_protocol::units::Amount;

use crate::inventory::{NodeRecord, Snapshot};

/// How a predicate becomes a set.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Options {
    /// Only so many of the matching nodes, the first by name.
    pub limit: Option<Amount>,
    /// Keep the broker's own machines, also when they are not named.
    pub include_infrastructure: bool,
    /// Names that no node has are meant.
    pub allow_unknown: bool,
}

/// The nodes that a predicate stands for, in the order in which they are
/// taken: by name as people count (`web-2` before `web-10`), the broker's own
/// machines last.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The predicate.
    pub predicate: Predicate,
    /// At least one node.
    pub nodes: Vec<Arc<NodeRecord>>,
    /// How many of the broker's own machines match and were left out.
    pub left_out: u32,
}

impl Resolved {
    /// The frozen set.
    #[must_use]
    pub fn targets(&self) -> Vec<Target> {
        self.nodes
            .iter()
            .map(|node| Target::new(node.serial, node.assignment.name.clone()))
            .collect()
    }
}

/// Why a predicate stands for no set.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ResolveError {
    /// It cannot be read.
    #[error("{}", .error.message())]
    Syntax {
        /// What and where.
        error: PredicateError,
        /// The text that `error` points into.
        source_text: String,
    },
    /// It names a label, a fact or a node that does not exist.
    #[error("{}", .unknown.message())]
    UnknownName {
        /// Which, where, and what was perhaps meant.
        unknown: UnknownName,
        /// The text that `unknown` points into.
        source_text: String,
    },
    /// No node matches.
    #[error("no node matches `{predicate}`; nothing was run")]
    NoMatch {
        /// In canonical form.
        predicate: String,
        /// How many of the broker's own machines match and were left out.
        infrastructure: usize,
        /// How many nodes there are.
        enrolled: usize,
    },
    /// A limit of no nodes.
    #[error("a limit of {0} leaves no node; nothing was run")]
    ZeroLimit(Amount),
}

impl ResolveError {
    /// As it is shown at the edge.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let title = self.to_string();
        match self {
            Self::Syntax { error, source_text } => {
                let mut problem = Problem::new(Kind::InvalidPredicate, title);
                problem.span = Some((error.span().start, error.span().end));
                problem.source = Some(source_text.clone());
                problem.hint = error.hint().map(str::to_owned);
                problem
            }
            Self::UnknownName {
                unknown,
                source_text,
            } => {
                let mut problem = Problem::new(Kind::UnknownName, title).hint(unknown.hint());
                problem.span = Some((unknown.span().start, unknown.span().end));
                problem.source = Some(source_text.clone());
                problem
            }
            Self::NoMatch {
                infrastructure: 0,
                enrolled: 0,
                ..
            } => Problem::new(Kind::NoMatch, title)
                .hint("no node has enrolled yet: muster node invite"),
            Self::NoMatch {
                infrastructure: 0, ..
            } => Problem::new(Kind::NoMatch, title)
                .hint("muster match PREDICATE --explain NODE says which clause keeps a node out"),
            Self::NoMatch { infrastructure, .. } => {
                Problem::new(Kind::NoMatch, title).hint(format!(
                    "{infrastructure} of the broker's own machines match: name them, or pass \
                 --include-infrastructure"
                ))
            }
            Self::ZeroLimit(_) => Problem::new(Kind::InvalidRequest, title),
        }
    }
}

/// Checks that what a predicate names exists: labels and facts, and nodes that
/// are written out in full.
///
/// # Errors
/// The first name that does not.
fn check_names(predicate: &Predicate, snapshot: &Snapshot) -> Result<(), UnknownName> {
    // The candidates are only put together when one is needed.
    predicate
        .check_known(&|name| snapshot.knows(name), &[])
        .or_else(|_| predicate.check_known(&|name| snapshot.knows(name), snapshot.candidates()))?;
    let known = |name: &str| {
        name.parse()
            .is_ok_and(|name: NodeName| snapshot.by_name(&name).is_some())
    };
    predicate.check_nodes(&known, || {
        snapshot.iter().map(|node| node.assignment.name.as_str())
    })
}

/// Reads a predicate and checks that the names in it exist.
///
/// # Errors
/// [`ResolveError::Syntax`], [`ResolveError::UnknownName`].
pub fn parse(
    text: &str,
    snapshot: &Snapshot,
    allow_unknown: bool,
) -> Result<Predicate, ResolveError> {
    let predicate = Predicate::parse(text).map_err(|error| ResolveError::Syntax {
        error,
        source_text: text
            .chars()
            .take(muster_protocol::predicate::MAX_LEN)
            .collect(),
    })?;
    // Where nobody has enrolled, every name is unknown, and that is not the
    // mistake.
    if !allow_unknown && snapshot.iter().next().is_some() {
        check_names(&predicate, snapshot).map_err(|unknown| ResolveError::UnknownName {
            unknown,
            source_text: predicate.source().to_owned(),
        })?;
    }
    Ok(predicate)
}

/// Every node that matches, in order, the broker's own machines too.
#[must_use]
pub fn matching(predicate: &Predicate, snapshot: &Snapshot) -> Vec<Arc<NodeRecord>> {
    let mut nodes: Vec<Arc<NodeRecord>> = snapshot
        .iter()
        .filter(|node| predicate.matches(&***node))
        .cloned()
        .collect();
    nodes.sort_by(|a, b| {
        let by_name = || natural(a.assignment.name.as_str(), b.assignment.name.as_str());
        a.infrastructure.cmp(&b.infrastructure).then_with(by_name)
    });
    nodes
}

/// Takes out the broker's own machines that are not named literally.
pub fn leave_out_infrastructure(predicate: &Predicate, nodes: &mut Vec<Arc<NodeRecord>>) {
    let named: Vec<&str> = predicate.literal_names().collect();
    nodes.retain(|node| !node.infrastructure || named.contains(&node.assignment.name.as_str()));
}

/// The set that a predicate stands for now.
///
/// # Errors
/// [`ResolveError`]; nothing may run then.
pub fn resolve(
    text: &str,
    snapshot: &Snapshot,
    options: Options,
) -> Result<Resolved, ResolveError> {
    if let Some(limit) = options.limit.filter(|limit| limit.is_zero()) {
        return Err(ResolveError::ZeroLimit(limit));
    }
    let predicate = parse(text, snapshot, options.allow_unknown)?;
    let mut nodes = matching(&predicate, snapshot);
    let all = nodes.len();
    if !options.include_infrastructure {
        leave_out_infrastructure(&predicate, &mut nodes);
    }
    let infrastructure = all - nodes.len();
    if let Some(limit) = options.limit {
        nodes.truncate(limit.of_rounded_up(nodes.len()));
    }
    if nodes.is_empty() {
        return Err(ResolveError::NoMatch {
            predicate: printable(predicate.text(), 200),
            infrastructure,
            enrolled: snapshot.iter().count(),
        });
    }
    Ok(Resolved {
        predicate,
        nodes,
        left_out: u32::try_from(infrastructure).unwrap_or(u32::MAX),
    })
}

/// The order in which people count: runs of digits as numbers.
#[must_use]
pub fn natural(a: &str, b: &str) -> Ordering {
    let (mut x, mut y) = (a.as_bytes(), b.as_bytes());
    loop {
        match (x.first(), y.first()) {
            (Some(p), Some(q)) if p.is_ascii_digit() && q.is_ascii_digit() => {
                let (n, x_rest) = number(x);
                let (m, y_rest) = number(y);
                let order = n.len().cmp(&m.len()).then_with(|| n.cmp(m));
                if order != Ordering::Equal {
                    return order;
                }
                (x, y) = (x_rest, y_rest);
            }
            (Some(p), Some(q)) if p == q => (x, y) = (&x[1..], &y[1..]),
            (p, q) if p == q => return a.cmp(b),
            (p, q) => return p.cmp(&q),
        }
    }
}

/// A run of digits without its leading zeros, and what follows.
fn number(text: &[u8]) -> (&[u8], &[u8]) {
    let digits = text.iter().take_while(|b| b.is_ascii_digit()).count();
    let (run, rest) = text.split_at(digits);
    let zeros = run.iter().take_while(|b| **b == b'0').count();
    (&run[zeros..], rest)
}

#[cfg(test)]
mod tests;
