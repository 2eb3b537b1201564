//! Scenarios on this node: their bundles on disk ([`store`]), and the
//! executor ([`executor`]) that runs a function of one against the real host
//! ([`effects`]).
//!
//! ```text
//! step → executor ── thread of its own: script → Effect → effects → host::…
//!            ▲                                                 │
//!            └── output, processes, notes, one after another ──┘
//! ```

pub mod effects;
pub mod executor;
pub mod fetch;
mod masks;
mod passed;
pub mod restart;
pub mod store;

pub use effects::Grants;
pub use executor::Scenarios;
pub use fetch::{FetchError, Fetcher};
pub use restart::{Past, Restarts};
pub use store::{BundleStore, Bundles, StoreError};
