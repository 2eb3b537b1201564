//! A run as its watcher knows it: a fold of the frames that have come.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use muster_protocol::api::{Frame, RunNode, RunView};
use muster_protocol::ids::RunId;
use muster_protocol::names::{NodeName, PrincipalName};
use muster_protocol::run::{Data, Gate, Outcome, RunPhase, Summary};
use muster_protocol::text::printable;
use muster_protocol::units::Timestamp;

use super::count;
use super::output::{Assembly, Line};
use super::steps::sleeps;
use super::time::moment;

/// Most bytes of output that are held to be shown in groups. Beyond it output
/// is not kept, and that is said.
const MOST_OUTPUT: usize = 512 << 20;

/// A run, folded from its frames.
#[derive(Debug, Default)]
pub struct Book {
    /// Short id for people.
    pub short: String,
    /// One line: `nginx -v`.
    pub title: String,
    /// The predicate.
    pub predicate: String,
    /// How many nodes.
    pub total: usize,
    /// In how many batches.
    pub batches: u32,
    /// How many of the broker's own machines match and were left out.
    pub left_out: u32,
    /// Batches sent so far.
    pub sent_batches: u32,
    /// Everything known of each node.
    pub nodes: BTreeMap<NodeName, Entry>,
    /// Who asked for the end.
    pub cancelled_by: Option<String>,
    /// How it ended.
    pub end: Option<End>,
    /// Wall-clock time of the run, when known.
    pub took: Option<Duration>,
    /// The budget or a cancel left nodes out; from the run's options.
    pub max_failures: Option<String>,
    /// Each node is shown by itself.
    pub apart: bool,
    /// When retention took the output away.
    pub output_removed: Option<Timestamp>,
    /// What the run waits for when it cannot go on.
    pub stalled: Option<String>,
    /// What the run waits for before it begins.
    pub waits: Option<Gate>,
    /// Who has it wait now.
    pub paused_by: Option<String>,
    /// What did not come in time.
    pub lapsed: Option<String>,
    /// Steps of a `main` that are under way.
    pub steps: Vec<OpenStep>,
    /// Something was taken back, well or not.
    undone: bool,
    /// Each distinct output once.
    outputs: HashSet<Arc<Vec<Line>>>,
    held: usize,
    done: usize,
    running: usize,
}

/// A step of a `main` that is under way.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OpenStep {
    /// The run that it is.
    pub run: RunId,
    /// The function, or the scenario.
    pub name: String,
    /// How many nodes.
    pub nodes: u32,
    /// How many of them have their outcome.
    pub done: u32,
}

/// The last frame.
#[derive(Clone, Debug, PartialEq)]
pub struct End {
    /// How it ended.
    pub state: RunPhase,
    /// How many of each.
    pub summary: Summary,
}

/// A node in the book.
#[derive(Debug, Default)]
pub struct Entry {
    /// Sent, and not ended.
    pub running: bool,
    /// What comes from it while it runs.
    pub assembly: Assembly,
    /// Its outcome.
    pub result: Option<RunNode>,
    /// All that it printed, once it has ended.
    pub output: Arc<Vec<Line>>,
    /// More was thrown away, by the node or by this book.
    pub truncated: bool,
    /// Bytes of output that came.
    received: u64,
    /// The broker had more of it once than it has now.
    pub lost: bool,
    /// What it said afterwards.
    pub late: Vec<Outcome>,
}

impl Book {
    /// The first node, by name, that has its old firewall again.
    #[must_use]
    pub fn rolled_back(&self) -> Option<&NodeName> {
        let rolled = |entry: &Entry| entry.result.as_ref().is_some_and(|r| r.rolled_back);
        let mut nodes = self.nodes.iter();
        nodes.find(|(_, entry)| rolled(entry)).map(|(node, _)| node)
    }

    /// With what a view of the run says, before any frame.
    #[must_use]
    pub fn from_view(view: &RunView) -> Self {
        let brief = &view.brief;
        Self {
            short: brief.short.clone(),
            title: brief.title.clone(),
            predicate: brief.predicate.clone(),
            total: brief.nodes as usize,
            batches: view.batches,
            left_out: brief.left_out,
            took: brief
                .finished
                .map(|end| muster_protocol::units::elapsed(brief.created, end)),
            output_removed: view.output_removed,
            waits: brief.waits.clone(),
            paused_by: view.paused_by.as_ref().map(ToString::to_string),
            lapsed: view.lapsed.clone(),
            max_failures: view.options.max_failures.map(|m| m.to_string()),
            ..Self::default()
        }
    }

    /// Takes a frame.
    pub fn apply(&mut self, frame: &Frame) {
        match frame {
            Frame::RunCreated {
                short,
                title,
                predicate,
                nodes,
                batches,
                left_out,
                ..
            } => {
                self.short.clone_from(short);
                self.title.clone_from(title);
                self.predicate.clone_from(predicate);
                self.total = *nodes as usize;
                self.batches = *batches;
                self.left_out = *left_out;
            }
            Frame::RunWaits { waits, .. } => self.waits = Some(waits.clone()),
            // What it waits for then follows.
            Frame::RunGiven { .. } => {}
            Frame::RunBegins { .. } => {
                self.waits = None;
                self.stalled = None;
            }
            Frame::RunLapsed { why, .. } => {
                self.waits = None;
                self.lapsed = Some(why.clone());
            }
            Frame::RunPaused { by, .. } => self.paused_by = Some(by.to_string()),
            Frame::RunResumed { .. } => self.paused_by = None,
            Frame::BatchSent { batch, nodes, .. } => {
                self.sent_batches = self.sent_batches.max(batch + 1);
                for node in nodes {
                    self.start(node);
                }
            }
            Frame::Accepted { node, .. } => self.start(node),
            Frame::Output {
                node, stream, data, ..
            } => {
                let entry = self.nodes.entry(node.clone()).or_default();
                let (size, bytes) = match data {
                    Data::Text(text) => (text.len(), text.len()),
                    Data::Bytes { base64 } => {
                        (base64.len(), data.bytes().map_or(0, |bytes| bytes.len()))
                    }
                };
                entry.received += bytes as u64;
                if self.held + size > MOST_OUTPUT {
                    entry.truncated = true;
                    return;
                }
                self.held += size;
                entry.assembly.push(*stream, data);
            }
            Frame::Outcome {
                result, truncated, ..
            } => {
                self.outcome(result, *truncated);
                // All of it comes before the outcome.
                if let Some(entry) = self.nodes.get_mut(&result.node) {
                    entry.lost = result.output_bytes > entry.received;
                }
            }
            Frame::LateOutcome { node, outcome, .. } => {
                self.nodes
                    .entry(node.clone())
                    .or_default()
                    .late
                    .push(*outcome);
            }
            Frame::Stalled { why, .. } => self.stalled.clone_from(why),
            Frame::OutputRemoved { at, .. } => self.output_removed = Some(*at),
            Frame::StepBegan {
                step, name, nodes, ..
            } => {
                self.waits = None;
                self.steps.push(OpenStep {
                    run: *step,
                    name: name.clone(),
                    nodes: *nodes,
                    done: 0,
                });
            }
            Frame::StepProgress {
                step,
                nodes,
                summary,
                ..
            } => {
                if let Some(open) = self.steps.iter_mut().find(|open| open.run == *step) {
                    open.nodes = *nodes;
                    open.done = summary.values().sum();
                }
            }
            Frame::StepEnded { step, undo, .. } => {
                self.undone |= *undo;
                self.steps.retain(|open| open.run != *step);
            }
            Frame::Sleeps { until, node, .. } => {
                self.waits = Some(Gate::Moment {
                    until: *until,
                    node: node.clone(),
                });
            }
            Frame::Asks {
                question, answers, ..
            } => {
                self.waits = Some(Gate::Answer {
                    question: question.clone(),
                    answers: answers.clone(),
                });
            }
            Frame::Answered { .. } | Frame::Logged { .. } | Frame::MainEnded { .. } => {
                self.waits = None;
            }
            // What was seen stays seen.
            Frame::RunBeginsAgain { .. } => {}
            Frame::RunCancelling { by, .. } => self.cancelled_by = Some(by.to_string()),
            Frame::RunFinished { state, summary, .. } => {
                self.end = Some(End {
                    state: *state,
                    summary: summary.clone(),
                });
            }
        }
    }

    /// Why nothing is sent now, and what to do about it.
    #[must_use]
    pub fn held(&self) -> Option<String> {
        let short = &self.short;
        if let Some(by) = &self.paused_by {
            let by = printable(by, 64);
            return Some(format!("paused by {by}: muster runs resume {short}"));
        }
        Some(match self.waits.as_ref()? {
            Gate::Confirmation { until } => format!(
                "waits until {} for a confirmation: muster runs confirm {short}",
                moment(*until)
            ),
            Gate::Approvals {
                given,
                needed,
                through,
            } => {
                let left = (*needed as usize).saturating_sub(given.len());
                let who: Vec<&str> = given.iter().map(PrincipalName::as_str).collect();
                let given = if who.is_empty() {
                    String::new()
                } else {
                    format!(" (given by {})", who.join(", "))
                };
                let doors = through.as_ref().map_or_else(String::new, |doors| {
                    let doors: Vec<&str> = doors.iter().map(|door| door.as_str()).collect();
                    format!(" through {}", doors.join(" or "))
                });
                format!(
                    "waits for {}{doors}{given}: muster runs approve {short}",
                    count(left, "approval")
                )
            }
            Gate::Answer { .. } => format!("waits for an answer: muster runs answer {short} TEXT"),
            Gate::Frozen { by, why, .. } => {
                format!("waits: frozen by {by}: {}", printable(why, 200))
            }
            Gate::Moment { until, node } => sleeps(*until, node.as_ref()),
            Gate::Turn {
                locks,
                windows,
                why,
            } => {
                let why = why.as_ref().or(self.stalled.as_ref());
                match (why, locks.first(), windows.first()) {
                    (Some(why), ..) => format!("waits: {}", printable(why, 200)),
                    (None, Some(lock), _) => format!("waits for the lock `{lock}`"),
                    (None, None, Some(window)) => format!("waits for its window ({window})"),
                    (None, None, None) => "waits for its turn".to_owned(),
                }
            }
        })
    }

    fn start(&mut self, node: &NodeName) {
        let entry = self.nodes.entry(node.clone()).or_default();
        if entry.result.is_none() && !entry.running {
            entry.running = true;
            self.running += 1;
        }
    }

    /// Takes an outcome with all the output that came before it.
    pub fn outcome(&mut self, result: &RunNode, truncated: bool) {
        let entry = self.nodes.entry(result.node.clone()).or_default();
        if entry.result.is_none() {
            self.done += 1;
            self.running -= usize::from(std::mem::take(&mut entry.running));
        }
        entry.result = Some(result.clone());
        entry.truncated |= truncated;
        entry.late.extend(result.late.iter().copied());
        let mut lines = std::mem::take(&mut entry.assembly).finish();
        lines.extend(Line::of_result(result));
        let size: usize = lines.iter().map(|l| l.text.len()).sum();
        let lines = Arc::new(lines);
        // A fleet that answers the same is held once.
        entry.output = if let Some(same) = self.outputs.get(&lines) {
            self.held = self.held.saturating_sub(size);
            Arc::clone(same)
        } else {
            self.outputs.insert(Arc::clone(&lines));
            lines
        };
    }

    /// How many have their outcome.
    #[must_use]
    pub fn done(&self) -> usize {
        self.done
    }

    /// How many run now.
    #[must_use]
    pub fn running(&self) -> usize {
        self.running
    }

    /// Outcomes so far, or at the end.
    #[must_use]
    pub fn summary(&self) -> Summary {
        if let Some(end) = &self.end {
            return end.summary.clone();
        }
        let mut summary = Summary::new();
        for result in self.nodes.values().filter_map(|n| n.result.as_ref()) {
            if let Some(outcome) = result.outcome {
                *summary.entry(outcome).or_default() += 1;
            }
        }
        summary
    }

    /// Whether what the run did was taken back, at least somewhere.
    #[must_use]
    pub fn is_taken_back(&self) -> bool {
        let mut results = self.nodes.values().filter_map(|n| n.result.as_ref());
        self.undone || results.any(|result| result.taken_back)
    }

    /// How many nodes succeeded on which that was taken back.
    #[must_use]
    pub fn succeeded_and_taken_back(&self) -> u32 {
        let results = self.nodes.values().filter_map(|n| n.result.as_ref());
        let back = |r: &&RunNode| r.taken_back && r.outcome == Some(Outcome::Succeeded);
        u32::try_from(results.filter(back).count()).unwrap_or(u32::MAX)
    }

    /// How many did not succeed so far.
    #[must_use]
    pub fn not_well(&self) -> u32 {
        self.summary()
            .iter()
            .filter(|(o, _)| **o != Outcome::Succeeded)
            .map(|(_, n)| n)
            .sum()
    }
}
