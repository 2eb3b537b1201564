//! The way from a step of a scenario, whose thread may block, to this node's
//! own firewall.

use std::sync::Arc;

use muster_firewall::host::difference;
use muster_nft::host::{ChangeId, Changed, Ended, Entry, HostError as NftError, HostFirewall};
use muster_protocol::envelope::Mode;
use muster_protocol::firewall::ProbeWish;
use muster_protocol::firewall::host::{ConfirmWithin, HostOrder, Probe, ProbeTarget, Resolved};
use muster_protocol::ids::RequestId;
use muster_protocol::names::RoleName;
use muster_protocol::note::MAX_VALUE;
use muster_scenarios::node::{Change, FirewallCall, HostError, Performed};
use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::warn;

use super::door::Door;
use crate::host::tools::Tools;

/// Most of what is in force, or was tried, that a run shows, in bytes.
const SHOWN: usize = MAX_VALUE / 2;

/// This node's own firewall, and the ways to the cluster that it must leave
/// open. Cheap to clone.
#[derive(Clone)]
pub struct Firewall {
    host: Arc<HostFirewall>,
    door: Door,
}

/// Which of a step's changes this is: its number, 0 for the first one.
fn number_in(request: &str, change: &ChangeId) -> Option<u32> {
    let id = change.to_string();
    match id.strip_prefix(request)? {
        "" => Some(0),
        rest => rest.strip_prefix('.')?.parse().ok(),
    }
}

/// What a step's next change is known by, here and to people. One that was
/// rolled back is not made a second time: it keeps its name.
fn next_id(request: RequestId, rules: &Resolved, history: &[Entry]) -> Result<ChangeId, HostError> {
    let request = request.to_string();
    let own = || {
        let numbered = |entry| Some((number_in(&request, &entry.change)?, entry));
        history.iter().filter_map(numbered)
    };
    let was_rolled_back = |entry: &Entry| {
        entry.rules == *rules && matches!(entry.ended, Some(Ended::RolledBack { .. }))
    };
    if let Some((_, entry)) = own().find(|(_, entry)| was_rolled_back(entry)) {
        return Ok(entry.change.clone());
    }
    let text = match own().map(|(number, _)| number).max() {
        None => request.clone(),
        Some(last) => format!("{request}.{}", last.saturating_add(1)),
    };
    text.parse().map_err(failed)
}

/// What became of a change.
pub struct Came {
    /// What the script is told.
    pub performed: Result<Performed, HostError>,
    /// Why the old rules are in force again, if they are.
    pub rolled_back: Option<String>,
}

impl From<Result<Performed, HostError>> for Came {
    fn from(performed: Result<Performed, HostError>) -> Self {
        Self {
            performed,
            rolled_back: None,
        }
    }
}

fn failed(error: impl std::fmt::Display) -> HostError {
    HostError::Failed(error.to_string())
}

fn plain(value: Value) -> Performed {
    Performed {
        change: None,
        value,
    }
}

impl Firewall {
    /// That firewall, with these ways to the cluster.
    #[must_use]
    pub fn new(host: HostFirewall, door: Door) -> Self {
        Self {
            host: Arc::new(host),
            door,
        }
    }

    /// Why the old rules are in force again after a step that was cut, if
    /// they are.
    pub async fn rolled_back(&self, request: RequestId) -> Option<String> {
        let host = Arc::clone(&self.host);
        let known = tokio::task::spawn_blocking(move || host.history()).await;
        let known = match known {
            Ok(Ok(known)) => known,
            Ok(Err(error)) => {
                warn!("what became of changes of the firewall cannot be read: {error}");
                return None;
            }
            Err(_) => return None,
        };
        let request = request.to_string();
        let is_its = |entry: &&Entry| number_in(&request, &entry.change).is_some();
        // The newest is the first.
        let newest = known.iter().find(is_its)?;
        match &newest.ended {
            Some(ended @ Ended::RolledBack { .. }) => {
                Some(format!("{ended}; the old rules are in force"))
            }
            _ => None,
        }
    }

    /// Does what a script wants of the firewall, or says what it would do.
    pub fn perform(
        &self,
        tools: &Tools,
        call: &FirewallCall,
        mode: Mode,
        request: RequestId,
    ) -> Came {
        match call {
            FirewallCall::Show => self.show().into(),
            FirewallCall::History => self.history().into(),
            FirewallCall::Diff { run } => self.diff(run.as_deref()).into(),
            FirewallCall::Host { order } => match self.resolved(tools, order, request) {
                Ok(rules) => self.change(tools, &Wanted::of(order, rules), mode, request),
                Err(error) => Err(error).into(),
            },
            FirewallCall::Rollback => match self.host.before() {
                Ok(before) => {
                    let wanted = Wanted {
                        rules: before.rules,
                        probes: Vec::new(),
                        within: ConfirmWithin::default(),
                    };
                    self.change(tools, &wanted, mode, request)
                }
                Err(error) => Err(failed(error)).into(),
            },
        }
    }

    /// The rules with the addresses of the roles that they name.
    fn resolved(
        &self,
        tools: &Tools,
        order: &HostOrder,
        request: RequestId,
    ) -> Result<Resolved, HostError> {
        let roles: Vec<RoleName> = order.rules.roles().into_iter().collect();
        let addresses = if roles.is_empty() {
            Default::default()
        } else {
            let asked = tools.wait(self.door.addresses(request, &roles));
            let asked = asked.map_err(|_| HostError::Stopped)?;
            asked
                .map_err(|e| failed(format!("the addresses of roles are not known: {e}")))?
                .roles
        };
        order.rules.resolve(&addresses).map_err(failed)
    }

    fn change(&self, tools: &Tools, wanted: &Wanted, mode: Mode, request: RequestId) -> Came {
        let plan = match self.host.plan(&wanted.rules) {
            Ok(plan) => plan,
            Err(error) => return Err(failed(error)).into(),
        };
        if plan.is_empty() {
            return Ok(Performed {
                change: Some(Change::Unchanged),
                value: Value::Null,
            })
            .into();
        }
        let summary = summary(&plan.difference);
        let diff = plan.difference;
        if mode == Mode::Check {
            return Ok(Performed {
                change: Some(Change::WouldChange { summary, diff }),
                value: Value::Null,
            })
            .into();
        }
        let history = match self.host.history() {
            Ok(history) => history,
            Err(error) => return Err(failed(error)).into(),
        };
        let id = match next_id(request, &wanted.rules, &history) {
            Ok(id) => id,
            Err(error) => return Err(error).into(),
        };
        let said = json!({ "change": id.to_string() });
        match tools
            .runtime()
            .block_on(self.confirmed(tools, wanted, id, request))
        {
            Ok(Changed::Unchanged) => Ok(Performed {
                change: Some(Change::Unchanged),
                value: Value::Null,
            })
            .into(),
            Ok(_) => Ok(Performed {
                change: Some(Change::Changed { summary, diff }),
                value: said,
            })
            .into(),
            Err(error) => {
                let rolled_back = match &error {
                    NftError::RolledBack { .. } => Some(error.to_string()),
                    NftError::Again(ended @ Ended::RolledBack { .. }) => {
                        Some(format!("{ended}; the old rules are in force"))
                    }
                    _ => None,
                };
                Came {
                    performed: Err(failed(error)),
                    rolled_back,
                }
            }
        }
    }

    /// Changes the rules, and has the cluster say whether they may stay. A step
    /// that ends meanwhile has its rules taken back, and that is waited for.
    async fn confirmed(
        &self,
        tools: &Tools,
        wanted: &Wanted,
        id: ChangeId,
        request: RequestId,
    ) -> Result<Changed, NftError> {
        let within = wanted.within.get();
        let confirm = async {
            let until = Instant::now() + within;
            tokio::select! {
                biased;
                () = tools.ends() => Err("the step was ended before they were confirmed".to_owned()),
                said = self.door.confirm(request, &wanted.probes, until) => said,
            }
        };
        self.host.change(&id, &wanted.rules, within, confirm).await
    }

    fn show(&self) -> Result<Performed, HostError> {
        let show = self.host.show().map_err(failed)?;
        let confirmed = show.confirmed.as_ref();
        let (lines, cut) = match confirmed {
            // From nothing, everything is new.
            Some(entry) => bounded(
                difference(None, &entry.rules)
                    .iter()
                    .map(|line| line.trim_start_matches("+ ").to_owned())
                    .collect(),
            ),
            None => (Vec::new(), false),
        };
        let text = show.table.filter(|text| text.len() <= SHOWN / 2);
        Ok(plain(json!({
            "change": confirmed.map(|entry| entry.change.to_string()),
            "at": confirmed.map(|entry| entry.at),
            "waits": show.in_flight.map(|entry| entry.change.to_string()),
            "foreign": show.foreign,
            "lines": lines,
            "cut": cut,
            "text": text,
        })))
    }

    fn history(&self) -> Result<Performed, HostError> {
        let known = self.host.history().map_err(failed)?;
        let mut room = SHOWN;
        let mut told = Vec::new();
        for entry in &known {
            let one = tell(entry, 20);
            let bytes = one.to_string().len();
            if bytes > room {
                break;
            }
            room -= bytes;
            told.push(one);
        }
        Ok(plain(Value::Array(told)))
    }

    fn diff(&self, run: Option<&str>) -> Result<Performed, HostError> {
        let known = self.host.history().map_err(failed)?;
        let is_it = |entry: &&Entry| match run {
            Some(run) => entry.change.to_string().starts_with(run),
            None => true,
        };
        match known.iter().find(is_it) {
            Some(entry) => Ok(plain(tell(entry, usize::MAX))),
            None => Err(failed(match run {
                Some(run) => {
                    format!("run {run} is not among the last changes of this node's firewall")
                }
                None => "muster has never changed this node's firewall".to_owned(),
            })),
        }
    }
}

/// Rules, and what has to work with them.
struct Wanted {
    rules: Resolved,
    probes: Vec<ProbeWish>,
    within: ConfirmWithin,
}

impl Wanted {
    fn of(order: &HostOrder, rules: Resolved) -> Self {
        let wish = |probe: &Probe| {
            let ProbeTarget::Tcp(tcp) = probe.target;
            ProbeWish {
                from: probe.from.text().to_owned(),
                tcp,
            }
        };
        Self {
            rules,
            probes: order.probes.iter().map(wish).collect(),
            within: order.confirm_within,
        }
    }
}

/// `2 rules more, 1 less`.
fn summary(difference: &[String]) -> String {
    let lines = |sign| difference.iter().filter(|l| l.starts_with(sign)).count();
    match (lines('+'), lines('-')) {
        (0, 0) => "the rules change".to_owned(),
        (more, 0) => format!("{more} more"),
        (0, less) => format!("{less} less"),
        (more, less) => format!("{more} more, {less} less"),
    }
}

/// As many lines as can be shown, and whether there are others.
fn bounded(lines: Vec<String>) -> (Vec<String>, bool) {
    let mut room = SHOWN;
    let count = lines.len();
    let kept: Vec<String> = lines
        .into_iter()
        .take_while(|line| {
            let fits = line.len() + 8 <= room;
            room = room.saturating_sub(line.len() + 8);
            fits
        })
        .collect();
    let cut = kept.len() < count;
    (kept, cut)
}

/// A change, for a run's value.
fn tell(entry: &Entry, most: usize) -> Value {
    let (mut difference, mut cut) = bounded(entry.difference.clone());
    if difference.len() > most {
        difference.truncate(most);
        cut = true;
    }
    let ended = match &entry.ended {
        Some(ended) => ended.to_string(),
        None => "not confirmed yet".to_owned(),
    };
    json!({
        "change": entry.change.to_string(),
        "at": entry.at,
        "difference": difference,
        "cut": cut,
        "ended": ended,
        "in_force": entry.in_force,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_long_is_cut() {
        let (kept, cut) = bounded(vec!["a".to_owned(), "b".to_owned()]);
        assert_eq!((kept.len(), cut), (2, false));
        let (kept, cut) = bounded(vec!["x".repeat(1_000); 100]);
        assert!(kept.len() < 100 && cut);
    }

    #[test]
    fn a_change_in_a_few_words() {
        let said =
            |lines: &[&str]| summary(&lines.iter().map(|l| (*l).to_owned()).collect::<Vec<_>>());
        assert_eq!(said(&["+ a", "- b", "+ c"]), "2 more, 1 less");
        assert_eq!(said(&["~ somebody else"]), "the rules change");
    }
}
