//! What is asked, as Cedar takes it.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use cedar_policy::{
    Context, Entities, Entity, EntityId, EntityTypeName, EntityUid, RestrictedExpression as Value,
};
use jiff::tz::TimeZone;
use muster_protocol::envelope::Mode;
use muster_protocol::origin::Origin;
use muster_protocol::units::Timestamp;

use super::{Document, schema};
use crate::authz::{Action, Caller, RunAsk};

/// When something is asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Moment(pub Timestamp);

/// Longest text of a parameter that policies see; of a longer one there is
/// `[too long]`.
const MAX_PARAM: usize = 4_096;

/// Why something cannot be put before the policies.
#[derive(Debug, thiserror::Error)]
#[error("what was asked cannot be put before the policies: {0}")]
pub(super) struct Unaskable(String);

fn unaskable(error: impl std::fmt::Display) -> Unaskable {
    Unaskable(error.to_string())
}

/// Types that the schema has.
#[derive(Clone, Copy)]
pub(super) enum Type {
    Principal,
    Role,
    Group,
    Cluster,
    Nodes,
    Params,
    Numbers,
    Flags,
    Action,
}

/// Their names, read once.
static NAMES: LazyLock<[EntityTypeName; 9]> = LazyLock::new(|| {
    let names = [
        "Principal",
        "Role",
        "Group",
        "Cluster",
        "Nodes",
        "Params",
        "Numbers",
        "Flags",
        "Action",
    ];
    names.map(|name| name.parse().expect("a constant name"))
});

pub(super) fn uid(kind: Type, name: &str) -> EntityUid {
    let kind = NAMES[kind as usize].clone();
    EntityUid::from_type_name_and_id(kind, EntityId::new(name))
}

fn text(value: impl Into<String>) -> Value {
    Value::new_string(value.into())
}

/// Whoever asks: the entity, and the role and groups that it is in.
pub(super) fn principal(
    document: &Document,
    caller: &Caller,
) -> Result<(EntityUid, Vec<EntityUid>, Vec<Entity>), Unaskable> {
    let me = uid(Type::Principal, caller.principal.as_str());
    let mut parents = vec![uid(Type::Role, caller.role.as_str())];
    let groups = document.principals.groups_of(&caller.principal);
    parents.extend(groups.map(|group| uid(Type::Group, group)));
    let kind = document.principals.kind(&caller.principal);
    let kind = kind.map_or("unknown", |kind| kind.as_str());
    let attrs = HashMap::from([("kind".to_owned(), text(kind))]);
    let own =
        Entity::new(me.clone(), attrs, parents.iter().cloned().collect()).map_err(unaskable)?;
    let mut entities = vec![own];
    let above = parents.iter().cloned();
    entities.extend(above.map(|uid| Entity::new_no_attrs(uid, HashSet::new())));
    Ok((me, parents, entities))
}

/// The action, and the group that it is in.
pub(super) fn action(action: &Action) -> Vec<EntityUid> {
    let own = uid(Type::Action, action.name());
    let group = uid(Type::Action, action.group().as_str());
    if own == group {
        vec![own]
    } else {
        vec![own, group]
    }
}

/// What is known of how it came, and when.
pub(super) fn asked(caller: &Caller, Moment(at): Moment) -> Vec<(String, Value)> {
    let (origin, since) = caller.origin.beginning();
    // What the `main` of a run asks is judged as if its run asked it.
    let at = since.unwrap_or(at);
    let time = at.to_zoned(TimeZone::UTC);
    let weekday = match time.weekday() {
        jiff::civil::Weekday::Monday => "mon",
        jiff::civil::Weekday::Tuesday => "tue",
        jiff::civil::Weekday::Wednesday => "wed",
        jiff::civil::Weekday::Thursday => "thu",
        jiff::civil::Weekday::Friday => "fri",
        jiff::civil::Weekday::Saturday => "sat",
        jiff::civil::Weekday::Sunday => "sun",
    };
    let now = time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let mut pairs = vec![
        ("door", text(caller.door.as_str())),
        ("now", Value::new_datetime(now)),
        ("hour", Value::new_long(i64::from(time.hour()))),
        ("minute", Value::new_long(i64::from(time.minute()))),
        ("weekday", text(weekday)),
    ];
    match origin {
        Origin::Unknown | Origin::Run { .. } => {}
        Origin::Address(address) => {
            pairs.push(("address", Value::new_ip(address.to_canonical().to_string())));
        }
        Origin::Schedule(name) => pairs.push(("schedule", text(name.as_str()))),
        Origin::Hook {
            hook,
            delivery,
            trigger,
            ..
        } => pairs.extend([
            ("hook", text(hook.as_str())),
            ("delivery", text(delivery.as_str())),
            ("trigger", text(trigger.as_str())),
        ]),
        Origin::Chat {
            network,
            account,
            channel,
            proof,
            ..
        } => {
            pairs.extend([
                ("network", text(network.as_str())),
                ("proof", text(proof.as_str())),
            ]);
            if let Some(account) = account {
                pairs.push(("account", text(account.as_str())));
            }
            if let Some(channel) = channel {
                pairs.push(("channel", text(channel.as_str())));
            }
        }
    }
    pairs
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}

/// Whether a parameter stands for a secret.
fn is_secret(name: &str, value: &serde_json::Value) -> bool {
    let mut one = serde_json::Map::new();
    one.insert(name.to_owned(), value.clone());
    muster_scenarios::secret::is_needed(&serde_json::Value::Object(one))
}

/// Attributes of the context, by name, and the entities that they name.
type Described = (Vec<(String, Value)>, Vec<Entity>);

/// What a run is, but for its sets.
pub(super) fn run(run: &RunAsk) -> Result<Described, Unaskable> {
    let (params, numbers, flags) = (
        uid(Type::Params, "run"),
        uid(Type::Numbers, "run"),
        uid(Type::Flags, "run"),
    );
    let (mut texts, mut longs, mut bools) = (Vec::new(), Vec::new(), Vec::new());
    for (name, value) in run.params.as_object().into_iter().flatten() {
        let shown = match value {
            serde_json::Value::Null => continue,
            value if is_secret(name, value) => "[secret]".to_owned(),
            serde_json::Value::String(text) => text.clone(),
            serde_json::Value::Bool(flag) => {
                bools.push((name.clone(), Value::new_bool(*flag)));
                flag.to_string()
            }
            serde_json::Value::Number(number) => {
                if let Some(number) = number.as_i64() {
                    longs.push((name.clone(), Value::new_long(number)));
                }
                number.to_string()
            }
            other => other.to_string(),
        };
        let shown = if shown.len() > MAX_PARAM {
            "[too long]".to_owned()
        } else {
            shown
        };
        texts.push((name.clone(), text(shown)));
    }
    let tagged = |uid: &EntityUid, tags: Vec<(String, Value)>| {
        Entity::new_with_tags(uid.clone(), [], [], tags).map_err(unaskable)
    };
    let entities = vec![
        tagged(&params, texts)?,
        tagged(&numbers, longs)?,
        tagged(&flags, bools)?,
    ];
    let mode = match run.mode {
        Mode::Apply => "apply",
        Mode::Check => "check",
    };
    let reference = |uid: EntityUid| Value::new_entity_uid(uid);
    let mut pairs = vec![
        ("scenario", text(run.scenario.as_str())),
        ("stock", Value::new_bool(run.stock)),
        ("mode", text(mode)),
        ("params", reference(params)),
        ("numbers", reference(numbers)),
        ("flags", reference(flags)),
        ("whole", Value::new_long(i64::from(run.size))),
        ("approvals", Value::new_long(i64::from(run.gates.approvals))),
    ];
    if let Some(version) = run.version {
        pairs.push(("version", Value::new_long(i64::from(version))));
    }
    let pairs = pairs
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect();
    Ok((pairs, entities))
}

/// Nodes with these roles and labels.
pub(super) fn nodes<'a>(
    uid: EntityUid,
    roles: impl Iterator<Item = &'a str>,
    labels: impl Iterator<Item = (&'a str, &'a str)>,
) -> Result<Entity, Unaskable> {
    let roles = Value::new_set(roles.map(text));
    let labels = labels.map(|(key, value)| (key.to_owned(), text(value)));
    Entity::new_with_tags(uid, [("roles".to_owned(), roles)], [], labels).map_err(unaskable)
}

/// The cluster.
pub(super) fn cluster() -> Entity {
    Entity::new_no_attrs(uid(Type::Cluster, "this"), HashSet::new())
}

/// A context of these.
pub(super) fn context(pairs: Vec<(String, Value)>) -> Result<Context, Unaskable> {
    Context::from_pairs(pairs).map_err(unaskable)
}

/// All that a request speaks of: these, and of the actions the one that is
/// asked for with the group that it is in. No policy can say more of another
/// than that it is not this one.
pub(super) fn entities(own: Vec<Entity>, actions: &[EntityUid]) -> Result<Entities, Unaskable> {
    let (asked, groups) = actions
        .split_first()
        .ok_or_else(|| unaskable("no action"))?;
    let parents = groups.iter().cloned().collect();
    let asked = Entity::new(asked.clone(), HashMap::new(), parents).map_err(unaskable)?;
    let groups = groups.iter().cloned();
    let groups = groups.map(|uid| Entity::new_no_attrs(uid, HashSet::new()));
    let all = own.into_iter().chain([asked]).chain(groups);
    Entities::from_entities(all, None).map_err(unaskable)
}

/// One request.
pub(super) fn request(
    principal: &EntityUid,
    action: &EntityUid,
    resource: EntityUid,
    context: Context,
) -> Result<cedar_policy::Request, Unaskable> {
    // A test holds what is built here against the schema.
    let schema = cfg!(test).then(schema);
    cedar_policy::Request::new(principal.clone(), action.clone(), resource, context, schema)
        .map_err(unaskable)
}
