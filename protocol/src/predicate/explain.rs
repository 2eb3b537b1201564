//! Why a node is in the set, or is not.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::Attributes;
use super::ast::{Attribute, Expr, Leaf, Test};
use super::error::Span;
use super::shown::{Escaped, Shown};

/// Which conditions of a predicate decided about one node.
///
/// `Display` gives a heading and one line for each condition that decided, without a newline at the
/// end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    /// The node's name.
    pub node: String,
    /// Whether the node fits the whole predicate.
    pub matches: bool,
    /// The predicate, in its canonical form.
    pub predicate: String,
    /// The conditions that decided, in the order of the text: all that an `and` needed when it
    /// holds and all that failed when it does not, and the other way round for an `or`.
    pub decided_by: Vec<Clause>,
}

/// One condition of a predicate, tried on one node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Clause {
    /// The condition, in its canonical form.
    pub text: String,
    /// Where it stands in the text that was parsed.
    pub span: Span,
    /// Whether it holds for the node. A `not` around it is not counted.
    pub holds: bool,
    /// The name that it asks about; nothing for `*`.
    pub name: Option<String>,
    /// What the node has under that name.
    pub had: Had,
}

/// What a node has under a name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "kind", content = "value")]
pub enum Had {
    /// The condition asks about nothing (`*`).
    NotAsked,
    /// The node's name.
    Name(String),
    /// The node's roles, sorted.
    Roles(Vec<String>),
    /// A label, given by an operator.
    Label(String),
    /// A fact, reported by the node.
    #[schema(value_type = Object)]
    Fact(Value),
    /// Neither a label nor a fact.
    Nothing,
}

impl Expr {
    pub(super) fn explain(&self, node: &dyn Attributes) -> Explanation {
        let mut decided_by = Vec::new();
        let matches = self.decide(node, &mut decided_by);
        Explanation {
            node: node.name().to_owned(),
            matches,
            predicate: self.to_string(),
            decided_by,
        }
    }

    /// Evaluates, and adds the leaves that made the answer what it is.
    fn decide(&self, node: &dyn Attributes, clauses: &mut Vec<Clause>) -> bool {
        let (items, ends_with) = match self {
            Self::Leaf(leaf) => {
                let clause = leaf.clause(node);
                let holds = clause.holds;
                clauses.push(clause);
                return holds;
            }
            Self::Not(inner) => return !inner.decide(node, clauses),
            Self::And(items) => (items, false),
            Self::Or(items) => (items, true),
        };
        let start = clauses.len();
        let mut deciding: Option<Vec<Clause>> = None;
        for item in items {
            let mut of_item = Vec::new();
            if item.decide(node, &mut of_item) == ends_with {
                deciding.get_or_insert_default().append(&mut of_item);
            } else if deciding.is_none() {
                clauses.append(&mut of_item);
            }
        }
        match deciding {
            Some(mut deciding) => {
                clauses.truncate(start);
                clauses.append(&mut deciding);
                ends_with
            }
            None => !ends_with,
        }
    }
}

impl Leaf {
    fn clause(&self, node: &dyn Attributes) -> Clause {
        let attribute = match &self.test {
            Test::Everything => None,
            Test::Node(_) => Some(&Attribute::NodeName),
            Test::Has(name)
            | Test::Equal { name, .. }
            | Test::Order { name, .. }
            | Test::Matches { name, .. }
            | Test::OneOf { name, .. } => Some(&name.attribute),
        };
        Clause {
            text: self.test.to_string(),
            span: self.place.0,
            holds: self.test.matches(node),
            name: attribute.map(|attribute| attribute.as_str().to_owned()),
            had: attribute.map_or(Had::NotAsked, |attribute| attribute.had(node)),
        }
    }
}

impl Attribute {
    fn had(&self, node: &dyn Attributes) -> Had {
        match self {
            Self::NodeName => Had::Name(node.name().to_owned()),
            Self::Role => {
                let mut roles = Vec::new();
                node.any_role(&mut |role| {
                    roles.push(role.to_owned());
                    false
                });
                roles.sort();
                Had::Roles(roles)
            }
            Self::Other(name) => match (node.label(name), node.fact(name)) {
                (Some(label), _) => Had::Label(label.to_owned()),
                (None, Some(fact)) => Had::Fact(fact.clone()),
                (None, None) => Had::Nothing,
            },
        }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {} {}",
            Shown(&self.node),
            if self.matches {
                "matches"
            } else {
                "does not match"
            },
            Escaped(&self.predicate)
        )?;
        for clause in &self.decided_by {
            let holds = if clause.holds { "true " } else { "false" };
            write!(f, "\n  {holds}  {}", Escaped(&clause.text))?;
            let name = clause.name.as_deref().unwrap_or_default();
            let name = Shown(name);
            match &clause.had {
                Had::NotAsked => {}
                Had::Name(value) => write!(f, "  (the name is {})", Shown(value))?,
                Had::Roles(roles) if roles.is_empty() => f.write_str("  (it has no role)")?,
                Had::Roles(roles) => {
                    let s = if roles.len() == 1 { "" } else { "s" };
                    write!(f, "  (its role{s}: {})", Shown(&roles.join(", ")))?;
                }
                Had::Label(value) => write!(f, "  (label {name} is {})", Shown(value))?,
                Had::Fact(value) => {
                    write!(f, "  (fact {name} is ")?;
                    match value {
                        Value::String(text) => Shown(text).fmt(f)?,
                        other => Shown(&other.to_string()).fmt(f)?,
                    }
                    f.write_str(")")?;
                }
                Had::Nothing => write!(f, "  (no label or fact {name})")?,
            }
        }
        Ok(())
    }
}
