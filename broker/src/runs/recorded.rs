//! The end of a run goes into the record of requests.

use muster_protocol::audit::{About, Entry, SetAbout, Verdict, Who};
use muster_protocol::ids::RunId;
use muster_protocol::run::RunState;
use muster_protocol::units::Timestamp;
use serde_json::json;

use super::engine::{Engine, Shared, lock};
use crate::audit::{Audit, End};

/// What is recorded of a run that has ended.
fn end(state: &RunState) -> End {
    let spec = &state.spec;
    let mut about = About {
        run: Some(spec.id),
        scenario: Some(spec.scenario.clone()),
        version: spec.version,
        bundle: Some(spec.bundle),
        mode: Some(spec.mode),
        end: Some(state.phase.as_str().to_owned()),
        outcomes: state
            .summary()
            .into_iter()
            .map(|(outcome, count)| (outcome.as_str().to_owned(), count))
            .collect(),
        ..About::default()
    };
    if let Some(record) = &spec.local {
        // Nobody was asked before: all that is known is here.
        about.params = Some(spec.params.clone());
        about.node = Some(record.target.name.clone());
        about.sets = vec![SetAbout {
            name: "targets".to_owned(),
            count: 1,
            nodes: [record.target.serial].into_iter().collect(),
        }];
        about.more.insert("local".to_owned(), json!(record.local));
    }
    if spec.rebuilt.is_some() {
        about.more.insert("rebuilt".to_owned(), json!(true));
    }
    let door = serde_json::to_value(spec.door).ok();
    End {
        run: spec.id,
        entry: Entry {
            who: Who {
                principal: Some(spec.principal.clone()),
                door: door.and_then(|door| door.as_str().map(str::to_owned)),
                ..Who::default()
            },
            about: Box::new(about),
            ..Audit::entry("run-ended", Verdict::Noted)
        },
    }
}

impl Shared {
    /// A run has ended. Parts of another one are in what is recorded of that.
    pub(super) fn record_end(&self, state: &RunState) {
        if state.spec.part_of.is_none()
            && state.phase.is_final()
            && let Some(audit) = self.audit.get()
        {
            audit.ended(end(state));
        }
    }
}

impl Engine {
    /// Ends of runs go into this record from now on, and those that a broker
    /// before has not recorded any more.
    pub fn record_with(&self, audit: Audit) {
        let since = audit.missing_since();
        if self.0.audit.set(audit.clone()).is_err() {
            return;
        }
        let Some(since) = since else { return };
        let engine = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = audit.closed() => {}
                () = engine.record_missing(since) => {}
            }
        });
    }

    async fn record_missing(&self, since: Timestamp) {
        self.wait_ready().await;
        let runs: Vec<RunId> = lock(&self.0.index).ended_since(since);
        for run in runs {
            match self.state(run).await {
                Ok(state) => self.0.record_end(&state),
                Err(error) => {
                    tracing::warn!(%run, %error, "whether its end is recorded is not known")
                }
            }
        }
    }
}
