//! Whether a node fits. Nothing here allocates: a predicate is tried on every node of the fleet.

use serde_json::Value;

use super::ast::{Attribute, Expr, Pattern, Test};
use super::value::Scalar;

/// A node as a predicate sees it.
pub trait Attributes {
    /// The node's name.
    fn name(&self) -> &str;

    /// Calls `test` with one role after another until it says true; whether it ever did.
    ///
    /// For roles in a collection this is `self.roles.iter().any(|role| test(role))`.
    fn any_role(&self, test: &mut dyn FnMut(&str) -> bool) -> bool;

    /// The value of a label, if the node has it.
    fn label(&self, key: &str) -> Option<&str>;

    /// What the node reports under a dotted path, as in `os.version`; see [`fact_at`]. It is asked
    /// only for names that are no label of the node, so that a fact never stands before a label.
    fn fact(&self, path: &str) -> Option<&Value>;
}

/// Finds a dotted path in facts: `os.version` is `{"os": {"version": …}}`.
///
/// A key may itself hold dots: `{"os.version": …}` is found too, and a longer key goes before a
/// shorter one. Lists are not indexed.
pub fn fact_at<'a>(facts: &'a Value, path: &str) -> Option<&'a Value> {
    let map = facts.as_object()?;
    if let Some(found) = map.get(path) {
        return Some(found);
    }
    path.rmatch_indices('.').find_map(|(dot, _)| {
        let inner = map.get(&path[..dot])?;
        fact_at(inner, &path[dot + 1..])
    })
}

impl Expr {
    pub(super) fn matches(&self, node: &dyn Attributes) -> bool {
        match self {
            Self::And(items) => items.iter().all(|item| item.matches(node)),
            Self::Or(items) => items.iter().any(|item| item.matches(node)),
            Self::Not(inner) => !inner.matches(node),
            Self::Leaf(leaf) => leaf.test.matches(node),
        }
    }
}

impl Test {
    pub(super) fn matches(&self, node: &dyn Attributes) -> bool {
        match self {
            Self::Everything => true,
            Self::Node(pattern) => pattern.matches(Scalar::Identifier(node.name())),
            Self::Has(name) => name.attribute.is_on(node),
            Self::Equal {
                name,
                pattern,
                negated,
            } => name.attribute.any(node, |value| pattern.matches(value)) != *negated,
            Self::Order { name, order, value } => name
                .attribute
                .any(node, |seen| order.accepts(value.compare(seen))),
            Self::Matches { name, regex } => name
                .attribute
                .any(node, |seen| seen.with_text(|text| regex.0.is_match(text))),
            Self::OneOf { name, patterns } => name.attribute.any(node, |seen| {
                patterns.iter().any(|pattern| pattern.matches(seen))
            }),
        }
    }
}

impl Pattern {
    fn matches(&self, seen: Scalar<'_>) -> bool {
        match self {
            Self::Exact(value) => value.compare(seen).is_eq(),
            Self::Glob(glob) => seen.with_text(|text| glob.matches(text)),
        }
    }
}

impl Attribute {
    /// Whether any value that the node has under this name passes.
    fn any(&self, node: &dyn Attributes, mut test: impl FnMut(Scalar<'_>) -> bool) -> bool {
        match self {
            Self::NodeName => test(Scalar::Identifier(node.name())),
            Self::Role => node.any_role(&mut |role| test(Scalar::Identifier(role))),
            Self::Other(name) => match node.label(name) {
                Some(label) => test(Scalar::Text(label)),
                None => match node.fact(name) {
                    Some(Value::Array(items)) => items.iter().filter_map(Scalar::of).any(test),
                    Some(value) => Scalar::of(value).is_some_and(test),
                    None => false,
                },
            },
        }
    }

    /// Whether the node has anything under this name.
    fn is_on(&self, node: &dyn Attributes) -> bool {
        match self {
            Self::NodeName => true,
            Self::Role => node.any_role(&mut |_| true),
            Self::Other(name) => {
                node.label(name).is_some()
                    || match node.fact(name) {
                        None | Some(Value::Null) => false,
                        Some(Value::Array(items)) => !items.is_empty(),
                        Some(_) => true,
                    }
            }
        }
    }
}
