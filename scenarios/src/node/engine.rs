//! Running a function of a scenario on a node.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use rhai::{AST, CallFnOptions, Dynamic, Engine, EvalAltResult, NativeCallContext, Scope};
use serde_json::{Map, Value};

use super::effect::{Change, Effect};
use super::resources;
use crate::bundle::{Bundle, BundlePath};
use crate::engine::{Limits, engine, parse};
use crate::fault::{Fault, Place};

/// What a function of the engine gives back.
pub(super) type Said<T> = Result<T, Box<EvalAltResult>>;
/// How many operations pass between two looks at whether to stop.
const LOOK_EVERY: u64 = 256;

/// What came of an effect.
#[derive(Clone, Debug, PartialEq)]
pub struct Performed {
    /// What it changed, where it is something that can be so or not.
    pub change: Option<Change>,
    /// What the script gets: of a program `{exit, stdout, stderr}`.
    pub value: Value,
}

/// Why an effect did not come to its end.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum HostError {
    /// It failed; the script may catch that.
    Failed(String),
    /// The step is cancelled or out of time: the script is unwound.
    Stopped,
}

/// Whoever has the effects.
pub trait Host: Send + Sync {
    /// Does it, or says what it would do, as the step's mode demands. Blocks.
    ///
    /// # Errors
    /// [`HostError`].
    fn perform(&self, effect: &Effect, at: Source) -> Result<Performed, HostError>;

    /// Whether the step is to end now.
    fn stopped(&self) -> bool;

    /// Who this node is, and its facts.
    fn facts(&self) -> Arc<NodeFacts>;
}

/// Where in a script an effect was asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Source {
    /// The place.
    pub at: Option<Place>,
}

/// What a script can know of its node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeFacts {
    /// `name`, `roles`, `labels`: given by the operators.
    pub node: Map<String, Value>,
    /// What the node found out about itself.
    pub facts: Value,
}

/// How a function ended that did not fail.
#[derive(Clone, Debug, PartialEq)]
pub struct Done {
    /// What it returned.
    pub value: Value,
}

/// Why a function did not come to its end.
#[derive(Clone, Debug, PartialEq)]
pub enum Ended {
    /// It failed, there.
    Failed(Box<Fault>),
    /// It was cancelled, or its time was over.
    Stopped,
}

/// What a running function carries along.
#[derive(Clone)]
pub(super) struct Carried {
    host: Arc<dyn Host>,
    files: Arc<BTreeMap<BundlePath, Vec<u8>>>,
}

thread_local! {
    /// The host of the function that this thread runs: the engine asks about
    /// progress without saying for whom.
    static RUNNING: RefCell<Option<Arc<dyn Host>>> = const { RefCell::new(None) };
}

/// A scenario that is ready to run on this node. Cheap to clone.
#[derive(Clone)]
pub struct Program {
    engine: Arc<Engine>,
    ast: Arc<AST>,
    file: Arc<str>,
    text: Arc<str>,
    files: Arc<BTreeMap<BundlePath, Vec<u8>>>,
}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Program")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

impl Program {
    /// Compiles a scenario. `file` is what its script is called in messages.
    ///
    /// # Errors
    /// A syntax error.
    pub fn new(file: &str, bundle: &Bundle) -> Result<Self, Box<Fault>> {
        let mut engine = engine(Limits::NODE);
        resources::register(&mut engine);
        engine.on_progress(|operations| {
            if operations % LOOK_EVERY != 0 {
                return None;
            }
            let stopped = RUNNING.with_borrow(|host| host.as_ref().is_some_and(|h| h.stopped()));
            stopped.then_some(Dynamic::UNIT)
        });
        let ast = parse(&engine, file, bundle.script())?;
        Ok(Self {
            engine: Arc::new(engine),
            ast: Arc::new(ast),
            file: file.into(),
            text: bundle.script().into(),
            files: Arc::new(bundle.files().clone()),
        })
    }

    /// Runs a function to its end. Blocks for as long as its effects take:
    /// for a thread that may block.
    ///
    /// # Errors
    /// [`Ended`].
    pub fn call(
        &self,
        function: &str,
        params: &Map<String, Value>,
        host: Arc<dyn Host>,
    ) -> Result<Done, Ended> {
        let failed = |text: String| {
            let fault = Fault::new(&self.file, &self.text, None, text);
            Ended::Failed(Box::new(fault))
        };
        let params = rhai::serde::to_dynamic(params).map_err(|e| failed(e.to_string()))?;
        let carried = Carried {
            host: Arc::clone(&host),
            files: Arc::clone(&self.files),
        };
        let options = CallFnOptions::new().with_tag(carried).eval_ast(false);
        RUNNING.set(Some(Arc::clone(&host)));
        let ended: Said<Dynamic> = self.engine.call_fn_with_options(
            options,
            &mut Scope::new(),
            &self.ast,
            function,
            (params,),
        );
        RUNNING.set(None);
        let value = ended.map_err(|error| self.ended(&error))?;
        let value = rhai::serde::from_dynamic(&value).unwrap_or(Value::Null);
        Ok(Done { value })
    }

    fn ended(&self, error: &EvalAltResult) -> Ended {
        let inner = error.unwrap_inner();
        let text = match inner {
            EvalAltResult::ErrorTerminated(..) => return Ended::Stopped,
            EvalAltResult::ErrorRuntime(value, _) => match value.clone().into_string() {
                Ok(text) => text,
                Err(_) => value.to_string(),
            },
            EvalAltResult::ErrorPropertyNotFound(name, _) => {
                format!("there is no property `{name}` here")
            }
            EvalAltResult::ErrorFunctionNotFound(signature, _) => {
                format!("there is no function {signature}")
            }
            EvalAltResult::ErrorTooManyOperations(_) => {
                "the function works without an end".to_owned()
            }
            other => {
                let text = other.to_string();
                text.split(" (line ").next().unwrap_or_default().to_owned()
            }
        };
        let text = muster_protocol::text::printable(&text, 1_000);
        let at = Place::of(inner.position());
        Ended::Failed(Box::new(Fault::new(&self.file, &self.text, at, text)))
    }
}

/// An error at the place of the call, which the script may catch.
pub(super) fn wrong(
    context: &NativeCallContext<'_>,
    message: impl Into<String>,
) -> Box<EvalAltResult> {
    let message: String = message.into();
    EvalAltResult::ErrorRuntime(message.into(), context.call_position()).into()
}

fn carried(context: &NativeCallContext<'_>) -> Said<Carried> {
    context
        .tag()
        .and_then(|tag| tag.clone().try_cast::<Carried>())
        .ok_or_else(|| wrong(context, "this can be called only while a step runs"))
}

/// The one way out of the script.
pub(super) fn perform(context: &NativeCallContext<'_>, effect: &Effect) -> Said<Performed> {
    let at = context.call_position();
    let source = Source { at: Place::of(at) };
    match carried(context)?.host.perform(effect, source) {
        Ok(performed) => Ok(performed),
        Err(HostError::Failed(message)) => {
            Err(wrong(context, format!("{}: {message}", effect.subject())))
        }
        Err(HostError::Stopped) => Err(EvalAltResult::ErrorTerminated(Dynamic::UNIT, at).into()),
    }
}

pub(super) fn facts(context: &NativeCallContext<'_>) -> Said<Arc<NodeFacts>> {
    Ok(carried(context)?.host.facts())
}

/// Fills a template of the bundle.
pub(super) fn fill(context: &NativeCallContext<'_>, name: &str, values: &Value) -> Said<String> {
    super::template::render(&carried(context)?.files, name, values)
        .map_err(|text| wrong(context, format!("template: {text}")))
}
