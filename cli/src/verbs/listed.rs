//! Lists of things that have a name.

use clap::Args;
use serde::Serialize;

use crate::Context;
use crate::failure::Failure;

/// Arguments of a list that is never narrowed.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// One JSON array
    #[arg(long)]
    pub json: bool,
}

/// Says what there is, as JSON or as a table; or, where there is nothing, how
/// the first one comes.
///
/// # Errors
/// It cannot be written.
pub(super) fn listed<T: Serialize>(
    context: &Context,
    args: &ListArgs,
    all: &[T],
    none: &str,
    table: impl FnOnce(&[T]) -> String,
) -> Result<(), Failure> {
    let term = &context.term;
    if args.json {
        return term.json(&all);
    }
    if all.is_empty() {
        term.note(none);
        return Ok(());
    }
    term.say(&table(all))
}
