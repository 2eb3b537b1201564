//! State and journals in JetStream, as they work on nats-server 2.9 and newer.
//!
//! Two shapes: [`stream`] is an append-only sequence of messages with subjects,
//! [`kv`] a set of named values with compare-and-swap. Both refuse to overwrite
//! what they have not seen: an append or a write names the revision that it
//! builds on.

pub mod append;
pub mod error;
pub mod kv;
pub(crate) mod live;
pub mod read;
pub mod stream;

use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::{Context, context::ContextBuilder};
use tokio::time::sleep;

/// How long JetStream may take for one answer.
pub const TIMEOUT: Duration = Duration::from_secs(5);

/// How long a pause of JetStream (a restart, an election) is waited for.
pub const READY_WITHIN: Duration = Duration::from_secs(10);

/// Acknowledgements that may be outstanding at a time.
const IN_FLIGHT: usize = 1024;

/// The JetStream context that the functions of this module expect.
#[must_use]
pub fn context(client: Client) -> Context {
    ContextBuilder::new()
        .timeout(TIMEOUT)
        .ack_timeout(TIMEOUT)
        .max_ack_inflight(IN_FLIGHT)
        .backpressure_on_inflight(true)
        .build(client)
}

/// Pauses that grow: 20 ms to half a second.
#[derive(Default)]
struct Pause(u32);

impl Pause {
    async fn wait(&mut self) {
        let millis = (20u64 << self.0.min(5)).min(500);
        self.0 += 1;
        sleep(Duration::from_millis(millis)).await;
    }
}

#[cfg(test)]
mod tests;
