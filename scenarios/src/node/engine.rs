//! Running a function of a scenario on a node.

use std::collections::BTreeMap;
use std::sync::Arc;

use muster_protocol::envelope::Mode;
use muster_protocol::names::FunctionName;
use rhai::{AST, CallFnOptions, Dynamic, Engine, EvalAltResult, NativeCallContext, Scope};
use serde_json::{Map, Value};

use super::effect::{Change, Effect};
use super::needs::{Capabilities, needs};
use super::resources;
use crate::bundle::{Bundle, BundlePath};
use crate::engine::{self, Limits, engine, parse};
use crate::fault::{Fault, Place};
use crate::plain;
use crate::secret::Secrets;

/// What a function of the engine gives back.
pub(super) type Said<T> = Result<T, Box<EvalAltResult>>;
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
    /// Does it, or says what it would do, as the mode demands. Blocks for as
    /// long as it takes, and ends soon once [`Host::stopped`] is true.
    ///
    /// Parameters that are secret can be in every text of an effect: what is
    /// shown of it to anybody goes through [`Secrets::mask`].
    ///
    /// # Errors
    /// [`HostError`].
    fn perform(&self, effect: &Effect, mode: Mode, at: Source) -> Result<Performed, HostError>;

    /// Whether the step is to end now: it was cancelled, or its time is over.
    /// Asked often.
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

/// A call of a function on a node.
#[derive(Clone, Debug)]
pub struct Call {
    /// Which function of the scenario.
    pub function: FunctionName,
    /// Its parameters; in the place of a secret stands its name.
    pub params: Map<String, Value>,
    /// The secrets.
    pub secrets: Secrets,
    /// Whether it acts, or only says what it would do.
    pub mode: Mode,
}

/// What a running function carries along.
#[derive(Clone)]
pub(super) struct Carried {
    host: Arc<dyn Host>,
    files: Arc<BTreeMap<BundlePath, Vec<u8>>>,
    secrets: Secrets,
    mode: Mode,
}

/// Runs one function of a scenario to its end; [`Program`] keeps what is
/// compiled. `file` is what the script is called in messages.
///
/// # Errors
/// [`Ended`].
pub fn run(file: &str, bundle: &Bundle, call: &Call, host: Arc<dyn Host>) -> Result<Done, Ended> {
    Program::new(file, bundle)
        .map_err(Ended::Failed)?
        .call(call, host)
}

/// A scenario that is ready to run on this node. Cheap to clone.
#[derive(Clone)]
pub struct Program {
    engine: Arc<Engine>,
    ast: Arc<AST>,
    file: Arc<str>,
    text: Arc<str>,
    files: Arc<BTreeMap<BundlePath, Vec<u8>>>,
    needs: Arc<BTreeMap<String, Capabilities>>,
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
        let read = engine::apart(Limits::NODE, None, || {
            let mut engine = engine(Limits::NODE);
            resources::register(&mut engine);
            let ast = parse(&engine, file, bundle.script())?;
            Ok(Self {
                needs: Arc::new(needs(&ast)),
                engine: Arc::new(engine),
                ast: Arc::new(ast),
                file: file.into(),
                text: bundle.script().into(),
                files: Arc::new(bundle.files().clone()),
            })
        });
        read.unwrap_or_else(|broken| Err(Box::new(Fault::new(file, bundle.script(), None, broken))))
    }

    /// Whether the script defines such a function, which takes the parameters
    /// and nothing else.
    #[must_use]
    pub fn has(&self, function: &str) -> bool {
        let mut all = self.ast.iter_functions();
        all.any(|f| f.name == function && f.params.len() == 1)
    }

    /// What a function can ask a node for, by its text alone.
    #[must_use]
    pub fn needs(&self, function: &str) -> &Capabilities {
        static NOTHING: Capabilities = Capabilities::new();
        self.needs.get(function).unwrap_or(&NOTHING)
    }

    /// Runs a function to its end, on a thread of its own. Blocks for as long
    /// as its effects take: for a thread that may block. The host is called
    /// on the function's thread; what it needs of the caller's (an executor's
    /// handle, a span of a trace) it has to hold itself.
    ///
    /// A panic of the host ends this call as failed, and nothing else.
    ///
    /// # Errors
    /// [`Ended`].
    pub fn call(&self, call: &Call, host: Arc<dyn Host>) -> Result<Done, Ended> {
        let asked = Arc::clone(&host);
        let stopped = move || asked.stopped();
        engine::apart(Limits::NODE, Some(Arc::new(stopped)), || {
            self.called(call, host)
        })
        .unwrap_or_else(|broken| {
            let broken = call.secrets.mask(&broken);
            let fault = Fault::new(&self.file, &self.text, None, broken);
            Err(Ended::Failed(Box::new(fault)))
        })
    }

    fn called(&self, call: &Call, host: Arc<dyn Host>) -> Result<Done, Ended> {
        let params = call.secrets.open(&call.params).map_err(|error| {
            let fault = Fault::new(&self.file, &self.text, None, error.to_string());
            Ended::Failed(Box::new(fault))
        })?;
        let params = plain::map_from_json(&params);
        let carried = Carried {
            host,
            files: Arc::clone(&self.files),
            secrets: call.secrets.clone(),
            mode: call.mode,
        };
        let options = CallFnOptions::new().with_tag(carried).eval_ast(false);
        let ended: Said<Dynamic> = self.engine.call_fn_with_options(
            options,
            &mut Scope::new(),
            &self.ast,
            call.function.as_str(),
            (params,),
        );
        let value = ended.map_err(|error| self.ended(&error, &call.secrets))?;
        // A resource as the last value: nothing to keep.
        let custom = !value.is_array() && !value.is_map() && value.is_variant();
        match plain::to_json(&value) {
            Ok(value) => Ok(Done {
                value: call.secrets.mask_value(value),
            }),
            Err(_) if custom => Ok(Done { value: Value::Null }),
            Err(why) => {
                let text = format!("what `{}` returns cannot be sent: {why}", call.function);
                let fault = Fault::new(&self.file, &self.text, None, text);
                Err(Ended::Failed(Box::new(fault)))
            }
        }
    }

    fn ended(&self, error: &EvalAltResult, secrets: &Secrets) -> Ended {
        let inner = error.unwrap_inner();
        if engine::is_stopped(inner) {
            return Ended::Stopped;
        }
        let text = engine::said(inner, "the function works without an end");
        let text = secrets.mask(&text);
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
    let carried = carried(context)?;
    match carried.host.perform(effect, carried.mode, source) {
        Ok(performed) => Ok(performed),
        Err(HostError::Failed(message)) => {
            let text = format!("{}: {message}", effect.subject());
            Err(wrong(context, carried.secrets.mask(&text)))
        }
        Err(HostError::Stopped) => Err(EvalAltResult::ErrorTerminated(Dynamic::UNIT, at).into()),
    }
}

/// The secrets of the running function.
pub(super) fn secrets(context: &NativeCallContext<'_>) -> Said<Secrets> {
    Ok(carried(context)?.secrets)
}

pub(super) fn facts(context: &NativeCallContext<'_>) -> Said<Arc<NodeFacts>> {
    Ok(carried(context)?.host.facts())
}

/// Fills a template of the bundle.
pub(super) fn fill(context: &NativeCallContext<'_>, name: &str, values: &Value) -> Said<String> {
    super::template::render(&carried(context)?.files, name, values)
        .map_err(|text| wrong(context, format!("template: {text}")))
}
