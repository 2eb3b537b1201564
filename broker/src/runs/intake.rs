//! What a run's task is told, read and stored: output before the outcome it
//! belongs to, many outcomes in one event, and an answer only after that.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_nats::Subject;
use bytes::Bytes;
use muster_protocol::api::Frame;
use muster_protocol::ids::Serial;
use muster_protocol::names::PrincipalName;
use muster_protocol::run::{NodePhase, NodeResult, RunEvent, Wish, Wisher};
use muster_protocol::units::Timestamp;
use muster_protocol::wire::{OutcomeAnswer, OutcomeReport};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::engine::Engine;
use super::flow::Answered;
use super::frames::StoredOutput;
use super::journal::{JournalError, STREAM, output_message};
use super::outcome::{Taken, from_node, same};
use super::rebuild::forgotten;
use super::task::{Cancelled, Task, ToRun, Wished};
use crate::store::append::{Append, append, append_all};
use crate::store::error::StreamError;

/// Different answers of one node after its outcome that are kept.
const MOST_LATE: usize = 4;

/// What came out of a handful of messages, to be stored together.
#[derive(Default)]
struct Batch {
    output: Vec<(StoredOutput, usize, Append)>,
    /// Outcomes of nodes that had none, and whom to tell.
    results: Vec<(NodeResult, Option<Subject>)>,
    /// Nodes in `results`.
    settled: HashSet<Serial>,
    /// Answers after the outcome.
    late: Vec<(NodeResult, Option<Subject>)>,
    /// Repeats of what is being stored.
    repeats: Vec<(Serial, Option<Subject>)>,
    /// Whom to tell that a node has its outcome because it has forgotten.
    forgot: Vec<oneshot::Sender<()>>,
    cancels: Vec<(PrincipalName, oneshot::Sender<Cancelled>)>,
    answers: Vec<(PrincipalName, String, oneshot::Sender<Answered>)>,
    wishes: Vec<(Wish, Wisher, oneshot::Sender<Wished>)>,
    rooms: Vec<OwnedSemaphorePermit>,
}

impl Task {
    /// Takes what nodes and people have said, and stores it.
    pub(super) async fn take(&mut self, messages: &mut Vec<ToRun>) -> Result<(), JournalError> {
        let mut batch = Batch::default();
        for message in messages.drain(..) {
            self.read(message, &mut batch).await;
        }
        self.store_output(std::mem::take(&mut batch.output)).await;
        let mut results = Vec::with_capacity(batch.results.len());
        let mut answers = batch.repeats;
        for (mut result, reply) in batch.results {
            if let Some(book) = self.books.get(&result.serial) {
                book.conclude(&mut result);
            }
            answers.push((result.serial, reply));
            results.push(result);
        }
        self.store_results(results).await?;
        for tell in batch.forgot {
            let _ = tell.send(());
        }
        for (result, reply) in batch.late {
            answers.push((result.serial, reply));
            tracing::warn!(node = %result.serial, outcome = %result.outcome, "an answer after the outcome was settled");
            self.store(RunEvent::Late {
                result,
                at: Timestamp::now(),
            })
            .await?;
        }
        for (serial, reply) in answers {
            self.place("broker.answer.before", "stored").await;
            self.answer(serial, reply, OutcomeAnswer::Stored).await;
        }
        for (by, text, tell) in batch.answers {
            self.answer_question(by, text, tell).await?;
        }
        for (wish, who, tell) in batch.wishes {
            let answer = self.wish(wish, &who).await?;
            let _ = tell.send(answer);
        }
        for (by, tell) in batch.cancels {
            let answer = self.cancel(by).await?;
            let _ = tell.send(answer);
        }
        Ok(())
    }

    async fn answer(&self, serial: Serial, reply: Option<Subject>, answer: OutcomeAnswer) {
        if let Some(reply) = reply {
            self.engine.0.bus.reply(serial, &reply, &answer).await;
        }
    }

    async fn read(&mut self, message: ToRun, batch: &mut Batch) {
        match message {
            ToRun::Accepted(serial) => {
                if self.delivery.accepted(serial, self.now())
                    && let Some(node) = self.state.nodes.get(&serial)
                {
                    // Nobody may be watching.
                    let _ = self.live.send(Frame::Accepted {
                        run: self.run,
                        node: node.name.clone(),
                    });
                }
            }
            ToRun::Output {
                node,
                head,
                data,
                room,
            } => {
                batch.rooms.push(room);
                if self.is_sent(node) && !batch.settled.contains(&node) {
                    let head = StoredOutput {
                        serial: node,
                        chunk: head.chunk,
                        stream: head.stream,
                    };
                    self.take_output(head, data, batch);
                }
            }
            ToRun::Outcome {
                node,
                report,
                reply,
                room,
            } => {
                batch.rooms.push(room);
                self.read_outcome(node, *report, reply, batch).await;
            }
            ToRun::Unheard(serial, message) => self.delivery.nobody_heard(serial, message),
            ToRun::Returned(serial) => self.delivery.returned(serial, self.now()),
            ToRun::Forgot { node, older, tell } => {
                batch.forgot.push(tell);
                if self.is_sent(node)
                    && self.delivery.may_have_begun(node)
                    && batch.settled.insert(node)
                {
                    batch.results.push((forgotten(node, older), None));
                }
            }
            ToRun::State(tell) => {
                let _ = tell.send(Arc::new(self.state.clone()));
            }
            ToRun::Cancel { by, tell } => batch.cancels.push((by, tell)),
            ToRun::Answer { by, text, tell } => batch.answers.push((by, text, tell)),
            // It is looked at anew after every message.
            ToRun::PartEnded => {}
            ToRun::Wish { wish, who, tell } => batch.wishes.push((wish, who, tell)),
        }
    }

    fn take_output(&mut self, head: StoredOutput, data: Bytes, batch: &mut Batch) {
        let limit = self.state.spec.options.output_bytes;
        let book = self.books.entry(head.serial).or_default();
        if book.take(head.chunk, data.len(), limit) == Taken::Store && !data.is_empty() {
            batch
                .output
                .push((head, data.len(), output_message(self.run, head, data)));
        }
    }

    async fn read_outcome(
        &mut self,
        serial: Serial,
        report: OutcomeReport,
        reply: Option<Subject>,
        batch: &mut Batch,
    ) {
        let stray = |engine: &Engine| engine.0.strays.fetch_add(1, Ordering::Relaxed);
        let Some(node) = self.state.nodes.get(&serial) else {
            stray(&self.engine);
            self.answer(serial, reply, OutcomeAnswer::Unknown).await;
            return;
        };
        let result = from_node(serial, report.result);
        match &node.phase {
            NodePhase::Waiting => {
                // Nothing was sent to it: it will be heard when it was.
                stray(&self.engine);
            }
            NodePhase::Done(known) => {
                let repeated = same(known, &result)
                    || node.late.iter().any(|late| same(late, &result))
                    || node.late.len() >= MOST_LATE;
                if repeated {
                    batch.repeats.push((serial, reply));
                } else {
                    batch.late.push((result, reply));
                }
            }
            NodePhase::Sent { .. } if batch.settled.contains(&serial) => {
                let known = batch
                    .results
                    .iter()
                    .find(|(known, _)| known.serial == serial);
                if known.is_some_and(|(known, _)| same(known, &result)) {
                    batch.repeats.push((serial, reply));
                }
                // Else it repeats it, and then it is late.
            }
            NodePhase::Sent { .. } => {
                for chunk in report.inline {
                    let head = StoredOutput {
                        serial,
                        chunk: chunk.chunk,
                        stream: chunk.stream,
                    };
                    if let Some(bytes) = chunk.data.bytes() {
                        self.take_output(head, bytes.into(), batch);
                    }
                }
                let missing = self.books.entry(serial).or_default().missing(report.chunks);
                if missing.is_empty() {
                    batch.settled.insert(serial);
                    batch.results.push((result, reply));
                } else {
                    self.answer(serial, reply, OutcomeAnswer::Missing { chunks: missing })
                        .await;
                }
            }
        }
    }

    /// Stores chunks in their order. What cannot be stored shows as truncated.
    async fn store_output(&mut self, output: Vec<(StoredOutput, usize, Append)>) {
        if output.is_empty() {
            return;
        }
        let shared = Arc::clone(&self.engine.0);
        let bytes: usize = output.iter().map(|(_, bytes, _)| bytes).sum();
        if !shared.has_room(bytes as u64) {
            tracing::warn!(bytes, "no room for output: the journals need what is left");
            for (head, bytes, _) in &output {
                self.books.entry(head.serial).or_default().lost(*bytes);
            }
            return;
        }
        let (owners, messages): (Vec<(StoredOutput, usize)>, Vec<Append>) = output
            .into_iter()
            .map(|(head, bytes, message)| ((head, bytes), message))
            .unzip();
        let results = append_all(&shared.js, STREAM, &messages).await;
        for (((head, bytes), message), result) in owners.into_iter().zip(&messages).zip(results) {
            // Its id makes a second attempt harmless.
            let result = match result {
                Err(StreamError::Full { .. } | StreamError::TooLarge { .. }) | Ok(_) => result,
                Err(_) => append(&shared.js, STREAM, message).await,
            };
            if let Err(error) = result {
                tracing::warn!(node = %head.serial, %error, "output of a node is lost");
                self.books.entry(head.serial).or_default().lost(bytes);
            }
            self.tell_events(head, &message.payload).await;
        }
    }
}
