//! Tells the broker what machines there are: when it is connected, when
//! something changed, and every half minute.

use std::sync::Arc;
use std::time::Duration;

use muster_protocol::subject::NodeSays;
use muster_protocol::text::printable;
use muster_protocol::units::Timestamp;
use muster_protocol::vm::{Capacity, Guest, HypervisorReport, MAX_GUESTS};
use muster_protocol::wire::MAX_MESSAGE;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::files::Files;
use super::machines::Machines;
use super::virt::{Answered, Asking, Virt, VirtError};
use crate::bus::{Bus, Voice};

/// How often it is said, whatever happens.
const EVERY: Duration = Duration::from_secs(30);
/// Changes come in swarms: between two reports at least.
const GAP: Duration = Duration::from_millis(250);
/// The same while something is wrong: it may come and go.
const TROUBLED_GAP: Duration = Duration::from_secs(2);
/// Characters of a domain's name, which can be anything.
const MAX_NAME: usize = 80;

/// Whoever tells.
pub struct Watcher {
    virt: Arc<dyn Virt>,
    machines: Machines,
    sequence: u64,
    /// Whether the last report had a problem: said in the log once.
    troubled: bool,
}

impl Watcher {
    /// Looks by a libvirt of its own, so that nothing holds it up.
    #[must_use]
    pub fn new(virt: Arc<dyn Virt>, machines: Machines) -> Self {
        Self {
            virt,
            machines,
            sequence: 0,
            troubled: false,
        }
    }

    /// Tells until `stop`.
    pub async fn run(mut self, mut bus: Bus, stop: CancellationToken) {
        loop {
            let voice = tokio::select! {
                () = stop.cancelled() => return,
                voice = bus.welcomed() => voice,
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.session(&voice) => {}
                () = bus.changed() => {}
            }
        }
    }

    /// On one connection.
    async fn session(&mut self, voice: &Voice) {
        let mut events = self.virt.changes();
        let mut own = self.machines.changes();
        loop {
            events.borrow_and_update();
            own.borrow_and_update();
            let report = self.report().await;
            if let Err(e) = voice.say(NodeSays::Machines, &report).await {
                debug!("the broker is not told of machines: {e}");
            }
            let next = Instant::now() + EVERY;
            tokio::time::sleep(if self.troubled { TROUBLED_GAP } else { GAP }).await;
            tokio::select! {
                changed = events.changed() => if changed.is_err() {
                    tokio::time::sleep_until(next).await;
                },
                changed = own.changed() => if changed.is_err() {
                    tokio::time::sleep_until(next).await;
                },
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }

    /// What is so now.
    pub async fn report(&mut self) -> HypervisorReport {
        self.sequence += 1;
        let setting = self.machines.setting();
        let mut report = HypervisorReport {
            sequence: self.sequence,
            at: Timestamp::now(),
            virtualisation: None,
            capacity: None,
            pool: setting.pool.clone(),
            guests: Vec::new(),
            images: Vec::new(),
            problem: None,
        };
        let problem = match self.look(&mut report).await {
            Ok(()) => oversized(&report),
            Err(e) => Some(printable(&e.to_string(), 400)),
        };
        match &problem {
            Some(problem) if !self.troubled => warn!("machines cannot be looked at: {problem}"),
            _ => {}
        }
        self.troubled = problem.is_some();
        if problem.is_some() {
            // Nobody may take half of it for all of it.
            report.guests.clear();
            report.images.clear();
            report.capacity = None;
            report.problem = problem;
        }
        report
    }

    async fn look(&self, report: &mut HypervisorReport) -> Answered<()> {
        let setting = self.machines.setting();
        let ask: Asking<'_, dyn Virt> = Asking(&*self.virt);
        let host = ask.host().await?;
        let pool = ask.pool(&setting.pool).await?;
        report.virtualisation = setting.kind.or(host.virtualisation);
        report.capacity = Some(Capacity {
            cpus: host.cpus,
            memory: host.memory,
            disk: pool.capacity,
            disk_free: pool.available,
        });
        if let Some(path) = pool.path {
            let files = Files {
                pool: path.into(),
                console: setting.console.clone(),
            };
            // A remote libvirt's pool is not here.
            report.images = files
                .images()
                .map_err(|e| VirtError::Away(format!("its pool {}: {e}", files.pool.display())))?;
        }
        report.guests = ask
            .domains()
            .await?
            .into_iter()
            .map(|domain| Guest {
                id: domain.uuid,
                name: printable(&domain.name, MAX_NAME),
                state: domain.state,
                cpus: domain.cpus,
                memory: domain.memory,
                owner: domain.owner,
                since: domain.since,
                traffic: domain.traffic,
            })
            .collect();
        report.guests.sort_by_key(|guest| guest.id);
        Ok(())
    }
}

/// Why a report cannot be sent as it is.
fn oversized(report: &HypervisorReport) -> Option<String> {
    let count = report.guests.len();
    if count > MAX_GUESTS {
        return Some(format!(
            "it has {count} domains, and at most {MAX_GUESTS} are looked after"
        ));
    }
    let bytes = serde_json::to_vec(report).map_or(usize::MAX, |bytes| bytes.len());
    (bytes > MAX_MESSAGE)
        .then(|| format!("what it has takes {bytes} bytes to say; that is too much"))
}
