//! How much JetStream of each server keeps, and may keep.

use std::path::PathBuf;

use serde::Deserialize;

use super::{AdminError, QUIET, SystemClient};

const WHAT: &str = "how much JetStream keeps";

/// JetStream of one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JetStreamUse {
    /// Bytes on its disk.
    pub storage: u64,
    /// Most bytes that it may have there; `None` without a limit.
    pub max_storage: Option<u64>,
    /// Its directory, on its machine.
    pub store_dir: PathBuf,
}

#[derive(Deserialize)]
struct Answer {
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    #[serde(default)]
    storage: u64,
    config: Option<Config>,
}

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    max_storage: i64,
    #[serde(default)]
    store_dir: PathBuf,
}

impl SystemClient {
    /// JetStream of every server that answers now; servers without it are
    /// left out.
    ///
    /// # Errors
    /// [`AdminError::NoAnswer`].
    pub async fn jetstream(&self) -> Result<Vec<JetStreamUse>, AdminError> {
        let subject = "$SYS.REQ.SERVER.PING.JSZ".to_owned();
        let more = |_: &[bytes::Bytes]| false;
        let answers = self
            .scatter(WHAT, subject, b"{}".to_vec(), QUIET, more)
            .await?;
        Ok(answers.iter().filter_map(|a| parse(a)).collect())
    }
}

fn parse(answer: &[u8]) -> Option<JetStreamUse> {
    let Data { storage, config } = serde_json::from_slice::<Answer>(answer).ok()?.data;
    let config = config?;
    Some(JetStreamUse {
        storage,
        max_storage: u64::try_from(config.max_storage).ok().filter(|n| *n > 0),
        store_dir: config.store_dir,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_servers_answer_is_read() {
        let said = br#"{"server":{"name":"n","id":"NA"},"data":{"server_id":"NA","now":"2026-11-21T09:00:00Z",
            "config":{"max_memory":67108864,"max_storage":1073741824,"store_dir":"/s/jetstream","unique_tag":""},
            "memory":0,"storage":4711,"reserved_memory":0,"reserved_storage":12,"accounts":1,"ha_assets":0,
            "api":{"total":1,"errors":0},"streams":7,"consumers":0,"messages":9,"bytes":4711}}"#;
        let found = parse(said).expect("read");
        assert_eq!((found.storage, found.max_storage), (4_711, Some(1 << 30)));
        assert_eq!(found.store_dir, PathBuf::from("/s/jetstream"));
        // One without JetStream, and nonsense.
        assert_eq!(parse(br#"{"server":{},"data":{"disabled":true}}"#), None);
        assert_eq!(parse(b"x"), None);
    }
}
