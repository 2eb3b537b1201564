//! Every function that muster adds to the language: what it is called, where
//! it may be called, with how many arguments. The check reads it, the
//! reference is written from it, and tests hold the engines to it.

/// Where a function may be called.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Side {
    /// At the top of a script.
    Top,
    /// In `main` and what it calls: it runs in the broker.
    Main,
    /// In a function that runs on a node.
    Node,
    /// In `main` and on a node.
    Both,
    /// In a test, and in what it calls.
    Test,
}

/// How it is called.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Form {
    /// `name(…)`.
    Function,
    /// `value.name(…)`.
    Method,
    /// `value.name`.
    Property,
}

/// One function, method or property.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Its name.
    pub name: &'static str,
    /// How it is called.
    pub form: Form,
    /// Where.
    pub side: Side,
    /// Fewest and most arguments, a method's own value not counted.
    pub args: (usize, usize),
    /// One sentence for people.
    pub help: &'static str,
}

const fn function(
    side: Side,
    name: &'static str,
    args: (usize, usize),
    help: &'static str,
) -> Entry {
    Entry {
        name,
        form: Form::Function,
        side,
        args,
        help,
    }
}

const fn method(side: Side, name: &'static str, args: (usize, usize), help: &'static str) -> Entry {
    Entry {
        name,
        form: Form::Method,
        side,
        args,
        help,
    }
}

const fn property(side: Side, name: &'static str, help: &'static str) -> Entry {
    Entry {
        name,
        form: Form::Property,
        side,
        args: (0, 0),
        help,
    }
}

/// The manifest.
pub const TOP: &[Entry] = &[
    function(
        Side::Top,
        "scenario",
        (1, 1),
        "Says what the scenario is for.",
    ),
    function(Side::Top, "param", (1, 2), "Declares a parameter."),
    function(
        Side::Top,
        "target",
        (1, 1),
        "Declares the target by a predicate.",
    ),
    function(Side::Top, "also", (2, 2), "Declares a further node set."),
    function(
        Side::Top,
        "batch",
        (1, 1),
        "Targets at a time: a number or a percentage.",
    ),
    function(Side::Top, "max_failures", (1, 2), "The failure budget."),
    function(
        Side::Top,
        "timeout",
        (1, 1),
        "How long a step may take on a node.",
    ),
    function(
        Side::Top,
        "retry",
        (1, 1),
        "How often a failed step is tried again on a node.",
    ),
    function(
        Side::Top,
        "confirm",
        (0, 0),
        "A person has to see the plan first.",
    ),
    function(
        Side::Top,
        "approvals",
        (1, 1),
        "How many others have to agree.",
    ),
    function(
        Side::Top,
        "lock",
        (1, 1),
        "One run at a time holds the lock.",
    ),
    function(
        Side::Top,
        "window",
        (1, 1),
        "Minutes in which it may be started, as in cron, in UTC.",
    ),
    function(
        Side::Top,
        "idempotent",
        (1, 1),
        "The function may be executed again when nobody knows whether it was.",
    ),
    function(Side::Top, "allow_check", (0, 0), "A dry run is meaningful."),
];

/// What `main` may call.
pub const MAIN: &[Entry] = &[
    function(Side::Main, "targets", (0, 0), "The target's nodes."),
    function(Side::Main, "nodes", (1, 1), "The nodes of a declared set."),
    function(
        Side::Main,
        "on",
        (2, 4),
        "Runs a function on nodes; ends the run when the budget is used up.",
    ),
    function(
        Side::Main,
        "try_on",
        (2, 4),
        "Runs a function on nodes; goes on with those that are well.",
    ),
    function(
        Side::Main,
        "parallel",
        (1, 1),
        "Runs several steps at once.",
    ),
    function(
        Side::Main,
        "step",
        (2, 4),
        "A step for `parallel`; it may have an `undo` of its own.",
    ),
    function(Side::Main, "now", (0, 0), "The time, RFC 3339."),
    function(
        Side::Main,
        "random",
        (2, 2),
        "A whole number from the first to the second.",
    ),
    function(
        Side::Main,
        "ask",
        (1, 2),
        "Asks a person, and waits for the answer.",
    ),
    function(Side::Main, "abort", (1, 1), "Ends the run as failed."),
    function(
        Side::Main,
        "run_scenario",
        (1, 2),
        "Runs another scenario as the same principal.",
    ),
    method(
        Side::Main,
        "where",
        (1, 1),
        "Those nodes for which a predicate holds.",
    ),
    method(Side::Main, "batches", (1, 2), "Splits nodes into batches."),
    method(Side::Main, "limit", (1, 1), "The first so many nodes."),
    method(
        Side::Main,
        "undo",
        (1, 1),
        "What takes the step back when the run fails.",
    ),
    method(Side::Main, "plus", (1, 1), "These nodes and those."),
    method(Side::Main, "minus", (1, 1), "These nodes but for those."),
    method(Side::Main, "is_empty", (0, 0), "Whether there is no node."),
    property(Side::Main, "names", "The names of the nodes."),
    property(Side::Main, "count", "How many nodes."),
    property(
        Side::Main,
        "ok",
        "Whether the step succeeded on every node.",
    ),
    property(
        Side::Main,
        "failed",
        "The nodes on which the step did not succeed.",
    ),
    property(Side::Main, "succeeded", "The nodes on which it did."),
    property(Side::Main, "values", "What the function returned, by node."),
    function(Side::Both, "sleep", (1, 1), "Waits."),
    function(Side::Both, "log", (1, 1), "Adds a line to the run's log."),
    function(Side::Both, "emit", (1, 2), "Emits an event."),
];

/// What a function on a node may call.
pub const NODE: &[Entry] = &[
    function(
        Side::Node,
        "command",
        (1, 2),
        "Runs a program; gives `exit`, `stdout`, `stderr`.",
    ),
    function(
        Side::Node,
        "shell",
        (1, 2),
        "Runs a line of shell; gives `exit`, `stdout`, `stderr`.",
    ),
    function(
        Side::Node,
        "file",
        (1, 1),
        "A file or directory, by its absolute path.",
    ),
    function(
        Side::Node,
        "template",
        (2, 2),
        "The text of a filled template.",
    ),
    function(
        Side::Node,
        "package",
        (1, 2),
        "A package of the distribution.",
    ),
    function(Side::Node, "service", (1, 1), "A service."),
    function(Side::Node, "user", (1, 1), "A user account."),
    function(Side::Node, "http", (1, 2), "An HTTP address."),
    function(Side::Node, "fact", (1, 1), "A fact of this node."),
    function(
        Side::Node,
        "node",
        (0, 0),
        "This node: `name`, `roles`, `labels`.",
    ),
    function(Side::Node, "reboot", (0, 0), "Restarts the machine."),
    function(
        Side::Node,
        "puppet_apply",
        (1, 1),
        "Applies a Puppet manifest.",
    ),
    function(Side::Node, "puppet_agent", (0, 0), "Runs the Puppet agent."),
    method(Side::Node, "content", (1, 2), "The file has this content."),
    method(
        Side::Node,
        "template",
        (2, 3),
        "The file is this template, filled.",
    ),
    method(Side::Node, "line", (1, 2), "The file has this line."),
    method(
        Side::Node,
        "mode",
        (1, 1),
        "The file has these permission bits.",
    ),
    method(
        Side::Node,
        "owner",
        (1, 1),
        "The file has this owner, and group after a colon.",
    ),
    method(Side::Node, "directory", (0, 1), "It is a directory."),
    method(Side::Node, "absent", (0, 0), "It is not there."),
    method(
        Side::Node,
        "installed",
        (0, 0),
        "Some version of the package is installed.",
    ),
    method(
        Side::Node,
        "version",
        (1, 1),
        "This version of the package is installed.",
    ),
    method(
        Side::Node,
        "latest",
        (0, 0),
        "The newest version of the package is installed.",
    ),
    method(Side::Node, "running", (0, 0), "The service runs."),
    method(Side::Node, "stopped", (0, 0), "The service does not run."),
    method(Side::Node, "restarted", (0, 0), "The service is restarted."),
    method(
        Side::Node,
        "reloaded",
        (0, 0),
        "The service reads its configuration anew.",
    ),
    method(
        Side::Node,
        "enabled",
        (0, 0),
        "The service starts with the machine.",
    ),
    method(
        Side::Node,
        "disabled",
        (0, 0),
        "The service does not start with the machine.",
    ),
    method(Side::Node, "present", (0, 1), "The user is there."),
    method(Side::Node, "get", (0, 0), "The answer to GET."),
    method(Side::Node, "post", (1, 1), "The answer to POST."),
    method(
        Side::Node,
        "until",
        (1, 2),
        "Asks until the answer has this status.",
    ),
    property(
        Side::Node,
        "changed",
        "Whether something changed, or would.",
    ),
];

/// What a test may call.
pub const TEST: &[Entry] = &[
    function(
        Side::Test,
        "fake",
        (1, 2),
        "Adds a node to the test: `#{ roles: [\"web\"], labels: #{ zone: \"gva2\" }, facts: #{}, down: false }`.",
    ),
    function(
        Side::Test,
        "reply",
        (3, 3),
        "What nodes answer: which nodes, what they are told, and `#{ fails: \"text\" }` or parts of the answer such as `#{ exit: 2, stdout: \"x\" }`. `*` stands for anything; the newest that fits counts.",
    ),
    function(
        Side::Test,
        "answer",
        (2, 2),
        "What a person answers to a question; `*` stands for anything.",
    ),
    function(
        Side::Test,
        "play",
        (0, 2),
        "Runs the scenario with parameters; `#{ on: \"role=web\" }` gives it targets, `#{ dry_run: true }` changes nothing.",
    ),
    function(
        Side::Test,
        "assert",
        (1, 2),
        "Ends the test unless it holds; with what is wrong then.",
    ),
    function(
        Side::Test,
        "assert_eq",
        (2, 2),
        "Ends the test unless the two are equal.",
    ),
    method(
        Side::Test,
        "did",
        (1, 2),
        "What a node was told, in order, as texts such as `package webapp version 1.4.2`; with a second text whether any of the nodes was told that, with `*` for anything.",
    ),
    property(Side::Test, "ok", "Whether the run succeeded."),
    property(Side::Test, "error", "Why it did not; else an empty text."),
    property(Side::Test, "value", "What `main` returned."),
    property(
        Side::Test,
        "steps",
        "Its steps in order, each `#{ function, nodes, failed, skipped, reasons }`.",
    ),
    property(
        Side::Test,
        "undone",
        "The steps that took others back, in order.",
    ),
    property(Side::Test, "logs", "The lines of its log."),
    property(
        Side::Test,
        "events",
        "Its events, each `#{ kind, fields }`.",
    ),
    property(Side::Test, "asked", "The questions that it asked."),
];

/// The entry of this name and form that may be called on a side.
pub fn find(name: &str, form: Form) -> impl Iterator<Item = &'static Entry> {
    all().filter(move |entry| entry.form == form && entry.name == name)
}

/// All of them.
pub fn all() -> impl Iterator<Item = &'static Entry> {
    TOP.iter().chain(MAIN).chain(NODE).chain(TEST)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use rhai::Engine;

    use super::*;
    use crate::engine::{Limits, engine};

    /// What an engine has beyond the language: name and number of arguments,
    /// a method's own value counted.
    fn added(register: impl FnOnce(&mut Engine)) -> BTreeSet<(String, usize)> {
        let functions = |engine: &Engine| -> BTreeMap<(String, usize), usize> {
            let mut all = BTreeMap::new();
            let found = engine.collect_fn_metadata(
                None,
                |info| Some((info.metadata.name.to_string(), info.metadata.num_params)),
                true,
            );
            for key in found {
                *all.entry(key).or_default() += 1;
            }
            all
        };
        let plain = functions(&engine(Limits::MAIN));
        let mut with = engine(Limits::MAIN);
        register(&mut with);
        functions(&with)
            .into_iter()
            .filter(|(key, count)| plain.get(key).is_none_or(|had| had < count))
            .map(|(key, _)| key)
            .collect()
    }

    /// What the catalogue says that an engine has.
    fn said(sides: &[Side]) -> BTreeSet<(String, usize)> {
        all()
            .filter(|entry| sides.contains(&entry.side))
            .flat_map(|entry| {
                let (least, most) = entry.args;
                (least..=most).map(move |count| match entry.form {
                    Form::Function => (entry.name.to_owned(), count),
                    Form::Method => (entry.name.to_owned(), count + 1),
                    Form::Property => (format!("get${}", entry.name), 1),
                })
            })
            .collect()
    }

    #[test]
    fn the_engines_have_what_is_said_and_nothing_else() {
        // How a value is shown, and `result["web-01"]`.
        let silent = |(name, _): &(String, usize)| {
            !matches!(name.as_str(), "to_string" | "to_debug" | "index$get$")
        };
        for (register, sides) in [
            (
                crate::durable::host::register as fn(&mut Engine),
                [Side::Main, Side::Both],
            ),
            (crate::node::resources::register, [Side::Node, Side::Both]),
        ] {
            let found: BTreeSet<_> = added(register).into_iter().filter(silent).collect();
            assert_eq!(found, said(&sides));
        }
        let tests: BTreeSet<_> = added(crate::trial::bench::register).into_iter().collect();
        assert_eq!(tests, said(&[Side::Test]));
        let top: BTreeSet<_> = added(|engine| {
            crate::manifest::register(engine);
        });
        assert_eq!(top, said(&[Side::Top]));
        let names: BTreeSet<&str> = TOP.iter().map(|entry| entry.name).collect();
        assert_eq!(names.len(), TOP.len());
    }
}
