//! `muster scenario run`

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use muster_client::{Client, ClientError, Key, Reference};
use muster_protocol::api::{
    Confirm, MainView, Plan, PlanRef, RunNode, RunRequest, RunView, ScenarioView,
};
use muster_protocol::envelope::Mode;
use muster_protocol::names::{LabelKey, ScenarioName};
use muster_protocol::problem::Kind;
use muster_protocol::run::Outcome;
use muster_protocol::text::printable;
use muster_protocol::units::{Amount, Span};
use serde_json::{Map, Value, json};

use crate::Context;
use crate::failure::Failure;
use crate::ui::count;
use crate::verbs::run::{FollowArgs, confirmed, follow, not_zero, size};

/// Largest file with parameters or a secret, in bytes.
const MAX_FILE: u64 = 1 << 20;

const AFTER: &str = "\
A secret parameter is never written on the command line, where `ps` shows it: give it with
`-p NAME=@FILE`, `-p NAME=-` from standard input, in the file of --params, or when asked for it.

Examples:
  muster scenario run web-upgrade -p version=1.4.2 --dry-run
  muster scenario run web-upgrade -p version=1.4.2 --on zone=gva2 --batch 10%
  muster scenario run restart-service -p service=nginx --on role=web --yes --detach";

/// Arguments of `muster scenario run`.
#[derive(Args, Debug)]
#[command(after_help = AFTER, disable_version_flag = true)]
pub struct RunArgs {
    /// Name of a stored scenario
    #[arg(value_name = "NAME")]
    pub name: ScenarioName,
    /// Which version [default: the newest]
    #[arg(long, value_name = "VERSION")]
    pub version: Option<u32>,
    /// A parameter; may be repeated. A list or a map is written as JSON
    #[arg(short, long = "param", value_name = "NAME=VALUE")]
    pub params: Vec<String>,
    /// Parameters as a JSON or TOML file; those given with -p come before
    #[arg(long = "params", value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Only those of its nodes; or which nodes, where the scenario names none
    #[arg(long, value_name = "PREDICATE")]
    pub on: Option<String>,
    /// Change nothing, and say what would change
    #[arg(long, conflicts_with_all = ["plan", "detach"])]
    pub dry_run: bool,
    /// Run what a dry run has shown, where it is still so
    #[arg(long, value_name = "PLAN")]
    pub plan: Option<PlanRef>,
    /// Nodes at a time: 10 or 25%
    #[arg(long, value_name = "N|P%", value_parser = not_zero)]
    pub batch: Option<Amount>,
    /// Failures after which nothing more is started: 2 or 10%
    #[arg(long, value_name = "N|P%")]
    pub max_failures: Option<Amount>,
    /// The same for the nodes of each value of a label: rack=1
    #[arg(long, value_name = "LABEL=N|P%", value_parser = by_label)]
    pub max_failures_by: Vec<(LabelKey, Amount)>,
    /// How often a step that failed is tried again on its node
    #[arg(long, value_name = "N")]
    pub retry: Option<u32>,
    /// Execution time on each node
    #[arg(long, value_name = "TIME")]
    pub timeout: Option<Span>,
    /// How long a node may take to acknowledge [default: 15s]
    #[arg(long, value_name = "TIME")]
    pub deliver_within: Option<Span>,
    /// Only so many of the nodes, the first by name: 3 or 10%
    #[arg(long, value_name = "N|P%", value_parser = not_zero)]
    pub limit: Option<Amount>,
    /// Send also to nodes that are down, in case they come back in time
    #[arg(long)]
    pub wait_down: bool,
    /// Keep the broker's own machines in, also when not named
    #[arg(long)]
    pub include_infrastructure: bool,
    /// Names that no node has are meant
    #[arg(long)]
    pub allow_unknown: bool,
    /// Output kept of each node [default: 1MiB]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub output_limit: Option<u64>,
    /// How it is followed.
    #[command(flatten)]
    pub follow: FollowArgs,
}

fn by_label(text: &str) -> Result<(LabelKey, Amount), String> {
    let (label, amount) = text
        .split_once('=')
        .ok_or("write it like rack=1 or zone=10%")?;
    Ok((
        label.parse().map_err(|e| format!("{e}"))?,
        amount.parse().map_err(|e| format!("{e}"))?,
    ))
}

/// Runs a stored scenario.
///
/// # Errors
/// [`Failure`]; nothing was run when it was not confirmed.
pub(super) async fn run(context: &Context, args: &RunArgs) -> Result<u8, Failure> {
    let client = context.client()?;
    let params = params(context, &client, args).await?;
    let mut by = BTreeMap::new();
    for (label, amount) in &args.max_failures_by {
        if by.insert(label.clone(), *amount).is_some() {
            return Err(Failure::usage(format!(
                "--max-failures-by {label} is given twice"
            )));
        }
    }
    let request = RunRequest {
        predicate: args.on.clone(),
        scenario: args.name.clone(),
        version: args.version,
        params: Value::Object(params),
        mode: if args.dry_run {
            Mode::Check
        } else {
            Mode::Apply
        },
        timeout: args.timeout,
        deliver_within: args.deliver_within,
        batch: args.batch,
        max_failures: args.max_failures,
        max_failures_by: (!by.is_empty()).then_some(by),
        retry: args.retry,
        limit: args.limit,
        wait_down: args.wait_down,
        include_infrastructure: args.include_infrastructure,
        allow_unknown: args.allow_unknown,
        output_bytes: args.output_limit,
        confirm: match &args.plan {
            Some(plan) => Confirm::Plan(plan.clone()),
            None if args.follow.yes => Confirm::Yes,
            None => Confirm::Ask,
        },
    };
    let (view, since) = create(context, &client, request, args.follow.detach).await?;
    let code = Box::pin(follow(context, &client, &view, args.follow, since)).await?;
    if args.dry_run {
        plan_of(context, &client, &view, args.follow.json).await?;
    }
    Ok(code)
}

/// Creates the run, with the question that it may take.
async fn create(
    context: &Context,
    client: &Client,
    mut request: RunRequest,
    detach: bool,
) -> Result<(RunView, Instant), Failure> {
    let since = Instant::now();
    // One key for both: whatever gets lost on the way, it is one run.
    let key = Key::random();
    let error = match client.create_run(&request, &key).await {
        Ok(view) => return Ok((view, since)),
        Err(error) => error,
    };
    let asks = error.kind() == Some(Kind::ConfirmationRequired);
    if asks && detach && !context.term.in_tty {
        // Nobody is here to be asked, and nobody waits: somebody may confirm
        // it later.
        request.confirm = Confirm::Later;
        return Ok((client.create_run(&request, &key).await?, since));
    }
    let plan = confirmed(context, error)?;
    request.confirm = Confirm::Plan(plan.id.into());
    let since = Instant::now();
    Ok((client.create_run(&request, &key).await?, since))
}

/// The plan of what a dry run has shown, and how it is run.
async fn plan_of(
    context: &Context,
    client: &Client,
    view: &RunView,
    as_json: bool,
) -> Result<(), Failure> {
    let run = Reference::from(view.brief.id);
    let plan = client.plan_of_run(&run).await?;
    if as_json {
        return context
            .term
            .json(&json!({ "type": "plan", "run": view.brief.id, "plan": plan }));
    }
    let args = std::env::args().skip(1);
    let ended = client.run(&run).await?;
    let (results, main) = (&ended.results, ended.main.as_deref());
    context.term.line(&said(&plan, results, main, args))
}

/// `plan 9c1e: 24 would change, 0 failed.  Run it: muster scenario run … --plan 9c1e`
fn said(
    plan: &Plan,
    results: &[RunNode],
    main: Option<&MainView>,
    args: impl Iterator<Item = String>,
) -> String {
    let short = plan.id.short();
    let words: Vec<String> = args
        .filter(|arg| arg != "--dry-run")
        .map(|arg| word(&arg))
        .collect();
    let came = match main {
        Some(main) => of_a_main(plan, results, main),
        None => of_nodes(plan, results),
    };
    format!(
        "plan {short}: {came}.  Run it: muster {} --plan {short}",
        words.join(" ")
    )
}

/// What a dry run of one function came to.
fn of_nodes(plan: &Plan, results: &[RunNode]) -> String {
    let change = |node: &&RunNode| node.tally.is_some_and(|tally| tally.would_change > 0);
    let well = |node: &&RunNode| node.outcome == Some(Outcome::Succeeded);
    let would = results.iter().filter(change).count();
    let not_well = results.len() - results.iter().filter(well).count();
    let mut rest = String::new();
    if not_well > 0 && plan.checked > 0 {
        rest = format!(" and left out, {} in the plan", plan.nodes.len());
    } else if plan.checked == 0 {
        rest = format!(
            "; the plan holds the parameters and the {} alone",
            count(plan.nodes.len(), "node")
        );
    }
    format!("{would} would change, {not_well} failed{rest}")
}

/// What a dry run of a `main` came to: its nodes have as many outcomes as it
/// made steps, and it may not have come to all of them.
fn of_a_main(plan: &Plan, results: &[RunNode], main: &MainView) -> String {
    let with = |outcome| move |node: &&RunNode| node.outcome == Some(outcome);
    let not_reached = results.iter().filter(with(Outcome::Skipped)).count();
    let well = results.iter().filter(with(Outcome::Succeeded)).count();
    let failed = results.len() - well - not_reached;
    let mut came = format!(
        "{} would change, {failed} failed",
        count(main.would_change as usize, "node")
    );
    if not_reached > 0 {
        came.push_str(&format!(", {not_reached} not reached"));
    }
    let so_far = if main.planned.is_some() {
        " so far"
    } else {
        ""
    };
    format!(
        "{came}{so_far}; what a `main` does depends on what happens, so the plan holds the parameters and its {} alone",
        count(plan.nodes.len(), "node")
    )
}

/// A word as a shell reads it back.
fn word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,%@+".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", printable(text, 500).replace('\'', "'\\''"))
    }
}

/// The parameters: from the file, then from the command line, and what is
/// secret from where nobody sees it.
async fn params(
    context: &Context,
    client: &Client,
    args: &RunArgs,
) -> Result<Map<String, Value>, Failure> {
    let mut all = match &args.file {
        Some(file) => from_file(file)?,
        None => Map::new(),
    };
    let mut given = BTreeMap::new();
    for param in &args.params {
        let Some((name, value)) = param.split_once('=') else {
            return Err(
                Failure::usage(format!("`-p {}` names no value", printable(param, 60)))
                    .hint("write it like -p version=1.4.2"),
            );
        };
        if given.insert(name.to_owned(), value.to_owned()).is_some() {
            return Err(Failure::usage(format!(
                "the parameter `{}` is given twice",
                printable(name, 60)
            )));
        }
    }
    let view = match client.scenario(&args.name, args.version).await {
        Ok(view) => view,
        // Who may run it may read it; the broker says what is wrong.
        Err(ClientError::Problem(problem)) => return Err(ClientError::Problem(problem).into()),
        Err(error) => return Err(error.into()),
    };
    let secret = secrets(&view);
    for (name, value) in given {
        let value = if secret.contains(&name.as_str()) {
            secret_from(&name, &value)?
        } else {
            value
        };
        all.insert(name, Value::String(value));
    }
    for param in view.manifest.params.iter().filter(|p| p.secret) {
        if param.required && !all.contains_key(&param.name) && context.term.in_tty {
            let help = param.help.as_ref();
            let help = help.map_or(String::new(), |help| format!(" ({})", printable(help, 100)));
            let value = context.term.hidden(&format!("{}{help}: ", param.name))?;
            all.insert(param.name.clone(), Value::String(value));
        }
    }
    Ok(all)
}

fn secrets(view: &ScenarioView) -> Vec<&str> {
    let secret = view.manifest.params.iter().filter(|param| param.secret);
    secret.map(|param| param.name.as_str()).collect()
}

/// The value of a secret parameter: from a file or standard input, never from
/// the command line itself.
fn secret_from(name: &str, value: &str) -> Result<String, Failure> {
    let read = |text: std::io::Result<String>, what: &str| {
        let text = text.map_err(|e| {
            Failure::usage(format!(
                "the secret parameter `{name}` cannot be read from {what}: {e}"
            ))
        })?;
        // An editor's line break at the end is none of the secret.
        let text = text.strip_suffix('\n').unwrap_or(&text);
        Ok(text.strip_suffix('\r').unwrap_or(text).to_owned())
    };
    match value.strip_prefix('@') {
        Some(file) => read(limited(Path::new(file)), &printable(file, 200)),
        None if value == "-" => read(std::io::read_to_string(std::io::stdin()), "standard input"),
        None => Err(Failure::usage(format!(
            "`{name}` is secret, and everybody on this machine can read a command line; nothing was run"
        ))
        .hint(format!(
            "-p {name}=@FILE reads it from a file, -p {name}=- from standard input; without it you are asked"
        ))),
    }
}

fn limited(file: &Path) -> std::io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    let file = std::fs::File::open(file)?;
    file.take(MAX_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        let error = format!("it has more than {MAX_FILE} bytes");
        return Err(std::io::Error::other(error));
    }
    Ok(text)
}

/// The parameters in a file: TOML where its name ends so, else JSON.
fn from_file(file: &Path) -> Result<Map<String, Value>, Failure> {
    let shown = printable(&file.to_string_lossy(), 200);
    let wrong = |why: String| Failure::usage(format!("{shown} holds no parameters: {why}"));
    let text = limited(file).map_err(|e| Failure::usage(format!("{shown} cannot be read: {e}")))?;
    let is_toml = file.extension().is_some_and(|end| end == "toml");
    // An error of the parser may quote what is in the file, a secret perhaps:
    // only the place is told.
    let value: Value = if is_toml {
        toml::from_str(&text).map_err(|e| {
            let at = e.span().map_or(0, |span| span.start);
            let line = text
                .get(..at)
                .map_or(1, |before| before.lines().count().max(1));
            wrong(format!("it is no TOML (line {line})"))
        })?
    } else {
        serde_json::from_str(&text).map_err(|e| {
            wrong(format!(
                "it is no JSON (line {}, column {})",
                e.line(),
                e.column()
            ))
        })?
    };
    match value {
        Value::Object(map) => Ok(map),
        _ => Err(wrong("it has to be a map from names to values".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_protocol::ids::Serial;

    #[test]
    fn a_secret_is_not_taken_from_the_command_line() {
        let error = secret_from("token", "hunter2").expect_err("refused");
        assert_eq!(error.code, 2);
        assert!(!format!("{error:?}").contains("hunter2"));
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("token");
        std::fs::write(&file, "hunter2\n").expect("written");
        let value = secret_from("token", &format!("@{}", file.display()));
        assert_eq!(value.expect("read"), "hunter2");
        assert!(secret_from("token", "@/nowhere").is_err());
    }

    #[test]
    fn parameters_come_from_json_and_toml_and_mistakes_quote_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let read = |name: &str, text: &str| {
            let file = dir.path().join(name);
            std::fs::write(&file, text).expect("written");
            from_file(&file)
        };
        let json = read("a.json", r#"{"version": "1", "count": 3}"#).expect("read");
        let toml = read("a.toml", "version = '1'\ncount = 3\n").expect("read");
        assert_eq!(json, toml);
        for (name, text) in [
            ("b.json", "[\"hunter2\"]"),
            ("c.json", "{\"token\": \"hunter2\""),
            ("d.toml", "token = hunter2"),
        ] {
            let error = read(name, text).expect_err("refused");
            assert_eq!(error.code, 2);
            assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
        }
    }

    #[test]
    fn a_plan_says_how_it_is_run() {
        let plan: Plan = serde_json::from_value(json!({
            "id": muster_protocol::ids::PlanId::from_bytes([7; 16]), "run": muster_protocol::ids::RunId::from_bytes([7; 16]),
            "title": "x", "predicate": "*",
            "nodes": ["a", "b"], "labels": {}, "expires": "2026-11-21T06:00:00Z",
        }))
        .expect("a plan");
        let args = ["scenario", "run", "x", "-p", "text=it's so", "--dry-run"];
        let plan = Plan { checked: 2, ..plan };
        assert_eq!(
            said(&plan, &[], None, args.into_iter().map(str::to_owned)),
            r"plan 0w3g: 0 would change, 0 failed.  Run it: muster scenario run x -p 'text=it'\''s so' --plan 0w3g"
        );
    }

    #[test]
    fn a_plan_of_a_main_counts_nodes_and_not_steps() {
        let plan: Plan = serde_json::from_value(json!({
            "id": muster_protocol::ids::PlanId::from_bytes([7; 16]), "run": muster_protocol::ids::RunId::from_bytes([7; 16]),
            "title": "x", "predicate": "*",
            "nodes": ["a", "b", "c"], "labels": {}, "expires": "2026-11-21T06:00:00Z",
        }))
        .expect("a plan");
        let node = |name: &str, outcome| RunNode {
            outcome: Some(outcome),
            ..RunNode::new(name.parse().expect("a name"), Serial(1))
        };
        let mut results = [
            node("a", Outcome::Succeeded),
            node("b", Outcome::Succeeded),
            node("c", Outcome::Skipped),
        ];
        let mut main = MainView {
            would_change: 1,
            ..MainView::default()
        };
        assert_eq!(
            of_a_main(&plan, &results, &main),
            "1 node would change, 0 failed, 1 not reached; what a `main` does depends on what happens, so \
             the plan holds the parameters and its 3 nodes alone"
        );
        main.planned = Some("it asks".into());
        results[2].outcome = Some(Outcome::Failed);
        assert!(
            of_a_main(&plan, &results, &main).starts_with("1 node would change, 1 failed so far; ")
        );
    }

    #[test]
    fn budgets_by_label_are_read() {
        let read = by_label("rack=1").expect("read");
        assert_eq!((read.0.as_str(), read.1), ("rack", Amount::Count(1)));
        for bad in ["rack", "=1", "rack=", "rack=x"] {
            assert!(by_label(bad).is_err(), "{bad}");
        }
    }
}
