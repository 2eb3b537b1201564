//! Who answers, and how fast.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use muster_protocol::api::{PingAnswer, PingReply, Silent};
use muster_protocol::envelope::Ask;
use muster_protocol::ids::{InstanceId, RunId, Serial};
use muster_protocol::nodeset::NodeSet;
use muster_protocol::wire::{Pong, Recall};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use crate::bus::{Bus, Order, SendError};
use crate::inventory::{Inventory, NodeRecord};
use crate::presence::{Presence, Reach};
use crate::routing::{Route, route};

/// Pings under way at a time; a further one is refused.
const MOST: usize = 256;

/// Why nobody was pinged.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PingError {
    /// Too many at once.
    #[error("{MOST} pings are under way; try again in a moment")]
    Busy,
    /// It could not be sent.
    #[error(transparent)]
    Send(#[from] SendError),
}

enum Answer {
    /// With how far its journal is.
    Pong(Serial, InstanceId, Instant, Option<u64>),
    /// The server says that nobody heard it.
    Unheard(Serial),
}

type Waiting = HashMap<RunId, mpsc::Sender<Answer>>;

/// Sends pings and gathers the answers. Cheap to clone.
#[derive(Clone)]
pub struct Pinger(Arc<Inner>);

struct Inner {
    bus: Bus,
    inventory: Inventory,
    presence: Presence,
    waiting: Mutex<Waiting>,
}

impl std::fmt::Debug for Pinger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pinger").finish_non_exhaustive()
    }
}

/// Stops listening for a ping's answers when it is dropped.
struct Listening<'a> {
    pinger: &'a Inner,
    id: RunId,
    answers: mpsc::Receiver<Answer>,
}

impl Drop for Listening<'_> {
    fn drop(&mut self) {
        self.pinger.waiting().remove(&self.id);
    }
}

impl Inner {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listen(&self, id: RunId, room: usize) -> Result<Listening<'_>, PingError> {
        let (tell, answers) = mpsc::channel(room);
        let mut waiting = self.waiting();
        if waiting.len() >= MOST {
            return Err(PingError::Busy);
        }
        waiting.insert(id, tell);
        drop(waiting);
        Ok(Listening {
            pinger: self,
            id,
            answers,
        })
    }

    fn tell(&self, id: RunId, answer: Answer) {
        if let Some(tell) = self.waiting().get(&id) {
            // What a node says twice or thrice may be lost.
            let _ = tell.try_send(answer);
        }
    }
}

impl Pinger {
    /// A pinger over this bus.
    #[must_use]
    pub fn new(bus: Bus, inventory: Inventory, presence: Presence) -> Self {
        Self(Arc::new(Inner {
            bus,
            inventory,
            presence,
            waiting: Mutex::default(),
        }))
    }

    /// Pings nodes, and returns when all have answered that can, or the time
    /// is over.
    ///
    /// # Errors
    /// [`PingError`].
    pub async fn ping(
        &self,
        nodes: &[Arc<NodeRecord>],
        within: Duration,
    ) -> Result<PingAnswer, PingError> {
        let inner = &*self.0;
        let set: NodeSet = nodes.iter().map(|node| node.serial).collect();
        let order = Order::own(set, Ask::Ping);
        let signed = inner.bus.sign(&order)?;
        let mut listening = inner.listen(order.id.run, nodes.len() * 2 + 16)?;
        let serials: Vec<Serial> = nodes.iter().map(|node| node.serial).collect();
        let groups: NodeSet = serials
            .iter()
            .zip(inner.presence.reach(&serials))
            .filter(|(_, reach)| *reach == Reach::Groups)
            .map(|(serial, _)| *serial)
            .collect();
        let snapshot = inner.inventory.snapshot();
        let fleet = snapshot
            .iter()
            .map(|node| (node.serial, &node.assignment))
            .collect::<Vec<_>>();
        let alone = serials
            .iter()
            .copied()
            .filter(|serial| !groups.contains(*serial))
            .collect();
        let start = Instant::now();
        inner.bus.along(&route(&groups, &fleet), &signed).await?;
        inner.bus.along(&Route::Nodes(alone), &signed).await?;

        let mut open: HashSet<Serial> = serials.iter().copied().collect();
        let mut answered = Vec::with_capacity(nodes.len());
        let mut unheard = 0;
        let mut last = start;
        while open.len() > unheard {
            let Ok(Some(answer)) = timeout_at(start + within, listening.answers.recv()).await
            else {
                break;
            };
            match answer {
                Answer::Pong(serial, _, at, _) => {
                    if let (true, Some(node)) = (open.remove(&serial), snapshot.get(serial)) {
                        last = last.max(at);
                        answered.push(PingReply {
                            node: node.assignment.name.clone(),
                            us: micros(at - start),
                        });
                    }
                }
                Answer::Unheard(serial) => unheard += usize::from(open.contains(&serial)),
            }
        }
        drop(listening);
        let silent = nodes
            .iter()
            .filter(|node| open.contains(&node.serial))
            .map(|node| {
                let view = inner.presence.view(node.serial);
                Silent {
                    node: node.assignment.name.clone(),
                    state: view.state,
                    last_seen: view.last_seen,
                }
            })
            .collect();
        Ok(PingAnswer {
            asked: u32::try_from(nodes.len()).unwrap_or(u32::MAX),
            answered,
            silent,
            total_us: micros(last - start),
        })
    }

    /// Which of these instances of a node answer one fresh ping, and how far
    /// their journals are. Nothing that was said before, by whomever it is
    /// repeated, can stand for an answer.
    pub(crate) async fn answering(
        &self,
        node: Serial,
        instances: &[InstanceId],
        within: Duration,
    ) -> HashMap<InstanceId, Option<u64>> {
        let inner = &*self.0;
        let mut answered = HashMap::new();
        let order = Order::own([node].into_iter().collect(), Ask::Ping);
        let Ok(signed) = inner.bus.sign(&order) else {
            return answered;
        };
        let Ok(mut listening) = inner.listen(order.id.run, 16) else {
            return answered;
        };
        if inner.bus.to_node(node, &signed).await.is_err() {
            return answered;
        }
        let end = Instant::now() + within;
        while answered.len() < instances.len() {
            match timeout_at(end, listening.answers.recv()).await {
                Ok(Some(Answer::Pong(from, who, _, position)))
                    if from == node && instances.contains(&who) =>
                {
                    answered.insert(who, position);
                }
                Ok(Some(Answer::Pong(..))) => {}
                Ok(Some(Answer::Unheard(_)) | None) | Err(_) => break,
            }
        }
        answered
    }

    /// Asks every node to show itself: after a start nobody was heard yet.
    pub(crate) async fn call_the_roll(&self) {
        let snapshot = self.0.inventory.snapshot();
        let set = snapshot
            .iter()
            .filter(|node| node.is_active())
            .map(|node| node.serial)
            .collect();
        self.ask_all(&Order::own(set, Ask::Ping)).await;
    }

    /// Asks all nodes to report again; those that have, do nothing.
    pub(crate) async fn recall(&self, recall: Recall) {
        let snapshot = self.0.inventory.snapshot();
        let set = snapshot
            .iter()
            .filter(|node| node.is_active() && self.0.presence.journals().is_known(node.serial))
            .map(|node| node.serial)
            .collect::<NodeSet>();
        if !set.is_empty() {
            self.ask_all(&Order::own(set, Ask::Recall(recall))).await;
        }
    }

    async fn ask_all(&self, order: &Order) {
        let sent = match self.0.bus.sign(order) {
            Ok(signed) => {
                self.0
                    .bus
                    .to_group(muster_protocol::subject::ALL.to_owned(), &signed)
                    .await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = sent {
            tracing::warn!(%error, "cannot ask the nodes to show themselves");
        }
    }

    /// A node answers.
    pub(crate) fn pong(&self, node: Serial, pong: &Pong) {
        self.0.tell(
            pong.request.run,
            Answer::Pong(node, pong.instance, Instant::now(), pong.position),
        );
    }

    /// The server says that nobody heard the ping of a node.
    pub(crate) fn unheard(&self, id: RunId, node: Serial) {
        self.0.tell(id, Answer::Unheard(node));
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
