//! What only looks.

use std::collections::BTreeMap;
use std::time::Duration;

use muster_protocol::api::{Presence, RunBrief, RunView, Say, Tone};
use muster_protocol::chat::command::{self, VERBS, machines};
use muster_protocol::fold::folded;
use muster_protocol::names::ScenarioName;
use muster_protocol::predicate::Predicate;
use muster_protocol::problem::Kind;
use muster_protocol::run::Outcome;
use muster_protocol::text::{nearest, printable};
use muster_protocol::units::{Timestamp, elapsed};

use super::say::count;
use super::{Answer, Line, no, say, scenario_names};
use crate::authz::Action;
use crate::chat::outputs::Ran as _;
use crate::chat::result;
use crate::http::ApiError;
use crate::ping::PingError;
use crate::resolve::{Options, ResolveError, matching, parse, resolve};

/// How long nodes may take to answer a ping.
const PING_WITHIN: Duration = Duration::from_secs(3);
/// Longest list of names in a line, in characters.
const NAMES: usize = 200;
/// Runs that are looked through for somebody's last one.
const LOOKED_THROUGH: usize = 500;

/// Where nothing would have been run anyway.
fn refused(error: &ResolveError) -> ApiError {
    let mut problem = error.problem();
    if let Some(title) = problem.title.strip_suffix("; nothing was run") {
        problem.title = title.to_owned();
    }
    ApiError(Box::new(problem))
}

fn names<'a>(all: impl IntoIterator<Item = &'a str>) -> String {
    folded(all, NAMES)
}

/// `4 min`.
fn ago(at: Timestamp) -> String {
    ago_since(at, Timestamp::now())
}

/// The same, from then to `now`.
pub(super) fn ago_since(at: Timestamp, now: Timestamp) -> String {
    let seconds = elapsed(at, now).as_secs();
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7_199 => format!("{} min", seconds / 60),
        7_200..=172_799 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

impl Line<'_> {
    pub(super) async fn ping(&self, on: Option<&str>) -> Answer {
        self.allowed(Action::Ping).await?;
        self.state.active()?;
        let options = Options {
            limit: None,
            include_infrastructure: true,
            allow_unknown: false,
        };
        let snapshot = self.state.inventory.snapshot();
        let resolved = resolve(on.unwrap_or("*"), &snapshot, options).map_err(|e| refused(&e))?;
        (self.wait)();
        let pinger = &self.state.nodes.pinger;
        let answer =
            pinger
                .ping(&resolved.nodes, PING_WITHIN)
                .await
                .map_err(|error| match error {
                    PingError::Busy => no(Kind::RateLimited, error.to_string()),
                    PingError::Send(_) => no(Kind::Unavailable, error.to_string()),
                })?;
        let all = answer.asked as usize;
        let there = answer.answered.len();
        let slowest = answer.answered.iter().map(|reply| reply.us).max();
        let time = slowest.map_or(String::new(), |us| {
            format!(" in {:.1} ms", us as f64 / 1_000.0)
        });
        if answer.silent.is_empty() {
            return Ok(vec![say::good(format!(
                "{} of {} answered{time}",
                there,
                count(all, "node")
            ))]);
        }
        let mut lines = vec![format!("{there} of {} answered{time}", count(all, "node"))];
        let mut silent: BTreeMap<&'static str, Vec<&str>> = BTreeMap::new();
        for node in &answer.silent {
            silent
                .entry(node.state.as_str())
                .or_default()
                .push(node.node.as_str());
        }
        for (state, nodes) in silent {
            lines.push(format!("no answer ({state}): {}", names(nodes)));
        }
        Ok(vec![Say {
            tone: Tone::Warn,
            ..say::several(lines)
        }])
    }

    pub(super) async fn nodes(&self, on: Option<&str>) -> Answer {
        self.allowed(Action::ReadNodes).await?;
        let snapshot = self.state.inventory.snapshot();
        let predicate = match on {
            None => Predicate::all(),
            Some(text) => parse(text, &snapshot, false).map_err(|e| refused(&e))?,
        };
        let presences = self.state.control.presences();
        let mut by_state: BTreeMap<&'static str, Vec<&str>> = BTreeMap::new();
        let mut all = 0;
        for node in snapshot.iter().filter(|node| predicate.matches(&***node)) {
            let state = presences
                .get(&node.serial)
                .map_or(Presence::Never, |presence| presence.state);
            let name = node.assignment.name.as_str();
            by_state.entry(state.as_str()).or_default().push(name);
            all += 1;
        }
        let mut lines = vec![count(all, "node")];
        for (state, mut nodes) in by_state {
            nodes.sort_unstable();
            lines.push(format!("{state} {}: {}", nodes.len(), names(nodes)));
        }
        if let [first, second] = lines.as_slice() {
            return Ok(vec![say::plain(format!("{first}, {second}"))]);
        }
        Ok(vec![say::several(lines)])
    }

    pub(super) async fn matching(&self, on: &str) -> Answer {
        self.allowed(Action::MatchNodes).await?;
        let snapshot = self.state.inventory.snapshot();
        let predicate = parse(on, &snapshot, false).map_err(|e| refused(&e))?;
        let nodes = matching(&predicate, &snapshot);
        let mut found: Vec<&str> = nodes
            .iter()
            .map(|node| node.assignment.name.as_str())
            .collect();
        found.sort_unstable();
        let text = printable(predicate.text(), 300);
        Ok(vec![say::plain(if found.is_empty() {
            format!("no node matches {text}")
        } else {
            format!(
                "{} match {text}: {}",
                count(found.len(), "node"),
                names(found)
            )
        })])
    }

    pub(super) async fn runs(&self, most: usize) -> Answer {
        self.allowed(Action::ReadRuns).await?;
        let (runs, _) = self.state.nodes.engine.list(None, most, false)?;
        if runs.is_empty() {
            return Ok(vec![say::plain("nothing was run yet".to_owned())]);
        }
        Ok(vec![say::several(runs.iter().map(brief).collect())])
    }

    /// The asker's last run.
    fn own(&self) -> Result<Option<RunBrief>, ApiError> {
        let (runs, _) = self.state.nodes.engine.list(None, LOOKED_THROUGH, false)?;
        let own = runs
            .into_iter()
            .find(|run| run.principal == self.caller.principal);
        Ok(own)
    }

    pub(super) async fn last(&self) -> Answer {
        self.allowed(Action::ReadRuns).await?;
        Ok(vec![match self.own()? {
            Some(run) => say::plain(brief(&run)),
            None => say::plain("you have run nothing lately".to_owned()),
        }])
    }

    pub(super) async fn show(&self, run: Option<&str>) -> Answer {
        self.allowed(Action::ReadRuns).await?;
        let engine = &self.state.nodes.engine;
        let run = match run {
            Some(run) => engine.lookup(run)?,
            None => match self.own()? {
                Some(run) => run.id,
                None => return Ok(vec![say::plain("you have run nothing lately".to_owned())]),
            },
        };
        if engine.has_ended(run)
            && let Some((view, outputs)) = engine.came_to(run).await
        {
            let short = view.brief.short.clone();
            let link = self.state.chat.run_link(&run.to_string(), &short);
            let mut said = result::ended(&view, &outputs, Some(link));
            said.about = Some(short);
            return Ok(vec![said]);
        }
        let view = engine.show(run).await?;
        let short = view.brief.short.clone();
        let mut lines = vec![brief(&view.brief)];
        lines.extend(outcomes(&view));
        let mut said = say::several(lines);
        said.link = Some(self.state.chat.run_link(&run.to_string(), &short));
        Ok(vec![said])
    }

    pub(super) async fn help(&self, about: Option<&str>) -> Answer {
        let names = scenario_names(self.state);
        let Some(about) = about else {
            return Ok(vec![self.overview(&names).await]);
        };
        let word = about.trim_start_matches('!').to_ascii_lowercase();
        if let Some(said) = of_machines(&word) {
            return Ok(vec![said]);
        }
        if let Some(verb) = command::find(&word) {
            let usage = format!("{} {}", verb.name, verb.usage);
            return Ok(vec![say::plain(format!(
                "!{}: {}",
                usage.trim(),
                verb.about
            ))]);
        }
        if let Some(alias) = self.aliases.get(&word) {
            return Ok(vec![say::plain(format!(
                "!{}: stands for !{}",
                alias.usage(),
                printable(alias.text(), 300)
            ))]);
        }
        let Some(name) = names
            .iter()
            .find(|name| **name == word)
            .and_then(|name| name.parse::<ScenarioName>().ok())
        else {
            let known = VERBS.iter().map(|verb| verb.name);
            let known = known
                .chain(self.aliases.iter().map(|alias| alias.name()))
                .chain(names.iter().map(String::as_str));
            let near = nearest(&word, known);
            let near = near.map_or(String::new(), |near| format!("; did you mean {near}?"));
            let word = printable(about, 40);
            return Ok(vec![say::warn(format!(
                "there is nothing called {word}{near}"
            ))]);
        };
        self.allowed(Action::ReadScenarios).await?;
        let loaded = self.state.library.load(&name, None).await?;
        let mut usage = format!("!run {name}");
        let mut lines = Vec::new();
        for view in loaded.manifest.view().params {
            let word = format!("{}={}", view.name, view.kind);
            usage.push_str(&if view.required {
                format!(" {word}")
            } else {
                format!(" [{word}]")
            });
            let mut line = format!("  {}: {}", view.name, view.rule);
            if let Some(help) = &view.help {
                line.push_str(&format!("; {}", printable(help, 200)));
            }
            if view.secret {
                line.push_str("; secret: not in a chat");
            }
            lines.push(line);
        }
        let about = printable(&loaded.manifest.about, 300);
        lines.insert(0, format!("{usage}: {about}"));
        Ok(vec![say::several(lines)])
    }

    /// What the asker may do.
    async fn overview(&self, scenarios: &[String]) -> Say {
        let policy = self.state.guard.policy();
        let may = |action: &Action| policy.decide(&self.caller, action).is_allowed();
        let (reads, runs) = (may(&Action::ReadRuns), may(&Action::Ping));
        let verbs = VERBS.iter().filter(|verb| match verb.name {
            "help" | "who" | "more" => true,
            "nodes" => may(&Action::ReadNodes),
            "match" => may(&Action::MatchNodes),
            "ping" => runs,
            "runs" | "last" | "show" | "diff" => reads,
            "cancel" => may(&Action::CancelRun),
            "retry" => may(&Action::RetryRun),
            "answer" => may(&Action::AnswerRun),
            "freeze" | "thaw" => may(&Action::Freeze),
            "alarms" => may(&Action::ReadEvents),
            "ack" | "silence" => may(&Action::ManageAlarms),
            "build" => may(&Action::StartBuilds),
            "vm" | "image" | "network" | "hypervisor" => may(&Action::ReadMachines),
            "group" | "address-set" => may(&Action::ReadGroups),
            // Whether one may run something depends on what and where.
            _ => reads,
        });
        let verbs: Vec<String> = verbs.map(|verb| format!("!{}", verb.name)).collect();
        let mut lines = vec![format!("you may: {}", verbs.join(" "))];
        let aliases: Vec<String> = self
            .aliases
            .iter()
            .map(|alias| format!("!{}", alias.usage()))
            .collect();
        if reads && !aliases.is_empty() {
            lines.push(format!("short: {}", aliases.join(" · ")));
        }
        if may(&Action::ReadScenarios) && !scenarios.is_empty() {
            lines.push(format!("scenarios (!help NAME): {}", scenarios.join(" ")));
        }
        if lines.len() == 1 && !reads {
            lines.push("nothing else: !who says who you are to me".to_owned());
        }
        say::several(lines)
    }
}

/// How `vm`, `image` and the like are written: all of one, or one of them.
fn of_machines(word: &str) -> Option<Say> {
    let (family, one) = word.split_once(' ').unwrap_or((word, ""));
    if !machines::FAMILIES.contains(&family) {
        return None;
    }
    let usage = |verb: &command::Verb| format!("!{} {}", verb.name, verb.usage).trim().to_owned();
    if let Some(verb) = machines::find(family, one.trim()) {
        return Some(say::plain(format!("{}: {}", usage(verb), verb.about)));
    }
    let all = machines::of_family(family);
    let mut lines: Vec<String> = all
        .map(|verb| format!("!{}: {}", verb.name, verb.about))
        .collect();
    if family == "vm" {
        lines.insert(
            0,
            "!help vm create and the like say how one is written".to_owned(),
        );
    }
    Some(say::several(lines))
}

/// `8k2d ana: uptime on 24 nodes: 23 succeeded, 1 failed (4 min ago)`.
fn brief(run: &RunBrief) -> String {
    let counts: Vec<String> = run
        .summary
        .iter()
        .filter(|(_, n)| **n > 0)
        .map(|(outcome, n)| format!("{n} {outcome}"))
        .collect();
    let counts = if counts.is_empty() {
        String::new()
    } else {
        format!(", {}", counts.join(", "))
    };
    let dry = if run.mode == muster_protocol::envelope::Mode::Check {
        " (dry run)"
    } else {
        ""
    };
    format!(
        "{} {}{dry} by {} on {}: {}{counts} ({} ago)",
        run.short,
        printable(&run.title, 200),
        run.principal,
        count(run.nodes as usize, "node"),
        run.state.as_str(),
        ago(run.created)
    )
}

/// Those that did not succeed, and why; equal reasons together.
fn outcomes(view: &RunView) -> Vec<String> {
    let mut alike: BTreeMap<(Outcome, String), Vec<&str>> = BTreeMap::new();
    for node in &view.results {
        let Some(outcome) = node.outcome.filter(|o| *o != Outcome::Succeeded) else {
            continue;
        };
        let why = node.reason.clone().unwrap_or_default();
        alike
            .entry((outcome, printable(&why, 300)))
            .or_default()
            .push(node.node.as_str());
    }
    let line = |((outcome, why), nodes): ((Outcome, String), Vec<&str>)| {
        let why = if why.is_empty() {
            String::new()
        } else {
            format!(": {why}")
        };
        format!("{} {}{why}", names(nodes), outcome.as_str())
    };
    alike.into_iter().map(line).collect()
}
