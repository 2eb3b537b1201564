//! What is seen while a run is under way: on a terminal a few lines that are
//! redrawn, elsewhere a plain line now and then. All on standard error.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use muster_protocol::run::Outcome;
use muster_protocol::text::printable_line;

use super::book::Book;
use super::report::{groups, word};
use super::time::took;
use super::{Paint, Term, count, cut};

/// Lines above the bar.
const MOST_LINES: usize = 8;
/// A run that is over sooner shows no bar at all.
const FIRST_DRAW: Duration = Duration::from_millis(200);
/// Between two plain lines of progress.
const PLAIN_EVERY: Duration = Duration::from_secs(10);
/// Nodes that are named in plain lines when they do not succeed.
const MOST_NAMED: usize = 20;

/// The display of a running run.
#[derive(Debug)]
pub enum Live {
    /// On a terminal.
    Redrawn(Box<Redrawn>),
    /// In a file or a CI log.
    Plain(Plain),
    /// Nothing at all.
    Silent,
}

/// Lines that are redrawn.
#[derive(Debug)]
pub struct Redrawn {
    started: Instant,
    multi: MultiProgress,
    bar: Option<ProgressBar>,
    lines: Vec<ProgressBar>,
    width: usize,
    most: usize,
    paint: Paint,
}

/// Lines that stay.
#[derive(Debug)]
pub struct Plain {
    started: Instant,
    last: Instant,
    said: (usize, usize),
    named: BTreeSet<String>,
    stalled: Option<String>,
    held: Option<String>,
}

impl Live {
    /// What fits this terminal.
    #[must_use]
    pub fn new(term: &Term, json: bool) -> Self {
        let now = Instant::now();
        if json {
            return Self::Silent;
        }
        if !term.err_tty {
            return Self::Plain(Plain {
                started: now,
                last: now,
                said: (0, 0),
                named: BTreeSet::new(),
                stalled: None,
                held: None,
            });
        }
        Self::Redrawn(Box::new(Redrawn {
            started: now,
            multi: MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(15)),
            bar: None,
            lines: Vec::new(),
            width: term.width.min(200),
            most: MOST_LINES.min(term.height / 3),
            paint: term.err,
        }))
    }

    /// Shows the state; called often.
    pub fn draw(&mut self, book: &Book, term: &Term) {
        match self {
            Self::Redrawn(live) => live.draw(book),
            Self::Plain(plain) => plain.draw(book, term),
            Self::Silent => {}
        }
    }

    /// Says something beside it, such as a lost connection.
    pub fn note(&self, term: &Term, text: &str) {
        match self {
            Self::Redrawn(live) if live.bar.is_some() => {
                if live.multi.println(text).is_err() {
                    term.note(text);
                }
            }
            _ => term.note(text),
        }
    }

    /// Takes it away, before the results are printed.
    pub fn clear(&mut self) {
        if let Self::Redrawn(live) = self {
            for line in live.lines.drain(..) {
                line.finish_and_clear();
            }
            if let Some(bar) = live.bar.take() {
                bar.finish_and_clear();
            }
            let _ = live.multi.clear();
        }
    }
}

impl Redrawn {
    fn draw(&mut self, book: &Book) {
        let elapsed = self.started.elapsed();
        if elapsed < FIRST_DRAW || book.total == 0 {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let template = "{pos}/{len}  {bar:27.green/dim}  {msg}";
            let style = ProgressStyle::with_template(template)
                .unwrap_or_else(|_| ProgressStyle::default_bar())
                .progress_chars("━╸━");
            self.multi
                .add(ProgressBar::new(book.total as u64).with_style(style))
        });
        bar.set_length(book.total as u64);
        bar.set_position(book.done() as u64);
        bar.set_message(status(book, elapsed));
        let texts = preview(book, self.most, self.paint, self.width.saturating_sub(1));
        while self.lines.len() < texts.len() {
            let style = ProgressStyle::with_template("{msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            let at = self.lines.len();
            self.lines
                .push(self.multi.insert(at, ProgressBar::new(1).with_style(style)));
        }
        while self.lines.len() > texts.len() {
            if let Some(line) = self.lines.pop() {
                line.finish_and_clear();
                self.multi.remove(&line);
            }
        }
        for (line, text) in self.lines.iter().zip(texts) {
            line.set_message(text);
        }
    }
}

fn status(book: &Book, elapsed: Duration) -> String {
    let mut parts = Vec::new();
    if book.running() > 0 {
        parts.push(format!("{} running", book.running()));
    }
    let bad = book.not_well();
    if bad > 0 {
        parts.push(format!("{bad} not well"));
    }
    if book.batches > 1 {
        parts.push(format!(
            "batch {}/{}",
            book.sent_batches.max(1),
            book.batches
        ));
    }
    for step in book.steps.iter().take(3) {
        let name = printable_line(&step.name);
        parts.push(format!("{name} {}/{}", step.done, step.nodes));
    }
    if book.cancelled_by.is_some() {
        parts.push("cancelling".into());
    }
    if let Some(held) = book.held() {
        parts.push(printable_line(&held));
    } else if let Some(why) = &book.stalled {
        parts.push(waiting(why));
    }
    let time = if elapsed < Duration::from_secs(60) {
        format!("{:.1} s", elapsed.as_secs_f64())
    } else {
        took(elapsed)
    };
    parts.push(time);
    parts.join("  ")
}

/// That the run cannot go on now.
fn waiting(why: &str) -> String {
    format!("waiting: {}", printable_line(why))
}

/// The answers so far, in short, and what the running ones say.
fn preview(book: &Book, most: usize, paint: Paint, columns: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for group in groups(book) {
        let who = match group.nodes.as_slice() {
            [one] => one.clone(),
            many => count(many.len(), "node"),
        };
        let said = group
            .output
            .iter()
            .rev()
            .map(|l| l.text.trim())
            .find(|t| !t.is_empty());
        let text = match (group.outcome, &group.why, said) {
            (Outcome::Succeeded, _, said) => said.unwrap_or("(no output)").to_owned(),
            (outcome, Some(why), _) => format!("{}: {why}", word(outcome)),
            (outcome, None, _) => word(outcome).to_owned(),
        };
        let line = cut(&format!("{who}  {text}"), columns);
        lines.push(if group.outcome == Outcome::Succeeded {
            line
        } else {
            paint.bad(&line)
        });
    }
    let running = book.nodes.iter().filter(|(_, n)| n.running);
    for (name, entry) in running {
        if lines.len() >= most {
            break;
        }
        if let Some(text) = entry.assembly.newest() {
            lines.push(paint.dim(&cut(&format!("{name}  {text}"), columns)));
        }
    }
    lines.truncate(most);
    lines
}

impl Plain {
    fn draw(&mut self, book: &Book, term: &Term) {
        let held = book.held();
        if held != self.held {
            match &held {
                Some(held) => term.note(&printable_line(held)),
                None if book.end.is_none() && book.lapsed.is_none() => {
                    term.note("the run goes on");
                }
                None => {}
            }
            self.held = held;
            self.stalled.clone_from(&book.stalled);
        } else if book.stalled != self.stalled {
            match &book.stalled {
                Some(why) => term.note(&waiting(why)),
                None => term.note("the run goes on"),
            }
            self.stalled.clone_from(&book.stalled);
        }
        if self.last.elapsed() < PLAIN_EVERY {
            return;
        }
        self.last = Instant::now();
        for group in groups(book)
            .iter()
            .filter(|g| g.outcome != Outcome::Succeeded)
        {
            for node in &group.nodes {
                if self.named.len() >= MOST_NAMED || !self.named.insert(node.clone()) {
                    continue;
                }
                let why = group
                    .why
                    .as_ref()
                    .map(|w| format!(": {w}"))
                    .unwrap_or_default();
                term.note(&format!("{node} {}{why}", word(group.outcome)));
            }
        }
        let now = (book.done(), book.running());
        if now == self.said {
            return;
        }
        self.said = now;
        term.note(&format!(
            "{}/{}  {}",
            book.done(),
            book.total,
            status(book, self.started.elapsed())
        ));
    }
}
