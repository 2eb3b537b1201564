//! Nothing is run that is not in the record of requests before.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use muster_protocol::audit::{Line, Verdict, Verifier};
use muster_protocol::ids::RunId;
use muster_protocol::run::RunEvent;
use muster_protocol::units::Timestamp;

use super::{Court, Rule};

impl Court<'_> {
    /// Each run that somebody asked for is recorded as allowed, before its
    /// journal begins. What a node did by itself nobody was asked for, nor for
    /// what was written down again.
    pub(super) fn recorded(&mut self) {
        let Some(recorded) = &self.evidence.recorded else {
            return;
        };
        let mut missing = Vec::new();
        for journal in &self.evidence.journals {
            let Some(first) = journal.events.first() else {
                continue;
            };
            let RunEvent::Created { spec } = &first.event else {
                continue;
            };
            if spec.part_of.is_some() || spec.local.is_some() || spec.rebuilt.is_some() {
                continue;
            }
            match recorded.get(&journal.run) {
                Some(at) if *at <= first.stored => {}
                Some(at) => missing.push(format!(
                    "run {} is recorded at {at}, and began at {}",
                    journal.run, first.stored
                )),
                None => missing.push(format!("run {} is not recorded", journal.run)),
            }
        }
        for text in missing {
            self.find(Rule::Recorded, text);
        }
    }
}

/// The runs that the lines of a record allow, and since when: by the broker's
/// clock, or by the store's, which stamps journals too, whichever is earlier
/// (the one may be wrong, and the other is that of an import where a backup
/// was put back). `None` when it says itself that some of it was lost.
///
/// # Errors
/// When the record is not whole.
pub(super) fn allowed(lines: &[(Timestamp, String)]) -> Result<Option<BTreeMap<RunId, Timestamp>>> {
    let mut allowed = BTreeMap::new();
    let mut verifier = Verifier::new(None, muster_protocol::audit::Outside::new());
    for (stored, line) in lines {
        verifier.take(line);
        let Line::Record(record) =
            serde_json::from_str(line).with_context(|| format!("a line of the record: {line}"))?
        else {
            continue;
        };
        let entry = record.entry;
        if entry.action == "audit-gap" || entry.action == "audit-changed" {
            return Ok(None);
        }
        if let (Verdict::Allowed, "run", Some(run)) =
            (entry.verdict, entry.action.as_str(), entry.about.run)
        {
            allowed.entry(run).or_insert(entry.at.min(*stored));
        }
    }
    let report = verifier.finish();
    anyhow::ensure!(report.is_good(), "the record is not whole: {report:?}");
    Ok(Some(allowed))
}
