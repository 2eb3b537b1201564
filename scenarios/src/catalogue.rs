//! Every function that muster adds to the language: what it is called, where
//! it may be called, with how many arguments. The check reads it, the
//! reference is written from it, and tests hold the engines to it.

mod told;

pub use told::TOLD;

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
    /// The name with what it takes, for people; what may be left out has a
    /// `?` behind it.
    pub usage: &'static str,
    /// How it is called.
    pub form: Form,
    /// Where.
    pub side: Side,
    /// Fewest and most arguments, a method's own value not counted.
    pub args: (usize, usize),
    /// One sentence for people.
    pub help: &'static str,
}

/// How many arguments a usage shows: all, and those that may be left out.
const fn arguments(usage: &str) -> (usize, usize) {
    let bytes = usage.as_bytes();
    let (mut at, mut commas, mut optional) = (0, 0, 0);
    while at < bytes.len() {
        match bytes[at] {
            b',' => commas += 1,
            b'?' => optional += 1,
            _ => {}
        }
        at += 1;
    }
    let none = bytes[bytes.len() - 2] == b'(';
    let most = if none { 0 } else { commas + 1 };
    (most - optional, most)
}

/// What stands before the parenthesis.
const fn name(usage: &'static str) -> &'static str {
    let bytes = usage.as_bytes();
    let mut end = 0;
    while end < bytes.len() && bytes[end] != b'(' {
        end += 1;
    }
    usage.split_at(end).0
}

const fn called(form: Form, side: Side, usage: &'static str, help: &'static str) -> Entry {
    Entry {
        name: name(usage),
        usage,
        form,
        side,
        args: arguments(usage),
        help,
    }
}

const fn function(side: Side, usage: &'static str, help: &'static str) -> Entry {
    called(Form::Function, side, usage, help)
}

const fn method(side: Side, usage: &'static str, help: &'static str) -> Entry {
    called(Form::Method, side, usage, help)
}

const fn property(side: Side, name: &'static str, help: &'static str) -> Entry {
    Entry {
        name,
        usage: name,
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
        "scenario(text)",
        "Says what the scenario is for.",
    ),
    function(
        Side::Top,
        "param(name, options?)",
        "Declares a parameter, with its rules.",
    ),
    function(
        Side::Top,
        "target(predicate)",
        "Declares the target by a predicate.",
    ),
    function(
        Side::Top,
        "also(name, predicate)",
        "Declares a further node set.",
    ),
    function(
        Side::Top,
        "batch(size)",
        "Targets at a time: a number or a percentage.",
    ),
    function(
        Side::Top,
        "max_failures(most, options?)",
        "The failure budget.",
    ),
    function(
        Side::Top,
        "timeout(duration)",
        "How long a step may take on a node.",
    ),
    function(
        Side::Top,
        "retry(times)",
        "How often a failed step is tried again on a node.",
    ),
    function(
        Side::Top,
        "confirm()",
        "A person has to see the plan first.",
    ),
    function(
        Side::Top,
        "approvals(count)",
        "How many others have to agree.",
    ),
    function(Side::Top, "lock(name)", "One run at a time holds the lock."),
    function(
        Side::Top,
        "window(cron)",
        "Minutes in which it may be started, as in cron, in UTC.",
    ),
    function(
        Side::Top,
        "idempotent(function)",
        "The function may be executed again when nobody knows whether it was.",
    ),
    function(Side::Top, "allow_check()", "A dry run is meaningful."),
];

/// What `main` may call.
pub const MAIN: &[Entry] = &[
    function(Side::Main, "targets()", "The target's nodes."),
    function(Side::Main, "nodes(set)", "The nodes of a declared set."),
    function(
        Side::Main,
        "on(nodes, function, params?, options?)",
        "Runs a function on nodes; ends the run when the budget is used up.",
    ),
    function(
        Side::Main,
        "try_on(nodes, function, params?, options?)",
        "Runs a function on nodes; goes on with those that are well.",
    ),
    function(Side::Main, "parallel(steps)", "Runs several steps at once."),
    function(
        Side::Main,
        "step(nodes, function, params?, options?)",
        "A step for `parallel`; it may have an `undo` of its own.",
    ),
    function(Side::Main, "now()", "The time, RFC 3339."),
    function(
        Side::Main,
        "random(least, most)",
        "A whole number from the first to the second.",
    ),
    function(
        Side::Main,
        "ask(question, answers?)",
        "Asks a person, and waits for the answer.",
    ),
    function(Side::Main, "abort(text)", "Ends the run as failed."),
    function(
        Side::Main,
        "run_scenario(name, params?, options?)",
        "Runs another scenario as the same principal; `on` says on which nodes.",
    ),
    function(
        Side::Main,
        "machine(wanted)",
        "Makes a machine, `#{ name, image, cpus, memory, … }`, and waits until it is up; it goes again when the run fails.",
    ),
    method(
        Side::Main,
        "where(predicate)",
        "Those nodes for which a predicate holds.",
    ),
    method(
        Side::Main,
        "batches(size, options?)",
        "Splits nodes into batches.",
    ),
    method(Side::Main, "limit(count)", "The first so many nodes."),
    method(
        Side::Main,
        "undo(function)",
        "What takes the step back when the run fails.",
    ),
    method(Side::Main, "plus(nodes)", "These nodes and those."),
    method(Side::Main, "minus(nodes)", "These nodes but for those."),
    method(Side::Main, "is_empty()", "Whether there is no node."),
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
    function(
        Side::Main,
        "contact(node, within)",
        "Waits until a node of that name is connected; fails when it is not by then.",
    ),
    function(Side::Both, "sleep(duration)", "Waits."),
    function(Side::Both, "log(text)", "Adds a line to the run's log."),
    function(Side::Both, "emit(kind, fields?)", "Emits an event."),
];

/// What a function on a node may call.
pub const NODE: &[Entry] = &[
    function(
        Side::Node,
        "command(words, options?)",
        "Runs a program, a list of words; gives `#{ exit, stdout, stderr }`.",
    ),
    function(
        Side::Node,
        "shell(line, options?)",
        "Runs a line of shell; gives `#{ exit, stdout, stderr }`.",
    ),
    function(
        Side::Node,
        "file(path)",
        "A file or directory, by its absolute path.",
    ),
    function(
        Side::Node,
        "template(path, values)",
        "The text of a filled template.",
    ),
    function(
        Side::Node,
        "package(name, options?)",
        "A package of the distribution.",
    ),
    function(Side::Node, "service(name)", "A service."),
    function(Side::Node, "user(name)", "A user account."),
    function(Side::Node, "http(url, options?)", "An HTTP address."),
    function(Side::Node, "fact(path)", "A fact of this node."),
    function(
        Side::Node,
        "node()",
        "This node: `name`, `roles`, `labels`.",
    ),
    function(Side::Node, "reboot()", "Restarts the machine."),
    function(
        Side::Node,
        "puppet_apply(manifest)",
        "Applies a Puppet manifest.",
    ),
    function(Side::Node, "puppet_agent()", "Runs the Puppet agent."),
    function(
        Side::Node,
        "vm::image(image)",
        "The disk image, a map as a machine has it, is on this hypervisor, whole and checked.",
    ),
    function(
        Side::Node,
        "vm::create(machine)",
        "The machine, a map as the broker makes it, is on this hypervisor and runs.",
    ),
    function(
        Side::Node,
        "vm::start(id)",
        "The machine of this UUID runs.",
    ),
    function(
        Side::Node,
        "vm::stop(id, options?)",
        "It does not run: it is asked first, then forced.",
    ),
    function(
        Side::Node,
        "vm::reboot(id, options?)",
        "It is started anew: it is asked first, then forced.",
    ),
    function(
        Side::Node,
        "vm::destroy(id, options?)",
        "It is not there; its disk is kept unless it is to be purged.",
    ),
    function(
        Side::Node,
        "vm::resize(id, options)",
        "It has so many processors, so much memory, so large a disk; the disk only grows, the rest holds from its next start.",
    ),
    function(
        Side::Node,
        "vm::snapshot(id, name)",
        "There is a snapshot of its disk of that name.",
    ),
    function(
        Side::Node,
        "vm::restore(id, name)",
        "Its disk is as in that snapshot.",
    ),
    function(
        Side::Node,
        "vm::unseed(id)",
        "Its seed holds no invite any more.",
    ),
    function(
        Side::Node,
        "vm::list()",
        "All domains of this hypervisor, each `#{ id, name, state, cpus, memory, autostart, owner }`.",
    ),
    function(
        Side::Node,
        "vm::info(id)",
        "The same of one machine, with `disk`, `disk_used`, `snapshots`.",
    ),
    function(
        Side::Node,
        "vm::console_log(id, options?)",
        "The last lines that it wrote to its console, as one text.",
    ),
    function(
        Side::Node,
        "vm::guest_exec(id, words, options?)",
        "Runs a program in it, by the QEMU guest agent; gives `#{ exit, signal, stdout, stderr, truncated }`.",
    ),
    function(
        Side::Node,
        "vm::guest_ping(id)",
        "Whether the QEMU guest agent in it answers.",
    ),
    function(
        Side::Node,
        "firewall::host(rules)",
        "The node's own firewall has these rules; they stay when the broker confirms them over a new connection and every probe passes, else the old ones are back.",
    ),
    function(
        Side::Node,
        "firewall::show()",
        "The rules in force: `#{ change, rules, text }`.",
    ),
    function(
        Side::Node,
        "firewall::history()",
        "The changes of the node's firewall, newest first, each `#{ change, at, difference, ended }`.",
    ),
    function(
        Side::Node,
        "firewall::diff(run?)",
        "One of them: that of this run, or the newest.",
    ),
    function(
        Side::Node,
        "firewall::rollback()",
        "The rules before the present ones are in force; confirmed as every change.",
    ),
    method(
        Side::Node,
        "content(text, options?)",
        "The file has this content.",
    ),
    method(
        Side::Node,
        "template(path, values, options?)",
        "The file is this template, filled.",
    ),
    method(
        Side::Node,
        "line(text, options?)",
        "The file has this line.",
    ),
    method(
        Side::Node,
        "no_line(text, options?)",
        "The file has no such line; one that is not there has none.",
    ),
    method(
        Side::Node,
        "restore(options?)",
        "The file is as its newest backup, which stays; an error if there is none.",
    ),
    method(
        Side::Node,
        "mode(octal)",
        "The file has these permission bits.",
    ),
    method(
        Side::Node,
        "owner(name)",
        "The file has this owner, and group after a colon.",
    ),
    method(Side::Node, "directory(options?)", "It is a directory."),
    method(Side::Node, "absent()", "It is not there."),
    method(
        Side::Node,
        "installed()",
        "Some version of the package is installed.",
    ),
    method(
        Side::Node,
        "version(text)",
        "This version of the package is installed.",
    ),
    method(
        Side::Node,
        "latest()",
        "The newest version of the package is installed.",
    ),
    method(Side::Node, "running()", "The service runs."),
    method(Side::Node, "stopped()", "The service does not run."),
    method(Side::Node, "restarted()", "The service is restarted."),
    method(
        Side::Node,
        "reloaded()",
        "The service reads its configuration anew.",
    ),
    method(
        Side::Node,
        "enabled()",
        "The service starts with the machine.",
    ),
    method(
        Side::Node,
        "disabled()",
        "The service does not start with the machine.",
    ),
    method(Side::Node, "present(options?)", "The user is there."),
    method(
        Side::Node,
        "get()",
        "Asks with GET; gives `#{ status, headers, body, json }`.",
    ),
    method(
        Side::Node,
        "post(body)",
        "Asks with POST, a text as it is, anything else as JSON; gives the same.",
    ),
    method(
        Side::Node,
        "until(status, options?)",
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
        "fake(name, options?)",
        "Adds a node to the test: `#{ roles: [\"web\"], labels: #{ zone: \"gva2\" }, facts: #{}, down: false }`.",
    ),
    function(
        Side::Test,
        "reply(nodes, what, answer)",
        "What nodes answer: which nodes, what they are told, and `#{ fails: \"text\" }` or parts of the answer such as `#{ exit: 2, stdout: \"x\" }`. `*` stands for anything; the newest that fits counts.",
    ),
    function(
        Side::Test,
        "answer(question, text)",
        "What a person answers to a question; `*` stands for anything.",
    ),
    function(
        Side::Test,
        "play(params?, options?)",
        "Runs the scenario with parameters; `#{ on: \"role=web\" }` gives it targets, `#{ dry_run: true }` changes nothing.",
    ),
    function(
        Side::Test,
        "assert(holds, text?)",
        "Ends the test unless it holds; with what is wrong then.",
    ),
    function(
        Side::Test,
        "assert_eq(left, right)",
        "Ends the test unless the two are equal.",
    ),
    method(
        Side::Test,
        "did(node, what?)",
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

/// The reference for people: a table for each side, in Markdown.
#[must_use]
pub fn reference() -> String {
    let mut out = String::new();
    for (heading, entries) in [
        ("At the top: the manifest", TOP),
        ("In `main`, which runs in the broker", MAIN),
        ("In functions that run on nodes", NODE),
        ("In tests", TEST),
    ] {
        out.push_str(&format!("### {heading}\n\n| written | what |\n|---|---|\n"));
        for entry in entries {
            let dot = match entry.form {
                Form::Function => "",
                Form::Method | Form::Property => ".",
            };
            let both = match entry.side {
                Side::Both => " Also on nodes.",
                _ => "",
            };
            out.push_str(&format!(
                "| `{dot}{}` | {}{both} |\n",
                entry.usage, entry.help
            ));
        }
        out.push('\n');
    }
    out.push_str(
        "### What nodes are told, in tests\n\nThe texts that `did` gives and that `reply` is held against. Of \
         a name or a wish that is longer than 120 characters there are so many, and `…`. `log`, `emit` and `sleep` \
         are not among them.\n\n| in a function | the text |\n|---|---|\n",
    );
    for (call, title) in TOLD {
        // A bar would end the cell.
        let (call, title) = (call.replace('|', "\\|"), title.replace('|', "\\|"));
        out.push_str(&format!("| `{call}` | `{title}` |\n"));
    }
    out
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
                |info| {
                    let name = match info.namespace.as_str() {
                        "" => info.metadata.name.to_string(),
                        module => format!("{module}::{}", info.metadata.name),
                    };
                    Some((name, info.metadata.num_params))
                },
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
