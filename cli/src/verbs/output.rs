//! `muster runs output`: what nodes printed, and what their steps said, in
//! order and whole.

use std::collections::BTreeMap;

use clap::{Args, ValueEnum};
use muster_client::{Client, Reference, Watch};
use muster_protocol::api::Frame;
use muster_protocol::names::NodeName;
use muster_protocol::note::{Read, Reader};
use muster_protocol::run::{Data, Stream};
use serde_json::json;

use crate::Context;
use crate::failure::{Failure, UNREACHABLE};
use crate::ui::output::{Assembly, Line};
use crate::ui::report::text;

/// Arguments of `muster runs output`.
#[derive(Args, Debug)]
pub struct OutputArgs {
    /// The run: its id or the beginning of it
    #[arg(value_name = "RUN")]
    pub run: String,
    /// Only of this node; may be repeated
    #[arg(long, value_name = "NAME")]
    pub node: Vec<NodeName>,
    /// Only this stream; may be repeated
    #[arg(long, value_name = "STREAM", value_enum)]
    pub stream: Vec<Which>,
    /// One JSON object a piece of output, and one a note
    #[arg(long)]
    pub json: bool,
}

/// A stream of output.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Which {
    /// What programs wrote to standard output
    Stdout,
    /// What programs wrote to standard error
    Stderr,
    /// What the steps said of themselves: changes, log lines, events
    Note,
}

impl Which {
    fn is(self, stream: Stream) -> bool {
        let own = match self {
            Self::Stdout => Stream::Stdout,
            Self::Stderr => Stream::Stderr,
            Self::Note => Stream::Note,
        };
        own == stream
    }
}

/// Shows it; an open run is followed to its end.
///
/// # Errors
/// [`Failure`].
pub async fn output(context: &Context, client: &Client, args: &OutputArgs) -> Result<u8, Failure> {
    let run: Reference = args.run.parse()?;
    let view = client.run(&run).await?;
    if view.output_removed.is_some() {
        context
            .term
            .note("the output of this run is not kept any more: see `retention.output`");
    }
    let mut events = client.run_events(&Reference::from(view.brief.id));
    let mut nodes: BTreeMap<NodeName, Shown> = BTreeMap::new();
    while let Some(event) = events.next().await {
        match event? {
            Watch::Frame(Frame::Output {
                node, stream, data, ..
            }) => {
                let wanted = (args.node.is_empty() || args.node.contains(&node))
                    && (args.stream.is_empty() || args.stream.iter().any(|w| w.is(stream)));
                if wanted {
                    let shown = nodes.entry(node.clone()).or_default();
                    if args.json {
                        shown.json(context, &node, stream, &data)?;
                    } else {
                        shown.assembly.push(stream, &data);
                        let lines = shown.assembly.drain();
                        say(context, &node, lines, args.node.len() == 1)?;
                    }
                }
            }
            Watch::Frame(Frame::RunFinished { .. }) => {
                for (node, shown) in nodes {
                    let lines = shown.assembly.finish();
                    say(context, &node, lines, args.node.len() == 1)?;
                }
                return Ok(0);
            }
            Watch::Frame(_) | Watch::Reconnecting { .. } => {}
        }
    }
    Err(Failure::new(
        UNREACHABLE,
        "the events of the run ended early; what is above is not all",
    ))
}

/// What is known of a node's output.
#[derive(Default)]
struct Shown {
    assembly: Assembly,
    notes: Reader,
}

impl Shown {
    /// A note is an object of its own; what a program wrote is as it came.
    fn json(
        &mut self,
        context: &Context,
        node: &NodeName,
        stream: Stream,
        data: &Data,
    ) -> Result<(), Failure> {
        if stream != Stream::Note {
            return context
                .term
                .json(&json!({"node": node, "stream": stream, "data": data}));
        }
        for read in self.notes.push(&data.bytes().unwrap_or_default()) {
            let line = match read {
                Read::Note(note) => json!({"node": node, "stream": stream, "note": note}),
                Read::Other(text) => json!({"node": node, "stream": stream, "data": text}),
            };
            context.term.json(&line)?;
        }
        Ok(())
    }
}

fn say(context: &Context, node: &NodeName, lines: Vec<Line>, alone: bool) -> Result<(), Failure> {
    let mut out = String::new();
    for line in &lines {
        if !alone {
            out.push_str(&context.term.out.strong(node.as_str()));
            out.push_str("  ");
        }
        out.push_str(&text(line, context.term.out));
        out.push('\n');
    }
    context.term.say(&out)
}
