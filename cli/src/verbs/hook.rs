//! `muster hook`

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use muster_protocol::api::{HookTest, HookTested, HookView, TriggerTested};
use muster_protocol::names::HookName;
use muster_protocol::text::printable;

use crate::Context;
use crate::failure::{Failure, NOT_ALL};
use crate::ui::Paint;
use crate::ui::table::{Cell, Table, Tone};
use crate::ui::time::ago;
use crate::verbs::now;

/// Largest payload that is read from a file, in bytes.
const MAX_FILE: u64 = 25 << 20;

/// Arguments of `muster hook`.
#[derive(Args, Debug)]
pub struct HookArgs {
    /// What to do.
    #[command(subcommand)]
    pub verb: HookVerb,
}

/// What can be done with webhooks.
#[derive(Debug, Subcommand)]
pub enum HookVerb {
    /// List webhooks, and what came of their deliveries
    List(ListArgs),
    /// What a delivery would become, and what triggers would do; nothing is done
    Test(TestArgs),
}

/// Arguments of `muster hook list`.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// One JSON array
    #[arg(long)]
    pub json: bool,
}

const AFTER: &str = "\
Ends with 0 when a trigger would start a run, else with 1.

Examples:
  muster hook test github --file push.json --header 'X-GitHub-Event: push'
  muster hook test alerts --file -";

/// Arguments of `muster hook test`.
#[derive(Args, Debug)]
#[command(after_help = AFTER)]
pub struct TestArgs {
    /// The webhook
    #[arg(value_name = "NAME")]
    pub name: HookName,
    /// The body, as the product sends it; - for standard input
    #[arg(long, value_name = "FILE")]
    pub file: PathBuf,
    /// A header that says what it is; may be given again
    #[arg(long = "header", short = 'H', value_name = "NAME: VALUE", value_parser = header)]
    pub headers: Vec<(String, String)>,
    /// One JSON array: each event that it becomes
    #[arg(long)]
    pub json: bool,
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text
        .split_once(':')
        .ok_or("write it like 'X-GitHub-Event: push'")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

/// Does what was asked for.
///
/// # Errors
/// [`Failure`].
pub async fn run(context: &Context, args: &HookArgs) -> Result<u8, Failure> {
    match &args.verb {
        HookVerb::List(args) => list(context, args).await,
        HookVerb::Test(args) => test(context, args).await,
    }
}

async fn list(context: &Context, args: &ListArgs) -> Result<u8, Failure> {
    let hooks = context.client()?.hooks().await?.items;
    if args.json {
        context.term.json(&hooks)?;
        return Ok(0);
    }
    if hooks.is_empty() {
        context
            .term
            .note("no webhooks; `hooks_file` of the broker names the file with them");
        return Ok(0);
    }
    context
        .term
        .say(&table(&hooks, context.term.out, context.term.width))?;
    Ok(0)
}

fn table(hooks: &[HookView], paint: Paint, columns: usize) -> String {
    let mut table = Table::new(&[
        "NAME", "KIND", "RATE", "TAKEN", "AGAIN", "REFUSED", "LAST", "",
    ]);
    for hook in hooks {
        let refused = hook.refused + hook.limited;
        let tone = if refused > 0 { Tone::Odd } else { Tone::Plain };
        let mut notes = Vec::new();
        if hook.secrets > 1 {
            notes.push("takes its previous secret, too".to_owned());
        }
        if let Some(why) = &hook.last_refusal {
            notes.push(format!("last refused: {}", printable(why, 200)));
        }
        table.row([
            Cell::from(hook.name.to_string()),
            Cell::from(hook.kind.to_string()),
            Cell::from(printable(&hook.rate, 20)),
            Cell::from(hook.taken.to_string()),
            Cell::from(hook.repeated.to_string()),
            Cell::toned(refused.to_string(), tone),
            Cell::from(hook.last.map_or("never".to_owned(), |at| ago(at, now()))),
            Cell::from(notes.join("; ")),
        ]);
    }
    table.render(paint, columns)
}

fn body(args: &TestArgs) -> Result<String, Failure> {
    let fail = |why: String| Failure::usage(format!("cannot read {}: {why}", args.file.display()));
    let mut text = String::new();
    if args.file.as_os_str() == "-" {
        std::io::stdin()
            .take(MAX_FILE)
            .read_to_string(&mut text)
            .map_err(|e| fail(e.to_string()))?;
    } else {
        let file = std::fs::File::open(&args.file).map_err(|e| fail(e.to_string()))?;
        file.take(MAX_FILE)
            .read_to_string(&mut text)
            .map_err(|e| fail(e.to_string()))?;
    }
    Ok(text)
}

async fn test(context: &Context, args: &TestArgs) -> Result<u8, Failure> {
    let headers: BTreeMap<String, String> = args.headers.iter().cloned().collect();
    let test = HookTest {
        headers,
        body: body(args)?,
    };
    let tested = context.client()?.test_hook(&args.name, &test).await?.items;
    let runs = tested
        .iter()
        .flat_map(|tested| &tested.triggers)
        .any(TriggerTested::would_run);
    if args.json {
        context.term.json(&tested)?;
    } else {
        for one in &tested {
            context.term.say(&shown(one, context.term.out))?;
        }
        context.term.note("nothing was done");
    }
    Ok(if runs { 0 } else { NOT_ALL })
}

/// What would come of it, for people.
fn shown(tested: &HookTested, paint: Paint) -> String {
    let mut text = String::new();
    let mut line = |line: String| {
        text.push_str(&line);
        text.push('\n');
    };
    if let Some(why) = &tested.ignored {
        line(format!("no event: {}", printable(why, 200)));
    }
    if let Some(event) = &tested.event {
        line(format!(
            "{}  {}  {}",
            paint.strong(&printable(&event.kind, 60)),
            printable(&event.subject, 80),
            printable(&event.text, 400)
        ));
        for (name, value) in &event.fields {
            if matches!(name.as_str(), "payload" | "commits" | "alarms") {
                continue;
            }
            let value = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned);
            line(paint.dim(&format!(
                "  data.{}  {}",
                printable(name, 60),
                printable(&value, 120)
            )));
        }
        if tested.triggers.is_empty() {
            line("there are no triggers".to_owned());
        }
    }
    for trigger in &tested.triggers {
        line(verdict(trigger, paint));
    }
    text
}

fn verdict(trigger: &TriggerTested, paint: Paint) -> String {
    let name = &trigger.name;
    if let Some(why) = &trigger.unfit {
        return paint.dim(&format!(
            "trigger {name}: not for it: {}",
            printable(why, 200)
        ));
    }
    let params: Vec<String> = trigger
        .params
        .iter()
        .map(|(name, value)| {
            let value = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned);
            format!("{}={}", printable(name, 60), printable(&value, 120))
        })
        .collect();
    let on = match (trigger.nodes, trigger.on.as_deref()) {
        (nodes, Some(on)) => {
            let on = printable(on, 120);
            nodes.map_or(format!("on {on}"), |n| format!("on {} ({on})", nodes_of(n)))
        }
        (Some(nodes), None) => format!("on {}", nodes_of(nodes)),
        (None, None) => String::new(),
    };
    let parts = [
        trigger.scenario.to_string(),
        params.join(" "),
        on,
        format!("as {}", trigger.principal),
    ];
    let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    let what = parts.join("  ");
    let mut text = match &trigger.problem {
        None => format!("trigger {name}: {} {what}", paint.good("would run")),
        Some(why) => format!(
            "trigger {name}: {} {what}\n  {}",
            paint.bad("would be refused"),
            printable(why, 600)
        ),
    };
    // What the policy denies says so itself.
    if trigger.problem.is_some() && trigger.allowed == Some(true) {
        text.push_str("\n  the policy allows it");
    }
    for wait in &trigger.waits {
        text.push_str(&format!("\n  {}", printable(wait, 400)));
    }
    text
}

fn nodes_of(count: u32) -> String {
    match count {
        1 => "1 node".to_owned(),
        n => format!("{n} nodes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_would_happen_is_said() {
        let tested: HookTested = serde_json::from_value(json!({
            "event": {
                "specversion": "1.0", "id": "1", "source": "/muster/hooks/github",
                "type": "git.push", "subject": "acme/webapp", "time": "2026-11-21T10:00:00Z",
                "data": { "text": "bruno pushed 1 to main\u{1b}[2J", "ref": "refs/heads/main", "payload": {} }
            },
            "triggers": [
                { "name": "deploy", "scenario": "deploy", "principal": "trigger:deploy", "params": { "commit": "4f1e" }, "on": "role=web", "nodes": 3, "allowed": true, "waits": ["each run waits for an approval"] },
                { "name": "nightly", "scenario": "x", "principal": "p", "unfit": "its kind is git.push, not build.*" },
                { "name": "none", "scenario": "x", "principal": "p", "on": "role=x", "problem": "no node matches" },
                { "name": "stopped", "scenario": "x", "principal": "p", "nodes": 1, "allowed": true, "problem": "all is frozen" },
                { "name": "other", "scenario": "x", "principal": "p", "nodes": 2, "allowed": false, "problem": "p may not run anything" }
            ]
        }))
        .unwrap();
        insta::assert_snapshot!(shown(&tested, Paint::plain()), @r"
        git.push  acme/webapp  bruno pushed 1 to main\x1b[2J
          data.ref  refs/heads/main
        trigger deploy: would run deploy  commit=4f1e  on 3 nodes (role=web)  as trigger:deploy
          each run waits for an approval
        trigger nightly: not for it: its kind is git.push, not build.*
        trigger none: would be refused x  on role=x  as p
          no node matches
        trigger stopped: would be refused x  on 1 node  as p
          all is frozen
          the policy allows it
        trigger other: would be refused x  on 2 nodes  as p
          p may not run anything
        ");
    }

    #[test]
    fn a_header_is_written_as_in_http() {
        assert_eq!(
            header("X-GitHub-Event: push"),
            Ok(("X-GitHub-Event".to_owned(), "push".to_owned()))
        );
        assert!(header("push").is_err());
    }
}
