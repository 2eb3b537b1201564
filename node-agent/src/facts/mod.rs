//! Facts: what this machine says about itself.

mod builtin;
mod custom;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use muster_protocol::predicate::fact_at;
use muster_protocol::subject::NodeSays;
use muster_protocol::text::printable;
use muster_protocol::wire::{Assignment, Facts, MAX_FACTS};
use serde_json::{Map, Value};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::bus::Bus;
use crate::host::environment::Environment;
use crate::identity::Identity;
use crate::journal::Journal;
use crate::pace::{Backoff, jitter};

/// How long the broker may take to store them.
const STORED_WITHIN: Duration = Duration::from_secs(10);
/// Unchanged facts are said again after this, in case the broker lost them.
const AGAIN_AFTER: Duration = Duration::from_secs(6 * 3600);
/// Deepest nesting of a custom fact.
const MAX_DEPTH: usize = 8;
/// Most notes that are sent.
const MAX_NOTES: usize = 50;
/// What is left of [`MAX_FACTS`] for notes and for JSON around it.
const ROOM: usize = MAX_FACTS - 12 * 1024;

/// Gathers facts, and sends them when they changed.
pub struct Gatherer {
    /// Who this node is.
    pub identity: Identity,
    /// Where what was sent last is kept.
    pub journal: Journal,
    /// Where they are sent.
    pub bus: Bus,
    /// Custom facts.
    pub dir: PathBuf,
    /// What executables are run with.
    pub environment: Environment,
    /// How often.
    pub every: Duration,
}

impl Gatherer {
    /// Facts to begin with: those that the broker has, else those that need
    /// no program.
    pub async fn first(journal: &Journal, identity: &Identity) -> Value {
        let stored = journal.facts().await.ok().flatten();
        if let Some(Value::Object(facts)) = stored.and_then(|text| serde_json::from_str(&text).ok())
        {
            return Value::Object(facts);
        }
        let facts = assemble(
            builtin::gather(),
            Vec::new(),
            Vec::new(),
            identity.now().assignment(),
        );
        Value::Object(facts.facts)
    }

    /// Gathers and sends until `stop`.
    pub async fn run(mut self, current: watch::Sender<Arc<Value>>, stop: CancellationToken) {
        let mut sent: Option<(Facts, Instant)> = None;
        let mut notes: Vec<String> = Vec::new();
        let mut backoff = Backoff::new(
            Duration::from_secs(1),
            self.every.max(Duration::from_secs(1)),
        );
        let mut facts = self.gather().await;
        let mut changes = self.identity.watch();
        let mut next = Instant::now() + jitter(self.every);
        loop {
            if facts.notes != notes {
                for note in &facts.notes {
                    warn!("facts: {note}");
                }
                notes.clone_from(&facts.notes);
            }
            current.send_replace(Arc::new(Value::Object(facts.facts.clone())));
            let due = match &sent {
                Some((before, at)) => *before != facts || at.elapsed() > AGAIN_AFTER,
                None => true,
            };
            let mut retry = None;
            if due {
                match self.send(&facts, &stop).await {
                    Ok(()) => {
                        backoff.reset();
                        sent = Some((facts.clone(), Instant::now()));
                    }
                    Err(e) => {
                        debug!("facts are not stored: {e}");
                        retry = Some(Instant::now() + backoff.wait());
                    }
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep_until(retry.unwrap_or(next).min(next)) => {}
                // Another assignment may shadow other facts.
                _ = changes.changed() => next = Instant::now(),
            }
            if Instant::now() >= next {
                facts = self.gather().await;
                next = Instant::now() + self.every;
            }
        }
    }

    async fn gather(&self) -> Facts {
        let built_in = tokio::task::spawn_blocking(builtin::gather)
            .await
            .unwrap_or_default();
        let (files, notes) = custom::gather(&self.dir, &self.environment).await;
        assemble(built_in, files, notes, self.identity.now().assignment())
    }

    async fn send(
        &mut self,
        facts: &Facts,
        stop: &CancellationToken,
    ) -> Result<(), crate::bus::SayError> {
        let voice = tokio::select! {
            voice = self.bus.welcomed() => voice,
            () = stop.cancelled() => return Err(crate::bus::SayError::Away),
        };
        voice.ask(NodeSays::Facts, facts, STORED_WITHIN).await?;
        info!(facts = facts.facts.len(), "facts sent");
        if let Ok(json) = serde_json::to_string(&facts.facts)
            && let Err(e) = self.journal.set_facts(json).await
        {
            debug!("the facts that were sent are not remembered: {e}");
        }
        Ok(())
    }
}

/// Custom facts of one file.
pub(crate) struct Source {
    /// The file's name, for notes.
    name: String,
    facts: Map<String, Value>,
}

/// Puts facts together: built-in ones first, then each file's, without what
/// would stand before something that the operators gave, and within bounds.
fn assemble(
    built_in: Map<String, Value>,
    files: Vec<Source>,
    mut notes: Vec<String>,
    assignment: &Assignment,
) -> Facts {
    let mut facts = built_in;
    let mut owner: Map<String, Value> = facts
        .keys()
        .map(|key| (key.clone(), Value::from("the agent")))
        .collect();
    let mut size = serde_json::to_string(&facts).map_or(0, |s| s.len());
    for file in files {
        for (key, value) in file.facts {
            let shown = printable(&key, 60);
            if let Some(first) = owner.get(&key).and_then(Value::as_str) {
                notes.push(format!(
                    "{}: `{shown}` is left out: {first} says it already",
                    file.name
                ));
                continue;
            }
            if key.is_empty()
                || key.len() > 128
                || key.chars().any(muster_protocol::text::is_unsafe)
            {
                notes.push(format!(
                    "{}: `{shown}` is left out: this is no name for a fact",
                    file.name
                ));
                continue;
            }
            if depth(&value) > MAX_DEPTH {
                notes.push(format!(
                    "{}: `{shown}` is left out: it is nested deeper than {MAX_DEPTH} levels",
                    file.name
                ));
                continue;
            }
            let more = serde_json::to_string(&value).map_or(ROOM, |s| s.len()) + key.len() + 8;
            if size + more > ROOM {
                notes.push(format!(
                    "{}: `{shown}` is left out: all facts together would have more than {ROOM} bytes",
                    file.name
                ));
                continue;
            }
            size += more;
            owner.insert(key.clone(), Value::from(file.name.clone()));
            facts.insert(key, value);
        }
    }
    let labels = assignment.labels.keys().map(|key| key.as_str());
    for name in ["name", "role"].into_iter().chain(labels) {
        let mut whole = Value::Object(facts);
        if fact_at(&whole, name).is_some() {
            remove(&mut whole, name);
            let what = if matches!(name, "name" | "role") {
                "this name is the node's own"
            } else {
                "a label has this name"
            };
            notes.push(format!("the fact `{name}` is left out: {what}"));
        }
        facts = match whole {
            Value::Object(facts) => facts,
            _ => Map::new(),
        };
    }
    if notes.len() > MAX_NOTES {
        let more = notes.len() - MAX_NOTES;
        notes.truncate(MAX_NOTES);
        notes.push(format!("and {more} more notes"));
    }
    let notes = notes
        .into_iter()
        .map(|note| printable(&note, 200))
        .collect();
    Facts { facts, notes }
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// Removes whatever a predicate would find under that path.
fn remove(facts: &mut Value, path: &str) {
    let Value::Object(map) = facts else { return };
    map.remove(path);
    for (dot, _) in path.match_indices('.') {
        if let Some(inner) = map.get_mut(&path[..dot]) {
            remove(inner, &path[dot + 1..]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn assignment(labels: Value) -> Assignment {
        serde_json::from_value(json!({
            "revision": 1, "name": "web-01", "roles": [], "labels": labels,
        }))
        .expect("reads")
    }

    fn map(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(map) => map,
            other => panic!("{other} is no map"),
        }
    }

    fn file(name: &str, facts: Value) -> Source {
        Source {
            name: name.into(),
            facts: map(facts),
        }
    }

    #[test]
    fn a_fact_never_stands_before_what_the_operators_gave() {
        let facts = assemble(
            map(json!({"os": {"id": "debian", "version": "12"}, "arch": "x86_64"})),
            vec![file(
                "rack.json",
                json!({"rack": "r03", "zone": "dk2", "name": "db-01", "role": ["db"]}),
            )],
            vec![],
            &assignment(json!({"zone": "gva2", "os.version": "11"})),
        );
        assert_eq!(
            Value::Object(facts.facts),
            json!({"os": {"id": "debian"}, "arch": "x86_64", "rack": "r03"})
        );
        assert_eq!(
            facts.notes,
            [
                "the fact `name` is left out: this name is the node's own",
                "the fact `role` is left out: this name is the node's own",
                "the fact `os.version` is left out: a label has this name",
                "the fact `zone` is left out: a label has this name",
            ]
        );
    }

    #[test]
    fn files_do_not_replace_each_other_or_the_agent_and_stay_within_bounds() {
        let deep = (0..20).fold(json!(1), |inner, _| json!([inner]));
        let facts = assemble(
            map(json!({"os": {"id": "debian"}})),
            vec![
                file("a.json", json!({"os": "mine", "rack": "r1"})),
                file(
                    "b.json",
                    json!({"rack": "r2", "deep": deep, "": 1, "big": "x".repeat(MAX_FACTS), "ok": true}),
                ),
            ],
            vec![],
            &assignment(json!({})),
        );
        assert_eq!(
            Value::Object(facts.facts.clone()),
            json!({"os": {"id": "debian"}, "rack": "r1", "ok": true})
        );
        assert_eq!(facts.notes.len(), 5, "{:?}", facts.notes);
        assert!(serde_json::to_string(&facts).expect("json").len() < MAX_FACTS);
    }

    #[test]
    fn many_notes_still_fit() {
        let bad: Map<String, Value> = (0..5000)
            .map(|n| (format!("{n}{}", "é".repeat(70)), json!(1)))
            .collect();
        let facts = assemble(
            Map::new(),
            vec![Source {
                name: "x".into(),
                facts: bad,
            }],
            vec![],
            &assignment(json!({})),
        );
        assert!(facts.notes.len() <= MAX_NOTES + 1);
        assert!(serde_json::to_string(&facts).expect("json").len() < MAX_FACTS);
    }
}
