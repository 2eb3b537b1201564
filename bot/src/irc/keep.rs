//! The task that owns a connection.

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Heard, NetworkSettings, Send, Users};

/// Connects, and connects again.
pub(super) async fn keep(
    _settings: NetworkSettings,
    _users: Users,
    _to_send: mpsc::Receiver<Send>,
    _hear: mpsc::Sender<Heard>,
    stop: CancellationToken,
) {
    stop.cancelled().await;
}
