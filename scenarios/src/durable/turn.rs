//! One turn of `main`: from the top to its end, or to the first call that
//! nobody has answered yet.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use rhai::{
    AST, ASTNode, CallFnOptions, Dynamic, Engine, EvalAltResult, Expr, Position, Scope, Stmt,
};
use serde_json::{Map, Value};

use super::call::{HostCall, Recorded, Records, Reply, Undo};
use super::host::{Carried, Inline, Pass, Stop, register};
use super::nodes::{Cast, Member, Nodes};
use crate::engine::{self, Limits, engine, parse};
use crate::fault::{Fault, Place};
use crate::manifest::MAIN;
use crate::plain::{self, Secret};
use crate::secret;

/// A script that is ready to run. Cheap to clone; any number of runs share
/// one.
#[derive(Clone)]
pub struct Program {
    engine: Arc<Engine>,
    ast: Arc<AST>,
    file: Arc<str>,
    text: Arc<str>,
    undos: Arc<BTreeMap<(usize, usize), String>>,
}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Program")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

impl Program {
    /// Compiles a script.
    ///
    /// # Errors
    /// A syntax error.
    pub fn new(file: &str, text: &str) -> Result<Self, Box<Fault>> {
        let read = engine::apart(Limits::MAIN, None, || {
            let mut engine = engine(Limits::MAIN);
            register(&mut engine);
            let ast = parse(&engine, file, text)?;
            let undos = undos(&ast);
            Ok(Self {
                engine: Arc::new(engine),
                ast: Arc::new(ast),
                file: file.into(),
                text: text.into(),
                undos: Arc::new(undos),
            })
        });
        read.unwrap_or_else(|broken| Err(Box::new(Fault::new(file, text, None, broken))))
    }

    /// The lines in which a person is asked, in order: also those that a run
    /// may never come to.
    #[must_use]
    pub fn asks(&self) -> Vec<usize> {
        let mut lines = std::collections::BTreeSet::new();
        self.ast.walk(&mut |path: &[ASTNode<'_>]| {
            let call = match path.last() {
                Some(ASTNode::Expr(Expr::FnCall(call, at))) => Some((call, at)),
                Some(ASTNode::Stmt(Stmt::FnCall(call, at))) => Some((call, at)),
                _ => None,
            };
            if let Some((call, at)) = call
                && call.name == "ask"
            {
                lines.extend(at.line());
            }
            true
        });
        lines.into_iter().collect()
    }

    fn fault(&self, at: Position, message: impl Into<String>) -> Fault {
        Fault::new(&self.file, &self.text, Place::of(at), message)
    }
}

/// The `on(…).undo("f")` of a script, by the place of the `on`. It must be
/// known before the step runs: what a step that failed did on some nodes is
/// taken back, too, and a failed `on` never comes to its `.undo`.
fn undos(ast: &AST) -> BTreeMap<(usize, usize), String> {
    let mut undos = BTreeMap::new();
    ast.walk(&mut |path: &[ASTNode<'_>]| {
        if let Some(ASTNode::Expr(Expr::Dot(pair, ..))) = path.last()
            && let Expr::FnCall(step, at) = &pair.lhs
            && matches!(step.name.as_str(), "on" | "try_on")
            && let Expr::MethodCall(undo, _) = first(&pair.rhs)
            && undo.name == "undo"
            && let Some(Expr::StringConstant(function, _)) = undo.args.first()
            && let (Some(line), Some(column)) = (at.line(), at.position())
        {
            undos.insert((line, column), function.to_string());
        }
        true
    });
    undos
}

/// The first link of a chain of methods.
fn first(expr: &Expr) -> &Expr {
    match expr {
        Expr::Dot(pair, ..) => first(&pair.lhs),
        other => other,
    }
}

/// What a run of `main` begins with; pinned for the run's life.
#[derive(Clone, Debug, Default)]
pub struct Input {
    /// Parameters, as [`Bound::sealed`](crate::param::Bound::sealed) gives
    /// them: `main` can hand a secret on to nodes, and never sees it.
    pub params: Map<String, Value>,
    /// The frozen node sets, `targets` among them, in the order in which
    /// nodes are taken.
    pub sets: BTreeMap<String, Vec<Member>>,
}

/// What is next.
#[derive(Clone, Debug, PartialEq)]
pub enum Turn {
    /// `main` came to its end.
    Done(Value),
    /// `main` failed, or ended the run. What was done is to be taken back,
    /// in this order.
    Failed {
        /// Why, where.
        fault: Fault,
        /// Newest first.
        undo: Vec<Undo>,
    },
    /// This call is to be answered; then another turn.
    Wants {
        /// Its number, from 0.
        number: u64,
        /// The call.
        call: HostCall,
        /// Where in the script.
        at: Option<Place>,
        /// What would be taken back if the run were cancelled now, newest
        /// first.
        undo: Vec<Undo>,
    },
    /// The script does not do what it did before: it must not go on.
    Diverged {
        /// Which call.
        number: u64,
        /// Why, where.
        fault: Fault,
    },
    /// It was told to stop while it computed. Nothing is lost: another turn
    /// begins again.
    Stopped,
    /// muster itself failed, not the scenario: why, in one line. Nothing is
    /// lost and nothing is to be taken back; the run waits for a person.
    Broken(String),
}

/// Runs `main` once, as far as it comes. Blocks for as long as the script
/// computes: for a thread that may block.
///
/// * `records` are the calls that were answered, from number 0 on.
/// * `inline` answers those at once that need no waiting, such as the time;
///   for all others it gives `None`.
/// * `stopped` is asked again and again whether the turn is to end now: the
///   run was cancelled, or its time is over. Operations are counted without
///   it, so that a script that only computes ends the same everywhere.
///
/// The second value are the calls that were answered inline, in order. They
/// follow `records` and have to be in the journal before anything else
/// happens, whatever the first value is.
pub fn turn(
    program: &Program,
    input: &Input,
    records: Records,
    inline: impl Fn(u64, &HostCall) -> Option<Reply> + Send + Sync + 'static,
    stopped: impl Fn() -> bool + Send + Sync + 'static,
) -> (Turn, Vec<Recorded>) {
    let inline: Inline = Arc::new(inline);
    engine::apart(Limits::MAIN, Some(Arc::new(stopped)), || {
        pass(program, input, records, inline)
    })
    .unwrap_or_else(|broken| (Turn::Broken(broken), Vec::new()))
}

fn pass(
    program: &Program,
    input: &Input,
    records: Records,
    inline: Inline,
) -> (Turn, Vec<Recorded>) {
    let cast = Arc::new(Cast::new(&input.sets));
    let sets = input.sets.iter().map(|(name, members)| {
        let serials = members.iter().map(|member| member.serial);
        (name.clone(), Nodes::of(&cast, serials))
    });
    let carried = Carried(Arc::new(Mutex::new(Pass {
        sets: sets.collect(),
        cast: Arc::clone(&cast),
        records,
        inline,
        undos: Arc::clone(&program.undos),
        next: 0,
        fresh: Vec::new(),
        undo: Vec::new(),
        stop: None,
    })));
    let mut params = plain::map_from_json(&input.params);
    for (name, value) in &input.params {
        if let Some(secret) = secret::referred(value) {
            params.insert(name.into(), Dynamic::from(Secret(secret.to_owned())));
        }
    }
    let params = Dynamic::from_map(params);
    let options = CallFnOptions::new()
        .with_tag(carried.clone())
        .eval_ast(false);
    let ended: Result<Dynamic, _> = program.engine.call_fn_with_options(
        options,
        &mut Scope::new(),
        &program.ast,
        MAIN,
        (params,),
    );
    let mut pass = carried.lock();
    let fresh = std::mem::take(&mut pass.fresh);
    let mut undo = std::mem::take(&mut pass.undo);
    undo.reverse();
    let turn = match (pass.stop.take(), ended) {
        (Some(Stop::Wants { number, call, at }), _) => Turn::Wants {
            number,
            call,
            at: Place::of(at),
            undo,
        },
        (
            Some(Stop::Diverged {
                number,
                recorded,
                found,
                at,
            }),
            _,
        ) => {
            let what = if recorded == found {
                format!("call {number}, `{found}`, has other arguments than the first time")
            } else {
                format!("call {number} is `{found}`, the first time it was `{recorded}`")
            };
            let fault = program
                .fault(at, what)
                .hint("the run is stopped: nobody knows what it would do");
            Turn::Diverged { number, fault }
        }
        (Some(Stop::Aborted { text, at }), _) => Turn::Failed {
            fault: program.fault(at, text),
            undo,
        },
        // Nodes or a step's reply as the last value: nothing to keep.
        (None, Ok(value)) => Turn::Done(plain::to_json(&value).unwrap_or_default()),
        (None, Err(error)) if engine::is_stopped(error.unwrap_inner()) => Turn::Stopped,
        (None, Err(error)) => Turn::Failed {
            fault: failure(program, &error),
            undo,
        },
    };
    (turn, fresh)
}

/// What went wrong in the script, where.
fn failure(program: &Program, error: &EvalAltResult) -> Fault {
    let inner = error.unwrap_inner();
    let endless = "the script works without an end; what takes long belongs on the nodes";
    program.fault(inner.position(), engine::said(inner, endless))
}
