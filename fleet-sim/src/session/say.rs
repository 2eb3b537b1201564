//! What a node says on a connection.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{HeaderMap, RequestErrorKind};
use bytes::Bytes;
use muster_agent::pace::{Backoff, jitter};
use muster_protocol::PROTOCOL_VERSION;
use muster_protocol::envelope::{KEY_HEADER, SIGNATURE_HEADER};
use muster_protocol::ids::RequestId;
use muster_protocol::keys::KeyId;
use muster_protocol::subject::NodeSays;
use muster_protocol::units::Timestamp;
use muster_protocol::wire::{
    Accepted, Beat, Bye, Facts, Hello, OUTPUT_HEADER, OutputHead, Welcome,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use tracing::warn;

use super::{Answer, Due, Sending, Session};
use crate::witness::count;

/// How long the broker may take to answer a hello.
const WELCOME_WITHIN: Duration = Duration::from_secs(8);
/// How long it may take to store an outcome or facts.
const STORED_WITHIN: Duration = Duration::from_secs(10);
/// Questions to the broker that may be open at once.
const MAX_ASKS: usize = 64;

impl Session<'_> {
    pub(super) async fn goodbye(&mut self) {
        if self.welcomed {
            let bye = Bye {
                instance: self.life.instance,
            };
            self.publish(NodeSays::Bye, encode(&bye)).await;
        }
        let _ = tokio::time::timeout(Duration::from_secs(3), self.connection.client.flush()).await;
    }

    pub(super) fn hello(&mut self) {
        if self.greeting {
            return;
        }
        self.greeting = true;
        let node = &self.life.node;
        let hello = Hello {
            protocol: PROTOCOL_VERSION,
            version: concat!(env!("CARGO_PKG_VERSION"), "-sim").to_owned(),
            instance: self.life.instance,
            boot_id: self.life.fleet.boot_id.clone(),
            time: Timestamp::now(),
            revision: node.member.assignment.revision,
            key_epoch: node.member.list.epoch,
            broker_epoch: node.seen.epoch,
            // There is no executable to replace.
            capabilities: vec!["command".to_owned(), "shell".to_owned()],
            build: None,
            journal: Some(node.mark()),
            // It runs no scenarios.
            seal: None,
            freeze: Some(node.freeze_mark()),
        };
        let asked = self.ask::<_, Welcome>(NodeSays::Hello, &hello, WELCOME_WITHIN);
        self.asks
            .push(Box::pin(async { Answer::Hello(asked.await.map(Box::new)) }));
    }

    pub(super) fn facts(&mut self) {
        if self.life.facts_sent {
            return;
        }
        let facts = match self.life.node.facts() {
            serde_json::Value::Object(facts) => facts.clone(),
            _ => serde_json::Map::new(),
        };
        let facts = Facts {
            facts,
            notes: Vec::new(),
        };
        let asked = self.ask_bytes(NodeSays::Facts, encode(&facts), STORED_WITHIN);
        self.asks
            .push(Box::pin(async { Answer::Facts(asked.await.is_ok()) }));
    }

    pub(super) fn fetch(&mut self) {
        if self.fetching {
            return;
        }
        self.fetching = true;
        let fleet = self.life.fleet.clone();
        let member = self.life.node.member.clone();
        let habits = Arc::clone(self.life.node.habits());
        self.asks.push(Box::pin(async move {
            // An order to all nodes must not bring all of them at once.
            tokio::time::sleep(jitter(Duration::from_millis(200))).await;
            let answer = fleet.fetch(&member, &habits.orders).await;
            Answer::Credentials(match answer {
                Ok(answer) => Some(Box::new(answer)),
                Err(e) => {
                    fleet.complain(&e.to_string());
                    None
                }
            })
        }));
    }

    pub(super) async fn beat(&mut self, now: Instant) {
        self.timers.put(now + self.beat_every, Due::Beat);
        let node = &self.life.node;
        let beat = Beat {
            instance: self.life.instance,
            time: Timestamp::now(),
            revision: node.member.assignment.revision,
            running: node.journal.running(),
            refused: node
                .refused
                .iter()
                .map(|(kind, count)| ((*kind).to_owned(), *count))
                .collect(),
            position: Some(node.mark().position),
        };
        self.publish(NodeSays::Beat, encode(&beat)).await;
    }

    pub(super) async fn run_out(&mut self, id: RequestId) {
        if self.life.node.run_out(id) {
            self.report(id).await;
        }
    }

    pub(super) async fn accept(&mut self, id: RequestId) {
        let runs = matches!(
            self.life.node.journal.look(id),
            Some(crate::journal::Entry::Started(_))
        );
        if runs {
            count(&self.life.tally().accepted);
            self.say(NodeSays::Accepted, &Accepted { request: id })
                .await;
        }
    }

    /// Sends an outcome, unless it is on its way already.
    pub(super) async fn report(&mut self, id: RequestId) {
        if !self.welcomed {
            // The welcome sends everything that the broker does not have.
            return;
        }
        if self.asks.len() > MAX_ASKS {
            let at = Instant::now() + jitter(Duration::from_millis(500));
            return self.timers.put(at, Due::Report(id));
        }
        let Some(report) = self.life.node.report(id) else {
            return;
        };
        match self.life.reporting.iter_mut().find(|s| s.id == id) {
            Some(sending) if sending.asked => return,
            Some(sending) => sending.asked = true,
            None => {
                self.life.reporting.push(Sending {
                    id,
                    pace: Backoff::new(Duration::from_millis(500), Duration::from_secs(60)),
                    asked: true,
                });
                // What does not arrive is asked for.
                for (number, data) in (0..).zip(self.life.node.chunks(id)) {
                    self.output(id, number, data).await;
                }
            }
        }
        let bytes = encode(&report);
        let faults = self.life.node.habits().faults;
        if faults.disturb() {
            let (delay, copy) = faults.delays(&mut self.life.draw);
            let now = Instant::now();
            if let Some(copy) = copy {
                // A copy without a place for an answer: as a network makes it.
                count(&self.life.tally().reports);
                self.timers
                    .put(now + copy, Due::Say(NodeSays::Outcome, bytes.clone()));
            }
            return self.send_report(id, bytes, delay);
        }
        self.send_report(id, bytes, Duration::ZERO);
    }

    fn send_report(&mut self, id: RequestId, bytes: Bytes, delay: Duration) {
        count(&self.life.tally().reports);
        let asked = self.ask_bytes(NodeSays::Outcome, bytes, STORED_WITHIN);
        self.asks.push(Box::pin(async move {
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            let answer = asked.await.ok();
            let answer = answer.and_then(|bytes| serde_json::from_slice(&bytes).ok());
            Answer::Outcome(id, answer)
        }));
    }

    /// Sends the request of a step back as it came, to a broker that has lost
    /// the run.
    pub(super) fn prove(&mut self, id: RequestId) {
        let Some(sealed) = self.life.node.journal.request(id) else {
            self.asks
                .push(Box::pin(std::future::ready(Answer::Proof(id, None))));
            return;
        };
        let mut headers = HeaderMap::new();
        headers.insert(KEY_HEADER, sealed.key.to_string());
        headers.insert(SIGNATURE_HEADER, sealed.signature.to_string());
        let request = async_nats::Request::new()
            .headers(headers)
            .payload(sealed.bytes.clone().into());
        let subject = NodeSays::Proof.subject(self.life.node.member.serial);
        let client = self.connection.client.clone();
        self.asks.push(Box::pin(async move {
            let asked = client.send_request(subject, request);
            let answer = tokio::time::timeout(STORED_WITHIN, asked).await;
            let answer = answer.ok().and_then(Result::ok);
            let answer = answer.and_then(|m| serde_json::from_slice(&m.payload).ok());
            Answer::Proof(id, answer)
        }));
    }

    /// Gives the broker a list of its keys.
    pub(super) async fn give_keys(&mut self, key: Option<KeyId>) -> bool {
        let Some(list) = self.life.node.habits().orders.list_with(key) else {
            return false;
        };
        self.publish(NodeSays::Keys, encode(&list)).await;
        true
    }

    pub(super) async fn output(&mut self, request: RequestId, chunk: u32, data: Vec<u8>) {
        let head = OutputHead {
            request,
            chunk,
            stream: muster_protocol::run::Stream::Stdout,
        };
        let mut headers = HeaderMap::new();
        let head = serde_json::to_string(&head).unwrap_or_default();
        headers.insert(OUTPUT_HEADER, head.as_str());
        let subject = NodeSays::Output.subject(self.life.node.member.serial);
        let client = &self.connection.client;
        let _ = client
            .publish_with_headers(subject, headers, data.into())
            .await;
    }

    pub(super) async fn say<T: Serialize>(&mut self, kind: NodeSays, message: &T) {
        let bytes = encode(message);
        let faults = self.life.node.habits().faults;
        if faults.disturb() {
            let (delay, copy) = faults.delays(&mut self.life.draw);
            let now = Instant::now();
            if let Some(copy) = copy {
                self.timers.put(now + copy, Due::Say(kind, bytes.clone()));
            }
            if !delay.is_zero() {
                return self.timers.put(now + delay, Due::Say(kind, bytes));
            }
        }
        self.publish(kind, bytes).await;
    }

    pub(super) async fn publish(&mut self, kind: NodeSays, bytes: Bytes) {
        let subject = kind.subject(self.life.node.member.serial);
        let _ = self.connection.client.publish(subject, bytes).await;
    }

    fn ask<T: Serialize, A: DeserializeOwned>(
        &self,
        kind: NodeSays,
        message: &T,
        patience: Duration,
    ) -> impl Future<Output = Option<A>> + use<T, A> {
        let asked = self.ask_bytes(kind, encode(message), patience);
        async move {
            let bytes = asked.await.ok()?;
            serde_json::from_slice(&bytes)
                .inspect_err(|e| warn!("an answer of the broker cannot be read: {e}"))
                .ok()
        }
    }

    fn ask_bytes(
        &self,
        kind: NodeSays,
        bytes: Bytes,
        patience: Duration,
    ) -> impl Future<Output = Result<Bytes, RequestErrorKind>> + use<> {
        let subject = kind.subject(self.life.node.member.serial);
        let client = self.connection.client.clone();
        async move {
            match tokio::time::timeout(patience, client.request(subject, bytes)).await {
                Ok(Ok(answer)) => Ok(answer.payload),
                Ok(Err(e)) => Err(e.kind()),
                Err(_) => Err(RequestErrorKind::TimedOut),
            }
        }
    }
}

fn encode<T: Serialize>(message: &T) -> Bytes {
    // Every message of the protocol has a JSON form.
    serde_json::to_vec(message).unwrap_or_default().into()
}
