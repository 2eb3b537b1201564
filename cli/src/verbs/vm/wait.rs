//! Waiting for what is done with a machine.

use std::time::Duration;

use muster_client::{Client, ClientError, Reference, RunEvents, Watch};
use muster_protocol::api::{Frame, RunView, VmStatus, VmView};
use muster_protocol::ids::RunId;
use muster_protocol::names::VmName;
use muster_protocol::note::{Note, Read, Reader};
use muster_protocol::problem::Kind;
use muster_protocol::run::{RunPhase, Stream};
use muster_protocol::text::printable;

use tokio::time::{Instant, sleep};

use super::list::word;
use crate::Context;
use crate::failure::{CANCELLED, Failure, NOT_ALL};

/// How long the broker may take to draw the consequences of a run's end.
pub(super) const SETTLED_WITHIN: Duration = Duration::from_secs(10);
/// How often it is asked.
pub(super) const LOOK: Duration = Duration::from_millis(100);

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

/// What was asked for; none where there is no such thing.
///
/// # Errors
/// [`Failure`]: it cannot be said whether there is.
pub(super) fn found<T>(answer: Result<T, ClientError>) -> Result<Option<T>, Failure> {
    match answer {
        Ok(view) => Ok(Some(view)),
        Err(ClientError::Problem(problem)) if problem.kind == Kind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Why it cannot be said that a machine is so, although its run ended well:
/// somebody did something else with it, or the broker is not done with it.
pub(super) fn as_wanted(vm: &VmView, wanted: &[VmStatus], done: &str) -> Result<(), Failure> {
    if wanted.contains(&vm.status) {
        return Ok(());
    }
    let open = matches!(vm.status, VmStatus::Creating | VmStatus::Destroying);
    let still = if open { "still " } else { "" };
    let text = format!("{} {done}, and is {still}{}", vm.name, word(vm.status).0);
    let mut failure = Failure::new(NOT_ALL, text).hint(format!("muster vm show {}", vm.name));
    if let Some(why) = &vm.why {
        failure = failure.detail(printable(why, 2_000));
    }
    Err(failure)
}

/// Why a run did not end well, with its exit code.
pub(in crate::verbs) fn failed(view: &RunView, what: &str) -> Failure {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_what_is() {
        let vm = |status: &str| -> VmView {
            serde_json::from_value(serde_json::json!({
                "name": "web-03", "id": "0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102", "status": status,
                "should_run": true, "hypervisor": "hv-01", "cpus": 2, "memory": 2147483648u64,
                "disk": 10737418240u64, "image": "debian-12", "why": "it hung\u{1b}[2J",
                "image_sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
                "nics": [], "addresses": [], "roles": [], "labels": {}, "groups": [], "agent": true,
                "ready": "agent", "autostart": true, "protected": false, "by": "ana",
                "made": "2026-11-22T07:00:00Z",
            }))
            .expect("a machine")
        };
        let gone = [VmStatus::Deleted];
        assert_eq!(as_wanted(&vm("deleted"), &gone, "was destroyed"), Ok(()));
        let said = |status, wanted: &[VmStatus], done| {
            let failure = as_wanted(&vm(status), wanted, done).expect_err("it is otherwise");
            assert_eq!(failure.code, NOT_ALL);
            format!(
                "{} ({})",
                failure.message,
                failure.detail.unwrap_or_default()
            )
        };
        insta::assert_snapshot!(
            said("destroying", &gone, "was destroyed"),
            @r"web-03 was destroyed, and is still destroying (it hung\x1b[2J)"
        );
        insta::assert_snapshot!(
            said("crashed", &[VmStatus::Running], "was made"),
            @r"web-03 was made, and is crashed (it hung\x1b[2J)"
        );
    }
}
