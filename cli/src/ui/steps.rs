//! What a scenario with a `main` does, for people: as it happens, and as a
//! tree afterwards. What scripts, nodes and people have said is escaped.

use muster_protocol::api::{
    CallView, Frame, MachineFate, MainMachine, MainView, RunNode, StepView,
};
use muster_protocol::names::NodeName;
use muster_protocol::run::{Outcome, RunPhase, Summary};
use muster_protocol::text::{printable, printable_line};
use muster_protocol::units::{Timestamp, elapsed};

use super::report::{counts, painted};
use super::time::{moment, took};
use super::{Paint, count};

/// Longest text of a script that is shown, in characters.
const MOST: usize = 400;
/// Nodes that are named under a step.
const NAMED: usize = 10;

/// What a `main` waits for that waits for a moment, or for a node.
#[must_use]
pub fn sleeps(until: Timestamp, node: Option<&NodeName>) -> String {
    let until = moment(until);
    match node {
        Some(node) => format!("waits for {node} to be heard, until {until}"),
        None => format!("waits until {until}"),
    }
}

/// A line for what has happened, if it is worth one.
#[must_use]
pub fn line(frame: &Frame, short: &str, paint: Paint) -> Option<String> {
    Some(match frame {
        Frame::StepBegan {
            name, nodes, undo, ..
        } => {
            let on = match nodes {
                0 => String::new(),
                n => format!(" on {}", count(*n as usize, "node")),
            };
            paint.dim(&format!("{}{}{on} …", back(*undo), printable_line(name)))
        }
        Frame::StepEnded {
            step,
            name,
            summary,
            stopped,
            failures,
            undo,
            ..
        } => {
            let name = format!("{}{}", back(*undo), printable_line(name));
            let mut text = format!(
                "{name}  {}",
                came(summary, stopped.as_deref(), &step.short(), paint)
            );
            for line in failed(failures, paint) {
                text.push_str("\n  ");
                text.push_str(&line);
            }
            text
        }
        Frame::Sleeps { until, node, .. } => paint.dim(&sleeps(*until, node.as_ref())),
        Frame::Asks {
            question, answers, ..
        } => asks(question, answers, short, paint),
        Frame::Answered { by, text, .. } => {
            format!("{} answered: {}", by, printable(text, MOST))
        }
        Frame::Logged { text, .. } => printable(text, MOST),
        Frame::MainEnded {
            error: Some(error), ..
        } => error_lines(error, paint),
        Frame::MainEnded {
            planned: Some(why), ..
        } => ends_here(why, paint),
        _ => return None,
    })
}

fn back(undo: bool) -> &'static str {
    if undo { "undo " } else { "" }
}

fn asks(question: &str, answers: &[String], short: &str, paint: Paint) -> String {
    let choice = match answers {
        [] => String::new(),
        some => {
            let some: Vec<String> = some.iter().map(|text| printable(text, 60)).collect();
            format!(" ({})", some.join(", "))
        }
    };
    format!(
        "{}  {}",
        paint.odd(&format!("asks: {}{choice}", printable(question, MOST))),
        paint.dim(&format!("muster runs answer {short} TEXT"))
    )
}

fn error_lines(error: &str, paint: Paint) -> String {
    let lines: Vec<String> = error
        .lines()
        .take(40)
        .map(|line| printable(line, MOST))
        .collect();
    format!("{} {}", paint.bad("error:"), lines.join("\n"))
}

/// Why a dry run went no further.
fn ends_here(why: &str, paint: Paint) -> String {
    let why = printable(why, MOST);
    paint.odd(&format!("the dry run ends here: {why}"))
}

/// What a step came to, in a line.
fn came(summary: &Summary, stopped: Option<&str>, run: &str, paint: Paint) -> String {
    let mut text = counts(summary, paint);
    if let Some(why) = stopped {
        let why = printable_line(why);
        if text.is_empty() {
            text = paint.bad(&why);
        } else {
            text.push_str(&format!(", stopped: {why}"));
        }
    } else if text.is_empty() {
        text = paint.good("done");
    }
    format!("{text}  {}", paint.dim(&format!("({run})")))
}

/// The nodes on which a step did not succeed, a line each.
fn failed(failures: &[RunNode], paint: Paint) -> Vec<String> {
    let bad = failures
        .iter()
        .filter(|node| !matches!(node.outcome, Some(Outcome::Skipped)));
    let mut lines: Vec<String> = bad
        .clone()
        .take(NAMED)
        .map(|node| {
            let outcome = node.outcome.map_or_else(String::new, |o| painted(o, paint));
            let why = node.reason.as_deref().map(printable_line);
            let why = why.map_or_else(String::new, |why| format!(": {why}"));
            format!("{}  {outcome}{why}", node.node)
        })
        .collect();
    let more = bad.count().saturating_sub(NAMED);
    if more > 0 {
        lines.push(format!("and {}", count(more, "other")));
    }
    lines
}

/// Everything that a `main` has done, in order.
#[must_use]
pub fn tree(main: &MainView, short: &str, paint: Paint) -> String {
    let mut out = String::new();
    if main.calls_before > 0 {
        let before = usize::try_from(main.calls_before).unwrap_or(usize::MAX);
        out.push_str(&paint.dim(&format!("{} before that\n", count(before, "call"))));
    }
    // Log lines stand where they were said.
    let mut logs = main.logs.iter().peekable();
    for call in &main.calls {
        while let Some(log) = logs.next_if(|log| log.call < call.call) {
            out.push_str(&format!("· {}\n", printable(&log.text, MOST)));
        }
        call_lines(&mut out, call, short, paint);
    }
    for log in logs {
        out.push_str(&format!("· {}\n", printable(&log.text, MOST)));
    }
    if let Some(error) = &main.error {
        out.push_str(&error_lines(error, paint));
        out.push('\n');
    }
    if let Some(why) = &main.planned {
        out.push_str(&format!("{}\n", ends_here(why, paint)));
    }
    for undo in &main.undo {
        step_lines(&mut out, undo, "↩ undo ", "", paint);
    }
    if let Some(value) = &main.value {
        let value = printable(&value.to_string(), MOST);
        out.push_str(&format!("{} {value}\n", paint.dim("returned")));
    }
    out
}

fn call_lines(out: &mut String, call: &CallView, short: &str, paint: Paint) {
    let time = call.ended.map_or_else(String::new, |end| {
        format!("  {}", paint.dim(&took(elapsed(call.began, end))))
    });
    if let Some(until) = call.until {
        let text = match call.ended {
            Some(_) => format!("slept{time}"),
            None => paint.odd(&format!("waits until {}", moment(until))),
        };
        out.push_str(&format!("▸ {text}\n"));
        return;
    }
    if let Some(machine) = &call.machine {
        let error = call.error.as_deref();
        out.push_str(&format!(
            "▸ {}\n",
            machine_line(machine, error, &time, paint)
        ));
        return;
    }
    if let Some(question) = &call.question {
        match (&call.answered_by, &call.answer, &call.error) {
            (Some(by), Some(text), _) => out.push_str(&format!(
                "▸ asked: {}  {by}: {}\n",
                printable(question, MOST),
                printable(text, MOST)
            )),
            (_, _, Some(error)) => out.push_str(&format!(
                "▸ asked: {}  {}\n",
                printable(question, MOST),
                printable_line(error)
            )),
            _ => out.push_str(&format!(
                "▸ {}\n",
                asks(question, &call.answers, short, paint)
            )),
        }
        return;
    }
    let several = call.steps.len() > 1;
    if several {
        out.push_str(&format!("▸ {}{time}\n", printable_line(&call.name)));
    }
    for step in &call.steps {
        let (before, time) = if several {
            ("  ▸ ", "")
        } else {
            ("▸ ", time.as_str())
        };
        step_lines(out, step, before, time, paint);
    }
    if call.steps.is_empty() {
        let error = call.error.as_deref().map(printable_line);
        let error = error.map_or_else(String::new, |e| format!("  {}", paint.bad(&e)));
        out.push_str(&format!("▸ {}{error}\n", printable_line(&call.name)));
    }
}

/// A machine that a `main` has made, and what became of it.
fn machine_line(machine: &MainMachine, error: Option<&str>, time: &str, paint: Paint) -> String {
    let name = paint.strong(&format!("machine {}", printable_line(&machine.name)));
    let kept = if machine.keep { ", stays" } else { "" };
    match &machine.fate {
        MachineFate::Awaited => format!("{name}  {}", paint.odd("is being made")),
        MachineFate::Failed => {
            let error = error.map_or_else(|| "not made".to_owned(), printable_line);
            format!("{name}  {}{time}", paint.bad(&error))
        }
        MachineFate::Made { hypervisor } => match error {
            Some(error) => format!("{name}  {}{time}", paint.bad(&printable_line(error))),
            None => format!(
                "{name}  {}{kept}{time}",
                paint.good(&format!("up on {hypervisor}"))
            ),
        },
        MachineFate::Going { hypervisor } => format!(
            "{name}  {}",
            paint.odd(&format!("is taken back from {hypervisor}"))
        ),
        MachineFate::Gone => format!("{name}  ↩ taken back{time}"),
        MachineFate::Left { hypervisor, why } => {
            let why = printable_line(why);
            let text = format!("could not be taken back from {hypervisor}: {why}");
            format!("{name}  {}", paint.bad(&text))
        }
    }
}

fn step_lines(out: &mut String, step: &StepView, before: &str, time: &str, paint: Paint) {
    let on = match step.nodes {
        0 => String::new(),
        n => format!("  {}", count(n as usize, "node")),
    };
    let came = match step.state {
        None => paint.dim("not begun"),
        Some(state) if state.is_final() => {
            came(&step.summary, step.stopped.as_deref(), &step.short, paint)
        }
        Some(RunPhase::Paused) => format!(
            "{} {}",
            counts(&step.summary, paint),
            paint.odd(&format!("paused ({})", step.short))
        ),
        Some(_) => {
            let done: u32 = step.summary.values().sum();
            format!(
                "{done}/{} {}",
                step.nodes,
                paint.odd(&format!("running ({})", step.short))
            )
        }
    };
    let name = paint.strong(&printable_line(&step.name));
    out.push_str(&format!("{before}{name}{on}  {came}{time}\n"));
    for line in failed(&step.failures, paint) {
        out.push_str(&format!("    {line}\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_protocol::ids::{RunId, Serial};
    use muster_protocol::run::LogLine;

    fn step(name: &str, summary: &[(Outcome, u32)], state: RunPhase) -> StepView {
        StepView {
            run: RunId::from_bytes([3; 16]),
            short: "7f3k".into(),
            name: name.into(),
            nodes: 4,
            state: Some(state),
            summary: summary.iter().copied().collect(),
            stopped: None,
            failures: Vec::new(),
            undo_of: None,
        }
    }

    fn call(number: u64, name: &str, steps: Vec<StepView>) -> CallView {
        CallView {
            call: number,
            name: name.into(),
            line: Some(3),
            began: "2026-11-21T06:00:00Z".parse().expect("a time"),
            ended: Some("2026-11-21T06:00:02Z".parse().expect("a time")),
            steps,
            until: None,
            machine: None,
            question: None,
            answers: Vec::new(),
            answered_by: None,
            answer: None,
            error: None,
        }
    }

    #[test]
    fn what_a_main_did_is_shown_as_a_tree() {
        let mut bad = step(
            "upgrade",
            &[(Outcome::Succeeded, 3), (Outcome::Failed, 1)],
            RunPhase::Failed,
        );
        bad.stopped = Some("1 node failed, none may".into());
        bad.failures = vec![RunNode {
            node: "web-15".parse().expect("a name"),
            outcome: Some(Outcome::Failed),
            reason: Some("deploy.rhai:14 package webapp: held by apt\x1b[2J".into()),
            ..RunNode::new("web-15".parse().expect("a name"), Serial(15))
        }];
        let well = [(Outcome::Succeeded, 4)];
        let ask = CallView {
            question: Some("Go on\x07?".into()),
            answers: vec!["yes".into(), "no".into()],
            ended: None,
            ..call(9, "ask", vec![])
        };
        let asked = CallView {
            answered_by: Some("bruno".parse().expect("a name")),
            answer: Some("yes".into()),
            ended: Some("2026-11-21T06:10:02Z".parse().expect("a time")),
            ..ask.clone()
        };
        let sleep = CallView {
            until: Some("2026-11-21T06:00:02Z".parse().expect("a time")),
            ..call(2, "sleep", vec![])
        };
        let main = MainView {
            calls: vec![
                call(0, "on", vec![step("drain", &well, RunPhase::Succeeded)]),
                sleep,
                call(
                    4,
                    "parallel",
                    vec![
                        step("restart", &well, RunPhase::Succeeded),
                        step("warm", &[(Outcome::Succeeded, 1)], RunPhase::Running),
                    ],
                ),
                asked,
                ask,
                call(10, "on", vec![bad]),
            ],
            logs: vec![LogLine {
                call: 3,
                at: "2026-11-21T06:00:02Z".parse().expect("a time"),
                text: "half of it is done".into(),
            }],
            undo: vec![step("back", &well, RunPhase::Succeeded)],
            error: Some(
                "deploy.rhai:22:5: 1 node failed, none may\n   22 | on(batch, \"upgrade\", p)"
                    .into(),
            ),
            ..MainView::default()
        };
        insta::assert_snapshot!(tree(&main, "8k2d", Paint::plain()));
    }

    #[test]
    fn a_machine_stands_with_what_became_of_it() {
        let hypervisor: muster_protocol::names::NodeName = "hv-1".parse().expect("valid");
        let line = |fate, keep| {
            let mut call = call(0, "machine", Vec::new());
            let name = "web-25".to_owned();
            call.machine = Some(MainMachine { name, keep, fate });
            let main = MainView {
                calls: vec![call],
                ..MainView::default()
            };
            tree(&main, "8k2d", Paint::plain())
        };
        let all = [
            line(MachineFate::Awaited, false),
            line(MachineFate::Failed, false),
            line(
                MachineFate::Made {
                    hypervisor: hypervisor.clone(),
                },
                true,
            ),
            line(
                MachineFate::Going {
                    hypervisor: hypervisor.clone(),
                },
                false,
            ),
            line(MachineFate::Gone, false),
            line(
                MachineFate::Left {
                    hypervisor,
                    why: "nobody answers".into(),
                },
                false,
            ),
        ];
        insta::assert_snapshot!(all.concat(), @r"
        ▸ machine web-25  is being made
        ▸ machine web-25  not made  2.00 s
        ▸ machine web-25  up on hv-1, stays  2.00 s
        ▸ machine web-25  is taken back from hv-1
        ▸ machine web-25  ↩ taken back  2.00 s
        ▸ machine web-25  could not be taken back from hv-1: nobody answers
        ");
    }
}
