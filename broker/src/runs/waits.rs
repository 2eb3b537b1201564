//! That a run waits, told to the cluster: once for each thing, when it begins
//! to. Whoever sees it in a channel has all that is needed to do something
//! about it.

use muster_protocol::run::{Gate, RunSpec};
use muster_protocol::text::printable;
use serde_json::{Map, Value, json};

use super::task::Task;
use crate::events::Once;

/// A run waits.
const WAITS: &str = "run.waits";
/// Longest title of a run in such an event, in characters.
const MAX_TITLE: usize = 80;
/// Longest question or reason in it.
const MAX_TEXT: usize = 500;

/// What is said of a wait.
#[derive(Debug, PartialEq)]
struct Said {
    text: String,
    fields: Map<String, Value>,
}

/// What is said; `None` of what nobody has to be told, such as a sleep.
/// `why` says what keeps it from its turn.
fn said(spec: &RunSpec, short: &str, gate: &Gate, why: Option<&str>) -> Option<Said> {
    let by = spec.principal.as_str();
    let anybody = "whoever may run it".to_owned();
    let nobody = "nobody: it goes on by itself".to_owned();
    let show = format!("muster runs show {short}");
    let mut more = Map::new();
    let (text, who, command) = match gate {
        Gate::Confirmation { until } => {
            more.insert("until".into(), json!(until));
            let text = format!("waits until {until} for a confirmation");
            (text, anybody, format!("muster runs confirm {short}"))
        }
        Gate::Approvals {
            given,
            needed,
            through,
        } => {
            more.insert("needed".into(), json!(needed));
            more.insert("given".into(), json!(given));
            let left = (*needed as usize).saturating_sub(given.len());
            let approvals = if left == 1 { "approval" } else { "approvals" };
            let doors = through.as_ref().map_or_else(String::new, |doors| {
                let doors: Vec<&str> = doors.iter().map(|door| door.as_str()).collect();
                format!(" through {}", doors.join(" or "))
            });
            let text = format!("waits for {left} {approvals} by others than {by}{doors}");
            let who = format!("{anybody}, but for {by}{doors}");
            if let Some(through) = through {
                more.insert("through".into(), json!(through));
            }
            (text, who, format!("muster runs approve {short}"))
        }
        Gate::Answer { question, answers } => {
            let question = printable(question, MAX_TEXT);
            let choice = match answers.as_slice() {
                [] => String::new(),
                some => format!(" ({})", some.join(", ")),
            };
            let text = format!("asks: {question}{choice}");
            more.insert("question".into(), json!(question));
            more.insert("answers".into(), json!(answers));
            (text, anybody, format!("muster runs answer {short} TEXT"))
        }
        Gate::Turn { .. } => {
            let why = printable(why?, MAX_TEXT);
            let text = format!("waits: {why}");
            more.insert("why".into(), json!(why));
            (text, nobody, show)
        }
        Gate::Moment { .. } | Gate::Frozen { .. } => return None,
    };
    let title = printable(&spec.title, MAX_TITLE);
    let mut fields = Map::from_iter([
        ("run".to_owned(), json!(spec.id)),
        ("short".to_owned(), json!(short)),
        ("title".to_owned(), json!(title)),
        ("principal".to_owned(), json!(by)),
        ("for".to_owned(), json!(gate.word(why))),
        ("who".to_owned(), json!(who)),
        ("command".to_owned(), json!(command)),
    ]);
    fields.extend(more);
    if let Some(chat) = &spec.chat {
        fields.insert("chat".to_owned(), json!(chat));
    }
    Some(Said {
        text: format!("run {short} ({title}) {text}; {command}"),
        fields,
    })
}

impl Task {
    /// Tells once that the run waits for this. `call` is the number of the
    /// call in its `main` that does.
    pub(super) async fn tell_waits(&mut self, gate: &Gate, call: Option<u64>, why: Option<&str>) {
        let word = gate.word(why);
        let what = match call {
            Some(call) => format!("{word}.{call}"),
            None => word.to_owned(),
        };
        if self.waits_told.contains(&what) {
            return;
        }
        let short = self.short();
        let Some(Said { text, mut fields }) = said(&self.state.spec, &short, gate, why) else {
            return;
        };
        if self.state.spec.chat.is_some() {
            // Whoever asked for it was answered with that.
            let first = self.waits_told.is_empty() && call.is_none();
            fields.insert("first".to_owned(), json!(first));
        }
        let event = Once {
            id: format!("{}.waits.{what}", self.run),
            kind: WAITS.to_owned(),
            subject: short,
            text,
            fields,
        };
        self.waits_told.insert(what);
        let events = self.engine.0.events.clone();
        events.once(event).await;
    }
}
