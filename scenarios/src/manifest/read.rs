//! From a script to its manifest.

use std::collections::BTreeSet;

use rhai::{AST, Engine, EvalAltResult, Scope};

use super::declare::{Declared, Notes, register};
use super::{Function, MAIN, Manifest, RUN, Shape};
use crate::catalogue;
use crate::engine::{self, Limits, engine, parse};
use crate::fault::{Fault, Place, nearest};

/// Reads the manifest of a script. Only what stands at its top is executed,
/// with nothing but the functions of a manifest; none of the script's own
/// functions is called.
///
/// `file` is what the script is called in messages.
///
/// # Errors
/// Every fault that was found; at least one.
pub fn read(file: &str, text: &str) -> Result<Manifest, Vec<Fault>> {
    engine::apart(Limits::MANIFEST, None, || read_here(file, text))
        .unwrap_or_else(|broken| Err(vec![Fault::new(file, text, None, broken)]))
}

/// The same on this thread.
pub(crate) fn read_here(file: &str, text: &str) -> Result<Manifest, Vec<Fault>> {
    let notes = Notes::default();
    let mut engine = engine(Limits::MANIFEST);
    register(&mut engine, &notes);
    let ast = parse(&engine, file, text).map_err(|fault| vec![*fault])?;
    let functions = functions(&ast);

    let mut faults = Vec::new();
    let broken = run_top(&engine, &ast, &functions, file, text);
    let declared = notes.take();
    for complaint in &declared.complaints {
        let mut fault = Fault::new(
            file,
            text,
            Place::of(complaint.at),
            complaint.message.clone(),
        );
        fault.hint = complaint.hint.clone();
        faults.push(fault);
    }
    // What is missing may stand behind the place where reading stopped.
    let whole = broken.is_none();
    faults.extend(broken);
    for (name, at) in &declared.idempotent {
        if functions.iter().all(|f| f.name != name.as_str()) {
            let fault = Fault::new(
                file,
                text,
                Place::of(*at),
                format!(
                    "`idempotent` names a function `{name}`, which this scenario does not define"
                ),
            );
            faults.push(fault.hint(known(&functions)));
        }
    }
    let shape = shape(&functions);
    if whole {
        if declared.about.is_none() {
            faults.push(
                Fault::new(file, text, None, "the scenario does not say what it is for")
                    .hint("begin it with scenario(\"Upgrade the web front end\");"),
            );
        }
        if let Err(message) = &shape {
            faults.push(Fault::new(file, text, None, message.clone()));
        }
    }
    faults.sort_by_key(|fault| fault.at);
    match (shape, faults.is_empty()) {
        (Ok(shape), true) => Ok(manifest(declared, functions, shape)),
        _ => Err(faults),
    }
}

fn manifest(declared: Declared, functions: Vec<Function>, shape: Shape) -> Manifest {
    Manifest {
        about: declared.about.unwrap_or_default(),
        params: declared.params,
        target: declared.target,
        also: declared.also,
        batch: declared.batch,
        budgets: declared.budgets,
        timeout: declared.timeout,
        retry: declared.retry.unwrap_or(0),
        confirm: declared.confirm.is_some(),
        approvals: declared.approvals.unwrap_or(0),
        locks: declared.locks,
        windows: declared.windows,
        idempotent: declared.idempotent.into_keys().collect(),
        allow_check: declared.allow_check.is_some(),
        shape,
        functions,
    }
}

/// Executes what stands at the top.
fn run_top(
    engine: &Engine,
    ast: &AST,
    functions: &[Function],
    file: &str,
    text: &str,
) -> Option<Fault> {
    let top = ast.clone_statements_only();
    let error = *engine.run_ast_with_scope(&mut Scope::new(), &top).err()?;
    let at = Place::of(error.position());
    Some(match error {
        EvalAltResult::ErrorFunctionNotFound(signature, _) => {
            let name = signature.split([' ', '(']).next().unwrap_or_default();
            let own = functions.iter().any(|f| f.name == name);
            let fault = |message: String| Fault::new(file, text, at, message);
            if own {
                fault(format!(
                    "`{name}` cannot be called at the top of a scenario"
                ))
                .hint("only the manifest stands there; functions run later")
            } else if declarations().any(|known| known == name) {
                fault(format!(
                    "`{name}` does not take these arguments: {signature}"
                ))
            } else {
                let fault = fault(format!("there is no `{name}` at the top of a scenario"));
                match nearest(name, declarations()) {
                    Some(near) => fault.hint(format!("did you mean `{near}`?")),
                    None => fault.hint(
                        "only the manifest stands there; what it does belongs into a function",
                    ),
                }
            }
        }
        EvalAltResult::ErrorTooManyOperations(_) => Fault::new(
            file,
            text,
            at,
            "the top of the scenario does too much: only the manifest stands there",
        ),
        other => {
            let message = other.unwrap_inner().to_string();
            // The engine adds the place; it is shown by ours.
            let message = message.split(" (line ").next().unwrap_or_default();
            Fault::new(file, text, at, message.to_owned())
        }
    })
}

/// The names of the functions of a manifest.
fn declarations() -> impl Iterator<Item = &'static str> {
    catalogue::TOP.iter().map(|entry| entry.name)
}

fn functions(ast: &AST) -> Vec<Function> {
    let mut all: Vec<Function> = ast
        .iter_functions()
        // Closures are functions without a name of their own.
        .filter(|f| !f.name.contains('$'))
        .map(|f| {
            let doc: Vec<&str> = f
                .comments
                .iter()
                .flat_map(|c| c.lines())
                .map(|line| line.trim_start_matches(['/', '*', ' ']).trim_end())
                .filter(|line| !line.is_empty())
                .collect();
            Function {
                name: f.name.to_owned(),
                params: f.params.iter().map(|p| (*p).to_owned()).collect(),
                doc: (!doc.is_empty()).then(|| doc.join(" ")),
            }
        })
        .collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

fn known(functions: &[Function]) -> String {
    let names: BTreeSet<&str> = functions.iter().map(|f| f.name.as_str()).collect();
    if names.is_empty() {
        "it defines none".to_owned()
    } else {
        format!(
            "there are: {}",
            names.into_iter().collect::<Vec<_>>().join(", ")
        )
    }
}

/// Which function is the entry, and that there is exactly one.
fn shape(functions: &[Function]) -> Result<Shape, String> {
    let find = |name: &str| {
        functions
            .iter()
            .filter(|f| f.name == name)
            .collect::<Vec<_>>()
    };
    let (shape, entry) = match (find(MAIN).as_slice(), find(RUN).as_slice()) {
        ([main], _) => (Shape::Main, *main),
        ([], [run]) => (Shape::Run, *run),
        ([], []) => {
            return Err(
                "the scenario defines neither `fn main(p)` nor `fn run(p)`: nothing would happen"
                    .to_owned(),
            );
        }
        _ => return Err("the scenario defines its entry function twice".to_owned()),
    };
    if entry.params.len() == 1 {
        Ok(shape)
    } else {
        Err(format!(
            "`fn {}` takes one parameter, the map of the scenario's parameters: `fn {}(p)`",
            entry.name, entry.name
        ))
    }
}
