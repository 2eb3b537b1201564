//! A server that says what a test wants it to say, and what becomes of it.

use muster_protocol::chat::ChannelName;

use super::*;

/// A network at that address, without TLS and without login.
pub(crate) fn settings(host: &str, port: u16) -> NetworkSettings {
    NetworkSettings {
        name: "test".parse().unwrap(),
        host: host.to_owned(),
        port,
        tls: None,
        nick: "muster".into(),
        alt_nicks: Vec::new(),
        username: "muster".into(),
        realname: "muster".into(),
        channels: vec![channel("#ops")],
        sasl: None,
        server_password: None,
        prefix: "!".into(),
        timing: Timing::default(),
    }
}

pub(crate) fn channel(name: &str) -> ChannelSettings {
    ChannelSettings {
        name: name.parse::<ChannelName>().unwrap(),
        key: None,
    }
}
