//! Watching a run to its end.

use std::time::{Duration, Instant};

use muster_client::{Client, ClientError, Reference, Watch};
use muster_protocol::api::{Frame, RunNode, RunView};
use muster_protocol::ids::RunId;
use muster_protocol::text::printable_line;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use super::run::Dedupe;
use crate::Context;
use crate::failure::{Failure, NOT_ALL};
use crate::ui::book::Book;
use crate::ui::live::Live;
use crate::ui::output::Line;
use crate::ui::report::{Onward, Style, body, exit_code, foot, groups, head, text};
use crate::ui::steps;

/// How a run is shown.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// One JSON object a line.
    pub json: bool,
    /// All lines of those that did not succeed.
    pub full: bool,
    /// Which nodes are shown together.
    pub dedupe: Dedupe,
    /// When it was asked for; `None` to take the times of the broker.
    pub since: Option<Instant>,
    /// Show what happened, do not say how to leave.
    pub replay: bool,
}

impl Look {
    pub(crate) fn style(self, context: &Context) -> Style {
        Style {
            paint: context.term.out,
            width: context.term.width,
            full: self.full,
        }
    }
}

/// How often the display is drawn.
const DRAW_EVERY: Duration = Duration::from_millis(100);
/// How long it may take to read what a step has said.
const STEP_WITHIN: Duration = Duration::from_secs(15);
/// Events that wait to be shown.
const AHEAD: usize = 256;

/// Follows a run from its first event to its last, and shows it.
///
/// # Errors
/// [`Failure`]: the run goes on, but cannot be seen.
pub async fn watch(
    context: &Context,
    client: &Client,
    view: &RunView,
    look: Look,
) -> Result<u8, Failure> {
    let run = Reference::from(view.brief.id);
    let mut events = client.run_events(&run);
    let (to, mut frames) = mpsc::channel::<Result<Watch, ClientError>>(AHEAD);
    let reader = tokio::spawn(async move {
        while let Some(event) = events.next().await {
            if to.send(event).await.is_err() {
                return;
            }
        }
    });
    let mut book = Book::from_view(view);
    book.apart = look.dedupe == Dedupe::None;
    let mut watcher = Watcher {
        context,
        client,
        run,
        book,
        live: if look.replay {
            Live::Silent
        } else {
            Live::new(&context.term, look.json)
        },
        look,
        alone: !look.json && !look.replay && view.brief.nodes == 1,
        streamed: Streamed::default(),
        interrupts: 0,
    };
    if look.replay {
        // Asked to show it: its head is part of the answer.
        if !look.json {
            context.term.say(&head(&watcher.book, context.term.out))?;
            if let Some(main) = &view.main {
                let tree = steps::tree(main, &view.brief.short, context.term.out);
                context.term.say(&tree)?;
            }
        }
    } else if !look.json {
        let text = head(&watcher.book, context.term.err);
        context.term.note(text.trim_end());
    }
    let code = watcher.follow(&mut frames).await;
    watcher.live.clear();
    reader.abort();
    code
}

struct Watcher<'a> {
    context: &'a Context,
    client: &'a Client,
    run: Reference,
    book: Book,
    live: Live,
    look: Look,
    /// A run on one node is shown as it comes: there is nothing to group.
    alone: bool,
    streamed: Streamed,
    interrupts: u32,
}

/// What was printed of a run on one node.
#[derive(Default)]
struct Streamed {
    /// A first line waits: if it stays the only one it stands beside the name.
    held: Option<String>,
    lines: usize,
}

impl Watcher<'_> {
    async fn follow(
        &mut self,
        frames: &mut mpsc::Receiver<Result<Watch, ClientError>>,
    ) -> Result<u8, Failure> {
        let mut tick = tokio::time::interval(DRAW_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut keys = Keys::default();
        let mut interrupts = signal(SignalKind::interrupt())?;
        loop {
            tokio::select! {
                biased;
                _ = interrupts.recv() => {
                    if let Some(code) = self.interrupted(&mut keys).await? {
                        return Ok(code);
                    }
                }
                () = keys.enter() => {
                    self.live.clear();
                    let paint = self.context.term.err;
                    self.context.term.note(&paint.dim(&format!("left running: muster runs watch {}", self.book.short)));
                    return Ok(NOT_ALL);
                }
                event = frames.recv() => match event {
                    Some(Ok(Watch::Frame(frame))) => {
                        if let Some(code) = self.frame(&frame)? {
                            return Ok(code);
                        }
                        if let Frame::StepEnded { step, name, .. } = &frame
                            && !self.look.json
                            && !self.look.replay
                        {
                            self.step(*step, name).await?;
                        }
                    }
                    Some(Ok(Watch::Reconnecting { why, attempt })) => {
                        if attempt == 2 {
                            self.live.note(&self.context.term, &format!("{why}; the run goes on, connecting again…"));
                        }
                    }
                    Some(Err(error)) => return Err(error.into()),
                    None => return Err(Failure::new(crate::failure::UNREACHABLE, "the events of the run ended early")
                        .hint(format!("the run goes on: muster runs watch {}", self.book.short))),
                },
                _ = tick.tick() => self.live.draw(&self.book, &self.context.term),
            }
        }
    }

    /// Shows what the nodes of a step have said, changed or would change, if
    /// anything: the step is a run of its own.
    async fn step(&mut self, run: RunId, name: &str) -> Result<(), Failure> {
        let read = tokio::time::timeout(STEP_WITHIN, said_in(self.client, run));
        let Ok(Ok(mut book)) = read.await else {
            let short = run.short();
            let text = format!("what the nodes said: muster runs show {short}");
            self.live.note(&self.context.term, &text);
            return Ok(());
        };
        book.apart = self.look.dedupe == Dedupe::None;
        if groups(&book).iter().all(|group| group.output.is_empty()) {
            return Ok(());
        }
        self.live.clear();
        let style = self.look.style(self.context);
        let head = style.paint.strong(&printable_line(name));
        let body = body(&book, style);
        let lines: Vec<String> = body.lines().map(|line| format!("  {line}\n")).collect();
        self.context
            .term
            .say(&format!("{head}\n{}", lines.concat()))
    }

    fn frame(&mut self, frame: &Frame) -> Result<Option<u8>, Failure> {
        let term = &self.context.term;
        if self.look.json {
            term.json(frame)?;
        }
        if let Frame::RunBeginsAgain { reason, .. } = frame {
            self.live.note(term, &printable_line(reason));
        }
        // What was streamed is not kept a second time.
        if self.alone && !matches!(frame, Frame::Outcome { .. } | Frame::RunFinished { .. }) {
            self.book.apply(frame);
            if let Frame::Output { node, .. } = frame {
                self.stream(node.as_str(), None)?;
            }
        } else {
            if let (true, Frame::Outcome { result, .. }) = (self.alone, frame) {
                self.stream(result.node.as_str(), Some(result))?;
            }
            self.book.apply(frame);
        }
        if !self.look.json
            && !self.look.replay
            && let Some(line) = steps::line(frame, &self.book.short, term.err)
        {
            self.live.note(term, &line);
        }
        let Frame::RunFinished { state, summary, .. } = frame else {
            return Ok(None);
        };
        self.live.clear();
        if let Some(since) = self.look.since {
            self.book.took = Some(since.elapsed());
        }
        if !self.look.json {
            let style = self.look.style(self.context);
            let body = if self.streamed.lines > 1 {
                tail_of_streamed(&self.book, style)
            } else {
                body(&self.book, style)
            };
            let onward = if self.look.replay {
                Onward::Retry
            } else {
                Onward::Show
            };
            term.say(&format!("{body}{}", foot(&self.book, style, onward)))?;
        }
        Ok(Some(exit_code(*state, summary)))
    }

    /// Prints the lines of the only node as they come. A single line is held
    /// back until there is a second one: alone it is shown beside the name.
    fn stream(&mut self, node: &str, ended: Option<&RunNode>) -> Result<(), Failure> {
        let Some(entry) = self
            .book
            .nodes
            .iter_mut()
            .find(|(n, _)| n.as_str() == node)
            .map(|(_, e)| e)
        else {
            return Ok(());
        };
        let lines = if let Some(result) = ended {
            if self.streamed.lines < 2 {
                // All of it is in the book still, or in what is held.
                return Ok(());
            }
            let mut lines = std::mem::take(&mut entry.assembly).finish();
            lines.extend(Line::of_result(result));
            lines
        } else if self.streamed.lines < 2 {
            if entry.assembly.whole_lines() < 2 {
                return Ok(());
            }
            self.streamed.held = Some(self.context.term.out.strong(node));
            entry.assembly.drain()
        } else {
            entry.assembly.drain()
        };
        if lines.is_empty() {
            return Ok(());
        }
        self.streamed.lines += lines.len();
        let mut out = String::new();
        if let Some(name) = self.streamed.held.take() {
            out.push_str(&name);
            out.push('\n');
        }
        for line in &lines {
            let text = text(line, self.context.term.out);
            if !text.is_empty() {
                out.push_str("  ");
                out.push_str(&text);
            }
            out.push('\n');
        }
        self.live.clear();
        self.context.term.say(&out)
    }

    /// First time: says that the run goes on, and how to end it. Second time:
    /// cancels it. Third time: leaves at once.
    async fn interrupted(&mut self, keys: &mut Keys) -> Result<Option<u8>, Failure> {
        self.interrupts += 1;
        let short = self.book.short.clone();
        match self.interrupts {
            1 => {
                let leave = if self.context.term.in_tty {
                    keys.listen();
                    "  Enter: leave it running"
                } else {
                    ""
                };
                self.live.note(
                    &self.context.term,
                    &format!("\nrun {short} goes on.  Ctrl-C again: cancel it.{leave}  (muster runs cancel {short})"),
                );
                Ok(None)
            }
            2 => {
                self.live
                    .note(&self.context.term, &format!("\ncancelling run {short} …"));
                match self.client.cancel_run(&self.run).await {
                    // It ended in this very moment: its last event is coming.
                    Ok(_) => Ok(None),
                    Err(e) if e.kind() == Some(muster_protocol::problem::Kind::Conflict) => {
                        Ok(None)
                    }
                    Err(e) => Err(e.into()),
                }
            }
            _ => {
                self.live.clear();
                self.context.term.note(&format!(
                    "left while run {short} is being cancelled: muster runs show {short}"
                ));
                Ok(Some(crate::failure::CANCELLED))
            }
        }
    }
}

/// A run that has ended, with everything its nodes have said.
async fn said_in(client: &Client, run: RunId) -> Result<Book, ClientError> {
    let run = Reference::from(run);
    let mut book = Book::from_view(&client.run(&run).await?);
    let mut events = client.run_events(&run);
    while let Some(event) = events.next().await {
        if let Watch::Frame(frame) = event? {
            book.apply(&frame);
            if matches!(frame, Frame::RunFinished { .. }) {
                break;
            }
        }
    }
    Ok(book)
}

/// What is left to say of a run whose lines were printed as they came.
fn tail_of_streamed(book: &Book, style: Style) -> String {
    let mut out = String::new();
    for group in crate::ui::report::groups(book) {
        if group.outcome != muster_protocol::run::Outcome::Succeeded {
            let why = group.why.map(|w| format!(": {w}")).unwrap_or_default();
            out.push_str(&format!(
                "{}  {}{why}\n",
                group.nodes.join(", "),
                crate::ui::report::painted(group.outcome, style.paint)
            ));
        }
        if group.truncated {
            out.push_str(&format!(
                "  {}\n",
                style.paint.odd("(truncated: there was more output)")
            ));
        }
    }
    out
}

/// The Enter key, once it means something.
#[derive(Default)]
struct Keys {
    pressed: Option<mpsc::Receiver<()>>,
}

impl Keys {
    /// Begins to listen. A thread of its own, because reading a terminal
    /// cannot be cancelled; it ends with the process.
    fn listen(&mut self) {
        let (to, from) = mpsc::channel(1);
        self.pressed = Some(from);
        std::thread::spawn(move || {
            let mut line = String::new();
            if std::io::stdin().read_line(&mut line).is_ok_and(|n| n > 0) {
                let _ = to.blocking_send(());
            }
        });
    }

    async fn enter(&mut self) {
        let pressed = match &mut self.pressed {
            Some(from) => from.recv().await,
            None => None,
        };
        if pressed.is_none() {
            // End of input, or nobody listens: it will never be pressed.
            std::future::pending::<()>().await;
        }
    }
}
