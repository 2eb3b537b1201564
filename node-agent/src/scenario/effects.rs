//! What a script wants of this node, done.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use muster_protocol::envelope::Mode;
use muster_protocol::ids::RequestId;
use muster_protocol::note::{Digest, EVENT_PREFIX, MAX_EVENT, MAX_EVENTS, Note, Tally};
use muster_protocol::text::printable;
use muster_scenarios::node::{
    Change, Effect, FirewallCall, Host, HostError, NodeFacts, Performed, Source,
};
use muster_scenarios::secret::Secrets;
use serde_json::{Map, Value};

use crate::config::Capabilities;
use crate::host::firewall::{Came, Firewall};
use crate::host::package::{self, Packages};
use crate::host::tools::{Said, ToolError, Tools};
use crate::host::vm::{self, Machines};
use crate::host::web::Web;
use crate::host::{command, file, puppet, service, user};

/// Longest kind of an event.
const MAX_KIND: usize = 60;
/// Longest line that a script writes into the log, in characters.
const MAX_LOG: usize = 4_000;

/// What this node lets scripts do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Grants(Capabilities);

impl Grants {
    /// As configured.
    #[must_use]
    pub fn new(capabilities: Capabilities) -> Self {
        Self(capabilities)
    }

    /// What can be granted, and whether it is.
    fn all(self) -> [(&'static str, bool); 12] {
        [
            ("command", self.0.command),
            ("shell", self.0.shell),
            ("file", self.0.file),
            ("package", self.0.package),
            ("service", self.0.service),
            ("user", self.0.user),
            ("http", self.0.http),
            ("puppet", self.0.puppet),
            ("reboot", self.0.reboot),
            ("vm", self.0.vm),
            ("firewall", self.0.firewall),
            ("firewall_raw", self.0.firewall_raw),
        ]
    }

    /// Whether something is granted; what this agent does not know is not.
    #[must_use]
    pub fn has(self, capability: &str) -> bool {
        let mut all = self.all().into_iter();
        all.any(|(name, granted)| name == capability && granted)
    }

    /// Those that are granted and that only scripts have.
    #[must_use]
    pub fn beyond_commands(self) -> Vec<String> {
        self.all()
            .into_iter()
            .filter(|(name, granted)| *granted && !matches!(*name, "command" | "shell"))
            .map(|(name, _)| name.to_owned())
            .collect()
    }
}

/// The node, for one step.
pub(super) struct Effects {
    tools: Arc<Tools>,
    web: Web,
    packages: Packages,
    grants: Grants,
    mode: Mode,
    facts: Arc<NodeFacts>,
    secrets: Secrets,
    machines: Option<Machines>,
    firewall: Option<Firewall>,
    request: RequestId,
    counted: Mutex<Counted>,
}

struct Counted {
    tally: Tally,
    events: u32,
    /// Why its old rules are in force again, if they are.
    rolled_back: Option<String>,
    /// Over what would change so far.
    digest: Digest,
}

impl Effects {
    pub(super) fn new(
        tools: Arc<Tools>,
        grants: Grants,
        mode: Mode,
        facts: Arc<NodeFacts>,
        secrets: Secrets,
        (machines, firewall): (Option<Machines>, Option<Firewall>),
        request: RequestId,
    ) -> Self {
        Self {
            tools,
            web: Web::default(),
            packages: Packages::default(),
            grants,
            mode,
            facts,
            secrets,
            machines,
            firewall,
            request,
            counted: Mutex::new(Counted {
                tally: Tally::default(),
                events: 0,
                rolled_back: None,
                digest: Digest::NOTHING,
            }),
        }
    }

    /// What was counted, and what would change.
    pub(super) fn counted(&self) -> (Tally, Digest) {
        let counted = self.counts();
        (counted.tally, counted.digest)
    }

    /// Why the old rules of the firewall are in force again, if they are.
    pub(super) fn rolled_back(&self) -> Option<String> {
        self.counts().rolled_back.clone()
    }

    /// Goes on where an earlier start of the agent stopped counting.
    pub(super) fn restore(&self, tally: Tally) {
        self.counts().tally = tally;
    }

    fn counts(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that something has changed that was counted before.
    pub(super) fn say_changed(&self, effect: &Effect, summary: &str) {
        self.note(Note::Change {
            subject: self.secrets.mask(&effect.subject()),
            at: None,
            change: Change::Changed {
                summary: summary.to_owned(),
                diff: Vec::new(),
            },
        });
    }

    /// Whether this node lets scripts do that.
    pub(super) fn granted(&self, effect: &Effect) -> Result<(), HostError> {
        match effect.capability() {
            Some(capability) if !self.grants.has(capability) => {
                return Err(not_granted(capability));
            }
            _ => {}
        }
        // Nobody but nft knows what such rules do.
        match effect {
            Effect::Firewall(FirewallCall::Host { order })
                if order.rules.is_raw() && !self.grants.has("firewall_raw") =>
            {
                Err(not_granted("firewall_raw"))
            }
            _ => Ok(()),
        }
    }

    fn note(&self, note: Note) {
        self.tools.say(Said::Note(note));
    }

    fn count(&self, subject: &str, change: &Change) {
        let mut counted = self.counts();
        counted.tally.count(change);
        if let Change::WouldChange { summary, diff } = change {
            counted.digest = counted.digest.with(subject, summary, diff);
        }
    }

    fn event(&self, kind: &str, fields: &Map<String, Value>) -> Result<(), HostError> {
        let fail = |text: String| Err(HostError::Failed(text));
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
        if kind.is_empty() || kind.len() > MAX_KIND || !kind.chars().all(plain) {
            return fail(format!(
                "`{}` is not the kind of an event: small letters, digits, `.`, `_` and `-`",
                printable(kind, 60)
            ));
        }
        let bytes = Value::Object(fields.clone()).to_string().len();
        if bytes > MAX_EVENT {
            return fail(format!(
                "the fields have {bytes} bytes; an event takes {MAX_EVENT}"
            ));
        }
        {
            let mut counted = self.counts();
            counted.events += 1;
            if counted.events > MAX_EVENTS {
                return fail(format!("a step makes at most {MAX_EVENTS} events"));
            }
        }
        // Nothing has happened in a dry run.
        if self.mode == Mode::Apply {
            self.note(Note::Event {
                kind: format!("{EVENT_PREFIX}{kind}"),
                fields: match self.secrets.mask_value(Value::Object(fields.clone())) {
                    Value::Object(fields) => fields,
                    _ => Map::new(),
                },
            });
        }
        Ok(())
    }

    fn firewall(&self, call: &FirewallCall, mode: Mode) -> Result<Performed, HostError> {
        let firewall = self.firewall.as_ref().ok_or_else(no_firewall)?;
        let Came {
            performed,
            rolled_back,
        } = firewall.perform(&self.tools, call, mode, self.request);
        // A script may catch it, and change something else.
        if rolled_back.is_some() || (call.changes() && performed.is_ok()) {
            self.counts().rolled_back = rolled_back;
        }
        performed
    }

    /// The same change with no secret in what it says.
    fn masked(&self, change: &Change) -> Change {
        let mask = |lines: &[String]| lines.iter().map(|l| self.secrets.mask(l)).collect();
        match change {
            Change::Unchanged => Change::Unchanged,
            Change::Changed { summary, diff } => Change::Changed {
                summary: self.secrets.mask(summary),
                diff: mask(diff),
            },
            Change::WouldChange { summary, diff } => Change::WouldChange {
                summary: self.secrets.mask(summary),
                diff: mask(diff),
            },
        }
    }

    fn act(&self, effect: &Effect, mode: Mode, at: Source) -> Result<Performed, HostError> {
        let tools = &self.tools;
        let nothing = Performed {
            change: None,
            value: Value::Null,
        };
        Ok(match effect {
            Effect::Run(run) => {
                if run.only_if.is_some() && !self.grants.has("command") {
                    return Err(not_granted("command"));
                }
                command::perform(tools, run, mode)?
            }
            Effect::File { path, wish } => {
                let change = file::ensure(Path::new(path), wish, mode)
                    .map_err(|e| HostError::Failed(e.to_string()))?;
                Performed {
                    change: Some(change),
                    value: Value::Null,
                }
            }
            Effect::Package { name, wish, wait } => {
                let wait = wait.unwrap_or(package::LOCK_WAIT);
                self.packages.perform(tools, name, wish, wait, mode)?
            }
            Effect::Service { name, wish } => service::perform(tools, name, *wish, mode)?,
            Effect::User { name, wish } => user::perform(tools, name, wish, mode)?,
            Effect::Http(call) => self.web.perform(tools, call, mode)?,
            Effect::Puppet(run) => puppet::perform(tools, run, mode)?,
            Effect::Sleep { span } => {
                if mode == Mode::Apply {
                    tools
                        .wait(async { tokio::time::sleep(span.get()).await })
                        .map_err(|_: ToolError| HostError::Stopped)?;
                }
                nothing
            }
            Effect::Emit { kind, fields } => {
                self.event(kind, fields)?;
                nothing
            }
            Effect::Log { text } => {
                self.note(Note::Log {
                    text: self.secrets.mask(text).chars().take(MAX_LOG).collect(),
                    at: at.at.map(Into::into),
                });
                nothing
            }
            Effect::Reboot if mode == Mode::Check => Performed {
                change: Some(Change::WouldChange {
                    summary: "would restart".to_owned(),
                    diff: Vec::new(),
                }),
                value: Value::Null,
            },
            // Whoever can write down that it goes on has it; see `restart`.
            Effect::Reboot => return Err(not_granted("reboot")),
            Effect::Vm(call) => {
                let machines = self.machines.as_ref().ok_or_else(no_machines)?;
                vm::perform(tools, machines, call, mode)?
            }
            Effect::Firewall(call) => self.firewall(call, mode)?,
        })
    }
}

fn no_firewall() -> HostError {
    HostError::Failed(
        "the firewall is looked after by the running agent, in a run that a broker confirms: this cannot be run locally"
            .to_owned(),
    )
}

fn no_machines() -> HostError {
    HostError::Failed(
        "machines are looked after by the running agent: this cannot be run locally".to_owned(),
    )
}

fn not_granted(capability: &str) -> HostError {
    HostError::Failed(format!(
        "this node does not grant the capability `{capability}`"
    ))
}

impl Host for Effects {
    fn perform(&self, effect: &Effect, mode: Mode, at: Source) -> Result<Performed, HostError> {
        if self.stopped() {
            return Err(HostError::Stopped);
        }
        self.granted(effect)?;
        let performed = self.act(effect, mode, at)?;
        if let Some(change) = &performed.change {
            let subject = self.secrets.mask(&effect.subject());
            let change = self.masked(change);
            self.count(&subject, &change);
            self.note(Note::Change {
                subject,
                at: at.at.map(Into::into),
                change,
            });
        }
        Ok(performed)
    }

    fn stopped(&self) -> bool {
        self.tools.stopped()
    }

    fn facts(&self) -> Arc<NodeFacts> {
        Arc::clone(&self.facts)
    }
}
