//! Nodes that are asked to connect to another one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use muster_protocol::envelope::Ask;
use muster_protocol::firewall::{ProbeAsk, ProbeResult, Probed};
use muster_protocol::ids::{RunId, Serial};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::bus::{Bus, Order};

/// How long the way to a node and back may take beside the probe itself.
const WAY: Duration = Duration::from_millis(1_500);

type Waiting = HashMap<RunId, (Serial, oneshot::Sender<Answer>)>;

/// What comes back.
#[derive(Debug)]
enum Answer {
    Probed(ProbeResult),
    /// The server says that the node has no connection.
    Unheard,
}

/// Why a probe was not made.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NotProbed {
    /// The node that was to make it is away.
    #[error("it is not connected")]
    Away,
    /// It said nothing.
    #[error("it did not answer the broker")]
    Mute,
    /// It could not be asked.
    #[error("{0}")]
    Send(#[from] crate::bus::SendError),
}

/// Asks nodes, and hears what they say. Cheap to clone.
#[derive(Clone)]
pub struct Prober(Arc<Inner>);

struct Inner {
    bus: Bus,
    waiting: Mutex<Waiting>,
}

impl std::fmt::Debug for Prober {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prober").finish_non_exhaustive()
    }
}

/// Stops listening when it is dropped.
struct Listening<'a>(&'a Inner, RunId);

impl Drop for Listening<'_> {
    fn drop(&mut self) {
        self.0.take(self.1);
    }
}

impl Inner {
    fn waiting(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, id: RunId) -> Option<(Serial, oneshot::Sender<Answer>)> {
        self.waiting().remove(&id)
    }

    /// An answer counts when it is of the node that was asked.
    fn answer(&self, id: RunId, node: Serial, answer: Answer) {
        let mut waiting = self.waiting();
        if waiting.get(&id).is_some_and(|(asked, _)| *asked == node)
            && let Some((_, tell)) = waiting.remove(&id)
        {
            // Whoever asked may have gone.
            let _ = tell.send(answer);
        }
    }
}

impl Prober {
    /// One over this bus.
    #[must_use]
    pub fn new(bus: Bus) -> Self {
        Self(Arc::new(Inner {
            bus,
            waiting: Mutex::default(),
        }))
    }

    /// Has a node make a probe.
    ///
    /// # Errors
    /// [`NotProbed`]: nothing is known then.
    pub async fn probe(&self, from: Serial, ask: ProbeAsk) -> Result<ProbeResult, NotProbed> {
        let inner = &*self.0;
        let within = ask.within.get();
        let order = Order::own([from].into_iter().collect(), Ask::Probe(ask));
        let signed = inner.bus.sign(&order)?;
        let (tell, told) = oneshot::channel();
        let id = order.id.run;
        inner.waiting().insert(id, (from, tell));
        let _listening = Listening(inner, id);
        inner.bus.to_node(from, &signed).await?;
        match timeout(within + WAY, told).await {
            Ok(Ok(Answer::Probed(result))) => Ok(result),
            Ok(Ok(Answer::Unheard)) => Err(NotProbed::Away),
            Ok(Err(_)) | Err(_) => Err(NotProbed::Mute),
        }
    }

    /// A node says what came of a probe.
    pub(crate) fn probed(&self, node: Serial, probed: Probed) {
        self.0
            .answer(probed.request.run, node, Answer::Probed(probed.result));
    }

    /// The server says that nobody heard the question.
    pub(crate) fn unheard(&self, id: RunId, node: Serial) {
        self.0.answer(id, node, Answer::Unheard);
    }
}
