//! `muster events`

use clap::Args;
use muster_client::{EventsQuery, Happening};
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

/// Shows what happened.
///
/// # Errors
/// [`Failure`].
pub async fn run(context: &Context, args: &EventsArgs) -> Result<u8, Failure> {
    let client = context.client()?;
    let show = |event: &ClusterEvent| {
        if args.json {
            context.term.json(event)
        } else {
            context.term.line(&render(event, context.term.out))
        }
    };
    // Looked at first: what comes while the list is made is followed.
    let mut place = match (args.follow, args.after) {
        (true, None) => {
            let newest = client.events(None, 1).await?.items;
            newest.last().map_or(0, |event| event.seq)
        }
        (_, after) => after.unwrap_or(0),
    };
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
            Err(error) if args.follow && error.kind() == Some(Kind::Conflict) => {
                context
                    .term
                    .note(&format!("{error}; going on with the newest"));
                (after, place) = (None, 0);
                continue;
            }
            page => page?,
        };
        for event in &page.items {
            place = place.max(event.seq);
            show(event)?;
        }
        if !args.follow {
            if page.items.is_empty() && !args.json {
                context.term.note("no events");
            }
            return Ok(0);
        }
        // There are more at once; with a filter, perhaps none that fits.
        match page.next.as_deref().and_then(|next| next.parse().ok()) {
            Some(next) if after.is_some() && !context.term.closed() => {
                place = place.max(next);
                after = Some(place);
            }
            _ => break,
        }
    }
    let mut events = client.follow_events(Some(place), &args.kinds, args.subject.as_deref());
    while !context.term.closed() {
        match events.next().await {
            None => break,
            Some(Err(error)) => return Err(error.into()),
            Some(Ok(Happening::Event(event))) => show(&event)?,
            Some(Ok(Happening::Renumbered)) => context.term.note(
                "the store went back in time, and events are numbered anew; going on with the newest",
            ),
            Some(Ok(Happening::Reconnecting { why, attempt })) => {
                if attempt == 2 {
                    context.term.note(&format!("{why}; connecting again…"));
                }
            }
        }
    }
    Ok(0)
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
