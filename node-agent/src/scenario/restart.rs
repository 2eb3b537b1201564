//! Functions that restart the machine, and go on after it.
//!
//! What the function has done and been told until then is written down,
//! durably, before the machine is told to restart. The agent of the next boot
//! runs the function again from its beginning: what is written down is
//! answered from there, nothing of it is done twice, and behind `reboot()` it
//! goes on for real.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::BoxFuture;
use muster_protocol::envelope::{BundleHash, Mode};
use muster_protocol::note::{Change, Note, Tally};
use muster_scenarios::node::{Effect, Host, HostError, NodeFacts, Performed, Source};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::effects::Effects;
use crate::host::tools::{Said, Tool, Tools};

/// Most bytes of what a function did before it restarts the machine, as JSON.
const MAX_PAST: usize = 1 << 20;

/// Who remembers that the machine is being restarted by a step.
pub trait Restarts: Send + Sync {
    /// Writes it down, with what is needed to go on. Durable when it returns.
    fn intend(&self, past: Past) -> BoxFuture<'_, Result<(), String>>;

    /// The machine could not be told.
    fn withdraw(&self) -> BoxFuture<'_, ()>;
}

/// What a function did before the machine was restarted.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Past {
    /// What it asked for, and the answers, in order; last the restart.
    done: VecDeque<Entry>,
    /// What it counted.
    tally: Tally,
    /// Who the node was.
    node: Map<String, Value>,
    /// What the node knew of itself.
    facts: Value,
}

/// One thing that was asked for.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    /// SHA-256 over it.
    effect: BundleHash,
    answer: Answer,
}

/// What the script was told.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Done {
        change: Option<Change>,
        value: Value,
    },
    Failed(String),
}

/// The node for one try of a function, with a memory where one is wanted.
pub(super) struct Restarting {
    effects: Arc<Effects>,
    tools: Arc<Tools>,
    restarts: Option<Arc<dyn Restarts>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What is answered from memory, still.
    ahead: VecDeque<Entry>,
    /// What was asked and answered.
    done: VecDeque<Entry>,
    bytes: usize,
    /// Of before the restart; while there is something ahead.
    facts: Option<Arc<NodeFacts>>,
    /// The function does something else than it did.
    diverged: bool,
    restarting: bool,
    restarted: bool,
}

fn hash(effect: &Effect) -> BundleHash {
    BundleHash::of(&serde_json::to_vec(effect).unwrap_or_default())
}

impl Restarting {
    pub(super) fn new(
        effects: Arc<Effects>,
        tools: Arc<Tools>,
        restarts: Option<Arc<dyn Restarts>>,
        past: Option<Past>,
    ) -> Self {
        let mut state = State::default();
        if let Some(past) = past {
            effects.restore(past.tally);
            state.ahead = past.done;
            state.facts = Some(Arc::new(NodeFacts {
                node: past.node,
                facts: past.facts,
            }));
        }
        Self {
            effects,
            tools,
            restarts,
            state: Mutex::new(state),
        }
    }

    /// The machine was told to restart; the function was ended for it.
    pub(super) fn is_restarting(&self) -> bool {
        self.state().restarting
    }

    /// The function has restarted the machine, before or now.
    pub(super) fn has_restarted(&self) -> bool {
        self.state().restarted
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer from memory, if it is there.
    fn remembered(&self, effect: &Effect) -> Option<Result<Performed, HostError>> {
        let mut state = self.state();
        let diverged = || {
            HostError::Failed(
                "the function does not do what it did before the machine was restarted; nothing more \
                 of it is done"
                    .to_owned(),
            )
        };
        if state.diverged {
            return Some(Err(diverged()));
        }
        let entry = state.ahead.pop_front()?;
        if entry.effect != hash(effect) {
            state.diverged = true;
            return Some(Err(diverged()));
        }
        let answer = match entry.answer.clone() {
            Answer::Done { change, value } => Ok(Performed { change, value }),
            Answer::Failed(why) => Err(HostError::Failed(why)),
        };
        state.done.push_back(entry);
        if state.ahead.is_empty() {
            state.facts = None;
            state.restarted = true;
            drop(state);
            self.effects.say_changed(effect, "restarted");
        }
        Some(answer)
    }

    fn remember(&self, effect: &Effect, answer: &Result<Performed, HostError>) {
        let answer = match answer {
            Ok(performed) => Answer::Done {
                change: performed.change.clone(),
                value: performed.value.clone(),
            },
            Err(HostError::Failed(why)) => Answer::Failed(why.clone()),
            Err(HostError::Stopped) => return,
        };
        let entry = Entry {
            effect: hash(effect),
            answer,
        };
        let mut state = self.state();
        // Too much is said when the machine is to restart, if ever.
        if state.bytes <= MAX_PAST {
            state.bytes += serde_json::to_vec(&entry).map_or(0, |json| json.len());
            state.done.push_back(entry);
        }
    }

    /// Writes down what was, tells the machine, and ends the function.
    fn restart(&self, effect: &Effect) -> Result<Performed, HostError> {
        let failed = |why: String| Err(HostError::Failed(why));
        let Some(restarts) = &self.restarts else {
            return failed(
                "this run cannot go on after a restart of the machine; restart it by hand"
                    .to_owned(),
            );
        };
        let past = {
            let state = self.state();
            let mut tally = self.effects.counted().0;
            tally.changed = tally.changed.saturating_add(1);
            let facts = self.effects.facts();
            let mut done = state.done.clone();
            if state.bytes > MAX_PAST {
                return failed(format!(
                    "what the function did before has more than {MAX_PAST} bytes: restart the machine \
                     in a step of its own"
                ));
            }
            drop(state);
            done.push_back(Entry {
                effect: hash(effect),
                answer: Answer::Done {
                    change: Some(Change::Changed {
                        summary: "restarted".to_owned(),
                        diff: Vec::new(),
                    }),
                    value: Value::Null,
                },
            });
            Past {
                done,
                tally,
                node: facts.node.clone(),
                facts: facts.facts.clone(),
            }
        };
        let runtime = self.tools.runtime();
        runtime
            .block_on(restarts.intend(past))
            .map_err(HostError::Failed)?;
        self.tools.say(Said::Note(Note::Restart));
        let why = match self.tools.run(Tool::new("systemctl").args(["reboot"])) {
            Ok(answer) if answer.is_well() => None,
            Ok(answer) => Some(answer.complaint()),
            // Whether it has told the machine, nobody knows.
            Err(crate::host::tools::ToolError::Stopped) => None,
            Err(e) => Some(e.to_string()),
        };
        if let Some(why) = why {
            runtime.block_on(restarts.withdraw());
            return failed(why);
        }
        self.state().restarting = true;
        Err(HostError::Stopped)
    }
}

impl Host for Restarting {
    fn perform(&self, effect: &Effect, mode: Mode, at: Source) -> Result<Performed, HostError> {
        if self.stopped() {
            return Err(HostError::Stopped);
        }
        if let Some(answer) = self.remembered(effect) {
            return answer;
        }
        if matches!((effect, mode), (Effect::Reboot, Mode::Apply)) {
            self.effects.granted(effect)?;
            return self.restart(effect);
        }
        let answer = self.effects.perform(effect, mode, at);
        if self.restarts.is_some() {
            self.remember(effect, &answer);
        }
        answer
    }

    fn stopped(&self) -> bool {
        self.effects.stopped() || self.state().restarting
    }

    fn facts(&self) -> Arc<NodeFacts> {
        let before = self.state().facts.clone();
        before.unwrap_or_else(|| self.effects.facts())
    }
}
