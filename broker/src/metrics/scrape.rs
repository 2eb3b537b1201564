//! What is as it is at the moment when somebody reads the metrics.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::labels::{State, StreamName};
use super::{Level, Metrics};

/// The content type of what [`Metrics::text`] gives.
pub const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A stream or bucket.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Stored {
    /// Its name in JetStream.
    pub name: String,
    /// Bytes in it.
    pub bytes: u64,
    /// Messages in it.
    pub messages: u64,
    /// Messages that were ever stored in it.
    pub last: u64,
}

/// How the broker stands at the moment.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Standing {
    /// Its epoch, while it is the active one.
    pub epoch: Option<u64>,
    /// Whether it is connected to NATS.
    pub nats: bool,
    /// Nodes by presence; `None` where this broker does not know them.
    pub nodes: Option<BTreeMap<&'static str, u64>>,
    /// Runs that are kept, by state; without those that are parts of others.
    pub runs: BTreeMap<&'static str, u64>,
    /// Runs that have not ended, with those that are parts of others.
    pub open_runs: u64,
    /// What nodes have said for runs or steps that they have no part in.
    pub strays: u64,
    /// Unix time, in seconds, at which the certificate of the API ends.
    pub certificate_ends: Option<i64>,
    /// Streams and buckets; none when NATS does not say.
    pub stored: Vec<Stored>,
}

pub(super) struct Gauges {
    active: Gauge,
    epoch: Level,
    nats: Gauge,
    nodes: Family<State, Level>,
    runs: Family<State, Level>,
    open_runs: Level,
    strays: Level,
    certificate_ends: Family<[(&'static str, &'static str); 1], Gauge>,
    bytes: Family<StreamName, Level>,
    messages: Family<StreamName, Level>,
    sequence: Family<StreamName, Level>,
}

impl Gauges {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let gauges = Self {
            active: Gauge::default(),
            epoch: Level::default(),
            nats: Gauge::default(),
            nodes: Family::default(),
            runs: Family::default(),
            open_runs: Level::default(),
            strays: Level::default(),
            certificate_ends: Family::default(),
            bytes: Family::default(),
            messages: Family::default(),
            sequence: Family::default(),
        };
        registry.register(
            "active",
            "Whether this broker is the active one: it holds the lease at this moment",
            gauges.active.clone(),
        );
        registry.register(
            "lease_epoch",
            "The epoch of the lease that this broker holds; 0 without",
            gauges.epoch.clone(),
        );
        registry.register(
            "nats_connected",
            "Whether this broker is connected to NATS",
            gauges.nats.clone(),
        );
        registry.register("nodes", "Nodes by presence", gauges.nodes.clone());
        registry.register(
            "runs",
            "Runs that are kept, by state, without those that are parts of others",
            gauges.runs.clone(),
        );
        registry.register(
            "runs_open",
            "Runs that have not ended, with those that are parts of others",
            gauges.open_runs.clone(),
        );
        registry.register(
            "stray_messages",
            "What nodes have said for runs or steps that they have no part in, in this session",
            gauges.strays.clone(),
        );
        registry.register_with_unit(
            "tls_certificate_expiry_timestamp",
            "Unix time at which the certificate of the API ends; absent without TLS",
            Unit::Seconds,
            gauges.certificate_ends.clone(),
        );
        registry.register_with_unit(
            "stream_size",
            "What a stream or bucket in NATS takes",
            Unit::Bytes,
            gauges.bytes.clone(),
        );
        registry.register(
            "stream_messages",
            "Messages in a stream or bucket in NATS",
            gauges.messages.clone(),
        );
        registry.register(
            "stream_last_sequence",
            "Messages that were ever stored in a stream or bucket; of MUSTER_EVENTS, events",
            gauges.sequence.clone(),
        );
        gauges
    }

    fn set(&self, standing: &Standing) {
        self.active.set(i64::from(standing.epoch.is_some()));
        self.epoch.set(standing.epoch.unwrap_or(0));
        self.nats.set(i64::from(standing.nats));
        levels(&self.nodes, standing.nodes.as_ref());
        levels(&self.runs, Some(&standing.runs));
        self.open_runs.set(standing.open_runs);
        self.strays.set(standing.strays);
        self.certificate_ends.clear();
        if let Some(ends) = standing.certificate_ends {
            self.certificate_ends
                .get_or_create(&[("use", "api")])
                .set(ends);
        }
        for family in [&self.bytes, &self.messages, &self.sequence] {
            family.clear();
        }
        for stored in &standing.stored {
            let name = StreamName {
                stream: stored.name.clone(),
            };
            self.bytes.get_or_create(&name).set(stored.bytes);
            self.messages.get_or_create(&name).set(stored.messages);
            self.sequence.get_or_create(&name).set(stored.last);
        }
    }
}

fn levels(family: &Family<State, Level>, counts: Option<&BTreeMap<&'static str, u64>>) {
    family.clear();
    for (state, count) in counts.into_iter().flatten() {
        let state = State {
            state: (*state).to_owned(),
        };
        family.get_or_create(&state).set(*count);
    }
}

impl Metrics {
    /// All of them, in the text of OpenMetrics.
    ///
    /// # Errors
    /// A metric that cannot be written: a defect.
    pub async fn text(&self, standing: &Standing) -> Result<String, std::fmt::Error> {
        let _one = self.0.scraping.lock().await;
        self.0.standing.set(standing);
        let registry = self
            .0
            .registry
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        encode(&mut text, &registry)?;
        Ok(text)
    }
}
