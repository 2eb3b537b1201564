//! Requests that do something once, however often they are sent.

use std::time::Duration;

use muster_protocol::ids::InstanceId;
use muster_protocol::problem::Kind;
use muster_protocol::units::Span;
use reqwest::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep};

use crate::client::{Ask, Client};
use crate::error::ClientError;

/// How long a request of which nobody knows what came of it is repeated.
const REPEAT_FOR: Duration = Duration::from_secs(60);
/// First pause before it is sent again; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// Names a request, so that it does one thing however often it is sent: also
/// by a broker that is killed before it answers, and started again. One for
/// each thing that somebody asks for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Key(String);

impl Key {
    /// The header that it is sent in.
    pub const HEADER: &str = "idempotency-key";

    /// A key that nobody has used before.
    #[must_use]
    pub fn random() -> Self {
        Self(InstanceId::random().to_string())
    }

    /// The key of something that has a name of its own: 1 to 200 visible ASCII
    /// characters. Whoever names two things alike asks for one of them.
    #[must_use]
    pub fn named(text: &str) -> Option<Self> {
        let good = (1..=200).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
        good.then(|| Self(text.to_owned()))
    }

    /// As it is sent.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What is to be done after an error.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Then {
    /// It stays one.
    GiveUp,
    /// Whether it was done is not known: ask again.
    AskAgain,
}

/// `unsure` says that an earlier attempt may have been carried out.
fn then(error: &ClientError, unsure: bool) -> Then {
    let open = match error {
        ClientError::Lost { .. } | ClientError::Timeout { .. } => true,
        // A proxy whose broker has gone away in the middle.
        ClientError::Garbage { status, .. } => matches!(status, 502..=504),
        // Nothing was done this time. But before?
        ClientError::Refused { .. } | ClientError::Connect { .. } | ClientError::NotReady(_) => {
            unsure
        }
        ClientError::Problem(problem) => unsure && problem.kind == Kind::Unavailable,
        _ => false,
    };
    if open { Then::AskAgain } else { Then::GiveUp }
}

impl Client {
    /// Sends a request that has a key, and again when the connection broke or
    /// no answer came: then it may have been carried out, and the broker that
    /// is asked again, perhaps another one, says what came of it.
    pub(crate) async fn once<B: Serialize + ?Sized, T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &B,
        key: &Key,
    ) -> Result<T, ClientError> {
        self.once_and_wait(path, body, key, None).await
    }

    /// As [`Client::once`]; with `wait` the answer may take so much longer.
    pub(crate) async fn once_and_wait<B: Serialize + ?Sized, T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &B,
        key: &Key,
        wait: Option<Span>,
    ) -> Result<T, ClientError> {
        let query: Vec<_> = wait.iter().map(|wait| ("wait", wait.to_string())).collect();
        let wait = wait.map_or(Duration::ZERO, Span::get);
        let ask = Ask {
            method: Method::POST,
            path,
            query: &query,
            body: Some(body),
            extra_time: wait,
            key: Some(key),
        };
        self.until_known(ask).await
    }

    /// Sends a request that has a key until it is known what came of it.
    pub(crate) async fn until_known<B: Serialize + ?Sized, T: DeserializeOwned>(
        &self,
        ask: Ask<'_, B>,
    ) -> Result<T, ClientError> {
        let wait = ask.extra_time;
        let begun = Instant::now();
        let mut pause = FIRST_PAUSE;
        let mut unsure = false;
        loop {
            let error = match self.ask_for(&ask).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            if then(&error, unsure) == Then::GiveUp {
                return Err(error);
            }
            if begun.elapsed() >= REPEAT_FOR + wait {
                return Err(ClientError::Unsure {
                    what: ask.what(),
                    why: Box::new(error),
                });
            }
            tracing::debug!(%error, "sending a request again");
            unsure = true;
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use muster_protocol::problem::Problem;

    use super::*;

    #[test]
    fn a_name_that_is_no_header_is_no_key() {
        assert_eq!(Key::named("chat-1").expect("a key").as_str(), "chat-1");
        for bad in ["", "a b", "a\r\nb", "é", &"x".repeat(201)] {
            assert_eq!(Key::named(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_was_surely_not_done_is_not_repeated() {
        let refused = ClientError::Refused { url: "x".into() };
        let lost = ClientError::Lost {
            url: "x".into(),
            what: "POST".into(),
            why: "closed".into(),
        };
        let problem = |kind| ClientError::Problem(Box::new(Problem::new(kind, "no")));
        assert_eq!(then(&refused, false), Then::GiveUp);
        assert_eq!(then(&lost, false), Then::AskAgain);
        assert_eq!(then(&refused, true), Then::AskAgain);
        assert_eq!(then(&problem(Kind::Unavailable), false), Then::GiveUp);
        assert_eq!(then(&problem(Kind::Unavailable), true), Then::AskAgain);
        for kind in [Kind::Denied, Kind::NoRoom, Kind::PlanGone, Kind::Conflict] {
            assert_eq!(then(&problem(kind), true), Then::GiveUp, "{kind:?}");
        }
    }
}
