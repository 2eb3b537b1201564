//! Waiting for what is done with a machine.

use std::time::Duration;

use muster_client::{Client, Reference, Watch};
use muster_protocol::api::{Frame, RunView, VmStatus, VmView};
use muster_protocol::ids::RunId;
use muster_protocol::names::VmName;
use muster_protocol::run::RunPhase;
use muster_protocol::text::printable;

use tokio::time::{Instant, sleep};

use crate::Context;
use crate::failure::{CANCELLED, Failure, NOT_ALL};

/// How long the broker may take to draw the consequences of a run's end.
const SETTLED_WITHIN: Duration = Duration::from_secs(10);
/// How often it is asked.
const LOOK: Duration = Duration::from_millis(100);

/// Waits until a run has ended, and says of each frame what `seen` makes of
/// it. Also when nobody waits any more it goes on.
///
/// # Errors
/// [`Failure`]: it goes on, but cannot be seen.
pub(super) async fn wait(
    context: &Context,
    client: &Client,
    run: RunId,
    mut seen: impl FnMut(&Frame) -> Option<String>,
) -> Result<RunView, Failure> {
    let run = Reference::from(run);
    let mut events = client.run_events(&run);
    while let Some(event) = events.next().await {
        match event? {
            Watch::Frame(frame) => {
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
