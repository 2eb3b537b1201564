//! The secret parameters of runs: only ever in memory.

use std::fmt;
use std::sync::Arc;

use serde_json::{Map, Value};

/// Values of secret parameters. Shown nowhere, written nowhere; cheap to
/// clone.
#[derive(Clone, Default, PartialEq)]
pub struct SecretValues(Arc<Map<String, Value>>);

impl SecretValues {
    /// These.
    #[must_use]
    pub fn new(values: Map<String, Value>) -> Self {
        Self(Arc::new(values))
    }

    /// Whether there is none that has a value.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.values().all(Value::is_null)
    }

    /// The values by name, for whoever seals them.
    #[must_use]
    pub fn expose(&self) -> &Map<String, Value> {
        &self.0
    }
}

impl fmt::Debug for SecretValues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretValues([{} redacted])", self.0.len())
    }
}
