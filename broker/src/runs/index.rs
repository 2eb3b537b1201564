//! All runs that are known, briefly: pure.

use std::collections::{BTreeMap, BTreeSet};

use muster_protocol::api::RunBrief;
use muster_protocol::ids::{RunId, SHORT_LEN, Serial};
use muster_protocol::run::{NodePhase, NodeState, PartOf, RunPhase, RunState};
use muster_protocol::units::Timestamp;

use super::frozen::halts;
use crate::metrics::Metrics;
use crate::retention::Kept;

/// What is kept of a run, whether it is open or not.
#[derive(Clone, Debug)]
pub(super) struct Known {
    /// As in a list; `short` is filled in when it is read.
    pub(super) brief: RunBrief,
    /// Sequence of the first message of its journal.
    pub(super) first: u64,
    /// Its parts, as its journal names them.
    pub(super) parts: BTreeMap<RunId, PartOf>,
    /// The node that did it by itself, of a local run.
    pub(super) local: Option<Serial>,
    /// Bytes of its journal, about.
    pub(super) journal: u64,
    /// Its output.
    pub(super) output: Output,
    /// Whether a freeze keeps it from going on.
    pub(super) halts: bool,
}

/// What is known of a run's output.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Output {
    /// So many bytes are there, about.
    There(u64),
    /// Retention has taken it away.
    Removed(Timestamp),
}

impl Known {
    /// What is kept of this run.
    #[must_use]
    pub(super) fn new(state: &RunState, first: u64) -> Self {
        let mut known = Self {
            brief: brief(state),
            first,
            parts: BTreeMap::new(),
            local: state.spec.local.as_ref().map(|l| l.target.serial),
            journal: 0,
            output: Output::There(0),
            halts: halts(state),
        };
        known.measure(state);
        known.has_parts(state);
        known
    }

    /// Takes down which parts it has.
    fn has_parts(&mut self, state: &RunState) {
        if let Some(flow) = &state.flow {
            self.parts.extend(flow.parts(state.spec.id));
        }
    }

    /// How much it takes, once it has ended: before that nothing of it goes.
    fn measure(&mut self, state: &RunState) {
        if !state.phase.is_final() {
            return;
        }
        self.output = match state.output_removed {
            Some(at) => Output::Removed(at),
            None => Output::There(state.nodes.values().map(output_bytes).sum()),
        };
        self.journal = JOURNAL + PER_TARGET * state.order.len() as u64;
    }
}

/// A journal without its nodes, and what a node adds to it, in bytes: about
/// what a short command on a node comes to.
const JOURNAL: u64 = 1_500;
const PER_TARGET: u64 = 250;

fn output_bytes(node: &NodeState) -> u64 {
    match &node.phase {
        NodePhase::Done(result) => result.output_bytes,
        NodePhase::Waiting | NodePhase::Sent { .. } => 0,
    }
}

impl Known {
    /// When it ended.
    fn ended(&self) -> Option<Timestamp> {
        let brief = &self.brief;
        brief
            .state
            .is_final()
            .then(|| brief.finished.unwrap_or(brief.created))
    }
}

/// Why a text stands for no run.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum LookupError {
    /// Not an id, nor the beginning of one.
    #[error("`{0}` is not a run: an id has letters and digits, at least four of them")]
    NotAnId(String),
    /// No run begins so.
    #[error("there is no run {0}")]
    NoRun(String),
    /// Several runs begin so.
    #[error("`{prefix}` stands for {count} runs: {}", .examples.join(", "))]
    Ambiguous {
        /// What was given.
        prefix: String,
        /// How many runs begin so.
        count: usize,
        /// The first of them, as short as is unambiguous.
        examples: Vec<String>,
    },
}

/// All runs by id and by age.
#[derive(Debug, Default)]
pub(super) struct Index {
    runs: BTreeMap<RunId, Known>,
    by_age: BTreeSet<(Timestamp, RunId)>,
    /// The local runs of each node, and when they were reported.
    locals: BTreeSet<(Serial, Timestamp, RunId)>,
}

/// A brief of a run; `short` is left empty.
#[must_use]
pub(super) fn brief(state: &RunState) -> RunBrief {
    let spec = &state.spec;
    RunBrief {
        id: spec.id,
        short: String::new(),
        principal: spec.principal.clone(),
        door: spec.door,
        title: spec.title.clone(),
        scenario: spec.scenario.clone(),
        version: spec.version,
        mode: spec.mode,
        predicate: spec.predicate.clone(),
        state: state.phase,
        waits: state.waits(),
        nodes: spec.targets,
        summary: state.summary(),
        created: spec.created,
        finished: state.finished,
        retry_of: spec.retry_of,
        left_out: spec.left_out,
        part_of: spec.part_of,
    }
}

/// Counts what is new.
fn count(before: &RunBrief, now: &RunBrief) {
    let metrics = Metrics::of_process();
    for (outcome, number) in &now.summary {
        let known = before.summary.get(outcome).copied().unwrap_or(0);
        metrics.outcomes(outcome.as_str(), u64::from(number.saturating_sub(known)));
    }
    if now.state.is_final() && !before.state.is_final() && now.part_of.is_none() {
        metrics.ended(now.state.as_str());
    }
}

impl Index {
    /// Runs that ended at that time or later, and are no parts of others.
    #[must_use]
    pub(super) fn ended_since(&self, since: Timestamp) -> Vec<RunId> {
        let known = self.runs.iter().filter(|(_, known)| {
            known.brief.part_of.is_none() && known.ended().is_some_and(|at| at >= since)
        });
        known.map(|(run, _)| *run).collect()
    }

    /// Adds a run.
    pub(super) fn insert(&mut self, known: Known) {
        let (id, created) = (known.brief.id, known.brief.created);
        self.remove(id);
        if let Some(node) = known.local {
            self.locals.insert((node, created, id));
        }
        self.runs.insert(id, known);
        self.by_age.insert((created, id));
    }

    /// Brings what is kept of a run up to date.
    pub(super) fn update(&mut self, state: &RunState) {
        if let Some(known) = self.runs.get_mut(&state.spec.id) {
            let now = brief(state);
            count(&known.brief, &now);
            known.brief = now;
            known.halts = halts(state);
            known.measure(state);
            if let Some(flow) = &state.flow {
                known.parts.extend(flow.newest_parts(state.spec.id));
            }
        }
    }

    /// Where a run is.
    #[must_use]
    pub(super) fn phase(&self, id: RunId) -> Option<RunPhase> {
        self.runs.get(&id).map(|known| known.brief.state)
    }

    /// As what a run names another one as its part.
    #[must_use]
    pub(super) fn names(&self, part: RunId) -> Option<PartOf> {
        self.runs
            .values()
            .find_map(|known| known.parts.get(&part).copied())
    }

    /// All parts of a run, and theirs, that are there: the deepest first, so
    /// that whoever removes them one by one never leaves one without its
    /// whole.
    #[must_use]
    pub(super) fn all_parts(&self, id: RunId) -> Vec<RunId> {
        let mut all = Vec::new();
        let mut next = vec![id];
        while let Some(run) = next.pop() {
            let Some(known) = self.runs.get(&run) else {
                continue;
            };
            for part in known.parts.keys() {
                // A chain of parts has an end: each names only runs that were
                // made after it.
                if self.runs.contains_key(part) && !all.contains(part) {
                    all.push(*part);
                    next.push(*part);
                }
            }
        }
        all.reverse();
        all
    }

    /// Of what a run is a part.
    #[must_use]
    pub(super) fn part_of(&self, id: RunId) -> Option<PartOf> {
        self.runs.get(&id).and_then(|known| known.brief.part_of)
    }

    /// For retention: every run, in no order. The parts of a run go with it,
    /// and are counted with it.
    pub(super) fn kept(&self) -> Vec<Kept> {
        let output = |known: &Known| match known.output {
            Output::There(bytes) => bytes,
            Output::Removed(_) => 0,
        };
        let whole = |known: &&Known| {
            let part = known.brief.part_of;
            part.is_none_or(|part| !self.runs.contains_key(&part.run))
        };
        let kept = |known: &Known| {
            let parts = self.all_parts(known.brief.id);
            let parts = parts.iter().filter_map(|part| self.runs.get(part));
            let all: Vec<&Known> = std::iter::once(known).chain(parts).collect();
            // It is under way for as long as a part of it is.
            let over = all.iter().all(|known| known.ended().is_some());
            Kept {
                run: known.brief.id,
                ended: known.ended().filter(|_| over),
                journal: all.iter().map(|known| known.journal).sum(),
                output: all.iter().map(|known| output(known)).sum(),
            }
        };
        self.runs.values().filter(whole).map(kept).collect()
    }

    /// Takes down that a run's output is gone.
    pub(super) fn output_removed(&mut self, id: RunId, at: Timestamp) {
        if let Some(known) = self.runs.get_mut(&id) {
            known.output = Output::Removed(at);
        }
    }

    /// Takes down that a run has output, although no node has said how much.
    pub(super) fn has_output(&mut self, id: RunId, bytes: u64) {
        if let Some(known) = self.runs.get_mut(&id)
            && known.output == Output::There(0)
        {
            known.output = Output::There(bytes);
        }
    }

    /// What is known of a run's output.
    #[must_use]
    pub(super) fn output(&self, id: RunId) -> Option<Output> {
        self.runs.get(&id).map(|known| known.output)
    }

    /// Whether a freeze keeps a run from going on.
    #[must_use]
    pub(super) fn halts(&self, id: RunId) -> bool {
        self.runs.get(&id).is_some_and(|known| known.halts)
    }

    /// Whether a run is known and has ended.
    #[must_use]
    pub(super) fn has_ended(&self, id: RunId) -> bool {
        self.runs
            .get(&id)
            .is_some_and(|known| known.ended().is_some())
    }

    /// Forgets a run.
    pub(super) fn remove(&mut self, id: RunId) {
        if let Some(old) = self.runs.remove(&id) {
            self.by_age.remove(&(old.brief.created, id));
            if let Some(node) = old.local {
                self.locals.remove(&(node, old.brief.created, id));
            }
        }
    }

    /// Forgets all runs.
    pub(super) fn clear(&mut self) {
        self.runs.clear();
        self.by_age.clear();
        self.locals.clear();
    }

    /// How many local runs of a node were reported since then, and how many
    /// there are.
    #[must_use]
    pub(super) fn locals(&self, node: Serial, since: Timestamp) -> (usize, usize) {
        let least = RunId::from_bytes([0; 16]);
        let most = (node, Timestamp::MAX, RunId::from_bytes([255; 16]));
        let after = |from| self.locals.range((node, from, least)..=most).count();
        (after(since), after(Timestamp::MIN))
    }

    /// How many runs are known.
    #[must_use]
    pub(super) fn len(&self) -> usize {
        self.runs.len()
    }

    /// Whether a run is known, and where its journal begins.
    #[must_use]
    pub(super) fn first(&self, id: RunId) -> Option<u64> {
        self.runs.get(&id).map(|known| known.first)
    }

    /// A run as in a list.
    #[must_use]
    pub(super) fn get(&self, id: RunId) -> Option<RunBrief> {
        let mut brief = self.runs.get(&id)?.brief.clone();
        brief.short = self.short(id);
        Some(brief)
    }

    /// The run that a text stands for: its id, or the beginning of one, at
    /// least four characters, as people type it.
    ///
    /// # Errors
    /// [`LookupError`].
    pub(super) fn lookup(&self, text: &str) -> Result<RunId, LookupError> {
        let shown = muster_protocol::text::printable(text, 40);
        if let Ok(id) = text.parse::<RunId>() {
            return self
                .runs
                .contains_key(&id)
                .then_some(id)
                .ok_or(LookupError::NoRun(shown));
        }
        if text.len() < SHORT_LEN || text.len() >= 26 {
            return Err(LookupError::NotAnId(shown));
        }
        // The alphabet rises with the bytes, so that all ids with one
        // beginning follow each other.
        let padded = format!("{text:0<26}");
        let lowest: RunId = padded
            .parse()
            .map_err(|_| LookupError::NotAnId(shown.clone()))?;
        let prefix = lowest.prefix(text.len());
        let found: Vec<RunId> = self
            .runs
            .range(lowest..)
            .map(|(id, _)| *id)
            .take_while(|id| id.prefix(prefix.len()) == prefix)
            .collect();
        match found.as_slice() {
            [] => Err(LookupError::NoRun(shown)),
            [one] => Ok(*one),
            several => Err(LookupError::Ambiguous {
                prefix: shown,
                count: several.len(),
                examples: several.iter().take(5).map(|id| self.short(*id)).collect(),
            }),
        }
    }

    /// The shortest beginning of an id that stands for no other run, at least
    /// four characters.
    #[must_use]
    pub(super) fn short(&self, id: RunId) -> String {
        let text = id.to_string();
        let before = self.runs.range(..id).next_back();
        let after = self.runs.range(id..).find(|(other, _)| **other != id);
        let shared = before
            .into_iter()
            .chain(after)
            .map(|(other, _)| {
                text.bytes()
                    .zip(other.to_string().bytes())
                    .take_while(|(a, b)| a == b)
                    .count()
            })
            .max()
            .unwrap_or(0);
        id.prefix((shared + 1).max(SHORT_LEN))
    }

    /// Runs, newest first, before `cursor` (see [`cursor`]); and whether there
    /// are more. Those that are parts of others only when `parts` says so.
    #[must_use]
    pub(super) fn page(
        &self,
        before: Option<(Timestamp, RunId)>,
        limit: usize,
        parts: bool,
    ) -> (Vec<RunBrief>, bool) {
        let range = match before {
            Some(place) => self.by_age.range(..place),
            None => self.by_age.range(..),
        };
        let wanted = |(_, id): &&(Timestamp, RunId)| parts || self.part_of(*id).is_none();
        let mut newest = range.rev().filter(wanted);
        let page: Vec<RunBrief> = newest
            .by_ref()
            .take(limit)
            .filter_map(|(_, id)| self.get(*id))
            .collect();
        let more = newest.next().is_some();
        (page, more)
    }

    /// How many there are of each state, without parts of others.
    pub(super) fn by_state(&self) -> BTreeMap<&'static str, u64> {
        let mut counts: BTreeMap<_, u64> = BTreeMap::new();
        for known in self.runs.values() {
            if known.brief.part_of.is_none() {
                *counts.entry(known.brief.state.as_str()).or_default() += 1;
            }
        }
        counts
    }

    /// How many runs have not ended that are no parts of others.
    #[must_use]
    pub(super) fn open(&self) -> usize {
        let whole = |known: &&Known| known.brief.part_of.is_none();
        self.runs
            .values()
            .filter(whole)
            .filter(|known| !known.brief.state.is_final())
            .count()
    }
}

/// The place of a run in the list, as text for `cursor=`.
#[must_use]
pub fn cursor(brief: &RunBrief) -> String {
    format!("{}.{}", brief.created.as_nanosecond(), brief.id)
}

/// Reads a [`cursor`].
#[must_use]
pub fn parse_cursor(text: &str) -> Option<(Timestamp, RunId)> {
    let (at, id) = text.split_once('.')?;
    Some((
        Timestamp::from_nanosecond(at.parse().ok()?).ok()?,
        id.parse().ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_protocol::envelope::Door;
    use muster_protocol::run::Summary;

    fn known(id: RunId, second: i64) -> Known {
        let brief = RunBrief {
            id,
            short: String::new(),
            principal: "ana".parse().expect("valid"),
            door: Door::Cli,
            title: "true".into(),
            version: None,
            mode: muster_protocol::envelope::Mode::Apply,
            waits: None,
            scenario: "command".parse().expect("valid"),
            predicate: "*".into(),
            state: RunPhase::Succeeded,
            nodes: 1,
            summary: Summary::new(),
            created: Timestamp::from_second(second).expect("valid"),
            finished: None,
            retry_of: None,
            left_out: 0,
            part_of: None,
        };
        Known {
            brief,
            first: 1,
            parts: BTreeMap::new(),
            local: None,
            journal: 0,
            output: Output::There(0),
            halts: false,
        }
    }

    #[test]
    fn the_local_runs_of_a_node_are_counted_by_age() {
        let mut index = Index::default();
        let at = |second| Timestamp::from_second(second).expect("valid");
        let mut ids = Vec::new();
        for n in 0..10 {
            let mut known = known(RunId::random(), n);
            known.local = Some(Serial(if n < 8 { 1 } else { 2 }));
            ids.push(known.brief.id);
            index.insert(known);
        }
        assert_eq!(index.locals(Serial(1), at(5)), (3, 8));
        assert_eq!(index.locals(Serial(2), at(0)), (2, 2));
        assert_eq!(index.locals(Serial(3), at(0)), (0, 0));
        index.remove(ids[7]);
        assert_eq!(index.locals(Serial(1), at(5)), (2, 7));
        index.clear();
        assert_eq!(index.locals(Serial(1), at(0)), (0, 0));
    }

    fn id(text: &str) -> RunId {
        format!("{text:0<26}").parse().expect("an id")
    }

    #[test]
    fn a_prefix_stands_for_one_run_or_says_for_which() {
        let mut index = Index::default();
        for (n, text) in ["7f3kab", "7f3kac", "2m9q"].iter().enumerate() {
            index.insert(known(id(text), n as i64));
        }
        assert_eq!(index.lookup("2m9q"), Ok(id("2m9q")));
        assert_eq!(index.lookup("2M9Q"), Ok(id("2m9q")));
        assert_eq!(index.lookup("7f3kac"), Ok(id("7f3kac")));
        assert_eq!(index.lookup(&id("7f3kac").to_string()), Ok(id("7f3kac")));
        assert_eq!(index.short(id("7f3kab")), "7f3kab");
        assert_eq!(index.short(id("2m9q")), "2m9q");
        insta::assert_snapshot!(
            ["7f3k", "7f3", "zzzz", "7f3!", "é7f3", "", &"7".repeat(40)]
                .map(|text| index.lookup(text).expect_err(text).to_string())
                .join("\n"),
            @r"
        `7f3k` stands for 2 runs: 7f3kab, 7f3kac
        `7f3` is not a run: an id has letters and digits, at least four of them
        there is no run zzzz
        `7f3!` is not a run: an id has letters and digits, at least four of them
        `é7f3` is not a run: an id has letters and digits, at least four of them
        `` is not a run: an id has letters and digits, at least four of them
        `7777777777777777777777777777777777777777` is not a run: an id has letters and digits, at least four of them
        "
        );
    }

    #[test]
    fn pages_go_from_the_newest_to_the_oldest_without_a_gap() {
        let mut index = Index::default();
        for n in 0..25 {
            // Some at the same moment.
            index.insert(known(RunId::random(), n / 3));
        }
        let mut seen = Vec::new();
        let mut place = None;
        loop {
            let (page, more) = index.page(place, 10, false);
            place = page.last().and_then(|brief| parse_cursor(&cursor(brief)));
            seen.extend(page.into_iter().map(|brief| brief.id));
            if !more {
                break;
            }
        }
        assert_eq!(seen.len(), 25);
        assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), 25);
        assert_eq!(parse_cursor("x"), None);
        assert_eq!(parse_cursor("1.zz"), None);
    }
}
