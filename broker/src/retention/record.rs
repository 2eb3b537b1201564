//! What retention remembers beyond a restart: one value in `muster_cluster`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use async_nats::jetstream::Context;
use muster_protocol::api::Removed;
use muster_protocol::ids::RunId;
use muster_protocol::units::Timestamp;
use serde::{Deserialize, Serialize};

use super::decide::{Removal, What};
use crate::store::error::StreamError;
use crate::store::stream::last_of_subject;

/// The key in `muster_cluster`.
pub(crate) const KEY: &str = "retention";
/// Runs whose removal is remembered.
const MOST: usize = 1_000;

/// The value of [`KEY`]. Unknown fields are passed over: a newer broker may
/// have written them.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub(crate) struct Record {
    /// The runs that were last removed, the newest last. Each is here before
    /// its first message goes: a journal of which a part has come back, or
    /// was never reached, is never taken for a run.
    removing: VecDeque<RunId>,
    runs: u64,
    outputs: u64,
    runs_to: Option<Timestamp>,
    /// Alarms that people were told of, and since when.
    pub(super) alarms: BTreeMap<String, Timestamp>,
}

impl Record {
    /// Takes down what is about to be removed; whether that must be stored
    /// first.
    pub(super) fn removing(&mut self, removal: &Removal) -> bool {
        let whole = removal.what == What::Run && !self.removing.contains(&removal.run);
        if whole {
            self.removing.push_back(removal.run);
            while self.removing.len() > MOST {
                self.removing.pop_front();
            }
        }
        whole
    }

    /// Counts what was removed.
    pub(super) fn removed_one(&mut self, removal: &Removal) {
        match removal.what {
            What::Output => self.outputs += 1,
            What::Run => {
                self.runs += 1;
                self.runs_to = self.runs_to.max(Some(removal.ended));
            }
        }
    }

    /// For people.
    pub(super) fn removed(&self) -> Removed {
        Removed {
            runs: self.runs,
            outputs: self.outputs,
            runs_to: self.runs_to,
        }
    }
}

/// The runs that were removed last: whatever is found of them is not a run.
///
/// # Errors
/// [`StreamError`].
pub(crate) async fn removed_runs(js: &Context) -> Result<BTreeSet<RunId>, StreamError> {
    let subject = format!("$KV.muster_cluster.{KEY}");
    let last = match last_of_subject(js, "KV_muster_cluster", &subject).await {
        // Nobody has kept anything yet.
        Err(StreamError::NoStream(_)) => None,
        result => result?,
    };
    let record: Record = last
        .and_then(|message| serde_json::from_slice(&message.payload).ok())
        .unwrap_or_default();
    Ok(record.removing.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retention::decide::Why;

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut record = Record::default();
        for n in 0..MOST + 7 {
            let removal = Removal {
                run: RunId::random(),
                ended: Timestamp::from_second(i64::try_from(n % 900).expect("small"))
                    .expect("a time"),
                what: What::Run,
                why: Why::Age,
                bytes: 1,
            };
            assert!(record.removing(&removal));
            assert!(!record.removing(&removal), "it is there already");
            record.removed_one(&removal);
        }
        assert_eq!(record.removing.len(), MOST);
        assert_eq!(record.removed().runs, 1_007);
        assert_eq!(record.removed().runs_to, Timestamp::from_second(899).ok());
        let json = serde_json::to_vec(&record).expect("JSON");
        assert!(json.len() < 64 * 1024, "{}", json.len());
        assert_eq!(
            serde_json::from_slice::<Record>(&json).expect("reads"),
            record
        );
    }
}
