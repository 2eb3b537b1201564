//! `muster route`

use clap::{Args, Subcommand};
use muster_protocol::api::RouteView;
use muster_protocol::text::printable;

use crate::Context;
use crate::failure::Failure;
use crate::ui::Paint;
use crate::ui::table::{Cell, Table, Tone};

/// Arguments of `muster route`.
#[derive(Args, Debug)]
pub struct RouteArgs {
    /// What to do.
    #[command(subcommand)]
    pub verb: RouteVerb,
}

/// What can be done with routes.
#[derive(Debug, Subcommand)]
pub enum RouteVerb {
    /// List routes, and how far each of them is
    List(ListArgs),
}

/// Arguments of `muster route list`.
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
pub async fn run(context: &Context, args: &RouteArgs) -> Result<u8, Failure> {
    let RouteVerb::List(args) = &args.verb;
    let routes = context.client()?.routes().await?.items;
    if args.json {
        context.term.json(&routes)?;
    } else if routes.is_empty() {
        context
            .term
            .note("no routes; `hooks_file` of the broker names the file with them");
    } else {
        context
            .term
            .say(&table(&routes, context.term.out, context.term.width))?;
    }
    Ok(0)
}

fn table(routes: &[RouteView], paint: Paint, columns: usize) -> String {
    let mut table = Table::new(&["NAME", "KINDS", "TO", "FORMAT", "SENT", "GIVEN UP", ""]);
    for route in routes {
        let (note, tone) = match &route.failing {
            Some(why) => (format!("failing: {}", printable(why, 200)), Tone::Bad),
            None => (String::new(), Tone::Plain),
        };
        table.row([
            Cell::from(route.name.to_string()),
            Cell::from(printable(&route.kinds.join(" "), 120)),
            Cell::from(printable(&route.to, 120)),
            Cell::from(printable(&route.format, 20)),
            Cell::from(route.sent.to_string()),
            Cell::from(route.given_up.to_string()),
            Cell::toned(note, tone),
        ]);
    }
    table.render(paint, columns)
}
