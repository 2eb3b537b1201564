//! Settings of the HTTP side: certificates, limits, metrics.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::ConfigError;

/// A certificate of the operator's own.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsConfig {
    /// PEM file: the certificate, then those between it and its authority.
    /// Empty: one of the cluster's own authority.
    pub cert: PathBuf,
    /// PEM file with its private key.
    pub key: PathBuf,
    /// PEM file with the authorities that agents are told to trust besides the
    /// cluster's own when they enrol. Empty: none.
    pub ca: PathBuf,
}

impl TlsConfig {
    /// Certificate and key, where they are set.
    #[must_use]
    pub fn files(&self) -> Option<(&PathBuf, &PathBuf)> {
        (!self.cert.as_os_str().is_empty()).then_some((&self.cert, &self.key))
    }

    /// The authorities that agents are told of, where they are set.
    #[must_use]
    pub fn authorities(&self) -> Option<&PathBuf> {
        (!self.ca.as_os_str().is_empty()).then_some(&self.ca)
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let wrong = |field, why: &str| {
            Err(ConfigError::Value {
                field,
                why: why.into(),
            })
        };
        match (
            self.cert.as_os_str().is_empty(),
            self.key.as_os_str().is_empty(),
        ) {
            (true, false) => wrong("tls.cert", "is missing: `tls.key` is set; name both files"),
            (false, true) => wrong("tls.key", "is missing: `tls.cert` is set; name both files"),
            (true, true) if self.authorities().is_some() => wrong(
                "tls.ca",
                "is only for a certificate of your own: set `tls.cert` and `tls.key`, too",
            ),
            _ => Ok(()),
        }
    }
}

/// How much the API takes at a time.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Requests that one principal may make in a second, on the average; ten
    /// seconds' worth may come at once.
    pub requests_per_second: u32,
    /// Requests that are worked on at a time, whoever asks.
    pub requests_at_once: u32,
    /// Connections at a time.
    pub connections: u32,
    /// Those who follow a run, or wait for its end, at a time.
    pub watchers: u32,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            requests_per_second: 500,
            requests_at_once: 512,
            connections: 16_384,
            watchers: 8_192,
        }
    }
}

impl LimitsConfig {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        for (field, value) in [
            ("limits.requests_per_second", self.requests_per_second),
            ("limits.requests_at_once", self.requests_at_once),
            ("limits.connections", self.connections),
            ("limits.watchers", self.watchers),
        ] {
            if !(1..=1_000_000).contains(&value) {
                return Err(ConfigError::Value {
                    field,
                    why: "must be 1 to 1000000".into(),
                });
            }
        }
        Ok(())
    }
}

/// Who may read `/metrics`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MetricsDoor {
    /// Whoever has a token that may read the status.
    #[default]
    Token,
    /// Whoever is on this machine; others need a token.
    Loopback,
    /// Everybody.
    Open,
}
