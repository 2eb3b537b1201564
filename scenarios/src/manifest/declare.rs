//! The functions that a script may call at its top, and what they note down.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use muster_protocol::names::{FunctionName, LabelKey};
use muster_protocol::predicate::Predicate;
use muster_protocol::units::{Amount, Span};
use regex::RegexBuilder;
use rhai::{Dynamic, Engine, Map, NativeCallContext, Position};
use serde_json::Value;

use super::{Budget, MAX_SETS, MAX_WINDOWS};
use crate::fault::nearest;
use crate::param::{Kind, MAX_PARAMS, Param, Typed, is_name};
use crate::when::Cron;

/// Largest compiled form of one `matches`, in bytes.
const MAX_REGEX: usize = 64 * 1024;
/// Longest text for people, in characters.
const MAX_TEXT: usize = 500;
/// Most tries after the first.
const MAX_RETRY: i64 = 10;
/// Most approvals that can be asked for.
const MAX_APPROVALS: i64 = 10;

/// What was wrong with a call at the top, where.
pub(super) struct Complaint {
    pub(super) at: Position,
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

/// What was declared so far.
#[derive(Default)]
pub(super) struct Declared {
    pub(super) about: Option<String>,
    pub(super) params: Vec<Param>,
    pub(super) target: Option<Predicate>,
    pub(super) also: BTreeMap<String, Predicate>,
    pub(super) batch: Option<Amount>,
    pub(super) budgets: Vec<Budget>,
    pub(super) timeout: Option<Span>,
    pub(super) retry: Option<u32>,
    pub(super) confirm: Option<()>,
    pub(super) approvals: Option<u32>,
    pub(super) locks: BTreeSet<String>,
    pub(super) windows: Vec<Cron>,
    /// With the place of the call: whether the function exists is known when
    /// the whole script is.
    pub(super) idempotent: BTreeMap<FunctionName, Position>,
    pub(super) allow_check: Option<()>,
    pub(super) complaints: Vec<Complaint>,
}

/// Why a call is not taken, and what to do.
struct Wrong(String, Option<String>);

impl From<String> for Wrong {
    fn from(message: String) -> Self {
        Self(message, None)
    }
}

impl From<&str> for Wrong {
    fn from(message: &str) -> Self {
        Self(message.to_owned(), None)
    }
}

/// The notes, shared with the functions in the engine.
#[derive(Clone, Default)]
pub(super) struct Notes(Arc<Mutex<Declared>>);

impl Notes {
    pub(super) fn take(&self) -> Declared {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Declared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a declaration down, or why it is not taken: one mistake does not
    /// hide the next.
    fn note(
        &self,
        context: &NativeCallContext<'_>,
        take: impl FnOnce(&mut Declared) -> Result<(), Wrong>,
    ) {
        let mut declared = self.lock();
        if let Err(Wrong(message, hint)) = take(&mut declared) {
            declared.complaints.push(Complaint {
                at: context.call_position(),
                message,
                hint,
            });
        }
    }
}

/// Sets what may be said once.
fn once<T>(slot: &mut Option<T>, what: &str, value: T) -> Result<(), Wrong> {
    if slot.is_some() {
        return Err(format!("`{what}` is declared twice").into());
    }
    *slot = Some(value);
    Ok(())
}

fn text(what: &str, text: &str) -> Result<String, Wrong> {
    if text.trim().is_empty() || text.chars().count() > MAX_TEXT {
        return Err(format!("`{what}` takes a text of 1 to {MAX_TEXT} characters").into());
    }
    Ok(text.to_owned())
}

fn predicate(text: &str) -> Result<Predicate, Wrong> {
    Predicate::parse(text).map_err(|error| {
        let rendered = error.render(text);
        let mut lines = rendered.lines();
        let message = lines.next().unwrap_or_default();
        let message = message.strip_prefix("error: ").unwrap_or(message);
        let rest: Vec<&str> = lines.collect();
        Wrong(
            format!("in the predicate: {message}"),
            Some(format!("\n{}", rest.join("\n"))),
        )
    })
}

fn amount(what: &str, value: &Dynamic) -> Result<Amount, Wrong> {
    let parsed = match value.as_int() {
        Ok(count) => u32::try_from(count).ok().map(Amount::Count),
        Err(_) => value
            .clone()
            .into_string()
            .ok()
            .and_then(|text| text.parse().ok()),
    };
    parsed.ok_or_else(|| {
        format!("`{what}` takes a number of nodes or a percentage: `{what}(10)`, `{what}(\"25%\")`")
            .into()
    })
}

fn count(what: &str, value: i64, most: i64) -> Result<u32, Wrong> {
    u32::try_from(value)
        .ok()
        .filter(|count| i64::from(*count) <= most)
        .ok_or_else(|| format!("`{what}` takes a number from 0 to {most}").into())
}

/// Gives the engine the functions of a manifest.
pub(super) fn register(engine: &mut Engine, notes: &Notes) {
    let own = notes.clone();
    engine.register_fn("scenario", move |c: NativeCallContext<'_>, about: &str| {
        own.note(&c, |d| {
            let about = text("scenario", about)?;
            once(&mut d.about, "scenario", about)
        });
    });
    let own = notes.clone();
    engine.register_fn("param", move |c: NativeCallContext<'_>, name: &str| {
        own.note(&c, |d| param(d, name, Map::new()));
    });
    let own = notes.clone();
    engine.register_fn(
        "param",
        move |c: NativeCallContext<'_>, name: &str, rules: Map| {
            own.note(&c, |d| param(d, name, rules));
        },
    );
    let own = notes.clone();
    engine.register_fn("target", move |c: NativeCallContext<'_>, text: &str| {
        own.note(&c, |d| {
            let target = predicate(text)?;
            once(&mut d.target, "target", target)
        });
    });
    let own = notes.clone();
    engine.register_fn(
        "also",
        move |c: NativeCallContext<'_>, name: &str, text: &str| {
            own.note(&c, |d| also(d, name, text));
        },
    );
    let own = notes.clone();
    engine.register_fn("batch", move |c: NativeCallContext<'_>, value: Dynamic| {
        own.note(&c, |d| {
            let value = amount("batch", &value)?;
            if value.is_zero() {
                return Err("a batch of no nodes would never end".into());
            }
            once(&mut d.batch, "batch", value)
        });
    });
    let own = notes.clone();
    engine.register_fn(
        "max_failures",
        move |c: NativeCallContext<'_>, value: Dynamic| {
            own.note(&c, |d| budget(d, &value, None));
        },
    );
    let own = notes.clone();
    engine.register_fn(
        "max_failures",
        move |c: NativeCallContext<'_>, value: Dynamic, options: Map| {
            own.note(&c, |d| budget(d, &value, Some(options)));
        },
    );
    let own = notes.clone();
    engine.register_fn("timeout", move |c: NativeCallContext<'_>, text: &str| {
        own.note(&c, |d| {
            let span: Span = text
                .parse()
                .map_err(|e| Wrong::from(format!("`timeout`: {e}")))?;
            once(&mut d.timeout, "timeout", span)
        });
    });
    let own = notes.clone();
    engine.register_fn("retry", move |c: NativeCallContext<'_>, value: i64| {
        own.note(&c, |d| {
            let value = count("retry", value, MAX_RETRY)?;
            once(&mut d.retry, "retry", value)
        });
    });
    let own = notes.clone();
    engine.register_fn("approvals", move |c: NativeCallContext<'_>, value: i64| {
        own.note(&c, |d| {
            let value = count("approvals", value, MAX_APPROVALS)?;
            once(&mut d.approvals, "approvals", value)
        });
    });
    let own = notes.clone();
    engine.register_fn("confirm", move |c: NativeCallContext<'_>| {
        own.note(&c, |d| once(&mut d.confirm, "confirm", ()));
    });
    let own = notes.clone();
    engine.register_fn("allow_check", move |c: NativeCallContext<'_>| {
        own.note(&c, |d| once(&mut d.allow_check, "allow_check", ()));
    });
    let own = notes.clone();
    engine.register_fn("lock", move |c: NativeCallContext<'_>, name: &str| {
        own.note(&c, |d| {
            if !is_name(&name.replace('-', "_")) {
                return Err("`lock` takes a name of small letters, digits, `_` and `-`".into());
            }
            if !d.locks.insert(name.to_owned()) {
                return Err(format!("the lock `{name}` is declared twice").into());
            }
            Ok(())
        });
    });
    let own = notes.clone();
    engine.register_fn("window", move |c: NativeCallContext<'_>, text: &str| {
        own.note(&c, |d| {
            let window: Cron = text
                .parse()
                .map_err(|e| Wrong(format!("`window`: {e}"), None))?;
            if d.windows.len() >= MAX_WINDOWS {
                return Err(format!("there are more than {MAX_WINDOWS} windows").into());
            }
            if d.windows.contains(&window) {
                return Err(format!("the window `{window}` is declared twice").into());
            }
            d.windows.push(window);
            Ok(())
        });
    });
    let own = notes.clone();
    engine.register_fn("idempotent", move |c: NativeCallContext<'_>, name: &str| {
        let at = c.call_position();
        own.note(&c, |d| {
            let name: FunctionName = name.parse().map_err(|e| Wrong::from(format!("{e}")))?;
            d.idempotent.insert(name, at);
            Ok(())
        });
    });
}

fn also(declared: &mut Declared, name: &str, text: &str) -> Result<(), Wrong> {
    if !is_name(name) || name == "targets" {
        return Err(format!(
            "`{}` cannot name a node set: it takes small letters, digits and `_`, and `targets` is the target",
            muster_protocol::text::printable(name, 60)
        )
        .into());
    }
    if declared.also.len() >= MAX_SETS {
        return Err(format!("there are more than {MAX_SETS} node sets").into());
    }
    if declared.also.contains_key(name) {
        return Err(format!("the node set `{name}` is declared twice").into());
    }
    declared.also.insert(name.to_owned(), predicate(text)?);
    Ok(())
}

fn budget(declared: &mut Declared, value: &Dynamic, options: Option<Map>) -> Result<(), Wrong> {
    let amount = amount("max_failures", value)?;
    let mut by = None;
    for (key, value) in options.unwrap_or_default() {
        if key != "by" {
            return Err(unknown("max_failures", &key, &["by"]));
        }
        let label: LabelKey = value
            .into_string()
            .unwrap_or_default()
            .parse()
            .map_err(|e| Wrong::from(format!("`by`: {e}")))?;
        by = Some(label);
    }
    if declared.budgets.iter().any(|budget| budget.by == by) {
        return Err("this budget is declared twice".into());
    }
    declared.budgets.push(Budget { amount, by });
    Ok(())
}

fn unknown(what: &str, key: &str, known: &[&str]) -> Wrong {
    let hint = match nearest(key, known.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("there are: {}", known.join(", ")),
    };
    Wrong(
        format!(
            "`{what}` has no option `{}`",
            muster_protocol::text::printable(key, 40)
        ),
        Some(hint),
    )
}

/// The options of `param`.
const RULES: [&str; 9] = [
    "type", "default", "required", "min", "max", "matches", "one_of", "help", "secret",
];

fn param(declared: &mut Declared, name: &str, rules: Map) -> Result<(), Wrong> {
    if !is_name(name) {
        return Err(Wrong(
            format!(
                "`{}` cannot name a parameter",
                muster_protocol::text::printable(name, 60)
            ),
            Some("small letters, digits and `_`, at most 40, beginning with a letter".to_owned()),
        ));
    }
    if declared.params.len() >= MAX_PARAMS {
        return Err(format!("there are more than {MAX_PARAMS} parameters").into());
    }
    if declared.params.iter().any(|param| param.name == name) {
        return Err(format!("the parameter `{name}` is declared twice").into());
    }
    if let Some(key) = rules.keys().find(|key| !RULES.contains(&key.as_str())) {
        return Err(unknown("param", key, &RULES));
    }
    let in_rule = |rule: &str, what: String| Wrong::from(format!("`{rule}` of `{name}`: {what}"));
    let json = |rule: &str| -> Result<Option<Value>, Wrong> {
        rules
            .get(rule)
            .map(|value| {
                rhai::serde::from_dynamic(value)
                    .map_err(|_| in_rule(rule, "it is no plain value".to_owned()))
            })
            .transpose()
    };
    let word = |rule: &str| -> Result<Option<String>, Wrong> {
        rules
            .get(rule)
            .map(|value| {
                value
                    .clone()
                    .into_string()
                    .map_err(|_| in_rule(rule, "it must be a text".to_owned()))
            })
            .transpose()
    };
    let flag = |rule: &str| -> Result<Option<bool>, Wrong> {
        rules
            .get(rule)
            .map(|value| {
                value
                    .as_bool()
                    .map_err(|_| in_rule(rule, "it must be `true` or `false`".to_owned()))
            })
            .transpose()
    };

    let kind = match word("type")? {
        None => Kind::String,
        Some(word) => Kind::named(&word).ok_or_else(|| {
            let known = Kind::ALL.map(Kind::as_str);
            let hint = match nearest(&word, known) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("there are: {}", known.join(", ")),
            };
            Wrong(
                format!(
                    "there is no type `{}`",
                    muster_protocol::text::printable(&word, 40)
                ),
                Some(hint),
            )
        })?,
    };
    let bound = |rule: &str| -> Result<Option<Typed>, Wrong> {
        json(rule)?
            .map(|value| Typed::bound(kind, &value).map_err(|e| in_rule(rule, e)))
            .transpose()
    };
    let matches = word("matches")?
        .map(|pattern| {
            if kind != Kind::String {
                return Err(in_rule("matches", format!("a {kind} is not matched")));
            }
            RegexBuilder::new(&pattern)
                .size_limit(MAX_REGEX)
                .build()
                .map_err(|e| in_rule("matches", last_line(&e.to_string())))
        })
        .transpose()?;
    let one_of = match json("one_of")? {
        None => Vec::new(),
        Some(Value::Array(values)) if !values.is_empty() => values
            .iter()
            .map(|value| Typed::from_json(kind, value).map_err(|e| in_rule("one_of", e)))
            .collect::<Result<_, _>>()?,
        Some(_) => return Err(in_rule("one_of", "it must be a list of values".to_owned())),
    };
    let help = word("help")?.map(|help| text("help", &help)).transpose()?;
    let given = json("default")?;
    let required = match (flag("required")?, &given) {
        (Some(true), Some(_)) => {
            return Err(in_rule(
                "required",
                "a parameter with a default is never required".to_owned(),
            ));
        }
        (Some(required), _) => required,
        (None, default) => default.is_none(),
    };
    let mut made = Param {
        name: name.to_owned(),
        kind,
        default: None,
        required,
        min: bound("min")?,
        max: bound("max")?,
        matches,
        one_of,
        help,
        secret: flag("secret")?.unwrap_or(false),
    };
    if let (Some(min), Some(max)) = (&made.min, &made.max)
        && max.is_below(min)
    {
        return Err(in_rule("max", "it is below `min`".to_owned()));
    }
    if let Some(default) = given {
        if made.secret {
            return Err(in_rule(
                "default",
                "a secret in a script is none; leave the default out".to_owned(),
            ));
        }
        let default = Typed::from_json(kind, &default).map_err(|e| in_rule("default", e))?;
        made.fits(&default).map_err(|e| in_rule("default", e))?;
        made.default = Some(default);
    }
    declared.params.push(made);
    Ok(())
}

/// The part of a message of the regular expression's parser that says why.
fn last_line(text: &str) -> String {
    text.lines()
        .last()
        .map(|line| line.trim_start_matches("error: ").to_owned())
        .unwrap_or_default()
}
