//! What the broker counts, for Prometheus: names and units by its convention,
//! in the text of OpenMetrics.
//!
//! A process has one set of them, whatever its sessions do. Labels have few
//! values, all chosen here: never a name of a node, a principal or a path as
//! somebody has sent it.

mod labels;
mod scrape;

use std::fmt::Debug;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, LazyLock, PoisonError, RwLock};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry, Unit};

pub use self::labels::{Answered, Method, OutcomeLabel, Refusal, Route, State, StreamName, Why};
pub use self::scrape::{OPENMETRICS, Standing, Stored};

/// Buckets of latencies, in seconds: from what a request in memory takes to
/// what a person waits for.
const LATENCIES: [f64; 14] = [
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 15.0, 60.0,
];

fn latencies() -> Histogram {
    Histogram::new(LATENCIES)
}

/// A histogram for each set of labels.
type Latencies<S> = Family<S, Histogram, fn() -> Histogram>;

/// The metrics of this process. Cheap to clone.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

impl Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

struct Inner {
    registry: RwLock<Registry>,
    /// One reads at a time: gauges are set when they are read.
    scraping: tokio::sync::Mutex<()>,
    requests: Family<Answered, Counter>,
    request_seconds: Latencies<Route>,
    in_progress: Gauge,
    refused: Family<Refusal, Counter>,
    connections: Gauge,
    watchers: Gauge,
    journal_seconds: Histogram,
    journal_failed: Counter,
    outcomes: Family<OutcomeLabel, Counter>,
    ended: Family<State, Counter>,
    standing: scrape::Gauges,
}

static PROCESS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

impl Metrics {
    /// Those of this process: there is one set.
    #[must_use]
    pub fn of_process() -> Self {
        PROCESS.clone()
    }

    fn new() -> Self {
        let mut registry = Registry::with_prefix("muster");
        let about = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The version of the broker", about);
        let requests = Family::default();
        registry.register(
            "http_requests",
            "Requests that were answered",
            requests.clone(),
        );
        let request_seconds: Latencies<Route> = Family::new_with_constructor(latencies);
        registry.register_with_unit(
            "http_request_duration",
            "How long requests took until their answer began; streams go on after that",
            Unit::Seconds,
            request_seconds.clone(),
        );
        let in_progress = Gauge::default();
        registry.register(
            "http_requests_in_progress",
            "Requests that are worked on",
            in_progress.clone(),
        );
        let refused = Family::default();
        registry.register(
            "http_refused",
            "Requests and connections that a limit has turned away",
            refused.clone(),
        );
        let connections = Gauge::default();
        registry.register("http_connections", "Open connections", connections.clone());
        let watchers = Gauge::default();
        registry.register(
            "watchers",
            "Those who follow a run or wait for its end",
            watchers.clone(),
        );
        let journal_seconds = latencies();
        registry.register_with_unit(
            "journal_append_duration",
            "How long NATS took to store an event of a run",
            Unit::Seconds,
            journal_seconds.clone(),
        );
        let journal_failed = Counter::default();
        registry.register(
            "journal_append_failures",
            "Events of runs that NATS did not store at the first try",
            journal_failed.clone(),
        );
        let outcomes = Family::default();
        registry.register(
            "run_outcomes",
            "Outcomes on nodes that were written down since the process began",
            outcomes.clone(),
        );
        let ended = Family::default();
        registry.register(
            "runs_ended",
            "Runs that have ended since the process began, without those that are parts of others",
            ended.clone(),
        );
        let standing = scrape::Gauges::register(&mut registry);
        Self(Arc::new(Inner {
            registry: RwLock::new(registry),
            scraping: tokio::sync::Mutex::default(),
            requests,
            request_seconds,
            in_progress,
            refused,
            connections,
            watchers,
            journal_seconds,
            journal_failed,
            outcomes,
            ended,
            standing,
        }))
    }

    /// Adds a metric, which then is told with the others: once for each name
    /// in the life of the process. `name` has no `muster_` and no `_total`.
    pub fn register(&self, name: &str, help: &str, metric: impl Metric) {
        self.0
            .registry
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .register(name, help, metric);
    }

    /// Adds a histogram of latencies in seconds, as the others are.
    #[must_use]
    pub fn register_seconds(&self, name: &str, help: &str) -> Histogram {
        let histogram = latencies();
        self.0
            .registry
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .register_with_unit(name, help, Unit::Seconds, histogram.clone());
        histogram
    }

    /// A request was answered.
    pub fn answered(&self, method: Method, route: &str, status: u16, took: Duration) {
        let route = Route {
            method,
            route: route.to_owned(),
        };
        self.0
            .requests
            .get_or_create(&Answered {
                method,
                route: route.route.clone(),
                status,
            })
            .inc();
        self.0
            .request_seconds
            .get_or_create(&route)
            .observe(took.as_secs_f64());
    }

    /// A request is worked on until the guard goes.
    #[must_use]
    pub fn begin_request(&self) -> Counted {
        Counted::new(self.0.in_progress.clone())
    }

    /// How many requests are worked on.
    #[cfg(test)]
    pub(crate) fn in_progress(&self) -> i64 {
        self.0.in_progress.get()
    }

    /// How many watch.
    #[cfg(test)]
    pub(crate) fn watching(&self) -> i64 {
        self.0.watchers.get()
    }

    /// A connection is open until the guard goes.
    #[must_use]
    pub fn begin_connection(&self) -> Counted {
        Counted::new(self.0.connections.clone())
    }

    /// Somebody watches until the guard goes.
    #[must_use]
    pub fn begin_watching(&self) -> Counted {
        Counted::new(self.0.watchers.clone())
    }

    /// A limit has turned somebody away.
    pub fn refused(&self, why: Why) {
        self.0.refused.get_or_create(&Refusal { why }).inc();
    }

    /// An event of a run was stored, or was not at this try.
    pub(crate) fn appended(&self, took: Duration, stored: bool) {
        self.0.journal_seconds.observe(took.as_secs_f64());
        if !stored {
            self.0.journal_failed.inc();
        }
    }

    /// So many outcomes were written down.
    pub(crate) fn outcomes(&self, outcome: &str, number: u64) {
        if number == 0 {
            return;
        }
        let label = OutcomeLabel {
            outcome: outcome.to_owned(),
        };
        self.0.outcomes.get_or_create(&label).inc_by(number);
    }

    /// A run has ended.
    pub(crate) fn ended(&self, state: &str) {
        let label = State {
            state: state.to_owned(),
        };
        self.0.ended.get_or_create(&label).inc();
    }
}

/// Counts one while it lives.
#[derive(Debug)]
pub struct Counted(Gauge<i64, std::sync::atomic::AtomicI64>);

impl Counted {
    fn new(gauge: Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A gauge of what is never negative and may be large.
type Level = Gauge<u64, AtomicU64>;

#[cfg(test)]
mod tests;
