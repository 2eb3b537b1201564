//! What a test may call.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use muster_protocol::envelope::Mode;
use muster_protocol::ids::Serial;
use muster_protocol::predicate::Predicate;
use muster_protocol::run::Outcome;
use muster_protocol::text::printable;
use rhai::{Array, Dynamic, Engine, EvalAltResult, Map, NativeCallContext};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::fleet::{Fake, MAX_NODES, Pattern, Rule, Shared};
use super::play::{Answer, Begin, Played, Subject, Went, play};
use crate::fault::nearest;
use crate::plain;

type Said<T> = Result<T, Box<EvalAltResult>>;
type Context<'a> = NativeCallContext<'a>;

/// Most effects that a test lists.
const MAX_SHOWN: usize = 20_000;

/// How deep calls are nested where a test calls something.
const IN_TEST: usize = 1;
/// Most nodes that a message names.
const MAX_NAMED: usize = 8;

/// What a test has set up.
pub(super) struct Bench {
    pub(super) subject: Subject,
    pub(super) fleet: Shared,
    pub(super) answers: Vec<Answer>,
}

/// The same as the engine carries it along.
#[derive(Clone)]
pub(super) struct Carried(pub(super) Arc<Mutex<Bench>>);

impl Carried {
    fn of(context: &Context<'_>) -> Said<Self> {
        context
            .tag()
            .and_then(|tag| tag.clone().try_cast::<Self>())
            .ok_or_else(|| wrong(context, "this can be called only in a test"))
    }

    fn lock(&self) -> MutexGuard<'_, Bench> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn wrong(context: &Context<'_>, message: impl Into<String>) -> Box<EvalAltResult> {
    let message: String = message.into();
    EvalAltResult::ErrorRuntime(message.into(), context.call_position()).into()
}

/// Options with their types; what is not among them is a mistake.
fn options<T: DeserializeOwned>(context: &Context<'_>, what: &str, map: &Map) -> Said<T> {
    let read = plain::map_to_json(map)
        .and_then(|map| serde_json::from_value(Value::Object(map)).map_err(|e| e.to_string()));
    read.map_err(|why| wrong(context, format!("{what}: {}", printable(&why, 200))))
}

/// A node of a test.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct About {
    roles: Vec<String>,
    labels: std::collections::BTreeMap<String, String>,
    facts: serde_json::Map<String, Value>,
    down: bool,
}

/// How a run is begun.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct How {
    on: Option<String>,
    dry_run: bool,
}

fn fake(context: &Context<'_>, name: &str, about: &Map) -> Said<()> {
    let About {
        roles,
        labels,
        facts,
        down,
    } = options(context, "fake", about)?;
    let name = name
        .parse()
        .map_err(|e| wrong(context, format!("fake: {e}")))?;
    let carried = Carried::of(context)?;
    let bench = carried.lock();
    let mut fleet = bench.fleet.lock();
    if fleet.nodes.len() >= MAX_NODES {
        let text = format!("a test has at most {MAX_NODES} nodes");
        return Err(wrong(context, text));
    }
    if fleet.there().any(|node| node.name == name) {
        return Err(wrong(context, format!("there is a node `{name}` already")));
    }
    let serial = Serial(u32::try_from(fleet.nodes.len()).unwrap_or(u32::MAX - 1) + 1);
    fleet.nodes.push(Fake {
        serial,
        name,
        roles,
        labels,
        facts: Value::Object(facts),
        down,
        gone: false,
    });
    Ok(())
}

fn pattern(context: &Context<'_>, text: &str) -> Said<Pattern> {
    Pattern::new(text).map_err(|e| wrong(context, e))
}

fn reply(context: &Context<'_>, nodes: &str, what: &str, value: &Map) -> Said<()> {
    let mut value = plain::map_to_json(value).map_err(|e| wrong(context, format!("reply: {e}")))?;
    let fails = match value.remove("fails") {
        None => None,
        Some(Value::String(text)) => Some(text),
        Some(_) => return Err(wrong(context, "reply: `fails` is the text of the error")),
    };
    let written = |text| printable(text, 80);
    let rule = Rule {
        written: format!("reply(\"{}\", \"{}\")", written(nodes), written(what)),
        nodes: pattern(context, nodes)?,
        what: pattern(context, what)?,
        fails,
        value,
        at: context.call_position(),
        common: context.call_level() > IN_TEST,
        fits: false,
        counted: false,
        parts: BTreeSet::new(),
    };
    let carried = Carried::of(context)?;
    let bench = carried.lock();
    bench.fleet.lock().rules.push(rule);
    Ok(())
}

fn answer(context: &Context<'_>, question: &str, text: &str) -> Said<()> {
    let answer = Answer {
        question: pattern(context, question)?,
        text: text.to_owned(),
    };
    Carried::of(context)?.lock().answers.push(answer);
    Ok(())
}

fn played(context: &Context<'_>, params: &Map, how: &Map) -> Said<Played> {
    let How { on, dry_run } = options(context, "play", how)?;
    let on = on
        .map(|on| Predicate::parse(&on))
        .transpose()
        .map_err(|e| wrong(context, format!("play: {e}")))?;
    let begin = Begin {
        params: plain::map_to_json(params).map_err(|e| wrong(context, format!("play: {e}")))?,
        on,
        mode: if dry_run { Mode::Check } else { Mode::Apply },
    };
    let carried = Carried::of(context)?;
    let (subject, fleet, answers) = {
        let bench = carried.lock();
        (
            bench.subject.clone(),
            bench.fleet.clone(),
            bench.answers.clone(),
        )
    };
    play(&subject, &fleet, &answers, &begin).map_err(|why| wrong(context, format!("play: {why}")))
}

fn shown(value: &Dynamic) -> String {
    let text = match plain::to_json(value) {
        Ok(value) => value.to_string(),
        Err(_) => value.to_string(),
    };
    printable(&text, 300)
}

/// Nodes whose name fits. None at all is a slip of the pen: of such nodes
/// everything and nothing can be said.
fn some(context: &Context<'_>, nodes: &str) -> Said<Pattern> {
    let fits = pattern(context, nodes)?;
    let carried = Carried::of(context)?;
    let bench = carried.lock();
    let fleet = bench.fleet.lock();
    if fleet.nodes.iter().any(|node| fits.fits(node.name.as_str())) {
        return Ok(fits);
    }
    let names: Vec<&str> = fleet.nodes.iter().map(|node| node.name.as_str()).collect();
    let hint = match (nearest(nodes, names.iter().copied()), names.len()) {
        (_, 0) => "there is none: fake(\"web-01\")".to_owned(),
        (Some(near), _) => format!("did you mean `{near}`?"),
        (None, count) if count > MAX_NAMED => {
            format!("there are: {}, …", names[..MAX_NAMED].join(", "))
        }
        (None, _) => format!("there are: {}", names.join(", ")),
    };
    let nodes = printable(nodes, 80);
    Err(wrong(
        context,
        format!("did: the test has no node `{nodes}`; {hint}"),
    ))
}

/// What one node was told to do.
fn did(context: &Context<'_>, played: &Played, node: &str) -> Said<Array> {
    if node.contains('*') {
        let text = "did: this gives what one node was told; for several, say what as well: did(\"web-*\", \"service *\")";
        return Err(wrong(context, text));
    }
    some(context, node)?;
    let effects = played.done.effects.iter();
    Ok(effects
        .filter(|(name, _)| name.as_str() == node)
        .map(|(_, title)| title.as_str().into())
        .take(MAX_SHOWN)
        .collect())
}

impl Bench {
    /// The names of nodes whose outcome is one of these.
    fn names(&self, went: &Went, which: impl Fn(Outcome) -> bool) -> Array {
        let fleet = self.fleet.lock();
        let nodes = went.reply.nodes.iter().filter(|node| which(node.outcome));
        nodes
            .filter_map(|node| fleet.node(node.serial))
            .map(|node| node.name.as_str().into())
            .collect()
    }

    fn step(&self, went: &Went) -> Dynamic {
        let reasons: Array = went
            .reply
            .nodes
            .iter()
            .filter_map(|node| node.reason.as_deref().map(Into::into))
            .collect();
        let map = Map::from([
            ("function".into(), went.function.as_str().into()),
            (
                "nodes".into(),
                self.names(went, |outcome| outcome != Outcome::Skipped)
                    .into(),
            ),
            (
                "failed".into(),
                self.names(went, |outcome| {
                    !matches!(outcome, Outcome::Succeeded | Outcome::Skipped)
                })
                .into(),
            ),
            (
                "skipped".into(),
                self.names(went, |outcome| outcome == Outcome::Skipped)
                    .into(),
            ),
            ("reasons".into(), reasons.into()),
        ]);
        Dynamic::from_map(map)
    }
}

/// Gives an engine what a test may call.
pub(crate) fn register(engine: &mut Engine) {
    engine
        .register_fn("fake", |c: Context<'_>, name: &str| {
            fake(&c, name, &Map::new())
        })
        .register_fn("fake", |c: Context<'_>, name: &str, about: Map| {
            fake(&c, name, &about)
        })
        .register_fn(
            "reply",
            |c: Context<'_>, nodes: &str, what: &str, value: Map| reply(&c, nodes, what, &value),
        )
        .register_fn("answer", |c: Context<'_>, question: &str, text: &str| {
            answer(&c, question, text)
        })
        .register_fn("play", |c: Context<'_>| {
            played(&c, &Map::new(), &Map::new())
        })
        .register_fn("play", |c: Context<'_>, params: Map| {
            played(&c, &params, &Map::new())
        })
        .register_fn("play", |c: Context<'_>, params: Map, how: Map| {
            played(&c, &params, &how)
        })
        .register_fn("assert", |c: Context<'_>, holds: bool| {
            if holds {
                Ok(())
            } else {
                Err(wrong(&c, "this does not hold"))
            }
        })
        .register_fn(
            "assert",
            |c: Context<'_>, holds: bool, text: &str| {
                if holds { Ok(()) } else { Err(wrong(&c, text)) }
            },
        )
        .register_fn(
            "assert_eq",
            |c: Context<'_>, left: Dynamic, right: Dynamic| {
                let same = match (plain::to_json(&left), plain::to_json(&right)) {
                    (Ok(left), Ok(right)) => left == right,
                    _ => return Err(wrong(&c, "assert_eq takes plain values")),
                };
                if same {
                    return Ok(());
                }
                let text = format!("these differ: {} and {}", shown(&left), shown(&right));
                Err(wrong(&c, text))
            },
        );

    engine
        .register_type_with_name::<Played>("Played")
        .register_get("ok", |played: &mut Played| played.error.is_none())
        .register_get("error", |played: &mut Played| {
            Dynamic::from(played.error.clone().unwrap_or_default())
        })
        .register_get("value", |played: &mut Played| {
            plain::from_json(&played.value)
        })
        .register_get("logs", |played: &mut Played| -> Array {
            let logs = played.done.logs.iter().take(MAX_SHOWN);
            logs.map(|line| line.as_str().into()).collect()
        })
        .register_get("events", |played: &mut Played| -> Array {
            let events = played.done.events.iter().take(MAX_SHOWN);
            let event = |(kind, fields): &(String, serde_json::Map<String, Value>)| {
                Dynamic::from_map(Map::from([
                    ("kind".into(), kind.as_str().into()),
                    (
                        "fields".into(),
                        Dynamic::from_map(plain::map_from_json(fields)),
                    ),
                ]))
            };
            events.map(event).collect()
        })
        .register_get("asked", |played: &mut Played| -> Array {
            played
                .asked
                .iter()
                .map(|text| text.as_str().into())
                .collect()
        })
        .register_get(
            "steps",
            |c: Context<'_>, played: &mut Played| -> Said<Array> {
                let carried = Carried::of(&c)?;
                let bench = carried.lock();
                Ok(played.steps.iter().map(|went| bench.step(went)).collect())
            },
        )
        .register_get(
            "undone",
            |c: Context<'_>, played: &mut Played| -> Said<Array> {
                let carried = Carried::of(&c)?;
                let bench = carried.lock();
                Ok(played.undone.iter().map(|went| bench.step(went)).collect())
            },
        )
        .register_fn("did", |c: Context<'_>, played: &mut Played, node: &str| {
            did(&c, played, node)
        })
        .register_fn(
            "did",
            |c: Context<'_>, played: &mut Played, nodes: &str, what: &str| -> Said<bool> {
                let (nodes, what) = (some(&c, nodes)?, pattern(&c, what)?);
                let mut effects = played.done.effects.iter();
                Ok(effects.any(|(name, title)| nodes.fits(name.as_str()) && what.fits(title)))
            },
        );
}
