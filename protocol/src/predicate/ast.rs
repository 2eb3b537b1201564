//! The parsed form. Two predicates are equal when they say the same thing in the same order;
//! where in the text they say it does not count.

use regex::Regex;

use super::Span;
use super::glob::Glob;
use super::value::Literal;

/// A position that takes no part in equality.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place(pub(super) Span);

impl PartialEq for Place {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Place {}

/// A predicate as a tree. `and` and `or` are lists, so that a long chain is not a deep tree: depth
/// is bounded by the parentheses and `not`s of the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expr {
    /// At least two.
    And(Vec<Expr>),
    /// At least two.
    Or(Vec<Expr>),
    Not(Box<Expr>),
    Leaf(Leaf),
}

/// One condition, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Leaf {
    pub(super) place: Place,
    pub(super) test: Test,
}

/// What a condition asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Test {
    /// `*`
    Everything,
    /// `web-0*`
    Node(Pattern),
    /// `has zone`
    Has(Name),
    /// `zone=gva2`, `zone!=gva2`
    Equal {
        name: Name,
        pattern: Pattern,
        negated: bool,
    },
    /// `cpus>=4`
    Order {
        name: Name,
        order: Order,
        value: Literal,
    },
    /// `name =~ "^web"`
    Matches { name: Name, regex: Expression },
    /// `zone in [gva2, dk2]`; at least one.
    OneOf { name: Name, patterns: Vec<Pattern> },
}

/// A name on the left of a comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Name {
    pub(super) place: Place,
    pub(super) attribute: Attribute,
}

/// What a name refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Attribute {
    NodeName,
    Role,
    /// A label, or else a fact.
    Other(Box<str>),
}

impl Attribute {
    pub(super) fn new(text: &str) -> Self {
        match text {
            "name" => Self::NodeName,
            "role" => Self::Role,
            other => Self::Other(other.into()),
        }
    }

    pub(super) fn as_str(&self) -> &str {
        match self {
            Self::NodeName => "name",
            Self::Role => "role",
            Self::Other(text) => text,
        }
    }
}

/// The right side of `=`, of a bare node selection, and an element of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Pattern {
    Exact(Literal),
    Glob(Glob),
}

/// An ordering operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Order {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Less => "<",
            Self::LessOrEqual => "<=",
            Self::Greater => ">",
            Self::GreaterOrEqual => ">=",
        }
    }

    pub(super) fn accepts(self, order: std::cmp::Ordering) -> bool {
        match self {
            Self::Less => order.is_lt(),
            Self::LessOrEqual => order.is_le(),
            Self::Greater => order.is_gt(),
            Self::GreaterOrEqual => order.is_ge(),
        }
    }
}

/// A compiled regular expression, equal by its text.
#[derive(Clone, Debug)]
pub(super) struct Expression(pub(super) Regex);

impl PartialEq for Expression {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Eq for Expression {}
