//! `muster trigger`

use clap::{Args, Subcommand};
use muster_protocol::api::TriggerView;
use muster_protocol::text::printable;

use crate::Context;
use crate::failure::Failure;
use crate::ui::Paint;
use crate::ui::table::{Cell, Table, Tone};
use crate::ui::time::ago;
use crate::verbs::now;

/// Arguments of `muster trigger`.
#[derive(Args, Debug)]
pub struct TriggerArgs {
    /// What to do.
    #[command(subcommand)]
    pub verb: TriggerVerb,
}

/// What can be done with triggers.
#[derive(Debug, Subcommand)]
pub enum TriggerVerb {
    /// List triggers, and what came of the last event for each
    List(ListArgs),
}

/// Arguments of `muster trigger list`.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// One JSON array
    #[arg(long)]
    pub json: bool,
}

/// Does what was asked for.
///
/// # Errors
/// [`Failure`].
pub async fn run(context: &Context, args: &TriggerArgs) -> Result<u8, Failure> {
    let TriggerVerb::List(args) = &args.verb;
    let triggers = context.client()?.triggers().await?.items;
    if args.json {
        context.term.json(&triggers)?;
    } else if triggers.is_empty() {
        context
            .term
            .note("no triggers; `hooks_file` of the broker names the file with them");
    } else {
        context
            .term
            .say(&table(&triggers, context.term.out, context.term.width))?;
    }
    Ok(0)
}

fn table(triggers: &[TriggerView], paint: Paint, columns: usize) -> String {
    let mut table = Table::new(&["NAME", "WHEN", "RUNS", "AS", "RATE", "LAST"]);
    for trigger in triggers {
        let when: Vec<String> = trigger
            .when
            .iter()
            .map(|(name, value)| {
                let value = value
                    .as_str()
                    .map_or_else(|| value.to_string(), str::to_owned);
                format!("{}={}", printable(name, 60), printable(&value, 80))
            })
            .collect();
        let on = trigger
            .on
            .as_deref()
            .map(|on| format!(" on {}", printable(on, 60)))
            .unwrap_or_default();
        let last = match &trigger.last {
            None => Cell::from("never"),
            Some(last) => {
                let at = ago(last.at, now());
                match (&last.run, &last.problem) {
                    (Some(run), _) => Cell::from(format!("{at}: run {}", run.short())),
                    (None, Some(why)) => {
                        Cell::toned(format!("{at}: {}", printable(why, 200)), Tone::Bad)
                    }
                    (None, None) => Cell::from(at),
                }
            }
        };
        table.row([
            Cell::from(trigger.name.to_string()),
            Cell::from(when.join(" ")),
            Cell::from(format!("{}{on}", trigger.scenario)),
            Cell::from(trigger.principal.to_string()),
            Cell::from(printable(&trigger.rate, 20)),
            last,
        ]);
    }
    table.render(paint, columns)
}
