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
mod play;

use std::sync::{Arc, Mutex};

use rhai::{AST, CallFnOptions, Dynamic, Engine, Position, Scope};

use crate::bundle::Bundle;
use crate::engine::{self, Limits, engine, parse};
use crate::fault::{Fault, Place};
use crate::manifest::Manifest;
use bench::{Bench, Carried};
use fleet::Shared;
use play::Subject;

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
        let read = engine::apart(None, || {
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
        })
    }

    /// The names of the tests, in order.
    #[must_use]
    pub fn tests(&self) -> &[String] {
        &self.tests
    }

    /// Runs one of them.
    ///
    /// # Errors
    /// What does not hold, or went wrong, and where.
    pub fn run(&self, test: &str) -> Result<(), Box<Fault>> {
        let carried = Carried(Arc::new(Mutex::new(Bench {
            subject: self.subject.clone(),
            fleet: Shared::default(),
            answers: Vec::new(),
        })));
        let fault = |at: Position, message: String| {
            Box::new(Fault::new(&self.file, &self.text, Place::of(at), message))
        };
        engine::apart(None, || {
            let options = CallFnOptions::new().with_tag(carried).eval_ast(false);
            let ended: Result<Dynamic, _> =
                self.engine
                    .call_fn_with_options(options, &mut Scope::new(), &self.ast, test, ());
            match ended {
                Ok(_) => Ok(()),
                Err(error) => {
                    let inner = error.unwrap_inner();
                    let message = engine::said(inner, "the test works without an end");
                    Err(fault(inner.position(), message))
                }
            }
        })
        .unwrap_or_else(|broken| Err(fault(Position::NONE, broken)))
    }
}
