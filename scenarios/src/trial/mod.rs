//! Trying a scenario out, offline: its own `fn test_…` against nodes that
//! exist only there.
//!
//! A test sets nodes up, says what they answer where it matters, plays a run
//! and looks at what came of it. The run is a real one as far as the language
//! goes: parameters are bound, node sets come from the predicates, `main` is
//! the same pure function, node functions run in the same engine. Only what
//! is behind [`Host`](crate::node::Host) is made up: everything is well and
//! changes what was not so before, unless the test says otherwise.

pub(crate) mod bench;
mod fleet;
mod others;
mod play;
mod silent;

use std::sync::{Arc, Mutex, PoisonError};

use rhai::{AST, CallFnOptions, Dynamic, Engine, Position, Scope};

use crate::bundle::Bundle;
use crate::engine::{self, Limits, engine, parse};
use crate::fault::{Fault, Place};
use crate::manifest::Manifest;
use bench::{Bench, Carried};
use fleet::Shared;
use play::Subject;
use silent::Common;

/// What the name of a test begins with.
pub const PREFIX: &str = "test_";

/// Tests of one scenario, ready to run.
pub struct Trial {
    subject: Subject,
    engine: Engine,
    ast: AST,
    file: String,
    text: String,
    tests: Vec<String>,
    common: Mutex<Common>,
}

impl std::fmt::Debug for Trial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trial")
            .field("file", &self.file)
            .field("tests", &self.tests)
            .finish_non_exhaustive()
    }
}

impl Trial {
    /// Reads a scenario with its tests; `manifest` is what
    /// [`check`](crate::check::check_bundle) gave. `file` is what the script
    /// is called in messages.
    ///
    /// # Errors
    /// A syntax error.
    pub fn new(file: &str, bundle: &Bundle, manifest: Manifest) -> Result<Self, Box<Fault>> {
        let text = bundle.script();
        let tests = manifest.tests().map(str::to_owned).collect();
        let subject = Subject::new(file, bundle, manifest)?;
        let read = engine::apart(Limits::MAIN, None, || {
            let mut engine = engine(Limits::MAIN);
            bench::register(&mut engine);
            let ast = parse(&engine, file, text)?;
            Ok((engine, ast))
        });
        let (engine, ast) =
            read.unwrap_or_else(|broken| Err(Box::new(Fault::new(file, text, None, broken))))?;
        Ok(Self {
            subject,
            engine,
            ast,
            file: file.to_owned(),
            text: text.to_owned(),
            tests,
            common: Mutex::default(),
        })
    }

    /// The names of the tests, in order.
    #[must_use]
    pub fn tests(&self) -> &[String] {
        &self.tests
    }

    /// What is said of nodes where several tests use it, and none of those
    /// that were run needed: to be asked when all were.
    #[must_use]
    pub fn unneeded(&self) -> Vec<Fault> {
        let common = self.common.lock().unwrap_or_else(PoisonError::into_inner);
        let unneeded = common.values().filter_map(|(at, said)| {
            let said = said.as_deref()?;
            let place = Place::of(*at);
            Some(Fault::new(&self.file, &self.text, place, said))
        });
        unneeded.collect()
    }

    /// Runs one of them.
    ///
    /// # Errors
    /// What does not hold, or went wrong, and where.
    pub fn run(&self, test: &str) -> Result<(), Box<Fault>> {
        let fleet = Shared::default();
        let carried = Carried(Arc::new(Mutex::new(Bench {
            subject: self.subject.clone(),
            fleet: fleet.clone(),
            answers: Vec::new(),
        })));
        let fault = |at: Position, message: String| {
            Box::new(Fault::new(&self.file, &self.text, Place::of(at), message))
        };
        engine::apart(Limits::MAIN, None, || {
            let options = CallFnOptions::new().with_tag(carried).eval_ast(false);
            let ended: Result<Dynamic, _> =
                self.engine
                    .call_fn_with_options(options, &mut Scope::new(), &self.ast, test, ());
            let silent = silent::first(&fleet.lock());
            let mut common = self.common.lock().unwrap_or_else(PoisonError::into_inner);
            silent::add(&mut common, &fleet.lock());
            match (ended, silent) {
                (Ok(_), None) => Ok(()),
                (Ok(_), Some((at, what))) => Err(fault(at, what)),
                (Err(error), silent) => {
                    let inner = error.unwrap_inner();
                    let message = engine::said_in_lines(inner, "the test works without an end");
                    let mut fault = fault(inner.position(), message);
                    // Likely why.
                    if let Some((at, what)) = silent {
                        let line = at.line().unwrap_or_default();
                        fault
                            .message
                            .push_str(&format!("\n  and in line {line} {what}"));
                    }
                    Err(fault)
                }
            }
        })
        .unwrap_or_else(|broken| Err(fault(Position::NONE, broken)))
    }
}
