//! `muster run`

use std::time::Instant;

use clap::{Args, ValueEnum};
use muster_client::{Client, ClientError, Key};
use muster_protocol::api::{Confirm, Plan, RunRequest, RunView, version_shown};
use muster_protocol::envelope::Mode;
use muster_protocol::problem::{Kind, Problem};
use muster_protocol::text::printable;
use muster_protocol::units::{Amount, Span};
use serde_json::json;

use crate::Context;
use crate::failure::{CANCELLED, Failure, NOT_ALL};
use crate::ui::book::Book;
use crate::ui::count;
use crate::ui::plan::question;
use crate::verbs::watch::{Look, watch};
use muster_protocol::fold::folded;

const AFTER: &str = "\
While it runs, Ctrl-C says that the run goes on; a second Ctrl-C cancels it, Enter leaves it
running. Output to standard error is coloured, or begins with `2> ` where there are no colours.

Examples:
  muster run 'role=web and zone=gva2' -- nginx -v
  muster run 'role=web' --batch 25% --max-failures 0 -- systemctl restart webapp
  muster run 'web-0*' --shell -- 'ps aux | grep -c nginx'";

/// Arguments of `muster run`.
#[derive(Args, Debug)]
#[command(after_help = AFTER)]
pub struct RunArgs {
    /// Which nodes, such as 'role=web and zone=gva2'
    #[arg(value_name = "PREDICATE")]
    pub predicate: String,
    /// The command and its arguments, as they are: no shell reads them
    #[arg(last = true, required = true, value_name = "ARGV")]
    pub argv: Vec<String>,
    /// The command is one text for /bin/sh on the node
    #[arg(long)]
    pub shell: bool,
    /// Execution time on each node [default: 5m]
    #[arg(long, value_name = "TIME")]
    pub timeout: Option<Span>,
    /// How long a node may take to acknowledge [default: 15s]
    #[arg(long, value_name = "TIME")]
    pub deliver_within: Option<Span>,
    /// Nodes at a time: 10 or 25%
    #[arg(long, value_name = "N|P%", value_parser = not_zero)]
    pub batch: Option<Amount>,
    /// Failures after which nothing more is started: 2 or 10%
    #[arg(long, value_name = "N|P%")]
    pub max_failures: Option<Amount>,
    /// Only so many of the matching nodes, the first by name: 3 or 10%
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

/// How a run is confirmed and followed; of `run` and of `runs retry`.
#[derive(Args, Clone, Copy, Debug)]
pub struct FollowArgs {
    /// Do not ask, however many nodes there are
    #[arg(long, short = 'y')]
    pub yes: bool,
    /// Start it and do not wait
    #[arg(long)]
    pub detach: bool,
    /// All output of those that did not succeed, not only the last lines
    #[arg(long)]
    pub full: bool,
    /// Whether nodes with the same answer are shown together
    #[arg(long, value_name = "HOW", value_enum, default_value_t)]
    pub dedupe: Dedupe,
    /// One JSON object a line; the last is `run_finished`
    #[arg(long)]
    pub json: bool,
}

/// Which nodes are shown together.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub enum Dedupe {
    /// Those that ended the same way with the same output
    #[default]
    Equal,
    /// None: each node by itself
    None,
}

pub(crate) fn not_zero(text: &str) -> Result<Amount, String> {
    let amount: Amount = text.parse().map_err(|e| format!("{e}"))?;
    if amount.is_zero() {
        Err("zero nodes at a time never end; give at least 1".into())
    } else {
        Ok(amount)
    }
}

/// `1MiB`, `512KiB`, `4096`.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let fail = || format!("`{text}` is not a size; write it like 512KiB, 4MiB or 1048576");
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits].parse().map_err(|_| fail())?;
    let factor = match text[digits..].trim() {
        "" | "B" => 1,
        "KiB" | "K" | "k" => 1 << 10,
        "MiB" | "M" => 1 << 20,
        "GiB" | "G" => 1 << 30,
        _ => return Err(fail()),
    };
    number.checked_mul(factor).ok_or_else(fail)
}

impl RunArgs {
    /// As the API takes it.
    ///
    /// # Errors
    /// A shell command in several words.
    pub fn request(&self) -> Result<RunRequest, Failure> {
        let params = if self.shell {
            let [command] = self.argv.as_slice() else {
                return Err(
                    Failure::usage("--shell takes the whole command as one word")
                        .hint("quote it: muster run PREDICATE --shell -- 'ps aux | grep nginx'"),
                );
            };
            json!({ "shell": command })
        } else {
            json!({ "argv": self.argv })
        };
        Ok(RunRequest {
            predicate: Some(self.predicate.clone()),
            version: None,
            scenario: "command"
                .parse()
                .map_err(|e| Failure::usage(format!("{e}")))?,
            params,
            mode: Mode::Apply,
            timeout: self.timeout,
            deliver_within: self.deliver_within,
            batch: self.batch,
            max_failures: self.max_failures,
            max_failures_by: None,
            retry: None,
            limit: self.limit,
            wait_down: self.wait_down,
            include_infrastructure: self.include_infrastructure,
            allow_unknown: self.allow_unknown,
            output_bytes: self.output_limit,
            confirm: if self.follow.yes {
                Confirm::Yes
            } else {
                Confirm::Ask
            },
        })
    }
}

/// Runs a command.
///
/// # Errors
/// [`Failure`].
pub async fn run(context: &Context, args: RunArgs) -> Result<u8, Failure> {
    let request = args.request()?;
    start(context, &context.client()?, request, args.follow).await
}

/// Creates a run, with the question that it may take, and follows it.
///
/// # Errors
/// [`Failure`]; nothing was run when it was not confirmed.
pub(crate) async fn start(
    context: &Context,
    client: &Client,
    mut request: RunRequest,
    follow_args: FollowArgs,
) -> Result<u8, Failure> {
    let mut since = Instant::now();
    // One key for both: whatever gets lost on the way, it is one run.
    let key = Key::random();
    let view = match client.create_run(&request, &key).await {
        Ok(view) => view,
        Err(error) => {
            let plan = confirmed(context, error)?;
            request.confirm = Confirm::Plan(plan.id.into());
            since = Instant::now();
            client.create_run(&request, &key).await?
        }
    };
    follow(context, client, &view, follow_args, since).await
}

/// After the run was created: watch it, or say where it is.
pub(crate) async fn follow(
    context: &Context,
    client: &Client,
    view: &RunView,
    args: FollowArgs,
    since: Instant,
) -> Result<u8, Failure> {
    if args.detach {
        if args.json {
            context.term.json(&view.brief)?;
        } else {
            context.term.line(&view.brief.short)?;
            let short = &view.brief.short;
            let how = match Book::from_view(view).held() {
                Some(held) => printable(&held, 300),
                None => format!("goes on: muster runs watch {short}"),
            };
            let on = count(view.brief.nodes as usize, "node");
            context.term.note(&format!("run {short} on {on} {how}"));
        }
        return Ok(0);
    }
    let look = Look {
        json: args.json,
        full: args.full,
        dedupe: args.dedupe,
        since: Some(since),
        replay: false,
    };
    watch(context, client, view, look).await
}

/// Takes the broker's question to the person; the plan, if the answer is yes.
///
/// # Errors
/// Any other error; not confirmed; nobody to ask.
pub(crate) fn confirmed(context: &Context, error: ClientError) -> Result<Plan, Failure> {
    let plan = plan_of(error)?;
    if !context.term.in_tty {
        return Err(unasked(&plan));
    }
    if context.term.ask(&question(&plan))? {
        Ok(plan)
    } else {
        Err(Failure::new(CANCELLED, "not confirmed; nothing was run"))
    }
}

fn unasked(plan: &Plan) -> Failure {
    let names = folded(
        plan.nodes
            .iter()
            .map(muster_protocol::names::NodeName::as_str),
        80,
    );
    Failure::new(
        CANCELLED,
        match (&plan.scenario, plan.version) {
            (Some(name), Some(version)) => format!(
                "{name} {} on {} needs a confirmation; nothing was run",
                version_shown(version),
                count(plan.nodes.len(), "node")
            ),
            _ => format!(
                "{} match {}, which needs a confirmation; nothing was run",
                count(plan.nodes.len(), "node"),
                plan.predicate
            ),
        },
    )
    .detail(names)
    .hint(if plan.scenario.is_some() {
        "there is no terminal to ask on: --yes confirms it beforehand, --detach lets somebody confirm it later"
    } else {
        "there is no terminal to ask on: --yes confirms it beforehand"
    })
}

fn plan_of(error: ClientError) -> Result<Plan, Failure> {
    let asks = error.kind() == Some(Kind::ConfirmationRequired);
    let ClientError::Problem(problem) = error else {
        return Err(error.into());
    };
    let plan = match &*problem {
        Problem {
            plan: Some(plan), ..
        } if asks => serde_json::from_value::<Plan>(plan.clone()),
        _ => return Err(ClientError::Problem(problem).into()),
    };
    plan.map_err(|e| {
        Failure::new(
            NOT_ALL,
            "the broker asks for a confirmation of a plan that cannot be read",
        )
        .detail(e.to_string())
        .hint("is this muster of the same version as the broker?")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ui::Paint;

    #[test]
    fn sizes_are_what_people_write() {
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("512KiB"), Ok(512 << 10));
        assert_eq!(size("4MiB"), Ok(4 << 20));
        for bad in [
            "",
            "MiB",
            "1MB",
            "-1",
            "1.5MiB",
            "99999999999999999999",
            "99999999999999GiB",
        ] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn without_a_terminal_a_large_run_is_not_started() {
        let nodes = (1..=24)
            .map(|n| format!("web-{n:02}").parse().expect("name"))
            .collect();
        let plan = Plan {
            run: muster_protocol::ids::RunId::from_bytes([7; 16]),
            id: muster_protocol::ids::PlanId::from_bytes([1; 16]),
            title: "true".into(),
            predicate: "role=web".into(),
            nodes,
            labels: [].into(),
            left_out: 0,
            scenario: None,
            version: None,
            params: serde_json::Value::Null,
            mode: muster_protocol::envelope::Mode::Apply,
            options: None,
            sets: vec![],
            batches: 0,
            gates: muster_protocol::run::Gates::default(),
            checked: 0,
            expires: "2026-11-21T06:00:00Z".parse().expect("time"),
        };
        let mut problem = Problem::new(Kind::ConfirmationRequired, "24 nodes");
        problem.plan = serde_json::to_value(&plan).ok();
        let read = plan_of(ClientError::Problem(Box::new(problem))).expect("a plan");
        assert_eq!(read, plan);
        assert_eq!(unasked(&plan).code, 6);
        insta::assert_snapshot!(unasked(&plan).render(Paint::plain()), @r"
        error: 24 nodes match role=web, which needs a confirmation; nothing was run
          web-01 … web-24
          there is no terminal to ask on: --yes confirms it beforehand
        ");
    }

    #[test]
    fn another_problem_is_not_a_plan() {
        let mut problem = Problem::new(Kind::Denied, "no");
        problem.plan = Some(json!({}));
        assert_eq!(
            plan_of(ClientError::Problem(Box::new(problem)))
                .expect_err("denied")
                .code,
            4
        );
    }
}
