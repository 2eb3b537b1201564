//! The names that a predicate speaks of.

use super::ast::{Attribute, Expr, Leaf, Name, Pattern, Test};
use super::error::{NameOf, Span, UnknownName};
use super::value::Literal;

impl Expr {
    /// Calls `f` with every leaf and whether it stands under an even number of negations.
    fn leaves<'e>(&'e self, positive: bool, f: &mut dyn FnMut(&'e Leaf, bool)) {
        match self {
            Self::And(items) | Self::Or(items) => {
                for item in items {
                    item.leaves(positive, f);
                }
            }
            Self::Not(inner) => inner.leaves(!positive, f),
            Self::Leaf(leaf) => f(leaf, positive),
        }
    }

    /// Names compared with, outside `has`, in the order of the text.
    pub(super) fn names(&self) -> Vec<(&str, Span)> {
        let mut names = Vec::new();
        self.leaves(true, &mut |leaf, _| match &leaf.test {
            Test::Everything | Test::Node(_) | Test::Has(_) => {}
            Test::Equal { name, .. }
            | Test::Order { name, .. }
            | Test::Matches { name, .. }
            | Test::OneOf { name, .. } => names.push((name.attribute.as_str(), name.place.0)),
        });
        names
    }

    /// Every label or fact that it asks for, also by `has`.
    pub(super) fn attributes(&self) -> Vec<&str> {
        let mut found = Vec::new();
        self.leaves(true, &mut |leaf, _| match &leaf.test {
            Test::Everything | Test::Node(_) => {}
            Test::Has(name)
            | Test::Equal { name, .. }
            | Test::Order { name, .. }
            | Test::Matches { name, .. }
            | Test::OneOf { name, .. } => {
                if let Attribute::Other(text) = &name.attribute {
                    found.push(&**text);
                }
            }
        });
        found
    }

    /// The node names written out in full where they add to the set.
    pub(super) fn literal_names(&self) -> Vec<&str> {
        self.node_names()
            .into_iter()
            .filter_map(|(name, adds)| adds.then_some(name.as_str()))
            .collect()
    }

    /// The node names written out in full, and whether they add to the set.
    fn node_names(&self) -> Vec<(&Literal, bool)> {
        let mut found = Vec::new();
        self.leaves(true, &mut |leaf, positive| {
            let (patterns, positive) = match &leaf.test {
                Test::Node(pattern) => (std::slice::from_ref(pattern), positive),
                Test::Equal {
                    name:
                        Name {
                            attribute: Attribute::NodeName,
                            ..
                        },
                    pattern,
                    negated,
                } => (std::slice::from_ref(pattern), positive != *negated),
                Test::OneOf {
                    name:
                        Name {
                            attribute: Attribute::NodeName,
                            ..
                        },
                    patterns,
                } => (patterns.as_slice(), positive),
                _ => return,
            };
            found.extend(patterns.iter().filter_map(|pattern| match pattern {
                Pattern::Exact(name) => Some((name, positive)),
                Pattern::Glob(_) => None,
            }));
        });
        found
    }

    pub(super) fn check_known(
        &self,
        source: &str,
        known: &dyn Fn(&str) -> bool,
        candidates: &[String],
    ) -> Result<(), UnknownName> {
        let unknown = self
            .names()
            .into_iter()
            .find(|(name, _)| !matches!(*name, "name" | "role") && !known(name));
        match unknown {
            None => Ok(()),
            Some((name, span)) => {
                let candidates = candidates
                    .iter()
                    .map(String::as_str)
                    .chain(["name", "role"]);
                Err(UnknownName {
                    of: NameOf::Attribute,
                    name: name.to_owned(),
                    span,
                    suggestion: suggestion(name, candidates),
                    line: source.into(),
                })
            }
        }
    }

    pub(super) fn check_nodes<'c, C>(
        &self,
        source: &str,
        known: &dyn Fn(&str) -> bool,
        candidates: impl FnOnce() -> C,
    ) -> Result<(), UnknownName>
    where
        C: Iterator<Item = &'c str> + Clone,
    {
        let unknown = self
            .node_names()
            .into_iter()
            .find(|(name, _)| !known(name.as_str()));
        match unknown {
            None => Ok(()),
            Some((name, _)) => Err(UnknownName {
                of: NameOf::Node,
                name: name.as_str().to_owned(),
                span: name.span(),
                suggestion: suggestion(name.as_str(), candidates()),
                line: source.into(),
            }),
        }
    }
}

/// The candidate nearest to a name: the same but for capitals, the last part of a dotted fact, or a
/// slip of the fingers away (one in three characters; two letters swapped count once).
fn suggestion<'c>(name: &str, candidates: impl Iterator<Item = &'c str> + Clone) -> Option<String> {
    let nearest = |distance: &dyn Fn(&str) -> Option<usize>| {
        candidates
            .clone()
            .filter_map(|candidate| Some((distance(candidate)?, candidate)))
            .min()
            .map(|(_, candidate)| candidate.to_owned())
    };
    let chars = name.chars().count();
    let allowed = (chars / 3).max(1);
    nearest(&|candidate| (candidate.to_lowercase() == name.to_lowercase()).then_some(0))
        .or_else(|| {
            nearest(&|candidate| {
                if candidate.chars().count().abs_diff(chars) > allowed {
                    return None;
                }
                let distance = strsim::damerau_levenshtein(candidate, name);
                (distance <= allowed && distance < chars).then_some(distance)
            })
        })
        .or_else(|| {
            nearest(&|candidate| {
                candidate
                    .strip_suffix(name)
                    .is_some_and(|before| before.ends_with('.'))
                    .then_some(candidate.len())
            })
        })
}
