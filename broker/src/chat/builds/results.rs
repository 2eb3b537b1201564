//! How builds ended last: a build that failed is said, and one that is fine
//! again; one that is fine as before is no news. Pure.

use std::collections::BTreeMap;

use muster_protocol::api::ClusterEvent;
use muster_protocol::text::printable;
use serde::{Deserialize, Serialize};

/// Most of what is built that is remembered; the oldest goes first.
const MOST: usize = 2_000;
/// Longest name, in characters.
const MAX_WORD: usize = 120;

/// How something that is built ended last.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
struct Last {
    fine: bool,
    seq: u64,
}

/// By repository, workflow and branch.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Results {
    last: BTreeMap<String, Last>,
    seq: u64,
    numbering: String,
}

/// How a build ended, beside the one before it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ended {
    /// It failed; `was_fine` says how the one before ended, if that is known.
    Failed {
        /// The one before was fine.
        was_fine: Option<bool>,
    },
    /// It is fine, and the one before was not.
    Fixed,
    /// It is fine, as far as is known as before.
    Fine,
    /// Neither: it was cancelled or skipped.
    Neither,
}

/// Whether a build ended well; `None` where it did not really end.
#[must_use]
pub fn is_fine(event: &ClusterEvent) -> Option<bool> {
    match event.fields.get("result")?.as_str()? {
        "success" => Some(true),
        "failure" | "unstable" | "timed_out" => Some(false),
        _ => None,
    }
}

impl Results {
    /// Takes the end of a build; `None` of what is no end, or is in it
    /// already.
    pub fn apply(&mut self, event: &ClusterEvent, numbering: &str) -> Option<Ended> {
        if event.kind != "build.finished" {
            return None;
        }
        if self.numbering != numbering {
            // Nothing is known any more of which came before which.
            numbering.clone_into(&mut self.numbering);
            self.seq = 0;
        }
        if event.seq <= self.seq {
            return None;
        }
        self.seq = event.seq;
        let Some(fine) = is_fine(event) else {
            return Some(Ended::Neither);
        };
        let word = |name: &str| {
            let text = event.fields.get(name).and_then(|value| value.as_str());
            printable(text.unwrap_or_default(), MAX_WORD)
        };
        let key = format!(
            "{}\n{}\n{}",
            word("repository"),
            word("name"),
            word("branch")
        );
        let seq = event.seq;
        let before = self.last.insert(key, Last { fine, seq });
        if self.last.len() > MOST
            && let Some(oldest) = self.last.iter().min_by_key(|(_, last)| last.seq)
        {
            let oldest = oldest.0.clone();
            self.last.remove(&oldest);
        }
        Some(match (fine, before.map(|last| last.fine)) {
            (false, was_fine) => Ended::Failed { was_fine },
            (true, Some(false)) => Ended::Fixed,
            (true, _) => Ended::Fine,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ended(seq: u64, branch: &str, result: &str) -> ClusterEvent {
        let mut event = ClusterEvent::own("1".into(), "build.finished", "x", String::new());
        event.seq = seq;
        for (name, value) in [
            ("repository", "acme/web"),
            ("branch", branch),
            ("result", result),
        ] {
            event.fields.insert(name.into(), json!(value));
        }
        event
    }

    #[test]
    fn what_is_news_follows_from_the_one_before_on_the_same_branch() {
        let mut results = Results::default();
        let mut take = |seq, branch, result| results.apply(&ended(seq, branch, result), "");
        assert_eq!(take(1, "main", "success"), Some(Ended::Fine));
        let failed = |was_fine| Some(Ended::Failed { was_fine });
        assert_eq!(take(2, "topic", "failure"), failed(None));
        assert_eq!(take(3, "main", "timed_out"), failed(Some(true)));
        assert_eq!(take(4, "main", "cancelled"), Some(Ended::Neither));
        assert_eq!(take(5, "main", "unstable"), failed(Some(false)));
        assert_eq!(take(6, "main", "success"), Some(Ended::Fixed));
        // The same event again.
        assert_eq!(take(6, "main", "success"), None);
        assert_eq!(take(7, "main", "success"), Some(Ended::Fine));
        for n in 0..(MOST as u64 + 10) {
            results.apply(&ended(8 + n, &n.to_string(), "success"), "");
        }
        assert_eq!(results.last.len(), MOST);
    }
}
