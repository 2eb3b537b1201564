//! Whether somebody else changes this node's own firewall: it is put right,
//! and the broker is told.

use muster_nft::host::{HostFirewall, Repaired};
use muster_protocol::firewall::FirewallRepaired;
use muster_protocol::subject::NodeSays;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::bus::Bus;

/// What is to be told while nobody can be. More is in the log alone.
const WAITING: usize = 16;

/// Looks after it until `stop`.
pub async fn look_after(host: HostFirewall, bus: Bus, stop: CancellationToken) {
    let (tell, mut told) = mpsc::channel::<Repaired>(WAITING);
    let watching = host.watch(stop.clone(), move |repaired| {
        let _ = tell.try_send(repaired);
    });
    let telling = async {
        while let Some(Repaired { lines }) = told.recv().await {
            let repaired = FirewallRepaired { lines };
            let voice = bus.welcomed().await;
            if let Err(e) = voice.say(NodeSays::Repaired, &repaired).await {
                debug!("the broker is not told of a firewall that was put right: {e}");
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        ((), ()) = async { tokio::join!(watching, telling) } => {}
    }
}
