//! The functions that `main` may call, and the one way out of the script.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use muster_protocol::names::LabelKey;
use muster_protocol::predicate::Predicate;
use muster_protocol::text::printable;
use muster_protocol::units::{Amount, Span};
use rhai::{Array, Dynamic, Engine, EvalAltResult, Map, NativeCallContext, Position};

use super::call::{HostCall, Recorded, Records, Reply, Step, StepOptions, Undo, UndoStep};
use super::machine;
use super::nodes::{self, Cast, Nodes};
use super::outcome::{self, Came, StepReply};
use crate::plain::{self, Secret};
use crate::secret;

/// Most bytes of a text for people.
const MAX_WORDS: usize = 16 * 1024;
/// Most steps of one `parallel`, and answers of one question.
const MAX_LIST: usize = 256;

/// What a function of the engine gives back.
type Said<T> = Result<T, Box<EvalAltResult>>;

/// Answers calls that need no waiting, such as the time; `None` for those
/// that do.
pub(super) type Inline = Arc<dyn Fn(u64, &HostCall) -> Option<Reply> + Send + Sync>;

/// Why the script was unwound.
#[derive(Clone, Debug)]
pub(super) enum Stop {
    /// It wants what is not in the journal.
    Wants {
        number: u64,
        call: HostCall,
        at: Position,
    },
    /// It wants something else than it did before.
    Diverged {
        number: u64,
        recorded: String,
        found: String,
        at: Position,
    },
    /// It ended itself.
    Aborted { text: String, at: Position },
}

/// One pass through the script.
pub(super) struct Pass {
    pub(super) cast: Arc<Cast>,
    pub(super) sets: BTreeMap<String, Nodes>,
    pub(super) records: Records,
    pub(super) inline: Inline,
    /// By the place of the `on` that it takes back.
    pub(super) undos: Arc<BTreeMap<(usize, usize), String>>,
    pub(super) next: u64,
    pub(super) fresh: Vec<Recorded>,
    pub(super) undo: Vec<Undo>,
    pub(super) stop: Option<Stop>,
}

/// A pass as the engine carries it along.
#[derive(Clone)]
pub(super) struct Carried(pub(super) Arc<Mutex<Pass>>);

impl Carried {
    pub(super) fn lock(&self) -> MutexGuard<'_, Pass> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(context: &NativeCallContext<'_>) -> Said<Self> {
        context
            .tag()
            .and_then(|tag| tag.clone().try_cast::<Self>())
            .ok_or_else(|| wrong(context, "this can be called only while a scenario runs"))
    }
}

/// An error at the place of the call, which the script may catch.
fn wrong(context: &NativeCallContext<'_>, message: impl Into<String>) -> Box<EvalAltResult> {
    let message: String = message.into();
    EvalAltResult::ErrorRuntime(message.into(), context.call_position()).into()
}

/// Unwinds the script; nothing in it can catch that.
fn unwind(at: Position) -> Box<EvalAltResult> {
    EvalAltResult::ErrorTerminated(Dynamic::UNIT, at).into()
}

/// The one way out of the script: from the journal, at once, or later. With
/// the number of the call.
fn ask(context: &NativeCallContext<'_>, call: HostCall) -> Said<(u64, Reply)> {
    match told(context, call)? {
        (_, Reply::Error(text)) => Err(wrong(context, text)),
        said => Ok(said),
    }
}

/// The same, also when it is an error that the script may catch.
fn told(context: &NativeCallContext<'_>, call: HostCall) -> Said<(u64, Reply)> {
    let carried = Carried::of(context)?;
    let mut pass = carried.lock();
    let at = context.call_position();
    if pass.stop.is_some() {
        return Err(unwind(at));
    }
    let number = pass.next;
    pass.next += 1;
    let recorded = usize::try_from(number)
        .ok()
        .and_then(|index| pass.records.get(index).map(Arc::clone));
    let reply = if let Some(recorded) = recorded {
        if recorded.hash != call.hash() {
            pass.stop = Some(Stop::Diverged {
                number,
                recorded: recorded.call.clone(),
                found: call.name().to_owned(),
                at,
            });
            return Err(unwind(at));
        }
        recorded.reply.clone()
    } else {
        let inline = Arc::clone(&pass.inline);
        let Some(reply) = inline(number, &call) else {
            pass.stop = Some(Stop::Wants { number, call, at });
            return Err(unwind(at));
        };
        pass.fresh.push(Recorded {
            call: call.name().to_owned(),
            hash: call.hash(),
            reply: reply.clone(),
        });
        reply
    };
    Ok((number, reply))
}

/// A reply of another kind than the call's: the journal is damaged.
fn foreign(context: &NativeCallContext<'_>) -> Box<EvalAltResult> {
    wrong(
        context,
        "the journal holds a reply of another kind for this call",
    )
}

fn value(context: &NativeCallContext<'_>, call: HostCall) -> Said<Dynamic> {
    match ask(context, call)?.1 {
        Reply::Value(value) => Ok(plain::from_json(&value)),
        _ => Err(foreign(context)),
    }
}

/// Plain data from a script's map.
fn data(
    context: &NativeCallContext<'_>,
    what: &str,
    map: &Map,
) -> Said<serde_json::Map<String, serde_json::Value>> {
    plain::map_to_json(map).map_err(|e| wrong(context, format!("{what}: {e}")))
}

/// A text for people: bounded, so that no line fills a journal.
fn words(context: &NativeCallContext<'_>, what: &str, text: &str) -> Said<String> {
    if text.len() > MAX_WORDS {
        let found = text.len();
        let text = format!("{what}: the text has {found} bytes, at most {MAX_WORDS} are taken");
        return Err(wrong(context, text));
    }
    Ok(text.to_owned())
}

fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(
    context: &NativeCallContext<'_>,
    what: &str,
    text: &str,
) -> Said<T> {
    text.parse()
        .map_err(|e| wrong(context, format!("{what}: {e}")))
}

fn amount(context: &NativeCallContext<'_>, what: &str, value: &Dynamic) -> Said<Amount> {
    let parsed = match value.as_int() {
        Ok(count) => u32::try_from(count).ok().map(Amount::Count),
        Err(_) => value
            .clone()
            .into_string()
            .ok()
            .and_then(|text| text.parse().ok()),
    };
    parsed.ok_or_else(|| {
        wrong(
            context,
            format!("{what} takes a number of nodes or a percentage such as \"25%\""),
        )
    })
}

/// The options of a step.
fn options(context: &NativeCallContext<'_>, map: Map) -> Said<StepOptions> {
    let mut options = StepOptions::default();
    for (key, value) in map {
        match key.as_str() {
            "max_failures" => options.max_failures = Some(amount(context, &key, &value)?),
            "batch" => options.batch = Some(amount(context, &key, &value)?),
            "timeout" => {
                let text = value.into_string().unwrap_or_default();
                options.timeout = Some(parsed(context, "timeout", &text)?);
            }
            "retry" => {
                let tries = value.as_int().ok().and_then(|n| u32::try_from(n).ok());
                options.retry =
                    Some(tries.ok_or_else(|| wrong(context, "retry takes a number of tries"))?);
            }
            other => {
                let other = printable(other, 40);
                return Err(wrong(
                    context,
                    format!(
                        "a step has no option `{other}`; there are: batch, max_failures, retry, timeout"
                    ),
                ));
            }
        }
    }
    Ok(options)
}

fn step(
    context: &NativeCallContext<'_>,
    nodes: &Nodes,
    function: &str,
    params: &Map,
    with: Map,
) -> Said<Step> {
    Ok(Step {
        nodes: nodes.set(),
        function: parsed(context, "the function", function)?,
        params: data(context, "the parameters of the step", params)?,
        options: options(context, with)?,
        undo: None,
    })
}

/// `on` and `try_on`.
fn on(
    context: &NativeCallContext<'_>,
    tolerant: bool,
    nodes: &Nodes,
    function: &str,
    params: &Map,
    with: Map,
) -> Said<Came> {
    let step = step(context, nodes, function, params, with)?;
    let came = |reply: StepReply| Came {
        reply: Arc::new(reply),
        cast: Arc::clone(nodes.cast()),
    };
    if nodes.len() == 0 {
        // Nothing to do is well done, and needs no journal.
        return Ok(came(StepReply::default()));
    }
    let taken_back = step.params.clone();
    let (number, reply) = ask(
        context,
        if tolerant {
            HostCall::TryOn(step)
        } else {
            HostCall::On(step)
        },
    )?;
    let Reply::Step(reply) = reply else {
        return Err(foreign(context));
    };
    // Also of a step that stopped half way: what it did on some nodes is to
    // be taken back with the rest.
    let carried = Carried::of(context)?;
    let mut pass = carried.lock();
    let at = context.call_position();
    let place = (at.line().unwrap_or(0), at.position().unwrap_or(0));
    if let Some(function) = pass.undos.get(&place).cloned() {
        pass.undo.push(Undo::Step(UndoStep {
            of: number,
            part: 0,
            function: parsed(context, "undo", &function)?,
            params: taken_back,
        }));
    }
    drop(pass);
    match &reply.stopped {
        Some(text) if !tolerant => Err(wrong(context, text.clone())),
        _ => Ok(came(reply)),
    }
}

/// Gives the engine everything that `main` may call.
pub(crate) fn register(engine: &mut Engine) {
    engine
        .register_type_with_name::<Secret>("Secret")
        .register_fn("to_string", |_: &mut Secret| "[redacted]")
        .register_fn("to_debug", |_: &mut Secret| "[redacted]");
    nodes::register(engine);
    outcome::register(engine);
    sets(engine);
    steps(engine);
    rest(engine);
}

fn sets(engine: &mut Engine) {
    fn set(context: &NativeCallContext<'_>, name: &str) -> Said<Nodes> {
        let carried = Carried::of(context)?;
        let pass = carried.lock();
        pass.sets.get(name).cloned().ok_or_else(|| {
            let known: Vec<&str> = pass.sets.keys().map(String::as_str).collect();
            let name = printable(name, 60);
            let known = known.join(", ");
            wrong(
                context,
                format!("the scenario declares no node set `{name}`; there are: {known}"),
            )
        })
    }
    engine
        .register_fn("targets", |c: NativeCallContext<'_>| set(&c, "targets"))
        .register_fn("nodes", |c: NativeCallContext<'_>, name: &str| {
            set(&c, name)
        })
        .register_fn(
            "where",
            |c: NativeCallContext<'_>, nodes: &mut Nodes, text: &str| -> Said<Nodes> {
                let predicate =
                    Predicate::parse(text).map_err(|e| wrong(&c, format!("where: {e}")))?;
                let call = HostCall::Where {
                    nodes: nodes.set(),
                    predicate: predicate.text().to_owned(),
                };
                let Reply::Nodes(found) = ask(&c, call)?.1 else {
                    return Err(foreign(&c));
                };
                // Never more than there were.
                let had = nodes.set();
                let kept = found.iter().filter(|serial| had.contains(*serial));
                Ok(Nodes::of(nodes.cast(), kept))
            },
        )
        .register_fn(
            "batches",
            |c: NativeCallContext<'_>, nodes: &mut Nodes, size: Dynamic| -> Said<Array> {
                let size = amount(&c, "batches", &size)?.of_rounded_up(nodes.len());
                Ok(nodes.chunks(size).into_iter().map(Dynamic::from).collect())
            },
        )
        .register_fn(
            "batches",
            |c: NativeCallContext<'_>,
             nodes: &mut Nodes,
             size: Dynamic,
             with: Map|
             -> Said<Array> {
                let size = amount(&c, "batches", &size)?;
                let mut label = None;
                for (key, value) in with {
                    if key != "spread" {
                        let key = printable(&key, 40);
                        let text = format!("batches has no option `{key}`; there is: spread");
                        return Err(wrong(&c, text));
                    }
                    let text = value.into_string().unwrap_or_default();
                    label = Some(parsed::<LabelKey>(&c, "spread", &text)?);
                }
                let Some(label) = label else {
                    let size = size.of_rounded_up(nodes.len());
                    return Ok(nodes.chunks(size).into_iter().map(Dynamic::from).collect());
                };
                let call = HostCall::Spread {
                    nodes: nodes.set(),
                    size,
                    label,
                };
                let Reply::Batches(batches) = ask(&c, call)?.1 else {
                    return Err(foreign(&c));
                };
                let batch = |set: muster_protocol::nodeset::NodeSet| {
                    Dynamic::from(Nodes::of(nodes.cast(), set.iter()))
                };
                Ok(batches.into_iter().map(batch).collect())
            },
        );
}

fn steps(engine: &mut Engine) {
    for (name, tolerant) in [("on", false), ("try_on", true)] {
        engine
            .register_fn(
                name,
                move |c: NativeCallContext<'_>, nodes: Nodes, function: &str| {
                    on(&c, tolerant, &nodes, function, &Map::new(), Map::new())
                },
            )
            .register_fn(
                name,
                move |c: NativeCallContext<'_>, nodes: Nodes, function: &str, params: Map| {
                    on(&c, tolerant, &nodes, function, &params, Map::new())
                },
            )
            .register_fn(
                name,
                move |c: NativeCallContext<'_>,
                      nodes: Nodes,
                      function: &str,
                      params: Map,
                      with: Map| {
                    on(&c, tolerant, &nodes, function, &params, with)
                },
            );
    }
    engine
        // What it does is known from the script's text; see `turn`.
        .register_fn("undo", |came: &mut Came, _function: &str| came.clone())
        .register_fn(
            "step",
            |c: NativeCallContext<'_>, nodes: Nodes, function: &str| {
                step(&c, &nodes, function, &Map::new(), Map::new())
            },
        )
        .register_fn(
            "step",
            |c: NativeCallContext<'_>, nodes: Nodes, function: &str, params: Map| {
                step(&c, &nodes, function, &params, Map::new())
            },
        )
        .register_fn(
            "step",
            |c: NativeCallContext<'_>, nodes: Nodes, function: &str, params: Map, with: Map| {
                step(&c, &nodes, function, &params, with)
            },
        )
        .register_fn(
            "undo",
            |c: NativeCallContext<'_>, step: &mut Step, function: &str| -> Said<Step> {
                let undo = Some(parsed(&c, "undo", function)?);
                let step = step.clone();
                Ok(Step { undo, ..step })
            },
        )
        .register_fn("parallel", |c: NativeCallContext<'_>, list: Array| {
            parallel(&c, list)
        });
}

fn parallel(context: &NativeCallContext<'_>, list: Array) -> Said<Array> {
    let mut steps = Vec::with_capacity(list.len());
    for item in list {
        let step = item.try_cast::<Step>().ok_or_else(|| {
            wrong(
                context,
                "parallel takes a list of steps: parallel([step(nodes(\"a\"), \"f\"), …])",
            )
        })?;
        steps.push(step);
    }
    if steps.len() > MAX_LIST {
        return Err(wrong(
            context,
            format!("parallel takes at most {MAX_LIST} steps"),
        ));
    }
    let asked = steps.clone();
    let (number, reply) = ask(context, HostCall::Parallel { steps })?;
    let Reply::Steps(replies) = reply else {
        return Err(foreign(context));
    };
    if replies.len() != asked.len() {
        return Err(foreign(context));
    }
    let carried = Carried::of(context)?;
    let mut pass = carried.lock();
    for (part, step) in asked.into_iter().enumerate() {
        if let Some(function) = step.undo {
            pass.undo.push(Undo::Step(UndoStep {
                of: number,
                part,
                function,
                params: step.params,
            }));
        }
    }
    let cast = Arc::clone(&pass.cast);
    drop(pass);
    let stopped = replies.iter().find_map(|reply| reply.stopped.clone());
    if let Some(text) = stopped {
        return Err(wrong(context, text));
    }
    let came = |reply: StepReply| {
        Dynamic::from(Came {
            reply: Arc::new(reply),
            cast: Arc::clone(&cast),
        })
    };
    Ok(replies.into_iter().map(came).collect())
}

fn rest(engine: &mut Engine) {
    engine
        .register_fn("sleep", |c: NativeCallContext<'_>, text: &str| {
            let span: Span = parsed(&c, "sleep", text)?;
            value(&c, HostCall::Sleep { span })
        })
        .register_fn(
            "contact",
            |c: NativeCallContext<'_>, node: &str, within: &str| -> Said<Dynamic> {
                let node = parsed(&c, "contact", node)?;
                let within = parsed(&c, "contact", within)?;
                value(&c, HostCall::Contact { node, within })
            },
        )
        .register_fn("machine", |c: NativeCallContext<'_>, map: Map| {
            machine(&c, &map)
        })
        .register_fn("now", |c: NativeCallContext<'_>| value(&c, HostCall::Now))
        .register_fn(
            "random",
            |c: NativeCallContext<'_>, from: i64, to: i64| -> Said<Dynamic> {
                if from > to {
                    return Err(wrong(&c, "random takes the least first, then the most"));
                }
                value(&c, HostCall::Random { from, to })
            },
        )
        .register_fn("ask", |c: NativeCallContext<'_>, question: &str| {
            let question = words(&c, "ask", question)?;
            let answers = Vec::new();
            value(&c, HostCall::Ask { question, answers })
        })
        .register_fn(
            "ask",
            |c: NativeCallContext<'_>, question: &str, answers: Array| -> Said<Dynamic> {
                let answers = answers
                    .into_iter()
                    .map(Dynamic::into_string)
                    .collect::<Result<Vec<String>, _>>()
                    .map_err(|kind| wrong(&c, format!("an answer is a text, not a {kind}")))?;
                if answers.len() > MAX_LIST || answers.iter().any(|a| a.len() > 200) {
                    let text = format!("ask takes at most {MAX_LIST} answers of 200 bytes each");
                    return Err(wrong(&c, text));
                }
                let question = words(&c, "ask", question)?;
                value(&c, HostCall::Ask { question, answers })
            },
        )
        .register_fn("log", |c: NativeCallContext<'_>, text: &str| {
            let text = words(&c, "log", text)?;
            value(&c, HostCall::Log { text })
        })
        .register_fn(
            "emit",
            |c: NativeCallContext<'_>, kind: &str, fields: Map| emit(&c, kind, fields),
        )
        .register_fn("emit", |c: NativeCallContext<'_>, kind: &str| {
            emit(&c, kind, Map::new())
        })
        .register_fn(
            "run_scenario",
            |c: NativeCallContext<'_>, name: &str, params: Map, with: Map| {
                other(&c, name, params, with)
            },
        )
        .register_fn(
            "run_scenario",
            |c: NativeCallContext<'_>, name: &str, params: Map| other(&c, name, params, Map::new()),
        )
        .register_fn("run_scenario", |c: NativeCallContext<'_>, name: &str| {
            other(&c, name, Map::new(), Map::new())
        })
        .register_fn(
            "abort",
            |c: NativeCallContext<'_>, text: &str| -> Said<()> {
                let at = c.call_position();
                let carried = Carried::of(&c)?;
                let text = printable(text, 500);
                carried
                    .lock()
                    .stop
                    .get_or_insert(Stop::Aborted { text, at });
                Err(unwind(at))
            },
        );
}

fn machine(context: &NativeCallContext<'_>, map: &Map) -> Said<Dynamic> {
    let map = data(context, "machine", map)?;
    if !secret::names(&map).is_empty() {
        let text = "machine: a secret parameter cannot be handed to a machine";
        return Err(wrong(context, text));
    }
    let machine::Said { machine, keep } =
        machine::Said::read(map).map_err(|why| wrong(context, format!("machine: {why}")))?;
    let (number, reply) = told(context, HostCall::Machine { machine, keep })?;
    // Also of one that could not be made: whether anything of it is there
    // only its record says.
    if !keep {
        let carried = Carried::of(context)?;
        carried.lock().undo.push(Undo::Machine { of: number });
    }
    match reply {
        Reply::Value(value) => Ok(plain::from_json(&value)),
        Reply::Error(text) => Err(wrong(context, text)),
        _ => Err(foreign(context)),
    }
}

fn emit(context: &NativeCallContext<'_>, kind: &str, fields: Map) -> Said<Dynamic> {
    let call = HostCall::Emit {
        kind: plain::event_kind(kind).map_err(|e| wrong(context, e))?,
        fields: data(context, "the fields", &fields)?,
    };
    value(context, call)
}

fn other(context: &NativeCallContext<'_>, name: &str, params: Map, with: Map) -> Said<Dynamic> {
    let mut on = None;
    for (key, value) in with {
        if key != "on" {
            let key = printable(&key, 40);
            let text = format!("run_scenario has no option `{key}`; there is: on");
            return Err(wrong(context, text));
        }
        let text = value.into_string().map_err(|kind| {
            wrong(
                context,
                format!("run_scenario: `on` is a predicate such as \"role=web\", not a {kind}"),
            )
        })?;
        let predicate =
            Predicate::parse(&text).map_err(|e| wrong(context, format!("run_scenario: {e}")))?;
        on = Some(predicate.text().to_owned());
    }
    let call = HostCall::RunScenario {
        scenario: parsed(context, "run_scenario", name)?,
        params: data(context, "the parameters", &params)?,
        on,
    };
    value(context, call)
}
