//! What a `main` was told, from the journal.

use std::sync::Arc;

use async_nats::jetstream::Context;
use futures_util::TryStreamExt as _;
use muster_protocol::ids::RunId;
use muster_protocol::run::{FoldError, RunEvent};
use muster_protocol::subject;
use muster_scenarios::durable::{Recorded, Records, Reply};

use super::super::journal::{ReadError, STREAM, parse};
use crate::store::read::read_from;

/// Bytes of the text of a reply in one event, far below the largest NATS
/// message also when every character has to be escaped.
pub(super) const PART: usize = 128 * 1024;

/// The calls that were answered, in order.
#[derive(Debug, Default)]
pub(super) struct Told {
    records: Vec<Arc<Recorded>>,
    /// Of the open call.
    called: Option<(String, String)>,
    /// The beginning of its reply.
    text: String,
    /// Bytes of all replies.
    bytes: u64,
}

impl Told {
    /// All of them.
    pub(super) fn records(&self) -> Records {
        self.records.as_slice().into()
    }

    /// Bytes of all replies.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How often it slept.
    pub(super) fn slept(&self) -> u64 {
        slept(&self.records)
    }

    /// Takes one more event of the journal.
    ///
    /// # Errors
    /// A reply that cannot be read.
    pub(super) fn take(&mut self, event: &RunEvent) -> Result<(), FoldError> {
        match event {
            RunEvent::Recorded { records, .. } => {
                for record in records {
                    let reply = serde_json::from_value(record.reply.clone()).map_err(damaged)?;
                    self.bytes += record.reply.to_string().len() as u64;
                    self.push(record.call.clone(), &record.hash, reply)?;
                }
            }
            RunEvent::Called { call, hash, .. } => {
                self.called = Some((call.clone(), hash.clone()));
                self.text.clear();
            }
            RunEvent::ReplyPart { part, text, .. } => {
                if *part == 0 {
                    self.text.clear();
                }
                self.text.push_str(text);
            }
            RunEvent::Answered { reply, .. } => {
                self.text.push_str(reply);
                let text = std::mem::take(&mut self.text);
                self.bytes += text.len() as u64;
                let reply = serde_json::from_str(&text).map_err(damaged)?;
                let (call, hash) = self
                    .called
                    .take()
                    .ok_or(FoldError::Main("nothing waits for this reply"))?;
                self.push(call, &hash, reply)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn push(&mut self, call: String, hash: &str, reply: Reply) -> Result<(), FoldError> {
        let hash = hash
            .parse()
            .map_err(|_| FoldError::Main("a call has no hash"))?;
        self.records.push(Arc::new(Recorded { call, hash, reply }));
        Ok(())
    }
}

/// How many of the calls are sleeps.
pub(super) fn slept(records: &[Arc<Recorded>]) -> u64 {
    let sleeps = records.iter().filter(|record| record.call == "sleep");
    sleeps.count() as u64
}

fn damaged(_: serde_json::Error) -> FoldError {
    FoldError::Main("a reply cannot be read")
}

/// Reads everything that a `main` was told.
///
/// # Errors
/// [`ReadError`].
pub(super) async fn read(js: &Context, run: RunId, first: u64) -> Result<Told, ReadError> {
    let mut told = Told::default();
    let mut messages = read_from(js, STREAM, &subject::journal(run), first).await?;
    while let Some(message) = messages.try_next().await? {
        let sequence = message.sequence;
        let event = parse(run, sequence, &message.payload)?;
        told.take(&event).map_err(|source| ReadError::Fold {
            run,
            sequence,
            source,
        })?;
    }
    Ok(told)
}

/// Cuts the text of a reply so that each part fits into an event. The last
/// part goes with the answer.
pub(super) fn cut(text: &str) -> (Vec<&str>, &str) {
    let (mut parts, mut rest) = (Vec::new(), text);
    while rest.len() > PART {
        let mut at = PART;
        while !rest.is_char_boundary(at) {
            at -= 1;
        }
        let (part, after) = rest.split_at(at);
        parts.push(part);
        rest = after;
    }
    (parts, rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_protocol::units::Timestamp;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_reply_in_parts_is_the_reply(text in "[ -~é→]{0,40}", times in 1..20_000usize, again in 0..3usize) {
            let value = serde_json::Value::String(text.repeat(times));
            let whole = serde_json::to_string(&Reply::Value(value)).expect("json");
            let (parts, last) = cut(&whole);
            prop_assert!(parts.iter().chain([&last]).all(|part| part.len() <= PART));
            let hash = "00".repeat(32);
            let mut told = Told::default();
            let at = Timestamp::UNIX_EPOCH;
            told.take(&RunEvent::Called {
                number: 0, call: "on".into(), hash, line: None,
                wanted: muster_protocol::run::Wanted::Nothing, at,
            }).expect("follows");
            let part = |(n, text): (usize, &&str)| RunEvent::ReplyPart {
                number: 0, part: n as u32, text: (*text).to_owned(),
            };
            // Somebody was stopped in the middle, and it began again.
            for event in parts.iter().enumerate().take(again).map(part) {
                told.take(&event).expect("follows");
            }
            for event in parts.iter().enumerate().map(part) {
                told.take(&event).expect("follows");
            }
            told.take(&RunEvent::Answered {
                number: 0, reply: last.to_owned(), steps: vec![], machine: None,
                by: None, text: None,
                error: None, at,
            }).expect("follows");
            let said = serde_json::to_string(&told.records()[0].reply).expect("json");
            prop_assert_eq!(said, whole);
        }
    }
}
