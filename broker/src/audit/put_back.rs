//! What the store has lost of the record is written into it again, where it
//! follows on what is there.

use async_nats::jetstream::Context;
use bytes::Bytes;
use muster_protocol::audit::{Checkpoint, Line, Tail};
use muster_protocol::subject::AUDIT;

use super::owner::Place;
use super::{AuditError, STREAM};
use crate::store::append::{Append, append};

/// Whether a message begins where the chain ends.
fn follows(text: &str, tail: Tail) -> bool {
    let Some(line) = text.lines().next() else {
        return false;
    };
    match serde_json::from_str::<Line>(line) {
        Ok(Line::Record(record)) => record.n == tail.count + 1 && record.prev == tail.head,
        Ok(Line::Checkpoint(signed)) => serde_json::from_str::<Checkpoint>(&signed.text)
            .is_ok_and(|said| !said.cut && said.count == tail.count && said.head == tail.head),
        Ok(Line::Trust(_)) | Err(_) => false,
    }
}

/// Appends of these messages, in their order, all that follow on the end of
/// the chain as it then is; how many that were.
///
/// # Errors
/// [`AuditError`].
pub(crate) async fn put_back(js: &Context, messages: Vec<Bytes>) -> Result<usize, AuditError> {
    let mut place = Place::find(js).await?;
    let before = place.tail;
    let mut back = 0;
    for payload in messages {
        let text = String::from_utf8_lossy(&payload).into_owned();
        // A checkpoint of where it ends now may be there already.
        let repeated = place.tail == before && !text.contains("\"audit\":\"record\"");
        if repeated || !follows(&text, place.tail) {
            continue;
        }
        let message = Append::new(AUDIT, payload).expecting(place.sequence);
        let appended = append(js, STREAM, &message).await?;
        place.sequence = appended.sequence;
        place.tail = Tail::after_lines(&text).unwrap_or(place.tail);
        back += 1;
    }
    Ok(back)
}
