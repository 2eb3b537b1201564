//! `muster policy`

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use muster_broker::authz::cedar::{POLICIES_FILE, PRINCIPALS_FILE, SCHEMA, check};
use muster_broker::policy::RESET_FILE;
use muster_protocol::api::{
    ExplainRequest, Explained, ExplainedClass, PolicyFiles, PolicyVersion, PutPolicy, Role,
};
use muster_protocol::envelope::{Door, Mode};
use muster_protocol::names::{PrincipalName, ScenarioName};
use muster_protocol::text::{printable, printable_line};
use muster_protocol::units::Timestamp;
use muster_scenarios::fault::Fault;
use serde_json::{Value, json};

use crate::Context;
use crate::failure::{DENIED, Failure};
use crate::ui::count;
use crate::ui::table::Table;
use crate::ui::time::moment;
use crate::verbs::schedule::params;
use crate::verbs::token::role;

/// Arguments of `muster policy`.
#[derive(Args, Debug)]
pub struct PolicyArgs {
    /// What to do.
    #[command(subcommand)]
    pub verb: PolicyVerb,
}

/// What can be done with policies.
#[derive(Debug, Subcommand)]
pub enum PolicyVerb {
    /// Find the mistakes in policies, without a broker
    Check(CheckArgs),
    /// Store policies: they count from the next request on
    Put(PutArgs),
    /// Show who may do what, as it is in force
    Show(ShowArgs),
    /// Who changed the policies, and when
    History(JsonArgs),
    /// What policies can speak of
    Schema,
    /// What the policies say of what somebody might ask
    Explain(Box<ExplainArgs>),
    /// Who there is: principals, their groups and tokens
    Principals(JsonArgs),
    /// Take a broker that cannot use its policies back to the roles of tokens
    Reset(ResetArgs),
}

const FILES: &str = "\
A directory has policies.cedar and, if groups or principals are named, principals.toml.
A single file is policies.cedar alone; then --principals names the other one.";

/// Arguments of `muster policy check`.
#[derive(Args, Debug)]
#[command(after_help = FILES)]
pub struct CheckArgs {
    /// The directory, or the file of policies
    #[arg(value_name = "DIR|FILE")]
    pub path: PathBuf,
    /// The file of principals
    #[arg(long, value_name = "FILE")]
    pub principals: Option<PathBuf>,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster policy put`.
#[derive(Args, Debug)]
#[command(after_help = FILES)]
pub struct PutArgs {
    /// The directory, or the file of policies
    #[arg(value_name = "DIR|FILE")]
    pub path: PathBuf,
    /// The file of principals
    #[arg(long, value_name = "FILE")]
    pub principals: Option<PathBuf>,
    /// Why
    #[arg(long, value_name = "TEXT")]
    pub note: Option<String>,
    /// Only on top of that version
    #[arg(long, value_name = "VERSION")]
    pub expect: Option<u32>,
    /// Also when no token that there is could change the policies again
    #[arg(long)]
    pub force: bool,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster policy show`.
#[derive(Args, Debug)]
#[command(disable_version_flag = true)]
pub struct ShowArgs {
    /// An older one; 0 is what muster comes with
    #[arg(long, value_name = "VERSION")]
    pub version: Option<u32>,
    /// Write both files into this directory
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Only `--json`.
#[derive(Args, Debug)]
pub struct JsonArgs {
    /// One JSON array
    #[arg(long)]
    pub json: bool,
}

const EXAMPLES: &str = "\
Exit codes: 0 allowed, 4 denied.

Examples:
  muster policy explain ana read-nodes
  muster policy explain dev-ci run --scenario deploy -p version=1.4.2 --on 'role=web or role=db'
  muster policy explain ana run --scenario reboot --on role=db --at 2026-12-24T22:00:00Z --draft policy/";

/// Arguments of `muster policy explain`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES, disable_version_flag = true)]
pub struct ExplainArgs {
    /// Who
    #[arg(value_name = "PRINCIPAL")]
    pub principal: PrincipalName,
    /// What, by its name in policies: run, read-nodes, ...
    #[arg(value_name = "ACTION")]
    pub action: String,
    /// With a token of that role [default: that of its tokens, else member]
    #[arg(long, value_name = "ROLE", value_parser = role)]
    pub role: Option<Role>,
    /// Which scenario is run
    #[arg(long, value_name = "SCENARIO")]
    pub scenario: Option<ScenarioName>,
    /// Which version of it [default: the newest]
    #[arg(long, value_name = "VERSION")]
    pub version: Option<u32>,
    /// A parameter; may be repeated
    #[arg(short, long = "param", value_name = "NAME=VALUE")]
    pub params: Vec<String>,
    /// On which nodes
    #[arg(long, value_name = "PREDICATE")]
    pub on: Option<String>,
    /// As a dry run
    #[arg(long)]
    pub dry_run: bool,
    /// Through which door: cli, http, schedule or hook
    #[arg(long, value_name = "DOOR", default_value = "http", value_parser = door)]
    pub door: Door,
    /// From which address
    #[arg(long, value_name = "ADDRESS")]
    pub address: Option<IpAddr>,
    /// When [default: now]
    #[arg(long, value_name = "TIME")]
    pub at: Option<Timestamp>,
    /// By the policies of this directory or file instead of those in force
    #[arg(long, value_name = "DIR|FILE")]
    pub draft: Option<PathBuf>,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster policy reset`.
#[derive(Args, Debug)]
pub struct ResetArgs {
    /// The broker's state directory, on its machine
    #[arg(long, value_name = "DIR")]
    pub state: PathBuf,
}

fn door(text: &str) -> Result<Door, String> {
    Door::ALL
        .into_iter()
        .find(|door| door.as_str() == text)
        .ok_or_else(|| format!("there are: {}", Door::ALL.map(Door::as_str).join(", ")))
}

/// Does it.
///
/// # Errors
/// [`Failure`].
pub async fn run(context: &Context, args: PolicyArgs) -> Result<u8, Failure> {
    match args.verb {
        PolicyVerb::Check(args) => check_files(context, &args),
        PolicyVerb::Put(args) => put(context, args).await,
        PolicyVerb::Show(args) => show(context, &args).await,
        PolicyVerb::History(args) => history(context, &args).await,
        PolicyVerb::Schema => {
            context.term.say(SCHEMA)?;
            Ok(0)
        }
        PolicyVerb::Explain(args) => explain(context, *args).await,
        PolicyVerb::Principals(args) => principals(context, &args).await,
        PolicyVerb::Reset(args) => reset(context, &args),
    }
}

fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path)
        .map_err(|e| Failure::usage(format!("{} cannot be read: {e}", path.display())))
}

/// The files of a directory, or a single one.
fn files(path: &Path, principals: Option<&Path>) -> Result<PolicyFiles, Failure> {
    let (policies, beside) = if path.is_dir() {
        let beside = path.join(PRINCIPALS_FILE);
        (path.join(POLICIES_FILE), beside.exists().then_some(beside))
    } else {
        (path.to_owned(), None)
    };
    let principals = principals.map(Path::to_owned).or(beside);
    Ok(PolicyFiles {
        policies: read(&policies)?,
        principals: principals.map_or_else(|| Ok(String::new()), |path| read(&path))?,
    })
}

fn say(context: &Context, word: &str, faults: &[Fault]) -> Result<(), Failure> {
    let paint = context.term.out;
    for fault in faults {
        let mut text = if word == "error:" {
            paint.bad(word)
        } else {
            paint.odd(word)
        };
        text.push(' ');
        for line in fault.to_string().lines() {
            text.push_str(&printable_line(line));
            text.push('\n');
        }
        context.term.say(&text)?;
    }
    Ok(())
}

fn check_files(context: &Context, args: &CheckArgs) -> Result<u8, Failure> {
    let files = files(&args.path, args.principals.as_deref())?;
    let (errors, warnings, found) = match check(&files) {
        Ok(checked) => {
            let document = checked.document;
            let found = (document.len(), document.principals.len());
            (Vec::new(), checked.warnings, Some(found))
        }
        Err(faults) => (faults, Vec::new(), None),
    };
    if args.json {
        context.term.json(&json!({
            "ok": errors.is_empty(), "errors": errors, "warnings": warnings,
        }))?;
    } else {
        say(context, "error:", &errors)?;
        say(context, "warning:", &warnings)?;
        context.term.line(&match found {
            Some((policies, principals)) => format!(
                "{}, {}: fine",
                if policies == 1 {
                    "1 policy".to_owned()
                } else {
                    format!("{policies} policies")
                },
                count(principals, "principal")
            ),
            None => count(errors.len(), "error"),
        })?;
    }
    Ok(u8::from(found.is_none()))
}

async fn put(context: &Context, args: PutArgs) -> Result<u8, Failure> {
    let files = files(&args.path, args.principals.as_deref())?;
    if let Err(faults) = check(&files) {
        if args.json {
            context
                .term
                .json(&json!({ "ok": false, "errors": faults }))?;
        } else {
            say(context, "error:", &faults)?;
            context.term.line(&format!(
                "{}; nothing was stored",
                count(faults.len(), "error")
            ))?;
        }
        return Ok(1);
    }
    let put = PutPolicy {
        files,
        note: args.note,
        expect: args.expect,
        force: args.force,
    };
    let stored = context.client()?.put_policy(&put).await?;
    if args.json {
        context.term.json(&stored)?;
    } else {
        let version = stored.version.version;
        context.term.line(&if stored.new {
            format!("version {version} of the policies is in force")
        } else {
            format!("version {version} of the policies is just this: nothing was stored")
        })?;
    }
    Ok(0)
}

async fn show(context: &Context, args: &ShowArgs) -> Result<u8, Failure> {
    let shown = context.client()?.policy(args.version).await?;
    if let Some(out) = &args.out {
        let write = |name: &str, text: &str| {
            let path = out.join(name);
            std::fs::write(&path, text)
                .map_err(|e| Failure::usage(format!("{} cannot be written: {e}", path.display())))
        };
        std::fs::create_dir_all(out)
            .map_err(|e| Failure::usage(format!("{} cannot be made: {e}", out.display())))?;
        write(POLICIES_FILE, &shown.files.policies)?;
        write(PRINCIPALS_FILE, &shown.files.principals)?;
    }
    if args.json {
        context.term.json(&shown)?;
        return Ok(0);
    }
    context.term.note(&about(&shown.version));
    if args.out.is_some() {
        return Ok(0);
    }
    for (name, text) in [
        (POLICIES_FILE, &shown.files.policies),
        (PRINCIPALS_FILE, &shown.files.principals),
    ] {
        if text.trim().is_empty() {
            continue;
        }
        let mark = if name == POLICIES_FILE { "//" } else { "#" };
        context.term.line(&format!("{mark} {name}"))?;
        for line in text.lines() {
            context.term.line(&printable_line(line))?;
        }
    }
    Ok(0)
}

fn about(version: &PolicyVersion) -> String {
    let when = version.at.map_or_else(
        || "as it came with muster".to_owned(),
        |at| {
            format!(
                "by {} at {}",
                printable(version.by.as_str(), 64),
                moment(at)
            )
        },
    );
    let note = version.note.as_ref();
    let note = note.map_or_else(String::new, |note| format!(": {}", printable(note, 200)));
    format!("version {} {when}{note}", version.version)
}

async fn history(context: &Context, args: &JsonArgs) -> Result<u8, Failure> {
    let versions = context.client()?.policy_history().await?;
    if args.json {
        context.term.json(&versions)?;
        return Ok(0);
    }
    let mut table = Table::new(&["VERSION", "POLICIES", "PRINCIPALS", "BY", "AT", "NOTE"]);
    for version in &versions {
        table.row([
            version.version.to_string().into(),
            version.policies.to_string().into(),
            version.principals.to_string().into(),
            version.by.to_string().into(),
            version.at.map_or_else(|| "-".to_owned(), moment).into(),
            version
                .note
                .as_ref()
                .map_or_else(String::new, |note| printable(note, 100))
                .into(),
        ]);
    }
    context
        .term
        .say(&table.render(context.term.out, context.term.width))?;
    Ok(0)
}

async fn explain(context: &Context, args: ExplainArgs) -> Result<u8, Failure> {
    let draft = args.draft.as_deref();
    let request = ExplainRequest {
        principal: args.principal,
        role: args.role,
        action: args.action,
        scenario: args.scenario,
        version: args.version,
        params: Value::Object(params(&args.params)?),
        mode: if args.dry_run {
            Mode::Check
        } else {
            Mode::Apply
        },
        predicate: args.on,
        door: Some(args.door),
        address: args.address,
        at: args.at,
        files: draft.map(|path| files(path, None)).transpose()?,
    };
    let explained = context.client()?.explain(&request).await?;
    if args.json {
        context.term.json(&explained)?;
    } else {
        context.term.say(&told(&explained))?;
    }
    Ok(if explained.allowed { 0 } else { DENIED })
}

/// What the policies say, as people read it.
fn told(explained: &Explained) -> String {
    let mut text = format!(
        "{}: {}\n",
        if explained.allowed {
            "allowed"
        } else {
            "denied"
        },
        printable(&explained.text, 1_000)
    );
    if explained.approvals > 0 {
        let doors = explained.approve_through.as_ref().map(|doors| {
            let doors: Vec<&str> = doors.iter().map(|door| door.as_str()).collect();
            format!(" through {}", doors.join(" or "))
        });
        text.push_str(&format!(
            "asks for {}{}\n",
            count(explained.approvals as usize, "approval"),
            doors.unwrap_or_default()
        ));
    }
    for class in &explained.judged {
        text.push_str(&format!("  {}\n", class_line(class)));
        for error in &class.errors {
            text.push_str(&format!("    not evaluated: {}\n", printable(error, 300)));
        }
    }
    text.push_str(&format!(
        "as {}, by {}\n",
        explained.role,
        match explained.version {
            Some(version) => format!("version {version} of the policies"),
            None => "these files".to_owned(),
        }
    ));
    text
}

fn class_line(class: &ExplainedClass) -> String {
    let list = |all: &[String]| {
        let all: Vec<String> = all.iter().map(|id| printable(id, 100)).collect();
        all.join(", ")
    };
    let says = if !class.forbidden_by.is_empty() {
        format!("forbidden by {}", list(&class.forbidden_by))
    } else if class.permitted_by.is_empty() {
        "permitted by none".to_owned()
    } else {
        format!("permitted by {}", list(&class.permitted_by))
    };
    let Some(set) = &class.set else {
        return says;
    };
    let roles = class.roles.iter().map(|role| format!("role={role}"));
    let labels = class
        .labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"));
    let all: Vec<String> = roles.chain(labels).collect();
    let what = if all.is_empty() {
        "without roles and labels".to_owned()
    } else {
        all.join(" ")
    };
    format!(
        "{}: {} {}: {says}",
        printable(set, 60),
        count(class.nodes as usize, "node"),
        printable(&what, 300)
    )
}

async fn principals(context: &Context, args: &JsonArgs) -> Result<u8, Failure> {
    let principals = context.client()?.principals().await?;
    if args.json {
        context.term.json(&principals)?;
        return Ok(0);
    }
    let mut table = Table::new(&["PRINCIPAL", "KIND", "GROUPS", "TOKENS"]);
    for principal in &principals {
        let roles: Vec<&str> = principal.roles.iter().map(|role| role.as_str()).collect();
        table.row([
            principal.name.to_string().into(),
            principal.kind.map_or("-", |kind| kind.as_str()).into(),
            printable(&principal.groups.join(" "), 200).into(),
            roles.join(" ").into(),
        ]);
    }
    context
        .term
        .say(&table.render(context.term.out, context.term.width))?;
    Ok(0)
}

fn reset(context: &Context, args: &ResetArgs) -> Result<u8, Failure> {
    let path = args.state.join(RESET_FILE);
    if !args.state.is_dir() {
        let dir = args.state.display();
        return Err(Failure::usage(format!("there is no directory {dir}")));
    }
    std::fs::write(&path, b"")
        .map_err(|e| Failure::usage(format!("{} cannot be written: {e}", path.display())))?;
    context.term.line(
        "when the broker starts again, the roles of tokens count alone; `muster policy history` keeps what was",
    )?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_policies_say_is_read_at_a_glance() {
        let class = |role: &str, permitted: &[&str], forbidden: &[&str]| ExplainedClass {
            set: Some("targets".into()),
            roles: vec![role.into()],
            labels: [("zone".to_owned(), "gva2".to_owned())].into(),
            nodes: 2,
            allowed: !permitted.is_empty() && forbidden.is_empty(),
            permitted_by: permitted.iter().map(|id| (*id).to_owned()).collect(),
            forbidden_by: forbidden.iter().map(|id| (*id).to_owned()).collect(),
            errors: vec![],
        };
        let mut explained = Explained {
            allowed: false,
            text: "dev-ci (ci) may not run deploy on nodes with role=db (set targets): no policy permits it".into(),
            role: Role::Member,
            version: Some(3),
            approvals: 0,
            approve_through: None,
            judged: vec![class("db", &[], &[]), class("web", &["deploy"], &["frozen \u{1b}[31m"])],
        };
        assert_eq!(
            told(&explained),
            "denied: dev-ci (ci) may not run deploy on nodes with role=db (set targets): no policy permits it\n  \
             targets: 2 nodes role=db zone=gva2: permitted by none\n  \
             targets: 2 nodes role=web zone=gva2: forbidden by frozen \\x1b[31m\n\
             as member, by version 3 of the policies\n"
        );
        explained.text = "dev-ci may run deploy: `deploy`".into();
        explained.allowed = true;
        explained.approvals = 2;
        explained.approve_through = Some(vec![Door::Cli, Door::Http]);
        explained.version = None;
        explained.judged.truncate(1);
        assert_eq!(
            told(&explained),
            "allowed: dev-ci may run deploy: `deploy`\n\
             asks for 2 approvals through cli or http\n  \
             targets: 2 nodes role=db zone=gva2: permitted by none\n\
             as member, by these files\n"
        );
    }
}
