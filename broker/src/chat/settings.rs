//! What can be set about chat: `[chat]` of the file with webhooks, triggers
//! and routes.

use std::time::Duration;

use muster_protocol::ids::RunId;
use muster_protocol::units::Span;
use serde::Deserialize;

/// How long an alarm that still fires is not repeated when nothing is said.
const REPEAT: Duration = Duration::from_secs(1_800);
/// Longest time that can be said.
const MOST_REPEAT: Duration = Duration::from_secs(7 * 86_400);
/// What stands for the run in its URL.
const RUN: &str = "{run}";
/// Longest URL, in bytes.
const MAX_URL: usize = 400;

/// `[chat]` as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawChat {
    repeat: Option<Span>,
    run_url: Option<String>,
}

/// What is set about chat.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Settings {
    /// How long an alarm that still fires is not repeated.
    pub repeat: Duration,
    /// Where a run is to be seen; `{run}` in it is the run's id.
    run_url: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            repeat: REPEAT,
            run_url: None,
        }
    }
}

impl Settings {
    /// Holds what is written against what can be.
    ///
    /// # Errors
    /// All mistakes.
    pub fn checked(raw: RawChat) -> Result<Self, Vec<String>> {
        let mut wrong = Vec::new();
        let repeat = raw.repeat.map_or(REPEAT, Span::get);
        if repeat.is_zero() || repeat > MOST_REPEAT {
            wrong.push("`repeat` is a time of at most 7d".to_owned());
        }
        if let Some(url) = &raw.run_url {
            let plain = url.len() <= MAX_URL && url.bytes().all(|b| b.is_ascii_graphic());
            let is_url = url.starts_with("https://") || url.starts_with("http://");
            if !plain || !is_url || !url.contains(RUN) {
                wrong.push(format!(
                    "`run_url` is a URL in which {RUN} stands for the run: `https://muster.example/runs/{RUN}`"
                ));
            }
        }
        if wrong.is_empty() {
            Ok(Self {
                repeat,
                run_url: raw.run_url,
            })
        } else {
            Err(wrong)
        }
    }

    /// Where a run is to be seen: a URL, or what to type.
    #[must_use]
    pub fn link_of(&self, run: &str, short: &str) -> String {
        match &self.run_url {
            // What comes from an event is no part of a URL unless it is an id.
            Some(url) if run.parse::<RunId>().is_ok() => url.replace(RUN, run),
            _ => format!("muster runs show {short}"),
        }
    }
}
