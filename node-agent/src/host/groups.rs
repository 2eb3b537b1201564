//! Security groups of this hypervisor: what a broker says of them is handed to
//! who puts it in force, and what is in force is told to the broker.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use muster_nft::groups::{Groups, Setting};
use muster_protocol::firewall::GroupsUpdate;
use muster_protocol::subject::NodeSays;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::bus::{Bus, Voice};

/// What a node that looks after groups says that it can do.
pub const CAPABILITY: &str = "groups";
/// Where what is held is, in the state directory.
pub const DIRECTORY: &str = "groups";
/// Updates that wait to be put in force. More are dropped: the broker sends
/// again what is not acknowledged.
const WAITING: usize = 64;
/// It is said again after so long, whatever happens.
const EVERY: Duration = Duration::from_secs(30);

/// Takes what a broker says of groups. It is cheap to clone.
#[derive(Clone, Debug)]
pub struct Inlet(mpsc::Sender<Box<GroupsUpdate>>);

impl Inlet {
    /// Hands an update on, in the order in which they come.
    pub fn take(&self, update: Box<GroupsUpdate>) {
        if self.0.try_send(update).is_err() {
            debug!("an update of groups is dropped: too many wait; it is sent again");
        }
    }
}

/// Whoever puts updates in force, and tells what is.
#[derive(Debug)]
pub struct Keeping {
    groups: Groups,
    updates: mpsc::Receiver<Box<GroupsUpdate>>,
}

/// Begins to look after the groups of this hypervisor, if the system can:
/// what was held before is in force when this returns.
pub async fn open(state: &Path, nft: &Path, stop: CancellationToken) -> Option<(Inlet, Keeping)> {
    let mut setting = Setting::new(state.join(DIRECTORY));
    setting.nft = nft.to_owned();
    match Groups::start(setting, stop).await {
        Ok(groups) => {
            let (inlet, updates) = mpsc::channel(WAITING);
            info!("security groups are looked after");
            Some((Inlet(inlet), Keeping { groups, updates }))
        }
        Err(e) => {
            error!("the capability `{CAPABILITY}` is not granted: {e}");
            None
        }
    }
}

impl Keeping {
    /// Until `stop`. What is in force stays so.
    pub async fn run(self, mut bus: Bus, stop: CancellationToken) {
        let Self {
            groups,
            mut updates,
        } = self;
        let taken = groups.clone();
        let taking = async move {
            while let Some(update) = updates.recv().await {
                if let Err(e) = taken.update(*update).await {
                    warn!("{e}");
                    return;
                }
            }
        };
        let telling = async {
            loop {
                let voice = bus.welcomed().await;
                tokio::select! {
                    () = tell(&groups, &voice) => return,
                    () = bus.changed() => {}
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = taking => {}
            () = telling => {}
        }
        // It works on a thread of its own, and what it has begun is done.
        groups.ended().await;
    }
}

/// Tells on one connection; it returns when there is nothing to tell any more.
async fn tell(groups: &Groups, voice: &Arc<Voice>) {
    let mut answers = groups.answers();
    loop {
        let answer = answers.borrow_and_update().clone();
        if let Err(e) = voice.say(NodeSays::Groups, &answer).await {
            debug!("the broker is not told of groups: {e}");
        }
        if let Ok(Err(_)) = tokio::time::timeout(EVERY, answers.changed()).await {
            return;
        }
    }
}
