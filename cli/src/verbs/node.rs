//! `muster node`

use clap::{Args, Subcommand};
use muster_client::{Client, Reference};
use muster_protocol::api::{InviteRequest, NodeChange, NodeChanged, NodeView, ReplaceRequest};
use muster_protocol::names::{LabelKey, LabelValue, NodeName, RoleName};
use muster_protocol::units::{Span, Timestamp};

use crate::Context;
use crate::failure::Failure;
use crate::ui::table::Table;
use crate::ui::time::{ago, moment};
use crate::ui::{Paint, count};
use crate::verbs::{condition, confirm, label, labels, now};

/// Arguments of `muster node`.
#[derive(Args, Debug)]
pub struct NodeArgs {
    /// What to do.
    #[command(subcommand)]
    pub verb: NodeVerb,
}

/// What can be done with a node.
#[derive(Debug, Subcommand)]
pub enum NodeVerb {
    /// Everything known of a node
    Show(ShowArgs),
    /// Make one-use invites for new nodes
    Invite(InviteArgs),
    /// List invites that nobody has used yet
    Invites(JsonArgs),
    /// Take an invite back
    Uninvite(UninviteArgs),
    /// Set and remove labels: zone=gva2 sets, rack- removes
    Label(LabelArgs),
    /// Give and take roles: web or +web gives, db- or -db takes
    Role(RoleArgs),
    /// Say whether a node is one of the broker's own machines
    Infrastructure(InfrastructureArgs),
    /// Remove a node: its key is refused for ever
    Remove(RemoveArgs),
    /// Give name, roles and labels of a node to a new machine
    Replace(ReplaceArgs),
}

/// Only `--json`.
#[derive(Args, Debug)]
pub struct JsonArgs {
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster node show`.
#[derive(Args, Debug)]
pub struct ShowArgs {
    /// The node
    #[arg(value_name = "NAME")]
    pub name: NodeName,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster node invite`.
#[derive(Args, Debug)]
pub struct InviteArgs {
    /// The node's name; a range for many: 'gva2-r03-h{01..40}'
    #[arg(long, value_name = "NAME")]
    pub name: String,
    /// How many; must agree with the range in the name
    #[arg(long, value_name = "N")]
    pub count: Option<u32>,
    /// A role; may be given again
    #[arg(long = "role", value_name = "ROLE")]
    pub roles: Vec<RoleName>,
    /// A label; may be given again
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub labels: Vec<(LabelKey, LabelValue)>,
    /// They are the broker's own machines: left out of runs unless named
    #[arg(long)]
    pub infrastructure: bool,
    /// How long the invites live [default: 1h]
    #[arg(long, value_name = "TIME")]
    pub expires: Option<Span>,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster node uninvite`.
#[derive(Args, Debug)]
pub struct UninviteArgs {
    /// Id of the invite, from `muster node invites`
    #[arg(value_name = "ID")]
    pub id: String,
}

/// Arguments of `muster node label`.
#[derive(Args, Debug)]
pub struct LabelArgs {
    /// The node
    #[arg(value_name = "NAME")]
    pub name: NodeName,
    /// zone=gva2 sets, rack- removes
    #[arg(value_name = "KEY=VALUE|KEY-", required = true, value_parser = label_change)]
    pub changes: Vec<LabelChange>,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster node role`.
#[derive(Args, Debug)]
pub struct RoleArgs {
    /// The node
    #[arg(value_name = "NAME")]
    pub name: NodeName,
    /// web or +web gives, db- or -db takes
    #[arg(value_name = "ROLE|ROLE-", required = true, value_parser = role_change)]
    pub changes: Vec<RoleChange>,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster node infrastructure`.
#[derive(Args, Debug)]
pub struct InfrastructureArgs {
    /// The node
    #[arg(value_name = "NAME")]
    pub name: NodeName,
    /// Whether it is
    #[arg(value_name = "yes|no", value_parser = yes_no, action = clap::ArgAction::Set)]
    pub is: bool,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster node remove`.
#[derive(Args, Debug)]
pub struct RemoveArgs {
    /// The nodes
    #[arg(value_name = "NAME", required = true)]
    pub names: Vec<NodeName>,
    /// Do not ask
    #[arg(long, short = 'y')]
    pub yes: bool,
}

/// Arguments of `muster node replace`.
#[derive(Args, Debug)]
pub struct ReplaceArgs {
    /// The node
    #[arg(value_name = "NAME")]
    pub name: NodeName,
    /// How long the invite lives [default: 1h]
    #[arg(long, value_name = "TIME")]
    pub expires: Option<Span>,
    /// Do not ask
    #[arg(long, short = 'y')]
    pub yes: bool,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// One change of a label.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum LabelChange {
    /// `zone=gva2`
    Set(LabelKey, LabelValue),
    /// `rack-`
    Remove(LabelKey),
}

fn label_change(text: &str) -> Result<LabelChange, String> {
    if text.contains('=') {
        return label(text).map(|(k, v)| LabelChange::Set(k, v));
    }
    let key = text
        .strip_suffix('-')
        .ok_or("write zone=gva2 to set a label, zone- to remove it")?;
    key.parse()
        .map(LabelChange::Remove)
        .map_err(|e| format!("{e}"))
}

/// One change of a role.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum RoleChange {
    /// `web`, `+web`
    Give(RoleName),
    /// `db-`, `-db`
    Take(RoleName),
}

fn role_change(text: &str) -> Result<RoleChange, String> {
    if text.starts_with("--") {
        return Err("there is no such option; a role is given as +web and taken as db-".into());
    }
    let parse = |name: &str| name.parse::<RoleName>().map_err(|e| format!("{e}"));
    if let Some(name) = text.strip_prefix('-').or_else(|| text.strip_suffix('-')) {
        parse(name).map(RoleChange::Take)
    } else {
        parse(text.strip_prefix('+').unwrap_or(text)).map(RoleChange::Give)
    }
}

fn yes_no(text: &str) -> Result<bool, String> {
    match text {
        "yes" | "true" | "on" => Ok(true),
        "no" | "false" | "off" => Ok(false),
        _ => Err("say yes or no".into()),
    }
}

/// Does it.
///
/// # Errors
/// [`Failure`].
pub async fn run(context: &Context, args: NodeArgs) -> Result<u8, Failure> {
    let client = context.client()?;
    match args.verb {
        NodeVerb::Show(args) => {
            let node = client.node(&args.name).await?;
            if args.json {
                context.term.json(&node)?;
            } else {
                context.term.say(&render(&node, context.term.out, now()))?;
            }
        }
        NodeVerb::Invite(args) => invite(context, &client, args).await?,
        NodeVerb::Invites(args) => invites(context, &client, args.json).await?,
        NodeVerb::Uninvite(args) => {
            client.revoke_invite(&args.id.parse::<Reference>()?).await?;
            context
                .term
                .line(&format!("invite {} is taken back", args.id))?;
        }
        NodeVerb::Label(args) => {
            let mut change = NodeChange::default();
            for one in args.changes {
                match one {
                    LabelChange::Set(key, value) => drop(change.set_labels.insert(key, value)),
                    LabelChange::Remove(key) => change.remove_labels.push(key),
                }
            }
            apply(context, &client, &args.name, &change, args.json).await?;
        }
        NodeVerb::Role(args) => {
            let mut change = NodeChange::default();
            for one in args.changes {
                match one {
                    RoleChange::Give(role) => change.add_roles.push(role),
                    RoleChange::Take(role) => change.remove_roles.push(role),
                }
            }
            apply(context, &client, &args.name, &change, args.json).await?;
        }
        NodeVerb::Infrastructure(args) => {
            let change = NodeChange {
                infrastructure: Some(args.is),
                ..NodeChange::default()
            };
            apply(context, &client, &args.name, &change, args.json).await?;
        }
        NodeVerb::Remove(args) => remove(context, &client, &args).await?,
        NodeVerb::Replace(args) => replace(context, &client, &args).await?,
    }
    Ok(0)
}

async fn apply(
    context: &Context,
    client: &Client,
    name: &NodeName,
    change: &NodeChange,
    json: bool,
) -> Result<(), Failure> {
    let changed = client.change_node(name, change).await?;
    if json {
        context.term.json(&changed)
    } else {
        context.term.say(&render_change(&changed))
    }
}

fn render_change(changed: &NodeChanged) -> String {
    let node = &changed.node;
    let roles: Vec<String> = node.roles.iter().map(ToString::to_string).collect();
    let roles = if roles.is_empty() {
        "no roles".into()
    } else {
        format!("roles {}", roles.join(","))
    };
    let labels = labels(&node.labels);
    let labels = if labels.is_empty() {
        "no labels".into()
    } else {
        labels
    };
    let applied = if changed.applied {
        "in force on the node"
    } else {
        "in force here; the node takes it up when it is back"
    };
    let infrastructure = if node.infrastructure {
        "  the broker's own"
    } else {
        ""
    };
    format!(
        "{}  {roles}  {labels}{infrastructure}  ({applied})\n",
        node.name
    )
}

async fn invite(context: &Context, client: &Client, args: InviteArgs) -> Result<(), Failure> {
    let request = InviteRequest {
        name: args.name,
        count: args.count,
        roles: args.roles,
        labels: args.labels.into_iter().collect(),
        infrastructure: args.infrastructure,
        expires: args.expires,
    };
    let made = client.invite(&request).await?;
    if args.json {
        return context.term.json(&made);
    }
    let mut text = String::new();
    let columns = made
        .invites
        .iter()
        .map(|i| i.name.as_str().len())
        .max()
        .unwrap_or(0);
    for invite in &made.invites {
        text.push_str(&format!("{:columns$}  {}\n", invite.name, invite.token));
    }
    context.term.say(&text)?;
    if let Some(first) = made.invites.first() {
        let whose = if made.invites.len() == 1 {
            "It works"
        } else {
            "Each works"
        };
        context.term.note(&format!(
            "{whose} once, until {} ({}). On the machine:\n  muster-agent enroll --url {} --token {}",
            moment(first.expires),
            ago(first.expires, now()),
            enrol_at(client, &made.brokers),
            if made.invites.len() == 1 { first.token.as_str() } else { "TOKEN" },
        ));
    }
    Ok(())
}

async fn invites(context: &Context, client: &Client, json: bool) -> Result<(), Failure> {
    let invites = client.invites().await?;
    if json {
        return context.term.json(&invites);
    }
    if invites.is_empty() {
        context.term.note("no open invites");
        return Ok(());
    }
    let now = now();
    let mut table = Table::new(&["ID", "NAME", "ROLES", "LABELS", "BY", "EXPIRES", ""]);
    for invite in &invites {
        let roles: Vec<String> = invite.roles.iter().map(ToString::to_string).collect();
        table.row([
            invite.id.as_str().into(),
            invite.name.as_str().into(),
            roles.join(",").into(),
            labels(&invite.labels).into(),
            invite.by.to_string().into(),
            ago(invite.expires, now).into(),
            invite
                .replaces
                .map(|_| "replaces".to_owned())
                .unwrap_or_default()
                .into(),
        ]);
    }
    context
        .term
        .say(&table.render(context.term.out, context.term.width))
}

async fn remove(context: &Context, client: &Client, args: &RemoveArgs) -> Result<(), Failure> {
    let names: Vec<&str> = args.names.iter().map(NodeName::as_str).collect();
    let list = muster_protocol::fold::folded(names.iter().copied(), 120);
    confirm(
        context,
        args.yes,
        &format!(
            "Remove {}: {list}? Their keys will be refused for ever.",
            count(names.len(), "node")
        ),
    )?;
    for name in &args.names {
        client.remove_node(name).await?;
        context.term.line(&format!("{name} is removed"))?;
    }
    Ok(())
}

async fn replace(context: &Context, client: &Client, args: &ReplaceArgs) -> Result<(), Failure> {
    confirm(
        context,
        args.yes,
        &format!(
            "Give the name {} to a new machine? The old one's key will be refused for ever once it enrols.",
            args.name
        ),
    )?;
    let invite = client
        .replace_node(
            &args.name,
            &ReplaceRequest {
                expires: args.expires,
            },
        )
        .await?;
    if args.json {
        return context.term.json(&invite);
    }
    context
        .term
        .line(&format!("{}  {}", invite.name, invite.token))?;
    context.term.note(&format!(
        "It works once, until {} ({}). On the new machine:\n  muster-agent enroll --url {} --token {}",
        moment(invite.expires),
        ago(invite.expires, now()),
        enrol_at(client, &[]),
        invite.token,
    ));
    Ok(())
}

/// Where a machine enrols: at the brokers that were named here; at all that
/// are known, when the one named is among them.
fn enrol_at(client: &Client, brokers: &[String]) -> String {
    let named = client.endpoint().urls();
    match named.as_slice() {
        [one] if brokers.iter().any(|url| url == one) => brokers.join(","),
        _ => named.join(","),
    }
}

/// Everything known of a node.
#[must_use]
pub fn render(node: &NodeView, paint: Paint, now: Timestamp) -> String {
    let roles: Vec<String> = node.roles.iter().map(ToString::to_string).collect();
    let seen = node.last_seen.map_or("never".to_owned(), |at| {
        format!("{} ({})", ago(at, now), moment(at))
    });
    let or_dash = |text: String| {
        if text.is_empty() {
            "-".to_owned()
        } else {
            text
        }
    };
    let rows = [
        ("name", node.name.to_string()),
        ("state", node.state.as_str().to_owned()),
        ("last seen", seen),
        ("roles", or_dash(roles.join(", "))),
        ("labels", or_dash(labels(&node.labels))),
        (
            "version",
            node.version.clone().unwrap_or_else(|| "-".into()),
        ),
        ("agent", or_dash(agent(node))),
        ("serial", node.serial.to_string()),
        ("key", node.key.to_string()),
        (
            "enrolled",
            format!("{} ({})", moment(node.enrolled), ago(node.enrolled, now)),
        ),
        (
            "infrastructure",
            if node.infrastructure { "yes" } else { "no" }.to_owned(),
        ),
    ];
    let mut out = String::new();
    for (name, value) in rows {
        out.push_str(&format!(
            "{name:<14}  {}\n",
            muster_protocol::text::printable_line(&value)
        ));
    }
    for problem in &node.conditions {
        out.push_str(&format!(
            "{}  {}\n",
            paint.odd(&format!("{:<14}", "look")),
            condition(problem)
        ));
    }
    if !node.facts.is_empty() {
        out.push_str("facts\n");
        for (name, value) in flat(&node.facts) {
            out.push_str(&format!(
                "  {}  {}\n",
                crate::ui::pad(&name, 24),
                muster_protocol::text::printable(&value, 200)
            ));
        }
    }
    out
}

/// What its agent said about itself.
fn agent(node: &NodeView) -> String {
    let Some(agent) = &node.agent else {
        return String::new();
    };
    let platform = agent
        .build
        .as_ref()
        .map(|build| format!("{}, ", build.platform()))
        .unwrap_or_default();
    format!(
        "{platform}protocol {}, grants {}",
        agent.protocol,
        if agent.capabilities.is_empty() {
            "nothing".to_owned()
        } else {
            agent.capabilities.join(", ")
        }
    )
}

/// Facts by the names that a predicate takes: `os.version`.
fn flat(facts: &serde_json::Map<String, serde_json::Value>) -> Vec<(String, String)> {
    fn walk(
        prefix: &str,
        value: &serde_json::Value,
        depth: usize,
        out: &mut Vec<(String, String)>,
    ) {
        match value {
            serde_json::Value::Object(map) if depth < 16 && !map.is_empty() => {
                for (key, value) in map {
                    let key = muster_protocol::text::printable(key, 60);
                    let name = if prefix.is_empty() {
                        key
                    } else {
                        format!("{prefix}.{key}")
                    };
                    walk(&name, value, depth + 1, out);
                }
            }
            serde_json::Value::String(text) => out.push((prefix.to_owned(), text.clone())),
            other => out.push((prefix.to_owned(), other.to_string())),
        }
    }
    let mut out = Vec::new();
    let mut facts = serde_json::Value::Object(facts.clone());
    facts.sort_all_objects();
    walk("", &facts, 0, &mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_written_as_people_write_them() {
        let key: LabelKey = "rack".parse().expect("label");
        assert_eq!(label_change("rack-"), Ok(LabelChange::Remove(key.clone())));
        assert_eq!(
            label_change("rack=r3-"),
            Ok(LabelChange::Set(key, "r3-".parse().expect("value")))
        );
        for bad in ["rack", "=x", "rack=", "name=x", "-"] {
            assert!(label_change(bad).is_err(), "{bad}");
        }
        let role: RoleName = "web".parse().expect("role");
        for give in ["web", "+web"] {
            assert_eq!(role_change(give), Ok(RoleChange::Give(role.clone())));
        }
        for take in ["web-", "-web"] {
            assert_eq!(role_change(take), Ok(RoleChange::Take(role.clone())));
        }
        assert!(role_change("--web").is_err());
    }

    #[test]
    fn facts_are_shown_by_the_names_that_predicates_take() {
        let facts =
            serde_json::json!({"os": {"name": "debian", "version": "12"}, "cpus": 4, "gpus": []});
        let serde_json::Value::Object(facts) = facts else {
            return;
        };
        let flat: Vec<String> = flat(&facts)
            .into_iter()
            .map(|(k, v)| format!("{k}={v}"))
            .collect();
        assert_eq!(
            flat,
            ["cpus=4", "gpus=[]", "os.name=debian", "os.version=12"]
        );
    }
}
