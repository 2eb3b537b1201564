//! `muster runs`

use std::time::Instant;

use clap::{Args, Subcommand};
use muster_client::{Client, Key, Reference};
use muster_protocol::api::{Confirm, RetryRequest, RunBrief, RunView};
use muster_protocol::names::NodeName;
use muster_protocol::run::{LocalRun, RunPhase, Wish};
use muster_protocol::text::printable;
use muster_protocol::units::Timestamp;
use muster_protocol::wire::MAX_WHY;

use crate::Context;
use crate::failure::Failure;
use crate::ui::Paint;
use crate::ui::book::Book;
use crate::ui::report::{Onward, Style, body, counts, foot, head};
use crate::ui::steps::tree;
use crate::ui::table::{Cell, Table, Tone};
use crate::ui::time::{ago, moment};
use crate::verbs::now;
use crate::verbs::output::{OutputArgs, output};
use crate::verbs::run::Dedupe;
use crate::verbs::run::{FollowArgs, confirmed, follow};
use crate::verbs::watch::{Look, watch};
use muster_protocol::fold::folded;

/// Arguments of `muster runs`.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct RunsArgs {
    /// What to do; the list when nothing is said.
    #[command(subcommand)]
    pub verb: Option<RunsVerb>,
    /// As of `runs list`.
    #[command(flatten)]
    pub list: ListArgs,
}

/// What can be done with runs.
#[derive(Debug, Subcommand)]
pub enum RunsVerb {
    /// List runs, newest first
    List(ListArgs),
    /// What a run did on every node
    Show(ShowArgs),
    /// Follow a run to its end
    Watch(ShowArgs),
    /// What nodes printed and said, in order and whole
    Output(OutputArgs),
    /// End a run: nothing new is started, what runs is killed
    Cancel(CancelArgs),
    /// Answer what a run asks
    Answer(AnswerArgs),
    /// Let a run begin that waits for a confirmation
    Confirm(WishArgs),
    /// Agree to a run that somebody else has asked for
    Approve(WishArgs),
    /// Send nothing new for now; what was sent goes on
    Pause(WishArgs),
    /// Let a paused run go on
    Resume(WishArgs),
    /// Run it again, as a run of its own
    Retry(RetryArgs),
}

/// Arguments of `muster runs list`.
#[derive(Args, Clone, Copy, Debug)]
pub struct ListArgs {
    /// How many
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub limit: u32,
    /// Also the runs that are parts of others: steps, and scenarios that a
    /// scenario has called
    #[arg(long)]
    pub parts: bool,
    /// One JSON array
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster runs show` and `watch`.
#[derive(Args, Debug)]
pub struct ShowArgs {
    /// The run: its id or the beginning of it
    #[arg(value_name = "RUN")]
    pub run: String,
    /// All output of those that did not succeed, not only the last lines
    #[arg(long)]
    pub full: bool,
    /// Whether nodes with the same answer are shown together
    #[arg(long, value_name = "HOW", value_enum, default_value_t)]
    pub dedupe: Dedupe,
    /// As JSON: show one object, watch one object a line
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster runs cancel`.
#[derive(Args, Debug)]
pub struct CancelArgs {
    /// The run: its id or the beginning of it
    #[arg(value_name = "RUN")]
    pub run: String,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster runs answer`.
#[derive(Args, Debug)]
pub struct AnswerArgs {
    /// The run: its id or the beginning of it
    #[arg(value_name = "RUN")]
    pub run: String,
    /// What its scenario is told
    #[arg(value_name = "TEXT")]
    pub text: String,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster runs confirm`, `approve`, `pause` and `resume`.
#[derive(Args, Debug)]
pub struct WishArgs {
    /// The run: its id or the beginning of it
    #[arg(value_name = "RUN")]
    pub run: String,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster runs retry`.
#[derive(Args, Debug)]
pub struct RetryArgs {
    /// The run: its id or the beginning of it
    #[arg(value_name = "RUN")]
    pub run: String,
    /// Only where it is sure that it did not succeed
    #[arg(long)]
    pub failed: bool,
    /// Also where it cannot be said whether it ran
    #[arg(long)]
    pub include_unknown: bool,
    /// With the current version of the scenario, not the one that ran
    #[arg(long)]
    pub latest: bool,
    /// How it is followed.
    #[command(flatten)]
    pub follow: FollowArgs,
}

/// Does it.
///
/// # Errors
/// [`Failure`].
pub async fn run(context: &Context, args: RunsArgs) -> Result<u8, Failure> {
    let client = context.client()?;
    match args.verb {
        None => list(context, &client, args.list).await,
        Some(RunsVerb::List(args)) => list(context, &client, args).await,
        Some(RunsVerb::Show(args)) => show(context, &client, &args).await,
        Some(RunsVerb::Watch(args)) => {
            let view = client.run(&args.run.parse()?).await?;
            let look = Look {
                json: args.json,
                full: args.full,
                dedupe: args.dedupe,
                since: None,
                replay: view.brief.state.is_final(),
            };
            watch(context, &client, &view, look).await
        }
        Some(RunsVerb::Output(args)) => output(context, &client, &args).await,
        Some(RunsVerb::Answer(args)) => answer(context, &client, &args).await,
        Some(RunsVerb::Cancel(args)) => cancel(context, &client, &args).await,
        Some(RunsVerb::Confirm(args)) => wish(context, &client, &args, Wish::Confirm).await,
        Some(RunsVerb::Approve(args)) => wish(context, &client, &args, Wish::Approve).await,
        Some(RunsVerb::Pause(args)) => wish(context, &client, &args, Wish::Pause).await,
        Some(RunsVerb::Resume(args)) => wish(context, &client, &args, Wish::Resume).await,
        Some(RunsVerb::Retry(args)) => retry(context, &client, args).await,
    }
}

async fn list(context: &Context, client: &Client, args: ListArgs) -> Result<u8, Failure> {
    let page = client.runs_page(None, args.limit, args.parts).await?;
    if args.json {
        context.term.json(&page.items)?;
    } else if page.items.is_empty() {
        context.term.note("no runs yet");
    } else {
        context.term.say(&table(
            &page.items,
            context.term.out,
            context.term.width,
            now(),
        ))?;
        if page.next.is_some() && context.term.err_tty {
            context
                .term
                .note(&context.term.err.dim("there are more: --limit N"));
        }
    }
    Ok(0)
}

fn tone(state: RunPhase) -> Tone {
    match state {
        RunPhase::Succeeded => Tone::Good,
        RunPhase::Failed => Tone::Bad,
        _ => Tone::Odd,
    }
}

/// Where a run is: one that has begun and asks somebody waits, too.
fn state(run: &RunBrief) -> String {
    match run.waits_for() {
        Some(what) => format!("waiting ({what})"),
        None => run.state.as_str().replace('_', " "),
    }
}

/// The list of runs.
#[must_use]
pub fn table(runs: &[RunBrief], paint: Paint, width: usize, now: Timestamp) -> String {
    let mut table = Table::new(&[
        "RUN", "STATE", "STARTED", "BY", "NODES", "OUTCOMES", "WHAT", "ON",
    ]);
    for run in runs {
        table.row([
            run.short.as_str().into(),
            Cell::toned(state(run), tone(run.state)),
            ago(run.created, now).into(),
            run.principal.to_string().into(),
            run.nodes.to_string().into(),
            counts(&run.summary, Paint::plain()).into(),
            run.title.as_str().into(),
            run.predicate.as_str().into(),
        ]);
    }
    table.render(paint, width)
}

async fn show(context: &Context, client: &Client, args: &ShowArgs) -> Result<u8, Failure> {
    let reference: Reference = args.run.parse()?;
    let view = client.run(&reference).await?;
    if args.json {
        context.term.json(&view)?;
        return Ok(0);
    }
    let style = Style {
        paint: context.term.out,
        width: context.term.width,
        full: args.full,
    };
    context.term.say(&facts(&view, style.paint, now()))?;
    if view.brief.state.is_final() {
        // Its events hold the output; they end by themselves.
        let look = Look {
            json: false,
            full: args.full,
            dedupe: args.dedupe,
            since: None,
            replay: true,
        };
        // Showing went well, whatever is shown.
        return watch(context, client, &view, look).await.map(|_| 0);
    }
    context.term.say(&snapshot(&view, style))?;
    Ok(0)
}

/// What is fixed of a run: who, when, how.
#[must_use]
pub fn facts(view: &RunView, paint: Paint, now: Timestamp) -> String {
    let brief = &view.brief;
    let mut parts = vec![
        format!(
            "by {} at {} ({})",
            brief.principal,
            moment(brief.created),
            ago(brief.created, now)
        ),
        format!("timeout {}", view.options.timeout),
    ];
    if let Some(batch) = view.options.batch {
        parts.push(format!("batch {batch}"));
    }
    if let Some(budget) = view.options.max_failures {
        parts.push(format!("max failures {budget}"));
    }
    for (label, budget) in &view.options.max_failures_by {
        parts.push(format!("max failures {budget} for each {label}"));
    }
    if let Some(by) = &view.confirmed_by {
        parts.push(format!("confirmed by {by}"));
    }
    if !view.approved_by.is_empty() {
        let who: Vec<&str> = view.approved_by.iter().map(|by| by.as_str()).collect();
        parts.push(format!("approved by {}", who.join(", ")));
    }
    if let Some(of) = brief.retry_of {
        parts.push(format!("retries {}", of.short()));
    }
    if let Some(by) = &view.cancelled_by {
        parts.push(format!("cancelled by {by}"));
    }
    if let Some(local) = &view.local {
        parts.push(done_there(local));
    }
    if let Some(at) = view.rebuilt {
        parts.push(format!(
            "written down again {} from what nodes had kept, because the broker's store had gone back",
            moment(at)
        ));
    }
    format!(
        "{}  {}\n",
        paint.dim(&brief.id.to_string()),
        paint.dim(&parts.join("  "))
    )
}

/// Who did a run on the node itself, in the node's words: escaped, because
/// nobody has checked them.
fn done_there(local: &LocalRun) -> String {
    let mut said = format!("run on the node itself by {}", printable(&local.user, 64));
    if let Some(login) = &local.login {
        said.push_str(&format!(" (logged in as {})", printable(login, 64)));
    }
    said.push_str(&format!(", begun {} by its clock", moment(local.began)));
    if local.forced {
        said.push_str(", against the node's own policy");
    }
    if let Some(why) = &local.why {
        said.push_str(&format!(", because: {}", printable(why, MAX_WHY)));
    }
    said
}

/// A run that has not ended, as it is now.
#[must_use]
pub fn snapshot(view: &RunView, style: Style) -> String {
    let mut book = Book::from_view(view);
    let mut open: Vec<&NodeName> = Vec::new();
    for result in &view.results {
        if result.outcome.is_some() {
            book.outcome(result, false);
        } else {
            open.push(&result.node);
        }
    }
    let mut out = head(&book, style.paint);
    if let Some(main) = &view.main {
        out.push_str(&tree(main, &view.brief.short, style.paint));
    }
    // What they printed is in the events, not in this view.
    let named = body(&book, style).replace("(no output)", "succeeded");
    out.push_str(&named);
    if !open.is_empty() {
        let names = folded(
            open.iter().map(|n| n.as_str()),
            style.width.saturating_sub(20).clamp(40, 120),
        );
        out.push_str(&format!(
            "{}  {}\n",
            names,
            style.paint.odd("no outcome yet")
        ));
    }
    out.push_str(&foot(&book, style, Onward::Watch));
    out
}

async fn answer(context: &Context, client: &Client, args: &AnswerArgs) -> Result<u8, Failure> {
    let view = client.answer_run(&args.run.parse()?, &args.text).await?;
    if args.json {
        context.term.json(&view.brief)?;
        return Ok(0);
    }
    let brief = &view.brief;
    context.term.line(&format!(
        "run {} goes on: muster runs watch {}",
        brief.short, brief.short
    ))?;
    Ok(0)
}

async fn cancel(context: &Context, client: &Client, args: &CancelArgs) -> Result<u8, Failure> {
    let view = client.cancel_run(&args.run.parse()?).await?;
    if args.json {
        context.term.json(&view.brief)?;
        return Ok(0);
    }
    let brief = &view.brief;
    let said = if brief.state.is_final() {
        format!(
            "run {} is {}: {}",
            brief.short,
            brief.state.as_str(),
            counts(&brief.summary, context.term.out)
        )
    } else {
        let open = view.results.iter().filter(|r| r.outcome.is_none()).count();
        format!(
            "run {} is being cancelled; {} without an outcome yet: muster runs watch {}",
            brief.short,
            crate::ui::count(open, "node"),
            brief.short
        )
    };
    context.term.line(&said)?;
    Ok(0)
}

async fn wish(
    context: &Context,
    client: &Client,
    args: &WishArgs,
    wish: Wish,
) -> Result<u8, Failure> {
    let view = client.wish_of_run(&args.run.parse()?, wish).await?;
    if args.json {
        context.term.json(&view.brief)?;
    } else {
        context.term.line(&granted(&view, wish))?;
    }
    Ok(0)
}

/// What has come of it, and how the run stands now.
fn granted(view: &RunView, wish: Wish) -> String {
    let done = match wish {
        Wish::Confirm => "confirmed",
        Wish::Approve => "approved",
        Wish::Pause => "paused",
        Wish::Resume => "resumed",
    };
    let short = &view.brief.short;
    let now = match (Book::from_view(view).held(), wish) {
        (Some(held), Wish::Confirm | Wish::Approve | Wish::Resume) => {
            format!("; it {}", printable(&held, 300))
        }
        (_, Wish::Pause) => {
            let open = view.results.iter().filter(|r| r.outcome.is_none()).count();
            format!(
                "; {} without an outcome yet: muster runs resume {short}",
                crate::ui::count(open, "node")
            )
        }
        (None, _) => format!(": muster runs watch {short}"),
    };
    format!("run {short} is {done}{now}")
}

async fn retry(context: &Context, client: &Client, args: RetryArgs) -> Result<u8, Failure> {
    let run: Reference = args.run.parse()?;
    let mut request = RetryRequest {
        failed: args.failed,
        include_unknown: args.include_unknown,
        latest: args.latest,
        confirm: if args.follow.yes {
            Confirm::Yes
        } else {
            Confirm::Ask
        },
    };
    let mut since = Instant::now();
    let key = Key::random();
    let view = match client.retry_run(&run, &request, &key).await {
        Ok(view) => view,
        Err(error) => {
            let plan = confirmed(context, error)?;
            request.confirm = Confirm::Plan(plan.id.into());
            since = Instant::now();
            client.retry_run(&run, &request, &key).await?
        }
    };
    follow(context, client, &view, args.follow, since).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_protocol::api::{Frame, RunNode};
    use muster_protocol::envelope::{Door, Mode};
    use muster_protocol::ids::{RunId, Serial};
    use muster_protocol::run::{Gates, Outcome, RunOptions};
    use muster_protocol::units::{Amount, Span};

    fn view() -> RunView {
        let node = |name: &str, outcome, reason: Option<&str>| RunNode {
            node: name.parse().expect("name"),
            serial: Serial(1),
            outcome,
            reason: reason.map(Into::into),
            exit: None,
            signal: None,
            ms: None,
            output_bytes: 0,
            value: None,
            value_bytes: None,
            tally: None,
            digest: None,
            rolled_back: false,
            taken_back: false,
            late: vec![],
        };
        RunView {
            brief: RunBrief {
                id: RunId::from_bytes([7; 16]),
                short: "0w3g".into(),
                principal: "ana".parse().expect("name"),
                door: Door::Cli,
                title: "apt-get -y upgrade\x1b[2J".into(),
                scenario: "command".parse().expect("name"),
                version: None,
                mode: Mode::Apply,
                predicate: "role=web".into(),
                state: RunPhase::Running,
                waits: None,
                nodes: 6,
                summary: [(Outcome::Succeeded, 2), (Outcome::TimedOut, 1)].into(),
                created: "2026-11-21T05:56:00Z".parse().expect("time"),
                finished: None,
                retry_of: None,
                left_out: 0,
                part_of: None,
            },
            params: serde_json::json!({}),
            options: RunOptions {
                timeout: Span::from_secs(300),
                deliver_within: Span::from_secs(15),
                batch: Some(Amount::Percent(25)),
                max_failures: Some(Amount::Count(0)),
                max_failures_by: [].into(),
                retry: 0,
                wait_down: false,
                output_bytes: 1 << 20,
            },
            batches: 4,
            gates: Gates::default(),
            confirmed_by: None,
            approved_by: vec![],
            paused_by: None,
            lapsed: None,
            cancelled_by: None,
            local: None,
            output_removed: None,
            rebuilt: None,
            main: None,
            results: vec![
                node("web-01", Some(Outcome::Succeeded), None),
                node("web-02", Some(Outcome::Succeeded), None),
                node(
                    "web-03",
                    Some(Outcome::TimedOut),
                    Some("ran longer than 5m"),
                ),
                node("web-04", None, None),
                node("web-05", None, None),
                node("web-06", None, None),
            ],
        }
    }

    #[test]
    fn a_run_under_way_is_shown_as_it_is() {
        let now = "2026-11-21T06:00:00Z".parse().expect("time");
        let style = Style {
            paint: Paint::plain(),
            width: 80,
            full: false,
        };
        let view = view();
        insta::assert_snapshot!(format!(
            "{}{}",
            facts(&view, Paint::plain(), now),
            snapshot(&view, style)
        ));
    }

    #[test]
    fn the_list_fits_a_terminal() {
        let now = "2026-11-21T06:00:00Z".parse().expect("time");
        let table = table(&[view().brief], Paint::plain(), 80, now);
        insta::assert_snapshot!(table);
        let mut waiting = view().brief;
        waiting.waits = Some(muster_protocol::run::Gate::Answer {
            question: "Go on?".into(),
            answers: vec![],
        });
        let of = super::table(&[waiting], Paint::plain(), 200, now);
        assert!(of.contains("  waiting (answer)  "), "{of}");
        assert!(table.lines().all(|l| crate::ui::width(l) <= 80));
    }

    #[test]
    fn the_last_line_of_json_is_what_scripts_were_promised() {
        let frame = Frame::RunFinished {
            run: RunId::from_bytes([7; 16]),
            state: RunPhase::Failed,
            summary: [(Outcome::Succeeded, 1), (Outcome::TimedOut, 1)].into(),
            nodes: [
                ("a".parse().expect("name"), Outcome::Succeeded),
                ("b".parse().expect("name"), Outcome::TimedOut),
            ]
            .into(),
        };
        insta::assert_snapshot!(serde_json::to_string(&frame).expect("json"), @r#"{"type":"run_finished","run":"0w3ge1r70w3ge1r70w3ge1r70w","state":"failed","summary":{"succeeded":1,"timed_out":1},"nodes":{"a":"succeeded","b":"timed_out"}}"#);
    }
}
