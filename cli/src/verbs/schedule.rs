//! `muster schedule`

use clap::{Args, Subcommand};
use muster_protocol::api::{
    Confirm, LastStart, PutSchedule, RunRequest, ScheduleView, WhenMissed, version_shown,
};
use muster_protocol::envelope::Mode;
use muster_protocol::names::{ScenarioName, ScheduleName};
use muster_protocol::text::printable;
use muster_protocol::units::{Amount, Span, Timestamp};
use serde_json::{Map, Value, json};

use crate::Context;
use crate::failure::Failure;
use crate::ui::table::{Cell, Table, Tone};
use crate::ui::time::{ago, moment};
use crate::verbs::now;
use crate::verbs::run::not_zero;

/// Arguments of `muster schedule`.
#[derive(Args, Debug)]
pub struct ScheduleArgs {
    /// What to do.
    #[command(subcommand)]
    pub verb: ScheduleVerb,
}

/// What can be done with schedules.
#[derive(Debug, Subcommand)]
pub enum ScheduleVerb {
    /// Run a scenario at certain times
    Add(Box<AddArgs>),
    /// List schedules, and what came of their last starts
    List(ListArgs),
    /// Remove a schedule; runs that it has made go on
    Remove(RemoveArgs),
    /// What begins when
    Next(NextArgs),
}

const AFTER: &str = "\
Times are UTC: minute, hour, day of the month, month, day of the week.
A schedule says yes to its plan beforehand, and may do what you may; its runs are by `schedule:NAME`.

Examples:
  muster schedule add nightly --cron '0 3 * * *' --scenario upgrade-packages --on role=web
  muster schedule add monday --cron '30 6 * * mon' --scenario reboot -p service=nginx --jitter 20m --missed run";

/// Arguments of `muster schedule add`.
#[derive(Args, Debug)]
#[command(after_help = AFTER, disable_version_flag = true)]
pub struct AddArgs {
    /// Its name
    #[arg(value_name = "NAME")]
    pub name: ScheduleName,
    /// When, as in cron, UTC: '0 3 * * mon-fri'
    #[arg(long, value_name = "TIMES")]
    pub cron: String,
    /// The scenario
    #[arg(long, value_name = "SCENARIO")]
    pub scenario: ScenarioName,
    /// Which version of it [default: the newest, each time]
    #[arg(long, value_name = "VERSION")]
    pub version: Option<u32>,
    /// A parameter; may be repeated. A list or a map is written as JSON
    #[arg(short, long = "param", value_name = "NAME=VALUE")]
    pub params: Vec<String>,
    /// Only those of its nodes; or which nodes, where the scenario names none
    #[arg(long, value_name = "PREDICATE")]
    pub on: Option<String>,
    /// Each start is put off by up to so long, by its own share
    #[arg(long, value_name = "TIME")]
    pub jitter: Option<Span>,
    /// What becomes of starts that nobody could make: run once, or skip
    #[arg(long, value_name = "run|skip", default_value = "skip", value_parser = missed)]
    pub missed: WhenMissed,
    /// Change nothing, and say what would change
    #[arg(long)]
    pub dry_run: bool,
    /// Nodes at a time: 10 or 25%
    #[arg(long, value_name = "N|P%", value_parser = not_zero)]
    pub batch: Option<Amount>,
    /// Failures after which nothing more is started: 2 or 10%
    #[arg(long, value_name = "N|P%")]
    pub max_failures: Option<Amount>,
    /// Execution time on each node
    #[arg(long, value_name = "TIME")]
    pub timeout: Option<Span>,
    /// Keep the broker's own machines in, also when not named
    #[arg(long)]
    pub include_infrastructure: bool,
    /// Names that no node has are meant
    #[arg(long)]
    pub allow_unknown: bool,
    /// Take the place of the schedule of that name
    #[arg(long)]
    pub replace: bool,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster schedule list`.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// One JSON array
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster schedule remove`.
#[derive(Args, Debug)]
pub struct RemoveArgs {
    /// Its name
    #[arg(value_name = "NAME")]
    pub name: ScheduleName,
}

/// Arguments of `muster schedule next`.
#[derive(Args, Debug)]
pub struct NextArgs {
    /// Only this one
    #[arg(value_name = "NAME")]
    pub name: Option<ScheduleName>,
    /// How many starts
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 10,
        value_parser = clap::value_parser!(u32).range(1..=100))]
    pub count: u32,
    /// One JSON array
    #[arg(long)]
    pub json: bool,
}

fn missed(text: &str) -> Result<WhenMissed, String> {
    match text {
        "run" => Ok(WhenMissed::Run),
        "skip" => Ok(WhenMissed::Skip),
        _ => Err("there are: run, skip".to_owned()),
    }
}

fn params(given: &[String]) -> Result<Map<String, Value>, Failure> {
    let mut all = Map::new();
    for param in given {
        let Some((name, value)) = param.split_once('=') else {
            return Err(
                Failure::usage(format!("`-p {}` names no value", printable(param, 60)))
                    .hint("write it like -p version=1.4.2"),
            );
        };
        let value = Value::String(value.to_owned());
        if all.insert(name.to_owned(), value).is_some() {
            return Err(Failure::usage(format!(
                "the parameter `{}` is given twice",
                printable(name, 60)
            )));
        }
    }
    Ok(all)
}

/// Does it.
///
/// # Errors
/// [`Failure`].
pub async fn run(context: &Context, args: ScheduleArgs) -> Result<u8, Failure> {
    match args.verb {
        ScheduleVerb::Add(args) => add(context, *args).await,
        ScheduleVerb::List(args) => list(context, &args).await,
        ScheduleVerb::Remove(args) => {
            context.client()?.remove_schedule(&args.name).await?;
            let text = format!("schedule {} is removed", args.name);
            context.term.line(&text)?;
            Ok(0)
        }
        ScheduleVerb::Next(args) => next(context, &args).await,
    }
}

async fn add(context: &Context, args: AddArgs) -> Result<u8, Failure> {
    let request = RunRequest {
        predicate: args.on,
        scenario: args.scenario,
        version: args.version,
        params: Value::Object(params(&args.params)?),
        mode: if args.dry_run {
            Mode::Check
        } else {
            Mode::Apply
        },
        timeout: args.timeout,
        deliver_within: None,
        batch: args.batch,
        max_failures: args.max_failures,
        max_failures_by: None,
        retry: None,
        limit: None,
        wait_down: false,
        include_infrastructure: args.include_infrastructure,
        allow_unknown: args.allow_unknown,
        output_bytes: None,
        confirm: Confirm::Yes,
    };
    let put = PutSchedule {
        cron: args.cron,
        jitter: args.jitter,
        missed: args.missed,
        run: request,
        replace: args.replace,
    };
    let view = context.client()?.put_schedule(&args.name, &put).await?;
    let term = &context.term;
    if args.json {
        term.json(&view)?;
        return Ok(0);
    }
    for warning in &view.warnings {
        let mark = term.err.odd("warning:");
        term.note(&format!("{mark} {}", printable(warning, 500)));
    }
    let first = match view.next.first() {
        Some(at) => format!("first {} UTC ({})", moment(*at), ago(*at, now())),
        None => "its times never come".to_owned(),
    };
    term.line(&format!(
        "schedule {} runs {} at `{}`, {first}",
        view.name,
        what(&view),
        view.cron
    ))?;
    Ok(0)
}

/// `web-upgrade v12 version=1.4.2 on role=web`.
fn what(view: &ScheduleView) -> String {
    let run = &view.run;
    let mut what = run.scenario.to_string();
    if let Some(version) = run.version {
        what.push_str(&format!(" {}", version_shown(version)));
    }
    for (name, value) in run.params.as_object().into_iter().flatten() {
        let value = match value {
            Value::String(text) => printable(text, 40),
            other => printable(&other.to_string(), 40),
        };
        what.push_str(&format!(" {}={value}", printable(name, 40)));
    }
    if let Some(predicate) = &run.predicate {
        what.push_str(&format!(" on {}", printable(predicate, 200)));
    }
    if run.mode == Mode::Check {
        what.push_str(" (dry run)");
    }
    what
}

fn last(last: Option<&LastStart>, now: Timestamp) -> Cell {
    let Some(last) = last else {
        return "".into();
    };
    let when = ago(last.at, now);
    match (&last.run, &last.problem) {
        (Some(run), _) => format!("{when}: run {}", run.short()).into(),
        (None, Some(problem)) => {
            Cell::toned(format!("{when}: {}", printable(problem, 200)), Tone::Bad)
        }
        (None, None) => when.into(),
    }
}

async fn list(context: &Context, args: &ListArgs) -> Result<u8, Failure> {
    let all = context.client()?.schedules(1).await?;
    let term = &context.term;
    if args.json {
        term.json(&all)?;
        return Ok(0);
    }
    let now = now();
    let mut table = Table::new(&["NAME", "CRON (UTC)", "RUNS", "BY", "NEXT", "LAST"]);
    for view in &all {
        let next = view.next.first();
        table.row([
            view.name.to_string().into(),
            view.cron.as_str().into(),
            what(view).into(),
            view.by.to_string().into(),
            next.map_or_else(|| "never".to_owned(), |at| ago(*at, now))
                .into(),
            last(view.last.as_ref(), now),
        ]);
    }
    term.say(&table.render(term.out, term.width))?;
    Ok(0)
}

async fn next(context: &Context, args: &NextArgs) -> Result<u8, Failure> {
    let client = context.client()?;
    let all = match &args.name {
        Some(name) => vec![client.schedule(name, args.count).await?],
        None => client.schedules(args.count).await?,
    };
    let mut starts: Vec<(Timestamp, &ScheduleView)> = all
        .iter()
        .flat_map(|view| view.next.iter().map(move |at| (*at, view)))
        .collect();
    starts.sort_by(|a, b| (a.0, &a.1.name).cmp(&(b.0, &b.1.name)));
    starts.truncate(usize::try_from(args.count).unwrap_or(usize::MAX));
    let term = &context.term;
    if args.json {
        let all: Vec<Value> = starts
            .iter()
            .map(|(at, view)| json!({"at": at, "name": view.name, "scenario": view.run.scenario}))
            .collect();
        term.json(&all)?;
        return Ok(0);
    }
    let now = now();
    let mut table = Table::new(&["AT (UTC)", "IN", "NAME", "RUNS"]);
    for (at, view) in starts {
        table.row([
            moment(at).into(),
            ago(at, now).into(),
            view.name.to_string().into(),
            what(view).into(),
        ]);
    }
    term.say(&table.render(term.out, term.width))?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_read_as_they_are_written() {
        let read = |given: &[&str]| {
            let given: Vec<String> = given.iter().map(|p| (*p).to_owned()).collect();
            params(&given).map(Value::Object).map_err(|f| f.message)
        };
        let good = read(&["a=1", "b=x=y; rm -rf /"]);
        assert_eq!(good, Ok(json!({"a": "1", "b": "x=y; rm -rf /"})));
        assert_eq!(read(&["a"]), Err("`-p a` names no value".to_owned()));
        let twice = read(&["a=1", "a=2"]);
        assert_eq!(twice, Err("the parameter `a` is given twice".to_owned()));
    }
}
