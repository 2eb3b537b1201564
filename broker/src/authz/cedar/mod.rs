//! Policies in Cedar: read and checked ([`Document`]), judged ([`Judged`]),
//! and in force ([`InForce`]).
//!
//! What is asked becomes a Cedar request here and nowhere else: a run one for
//! each combination of assigned roles and labels in each of its sets. Facts
//! and names of nodes never get into one.

mod document;
mod faults;
mod force;
mod judge;
mod principals;
mod request;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::sync::LazyLock;

use cedar_policy::Schema;

pub(crate) use self::document::Alike;
pub use self::document::{Checked, Document, MAX_FILES, check};
pub use self::force::InForce;
pub use self::judge::{Judged, JudgedClass};
pub use self::principals::Principals;
pub use self::request::Moment;

/// The text of the schema.
pub const SCHEMA: &str = include_str!("muster.cedarschema");
/// The policies of a cluster that has none of its own.
pub const STOCK: &str = include_str!("stock.cedar");
/// The name of the file of policies.
pub const POLICIES_FILE: &str = "policies.cedar";
/// The name of the file of principals.
pub const PRINCIPALS_FILE: &str = "principals.toml";

static PARSED: LazyLock<Schema> = LazyLock::new(|| {
    let (schema, _) =
        Schema::from_cedarschema_str(SCHEMA).expect("a constant, and a test reads it");
    schema
});

/// The schema, read.
fn schema() -> &'static Schema {
    &PARSED
}
