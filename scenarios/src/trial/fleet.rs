//! Nodes that exist only in a test: what they are, what they answer, and what
//! was done to them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use muster_protocol::envelope::Mode;
use muster_protocol::ids::Serial;
use muster_protocol::names::{LabelKey, NodeName};
use muster_protocol::predicate::{Attributes, fact_at};
use muster_protocol::vm::VmCall;
use regex::Regex;
use rhai::Position;
use serde_json::{Map, Value, json};

use crate::node::{
    Change, Effect, FileWish, FirewallCall, Host, HostError, HttpWish, NodeFacts, Performed, Run,
    ServiceWish, Source,
};

/// Most characters of what a step printed on a node.
const MAX_PRINTED: usize = 4 * 1024;
/// Most nodes of one test.
pub(super) const MAX_NODES: usize = 1_000;

/// One node.
#[derive(Clone, Debug)]
pub(super) struct Fake {
    pub(super) serial: Serial,
    pub(super) name: NodeName,
    pub(super) roles: Vec<String>,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) facts: Value,
    /// Known to be down.
    pub(super) down: bool,
    /// A machine that the run made, and that was destroyed.
    pub(super) gone: bool,
}

impl Attributes for Fake {
    fn name(&self) -> &str {
        self.name.as_str()
    }

    fn any_role(&self, test: &mut dyn FnMut(&str) -> bool) -> bool {
        self.roles.iter().any(|role| test(role))
    }

    fn label(&self, key: &str) -> Option<&str> {
        self.labels.get(key).map(String::as_str)
    }

    fn fact(&self, path: &str) -> Option<&Value> {
        fact_at(&self.facts, path)
    }
}

/// What nodes answer when something is asked of them.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    /// Which nodes.
    pub(super) nodes: Pattern,
    /// What is asked: the title of an effect.
    pub(super) what: Pattern,
    /// The error, if it fails.
    pub(super) fails: Option<String>,
    /// Put over what they would answer.
    pub(super) value: Map<String, Value>,
    /// As it stands in the test: `reply("web-*", "http *")`.
    pub(super) written: String,
    /// Where that is.
    pub(super) at: Position,
    /// Whether it stands in a function that several tests may use: what one
    /// of them has no need of, another one may.
    pub(super) common: bool,
    /// Whether a node was told something that it is for.
    pub(super) fits: bool,
    /// Whether it was ever the newest of those, so that it counted.
    pub(super) counted: bool,
    /// The parts that the answers to this have.
    pub(super) parts: BTreeSet<String>,
}

impl Rule {
    pub(super) fn is_for(&self, node: &NodeName, title: &str) -> bool {
        self.nodes.fits(node.as_str()) && self.what.fits(title)
    }

    /// Puts what it says over what would be answered.
    pub(super) fn over(&mut self, answer: &mut Value) {
        if let Value::Object(answer) = answer {
            self.parts.extend(answer.keys().cloned());
            answer.extend(self.value.clone());
        }
    }
}

/// Text in which `*` stands for anything.
#[derive(Clone, Debug)]
pub(super) struct Pattern(Regex);

impl Pattern {
    pub(super) fn new(text: &str) -> Result<Self, String> {
        let parts: Vec<String> = text.split('*').map(regex::escape).collect();
        let pattern = format!("(?s)^{}$", parts.join(".*"));
        Regex::new(&pattern)
            .map(Self)
            .map_err(|e| format!("the pattern: {e}"))
    }

    pub(super) fn fits(&self, text: &str) -> bool {
        self.0.is_match(text)
    }
}

/// What was done, in order.
#[derive(Clone, Debug, Default)]
pub(super) struct Done {
    /// Node and title of each effect.
    pub(super) effects: Vec<(NodeName, String)>,
    pub(super) logs: Vec<String>,
    pub(super) events: Vec<(String, Map<String, Value>)>,
}

/// All nodes of a test.
#[derive(Debug, Default)]
pub(super) struct Fleet {
    pub(super) nodes: Vec<Fake>,
    pub(super) rules: Vec<Rule>,
    /// What holds already, by node and by what can hold one thing at a time.
    state: BTreeMap<(Serial, String), String>,
    pub(super) done: Done,
    /// What programs printed in the step that is under way, its beginning.
    pub(super) printed: BTreeMap<Serial, String>,
    /// What was told to whom in all runs of the test.
    pub(super) told: BTreeMap<String, BTreeSet<NodeName>>,
}

/// The same in several hands.
#[derive(Clone, Default)]
pub(super) struct Shared(Arc<Mutex<Fleet>>);

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Fleet> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The host of one of its nodes.
    pub(super) fn host(&self, node: &Fake) -> Arc<FakeHost> {
        let about = json!({"name": node.name, "roles": node.roles, "labels": node.labels});
        Arc::new(FakeHost {
            fleet: self.clone(),
            serial: node.serial,
            name: node.name.clone(),
            facts: Arc::new(NodeFacts {
                node: about.as_object().cloned().unwrap_or_default(),
                facts: node.facts.clone(),
            }),
        })
    }
}

impl Fleet {
    pub(super) fn node(&self, serial: Serial) -> Option<&Fake> {
        self.nodes.iter().find(|node| node.serial == serial)
    }

    /// Those that are there, also those that are down.
    pub(super) fn there(&self) -> impl Iterator<Item = &Fake> {
        self.nodes.iter().filter(|node| !node.gone)
    }

    /// Whether a node of that name is connected.
    pub(super) fn is_there(&self, name: &str) -> bool {
        self.there()
            .any(|node| !node.down && node.name.as_str() == name)
    }

    /// Something was asked of these nodes: what the test says of it. The
    /// newest rule is the one that counts.
    pub(super) fn asked(&mut self, nodes: &[NodeName], title: &str) -> Option<&mut Rule> {
        self.told
            .entry(title.to_owned())
            .or_default()
            .extend(nodes.iter().cloned());
        let mut rule = None;
        for other in self.rules.iter_mut().rev() {
            let any = nodes.is_empty() && other.what.fits(title);
            if any || nodes.iter().any(|node| other.is_for(node, title)) {
                other.fits = true;
                rule = rule.or(Some(other));
            }
        }
        if let Some(rule) = rule.as_deref_mut() {
            rule.counted = true;
        }
        rule
    }

    pub(super) fn label(&self, serial: Serial, key: &LabelKey) -> Option<&str> {
        let labels = &self.node(serial)?.labels;
        labels.get(key.as_str()).map(String::as_str)
    }

    /// Has it so, and says whether it was so before.
    fn be(&mut self, serial: Serial, effect: &Effect, mode: Mode) -> Change {
        let subject = effect.subject();
        let slot = match effect {
            Effect::File { wish, .. } => match wish {
                FileWish::Content { .. } | FileWish::Restore { .. } => "content".to_owned(),
                // A file has any number of lines.
                FileWish::Line { text, .. } | FileWish::NoLine { text, .. } => {
                    format!("line {text}")
                }
                FileWish::Attributes(_) => format!("attributes {}", effect.title()),
                FileWish::Directory(_) | FileWish::Absent => "kind".to_owned(),
            },
            Effect::Service { wish, .. } => match wish {
                ServiceWish::Running | ServiceWish::Stopped => "runs".to_owned(),
                ServiceWish::Enabled | ServiceWish::Disabled => "starts".to_owned(),
                ServiceWish::Restarted | ServiceWish::Reloaded => String::new(),
            },
            Effect::Package { .. } | Effect::User { .. } => "is".to_owned(),
            _ => String::new(),
        };
        // A machine is one thing, whatever is said to it.
        let (subject, slot) = match effect {
            Effect::Vm(call) => machine(call),
            Effect::Firewall(FirewallCall::Host { .. }) => ("firewall".to_owned(), "is".to_owned()),
            Effect::Firewall(_) => ("firewall".to_owned(), String::new()),
            _ => (subject, slot),
        };
        let wish = json!(effect).to_string();
        let key = (serial, format!("{subject} {slot}"));
        if !slot.is_empty() && self.state.get(&key) == Some(&wish) {
            return Change::Unchanged;
        }
        let (summary, diff) = (effect.title(), Vec::new());
        if mode == Mode::Check {
            return Change::WouldChange { summary, diff };
        }
        if matches!(
            effect,
            Effect::File {
                wish: FileWish::Absent,
                ..
            }
        ) {
            let begin = format!("{subject} ");
            self.state
                .retain(|(of, key), _| *of != serial || !key.starts_with(&begin));
        }
        if let Effect::Vm(VmCall::Create { .. } | VmCall::Destroy { .. }) = effect {
            let begin = format!("{subject} ");
            self.state
                .retain(|(of, key), _| *of != serial || !key.starts_with(&begin));
        }
        if !slot.is_empty() {
            self.state.insert(key, wish);
        }
        Change::Changed { summary, diff }
    }
}

/// What a call about a machine is about, and what of it can be one thing at a
/// time.
fn machine(call: &VmCall) -> (String, String) {
    let subject = match call {
        VmCall::Image { image } => format!("image {}", image.sha256),
        other => format!(
            "vm {}",
            other.id().map(|id| id.to_string()).unwrap_or_default()
        ),
    };
    let slot = match call {
        VmCall::Image { .. } | VmCall::Create { .. } | VmCall::Destroy { .. } => "is",
        VmCall::Start { .. } | VmCall::Stop { .. } => "runs",
        VmCall::Resize { .. } => "size",
        VmCall::Unseed { .. } => "seed",
        VmCall::Snapshot { snapshot, .. } => return (subject, format!("snapshot {snapshot}")),
        _ => "",
    };
    (subject, slot.to_owned())
}

/// The host of one fake node.
pub(super) struct FakeHost {
    fleet: Shared,
    serial: Serial,
    name: NodeName,
    facts: Arc<NodeFacts>,
}

impl FakeHost {
    /// What a program answers.
    fn ran(rule: Option<&mut Rule>) -> Value {
        let mut value =
            json!({"exit": 0, "stdout": "", "stderr": "", "skipped": false, "truncated": false});
        if let Some(rule) = rule {
            rule.over(&mut value);
        }
        value
    }

    fn judged(run: &Run, value: Value) -> Result<Value, HostError> {
        let exit = value["exit"].as_i64().unwrap_or_default();
        if run.ok.iter().any(|ok| i64::from(*ok) == exit) {
            Ok(value)
        } else {
            Err(HostError::Failed(format!("exit code {exit}")))
        }
    }

    fn http(wish: &HttpWish, rule: Option<&mut Rule>) -> Result<Value, HostError> {
        let mut value =
            json!({"status": 200, "headers": {}, "body": "", "json": null, "truncated": false});
        if let HttpWish::Until { status, .. } = wish {
            value["status"] = (*status).into();
        }
        if let Some(rule) = rule {
            rule.over(&mut value);
        }
        match wish {
            HttpWish::Until { status, tries, .. } if value["status"] != json!(status) => {
                let found = &value["status"];
                let text = format!("it answered {found} and not {status}, {tries} times");
                Err(HostError::Failed(text))
            }
            _ => Ok(value),
        }
    }
}

impl FakeHost {
    /// What is known of a node's firewall.
    fn firewall(call: &FirewallCall, rule: Option<&mut Rule>) -> Value {
        let mut value = match call {
            FirewallCall::Show => json!({"change": null, "rules": null, "text": ""}),
            FirewallCall::History => json!({"changes": []}),
            _ => json!({"change": "", "at": "", "difference": [], "ended": ""}),
        };
        if let Some(rule) = rule {
            rule.over(&mut value);
        }
        match call {
            FirewallCall::History => value["changes"].take(),
            _ => value,
        }
    }

    /// What is known of a machine; none where it is about something that can
    /// be so or not.
    fn machine(call: &VmCall, rule: Option<&mut Rule>) -> Option<Value> {
        let mut value = match call {
            VmCall::List => json!({"machines": []}),
            VmCall::Info { id } => json!({
                "id": id, "name": "", "state": "running", "cpus": 1, "memory": 0, "autostart": true,
                "owner": "muster", "disk": 0, "disk_used": 0, "snapshots": [],
            }),
            VmCall::ConsoleLog { .. } => json!({"text": ""}),
            VmCall::GuestPing { .. } => json!({"answers": true}),
            VmCall::GuestExec { .. } => {
                json!({"exit": 0, "signal": null, "stdout": "", "stderr": "", "truncated": false})
            }
            _ => return None,
        };
        if let Some(rule) = rule {
            rule.over(&mut value);
        }
        Some(match call {
            VmCall::List => value["machines"].take(),
            VmCall::ConsoleLog { .. } => value["text"].take(),
            VmCall::GuestPing { .. } => value["answers"].take(),
            _ => value,
        })
    }
}

impl Host for FakeHost {
    fn perform(&self, effect: &Effect, mode: Mode, _: Source) -> Result<Performed, HostError> {
        let mut fleet = self.fleet.lock();
        let silent = Performed {
            change: None,
            value: Value::Null,
        };
        match effect {
            Effect::Log { text } => {
                fleet.done.logs.push(format!("{}: {text}", self.name));
                return Ok(silent);
            }
            Effect::Emit { kind, fields } => {
                fleet.done.events.push((kind.clone(), fields.clone()));
                return Ok(silent);
            }
            Effect::Sleep { .. } => return Ok(silent),
            _ => {}
        }
        let title = effect.title();
        fleet.done.effects.push((self.name.clone(), title.clone()));
        let fleet = &mut *fleet;
        let rule = fleet.asked(std::slice::from_ref(&self.name), &title);
        if let Some(text) = rule.as_ref().and_then(|rule| rule.fails.clone()) {
            return Err(HostError::Failed(text));
        }
        let changed = |summary: String| match mode {
            Mode::Apply => Change::Changed {
                summary,
                diff: Vec::new(),
            },
            Mode::Check => Change::WouldChange {
                summary,
                diff: Vec::new(),
            },
        };
        Ok(match effect {
            Effect::Run(run) => {
                let value = Self::ran(rule);
                let printed = value["stdout"].as_str().unwrap_or_default();
                let before = fleet.printed.entry(self.serial).or_default();
                before.extend(printed.chars().take(MAX_PRINTED - before.chars().count()));
                Performed {
                    change: run.changes.then(|| changed(title)),
                    value: Self::judged(run, value)?,
                }
            }
            Effect::Http(call) => Performed {
                change: matches!(call.wish, HttpWish::Post { .. }).then(|| changed(title)),
                value: Self::http(&call.wish, rule)?,
            },
            Effect::Puppet(_) => {
                let mut value =
                    json!({"status": "unchanged", "total": 0, "changed": 0, "out_of_sync": 0});
                if let Some(rule) = rule {
                    rule.over(&mut value);
                }
                let same = value["changed"] == json!(0);
                Performed {
                    change: Some(if same {
                        Change::Unchanged
                    } else {
                        changed(title)
                    }),
                    value,
                }
            }
            Effect::Firewall(call) if !call.changes() => Performed {
                change: None,
                value: Self::firewall(call, rule),
            },
            Effect::Vm(call) if Self::machine(call, None).is_some() => Performed {
                change: matches!(call, VmCall::GuestExec { .. }).then(|| changed(title)),
                value: Self::machine(call, rule).unwrap_or_default(),
            },
            other => Performed {
                change: Some(fleet.be(self.serial, other, mode)),
                value: Value::Null,
            },
        })
    }

    fn stopped(&self) -> bool {
        false
    }

    fn facts(&self) -> Arc<NodeFacts> {
        Arc::clone(&self.facts)
    }
}
