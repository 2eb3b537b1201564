//! What a function can come to, by its text alone: which capabilities it would
//! ask a node for. So a node that does not grant one of them says so before
//! anything has happened.

use std::collections::{BTreeMap, BTreeSet};

use rhai::{AST, ASTNode, Expr, FnPtr};

use crate::check::{call, walk};

/// Capabilities by name.
pub type Capabilities = BTreeSet<&'static str>;

/// Words of the language, and what they ask for. A test holds it against the
/// catalogue.
const ASKING: [(&str, &str); 10] = [
    ("command", "command"),
    ("shell", "shell"),
    ("file", "file"),
    ("package", "package"),
    ("service", "service"),
    ("user", "user"),
    ("http", "http"),
    ("puppet_apply", "puppet"),
    ("puppet_agent", "puppet"),
    ("reboot", "reboot"),
];

/// What a word asks a node for.
fn asked_by(word: &str) -> Option<&'static str> {
    if word.starts_with("vm::") {
        return Some("vm");
    }
    if word.starts_with("firewall::") {
        return Some("firewall");
    }
    let found = ASKING.iter().find(|(asking, _)| *asking == word);
    found.map(|(_, capability)| *capability)
}

/// What each function of a script can come to, through all functions that it
/// calls. A function that is called by a name which is only known when it runs
/// can be any of the script's.
pub(super) fn needs(ast: &AST) -> BTreeMap<String, Capabilities> {
    let own: BTreeSet<&str> = ast.iter_functions().map(|f| f.name).collect();
    let mut asks = BTreeMap::<String, Capabilities>::new();
    let mut calls = BTreeMap::<String, BTreeSet<String>>::new();
    for function in ast.iter_fn_def() {
        let name = function.name.to_string();
        let asked = asks.entry(name.clone()).or_default();
        let called = calls.entry(name).or_default();
        walk(ast, function, &mut |node| {
            if let ASTNode::Expr(Expr::DynamicConstant(value, _)) = node
                && let Some(closure) = value.read_lock::<FnPtr>()
            {
                called.insert(closure.fn_name().to_owned());
            }
            let Some(call) = call(node) else { return };
            if own.contains(&*call.name) {
                called.insert(call.name.to_string());
            } else if call.name == "Fn" {
                match call.args.first() {
                    Some(Expr::StringConstant(name, _)) => {
                        called.insert(name.to_string());
                    }
                    _ => called.extend(own.iter().map(|name| (*name).to_owned())),
                }
            } else {
                asked.extend(asked_by(&call.name));
            }
        });
    }
    let reached = |root: &str| {
        let mut seen = BTreeSet::new();
        let mut open = vec![root];
        while let Some(name) = open.pop() {
            if seen.insert(name) {
                open.extend(calls.get(name).into_iter().flatten().map(String::as_str));
            }
        }
        seen.into_iter()
            .filter_map(|name| asks.get(name))
            .flatten()
            .copied()
            .collect()
    };
    own.iter()
        .map(|name| ((*name).to_owned(), reached(name)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::{self, Form, Side};
    use crate::engine::{Limits, engine, parse};

    fn of(script: &str, function: &str) -> Vec<&'static str> {
        let engine = engine(Limits::NODE);
        let ast = parse(&engine, "x.rhai", script).expect("it is read");
        needs(&ast)[function].iter().copied().collect()
    }

    #[test]
    fn it_is_what_the_function_and_those_it_calls_ask_for() {
        let script = r#"
fn run(p) { if p.x { deep(p); } [1].map(|n| shell(`echo ${n}`)); file("/x").absent(); }
fn deep(p) { package("x").latest(); deeper(p) }
fn deeper(p) { deep(p); reboot(); }
fn none(p) { log("x"); template("a", p); sleep("1s"); }
fn by_name(p) { let f = Fn("none"); f.call(p); }
fn by_any(p) { let f = Fn(p.name); f.call(p); }
fn machine(p) { for one in vm::list() { vm::stop(one.id); } }
fn doors(p) { firewall::host(#{ rules: [] }); }
"#;
        assert_eq!(of(script, "run"), ["file", "package", "reboot", "shell"]);
        assert_eq!(of(script, "deeper"), ["package", "reboot"]);
        assert_eq!(of(script, "none"), Vec::<&str>::new());
        assert_eq!(of(script, "by_name"), Vec::<&str>::new());
        assert_eq!(
            of(script, "by_any"),
            ["file", "firewall", "package", "reboot", "shell", "vm"]
        );
        assert_eq!(of(script, "machine"), ["vm"]);
        assert_eq!(of(script, "doors"), ["firewall"]);
        // A function of the script's own is its own, whatever it is called.
        assert_eq!(
            of("fn run(p) { user(p) } fn user(p) { 1 }", "run"),
            Vec::<&str>::new()
        );
    }

    #[test]
    fn every_word_that_asks_for_something_is_known() {
        // Those that ask the node for nothing that it has to grant.
        let free = ["template", "fact", "node", "sleep", "log", "emit"];
        for entry in catalogue::all() {
            if entry.form != Form::Function || !matches!(entry.side, Side::Node | Side::Both) {
                continue;
            }
            let asks = asked_by(entry.name).is_some();
            assert!(asks != free.contains(&entry.name), "{}", entry.name);
        }
    }
}
