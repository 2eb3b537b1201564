//! What a scenario says of itself: what it is for, its parameters, and the
//! node sets that it touches. Read from the calls at the top of the script,
//! before and without running any of its functions.

mod budget;
mod declare;
mod read;
mod view;

use std::collections::{BTreeMap, BTreeSet};

use muster_protocol::names::{FunctionName, LabelKey};
use muster_protocol::predicate::Predicate;
use muster_protocol::units::{Amount, Span, Timestamp};

use crate::param::Param;
use crate::when::Cron;

/// Gives an engine the functions of a manifest.
#[cfg(test)]
pub(crate) fn register(engine: &mut rhai::Engine) {
    declare::register(engine, &declare::Notes::default());
}

pub use budget::spent;
pub use read::read;
pub(crate) use read::read_here;

/// The function that runs in the broker.
pub const MAIN: &str = "main";
/// The function that a scenario without `main` runs on its targets.
pub const RUN: &str = "run";
/// Most windows of one scenario.
pub const MAX_WINDOWS: usize = 16;
/// Most node sets beside the target.
pub const MAX_SETS: usize = 16;

/// What a scenario says of itself.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// One line for people.
    pub about: String,
    /// Parameters in the order of their declaration.
    pub params: Vec<Param>,
    /// Its targets; `None` takes them from whoever runs it.
    pub target: Option<Predicate>,
    /// Further node sets, by name.
    pub also: BTreeMap<String, Predicate>,
    /// Targets at a time.
    pub batch: Option<Amount>,
    /// How many may fail before nothing more is started.
    pub budgets: Vec<Budget>,
    /// How long one step may take on a node.
    pub timeout: Option<Span>,
    /// How often a step is tried again on a node where it failed.
    pub retry: u32,
    /// Whether a person has to see the plan first.
    pub confirm: bool,
    /// How many others have to agree.
    pub approvals: u32,
    /// One run at a time holds each of these.
    pub locks: BTreeSet<String>,
    /// When it may be started: in any of these minutes; at any time when
    /// there is none.
    pub windows: Vec<Cron>,
    /// Functions that may be executed again when it is not known whether
    /// they were.
    pub idempotent: BTreeSet<FunctionName>,
    /// Whether `--dry-run` means something.
    pub allow_check: bool,
    /// Which of its functions runs where.
    pub shape: Shape,
    /// Its own functions.
    pub functions: Vec<Function>,
}

/// How a scenario runs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Shape {
    /// `fn main(p)` in the broker says what happens where.
    Main,
    /// `fn run(p)` on the targets, in batches, and nothing else.
    Run,
}

/// A failure budget: above it nothing more is started. A node fails when its
/// outcome is `failed`, `timed_out`, `unreachable` or `unknown`; see
/// [`spent`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Budget {
    /// How many nodes may fail.
    pub amount: Amount,
    /// Counted for the nodes of each value of this label by itself; over all
    /// when absent.
    pub by: Option<LabelKey>,
}

/// A function that the script defines.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// The names of its parameters.
    pub params: Vec<String>,
    /// Its doc comment, without the slashes.
    pub doc: Option<String>,
}

impl Manifest {
    /// The function of this name.
    #[must_use]
    pub fn function(&self, name: &str) -> Option<&Function> {
        self.functions.iter().find(|f| f.name == name)
    }

    /// Whether it may be started at this moment.
    #[must_use]
    pub fn is_open(&self, at: Timestamp) -> bool {
        self.windows.is_empty() || self.windows.iter().any(|window| window.holds(at))
    }

    /// When it may be started, from this moment on; `None` when the calendar
    /// ends before.
    #[must_use]
    pub fn opens(&self, at: Timestamp) -> Option<Timestamp> {
        if self.is_open(at) {
            return Some(at);
        }
        self.windows
            .iter()
            .filter_map(|window| window.next(at))
            .min()
    }

    /// The names of its tests: functions that begin with
    /// [`PREFIX`](crate::trial::PREFIX) and take nothing.
    pub fn tests(&self) -> impl Iterator<Item = &str> {
        let tests = self
            .functions
            .iter()
            .filter(|f| f.name.starts_with(crate::trial::PREFIX) && f.params.is_empty());
        tests.map(|f| f.name.as_str())
    }

    /// The node sets by name; `targets` for the target.
    pub fn sets(&self) -> impl Iterator<Item = (&str, Option<&Predicate>)> {
        let also = self.also.iter().map(|(name, p)| (name.as_str(), Some(p)));
        std::iter::once(("targets", self.target.as_ref())).chain(also)
    }
}
