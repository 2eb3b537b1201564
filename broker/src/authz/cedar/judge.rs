//! What a document says of what somebody asks: pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use cedar_policy::{Authorizer, Entities, EntityUid, PolicySet, Request};
use muster_protocol::chat::Proof;
use muster_protocol::envelope::Door;
use muster_protocol::ids::Serial;
use muster_protocol::names::{LabelKey, LabelValue, RoleName};

use super::document::{Document, One};
use super::request::{self, Moment, Type, Unaskable, uid};
use crate::authz::{Action, Caller, Decision, Denied, Grant, Group, Origin, PolicyId, RunAsk};
use crate::inventory::Snapshot;

/// What a document says, and why.
#[derive(Clone, Debug)]
pub struct Judged {
    /// Yes or no.
    pub decision: Decision,
    /// Each class of nodes in each set; one without a set for everything but
    /// a run.
    pub classes: Vec<JudgedClass>,
}

/// What a document says of nodes of a set with the same roles and labels.
#[derive(Clone, Debug)]
pub struct JudgedClass {
    /// The set.
    pub set: Option<String>,
    /// The roles.
    pub roles: Vec<RoleName>,
    /// The labels.
    pub labels: BTreeMap<LabelKey, LabelValue>,
    /// How many nodes.
    pub nodes: u32,
    /// Whether it is allowed.
    pub allowed: bool,
    /// The policies that permit it.
    pub permits: Vec<PolicyId>,
    /// The policies that forbid it.
    pub forbids: Vec<PolicyId>,
    /// What could not be evaluated, and why.
    pub errors: Vec<(PolicyId, String)>,
    /// What would permit it, were it surer who asks: how sure it has to be.
    weak: Option<Proof>,
    /// What is asked for in return.
    asks: Asks,
}

/// How sure it is who writes in a chat, and how sure it usually has to be for
/// what is asked there.
#[derive(Clone, Copy, Debug)]
struct Sure {
    is: Proof,
    usual: Proof,
}

impl Sure {
    /// Nothing for whoever comes through another door.
    fn of(caller: &Caller, action: &Action) -> Option<Self> {
        let (Origin::Chat { proof, .. }, _) = caller.origin.beginning() else {
            return None;
        };
        Some(Self {
            is: *proof,
            // What changes something needs the server's word, or that of the
            // person's own device, on that very line.
            usual: match action.group() {
                Group::Read => Proof::None,
                Group::Run | Group::Change | Group::Manage => Proof::Tag,
            },
        })
    }
}

/// What a permit asks for in return.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Asks {
    approvals: u32,
    doors: Option<BTreeSet<Door>>,
}

impl Asks {
    /// The less it demands the smaller: first how many, then through how few
    /// doors. `own` is what the run asks for by itself.
    fn demand(&self, own: u32) -> (u32, usize) {
        let doors = self
            .doors
            .as_ref()
            .map_or(0, |doors| usize::MAX - doors.len());
        (self.approvals.max(own), doors)
    }

    /// What satisfies both; `None` when nothing does.
    fn and(self, other: Self) -> Option<Self> {
        let doors = match (self.doors, other.doors) {
            (Some(one), Some(two)) => {
                let both: BTreeSet<Door> = one.intersection(&two).copied().collect();
                if both.is_empty() {
                    return None;
                }
                Some(both)
            }
            (one, two) => one.or(two),
        };
        Some(Self {
            approvals: self.approvals.max(other.approvals),
            doors,
        })
    }
}

/// What the policies say of one request.
#[derive(Clone, Debug, Default)]
struct Said<'a> {
    permits: Vec<&'a One>,
    forbids: Vec<&'a One>,
    errors: Vec<(&'a One, String)>,
}

impl<'a> Said<'a> {
    fn and(&self, other: Said<'a>) -> Self {
        let mut both = self.clone();
        both.permits.extend(other.permits);
        both.forbids.extend(other.forbids);
        both.errors.extend(other.errors);
        both
    }

    fn class(
        mut self,
        set: Option<&str>,
        class: &Class<'_>,
        own: u32,
        sure: Option<Sure>,
    ) -> JudgedClass {
        // What needs more to be sure of permits nothing.
        let mut weak = None;
        if let Some(sure) = sure {
            let needs = |one: &One| one.proof.unwrap_or(sure.usual);
            let least = self.permits.iter().map(|one| needs(one)).min();
            self.permits.retain(|one| needs(one) <= sure.is);
            weak = least.filter(|_| self.permits.is_empty());
        }
        // What was meant to forbid and cannot be evaluated forbids.
        let broken = self.errors.iter().filter(|(one, _)| one.forbids);
        let broken: Vec<&One> = broken.map(|(one, _)| *one).collect();
        self.forbids.extend(broken);
        self.forbids.sort_by(|a, b| a.id.cmp(&b.id));
        self.permits.sort_by(|a, b| a.id.cmp(&b.id));
        let asks = self.permits.iter().map(|one| Asks {
            approvals: one.approvals,
            doors: one.doors.clone(),
        });
        let asks = asks.min_by_key(|asks| asks.demand(own)).unwrap_or_default();
        let ids = |all: &[&One]| all.iter().map(|one| one.id.clone()).collect();
        JudgedClass {
            set: set.map(str::to_owned),
            roles: class.roles.to_vec(),
            labels: class.labels.clone(),
            nodes: class.nodes,
            allowed: self.forbids.is_empty() && !self.permits.is_empty(),
            permits: ids(&self.permits),
            forbids: ids(&self.forbids),
            errors: self
                .errors
                .into_iter()
                .map(|(one, why)| (one.id.clone(), why))
                .collect(),
            weak,
            asks,
        }
    }
}

/// Nodes with the same roles and labels.
#[derive(Clone, Debug)]
struct Class<'a> {
    roles: &'a [RoleName],
    labels: &'a BTreeMap<LabelKey, LabelValue>,
    nodes: u32,
}

/// What tells one class from another.
type Assigned<'a> = (&'a [RoleName], &'a BTreeMap<LabelKey, LabelValue>);

static NO_LABELS: BTreeMap<LabelKey, LabelValue> = BTreeMap::new();

const NONE: Class<'static> = Class {
    roles: &[],
    labels: &NO_LABELS,
    nodes: 0,
};

/// The classes of the nodes of a set, as the operators have assigned them at
/// this moment. A node that was removed is in none: it can do nothing.
fn classes<'a>(set: &crate::authz::AskedSet, snapshot: &'a Snapshot) -> Vec<Class<'a>> {
    let serials: Vec<Serial> = set.nodes.iter().collect();
    let count = |some: &[Serial]| {
        let mut found: HashMap<Assigned<'a>, u32> = HashMap::new();
        for node in some.iter().filter_map(|serial| snapshot.get(*serial)) {
            let assigned = &node.assignment;
            *found
                .entry((&assigned.roles, &assigned.labels))
                .or_default() += 1;
        }
        found
    };
    let mut found: HashMap<Assigned<'a>, u32> = HashMap::new();
    for (assigned, nodes) in side_by_side(&serials, MANY_NODES, count)
        .into_iter()
        .flatten()
    {
        *found.entry(assigned).or_default() += nodes;
    }
    let mut classes: Vec<_> = found
        .into_iter()
        .map(|((roles, labels), nodes)| Class {
            roles,
            labels,
            nodes,
        })
        .collect();
    classes.sort_by(|a, b| (a.roles, a.labels).cmp(&(b.roles, b.labels)));
    classes
}

impl Document {
    /// What it says of that action of that caller at that moment.
    #[must_use]
    pub fn judge(
        &self,
        caller: &Caller,
        action: &Action,
        at: Moment,
        snapshot: &Snapshot,
    ) -> Judged {
        let judged = match action {
            Action::CreateRun(run) => self.judge_run(caller, action, run, at, snapshot),
            other => self.judge_other(caller, other, at),
        };
        judged.unwrap_or_else(|error| {
            tracing::error!(%error, principal = %caller.principal, action = action.name(), "denied");
            let what = action.what().to_owned();
            Judged {
                decision: self.denied(caller, what, error.to_string(), Vec::new()),
                classes: Vec::new(),
            }
        })
    }

    fn denied(&self, caller: &Caller, what: String, why: String, by: Vec<PolicyId>) -> Decision {
        Decision::Deny(Box::new(Denied {
            principal: caller.principal.clone(),
            role: caller.role,
            kind: self.principals.kind(&caller.principal),
            what,
            why: Some(why),
            by,
        }))
    }

    fn judge_other(
        &self,
        caller: &Caller,
        action: &Action,
        at: Moment,
    ) -> Result<Judged, Unaskable> {
        let (me, parents, mut entities) = request::principal(self, caller)?;
        let actions = request::action(action);
        let [same, by_class] = self.concerning(&me, &parents, &actions);
        entities.push(request::cluster());
        let entities = request::entities(entities, &actions)?;
        let context = request::context(request::asked(caller, at))?;
        let this = uid(Type::Cluster, "this");
        let asked = request::request(&me, first(&actions), this, context)?;
        let said = self.ask(&asked, &same, &entities);
        let said = said.and(self.ask(&asked, &by_class, &entities));
        let class = said.class(None, &NONE, 0, Sure::of(caller, action));
        let decision = if class.allowed {
            Decision::Allow(Grant {
                by: class.permits.clone(),
                ..Grant::default()
            })
        } else {
            let what = action.what().to_owned();
            self.denied(caller, what, why(&class), class.forbids.clone())
        };
        let classes = vec![class];
        Ok(Judged { decision, classes })
    }

    fn judge_run(
        &self,
        caller: &Caller,
        action: &Action,
        run: &RunAsk,
        at: Moment,
        snapshot: &Snapshot,
    ) -> Result<Judged, Unaskable> {
        let (me, parents, mut entities) = request::principal(self, caller)?;
        let actions = request::action(action);
        let sure = Sure::of(caller, action);
        let [same, by_class] = self.concerning(&me, &parents, &actions);
        let (described, own) = request::run(run)?;
        entities.extend(own);
        let mut sets: Vec<_> = run
            .sets
            .iter()
            .map(|set| (set, classes(set, snapshot)))
            .filter(|(_, classes)| !classes.is_empty())
            .collect();
        if sets.is_empty() {
            // On no node at all it is judged all the same.
            sets.extend(run.sets.first().map(|set| (set, vec![NONE])));
        }
        let mut count = 0_usize;
        let mut placed = Vec::new();
        for (set, classes) in sets {
            let classes = classes.into_iter().map(|class| {
                count += 1;
                (uid(Type::Nodes, &count.to_string()), class)
            });
            let classes: Vec<_> = classes.collect();
            for (uid, class) in &classes {
                entities.push(request::nodes(
                    uid.clone(),
                    class.roles.iter().map(RoleName::as_str),
                    class
                        .labels
                        .iter()
                        .map(|(key, value)| (key.as_str(), value.as_str())),
                )?);
            }
            placed.push((set, classes));
        }
        let entities = request::entities(entities, &actions)?;
        let mut pairs = request::asked(caller, at);
        pairs.extend(described);
        // Said once: it is the same for all.
        let mut of_all: Option<Said<'_>> = None;
        let mut judged = Vec::with_capacity(count);
        for (set, classes) in placed {
            let mut pairs = pairs.clone();
            let long = |n: u32| cedar_policy::RestrictedExpression::new_long(i64::from(n));
            let name = cedar_policy::RestrictedExpression::new_string(set.name.clone());
            pairs.extend([
                ("set".to_owned(), name),
                ("size".to_owned(), long(set.size)),
            ]);
            let context = request::context(pairs)?;
            if of_all.is_none()
                && let Some((uid, _)) = classes.first()
            {
                let asked = request::request(&me, first(&actions), uid.clone(), context.clone())?;
                of_all = Some(self.ask(&asked, &same, &entities));
            }
            let Some(common) = &of_all else { continue };
            let few = MANY_QUESTIONS.div_ceil(by_class.num_of_policies().max(1));
            let parts = side_by_side(&classes, few, |some| {
                let each = some.iter().map(|(uid, class)| {
                    let (uid, context) = (uid.clone(), context.clone());
                    let asked = request::request(&me, first(&actions), uid, context)?;
                    let said = common.and(self.ask(&asked, &by_class, &entities));
                    Ok(said.class(Some(&set.name), class, run.gates.approvals, sure))
                });
                each.collect::<Result<Vec<_>, Unaskable>>()
            });
            for part in parts {
                judged.extend(part?);
            }
        }
        Ok(Judged {
            decision: self.sum_up(caller, run, &judged),
            classes: judged,
        })
    }

    /// One no is a no to the whole.
    fn sum_up(&self, caller: &Caller, run: &RunAsk, judged: &[JudgedClass]) -> Decision {
        let name = &run.scenario;
        if let Some(no) = judged.iter().find(|class| !class.allowed) {
            let what = match &no.set {
                Some(set) if no.nodes > 0 => format!("run {name} on {} (set {set})", nodes(no)),
                _ => format!("run {name}"),
            };
            return self.denied(caller, what, why(no), no.forbids.clone());
        }
        let mut grant = Some(Asks::default());
        let mut by = BTreeSet::new();
        for class in judged {
            by.extend(class.permits.iter().cloned());
            grant = grant.and_then(|all| all.and(class.asks.clone()));
        }
        match grant {
            _ if judged.is_empty() => {
                self.denied(caller, format!("run {name}"), NOBODY.to_owned(), Vec::new())
            }
            Some(Asks { approvals, doors }) => Decision::Allow(Grant {
                approvals,
                doors,
                by: by.into_iter().collect(),
            }),
            None => {
                let why = "its nodes need approvals through different doors, and no door is among those of all";
                self.denied(caller, format!("run {name}"), why.to_owned(), Vec::new())
            }
        }
    }

    /// What some of the policies say.
    fn ask<'a>(&'a self, asked: &Request, policies: &PolicySet, entities: &Entities) -> Said<'a> {
        if policies.is_empty() {
            return Said::default();
        }
        let response = Authorizer::new().is_authorized(asked, policies, entities);
        let diagnostics = response.diagnostics();
        let mut said = Said::default();
        for one in diagnostics.reason().filter_map(|id| self.policies.get(id)) {
            if one.forbids {
                said.forbids.push(one);
            } else {
                said.permits.push(one);
            }
        }
        for error in diagnostics.errors() {
            let cedar_policy::AuthorizationError::PolicyEvaluationError(error) = error;
            if let Some(one) = self.policies.get(error.policy_id()) {
                said.errors.push((one, error.inner().to_string()));
            }
        }
        said
    }
}

/// So many nodes are sorted into classes by one thread.
const MANY_NODES: usize = 2_000;
/// So many times a policy is asked by one thread.
const MANY_QUESTIONS: usize = 2_000;
/// Most threads that judge one request.
const MOST_THREADS: usize = 4;

/// What `work` makes of each part of the items, in order: of all of them at
/// once where they are few, else on as many threads as there are processors,
/// up to a bound.
fn side_by_side<T: Sync, R: Send>(
    items: &[T],
    few: usize,
    work: impl Fn(&[T]) -> R + Sync,
) -> Vec<R> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let parts = threads
        .min(MOST_THREADS)
        .min(items.len().div_ceil(few.max(1)));
    if parts < 2 {
        return vec![work(items)];
    }
    std::thread::scope(|scope| {
        let work = &work;
        let mut chunks = items.chunks(items.len().div_ceil(parts));
        let own = chunks.next().unwrap_or_default();
        let others: Vec<_> = chunks
            .map(|chunk| {
                let thread = std::thread::Builder::new().spawn_scoped(scope, move || work(chunk));
                (chunk, thread)
            })
            .collect();
        let mut done = vec![work(own)];
        done.extend(others.into_iter().map(|(chunk, thread)| {
            match thread {
                Ok(thread) => thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                // The system gives no thread now: then this one does it.
                Err(_) => work(chunk),
            }
        }));
        done
    })
}

/// What somebody has to do who may, and who it is not sure to be.
fn unsure(needs: Proof) -> &'static str {
    match needs {
        Proof::None | Proof::Link => {
            "it is not known who you are: log in to services, or link yourself"
        }
        Proof::Tracked | Proof::Tag => {
            "it is not sure that it is you: log in to services, or add --code and the code of your device"
        }
        Proof::Code => "it needs the code of your device: add --code and the six digits",
    }
}

const NOBODY: &str = "no policy permits it";

fn first(actions: &[EntityUid]) -> &EntityUid {
    actions.first().expect("an action is among its own")
}

/// `nodes with role=db and zone=gva2`.
fn nodes(class: &JudgedClass) -> String {
    let roles = class.roles.iter().map(|role| format!("role={role}"));
    let labels = class
        .labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"));
    let all: Vec<String> = roles.chain(labels).collect();
    if all.is_empty() {
        "nodes without roles and labels".to_owned()
    } else {
        format!("nodes with {}", all.join(" and "))
    }
}

fn why(class: &JudgedClass) -> String {
    let list = |all: &[PolicyId]| {
        let all: Vec<String> = all.iter().map(|id| format!("`{id}`")).collect();
        all.join(", ")
    };
    let broken = class
        .errors
        .iter()
        .find(|(id, _)| class.forbids.contains(id));
    match (class.forbids.as_slice(), broken) {
        ([], _) if class.weak.is_some() => unsure(class.weak.unwrap_or_default()).to_owned(),
        ([], _) => match class.errors.first() {
            None => NOBODY.to_owned(),
            Some((id, error)) => format!("{NOBODY}, and `{id}` could not be evaluated: {error}"),
        },
        (_, Some((id, error))) => {
            format!("`{id}` forbids things, and could not be evaluated: {error}")
        }
        ([one], None) => format!("`{one}` forbids it"),
        (some, None) => format!("{} forbid it", list(some)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_all_of_it_in_order() {
        let items: Vec<u32> = (0..1_003).collect();
        for few in [0, 1, 100, 1_002, 1_003, 5_000] {
            let parts = side_by_side(&items, few, <[u32]>::to_vec);
            assert!(parts.len() <= MOST_THREADS, "{few}");
            assert_eq!(parts.concat(), items, "{few}");
        }
        let none = side_by_side(&[], 1, <[u32]>::to_vec).concat();
        assert!(none.is_empty());
    }
}
