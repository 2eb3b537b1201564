//! A document: who there is, and what they may do.

use std::collections::{BTreeMap, BTreeSet};

use cedar_policy::{
    ActionConstraint, Effect, EntityUid, Policy, PolicyId as CedarId, PolicySet,
    PrincipalConstraint, ValidationMode, Validator,
};
use muster_protocol::api::{PolicyFiles, Role};
use muster_protocol::chat::Proof;
use muster_protocol::envelope::Door;
use muster_protocol::names::PrincipalName;
use muster_scenarios::fault::{Fault, nearest};

use super::faults::{fault, of_cedar};
use super::{POLICIES_FILE, PRINCIPALS_FILE, Principals, STOCK, schema};
use crate::authz::PolicyId;

/// Most bytes of both files together.
pub const MAX_FILES: usize = 384 << 10;
/// Most policies.
const MAX_POLICIES: usize = 2_000;
/// Most approvals that a policy can ask for.
const MAX_APPROVALS: u32 = 20;
/// Longest name of a policy.
const MAX_ID: usize = 100;
/// Doors through which somebody can approve.
const DOORS: [Door; 2] = [Door::Cli, Door::Http];
/// The annotations that mean something.
const ANNOTATIONS: [&str; 5] = ["id", "about", "approvals", "approve_through", "proof"];

/// One policy.
#[derive(Clone, Debug)]
pub(super) struct One {
    pub(super) id: PolicyId,
    pub(super) policy: Policy,
    pub(super) forbids: bool,
    /// How many have to approve what it permits.
    pub(super) approvals: u32,
    /// Through which doors.
    pub(super) doors: Option<BTreeSet<Door>>,
    /// How sure it must be who writes in a chat; what is usual for the action
    /// where absent.
    pub(super) proof: Option<Proof>,
    /// Whether what it says may differ from one class of nodes to another.
    pub(super) by_class: bool,
}

/// Who there is, and what they may do: read, and without a mistake.
#[derive(Clone, Debug)]
pub struct Document {
    /// Its number; absent for one that is not stored.
    pub version: Option<u32>,
    /// The files that it was read from.
    pub files: PolicyFiles,
    /// Who there is.
    pub principals: Principals,
    /// By the name that Cedar has for them here.
    pub(super) policies: BTreeMap<CedarId, One>,
    /// Principals that policies name themselves.
    spoken_of: BTreeSet<String>,
}

/// All that policies can tell of whoever asks: two for whom this is equal are
/// judged alike, if they ask alike.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Alike {
    role: &'static str,
    kind: Option<&'static str>,
    groups: BTreeSet<String>,
    /// Where a policy speaks of exactly this one.
    name: Option<PrincipalName>,
}

/// A document, and what is odd in it.
#[derive(Clone, Debug)]
pub struct Checked {
    /// The document.
    pub document: Document,
    /// What is probably not meant.
    pub warnings: Vec<Fault>,
}

impl Document {
    /// What muster comes with.
    #[must_use]
    pub fn stock() -> Self {
        let files = PolicyFiles {
            policies: STOCK.to_owned(),
            principals: String::new(),
        };
        let checked = check(&files).expect("a constant, and a test reads it");
        Self {
            version: Some(0),
            ..checked.document
        }
    }

    /// How many policies it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.policies.len()
    }

    /// Whether it has no policy.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }

    /// What policies can tell of that principal with a token of that role.
    pub(crate) fn alike(&self, principal: &PrincipalName, role: Role) -> Alike {
        let spoken_of = self.spoken_of.contains(principal.as_str());
        Alike {
            role: role.as_str(),
            kind: self.principals.kind(principal).map(|kind| kind.as_str()),
            groups: self.principals.groups_of(principal).cloned().collect(),
            name: spoken_of.then(|| principal.clone()),
        }
    }

    /// The policies that may say something of that action of that principal,
    /// those first that say the same of all classes of nodes.
    pub(super) fn concerning(
        &self,
        principal: &EntityUid,
        parents: &[EntityUid],
        action: &[EntityUid],
    ) -> [PolicySet; 2] {
        let mut sets = [PolicySet::new(), PolicySet::new()];
        for one in self.policies.values() {
            let asks = match one.policy.principal_constraint() {
                PrincipalConstraint::Any | PrincipalConstraint::Is(_) => true,
                PrincipalConstraint::Eq(uid) => uid == *principal,
                PrincipalConstraint::In(uid) | PrincipalConstraint::IsIn(_, uid) => {
                    uid == *principal || parents.contains(&uid)
                }
            };
            let does = match one.policy.action_constraint() {
                ActionConstraint::Any => true,
                ActionConstraint::Eq(uid) => action.first() == Some(&uid),
                ActionConstraint::In(uids) => uids.iter().any(|uid| action.contains(uid)),
            };
            if asks && does {
                sets[usize::from(one.by_class)]
                    .add(one.policy.clone())
                    .expect("names of policies differ");
            }
        }
        sets
    }
}

/// Reads both files, and holds the policies against the schema and against
/// who there is.
///
/// # Errors
/// Everything that is wrong in them.
pub fn check(files: &PolicyFiles) -> Result<Checked, Vec<Fault>> {
    let mut faults = Vec::new();
    let bytes = files.policies.len() + files.principals.len();
    if bytes > MAX_FILES {
        let message =
            format!("both files together have {bytes} bytes; at most {MAX_FILES} are kept");
        return Err(vec![fault(POLICIES_FILE, "", None, message)]);
    }
    let principals = Principals::parse(&files.principals).unwrap_or_else(|wrong| {
        faults.extend(wrong);
        Principals::default()
    });
    let known = faults.is_empty();
    let text = files.policies.as_str();
    let set = match text.parse::<PolicySet>() {
        Ok(set) => set,
        Err(errors) => {
            faults.extend(errors.iter().map(|e| of_cedar(POLICIES_FILE, text, e)));
            return Err(faults);
        }
    };
    if set.num_of_templates() > 0 {
        let at = text.find('?').map(|at| (at, 1));
        faults.push(fault(
            POLICIES_FILE,
            text,
            at,
            "templates are not used here: nothing would fill in their slots",
        ));
    }
    if set.num_of_policies() > MAX_POLICIES {
        let message = format!("at most {MAX_POLICIES} policies are kept");
        faults.push(fault(POLICIES_FILE, text, None, message));
    }
    let validated = Validator::new(schema().clone()).validate(&set, ValidationMode::Strict);
    faults.extend(
        validated
            .validation_errors()
            .map(|error| of_cedar(POLICIES_FILE, text, error)),
    );
    let warnings = validated
        .validation_warnings()
        .map(|warning| of_cedar(POLICIES_FILE, text, warning))
        .collect();
    let mut policies: Vec<&Policy> = set.policies().collect();
    policies.sort_by_key(|policy| number(policy.id()));
    let mut read = Reader {
        text,
        from: 0,
        faults,
        taken: BTreeMap::new(),
    };
    let (mut all, mut spoken_of) = (BTreeMap::new(), BTreeSet::new());
    for (nth, policy) in policies.into_iter().enumerate() {
        let one = read.one(policy, nth + 1);
        if known {
            read.literals(policy, &principals);
        }
        let literals = policy.entity_literals().into_iter();
        spoken_of.extend(
            literals
                .filter(|uid| uid.type_name().basename() == "Principal")
                .map(|uid| AsRef::<str>::as_ref(uid.id()).to_owned()),
        );
        all.insert(policy.id().clone(), one);
    }
    let mut faults = read.faults;
    faults.sort_by_key(|fault| (fault.file != PRINCIPALS_FILE, fault.at));
    faults.dedup();
    if !faults.is_empty() {
        return Err(faults);
    }
    Ok(Checked {
        document: Document {
            version: None,
            files: files.clone(),
            principals,
            policies: all,
            spoken_of,
        },
        warnings,
    })
}

/// The place of a policy in its text: Cedar calls them `policy0`, `policy1`.
fn number(id: &CedarId) -> usize {
    let text: &str = id.as_ref();
    text.trim_start_matches("policy")
        .parse()
        .unwrap_or(usize::MAX)
}

struct Reader<'a> {
    text: &'a str,
    /// Where the policies that were read end.
    from: usize,
    faults: Vec<Fault>,
    taken: BTreeMap<String, ()>,
}

impl Reader<'_> {
    fn wrong(&mut self, at: Option<(usize, usize)>, message: String, hint: Option<String>) {
        let mut wrong = fault(POLICIES_FILE, self.text, at, message);
        wrong.hint = hint;
        self.faults.push(wrong);
    }

    /// Where an annotation of the policy that begins at `start` is.
    fn annotation(&self, start: Option<usize>, key: &str) -> Option<(usize, usize)> {
        let start = start?;
        let wanted = format!("@{key}");
        let found = self.text.get(start..)?.find(&wanted)?;
        Some((start + found, wanted.len()))
    }

    fn one(&mut self, policy: &Policy, nth: usize) -> One {
        let source = policy.to_string();
        let start = self
            .text
            .get(self.from..)
            .and_then(|rest| rest.find(&source));
        let start = start.map(|at| at + self.from);
        if let Some(start) = start {
            self.from = start + source.len();
        }
        let forbids = policy.effect() == Effect::Forbid;
        let (mut approvals, mut doors, mut proof) = (0, None, None);
        let annotations: Vec<(String, String)> = policy
            .annotations()
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        for (key, value) in &annotations {
            let at = self.annotation(start, key);
            if !ANNOTATIONS.contains(&key.as_str()) {
                let near = nearest(key, ANNOTATIONS);
                let hint = near.map_or_else(
                    || format!("there are: @{}", ANNOTATIONS.join(", @")),
                    |near| format!("did you mean `@{near}`?"),
                );
                self.wrong(at, format!("`@{key}` means nothing here"), Some(hint));
                continue;
            }
            let asks = key.starts_with("approv");
            if asks && forbids {
                let message =
                    format!("`@{key}` is for `permit`: what is forbidden nobody can approve");
                self.wrong(at, message, None);
            }
            if asks && !may_be_run(policy) {
                let message =
                    format!("`@{key}` is for runs, and this policy is not about `Action::\"run\"`");
                self.wrong(at, message, None);
            }
            if key == "proof" && forbids {
                let message =
                    "`@proof` is for `permit`: a `forbid` can look at `context.proof`".to_owned();
                self.wrong(at, message, None);
            }
            match key.as_str() {
                "proof" => match Proof::ALL.into_iter().find(|p| p.as_str() == value) {
                    Some(found) => proof = Some(found),
                    None => self.wrong(
                        at,
                        "`@proof` says how sure it must be who writes in a chat, as in @proof(\"code\")"
                            .to_owned(),
                        Some(format!(
                            "there are, the weakest first: {}",
                            Proof::ALL.map(Proof::as_str).join(", ")
                        )),
                    ),
                },
                "approvals" => match value.parse() {
                    Ok(number @ 1..=MAX_APPROVALS) => approvals = number,
                    _ => self.wrong(
                        at,
                        format!("`@approvals` takes a number from 1 to {MAX_APPROVALS}, as in @approvals(\"2\")"),
                        None,
                    ),
                },
                "approve_through" => match doors_of(value) {
                    Some(some) => doors = Some(some),
                    None => self.wrong(
                        at,
                        "`@approve_through` takes doors, as in @approve_through(\"cli,http\")".to_owned(),
                        Some(format!("there are: {}", DOORS.map(Door::as_str).join(", "))),
                    ),
                },
                _ => {}
            }
        }
        let id = annotations.iter().find(|(key, _)| key == "id");
        let id = match id {
            None => format!("policy {nth}"),
            Some((_, id)) => {
                let at = self.annotation(start, "id");
                let plain = |c: char| c.is_ascii_alphanumeric() || "-_.: ".contains(c);
                if id.is_empty() || id.len() > MAX_ID || !id.chars().all(plain) {
                    let message = format!(
                        "an `@id` has 1 to {MAX_ID} letters, digits and any of `-_.:` and blank"
                    );
                    self.wrong(at, message, None);
                }
                if self.taken.insert(id.clone(), ()).is_some() {
                    self.wrong(at, format!("there is another policy `{id}`"), None);
                }
                id.clone()
            }
        };
        One {
            id: PolicyId::new(id),
            forbids,
            approvals,
            doors,
            proof,
            by_class: is_by_class(policy),
            policy: policy.clone(),
        }
    }

    /// Whom a policy names has to be there.
    fn literals(&mut self, policy: &Policy, principals: &Principals) {
        for uid in policy.entity_literals() {
            let name: &str = uid.id().as_ref();
            let wrong = match uid.type_name().basename() {
                "Group" => principals.no_group(name),
                "Principal" => principals.no_principal(name),
                "Role" => no_role(name),
                _ => None,
            };
            if let Some((message, hint)) = wrong {
                let written = uid.to_string();
                let at = self.text.find(&written).map(|at| (at, written.len()));
                self.wrong(at, message, hint);
            }
        }
    }
}

fn no_role(name: &str) -> Option<(String, Option<String>)> {
    let all = Role::ALL.map(Role::as_str);
    if all.contains(&name) {
        return None;
    }
    let hint = format!("there are: {}", all.join(", "));
    Some((format!("no token has a role `{name}`"), Some(hint)))
}

fn doors_of(text: &str) -> Option<BTreeSet<Door>> {
    let door = |word: &str| DOORS.into_iter().find(|door| door.as_str() == word.trim());
    text.split(',').map(door).collect()
}

/// Whether a policy can be about runs.
fn may_be_run(policy: &Policy) -> bool {
    let is_run = |uid: &EntityUid| -> bool {
        let id: &str = uid.id().as_ref();
        id == "run"
    };
    match policy.action_constraint() {
        ActionConstraint::Any => true,
        ActionConstraint::Eq(uid) => is_run(&uid),
        ActionConstraint::In(uids) => uids.iter().any(is_run),
    }
}

/// Whether a policy looks at what differs between classes and sets: the
/// nodes, or the set's name and size. Whatever cannot be told counts as yes.
fn is_by_class(policy: &Policy) -> bool {
    let Ok(json) = policy.to_json() else {
        return true;
    };
    let scope = json.get("resource").and_then(|scope| scope.get("op"));
    if scope.and_then(|op| op.as_str()) != Some("All") {
        return true;
    }
    json.get("conditions").is_none_or(looks_at_class)
}

fn looks_at_class(json: &serde_json::Value) -> bool {
    use serde_json::Value as V;
    match json {
        V::Object(map) => map.iter().any(|(key, value)| match (key.as_str(), value) {
            ("Var", V::String(name)) => name == "resource",
            ("attr", V::String(name)) => name == "set" || name == "size",
            (_, value) => looks_at_class(value),
        }),
        V::Array(items) => items.iter().any(looks_at_class),
        _ => false,
    }
}
