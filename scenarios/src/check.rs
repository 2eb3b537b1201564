//! What can be said of a scenario without running it: every mistake at once,
//! each with its place.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use muster_protocol::predicate::Predicate;
use rhai::{AST, ASTNode, Engine, Expr, FnCallExpr, FnPtr, Position, ScriptFuncDef, Stmt};

use crate::bundle::{Bundle, BundlePath};
use crate::catalogue::{self, Entry, Form, Side};
use crate::engine::{self, Limits, engine, parse};
use crate::fault::{Fault, Place, nearest};
use crate::manifest::{self, MAIN, Manifest, RUN};
use crate::node::broken_template;
use crate::trial;

/// Functions that take the name of a function of the script, and which
/// argument it is.
const NAMING: [(&str, usize); 3] = [("on", 1), ("try_on", 1), ("step", 1)];

/// Functions that the engine itself is made of, and lists nowhere. `curry` is
/// in every closure that uses a variable from around it.
const WOVEN_IN: [&str; 5] = ["Fn", "call", "curry", "is_shared", "type_of"];

/// Checks a script. `file` is what it is called in messages.
///
/// # Errors
/// Every fault that was found, in the order of the text; at least one.
pub fn check(file: &str, text: &str) -> Result<Manifest, Vec<Fault>> {
    engine::apart(Limits::MANIFEST, None, || check_here(file, text, None))
        .unwrap_or_else(|broken| Err(vec![Fault::new(file, text, None, broken)]))
}

/// Checks a whole bundle: its script, and that the templates which it names
/// are there and can be read.
///
/// # Errors
/// As [`check`].
pub fn check_bundle(file: &str, bundle: &Bundle) -> Result<Manifest, Vec<Fault>> {
    engine::apart(Limits::MANIFEST, None, || {
        check_here(file, bundle.script(), Some(bundle.files()))
    })
    .unwrap_or_else(|broken| Err(vec![Fault::new(file, bundle.script(), None, broken)]))
}

fn check_here(file: &str, text: &str, files: Option<&Files>) -> Result<Manifest, Vec<Fault>> {
    let manifest = manifest::read_here(file, text);
    let plain = engine(Limits::MANIFEST);
    let Ok(ast) = parse(&plain, file, text) else {
        // The manifest's reader has said so.
        return manifest;
    };
    let mut checker = Checker::new(file, text, &plain, &ast, manifest.as_ref().ok());
    checker.files = files;
    checker.functions();
    let mut faults = checker.faults;
    match manifest {
        Ok(manifest) if faults.is_empty() => Ok(manifest),
        Ok(_) => {
            faults.sort_by_key(|fault| fault.at);
            Err(faults)
        }
        Err(mut all) => {
            all.append(&mut faults);
            all.sort_by_key(|fault| fault.at);
            all.dedup();
            Err(all)
        }
    }
}

/// What lies beside a script.
type Files = BTreeMap<BundlePath, Vec<u8>>;

/// One call in a script.
#[derive(Clone)]
pub(crate) struct Call<'a> {
    /// With what stands in front of it: `vm::create`.
    pub(crate) name: Cow<'a, str>,
    form: Form,
    pub(crate) args: &'a [Expr],
    at: Position,
}

struct Checker<'a> {
    file: &'a str,
    text: &'a str,
    manifest: Option<&'a Manifest>,
    ast: &'a AST,
    /// What lies beside the script, if that is known.
    files: Option<&'a Files>,
    /// The script's own functions, with how many parameters each takes.
    own: BTreeMap<String, BTreeSet<usize>>,
    /// The language's own functions.
    language: BTreeMap<String, BTreeSet<usize>>,
    faults: Vec<Fault>,
}

/// Where a function of the script runs.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Runs {
    main: bool,
    node: bool,
    test: bool,
}

impl<'a> Checker<'a> {
    fn new(
        file: &'a str,
        text: &'a str,
        plain: &Engine,
        ast: &'a AST,
        manifest: Option<&'a Manifest>,
    ) -> Self {
        let mut own = BTreeMap::<String, BTreeSet<usize>>::new();
        for function in ast.iter_functions() {
            own.entry(function.name.to_owned())
                .or_default()
                .insert(function.params.len());
        }
        let mut language = BTreeMap::<String, BTreeSet<usize>>::new();
        let found = plain.collect_fn_metadata(
            None,
            |info| Some((info.metadata.name.to_string(), info.metadata.num_params)),
            true,
        );
        for (name, params) in found {
            language.entry(name).or_default().insert(params);
        }
        Self {
            file,
            text,
            manifest,
            ast,
            files: None,
            own,
            language,
            faults: Vec::new(),
        }
    }

    fn fault(&self, at: Position, message: impl Into<String>) -> Fault {
        Fault::new(self.file, self.text, Place::of(at), message)
    }

    /// Everything inside of functions; the top is the manifest's.
    fn functions(&mut self) {
        let runs = self.sides();
        for test in self.ast.iter_fn_def() {
            if test.name.starts_with(trial::PREFIX) && !test.params.is_empty() {
                let message = format!("`{}` is a test, and takes no parameters", test.name);
                let at = Position::NONE;
                self.faults.push(self.fault(at, message));
            }
        }
        for function in self.ast.iter_fn_def() {
            let name = function.name.as_str();
            let side = runs.get(name).copied().unwrap_or_default();
            walk(self.ast, function, &mut |node| {
                if let Some(call) = call(node) {
                    self.call(&call, name, side);
                }
                if matches!(name, MAIN | RUN)
                    && let Some(params) = function.params.first()
                    && let ASTNode::Expr(Expr::Dot(pair, ..)) = node
                {
                    self.parameter(&pair.lhs, &pair.rhs, params);
                }
            });
        }
    }

    /// Where each function runs: from `main`, and from what is named in `on`
    /// and its like, through calls of the script's own functions.
    fn sides(&self) -> BTreeMap<String, Runs> {
        let mut calls = BTreeMap::<String, BTreeSet<String>>::new();
        let mut on_nodes = BTreeSet::new();
        if !self.own.contains_key(MAIN) {
            on_nodes.insert(RUN.to_owned());
        }
        for definition in self.ast.iter_fn_def() {
            walk(self.ast, definition, &mut |node| {
                let Some(call) = call(node) else { return };
                if self.own.contains_key(&*call.name) {
                    let called = calls.entry(definition.name.to_string()).or_default();
                    called.insert(call.name.to_string());
                }
                if let Some((function, _)) = named(&call) {
                    on_nodes.insert(function.to_owned());
                }
            });
            // A closure runs where it is written.
            walk(self.ast, definition, &mut |node| {
                if let ASTNode::Expr(Expr::DynamicConstant(value, _)) = node
                    && let Some(closure) = value.read_lock::<FnPtr>()
                {
                    let called = calls.entry(definition.name.to_string()).or_default();
                    called.insert(closure.fn_name().to_owned());
                }
            });
        }
        let reach = |roots: BTreeSet<String>| {
            let mut seen = BTreeSet::new();
            let mut open: Vec<String> = roots.into_iter().collect();
            while let Some(name) = open.pop() {
                if seen.insert(name.clone()) {
                    open.extend(calls.get(&name).into_iter().flatten().cloned());
                }
            }
            seen
        };
        let tests = self
            .own
            .keys()
            .filter(|name| name.starts_with(trial::PREFIX));
        let test = reach(tests.cloned().collect());
        let main = reach(BTreeSet::from([MAIN.to_owned()]));
        let node = reach(on_nodes);
        self.own
            .keys()
            .map(|name| {
                let runs = Runs {
                    main: main.contains(name),
                    node: node.contains(name),
                    test: test.contains(name),
                };
                (name.clone(), runs)
            })
            .collect()
    }

    fn call(&mut self, call: &Call<'_>, inside: &str, runs: Runs) {
        if let Some((function, at)) = named(call) {
            self.named_function(call, function, at);
        } else if call.name == "undo" && call.form == Form::Method {
            let fault = self
                .fault(call.at, "`undo` takes the name of a function, written out")
                .hint("it must be known before the step begins: .undo(\"restore\")");
            self.faults.push(fault);
        }
        match (&*call.name, call.args.first()) {
            ("nodes", Some(Expr::StringConstant(set, at))) if call.form == Form::Function => {
                self.node_set(set, *at);
            }
            ("template", Some(Expr::StringConstant(path, at))) => self.template(path, *at),
            ("where", Some(Expr::StringConstant(text, at))) if call.form == Form::Method => {
                if let Err(error) = Predicate::parse(text) {
                    let fault = self.fault(*at, format!("in the predicate: {error}"));
                    self.faults.push(fault);
                }
            }
            _ => {}
        }
        self.exists(call, inside, runs);
    }

    /// Whether the function is there, takes so many arguments, and may be
    /// called where it is.
    fn exists(&mut self, call: &Call<'_>, inside: &str, runs: Runs) {
        // A method's own value is a parameter of what it calls.
        let given = call.args.len();
        let count = given + usize::from(call.form == Form::Method);
        if let Some(counts) = self.own.get(&*call.name) {
            // `value.own()` binds `this`, and counts no parameter for it.
            if counts.contains(&count) || counts.contains(&given) {
                return;
            }
            let takes: Vec<String> = counts.iter().map(ToString::to_string).collect();
            let message = arguments(&call.name, &takes.join(" or "), given);
            let fault = self.fault(call.at, message);
            self.faults.push(fault);
            return;
        }
        let entries: Vec<&Entry> = catalogue::find(&call.name, call.form)
            .filter(|entry| entry.side != Side::Top)
            .collect();
        if entries.is_empty() {
            self.language_function(call, count);
            return;
        }
        // The language may have it, too, for values of its own.
        let languages = self
            .language
            .get(&*call.name)
            .is_some_and(|counts| counts.contains(&count));
        let allowed = entries.iter().any(|entry| match entry.side {
            Side::Top => false,
            Side::Both => !runs.test,
            Side::Main => !runs.node && !runs.test,
            Side::Node => !runs.main && !runs.test,
            Side::Test => !runs.main && !runs.node,
        });
        if !allowed && !languages {
            let here = if runs.test {
                "is a test"
            } else if runs.node && entries[0].side != Side::Node {
                "runs on nodes"
            } else {
                "runs in the broker"
            };
            let there = match entries[0].side {
                Side::Test => "in a test",
                Side::Main => "in `main`",
                _ => "in a function that `on` sends to nodes",
            };
            let inside = if is_closure(inside) {
                "a closure".to_owned()
            } else {
                format!("`{inside}`")
            };
            let message = format!("`{}` cannot be called in {inside}, which {here}", call.name);
            let fault = self
                .fault(call.at, message)
                .hint(format!("call it {there}"));
            self.faults.push(fault);
            return;
        }
        let fits = entries
            .iter()
            .any(|entry| (entry.args.0..=entry.args.1).contains(&given));
        if !fits && !languages {
            let (least, most) = entries[0].args;
            let takes = if least == most {
                least.to_string()
            } else {
                format!("{least} to {most}")
            };
            let message = arguments(&call.name, &takes, given);
            let fault = self.fault(call.at, message);
            self.faults.push(fault);
        }
    }

    fn language_function(&mut self, call: &Call<'_>, count: usize) {
        if WOVEN_IN.contains(&&*call.name) {
            return;
        }
        match self.language.get(&*call.name) {
            Some(counts) if counts.contains(&count) => {}
            Some(_) => {
                let given = call.args.len();
                let many = if given == 1 { "argument" } else { "arguments" };
                let message = format!("`{}` does not take {given} {many}", call.name);
                let fault = self.fault(call.at, message);
                self.faults.push(fault);
            }
            None => {
                let what = match call.form {
                    Form::Method => "method",
                    Form::Function | Form::Property => "function",
                };
                let fault = self.fault(call.at, format!("unknown {what} `{}`", call.name));
                let known = catalogue::all()
                    .filter(|entry| entry.form == call.form && entry.side != Side::Top)
                    .map(|entry| entry.name)
                    .chain(self.own.keys().map(String::as_str));
                let near = nearest(&call.name, known).map(str::to_owned);
                // A word about machines or firewalls without what stands in
                // front of it.
                let whole = [engine::VM, engine::FIREWALL]
                    .map(|module| format!("{module}::{}", call.name))
                    .into_iter()
                    .find(|whole| catalogue::find(whole, call.form).next().is_some());
                let near = near.or(whole);
                self.faults.push(match near {
                    Some(near) => fault.hint(format!("did you mean `{near}`?")),
                    None => fault,
                });
            }
        }
    }

    /// The function that `on` names is there and takes the parameters' map.
    fn named_function(&mut self, call: &Call<'_>, function: &str, at: Position) {
        let verb = &call.name;
        let fault = match self.own.get(function) {
            Some(counts) if counts.contains(&1) => return,
            Some(_) => self
                .fault(
                    at,
                    format!("`{function}` is sent to nodes, and does not take one parameter"),
                )
                .hint(format!("it is given one map: fn {function}(p)")),
            None => {
                let name = muster_protocol::text::printable(function, 60);
                let message = format!(
                    "`{verb}` names a function `{name}`, which this scenario does not define"
                );
                let others: Vec<&str> = self
                    .own
                    .keys()
                    .map(String::as_str)
                    .filter(|name| *name != MAIN && !is_closure(name))
                    .collect();
                let hint = match nearest(function, others.iter().copied()) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None if others.is_empty() => "it defines none".to_owned(),
                    None => format!("there are: {}", others.join(", ")),
                };
                self.fault(at, message).hint(hint)
            }
        };
        self.faults.push(fault);
    }

    /// The template that is named is there and can be read.
    fn template(&mut self, path: &str, at: Position) {
        let Some(files) = self.files else { return };
        let found = files.iter().find(|(known, _)| known.as_str() == path);
        let fault = match found {
            None => {
                let path = muster_protocol::text::printable(path, 80);
                let fault = self.fault(at, format!("the scenario has no file `{path}`"));
                match nearest(&path, files.keys().map(BundlePath::as_str)) {
                    Some(near) => fault.hint(format!("did you mean `{near}`?")),
                    None => fault.hint(
                        "files lie beside the script or below it: name the directory that holds both",
                    ),
                }
            }
            Some((path, data)) => match broken_template(path, data) {
                Some(why) => self.fault(at, why),
                None => return,
            },
        };
        self.faults.push(fault);
    }

    fn node_set(&mut self, set: &str, at: Position) {
        let Some(manifest) = self.manifest else {
            return;
        };
        if manifest.sets().any(|(name, _)| name == set) {
            return;
        }
        let known: Vec<&str> = manifest.sets().map(|(name, _)| name).collect();
        let name = muster_protocol::text::printable(set, 60);
        let hint = match nearest(set, known.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("declare it: also(\"{name}\", \"role={name}\");"),
        };
        let fault = self
            .fault(at, format!("the scenario declares no node set `{name}`"))
            .hint(hint);
        self.faults.push(fault);
    }

    /// `p.name` in `main` or `run` is a declared parameter.
    fn parameter(&mut self, value: &Expr, property: &Expr, params: &str) {
        let Some(manifest) = self.manifest else {
            return;
        };
        let (Expr::Variable(variable, ..), Expr::Property(property, at)) = (value, first(property))
        else {
            return;
        };
        let name = property.2.as_str();
        if variable.1 != params || manifest.params.iter().any(|param| param.name == name) {
            return;
        }
        let known = || manifest.params.iter().map(|param| param.name.as_str());
        let hint = match nearest(name, known()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("declare it: param(\"{name}\", #{{ … }});"),
        };
        let fault = self
            .fault(*at, format!("the scenario declares no parameter `{name}`"))
            .hint(hint);
        self.faults.push(fault);
    }
}

/// That something is called with other arguments than it takes.
fn arguments(name: &str, takes: &str, given: usize) -> String {
    let many = if takes == "1" {
        "argument"
    } else {
        "arguments"
    };
    let are = if given == 1 { "is" } else { "are" };
    format!("`{name}` takes {takes} {many}, {given} {are} given")
}

/// Whether a function of the script is a closure, which has no name of its
/// own.
fn is_closure(name: &str) -> bool {
    name.contains('$')
}

/// Every node of a function's body.
pub(crate) fn walk(ast: &AST, function: &ScriptFuncDef, on_node: &mut dyn FnMut(&ASTNode<'_>)) {
    let mut only = ast.clone();
    only.clear_statements();
    only.retain_functions(|_, _, name, params| {
        name == function.name && params == function.params.len()
    });
    only.walk(&mut |path: &[ASTNode<'_>]| {
        path.last().inspect(|node| on_node(node));
        true
    });
}

/// The first link of a chain.
fn first(expr: &Expr) -> &Expr {
    match expr {
        Expr::Dot(pair, ..) | Expr::Index(pair, ..) => first(&pair.lhs),
        other => other,
    }
}

/// The call that a node is, unless it is an operator.
pub(crate) fn call<'a>(node: &ASTNode<'a>) -> Option<Call<'a>> {
    fn plain<'a>(call: &'a FnCallExpr, form: Form, at: Position) -> Option<Call<'a>> {
        (call.op_token.is_none()).then(|| Call {
            name: if call.namespace.is_empty() {
                Cow::Borrowed(call.name.as_str())
            } else {
                Cow::Owned(format!("{}::{}", call.namespace, call.name))
            },
            form,
            args: &call.args,
            at,
        })
    }
    match node {
        ASTNode::Stmt(Stmt::FnCall(call, at)) => plain(call, Form::Function, *at),
        ASTNode::Expr(Expr::FnCall(call, at)) => plain(call, Form::Function, *at),
        ASTNode::Expr(Expr::MethodCall(call, at)) => plain(call, Form::Method, *at),
        _ => None,
    }
}

/// The function of the script that a call names, if it is written out.
fn named<'a>(call: &Call<'a>) -> Option<(&'a str, Position)> {
    let index = match (call.form, &*call.name) {
        (Form::Function, name) => NAMING.iter().find(|(naming, _)| *naming == name)?.1,
        (Form::Method, "undo") => 0,
        _ => return None,
    };
    match call.args.get(index) {
        Some(Expr::StringConstant(function, at)) => Some((function.as_str(), *at)),
        _ => None,
    }
}
