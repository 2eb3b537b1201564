//! A node's own firewall: each verb is a run on that node, waited for.

use clap::Args;
use muster_protocol::api::{NodeFirewallAsk, RunView};
use muster_protocol::names::NodeName;
use muster_protocol::run::RunPhase;
use muster_protocol::text::printable_line;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::Context;
use crate::failure::{CANCELLED, Failure, NOT_ALL};
use crate::ui::Paint;
use crate::ui::table::{Cell, Table, Tone};
use crate::verbs::vm::wait::{Steps, failed, wait};

/// Arguments of `muster firewall show` and `muster firewall history`.
#[derive(Args, Debug)]
pub struct NodeArgs {
    /// Which node
    #[arg(value_name = "NODE")]
    pub node: NodeName,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster firewall diff`.
#[derive(Args, Debug)]
pub struct DiffArgs {
    /// Which node
    #[arg(value_name = "NODE")]
    pub node: NodeName,
    /// The run that made the change; the newest change without
    #[arg(long, value_name = "RUN")]
    pub run: Option<String>,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster firewall rollback`.
#[derive(Args, Debug)]
pub struct RollbackArgs {
    /// Which node
    #[arg(value_name = "NODE")]
    pub node: NodeName,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// A change, as a node tells it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Told {
    change: String,
    at: String,
    difference: Vec<String>,
    ended: String,
}

/// The rules in force, as a node tells them.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct InForce {
    change: Option<String>,
    lines: Vec<String>,
    cut: bool,
}

/// Asks, and waits for the end.
async fn ask(
    context: &Context,
    node: &NodeName,
    ask: &NodeFirewallAsk,
) -> Result<RunView, Failure> {
    let client = context.client()?;
    let begun = client.ask_firewall(node, ask).await?;
    let view = wait(context, &client, begun.brief.id, Steps::Quiet, |_| None).await?;
    if view.brief.state != RunPhase::Succeeded {
        return Err(failed(&view, &format!("{node}: not done")));
    }
    Ok(view)
}

/// What the node said.
fn value(view: &RunView) -> Result<Value, Failure> {
    let value = view.results.iter().find_map(|node| node.value.clone());
    value.ok_or_else(|| {
        let hint = format!("muster runs output {} --stream note", view.brief.short);
        Failure::new(NOT_ALL, "what it said is too large to be shown here").hint(hint)
    })
}

fn read<T: for<'de> Deserialize<'de>>(value: &Value) -> Result<T, Failure> {
    T::deserialize(value).map_err(|_| {
        let text = "the node's agent says it in a way that this program does not know";
        Failure::new(NOT_ALL, text).hint("look with --json, or upgrade muster")
    })
}

pub(super) async fn show(context: &Context, args: &NodeArgs) -> Result<u8, Failure> {
    let value = value(&ask(context, &args.node, &NodeFirewallAsk::Show).await?)?;
    if args.json {
        context.term.json(&value)?;
        return Ok(0);
    }
    let in_force: InForce = read(&value)?;
    context.term.say(&in_words(&args.node, &in_force))?;
    Ok(0)
}

fn in_words(node: &NodeName, in_force: &InForce) -> String {
    let Some(change) = &in_force.change else {
        return format!("muster has no rules in force on {node}\n");
    };
    let mut out = format!("{node}, since {}\n", printable_line(&of(change)));
    for line in &in_force.lines {
        out.push_str(&format!("  {}\n", printable_line(line)));
    }
    if in_force.cut {
        out.push_str("  …\n");
    }
    out
}

/// `run 2m9q` of a change's id.
fn of(change: &str) -> String {
    let run = change.split('/').next().unwrap_or_default();
    match run.parse::<muster_protocol::ids::RunId>() {
        Ok(run) => format!("run {}", run.short()),
        Err(_) => change.to_owned(),
    }
}

pub(super) async fn history(context: &Context, args: &NodeArgs) -> Result<u8, Failure> {
    let value = value(&ask(context, &args.node, &NodeFirewallAsk::History).await?)?;
    if args.json {
        context.term.json(&value)?;
        return Ok(0);
    }
    let all: Vec<Told> = read(&value)?;
    if all.is_empty() {
        let node = &args.node;
        context
            .term
            .note(&format!("muster has never changed the firewall of {node}"));
        return Ok(0);
    }
    let (paint, width) = (context.term.out, context.term.width);
    context.term.say(&table(&all, paint, width))?;
    Ok(0)
}

fn table(all: &[Told], paint: Paint, width: usize) -> String {
    let mut table = Table::new(&["WHEN", "RUN", "RULES", "ENDED"]);
    for one in all {
        let lines = |sign: char| {
            one.difference
                .iter()
                .filter(|l| l.starts_with(sign))
                .count()
        };
        let tone = match one.ended.as_str() {
            "confirmed" => Tone::Good,
            _ => Tone::Odd,
        };
        table.row([
            Cell::from(one.at.as_str()),
            Cell::from(of(&one.change).trim_start_matches("run ")),
            Cell::from(format!("+{} -{}", lines('+'), lines('-'))),
            Cell::toned(one.ended.as_str(), tone),
        ]);
    }
    table.render(paint, width)
}

pub(super) async fn diff(context: &Context, args: &DiffArgs) -> Result<u8, Failure> {
    let run = args.run.clone();
    let value = value(&ask(context, &args.node, &NodeFirewallAsk::Diff { run }).await?)?;
    if args.json {
        context.term.json(&value)?;
        return Ok(0);
    }
    let told: Told = read(&value)?;
    context
        .term
        .say(&difference(&args.node, &told, context.term.out))?;
    Ok(0)
}

fn difference(node: &NodeName, told: &Told, paint: Paint) -> String {
    let mut out = format!(
        "{node}, {}: {}\n",
        of(&told.change),
        printable_line(&told.ended)
    );
    for line in &told.difference {
        let line = printable_line(line);
        let line = match line.chars().next() {
            Some('+') => paint.good(&line),
            Some('-') => paint.bad(&line),
            _ => line,
        };
        out.push_str(&format!("  {line}\n"));
    }
    out
}

pub(super) async fn rollback(context: &Context, args: &RollbackArgs) -> Result<u8, Failure> {
    let node = &args.node;
    if !args.yes {
        let question =
            format!("Put the rules of {node} in force that were before the present ones?");
        if !context.term.ask(&question)? {
            return Err(Failure::new(CANCELLED, "nothing was done"));
        }
    }
    let view = ask(context, node, &NodeFirewallAsk::Rollback).await?;
    if args.json {
        context.term.json(&json!({ "run": view.brief.id }))?;
    } else {
        let changed = view.results.iter().filter_map(|node| node.tally);
        let text = if changed.map(|tally| tally.changed).sum::<u32>() > 0 {
            format!("{node} has its former rules, and is reached with them")
        } else {
            format!("{node} has these rules already")
        };
        context.term.line(&text)?;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> NodeName {
        "web-01".parse().expect("a name")
    }

    fn told() -> Told {
        Told {
            change: "01k9zq3v5m8n0p2q4r6s8t2m9q/0".to_owned(),
            at: "2026-11-22T20:00:00Z".to_owned(),
            difference: vec![
                "- input accept tcp 22".to_owned(),
                "+ input accept tcp 80\u{1b}[2J".to_owned(),
            ],
            ended: "rolled back after 60 s; probe from bastion-1 to tcp/22 got no answer"
                .to_owned(),
        }
    }

    #[test]
    fn a_change_is_shown_rule_by_rule() {
        insta::assert_snapshot!(difference(&node(), &told(), Paint::plain()), @r"
        web-01, run 01k9: rolled back after 60 s; probe from bastion-1 to tcp/22 got no answer
          - input accept tcp 22
          + input accept tcp 80\x1b[2J
        ");
        let table = table(&[told()], Paint::plain(), 120);
        let cells: Vec<&str> = table.split_whitespace().collect();
        let head = [
            "WHEN",
            "RUN",
            "RULES",
            "ENDED",
            "2026-11-22T20:00:00Z",
            "01k9",
            "+1",
            "-1",
        ];
        assert_eq!(cells[..8], head, "{table}");
    }

    #[test]
    fn what_is_in_force_is_said_with_the_run_that_made_it() {
        let nothing = in_words(&node(), &InForce::default());
        insta::assert_snapshot!(nothing, @"muster has no rules in force on web-01");
        let some = InForce {
            change: Some("01k9zq3v5m8n0p2q4r6s8t2m9q/0".to_owned()),
            lines: vec!["input accept tcp 22".to_owned()],
            cut: true,
        };
        insta::assert_snapshot!(in_words(&node(), &some), @r"
        web-01, since run 01k9
          input accept tcp 22
          …
        ");
    }
}
