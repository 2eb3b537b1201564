//! A trigger as it is declared, and what it makes of an event. Pure.

use std::time::Duration;

use muster_protocol::api::{
    ClusterEvent, Confirm, OWN_SOURCE, Role, RunRequest, TriggerTested, TriggerView,
};
use muster_protocol::envelope::{Door, Mode};
use muster_protocol::ids::RunId;
use muster_protocol::names::{HookName, PrincipalName, ScenarioName, TriggerName};
use muster_protocol::origin::Origin;
use muster_protocol::predicate::Predicate;
use muster_protocol::text::printable;
use muster_protocol::units::{Amount, Span};
use muster_scenarios::{command, upgrade};
use serde::Deserialize;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use crate::authz::Caller;
use crate::events::fields::{Fields, MOST, either, flatten, globs, json};
use crate::events::glob::Glob;
use crate::hooks::path::Path;
use crate::hooks::rate::Rate;
use crate::vm::Repair;

/// How many runs a trigger starts when nothing is said.
const RATE: Rate = Rate::new(60, 3_600);
/// Most runs that its rate can name: each is remembered.
const MOST_RUNS: u32 = 1_000;
/// How old an event may be when nothing is said.
const WITHIN: Span = Span::from_secs(3_600);
/// Largest value that is taken out of an event, as JSON.
const MAX_VALUE: usize = 64 * 1024;
/// What triggers themselves tell: never anything for a trigger.
const OWN_KINDS: [&str; 2] = ["trigger.started", "alarm.trigger-refused"];

/// A trigger as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawTrigger {
    when: toml::Table,
    scenario: Option<ScenarioName>,
    machine: Option<MachineDeed>,
    version: Option<u32>,
    #[serde(default)]
    params: toml::Table,
    on: Option<String>,
    principal: Option<PrincipalName>,
    role: Option<Role>,
    rate: Option<String>,
    within: Option<Span>,
    batch: Option<Amount>,
    max_failures: Option<Amount>,
    timeout: Option<Span>,
    #[serde(default)]
    dry_run: bool,
}

/// What a trigger does with the machine that an event tells of.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "snake_case")]
enum MachineDeed {
    /// It is started again, when it was stopped by hand.
    Start,
}

/// The kind of event that tells of such a machine.
const DRIFT: &str = "vm.drift";
/// What starts a machine: shown, and asked for through its record alone.
const POWER: &str = "vm-power";

/// What an event must be.
#[derive(Clone, Debug)]
pub struct When {
    kinds: Vec<Glob>,
    hook: Option<HookName>,
    principal: Option<Glob>,
    fields: Fields,
    /// As it was written.
    shown: Map<String, Value>,
}

/// Where a parameter comes from.
#[derive(Clone, Debug)]
enum Source {
    Literal(Value),
    Path(Path),
}

/// A trigger.
#[derive(Clone, Debug)]
pub struct Trigger {
    /// What an event must be.
    pub when: When,
    machine: Option<MachineDeed>,
    scenario: ScenarioName,
    version: Option<u32>,
    params: Vec<(String, Source)>,
    shown: Map<String, Value>,
    on: Option<String>,
    principal: PrincipalName,
    role: Role,
    rate: Rate,
    within: Span,
    batch: Option<Amount>,
    max_failures: Option<Amount>,
    timeout: Option<Span>,
    mode: Mode,
}

/// Why an event makes no run of a trigger that it fits.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Unfit {
    /// What a parameter is looked up by is not in the event.
    #[error("parameter `{param}`: the event has nothing at {path}{hint}")]
    Missing {
        /// The parameter.
        param: String,
        /// Where it was looked for.
        path: String,
        /// More, when there is more to say.
        hint: &'static str,
    },
    /// Too large to be a parameter.
    #[error("parameter `{param}`: what the event has at {path} is too large for a parameter")]
    TooLarge {
        /// The parameter.
        param: String,
        /// Where it is.
        path: String,
    },
    /// The event is from long ago.
    #[error(
        "the event is {age} old, and a run is started within {within} only (`within` of the trigger says so)"
    )]
    Late {
        /// How old.
        age: Span,
        /// How old it may be.
        within: Span,
    },
}

/// An event tells of something that a start of the machine does not mend.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("it tells of no machine of muster's that is stopped and should run")]
pub struct NotStopped;

impl RawTrigger {
    /// What is run: by itself, or for a machine.
    fn scenario_of(&self) -> Result<ScenarioName, String> {
        match (&self.scenario, self.machine) {
            (Some(scenario), None) => Ok(scenario.clone()),
            (None, None) => Err(
                "`scenario` says what is run, or `machine = \"start\"` that the machine is started"
                    .to_owned(),
            ),
            (Some(_), Some(_)) => Err("`scenario` or `machine`, not both".to_owned()),
            (None, Some(_)) => {
                let more = self.version.is_some()
                    || !self.params.is_empty()
                    || self.on.is_some()
                    || self.batch.is_some()
                    || self.max_failures.is_some()
                    || self.timeout.is_some()
                    || self.dry_run;
                if more {
                    return Err("with `machine` there are only `when`, `principal`, `role`, `rate` and `within`".to_owned());
                }
                POWER.parse().map_err(|e| format!("{e}"))
            }
        }
    }
}

impl When {
    fn checked(table: toml::Table) -> Result<Self, Vec<String>> {
        let mut flat = Map::new();
        if let Value::Object(table) = json(toml::Value::Table(table)) {
            flatten(table, "", &mut flat);
        }
        let mut wrong = Vec::new();
        let mut when = Self {
            kinds: Vec::new(),
            hook: None,
            principal: None,
            fields: Fields::default(),
            shown: flat.clone(),
        };
        if flat.len() > MOST {
            return Err(vec![format!(
                "`when`: at most {MOST} conditions are possible"
            )]);
        }
        for (name, value) in flat {
            let said = match (name.as_str(), value) {
                ("kind" | "type", value) => globs(value).map(|kinds| when.kinds = kinds),
                ("hook", Value::String(text)) => text
                    .parse()
                    .map(|hook| when.hook = Some(hook))
                    .map_err(|e| format!("{e}")),
                ("principal", Value::String(text)) => text
                    .parse()
                    .map(|glob| when.principal = Some(glob))
                    .map_err(|e| format!("{e}")),
                ("hook" | "principal", _) => Err("it is a text".to_owned()),
                (field, value) => Fields::field(field, value).map(|field| when.fields.push(field)),
            };
            if let Err(error) = said {
                wrong.push(format!("`when`: `{}`: {error}", printable(&name, 80)));
            }
        }
        if when.kinds.is_empty() && wrong.is_empty() {
            wrong.push("`when` needs a `kind`, such as `git.push`".to_owned());
        }
        if wrong.is_empty() {
            Ok(when)
        } else {
            Err(wrong)
        }
    }

    /// The webhook that an event must come through.
    #[must_use]
    pub fn hook(&self) -> Option<&HookName> {
        self.hook.as_ref()
    }

    /// Whether an event could be it, by what costs nothing to look at.
    #[must_use]
    pub fn may_fit(&self, event: &ClusterEvent) -> bool {
        self.misfit(event).is_none()
    }

    fn misfit(&self, event: &ClusterEvent) -> Option<String> {
        if OWN_KINDS.contains(&event.kind.as_str()) {
            return Some("what triggers themselves tell is for no trigger".to_owned());
        }
        if !self.kinds.iter().any(|kind| kind.fits(&event.kind)) {
            return Some(format!(
                "its kind is {}, not {}",
                event.kind,
                either(&self.kinds)
            ));
        }
        if let Some(hook) = &self.hook
            && event.hook.as_ref() != Some(hook)
        {
            return Some(format!("it does not come through webhook {hook}"));
        }
        match (&self.principal, &event.principal) {
            // Whoever may put events in is not who may run what comes of it.
            (None, Some(by)) => Some(format!(
                "{by} put it in, and `when` does not say that their events count (`principal`)"
            )),
            (Some(wanted), by) if by.as_ref().is_none_or(|by| !wanted.fits(by.as_str())) => {
                Some(format!("it was not put in by {wanted}"))
            }
            _ => None,
        }
    }

    /// Why an event is not what is wanted; `None` when it is. `value` is the
    /// event as JSON.
    #[must_use]
    pub fn unfit(&self, event: &ClusterEvent, value: &Value) -> Option<String> {
        self.misfit(event)
            .or_else(|| self.fields.misfits(value).next())
    }

    /// As [`When::unfit`], with every field that is not what is wanted.
    #[must_use]
    pub fn unfit_whole(&self, event: &ClusterEvent, value: &Value) -> Option<String> {
        self.misfit(event).or_else(|| {
            let all: Vec<String> = self.fields.misfits(value).collect();
            (!all.is_empty()).then(|| all.join("; "))
        })
    }
}

impl Trigger {
    /// Whether an event tells of a run that this trigger has begun: it makes
    /// no other one of that, or there would be no end to it.
    #[must_use]
    pub fn is_own(&self, event: &ClusterEvent) -> bool {
        let says =
            |field: &str, what: &str| event.fields.get(field).and_then(Value::as_str) == Some(what);
        event.source == OWN_SOURCE
            && says("door", "hook")
            && says("principal", self.principal.as_str())
            && says("scenario", self.scenario.as_str())
    }

    /// Holds what is written against everything that can be known of it
    /// without an event.
    ///
    /// # Errors
    /// All mistakes.
    pub fn checked(name: &TriggerName, raw: RawTrigger) -> Result<Self, Vec<String>> {
        let mut wrong = Vec::new();
        let scenario = raw.scenario_of();
        let when = match When::checked(raw.when) {
            Ok(when) => Some(when),
            Err(errors) => {
                wrong.extend(errors);
                None
            }
        };
        let scenario = match scenario {
            Ok(scenario) => scenario,
            Err(error) => {
                wrong.push(error);
                return Err(wrong);
            }
        };
        if let Some(when) = &when
            && raw.machine.is_some()
            && when.kinds.iter().any(|kind| kind.as_str() != DRIFT)
        {
            wrong.push(format!("`machine` is for `kind = \"{DRIFT}\"` alone"));
        }
        if scenario.as_str() == upgrade::NAME {
            wrong.push(format!("`{}` is never run by a trigger", upgrade::NAME));
        }
        if scenario.as_str() == command::NAME && raw.on.is_none() {
            wrong.push("`command` needs `on`".to_owned());
        }
        if let Some(on) = &raw.on
            && let Err(error) = on.parse::<Predicate>()
        {
            wrong.push(format!("`on`: {error}"));
        }
        if raw.params.len() > MOST {
            wrong.push(format!("`params`: at most {MOST} are possible"));
        }
        let Value::Object(shown) = json(toml::Value::Table(raw.params)) else {
            return Err(wrong);
        };
        let mut params = Vec::new();
        for (param, value) in shown.clone() {
            let source = match value {
                Value::String(text) if text.starts_with("$.") || text.starts_with("$[") => {
                    text.parse().map(Source::Path).map_err(|e| format!("{e}"))
                }
                // `$$.x` is the text `$.x`.
                Value::String(text) if text.starts_with("$$") => {
                    Ok(Source::Literal(Value::String(text[1..].to_owned())))
                }
                value => Ok(Source::Literal(value)),
            };
            match source {
                Ok(source) => params.push((param, source)),
                Err(error) => wrong.push(format!("`params`: `{}`: {error}", printable(&param, 80))),
            }
        }
        let rate = match raw.rate.as_deref().map_or(Ok(RATE), str::parse::<Rate>) {
            Ok(rate) if rate.count() <= MOST_RUNS => Some(rate),
            Ok(_) => {
                wrong.push(format!("`rate`: at most {MOST_RUNS} runs can be said"));
                None
            }
            Err(error) => {
                wrong.push(format!("`rate`: {error}"));
                None
            }
        };
        let principal = raw.principal.map_or_else(
            || {
                format!("trigger:{name}")
                    .parse()
                    .map_err(|e| format!("{e}"))
            },
            Ok,
        );
        if matches!(raw.role, Some(Role::Admin | Role::NodeEnroller)) {
            wrong.push("`role` is member (what policies give), reader or operator".to_owned());
        }
        match (when, rate, principal) {
            (Some(when), Some(rate), Ok(principal)) if wrong.is_empty() => Ok(Self {
                when,
                machine: raw.machine,
                scenario,
                version: raw.version,
                params,
                shown,
                on: raw.on,
                principal,
                role: raw.role.unwrap_or(Role::Member),
                rate,
                within: raw.within.unwrap_or(WITHIN),
                batch: raw.batch,
                max_failures: raw.max_failures,
                timeout: raw.timeout,
                mode: if raw.dry_run {
                    Mode::Check
                } else {
                    Mode::Apply
                },
            }),
            (_, _, principal) => {
                wrong.extend(principal.err());
                Err(wrong)
            }
        }
    }

    /// How many runs it may start.
    #[must_use]
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// What it runs, in a few words.
    #[must_use]
    pub fn title(&self) -> &str {
        match self.machine {
            Some(MachineDeed::Start) => "a start of the machine",
            None => self.scenario.as_str(),
        }
    }

    /// The machine that an event is of, where this trigger starts machines
    /// again: `None` of what starting it does not mend.
    #[must_use]
    pub fn machine(&self, event: &ClusterEvent) -> Option<Result<Repair, NotStopped>> {
        let MachineDeed::Start = self.machine?;
        let text = |field: &str| event.fields.get(field).and_then(Value::as_str);
        let is_stopped = event.source == OWN_SOURCE
            && text("what") == Some("state")
            && event.fields.get("should_run") == Some(&Value::Bool(true));
        let name = text("vm").and_then(|name| name.parse().ok());
        let id = text("id").and_then(|id| id.parse().ok());
        Some(match (name, id) {
            (Some(name), Some(id)) if is_stopped => Ok(Repair {
                name,
                id,
                event: event.id.clone(),
            }),
            _ => Err(NotStopped),
        })
    }

    /// The parameters for an event.
    ///
    /// # Errors
    /// [`Unfit`].
    pub fn params(&self, event: &Value) -> Result<Map<String, Value>, Unfit> {
        self.params
            .iter()
            .map(|(param, source)| {
                let value = match source {
                    Source::Literal(value) => value.clone(),
                    Source::Path(path) => {
                        let found = path.find(event).filter(|value| !value.is_null());
                        let found = found.ok_or_else(|| Unfit::Missing {
                            param: param.clone(),
                            path: path.to_string(),
                            hint: if event["data"].get("payload_left_out").is_some() {
                                "; the body was too large to be kept whole"
                            } else {
                                ""
                            },
                        })?;
                        if found.to_string().len() > MAX_VALUE {
                            return Err(Unfit::TooLarge {
                                param: param.clone(),
                                path: path.to_string(),
                            });
                        }
                        found.clone()
                    }
                };
                Ok((param.clone(), value))
            })
            .collect()
    }

    /// Refuses an event that is too old.
    ///
    /// # Errors
    /// [`Unfit::Late`].
    pub fn in_time(&self, age: Duration) -> Result<(), Unfit> {
        if age > self.within.get() {
            return Err(Unfit::Late {
                age: Span::from_secs(age.as_secs()),
                within: self.within,
            });
        }
        Ok(())
    }

    /// What is asked for. Nobody is there to be asked.
    #[must_use]
    pub fn request(&self, params: Map<String, Value>) -> RunRequest {
        RunRequest {
            predicate: self.on.clone(),
            version: self.version,
            params: Value::Object(params),
            mode: self.mode,
            batch: self.batch,
            max_failures: self.max_failures,
            timeout: self.timeout,
            confirm: Confirm::Yes,
            ..RunRequest::of(self.scenario.clone())
        }
    }

    /// As whom it asks.
    #[must_use]
    pub fn caller(&self, name: &TriggerName, event: &ClusterEvent) -> Caller {
        let text = |hook: Option<&HookName>| hook.map(ToString::to_string).unwrap_or_default();
        Caller {
            principal: self.principal.clone(),
            role: self.role,
            token: "none: a trigger".to_owned(),
            door: Door::Hook,
            origin: Origin::Hook {
                hook: text(event.hook.as_ref()),
                delivery: event.delivery.clone().unwrap_or_default(),
                trigger: name.to_string(),
                event: event.id.clone(),
            },
        }
    }

    /// As it is shown.
    #[must_use]
    pub fn view(&self, name: &TriggerName) -> TriggerView {
        TriggerView {
            name: name.clone(),
            when: self.when.shown.clone(),
            scenario: self.scenario.clone(),
            params: self.shown.clone(),
            on: self.on.clone(),
            principal: self.principal.clone(),
            rate: self.rate.to_string(),
            within: self.within,
            last: None,
        }
    }

    /// What it would do with an event, as far as that can be said without
    /// asking anybody.
    #[must_use]
    pub fn tested(&self, name: &TriggerName, event: &ClusterEvent, value: &Value) -> TriggerTested {
        let unfit = self.when.unfit_whole(event, value);
        let unfit = unfit.or_else(|| match self.machine(event) {
            Some(Err(not)) => Some(not.to_string()),
            _ => None,
        });
        let (params, problem) = match self.params(value) {
            _ if unfit.is_some() => (Map::new(), None),
            Ok(params) => (params, None),
            Err(error) => (Map::new(), Some(error.to_string())),
        };
        TriggerTested {
            name: name.clone(),
            unfit,
            scenario: self.scenario.clone(),
            principal: self.principal.clone(),
            params,
            on: self.on.clone(),
            nodes: None,
            allowed: None,
            problem,
            waits: Vec::new(),
        }
    }
}

/// The id of the run that a trigger makes of an event: always the same.
#[must_use]
pub(super) fn run_id(trigger: &TriggerName, event: &ClusterEvent) -> RunId {
    let mut hash = Sha256::new();
    hash.update(b"muster trigger 1\0");
    for part in [trigger.as_str(), &event.source, &event.id] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let digest: [u8; 32] = hash.finalize().into();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    RunId::from_bytes(bytes)
}
