//! Waiting for what is done with a machine.

use std::time::Duration;

use muster_client::{Client, Reference, RunEvents, Watch};
use muster_protocol::api::{Frame, RunView, VmStatus, VmView};
use muster_protocol::ids::RunId;
use muster_protocol::names::VmName;
use muster_protocol::note::{Note, Read, Reader};
use muster_protocol::run::{RunPhase, Stream};
use muster_protocol::text::printable;

use tokio::time::{Instant, sleep};

use crate::Context;
use crate::failure::{CANCELLED, Failure, NOT_ALL};

/// How long the broker may take to draw the consequences of a run's end.
const SETTLED_WITHIN: Duration = Duration::from_secs(10);
/// How often it is asked.
const LOOK: Duration = Duration::from_millis(100);

/// A step is looked for so often: it is told of before it is there.
const STEP_TRIES: u32 = 10;

/// What is said of the steps of a run that is waited for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::verbs) enum Steps {
    /// Nothing.
    Quiet,
    /// The lines that they log while they are under way.
    Told,
}

/// A step that is under way.
struct Open {
    run: RunId,
    events: RunEvents,
    notes: Reader,
    tries: u32,
}

impl Open {
    fn new(client: &Client, run: RunId) -> Self {
        Self {
            run,
            events: client.run_events(&Reference::from(run)),
            notes: Reader::default(),
            tries: 0,
        }
    }

    /// What it logs next; none when it says nothing more.
    async fn next(&mut self, client: &Client) -> Option<Vec<String>> {
        match self.events.next().await? {
            Ok(Watch::Frame(Frame::Output {
                stream: Stream::Note,
                data,
                ..
            })) => {
                let read = self.notes.push(&data.bytes()?);
                let lines = read.into_iter().filter_map(|read| match read {
                    Read::Note(Note::Log { text, .. }) => Some(printable(&text, 200)),
                    _ => None,
                });
                Some(lines.collect())
            }
            Ok(_) => Some(Vec::new()),
            // What it says is told for comfort: the run is waited for without.
            Err(_) if self.tries >= STEP_TRIES => None,
            Err(_) => {
                self.tries += 1;
                sleep(LOOK).await;
                self.events = client.run_events(&Reference::from(self.run));
                self.notes = Reader::default();
                Some(Vec::new())
            }
        }
    }
}

/// Waits until a run has ended, and says of each frame what `seen` makes of
/// it. Also when nobody waits any more it goes on.
///
/// # Errors
/// [`Failure`]: it goes on, but cannot be seen.
pub(in crate::verbs) async fn wait(
    context: &Context,
    client: &Client,
    run: RunId,
    steps: Steps,
    mut seen: impl FnMut(&Frame) -> Option<String>,
) -> Result<RunView, Failure> {
    let run = Reference::from(run);
    let mut events = client.run_events(&run);
    let mut open: Option<Open> = None;
    loop {
        let said = async {
            match &mut open {
                Some(step) => step.next(client).await,
                None => std::future::pending().await,
            }
        };
        let event = tokio::select! {
            event = events.next() => event,
            said = said => {
                match said {
                    Some(lines) => lines.iter().for_each(|line| context.term.note(&format!("  {line}"))),
                    None => open = None,
                }
                continue;
            }
        };
        match event {
            None => break,
            Some(event) => match event? {
                Watch::Frame(frame) => {
                    match &frame {
                        Frame::StepBegan { step, .. } if steps == Steps::Told => {
                            open = Some(Open::new(client, *step));
                        }
                        Frame::StepEnded { step, .. }
                            if open.as_ref().is_some_and(|open| open.run == *step) =>
                        {
                            open = None;
                        }
                        _ => {}
                    }
                    if let Some(line) = seen(&frame) {
                        context.term.note(&line);
                    }
                }
                Watch::Reconnecting { why, attempt: 1 } => {
                    let why = printable(&why, 200);
                    context
                        .term
                        .note(&format!("the broker is away ({why}); waiting"));
                }
                Watch::Reconnecting { .. } => {}
            },
        }
    }
    Ok(client.run(&run).await?)
}

/// The machine, once the broker has drawn the consequences of its run's end:
/// a moment later at most.
///
/// # Errors
/// [`Failure`].
pub(super) async fn settled(client: &Client, name: &VmName) -> Result<VmView, Failure> {
    let begun = Instant::now();
    loop {
        let vm = client.vm(name).await?;
        let open = matches!(vm.status, VmStatus::Creating | VmStatus::Destroying);
        if !open || begun.elapsed() > SETTLED_WITHIN {
            return Ok(vm);
        }
        sleep(LOOK).await;
    }
}

/// Why a run did not end well, with its exit code.
pub(super) fn failed(view: &RunView, what: &str) -> Failure {
    let state = view.brief.state;
    let code = if state == RunPhase::Cancelled {
        CANCELLED
    } else {
        NOT_ALL
    };
    let mut lines: Vec<String> = Vec::new();
    if let Some(main) = &view.main {
        lines.extend(main.error.clone());
    }
    for node in &view.results {
        if let Some(reason) = &node.reason {
            lines.push(format!("{}: {}", node.node, printable(reason, 2_000)));
        }
    }
    let mut failure = Failure::new(code, format!("{what}: its run {}", ended(state))).hint(
        format!("muster runs show {} has all of it", view.brief.short),
    );
    if !lines.is_empty() {
        failure = failure.detail(lines.join("\n"));
    }
    failure
}

fn ended(state: RunPhase) -> &'static str {
    match state {
        RunPhase::Cancelled => "was cancelled",
        RunPhase::UndoFailed => "failed, and what it did could not be taken back",
        RunPhase::Diverged => "diverged",
        RunPhase::Failed => "failed",
        _ => "has not ended",
    }
}
