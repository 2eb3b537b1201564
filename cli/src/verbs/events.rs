//! `muster events`

use std::time::Duration;

use clap::Args;
use muster_client::EventsQuery;
use muster_protocol::api::ClusterEvent;
use muster_protocol::problem::Kind;
use muster_protocol::text::printable;
use muster_protocol::units::{Span, Timestamp};

use crate::Context;
use crate::failure::Failure;
use crate::ui::time::moment;
use crate::ui::{Paint, pad};

/// Arguments of `muster events`.
#[derive(Args, Debug)]
pub struct EventsArgs {
    /// Those after this position, instead of the newest
    #[arg(long, value_name = "SEQ")]
    pub after: Option<u64>,
    /// Only these kinds: alarm.* or git.push; may be given again
    #[arg(long = "kind", short = 'k', value_name = "KIND")]
    pub kinds: Vec<String>,
    /// Only what is about this: web-*
    #[arg(long, value_name = "SUBJECT")]
    pub subject: Option<String>,
    /// Only what happened within this time, or since that moment: 2h, 2026-11-21T10:00:00Z
    #[arg(long, value_name = "TIME", value_parser = since)]
    pub since: Option<Timestamp>,
    /// How many at most
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub limit: u32,
    /// Go on, and show each as it comes
    #[arg(long, short = 'f')]
    pub follow: bool,
    /// One JSON object a line
    #[arg(long)]
    pub json: bool,
}

/// How often to look for new ones.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Shows what happened.
///
/// # Errors
/// [`Failure`].
pub async fn run(context: &Context, args: &EventsArgs) -> Result<u8, Failure> {
    let client = context.client()?;
    let mut after = args.after;
    loop {
        let asked = EventsQuery {
            after,
            limit: args.limit,
            kinds: args.kinds.clone(),
            subject: args.subject.clone(),
            since: args.since,
        };
        let page = match client.events_of(&asked).await {
            // It was followed over a time that the store has lost.
            Err(error) if args.follow && error.kind() == Some(Kind::Conflict) => {
                context
                    .term
                    .note(&format!("{error}; going on with the newest"));
                after = None;
                continue;
            }
            page => page?,
        };
        for event in &page.items {
            after = Some(after.unwrap_or(0).max(event.seq));
            if args.json {
                context.term.json(event)?;
            } else {
                context.term.line(&render(event, context.term.out))?;
            }
        }
        if !args.follow {
            if page.items.is_empty() && !args.json {
                context.term.note("no events");
            }
            return Ok(0);
        }
        if context.term.closed() {
            return Ok(0);
        }
        if let Some(next) = page.next.as_deref().and_then(|next| next.parse().ok()) {
            // There are more at once; with a filter, perhaps none that fits.
            after = Some(after.unwrap_or(0).max(next));
        } else {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// `2h`, or a moment.
fn since(text: &str) -> Result<Timestamp, String> {
    if let Ok(span) = text.parse::<Span>() {
        return crate::verbs::now()
            .checked_sub(span.get())
            .map_err(|e| e.to_string());
    }
    text.parse()
        .map_err(|_| "write it like 2h, or 2026-11-21T10:00:00Z".to_owned())
}

fn render(event: &ClusterEvent, paint: Paint) -> String {
    let kind = pad(&printable(&event.kind, 40), 22);
    let kind = if event.kind.starts_with("alarm.") {
        paint.bad(&kind)
    } else {
        kind
    };
    format!(
        "{}  {kind}  {}  {}",
        paint.dim(&moment(event.at)),
        pad(&printable(&event.subject, 80), 16),
        printable(&event.text, 400)
    )
}
