//! `muster freeze` and `muster thaw`

use std::time::Duration;

use clap::Args;
use muster_protocol::api::{FreezeRequest, FreezeView, ThawRequest};
use muster_protocol::names::NodeName;
use muster_protocol::text::printable;
use tokio::time::{Instant, sleep};

use crate::Context;
use crate::failure::{Failure, NOT_ALL};
use crate::ui::time::ago;
use crate::ui::{Paint, count};
use crate::verbs::now;

/// How long connected nodes are waited for.
const WITHIN: Duration = Duration::from_secs(5);
/// How often they are looked at.
const LOOK: Duration = Duration::from_millis(200);

/// Arguments of `muster freeze`.
#[derive(Args, Debug)]
#[command(after_help = "\
Nothing new is begun on any node until `muster thaw`: runs are refused, and open ones wait.
What runs on a node goes on (`muster runs cancel` ends it), and so does what takes back what
a run did. A node that is away learns it before it executes anything.

Exit code: 1 when a connected node has not confirmed it within 5 s.")]
pub struct FreezeArgs {
    /// Why: whoever is stopped by it reads it
    #[arg(long, value_name = "TEXT", required_unless_present = "status")]
    pub why: Option<String>,
    /// Only say how it stands
    #[arg(long, conflicts_with = "why")]
    pub status: bool,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster thaw`.
#[derive(Args, Debug)]
pub struct ThawArgs {
    /// Why, for those who read it later
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub why: String,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Freezes, or says how it stands.
///
/// # Errors
/// [`Failure`].
pub async fn freeze(context: &Context, args: &FreezeArgs) -> Result<u8, Failure> {
    let client = context.client()?;
    let Some(why) = &args.why else {
        let view = client.freeze_state().await?;
        show(context, &view, args.json)?;
        return Ok(0);
    };
    let request = FreezeRequest { why: why.clone() };
    let view = client.freeze(&request).await?;
    settle(context, view, args.json).await
}

/// Ends it.
///
/// # Errors
/// [`Failure`].
pub async fn thaw(context: &Context, args: &ThawArgs) -> Result<u8, Failure> {
    let request = ThawRequest {
        why: args.why.clone(),
    };
    let view = context.client()?.thaw(&request).await?;
    settle(context, view, args.json).await
}

/// Waits until every connected node goes by it.
async fn settle(context: &Context, mut view: FreezeView, json: bool) -> Result<u8, Failure> {
    let client = context.client()?;
    let (revision, until) = (view.revision, Instant::now() + WITHIN);
    while view.missing > 0 && view.revision == revision && Instant::now() < until {
        sleep(LOOK).await;
        view = client.freeze_state().await?;
    }
    show(context, &view, json)?;
    let all = view.missing == 0 && view.unable == 0;
    Ok(if all { 0 } else { NOT_ALL })
}

fn show(context: &Context, view: &FreezeView, json: bool) -> Result<(), Failure> {
    if json {
        context.term.json(view)
    } else {
        context.term.say(&render(view, context.term.out))
    }
}

fn names(names: &[NodeName], all: u32) -> String {
    let mut shown: Vec<String> = names.iter().map(ToString::to_string).collect();
    let rest = (all as usize).saturating_sub(names.len());
    if rest > 0 {
        shown.push(format!("and {rest} more"));
    }
    shown.join(", ")
}

fn render(view: &FreezeView, paint: Paint) -> String {
    let by = view
        .by
        .as_ref()
        .map(ToString::to_string)
        .unwrap_or_default();
    let when = view.at.map(|at| ago(at, now())).unwrap_or_default();
    let why = printable(&view.why, 300);
    let colon = if why.is_empty() { "" } else { ": " };
    let mut out = match (view.frozen, view.revision) {
        (true, _) => {
            let what = paint.bad("frozen");
            format!("{what} by {by} {when}{colon}{why}\n")
        }
        (false, 0) => "not frozen; it never was\n".to_owned(),
        (false, _) => format!("not frozen; {by} ended it {when}{colon}{why}\n"),
    };
    if view.revision == 0 {
        return out;
    }
    out += &format!("{} on it", count(view.taken as usize, "connected node"));
    if view.away > 0 {
        out += &format!(
            ", {} not connected (they learn it before they execute anything)",
            view.away
        );
    }
    out.push('\n');
    if view.missing > 0 {
        let names = names(&view.missing_names, view.missing);
        out += &format!("{} {names}\n", paint.bad("no answer yet:"));
    }
    if view.unable > 0 {
        let names = names(&view.unable_names, view.unable);
        out += &format!(
            "{} {names}\n",
            paint.bad("agents that are too old to be frozen:")
        );
    }
    out
}
