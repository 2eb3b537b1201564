//! Where the evidence comes from. Nothing here asks the broker.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use async_nats::ConnectOptions;
use async_nats::jetstream::Context as JetStream;
use async_nats::jetstream::stream::RawMessageErrorKind;
use muster_broker::nats::credentials::Credentials;
use muster_broker::nats::jwt::UserClaims;
use muster_broker::nats::keys::NatsKeys;
use muster_broker::nats::permissions::broker_permissions;
use muster_protocol::api::ClusterEvent;
use muster_protocol::envelope::Request;
use muster_protocol::ids::{RequestId, RunId, Serial};
use muster_protocol::run::RunEvent;
use muster_protocol::subject;
use muster_protocol::units::Timestamp;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _};
use serde_json::Value;

use super::{
    Counter, Evidence, NodeJournal, Recorded, RunJournal, Step, Testimony, Told, Violation, told,
    violations,
};
use crate::{PATIENCE, Said, Up};

/// Where counters are, below a test's directory.
const COUNTERS: &str = "counters";
/// How deep below a test's directory a node's state may lie.
const DEPTH: usize = 5;
/// The event that tells people that the cluster is as it was at a backup.
const RESTORED: &str = "cluster.restored";

/// A look at everything, after a fault.
///
/// NATS has to run. Agents and broker may run or not; what is still under way
/// is no contradiction, but a test should wait for the end of its runs first.
#[derive(Clone, Debug)]
pub struct Audit {
    root: PathBuf,
    state: PathBuf,
    network: Option<String>,
    told: BTreeSet<Told>,
    clocks_off: Vec<String>,
    gone: BTreeSet<RunId>,
    witnesses: Vec<Testimony>,
}

impl Audit {
    /// Of a `muster up` and of every agent and counter in its test's
    /// directory, with all that [`Up::muster`] was told.
    #[must_use]
    pub fn of(up: &Up) -> Self {
        let mut audit = Self::at(up.dir.path(), &up.state());
        audit.told = up.told();
        audit
    }

    /// Of a broker with its state in `state`, and of every agent and counter
    /// below `root`.
    #[must_use]
    pub fn at(root: &Path, state: &Path) -> Self {
        Self {
            root: root.to_owned(),
            state: state.to_owned(),
            network: None,
            told: BTreeSet::new(),
            clocks_off: Vec::new(),
            gone: BTreeSet::new(),
            witnesses: Vec::new(),
        }
    }

    /// NATS is reached from this network namespace (`ip netns`).
    #[must_use]
    pub fn from_network(mut self, name: &str) -> Self {
        self.network = Some(name.to_owned());
        self
    }

    /// Somebody was told this.
    #[must_use]
    pub fn told(mut self, said: &Said) -> Self {
        self.told.extend(told(said));
        self
    }

    /// The clock of the agent whose state is in a directory of this name is
    /// wrong on purpose: its times are not compared with others.
    #[must_use]
    pub fn clock_off(mut self, name: &str) -> Self {
        self.clocks_off.push(name.to_owned());
        self
    }

    /// People were told that this run is gone for good.
    #[must_use]
    pub fn gone(mut self, run: &str) -> Self {
        self.gone.insert(run.parse().expect("a run's id"));
        self
    }

    /// What `muster-fleet-sim` printed at its end.
    #[must_use]
    pub fn witness(mut self, statistics: &Value) -> Self {
        let requests = &statistics["requests"];
        let requests = if requests.is_object() {
            requests
        } else {
            &statistics["testimony"]["requests"]
        };
        let requests = requests
            .as_object()
            .expect("a fleet's statistics hold `requests`");
        for (id, seen) in requests {
            let number = |key: &str| seen[key].as_u64().expect("a number");
            let (run, step) = id.split_once('/').expect("a request's id");
            self.witnesses.push(Testimony {
                request: RequestId {
                    run: run.parse().expect("a run's id"),
                    step: step.parse().expect("a step's number"),
                },
                nodes: number("nodes"),
                most_on_a_node: number("most_on_a_node"),
            });
        }
        self
    }

    /// Fails with every contradiction there is.
    ///
    /// # Panics
    /// When there is one, or the evidence cannot be had.
    pub fn holds(&self) {
        let evidence = self
            .gather()
            .unwrap_or_else(|e| panic!("the evidence cannot be had: {e:#}"));
        let found = violations(&evidence);
        assert!(
            found.is_empty(),
            "{} invariants do not hold:\n{}",
            found.len(),
            found
                .iter()
                .map(Violation::to_string)
                .collect::<Vec<_>>()
                .join("\n")
        );
    }

    /// Reads everything.
    ///
    /// # Errors
    /// When something cannot be read: then nothing is known.
    pub fn gather(&self) -> Result<Evidence> {
        let mut evidence = Evidence {
            told: self.told.iter().cloned().collect(),
            gone: self.gone.clone(),
            witnesses: self.witnesses.clone(),
            ..Evidence::default()
        };
        // Runs first: what happens afterwards is in the others only if it was
        // intended before, and then it is asked for again below.
        let mut counters = Vec::new();
        for entry in std::fs::read_dir(self.root.join(COUNTERS))
            .into_iter()
            .flatten()
        {
            let counter = Counter::new(entry?.path());
            evidence.effects.extend(counter.effects()?);
            counters.push(counter);
        }
        let mut files = Vec::new();
        find(&self.root, "journal.db", DEPTH, &mut files);
        for file in files {
            evidence.nodes.extend(self.node(&file)?);
        }
        let (journals, events, record) = self.streams()?;
        evidence.recorded = super::record::allowed(&record)?;
        evidence.restored = events.iter().any(|e| e.kind == RESTORED);
        for journal in &journals {
            let Some(RunEvent::Created { spec }) = journal.events.first().map(|r| &r.event) else {
                continue;
            };
            let params = spec.params.to_string();
            let counts = |c: &Counter| params.contains(&*c.file().to_string_lossy());
            if spec.local.is_none() && counters.iter().any(counts) {
                evidence.counted.insert(journal.run);
            }
        }
        evidence.journals = journals;
        Ok(evidence)
    }

    /// A node's journal; `None` for what only has its name.
    fn node(&self, file: &Path) -> Result<Option<NodeJournal>> {
        let dir = file.parent().context("a file is in a directory")?;
        let Ok(enrolment) = std::fs::read_to_string(dir.join("enrolment.json")) else {
            return Ok(None);
        };
        let enrolment: Value = serde_json::from_str(&enrolment)?;
        let serial = &enrolment["credentials"]["serial"];
        let serial = serial.as_u64().and_then(|s| u32::try_from(s).ok());
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        let mut journal = NodeJournal {
            place: name.to_string(),
            serial: Serial(serial.with_context(|| format!("a serial in {}", dir.display()))?),
            epoch: 0,
            clock_off: self.clocks_off.iter().any(|c| *c == name),
            steps: Vec::new(),
        };
        read_node(file, &mut journal).with_context(|| file.display().to_string())?;
        Ok(Some(journal))
    }

    /// The journals of runs and the events, from JetStream.
    fn streams(&self) -> Result<Streams> {
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                if let Some(name) = &self.network {
                    // Of this thread only.
                    let file = std::fs::File::open(Path::new("/run/netns").join(name))?;
                    let net = rustix::thread::LinkNameSpaceType::Network;
                    rustix::thread::move_into_link_name_space(
                        std::os::fd::AsFd::as_fd(&file),
                        Some(net),
                    )?;
                }
                tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()?
                    .block_on(async {
                        let js = tokio::time::timeout(PATIENCE, connect(&self.state)).await??;
                        // The record last: what is in a journal is in it.
                        let (runs, events) = (runs(&js).await?, events(&js).await?);
                        Ok((runs, events, record(&js).await?))
                    })
            });
            reader
                .join()
                .unwrap_or_else(|_| bail!("the reader of JetStream has panicked"))
        })
    }
}

/// Files of this name below a directory.
fn find(dir: &Path, name: &str, depth: usize, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            if depth > 0 {
                find(&path, name, depth - 1, found);
            }
        } else if entry.file_name() == name {
            found.push(path);
        }
    }
}

fn time(ms: Option<i64>) -> Result<Option<Timestamp>> {
    Ok(ms.map(Timestamp::from_millisecond).transpose()?)
}

fn read_node(file: &Path, journal: &mut NodeJournal) -> Result<()> {
    let db = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    db.busy_timeout(Duration::from_secs(10))?;
    let high: Option<String> = db
        .query_row("SELECT value FROM meta WHERE key = 'high_water'", [], |r| {
            r.get(0)
        })
        .optional()?;
    if let Some(high) = high {
        let high: Value = serde_json::from_str(&high)?;
        journal.epoch = high["epoch"].as_u64().context("an epoch")?;
    }
    let signed = signed_column(&db)?.unwrap_or_else(|| "NULL".to_owned());
    let mut statement = db.prepare(&format!(
        "SELECT s.run, s.step, s.state, s.started, s.result, s.acknowledged IS NOT NULL,
                s.run IN (SELECT run FROM local), {signed}
         FROM step s"
    ))?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let run: Vec<u8> = row.get(0)?;
        let run: [u8; 16] = run.try_into().ok().context("a run's id has 16 bytes")?;
        let result: Option<String> = row.get(4)?;
        let signed = match row.get_ref(7)? {
            rusqlite::types::ValueRef::Null => None,
            value => Some(serde_json::from_slice::<Request>(value.as_bytes()?)?),
        };
        journal.steps.push(Step {
            request: RequestId {
                run: RunId::from_bytes(run),
                step: row.get(1)?,
            },
            state: row.get(2)?,
            started: time(row.get(3)?)?,
            result: result.map(|r| serde_json::from_str(&r)).transpose()?,
            acknowledged: row.get(5)?,
            local: row.get(6)?,
            signed,
        });
    }
    Ok(())
}

/// An expression for the signed request of a row `s` of `step`, where the
/// agent keeps it.
fn signed_column(db: &Connection) -> Result<Option<String>> {
    let has = |table: &str, column: &str| -> Result<bool> {
        let sql = "SELECT count(*) FROM pragma_table_info(?1) WHERE name = ?2";
        let n: i64 = db.query_row(sql, [table, column], |r| r.get(0))?;
        Ok(n > 0)
    };
    for (table, column) in [("request", "payload"), ("request", "bytes")] {
        if has(table, column)? {
            return Ok(Some(format!(
                "(SELECT q.{column} FROM {table} q WHERE q.run = s.run AND q.step = s.step)"
            )));
        }
    }
    Ok(None)
}

/// A connection of the checker's own, made with the keys on the broker's disk:
/// it may do what a broker may.
///
/// # Errors
/// When no server answers.
pub async fn connect(state: &Path) -> Result<JetStream> {
    let config = muster_broker::Config::load(&state.join("broker.toml"))?;
    let keys = NatsKeys::load(&state.join("keys"))?;
    let user = Credentials::issue(keys.account(), |user| UserClaims {
        name: "muster-checker".to_owned(),
        user,
        issued_at: FAR,
        expires_at: None,
        permissions: broker_permissions(),
        max_subscriptions: None,
        max_payload: None,
    })?;
    let mut last = None;
    // The server may just be starting.
    for _ in 0..200 {
        let mut options: ConnectOptions = user
            .connect_options()
            .name("muster-checker")
            .custom_inbox_prefix("_INBOX.muster.checker");
        if config.nats_tls() {
            let pem = state.join("keys").join("ca.pem");
            let text = std::fs::read_to_string(&pem)?;
            options = options
                .tls_client_config(muster_broker::tls::client_config(&text, &pem)?)
                .require_tls(true);
        }
        match options.connect(&config.nats.urls).await {
            Ok(client) => return Ok(muster_broker::store::context(client)),
            Err(e) => last = Some(e),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bail!("no connection to NATS: {last:?}")
}

/// As late as a broker's own credentials are issued: what is revoked is
/// always older.
const FAR: u64 = 32_503_680_000;

/// The messages of a stream under a subject, one by one, to the end.
async fn read(
    js: &JetStream,
    stream: &str,
    filter: &str,
) -> Result<Vec<async_nats::jetstream::message::StreamMessage>> {
    let mut last = None;
    for _ in 0..100 {
        match read_once(js, stream, filter).await {
            Ok(all) => return Ok(all),
            // JetStream may just be starting.
            Err(e) => last = Some(e),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err(last.context("it was tried")?)
}

async fn read_once(
    js: &JetStream,
    stream: &str,
    filter: &str,
) -> Result<Vec<async_nats::jetstream::message::StreamMessage>> {
    let stream = js.get_stream(stream).await?;
    let mut all = Vec::new();
    let mut next = 1;
    loop {
        match stream.get_first_raw_message_by_subject(filter, next).await {
            Ok(message) => {
                ensure!(message.sequence >= next, "the stream goes backwards");
                next = message.sequence + 1;
                all.push(message);
            }
            Err(e) if matches!(e.kind(), RawMessageErrorKind::NoMessageFound) => return Ok(all),
            Err(e) => return Err(e.into()),
        }
    }
}

async fn runs(js: &JetStream) -> Result<Vec<RunJournal>> {
    let mut all: Vec<RunJournal> = Vec::new();
    for message in read(js, "MUSTER_RUNS", subject::JOURNAL_ALL).await? {
        let run: RunId = message
            .subject
            .split('.')
            .nth(2)
            .context("a run's id in the subject")?
            .parse()?;
        let recorded = Recorded {
            sequence: message.sequence,
            stored: Timestamp::from_nanosecond(message.time.unix_timestamp_nanos())?,
            event: serde_json::from_slice(&message.payload)
                .with_context(|| format!("event {} of run {run}", message.sequence))?,
        };
        match all.iter_mut().find(|j| j.run == run) {
            Some(journal) => journal.events.push(recorded),
            None => all.push(RunJournal {
                run,
                events: vec![recorded],
            }),
        }
    }
    Ok(all)
}

async fn events(js: &JetStream) -> Result<Vec<ClusterEvent>> {
    let messages = read(js, "MUSTER_EVENTS", subject::EVENT).await?;
    messages
        .iter()
        .map(|m| Ok(serde_json::from_slice(&m.payload)?))
        .collect()
}

/// Journals, events, and the lines of the record.
type Streams = (Vec<RunJournal>, Vec<ClusterEvent>, Vec<(Timestamp, String)>);

/// The record's lines, each with when the store has taken it.
async fn record(js: &JetStream) -> Result<Vec<(Timestamp, String)>> {
    let messages = read(js, "MUSTER_AUDIT", subject::AUDIT).await?;
    let mut lines = Vec::new();
    for message in &messages {
        let text = std::str::from_utf8(&message.payload)?;
        let stored = Timestamp::from_nanosecond(message.time.unix_timestamp_nanos())?;
        lines.extend(text.lines().map(|line| (stored, line.to_owned())));
    }
    Ok(lines)
}

impl Up {
    /// A counter of effects of this test, which [`Audit`] looks at.
    ///
    /// # Panics
    /// When its directory cannot be made.
    #[must_use]
    pub fn counter(&self, name: &str) -> Counter {
        counter_in(self.dir.path(), name)
    }
}

/// A counter of effects below a test's directory.
///
/// # Panics
/// When its directory cannot be made.
#[must_use]
pub fn counter_in(root: &Path, name: &str) -> Counter {
    let dir = root.join(COUNTERS);
    std::fs::create_dir_all(&dir).expect("a directory");
    Counter::new(dir.join(name))
}
